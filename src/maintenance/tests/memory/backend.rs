//! Upstream's storage traits over the maps of the engine. Methods with sufficient default bodies
//! are left out.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::Device;
use wacore::store::device::DEVICE_PROPS;
use wacore::store::error::Result;
use wacore::store::traits::{
    AppStateSyncKey, AppSyncStore, DeviceListRecord, DeviceStore, LidPnMappingEntry, MsgSecretEntry, MsgSecretStore,
    PendingInboundKey, PendingInboundRow, ProtocolStore, SignalStore, TcTokenEntry, merge_msg_secret_expiry,
    merge_msg_secret_message_ts,
};

use super::{Key, Map, Memory, Row, number_in, rows_of};
use crate::clock;
use crate::method::Record;
use crate::rows::below;
use crate::rows::encoding::{decode_map, encode_map};
use crate::rows::table::{TABLES, Table};

/// The tables of one account, held exclusively.
struct Held<'a> {
    map: MutexGuard<'a, Map>,
    account: i32,
}

fn table_of(record: Record) -> &'static Table {
    TABLES.iter().find(|table| table.record == record).unwrap()
}

fn key<P: AsRef<[u8]>>(parts: &[P]) -> Key {
    parts.iter().map(|part| part.as_ref().to_vec()).collect()
}

fn number(id: u32) -> Key {
    vec![id.to_le_bytes().to_vec()]
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn now() -> i64 {
    clock::now_secs().cast_signed()
}

impl Memory {
    fn held(&self) -> Held<'_> {
        Held { map: self.map(), account: self.account }
    }
}

impl Held<'_> {
    fn get(&self, record: Record, key: Key) -> Option<Row> {
        self.map.get(&(self.account, table_of(record).name, key)).cloned()
    }

    /// The value of a row that has it in one column.
    fn value(&self, record: Record, key: Key) -> Option<Vec<u8>> {
        self.get(record, key).map(|row| row.carrier.concat())
    }

    fn put(&mut self, record: Record, key: Key, row: Row) {
        self.map.insert((self.account, table_of(record).name, key), row);
    }

    fn remove(&mut self, record: Record, key: Key) -> Option<Row> {
        self.map.remove(&(self.account, table_of(record).name, key))
    }

    fn rows(&self, record: Record) -> impl Iterator<Item = (&Key, &Row)> {
        rows_of(&self.map, self.account, table_of(record))
    }

    fn lid_mapping(&self, lid: &str) -> Option<LidPnMappingEntry> {
        let name = table_of(Record::LidMapping).name;
        let ((account, table, key), row) = self.map.range((self.account, name, key(&[lid]))..).next()?;
        let is_it = (*account, *table) == (self.account, name) && key[0] == lid.as_bytes();
        is_it.then(|| row.lid_mapping(key))
    }

    /// Removes the rows for which `is_gone` is true, and counts them.
    fn sweep(&mut self, record: Record, is_gone: impl Fn(&Key, &Row) -> bool) -> u32 {
        let before = self.map.len();
        let (here, table) = (self.account, table_of(record).name);
        self.map.retain(|(account, name, key), row| (*account, *name) != (here, table) || !is_gone(key, row));
        (before - self.map.len()) as u32
    }
}

impl Row {
    fn of(value: &[u8]) -> Self {
        Self { carrier: vec![value.to_vec()], ..Self::default() }
    }

    fn numbered(self, numbers: &[Option<i64>]) -> Self {
        Self { numbers: numbers.to_vec(), ..self }
    }

    fn with(self, rest: impl Serialize) -> Self {
        Self { rest: serde_json::to_value(rest).unwrap(), ..self }
    }

    fn rest<T: DeserializeOwned>(&self) -> T {
        serde_json::from_value(self.rest.clone()).unwrap()
    }

    fn time(&self, number: usize) -> i64 {
        self.numbers[number].unwrap()
    }

    fn lid_mapping(&self, key: &Key) -> LidPnMappingEntry {
        LidPnMappingEntry {
            lid: text(&key[0]),
            phone_number: text(&key[1]),
            created_at: self.time(0),
            updated_at: self.time(1),
            learning_source: text(&self.carrier[0]),
        }
    }

