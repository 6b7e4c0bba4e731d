//! One open database: opening it, reading from it and closing it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthContext, Authorization};

use super::backoff::{BusyBackoff, contended, retry_busy};
use super::connection::{Role, configure};
use super::coop;
use super::files::{
    Files, NO_LOCKS, cannot_open, existing, explained, is_absent, log_path, refuse_companions,
    warn_if_readable_by_others,
};
use super::keeper::Kept;
use super::lease::{Lease, Leases};
use super::location::Location;
use super::open_files::{self, OpenFile};
use super::options::SqliteOptions;
use super::read_only::ReadOnlyFile;
use super::readers::Readers;
use super::schema;
use super::transaction::{in_transaction, rollback};
use super::wal::{CheckpointMode, Wal};
use super::write_plan::WritePlan;
use super::writer::Writer;
use crate::background::{self};
use crate::ended;
use crate::error::{Error, ForeignFile, Result, SqliteProblem};
use crate::filesystem::{self, folder_of};
use crate::private;
use crate::sync::IgnorePoison;

/// The state that the accounts of one database share.
pub(super) struct Database {
    // Dropped before the writer, whose settings are right for the checkpoint at the last close.
    pub(super) readers: Arc<Readers>,
    pub(super) writer: Arc<Writer>,
    pub(super) wal: Arc<Wal>,
    pub(super) leases: Arc<Leases>,
    kept: Kept,
    /// How often each account was deleted, for the accounts that were opened.
    deletions: Mutex<HashMap<i32, Arc<AtomicU64>>>,
}

impl Database {
    /// Opens a database. Creates it if it is absent, and migrates an older schema. Blocks its
    /// thread.
    pub(super) fn open_file(path: &Path, config: SqliteOptions) -> Result<Arc<Self>> {
        check_library()?;
        if !config.must_exist && is_absent(path) {
            create(path, &config)?;
        }
        let path = existing(path)?;
        warn_if_readable_by_others(&path);
        open_files::refuse_second_name(&path)?;
        let open = OpenFile::of(&path)?;
        let location = Location::File(path.clone());
        let prepared = prepare_with_retries(&path, &config, || prepare(&location, &path, &config));
        let connection = prepared.map_err(|error| explained(&path, error))?;
        let files = Files::look(&path).map_err(cannot_open)?;
        Ok(Arc::new(Self::new(config, location, connection, Some((files, open)))?))
    }

    /// Opens a database without changing anything. Blocks its thread.
    pub(super) fn open_read_only(path: &Path, config: SqliteOptions) -> Result<Arc<Self>> {
        check_library()?;
        let path = existing(path)?;
        warn_if_readable_by_others(&path);
        let open_file = OpenFile::of(&path)?;
        let open = |location: &Location| {
            let connection = location.connect()?;
            let version = schema::identify(&connection, &path)?;
            if version < schema::OLDEST {
                return Err(Error::ForeignFile { path: path.clone(), found: ForeignFile::Empty });
            }
            schema::check(&connection, version)?;
            configure(&connection, &config, Role::Reader)?;
            Ok(connection)
        };
        let mut location = Location::ReadOnly(ReadOnlyFile::look(path.clone())?);
        let connection = match prepare_with_retries(&path, &config, || open(&location)) {
            // For example on read-only media, with a log beside the database.
            Err(Error::Sqlite { problem: SqliteProblem::CannotOpen | SqliteProblem::ReadOnly, .. }) => {
                location = Location::ReadOnly(ReadOnlyFile::copy(path.clone())?);
                open(&location)?
            }
            opened => opened?,
        };
        let files = Files::look(&path).map_err(cannot_open)?;
        Ok(Arc::new(Self::new(config, location, connection, Some((files, open_file)))?))
    }

