//! Putting a backup in the place of a store, and backups that are kept in a folder.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;

use super::SqliteStore;
use super::database::{COMPANIONS, beside, cannot_open, cannot_write, publish};
use super::open_files;
use crate::background;
use crate::error::{Error, Result};
use crate::filesystem::{self, folder_of};
use crate::private;

impl SqliteStore {
    /// Puts a backup in the place of the store at `target`, all accounts. The store that is there, and what SQLite keeps beside
    /// it, is not deleted, but renamed: the log of one database must not lie beside another one. Gives its new name, if there
    /// was one.
    ///
    /// The backup is only read, and compared with what this crate makes, before anything is touched. If the process is killed,
    /// run it again. With a freshness anchor the store is refused afterwards until
    /// [`accept_rollback`](Self::accept_rollback).
    ///
    /// # Errors
    /// Those of [`SqliteStore::open_read_only`] about the backup, and [`Error::Sqlite`] as damaged; [`Error::NoVault`] if it has no
    /// account. [`Error::NotAlone`] if this or another process has the store open. [`Error::File`].
    pub async fn restore(backup: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<Option<PathBuf>> {
        let target = target.as_ref().to_owned();
        let backup = Self::open_read_only(backup).await?;
        backup.refuse_damage().await?;
        if backup.accounts_in_use().await?.is_empty() {
            return Err(Error::NoVault);
        }
        // A link stays one.
        let target = fs::canonicalize(&target).unwrap_or(target);
        refuse_in_use(&target)?;
        let folder = Arc::new(private::unfinished_folder(&target, ".wastore-restore-").map_err(cannot_write)?);
        let file = folder.path().join("store.db");
        backup.backup(&file).await?;
        let to = target.clone();
        let aside = background::unblock(move || {
            refuse_in_use(&to)?;
            put_aside(&to).map_err(cannot_write)
        })
        .await?;
        let published = publish(backup, folder, file, target.clone()).await;
        if let (Err(_), Some(aside)) = (&published, aside.clone()) {
            // As it was before. If even that fails, the error is the first one, and running it again goes on.
            background::unblock(move || move_all(&aside, &target)).await.ok();
        }
        published.map(|()| aside)
    }

    /// Copies the database into a folder, as [`backup`](Self::backup) does, under its name and the time in UTC, as in
    /// `wa-20260131T040000Z.db`, looks at the copy, and then deletes the oldest of such copies but `keep`. Gives the copy, and
    /// those that were deleted.
    ///
    /// # Errors
    /// As [`backup`](Self::backup) and [`SqliteStore::open_read_only`]; nothing was deleted then. [`Error::File`] if an old copy
    /// cannot be deleted.
    pub async fn backup_to_folder(
        &self,
        folder: impl AsRef<Path>,
        keep: NonZeroUsize,
    ) -> Result<(PathBuf, Vec<PathBuf>)> {
        let Some(path) = self.path() else {
            return Err(Error::InvalidInput { what: "a store in memory", problem: "has no file to copy" });
        };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let folder = folder.as_ref().to_owned();
        let time: String =
            Connection::open_in_memory()?
                .query_row("SELECT strftime('%Y%m%dT%H%M%SZ', 'now')", (), |row| row.get(0))?;
        let copy = folder.join(format!("{stem}-{time}.db"));
        self.backup(&copy).await?;
        Self::open_read_only(&copy).await?.refuse_damage().await?;
        let prune = move || {
            let mut copies = vec![];
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_name().to_str().is_some_and(|name| is_copy(name, &stem)) {
                    copies.push(entry.path());
                }
            }
            // The time is at the same place in all of them.
            copies.sort();
            let old = copies.len().saturating_sub(keep.get());
            copies.truncate(old);
            copies.iter().try_for_each(fs::remove_file)?;
            Ok(copies)
        };
        let removed = background::unblock(prune).await.map_err(|source| Error::File { what: "old backup", source })?;
        Ok((copy, removed))
    }
}

/// `true` for the names that [`SqliteStore::backup_to_folder`] gives.
fn is_copy(name: &str, stem: &str) -> bool {
    let time =
        name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('-')).and_then(|rest| rest.strip_suffix(".db"));
    time.is_some_and(|time| {
        time.len() == "20260131T040000Z".len()
            && time.bytes().enumerate().all(|(place, byte)| match place {
                8 => byte == b'T',
                15 => byte == b'Z',
                _ => byte.is_ascii_digit(),
            })
    })
}

/// # Errors
/// [`Error::NotAlone`] if this or another process has the database open, [`Error::File`].
fn refuse_in_use(path: &Path) -> Result<()> {
    #[cfg(unix)]
    return open_files::unless_open(path, || {
        use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};
        let file = match fs::OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(|error| cannot_open(filesystem::named(path, error)))?,
        };
        // Every connection holds a lock in this range (https://www.sqlite.org/src/file/src/os.h, PENDING_BYTE).
        let lock = Flock {
            start: 0x4000_0000,
            length: 512,
            pid: None,
            typ: FlockType::WriteLock,
            offset_type: FlockOffsetType::Set,
        };
        let held = fcntl_getlk(&file, &lock).map_err(|error| cannot_open(error.into()))?;
        if held.is_some() { Err(Error::NotAlone) } else { Ok(()) }
    });
    #[cfg(not(unix))]
    {
        let _ = path;
        Ok(())
    }
}

/// Gives a database and what lies beside it another name. The main file goes first, so that nothing that is killed in between
/// leaves one without its log where a bot would open it.
fn put_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    let has_log = COMPANIONS.iter().any(|ending| is_there(&beside(path, ending)));
    if !is_there(path) && !has_log {
        return Ok(None);
    }
    let newest = newest_aside(path)?;
    // A log alone was left by a restoration that was interrupted, and belongs to what that has moved last.
    let number = if is_there(path) { newest + 1 } else { newest.max(1) };
    let aside = beside(path, &format!("{ASIDE}{number}"));
    move_all(path, &aside)?;
    Ok(Some(aside))
}

/// Renames a database and what lies beside it, and replaces nothing.
fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    for ending in [""].into_iter().chain(COMPANIONS) {
        match filesystem::rename_new(&beside(from, ending), &beside(to, ending)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
    }
    filesystem::sync_folder_of(from)
}

/// What follows the name of a store that made place for a backup, before a number.
const ASIDE: &str = ".before-restore-";

/// The highest number of such a store; 0 without one.
fn newest_aside(path: &Path) -> io::Result<u64> {
    let prefix = format!("{}{ASIDE}", path.file_name().unwrap_or_default().to_string_lossy());
    let mut newest = 0;
    for entry in fs::read_dir(folder_of(path))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(&prefix)).map(|rest| {
            COMPANIONS.iter().find_map(|ending| rest.strip_suffix(ending)).unwrap_or(rest).parse().unwrap_or(0)
        });
        newest = newest.max(number.unwrap_or(0));
    }
    Ok(newest)
}
