//! The two accounts: their stores, and the client's own Signal code over them.

use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use wacore::appstate::hash::HashState;
use wacore::libsignal::protocol::{
    CiphertextMessage, IdentityKey, KeyPair, PreKeyBundle, UsePQRatchet, group_decrypt, group_encrypt, message_decrypt,
    message_encrypt,
};
use wacore::libsignal::store::record_helpers::encode_pre_key_record_to;
use wacore::libsignal::store::sender_key_name::SenderKeyName;
use wacore::store::traits::{
    AppStateSyncKey, Backend, DeviceInfo, DeviceListRecord, LidPnMappingEntry, MsgSecretEntry, TcTokenEntry,
};
use wacore::types::jid::JidExt;
use wacore_binary::Jid;
use wastore::{Passphrase, SqliteStore, Stack, Vault};
use whatsapp_rust::store::persistence_manager::PersistenceManager;
use whatsapp_rust::store::signal_adapter::SignalProtocolStoreAdapter;
use whatsapp_rust::store::signal_cache::SignalStoreCache;

use crate::search::Secrets;
use crate::{GROUP, PASSPHRASE, Result};

/// One account: its store, and the client's own Signal adapters over it.
pub(crate) struct Account {
    pub(crate) jid: Jid,
    lid: Jid,
    pub(crate) stack: String,
    pub(crate) backend: Arc<dyn Backend>,
    device: PersistenceManager,
    cache: Arc<SignalStoreCache>,
    pub(crate) signal: SignalProtocolStoreAdapter,
}

impl Account {
    /// Opens the store, encrypted or not, and loads the device as a client does.
    pub(crate) async fn open(file: &Path, encrypt: bool) -> Result<Self> {
        let store = SqliteStore::open(file).await?;
        let mut stack = Stack::new(&store);
        if encrypt {
            let vault = Vault::open_or_create(&store, Passphrase::new(PASSPHRASE)?).await?;
            stack = stack.layer(vault.layer());
        }
        let description = format!("{stack:?}");
        let backend = stack.into_backend();
        let device = PersistenceManager::new(backend.clone()).await?;
        let cache = Arc::new(SignalStoreCache::new());
        let signal = SignalProtocolStoreAdapter::new(device.get_device_arc().await, cache.clone());
        let snapshot = device.get_device_snapshot();
        let bystander: Jid = "0@s.whatsapp.net".parse()?;
        let jid = snapshot.pn.clone().unwrap_or_else(|| bystander.clone());
        let lid = snapshot.lid.clone().unwrap_or(bystander);
        Ok(Self { jid, lid, stack: description, backend, device, cache, signal })
    }

    /// Sets the fields of the device that a successful pairing sets.
    pub(crate) async fn pair(&mut self, jid: &str, lid: &str, push_name: &str, rng: &mut StdRng) -> Result<()> {
        self.jid = jid.parse()?;
        self.lid = lid.parse()?;
        let (pn, lid) = (self.jid.clone(), self.lid.clone());
        let salt = KeyPair::generate(rng).private_key.serialize().to_vec();
        self.device
            .modify_device(|device| {
                device.pn = Some(pn);
                device.lid = Some(lid);
                device.push_name = push_name.to_owned();
                device.nct_salt = Some(salt);
            })
            .await;
        self.device.flush().await?;
        Ok(())
    }

    /// Generates one-time prekeys and returns the bundle that the server would hand out.
    pub(crate) async fn publish_prekeys(&mut self, rng: &mut StdRng, secrets: &mut Secrets) -> Result<PreKeyBundle> {
        let mut rows = Vec::new();
        let mut first = None;
        for id in 1..=30 {
            let keys = KeyPair::generate(rng);
            let mut record = Vec::new();
            encode_pre_key_record_to(id, &keys, &mut record);
            secrets.add("one-time prekeys", keys.private_key.serialize());
            secrets.add("one-time prekeys", keys.public_key.public_key_bytes());
            first.get_or_insert((id.into(), keys.public_key));
            rows.push((id, record.into()));
        }
        self.backend.store_prekeys_batch(&rows, false).await?;
        self.backend.mark_prekeys_uploaded(&(1..=30).collect::<Vec<_>>()).await?;
        let device = self.device.get_device_snapshot();
        Ok(PreKeyBundle::new(
            device.registration_id,
            u32::from(self.jid.device).into(),
            first,
            device.signed_pre_key_id.into(),
            device.signed_pre_key.public_key,
            device.signed_pre_key_signature.to_vec(),
            IdentityKey::new(device.identity_key.public_key),
        )?)
    }

