//! Reading the rows of every table as they lie there, for checking, exporting and sealing anew.

use std::collections::HashMap;

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, Row, ToSql};
use wacore::store::error::StoreError;

use super::SqliteStore;
use super::connection::Statements;
use crate::encrypt::HeaderCopy;
use crate::encrypt::stored::{CARRIER, StoredRow, decode_text, encode_text, session_or_identity};
use crate::error::{Error, Result};
use crate::method::Record;

/// How many rows are read at a time at most, and how many bytes, roughly.
const PAGE_ROWS: i64 = 500;
const PAGE_BYTES: usize = 2 << 20;

/// How the rows of a table are read as they lie there, and how a sealed value is replaced.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// Gives the row id, or nothing if there is none, and then what `read` wants.
    sql: &'static str,
    pub(super) has_row_ids: bool,
    /// How many rows all accounts have, and how many bytes.
    size: &'static str,
    count: &'static str,
    read: fn(&Row<'_>) -> Result<Option<StoredRow>>,
    /// `None` if the table has no values that a data key seals.
    pub(super) replace: Option<Replace>,
}

/// Replaces a sealed value, if it is still the one that was read.
pub(super) struct Replace {
    /// `?1` is the new value, `?2` the old one. The row is `?3`, or the key columns `?4` and `?5` of account `?3`.
    pub(super) sql: &'static str,
    /// What the column holds for an envelope.
    pub(super) carry: fn(Vec<u8>) -> Result<Value>,
}

/// A table with row ids: its name, the columns that are read, the length of its values, how values are replaced, and what
/// the columns are.
macro_rules! table {
    ($name:literal, $columns:literal, $bytes:literal, $replace:expr, $read:expr) => {
        Table {
            name: $name,
            sql: concat!(
                "SELECT rowid, ",
                $columns,
                " FROM ",
                $name,
                // Or SQLite would take the index for the account, and sort all of its rows for each page.
                " NOT INDEXED WHERE account = ?1 AND rowid >= ?3 ORDER BY rowid LIMIT ?2"
            ),
            has_row_ids: true,
            size: concat!("SELECT count(*), coalesce(sum(", $bytes, "), 0) FROM ", $name),
            count: concat!("SELECT count(*) FROM ", $name, " WHERE account = ?1"),
            read: $read,
            replace: $replace,
        }
    };
    (without rowid $name:literal, $columns:literal, $key:literal, $bytes:literal, $replace:expr, $read:expr) => {
        Table {
            name: $name,
            sql: concat!(
                "SELECT NULL, ",
                $columns,
                " FROM ",
                $name,
                " WHERE account = ?1 AND (",
                $key,
                ") >= (?3, ?4) ORDER BY ",
                $key,
                " LIMIT ?2"
            ),
            has_row_ids: false,
            size: concat!("SELECT count(*), coalesce(sum(", $bytes, "), 0) FROM ", $name),
            count: concat!("SELECT count(*) FROM ", $name, " WHERE account = ?1"),
            read: $read,
            replace: $replace,
        }
    };
}

/// Replaces the value of one column.
macro_rules! replace {
    ($name:literal, $column:literal, $carry:expr) => {
        Some(Replace {
            sql: concat!("UPDATE ", $name, " SET ", $column, " = ?1 WHERE rowid = ?3 AND ", $column, " = ?2"),
            carry: $carry,
        })
    };
}

fn blob(envelope: Vec<u8>) -> Result<Value> {
    Ok(Value::Blob(envelope))
}

fn text(envelope: Vec<u8>) -> Result<Value> {
    Ok(Value::Text(encode_text(&envelope)))
}

fn map(envelope: Vec<u8>) -> Result<Value> {
    super::app_sync::encode_map(&HashMap::from([(CARRIER.to_owned(), envelope)])).map(Value::Blob)
}

