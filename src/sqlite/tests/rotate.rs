//! A new data key while the store is in use, and after a secret has leaked.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use wacore::store::traits::{Backend, SignalStore};

use super::*;
use crate::encrypt::cipher::{epoch_of, record_of};
use crate::encrypt::{Vault, VaultOptions};
use crate::maintenance::open_account;
use crate::maintenance::{Rotate, RotateReport, Verify};
use crate::method::{Access, Method};
use crate::rows::encoding::encode_text;
use crate::rows::store::Rows;
use crate::rows::table::TABLES;
use crate::secret::{Key, Passphrase};
use crate::testing::Operation;
use crate::testing::canaries;
use crate::testing::gate::{Gate, Side};
use crate::vault::{Argon2Cost, HeaderCopy, HeaderInfo, Padding, Revocation};
use crate::{Layer, Record};

struct Sealed {
    scratch: Scratch,
    vault: Vault,
    layered: Arc<dyn Backend>,
}

fn raw_key() -> Key {
    Key::from_bytes(&mut [7; 32])
}

fn new_key() -> Key {
    Key::from_bytes(&mut [8; 32])
}

fn options() -> VaultOptions {
    VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM)
}

/// A store with records of every kind.
async fn sealed() -> Sealed {
    let scratch = Scratch::new().await;
    let (vault, layered) = over(&scratch.store, options().padding(Padding::Padme)).await;
    canaries::fill(&*layered).await;
    layered.save(&canaries::device()).await.unwrap();
    Sealed { scratch, vault, layered }
}

async fn over(store: &SqliteStore, options: VaultOptions) -> (Vault, Arc<dyn Backend>) {
    let store: Arc<dyn Backend> = Arc::new(store.clone());
    let vault = options.create(store.clone(), raw_key()).await.unwrap();
    let layered = vault.layer().layer(store);
    (vault, layered)
}

impl Sealed {
    async fn rotate(&self) -> crate::Result<RotateReport> {
        Rotate::new().run(&self.scratch.store, &self.vault).await
    }

    async fn epochs(&self) -> Vec<u32> {
        HeaderInfo::read(&self.scratch.store).await.unwrap().unwrap().epochs
    }

    /// Opens the vault again.
    async fn open(&self, key: Key) -> crate::Result<Vault> {
        options().open(Arc::new(self.scratch.store.clone()), key).await
    }
}

/// The epoch of every value in the tables.
async fn stored_epochs(store: &SqliteStore) -> Vec<(Record, u32)> {
    let mut epochs = vec![];
    for table in TABLES.iter().filter(|table| table.is_sealed) {
        let mut rows = store.rows();
        rows.begin(table);
        while let Some(page) = rows.next().await.unwrap() {
            for (_, row) in page {
                if let Some(row) = row.unwrap() {
                    epochs.push((record_of(&row), epoch_of(&row)));
                }
            }
        }
    }
    epochs
}

/// The answers of every method that reads.
async fn answers(store: &dyn Backend) -> Vec<String> {
    let mut answers = vec![];
    for method in Method::ALL.iter().filter(|method| matches!(method.access(), Access::Read | Access::Scan)) {
        answers.push(format!("{:?}", Operation::sample(*method).run(store, 0).await.unwrap().sorted()));
    }
    answers.push(format!("{:?}", store.get_session(canaries::SESSION_ADDRESS).await.unwrap()));
    answers.push(format!("{:?}", store.load_identity(canaries::IDENTITY_ADDRESS).await.unwrap()));
    answers.push(format!("{:?}", store.get_version(canaries::COLLECTION).await.unwrap().hash));
    answers.push(format!("{:?}", store.get_sync_key(&[0, 1, 0, 0, 0, 2]).await.unwrap().map(|key| key.fingerprint)));
    answers.push(format!("{:?}", store.get_mutation_mac(canaries::COLLECTION, &canaries::INDEX_MAC).await.unwrap()));
    answers.push(format!("{:?}", store.get_lid_mapping(canaries::LID).await.unwrap()));
    answers.push(format!("{:?}", store.get_devices(canaries::PHONE).await.unwrap()));
    answers.push(format!("{:?}", store.get_tc_token(canaries::TC_JID).await.unwrap()));
    answers.push(format!("{:?}", store.load().await.unwrap().map(|device| device.push_name)));
    answers
}

