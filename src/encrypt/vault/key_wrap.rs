//! Wraps keys under the vault key.

use std::sync::Arc;

use hmac::Hmac;
use sha2::Sha256;

use super::header::{Header, Wrapped};
use crate::encrypt::format::aead;
use crate::encrypt::format::envelope::{Nonce, nonce};
use crate::encrypt::format::keys::{DataKeys, KeyRing, LookupKeys, StoreId, VaultKey};
use crate::error::{Error, Result};
use crate::secret::Key;

/// The vault key, and the key that authenticates the header.
pub(crate) struct VaultKeys {
    pub(crate) vault_key: VaultKey,
    pub(super) mac_key: Hmac<Sha256>,
}

impl VaultKeys {
    pub(super) fn new(vault_key: VaultKey, store_id: &StoreId) -> Arc<Self> {
        let mac_key = vault_key.header_mac(store_id);
        Arc::new(Self { vault_key, mac_key })
    }

    /// A new vault key.
    pub(super) fn generate(store_id: &StoreId) -> Result<Arc<Self>> {
        Ok(Self::new(VaultKey(Key::generate()?), store_id))
    }
}

pub(in crate::encrypt) fn data_key_aad(store_id: &StoreId, epoch: u32) -> Vec<u8> {
    [b"wastore/v1/dk\0", &store_id[..], &epoch.to_le_bytes()].concat()
}

pub(in crate::encrypt) fn lookup_key_aad(store_id: &StoreId) -> Vec<u8> {
    [b"wastore/v1/lk\0", &store_id[..]].concat()
}

pub(super) fn wrap_key(key_wrap: &[u8; 32], key: &Key, aad: &[u8]) -> Result<Wrapped> {
    wrap(key_wrap, nonce()?, key, aad)
}

/// Unwraps and expands all keys of a verified header.
pub(super) fn unwrap_ring(header: &Header, vault_key: &VaultKey) -> Result<KeyRing> {
    let store_id = &header.store_id;
    let key_wrap = vault_key.key_wrap(store_id);
    let lookup_key = unwrap(&key_wrap, &header.lookup_key, &lookup_key_aad(store_id))?;
    let (mut active, mut older) = (None, Vec::new());
    for wrapped in &header.data_keys {
        let key = unwrap(&key_wrap, &wrapped.wrapped, &data_key_aad(store_id, wrapped.epoch))?;
        let keys = DataKeys::new(store_id, wrapped.epoch, &key);
        if wrapped.active {
            active = Some(keys);
        } else {
            older.push(keys);
        }
    }
    // Parsing has checked that there is exactly one.
    let active = active.ok_or(Error::HeaderTampered)?;
    Ok(KeyRing::new(LookupKeys::new(store_id, &lookup_key), active, older))
}

/// Wraps a key under another one.
pub(crate) fn wrap(under: &[u8; 32], nonce: Nonce, key: &Key, aad: &[u8]) -> Result<Wrapped> {
    let mut sealed = [0; 48];
    let (body, tag) = sealed.split_at_mut(32);
    body.copy_from_slice(key.expose());
    // Only an input of 256 GiB can fail.
    let sealed_tag = aead::wrap(under, &nonce, aad, body).ok_or(Error::HeaderDamaged("a key cannot be wrapped"))?;
    tag.copy_from_slice(&sealed_tag);
    Ok(Wrapped { nonce, sealed })
}

/// Unwraps a key.
///
/// # Errors
/// [`Error::HeaderTampered`] if it was not wrapped under this key for this place.
pub(crate) fn unwrap(under: &[u8; 32], wrapped: &Wrapped, aad: &[u8]) -> Result<Key> {
    let (body, tag) = wrapped.sealed.split_first_chunk::<32>().ok_or(Error::HeaderTampered)?;
    let tag = tag.first_chunk().ok_or(Error::HeaderTampered)?;
    let mut key = Key::zeroed();
    key.bytes_mut().copy_from_slice(body);
    aead::unwrap(under, &wrapped.nonce, aad, key.bytes_mut(), tag).map_err(|_| Error::HeaderTampered)?;
    Ok(key)
}

/// Wraps all keys of a header again, under another vault key.
pub(super) fn wrap_again(header: &mut Header, from: &VaultKey, to: &VaultKey) -> Result<()> {
    let store_id = header.store_id;
    let (from, to) = (from.key_wrap(&store_id), to.key_wrap(&store_id));
    for key in &mut header.data_keys {
        let aad = data_key_aad(&store_id, key.epoch);
        key.wrapped = wrap_key(&to, &unwrap(&from, &key.wrapped, &aad)?, &aad)?;
    }
    let aad = lookup_key_aad(&store_id);
    header.lookup_key = wrap_key(&to, &unwrap(&from, &header.lookup_key, &aad)?, &aad)?;
    Ok(())
}
