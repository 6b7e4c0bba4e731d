//! Walks through the rows of an account, either as they are written or as they are at one moment.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::Connection;

use super::backoff::retry_busy;
use super::database::Database;
use super::open_files::OpenFile;
use super::pages::{PAGE_ROWS, Page, Position, count};
use super::store::SqliteStore;
use super::tables::SqlTable;
use crate::background;
use crate::error::{Error, Result};
use crate::rows::store::{Found, RowReader};
use crate::rows::table::Table;

/// The approximate size of a page in bytes.
const PAGE_BYTES: usize = 2 << 20;

/// The progress of a walk through a table.
struct Pages {
    table: &'static SqlTable,
    /// The position at which the next page begins; `None` after the last page.
    next: Option<Position>,
    limit: i64,
    seen: i64,
    has_damage: bool,
}

impl Pages {
    fn of(table: &'static Table) -> Self {
        let table = SqlTable::of(table);
        Self { table, next: Some(Position::First), limit: PAGE_ROWS / 10, seen: 0, has_damage: false }
    }

    fn advance(&mut self, page: Page) -> Vec<Found> {
        let Page { rows, next } = page;
        let bytes: usize = rows.iter().filter_map(|(_, row)| Some(row.as_ref().ok()?.as_ref()?.value.len())).sum();
        self.seen += rows.len() as i64;
        self.has_damage |= rows.iter().any(|(_, row)| row.is_err());
        self.next = next;
        let each = (bytes / rows.len().max(1)).max(1);
        self.limit = ((PAGE_BYTES / each) as i64).clamp(1, PAGE_ROWS);
        rows
    }
}

/// Reads rows while they are written. Each page is from a moment of its own.
pub(super) struct LiveReader {
    store: SqliteStore,
    pages: Option<Pages>,
}

impl LiveReader {
    pub(super) fn new(store: SqliteStore) -> Self {
        Self { store, pages: None }
    }
}

#[async_trait]
impl RowReader for LiveReader {
    fn begin(&mut self, table: &'static Table) {
        self.pages = Some(Pages::of(table));
    }

    async fn next(&mut self) -> Result<Option<Vec<Found>>> {
        self.store.lease.check()?;
        let Some(pages) = &mut self.pages else { return Ok(None) };
        let Some(from) = pages.next.take() else { return Ok(None) };
        let (account, table, limit, seen) = (self.store.account, pages.table, pages.limit, pages.seen);
        let page = self.store.database.read_long(move |c| table.page(c, account, &from, limit, seen)).await?;
        Ok(Some(pages.advance(page)))
    }

    async fn count(&mut self) -> Result<u64> {
        let account = self.store.account;
        self.store.database.read_long(move |c| count(c, account, |_| true)).await
    }
}

/// The database as it is at one moment, on a connection of its own.
pub(super) struct Snapshot {
    /// `None` while a thread reads with it. The connection is dropped before the database, whose
    /// last connection empties the log.
    connection: Option<(Connection, Arc<Database>, Option<Arc<OpenFile>>)>,
    account: i32,
    pages: Option<Pages>,
}

impl Snapshot {
    /// # Errors
    /// [`Error::SchemaAltered`], [`Error::FileMoved`] and [`Error::Sqlite`].
    pub(super) async fn open(store: &SqliteStore) -> Result<Self> {
        let (database, account) = (store.database.clone(), store.account);
        let mut backoff = database.wal.backoff_of_readers();
        let open = move || {
            let pin = database.wal.pin();
            Ok::<_, Error>((retry_busy(&mut backoff, || database.open_snapshot())?, database, pin))
        };
        Ok(Self { connection: Some(background::unblock(open).await?), account, pages: None })
    }

    /// Runs a query on a blocking thread.
    pub(super) async fn run<T: Send + 'static>(
        &mut self,
        query: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = self.connection.take().ok_or(Error::WorkerGone)?;
        let run = move || {
            let result = query(&connection.0);
            (connection, result)
        };
        let (connection, result) = background::unblock(run).await;
        self.connection = Some(connection);
        result
    }
}

#[async_trait]
impl RowReader for Snapshot {
    fn begin(&mut self, table: &'static Table) {
        self.pages = Some(Pages::of(table));
    }

    async fn next(&mut self) -> Result<Option<Vec<Found>>> {
        let account = self.account;
        let Some(pages) = &mut self.pages else { return Ok(None) };
        let (table, limit, seen) = (pages.table, pages.limit, pages.seen);
        let Some(from) = pages.next.take() else {
            let has_damage = pages.has_damage;
            let check = move |c: &Connection| match table.check_count(c, account, seen.unsigned_abs()) {
                // The rows that cannot be counted are among the damaged ones that were seen.
                Err(error) if has_damage && error.is_damaged_database() => Ok(()),
                checked => checked,
            };
            self.run(check).await?;
            self.pages = None;
            return Ok(None);
        };
        let page = self.run(move |c| table.page(c, account, &from, limit, seen)).await?;
        Ok(self.pages.as_mut().map(|pages| pages.advance(page)))
    }

    async fn count(&mut self) -> Result<u64> {
        let account = self.account;
        self.run(move |c| count(c, account, |_| true)).await
    }
}
