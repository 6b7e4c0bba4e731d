//! What each method means, by the rules of the upstream contract.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::Device;
use wacore::store::traits::{
    AppStateSyncKey, AppSyncStore, Backend, DeviceListRecord, DeviceStore, LidPnMappingEntry, MsgSecretEntry,
    MsgSecretStore, PendingInboundKey, PendingInboundRow, ProtocolStore, SignalStore, TcTokenEntry,
};

use super::*;
use crate::method::Method;
use crate::sample;

/// A store in memory: the SQL is the same.
async fn store() -> SqliteStore {
    SqliteStore::in_memory().await.unwrap()
}

#[tokio::test]
async fn every_method_works_in_memory_and_in_a_file() {
    let scratch = Scratch::new().await;
    for store in [store().await, scratch.store.clone()] {
        sample::fill(&store).await;
        for method in Method::ALL.iter().filter(|method| **method != Method::SnapshotDb) {
            sample::call(&store, *method).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_was_stored_is_there_after_closing() {
    let scratch = Scratch::new().await;
    sample::fill(&scratch.store).await;
    assert_filled(&scratch.reopen().await.store).await;
}

/// Every record that [`sample::fill`] stores, but the device.
pub(super) async fn assert_filled(store: &SqliteStore) {
    let (chat, sender, id) = (sample::CHAT, sample::SENDER, sample::MESSAGE_ID);
    assert_eq!(store.get_session(sample::SESSION_ADDRESS).await.unwrap().unwrap(), sample::SESSION);
    assert_eq!(store.load_identity(sample::IDENTITY_ADDRESS).await.unwrap(), Some(sample::IDENTITY_KEY));
    assert_eq!(store.load_prekey(5).await.unwrap().unwrap(), sample::PREKEY);
    assert_eq!(store.load_signed_prekey(7).await.unwrap().unwrap(), sample::SIGNED_PREKEY);
    assert_eq!(store.get_sender_key(sample::SENDER_KEY_ADDRESS).await.unwrap().unwrap(), sample::SENDER_KEY);
    let key_id = store.get_latest_sync_key_id().await.unwrap().unwrap();
    assert_eq!(store.get_sync_key(&key_id).await.unwrap().unwrap().key_data, sample::SYNC_KEY);
    assert_eq!(store.get_version(sample::COLLECTION).await.unwrap().hash, sample::version().hash);
    let mac = store.get_mutation_mac(sample::COLLECTION, &sample::INDEX_MAC).await.unwrap();
    assert_eq!(mac.unwrap(), sample::VALUE_MAC);
    let devices = store.get_sender_key_devices(sample::GROUP).await.unwrap();
    assert_eq!(devices, [(sample::DEVICE_JID.to_owned(), true)]);
    let mapping = store.get_lid_mapping(sample::LID).await.unwrap().unwrap();
    assert_eq!(serde_json::to_value(&mapping).unwrap(), serde_json::to_value(sample::lid_mapping()).unwrap());
    assert!(store.has_same_base_key(sample::SESSION_ADDRESS, id, &sample::BASE_KEY).await.unwrap());
    let list = store.get_devices(sample::PHONE).await.unwrap().unwrap();
    assert_eq!(serde_json::to_value(&list).unwrap(), serde_json::to_value(sample::device_list()).unwrap());
    assert_eq!(store.get_group_metadata(sample::GROUP).await.unwrap().unwrap(), sample::GROUP_METADATA);
    assert_eq!(store.get_tc_token(sample::TC_JID).await.unwrap().unwrap().token, sample::TC_TOKEN);
    assert_eq!(store.get_pending_inbound(chat, sender, id).await.unwrap().unwrap(), sample::PENDING_MESSAGE);
    assert_eq!(store.get_msg_secret(chat, sender, id).await.unwrap().unwrap(), sample::MESSAGE_SECRET);
    assert_eq!(store.take_sent_message(chat, id).await.unwrap().unwrap(), sample::SENT_MESSAGE);
    assert!(store.exists().await.unwrap());
}

#[tokio::test]
async fn empty_is_not_absent_and_nul_is_a_character() {
    let store = store().await;
    store.put_session("a", b"").await.unwrap();
    store.put_session("a\0b", b"nul").await.unwrap();
    assert_eq!(store.get_session("a").await.unwrap(), Some(Bytes::new()));
    assert_eq!(store.get_session("a\0b").await.unwrap().unwrap(), &b"nul"[..]);
    assert_eq!(store.get_session("a\0c").await.unwrap(), None);
    assert!(store.has_session("a").await.unwrap() && !store.has_session("b").await.unwrap());
    store.put_sender_key("k", b"").await.unwrap();
    assert_eq!(store.get_sender_key("k").await.unwrap(), Some(vec![]));
    assert_eq!(store.get_session("").await.unwrap(), None);
}

#[tokio::test]
async fn deleting_what_is_not_there_succeeds() {
    use crate::method::Access;
    let store = store().await;
    for method in Method::ALL.iter().filter(|method| matches!(method.access(), Access::Delete | Access::Take)) {
        sample::call(&store, *method).await.unwrap();
    }
}

#[tokio::test]
async fn empty_batches_do_nothing() {
    let store = store().await;
    store.put_sessions_batch(&[]).await.unwrap();
    store.put_identities_batch(&[]).await.unwrap();
    store.store_prekeys_batch(&[], true).await.unwrap();
    store.put_mutation_macs("c", 1, &[]).await.unwrap();
    store.delete_mutation_macs("c", &[]).await.unwrap();
    store.set_sender_key_status("g", &[]).await.unwrap();
    store.store_pending_inbound_batch(&[]).await.unwrap();
    assert_eq!(store.put_msg_secrets(vec![]).await.unwrap(), 0);
    assert_eq!(store.load_prekeys_batch(&[]).await.unwrap(), vec![]);
    assert!(store.get_mutation_macs("c", &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn signal_state_is_found_by_the_literal_user() {
    let store = store().await;
    store.put_session("1234@s.whatsapp.net", b"x").await.unwrap();
    store.put_identity("5678:9@lid", [1; 32]).await.unwrap();
    store.put_session("aBc@lid", b"x").await.unwrap();
    for user in ["1234", "5678", "aBc"] {
        assert!(store.has_signal_state_for_user(user).await.unwrap(), "{user}");
    }
    // Upstream's LIKE takes the first six for matches.
    for user in ["12_4", "%", "123%", "ABC", "abc", "_234", "123", "12345", "567", "", "1234@s"] {
        assert!(!store.has_signal_state_for_user(user).await.unwrap(), "{user}");
    }
    store.delete_session("1234@s.whatsapp.net").await.unwrap();
    assert!(!store.has_signal_state_for_user("1234").await.unwrap());
}

#[tokio::test]
async fn prekeys_keep_flags_ids_and_order() {
    let store = store().await;
    assert_eq!(store.get_max_prekey_id().await.unwrap(), 0);
    let keys: Vec<(u32, Bytes)> = [3, 1, u32::MAX].map(|id| (id, Bytes::from(vec![id as u8]))).to_vec();
    store.store_prekeys_batch(&keys, false).await.unwrap();
    assert_eq!(store.get_max_prekey_id().await.unwrap(), u32::MAX);
    let loaded = store.load_prekeys_batch(&[3, 9, 1, 1]).await.unwrap();
    assert_eq!(loaded.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 1, 1]);
    // More than fit into one go on the caller's thread.
    let many: Vec<u32> = (0..5000).collect();
    assert_eq!(store.load_prekeys_batch(&many).await.unwrap().len(), 2);

    let uploaded = |store: SqliteStore| async move {
        let sql = "/* test */ SELECT id FROM prekeys WHERE uploaded = 1 ORDER BY id";
        store.read(|c| c.all(sql, (), |row| row.get::<_, u32>(0))).await.unwrap()
    };
    // 9 was consumed meanwhile and must not come back.
    store.mark_prekeys_uploaded(&[1, 9]).await.unwrap();
    assert_eq!(uploaded(store.clone()).await, [1]);
    assert_eq!(store.load_prekey(9).await.unwrap(), None);
    store.store_prekey(1, b"new", false).await.unwrap();
    assert_eq!(uploaded(store.clone()).await, [] as [u32; 0]);
    assert_eq!(store.load_prekey(1).await.unwrap().unwrap(), &b"new"[..]);
    store.remove_prekey(u32::MAX).await.unwrap();
    assert_eq!(store.get_max_prekey_id().await.unwrap(), 3);

    for id in [5, 1, 9] {
        store.store_signed_prekey(id, &[id as u8]).await.unwrap();
    }
    store.remove_signed_prekey(1).await.unwrap();
    assert_eq!(store.load_all_signed_prekeys().await.unwrap(), [(5, vec![5]), (9, vec![9])]);
}

#[tokio::test]
async fn sync_keys_round_trip_and_the_highest_id_is_the_latest() {
    let store = store().await;
    assert_eq!(store.get_latest_sync_key_id().await.unwrap(), None);
    let key = |length: usize| AppStateSyncKey { key_data: vec![7; length], fingerprint: vec![8; 1000], timestamp: -5 };
    for (id, length) in [([9, 9], 32), ([2, 2], 0), ([9, 8], 60)] {
        store.set_sync_key(&id, key(length)).await.unwrap();
        let found = store.get_sync_key(&id).await.unwrap().unwrap();
        assert_eq!((found.key_data.len(), found.fingerprint.len(), found.timestamp), (length, 1000, -5));
    }
    assert_eq!(store.get_latest_sync_key_id().await.unwrap(), Some(vec![9, 9]));
}

#[tokio::test]
async fn collection_versions_and_macs_round_trip() {
    let store = store().await;
    assert_eq!(store.get_version("critical").await.unwrap().version, HashState::default().version);
    let mut state = sample::version();
    state.version = u64::MAX;
    state.index_value_map = HashMap::from([(String::new(), vec![]), ("name".into(), vec![9; 300])]);
    store.set_version("critical", state.clone()).await.unwrap();
    let found = store.get_version("critical").await.unwrap();
    assert_eq!((found.version, found.hash, found.mac_mismatch_fatal), (u64::MAX, state.hash, true));
    assert_eq!(found.index_value_map, state.index_value_map);

    let mac = |number: u8| AppStateMutationMAC { index_mac: vec![number; 32], value_mac: vec![number; 7] };
    let macs: Vec<_> = (0..200).map(mac).collect();
    store.put_mutation_macs("critical", u64::MAX, &macs).await.unwrap();
    store.put_mutation_macs("regular", 1, &macs[..2]).await.unwrap();
    assert_eq!(store.get_mutation_mac("critical", &[3; 32]).await.unwrap(), Some(vec![3; 7]));
    let wanted: Vec<[u8; 32]> = (100..=255).map(|number| [number; 32]).collect();
    assert_eq!(store.get_mutation_macs("critical", &wanted).await.unwrap().len(), 100);
    store.delete_mutation_macs("critical", &[vec![3; 32], vec![255; 32], vec![1]]).await.unwrap();
    assert_eq!(store.get_mutation_mac("critical", &[3; 32]).await.unwrap(), None);
    store.clear_mutation_macs("critical").await.unwrap();
    assert_eq!(store.get_mutation_macs("critical", &wanted).await.unwrap().len(), 0);
    assert_eq!(store.get_mutation_macs("regular", &[[0; 32], [1; 32]]).await.unwrap().len(), 2);
}

#[tokio::test]
async fn sender_key_devices_go_by_group_and_by_device() {
    let store = store().await;
    store.set_sender_key_status("g1", &[("a", true), ("b", false)]).await.unwrap();
    store.set_sender_key_status("g2", &[("a", true), ("c", true)]).await.unwrap();
    store.set_sender_key_status("g1", &[("b", true)]).await.unwrap();
    let devices = |group: &'static str| {
        let store = store.clone();
        async move { store.get_sender_key_devices(group).await.unwrap().into_iter().collect::<BTreeSet<_>>() }
    };
    assert_eq!(devices("g1").await, [("a".into(), true), ("b".into(), true)].into());
    store.delete_sender_key_device_rows(&["a", "none"]).await.unwrap();
    assert_eq!(devices("g1").await, [("b".into(), true)].into());
    assert_eq!(devices("g2").await, [("c".into(), true)].into());
    store.clear_sender_key_devices("g1").await.unwrap();
    assert!(devices("g1").await.is_empty() && devices("g2").await.len() == 1);
    store.clear_all_sender_key_devices().await.unwrap();
    assert!(devices("g2").await.is_empty());

    let many: Vec<String> = (0..1000).map(|number| format!("d{number}")).collect();
    let entries: Vec<(&str, bool)> = many.iter().map(|device| (device.as_str(), false)).collect();
    store.set_sender_key_status("large", &entries).await.unwrap();
    assert_eq!(devices("large").await.len(), 1000);
}

#[tokio::test]
async fn lid_mappings_are_replaced_whole_and_the_newest_wins() {
    let store = store().await;
    let put = |lid: &str, phone: &str, created_at, updated_at| {
        let (lid, phone_number, learning_source) = (lid.to_owned(), phone.to_owned(), "usync".to_owned());
        let entry = LidPnMappingEntry { lid, phone_number, created_at, updated_at, learning_source };
        let store = store.clone();
        async move { store.put_lid_mapping(&entry).await.unwrap() }
    };
    let lid_of = |phone: &'static str| {
        let store = store.clone();
        async move { store.get_pn_mapping(phone).await.unwrap().map(|entry| entry.lid) }
    };
    // Without a device row, which upstream's foreign key asks for.
    put("lid1", "pn", 5, 10).await;
    put("lid1", "pn", 99, 11).await;
    assert_eq!(store.get_lid_mapping("lid1").await.unwrap().unwrap().created_at, 99);
    put("lid2", "pn", 1, 20).await;
    put("lid3", "pn", 1, 20).await;
    assert_eq!(lid_of("pn").await.as_deref(), Some("lid3"), "of equally new ones the one put last");
    put("lid2", "pn", 1, 20).await;
    assert_eq!(lid_of("pn").await.as_deref(), Some("lid2"));
    put("lid2", "other", 1, 30).await;
    put("lid3", "other", 1, 30).await;
    assert_eq!(lid_of("pn").await.as_deref(), Some("lid1"), "what moved away does not answer any more");
    put("lid1", "other", 1, 5).await;
    assert_eq!(lid_of("pn").await, None);
    assert_eq!(lid_of("other").await.as_deref(), Some("lid3"));
    assert_eq!(store.get_all_lid_mappings().await.unwrap().len(), 3);
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
    store.write(Plan::CACHE, move |c| c.run(age, (50,))).await.unwrap();
    store.save_base_key("a", "m2", b"k").await.unwrap();
    assert!(store.has_same_base_key("a", "m", b"K").await.unwrap());
    store.write(Plan::CACHE, move |c| c.run(age, (60,))).await.unwrap();
    store.save_base_key("a", "m3", b"k").await.unwrap();
    assert!(!store.has_same_base_key("a", "m", b"K").await.unwrap(), "past its retention");
    assert!(store.has_same_base_key("a", "m2", b"k").await.unwrap());
    store.delete_base_key("a", "m2").await.unwrap();
    assert!(!store.has_same_base_key("a", "m2", b"k").await.unwrap());

    let forever = config().base_key_retention(None).in_memory().await.unwrap();
    forever.save_base_key("a", "m", b"k").await.unwrap();
    forever.write(Plan::CACHE, move |c| c.run(age, (1i64 << 40,))).await.unwrap();
    forever.save_base_key("a", "m2", b"k").await.unwrap();
    assert!(forever.has_same_base_key("a", "m", b"k").await.unwrap());
}

#[tokio::test]
async fn device_lists_and_group_metadata_replace() {
    let store = store().await;
    let list = |timestamp| DeviceListRecord { timestamp, ..sample::device_list() };
    store.update_device_lists(vec![list(1), DeviceListRecord { user: "u2".into(), ..list(2) }]).await.unwrap();
    store.update_device_list(list(5_000_000_000)).await.unwrap();
    let found = store.get_devices(sample::PHONE).await.unwrap().unwrap();
    assert_eq!((found.timestamp, found.raw_id, found.devices.len()), (5_000_000_000, Some(u32::MAX), 2));
    assert!(found.devices[1].is_hosted);
    store.delete_devices(sample::PHONE).await.unwrap();
    assert!(store.get_devices(sample::PHONE).await.unwrap().is_none());
    assert_eq!(store.get_devices("u2").await.unwrap().unwrap().timestamp, 2);

    store.put_group_metadata("g", b"1").await.unwrap();
    store.put_group_metadata("g", b"").await.unwrap();
    assert_eq!(store.get_group_metadata("g").await.unwrap(), Some(vec![]));
    store.delete_group_metadata("g").await.unwrap();
    assert_eq!(store.get_group_metadata("g").await.unwrap(), None);
}

#[tokio::test]
async fn tc_tokens_merge_in_the_store() {
    let store = store().await;
    let token = |jid: &'static str| {
        let store = store.clone();
        async move {
            let entry = store.get_tc_token(jid).await.unwrap().unwrap();
            (entry.token, entry.token_timestamp, entry.sender_timestamp)
        }
    };
    store.touch_tc_token_sender_timestamp("a", 100).await.unwrap();
    assert_eq!(token("a").await, (vec![], 100, Some(100)), "a placeholder");
    store.store_received_tc_token("a", b"old", 50).await.unwrap();
    assert_eq!(token("a").await, (b"old".to_vec(), 50, Some(100)), "a placeholder gives way to any token");
    store.store_received_tc_token("a", b"older", 49).await.unwrap();
    assert_eq!(token("a").await.0, b"old");
    store.store_received_tc_token("a", b"same time", 50).await.unwrap();
    assert_eq!(token("a").await.0, b"same time");
    store.touch_tc_token_sender_timestamp("a", 90).await.unwrap();
    assert_eq!(token("a").await.2, Some(100), "never backwards");
    store.touch_tc_token_sender_timestamp("a", 110).await.unwrap();
    assert_eq!(token("a").await, (b"same time".to_vec(), 50, Some(110)));
    store.store_received_tc_token("a", b"", 60).await.unwrap();
    assert_eq!(token("a").await, (vec![], 60, Some(110)));
    store.store_received_tc_token("b", b"first", -1).await.unwrap();
    assert_eq!(token("b").await, (b"first".to_vec(), -1, None));
    store.touch_tc_token_sender_timestamp("b", 7).await.unwrap();
    assert_eq!(token("b").await.2, Some(7));
    let put = TcTokenEntry { token: vec![1], token_timestamp: 1, sender_timestamp: None };
    store.put_tc_token("b", &put).await.unwrap();
    assert_eq!(token("b").await, (vec![1], 1, None), "put replaces");
    let jids: BTreeSet<_> = store.get_all_tc_token_jids().await.unwrap().into_iter().collect();
    assert_eq!(jids, ["a".to_owned(), "b".to_owned()].into());
    store.delete_tc_token("b").await.unwrap();
    assert!(store.get_tc_token("b").await.unwrap().is_none());
}

/// Every combination of ages against the rule as upstream's documentation words it.
#[tokio::test]
async fn tc_tokens_expire_when_nothing_of_them_is_live() {
    let store = store().await;
    let mut expected_gone = 0;
    let mut kept = BTreeSet::new();
    for (number, (token, token_timestamp)) in
        [(&b""[..], 9), (b"", 11), (b"t", 9), (b"t", 10), (b"t", 11)].iter().enumerate()
    {
        for sender_timestamp in [None, Some(19), Some(20), Some(21)] {
            let jid = format!("{number} {sender_timestamp:?}");
            let entry = TcTokenEntry { token: token.to_vec(), token_timestamp: *token_timestamp, sender_timestamp };
            store.put_tc_token(&jid, &entry).await.unwrap();
            let live = (!token.is_empty() && *token_timestamp >= 10) || sender_timestamp.is_some_and(|at| at >= 20);
            if live {
                kept.insert(jid);
            } else {
                expected_gone += 1;
            }
        }
    }
    assert_eq!(store.delete_expired_tc_tokens(10, 20).await.unwrap(), expected_gone);
    assert_eq!(store.get_all_tc_token_jids().await.unwrap().into_iter().collect::<BTreeSet<_>>(), kept);
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
        .map(|number| MsgSecretEntry { msg_id: format!("m{number}").into(), ..sample::message_secret() })
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
    let deadline = sample::message_secret().expires_at;
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
            store.write(Plan::CACHE, move |c| c.run(sql, (time,))).await.unwrap();
        }
    };
    store.store_sent_message("c", "m", b"x").await.unwrap();
    at("sent_messages", "created_at", 100).await;
    assert_eq!(store.delete_expired_sent_messages(100).await.unwrap(), 0);
    assert_eq!(store.delete_expired_sent_messages(101).await.unwrap(), 1);
    store.store_pending_inbound("c", "s", "m", b"x").await.unwrap();
    at("pending_inbound", "inserted_at", 100).await;
    assert_eq!(store.delete_expired_pending_inbound(100).await.unwrap(), 0);
    // Storing again starts its time anew.
    store.store_pending_inbound("c", "s", "m", b"y").await.unwrap();
    assert_eq!(store.delete_expired_pending_inbound(101).await.unwrap(), 0);
    assert_eq!(store.get_pending_inbound("c", "s", "m").await.unwrap().unwrap(), b"y");

    let secret = |id: &str, expires_at| MsgSecretEntry { msg_id: id.into(), expires_at, ..sample::message_secret() };
    store.put_msg_secrets(vec![secret("never", 0), secret("past", -5), secret("due", 100)]).await.unwrap();
    assert_eq!(store.delete_expired_msg_secrets(99).await.unwrap(), 1);
    assert_eq!(store.delete_expired_msg_secrets(100).await.unwrap(), 1);
    assert_eq!(store.delete_expired_msg_secrets(i64::MAX).await.unwrap(), 0);
}

