//! Each of the 82 methods reaches its inner method exactly once. The arguments that the layer declares to pass on
//! arrive unchanged, and the answer of the inner store comes back.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a failure is a failed test")]

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::Device;
use wacore::store::error::Result;
use wacore::store::traits::*;
use wastore::testing::{Call, Effect, Fault, Operation, Spy, Value, When};
use wastore::{CacheLayer, Key, Layer, Method, Metrics, Record, SqliteStore, VaultOptions};

/// The declared effect of a layer on calls.
struct Declared {
    /// The method of the inner store that is called.
    method: fn(Method) -> Method,
    /// Whether the argument of this name arrives unchanged.
    passes_on: fn(Method, &str) -> bool,
}

const TRANSPARENT: Declared = Declared { method: |method| method, passes_on: |_, _| true };

const CACHE: Declared = Declared {
    method: |method| match method {
        // The cache has one entry for both methods.
        Method::GetMsgSecret => Method::GetMsgSecretWithTs,
        same => same,
    },
    passes_on: |_, _| true,
};

const ENCRYPT: Declared = Declared {
    method: |method| match method {
        // Encryption stores identities in the session table.
        Method::PutIdentity => Method::PutSession,
        Method::PutIdentitiesBatch => Method::PutSessionsBatch,
        Method::LoadIdentity => Method::GetSession,
        Method::DeleteIdentity => Method::DeleteSession,
        // The device already exists, so creating it only checks that.
        Method::Create => Method::Exists,
        same => same,
    },
    // Arguments that the inner store computes with: the README's column "readable".
    passes_on: |method, argument| {
        matches!(argument, "id" | "ids" | "uploaded" | "version" | "key_id")
            && !matches!(method.trait_name(), "ProtocolStore")
            // A sync key is sealed with its time.
            || argument.ends_with("timestamp") && method != Method::SetSyncKey
            || argument.ends_with("cutoff")
            // Fields of stored values.
            || matches!(argument, "created_at" | "updated_at" | "expires_at" | "message_ts")
    },
};

/// A new store with a device under the layer, with a spy above and one below the layer.
struct Bench {
    top: Arc<dyn Backend>,
    above: Spy,
    below: Spy,
    fault: Fault,
}

async fn bench(layer: &dyn Layer, store: Arc<dyn Backend>) -> Bench {
    let (above, below, fault) = (Spy::new(), Spy::new(), Fault::new());
    let top = above.layer(layer.layer(below.layer(fault.layer(store))));
    top.create().await.unwrap();
    Bench { top, above, below, fault }
}

/// The mistakes in a layer's forwarding, one line for each method and mistake.
async fn findings(layer: &dyn Layer, under: Arc<dyn Backend>, declared: &Declared) -> Vec<String> {
    findings_before_each(layer, under, declared, &|| {}).await
}

/// Like `findings`, but calls `before` before every call.
async fn findings_before_each(
    layer: &dyn Layer,
    under: Arc<dyn Backend>,
    declared: &Declared,
    before: &dyn Fn(),
) -> Vec<String> {
    let Bench { top, above, below, fault } = bench(layer, under).await;
    // The same calls on a store without the layer, in the same order.
    let (plain, _folder) = store().await;
    plain.create().await.unwrap();
    let (mut findings, mut saved) = (vec![], false);
    // Runs twice: the first time nothing exists, the second time most rows do.
    for method in Method::ALL.iter().chain(Method::ALL).copied() {
        let operation = Operation::sample(method);
        above.take();
        below.take();
        before();
        let found = operation.run(&*top, 0).await;
        let (outer, inner) = (above.take(), below.take());
        saved |= method == Method::Save;
        let expected = operation.run(&*plain, 0).await.unwrap();
        let name = method.name();
        match &found {
            // Each store chooses the number of a device, and a device that was only created has random keys.
            Ok(_) if method == Method::Create => {}
            Ok(found)
                if method == Method::Load && !saved && (found == &Value::Nothing) == (expected == Value::Nothing) => {}
            // Each store reports its own use of memory.
            Ok(found) if method == Method::ResourceReport && found.field("memory_bytes") != Some(&Value::Nothing) => {}
            Ok(found) if found.clone().sorted() == expected.clone().sorted() => {}
            found => findings.push(format!("{name}: returned {found:?} instead of {expected:?}")),
        }
        let methods: Vec<_> = inner.iter().map(|call| call.method).collect();
        if methods != [(declared.method)(method)] {
            findings.push(format!("{name}: became {methods:?}"));
            continue;
        }
        if method.arguments() == inner[0].method.arguments() {
            findings.extend(arguments(&outer[0], &inner[0], declared));
        } else if leaks(&Value::List(outer[0].arguments.clone()), &Value::List(inner[0].arguments.clone())) {
            findings.push(format!("{name}: an argument is not encrypted: {:?}", inner[0]));
        }

        if method == Method::ResourceReport {
            continue;
        }
        fault.inject(When::Always, Effect::Fail(Fault::error));
        before();
        let failed = operation.run(&*top, 0).await;
        fault.clear();
        if !failed.as_ref().is_err_and(Fault::is_injected) {
            findings.push(format!("{name}: the store's error became {failed:?}"));
        }
        // A lost acknowledgement is a failure too.
        fault.inject(When::Always, Effect::FailAfter(Fault::error));
        before();
        let failed = operation.run(&*top, 0).await;
        fault.clear();
        operation.run(&*plain, 0).await.unwrap();
        if !failed.as_ref().is_err_and(Fault::is_injected) {
            findings.push(format!("{name}: the store's late error became {failed:?}"));
        }
    }
    findings
}

