//! Reading the rows of every table as they lie there, for checking, exporting and sealing anew.

use std::collections::HashMap;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Params, Row, ffi};

use super::SqliteStore;
use super::connection::{Statements, Stored, patiently, permitted};
use super::database::Database;
use super::open_files::OpenFile;
use super::verify::TableSize;
use crate::background;
use crate::encrypt::HeaderCopy;
use crate::encrypt::sealed_row::{CARRIER, StoredRow, decode_text, encode_text, session_or_identity};
use crate::error::{Error, Result};
use crate::method::Record;

/// How many rows are read at a time at most, and how many bytes, roughly.
const PAGE_ROWS: i64 = 500;
const PAGE_BYTES: usize = 2 << 20;

/// How the rows of a table are read as they lie there, and how a sealed value is replaced.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// What its rows are.
    pub(super) record: Record,
    /// The columns that `read` wants.
    columns: &'static str,
    /// The columns that order its rows within an account.
    key: &'static str,
    pub(super) has_row_ids: bool,
    /// The first page of an account, and the one that begins at or behind a position. A row is its id, or nothing if there is
    /// none, and then the columns.
    first: &'static str,
    next: &'static str,
    /// How many rows all accounts have, and how many bytes.
    size: &'static str,
    /// How many rows an account has: as its rows are found, in the table from end to end, and in the index of its key.
    count: &'static str,
    scan: &'static str,
    index: Option<&'static str>,
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
    /// The part of the column that begins with the first bytes of the envelope, and how they are read from it.
    prefix: (&'static str, ReadPrefix),
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

fn blob_prefix(value: &[u8]) -> Option<[u8; PREFIX_BYTES]> {
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

/// What a row of a query is: its id, or its place in the order of the keys from 1, and the stored row or what is wrong with
/// it.
pub(crate) type Found = (i64, Result<Option<StoredRow>>);

/// The rows of an account in a table, a page at a time. Rows that are there from the first page to the last are all seen,
/// whatever else is stored and deleted meanwhile. A row that cannot be read is damaged, and the rows behind it are seen.
pub(crate) struct Pages {
    table: &'static Table,
    /// From where the next page begins; `None` after the last one.
    next: Option<Position>,
    limit: i64,
    seen: i64,
    has_damage: bool,
}

/// Where a page begins in its table.
#[derive(Clone)]
enum Position {
    First,
    /// At the first row with this id or a higher one.
    RowId(i64),
    /// Behind the row with these key columns, whatever is in them.
    Behind([Stored; 2]),
}

/// A page that was read.
struct Page {
    rows: Vec<Found>,
    next: Option<Position>,
}

impl Pages {
    pub(crate) fn of(table: &'static Table) -> Self {
        Self { table, next: Some(Position::First), limit: PAGE_ROWS / 10, seen: 0, has_damage: false }
    }

    /// How many rows were seen so far, damaged ones included.
    #[cfg(test)]
    pub(super) fn seen(&self) -> u64 {
        self.seen.unsigned_abs()
    }

    /// The next page; `None` after the last one.
    #[cfg(test)]
    pub(super) async fn next(&mut self, store: &SqliteStore) -> Result<Option<Vec<Found>>> {
        self.next_then(store, |rows| rows).await
    }

    /// What `then` makes of the next page, on the thread that reads it; `None` after the last one. Each page is from a moment
    /// of its own.
    ///
    /// # Errors
    /// [`Error::Sqlite`], as damaged if the table cannot be read to its end.
    pub(super) async fn next_then<T: Send + 'static>(
        &mut self,
        store: &SqliteStore,
        mut then: impl FnMut(Vec<Found>) -> T + Send + 'static,
    ) -> Result<Option<T>> {
        let Some(from) = self.next.take() else { return Ok(None) };
        let (account, table, limit, seen) = (store.account, self.table, self.limit, self.seen);
        let read = move |c: &Connection| {
            let Page { rows, next } = table.page(c, account, &from, limit, seen)?;
            Ok((Measure::of(&rows), next, then(rows)))
        };
        let (measure, next, made) = store.database.read_long(read).await?;
        self.advance(&measure, next);
        Ok(Some(made))
    }

    fn advance(&mut self, measure: &Measure, next: Option<Position>) {
        self.seen += measure.rows as i64;
        self.has_damage |= measure.has_damage;
        self.next = next;
        let each = (measure.bytes / measure.rows.max(1)).max(1);
        self.limit = ((PAGE_BYTES / each) as i64).clamp(1, PAGE_ROWS);
    }
}

struct Measure {
    rows: usize,
    bytes: usize,
    has_damage: bool,
}

impl Measure {
    fn of(rows: &[Found]) -> Self {
        let bytes = rows.iter().filter_map(|(_, row)| Some(row.as_ref().ok()?.as_ref()?.value.len())).sum();
        Self { rows: rows.len(), bytes, has_damage: rows.iter().any(|(_, row)| row.is_err()) }
    }
}

impl Table {
    /// Reads a page. If it cannot be read as a whole, row by row.
    fn page(&self, c: &Connection, account: i32, from: &Position, limit: i64, seen: i64) -> Result<Page> {
        let (mut rows, mut next) = (vec![], Some(from.clone()));
        let found = |row: &Row<'_>| {
            let position = self.position(row)?;
            if !next.as_ref().is_some_and(|next| position.follows(next)) {
                return Err(out_of_order());
            }
            let id = if let Position::RowId(id) = position { id } else { seen + 1 + rows.len() as i64 };
            rows.push((id, self.stored(row)));
            next = position.after();
            Ok(())
        };
        let read = match from {
            Position::First => c.all(self.first, (account, limit), found),
            Position::RowId(from) => c.all(self.next, (account, limit, from), found),
            Position::Behind([one, two]) if one.is_bytes() && two.is_bytes() => {
                c.all(self.next, (account, limit, one, two), found)
            }
            Position::Behind([one, two]) => all(c, &self.behind(self.columns), (account, limit, one, two), found),
        };
        match read {
            Ok(_) => {
                let next = next.filter(|_| rows.len() as i64 == limit);
                Ok(Page { rows, next })
            }
            Err(error) if error.is_damaged_database() && self.has_row_ids => self.row_by_row(c, account, from, limit),
            Err(error) if error.is_damaged_database() => self.key_by_key(c, account, from, limit, seen),
            Err(error) => Err(error),
        }
    }

    /// Reads a page that has rows on it that cannot be read, and fails only if not even the first of them can be named.
    fn row_by_row(&self, c: &Connection, account: i32, from: &Position, limit: i64) -> Result<Page> {
        let first = if let Position::RowId(id) = from { *id } else { i64::MIN };
        let mut ids: Vec<i64> = vec![];
        let read = all(c, &self.ids(), (first, limit), |row| {
            let id = row.get(0)?;
            if id < first || ids.last().is_some_and(|last| id <= *last) {
                return Err(out_of_order());
            }
            ids.push(id);
            Ok(())
        });
        match read {
            Err(error) if ids.is_empty() || !error.is_damaged_database() => return Err(error),
            _ => {}
        }
        let is_last = read.is_ok() && (ids.len() as i64) < limit;
        let next = ids.last().and_then(|last| Position::RowId(*last).after()).filter(|_| !is_last);
        let one = self.one();
        let mut rows = vec![];
        for id in ids {
            match all(c, &one, (id, account), |row| Ok(self.stored(row))) {
                Ok(found) => rows.extend(found.into_iter().map(|row| (id, row))),
                // Of which account it is may not be known: it is one that is damaged, for all of them.
                Err(error) if error.is_damaged_database() => rows.push((id, Err(self.damaged()))),
                Err(error) => return Err(error),
            }
        }
        Ok(Page { rows, next })
    }

    /// The same for a table without row ids.
    fn key_by_key(&self, c: &Connection, account: i32, from: &Position, limit: i64, seen: i64) -> Result<Page> {
        let only_keys = format!("x'', {}", self.key);
        let (mut rows, mut next) = (vec![], Some(from.clone()));
        while let Some(from) = next.take() {
            if rows.len() as i64 == limit {
                next = Some(from);
                break;
            }
            let one = |columns: &str| -> Result<Option<(Position, Result<Option<StoredRow>>)>> {
                let found = |row: &Row<'_>| {
                    let position = self.position(row)?;
                    if position.follows(&from) { Ok((position, self.stored(row))) } else { Err(out_of_order()) }
                };
                let found = match &from {
                    Position::Behind([one, two]) => all(c, &self.behind(columns), (account, 1, one, two), found),
                    _ => all(c, &self.begin(columns), (account, 1), found),
                };
                Ok(found?.pop())
            };
            let read = match one(self.columns) {
                Err(error) if error.is_damaged_database() => {
                    one(&only_keys).map(|found| found.map(|(position, _)| (position, Err(self.damaged()))))
                }
                read => read,
            };
            match read {
                Ok(Some((position, row))) => {
                    rows.push((seen + 1 + rows.len() as i64, row));
                    next = position.after();
                }
                Ok(None) => {}
                Err(error) if error.is_damaged_database() && !rows.is_empty() => {
                    // The next page begins with it, and fails.
                    next = Some(from);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Page { rows, next })
    }

    /// Where a row is. Its id comes first, or its key columns behind the value.
    fn position(&self, row: &Row<'_>) -> rusqlite::Result<Position> {
        if self.has_row_ids {
            return row.get(0).map(Position::RowId);
        }
        Ok(Position::Behind([row.get_ref(2)?.into(), row.get_ref(3)?.into()]))
    }

    /// The row as it is stored. A value of another type or size than its column is given is damage of this row.
    fn stored(&self, row: &Row<'_>) -> Result<Option<StoredRow>> {
        (self.read)(row).map_err(|error| match error {
            Error::Store(_) | Error::Sqlite { .. } | Error::Malformed { .. } => self.damaged(),
            error => error,
        })
    }

    fn damaged(&self) -> Error {
        Error::Malformed { record: self.record }
    }

    /// The row with this id, if the account has it.
    pub(super) fn row_by_id(&self, c: &Connection, id: i64, account: i32) -> Result<Option<Result<Option<StoredRow>>>> {
        Ok(all(c, &self.one(), (id, account), |row| Ok(self.stored(row)))?.pop())
    }

    fn one(&self) -> String {
        format!("SELECT rowid, {} FROM {} WHERE rowid = ?1 AND +account = ?2", self.columns, self.name)
    }

    /// Row ids of all accounts, which are read without the rows.
    fn ids(&self) -> String {
        format!("SELECT rowid FROM {} NOT INDEXED WHERE rowid >= ?1 ORDER BY rowid LIMIT ?2", self.name)
    }

    /// The first rows of an account in a table without row ids.
    fn begin(&self, columns: &str) -> String {
        format!("SELECT NULL, {columns} FROM {} WHERE account = ?1 ORDER BY {} LIMIT ?2", self.name, self.key)
    }

    /// The rows behind two key columns of any type, in the order in which they lie. Without the types of the columns, to which
    /// SQLite would convert what it compares with them.
    fn behind(&self, columns: &str) -> String {
        let (one, two) = self.key.split_once(", ").unwrap_or((self.key, self.key));
        format!(
            "SELECT NULL, {columns} FROM {} WHERE account = ?1 AND (+{one} > ?3 OR (?3 IS NULL AND {one} IS NOT NULL)
            OR (+{one} IS ?3 AND (+{two} > ?4 OR (?4 IS NULL AND {two} IS NOT NULL)))) ORDER BY {} LIMIT ?2",
            self.name, self.key
        )
    }

    /// How many rows of account 1 a walk sees, with pages of a size.
    #[cfg(test)]
    pub(super) fn walk_all(&self, c: &Connection, limit: i64) -> Result<u64> {
        let (mut seen, mut next) = (0, Some(Position::First));
        while let Some(from) = next.take() {
            let page = self.page(c, 1, &from, limit, seen)?;
            seen += page.rows.len() as i64;
            next = page.next;
        }
        Ok(seen.unsigned_abs())
    }

    /// Compares, over all accounts, how many rows the table has with the entries of the index of its key.
    ///
    /// # Errors
    /// [`Error::RowsMissed`].
    pub(super) fn check_whole(&self, c: &Connection) -> Result<()> {
        let count = |sql: &str| -> Result<u64> {
            let sql = sql.replace("account = ?1", "account >= -9223372036854775808");
            let counted = all(c, &sql, (), |row| row.get::<_, i64>(0))?;
            Ok(counted.into_iter().next().unwrap_or(0).unsigned_abs())
        };
        let Some(index) = self.index else { return Ok(()) };
        let (seen, counted) = (count(self.scan)?, count(index)?);
        if seen != counted {
            return Err(Error::RowsMissed { table: self.name, seen, counted });
        }
        Ok(())
    }

    /// Compares how many rows of an account were seen with how many there are: in the table from end to end, and in the index
    /// of its key.
    ///
    /// # Errors
    /// [`Error::RowsMissed`].
    pub(super) fn check_count(&self, c: &Connection, account: i32, seen: u64) -> Result<()> {
        for sql in [Some(self.scan), self.index].into_iter().flatten() {
            let counted = c.first(sql, (account,), |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs();
            if counted != seen {
                return Err(Error::RowsMissed { table: self.name, seen, counted });
            }
        }
        Ok(())
    }
}

impl Position {
    /// From where the page behind this row begins; `None` if there can be none.
    fn after(self) -> Option<Self> {
        match self {
            Position::RowId(id) => id.checked_add(1).map(Position::RowId),
            position => Some(position),
        }
    }

    /// Whether a row may come after another one, or first on a page that begins here. Where rows lie in another order than
    /// their keys, a walk could go round in circles.
    fn follows(&self, before: &Self) -> bool {
        match (self, before) {
            (Position::RowId(id), Position::RowId(before)) => id >= before,
            (Position::Behind([one, two]), Position::Behind([before_one, before_two])) => {
                one.order(before_one).then_with(|| two.order(before_two)).is_gt()
            }
            _ => true,
        }
    }
}

/// What SQLite says of a damaged page.
fn out_of_order() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), None)
}

