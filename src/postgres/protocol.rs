//! Groups, LIDs, base keys, device lists, tc tokens, sent and pending messages.

use async_trait::async_trait;
use tokio_postgres::Row as Found;
use wacore::store::error::Result;
use wacore::store::traits::{
    DeviceListRecord, LidPnMappingEntry, PendingInboundKey, PendingInboundRow, ProtocolStore, TcTokenEntry,
};

use super::decode::{blob, first, get, text};
use super::protocol_statements::*;
use super::statement::{Cell, row};
use super::store::PostgresStore;
use crate::clock;
use crate::error::{self, Error};
use crate::method::Record;

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ProtocolStore for PostgresStore {
    async fn get_sender_key_devices(&self, group_jid: &str) -> Result<Vec<(String, bool)>> {
        const RECORD: Record = Record::SenderKeyDevice;
        let rows = self.read(&GET_SENDER_KEY_DEVICES, row![group_jid]).await?;
        let devices = rows.iter().map(|row| Ok((text(row, 0, RECORD)?, get(row, 1, RECORD)?)));
        Ok(devices.collect::<error::Result<_>>()?)
    }

    async fn set_sender_key_status(&self, group_jid: &str, entries: &[(&str, bool)]) -> Result<()> {
        let group = Cell::from(group_jid);
        let rows = entries.iter().map(|&(device, has_key)| row![group.clone(), device, has_key]).collect();
        self.write_relaxed(&SET_SENDER_KEY_STATUS, rows).await
    }

    async fn clear_sender_key_devices(&self, group_jid: &str) -> Result<()> {
        self.write_relaxed(&CLEAR_SENDER_KEY_DEVICES, vec![row![group_jid]]).await
    }

    async fn delete_sender_key_device_rows(&self, device_jids: &[&str]) -> Result<()> {
        self.write_relaxed(&DELETE_SENDER_KEY_DEVICES, device_jids.iter().map(|&device| row![device]).collect()).await
    }

    async fn clear_all_sender_key_devices(&self) -> Result<()> {
        self.write_relaxed(&CLEAR_ALL_SENDER_KEY_DEVICES, vec![row![]]).await
    }

    async fn get_lid_mapping(&self, lid: &str) -> Result<Option<LidPnMappingEntry>> {
        let rows = self.read(&GET_LID_MAPPING, row![lid]).await?;
        Ok(first(&rows, lid_mapping)?)
    }

    /// The mapping with the latest `updated_at`. If several have the same one, the last that was put.
    async fn get_pn_mapping(&self, phone: &str) -> Result<Option<LidPnMappingEntry>> {
        let rows = self.read(&GET_PN_MAPPING, row![phone]).await?;
        Ok(first(&rows, lid_mapping)?)
    }

    async fn put_lid_mapping(&self, entry: &LidPnMappingEntry) -> Result<()> {
        self.put_lid_mappings(std::slice::from_ref(entry)).await
    }

    async fn put_lid_mappings(&self, entries: &[LidPnMappingEntry]) -> Result<()> {
        let orders = self.put_orders(entries.len())..;
        let row = |(entry, order): (&LidPnMappingEntry, i64)| {
            let LidPnMappingEntry { lid, phone_number, created_at, updated_at, learning_source } = entry;
            row![&lid[..], &phone_number[..], *created_at, *updated_at, &learning_source[..], order]
        };
        self.write_relaxed(&PUT_LID_MAPPING, entries.iter().zip(orders).map(row).collect()).await
    }

    async fn get_all_lid_mappings(&self) -> Result<Vec<LidPnMappingEntry>> {
        let rows = self.read_long(&GET_ALL_LID_MAPPINGS, row![]).await?;
        Ok(rows.iter().map(lid_mapping).collect::<error::Result<_>>()?)
    }

    /// Also deletes the account's base keys that are past their retention, once an hour.
    async fn save_base_key(&self, address: &str, message_id: &str, base_key: &[u8]) -> Result<()> {
        let now = clock::now_secs().cast_signed();
        self.write_relaxed(&SAVE_BASE_KEY, vec![row![address, message_id, base_key, now]]).await?;
        self.retire_base_keys(now).await;
        Ok(())
    }

    async fn has_same_base_key(&self, address: &str, message_id: &str, current_base_key: &[u8]) -> Result<bool> {
        let rows = self.read(&HAS_SAME_BASE_KEY, row![address, message_id, current_base_key]).await?;
        Ok(first(&rows, |row| get(row, 0, Record::BaseKey))?.unwrap_or(false))
    }

    async fn delete_base_key(&self, address: &str, message_id: &str) -> Result<()> {
        self.write_relaxed(&DELETE_BASE_KEYS, vec![row![address, message_id]]).await
    }

    async fn update_device_list(&self, record: DeviceListRecord) -> Result<()> {
        self.update_device_lists(vec![record]).await
    }

    async fn update_device_lists(&self, records: Vec<DeviceListRecord>) -> Result<()> {
        let row = |record: DeviceListRecord| {
            let DeviceListRecord { user, devices, timestamp, phash, raw_id } = record;
            let devices = serde_json::to_vec(&devices).map_err(|_| Error::Encode { record: Record::DeviceList })?;
            Ok(row![user, devices, timestamp, phash, raw_id])
        };
        let rows = records.into_iter().map(row).collect::<error::Result<_>>()?;
        self.write_relaxed(&UPDATE_DEVICE_LISTS, rows).await
    }

    async fn get_devices(&self, user: &str) -> Result<Option<DeviceListRecord>> {
        let rows = self.read(&GET_DEVICES, row![user]).await?;
        Ok(first(&rows, device_list)?)
    }

    async fn delete_devices(&self, user: &str) -> Result<()> {
        self.write_relaxed(&DELETE_DEVICES, vec![row![user]]).await
    }

    async fn get_group_metadata(&self, group_jid: &str) -> Result<Option<Vec<u8>>> {
        let rows = self.read(&GET_GROUP_METADATA, row![group_jid]).await?;
        Ok(first(&rows, |row| blob(row, 0, Record::GroupMetadata))?)
    }

    async fn put_group_metadata(&self, group_jid: &str, blob: &[u8]) -> Result<()> {
        self.write_relaxed(&PUT_GROUP_METADATA, vec![row![group_jid, blob]]).await
    }

    async fn delete_group_metadata(&self, group_jid: &str) -> Result<()> {
        self.write_relaxed(&DELETE_GROUP_METADATA, vec![row![group_jid]]).await
    }

    async fn get_tc_token(&self, jid: &str) -> Result<Option<TcTokenEntry>> {
        const RECORD: Record = Record::TcToken;
        let rows = self.read(&GET_TC_TOKEN, row![jid]).await?;
        Ok(first(&rows, |row| {
            let (token, token_timestamp) = (blob(row, 0, RECORD)?, get(row, 1, RECORD)?);
            Ok(TcTokenEntry { token, token_timestamp, sender_timestamp: get(row, 2, RECORD)? })
        })?)
    }

    async fn put_tc_token(&self, jid: &str, entry: &TcTokenEntry) -> Result<()> {
        let TcTokenEntry { token, token_timestamp, sender_timestamp } = entry;
        self.write_relaxed(&PUT_TC_TOKEN, vec![row![jid, &token[..], *token_timestamp, *sender_timestamp]]).await
    }

    async fn delete_tc_token(&self, jid: &str) -> Result<()> {
        self.write_relaxed(&DELETE_TC_TOKENS, vec![row![jid]]).await
    }

    async fn get_all_tc_token_jids(&self) -> Result<Vec<String>> {
        let rows = self.read_long(&GET_ALL_TC_TOKENS, row![]).await?;
        Ok(rows.iter().map(|row| text(row, 0, Record::TcToken)).collect::<error::Result<_>>()?)
    }

    async fn delete_expired_tc_tokens(&self, token_cutoff: i64, sender_cutoff: i64) -> Result<u32> {
        let deleted = self.sweep_step(&DELETE_EXPIRED_TC_TOKENS, row![token_cutoff, sender_cutoff]).await?;
        Ok(u32::try_from(deleted).unwrap_or(u32::MAX))
    }

    async fn touch_tc_token_sender_timestamp(&self, jid: &str, sender_timestamp: i64) -> Result<()> {
        self.write_relaxed(&TOUCH_TC_TOKEN, vec![row![jid, sender_timestamp]]).await
    }

    async fn store_received_tc_token(&self, jid: &str, token: &[u8], token_timestamp: i64) -> Result<()> {
        self.write_relaxed(&STORE_RECEIVED_TC_TOKEN, vec![row![jid, token, token_timestamp]]).await
    }

    async fn store_sent_message(&self, chat_jid: &str, message_id: &str, payload: &[u8]) -> Result<()> {
        let now = clock::now_secs().cast_signed();
        self.write_relaxed(&STORE_SENT_MESSAGE, vec![row![chat_jid, message_id, payload, now]]).await
    }

    /// Fails with [`PostgresProblem::OutcomeUnknown`](crate::error::PostgresProblem::OutcomeUnknown) if the connection
    /// breaks before the answer comes: a repetition would not find the message that the first attempt took.
    async fn take_sent_message(&self, chat_jid: &str, message_id: &str) -> Result<Option<Vec<u8>>> {
        let rows = self.change(&TAKE_SENT_MESSAGE, row![chat_jid, message_id]).await?;
        Ok(first(&rows, |row| get::<Option<Vec<u8>>>(row, 1, Record::SentMessage))?.flatten())
    }

    async fn delete_expired_sent_messages(&self, cutoff_timestamp: i64) -> Result<u32> {
        self.sweep(&DELETE_EXPIRED_SENT_MESSAGES, cutoff_timestamp).await
    }

    async fn store_pending_inbound(&self, chat: &str, sender: &str, id: &str, message: &[u8]) -> Result<()> {
        self.store_pending_inbound_batch(&[PendingInboundRow { chat, sender, id, message }]).await
    }

    async fn get_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<Option<Vec<u8>>> {
        let rows = self.read(&GET_PENDING_INBOUND, row![chat, sender, id]).await?;
        Ok(first(&rows, |row| blob(row, 0, Record::PendingInbound))?)
    }

    async fn delete_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<()> {
        self.write_durable(&DELETE_PENDING_INBOUND, vec![row![chat, sender, id]]).await
    }

    async fn delete_expired_pending_inbound(&self, cutoff_timestamp: i64) -> Result<u32> {
        self.sweep(&DELETE_EXPIRED_PENDING_INBOUND, cutoff_timestamp).await
    }

    async fn store_pending_inbound_batch(&self, rows: &[PendingInboundRow<'_>]) -> Result<()> {
        let now = clock::now_secs().cast_signed();
        let rows = rows.iter().map(|row| row![row.chat, row.sender, row.id, row.message, now]).collect();
        self.write_durable(&STORE_PENDING_INBOUND, rows).await
    }

    async fn delete_pending_inbound_batch(&self, keys: &[PendingInboundKey<'_>]) -> Result<()> {
        let rows = keys.iter().map(|key| row![key.chat, key.sender, key.id]).collect();
        self.write_durable(&DELETE_PENDING_INBOUND, rows).await
    }
}

/// The time between two retirements of base keys of an account, in seconds.
const RETIREMENT: i64 = 3600;

impl PostgresStore {
    /// Deletes the base keys that are past their retention, unless that was done within the hour. A failure is only
    /// logged: the next retirement makes up for it.
    async fn retire_base_keys(&self, now: i64) {
        let Some(kept) = self.base_key_retention() else { return };
        if !self.is_due(now, RETIREMENT) {
            return;
        }
        let cutoff = now.saturating_sub_unsigned(kept.as_secs());
        if let Err(error) = self.sweep(&RETIRE_BASE_KEYS, cutoff).await {
            log::warn!("old base keys were not deleted: {error}");
        }
    }
}

fn lid_mapping(row: &Found) -> error::Result<LidPnMappingEntry> {
    const RECORD: Record = Record::LidMapping;
    Ok(LidPnMappingEntry {
        lid: text(row, 0, RECORD)?,
        phone_number: text(row, 1, RECORD)?,
        created_at: get(row, 2, RECORD)?,
        updated_at: get(row, 3, RECORD)?,
        learning_source: text(row, 4, RECORD)?,
    })
}

fn device_list(row: &Found) -> error::Result<DeviceListRecord> {
    const RECORD: Record = Record::DeviceList;
    let malformed = || Error::Malformed { record: RECORD };
    let raw_id: Option<i64> = get(row, 4, RECORD)?;
    let phash: Option<Vec<u8>> = get(row, 3, RECORD)?;
    Ok(DeviceListRecord {
        user: text(row, 0, RECORD)?,
        devices: serde_json::from_slice(get(row, 1, RECORD)?).map_err(|_| malformed())?,
        timestamp: get(row, 2, RECORD)?,
        phash: phash.map(String::from_utf8).transpose().map_err(|_| malformed())?,
        raw_id: raw_id.map(u32::try_from).transpose().map_err(|_| malformed())?,
    })
}
