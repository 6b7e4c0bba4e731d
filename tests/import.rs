//! Imports a database that upstream's own code wrote into an encrypted store that gives the same
//! answers.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a failure is a failed test")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;
use rusqlite::Connection;
use wacore::store::traits::{Backend, MsgSecretEntry, MsgSecretStore, SignalStore, TcTokenEntry};
use wastore::import::{Export, Import, ImportReport};
use wastore::maintenance::create_encrypted;
use wastore::maintenance::{Phase, open_account};
use wastore::testing::{Operation, Value};
use wastore::vault::OpenMode;
use wastore::vault::{Argon2Cost, HeaderInfo};
use wastore::{Access, Error, Key, Layer, Method, Passphrase, Record, SqliteOptions, SqliteStore, Vault, VaultOptions};
use whatsapp_rust_sqlite_storage::SqliteStore as UpstreamStore;

/// How many records of most kinds there are besides the samples: more than a batch.
const MANY: u32 = 1300;

struct Bot {
    folder: tempfile::TempDir,
    source: PathBuf,
    target: PathBuf,
}

impl Bot {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("whatsapp.db"), folder.path().join("wa.db"));
        Self { folder, source, target }
    }

    /// Upstream's store of an account. It stays open, and its last writes are in the write-ahead
    /// log.
    async fn account(&self, number: i32) -> Arc<dyn Backend> {
        Arc::new(UpstreamStore::new_for_device(self.source.to_str().unwrap(), number).await.unwrap())
    }

    async fn imported(&self, number: i32) -> Arc<dyn Backend> {
        let store = Arc::new(SqliteOptions::new().account(number).open(&self.target).await.unwrap());
        Vault::open(store.clone(), key()).await.unwrap().layer().layer(store)
    }

    /// Every file in the folder, by name.
    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Only the source exists.
    fn assert_nothing_was_made(&self) {
        let others: Vec<_> = self.files().into_iter().filter(|name| !name.starts_with("whatsapp.db")).collect();
        assert!(others.is_empty(), "{others:?}");
    }
}

fn key() -> Key {
    Key::from_bytes(&mut [0x42; 32])
}

/// Stores a record of every kind, through every method that writes.
async fn fill(store: &dyn Backend) {
    store.create().await.unwrap();
    for method in Method::ALL.iter().filter(|method| method.access() == Access::Write && **method != Method::Create) {
        Operation::sample(*method).run(store, 0).await.unwrap();
    }
}

/// Stores many records of the kinds that bots have many of.
async fn fill_many(store: &dyn Backend) {
    let address = |number: u32| Arc::<str>::from(format!("{}@s.whatsapp.net", 15_550_000_000u64 + u64::from(number)));
    let sessions: Vec<_> = (0..MANY).map(|n| (address(n), Bytes::from(vec![n as u8; 1000 + n as usize]))).collect();
    store.put_sessions_batch(&sessions).await.unwrap();
    let identities: Vec<_> = (0..MANY).map(|n| (address(n), [n as u8; 32])).collect();
    store.put_identities_batch(&identities).await.unwrap();
    for uploaded in [true, false] {
        let ids = (1000..1000 + MANY).filter(|id| (id % 2 == 0) == uploaded);
        let prekeys: Vec<_> = ids.map(|id| (id, Bytes::from(vec![id as u8; 90]))).collect();
        store.store_prekeys_batch(&prekeys, uploaded).await.unwrap();
    }
    let secret = |n: u32| MsgSecretEntry {
        chat: address(n),
        sender: address(n + 1),
        msg_id: format!("3EB0{n:016X}").into(),
        secret: [n as u8; 32],
        expires_at: if n.is_multiple_of(2) { 0 } else { 5_000_000_000 },
        message_ts: 1_700_000_000 + i64::from(n),
    };
    store.put_msg_secrets((0..MANY).map(secret).collect()).await.unwrap();
    let macs = |n: u32| wacore::appstate::processor::AppStateMutationMAC {
        index_mac: blocks(n).to_vec(),
        value_mac: vec![n as u8; 32],
    };
    let version = wacore::appstate::hash::HashState { version: 3, ..Default::default() };
    store.set_version("regular", version).await.unwrap();
    for version in 1..4u32 {
        let macs: Vec<_> = (version * MANY..version * MANY + 500).map(macs).collect();
        store.put_mutation_macs("regular", u64::from(version), &macs).await.unwrap();
    }
    for group in 0..40 {
        let devices: Vec<_> = (0..50).map(|n| format!("{}:{n}@lid", 100_000_000_000_000u64 + n)).collect();
        let entries: Vec<_> = devices.iter().map(|device| (device.as_str(), device.len() % 2 == 0)).collect();
        store.set_sender_key_status(&format!("12036300000000{group:04}@g.us"), &entries).await.unwrap();
    }
    for n in 0..60 {
        let jid = format!("{}@lid", 100_000_000_000_000u64 + n);
        // Some tokens are placeholders.
        let token = if n % 5 == 0 { vec![] } else { vec![n as u8; 40] };
        store.put_tc_token(&jid, &TcTokenEntry { token, token_timestamp: 7, sender_timestamp: Some(8) }).await.unwrap();
        store.store_sent_message(&jid, &format!("sent {n}"), &[n as u8; 200]).await.unwrap();
        store.store_pending_inbound(&jid, &jid, &format!("pending {n}"), &[n as u8; 300]).await.unwrap();
        store.put_group_metadata(&jid, &[n as u8; 400]).await.unwrap();
    }
}

fn blocks(number: u32) -> [u8; 32] {
    let mut block = [7; 32];
    block[..4].copy_from_slice(&number.to_le_bytes());
    block
}

