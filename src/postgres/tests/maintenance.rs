//! Maintenance over a server does what it does over SQLite.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::Connection;
use wacore::store::traits::{Backend, SignalStore};

use super::*;
use crate::encrypt::cipher::epoch_of;
use crate::error::Error;
use crate::maintenance::{Repair, Rotate, Verify, VerifyReport, forget, inspect, open_account};
use crate::method::{Access, Method, Record};
use crate::rows::store::Rows;
use crate::rows::table::{StoredKind, TABLES};
use crate::testing::{Value, arguments, canaries};
use crate::vault::{Argon2Cost, HeaderInfo};
use crate::{Key, Layer, SqliteOptions, SqliteStore, Stack, Vault, VaultOptions};

fn old() -> Key {
    Key::from_bytes(&mut [7; 32])
}

fn vault_options() -> VaultOptions {
    VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM)
}

/// A new vault on a store, with records of every kind.
async fn sealed(store: Arc<dyn Backend>, secret: Key) -> (Vault, Arc<dyn Backend>) {
    let vault = vault_options().create(store.clone(), secret).await.unwrap();
    let layered = vault.layer().layer(store);
    canaries::fill(&*layered).await;
    (vault, layered)
}

async fn answers(store: &dyn Backend) -> Vec<(Method, Value)> {
    let mut answers = vec![];
    for method in Method::ALL.iter().filter(|method| matches!(method.access(), Access::Read | Access::Scan)) {
        let answer = arguments::call(store, *method, &canaries::arguments(), &[canaries::arguments()]).await;
        answers.push((*method, answer.unwrap().sorted()));
    }
    answers
}

async fn epochs(store: &dyn Rows) -> Vec<u32> {
    let mut epochs = vec![];
    for table in TABLES.iter().filter(|table| table.is_sealed) {
        let mut rows = store.rows();
        rows.begin(table);
        while let Some(page) = rows.next().await.unwrap() {
            epochs.extend(page.into_iter().filter_map(|(_, row)| row.unwrap()).map(|row| epoch_of(&row)));
        }
    }
    epochs
}

