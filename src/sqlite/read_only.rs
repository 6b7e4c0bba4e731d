//! Opens a database without changing it, or anything beside it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use super::files::{COMPANIONS, with_suffix};
use crate::error::{Error, Result};
use crate::filesystem;

/// How to read a database that must not be changed.
#[derive(Clone, Debug)]
pub(super) enum ReadOnlyFile {
    /// No one writes to it.
    Quiet { path: PathBuf, quiet: Quiet },
    /// Another process has it open, and the memory that it shares with readers lies beside it.
    InUse { path: PathBuf },
    /// It was left with a log or a journal, which must be applied. So this is a copy in a folder
    /// for temporary files.
    Copied { path: PathBuf, copy: PathBuf, folder: Arc<TempDir> },
}

impl ReadOnlyFile {
    /// # Errors
    /// [`Error::File`] if it cannot be copied.
    pub(super) fn look(path: PathBuf) -> Result<Self> {
        if let Some(quiet) = Quiet::look(&path) {
            return Ok(Self::Quiet { path, quiet });
        }
        if with_suffix(&path, "-shm").exists() && !with_suffix(&path, "-journal").exists() {
            return Ok(Self::InUse { path });
        }
        Self::copy(path)
    }

    /// Copies a database that SQLite cannot read where it is.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be copied.
    pub(super) fn copy(path: PathBuf) -> Result<Self> {
        let cannot_copy =
            |path: &Path, error| Error::File { what: "copy for reading", source: filesystem::named(path, error) };
        let temporary = std::env::temp_dir();
        let folder = tempfile::Builder::new().prefix(".wastore-read-").tempdir_in(&temporary);
        let folder = folder.map_err(|error| cannot_copy(&temporary, error))?;
        let copy = folder.path().join("store.db");
        // SQLite rebuilds the `-shm` file from the log.
        for ending in ["", "-wal", "-journal"] {
            let from = with_suffix(&path, ending);
            match fs::copy(&from, with_suffix(&copy, ending)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !ending.is_empty() => {}
                copied => drop(copied.map_err(|error| cannot_copy(&from, error))?),
            }
        }
        Ok(Self::Copied { path, copy, folder: Arc::new(folder) })
    }

    /// The path of the database itself.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Quiet { path, .. } | Self::InUse { path } | Self::Copied { path, .. } => path,
        }
    }

    /// The folder of a copy, which must stay as long as there are connections.
    pub(super) fn folder(&self) -> Option<Arc<TempDir>> {
        match self {
            Self::Copied { folder, .. } => Some(folder.clone()),
            _ => None,
        }
    }

    pub(super) fn connect(&self) -> rusqlite::Result<Connection> {
        match self {
            Self::Quiet { path, .. } => connect_immutable(path),
            Self::InUse { path } => Connection::open_with_flags(path, READ_ONLY),
            Self::Copied { copy, .. } => {
                Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            }
        }
    }

    /// # Errors
    /// [`Error::FileMoved`] if another process has begun to use the database: the rows that were
    /// read may make no sense.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Quiet { path, quiet } if !quiet.is_still(path) => Err(Error::FileMoved),
            _ => Ok(()),
        }
    }
}

const READ_ONLY: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// Opens a database that no one writes to. SQLite then creates nothing beside it
/// (<https://www.sqlite.org/uri.html#uriimmutable>).
pub(crate) fn connect_immutable(path: &Path) -> rusqlite::Result<Connection> {
    let Some(text) = path.to_str() else { return Connection::open_with_flags(path, READ_ONLY) };
    let text = text.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    Connection::open_with_flags(format!("file:{text}?immutable=1"), READ_ONLY | OpenFlags::SQLITE_OPEN_URI)
}

/// The state of a file that no one writes to.
#[derive(Clone, Debug)]
pub(crate) struct Quiet {
    length: u64,
    modified: Option<SystemTime>,
}

impl Quiet {
    /// `None` if the database is open, or was left without being closed.
    pub(crate) fn look(path: &Path) -> Option<Self> {
        // A log lies beside the file itself, not beside a link to it.
        let path = &path.canonicalize().ok()?;
        let has_log =
            COMPANIONS.iter().filter(|ending| **ending != "-shm").any(|ending| with_suffix(path, ending).exists());
        let metadata = path.metadata().ok().filter(|_| !has_log)?;
        Some(Self { length: metadata.len(), modified: metadata.modified().ok() })
    }

    pub(crate) fn is_still(&self, path: &Path) -> bool {
        Self::look(path).is_some() && self.has_content_of(path)
    }

    pub(crate) fn has_content_of(&self, path: &Path) -> bool {
        path.metadata().is_ok_and(|now| (now.len(), now.modified().ok()) == (self.length, self.modified))
    }
}