#[tokio::test]
async fn sent_messages_are_taken_once() {
    let store = store().await;
    store.store_sent_message("c", "m", b"1").await.unwrap();
    store.store_sent_message("c", "m", b"2").await.unwrap();
    assert_eq!(store.take_sent_message("c", "other").await.unwrap(), None);
    assert_eq!(store.take_sent_message("c", "m").await.unwrap(), Some(b"2".to_vec()));
    assert_eq!(store.take_sent_message("c", "m").await.unwrap(), None);
}

#[tokio::test]
async fn pending_messages_are_kept_by_chat_sender_and_id() {
    let store = store().await;
    let row = |chat, sender, id, message| PendingInboundRow { chat, sender, id, message };
    store.store_pending_inbound_batch(&[row("a", "b", "c", b"1"), row("ab", "", "c", b"2")]).await.unwrap();
    assert_eq!(store.get_pending_inbound("ab", "", "c").await.unwrap().unwrap(), b"2");
    assert_eq!(store.get_pending_inbound("a", "b", "c").await.unwrap().unwrap(), b"1");
    assert_eq!(store.get_pending_inbound("a", "bc", "").await.unwrap(), None);
    let key = |chat, sender, id| PendingInboundKey { chat, sender, id };
    store.delete_pending_inbound_batch(&[key("a", "b", "c"), key("x", "y", "z")]).await.unwrap();
    store.delete_pending_inbound("ab", "", "c").await.unwrap();
    assert_eq!(store.get_pending_inbound("ab", "", "c").await.unwrap(), None);
}

