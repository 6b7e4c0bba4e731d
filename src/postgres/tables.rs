//! The SQL of the tables: how to find their rows, and how to replace or delete them.

use std::sync::LazyLock;

use bytes::Bytes;
use tokio_postgres::Row as Answered;

use super::decode::{blob, get};
use super::statement::{self, Cell, Column, Kind, Statement, change};
use crate::error::{Error, Result};
use crate::method::Record;
use crate::rows::SealedRow;
use crate::rows::table::{self, Carrier, ColumnKind, KeyPart, OWN_ADDRESSES, PREFIX_BYTES, RawRow, Table};

/// The statements of a table.
pub(super) struct SqlTable {
    pub(super) table: &'static Table,
    /// How many columns of the key identify a row, which are those of the primary key.
    pub(super) keys: usize,
    /// Select the first page of an account, and the page behind a key. A row is its carrier, its key and its numbers.
    pub(super) first: Statement,
    pub(super) next: Statement,
    /// The same with keys alone, for rows that cannot be read.
    pub(super) first_keys: Statement,
    pub(super) next_keys: Statement,
    /// Selects the row with a key, and the row at a place in the order of the keys from 0.
    pub(super) one: Statement,
    pub(super) at: Statement,
    pub(super) count: Statement,
    /// Counts the rows of all accounts and their bytes.
    pub(super) size: &'static str,
    /// Select the first bytes of sealed values, and whether the row holds nothing sealed.
    pub(super) first_prefixes: Statement,
    pub(super) next_prefixes: Statement,
    /// Replaces sealed values that have not changed since they were read.
    pub(super) replace: Option<Statement>,
    /// Deletes a row. If carriers are given, only if it has them.
    pub(super) delete: Statement,
    /// Deletes the rows of the account.
    pub(super) delete_all: Statement,
}

/// The statements of all tables, in the order of [`table::TABLES`].
pub(super) static TABLES: LazyLock<Vec<SqlTable>> = LazyLock::new(|| table::TABLES.iter().map(SqlTable::new).collect());

/// Deletes all rows of the account, in one statement.
pub(super) static DELETE_ACCOUNT: LazyLock<Statement> = LazyLock::new(|| {
    let deletions = table::TABLES.iter().map(|table| {
        format!("DELETE FROM @.{} WHERE account = $1 AND EXISTS (SELECT FROM fence) RETURNING 1", table.name)
    });
    let deletions: Vec<_> = deletions.enumerate().map(|(at, sql)| format!("table_{at} AS ({sql})")).collect();
    let all = format!("SELECT 1 WHERE false), {}, none AS (SELECT 1 WHERE false", deletions.join(", "));
    Statement::single(Record::Store, &[], fenced(&all))
});

/// The name of a column in PostgreSQL.
pub(super) fn column_name(name: &'static str) -> &'static str {
    // `user` is a word of SQL.
    if name == "user" { "user_id" } else { name }
}

/// Statements live as long as the process, and so do those that are made here, once.
pub(super) fn leak<T>(made: impl Into<Box<[T]>>) -> &'static [T] {
    Box::leak(made.into())
}

pub(super) fn leak_text(made: String) -> &'static str {
    made.leak()
}

/// The parts of the statements of a table.
struct Parts {
    table: &'static Table,
    /// The columns of the primary key behind the account, and their types.
    key: Vec<&'static str>,
    types: Vec<Column>,
}

impl Parts {
    fn of(table: &'static Table) -> Self {
        let key = || table.key.iter().take(table.unique_columns());
        Self {
            table,
            key: key().map(|column| column_name(column.name)).collect(),
            types: key().map(|column| type_of(column.kind)).collect(),
        }
    }

    fn read(&self, types: &[Column], rest: &str, columns: &str) -> Statement {
        let sql = format!("SELECT {columns} FROM @.{} WHERE account = $1{rest}", self.table.name);
        Statement::read(self.table.record, leak(types), leak_text(sql))
    }

    fn order(&self) -> String {
        if self.key.is_empty() { String::new() } else { format!(" ORDER BY {}", self.key.join(", ")) }
    }

    /// The first page of an account, and the page behind a key.
    fn pages(&self, columns: &str) -> [Statement; 2] {
        let (order, keys) = (self.order(), self.key.len());
        // Without a key, nothing follows the only row.
        let behind = match self.key.join(", ") {
            key if keys > 0 => format!("({key}) > ({})", numbered(2, keys)),
            _ => "false".to_owned(),
        };
        let next = format!(" AND {behind}{order} LIMIT ${}", 2 + keys);
        let types = [&self.types[..], &[Column::Long]].concat();
        [self.read(&[Column::Long], &format!("{order} LIMIT $2"), columns), self.read(&types, &next, columns)]
    }

    /// The condition that a row has a key, whose parameters begin at `from`.
    fn is_key(&self, from: usize) -> String {
        let terms = self.key.iter().zip(from..).map(|(column, at)| format!(" AND {column} = ${at}"));
        terms.collect()
    }

