//! The errors of this crate.

mod into_store_error;
mod kind;
#[cfg(feature = "import")]
mod not_read;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(feature = "sqlite")]
use std::path::PathBuf;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use std::{error, sync::Arc};

#[cfg(feature = "import")]
pub use not_read::NotRead;
#[cfg(feature = "postgres")]
pub use postgres::{ForeignSchema, PostgresProblem};
#[cfg(feature = "sqlite")]
pub use sqlite::{ForeignFile, SqliteProblem};
use wacore::store::error::StoreError;

use crate::method::Record;
#[cfg(any(feature = "import", feature = "postgres", feature = "sqlite"))]
use crate::printable::printable;
#[cfg(feature = "sqlite")]
use crate::printable::printable_path;

/// The result of this crate's own functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
///
/// Storage methods return upstream's [`StoreError`]. Errors of the inner store pass through unchanged. An `Error`
/// travels as the source of a [`StoreError`], and [`Error::downcast_ref`] gets it back.
///
/// No text names a key, a passphrase, a JID or a message id. Upstream retries a call if the text of its error contains
/// a word that stands for a congested database (see [`StoreError::is_database_busy_or_locked`]). Only the error of a
/// congested database contains such a word.
///
/// | in | errors |
/// |--|--|
/// | opening, creating and restoring a vault | [`NoVault`](Self::NoVault), [`VaultExists`](Self::VaultExists), [`OtherAccounts`](Self::OtherAccounts), [`WrongSecret`](Self::WrongSecret), [`WrongContext`](Self::WrongContext), [`WrongStore`](Self::WrongStore), [`UnsupportedVersion`](Self::UnsupportedVersion), [`ImportIncomplete`](Self::ImportIncomplete), [`PlaintextDevice`](Self::PlaintextDevice), [`DeviceMissing`](Self::DeviceMissing), [`HeaderMissing`](Self::HeaderMissing), [`HeaderDamaged`](Self::HeaderDamaged), [`HeaderTampered`](Self::HeaderTampered), [`HeaderRolledBack`](Self::HeaderRolledBack), [`KdfOutOfBounds`](Self::KdfOutOfBounds), [`KdfFailed`](Self::KdfFailed), [`KeyProvider`](Self::KeyProvider), [`KeyNotKept`](Self::KeyNotKept), [`NoSlotOfProvider`](Self::NoSlotOfProvider), [`StoreVanished`](Self::StoreVanished), [`RollbackDetected`](Self::RollbackDetected), [`ForkDetected`](Self::ForkDetected), [`AnchorMissing`](Self::AnchorMissing), [`Anchor`](Self::Anchor) |
/// | reading and writing records | [`Tampered`](Self::Tampered), [`Plaintext`](Self::Plaintext), [`UnknownEpoch`](Self::UnknownEpoch), [`Malformed`](Self::Malformed), [`Encode`](Self::Encode), [`InputTooLong`](Self::InputTooLong), [`ReadOnly`](Self::ReadOnly), [`Closed`](Self::Closed), [`AccountDeleted`](Self::AccountDeleted), [`Store`](Self::Store) |
/// | changing keys | [`LastSlot`](Self::LastSlot), [`NoSuchSlot`](Self::NoSuchSlot), [`SlotsFull`](Self::SlotsFull), [`DataKeysFull`](Self::DataKeysFull), [`AmbiguousPassphrase`](Self::AmbiguousPassphrase), [`HeaderConflict`](Self::HeaderConflict) |
/// | one writer per account | [`AccountInUse`](Self::AccountInUse), [`LeaseLost`](Self::LeaseLost), [`AccountMoved`](Self::AccountMoved), [`CopyUnfinished`](Self::CopyUnfinished), [`CopyUnequal`](Self::CopyUnequal) |
/// | PostgreSQL | [`Postgres`](Self::Postgres), [`ForeignSchema`](Self::ForeignSchema) |
/// | SQLite and its files | [`ForeignFile`](Self::ForeignFile), [`FileMoved`](Self::FileMoved), [`SchemaAltered`](Self::SchemaAltered), [`Sqlite`](Self::Sqlite), [`WorkerGone`](Self::WorkerGone) |
/// | maintenance | [`DamagedRecords`](Self::DamagedRecords), [`AccountsNotCovered`](Self::AccountsNotCovered), [`StoreInUse`](Self::StoreInUse), [`RowsMissed`](Self::RowsMissed), [`TargetExists`](Self::TargetExists) |
/// | import and export | [`NotUpstream`](Self::NotUpstream), [`UpstreamTooOld`](Self::UpstreamTooOld), [`UpstreamTooNew`](Self::UpstreamTooNew), [`NoSuchAccount`](Self::NoSuchAccount), [`SeveralAccounts`](Self::SeveralAccounts), [`UnreadableRecord`](Self::UnreadableRecord), [`ImportUnequal`](Self::ImportUnequal), [`SourceChanged`](Self::SourceChanged), [`SourceDamaged`](Self::SourceDamaged), [`SourceHoldsMore`](Self::SourceHoldsMore), [`SourceNotRemoved`](Self::SourceNotRemoved) |
/// | any call | [`InvalidInput`](Self::InvalidInput), [`File`](Self::File), [`Random`](Self::Random) |
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Opening a vault.
    /// The store has no vault header, and it holds nothing that needs one.
    #[error("the store has no vault yet: create one with `wastore init`, `Vault::create` or `Vault::open_or_create`")]
    NoVault,
    /// `create` found a vault, or `restore_header` found the header of another one.
    #[error("the store already has a vault: open it, or choose an empty store")]
    VaultExists,
    /// The database holds accounts, but not the first one. The first one is the default if the caller chose none.
    #[error(
        "the store has no account {account}, but {others:?}: choose one of these with `SqliteStore::account`, or choose {account} there to create it"
    )]
    #[non_exhaustive]
    OtherAccounts {
        /// The missing account.
        account: i32,
        /// The accounts that exist.
        others: Vec<i32>,
    },
    /// No key slot opens with this secret.
    #[error("wrong secret, or the header was altered")]
    WrongSecret,
    /// The secret opens the vault, but the vault is bound to another context, or to none although the caller gave one.
    /// Nothing was written.
    #[error(
        "the secret opens this vault, but it belongs to another account or context: check that stores were not exchanged; give the context with `VaultOptions::context` or `--context`"
    )]
    WrongContext,
    /// The secret opens the vault, but this is not the expected store. Nothing was written.
    #[error("the secret opens this vault, but another store is expected here: check that stores were not exchanged")]
    WrongStore,
    /// This version does not know the format.
    #[error("{what} {found} is not supported, this version knows {newest} at most: use a newer version of wastore")]
    #[non_exhaustive]
    UnsupportedVersion {
        /// The counted thing, for example `header format version`.
        what: &'static str,
        /// The number that was found.
        found: u32,
        /// The highest number that this version of the crate understands.
        newest: u32,
    },
    /// An import into this store was interrupted, so the store is incomplete.
    #[error("an import into this store did not finish: import again into a new file")]
    ImportIncomplete,
    /// The store holds a paired device in plaintext.
    #[error(
        "the store holds a paired plaintext device: a vault never reads plaintext; import it into a new encrypted store with `wastore import`, or move it aside and pair again"
    )]
    PlaintextDevice,
    /// The store had a sealed device once, and it is gone.
    #[error("the sealed device record is missing from the store: restore a backup; pairing again needs a new vault")]
    DeviceMissing,
    /// Both copies of the header are gone, but the store holds sealed records. Nothing was written.
    #[error("the vault header is missing although the store holds sealed records: restore a saved header")]
    HeaderMissing,
    /// No copy of the header is intact: each is truncated, overwritten or not a header.
    #[error("the vault header is damaged: {0}; restore a saved header")]
    HeaderDamaged(&'static str),
    /// The secret fits, but an attacker altered the header without knowing the secret.
    #[error(
        "the vault header was altered without its key: restore a saved header, and find out who can write to the store"
    )]
    HeaderTampered,
    /// The header is older than the records or older than the one in use: it was put back.
    #[error(
        "the vault header is older than the records of the store: restore a saved header with `VaultOptions::restore_header`"
    )]
    HeaderRolledBack,
    /// The header asks for more key-derivation work than the limits allow. Nothing was computed.
    #[error(
        "the vault header asks for {memory_kib} KiB x {passes} passes x {lanes} lanes of key derivation, above the limits: raise `KdfLimits` if a slot was made with such a cost; otherwise the header was altered"
    )]
    #[non_exhaustive]
    KdfOutOfBounds {
        /// Memory, in KiB.
        memory_kib: u32,
        /// Number of passes over the memory.
        passes: u32,
        /// Degree of parallelism.
        lanes: u32,
    },
    /// The key derivation found no memory or no thread.
    #[error("the key derivation could not get a thread or {memory_kib} KiB of memory: free some memory and try again")]
    #[non_exhaustive]
    KdfFailed {
        /// Memory asked for, in KiB.
        memory_kib: u32,
    },
    /// The external key provider failed.
    #[error("the key provider failed")]
    KeyProvider(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The external key provider works, but has no key that opens a slot.
    #[error("the key provider has no key that opens the vault")]
    KeyNotKept(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No slot has the form of the external key provider, which was not asked for a key.
    #[error(
        "no slot of the vault was made with this key provider: look at the slots (`wastore keys list`), and open with another secret"
    )]
    NoSlotOfProvider,
    /// The rollback anchor remembers a store, but none is here any more. Nothing was written.
    #[error(
        "the rollback anchor remembers a store here, but it is gone: put it or its newest backup back; to begin from nothing, call `Vault::create`"
    )]
    StoreVanished,
    /// The rollback anchor remembers a newer header: the store was put back to an earlier state. Nothing was written,
    /// unless the newer store changed its header at the same moment.
    #[error(
        "the store is older than the rollback anchor remembers: it was put back to an earlier state, and the client would use message keys twice; put the newest state back, or accept this one with `OpenMode::AcceptRollback` and link the account again"
    )]
    RollbackDetected,
    /// The rollback anchor remembers another header: a copy of the store went on without this one. Nothing was written,
    /// unless the copy changed its header at the same moment.
    #[error(
        "the rollback anchor remembers another store: a copy of this one went on elsewhere, or this one was used without the anchor; use the other one, or accept this one with `OpenMode::AcceptRollback` and link the account again"
    )]
    ForkDetected,
    /// The rollback anchor remembers nothing of this store, and the store has been in use. Nothing was written.
    #[error(
        "the rollback anchor knows nothing of this store: check that it is the right anchor; if the store was used without one so far, accept it with `OpenMode::AcceptRollback`"
    )]
    AnchorMissing,
    /// The rollback anchor failed. A change of the header that was under way may have happened. Until the anchor works
    /// again, it accepts a copy of the store from before that change.
    #[error("the rollback anchor cannot be used")]
    Anchor(#[source] Box<dyn std::error::Error + Send + Sync>),

    // Reading and writing records.
    /// A sealed record does not verify: it was damaged, altered, or moved from another row or another vault.
    #[error("a {record} record is damaged, altered or out of place")]
    #[non_exhaustive]
    Tampered {
        /// The record's kind.
        record: Record,
    },
    /// A record is in plaintext although it must be sealed. It is never returned, and no vault is created over it.
    #[error("a {record} record is in plaintext although all records here must be sealed")]
    #[non_exhaustive]
    Plaintext {
        /// The record's kind.
        record: Record,
    },
    /// A record is sealed under a data key that the vault does not have.
    #[error(
        "a {record} record is sealed under a data key that this vault does not have: an older header was put in place, or the record belongs to another vault; find it with `wastore verify`, and restore the newest saved header"
    )]
    #[non_exhaustive]
    UnknownEpoch {
        /// The record's kind.
        record: Record,
    },
    /// A stored record cannot be decoded: the database was damaged or edited.
    #[error("a stored {record} record is not well formed: the database was damaged or edited")]
    #[non_exhaustive]
    Malformed {
        /// The record's kind.
        record: Record,
    },
    /// A typed record could not be encoded.
    #[error("a {record} record cannot be encoded")]
    #[non_exhaustive]
    Encode {
        /// The record's kind.
        record: Record,
    },
    /// A key or value is longer than the format can hold.
    #[error("the {what} of a {record} record is too long: {limit} bytes at most")]
    #[non_exhaustive]
    InputTooLong {
        /// The record's kind.
        record: Record,
        /// The part that is too long.
        what: &'static str,
        /// The longest length that the format can hold, in bytes.
        limit: usize,
    },
    /// The vault was opened read-only.
    #[error("the vault is open read-only: `{method}` would change the store")]
    #[non_exhaustive]
    ReadOnly {
        /// The refused method.
        method: &'static str,
    },
    /// A vault or a store was closed.
    #[error("the {what} was closed: open it again")]
    #[non_exhaustive]
    Closed {
        /// `vault` or `store`.
        what: &'static str,
    },
    /// The account was deleted while this handle was in use. Nothing was stored.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    #[error(
        "the account was deleted from the store: stop its client, and open the account again to begin from nothing"
    )]
    AccountDeleted,
    /// An error of the inner store, unchanged.
    #[error(transparent)]
    Store(#[from] StoreError),

    // Changing keys.
    /// The last key slot cannot be removed, because nothing would open the vault after that.
    #[error("the last key slot cannot be removed: add another one first")]
    LastSlot,
    /// No key slot has this number.
    #[error("there is no key slot {0}")]
    NoSuchSlot(u8),
    /// A vault has at most eight key slots.
    #[error("all 8 key slots are in use: remove one first")]
    SlotsFull,
    /// A vault has at most sixteen data keys.
    #[error("all 16 data keys are in use: seal the records of the store again before you add another one")]
    DataKeysFull,
    /// `change_passphrase` cannot tell which passphrase to replace.
    #[error(
        "the vault has {0} passphrase slots and was not opened by one of them: add a slot and remove another one, with `wastore keys` or `Vault::add_slot`"
    )]
    AmbiguousPassphrase(usize),
    /// Another process wrote the header at the same moment.
    #[error("another process wrote the vault header at the same time: open the vault again")]
    HeaderConflict,

    // One writer per account.
    /// Another process writes this account, and went on doing so until the waiting time was over. Nothing was changed.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    #[error(
        "account {account} is in use by another process{}: stop that one, or wait until its lease has run out; a successor takes over at once if both have the same lease name",
        named(name)
    )]
    #[non_exhaustive]
    AccountInUse {
        /// The account.
        account: i32,
        /// The lease name of the other process; empty if it has none.
        name: String,
    },
    /// Another process took the account over, so this handle neither reads nor writes any more. Calls that had
    /// returned `Ok` are stored.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    #[error("another process took account {account} over: disconnect the client, and open the account again")]
    #[non_exhaustive]
    LeaseLost {
        /// The account.
        account: i32,
    },
    /// The account was copied to another store, which is the one to use. Two live copies of one account use its message
    /// keys twice.
    #[error(
        "account {account} moved to another store: use that one; if it is gone and was never used, take this account back with `wastore accounts reclaim`"
    )]
    #[non_exhaustive]
    AccountMoved {
        /// The account.
        account: i32,
    },
    /// A copy has other rows than its source. The source was not closed off.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    #[error("the copy of {record} differs from the source: end what writes the source, and run the copy again")]
    #[non_exhaustive]
    CopyUnequal {
        /// The kind of the records.
        record: Record,
    },
    /// The account is the beginning of a copy from another store, which still is the one to use.
    #[error(
        "account {account} is an unfinished copy of another store: finish it with the same `wastore copy`, or delete it with `wastore accounts delete`"
    )]
    #[non_exhaustive]
    CopyUnfinished {
        /// The account.
        account: i32,
    },

    // PostgreSQL.
    /// PostgreSQL could not run the call.
    #[cfg(feature = "postgres")]
    #[error("{problem}")]
    #[non_exhaustive]
    Postgres {
        /// The problem, and how to solve it.
        problem: PostgresProblem,
        /// The server's code. It contains no words that the content of the database could choose.
        source: Arc<dyn error::Error + Send + Sync>,
    },
    /// The schema of the PostgreSQL database is not a store of this crate. Nothing was changed.
    #[cfg(feature = "postgres")]
    #[error("the schema {} {found}", printable(schema))]
    #[non_exhaustive]
    ForeignSchema {
        /// The name of the schema.
        schema: String,
        /// The kind of schema.
        found: ForeignSchema,
    },

    // SQLite.
    /// The path of the file.
    #[cfg(feature = "sqlite")]
    #[error("{} {found}", printable_path(path))]
    #[non_exhaustive]
    ForeignFile {
        /// The path of the file.
        path: PathBuf,
        /// The kind of file.
        found: ForeignFile,
    },
    /// The database file is no longer at its path. Data of the failed call may be lost when the store is closed.
    #[cfg(feature = "sqlite")]
    #[error(
        "the database file or its write-ahead log was moved, deleted or replaced while the store was open: put it back, or open the store again"
    )]
    FileMoved,
    /// The tables and indexes of the database are not the ones that this crate makes. One was added, altered or
    /// removed, so statements could have another meaning. Nothing was read or written.
    #[cfg(feature = "sqlite")]
    #[error(
        "the schema of the database was altered, see {object}: restore a backup, and find out who can write to the file; remove the object if you made it yourself"
    )]
    #[non_exhaustive]
    SchemaAltered {
        /// The first object that differs, with control characters escaped, at most 256 characters.
        object: String,
    },
    /// SQLite could not run the call.
    #[cfg(feature = "sqlite")]
    #[error("{problem}")]
    #[non_exhaustive]
    Sqlite {
        /// The problem, and how to solve it.
        problem: SqliteProblem,
        /// SQLite's code. It contains no words that the content of the file could choose.
        source: Arc<dyn error::Error + Send + Sync>,
    },
    /// A thread of the store stopped in the middle of the call. It is unknown whether the call was stored.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    #[error("the store stopped in the middle of the call: open it again to see whether the call was stored")]
    WorkerGone,

    // Maintenance.
    /// Damaged records could not be sealed again. The old data keys were kept.
    #[error(
        "{count} records are damaged and could not be sealed again; the old data key is kept: list them with `wastore verify`, and restore a backup or leave them behind"
    )]
    #[non_exhaustive]
    DamagedRecords {
        /// The number of damaged records.
        count: u64,
    },
    /// A revocation would leave accounts out. Nothing was changed.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    #[error(
        "a revocation covers all accounts, but the secret does not open all of them: accounts {accounts:?} have another secret, no vault, or a damaged one; look at them with `wastore inspect`, or leave them as they are with `Rotate::except` or `--except`"
    )]
    #[non_exhaustive]
    AccountsNotCovered {
        /// The numbers of the accounts.
        accounts: Vec<i32>,
    },
    /// Another process or a backup has the database open. It might go on writing under a data key that is to be
    /// forgotten.
    #[cfg(feature = "sqlite")]
    #[error("another process, or a backup, has the store open: end it and try again, or do this in the same process")]
    StoreInUse,
    /// A table has rows that a read in the order of its keys does not find, or its index has entries without a row.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    #[error(
        "{seen} rows of the table {table} could be read, but it has {counted}: it is damaged or was altered, restore a backup"
    )]
    #[non_exhaustive]
    RowsMissed {
        /// The table.
        table: &'static str,
        /// The number of rows that were read.
        seen: u64,
        /// The number of rows, or of entries in the index of the key.
        counted: u64,
    },
    /// Another file is in the place of a new one. It was not touched.
    #[cfg(feature = "sqlite")]
    #[error("{} is there already: choose another name, or move the file away", printable_path(path))]
    TargetExists {
        /// The path of the file.
        path: PathBuf,
    },

    // Import and export.
    /// The file to import from is not a database of whatsapp-rust's SQLite store.
    #[cfg(feature = "import")]
    #[error(
        "{} is {found}: give the database of a bot that runs on whatsapp-rust's own SQLite store",
        printable_path(path)
    )]
    #[non_exhaustive]
    NotUpstream {
        /// The path of the file.
        path: PathBuf,
        /// The kind of file.
        found: &'static str,
    },
    /// The database to import from lacks a migration of whatsapp-rust.
    #[cfg(feature = "import")]
    #[error(
        "{} lacks whatsapp-rust's migration `{migration}`: start the bot once with whatsapp-rust 0.7, which brings its database up to date",
        printable_path(path)
    )]
    #[non_exhaustive]
    UpstreamTooOld {
        /// The path of the file.
        path: PathBuf,
        /// The first missing migration.
        migration: &'static str,
    },
    /// The database to import from was written by a later version of whatsapp-rust.
    #[cfg(feature = "import")]
    #[error(
        "{} has whatsapp-rust's migration {}, which this version does not know: use a newer version of wastore",
        printable_path(path),
        printable(migration)
    )]
    #[non_exhaustive]
    UpstreamTooNew {
        /// The path of the file.
        path: PathBuf,
        /// The number of the migration.
        migration: String,
    },
    /// The source of an import or a copy has no such account.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    #[error("the source has no account {0}: choose one that it has")]
    NoSuchAccount(i32),
    /// The database to import from has several accounts, and the caller chose none.
    #[cfg(feature = "import")]
    #[error("the source has {0} accounts: choose one with `--account`, or all with `--all-accounts`")]
    SeveralAccounts(usize),
    /// A record of the source cannot be read, so the copy would be incomplete.
    #[cfg(feature = "import")]
    #[error("a {record} record of the source cannot be read: {problem}")]
    #[non_exhaustive]
    UnreadableRecord {
        /// The record's kind.
        record: Record,
        /// The problem with it.
        problem: &'static str,
    },
    /// A record read back from the new store differs from the source. The new store was discarded.
    #[cfg(feature = "import")]
    #[error(
        "a {record} record differs from the source after the import, and the new store was discarded: please report this"
    )]
    #[non_exhaustive]
    ImportUnequal {
        /// The record's kind.
        record: Record,
    },
    /// Another process wrote to the source during the import.
    #[cfg(feature = "import")]
    #[error("the source was written to during the import: stop the bot and import again")]
    SourceChanged,
    /// The source is damaged, so an import would be incomplete. Nothing was made.
    #[cfg(feature = "import")]
    #[error(
        "the source is damaged and cannot be read completely: import a copy that `sqlite3 … .recover` made, or a backup"
    )]
    SourceDamaged,
    /// The caller asked to remove the source, but it holds more than an import reads. Nothing was made.
    #[cfg(feature = "import")]
    #[error(
        "the source cannot be removed because it holds data that an import does not read: {}",
        not_read::listed(not_read)
    )]
    #[non_exhaustive]
    SourceHoldsMore {
        /// The unread tables and rows.
        not_read: Vec<NotRead>,
    },
    /// The import is complete, but the source could not be removed afterwards. All of it or a part is still there.
    #[cfg(feature = "import")]
    #[error(
        "the new store is complete, but the source could not be removed completely: make sure that no process has used it since, and delete it yourself"
    )]
    #[non_exhaustive]
    SourceNotRemoved {
        /// The error of the operating system or of SQLite.
        source: std::io::Error,
    },

    // Any call.
    /// A setting or an input is outside of the limits of the format.
    #[error("{what} {problem}")]
    InvalidInput {
        /// The setting or input, for example `passphrase`.
        what: &'static str,
        /// The problem, and the allowed values.
        problem: &'static str,
    },
    /// A file could not be read or written.
    #[error("cannot use the {what} file")]
    File {
        /// The content of the file, for example `passphrase`.
        what: &'static str,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Random,
}

impl Error {
    /// Returns this crate's error behind an error of a storage method, or `None` if it came from the inner store.
    ///
    /// ```
    /// use wastore::Error;
    /// let from_a_layer = wacore::store::error::StoreError::from(Error::WrongSecret);
    /// assert!(matches!(Error::downcast_ref(&from_a_layer), Some(Error::WrongSecret)));
    /// ```
    pub fn downcast_ref(error: &StoreError) -> Option<&Error> {
        match error {
            StoreError::Serialization(source) | StoreError::Database(source) | StoreError::Connection(source) => {
                source.downcast_ref()
            }
            _ => None,
        }
    }
}

/// The lease name of another process in a text.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn named(name: &str) -> String {
    // Upstream looks for these words in errors, and would retry.
    let is_misleading = ["locked", "busy"].iter().any(|word| name.to_lowercase().contains(word));
    if name.is_empty() || is_misleading { String::new() } else { format!(" with the lease name `{}`", printable(name)) }
}

impl From<getrandom::Error> for Error {
    fn from(_: getrandom::Error) -> Self {
        Error::Random
    }
}
