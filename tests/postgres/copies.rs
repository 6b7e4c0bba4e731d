//! Accounts move between files and servers: the rows are equal, the secrets stay, and never do both accounts open.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use tokio::sync::Notify;
use wacore::store::traits::{Backend, LidPnMappingEntry, SignalStore};
use wastore::maintenance::{OwnStore, StoreCopy, Verify, open_account, reclaim_account};
use wastore::{
    Error, Key, Passphrase, PostgresOptions, PostgresStore, SqliteOptions, SqliteStore, Vault, VaultOptions,
};

use super::common::{account, is_long, options};
use super::server::{Server, available, shared};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A schema that no other test has.
fn schema() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("copies_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn in_schema(schema: &str) -> PostgresOptions {
    options(&shared().url()).schema(schema)
}

async fn server_store(schema: &str) -> PostgresStore {
    in_schema(schema).open_without_lease(1).await.unwrap()
}

async fn file_store(path: &Path) -> SqliteStore {
    SqliteOptions::new().lease_when_writing().open(path).await.unwrap()
}

/// Every row of every table of a file, in the order of copies, without the leases.
pub(crate) fn rows_of_file(path: &Path) -> Vec<(String, Vec<Vec<Value>>)> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'leases' ORDER BY name";
    let names: Vec<String> =
        connection.prepare(names).unwrap().query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let rows = |name: &String| {
        // Of several LID mappings of one time, the order counts.
        let order = if name == "lid_mappings" { "account, phone_number, updated_at, rowid" } else { "1, 2, 3" };
        let sql = format!("SELECT * FROM {name} WHERE address_is_no_mark ORDER BY {order}");
        let filter = if name == "sender_keys" { "address <> 'wastoreaccountmark'" } else { "true" };
        let mut statement = connection.prepare(&sql.replace("address_is_no_mark", filter)).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..columns).map(|at| row.get(at)).collect::<Result<Vec<Value>, _>>();
        statement.query_map((), row).unwrap().map(Result::unwrap).collect::<Vec<_>>()
    };
    names.iter().map(|name| (name.clone(), rows(name))).collect()
}

