//! The embedded default: an SQLite store that is faster than upstream's, and the reference implementation of the traits.
//!
//! | file | |
//! |--|--|
//! | `store.rs`, `options.rs` | the store and its accounts; its settings |
//! | `database.rs` | one open database: readers, the write-ahead log, what lies at its path |
//! | `files.rs` | the files of a database: their names, and which of them may be used |
//! | `writer.rs` | the writing connection, and how calls share it and its commits |
//! | `open_files.rs` | which files are open here, and what is looked at before |
//! | `idle.rs` | emptying the log of a database that nobody writes to |
//! | `read_only.rs` | opening a database without changing anything |
//! | `connection.rs`, `patience.rs` | settings of a connection; running statements; waiting for others |
//! | `schema.rs`, `migrations/` | the schema, telling our files from others, and noticing that the schema was altered |
//! | `snapshot.rs` | backups, snapshots, rewrites and upkeep |
//! | `restore.rs` | putting a backup in the place of a store, and keeping backups in a folder |
//! | `own.rs` | finding this store below any layers |
//! | `tables.rs`, `rows.rs`, `verify.rs`, `repair.rs`, `rotate.rs` | the tables; reading every row as it lies in them; checking it; dropping it; sealing it anew |
//! | `signal.rs`, `app_sync.rs`, `protocol.rs`, `device.rs`, `msg_secret.rs` | the SQL, one file per upstream trait |

mod app_sync;
mod connection;
mod database;
mod device;
mod fairness;
mod files;
mod idle;
mod msg_secret;
mod open_files;
mod options;
mod own;
mod patience;
mod protocol;
mod read_only;
mod readers;
mod repair;
mod restore;
mod rotate;
mod rows;
mod schema;
mod signal;
mod snapshot;
mod store;
mod tables;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

#[cfg(feature = "import")]
pub(crate) use files::{COMPANIONS, beside, cannot_write, explained, publish, refuse_pipes, refuse_taken};
pub use options::{Durability, SqliteConfig};
#[cfg(feature = "import")]
pub(crate) use read_only::{Quiet, connect_immutable};
pub use repair::{ForgetReport, Repair, RepairProgress, RepairReport};
pub use rotate::{RevokeReport, Rotate, RotateProgress, RotateReport};
pub(crate) use rows::{Pages, Snapshot};
#[cfg(feature = "import")]
pub(crate) use snapshot::STEPS_BETWEEN_LOOKS;
pub use store::SqliteStore;
pub(crate) use tables::TABLES;
pub use verify::{DamagedRow, InspectedAccount, Inspection, TableSize, Verify, VerifyProgress, VerifyReport};
#[cfg(feature = "import")]
pub(crate) use {connection::guard, schema::APPLICATION_ID};
