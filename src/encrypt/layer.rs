//! The layer over a store: the code that the five traits share, and the guard in front of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use wacore::store::traits::Backend;
use zeroize::{Zeroize, Zeroizing};

use super::format::envelope::{self, Opened, Prefix, RowBinding};
use super::vault::handle::Vault;
use super::vault::open_vault::{OpenVault, VaultState};
use super::vault::options::OnDamage;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::method::{BoxFuture, Method, Refuse, uniform_layer};

/// The layer that encrypts with the keys of a [`Vault`](crate::Vault). Everything below it holds ciphertext and blinded
/// keys.
///
/// Every method makes exactly one call to the inner store, batches stay one batch, and errors of the inner store pass
/// through unchanged.
///
/// There are two exceptions. `exists`, `create` and the first `save` of a vault's life look at or note the sealed
/// device with a few more calls. A record that another process wrote under a newer header makes the layer read the
/// header again, once.
pub struct EncryptLayer {
    vault: Arc<OpenVault>,
}

impl Vault {
    /// The layer that encrypts data on the way down and decrypts it on the way up.
    pub fn layer(&self) -> EncryptLayer {
        EncryptLayer { vault: self.shared.clone() }
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
pub(super) struct EncryptStore {
    pub(super) inner: Arc<dyn Backend>,
    pub(super) vault: Arc<OpenVault>,
}

impl EncryptStore {
    pub(super) fn state(&self) -> Arc<VaultState> {
        self.vault.state()
    }

    // A state is taken before the call to the inner store and held until it has answered. So a rotation that retires a
    // data key can wait for calls that still seal under it, and a value that was read just before stays readable.

    /// Verifies and decrypts in place a value that was read while `held` was held.
    pub(super) async fn open_in_place(
        &self,
        held: &Arc<VaultState>,
        binding: RowBinding<'_>,
        value: &mut [u8],
    ) -> Result<Opened> {
        let prefix = Prefix::read(binding.kind, value)?;
        if let Some(keys) = held.cipher.current_keys(&prefix) {
            return envelope::open(keys, prefix, binding, value);
        }
        let state = self.vault.state_for(held, binding.record(), prefix.epoch()).await?;
        let opened = envelope::open(state.cipher.keys(&prefix, binding.record())?, prefix, binding, value)?;
        if let Err(error) = self.vault.check_generation(&state, prefix.generation()).await {
            value.zeroize();
            return Err(error);
        }
        Ok(opened)
    }

    /// Returns the payload of a stored value.
    pub(super) async fn open(
        &self,
        held: &Arc<VaultState>,
        binding: RowBinding<'_>,
        mut value: Vec<u8>,
    ) -> Result<Vec<u8>> {
        let opened = self.open_in_place(held, binding, &mut value).await?;
        Ok(opened.into_payload(value))
    }

    /// Returns the payload of a stored value that may be shared with the inner store.
    pub(super) async fn open_bytes(
        &self,
        held: &Arc<VaultState>,
        binding: RowBinding<'_>,
        value: Bytes,
    ) -> Result<Bytes> {
        let prefix = Prefix::read(binding.kind, &value)?;
        if let Some(keys) = held.cipher.current_keys(&prefix) {
            return envelope::open_bytes(keys, prefix, binding, value);
        }
        let state = self.vault.state_for(held, binding.record(), prefix.epoch()).await?;
        let payload = envelope::open_bytes(state.cipher.keys(&prefix, binding.record())?, prefix, binding, value)?;
        self.vault.check_generation(&state, prefix.generation()).await?;
        Ok(payload)
    }

    /// Decodes the typed payload of a stored value and wipes the encoding.
    pub(super) async fn open_typed<T: DeserializeOwned>(
        &self,
        held: &Arc<VaultState>,
        binding: RowBinding<'_>,
        value: Vec<u8>,
    ) -> Result<T> {
        let mut value = Zeroizing::new(value);
        let opened = self.open_in_place(held, binding, &mut value).await?;
        serde_json::from_slice(opened.payload(&value)).map_err(|_| Error::Tampered { record: binding.record() })
    }

    /// Applies [`OnDamage`] to a record that the client can fetch again.
    pub(super) fn or_absent<T>(&self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Err(error) if error.is_damage() && self.vault.on_damage != OnDamage::Error => {
                self.vault.damaged.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Applies [`OnDamage`] to a record that the protocol renegotiates.
    pub(super) fn or_renegotiated<T>(&self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Err(Error::Tampered { .. } | Error::Plaintext { .. }) if self.vault.on_damage == OnDamage::Renegotiate => {
                self.vault.damaged.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            result => result.map(Some),
        }
    }
}

/// Refuses every method of a closed vault, and every method of a read-only one that would change a row.
struct Guard {
    inner: Arc<dyn Backend>,
    vault: Arc<OpenVault>,
}

impl Guard {
    fn around<'a, A, T: Refuse + Send + 'a>(
        &self,
        method: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T>,
    ) -> BoxFuture<'a, T> {
        let allowed = match method.access().changes_rows() {
            true => self.vault.refuse_change(method.name()),
            false => self.vault.refuse_closed(),
        };
        match allowed {
            Ok(()) => call(arguments),
            Err(error) => Box::pin(async move { T::refused(error.into()) }),
        }
    }
}

uniform_layer!(Guard);
