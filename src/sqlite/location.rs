//! Where a database is, and how to open a connection to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::connection::guard;
use super::read_only::ReadOnlyFile;

/// Where the database is.
#[derive(Clone, Debug)]
pub(super) enum Location {
    /// A file, by its absolute path without symbolic links.
    File(PathBuf),
    /// A file that must not be changed.
    ReadOnly(ReadOnlyFile),
    /// Memory that the connections of one store share.
    Memory { uri: String },
}

impl Location {
    /// Opens a connection. Never creates a file: a missing file must be noticed, not replaced by an
    /// empty one.
    pub(super) fn connect(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = match self {
            Location::File(path) => Connection::open_with_flags(path, flags)?,
            Location::ReadOnly(file) => file.connect()?,
            Location::Memory { uri } => {
                Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI)?
            }
        };
        // Waiting blocks the thread, so it happens only where that is allowed: see `retry_busy`.
        connection.busy_timeout(Duration::ZERO)?;
        guard(&connection)?;
        Ok(connection)
    }

    pub(super) fn is_read_only(&self) -> bool {
        matches!(self, Location::ReadOnly(_))
    }

    /// The path of the file, or `None` in memory.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Location::File(path) => Some(path),
            Location::ReadOnly(file) => Some(file.path()),
            Location::Memory { .. } => None,
        }
    }
}
