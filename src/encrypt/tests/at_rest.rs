//! No canary of any kind of record is found in the files of an encrypted store, and each is found without encryption.

use std::path::Path;

use super::{Sqlite, encrypted, sample};
use crate::encrypt::token::Domain;
use crate::encrypt::vault::HeaderCopy;
use crate::method::{Method, Record};

/// A canary in the ways in which a store could write it down.
fn disguises(canary: &[u8]) -> Vec<Vec<u8>> {
    let json_numbers = canary.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
    vec![
        canary.to_vec(),
        data_encoding::HEXLOWER.encode(canary).into_bytes(),
        data_encoding::HEXUPPER.encode(canary).into_bytes(),
        data_encoding::BASE64_NOPAD.encode(canary).into_bytes(),
        data_encoding::BASE64URL_NOPAD.encode(canary).into_bytes(),
        json_numbers.into_bytes(),
    ]
}

/// Every file of the folder with its name, so that names are searched as well.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        files.push((name, std::fs::read(path).unwrap()));
    }
    files
}

fn found(files: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut found = Vec::new();
    for (canary, bytes) in sample::canaries() {
        let disguises = disguises(&bytes);
        for (name, content) in files {
            let haystack = [name.as_bytes(), content].concat();
            if disguises.iter().any(|disguise| memchr::memmem::find(&haystack, disguise).is_some()) {
                found.push(canary.clone());
                break;
            }
        }
    }
    found
}

#[tokio::test]
async fn no_canary_in_any_file() {
    let sqlite = Sqlite::new().await;
    let (_vault, backend) = encrypted(&sqlite.store).await;
    sample::fill(&*backend).await;
    sample::call(&*backend, Method::SnapshotDb).await.unwrap();
    let files = files(sqlite.folder.path());
    let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"wa.db") && names.contains(&"wa.db-wal") && names.contains(&"wa.db-shm"), "{names:?}");
    assert_eq!(names.iter().filter(|name| name.contains("snapshot")).count(), 2, "{names:?}");
    assert_eq!(found(&files), Vec::<String>::new());
}

#[tokio::test]
async fn every_canary_without_the_layer() {
    let sqlite = Sqlite::new().await;
    sample::fill(&*sqlite.store).await;
    sample::call(&*sqlite.store, Method::SnapshotDb).await.unwrap();
    let missing: Vec<_> = {
        let found = found(&files(sqlite.folder.path()));
        sample::canaries().into_iter().map(|(canary, _)| canary).filter(|canary| !found.contains(canary)).collect()
    };
    assert_eq!(missing, Vec::<String>::new(), "the search must be able to find what it looks for");
}

/// What an inner store is given by a full store: the listing of README and SECURITY.md, derived from the stored bytes.
#[tokio::test]
async fn the_published_listing_is_what_is_stored() {
    let listing = derive_listing().await;
    for file in ["README.md", "SECURITY.md"] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let table: Vec<&str> = text
            .lines()
            .skip_while(|line| *line != "| record | sealed | blinded | readable |")
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        assert_eq!(table.join("\n"), listing.join("\n"), "{file}");
    }
}

