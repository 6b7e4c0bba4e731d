//! Walks through the rows of an account in the order of their keys, either as they are written or as they are at one
//! moment.

use std::sync::Arc;

use async_trait::async_trait;
use tokio_postgres::Row as Answered;

use super::core::Core;
use super::failure::Failure;
use super::link::Link;
use super::statement::{Cell, Row, Statement};
use super::store::PostgresStore;
use super::tables::{SqlTable, TABLES};
use crate::error::{Error, PostgresProblem, Result};
use crate::rows::store::{CountedRows, Found, RowPrefix, RowReader};
use crate::rows::table::Table;

/// The largest number of rows on a page, and the approximate size of a page in bytes.
const PAGE_ROWS: i64 = 500;
const PAGE_BYTES: usize = 2 << 20;
/// The same for rows of which little is read.
const PREFIXES: i64 = 5000;

/// The progress of a walk through a table.
struct Pages {
    table: &'static SqlTable,
    /// The key of the last row that was read; `None` before the first one.
    behind: Option<Row>,
    ended: bool,
    limit: i64,
    seen: i64,
}

impl Pages {
    fn of(table: &'static Table) -> Self {
        Self { table: SqlTable::of(table), behind: None, ended: false, limit: PAGE_ROWS / 10, seen: 0 }
    }

    /// The statement of the next page, and its parameters. Of the two statements, the second one begins behind a key.
    fn next(&self, [first, next]: [&'static Statement; 2], limit: i64) -> (&'static Statement, Row) {
        match &self.behind {
            None => (first, Row::from_iter([Cell::from(limit)])),
            Some(key) => (next, key.iter().cloned().chain([Cell::from(limit)]).collect()),
        }
    }

    fn whole(&self) -> (&'static Statement, Row) {
        self.next([&self.table.first, &self.table.next], self.limit)
    }

    /// # Errors
    /// [`Error::Malformed`] if not even the key of a row can be read.
    fn advance(&mut self, rows: &[Answered]) -> Result<Vec<Found>> {
        let found: Vec<Found> =
            rows.iter().zip(self.seen + 1..).map(|(row, at)| (at, self.table.stored(row))).collect();
        self.end_page(rows, self.table.key_at(), self.limit)?;
        let bytes: usize = found.iter().filter_map(|(_, row)| Some(row.as_ref().ok()?.as_ref()?.value.len())).sum();
        let each = (bytes / found.len().max(1)).max(1);
        self.limit = ((PAGE_BYTES / each) as i64).clamp(1, PAGE_ROWS);
        Ok(found)
    }

    fn end_page(&mut self, rows: &[Answered], key_at: usize, limit: i64) -> Result<()> {
        if let Some(last) = rows.last() {
            self.behind = Some(self.table.key(last, key_at)?);
        }
        self.seen += rows.len() as i64;
        self.ended = (rows.len() as i64) < limit;
        Ok(())
    }
}

/// Reads rows while they are written. Each page is from a moment of its own.
pub(super) struct LiveReader {
    store: PostgresStore,
    pages: Option<Pages>,
}

impl LiveReader {
    pub(super) fn new(store: PostgresStore) -> Self {
        Self { store, pages: None }
    }
}

#[async_trait]
impl RowReader for LiveReader {
    fn begin(&mut self, table: &'static Table) {
        self.pages = Some(Pages::of(table));
    }

    async fn next(&mut self) -> Result<Option<Vec<Found>>> {
        let Some(pages) = self.pages.as_mut().filter(|pages| !pages.ended) else { return Ok(None) };
        let (statement, parameters) = pages.whole();
        let rows = self.store.read_long(statement, parameters).await?;
        pages.advance(&rows).map(Some)
    }

    async fn count(&mut self) -> Result<u64> {
        self.store.count_rows(|_| true).await
    }
}

/// The database as it is at one moment, on a connection of its own.
pub(super) struct Snapshot {
    link: Link,
    account: i32,
    pages: Option<Pages>,
    has_damage: bool,
}

impl Snapshot {
    /// # Errors
    /// [`Error::Postgres`].
    pub(super) async fn open(core: &Arc<Core>, account: i32) -> Result<Self> {
        let snapshot =
            Self { link: Link::connect(core).await.map_err(failed)?, account, pages: None, has_damage: false };
        // After an error, the transaction goes on from the savepoint with the same snapshot.
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SAVEPOINT start";
        snapshot.link.command(begin).await.map_err(failed)?;
        Ok(snapshot)
    }

