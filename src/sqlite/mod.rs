//! The embedded default: an SQLite store that is faster than upstream's, and the reference
//! implementation of the traits.
//!
//! | file | |
//! |--|--|
//! | `store.rs`, `options.rs` | the store and its accounts; its settings |
//! | `database.rs`, `wal.rs` | opening, reading and closing a database; its write-ahead log |
//! | `readers.rs` | the reading connections |
//! | `files.rs` | the files of a database: their names, and which of them may be used |
//! | `writer.rs`, `write_plan.rs` | the writing connection, how calls share it; the properties of a call before it runs |
//! | `transaction.rs`, `commits.rs` | transactions; checkpoints after a commit |
//! | `lease.rs`, `acquire.rs`, `keeper.rs` | one writer per account: checking its lease, taking it, looking after it |
//! | `open_files.rs` | which files this process has open, and the checks before opening one |
//! | `idle.rs` | work to do while a database is idle |
//! | `read_only.rs` | opening a database without changing anything |
//! | `connection.rs`, `location.rs`, `backoff.rs` | running statements; where a database is; waiting for others |
//! | `coop.rs` | yielding to other tasks |
//! | `schema.rs`, `migrations/` | the schema, telling our files from others, and noticing an altered schema |
//! | `snapshot.rs` | backups, snapshots, rewrites and upkeep |
//! | `restore.rs` | putting a backup in the place of a store |
//! | `rows.rs` | the row operations of maintenance |
//! | `tables.rs`, `pages.rs`, `walk.rs` | the statements of the tables; reading a page of rows; walking from page to page |
//! | `whole_rows.rs` | copying rows as they are |
//! | `signal.rs`, `app_sync.rs`, `protocol.rs`, `device.rs`, `msg_secret.rs` | the SQL, one file per upstream trait |

mod acquire;
mod app_sync;
mod backoff;
mod commits;
pub(crate) mod connection;
mod coop;
mod database;
mod device;
pub(crate) mod files;
mod idle;
mod keeper;
mod lease;
mod location;
mod msg_secret;
mod open_files;
mod options;
mod pages;
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
mod transaction;
mod wal;
mod walk;
mod whole_rows;
mod write_plan;
mod writer;

pub use crate::durability::Durability;
pub use crate::error::{ForeignFile, SqliteProblem};
pub use options::SqliteOptions;
pub use store::SqliteStore;
