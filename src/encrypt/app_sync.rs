//! App-state sync keys, collection versions and mutation MACs.
//!
//! | record | inner key | inner value | in the clear |
//! |--|--|--|--|
//! | sync key | key id | sealed whole; its first 32 bytes in `key_data`, the rest in `fingerprint` | key id: its order decides "latest" |
//! | collection version | token(name) | sealed whole in `index_value_map["e"]` | `version` |
//! | mutation MAC | token(name), index(name, index) | sealed | `version`, which the store may key on |

use std::collections::HashMap;

use async_trait::async_trait;
use serde::Deserialize;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::error::Result;
use wacore::store::traits::{AppStateSyncKey, AppSyncStore};
use zeroize::Zeroize;

use super::carrier::join_carrier;
use super::columns::mutation_mac;
use super::format::envelope::{RowBinding, nonce, nonces};
use super::format::kind::Kind;
use super::layer::EncryptStore;
use crate::error::{self, Error};
use crate::json;
use crate::method::{Record, forward};
use crate::rows::encoding::{CARRIER, KEY_DATA_BYTES};

#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
#[deny(clippy::missing_trait_methods)]
impl AppSyncStore for EncryptStore {
    async fn get_sync_key(&self, key_id: &[u8]) -> Result<Option<AppStateSyncKey>> {
        let state = self.state();
        let Some(carrier) = self.inner.get_sync_key(key_id).await? else { return Ok(None) };
        let binding = RowBinding::new(Kind::SyncKey, [key_id], []);
        let ReadSyncKey(key) = self.open_typed(&state, binding, join_carrier(carrier)).await?;
        Ok(Some(key))
    }

    async fn set_sync_key(&self, key_id: &[u8], mut key: AppStateSyncKey) -> Result<()> {
        let binding = RowBinding::new(Kind::SyncKey, [key_id], []);
        let state = self.state();
        let encoded = json::encode(Record::SyncKey, &key);
        key.key_data.zeroize();
        let mut sealed = state.cipher.seal(&nonce()?, binding, &encoded?)?;
        // An envelope has at least 54 bytes, so there is always something to split off.
        let fingerprint = sealed.split_off(KEY_DATA_BYTES.min(sealed.len()));
        self.inner.set_sync_key(key_id, AppStateSyncKey { key_data: sealed, fingerprint, timestamp: 0 }).await
    }

    async fn get_version(&self, name: &str) -> Result<HashState> {
        let vault = self.state();
        let token = vault.cipher.lookup().collection(Record::CollectionVersion, name)?;
        let mut state = self.inner.get_version(&token).await?;
        let Some(sealed) = state.index_value_map.remove(CARRIER) else {
            let untouched = state.version == 0
                && state.hash == [0; 128]
                && state.index_value_map.is_empty()
                && !state.mac_mismatch_fatal;
            // The store answers an absent row with the default state.
            return if untouched {
                Ok(state)
            } else {
                Err(Error::Tampered { record: Record::CollectionVersion }.into())
            };
        };
        let binding = RowBinding::new(Kind::CollectionVersion, [token.as_bytes()], [name.as_bytes()]);
        Ok(self.open_typed(&vault, binding, sealed).await?)
    }

    async fn set_version(&self, name: &str, state: HashState) -> Result<()> {
        let vault = self.state();
        let token = vault.cipher.lookup().collection(Record::CollectionVersion, name)?;
        let binding = RowBinding::new(Kind::CollectionVersion, [token.as_bytes()], [name.as_bytes()]);
        let sealed = vault.cipher.seal(&nonce()?, binding, &json::encode(Record::CollectionVersion, &state)?)?;
        let carrier = HashState {
            version: state.version,
            index_value_map: HashMap::from([(CARRIER.to_owned(), sealed)]),
            ..HashState::default()
        };
        self.inner.set_version(&token, carrier).await
    }

    async fn put_mutation_macs(&self, name: &str, version: u64, mutations: &[AppStateMutationMAC]) -> Result<()> {
        let vault = self.state();
        let token = vault.cipher.lookup().collection(Record::MutationMac, name)?;
        let sealed = mutations
            .iter()
            .zip(nonces(mutations.len())?)
            .map(|(mutation, nonce)| {
                let index = vault.cipher.lookup().mutation_index(name, &mutation.index_mac)?;
                let binding = mutation_mac(&token, &index, &mutation.index_mac);
                let value_mac = vault.cipher.seal(&nonce, binding, &mutation.value_mac)?;
                Ok(AppStateMutationMAC { index_mac: index.to_vec(), value_mac })
            })
            .collect::<Result<Vec<_>>>()?;
        self.inner.put_mutation_macs(&token, version, &sealed).await
    }

    async fn get_mutation_mac(&self, name: &str, index_mac: &[u8]) -> Result<Option<Vec<u8>>> {
        let vault = self.state();
        let token = vault.cipher.lookup().collection(Record::MutationMac, name)?;
        let index = vault.cipher.lookup().mutation_index(name, index_mac)?;
        let Some(value) = self.inner.get_mutation_mac(&token, &index).await? else { return Ok(None) };
        Ok(Some(self.open(&vault, mutation_mac(&token, &index, index_mac), value).await?))
    }

    async fn get_mutation_macs(&self, name: &str, index_macs: &[[u8; 32]]) -> Result<HashMap<[u8; 32], Vec<u8>>> {
        let vault = self.state();
        let token = vault.cipher.lookup().collection(Record::MutationMac, name)?;
        let indices = index_macs
            .iter()
            .map(|index_mac| vault.cipher.lookup().mutation_index(name, index_mac))
            .collect::<error::Result<Vec<_>>>()?;
        let mut values = self.inner.get_mutation_macs(&token, &indices).await?;
        let mut macs = HashMap::with_capacity(values.len());
        for (index_mac, index) in index_macs.iter().zip(&indices) {
            if let Some(value) = values.remove(index) {
                macs.insert(*index_mac, self.open(&vault, mutation_mac(&token, index, index_mac), value).await?);
            }
        }
        Ok(macs)
    }

    async fn delete_mutation_macs(&self, name: &str, index_macs: &[Vec<u8>]) -> Result<()> {
        let vault = self.state();
        let token = vault.cipher.lookup().collection(Record::MutationMac, name)?;
        let indices = index_macs
            .iter()
            .map(|index_mac| Ok(vault.cipher.lookup().mutation_index(name, index_mac)?.to_vec()))
            .collect::<error::Result<Vec<_>>>()?;
        self.inner.delete_mutation_macs(&token, &indices).await
    }

    async fn clear_mutation_macs(&self, name: &str) -> Result<()> {
        let token = self.state().cipher.lookup().collection(Record::MutationMac, name)?;
        self.inner.clear_mutation_macs(&token).await
    }

    // Key ids are in the clear, so the inner store knows the latest one.
    forward!(get_latest_sync_key_id);
}

/// A sync key that leaves no copies of its bytes behind when it is read.
#[derive(Deserialize)]
struct ReadSyncKey(#[serde(with = "SyncKeyFields")] AppStateSyncKey);

#[derive(Deserialize)]
#[serde(remote = "AppStateSyncKey")]
struct SyncKeyFields {
    #[serde(deserialize_with = "json::secret_bytes")]
    key_data: Vec<u8>,
    fingerprint: Vec<u8>,
    timestamp: i64,
}
