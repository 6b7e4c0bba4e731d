//! The client's own Signal code goes on with a conversation after its account has moved.

use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use wacore::libsignal::protocol::{
    CiphertextMessage, IdentityKey, KeyPair, PreKeyBundle, UsePQRatchet, message_decrypt, message_encrypt,
    process_prekey_bundle,
};
use wacore::libsignal::store::record_helpers::encode_pre_key_record_to;
use wacore::store::InMemoryBackend;
use wacore::store::traits::{Backend, DeviceStore};
use wacore::types::jid::JidExt;
use wacore_binary::Jid;
use wastore::import::Import;
use wastore::maintenance::{StoreCopy, Verify, open_account};
use wastore::testing::Operation;
use wastore::{Access, IntoBackend, Key, Method, SqliteOptions, Stack, Vault, VaultOptions};
use whatsapp_rust::store::persistence_manager::PersistenceManager;
use whatsapp_rust::store::signal_adapter::SignalProtocolStoreAdapter;
use whatsapp_rust::store::signal_cache::SignalStoreCache;
use whatsapp_rust_sqlite_storage::SqliteStore as UpstreamStore;

use super::common::options;
use super::copies::rows_of_file;
use super::server::{available, shared};

/// One side of the conversation, as the client keeps it.
struct Side {
    jid: Jid,
    backend: Arc<dyn Backend>,
    device: PersistenceManager,
    cache: Arc<SignalStoreCache>,
    signal: SignalProtocolStoreAdapter,
}

impl Side {
    async fn open(backend: Arc<dyn Backend>, jid: &str) -> Self {
        let device = PersistenceManager::new(backend.clone()).await.unwrap();
        let cache = Arc::new(SignalStoreCache::new());
        let signal = SignalProtocolStoreAdapter::new(device.get_device_arc().await, cache.clone());
        Self { jid: jid.parse().unwrap(), backend, device, cache, signal }
    }

    async fn bundle(&self, rng: &mut StdRng) -> PreKeyBundle {
        let (keys, mut record) = (KeyPair::generate(rng), vec![]);
        encode_pre_key_record_to(1, &keys, &mut record);
        self.backend.store_prekeys_batch(&[(1, record.into())], true).await.unwrap();
        self.device.flush().await.unwrap();
        let device = self.device.get_device_snapshot();
        PreKeyBundle::new(
            device.registration_id,
            u32::from(self.jid.device).into(),
            Some((1.into(), keys.public_key)),
            device.signed_pre_key_id.into(),
            device.signed_pre_key.public_key,
            device.signed_pre_key_signature.to_vec(),
            IdentityKey::new(device.identity_key.public_key),
        )
        .unwrap()
    }
}

/// Sends a text. Both sides store their ratchets, as the client does.
async fn say(from: &mut Side, to: &mut Side, text: &str, rng: &mut StdRng) {
    let (sender, receiver) = (from.jid.to_protocol_address(), to.jid.to_protocol_address());
    let signal = &mut from.signal;
    let sent = message_encrypt(text.as_bytes(), &receiver, &mut signal.session_store, &mut signal.identity_store);
    let wire = match &sent.await.unwrap() {
        CiphertextMessage::PreKeySignalMessage(message) => {
            CiphertextMessage::PreKeySignalMessage(message.serialized().try_into().unwrap())
        }
        CiphertextMessage::SignalMessage(message) => {
            CiphertextMessage::SignalMessage(message.serialized().try_into().unwrap())
        }
        _ => panic!("an unexpected kind of message"),
    };
    from.cache.flush(&*from.backend).await.unwrap();
    let signal = &mut to.signal;
    let received = message_decrypt(
        &wire,
        &sender,
        &mut signal.session_store,
        &mut signal.identity_store,
        &mut signal.pre_key_store,
        &signal.signed_pre_key_store,
        rng,
        UsePQRatchet::No,
    )
    .await
    .unwrap();
    if let Some(id) = received.consumed_prekey_id {
        signal.pre_key_store.buffer_consumed_prekey(id, &sender).await;
    }
    to.cache.flush(&*to.backend).await.unwrap();
    assert_eq!(received.plaintext, text.as_bytes());
}

