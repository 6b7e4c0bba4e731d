//! Keys that are kept elsewhere.

use std::error::Error;

use async_trait::async_trait;

use super::key::Key;
#[cfg(any(feature = "keyring", feature = "transit"))]
use crate::printable::printable;

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
    /// another provider; nothing is asked of a service then. If it does so for all slots, a vault returns
    /// [`Error::NoSlotOfProvider`](crate::Error::NoSlotOfProvider).
    async fn unwrap(&self, store_id: &[u8; 16], hint: &[u8]) -> Result<Option<Key>, ProviderError>;
}

/// The failure of a key provider. Any error becomes [`ProviderError::Failed`] by `?`.
#[derive(Debug)]
pub enum ProviderError {
    /// The provider works, but does not have this key: its entry was deleted, or another key encrypted it. A vault goes
    /// on with its next slot. If none opens, it returns [`Error::KeyNotKept`](crate::Error::KeyNotKept).
    NoKey(Box<dyn Error + Send + Sync>),
    /// The provider cannot be asked now. A vault asks for no other slot, and returns
    /// [`Error::KeyProvider`](crate::Error::KeyProvider).
    Failed(Box<dyn Error + Send + Sync>),
}

impl ProviderError {
    /// The error itself.
    pub fn into_inner(self) -> Box<dyn Error + Send + Sync> {
        match self {
            Self::NoKey(error) | Self::Failed(error) => error,
        }
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for ProviderError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The words of another program, for an error: without control characters, and at most 200 characters.
#[cfg(any(feature = "keyring", feature = "transit"))]
pub(super) fn quoted(text: &str) -> String {
    printable(text).to_string().chars().take(200).collect()
}
