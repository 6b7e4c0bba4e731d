//! Groups, LIDs, base keys, device lists, tc tokens, sent and pending messages.

use async_trait::async_trait;
use rusqlite::{Connection, Row};
use wacore::store::error::Result;
use wacore::store::traits::{
    DeviceListRecord, LidPnMappingEntry, PendingInboundKey, PendingInboundRow, ProtocolStore, TcTokenEntry,
};

use super::connection::Statements;
use super::store::SWEEP_ROWS;
use super::store::SqliteStore;
use super::write_plan::WritePlan;
use crate::clock;
use crate::error::{self, Error};
use crate::method::Record;

const PUT_LID_MAPPING: &str =
    "INSERT OR REPLACE INTO lid_mappings (account, lid, phone_number, created_at, updated_at, learning_source)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const UPDATE_DEVICE_LIST: &str =
    "INSERT INTO device_lists (account, user, devices, timestamp, phash, raw_id) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (account, user) DO UPDATE SET devices = excluded.devices, timestamp = excluded.timestamp,
    phash = excluded.phash, raw_id = excluded.raw_id";
const STORE_PENDING_INBOUND: &str =
    "INSERT INTO pending_inbound (account, chat, sender, id, message, inserted_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (account, chat, sender, id) DO UPDATE
    SET message = excluded.message, inserted_at = excluded.inserted_at";
