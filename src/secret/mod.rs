//! Secrets that open a vault. None of them can be cloned, printed or compared by accident; all are wiped when dropped.
//!
//! | file | |
//! |--|--|
//! | `passphrase.rs`, `key.rs`, `recovery.rs` | the three kinds |
//! | `keyring.rs`, `transit.rs`, `transit_url.rs`, `hint.rs` | keys that are kept elsewhere |
//! | `read.rs` | reading a secret and normalizing its text |

pub(crate) mod hint;
mod key;
#[cfg(feature = "keyring")]
mod keyring;
mod passphrase;
mod read;
mod recovery;
#[cfg(test)]
mod tests;
#[cfg(feature = "transit")]
mod transit;
#[cfg(feature = "transit")]
mod transit_url;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;

pub use key::Key;
#[cfg(feature = "keyring")]
pub use keyring::{KeyringProblem, KeyringProvider};
pub use passphrase::Passphrase;
pub use recovery::RecoveryKey;
pub(crate) use recovery::encoding;
#[cfg(feature = "transit")]
pub use transit::{TransitProblem, TransitProvider};

/// An external keeper of keys: a KMS, an operating system's keyring, a hardware token.
///
/// When a slot is made, the vault has a random key wrapped and asks for it back, so that no vault is made which the
/// provider would not open. When a vault is opened, it asks once per provider slot until one fits. It never asks while
/// records are read or written.
///
/// `store_id` is the vault's id, which is not secret: see [`Vault::store_id`](crate::Vault::store_id). Bind it to the
/// key if the keeper can, as associated data or as a part of the entry's name. A hint that was put into the header of
/// another vault then gives no key.
///
/// An attacker who can write the vault header chooses the hints. So `unwrap` must only accept the results of `wrap`: an
/// authenticated ciphertext, or the name of an entry of your own. Do not use a public-key scheme in which every process
/// can encrypt: an attacker could replace your vault with a complete vault of their own.
#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
pub trait KeyProvider: Send + Sync {
    /// Keeps `key` and returns the hint that gets it back: the ciphertext of a KMS, or the name of a keyring entry. A
    /// hint has at most 256 bytes and is stored in the clear in the vault header.
    async fn wrap(&self, store_id: &[u8; 16], key: &Key) -> Result<Vec<u8>, ProviderError>;

    /// Returns the key for which [`KeyProvider::wrap`] once returned `hint`. Returns `None` if the hint has the form of
    /// another provider; nothing is asked of a service then.
    async fn unwrap(&self, store_id: &[u8; 16], hint: &[u8]) -> Result<Option<Key>, ProviderError>;
}

/// The failure of a key provider, which [`Error::KeyProvider`](crate::Error::KeyProvider) carries.
pub type ProviderError = Box<dyn std::error::Error + Send + Sync>;

/// The secret that creates or opens a vault.
#[non_exhaustive]
pub enum Secret {
    /// A passphrase, stretched with Argon2id.
    Passphrase(Passphrase),
    /// A raw key of 32 bytes.
    Key(Key),
    /// A printed recovery key.
    Recovery(RecoveryKey),
    /// A key kept elsewhere.
    Provider(Arc<dyn KeyProvider>),
}

impl Secret {
    /// A second copy, for a secret that opens several vaults. There is no `Clone`, so that no copy is made by accident.
    pub fn duplicate(&self) -> Self {
        match self {
            Secret::Passphrase(passphrase) => Secret::Passphrase(passphrase.duplicate()),
            Secret::Key(key) => Secret::Key(key.duplicate()),
            Secret::Recovery(key) => Secret::Recovery(key.duplicate()),
            Secret::Provider(provider) => Secret::Provider(provider.clone()),
        }
    }
}

impl From<Passphrase> for Secret {
    fn from(passphrase: Passphrase) -> Self {
        Secret::Passphrase(passphrase)
    }
}

impl From<Key> for Secret {
    fn from(key: Key) -> Self {
        Secret::Key(key)
    }
}

impl From<RecoveryKey> for Secret {
    fn from(key: RecoveryKey) -> Self {
        Secret::Recovery(key)
    }
}

impl<P: KeyProvider + 'static> From<Arc<P>> for Secret {
    fn from(provider: Arc<P>) -> Self {
        Secret::Provider(provider)
    }
}

macro_rules! redacted_debug {
    ($($name:ident),+) => { $(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    )+ };
}

redacted_debug!(Passphrase, Key, RecoveryKey, Secret);
