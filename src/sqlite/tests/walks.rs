//! Walks see every existing row, or report that they do not.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use wacore::store::traits::{Backend, DeviceStore, SignalStore};

use super::*;
use crate::encrypt::cipher::epoch_of;
use crate::encrypt::{Vault, VaultOptions};
use crate::maintenance::inspect;
use crate::maintenance::{Verify, VerifyReport};
use crate::rows::store::{RowPrefix, RowReader, Rows};
use crate::rows::table::TABLES;
use crate::secret::Key;
use crate::sqlite::tables::SqlTable;
use crate::sqlite::walk::Snapshot;
use crate::testing::canaries;
use crate::vault::OpenMode;
use crate::{Layer, Record};

/// The bytes of a sealed store with many rows, whose file is closed.
pub(super) struct Closed {
    pub(super) folder: TempDir,
    pub(super) path: PathBuf,
    pub(super) whole: Vec<u8>,
    /// Rows of account 1 in each table.
    pub(super) rows: BTreeMap<&'static str, u64>,
}

pub(super) fn key() -> Key {
    Key::from_bytes(&mut [7; 32])
}

impl Closed {
    pub(super) async fn new(sessions: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wa.db");
        let store = config().open(&path).await.unwrap();
        let inner: Arc<dyn Backend> = Arc::new(store.clone());
        let vault = VaultOptions::new().create(inner.clone(), key()).await.unwrap();
        let layered = vault.layer().layer(inner);
        canaries::fill(&*layered).await;
        let mut rng = StdRng::seed_from_u64(1);
        for number in 0..sessions {
            let length = if number % 20 == 0 { 20_000 } else { rng.random_range(1..3000) };
            layered.put_session(&address(number), &vec![number as u8; length]).await.unwrap();
        }
        let mac = |number: u32| wacore::appstate::processor::AppStateMutationMAC {
            index_mac: number.to_le_bytes().repeat(8),
            value_mac: vec![1; 32],
        };
        layered.put_mutation_macs("many", 1, &(0..sessions as u32).map(mac).collect::<Vec<_>>()).await.unwrap();
        drop((layered, vault));
        store.checkpoint().await.unwrap();
        drop(store);
        let rows = counts(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        Self { folder, path, whole, rows }
    }

    /// Restores the original bytes.
    pub(super) fn reset(&self) {
        for ending in ["", "-wal", "-shm", "-journal"] {
            std::fs::remove_file(format!("{}{ending}", self.path.display())).ok();
        }
        std::fs::write(&self.path, &self.whole).unwrap();
    }

    pub(super) async fn open(&self) -> crate::Result<(SqliteStore, Vault)> {
        let store = config().open(&self.path).await?;
        let vault = VaultOptions::new().mode(OpenMode::ReadOnly).open(Arc::new(store.clone()), key()).await?;
        Ok((store, vault))
    }

    async fn verify(&self) -> VerifyReport {
        let (store, vault) = self.open().await.unwrap();
        Verify::new().run(&store, &vault).await.unwrap()
    }
}

/// How many rows account 1 has in each table, as SQLite counts them from end to end.
pub(super) fn counts(path: &Path) -> rusqlite::Result<BTreeMap<&'static str, u64>> {
    let connection = Connection::open(path)?;
    let count = |table: &crate::rows::table::Table| {
        let sql = format!("SELECT count(*) FROM {} NOT INDEXED WHERE +account = 1", table.name);
        Ok((table.name, connection.query_row(&sql, (), |row| row.get::<_, i64>(0))? as u64))
    };
    TABLES.iter().map(count).collect()
}

/// Runs SQL on a table that takes values of any type in the meantime, and restores the schema.
pub(super) fn loosely(path: &Path, table: &str, sql: &str) -> rusqlite::Result<()> {
    let set = |schema: &str| {
        let connection = Connection::open(path)?;
        connection.execute_batch("PRAGMA writable_schema = ON")?;
        connection.execute("UPDATE sqlite_schema SET sql = ?1 WHERE name = ?2", (schema, table)).map(drop)
    };
    let original: String =
        Connection::open(path)?
            .query_row("SELECT sql FROM sqlite_schema WHERE name = ?1", (table,), |row| row.get(0))?;
    let mut loose = original.replace(") STRICT, WITHOUT", ") WITHOUT").replace(") STRICT", ")");
    for word in [" NOT NULL", " TEXT", " BLOB", " INTEGER"] {
        loose = loose.replace(word, "");
    }
    set(&loose)?;
    let connection = Connection::open(path)?;
    let done = connection.execute_batch(sql);
    drop(connection);
    set(&original)?;
    done
}

