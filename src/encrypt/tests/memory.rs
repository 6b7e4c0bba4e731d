//! No secret stays in memory after a vault is gone.

#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "the child process reports to the test that started it")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;

use wacore::store::traits::{AppStateSyncKey, Backend};
use zeroize::Zeroize;

use super::options;
use crate::encrypt::format::kind::Kind;
use crate::encrypt::vault::key_wrap::{data_key_aad, lookup_key_aad, unwrap};

use crate::maintenance::Rotate;
use crate::testing::canaries;
use crate::vault::Revocation;
use crate::{Layer, Passphrase, Secret, SqliteStore, Vault};

/// A secret to look for. This process keeps no copy itself: every byte is masked.
pub(super) struct Needle {
    name: String,
    masked: Vec<u8>,
}

const MASK: u8 = 0xa5;

impl Needle {
    pub(super) fn new(name: impl Into<String>, secret: &[u8]) -> Self {
        Self { name: name.into(), masked: secret.iter().map(|byte| byte ^ MASK).collect() }
    }

    fn is_at(&self, memory: &[u8]) -> bool {
        memory.len() >= self.masked.len() && self.masked.iter().zip(memory).all(|(masked, byte)| masked ^ MASK == *byte)
    }
}

/// Every key of a vault.
pub(super) fn keys(vault: &Vault) -> Vec<Needle> {
    let state = vault.shared().state();
    let (header, root) = (&state.header, &state.vault_keys);
    let store_id = &header.store_id;
    let mut needles = vec![Needle::new("vault key", root.vault_key.0.expose())];
    let wrap = root.vault_key.key_wrap(store_id);
    needles.push(Needle::new("key-wrapping key", &*wrap));
    for key in &header.data_keys {
        let data_key = unwrap(&wrap, &key.wrapped, &data_key_aad(store_id, key.epoch)).unwrap();
        needles.push(Needle::new(format!("data key {}", key.epoch), data_key.expose()));
        let keys = state.cipher.ring.epoch(key.epoch).unwrap();
        for kind in Kind::ALL {
            needles.push(Needle::new(format!("key of kind {kind:?}, epoch {}", key.epoch), keys.record(*kind)));
        }
    }
    let lookup_key = unwrap(&wrap, &header.lookup_key, &lookup_key_aad(store_id)).unwrap();
    needles.push(Needle::new("lookup key", lookup_key.expose()));
    needles.push(Needle::new("SIV key", &state.cipher.ring.lookup.siv));
    needles
}

/// Looks for the needles in all memory that this process can read of itself.
pub(super) fn find(needles: &[Needle]) -> Vec<(String, String)> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    let mut found = vec![];
    let mut by_first_byte = vec![vec![]; 256];
    for needle in needles {
        by_first_byte[usize::from(needle.masked[0] ^ MASK)].push(needle);
    }
    // A buffer that does not move, so that the search does not find its own bytes.
    let mut buffer = vec![0; 1 << 20];
    let itself = buffer.as_ptr() as u64;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw"))) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        let (mut at, end) = (address(start), address(end));
        while at < end {
            let length = (end - at).min(buffer.len() as u64) as usize;
            let Ok(read) = memory.read_at(&mut buffer[..length], at) else { break };
            for offset in 0..read {
                let place = at + offset as u64;
                for needle in &by_first_byte[usize::from(buffer[offset])] {
                    let is_own = (itself..itself + (1 << 20)).contains(&place);
                    if !is_own && needle.is_at(&buffer[offset..read]) {
                        found.push((needle.name.clone(), line.split(' ').next_back().unwrap().to_owned()));
                    }
                }
            }
            // With an overlap, for needles across the boundary.
            at += if read as u64 == end - at { read as u64 } else { (read as u64).saturating_sub(128).max(1) };
        }
    }
    buffer.zeroize();
    found
}

fn random_passphrase(needles: &mut Vec<Needle>) -> Secret {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).unwrap();
    let mut text = String::with_capacity(24);
    text.extend(bytes.iter().map(|byte| char::from(b'a' + byte % 26)));
    bytes.zeroize();
    needles.push(Needle::new("passphrase", text.as_bytes()));
    Passphrase::new(text).unwrap().into()
}

/// A key that is stored and read. It is so long that later allocations do not overwrite all remains of it. Its parts
/// are longer than the registers that the dynamic loader saves on the stack.
async fn sync_key(store: &dyn Backend, needles: &mut Vec<Needle>) {
    let mut key_data = vec![0; 60_000];
    getrandom::fill(&mut key_data).unwrap();
    needles.extend(key_data.chunks(1000).map(|part| Needle::new("part of a sync key", &part[..200])));
    store.set_sync_key(b"id", AppStateSyncKey { key_data, fingerprint: vec![1], timestamp: 2 }).await.unwrap();
    store.get_sync_key(b"id").await.unwrap().unwrap().key_data.zeroize();
}

/// Runs in the child process.
#[test]
fn live_and_let_go() {
    if std::env::var_os("WASTORE_MEMORY").is_none() {
        return;
    }
    let mut needles = vec![];
    let mut here = 0;
    futures::executor::block_on(async {
        let store = Arc::new(SqliteStore::in_memory().await.unwrap());
        let inner: Arc<dyn Backend> = store.clone();
        let first = random_passphrase(&mut needles);
        let vault = options().create(inner.clone(), first.duplicate()).await.unwrap();
        let layered = crate::CacheLayer::new(1 << 20).layer(vault.layer().layer(inner.clone()));
        canaries::fill(&*layered).await;
        layered.get_session(canaries::SESSION_ADDRESS).await.unwrap();
        needles.extend(keys(&vault));
        // They are in memory as long as the vault lives.
        here = find(&needles[1..3]).len();
        Rotate::new().run(&store, &vault).await.unwrap();
        needles.extend(keys(&vault));
        let wrong = random_passphrase(&mut needles);
        options().open(inner.clone(), wrong).await.unwrap_err();
        let second = random_passphrase(&mut needles);
        vault.revoke(&Revocation::prepare(&vault, second.duplicate()).await.unwrap()).await.unwrap();
        needles.extend(keys(&vault));
        drop(options().open(inner.clone(), second).await.unwrap());
        sync_key(&*vault.layer().layer(inner.clone()), &mut needles).await;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = (first, vault, layered);
            std::panic::resume_unwind(Box::new(()));
        }));
        panicked.unwrap_err();
    });
    let found = find(&needles);
    println!("needles: {}, found while the vault lived: {here}, afterwards: {found:?}", needles.len());
    assert!(here > 0);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn no_key_and_no_passphrase_stays_in_memory() {
    runs_without_remains(&mut child("memory::live_and_let_go"));
}

/// The command that runs a test in a process of its own.
pub(super) fn child(test: &str) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([&format!("encrypt::tests::{test}"), "--exact", "--nocapture", "--test-threads=1"]);
    child.env("WASTORE_MEMORY", "1");
    child
}

pub(super) fn runs_without_remains(child: &mut Command) {
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("afterwards: []"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