    fn of_tc_token(entry: &TcTokenEntry) -> Self {
        Self::of(&entry.token).numbered(&[Some(entry.token_timestamp), entry.sender_timestamp])
    }

    fn tc_token(&self) -> TcTokenEntry {
        let (token, sender_timestamp) = (self.carrier.concat(), self.numbers[1]);
        TcTokenEntry { token, token_timestamp: self.time(0), sender_timestamp }
    }
}

#[async_trait]
impl SignalStore for Memory {
    async fn put_identity(&self, address: &str, identity: [u8; 32]) -> Result<()> {
        self.held().put(Record::Identity, key(&[address]), Row::of(&identity));
        Ok(())
    }
    async fn load_identity(&self, address: &str) -> Result<Option<[u8; 32]>> {
        let value = self.held().value(Record::Identity, key(&[address]));
        Ok(value.map(|value| value.try_into().unwrap()))
    }
    async fn delete_identity(&self, address: &str) -> Result<()> {
        self.held().remove(Record::Identity, key(&[address]));
        Ok(())
    }
    async fn get_session(&self, address: &str) -> Result<Option<Bytes>> {
        Ok(self.held().value(Record::Session, key(&[address])).map(Bytes::from))
    }
    async fn put_session(&self, address: &str, session: &[u8]) -> Result<()> {
        self.held().put(Record::Session, key(&[address]), Row::of(session));
        Ok(())
    }
    async fn put_sessions_batch(&self, sessions: &[(Arc<str>, Bytes)]) -> Result<()> {
        let mut held = self.held();
        sessions.iter().for_each(|(address, row)| held.put(Record::Session, key(&[&**address]), Row::of(row)));
        Ok(())
    }
    async fn delete_session(&self, address: &str) -> Result<()> {
        self.held().remove(Record::Session, key(&[address]));
        Ok(())
    }
    async fn has_signal_state_for_user(&self, user: &str) -> Result<bool> {
        let held = self.held();
        let mut rows = held.rows(Record::Session).chain(held.rows(Record::Identity));
        Ok(rows.any(|(key, _)| text(&key[0]).strip_prefix(user).is_some_and(|rest| rest.starts_with(['@', ':']))))
    }
    async fn store_prekey(&self, id: u32, record: &[u8], uploaded: bool) -> Result<()> {
        self.held().put(Record::Prekey, number(id), Row::of(record).numbered(&[Some(uploaded.into())]));
        Ok(())
    }
    async fn load_prekey(&self, id: u32) -> Result<Option<Bytes>> {
        Ok(self.held().value(Record::Prekey, number(id)).map(Bytes::from))
    }
    async fn mark_prekeys_uploaded(&self, ids: &[u32]) -> Result<()> {
        let mut held = self.held();
        for id in ids {
            if let Some(row) = held.get(Record::Prekey, number(*id)) {
                held.put(Record::Prekey, number(*id), row.numbered(&[Some(1)]));
            }
        }
        Ok(())
    }
    async fn remove_prekey(&self, id: u32) -> Result<()> {
        self.held().remove(Record::Prekey, number(id));
        Ok(())
    }
    async fn get_max_prekey_id(&self) -> Result<u32> {
        Ok(self.held().rows(Record::Prekey).map(|(key, _)| number_in(&key[0])).max().unwrap_or(0))
    }
    async fn store_signed_prekey(&self, id: u32, record: &[u8]) -> Result<()> {
        self.held().put(Record::SignedPrekey, number(id), Row::of(record));
        Ok(())
    }
    async fn load_signed_prekey(&self, id: u32) -> Result<Option<Vec<u8>>> {
        Ok(self.held().value(Record::SignedPrekey, number(id)))
    }
    async fn load_all_signed_prekeys(&self) -> Result<Vec<(u32, Vec<u8>)>> {
        let held = self.held();
        Ok(held.rows(Record::SignedPrekey).map(|(key, row)| (number_in(&key[0]), row.carrier.concat())).collect())
    }
    async fn remove_signed_prekey(&self, id: u32) -> Result<()> {
        self.held().remove(Record::SignedPrekey, number(id));
        Ok(())
    }
    async fn put_sender_key(&self, address: &str, record: &[u8]) -> Result<()> {
        self.held().put(Record::SenderKey, key(&[address]), Row::of(record));
        Ok(())
    }
    async fn put_sender_keys_batch(&self, sender_keys: &[(Arc<str>, Bytes)]) -> Result<()> {
        let mut held = self.held();
        sender_keys.iter().for_each(|(address, row)| held.put(Record::SenderKey, key(&[&**address]), Row::of(row)));
        Ok(())
    }
    async fn get_sender_key(&self, address: &str) -> Result<Option<Vec<u8>>> {
        if address == below::ADDRESS {
            return Ok(below::answer(&self.database, self.account, self.chosen));
        }
        Ok(self.held().value(Record::SenderKey, key(&[address])))
    }
    async fn delete_sender_key(&self, address: &str) -> Result<()> {
        self.held().remove(Record::SenderKey, key(&[address]));
        Ok(())
    }
}

