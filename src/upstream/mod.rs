//! Moving between whatsapp-rust's own SQLite database and an encrypted store.
//!
//! | file | |
//! |--|--|
//! | `import.rs` | [`Import`]: an existing database into a new encrypted store |
//! | `source.rs` | reading that database |
//! | `remove.rs` | removing the database that was imported |
//! | `export.rs`, `schema.sql` | [`Export`]: the way back |
//! | `records.rs` | the copied records, in batches: reading, storing and comparing them |
//! | `schema.rs` | telling upstream's databases, and their age, from others |
//! | `wire.rs` | upstream's encoding of values in single columns |
//!
//! Source of the schema and the encodings: `whatsapp-rust-sqlite-storage` 0.7.0, `migrations/`, `src/sqlite_store.rs` and
//! `src/wire.rs`.

mod export;
mod import;
mod records;
mod remove;
pub(crate) mod schema;
mod source;
mod wire;

pub use crate::error::NotRead;
pub use export::{AccountToExport, Export, ExportReport};
pub use import::{Import, ImportReport};
pub use remove::RemovedSource;
