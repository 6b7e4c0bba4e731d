//! Reading the rows of every table as they lie there, for checking, exporting and sealing anew.

use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Params, Row, ffi};

use super::SqliteStore;
use super::connection::{Statements, Stored, permitted};
use super::database::Database;
use super::open_files::OpenFile;
use super::patience::patiently;
use super::tables::{PREFIX_BYTES, Replace, TABLES, Table, blob_prefix};
use crate::background;
use crate::encrypt::HeaderCopy;
use crate::encrypt::sealed_row::StoredRow;
use crate::error::{Error, Result};
use crate::method::Record;

/// How many rows are read at a time at most, and how many bytes, roughly.
const PAGE_ROWS: i64 = 500;

const PAGE_BYTES: usize = 2 << 20;

/// What a row of a query is: its id, or its place in the order of the keys from 1, and the stored row or what is wrong with
/// it.
pub(crate) type Found = (i64, Result<Option<StoredRow>>);

/// The rows of an account in a table, a page at a time. Rows that are there from the first page to the last are all seen,
/// whatever else is stored and deleted meanwhile. A row that cannot be read is damaged, and the rows behind it are seen.
pub(crate) struct Pages {
    table: &'static Table,
    /// From where the next page begins; `None` after the last one.
    next: Option<Position>,
    limit: i64,
    seen: i64,
    has_damage: bool,
}

/// Where a page begins in its table.
#[derive(Clone)]
enum Position {
    First,
    /// At the first row with this id or a higher one.
    RowId(i64),
    /// Behind the row with these key columns, whatever is in them.
    Behind([Stored; 2]),
}

/// A page that was read.
struct Page {
    rows: Vec<Found>,
    next: Option<Position>,
}

impl Pages {
    pub(crate) fn of(table: &'static Table) -> Self {
        Self { table, next: Some(Position::First), limit: PAGE_ROWS / 10, seen: 0, has_damage: false }
    }

    /// How many rows were seen so far, damaged ones included.
    #[cfg(test)]
    pub(super) fn seen(&self) -> u64 {
        self.seen.unsigned_abs()
    }

    /// The next page; `None` after the last one.
    #[cfg(test)]
    pub(super) async fn next(&mut self, store: &SqliteStore) -> Result<Option<Vec<Found>>> {
        self.next_then(store, |rows| rows).await
    }

    /// What `then` makes of the next page, on the thread that reads it; `None` after the last one. Each page is from a moment
    /// of its own.
    ///
    /// # Errors
    /// [`Error::Sqlite`], as damaged if the table cannot be read to its end.
    pub(super) async fn next_then<T: Send + 'static>(
        &mut self,
        store: &SqliteStore,
        mut then: impl FnMut(Vec<Found>) -> T + Send + 'static,
    ) -> Result<Option<T>> {
        let Some(from) = self.next.take() else { return Ok(None) };
        let (account, table, limit, seen) = (store.account, self.table, self.limit, self.seen);
        let read = move |c: &Connection| {
            let Page { rows, next } = table.page(c, account, &from, limit, seen)?;
            Ok((Measure::of(&rows), next, then(rows)))
        };
        let (measure, next, made) = store.database.read_long(read).await?;
        self.advance(&measure, next);
        Ok(Some(made))
    }

    fn advance(&mut self, measure: &Measure, next: Option<Position>) {
        self.seen += measure.rows as i64;
        self.has_damage |= measure.has_damage;
        self.next = next;
        let each = (measure.bytes / measure.rows.max(1)).max(1);
        self.limit = ((PAGE_BYTES / each) as i64).clamp(1, PAGE_ROWS);
    }
}

struct Measure {
    rows: usize,
    bytes: usize,
    has_damage: bool,
}

impl Measure {
    fn of(rows: &[Found]) -> Self {
        let bytes = rows.iter().filter_map(|(_, row)| Some(row.as_ref().ok()?.as_ref()?.value.len())).sum();
        Self { rows: rows.len(), bytes, has_damage: rows.iter().any(|(_, row)| row.is_err()) }
    }
}