#[async_trait]
impl AppSyncStore for Memory {
    async fn get_sync_key(&self, key_id: &[u8]) -> Result<Option<AppStateSyncKey>> {
        let of = |row: Row| match &row.carrier[..] {
            [one, two] => AppStateSyncKey { key_data: one.clone(), fingerprint: two.clone(), timestamp: row.rest() },
            _ => AppStateSyncKey::default(),
        };
        Ok(self.held().get(Record::SyncKey, key(&[key_id])).map(of))
    }
    async fn set_sync_key(&self, key_id: &[u8], sync_key: AppStateSyncKey) -> Result<()> {
        let AppStateSyncKey { key_data, fingerprint, timestamp } = sync_key;
        let row = Row { carrier: vec![key_data, fingerprint], ..Row::default() }.with(timestamp);
        self.held().put(Record::SyncKey, key(&[key_id]), row);
        Ok(())
    }
    async fn get_version(&self, name: &str) -> Result<HashState> {
        let Some(row) = self.held().get(Record::CollectionVersion, key(&[name])) else {
            return Ok(HashState::default());
        };
        Ok(HashState { index_value_map: decode_map(&row.carrier.concat())?, ..row.rest() })
    }
    async fn set_version(&self, name: &str, mut state: HashState) -> Result<()> {
        let map = encode_map(&std::mem::take(&mut state.index_value_map))?;
        self.held().put(Record::CollectionVersion, key(&[name]), Row::of(&map).with(state));
        Ok(())
    }
    async fn put_mutation_macs(&self, name: &str, version: u64, mutations: &[AppStateMutationMAC]) -> Result<()> {
        let mut held = self.held();
        for mac in mutations {
            let row = Row::of(&mac.value_mac).numbered(&[Some(version.cast_signed())]);
            held.put(Record::MutationMac, key(&[name.as_bytes(), &mac.index_mac]), row);
        }
        Ok(())
    }
    async fn get_mutation_mac(&self, name: &str, index_mac: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.held().value(Record::MutationMac, key(&[name.as_bytes(), index_mac])))
    }
    async fn delete_mutation_macs(&self, name: &str, index_macs: &[Vec<u8>]) -> Result<()> {
        let mut held = self.held();
        for index_mac in index_macs {
            held.remove(Record::MutationMac, key(&[name.as_bytes(), index_mac]));
        }
        Ok(())
    }
    async fn clear_mutation_macs(&self, name: &str) -> Result<()> {
        self.held().sweep(Record::MutationMac, |key, _| key[0] == name.as_bytes());
        Ok(())
    }
    async fn get_latest_sync_key_id(&self) -> Result<Option<Vec<u8>>> {
        Ok(self.held().rows(Record::SyncKey).last().map(|(key, _)| key[0].clone()))
    }
}

