//! Maintenance over an engine that is not SQLite.

mod memory;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use wacore::store::traits::{Backend, SignalStore};

use self::memory::{Memory, Row, rows_of};
use super::{Repair, Rotate, Verify, VerifyReport, forget, inspect, open_account, restore_account_header};
use crate::encrypt::cipher::{epoch_of, record_of};
use crate::error::Error;
use crate::method::{Access, Method, Record};
use crate::rows::store::Rows;
use crate::rows::table::{HEADER_ADDRESSES, TABLES, Table};
use crate::secret::Key;
use crate::testing::{Rule, Spy, Subject, Value, arguments, canaries};
use crate::vault::{Argon2Cost, HeaderInfo};
use crate::{Layer, SqliteStore, Stack, Vault, VaultOptions};

fn old() -> Key {
    Key::from_bytes(&mut [7; 32])
}

fn new() -> Key {
    Key::from_bytes(&mut [8; 32])
}

fn options() -> VaultOptions {
    VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM)
}

fn table(name: &str) -> &'static Table {
    TABLES.iter().find(|table| table.name == name).unwrap()
}

/// A new vault on a store, with records of every kind.
async fn sealed(store: &(impl Backend + Clone + 'static), secret: Key) -> (Vault, Arc<dyn Backend>) {
    let store: Arc<dyn Backend> = Arc::new(store.clone());
    let vault = options().create(store.clone(), secret).await.unwrap();
    let layered = vault.layer().layer(store);
    canaries::fill(&*layered).await;
    (vault, layered)
}

fn layered(vault: &Vault, store: &Memory) -> Arc<dyn Backend> {
    vault.layer().layer(Arc::new(store.clone()))
}

/// The answers of every method that reads.
async fn answers(store: &dyn Backend) -> Vec<(Method, Value)> {
    let mut answers = vec![];
    for method in Method::ALL.iter().filter(|method| matches!(method.access(), Access::Read | Access::Scan)) {
        let answer = arguments::call(store, *method, &canaries::arguments(), &[canaries::arguments()]).await;
        answers.push((*method, answer.unwrap().sorted()));
    }
    answers
}

/// The epoch of every sealed value.
async fn epochs(store: &dyn Rows) -> Vec<(Record, u32)> {
    let mut epochs = vec![];
    for table in TABLES.iter().filter(|table| table.is_sealed) {
        let mut rows = store.rows();
        rows.begin(table);
        while let Some(page) = rows.next().await.unwrap() {
            let rows = page.into_iter().filter_map(|(_, row)| row.unwrap());
            epochs.extend(rows.map(|row| (record_of(&row), epoch_of(&row))));
        }
    }
    epochs
}

async fn verify(store: &Memory, vault: &Vault) -> VerifyReport {
    Verify::new().run(store, vault).await.unwrap()
}

/// Alters the row at a position in a table of account 1.
fn alter(store: &Memory, table: &'static Table, place: usize, alter: impl FnOnce(&mut Row)) {
    let mut map = store.map();
    let key = rows_of(&map, 1, table).nth(place - 1).unwrap().0.clone();
    alter(map.get_mut(&(1, table.name, key)).unwrap());
}

fn flip(row: &mut Row) {
    *row.carrier[0].last_mut().unwrap() ^= 1;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_keeps_every_rule_of_the_conformance_kit() {
    let constructor = || {
        let store = Memory::new();
        Subject::new(Arc::new(store.clone())).second_account(Arc::new(store.account(2)))
    };
    let required = Rule::ALL.iter().filter(|rule| !rule.is_optional());
    futures::future::join_all(required.map(|rule| rule.check(async || constructor()))).await;
}

#[tokio::test]
async fn a_vault_finds_the_engine_below_layers() {
    let store = Memory::new();
    let below = |store: Memory| Stack::new(Arc::new(store)).layer(Spy::new()).into_backend();
    options().create(below(store.account(7)), old()).await.unwrap();
    // The context is the account's, which only a store can provide.
    assert!(HeaderInfo::read(&store.account(7)).await.unwrap().unwrap().bound);
    let error = options().open_or_create(below(store.clone()), old()).await.unwrap_err();
    assert!(matches!(&error, Error::OtherAccounts { account: 1, others } if *others == [7]), "{error:?}");
}

#[tokio::test]
async fn verify_counts_what_it_counts_over_sqlite() {
    let (store, sqlite) = (Memory::new(), SqliteStore::in_memory().await.unwrap());
    let (vault, _) = sealed(&store, old()).await;
    let (vault_of_sqlite, _) = sealed(&sqlite, old()).await;
    let report = verify(&store, &vault).await;
    let expected = Verify::new().run(&sqlite, &vault_of_sqlite).await.unwrap();
    assert!(report.is_sound(), "{report}");
    assert!(expected.is_sound(), "{expected}");
    for record in Record::ALL {
        assert_eq!(report.checked(*record), expected.checked(*record), "{record}");
    }
    let all: u64 = Record::ALL.iter().map(|record| report.checked(*record)).sum();
    assert_eq!(all, store.map().len() as u64 - 2, "everything but the copies of the header");
    assert_eq!(verify(&Memory::new(), &vault).await.damaged_count(), 2, "neither a header nor a device is there");
}

#[tokio::test]
async fn damage_is_named_by_its_place_and_dropped() {
    let store = Memory::new();
    let (vault, layered) = sealed(&store, old()).await;
    for group in 0..7 {
        layered.put_group_metadata(&format!("{group}@g.us"), b"of a group").await.unwrap();
    }
    let before = verify(&store, &vault).await;
    let groups = table("group_metadata");
    for place in [2, 3, 7] {
        alter(&store, groups, place, flip);
    }
    alter(&store, groups, 5, |row| row.is_lost = true);
    let report = verify(&store, &vault).await;
    let named: Vec<_> = report.damaged_rows().iter().map(|damaged| (damaged.table, damaged.row)).collect();
    assert_eq!(named, [2, 3, 5, 7].map(|place| (groups.name, place)), "{report}");

    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("before");
    store.take_upkeep();
    let repaired = Repair::new().run(&store, &vault, &backup).await.unwrap();
    assert_eq!(store.take_upkeep(), ["refuse_others", "refuse_damage", "back_up"]);
    assert!(std::fs::metadata(&backup).unwrap().len() > 1000);
    assert_eq!(repaired.dropped(Record::GroupMetadata), 4, "{repaired}");
    let after = verify(&store, &vault).await;
    assert!(after.is_sound(), "{after}");
    for record in Record::ALL {
        let dropped = if *record == Record::GroupMetadata { 4 } else { 0 };
        assert_eq!(after.checked(*record) + dropped, before.checked(*record), "{record}");
    }
}

/// A position belongs to another row once an earlier row is gone.
#[tokio::test]
async fn what_takes_the_place_of_a_damaged_row_stays() {
    let store = Memory::new();
    let (vault, _) = sealed(&store, old()).await;
    let damaged = (1, "sender_keys", vec![b"wastorevault".to_vec()]);
    store.map().insert(damaged.clone(), Row { is_lost: true, ..Row::default() });
    assert_eq!(verify(&store, &vault).await.damaged_count(), 1);
    let writer = store.clone();
    store.before_change(move |_| {
        let (writer, damaged) = (writer.clone(), damaged.clone());
        Box::pin(async move { drop(writer.map().remove(&damaged)) })
    });
    let folder = tempfile::tempdir().unwrap();
    let repaired = Repair::new().run(&store, &vault, folder.path().join("before")).await.unwrap();
    assert!(repaired.is_empty(), "{repaired}");
    // The header's copy A came after it.
    assert!(store.get_sender_key(HEADER_ADDRESSES[0]).await.unwrap().is_some());
    assert!(verify(&store, &vault).await.is_sound());
}

#[tokio::test]
async fn an_engine_that_fails_is_not_taken_for_damage() {
    let store = Memory::new();
    let (vault, _) = sealed(&store, old()).await;
    let before = store.map().clone();
    store.database.is_gone.store(true, Ordering::Relaxed);
    let verified = Verify::new().run(&store, &vault).await;
    assert!(matches!(verified, Err(Error::Store(_))), "{verified:?}");
    let folder = tempfile::tempdir().unwrap();
    let repaired = Repair::new().run(&store, &vault, folder.path().join("before")).await;
    assert!(matches!(repaired, Err(Error::Store(_))), "{repaired:?}");
    assert_eq!(*store.map(), before);
    let rotated = Rotate::new().leave_damaged().run(&store, &vault).await;
    assert!(matches!(rotated, Err(Error::Store(_))), "{rotated:?}");
    store.database.is_gone.store(false, Ordering::Relaxed);
    assert!(verify(&store, &vault).await.is_sound());
    Rotate::new().run(&store, &vault).await.unwrap();
}

#[tokio::test]
async fn every_value_is_under_the_new_key_after_a_rotation() {
    let store = Memory::new();
    let (vault, layered) = sealed(&store, old()).await;
    let (was, before) = (epochs(&store).await, answers(&*layered).await);
    assert!(was.iter().all(|(_, epoch)| *epoch == 1));
    assert!(before.iter().all(|(_, answer)| *answer != Value::Nothing), "{before:?}");
    store.take_upkeep();
    let report = Rotate::new().run(&store, &vault).await.unwrap();
    assert_eq!(store.take_upkeep(), ["refuse_damage", "refuse_others", "refuse_others", "drain", "rewrite"]);
    assert_eq!((report.resealed(), report.left_behind()), (was.len() as u64, 0));
    let is = epochs(&store).await;
    assert_eq!(is, was.iter().map(|(record, _)| (*record, 2)).collect::<Vec<_>>());
    assert_eq!(answers(&*layered).await, before);
    assert_eq!(HeaderInfo::read(&store).await.unwrap().unwrap().epochs, [2]);
    assert!(verify(&store, &vault).await.is_sound());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_waits_for_a_check_that_is_under_way() {
    let store = Memory::new();
    let (vault, _layered) = sealed(&store, old()).await;
    let vault = Arc::new(vault);
    let (told, rotated) = tokio::sync::oneshot::channel();
    let (rotating, under) = (store.clone(), vault.clone());
    store.before_count(Box::pin(async move {
        let rotation = tokio::spawn(async move { Rotate::new().run(&rotating, &under).await.unwrap().resealed() });
        // Time enough for it to end, if it did not wait.
        tokio::time::sleep(Duration::from_millis(300)).await;
        told.send(rotation).unwrap();
    }));
    let report = verify(&store, &vault).await;
    assert!(report.is_sound(), "{report}");
    assert!(rotated.await.unwrap().await.unwrap() > 0);
    assert!(epochs(&store).await.iter().all(|(_, epoch)| *epoch == 2));
    assert!(verify(&store, &vault).await.is_sound());
}

#[tokio::test]
async fn a_rotation_never_replaces_what_is_newer() {
    let store = Memory::new();
    let (vault, layered) = sealed(&store, old()).await;
    for number in 0..8 {
        layered.put_session(&format!("{number}@b"), b"before").await.unwrap();
    }
    let sealed = epochs(&store).await.len() as u64;
    let rounds = Arc::new(AtomicU32::new(0));
    let (writer, round) = (layered.clone(), rounds.clone());
    store.before_change(move |table| {
        let (writer, round) = (writer.clone(), round.clone());
        Box::pin(async move {
            if table.name == "sessions" {
                let round = round.fetch_add(1, Ordering::Relaxed);
                writer.delete_session("0@b").await.unwrap();
                for number in 1..7 {
                    writer.put_session(&format!("{number}@b"), &round.to_le_bytes()).await.unwrap();
                }
                writer.put_session(&format!("{round}@c"), b"stored between pages").await.unwrap();
            }
        })
    });
    let report = Rotate::new().run(&store, &vault).await.unwrap();
    let last = rounds.load(Ordering::Relaxed) - 1;
    // One row was deleted and six were stored again before they could be replaced.
    assert_eq!(report.resealed(), sealed - 7);
    assert!(layered.get_session("0@b").await.unwrap().is_none());
    for number in 1..7 {
        let session = layered.get_session(&format!("{number}@b")).await.unwrap().unwrap();
        assert_eq!(session, &last.to_le_bytes()[..], "{number}");
    }
    assert_eq!(layered.get_session("7@b").await.unwrap().unwrap(), &b"before"[..]);
    assert!((0..=last).all(|round| futures::executor::block_on(layered.has_session(&format!("{round}@c"))).unwrap()));
    assert!(epochs(&store).await.iter().all(|(_, epoch)| *epoch == 2));
    assert!(verify(&store, &vault).await.is_sound());
}

#[tokio::test]
async fn a_revoked_secret_opens_neither_account() {
    let store = Memory::new();
    let second = store.account(2);
    let (vault, above) = sealed(&store, old()).await;
    let derived = vault.account_key("account 2");
    let (_, above_second) = sealed(&second, derived.duplicate()).await;
    let before = [answers(&*above).await, answers(&*above_second).await];
    let report = Rotate::new().revoke(&store, &options(), old(), new()).await.unwrap();
    let revoked: Vec<_> = report.revoked().iter().map(|account| account.account).collect();
    assert_eq!(revoked, [1, 2]);
    let refused = options().open(Arc::new(second.clone()), derived).await;
    assert!(matches!(refused, Err(Error::WrongSecret)), "{refused:?}");
    for (account, before) in [store, second].iter().zip(before) {
        let refused = open_account(account, &options(), old()).await;
        assert!(matches!(refused, Err(Error::WrongSecret)), "{account:?}: {refused:?}");
        let vault = open_account(account, &options(), new()).await.unwrap();
        assert_eq!(answers(&*layered(&vault, account)).await, before, "{account:?}");
        assert!(epochs(account).await.iter().all(|(_, epoch)| *epoch == 2), "{account:?}");
        assert!(verify(account, &vault).await.is_sound(), "{account:?}");
    }
}

#[tokio::test]
async fn a_saved_header_is_put_back_with_the_key_of_another_vault() {
    let store = Memory::new();
    let (vault, _) = sealed(&store, old()).await;
    let second = store.account(2);
    let (vault_of_second, above) = sealed(&second, vault.account_key("account 2")).await;
    let (saved, before) = (vault_of_second.save_header(), answers(&*above).await);
    drop((vault_of_second, above));
    assert_eq!(answers(&*layered(&open_account(&second, &options(), old()).await.unwrap(), &second)).await, before);
    for address in HEADER_ADDRESSES {
        second.put_sender_key(address, b"damaged").await.unwrap();
    }
    let refused = open_account(&second, &options(), old()).await;
    assert!(matches!(refused, Err(Error::HeaderDamaged(_))), "{refused:?}");
    let restored = restore_account_header(&second, &options(), &saved, old()).await.unwrap();
    assert_eq!(answers(&*layered(&restored, &second)).await, before);
    assert!(verify(&second, &restored).await.is_sound());
}

#[tokio::test]
async fn inspect_shows_accounts_and_tables_without_a_key() {
    let store = Memory::new();
    let (vault, _) = sealed(&store, old()).await;
    store.account(-3).put_session("a@b", b"in plaintext").await.unwrap();
    let inspection = inspect(&store).await.unwrap();
    let ids: Vec<_> =
        inspection.accounts.iter().map(|found| (found.number, found.header.as_ref().map(|it| it.store_id))).collect();
    assert_eq!(ids, [(-3, None), (1, Some(vault.store_id()))]);
    assert_eq!(inspection.tables.len(), TABLES.len());
    let rows: u64 = inspection.tables.iter().map(|table| table.rows).sum();
    assert_eq!(rows, store.map().len() as u64);
    let sessions = inspection.tables.iter().find(|table| table.name == "sessions").unwrap();
    assert_eq!(sessions.rows, 3, "a session and an identity, and the session of the other account");
}

#[tokio::test]
async fn a_contact_is_forgotten_by_either_name() {
    let store = Memory::new();
    let (vault, layered) = sealed(&store, old()).await;
    let (phone, other) = (canaries::PHONE, "15550107777");
    let sender_key = |group: u32, user: &str| format!("{group}@g.us:{user}@s.whatsapp.net.0");
    for group in 0..4 {
        for user in [phone, other] {
            layered.put_sender_key(&sender_key(group, user), b"of a group").await.unwrap();
        }
    }
    for user in [phone, other] {
        layered.put_session(&format!("{user}:3@s.whatsapp.net"), b"a session").await.unwrap();
        layered.put_identity(&format!("{user}@s.whatsapp.net"), canaries::IDENTITY_KEY).await.unwrap();
    }
    let before = store.map().len();
    let report = forget(&store, &vault, &format!("{}@lid", canaries::LID)).await.unwrap();
    assert_eq!((report.sessions, report.identities, report.sender_keys), (2, 1, 4), "{report}");
    assert_eq!(store.map().len(), before - 7);
    assert!(!layered.has_session(canaries::SESSION_ADDRESS).await.unwrap());
    assert!(layered.has_session(&format!("{other}:3@s.whatsapp.net")).await.unwrap());
    for group in 0..4 {
        assert!(layered.get_sender_key(&sender_key(group, phone)).await.unwrap().is_none());
        assert!(layered.get_sender_key(&sender_key(group, other)).await.unwrap().is_some());
    }
    assert!(verify(&store, &vault).await.is_sound());
    assert!(forget(&store, &vault, phone).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_vault_of_another_store_is_refused() {
    let (store, other) = (Memory::new(), Memory::new());
    let (vault, _) = sealed(&store, old()).await;
    sealed(&other, old()).await;
    let (before, folder) = (other.map().clone(), tempfile::tempdir().unwrap());
    let refused = [
        Rotate::new().run(&other, &vault).await.map(drop),
        Repair::new().run(&other, &vault, folder.path().join("before")).await.map(drop),
        forget(&other, &vault, canaries::PHONE).await.map(drop),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(Error::InvalidInput { what: "the vault", .. })), "{refused:?}");
    }
    assert_eq!(*other.map(), before);
    // Neither store has lost a record.
    Rotate::new().run(&store, &vault).await.unwrap();
    assert!(verify(&store, &vault).await.is_sound());
}

#[tokio::test]
async fn a_store_that_others_use_is_not_changed() {
    let store = Memory::new();
    let (vault, _) = sealed(&store, old()).await;
    alter(&store, table("group_metadata"), 1, flip);
    let (before, folder) = (store.map().clone(), tempfile::tempdir().unwrap());
    store.database.is_shared.store(true, Ordering::Relaxed);
    let refused = [
        Rotate::new().leave_damaged().run(&store, &vault).await.map(drop),
        Rotate::new().revoke(&store, &options(), old(), new()).await.map(drop),
        Repair::new().run(&store, &vault, folder.path().join("before")).await.map(drop),
        forget(&store, &vault, canaries::PHONE).await.map(drop),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(Error::StoreInUse)), "{refused:?}");
    }
    assert_eq!(*store.map(), before);
    assert!(!folder.path().join("before").exists());
    store.database.is_shared.store(false, Ordering::Relaxed);
    Rotate::new().leave_damaged().run(&store, &vault).await.unwrap();
    assert_ne!(*store.map(), before);
}