impl Table {
    /// Reads a page. If it cannot be read as a whole, row by row.
    fn page(&self, c: &Connection, account: i32, from: &Position, limit: i64, seen: i64) -> Result<Page> {
        let (mut rows, mut next) = (vec![], Some(from.clone()));
        let found = |row: &Row<'_>| {
            let position = self.position(row)?;
            if !next.as_ref().is_some_and(|next| position.follows(next)) {
                return Err(out_of_order());
            }
            let id = if let Position::RowId(id) = position { id } else { seen + 1 + rows.len() as i64 };
            rows.push((id, self.stored(row)));
            next = position.after();
            Ok(())
        };
        let read = match from {
            Position::First => c.all(self.first, (account, limit), found),
            Position::RowId(from) => c.all(self.next, (account, limit, from), found),
            Position::Behind([one, two]) if one.is_bytes() && two.is_bytes() => {
                c.all(self.next, (account, limit, one, two), found)
            }
            Position::Behind([one, two]) => all(c, &self.behind(self.columns), (account, limit, one, two), found),
        };
        match read {
            Ok(_) => {
                let next = next.filter(|_| rows.len() as i64 == limit);
                Ok(Page { rows, next })
            }
            Err(error) if error.is_damaged_database() && self.has_row_ids => self.row_by_row(c, account, from, limit),
            Err(error) if error.is_damaged_database() => self.key_by_key(c, account, from, limit, seen),
            Err(error) => Err(error),
        }
    }

    /// Reads a page that has rows on it that cannot be read, and fails only if not even the first of them can be named.
    fn row_by_row(&self, c: &Connection, account: i32, from: &Position, limit: i64) -> Result<Page> {
        let first = if let Position::RowId(id) = from { *id } else { i64::MIN };
        let mut ids: Vec<i64> = vec![];
        let read = all(c, &self.ids(), (first, limit), |row| {
            let id = row.get(0)?;
            if id < first || ids.last().is_some_and(|last| id <= *last) {
                return Err(out_of_order());
            }
            ids.push(id);
            Ok(())
        });
        match read {
            Err(error) if ids.is_empty() || !error.is_damaged_database() => return Err(error),
            _ => {}
        }
        let is_last = read.is_ok() && (ids.len() as i64) < limit;
        let next = ids.last().and_then(|last| Position::RowId(*last).after()).filter(|_| !is_last);
        let one = self.one();
        let mut rows = vec![];
        for id in ids {
            match all(c, &one, (id, account), |row| Ok(self.stored(row))) {
                Ok(found) => rows.extend(found.into_iter().map(|row| (id, row))),
                // Of which account it is may not be known: it is one that is damaged, for all of them.
                Err(error) if error.is_damaged_database() => rows.push((id, Err(self.damaged()))),
                Err(error) => return Err(error),
            }
        }
        Ok(Page { rows, next })
    }

    /// The same for a table without row ids.
    fn key_by_key(&self, c: &Connection, account: i32, from: &Position, limit: i64, seen: i64) -> Result<Page> {
        let only_keys = format!("x'', {}", self.key);
        let (mut rows, mut next) = (vec![], Some(from.clone()));
        while let Some(from) = next.take() {
            if rows.len() as i64 == limit {
                next = Some(from);
                break;
            }
            let one = |columns: &str| -> Result<Option<(Position, Result<Option<StoredRow>>)>> {
                let found = |row: &Row<'_>| {
                    let position = self.position(row)?;
                    if position.follows(&from) { Ok((position, self.stored(row))) } else { Err(out_of_order()) }
                };
                let found = match &from {
                    Position::Behind([one, two]) => all(c, &self.behind(columns), (account, 1, one, two), found),
                    _ => all(c, &self.begin(columns), (account, 1), found),
                };
                Ok(found?.pop())
            };
            let read = match one(self.columns) {
                Err(error) if error.is_damaged_database() => {
                    one(&only_keys).map(|found| found.map(|(position, _)| (position, Err(self.damaged()))))
                }
                read => read,
            };
            match read {
                Ok(Some((position, row))) => {
                    rows.push((seen + 1 + rows.len() as i64, row));
                    next = position.after();
                }
                Ok(None) => {}
                Err(error) if error.is_damaged_database() && !rows.is_empty() => {
                    // The next page begins with it, and fails.
                    next = Some(from);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Page { rows, next })
    }

    /// Where a row is. Its id comes first, or its key columns behind the value.
    fn position(&self, row: &Row<'_>) -> rusqlite::Result<Position> {
        if self.has_row_ids {
            return row.get(0).map(Position::RowId);
        }
        Ok(Position::Behind([row.get_ref(2)?.into(), row.get_ref(3)?.into()]))
    }

    /// The row as it is stored. A value of another type or size than its column is given is damage of this row.
    fn stored(&self, row: &Row<'_>) -> Result<Option<StoredRow>> {
        (self.read)(row).map_err(|error| match error {
            Error::Store(_) | Error::Sqlite { .. } | Error::Malformed { .. } => self.damaged(),
            error => error,
        })
    }

    fn damaged(&self) -> Error {
        Error::Malformed { record: self.record }
    }

    /// The row with this id, if the account has it.
    pub(super) fn row_by_id(&self, c: &Connection, id: i64, account: i32) -> Result<Option<Result<Option<StoredRow>>>> {
        Ok(all(c, &self.one(), (id, account), |row| Ok(self.stored(row)))?.pop())
    }

    fn one(&self) -> String {
        format!("SELECT rowid, {} FROM {} WHERE rowid = ?1 AND +account = ?2", self.columns, self.name)
    }

    /// Row ids of all accounts, which are read without the rows.
    fn ids(&self) -> String {
        format!("SELECT rowid FROM {} NOT INDEXED WHERE rowid >= ?1 ORDER BY rowid LIMIT ?2", self.name)
    }

    /// The first rows of an account in a table without row ids.
    fn begin(&self, columns: &str) -> String {
        format!("SELECT NULL, {columns} FROM {} WHERE account = ?1 ORDER BY {} LIMIT ?2", self.name, self.key)
    }

    /// The rows behind two key columns of any type, in the order in which they lie. Without the types of the columns, to which
    /// SQLite would convert what it compares with them.
    fn behind(&self, columns: &str) -> String {
        let (one, two) = self.key.split_once(", ").unwrap_or((self.key, self.key));
        format!(
            "SELECT NULL, {columns} FROM {} WHERE account = ?1 AND (+{one} > ?3 OR (?3 IS NULL AND {one} IS NOT NULL)
            OR (+{one} IS ?3 AND (+{two} > ?4 OR (?4 IS NULL AND {two} IS NOT NULL)))) ORDER BY {} LIMIT ?2",
            self.name, self.key
        )
    }

    /// How many rows of account 1 a walk sees, with pages of a size.
    #[cfg(test)]
    pub(super) fn walk_all(&self, c: &Connection, limit: i64) -> Result<u64> {
        let (mut seen, mut next) = (0, Some(Position::First));
        while let Some(from) = next.take() {
            let page = self.page(c, 1, &from, limit, seen)?;
            seen += page.rows.len() as i64;
            next = page.next;
        }
        Ok(seen.unsigned_abs())
    }

    /// Compares, over all accounts, how many rows the table has with the entries of the index of its key.
    ///
    /// # Errors
    /// [`Error::RowsMissed`].
    pub(super) fn check_whole(&self, c: &Connection) -> Result<()> {
        let count = |sql: &str| -> Result<u64> {
            let sql = sql.replace("account = ?1", "account >= -9223372036854775808");
            let counted = all(c, &sql, (), |row| row.get::<_, i64>(0))?;
            Ok(counted.into_iter().next().unwrap_or(0).unsigned_abs())
        };
        let Some(index) = self.index else { return Ok(()) };
        let (seen, counted) = (count(self.scan)?, count(index)?);
        if seen != counted {
            return Err(Error::RowsMissed { table: self.name, seen, counted });
        }
        Ok(())
    }

    /// Compares how many rows of an account were seen with how many there are: in the table from end to end, and in the index
    /// of its key.
    ///
    /// # Errors
    /// [`Error::RowsMissed`].
    pub(super) fn check_count(&self, c: &Connection, account: i32, seen: u64) -> Result<()> {
        for sql in [Some(self.scan), self.index].into_iter().flatten() {
            let counted = c.first(sql, (account,), |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs();
            if counted != seen {
                return Err(Error::RowsMissed { table: self.name, seen, counted });
            }
        }
        Ok(())
    }
}