    /// Creates a database in memory.
    pub(super) fn in_memory(config: SqliteOptions) -> Result<Arc<Self>> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let location = Location::Memory { uri: format!("file:/wastore-{number}?vfs=memdb") };
        let mut connection = location.connect()?;
        configure(&connection, &config, Role::Writer)?;
        schema::migrate(&mut connection, Path::new(":memory:"))?;
        schema::check(&connection, schema::NEWEST)?;
        Ok(Arc::new(Self::new(config, location, connection, None)?))
    }

    fn new(
        config: SqliteOptions,
        location: Location,
        connection: Connection,
        files: Option<(Files, OpenFile)>,
    ) -> Result<Self> {
        let leases = Arc::new(Leases::new(&config, &location)?);
        let wal = Arc::new(Wal::new(config, location, files));
        let writer = Arc::new(Writer::new(connection, wal.clone()));
        let readers = Arc::new(Readers::new(writer.clone(), wal.clone()));
        Ok(Self { readers, writer, wal, leases, kept: Kept::default(), deletions: Mutex::default() })
    }

    /// Looks after the held leases from now on.
    pub(super) fn keep(&self) {
        self.kept.begin(&self.leases, &self.writer);
    }

    /// The life of an account that begins now.
    pub(super) fn life(&self, account: i32) -> Life {
        let mut all = self.deletions.lock().ignore_poison();
        let deletions = all.entry(account).or_default().clone();
        Life { before: deletions.load(Ordering::SeqCst), deletions }
    }

    /// Closes every connection, except those of walks and backups that are running. Later calls
    /// fail.
    ///
    /// # Errors
    /// Contention if a call does not end before the timeout. [`Error::StoreInUse`] if the log is
    /// not empty afterwards. The errors of emptying the log.
    pub(super) async fn close(self: &Arc<Self>) -> Result<()> {
        self.wal.close();
        self.writer.refuse_calls();
        ended::note();
        let database = self.clone();
        background::unblock(move || database.close_connections()).await
    }

    /// Blocks its thread.
    fn close_connections(self: &Arc<Self>) -> Result<()> {
        let mut backoff = BusyBackoff::new(self.wal.config.busy_timeout);
        let _no_checkpoint = loop {
            match self.wal.begin_checkpoint() {
                Some(only) => break only,
                None => thread::sleep(backoff.next().ok_or_else(contended)?),
            }
        };
        if !self.readers.close_for_good(&mut backoff) {
            return Err(contended());
        }
        let Location::File(path) = &self.wal.location else {
            drop(self.writer.take_connection(&mut backoff)?);
            ended::note();
            return Ok(());
        };
        let emptied = match self.writer.take_connection(&mut backoff)? {
            // Closing the connection would also empty the log, but not report a failure.
            Some(writer) => {
                self.release(&writer, &mut backoff);
                match self.wal.checkpoint(&writer, CheckpointMode::Truncate) {
                    Err(error) if error.is_contention() => Ok(false),
                    emptied => emptied,
                }
            }
            None => Ok(true),
        };
        // Caches must not return what was read while the running calls ended either.
        ended::note();
        self.wal.unpin();
        emptied?;
        // Another connection has the file open, and the log holds commits that the file lacks.
        let is_left = log_path(path).metadata().is_ok_and(|log| log.len() > 0);
        if is_left { Err(Error::StoreInUse) } else { Ok(()) }
    }

    /// Gives the leases back. Another store waits for the rest of their time if that fails.
    fn release(&self, writer: &Connection, backoff: &mut BusyBackoff) {
        self.kept.end();
        if !self.leases.are_held() || self.check_files().is_err() {
            return;
        }
        let release = || in_transaction(writer, None, &mut |connection| self.leases.release(connection));
        if let Err(error) = retry_busy(backoff, release) {
            log::debug!("the leases were not given back: {error}");
        }
    }

    /// The path of the database file, or `None` in memory.
    pub(super) fn path(&self) -> Option<&Path> {
        self.wal.location.path()
    }

    /// How many connections are open. Each has its own page cache.
    pub(super) fn open_connections(&self) -> usize {
        1 + self.readers.open()
    }

    /// Runs a short query on the caller's thread.
    ///
    /// # Errors
    /// The errors of `query`. Contention only after the timeout.
    pub(super) async fn read<T>(&self, mut query: impl FnMut(&Connection) -> Result<T> + Send) -> Result<T> {
        coop::charge(coop::READ);
        if coop::over_budget() {
            coop::yield_to_runtime().await;
        }
        let mut backoff = None;
        loop {
            let result = match self.writer.read(&mut query) {
                Some(result) => result,
                // Opening a reader can meet contention as well.
                None => {
                    self.readers.reader().await.and_then(|reader| reader.run(|c| self.wal.run_checked(c, || query(c))))
                }
            };
            match result {
                Err(error) if error.is_contention() => {
                    match backoff.get_or_insert_with(|| self.wal.backoff_of_readers()).next() {
                        Some(pause) => blocking::unblock(move || thread::sleep(pause)).await,
                        None => return Err(error),
                    }
                }
                result => return result,
            }
        }
    }

    /// Opens a connection that sees the database as it is now, for as long as it is open. Blocks
    /// its thread.
    ///
    /// # Errors
    /// The errors of opening a connection.
    pub(super) fn open_snapshot(&self) -> Result<Connection> {
        let connection = self.wal.connect()?;
        configure(&connection, &self.wal.config, Role::Reader)?;
        self.wal.check_files()?;
        connection.execute_batch("BEGIN")?;
        // The first query of the transaction fixes the moment.
        self.wal.check_schema(&connection)?;
        Ok(connection)
    }

    /// Checks that only this store has the database open at this moment. Calls wait while it
    /// checks.
    ///
    /// # Errors
    /// [`Error::StoreInUse`] if another connection has it open for five seconds, or for the timeout
    /// if that is shorter.
    pub(super) async fn refuse_others(self: &Arc<Self>) -> Result<()> {
        if self.path().is_none() {
            return Ok(());
        }
        let mut backoff = BusyBackoff::new(self.wal.config.busy_timeout.min(Duration::from_secs(5)));
        // Each attempt is a call of its own, so that calls and checkpoints run in between.
        loop {
            let database = Arc::downgrade(self);
            let look = move |writer: &Connection| database.upgrade().map_or(Ok(true), |it| it.is_alone(writer));
            if self.write(WritePlan::MAINTENANCE, look).await? {
                return Ok(());
            }
            match backoff.next() {
                Some(pause) => blocking::unblock(move || thread::sleep(pause)).await,
                None => return Err(Error::StoreInUse),
            }
        }
    }

    fn is_alone(&self, writer: &Connection) -> Result<bool> {
        Ok(self.exclusively(writer, Duration::from_millis(100), |_| Ok(()))?.is_some())
    }

    /// Runs an operation in a transaction, during which no other connection can open the file.
    /// `None` if another one has it open, also for the time that it is waited for.
    ///
    /// Every open connection holds a shared lock on the file, so an exclusive lock succeeds only
    /// for the last one (<https://www.sqlite.org/wal.html>, section 8).
    pub(super) fn exclusively<T>(
        &self,
        writer: &Connection,
        patience: Duration,
        run: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<Option<T>> {
        let Some(_no_checkpoint) = self.wal.begin_checkpoint() else { return Ok(None) };
        let mut backoff = BusyBackoff::new(patience);
        let Some(_closed) = self.readers.close(&mut backoff) else { return Ok(None) };
        let set = |mode| writer.pragma_update_and_check(None, "locking_mode", mode, |_| Ok(()));
        set("EXCLUSIVE")?;
        let begun = retry_busy(&mut backoff, || Ok(writer.execute_batch("BEGIN IMMEDIATE")?));
        // The lock ends with the transaction.
        set("NORMAL")?;
        match begun {
            Ok(()) => {
                let done = run(writer).and_then(|done| Ok(writer.execute_batch("COMMIT").map(|()| done)?));
                done.inspect_err(|_| rollback(writer)).map(Some)
            }
            Err(error) if error.is_contention() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Runs a call that writes no records; see [`Writer::write`].
    pub(super) async fn write<T, F>(&self, plan: WritePlan, operation: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        self.writer.write(plan, None, operation).await
    }

    /// Runs a call that writes records of an account, under its lease. Acquires the lease before,
    /// if it is not held.
    ///
    /// # Errors
    /// Those of [`Database::acquire`] and [`Writer::write`].
    pub(super) async fn write_records<T, F>(
        self: &Arc<Self>,
        plan: WritePlan,
        lease: &Arc<Lease>,
        operation: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        if !lease.is_ready()? {
            self.acquire(lease).await?;
        }
        self.writer.write(plan, lease.needed(), operation).await
    }

    /// Runs a query that may return many rows; see [`Readers::run_long`].
    pub(super) async fn read_long<T, F>(&self, query: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        self.readers.run_long(query).await
    }

    /// # Errors
    /// Those of [`Wal::check_files`].
    pub(super) fn check_files(&self) -> Result<()> {
        self.wal.check_files()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.kept.end();
        if self.leases.are_held() && self.check_files().is_ok() {
            let leases = self.leases.clone();
            self.writer.run_soon(WritePlan::RELAXED.transaction(), move |connection| leases.release(connection));
        }
    }
}

/// The life of an account in this process. It ends when the account is deleted.
#[derive(Clone)]
pub(super) struct Life {
    deletions: Arc<AtomicU64>,
    before: u64,
}

impl Life {
    /// # Errors
    /// [`Error::AccountDeleted`] once the life has ended.
    pub(super) fn check(&self) -> Result<()> {
        if self.deletions.load(Ordering::SeqCst) == self.before { Ok(()) } else { Err(Error::AccountDeleted) }
    }

    pub(super) fn end(&self) {
        self.deletions.fetch_add(1, Ordering::SeqCst);
        ended::note();
    }
}

/// The oldest version with `STRICT` tables.
const OLDEST_SQLITE: i32 = 3_037_000;

/// A page of 8 KiB fits five sessions of 1.5 KB; a page of 4 KiB fits only two. A commit writes
/// whole pages.
const PAGE_BYTES: i64 = 8192;

/// Opens the writing connection.
fn prepare(location: &Location, path: &Path, config: &SqliteOptions) -> Result<Connection> {
    let mut connection = location.connect()?;
    // If the database turns out to be foreign or altered, closing it must not fold its write-ahead
    // log into it. An empty log is one of ours, and closing removes it.
    let has_log = fs::metadata(log_path(path)).is_ok_and(|log| log.len() > 0);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_log)?;
    let version = schema::identify(&connection, path)?;
    if version == 0 && path.metadata().is_ok_and(|metadata| metadata.len() > 0) {
        // A database without tables that no program claims.
        return Err(Error::ForeignFile { path: path.to_owned(), found: ForeignFile::Empty });
    }
    if version > 0 {
        schema::check(&connection, version)?;
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    if version == 0 {
        // These can be set only before the first table exists.
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    configure(&connection, config, Role::Writer)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(Error::InvalidInput {
            what: "the file system",
            problem: "has no shared memory for SQLite's write-ahead log: use a local disk",
        });
    }
    let older = version < schema::NEWEST;
    if older {
        connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
    }
    schema::migrate(&mut connection, path)?;
    if older {
        schema::check(&connection, schema::NEWEST)?;
    }
    Ok(connection)
}

/// # Errors
/// [`Error::InvalidInput`] if the linked SQLite is too old.
fn check_library() -> Result<()> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(Error::InvalidInput { what: "the linked SQLite library", problem: "is older than 3.37" });
    }
    Ok(())
}

