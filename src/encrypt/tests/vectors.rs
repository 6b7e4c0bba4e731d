//! Known answers for every format. An implementation in another language computed them first; `tests/interop` checks
//! whole stores the same way.

use sha2::{Digest, Sha256};
use wacore::appstate::hash::HashState;
use wacore::store::traits::{AppStateSyncKey, DeviceInfo, DeviceListRecord};

use crate::encrypt::Padding;
use crate::encrypt::format::envelope::{self, Prefix, RowBinding};
use crate::encrypt::format::keys::{DataKeys, LookupKeys, StoreId, VaultKey, derive};
use crate::encrypt::format::kind::Kind;
use crate::encrypt::format::token::Domain;
use crate::encrypt::vault::header::{Header, Kdf, Slot, Wrapped, WrappedDataKey};
use crate::encrypt::vault::kdf::{self, Argon2Cost, Job};
use crate::encrypt::vault::key_wrap::{data_key_aad, lookup_key_aad, wrap as wrap_under};
use crate::encrypt::vault::slot;
use crate::encrypt::vault::slot::NewSlot;
use crate::json;
use crate::method::Record;
use crate::{Error, Key, Passphrase};

const ADDRESS: &str = "5511987650001:33@s.whatsapp.net";
const STORED_SESSION: &str = "hdsymhiu7cpiwrtg2kiihx6r@seovav3pidu7e5mk2soev3oh";

fn counting<const N: usize>(from: u8) -> [u8; N] {
    std::array::from_fn(|at| from + at as u8)
}

fn key(from: u8) -> Key {
    Key::from_bytes(&mut counting(from))
}

fn store_id() -> StoreId {
    counting(0x20)
}

fn lookup() -> Box<LookupKeys> {
    LookupKeys::new(&store_id(), &key(0x40))
}

fn data_keys() -> DataKeys {
    DataKeys::new(&store_id(), 7, &key(0x80))
}

#[test]
fn passphrase_slot() {
    let cost = Argon2Cost::unchecked(19456, 2, 1);
    let slot = Slot {
        id: 0,
        label: "main".into(),
        kdf: Kdf::Argon2id(cost),
        salt: counting(0xa0),
        commitment: hex("02fcab8ac6a1286ddf4a4db276de6a54b284badc2dc2cd4c3db7e0f6f9f8e260"),
        vault_key: Wrapped {
            nonce: counting(0xc0),
            sealed: hex(
                "d774151e25283693abd018941e4286a66066a829a71e83cf624d83d6ca9ddb2bf443d85034abe77862811bbba1f6b11c",
            ),
        },
    };
    let public = slot.public_bytes();
    assert_eq!(hex::encode(&public[..19]), "0001046d61696e004c00000200000001000000");
    assert_eq!(public[19..], counting::<32>(0xa0));

    let passphrase = Passphrase::new("correct horse battery staple").unwrap();
    let job = Job { salt: counting(0xa0), cost };
    let (_, prk) =
        futures::executor::block_on(kdf::derive_until(passphrase, 1, vec![job], |_, prk| Some(*prk.expose()))).unwrap();
    let prk = Key::from_bytes(&mut prk.unwrap());
    assert_eq!(hex::encode(prk.expose()), "beb510dabc12cd01be0c141a13d6fc137e0eea6719c05386b48d443cd0982808");

    let mut keys = [0; 64];
    derive(&store_id(), prk.expose(), "slot", &public, &mut keys);
    assert_eq!(hex::encode(&keys[..32]), "6fff4231b7e8d278ccba6b5f6dfb8d1e5a2e4950189d0bb83b584f46e30190c2");
    assert_eq!(keys[32..], slot.commitment);

    let vault_key = slot::try_slot(&store_id(), &slot, &prk).unwrap().unwrap();
    assert_eq!(vault_key.0.expose(), &counting::<32>(0x00));
}

