//! Records that were flipped, truncated, swapped, moved, injected or rolled back give an error each. They never give a
//! panic, garbage or plaintext. Every test runs over memory, upstream's SQLite store and the own one.

use std::sync::Arc;

use wacore::appstate::hash::HashState;
use wacore::store::error::StoreError;
use wacore::store::traits::{AppStateSyncKey, Backend, DeviceListRecord, LidPnMappingEntry, TcTokenEntry};
use whatsapp_rust_sqlite_storage::SqliteStore as UpstreamStore;

use super::{Scratch, encrypted, options, own_error, passphrase, put_headers, raw_key};
use crate::encrypt::format::keys::LookupKeys;
use crate::encrypt::format::token::Domain;
use crate::encrypt::vault::open_vault::VaultState;
use crate::method::{Method, Record};
use crate::testing::canaries::*;
use crate::vault::OnDamage;
use crate::{Error, Key, Layer, Vault};

/// A filled store, seen from both sides.
pub(super) struct Both {
    pub(super) inner: Arc<dyn Backend>,
    pub(super) vault: Vault,
    pub(super) outer: Arc<dyn Backend>,
    _scratch: Scratch,
}

impl Both {
    pub(super) async fn all() -> Vec<Self> {
        let mut all = vec![];
        for scratch in Scratch::all().await {
            all.push(Self::over(scratch).await);
        }
        all
    }

    async fn over(scratch: Scratch) -> Self {
        let inner = scratch.store.clone();
        let (vault, outer) = encrypted(&inner).await;
        fill(&*outer).await;
        Self { inner, vault, outer, _scratch: scratch }
    }

    fn state(&self) -> Arc<VaultState> {
        self.vault.shared().state()
    }

    pub(super) fn token(&self, record: Record, domain: Domain, parts: &[&str]) -> String {
        self.state().cipher.ring.lookup.token(record, domain, parts).unwrap().to_string()
    }

    pub(super) fn address(&self, record: Record, address: &str) -> String {
        self.state().cipher.ring.lookup.address(record, address).unwrap().to_string()
    }
}

pub(super) fn tampered(record: Record) -> String {
    format!("{:?}", Error::Tampered { record })
}

pub(super) fn plaintext(record: Record) -> String {
    format!("{:?}", Error::Plaintext { record })
}

/// A kind of record whose stored bytes are rewritten, and the method that reads it through the layer.
pub(super) struct Slot {
    pub(super) record: Record,
    pub(super) read: Method,
}

/// Every kind of record that is sealed in full.
pub(super) const SLOTS: [Slot; 16] = [
    Slot { record: Record::Session, read: Method::GetSession },
    Slot { record: Record::Identity, read: Method::LoadIdentity },
    Slot { record: Record::Prekey, read: Method::LoadPrekey },
    Slot { record: Record::SignedPrekey, read: Method::LoadSignedPrekey },
    Slot { record: Record::SenderKey, read: Method::GetSenderKey },
    Slot { record: Record::SyncKey, read: Method::GetSyncKey },
    Slot { record: Record::CollectionVersion, read: Method::GetVersion },
    Slot { record: Record::MutationMac, read: Method::GetMutationMac },
    Slot { record: Record::MutationMac, read: Method::GetMutationMacs },
    Slot { record: Record::LidMapping, read: Method::GetLidMapping },
    Slot { record: Record::DeviceList, read: Method::GetDevices },
    Slot { record: Record::GroupMetadata, read: Method::GetGroupMetadata },
    Slot { record: Record::TcToken, read: Method::GetTcToken },
    Slot { record: Record::SentMessage, read: Method::TakeSentMessage },
    Slot { record: Record::PendingInbound, read: Method::GetPendingInbound },
    Slot { record: Record::Device, read: Method::Load },
];

const SYNC_KEY_ID: [u8; 6] = [0, 1, 0, 0, 0, 2];

