//! Reading the rows of every table as they lie there, for checking and exporting.

use rusqlite::{Connection, Row};
use wacore::store::error::StoreError;

use super::SqliteStore;
use super::connection::Statements;
use crate::encrypt::HeaderCopy;
use crate::encrypt::stored::{CARRIER, StoredRow, decode_text, session_or_identity};
use crate::error::{Error, Result};
use crate::method::Record;

/// How many rows are read at a time at most, and how many bytes, roughly.
const PAGE_ROWS: i64 = 500;
const PAGE_BYTES: usize = 2 << 20;

/// How a table is read for checking.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// Gives the row id, or the place in the order of the keys, and then what `read` wants.
    sql: &'static str,
    has_row_ids: bool,
    /// How many rows all accounts have, and how many bytes.
    size: &'static str,
    count: &'static str,
    read: fn(&Row<'_>) -> Result<Option<StoredRow>>,
}

/// A table with row ids: its name, the columns that are read, and what they are.
macro_rules! table {
    ($name:literal, $columns:literal, $bytes:literal, $read:expr) => {
        Table {
            name: $name,
            sql: concat!(
                "SELECT rowid, ",
                $columns,
                " FROM ",
                $name,
                " WHERE account = ?1 AND rowid >= ?2 ORDER BY rowid LIMIT ?3"
            ),
            has_row_ids: true,
            size: concat!("SELECT count(*), coalesce(sum(", $bytes, "), 0) FROM ", $name),
            count: concat!("SELECT count(*) FROM ", $name, " WHERE account = ?1"),
            read: $read,
        }
    };
    (without rowid $name:literal, $columns:literal, $key:literal, $bytes:literal, $read:expr) => {
        Table {
            name: $name,
            sql: concat!(
                "SELECT row_number() OVER () + ?2, ",
                $columns,
                " FROM (SELECT * FROM ",
                $name,
                " WHERE account = ?1 ORDER BY ",
                $key,
                " LIMIT ?3 OFFSET ?2)"
            ),
            has_row_ids: false,
            size: concat!("SELECT count(*), coalesce(sum(", $bytes, "), 0) FROM ", $name),
            count: concat!("SELECT count(*) FROM ", $name, " WHERE account = ?1"),
            read: $read,
        }
    };
}

pub(crate) const TABLES: [Table; 18] = [
    // Under a vault identities lie among the sessions.
    table!("identities", "key", "length(key)", |_| Err(Error::Plaintext { record: Record::Identity })),
    table!("sessions", "record, address", "length(record)", |row| {
        let value = bytes(row, 1)?;
        let record = session_or_identity(&value);
        Ok(Some(StoredRow { record, columns: vec![bytes(row, 2)?], value, numbers: vec![] }))
    }),
    table!("prekeys", "record, id, uploaded", "length(record)", |row| by_id(Record::Prekey, row)),
    table!("signed_prekeys", "record, id", "length(record)", |row| by_id(Record::SignedPrekey, row)),
    table!("sender_keys", "record, address", "length(record)", |row| {
        let address = bytes(row, 2)?;
        let is_header = HeaderCopy::BOTH.iter().any(|copy| copy.address().as_bytes() == address);
        let (record, value) = (Record::SenderKey, bytes(row, 1)?);
        Ok((!is_header).then(|| StoredRow { record, columns: vec![address], value, numbers: vec![] }))
    }),
    table!("sync_keys", "key_data, fingerprint, key_id", "length(key_data) + length(fingerprint)", |row| {
        let value = [bytes(row, 1)?, bytes(row, 2)?].concat();
        Ok(Some(StoredRow { record: Record::SyncKey, columns: vec![bytes(row, 3)?], value, numbers: vec![] }))
    }),
    table!("collection_versions", "index_value_map, name", "length(index_value_map)", |row| {
        let record = Record::CollectionVersion;
        let carrier = super::app_sync::decode_map(&bytes(row, 1)?)?.remove(CARRIER);
        let value = carrier.ok_or(Error::Plaintext { record })?;
        Ok(Some(StoredRow { record, columns: vec![bytes(row, 2)?], value, numbers: vec![] }))
    }),
    table!(without rowid "mutation_macs", "value_mac, name, index_mac, version", "name, index_mac", "length(value_mac)", |row| {
        keyed(Record::MutationMac, row, 2)
    }),
    table!(without rowid "sender_key_devices", "x'', group_jid, device_jid", "group_jid, device_jid", "length(device_jid)", |row| {
        keyed(Record::SenderKeyDevice, row, 2)
    }),
    table!(
        "lid_mappings",
        "learning_source, lid, phone_number, created_at, updated_at",
        "length(learning_source)",
        |row| { carried(Record::LidMapping, row, 2) }
    ),
    table!("base_keys", "base_key, address, message_id", "length(base_key)", |row| keyed(Record::BaseKey, row, 2)),
    table!("device_lists", "coalesce(phash, ''), user", "coalesce(length(phash), 0)", |row| {
        carried(Record::DeviceList, row, 1)
    }),
    table!("group_metadata", "info, group_jid", "length(info)", |row| keyed(Record::GroupMetadata, row, 1)),
    table!("tc_tokens", "token, jid, token_timestamp, sender_timestamp", "length(token)", |row| keyed(
        Record::TcToken,
        row,
        1
    )),
    table!("sent_messages", "payload, chat_jid, message_id, created_at", "length(payload)", |row| keyed(
        Record::SentMessage,
        row,
        2
    )),
    table!("pending_inbound", "message, chat, sender, id, inserted_at", "length(message)", |row| {
        keyed(Record::PendingInbound, row, 3)
    }),
    table!("message_secrets", "secret, chat, sender, msg_id", "length(secret)", |row| {
        keyed(Record::MessageSecret, row, 3)
    }),
    table!("devices", "coalesce(edge_routing_info, x'')", "length(record)", |row| {
        // Without a carrier it is what a store makes before the first device is sealed, which counts as absent.
        Ok(keyed(Record::Device, row, 0)?.filter(|row| !row.value.is_empty()))
    }),
];

