//! The code that reads bytes an attacker may have written, as functions of these bytes alone. The targets in `fuzz/`
//! call them, and so does the test that runs their corpora. A panic is a finding, and so is a failed assertion.

#![allow(clippy::panic, reason = "a panic is a finding")]
#![cfg_attr(not(fuzzing), expect(unreachable_pub, reason = "public for the targets alone"))]

use std::sync::LazyLock;

use sha2::{Digest, Sha256};
use wacore::appstate::hash::HashState;
use wacore::store::Device;
use wacore::store::traits::{AppStateSyncKey, DeviceListRecord};

use super::format::envelope::{self, Prefix, RowBinding};
use super::format::keys::{DataKeys, LookupKeys, VaultKey};
use super::format::kind::{KINDS, Kind};
use super::format::padding::Padding;
use super::format::token::Domain;
use super::vault::header::Header;
use crate::method::Record;
use crate::rows::encoding::{decode_text, encode_text};
use crate::secret::Key;

const STORE_ID: [u8; 16] = [7; 16];

static DATA_KEYS: LazyLock<DataKeys> = LazyLock::new(|| DataKeys::new(&STORE_ID, 1, &Key::from_bytes(&mut [1; 32])));
static LOOKUP_KEYS: LazyLock<Box<LookupKeys>> =
    LazyLock::new(|| LookupKeys::new(&STORE_ID, &Key::from_bytes(&mut [2; 32])));

/// A header: an accepted one is written as it was read, and no other MAC fits.
pub fn header(data: &[u8]) {
    let Ok(header) = Header::parse(data) else { return };
    let mac_key = VaultKey(Key::from_bytes(&mut [3; 32])).header_mac(&STORE_ID);
    assert!(header.verify(data, &mac_key).is_err(), "a header was accepted that no one sealed");
    let written = header.serialize(&mac_key);
    // Only the version fields and the MAC may differ.
    assert_eq!(written.len(), data.len());
    assert_eq!(written[16..written.len() - 48], data[16..data.len() - 48]);
    // With a MAC that fits, the settings are checked as well.
    let _ = header.verify(&written, &mac_key);
    let mut again = Header::parse(&written).unwrap_or_else(|error| panic!("{error}"));
    again.set_previous(Header::checksum(data));
    let _ = (again.padding(), again.record_generation(), again.slot_infos());
}

/// The same bytes with a length and a checksum that fit. An attacker who knows no key can make them.
pub fn with_checksum(data: &[u8]) -> Vec<u8> {
    let mut header = data.to_vec();
    if let Some(content) = header.len().checked_sub(48).filter(|content| *content >= 16) {
        let length = (header.len() as u32).to_le_bytes();
        header[12..16].copy_from_slice(&length);
        let checksum = Sha256::digest(&header[..content]);
        header[content..content + 16].copy_from_slice(&checksum[..16]);
    }
    header
}

/// An envelope: bytes that no one sealed never open, and an altered envelope never passes for the original.
pub fn envelope(data: &[u8]) {
    let Some(([kind, place, at, bit, padding], data)) = data.split_first_chunk::<5>() else { return };
    let kind = Kind::ALL[usize::from(*kind) % KINDS];
    let place = RowBinding::new(kind, [std::slice::from_ref(place)], [b"original"]);
    if let Ok(prefix) = Prefix::read(kind, data) {
        let opened = envelope::open(&DATA_KEYS, prefix, place, &mut data.to_vec());
        assert!(opened.is_err(), "an envelope opened that no one sealed");
    }
    let padding = match padding % 3 {
        0 => Padding::None,
        1 => Padding::Padme,
        _ => Padding::Multiple(64),
    };
    let nonce = [9; 24];
    let Ok(mut sealed) = envelope::seal(&DATA_KEYS, 1, padding, &nonce, place, data) else { return };
    let original = sealed.clone();
    let at = usize::from(*at) * sealed.len() / 256;
    sealed[at] ^= 1 << (bit % 8);
    if let Ok(prefix) = Prefix::read(kind, &sealed) {
        assert!(envelope::open(&DATA_KEYS, prefix, place, &mut sealed).is_err(), "a flipped bit went unnoticed");
    }
    let mut sealed = original;
    let prefix = Prefix::read(kind, &sealed).unwrap_or_else(|error| panic!("{error}"));
    let opened = envelope::open(&DATA_KEYS, prefix, place, &mut sealed).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(opened.payload(&sealed), data);
}

/// Names: a listed name comes back as it was, tokens have their alphabet, and a made-up token has no name.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let record = Record::TcToken;
    assert!(LOOKUP_KEYS.decrypt_name(record, Domain::TcTokenJid, text).is_err(), "a made-up token has a name");
    let half = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (one, other) = text.split_at(half);
    let Ok(token) = LOOKUP_KEYS.token(record, Domain::User, &[one, other]) else { return };
    assert!(token.len() == 24 && token.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7')));
    if !other.is_empty() {
        let elsewhere = LOOKUP_KEYS.token(record, Domain::User, &[text, ""]);
        assert!(elsewhere.is_ok_and(|elsewhere| *elsewhere != *token), "two splits of a text share a token");
    }
    if let Ok(listed) = LOOKUP_KEYS.encrypt_name(record, Domain::TcTokenJid, text) {
        assert_eq!(LOOKUP_KEYS.decrypt_name(record, Domain::TcTokenJid, &listed).ok().as_deref(), Some(text));
        assert!(LOOKUP_KEYS.decrypt_name(record, Domain::DeviceJid, &listed).is_err());
    }
    let _ = LOOKUP_KEYS.address(Record::Session, text);
}

/// The fields that carry envelopes, and the records inside.
pub fn carriers(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(envelope) = decode_text(Record::DeviceList, text)
    {
        assert_eq!(encode_text(&envelope), text, "two texts carry one envelope");
    }
    assert_eq!(decode_text(Record::LidMapping, &encode_text(data)).ok().as_deref(), Some(data));
    let _ = serde_json::from_slice::<Device>(data);
    let _ = serde_json::from_slice::<DeviceListRecord>(data);
    let _ = serde_json::from_slice::<HashState>(data);
    let _ = serde_json::from_slice::<AppStateSyncKey>(data);
}