/// Reads the stored bytes of a record.
pub(super) async fn stored(both: &Both, record: Record) -> Vec<u8> {
    let inner = &both.inner;
    let text = |carrier: &str| data_encoding::BASE64URL_NOPAD.decode(carrier.as_bytes()).unwrap();
    match record {
        Record::Session => {
            let address = both.address(record, SESSION_ADDRESS);
            inner.get_session(&address).await.unwrap().unwrap().to_vec()
        }
        Record::Identity => {
            let address = both.address(record, IDENTITY_ADDRESS);
            inner.get_session(&address).await.unwrap().unwrap().to_vec()
        }
        Record::Prekey => inner.load_prekey(5).await.unwrap().unwrap().to_vec(),
        Record::SignedPrekey => inner.load_signed_prekey(7).await.unwrap().unwrap(),
        Record::SenderKey => inner.get_sender_key(&both.address(record, SENDER_KEY_ADDRESS)).await.unwrap().unwrap(),
        Record::SyncKey => {
            let key = inner.get_sync_key(&SYNC_KEY_ID).await.unwrap().unwrap();
            [key.key_data, key.fingerprint].concat()
        }
        Record::CollectionVersion => {
            let name = both.token(record, Domain::Collection, &[COLLECTION]);
            inner.get_version(&name).await.unwrap().index_value_map["e"].clone()
        }
        Record::MutationMac => {
            let (name, index) = mac_key(both);
            inner.get_mutation_mac(&name, &index).await.unwrap().unwrap()
        }
        Record::LidMapping => text(
            &inner.get_lid_mapping(&both.token(record, Domain::Lid, &[LID])).await.unwrap().unwrap().learning_source,
        ),
        Record::DeviceList => {
            let user = both.token(record, Domain::DeviceListUser, &[PHONE]);
            text(&inner.get_devices(&user).await.unwrap().unwrap().phash.unwrap())
        }
        Record::GroupMetadata => {
            let group = both.token(record, Domain::GroupMetadata, &[GROUP]);
            inner.get_group_metadata(&group).await.unwrap().unwrap()
        }
        Record::TcToken => inner.get_tc_token(&tc_key(both)).await.unwrap().unwrap().token,
        Record::SentMessage => {
            let id = both.token(record, Domain::SentMessage, &[CHAT, MESSAGE_ID]);
            let message = inner.take_sent_message("x", &id).await.unwrap().unwrap();
            inner.store_sent_message("x", &id, &message).await.unwrap();
            message
        }
        Record::PendingInbound => {
            let id = both.token(record, Domain::PendingInbound, &[CHAT, SENDER, MESSAGE_ID]);
            inner.get_pending_inbound("x", "x", &id).await.unwrap().unwrap()
        }
        Record::Device => inner.load().await.unwrap().unwrap().edge_routing_info.unwrap(),
        other => panic!("{other} is not sealed in full"),
    }
}

fn mac_key(both: &Both) -> (String, [u8; 32]) {
    let state = both.state();
    let lookup: &LookupKeys = &state.cipher.ring.lookup;
    let parts = [COLLECTION.as_bytes(), &INDEX_MAC];
    let index = lookup.token_bytes(Record::MutationMac, Domain::MutationIndex, &parts).unwrap();
    (both.token(Record::MutationMac, Domain::Collection, &[COLLECTION]), index)
}

fn tc_key(both: &Both) -> String {
    both.state().cipher.ring.lookup.encrypt_name(Record::TcToken, Domain::TcTokenJid, TC_JID).unwrap()
}

