//! The operations of an own store that maintenance uses, whatever the engine.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use wacore::store::traits::Backend;

use super::mark::Mark;
use super::table::{PREFIX_BYTES, SealedRow, Table, TableSize, WholeRow};
use crate::error::{Error, Result};
use crate::method::Record;

/// A store of this crate: a `SqliteStore`, a `PostgresStore`, a reference to one, or an `Arc` of one.
///
/// Other types cannot implement it.
pub trait OwnStore {
    #[doc(hidden)]
    fn own_rows(&self) -> OwnRows;
}

/// The rows of an own store.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct OwnRows(pub(crate) Arc<dyn Rows>);

impl OwnStore for OwnRows {
    fn own_rows(&self) -> OwnRows {
        self.clone()
    }
}

impl<S: OwnStore + ?Sized> OwnStore for &S {
    fn own_rows(&self) -> OwnRows {
        (**self).own_rows()
    }
}

impl<S: OwnStore + ?Sized> OwnStore for Arc<S> {
    fn own_rows(&self) -> OwnRows {
        (**self).own_rows()
    }
}

/// A row that was read, or its damage, with its id. Some engines count places in the order of the keys from 1 instead
/// of ids. `None` stands for a row that no vault seals, such as a copy of the header.
pub(crate) type Found = (i64, Result<Option<SealedRow>>);

/// Selects tables.
pub(crate) type TableFilter = fn(&Table) -> bool;

/// The part of a row's value that is in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowPrefix {
    pub(crate) table: &'static str,
    /// The row id, or its place in the order of the keys from 1.
    pub(crate) row: i64,
    /// `None` if the value is shorter or cannot be read.
    pub(crate) prefix: Option<[u8; PREFIX_BYTES]>,
}

/// The number of rows of an account in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CountedRows {
    pub(crate) table: &'static str,
    pub(crate) rows: u64,
}

/// A new value for a row, written only if the row is unchanged since it was read.
pub(crate) struct Replacement {
    /// The id of the row when it was read, and its key columns.
    pub(crate) id: i64,
    pub(crate) columns: Vec<Vec<u8>>,
    pub(crate) old: Vec<u8>,
    pub(crate) new: Vec<u8>,
}

/// A row as it was found. It is deleted only if it is unchanged.
pub(crate) struct RowAsFound {
    pub(crate) table: &'static Table,
    pub(crate) id: i64,
    /// A hash of its content; `None` if it cannot be read.
    pub(crate) hash: Option<[u8; 32]>,
}

impl RowAsFound {
    pub(crate) fn new(table: &'static Table, id: i64, found: &Result<Option<SealedRow>>) -> Self {
        let hash = found.as_ref().ok().and_then(Option::as_ref).map(SealedRow::hash);
        Self { table, id, hash }
    }

    /// `true` if the row with this id is unchanged. Never `true` for a row that no vault seals: where ids are places, a
    /// copy of the header may have moved into the place of a row that could not be read.
    pub(crate) fn is(&self, found: &Result<Option<SealedRow>>) -> bool {
        !matches!(found, Ok(None)) && Self::new(self.table, self.id, found).hash == self.hash
    }
}

/// The addresses of a user's sessions: all that begin with the prefix and an `@`, and the ones listed in `bare`.
pub(crate) struct UserAddresses {
    pub(crate) prefix: String,
    pub(crate) bare: Vec<String>,
}

/// The places where replaced data may remain after a rewrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remains {
    /// In none that the store knows.
    Nowhere,
    /// In the log of a server, its standbys and its archives.
    OnTheServer,
}

/// Reads the rows of one account, one table after the other and one page at a time.
///
/// Returns every row that exists from the first page to the last, whatever is stored and deleted in between. A row that
/// cannot be read is returned as damaged, and reading goes on behind it.
#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
pub(crate) trait RowReader: Send {
    /// Begins at the first row of a table.
    fn begin(&mut self, table: &'static Table);

    /// The next page; `None` behind the last one.
    ///
    /// # Errors
    /// [`Error::RowsMissed`] instead of the end if a snapshot shows other rows than the table has, and those of the
    /// engine.
    async fn next(&mut self) -> Result<Option<Vec<Found>>>;

    /// The number of rows of the account in all tables.
    async fn count(&mut self) -> Result<u64>;
}

/// One account of an own store.
#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
pub(crate) trait Rows: Backend + fmt::Debug {
    fn account_number(&self) -> i32;

    /// Another account of the same database.
    fn account(&self, number: i32) -> Arc<dyn Rows>;

    /// `true` if the caller chose the account, `false` if it is the default.
    fn is_chosen(&self) -> bool;

    /// Identifies this account of this open database. No other account and no other opening of the same database has
    /// it.
    fn identity(&self) -> (usize, i32);

    /// The place of the store, which a rollback anchor remembers. `None` if the store is not at its final place yet, or
    /// has none.
    fn place(&self) -> Option<Vec<u8>>;

    /// The numbers of the accounts that hold rows, in ascending order.
    async fn accounts_in_use(&self) -> Result<Vec<i32>>;

    /// Reads rows while others write: each page is from a moment of its own.
    fn rows(&self) -> Box<dyn RowReader>;

