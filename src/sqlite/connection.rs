//! One SQLite connection: how it is opened, and how statements run on it.

use std::cell::Cell;
use std::cmp::Ordering;
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, ErrorCode, OptionalExtension, Params, Row, Statement, ToSql};

use super::options::SqliteOptions;
use crate::error::{Error, Result, SqliteProblem};
use crate::method::Record;
use crate::rows::table::TABLES;

/// The purpose of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Writer,
    Reader,
}

/// Prevents SQL in the file from running (<https://www.sqlite.org/security.html>), and limits the
/// size of statements.
///
/// This is a second line of defence: `schema::check` already refuses an own database whose schema
/// contains such SQL.
pub(crate) fn guard(connection: &Connection) -> rusqlite::Result<()> {
    for (setting, value) in GUARDS {
        connection.set_db_config(*setting, *value)?;
    }
    for (limit, value) in LIMITS {
        connection.set_limit(*limit, *value)?;
    }
    // Check cells when their page is read. Do not enforce CHECK constraints: they come from the
    // file.
    connection.pragma_update(None, "cell_size_check", 1)?;
    connection.pragma_update(None, "ignore_check_constraints", 1)
}

/// The settings that every connection switches on or off.
pub(super) const GUARDS: &[(DbConfig, bool)] = &[
    (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
    (DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, false),
    (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
    (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
    (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
    // On by default in the bundled SQLite.
    (DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false),
    (DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, false),
    (DbConfig::SQLITE_DBCONFIG_RESET_DATABASE, false),
    (DbConfig::SQLITE_DBCONFIG_LEGACY_ALTER_TABLE, false),
    (DbConfig::SQLITE_DBCONFIG_LEGACY_FILE_FORMAT, false),
    // A name in double quotes that is no column is an error, not a string.
    (DbConfig::SQLITE_DBCONFIG_DQS_DML, false),
    (DbConfig::SQLITE_DBCONFIG_DQS_DDL, false),
    // Query plans do not depend on parameters, so SQLite re-prepares a statement only after a
    // schema change.
    (DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true),
];

/// Several times the needs of the own statements and schema. Values keep SQLite's own length limit.
pub(super) const LIMITS: &[(Limit, i32)] = &[
    (Limit::SQLITE_LIMIT_SQL_LENGTH, 64 << 10),
    (Limit::SQLITE_LIMIT_COLUMN, 64),
    (Limit::SQLITE_LIMIT_EXPR_DEPTH, 64),
    (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 32),
    (Limit::SQLITE_LIMIT_VDBE_OP, 100_000),
    (Limit::SQLITE_LIMIT_FUNCTION_ARG, 8),
    (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 64),
    (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 32),
    // This also stops actions of foreign keys.
    (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 0),
    (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    // See `with_attachment`.
    (Limit::SQLITE_LIMIT_ATTACHED, 0),
];

/// Lets SQLite attach the one database that `VACUUM` needs.
pub(super) fn with_attachment<T>(connection: &Connection, run: impl FnOnce() -> Result<T>) -> Result<T> {
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 1)?;
    let result = run();
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    result
}

/// Sets what stays in force as long as the connection is open.
pub(super) fn configure(connection: &Connection, config: &SqliteOptions, role: Role) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    let set = |name, value: i64| connection.pragma_update(None, name, value);
    // A negative size is in KiB instead of pages.
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

/// Makes SQLite flush the drive's cache on macOS, where `fsync` does not. Elsewhere this does
/// nothing. Readers need it too: the last one may copy the write-ahead log when it is closed.
pub(super) fn sync_for_good(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "fullfsync", 1)?;
    connection.pragma_update(None, "checkpoint_fullfsync", 1)
}

/// More than the number of different statements of the store.
const STATEMENTS: usize = 128;

/// How many bytes the write-ahead log may keep when it starts over.
const WAL_KEPT_BYTES: i64 = 64 << 20;

/// The statements that may be prepared on this thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Preparing {
    /// No statement that touches rows.
    Nothing,
    /// A query of the schema.
    Schema,
    /// Any statement, against the checked schema.
    Statement,
}

thread_local! {
    static PREPARING: Cell<Preparing> = const { Cell::new(Preparing::Nothing) };
}

fn preparing<T>(what: Preparing, prepare: impl FnOnce() -> T) -> T {
    struct Restore(Preparing);
    impl Drop for Restore {
        fn drop(&mut self) {
            PREPARING.set(self.0);
        }
    }
    let _restore = Restore(PREPARING.replace(what));
    prepare()
}

/// Allows statements to be prepared on a connection that is [watched](watch).
pub(super) fn permitted<T>(prepare: impl FnOnce() -> T) -> T {
    preparing(Preparing::Statement, prepare)
}

/// Allows a query of the schema to be prepared, also after the schema has changed.
pub(super) fn permitted_on_schema<T>(prepare: impl FnOnce() -> T) -> T {
    preparing(Preparing::Schema, prepare)
}

/// How far the schema that a connection has loaded is known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Loaded {
    Unknown,
    Checked,
}

/// Makes statements run only against the schema that the connection has loaded now.
///
/// SQLite re-prepares a statement by itself after another connection has changed the schema, and
/// asks the authorizer first. The authorizer denies it, so the statement fails before it touches
/// anything. This costs nothing while the schema stays the same.
///
/// After a denial nothing is prepared until the schema was checked again: see
/// `schema::run_checked`. While the schema is [`Loaded::Unknown`], only a query of the schema may
/// be prepared.
pub(super) fn watch(connection: &Connection, loaded: Loaded) -> rusqlite::Result<()> {
    connection.flush_prepared_statement_cache();
    let mut changed = loaded == Loaded::Unknown;
    connection.authorizer(Some(move |context: AuthContext<'_>| {
        let allowed = match context.action {
            AuthAction::Pragma { .. } | AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => true,
            action => match PREPARING.get() {
                Preparing::Nothing => false,
                Preparing::Schema => match action {
                    AuthAction::Select => true,
                    AuthAction::Read { table_name, .. } => ["sqlite_master", "sqlite_schema"].contains(&table_name),
                    _ => false,
                },
                Preparing::Statement => !changed,
            },
        };
        if allowed {
            Authorization::Allow
        } else {
            #[cfg(test)]
            super::tests::DENIED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            changed = true;
            Authorization::Deny
        }
    }))
}