/// Replaces the stored bytes of a record.
pub(super) async fn replace(both: &Both, record: Record, bytes: &[u8]) {
    let inner = &both.inner;
    let text = || data_encoding::BASE64URL_NOPAD.encode(bytes);
    match record {
        Record::Session => inner.put_session(&both.address(record, SESSION_ADDRESS), bytes).await.unwrap(),
        Record::Identity => inner.put_session(&both.address(record, IDENTITY_ADDRESS), bytes).await.unwrap(),
        Record::Prekey => inner.store_prekey(5, bytes, false).await.unwrap(),
        Record::SignedPrekey => inner.store_signed_prekey(7, bytes).await.unwrap(),
        Record::SenderKey => inner.put_sender_key(&both.address(record, SENDER_KEY_ADDRESS), bytes).await.unwrap(),
        Record::SyncKey => {
            let (key_data, fingerprint) = bytes.split_at(bytes.len().min(32));
            let key = AppStateSyncKey { key_data: key_data.into(), fingerprint: fingerprint.into(), timestamp: 0 };
            inner.set_sync_key(&SYNC_KEY_ID, key).await.unwrap();
        }
        Record::CollectionVersion => {
            let name = both.token(record, Domain::Collection, &[COLLECTION]);
            let map = [("e".to_owned(), bytes.to_vec())].into();
            let state = HashState { version: 17, index_value_map: map, ..HashState::default() };
            inner.set_version(&name, state).await.unwrap();
        }
        Record::MutationMac => {
            let (name, index) = mac_key(both);
            let mac = wacore::appstate::processor::AppStateMutationMAC {
                index_mac: index.to_vec(),
                value_mac: bytes.to_vec(),
            };
            inner.put_mutation_macs(&name, 17, &[mac]).await.unwrap();
        }
        Record::LidMapping => {
            let row = inner.get_lid_mapping(&both.token(record, Domain::Lid, &[LID])).await.unwrap().unwrap();
            inner.put_lid_mapping(&LidPnMappingEntry { learning_source: text(), ..row }).await.unwrap();
        }
        Record::DeviceList => {
            let user = both.token(record, Domain::DeviceListUser, &[PHONE]);
            let row = inner.get_devices(&user).await.unwrap().unwrap();
            inner.update_device_list(DeviceListRecord { phash: Some(text()), ..row }).await.unwrap();
        }
        Record::GroupMetadata => {
            inner.put_group_metadata(&both.token(record, Domain::GroupMetadata, &[GROUP]), bytes).await.unwrap();
        }
        Record::TcToken => {
            let row = inner.get_tc_token(&tc_key(both)).await.unwrap().unwrap();
            inner.put_tc_token(&tc_key(both), &TcTokenEntry { token: bytes.into(), ..row }).await.unwrap();
        }
        Record::SentMessage => {
            let id = both.token(record, Domain::SentMessage, &[CHAT, MESSAGE_ID]);
            inner.store_sent_message("x", &id, bytes).await.unwrap();
        }
        Record::PendingInbound => {
            let id = both.token(record, Domain::PendingInbound, &[CHAT, SENDER, MESSAGE_ID]);
            inner.store_pending_inbound("x", "x", &id, bytes).await.unwrap();
        }
        Record::Device => {
            let mut carrier = inner.load().await.unwrap().unwrap();
            carrier.edge_routing_info = Some(bytes.to_vec());
            inner.save(&carrier).await.unwrap();
        }
        other => panic!("{other} is not sealed in full"),
    }
}

pub(super) async fn read(both: &Both, slot: &Slot) -> Result<(), StoreError> {
    call(&*both.outer, slot.read).await
}

#[tokio::test]
async fn flipped_bits() {
    for both in Both::all().await {
        for slot in &SLOTS {
            let intact = stored(&both, slot.record).await;
            // Every bit of a session. For other kinds every bit in front of the body, then one bit of each byte.
            let all = if slot.record == Record::Session { intact.len() } else { 38 };
            let every = (0..all).flat_map(|byte| (0..8).map(move |bit| (byte, bit)));
            for (byte, bit) in every.chain((all..intact.len()).map(|byte| (byte, 3))) {
                let mut flipped = intact.clone();
                flipped[byte] ^= 1 << bit;
                replace(&both, slot.record, &flipped).await;
                let error = own_error(read(&both, slot).await);
                let expected = match byte {
                    6..10 => format!("{:?}", Error::UnknownEpoch { record: slot.record }),
                    _ => tampered(slot.record),
                };
                assert_eq!(error, expected, "{}: bit {bit} of byte {byte}", slot.record);
            }
            replace(&both, slot.record, &intact).await;
            read(&both, slot).await.unwrap();
            replace(&both, slot.record, &intact).await;
        }
    }
}