    async fn ask(&self, (statement, parameters): (&'static Statement, Row)) -> Result<Vec<Answered>, Failure> {
        let rows = [parameters];
        Ok(self.link.run(statement, statement.parameters(self.account, None, &rows)).await?.rows)
    }

    /// The number of rows of the account in a table.
    async fn count_of(&self, table: &'static SqlTable) -> Result<u64> {
        let rows = self.ask((&table.count, Row::new())).await.map_err(failed)?;
        let count: i64 =
            super::decode::first(&rows, |row| super::decode::get(row, 0, table.table.record))?.unwrap_or(0);
        Ok(count.unsigned_abs())
    }

    /// Reads a page on which the server finds damage: each row by itself.
    async fn row_by_row(&mut self, pages: &mut Pages) -> Result<Vec<Found>> {
        let table = pages.table;
        self.go_on().await?;
        let keys = self.ask(pages.next([&table.first_keys, &table.next_keys], pages.limit)).await.map_err(failed)?;
        let mut found = vec![];
        for (row, at) in keys.iter().zip(pages.seen + 1..) {
            let read = match self.ask((&table.one, table.key(row, 0)?)).await {
                Ok(rows) => rows.first().map(|row| table.stored(row)),
                Err(failure) if failure.problem() == PostgresProblem::Damaged => {
                    self.go_on().await?;
                    Some(Err(Error::Malformed { record: table.table.record }))
                }
                Err(failure) => return Err(failed(failure)),
            };
            found.extend(read.map(|row| (at, row)));
        }
        self.has_damage = true;
        pages.end_page(&keys, 0, pages.limit)?;
        Ok(found)
    }

    /// Goes on after an error.
    async fn go_on(&self) -> Result<()> {
        self.link.command("ROLLBACK TO SAVEPOINT start").await.map_err(failed)
    }

    /// Passes the first bytes of each sealed value to `each`.
    pub(super) async fn prefixes(&mut self, each: &mut (dyn FnMut(RowPrefix) + Send)) -> Result<Vec<CountedRows>> {
        let mut counted = vec![];
        for table in TABLES.iter().filter(|table| table.table.is_sealed) {
            let mut pages = Pages::of(table.table);
            while !pages.ended {
                let page = pages.next([&table.first_prefixes, &table.next_prefixes], PREFIXES);
                let rows = self.ask(page).await.map_err(failed)?;
                let record = table.table.record;
                for (row, at) in rows.iter().zip(pages.seen + 1..) {
                    let front: &[u8] = super::decode::get(row, 0, record)?;
                    if !super::decode::get::<bool>(row, 1, record)? {
                        each(RowPrefix { table: table.table.name, row: at, prefix: table.table.prefix(front) });
                    }
                }
                pages.end_page(&rows, 2, PREFIXES)?;
            }
            counted.push(CountedRows { table: table.table.name, rows: pages.seen.unsigned_abs() });
        }
        Ok(counted)
    }
}

#[async_trait]
impl RowReader for Snapshot {
    fn begin(&mut self, table: &'static Table) {
        (self.pages, self.has_damage) = (Some(Pages::of(table)), false);
    }

    async fn next(&mut self) -> Result<Option<Vec<Found>>> {
        let Some(mut pages) = self.pages.take() else { return Ok(None) };
        if pages.ended {
            let (seen, counted) = (pages.seen.unsigned_abs(), self.count_of(pages.table).await?);
            // Rows that cannot be read are among those that were seen.
            if seen != counted && !self.has_damage {
                return Err(Error::RowsMissed { table: pages.table.table.name, seen, counted });
            }
            return Ok(None);
        }
        let found = match self.ask(pages.whole()).await {
            Ok(rows) => pages.advance(&rows)?,
            Err(failure) if failure.problem() == PostgresProblem::Damaged => self.row_by_row(&mut pages).await?,
            Err(failure) => return Err(failed(failure)),
        };
        self.pages = Some(pages);
        Ok(Some(found))
    }

    async fn count(&mut self) -> Result<u64> {
        let mut count = 0;
        for table in TABLES.iter() {
            count += self.count_of(table).await?;
        }
        Ok(count)
    }
}

pub(super) fn failed(failure: Failure) -> Error {
    failure.into_error(crate::method::Record::Store)
}