/// The kinds that an export cannot give back.
const LOST: [Record; 3] = [Record::SenderKeyDevice, Record::BaseKey, Record::MessageSecret];

/// The answers of a store to every method that reads, except for records of these kinds. Sent
/// messages come last: they can only be taken.
async fn answers(store: &dyn Backend, without: &[Record]) -> Vec<(Method, Value)> {
    let mut answers = vec![];
    for access in [Access::Read, Access::Scan, Access::Take] {
        let asked = Method::ALL.iter().copied().filter(|method| method.access() == access);
        for method in asked.filter(|method| !without.contains(&method.record())) {
            answers.push((method, Operation::sample(method).run(store, 0).await.unwrap().sorted()));
        }
    }
    for n in 0..MANY {
        let address = format!("{}@s.whatsapp.net", 15_550_000_000u64 + u64::from(n));
        let session = store.get_session(&address).await.unwrap().map(|session| session.to_vec());
        answers.push((Method::GetSession, Value::Bytes(session.unwrap())));
        answers
            .push((Method::LoadIdentity, Value::Bytes(store.load_identity(&address).await.unwrap().unwrap().to_vec())));
        answers.push((Method::LoadPrekey, Value::Bytes(store.load_prekey(1000 + n).await.unwrap().unwrap().to_vec())));
        if !without.contains(&Record::MessageSecret) {
            let sender = format!("{}@s.whatsapp.net", 15_550_000_001u64 + u64::from(n));
            let secret =
                store.get_msg_secret_with_ts(&address, &sender, &format!("3EB0{n:016X}")).await.unwrap().unwrap();
            answers.push((
                Method::GetMsgSecretWithTs,
                Value::List(vec![Value::Bytes(secret.0), Value::Number(secret.1.into())]),
            ));
        }
    }
    let macs: Vec<_> = (0..4 * MANY).map(blocks).collect();
    let mut macs: Vec<_> = store.get_mutation_macs("regular", &macs).await.unwrap().into_iter().collect();
    macs.sort();
    assert_eq!(macs.len(), 1500);
    answers.extend(
        macs.into_iter().map(|(index, mac)| (Method::GetMutationMacs, Value::Bytes([&index[..], &mac].concat()))),
    );
    for n in 0..60 {
        let jid = format!("{}@lid", 100_000_000_000_000u64 + n);
        let token = store.get_tc_token(&jid).await.unwrap().unwrap();
        assert_eq!((token.token_timestamp, token.sender_timestamp), (7, Some(8)));
        answers.push((Method::GetTcToken, Value::Bytes(token.token)));
        let pending = store.get_pending_inbound(&jid, &jid, &format!("pending {n}")).await.unwrap();
        answers.push((Method::GetPendingInbound, Value::Bytes(pending.unwrap())));
        let sent = store.take_sent_message(&jid, &format!("sent {n}")).await.unwrap();
        answers.push((Method::TakeSentMessage, Value::Bytes(sent.unwrap())));
        answers.push((Method::GetGroupMetadata, Value::Bytes(store.get_group_metadata(&jid).await.unwrap().unwrap())));
    }
    for group in (0..40).filter(|_| !without.contains(&Record::SenderKeyDevice)) {
        let devices = store.get_sender_key_devices(&format!("12036300000000{group:04}@g.us")).await.unwrap();
        let mut devices: Vec<_> = devices.into_iter().map(|(jid, has_key)| format!("{jid} {has_key}")).collect();
        devices.sort();
        answers.push((Method::GetSenderKeyDevices, Value::Text(devices.join(","))));
    }
    answers
}

#[tokio::test]
async fn the_imported_store_answers_as_the_source_does() {
    let bot = Bot::new();
    let source = bot.account(1).await;
    fill(&*source).await;
    fill_many(&*source).await;
    let log = bot.folder.path().join("whatsapp.db-wal");
    assert!(log.metadata().unwrap().len() > 0, "the last writes are in the log");
    let before = (std::fs::read(&bot.source).unwrap(), std::fs::read(&log).unwrap());

    let seen = Arc::new(Mutex::new(vec![]));
    let progress = seen.clone();
    let import = Import::new().on_progress(move |progress_now| progress.lock().unwrap().push(progress_now));
    let report = import.run(&bot.source, &bot.target, key()).await.unwrap();
    assert!((std::fs::read(&bot.source).unwrap(), std::fs::read(&log).unwrap()) == before, "the source is untouched");

    // Both get the same calls in the same order, because taking a message changes the store.
    let (expected, found) = (answers(&*source, &[]).await, answers(&*bot.imported(1).await, &[]).await);
    for ((method, expected), (_, found)) in expected.iter().zip(&found) {
        assert_eq!(found, expected, "{}", method.name());
    }
    assert_eq!(expected.len(), found.len());

    assert_eq!(report.accounts(), [1]);
    let counts = [
        (Record::Session, u64::from(MANY) + 2),
        (Record::Identity, u64::from(MANY) + 2),
        (Record::MutationMac, 1502),
        (Record::Device, 1),
    ];
    for (record, count) in counts {
        assert_eq!(report.copied(record), count, "{record}");
    }
    assert!(Record::ALL.iter().all(|record| report.left_out(*record) == 0));
    assert!(report.to_string().contains("message secret"), "{report}");
    let seen = seen.lock().unwrap();
    let last = |phase| *seen.iter().rfind(|progress| progress.phase == phase).unwrap();
    for phase in [Phase::Copying, Phase::Comparing] {
        assert_eq!((last(phase).done, last(phase).total), (last(phase).total, seen[0].total));
    }
    #[cfg(unix)]
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&bot.target.metadata().unwrap().permissions()) & 0o777, 0o600);
}