#[async_trait]
impl ProtocolStore for Memory {
    async fn get_sender_key_devices(&self, group_jid: &str) -> Result<Vec<(String, bool)>> {
        let held = self.held();
        let of_group = held.rows(Record::SenderKeyDevice).filter(|(key, _)| key[0] == group_jid.as_bytes());
        Ok(of_group.map(|(key, row)| (text(&key[1]), row.rest())).collect())
    }
    async fn set_sender_key_status(&self, group_jid: &str, entries: &[(&str, bool)]) -> Result<()> {
        let mut held = self.held();
        for (device, has_key) in entries {
            held.put(Record::SenderKeyDevice, key(&[group_jid, device]), Row::default().with(has_key));
        }
        Ok(())
    }
    async fn clear_sender_key_devices(&self, group_jid: &str) -> Result<()> {
        self.held().sweep(Record::SenderKeyDevice, |key, _| key[0] == group_jid.as_bytes());
        Ok(())
    }
    async fn delete_sender_key_device_rows(&self, device_jids: &[&str]) -> Result<()> {
        let gone: HashSet<_> = device_jids.iter().map(|jid| jid.as_bytes()).collect();
        self.held().sweep(Record::SenderKeyDevice, |key, _| gone.contains(&key[1][..]));
        Ok(())
    }
    async fn clear_all_sender_key_devices(&self) -> Result<()> {
        self.held().sweep(Record::SenderKeyDevice, |_, _| true);
        Ok(())
    }
    async fn get_lid_mapping(&self, lid: &str) -> Result<Option<LidPnMappingEntry>> {
        Ok(self.held().lid_mapping(lid))
    }
    async fn get_pn_mapping(&self, phone: &str) -> Result<Option<LidPnMappingEntry>> {
        let all = self.get_all_lid_mappings().await?.into_iter();
        Ok(all.filter(|entry| entry.phone_number == phone).max_by_key(|entry| entry.updated_at))
    }
    async fn put_lid_mapping(&self, entry: &LidPnMappingEntry) -> Result<()> {
        let LidPnMappingEntry { lid, phone_number, created_at, updated_at, learning_source } = entry;
        let mut held = self.held();
        // A LID has one number, which is part of its key.
        if let Some(before) = held.lid_mapping(lid) {
            held.remove(Record::LidMapping, key(&[&before.lid, &before.phone_number]));
        }
        let row = Row::of(learning_source.as_bytes()).numbered(&[Some(*created_at), Some(*updated_at)]);
        held.put(Record::LidMapping, key(&[lid, phone_number]), row);
        Ok(())
    }
    async fn get_all_lid_mappings(&self) -> Result<Vec<LidPnMappingEntry>> {
        Ok(self.held().rows(Record::LidMapping).map(|(key, row)| row.lid_mapping(key)).collect())
    }
    async fn save_base_key(&self, address: &str, message_id: &str, base_key: &[u8]) -> Result<()> {
        self.held().put(Record::BaseKey, key(&[address, message_id]), Row::of(base_key));
        Ok(())
    }
    async fn has_same_base_key(&self, address: &str, message_id: &str, current_base_key: &[u8]) -> Result<bool> {
        let stored = self.held().value(Record::BaseKey, key(&[address, message_id]));
        Ok(stored.is_some_and(|stored| stored == current_base_key))
    }
    async fn delete_base_key(&self, address: &str, message_id: &str) -> Result<()> {
        self.held().remove(Record::BaseKey, key(&[address, message_id]));
        Ok(())
    }
    async fn update_device_list(&self, mut record: DeviceListRecord) -> Result<()> {
        let carrier = record.phash.take().map(String::into_bytes).into_iter().collect();
        let (key, row) = (key(&[&record.user]), Row { carrier, ..Row::default() }.with(record));
        self.held().put(Record::DeviceList, key, row);
        Ok(())
    }
    async fn get_devices(&self, user: &str) -> Result<Option<DeviceListRecord>> {
        let of = |row: Row| DeviceListRecord { phash: row.carrier.first().map(|phash| text(phash)), ..row.rest() };
        Ok(self.held().get(Record::DeviceList, key(&[user])).map(of))
    }
    async fn delete_devices(&self, user: &str) -> Result<()> {
        self.held().remove(Record::DeviceList, key(&[user]));
        Ok(())
    }
    async fn get_group_metadata(&self, group_jid: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.held().value(Record::GroupMetadata, key(&[group_jid])))
    }
    async fn put_group_metadata(&self, group_jid: &str, blob: &[u8]) -> Result<()> {
        self.held().put(Record::GroupMetadata, key(&[group_jid]), Row::of(blob));
        Ok(())
    }
    async fn delete_group_metadata(&self, group_jid: &str) -> Result<()> {
        self.held().remove(Record::GroupMetadata, key(&[group_jid]));
        Ok(())
    }
    async fn get_tc_token(&self, jid: &str) -> Result<Option<TcTokenEntry>> {
        Ok(self.held().get(Record::TcToken, key(&[jid])).map(|row| row.tc_token()))
    }
    async fn put_tc_token(&self, jid: &str, entry: &TcTokenEntry) -> Result<()> {
        self.held().put(Record::TcToken, key(&[jid]), Row::of_tc_token(entry));
        Ok(())
    }
    async fn delete_tc_token(&self, jid: &str) -> Result<()> {
        self.held().remove(Record::TcToken, key(&[jid]));
        Ok(())
    }
    async fn get_all_tc_token_jids(&self) -> Result<Vec<String>> {
        Ok(self.held().rows(Record::TcToken).map(|(key, _)| text(&key[0])).collect())
    }
    async fn delete_expired_tc_tokens(&self, token_cutoff: i64, sender_cutoff: i64) -> Result<u32> {
        let expired = |_: &Key, row: &Row| {
            let entry = row.tc_token();
            (entry.token.is_empty() || entry.token_timestamp < token_cutoff)
                && entry.sender_timestamp.is_none_or(|sender| sender < sender_cutoff)
        };
        Ok(self.held().sweep(Record::TcToken, expired))
    }
    async fn touch_tc_token_sender_timestamp(&self, jid: &str, sender_timestamp: i64) -> Result<()> {
        let mut held = self.held();
        let placeholder = TcTokenEntry { token: vec![], token_timestamp: sender_timestamp, sender_timestamp: None };
        let mut entry = held.get(Record::TcToken, key(&[jid])).map_or(placeholder, |row| row.tc_token());
        entry.sender_timestamp = entry.sender_timestamp.max(Some(sender_timestamp));
        held.put(Record::TcToken, key(&[jid]), Row::of_tc_token(&entry));
        Ok(())
    }
    async fn store_received_tc_token(&self, jid: &str, token: &[u8], token_timestamp: i64) -> Result<()> {
        let mut held = self.held();
        let before = held.get(Record::TcToken, key(&[jid])).map(|row| row.tc_token());
        if before.as_ref().is_some_and(|old| !old.token.is_empty() && old.token_timestamp > token_timestamp) {
            return Ok(());
        }
        let sender_timestamp = before.and_then(|old| old.sender_timestamp);
        let entry = TcTokenEntry { token: token.to_vec(), token_timestamp, sender_timestamp };
        held.put(Record::TcToken, key(&[jid]), Row::of_tc_token(&entry));
        Ok(())
    }
    async fn store_sent_message(&self, chat_jid: &str, message_id: &str, payload: &[u8]) -> Result<()> {
        let row = Row::of(payload).numbered(&[Some(now())]);
        self.held().put(Record::SentMessage, key(&[chat_jid, message_id]), row);
        Ok(())
    }
    async fn take_sent_message(&self, chat_jid: &str, message_id: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.held().remove(Record::SentMessage, key(&[chat_jid, message_id])).map(|row| row.carrier.concat()))
    }
    async fn delete_expired_sent_messages(&self, cutoff_timestamp: i64) -> Result<u32> {
        Ok(self.held().sweep(Record::SentMessage, |_, row| row.time(0) < cutoff_timestamp))
    }
    async fn store_pending_inbound(&self, chat: &str, sender: &str, id: &str, message: &[u8]) -> Result<()> {
        self.store_pending_inbound_batch(&[PendingInboundRow { chat, sender, id, message }]).await
    }
    async fn get_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.held().value(Record::PendingInbound, key(&[chat, sender, id])))
    }
    async fn delete_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<()> {
        self.delete_pending_inbound_batch(&[PendingInboundKey { chat, sender, id }]).await
    }
    async fn delete_expired_pending_inbound(&self, cutoff_timestamp: i64) -> Result<u32> {
        Ok(self.held().sweep(Record::PendingInbound, |_, row| row.time(0) < cutoff_timestamp))
    }
    async fn store_pending_inbound_batch(&self, rows: &[PendingInboundRow<'_>]) -> Result<()> {
        let mut held = self.held();
        for PendingInboundRow { chat, sender, id, message } in rows {
            held.put(Record::PendingInbound, key(&[chat, sender, id]), Row::of(message).numbered(&[Some(now())]));
        }
        Ok(())
    }
    async fn delete_pending_inbound_batch(&self, keys: &[PendingInboundKey<'_>]) -> Result<()> {
        let mut held = self.held();
        for PendingInboundKey { chat, sender, id } in keys {
            held.remove(Record::PendingInbound, key(&[chat, sender, id]));
        }
        Ok(())
    }
}

#[async_trait]
impl DeviceStore for Memory {
    async fn save(&self, device: &Device) -> Result<()> {
        let mut device = device.clone();
        let carrier = device.edge_routing_info.take().into_iter().collect();
        self.held().put(Record::Device, vec![], Row { carrier, ..Row::default() }.with(device));
        Ok(())
    }
    async fn load(&self) -> Result<Option<Device>> {
        let of = |row: Row| Device {
            edge_routing_info: row.carrier.first().cloned(),
            // Not serialized, and its default differs from the client's.
            device_props: Arc::new(DEVICE_PROPS.clone()),
            ..row.rest()
        };
        Ok(self.held().get(Record::Device, vec![]).map(of))
    }
    async fn exists(&self) -> Result<bool> {
        Ok(self.held().get(Record::Device, vec![]).is_some())
    }
    async fn create(&self) -> Result<i32> {
        if !self.exists().await? {
            self.save(&Device::new()).await?;
        }
        Ok(self.account)
    }
}

#[async_trait]
impl MsgSecretStore for Memory {
    async fn put_msg_secrets(&self, entries: Vec<MsgSecretEntry>) -> Result<usize> {
        let (mut held, count) = (self.held(), entries.len());
        for MsgSecretEntry { chat, sender, msg_id, secret, mut expires_at, mut message_ts } in entries {
            let key = key(&[&*chat, &*sender, &*msg_id]);
            if let Some(before) = held.get(Record::MessageSecret, key.clone()) {
                let (old_expiry, old_time) = before.rest();
                expires_at = merge_msg_secret_expiry(old_expiry, expires_at);
                message_ts = merge_msg_secret_message_ts(old_time, message_ts);
            }
            held.put(Record::MessageSecret, key, Row::of(&secret).with((expires_at, message_ts)));
        }
        Ok(count)
    }
    async fn get_msg_secret(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.held().value(Record::MessageSecret, key(&[chat, sender, msg_id])))
    }
    async fn get_msg_secret_with_ts(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<(Vec<u8>, i64)>> {
        let row = self.held().get(Record::MessageSecret, key(&[chat, sender, msg_id]));
        Ok(row.map(|row| (row.carrier.concat(), row.rest::<(i64, i64)>().1)))
    }
    async fn delete_expired_msg_secrets(&self, cutoff_timestamp: i64) -> Result<u32> {
        let expired = |_: &Key, row: &Row| {
            let (expires_at, _) = row.rest::<(i64, i64)>();
            expires_at != 0 && expires_at <= cutoff_timestamp
        };
        Ok(self.held().sweep(Record::MessageSecret, expired))
    }
}