#[tokio::test]
async fn truncated_and_extended() {
    for both in Both::all().await {
        for slot in &SLOTS {
            let intact = stored(&both, slot.record).await;
            for length in 0..intact.len() {
                replace(&both, slot.record, &intact[..length]).await;
                let result = read(&both, slot).await;
                // An empty token is a placeholder, and upstream's SQLite store treats a short sync key as absent.
                let absent = (slot.record == Record::TcToken && length == 0)
                    || (slot.record == Record::SyncKey && length < 32 && result.is_ok());
                let expected = match (slot.record, length) {
                    (Record::Device, 0) => "PlaintextDevice".to_owned(),
                    _ => tampered(slot.record),
                };
                if !absent {
                    assert_eq!(own_error(result), expected, "{}: {length}", slot.record);
                }
            }
            let extended = [&intact[..], b"x"].concat();
            replace(&both, slot.record, &extended).await;
            assert_eq!(own_error(read(&both, slot).await), tampered(slot.record));
            replace(&both, slot.record, &intact).await;
        }
    }
}

#[tokio::test]
async fn plaintext_in_sealed_slots() {
    for both in Both::all().await {
        for slot in SLOTS.iter().filter(|slot| slot.record != Record::Device) {
            for injected in [&[0x42; 100][..], b"\n\x05plain protobuf", &secret(77), b"\xe7", b"{}"] {
                replace(&both, slot.record, injected).await;
                let result = read(&both, slot).await;
                let short_sync_key = slot.record == Record::SyncKey && injected.len() < 32;
                if !(short_sync_key && result.is_ok()) {
                    let error = own_error(result);
                    // A lone first byte of the magic looks like a truncated envelope.
                    let expected = if injected == b"\xe7" { tampered(slot.record) } else { plaintext(slot.record) };
                    assert_eq!(error, expected, "{}", slot.record);
                }
            }
        }
    }
}

#[tokio::test]
async fn text_that_is_no_carrier() {
    for both in Both::all().await {
        let lid = both.token(Record::LidMapping, Domain::Lid, &[LID]);
        let row = both.inner.get_lid_mapping(&lid).await.unwrap().unwrap();
        let user = both.token(Record::DeviceList, Domain::DeviceListUser, &[PHONE]);
        let list = both.inner.get_devices(&user).await.unwrap().unwrap();
        for text in ["usync", "", "!!", "2:phash==", "ünïcödé"] {
            both.inner
                .put_lid_mapping(&LidPnMappingEntry { learning_source: text.into(), ..row.clone() })
                .await
                .unwrap();
            both.inner.update_device_list(DeviceListRecord { phash: Some(text.into()), ..list.clone() }).await.unwrap();
            for read in [Method::GetLidMapping, Method::GetPnMapping, Method::GetAllLidMappings, Method::GetDevices] {
                let error = own_error(call(&*both.outer, read).await);
                assert!(error == plaintext(read.record()) || error == tampered(read.record()), "{text:?}: {error}");
            }
        }
        both.inner.update_device_list(DeviceListRecord { phash: None, ..list }).await.unwrap();
        assert_eq!(own_error(both.outer.get_devices(PHONE).await), plaintext(Record::DeviceList));
    }
}

#[tokio::test]
async fn text_carriers_cut_in_the_middle() {
    for both in Both::all().await {
        let lid = both.token(Record::LidMapping, Domain::Lid, &[LID]);
        let row = both.inner.get_lid_mapping(&lid).await.unwrap().unwrap();
        for length in 4..row.learning_source.len() {
            let cut = row.learning_source[..length].to_owned();
            both.inner.put_lid_mapping(&LidPnMappingEntry { learning_source: cut, ..row.clone() }).await.unwrap();
            assert_eq!(own_error(both.outer.get_lid_mapping(LID).await), tampered(Record::LidMapping), "{length}");
        }
    }
}

#[tokio::test]
async fn moved_to_another_kind_of_record() {
    for both in Both::all().await {
        for from in &SLOTS {
            let bytes = stored(&both, from.record).await;
            for to in SLOTS.iter().filter(|to| to.record != from.record) {
                let intact = stored(&both, to.record).await;
                replace(&both, to.record, &bytes).await;
                assert_eq!(own_error(read(&both, to).await), tampered(to.record), "{} in {}", from.record, to.record);
                replace(&both, to.record, &intact).await;
            }
        }
    }
}

