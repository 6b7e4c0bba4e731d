//! The tables and the content of their rows.
//!
//! Every own store has these tables. Each key begins with the account.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::encoding::{CARRIER, KEY_DATA_BYTES, decode_map, decode_text, encode_map, encode_text};
use crate::error::{Error, Result};
use crate::method::Record;

/// A row of a store under a vault: its key columns as the traits name them, and the sealed value.
pub(crate) struct SealedRow {
    /// The record of the table. Under a vault, identities are stored among the sessions.
    pub(crate) record: Record,
    pub(crate) columns: Vec<Vec<u8>>,
    pub(crate) value: Vec<u8>,
    /// Columns in the clear with which the store computes.
    pub(crate) numbers: Vec<Option<i64>>,
}

impl SealedRow {
    /// A hash of the whole row. It shows later whether the row has changed.
    pub(crate) fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in self.columns.iter().chain([&self.value]) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        for number in &self.numbers {
            hash.update([u8::from(number.is_some())]);
            hash.update(number.unwrap_or(0).to_le_bytes());
        }
        hash.finalize().into()
    }
}

/// A table of an own store.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// Where it stands in [`TABLES`].
    pub(crate) position: usize,
    /// The kind of its rows.
    pub(crate) record: Record,
    /// The columns that identify a row within an account, in the order of the primary key. For a LID mapping the first
    /// column alone is unique: a LID has one phone number.
    pub(crate) key: &'static [Column],
    pub(crate) carrier: Carrier,
    /// Columns in the clear with which the store computes.
    pub(crate) numbers: &'static [&'static str],
    /// The columns that a vault leaves empty, or fills with the same for every row.
    pub(crate) others: &'static [(&'static str, StoredKind)],
    /// `true` if a data key seals the values. Such values are sealed again under a new data key.
    pub(crate) is_sealed: bool,
}

/// A column of a key.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: ColumnKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ColumnKind {
    Text,
    Bytes,
    /// An unsigned number of 32 bits.
    Number,
}

/// The type of a column in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoredKind {
    Text,
    Bytes,
    Integer,
    Flag,
}

/// A value as the store holds it. Texts are bytes, and flags are 0 or 1.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum StoredValue {
    Null,
    Integer(i64),
    Bytes(Vec<u8>),
}

/// A whole row, without its account: the values of [`Table::stored_columns`].
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct WholeRow {
    pub(crate) values: Vec<StoredValue>,
    /// Which of several LID mappings of the same time was put last. Its size means nothing to another store.
    pub(crate) put_order: i64,
}

/// The length of the first bytes of a sealed value. They name its data key and its generation of the header.
pub(crate) const PREFIX_BYTES: usize = 14;

/// The column that holds the value, and its form.
#[derive(Debug)]
pub(crate) enum Carrier {
    /// As it is.
    Bytes(&'static str),
    /// In base64.
    Text(&'static str),
    /// As the only entry of a map.
    Map(&'static str),
    /// The first 32 bytes in one column, the rest in another.
    Split(&'static str, &'static str),
    /// No value: the row is only its key.
    None,
}

impl Carrier {
    pub(crate) fn columns(&self) -> Vec<&'static str> {
        match *self {
            Self::Bytes(column) | Self::Text(column) | Self::Map(column) => vec![column],
            Self::Split(one, two) => vec![one, two],
            Self::None => vec![],
        }
    }
}

/// A part of a key as an engine reads it.
pub(crate) enum KeyPart {
    Bytes(Vec<u8>),
    Number(i64),
}

/// A row as an engine reads it: the columns of its key and of its carrier, and its numbers.
pub(crate) struct RawRow {
    pub(crate) key: Vec<KeyPart>,
    pub(crate) carrier: Vec<Vec<u8>>,
    pub(crate) numbers: Vec<Option<i64>>,
}

/// The size of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TableSize {
    /// The name of the table.
    #[serde(rename = "table")]
    pub name: &'static str,
    /// The number of its rows.
    pub rows: u64,
    /// The size of the content of its rows, in bytes.
    pub bytes: u64,
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: ColumnKind::Text }
}

const fn bytes(name: &'static str) -> Column {
    Column { name, kind: ColumnKind::Bytes }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: ColumnKind::Number }
}

impl Table {
    /// A table whose values a data key seals.
    const fn sealed(name: &'static str, record: Record, carrier: Carrier, key: &'static [Column]) -> Self {
        Self { name, position: 0, record, key, carrier, numbers: &[], others: &[], is_sealed: true }
    }

    /// A table whose values, if it has any, are under the lookup key.
    const fn blinded(name: &'static str, record: Record, carrier: Carrier, key: &'static [Column]) -> Self {
        Self { is_sealed: false, ..Self::sealed(name, record, carrier, key) }
    }

    const fn with_numbers(self, numbers: &'static [&'static str]) -> Self {
        Self { numbers, ..self }
    }

    const fn with_others(self, others: &'static [(&'static str, StoredKind)]) -> Self {
        Self { others, ..self }
    }
}

