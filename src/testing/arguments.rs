//! One call of each of the 82 methods.

use std::sync::{Arc, LazyLock, OnceLock};

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

use waproto::whatsapp::ADVSignedDeviceIdentity;

use super::value::{ToValue, Value};
use crate::method::Method;

/// A key in every form that the traits use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key<'a> {
    /// For prekeys and the indexes of mutation MACs.
    pub(crate) id: u32,
    /// For all other records.
    pub(crate) text: &'a str,
}

/// A value for every argument of a storage method. An argument of several methods, such as the address of a session,
/// is one field, so that calls with the same arguments use the same rows.
#[derive(Clone)]
pub(crate) struct Arguments {
    pub(crate) session_address: String,
    pub(crate) identity_address: String,
    pub(crate) sender_key_address: String,
    /// A user as `has_signal_state_for_user` expects it.
    pub(crate) user: String,
    pub(crate) group: String,
    pub(crate) device_jid: String,
    pub(crate) tc_jid: String,
    pub(crate) collection: String,
    /// The collection of a mutation MAC.
    pub(crate) mac_collection: String,
    pub(crate) chat: String,
    pub(crate) sender: String,
    pub(crate) message_id: String,
    pub(crate) snapshot_name: String,
    pub(crate) prekey_id: u32,
    pub(crate) signed_prekey_id: u32,
    pub(crate) sync_key_id: Vec<u8>,
    pub(crate) flag: bool,

    pub(crate) identity_key: [u8; 32],
    pub(crate) session: Bytes,
    pub(crate) prekey: Bytes,
    pub(crate) signed_prekey: Bytes,
    pub(crate) sender_key: Bytes,
    pub(crate) sync_key: AppStateSyncKey,
    pub(crate) version: HashState,
    pub(crate) mac: AppStateMutationMAC,
    pub(crate) lid_mapping: LidPnMappingEntry,
    pub(crate) base_key: Bytes,
    pub(crate) device_list: DeviceListRecord,
    pub(crate) group_metadata: Bytes,
    pub(crate) tc_token: TcTokenEntry,
    pub(crate) sent_message: Bytes,
    pub(crate) pending_message: Bytes,
    pub(crate) message_secret: [u8; 32],
    /// The time at which the message secret expires, and the time of its message.
    pub(crate) secret_times: (i64, i64),
    pub(crate) device: Arc<Device>,
    pub(crate) snapshot_extra: Bytes,

    /// The cut-off of sweeps over tc tokens (tokens, senders) and message secrets.
    pub(crate) cutoffs: (i64, i64),
    /// The cut-off of sweeps that use times of the store's own clock.
    pub(crate) clock_cutoff: i64,
}

