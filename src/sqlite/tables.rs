//! The SQL of the tables: how to find their rows, and how to replace a sealed value in them.

use std::sync::LazyLock;

use rusqlite::types::Value;
use rusqlite::{Connection, Row};

use super::connection::Statements;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::rows::SealedRow;
use crate::rows::store::Replacement;
use crate::rows::table::{self, Carrier, ColumnKind, KeyPart, PREFIX_BYTES, RawRow, Table, TableSize};

/// The statements of a table.
pub(super) struct SqlTable {
    pub(super) table: &'static Table,
    /// The columns that are read of a row: those of its carrier, those of its key, and its numbers.
    pub(super) columns: String,
    /// The columns that order the rows of an account.
    pub(super) order: String,
    pub(super) has_row_ids: bool,
    /// Select the first page of an account, and the page that begins at or behind a position. A row
    /// is its id, or NULL if the table has none, followed by the columns.
    pub(super) first: String,
    pub(super) next: String,
    /// Counts the rows of all accounts and their bytes.
    size: String,
    /// Deletes the rows of an account.
    pub(super) delete_all: String,
    /// Count the rows of an account: in the way its rows are found, in the table from end to end,
    /// and in the index of its key.
    pub(super) count: String,
    pub(super) scan: String,
    pub(super) index: Option<String>,
    /// Replaces a sealed value, unless it has changed since it was read. The parameters are those
    /// of [`SqlTable::replacement`].
    pub(super) replace: Option<String>,
    /// The part of the carrier that holds the first bytes of the sealed value.
    pub(super) prefix: String,
}

/// The statements of all tables, in the order of [`table::TABLES`].
pub(super) static TABLES: LazyLock<Vec<SqlTable>> = LazyLock::new(|| table::TABLES.iter().map(SqlTable::new).collect());

/// Tables of small rows, which lie in the index of their key.
const WITHOUT_ROW_IDS: [&str; 2] = ["mutation_macs", "sender_key_devices"];

impl SqlTable {
    fn new(table: &'static Table) -> Self {
        let name = table.name;
        let has_row_ids = !WITHOUT_ROW_IDS.contains(&name);
        let columns = columns(table);
        let keys = table.key.iter().map(|column| column.name).collect::<Vec<_>>().join(", ");
        let order = if has_row_ids { "rowid".to_owned() } else { keys };
        // Without the hint, SQLite takes the index of the account and sorts all of its rows for
        // each page.
        let page = |id: &str, hint: &str, behind: &str| {
            format!("SELECT {id}, {columns} FROM {name}{hint} WHERE account = ?1{behind} ORDER BY {order} LIMIT ?2")
        };
        let (first, next, scan) = if has_row_ids {
            let first = page("rowid", " NOT INDEXED", " AND rowid >= -9223372036854775808");
            (first, page("rowid", " NOT INDEXED", " AND rowid >= ?3"), " NOT INDEXED".to_owned())
        } else {
            let next = page("NULL", "", &format!(" AND ({order}) > (?3, ?4)"));
            (page("NULL", "", ""), next, format!(" INDEXED BY sqlite_autoindex_{name}_1"))
        };
        let index = match name {
            // A table in key order is its own index.
            "devices" => None,
            "mutation_macs" => Some("sqlite_autoindex_mutation_macs_1".to_owned()),
            "sender_key_devices" => Some("sender_key_devices_device".to_owned()),
            name => Some(format!("{name}_key")),
        };
        Self {
            table,
            has_row_ids,
            size: format!("SELECT count(*), coalesce(sum({}), 0) FROM {name}", table.content_length()),
            delete_all: format!("DELETE FROM {name} WHERE account = ?1"),
            count: format!("SELECT count(*) FROM {name} WHERE account = ?1"),
            scan: format!("/* every row */ SELECT count(*) FROM {name}{scan} WHERE +account = ?1"),
            index: index.map(|index| format!("SELECT count(*) FROM {name} INDEXED BY {index} WHERE account = ?1")),
            replace: table.is_sealed.then(|| replace(table, has_row_ids)),
            prefix: match table.carrier {
                Carrier::Bytes(column) | Carrier::Split(column, _) => format!("substr({column}, 1, {PREFIX_BYTES})"),
                // 20 characters of base64 are 15 bytes, a few more than needed.
                Carrier::Text(column) => format!("substr({column}, 1, 20)"),
                Carrier::Map(column) => column.to_owned(),
                Carrier::None => "x''".to_owned(),
            },
            columns,
            order,
            first,
            next,
        }
    }

