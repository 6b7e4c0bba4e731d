//! The store: its accounts, and how the methods of the traits run their statements.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Statement};
use wacore::store::error::StoreError;
use wacore::store::traits::Backend;

use super::connection::Statements;
use super::database::{Database, Life};
use super::options::SqliteOptions;
use super::tables::TABLES;
use super::write_plan::WritePlan;
use crate::background;
use crate::error::Result;
use crate::layer::IntoBackend;
use crate::layer::sealed::Sealed;

/// A [`Backend`](wacore::store::traits::Backend) in an SQLite file: one account of possibly many.
///
/// ```
/// # futures::executor::block_on(async {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("wa.db");
/// use wacore::store::traits::SignalStore;
/// use wastore::SqliteStore;
///
/// let store = SqliteStore::open(&path).await?;         // account 1
/// let second = store.account(2);                       // same file, same connections, other records
/// store.put_session("15550001111:2@s.whatsapp.net", b"a session").await?;
/// assert!(!second.has_session("15550001111:2@s.whatsapp.net").await?);
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
///
/// Clones and accounts are cheap: they share one writing connection, a few readers and one queue. Short calls run on the
/// caller's thread, calls that have to wait for the disk on threads of the
/// [`blocking`](https://docs.rs/blocking) crate, under any async runtime. Several processes may open the same file.
/// When the last clone is dropped, the connections are closed, which waits for the disk; call
/// [`checkpoint`](Self::checkpoint) before to make that short, or [`close`](Self::close) to be sure of it. Do not open the file by other means in the same process:
/// closing it would take SQLite's locks away.
///
/// # What survives
/// With the default [`Durability::SignalState`](crate::Durability::SignalState), a call that has returned `Ok` survives the process being killed, and, if
/// it stored Signal state, the device, app-state keys or pending messages, a power cut. A call whose future is dropped may
/// still be carried out. Other tasks may see what a call stored shortly before it returns: it is committed then, and its caller
/// yet to be told.
///
/// # Errors
/// Methods of the storage traits fail with [`StoreError::Database`] or [`StoreError::Connection`], from which
/// [`Error::downcast_ref`](crate::Error::downcast_ref) gets an [`Error::Sqlite`](crate::Error::Sqlite) that says what is wrong, or an
/// [`Error::SchemaAltered`](crate::Error::SchemaAltered), also when the schema is altered while the store is open; and with
/// [`StoreError::Serialization`] from an [`Error::Malformed`](crate::Error::Malformed) if a stored value is of a wrong type. Upstream's
/// `is_database_busy_or_locked` is `true` for [`SqliteProblem::Contended`](crate::sqlite::SqliteProblem::Contended) only.
#[derive(Clone)]
pub struct SqliteStore {
    pub(super) database: Arc<Database>,
    pub(super) account: i32,
    /// The caller has said which account, and does not just have the one that comes first.
    pub(super) chosen: bool,
    /// Ends when the account is deleted.
    pub(super) life: Life,
}