async fn moved(error: impl Future<Output = wastore::Result<()>>) -> bool {
    matches!(error.await, Err(Error::AccountMoved { .. }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_stores_are_equal_after_a_round_trip() {
    if !available() {
        return;
    }
    for (name, is_encrypted) in [
        ("sqlite-schema-1.db", false),
        ("sqlite-schema-2.db", false),
        ("sqlite-schema-3.db", false),
        ("sqlite-schema-1-encrypted.db", true),
        ("sqlite-schema-2-encrypted.db", true),
        ("sqlite-schema-3-encrypted.db", true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old.db"), folder.path().join("new.db"));
        std::fs::copy(golden(name), &old).unwrap();
        let copy = || if is_encrypted { StoreCopy::new() } else { StoreCopy::new().plaintext() };
        let (from, schema) = (file_store(&old).await, schema());
        let server = server_store(&schema).await;
        if !is_encrypted {
            let refused = StoreCopy::new().run_all(&from, &server).await;
            assert!(matches!(refused, Err(Error::InvalidInput { .. })), "{refused:?}");
        }
        let reports = copy().run_all(&from, &server).await.unwrap();
        assert_eq!(reports.len(), if is_encrypted { 2 } else { 1 });
        assert!(reports.iter().all(|report| report.rows() > 10 && !report.is_source_kept()), "{reports:?}");
        from.close().await.unwrap();
        let opening = SqliteOptions::new().account(1).open(&old);
        assert!(moved(async { opening.await.map(drop) }).await, "{name}: the source opens");

        let back = file_store(&new).await;
        copy().run_all(&server, &back).await.unwrap();
        assert!(
            moved(async { in_schema(&schema).open(1).await.map(drop) }).await,
            "{name}: the server's account opens"
        );
        back.close().await.unwrap();
        assert_eq!(rows_of_file(&old), rows_of_file(&new), "{name}");

        let store = SqliteStore::open(&new).await.unwrap();
        for number in if is_encrypted { vec![1, 2] } else { vec![] } {
            let secret = Passphrase::new("golden passphrase").unwrap();
            let account = store.account(number);
            let vault = open_account(&account, &VaultOptions::new(), secret).await.unwrap();
            assert!(Verify::new().run(&account, &vault).await.unwrap().is_sound());
        }
    }
}

/// An account with a vault and some records, in a new file.
async fn filled(folder: &TempDir, rows: u32) -> PathBuf {
    let path = folder.path().join("old.db");
    let store = file_store(&path).await;
    let vault = Vault::create(&store, key()).await.unwrap();
    let layered = wastore::Stack::new(&store).layer(vault.layer()).into_backend();
    fill(&*layered, rows).await;
    store.close().await.unwrap();
    path
}

async fn fill(store: &dyn Backend, rows: u32) {
    for number in 0..rows {
        store.put_session(&format!("1555000{number:05}:1@s.whatsapp.net"), &[number as u8; 700]).await.unwrap();
    }
    store.store_prekeys_batch(&[(7, vec![1; 60].into()), (900, vec![2; 60].into())], true).await.unwrap();
    // All of one phone number and of one time: the last one counts.
    for lid in ["30003", "10001", "20002"] {
        store.put_lid_mapping(&mapping(lid)).await.unwrap();
    }
    store.store_sent_message("chat@g.us", "ID", b"payload").await.unwrap();
}

fn mapping(lid: &str) -> LidPnMappingEntry {
    LidPnMappingEntry {
        lid: lid.to_owned(),
        phone_number: "15550001111".to_owned(),
        created_at: 5,
        updated_at: 6,
        learning_source: "usync".to_owned(),
    }
}

fn key() -> Key {
    Key::from_bytes(&mut [0x5a; 32])
}

/// Stops a copy when it tells its progress for the `steps`th time. `true` if it was done before.
async fn copies_until(steps: u64, from: &impl OwnStore, to: &impl OwnStore) -> bool {
    let (told, reached) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let at_step = reached.clone();
    let copy = StoreCopy::new().on_progress(move |_| {
        if told.fetch_add(1, Ordering::SeqCst) + 1 == steps {
            at_step.notify_one();
        }
    });
    tokio::select! {
        biased;
        () = reached.notified() => false,
        done = copy.run(from, to) => {
            done.unwrap();
            true
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_ends_at_any_page_goes_on_in_both_directions() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (filled(&folder, 1800).await, folder.path().join("new.db"));
    let (schema, mut interruptions) = (schema(), 0);
    for (is_first, last) in [(true, 400), (false, 400)] {
        for step in 1..=last {
            let (server, file) = (server_store(&schema).await, file_store(if is_first { &old } else { &new }).await);
            let done = if is_first {
                copies_until(step, &file, &server).await
            } else {
                copies_until(step, &server, &file).await
            };
            let target = async {
                if is_first {
                    in_schema(&schema).open(1).await.map(drop)
                } else {
                    SqliteStore::open(&new).await.map(drop)
                }
            };
            server.close().await.unwrap();
            file.close().await.unwrap();
            let opens = target.await;
            if done {
                opens.unwrap();
                break;
            }
            interruptions += 1;
            assert!(matches!(opens, Err(Error::CopyUnfinished { .. })), "step {step}: {opens:?}");
            assert!(step < last, "the copy does not end");
        }
    }
    assert!(interruptions > 30, "{interruptions}");
    assert_eq!(rows_of_file(&old), rows_of_file(&new));
    let store = SqliteStore::open(&new).await.unwrap();
    let vault = Vault::open(&store, key()).await.unwrap();
    let layered = wastore::Stack::new(&store).layer(vault.layer()).into_backend();
    let last = layered.get_pn_mapping("15550001111").await.unwrap().unwrap();
    assert_eq!(last.lid, "20002", "the mapping that was put last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_changed_in_between_is_copied_as_it_is() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (old, schema) = (filled(&folder, 1200).await, schema());
    let server = server_store(&schema).await;
    let file = file_store(&old).await;
    assert!(!copies_until(3, &file, &server).await);
    file.close().await.unwrap();
    // The bot runs once more.
    let store = SqliteStore::open(&old).await.unwrap();
    let vault = Vault::open(&store, key()).await.unwrap();
    let layered = wastore::Stack::new(&store).layer(vault.layer()).into_backend();
    layered.put_session("1555000000000:1@s.whatsapp.net", b"before all others").await.unwrap();
    layered.put_session("155500000700:1@s.whatsapp.net", b"changed").await.unwrap();
    layered.delete_session("155500000003:1@s.whatsapp.net").await.unwrap();
    layered.put_lid_mapping(&mapping("30003")).await.unwrap();
    store.close().await.unwrap();
    drop((vault, layered));
    let file = file_store(&old).await;
    StoreCopy::new().run(&file, &server).await.unwrap();
    file.close().await.unwrap();
    let new = folder.path().join("new.db");
    let back = file_store(&new).await;
    StoreCopy::new().run(&server, &back).await.unwrap();
    back.close().await.unwrap();
    assert_eq!(rows_of_file(&old), rows_of_file(&new));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_be_copied_is_refused() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (old, schema) = (filled(&folder, 5).await, schema());
    let (file, server) = (file_store(&old).await, server_store(&schema).await);
    let refused = async |from: &SqliteStore, to: &PostgresStore| StoreCopy::new().run(from, to).await.unwrap_err();
    let error = StoreCopy::new().run(&file, &file.clone()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidInput { what: "the target", .. }), "{error:?}");
    assert!(matches!(refused(&file.account(9), &server).await, Error::NoSuchAccount(9)));
    // The target holds something else, or a bot writes it.
    let other = server.account(account()).await.unwrap();
    other.put_session("other", b"bot").await.unwrap();
    let error = refused(&file, &other).await;
    assert!(matches!(error, Error::InvalidInput { what: "the target account", .. }), "{error:?}");
    let bot = in_schema(&schema).open(3).await.unwrap();
    let impatient = in_schema(&schema).lease_wait(std::time::Duration::ZERO).open_without_lease(3).await.unwrap();
    assert!(matches!(refused(&file, &impatient).await, Error::AccountInUse { account: 3, .. }));
    bot.close().await.unwrap();
    // A source that was opened read-only cannot be closed off.
    let read_only = SqliteStore::open_read_only(&old).await.unwrap();
    assert!(matches!(refused(&read_only, &server).await, Error::InvalidInput { what: "the source", .. }));
    let report = StoreCopy::new().keep_source().run(&read_only, &server).await.unwrap();
    assert!(report.is_source_kept());
    // The copy is complete: it is not the target of another one.
    assert!(matches!(refused(&file, &server).await, Error::InvalidInput { what: "the target account", .. }));
    server.delete_account().await.unwrap();
    assert!(
        matches!(server.get_session("x").await, Err(error) if matches!(Error::downcast_ref(&error), Some(Error::AccountDeleted)))
    );
    let server = server_store(&schema).await;
    StoreCopy::new().run(&file, &server.account(1).await.unwrap()).await.unwrap();
    // Now the source is closed off, until it is taken back.
    assert!(matches!(refused(&file, &server.account(11).await.unwrap()).await, Error::AccountMoved { account: 1, .. }));
    file.close().await.unwrap();
    let file = file_store(&old).await;
    let write = file.put_session("x", b"y").await.unwrap_err();
    assert!(matches!(Error::downcast_ref(&write), Some(Error::AccountMoved { .. })), "{write:?}");
    reclaim_account(&file).await.unwrap();
    file.put_session("x", b"y").await.unwrap();
    assert!(matches!(reclaim_account(&file).await, Err(Error::InvalidInput { .. })));
}

/// An unfinished copy is not finished by another copy of the same account.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_unfinished_copy_stays_closed() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (old, schema) = (filled(&folder, 1200).await, schema());
    let (first, second) = (server_store(&schema).await, server_store(&schema).await.account(2).await.unwrap());
    let file = file_store(&old).await;
    assert!(!copies_until(3, &file, &first).await);
    // The handles of the unfinished copy refuse as well.
    let error = first.put_session("a", b"b").await.unwrap_err();
    assert!(matches!(Error::downcast_ref(&error), Some(Error::CopyUnfinished { .. })), "{error:?}");
    StoreCopy::new().run(&file, &second).await.unwrap();
    let error = file.put_session("a", b"b").await.unwrap_err();
    assert!(matches!(Error::downcast_ref(&error), Some(Error::AccountMoved { .. })), "{error:?}");
    let again = server_store(&schema).await;
    let refused = StoreCopy::new().run(&file, &again).await;
    assert!(matches!(refused, Err(Error::AccountMoved { .. })), "{refused:?}");
    assert!(matches!(in_schema(&schema).open(1).await, Err(Error::CopyUnfinished { .. })));
    // The complete one is complete if it is asked for again, and opens.
    assert_eq!(StoreCopy::new().run(&file, &second).await.unwrap().target_account(), 2);
    let error = file.put_session("a", b"b").await.unwrap_err();
    assert!(matches!(Error::downcast_ref(&error), Some(Error::AccountMoved { .. })), "{error:?}");
    second.put_session("a", b"b").await.unwrap();
}

/// A million records of 1 KB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_records_move_in_a_minute() {
    if !available() || !is_long() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.db");
    let store = SqliteOptions::new().lease_when_writing().open(&path).await.unwrap();
    Vault::create(&store, key()).await.unwrap();
    for page in 0..1000u32 {
        let rows: Vec<_> = (0..1000u32)
            .map(|row| {
                let content: Vec<u8> = (0..1000).map(|at| (at as u32 * 31 + row * 7 + page) as u8).collect();
                (Arc::from(format!("{:08}:1@s.whatsapp.net", page * 1000 + row)), content.into())
            })
            .collect();
        store.put_sessions_batch(&rows).await.unwrap();
    }
    let server = Server::with_settings(&[("max_wal_size", "8GB")]);
    let target = options(&server.url()).open_without_lease(1).await.unwrap();
    let begun = std::time::Instant::now();
    StoreCopy::new().run(&store, &target).await.unwrap();
    println!("SQLite to PostgreSQL: {:.1} s, resident at most {}", begun.elapsed().as_secs_f64(), most_memory());
    let back = file_store(&folder.path().join("new.db")).await;
    let begun = std::time::Instant::now();
    StoreCopy::new().run(&target, &back).await.unwrap();
    println!("PostgreSQL to SQLite: {:.1} s, resident at most {}", begun.elapsed().as_secs_f64(), most_memory());
}

fn most_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim().to_owned()
}
