//! Reads the rows of a table a page at a time, also where the database is damaged.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Params, Row, ffi};

use super::connection::{Statements, Stored, permitted};
use super::tables::{SqlTable, TABLES};
use crate::error::{Error, Result};
use crate::method::Record;
use crate::rows::SealedRow;
use crate::rows::store::{CountedRows, Found, RowPrefix};
use crate::rows::table::{OWN_ADDRESSES, Table};

/// The largest number of rows that one page holds.
pub(super) const PAGE_ROWS: i64 = 500;

/// Where a page begins in its table.
#[derive(Clone)]
pub(super) enum Position {
    First,
    /// At the first row with this id or a higher one.
    RowId(i64),
    /// Behind the row with these key columns, of any type.
    Behind([Stored; 2]),
}

/// A page of rows.
pub(super) struct Page {
    pub(super) rows: Vec<Found>,
    pub(super) next: Option<Position>,
}

impl SqlTable {
    /// Reads a page. Reads it row by row if it cannot be read as a whole.
    pub(super) fn page(
        &'static self,
        c: &Connection,
        account: i32,
        from: &Position,
        limit: i64,
        seen: i64,
    ) -> Result<Page> {
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
            Position::First => c.all(&self.first, (account, limit), found),
            Position::RowId(from) => c.all(&self.next, (account, limit, from), found),
            Position::Behind([one, two]) if one.is_bytes() && two.is_bytes() => {
                c.all(&self.next, (account, limit, one, two), found)
            }
            Position::Behind([one, two]) => all(c, &self.behind(&self.columns), (account, limit, one, two), found),
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

    /// Reads a page on which some rows cannot be read. Fails only if not even the first row can be
    /// named.
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
                // The account of this row may be unknown, so the row counts as damaged for every
                // account.
                Err(error) if error.is_damaged_database() => rows.push((id, Err(self.damaged()))),
                Err(error) => return Err(error),
            }
        }
        Ok(Page { rows, next })
    }

    /// Does the same for a table without row ids.
    fn key_by_key(&'static self, c: &Connection, account: i32, from: &Position, limit: i64, seen: i64) -> Result<Page> {
        let only_keys = format!("x'', {}", self.order);
        let (mut rows, mut next) = (vec![], Some(from.clone()));
        while let Some(from) = next.take() {
            if rows.len() as i64 == limit {
                next = Some(from);
                break;
            }
            let one = |columns: &str| -> Result<Option<(Position, Result<Option<SealedRow>>)>> {
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
            let read = match one(&self.columns) {
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
                    // The next page begins with this row, and fails.
                    next = Some(from);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Page { rows, next })
    }

    /// The position of a row. Its id is the first column; without ids, its key columns follow the
    /// value.
    fn position(&self, row: &Row<'_>) -> rusqlite::Result<Position> {
        if self.has_row_ids {
            return row.get(0).map(Position::RowId);
        }
        Ok(Position::Behind([row.get_ref(2)?.into(), row.get_ref(3)?.into()]))
    }

    /// The row in its stored form. A value whose type or size does not fit its column is damage of
    /// this row.
    fn stored(&self, row: &Row<'_>) -> Result<Option<SealedRow>> {
        self.read(row).map_err(|error| match error {
            Error::Store(_) | Error::Sqlite { .. } | Error::Malformed { .. } => self.damaged(),
            error => error,
        })
    }

    fn damaged(&self) -> Error {
        Error::Malformed { record: self.table.record }
    }

    /// The row with this id, if it belongs to the account.
    pub(super) fn row_by_id(&self, c: &Connection, id: i64, account: i32) -> Result<Option<Result<Option<SealedRow>>>> {
        Ok(all(c, &self.one(), (id, account), |row| Ok(self.stored(row)))?.pop())
    }

    fn one(&self) -> String {
        format!("SELECT rowid, {} FROM {} WHERE rowid = ?1 AND +account = ?2", &self.columns, self.table.name)
    }

    /// Selects the row ids of all accounts without reading the rows.
    fn ids(&self) -> String {
        format!("SELECT rowid FROM {} NOT INDEXED WHERE rowid >= ?1 ORDER BY rowid LIMIT ?2", self.table.name)
    }

    /// Selects the first rows of an account in a table without row ids.
    fn begin(&self, columns: &str) -> String {
        format!("SELECT NULL, {columns} FROM {} WHERE account = ?1 ORDER BY {} LIMIT ?2", self.table.name, self.order)
    }

    /// Selects the rows behind two key columns of any type, in their stored order. The unary plus
    /// removes the column types, because SQLite would convert the compared values to them.
    fn behind(&self, columns: &str) -> String {
        let (one, two) = self.order.split_once(", ").unwrap_or((&self.order, &self.order));
        format!(
            "SELECT NULL, {columns} FROM {} WHERE account = ?1 AND (+{one} > ?3 OR (?3 IS NULL AND {one} IS NOT NULL)
            OR (+{one} IS ?3 AND (+{two} > ?4 OR (?4 IS NULL AND {two} IS NOT NULL)))) ORDER BY {} LIMIT ?2",
            self.table.name, self.order
        )
    }

    /// Counts the rows of account 1 that a walk sees with pages of `limit` rows.
    #[cfg(test)]
    pub(super) fn walk_all(&'static self, c: &Connection, limit: i64) -> Result<u64> {
        let (mut seen, mut next) = (0, Some(Position::First));
        while let Some(from) = next.take() {
            let page = self.page(c, 1, &from, limit, seen)?;
            seen += page.rows.len() as i64;
            next = page.next;
        }
        Ok(seen.unsigned_abs())
    }

    /// Compares the number of rows of the table with the entries of its key's index, over all
    /// accounts.
    ///
    /// # Errors
    /// [`Error::RowsMissed`].
    pub(super) fn check_whole(&self, c: &Connection) -> Result<()> {
        let count = |sql: &str| -> Result<u64> {
            let sql = sql.replace("account = ?1", "account >= -9223372036854775808");
            let counted = all(c, &sql, (), |row| row.get::<_, i64>(0))?;
            Ok(counted.into_iter().next().unwrap_or(0).unsigned_abs())
        };
        let Some(index) = &self.index else { return Ok(()) };
        let (seen, counted) = (count(&self.scan)?, count(index)?);
        if seen != counted {
            return Err(Error::RowsMissed { table: self.table.name, seen, counted });
        }
        Ok(())
    }

    /// Compares the number of rows of an account that were seen with the number that exists: in the
    /// table from end to end, and in the index of its key.
    ///
    /// # Errors
    /// [`Error::RowsMissed`].
    pub(super) fn check_count(&'static self, c: &Connection, account: i32, seen: u64) -> Result<()> {
        for sql in std::iter::once(&self.scan).chain(&self.index) {
            let counted = c.first(sql, (account,), |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs();
            if counted != seen {
                return Err(Error::RowsMissed { table: self.table.name, seen, counted });
            }
        }
        Ok(())
    }
}

impl Position {
    /// The position at which the page behind this row begins; `None` if no row can follow.
    fn after(self) -> Option<Self> {
        match self {
            Position::RowId(id) => id.checked_add(1).map(Position::RowId),
            position => Some(position),
        }
    }

    /// `true` if a row may come after another one, or first on a page that begins here. A walk
    /// could go round in circles if the rows lay in another order than their keys.
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

/// The error that SQLite returns for a damaged page.
fn out_of_order() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), None)
}