/// Compares the arguments of a call with those that the inner store got.
fn arguments(outer: &Call, inner: &Call, declared: &Declared) -> Vec<String> {
    let mut findings = vec![];
    for name in outer.method.arguments() {
        let (given, arrived) = (outer.argument(name).unwrap(), inner.argument(name).unwrap());
        compare(outer.method, name, given, arrived, declared, &mut findings);
        if !(declared.passes_on)(outer.method, name) && leaks(given, arrived) {
            findings.push(format!("{}: {name} is not encrypted: {arrived:?}", outer.method.name()));
        }
    }
    findings
}

/// Arguments that the layer declares to pass on are the same, including the fields of structs. Batches keep their
/// number of rows.
fn compare(
    method: Method,
    name: &str,
    given: &Value,
    arrived: &Value,
    declared: &Declared,
    findings: &mut Vec<String>,
) {
    if (declared.passes_on)(method, name) {
        if given != arrived {
            findings.push(format!("{}: {name} became {arrived:?} instead of {given:?}", method.name()));
        }
        return;
    }
    match (given, arrived) {
        (Value::List(given), Value::List(arrived)) => {
            if given.len() != arrived.len() {
                findings.push(format!(
                    "{}: {name} has {} rows instead of {}",
                    method.name(),
                    arrived.len(),
                    given.len()
                ));
            }
            for (given, arrived) in given.iter().zip(arrived) {
                compare(method, name, given, arrived, declared, findings);
            }
        }
        // A flag with a name, as in the sender key devices of a group.
        (Value::Flag(_), Value::Flag(_)) if method == Method::SetSenderKeyStatus && given != arrived => {
            findings.push(format!("{}: a flag of {name} became {arrived:?}", method.name()));
        }
        (Value::Record(given), Value::Record(_)) if method != Method::Save => {
            for (field, given) in given {
                if let Some(arrived) = arrived.field(field) {
                    compare(method, field, given, arrived, declared, findings);
                }
            }
        }
        _ => {}
    }
}

/// Returns whether a name or a content of the call appears in the arguments that the inner store got.
fn leaks(given: &Value, arrived: &Value) -> bool {
    let mut secrets = vec![];
    collect(given, &mut secrets);
    let mut below = vec![];
    collect(arrived, &mut below);
    below.iter().any(|below| secrets.iter().any(|secret| memchr::memmem::find(below, secret).is_some()))
}

/// Collects all texts and byte strings of a value. Leaves out those that are too short or too simple to be
/// recognizable.
fn collect(value: &Value, into: &mut Vec<Vec<u8>>) {
    match value {
        Value::Text(text) => into.push(text.as_bytes().to_vec()),
        Value::Bytes(bytes) => into.push(bytes.clone()),
        Value::List(values) => values.iter().for_each(|value| collect(value, into)),
        Value::Record(fields) => fields.iter().for_each(|(_, value)| collect(value, into)),
        _ => {}
    }
    into.retain(|content| content.len() >= 8 && content.iter().any(|byte| *byte != 0));
}

