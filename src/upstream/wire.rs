//! Upstream's encoding of values in single columns (`whatsapp-rust-sqlite-storage` 0.7.0,
//! `proto/wire.proto` and `sqlite_store.rs`).

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;
use rusqlite::{Connection, Row, ToSql};
use wacore::appstate::hash::HashState;
use wacore::libsignal::protocol::{KeyPair, PrivateKey, PublicKey};
use wacore::store::Device;
use wacore::store::device::{CachedNoiseCert, CachedServerCertChain, account_serde};
use wacore::store::traits::AppStateSyncKey;

use crate::error::{Error, Result};
use crate::method::Record;

#[derive(Clone, PartialEq, Message)]
struct NoiseCert {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(int64, tag = "2")]
    not_before: i64,
    #[prost(int64, tag = "3")]
    not_after: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ServerCertChain {
    #[prost(message, optional, tag = "1")]
    intermediate: Option<NoiseCert>,
    #[prost(message, optional, tag = "2")]
    leaf: Option<NoiseCert>,
}

#[derive(Clone, PartialEq, Message)]
struct AppStateSyncKeyWire {
    #[prost(bytes = "vec", tag = "1")]
    key_data: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    fingerprint: Vec<u8>,
    #[prost(int64, tag = "3")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct HashStateWire {
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(bytes = "vec", tag = "2")]
    hash: Vec<u8>,
    #[prost(map = "string, bytes", tag = "3")]
    index_value_map: HashMap<String, Vec<u8>>,
    #[prost(bool, tag = "4")]
    mac_mismatch_fatal: bool,
}

/// `None` if upstream's store cannot read the value either and treats it as absent, such as keys in
/// the format of its first versions.
pub(super) fn sync_key(bytes: &[u8]) -> Option<AppStateSyncKey> {
    let AppStateSyncKeyWire { key_data, fingerprint, timestamp } = AppStateSyncKeyWire::decode(bytes).ok()?;
    (key_data.len() == 32).then_some(AppStateSyncKey { key_data, fingerprint, timestamp })
}

/// `None` if upstream's store cannot read the value either and treats it as absent.
pub(super) fn collection_version(bytes: &[u8]) -> Option<HashState> {
    let HashStateWire { version, hash, index_value_map, mac_mismatch_fatal } = HashStateWire::decode(bytes).ok()?;
    Some(HashState { version, hash: hash.try_into().ok()?, index_value_map, mac_mismatch_fatal })
}

/// `None` if upstream's store cannot read the value either. The client fetches it again.
fn server_cert_chain(bytes: &[u8]) -> Option<CachedServerCertChain> {
    let cert = |NoiseCert { key, not_before, not_after }| {
        Some(CachedNoiseCert { key: key.try_into().ok()?, not_before, not_after })
    };
    let chain = ServerCertChain::decode(bytes).ok()?;
    Some(CachedServerCertChain { intermediate: cert(chain.intermediate?)?, leaf: cert(chain.leaf?)? })
}

/// The encoding that [`sync_key`] reads.
pub(super) fn sync_key_bytes(key: AppStateSyncKey) -> Vec<u8> {
    let AppStateSyncKey { key_data, fingerprint, timestamp } = key;
    AppStateSyncKeyWire { key_data, fingerprint, timestamp }.encode_to_vec()
}

/// The encoding that [`collection_version`] reads.
pub(super) fn collection_version_bytes(state: HashState) -> Vec<u8> {
    let HashState { version, hash, index_value_map, mac_mismatch_fatal } = state;
    HashStateWire { version, hash: hash.to_vec(), index_value_map, mac_mismatch_fatal }.encode_to_vec()
}

/// Writes the row that [`device`] reads.
pub(super) fn insert_device(connection: &Connection, account: i32, device: &Device) -> Result<()> {
    let pair = |keys: &KeyPair| [&keys.private_key.serialize()[..], keys.public_key.public_key_bytes()].concat();
    let jid = |jid: Option<String>| jid.unwrap_or_default();
    let chain = device.server_cert_chain.as_ref().map(|chain| {
        let cert = |cert: &CachedNoiseCert| NoiseCert {
            key: cert.key.to_vec(),
            not_before: cert.not_before,
            not_after: cert.not_after,
        };
        let (intermediate, leaf) = (Some(cert(&chain.intermediate)), Some(cert(&chain.leaf)));
        ServerCertChain { intermediate, leaf }.encode_to_vec()
    });
    let places: Vec<_> = (1..=DEVICE_COLUMNS.split(',').count() + 1).map(|place| format!("?{place}")).collect();
    let sql = format!("INSERT INTO device ({DEVICE_COLUMNS}, id) VALUES ({})", places.join(", "));
    // Upstream stores unsigned numbers in signed columns of the same width.
    let values: [&dyn ToSql; 27] = [
        &jid(device.pn.as_ref().map(ToString::to_string)),
        &jid(device.lid.as_ref().map(ToString::to_string)),
        &(device.registration_id as i32),
        &pair(&device.noise_key),
        &pair(&device.identity_key),
        &pair(&device.signed_pre_key),
        &(device.signed_pre_key_id as i32),
        &&device.signed_pre_key_signature[..],
        &&device.adv_secret_key[..],
        &device.account.as_deref().map(account_serde::to_bytes),
        &device.push_name,
        &(device.app_version_primary as i32),
        &(device.app_version_secondary as i32),
        &i64::from(device.app_version_tertiary),
        &device.app_version_last_fetched_ms,
        &device.edge_routing_info,
        &device.props_hash,
        &(device.next_pre_key_id as i32),
        &(device.first_unupload_pre_key_id as i32),
        &device.server_has_prekeys,
        &device.nct_salt,
        &chain,
        &device.login_counter,
        &device.lid_migrated,
        &device.last_signed_pre_key_rotation_ms,
        &device.read_receipts_disabled,
        &account,
    ];
    connection.execute(&sql, &values[..])?;
    Ok(())
}