const DELETE_PENDING_INBOUND: &str =
    "DELETE FROM pending_inbound WHERE account = ?1 AND chat = ?2 AND sender = ?3 AND id = ?4";

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ProtocolStore for SqliteStore {
    async fn get_sender_key_devices(&self, group_jid: &str) -> Result<Vec<(String, bool)>> {
        const SQL: &str =
            "SELECT device_jid, has_key FROM sender_key_devices WHERE account = ?1 AND group_jid = ?2 LIMIT ?3";
        fn list(c: &Connection, account: i32, group: &str, limit: i64) -> error::Result<Vec<(String, bool)>> {
            c.all(SQL, (account, group, limit), |row| Ok((row.get(0)?, row.get(1)?)))
        }
        let account = self.account;
        let devices = self.read(|c| list(c, account, group_jid, INLINE_DEVICES + 1)).await?;
        if devices.len() <= INLINE_DEVICES as usize {
            return Ok(devices);
        }
        let group = group_jid.to_owned();
        self.read_long(move |c| list(c, account, &group, -1)).await
    }

    async fn set_sender_key_status(&self, group_jid: &str, entries: &[(&str, bool)]) -> Result<()> {
        const SQL: &str = "INSERT INTO sender_key_devices (account, group_jid, device_jid, has_key)
            VALUES (?1, ?2, ?3, ?4) ON CONFLICT (account, group_jid, device_jid) DO UPDATE SET has_key = excluded.has_key";
        let (account, group) = (self.account, group_jid.to_owned());
        let rows: Vec<(String, bool)> = entries.iter().map(|&(device, has_key)| (device.to_owned(), has_key)).collect();
        self.write_rows(
            WritePlan::RELAXED,
            SQL,
            rows,
            |_| 0,
            move |set, (device, has_key)| set.execute((account, &group, device, has_key)),
        )
        .await
    }

    async fn clear_sender_key_devices(&self, group_jid: &str) -> Result<()> {
        const SQL: &str = "DELETE FROM sender_key_devices WHERE account = ?1 AND group_jid = ?2";
        let (account, group) = (self.account, group_jid.to_owned());
        self.write(WritePlan::RELAXED.blocking(), move |c| c.run(SQL, (account, &group)).map(drop)).await
    }

    async fn delete_sender_key_device_rows(&self, device_jids: &[&str]) -> Result<()> {
        // Without the hint, SQLite takes the primary key and looks at every row of the account.
        const SQL: &str = "DELETE FROM sender_key_devices INDEXED BY sender_key_devices_device
            WHERE account = ?1 AND device_jid = ?2";
        let account = self.account;
        let rows: Vec<String> = device_jids.iter().map(|&device| device.to_owned()).collect();
        self.write_rows(WritePlan::RELAXED, SQL, rows, |_| 0, move |delete, device| delete.execute((account, device)))
            .await
    }

    async fn clear_all_sender_key_devices(&self) -> Result<()> {
        const SQL: &str = "DELETE FROM sender_key_devices WHERE account = ?1";
        let account = self.account;
        self.write(WritePlan::RELAXED.blocking(), move |c| c.run(SQL, (account,)).map(drop)).await
    }

    async fn get_lid_mapping(&self, lid: &str) -> Result<Option<LidPnMappingEntry>> {
        const SQL: &str = "SELECT lid, phone_number, created_at, updated_at, learning_source FROM lid_mappings
            WHERE account = ?1 AND lid = ?2";
        self.read(|c| c.first(SQL, (self.account, lid), lid_mapping)).await
    }

    /// The mapping with the latest `updated_at`. If several have the same one, the last that was
    /// put.
    async fn get_pn_mapping(&self, phone: &str) -> Result<Option<LidPnMappingEntry>> {
        // Putting a mapping again gives it a new, higher rowid.
        const SQL: &str = "SELECT lid, phone_number, created_at, updated_at, learning_source FROM lid_mappings
            WHERE account = ?1 AND phone_number = ?2 ORDER BY updated_at DESC, rowid DESC LIMIT 1";
        self.read(|c| c.first(SQL, (self.account, phone), lid_mapping)).await
    }

    async fn put_lid_mapping(&self, entry: &LidPnMappingEntry) -> Result<()> {
        self.put_lid_mappings(std::slice::from_ref(entry)).await
    }

    async fn put_lid_mappings(&self, entries: &[LidPnMappingEntry]) -> Result<()> {
        let account = self.account;
        self.write_rows(
            WritePlan::RELAXED,
            PUT_LID_MAPPING,
            entries.to_vec(),
            |_| 0,
            move |put, entry| {
                let LidPnMappingEntry { lid, phone_number, created_at, updated_at, learning_source } = entry;
                put.execute((account, lid, phone_number, created_at, updated_at, learning_source))
            },
        )
        .await
    }

    async fn get_all_lid_mappings(&self) -> Result<Vec<LidPnMappingEntry>> {
        // In the order of the index `lid_mappings_account`, which a database of an earlier version lacks.
        const SQL: &str = "SELECT lid, phone_number, created_at, updated_at, learning_source FROM lid_mappings
            WHERE account = ?1 ORDER BY rowid";
        let account = self.account;
        self.read_long(move |c| c.all(SQL, (account,), lid_mapping)).await
    }

    /// Also deletes some of the account's base keys that are past their retention.
    async fn save_base_key(&self, address: &str, message_id: &str, base_key: &[u8]) -> Result<()> {
        const SQL: &str = "INSERT INTO base_keys (account, address, message_id, base_key, created_at)
            VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (account, address, message_id) DO UPDATE
            SET base_key = excluded.base_key";
        const RETIRE: &str = "DELETE FROM base_keys WHERE rowid IN
            (SELECT rowid FROM base_keys WHERE account = ?1 AND created_at < ?2 LIMIT ?3)";
        let (account, now) = (self.account, clock::now_secs().cast_signed());
        let (address, message_id, base_key) = (address.to_owned(), message_id.to_owned(), base_key.to_vec());
        let retention = self.database.wal.config.base_key_retention;
        let cutoff = retention.map(|kept| now.saturating_sub_unsigned(kept.as_secs()));
        let save = move |c: &Connection| {
            if let Some(cutoff) = cutoff {
                c.run(RETIRE, (account, cutoff, RETIRED_BASE_KEYS))?;
            }
            c.run(SQL, (account, &address, &message_id, &base_key, now)).map(drop)
        };
        self.write(WritePlan::RELAXED.transaction(), save).await
    }

    async fn has_same_base_key(&self, address: &str, message_id: &str, current_base_key: &[u8]) -> Result<bool> {
        const SQL: &str = "SELECT base_key = ?4 FROM base_keys WHERE account = ?1 AND address = ?2 AND message_id = ?3";
        self.read(|c| {
            let same = c.first(SQL, (self.account, address, message_id, current_base_key), |row| row.get(0))?;
            Ok(same.unwrap_or(false))
        })
        .await
    }

    async fn delete_base_key(&self, address: &str, message_id: &str) -> Result<()> {
        const SQL: &str = "DELETE FROM base_keys WHERE account = ?1 AND address = ?2 AND message_id = ?3";
        let (account, address, message_id) = (self.account, address.to_owned(), message_id.to_owned());
        self.write(WritePlan::RELAXED, move |c| c.run(SQL, (account, &address, &message_id)).map(drop)).await
    }

    async fn update_device_list(&self, record: DeviceListRecord) -> Result<()> {
        self.update_device_lists(vec![record]).await
    }

    async fn update_device_lists(&self, records: Vec<DeviceListRecord>) -> Result<()> {
        let account = self.account;
        let encode = |record: DeviceListRecord| match serde_json::to_string(&record.devices) {
            Ok(devices) => Ok((record, devices)),
            Err(_) => Err(Error::Encode { record: Record::DeviceList }),
        };
        let rows = records.into_iter().map(encode).collect::<error::Result<Vec<_>>>()?;
        self.write_rows(
            WritePlan::RELAXED,
            UPDATE_DEVICE_LIST,
            rows,
            |row| row.1.len(),
            move |update, (record, devices)| {
                let DeviceListRecord { user, timestamp, phash, raw_id, .. } = record;
                update.execute((account, user, devices, timestamp, phash, raw_id))
            },
        )
        .await
    }

    async fn get_devices(&self, user: &str) -> Result<Option<DeviceListRecord>> {
        const SQL: &str =
            "SELECT user, devices, timestamp, phash, raw_id FROM device_lists WHERE account = ?1 AND user = ?2";
        self.read(|c| {
            let row = c.first(SQL, (self.account, user), |row| {
                let devices = serde_json::from_str(row.get_ref(1)?.as_str()?);
                Ok((row.get(0)?, devices, row.get(2)?, row.get(3)?, row.get(4)?))
            })?;
            let Some((user, devices, timestamp, phash, raw_id)) = row else { return Ok(None) };
            let devices = devices.map_err(|_| Error::Malformed { record: Record::DeviceList })?;
            Ok(Some(DeviceListRecord { user, devices, timestamp, phash, raw_id }))
        })
        .await
    }

    async fn delete_devices(&self, user: &str) -> Result<()> {
        const SQL: &str = "DELETE FROM device_lists WHERE account = ?1 AND user = ?2";
        let (account, user) = (self.account, user.to_owned());
        self.write(WritePlan::RELAXED, move |c| c.run(SQL, (account, &user)).map(drop)).await
    }

    async fn get_group_metadata(&self, group_jid: &str) -> Result<Option<Vec<u8>>> {
        const SQL: &str = "SELECT info FROM group_metadata WHERE account = ?1 AND group_jid = ?2";
        self.read(|c| c.first(SQL, (self.account, group_jid), |row| row.get(0))).await
    }

    async fn put_group_metadata(&self, group_jid: &str, blob: &[u8]) -> Result<()> {
        const SQL: &str = "INSERT INTO group_metadata (account, group_jid, info) VALUES (?1, ?2, ?3)
            ON CONFLICT (account, group_jid) DO UPDATE SET info = excluded.info";
        let (account, group, blob) = (self.account, group_jid.to_owned(), blob.to_vec());
        let plan = WritePlan::RELAXED.batch(1, blob.len());
        self.write(plan, move |c| c.run(SQL, (account, &group, &blob)).map(drop)).await
    }

    async fn delete_group_metadata(&self, group_jid: &str) -> Result<()> {
        const SQL: &str = "DELETE FROM group_metadata WHERE account = ?1 AND group_jid = ?2";
        let (account, group) = (self.account, group_jid.to_owned());
        self.write(WritePlan::RELAXED, move |c| c.run(SQL, (account, &group)).map(drop)).await
    }

    async fn get_tc_token(&self, jid: &str) -> Result<Option<TcTokenEntry>> {
        const SQL: &str =
            "SELECT token, token_timestamp, sender_timestamp FROM tc_tokens WHERE account = ?1 AND jid = ?2";
        self.read(|c| {
            c.first(SQL, (self.account, jid), |row| {
                Ok(TcTokenEntry { token: row.get(0)?, token_timestamp: row.get(1)?, sender_timestamp: row.get(2)? })
            })
        })
        .await
    }

    async fn put_tc_token(&self, jid: &str, entry: &TcTokenEntry) -> Result<()> {
        const SQL: &str = "INSERT INTO tc_tokens (account, jid, token, token_timestamp, sender_timestamp)
            VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (account, jid) DO UPDATE SET token = excluded.token,
            token_timestamp = excluded.token_timestamp, sender_timestamp = excluded.sender_timestamp";
        let (account, jid, entry) = (self.account, jid.to_owned(), entry.clone());
        self.write(WritePlan::RELAXED, move |c| {
            c.run(SQL, (account, &jid, &entry.token, entry.token_timestamp, entry.sender_timestamp)).map(drop)
        })
        .await
    }

    async fn delete_tc_token(&self, jid: &str) -> Result<()> {
        const SQL: &str = "DELETE FROM tc_tokens WHERE account = ?1 AND jid = ?2";
        let (account, jid) = (self.account, jid.to_owned());
        self.write(WritePlan::RELAXED, move |c| c.run(SQL, (account, &jid)).map(drop)).await
    }

    async fn get_all_tc_token_jids(&self) -> Result<Vec<String>> {
        const SQL: &str = "SELECT jid FROM tc_tokens WHERE account = ?1";
        let account = self.account;
        self.read_long(move |c| c.all(SQL, (account,), |row| row.get(0))).await
    }

    async fn delete_expired_tc_tokens(&self, token_cutoff: i64, sender_cutoff: i64) -> Result<u32> {
        // The expression of the index `tc_tokens_expiry`, once for empty tokens and once for expired ones.
        const EMPTY: &str = "DELETE FROM tc_tokens WHERE rowid IN (SELECT rowid FROM tc_tokens WHERE account = ?1
            AND iif(length(token) = 0, NULL, token_timestamp) IS NULL
            AND coalesce(sender_timestamp < ?2, 1) LIMIT ?3)";
        const EXPIRED: &str = "DELETE FROM tc_tokens WHERE rowid IN (SELECT rowid FROM tc_tokens WHERE account = ?1
            AND iif(length(token) = 0, NULL, token_timestamp) < ?2
            AND coalesce(sender_timestamp < ?3, 1) LIMIT ?4)";
        let account = self.account;
        self.sweep(move |c| {
            let empty = c.run(EMPTY, (account, sender_cutoff, SWEEP_ROWS as i64))?;
            if empty == SWEEP_ROWS {
                return Ok(empty);
            }
            Ok(empty + c.run(EXPIRED, (account, token_cutoff, sender_cutoff, (SWEEP_ROWS - empty) as i64))?)
        })
        .await
    }

    async fn touch_tc_token_sender_timestamp(&self, jid: &str, sender_timestamp: i64) -> Result<()> {
        const SQL: &str = "INSERT INTO tc_tokens (account, jid, token, token_timestamp, sender_timestamp)
            VALUES (?1, ?2, x'', ?3, ?3) ON CONFLICT (account, jid) DO UPDATE
            SET sender_timestamp = max(coalesce(sender_timestamp, ?3), ?3)";
        let (account, jid) = (self.account, jid.to_owned());
        self.write(WritePlan::RELAXED, move |c| c.run(SQL, (account, &jid, sender_timestamp)).map(drop)).await
    }

    async fn store_received_tc_token(&self, jid: &str, token: &[u8], token_timestamp: i64) -> Result<()> {
        const SQL: &str = "INSERT INTO tc_tokens (account, jid, token, token_timestamp) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT (account, jid) DO UPDATE SET token = excluded.token, token_timestamp = excluded.token_timestamp
            WHERE length(tc_tokens.token) = 0 OR excluded.token_timestamp >= tc_tokens.token_timestamp";
        let (account, jid, token) = (self.account, jid.to_owned(), token.to_vec());
        self.write(WritePlan::RELAXED, move |c| c.run(SQL, (account, &jid, &token, token_timestamp)).map(drop)).await
    }

    async fn store_sent_message(&self, chat_jid: &str, message_id: &str, payload: &[u8]) -> Result<()> {
        const SQL: &str = "INSERT INTO sent_messages (account, chat_jid, message_id, payload, created_at)
            VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (account, chat_jid, message_id) DO UPDATE
            SET payload = excluded.payload, created_at = excluded.created_at";
        let (account, now) = (self.account, clock::now_secs().cast_signed());
        let (chat, id, payload) = (chat_jid.to_owned(), message_id.to_owned(), payload.to_vec());
        let plan = WritePlan::RELAXED.batch(1, payload.len());
        self.write(plan, move |c| c.run(SQL, (account, &chat, &id, &payload, now)).map(drop)).await
    }

    async fn take_sent_message(&self, chat_jid: &str, message_id: &str) -> Result<Option<Vec<u8>>> {
        const SQL: &str =
            "DELETE FROM sent_messages WHERE account = ?1 AND chat_jid = ?2 AND message_id = ?3 RETURNING payload";
        let (account, chat, id) = (self.account, chat_jid.to_owned(), message_id.to_owned());
        // Reads to the last row: the statement commits when it ends.
        self.write(WritePlan::RELAXED, move |c| Ok(c.all(SQL, (account, &chat, &id), |row| row.get(0))?.pop())).await
    }

    async fn delete_expired_sent_messages(&self, cutoff_timestamp: i64) -> Result<u32> {
        const SQL: &str = "DELETE FROM sent_messages WHERE rowid IN
            (SELECT rowid FROM sent_messages WHERE account = ?1 AND created_at < ?2 LIMIT ?3)";
        let account = self.account;
        self.sweep(move |c| c.run(SQL, (account, cutoff_timestamp, SWEEP_ROWS as i64))).await
    }

    async fn store_pending_inbound(&self, chat: &str, sender: &str, id: &str, message: &[u8]) -> Result<()> {
        let rows = vec![PendingRow::new(&PendingInboundRow { chat, sender, id, message })];
        self.write_pending(rows).await
    }

    async fn get_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<Option<Vec<u8>>> {
        const SQL: &str =
            "SELECT message FROM pending_inbound WHERE account = ?1 AND chat = ?2 AND sender = ?3 AND id = ?4";
        self.read(|c| c.first(SQL, (self.account, chat, sender, id), |row| row.get(0))).await
    }

    async fn delete_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<()> {
        let (account, chat, sender, id) = (self.account, chat.to_owned(), sender.to_owned(), id.to_owned());
        self.write(WritePlan::DURABLE, move |c| c.run(DELETE_PENDING_INBOUND, (account, &chat, &sender, &id)).map(drop))
            .await
    }

    async fn delete_expired_pending_inbound(&self, cutoff_timestamp: i64) -> Result<u32> {
        const SQL: &str = "DELETE FROM pending_inbound WHERE rowid IN
            (SELECT rowid FROM pending_inbound WHERE account = ?1 AND inserted_at < ?2 LIMIT ?3)";
        let account = self.account;
        self.sweep(move |c| c.run(SQL, (account, cutoff_timestamp, SWEEP_ROWS as i64))).await
    }

    async fn store_pending_inbound_batch(&self, rows: &[PendingInboundRow<'_>]) -> Result<()> {
        self.write_pending(rows.iter().map(PendingRow::new).collect()).await
    }

    async fn delete_pending_inbound_batch(&self, keys: &[PendingInboundKey<'_>]) -> Result<()> {
        let account = self.account;
        let rows: Vec<[String; 3]> = keys.iter().map(|key| [key.chat, key.sender, key.id].map(str::to_owned)).collect();
        self.write_rows(
            WritePlan::DURABLE,
            DELETE_PENDING_INBOUND,
            rows,
            |_| 0,
            move |delete, [chat, sender, id]| delete.execute((account, chat, sender, id)),
        )
        .await
    }
}

/// How many devices of a group may be listed on the caller's thread.
const INLINE_DEVICES: i64 = 256;
/// How many base keys past their retention are deleted with each one that is saved.
const RETIRED_BASE_KEYS: i64 = 64;

fn lid_mapping(row: &Row<'_>) -> rusqlite::Result<LidPnMappingEntry> {
    Ok(LidPnMappingEntry {
        lid: row.get(0)?,
        phone_number: row.get(1)?,
        created_at: row.get(2)?,
        updated_at: row.get(3)?,
        learning_source: row.get(4)?,
    })
}

struct PendingRow {
    key: [String; 3],
    message: Vec<u8>,
}

impl PendingRow {
    fn new(row: &PendingInboundRow<'_>) -> Self {
        Self { key: [row.chat, row.sender, row.id].map(str::to_owned), message: row.message.to_vec() }
    }
}

impl SqliteStore {
    async fn write_pending(&self, rows: Vec<PendingRow>) -> Result<()> {
        let (account, now) = (self.account, clock::now_secs().cast_signed());
        self.write_rows(
            WritePlan::DURABLE,
            STORE_PENDING_INBOUND,
            rows,
            |row| row.message.len(),
            move |store, row| {
                let PendingRow { key: [chat, sender, id], message } = row;
                store.execute((account, chat, sender, id, message, now))
            },
        )
        .await
    }
}