/// A value as it is stored in the database, of any type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stored {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl Stored {
    /// `true` for a text or a blob, which no column type converts.
    pub(super) fn is_bytes(&self) -> bool {
        matches!(self, Stored::Text(_) | Stored::Blob(_))
    }

    /// The order in which SQLite sorts values of any types
    /// (<https://www.sqlite.org/datatype3.html>, section 4.1).
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let class = |value: &Self| match value {
            Stored::Null => 0,
            Stored::Integer(_) | Stored::Real(_) => 1,
            Stored::Text(_) => 2,
            Stored::Blob(_) => 3,
        };
        let number = |value: &Self| match value {
            Stored::Integer(value) => *value as f64,
            Stored::Real(value) => *value,
            _ => 0.0,
        };
        match (self, other) {
            (Stored::Integer(one), Stored::Integer(other)) => one.cmp(other),
            (Stored::Text(one), Stored::Text(other)) | (Stored::Blob(one), Stored::Blob(other)) => one.cmp(other),
            _ => class(self).cmp(&class(other)).then_with(|| number(self).total_cmp(&number(other))),
        }
    }
}

impl From<ValueRef<'_>> for Stored {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Stored::Null,
            ValueRef::Integer(value) => Stored::Integer(value),
            ValueRef::Real(value) => Stored::Real(value),
            ValueRef::Text(value) => Stored::Text(value.to_vec()),
            ValueRef::Blob(value) => Stored::Blob(value.to_vec()),
        }
    }
}

impl ToSql for Stored {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Stored::Null => ValueRef::Null,
            Stored::Integer(value) => ValueRef::Integer(*value),
            Stored::Real(value) => ValueRef::Real(*value),
            Stored::Text(value) => ValueRef::Text(value),
            Stored::Blob(value) => ValueRef::Blob(value),
        }))
    }
}

