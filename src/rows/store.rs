//! What maintenance asks of an own store, whatever engine keeps it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use wacore::store::traits::Backend;

use super::table::{SealedRow, Table, TableSize};
use crate::error::{Error, Result};
use crate::method::Record;

/// A store of this crate: [`SqliteStore`](crate::SqliteStore), a reference to one, or an `Arc` of one.
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

/// A row that was read: its id, or its place in the order of the keys from 1, and the row or the damage it has. `None`
/// stands for a row that no vault seals, such as the copy of a header.
pub(crate) type Found = (i64, Result<Option<SealedRow>>);

/// Which tables are meant.
pub(crate) type TableFilter = fn(&Table) -> bool;

/// The first bytes of a sealed value: they say under which data key it is, and from which generation of the header.
pub(crate) const PREFIX_BYTES: usize = 14;

/// What the value of a row says of itself in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowPrefix {
    pub(crate) table: &'static str,
    /// The row id, or its place in the order of the keys from 1.
    pub(crate) row: i64,
    /// `None` if there are not as many bytes, or they cannot be read.
    pub(crate) prefix: Option<[u8; PREFIX_BYTES]>,
}

/// How many rows of an account a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CountedRows {
    pub(crate) table: &'static str,
    pub(crate) rows: u64,
}

/// Another value for a row that is still as it was read.
pub(crate) struct Replacement {
    /// The id that it was found with, and its key columns.
    pub(crate) id: i64,
    pub(crate) columns: Vec<Vec<u8>>,
    pub(crate) old: Vec<u8>,
    pub(crate) new: Vec<u8>,
}

/// A row as it was found, to be deleted if it still is.
pub(crate) struct RowAsFound {
    pub(crate) table: &'static Table,
    pub(crate) id: i64,
    /// Of its content; `None` if it cannot be read.
    pub(crate) hash: Option<[u8; 32]>,
}

impl RowAsFound {
    pub(crate) fn new(table: &'static Table, id: i64, found: &Result<Option<SealedRow>>) -> Self {
        let hash = found.as_ref().ok().and_then(Option::as_ref).map(SealedRow::hash);
        Self { table, id, hash }
    }

    /// `true` if the row with this id is still the same. A row that no vault seals never is: where ids are places, the copy
    /// of a header may have taken the place of a row that could not be read.
    pub(crate) fn is(&self, found: &Result<Option<SealedRow>>) -> bool {
        !matches!(found, Ok(None)) && Self::new(self.table, self.id, found).hash == self.hash
    }
}

/// The addresses of a user's sessions: all that begin with the prefix and an `@`, and the other ones.
pub(crate) struct UserAddresses {
    pub(crate) prefix: String,
    pub(crate) bare: Vec<String>,
}

/// Reads the rows of one account, a table after the other and a page at a time. Rows that are there from the first page to
/// the last are all seen, whatever else is stored and deleted in between. A row that cannot be read is damaged, and the
/// rows behind it are seen.
#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
pub(crate) trait RowReader: Send {
    /// Begins at the first row of a table.
    fn begin(&mut self, table: &'static Table);

    /// The next page; `None` behind the last one.
    ///
    /// # Errors
    /// [`Error::RowsMissed`] in the place of the end, if a snapshot shows other rows than the table has, and those of the
    /// engine.
    async fn next(&mut self) -> Result<Option<Vec<Found>>>;

    /// How many rows the account has, all tables together.
    async fn count(&mut self) -> Result<u64>;
}

/// One account of an own store.
#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
pub(crate) trait Rows: Backend + fmt::Debug {
    fn account_number(&self) -> i32;

    /// Another account of the same database.
    fn account(&self, number: i32) -> Arc<dyn Rows>;

    /// `true` if the caller has said which account it is, and does not just have the one that comes first.
    fn is_chosen(&self) -> bool;

    /// What no other account, and no other opening of the same database, has in common with this one.
    fn identity(&self) -> (usize, i32);

    /// Where the store is, for a rollback anchor to remember; `None` if it is on its way to its place, or has none.
    fn place(&self) -> Option<Vec<u8>>;

    /// The numbers of the accounts that hold anything, in ascending order.
    async fn accounts_in_use(&self) -> Result<Vec<i32>>;

    /// Reads rows while they are written: each page is from a moment of its own.
    fn rows(&self) -> Box<dyn RowReader>;

    /// Reads rows as they are at one moment.
    async fn snapshot(&self) -> Result<Box<dyn RowReader>>;

    /// How many rows the account has in some tables.
    async fn count(&self, which: TableFilter) -> Result<u64>;

    /// How much is in each table, all accounts together.
    async fn sizes(&self) -> Result<Vec<TableSize>>;

    /// Shows the first bytes of every value of the account that a data key seals, and gives how many rows each table with
    /// such values has.
    ///
    /// # Errors
    /// [`Error::RowsMissed`], and those of the engine.
    async fn sealed_prefixes(&self, each: Box<dyn FnMut(RowPrefix) + Send>) -> Result<Vec<CountedRows>>;

    /// Replaces the values that are still as they were read, in one transaction, and gives how many.
    async fn replace(&self, table: &'static Table, rows: Vec<Replacement>) -> Result<u64>;

    /// Deletes the rows that are still as they were found, in one transaction, and says of each whether it was. Where ids
    /// are places, they are those from before the first deletion. Rows of `mutation_macs` and `sender_key_devices` are never
    /// named here; [`Rows::delete_all`] deletes them.
    async fn delete(&self, rows: Vec<RowAsFound>) -> Result<Vec<bool>>;

    /// Deletes every row of some kinds of record, in one transaction, and gives how many of each.
    async fn delete_all(&self, records: Vec<Record>) -> Result<Vec<(Record, u64)>>;

    /// Deletes the sessions with some addresses, and rows that are still as they were found, in one transaction. Gives the
    /// values of the sessions, `None` for what cannot be read, and how many of the rows were deleted.
    async fn delete_sessions(
        &self,
        of: Vec<UserAddresses>,
        rows: Vec<RowAsFound>,
    ) -> Result<(Vec<Option<Vec<u8>>>, u64)>;

    /// # Errors
    /// [`Error::StoreInUse`] if another process can write to the store.
    async fn refuse_others(&self) -> Result<()>;

    /// Waits until every call that was made before has been carried out.
    async fn drain(&self) -> Result<()>;

    /// Brings everything that was written to its last place, if no one is in the way.
    async fn settle(&self);

    /// Brings everything that was written to its last place, so that no log holds what it replaced.
    async fn checkpoint(&self) -> Result<()>;

    /// Rewrites the store, so that no unused part of it holds what was replaced.
    async fn rewrite(&self) -> Result<()>;

    /// Checks the database itself; gives what is wrong with it, in the engine's words.
    async fn check_database(&self, quick: bool) -> Result<Vec<String>>;

    /// # Errors
    /// An error of the engine, as damaged, if the database itself is damaged.
    async fn refuse_damage(&self) -> Result<()>;

    /// # Errors
    /// [`Error::FileMoved`] if the database is not what is at its place any more.
    fn check_place(&self) -> Result<()>;

    /// Copies the database into a file that is not there yet.
    async fn back_up(&self, target: &Path) -> Result<()>;

    /// Ends every handle on the database.
    async fn close_database(&self) -> Result<()>;

    /// The label of the key that another account's vault derives for this one, and the context of its own vault.
    fn key_label(&self) -> String {
        format!("account {}", self.account_number())
    }

    /// # Errors
    /// [`Error::OtherAccounts`] if this is just the account that comes first, and the database is that of others.
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
