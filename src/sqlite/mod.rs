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
//! | `rows.rs` | what maintenance does with rows |
//! | `tables.rs`, `pages.rs`, `walk.rs` | the statements of the tables; reading a page of rows, damaged ones too; one page after the other |
//! | `signal.rs`, `app_sync.rs`, `protocol.rs`, `device.rs`, `msg_secret.rs` | the SQL, one file per upstream trait |

mod app_sync;
pub(crate) mod connection;
mod coop;
mod database;
mod device;
pub(crate) mod files;
mod idle;
mod location;
mod msg_secret;
mod open_files;
mod options;
mod pages;
mod patience;
mod plan;
mod protocol;
pub(crate) mod read_only;
mod readers;
mod restore;
mod rows;
pub(crate) mod schema;
mod signal;
pub(crate) mod snapshot;
mod store;
mod tables;
#[cfg(test)]
mod tests;
mod wal;
mod walk;
mod writer;

pub use crate::error::{ForeignFile, SqliteProblem};
pub use options::{Durability, SqliteOptions};
pub use store::SqliteStore;