/// Runs statements. Each is prepared once per connection.
pub(super) trait Statements {
    /// Runs a statement that returns no rows, and returns how many rows it changed.
    fn run(&self, sql: &'static str, params: impl Params) -> Result<usize>;

    /// Runs a statement that returns no rows once per item, and returns how many rows it changed.
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

    /// The first row that a query returns for each key, without the keys that have none.
    fn first_each<K, T>(
        &self,
        sql: &'static str,
        keys: &[K],
        first: impl Fn(&mut Statement<'_>, &K) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>>;

    /// Runs `then` while a query stands at its first row, if it has one, and ends the query. Until
    /// then the connection sees the state of the database that the query has seen.
    fn while_first<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        then: impl FnOnce() -> Result<T>,
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
        Ok(prepare(self, sql)?.execute(params)?)
    }

    fn run_each<T>(
        &self,
        sql: &'static str,
        items: &[T],
        run: impl Fn(&mut Statement<'_>, &T) -> rusqlite::Result<usize>,
    ) -> Result<usize> {
        let mut statement = prepare(self, sql)?;
        Ok(items.iter().try_fold(0, |changed, item| run(&mut statement, item).map(|rows| changed + rows))?)
    }

    fn first<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let mut statement = prepare(self, sql)?;
        let mut rows = statement.query(params)?;
        rows.next()?.map(map).transpose().map_err(|error| of_row(sql, error))
    }

    fn first_each<K, T>(
        &self,
        sql: &'static str,
        keys: &[K],
        first: impl Fn(&mut Statement<'_>, &K) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = prepare(self, sql)?;
        let rows = keys.iter().filter_map(|key| first(&mut statement, key).optional().transpose());
        rows.collect::<rusqlite::Result<_>>().map_err(|error| of_row(sql, error))
    }

    fn while_first<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        then: impl FnOnce() -> Result<T>,
    ) -> Result<Option<T>> {
        let mut statement = prepare(self, sql)?;
        let mut rows = statement.query(params)?;
        if rows.next()?.is_none() {
            return Ok(None);
        }
        let result = then()?;
        // SQLite commits a statement that writes when it ends. Its documentation promises that only
        // for the end of the last statement: this one, whose error would be that of the commit.
        while rows.next()?.is_some() {}
        Ok(Some(result))
    }

    fn all<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = prepare(self, sql)?;
        let rows = statement.query_map(params, map)?;
        rows.collect::<rusqlite::Result<_>>().map_err(|error| of_row(sql, error))
    }
}

fn prepare<'a>(connection: &'a Connection, sql: &'static str) -> rusqlite::Result<CachedStatement<'a>> {
    #[cfg(test)]
    super::tests::record(sql);
    permitted(|| connection.prepare_cached(sql))
}

/// Converts an error of reading a row. If a value does not fit its column, the error names the
/// record.
fn of_row(sql: &str, error: rusqlite::Error) -> Error {
    match Error::from(error) {
        Error::Malformed { .. } => {
            let read = TABLES.iter().filter(|table| sql.contains(table.name)).max_by_key(|table| table.name.len());
            Error::Malformed { record: read.map_or(Record::Store, |table| table.record) }
        }
        error => error,
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::*;
        use rusqlite::{Error as Source, ffi};
        let code = match error {
            Source::SqliteFailure(code, _) | Source::SqlInputError { error: code, .. } => code,
            // The value's type or size does not fit its column: the row is damaged, not the store.
            Source::FromSqlConversionFailure(..)
            | Source::IntegralValueOutOfRange(..)
            | Source::InvalidColumnType(..)
            | Source::Utf8Error(..) => return Error::Malformed { record: Record::Store },
            // The store called SQLite in a wrong way.
            _ => ffi::Error::new(ffi::SQLITE_MISUSE),
        };
        let problem = match code.code {
            DatabaseBusy | DatabaseLocked => SqliteProblem::Contended,
            DiskFull => SqliteProblem::DiskFull,
            DatabaseCorrupt | NotADatabase => SqliteProblem::Damaged,
            ReadOnly | PermissionDenied => SqliteProblem::ReadOnly,
            CannotOpen => SqliteProblem::CannotOpen,
            SystemIoFailure => SqliteProblem::Disk,
            TooBig => SqliteProblem::TooLarge,
            OutOfMemory => SqliteProblem::OutOfMemory,
            _ => SqliteProblem::Other,
        };
        // Drop SQLite's message: it contains the path and names of the schema, which another party
        // may have chosen.
        Error::Sqlite { problem, source: Arc::new(Source::SqliteFailure(code, None)) }
    }
}

impl Error {
    /// `true` if another connection holds the database, so that waiting may help.
    pub(super) fn is_contention(&self) -> bool {
        matches!(self, Error::Sqlite { problem: SqliteProblem::Contended, .. })
    }

    /// `true` if a statement did not run because the schema is not the checked one: see [`watch`].
    pub(super) fn is_changed_schema(&self) -> bool {
        let Error::Sqlite { problem: SqliteProblem::Other, source } = self else { return false };
        let code = source.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
        code == Some(ErrorCode::AuthorizationForStatementDenied)
    }

    /// `true` if a row, or the page that holds it, cannot be read.
    pub(super) fn is_damaged_database(&self) -> bool {
        matches!(self, Error::Sqlite { problem: SqliteProblem::Damaged | SqliteProblem::TooLarge, .. })
    }
}

/// The error that SQLite returns for a damaged database.
pub(super) fn damaged() -> Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, None).into()
}