/// A whole header with a slot of each type, in the form written since the first version.
#[test]
fn header() {
    let vault_key = VaultKey(key(0x00));
    let slot = |id: u8, label: &str, kdf: Kdf| {
        let new = NewSlot { label: label.into(), kdf, salt: counting(0xa0 + id), prk: key(0x10 + id) };
        new.seal_with(id, &store_id(), &vault_key, counting(0xc0 + id)).unwrap()
    };
    let wrap = vault_key.key_wrap(&store_id());
    let wrapped = |key: Key, aad: &[u8]| wrap_under(&wrap, counting(0xd0), &key, aad).unwrap();
    let header = Header {
        store_id: store_id(),
        generation: 0x0102_0304_0506,
        created: 1_700_000_000,
        record_suite: 1,
        token_suite: 1,
        block_suite: 1,
        padding: 2,
        padding_parameter: 256,
        flags: 1,
        slots: vec![
            slot(0, "main", Kdf::Argon2id(Argon2Cost::MINIMUM)),
            slot(1, "machine", Kdf::RawKey),
            slot(2, "kms", Kdf::Provider { hint: b"key/42".to_vec() }),
        ],
        data_keys: vec![
            WrappedDataKey {
                epoch: 7,
                active: true,
                created: 1,
                wrapped: wrapped(key(0x80), &data_key_aad(&store_id(), 7)),
            },
            WrappedDataKey {
                epoch: 6,
                active: false,
                created: 0,
                wrapped: wrapped(key(0x90), &data_key_aad(&store_id(), 6)),
            },
        ],
        lookup_key: wrapped(key(0x40), &lookup_key_aad(&store_id())),
        extensions: vec![5, 0, 2, 0, 0xaa, 0xbb],
    };
    let mac_key = vault_key.header_mac(&store_id());
    let bytes = header.serialize(&mac_key);
    let hash = hex::encode(Sha256::digest(&bytes));
    assert_eq!((bytes.len(), hash.as_str()), HEADER);
    assert_eq!(hex::encode(&bytes[..64]), HEADER_FRONT);
    let parsed = Header::parse(&bytes).unwrap();
    parsed.verify(&bytes, &mac_key).unwrap();
    assert_eq!(parsed.serialize(&mac_key), bytes);
    for (slot, prk) in parsed.slots.iter().zip([key(0x10), key(0x11), key(0x12)]) {
        assert_eq!(slot::try_slot(&store_id(), slot, &prk).unwrap().unwrap().0.expose(), &counting::<32>(0x00));
        assert!(slot::try_slot(&store_id(), slot, &key(0x13)).is_none());
    }
}

#[test]
fn key_tree() {
    let vault_key = VaultKey(key(0x00));
    assert_eq!(
        hex::encode(&vault_key.key_wrap(&store_id())[..]),
        "ee690b56550a67e3db3a51e32ff4da28052a61da7d0df812cce29e1a19dc2cd3"
    );
    for (label, expected) in [
        ("header-mac", "e797531162890ed9fd57114d9f25a6cb2a884d1f5d9fea1750fb83f327b3bc76"),
        ("key-wrap", "ee690b56550a67e3db3a51e32ff4da28052a61da7d0df812cce29e1a19dc2cd3"),
    ] {
        let mut subkey = [0; 32];
        derive(&store_id(), &counting(0x00), label, b"", &mut subkey);
        assert_eq!(hex::encode(subkey), expected);
    }
    for (label, expected) in [
        ("token", "c1b7743b5b58cb7f9bd3cdb7f37479f0647035678c12cede92fb6772c08259d8"),
        ("block", "4c0855e966c53d470f600f261734c0d0a067eb0498e14ef9906c6544c0ddffe7"),
    ] {
        let mut subkey = [0; 32];
        derive(&store_id(), &counting(0x40), label, b"", &mut subkey);
        assert_eq!(hex::encode(subkey), expected);
    }
    assert_eq!(
        hex::encode(lookup().siv),
        "4cbc3aaeac8ff9316f873ab8ad3474e99f03f157a2b4f0a26e81b4421aa00647d87b1c9d5976705a3f0ba3e4fb90bdd2b6548f337829863d58d798edbef2b414"
    );
    let record_key = "1ad15fa365f4cd4fcae1d6333bce7d116d15e309b1f87f3ad15f55502c666a36";
    assert_eq!(hex::encode(data_keys().record(Kind::Session)), record_key);
    assert_eq!(hex::encode(vault_key.account_key(&store_id(), "account 2").expose()), ACCOUNT_KEY);
}

#[test]
fn lookup_keys() {
    let lookup = lookup();
    assert_eq!(&*lookup.address(Record::Session, ADDRESS).unwrap(), STORED_SESSION);
    assert_eq!(
        &*lookup.address(Record::Identity, ADDRESS).unwrap(),
        "hdsymhiu7cpiwrtg2kiihx6r@s4mj5zfdjhsx6u5xy6vbhmqf"
    );
    let listed =
        "f2tl4b5xzncajx22kydbuweopwttvqnolrmgy2lqbjwqs3qmfveemnrbbffqrudmqdtwlv54vzj3ia6luirzrknnws4fmf4pe53nsda";
    assert_eq!(lookup.encrypt_name(Record::SenderKeyDevice, Domain::DeviceJid, ADDRESS).unwrap(), listed);
    assert_eq!(lookup.decrypt_name(Record::SenderKeyDevice, Domain::DeviceJid, listed).unwrap(), ADDRESS);
    assert!(matches!(
        lookup.decrypt_name(Record::TcToken, Domain::TcTokenJid, listed),
        Err(Error::Tampered { record: Record::TcToken })
    ));
}

