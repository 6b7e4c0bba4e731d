//! Sender-key devices, LID mappings, base keys, device lists, group metadata, tc tokens and buffered messages.
//!
//! | record | inner key | inner value | in the clear |
//! |--|--|--|--|
//! | sender-key device | token(group), listed(device) | – | `has_key`; the same device looks the same in every group |
//! | LID mapping | token(LID), token(phone number) | sealed whole in `learning_source` | created, updated |
//! | base key | token(address, message id), `x` | index(address, message id, base key), compared inside the store | – |
//! | device list | token(user) | sealed whole in `phash`; `devices` empty | timestamp |
//! | group metadata | token(group) | sealed | – |
//! | tc token | listed(JID) | sealed; an empty token stays empty | both timestamps |
//! | sent message | `x`, token(chat, message id) | sealed | time of insertion |
//! | pending inbound | `x`, `x`, token(chat, sender, id) | sealed | time of insertion |

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use wacore::store::error::Result;
use wacore::store::traits::{
    DeviceListRecord, LidPnMappingEntry, PendingInboundKey, PendingInboundRow, ProtocolStore, TcTokenEntry,
};
use zeroize::Zeroizing;

use super::cipher::RecordCipher;
use super::columns::{pending_inbound, sent_message};
use super::format::envelope::{self, Nonce, Prefix, RowBinding, nonce, nonces};
use super::format::keys::DataKeys;
use super::format::kind::Kind;
use super::format::token::{Domain, Token, UNUSED};
use super::layer::EncryptStore;
use super::vault::open_vault::VaultState;
use crate::background::in_parallel;
use crate::error::{self, Error};
use crate::json;
use crate::method::{Record, forward};
use crate::rows::encoding::{decode_text, decode_text_into, encode_text};

#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
#[deny(clippy::missing_trait_methods)]
impl ProtocolStore for EncryptStore {
    async fn get_sender_key_devices(&self, group_jid: &str) -> Result<Vec<(String, bool)>> {
        let state = self.state();
        let group = state.cipher.lookup().token(Record::SenderKeyDevice, Domain::Group, &[group_jid])?;
        let rows = self.inner.get_sender_key_devices(&group).await?;
        let mut devices = Vec::with_capacity(rows.len());
        for (token, has_key) in rows {
            let jid = state.cipher.lookup().decrypt_name(Record::SenderKeyDevice, Domain::DeviceJid, &token);
            if let Some(jid) = self.or_absent(jid)? {
                devices.push((jid, has_key));
            }
        }
        Ok(devices)
    }

    async fn set_sender_key_status(&self, group_jid: &str, entries: &[(&str, bool)]) -> Result<()> {
        let state = self.state();
        let group = state.cipher.lookup().token(Record::SenderKeyDevice, Domain::Group, &[group_jid])?;
        let jids = state.cipher.lookup().device_jids(entries.iter().map(|(jid, _)| *jid))?;
        let rows: Vec<_> = jids.iter().map(String::as_str).zip(entries.iter().map(|(_, has_key)| *has_key)).collect();
        self.inner.set_sender_key_status(&group, &rows).await
    }

    async fn clear_sender_key_devices(&self, group_jid: &str) -> Result<()> {
        let group = self.state().cipher.lookup().token(Record::SenderKeyDevice, Domain::Group, &[group_jid])?;
        self.inner.clear_sender_key_devices(&group).await
    }

    async fn delete_sender_key_device_rows(&self, device_jids: &[&str]) -> Result<()> {
        let jids = self.state().cipher.lookup().device_jids(device_jids.iter().copied())?;
        let rows: Vec<_> = jids.iter().map(String::as_str).collect();
        self.inner.delete_sender_key_device_rows(&rows).await
    }

    // These methods have no names and no values: they clear rows, or sweep by times that are in the clear.
    forward!(
        clear_all_sender_key_devices,
        delete_expired_tc_tokens,
        delete_expired_sent_messages,
        delete_expired_pending_inbound,
    );

    async fn get_lid_mapping(&self, lid: &str) -> Result<Option<LidPnMappingEntry>> {
        let state = self.state();
        let token = state.cipher.lookup().lid(lid)?;
        let Some(mut row) = self.inner.get_lid_mapping(&token).await? else { return Ok(None) };
        // The row must be the requested one, whatever its columns say.
        row.lid = token.to_string();
        let opened = self.open_lid_mapping(&state, &mut row).await;
        let opened = opened.and_then(|()| if row.lid == lid { Ok(row) } else { Err(TAMPERED_LID) });
        Ok(self.or_absent(opened)?)
    }

