//! Behaviour of the store beyond the conformance kit, which `tests/conformance.rs` runs.

use std::sync::Arc;

use bytes::Bytes;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::Device;
use wacore::store::traits::{
    AppSyncStore, Backend, DeviceStore, LidPnMappingEntry, MsgSecretEntry, MsgSecretStore, PendingInboundRow,
    ProtocolStore, SignalStore, TcTokenEntry,
};

use super::*;
use crate::testing::canaries;

/// A store in memory. The SQL is the same.
async fn store() -> SqliteStore {
    SqliteStore::in_memory().await.unwrap()
}

/// Checks every record that [`canaries::fill`] stores, except the device.
pub(super) async fn assert_filled(store: &SqliteStore) {
    let (chat, sender, id) = (canaries::CHAT, canaries::SENDER, canaries::MESSAGE_ID);
    assert_eq!(store.get_session(canaries::SESSION_ADDRESS).await.unwrap().unwrap(), canaries::SESSION);
    assert_eq!(store.load_identity(canaries::IDENTITY_ADDRESS).await.unwrap(), Some(canaries::IDENTITY_KEY));
    assert_eq!(store.load_prekey(5).await.unwrap().unwrap(), canaries::PREKEY);
    assert_eq!(store.load_signed_prekey(7).await.unwrap().unwrap(), canaries::SIGNED_PREKEY);
    assert_eq!(store.get_sender_key(canaries::SENDER_KEY_ADDRESS).await.unwrap().unwrap(), canaries::SENDER_KEY);
    let key_id = store.get_latest_sync_key_id().await.unwrap().unwrap();
    assert_eq!(store.get_sync_key(&key_id).await.unwrap().unwrap().key_data, canaries::SYNC_KEY);
    assert_eq!(store.get_version(canaries::COLLECTION).await.unwrap().hash, canaries::version().hash);
    let mac = store.get_mutation_mac(canaries::COLLECTION, &canaries::INDEX_MAC).await.unwrap();
    assert_eq!(mac.unwrap(), canaries::VALUE_MAC);
    let devices = store.get_sender_key_devices(canaries::GROUP).await.unwrap();
    assert_eq!(devices, [(canaries::DEVICE_JID.to_owned(), true)]);
    let mapping = store.get_lid_mapping(canaries::LID).await.unwrap().unwrap();
    assert_eq!(serde_json::to_value(&mapping).unwrap(), serde_json::to_value(canaries::lid_mapping()).unwrap());
    assert!(store.has_same_base_key(canaries::SESSION_ADDRESS, id, &canaries::BASE_KEY).await.unwrap());
    let list = store.get_devices(canaries::PHONE).await.unwrap().unwrap();
    assert_eq!(serde_json::to_value(&list).unwrap(), serde_json::to_value(canaries::device_list()).unwrap());
    assert_eq!(store.get_group_metadata(canaries::GROUP).await.unwrap().unwrap(), canaries::GROUP_METADATA);
    assert_eq!(store.get_tc_token(canaries::TC_JID).await.unwrap().unwrap().token, canaries::TC_TOKEN);
    assert_eq!(store.get_pending_inbound(chat, sender, id).await.unwrap().unwrap(), canaries::PENDING_MESSAGE);
    assert_eq!(store.get_msg_secret(chat, sender, id).await.unwrap().unwrap(), canaries::MESSAGE_SECRET);
    assert_eq!(store.take_sent_message(chat, id).await.unwrap().unwrap(), canaries::SENT_MESSAGE);
    assert!(store.exists().await.unwrap());
}

#[tokio::test]
async fn nul_is_a_character() {
    let store = store().await;
    store.put_session("a", b"").await.unwrap();
    store.put_session("a\0b", b"nul").await.unwrap();
    assert_eq!(store.get_session("a").await.unwrap(), Some(Bytes::new()));
    assert_eq!(store.get_session("a\0b").await.unwrap().unwrap(), &b"nul"[..]);
    assert_eq!(store.get_session("a\0c").await.unwrap(), None);
}