/// Runs SQL while SQLite does not know of an index, so that its entries do not change.
pub(super) fn without_index(path: &Path, index: &str, sql: &str) -> rusqlite::Result<()> {
    let connection = Connection::open(path)?;
    connection.execute_batch("PRAGMA writable_schema = ON")?;
    let columns = "type, name, tbl_name, rootpage, sql";
    connection.execute_batch(&format!(
        "CREATE TEMP TABLE saved AS SELECT {columns} FROM sqlite_schema WHERE name = '{index}';
        DELETE FROM sqlite_schema WHERE name = '{index}'; PRAGMA writable_schema = RESET"
    ))?;
    let done = connection.execute_batch(sql);
    connection.execute_batch(&format!(
        "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema ({columns}) SELECT {columns} FROM saved"
    ))?;
    done
}

/// Every row of every table, with the number of times it is seen.
async fn walk(store: &SqliteStore) -> crate::Result<BTreeMap<&'static str, (u64, u64)>> {
    let mut snapshot = Snapshot::open(store).await?;
    let mut seen = BTreeMap::new();
    for table in &TABLES {
        snapshot.begin(table);
        let mut rows = (0, 0);
        while let Some(page) = snapshot.next().await? {
            rows.0 += page.len() as u64;
            rows.1 += page.iter().filter(|(_, row)| row.is_err()).count() as u64;
        }
        seen.insert(table.name, rows);
    }
    Ok(seen)
}

#[tokio::test]
async fn every_row_is_seen_once() {
    let closed = Closed::new(300).await;
    let (store, _vault) = closed.open().await.unwrap();
    let seen = walk(&store).await.unwrap();
    let damaged: u64 = seen.values().map(|(_, damaged)| damaged).sum();
    assert_eq!(damaged, 0);
    assert_eq!(seen.into_iter().map(|(table, (rows, _))| (table, rows)).collect::<BTreeMap<_, _>>(), closed.rows);
    assert!(closed.rows["sessions"] > 300 && closed.rows["mutation_macs"] > 300);
}

/// Concurrent writes are not seen: the snapshot is of one moment.
#[tokio::test]
async fn a_snapshot_is_of_one_moment() {
    let closed = Closed::new(120).await;
    let (store, vault) = closed.open().await.unwrap();
    let mut snapshot = Snapshot::open(&store).await.unwrap();
    let table = TABLES.iter().find(|table| table.name == "sessions").unwrap();
    snapshot.begin(table);
    let mut seen = 0;
    while let Some(page) = snapshot.next().await.unwrap() {
        seen += page.len() as u64;
        store.delete_session(&address(0)).await.unwrap();
        for number in 0..50 {
            store.put_session(&format!("{seen} {number}"), b"x").await.unwrap();
        }
    }
    assert_eq!(seen, closed.rows["sessions"]);
    drop((snapshot, vault));
}

