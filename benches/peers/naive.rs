//! Encryption as it is first thought of: `matrix-sdk-store-encryption` over upstream's store, value by value. Only the
//! calls of the workloads are there. Message secrets have no room for a tag, and stay as they are.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use matrix_sdk_store_encryption::StoreCipher;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::Device;
use wacore::store::error::{Result, StoreError};
use wacore::store::traits::{
    AppStateSyncKey, AppSyncStore, Backend, DeviceListRecord, DeviceStore, LidPnMappingEntry, MsgSecretEntry,
    MsgSecretStore, ProtocolStore, SignalStore, TcTokenEntry,
};

pub(crate) struct Naive {
    pub(crate) inner: Arc<dyn Backend>,
    pub(crate) cipher: StoreCipher,
}

impl Naive {
    fn name(&self, table: &str, name: &str) -> String {
        HEXLOWER.encode(&self.cipher.hash_key(table, name.as_bytes()))
    }

    /// The user of an address is found by its prefix.
    fn address(&self, address: &str) -> String {
        let user = address.split(['@', ':']).next().unwrap_or(address);
        format!("{}@{}", self.name("users", user), self.name("addresses", address))
    }

    /// A value as the library stores it: JSON with the nonce and the ciphertext in base64.
    fn seal(&self, value: &[u8]) -> Vec<u8> {
        let sealed = self.cipher.encrypt_value_base64_data(value.to_vec()).unwrap();
        serde_json::to_vec(&sealed).unwrap()
    }

    fn open(&self, sealed: &[u8]) -> Vec<u8> {
        self.cipher.decrypt_value_base64_data(serde_json::from_slice(sealed).unwrap()).unwrap()
    }

    fn batch(&self, rows: &[(Arc<str>, Bytes)]) -> Vec<(Arc<str>, Bytes)> {
        rows.iter().map(|(address, value)| (self.address(address).into(), self.seal(value).into())).collect()
    }

    fn mapping(&self, entry: &LidPnMappingEntry) -> LidPnMappingEntry {
        let value = serde_json::to_vec(entry).unwrap();
        LidPnMappingEntry {
            lid: self.name("lids", &entry.lid),
            phone_number: self.name("phone numbers", &entry.phone_number),
            learning_source: String::from_utf8(self.seal(&value)).unwrap(),
            ..*entry
        }
    }

    fn index(&self, index_mac: &[u8]) -> [u8; 32] {
        self.cipher.hash_key("mutation macs", index_mac)
    }
}

fn unmeasured<T>() -> Result<T> {
    Err(StoreError::Validation("the workloads do not call it".to_owned()))
}

#[async_trait]
impl SignalStore for Naive {
    async fn get_session(&self, address: &str) -> Result<Option<Bytes>> {
        let sealed = self.inner.get_session(&self.address(address)).await?;
        Ok(sealed.map(|sealed| self.open(&sealed).into()))
    }

    async fn put_session(&self, address: &str, session: &[u8]) -> Result<()> {
        self.inner.put_session(&self.address(address), &self.seal(session)).await
    }

    async fn put_sessions_batch(&self, sessions: &[(Arc<str>, Bytes)]) -> Result<()> {
        self.inner.put_sessions_batch(&self.batch(sessions)).await
    }

    async fn has_signal_state_for_user(&self, user: &str) -> Result<bool> {
        self.inner.has_signal_state_for_user(&self.name("users", user)).await
    }

    async fn put_sender_keys_batch(&self, sender_keys: &[(Arc<str>, Bytes)]) -> Result<()> {
        self.inner.put_sender_keys_batch(&self.batch(sender_keys)).await
    }

    async fn put_identity(&self, _: &str, _: [u8; 32]) -> Result<()> {
        unmeasured()
    }

    async fn load_identity(&self, _: &str) -> Result<Option<[u8; 32]>> {
        unmeasured()
    }

    async fn delete_identity(&self, _: &str) -> Result<()> {
        unmeasured()
    }

    async fn delete_session(&self, _: &str) -> Result<()> {
        unmeasured()
    }

    async fn store_prekey(&self, _: u32, _: &[u8], _: bool) -> Result<()> {
        unmeasured()
    }

    async fn load_prekey(&self, _: u32) -> Result<Option<Bytes>> {
        unmeasured()
    }

