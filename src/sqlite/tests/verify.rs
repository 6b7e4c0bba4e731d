//! The check finds and names all damage to a sealed store, and nothing else.

use rusqlite::Connection;
use wacore::store::traits::Backend;

use super::*;
use crate::encrypt::{Vault, VaultOptions};
use crate::maintenance::inspect;
use crate::maintenance::{Verify, VerifyReport};
use crate::secret::Key;
use crate::testing::canaries;
use crate::{Layer, Record};

pub(super) struct Sealed {
    pub(super) scratch: Scratch,
    pub(super) vault: Vault,
}

/// A store with two rows in every table that can have them, all written through the encrypting
/// layer.
pub(super) async fn sealed() -> Sealed {
    let scratch = Scratch::new().await;
    let store: Arc<dyn Backend> = Arc::new(scratch.store.clone());
    let vault = VaultOptions::new().create(store.clone(), Key::from_bytes(&mut [7; 32])).await.unwrap();
    let layered = vault.layer().layer(store);
    canaries::fill(&*layered).await;
    layered.put_session("15550009999@s.whatsapp.net", b"another").await.unwrap();
    layered.put_sender_key("another", b"another").await.unwrap();
    layered.store_signed_prekey(9, b"another").await.unwrap();
    layered.put_group_metadata("another@g.us", b"another").await.unwrap();
    layered.store_sent_message("another", "another", b"another").await.unwrap();
    layered.set_sync_key(b"another", canaries::sync_key()).await.unwrap();
    layered.set_version("another", canaries::version()).await.unwrap();
    layered.put_mutation_macs("another", 1, &[canaries::mac()]).await.unwrap();
    layered.put_tc_token("another@lid", &canaries::tc_token()).await.unwrap();
    let user = "another".to_owned();
    layered
        .update_device_list(wacore::store::traits::DeviceListRecord { user, ..canaries::device_list() })
        .await
        .unwrap();
    Sealed { scratch, vault }
}

impl Sealed {
    async fn verify(&self) -> VerifyReport {
        Verify::new().run(&self.scratch.store, &self.vault).await.unwrap()
    }

    /// The report after a change from outside, which is then undone.
    async fn after(&self, sql: &str) -> VerifyReport {
        let connection = Connection::open(&self.scratch.path).unwrap();
        let copy = self.scratch.path.with_extension("damaged");
        connection.execute("VACUUM INTO ?1", (copy.to_str().unwrap(),)).unwrap();
        let damaged = Connection::open(&copy).unwrap();
        assert!(damaged.execute(sql, ()).unwrap() > 0, "{sql} changes nothing");
        drop(damaged);
        let store = config().open(&copy).await.unwrap();
        let report = Verify::new().run(&store, &self.vault).await.unwrap();
        drop(store);
        std::fs::remove_file(copy).unwrap();
        report
    }
}

/// Changes of a sealed store, each with the table that it damages.
pub(super) fn damages() -> Vec<(&'static str, String)> {
    // A flipped bit, a truncation, plaintext, an empty value. If a table has two rows, one value in
    // the place of the other.
    let values = [
        ("sessions", "record"),
        ("prekeys", "record"),
        ("signed_prekeys", "record"),
        ("sender_keys", "record"),
        ("sync_keys", "fingerprint"),
        ("collection_versions", "index_value_map"),
        ("mutation_macs", "value_mac"),
        ("group_metadata", "info"),
        ("tc_tokens", "token"),
        ("sent_messages", "payload"),
        ("pending_inbound", "message"),
        ("devices", "edge_routing_info"),
    ];
    let mut changes = vec![];
    for (table, column) in values {
        let condition = if table == "sender_keys" { " WHERE address NOT LIKE 'wastore%'" } else { "" };
        for value in [
            with_another_end(column),
            format!("substr({column}, 1, length({column}) - 1)"),
            "CAST('plaintext that is longer than the shortest envelope, which has more than fifty bytes' AS BLOB)"
                .to_owned(),
        ] {
            changes.push((table, format!("UPDATE {table} SET {column} = {value}{condition}")));
        }
    }
    for (table, column) in [("lid_mappings", "learning_source"), ("device_lists", "phash")] {
        for value in [format!("substr({column}, 1, length({column}) - 4)"), "'plaintext'".to_owned()] {
            changes.push((table, format!("UPDATE {table} SET {column} = {value}")));
        }
    }
    // Rows under another name.
    changes.extend([
        ("sessions", "UPDATE sessions SET address = 'a' || substr(address, 2) || 'b'".to_owned()),
        ("prekeys", "UPDATE prekeys SET id = id + 100".to_owned()),
        ("sync_keys", "UPDATE sync_keys SET key_id = CAST(key_id || x'00' AS BLOB)".to_owned()),
        ("collection_versions", "UPDATE collection_versions SET name = 'x' || name".to_owned()),
        ("mutation_macs", "UPDATE mutation_macs SET name = 'x' || name".to_owned()),
        ("sender_key_devices", "UPDATE sender_key_devices SET device_jid = 'x' || device_jid".to_owned()),
        ("lid_mappings", "UPDATE lid_mappings SET phone_number = 'x' || phone_number".to_owned()),
        ("device_lists", "UPDATE device_lists SET user = 'x' || user".to_owned()),
        ("tc_tokens", "UPDATE tc_tokens SET jid = 'x' || jid".to_owned()),
        ("pending_inbound", "UPDATE pending_inbound SET id = 'x' || id".to_owned()),
        ("base_keys", "UPDATE base_keys SET base_key = x'00'".to_owned()),
        ("message_secrets", "UPDATE message_secrets SET secret = x'00'".to_owned()),
        ("identities", "INSERT INTO identities (account, address, key) VALUES (1, 'a', x'00')".to_owned()),
        ("devices", "DELETE FROM devices".to_owned()),
    ]);
    changes
}

