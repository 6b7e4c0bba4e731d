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
elsewhere, and so do file systems that copy on write. Its backups, and copies in synced folders, are as they were; other names
of the same file are empty.";

    /// Upstream's snapshots beside the source, which were not touched: they are in plaintext.
    pub fn left(&self) -> &[PathBuf] {
        &self.left
    }
}

/// Overwrites and removes a database and what SQLite keeps beside it, if nobody has it open. Blocks its thread.
///
/// # Errors
/// [`Error::SourceNotRemoved`].
/// [`Error::SourceChanged`], and nothing was removed, if it is not as it was when `is_still` says so.
pub(super) fn remove(path: &Path, is_still: impl FnOnce(&Path) -> bool) -> Result<RemovedSource> {
    let not_removed = |source| Error::SourceNotRemoved { source };
    let file = path.canonicalize().map_err(not_removed)?;
    let alone = lock(&file).map_err(|error| not_removed(io::Error::other(error)))?;
    if !is_still(&file) {
        return Err(Error::SourceChanged);
    }
    remove_file(path, &file, alone).map_err(not_removed)
}

fn remove_file(path: &Path, file: &Path, alone: Connection) -> io::Result<RemovedSource> {
    // Whoever comes now finds nothing, instead of something that is about to go.
    let removing = beside(file, ".removing");
    fs::rename(file, &removing)?;
    overwrite(&removing)?;
    fs::remove_file(&removing)?;
    drop(alone);
    for ending in ["-wal", "-shm", "-journal"] {
        let beside = beside(file, ending);
        if beside.exists() {
            overwrite(&beside)?;
            fs::remove_file(&beside)?;
        }
    }
    if path.is_symlink() {
        fs::remove_file(path)?;
    }
    sync_folder(file)?;
    let mut left = vec![];
    let snapshots = format!("{}.snapshot-", file.file_name().unwrap_or_default().to_string_lossy());
    for entry in fs::read_dir(folder_of(file))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&snapshots) {
            left.push(entry.path());
        }
    }
    left.sort();
    Ok(RemovedSource { left })
}

/// A connection that nobody else can have one beside.
fn lock(file: &Path) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    // There will be nothing to fold a log into.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
    connection.execute_batch("BEGIN EXCLUSIVE")?;
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    // In other modes nobody is seen who has it open and does nothing at this moment.
    if mode == "wal" { Ok(connection) } else { Err("its journal mode is not that of whatsapp-rust".into()) }
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