/// Every row of a query that is too rare to stay prepared.
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

impl SqlTable {
    /// Passes the first bytes of each value of an account to `each`.
    pub(super) fn prefixes(
        &'static self,
        c: &Connection,
        account: i32,
        each: &mut (dyn FnMut(RowPrefix) + Send),
    ) -> Result<CountedRows> {
        let (mut rows, mut has_damage) = (0, false);
        let read = all(c, &self.prefix_query(), (account,), |row| {
            rows += 1;
            if row.get_ref(1)? != ValueRef::Integer(1) {
                let row_id = if self.has_row_ids { row.get(2)? } else { rows };
                let prefix = row.get_ref(0)?.as_bytes().ok().and_then(|front| self.table.prefix(front));
                each(RowPrefix { table: self.table.name, row: row_id, prefix });
            }
            Ok(())
        });
        match read {
            Ok(_) => {}
            Err(error) if error.is_damaged_database() => {
                (rows, has_damage) = self.prefixes_by_row(c, account, rows, each)?;
            }
            Err(error) => return Err(error),
        }
        match self.check_count(c, account, rows.unsigned_abs()) {
            Err(error) if has_damage && error.is_damaged_database() => {}
            checked => checked?,
        }
        Ok(CountedRows { table: self.table.name, rows: rows.unsigned_abs() })
    }

    /// Selects the first bytes of each value, and whether the row holds nothing sealed.
    fn prefix_query(&self) -> String {
        let column = &self.prefix;
        // These rows are not sealed: the copies of a header, a device before its first sealing, and
        // the placeholder of a token.
        let absent = match self.table.record {
            Record::SenderKey => {
                format!("address IN ({})", OWN_ADDRESSES.map(|address| format!("'{address}'")).join(", "))
            }
            Record::Device | Record::TcToken => format!("coalesce(length({column}), 0) = 0"),
            _ => "0".to_owned(),
        };
        let (hint, order) = (if self.has_row_ids { "NOT INDEXED" } else { "" }, &self.order);
        let row_id = if self.has_row_ids { ", rowid" } else { "" };
        let name = self.table.name;
        format!("SELECT {column}, {absent}{row_id} FROM {name} {hint} WHERE account = ?1 ORDER BY {order}")
    }

    /// Does the same for a damaged table, row by row in the same order, after the first `told`
    /// rows. Returns how many rows there are, and whether one of them is damaged.
    fn prefixes_by_row(
        &'static self,
        c: &Connection,
        account: i32,
        told: i64,
        each: &mut (dyn FnMut(RowPrefix) + Send),
    ) -> Result<(i64, bool)> {
        let (mut rows, mut has_damage, mut next) = (0, false, Some(Position::First));
        while let Some(from) = next.take() {
            let page = self.page(c, account, &from, PAGE_ROWS, rows)?;
            next = page.next;
            for (row_id, found) in page.rows {
                rows += 1;
                has_damage |= found.is_err();
                let prefix = match found {
                    _ if rows <= told => continue,
                    Ok(None) => continue,
                    Ok(Some(row)) if self.table.is_placeholder(&row.value) => continue,
                    Ok(Some(row)) => row.value.first_chunk().copied(),
                    Err(_) => None,
                };
                each(RowPrefix { table: self.table.name, row: row_id, prefix });
            }
        }
        Ok((rows, has_damage))
    }
}

pub(super) fn count(c: &Connection, account: i32, which: fn(&Table) -> bool) -> Result<u64> {
    let mut total = 0;
    for table in TABLES.iter().filter(|table| which(table.table)) {
        total += c.first(&table.count, (account,), |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs();
    }
    Ok(total)
}
