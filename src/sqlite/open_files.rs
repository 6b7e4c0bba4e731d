//! The database files that this process has open, and the checks before it opens one.
//!
//! Closing any descriptor of a file releases every lock of the process on it, including SQLite's
//! (<https://www.sqlite.org/howtocorrupt.html>, section 2.2). So a file is read by other means only
//! while this process does not have it open as a database.

#[cfg(unix)]
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
#[cfg(unix)]
use std::sync::{LazyLock, Mutex, MutexGuard};

use super::files::{cannot_open, with_suffix};
use crate::error::{Error, ForeignFile, Result};
use crate::sync::IgnorePoison;

#[cfg(unix)]
type Identity = (u64, u64);

/// How many times each file is open.
#[cfg(unix)]
static OPEN: LazyLock<Mutex<HashMap<Identity, usize>>> = LazyLock::new(Mutex::default);

#[cfg(unix)]
fn open_files() -> MutexGuard<'static, HashMap<Identity, usize>> {
    OPEN.lock().ignore_poison()
}

/// A database file that is open as long as this value exists.
#[derive(Debug)]
pub(super) struct OpenFile {
    #[cfg(unix)]
    identity: Identity,
}

impl OpenFile {
    /// Registers a database that is about to be opened. If this process does not have it open yet,
    /// checks before SQLite does that a log beside it can be its own.
    ///
    /// # Errors
    /// [`Error::ForeignFile`], [`Error::File`].
    pub(super) fn of(path: &Path) -> Result<Self> {
        #[cfg(unix)]
        {
            let identity = super::files::identity(path).map_err(cannot_open)?;
            let mut open = open_files();
            if !open.contains_key(&identity) {
                refuse_foreign_log(path)?;
            }
            *open.entry(identity).or_default() += 1;
            Ok(Self { identity })
        }
        #[cfg(not(unix))]
        {
            refuse_foreign_log(path)?;
            Ok(Self {})
        }
    }
}

#[cfg(unix)]
impl Drop for OpenFile {
    fn drop(&mut self) {
        let mut open = open_files();
        if let Some(count) = open.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.identity);
            }
        }
    }
}

/// Looks at a file by other means than SQLite, and keeps this process from opening it at the same
/// time.
///
/// # Errors
/// [`Error::StoreInUse`] if this process has it open.
#[cfg(unix)]
pub(super) fn unless_open<T>(path: &Path, look: impl FnOnce() -> Result<T>) -> Result<T> {
    let open = open_files();
    if super::files::identity(path).is_ok_and(|identity| open.contains_key(&identity)) {
        return Err(Error::StoreInUse);
    }
    look()
}

/// A store is in WAL mode as soon as it has a log, and its file says so. A backup's file says that
/// it is not (<https://www.sqlite.org/fileformat2.html>, section 1.3.3). So a log beside a backup
/// belongs to the previous database.
fn refuse_foreign_log(path: &Path) -> Result<()> {
    let log = with_suffix(path, "-wal").metadata();
    if !log.is_ok_and(|log| log.len() > 0) {
        return Ok(());
    }
    const VERSIONS_AT: usize = 18;
    let mut header = [0; VERSIONS_AT + 2];
    match File::open(path).and_then(|mut file| file.read_exact(&mut header)) {
        // Too short to be a database. A later check finds that.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        read => read.map_err(cannot_open)?,
    }
    if header[VERSIONS_AT..] == [1, 1] {
        return Err(Error::ForeignFile { path: path.to_owned(), found: ForeignFile::ForeignLog });
    }
    Ok(())
}

/// Refuses a file with two names (hard links): SQLite would not find its log under the other name.
///
/// # Errors
/// [`Error::ForeignFile`], [`Error::File`].
pub(super) fn refuse_second_name(path: &Path) -> Result<()> {
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::nlink(&path.metadata().map_err(cannot_open)?) > 1 {
        return Err(Error::ForeignFile { path: path.to_owned(), found: ForeignFile::SecondName });
    }
    let _ = path;
    Ok(())
}