impl SqliteStore {
    /// Opens account 1 of a database with the default settings; see [`SqliteOptions::open`].
    ///
    /// # Errors
    /// As [`SqliteOptions::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        SqliteOptions::new().open(path).await
    }

    /// Opens account 1 of a database with the default settings, to read it; see [`SqliteOptions::open_read_only`].
    ///
    /// # Errors
    /// As [`SqliteOptions::open_read_only`].
    pub async fn open_read_only(path: impl AsRef<Path>) -> Result<Self> {
        SqliteOptions::new().open_read_only(path).await
    }

    /// Creates a store in memory, for tests; see [`SqliteOptions::in_memory`].
    ///
    /// # Errors
    /// As [`SqliteOptions::in_memory`].
    pub async fn in_memory() -> Result<Self> {
        SqliteOptions::new().in_memory().await
    }

    /// Another account in the same database: any number, also one that has no records yet. It costs no connection and no
    /// thread. The number is what upstream calls the device id, and what `create` returns.
    pub fn account(&self, number: i32) -> Self {
        Self { chosen: true, ..Self::new(self.database.clone(), number) }
    }

    pub(super) fn new(database: Arc<Database>, account: i32) -> Self {
        Self { life: database.life(account), database, account, chosen: false }
    }

    /// The number of this account.
    pub fn account_number(&self) -> i32 {
        self.account
    }

    /// The numbers of all accounts that have a device, in ascending order. A row whose account is no number of 32 bits is left
    /// out.
    ///
    /// # Errors
    /// [`Error::Sqlite`](crate::Error::Sqlite).
    pub async fn accounts(&self) -> Result<Vec<i32>> {
        self.database.read(|connection| numbers(connection, "SELECT account FROM devices ORDER BY account")).await
    }

    /// Deletes every record of this account, in one transaction, and empties the write-ahead log, unless somebody reads an older
    /// state of the database: see [`checkpoint`](Self::checkpoint). Other accounts stay. Pieces of what was replaced before may
    /// lie in the unused parts of pages: [`vacuum`](Self::vacuum) removes them.
    ///
    /// It is the end of everything that has the account open through this store: calls on this handle and its clones, on vaults
    /// and layers above, fail from then on with [`Error::AccountDeleted`](crate::Error::AccountDeleted), so that a client which
    /// is still shutting down leaves nothing behind. [`SqliteStore::account`] gives a handle to begin from nothing with, by
    /// [`Vault::create`](crate::Vault::create) if there is a rollback anchor. Other processes,
    /// and stores that were opened by themselves on the same file, are not told: stop them before.
    ///
    /// # Errors
    /// [`Error::Sqlite`](crate::Error::Sqlite) and [`Error::FileMoved`](crate::Error::FileMoved); nothing is deleted then, unless the
    /// file was moved at the very moment.
    pub async fn delete_account(&self) -> Result<()> {
        let (account, life) = (self.account, self.life.clone());
        let database = Arc::downgrade(&self.database);
        let delete = move |connection: &Connection| {
            life.check()?;
            database.upgrade().map_or(Ok(()), |database| database.check_files())?;
            TABLES.iter().try_for_each(|table| connection.run(&table.delete_all, (account,)).map(drop))
        };
        let life = self.life.clone();
        self.database.writer.write_and(WritePlan::DURABLE, delete, move || life.end()).await?;
        // It is deleted in any case.
        if let Err(error) = self.empty_log(Duration::from_secs(1)).await {
            log::warn!("the write-ahead log still holds what was deleted: {error}");
        }
        Ok(())
    }

    /// Closes the database: every handle on any of its accounts, and vaults and layers above, fail from now on with
    /// [`Error::Closed`](crate::Error::Closed), and caches give nothing out any more. Calls under way end before. Then the main file
    /// holds everything, and may be moved. Closing twice is no error.
    ///
    /// # Errors
    /// [`Error::Sqlite`](crate::Error::Sqlite) as contended if a call does not end until the timeout: close again then. As anything
    /// else if the log cannot be emptied, and [`Error::StoreInUse`](crate::Error::StoreInUse) if it is not empty afterwards, because
    /// another process, another store of this process, a backup, or a walk through all rows such as [`Verify`](crate::maintenance::Verify)'s has the file open:
    /// everything is closed here then, but the file must not be moved without its `-wal`.
    pub async fn close(&self) -> Result<()> {
        self.database.close().await
    }

    /// The path of the database, absolute and without symbolic links, or `None` if it is in memory.
    pub fn path(&self) -> Option<&Path> {
        self.database.path()
    }

    /// Runs a short query of a storage method.
    pub(super) async fn read<T: Send>(
        &self,
        query: impl FnMut(&Connection) -> Result<T> + Send,
    ) -> Result<T, StoreError> {
        self.life.check()?;
        Ok(self.database.read(query).await?)
    }

    /// Runs a query of a storage method that may return many rows.
    pub(super) async fn read_long<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        self.life.check()?;
        Ok(self.database.read_long(query).await?)
    }

    /// Runs a storage method that changes something.
    pub(super) async fn write<T, F>(&self, plan: WritePlan, mut operation: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        let life = self.life.clone();
        // In its turn: a deletion may be before it in the queue.
        let operation = move |connection: &Connection| life.check().and_then(|()| operation(connection));
        Ok(self.database.write(plan, operation).await?)
    }

    /// Runs a statement once per row, in one transaction; no rows, no transaction. `size` is what a row takes, roughly, in
    /// bytes.
    pub(super) async fn write_rows<R: Send + 'static>(
        &self,
        plan: WritePlan,
        sql: &'static str,
        rows: Vec<R>,
        size: impl Fn(&R) -> usize,
        write: impl Fn(&mut Statement<'_>, &R) -> rusqlite::Result<usize> + Send + 'static,
    ) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let plan = plan.batch(rows.len(), rows.iter().map(size).sum());
        self.write(plan, move |c| c.run_each(sql, &rows, &write).map(drop)).await
    }

    /// Looks up every key and leaves out those that are not there; many of them on a blocking thread.
    pub(super) async fn read_rows<K: Clone + Send + Sync + 'static, T: Send + 'static>(
        &self,
        keys: &[K],
        load: impl Fn(&Connection, &K) -> Result<Option<T>> + Send + Sync + 'static,
    ) -> Result<Vec<T>, StoreError> {
        fn load_all<K, T>(
            c: &Connection,
            keys: &[K],
            load: impl Fn(&Connection, &K) -> Result<Option<T>>,
        ) -> Result<Vec<T>> {
            // One snapshot for all of them.
            let snapshot = c.unchecked_transaction()?;
            let found = keys.iter().filter_map(|key| load(&snapshot, key).transpose()).collect();
            drop(snapshot);
            found
        }
        if keys.len() <= INLINE_LOOKUPS {
            return self.read(|c| load_all(c, keys, &load)).await;
        }
        let keys = keys.to_vec();
        self.read_long(move |c| load_all(c, &keys, &load)).await
    }

    /// Deletes [`SWEEP_ROWS`] rows at a time until none are left, and gives the number of rows. Each time is a transaction
    /// of its own, so that others need not wait for all of it.
    pub(super) async fn sweep(
        &self,
        delete: impl Fn(&Connection) -> Result<usize> + Clone + Send + 'static,
    ) -> Result<u32, StoreError> {
        let mut total = 0u32;
        loop {
            let count = self.write(WritePlan::RELAXED.blocking().transaction(), delete.clone()).await?;
            total = total.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
            if count < SWEEP_ROWS {
                return Ok(total);
            }
        }
    }
}

