//! `PostgresStore`, a backend that spans machines, with one writer per account.
//!
//! ```text
//!   calls ──► queue ──► writing lane ──► one connection: one group at a time, in order
//!   calls ──► queue ──► reading lane ──► one connection: many statements at once
//!   sweeps, listings ─► lane for long work ─► one connection
//! ```
//!
//! | file | |
//! |--|--|
//! | `store.rs` | the store and its accounts; how a method becomes a call |
//! | `options.rs`, `url.rs`, `parameters.rs` | its settings; the URL of the servers; its parameters |
//! | `lane.rs` | calls and queues |
//! | `writer.rs`, `group.rs` | the writing lane; making one transaction of the calls that wait together |
//! | `reader.rs` | the lanes for reads and for long work |
//! | `lease.rs`, `leases.rs`, `written.rs` | who may write an account; whether a failover took writes back |
//! | `statement.rs`, `decode.rs` | the form of statements, the fence, parameters; reading rows |
//! | `link.rs`, `connect.rs`, `tls.rs`, `password.rs` | a live connection; making one; its TLS; its password |
//! | `core.rs`, `server.rs`, `stats.rs` | the parts that all lanes share; telling servers apart; counts |
//! | `failure.rs`, `problem.rs` | why an attempt failed; the errors of callers |
//! | `header.rs` | the compare-and-swap of a vault's header |
//! | `schema.rs`, `migrations/` | the schema, and telling it from others |
//! | `rows.rs`, `tables.rs`, `walk.rs`, `whole_rows.rs` | for maintenance: the rows of an account, their SQL, reading all of them, copying them |
//! | `signal.rs`, `app_sync.rs`, `protocol.rs`, `device.rs`, `msg_secret.rs` | the SQL, one file per upstream trait; `protocol_statements.rs` has that of `protocol.rs` |

mod app_sync;
mod connect;
mod core;
mod decode;
mod device;
mod failure;
mod group;
mod header;
mod lane;
mod lease;
mod leases;
mod link;
mod msg_secret;
mod options;
mod parameters;
mod password;
mod problem;
mod protocol;
mod protocol_statements;
mod reader;
mod rows;
mod schema;
mod server;
mod signal;
mod statement;
mod stats;
mod store;
mod tables;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
mod url;
mod walk;
mod whole_rows;
mod writer;
mod written;

pub use crate::durability::Durability;
pub use crate::error::{ForeignSchema, PostgresProblem};
pub use options::PostgresOptions;
pub(crate) use stats::Counters;
pub use stats::PostgresStats;
#[cfg(test)]
pub(crate) use stats::Wait;
#[cfg(feature = "metrics")]
pub(crate) use stats::WaitObserver;
pub use store::PostgresStore;
