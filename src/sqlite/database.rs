//! One open database: its writing connection, its readers, and its write-ahead log.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthContext, Authorization};
use rusqlite::{Connection, Row};
use tempfile::TempDir;

use super::SqliteOptions;
use super::connection::{Location, Role, configure, run_checked, sync_for_good};
use super::fairness;
use super::files::{
    Files, NO_LOCKS, cannot_open, existing, explained, is_absent, log_path, refuse_companions,
    warn_if_readable_by_others,
};
use super::idle::Activity;
use super::open_files::{self, OpenFile};
use super::patience::{Patience, contended, patiently};
use super::read_only::ReadOnlyFile;
use super::readers::Readers;
use super::schema;
use super::writer::{Plan, Writer};
use crate::background::{self};
use crate::ended;
use crate::error::{Error, ForeignFile, Result, SqliteProblem};
use crate::filesystem::{self, folder_of};
use crate::private;
use crate::sync::IgnorePoison;

/// What the accounts in one database share.
pub(super) struct Database {
    pub(super) config: SqliteOptions,
    pub(super) location: Location,
    // Closed before the writer, whose settings are right for the checkpoint of the last close.
    pub(super) readers: Readers,
    pub(super) writer: Writer,
    files: Option<Files>,
    // Goes after the connections.
    open: Mutex<Option<Arc<OpenFile>>>,
    activity: Arc<Activity>,
    checkpointing: AtomicBool,
    /// From how many pages of the write-ahead log on the next checkpoint is due.
    checkpoint_at: AtomicU32,
    /// The next commit begins the write-ahead log anew, which waits for the disk whatever the durability.
    log_starts_over: AtomicBool,
    /// How often each account was deleted, of those that were opened.
    deletions: Mutex<HashMap<i32, Arc<AtomicU64>>>,
    closed: AtomicBool,
    /// How many readers of a database in memory were turned away and try again.
    waiting_readers: Arc<AtomicUsize>,
    // Goes when everything above is closed.
    _folder: Option<Arc<TempDir>>,
}