impl Position {
    /// From where the page behind this row begins; `None` if there can be none.
    fn after(self) -> Option<Self> {
        match self {
            Position::RowId(id) => id.checked_add(1).map(Position::RowId),
            position => Some(position),
        }
    }

    /// Whether a row may come after another one, or first on a page that begins here. Where rows lie in another order than
    /// their keys, a walk could go round in circles.
    fn follows(&self, before: &Self) -> bool {
        match (self, before) {
            (Position::RowId(id), Position::RowId(before)) => id >= before,
            (Position::Behind([one, two]), Position::Behind([before_one, before_two])) => {
                one.order(before_one).then_with(|| two.order(before_two)).is_gt()
            }
            _ => true,
        }
    }
}

/// What SQLite says of a damaged page.
fn out_of_order() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), None)
}

/// Every row of a query that is needed too seldom to be kept prepared.
fn all<T>(
    c: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = permitted(|| c.prepare(sql))?;
    let rows = statement.query_map(params, map)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The database as it is at one moment, on a connection of its own, for reading every row of an account.
pub(crate) struct Snapshot {
    /// `None` while a thread reads with it. The connection is closed before the database, whose last one empties the log.
    connection: Option<(Connection, Arc<Database>, Option<Arc<OpenFile>>)>,
    account: i32,
}

impl Snapshot {
    /// # Errors
    /// [`Error::SchemaAltered`], [`Error::FileMoved`] and [`Error::Sqlite`].
    pub(crate) async fn open(store: &SqliteStore) -> Result<Self> {
        let (database, account) = (store.database.clone(), store.account);
        let mut patience = database.patience_of_readers();
        let open = move || {
            let pin = database.pin();
            Ok::<_, Error>((patiently(&mut patience, || database.open_snapshot())?, database, pin))
        };
        Ok(Self { connection: Some(background::unblock(open).await?), account })
    }

    /// The next page; `None` after the last one, when as many rows were seen as there are.
    ///
    /// # Errors
    /// [`Error::RowsMissed`] in the place of the last page, and [`Error::Sqlite`].
    pub(crate) async fn next(&mut self, pages: &mut Pages) -> Result<Option<Vec<Found>>> {
        self.next_then(pages, |rows| rows).await
    }

    /// What `then` makes of the next page, on the thread that reads it.
    ///
    /// # Errors
    /// As [`Snapshot::next`].
    pub(super) async fn next_then<T: Send + 'static>(
        &mut self,
        pages: &mut Pages,
        then: impl FnOnce(Vec<Found>) -> T + Send + 'static,
    ) -> Result<Option<T>> {
        let (account, table, limit, seen) = (self.account, pages.table, pages.limit, pages.seen);
        let Some(from) = pages.next.take() else {
            let has_damage = pages.has_damage;
            let check = move |c: &Connection| match table.check_count(c, account, seen.unsigned_abs()) {
                // The rows that cannot be counted are among those that were seen and are damaged.
                Err(error) if has_damage && error.is_damaged_database() => Ok(()),
                checked => checked,
            };
            return self.run(check).await.map(|()| None);
        };
        let read = move |c: &Connection| {
            let page = table.page(c, account, &from, limit, seen)?;
            Ok((Measure::of(&page.rows), page.next, then(page.rows)))
        };
        let (measure, next, made) = self.run(read).await?;
        pages.advance(&measure, next);
        Ok(Some(made))
    }

    /// How many rows the account has, all tables together.
    pub(crate) async fn count_rows(&mut self) -> Result<u64> {
        let account = self.account;
        self.run(move |c| count(c, account, |_| true)).await
    }

    /// Runs a query on a blocking thread.
    async fn run<T: Send + 'static>(
        &mut self,
        query: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = self.connection.take().ok_or(Error::Stopped)?;
        let run = move || {
            let result = query(&connection.0);
            (connection, result)
        };
        let (connection, result) = background::unblock(run).await;
        self.connection = Some(connection);
        result
    }
}