async fn verify(store: &PostgresStore, vault: &Vault) -> VerifyReport {
    Verify::new().run(store, vault).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_columns_that_copies_know_are_all_columns() {
    let Some(scratch) = scratch() else { return };
    let _store = scratch.store().await;
    let client = scratch.client().await;
    for table in &TABLES {
        let sql = "SELECT column_name, data_type FROM information_schema.columns
            WHERE table_schema = $1 AND table_name = $2 AND column_name NOT IN ('account', 'put_order')";
        let rows = client.query(sql, &[&scratch.schema, &table.name]).await.unwrap();
        let found: BTreeMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let known = table.stored_columns().into_iter().map(|(name, kind)| {
            let name = if name == "user" { "user_id" } else { name };
            let kind = match kind {
                StoredKind::Text | StoredKind::Bytes => "bytea",
                StoredKind::Integer => "bigint",
                StoredKind::Flag => "boolean",
            };
            (name.to_owned(), kind.to_owned())
        });
        assert_eq!(found, known.collect(), "{}", table.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_finds_the_store_below_layers() {
    let Some(scratch) = scratch() else { return };
    let store = scratch.options().open(7).await.unwrap();
    let stack = Stack::new(&store).layer(crate::Metrics::new().layer("database"));
    let closer = stack.closer();
    vault_options().create(stack.into_backend(), old()).await.unwrap();
    // The context is the account's, which only a store can provide.
    assert!(HeaderInfo::read(&store).await.unwrap().unwrap().bound);
    closer.close().await.unwrap();
    assert!(store.get_session("a@b").await.is_err(), "the closer of a stack closes its store");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_is_under_the_new_key_after_a_rotation() {
    let Some(scratch) = scratch() else { return };
    let store = scratch.store().await;
    let (vault, layered) = sealed(Arc::new(store.clone()), old()).await;
    // Several pages.
    for number in 0..1200 {
        layered.put_session(&format!("{number}@b"), &[1; 300]).await.unwrap();
    }
    let (was, before) = (epochs(&store).await, answers(&*layered).await);
    assert!(was.len() > 1200 && was.iter().all(|epoch| *epoch == 1));
    let report = Rotate::new().run(&store, &vault).await.unwrap();
    assert_eq!((report.resealed(), report.left_behind()), (was.len() as u64, 0));
    assert!(report.is_rewritten() && report.remains_on_server(), "{report}");
    assert!(epochs(&store).await.iter().all(|epoch| *epoch == 2));
    assert_eq!(answers(&*layered).await, before);
    assert!(verify(&store, &vault).await.is_sound());
}

/// Another bot is turned away while keys change.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_needs_the_lease() {
    let Some(scratch) = scratch() else { return };
    let bot = scratch.store().await;
    sealed(Arc::new(bot.clone()), old()).await;
    let options = scratch.options().lease_wait(std::time::Duration::ZERO);
    let beside = options.open_without_lease(1).await.unwrap();
    let vault = vault_options().open(&beside, old()).await.unwrap();
    let refused = Rotate::new().run(&beside, &vault).await;
    assert!(matches!(refused, Err(Error::AccountInUse { account: 1, .. })), "{refused:?}");
    bot.close().await.unwrap();
    Rotate::new().run(&beside, &vault).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_secret_opens_neither_account() {
    let Some(scratch) = scratch() else { return };
    let store = scratch.store().await;
    let second = store.account(2).await.unwrap();
    let (vault, _) = sealed(Arc::new(store.clone()), old()).await;
    sealed(Arc::new(second.clone()), vault.account_key("account 2")).await;
    let new = || Key::from_bytes(&mut [8; 32]);
    let report = Rotate::new().revoke(&store, &vault_options(), old(), new()).await.unwrap();
    let revoked: Vec<_> = report.revoked().iter().map(|account| account.account).collect();
    assert_eq!(revoked, [1, 2]);
    for account in [&store, &second] {
        let refused = open_account(account, &vault_options(), old()).await;
        assert!(matches!(refused, Err(Error::WrongSecret)), "{refused:?}");
        let vault = open_account(account, &vault_options(), new()).await.unwrap();
        assert!(verify(account, &vault).await.is_sound());
    }
}

/// The same surgery on a server and on a file: flips a bit of the first sealed value of each table.
#[tokio::test(flavor = "multi_thread")]
async fn verify_names_the_same_damage_as_over_sqlite() {
    let Some(scratch) = scratch() else { return };
    let (store, client) = (scratch.store().await, scratch.client().await);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    let file = SqliteStore::open(&path).await.unwrap();
    let (vault, _) = sealed(Arc::new(store.clone()), old()).await;
    let (vault_of_file, _) = sealed(Arc::new(file.clone()), old()).await;
    let sound = [verify(&store, &vault).await, Verify::new().run(&file, &vault_of_file).await.unwrap()];
    for record in Record::ALL {
        assert_eq!(sound[0].checked(*record), sound[1].checked(*record), "{record}");
    }
    assert!(sound.iter().all(VerifyReport::is_sound), "{sound:?}");
    file.close().await.unwrap();

    let connection = Connection::open(&path).unwrap();
    for table in TABLES.iter().filter(|table| table.is_sealed && table.record != Record::Device) {
        let (name, column) = (table.name, *table.carrier.columns().last().unwrap());
        let filter = if table.record == Record::SenderKey { "address NOT LIKE 'wastore%'" } else { "true" };
        let is_text = matches!(table.carrier, crate::rows::table::Carrier::Text(_));
        // Without its last byte, a value does not verify.
        let (of_file, of_server) = (
            format!("UPDATE {name} SET {column} = substr({column}, 1, length({column}) - 1) WHERE {filter}"),
            format!(
                "UPDATE @.{name} SET {column} = substr({column}, 1, length({column}) - 1) WHERE {}",
                filter.replace("address", "convert_from(address, 'UTF8')")
            ),
        );
        assert!(connection.execute(&of_file, ()).unwrap() > 0, "{name} {is_text}");
        scratch.run(&client, &of_server).await;
    }
    drop(connection);
    let file = SqliteOptions::new().open(&path).await.unwrap();
    let named = |report: &VerifyReport| {
        let mut named: Vec<_> = report.damaged_rows().iter().map(|row| (row.table, row.problem.clone())).collect();
        named.sort();
        named
    };
    let (found, expected) = (verify(&store, &vault).await, Verify::new().run(&file, &vault_of_file).await.unwrap());
    assert!(found.damaged_count() > 10, "{found}");
    assert_eq!(named(&found), named(&expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_that_the_server_cannot_read_is_damaged() {
    let Some(scratch) = scratch() else { return };
    let (store, client) = (scratch.store().await, scratch.client().await);
    let (vault, layered) = sealed(Arc::new(store.clone()), old()).await;
    for number in 0..5 {
        // Longer than a page, so that it lies in a table of its own.
        layered.put_group_metadata(&format!("{number}@g.us"), &vec![number; 30_000]).await.unwrap();
    }
    let before = verify(&store, &vault).await;
    scratch.run(&client, "CREATE EXTENSION IF NOT EXISTS pg_surgery SCHEMA pg_catalog").await;
    let toast = "SELECT reltoastrelid::regclass FROM pg_class WHERE oid = '@.group_metadata'::regclass";
    let toast = scratch.run(&client, toast).await;
    let chunk = scratch.run(&client, &format!("SELECT ctid FROM {toast} LIMIT 1")).await;
    scratch.run(&client, &format!("SELECT heap_force_kill('{toast}', ARRAY['{chunk}'::tid])")).await;
    let after = verify(&store, &vault).await;
    assert_eq!(after.damaged_count(), 1, "{after}");
    assert_eq!(after.damaged_rows()[0].table, "group_metadata");
    assert_eq!(after.checked(Record::GroupMetadata) + 1, before.checked(Record::GroupMetadata));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contact_is_forgotten() {
    let Some(scratch) = scratch() else { return };
    let store = scratch.store().await;
    let (vault, layered) = sealed(Arc::new(store.clone()), old()).await;
    layered.put_session("15550007:1@s.whatsapp.net", b"of the contact").await.unwrap();
    layered.put_session("155500071:1@s.whatsapp.net", b"of another one").await.unwrap();
    layered.put_sender_key("1@g.us:15550007:1@s.whatsapp.net", b"of the contact").await.unwrap();
    let report = forget(&store, &vault, "15550007@s.whatsapp.net").await.unwrap();
    assert_eq!((report.sessions, report.sender_keys), (1, 1), "{report}");
    assert!(!layered.has_session("15550007:1@s.whatsapp.net").await.unwrap());
    assert!(layered.has_session("155500071:1@s.whatsapp.net").await.unwrap());
    assert!(verify(&store, &vault).await.is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_shows_accounts_and_tables() {
    let Some(scratch) = scratch() else { return };
    let store = scratch.store().await;
    let (vault, _) = sealed(Arc::new(store.clone()), old()).await;
    store.account(-3).await.unwrap().put_session("a@b", b"in plaintext").await.unwrap();
    let inspection = inspect(&store).await.unwrap();
    let ids: Vec<_> =
        inspection.accounts.iter().map(|found| (found.number, found.header.as_ref().map(|it| it.store_id))).collect();
    assert_eq!(ids, [(-3, None), (1, Some(vault.store_id()))]);
    let sessions = inspection.tables.iter().find(|table| table.name == "sessions").unwrap();
    assert!(sessions.rows > 1 && sessions.bytes > 30, "{sessions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_barrier_waits_for_calls_whose_callers_are_gone() {
    let Some(scratch) = scratch() else { return };
    let store = scratch.store().await;
    // Fewer than tokio lets a task do without a pause.
    const CALLS: u64 = 100;
    for number in 0..CALLS {
        let address = format!("{number}@b");
        let mut call = Box::pin(store.put_session(&address, b"x"));
        let _ = futures_util::poll!(&mut call);
    }
    Rows::drain(&store).await.unwrap();
    assert_eq!(Rows::count(&store, |table| table.record == Record::Session).await.unwrap(), CALLS);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_rows_are_dropped_after_a_copy() {
    let Some(scratch) = scratch() else { return };
    let (store, client) = (scratch.store().await, scratch.client().await);
    let (vault, layered) = sealed(Arc::new(store.clone()), old()).await;
    layered.put_group_metadata("another@g.us", b"stays").await.unwrap();
    let damage = "UPDATE @.group_metadata SET info = substr(info, 1, length(info) - 1)
        WHERE group_jid = (SELECT group_jid FROM @.group_metadata ORDER BY 1 LIMIT 1)";
    scratch.run(&client, damage).await;
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("before.db");
    let report = Repair::new().run(&store, &vault, &backup).await.unwrap();
    assert_eq!(report.dropped(Record::GroupMetadata), 1, "{report}");
    assert!(verify(&store, &vault).await.is_sound());
    // The copy is a store, and nothing was repaired in it.
    let before = SqliteStore::open(&backup).await.unwrap();
    let vault = open_account(&before, &vault_options(), old()).await.unwrap();
    let report = Verify::new().run(&before, &vault).await.unwrap();
    assert_eq!(report.damaged_count(), 1, "{report}");
}
