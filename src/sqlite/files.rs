//! The files of a database: their names, which of them may be used, and why one cannot be used.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::schema;
use crate::background::{self, Caller};
use crate::error::{Error, Result, SqliteProblem};
use crate::filesystem::{self, folder_of};
use crate::printable::printable_path;
use crate::private;

/// Replaces SQLite's error on opening a database if the file system or the permissions explain
/// more.
pub(crate) fn explained(path: &Path, error: Error) -> Error {
    let Error::Sqlite { problem, .. } = &error else { return error };
    match problem {
        SqliteProblem::CannotOpen | SqliteProblem::ReadOnly => {
            let paths = [path.to_owned(), with_suffix(path, "-wal"), with_suffix(path, "-shm")];
            filesystem::what_forbids(&paths, folder_of(path)).map_or(error, cannot_open)
        }
        SqliteProblem::Contended | SqliteProblem::Disk | SqliteProblem::Other
            if filesystem::has_no_locks(folder_of(path)) =>
        {
            NO_LOCKS
        }
        _ => error,
    }
}

pub(super) const NO_LOCKS: Error =
    Error::InvalidInput { what: "the file system", problem: "has no file locks: use a local disk" };

pub(super) fn is_absent(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The absolute path of an existing database.
///
/// # Errors
/// [`Error::File`] if the file does not exist, [`Error::ForeignFile`] if it is empty or too short
/// to be a database.
pub(super) fn existing(path: &Path) -> Result<PathBuf> {
    let path = fs::canonicalize(path).map_err(|error| cannot_open(filesystem::named(path, error)))?;
    schema::check_length(&path)?;
    refuse_pipes(&path).map_err(cannot_open)?;
    Ok(path)
}

/// Checks that a database and SQLite's files beside it are regular files. A pipe would block SQLite
/// until its other end is opened.
///
/// # Errors
/// Names the file that is not regular.
pub(crate) fn refuse_pipes(database: &Path) -> io::Result<()> {
    let companions = COMPANIONS.iter().map(|ending| with_suffix(database, ending)).filter(|path| path.exists());
    for path in [database.to_owned()].into_iter().chain(companions) {
        if !path.metadata()?.is_file() {
            return Err(private::refused(&path, "is not a regular file"));
        }
    }
    Ok(())
}

/// Checks that a new database may have this name. SQLite would take a log beside it as the
/// database's own.
///
/// # Errors
/// [`Error::TargetExists`] names the existing file.
pub(crate) fn refuse_taken(target: &Path) -> Result<()> {
    if target.symlink_metadata().is_ok() {
        return Err(Error::TargetExists { path: target.to_owned() });
    }
    refuse_companions(target)
}

pub(super) fn refuse_companions(target: &Path) -> Result<()> {
    match COMPANIONS.map(|ending| with_suffix(target, ending)).into_iter().find(|path| path.symlink_metadata().is_ok())
    {
        Some(path) => Err(Error::TargetExists { path }),
        None => Ok(()),
    }
}

/// The suffixes of the files that SQLite keeps beside a database.
pub(crate) const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Gives a finished database its name: closes what is still open of it, waits for the disk, and
/// removes the folder in which it was made.
///
/// # Errors
/// [`Error::TargetExists`] if another file has that name by now. [`Error::File`].
/// [`Error::WorkerGone`] if the future was dropped; there is no such file then, since the caller
/// counts on that.
pub(crate) async fn publish(
    open: impl Send + 'static,
    unfinished: Arc<TempDir>,
    file: PathBuf,
    target: PathBuf,
) -> Result<()> {
    let caller = Caller::new();
    let waits = caller.waits();
    background::unblock(move || {
        drop(open);
        filesystem::sync_file(&file).map_err(cannot_write)?;
        if !waits() {
            return Err(Error::WorkerGone);
        }
        refuse_taken(&target)?;
        filesystem::rename_new(&file, &target).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Error::TargetExists { path: target.clone() },
            _ => cannot_write(filesystem::named(&target, error)),
        })?;
        drop(unfinished);
        filesystem::warn_of_root(&target);
        let synced =
            filesystem::sync_folder_of(&target).map_err(|error| cannot_write(filesystem::complete(&target, error)));
        if !waits() {
            fs::remove_file(&target).map_err(cannot_write)?;
            return Err(Error::WorkerGone);
        }
        synced
    })
    .await
}

/// The error for a database that exists but cannot be examined.
pub(super) fn cannot_open(source: io::Error) -> Error {
    Error::File { what: "database", source }
}

/// The error for a new database that cannot be written.
pub(crate) fn cannot_write(source: io::Error) -> Error {
    Error::File { what: "target", source }
}

pub(super) fn warn_if_readable_by_others(path: &Path) {
    #[cfg(unix)]
    if let Ok(metadata) = fs::metadata(path)
        && std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0
    {
        log::warn!(
            "other users of this machine may open the database file {}: change its mode to 600",
            printable_path(path)
        );
    }
}

/// The path of a database's write-ahead log.
pub(super) fn log_path(database: &Path) -> PathBuf {
    with_suffix(database, "-wal")
}

/// The path with `ending` appended to the file's name.
pub(crate) fn with_suffix(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

/// The identities of the files that the writing connection has open. They reveal when the names
/// lead elsewhere.
pub(super) struct Files {
    #[cfg(unix)]
    identities: Vec<(PathBuf, (u64, u64))>,
}

impl Files {
    pub(super) fn look(path: &Path) -> io::Result<Self> {
        #[cfg(unix)]
        {
            let log = log_path(path);
            let mut identities = vec![(path.to_owned(), identity(path)?)];
            match identity(&log) {
                // Only a database that is opened for reading may have no log.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                found => identities.push((log, found?)),
            }
            Ok(Self { identities })
        }
        #[cfg(not(unix))]
        {
            let _ = path;
            Ok(Self {})
        }
    }

    /// # Errors
    /// [`Error::FileMoved`] if one of the files was moved, deleted or replaced. Only Unix allows
    /// that for open files.
    pub(super) fn check(&self) -> Result<()> {
        #[cfg(unix)]
        for (path, expected) in &self.identities {
            if identity(path).ok().as_ref() != Some(expected) {
                return Err(Error::FileMoved);
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
pub(super) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