#[tokio::test]
async fn every_record_is_sealed_again_and_nothing_else_changes() {
    let sealed = sealed().await;
    let before = answers(&*sealed.layered).await;
    let old = sealed.vault.state().cipher.ring.clone();
    let was = stored_epochs(&sealed.scratch.store).await;
    let told = Arc::new(Mutex::new(vec![]));
    let teller = told.clone();
    let rotate = Rotate::new().on_progress(move |progress| teller.lock().unwrap().push(progress));
    let report = rotate.run(&sealed.scratch.store, &sealed.vault).await.unwrap();
    assert_eq!((report.resealed(), report.left_behind()), (was.len() as u64, 0));
    let told = std::mem::take(&mut *told.lock().unwrap());
    assert!(told.windows(2).all(|two| two[0].done <= two[1].done), "{told:?}");
    assert_eq!(told.last().map(|progress| progress.done), Some(told[0].total));

    assert_eq!(sealed.epochs().await, [2]);
    let is = stored_epochs(&sealed.scratch.store).await;
    assert_eq!(is.len(), was.len());
    assert!(is.iter().all(|(_, epoch)| *epoch == 2) && was.iter().all(|(_, epoch)| *epoch == 1), "{was:?} {is:?}");
    let kinds: BTreeSet<_> = is.iter().map(|(record, _)| record.name()).collect();
    assert_eq!(kinds.len(), 15, "{kinds:?}");
    assert_eq!(answers(&*sealed.layered).await, before);
    let report = Verify::new().run(&sealed.scratch.store, &sealed.vault).await.unwrap();
    assert!(report.is_sound(), "{report}");

    // The old data key opens none of the rows.
    assert!(old.epoch(1).is_some() && old.epoch(2).is_none());
    // A vault that opens the store again reads all of them.
    let again = sealed.open(raw_key()).await.unwrap();
    let store: Arc<dyn Backend> = Arc::new(sealed.scratch.store.clone());
    assert_eq!(answers(&*again.layer().layer(store)).await, before);
}

/// The old values and the old header are nowhere in the files, not even in unused bytes.
#[tokio::test]
async fn what_was_there_is_gone_from_the_files() {
    let sealed = sealed().await;
    sealed.scratch.store.checkpoint().await.unwrap();
    let header = sealed.scratch.store.get_sender_key(HeaderCopy::A.address()).await.unwrap().unwrap();
    let mut gone = vec![header[header.len() - 32..].to_vec()];
    for table in TABLES.iter().filter(|table| table.is_sealed) {
        let mut rows = sealed.scratch.store.rows();
        rows.begin(table);
        let page = rows.next().await.unwrap().unwrap();
        for row in page.into_iter().filter_map(|(_, row)| row.unwrap()) {
            let text = matches!(row.record, Record::LidMapping | Record::DeviceList);
            let value = if text { encode_text(&row.value).into_bytes() } else { row.value };
            gone.push(value[value.len() - 20..].to_vec());
        }
    }
    let search = || {
        let files = [sealed.scratch.path.clone(), crate::sqlite::files::with_suffix(&sealed.scratch.path, "-wal")];
        let content: Vec<u8> = files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
        gone.iter().filter(|bytes| memchr::memmem::find(&content, bytes).is_some()).count()
    };
    assert_eq!(search(), gone.len());
    sealed.rotate().await.unwrap();
    assert_eq!(search(), 0, "of {}", gone.len());
}

#[tokio::test]
async fn other_accounts_stay_as_they_are() {
    let sealed = sealed().await;
    let second = sealed.scratch.store.account(2);
    let (_vault, layered) = over(&second, options()).await;
    canaries::fill(&*layered).await;
    sealed.rotate().await.unwrap();
    assert!(stored_epochs(&second).await.iter().all(|(_, epoch)| *epoch == 1));
    assert_eq!(layered.get_session(canaries::SESSION_ADDRESS).await.unwrap().unwrap(), canaries::SESSION);
    assert_eq!(sealed.epochs().await, [2]);
}