#[tokio::test]
async fn prekeys_keep_their_flag() {
    let store = store().await;
    let uploaded = |store: SqliteStore| async move {
        let sql = "/* test */ SELECT id FROM prekeys WHERE uploaded = 1 ORDER BY id";
        store.read(|c| c.all(sql, (), |row| row.get::<_, u32>(0))).await.unwrap()
    };
    store.store_prekeys_batch(&[(1, Bytes::new()), (2, Bytes::new())], false).await.unwrap();
    store.store_prekeys_batch(&[(3, Bytes::new())], true).await.unwrap();
    assert_eq!(uploaded(store.clone()).await, [3]);
    store.mark_prekeys_uploaded(&[1, 9]).await.unwrap();
    assert_eq!(uploaded(store.clone()).await, [1, 3]);
    store.store_prekey(1, b"new", false).await.unwrap();
    assert_eq!(uploaded(store.clone()).await, [3]);
}

#[tokio::test]
async fn of_equally_new_lid_mappings_the_one_stored_last_wins() {
    let store = store().await;
    for lid in ["1", "2", "1"] {
        let entry = LidPnMappingEntry { lid: lid.into(), ..canaries::lid_mapping() };
        store.put_lid_mapping(&entry).await.unwrap();
        assert_eq!(store.get_pn_mapping(canaries::PHONE).await.unwrap().unwrap().lid, lid);
    }
}

#[tokio::test]
async fn base_keys_compare_and_retire() {
    let store = config().base_key_retention(Some(Duration::from_secs(100))).in_memory().await.unwrap();
    assert!(!store.has_same_base_key("a", "m", b"k").await.unwrap());
    store.save_base_key("a", "m", b"k").await.unwrap();
    assert!(store.has_same_base_key("a", "m", b"k").await.unwrap());
    assert!(!store.has_same_base_key("a", "m", b"K").await.unwrap());
    store.save_base_key("a", "m", b"K").await.unwrap();
    assert!(store.has_same_base_key("a", "m", b"K").await.unwrap());
    let age = "/* test */ UPDATE base_keys SET created_at = created_at - ?1";
    store.write(WritePlan::RELAXED, move |c| c.run(age, (50,))).await.unwrap();
    store.save_base_key("a", "m2", b"k").await.unwrap();
    assert!(store.has_same_base_key("a", "m", b"K").await.unwrap());
    store.write(WritePlan::RELAXED, move |c| c.run(age, (60,))).await.unwrap();
    store.save_base_key("a", "m3", b"k").await.unwrap();
    assert!(!store.has_same_base_key("a", "m", b"K").await.unwrap(), "past its retention");
    assert!(store.has_same_base_key("a", "m2", b"k").await.unwrap());
    store.delete_base_key("a", "m2").await.unwrap();
    assert!(!store.has_same_base_key("a", "m2", b"k").await.unwrap());

    let forever = config().base_key_retention(None).in_memory().await.unwrap();
    forever.save_base_key("a", "m", b"k").await.unwrap();
    forever.write(WritePlan::RELAXED, move |c| c.run(age, (1i64 << 40,))).await.unwrap();
    forever.save_base_key("a", "m2", b"k").await.unwrap();
    assert!(forever.has_same_base_key("a", "m", b"k").await.unwrap());
}

