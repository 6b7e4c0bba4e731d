//! One call of each of the 82 methods, full of recognisable values.

use std::sync::Arc;

use bytes::Bytes;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::Device;
use wacore::store::device::{CachedNoiseCert, CachedServerCertChain};
use wacore::store::error::Result;
use wacore::store::traits::{
    AppStateSyncKey, Backend, DeviceInfo, DeviceListRecord, LidPnMappingEntry, MsgSecretEntry, PendingInboundKey,
    PendingInboundRow, TcTokenEntry,
};

use crate::method::Method;

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
pub(crate) const SNAPSHOT_NAME: &str = "canary-snapshot-3EB0CA11AB1E";
pub(crate) const SOURCE: &str = "canary_learning_source";
pub(crate) const PUSH_NAME: &str = "Canary Push Name";
pub(crate) const PHASH: &str = "2:canaryphash";

/// 32 bytes that stand for one secret, all different.
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
        // Past 2038: upstream's SQLite store would cut it off, the sealed record does not.
        timestamp: 5_000_000_000,
        phash: Some(PHASH.to_owned()),
        raw_id: Some(u32::MAX),
    }
}

pub(crate) fn tc_token() -> TcTokenEntry {
    TcTokenEntry { token: TC_TOKEN.to_vec(), token_timestamp: 1_700_000_004, sender_timestamp: Some(1_700_000_005) }
}

pub(crate) fn message_secret() -> MsgSecretEntry {
    MsgSecretEntry {
        chat: CHAT.into(),
        sender: SENDER.into(),
        msg_id: MESSAGE_ID.into(),
        secret: MESSAGE_SECRET,
        expires_at: 1_700_000_006,
        message_ts: 1_700_000_007,
    }
}

/// A device whose every field differs from a new one's.
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