    async fn get_pn_mapping(&self, phone: &str) -> Result<Option<LidPnMappingEntry>> {
        let state = self.state();
        let token = state.cipher.lookup().phone_number(phone)?;
        let Some(mut row) = self.inner.get_pn_mapping(&token).await? else { return Ok(None) };
        row.phone_number = token.to_string();
        let opened = self.open_lid_mapping(&state, &mut row).await;
        let opened = opened.and_then(|()| if row.phone_number == phone { Ok(row) } else { Err(TAMPERED_LID) });
        Ok(self.or_absent(opened)?)
    }

    async fn put_lid_mapping(&self, entry: &LidPnMappingEntry) -> Result<()> {
        let state = self.state();
        let sealed = state.cipher.seal_lid_mapping(&nonce()?, entry)?;
        self.inner.put_lid_mapping(&sealed).await
    }

    async fn put_lid_mappings(&self, entries: &[LidPnMappingEntry]) -> Result<()> {
        let state = self.state();
        let sealed = entries
            .iter()
            .zip(nonces(entries.len())?)
            .map(|(entry, nonce)| state.cipher.seal_lid_mapping(&nonce, entry))
            .collect::<error::Result<Vec<_>>>()?;
        self.inner.put_lid_mappings(&sealed).await
    }

    async fn get_all_lid_mappings(&self) -> Result<Vec<LidPnMappingEntry>> {
        let state = self.state();
        let rows = self.inner.get_all_lid_mappings().await?;
        let opener = state.clone();
        let (mut rows, others) = in_parallel(rows, move |rows| opener.cipher.open_lid_mappings(rows)).await;
        let mut absent = vec![];
        for (at, other) in others {
            let opened = match other {
                NotOpened::NewerHeader => self.open_lid_mapping(&state, &mut rows[at]).await,
                NotOpened::Damaged(error) => Err(error),
            };
            if self.or_absent(opened)?.is_none() {
                absent.push(at);
            }
        }
        // From the last to the first, so that the other places stay as they are.
        absent.into_iter().rev().for_each(|at| drop(rows.remove(at)));
        Ok(rows)
    }

    // The store compares the saved base key with the current one, so equal base keys must have equal stored values. No
    // client ever reads it back.

    async fn save_base_key(&self, address: &str, message_id: &str, base_key: &[u8]) -> Result<()> {
        let (token, value) = self.state().cipher.lookup().base_key(address, message_id, base_key)?;
        self.inner.save_base_key(&token, UNUSED, &value).await
    }

    async fn has_same_base_key(&self, address: &str, message_id: &str, current_base_key: &[u8]) -> Result<bool> {
        let (token, value) = self.state().cipher.lookup().base_key(address, message_id, current_base_key)?;
        self.inner.has_same_base_key(&token, UNUSED, &value).await
    }

    async fn delete_base_key(&self, address: &str, message_id: &str) -> Result<()> {
        let token = self.state().cipher.lookup().base_key_row(address, message_id)?;
        self.inner.delete_base_key(&token, UNUSED).await
    }

    async fn update_device_list(&self, record: DeviceListRecord) -> Result<()> {
        let state = self.state();
        let sealed = state.cipher.seal_device_list(&nonce()?, &record)?;
        self.inner.update_device_list(sealed).await
    }

    async fn update_device_lists(&self, records: Vec<DeviceListRecord>) -> Result<()> {
        let state = self.state();
        let sealed = records
            .iter()
            .zip(nonces(records.len())?)
            .map(|(record, nonce)| state.cipher.seal_device_list(&nonce, record))
            .collect::<error::Result<Vec<_>>>()?;
        self.inner.update_device_lists(sealed).await
    }

    async fn get_devices(&self, user: &str) -> Result<Option<DeviceListRecord>> {
        let state = self.state();
        let token = state.cipher.lookup().device_list(user)?;
        let Some(row) = self.inner.get_devices(&token).await? else { return Ok(None) };
        Ok(self.or_absent(self.open_device_list(&state, &token, user, row).await)?)
    }

