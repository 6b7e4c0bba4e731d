//! All 82 methods through the layer, over both of upstream's stores: the same answers as without it.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use wacore::store::Device;
use wacore::store::traits::{
    Backend, DeviceListRecord, LidPnMappingEntry, MsgSecretEntry, PendingInboundKey, PendingInboundRow, TcTokenEntry,
};

use super::spy::Spy;
use super::{Sqlite, encrypted, memory, options, raw_key};
use crate::method::Method;
use crate::sample::*;
use crate::{Layer, Padding, Stack};

#[tokio::test]
async fn over_memory() {
    let store = memory();
    let (_, backend) = encrypted(&store).await;
    every_method(backend, false).await;
}

#[tokio::test]
async fn over_sqlite() {
    let sqlite = Sqlite::new().await;
    let (_, backend) = encrypted(&sqlite.store).await;
    every_method(backend, false).await;
}

#[tokio::test]
async fn over_sqlite_with_padding() {
    for padding in [Padding::Padme, Padding::Multiple(256)] {
        let sqlite = Sqlite::new().await;
        let vault = options().padding(padding).create(sqlite.store.clone(), raw_key()).await.unwrap();
        every_method(vault.layer().layer(sqlite.store.clone()), false).await;
    }
}

/// Two vaults over each other: a layer works over any backend, also over its own kind.
#[tokio::test]
async fn over_another_layer() {
    let sqlite = Sqlite::new().await;
    let (_, middle) = encrypted(&sqlite.store).await;
    let (vault, _) = encrypted(&middle).await;
    every_method(Stack::new(middle).layer(vault.layer()).into_backend(), false).await;
}

#[tokio::test]
async fn without_the_layer() {
    every_method(memory(), false).await;
    let sqlite = Sqlite::new().await;
    every_method(sqlite.store.clone(), true).await;
}

