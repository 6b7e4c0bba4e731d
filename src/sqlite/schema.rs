//! The versioned schema, and telling our files from others.
//!
//! A file of ours carries [`APPLICATION_ID`] in its header and its schema version in `user_version`
//! (<https://www.sqlite.org/fileformat2.html#database_header>). `migrations/N.sql` leads from
//! version N - 1 to version N.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::connection::{Loaded, Stored, permitted_on_schema, watch};
use crate::error::{Error, ForeignFile, Result};
use crate::filesystem;
use crate::printable::printable;

/// `WAST` in ASCII.
pub(crate) const APPLICATION_ID: i64 = 0x5741_5354;
const MIGRATIONS: &[&str] =
    &[include_str!("migrations/1.sql"), include_str!("migrations/2.sql"), include_str!("migrations/3.sql")];
/// The newest schema version that this crate knows.
pub(super) const NEWEST: u32 = MIGRATIONS.len() as u32;
/// The oldest one that can be read without a migration.
pub(super) const OLDEST: u32 = 1;

/// Checks the length of a file, because SQLite takes any file shorter than a page for an empty
/// database. Does not open the file: closing it would drop the locks of a store that this process
/// has open on it.
///
/// # Errors
/// [`Error::ForeignFile`] if the file is too short to be a database, [`Error::File`] if it does not
/// exist.
pub(super) fn check_length(path: &Path) -> Result<()> {
    let metadata =
        fs::metadata(path).map_err(|error| Error::File { what: "database", source: filesystem::named(path, error) })?;
    if metadata.is_dir() {
        return Err(Error::InvalidInput { what: "the database path", problem: "is a folder" });
    }
    match metadata.len() {
        0 => Err(foreign(path, ForeignFile::Empty)),
        1..SMALLEST_PAGE => Err(foreign(path, ForeignFile::NotSqlite)),
        _ => Ok(()),
    }
}

/// In bytes.
const SMALLEST_PAGE: u64 = 512;

/// Identifies a database without writing to it. Returns the version of its schema, 0 for an empty
/// database.
///
/// # Errors
/// [`Error::ForeignFile`] if it is not ours, [`Error::UnsupportedVersion`] if a later version of
/// this crate wrote it, and the errors of reading.
pub(super) fn identify(connection: &Connection, path: &Path) -> Result<u32> {
    // Read everything at one moment: another process may be creating the schema.
    let _snapshot = connection.is_autocommit().then(|| connection.unchecked_transaction()).transpose()?;
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) = match pragma("application_id").and_then(|id| Ok((id, pragma("user_version")?))) {
        Ok(found) => found,
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            return Err(foreign(path, ForeignFile::NotSqlite));
        }
        Err(error) => return Err(error.into()),
    };
    if application == APPLICATION_ID {
        return match u32::try_from(version) {
            Ok(known @ 1..=NEWEST) => Ok(known),
            Ok(newer) if newer > NEWEST => {
                Err(Error::UnsupportedVersion { what: "database schema version", found: newer, newest: NEWEST })
            }
            _ => Err(foreign(path, ForeignFile::OtherProgram)),
        };
    }
    let names = connection
        .prepare("SELECT name FROM sqlite_schema")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<String>>>()?;
    let has = |name: &str| names.iter().any(|found| found == name);
    if names.is_empty() && application == 0 && version == 0 {
        Ok(0)
    } else if has("__diesel_schema_migrations") && has("device") && has("sessions") {
        Err(foreign(path, ForeignFile::Upstream))
    } else {
        Err(foreign(path, ForeignFile::OtherProgram))
    }
}

