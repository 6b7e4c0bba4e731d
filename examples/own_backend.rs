//! A small but complete storage backend and its tests: one JSON file, written again on every change.
//!
//! Run its tests with `cargo test --example own_backend --features testing`. The last lines of this file make some
//! 190 tests of the promises that a client relies on.
//!
//! Worth copying: a batch is one change, merges happen inside the store, keys with several parts cannot be confused,
//! and `Ok` means that the change is on the disk. Not worth copying: the cost of a change grows with the size of the
//! store.

#![allow(clippy::print_stdout, reason = "an example talks")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::Device;
use wacore::store::device::DEVICE_PROPS;
use wacore::store::error::{Result, StoreError};
use wacore::store::traits::{
    AppStateSyncKey, AppSyncStore, DeviceListRecord, DeviceStore, LidPnMappingEntry, MsgSecretEntry, MsgSecretStore,
    PendingInboundKey, PendingInboundRow, ProtocolStore, SignalStore, TcTokenEntry, merge_msg_secret_expiry,
    merge_msg_secret_message_ts,
};

/// A store in one JSON file.
struct JsonFileStore {
    path: PathBuf,
    tables: Mutex<Tables>,
}

/// Rows by table and key. The values are JSON as well.
#[derive(Clone, Default)]
struct Tables(BTreeMap<String, BTreeMap<String, serde_json::Value>>);

impl JsonFileStore {
    /// Opens the file, or starts with an empty store if the file does not exist. The first change creates the file.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be read, [`StoreError::Serialization`] if it has other content.
    fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let tables = match fs::read(&path) {
            Ok(content) => serde_json::from_slice(&content).map_err(serialization)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { path, tables: Mutex::new(Tables(tables)) })
    }

    async fn read<T>(&self, read: impl FnOnce(&Tables) -> Result<T>) -> Result<T> {
        read(&*self.tables.lock().await)
    }

    /// Makes one change. Afterwards either all of it is on the disk and visible, or none of it.
    async fn change<T>(&self, change: impl FnOnce(&mut Tables) -> Result<T>) -> Result<T> {
        let mut tables = self.tables.lock().await;
        let mut changed = tables.clone();
        let result = change(&mut changed)?;
        let content = serde_json::to_vec(&changed.0).map_err(serialization)?;
        // A new file replaces the old one in one step. A store with many changes would write on a separate thread.
        let next = self.path.with_extension("next");
        let mut file = File::create(&next)?;
        file.write_all(&content)?;
        file.sync_all()?;
        fs::rename(&next, &self.path)?;
        if let Some(folder) = self.path.parent().filter(|_| cfg!(unix)) {
            File::open(folder)?.sync_all()?;
        }
        *tables = changed;
        Ok(result)
    }
}

impl Tables {
    fn get<T: DeserializeOwned>(&self, table: &str, key: &str) -> Result<Option<T>> {
        let value = self.0.get(table).and_then(|rows| rows.get(key));
        value.cloned().map(serde_json::from_value).transpose().map_err(serialization)
    }

    fn has(&self, table: &str, key: &str) -> bool {
        self.0.get(table).is_some_and(|rows| rows.contains_key(key))
    }

    fn put(&mut self, table: &str, key: &str, value: impl Serialize) -> Result<()> {
        let value = serde_json::to_value(value).map_err(serialization)?;
        self.0.entry(table.to_owned()).or_default().insert(key.to_owned(), value);
        Ok(())
    }

    fn delete(&mut self, table: &str, key: &str) -> Result<()> {
        if let Some(rows) = self.0.get_mut(table) {
            rows.remove(key);
        }
        Ok(())
    }

    fn keys(&self, table: &str) -> impl DoubleEndedIterator<Item = &String> {
        self.0.get(table).into_iter().flat_map(BTreeMap::keys)
    }

    /// The rows of a table whose keys begin with `prefix`, with their keys.
    fn starting<T: DeserializeOwned>(&self, table: &str, prefix: &str) -> Result<Vec<(String, T)>> {
        let rows = self.0.get(table).into_iter().flat_map(|rows| rows.range(prefix.to_owned()..));
        rows.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| Ok((key.clone(), serde_json::from_value(value.clone()).map_err(serialization)?)))
            .collect()
    }

    /// Deletes the rows for which `expired` returns true. Returns their number.
    fn sweep<T: DeserializeOwned>(&mut self, table: &str, expired: impl Fn(&T) -> bool) -> Result<u32> {
        let mut count = 0;
        for (key, row) in self.starting::<T>(table, "")? {
            if expired(&row) {
                self.delete(table, &key)?;
                count += 1;
            }
        }
        Ok(count)
    }
}

