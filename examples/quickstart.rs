//! Two accounts talk over real Signal sessions, with all of their state in encrypted stores. They stop, and continue
//! after a restart. Then the example searches every file they wrote for everything that must not be in it.
//!
//! Run with `cargo run --example quickstart`. It ends with an error if it finds anything.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to a terminal")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::StdRng;
use wacore::appstate::hash::HashState;
use wacore::libsignal::protocol::{
    CiphertextMessage, IdentityKey, KeyPair, PreKeyBundle, SenderKeyDistributionMessage, UsePQRatchet,
    create_sender_key_distribution_message, group_decrypt, group_encrypt, message_decrypt, message_encrypt,
    process_prekey_bundle, process_sender_key_distribution_message,
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

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const GROUP: &str = "120363021033254949@g.us";
const PASSPHRASE: &str = "correct horse battery staple";

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    println!("== encrypted ==");
    let encrypted = run(&folder.path().join("encrypted"), true).await?;
    println!("\n== the same without encryption ==");
    let plain = run(&folder.path().join("plain"), false).await?;

    println!("\nFound in the files, of what was looked for:\n");
    println!("{:<30} {:>10} {:>12} {:>12}", "", "looked for", "encrypted", "unencrypted");
    for (kind, (count, found)) in &encrypted {
        let plain_found = plain.get(kind).map_or(0, |(_, found)| *found);
        println!("{kind:<30} {count:>10} {found:>12} {plain_found:>12}");
    }
    let total = |report: &Report| report.values().fold((0, 0), |sum, (count, found)| (sum.0 + count, sum.1 + found));
    let ((count, found), (_, plain_found)) = (total(&encrypted), total(&plain));
    println!("{:<30} {count:>10} {found:>12} {plain_found:>12}", "total");
    if found > 0 {
        return Err("something was found in the encrypted stores".into());
    }
    if plain_found < count / 2 {
        return Err("the search does not find what is there, so it proves nothing".into());
    }
    Ok(())
}

/// The whole conversation, with a restart in the middle, and the search afterwards.
async fn run(folder: &Path, encrypt: bool) -> Result<Report> {
    std::fs::create_dir(folder)?;
    let mut rng: StdRng = rand::make_rng();
    let mut secrets = Secrets::default();
    let (alice_file, bob_file) = (folder.join("alice.db"), folder.join("bob.db"));

    let mut alice = Account::open(&alice_file, encrypt).await?;
    let mut bob = Account::open(&bob_file, encrypt).await?;
    println!("alice: {}", alice.stack);
    alice.pair("15550101111:3@s.whatsapp.net", "100000011112222:3@lid", "Alice the Operator", &mut rng).await?;
    bob.pair("15550102222:7@s.whatsapp.net", "100000033334444:7@lid", "Bob the Customer", &mut rng).await?;

    // Alice fetches Bob's prekey bundle and starts the session.
    let bundle = bob.publish_prekeys(&mut rng, &mut secrets).await?;
    process_prekey_bundle(
        &bob.jid.to_protocol_address(),
        &mut alice.signal.session_store,
        &mut alice.signal.identity_store,
        &bundle,
        &mut rng,
        UsePQRatchet::No,
    )
    .await?;
    converse(&mut alice, &mut bob, &["Hello Bob, your parcel 4711 is on its way"], &mut rng, &mut secrets).await?;
    converse(&mut bob, &mut alice, &["Thanks Alice, leave it at number 12", "and ring twice"], &mut rng, &mut secrets)
        .await?;

    // A group with sender keys.
    let group = alice.sender_key_name();
    let distribution =
        create_sender_key_distribution_message(&group, &mut alice.signal.sender_key_store, &mut rng).await?;
    let received = deliver(&mut alice, &mut bob, distribution.serialized(), &mut rng, &mut secrets).await?;
    let distribution = SenderKeyDistributionMessage::try_from(&received[..])?;
    process_sender_key_distribution_message(&group, &distribution, &mut bob.signal.sender_key_store).await?;
    group_message(&mut alice, &mut bob, "Warehouse closes at six today", &mut rng, &mut secrets).await?;

    // All other records that a client keeps.
    alice.keep_the_rest(&bob.jid, &mut secrets).await?;
    bob.keep_the_rest(&alice.jid, &mut secrets).await?;

    // Both processes end and start again.
    drop((alice, bob));
    let mut alice = Account::open(&alice_file, encrypt).await?;
    let mut bob = Account::open(&bob_file, encrypt).await?;
    converse(&mut bob, &mut alice, &["Are you still there after the restart?"], &mut rng, &mut secrets).await?;
    converse(&mut alice, &mut bob, &["Certainly, same session"], &mut rng, &mut secrets).await?;
    group_message(&mut alice, &mut bob, "The warehouse is closed now", &mut rng, &mut secrets).await?;
    println!("closed and reopened; the conversations continued");

    if encrypt {
        let store: Arc<dyn Backend> = Arc::new(SqliteStore::open(&alice_file).await?);
        match Vault::open(store, Passphrase::new("incorrect horse")?).await {
            Err(wastore::Error::WrongSecret) => {
                println!("a wrong passphrase is refused: {}", wastore::Error::WrongSecret)
            }
            Err(error) => return Err(error.into()),
            Ok(_) => return Err("a wrong passphrase opened the vault".into()),
        }
    }
    secrets.add("passphrase", PASSPHRASE.as_bytes());
    alice.collect(&bob.jid, &mut secrets).await?;
    bob.collect(&alice.jid, &mut secrets).await?;
    for account in [&alice, &bob] {
        let stanza = format!("<message from='{}'>what went wrong</message>", account.jid);
        secrets.add("snapshot extras", stanza.as_bytes());
        account.backend.snapshot_db("quickstart", Some(stanza.as_bytes())).await?;
    }
    // The stores are still open, so the search finds their WAL and SHM files.
    let report = secrets.search(folder)?;
    drop((alice, bob));
    Ok(report)
}