#[tokio::test]
async fn swapped_with_another_row() {
    for both in Both::all().await {
        let (outer, inner) = (&both.outer, &both.inner);
        // Another device of the same user, and another user.
        for other in ["15550109921:8@s.whatsapp.net", "15550109900:7@s.whatsapp.net"] {
            outer.put_session(other, b"other session").await.unwrap();
            let (a, b) = (both.address(Record::Session, SESSION_ADDRESS), both.address(Record::Session, other));
            let (first, second) =
                (inner.get_session(&a).await.unwrap().unwrap(), inner.get_session(&b).await.unwrap().unwrap());
            inner.put_session(&a, &second).await.unwrap();
            inner.put_session(&b, &first).await.unwrap();
            assert_eq!(own_error(outer.get_session(SESSION_ADDRESS).await), tampered(Record::Session));
            assert_eq!(own_error(outer.get_session(other).await), tampered(Record::Session));
            inner.put_session(&a, &first).await.unwrap();
        }
        // The identity of another peer, and 32 raw bytes: an attacker's key must never come out.
        outer.put_identity("15550109900@s.whatsapp.net", [9; 32]).await.unwrap();
        let other = both.address(Record::Identity, "15550109900@s.whatsapp.net");
        let sealed = inner.get_session(&other).await.unwrap().unwrap();
        replace(&both, Record::Identity, &sealed).await;
        assert_eq!(own_error(outer.load_identity(IDENTITY_ADDRESS).await), tampered(Record::Identity));
        replace(&both, Record::Identity, &[9; 32]).await;
        assert_eq!(own_error(outer.load_identity(IDENTITY_ADDRESS).await), plaintext(Record::Identity));
        // The layer looks for nothing in the identity table.
        inner.put_identity(IDENTITY_ADDRESS, [9; 32]).await.unwrap();
        inner.put_identity(&both.address(Record::Identity, IDENTITY_ADDRESS), [9; 32]).await.unwrap();
        assert!(outer.load_identity(IDENTITY_ADDRESS).await.is_err());

        outer.store_prekey(50, b"fifty", false).await.unwrap();
        let fifty = inner.load_prekey(50).await.unwrap().unwrap();
        replace(&both, Record::Prekey, &fifty).await;
        assert_eq!(own_error(outer.load_prekey(5).await), tampered(Record::Prekey));
        assert_eq!(own_error(outer.load_prekeys_batch(&[50, 5]).await), tampered(Record::Prekey));

        outer.store_signed_prekey(70, b"seventy").await.unwrap();
        let seventy = inner.load_signed_prekey(70).await.unwrap().unwrap();
        replace(&both, Record::SignedPrekey, &seventy).await;
        assert_eq!(own_error(outer.load_all_signed_prekeys().await), tampered(Record::SignedPrekey));

        // A LID mapping whose row was given another phone number.
        outer
            .put_lid_mapping(&LidPnMappingEntry { lid: "2".into(), phone_number: "3".into(), ..lid_mapping() })
            .await
            .unwrap();
        let lid = both.token(Record::LidMapping, Domain::Lid, &[LID]);
        let row = inner.get_lid_mapping(&lid).await.unwrap().unwrap();
        let three = both.token(Record::LidMapping, Domain::PhoneNumber, &["3"]);
        inner.put_lid_mapping(&LidPnMappingEntry { phone_number: three, ..row }).await.unwrap();
        assert_eq!(own_error(outer.get_lid_mapping(LID).await), tampered(Record::LidMapping));

        outer.set_version("other", HashState { version: 1, ..version() }).await.unwrap();
        let name = both.token(Record::CollectionVersion, Domain::Collection, &["other"]);
        let other = inner.get_version(&name).await.unwrap().index_value_map["e"].clone();
        replace(&both, Record::CollectionVersion, &other).await;
        assert_eq!(own_error(outer.get_version(COLLECTION).await), tampered(Record::CollectionVersion));
    }
}