#[tokio::test]
async fn message_secrets_merge_and_never_shrink() {
    let store = store().await;
    let put = |secret: u8, expires_at, message_ts| {
        let entry = MsgSecretEntry { secret: [secret; 32], expires_at, message_ts, ..sample::message_secret() };
        let store = store.clone();
        async move { assert_eq!(store.put_msg_secrets(vec![entry.clone(), entry]).await.unwrap(), 2) }
    };
    let stored = || {
        let store = store.clone();
        async move {
            let sql = "/* test */ SELECT expires_at FROM message_secrets";
            let expires_at: i64 = store.read(|c| c.first(sql, (), |row| row.get(0))).await.unwrap().unwrap();
            let (chat, sender, id) = (sample::CHAT, sample::SENDER, sample::MESSAGE_ID);
            let (secret, ts) = store.get_msg_secret_with_ts(chat, sender, id).await.unwrap().unwrap();
            assert_eq!(store.get_msg_secret(chat, sender, id).await.unwrap().unwrap(), secret);
            (secret[0], expires_at, ts)
        }
    };
    put(1, 100, 50).await;
    put(2, 90, 40).await;
    assert_eq!(stored().await, (2, 100, 50));
    put(3, 110, 0).await;
    assert_eq!(stored().await, (3, 110, 50));
    put(4, 0, 60).await;
    put(5, 500, 0).await;
    assert_eq!(stored().await, (5, 0, 60), "never wins");
    store.put_msg_secret("c", "s", "m", &[9; 32]).await.unwrap();
    assert_eq!(store.get_msg_secret_with_ts("c", "s", "m").await.unwrap(), Some((vec![9; 32], 0)));
    assert_eq!(store.get_msg_secret("c", "m", "s").await.unwrap(), None);
}

