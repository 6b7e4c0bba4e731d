//! The rows of this crate's own stores. Maintenance reads and changes them through this module, whatever the engine.
//!
//! | file | |
//! |--|--|
//! | `table.rs` | the tables and the content of their rows |
//! | `store.rs` | the operations of a store that maintenance uses |
//! | `encoding.rs` | sealed values in columns that are not plain bytes |
//! | `device.rs` | the own device in its stored form |
//! | `mark.rs` | the mark of an account that is not the one to use |
//! | `below.rs` | finding an own store below any layers |

#![cfg_attr(not(feature = "sqlite"), allow(dead_code, unreachable_pub, reason = "some of it is for SQLite alone"))]

pub(crate) mod below;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod device;
pub(crate) mod encoding;
pub(crate) mod mark;
pub(crate) mod store;
pub(crate) mod table;

pub(crate) use table::SealedRow;