/// More rows than a page holds; other tasks delete and store rows while they are sealed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_tasks_go_on_while_keys_change() {
    let sealed = Arc::new(sealed().await);
    let macs: Vec<_> = (0..3000u32)
        .map(|number| wacore::appstate::processor::AppStateMutationMAC {
            index_mac: number.to_be_bytes().repeat(8),
            value_mac: vec![3; 32],
        })
        .collect();
    sealed.layered.put_mutation_macs("many", 1, &macs).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..8u64)
        .map(|task| {
            let (store, over, calls) = (sealed.layered.clone(), over.clone(), calls.clone());
            // Some tasks use their own vault.
            let own = (task % 3 == 0).then(|| sealed.scratch.store.clone());
            tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(task);
                let store = match own {
                    None => store,
                    Some(own) => {
                        let own: Arc<dyn Backend> = Arc::new(own);
                        options().open(own.clone(), raw_key()).await.unwrap().layer().layer(own)
                    }
                };
                let mut rows: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
                while !over.load(Ordering::Relaxed) {
                    calls.fetch_add(1, Ordering::Relaxed);
                    let key = format!("{task} {}", rng.random_range(0..200));
                    let value = vec![rng.random(); rng.random_range(0..2000)];
                    match rng.random_range(0..6) {
                        0 => {
                            store.delete_session(&key).await.unwrap();
                            rows.remove(&key);
                        }
                        1 => {
                            let batch: Vec<_> = (0..100)
                                .map(|row| (format!("{task} {row}").into(), Bytes::from(value.clone())))
                                .collect();
                            store.put_sessions_batch(&batch).await.unwrap();
                            rows.extend(batch.iter().map(|(key, _)| (key.to_string(), vec![value.clone()])));
                        }
                        2 => {
                            // Dropped at a random point: it was stored, will be stored before the
                            // next call, or was not.
                            let polls = rng.random_range(0..3);
                            let done = {
                                let mut call = pin!(store.put_session(&key, &value));
                                let mut done = false;
                                for _ in 0..polls {
                                    done |=
                                        poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_ready())).await;
                                    if done {
                                        break;
                                    }
                                }
                                done
                            };
                            let may_be = rows.entry(key).or_insert_with(|| vec![vec![255]]);
                            if done {
                                may_be.clear();
                            }
                            may_be.push(value);
                        }
                        3 => {
                            let number = rng.random_range(0..3000u32);
                            let index: [u8; 32] = number.to_be_bytes().repeat(8).try_into().unwrap();
                            // Two of eight tasks delete and store again, so that rows move in the
                            // table.
                            if task < 2 {
                                store.delete_mutation_macs("many", &[index.to_vec()]).await.unwrap();
                                let mac = wacore::appstate::processor::AppStateMutationMAC {
                                    index_mac: index.to_vec(),
                                    value_mac: vec![3; 32],
                                };
                                store.put_mutation_macs("many", 2, &[mac]).await.unwrap();
                            } else if let Some(mac) = store.get_mutation_mac("many", &index).await.unwrap() {
                                assert_eq!(mac, [3; 32]);
                            }
                        }
                        _ => {
                            let found = store.get_session(&key).await.unwrap();
                            match rows.get(&key) {
                                None => assert!(found.is_none(), "{key}"),
                                Some(may_be) => match found {
                                    Some(found) => assert!(may_be.iter().any(|value| *value == found), "{key}"),
                                    None => assert!(may_be.len() > 1, "{key} is lost"),
                                },
                            }
                        }
                    }
                }
                rows
            })
        })
        .collect();
    let rounds = if std::env::var_os("WASTORE_LONG").is_some() { 200 } else { 12 };
    for round in 0..rounds {
        sealed.rotate().await.unwrap();
        assert_eq!(sealed.epochs().await, [round + 2]);
    }
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        for (key, may_be) in task.await.unwrap() {
            match sealed.layered.get_session(&key).await.unwrap() {
                Some(found) => assert!(may_be.iter().any(|value| *value == found), "{key}"),
                None => assert!(may_be.len() > 1, "{key} is lost"),
            }
        }
    }
    assert!(stored_epochs(&sealed.scratch.store).await.iter().all(|(_, epoch)| *epoch == rounds + 1));
    let report = Verify::new().run(&sealed.scratch.store, &sealed.vault).await.unwrap();
    assert!(report.is_sound(), "{report}");
    let calls = calls.load(Ordering::Relaxed);
    assert!(calls > 500, "{calls}");
    println!("{rounds} changes of the data key beside {calls} calls");
}

/// A gate that holds every call.
fn closed(side: Side) -> Gate {
    let gate = Gate::default();
    Method::ALL.iter().for_each(|method| gate.close(*method, side));
    gate
}

fn open(gate: &Gate) {
    Method::ALL.iter().for_each(|method| gate.open(*method));
}

