//! Copies of the database, and its upkeep.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::NamedTempFile;

use super::backoff::{BusyBackoff, contended, retry_busy};
use super::connection::{Statements, damaged, permitted, with_attachment};
use super::database::Database;
use super::files::{COMPANIONS, explained, refuse_taken, with_suffix};
use super::location::Location;
use super::schema;
use super::store::SqliteStore;
use super::tables::TABLES;
use super::wal::CheckpointMode;
use super::write_plan::WritePlan;
use crate::background::{self, Caller};
use crate::clock;
use crate::error::{Error, Result, SqliteProblem};
use crate::filesystem::{self, folder_of};
use crate::printable::printable;
use crate::private;

impl SqliteStore {
    /// Copies the whole database, all accounts, to a new file at `path`, while it is in use: the copy holds what was
    /// committed at one moment, and nothing of what was deleted before. It appears under its name when it is complete and
    /// on the disk, has mode 0600, and is itself a database that can be opened.
    ///
    /// What is encrypted in the store is encrypted in the copy.
    ///
    /// # Errors
    /// [`Error::TargetExists`] if there is such a file already, or a log of another one beside its name; [`Error::File`] if none
    /// can be created; [`Error::Sqlite`] if the database cannot be
    /// read or the disk is full, [`Error::SchemaAltered`], and
    /// [`Error::RowsMissed`] if a table and its index do not have the same rows; nothing is left behind then. [`Error::FileMoved`] if another file took the database's
    /// place, [`Error::InvalidInput`] if the store is in memory. A process that is killed meanwhile leaves a file
    /// `.wastore-….partial` behind.
    pub async fn backup(&self, path: impl AsRef<Path>) -> Result<()> {
        if self.path().is_none() {
            return Err(NO_FILE);
        }
        refuse_taken(path.as_ref())?;
        self.copy_to(path.as_ref().to_owned(), None, Lasting::Yes).await
    }

    /// The same to a place where the copy does not stay.
    pub(super) async fn copy_unfinished(&self, path: &Path) -> Result<()> {
        self.copy_to(path.to_owned(), None, Lasting::No).await
    }

    /// Copies the database, and writes a file that goes with the copy. One job, which ends without a copy when nobody waits any
    /// more. The file comes first, so that there is no copy that lacks it.
    async fn copy_to(&self, path: PathBuf, beside: Option<(PathBuf, Vec<u8>)>, lasting: Lasting) -> Result<()> {
        let (database, mut backoff) = (self.database.clone(), BusyBackoff::new(self.database.wal.config.busy_timeout));
        let caller = Caller::new();
        let waits = caller.waits();
        background::unblock(move || {
            if let Some((path, content)) = &beside {
                let mut file = unfinished(path)?;
                file.write_all(content).map_err(cannot_write)?;
                finish(file, path, lasting)?;
            }
            let copy = || copy(&database, &path, lasting, &waits).map_err(|error| explained(&path, error));
            retry_busy(&mut backoff, copy).inspect_err(|_| {
                if let Some((path, _)) = &beside {
                    fs::remove_file(path).ok();
                }
            })
        })
        .await
    }

    /// Looks for damage in the whole database, and returns what was found, in SQLite's words; nothing if it is sound.
    /// Takes as long as reading the file.
    ///
    /// # Errors
    /// [`Error::Sqlite`] if the file cannot be read.
    pub async fn integrity_check(&self) -> Result<Vec<String>> {
        self.check_database(false).await
    }

    /// # Errors
    /// [`Error::Sqlite`] as damaged.
    pub(crate) async fn refuse_damage(&self) -> Result<()> {
        if self.check_database(true).await?.is_empty() { Ok(()) } else { Err(damaged()) }
    }

    /// The same, or without comparing indexes with their tables.
    pub(super) async fn check_database(&self, quick: bool) -> Result<Vec<String>> {
        let sql = if quick { "PRAGMA quick_check" } else { "PRAGMA integrity_check" };
        let check = move |connection: &Connection| {
            // SQLite's words name objects of the schema, so it has to be the one that we know.
            let snapshot = connection.unchecked_transaction()?;
            schema::check(&snapshot, schema::NEWEST)?;
            permitted(|| snapshot.all(sql, (), |row| Ok(row.get_ref(0)?.as_str()?.to_owned())))
        };
        match self.database.read_long(check).await {
            // So bad that SQLite gave up in the middle.
            Err(Error::Sqlite { problem: SqliteProblem::Damaged, source }) => Ok(vec![source.to_string()]),
            found => {
                let lines = found?.into_iter().filter(|line| line != "ok");
                Ok(lines.map(|line| printable(&line).to_string()).collect())
            }
        }
    }

    /// Moves the write-ahead log into the database and empties it, so that the main file alone holds everything. Happens by
    /// itself from time to time and when the store is closed.
    ///
    /// # Errors
    /// [`Error::Sqlite`], as contended if somebody reads an older state of the database until the timeout, for example a
    /// [`backup`](Self::backup).
    pub async fn checkpoint(&self) -> Result<()> {
        self.empty_log(self.database.wal.config.busy_timeout).await
    }