pub(crate) const TABLES: [Table; 18] = [
    // Under a vault identities lie among the sessions.
    table!("identities", "key", "length(key)", None, |_| Err(Error::Plaintext { record: Record::Identity })),
    table!("sessions", "record, address", "length(record)", replace!("sessions", "record", blob), |row| {
        let value = bytes(row, 1)?;
        let record = session_or_identity(&value);
        Ok(Some(StoredRow { record, columns: vec![bytes(row, 2)?], value, numbers: vec![] }))
    }),
    table!("prekeys", "record, id, uploaded", "length(record)", replace!("prekeys", "record", blob), |row| by_id(
        Record::Prekey,
        row
    )),
    table!("signed_prekeys", "record, id", "length(record)", replace!("signed_prekeys", "record", blob), |row| by_id(
        Record::SignedPrekey,
        row
    )),
    table!("sender_keys", "record, address", "length(record)", replace!("sender_keys", "record", blob), |row| {
        let address = bytes(row, 2)?;
        let is_header = HeaderCopy::BOTH.iter().any(|copy| copy.address().as_bytes() == address);
        let (record, value) = (Record::SenderKey, bytes(row, 1)?);
        Ok((!is_header).then(|| StoredRow { record, columns: vec![address], value, numbers: vec![] }))
    }),
    table!(
        "sync_keys",
        "key_data, fingerprint, key_id",
        "length(key_data) + length(fingerprint)",
        Some(Replace {
            sql: "UPDATE sync_keys SET key_data = substr(?1, 1, 32), fingerprint = substr(?1, 33)
                WHERE rowid = ?3 AND key_data = substr(?2, 1, 32) AND fingerprint = substr(?2, 33)",
            carry: blob
        }),
        |row| {
            let value = [bytes(row, 1)?, bytes(row, 2)?].concat();
            Ok(Some(StoredRow { record: Record::SyncKey, columns: vec![bytes(row, 3)?], value, numbers: vec![] }))
        }
    ),
    table!(
        "collection_versions",
        "index_value_map, name",
        "length(index_value_map)",
        replace!("collection_versions", "index_value_map", map),
        |row| {
            let record = Record::CollectionVersion;
            let carrier = super::app_sync::decode_map(&bytes(row, 1)?)?.remove(CARRIER);
            let value = carrier.ok_or(Error::Plaintext { record })?;
            Ok(Some(StoredRow { record, columns: vec![bytes(row, 2)?], value, numbers: vec![] }))
        }
    ),
    table!(
        without rowid "mutation_macs",
        "value_mac, name, index_mac, version",
        "name, index_mac",
        "length(value_mac)",
        Some(Replace {
            sql: "UPDATE mutation_macs SET value_mac = ?1
                WHERE account = ?3 AND name = ?4 AND index_mac = ?5 AND value_mac = ?2",
            carry: blob
        }),
        |row| keyed(Record::MutationMac, row, 2)
    ),
    table!(
        without rowid "sender_key_devices",
        "x'', group_jid, device_jid",
        "group_jid, device_jid",
        "length(device_jid)",
        None,
        |row| keyed(Record::SenderKeyDevice, row, 2)
    ),
    table!(
        "lid_mappings",
        "learning_source, lid, phone_number, created_at, updated_at",
        "length(learning_source)",
        replace!("lid_mappings", "learning_source", text),
        |row| carried(Record::LidMapping, row, 2)
    ),
    table!("base_keys", "base_key, address, message_id", "length(base_key)", None, |row| keyed(
        Record::BaseKey,
        row,
        2
    )),
    table!(
        "device_lists",
        "coalesce(phash, ''), user",
        "coalesce(length(phash), 0)",
        replace!("device_lists", "phash", text),
        |row| carried(Record::DeviceList, row, 1)
    ),
    table!("group_metadata", "info, group_jid", "length(info)", replace!("group_metadata", "info", blob), |row| {
        keyed(Record::GroupMetadata, row, 1)
    }),
    table!(
        "tc_tokens",
        "token, jid, token_timestamp, sender_timestamp",
        "length(token)",
        replace!("tc_tokens", "token", blob),
        |row| keyed(Record::TcToken, row, 1)
    ),
    table!(
        "sent_messages",
        "payload, chat_jid, message_id, created_at",
        "length(payload)",
        replace!("sent_messages", "payload", blob),
        |row| keyed(Record::SentMessage, row, 2)
    ),
    table!(
        "pending_inbound",
        "message, chat, sender, id, inserted_at",
        "length(message)",
        replace!("pending_inbound", "message", blob),
        |row| keyed(Record::PendingInbound, row, 3)
    ),
    table!("message_secrets", "secret, chat, sender, msg_id", "length(secret)", None, |row| {
        keyed(Record::MessageSecret, row, 3)
    }),
    table!(
        "devices",
        "coalesce(edge_routing_info, x'')",
        "length(record)",
        replace!("devices", "edge_routing_info", blob),
        |row| {
            // Without a carrier it is what a store makes before the first device is sealed, which counts as absent.
            Ok(keyed(Record::Device, row, 0)?.filter(|row| !row.value.is_empty()))
        }
    ),
];

impl Table {
    /// `true` if the table has values that a data key seals.
    pub(crate) fn is_sealed(&self) -> bool {
        self.replace.is_some()
    }

    pub(super) fn size(&self, connection: &Connection) -> Result<(&'static str, u64, u64)> {
        let counted = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        let (rows, bytes) = connection.first(self.size, (), counted)?.unwrap_or_default();
        Ok((self.name, rows.unsigned_abs(), bytes.unsigned_abs()))
    }
}

