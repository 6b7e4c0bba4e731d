//! Whole rows as they are, for copies from store to store.

use std::sync::LazyLock;

use tokio_postgres::Row as Answered;

use super::decode::get;
use super::statement::{Cell, Column, Row, Statement, change, upsert};
use super::tables::{column_name, leak, leak_text, numbered};
use crate::error::{Error, Result};
use crate::method::Record;
use crate::rows::table::{self, StoredKind, StoredValue, Table, WholeRow};

/// The statements of a table.
pub(super) struct WholeTable {
    record: Record,
    kinds: Vec<StoredKind>,
    order: Vec<usize>,
    unique: usize,
    has_put_order: bool,
    pub(super) first: Statement,
    pub(super) next: Statement,
    pub(super) put: Statement,
    pub(super) delete: Statement,
}

/// The statements of all tables, in the order of [`table::TABLES`].
static TABLES: LazyLock<Vec<WholeTable>> = LazyLock::new(|| table::TABLES.iter().map(WholeTable::new).collect());

impl WholeTable {
    fn new(table: &'static Table) -> Self {
        let (columns, name, record) = (table.stored_columns(), table.name, table.record);
        let (order, unique) = (table.copy_order(), table.unique_columns());
        let kinds: Vec<StoredKind> = columns.iter().map(|(_, kind)| *kind).collect();
        let mut names: Vec<&str> = columns.iter().map(|(name, _)| column_name(name)).collect();
        let mut types: Vec<Column> = kinds.iter().map(|kind| type_of(*kind)).collect();
        let mut places = order.clone();
        let has_put_order = record == Record::LidMapping;
        if has_put_order {
            places.push(names.len());
            names.push("put_order");
            types.push(Column::Long);
        }
        let order_names: Vec<&str> = places.iter().map(|place| names[*place]).collect();
        let order_types: Vec<Column> = places.iter().map(|place| types[*place]).collect();
        let read = names.iter().zip(&types).map(|(name, of)| match of {
            Column::Flag => format!("{name}::int::bigint"),
            _ => (*name).to_owned(),
        });
        let select = format!("SELECT {} FROM @.{name} WHERE account = $1", read.collect::<Vec<_>>().join(", "));
        let (behind, ordered) = match order_names.join(", ") {
            // Without a key, nothing follows the only row.
            key if key.is_empty() => ("false".to_owned(), String::new()),
            key => (format!("({key}) > ({})", numbered(3, order_names.len())), format!(" ORDER BY {key}")),
        };
        let is_key = names[..unique].iter().zip(5..).map(|(name, at)| format!(" AND {name} = ${at}"));
        let delete = format!(
            "DELETE FROM @.{name} WHERE account = $1{} AND EXISTS (SELECT FROM fence) RETURNING 1",
            is_key.collect::<String>()
        );
        let next_types = [&[Column::Long], &order_types[..]].concat();
        Self {
            record,
            kinds,
            order,
            unique,
            has_put_order,
            first: Statement::read(record, &[Column::Long], leak_text(format!("{select}{ordered} LIMIT $2"))),
            next: Statement::read(
                record,
                leak(next_types),
                leak_text(format!("{select} AND {behind}{ordered} LIMIT $2")),
            ),
            delete: Statement::single(
                record,
                leak(&types[..unique]),
                leak_text(change!("?").replacen('?', &delete, 1)),
            ),
            put: Statement::upsert(record, unique, leak(types), put(name, &names, unique)),
        }
    }

    pub(super) fn of(table: &'static Table) -> &'static Self {
        &TABLES[table.position]
    }

    #[cfg(test)]
    pub(super) fn statements(&self) -> [&Statement; 4] {
        [&self.first, &self.next, &self.put, &self.delete]
    }

    /// The statement of a page behind a row, and its parameters.
    pub(super) fn page(&'static self, behind: Option<&WholeRow>, limit: i64) -> Result<(&'static Statement, Row)> {
        let mut parameters = Row::from_iter([Cell::from(limit)]);
        let Some(behind) = behind else { return Ok((&self.first, parameters)) };
        for place in &self.order {
            parameters.push(self.cell(behind, *place)?);
        }
        if self.has_put_order {
            parameters.push(behind.put_order.into());
        }
        Ok((&self.next, parameters))
    }

    /// The parameters that put a row.
    pub(super) fn put_row(&self, row: &WholeRow) -> Result<Row> {
        let mut parameters = self.first_cells(row, self.kinds.len())?;
        if self.has_put_order {
            parameters.push(row.put_order.into());
        }
        Ok(parameters)
    }

    /// The parameters that delete a row.
    pub(super) fn key_of(&self, row: &WholeRow) -> Result<Row> {
        self.first_cells(row, self.unique)
    }

    fn first_cells(&self, row: &WholeRow, columns: usize) -> Result<Row> {
        (0..columns).map(|place| self.cell(row, place)).collect()
    }

    fn cell(&self, row: &WholeRow, place: usize) -> Result<Cell> {
        let value = row.values.get(place).ok_or(Error::Malformed { record: self.record })?;
        Ok(match (value, self.kinds[place]) {
            (StoredValue::Null, _) => Cell::Null,
            (StoredValue::Integer(number), StoredKind::Flag) => Cell::Flag(*number != 0),
            (StoredValue::Integer(number), _) => Cell::Long(*number),
            (StoredValue::Bytes(bytes), _) => Cell::from(&bytes[..]),
        })
    }

    pub(super) fn read(&self, row: &Answered) -> Result<WholeRow> {
        let values = self.kinds.iter().enumerate().map(|(at, kind)| {
            Ok(match kind {
                StoredKind::Text | StoredKind::Bytes => {
                    get::<Option<Vec<u8>>>(row, at, self.record)?.map_or(StoredValue::Null, StoredValue::Bytes)
                }
                StoredKind::Integer | StoredKind::Flag => {
                    get::<Option<i64>>(row, at, self.record)?.map_or(StoredValue::Null, StoredValue::Integer)
                }
            })
        });
        let put_order = if self.has_put_order { get(row, self.kinds.len(), self.record)? } else { 0 };
        Ok(WholeRow { values: values.collect::<Result<_>>()?, put_order })
    }
}

/// The text of the statement that puts rows over those of the same keys.
fn put(table: &str, names: &[&str], unique: usize) -> &'static str {
    let key = std::iter::once("account").chain(names[..unique].iter().copied()).collect::<Vec<_>>().join(", ");
    let set = names[unique..].iter().map(|name| format!("{name} = excluded.{name}")).collect::<Vec<_>>();
    let put = format!(
        "INSERT INTO @.{table} (account, {}) SELECT $1, r.* FROM fence, unnest({}) AS r
        ON CONFLICT ({key}) DO UPDATE SET {}",
        names.join(", "),
        numbered(5, names.len()),
        set.join(", ")
    );
    leak_text(upsert!("?").replacen('?', &put, 1))
}

fn type_of(kind: StoredKind) -> Column {
    match kind {
        StoredKind::Text | StoredKind::Bytes => Column::Bytes,
        StoredKind::Integer => Column::Long,
        StoredKind::Flag => Column::Flag,
    }
}
