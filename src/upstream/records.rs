//! The copied records, in batches: reading them from upstream's tables, storing them, and comparing
//! them with the stored ones.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use rusqlite::{Connection, Row};
use serde::Serialize;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::Device;
use wacore::store::error::Result as StoreResult;
use wacore::store::traits::{
    AppStateSyncKey, Backend, DeviceListRecord, LidPnMappingEntry, MsgSecretEntry, PendingInboundRow, TcTokenEntry,
};

use super::schema::{TABLES, is_read};
use super::wire::{self, unsigned};
use crate::error::{Error, NotRead, Result};
use crate::method::Record;

/// Records of one kind and one account.
pub(super) enum Batch {
    Identities(Vec<(Arc<str>, [u8; 32])>),
    Sessions(Vec<(Arc<str>, Bytes)>),
    Prekeys { uploaded: bool, rows: Vec<(u32, Bytes)> },
    SignedPrekeys(Vec<(u32, Vec<u8>)>),
    SenderKeys(Vec<(Arc<str>, Bytes)>),
    SyncKeys(Vec<(Vec<u8>, AppStateSyncKey)>),
    CollectionVersions(Vec<(String, HashState)>),
    MutationMacs(Vec<(String, u64, AppStateMutationMAC)>),
    SenderKeyDevices(Vec<(String, String, bool)>),
    LidMappings(Vec<LidPnMappingEntry>),
    BaseKeys(Vec<(String, String, Vec<u8>)>),
    DeviceLists(Vec<DeviceListRecord>),
    GroupMetadata(Vec<(String, Vec<u8>)>),
    TcTokens(Vec<(String, TcTokenEntry)>),
    SentMessages(Vec<(String, String, Vec<u8>)>),
    PendingInbound(Vec<([String; 3], Vec<u8>)>),
    MessageSecrets(Vec<MsgSecretEntry>),
    Device(Box<Device>),
}

