//! Tests that need to see both sides of the layer: the client's records and the inner store's rows.

mod at_rest;
mod bad_header;
mod bad_records;
mod cache_store;
mod device;
mod forwarding;
mod fuzz;
mod golden;
mod hostile_store;
mod interop;
mod interrupted;
#[cfg(all(target_os = "linux", feature = "sqlite", feature = "keyring", feature = "transit"))]
#[allow(dead_code, clippy::print_stderr, reason = "other tests use the rest, and skipped ones say so")]
#[path = "../../../tests/services/keyring.rs"]
mod keyring_service;
#[cfg(feature = "import")]
mod listing;
#[cfg(feature = "sqlite")]
mod long_listing;
#[cfg(feature = "sqlite")]
mod memory;
#[cfg(all(target_os = "linux", feature = "sqlite", feature = "keyring", feature = "transit"))]
#[allow(dead_code, clippy::print_stderr, reason = "other tests use the rest, and skipped ones say so")]
#[path = "../../../tests/services/openbao.rs"]
mod openbao;
#[cfg(all(target_os = "linux", feature = "sqlite", feature = "keyring", feature = "transit"))]
mod provider_memory;
mod rollback;
mod vault;
mod vectors;

use std::sync::Arc;

use tempfile::TempDir;
use wacore::store::InMemoryBackend;
use wacore::store::error::StoreError;
use wacore::store::traits::Backend;
use whatsapp_rust_sqlite_storage::SqliteStore;

use crate::vault::{Argon2Cost, HeaderCopy};
use crate::{Error, Key, Layer, Passphrase, Vault, VaultOptions};

/// The number of repeats of a randomised test: more under `WASTORE_LONG=1`.
fn rounds(usual: u64, long: u64) -> u64 {
    if std::env::var_os("WASTORE_LONG").is_some() { long } else { usual }
}

/// The cheapest allowed key derivation, so that tests are fast.
fn options() -> VaultOptions {
    VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM)
}

fn passphrase() -> Passphrase {
    Passphrase::new("correct horse battery staple").unwrap()
}

/// A raw key, for tests that are not about passphrases.
fn raw_key() -> Key {
    Key::from_bytes(&mut [0x5a; 32])
}

fn memory() -> Arc<dyn Backend> {
    Arc::new(InMemoryBackend::new())
}

/// Upstream's SQLite store in a file of its own.
struct Sqlite {
    store: Arc<dyn Backend>,
    folder: TempDir,
}

impl Sqlite {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { store: open_sqlite(&folder).await, folder }
    }
}

/// A store of each kind. The test writes its rows and header copies directly.
struct Scratch {
    store: Arc<dyn Backend>,
    folder: Option<TempDir>,
}

impl Scratch {
    async fn all() -> Vec<Self> {
        let upstream = Sqlite::new().await;
        vec![
            Self { store: memory(), folder: None },
            Self { store: upstream.store, folder: Some(upstream.folder) },
            #[cfg(feature = "sqlite")]
            Self::own().await,
        ]
    }

    #[cfg(feature = "sqlite")]
    async fn own() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::SqliteOptions::new().durability(crate::Durability::Process);
        let store = Arc::new(config.open(folder.path().join("own.db")).await.unwrap());
        Self { store, folder: Some(folder) }
    }
}

type Headers = [Option<Vec<u8>>; 2];

async fn headers(store: &Arc<dyn Backend>) -> Headers {
    let mut headers = [None, None];
    for (header, copy) in headers.iter_mut().zip(HeaderCopy::BOTH) {
        *header = store.get_sender_key(copy.address()).await.unwrap();
    }
    headers
}

/// Puts any header copies in place. As long as the own store has a header, it refuses one that was not made from it.
async fn put_headers(store: &Arc<dyn Backend>, headers: &Headers) {
    for copy in HeaderCopy::BOTH {
        store.delete_sender_key(copy.address()).await.unwrap();
    }
    for (header, copy) in headers.iter().zip(HeaderCopy::BOTH).rev() {
        if let Some(header) = header {
            store.put_sender_key(copy.address(), header).await.unwrap();
        }
    }
}

async fn open_sqlite(folder: &TempDir) -> Arc<dyn Backend> {
    Arc::new(SqliteStore::new(folder.path().join("wa.db").to_str().unwrap()).await.unwrap())
}

/// Creates a vault with [`raw_key`] and wraps the store in it.
async fn encrypted(store: &Arc<dyn Backend>) -> (Vault, Arc<dyn Backend>) {
    let vault = options().create(store.clone(), raw_key()).await.unwrap();
    let backend = vault.layer().layer(store.clone());
    (vault, backend)
}

/// This crate's error behind a failed storage method.
fn own_error<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    let error = result.expect_err("the call should have failed");
    assert!(!error.is_database_busy_or_locked(), "{error:?}");
    format!("{:?}", Error::downcast_ref(&error).unwrap_or_else(|| panic!("not an error of ours: {error:?}")))
}