/// One row per kind of record: which of its fields are sealed, which are blinded, and which stay readable.
///
/// A field of the stored row is readable if it is what the client gave, sealed if it holds an envelope (or a part of
/// one), blinded if it differs and does not, and left out if it is constant.
async fn derive_listing() -> Vec<String> {
    let sqlite = Sqlite::new().await;
    let (vault, backend) = encrypted(&sqlite.store).await;
    sample::fill(&*backend).await;
    let inner = &*sqlite.store;
    let state = vault.shared().state();
    let lookup = &state.ring.lookup;
    let mut rows = Vec::new();
    let mut row = |record: Record, sealed: &str, blinded: &str, readable: &str| {
        rows.push(format!("| {record} | {sealed} | {blinded} | {readable} |"));
    };
    let envelope = |record, value: &[u8]| crate::encrypt::envelope::Header::read(record, value).is_ok();
    let text_envelope = |record, text: &str| {
        crate::encrypt::protocol::decode_text(record, text).is_ok_and(|value| envelope(record, &value))
    };

    // Each row of the listing is written down only after the stored row was seen to be so.
    let session = lookup.address(Record::Session, sample::SESSION_ADDRESS).unwrap();
    assert!(envelope(Record::Session, &inner.get_session(&session).await.unwrap().unwrap()));
    assert_eq!(inner.get_session(sample::SESSION_ADDRESS).await.unwrap(), None);
    row(Record::Session, "session", "address", "–");

    let identity = lookup.address(Record::Identity, sample::IDENTITY_ADDRESS).unwrap();
    assert!(envelope(Record::Identity, &inner.get_session(&identity).await.unwrap().unwrap()));
    assert_eq!(inner.load_identity(sample::IDENTITY_ADDRESS).await.unwrap(), None);
    assert_eq!(inner.load_identity(&identity).await.unwrap(), None);
    row(Record::Identity, "key", "address", "–");

    assert!(envelope(Record::Prekey, &inner.load_prekey(5).await.unwrap().unwrap()));
    row(Record::Prekey, "key pair", "–", "id, uploaded");

    let signed = inner.load_all_signed_prekeys().await.unwrap();
    assert!(signed.len() == 1 && signed[0].0 == 7 && envelope(Record::SignedPrekey, &signed[0].1));
    row(Record::SignedPrekey, "key pair", "–", "id");

    let sender_key = lookup.address(Record::SenderKey, sample::SENDER_KEY_ADDRESS).unwrap();
    assert!(envelope(Record::SenderKey, &inner.get_sender_key(&sender_key).await.unwrap().unwrap()));
    assert!(inner.get_sender_key(HeaderCopy::A.address()).await.unwrap().is_some());
    row(Record::SenderKey, "sender key", "address", "–");

    let id = inner.get_latest_sync_key_id().await.unwrap().unwrap();
    assert_eq!(id, [0, 1, 0, 0, 0, 2]);
    let sync_key = inner.get_sync_key(&id).await.unwrap().unwrap();
    assert_eq!(sync_key.timestamp, 0);
    assert!(envelope(Record::SyncKey, &crate::encrypt::app_sync::join_carrier(sync_key)));
    row(Record::SyncKey, "key, fingerprint, timestamp", "–", "id");

    let collection = lookup.token(Record::CollectionVersion, Domain::Collection, &[sample::COLLECTION]);
    let collection = collection.unwrap();
    let version = inner.get_version(&collection).await.unwrap();
    assert_eq!((version.version, version.hash, version.mac_mismatch_fatal), (17, [0; 128], false));
    assert!(version.index_value_map.len() == 1 && envelope(Record::CollectionVersion, &version.index_value_map["e"]));
    row(Record::CollectionVersion, "hash, map, flags", "name", "version");

    let index =
        lookup.index(Record::MutationMac, Domain::MutationIndex, &[sample::COLLECTION.as_bytes(), &sample::INDEX_MAC]);
    let mac = inner.get_mutation_mac(&collection, &index.unwrap()).await.unwrap().unwrap();
    assert!(envelope(Record::MutationMac, &mac));
    row(Record::MutationMac, "value MAC", "name, index MAC", "version");

    let group = lookup.token(Record::SenderKeyDevice, Domain::Group, &[sample::GROUP]).unwrap();
    let devices = inner.get_sender_key_devices(&group).await.unwrap();
    assert!(devices.len() == 1 && !devices[0].0.contains('@') && devices[0].1);
    row(Record::SenderKeyDevice, "–", "group, device", "has key");

    let mappings = inner.get_all_lid_mappings().await.unwrap();
    let [mapping] = mappings.as_slice() else { panic!("{mappings:?}") };
    assert!(text_envelope(Record::LidMapping, &mapping.learning_source));
    assert_eq!((mapping.lid.len(), mapping.phone_number.len()), (24, 24));
    assert_eq!((mapping.created_at, mapping.updated_at), (1_700_000_002, 1_700_000_003));
    row(Record::LidMapping, "LID, phone number, source", "LID, phone number", "created, updated");

    let (address, message) = (sample::SESSION_ADDRESS, sample::MESSAGE_ID);
    let base_key = [address.as_bytes(), message.as_bytes(), &sample::BASE_KEY];
    let token = lookup.token(Record::BaseKey, Domain::BaseKeyRow, &[address, message]).unwrap();
    let value = lookup.index(Record::BaseKey, Domain::BaseKeyValue, &base_key).unwrap();
    assert!(inner.has_same_base_key(&token, "x", &value).await.unwrap());
    row(Record::BaseKey, "–", "address, message id, base key", "–");

    let user = lookup.token(Record::DeviceList, Domain::DeviceListUser, &[sample::PHONE]).unwrap();
    let list = inner.get_devices(&user).await.unwrap().unwrap();
    assert!(text_envelope(Record::DeviceList, &list.phash.unwrap()));
    assert!(list.devices.is_empty() && list.raw_id.is_none());
    assert_eq!(list.timestamp as i32, 5_000_000_000i64 as i32);
    row(Record::DeviceList, "user, devices, phash, raw id", "user", "timestamp");

    let metadata = lookup.token(Record::GroupMetadata, Domain::GroupMetadata, &[sample::GROUP]);
    assert!(envelope(Record::GroupMetadata, &inner.get_group_metadata(&metadata.unwrap()).await.unwrap().unwrap()));
    row(Record::GroupMetadata, "metadata", "group", "–");

    let jids = inner.get_all_tc_token_jids().await.unwrap();
    let [jid] = jids.as_slice() else { panic!("{jids:?}") };
    let token = inner.get_tc_token(jid).await.unwrap().unwrap();
    assert!(envelope(Record::TcToken, &token.token));
    assert_eq!((token.token_timestamp, token.sender_timestamp), (1_700_000_009, Some(1_700_000_008)));
    row(Record::TcToken, "token", "JID", "both timestamps, whether there is a token");

    let sent = lookup.token(Record::SentMessage, Domain::SentMessage, &[sample::CHAT, sample::MESSAGE_ID]);
    assert!(envelope(Record::SentMessage, &inner.take_sent_message("x", &sent.unwrap()).await.unwrap().unwrap()));
    row(Record::SentMessage, "message", "chat, message id", "time of insertion");

    let pending = lookup.token(
        Record::PendingInbound,
        Domain::PendingInbound,
        &[sample::CHAT, sample::SENDER, sample::MESSAGE_ID],
    );
    let pending = inner.get_pending_inbound("x", "x", &pending.unwrap()).await.unwrap().unwrap();
    assert!(envelope(Record::PendingInbound, &pending));
    row(Record::PendingInbound, "message", "chat, sender, message id", "time of insertion");

    let secret =
        lookup.token(Record::MessageSecret, Domain::MessageSecret, &[sample::CHAT, sample::SENDER, sample::MESSAGE_ID]);
    let (block, message_ts) = inner.get_msg_secret_with_ts("x", "x", &secret.unwrap()).await.unwrap().unwrap();
    assert!(block.len() == 32 && block != sample::MESSAGE_SECRET && message_ts == 1_700_000_007);
    row(
        Record::MessageSecret,
        "secret (as a block, not authenticated)",
        "chat, sender, message id",
        "deadline, message time",
    );

    let device = inner.load().await.unwrap().unwrap();
    assert!(device.pn.is_none() && device.lid.is_none() && device.account.is_none());
    assert_eq!(device.push_name, "encrypted by wastore");
    assert!(envelope(Record::Device, &device.edge_routing_info.unwrap()));
    row(Record::Device, "everything", "–", "–");

    row(Record::SnapshotExtra, "content", "name", "time of the snapshot");
    rows
}
