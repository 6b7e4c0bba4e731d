//! Recognizable values for a call of each of the 82 methods.

use std::sync::Arc;

use bytes::Bytes;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::Device;
use wacore::store::device::{CachedNoiseCert, CachedServerCertChain};
use wacore::store::error::Result;
use wacore::store::traits::{AppStateSyncKey, Backend, DeviceInfo, DeviceListRecord, LidPnMappingEntry, TcTokenEntry};

use crate::method::Method;
use crate::testing::arguments::{self, Arguments};

pub(crate) const PHONE: &str = "15550109921";
pub(crate) const LID: &str = "100000099887766";
pub(crate) const SESSION_ADDRESS: &str = "15550109921:7@s.whatsapp.net";
pub(crate) const IDENTITY_ADDRESS: &str = "15550109922@s.whatsapp.net";
pub(crate) const SENDER_KEY_ADDRESS: &str = "120363029988776655@g.us:15550109923.4";
pub(crate) const GROUP: &str = "120363025544332211@g.us";
pub(crate) const DEVICE_JID: &str = "15550109924:3@s.whatsapp.net";
pub(crate) const TC_JID: &str = "100000055443322@lid";
pub(crate) const COLLECTION: &str = "canary_collection";
pub(crate) const CHAT: &str = "120363027766554433@g.us";
pub(crate) const SENDER: &str = "15550109925@s.whatsapp.net";
pub(crate) const MESSAGE_ID: &str = "3EB0CA11AB1E5EED0001";
pub(crate) const SECOND_MESSAGE_ID: &str = "2";
pub(crate) const SNAPSHOT_NAME: &str = "canary-snapshot-3EB0CA11AB1E";
pub(crate) const SOURCE: &str = "canary_learning_source";
pub(crate) const PUSH_NAME: &str = "Canary Push Name";
pub(crate) const PHASH: &str = "2:canaryphash";

/// 32 bytes that represent one secret, all different.
pub(crate) const fn secret(number: u8) -> [u8; 32] {
    let mut bytes = *b"\x00\xffcanary secret no. ?? ...... \xfe\x01";
    bytes[19] = b'0' + number / 10;
    bytes[20] = b'0' + number % 10;
    bytes
}

pub(crate) const IDENTITY_KEY: [u8; 32] = secret(1);
pub(crate) const SESSION: &[u8] = &secret(2);
pub(crate) const PREKEY: &[u8] = &secret(3);
pub(crate) const SIGNED_PREKEY: &[u8] = &secret(4);
pub(crate) const SENDER_KEY: &[u8] = &secret(5);
pub(crate) const SYNC_KEY: [u8; 32] = secret(6);
pub(crate) const LT_HASH: [u8; 32] = secret(7);
pub(crate) const INDEX_MAC: [u8; 32] = secret(8);
pub(crate) const VALUE_MAC: [u8; 32] = secret(9);
pub(crate) const BASE_KEY: [u8; 32] = secret(10);
pub(crate) const GROUP_METADATA: &[u8] = &secret(11);
pub(crate) const TC_TOKEN: &[u8] = &secret(12);
pub(crate) const SENT_MESSAGE: &[u8] = &secret(13);
pub(crate) const PENDING_MESSAGE: &[u8] = &secret(14);
pub(crate) const MESSAGE_SECRET: [u8; 32] = secret(15);
pub(crate) const ADV_SECRET: [u8; 32] = secret(16);
pub(crate) const SERVER_KEY: [u8; 32] = secret(17);
pub(crate) const SNAPSHOT_EXTRA: &[u8] = &secret(18);
pub(crate) const NCT_SALT: [u8; 32] = secret(19);
pub(crate) const ROUTING: [u8; 32] = secret(20);
pub(crate) const FINGERPRINT: [u8; 32] = secret(21);

