//! Encryption at rest over any [`Backend`](wacore::store::traits::Backend).
//!
//! [`Vault`] holds the keys of one store, and [`EncryptLayer`] uses them. Names become blinded tokens, values become
//! sealed envelopes, and the one 32-byte value that cannot grow becomes a block. For each kind of record, the file
//! named after its upstream trait decides about the details.
//!
//! | | |
//! |--|--|
//! | `vault/` | creating, opening and changing vaults: header, slots, key derivation, rollback |
//! | `format/` | the stored format: envelope, token, block, keys |
//! | `layer.rs` | the layer, and the code that the five files below share |
//! | `signal.rs`, `app_sync.rs`, `protocol.rs`, `device.rs`, `msg_secret.rs` | one file per upstream trait |
//! | `cache_store.rs` | the same for the client's external cache |
//! | `cipher.rs` | sealing and opening with the keys of an open vault |
//! | `columns.rs`, `carrier.rs` | the key columns of each kind of record; where a sealed value lies in typed records |
//! | `sealed_row.rs` | rows as they are in a table |
//! | `fuzz.rs` | entry points of the fuzz targets |
//!
//! An attacker who reads the store learns how many rows there are and how long values are (unless padded). They also
//! learn the ids, flags and times that the inner store computes with, and which rows belong to the same pseudonym.
//!
//! An attacker who writes to the store can delete rows and put back older versions of a row. Any other change is an
//! error when the row is read, except that an altered message secret comes back as random bytes. `docs/threat-model.md`
//! says this in full.

#![cfg_attr(
    not(feature = "sqlite"),
    allow(dead_code, reason = "only own stores list, check and seal their rows again")
)]

mod app_sync;
mod cache_store;
mod carrier;
pub(crate) mod cipher;
pub(crate) mod columns;
mod device;
pub(crate) mod format;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod layer;
mod msg_secret;
mod protocol;
pub(crate) mod sealed_row;
mod signal;
#[cfg(test)]
mod tests;
pub(crate) mod vault;

pub use cache_store::{EncryptedCacheStats, EncryptedCacheStore};
pub use format::padding::Padding;
pub use layer::EncryptLayer;
pub use vault::copies::{HeaderCopy, HeaderStore};
#[cfg(not(target_arch = "wasm32"))]
pub use vault::file_anchor::FileAnchor;
pub use vault::handle::Vault;
pub use vault::inspect::HeaderInfo;
pub use vault::kdf::{Argon2Cost, KdfLimits};
pub use vault::options::{OnDamage, OpenMode, VaultOptions};
pub use vault::rollback::{Anchor, RollbackAnchor};
pub use vault::rotate::Revocation;
pub use vault::slot::{SlotInfo, SlotKind};