#[tokio::test]
async fn a_sound_store_is_sound_and_every_row_is_counted() {
    let sealed = sealed().await;
    let report = sealed.verify().await;
    assert!(report.is_sound(), "{report}");
    let inspection = inspect(&sealed.scratch.store).await.unwrap();
    let rows: u64 = inspection.tables.iter().map(|table| table.rows).sum();
    let checked: u64 = Record::ALL.iter().map(|record| report.checked(*record)).sum();
    // Two rows are the header.
    assert_eq!(checked, rows - 2, "{report}\n{inspection}");
    // These are in no table.
    let elsewhere = [Record::SignalState, Record::SnapshotExtra, Record::CacheEntry, Record::Store];
    for record in Record::ALL.iter().filter(|record| !elsewhere.contains(record)) {
        assert!(report.checked(*record) > 0, "{record} was not looked at");
    }
    let quick = Verify::new().quick().run(&sealed.scratch.store, &sealed.vault).await.unwrap();
    assert!(quick.is_sound(), "{quick}");
    assert!(report.to_string().ends_with("sound\n") && !report.to_string().contains("damaged"), "{report}");
}

#[tokio::test]
async fn damage_is_found_in_every_table_and_named() {
    let sealed = sealed().await;
    for (table, sql) in damages() {
        let report = sealed.after(&sql).await;
        assert!(!report.is_sound(), "{sql}: not noticed");
        let tables: Vec<_> = report.damaged_rows().iter().map(|damaged| damaged.table).collect();
        assert!(tables.iter().all(|found| *found == table) && !tables.is_empty(), "{sql}: {report}");
        assert!(report.damaged_rows().iter().all(|damaged| (damaged.row > 0) != sql.starts_with("DELETE")), "{report}");
    }
    let swapped = "UPDATE sent_messages SET payload = (SELECT payload FROM sent_messages AS other
        WHERE other.rowid != sent_messages.rowid LIMIT 1)";
    // The other row then gets its own value back.
    assert_eq!(sealed.after(swapped).await.damaged_count(), 1);
    let header = sealed.after("UPDATE sender_keys SET record = x'00' WHERE address = 'wastorevaultheaderv1b'").await;
    assert!(header.to_string().contains("1 of 2 copies of the vault header are intact"), "{header}");
    assert!(sealed.verify().await.is_sound(), "the store itself was not changed");
}

#[tokio::test]
async fn a_report_names_no_one() {
    let sealed = sealed().await;
    let report = sealed.after("UPDATE sessions SET record = x'e757'").await;
    let texts = [format!("{report} {report:?}"), serde_json::to_string(&report).unwrap()];
    let inspection = inspect(&sealed.scratch.store).await.unwrap();
    for text in texts.into_iter().chain([format!("{inspection} {inspection:?}")]) {
        for (name, canary) in canaries::all() {
            assert!(memchr::memmem::find(text.as_bytes(), &canary).is_none(), "{name} is named: {text}");
        }
    }
}

#[tokio::test]
async fn accounts_are_checked_by_themselves_and_inspected_together() {
    let sealed = sealed().await;
    let second = sealed.scratch.store.account(2);
    let vault =
        VaultOptions::new().create(Arc::new(second.clone()), sealed.vault.account_key("account 2")).await.unwrap();
    vault.layer().layer(Arc::new(second.clone())).put_session("a@b", b"c").await.unwrap();
    let report = Verify::new().run(&second, &vault).await.unwrap();
    assert!(report.is_sound() && report.checked(Record::Session) == 1, "{report}");
    // With the keys of another account every record fails.
    let wrong = Verify::new().run(&second, &sealed.vault).await.unwrap();
    assert!(wrong.damaged_count() >= 1, "{wrong}");
    let inspection = inspect(&sealed.scratch.store).await.unwrap();
    let accounts: Vec<_> =
        inspection.accounts.iter().map(|account| (account.number, account.header.is_some())).collect();
    assert_eq!(accounts, [(1, true), (2, true)]);
    let header = inspection.accounts[0].header.as_ref().unwrap();
    assert_eq!((header.intact_copies, header.slots.len(), &header.epochs[..]), (2, 1, &[1][..]));
}

/// More rows than a page holds, in tables with and without row ids.
#[tokio::test]
async fn large_tables_are_read_to_their_end() {
    let sealed = sealed().await;
    let store = sealed.vault.layer().layer(Arc::new(sealed.scratch.store.clone()));
    let prekeys: Vec<_> = (1000..2700).map(|id| (id, bytes::Bytes::from_static(b"a prekey"))).collect();
    store.store_prekeys_batch(&prekeys, false).await.unwrap();
    let mac = |number: u32| wacore::appstate::processor::AppStateMutationMAC {
        index_mac: number.to_le_bytes().repeat(8),
        value_mac: vec![1; 32],
    };
    store.put_mutation_macs("many", 1, &(0..1700).map(mac).collect::<Vec<_>>()).await.unwrap();
    let before = sealed.verify().await;
    assert!(before.is_sound() && before.checked(Record::Prekey) >= 1700, "{before}");
    assert!(before.checked(Record::MutationMac) >= 1700, "{before}");
    let report = sealed
        .after(
            "UPDATE mutation_macs SET value_mac = x'00' WHERE name IN (SELECT name FROM mutation_macs
        ORDER BY name DESC, index_mac DESC LIMIT 1)",
        )
        .await;
    assert!(
        report.damaged_rows().iter().all(|damaged| damaged.table == "mutation_macs" && damaged.row <= 1703),
        "{report}"
    );
}
