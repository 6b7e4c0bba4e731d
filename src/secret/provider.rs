//! Keys that are kept elsewhere.

use async_trait::async_trait;

use super::key::Key;

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
