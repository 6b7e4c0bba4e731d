//! One SQLite connection: how it is opened, and how statements run on it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Params, Row, Statement};

use super::SqliteConfig;
use crate::error::{Error, Result, SqliteProblem};

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Writer,
    Reader,
}

/// Where the database is.
#[derive(Clone, Debug)]
pub(super) enum Location {
    /// A file, by its absolute path without symbolic links.
    File(PathBuf),
    /// Memory that the connections of one store share.
    Memory { uri: String },
}

impl Location {
    /// Opens a connection. Never creates a file: one that is gone must be noticed, not replaced by an empty one.
    pub(super) fn connect(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = match self {
            Location::File(path) => Connection::open_with_flags(path, flags)?,
            Location::Memory { uri } => {
                Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI)?
            }
        };
        // Whoever can write the file must not be able to run SQL of theirs through its schema
        // (https://www.sqlite.org/security.html).
        for (setting, value) in [
            (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
            (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
        ] {
            connection.set_db_config(setting, value)?;
        }
        Ok(connection)
    }
}

/// Settings that hold as long as the connection does.
pub(super) fn configure(connection: &Connection, config: &SqliteConfig, role: Role) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Waiting blocks the thread, so it is done where that is allowed: see `patiently`.
    connection.busy_timeout(Duration::ZERO)?;
    let set = |name, value: i64| connection.pragma_update(None, name, value);
    // Negative: KiB instead of pages.
    set("cache_size", -i64::try_from(config.page_cache / 1024).unwrap_or(i64::MAX))?;
    set("mmap_size", i64::try_from(config.mmap).unwrap_or(i64::MAX))?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    match role {
        Role::Reader => set("query_only", 1)?,
        Role::Writer => {
            set("secure_delete", 1)?;
            set("journal_size_limit", WAL_KEPT_BYTES)?;
        }
    }
    sync_for_good(connection)
}

/// On macOS `fsync` leaves data in the drive's cache; elsewhere this does nothing. Also for readers, the last of which may
/// copy the write-ahead log when it is closed.
pub(super) fn sync_for_good(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "fullfsync", 1)?;
    connection.pragma_update(None, "checkpoint_fullfsync", 1)
}

/// More than the store has.
const STATEMENTS: usize = 128;
/// What the write-ahead log may keep of its size when it starts over.
const WAL_KEPT_BYTES: i64 = 64 << 20;

/// Tries again while another process is in the way, as long as there is patience. Blocks its thread.
pub(super) fn patiently<T>(patience: &mut Patience, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match attempt() {
            Err(error) if error.is_contention() => match patience.next() {
                Some(pause) => thread::sleep(pause),
                None => return Err(error),
            },
            result => return result,
        }
    }
}

/// The pauses between attempts, as long together as the timeout.
pub(super) struct Patience {
    deadline: Option<Instant>,
    pause: Duration,
    longest: Duration,
    waiting: Option<Waiting>,
}

/// Counts those who were turned away and try again.
struct Waiting {
    count: Arc<AtomicUsize>,
    entered: bool,
}

impl Patience {
    pub(super) fn new(timeout: Duration) -> Self {
        let (pause, longest) = (Duration::from_millis(1), Duration::from_millis(50));
        Self { deadline: Instant::now().checked_add(timeout), pause, longest, waiting: None }
    }

    /// Pauses that are never longer than this, and are counted from the first to the last.
    pub(super) fn restless(self, longest: Duration, count: &Arc<AtomicUsize>) -> Self {
        let waiting = Some(Waiting { count: count.clone(), entered: false });
        Self { pause: self.pause.min(longest), longest, waiting, ..self }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.entered {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let left = self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        let pause = self.pause.min(left);
        self.pause = (self.pause * 2).min(self.longest);
        if let Some(waiting) = &mut self.waiting
            && !std::mem::replace(&mut waiting.entered, true)
        {
            waiting.count.fetch_add(1, Ordering::Relaxed);
        }
        (!left.is_zero()).then_some(pause)
    }
}

/// Running statements, each prepared once per connection.
pub(super) trait Statements {
    /// Runs a statement that returns no rows; gives the number of rows it changed.
    fn run(&self, sql: &'static str, params: impl Params) -> Result<usize>;

    /// Runs a statement that returns no rows once per item; gives the number of rows it changed.
    fn run_each<T>(
        &self,
        sql: &'static str,
        items: &[T],
        run: impl Fn(&mut Statement<'_>, &T) -> rusqlite::Result<usize>,
    ) -> Result<usize>;

    /// The first row that a query returns.
    fn first<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>>;

    /// Every row that a query returns.
    fn all<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>>;
}

impl Statements for Connection {
    fn run(&self, sql: &'static str, params: impl Params) -> Result<usize> {
        #[cfg(test)]
        super::tests::record(sql);
        Ok(self.prepare_cached(sql)?.execute(params)?)
    }

    fn run_each<T>(
        &self,
        sql: &'static str,
        items: &[T],
        run: impl Fn(&mut Statement<'_>, &T) -> rusqlite::Result<usize>,
    ) -> Result<usize> {
        #[cfg(test)]
        super::tests::record(sql);
        let mut statement = self.prepare_cached(sql)?;
        Ok(items.iter().try_fold(0, |changed, item| run(&mut statement, item).map(|rows| changed + rows))?)
    }

    fn first<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        #[cfg(test)]
        super::tests::record(sql);
        let mut statement = self.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        rows.next()?.map(map).transpose().map_err(Error::from)
    }

    fn all<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        #[cfg(test)]
        super::tests::record(sql);
        let mut statement = self.prepare_cached(sql)?;
        let rows = statement.query_map(params, map)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::*;
        let problem = match source.sqlite_error_code() {
            Some(DatabaseBusy | DatabaseLocked) => SqliteProblem::Contended,
            Some(DiskFull) => SqliteProblem::DiskFull,
            Some(DatabaseCorrupt | NotADatabase) => SqliteProblem::Damaged,
            Some(ReadOnly | PermissionDenied) => SqliteProblem::ReadOnly,
            Some(CannotOpen) => SqliteProblem::CannotOpen,
            Some(SystemIoFailure) => SqliteProblem::Disk,
            Some(TooBig) => SqliteProblem::TooLarge,
            Some(OutOfMemory) => SqliteProblem::OutOfMemory,
            _ => SqliteProblem::Other,
        };
        let source = match source {
            // Its message has the path, in which anything may stand, words included that upstream looks for.
            rusqlite::Error::SqliteFailure(code, Some(_)) if problem == SqliteProblem::CannotOpen => {
                rusqlite::Error::SqliteFailure(code, None)
            }
            source => source,
        };
        Error::Sqlite { problem, source: Arc::new(source) }
    }
}

impl Error {
    /// `true` if another connection holds what this one needs, and waiting may help.
    pub(super) fn is_contention(&self) -> bool {
        matches!(self, Error::Sqlite { problem: SqliteProblem::Contended, .. })
    }
}

/// What SQLite says of a database that makes no sense.
pub(super) fn damaged() -> Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, None).into()
}

/// What SQLite says when another connection is in the way.
pub(super) fn contended() -> Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    rusqlite::Error::SqliteFailure(code, None).into()
}