pub(crate) fn sync_key() -> AppStateSyncKey {
    AppStateSyncKey { key_data: SYNC_KEY.to_vec(), fingerprint: FINGERPRINT.to_vec(), timestamp: 1_700_000_001 }
}

pub(crate) fn version() -> HashState {
    let mut hash = [0x66; 128];
    hash[..32].copy_from_slice(&LT_HASH);
    let index_value_map = [("e".to_owned(), vec![1, 2, 3]), ("other".to_owned(), vec![])].into();
    HashState { version: 17, hash, index_value_map, mac_mismatch_fatal: true }
}

pub(crate) fn mac() -> AppStateMutationMAC {
    AppStateMutationMAC { index_mac: INDEX_MAC.to_vec(), value_mac: VALUE_MAC.to_vec() }
}

pub(crate) fn lid_mapping() -> LidPnMappingEntry {
    LidPnMappingEntry {
        lid: LID.to_owned(),
        phone_number: PHONE.to_owned(),
        created_at: 1_700_000_002,
        updated_at: 1_700_000_003,
        learning_source: SOURCE.to_owned(),
    }
}

pub(crate) fn device_list() -> DeviceListRecord {
    DeviceListRecord {
        user: PHONE.to_owned(),
        devices: vec![DeviceInfo::new(0, None), DeviceInfo::new(99, Some(3)).with_hosting(true)],
        // Past 2038: upstream's SQLite store would truncate it, but the sealed record does not.
        timestamp: 5_000_000_000,
        phash: Some(PHASH.to_owned()),
        raw_id: Some(u32::MAX),
    }
}

pub(crate) fn tc_token() -> TcTokenEntry {
    TcTokenEntry { token: TC_TOKEN.to_vec(), token_timestamp: 1_700_000_004, sender_timestamp: Some(1_700_000_005) }
}

#[cfg(feature = "sqlite")]
pub(crate) fn message_secret() -> wacore::store::traits::MsgSecretEntry {
    wacore::store::traits::MsgSecretEntry {
        chat: CHAT.into(),
        sender: SENDER.into(),
        msg_id: MESSAGE_ID.into(),
        secret: MESSAGE_SECRET,
        expires_at: 1_700_000_006,
        message_ts: 1_700_000_007,
    }
}

/// A device in which every field differs from that of a new device.
pub(crate) fn device() -> Device {
    let mut device = Device::new();
    let account = waproto::whatsapp::ADVSignedDeviceIdentity {
        details: Some(b"canary account details".to_vec()),
        account_signature_key: Some(vec![1; 32]),
        account_signature: Some(vec![2; 64]),
        device_signature: Some(vec![3; 64]),
    };
    device.pn = Some("15550109926:5@s.whatsapp.net".parse().unwrap());
    device.lid = Some("100000033221100:5@lid".parse().unwrap());
    device.registration_id = 4_000_000_001;
    device.signed_pre_key_id = 77;
    device.signed_pre_key_signature = std::array::from_fn(|at| at as u8);
    device.adv_secret_key = ADV_SECRET;
    device.account = Some(Arc::new(account));
    device.push_name = PUSH_NAME.to_owned();
    device.app_version_primary = 9;
    device.app_version_secondary = 8;
    device.app_version_tertiary = 7;
    device.app_version_last_fetched_ms = 1_700_000_000_123;
    device.edge_routing_info = Some(ROUTING.to_vec());
    device.props_hash = Some("canary props hash".to_owned());
    device.next_pre_key_id = 812;
    device.first_unupload_pre_key_id = 31;
    device.server_has_prekeys = true;
    device.nct_salt = Some(NCT_SALT.to_vec());
    device.server_cert_chain = Some(CachedServerCertChain {
        intermediate: CachedNoiseCert { key: [4; 32], not_before: 5, not_after: 6 },
        leaf: CachedNoiseCert { key: SERVER_KEY, not_before: 7, not_after: 8 },
    });
    device.login_counter = 12;
    device.lid_migrated = true;
    device.last_signed_pre_key_rotation_ms = 1_700_000_000_456;
    device.read_receipts_disabled = true;
    device
}