async fn assert_forwards(layer: &dyn Layer, store: Arc<dyn Backend>, declared: &Declared) {
    let findings = findings(layer, store, declared).await;
    assert!(findings.is_empty(), "{layer:?}:\n{}", findings.join("\n"));
}

/// A store that implements every method.
async fn store() -> (Arc<dyn Backend>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Arc::new(SqliteStore::open(folder.path().join("wa.db")).await.unwrap()), folder)
}

#[tokio::test]
async fn spy_fault_and_metrics_pass_everything_on() {
    let metrics = Metrics::new();
    metrics.log_slower_than(wastore::metrics::LayerKind::Store, Some(std::time::Duration::ZERO));
    let layers: [&dyn Layer; 3] = [&Spy::new(), &Fault::new(), &metrics.layer("store")];
    for layer in layers {
        let (store, _folder) = store().await;
        assert_forwards(layer, store, &TRANSPARENT).await;
    }
}

#[tokio::test]
async fn cache_asks_the_store_when_it_has_no_answer() {
    let signal = [Record::Session, Record::Identity, Record::SenderKey, Record::SignedPrekey];
    let cache = signal.into_iter().fold(CacheLayer::new(1 << 20), CacheLayer::with);
    let (store, _folder) = store().await;
    let findings = findings_before_each(&cache, store, &CACHE, &|| cache.invalidate_all()).await;
    assert!(findings.is_empty(), "{}", findings.join("\n"));

    let (store, _folder) = self::store().await;
    assert_forwards(&CacheLayer::new(0), store, &TRANSPARENT).await;
}

#[tokio::test]
async fn encrypt_passes_on_what_stays_readable() {
    let (store, _folder) = store().await;
    let key = Key::from_bytes(&mut [0x5a; 32]);
    let vault = VaultOptions::new().create(store.clone(), key).await.unwrap();
    assert_forwards(&vault.layer(), store, &ENCRYPT).await;
}

/// Tests the check itself: it finds every method of a layer that keeps all default bodies.
#[tokio::test]
async fn a_forgotten_forward_is_noticed_and_named() {
    /// A layer of an author who writes only the methods that the compiler requires.
    #[derive(Debug)]
    struct Forgetful;

    impl Layer for Forgetful {
        fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
            Arc::new(ForgetfulStore { inner })
        }
    }

    let (store, _folder) = store().await;
    let findings = findings(&Forgetful, store, &TRANSPARENT).await;
    let mut named: Vec<_> = findings.iter().filter_map(|finding| finding.split(':').next()).collect();
    named.sort_unstable();
    named.dedup();
    assert_eq!(named, WITH_DEFAULT_BODY);
}

/// The methods of the traits of `wacore` 0.7.0 that an implementation may leave out.
const WITH_DEFAULT_BODY: [&str; 25] = [
    "delete_expired_pending_inbound",
    "delete_group_metadata",
    "delete_pending_inbound",
    "delete_pending_inbound_batch",
    "get_group_metadata",
    "get_msg_secret_with_ts",
    "get_mutation_macs",
    "get_pending_inbound",
    "has_session",
    "has_signal_state_for_user",
    "load_prekeys_batch",
    "put_group_metadata",
    "put_identities_batch",
    "put_lid_mappings",
    "put_msg_secret",
    "put_sender_keys_batch",
    "put_sessions_batch",
    "resource_report",
    "snapshot_db",
    "store_pending_inbound",
    "store_pending_inbound_batch",
    "store_prekeys_batch",
    "store_received_tc_token",
    "touch_tc_token_sender_timestamp",
    "update_device_lists",
];

struct ForgetfulStore {
    inner: Arc<dyn Backend>,
}

