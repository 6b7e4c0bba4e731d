//! The store, its accounts, and how the methods of the traits run their statements.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Statement};
use wacore::store::error::StoreError;
use wacore::store::traits::Backend;

use super::connection::Statements;
use super::database::{Database, Life};
use super::files::explained;
use super::lease::Lease;
use super::options::SqliteOptions;
use super::tables::TABLES;
use super::write_plan::WritePlan;
use crate::background;
use crate::error::{Error, Result};
use crate::layer::IntoBackend;
use crate::layer::sealed::Sealed;

/// A [`Backend`](wacore::store::traits::Backend) in an SQLite file: one of possibly many accounts
/// in it.
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
/// Clones and accounts are cheap: they share one writing connection, a few readers and one queue.
/// Short calls run on the caller's thread. Calls that wait for the disk run on threads of the
/// [`blocking`](https://docs.rs/blocking) crate, under any async runtime.
///
/// Several processes may open the same file, and only one at a time writes an account: see
/// [`acquire`](Self::acquire). Other stores that this process opens on the file count as other
/// processes.
///
/// Dropping the last clone closes the connections, which waits for the disk. Call
/// [`checkpoint`](Self::checkpoint) before to make that short, or [`close`](Self::close) to be sure
/// of it. Do not open the file by other means in the same process: closing it again would release
/// SQLite's locks.
///
/// # What survives
/// A call that has returned `Ok` survives a killed process. With the default
/// [`Durability::SignalState`](crate::Durability::SignalState) it also survives a power cut if it
/// stored Signal state, the device, app-state keys or pending messages.
///
/// A call may still run after its future was dropped. Other tasks may see the effect of a call
/// shortly before it returns: it is already committed, but its caller is not told yet.
///
/// # Errors
/// The methods of the storage traits fail with:
///
/// * [`StoreError::Database`] or [`StoreError::Connection`].
///   [`Error::downcast_ref`](crate::Error::downcast_ref) gets from them an
///   [`Error::Sqlite`](crate::Error::Sqlite) that says what is wrong, or an
///   [`Error::SchemaAltered`](crate::Error::SchemaAltered), also if the schema is altered while the
///   store is open. A call that writes may fail with
///   [`Error::AccountInUse`](crate::Error::AccountInUse), and every call with
///   [`Error::LeaseLost`](crate::Error::LeaseLost);
/// * [`StoreError::Serialization`], from an [`Error::Malformed`](crate::Error::Malformed), if a
///   stored value has a wrong type.
///
/// Upstream's `is_database_busy_or_locked` is `true` only for
/// [`SqliteProblem::Contended`](crate::sqlite::SqliteProblem::Contended).
#[derive(Clone)]
pub struct SqliteStore {
    pub(super) database: Arc<Database>,
    pub(super) account: i32,
    /// The caller chose this account, instead of getting the default one.
    pub(super) chosen: bool,
    /// Ends when the account is deleted.
    pub(super) life: Life,
    pub(super) lease: Arc<Lease>,
}