/// Calls one method. The result is thrown away; errors come through.
pub(crate) async fn call(store: &dyn Backend, method: Method) -> Result<()> {
    let row = |id| PendingInboundRow { chat: CHAT, sender: SENDER, id, message: PENDING_MESSAGE };
    let address = |text: &str| -> Arc<str> { Arc::from(text) };
    match method {
        Method::PutIdentity => store.put_identity(IDENTITY_ADDRESS, IDENTITY_KEY).await,
        Method::PutIdentitiesBatch => store.put_identities_batch(&[(address(IDENTITY_ADDRESS), IDENTITY_KEY)]).await,
        Method::LoadIdentity => store.load_identity(IDENTITY_ADDRESS).await.map(drop),
        Method::DeleteIdentity => store.delete_identity(IDENTITY_ADDRESS).await,
        Method::GetSession => store.get_session(SESSION_ADDRESS).await.map(drop),
        Method::PutSession => store.put_session(SESSION_ADDRESS, SESSION).await,
        Method::PutSessionsBatch => {
            store.put_sessions_batch(&[(address(SESSION_ADDRESS), Bytes::from_static(SESSION))]).await
        }
        Method::DeleteSession => store.delete_session(SESSION_ADDRESS).await,
        Method::HasSession => store.has_session(SESSION_ADDRESS).await.map(drop),
        Method::HasSignalStateForUser => store.has_signal_state_for_user(PHONE).await.map(drop),
        Method::StorePrekey => store.store_prekey(5, PREKEY, false).await,
        Method::StorePrekeysBatch => store.store_prekeys_batch(&[(6, Bytes::from_static(PREKEY))], true).await,
        Method::LoadPrekey => store.load_prekey(5).await.map(drop),
        Method::LoadPrekeysBatch => store.load_prekeys_batch(&[5, 6]).await.map(drop),
        Method::MarkPrekeysUploaded => store.mark_prekeys_uploaded(&[5]).await,
        Method::RemovePrekey => store.remove_prekey(5).await,
        Method::GetMaxPrekeyId => store.get_max_prekey_id().await.map(drop),
        Method::StoreSignedPrekey => store.store_signed_prekey(7, SIGNED_PREKEY).await,
        Method::LoadSignedPrekey => store.load_signed_prekey(7).await.map(drop),
        Method::LoadAllSignedPrekeys => store.load_all_signed_prekeys().await.map(drop),
        Method::RemoveSignedPrekey => store.remove_signed_prekey(7).await,
        Method::PutSenderKey => store.put_sender_key(SENDER_KEY_ADDRESS, SENDER_KEY).await,
        Method::PutSenderKeysBatch => {
            store.put_sender_keys_batch(&[(address(SENDER_KEY_ADDRESS), Bytes::from_static(SENDER_KEY))]).await
        }
        Method::GetSenderKey => store.get_sender_key(SENDER_KEY_ADDRESS).await.map(drop),
        Method::DeleteSenderKey => store.delete_sender_key(SENDER_KEY_ADDRESS).await,
        Method::GetSyncKey => store.get_sync_key(&[0, 1, 0, 0, 0, 2]).await.map(drop),
        Method::SetSyncKey => store.set_sync_key(&[0, 1, 0, 0, 0, 2], sync_key()).await,
        Method::GetVersion => store.get_version(COLLECTION).await.map(drop),
        Method::SetVersion => store.set_version(COLLECTION, version()).await,
        Method::PutMutationMacs => store.put_mutation_macs(COLLECTION, 17, &[mac()]).await,
        Method::GetMutationMac => store.get_mutation_mac(COLLECTION, &INDEX_MAC).await.map(drop),
        Method::GetMutationMacs => store.get_mutation_macs(COLLECTION, &[INDEX_MAC]).await.map(drop),
        Method::DeleteMutationMacs => store.delete_mutation_macs(COLLECTION, &[INDEX_MAC.to_vec()]).await,
        Method::ClearMutationMacs => store.clear_mutation_macs(COLLECTION).await,
        Method::GetLatestSyncKeyId => store.get_latest_sync_key_id().await.map(drop),
        Method::GetSenderKeyDevices => store.get_sender_key_devices(GROUP).await.map(drop),
        Method::SetSenderKeyStatus => store.set_sender_key_status(GROUP, &[(DEVICE_JID, true)]).await,
        Method::ClearSenderKeyDevices => store.clear_sender_key_devices(GROUP).await,
        Method::DeleteSenderKeyDeviceRows => store.delete_sender_key_device_rows(&[DEVICE_JID]).await,
        Method::ClearAllSenderKeyDevices => store.clear_all_sender_key_devices().await,
        Method::GetLidMapping => store.get_lid_mapping(LID).await.map(drop),
        Method::GetPnMapping => store.get_pn_mapping(PHONE).await.map(drop),
        Method::PutLidMapping => store.put_lid_mapping(&lid_mapping()).await,
        Method::PutLidMappings => store.put_lid_mappings(&[lid_mapping()]).await,
        Method::GetAllLidMappings => store.get_all_lid_mappings().await.map(drop),
        Method::SaveBaseKey => store.save_base_key(SESSION_ADDRESS, MESSAGE_ID, &BASE_KEY).await,
        Method::HasSameBaseKey => store.has_same_base_key(SESSION_ADDRESS, MESSAGE_ID, &BASE_KEY).await.map(drop),
        Method::DeleteBaseKey => store.delete_base_key(SESSION_ADDRESS, MESSAGE_ID).await,
        Method::UpdateDeviceList => store.update_device_list(device_list()).await,
        Method::UpdateDeviceLists => store.update_device_lists(vec![device_list()]).await,
        Method::GetDevices => store.get_devices(PHONE).await.map(drop),
        Method::DeleteDevices => store.delete_devices(PHONE).await,
        Method::GetGroupMetadata => store.get_group_metadata(GROUP).await.map(drop),
        Method::PutGroupMetadata => store.put_group_metadata(GROUP, GROUP_METADATA).await,
        Method::DeleteGroupMetadata => store.delete_group_metadata(GROUP).await,
        Method::GetTcToken => store.get_tc_token(TC_JID).await.map(drop),
        Method::PutTcToken => store.put_tc_token(TC_JID, &tc_token()).await,
        Method::DeleteTcToken => store.delete_tc_token(TC_JID).await,
        Method::GetAllTcTokenJids => store.get_all_tc_token_jids().await.map(drop),
        Method::DeleteExpiredTcTokens => store.delete_expired_tc_tokens(1, 1).await.map(drop),
        Method::TouchTcTokenSenderTimestamp => store.touch_tc_token_sender_timestamp(TC_JID, 1_700_000_008).await,
        Method::StoreReceivedTcToken => store.store_received_tc_token(TC_JID, TC_TOKEN, 1_700_000_009).await,
        Method::StoreSentMessage => store.store_sent_message(CHAT, MESSAGE_ID, SENT_MESSAGE).await,
        Method::TakeSentMessage => store.take_sent_message(CHAT, MESSAGE_ID).await.map(drop),
        Method::DeleteExpiredSentMessages => store.delete_expired_sent_messages(1).await.map(drop),
        Method::StorePendingInbound => store.store_pending_inbound(CHAT, SENDER, MESSAGE_ID, PENDING_MESSAGE).await,
        Method::GetPendingInbound => store.get_pending_inbound(CHAT, SENDER, MESSAGE_ID).await.map(drop),
        Method::DeletePendingInbound => store.delete_pending_inbound(CHAT, SENDER, MESSAGE_ID).await,
        Method::DeleteExpiredPendingInbound => store.delete_expired_pending_inbound(1).await.map(drop),
        Method::StorePendingInboundBatch => store.store_pending_inbound_batch(&[row(MESSAGE_ID), row("2")]).await,
        Method::DeletePendingInboundBatch => {
            let key = PendingInboundKey { chat: CHAT, sender: SENDER, id: MESSAGE_ID };
            store.delete_pending_inbound_batch(&[key]).await
        }
        Method::Save => store.save(&device()).await,
        Method::Load => store.load().await.map(drop),
        Method::Exists => store.exists().await.map(drop),
        Method::Create => store.create().await.map(drop),
        Method::SnapshotDb => store.snapshot_db(SNAPSHOT_NAME, Some(SNAPSHOT_EXTRA)).await,
        Method::ResourceReport => {
            store.resource_report().await;
            Ok(())
        }
        Method::PutMsgSecret => store.put_msg_secret(CHAT, SENDER, MESSAGE_ID, &MESSAGE_SECRET).await,
        Method::PutMsgSecrets => store.put_msg_secrets(vec![message_secret()]).await.map(drop),
        Method::GetMsgSecret => store.get_msg_secret(CHAT, SENDER, MESSAGE_ID).await.map(drop),
        Method::GetMsgSecretWithTs => store.get_msg_secret_with_ts(CHAT, SENDER, MESSAGE_ID).await.map(drop),
        Method::DeleteExpiredMsgSecrets => store.delete_expired_msg_secrets(1).await.map(drop),
    }
}

/// Fills a store through every method that writes, and deletes nothing.
pub(crate) async fn fill(store: &dyn Backend) {
    use crate::method::Access;

    // LID mappings have a foreign key to the device row in upstream's SQLite store.
    call(store, Method::Create).await.unwrap();
    for method in Method::ALL.iter().filter(|method| method.access() == Access::Write && **method != Method::Create) {
        call(store, *method).await.unwrap();
    }
}

/// Everything that [`fill`] writes and nobody may find in the files of an encrypted store.
pub(crate) fn canaries() -> Vec<(String, Vec<u8>)> {
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