#[async_trait]
impl SignalStore for ForgetfulStore {
    async fn put_identity(&self, address: &str, key: [u8; 32]) -> Result<()> {
        self.inner.put_identity(address, key).await
    }
    async fn load_identity(&self, address: &str) -> Result<Option<[u8; 32]>> {
        self.inner.load_identity(address).await
    }
    async fn delete_identity(&self, address: &str) -> Result<()> {
        self.inner.delete_identity(address).await
    }
    async fn get_session(&self, address: &str) -> Result<Option<Bytes>> {
        self.inner.get_session(address).await
    }
    async fn put_session(&self, address: &str, session: &[u8]) -> Result<()> {
        self.inner.put_session(address, session).await
    }
    async fn delete_session(&self, address: &str) -> Result<()> {
        self.inner.delete_session(address).await
    }
    async fn store_prekey(&self, id: u32, record: &[u8], uploaded: bool) -> Result<()> {
        self.inner.store_prekey(id, record, uploaded).await
    }
    async fn load_prekey(&self, id: u32) -> Result<Option<Bytes>> {
        self.inner.load_prekey(id).await
    }
    async fn mark_prekeys_uploaded(&self, ids: &[u32]) -> Result<()> {
        self.inner.mark_prekeys_uploaded(ids).await
    }
    async fn remove_prekey(&self, id: u32) -> Result<()> {
        self.inner.remove_prekey(id).await
    }
    async fn get_max_prekey_id(&self) -> Result<u32> {
        self.inner.get_max_prekey_id().await
    }
    async fn store_signed_prekey(&self, id: u32, record: &[u8]) -> Result<()> {
        self.inner.store_signed_prekey(id, record).await
    }
    async fn load_signed_prekey(&self, id: u32) -> Result<Option<Vec<u8>>> {
        self.inner.load_signed_prekey(id).await
    }
    async fn load_all_signed_prekeys(&self) -> Result<Vec<(u32, Vec<u8>)>> {
        self.inner.load_all_signed_prekeys().await
    }
    async fn remove_signed_prekey(&self, id: u32) -> Result<()> {
        self.inner.remove_signed_prekey(id).await
    }
    async fn put_sender_key(&self, address: &str, record: &[u8]) -> Result<()> {
        self.inner.put_sender_key(address, record).await
    }
    async fn get_sender_key(&self, address: &str) -> Result<Option<Vec<u8>>> {
        self.inner.get_sender_key(address).await
    }
    async fn delete_sender_key(&self, address: &str) -> Result<()> {
        self.inner.delete_sender_key(address).await
    }
}

#[async_trait]
impl AppSyncStore for ForgetfulStore {
    async fn get_sync_key(&self, key_id: &[u8]) -> Result<Option<AppStateSyncKey>> {
        self.inner.get_sync_key(key_id).await
    }
    async fn set_sync_key(&self, key_id: &[u8], key: AppStateSyncKey) -> Result<()> {
        self.inner.set_sync_key(key_id, key).await
    }
    async fn get_version(&self, name: &str) -> Result<HashState> {
        self.inner.get_version(name).await
    }
    async fn set_version(&self, name: &str, state: HashState) -> Result<()> {
        self.inner.set_version(name, state).await
    }
    async fn put_mutation_macs(&self, name: &str, version: u64, mutations: &[AppStateMutationMAC]) -> Result<()> {
        self.inner.put_mutation_macs(name, version, mutations).await
    }
    async fn get_mutation_mac(&self, name: &str, index_mac: &[u8]) -> Result<Option<Vec<u8>>> {
        self.inner.get_mutation_mac(name, index_mac).await
    }
    async fn delete_mutation_macs(&self, name: &str, index_macs: &[Vec<u8>]) -> Result<()> {
        self.inner.delete_mutation_macs(name, index_macs).await
    }
    async fn clear_mutation_macs(&self, name: &str) -> Result<()> {
        self.inner.clear_mutation_macs(name).await
    }
    async fn get_latest_sync_key_id(&self) -> Result<Option<Vec<u8>>> {
        self.inner.get_latest_sync_key_id().await
    }
}

