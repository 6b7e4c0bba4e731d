//! The store on a PostgreSQL server.
//!
//! | file | |
//! |--|--|
//! | `options.rs`, `url.rs`, `parameters.rs` | settings; the URL of the servers; its parameters |
//! | `connect.rs`, `tls.rs`, `password.rs` | making a connection; its TLS; its password |
//! | `problem.rs` | errors of the driver, reduced to what no data can choose |

#![allow(dead_code, reason = "the store uses it")]

mod connect;
mod options;
mod parameters;
mod password;
mod problem;
#[cfg(test)]
mod tests;
mod tls;
mod url;

pub use crate::durability::Durability;
pub use crate::error::{ForeignSchema, PostgresProblem};
pub use options::PostgresOptions;