fn serialization(error: serde_json::Error) -> StoreError {
    StoreError::Serialization(Box::new(error))
}

/// One key for several parts. It is JSON, so that `("a", "bc")` and `("ab", "c")` differ.
fn key(parts: &[&str]) -> String {
    serde_json::Value::from(parts).to_string()
}

/// The common prefix of all keys that begin with these parts.
fn prefix(parts: &[&str]) -> String {
    key(parts).trim_end_matches(']').to_owned() + ","
}

/// A number as a key that sorts like the number.
fn number(id: u32) -> String {
    format!("{id:010}")
}

#[async_trait]
impl SignalStore for JsonFileStore {
    async fn put_identity(&self, address: &str, key: [u8; 32]) -> Result<()> {
        self.change(|tables| tables.put("identities", address, key)).await
    }
    async fn put_identities_batch(&self, identities: &[(Arc<str>, [u8; 32])]) -> Result<()> {
        self.change(|tables| identities.iter().try_for_each(|(address, key)| tables.put("identities", address, key)))
            .await
    }
    async fn load_identity(&self, address: &str) -> Result<Option<[u8; 32]>> {
        self.read(|tables| tables.get("identities", address)).await
    }
    async fn delete_identity(&self, address: &str) -> Result<()> {
        self.change(|tables| tables.delete("identities", address)).await
    }
    async fn get_session(&self, address: &str) -> Result<Option<Bytes>> {
        self.read(|tables| Ok(tables.get::<Vec<u8>>("sessions", address)?.map(Bytes::from))).await
    }
    async fn put_session(&self, address: &str, session: &[u8]) -> Result<()> {
        self.change(|tables| tables.put("sessions", address, session)).await
    }
    async fn put_sessions_batch(&self, sessions: &[(Arc<str>, Bytes)]) -> Result<()> {
        self.change(|tables| sessions.iter().try_for_each(|(address, row)| tables.put("sessions", address, &row[..])))
            .await
    }
    async fn delete_session(&self, address: &str) -> Result<()> {
        self.change(|tables| tables.delete("sessions", address)).await
    }
    async fn has_session(&self, address: &str) -> Result<bool> {
        self.read(|tables| Ok(tables.has("sessions", address))).await
    }
    async fn has_signal_state_for_user(&self, user: &str) -> Result<bool> {
        let of_user = |address: &String| address.strip_prefix(user).is_some_and(|rest| rest.starts_with(['@', ':']));
        self.read(|tables| Ok(tables.keys("sessions").chain(tables.keys("identities")).any(of_user))).await
    }
    async fn store_prekey(&self, id: u32, record: &[u8], uploaded: bool) -> Result<()> {
        self.change(|tables| tables.put("prekeys", &number(id), (record, uploaded))).await
    }
    async fn store_prekeys_batch(&self, keys: &[(u32, Bytes)], uploaded: bool) -> Result<()> {
        self.change(|tables| {
            keys.iter().try_for_each(|(id, record)| tables.put("prekeys", &number(*id), (&record[..], uploaded)))
        })
        .await
    }
    async fn load_prekey(&self, id: u32) -> Result<Option<Bytes>> {
        let row = self.read(|tables| tables.get::<(Vec<u8>, bool)>("prekeys", &number(id))).await?;
        Ok(row.map(|(record, _)| record.into()))
    }
    async fn mark_prekeys_uploaded(&self, ids: &[u32]) -> Result<()> {
        self.change(|tables| {
            for id in ids.iter().map(|id| number(*id)) {
                // Only prekeys that still exist.
                if let Some((record, _)) = tables.get::<(Vec<u8>, bool)>("prekeys", &id)? {
                    tables.put("prekeys", &id, (record, true))?;
                }
            }
            Ok(())
        })
        .await
    }
    async fn remove_prekey(&self, id: u32) -> Result<()> {
        self.change(|tables| tables.delete("prekeys", &number(id))).await
    }
    async fn get_max_prekey_id(&self) -> Result<u32> {
        self.read(|tables| Ok(tables.keys("prekeys").next_back().and_then(|id| id.parse().ok()).unwrap_or(0))).await
    }
    async fn store_signed_prekey(&self, id: u32, record: &[u8]) -> Result<()> {
        self.change(|tables| tables.put("signed prekeys", &number(id), record)).await
    }
    async fn load_signed_prekey(&self, id: u32) -> Result<Option<Vec<u8>>> {
        self.read(|tables| tables.get("signed prekeys", &number(id))).await
    }
    async fn load_all_signed_prekeys(&self) -> Result<Vec<(u32, Vec<u8>)>> {
        let rows = self.read(|tables| tables.starting("signed prekeys", "")).await?;
        Ok(rows.into_iter().filter_map(|(id, record)| Some((id.parse().ok()?, record))).collect())
    }
    async fn remove_signed_prekey(&self, id: u32) -> Result<()> {
        self.change(|tables| tables.delete("signed prekeys", &number(id))).await
    }
    async fn put_sender_key(&self, address: &str, record: &[u8]) -> Result<()> {
        self.change(|tables| tables.put("sender keys", address, record)).await
    }
    async fn put_sender_keys_batch(&self, sender_keys: &[(Arc<str>, Bytes)]) -> Result<()> {
        self.change(|tables| {
            sender_keys.iter().try_for_each(|(address, record)| tables.put("sender keys", address, &record[..]))
        })
        .await
    }
    async fn get_sender_key(&self, address: &str) -> Result<Option<Vec<u8>>> {
        self.read(|tables| tables.get("sender keys", address)).await
    }
    async fn delete_sender_key(&self, address: &str) -> Result<()> {
        self.change(|tables| tables.delete("sender keys", address)).await
    }
}