#[test]
fn message_secret_block() {
    let block =
        lookup().block("120363021033254949@g.us", "5511987650001@s.whatsapp.net", "3EB0AABBCCDDEEFF0011").unwrap();
    let sealed = block.encrypt(&counting(0x60));
    assert_eq!(hex::encode(sealed), "06d7b876a712a8470f1dbc3d4f1c98ebc4e2657326495c030c97a8a55edb44e2");
    assert_eq!(block.decrypt(&sealed), counting::<32>(0x60));
}

#[test]
fn session_envelope() {
    let place = RowBinding::new(Kind::Session, [STORED_SESSION.as_bytes()], [ADDRESS.as_bytes()]);
    let sealed = envelope::seal(&data_keys(), 9, Padding::None, &counting(0xe0), place, b"session-bytes").unwrap();
    assert_eq!(sealed.len(), 102);
    assert_eq!(hex::encode(&sealed[..14]), "e757010102010700000009000000");
    assert_eq!(sealed[14..38], counting::<24>(0xe0));
    assert_eq!(
        hex::encode(&sealed[38..]),
        "ff8815e286e4d5a95cbded2ca6db2bebc515101ee0fa635aa299c41f945c83fa27cdada525bc5720818df1689d7f91dbfc81375f19a64885afb5f06d8be5d6b2"
    );
    assert_opens(place, &sealed, b"session-bytes");
}