#[tokio::test]
async fn what_was_exported_answers_as_the_source_did() {
    let bot = Bot::new();
    let source = bot.account(3).await;
    fill(&*source).await;
    fill_many(&*source).await;
    Import::new().account(3).run(&bot.source, &bot.target, key()).await.unwrap();

    let store = SqliteStore::open(&bot.target).await.unwrap().account(3);
    let vault = open_account(&store, &VaultOptions::new().mode(OpenMode::ReadOnly), key()).await.unwrap();
    let back = bot.folder.path().join("back.db");
    let rows = Arc::new(AtomicU64::new(0));
    let (seen, told) = (rows.clone(), Export::new());
    let export = told.on_progress(move |progress| {
        assert!(progress.done <= progress.total);
        seen.store(progress.done, Ordering::Relaxed);
    });
    let report = export.run(&store, &vault, &back).await.unwrap();
    assert!(matches!(Export::new().run(&store, &vault, &back).await, Err(Error::TargetExists { .. })));
    #[cfg(unix)]
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&back.metadata().unwrap().permissions()) & 0o777, 0o600);

    // Upstream opens it, finds nothing to migrate, and answers.
    let schema = |path: &Path| {
        let connection = Connection::open(path).unwrap();
        let mut statement =
            connection.prepare("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name").unwrap();
        let rows = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        rows.collect::<Result<Vec<(String, String, Option<String>)>, _>>().unwrap()
    };
    assert_eq!(schema(&back), schema(&bot.source));
    let exported = Arc::new(UpstreamStore::new_for_device(back.to_str().unwrap(), 3).await.unwrap());
    assert_eq!(schema(&back), schema(&bot.source));
    let (expected, found) = (answers(&*source, &LOST).await, answers(&*exported, &LOST).await);
    assert_eq!(expected.len(), found.len());
    for ((method, expected), (_, found)) in expected.iter().zip(&found) {
        assert_eq!(found, expected, "{}", method.name());
    }
    for record in Record::ALL.iter().copied() {
        let lost = LOST.contains(&record) && rows.load(Ordering::Relaxed) > 0;
        assert_eq!(report.dropped(record) > 0, lost, "{record}: {report}");
        assert_eq!(
            report.exported(record) == 0,
            lost || [Record::SignalState, Record::SnapshotExtra, Record::CacheEntry, Record::Store].contains(&record)
        );
    }
    assert!(report.to_string().contains("of message secret: reactions, edits and polls"), "{report}");
    // Upstream continues to use it.
    exported.put_session("new@s.whatsapp.net", b"new").await.unwrap();
    exported.put_msg_secrets(vec![]).await.unwrap();
    // And imported again.
    let again = bot.folder.path().join("again.db");
    assert_eq!(
        Import::new().run(&back, &again, key()).await.unwrap().copied(Record::Prekey),
        report.exported(Record::Prekey)
    );
}

/// The newest of two LIDs of the same second decides which session is used.
#[tokio::test]
async fn of_two_lids_of_the_same_second_the_same_one_stays_the_newest() {
    let bot = Bot::new();
    let source = bot.account(1).await;
    source.create().await.unwrap();
    let mapping = |lid: &str, phone: &str| wacore::store::traits::LidPnMappingEntry {
        lid: lid.to_owned(),
        phone_number: phone.to_owned(),
        created_at: 1,
        updated_at: 2,
        learning_source: "usync".to_owned(),
    };
    for (lid, phone) in [("100", "1"), ("101", "1"), ("102", "1"), ("201", "2"), ("200", "2")] {
        source.put_lid_mapping(&mapping(lid, phone)).await.unwrap();
    }
    let newest = async |store: &dyn Backend| {
        let of = async |phone| store.get_pn_mapping(phone).await.unwrap().unwrap().lid;
        (of("1").await, of("2").await)
    };
    let expected = newest(&*source).await;
    Import::new().run(&bot.source, &bot.target, key()).await.unwrap();
    assert_eq!(newest(&*bot.imported(1).await).await, expected);
    let store = SqliteStore::open(&bot.target).await.unwrap();
    let vault = open_account(&store, &VaultOptions::new(), key()).await.unwrap();
    let back = bot.folder.path().join("back.db");
    Export::new().run(&store, &vault, &back).await.unwrap();
    let exported = UpstreamStore::new(back.to_str().unwrap()).await.unwrap();
    assert_eq!(newest(&exported).await, expected);
}

#[tokio::test]
async fn a_damaged_store_is_not_exported() {
    let bot = Bot::new();
    fill(&*bot.account(1).await).await;
    Import::new().run(&bot.source, &bot.target, key()).await.unwrap();
    Connection::open(&bot.target).unwrap().execute_batch("UPDATE group_metadata SET info = x'00'").unwrap();
    let store = SqliteStore::open(&bot.target).await.unwrap();
    let vault = open_account(&store, &VaultOptions::new(), key()).await.unwrap();
    let back = bot.folder.path().join("back.db");
    let error = Export::new().run(&store, &vault, &back).await.unwrap_err();
    assert!(
        matches!(error, Error::Plaintext { record: Record::GroupMetadata, .. } | Error::Tampered { .. }),
        "{error}"
    );
    assert!(
        !bot.files().iter().any(|name| name.starts_with(".wastore") || name.starts_with("back")),
        "{:?}",
        bot.files()
    );
    let nowhere = Export::new().run(&store, &vault, bot.folder.path().join("no").join("back.db")).await;
    assert!(matches!(nowhere, Err(Error::File { what: "target", .. })));
}