impl SqliteStore {
    /// Opens account 1 of a database with the default settings; see [`SqliteOptions::open`].
    ///
    /// # Errors
    /// Those of [`SqliteOptions::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        SqliteOptions::new().open(path).await
    }

    /// Opens account 1 of a database for reading, with the default settings; see
    /// [`SqliteOptions::open_read_only`].
    ///
    /// # Errors
    /// Those of [`SqliteOptions::open_read_only`].
    pub async fn open_read_only(path: impl AsRef<Path>) -> Result<Self> {
        SqliteOptions::new().open_read_only(path).await
    }

    /// Creates a store in memory, for tests; see [`SqliteOptions::in_memory`].
    ///
    /// # Errors
    /// Those of [`SqliteOptions::in_memory`].
    pub async fn in_memory() -> Result<Self> {
        SqliteOptions::new().in_memory().await
    }

    /// Another account in the same database. Any number is valid, also that of an account without
    /// records. It costs no connection and no thread. Upstream calls the number the device id, and
    /// `create` returns it.
    pub fn account(&self, number: i32) -> Self {
        Self { chosen: true, ..Self::new(self.database.clone(), number) }
    }

    pub(super) fn new(database: Arc<Database>, account: i32) -> Self {
        Self { life: database.life(account), lease: database.leases.of(account), database, account, chosen: false }
    }

    /// The account that the settings name, or account 1.
    fn opened(database: Arc<Database>) -> Self {
        let account = database.wal.config.account;
        Self { chosen: account.is_some(), ..Self::new(database, account.unwrap_or(1)) }
    }

    /// Acquires this account, so that no other process, and no other store of this process, writes
    /// it. Opening has acquired the account that it opened. Of the others, the first call that
    /// writes a record acquires them; call this to know earlier. Afterwards it returns at once. A
    /// store in memory and one that is open read-only need no account.
    ///
    /// # Errors
    /// [`Error::AccountInUse`](crate::Error::AccountInUse) if another process still writes the
    /// account after [`SqliteOptions::lease_wait`].
    /// [`Error::LeaseLost`](crate::Error::LeaseLost),
    /// [`Error::AccountDeleted`](crate::Error::AccountDeleted) and
    /// [`Error::Closed`](crate::Error::Closed). Those of writing to the file.
    pub async fn acquire(&self) -> Result<()> {
        self.life.check()?;
        let acquired = self.database.acquire(&self.lease).await;
        match self.path() {
            Some(path) => acquired.map_err(|error| explained(path, error)),
            None => acquired,
        }
    }

    /// Returns when another process has taken this account over, and does not return otherwise.
    /// From then on every call on the account fails with
    /// [`Error::LeaseLost`](crate::Error::LeaseLost): disconnect the client.
    pub async fn lost(&self) {
        self.lease.lost().await;
    }

    /// The number of this account.
    pub fn account_number(&self) -> i32 {
        self.account
    }

    /// The numbers of all accounts that have a device, in ascending order. Skips rows whose account
    /// is not a 32-bit number.
    ///
    /// # Errors
    /// [`Error::Sqlite`](crate::Error::Sqlite).
    pub async fn accounts(&self) -> Result<Vec<i32>> {
        self.database.read(|connection| numbers(connection, "SELECT account FROM devices ORDER BY account")).await
    }

    /// Deletes every record of this account in one transaction. Other accounts stay.
    ///
    /// Then empties the write-ahead log, unless a reader uses an older state of the database: see
    /// [`checkpoint`](Self::checkpoint). Pieces of values that were replaced earlier may lie in the
    /// unused parts of pages; [`vacuum`](Self::vacuum) removes them.
    ///
    /// From then on, every call on this handle, its clones, and the vaults and layers above them
    /// fails with [`Error::AccountDeleted`](crate::Error::AccountDeleted). So a client that is
    /// still shutting down leaves nothing behind. To use the account again, get a new handle with
    /// [`SqliteStore::account`]; if there is a rollback anchor, begin with
    /// [`Vault::create`](crate::Vault::create).
    ///
    /// Other processes that only read are not told. Of the account's lease, a row with its number
    /// and the [lease name](SqliteOptions::lease_name) stays.
    ///
    /// # Errors
    /// [`Error::Sqlite`](crate::Error::Sqlite) and [`Error::FileMoved`](crate::Error::FileMoved).
    /// [`Error::AccountInUse`](crate::Error::AccountInUse) if another process writes the account.
    /// Nothing is deleted then, unless the file was moved at that very moment.
    pub async fn delete_account(&self) -> Result<()> {
        let (account, life) = (self.account, self.life.clone());
        let database = Arc::downgrade(&self.database);
        let delete = move |connection: &Connection| {
            life.check()?;
            database.upgrade().map_or(Ok(()), |database| database.check_files())?;
            TABLES.iter().try_for_each(|table| connection.run(&table.delete_all, (account,)).map(drop))
        };
        self.lease.take_despite_mark();
        self.acquire().await?;
        let life = self.life.clone();
        self.database.writer.write_and(WritePlan::DURABLE, self.lease.needed(), delete, move || life.end()).await?;
        // The account is deleted in any case.
        if let Err(error) = self.empty_log(Duration::from_secs(1)).await {
            log::warn!("the write-ahead log still holds what was deleted: {error}");
        }
        Ok(())
    }

    /// Closes the database. Running calls end first. From now on every handle on any of its
    /// accounts, and the vaults and layers above, fail with
    /// [`Error::Closed`](crate::Error::Closed), and caches return nothing. Afterwards the main file
    /// holds everything, and may be moved. Closing twice is no error.
    ///
    /// # Errors
    /// [`Error::Sqlite`](crate::Error::Sqlite) as contended if a call does not end before the
    /// timeout: close again then.
    ///
    /// [`Error::Sqlite`](crate::Error::Sqlite) as another problem if the log cannot be emptied.
    /// [`Error::StoreInUse`](crate::Error::StoreInUse) if the log is not empty afterwards, because
    /// the file is still open: in another process, another store of this process, a backup, or a
    /// walk through all rows such as [`Verify`](crate::maintenance::Verify)'s. In both cases this
    /// store is closed, but the file must not be moved without its `-wal`.
    pub async fn close(&self) -> Result<()> {
        self.database.close().await
    }

    /// The absolute path of the database without symbolic links, or `None` if it is in memory.
    pub fn path(&self) -> Option<&Path> {
        self.database.path()
    }

    /// # Errors
    /// [`Error::AccountDeleted`](crate::Error::AccountDeleted),
    /// [`Error::LeaseLost`](crate::Error::LeaseLost).
    pub(super) fn check(&self) -> Result<()> {
        self.life.check()?;
        self.lease.check()
    }

    /// Runs a short query of a storage method.
    pub(super) async fn read<T: Send>(
        &self,
        query: impl FnMut(&Connection) -> Result<T> + Send,
    ) -> Result<T, StoreError> {
        self.check()?;
        Ok(self.database.read(query).await?)
    }

    /// Runs a query of a storage method that may return many rows.
    pub(super) async fn read_long<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        self.check()?;
        Ok(self.database.read_long(query).await?)
    }

    /// Runs a storage method that writes.
    pub(super) async fn write<T, F>(&self, plan: WritePlan, mut operation: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        let life = self.life.clone();
        // Checks in its turn: a deletion may precede it in the queue.
        let operation = move |connection: &Connection| life.check().and_then(|()| operation(connection));
        Ok(self.database.write_records(plan, &self.lease, operation).await?)
    }

    /// Runs a storage method that writes copies of the vault's header, which processes may write
    /// beside the one that has the account.
    pub(super) async fn write_header<T, F>(&self, plan: WritePlan, mut operation: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        self.check()?;
        let (life, lease) = (self.life.clone(), self.lease.clone());
        let operation = move |connection: &Connection| {
            life.check()?;
            lease.refuse_mark(connection)?;
            operation(connection)
        };
        Ok(self.database.write(plan.transaction(), operation).await?)
    }

    /// Runs a statement once per row, in one transaction; none if there are no rows. `size` is the
    /// approximate size of a row in bytes.
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

    /// Runs a query once per key, and leaves out keys without a row. Many keys are looked up on a
    /// blocking thread.
    pub(super) async fn read_rows<K: Send + Sync + 'static, T: Send + 'static>(
        &self,
        sql: &'static str,
        keys: Vec<K>,
        read: impl Fn(&mut Statement<'_>, &K) -> rusqlite::Result<T> + Send + Sync + 'static,
    ) -> Result<Vec<T>, StoreError> {
        fn read_all<K, T>(
            c: &Connection,
            sql: &'static str,
            keys: &[K],
            read: impl Fn(&mut Statement<'_>, &K) -> rusqlite::Result<T>,
        ) -> Result<Vec<T>> {
            // One snapshot for all keys.
            let snapshot = c.unchecked_transaction()?;
            let found = snapshot.first_each(sql, keys, read);
            drop(snapshot);
            found
        }
        if keys.len() <= INLINE_LOOKUPS {
            return self.read(|c| read_all(c, sql, &keys, &read)).await;
        }
        self.read_long(move |c| read_all(c, sql, &keys, &read)).await
    }

    /// Deletes [`SWEEP_ROWS`] rows at a time until none are left, and returns their number. Each
    /// step is a transaction of its own, so that other calls do not wait for the whole sweep.
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

/// Puts the parts of many rows into one allocation, for a call that may run on another thread.
/// Allocating and freeing them one by one would take longer than SQLite does for a small row.
pub(super) fn join<'a, const N: usize>(
    rows: impl ExactSizeIterator<Item = [&'a [u8]; N]> + Clone,
) -> (Vec<u8>, Vec<[Range<usize>; N]>) {
    let mut bytes = Vec::with_capacity(rows.clone().flatten().map(<[u8]>::len).sum());
    let mut append = |part: &[u8]| {
        let start = bytes.len();
        bytes.extend_from_slice(part);
        start..bytes.len()
    };
    let ranges = rows.map(|row| row.map(&mut append)).collect();
    (bytes, ranges)
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

/// The account numbers that a query returns, without those that are not 32-bit numbers.
pub(super) fn numbers(connection: &Connection, sql: &'static str) -> Result<Vec<i32>> {
    let numbers = connection.all(sql, (), |row| {
        let number = row.get_ref(0)?.as_i64().ok();
        Ok(number.and_then(|number| i32::try_from(number).ok()))
    })?;
    Ok(numbers.into_iter().flatten().collect())
}

/// How many lookups may run on the caller's thread: about 0.2 ms.
pub(super) const INLINE_LOOKUPS: usize = 64;

/// The largest number of rows that one statement of a sweep deletes.
pub(super) const SWEEP_ROWS: usize = 1000;

impl SqliteOptions {
    /// Opens account 1 of the database at `path` without changing the file or anything beside it.
    /// Calls that would change a row fail. It also works on read-only media. A database with a log
    /// that must be applied first is read from a copy in the folder for temporary files (`TMPDIR`),
    /// encrypted as it is.
    ///
    /// If another process has the file open, its shared memory (`-shm`) is used. If no process has
    /// it open now, later changes are not seen; after one, methods that read every row end with
    /// [`Error::FileMoved`](crate::Error::FileMoved).
    ///
    /// # Errors
    /// Those of [`SqliteOptions::open`], and [`Error::File`](crate::Error::File) if the file does
    /// not exist.
    pub async fn open_read_only(self, path: impl AsRef<Path>) -> Result<SqliteStore> {
        let path: PathBuf = path.as_ref().to_owned();
        let database = background::unblock(move || Database::open_read_only(&path, self)).await?;
        Ok(SqliteStore::opened(database))
    }

    /// Opens account 1 of the database at `path`, or [another one](Self::account), and
    /// [acquires](SqliteStore::acquire) it. Migrates an older schema of this crate.
    ///
    /// If the file does not exist, it is created with mode 0600, and appears when it has its
    /// tables. Its folder must exist. An existing empty file is refused as foreign.
    ///
    /// # Errors
    /// * [`Error::ForeignFile`](crate::Error::ForeignFile) if the file belongs to another program;
    /// * [`Error::UnsupportedVersion`](crate::Error::UnsupportedVersion) if a later version of this
    ///   crate wrote it;
    /// * [`Error::SchemaAltered`](crate::Error::SchemaAltered) if its tables and indexes differ
    ///   from those of this crate;
    /// * [`Error::InvalidInput`](crate::Error::InvalidInput) if the folder does not exist, or the
    ///   file system cannot share memory;
    /// * [`Error::AccountInUse`](crate::Error::AccountInUse) if another process writes the account,
    ///   and still does after [`lease_wait`](Self::lease_wait);
    /// * [`Error::AccountMoved`](crate::Error::AccountMoved) and
    ///   [`Error::CopyUnfinished`](crate::Error::CopyUnfinished) if the account is not the one to
    ///   use. If you chose none, and the file has several, only calls that write say so;
    /// * [`Error::File`](crate::Error::File) and [`Error::Sqlite`](crate::Error::Sqlite) if the
    ///   file cannot be read or written.
    ///
    /// The first three do not change the file, unless a killed process left something for SQLite to
    /// undo.
    pub async fn open(self, path: impl AsRef<Path>) -> Result<SqliteStore> {
        let (path, when_writing) = (path.as_ref().to_owned(), self.lease_when_writing);
        let store = SqliteStore::opened(background::unblock(move || Database::open_file(&path, self)).await?);
        if when_writing {
            return Ok(store);
        }
        match store.acquire().await {
            // The caller may mean another account, which did not move.
            Err(Error::AccountMoved { .. } | Error::CopyUnfinished { .. })
                if !store.chosen && store.accounts_in_use().await?.len() > 1 =>
            {
                Ok(store)
            }
            acquired => acquired.map(|()| store),
        }
    }

    /// Creates an empty store in memory. Dropping its last clone deletes it.
    ///
    /// # Errors
    /// [`Error::Sqlite`](crate::Error::Sqlite) if there is not enough memory.
    pub async fn in_memory(self) -> Result<SqliteStore> {
        let database = background::unblock(move || Database::in_memory(self)).await?;
        Ok(SqliteStore::opened(database))
    }
}