/// Every row of a query that is needed too seldom to be kept prepared.
fn all<T>(
    c: &Connection,
    sql: &str,
    params: impl Params,
    map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = permitted(|| c.prepare(sql))?;
    let rows = statement.query_map(params, map)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The database as it is at one moment, on a connection of its own, for reading every row of an account.
pub(crate) struct Snapshot {
    /// `None` while a thread reads with it. The connection is closed before the database, whose last one empties the log.
    connection: Option<(Connection, Arc<Database>, Option<Arc<OpenFile>>)>,
    account: i32,
}

impl Snapshot {
    /// # Errors
    /// [`Error::SchemaAltered`], [`Error::FileMoved`] and [`Error::Sqlite`].
    pub(crate) async fn open(store: &SqliteStore) -> Result<Self> {
        let (database, account) = (store.database.clone(), store.account);
        let mut patience = database.patience_of_readers();
        let open = move || {
            let pin = database.pin();
            Ok::<_, Error>((patiently(&mut patience, || database.open_snapshot())?, database, pin))
        };
        Ok(Self { connection: Some(background::unblock(open).await?), account })
    }

    /// The next page; `None` after the last one, when as many rows were seen as there are.
    ///
    /// # Errors
    /// [`Error::RowsMissed`] in the place of the last page, and [`Error::Sqlite`].
    pub(crate) async fn next(&mut self, pages: &mut Pages) -> Result<Option<Vec<Found>>> {
        self.next_then(pages, |rows| rows).await
    }

    /// What `then` makes of the next page, on the thread that reads it.
    ///
    /// # Errors
    /// As [`Snapshot::next`].
    pub(super) async fn next_then<T: Send + 'static>(
        &mut self,
        pages: &mut Pages,
        then: impl FnOnce(Vec<Found>) -> T + Send + 'static,
    ) -> Result<Option<T>> {
        let (account, table, limit, seen) = (self.account, pages.table, pages.limit, pages.seen);
        let Some(from) = pages.next.take() else {
            let has_damage = pages.has_damage;
            let check = move |c: &Connection| match table.check_count(c, account, seen.unsigned_abs()) {
                // The rows that cannot be counted are among those that were seen and are damaged.
                Err(error) if has_damage && error.is_damaged_database() => Ok(()),
                checked => checked,
            };
            return self.run(check).await.map(|()| None);
        };
        let read = move |c: &Connection| {
            let page = table.page(c, account, &from, limit, seen)?;
            Ok((Measure::of(&page.rows), page.next, then(page.rows)))
        };
        let (measure, next, made) = self.run(read).await?;
        pages.advance(&measure, next);
        Ok(Some(made))
    }

    /// How many rows the account has, all tables together.
    pub(crate) async fn count_rows(&mut self) -> Result<u64> {
        let account = self.account;
        self.run(move |c| count(c, account, |_| true)).await
    }

    /// Runs a query on a blocking thread.
    async fn run<T: Send + 'static>(
        &mut self,
        query: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = self.connection.take().ok_or(Error::Stopped)?;
        let run = move || {
            let result = query(&connection.0);
            (connection, result)
        };
        let (connection, result) = background::unblock(run).await;
        self.connection = Some(connection);
        result
    }
}