#[tokio::test]
async fn nothing_readable_is_in_the_files_at_any_moment() {
    let bot = Bot::new();
    let source = bot.account(1).await;
    source.create().await.unwrap();
    let canary = b"a canary that is long enough to be found".to_vec();
    let addresses: Vec<_> = (0..2000).map(|n| format!("canary-user-{n}@s.whatsapp.net")).collect();
    let sessions = addresses.iter().map(|address| (address.as_str().into(), canary.clone().into()));
    source.put_sessions_batch(&sessions.collect::<Vec<_>>()).await.unwrap();

    let looked = Arc::new(AtomicU64::new(0));
    let (folder, counter, needle) = (bot.folder.path().to_owned(), looked.clone(), canary.clone());
    let import = Import::new().on_progress(move |_| {
        counter.fetch_add(assert_unreadable(&folder, &needle), Ordering::Relaxed);
    });
    import.run(&bot.source, &bot.target, key()).await.unwrap();
    assert!(looked.load(Ordering::Relaxed) > 1 << 19, "the unfinished files were looked at");
    assert!(assert_unreadable(bot.folder.path(), &canary) > 1 << 19);
    assert_eq!(bot.files().iter().filter(|name| name.starts_with("wa.db")).count(), 1, "{:?}", bot.files());
}

/// Searches every byte in the folder except the source's. Returns how many there were.
fn assert_unreadable(folder: &Path, canary: &[u8]) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            bytes += assert_unreadable(&entry, canary);
        } else if !entry.file_name().unwrap().to_str().unwrap().starts_with("whatsapp.db") {
            let Ok(content) = std::fs::read(&entry) else { continue };
            for needle in [canary, b"canary-user-1", b"@s.whatsapp.net"] {
                assert!(memchr::memmem::find(&content, needle).is_none(), "{} can be read", entry.display());
            }
            bytes += content.len() as u64;
        }
    }
    bytes
}

#[tokio::test]
async fn an_unfinished_store_does_not_open() {
    let bot = Bot::new();
    let source = bot.account(1).await;
    fill(&*source).await;
    fill_many(&*source).await;
    let (folder, copy) = (bot.folder.path().to_owned(), bot.folder.path().join("stolen.db"));
    let copied = Arc::new(AtomicBool::new(false));
    let (to, done) = (copy.clone(), copied.clone());
    let import = Import::new().on_progress(move |progress| {
        if progress.phase == Phase::Comparing && !done.swap(true, Ordering::Relaxed) {
            let unfinished = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
            let unfinished = unfinished.into_iter().find(|path| path.is_dir()).unwrap();
            for ending in ["", "-wal"] {
                let to = format!("{}{ending}", to.to_str().unwrap());
                std::fs::copy(unfinished.join(format!("store.db{ending}")), to).unwrap();
            }
        }
    });
    import.run(&bot.source, &bot.target, key()).await.unwrap();
    assert!(copied.load(Ordering::Relaxed));
    let store = Arc::new(SqliteStore::open(&copy).await.unwrap());
    assert!(matches!(Vault::open(store, key()).await, Err(Error::ImportIncomplete)));
}

#[tokio::test]
async fn accounts_are_chosen_and_kept_apart() {
    let bot = Bot::new();
    let (first, second) = (bot.account(1).await, bot.account(2).await);
    for (store, content) in [(&first, b"first"), (&second, b"secon")] {
        store.create().await.unwrap();
        store.put_session("15550001111@s.whatsapp.net", content).await.unwrap();
    }
    let run = |import: Import, target: &str| {
        let target = bot.folder.path().join(target);
        let source = bot.source.clone();
        async move { import.run(source, target, key()).await }
    };
    assert!(matches!(run(Import::new(), "a.db").await, Err(Error::SeveralAccounts(2))));
    assert!(matches!(run(Import::new().account(3), "a.db").await, Err(Error::NoSuchAccount(3))));
    bot.assert_nothing_was_made();

    assert_eq!(run(Import::new().account(2), "second.db").await.unwrap().accounts(), [2]);
    let store = SqliteStore::open(bot.folder.path().join("second.db")).await.unwrap();
    assert_eq!(store.accounts().await.unwrap(), [2]);
    let report = run(Import::new().all_accounts(), "both.db").await.unwrap();
    assert_eq!((report.accounts(), report.copied(Record::Device)), (&[1, 2][..], 2));
    let store = Arc::new(SqliteStore::open(bot.folder.path().join("both.db")).await.unwrap());
    let vault = Vault::open(store.clone(), key()).await.unwrap();
    let other = Arc::new(store.account(2));
    let other_vault = Vault::open(other.clone(), vault.account_key("account 2")).await.unwrap();
    let session =
        |store: Arc<dyn Backend>| async move { store.get_session("15550001111@s.whatsapp.net").await.unwrap() };
    assert_eq!(session(vault.layer().layer(store)).await.unwrap(), &b"first"[..]);
    assert_eq!(session(other_vault.layer().layer(other)).await.unwrap(), &b"secon"[..]);
}

/// A stopped bot leaves no log behind, and neither does the import.
#[tokio::test]
async fn an_unused_source_stays_alone() {
    let bot = Bot::new();
    let source = bot.account(1).await;
    fill(&*source).await;
    drop(source);
    let before = (bot.files(), std::fs::read(&bot.source).unwrap());
    assert_eq!(before.0, ["whatsapp.db"]);
    Import::new().run(&bot.source, &bot.target, key()).await.unwrap();
    std::fs::remove_file(&bot.target).unwrap();
    assert!((bot.files(), std::fs::read(&bot.source).unwrap()) == before, "{:?}", bot.files());
}

