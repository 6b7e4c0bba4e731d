//! Which columns of each kind of record are sealed, blinded or readable.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use rusqlite::types::Value;
use wacore::store::cache::CacheStore;
use wacore::store::traits::{Backend, MsgSecretEntry};

use super::at_rest::files;
use super::{Sqlite, encrypted};
use crate::encrypt::HeaderCopy;
use crate::encrypt::carrier::join_carrier;
use crate::encrypt::format::envelope::Prefix;
use crate::encrypt::format::keys::LookupKeys;
use crate::encrypt::format::kind::Kind;
use crate::encrypt::format::token::Domain;
use crate::method::{Method, Record};
use crate::rows::encoding::decode_text;
use crate::testing::canaries;
use crate::testing::memory_cache::MemoryCache;
use crate::upstream::schema::TABLES;

/// The listing in `docs/threat-model.md` matches the database of a full store.
#[tokio::test]
async fn the_published_listing_is_what_is_stored() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/threat-model.md");
    let text = std::fs::read_to_string(path).unwrap();
    let table: Vec<&str> = text
        .lines()
        .skip_while(|line| *line != "| record | sealed | blinded | readable |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert_eq!(table.join("\n"), derive_listing().await.join("\n"));
}

/// The class of a stored value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// The same in every store.
    Constant,
    /// An envelope, or a part of one.
    Sealed,
    /// The block of a message secret.
    Block,
    /// The output of a keyed function over names.
    Blinded,
    /// Anything else.
    Readable,
}

