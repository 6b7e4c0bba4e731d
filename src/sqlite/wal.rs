//! The write-ahead log of one open database, and the state that its connections share.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, Row};
use tempfile::TempDir;

use super::backoff::BusyBackoff;
use super::connection::sync_for_good;
use super::files::Files;
use super::idle::Activity;
use super::location::Location;
use super::open_files::OpenFile;
use super::options::SqliteOptions;
use super::schema::{self, SCHEMA_CHANGES};
use crate::error::{Error, Result};
use crate::sync::IgnorePoison;

/// A write-ahead log and the file that it belongs to. It is dropped after every connection.
pub(super) struct Wal {
    pub(super) config: SqliteOptions,
    pub(super) location: Location,
    files: Option<Files>,
    open: Mutex<Option<Arc<OpenFile>>>,
    pub(super) activity: Arc<Activity>,
    checkpointing: AtomicBool,
    /// The next checkpoint is due when the log has this many pages.
    checkpoint_at: AtomicU32,
    /// The next commit starts the log over, which waits for the disk at any durability.
    log_starts_over: AtomicBool,
    closed: AtomicBool,
    /// How many readers of a database in memory were turned away and try again.
    waiting_readers: Arc<AtomicUsize>,
    _folder: Option<Arc<TempDir>>,
}

thread_local! {
    /// The length of the write-ahead log after this thread's last commit, in pages. A hook cannot
    /// carry its own state.
    static WAL_PAGES: Cell<u32> = const { Cell::new(0) };
}

/// Notes the length of the log at each commit of a connection.
pub(super) fn watch_pages(connection: &Connection) {
    connection.wal_hook(Some(|_, pages| {
        WAL_PAGES.set(pages.max(0) as u32);
        Ok(())
    }));
}

impl Wal {
    pub(super) fn new(config: SqliteOptions, location: Location, files: Option<(Files, OpenFile)>) -> Self {
        let (files, open) = files.unzip();
        Self {
            _folder: match &location {
                Location::ReadOnly(file) => file.folder(),
                _ => config.unfinished.clone(),
            },
            config,
            location,
            files,
            open: Mutex::new(open.map(Arc::new)),
            activity: Arc::default(),
            checkpointing: AtomicBool::new(false),
            checkpoint_at: AtomicU32::new(CHECKPOINT_PAGES),
            log_starts_over: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            waiting_readers: Arc::default(),
        }
    }

    /// Opens another connection.
    ///
    /// # Errors
    /// [`Error::Closed`] once the database is closed.
    pub(super) fn connect(&self) -> Result<Connection> {
        if self.is_closed() {
            return Err(Error::Closed { what: "store" });
        }
        Ok(self.location.connect()?)
    }

    /// Prevents connections from being opened from now on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Prevents the file from being read by other means as long as the result exists.
    pub(super) fn pin(&self) -> Option<Arc<OpenFile>> {
        self.open.lock().ignore_poison().clone()
    }

    /// Allows the file to be read by other means.
    pub(super) fn unpin(&self) {
        self.open.lock().ignore_poison().take();
    }

    /// The backoff of a reader. A database in memory has no write-ahead log, so a writing
    /// transaction turns readers away. Under steady load hardly a moment is without one: readers
    /// retry often, and writers leave gaps for them.
    pub(super) fn backoff_of_readers(&self) -> BusyBackoff {
        let backoff = BusyBackoff::new(self.config.busy_timeout);
        match self.location {
            Location::File(_) | Location::ReadOnly(_) => backoff,
            Location::Memory { .. } => backoff.with_max_pause(GAP / 4, &self.waiting_readers),
        }
    }

    /// Leaves a gap between two transactions if a reader waits for one. Blocks its thread.
    pub(super) fn let_readers_in(&self) {
        if self.waiting_readers.load(Ordering::Relaxed) > 0 {
            thread::sleep(GAP);
        }
    }

    /// # Errors
    /// [`Error::FileMoved`] if the file at the path is not the open one.
    pub(super) fn check_files(&self) -> Result<()> {
        if let Location::ReadOnly(file) = &self.location {
            file.check()?;
        }
        self.files.as_ref().map_or(Ok(()), Files::check)
    }