/// Wrong types in any column, and rows of accounts that are not numbers: each is damage of its row
/// only.
#[tokio::test]
async fn values_of_any_type_are_damage_of_their_rows() {
    let closed = Closed::new(70).await;
    let odd = ["5", "2.5", "'text'", "x'ff'", "NULL", "CAST(x'ff41' AS TEXT)"];
    let columns = [
        ("sessions", "record"),
        ("sessions", "address"),
        ("prekeys", "id"),
        ("prekeys", "uploaded"),
        ("prekeys", "record"),
        ("sender_keys", "address"),
        ("sync_keys", "key_id"),
        ("sync_keys", "fingerprint"),
        ("collection_versions", "index_value_map"),
        ("collection_versions", "name"),
        ("mutation_macs", "version"),
        ("mutation_macs", "value_mac"),
        ("lid_mappings", "learning_source"),
        ("lid_mappings", "created_at"),
        ("lid_mappings", "phone_number"),
        ("base_keys", "base_key"),
        ("base_keys", "message_id"),
        ("device_lists", "phash"),
        ("group_metadata", "info"),
        ("tc_tokens", "token"),
        ("tc_tokens", "token_timestamp"),
        ("sent_messages", "created_at"),
        ("sent_messages", "payload"),
        ("pending_inbound", "message"),
        ("message_secrets", "secret"),
        ("devices", "edge_routing_info"),
    ];
    for (number, (table, column)) in columns.iter().enumerate() {
        closed.reset();
        let value = odd[number % odd.len()];
        let last = if ["mutation_macs"].contains(table) {
            format!("{column} IS NOT NULL AND (name, index_mac) IN (SELECT name, index_mac FROM {table} LIMIT 1)")
        } else if *table == "sender_keys" {
            "address NOT LIKE 'wastore%'".to_owned()
        } else {
            format!("rowid = (SELECT rowid FROM {table} ORDER BY rowid LIMIT 1)")
        };
        loosely(&closed.path, table, &format!("UPDATE {table} SET {column} = {value} WHERE {last}")).unwrap();
        let (store, vault) = closed.open().await.unwrap();
        let report = Verify::new().run(&store, &vault).await.unwrap();
        assert!(!report.is_sound(), "{table}.{column} = {value}: {report}");
        let elsewhere = report.damaged_rows().iter().filter(|row| row.table != *table).count();
        assert_eq!(elsewhere, 0, "{table}.{column} = {value}: {report}");
        assert!(report.damaged_count() <= 1, "{table}.{column} = {value}: {report}");
        let seen = walk(&store).await.unwrap();
        assert_eq!(seen[table].0, closed.rows[table], "{table}.{column} = {value}");
    }
}

#[tokio::test]
async fn rows_of_accounts_that_are_no_numbers_stop_no_listing() {
    let closed = Closed::new(1).await;
    for (table, columns) in [("sessions", "address, record"), ("sender_keys", "address, record")] {
        for account in ["'x'", "99999999999", "-99999999999", "2.5", "x'00'", "NULL", "7"] {
            let sql = format!("INSERT INTO {table} (account, {columns}) VALUES ({account}, 'a', x'00')");
            loosely(&closed.path, table, &sql).unwrap();
        }
    }
    Connection::open(&closed.path)
        .unwrap()
        .execute_batch("INSERT INTO devices (account, record) VALUES (99999999999, x'00'), (8, x'00')")
        .unwrap();
    let (store, vault) = closed.open().await.unwrap();
    assert_eq!(store.accounts_in_use().await.unwrap(), [1, 7, 8]);
    assert_eq!(store.accounts().await.unwrap(), [1, 8]);
    assert_eq!(inspect(&store).await.unwrap().accounts.len(), 3);
    let report = Verify::new().run(&store, &vault).await.unwrap();
    assert!(!report.is_sound() && report.damaged_count() == 0, "{report}");
}

/// The keys of a table without row ids have any type, and more of each than a page holds.
#[test]
fn keys_of_any_type_do_not_stop_a_walk() {
    let c = Connection::open_in_memory().unwrap();
    c.execute_batch(
        "CREATE TABLE mutation_macs (account, name, index_mac, value_mac, version);
        CREATE INDEX key ON mutation_macs (account, name, index_mac)",
    )
    .unwrap();
    let kinds: [fn(usize) -> rusqlite::types::Value; 5] = [
        |_| rusqlite::types::Value::Null,
        |number| (number as i64 * 3).into(),
        |number| (number as f64 + 0.5).into(),
        |number| format!("{number}").into(),
        |number| vec![number as u8; number % 5].into(),
    ];
    let mut rows = std::collections::HashSet::new();
    for (one, first) in kinds.iter().enumerate() {
        for (two, second) in kinds.iter().enumerate() {
            for number in 0..70 {
                let (name, index) = (first(number % 7), second(number));
                if rows.insert(format!("{one} {two} {name:?} {index:?}")) {
                    c.execute("INSERT INTO mutation_macs VALUES (1, ?1, ?2, x'00', 1)", (name, index)).unwrap();
                }
            }
        }
    }
    let table = TABLES.iter().find(|table| table.name == "mutation_macs").unwrap();
    for limit in [1, 7, 50, 500] {
        assert_eq!(SqlTable::of(table).walk_all(&c, limit).unwrap(), rows.len() as u64, "{limit}");
    }
}