/// One row per kind of record, from the raw columns of the database: each column is sealed, blinded or readable, unless
/// it is the same in every store. A column counts as readable if it is neither an envelope nor a keyed function of a
/// used name.
async fn derive_listing() -> Vec<String> {
    let sqlite = Sqlite::new().await;
    let (vault, backend) = encrypted(&sqlite.store).await;
    canaries::fill(&*backend).await;
    // In `fill`, "never" wins over the deadline.
    let secret = MsgSecretEntry { msg_id: OTHER_MESSAGE.into(), ..canaries::message_secret() };
    backend.put_msg_secrets(vec![secret]).await.unwrap();
    let database = sqlite.folder.path().join("wa.db");
    let state = vault.shared().state();
    let keyed = keyed_functions(&state.cipher.ring.lookup);
    let blocks = [canaries::MESSAGE_ID, canaries::SECOND_MESSAGE_ID, OTHER_MESSAGE].map(|id| {
        let block = state.cipher.ring.lookup.block(canaries::CHAT, canaries::SENDER, id).unwrap();
        block.encrypt(&canaries::MESSAGE_SECRET).to_vec()
    });
    let classify = |record: Record, value: &Value| {
        let bytes = match value {
            Value::Null | Value::Integer(0) => return Class::Constant,
            Value::Integer(_) | Value::Real(_) => return Class::Readable,
            Value::Text(text) => text.as_bytes(),
            Value::Blob(bytes) => bytes,
        };
        let text = String::from_utf8_lossy(bytes);
        let kind = Kind::of(record).unwrap();
        if Prefix::read(kind, bytes).is_ok()
            || decode_text(record, &text).is_ok_and(|value| Prefix::read(kind, &value).is_ok())
        {
            Class::Sealed
        } else if blocks.iter().any(|block| block == bytes) {
            Class::Block
        } else if keyed.contains(bytes) || text.split('@').all(|half| keyed.contains(half.as_bytes())) {
            Class::Blinded
        } else if matches!(&*text, "" | "x" | "[]") || bytes.iter().all(|byte| *byte == 0) {
            Class::Constant
        } else {
            Class::Readable
        }
    };

    let mut rows = Vec::new();
    // Upstream's tables. Encryption puts identities among the sessions.
    let mut tables =
        TABLES.map(|(record, table)| (record, if record == Record::Identity { "sessions" } else { table }));
    tables.swap(0, 1);
    for (record, table) in tables {
        let mut classes: Vec<(String, Class)> = Vec::new();
        let mut note = |column: &str, class: Class| match classes.iter_mut().find(|(known, _)| known == column) {
            Some((_, known)) => *known = class.max(*known),
            None => classes.push((column.to_owned(), class)),
        };
        let mut stored = raw_rows(&database, table);
        if table == "sessions" {
            stored.retain(|row| row.iter().any(|(_, value)| classify(record, value) == Class::Sealed));
        }
        stored.retain(|row| !row.iter().any(|(_, value)| is_header_address(value)));
        assert!(!stored.is_empty(), "{record}");
        if record == Record::Device {
            // Values that do not change with the device belong to the decoy.
            backend.save(&wacore::store::Device::new()).await.unwrap();
            let other = raw_rows(&database, table);
            for (column, value) in stored.remove(0) {
                let same = other[0].iter().any(|(name, other)| *name == column && *other == value);
                note(&column, if same { Class::Constant } else { classify(record, &value) });
            }
        }
        for row in stored {
            for (column, value) in unpack(&*sqlite.store, record, row).await {
                // A sync key's envelope is split over two fields.
                let class = match (record, &value) {
                    (Record::SyncKey, Value::Blob(part)) if column != "key_id" => {
                        let key = sqlite.store.get_sync_key(&SYNC_KEY_ID).await.unwrap().unwrap();
                        assert!(part == &key.key_data || part == &key.fingerprint);
                        classify(record, &Value::Blob(join_carrier(key)))
                    }
                    _ => classify(record, &value),
                };
                note(&column, class);
            }
        }
        let columns = |wanted: &[Class]| {
            let names = classes.iter().filter(|(_, class)| wanted.contains(class)).map(|(name, class)| match class {
                Class::Block => format!("{name} (not authenticated)"),
                _ => name.clone(),
            });
            Some(names.collect::<Vec<_>>().join(", ")).filter(|names| !names.is_empty()).unwrap_or("–".to_owned())
        };
        let (sealed, blinded) = (columns(&[Class::Sealed, Class::Block]), columns(&[Class::Blinded]));
        rows.push(format!("| {record} | {sealed} | {blinded} | {} |", columns(&[Class::Readable])));
    }

    // `<database>.snapshot-<time>-<name>`, and the same with `.json`, which holds the extra content.
    canaries::call(&*backend, Method::SnapshotDb).await.unwrap();
    let files = files(sqlite.folder.path());
    let (name, content) = files.iter().find(|(name, _)| name.ends_with(".json")).unwrap();
    let parts: Vec<&str> = name.strip_prefix("wa.db.snapshot-").unwrap().splitn(2, '-').collect();
    assert!(parts[0].parse::<u64>().unwrap() > 1_700_000_000, "the time is readable");
    assert!(keyed.contains(parts[1].strip_suffix(".json").unwrap().as_bytes()), "the name is blinded");
    assert!(Prefix::read(Kind::SnapshotExtra, content).is_ok(), "the content is sealed");
    rows.push(format!("| {} | content | name | time |", Record::SnapshotExtra));

    let cache = Arc::new(MemoryCache::default());
    let an_hour = Some(std::time::Duration::from_secs(3600));
    vault.cache_store(cache.clone()).set("group", canaries::GROUP, b"{}", an_hour).await.unwrap();
    for ((namespace, key), value) in &*cache.entries.lock().unwrap() {
        let lookup = &state.cipher.ring.lookup;
        assert_eq!(**namespace, *lookup.cache_namespace("group").unwrap(), "the namespace is blinded");
        assert_eq!(**key, *lookup.cache_key("group", canaries::GROUP).unwrap(), "the key is blinded");
        assert!(Prefix::read(Kind::CacheEntry, value).is_ok(), "the value is sealed");
    }
    rows.push(format!("| {} | value | namespace, key | time of expiry |", Record::CacheEntry));
    assert_eq!(rows.len(), Kind::ALL.len(), "every kind of record");
    rows
}

const OTHER_MESSAGE: &str = "3EB0CA11AB1E5EED0002";
const SYNC_KEY_ID: [u8; 6] = [0, 1, 0, 0, 0, 2];