/// One account: its store, and the client's own Signal adapters over it.
struct Account {
    jid: Jid,
    lid: Jid,
    stack: String,
    backend: Arc<dyn Backend>,
    device: PersistenceManager,
    cache: Arc<SignalStoreCache>,
    signal: SignalProtocolStoreAdapter,
}

impl Account {
    /// Opens the store, encrypted or not, and loads the device as a client does.
    async fn open(file: &Path, encrypt: bool) -> Result<Self> {
        let store = Arc::new(SqliteStore::open(file).await?);
        let mut stack = Stack::new(store.clone());
        if encrypt {
            let vault = Vault::open_or_create(store, Passphrase::new(PASSPHRASE)?).await?;
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
    async fn pair(&mut self, jid: &str, lid: &str, push_name: &str, rng: &mut StdRng) -> Result<()> {
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
    async fn publish_prekeys(&mut self, rng: &mut StdRng, secrets: &mut Secrets) -> Result<PreKeyBundle> {
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
    fn sender_key_name(&self) -> SenderKeyName {
        SenderKeyName::from_parts(GROUP, self.jid.to_protocol_address().as_str())
    }

    /// Writes the client's cached Signal state to the store, as the client does before it sends anything.
    async fn flush(&self) -> Result<()> {
        Ok(self.cache.flush(&*self.backend).await?)
    }

    /// App-state keys, the address book, tokens, secrets and messages.
    async fn keep_the_rest(&self, peer: &Jid, secrets: &mut Secrets) -> Result<()> {
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
    async fn collect(&self, peer: &Jid, secrets: &mut Secrets) -> Result<()> {
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
async fn converse(
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
async fn deliver(
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
async fn group_message(
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

/// By kind: the number of searched values, and the number of values found.
type Report = BTreeMap<&'static str, (usize, usize)>;

/// Everything to search for, by kind.
#[derive(Default)]
struct Secrets(Vec<(&'static str, Vec<u8>)>);

impl Secrets {
    fn add(&mut self, kind: &'static str, secret: &[u8]) {
        if !secret.is_empty() && !self.0.iter().any(|(known, bytes)| (*known, &bytes[..]) == (kind, secret)) {
            self.0.push((kind, secret.to_vec()));
        }
    }

    /// Searches the raw bytes of every file in the folder: databases, WAL and SHM.
    fn search(&self, folder: &Path) -> Result<Report> {
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            files.push(entry?.path());
        }
        files.sort();
        let mut contents = Vec::new();
        for file in &files {
            let content = std::fs::read(file)?;
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            println!("searching {:>8} bytes of {name}", content.len());
            contents.push(content);
        }
        let mut report = Report::new();
        for (kind, secret) in &self.0 {
            // As raw bytes and as JSON, because the store keeps the device as JSON.
            let json = secret.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
            let found = contents.iter().any(|content| {
                memchr::memmem::find(content, secret).is_some()
                    || memchr::memmem::find(content, json.as_bytes()).is_some()
            });
            let (count, findings) = report.entry(kind).or_default();
            *count += 1;
            *findings += usize::from(found);
        }
        Ok(report)
    }
}
