//! Keeps backups in a folder, and deletes the oldest.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;

use super::inspect::inspect;
use crate::background;
use crate::error::{Error, Result};
use crate::filesystem;
use crate::printable::printable_path;
use crate::sqlite::SqliteStore;
use crate::sqlite::snapshot::NO_FILE;

/// The result of [`backup_to_folder`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FolderBackup {
    /// The new copy.
    pub copy: PathBuf,
    /// The old copies that were deleted.
    pub deleted: Vec<PathBuf>,
}

/// Copies the database into a folder, as [`SqliteStore::backup`] does, and keeps the newest `keep`
/// of its copies there.
///
/// The copy gets the store's name and the time in UTC, as in `wa-20260131T040000Z.db`. Its database
/// is checked before older copies are deleted. Records are not opened: see
/// [`Verify`](crate::maintenance::Verify).
///
/// These copies stay, and do not count: copies of other stores, even under the same name, because
/// their vaults differ; copies that cannot be opened; and copies whose time is in the future, from
/// a clock that was wrong.
///
/// # Errors
/// Those of [`SqliteStore::backup`] and [`SqliteStore::open_read_only`]; nothing was deleted then.
/// [`Error::File`] if an old copy cannot be deleted.
pub async fn backup_to_folder(
    store: &SqliteStore,
    folder: impl AsRef<Path>,
    keep: NonZeroUsize,
) -> Result<FolderBackup> {
    /// Another store may make a copy of the same name in the same second.
    const TRIES: u32 = 5;
    let Some(path) = store.path() else { return Err(NO_FILE) };
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = folder.as_ref().to_owned();
    let mut tries = 0;
    let copy = loop {
        let copy = folder.join(format!("{stem}-{}.db", utc_now()?));
        match store.backup(&copy).await {
            Err(Error::TargetExists { .. }) if tries < TRIES => {
                tries += 1;
                background::unblock(|| thread::sleep(Duration::from_secs(1))).await;
            }
            copied => break copied.map(|()| copy)?,
        }
    };
    let ids = vaults_in(&copy).await?;
    let mut copies = vec![];
    for path in names_in(&folder, &stem).map_err(|source| Error::File { what: "old backup", source })? {
        if path > copy {
            log::warn!("{} has a time in the future, and is not counted", printable_path(&path));
        } else if path == copy {
            copies.push(path);
        } else {
            match vaults_in(&path).await {
                Ok(others) if others.is_empty() == ids.is_empty() && others.iter().all(|id| ids.contains(id)) => {
                    copies.push(path);
                }
                Ok(_) => {}
                Err(error) => log::warn!("{} is not counted: {error}", printable_path(&path)),
            }
        }
    }
    let old = copies.len().saturating_sub(keep.get());
    copies.truncate(old);
    for path in &copies {
        fs::remove_file(path)
            .map_err(|error| Error::File { what: "old backup", source: filesystem::named(path, error) })?;
    }
    Ok(FolderBackup { copy, deleted: copies })
}

fn utc_now() -> Result<String> {
    let time = "SELECT strftime('%Y%m%dT%H%M%SZ', 'now')";
    Ok(Connection::open_in_memory()?.query_row(time, (), |row| row.get(0))?)
}

/// The ids of the vaults in a database. Fails if its file is damaged.
async fn vaults_in(path: &Path) -> Result<Vec<[u8; 16]>> {
    let store = SqliteStore::open_read_only(path).await?;
    store.refuse_damage().await?;
    let accounts = inspect(&store).await?.accounts;
    Ok(accounts.into_iter().filter_map(|account| Some(account.header?.store_id)).collect())
}

/// The copies in a folder that are named after a store, oldest first: the time is at the same place
/// in all names.
fn names_in(folder: &Path, stem: &str) -> io::Result<Vec<PathBuf>> {
    let mut copies = vec![];
    for entry in fs::read_dir(folder).map_err(|error| filesystem::named(folder, error))? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| is_copy(name, stem)) {
            copies.push(folder.join(entry.file_name()));
        }
    }
    copies.sort();
    Ok(copies)
}

/// `true` for the names that [`backup_to_folder`] gives.
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
