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
    /// Copies the whole database, with all accounts, to a new file at `path`. The store may be in
    /// use.
    ///
    /// The copy holds the commits up to one moment, and no remains of rows that were deleted
    /// before. It appears under its name when it is complete and on the disk, and has mode 0600. It
    /// is itself a database that can be opened. Encrypted records stay encrypted.
    ///
    /// # Errors
    /// * [`Error::TargetExists`] if the file exists, or a log of another database lies beside its
    ///   name;
    /// * [`Error::File`] if no file can be created;
    /// * [`Error::Sqlite`] if the database cannot be read or the disk is full;
    /// * [`Error::SchemaAltered`];
    /// * [`Error::RowsMissed`] if a table and its index do not have the same rows;
    /// * [`Error::FileMoved`] if another file took the database's place;
    /// * [`Error::InvalidInput`] if the store is in memory.
    ///
    /// The first five leave nothing behind. A process that is killed while it copies leaves a file
    /// `.wastore-….partial` behind.
    pub async fn backup(&self, path: impl AsRef<Path>) -> Result<()> {
        if self.path().is_none() {
            return Err(NO_FILE);
        }
        refuse_taken(path.as_ref())?;
        self.copy_to(path.as_ref().to_owned(), None, Lasting::Yes).await
    }

    /// Copies the database to a place where the copy does not stay.
    pub(super) async fn copy_unfinished(&self, path: &Path) -> Result<()> {
        self.copy_to(path.to_owned(), None, Lasting::No).await
    }

    /// Copies the database, and writes a file that goes with the copy. This is one job, which ends
    /// without a copy if the caller gives up. The extra file comes first, so that no copy lacks it.
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

    /// Checks the whole database for damage. Returns the problems in SQLite's words; none if it is
    /// sound. Takes as long as reading the file.
    ///
    /// # Errors
    /// [`Error::Sqlite`] if the file cannot be read.
    pub async fn integrity_check(&self) -> Result<Vec<String>> {
        self.check_database(false).await
    }

    /// # Errors
    /// [`Error::Sqlite`] if the database is damaged.
    pub(crate) async fn refuse_damage(&self) -> Result<()> {
        if self.check_database(true).await?.is_empty() { Ok(()) } else { Err(damaged()) }
    }

    /// Does the same. `quick` skips the comparison of indexes with their tables.
    pub(super) async fn check_database(&self, quick: bool) -> Result<Vec<String>> {
        let sql = if quick { "PRAGMA quick_check" } else { "PRAGMA integrity_check" };
        let wal = self.database.wal.clone();
        let check = move |connection: &Connection| {
            // SQLite's words name objects of the schema, so the schema must be the one that we
            // know.
            let snapshot = connection.unchecked_transaction()?;
            wal.check_schema(&snapshot)?;
            permitted(|| snapshot.all(sql, (), |row| Ok(row.get_ref(0)?.as_str()?.to_owned())))
        };
        match self.database.read_long(check).await {
            // The damage is so bad that SQLite stopped in the middle.
            Err(Error::Sqlite { problem: SqliteProblem::Damaged, source }) => Ok(vec![source.to_string()]),
            found => {
                let lines = found?.into_iter().filter(|line| line != "ok");
                Ok(lines.map(|line| printable(&line).to_string()).collect())
            }
        }
    }

    /// Moves the write-ahead log into the database and empties it, so that the main file alone
    /// holds everything. The store also does this by itself from time to time, and when it is
    /// closed.
    ///
    /// # Errors
    /// [`Error::Sqlite`]. It is contention if a reader of an older state of the database, for
    /// example a [`backup`](Self::backup), does not end before the timeout.
    pub async fn checkpoint(&self) -> Result<()> {
        self.empty_log(self.database.wal.config.busy_timeout).await
    }

    /// Does the same if nothing is in the way.
    pub(crate) async fn settle(&self) {
        if let Err(error) = self.empty_log(Duration::from_millis(100)).await {
            log::debug!("the write-ahead log is not empty yet: {error}");
        }
    }

    pub(super) async fn empty_log(&self, timeout: Duration) -> Result<()> {
        let mut backoff = BusyBackoff::new(self.database.wal.config.busy_timeout.min(timeout));
        // Each attempt is a call of its own, so that other calls may write while a reader is in the
        // way.
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

    /// Rewrites the whole file, so that no remains of deleted or replaced rows stay in the unused
    /// parts of pages, and empties the write-ahead log. Deleted rows are overwritten at once, but
    /// pieces of rows that SQLite moved earlier stay where they were. It also returns free pages to
    /// the file system.
    ///
    /// Takes as long as reading and writing the file twice. Needs free space of about twice the
    /// file: for the write-ahead log, and for an unnamed copy in the folder for temporary files
    /// (`SQLITE_TMPDIR`, `TMPDIR`, `/var/tmp`). Other calls may read while it runs; writers wait.
    /// The disk itself may keep overwritten data.
    ///
    /// # Errors
    /// [`Error::RowsMissed`], and [`Error::Sqlite`] as damaged, if the database has damage that a
    /// rewrite would make final; nothing is changed then.
    ///
    /// [`Error::Sqlite`] if there is no space. As contended if until the timeout another process
    /// writes, or a reader uses an older state of the database. Then the file is either unchanged,
    /// or it is rewritten and only the log still holds the old content.
    pub async fn vacuum(&self) -> Result<()> {
        self.refuse_damage().await?;
        self.rewrite().await
    }

    /// Does the same for a database that was checked.
    pub(super) async fn rewrite(&self) -> Result<()> {
        let rewrite = |connection: &Connection| {
            // SQLite copies only the rows that it finds of a damaged table.
            TABLES.iter().try_for_each(|table| table.check_whole(connection))?;
            // Memory may not have room for the copy.
            connection.pragma_update(None, "temp_store", "FILE")?;
            let rewritten = with_attachment(connection, || Ok(permitted(|| connection.execute_batch("VACUUM"))?));
            let restored = connection.pragma_update(None, "temp_store", "MEMORY");
            // VACUUM makes SQLite reload the schema.
            schema::check(connection, schema::NEWEST)?;
            rewritten.and(Ok(restored?))
        };
        self.database.write(WritePlan::MAINTENANCE, rewrite).await?;
        self.checkpoint().await
    }

    /// Returns free pages at the end of the file to the file system: all of them, or at most
    /// `pages`. Deleting rows leaves free pages, which later rows use again, so this is useful only
    /// after a large deletion. Returns the number of free pages left.
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

    /// Deletes the oldest snapshots beside the database, except the newest `keep`, with the files
    /// that go with them. Returns the deleted files. The client makes a snapshot of the whole
    /// database at each [`snapshot_db`](wacore::store::traits::DeviceStore::snapshot_db), and
    /// deletes none.
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
            // The files that belong to a snapshot: its extra content and SQLite's files. Snapshot
            // names have no dots, but may end like SQLite's files.
            let endings = || [".extra"].into_iter().chain(COMPANIONS);
            let is_own = |(time, name): &(i64, String)| {
                let whole = endings().filter_map(|ending| name.strip_suffix(ending));
                !name.contains('.') && whole.into_iter().all(|whole| !found.contains_key(&(*time, whole.to_owned())))
            };
            let snapshots: Vec<_> = found.iter().filter(|(key, _)| is_own(key)).map(|(_, path)| path).collect();
            let mut deleted = vec![];
            for old in &snapshots[..snapshots.len().saturating_sub(keep.get())] {
                // The snapshot goes last, so that a later call finds its other files if this one is
                // interrupted.
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
    // SQLite accepts an empty file as the target. Its path is a parameter.
    let target = file.path().to_str().ok_or(Error::InvalidInput { what: "the path", problem: "is not valid UTF-8" })?;
    // Uses its own connection, so that no reader is taken away for as long as the copy runs.
    let _pin = database.wal.pin();
    let connection = database.wal.connect()?;
    let waits = caller_waits.clone();
    connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || !waits()))?;
    database.check_files()?;
    let moment = connection.unchecked_transaction()?;
    database.wal.check_schema(&moment)?;
    // SQLite copies only the rows that it finds of a damaged table.
    TABLES.iter().try_for_each(|table| table.check_whole(&moment))?;
    drop(moment);
    let copied = || Ok(permitted(|| connection.execute("VACUUM INTO ?1", (target,)))?);
    with_attachment(&connection, copied).inspect_err(|_| {
        // SQLite leaves it behind if the disk is full.
        fs::remove_file(with_suffix(file.path(), "-journal")).ok();
    })?;
    database.check_files()?;
    // The database may have changed after the check.
    database.wal.check_schema(&Location::File(file.path().to_owned()).connect()?)?;
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

/// After this many steps of its virtual machine, SQLite asks whether to go on.
pub(crate) const STEPS_BETWEEN_LOOKS: i32 = 10_000;

/// Creates a file that gets its name when it is finished.
fn unfinished(path: &Path) -> Result<NamedTempFile> {
    private::unfinished_file(path).map_err(cannot_write)
}

/// Gives a file its name once its content is on the disk. Never replaces another file.
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