    /// The name of this account's sender key in the group.
    pub(crate) fn sender_key_name(&self) -> SenderKeyName {
        SenderKeyName::from_parts(GROUP, self.jid.to_protocol_address().as_str())
    }

    /// Writes the client's cached Signal state to the store, as the client does before it sends anything.
    async fn flush(&self) -> Result<()> {
        Ok(self.cache.flush(&*self.backend).await?)
    }

    /// App-state keys, the address book, tokens, secrets and messages.
    pub(crate) async fn keep_the_rest(&self, peer: &Jid, secrets: &mut Secrets) -> Result<()> {
        let store = &*self.backend;
        let random = || -> Result<[u8; 32]> {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
            Ok(bytes)
        };
        let (sync_key, hash, tc_token, message_secret) = (random()?, random()?, random()?, random()?);
        let key = AppStateSyncKey { key_data: sync_key.to_vec(), fingerprint: vec![1, 2, 3], timestamp: 1 };
        store.set_sync_key(&[0, 0, 0, 0, 0, 1], key).await?;
        let mut state = HashState { version: 3, ..HashState::default() };
        state.hash[..32].copy_from_slice(&hash);
        store.set_version("regular_high", state).await?;

        let (user, chat) = (peer.user.to_string(), peer.to_non_ad().to_string());
        let lid = format!("1000000{}", &user[4..]);
        let mapping = LidPnMappingEntry {
            lid: lid.clone(),
            phone_number: user.clone(),
            created_at: 1,
            updated_at: 2,
            learning_source: "usync".to_owned(),
        };
        store.put_lid_mapping(&mapping).await?;
        let devices = vec![DeviceInfo::new(0, None), DeviceInfo::new(7, Some(1))];
        let list = DeviceListRecord { user: user.clone(), devices, timestamp: 1, phash: None, raw_id: None };
        store.update_device_lists(vec![list]).await?;
        store.set_sender_key_status(GROUP, &[(&peer.to_string(), true)]).await?;
        store.put_group_metadata(GROUP, format!("participants: {peer}, {}", self.jid).as_bytes()).await?;
        let token = TcTokenEntry { token: tc_token.to_vec(), token_timestamp: 1, sender_timestamp: None };
        store.put_tc_token(&format!("{lid}@lid"), &token).await?;
        let message_id = format!("3EB0{}", user);
        store.store_sent_message(&chat, &message_id, b"\x0a\x1ca sent message kept for retry").await?;
        store.store_pending_inbound(&chat, &chat, &message_id, b"\x0a\x20an inbound message not yet acked").await?;
        let secret = MsgSecretEntry {
            chat: chat.as_str().into(),
            sender: chat.as_str().into(),
            msg_id: message_id.as_str().into(),
            secret: message_secret,
            expires_at: 0,
            message_ts: 0,
        };
        store.put_msg_secrets(vec![secret]).await?;

        secrets.add("app-state keys and hashes", &sync_key);
        secrets.add("app-state keys and hashes", &hash);
        secrets.add("tokens", &tc_token);
        secrets.add("message secrets", &message_secret);
        secrets.add("message ids", message_id.as_bytes());
        secrets.add("messages", b"a sent message kept for retry");
        secrets.add("messages", b"an inbound message not yet acked");
        secrets.add("LIDs", lid.as_bytes());
        Ok(())
    }

    /// Collects everything that the files of this account must not contain.
    pub(crate) async fn collect(&self, peer: &Jid, secrets: &mut Secrets) -> Result<()> {
        let device = self.device.get_device_snapshot();
        for key in [&device.noise_key, &device.identity_key, &device.signed_pre_key] {
            secrets.add("device keys", key.private_key.serialize());
            secrets.add("device keys", key.public_key.public_key_bytes());
        }
        secrets.add("device keys", &device.adv_secret_key);
        secrets.add("device keys", device.nct_salt.as_deref().unwrap_or_default());
        secrets.add("names", device.push_name.as_bytes());
        secrets.add("phone numbers", device.pn.as_ref().map(|jid| jid.user.to_string()).unwrap_or_default().as_bytes());
        secrets.add("LIDs", device.lid.as_ref().map(|jid| jid.user.to_string()).unwrap_or_default().as_bytes());
        for jid in [self.jid.to_string(), peer.to_non_ad().to_string(), GROUP.to_owned(), self.lid.to_string()] {
            secrets.add("JIDs", jid.as_bytes());
        }
        let address = peer.to_protocol_address();
        secrets.add("JIDs", address.as_str().as_bytes());
        let identity = self.backend.load_identity(address.as_str()).await?.ok_or("no identity was stored")?;
        secrets.add("identity keys of peers", &identity);
        self.collect_ratchets(peer, secrets).await
    }