/// The canaries as the arguments of any call.
pub(crate) fn arguments() -> Arguments {
    Arguments {
        session_address: SESSION_ADDRESS.to_owned(),
        identity_address: IDENTITY_ADDRESS.to_owned(),
        sender_key_address: SENDER_KEY_ADDRESS.to_owned(),
        user: PHONE.to_owned(),
        group: GROUP.to_owned(),
        device_jid: DEVICE_JID.to_owned(),
        tc_jid: TC_JID.to_owned(),
        collection: COLLECTION.to_owned(),
        mac_collection: COLLECTION.to_owned(),
        chat: CHAT.to_owned(),
        sender: SENDER.to_owned(),
        message_id: MESSAGE_ID.to_owned(),
        snapshot_name: SNAPSHOT_NAME.to_owned(),
        prekey_id: 5,
        signed_prekey_id: 7,
        sync_key_id: vec![0, 1, 0, 0, 0, 2],
        flag: true,
        identity_key: IDENTITY_KEY,
        session: Bytes::from_static(SESSION),
        prekey: Bytes::from_static(PREKEY),
        signed_prekey: Bytes::from_static(SIGNED_PREKEY),
        sender_key: Bytes::from_static(SENDER_KEY),
        sync_key: sync_key(),
        version: version(),
        mac: mac(),
        lid_mapping: lid_mapping(),
        base_key: Bytes::from_static(&BASE_KEY),
        device_list: device_list(),
        group_metadata: Bytes::from_static(GROUP_METADATA),
        tc_token: tc_token(),
        sent_message: Bytes::from_static(SENT_MESSAGE),
        pending_message: Bytes::from_static(PENDING_MESSAGE),
        message_secret: MESSAGE_SECRET,
        secret_times: (1_700_000_006, 1_700_000_007),
        device: Arc::new(device()),
        snapshot_extra: Bytes::from_static(SNAPSHOT_EXTRA),
        cutoffs: (1, 1),
        clock_cutoff: 1,
    }
}

/// Calls one method and ignores its answer; errors are returned. Batches get a second row with another prekey number
/// and message id.
pub(crate) async fn call(store: &dyn Backend, method: Method) -> Result<()> {
    let second = Arguments { prekey_id: 6, message_id: SECOND_MESSAGE_ID.to_owned(), ..arguments() };
    arguments::call(store, method, &arguments(), &[arguments(), second]).await.map(drop)
}

/// Fills a store through every method that writes. Deletes nothing.
pub(crate) async fn fill(store: &dyn Backend) {
    use crate::method::Access;

    // LID mappings have a foreign key to the device row in upstream's SQLite store.
    call(store, Method::Create).await.unwrap();
    for method in Method::ALL.iter().filter(|method| method.access() == Access::Write && **method != Method::Create) {
        call(store, *method).await.unwrap();
    }
}

/// Everything that [`fill`] writes and that the files of an encrypted store must not contain.
pub(crate) fn all() -> Vec<(String, Vec<u8>)> {
    let text = |text: &str| (text.to_owned(), text.as_bytes().to_vec());
    let mut canaries: Vec<_> = (1..=21).map(|number| (format!("secret {number}"), secret(number).to_vec())).collect();
    canaries.extend(
        [
            PHONE,
            LID,
            SESSION_ADDRESS,
            IDENTITY_ADDRESS,
            SENDER_KEY_ADDRESS,
            GROUP,
            DEVICE_JID,
            TC_JID,
            COLLECTION,
            CHAT,
            SENDER,
            MESSAGE_ID,
            SOURCE,
            PUSH_NAME,
            PHASH,
            "canary account details",
            "canary props hash",
            "15550109926",
            "100000033221100",
        ]
        .map(text),
    );
    canaries
}