impl Arguments {
    /// Arguments with all keys derived from one key, and all values from one number.
    ///
    /// The values of the numbers 0 to 3 are empty, one byte, every byte, and large; all others are short. Fields of a
    /// fixed size differ for every number.
    pub(crate) fn numbered(key: Key<'_>, number: u8) -> Self {
        let text = key.text.to_owned();
        let content = match number {
            0 => Bytes::new(),
            1 => Bytes::from_static(&[0xff]),
            2 => (0..=255).collect(),
            LARGE => (0..200_000u32).map(|at| (at % 251) as u8).collect(),
            _ => vec![number; 40].into(),
        };
        let mut index_mac = vec![0xa5; 32];
        index_mac[..4].copy_from_slice(&key.id.to_be_bytes());
        let seconds = 1_700_000_000 + i64::from(number);
        Self {
            session_address: text.clone(),
            identity_address: text.clone(),
            sender_key_address: text.clone(),
            user: text.clone(),
            group: text.clone(),
            device_jid: text.clone(),
            tc_jid: text.clone(),
            collection: text.clone(),
            mac_collection: "regular".to_owned(),
            chat: text.clone(),
            sender: text.clone(),
            message_id: text.clone(),
            snapshot_name: "conformance".to_owned(),
            prekey_id: key.id,
            signed_prekey_id: key.id,
            sync_key_id: text.clone().into_bytes(),
            flag: number % 2 == 1,
            identity_key: [number; 32],
            session: content.clone(),
            prekey: content.clone(),
            signed_prekey: content.clone(),
            sender_key: content.clone(),
            sync_key: AppStateSyncKey {
                key_data: vec![number; 32],
                fingerprint: content.to_vec(),
                timestamp: i64::from(number) - 2,
            },
            version: HashState {
                version: u64::from(number) + 1,
                hash: [number; 128],
                index_value_map: [(format!("index {number}"), content.to_vec())].into(),
                mac_mismatch_fatal: number % 2 == 1,
            },
            mac: AppStateMutationMAC { index_mac, value_mac: vec![number; 32] },
            lid_mapping: LidPnMappingEntry {
                lid: text.clone(),
                phone_number: format!("{}5", key.text),
                // A store may keep the first value, or take the last.
                created_at: 1_600_000_000,
                updated_at: seconds,
                learning_source: format!("source {number} ☃"),
            },
            // A public key, which is never large.
            base_key: content.slice(..content.len().min(1000)),
            device_list: DeviceListRecord {
                user: text.clone(),
                devices: (0..u32::from(number % 8))
                    .map(|id| DeviceInfo::new(id, (id % 2 == 0).then_some(id + 7)).with_hosting(id % 3 == 0))
                    .collect(),
                timestamp: seconds,
                phash: (number > 0).then(|| format!("2:phash{number}")),
                raw_id: (number > 0).then_some(u32::from(number) << 20),
            },
            group_metadata: content.clone(),
            tc_token: TcTokenEntry {
                token: content.to_vec(),
                token_timestamp: seconds,
                sender_timestamp: (number > 0).then_some(seconds + 1),
            },
            sent_message: content.clone(),
            pending_message: content.clone(),
            message_secret: [number; 32],
            // The times rise with the number, because a store keeps the later ones.
            secret_times: (seconds + 2, seconds + 3),
            device: device(number),
            snapshot_extra: content,
            cutoffs: (FAR_FUTURE, FAR_FUTURE),
            clock_cutoff: FAR_FUTURE,
        }
    }

    fn secret(&self) -> MsgSecretEntry {
        MsgSecretEntry {
            chat: self.chat.as_str().into(),
            sender: self.sender.as_str().into(),
            msg_id: self.message_id.as_str().into(),
            secret: self.message_secret,
            expires_at: self.secret_times.0,
            message_ts: self.secret_times.1,
        }
    }

    /// The index of the mutation MAC in the form of batches, which have only full-length ones.
    fn full_index(&self) -> Option<[u8; 32]> {
        self.mac.index_mac.as_slice().try_into().ok()
    }
}

/// The year 2100, in seconds. Stores represent times in many ways, and few of them reach much farther.
pub(crate) const FAR_FUTURE: i64 = 4_102_444_800;

/// The number whose values are large.
pub(crate) const LARGE: u8 = 3;

/// A registered device. Its fields differ for every number, but its keys do not, because they take a while to make.
pub(crate) fn device(number: u8) -> Arc<Device> {
    static DEVICES: [OnceLock<Arc<Device>>; 256] = [const { OnceLock::new() }; 256];
    DEVICES[usize::from(number)].get_or_init(|| Arc::new(new_device(number))).clone()
}

