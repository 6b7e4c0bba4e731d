//! Encryption at rest over any [`Backend`].
//!
//! [`Vault`] holds the keys of one store, [`EncryptLayer`] uses them: names become blinded tokens (`token.rs`), values
//! become sealed envelopes (`envelope.rs`), and the one 32-byte value that cannot grow becomes a block (`block.rs`). What
//! happens to each kind of record is decided in the file named after its upstream trait.
//!
//! Whoever reads the store learns how many rows there are, how long values are (unless padded), the ids, flags and times
//! that the inner store computes with, and which rows belong to the same pseudonym. Whoever writes to it can delete rows
//! and put back older versions of a row; anything else is an error when it is read, except that an altered message secret
//! comes back as random bytes. `SECURITY.md` says this in full.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use wacore::store::traits::Backend;
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};
use crate::layer::Layer;

use envelope::{Nonce, Opened, Place, Prefix};
use guard::Guard;
use vault::Shared;
#[cfg(feature = "sqlite")]
pub(crate) use vault::State;
#[cfg(not(feature = "sqlite"))]
use vault::State;

mod aead;
mod app_sync;
mod block;
mod device;
mod envelope;
mod evidence;
mod freshness;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod guard;
mod header;
mod host;
mod inspect;
mod kdf;
mod keys;
mod msg_secret;
mod padding;
mod protocol;
mod residue;
mod restore;
mod rotate;
mod signal;
mod slot;
pub(crate) mod stored;
#[cfg(test)]
mod tests;
mod token;
mod vault;

#[cfg(not(target_arch = "wasm32"))]
pub use freshness::FileAnchor;
pub use freshness::{Anchor, FreshnessAnchor};
pub use inspect::HeaderInfo;
pub use kdf::{Argon2Cost, KdfLimits};
pub use padding::Padding;
pub use rotate::Revocation;
pub use slot::{SlotInfo, SlotKind};
pub use vault::{HeaderCopy, HeaderStore, OnDamage, Vault, VaultOptions};

/// The layer that encrypts with the keys of a [`Vault`]. Everything below it holds ciphertext and blinded keys.
///
/// Every method makes exactly one call to the inner store, batches stay one batch, and errors of the inner store pass
/// through unchanged. The exceptions: `exists`, `create` and the first `save` of a vault's life look at or note the sealed
/// device with a few more calls, and a record written by another process under a newer header makes the header be read
/// again, once.
pub struct EncryptLayer {
    vault: Arc<Shared>,
}

impl EncryptLayer {
    pub(crate) fn new(vault: Arc<Shared>) -> Self {
        Self { vault }
    }
}

impl Layer for EncryptLayer {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        let store = Arc::new(EncryptStore { inner, vault: self.vault.clone() });
        Arc::new(Guard { inner: store, vault: self.vault.clone() })
    }

    fn close(&self) {
        self.vault.close();
    }
}

impl fmt::Debug for EncryptLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.vault.read_only { "encrypt(v1, read-only)" } else { "encrypt(v1)" })
    }
}

/// The backend that [`EncryptLayer`] makes. The trait impls are in the files named after the upstream traits.
struct EncryptStore {
    inner: Arc<dyn Backend>,
    vault: Arc<Shared>,
}

impl EncryptStore {
    fn state(&self) -> Arc<State> {
        self.vault.state()
    }

    // A state is taken before the call to the inner store and held until it has answered. So whoever puts a data key out
    // of use can wait for those who still seal under it, and a value that was read just before stays readable.

    /// Verifies and decrypts in place a value that was read while `held` was held.
    async fn open_in_place(&self, held: &Arc<State>, place: Place<'_>, value: &mut [u8]) -> Result<Opened> {
        let prefix = Prefix::read(place.record, value)?;
        let state = self.vault.state_for(held, place.record, prefix.epoch()).await?;
        let opened = envelope::open(state.keys(&prefix, place.record)?, prefix, place, value)?;
        if let Err(error) = self.vault.check_stamp(&state, prefix.stamp()).await {
            value.zeroize();
            return Err(error);
        }
        Ok(opened)
    }

    /// Returns the payload of a stored value.
    async fn open(&self, held: &Arc<State>, place: Place<'_>, mut value: Vec<u8>) -> Result<Vec<u8>> {
        let opened = self.open_in_place(held, place, &mut value).await?;
        Ok(opened.into_payload(value))
    }

    /// Returns the payload of a stored value that may be shared with the inner store.
    async fn open_bytes(&self, held: &Arc<State>, place: Place<'_>, value: Bytes) -> Result<Bytes> {
        let prefix = Prefix::read(place.record, &value)?;
        let state = self.vault.state_for(held, place.record, prefix.epoch()).await?;
        let payload = envelope::open_bytes(state.keys(&prefix, place.record)?, prefix, place, value)?;
        self.vault.check_stamp(&state, prefix.stamp()).await?;
        Ok(payload)
    }

    /// Decodes the typed payload of a stored value and wipes the encoding.
    async fn open_typed<T: DeserializeOwned>(&self, held: &Arc<State>, place: Place<'_>, value: Vec<u8>) -> Result<T> {
        let mut value = Zeroizing::new(value);
        let opened = self.open_in_place(held, place, &mut value).await?;
        serde_json::from_slice(opened.payload(&value)).map_err(|_| Error::Tampered { record: place.record })
    }

    /// Applies [`OnDamage`] to a record that the client can fetch again.
    fn or_absent<T>(&self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Err(error) if error.is_damage() && self.vault.on_damage != OnDamage::Error => {
                self.vault.damaged.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Applies [`OnDamage`] to a record that the protocol renegotiates.
    fn or_renegotiated<T>(&self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Err(Error::Tampered { .. } | Error::Plaintext { .. }) if self.vault.on_damage == OnDamage::Renegotiate => {
                self.vault.damaged.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            result => result.map(Some),
        }
    }
}

/// One nonce for one value.
fn nonce() -> Result<Nonce> {
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce)?;
    Ok(nonce)
}

/// Nonces for a batch, from one call to the operating system.
pub(crate) fn nonces(count: usize) -> Result<Vec<Nonce>> {
    let mut nonces = vec![Nonce::default(); count];
    getrandom::fill(nonces.as_flattened_mut())?;
    Ok(nonces)
}