    /// The same, if nobody is in the way.
    pub(crate) async fn settle(&self) {
        if let Err(error) = self.empty_log(Duration::from_millis(100)).await {
            log::debug!("the write-ahead log is not empty yet: {error}");
        }
    }

    pub(super) async fn empty_log(&self, timeout: Duration) -> Result<()> {
        let mut backoff = BusyBackoff::new(self.database.wal.config.busy_timeout.min(timeout));
        // Each attempt by itself, so that others may write while somebody still reads.
        loop {
            let database = Arc::downgrade(&self.database);
            let attempt = move |connection: &Connection| {
                database
                    .upgrade()
                    .map_or(Ok(false), |database| database.wal.checkpoint(connection, CheckpointMode::Truncate))
            };
            if self.database.write(WritePlan::MAINTENANCE, attempt).await? {
                return Ok(());
            }
            match backoff.next() {
                Some(pause) => blocking::unblock(move || thread::sleep(pause)).await,
                None => return Err(contended()),
            }
        }
    }

    /// Rewrites the whole file, so that nothing of deleted or replaced rows stays in the unused parts of pages, and empties the
    /// write-ahead log. What is deleted is overwritten at once, but pieces of rows that SQLite moved before stay behind
    /// where they were. It gives free pages back as well.
    ///
    /// Takes as long as reading and writing the file twice, and free space of about twice the file: for a copy in the folder for
    /// temporary files (`SQLITE_TMPDIR`, `TMPDIR`, `/var/tmp`), which has no name, and for the write-ahead log. Others may
    /// read meanwhile; writers wait. The disk itself may keep what was overwritten.
    ///
    /// # Errors
    /// [`Error::RowsMissed`], and [`Error::Sqlite`] as damaged, if the database has damage that a rewrite would make final: nothing
    /// was changed then. [`Error::Sqlite`] if there is no space, and as contended if another process writes, or if somebody reads an older state
    /// of the database, until the timeout: the file is as it was, or it is rewritten and only the log still holds what was
    /// there before.
    pub async fn vacuum(&self) -> Result<()> {
        self.refuse_damage().await?;
        self.rewrite().await
    }

    /// The same for a database that was looked at.
    pub(super) async fn rewrite(&self) -> Result<()> {
        let rewrite = |connection: &Connection| {
            // SQLite copies what it finds of a damaged table.
            TABLES.iter().try_for_each(|table| table.check_whole(connection))?;
            // In memory there would be no room for the copy.
            connection.pragma_update(None, "temp_store", "FILE")?;
            let rewritten = with_attachment(connection, || Ok(permitted(|| connection.execute_batch("VACUUM"))?));
            let restored = connection.pragma_update(None, "temp_store", "MEMORY");
            // The schema has been loaded again.
            schema::check(connection, schema::NEWEST)?;
            rewritten.and(Ok(restored?))
        };
        self.database.write(WritePlan::MAINTENANCE, rewrite).await?;
        self.checkpoint().await
    }

    /// Gives free pages at the end of the file back to the file system: all, or at most so many. Deleting rows leaves free
    /// pages, which are used again by themselves; this is for after a large deletion. Returns the number of free pages left.
    ///
    /// # Errors
    /// [`Error::Sqlite`].
    pub async fn shrink(&self, pages: Option<u32>) -> Result<u32> {
        let shrink = move |connection: &Connection| {
            // Each step of the statement frees one page.
            let sql = format!("PRAGMA incremental_vacuum({})", pages.unwrap_or(0));
            if pages != Some(0) {
                let mut statement = connection.prepare(&sql)?;
                let mut rows = statement.query(())?;
                while rows.next()?.is_some() {}
            }
            Ok(connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?)
        };
        self.database.write(WritePlan::RELAXED.transaction().blocking(), shrink).await
    }

    /// See [`snapshot_db`](wacore::store::traits::DeviceStore::snapshot_db).
    pub(super) async fn snapshot(&self, name: &str, extra: Option<Vec<u8>>) -> Result<()> {
        let Some(database) = self.path() else { return Err(NO_FILE) };
        let mut time = clock::now_millis();
        let name: String = name
            .chars()
            .map(|character| if character.is_ascii_alphanumeric() || character == '-' { character } else { '_' })
            .take(64)
            .collect();
        let path_at = |time: i64, ending: &str| with_suffix(database, &format!(".snapshot-{time}-{name}{ending}"));
        while path_at(time, "").exists() || path_at(time, ".extra").exists() {
            time += 1;
        }
        let extra = extra.map(|content| (path_at(time, ".extra"), content));
        self.copy_to(path_at(time, ""), extra, Lasting::Yes).await?;
        if let Some(keep) = self.database.wal.config.snapshots_kept {
            self.prune_snapshots(keep).await?;
        }
        Ok(())
    }