    /// The statements of a table.
    pub(super) fn of(table: &'static Table) -> &'static Self {
        &TABLES[table.position]
    }

    pub(super) fn size(&'static self, connection: &Connection) -> Result<TableSize> {
        let counted = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        let (rows, bytes) = connection.first(&self.size, (), counted)?.unwrap_or_default();
        Ok(TableSize { name: self.table.name, rows: rows.unsigned_abs(), bytes: bytes.unsigned_abs() })
    }

    /// Reads the row that follows the id.
    pub(super) fn read(&self, row: &Row<'_>) -> Result<Option<SealedRow>> {
        let carrier = self.table.carrier.columns().len().max(1);
        let keys = self.table.key.len();
        let key = self.table.key.iter().zip(1 + carrier..).map(|(column, at)| match column.kind {
            ColumnKind::Number => Ok(KeyPart::Number(row.get(at)?)),
            ColumnKind::Text | ColumnKind::Bytes => Ok(KeyPart::Bytes(bytes(row, at)?)),
        });
        let key = key.collect::<Result<_>>()?;
        let numbers = (0..self.table.numbers.len()).map(|number| row.get(1 + carrier + keys + number));
        let numbers = numbers.collect::<rusqlite::Result<_>>()?;
        let carrier = (1..=carrier).map(|at| bytes(row, at)).collect::<Result<_>>()?;
        self.table.stored(RawRow { key, carrier, numbers })
    }

    /// The parameters of [`SqlTable::replace`]: the new columns of the carrier, the old ones, and
    /// those that name the row.
    pub(super) fn replacement(&self, account: i32, replacement: Replacement) -> Result<Vec<Value>> {
        let Replacement { id, columns, old, new } = replacement;
        let (record, is_text) = (self.table.record, matches!(self.table.carrier, Carrier::Text(_)));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).map(Value::Text).map_err(|_| Error::Tampered { record });
        let carried = self.table.carry(new)?.into_iter().chain(self.table.carry(old)?);
        let mut parameters = carried
            .map(|bytes| if is_text { text(bytes) } else { Ok(Value::Blob(bytes)) })
            .collect::<Result<Vec<_>>>()?;
        if self.has_row_ids {
            parameters.push(Value::Integer(id));
            return Ok(parameters);
        }
        parameters.push(Value::Integer(account.into()));
        for (column, bytes) in self.table.key.iter().zip(columns) {
            parameters.push(if column.kind == ColumnKind::Text { text(bytes)? } else { Value::Blob(bytes) });
        }
        Ok(parameters)
    }
}

/// The columns that are read of a row.
fn columns(table: &Table) -> String {
    let mut columns = table.carrier.columns().into_iter().map(|column| match (table.record, column) {
        // These two may be NULL.
        (Record::DeviceList, column) => format!("coalesce({column}, '')"),
        (Record::Device, column) => format!("coalesce({column}, x'')"),
        (_, column) => column.to_owned(),
    });
    let carrier = columns.by_ref().collect::<Vec<_>>();
    let carrier = if carrier.is_empty() { vec!["x''".to_owned()] } else { carrier };
    let key = table.key.iter().map(|column| column.name.to_owned());
    let numbers = table.numbers.iter().map(|column| (*column).to_owned());
    carrier.into_iter().chain(key).chain(numbers).collect::<Vec<_>>().join(", ")
}

fn replace(table: &Table, has_row_ids: bool) -> String {
    let columns = table.carrier.columns();
    let numbered = |from: usize, with: &str| {
        let terms = columns.iter().zip(from..).map(|(column, at)| format!("{column} = ?{at}"));
        terms.collect::<Vec<_>>().join(with)
    };
    let (new, old) = (numbered(1, ", "), numbered(1 + columns.len(), " AND "));
    let at = 1 + 2 * columns.len();
    let row = if has_row_ids {
        format!("rowid = ?{at}")
    } else {
        let keys = table.key.iter().zip(at + 1..).map(|(column, at)| format!(" AND {} = ?{at}", column.name));
        format!("account = ?{at}{}", keys.collect::<String>())
    };
    format!("UPDATE {} SET {new} WHERE {row} AND {old}", table.name)
}

/// The bytes of a text or a blob.
fn bytes(row: &Row<'_>, column: usize) -> Result<Vec<u8>> {
    let value = row.get_ref(column)?;
    value.as_bytes().map(<[u8]>::to_vec).map_err(|_| Error::Malformed { record: Record::Store })
}