impl Database {
    /// Opens, and if need be creates or migrates, a database. Blocks its thread.
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
        let prepared = patiently_prepared(&path, &config, || prepare(&location, &path, &config));
        let connection = prepared.map_err(|error| explained(&path, error))?;
        let files = Files::look(&path).map_err(cannot_open)?;
        Ok(Arc::new(Self::new(config, location, connection, Some((files, open)))))
    }

    /// Opens a database and changes nothing. Blocks its thread.
    pub(super) fn open_read_only(path: &Path, config: SqliteOptions) -> Result<Arc<Self>> {
        check_library()?;
        let path = existing(path)?;
        warn_if_readable_by_others(&path);
        let open_file = OpenFile::of(&path)?;
        let open = |location: &Location| {
            let connection = location.connect()?;
            let version = schema::identify(&connection, &path)?;
            if version < schema::NEWEST {
                return Err(Error::ForeignFile { path: path.clone(), found: ForeignFile::Empty });
            }
            schema::check(&connection, version)?;
            configure(&connection, &config, Role::Reader)?;
            Ok(connection)
        };
        let mut location = Location::ReadOnly(ReadOnlyFile::look(path.clone())?);
        let connection = match patiently_prepared(&path, &config, || open(&location)) {
            // As on media that cannot be written, beside a log.
            Err(Error::Sqlite { problem: SqliteProblem::CannotOpen | SqliteProblem::ReadOnly, .. }) => {
                location = Location::ReadOnly(ReadOnlyFile::copy(path.clone())?);
                open(&location)?
            }
            opened => opened?,
        };
        let files = Files::look(&path).map_err(cannot_open)?;
        Ok(Arc::new(Self::new(config, location, connection, Some((files, open_file)))))
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
        Ok(Arc::new(Self::new(config, location, connection, None)))
    }

    fn new(
        config: SqliteOptions,
        location: Location,
        connection: Connection,
        files: Option<(Files, OpenFile)>,
    ) -> Self {
        let (files, open) = files.unzip();
        Self {
            readers: Readers::new(config.readers),
            _folder: match &location {
                Location::ReadOnly(file) => file.folder(),
                _ => config.unfinished.clone(),
            },
            config,
            location,
            writer: Writer::new(connection),
            files,
            open: Mutex::new(open.map(Arc::new)),
            activity: Arc::default(),
            checkpointing: AtomicBool::new(false),
            checkpoint_at: AtomicU32::new(CHECKPOINT_PAGES),
            log_starts_over: AtomicBool::new(true),
            deletions: Mutex::default(),
            closed: AtomicBool::new(false),
            waiting_readers: Arc::default(),
        }
    }

    /// The life of an account from now on.
    pub(super) fn life(&self, account: i32) -> Life {
        let mut all = self.deletions.lock().ignore_poison();
        let deletions = all.entry(account).or_default().clone();
        Life { before: deletions.load(Ordering::SeqCst), deletions }
    }

    /// Opens one more connection.
    ///
    /// # Errors
    /// [`Error::Closed`] once the database is closed.
    pub(super) fn connect(&self) -> Result<Connection> {
        if self.is_closed() {
            return Err(Error::Closed { what: "store" });
        }
        Ok(self.location.connect()?)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Keeps others from reading the file by other means as long as it exists.
    pub(super) fn pin(&self) -> Option<Arc<OpenFile>> {
        self.open.lock().ignore_poison().clone()
    }

    /// Closes every connection but those of walks and backups under way; later calls fail.
    ///
    /// # Errors
    /// Contention if a call does not end until the timeout, [`Error::NotAlone`] if the log is not empty afterwards, and what
    /// emptying it fails with.
    pub(super) async fn close(self: &Arc<Self>) -> Result<()> {
        self.closed.store(true, Ordering::SeqCst);
        self.refuse_writes();
        ended::note();
        let database = self.clone();
        background::unblock(move || database.close_connections()).await
    }

    /// Blocks its thread.
    fn close_connections(self: &Arc<Self>) -> Result<()> {
        let mut patience = Patience::new(self.config.busy_timeout);
        while self.checkpointing.swap(true, Ordering::Relaxed) {
            thread::sleep(patience.next().ok_or_else(contended)?);
        }
        let _no_checkpoint = Checkpointing(self.clone());
        if !self.readers.close_for_good(&mut patience) {
            return Err(contended());
        }
        let Location::File(path) = &self.location else {
            drop(self.take_writer(&mut patience)?);
            ended::note();
            return Ok(());
        };
        let emptied = match self.take_writer(&mut patience)? {
            // Closing it would do it as well, and not say whether it failed.
            Some(writer) => match self.checkpoint(&writer, CheckpointMode::Truncate) {
                Err(error) if error.is_contention() => Ok(false),
                emptied => emptied,
            },
            None => Ok(true),
        };
        // What was read while calls under way ended must not be given out either.
        ended::note();
        self.open.lock().ignore_poison().take();
        emptied?;
        // Somebody else has it, and what is in the log is not in the file.
        let is_left = log_path(path).metadata().is_ok_and(|log| log.len() > 0);
        if is_left { Err(Error::NotAlone) } else { Ok(()) }
    }

    /// The path of the database file, or `None` in memory.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.location {
            Location::File(path) => Some(path),
            Location::ReadOnly(file) => Some(file.path()),
            Location::Memory { .. } => None,
        }
    }

    /// How many connections there are, each with a page cache of its own.
    pub(super) fn open_connections(&self) -> usize {
        1 + self.readers.open()
    }

    /// Runs a short query where the caller is.
    ///
    /// # Errors
    /// What `query` returns; contention only after the timeout.
    pub(super) async fn read<T>(self: &Arc<Self>, mut query: impl FnMut(&Connection) -> Result<T> + Send) -> Result<T> {
        fairness::spend(fairness::READ);
        if fairness::is_tired() {
            fairness::step_aside().await;
        }
        let mut patience = None;
        loop {
            let result = match self.read_as_writer(&mut query) {
                Some(result) => result,
                // Opening a reader can meet somebody in the way as well.
                None => self.reader().await.and_then(|reader| reader.run(|c| run_checked(c, || query(c)))),
            };
            match result {
                Err(error) if error.is_contention() => {
                    match patience.get_or_insert_with(|| self.patience_of_readers()).next() {
                        Some(pause) => blocking::unblock(move || thread::sleep(pause)).await,
                        None => return Err(error),
                    }
                }
                result => return result,
            }
        }
    }

    /// Without a write-ahead log, as in memory, a transaction that writes turns readers away, and under steady load there
    /// is hardly a moment without one: readers try often, and writers leave gaps for them.
    pub(super) fn patience_of_readers(&self) -> Patience {
        let patience = Patience::new(self.config.busy_timeout);
        match self.location {
            Location::File(_) | Location::ReadOnly(_) => patience,
            Location::Memory { .. } => patience.restless(GAP / 4, &self.waiting_readers),
        }
    }

    /// Leaves a gap between two transactions if somebody waits for one. Blocks its thread.
    pub(super) fn let_readers_in(&self) {
        if self.waiting_readers.load(Ordering::Relaxed) > 0 {
            thread::sleep(GAP);
        }
    }

    /// Opens a reader. Blocks its thread.
    ///
    /// # Errors
    /// Contention while readers are closed, and the errors of opening.
    pub(super) fn open_reader(&self) -> Result<Connection> {
        let connection = self.connect()?;
        if self.readers.are_closed() {
            return Err(contended());
        }
        configure(&connection, &self.config, Role::Reader)?;
        self.check_files()?;
        schema::check(&connection, schema::NEWEST)?;
        Ok(connection)
    }

    /// Opens a connection that sees the database as it is at this moment, as long as it is open. Blocks its thread.
    ///
    /// # Errors
    /// As [`Database::open_reader`].
    pub(super) fn open_snapshot(&self) -> Result<Connection> {
        let connection = self.connect()?;
        configure(&connection, &self.config, Role::Reader)?;
        self.check_files()?;
        connection.execute_batch("BEGIN")?;
        // Its first query, from which on the moment is fixed.
        schema::check(&connection, schema::NEWEST)?;
        Ok(connection)
    }

    /// Makes sure that nobody but this store has the database open at this moment. Calls wait for that.
    ///
    /// # Errors
    /// [`Error::NotAlone`] if somebody else has, for five seconds or the timeout.
    pub(super) async fn refuse_others(self: &Arc<Self>) -> Result<()> {
        if self.path().is_none() {
            return Ok(());
        }
        let mut patience = Patience::new(self.config.busy_timeout.min(Duration::from_secs(5)));
        // Each attempt by itself, so that calls and checkpoints go on in between.
        loop {
            let database = Arc::downgrade(self);
            let look = move |writer: &Connection| database.upgrade().map_or(Ok(true), |it| it.is_alone(writer));
            if self.write(Plan::UPKEEP, look).await? {
                return Ok(());
            }
            match patience.next() {
                Some(pause) => blocking::unblock(move || thread::sleep(pause)).await,
                None => return Err(Error::NotAlone),
            }
        }
    }

    /// Every connection holds a shared lock on the file as long as it is open, so only a lone one gets an exclusive lock
    /// (<https://www.sqlite.org/wal.html>, section 8).
    fn is_alone(self: &Arc<Self>, writer: &Connection) -> Result<bool> {
        if self.checkpointing.swap(true, Ordering::Relaxed) {
            return Ok(false);
        }
        let _no_checkpoint = Checkpointing(self.clone());
        let mut patience = Patience::new(Duration::from_millis(100));
        let Some(_closed) = self.readers.close(&mut patience) else { return Ok(false) };
        let set = |mode| writer.pragma_update_and_check(None, "locking_mode", mode, |_| Ok(()));
        set("EXCLUSIVE")?;
        let begun = patiently(&mut patience, || Ok(writer.execute_batch("BEGIN IMMEDIATE")?));
        // The lock goes with the transaction.
        set("NORMAL")?;
        match begun {
            Ok(()) => Ok(writer.execute_batch("COMMIT").map(|()| true)?),
            Err(error) if error.is_contention() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// [`Error::FileMoved`] if what lies at the path is not what the writer has open.
    pub(super) fn check_files(&self) -> Result<()> {
        if let Location::ReadOnly(file) = &self.location {
            file.check()?;
        }
        self.files.as_ref().map_or(Ok(()), Files::check)
    }

    /// Whether the next commit waits for the disk, because it begins the write-ahead log anew.
    pub(super) fn log_starts_over(&self) -> bool {
        self.log_starts_over.load(Ordering::Relaxed)
    }

    /// What a commit has to be followed by, before its caller hears of it.
    ///
    /// # Errors
    /// [`Error::FileMoved`] if the commit went to a file that is not at its path any more.
    pub(super) fn after_commit(self: &Arc<Self>, wal_pages: u32) -> Result<()> {
        self.check_files()?;
        if self.log_starts_over() {
            self.log_starts_over.store(false, Ordering::Relaxed);
        }
        // One that is on its way to its place is closed soon.
        if self.files.is_some() && self.config.unfinished.is_none() {
            self.activity.note(|| Arc::downgrade(self));
        }
        if wal_pages >= self.checkpoint_at.load(Ordering::Relaxed) {
            self.checkpoint_in_background();
        }
        Ok(())
    }

    /// Copies the write-ahead log into the database, unless that is under way.
    pub(super) fn checkpoint_in_background(self: &Arc<Self>) {
        if !self.is_closed() && !self.checkpointing.swap(true, Ordering::Relaxed) {
            let checkpointing = Checkpointing(self.clone());
            background::detached(move || checkpointing.run());
        }
    }

    /// Copies what it can of the write-ahead log into the database. `true` if that was everything.
    ///
    /// # Errors
    /// [`Error::Sqlite`] if reading or writing fails. Somebody in the way is no error.
    pub(super) fn checkpoint(&self, connection: &Connection, mode: CheckpointMode) -> Result<bool> {
        let sql = match mode {
            CheckpointMode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
            CheckpointMode::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
        };
        let columns = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        let (blocked, pages, copied) = connection.query_row(sql, (), columns)?;
        let complete = blocked == 0 && pages == copied;
        if complete {
            self.log_starts_over.store(true, Ordering::Relaxed);
        }
        // If a reader of an older state is in the way, it will be for a while.
        let grown = u32::try_from(pages).unwrap_or(0).saturating_add(CHECKPOINT_PAGES);
        self.checkpoint_at.store(if complete { CHECKPOINT_PAGES } else { grown }, Ordering::Relaxed);
        Ok(complete)
    }
}

/// The life of an account in this process, which ends when it is deleted.
#[derive(Clone)]
pub(super) struct Life {
    deletions: Arc<AtomicU64>,
    before: u64,
}

impl Life {
    /// # Errors
    /// [`Error::AccountDeleted`] once it has ended.
    pub(super) fn check(&self) -> Result<()> {
        if self.deletions.load(Ordering::SeqCst) == self.before { Ok(()) } else { Err(Error::AccountDeleted) }
    }

    pub(super) fn end(&self) {
        self.deletions.fetch_add(1, Ordering::SeqCst);
        ended::note();
    }
}

#[derive(Clone, Copy)]
pub(super) enum CheckpointMode {
    /// As far as nobody is in the way.
    Passive,
    /// Everything, and empties the log; nothing if somebody is in the way.
    Truncate,
}

/// The one checkpoint at a time.
struct Checkpointing(Arc<Database>);

impl Checkpointing {
    /// Copies most of the write-ahead log into the database on a connection of its own, beside readers and the writer,
    /// and queues the rest, for which the writer must stand still: otherwise the log would never end under steady load.
    fn run(self) {
        if let Err(error) = self.copy_most() {
            log::warn!("the write-ahead log could not be copied into the database: {error}");
        }
        let database = self.0.clone();
        let finish = move |connection: &Connection| {
            let complete = self.0.checkpoint(connection, CheckpointMode::Passive)?;
            if !complete {
                // Somebody reads an older state. When the database is idle, it is tried again.
                self.0.activity.note(|| Arc::downgrade(&self.0));
            }
            Ok(complete)
        };
        database.enqueue_detached(Plan::UPKEEP, finish);
    }

    fn copy_most(&self) -> Result<()> {
        let connection = self.0.connect()?;
        self.0.check_files()?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        sync_for_good(&connection)?;
        // Each pass copies what came during the one before, so there is less to do every time.
        for _ in 0..CHECKPOINT_PASSES {
            self.0.checkpoint(&connection, CheckpointMode::Passive)?;
        }
        Ok(())
    }
}

impl Drop for Checkpointing {
    fn drop(&mut self) {
        self.0.checkpointing.store(false, Ordering::Relaxed);
    }
}

/// How long a gap for readers is.
const GAP: Duration = Duration::from_millis(2);

/// The oldest version with `STRICT` tables.
const OLDEST_SQLITE: i32 = 3_037_000;

/// Five sessions of 1.5 KB fit, where a page of 4 KB holds two; a page is what a commit writes.
const PAGE_BYTES: i64 = 8192;

/// From how many pages on the write-ahead log is copied into the database: 32 MiB. A page that was written several times
/// meanwhile is copied once.
const CHECKPOINT_PAGES: u32 = 4096;

const CHECKPOINT_PASSES: usize = 3;

/// Opens the writing connection.
fn prepare(location: &Location, path: &Path, config: &SqliteOptions) -> Result<Connection> {
    let mut connection = location.connect()?;
    // Closing a database that is not ours, or not as we made it, must not fold its write-ahead log into it, but remove an
    // empty one of ours.
    let has_log = fs::metadata(log_path(path)).is_ok_and(|log| log.len() > 0);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_log)?;
    let version = schema::identify(&connection, path)?;
    if version == 0 && path.metadata().is_ok_and(|metadata| metadata.len() > 0) {
        // A database of no one, without tables.
        return Err(Error::ForeignFile { path: path.to_owned(), found: ForeignFile::Empty });
    }
    if version > 0 {
        schema::check(&connection, version)?;
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    if version == 0 {
        // Only before there are tables.
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
/// [`Error::InvalidInput`] if the SQLite that is linked is too old.
fn check_library() -> Result<()> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(Error::InvalidInput { what: "the linked SQLite library", problem: "is older than 3.37" });
    }
    Ok(())
}

/// Tries again while another process is in the way, or closes the database at this moment and deletes the write-ahead log.
fn patiently_prepared<T>(path: &Path, config: &SqliteOptions, mut prepare: impl FnMut() -> Result<T>) -> Result<T> {
    let mut looked = false;
    let mut prepare = || {
        prepare().map_err(|error| {
            // Where there are no locks, waiting for one does not help.
            let first = error.is_contention() && !std::mem::replace(&mut looked, true);
            if first && filesystem::has_no_locks(folder_of(path)) { NO_LOCKS } else { error }
        })
    };
    let mut patience = Patience::new(config.busy_timeout);
    let mut gone = Patience::new(config.busy_timeout.min(Duration::from_millis(500)));
    loop {
        match patiently(&mut patience, &mut prepare) {
            Err(error @ Error::Sqlite { problem: SqliteProblem::CannotOpen, .. }) => match gone.next() {
                Some(pause) => thread::sleep(pause),
                None => return Err(error),
            },
            prepared => return prepared,
        }
    }
}

/// Creates a database, unless another one takes the name meanwhile. It appears with its schema, so that an empty file is never
/// a new store.
///
/// # Errors
/// [`Error::TargetExists`] if there is a log beside its name; [`Error::InvalidInput`] if there is no such folder; [`Error::File`].
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
    // Closing it empties the log.
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
