//! The files of a database: their names, which of them may be used, and why one cannot be.

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

/// Why SQLite could not open a database, if its file system or its rights tell more than SQLite does.
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

/// The absolute path of a database that is there.
///
/// # Errors
/// [`Error::File`] if there is none, [`Error::ForeignFile`] if it is empty or too short to be one.
pub(super) fn existing(path: &Path) -> Result<PathBuf> {
    let path = fs::canonicalize(path).map_err(|error| cannot_open(filesystem::named(path, error)))?;
    schema::check_length(&path)?;
    refuse_pipes(&path).map_err(cannot_open)?;
    Ok(path)
}

/// Looks whether a database and what SQLite keeps beside it are regular files: of a pipe it would wait for the other end.
///
/// # Errors
/// Names the file that is none.
pub(crate) fn refuse_pipes(database: &Path) -> io::Result<()> {
    let companions = COMPANIONS.iter().map(|ending| with_suffix(database, ending)).filter(|path| path.exists());
    for path in [database.to_owned()].into_iter().chain(companions) {
        if !path.metadata()?.is_file() {
            return Err(private::refused(&path, "is not a regular file"));
        }
    }
    Ok(())
}

/// Looks whether a new database may have this name: SQLite would take a log beside it for its own.
///
/// # Errors
/// [`Error::TargetExists`] names what is there.
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

/// The endings of the names that SQLite gives to what it keeps beside a database.
pub(crate) const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Gives a finished database its name: closes what is open of it, waits for the disk, and removes the folder in which it was made.
///
/// # Errors
/// [`Error::TargetExists`] if another file has that name by now, [`Error::File`]. [`Error::WorkerGone`] if the future was dropped: the
/// caller has been told that there is no such file.
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

/// The error of a database that is there and cannot be looked at.
pub(super) fn cannot_open(source: io::Error) -> Error {
    Error::File { what: "database", source }
}

/// The error of a new database that cannot be written.
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

/// Where SQLite keeps the write-ahead log of a database.
pub(super) fn log_path(database: &Path) -> PathBuf {
    with_suffix(database, "-wal")
}

/// The path with something appended to the file's name.
pub(crate) fn with_suffix(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

/// The files that the writing connection has open, to notice when their names lead elsewhere.
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
                // Only of one that is read and not written.
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
    /// [`Error::FileMoved`] if one of the files was moved, deleted or replaced. Elsewhere than on Unix, open files cannot.
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