#[tokio::test]
async fn devices_are_created_once_and_come_back_whole() {
    let store = store().await;
    assert!(!store.exists().await.unwrap() && store.load().await.unwrap().is_none());
    assert_eq!(store.create().await.unwrap(), 1);
    let created = store.load().await.unwrap().unwrap();
    assert_eq!(store.create().await.unwrap(), 1);
    assert_eq!(store.load().await.unwrap().unwrap().adv_secret_key, created.adv_secret_key, "the first one stays");

    let device = sample::device();
    store.save(&device).await.unwrap();
    let loaded = store.load().await.unwrap().unwrap();
    assert_eq!(serde_json::to_value(&loaded).unwrap(), serde_json::to_value(&device).unwrap());
    // What is not stored comes back as in a new device, as upstream's store does it.
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
    sample::fill(&store).await;
    for sql in [
        "/* test */ UPDATE identities SET key = x'00'",
        "/* test */ UPDATE collection_versions SET index_value_map = x'ffffffff00'",
        "/* test */ UPDATE device_lists SET devices = '[{'",
        "/* test */ UPDATE devices SET record = x'7b'",
    ] {
        store.write(Plan::CACHE, move |c| c.run(sql, ())).await.unwrap();
    }
    let malformed = |error: StoreError| {
        assert!(matches!(Error::of(&error), Some(Error::Malformed { .. })), "{error:?}");
    };
    malformed(store.load_identity(sample::IDENTITY_ADDRESS).await.unwrap_err());
    malformed(store.get_version(sample::COLLECTION).await.unwrap_err());
    malformed(store.get_devices(sample::PHONE).await.unwrap_err());
    malformed(store.load().await.map(drop).unwrap_err());
    store.write(Plan::CACHE, |c| c.run("/* test */ UPDATE collection_versions SET hash = x'00'", ())).await.unwrap();
    malformed(store.get_version(sample::COLLECTION).await.unwrap_err());
}

#[tokio::test]
async fn reports_bound_the_page_caches_and_count_pages() {
    let scratch = Scratch::new().await;
    sample::fill(&scratch.store).await;
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
    // Under an executor that is no runtime at all.
    futures::executor::block_on(sample::fill(&*store));
}
