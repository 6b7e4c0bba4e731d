//! Replaces a store with a backup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{COMPANIONS, cannot_open, cannot_write, with_suffix};
use super::open_files;
use super::store::SqliteStore;
use crate::background::{self, Caller};
use crate::error::{Error, Result};
use crate::filesystem::{self, folder_of};
use crate::private;

impl SqliteStore {
    /// Replaces the store at `target`, with all accounts, by a backup. Returns the new name of the
    /// old store, if there was one.
    ///
    /// The old store is renamed, not deleted, together with the files that SQLite keeps beside it:
    /// the log of one database must not lie beside another one. The backup is only read. Its
    /// schema and its file are checked before anything is touched.
    ///
    /// Run it again if the process was killed. With a rollback anchor, the store is refused
    /// afterwards until it was [accepted](crate::vault::OpenMode::AcceptRollback).
    ///
    /// # Errors
    /// Those of [`SqliteStore::open_read_only`] about the backup, and [`Error::Sqlite`] if the
    /// backup is damaged. [`Error::NoVault`] if it has no account. [`Error::StoreInUse`] if this or
    /// another process has the store open. [`Error::File`].
    pub async fn restore(backup: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<Option<PathBuf>> {
        let target = target.as_ref().to_owned();
        let backup = Self::open_read_only(backup).await?;
        // A link to the store stays a link.
        let target = fs::canonicalize(&target).unwrap_or(target);
        if backup.path() == Some(&*target) {
            return Err(Error::InvalidInput { what: "the backup", problem: "is the store itself: name another file" });
        }
        if target.is_dir() {
            return Err(cannot_write(private::refused(&target, "is a folder: name the file in it")));
        }
        backup.refuse_damage().await?;
        if backup.accounts_in_use().await?.is_empty() {
            return Err(Error::NoVault);
        }
        refuse_in_use(&target)?;
        let folder = private::unfinished_folder(&target, ".wastore-restore-").map_err(cannot_write)?;
        let file = folder.path().join("store.db");
        backup.copy_unfinished(&file).await?;
        let caller = Caller::new();
        let waits = caller.waits();
        let job = background::unblock(move || {
            drop(backup);
            refuse_in_use(&target)?;
            filesystem::sync_file(&file).map_err(cannot_write)?;
            if !waits() {
                return Err(Error::WorkerGone);
            }
            // From here on the job runs to its end, even if the caller is gone: a store must be in
            // place.
            let aside = put_aside(&target).map_err(cannot_write)?;
            if let Err(error) = filesystem::rename_new(&file, &target) {
                if let Some(aside) = &aside {
                    move_all(aside, &target).ok();
                }
                return Err(cannot_write(filesystem::named(&target, error)));
            }
            drop(folder);
            filesystem::warn_of_root(&target);
            let synced = filesystem::sync_folder_of(&target);
            synced.map_err(|error| cannot_write(filesystem::complete(&target, error)))?;
            Ok(aside)
        });
        job.await
    }
}

/// # Errors
/// [`Error::StoreInUse`] if this or another process has the database open, [`Error::File`].
fn refuse_in_use(path: &Path) -> Result<()> {
    #[cfg(unix)]
    return open_files::unless_open(path, || {
        use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};
        let file = match fs::OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(|error| cannot_open(filesystem::named(path, error)))?,
        };
        // Every connection holds a lock in this range (<https://www.sqlite.org/src/file/src/os.h>,
        // PENDING_BYTE).
        let lock = Flock {
            start: 0x4000_0000,
            length: 512,
            pid: None,
            typ: FlockType::WriteLock,
            offset_type: FlockOffsetType::Set,
        };
        let held = fcntl_getlk(&file, &lock).map_err(|error| cannot_open(error.into()))?;
        if held.is_some() { Err(Error::StoreInUse) } else { Ok(()) }
    });
    #[cfg(not(unix))]
    {
        let _ = path;
        Ok(())
    }
}

/// Renames a database and the files beside it.
///
/// The main file goes first: if the process is killed in between, no database without its log is
/// left where a bot would open it. A note records which log is on its way, so that the next restore
/// does not mistake another log for it.
fn put_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    let companions: Vec<_> = COMPANIONS.into_iter().filter(|ending| is_there(&with_suffix(path, ending))).collect();
    if !is_there(path) && companions.is_empty() {
        return Ok(None);
    }
    let note = with_suffix(path, NOTE);
    let next = newest_aside(path)? + 1;
    let number = match is_there(path) {
        true => next,
        false => noted(&note, path, &companions).unwrap_or(next),
    };
    let aside = with_suffix(path, &format!("{ASIDE}{number}"));
    fs::remove_file(&note).ok();
    if is_there(path) && !companions.is_empty() {
        let identities =
            companions.iter().map(|ending| format!("{ending} {}\n", identity_of(&with_suffix(path, ending))));
        let text = [format!("{number}\n")].into_iter().chain(identities).collect::<String>();
        io::Write::write_all(&mut private::create(&note)?, text.as_bytes())?;
    }
    move_all(path, &aside).inspect_err(|_| {
        fs::remove_file(&note).ok();
    })?;
    fs::remove_file(&note).ok();
    Ok(Some(aside))
}

/// The number of the store whose log was on its way when a restore was killed, if the existing log
/// is that one.
fn noted(note: &Path, path: &Path, companions: &[&str]) -> Option<u64> {
    let text = String::from_utf8(private::read(note, 1024).ok()?).ok()?;
    let (number, identities) = text.split_once('\n')?;
    let is_noted = |ending: &&str| {
        let identity = format!("{ending} {}", identity_of(&with_suffix(path, ending)));
        identities.lines().any(|line| line == identity)
    };
    if companions.iter().all(is_noted) { number.parse().ok() } else { None }
}

/// The identity of a file, which does not depend on its name.
fn identity_of(path: &Path) -> String {
    #[cfg(unix)]
    return super::files::identity(path).map(|(device, inode)| format!("{device} {inode}")).unwrap_or_default();
    #[cfg(not(unix))]
    {
        let _ = path;
        String::new()
    }
}

/// Renames a database and the files beside it, all or none, and replaces no file.
fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    let mut moved: Vec<(PathBuf, PathBuf)> = vec![];
    for ending in [""].into_iter().chain(COMPANIONS) {
        let (here, there) = (with_suffix(from, ending), with_suffix(to, ending));
        match filesystem::rename_new(&here, &there) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                moved.iter().rev().for_each(|(here, there)| drop(filesystem::rename_new(there, here)));
                return Err(filesystem::named(&there, error));
            }
            Ok(()) => moved.push((here, there)),
        }
    }
    if let Err(error) = filesystem::sync_folder_of(from) {
        log::warn!("the names of the files may not survive a power cut: {error}");
    }
    Ok(())
}

/// The suffix of the note's name, after the name of the store.
const NOTE: &str = ".before-restore-moving";
/// The suffix of the name of a replaced store, before its number.
const ASIDE: &str = ".before-restore-";

/// The highest number of a replaced store; 0 if there is none.
fn newest_aside(path: &Path) -> io::Result<u64> {
    let prefix = format!("{}{ASIDE}", path.file_name().unwrap_or_default().to_string_lossy());
    let mut newest = 0;
    let folder = folder_of(path);
    for entry in fs::read_dir(folder).map_err(|error| filesystem::named(folder, error))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(&prefix)).map(|rest| {
            COMPANIONS.iter().find_map(|ending| rest.strip_suffix(ending)).unwrap_or(rest).parse().unwrap_or(0)
        });
        newest = newest.max(number.unwrap_or(0));
    }
    Ok(newest)
}