/// Every sealing call holds up a change until it is stored: no call writes with the old key
/// afterwards.
#[tokio::test]
async fn calls_under_way_are_waited_for() {
    let sealed = sealed().await;
    for method in Method::ALL.iter().filter(|method| method.access() == Access::Write) {
        let gate = closed(Side::Before);
        let layered = sealed.vault.layer().layer(gate.layer(Arc::new(sealed.scratch.store.clone())));
        let mut call = pin!(async move { canaries::call(&*layered, *method).await.unwrap() });
        let mut rotate = pin!(sealed.rotate());
        for _ in 0..3 {
            assert!(futures::poll!(&mut call).is_pending(), "{}", method.name());
        }
        let seals = !UNSEALED.contains(method);
        if seals {
            let early = tokio::time::timeout(Duration::from_millis(40), &mut rotate).await;
            assert!(early.is_err(), "{} was not waited for", method.name());
        }
        open(&gate);
        call.await;
        rotate.await.unwrap();
        let epoch = sealed.epochs().await[0];
        let epochs = stored_epochs(&sealed.scratch.store).await;
        assert!(epochs.iter().all(|(_, is)| *is == epoch), "{}: {epochs:?}", method.name());
        sealed.layered.save(&canaries::device()).await.unwrap();
    }
}

/// Methods that write, but seal nothing under a data key.
const UNSEALED: [Method; 8] = [
    Method::SetSenderKeyStatus,
    Method::SaveBaseKey,
    Method::PutMsgSecret,
    Method::PutMsgSecrets,
    Method::TouchTcTokenSenderTimestamp,
    Method::MarkPrekeysUploaded,
    // Seals only after its last call to the store.
    Method::Create,
    Method::SnapshotDb,
];

/// A value that was read before a change, and is opened after it.
#[tokio::test]
async fn what_was_read_before_is_opened_after() {
    let sealed = sealed().await;
    let gate = closed(Side::After);
    let layered = sealed.vault.layer().layer(gate.layer(Arc::new(sealed.scratch.store.clone())));
    let mut reading = pin!(layered.get_session(canaries::SESSION_ADDRESS));
    assert!(futures::poll!(&mut reading).is_pending(), "it is held back");
    // A reader that still runs keeps its key.
    let rotate = sealed.rotate();
    let done = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        open(&gate);
    };
    let (rotated, (), read) = tokio::join!(rotate, done, reading);
    rotated.unwrap();
    assert_eq!(read.unwrap().unwrap(), canaries::SESSION);
}

#[tokio::test]
async fn a_store_that_others_have_open_is_refused_unchanged() {
    let sealed = sealed().await;
    let other = config().account(2).open(&sealed.scratch.path).await.unwrap();
    let before = sealed.vault.save_header();
    let refused = sealed.rotate().await;
    assert!(matches!(refused, Err(Error::StoreInUse)), "{refused:?}");
    assert_eq!(sealed.vault.save_header(), before);
    // Both continue to work, and so do new ones.
    other.put_session("a@b", b"c").await.unwrap();
    sealed.layered.put_session("d@e", b"f").await.unwrap();
    drop(config().account(3).open(&sealed.scratch.path).await.unwrap());
    drop(other);
    sealed.layered.put_session("d@e", b"g").await.unwrap();
    let connection = Connection::open(&sealed.scratch.path).unwrap();
    assert_eq!(connection.query_row("DELETE FROM sessions WHERE address = 'a@b' RETURNING 1", (), |_| Ok(())), Ok(()));
    drop(connection);
    sealed.rotate().await.unwrap();
    // Other connections can open the file afterwards.
    let connection = Connection::open(&sealed.scratch.path).unwrap();
    assert_eq!(connection.query_row("SELECT count(*) FROM devices", (), |row| row.get(0)), Ok(1));
}

/// A vault with the same key and the same store id, but on a copy.
#[tokio::test]
async fn a_vault_of_another_store_is_refused() {
    let sealed = sealed().await;
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.db");
    sealed.scratch.store.backup(&copy).await.unwrap();
    let copy = config().open(copy).await.unwrap();
    for wrong in [copy.clone(), copy.account(2), sealed.scratch.store.account(2)] {
        let refused = Rotate::new().run(&wrong, &sealed.vault).await;
        assert!(matches!(refused, Err(Error::InvalidInput { what: "the vault", .. })), "{refused:?}");
    }
    assert_eq!(sealed.epochs().await, [1, 2]);
    sealed.rotate().await.unwrap();
    assert_eq!(sealed.epochs().await, [2]);
    let vault = options().open(Arc::new(copy.clone()), raw_key()).await.unwrap();
    assert!(Verify::new().run(&copy, &vault).await.unwrap().is_sound());
}