/// What a row says in the clear of the data key that its value is sealed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowPrefix {
    pub(crate) table: &'static str,
    /// The row id, or its place in the order of the keys from 1.
    pub(crate) row: i64,
    /// The first bytes of the sealed value; `None` if there are not as many, or it cannot be read.
    pub(crate) prefix: Option<[u8; PREFIX_BYTES]>,
}

/// How many rows of an account a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CountedRows {
    pub(crate) table: &'static str,
    pub(crate) rows: u64,
}

impl SqliteStore {
    /// Looks at the first bytes of every value of this account that a data key seals, at one moment, and gives how many rows
    /// each table has that has such values. Rows that hold none, as the copies of a vault header, are counted only.
    ///
    /// # Errors
    /// [`Error::RowsMissed`] if a table has rows that are not found in its order, or not in the index of its key, and
    /// [`Error::Sqlite`].
    pub(crate) async fn sealed_prefixes(
        &self,
        mut each: impl FnMut(RowPrefix) + Send + 'static,
    ) -> Result<Vec<CountedRows>> {
        let mut snapshot = Snapshot::open(self).await?;
        let account = self.account;
        let scan = move |c: &Connection| {
            let sealed = TABLES.iter().filter_map(|table| Some((table, table.replace.as_ref()?)));
            sealed.map(|(table, replace)| table.prefixes(c, account, replace, &mut each)).collect()
        };
        snapshot.run(scan).await
    }
}