    /// Collects the session and the sender key as they are stored now; both change with every message. They are split
    /// into pieces, because a database may distribute a long value over several pages.
    async fn collect_ratchets(&self, peer: &Jid, secrets: &mut Secrets) -> Result<()> {
        let session = self.backend.get_session(peer.to_protocol_address().as_str()).await?;
        for piece in session.ok_or("no session was stored")?.chunks_exact(32) {
            secrets.add("sessions (32-byte pieces)", piece);
        }
        let alice: Jid = "15550101111:3@s.whatsapp.net".parse()?;
        let name = SenderKeyName::from_parts(GROUP, alice.to_protocol_address().as_str());
        for piece in self.backend.get_sender_key(name.cache_key()).await?.unwrap_or_default().chunks_exact(32) {
            secrets.add("sender keys (32-byte pieces)", piece);
        }
        Ok(())
    }
}

/// Sends texts from one account to the other.
pub(crate) async fn converse(
    from: &mut Account,
    to: &mut Account,
    texts: &[&str],
    rng: &mut StdRng,
    secrets: &mut Secrets,
) -> Result<()> {
    for text in texts {
        let received = deliver(from, to, text.as_bytes(), rng, secrets).await?;
        if received != text.as_bytes() {
            return Err("the message did not arrive as it was sent".into());
        }
        // Clients keep a sent message until the server acknowledges it.
        from.backend.store_sent_message(&to.jid.to_non_ad().to_string(), text, text.as_bytes()).await?;
        secrets.add("messages", text.as_bytes());
    }
    Ok(())
}

/// Encrypts, "sends", and decrypts one message. Both sides store their ratchets.
pub(crate) async fn deliver(
    from: &mut Account,
    to: &mut Account,
    plaintext: &[u8],
    rng: &mut StdRng,
    secrets: &mut Secrets,
) -> Result<Vec<u8>> {
    let (sender, receiver) = (from.jid.to_protocol_address(), to.jid.to_protocol_address());
    let signal = &mut from.signal;
    let message = message_encrypt(plaintext, &receiver, &mut signal.session_store, &mut signal.identity_store).await?;
    from.flush().await?;
    let wire = match &message {
        CiphertextMessage::PreKeySignalMessage(message) => {
            CiphertextMessage::PreKeySignalMessage(message.serialized().try_into()?)
        }
        CiphertextMessage::SignalMessage(message) => CiphertextMessage::SignalMessage(message.serialized().try_into()?),
        _ => return Err("an unexpected kind of message".into()),
    };
    let signal = &mut to.signal;
    let decrypted = message_decrypt(
        &wire,
        &sender,
        &mut signal.session_store,
        &mut signal.identity_store,
        &mut signal.pre_key_store,
        &signal.signed_pre_key_store,
        rng,
        UsePQRatchet::No,
    )
    .await?;
    if let Some(id) = decrypted.consumed_prekey_id {
        signal.pre_key_store.buffer_consumed_prekey(id, &sender).await;
    }
    to.flush().await?;
    from.collect_ratchets(&to.jid, secrets).await?;
    to.collect_ratchets(&from.jid, secrets).await?;
    Ok(decrypted.plaintext)
}

/// Sends a text to the group.
pub(crate) async fn group_message(
    from: &mut Account,
    to: &mut Account,
    text: &str,
    rng: &mut StdRng,
    secrets: &mut Secrets,
) -> Result<()> {
    let group = from.sender_key_name();
    let message = group_encrypt(&mut from.signal.sender_key_store, &group, text.as_bytes(), rng).await?;
    from.flush().await?;
    let received = group_decrypt(message.serialized(), &mut to.signal.sender_key_store, &group).await?;
    to.flush().await?;
    if received != text.as_bytes() {
        return Err("the group message did not arrive as it was sent".into());
    }
    from.backend.store_sent_message(GROUP, text, text.as_bytes()).await?;
    secrets.add("messages", text.as_bytes());
    from.collect_ratchets(&to.jid, secrets).await?;
    to.collect_ratchets(&from.jid, secrets).await
}