#[tokio::test]
async fn sweeps_delete_everything_that_is_due_and_count_it() {
    let store = store().await;
    const ROWS: usize = 2500;
    for number in 0..ROWS {
        store.store_sent_message("chat", &format!("m{number}"), b"x").await.unwrap();
    }
    let rows: Vec<String> = (0..ROWS).map(|number| format!("m{number}")).collect();
    let rows: Vec<_> = rows.iter().map(|id| PendingInboundRow { chat: "c", sender: "s", id, message: b"x" }).collect();
    store.store_pending_inbound_batch(&rows).await.unwrap();
    let entries: Vec<_> = (0..ROWS)
        .map(|number| MsgSecretEntry { msg_id: format!("m{number}").into(), ..canaries::message_secret() })
        .collect();
    store.put_msg_secrets(entries).await.unwrap();
    for number in 0..ROWS {
        let entry = TcTokenEntry { token: vec![], token_timestamp: 5, sender_timestamp: None };
        store.put_tc_token(&format!("empty {number}"), &entry).await.unwrap();
        store.put_tc_token(&format!("full {number}"), &TcTokenEntry { token: vec![1], ..entry }).await.unwrap();
    }
    let now = wacore::time::now_secs();
    assert_eq!(store.delete_expired_sent_messages(now - 100).await.unwrap(), 0);
    assert_eq!(store.delete_expired_sent_messages(now + 100).await.unwrap(), ROWS as u32);
    assert_eq!(store.delete_expired_pending_inbound(now - 100).await.unwrap(), 0);
    assert_eq!(store.delete_expired_pending_inbound(now + 100).await.unwrap(), ROWS as u32);
    let deadline = canaries::message_secret().expires_at;
    assert_eq!(store.delete_expired_msg_secrets(deadline - 1).await.unwrap(), 0);
    assert_eq!(store.delete_expired_msg_secrets(deadline).await.unwrap(), ROWS as u32);
    assert_eq!(store.delete_expired_tc_tokens(5, 0).await.unwrap(), ROWS as u32, "the empty ones");
    assert_eq!(store.delete_expired_tc_tokens(6, 0).await.unwrap(), ROWS as u32);
}

#[tokio::test]
async fn cutoffs_are_exact() {
    let store = store().await;
    let at = |table: &'static str, column: &'static str, time: i64| {
        let store = store.clone();
        async move {
            let sql: &'static str = format!("/* test */ UPDATE {table} SET {column} = ?1").leak();
            store.write(WritePlan::RELAXED, move |c| c.run(sql, (time,))).await.unwrap();
        }
    };
    store.store_sent_message("c", "m", b"x").await.unwrap();
    at("sent_messages", "created_at", 100).await;
    assert_eq!(store.delete_expired_sent_messages(100).await.unwrap(), 0);
    assert_eq!(store.delete_expired_sent_messages(101).await.unwrap(), 1);
    store.store_pending_inbound("c", "s", "m", b"x").await.unwrap();
    at("pending_inbound", "inserted_at", 100).await;
    assert_eq!(store.delete_expired_pending_inbound(100).await.unwrap(), 0);
    // Storing a message again restarts its time.
    store.store_pending_inbound("c", "s", "m", b"y").await.unwrap();
    assert_eq!(store.delete_expired_pending_inbound(101).await.unwrap(), 0);
    assert_eq!(store.get_pending_inbound("c", "s", "m").await.unwrap().unwrap(), b"y");

    let secret = |id: &str, expires_at| MsgSecretEntry { msg_id: id.into(), expires_at, ..canaries::message_secret() };
    store.put_msg_secrets(vec![secret("never", 0), secret("past", -5), secret("due", 100)]).await.unwrap();
    assert_eq!(store.delete_expired_msg_secrets(99).await.unwrap(), 1);
    assert_eq!(store.delete_expired_msg_secrets(100).await.unwrap(), 1);
    assert_eq!(store.delete_expired_msg_secrets(i64::MAX).await.unwrap(), 0);
}