impl Table {
    fn prefixes(
        &self,
        c: &Connection,
        account: i32,
        replace: &Replace,
        each: &mut impl FnMut(RowPrefix),
    ) -> Result<CountedRows> {
        let (column, decode) = replace.prefix;
        // What is not sealed: the copies of a header, a device before its first sealing, the place of a token to come.
        let absent = match self.record {
            Record::SenderKey => {
                let [a, b] = HeaderCopy::BOTH.map(HeaderCopy::address);
                format!("address IN ('{a}', '{b}')")
            }
            Record::Device | Record::TcToken => format!("coalesce(length({column}), 0) = 0"),
            _ => "0".to_owned(),
        };
        let (hint, order) = if self.has_row_ids { ("NOT INDEXED", "rowid") } else { ("", self.key) };
        let sql = format!(
            "SELECT {column}, {absent}{} FROM {} {hint} WHERE account = ?1 ORDER BY {order}",
            if self.has_row_ids { ", rowid" } else { "" },
            self.name
        );
        let (mut rows, mut has_damage) = (0, false);
        let read = all(c, &sql, (account,), |row| {
            rows += 1;
            if row.get_ref(1)? != ValueRef::Integer(1) {
                let row_id = if self.has_row_ids { row.get(2)? } else { rows };
                let prefix = row.get_ref(0)?.as_bytes().ok().and_then(decode);
                each(RowPrefix { table: self.name, row: row_id, prefix });
            }
            Ok(())
        });
        match read {
            Ok(_) => {}
            Err(error) if error.is_damaged_database() => {
                // The rest of it row by row, in the same order.
                let (told, mut next) = (rows, Some(Position::First));
                rows = 0;
                while let Some(from) = next.take() {
                    let page = self.page(c, account, &from, PAGE_ROWS, rows)?;
                    next = page.next;
                    for (row_id, found) in page.rows {
                        rows += 1;
                        has_damage |= found.is_err();
                        let prefix = match found {
                            _ if rows <= told => continue,
                            Ok(None) => continue,
                            Ok(Some(row)) if row.record == Record::TcToken && row.value.is_empty() => continue,
                            Ok(Some(row)) => blob_prefix(&row.value),
                            Err(_) => None,
                        };
                        each(RowPrefix { table: self.name, row: row_id, prefix });
                    }
                }
            }
            Err(error) => return Err(error),
        }
        match self.check_count(c, account, rows.unsigned_abs()) {
            Err(error) if has_damage && error.is_damaged_database() => {}
            checked => checked?,
        }
        Ok(CountedRows { table: self.name, rows: rows.unsigned_abs() })
    }
}

impl SqliteStore {
    /// How many rows this account has in some tables.
    pub(super) async fn count_rows(&self, which: fn(&Table) -> bool) -> Result<u64> {
        let account = self.account;
        self.database.read_long(move |c| count(c, account, which)).await
    }
}

fn count(c: &Connection, account: i32, which: fn(&Table) -> bool) -> Result<u64> {
    let mut total = 0;
    for table in TABLES.iter().filter(|table| which(table)) {
        total += c.first(table.count, (account,), |row| row.get::<_, i64>(0))?.unwrap_or(0).unsigned_abs();
    }
    Ok(total)
}

/// A text or a blob, whatever is in it.
fn bytes(row: &Row<'_>, column: usize) -> Result<Vec<u8>> {
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