#[tokio::test]
async fn a_source_that_comes_into_use_is_not_imported() {
    let bot = Bot::new();
    let source = bot.account(1).await;
    fill(&*source).await;
    drop(source);
    // Through a link, as bots often name their current database.
    let link = bot.folder.path().join("whatsapp.db-current");
    #[cfg(unix)]
    std::os::unix::fs::symlink(&bot.source, &link).unwrap();
    #[cfg(not(unix))]
    std::fs::copy(&bot.source, &link).unwrap();
    let (path, started) = (bot.source.clone(), Mutex::new(None));
    let import = Import::new().on_progress(move |_| {
        // The store stays open, so that the log is not copied into the database.
        started.lock().unwrap().get_or_insert_with(|| {
            let connection = Connection::open(&path).unwrap();
            connection.execute_batch("DELETE FROM sessions").unwrap();
            connection
        });
    });
    let error = import.run(&link, &bot.target, key()).await.unwrap_err();
    assert!(matches!(error, Error::SourceChanged), "{error}");
    assert!(!bot.target.exists());
}

#[tokio::test]
async fn a_passphrase_opens_it_and_a_wrong_one_does_not() {
    let bot = Bot::new();
    fill(&*bot.account(1).await).await;
    let options = VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM);
    let import = Import::new().vault_options(options.clone());
    import.run(&bot.source, &bot.target, Passphrase::new("right").unwrap()).await.unwrap();
    let store: Arc<dyn Backend> = Arc::new(SqliteStore::open(&bot.target).await.unwrap());
    let open = |passphrase: &str| options.open(store.clone(), Passphrase::new(passphrase).unwrap());
    assert!(matches!(open("wrong").await, Err(Error::WrongSecret)));
    open("right").await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_imported_is_refused_and_named() {
    let bot = Bot::new();
    let upstream = bot.account(1).await;
    fill(&*upstream).await;
    let run = |source: &Path| {
        let (source, target) = (source.to_owned(), bot.target.clone());
        async move { Import::new().run(source, target, key()).await }
    };
    let text = |result: Result<ImportReport, Error>| result.unwrap_err().to_string();
    let other = tempfile::tempdir().unwrap();
    let path = |name: &str| other.path().join(name);

    assert!(matches!(run(&path("nothing.db")).await, Err(Error::File { what: "source", .. })));
    assert!(text(run(other.path()).await).contains("is a folder"));
    std::fs::write(path("text.db"), "no database, but as long as the header of one would have to be ".repeat(20))
        .unwrap();
    assert!(text(run(&path("text.db")).await).contains("is no SQLite database, or encrypted as a whole"));
    Connection::open(path("other.db")).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert!(text(run(&path("other.db")).await).contains("is the database of another program"));
    SqliteStore::open(path("own.db")).await.unwrap();
    assert!(text(run(&path("own.db")).await).contains("is a store of wastore already"));

    // Missing migrations, and unknown ones.
    drop(upstream);
    let changed = |name: &str, sql: &str| {
        let path = path(name);
        // Another connection of SQLite also copies the content of the log.
        Connection::open(&bot.source).unwrap().execute("VACUUM INTO ?1", (path.to_str().unwrap(),)).unwrap();
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        path
    };
    let older = changed("older.db", "DELETE FROM __diesel_schema_migrations WHERE version >= '20260626'");
    let error = run(&older).await.unwrap_err();
    assert!(matches!(error, Error::UpstreamTooOld { migration: "add_pending_inbound_messages", .. }), "{error}");
    assert!(error.to_string().contains("start the bot once with whatsapp-rust 0.7"), "{error}");
    let newer = changed("newer.db", "INSERT INTO __diesel_schema_migrations (version) VALUES ('20991231000000')");
    let error = run(&newer).await.unwrap_err();
    assert!(matches!(&error, Error::UpstreamTooNew { migration, .. } if migration == "20991231000000"), "{error}");
    let empty = changed("empty.db", "PRAGMA foreign_keys = OFF; DELETE FROM device");
    assert!(text(run(&empty).await).contains("a database without an account"));

    // Records that would come out differently.
    for (sql, record) in [
        ("UPDATE identities SET key = x'0102'", Record::Identity),
        ("UPDATE msg_secrets SET secret = x'0102'", Record::MessageSecret),
        ("UPDATE device_registry SET devices_json = 'nothing'", Record::DeviceList),
        ("UPDATE device SET noise_key = x'0102'", Record::Device),
        ("UPDATE device SET account = x'ffff'", Record::Device),
        ("UPDATE device SET pn = 'a jid@nowhere at all'", Record::Device),
    ] {
        let damaged = changed(&format!("{}.db", sql.len()), sql);
        let error = run(&damaged).await.unwrap_err();
        assert!(matches!(error, Error::UnreadableRecord { record: found, .. } if found == record), "{sql}: {error}");
        std::fs::remove_file(damaged).unwrap();
    }
    bot.assert_nothing_was_made();

    // The target.
    std::fs::write(&bot.target, "precious").unwrap();
    assert!(matches!(run(&bot.source).await, Err(Error::TargetExists { .. })));
    assert_eq!(std::fs::read(&bot.target).unwrap(), b"precious");
    let nowhere = Import::new().run(&bot.source, path("no").join("folder").join("wa.db"), key()).await;
    assert!(matches!(nowhere, Err(Error::File { what: "target", .. })));
}