    async fn mark_prekeys_uploaded(&self, _: &[u32]) -> Result<()> {
        unmeasured()
    }

    async fn remove_prekey(&self, _: u32) -> Result<()> {
        unmeasured()
    }

    async fn get_max_prekey_id(&self) -> Result<u32> {
        unmeasured()
    }

    async fn store_signed_prekey(&self, _: u32, _: &[u8]) -> Result<()> {
        unmeasured()
    }

    async fn load_signed_prekey(&self, _: u32) -> Result<Option<Vec<u8>>> {
        unmeasured()
    }

    async fn load_all_signed_prekeys(&self) -> Result<Vec<(u32, Vec<u8>)>> {
        unmeasured()
    }

    async fn remove_signed_prekey(&self, _: u32) -> Result<()> {
        unmeasured()
    }

    async fn put_sender_key(&self, _: &str, _: &[u8]) -> Result<()> {
        unmeasured()
    }

    async fn get_sender_key(&self, _: &str) -> Result<Option<Vec<u8>>> {
        unmeasured()
    }

    async fn delete_sender_key(&self, _: &str) -> Result<()> {
        unmeasured()
    }
}

#[async_trait]
impl AppSyncStore for Naive {
    async fn set_version(&self, name: &str, state: HashState) -> Result<()> {
        let sealed = self.seal(&serde_json::to_vec(&state).unwrap());
        let carrier = HashState {
            version: state.version,
            index_value_map: HashMap::from([("e".to_owned(), sealed)]),
            ..HashState::default()
        };
        self.inner.set_version(&self.name("collections", name), carrier).await
    }

    async fn put_mutation_macs(&self, name: &str, version: u64, mutations: &[AppStateMutationMAC]) -> Result<()> {
        let sealed = mutations.iter().map(|mutation| AppStateMutationMAC {
            index_mac: self.index(&mutation.index_mac).to_vec(),
            value_mac: self.seal(&mutation.value_mac),
        });
        let sealed: Vec<_> = sealed.collect();
        self.inner.put_mutation_macs(&self.name("collections", name), version, &sealed).await
    }

    async fn get_mutation_macs(&self, name: &str, index_macs: &[[u8; 32]]) -> Result<HashMap<[u8; 32], Vec<u8>>> {
        let indexes: Vec<_> = index_macs.iter().map(|index_mac| self.index(index_mac)).collect();
        let found = self.inner.get_mutation_macs(&self.name("collections", name), &indexes).await?;
        let opened = index_macs.iter().zip(&indexes).filter_map(|(index_mac, index)| {
            let sealed = found.get(index)?;
            Some((*index_mac, self.open(sealed)))
        });
        Ok(opened.collect())
    }

    async fn get_sync_key(&self, _: &[u8]) -> Result<Option<AppStateSyncKey>> {
        unmeasured()
    }

    async fn set_sync_key(&self, _: &[u8], _: AppStateSyncKey) -> Result<()> {
        unmeasured()
    }

    async fn get_version(&self, _: &str) -> Result<HashState> {
        unmeasured()
    }

    async fn get_mutation_mac(&self, _: &str, _: &[u8]) -> Result<Option<Vec<u8>>> {
        unmeasured()
    }

    async fn delete_mutation_macs(&self, _: &str, _: &[Vec<u8>]) -> Result<()> {
        unmeasured()
    }

    async fn clear_mutation_macs(&self, _: &str) -> Result<()> {
        unmeasured()
    }

    async fn get_latest_sync_key_id(&self) -> Result<Option<Vec<u8>>> {
        unmeasured()
    }
}

#[async_trait]
impl ProtocolStore for Naive {
    async fn put_lid_mappings(&self, entries: &[LidPnMappingEntry]) -> Result<()> {
        let sealed: Vec<_> = entries.iter().map(|entry| self.mapping(entry)).collect();
        self.inner.put_lid_mappings(&sealed).await
    }

    async fn get_all_lid_mappings(&self) -> Result<Vec<LidPnMappingEntry>> {
        let rows = self.inner.get_all_lid_mappings().await?;
        let open =
            |row: &LidPnMappingEntry| serde_json::from_slice(&self.open(row.learning_source.as_bytes())).unwrap();
        Ok(rows.iter().map(open).collect())
    }