    /// Reads all rows as of one moment.
    async fn snapshot(&self) -> Result<Box<dyn RowReader>>;

    /// The number of the account's rows in the selected tables.
    async fn count(&self, which: TableFilter) -> Result<u64>;

    /// The size of each table, all accounts together.
    async fn sizes(&self) -> Result<Vec<TableSize>>;

    /// Calls `each` with the first bytes of every value of the account that a data key seals. Returns how many rows
    /// each table with such values has.
    ///
    /// # Errors
    /// [`Error::RowsMissed`], and those of the engine.
    async fn sealed_prefixes(&self, each: Box<dyn FnMut(RowPrefix) + Send>) -> Result<Vec<CountedRows>>;

    /// Replaces the values that are unchanged since they were read, in one transaction, and returns their number.
    async fn replace(&self, table: &'static Table, rows: Vec<Replacement>) -> Result<u64>;

    /// Deletes the rows that are unchanged since they were found, in one transaction. Returns for each row whether it
    /// was deleted. Where ids are places, they are those from before the first deletion. Callers never name rows of
    /// `mutation_macs` and `sender_key_devices` here; [`Rows::delete_all`] deletes them.
    async fn delete(&self, rows: Vec<RowAsFound>) -> Result<Vec<bool>>;

    /// Deletes every row of some kinds of record, in one transaction, and returns the number for each kind.
    async fn delete_all(&self, records: Vec<Record>) -> Result<Vec<(Record, u64)>>;

    /// Deletes the sessions with some addresses, and the rows that are unchanged since they were found, in one
    /// transaction. Returns the values of the sessions, `None` for unreadable ones, and the number of deleted rows.
    async fn delete_sessions(
        &self,
        of: Vec<UserAddresses>,
        rows: Vec<RowAsFound>,
    ) -> Result<(Vec<Option<Vec<u8>>>, u64)>;

    /// # Errors
    /// [`Error::StoreInUse`] if another process can write to the store.
    async fn refuse_others(&self) -> Result<()>;

    /// Waits until every earlier call has been carried out.
    async fn drain(&self) -> Result<()>;

    /// Brings all written data to its final place, if no other process is in the way.
    async fn settle(&self);

    /// Brings all written data to its final place, so that no log holds replaced data.
    async fn checkpoint(&self) -> Result<()>;

    /// Rewrites the store, so that no unused part of it holds replaced data. Returns where such data remains.
    async fn rewrite(&self) -> Result<Remains>;

    /// Checks the database itself. Returns its problems in the engine's words.
    async fn check_database(&self, quick: bool) -> Result<Vec<String>>;

    /// # Errors
    /// The engine's error for damage, if the database itself is damaged.
    async fn refuse_damage(&self) -> Result<()>;

    /// # Errors
    /// [`Error::FileMoved`] if the database is no longer at its place.
    fn check_place(&self) -> Result<()>;

    /// Takes the account for a copy, whatever its mark says. A store that was opened read-only needs no account.
    ///
    /// # Errors
    /// [`Error::AccountInUse`], [`Error::LeaseLost`], and those of the engine.
    async fn acquire_for_copy(&self) -> Result<()>;

    /// The mark of the account counts again. If it is not the one to use, the handles of this store end.
    fn end_copy(&self, mark: Option<Mark>);

    /// `true` if the store was opened read-only.
    fn is_read_only(&self) -> bool;

    /// The mark of the account.
    async fn mark(&self) -> Result<Option<Mark>>;

    /// Sets or deletes the mark. It is on the disk then, and everything that was written before.
    async fn set_mark(&self, mark: Option<Mark>) -> Result<()>;

    /// Up to `limit` whole rows behind another one, in the order of copies ([`Table::copy_order`]).
    async fn whole_rows(&self, table: &'static Table, behind: Option<WholeRow>, limit: usize) -> Result<Vec<WholeRow>>;

    /// Stores whole rows over those of their keys. New ones come behind the old ones, in the order given.
    async fn put_whole_rows(&self, table: &'static Table, rows: Vec<WholeRow>) -> Result<()>;

    /// Deletes the rows with the keys of these.
    async fn delete_whole_rows(&self, table: &'static Table, rows: Vec<WholeRow>) -> Result<()>;

    /// Copies the database into a new file. `false` if the engine keeps no files.
    async fn back_up(&self, target: &Path) -> Result<bool>;

    /// Ends every handle on the database.
    async fn close_database(&self) -> Result<()>;

    /// The label under which another account's vault derives the key of this account, and the context of this account's
    /// own vault.
    fn key_label(&self) -> String {
        format!("account {}", self.account_number())
    }

    /// # Errors
    /// [`Error::OtherAccounts`] if the caller chose no account, and the database holds other accounts but not the
    /// default one.
    async fn refuse_account_of_chance(&self) -> Result<()> {
        if self.is_chosen() {
            return Ok(());
        }
        let (account, others) = (self.account_number(), self.accounts_in_use().await?);
        if others.is_empty() || others.contains(&account) {
            return Ok(());
        }
        Err(Error::OtherAccounts { account, others })
    }
}