fn new_device(number: u8) -> Device {
    static KEYS: LazyLock<Device> = LazyLock::new(Device::new);
    let account = || ADVSignedDeviceIdentity {
        details: Some(vec![number; 20]),
        account_signature_key: Some(vec![1; 32]),
        account_signature: Some(vec![2; 64]),
        device_signature: Some(vec![3; 64]),
    };
    let seen = number > 0;
    let id = u32::from(number) + 1;
    let time = 1_700_000_000_000 + i64::from(number);
    Device {
        pn: seen.then(|| format!("1555000{number}:5@s.whatsapp.net").parse().ok()).flatten(),
        lid: seen.then(|| format!("10000000{number}:5@lid").parse().ok()).flatten(),
        registration_id: u32::MAX - id,
        signed_pre_key_id: id,
        signed_pre_key_signature: [number; 64],
        adv_secret_key: [number; 32],
        account: seen.then(|| Arc::new(account())),
        push_name: format!("Name {number} ☃"),
        app_version_primary: id,
        app_version_secondary: id + 1,
        app_version_tertiary: id + 2,
        app_version_last_fetched_ms: time,
        // Not empty, because a store may treat an empty value as absent.
        edge_routing_info: seen.then(|| vec![number; 8192]),
        props_hash: seen.then(|| format!("hash {number}")),
        next_pre_key_id: id + 3,
        first_unupload_pre_key_id: id + 4,
        server_has_prekeys: number % 2 == 1,
        nct_salt: seen.then(|| vec![number; 16]),
        server_cert_chain: seen.then_some(CachedServerCertChain {
            intermediate: CachedNoiseCert { key: [4; 32], not_before: 5, not_after: 6 },
            leaf: CachedNoiseCert { key: [number; 32], not_before: 7, not_after: 8 },
        }),
        login_counter: i32::from(number),
        lid_migrated: number % 2 == 1,
        last_signed_pre_key_rotation_ms: time + 1,
        read_receipts_disabled: number % 2 == 1,
        ..KEYS.clone()
    }
}

