//! Removes the database that was imported.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::error::{Error, Result};
use crate::filesystem::{self, folder_of};
use crate::private;
use crate::sqlite::connection::guard;
use crate::sqlite::files::{COMPANIONS, with_suffix};

/// The result of [`Import::remove_source`](super::Import::remove_source).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedSource {
    left: Vec<PathBuf>,
}

impl RemovedSource {
    /// Upstream's snapshots beside the source, which were not removed: they are in plaintext.
    pub fn left(&self) -> &[PathBuf] {
        &self.left
    }
}

/// Overwrites and removes a database and the files that SQLite keeps beside it, if no other
/// connection has it open. Blocks its thread.
///
/// # Errors
/// [`Error::SourceNotRemoved`]; nothing changes if it is because one of the files is not as SQLite
/// makes it. [`Error::SourceChanged`] if `is_still` returns `false`; nothing was removed then.
pub(super) fn remove(path: &Path, store_id: &[u8; 16], is_still: impl FnOnce(&Path) -> bool) -> Result<RemovedSource> {
    let not_removed = |source| Error::SourceNotRemoved { source };
    let file = path.canonicalize().map_err(not_removed)?;
    // SQLite follows links when it opens the files beside the database.
    check_companions(&file).map_err(not_removed)?;
    let alone = lock(&file).map_err(|error| not_removed(io::Error::other(error)))?;
    if !is_still(&file) {
        return Err(Error::SourceChanged);
    }
    remove_files(path, &file, store_id, alone).map_err(not_removed)
}

/// The path of the file that an earlier removal began to overwrite; `None` if the source exists, or
/// nothing of it is left.
pub(super) fn interrupted(path: &Path) -> Option<PathBuf> {
    let is_gone = |path: &Path| path.metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let file = match path.read_link() {
        Ok(to) => folder_of(path).join(to),
        Err(_) => path.to_owned(),
    };
    let is_left = |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| is_removing(&file, &entry.path()));
    (is_gone(path) && fs::read_dir(folder_of(&file)).ok()?.any(is_left)).then_some(file)
}

/// `true` if SQLite or a removal uses this name for a file of the database.
pub(super) fn uses(database: &Path, path: &Path) -> bool {
    COMPANIONS.iter().any(|ending| with_suffix(database, ending) == path) || is_removing(database, path)
}

/// `true` if this is the name of the database while it is overwritten.
fn is_removing(database: &Path, path: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.as_encoded_bytes().to_owned()).unwrap_or_default();
    name(path).starts_with(&name(&with_suffix(database, REMOVING)))
}

/// Finishes the removal of a source that was imported into the store with this id. The source was
/// at `path`, which is `file` or a link to it. Blocks its thread.
///
/// # Errors
/// [`Error::SourceNotRemoved`].
pub(super) fn finish(path: &Path, file: &Path, store_id: &[u8; 16]) -> Result<RemovedSource> {
    let finish = || {
        let name = removing(file, store_id);
        let removing = Doomed::open(name.clone()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => private::refused(
                &name,
                "does not exist: the source was imported into another store, name that one as the target",
            ),
            _ => error,
        })?;
        private::check(&removing.file, &removing.path)?;
        let companions = companions(file, &removing)?;
        removing.destroy()?;
        companions.into_iter().try_for_each(Doomed::destroy)?;
        tidy(path, file)
    };
    finish().map_err(|source| Error::SourceNotRemoved { source })
}

/// The suffix of the name of a database that is being overwritten. The id of the store that it was
/// imported into follows: only with that store the removal can be finished.
const REMOVING: &str = ".removing-";

fn removing(file: &Path, store_id: &[u8; 16]) -> PathBuf {
    with_suffix(file, &format!("{REMOVING}{}", data_encoding::HEXLOWER.encode(store_id)))
}

fn remove_files(path: &Path, file: &Path, store_id: &[u8; 16], alone: Connection) -> io::Result<RemovedSource> {
    // Closing a descriptor of the database would release SQLite's lock. So open them only while the
    // lock is held, and close them after it.
    let mut database = Doomed::open(file.to_owned())?;
    let companions = companions(file, &database)?;
    // From now on other processes find no file, instead of one that is about to go.
    let removing = removing(file, store_id);
    filesystem::rename_new(file, &removing).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            private::refused(&removing, "already exists, left by an interrupted removal: delete it, it is in plaintext")
        }
        _ => error,
    })?;
    database.path = removing;
    database.overwrite()?;
    drop(alone);
    database.unlink()?;
    companions.into_iter().try_for_each(Doomed::destroy)?;
    tidy(path, file)
}

/// Removes a link to the source, and looks for snapshots.
fn tidy(path: &Path, file: &Path) -> io::Result<RemovedSource> {
    if path.is_symlink() {
        fs::remove_file(path)?;
    }
    filesystem::sync_folder_of(file)?;
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

/// A file that is to be overwritten and removed: the checked one, wherever its name leads later.
struct Doomed {
    path: PathBuf,
    file: File,
}

impl Doomed {
    /// # Errors
    /// Names the file if it is a link, not a regular file, or belongs to another user.
    fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: private::open(&path)?, path })
    }

    fn destroy(mut self) -> io::Result<()> {
        self.overwrite()?;
        self.unlink()
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let zeros = vec![0; 1 << 20];
        let mut left = self.file.metadata()?.len();
        while left > 0 {
            let chunk = left.min(zeros.len() as u64);
            self.file.write_all(&zeros[..chunk as usize])?;
            left -= chunk;
        }
        self.file.sync_all()?;
        self.file.set_len(0)?;
        self.file.sync_all()
    }

    /// Removes the name, unless SQLite already has.
    fn unlink(self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Opens the files that SQLite keeps beside a database.
///
/// # Errors
/// Names the first file that is not as SQLite makes it.
fn companions(file: &Path, database: &Doomed) -> io::Result<Vec<Doomed>> {
    let mut companions = vec![];
    for ending in COMPANIONS {
        match Doomed::open(with_suffix(file, ending)) {
            Ok(companion) => {
                private::check(&companion.file, &companion.path)?;
                #[cfg(unix)]
                {
                    use std::os::unix::fs::MetadataExt;
                    if companion.file.metadata()?.dev() != database.file.metadata()?.dev() {
                        let problem = "is on another file system than the database: remove it";
                        return Err(private::refused(&companion.path, problem));
                    }
                }
                companions.push(companion);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    #[cfg(not(unix))]
    let _ = database;
    Ok(companions)
}

/// Checks the same by name, before SQLite opens any: closing a descriptor would release the locks
/// of other connections.
fn check_companions(file: &Path) -> io::Result<()> {
    for ending in COMPANIONS {
        let path = with_suffix(file, ending);
        let metadata = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found?,
        };
        if !metadata.is_file() {
            return Err(private::refused(&path, "is a link or not a regular file: remove it"));
        }
        #[cfg(unix)]
        if std::os::unix::fs::MetadataExt::nlink(&metadata) != 1 {
            return Err(private::refused(&path, "has another name (hard link): remove the link"));
        }
    }
    Ok(())
}

/// Opens a connection that no other connection can be open beside.
fn lock(file: &Path) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    guard(&connection)?;
    // There will be no database to fold a log into.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
    connection.execute_batch("BEGIN EXCLUSIVE")?;
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    // In other modes, a process that has the file open without using it is not noticed.
    if mode == "wal" { Ok(connection) } else { Err("its journal mode is not that of whatsapp-rust".into()) }
}