/// What a row of a query is: its id, or its place in the order of the keys from 1, and the stored row or what is wrong with
/// it.
pub(crate) type Found = (i64, Result<Option<StoredRow>>);

/// The rows of an account in a table, a page at a time. Rows that are there from the first page to the last are all seen,
/// whatever else is stored and deleted meanwhile.
pub(crate) struct Pages {
    table: &'static Table,
    /// From where the next page begins; `None` after the last one.
    next: Option<Position>,
    limit: i64,
    seen: i64,
}

/// Where a row is in its table.
enum Position {
    RowId(i64),
    Key([KeyColumn; 2]),
}

/// A key column as it lies in the table, whatever is in it.
struct KeyColumn {
    is_text: bool,
    bytes: Vec<u8>,
}

impl ToSql for KeyColumn {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let value = if self.is_text { ValueRef::Text(&self.bytes) } else { ValueRef::Blob(&self.bytes) };
        Ok(ToSqlOutput::Borrowed(value))
    }
}

impl Pages {
    pub(crate) fn of(table: &'static Table) -> Self {
        // Row ids are what somebody gave, so any number; and nothing is less than an empty text or blob of its type.
        let first = match table.has_row_ids {
            true => Position::RowId(i64::MIN),
            false => Position::Key([true, true].map(|is_text| KeyColumn { is_text, bytes: Vec::new() })),
        };
        Self { table, next: Some(first), limit: PAGE_ROWS / 10, seen: 0 }
    }

    /// The next page; `None` after the last one.
    pub(crate) async fn next(&mut self, store: &SqliteStore) -> Result<Option<Vec<Found>>> {
        self.next_then(store, |rows| rows).await
    }

    /// What `then` makes of the next page, on the thread that reads it; `None` after the last one.
    pub(super) async fn next_then<T: Send + 'static>(
        &mut self,
        store: &SqliteStore,
        mut then: impl FnMut(Vec<Found>) -> T + Send + 'static,
    ) -> Result<Option<T>> {
        let Some(from) = self.next.take() else { return Ok(None) };
        let (account, table, limit, seen) = (store.account, self.table, self.limit, self.seen);
        let read = move |c: &Connection| {
            let mut last = None;
            let mut found = |row: &Row<'_>| {
                let id: Option<i64> = row.get(0)?;
                last = Some(match id {
                    Some(id) => Position::RowId(id),
                    None => Position::Key([key_column(row, 2)?, key_column(row, 3)?]),
                });
                Ok((id.unwrap_or_default(), (table.read)(row)))
            };
            let mut rows: Vec<Found> = match &from {
                Position::RowId(from) => c.all(table.sql, (account, limit, from), &mut found),
                Position::Key([one, two]) => c.all(table.sql, (account, limit, one, two), &mut found),
            }?;
            if !table.has_row_ids {
                (seen + 1..).zip(&mut rows).for_each(|(number, (id, _))| *id = number);
            }
            let bytes: usize = rows.iter().filter_map(|(_, row)| Some(row.as_ref().ok()?.as_ref()?.value.len())).sum();
            Ok((rows.len(), bytes, last, then(rows)))
        };
        let (rows, bytes, last, made) = store.database.read_long(read).await?;
        self.seen += rows as i64;
        self.next = last.filter(|_| rows as i64 == limit).and_then(Position::after);
        self.limit = ((PAGE_BYTES / (bytes / rows.max(1)).max(1)) as i64).clamp(1, PAGE_ROWS);
        Ok(Some(made))
    }
}

impl Position {
    /// The first that is behind this one; `None` if there is none.
    fn after(self) -> Option<Self> {
        match self {
            Position::RowId(id) => id.checked_add(1).map(Position::RowId),
            Position::Key([one, mut two]) => {
                two.bytes.push(0);
                Some(Position::Key([one, two]))
            }
        }
    }
}

fn key_column(row: &Row<'_>, column: usize) -> rusqlite::Result<KeyColumn> {
    let value = row.get_ref(column)?;
    let is_text = matches!(value, ValueRef::Text(_));
    Ok(KeyColumn { is_text, bytes: value.as_bytes()?.to_vec() })
}

impl SqliteStore {
    /// How many rows this account has, all tables together.
    pub(crate) async fn count_stored_rows(&self) -> Result<u64> {
        self.count_rows(|_| true).await
    }

    /// How many rows this account has in some tables.
    pub(super) async fn count_rows(&self, which: fn(&Table) -> bool) -> Result<u64> {
        let account = self.account;
        let count = move |c: &Connection| {
            let mut total = 0;
            for table in TABLES.iter().filter(|table| which(table)) {
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