/// The same secret, the same rows: only the vault differs.
#[tokio::test]
async fn from_another_vault() {
    for (one, two) in Both::all().await.into_iter().zip(Both::all().await) {
        assert_foreign(&one, &two).await;
    }
    // Accounts in one file.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("upstream.db");
    let upstream = async |account| {
        let store = UpstreamStore::new_for_device(path.to_str().unwrap(), account).await.unwrap();
        Both::over(Scratch { store: Arc::new(store), folder: None }).await
    };
    assert_foreign(&upstream(1).await, &upstream(2).await).await;
    #[cfg(feature = "sqlite")]
    {
        let store = crate::SqliteStore::open(folder.path().join("own.db")).await.unwrap();
        let own = async |account| Both::over(Scratch { store: Arc::new(store.account(account)), folder: None }).await;
        assert_foreign(&own(1).await, &own(2).await).await;
    }
}

async fn assert_foreign(one: &Both, two: &Both) {
    for slot in &SLOTS {
        let foreign = stored(two, slot.record).await;
        let intact = stored(one, slot.record).await;
        replace(one, slot.record, &foreign).await;
        assert_eq!(own_error(read(one, slot).await), tampered(slot.record));
        replace(one, slot.record, &intact).await;
    }
    let listed = tc_key(two);
    one.inner.put_tc_token(&listed, &tc_token()).await.unwrap();
    assert_eq!(own_error(one.outer.get_all_tc_token_jids().await), tampered(Record::TcToken));
}

#[tokio::test]
async fn settings_beside_a_carrier_are_ignored() {
    for both in Both::all().await {
        let name = both.token(Record::CollectionVersion, Domain::Collection, &[COLLECTION]);
        let mut state = both.inner.get_version(&name).await.unwrap();
        state.version = 99;
        state.hash = [9; 128];
        state.mac_mismatch_fatal = false;
        state.index_value_map.insert("extra".into(), vec![1]);
        both.inner.set_version(&name, state).await.unwrap();
        let read = both.outer.get_version(COLLECTION).await.unwrap();
        assert_eq!((read.version, read.hash, read.mac_mismatch_fatal), (17, version().hash, true));

        // Without the carrier it is either the absent row or tampering, but never the planted value.
        let planted = HashState { mac_mismatch_fatal: true, ..HashState::default() };
        both.inner.set_version(&name, planted).await.unwrap();
        assert_eq!(own_error(both.outer.get_version(COLLECTION).await), tampered(Record::CollectionVersion));
    }
}

#[tokio::test]
async fn junk_in_listed_tables() {
    for both in Both::all().await {
        let group = both.token(Record::SenderKeyDevice, Domain::Group, &[GROUP]);
        let junk_mapping = LidPnMappingEntry { lid: "junk".into(), ..lid_mapping() };
        for junk in ["15550100000@s.whatsapp.net", "", "aaaa", &"a".repeat(200_000), &"a".repeat(103)] {
            both.inner.set_sender_key_status(&group, &[(junk, true)]).await.unwrap();
            assert_eq!(own_error(both.outer.get_sender_key_devices(GROUP).await), tampered(Record::SenderKeyDevice));
            both.inner.delete_sender_key_device_rows(&[junk]).await.unwrap();
            both.inner.put_tc_token(junk, &tc_token()).await.unwrap();
            assert_eq!(own_error(both.outer.get_all_tc_token_jids().await), tampered(Record::TcToken));
            both.inner.delete_tc_token(junk).await.unwrap();
        }
        both.inner.put_lid_mapping(&junk_mapping).await.unwrap();
        assert_eq!(own_error(both.outer.get_all_lid_mappings().await), plaintext(Record::LidMapping));

        // The option skips and counts junk.
        both.inner.set_sender_key_status(&group, &[("junk", true)]).await.unwrap();
        both.inner.put_tc_token("junk", &tc_token()).await.unwrap();
        let mut envelope = stored(&both, Record::LidMapping).await;
        envelope[6] ^= 0x40;
        let unknown_epoch = data_encoding::BASE64URL_NOPAD.encode(&envelope);
        let row = LidPnMappingEntry { lid: "junk 2".into(), learning_source: unknown_epoch, ..lid_mapping() };
        both.inner.put_lid_mapping(&row).await.unwrap();
        let lenient = options().on_damage(OnDamage::TreatAsAbsent).open(both.inner.clone(), raw_key()).await.unwrap();
        let outer = lenient.layer().layer(both.inner.clone());
        assert_eq!(outer.get_sender_key_devices(GROUP).await.unwrap(), [(DEVICE_JID.to_owned(), true)]);
        assert_eq!(outer.get_all_tc_token_jids().await.unwrap(), [TC_JID]);
        assert_eq!(outer.get_all_lid_mappings().await.unwrap().len(), 1);
        assert_eq!(lenient.damaged_records(), 4);
    }
}