/// What a row says in the clear of the data key that its value is sealed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowPrefix {
    pub(crate) table: &'static str,
    /// The row id, or its place in the order of the keys from 1.
    pub(crate) row: i64,
    /// The first bytes of the sealed value; `None` if there are not as many, or it cannot be read.
    pub(crate) prefix: Option<[u8; PREFIX_BYTES]>,
}

/// How many rows of an account a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CountedRows {
    pub(crate) table: &'static str,
    pub(crate) rows: u64,
}

impl SqliteStore {
    /// Looks at the first bytes of every value of this account that a data key seals, at one moment, and gives how many rows
    /// each table has that has such values. Rows that hold none, as the copies of a vault header, are counted only.
    ///
    /// # Errors
    /// [`Error::RowsMissed`] if a table has rows that are not found in its order, or not in the index of its key, and
    /// [`Error::Sqlite`].
    pub(crate) async fn sealed_prefixes(
        &self,
        mut each: impl FnMut(RowPrefix) + Send + 'static,
    ) -> Result<Vec<CountedRows>> {
        let mut snapshot = Snapshot::open(self).await?;
        let account = self.account;
        let scan = move |c: &Connection| {
            let sealed = TABLES.iter().filter_map(|table| Some((table, table.replace.as_ref()?)));
            sealed.map(|(table, replace)| table.prefixes(c, account, replace, &mut each)).collect()
        };
        snapshot.run(scan).await
    }
}