    /// Checks the schema of an open database. One that is only read may be older.
    ///
    /// # Errors
    /// [`Error::SchemaAltered`], and those of reading.
    pub(super) fn check_schema(&self, connection: &Connection) -> Result<()> {
        let oldest = if matches!(self.location, Location::ReadOnly(_)) { schema::OLDEST } else { schema::NEWEST };
        schema::check_since(connection, oldest, schema::NEWEST)
    }

    /// Runs `attempt`. If it finds the schema changed, checks the schema and runs `attempt` again.
    ///
    /// # Errors
    /// [`Error::SchemaAltered`], and the errors of `attempt`.
    pub(super) fn run_checked<T>(&self, connection: &Connection, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        for _ in 0..SCHEMA_CHANGES {
            match attempt() {
                Err(error) if error.is_changed_schema() => self.check_schema(connection)?,
                result => return result,
            }
        }
        attempt()
    }

    /// `true` if the next commit waits for the disk because it starts the write-ahead log over.
    pub(super) fn log_starts_over(&self) -> bool {
        self.log_starts_over.load(Ordering::Relaxed)
    }

    /// Notes a commit before its caller is told. `true` if a checkpoint is due.
    ///
    /// # Errors
    /// [`Error::FileMoved`] if the commit went to a file that is no longer at its path.
    pub(super) fn after_commit(&self) -> Result<bool> {
        self.check_files()?;
        if self.log_starts_over() {
            self.log_starts_over.store(false, Ordering::Relaxed);
        }
        Ok(WAL_PAGES.take() >= self.checkpoint_at.load(Ordering::Relaxed))
    }

    /// `true` if the log is to be emptied when the database is idle. A database that is on its way
    /// to its place is closed soon, so it is not.
    pub(super) fn is_emptied_when_idle(&self) -> bool {
        self.files.is_some() && self.config.unfinished.is_none()
    }

    /// Begins a checkpoint; `None` while another one runs.
    pub(super) fn begin_checkpoint(self: &Arc<Self>) -> Option<Checkpointing> {
        let is_under_way = self.checkpointing.swap(true, Ordering::Relaxed);
        (!is_under_way).then(|| Checkpointing(self.clone()))
    }

    /// Copies as much as possible of the write-ahead log into the database. `true` if that was
    /// everything.
    ///
    /// # Errors
    /// [`Error::Sqlite`] if reading or writing fails. A connection in the way is no error.
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
        // A reader of an older state will be in the way for a while.
        let grown = u32::try_from(pages).unwrap_or(0).saturating_add(CHECKPOINT_PAGES);
        self.checkpoint_at.store(if complete { CHECKPOINT_PAGES } else { grown }, Ordering::Relaxed);
        Ok(complete)
    }
}

#[derive(Clone, Copy)]
pub(super) enum CheckpointMode {
    /// Copies as far as no connection is in the way.
    Passive,
    /// Copies everything and empties the log, or does nothing if a connection is in the way.
    Truncate,
}

/// The only running checkpoint. Dropping it lets the next one begin.
pub(super) struct Checkpointing(Arc<Wal>);

impl Checkpointing {
    /// Copies most of the log into the database on a connection of its own, while readers and the
    /// writer run.
    pub(super) fn copy_most(&self) -> Result<()> {
        let connection = self.0.connect()?;
        self.0.check_files()?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        sync_for_good(&connection)?;
        // Each pass copies the commits that came during the previous one, so each has less to do.
        for _ in 0..CHECKPOINT_PASSES {
            self.0.checkpoint(&connection, CheckpointMode::Passive)?;
        }
        Ok(())
    }

    /// Copies the rest on the writing connection. `true` if that was everything.
    pub(super) fn copy_rest(&self, writer: &Connection) -> Result<bool> {
        self.0.checkpoint(writer, CheckpointMode::Passive)
    }
}

impl Drop for Checkpointing {
    fn drop(&mut self) {
        self.0.checkpointing.store(false, Ordering::Relaxed);
    }
}

/// The length of a gap for readers.
const GAP: Duration = Duration::from_millis(2);

/// The log is copied into the database when it has this many pages: 32 MiB. A page that was written
/// several times by then is copied once.
const CHECKPOINT_PAGES: u32 = 4096;

const CHECKPOINT_PASSES: usize = 3;
