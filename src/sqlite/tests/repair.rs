//! A repair drops the damaged records and nothing else, and forgets a contact completely.

use rusqlite::Connection;
use wacore::store::traits::Backend;

use super::verify::{Sealed, damages, sealed};
use super::*;
use crate::maintenance::forget;
use crate::maintenance::inspect;
use crate::maintenance::{Repair, Verify};
use crate::testing::canaries;
use crate::vault::OnDamage;
use crate::vault::OpenMode;
use crate::{Key, Layer, Record, Vault, VaultOptions};

/// A damaged copy of a store.
struct Damaged {
    store: SqliteStore,
    vault: Vault,
    path: PathBuf,
}

impl Damaged {
    async fn copy_of(sealed: &Sealed, sql: &str) -> Self {
        let path = sealed.scratch.path.with_file_name("damaged.db");
        for file in ["damaged.db", "backup.db"] {
            std::fs::remove_file(sealed.scratch.path.with_file_name(file)).ok();
        }
        Connection::open(&sealed.scratch.path).unwrap().execute("VACUUM INTO ?1", (path.to_str().unwrap(),)).unwrap();
        assert!(Connection::open(&path).unwrap().execute(sql, ()).unwrap() > 0, "{sql} changes nothing");
        let store = config().open(&path).await.unwrap();
        let vault = VaultOptions::new().open(Arc::new(store.clone()), Key::from_bytes(&mut [7; 32])).await.unwrap();
        Self { store, vault, path }
    }

    fn backup(&self) -> PathBuf {
        self.path.with_file_name("backup.db")
    }

    async fn repair(&self) -> crate::Result<crate::maintenance::RepairReport> {
        Repair::new().run(&self.store, &self.vault, self.backup()).await
    }

    async fn rows(&self) -> Vec<(&'static str, u64)> {
        let tables = inspect(&self.store).await.unwrap().tables;
        tables.into_iter().map(|table| (table.name, table.rows)).collect()
    }
}

#[tokio::test]
async fn every_damage_that_is_named_is_dropped_and_nothing_else() {
    let sealed = sealed().await;
    for (table, sql) in damages() {
        let damaged = Damaged::copy_of(&sealed, &sql).await;
        let before = damaged.rows().await;
        let named = Verify::new().run(&damaged.store, &damaged.vault).await.unwrap();
        let repaired = damaged.repair().await;
        if table == "devices" {
            // Without a device there is no account left to repair.
            assert!(repaired.is_err(), "{sql}");
            assert!(!damaged.backup().exists());
            assert_eq!(damaged.rows().await, before);
            continue;
        }
        let report = repaired.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let after = Verify::new().run(&damaged.store, &damaged.vault).await.unwrap();
        assert!(after.is_sound(), "{sql}: {after}");
        assert!(report.to_string().contains("dropped"), "{report}");
        for ((name, before), (_, after)) in before.iter().zip(damaged.rows().await) {
            let of_app_state = ["mutation_macs", "collection_versions"];
            match () {
                () if of_app_state.contains(name) && of_app_state.contains(&table) => {
                    assert_eq!(after, 0, "{sql}: {name}")
                }
                () if *name == table && *name == "sender_key_devices" => assert_eq!(after, 0),
                () if *name == table => assert_eq!(before - after, named.damaged_count(), "{sql}"),
                () => assert_eq!(after, *before, "{sql}: {name}"),
            }
        }
        // The copy is as the store was before.
        let copy = config().open(damaged.backup()).await.unwrap();
        let vault = VaultOptions::new().open(Arc::new(copy.clone()), Key::from_bytes(&mut [7; 32])).await.unwrap();
        assert_eq!(Verify::new().run(&copy, &vault).await.unwrap().damaged_count(), named.damaged_count(), "{sql}");
        drop((copy, vault));
        // A second repair does nothing, and makes no copy.
        std::fs::remove_file(damaged.backup()).unwrap();
        assert!(damaged.repair().await.unwrap().is_empty());
        assert!(!damaged.backup().exists());
    }
}