impl Table {
    fn prefixes(
        &self,
        c: &Connection,
        account: i32,
        replace: &Replace,
        each: &mut impl FnMut(RowPrefix),
    ) -> Result<CountedRows> {
        let (column, decode) = replace.prefix;
        // What is not sealed: the copies of a header, a device before its first sealing, the place of a token to come.
        let absent = match self.record {
            Record::SenderKey => {
                let [a, b] = HeaderCopy::BOTH.map(HeaderCopy::address);
                format!("address IN ('{a}', '{b}')")
            }
            Record::Device | Record::TcToken => format!("coalesce(length({column}), 0) = 0"),
            _ => "0".to_owned(),
        };
        let (hint, order) = if self.has_row_ids { ("NOT INDEXED", "rowid") } else { ("", self.key) };
        let sql = format!(
            "SELECT {column}, {absent}{} FROM {} {hint} WHERE account = ?1 ORDER BY {order}",
            if self.has_row_ids { ", rowid" } else { "" },
            self.name
        );
        let (mut rows, mut has_damage) = (0, false);
        let read = all(c, &sql, (account,), |row| {
            rows += 1;
            if row.get_ref(1)? != ValueRef::Integer(1) {
                let row_id = if self.has_row_ids { row.get(2)? } else { rows };
                let prefix = row.get_ref(0)?.as_bytes().ok().and_then(decode);
                each(RowPrefix { table: self.name, row: row_id, prefix });
            }
            Ok(())
        });
        match read {
            Ok(_) => {}
            Err(error) if error.is_damaged_database() => {
                // The rest of it row by row, in the same order.
                let (told, mut next) = (rows, Some(Position::First));
                rows = 0;
                while let Some(from) = next.take() {
                    let page = self.page(c, account, &from, PAGE_ROWS, rows)?;
                    next = page.next;
                    for (row_id, found) in page.rows {
                        rows += 1;
                        has_damage |= found.is_err();
                        let prefix = match found {
                            _ if rows <= told => continue,
                            Ok(None) => continue,
                            Ok(Some(row)) if row.record == Record::TcToken && row.value.is_empty() => continue,
                            Ok(Some(row)) => blob_prefix(&row.value),
                            Err(_) => None,
                        };
                        each(RowPrefix { table: self.name, row: row_id, prefix });
                    }
                }
            }
            Err(error) => return Err(error),
        }
        match self.check_count(c, account, rows.unsigned_abs()) {
            Err(error) if has_damage && error.is_damaged_database() => {}
            checked => checked?,
        }
        Ok(CountedRows { table: self.name, rows: rows.unsigned_abs() })
    }
}

impl SqliteStore {
    /// How many rows this account has in some tables.
    pub(super) async fn count_rows(&self, which: fn(&Table) -> bool) -> Result<u64> {
        let account = self.account;
        self.database.read_long(move |c| count(c, account, which)).await
    }
}

fn count(c: &Connection, account: i32, which: fn(&Table) -> bool) -> Result<u64> {
    let mut total = 0;
    for table in TABLES.iter().filter(|table| which(table)) {
        total += c.first(table.count, (account,), |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs();
    }
    Ok(total)
}