    async fn get_tc_token(&self, jid: &str) -> Result<Option<TcTokenEntry>> {
        let entry = self.inner.get_tc_token(&self.name("tokens", jid)).await?;
        Ok(entry.map(|entry| TcTokenEntry { token: self.open(&entry.token), ..entry }))
    }

    async fn put_tc_token(&self, jid: &str, entry: &TcTokenEntry) -> Result<()> {
        let entry = TcTokenEntry { token: self.seal(&entry.token), ..*entry };
        self.inner.put_tc_token(&self.name("tokens", jid), &entry).await
    }

    async fn store_sent_message(&self, chat_jid: &str, message_id: &str, payload: &[u8]) -> Result<()> {
        let (chat, id) = (self.name("chats", chat_jid), self.name("messages", message_id));
        self.inner.store_sent_message(&chat, &id, &self.seal(payload)).await
    }

    async fn get_sender_key_devices(&self, _: &str) -> Result<Vec<(String, bool)>> {
        unmeasured()
    }

    async fn set_sender_key_status(&self, _: &str, _: &[(&str, bool)]) -> Result<()> {
        unmeasured()
    }

    async fn clear_sender_key_devices(&self, _: &str) -> Result<()> {
        unmeasured()
    }

    async fn delete_sender_key_device_rows(&self, _: &[&str]) -> Result<()> {
        unmeasured()
    }

    async fn clear_all_sender_key_devices(&self) -> Result<()> {
        unmeasured()
    }

    async fn get_lid_mapping(&self, _: &str) -> Result<Option<LidPnMappingEntry>> {
        unmeasured()
    }

    async fn get_pn_mapping(&self, _: &str) -> Result<Option<LidPnMappingEntry>> {
        unmeasured()
    }

    async fn put_lid_mapping(&self, _: &LidPnMappingEntry) -> Result<()> {
        unmeasured()
    }

    async fn save_base_key(&self, _: &str, _: &str, _: &[u8]) -> Result<()> {
        unmeasured()
    }

    async fn has_same_base_key(&self, _: &str, _: &str, _: &[u8]) -> Result<bool> {
        unmeasured()
    }

    async fn delete_base_key(&self, _: &str, _: &str) -> Result<()> {
        unmeasured()
    }

    async fn update_device_list(&self, _: DeviceListRecord) -> Result<()> {
        unmeasured()
    }

    async fn get_devices(&self, _: &str) -> Result<Option<DeviceListRecord>> {
        unmeasured()
    }

    async fn delete_devices(&self, _: &str) -> Result<()> {
        unmeasured()
    }

    async fn delete_tc_token(&self, _: &str) -> Result<()> {
        unmeasured()
    }

    async fn get_all_tc_token_jids(&self) -> Result<Vec<String>> {
        unmeasured()
    }

    async fn delete_expired_tc_tokens(&self, _: i64, _: i64) -> Result<u32> {
        unmeasured()
    }

    async fn take_sent_message(&self, _: &str, _: &str) -> Result<Option<Vec<u8>>> {
        unmeasured()
    }

    async fn delete_expired_sent_messages(&self, _: i64) -> Result<u32> {
        unmeasured()
    }
}

#[async_trait]
impl DeviceStore for Naive {
    // A start reads the device once; its encryption is not measured.
    async fn load(&self) -> Result<Option<Device>> {
        self.inner.load().await
    }

    async fn exists(&self) -> Result<bool> {
        self.inner.exists().await
    }

    async fn create(&self) -> Result<i32> {
        self.inner.create().await
    }

    async fn save(&self, _: &Device) -> Result<()> {
        unmeasured()
    }
}

#[async_trait]
impl MsgSecretStore for Naive {
    async fn put_msg_secrets(&self, entries: Vec<MsgSecretEntry>) -> Result<usize> {
        let blinded = entries.into_iter().map(|entry| MsgSecretEntry {
            chat: self.name("chats", &entry.chat).into(),
            sender: self.name("senders", &entry.sender).into(),
            msg_id: self.name("messages", &entry.msg_id).into(),
            ..entry
        });
        self.inner.put_msg_secrets(blinded.collect()).await
    }

    async fn delete_expired_msg_secrets(&self, cutoff_timestamp: i64) -> Result<u32> {
        self.inner.delete_expired_msg_secrets(cutoff_timestamp).await
    }

    async fn get_msg_secret(&self, _: &str, _: &str, _: &str) -> Result<Option<Vec<u8>>> {
        unmeasured()
    }
}