#[tokio::test]
async fn devices_are_created_once_and_come_back_whole() {
    let store = store().await;
    assert!(!store.exists().await.unwrap() && store.load().await.unwrap().is_none());
    assert_eq!(store.create().await.unwrap(), 1);
    let created = store.load().await.unwrap().unwrap();
    assert_eq!(store.create().await.unwrap(), 1);
    assert_eq!(store.load().await.unwrap().unwrap().adv_secret_key, created.adv_secret_key, "the first one stays");

    let device = canaries::device();
    store.save(&device).await.unwrap();
    let loaded = store.load().await.unwrap().unwrap();
    assert_eq!(serde_json::to_value(&loaded).unwrap(), serde_json::to_value(&device).unwrap());
    // Fields that are not stored have the values of a new device, as in upstream's store.
    assert_eq!(loaded.device_props.os.as_deref(), Some("rust"));
    assert_eq!(format!("{:?}", loaded.client_profile), format!("{:?}", Device::new().client_profile));
    assert!(!loaded.nct_salt_sync_seen);

    let large = Device { edge_routing_info: Some(vec![7; 8192]), ..device };
    store.save(&large).await.unwrap();
    assert_eq!(store.load().await.unwrap().unwrap().edge_routing_info, Some(vec![7; 8192]));
}

#[tokio::test]
async fn damaged_records_are_errors_not_absent() {
    let store = store().await;
    canaries::fill(&store).await;
    for sql in [
        "/* test */ UPDATE identities SET key = x'00'",
        "/* test */ UPDATE collection_versions SET index_value_map = x'ffffffff00'",
        "/* test */ UPDATE device_lists SET devices = '[{'",
        "/* test */ UPDATE devices SET record = x'7b'",
    ] {
        store.write(WritePlan::RELAXED, move |c| c.run(sql, ())).await.unwrap();
    }
    let malformed = |error: StoreError| {
        assert!(matches!(Error::downcast_ref(&error), Some(Error::Malformed { .. })), "{error:?}");
    };
    malformed(store.load_identity(canaries::IDENTITY_ADDRESS).await.unwrap_err());
    malformed(store.get_version(canaries::COLLECTION).await.unwrap_err());
    malformed(store.get_devices(canaries::PHONE).await.unwrap_err());
    malformed(store.load().await.map(drop).unwrap_err());
    store
        .write(WritePlan::RELAXED, |c| c.run("/* test */ UPDATE collection_versions SET hash = x'00'", ()))
        .await
        .unwrap();
    malformed(store.get_version(canaries::COLLECTION).await.unwrap_err());
}

#[tokio::test]
async fn reports_bound_the_page_caches_and_count_pages() {
    let scratch = Scratch::new().await;
    canaries::fill(&scratch.store).await;
    let report = scratch.store.resource_report().await;
    assert!(report.pages.unwrap() > 10 && report.memory_bytes.unwrap() > 0);
    let other = scratch.store.account(2).resource_report().await;
    assert_eq!((other.memory_bytes, other.pages), (Some(0), report.pages));
}

#[test]
fn the_store_is_a_backend_and_names_itself() {
    let store: Arc<dyn Backend> = futures::executor::block_on(async {
        let store = store().await;
        assert_eq!(format!("{store:?} {:?}", store.account(7)), "sqlite(in memory) sqlite(in memory, account 7)");
        Arc::new(store)
    });
    // Under an executor that is not a runtime.
    futures::executor::block_on(canaries::fill(&*store));
}

/// They are written in the order of the table, not of the batch.
#[tokio::test]
async fn of_equal_mutation_macs_in_a_batch_the_last_wins() {
    let store = store().await;
    let mac = |number: u8| AppStateMutationMAC { index_mac: vec![number % 20; 32], value_mac: vec![number; 32] };
    let macs: Vec<_> = (0..200).rev().map(mac).chain((0..200).map(mac)).collect();
    store.put_mutation_macs("regular", 1, &macs).await.unwrap();
    let indexes: Vec<_> = (0..20).map(|number| [number; 32]).collect();
    let found = store.get_mutation_macs("regular", &indexes).await.unwrap();
    assert_eq!(found.len(), 20);
    assert!(found.iter().all(|(index, value)| value[..] == [180 + index[0]; 32]), "{found:?}");
}
