//! A bot that forks continues in two processes with the same memory. They must not choose the same nonces, and only one
//! of them may write.

#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a failure is a failed test")]
#![allow(clippy::print_stdout, reason = "long campaigns print their figures")]

mod preload;

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::executor::block_on;
use wacore::store::InMemoryBackend;
use wacore::store::traits::SignalStore;
use wastore::{Error, Key, Layer, SqliteStore, VaultOptions};

const FOLDER: &str = "WASTORE_FORK_FOLDER";
const ROUNDS: &str = "WASTORE_FORK_ROUNDS";
/// The number of rows in a batch, and of rows sealed one by one, in each round.
const BATCH: u32 = 100;

#[test]
fn a_forked_bot_repeats_no_nonce() {
    let folder = tempfile::tempdir().unwrap();
    let library = preload::compile("fork", folder.path());
    let nonces = folder.path().join("nonces");
    std::fs::create_dir(&nonces).unwrap();
    let rounds: usize = if std::env::var_os("WASTORE_LONG").is_some() { 1000 } else { 50 };
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["seal_in_two_processes", "--exact", "--test-threads=1"])
        .env(FOLDER, &nonces)
        .env(ROUNDS, rounds.to_string())
        .env("LD_PRELOAD", library)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    // One of the two processes may need longer.
    let files = || -> Vec<_> {
        let files = std::fs::read_dir(&nonces).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "done")).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    while files().len() < 2 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(files().len(), 2, "two processes have sealed");
    let mut seen = HashSet::new();
    for file in files() {
        for nonce in std::fs::read(file).unwrap().chunks_exact(24) {
            assert!(seen.insert(<[u8; 24]>::try_from(nonce).unwrap()), "a nonce was chosen twice");
        }
    }
    assert_eq!(seen.len(), 4 * BATCH as usize * rounds);
    println!("{} nonces in two processes, all different", seen.len());
}

/// Runs in its own process, which the test above starts.
#[test]
fn seal_in_two_processes() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let rounds: usize = std::env::var(ROUNDS).unwrap().parse().unwrap();
    let inner = Arc::new(InMemoryBackend::new());
    let vault = block_on(VaultOptions::new().create(inner.clone(), Key::from_bytes(&mut [0x5a; 32]))).unwrap();
    let store = vault.layer().layer(inner.clone());
    // Ensures that every random generator is seeded before the fork.
    block_on(store.put_session("before", b"before")).unwrap();
    let _ = std::os::unix::process::parent_id();

    let mut nonces = vec![];
    for _ in 0..rounds {
        let batch: Vec<_> = (0..BATCH).map(|id| (id, Bytes::from_static(b"prekey"))).collect();
        block_on(store.store_prekeys_batch(&batch, false)).unwrap();
        for id in BATCH..2 * BATCH {
            block_on(store.store_prekey(id, b"prekey", false)).unwrap();
        }
        for id in 0..2 * BATCH {
            let sealed = block_on(inner.load_prekey(id)).unwrap().unwrap();
            nonces.extend_from_slice(&sealed[14..38]);
        }
    }
    let path = std::path::Path::new(&folder).join(std::process::id().to_string());
    std::fs::write(&path, &nonces).unwrap();
    std::fs::rename(&path, path.with_extension("done")).unwrap();
    // The other process has no test harness that waits for it.
    std::process::exit(0);
}

const STORE: &str = "WASTORE_FORK_STORE";

#[test]
fn a_forked_bot_does_not_write_the_account_of_its_parent() {
    let folder = tempfile::tempdir().unwrap();
    let library = preload::compile("fork", folder.path());
    let done = folder.path().join("done");
    std::fs::create_dir(&done).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["write_in_two_processes", "--exact", "--test-threads=1"])
        .env(STORE, folder.path())
        .env("LD_PRELOAD", library)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    let read = || -> Vec<String> {
        let files = std::fs::read_dir(&done).unwrap().map(|entry| entry.unwrap().path());
        files.filter_map(|path| std::fs::read_to_string(path).ok()).filter(|said| said.ends_with('.')).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    while read().len() < 2 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut said = read();
    said.sort();
    let [child, parent] = &said[..] else { panic!("{said:?}") };
    assert_eq!(child, "LeaseLost, LeaseLost.");
    let written = parent.strip_prefix("written by ").and_then(|rest| rest.strip_suffix('.')).unwrap();
    let store = block_on(SqliteStore::open(folder.path().join("wa.db"))).unwrap();
    assert_eq!(block_on(store.get_session("after")).unwrap().unwrap(), written.as_bytes());
}

/// Runs in its own process, which the test above starts.
#[test]
fn write_in_two_processes() {
    let Some(folder) = std::env::var_os(STORE).map(std::path::PathBuf::from) else { return };
    let store = block_on(SqliteStore::open(folder.join("wa.db"))).unwrap();
    block_on(store.put_session("before", b"before")).unwrap();
    let _ = std::os::unix::process::parent_id();

    let process = std::process::id().to_string();
    let lost = |error| match Error::downcast_ref(&error) {
        Some(Error::LeaseLost { account: 1, .. }) => "LeaseLost",
        other => panic!("{other:?}"),
    };
    let said = match block_on(store.put_session("after", process.as_bytes())) {
        Ok(()) => format!("written by {process}."),
        Err(error) => {
            let read = block_on(store.get_session("before")).unwrap_err();
            format!("{}, {}.", lost(error), lost(read))
        }
    };
    std::fs::write(folder.join("done").join(&process), said).unwrap();
    // The other process has no test harness that waits for it, and closing here is not its business.
    std::process::exit(0);
}