impl Sealed for SqliteStore {}

impl IntoBackend for SqliteStore {
    fn into_backend(self) -> (Arc<dyn Backend>, String) {
        let name = format!("{self:?}");
        (Arc::new(self), name)
    }
}

impl Sealed for &SqliteStore {}

impl IntoBackend for &SqliteStore {
    fn into_backend(self) -> (Arc<dyn Backend>, String) {
        self.clone().into_backend()
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.path().and_then(Path::file_name).map_or("in memory".into(), |name| name.to_string_lossy());
        match self.account {
            1 => write!(f, "sqlite({name})"),
            account => write!(f, "sqlite({name}, account {account})"),
        }
    }
}

/// The numbers of accounts that a query gives, without those that cannot be one's.
pub(super) fn numbers(connection: &Connection, sql: &'static str) -> Result<Vec<i32>> {
    let numbers = connection.all(sql, (), |row| {
        let number = row.get_ref(0)?.as_i64().ok();
        Ok(number.and_then(|number| i32::try_from(number).ok()))
    })?;
    Ok(numbers.into_iter().flatten().collect())
}

/// How many lookups may run where the caller is: about 0.2 ms.
pub(super) const INLINE_LOOKUPS: usize = 64;

/// How many rows a statement of a sweep deletes at most.
pub(super) const SWEEP_ROWS: usize = 1000;

impl SqliteOptions {
    /// Opens account 1 of the database at `path` and changes nothing, neither the file nor what lies beside it: whatever would
    /// change a row fails. It works on media that cannot be written. A database that was left with a log that has to be worked
    /// into it is read from a copy in the folder for temporary files (`TMPDIR`), encrypted as it is.
    ///
    /// While another process has the file open, what they share (`-shm`) is used. Of a file that nobody has open when it is
    /// opened here, nothing that comes later is seen; [`Error::FileMoved`](crate::Error::FileMoved) says so at the end of what
    /// looks at every row.
    ///
    /// # Errors
    /// As [`SqliteOptions::open`], and [`Error::File`](crate::Error::File) if there is no such file.
    pub async fn open_read_only(self, path: impl AsRef<Path>) -> Result<SqliteStore> {
        let path: PathBuf = path.as_ref().to_owned();
        let database = background::unblock(move || Database::open_read_only(&path, self)).await?;
        Ok(SqliteStore::new(database, 1))
    }

    /// Opens account 1 of the database at `path`. A file that is not there is created, with mode 0600, and appears when it has its
    /// tables; its folder must be there. A file that is empty is none of this crate's. An older schema of this crate is brought
    /// up to date.
    ///
    /// # Errors
    /// [`Error::ForeignFile`](crate::Error::ForeignFile) if the file belongs to something else,
    /// [`Error::UnsupportedVersion`](crate::Error::UnsupportedVersion) if a later version of this crate wrote it,
    /// [`Error::SchemaAltered`](crate::Error::SchemaAltered) if its tables and indexes are not those that this crate makes; none
    /// is changed, unless a killed process left something for SQLite to undo. [`Error::InvalidInput`](crate::Error::InvalidInput) if there is no such folder, or the file system
    /// cannot share memory; [`Error::File`](crate::Error::File) and [`Error::Sqlite`](crate::Error::Sqlite) if the file
    /// cannot be read or written.
    pub async fn open(self, path: impl AsRef<Path>) -> Result<SqliteStore> {
        let path: PathBuf = path.as_ref().to_owned();
        let database = background::unblock(move || Database::open_file(&path, self)).await?;
        Ok(SqliteStore::new(database, 1))
    }

    /// Creates an empty store in memory, which is gone with its last clone.
    ///
    /// # Errors
    /// [`Error::Sqlite`](crate::Error::Sqlite) if there is no memory.
    pub async fn in_memory(self) -> Result<SqliteStore> {
        let database = background::unblock(move || Database::in_memory(self)).await?;
        Ok(SqliteStore::new(database, 1))
    }
}
