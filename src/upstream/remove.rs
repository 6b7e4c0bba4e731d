//! Removing the database that was imported.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::error::{Error, Result};
use crate::sqlite::{beside, folder_of, sync_folder};

/// What [`Import::remove_source`](super::Import::remove_source) did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedSource {
    left: Vec<PathBuf>,
}

impl RemovedSource {
    /// What removing a file cannot do, in words for people.
    pub const LIMITS: &'static str = "\
The source was overwritten and removed. What the disk keeps of it cannot be reached from here: flash wears evenly and writes
elsewhere, and so do file systems that copy on write. Its backups, and copies in synced folders, are as they were.";

    /// Files beside the source that bear its name and were not touched, such as upstream's snapshots: they are in plaintext.
    pub fn left(&self) -> &[PathBuf] {
        &self.left
    }
}

/// Overwrites and removes a database and what SQLite keeps beside it, if nobody has it open. Blocks its thread.
///
/// # Errors
/// [`Error::SourceNotRemoved`].
pub(super) fn remove(path: &Path) -> Result<RemovedSource> {
    remove_unless_open(path).map_err(|source| Error::SourceNotRemoved { source })
}

fn remove_unless_open(path: &Path) -> io::Result<RemovedSource> {
    let file = path.canonicalize()?;
    let alone = lock(&file).map_err(io::Error::other)?;
    overwrite(&file)?;
    drop(alone);
    for ending in ["-wal", "-shm", "-journal"] {
        let beside = beside(&file, ending);
        if beside.exists() {
            overwrite(&beside)?;
            fs::remove_file(&beside)?;
        }
    }
    fs::remove_file(&file)?;
    if path.is_symlink() {
        fs::remove_file(path)?;
    }
    sync_folder(&file)?;
    let mut left = vec![];
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    for entry in fs::read_dir(folder_of(&file))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&*name) {
            left.push(entry.path());
        }
    }
    left.sort();
    Ok(RemovedSource { left })
}

/// A connection that nobody else can have one beside.
fn lock(file: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    // There will be nothing to fold a log into.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
    connection.execute_batch("BEGIN EXCLUSIVE")?;
    Ok(connection)
}

fn overwrite(path: &Path) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).open(path)?;
    let zeros = vec![0; 1 << 20];
    let mut left = file.metadata()?.len();
    while left > 0 {
        let chunk = left.min(zeros.len() as u64);
        file.write_all(&zeros[..chunk as usize])?;
        left -= chunk;
    }
    file.sync_all()?;
    file.set_len(0)?;
    file.sync_all()
}
