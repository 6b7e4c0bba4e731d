#![doc = include_str!("../README.md")]
//! ## Words
//!
//! | word | meaning |
//! |--|--|
//! | [layer](Layer) | wraps a backend and is one itself; this crate has layers that encrypt, cache and measure |
//! | [stack](Stack) | a backend and the layers over it, the outermost last |
//! | [vault](Vault) | the keys of one encrypted store. Its header lies in the store, and opens with a secret |
//! | [slot](vault::SlotInfo) | a place in the header for one secret that opens the vault: a passphrase, a key, a recovery key. There are eight |
//! | data key | seals the values of records; `maintenance::Rotate` replaces it and seals every record again |
//! | [anchor](vault::RollbackAnchor) | remembers the newest header elsewhere, so that an older copy of the store is noticed |
#![forbid(unsafe_code)]

#[cfg(not(target_arch = "wasm32"))]
mod background;
#[cfg(not(target_arch = "wasm32"))]
pub mod cache;
mod clock;
mod encrypt;
mod ended;
mod error;
#[cfg(not(target_arch = "wasm32"))]
mod filesystem;
mod json;
mod layer;
#[cfg(feature = "sqlite")]
pub mod maintenance;
mod method;
#[cfg(not(target_arch = "wasm32"))]
pub mod metrics;
mod printable;
#[cfg(not(target_arch = "wasm32"))]
mod private;
#[cfg(feature = "sqlite")]
mod progress;
mod rows;
mod secret;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(not(target_arch = "wasm32"))]
mod striped;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(feature = "import")]
mod upstream;

/// The vault: who can open an encrypted store, and what its header says.
pub mod vault {
    #[cfg(not(target_arch = "wasm32"))]
    pub use crate::encrypt::FileAnchor;
    pub use crate::encrypt::{
        Anchor, Argon2Cost, EncryptLayer, HeaderCopy, HeaderInfo, HeaderStore, KdfLimits, OnDamage, OpenMode, Padding,
        Revocation, RollbackAnchor, SlotInfo, SlotKind, Vault, VaultOptions,
    };
    pub use crate::secret::KeyProvider;
}

/// Moving in from whatsapp-rust's own SQLite store, and back.
#[cfg(feature = "import")]
pub mod import {
    pub use crate::upstream::{AccountToExport, Export, ExportReport, Import, ImportReport, NotRead, RemovedSource};
}

#[cfg(not(target_arch = "wasm32"))]
pub use background::finish_background_work;
#[cfg(not(target_arch = "wasm32"))]
pub use cache::CacheLayer;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use encrypt::fuzz;
pub use encrypt::{Vault, VaultOptions};
pub use error::{Error, Result};
pub use layer::{Closer, IntoBackend, Layer, Stack};
pub use method::{Access, Method, Record};
#[cfg(not(target_arch = "wasm32"))]
pub use metrics::Metrics;
#[doc(hidden)]
pub use printable::printable;
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
pub use printable::printable_path;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use private::write_new;
pub use secret::{Key, Passphrase, RecoveryKey, Secret};
#[cfg(feature = "sqlite")]
pub use sqlite::{Durability, SqliteOptions, SqliteStore};