#[async_trait]
impl AppSyncStore for JsonFileStore {
    async fn get_sync_key(&self, key_id: &[u8]) -> Result<Option<AppStateSyncKey>> {
        self.read(|tables| tables.get("sync keys", &hex::encode(key_id))).await
    }
    async fn set_sync_key(&self, key_id: &[u8], key: AppStateSyncKey) -> Result<()> {
        self.change(|tables| tables.put("sync keys", &hex::encode(key_id), key)).await
    }
    async fn get_version(&self, name: &str) -> Result<HashState> {
        Ok(self.read(|tables| tables.get("versions", name)).await?.unwrap_or_default())
    }
    async fn set_version(&self, name: &str, state: HashState) -> Result<()> {
        self.change(|tables| tables.put("versions", name, state)).await
    }
    async fn put_mutation_macs(&self, name: &str, _version: u64, mutations: &[AppStateMutationMAC]) -> Result<()> {
        self.change(|tables| {
            mutations.iter().try_for_each(|mac| {
                tables.put("mutation macs", &key(&[name, &hex::encode(&mac.index_mac)]), &mac.value_mac)
            })
        })
        .await
    }
    async fn get_mutation_mac(&self, name: &str, index_mac: &[u8]) -> Result<Option<Vec<u8>>> {
        self.read(|tables| tables.get("mutation macs", &key(&[name, &hex::encode(index_mac)]))).await
    }
    // The default body reads row by row, so it could return half of a batch.
    async fn get_mutation_macs(&self, name: &str, index_macs: &[[u8; 32]]) -> Result<HashMap<[u8; 32], Vec<u8>>> {
        self.read(|tables| {
            let row = |index: &[u8; 32]| {
                let mac = tables.get("mutation macs", &key(&[name, &hex::encode(index)]));
                mac.transpose().map(|mac| Ok((*index, mac?)))
            };
            index_macs.iter().filter_map(row).collect()
        })
        .await
    }
    async fn delete_mutation_macs(&self, name: &str, index_macs: &[Vec<u8>]) -> Result<()> {
        self.change(|tables| {
            let mut keys = index_macs.iter().map(|index| key(&[name, &hex::encode(index)]));
            keys.try_for_each(|key| tables.delete("mutation macs", &key))
        })
        .await
    }
    async fn clear_mutation_macs(&self, name: &str) -> Result<()> {
        self.change(|tables| {
            let rows = tables.starting::<Vec<u8>>("mutation macs", &prefix(&[name]))?;
            rows.iter().try_for_each(|(key, _)| tables.delete("mutation macs", key))
        })
        .await
    }
    async fn get_latest_sync_key_id(&self) -> Result<Option<Vec<u8>>> {
        // The highest id of a device is the newest.
        self.read(|tables| Ok(tables.keys("sync keys").next_back().and_then(|id| hex::decode(id).ok()))).await
    }
}