    /// Deletes the oldest of the snapshots that lie beside the database, with what goes with them, but `keep`, and gives what was
    /// deleted. The client makes one at each [`snapshot_db`](wacore::store::traits::DeviceStore::snapshot_db), of the whole
    /// database, and deletes none.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be read, or a file in it cannot be deleted.
    pub async fn prune_snapshots(&self, keep: NonZeroUsize) -> Result<Vec<PathBuf>> {
        let Some(database) = self.path().map(Path::to_owned) else { return Err(NO_FILE) };
        let prune = move || {
            let prefix = format!("{}.snapshot-", database.file_name().unwrap_or_default().to_string_lossy());
            let mut found: BTreeMap<(i64, String), PathBuf> = BTreeMap::new();
            let folder = folder_of(&database);
            for entry in fs::read_dir(folder).map_err(|error| filesystem::named(folder, error))? {
                let entry = entry?;
                let name = entry.file_name();
                let rest = name.to_str().and_then(|name| name.strip_prefix(&prefix));
                if let Some((time, name)) = rest.and_then(|rest| rest.split_once('-'))
                    && let Ok(time) = time.parse()
                {
                    found.insert((time, name.to_owned()), entry.path());
                }
            }
            // What goes with a snapshot, or SQLite made beside it. Names have no dots, but may end as SQLite's do.
            let endings = || [".extra"].into_iter().chain(COMPANIONS);
            let is_own = |(time, name): &(i64, String)| {
                let whole = endings().filter_map(|ending| name.strip_suffix(ending));
                !name.contains('.') && whole.into_iter().all(|whole| !found.contains_key(&(*time, whole.to_owned())))
            };
            let snapshots: Vec<_> = found.iter().filter(|(key, _)| is_own(key)).map(|(_, path)| path).collect();
            let mut deleted = vec![];
            for old in &snapshots[..snapshots.len().saturating_sub(keep.get())] {
                // The snapshot last, so that what goes with it is found again if this is interrupted.
                for path in endings().map(|ending| with_suffix(old, ending)).chain([old.to_path_buf()]) {
                    match fs::remove_file(&path) {
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                        removed => {
                            removed.map_err(|error| filesystem::named(&path, error))?;
                            deleted.push(path);
                        }
                    }
                }
            }
            Ok(deleted)
        };
        background::unblock(prune).await.map_err(|source| Error::File { what: "old snapshot", source })
    }
}

pub(crate) const NO_FILE: Error = Error::InvalidInput { what: "a store in memory", problem: "has no file to copy" };

/// Writes a copy of the database to a new file.
fn copy(
    database: &Database,
    path: &Path,
    lasting: Lasting,
    caller_waits: &(impl Fn() -> bool + Clone + Send + 'static),
) -> Result<()> {
    let file = unfinished(path)?;
    // SQLite takes an empty file as a target; its path goes in as a parameter.
    let target = file.path().to_str().ok_or(Error::InvalidInput { what: "the path", problem: "is not valid UTF-8" })?;
    // On a connection of its own, so that no reader is missing for as long as it takes.
    let _pin = database.wal.pin();
    let connection = database.wal.connect()?;
    let waits = caller_waits.clone();
    connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || !waits()))?;
    database.check_files()?;
    let moment = connection.unchecked_transaction()?;
    schema::check(&moment, schema::NEWEST)?;
    // Of a damaged table SQLite copies what it finds.
    TABLES.iter().try_for_each(|table| table.check_whole(&moment))?;
    drop(moment);
    let copied = || Ok(permitted(|| connection.execute("VACUUM INTO ?1", (target,)))?);
    with_attachment(&connection, copied).inspect_err(|_| {
        // SQLite leaves it behind if there is no space.
        fs::remove_file(with_suffix(file.path(), "-journal")).ok();
    })?;
    database.check_files()?;
    // It may have changed after it was looked at.
    schema::check(&Location::File(file.path().to_owned()).connect()?, schema::NEWEST)?;
    if !caller_waits() {
        return Err(Error::WorkerGone);
    }
    refuse_taken(path)?;
    finish(file, path, lasting)?;
    if !caller_waits() {
        fs::remove_file(path).map_err(cannot_write)?;
        return Err(Error::WorkerGone);
    }
    Ok(())
}

/// Whether a copy has to survive a power cut.
#[derive(Clone, Copy)]
enum Lasting {
    Yes,
    /// It is on its way to its place.
    No,
}

/// How many steps of SQLite's machine go by before it is asked whether to go on.
pub(crate) const STEPS_BETWEEN_LOOKS: i32 = 10_000;

/// A file that gets its name when it is finished.
fn unfinished(path: &Path) -> Result<NamedTempFile> {
    private::unfinished_file(path).map_err(cannot_write)
}

/// Gives a file its name once its content is on the disk; never replaces another file.
fn finish(file: NamedTempFile, path: &Path, lasting: Lasting) -> Result<()> {
    let finished = match lasting {
        Lasting::Yes => private::finish(file, path),
        Lasting::No => private::name(file, path),
    };
    finished.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Error::TargetExists { path: path.to_owned() },
        _ => cannot_write(error),
    })
}

fn cannot_write(source: std::io::Error) -> Error {
    Error::File { what: "backup", source }
}