/// All rows of a table, with their column names, without the number of the account.
fn raw_rows(database: &Path, table: &str) -> Vec<Vec<(String, Value)>> {
    let connection = rusqlite::Connection::open(database).unwrap();
    let mut statement = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
    let names: Vec<String> = statement.column_names().into_iter().map(str::to_owned).collect();
    let account = if table == "device" { "id" } else { "device_id" };
    let rows = statement.query_map([], |row| {
        let columns = names.iter().enumerate().filter(|(_, name)| *name != account);
        columns.map(|(at, name)| Ok((name.clone(), row.get(at)?))).collect()
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn is_header_address(value: &Value) -> bool {
    matches!(value, Value::Text(text) if [HeaderCopy::A, HeaderCopy::B].map(HeaderCopy::address).contains(&text.as_str()))
}

/// Two columns of upstream's schema hold several fields in a protobuf; these fields take their place.
async fn unpack(store: &dyn Backend, record: Record, row: Vec<(String, Value)>) -> Vec<(String, Value)> {
    let mut fields = Vec::new();
    let mut push = |name: &str, value| fields.push((name.to_owned(), value));
    match record {
        Record::SyncKey => {
            let key = store.get_sync_key(&SYNC_KEY_ID).await.unwrap().unwrap();
            push("key_id", Value::Blob(SYNC_KEY_ID.to_vec()));
            push("key_data", Value::Blob(key.key_data));
            push("fingerprint", Value::Blob(key.fingerprint));
            push("timestamp", Value::Integer(key.timestamp));
        }
        Record::CollectionVersion => {
            let Value::Text(name) = row[0].1.clone() else { panic!("{row:?}") };
            let state = store.get_version(&name).await.unwrap();
            push("name", Value::Text(name));
            push("version", Value::Integer(i64::try_from(state.version).unwrap()));
            push("hash", Value::Blob(state.hash.to_vec()));
            push("mac_mismatch_fatal", Value::Integer(i64::from(state.mac_mismatch_fatal)));
            for value in state.index_value_map.into_values() {
                push("index_value_map", Value::Blob(value));
            }
        }
        _ => return row,
    }
    fields
}

/// Every output of the keyed functions over the names that were used, up to three at a time, in every domain.
fn keyed_functions(lookup: &LookupKeys) -> HashSet<Vec<u8>> {
    use Domain::*;

    let domains = [
        User,
        SessionAddress,
        IdentityAddress,
        BareSessionAddress,
        SenderKey,
        Collection,
        MutationIndex,
        Group,
        Lid,
        PhoneNumber,
        BaseKeyRow,
        BaseKeyValue,
        DeviceListUser,
        GroupMetadata,
        SentMessage,
        PendingInbound,
        MessageSecret,
        SnapshotName,
        BareIdentityAddress,
    ];
    let names: Vec<&[u8]> = [
        canaries::PHONE,
        canaries::LID,
        canaries::SESSION_ADDRESS,
        canaries::IDENTITY_ADDRESS,
        "15550109922",
        canaries::SENDER_KEY_ADDRESS,
        canaries::GROUP,
        canaries::COLLECTION,
        canaries::CHAT,
        canaries::SENDER,
        canaries::MESSAGE_ID,
        OTHER_MESSAGE,
        "2",
        canaries::SNAPSHOT_NAME,
    ]
    .map(str::as_bytes)
    .into_iter()
    .chain([&canaries::INDEX_MAC[..], &canaries::BASE_KEY])
    .collect();
    let mut outputs = HashSet::new();
    let mut add = |parts: &[&[u8]]| {
        for domain in domains {
            let index = lookup.token_bytes(Record::Session, domain, parts).unwrap();
            let token = data_encoding::BASE32_NOPAD.encode(&index[..15]).to_lowercase();
            outputs.extend([index.to_vec(), token.into_bytes()]);
        }
    };
    for first in &names {
        add(&[first]);
        for second in &names {
            add(&[first, second]);
            for third in &names {
                add(&[first, second, third]);
            }
        }
    }
    for (domain, jid) in [(DeviceJid, canaries::DEVICE_JID), (TcTokenJid, canaries::TC_JID)] {
        outputs.insert(lookup.encrypt_name(Record::TcToken, domain, jid).unwrap().into_bytes());
    }
    outputs
}
