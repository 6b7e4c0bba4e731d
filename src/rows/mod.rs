//! The rows of this crate's own stores, whatever engine keeps them: maintenance reads and changes them through here.
//!
//! | file | |
//! |--|--|
//! | `table.rs` | the tables, and what a row of each one holds |
//! | `store.rs` | what maintenance asks of a store |
//! | `encoding.rs` | sealed values in columns that are not plain bytes |
//! | `below.rs` | finding an own store below any layers |

#![cfg_attr(not(feature = "sqlite"), allow(dead_code, unreachable_pub, reason = "no own store is compiled in"))]

pub(crate) mod below;
pub(crate) mod encoding;
pub(crate) mod store;
pub(crate) mod table;

pub(crate) use table::SealedRow;