#[tokio::test]
async fn what_only_a_backup_helps_against_is_not_repaired() {
    let sealed = sealed().await;
    let saved = sealed.vault.save_header();
    // Records under a data key that the header lacks.
    let damaged = Damaged::copy_of(&sealed, "UPDATE sessions SET record = record").await;
    crate::maintenance::Rotate::new().run(&damaged.store, &damaged.vault).await.unwrap();
    let connection = Connection::open(&damaged.path).unwrap();
    for copy in HeaderCopy::BOTH {
        connection.execute("UPDATE sender_keys SET record = ?1 WHERE address = ?2", (&saved, copy.address())).unwrap();
    }
    drop(connection);
    let before = damaged.rows().await;
    let vault = VaultOptions::new()
        .mode(OpenMode::ReadOnly)
        .open(Arc::new(damaged.store.clone()), Key::from_bytes(&mut [7; 32]))
        .await;
    let error = Repair::new().run(&damaged.store, &vault.unwrap(), damaged.backup()).await.unwrap_err();
    assert!(matches!(error, Error::UnknownEpoch { .. } | Error::HeaderRolledBack), "{error:?}");
    assert_eq!(damaged.rows().await, before);
    // With the vault of another store every record would look damaged.
    let other = super::verify::sealed().await;
    let error = Repair::new().run(&other.scratch.store, &sealed.vault, damaged.backup()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
    assert!(!damaged.backup().exists());
}

/// Damage of the bytes that name the data key looks like an older header. Only the operator can
/// decide.
#[tokio::test]
async fn records_under_an_unknown_key_are_dropped_only_on_request() {
    let sealed = sealed().await;
    let sql = "UPDATE sessions SET record = CAST(substr(record, 1, 6) || x'ffffff00' || substr(record, 11) AS BLOB)";
    let damaged = Damaged::copy_of(&sealed, sql).await;
    assert!(matches!(damaged.repair().await, Err(Error::UnknownEpoch { .. })));
    assert!(!damaged.backup().exists());
    let repair = Repair::new().unknown_keys();
    let report = repair.run(&damaged.store, &damaged.vault, damaged.backup()).await.unwrap();
    assert!(report.dropped(Record::Session) > 0 && damaged.backup().exists(), "{report}");
    assert!(Verify::new().run(&damaged.store, &damaged.vault).await.unwrap().is_sound());
}

#[tokio::test]
async fn without_the_copy_nothing_is_dropped() {
    let sealed = sealed().await;
    let damaged = Damaged::copy_of(&sealed, "UPDATE sessions SET record = x'e757'").await;
    let before = damaged.rows().await;
    std::fs::write(damaged.backup(), "something else").unwrap();
    assert!(matches!(damaged.repair().await, Err(Error::TargetExists { .. })));
    assert_eq!(damaged.rows().await, before);
}

#[tokio::test]
async fn a_contact_is_forgotten_under_both_of_its_names() {
    let sealed = sealed().await;
    let store: Arc<dyn Backend> = Arc::new(sealed.scratch.store.clone());
    let layered = sealed.vault.layer().layer(store.clone());
    let (lid, phone) = (canaries::LID, canaries::PHONE);
    let contact = [
        format!("{phone}:7@s.whatsapp.net"),
        format!("{phone}@c.us.0"),
        format!("{lid}@lid.0"),
        format!("{lid}:33@lid.0"),
        phone.to_owned(),
    ];
    let other = [format!("{phone}1@c.us.0"), format!("1{phone}@c.us.0"), "another user".to_owned()];
    for address in contact.iter().chain(&other) {
        layered.put_session(address, b"session").await.unwrap();
        layered.put_identity(address, [7; 32]).await.unwrap();
        layered.put_sender_key(&format!("120363@g.us:{address}"), b"sender key").await.unwrap();
    }
    // A row that no key opens any more.
    let token = crate::encrypt::columns::addresses_of_user(sealed.vault.state().cipher.lookup(), phone).unwrap().prefix;
    let planted = format!("{}@damaged", &*token);
    store.put_session(&planted, b"nonsense").await.unwrap();
    let before = Verify::new().run(&sealed.scratch.store, &sealed.vault).await.unwrap();

    let report = forget(&sealed.scratch.store, &sealed.vault, &format!("+{phone}:7@s.whatsapp.net")).await.unwrap();
    // One of them is the session of the sample.
    assert_eq!((report.sessions, report.identities, report.sender_keys), (6, 5, 5), "{report}");
    for address in &contact {
        assert!(!layered.has_session(address).await.unwrap(), "{address}");
        assert!(layered.load_identity(address).await.unwrap().is_none());
        assert!(layered.get_sender_key(&format!("120363@g.us:{address}")).await.unwrap().is_none());
    }
    for address in &other {
        assert!(layered.has_session(address).await.unwrap(), "{address}");
        assert!(layered.load_identity(address).await.unwrap().is_some());
        assert!(layered.get_sender_key(&format!("120363@g.us:{address}")).await.unwrap().is_some());
    }
    let after = Verify::new().run(&sealed.scratch.store, &sealed.vault).await.unwrap();
    assert_eq!(before.damaged_count(), 1);
    assert!(after.is_sound(), "{after}");
    assert_eq!(before.checked(Record::SenderKey) - after.checked(Record::SenderKey), 5);
    let nothing = forget(&sealed.scratch.store, &sealed.vault, lid).await.unwrap();
    assert_eq!((nothing.sessions, nothing.identities, nothing.sender_keys), (0, 0, 0));
    for bystander in ["", "@s.whatsapp.net", "+"] {
        let error = forget(&sealed.scratch.store, &sealed.vault, bystander).await.unwrap_err();
        assert!(matches!(error, Error::InvalidInput { .. }), "{bystander}: {error:?}");
    }
}

#[tokio::test]
async fn what_the_protocol_renegotiates_may_count_as_absent() {
    let sealed = sealed().await;
    let end = with_another_end("record");
    let reads: [(&str, &str); 6] = [
        ("session", &format!("UPDATE sessions SET record = {end}")),
        ("session", "UPDATE sessions SET record = zeroblob(100)"),
        ("prekey", &format!("UPDATE prekeys SET record = {end}")),
        ("sender key", &format!("UPDATE sender_keys SET record = {end} WHERE address NOT LIKE 'wastore%'")),
        ("signed prekey", "UPDATE signed_prekeys SET record = x'e757'"),
        (
            "unknown key",
            "UPDATE sessions SET record = CAST(substr(record, 1, 6) || x'ffffff00' || substr(record, 11) AS BLOB)",
        ),
    ];
    for (what, sql) in reads {
        let damaged = Damaged::copy_of(&sealed, sql).await;
        for on_damage in [OnDamage::Error, OnDamage::TreatAsAbsent, OnDamage::Renegotiate] {
            let options = VaultOptions::new().on_damage(on_damage);
            let store = Arc::new(damaged.store.clone());
            let vault = options.open(store.clone(), Key::from_bytes(&mut [7; 32])).await.unwrap();
            let layered = vault.layer().layer(store);
            let renegotiates = on_damage == OnDamage::Renegotiate;
            match what {
                "session" => {
                    let (session, identity) = (
                        layered.get_session(canaries::SESSION_ADDRESS).await,
                        layered.load_identity(canaries::IDENTITY_ADDRESS).await,
                    );
                    assert_eq!(session.is_ok_and(|session| session.is_none()), renegotiates);
                    assert_eq!(identity.is_ok_and(|identity| identity.is_none()), renegotiates);
                    assert_eq!(layered.has_session(canaries::SESSION_ADDRESS).await.unwrap(), !renegotiates);
                    assert_eq!(vault.damaged_records(), if renegotiates { 3 } else { 0 });
                }
                "prekey" => {
                    let id = canaries::arguments().prekey_id;
                    assert_eq!(layered.load_prekey(id).await.is_ok_and(|prekey| prekey.is_none()), renegotiates);
                    let batch = layered.load_prekeys_batch(&[id]).await;
                    assert_eq!(batch.is_ok_and(|batch| batch.is_empty()), renegotiates);
                }
                "sender key" => {
                    let key = layered.get_sender_key(canaries::SENDER_KEY_ADDRESS).await;
                    assert_eq!(key.is_ok_and(|key| key.is_none()), renegotiates);
                }
                "signed prekey" => assert!(layered.load_all_signed_prekeys().await.is_err()),
                _ => {
                    layered.get_session(canaries::SESSION_ADDRESS).await.unwrap_err();
                }
            }
        }
    }
}