/// Retries while another process is in the way, or while it closes the database and deletes the
/// write-ahead log.
fn prepare_with_retries<T>(path: &Path, config: &SqliteOptions, mut prepare: impl FnMut() -> Result<T>) -> Result<T> {
    let mut looked = false;
    let mut prepare = || {
        prepare().map_err(|error| {
            // On a file system without locks, waiting for one does not help.
            let first = error.is_contention() && !std::mem::replace(&mut looked, true);
            if first && filesystem::has_no_locks(folder_of(path)) { NO_LOCKS } else { error }
        })
    };
    let mut backoff = BusyBackoff::new(config.busy_timeout);
    let mut gone = BusyBackoff::new(config.busy_timeout.min(Duration::from_millis(500)));
    loop {
        match retry_busy(&mut backoff, &mut prepare) {
            Err(error @ Error::Sqlite { problem: SqliteProblem::CannotOpen, .. }) => match gone.next() {
                Some(pause) => thread::sleep(pause),
                None => return Err(error),
            },
            prepared => return prepared,
        }
    }
}

/// Creates a database, unless another one gets the name first. The file appears with its complete
/// schema, so that an empty file is never a new store.
///
/// # Errors
/// [`Error::TargetExists`] if a log lies beside the name. [`Error::InvalidInput`] if the folder
/// does not exist. [`Error::File`].
fn create(path: &Path, config: &SqliteOptions) -> Result<()> {
    let cannot_create = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => {
            Error::InvalidInput { what: "the database path", problem: "is in a folder that does not exist" }
        }
        _ => Error::File { what: "database", source },
    };
    refuse_companions(path)?;
    let folder = private::unfinished_folder(path, ".wastore-init-").map_err(cannot_create)?;
    let file = folder.path().join("store.db");
    drop(private::create(&file).map_err(cannot_create)?);
    // Closing the connection empties the log.
    drop(prepare(&Location::File(file.clone()), &file, config).map_err(|error| explained(&file, error))?);
    let is_finished = config.unfinished.is_none();
    if is_finished {
        filesystem::sync_file(&file).map_err(cannot_create)?;
    }
    match filesystem::rename_new(&file, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        named => named.map_err(|error| cannot_create(filesystem::named(path, error)))?,
    }
    if !is_finished {
        return Ok(());
    }
    filesystem::warn_of_root(path);
    filesystem::sync_folder_of(path).map_err(|error| filesystem::complete(path, error)).map_err(cannot_create)
}
