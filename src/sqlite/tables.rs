//! The tables: what is in their columns, how their rows are found, and how a sealed value in them is replaced.

use std::collections::HashMap;

use data_encoding::BASE64URL_NOPAD;
use rusqlite::types::Value;
use rusqlite::{Connection, Row};

use super::connection::Statements;
use super::verify::TableSize;
use crate::encrypt::HeaderCopy;
use crate::encrypt::sealed_row::{CARRIER, StoredRow, decode_text, encode_text, session_or_identity};
use crate::error::{Error, Result};
use crate::method::Record;

/// How the rows of a table are read as they lie there, and how a sealed value is replaced.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// What its rows are.
    pub(super) record: Record,
    /// The columns that `read` wants.
    pub(super) columns: &'static str,
    /// The columns that order its rows within an account.
    pub(super) key: &'static str,
    pub(super) has_row_ids: bool,
    /// The first page of an account, and the one that begins at or behind a position. A row is its id, or nothing if there is
    /// none, and then the columns.
    pub(super) first: &'static str,
    pub(super) next: &'static str,
    /// How many rows all accounts have, and how many bytes.
    pub(super) size: &'static str,
    /// Deletes the rows of an account.
    pub(super) delete_all: &'static str,
    /// How many rows an account has: as its rows are found, in the table from end to end, and in the index of its key.
    pub(super) count: &'static str,
    pub(super) scan: &'static str,
    pub(super) index: Option<&'static str>,
    pub(super) read: fn(&Row<'_>) -> Result<Option<StoredRow>>,
    /// `None` if the table has no values that a data key seals.
    pub(super) replace: Option<Replace>,
}

