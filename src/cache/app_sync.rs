//! Sync keys and collection versions.

use std::collections::HashMap;

use async_trait::async_trait;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::error::Result;
use wacore::store::traits::{AppStateSyncKey, AppSyncStore};

use super::{CacheStore, read};
use crate::method::forward;

#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
#[deny(clippy::missing_trait_methods)]
impl AppSyncStore for CacheStore {
    async fn get_sync_key(&self, key_id: &[u8]) -> Result<Option<AppStateSyncKey>> {
        let found = read!(self.sync_keys[key_id] => get_sync_key(key_id) => || {
            let (inner, key_id) = (self.inner.clone(), key_id.to_owned());
            async move { inner.get_sync_key(&key_id).await }
        });
        Ok(found.value.clone())
    }

    /// A store may refuse or shorten a key that it does not understand. Only the store knows which id is the latest.
    async fn set_sync_key(&self, key_id: &[u8], key: AppStateSyncKey) -> Result<()> {
        let (Some(keys), Some(latest)) = (&self.regions.sync_keys, &self.regions.latest_sync_key) else {
            return self.inner.set_sync_key(key_id, key).await;
        };
        let writes = (keys.write([keys.key([key_id])].into_iter()), latest.write([latest.key([])].into_iter()));
        let result = self.inner.set_sync_key(key_id, key).await;
        let result = writes.0.end(result, |_| None);
        writes.1.end(result, |_| None)
    }

    async fn get_version(&self, name: &str) -> Result<HashState> {
        let found = read!(self.versions[name.as_bytes()] => get_version(name) => || {
            let (inner, name) = (self.inner.clone(), name.to_owned());
            async move { inner.get_version(&name).await }
        });
        Ok(found.value.clone())
    }

    async fn set_version(&self, name: &str, state: HashState) -> Result<()> {
        let Some(region) = &self.regions.versions else { return self.inner.set_version(name, state).await };
        let write = region.write([region.key([name.as_bytes()])].into_iter());
        let result = self.inner.set_version(name, state.clone()).await;
        write.end(result, |_| Some(state.clone()))
    }

    // A patch has thousands, and each is read once.
    forward!(put_mutation_macs, get_mutation_mac, get_mutation_macs, delete_mutation_macs, clear_mutation_macs);

    async fn get_latest_sync_key_id(&self) -> Result<Option<Vec<u8>>> {
        let found = read!(self.latest_sync_key[] => get_latest_sync_key_id() => || {
            let inner = self.inner.clone();
            async move { inner.get_latest_sync_key_id().await }
        });
        Ok(found.value.clone())
    }
}