/// Rows without an entry in the index, and entries without a row.
#[tokio::test]
async fn a_table_that_does_not_fit_its_index_is_damage() {
    let closed = Closed::new(120).await;
    for (table, index, change) in [
        ("sessions", "sessions_key", "DELETE FROM sessions WHERE rowid % 3 = 0"),
        (
            "sessions",
            "sessions_key",
            "INSERT INTO sessions SELECT account, 'b' || address, record FROM sessions LIMIT 9",
        ),
        ("prekeys", "prekeys_key", "DELETE FROM prekeys"),
        ("sender_key_devices", "sender_key_devices_device", "DELETE FROM sender_key_devices"),
    ] {
        closed.reset();
        without_index(&closed.path, index, change).unwrap();
        let (store, vault) = closed.open().await.unwrap();
        let missed = |error: Error| {
            let Error::RowsMissed { table: named, seen, counted } = error else { panic!("{error:?}") };
            assert!(named == table && seen != counted, "{change}: {named} {seen} {counted}");
        };
        missed(walk(&store).await.unwrap_err());
        missed(store.backup(closed.folder.path().join("copy.db")).await.unwrap_err());
        assert!(!closed.folder.path().join("copy.db").exists());
        if table != "sender_key_devices" {
            missed(store.sealed_prefixes(Box::new(|_| {})).await.unwrap_err());
        }
        let report = Verify::new().run(&store, &vault).await.unwrap();
        assert!(!report.is_sound());
        assert!(
            report
                .damaged_rows()
                .iter()
                .any(|row| row.table == table && row.problem.contains("could be read, but it has")),
            "{report}"
        );
        #[cfg(feature = "import")]
        {
            let target = closed.folder.path().join("export.db");
            match crate::import::Export::new().run(&store, &vault, &target).await.unwrap_err() {
                // The copied rows are under names that are not theirs.
                Error::Tampered { .. } if change.starts_with("INSERT") => {}
                error => missed(error),
            }
            assert!(!target.exists());
        }
    }
}

/// A long value with a broken chain of pages: the row is named, and the others are read.
#[tokio::test]
async fn a_broken_chain_of_pages_is_damage_of_one_row() {
    let closed = Closed::new(120).await;
    // The last four bytes of the cell hold the first page of a chain. Sealed values begin with
    // their magic.
    let page = 8192;
    let mut broken = None;
    for number in 0..closed.whole.len() / page {
        let bytes = &closed.whole[number * page..][..page];
        let next = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
        // A page of a chain begins with the number of the next page; the last page has only the
        // rest of the value.
        if bytes[0] == 0
            && next > number + 1
            && next <= closed.whole.len() / page
            && bytes[4..].iter().filter(|byte| **byte == 0).count() < 100
        {
            broken = Some(number * page);
        }
    }
    let broken = broken.expect("no chain was found");
    for value in [0u32, 1, 0x7fff_ffff] {
        closed.reset();
        let mut file = closed.whole.clone();
        file[broken..broken + 4].copy_from_slice(&value.to_be_bytes());
        std::fs::write(&closed.path, &file).unwrap();
        let (store, vault) = closed.open().await.unwrap();
        let report = Verify::new().run(&store, &vault).await.unwrap();
        assert_eq!(report.damaged_count(), 1, "{report}");
        let [row] = report.damaged_rows() else { panic!("{report}") };
        assert!(row.table == "sessions" && row.row > 0, "{row:?}");
        let intact: u64 = report.checked(Record::Session) + report.checked(Record::Identity);
        assert_eq!(intact, closed.rows["sessions"] - 1, "{report}");
        let seen = walk(&store).await.unwrap();
        // Page 1 exists, and was read in its place.
        let unreadable = u64::from(value != 1);
        assert_eq!(seen["sessions"], (closed.rows["sessions"], unreadable));
        // The prefixes of the other rows are reported.
        let told = Arc::new(Mutex::new(vec![]));
        let teller = told.clone();
        store.sealed_prefixes(Box::new(move |prefix| teller.lock().unwrap().push(prefix))).await.unwrap();
        let told = told.lock().unwrap();
        let sessions: Vec<_> = told.iter().filter(|prefix| prefix.table == "sessions").collect();
        assert_eq!(sessions.len() as u64, closed.rows["sessions"]);
        assert_eq!(sessions.iter().filter(|prefix| prefix.prefix.is_none()).count() as u64, unreadable);
    }
    closed.reset();
    assert!(closed.verify().await.is_sound());
}