    async fn delete_devices(&self, user: &str) -> Result<()> {
        let token = self.state().cipher.lookup().device_list(user)?;
        self.inner.delete_devices(&token).await
    }

    async fn get_group_metadata(&self, group_jid: &str) -> Result<Option<Vec<u8>>> {
        let state = self.state();
        let token = state.cipher.lookup().group_metadata(group_jid)?;
        let Some(value) = self.inner.get_group_metadata(&token).await? else { return Ok(None) };
        let binding = RowBinding::new(Kind::GroupMetadata, [token.as_bytes()], [group_jid.as_bytes()]);
        let blob = self.open(&state, binding, value).await;
        Ok(self.or_absent(blob)?)
    }

    async fn put_group_metadata(&self, group_jid: &str, blob: &[u8]) -> Result<()> {
        let state = self.state();
        let token = state.cipher.lookup().group_metadata(group_jid)?;
        let sealed = state.cipher.seal(
            &nonce()?,
            RowBinding::new(Kind::GroupMetadata, [token.as_bytes()], [group_jid.as_bytes()]),
            blob,
        )?;
        self.inner.put_group_metadata(&token, &sealed).await
    }

    async fn delete_group_metadata(&self, group_jid: &str) -> Result<()> {
        let token = self.state().cipher.lookup().group_metadata(group_jid)?;
        self.inner.delete_group_metadata(&token).await
    }

    async fn get_tc_token(&self, jid: &str) -> Result<Option<TcTokenEntry>> {
        let state = self.state();
        let listed = state.cipher.lookup().tc_token_jid(jid)?;
        let Some(mut entry) = self.inner.get_tc_token(&listed).await? else { return Ok(None) };
        if entry.token.is_empty() {
            return Ok(Some(entry));
        }
        let binding = RowBinding::new(Kind::TcToken, [listed.as_bytes()], []);
        let token = self.open(&state, binding, std::mem::take(&mut entry.token)).await;
        Ok(self.or_absent(token)?.map(|token| TcTokenEntry { token, ..entry }))
    }

    async fn put_tc_token(&self, jid: &str, entry: &TcTokenEntry) -> Result<()> {
        let state = self.state();
        let (listed, token) = state.cipher.seal_tc_token(jid, &entry.token)?;
        self.inner.put_tc_token(&listed, &TcTokenEntry { token: token.into_owned(), ..*entry }).await
    }

    async fn delete_tc_token(&self, jid: &str) -> Result<()> {
        let listed = self.state().cipher.lookup().tc_token_jid(jid)?;
        self.inner.delete_tc_token(&listed).await
    }

    async fn get_all_tc_token_jids(&self) -> Result<Vec<String>> {
        let state = self.state();
        let rows = self.inner.get_all_tc_token_jids().await?;
        let mut jids = Vec::with_capacity(rows.len());
        for token in rows {
            jids.extend(self.or_absent(state.cipher.lookup().decrypt_name(
                Record::TcToken,
                Domain::TcTokenJid,
                &token,
            ))?);
        }
        Ok(jids)
    }

    async fn touch_tc_token_sender_timestamp(&self, jid: &str, sender_timestamp: i64) -> Result<()> {
        let listed = self.state().cipher.lookup().tc_token_jid(jid)?;
        self.inner.touch_tc_token_sender_timestamp(&listed, sender_timestamp).await
    }

    async fn store_received_tc_token(&self, jid: &str, token: &[u8], token_timestamp: i64) -> Result<()> {
        let state = self.state();
        let (listed, token) = state.cipher.seal_tc_token(jid, token)?;
        self.inner.store_received_tc_token(&listed, &token, token_timestamp).await
    }

    async fn store_sent_message(&self, chat_jid: &str, message_id: &str, payload: &[u8]) -> Result<()> {
        let state = self.state();
        let token = state.cipher.lookup().sent_message(chat_jid, message_id)?;
        let sealed = state.cipher.seal(&nonce()?, sent_message(&token, chat_jid, message_id), payload)?;
        self.inner.store_sent_message(UNUSED, &token, &sealed).await
    }