/// Keys in the format of upstream's first releases are absent for upstream too. Objects in the
/// place of upstream's tables run no SQL, and an index hides no row.
#[tokio::test]
async fn sql_that_a_source_brings_along_does_not_run() {
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)";
    let planted = [
        format!(
            "DROP TABLE sessions; CREATE VIEW sessions AS {endless} SELECT i AS address, i AS record, 1 AS device_id FROM n"
        ),
        format!("DROP TABLE device; CREATE VIEW device AS {endless} SELECT i AS id FROM n"),
        format!(
            "ALTER TABLE __diesel_schema_migrations RENAME TO m; CREATE VIEW __diesel_schema_migrations AS {endless} SELECT i AS version FROM n"
        ),
        "DROP TABLE prekeys; CREATE VIRTUAL TABLE prekeys USING fts5(id, key, uploaded, device_id)".to_owned(),
        "ALTER TABLE tc_tokens ADD COLUMN more AS (printf('%.*c', 100000000, 'x'))".to_owned(),
        "CREATE VIEW v AS SELECT * FROM sessions; PRAGMA writable_schema = ON;
            UPDATE sqlite_schema SET name = 'Sender_Keys', tbl_name = 'Sender_Keys' WHERE name = 'v';
            UPDATE sqlite_schema SET name = 'gone', tbl_name = 'gone' WHERE name = 'sender_keys'"
            .to_owned(),
    ];
    for planted in planted {
        let bot = closed_source().await;
        rusqlite::Connection::open(&bot.source).unwrap().execute_batch(&planted).unwrap();
        let import = Import::new();
        let imported = import.run(&bot.source, &bot.target, key());
        let error = tokio::time::timeout(std::time::Duration::from_secs(60), imported).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::NotUpstream { .. } | Error::SourceDamaged), "{planted}: {error:?}");
        bot.assert_nothing_was_made();
    }
    // An index that lacks rows.
    let bot = closed_source().await;
    let source = rusqlite::Connection::open(&bot.source).unwrap();
    source
        .execute_batch(
            "CREATE INDEX planted ON sessions (device_id) WHERE length(address) < 3; PRAGMA writable_schema = ON;
            UPDATE sqlite_schema SET sql = 'CREATE INDEX planted ON sessions (device_id)' WHERE name = 'planted'",
        )
        .unwrap();
    drop(source);
    let source = rusqlite::Connection::open(&bot.source).unwrap();
    let count = |sql: &str| source.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
    let all = count("SELECT count(*) FROM sessions NOT INDEXED WHERE device_id = 1");
    assert!(all > 0 && count("SELECT count(*) FROM sessions WHERE device_id = 1") < all, "the index is not used");
    let error = Import::new().run(&bot.source, &bot.target, key()).await.unwrap_err();
    assert!(matches!(error, Error::SourceDamaged), "{error:?}");
}

/// SQLite takes a log as that of the database beside it, even if it belongs to another one.
#[tokio::test]
async fn a_log_beside_the_name_of_a_new_database_is_refused() {
    let bot = closed_source().await;
    Import::new().run(&bot.source, &bot.target, key()).await.unwrap();
    let store = SqliteStore::open(&bot.target).await.unwrap();
    let vault = open_account(&store, &VaultOptions::new(), key()).await.unwrap();
    let new = bot.target.with_file_name("new.db");
    for ending in ["-wal", "-shm", "-journal"] {
        let log = bot.target.with_file_name(format!("new.db{ending}"));
        std::fs::write(&log, "left by another").unwrap();
        for outcome in [
            Import::new().run(&bot.source, &new, key()).await.map(drop),
            Export::new().run(&store, &vault, &new).await.map(drop),
            store.backup(&new).await,
            create_encrypted(&new, 1, &VaultOptions::new(), key()).await,
        ] {
            assert!(matches!(&outcome, Err(Error::TargetExists { path }) if *path == log), "{ending}: {outcome:?}");
        }
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "left by another");
        assert!(!new.exists());
        std::fs::remove_file(log).unwrap();
    }
    store.backup(&new).await.unwrap();
}