const ALICE: &str = "15550101111:3@s.whatsapp.net";
const BOB: &str = "15550102222:7@s.whatsapp.net";

fn key() -> Key {
    Key::from_bytes(&mut [0x5a; 32])
}

async fn encrypted(store: impl IntoBackend) -> Arc<dyn Backend> {
    let (store, _) = store.into_backend();
    let vault = Vault::open_or_create(store.clone(), key()).await.unwrap();
    Stack::new(store).layer(vault.layer()).into_backend()
}

/// The account of the first conversation, and another one with a record of every kind, as upstream's store writes them.
async fn on_upstream(path: &Path) -> Arc<dyn Backend> {
    let path = path.to_str().unwrap();
    let other = UpstreamStore::new_for_device(path, 2).await.unwrap();
    other.create().await.unwrap();
    for method in Method::ALL.iter().filter(|method| method.access() == Access::Write && **method != Method::Create) {
        Operation::sample(*method).run(&other, 0).await.unwrap();
    }
    Arc::new(UpstreamStore::new_for_device(path, 1).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_conversation_goes_on_on_a_server_and_in_a_file() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (upstream, old, equal, new) = (path("whatsapp.db"), path("old.db"), path("equal.db"), path("new.db"));
    let on_server = || options(&shared().url()).schema("conversations");
    let on_file = |path| SqliteOptions::new().lease_when_writing().open(path);
    let mut rng: StdRng = rand::make_rng();
    let mut bob = Side::open(Arc::new(InMemoryBackend::new()), BOB).await;
    let mut alice = Side::open(on_upstream(&upstream).await, ALICE).await;
    alice.device.flush().await.unwrap();
    let bundle = bob.bundle(&mut rng).await;
    let to = bob.jid.to_protocol_address();
    let signal = &mut alice.signal;
    let (sessions, identities) = (&mut signal.session_store, &mut signal.identity_store);
    process_prekey_bundle(&to, sessions, identities, &bundle, &mut rng, UsePQRatchet::No).await.unwrap();
    say(&mut alice, &mut bob, "from upstream's store", &mut rng).await;
    say(&mut bob, &mut alice, "an answer", &mut rng).await;

    drop(alice);
    Import::new().all_accounts().run(&upstream, &old, key()).await.unwrap();
    let store = on_file(&old).await.unwrap();
    let mut alice = Side::open(encrypted(&store).await, ALICE).await;
    say(&mut bob, &mut alice, "to the imported file", &mut rng).await;
    say(&mut alice, &mut bob, "from the imported file", &mut rng).await;

    drop(alice);
    let target = on_server().open_without_lease(1).await.unwrap();
    let reports = StoreCopy::new().run_all(&store, &target).await.unwrap();
    assert_eq!(reports.len(), 2);
    target.close().await.unwrap();
    let server = on_server().open(1).await.unwrap();
    store.close().await.unwrap();
    let target = on_file(&equal).await.unwrap();
    StoreCopy::new().keep_source().run_all(&server, &target).await.unwrap();
    target.close().await.unwrap();
    assert_eq!(rows_of_file(&old), rows_of_file(&equal));
    let mut alice = Side::open(encrypted(&server).await, ALICE).await;
    say(&mut bob, &mut alice, "to the server", &mut rng).await;
    say(&mut alice, &mut bob, "from the server", &mut rng).await;

    drop(alice);
    let target = on_file(&new).await.unwrap();
    StoreCopy::new().run_all(&server, &target).await.unwrap();
    let mut alice = Side::open(encrypted(&target).await, ALICE).await;
    say(&mut bob, &mut alice, "to the new file", &mut rng).await;
    say(&mut alice, &mut bob, "from the new file", &mut rng).await;
    say(&mut alice, &mut bob, "once more", &mut rng).await;
    // The other account opens with the same secret.
    let other = target.account(2);
    let vault = open_account(&other, &VaultOptions::new(), key()).await.unwrap();
    assert!(Verify::new().run(&other, &vault).await.unwrap().is_sound());
}
