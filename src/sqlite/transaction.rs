//! Transactions, and the check of leases in them.

use std::sync::Arc;

use rusqlite::Connection;

use super::connection::Statements;
use super::lease::Lease;
use crate::error::Result;

pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";
pub(super) const COMMIT: &str = "COMMIT";

/// Runs an operation of several statements. It writes nothing without the lease.
///
/// # Errors
/// Nothing is written then. [`Error::LeaseLost`](crate::error::Error::LeaseLost), the errors of the
/// operation, and those of the commit.
pub(super) fn in_transaction<T>(
    connection: &Connection,
    lease: Option<&Arc<Lease>>,
    operation: &mut impl FnMut(&Connection) -> Result<T>,
) -> Result<T> {
    connection.run(BEGIN, ())?;
    let fenced = lease.map_or(Ok(()), |lease| lease.fence(connection));
    let result = fenced.and_then(|()| operation(connection));
    let result = result.and_then(|result| connection.run(COMMIT, ()).map(|_| result));
    result.inspect_err(|_| rollback(connection))
}

/// Runs an operation of a single statement that writes, which is its own transaction. It writes
/// nothing without the lease.
///
/// # Errors
/// Nothing is written then. [`Error::LeaseLost`](crate::error::Error::LeaseLost), and the errors of
/// the statement.
pub(super) fn fenced_statement<T>(
    connection: &Connection,
    lease: Option<&Arc<Lease>>,
    operation: &mut impl FnMut(&Connection) -> Result<T>,
) -> Result<T> {
    match lease {
        Some(lease) => lease.fence_statement(connection, operation),
        None => operation(connection),
    }
}

/// Checks the leases of the calls of a group, each once.
///
/// # Errors
/// [`Error::LeaseLost`](crate::error::Error::LeaseLost), and those of reading.
pub(super) fn fence_all<'a>(connection: &Connection, leases: impl Iterator<Item = &'a Arc<Lease>>) -> Result<()> {
    let mut checked: Vec<&Arc<Lease>> = vec![];
    for lease in leases {
        if !checked.iter().any(|known| Arc::ptr_eq(known, lease)) {
            lease.fence(connection)?;
            checked.push(lease);
        }
    }
    Ok(())
}

/// Ends a failed transaction, unless SQLite already has. If this fails, the next `BEGIN` reports it.
pub(super) fn rollback(connection: &Connection) {
    if !connection.is_autocommit() {
        let _ = connection.run("ROLLBACK", ());
    }
}