/// Calls one method and returns its result. Batch methods take `batch`, all others take `first`.
pub(crate) async fn call<'a>(
    store: &dyn Backend,
    method: Method,
    first: &'a Arguments,
    batch: &'a [Arguments],
) -> Result<Value> {
    let rows = || batch.iter();
    let Arguments { chat, sender, message_id, session_address, identity_address, sender_key_address, .. } = first;
    let Arguments {
        group, collection, mac_collection, tc_jid, tc_token, lid_mapping, prekey_id, signed_prekey_id, ..
    } = first;
    let addressed = |address: fn(&Arguments) -> (&String, &Bytes)| -> Vec<(Arc<str>, Bytes)> {
        rows().map(address).map(|(address, value)| (Arc::from(address.as_str()), value.clone())).collect()
    };
    Ok(match method {
        Method::PutIdentity => store.put_identity(identity_address, first.identity_key).await?.to_value(),
        Method::PutIdentitiesBatch => {
            let rows: Vec<_> = rows().map(|row| (row.identity_address.as_str().into(), row.identity_key)).collect();
            store.put_identities_batch(&rows).await?.to_value()
        }
        Method::LoadIdentity => store.load_identity(identity_address).await?.to_value(),
        Method::DeleteIdentity => store.delete_identity(identity_address).await?.to_value(),
        Method::GetSession => store.get_session(session_address).await?.to_value(),
        Method::PutSession => store.put_session(session_address, &first.session).await?.to_value(),
        Method::PutSessionsBatch => {
            let rows = addressed(|row| (&row.session_address, &row.session));
            store.put_sessions_batch(&rows).await?.to_value()
        }
        Method::DeleteSession => store.delete_session(session_address).await?.to_value(),
        Method::HasSession => store.has_session(session_address).await?.to_value(),
        Method::HasSignalStateForUser => store.has_signal_state_for_user(&first.user).await?.to_value(),
        Method::StorePrekey => store.store_prekey(*prekey_id, &first.prekey, first.flag).await?.to_value(),
        Method::StorePrekeysBatch => {
            let rows: Vec<_> = rows().map(|row| (row.prekey_id, row.prekey.clone())).collect();
            store.store_prekeys_batch(&rows, first.flag).await?.to_value()
        }
        Method::LoadPrekey => store.load_prekey(*prekey_id).await?.to_value(),
        Method::LoadPrekeysBatch => {
            let ids: Vec<_> = rows().map(|row| row.prekey_id).collect();
            store.load_prekeys_batch(&ids).await?.to_value()
        }
        Method::MarkPrekeysUploaded => {
            let ids: Vec<_> = rows().map(|row| row.prekey_id).collect();
            store.mark_prekeys_uploaded(&ids).await?.to_value()
        }
        Method::RemovePrekey => store.remove_prekey(*prekey_id).await?.to_value(),
        Method::GetMaxPrekeyId => store.get_max_prekey_id().await?.to_value(),
        Method::StoreSignedPrekey => {
            store.store_signed_prekey(*signed_prekey_id, &first.signed_prekey).await?.to_value()
        }
        Method::LoadSignedPrekey => store.load_signed_prekey(*signed_prekey_id).await?.to_value(),
        Method::LoadAllSignedPrekeys => store.load_all_signed_prekeys().await?.to_value(),
        Method::RemoveSignedPrekey => store.remove_signed_prekey(*signed_prekey_id).await?.to_value(),
        Method::PutSenderKey => store.put_sender_key(sender_key_address, &first.sender_key).await?.to_value(),
        Method::PutSenderKeysBatch => {
            let rows = addressed(|row| (&row.sender_key_address, &row.sender_key));
            store.put_sender_keys_batch(&rows).await?.to_value()
        }
        Method::GetSenderKey => store.get_sender_key(sender_key_address).await?.to_value(),
        Method::DeleteSenderKey => store.delete_sender_key(sender_key_address).await?.to_value(),

        Method::GetSyncKey => store.get_sync_key(&first.sync_key_id).await?.to_value(),
        Method::SetSyncKey => store.set_sync_key(&first.sync_key_id, first.sync_key.clone()).await?.to_value(),
        Method::GetVersion => store.get_version(collection).await?.to_value(),
        Method::SetVersion => store.set_version(collection, first.version.clone()).await?.to_value(),
        Method::PutMutationMacs => {
            let macs: Vec<_> = rows().map(|row| row.mac.clone()).collect();
            store.put_mutation_macs(mac_collection, first.version.version, &macs).await?.to_value()
        }
        Method::GetMutationMac => store.get_mutation_mac(mac_collection, &first.mac.index_mac).await?.to_value(),
        Method::GetMutationMacs => {
            let indexes: Vec<_> = rows().filter_map(Arguments::full_index).collect();
            store.get_mutation_macs(mac_collection, &indexes).await?.to_value()
        }
        Method::DeleteMutationMacs => {
            let indexes: Vec<_> = rows().map(|row| row.mac.index_mac.clone()).collect();
            store.delete_mutation_macs(mac_collection, &indexes).await?.to_value()
        }
        Method::ClearMutationMacs => store.clear_mutation_macs(mac_collection).await?.to_value(),
        Method::GetLatestSyncKeyId => store.get_latest_sync_key_id().await?.to_value(),

        Method::GetSenderKeyDevices => store.get_sender_key_devices(group).await?.to_value(),
        Method::SetSenderKeyStatus => {
            let entries: Vec<_> = rows().map(|row| (row.device_jid.as_str(), row.flag)).collect();
            store.set_sender_key_status(group, &entries).await?.to_value()
        }
        Method::ClearSenderKeyDevices => store.clear_sender_key_devices(group).await?.to_value(),
        Method::DeleteSenderKeyDeviceRows => {
            let jids: Vec<_> = rows().map(|row| row.device_jid.as_str()).collect();
            store.delete_sender_key_device_rows(&jids).await?.to_value()
        }
        Method::ClearAllSenderKeyDevices => store.clear_all_sender_key_devices().await?.to_value(),
        Method::GetLidMapping => store.get_lid_mapping(&lid_mapping.lid).await?.to_value(),
        Method::GetPnMapping => store.get_pn_mapping(&lid_mapping.phone_number).await?.to_value(),
        Method::PutLidMapping => store.put_lid_mapping(lid_mapping).await?.to_value(),
        Method::PutLidMappings => {
            let entries: Vec<_> = rows().map(|row| row.lid_mapping.clone()).collect();
            store.put_lid_mappings(&entries).await?.to_value()
        }
        Method::GetAllLidMappings => store.get_all_lid_mappings().await?.to_value(),
        Method::SaveBaseKey => store.save_base_key(session_address, message_id, &first.base_key).await?.to_value(),
        Method::HasSameBaseKey => {
            store.has_same_base_key(session_address, message_id, &first.base_key).await?.to_value()
        }
        Method::DeleteBaseKey => store.delete_base_key(session_address, message_id).await?.to_value(),
        Method::UpdateDeviceList => store.update_device_list(first.device_list.clone()).await?.to_value(),
        Method::UpdateDeviceLists => {
            store.update_device_lists(rows().map(|row| row.device_list.clone()).collect()).await?.to_value()
        }
        Method::GetDevices => store.get_devices(&first.device_list.user).await?.to_value(),
        Method::DeleteDevices => store.delete_devices(&first.device_list.user).await?.to_value(),
        Method::GetGroupMetadata => store.get_group_metadata(group).await?.to_value(),
        Method::PutGroupMetadata => store.put_group_metadata(group, &first.group_metadata).await?.to_value(),
        Method::DeleteGroupMetadata => store.delete_group_metadata(group).await?.to_value(),
        Method::GetTcToken => store.get_tc_token(tc_jid).await?.to_value(),
        Method::PutTcToken => store.put_tc_token(tc_jid, tc_token).await?.to_value(),
        Method::DeleteTcToken => store.delete_tc_token(tc_jid).await?.to_value(),
        Method::GetAllTcTokenJids => store.get_all_tc_token_jids().await?.to_value(),
        Method::DeleteExpiredTcTokens => {
            store.delete_expired_tc_tokens(first.cutoffs.0, first.cutoffs.1).await?.to_value()
        }
        Method::TouchTcTokenSenderTimestamp => {
            store.touch_tc_token_sender_timestamp(tc_jid, tc_token.token_timestamp).await?.to_value()
        }
        Method::StoreReceivedTcToken => {
            store.store_received_tc_token(tc_jid, &tc_token.token, tc_token.token_timestamp).await?.to_value()
        }
        Method::StoreSentMessage => store.store_sent_message(chat, message_id, &first.sent_message).await?.to_value(),
        Method::TakeSentMessage => store.take_sent_message(chat, message_id).await?.to_value(),
        Method::DeleteExpiredSentMessages => store.delete_expired_sent_messages(first.clock_cutoff).await?.to_value(),
        Method::StorePendingInbound => {
            store.store_pending_inbound(chat, sender, message_id, &first.pending_message).await?.to_value()
        }
        Method::GetPendingInbound => store.get_pending_inbound(chat, sender, message_id).await?.to_value(),
        Method::DeletePendingInbound => store.delete_pending_inbound(chat, sender, message_id).await?.to_value(),
        Method::DeleteExpiredPendingInbound => {
            store.delete_expired_pending_inbound(first.clock_cutoff).await?.to_value()
        }
        Method::StorePendingInboundBatch => {
            let row = |row: &'a Arguments| {
                let Arguments { chat, sender, message_id, pending_message, .. } = row;
                PendingInboundRow { chat, sender, id: message_id, message: pending_message }
            };
            store.store_pending_inbound_batch(&rows().map(row).collect::<Vec<_>>()).await?.to_value()
        }
        Method::DeletePendingInboundBatch => {
            let key = |row: &'a Arguments| {
                let Arguments { chat, sender, message_id, .. } = row;
                PendingInboundKey { chat, sender, id: message_id }
            };
            store.delete_pending_inbound_batch(&rows().map(key).collect::<Vec<_>>()).await?.to_value()
        }

        Method::Save => store.save(&first.device).await?.to_value(),
        Method::Load => store.load().await?.to_value(),
        Method::Exists => store.exists().await?.to_value(),
        Method::Create => store.create().await?.to_value(),
        Method::SnapshotDb => store.snapshot_db(&first.snapshot_name, Some(&first.snapshot_extra)).await?.to_value(),
        Method::ResourceReport => store.resource_report().await.to_value(),

        Method::PutMsgSecret => store.put_msg_secret(chat, sender, message_id, &first.message_secret).await?.to_value(),
        Method::PutMsgSecrets => store.put_msg_secrets(rows().map(Arguments::secret).collect()).await?.to_value(),
        Method::GetMsgSecret => store.get_msg_secret(chat, sender, message_id).await?.to_value(),
        Method::GetMsgSecretWithTs => store.get_msg_secret_with_ts(chat, sender, message_id).await?.to_value(),
        Method::DeleteExpiredMsgSecrets => store.delete_expired_msg_secrets(first.cutoffs.0).await?.to_value(),
    })
}