    /// Deletes the row with a key. If carriers are given, only if it has them.
    fn delete(&self) -> Statement {
        let carriers = self.table.carrier.columns();
        let unchanged = carriers
            .iter()
            .zip(5 + self.key.len()..)
            .map(|(column, at)| format!(" AND (${at} IS NULL OR {column} IS NOT DISTINCT FROM ${at})"));
        let types = [&self.types[..], &vec![Column::Bytes; carriers.len()]].concat();
        self.delete_where(&types, &(self.is_key(5) + &unchanged.collect::<String>()))
    }

    fn delete_where(&self, types: &[Column], condition: &str) -> Statement {
        let name = self.table.name;
        let fence = " AND EXISTS (SELECT FROM fence) RETURNING 1";
        let sql = fenced(&format!("DELETE FROM @.{name} WHERE account = $1{condition}{fence}"));
        Statement::single(self.table.record, leak(types), sql)
    }

    /// Counts the rows of all accounts and their bytes.
    fn size(&self) -> &'static str {
        let (name, bytes) = (self.table.name, self.table.content_length());
        leak_text(format!("SELECT count(*), coalesce(sum({bytes}), 0)::bigint FROM @.{name}"))
    }
}

impl SqlTable {
    fn new(table: &'static Table) -> Self {
        let parts = Parts::of(table);
        let columns = columns(table);
        let key = table.key.iter().map(|column| column_name(column.name)).collect::<Vec<_>>().join(", ");
        let (prefix, absent) = prefix_columns(table);
        let prefixes = std::iter::once(format!("{prefix}, {absent}")).chain(parts.key.iter().map(|k| (*k).to_owned()));
        let [first, next] = parts.pages(&columns);
        let [first_keys, next_keys] = parts.pages(if key.is_empty() { "account" } else { &key });
        let [first_prefixes, next_prefixes] = parts.pages(&prefixes.collect::<Vec<_>>().join(", "));
        Self {
            table,
            keys: parts.key.len(),
            first,
            next,
            first_keys,
            next_keys,
            one: parts.read(&parts.types, &parts.is_key(2), &columns),
            at: parts.read(&[Column::Long], &format!("{} OFFSET $2 LIMIT 1", parts.order()), &columns),
            count: parts.read(&[], "", "count(*)"),
            size: parts.size(),
            first_prefixes,
            next_prefixes,
            replace: table.is_sealed.then(|| replace(table, &parts.key, &parts.types)),
            delete: parts.delete(),
            delete_all: parts.delete_where(&[], ""),
        }
    }

    /// The statements of a table.
    pub(super) fn of(table: &'static Table) -> &'static Self {
        &TABLES[table.position]
    }

    #[cfg(test)]
    pub(super) fn statements(&self) -> Vec<&Statement> {
        let Self { first, next, first_keys, next_keys, one, at, count, .. } = self;
        let Self { first_prefixes, next_prefixes, replace, delete, delete_all, .. } = self;
        let all =
            [first, next, first_keys, next_keys, one, at, count, first_prefixes, next_prefixes, delete, delete_all];
        all.into_iter().chain(replace).collect()
    }

    /// The row that [`SqlTable::first`], `next`, `one` and `at` select.
    ///
    /// # Errors
    /// Those of [`Table::stored`].
    pub(super) fn stored(&self, row: &Answered) -> Result<Option<SealedRow>> {
        let record = self.table.record;
        let carriers = self.table.carrier.columns().len();
        let carrier = (0..carriers).map(|at| blob(row, at, record)).collect::<Result<Vec<_>>>()?;
        let key = self.table.key.iter().zip(carriers..).map(|(column, at)| match column.kind {
            ColumnKind::Number => get(row, at, record).map(KeyPart::Number),
            ColumnKind::Text | ColumnKind::Bytes => blob(row, at, record).map(KeyPart::Bytes),
        });
        let key = key.collect::<Result<Vec<_>>>()?;
        let numbers = (0..self.table.numbers.len()).map(|number| get(row, carriers + key.len() + number, record));
        let numbers = numbers.collect::<Result<_>>()?;
        self.table.stored(RawRow { key, carrier, numbers })
    }

    /// The key of a row, whose first column is at `from`.
    pub(super) fn key(&self, row: &Answered, from: usize) -> Result<statement::Row> {
        let record = self.table.record;
        let parts = self.table.key.iter().take(self.keys).zip(from..).map(|(column, at)| match column.kind {
            ColumnKind::Number => get::<i64>(row, at, record).map(Cell::from),
            ColumnKind::Text | ColumnKind::Bytes => blob(row, at, record).map(Cell::from),
        });
        parts.collect()
    }

    /// The place of the key in a row of [`SqlTable::first`].
    pub(super) fn key_at(&self) -> usize {
        self.table.carrier.columns().len()
    }

    /// The key as a parameter, from the columns of a [`SealedRow`].
    ///
    /// # Errors
    /// [`Error::Malformed`] if a number has another size.
    pub(super) fn key_of(&self, columns: Vec<Vec<u8>>) -> Result<statement::Row> {
        let record = self.table.record;
        let parts = self.table.key.iter().take(self.keys).zip(columns).map(|(column, bytes)| match column.kind {
            ColumnKind::Number => {
                let number: [u8; 4] = bytes.try_into().map_err(|_| Error::Malformed { record })?;
                Ok(Cell::from(u32::from_le_bytes(number)))
            }
            ColumnKind::Text | ColumnKind::Bytes => Ok(Cell::from(bytes)),
        });
        parts.collect()
    }

    /// The carriers of a value as parameters.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub(super) fn carriers(&self, value: Vec<u8>) -> Result<impl Iterator<Item = Cell> + use<>> {
        Ok(self.table.carry(value)?.into_iter().map(|bytes| Cell::from(Bytes::from(bytes))))
    }