/// Brings the schema up to date, each version in a transaction of its own.
///
/// # Errors
/// Those of [`identify`], because another process may have written the file in between; and the
/// errors of writing.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    // Do not even ask for the write transaction if there is nothing to do: another process may hold
    // it.
    while identify(connection, path)? < NEWEST {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version = identify(&transaction, path)?;
        let Some(migration) = MIGRATIONS.get(version as usize) else { break };
        compare(&transaction, version)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", version + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Compares the whole schema of a database with the one that the migrations make, and writes
/// nothing. From now on, statements on this connection run only against this schema.
///
/// # Errors
/// [`Error::SchemaAltered`] if anything is added, missing or different, and the errors of reading.
pub(super) fn check(connection: &Connection, version: u32) -> Result<()> {
    check_since(connection, version, version)
}

/// Does the same for a database of any version from `oldest` to `newest`.
///
/// # Errors
/// Those of [`check`].
pub(super) fn check_since(connection: &Connection, oldest: u32, newest: u32) -> Result<()> {
    let snapshot = connection.is_autocommit().then(|| connection.unchecked_transaction()).transpose()?;
    let version = connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))?;
    let version = u32::try_from(version).unwrap_or(0).clamp(oldest, newest);
    // No statement is prepared against the loaded schema until it is known to be ours.
    watch(connection, Loaded::Unknown)?;
    compare(connection, version)?;
    watch(connection, Loaded::Checked)?;
    drop(snapshot);
    Ok(())
}

/// Does the same within a transaction, and does not watch for later changes.
fn compare(connection: &Connection, version: u32) -> Result<()> {
    let mut missing: Vec<&Object> = expected(version)?.iter().collect();
    let mut roots = HashSet::new();
    // This starts the read transaction and makes SQLite reload the schema, so that both are from
    // the same moment.
    connection.pragma_query_value(None, "schema_version", |row| row.get::<_, i64>(0))?;
    connection.execute_batch("PRAGMA writable_schema = RESET")?;
    for (object, root) in objects(connection)? {
        let Some(position) = missing.iter().position(|expected| **expected == object) else {
            return Err(altered(&object));
        };
        missing.swap_remove(position);
        // Page 1 belongs to the schema. Two objects on one page would read each other's rows.
        match root {
            Stored::Integer(page) if page > 1 && roots.insert(page) => {}
            _ => return Err(altered(&object)),
        }
    }
    missing.first().map_or(Ok(()), |object| Err(altered(object)))
}

/// A row of `sqlite_schema`: type, name, table and SQL.
#[derive(PartialEq)]
struct Object([Stored; 4]);

/// The schema that the migrations make with the linked SQLite.
fn expected(version: u32) -> Result<&'static [Object]> {
    static EXPECTED: [OnceLock<Vec<Object>>; MIGRATIONS.len() + 1] = [const { OnceLock::new() }; MIGRATIONS.len() + 1];
    let Some(computed) = EXPECTED.get(version as usize) else { return Ok(&[]) };
    if let Some(objects) = computed.get() {
        return Ok(objects);
    }
    let connection = Connection::open_in_memory()?;
    for migration in MIGRATIONS.iter().take(version as usize) {
        connection.execute_batch(migration)?;
    }
    let made = objects(&connection)?.into_iter().map(|(object, _)| object).collect();
    Ok(computed.get_or_init(|| made))
}

/// Every row of `sqlite_schema`, with its root page.
fn objects(connection: &Connection) -> Result<Vec<(Object, Stored)>> {
    const SQL: &str = "SELECT type, name, tbl_name, sql, rootpage FROM sqlite_schema";
    permitted_on_schema(|| {
        let mut statement = connection.prepare(SQL)?;
        let objects = statement.query_map((), |row| {
            let column = |index| row.get_ref(index).map(Stored::from);
            Ok((Object([column(0)?, column(1)?, column(2)?, column(3)?]), column(4)?))
        })?;
        Ok(objects.collect::<rusqlite::Result<_>>()?)
    })
}

fn altered(Object([kind, name, ..]): &Object) -> Error {
    let text = |value: &Stored| match value {
        Stored::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => "?".to_owned(),
    };
    let object = format!("{} {}", text(kind), text(name));
    let mut object: String = printable(&object).to_string();
    // Upstream looks for these words in errors, and would retry.
    if ["locked", "busy"].iter().any(|word| object.to_lowercase().contains(word)) {
        object = "an object with a misleading name".to_owned();
    }
    Error::SchemaAltered { object }
}

fn foreign(path: &Path, found: ForeignFile) -> Error {
    Error::ForeignFile { path: path.to_owned(), found }
}

/// How often the schema may change while one call runs.
pub(super) const SCHEMA_CHANGES: usize = 8;