    async fn take_sent_message(&self, chat_jid: &str, message_id: &str) -> Result<Option<Vec<u8>>> {
        let state = self.state();
        let token = state.cipher.lookup().sent_message(chat_jid, message_id)?;
        let Some(value) = self.inner.take_sent_message(UNUSED, &token).await? else { return Ok(None) };
        Ok(Some(self.open(&state, sent_message(&token, chat_jid, message_id), value).await?))
    }

    async fn store_pending_inbound(&self, chat: &str, sender: &str, id: &str, message: &[u8]) -> Result<()> {
        let row = PendingInboundRow { chat, sender, id, message };
        let state = self.state();
        let (token, sealed) = state.cipher.seal_pending_inbound(&nonce()?, &row)?;
        self.inner.store_pending_inbound(UNUSED, UNUSED, &token, &sealed).await
    }

    async fn get_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<Option<Vec<u8>>> {
        let state = self.state();
        let token = state.cipher.lookup().pending_inbound(chat, sender, id)?;
        let Some(value) = self.inner.get_pending_inbound(UNUSED, UNUSED, &token).await? else { return Ok(None) };
        Ok(Some(self.open(&state, pending_inbound(&token, chat, sender, id), value).await?))
    }

    async fn delete_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<()> {
        let token = self.state().cipher.lookup().pending_inbound(chat, sender, id)?;
        self.inner.delete_pending_inbound(UNUSED, UNUSED, &token).await
    }