/// The prefixes match the values, and every row is counted.
#[tokio::test]
async fn prefixes_are_those_of_the_sealed_values() {
    let closed = Closed::new(130).await;
    let (store, _vault) = closed.open().await.unwrap();
    let told = Arc::new(Mutex::new(vec![]));
    let teller = told.clone();
    let counted =
        store.sealed_prefixes(Box::new(move |prefix: RowPrefix| teller.lock().unwrap().push(prefix))).await.unwrap();
    let told = std::mem::take(&mut *told.lock().unwrap());
    let mut expected = vec![];
    for table in TABLES.iter().filter(|table| table.is_sealed) {
        let mut rows = store.rows();
        rows.begin(table);
        while let Some(page) = rows.next().await.unwrap() {
            for (row, found) in page {
                let Some(found) = found.unwrap() else { continue };
                if found.value.is_empty() {
                    continue;
                }
                assert_eq!(epoch_of(&found), 1);
                expected.push((table.name, row, found.value[..14].to_vec()));
            }
        }
        assert!(counted.iter().any(|counted| counted.table == table.name && counted.rows == closed.rows[table.name]));
    }
    let told: Vec<_> = told.iter().map(|row| (row.table, row.row, row.prefix.unwrap().to_vec())).collect();
    assert_eq!(told, expected);
    assert_eq!(counted.len(), 14);
    assert!(
        store.account(2).sealed_prefixes(Box::new(|_| panic!())).await.unwrap().iter().all(|counted| counted.rows == 0)
    );
}

#[tokio::test]
async fn short_and_odd_values_have_no_prefix() {
    let closed = Closed::new(3).await;
    loosely(&closed.path, "sessions", "UPDATE sessions SET record = 5 WHERE rowid = 1").unwrap();
    for sql in [
        "UPDATE sessions SET record = x'e757' WHERE rowid = 2",
        "UPDATE lid_mappings SET learning_source = '51cB!'",
        "UPDATE collection_versions SET index_value_map = x'00'",
        "UPDATE mutation_macs SET value_mac = x''",
    ] {
        Connection::open(&closed.path).unwrap().execute_batch(sql).unwrap();
    }
    let (store, _vault) = closed.open().await.unwrap();
    let told = Arc::new(Mutex::new(BTreeMap::<&str, u64>::new()));
    let teller = told.clone();
    let each = move |row: RowPrefix| {
        *teller.lock().unwrap().entry(row.table).or_default() += u64::from(row.prefix.is_none());
    };
    store.sealed_prefixes(Box::new(each)).await.unwrap();
    let told = told.lock().unwrap();
    let expected = [("sessions", 2), ("lid_mappings", 1), ("collection_versions", 1)];
    assert!(expected.iter().all(|(table, count)| told[table] == *count), "{told:?}");
    assert_eq!(told["mutation_macs"], closed.rows["mutation_macs"]);
}