/// Data that an import does not read stays, and is named.
#[tokio::test]
async fn a_source_that_is_not_read_whole_is_not_removed() {
    let partly = [
        ("CREATE TABLE my_messages (text); INSERT INTO my_messages VALUES ('precious')", "the table my_messages"),
        ("INSERT INTO sessions (address, record, device_id) VALUES ('x@s', x'01', 7)", "1 rows of sessions"),
        (
            "INSERT INTO identities (address, key, device_id) VALUES ('x@s', zeroblob(32), 'one')",
            "1 rows of identities",
        ),
        ("DELETE FROM device WHERE id = 2", "rows of sessions"),
    ];
    for (planted, named) in partly {
        let bot = closed_source_of(&[1, 2]).await;
        rusqlite::Connection::open(&bot.source).unwrap().execute_batch(planted).unwrap();
        let before = std::fs::read(&bot.source).unwrap();
        let error =
            Import::new().all_accounts().remove_source().run(&bot.source, &bot.target, key()).await.unwrap_err();
        assert!(matches!(error, Error::SourceHoldsMore { .. }), "{planted}: {error:?}");
        assert!(error.to_string().contains(named), "{planted}: {error}");
        assert!(std::fs::read(&bot.source).unwrap() == before);
        bot.assert_nothing_was_made();
        let report = Import::new().all_accounts().run(&bot.source, &bot.target, key()).await.unwrap();
        assert!(report.to_string().contains(&format!("not read: {named}")) || report.to_string().contains(named));
    }
    // Hidden rows.
    let hide = [
        "CREATE INDEX planted ON device (id) WHERE id < 2; PRAGMA writable_schema = ON;
            UPDATE sqlite_schema SET sql = 'CREATE INDEX planted ON device (id)' WHERE name = 'planted'",
        "PRAGMA writable_schema = ON;
            UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', '        ') WHERE name = 'prekeys'",
    ];
    for planted in hide {
        let bot = closed_source_of(&[1, 2]).await;
        rusqlite::Connection::open(&bot.source).unwrap().execute_batch(planted).unwrap();
        rusqlite::Connection::open(&bot.source).unwrap().execute("UPDATE prekeys SET uploaded = NULL", ()).ok();
        let error = Import::new().remove_source().run(&bot.source, &bot.target, key()).await.unwrap_err();
        let refused = matches!(error, Error::SourceDamaged | Error::SourceHoldsMore { .. } | Error::SeveralAccounts(2));
        assert!(refused, "{planted}: {error:?}");
        bot.assert_nothing_was_made();
    }
    // A page that claims one row less than it has.
    let bot = closed_source().await;
    let source = rusqlite::Connection::open(&bot.source).unwrap();
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'sessions'";
    let page = source.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap() as usize;
    let size = source.query_row("PRAGMA page_size", (), |row| row.get::<_, i64>(0)).unwrap() as usize;
    drop(source);
    let mut content = std::fs::read(&bot.source).unwrap();
    let cells = (page - 1) * size + 4;
    assert!(content[cells] > 1);
    content[cells] -= 1;
    std::fs::write(&bot.source, content).unwrap();
    for import in [Import::new(), Import::new().remove_source()] {
        let error = import.run(&bot.source, &bot.target, key()).await.unwrap_err();
        assert!(matches!(error, Error::SourceDamaged), "{error:?}");
        bot.assert_nothing_was_made();
    }
    // A number that does not fit.
    let bot = closed_source().await;
    let source = rusqlite::Connection::open(&bot.source).unwrap();
    source.execute("UPDATE prekeys SET id = id + 4294967296", ()).unwrap();
    drop(source);
    let error = Import::new().run(&bot.source, &bot.target, key()).await.unwrap_err();
    assert!(matches!(error, Error::UnreadableRecord { record: Record::Prekey, .. }), "{error:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_pipe_is_not_waited_for() {
    let pipe = |path: &Path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    let bot = Bot::new();
    pipe(&bot.source);
    assert!(matches!(Import::new().run(&bot.source, &bot.target, key()).await, Err(Error::File { .. })));
    for ending in ["-wal", "-journal"] {
        let bot = closed_source().await;
        pipe(&bot.source.with_file_name(format!("whatsapp.db{ending}")));
        let error = Import::new().run(&bot.source, &bot.target, key()).await.unwrap_err();
        assert!(matches!(error, Error::File { what: "source", .. }), "{error:?}");
        let bot = Bot::new();
        create_encrypted(&bot.target, 1, &VaultOptions::new(), key()).await.unwrap();
        pipe(&bot.target.with_file_name(format!("wa.db{ending}")));
        let error = SqliteStore::open(&bot.target).await.unwrap_err();
        assert!(matches!(error, Error::File { what: "database", .. }), "{error:?}");
    }
}

#[tokio::test]
async fn what_upstream_does_not_read_is_left_out_and_counted() {
    let bot = Bot::new();
    let upstream = bot.account(1).await;
    fill(&*upstream).await;
    let connection = Connection::open(&bot.source).unwrap();
    connection.execute_batch("UPDATE app_state_keys SET key_data = x'0102'").unwrap();
    connection.execute_batch("UPDATE app_state_versions SET state_data = x'ff'").unwrap();
    connection.execute_batch("UPDATE device SET server_cert_chain = x'ff'").unwrap();
    let report = Import::new().run(&bot.source, &bot.target, key()).await.unwrap();
    assert_eq!((report.copied(Record::SyncKey), report.left_out(Record::SyncKey)), (0, 1));
    assert_eq!(report.left_out(Record::CollectionVersion), 1);
    let imported = bot.imported(1).await;
    for method in [Method::GetSyncKey, Method::GetVersion, Method::GetLatestSyncKeyId, Method::Load] {
        let ask = |store: Arc<dyn Backend>| async move { Operation::sample(method).run(&*store, 0).await.unwrap() };
        assert_eq!(ask(imported.clone()).await, ask(upstream.clone()).await, "{}", method.name());
    }
}

#[tokio::test]
async fn dropped_anywhere_it_leaves_nothing_behind() {
    let bot = Bot::new();
    let source = bot.account(1).await;
    fill(&*source).await;
    fill_many(&*source).await;
    let mut dropped = 0;
    for polls in (0..).step_by(7) {
        let import = Import::new();
        let mut run = Box::pin(import.run(&bot.source, &bot.target, key()));
        let mut left = polls;
        let ended = std::future::poll_fn(|context| match run.as_mut().poll(context) {
            std::task::Poll::Ready(ended) => std::task::Poll::Ready(Some(ended)),
            std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
            std::task::Poll::Pending => {
                left -= 1;
                std::task::Poll::Pending
            }
        })
        .await;
        if ended.is_some() {
            break;
        }
        drop(run);
        dropped += 1;
        // Work on other threads ends by itself.
        for _ in 0..500 {
            if bot.files().iter().all(|name| name.starts_with("whatsapp.db")) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bot.assert_nothing_was_made();
    }
    assert!(dropped > 5, "only {dropped} times");
    answers(&*bot.imported(1).await, &[]).await;
}

/// Runs in its own process, for the test below.
#[test]
fn import_until_killed() {
    let Some(folder) = std::env::var_os("WASTORE_IMPORT").map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Import::new().run(folder.join("whatsapp.db"), folder.join("wa.db"), key())).unwrap();
}

#[tokio::test]
async fn killed_anywhere_there_is_nothing_or_the_finished_store() {
    let bot = Bot::new();
    let source = bot.account(1).await;
    fill(&*source).await;
    let prekeys: Vec<_> = (1000..4000).map(|id| (id, Bytes::from(vec![id as u8; 90]))).collect();
    source.store_prekeys_batch(&prekeys, true).await.unwrap();
    let before = std::fs::read(&bot.source).unwrap();
    let kills = if std::env::var_os("WASTORE_LONG").is_some() { 500 } else { 100 };
    let mut random: SmallRng = rand::make_rng();
    let import = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["import_until_killed", "--exact"]).env("WASTORE_IMPORT", bot.folder.path());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    // Measures one import, to kill later ones at any point.
    let start = std::time::Instant::now();
    assert!(import().wait().unwrap().success());
    let whole = start.elapsed();
    let (mut nothing, mut finished) = (0, 0);
    for _ in 0..kills {
        std::fs::remove_file(&bot.target).ok();
        let mut running = import();
        std::thread::sleep(whole.mul_f64(random.random_range(0.0..1.1)));
        running.kill().unwrap();
        running.wait().unwrap();
        if bot.target.exists() {
            finished += 1;
            let store = bot.imported(1).await;
            assert!(store.load().await.unwrap().is_some());
            assert_eq!(store.load_prekey(3999).await.unwrap().unwrap(), vec![3999u32 as u8; 90]);
        } else {
            nothing += 1;
        }
        for name in bot.files() {
            let unfinished = name.starts_with(".wastore-import-");
            assert!(unfinished || name.starts_with("whatsapp.db") || name.starts_with("wa.db"), "{name} was left");
            if unfinished {
                std::fs::remove_dir_all(bot.folder.path().join(name)).unwrap();
            }
        }
    }
    assert!(std::fs::read(&bot.source).unwrap() == before, "the source is untouched");
    assert!(nothing > 10 && nothing + finished == kills, "{nothing} of {kills} were killed in time");
}