#[async_trait]
impl ProtocolStore for ForgetfulStore {
    async fn get_sender_key_devices(&self, group_jid: &str) -> Result<Vec<(String, bool)>> {
        self.inner.get_sender_key_devices(group_jid).await
    }
    async fn set_sender_key_status(&self, group_jid: &str, entries: &[(&str, bool)]) -> Result<()> {
        self.inner.set_sender_key_status(group_jid, entries).await
    }
    async fn clear_sender_key_devices(&self, group_jid: &str) -> Result<()> {
        self.inner.clear_sender_key_devices(group_jid).await
    }
    async fn delete_sender_key_device_rows(&self, device_jids: &[&str]) -> Result<()> {
        self.inner.delete_sender_key_device_rows(device_jids).await
    }
    async fn clear_all_sender_key_devices(&self) -> Result<()> {
        self.inner.clear_all_sender_key_devices().await
    }
    async fn get_lid_mapping(&self, lid: &str) -> Result<Option<LidPnMappingEntry>> {
        self.inner.get_lid_mapping(lid).await
    }
    async fn get_pn_mapping(&self, phone: &str) -> Result<Option<LidPnMappingEntry>> {
        self.inner.get_pn_mapping(phone).await
    }
    async fn put_lid_mapping(&self, entry: &LidPnMappingEntry) -> Result<()> {
        self.inner.put_lid_mapping(entry).await
    }
    async fn get_all_lid_mappings(&self) -> Result<Vec<LidPnMappingEntry>> {
        self.inner.get_all_lid_mappings().await
    }
    async fn save_base_key(&self, address: &str, message_id: &str, base_key: &[u8]) -> Result<()> {
        self.inner.save_base_key(address, message_id, base_key).await
    }
    async fn has_same_base_key(&self, address: &str, message_id: &str, current_base_key: &[u8]) -> Result<bool> {
        self.inner.has_same_base_key(address, message_id, current_base_key).await
    }
    async fn delete_base_key(&self, address: &str, message_id: &str) -> Result<()> {
        self.inner.delete_base_key(address, message_id).await
    }
    async fn update_device_list(&self, record: DeviceListRecord) -> Result<()> {
        self.inner.update_device_list(record).await
    }
    async fn get_devices(&self, user: &str) -> Result<Option<DeviceListRecord>> {
        self.inner.get_devices(user).await
    }
    async fn delete_devices(&self, user: &str) -> Result<()> {
        self.inner.delete_devices(user).await
    }
    async fn get_tc_token(&self, jid: &str) -> Result<Option<TcTokenEntry>> {
        self.inner.get_tc_token(jid).await
    }
    async fn put_tc_token(&self, jid: &str, entry: &TcTokenEntry) -> Result<()> {
        self.inner.put_tc_token(jid, entry).await
    }
    async fn delete_tc_token(&self, jid: &str) -> Result<()> {
        self.inner.delete_tc_token(jid).await
    }
    async fn get_all_tc_token_jids(&self) -> Result<Vec<String>> {
        self.inner.get_all_tc_token_jids().await
    }
    async fn delete_expired_tc_tokens(&self, token_cutoff: i64, sender_cutoff: i64) -> Result<u32> {
        self.inner.delete_expired_tc_tokens(token_cutoff, sender_cutoff).await
    }
    async fn store_sent_message(&self, chat_jid: &str, message_id: &str, payload: &[u8]) -> Result<()> {
        self.inner.store_sent_message(chat_jid, message_id, payload).await
    }
    async fn take_sent_message(&self, chat_jid: &str, message_id: &str) -> Result<Option<Vec<u8>>> {
        self.inner.take_sent_message(chat_jid, message_id).await
    }
    async fn delete_expired_sent_messages(&self, cutoff_timestamp: i64) -> Result<u32> {
        self.inner.delete_expired_sent_messages(cutoff_timestamp).await
    }
}

#[async_trait]
impl DeviceStore for ForgetfulStore {
    async fn save(&self, device: &Device) -> Result<()> {
        self.inner.save(device).await
    }
    async fn load(&self) -> Result<Option<Device>> {
        self.inner.load().await
    }
    async fn exists(&self) -> Result<bool> {
        self.inner.exists().await
    }
    async fn create(&self) -> Result<i32> {
        self.inner.create().await
    }
}

#[async_trait]
impl MsgSecretStore for ForgetfulStore {
    async fn put_msg_secrets(&self, entries: Vec<MsgSecretEntry>) -> Result<usize> {
        self.inner.put_msg_secrets(entries).await
    }
    async fn get_msg_secret(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<Vec<u8>>> {
        self.inner.get_msg_secret(chat, sender, msg_id).await
    }
    async fn delete_expired_msg_secrets(&self, cutoff_timestamp: i64) -> Result<u32> {
        self.inner.delete_expired_msg_secrets(cutoff_timestamp).await
    }
}