#[tokio::test]
async fn damaged_records_keep_the_old_key_unless_they_are_left_behind() {
    let sealed = sealed().await;
    let damage = |sql: &str| {
        let connection = Connection::open(&sealed.scratch.path).unwrap();
        assert_eq!(connection.execute(sql, ()).unwrap(), 1, "{sql}");
    };
    sealed.layered.put_session("another@b", b"another").await.unwrap();
    damage("UPDATE group_metadata SET info = substr(info, 1, 60)");
    // A row that is sealed and in its place, but not encoded as this crate does it.
    damage(
        "UPDATE collection_versions SET index_value_map = CAST(index_value_map || x'0100000061' || x'00000000' AS BLOB)",
    );
    damage("DELETE FROM prekeys WHERE id = 6");
    damage("INSERT INTO prekeys SELECT account, 99, record, uploaded FROM prekeys LIMIT 1");
    let refused = sealed.rotate().await;
    assert!(matches!(refused, Err(Error::DamagedRecords { count: 3 })), "{refused:?}");
    assert_eq!(sealed.epochs().await, [1, 2]);
    assert_eq!(sealed.layered.get_session("another@b").await.unwrap().unwrap(), &b"another"[..]);
    sealed.layered.delete_group_metadata(canaries::GROUP).await.unwrap();
    let refused = sealed.rotate().await;
    assert!(matches!(refused, Err(Error::DamagedRecords { count: 2 })), "{refused:?}");
    let report = Rotate::new().leave_damaged().run(&sealed.scratch.store, &sealed.vault).await.unwrap();
    assert_eq!((report.left_behind(), sealed.epochs().await), (2, vec![2]));
    assert!(report.to_string().ends_with("2 damaged records were left behind"), "{report}");
    assert!(sealed.layered.load_prekey(99).await.is_err());
    assert!(sealed.layered.load_prekey(5).await.unwrap().is_some());
}