/// The numbers of all accounts, in ascending order.
pub(super) fn accounts(source: &Connection) -> Result<Vec<i32>> {
    let mut statement = source.prepare("SELECT id FROM device NOT INDEXED ORDER BY id")?;
    Ok(statement.query_map((), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// How many records an account has.
pub(super) fn count(source: &Connection, account: i32) -> Result<u64> {
    let mut total = 0;
    for (record, table) in TABLES {
        let column = if record == Record::Device { "id" } else { "device_id" };
        let sql = format!("SELECT count(*) FROM {table} NOT INDEXED WHERE {column} = ?1");
        total += source.query_row(&sql, (account,), |row| row.get::<_, i64>(0))?.unsigned_abs();
    }
    Ok(total)
}

/// Counts the data beside the rows of these accounts: rows of other accounts, and rows of other
/// tables.
pub(super) fn not_read(source: &Connection, accounts: &[(i32, u64)]) -> Result<Vec<NotRead>> {
    let mut not_read = vec![];
    for (record, table) in TABLES {
        let count = |sql: &str, account: Option<i32>| -> Result<u64> {
            Ok(source.query_row(sql, rusqlite::params_from_iter(account), |row| row.get::<_, i64>(0))?.unsigned_abs())
        };
        let all = format!("SELECT count(*) FROM {table} NOT INDEXED");
        let column = if record == Record::Device { "id" } else { "device_id" };
        let mut rows = count(&all, None)?;
        for (account, _) in accounts {
            rows = rows.saturating_sub(count(&format!("{all} WHERE {column} = ?1"), Some(*account))?);
        }
        if rows > 0 {
            not_read.push(NotRead { table: table.to_owned(), rows: Some(rows) });
        }
    }
    let mut statement = source.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
    let tables = statement.query_map((), |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let others = tables.into_iter().filter(|table| !is_read(table) && !table.starts_with("sqlite_"));
    not_read.extend(others.map(|table| NotRead { table, rows: None }));
    Ok(not_read)
}

/// Reads every record of an account, and sends them on in batches. `account` is its number and its
/// count of records. Returns how many records were left out, by kind: upstream's store does not
/// read those either.
///
/// # Errors
/// [`Error::SourceDamaged`] if the number of records read differs from the count.
/// [`Error::UnreadableRecord`].
pub(super) fn read(
    source: &Connection,
    (account, counted): (i32, u64),
    emit: &mut dyn FnMut(Batch) -> Result<()>,
) -> Result<Vec<(Record, u64)>> {
    let mut reader = Reader { source, account, emit, seen: 0, left_out: vec![] };
    reader.signal()?;
    reader.app_sync()?;
    reader.contacts()?;
    reader.messages()?;
    reader.device()?;
    if reader.seen == counted { Ok(reader.left_out) } else { Err(Error::SourceDamaged) }
}

fn id(row: &Row<'_>, record: Record) -> Result<u32> {
    unsigned(row.get(0)?).ok_or_else(|| unreadable(record, "its id is not a 32-bit number"))
}

fn blob(row: &Row<'_>) -> Result<Option<(Arc<str>, Bytes)>> {
    Ok(Some((row.get::<_, String>(0)?.into(), row.get::<_, Vec<u8>>(1)?.into())))
}

fn unreadable(record: Record, problem: &'static str) -> Error {
    Error::UnreadableRecord { record, problem }
}

/// The approximate limits of a batch: its rows, and its bytes in the database.
const BATCH_ROWS: usize = 512;
const BATCH_BYTES: usize = 1 << 20;

struct Reader<'c, 'e> {
    source: &'c Connection,
    account: i32,
    emit: &'e mut dyn FnMut(Batch) -> Result<()>,
    seen: u64,
    left_out: Vec<(Record, u64)>,
}

impl Reader<'_, '_> {
    /// Identities, sessions, prekeys and sender keys.
    fn signal(&mut self) -> Result<()> {
        self.table(Record::Identity, "SELECT address, key FROM identities", Batch::Identities, |row| {
            let key = row.get::<_, Vec<u8>>(1)?.try_into();
            let key = key.map_err(|_| unreadable(Record::Identity, "a key is not 32 bytes long"))?;
            Ok(Some((row.get::<_, String>(0)?.into(), key)))
        })?;
        self.table(Record::Session, "SELECT address, record FROM sessions", Batch::Sessions, blob)?;
        for uploaded in [false, true] {
            let sql = match uploaded {
                false => "SELECT id, key FROM prekeys NOT INDEXED WHERE uploaded IS NOT TRUE AND device_id = ?1",
                true => "SELECT id, key FROM prekeys NOT INDEXED WHERE uploaded IS TRUE AND device_id = ?1",
            };
            let batch = move |rows| Batch::Prekeys { uploaded, rows };
            self.query(Record::Prekey, sql, batch, |row| {
                Ok(Some((id(row, Record::Prekey)?, row.get::<_, Vec<u8>>(1)?.into())))
            })?;
        }
        let batch = Batch::SignedPrekeys;
        self.table(Record::SignedPrekey, "SELECT id, record FROM signed_prekeys", batch, |row| {
            Ok(Some((id(row, Record::SignedPrekey)?, row.get(1)?)))
        })?;
        self.table(Record::SenderKey, "SELECT address, record FROM sender_keys", Batch::SenderKeys, blob)?;
        Ok(())
    }

    /// App-state keys, versions and mutation MACs.
    fn app_sync(&mut self) -> Result<()> {
        self.table(Record::SyncKey, "SELECT key_id, key_data FROM app_state_keys", Batch::SyncKeys, |row| {
            let key = wire::sync_key(&row.get::<_, Vec<u8>>(1)?);
            key.map(|key| Ok((row.get(0)?, key))).transpose()
        })?;
        let sql = "SELECT name, state_data FROM app_state_versions";
        self.table(Record::CollectionVersion, sql, Batch::CollectionVersions, |row| {
            let version = wire::collection_version(&row.get::<_, Vec<u8>>(1)?);
            version.map(|version| Ok((row.get(0)?, version))).transpose()
        })?;
        let sql = "SELECT name, version, index_mac, value_mac FROM app_state_mutation_macs";
        self.table(Record::MutationMac, sql, Batch::MutationMacs, |row| {
            let mac = AppStateMutationMAC { index_mac: row.get(2)?, value_mac: row.get(3)? };
            Ok(Some((row.get(0)?, row.get::<_, i64>(1)? as u64, mac)))
        })?;
        Ok(())
    }

    /// The records about contacts and groups.
    fn contacts(&mut self) -> Result<()> {
        let sql = "SELECT group_jid, device_jid, has_key FROM sender_key_devices";
        self.table(Record::SenderKeyDevice, sql, Batch::SenderKeyDevices, |row| {
            Ok(Some((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)? != 0)))
        })?;
        // Of LIDs that were learned in the same second, upstream takes the first one as the newest,
        // and this crate the last.
        let sql = "SELECT lid, phone_number, created_at, updated_at, learning_source FROM lid_pn_mapping
            NOT INDEXED WHERE device_id = ?1 ORDER BY rowid DESC";
        self.query(Record::LidMapping, sql, Batch::LidMappings, |row| {
            Ok(Some(LidPnMappingEntry {
                lid: row.get(0)?,
                phone_number: row.get(1)?,
                created_at: row.get(2)?,
                updated_at: row.get(3)?,
                learning_source: row.get(4)?,
            }))
        })?;
        let sql = "SELECT address, message_id, base_key FROM base_keys";
        self.table(Record::BaseKey, sql, Batch::BaseKeys, |row| Ok(Some((row.get(0)?, row.get(1)?, row.get(2)?))))?;
        let sql = "SELECT user_id, devices_json, timestamp, phash, raw_id FROM device_registry";
        self.table(Record::DeviceList, sql, Batch::DeviceLists, |row| {
            let devices = serde_json::from_str(&row.get::<_, String>(1)?);
            Ok(Some(DeviceListRecord {
                user: row.get(0)?,
                devices: devices
                    .map_err(|_| unreadable(Record::DeviceList, "its devices are not in upstream's JSON"))?,
                timestamp: row.get(2)?,
                phash: row.get(3)?,
                raw_id: match row.get::<_, Option<i64>>(4)? {
                    Some(id) => Some(
                        unsigned(id)
                            .ok_or_else(|| unreadable(Record::DeviceList, "its raw id is not a 32-bit number"))?,
                    ),
                    None => None,
                },
            }))
        })?;
        let sql = "SELECT group_jid, info FROM group_metadata";
        self.table(Record::GroupMetadata, sql, Batch::GroupMetadata, |row| Ok(Some((row.get(0)?, row.get(1)?))))?;
        let sql = "SELECT jid, token, token_timestamp, sender_timestamp FROM tc_tokens";
        self.table(Record::TcToken, sql, Batch::TcTokens, |row| {
            let (token, token_timestamp, sender_timestamp) = (row.get(1)?, row.get(2)?, row.get(3)?);
            Ok(Some((row.get(0)?, TcTokenEntry { token, token_timestamp, sender_timestamp })))
        })?;
        Ok(())
    }

    /// Stored messages, and the secrets of messages.
    fn messages(&mut self) -> Result<()> {
        let sql = "SELECT chat_jid, message_id, payload FROM sent_messages";
        let batch = Batch::SentMessages;
        self.table(Record::SentMessage, sql, batch, |row| Ok(Some((row.get(0)?, row.get(1)?, row.get(2)?))))?;
        let sql = "SELECT chat, sender, id, message FROM pending_inbound_messages";
        self.table(Record::PendingInbound, sql, Batch::PendingInbound, |row| {
            Ok(Some(([row.get(0)?, row.get(1)?, row.get(2)?], row.get(3)?)))
        })?;
        let sql = "SELECT chat, sender, msg_id, secret, expires_at, message_ts FROM msg_secrets";
        self.table(Record::MessageSecret, sql, Batch::MessageSecrets, |row| {
            let secret = row.get::<_, Vec<u8>>(3)?.try_into();
            Ok(Some(MsgSecretEntry {
                chat: row.get::<_, String>(0)?.into(),
                sender: row.get::<_, String>(1)?.into(),
                msg_id: row.get::<_, String>(2)?.into(),
                secret: secret.map_err(|_| unreadable(Record::MessageSecret, "it is not 32 bytes long"))?,
                expires_at: row.get(4)?,
                message_ts: row.get(5)?,
            }))
        })?;
        Ok(())
    }

    /// The device. It comes last.
    fn device(&mut self) -> Result<()> {
        let sql = format!("SELECT {} FROM device WHERE id = ?1", wire::DEVICE_COLUMNS);
        let mut statement = self.source.prepare(&sql)?;
        let mut rows = statement.query((self.account,))?;
        while let Some(row) = rows.next()? {
            self.seen += 1;
            (self.emit)(Batch::Device(Box::new(wire::device(row)?)))?;
        }
        Ok(())
    }

    /// Reads the rows of this account. `row` returns `None` for a row to leave out.
    fn table<T>(
        &mut self,
        record: Record,
        select: &str,
        batch: impl Fn(Vec<T>) -> Batch,
        row: impl Fn(&Row<'_>) -> Result<Option<T>>,
    ) -> Result<()> {
        // If the file is damaged, an index may lack rows.
        self.query(record, &format!("{select} NOT INDEXED WHERE device_id = ?1"), batch, row)
    }

    fn query<T>(
        &mut self,
        record: Record,
        sql: &str,
        batch: impl Fn(Vec<T>) -> Batch,
        read: impl Fn(&Row<'_>) -> Result<Option<T>>,
    ) -> Result<()> {
        let mut statement = self.source.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query((self.account,))?;
        let (mut collected, mut bytes, mut left_out) = (vec![], 0, 0);
        while let Some(row) = rows.next()? {
            self.seen += 1;
            match read(row)? {
                Some(read) => collected.push(read),
                None => left_out += 1,
            }
            for column in 0..columns {
                use rusqlite::types::ValueRef::{Blob, Text};
                bytes += match row.get_ref(column)? {
                    Blob(bytes) | Text(bytes) => bytes.len(),
                    _ => 8,
                };
            }
            if collected.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
                (self.emit)(batch(std::mem::take(&mut collected)))?;
                bytes = 0;
            }
        }
        if !collected.is_empty() {
            (self.emit)(batch(collected))?;
        }
        if left_out > 0 {
            self.left_out.push((record, left_out));
        }
        Ok(())
    }
}

impl Batch {
    /// The kind of its records.
    pub(super) fn record(&self) -> Record {
        match self {
            Batch::Identities(_) => Record::Identity,
            Batch::Sessions(_) => Record::Session,
            Batch::Prekeys { .. } => Record::Prekey,
            Batch::SignedPrekeys(_) => Record::SignedPrekey,
            Batch::SenderKeys(_) => Record::SenderKey,
            Batch::SyncKeys(_) => Record::SyncKey,
            Batch::CollectionVersions(_) => Record::CollectionVersion,
            Batch::MutationMacs(_) => Record::MutationMac,
            Batch::SenderKeyDevices(_) => Record::SenderKeyDevice,
            Batch::LidMappings(_) => Record::LidMapping,
            Batch::BaseKeys(_) => Record::BaseKey,
            Batch::DeviceLists(_) => Record::DeviceList,
            Batch::GroupMetadata(_) => Record::GroupMetadata,
            Batch::TcTokens(_) => Record::TcToken,
            Batch::SentMessages(_) => Record::SentMessage,
            Batch::PendingInbound(_) => Record::PendingInbound,
            Batch::MessageSecrets(_) => Record::MessageSecret,
            Batch::Device(_) => Record::Device,
        }
    }

    /// The number of its records.
    pub(super) fn len(&self) -> u64 {
        let rows = match self {
            Batch::Identities(rows) => rows.len(),
            Batch::Sessions(rows) | Batch::SenderKeys(rows) => rows.len(),
            Batch::Prekeys { rows, .. } => rows.len(),
            Batch::SignedPrekeys(rows) => rows.len(),
            Batch::SyncKeys(rows) => rows.len(),
            Batch::CollectionVersions(rows) => rows.len(),
            Batch::MutationMacs(rows) => rows.len(),
            Batch::SenderKeyDevices(rows) => rows.len(),
            Batch::LidMappings(rows) => rows.len(),
            Batch::BaseKeys(rows) | Batch::SentMessages(rows) => rows.len(),
            Batch::DeviceLists(rows) => rows.len(),
            Batch::GroupMetadata(rows) => rows.len(),
            Batch::TcTokens(rows) => rows.len(),
            Batch::PendingInbound(rows) => rows.len(),
            Batch::MessageSecrets(rows) => rows.len(),
            Batch::Device(_) => 1,
        };
        rows as u64
    }

    /// Stores the records.
    pub(super) async fn store(self, store: &dyn Backend) -> StoreResult<()> {
        match self {
            Batch::Identities(rows) => store.put_identities_batch(&rows).await,
            Batch::Sessions(rows) => store.put_sessions_batch(&rows).await,
            Batch::Prekeys { uploaded, rows } => store.store_prekeys_batch(&rows, uploaded).await,
            Batch::SignedPrekeys(rows) => each(&rows, |(id, record)| store.store_signed_prekey(*id, record)).await,
            Batch::SenderKeys(rows) => store.put_sender_keys_batch(&rows).await,
            Batch::SyncKeys(rows) => each(&rows, |(id, key)| store.set_sync_key(id, key.clone())).await,
            Batch::CollectionVersions(rows) => {
                each(&rows, |(name, state)| store.set_version(name, state.clone())).await
            }
            Batch::MutationMacs(mut rows) => {
                rows.sort_by(|(name, version, _), (other, then, _)| (name, version).cmp(&(other, then)));
                for group in rows.chunk_by(|(name, version, _), (next, then, _)| (name, version) == (next, then)) {
                    let [(name, version, _), ..] = group else { continue };
                    let macs: Vec<_> = group.iter().map(|(_, _, mac)| mac.clone()).collect();
                    store.put_mutation_macs(name, *version, &macs).await?;
                }
                Ok(())
            }
            Batch::SenderKeyDevices(mut rows) => {
                rows.sort();
                for group in rows.chunk_by(|(group, ..), (next, ..)| group == next) {
                    let [(jid, ..), ..] = group else { continue };
                    let entries: Vec<_> =
                        group.iter().map(|(_, device, has_key)| (device.as_str(), *has_key)).collect();
                    store.set_sender_key_status(jid, &entries).await?;
                }
                Ok(())
            }
            Batch::LidMappings(rows) => store.put_lid_mappings(&rows).await,
            Batch::BaseKeys(rows) => {
                each(&rows, |(address, message, key)| store.save_base_key(address, message, key)).await
            }
            Batch::DeviceLists(rows) => store.update_device_lists(rows).await,
            Batch::GroupMetadata(rows) => each(&rows, |(jid, info)| store.put_group_metadata(jid, info)).await,
            Batch::TcTokens(rows) => each(&rows, |(jid, token)| store.put_tc_token(jid, token)).await,
            Batch::SentMessages(rows) => {
                each(&rows, |(chat, id, payload)| store.store_sent_message(chat, id, payload)).await
            }
            Batch::PendingInbound(rows) => {
                let rows =
                    rows.iter().map(|([chat, sender, id], message)| PendingInboundRow { chat, sender, id, message });
                let rows: Vec<_> = rows.collect();
                store.store_pending_inbound_batch(&rows).await
            }
            Batch::MessageSecrets(rows) => store.put_msg_secrets(rows).await.map(drop),
            Batch::Device(device) => store.save(&device).await,
        }
    }

    /// Reads the records from the store and compares them. Puts sent messages back, because they
    /// can only be taken.
    pub(super) async fn equals(&self, store: &dyn Backend) -> StoreResult<bool> {
        match self {
            Batch::Identities(rows) => {
                all(rows, async |(address, key)| Ok(store.load_identity(address).await?.as_ref() == Some(key))).await
            }
            Batch::Sessions(rows) => {
                all(rows, async |(address, record)| Ok(store.get_session(address).await?.as_ref() == Some(record)))
                    .await
            }
            Batch::Prekeys { rows, .. } => equal_prekeys(rows, store).await,
            Batch::SignedPrekeys(rows) => {
                all(rows, async |(id, record)| Ok(store.load_signed_prekey(*id).await?.as_ref() == Some(record))).await
            }
            Batch::SenderKeys(rows) => {
                all(rows, async |(address, record)| {
                    Ok(store.get_sender_key(address).await?.as_deref() == Some(&record[..]))
                })
                .await
            }
            Batch::SyncKeys(rows) => all(rows, async |(id, key)| Ok(same_as(store.get_sync_key(id).await?, key))).await,
            Batch::CollectionVersions(rows) => {
                all(rows, async |(name, state)| Ok(same(&store.get_version(name).await?, state))).await
            }
            Batch::MutationMacs(rows) => {
                all(rows, async |(name, _, mac)| {
                    Ok(store.get_mutation_mac(name, &mac.index_mac).await?.as_ref() == Some(&mac.value_mac))
                })
                .await
            }
            Batch::SenderKeyDevices(rows) => equal_sender_key_devices(rows, store).await,
            Batch::LidMappings(rows) => {
                all(rows, async |row| Ok(same_as(store.get_lid_mapping(&row.lid).await?, row))).await
            }
            Batch::BaseKeys(rows) => {
                all(rows, async |(address, message, key)| store.has_same_base_key(address, message, key).await).await
            }
            Batch::DeviceLists(rows) => {
                all(rows, async |row| Ok(same_as(store.get_devices(&row.user).await?, row))).await
            }
            Batch::GroupMetadata(rows) => {
                all(rows, async |(jid, info)| Ok(store.get_group_metadata(jid).await?.as_ref() == Some(info))).await
            }
            Batch::TcTokens(rows) => all(rows, async |(jid, token)| equal_tc_token(jid, token, store).await).await,
            Batch::SentMessages(rows) => {
                all(rows, async |(chat, id, payload)| equal_sent_message(chat, id, payload, store).await).await
            }
            Batch::PendingInbound(rows) => {
                all(rows, async |([chat, sender, id], message)| {
                    Ok(store.get_pending_inbound(chat, sender, id).await?.as_ref() == Some(message))
                })
                .await
            }
            Batch::MessageSecrets(rows) => all(rows, async |row| equal_message_secret(row, store).await).await,
            Batch::Device(device) => Ok(same_as(store.load().await?, &**device)),
        }
    }
}

async fn equal_prekeys(rows: &[(u32, Bytes)], store: &dyn Backend) -> StoreResult<bool> {
    let ids: Vec<_> = rows.iter().map(|(id, _)| *id).collect();
    let mut found = store.load_prekeys_batch(&ids).await?;
    found.sort_unstable_by_key(|(id, _)| *id);
    let mut rows = rows.to_vec();
    rows.sort_unstable_by_key(|(id, _)| *id);
    Ok(found == rows)
}

async fn equal_sender_key_devices(rows: &[(String, String, bool)], store: &dyn Backend) -> StoreResult<bool> {
    for group in rows.chunk_by(|(group, ..), (next, ..)| group == next) {
        let [(jid, ..), ..] = group else { continue };
        let found = store.get_sender_key_devices(jid).await?;
        let has = |(_, device, has_key): &(String, String, bool)| {
            found.iter().any(|(found, has)| (found, has) == (device, has_key))
        };
        if !group.iter().all(has) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn equal_tc_token(jid: &str, token: &TcTokenEntry, store: &dyn Backend) -> StoreResult<bool> {
    let Some(found) = store.get_tc_token(jid).await? else { return Ok(false) };
    Ok((found.token_timestamp, found.sender_timestamp) == (token.token_timestamp, token.sender_timestamp)
        && found.token == token.token)
}

async fn equal_sent_message(chat: &str, id: &str, payload: &[u8], store: &dyn Backend) -> StoreResult<bool> {
    let Some(found) = store.take_sent_message(chat, id).await? else { return Ok(false) };
    store.store_sent_message(chat, id, &found).await?;
    Ok(found == payload)
}

async fn equal_message_secret(row: &MsgSecretEntry, store: &dyn Backend) -> StoreResult<bool> {
    let found = store.get_msg_secret_with_ts(&row.chat, &row.sender, &row.msg_id).await?;
    Ok(found.is_some_and(|(secret, sent)| secret == row.secret && sent == row.message_ts))
}

/// Stores each row with a call of its own. The calls share commits.
async fn each<'r, T, F>(rows: &'r [T], store: impl Fn(&'r T) -> F) -> StoreResult<()>
where
    F: Future<Output = StoreResult<()>>,
{
    try_join_all(rows.iter().map(store)).await.map(drop)
}

async fn all<T>(rows: &[T], equal: impl AsyncFn(&T) -> StoreResult<bool>) -> StoreResult<bool> {
    for row in rows {
        if !equal(row).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `true` if a value was found and is the [`same`].
fn same_as<T: Serialize>(found: Option<T>, expected: &T) -> bool {
    found.is_some_and(|found| same(&found, expected))
}

/// Compares every field that upstream serializes.
fn same<T: Serialize>(one: &T, other: &T) -> bool {
    match (serde_json::to_value(one), serde_json::to_value(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