/// One envelope per kind of record, as each file of `encrypt` makes them, under the same keys and nonce.
#[test]
fn envelope_of_every_kind() {
    let lookup = lookup();
    let token = |record, domain, parts: &[&str]| lookup.token(record, domain, parts).unwrap();
    let id = 5u32.to_le_bytes();
    let identity = lookup.address(Record::Identity, ADDRESS).unwrap();
    let sender_key = lookup.address(Record::SenderKey, "120363021033254949@g.us:5511987650001.0").unwrap();
    let collection = token(Record::CollectionVersion, Domain::Collection, &["regular_high"]);
    let index_mac = [0x11; 32];
    let index = lookup.token_bytes(Record::MutationMac, Domain::MutationIndex, &[b"regular_high", &index_mac]).unwrap();
    let (lid, pn) = ("100000012345678", "5511987650001");
    let lid_token = token(Record::LidMapping, Domain::Lid, &[lid]);
    let pn_token = token(Record::LidMapping, Domain::PhoneNumber, &[pn]);
    let user = token(Record::DeviceList, Domain::DeviceListUser, &[pn]);
    let group = token(Record::GroupMetadata, Domain::GroupMetadata, &["120363021033254949@g.us"]);
    let tc_token = lookup.encrypt_name(Record::TcToken, Domain::TcTokenJid, "100000012345678@lid").unwrap();
    let (chat, sender, message) = ("120363021033254949@g.us", "5511987650001@s.whatsapp.net", "3EB0AABBCCDDEEFF0011");
    let sent = token(Record::SentMessage, Domain::SentMessage, &[chat, message]);
    let pending = token(Record::PendingInbound, Domain::PendingInbound, &[chat, sender, message]);
    let snapshot = token(Record::SnapshotExtra, Domain::SnapshotName, &["decrypt-failure"]);
    let group_cache = token(Record::CacheEntry, Domain::CacheNamespace, &["group"]);
    let cached_group = token(Record::CacheEntry, Domain::CacheKey, &["group", chat]);

    let sync_key = AppStateSyncKey { key_data: vec![7; 32], fingerprint: vec![8; 4], timestamp: 9 };
    let version = HashState { version: 3, hash: [4; 128], ..Default::default() };
    let device_list = DeviceListRecord {
        user: pn.into(),
        devices: vec![DeviceInfo::new(33, Some(2))],
        timestamp: 5_000_000_000,
        phash: Some("2:abc".into()),
        raw_id: Some(u32::MAX),
    };
    let sync_key = json::encode(Record::SyncKey, &sync_key).unwrap();
    let version = json::encode(Record::CollectionVersion, &version).unwrap();
    let device_list = json::encode(Record::DeviceList, &device_list).unwrap();

    let kinds: [(RowBinding<'_>, &[u8]); 16] = [
        (RowBinding::new(Kind::Identity, [identity.as_bytes()], [ADDRESS.as_bytes()]), &[0x22; 32]),
        (RowBinding::new(Kind::Prekey, [&id], []), b"prekey"),
        (RowBinding::new(Kind::SignedPrekey, [&id], []), b"signed prekey"),
        (
            RowBinding::new(Kind::SenderKey, [sender_key.as_bytes()], [b"120363021033254949@g.us:5511987650001.0"]),
            b"sender key",
        ),
        (RowBinding::new(Kind::SyncKey, [&[0, 1, 0, 0, 0, 2]], []), &sync_key),
        (RowBinding::new(Kind::CollectionVersion, [collection.as_bytes()], [b"regular_high"]), &version),
        (RowBinding::new(Kind::MutationMac, [collection.as_bytes(), &index], [&index_mac]), &[0x33; 32]),
        (
            RowBinding::new(
                Kind::LidMapping,
                [lid_token.as_bytes(), pn_token.as_bytes()],
                [lid.as_bytes(), pn.as_bytes()],
            ),
            b"usync",
        ),
        (RowBinding::new(Kind::DeviceList, [user.as_bytes()], [pn.as_bytes()]), &device_list),
        (RowBinding::new(Kind::GroupMetadata, [group.as_bytes()], [b"120363021033254949@g.us"]), b"group metadata"),
        (RowBinding::new(Kind::TcToken, [tc_token.as_bytes()], []), b"tc token"),
        (
            RowBinding::new(Kind::SentMessage, [b"x", sent.as_bytes()], [chat.as_bytes(), message.as_bytes()]),
            b"sent message",
        ),
        (
            RowBinding::new(
                Kind::PendingInbound,
                [b"x", b"x", pending.as_bytes()],
                [chat, sender, message].map(str::as_bytes),
            ),
            b"pending inbound",
        ),
        (RowBinding::new(Kind::Device, [], []), b"{}"),
        (RowBinding::new(Kind::SnapshotExtra, [snapshot.as_bytes()], []), b"snapshot extra"),
        (
            RowBinding::new(Kind::CacheEntry, [group_cache.as_bytes(), cached_group.as_bytes()], []),
            b"\x00\xf1\x53\x65\0\0\0\0cache entry",
        ),
    ];
    let mut report = String::new();
    for (place, payload) in kinds {
        let sealed = envelope::seal(&data_keys(), 9, Padding::None, &counting(0xe0), place, payload).unwrap();
        assert_opens(place, &sealed, payload);
        report += &format!("{}: {}\n", place.record(), hex::encode(&sealed));
    }
    let base_key = [ADDRESS.as_bytes(), message.as_bytes(), &[0x44; 33]];
    report += &format!("base key row: {}\n", &*token(Record::BaseKey, Domain::BaseKeyRow, &[ADDRESS, message]));
    report += &format!(
        "base key value: {}\n",
        hex::encode(lookup.token_bytes(Record::BaseKey, Domain::BaseKeyValue, &base_key).unwrap())
    );
    report += &format!(
        "message secret row: {}\n",
        &*token(Record::MessageSecret, Domain::MessageSecret, &[chat, sender, message])
    );
    report += &format!("group of sender-key devices: {}\n", &*token(Record::SenderKeyDevice, Domain::Group, &[chat]));
    report += &format!("bare session: {}\n", &*lookup.address(Record::Session, "bare").unwrap());
    report += &format!("bare identity: {}\n", &*lookup.address(Record::Identity, "bare").unwrap());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/envelopes.txt");
    if std::env::var_os("WASTORE_BLESS").is_some() && !std::path::Path::new(path).exists() {
        std::fs::write(path, &report).unwrap();
    }
    assert_eq!(report, std::fs::read_to_string(path).unwrap(), "formats are for ever");
}

#[test]
fn padded_envelope() {
    let place = RowBinding::new(Kind::Prekey, [b"id"], []);
    for (padding, length) in
        [(Padding::Padme, 54 + 64), (Padding::Multiple(16), 54 + 16), (Padding::Multiple(100), 54 + 100)]
    {
        for payload in [&b""[..], b"0", b"a prekey\x80\0\0"] {
            let sealed = envelope::seal(&data_keys(), 9, padding, &counting(0xe0), place, payload).unwrap();
            assert_eq!((sealed.len(), sealed[4]), (length, 1));
            assert_opens(place, &sealed, payload);
        }
    }
}

fn assert_opens(place: RowBinding<'_>, sealed: &[u8], payload: &[u8]) {
    let mut buffer = sealed.to_vec();
    let prefix = Prefix::read(place.kind, &buffer).unwrap();
    assert_eq!((prefix.epoch(), prefix.generation()), (7, 9));
    let opened = envelope::open(&data_keys(), prefix, place, &mut buffer).unwrap();
    assert_eq!(opened.payload(&buffer), payload);
    assert_eq!(opened.into_payload(buffer), payload);
}

fn hex<const N: usize>(text: &str) -> [u8; N] {
    hex::decode(text).unwrap().try_into().unwrap()
}

const ACCOUNT_KEY: &str = "1e76a498cd95d11d5d12b1f8146c16151dc01666abaa93f750cf86894e454259";

const HEADER: (usize, &str) = (813, "38d90911e6bab508f1c17f615296ac8f0956f9ec35aae9fb33a0243572f5acd4");
const HEADER_FRONT: &str = "89776173746f7265010001002d030000202122232425262728292a2b2c2d2e2f060504030201000000f153650000000001010102000100000100000003020100";