    /// As many empty values as the table has carriers.
    pub(super) fn no_carriers(&self) -> impl Iterator<Item = Cell> + use<> {
        std::iter::repeat_n(Cell::Null, self.table.carrier.columns().len())
    }
}

/// A change that may rightly affect no row, under the fence.
fn fenced(change: &str) -> &'static str {
    leak_text(change!("?").replacen('?', change, 1))
}

fn type_of(kind: ColumnKind) -> Column {
    match kind {
        ColumnKind::Number => Column::Long,
        ColumnKind::Text | ColumnKind::Bytes => Column::Bytes,
    }
}

/// Parameters, beginning with the number `from`: `$5, $6`.
pub(super) fn numbered(from: usize, count: usize) -> String {
    (from..from + count).map(|at| format!("${at}")).collect::<Vec<_>>().join(", ")
}

/// The columns that are read of a row.
fn columns(table: &Table) -> String {
    let carriers = table.carrier.columns().into_iter().map(|column| match table.record {
        // These may be NULL.
        Record::DeviceList | Record::Device => format!("coalesce({column}, '')"),
        _ => column.to_owned(),
    });
    let key = table.key.iter().map(|column| column_name(column.name).to_owned());
    let numbers = table.numbers.iter().map(|column| match *column {
        "uploaded" => "uploaded::int::bigint".to_owned(),
        column => column.to_owned(),
    });
    carriers.chain(key).chain(numbers).collect::<Vec<_>>().join(", ")
}

/// The first bytes of the sealed value, and whether the row holds nothing sealed: the copies of a header, a device before
/// its first sealing, and the placeholder of a token.
fn prefix_columns(table: &Table) -> (String, String) {
    let Some(column) = table.carrier.columns().first().copied() else {
        return ("''::bytea".to_owned(), "false".to_owned());
    };
    let prefix = match table.carrier {
        // 20 characters of base64 are 15 bytes, a few more than needed.
        Carrier::Text(_) => format!("substr(coalesce({column}, ''), 1, 20)"),
        Carrier::Map(_) => column.to_owned(),
        _ => format!("substr(coalesce({column}, ''), 1, {PREFIX_BYTES})"),
    };
    let absent = match table.record {
        Record::SenderKey => {
            let addresses = OWN_ADDRESSES.map(|address| format!("convert_to('{address}', 'UTF8')"));
            format!("address IN ({})", addresses.join(", "))
        }
        Record::Device | Record::TcToken => format!("coalesce(length({column}), 0) = 0"),
        _ => "false".to_owned(),
    };
    (prefix, absent)
}

/// Takes arrays of the keys, the old carriers and the new ones.
fn replace(table: &'static Table, key: &[&str], types: &[Column]) -> Statement {
    let carriers = table.carrier.columns();
    let named = |what: &str| (1..=carriers.len()).map(|at| format!("{what}{at}")).collect::<Vec<_>>();
    let (old, new) = (named("old_"), named("new_"));
    let names: Vec<&str> = key.iter().copied().chain(old.iter().chain(&new).map(String::as_str)).collect();
    let set = carriers.iter().zip(&new).map(|(column, new)| format!("{column} = r.{new}"));
    let is_key = key.iter().map(|column| format!(" AND t.{column} = r.{column}"));
    let is_old = carriers.iter().zip(&old).map(|(column, old)| format!(" AND t.{column} = r.{old}"));
    let change = format!(
        "UPDATE @.{} t SET {} FROM unnest({}) AS r({}) WHERE t.account = $1{}{} AND EXISTS (SELECT FROM fence) RETURNING 1",
        table.name,
        set.collect::<Vec<_>>().join(", "),
        numbered(5, names.len()),
        names.join(", "),
        is_key.collect::<String>(),
        is_old.collect::<String>(),
    );
    let columns = [types, &vec![Column::Bytes; 2 * carriers.len()]].concat();
    let never = Kind::Change(statement::Fold::Never);
    Statement::change(table.record, leak(columns), fenced(&change)).kind(never)
}