#[tokio::test]
async fn damage_counts_as_absent_only_for_records_fetched_again() {
    for both in Both::all().await {
        let lenient = options().on_damage(OnDamage::TreatAsAbsent).open(both.inner.clone(), raw_key()).await.unwrap();
        let outer = lenient.layer().layer(both.inner.clone());
        for slot in SLOTS.iter().filter(|slot| slot.read != Method::GetMutationMacs) {
            let mut damaged = stored(&both, slot.record).await;
            *damaged.last_mut().unwrap() ^= 1;
            replace(&both, slot.record, &damaged).await;
            let result = call(&*outer, slot.read).await;
            let again = matches!(
                slot.record,
                Record::LidMapping | Record::DeviceList | Record::GroupMetadata | Record::TcToken
            );
            assert_eq!(result.is_ok(), again, "{}", slot.record);
        }
        assert!(outer.get_lid_mapping(LID).await.unwrap().is_none());
        assert!(outer.get_devices(PHONE).await.unwrap().is_none());
        assert!(outer.get_group_metadata(GROUP).await.unwrap().is_none());
        assert!(outer.get_tc_token(TC_JID).await.unwrap().is_none());
        assert_eq!(lenient.damaged_records(), 8);
    }
}

#[tokio::test]
async fn message_secrets_garble() {
    for both in Both::all().await {
        let id = both.token(Record::MessageSecret, Domain::MessageSecret, &[CHAT, SENDER, MESSAGE_ID]);
        let block = both.inner.get_msg_secret("x", "x", &id).await.unwrap().unwrap();
        let mut distance = 0;
        for bit in 0..256 {
            let mut flipped: [u8; 32] = block[..].try_into().unwrap();
            flipped[bit / 8] ^= 1 << (bit % 8);
            both.inner.put_msg_secret("x", "x", &id, &flipped).await.unwrap();
            let read = both.outer.get_msg_secret(CHAT, SENDER, MESSAGE_ID).await.unwrap().unwrap();
            distance += read.iter().zip(MESSAGE_SECRET).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        }
        // 256 × 128 bits on average; the standard deviation of the sum is 128.
        assert!((distance as i64 - 256 * 128).abs() < 10 * 128, "{distance}");

        // Swapped with other rows of the same chat, both ways.
        let mut distance = 0;
        for number in 0..128 {
            let name = format!("other {number}");
            both.outer.put_msg_secret(CHAT, SENDER, &name, &MESSAGE_SECRET).await.unwrap();
            let other = both.token(Record::MessageSecret, Domain::MessageSecret, &[CHAT, SENDER, &name]);
            let foreign = both.inner.get_msg_secret("x", "x", &other).await.unwrap().unwrap();
            assert_ne!(foreign[..], block[..], "equal secrets of different messages do not look equal");
            for (row, name, planted) in [(&id, MESSAGE_ID, &foreign), (&other, name.as_str(), &block)] {
                let planted: [u8; 32] = planted[..].try_into().unwrap();
                both.inner.put_msg_secret("x", "x", row, &planted).await.unwrap();
                let read = both.outer.get_msg_secret(CHAT, SENDER, name).await.unwrap().unwrap();
                distance += read.iter().zip(MESSAGE_SECRET).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
            }
        }
        assert!((i64::from(distance) - 256 * 128).abs() < 10 * 128, "{distance}");
    }
}

