//! Sessions, identities, sender keys and signed prekeys. Each is cached only if chosen.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use wacore::store::error::Result;
use wacore::store::traits::SignalStore;

use super::value::WipedBytes;
use super::{CacheStore, read, write_one};
use crate::method::forward;

#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
#[deny(clippy::missing_trait_methods)]
impl SignalStore for CacheStore {
    async fn put_identity(&self, address: &str, key: [u8; 32]) -> Result<()> {
        write_one!(self.identities[address.as_bytes()] => put_identity(address, key), Some(Some(key)))
    }

    async fn put_identities_batch(&self, identities: &[(Arc<str>, [u8; 32])]) -> Result<()> {
        let Some(region) = &self.regions.identities else { return self.inner.put_identities_batch(identities).await };
        let write = region.write(identities.iter().map(|(address, _)| region.key([address.as_bytes()])));
        let result = self.inner.put_identities_batch(identities).await;
        write.end(result, |row| identities.get(row).map(|(_, key)| Some(*key)))
    }

    async fn load_identity(&self, address: &str) -> Result<Option<[u8; 32]>> {
        let found = read!(self.identities[address.as_bytes()] => load_identity(address) => || {
            let (inner, address) = (self.inner.clone(), address.to_owned());
            async move { inner.load_identity(&address).await }
        });
        Ok(found.value)
    }

    async fn delete_identity(&self, address: &str) -> Result<()> {
        write_one!(self.identities[address.as_bytes()] => delete_identity(address), Some(None))
    }

    async fn get_session(&self, address: &str) -> Result<Option<Bytes>> {
        let found = read!(self.sessions[address.as_bytes()] => get_session(address) => || {
            let (inner, address) = (self.inner.clone(), address.to_owned());
            async move { Ok(inner.get_session(&address).await?.as_deref().map(WipedBytes::copy)) }
        });
        Ok(found.value.as_ref().map(WipedBytes::share))
    }

    async fn put_session(&self, address: &str, session: &[u8]) -> Result<()> {
        write_one!(self.sessions[address.as_bytes()] => put_session(address, session), Some(Some(WipedBytes::copy(session))))
    }

    async fn put_sessions_batch(&self, sessions: &[(Arc<str>, Bytes)]) -> Result<()> {
        let Some(region) = &self.regions.sessions else { return self.inner.put_sessions_batch(sessions).await };
        let write = region.write(sessions.iter().map(|(address, _)| region.key([address.as_bytes()])));
        let result = self.inner.put_sessions_batch(sessions).await;
        write.end(result, |row| sessions.get(row).map(|(_, session)| Some(WipedBytes::copy(session))))
    }

    async fn delete_session(&self, address: &str) -> Result<()> {
        write_one!(self.sessions[address.as_bytes()] => delete_session(address), Some(None))
    }

    /// Answers from a cached session. A miss does not load the session into the cache.
    async fn has_session(&self, address: &str) -> Result<bool> {
        if let Some(region) = &self.regions.sessions {
            match region.peek(&region.key([address.as_bytes()])) {
                Some(found) => return Ok(found.value.is_some()),
                None => region.count_miss(),
            }
        }
        self.inner.has_session(address).await
    }

    // The prefix query concerns every session and identity. Each prekey is read once, and each new one changes the
    // highest id.
    forward!(has_signal_state_for_user, store_prekey, store_prekeys_batch, load_prekey, load_prekeys_batch);
    forward!(mark_prekeys_uploaded, remove_prekey, get_max_prekey_id);

    async fn store_signed_prekey(&self, id: u32, record: &[u8]) -> Result<()> {
        let written = Some(Some(WipedBytes::copy(record)));
        write_one!(self.signed_prekeys[&id.to_le_bytes()] => store_signed_prekey(id, record), written.clone())
    }

    async fn load_signed_prekey(&self, id: u32) -> Result<Option<Vec<u8>>> {
        let found = read!(self.signed_prekeys[&id.to_le_bytes()] => load_signed_prekey(id) => || {
            let inner = self.inner.clone();
            async move { Ok(inner.load_signed_prekey(id).await?.map(WipedBytes::from)) }
        });
        Ok(found.value.as_ref().map(WipedBytes::to_vec))
    }

    // A listing, read once per rotation.
    forward!(load_all_signed_prekeys);

    async fn remove_signed_prekey(&self, id: u32) -> Result<()> {
        write_one!(self.signed_prekeys[&id.to_le_bytes()] => remove_signed_prekey(id), Some(None))
    }

    async fn put_sender_key(&self, address: &str, record: &[u8]) -> Result<()> {
        let key = address.as_bytes();
        write_one!(self.sender_keys[key] => put_sender_key(address, record), Some(Some(WipedBytes::copy(record))))
    }

    async fn put_sender_keys_batch(&self, sender_keys: &[(Arc<str>, Bytes)]) -> Result<()> {
        let Some(region) = &self.regions.sender_keys else {
            return self.inner.put_sender_keys_batch(sender_keys).await;
        };
        let write = region.write(sender_keys.iter().map(|(address, _)| region.key([address.as_bytes()])));
        let result = self.inner.put_sender_keys_batch(sender_keys).await;
        write.end(result, |row| sender_keys.get(row).map(|(_, record)| Some(WipedBytes::copy(record))))
    }

    async fn get_sender_key(&self, address: &str) -> Result<Option<Vec<u8>>> {
        let found = read!(self.sender_keys[address.as_bytes()] => get_sender_key(address) => || {
            let (inner, address) = (self.inner.clone(), address.to_owned());
            async move { Ok(inner.get_sender_key(&address).await?.map(WipedBytes::from)) }
        });
        Ok(found.value.as_ref().map(WipedBytes::to_vec))
    }

    async fn delete_sender_key(&self, address: &str) -> Result<()> {
        write_one!(self.sender_keys[address.as_bytes()] => delete_sender_key(address), Some(None))
    }
}
