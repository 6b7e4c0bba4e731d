//! Secrets that open a vault. None of them can be cloned, printed or compared by accident; all are wiped when dropped.
//!
//! | file | |
//! |--|--|
//! | `passphrase.rs`, `key.rs`, `recovery.rs` | the three kinds |
//! | `read.rs` | reading a secret, and the text that it is |

mod key;
mod passphrase;
mod read;
mod recovery;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;

pub use key::Key;
pub use passphrase::Passphrase;
pub use recovery::RecoveryKey;
pub(crate) use recovery::encoding;

/// An external keeper of keys: a KMS, an operating system's keyring, a hardware token.
///
/// It is asked once when a slot is made, and at every open once per provider slot until one fits; never while records are
/// read or written. Whoever can write the vault header chooses the hints, so `unwrap` must only accept what `wrap` made: an
/// authenticated ciphertext, or the name of an entry of one's own. Under a public-key scheme that anybody can encrypt to, a
/// writer could put a whole vault of his own in the place of yours.
#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
pub trait KeyProvider: Send + Sync {
    /// Keeps `key` and returns what is needed to get it back: the ciphertext of a KMS, or the name of a keyring entry.
    /// At most 256 bytes, stored in the clear in the vault header.
    async fn wrap(&self, key: &Key) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>;

    /// Returns the key for which [`KeyProvider::wrap`] once returned `hint`.
    async fn unwrap(&self, hint: &[u8]) -> Result<Key, Box<dyn std::error::Error + Send + Sync>>;
}

/// What a vault is created or opened with.
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
    /// A second copy, for a secret that opens several vaults. There is no `Clone`, so that copies are made on purpose only.
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