#[tokio::test]
async fn keys_that_are_too_long() {
    for both in Both::all().await {
        let long = "a".repeat(65_536);
        assert!(own_error(both.outer.put_session(&long, b"").await).starts_with("InputTooLong"));
        assert!(own_error(both.outer.get_sender_key(&long).await).starts_with("InputTooLong"));
        assert!(own_error(both.outer.delete_tc_token(&long).await).starts_with("InputTooLong"));
        assert!(own_error(both.outer.get_msg_secret(&long, "", "").await).starts_with("InputTooLong"));
        // The longest part of a key that fits, and a key whose parts fit only one by one.
        let longest = "a".repeat(65_535 - 2);
        both.outer.put_session(&longest, b"session").await.unwrap();
        assert_eq!(both.outer.get_session(&longest).await.unwrap().as_deref(), Some(&b"session"[..]));
        let half = "a".repeat(40_000);
        assert!(own_error(both.outer.store_sent_message(&half, &half, b"").await).starts_with("InputTooLong"));
        both.outer.put_tc_token(&"b".repeat(30_000), &tc_token()).await.unwrap();
        assert_eq!(both.outer.get_all_tc_token_jids().await.unwrap().len(), 2);
    }
}

/// Names of several parts have different tokens, however they are cut and whatever they contain.
#[tokio::test]
async fn injective_tokens() {
    use rand::RngExt;

    let [both, ..] = &Both::all().await[..] else { unreachable!() };
    let lookup = &both.state().cipher.ring.lookup;
    let mut rng: rand::rngs::StdRng = rand::make_rng();
    let mut names = std::collections::HashSet::new();
    for name in ["abc", "ABC", "a\0bc", "a@b:c_d%e", "ünïcödé", "a\u{301}", "á", "x".repeat(65_533).as_str()] {
        for cut in (0..=name.len()).filter(|cut| name.is_char_boundary(*cut) && (name.len() < 99 || cut % 9_973 == 0)) {
            names.insert((name[..cut].to_owned(), name[cut..].to_owned()));
        }
    }
    while names.len() < 50_000 {
        let mut part = || (0..rng.random_range(0..6)).map(|_| rng.random_range('\0'..='\u{80}')).collect::<String>();
        names.insert((part(), part()));
    }
    let mut seen = std::collections::HashMap::new();
    for name in &names {
        let parts = [name.0.as_str(), name.1.as_str()];
        let token = lookup.token(Record::SentMessage, Domain::SentMessage, &parts).unwrap().to_string();
        assert!(token.len() == 24 && token.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7')), "{token}");
        if let Some(other) = seen.insert(token, name) {
            panic!("{other:?} and {name:?} have the same token");
        }
    }
}

/// A header from before a slot was removed is put back under newer records. The removed secret does not come back
/// unnoticed, however often the vault is opened in between.
#[tokio::test]
async fn header_rolled_back_under_newer_records() {
    for both in Both::all().await {
        let id = both.vault.add_slot("leaked", passphrase()).await.unwrap();
        let old = both.vault.save_header();
        both.vault.remove_slot(id).await.unwrap();
        both.outer.put_session(SESSION_ADDRESS, b"newer").await.unwrap();
        put_headers(&both.inner, &[Some(old.clone()), Some(old.clone())]).await;
        for _ in 0..20 {
            let vault = options().open(both.inner.clone(), passphrase()).await.unwrap();
            let outer = vault.layer().layer(both.inner.clone());
            assert_eq!(own_error(outer.get_session(SESSION_ADDRESS).await), "HeaderRolledBack");
            outer.get_sender_key(SENDER_KEY_ADDRESS).await.unwrap();
        }
        // `restore_header` puts it above every generation.
        let vault = options().restore_header(both.inner.clone(), &old, raw_key()).await.unwrap();
        let outer = vault.layer().layer(both.inner.clone());
        assert_eq!(outer.get_session(SESSION_ADDRESS).await.unwrap().as_deref(), Some(&b"newer"[..]));
    }
}

/// Two processes with one store: a record that one writes after the other opened is still readable.
#[tokio::test]
async fn another_process_opens_later() {
    for both in Both::all().await {
        let later = options().open(both.inner.clone(), raw_key()).await.unwrap();
        later.add_slot("second", Key::from_bytes(&mut [7; 32])).await.unwrap();
        later.layer().layer(both.inner.clone()).put_session(SESSION_ADDRESS, b"later").await.unwrap();
        assert_eq!(both.outer.get_session(SESSION_ADDRESS).await.unwrap().as_deref(), Some(&b"later"[..]));
        assert_eq!(both.vault.slots().len(), 2, "the newer header was taken over");
    }
}