/// Replaces a sealed value, if it is still the one that was read.
pub(super) struct Replace {
    /// `?1` is the new value, `?2` the old one. The row is `?3`, or the key columns `?4` and `?5` of account `?3`.
    pub(super) sql: &'static str,
    /// What the column holds for an envelope.
    pub(super) carry: fn(Vec<u8>) -> Result<Value>,
    /// The part of the column that begins with the first bytes of the envelope, and how they are read from it.
    pub(super) prefix: (&'static str, ReadPrefix),
}

type ReadPrefix = fn(&[u8]) -> Option<[u8; PREFIX_BYTES]>;

/// A table with row ids: its name, the columns that are read, the length of its values, how values are replaced, and what
/// the columns are.
macro_rules! table {
    ($name:literal, $record:ident, $columns:literal, $bytes:literal, $replace:expr, $read:expr) => {
        table!(
            $name,
            $record,
            $columns,
            $bytes,
            Some(concat!("SELECT count(*) FROM ", $name, " INDEXED BY ", $name, "_key WHERE account = ?1")),
            $replace,
            $read
        )
    };
    ($name:literal, $record:ident, $columns:literal, $bytes:literal, $index:expr, $replace:expr, $read:expr) => {
        Table {
            name: $name,
            record: Record::$record,
            columns: $columns,
            key: "rowid",
            has_row_ids: true,
            // Or SQLite would take the index for the account, and sort all of its rows for each page.
            first: concat!(
                "SELECT rowid, ",
                $columns,
                " FROM ",
                $name,
                " NOT INDEXED WHERE account = ?1 AND rowid >= -9223372036854775808 ORDER BY rowid LIMIT ?2"
            ),
            next: concat!(
                "SELECT rowid, ",
                $columns,
                " FROM ",
                $name,
                " NOT INDEXED WHERE account = ?1 AND rowid >= ?3 ORDER BY rowid LIMIT ?2"
            ),
            size: concat!("SELECT count(*), coalesce(sum(", $bytes, "), 0) FROM ", $name),
            delete_all: concat!("DELETE FROM ", $name, " WHERE account = ?1"),
            count: concat!("SELECT count(*) FROM ", $name, " WHERE account = ?1"),
            scan: concat!("/* every row */ SELECT count(*) FROM ", $name, " NOT INDEXED WHERE +account = ?1"),
            index: $index,
            read: $read,
            replace: $replace,
        }
    };
    (
        without rowid $name:literal, $record:ident, $columns:literal, $key:literal, $bytes:literal, $other_index:literal,
        $replace:expr, $read:expr
    ) => {
        Table {
            name: $name,
            record: Record::$record,
            columns: $columns,
            key: $key,
            has_row_ids: false,
            first: concat!(
                "SELECT NULL, ",
                $columns,
                " FROM ",
                $name,
                " WHERE account = ?1 ORDER BY ",
                $key,
                " LIMIT ?2"
            ),
            next: concat!(
                "SELECT NULL, ",
                $columns,
                " FROM ",
                $name,
                " WHERE account = ?1 AND (",
                $key,
                ") > (?3, ?4) ORDER BY ",
                $key,
                " LIMIT ?2"
            ),
            size: concat!("SELECT count(*), coalesce(sum(", $bytes, "), 0) FROM ", $name),
            delete_all: concat!("DELETE FROM ", $name, " WHERE account = ?1"),
            count: concat!("SELECT count(*) FROM ", $name, " WHERE account = ?1"),
            scan: concat!(
                "/* every row */ SELECT count(*) FROM ",
                $name,
                " INDEXED BY sqlite_autoindex_",
                $name,
                "_1 WHERE +account = ?1"
            ),
            index: Some(concat!("SELECT count(*) FROM ", $name, " INDEXED BY ", $other_index, " WHERE account = ?1")),
            read: $read,
            replace: $replace,
        }
    };
}

/// Replaces the value of one column.
macro_rules! replace {
    ($name:literal, $column:literal, blob) => {
        replace!($name, $column, blob, (concat!("substr(", $column, ", 1, 14)"), blob_prefix))
    };
    ($name:literal, $column:literal, text) => {
        replace!($name, $column, text, (concat!("substr(", $column, ", 1, 20)"), text_prefix))
    };
    ($name:literal, $column:literal, map) => {
        replace!($name, $column, map, ($column, map_prefix))
    };
    ($name:literal, $column:literal, $carry:expr, $prefix:expr) => {
        Some(Replace {
            sql: concat!("UPDATE ", $name, " SET ", $column, " = ?1 WHERE rowid = ?3 AND ", $column, " = ?2"),
            carry: $carry,
            prefix: $prefix,
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

/// How many bytes of a sealed value say under which data key it is, and from which generation.
pub(crate) const PREFIX_BYTES: usize = 14;

pub(super) fn blob_prefix(value: &[u8]) -> Option<[u8; PREFIX_BYTES]> {
    value.first_chunk().copied()
}

fn text_prefix(value: &[u8]) -> Option<[u8; PREFIX_BYTES]> {
    blob_prefix(&BASE64URL_NOPAD.decode(value).ok()?)
}

fn map_prefix(value: &[u8]) -> Option<[u8; PREFIX_BYTES]> {
    blob_prefix(super::app_sync::decode_map(value).ok()?.get(CARRIER)?)
}

pub(crate) static TABLES: [Table; 18] = [
    // Under a vault identities lie among the sessions.
    table!("identities", Identity, "key", "length(key)", None, |_| Err(Error::Plaintext { record: Record::Identity })),
    table!("sessions", Session, "record, address", "length(record)", replace!("sessions", "record", blob), |row| {
        let value = bytes(row, 1)?;
        let record = session_or_identity(&value);
        Ok(Some(StoredRow { record, columns: vec![bytes(row, 2)?], value, numbers: vec![] }))
    }),
    table!("prekeys", Prekey, "record, id, uploaded", "length(record)", replace!("prekeys", "record", blob), |row| {
        by_id(Record::Prekey, row)
    }),
    table!(
        "signed_prekeys",
        SignedPrekey,
        "record, id",
        "length(record)",
        replace!("signed_prekeys", "record", blob),
        |row| by_id(Record::SignedPrekey, row)
    ),
    table!(
        "sender_keys",
        SenderKey,
        "record, address",
        "length(record)",
        replace!("sender_keys", "record", blob),
        |row| {
            let address = bytes(row, 2)?;
            let is_header = HeaderCopy::BOTH.iter().any(|copy| copy.address().as_bytes() == address);
            let (record, value) = (Record::SenderKey, bytes(row, 1)?);
            Ok((!is_header).then(|| StoredRow { record, columns: vec![address], value, numbers: vec![] }))
        }
    ),
    table!(
        "sync_keys",
        SyncKey,
        "key_data, fingerprint, key_id",
        "length(key_data) + length(fingerprint)",
        Some(Replace {
            sql: "UPDATE sync_keys SET key_data = substr(?1, 1, 32), fingerprint = substr(?1, 33)
                WHERE rowid = ?3 AND key_data = substr(?2, 1, 32) AND fingerprint = substr(?2, 33)",
            carry: blob,
            prefix: ("substr(key_data, 1, 14)", blob_prefix)
        }),
        |row| {
            let value = [bytes(row, 1)?, bytes(row, 2)?].concat();
            Ok(Some(StoredRow { record: Record::SyncKey, columns: vec![bytes(row, 3)?], value, numbers: vec![] }))
        }
    ),
    table!(
        "collection_versions",
        CollectionVersion,
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
        without rowid "mutation_macs", MutationMac,
        "value_mac, name, index_mac, version",
        "name, index_mac",
        "length(value_mac)",
        "sqlite_autoindex_mutation_macs_1",
        Some(Replace {
            sql: "UPDATE mutation_macs SET value_mac = ?1
                WHERE account = ?3 AND name = ?4 AND index_mac = ?5 AND value_mac = ?2",
            carry: blob,
            prefix: ("substr(value_mac, 1, 14)", blob_prefix)
        }),
        |row| keyed(Record::MutationMac, row, 2)
    ),
    table!(
        without rowid "sender_key_devices", SenderKeyDevice,
        "x'', group_jid, device_jid",
        "group_jid, device_jid",
        "length(device_jid)",
        "sender_key_devices_device",
        None,
        |row| keyed(Record::SenderKeyDevice, row, 2)
    ),
    table!(
        "lid_mappings",
        LidMapping,
        "learning_source, lid, phone_number, created_at, updated_at",
        "length(learning_source)",
        replace!("lid_mappings", "learning_source", text),
        |row| carried(Record::LidMapping, row, 2)
    ),
    table!("base_keys", BaseKey, "base_key, address, message_id", "length(base_key)", None, |row| keyed(
        Record::BaseKey,
        row,
        2
    )),
    table!(
        "device_lists",
        DeviceList,
        "coalesce(phash, ''), user",
        "coalesce(length(phash), 0)",
        replace!("device_lists", "phash", text),
        |row| carried(Record::DeviceList, row, 1)
    ),
    table!(
        "group_metadata",
        GroupMetadata,
        "info, group_jid",
        "length(info)",
        replace!("group_metadata", "info", blob),
        |row| { keyed(Record::GroupMetadata, row, 1) }
    ),
    table!(
        "tc_tokens",
        TcToken,
        "token, jid, token_timestamp, sender_timestamp",
        "length(token)",
        replace!("tc_tokens", "token", blob),
        |row| keyed(Record::TcToken, row, 1)
    ),
    table!(
        "sent_messages",
        SentMessage,
        "payload, chat_jid, message_id, created_at",
        "length(payload)",
        replace!("sent_messages", "payload", blob),
        |row| keyed(Record::SentMessage, row, 2)
    ),
    table!(
        "pending_inbound",
        PendingInbound,
        "message, chat, sender, id, inserted_at",
        "length(message)",
        replace!("pending_inbound", "message", blob),
        |row| keyed(Record::PendingInbound, row, 3)
    ),
    table!("message_secrets", MessageSecret, "secret, chat, sender, msg_id", "length(secret)", None, |row| {
        keyed(Record::MessageSecret, row, 3)
    }),
    table!(
        "devices",
        Device,
        "coalesce(edge_routing_info, x'')",
        "length(record)",
        // It is its own index.
        None,
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

    pub(super) fn size(&self, connection: &Connection) -> Result<TableSize> {
        let counted = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        let (rows, bytes) = connection.first(self.size, (), counted)?.unwrap_or_default();
        Ok(TableSize { name: self.name, rows: rows.unsigned_abs(), bytes: bytes.unsigned_abs() })
    }
}

/// A text or a blob, whatever is in it.
pub(super) fn bytes(row: &Row<'_>, column: usize) -> Result<Vec<u8>> {
    let value = row.get_ref(column)?;
    value.as_bytes().map(<[u8]>::to_vec).map_err(|_| Error::Malformed { record: Record::Store })
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
