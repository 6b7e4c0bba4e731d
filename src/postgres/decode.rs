//! Reads the values of rows.

use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::error::{Error, Result};
use crate::method::Record;

/// The value of the first row, or `None` without rows.
pub(super) fn first<'a, T>(rows: &'a [Row], read: impl FnOnce(&'a Row) -> Result<T>) -> Result<Option<T>> {
    rows.first().map(read).transpose()
}

/// # Errors
/// [`Error::Malformed`] if the column has another type or is NULL.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize, record: Record) -> Result<T> {
    row.try_get(column).map_err(|_| Error::Malformed { record })
}

pub(super) fn blob(row: &Row, column: usize, record: Record) -> Result<Vec<u8>> {
    get(row, column, record)
}

/// # Errors
/// [`Error::Malformed`] if it is not UTF-8.
pub(super) fn text(row: &Row, column: usize, record: Record) -> Result<String> {
    String::from_utf8(blob(row, column, record)?).map_err(|_| Error::Malformed { record })
}
