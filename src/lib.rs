//! Encrypted, cached and observed storage for [whatsapp-rust](https://docs.rs/whatsapp-rust).
//!
//! A bot keeps everything that a thief needs to take over its account in one database, in plaintext. This crate wraps any
//! storage [`Backend`](wacore::store::traits::Backend) in layers: one encrypts every record under the keys of a [`Vault`], one
//! caches, one counts and times. It also brings two backends of its own, `SqliteStore` and `PostgresStore`.
//!
//! ```
//! # use std::sync::Arc;
//! # use wacore::store::InMemoryBackend;
//! use wacore::store::traits::SignalStore;
//! use wastore::{Passphrase, Stack, Vault};
//!
//! # futures::executor::block_on(async {
//! # let store = Arc::new(InMemoryBackend::new());
//! // `store` is any store: `SqliteStore::open("wa.db").await?`, upstream's, yours.
//! let secret = Passphrase::new("correct horse battery staple")?;
//! let vault = Vault::open_or_create(store.clone(), secret).await?;
//! let backend = Stack::new(store).layer(vault.layer()).into_backend();
//!
//! backend.put_session("15550001111:2@s.whatsapp.net", b"a session").await?;
//! # Ok::<(), wastore::Error>(())
//! # }).unwrap();
//! ```
//!
//! Hand the backend to `Bot::builder().with_backend_arc(backend)`.
//!
//! ## Modules
//!
//! | module | for |
//! |--|--|
//! | the root | the names that most programs need: [`Vault`], [`Stack`], [`Passphrase`], [`Key`], [`Error`] |
//! | [`vault`] | settings, key slots, headers, rollback anchors, key providers |
//! | [`sqlite`] | the own store in a file: [`SqliteStore`], its settings, its durability |
//! | [`mod@postgres`] | the own store over PostgreSQL, with one writer per account: [`PostgresStore`], its settings |
//! | [`maintenance`] | the operator's work: rotation, checks, repair, backups, several accounts |
//! | [`mod@import`] | moving in from upstream's SQLite store, and back |
//! | [`cache`], [`metrics`](mod@metrics) | the other two layers |
//! | [`testing`] | a conformance kit for backends |
//! | [`guide`] | how to use all of it, page by page |
//!
//! ## Features
//!
//! | feature | default | brings |
//! |--|--|--|
//! | `sqlite` | yes | `SqliteStore`, `maintenance` |
//! | `bundled-sqlite` | yes | SQLite, compiled in; without it the system's library is linked, 3.37 or later |
//! | `ring` | yes | ring's cipher for records; without it RustCrypto's, slower, the same bytes |
//! | `postgres` | | `PostgresStore`; needs a tokio runtime |
//! | `import` | | `import` |
//! | `cli` | | the command `wastore` |
//! | `metrics` | | everything that is counted goes to the recorder of the `metrics` facade as well |
//! | `tracing` | | a span for each call |
//! | `testing` | | `testing` |
//!
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

#![cfg_attr(docsrs, feature(doc_cfg))]
// Without some features, the tables above name modules that are not there.
#![cfg_attr(
    not(all(feature = "import", feature = "postgres", feature = "testing")),
    allow(rustdoc::broken_intra_doc_links, reason = "docs.rs builds all features")
)]
#![forbid(unsafe_code)]

#[cfg(not(target_arch = "wasm32"))]
mod background;
#[cfg(not(target_arch = "wasm32"))]
pub mod cache;
mod clock;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod durability;
mod encrypt;
mod ended;
mod error;
#[cfg(not(target_arch = "wasm32"))]
mod filesystem;
mod json;
mod layer;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod maintenance;
mod method;
#[cfg(not(target_arch = "wasm32"))]
pub mod metrics;
#[cfg(feature = "postgres")]
pub mod postgres;
mod printable;
#[cfg(not(target_arch = "wasm32"))]
mod private;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
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

pub mod guide;

/// The README, whose examples are tested with the docs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The vault: who can open an encrypted store, and what its header says.
pub mod vault {
    #[cfg(not(target_arch = "wasm32"))]
    pub use crate::encrypt::FileAnchor;
    pub use crate::encrypt::{
        Anchor, Argon2Cost, EncryptLayer, EncryptedCacheStats, EncryptedCacheStore, HeaderCopy, HeaderInfo,
        HeaderStore, KdfLimits, OnDamage, OpenMode, Padding, Revocation, RollbackAnchor, SlotInfo, SlotKind, Vault,
        VaultOptions,
    };
    pub use crate::secret::{KeyProvider, ProviderError};
    #[cfg(feature = "keyring")]
    pub use crate::secret::{KeyringProblem, KeyringProvider};
    #[cfg(feature = "transit")]
    pub use crate::secret::{TransitProblem, TransitProvider};
}

/// Moving in from whatsapp-rust's own SQLite store, and back.
#[cfg(feature = "import")]
pub mod import {
    pub use crate::progress::{Phase, Progress};
    pub use crate::upstream::{AccountToExport, Export, ExportReport, Import, ImportReport, NotRead, RemovedSource};
}

#[cfg(not(target_arch = "wasm32"))]
pub use background::finish_background_work;
#[cfg(not(target_arch = "wasm32"))]
pub use cache::CacheLayer;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use durability::Durability;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use encrypt::fuzz;
pub use encrypt::{Vault, VaultOptions};
pub use error::{Error, Result};
pub use layer::{Closer, IntoBackend, Layer, Stack};
pub use method::{Access, Method, Record};
#[cfg(not(target_arch = "wasm32"))]
pub use metrics::Metrics;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresOptions, PostgresStore};
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
pub use sqlite::{SqliteOptions, SqliteStore};