pub(crate) static TABLES: [Table; 18] = in_order([
    Table::blinded("identities", Record::Identity, Carrier::Bytes("key"), &[text("address")]),
    Table::sealed("sessions", Record::Session, Carrier::Bytes("record"), &[text("address")]),
    Table::sealed("prekeys", Record::Prekey, Carrier::Bytes("record"), &[number("id")]).with_numbers(&["uploaded"]),
    Table::sealed("signed_prekeys", Record::SignedPrekey, Carrier::Bytes("record"), &[number("id")]),
    Table::sealed("sender_keys", Record::SenderKey, Carrier::Bytes("record"), &[text("address")]),
    Table::sealed("sync_keys", Record::SyncKey, Carrier::Split("key_data", "fingerprint"), &[bytes("key_id")])
        .with_others(&[("timestamp", StoredKind::Integer)]),
    Table::sealed("collection_versions", Record::CollectionVersion, Carrier::Map("index_value_map"), &[text("name")])
        .with_others(&[
            ("version", StoredKind::Integer),
            ("hash", StoredKind::Bytes),
            ("mac_mismatch_fatal", StoredKind::Flag),
        ]),
    Table::sealed(
        "mutation_macs",
        Record::MutationMac,
        Carrier::Bytes("value_mac"),
        &[text("name"), bytes("index_mac")],
    )
    .with_numbers(&["version"]),
    Table::blinded(
        "sender_key_devices",
        Record::SenderKeyDevice,
        Carrier::None,
        &[text("group_jid"), text("device_jid")],
    )
    .with_others(&[("has_key", StoredKind::Flag)]),
    Table::sealed(
        "lid_mappings",
        Record::LidMapping,
        Carrier::Text("learning_source"),
        &[text("lid"), text("phone_number")],
    )
    .with_numbers(&["created_at", "updated_at"]),
    Table::blinded("base_keys", Record::BaseKey, Carrier::Bytes("base_key"), &[text("address"), text("message_id")])
        .with_others(&[("created_at", StoredKind::Integer)]),
    Table::sealed("device_lists", Record::DeviceList, Carrier::Text("phash"), &[text("user")]).with_others(&[
        ("devices", StoredKind::Text),
        ("timestamp", StoredKind::Integer),
        ("raw_id", StoredKind::Integer),
    ]),
    Table::sealed("group_metadata", Record::GroupMetadata, Carrier::Bytes("info"), &[text("group_jid")]),
    Table::sealed("tc_tokens", Record::TcToken, Carrier::Bytes("token"), &[text("jid")])
        .with_numbers(&["token_timestamp", "sender_timestamp"]),
    Table::sealed(
        "sent_messages",
        Record::SentMessage,
        Carrier::Bytes("payload"),
        &[text("chat_jid"), text("message_id")],
    )
    .with_numbers(&["created_at"]),
    Table::sealed(
        "pending_inbound",
        Record::PendingInbound,
        Carrier::Bytes("message"),
        &[text("chat"), text("sender"), text("id")],
    )
    .with_numbers(&["inserted_at"]),
    Table::blinded(
        "message_secrets",
        Record::MessageSecret,
        Carrier::Bytes("secret"),
        &[text("chat"), text("sender"), text("msg_id")],
    )
    .with_others(&[("expires_at", StoredKind::Integer), ("message_ts", StoredKind::Integer)]),
    Table::sealed("devices", Record::Device, Carrier::Bytes("edge_routing_info"), &[])
        .with_others(&[("record", StoredKind::Bytes)]),
]);

/// Tells each table its position.
const fn in_order(mut tables: [Table; 18]) -> [Table; 18] {
    let mut position = 0;
    while position < tables.len() {
        tables[position].position = position;
        position += 1;
    }
    tables
}

/// The addresses of the two copies of a vault's header among the sender keys. Sender keys are the one kind of record
/// that every backend keeps opaque, unlisted and unpruned. Blinded addresses have 24 characters, so none can be equal.
pub(crate) const HEADER_ADDRESSES: [&str; 2] = ["wastorevaultheaderv1a", "wastorevaultheaderv1b"];

/// Among the sender keys as well: says that an account moved to another store, or is not complete yet.
pub(crate) const MARK_ADDRESS: &str = "wastoreaccountmark";
/// The addresses among the sender keys under which a store keeps what no client stored.
pub(crate) const OWN_ADDRESSES: [&str; 3] = [HEADER_ADDRESSES[0], HEADER_ADDRESSES[1], MARK_ADDRESS];

impl Table {
    /// All columns but the account: the key, the carrier, the numbers, the others.
    pub(crate) fn stored_columns(&self) -> Vec<(&'static str, StoredKind)> {
        let key = self.key.iter().map(|column| match column.kind {
            ColumnKind::Text => (column.name, StoredKind::Text),
            ColumnKind::Bytes => (column.name, StoredKind::Bytes),
            ColumnKind::Number => (column.name, StoredKind::Integer),
        });
        let carrier_kind = if matches!(self.carrier, Carrier::Text(_)) { StoredKind::Text } else { StoredKind::Bytes };
        let carrier = self.carrier.columns().into_iter().map(|column| (column, carrier_kind));
        let numbers = self.numbers.iter().map(|column| match *column {
            "uploaded" => ("uploaded", StoredKind::Flag),
            column => (column, StoredKind::Integer),
        });
        key.chain(carrier).chain(numbers).chain(self.others.iter().copied()).collect()
    }