    async fn store_pending_inbound_batch(&self, rows: &[PendingInboundRow<'_>]) -> Result<()> {
        let state = self.state();
        let sealed = rows
            .iter()
            .zip(nonces(rows.len())?)
            .map(|(row, nonce)| state.cipher.seal_pending_inbound(&nonce, row))
            .collect::<error::Result<Vec<_>>>()?;
        let rows: Vec<_> = sealed
            .iter()
            .map(|(token, message)| PendingInboundRow { chat: UNUSED, sender: UNUSED, id: token, message })
            .collect();
        self.inner.store_pending_inbound_batch(&rows).await
    }

    async fn delete_pending_inbound_batch(&self, keys: &[PendingInboundKey<'_>]) -> Result<()> {
        let state = self.state();
        let tokens = keys
            .iter()
            .map(|key| state.cipher.lookup().pending_inbound(key.chat, key.sender, key.id))
            .collect::<error::Result<Vec<_>>>()?;
        let keys: Vec<_> =
            tokens.iter().map(|token| PendingInboundKey { chat: UNUSED, sender: UNUSED, id: token }).collect();
        self.inner.delete_pending_inbound_batch(&keys).await
    }
}

/// The reason why a row of a listing was not opened.
enum NotOpened {
    /// This state of the vault does not have its key, or is older than the row.
    NewerHeader,
    Damaged(Error),
}

impl From<Error> for NotOpened {
    fn from(error: Error) -> Self {
        NotOpened::Damaged(error)
    }
}

const TAMPERED_LID: Error = Error::Tampered { record: Record::LidMapping };

impl EncryptStore {
    /// Opens a row of the LID table in place. Its key columns are the tokens that it is stored under.
    async fn open_lid_mapping(&self, held: &Arc<VaultState>, row: &mut LidPnMappingEntry) -> error::Result<()> {
        let mut value = Zeroizing::default();
        decode_text_into(Record::LidMapping, &row.learning_source, &mut value)?;
        let prefix = Prefix::read(Kind::LidMapping, &value)?;
        let state = self.vault.state_for(held, Record::LidMapping, prefix.epoch()).await?;
        open_lid_mapping(state.cipher.keys(&prefix, Record::LidMapping)?, prefix, row, &mut value)?;
        self.vault.check_generation(&state, prefix.generation()).await
    }

    async fn open_device_list(
        &self,
        held: &Arc<VaultState>,
        token: &Token,
        user: &str,
        row: DeviceListRecord,
    ) -> error::Result<DeviceListRecord> {
        let record = Record::DeviceList;
        let carrier = row.phash.ok_or(Error::Plaintext { record })?;
        let binding = RowBinding::new(Kind::DeviceList, [token.as_bytes()], [user.as_bytes()]);
        self.open_typed(held, binding, decode_text(record, &carrier)?).await
    }
}

impl RecordCipher {
    /// The stored key and value of a tc token. An empty token marks a placeholder. It stays empty, because the store
    /// looks for it.
    fn seal_tc_token<'t>(&self, jid: &str, token: &'t [u8]) -> error::Result<(String, Cow<'t, [u8]>)> {
        let listed = self.lookup().tc_token_jid(jid)?;
        if token.is_empty() {
            return Ok((listed, Cow::Borrowed(token)));
        }
        let sealed = self.seal(&nonce()?, RowBinding::new(Kind::TcToken, [listed.as_bytes()], []), token)?;
        Ok((listed, Cow::Owned(sealed)))
    }

    /// Opens rows of the LID table in place. Returns the places of the others.
    fn open_lid_mappings(&self, rows: &mut [LidPnMappingEntry]) -> Vec<(usize, NotOpened)> {
        let mut value = Zeroizing::default();
        let mut open = |row: &mut LidPnMappingEntry| {
            decode_text_into(Record::LidMapping, &row.learning_source, &mut value)?;
            let prefix = Prefix::read(Kind::LidMapping, &value)?;
            let keys = self.current_keys(&prefix).ok_or(NotOpened::NewerHeader)?;
            Ok(open_lid_mapping(keys, prefix, row, &mut value)?)
        };
        rows.iter_mut().enumerate().filter_map(|(at, row)| Some((at, open(row).err()?))).collect()
    }

    fn seal_lid_mapping(&self, nonce: &Nonce, entry: &LidPnMappingEntry) -> error::Result<LidPnMappingEntry> {
        let lid = self.lookup().lid(&entry.lid)?;
        let phone_number = self.lookup().phone_number(&entry.phone_number)?;
        let columns = [lid.as_bytes(), phone_number.as_bytes()];
        let original = [entry.lid.as_bytes(), entry.phone_number.as_bytes()];
        let binding = RowBinding::new(Kind::LidMapping, columns, original);
        let sealed = self.seal(nonce, binding, entry.learning_source.as_bytes())?;
        Ok(LidPnMappingEntry {
            lid: lid.to_string(),
            phone_number: phone_number.to_string(),
            created_at: entry.created_at,
            updated_at: entry.updated_at,
            learning_source: encode_text(&sealed),
        })
    }

    fn seal_device_list(&self, nonce: &Nonce, record: &DeviceListRecord) -> error::Result<DeviceListRecord> {
        let token = self.lookup().device_list(&record.user)?;
        let binding = RowBinding::new(Kind::DeviceList, [token.as_bytes()], [record.user.as_bytes()]);
        let sealed = self.seal(nonce, binding, &json::encode(Record::DeviceList, record)?)?;
        Ok(DeviceListRecord {
            user: token.to_string(),
            devices: Vec::new(),
            timestamp: record.timestamp,
            phash: Some(encode_text(&sealed)),
            raw_id: None,
        })
    }

    fn seal_pending_inbound(&self, nonce: &Nonce, row: &PendingInboundRow<'_>) -> error::Result<(Token, Vec<u8>)> {
        let token = self.lookup().pending_inbound(row.chat, row.sender, row.id)?;
        let sealed = self.seal(nonce, pending_inbound(&token, row.chat, row.sender, row.id), row.message)?;
        Ok((token, sealed))
    }
}

/// Opens a row of the LID table in place; `value` is its envelope.
fn open_lid_mapping(
    keys: &DataKeys,
    prefix: Prefix,
    row: &mut LidPnMappingEntry,
    value: &mut [u8],
) -> error::Result<()> {
    let binding = RowBinding::new(Kind::LidMapping, [row.lid.as_bytes(), row.phone_number.as_bytes()], []);
    let opened = envelope::open(keys, prefix, binding, value)?;
    let text = |bytes| str::from_utf8(bytes).map_err(|_| TAMPERED_LID);
    let mut original = opened.parts(value);
    let (Some(lid), Some(phone_number), None) = (original.next(), original.next(), original.next()) else {
        return Err(TAMPERED_LID);
    };
    let (lid, phone_number, learning_source) = (text(lid)?, text(phone_number)?, text(opened.payload(value))?);
    // The stored texts have room for most names. Freeing what another thread has allocated would wait for its lock.
    for (text, name) in
        [(&mut row.lid, lid), (&mut row.phone_number, phone_number), (&mut row.learning_source, learning_source)]
    {
        text.clear();
        text.push_str(name);
    }
    Ok(())
}