impl Table {
    pub(super) fn size(&self, connection: &Connection) -> Result<(&'static str, u64, u64)> {
        let counted = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        let (rows, bytes) = connection.first(self.size, (), counted)?.unwrap_or_default();
        Ok((self.name, rows.unsigned_abs(), bytes.unsigned_abs()))
    }
}

/// What a row of a query is: its id, and the stored row or what is wrong with it.
pub(crate) type Found = (i64, Result<Option<StoredRow>>);

/// The rows of an account in a table, a page at a time.
pub(crate) struct Pages {
    table: &'static Table,
    /// From where the next page begins; `None` after the last one.
    next: Option<i64>,
    limit: i64,
}

impl Pages {
    pub(crate) fn of(table: &'static Table) -> Self {
        // Row ids are what somebody gave, so any number.
        let first = if table.has_row_ids { i64::MIN } else { 0 };
        Self { table, next: Some(first), limit: PAGE_ROWS / 10 }
    }

    /// The next page; `None` after the last one.
    pub(crate) async fn next(&mut self, store: &SqliteStore) -> Result<Option<Vec<Found>>> {
        let Some(from) = self.next else { return Ok(None) };
        let (account, table, limit) = (store.account, self.table, self.limit);
        let found = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, (table.read)(row)));
        let rows: Vec<Found> =
            store.database.read_long(move |c| c.all(table.sql, (account, from, limit), found)).await?;
        let last = rows.last().filter(|_| rows.len() as i64 == limit).map(|(row, _)| *row);
        self.next = last.and_then(|last| if table.has_row_ids { last.checked_add(1) } else { Some(last) });
        let bytes: usize = rows.iter().filter_map(|(_, row)| Some(row.as_ref().ok()?.as_ref()?.value.len())).sum();
        let average = (bytes / rows.len().max(1)).max(1);
        self.limit = ((PAGE_BYTES / average) as i64).clamp(1, PAGE_ROWS);
        Ok(Some(rows))
    }
}

impl SqliteStore {
    /// How many rows this account has, all tables together.
    pub(crate) async fn count_stored_rows(&self) -> Result<u64> {
        let account = self.account;
        let count = move |c: &Connection| {
            let mut total = 0;
            for table in &TABLES {
                total += c.first(table.count, (account,), |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs();
            }
            Ok(total)
        };
        self.database.read_long(count).await
    }
}

/// A text or a blob, whatever is in it.
fn bytes(row: &Row<'_>, column: usize) -> Result<Vec<u8>> {
    let value = row.get_ref(column)?;
    Ok(value.as_bytes().map(<[u8]>::to_vec).map_err(|error| StoreError::Database(Box::new(error)))?)
}

/// The value, then so many key columns, and then numbers.
fn keyed(record: Record, row: &Row<'_>, columns: usize) -> Result<Option<StoredRow>> {
    let numbers = (2 + columns..row.as_ref().column_count()).map(|column| row.get(column));
    let numbers = numbers.collect::<rusqlite::Result<_>>()?;
    let columns = (2..2 + columns).map(|column| bytes(row, column)).collect::<Result<_>>()?;
    Ok(Some(StoredRow { record, columns, value: bytes(row, 1)?, numbers }))
}

/// The same where a text carries the value.
fn carried(record: Record, row: &Row<'_>, columns: usize) -> Result<Option<StoredRow>> {
    let Some(found) = keyed(record, row, columns)? else { return Ok(None) };
    let text = std::str::from_utf8(&found.value).map_err(|_| Error::Tampered { record })?;
    let value = decode_text(record, text)?;
    Ok(Some(StoredRow { value, ..found }))
}

/// A record whose key is a number.
fn by_id(record: Record, row: &Row<'_>) -> Result<Option<StoredRow>> {
    let Some(mut found) = keyed(record, row, 0)? else { return Ok(None) };
    let id = found.numbers.first().copied().flatten().and_then(|id| u32::try_from(id).ok());
    found.columns.push(id.ok_or(Error::Tampered { record })?.to_le_bytes().to_vec());
    Ok(Some(found))
}