/// `wildcards`: the store is upstream's SQLite store, without the layer.
async fn every_method(backend: Arc<dyn Backend>, wildcards: bool) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let store = Spy { inner: backend, calls: calls.clone() };
    device(&store).await;
    signal(&store, wildcards).await;
    prekeys(&store).await;
    app_sync(&store).await;
    protocol(&store).await;
    messages(&store).await;
    message_secrets(&store).await;
    let called = calls.lock().unwrap();
    let missing: Vec<_> = Method::ALL.iter().filter(|method| !called.contains(method)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn json(device: &Device) -> String {
    serde_json::to_string(device).unwrap()
}

async fn device(store: &dyn Backend) {
    assert!(!store.exists().await.unwrap());
    assert!(store.load().await.unwrap().is_none());
    store.create().await.unwrap();
    assert!(store.exists().await.unwrap());
    let fresh = store.load().await.unwrap().unwrap();
    assert!(!fresh.is_registered());

    let device = crate::sample::device();
    store.save(&device).await.unwrap();
    let loaded = store.load().await.unwrap().unwrap();
    assert_eq!(json(&loaded), json(&device));
    assert_eq!(loaded.device_props, device.device_props);
    store.resource_report().await;
}

async fn signal(store: &dyn Backend, wildcards: bool) {
    let other = "15550109929:1@s.whatsapp.net";
    assert_eq!(store.load_identity(IDENTITY_ADDRESS).await.unwrap(), None);
    store.put_identity(IDENTITY_ADDRESS, IDENTITY_KEY).await.unwrap();
    assert_eq!(store.load_identity(IDENTITY_ADDRESS).await.unwrap(), Some(IDENTITY_KEY));
    assert_eq!(store.get_session(IDENTITY_ADDRESS).await.unwrap(), None);
    assert!(!store.has_session(IDENTITY_ADDRESS).await.unwrap());
    store.put_identities_batch(&[(IDENTITY_ADDRESS.into(), [2; 32]), (other.into(), [3; 32])]).await.unwrap();
    store.put_identities_batch(&[]).await.unwrap();
    assert_eq!(store.load_identity(IDENTITY_ADDRESS).await.unwrap(), Some([2; 32]));
    assert_eq!(store.load_identity(other).await.unwrap(), Some([3; 32]));
    store.delete_identity(other).await.unwrap();
    store.delete_identity("absent@s").await.unwrap();
    assert_eq!(store.load_identity(other).await.unwrap(), None);

    for session in [&b""[..], SESSION, &[0x42; 70_000]] {
        store.put_session(SESSION_ADDRESS, session).await.unwrap();
        assert_eq!(store.get_session(SESSION_ADDRESS).await.unwrap().as_deref(), Some(session));
        assert!(store.has_session(SESSION_ADDRESS).await.unwrap());
    }
    let batch = [
        (Arc::from(SESSION_ADDRESS), Bytes::from_static(b"first")),
        (Arc::from(other), Bytes::from_static(b"second")),
        (Arc::from(SESSION_ADDRESS), Bytes::from_static(b"third")),
    ];
    store.put_sessions_batch(&batch).await.unwrap();
    store.put_sessions_batch(&[]).await.unwrap();
    assert_eq!(store.get_session(SESSION_ADDRESS).await.unwrap().as_deref(), Some(&b"third"[..]));
    assert_eq!(store.get_session(other).await.unwrap().as_deref(), Some(&b"second"[..]));
    assert_eq!(store.load_identity(SESSION_ADDRESS).await.unwrap(), None);
    store.delete_session(other).await.unwrap();
    assert_eq!(store.get_session(other).await.unwrap(), None);

    for (user, known) in [
        (PHONE, true),
        ("15550109922", true),
        ("15550109929", false),
        ("1555010992", false),
        ("155501099210", false),
        ("", false),
        ("%", false),
        ("1555010992_", false),
    ] {
        // Upstream's SQLite store alone takes `%` and `_` for wildcards; behind tokens they are letters.
        let found = store.has_signal_state_for_user(user).await.unwrap();
        assert_eq!(found, known || (wildcards && user.contains(['%', '_'])), "{user:?}");
    }
    for address in ["bare", "@", ":", "a@b@c", "A@b", "a@b", "ünïcödé@☃", "15550109928:0@s.whatsapp.net", ""] {
        store.put_session(address, address.as_bytes()).await.unwrap();
        store.put_identity(address, [address.len() as u8; 32]).await.unwrap();
    }
    for address in ["bare", "@", ":", "a@b@c", "A@b", "a@b", "ünïcödé@☃", "15550109928:0@s.whatsapp.net", ""] {
        assert_eq!(store.get_session(address).await.unwrap().as_deref(), Some(address.as_bytes()), "{address:?}");
        assert_eq!(store.load_identity(address).await.unwrap(), Some([address.len() as u8; 32]), "{address:?}");
    }
    assert!(!store.has_signal_state_for_user("bare").await.unwrap());
    assert!(store.has_signal_state_for_user("").await.unwrap());
    assert!(store.has_signal_state_for_user("a").await.unwrap());

    assert_eq!(store.get_sender_key(SENDER_KEY_ADDRESS).await.unwrap(), None);
    store.put_sender_key(SENDER_KEY_ADDRESS, SENDER_KEY).await.unwrap();
    assert_eq!(store.get_sender_key(SENDER_KEY_ADDRESS).await.unwrap().as_deref(), Some(SENDER_KEY));
    store.put_sender_keys_batch(&[(SENDER_KEY_ADDRESS.into(), Bytes::from_static(b""))]).await.unwrap();
    assert_eq!(store.get_sender_key(SENDER_KEY_ADDRESS).await.unwrap().as_deref(), Some(&b""[..]));
    store.delete_sender_key(SENDER_KEY_ADDRESS).await.unwrap();
    assert_eq!(store.get_sender_key(SENDER_KEY_ADDRESS).await.unwrap(), None);
}

async fn prekeys(store: &dyn Backend) {
    assert_eq!(store.get_max_prekey_id().await.unwrap(), 0);
    store.store_prekey(5, PREKEY, false).await.unwrap();
    let batch = [(1, Bytes::from_static(b"one")), (9, Bytes::from_static(b"nine")), (5, Bytes::from_static(b"five"))];
    store.store_prekeys_batch(&batch, true).await.unwrap();
    store.store_prekeys_batch(&[], true).await.unwrap();
    assert_eq!(store.load_prekey(5).await.unwrap().as_deref(), Some(&b"five"[..]));
    assert_eq!(store.load_prekey(2).await.unwrap(), None);
    let mut loaded = store.load_prekeys_batch(&[9, 1, 2]).await.unwrap();
    loaded.sort();
    assert_eq!(loaded, [(1, Bytes::from_static(b"one")), (9, Bytes::from_static(b"nine"))]);
    assert_eq!(store.get_max_prekey_id().await.unwrap(), 9);
    store.remove_prekey(9).await.unwrap();
    store.mark_prekeys_uploaded(&[1, 9]).await.unwrap();
    assert_eq!(store.load_prekey(9).await.unwrap(), None);
    assert_eq!(store.load_prekey(1).await.unwrap().as_deref(), Some(&b"one"[..]));

    store.store_signed_prekey(7, SIGNED_PREKEY).await.unwrap();
    store.store_signed_prekey(3, b"three").await.unwrap();
    assert_eq!(store.load_signed_prekey(7).await.unwrap().as_deref(), Some(SIGNED_PREKEY));
    let mut all = store.load_all_signed_prekeys().await.unwrap();
    all.sort();
    assert_eq!(all, [(3, b"three".to_vec()), (7, SIGNED_PREKEY.to_vec())]);
    store.remove_signed_prekey(7).await.unwrap();
    assert_eq!(store.load_signed_prekey(7).await.unwrap(), None);
}

async fn app_sync(store: &dyn Backend) {
    let id = [0, 1, 0, 0, 0, 2];
    assert_eq!(store.get_latest_sync_key_id().await.unwrap(), None);
    assert!(store.get_sync_key(&id).await.unwrap().is_none());
    store.set_sync_key(&id, sync_key()).await.unwrap();
    let key = store.get_sync_key(&id).await.unwrap().unwrap();
    assert_eq!((key.key_data, key.fingerprint, key.timestamp), {
        let key = sync_key();
        (key.key_data, key.fingerprint, key.timestamp)
    });
    assert_eq!(store.get_latest_sync_key_id().await.unwrap().as_deref(), Some(&id[..]));

    let absent = store.get_version(COLLECTION).await.unwrap();
    assert_eq!((absent.version, absent.hash, absent.index_value_map.len()), (0, [0; 128], 0));
    store.set_version(COLLECTION, version()).await.unwrap();
    let stored = store.get_version(COLLECTION).await.unwrap();
    assert_eq!((stored.version, stored.hash, stored.mac_mismatch_fatal), (17, version().hash, true));
    assert_eq!(stored.index_value_map, version().index_value_map);

    let mut second = mac();
    second.index_mac = vec![0x99; 32];
    second.value_mac = vec![1; 7];
    store.put_mutation_macs(COLLECTION, 17, &[mac(), second.clone()]).await.unwrap();
    store.put_mutation_macs(COLLECTION, 18, &[]).await.unwrap();
    store.put_mutation_macs("other", 1, &[mac()]).await.unwrap();
    assert_eq!(store.get_mutation_mac(COLLECTION, &INDEX_MAC).await.unwrap().as_deref(), Some(&VALUE_MAC[..]));
    let found = store.get_mutation_macs(COLLECTION, &[INDEX_MAC, [0x99; 32], [0; 32], INDEX_MAC]).await.unwrap();
    assert_eq!(found, [(INDEX_MAC, VALUE_MAC.to_vec()), ([0x99; 32], vec![1; 7])].into());
    store.delete_mutation_macs(COLLECTION, &[INDEX_MAC.to_vec()]).await.unwrap();
    assert_eq!(store.get_mutation_mac(COLLECTION, &INDEX_MAC).await.unwrap(), None);
    store.clear_mutation_macs(COLLECTION).await.unwrap();
    assert_eq!(store.get_mutation_mac(COLLECTION, &[0x99; 32]).await.unwrap(), None);
    assert!(store.get_mutation_mac("other", &INDEX_MAC).await.unwrap().is_some());
}

async fn protocol(store: &dyn Backend) {
    let other_group = "120363020000000001@g.us";
    let devices = |mut rows: Vec<(String, bool)>| {
        rows.sort();
        rows
    };
    store.set_sender_key_status(GROUP, &[(DEVICE_JID, true), ("1:2@lid", false)]).await.unwrap();
    store.set_sender_key_status(other_group, &[(DEVICE_JID, true)]).await.unwrap();
    assert_eq!(
        devices(store.get_sender_key_devices(GROUP).await.unwrap()),
        [(DEVICE_JID.to_owned(), true), ("1:2@lid".to_owned(), false)]
    );
    store.delete_sender_key_device_rows(&[DEVICE_JID]).await.unwrap();
    assert_eq!(store.get_sender_key_devices(GROUP).await.unwrap(), [("1:2@lid".to_owned(), false)]);
    assert!(store.get_sender_key_devices(other_group).await.unwrap().is_empty());
    store.clear_sender_key_devices(GROUP).await.unwrap();
    store.set_sender_key_status(GROUP, &[(DEVICE_JID, false)]).await.unwrap();
    store.clear_all_sender_key_devices().await.unwrap();
    assert!(store.get_sender_key_devices(GROUP).await.unwrap().is_empty());

    let entry = lid_mapping();
    let same = |found: Option<LidPnMappingEntry>, expected: &LidPnMappingEntry| {
        assert_eq!(format!("{found:?}"), format!("{:?}", Some(expected)));
    };
    assert!(store.get_lid_mapping(LID).await.unwrap().is_none());
    store.put_lid_mapping(&entry).await.unwrap();
    same(store.get_lid_mapping(LID).await.unwrap(), &entry);
    same(store.get_pn_mapping(PHONE).await.unwrap(), &entry);
    let newer = LidPnMappingEntry { lid: "2".into(), updated_at: entry.updated_at + 1, ..entry.clone() };
    let third = LidPnMappingEntry { lid: "3".into(), phone_number: "4".into(), ..entry.clone() };
    store.put_lid_mappings(&[newer.clone(), third.clone()]).await.unwrap();
    store.put_lid_mappings(&[]).await.unwrap();
    same(store.get_pn_mapping(PHONE).await.unwrap(), &newer);
    let mut all = store.get_all_lid_mappings().await.unwrap();
    all.sort_by(|a, b| a.lid.cmp(&b.lid));
    assert_eq!(format!("{all:?}"), format!("{:?}", [entry, newer, third]));

    assert!(!store.has_same_base_key(SESSION_ADDRESS, MESSAGE_ID, &BASE_KEY).await.unwrap());
    store.save_base_key(SESSION_ADDRESS, MESSAGE_ID, &BASE_KEY).await.unwrap();
    assert!(store.has_same_base_key(SESSION_ADDRESS, MESSAGE_ID, &BASE_KEY).await.unwrap());
    assert!(!store.has_same_base_key(SESSION_ADDRESS, MESSAGE_ID, &[0; 32]).await.unwrap());
    assert!(!store.has_same_base_key(SESSION_ADDRESS, "other", &BASE_KEY).await.unwrap());
    store.delete_base_key(SESSION_ADDRESS, MESSAGE_ID).await.unwrap();
    assert!(!store.has_same_base_key(SESSION_ADDRESS, MESSAGE_ID, &BASE_KEY).await.unwrap());

    let same = |found: Option<DeviceListRecord>, expected: &DeviceListRecord| {
        assert_eq!(format!("{found:?}"), format!("{:?}", Some(expected)));
    };
    // A time that upstream's SQLite store does not cut off, so that the plain stores agree as well.
    let list = DeviceListRecord { timestamp: 1_700_000_000, raw_id: Some(7), ..device_list() };
    store.update_device_list(list.clone()).await.unwrap();
    same(store.get_devices(PHONE).await.unwrap(), &list);
    let empty = DeviceListRecord { devices: vec![], phash: None, raw_id: None, ..list.clone() };
    let second = DeviceListRecord { user: "8".into(), ..list.clone() };
    store.update_device_lists(vec![empty.clone(), second.clone()]).await.unwrap();
    same(store.get_devices(PHONE).await.unwrap(), &empty);
    same(store.get_devices("8").await.unwrap(), &second);
    store.delete_devices(PHONE).await.unwrap();
    assert!(store.get_devices(PHONE).await.unwrap().is_none());

    assert_eq!(store.get_group_metadata(GROUP).await.unwrap(), None);
    store.put_group_metadata(GROUP, GROUP_METADATA).await.unwrap();
    assert_eq!(store.get_group_metadata(GROUP).await.unwrap().as_deref(), Some(GROUP_METADATA));
    store.delete_group_metadata(GROUP).await.unwrap();
    assert_eq!(store.get_group_metadata(GROUP).await.unwrap(), None);

    tc_tokens(store).await;
}

async fn tc_tokens(store: &dyn Backend) {
    let get =
        async |jid| store.get_tc_token(jid).await.unwrap().map(|e| (e.token, e.token_timestamp, e.sender_timestamp));
    assert_eq!(get(TC_JID).await, None);
    store.touch_tc_token_sender_timestamp(TC_JID, 50).await.unwrap();
    assert_eq!(get(TC_JID).await, Some((vec![], 50, Some(50))));
    store.store_received_tc_token(TC_JID, TC_TOKEN, 40).await.unwrap();
    assert_eq!(get(TC_JID).await, Some((TC_TOKEN.to_vec(), 40, Some(50))), "a placeholder never blocks a real token");
    store.store_received_tc_token(TC_JID, b"older", 39).await.unwrap();
    store.touch_tc_token_sender_timestamp(TC_JID, 45).await.unwrap();
    assert_eq!(get(TC_JID).await, Some((TC_TOKEN.to_vec(), 40, Some(50))), "newer wins, times only advance");
    store.store_received_tc_token(TC_JID, b"", 41).await.unwrap();
    assert_eq!(get(TC_JID).await, Some((vec![], 41, Some(50))));
    store.put_tc_token(TC_JID, &tc_token()).await.unwrap();
    let entry = tc_token();
    assert_eq!(get(TC_JID).await, Some((entry.token, entry.token_timestamp, entry.sender_timestamp)));
    store.put_tc_token("b", &TcTokenEntry { token: vec![], token_timestamp: 9, sender_timestamp: None }).await.unwrap();
    let mut jids = store.get_all_tc_token_jids().await.unwrap();
    jids.sort();
    assert_eq!(jids, [TC_JID, "b"]);
    assert_eq!(store.delete_expired_tc_tokens(10, 10).await.unwrap(), 1);
    assert_eq!(get("b").await, None);
    store.delete_tc_token(TC_JID).await.unwrap();
    assert_eq!(get(TC_JID).await, None);
}

async fn messages(store: &dyn Backend) {
    assert_eq!(store.take_sent_message(CHAT, MESSAGE_ID).await.unwrap(), None);
    store.store_sent_message(CHAT, MESSAGE_ID, SENT_MESSAGE).await.unwrap();
    assert_eq!(store.take_sent_message("other", MESSAGE_ID).await.unwrap(), None);
    assert_eq!(store.take_sent_message(CHAT, MESSAGE_ID).await.unwrap().as_deref(), Some(SENT_MESSAGE));
    assert_eq!(store.take_sent_message(CHAT, MESSAGE_ID).await.unwrap(), None);
    store.store_sent_message(CHAT, "2", b"").await.unwrap();
    assert_eq!(store.delete_expired_sent_messages(1).await.unwrap(), 0);
    assert_eq!(store.delete_expired_sent_messages(i64::from(i32::MAX)).await.unwrap(), 1);

    store.store_pending_inbound(CHAT, SENDER, MESSAGE_ID, PENDING_MESSAGE).await.unwrap();
    let get = async |id| store.get_pending_inbound(CHAT, SENDER, id).await.unwrap();
    assert_eq!(get(MESSAGE_ID).await.as_deref(), Some(PENDING_MESSAGE));
    assert_eq!(store.get_pending_inbound(SENDER, CHAT, MESSAGE_ID).await.unwrap(), None);
    store.delete_pending_inbound(CHAT, SENDER, MESSAGE_ID).await.unwrap();
    assert_eq!(get(MESSAGE_ID).await, None);
    let row = |id, message| PendingInboundRow { chat: CHAT, sender: SENDER, id, message };
    store.store_pending_inbound_batch(&[row("a", b"1"), row("b", b""), row("a", b"2")]).await.unwrap();
    store.store_pending_inbound_batch(&[]).await.unwrap();
    assert_eq!((get("a").await, get("b").await), (Some(b"2".to_vec()), Some(vec![])));
    store.delete_pending_inbound_batch(&[PendingInboundKey { chat: CHAT, sender: SENDER, id: "a" }]).await.unwrap();
    store.delete_pending_inbound_batch(&[]).await.unwrap();
    assert_eq!((get("a").await, get("b").await), (None, Some(vec![])));
    assert_eq!(store.delete_expired_pending_inbound(1).await.unwrap(), 0);
    assert_eq!(store.delete_expired_pending_inbound(i64::from(i32::MAX)).await.unwrap(), 1);

    store.snapshot_db(SNAPSHOT_NAME, Some(SNAPSHOT_EXTRA)).await.unwrap();
    store.snapshot_db("without-extra", None).await.unwrap();
}

async fn message_secrets(store: &dyn Backend) {
    assert_eq!(store.get_msg_secret(CHAT, SENDER, MESSAGE_ID).await.unwrap(), None);
    let entry = message_secret();
    assert_eq!(store.put_msg_secrets(vec![entry.clone(), entry.clone()]).await.unwrap(), 2);
    assert_eq!(store.put_msg_secrets(vec![]).await.unwrap(), 0);
    assert_eq!(store.get_msg_secret(CHAT, SENDER, MESSAGE_ID).await.unwrap().as_deref(), Some(&MESSAGE_SECRET[..]));
    let earlier = MsgSecretEntry { secret: [9; 32], expires_at: 5, message_ts: 0, ..entry.clone() };
    store.put_msg_secrets(vec![earlier]).await.unwrap();
    assert_eq!(
        store.get_msg_secret_with_ts(CHAT, SENDER, MESSAGE_ID).await.unwrap(),
        Some((vec![9; 32], entry.message_ts)),
        "the secret is replaced, the times are merged"
    );
    assert_eq!(store.delete_expired_msg_secrets(entry.expires_at - 1).await.unwrap(), 0);
    store.put_msg_secret(CHAT, SENDER, "never", &MESSAGE_SECRET).await.unwrap();
    assert_eq!(store.delete_expired_msg_secrets(entry.expires_at).await.unwrap(), 1);
    assert_eq!(store.get_msg_secret(CHAT, SENDER, MESSAGE_ID).await.unwrap(), None);
    assert_eq!(store.get_msg_secret(CHAT, SENDER, "never").await.unwrap().as_deref(), Some(&MESSAGE_SECRET[..]));
}