/// Measures the prefixes of a million rows, with the profile of tests.
#[tokio::test]
async fn many_prefixes_take_little_time() {
    let rows = if std::env::var_os("WASTORE_LONG").is_some() { 1_000_000 } else { 20_000 };
    let scratch = Scratch::new().await;
    let fill = format!(
        "INSERT INTO sessions (account, address, record) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
        WHERE i < {rows}) SELECT 1, printf('%08d', i), randomblob(400) FROM n"
    );
    Connection::open(&scratch.path).unwrap().execute_batch(&fill).unwrap();
    let start = std::time::Instant::now();
    let counted = scratch.store.sealed_prefixes(Box::new(|row| assert!(row.prefix.is_some()))).await.unwrap();
    println!("{rows} prefixes: {:?}", start.elapsed());
    assert!(counted.iter().any(|counted| counted.rows == rows));
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// Deleted and replaced values are nowhere in the files after a rewrite; some are before it.
#[tokio::test]
async fn a_rewrite_removes_what_lies_in_unused_parts_of_pages() {
    let scratch = Scratch::new().await;
    let store = &scratch.store;
    let mut rng = StdRng::seed_from_u64(5);
    let random = |rng: &mut StdRng, most: usize| -> Vec<u8> {
        let length = rng.random_range(60..most);
        (0..length).map(|_| rng.random()).collect()
    };
    let mut gone = vec![];
    for number in 0..1500 {
        let record = random(&mut rng, 3000);
        store.put_session(&address(number), &record).await.unwrap();
        gone.push(record);
    }
    for number in (0..1500).step_by(2) {
        store.delete_session(&address(number)).await.unwrap();
    }
    for number in (1..1500).step_by(2) {
        store.put_session(&address(number), &random(&mut rng, 3000)).await.unwrap();
    }
    store.checkpoint().await.unwrap();
    let search = || {
        let mut files = std::fs::read(&scratch.path).unwrap();
        files.extend(std::fs::read(scratch.path.with_extension("db-wal")).unwrap());
        // Any 20 bytes of a removed value, at every 20th place of the files.
        let mut places = std::collections::HashSet::new();
        for value in &gone {
            places.extend(value.windows(20));
        }
        files.windows(20).filter(|window| places.contains(window)).count()
    };
    assert!(search() > 0, "nothing was left to remove");
    let before: Vec<_> = {
        let mut kept = vec![];
        for number in 0..1500 {
            kept.push(store.get_session(&address(number)).await.unwrap());
        }
        kept
    };
    store.vacuum().await.unwrap();
    assert_eq!(search(), 0);
    assert_eq!(std::fs::metadata(scratch.path.with_extension("db-wal")).unwrap().len(), 0);
    for (number, kept) in before.iter().enumerate() {
        assert_eq!(store.get_session(&address(number)).await.unwrap(), *kept);
    }
    assert_eq!(store.integrity_check().await.unwrap(), [] as [String; 0]);
    store.put_session("after", b"x").await.unwrap();
    let scratch = scratch.reopen().await;
    assert!(scratch.store.has_session("after").await.unwrap());
}

/// While other connections read and write, and in memory.
#[tokio::test]
async fn a_rewrite_waits_for_writers_only() {
    let memory = SqliteStore::in_memory().await.unwrap();
    memory.put_session("a", b"1").await.unwrap();
    memory.vacuum().await.unwrap();
    assert!(memory.has_session("a").await.unwrap());

    let scratch = Scratch::new().await;
    let store = &scratch.store;
    canaries::fill(store).await;
    let work = async {
        for number in 0..300 {
            store.put_session(&address(number), &[7; 900]).await.unwrap();
            assert!(store.has_session(&address(number / 2)).await.unwrap());
        }
    };
    let rewrites = async {
        for _ in 0..5 {
            store.vacuum().await.unwrap();
        }
    };
    futures::future::join(work, rewrites).await;
    let look = |c: &Connection| Ok(c.pragma_query_value(None, "temp_store", |row| row.get::<_, i64>(0))?);
    assert_eq!(store.database.write(WritePlan::MAINTENANCE, look).await.unwrap(), 2);
    assert_eq!(store.integrity_check().await.unwrap(), [] as [String; 0]);
    assert!(store.exists().await.unwrap());
}

/// Deleting an account leaves none of its content in the log.
#[tokio::test]
async fn a_deleted_account_is_not_in_the_log() {
    let scratch = Scratch::new().await;
    canaries::fill(&scratch.store).await;
    let log = scratch.path.with_extension("db-wal");
    assert!(std::fs::metadata(&log).unwrap().len() > 0);
    scratch.store.delete_account().await.unwrap();
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    let file = std::fs::read(&scratch.path).unwrap();
    assert!(memchr::memmem::find(&file, canaries::SESSION).is_none());
}