#[async_trait]
impl ProtocolStore for JsonFileStore {
    async fn get_sender_key_devices(&self, group_jid: &str) -> Result<Vec<(String, bool)>> {
        Ok(self.read(|tables| tables.get("sender key devices", group_jid)).await?.unwrap_or_default())
    }
    async fn set_sender_key_status(&self, group_jid: &str, entries: &[(&str, bool)]) -> Result<()> {
        self.change(|tables| {
            let rows: Option<Vec<(String, bool)>> = tables.get("sender key devices", group_jid)?;
            let mut rows: BTreeMap<_, _> = rows.unwrap_or_default().into_iter().collect();
            rows.extend(entries.iter().map(|(device, has_key)| ((*device).to_owned(), *has_key)));
            tables.put("sender key devices", group_jid, rows.into_iter().collect::<Vec<_>>())
        })
        .await
    }
    async fn clear_sender_key_devices(&self, group_jid: &str) -> Result<()> {
        self.change(|tables| tables.delete("sender key devices", group_jid)).await
    }
    async fn delete_sender_key_device_rows(&self, device_jids: &[&str]) -> Result<()> {
        let deleted: HashSet<_> = device_jids.iter().copied().collect();
        self.change(|tables| {
            for (group, mut rows) in tables.starting::<Vec<(String, bool)>>("sender key devices", "")? {
                rows.retain(|(device, _)| !deleted.contains(device.as_str()));
                tables.put("sender key devices", &group, rows)?;
            }
            Ok(())
        })
        .await
    }
    async fn clear_all_sender_key_devices(&self) -> Result<()> {
        self.change(|tables| Ok(tables.0.remove("sender key devices"))).await.map(drop)
    }
    async fn get_lid_mapping(&self, lid: &str) -> Result<Option<LidPnMappingEntry>> {
        self.read(|tables| tables.get("lid mappings", lid)).await
    }
    async fn get_pn_mapping(&self, phone: &str) -> Result<Option<LidPnMappingEntry>> {
        let mut all = self.get_all_lid_mappings().await?;
        all.retain(|entry| entry.phone_number == phone);
        Ok(all.into_iter().max_by_key(|entry| entry.updated_at))
    }
    async fn put_lid_mapping(&self, entry: &LidPnMappingEntry) -> Result<()> {
        self.change(|tables| tables.put("lid mappings", &entry.lid, entry)).await
    }
    async fn put_lid_mappings(&self, entries: &[LidPnMappingEntry]) -> Result<()> {
        self.change(|tables| entries.iter().try_for_each(|entry| tables.put("lid mappings", &entry.lid, entry))).await
    }
    async fn get_all_lid_mappings(&self) -> Result<Vec<LidPnMappingEntry>> {
        let rows = self.read(|tables| tables.starting("lid mappings", "")).await?;
        Ok(rows.into_iter().map(|(_, entry)| entry).collect())
    }
    async fn save_base_key(&self, address: &str, message_id: &str, base_key: &[u8]) -> Result<()> {
        self.change(|tables| tables.put("base keys", &key(&[address, message_id]), base_key)).await
    }
    async fn has_same_base_key(&self, address: &str, message_id: &str, current_base_key: &[u8]) -> Result<bool> {
        let stored: Option<Vec<u8>> = self.read(|tables| tables.get("base keys", &key(&[address, message_id]))).await?;
        Ok(stored.is_some_and(|stored| stored == current_base_key))
    }
    async fn delete_base_key(&self, address: &str, message_id: &str) -> Result<()> {
        self.change(|tables| tables.delete("base keys", &key(&[address, message_id]))).await
    }
    async fn update_device_list(&self, record: DeviceListRecord) -> Result<()> {
        self.update_device_lists(vec![record]).await
    }
    async fn update_device_lists(&self, records: Vec<DeviceListRecord>) -> Result<()> {
        self.change(|tables| records.iter().try_for_each(|record| tables.put("device lists", &record.user, record)))
            .await
    }
    async fn get_devices(&self, user: &str) -> Result<Option<DeviceListRecord>> {
        self.read(|tables| tables.get("device lists", user)).await
    }
    async fn delete_devices(&self, user: &str) -> Result<()> {
        self.change(|tables| tables.delete("device lists", user)).await
    }
    async fn get_group_metadata(&self, group_jid: &str) -> Result<Option<Vec<u8>>> {
        self.read(|tables| tables.get("group metadata", group_jid)).await
    }
    async fn put_group_metadata(&self, group_jid: &str, blob: &[u8]) -> Result<()> {
        self.change(|tables| tables.put("group metadata", group_jid, blob)).await
    }
    async fn delete_group_metadata(&self, group_jid: &str) -> Result<()> {
        self.change(|tables| tables.delete("group metadata", group_jid)).await
    }
    async fn get_tc_token(&self, jid: &str) -> Result<Option<TcTokenEntry>> {
        self.read(|tables| tables.get("tc tokens", jid)).await
    }
    async fn put_tc_token(&self, jid: &str, entry: &TcTokenEntry) -> Result<()> {
        self.change(|tables| tables.put("tc tokens", jid, entry)).await
    }
    async fn delete_tc_token(&self, jid: &str) -> Result<()> {
        self.change(|tables| tables.delete("tc tokens", jid)).await
    }
    async fn get_all_tc_token_jids(&self) -> Result<Vec<String>> {
        self.read(|tables| Ok(tables.keys("tc tokens").cloned().collect())).await
    }
    async fn delete_expired_tc_tokens(&self, token_cutoff: i64, sender_cutoff: i64) -> Result<u32> {
        let expired = |entry: &TcTokenEntry| {
            (entry.token.is_empty() || entry.token_timestamp < token_cutoff)
                && entry.sender_timestamp.is_none_or(|sender| sender < sender_cutoff)
        };
        self.change(|tables| tables.sweep("tc tokens", expired)).await
    }
    async fn touch_tc_token_sender_timestamp(&self, jid: &str, sender_timestamp: i64) -> Result<()> {
        self.change(|tables| {
            let placeholder =
                || TcTokenEntry { token: vec![], token_timestamp: sender_timestamp, sender_timestamp: None };
            let mut entry = tables.get("tc tokens", jid)?.unwrap_or_else(placeholder);
            entry.sender_timestamp = entry.sender_timestamp.max(Some(sender_timestamp));
            tables.put("tc tokens", jid, entry)
        })
        .await
    }
    async fn store_received_tc_token(&self, jid: &str, token: &[u8], token_timestamp: i64) -> Result<()> {
        self.change(|tables| {
            let before: Option<TcTokenEntry> = tables.get("tc tokens", jid)?;
            if before.as_ref().is_some_and(|old| !old.token.is_empty() && old.token_timestamp > token_timestamp) {
                return Ok(());
            }
            let sender_timestamp = before.and_then(|old| old.sender_timestamp);
            tables.put("tc tokens", jid, TcTokenEntry { token: token.to_vec(), token_timestamp, sender_timestamp })
        })
        .await
    }
    async fn store_sent_message(&self, chat_jid: &str, message_id: &str, payload: &[u8]) -> Result<()> {
        let row = (payload, wacore::time::now_secs());
        self.change(|tables| tables.put("sent messages", &key(&[chat_jid, message_id]), row)).await
    }
    async fn take_sent_message(&self, chat_jid: &str, message_id: &str) -> Result<Option<Vec<u8>>> {
        self.change(|tables| {
            let key = key(&[chat_jid, message_id]);
            let row: Option<(Vec<u8>, i64)> = tables.get("sent messages", &key)?;
            tables.delete("sent messages", &key)?;
            Ok(row.map(|(payload, _)| payload))
        })
        .await
    }
    async fn delete_expired_sent_messages(&self, cutoff_timestamp: i64) -> Result<u32> {
        self.change(|tables| tables.sweep("sent messages", |row: &(Vec<u8>, i64)| row.1 < cutoff_timestamp)).await
    }
    async fn store_pending_inbound(&self, chat: &str, sender: &str, id: &str, message: &[u8]) -> Result<()> {
        self.store_pending_inbound_batch(&[PendingInboundRow { chat, sender, id, message }]).await
    }
    async fn get_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<Option<Vec<u8>>> {
        let row = self.read(|tables| tables.get::<(Vec<u8>, i64)>("pending", &key(&[chat, sender, id]))).await?;
        Ok(row.map(|(message, _)| message))
    }
    async fn delete_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<()> {
        self.delete_pending_inbound_batch(&[PendingInboundKey { chat, sender, id }]).await
    }
    async fn delete_expired_pending_inbound(&self, cutoff_timestamp: i64) -> Result<u32> {
        self.change(|tables| tables.sweep("pending", |row: &(Vec<u8>, i64)| row.1 < cutoff_timestamp)).await
    }
    async fn store_pending_inbound_batch(&self, rows: &[PendingInboundRow<'_>]) -> Result<()> {
        let now = wacore::time::now_secs();
        self.change(|tables| {
            rows.iter()
                .try_for_each(|row| tables.put("pending", &key(&[row.chat, row.sender, row.id]), (row.message, now)))
        })
        .await
    }
    async fn delete_pending_inbound_batch(&self, keys: &[PendingInboundKey<'_>]) -> Result<()> {
        self.change(|tables| {
            let mut keys = keys.iter().map(|row| key(&[row.chat, row.sender, row.id]));
            keys.try_for_each(|key| tables.delete("pending", &key))
        })
        .await
    }
}

#[async_trait]
impl DeviceStore for JsonFileStore {
    async fn save(&self, device: &Device) -> Result<()> {
        self.change(|tables| tables.put("device", "", device)).await
    }
    async fn load(&self) -> Result<Option<Device>> {
        let device: Option<Device> = self.read(|tables| tables.get("device", "")).await?;
        // `device_props` is not serialized, and its default is not the client's.
        Ok(device.map(|device| Device { device_props: Arc::new(DEVICE_PROPS.clone()), ..device }))
    }
    async fn exists(&self) -> Result<bool> {
        self.read(|tables| Ok(tables.has("device", ""))).await
    }
    async fn create(&self) -> Result<i32> {
        self.change(|tables| {
            if !tables.has("device", "") {
                tables.put("device", "", Device::new())?;
            }
            Ok(1)
        })
        .await
    }
}

#[async_trait]
impl MsgSecretStore for JsonFileStore {
    async fn put_msg_secrets(&self, entries: Vec<MsgSecretEntry>) -> Result<usize> {
        self.change(|tables| {
            for mut entry in entries.iter().cloned() {
                let key = key(&[&entry.chat, &entry.sender, &entry.msg_id]);
                if let Some(before) = tables.get::<MsgSecretEntry>("message secrets", &key)? {
                    entry.expires_at = merge_msg_secret_expiry(before.expires_at, entry.expires_at);
                    entry.message_ts = merge_msg_secret_message_ts(before.message_ts, entry.message_ts);
                }
                tables.put("message secrets", &key, entry)?;
            }
            Ok(entries.len())
        })
        .await
    }
    async fn get_msg_secret(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.get_msg_secret_with_ts(chat, sender, msg_id).await?.map(|(secret, _)| secret))
    }
    async fn get_msg_secret_with_ts(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<(Vec<u8>, i64)>> {
        let key = key(&[chat, sender, msg_id]);
        let row: Option<MsgSecretEntry> = self.read(|tables| tables.get("message secrets", &key)).await?;
        Ok(row.map(|row| (row.secret.to_vec(), row.message_ts)))
    }
    async fn delete_expired_msg_secrets(&self, cutoff_timestamp: i64) -> Result<u32> {
        let expired = |row: &MsgSecretEntry| row.expires_at != 0 && row.expires_at <= cutoff_timestamp;
        self.change(|tables| tables.sweep("message secrets", expired)).await
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("wa.json");
    JsonFileStore::open(&path)?.put_session("15550001111@s.whatsapp.net", b"record").await?;
    let session = JsonFileStore::open(&path)?.get_session("15550001111@s.whatsapp.net").await?;
    println!(
        "{}: {} bytes, and a session of {} bytes in it",
        path.display(),
        fs::metadata(&path)?.len(),
        session.map_or(0, |session| session.len())
    );
    println!("Run cargo test --example own_backend --features testing for the other promises.");
    Ok(())
}

#[cfg(test)]
async fn subject() -> wastore::testing::Subject {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.json");
    let open = move || {
        let path = path.clone();
        async move { Arc::new(JsonFileStore::open(path).unwrap()) as Arc<dyn wacore::store::traits::Backend> }
    };
    wastore::testing::Subject::new(open().await).reopen_with(open).keeping(folder)
}

#[cfg(test)]
wastore::testing::backend_tests!(json_file, subject, optional: [
    any_mac_length, counts_repeated_secrets, any_sync_key_length, atomic_batches, created_at_is_replaced, durable, large_prekey_ids,
    latest_sync_key_is_the_highest, lid_mappings_without_device, literal_users, moved_lid_falls_back,
    newest_lid_by_its_time, prekeys_as_asked_for, repeatable_create, wide_numbers,
]);
