//! Whole rows as they are, for copies from store to store.

use std::sync::LazyLock;

use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Row, params_from_iter};

use super::connection::Statements;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::rows::table::{self, StoredKind, StoredValue, Table, WholeRow};

/// The statements of a table.
pub(super) struct WholeTable {
    kinds: Vec<StoredKind>,
    order: Vec<usize>,
    unique: usize,
    has_put_order: bool,
    first: String,
    next: String,
    put: String,
    delete: String,
}

/// The statements of all tables, in the order of [`table::TABLES`].
static TABLES: LazyLock<Vec<WholeTable>> = LazyLock::new(|| table::TABLES.iter().map(WholeTable::new).collect());

impl WholeTable {
    fn new(table: &'static Table) -> Self {
        let (columns, name) = (table.stored_columns(), table.name);
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let (order, unique) = (table.copy_order(), table.unique_columns());
        let has_put_order = table.record == Record::LidMapping;
        let put_order = if has_put_order { "rowid" } else { "0" };
        let mut order_names: Vec<&str> = order.iter().map(|place| names[*place]).collect();
        if has_put_order {
            order_names.push("rowid");
        }
        let ordered =
            if order_names.is_empty() { String::new() } else { format!(" ORDER BY {}", order_names.join(", ")) };
        let behind = match numbered(3, order_names.len()) {
            // Without a key, nothing follows the only row.
            places if places.is_empty() => "0".to_owned(),
            places => format!("({}) > ({places})", order_names.join(", ")),
        };
        let select = format!("SELECT {}, {put_order} FROM {name} WHERE account = ?1", names.join(", "));
        let conflict = std::iter::once("account").chain(names[..unique].iter().copied()).collect::<Vec<_>>().join(", ");
        let set = names[unique..].iter().map(|name| format!("{name} = excluded.{name}")).collect::<Vec<_>>();
        let action = if set.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", set.join(", ")) };
        let is_key = names[..unique].iter().zip(2..).map(|(name, at)| format!(" AND {name} = ?{at}"));
        Self {
            kinds: columns.iter().map(|(_, kind)| *kind).collect(),
            unique,
            has_put_order,
            first: format!("{select}{ordered} LIMIT ?2"),
            next: format!("{select} AND {behind}{ordered} LIMIT ?2"),
            put: format!(
                "INSERT INTO {name} (account, {}) VALUES (?1, {}) ON CONFLICT ({conflict}) DO {action}",
                names.join(", "),
                numbered(2, names.len())
            ),
            delete: format!("DELETE FROM {name} WHERE account = ?1{}", is_key.collect::<String>()),
            order,
        }
    }

    pub(super) fn of(table: &'static Table) -> &'static Self {
        &TABLES[table.position]
    }

    /// Up to `limit` rows, in the order of copies.
    pub(super) fn rows(
        &'static self,
        c: &Connection,
        account: i32,
        behind: Option<&WholeRow>,
        limit: i64,
    ) -> Result<Vec<WholeRow>> {
        let read = |row: &Row<'_>| self.read(row);
        let first = [Value::Integer(account.into()), Value::Integer(limit)];
        let Some(behind) = behind else { return c.all(&self.first, first, read) };
        let order = self.order.iter().map(|place| self.value(behind, *place));
        let mut parameters = first.into_iter().map(Ok).chain(order).collect::<Result<Vec<_>>>()?;
        if self.has_put_order {
            parameters.push(Value::Integer(behind.put_order));
        }
        c.all(&self.next, params_from_iter(parameters), read)
    }

    pub(super) fn put(&'static self, c: &Connection, account: i32, rows: &[WholeRow]) -> Result<()> {
        let parameters = rows.iter().map(|row| self.parameters(account, row, self.kinds.len()));
        let parameters = parameters.collect::<Result<Vec<_>>>()?;
        c.run_each(&self.put, &parameters, |statement, row| statement.execute(params_from_iter(row))).map(drop)
    }

    pub(super) fn delete(&'static self, c: &Connection, account: i32, rows: &[WholeRow]) -> Result<()> {
        let parameters =
            rows.iter().map(|row| self.parameters(account, row, self.unique)).collect::<Result<Vec<_>>>()?;
        c.run_each(&self.delete, &parameters, |statement, row| statement.execute(params_from_iter(row))).map(drop)
    }

    /// The account and the first columns.
    fn parameters(&self, account: i32, row: &WholeRow, columns: usize) -> Result<Vec<Value>> {
        let values = (0..columns).map(|place| self.value(row, place));
        std::iter::once(Ok(Value::Integer(account.into()))).chain(values).collect()
    }

    fn value(&self, row: &WholeRow, place: usize) -> Result<Value> {
        const MALFORMED: Error = Error::Malformed { record: Record::Store };
        Ok(match (row.values.get(place).ok_or(MALFORMED)?, self.kinds[place]) {
            (StoredValue::Null, _) => Value::Null,
            (StoredValue::Integer(number), _) => Value::Integer(*number),
            (StoredValue::Bytes(bytes), StoredKind::Text) => {
                Value::Text(String::from_utf8(bytes.clone()).map_err(|_| MALFORMED)?)
            }
            (StoredValue::Bytes(bytes), _) => Value::Blob(bytes.clone()),
        })
    }

    fn read(&self, row: &Row<'_>) -> rusqlite::Result<WholeRow> {
        let values = (0..self.kinds.len()).map(|at| {
            Ok(match row.get_ref(at)? {
                ValueRef::Integer(number) => StoredValue::Integer(number),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => StoredValue::Bytes(bytes.to_vec()),
                // A strict table holds no real numbers.
                ValueRef::Null | ValueRef::Real(_) => StoredValue::Null,
            })
        });
        Ok(WholeRow { values: values.collect::<rusqlite::Result<_>>()?, put_order: row.get(self.kinds.len())? })
    }
}

fn numbered(from: usize, count: usize) -> String {
    (from..from + count).map(|at| format!("?{at}")).collect::<Vec<_>>().join(", ")
}