    /// How many columns of the key are unique within an account: all, but a LID has one phone number.
    pub(crate) fn unique_columns(&self) -> usize {
        if self.record == Record::LidMapping { 1 } else { self.key.len() }
    }

    /// The places in [`Table::stored_columns`] of the columns in whose order rows are copied. The order of LID mappings
    /// says which of several was put last.
    pub(crate) fn copy_order(&self) -> Vec<usize> {
        if self.record != Record::LidMapping {
            return (0..self.key.len()).collect();
        }
        let columns = self.stored_columns();
        let place = |name| columns.iter().position(|(column, _)| *column == name);
        ["phone_number", "updated_at"].into_iter().filter_map(place).collect()
    }

    /// The row that an engine has read. `None` if it is a copy of the header, the account's mark, or a device that was
    /// never sealed.
    ///
    /// # Errors
    /// [`Error::Plaintext`], [`Error::Tampered`] and [`Error::Malformed`] about the row.
    pub(crate) fn stored(&self, raw: RawRow) -> Result<Option<SealedRow>> {
        let record = self.record;
        let tampered = || Error::Tampered { record };
        let columns = raw.key.into_iter().map(|part| match part {
            KeyPart::Bytes(bytes) => Ok(bytes),
            KeyPart::Number(number) => {
                u32::try_from(number).map(|number| number.to_le_bytes().to_vec()).map_err(|_| tampered())
            }
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let is_own = |column: &Vec<u8>| OWN_ADDRESSES.iter().any(|address| address.as_bytes() == column);
        match record {
            // Under a vault, identities are stored among the sessions.
            Record::Identity => return Err(Error::Plaintext { record }),
            Record::SenderKey if columns.iter().any(is_own) => return Ok(None),
            _ => {}
        }
        let value = self.value(raw.carrier)?;
        // A store creates such a device before the first one is sealed.
        if record == Record::Device && value.is_empty() {
            return Ok(None);
        }
        Ok(Some(SealedRow { record, columns, value, numbers: raw.numbers }))
    }

    fn value(&self, columns: Vec<Vec<u8>>) -> Result<Vec<u8>> {
        let record = self.record;
        let mut columns = columns.into_iter();
        let first = columns.next().unwrap_or_default();
        match self.carrier {
            Carrier::Bytes(_) => Ok(first),
            Carrier::None => Ok(Vec::new()),
            Carrier::Text(_) => {
                let text = std::str::from_utf8(&first).map_err(|_| Error::Tampered { record })?;
                decode_text(record, text)
            }
            Carrier::Map(_) => decode_map(&first)?.remove(CARRIER).ok_or(Error::Plaintext { record }),
            Carrier::Split(..) => Ok([first, columns.next().unwrap_or_default()].concat()),
        }
    }

    /// The first bytes of a sealed value, from those of its carrier, or from the whole map.
    pub(crate) fn prefix(&self, front: &[u8]) -> Option<[u8; PREFIX_BYTES]> {
        match self.carrier {
            Carrier::Bytes(_) | Carrier::Split(..) => front.first_chunk().copied(),
            Carrier::Text(_) => decode_text(self.record, std::str::from_utf8(front).ok()?).ok()?.first_chunk().copied(),
            Carrier::Map(_) => decode_map(front).ok()?.get(CARRIER)?.first_chunk().copied(),
            Carrier::None => None,
        }
    }

    /// The number of content bytes of a row, in SQL.
    pub(crate) fn content_length(&self) -> String {
        match self.record {
            Record::Device => "length(record)".to_owned(),
            Record::DeviceList => "coalesce(length(phash), 0)".to_owned(),
            Record::SenderKeyDevice => "length(device_jid)".to_owned(),
            _ => {
                let lengths = self.carrier.columns().into_iter().map(|column| format!("length({column})"));
                lengths.collect::<Vec<_>>().join(" + ")
            }
        }
    }

    /// The content of the carrier's columns for a value.
    ///
    /// # Errors
    /// [`Error::Encode`] if the value is too long for a map.
    pub(crate) fn carry(&self, mut value: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        Ok(match self.carrier {
            Carrier::Bytes(_) => vec![value],
            Carrier::None => vec![],
            Carrier::Text(_) => vec![encode_text(&value).into_bytes()],
            Carrier::Map(_) => vec![encode_map(&[(CARRIER.to_owned(), value)].into())?],
            Carrier::Split(..) => {
                let rest = value.split_off(KEY_DATA_BYTES.min(value.len()));
                vec![value, rest]
            }
        })
    }

    /// `true` if the row exists before its value does, such as a token to come.
    pub(crate) fn is_placeholder(&self, value: &[u8]) -> bool {
        self.record == Record::TcToken && value.is_empty()
    }
}