/// A source that no process has open.
async fn closed_source() -> Bot {
    closed_source_of(&[1]).await
}

async fn closed_source_of(accounts: &[i32]) -> Bot {
    let bot = Bot::new();
    for account in accounts {
        let store = bot.account(*account).await;
        fill(&*store).await;
    }
    // Upstream closes its connections on its own threads.
    while bot.files().iter().any(|name| name.ends_with("-wal")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bot
}

fn not_removed(error: Error) -> String {
    let Error::SourceNotRemoved { source, .. } = error else { panic!("{error:?}") };
    let text = source.to_string();
    assert!(!text.contains("locked") && !text.contains("busy"), "{text}");
    text
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn removing_the_source_follows_no_link_and_replaces_no_file() {
    for ending in ["-shm", "-wal", "-journal"] {
        let bot = closed_source().await;
        let (other, beside) =
            (bot.folder.path().join("other"), bot.source.with_file_name(format!("whatsapp.db{ending}")));
        let before = std::fs::read(&bot.source).unwrap();
        for hard in [false, true] {
            // A visible log means that the source is in use. A log behind a dangling link is not
            // visible.
            if hard && ending != "-shm" {
                continue;
            }
            if ending == "-shm" {
                std::fs::write(&other, "precious").unwrap();
            }
            match hard {
                true => std::fs::hard_link(&other, &beside).unwrap(),
                false => std::os::unix::fs::symlink(&other, &beside).unwrap(),
            }
            let error = Import::new().remove_source().run(&bot.source, &bot.target, key()).await.unwrap_err();
            let text = not_removed(error);
            assert!(text.contains(&format!("whatsapp.db{ending}")) && text.contains(": remove"), "{text}");
            assert!(std::fs::read(&bot.source).unwrap() == before, "{ending}: the source is as it was");
            match ending {
                "-shm" => assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious"),
                _ => assert!(!other.exists(), "{ending}: a file was made behind the link"),
            }
            std::fs::remove_file(&beside).unwrap();
            std::fs::remove_file(&bot.target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_removal_is_finished() {
    let bot = closed_source().await;
    Import::new().run(&bot.source, &bot.target, key()).await.unwrap();
    let store = SqliteStore::open(&bot.target).await.unwrap();
    let id = HeaderInfo::read(&store).await.unwrap().unwrap().store_id;
    drop(store);
    let removing = bot.source.with_file_name(format!("whatsapp.db.removing-{}", hex::encode(id)));
    let again = async || Import::new().remove_source().run(&bot.source, &bot.target, key()).await;
    assert!(matches!(again().await, Err(Error::TargetExists { .. })), "the source is there");
    std::fs::rename(&bot.source, &removing).unwrap();
    std::fs::write(bot.source.with_file_name("whatsapp.db-shm"), [7; 100]).unwrap();
    let wrong = Import::new().remove_source().run(&bot.source, &bot.target, Key::from_bytes(&mut [1; 32])).await;
    assert!(matches!(wrong, Err(Error::WrongSecret)), "{wrong:?}");
    let kept = Import::new().run(&bot.source, &bot.target, key()).await;
    assert!(matches!(kept, Err(Error::TargetExists { .. })), "{kept:?}");
    assert!(removing.exists());
    // Another store that the same secret opens was not made from this source.
    let other = bot.target.with_file_name("other.db");
    create_encrypted(&other, 1, &VaultOptions::new(), key()).await.unwrap();
    let error = Import::new().remove_source().run(&bot.source, &other, key()).await.unwrap_err();
    assert!(not_removed(error).contains("was imported into another store"));
    // It is not removed either if it has another name.
    let link = bot.target.with_file_name("precious");
    std::fs::hard_link(&removing, &link).unwrap();
    assert!(not_removed(again().await.unwrap_err()).contains("another name"));
    assert!(removing.metadata().unwrap().len() > 0);
    std::fs::remove_file(&link).unwrap();
    std::fs::remove_file(&other).unwrap();

    let report = again().await.unwrap();
    assert!(report.accounts().is_empty() && report.removed_source().unwrap().left().is_empty(), "{report:?}");
    assert_eq!(bot.files(), ["wa.db"]);
    assert!(matches!(again().await, Err(Error::TargetExists { .. })), "nothing is left to do");
}