#[tokio::test]
async fn it_goes_on_where_it_was_dropped() {
    let mut dropped = 0;
    for polls in (0..).step_by(3) {
        let sealed = sealed().await;
        let before = answers(&*sealed.layered).await;
        let finished = {
            let mut rotate = pin!(sealed.rotate());
            let mut finished = false;
            for _ in 0..polls {
                if let Poll::Ready(report) = futures::poll!(&mut rotate) {
                    report.unwrap();
                    finished = true;
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            finished
        };
        dropped += 1;
        let store: Arc<dyn Backend> = Arc::new(sealed.scratch.store.clone());
        let again = sealed.open(raw_key()).await.unwrap();
        assert_eq!(answers(&*again.layer().layer(store)).await, before, "after {polls}");
        assert_eq!(answers(&*sealed.layered).await, before, "after {polls}");
        Rotate::new().run(&sealed.scratch.store, &again).await.unwrap();
        assert_eq!(sealed.epochs().await.len(), 1);
        assert_eq!(answers(&*sealed.layered).await, before, "after {polls}");
        if finished {
            break;
        }
    }
    assert!(dropped > 4, "{dropped}");
}

#[tokio::test]
async fn sixteen_data_keys_are_the_most_and_all_go() {
    let sealed = sealed().await;
    for number in 0..15 {
        sealed.vault.rotate_data_key().await.unwrap();
        sealed.layered.put_session(&format!("{number}@b"), b"c").await.unwrap();
    }
    let full = sealed.vault.rotate_data_key().await;
    assert!(matches!(full, Err(Error::DataKeysFull)), "{full:?}");
    let revocation = Revocation::prepare(&sealed.vault, new_key()).await.unwrap();
    sealed.vault.revoke(&revocation).await.unwrap();
    assert!(!revocation.has_new_data_key());
    assert_eq!(sealed.epochs().await.len(), 16);
    let before = stored_epochs(&sealed.scratch.store).await;
    assert!(before.iter().map(|(_, epoch)| epoch).collect::<BTreeSet<_>>().len() == 16, "{before:?}");
    sealed.rotate().await.unwrap();
    assert_eq!(sealed.epochs().await, [17], "a new one");
    assert!(stored_epochs(&sealed.scratch.store).await.iter().all(|(_, epoch)| *epoch == 17));
    assert_eq!(sealed.layered.get_session("7@b").await.unwrap().unwrap(), &b"c"[..]);
}

#[tokio::test]
async fn a_store_in_memory_has_one_process() {
    let store = SqliteStore::in_memory().await.unwrap();
    let (vault, layered) = over(&store, options()).await;
    canaries::fill(&*layered).await;
    assert!(Rotate::new().run(&store, &vault).await.unwrap().resealed() > 15);
    assert_eq!(layered.get_session(canaries::SESSION_ADDRESS).await.unwrap().unwrap(), canaries::SESSION);
}

#[tokio::test]
async fn a_header_kept_elsewhere_needs_the_device_to_tell_the_store() {
    let (scratch, other) = (Scratch::new().await, Scratch::new().await);
    let (vault, layered) = over(&scratch.store, options().header_store(Arc::new(Elsewhere::default()))).await;
    canaries::fill(&*layered).await;
    let refused = Rotate::new().run(&other.store, &vault).await;
    assert!(
        matches!(&refused, Err(Error::Store(error)) if matches!(Error::downcast_ref(error), Some(Error::DeviceMissing)))
    );
    assert_eq!(layered.get_session(canaries::SESSION_ADDRESS).await.unwrap().unwrap(), canaries::SESSION);
    Rotate::new().run(&scratch.store, &vault).await.unwrap();
    assert_eq!(layered.get_session(canaries::SESSION_ADDRESS).await.unwrap().unwrap(), canaries::SESSION);
    assert!(stored_epochs(&scratch.store).await.iter().all(|(_, epoch)| *epoch == 2));
}

#[tokio::test]
async fn a_revoked_secret_opens_nothing_and_open_vaults_go_on() {
    let sealed = sealed().await;
    let before = answers(&*sealed.layered).await;
    sealed.vault.add_slot("another", Key::from_bytes(&mut [9; 32])).await.unwrap();
    let saved = sealed.vault.save_header();
    let store: Arc<dyn Backend> = Arc::new(sealed.scratch.store.clone());
    let second = sealed.open(raw_key()).await.unwrap();
    let layered_second = second.layer().layer(store.clone());
    let report = Rotate::new().revoke(&sealed.scratch.store, &options(), raw_key(), new_key()).await.unwrap();
    assert_eq!(report.revoked().len(), 1);
    assert_eq!(sealed.epochs().await, [2]);
    for gone in [raw_key(), Key::from_bytes(&mut [9; 32])] {
        let refused = sealed.open(gone).await;
        assert!(matches!(refused, Err(Error::WrongSecret)), "{refused:?}");
    }
    for layered in [&sealed.layered, &layered_second] {
        assert_eq!(answers(&**layered).await, before);
        layered.put_session("after@b", b"the change").await.unwrap();
    }
    // They can also change the header.
    sealed.vault.add_slot("later", Key::from_bytes(&mut [10; 32])).await.unwrap();
    assert_eq!(second.slots().len(), 1, "as it last saw it");
    second.add_slot("later still", Key::from_bytes(&mut [11; 32])).await.unwrap();
    assert_eq!(second.slots().len(), 3);
    let opened = sealed.open(new_key()).await.unwrap();
    assert_eq!(answers(&*opened.layer().layer(store.clone())).await, before);
    assert!(Verify::new().run(&sealed.scratch.store, &opened).await.unwrap().is_sound());
    // The old header opens with the old secret, but it opens no record.
    let restored = options().restore_header(store.clone(), &saved, raw_key()).await;
    assert!(matches!(restored, Err(Error::VaultExists)), "{restored:?}");
    for copy in [HeaderCopy::A, HeaderCopy::B] {
        let connection = Connection::open(&sealed.scratch.path).unwrap();
        let sql = "UPDATE sender_keys SET record = ?1 WHERE address = ?2";
        connection.execute(sql, (&saved, copy.address())).unwrap();
    }
    let planted = sealed.open(raw_key()).await.unwrap();
    let read = planted.layer().layer(store.clone()).get_session(canaries::SESSION_ADDRESS).await;
    assert!(matches!(Error::downcast_ref(&read.unwrap_err()), Some(Error::UnknownEpoch { .. })));
}

#[tokio::test]
async fn accounts_that_open_with_the_lowest_are_revoked_with_it() {
    let sealed = sealed().await;
    let account = |number| sealed.scratch.store.account(number);
    let create = async |number: i32, secret: Key| {
        let store: Arc<dyn Backend> = Arc::new(account(number));
        let vault = options().create(store.clone(), secret).await.unwrap();
        let layered = vault.layer().layer(store);
        layered.create().await.unwrap();
        layered.put_session("a@b", number.to_string().as_bytes()).await.unwrap();
    };
    create(2, sealed.vault.account_key("account 2")).await;
    create(3, raw_key()).await;
    create(4, Key::from_bytes(&mut [44; 32])).await;
    let derived = sealed.vault.account_key("account 2");
    options().open(Arc::new(account(2)), derived.duplicate()).await.unwrap();
    let report = Rotate::new().except(4).revoke(&sealed.scratch.store, &options(), raw_key(), new_key()).await.unwrap();
    let revoked: Vec<_> = report.revoked().iter().map(|revoked| revoked.account).collect();
    assert_eq!((&revoked[..], report.untouched_accounts()), (&[1, 3, 2][..], &[4][..]));
    for number in [1, 2, 3] {
        let refused = open_account(&account(number), &options(), raw_key()).await;
        assert!(matches!(refused, Err(Error::WrongSecret)), "{number}: {refused:?}");
        let vault = open_account(&account(number), &options(), new_key()).await.unwrap();
        assert_eq!(vault.slots().len(), 1);
        let layered = vault.layer().layer(Arc::new(account(number)));
        if number > 1 {
            assert_eq!(layered.get_session("a@b").await.unwrap().unwrap(), number.to_string().as_bytes());
        }
        assert!(Verify::new().run(&account(number), &vault).await.unwrap().is_sound());
    }
    let other = options().open(Arc::new(account(4)), Key::from_bytes(&mut [44; 32])).await.unwrap();
    let layered = other.layer().layer(Arc::new(account(4)));
    assert_eq!(layered.get_session("a@b").await.unwrap().unwrap(), &b"4"[..]);
    // A key derived from the first account's old vault key does not open it either.
    let old = options().open(Arc::new(account(2)), derived).await;
    assert!(matches!(old, Err(Error::WrongSecret)), "{old:?}");
    let wrong = Rotate::new().revoke(&sealed.scratch.store, &options(), raw_key(), new_key()).await;
    assert!(matches!(wrong, Err(Error::WrongSecret)), "{wrong:?}");
}

/// Dropped at any point, one of the two secrets opens every account.
#[tokio::test]
async fn a_revocation_is_finished_by_the_next_one() {
    let mut finished = false;
    for polls in (0..).step_by(7) {
        let sealed = sealed().await;
        let second = sealed.scratch.store.account(2);
        let store: Arc<dyn Backend> = Arc::new(second.clone());
        let vault = options().create(store.clone(), sealed.vault.account_key("account 2")).await.unwrap();
        vault.layer().layer(store.clone()).put_session("a@b", b"c").await.unwrap();
        drop(vault);
        let passphrase = || Passphrase::new("another one").unwrap();
        {
            let (rotate, options) = (Rotate::new(), options());
            let mut revoke = pin!(rotate.revoke(&sealed.scratch.store, &options, raw_key(), passphrase()));
            for _ in 0..polls {
                if let Poll::Ready(report) = futures::poll!(&mut revoke) {
                    report.unwrap();
                    finished = true;
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let (options, main) = (options(), &sealed.scratch.store);
        let old = open_account(&main, &options, raw_key()).await.is_ok();
        let new = open_account(&main, &options, passphrase()).await.is_ok();
        assert!(old != new, "{polls}: {old} {new}");
        for account in [main, &second] {
            let vault = match old {
                true => open_account(&account, &options, raw_key()).await.unwrap(),
                false => open_account(&account, &options, passphrase()).await.unwrap(),
            };
            assert!(Verify::new().run(account, &vault).await.unwrap().is_sound(), "{polls}");
        }
        let rotate = Rotate::new();
        match old {
            true => rotate.revoke(main, &options, raw_key(), new_key()).await.unwrap(),
            false => rotate.revoke(main, &options, passphrase(), new_key()).await.unwrap(),
        };
        let vault = open_account(&second, &options, new_key()).await.unwrap();
        let session = vault.layer().layer(store).get_session("a@b").await.unwrap();
        assert_eq!(session.unwrap(), &b"c"[..]);
        assert!(open_account(&main, &options, raw_key()).await.is_err());
        if finished {
            break;
        }
    }
}

/// Each of several overlapping changes ends with all records under the newest key.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_at_the_same_time_lose_nothing() {
    for round in 0..if std::env::var_os("WASTORE_LONG").is_some() { 200 } else { 12 } {
        let sealed = sealed().await;
        let sessions: Vec<_> = (0..1500).map(|number| (address(number), Bytes::from(vec![7; 300]))).collect();
        sealed.layered.put_sessions_batch(&sessions).await.unwrap();
        let store: Arc<dyn Backend> = Arc::new(sealed.scratch.store.clone());
        let second = Arc::new(options().open(store.clone(), raw_key()).await.unwrap());
        let revocation = Revocation::prepare(&sealed.vault, new_key()).await.unwrap();
        let pause = |factor: u64| tokio::time::sleep(Duration::from_millis(round * factor));
        let others = async {
            pause(2).await;
            second.rotate_data_key().await.unwrap();
            pause(3).await;
            sealed.vault.revoke(&revocation).await.unwrap();
        };
        let third = async {
            pause(1).await;
            Rotate::new().run(&sealed.scratch.store, &second).await
        };
        let leaving = Rotate::new().leave_damaged();
        let (one, two, ()) = tokio::join!(leaving.run(&sealed.scratch.store, &sealed.vault), third, others);
        one.unwrap();
        two.unwrap();
        // The last change may have left a key for the next one to forget.
        let vault = sealed.open(new_key()).await.unwrap();
        let report = Verify::new().run(&sealed.scratch.store, &vault).await.unwrap();
        assert!(report.is_sound(), "{round}: {report}");
        assert!(report.checked(Record::Session) >= 1500, "{report}");
        Rotate::new().run(&sealed.scratch.store, &vault).await.unwrap();
        assert_eq!(sealed.epochs().await.len(), 1);
        assert!(Verify::new().run(&sealed.scratch.store, &vault).await.unwrap().is_sound());
    }
}

/// Restoring a saved header brings back its slots, but not its data keys.
#[tokio::test]
async fn an_older_header_does_not_take_the_data_key_along() {
    let sealed = sealed().await;
    sealed.vault.add_slot("another", new_key()).await.unwrap();
    let saved = sealed.vault.save_header();
    sealed.vault.remove_slot(1).await.unwrap();
    let before = answers(&*sealed.layered).await;
    sealed.rotate().await.unwrap();
    let store: Arc<dyn Backend> = Arc::new(sealed.scratch.store.clone());
    let restored = options().restore_header(store.clone(), &saved, new_key()).await.unwrap();
    assert_eq!((restored.slots().len(), sealed.epochs().await), (2, vec![2]));
    assert_eq!(answers(&*restored.layer().layer(store.clone())).await, before);
    assert_eq!(answers(&*sealed.layered).await, before);
    // Without any header it reports that, and writes nothing.
    let connection = Connection::open(&sealed.scratch.path).unwrap();
    connection.execute("UPDATE sender_keys SET record = x'00' WHERE address LIKE 'wastore%'", ()).unwrap();
    let refused = options().restore_header(store.clone(), &saved, new_key()).await;
    assert!(matches!(refused, Err(Error::UnknownEpoch { record: Record::Device })), "{refused:?}");
    let damaged = options().open(store, new_key()).await;
    assert!(matches!(damaged, Err(Error::HeaderDamaged(_))), "{damaged:?}");
}

#[tokio::test]
async fn the_new_secret_is_another_one() {
    let sealed = sealed().await;
    let refused = Rotate::new().revoke(&sealed.scratch.store, &options(), raw_key(), raw_key()).await;
    assert!(matches!(refused, Err(Error::InvalidInput { what: "the new secret", .. })), "{refused:?}");
    sealed.vault.add_slot("another", new_key()).await.unwrap();
    let refused = Rotate::new().revoke(&sealed.scratch.store, &options(), raw_key(), new_key()).await;
    assert!(matches!(refused, Err(Error::InvalidInput { what: "the new secret", .. })), "{refused:?}");
    assert_eq!((sealed.epochs().await, sealed.vault.slots().len()), (vec![1], 2));
}