/// The columns of [`device`].
pub(super) const DEVICE_COLUMNS: &str = "pn, lid, registration_id, noise_key, identity_key, signed_pre_key, signed_pre_key_id, \
    signed_pre_key_signature, adv_secret_key, account, push_name, app_version_primary, app_version_secondary, \
    app_version_tertiary, app_version_last_fetched_ms, edge_routing_info, props_hash, next_pre_key_id, \
    first_unupload_pre_key_id, server_has_prekeys, nct_salt, server_cert_chain, login_counter, lid_migrated, \
    last_signed_pre_key_rotation_ms, read_receipts_disabled";

/// The device in a row of [`DEVICE_COLUMNS`].
///
/// # Errors
/// [`Error::UnreadableRecord`] if a key, the account or a JID cannot be read: without them the
/// device would have to be paired again.
pub(super) fn device(row: &Row<'_>) -> Result<Device> {
    let text = |column: &str| row.get::<_, String>(column);
    let blob = |column: &str| row.get::<_, Vec<u8>>(column);
    let number = |column: &str| unsigned(row.get(column)?).ok_or_else(|| unreadable("a number has more than 32 bits"));
    let jid = |column: &str| match text(column)? {
        empty if empty.is_empty() => Ok(None),
        jid => jid.parse().map(Some).map_err(|_| unreadable("a JID is not one")),
    };
    let account = row.get::<_, Option<Vec<u8>>>("account")?;
    let account = account.map(|bytes| account_serde::from_bytes(&bytes).map_err(|_| unreadable("its account")));
    let chain = row.get::<_, Option<Vec<u8>>>("server_cert_chain")?;
    Ok(Device {
        pn: jid("pn")?,
        lid: jid("lid")?,
        registration_id: number("registration_id")?,
        noise_key: key_pair(&blob("noise_key")?)?,
        identity_key: key_pair(&blob("identity_key")?)?,
        signed_pre_key: key_pair(&blob("signed_pre_key")?)?,
        signed_pre_key_id: number("signed_pre_key_id")?,
        signed_pre_key_signature: fixed(blob("signed_pre_key_signature")?)?,
        adv_secret_key: fixed(blob("adv_secret_key")?)?,
        account: account.transpose()?.map(Arc::new),
        push_name: text("push_name")?,
        app_version_primary: number("app_version_primary")?,
        app_version_secondary: number("app_version_secondary")?,
        app_version_tertiary: row.get::<_, i64>("app_version_tertiary")?.try_into().unwrap_or(0),
        app_version_last_fetched_ms: row.get("app_version_last_fetched_ms")?,
        edge_routing_info: row.get("edge_routing_info")?,
        props_hash: row.get("props_hash")?,
        next_pre_key_id: number("next_pre_key_id")?,
        first_unupload_pre_key_id: number("first_unupload_pre_key_id")?,
        server_has_prekeys: row.get("server_has_prekeys")?,
        nct_salt: row.get("nct_salt")?,
        server_cert_chain: chain.as_deref().and_then(server_cert_chain),
        login_counter: row.get("login_counter")?,
        lid_migrated: row.get("lid_migrated")?,
        last_signed_pre_key_rotation_ms: row.get("last_signed_pre_key_rotation_ms")?,
        read_receipts_disabled: row.get("read_receipts_disabled")?,
        ..Device::new()
    })
}

/// 32 bytes of private key, then 32 bytes of public key.
fn key_pair(bytes: &[u8]) -> Result<KeyPair> {
    let bytes: &[u8; 64] = bytes.try_into().map_err(|_| unreadable("a key has another length"))?;
    let (private, public) = bytes.split_at(32);
    let private = PrivateKey::deserialize(private).map_err(|_| unreadable("a private key"))?;
    let public = PublicKey::from_djb_public_key_bytes(public).map_err(|_| unreadable("a public key"))?;
    Ok(KeyPair::new(public, private))
}

fn fixed<const LENGTH: usize>(bytes: Vec<u8>) -> Result<[u8; LENGTH]> {
    bytes.try_into().map_err(|_| unreadable("a field has another length"))
}

fn unreadable(problem: &'static str) -> Error {
    Error::UnreadableRecord { record: Record::Device, problem }
}

/// Upstream stores unsigned numbers in signed columns of the same width.
pub(super) fn unsigned(number: i64) -> Option<u32> {
    i32::try_from(number).ok().map(i32::cast_unsigned).or_else(|| u32::try_from(number).ok())
}
