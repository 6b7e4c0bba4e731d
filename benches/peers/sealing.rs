//! The limits: sealing and blinding alone, bare ciphers, and SQLite in the calling thread without a layer around it.

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use futures::executor::block_on;
use matrix_sdk_store_encryption::StoreCipher;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use wacore::store::InMemoryBackend;
use wacore::store::traits::SignalStore;
use wastore::{Key, Layer, VaultOptions};

use crate::report::Report;
use crate::workloads::{Measure, Measured, address};
use crate::{FASTEST_CIPHER, OWN_CIPHER};

/// The library's own cipher, which is private.
#[path = "../../src/encrypt/format/aead.rs"]
#[allow(dead_code, unused_imports, reason = "only sealing is measured")]
mod aead;

const SIZES: [usize; 3] = [100, 1500, 8000];
const ADDRESS: &str = "15550001111:7@s.whatsapp.net";
const REPEAT: u32 = 2000;
const ROUNDS: usize = 21;

/// An operation on a value of this size.
type Work = Box<dyn FnMut()>;

fn works(size: usize) -> Vec<(&'static str, Work)> {
    let value = vec![7u8; size];
    let key = || Key::from_bytes(&mut [0x5a; 32]);
    let memory = Arc::new(InMemoryBackend::new());
    let vault = block_on(VaultOptions::new().create(memory.clone(), key())).unwrap();
    let sealed = vault.layer().layer(memory);
    block_on(sealed.put_session(ADDRESS, &value)).unwrap();
    let plain = Arc::new(InMemoryBackend::new());
    let cipher = Arc::new(StoreCipher::new().unwrap());
    let mut works: Vec<(&'static str, Work)> = vec![];
    let (store, bytes) = (sealed.clone(), value.clone());
    works.push((
        "wastore: blind, seal and put",
        Box::new(move || block_on(store.put_session(ADDRESS, &bytes)).unwrap()),
    ));
    works.push((
        "wastore: blind, get and open",
        Box::new(move || drop(black_box(block_on(sealed.get_session(ADDRESS)).unwrap()))),
    ));
    let bytes = value.clone();
    works.push(("memory: put", Box::new(move || block_on(plain.put_session(ADDRESS, &bytes)).unwrap())));
    let (one, bytes) = (cipher.clone(), value.clone());
    works.push((
        "matrix-sdk-store-encryption: blind and seal",
        Box::new(move || {
            black_box(one.hash_key("sessions", ADDRESS.as_bytes()));
            black_box(one.encrypt_value_data(bytes.clone()).unwrap());
        }),
    ));
    let bytes = value.clone();
    works.push((
        "matrix-sdk-store-encryption: the same, and open",
        Box::new(move || {
            black_box(cipher.hash_key("sessions", ADDRESS.as_bytes()));
            let sealed = cipher.encrypt_value_data(bytes.clone()).unwrap();
            black_box(cipher.decrypt_value_data(sealed).unwrap());
        }),
    ));
    let mut buffer = value.clone();
    let mut nonce = [0u8; 24];
    works.push((
        "chacha20poly1305: XChaCha20-Poly1305",
        Box::new(move || {
            nonce[0] = nonce[0].wrapping_add(1);
            let cipher = XChaCha20Poly1305::new(&[7; 32].into());
            black_box(cipher.encrypt_inout_detached(&nonce.into(), &[1; 64], buffer.as_mut_slice().into()).unwrap());
        }),
    ));
    let mut buffer = value;
    let ring = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).unwrap());
    works.push((
        FASTEST_CIPHER,
        Box::new(move || {
            let nonce = Nonce::assume_unique_for_key([3; 12]);
            let _ = black_box(ring.seal_in_place_separate_tag(nonce, Aad::from([1; 64]), &mut buffer).unwrap());
        }),
    ));
    let mut buffer = vec![7u8; size];
    works.push((
        OWN_CIPHER,
        Box::new(move || {
            black_box(aead::seal(&[7; 32], &[3; 24], &[1; 64], &mut buffer));
        }),
    ));
    works
}

/// Prints all times in nanoseconds, as lines of size, time and name.
pub(crate) fn print() {
    for size in SIZES {
        for (name, nanos) in measured(size) {
            println!("{size} {nanos} {name}");
        }
    }
}

fn measured(size: usize) -> Vec<(&'static str, f64)> {
    let mut works = works(size);
    let mut times = vec![vec![]; works.len()];
    for round in 0..ROUNDS {
        for turn in 0..works.len() {
            let at = (turn + round) % works.len();
            let start = Instant::now();
            (0..REPEAT).for_each(|_| works[at].1());
            times[at].push(start.elapsed().as_nanos() as f64 / f64::from(REPEAT));
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    works.iter().zip(&mut times).map(|((name, _), times)| (*name, median(times))).collect()
}

/// Measures this build and the one without ring.
pub(crate) fn compare(rustcrypto: Option<&Path>, report: &mut Report) {
    eprint!("\r{:<60}", "sealing alone");
    for size in SIZES {
        for (name, nanos) in measured(size) {
            report.sealing(size, name, nanos / 1e3);
        }
    }
    let Some(rustcrypto) = rustcrypto else { return };
    let output = Command::new(rustcrypto).env("WASTORE_PEER", "seal").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut words = line.splitn(3, ' ');
        if let (Some(size), Some(nanos), Some(name)) = (words.next(), words.next(), words.next())
            && name.starts_with("wastore")
        {
            let name = format!("{name}, with RustCrypto's cipher");
            report.sealing(size.parse().unwrap(), &name, nanos.parse::<f64>().unwrap() / 1e3);
        }
    }
}

/// A connection with the settings of this crate's store.
fn connection(path: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size = 8192; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;
             PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON; PRAGMA cache_size = -4096;
             CREATE TABLE IF NOT EXISTS sessions
                 (account INTEGER NOT NULL, address TEXT NOT NULL, record BLOB NOT NULL) STRICT;
             CREATE UNIQUE INDEX IF NOT EXISTS sessions_key ON sessions (account, address);",
        )
        .unwrap();
    connection
}

const PUT: &str = "INSERT INTO sessions (account, address, record) VALUES (1, ?1, ?2)
     ON CONFLICT (account, address) DO UPDATE SET record = excluded.record";

pub(crate) fn fill_loop(path: &Path, rows: usize, bytes: usize) -> rusqlite::Connection {
    let connection = connection(path);
    connection.execute_batch("BEGIN").unwrap();
    let mut put = connection.prepare(PUT).unwrap();
    for number in 0..rows {
        put.execute((address(number), vec![7; bytes])).unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
    drop(put);
    connection
}

/// The time of a loop around SQLite; `None` for measures that it does not support.
pub(crate) fn plain_loop(
    connection: &rusqlite::Connection,
    rows: usize,
    bytes: usize,
    measure: Measure,
    round: u64,
) -> Option<Measured> {
    let mut rng = StdRng::seed_from_u64(round);
    let mut addresses: Vec<Arc<str>> = (0..rows).map(address).collect();
    let mut value = vec![0; bytes];
    rng.fill_bytes(&mut value);
    match measure {
        Measure::Get { tasks: 1 } => {
            let mut get = connection.prepare("SELECT record FROM sessions WHERE account = 1 AND address = ?1").unwrap();
            let mut elapsed = Duration::ZERO;
            // The first pass warms its cache, because those of the others are warm.
            for _ in 0..2 {
                addresses.shuffle(&mut rng);
                let start = Instant::now();
                for address in &addresses {
                    let found: Vec<u8> = get.query_row([address], |row| row.get(0)).unwrap();
                    assert_eq!(found.len(), bytes);
                }
                elapsed = start.elapsed();
            }
            Some((elapsed, rows as u64))
        }
        Measure::Put { tasks: 1 } => {
            addresses.shuffle(&mut rng);
            addresses.truncate(1024);
            let mut put = connection.prepare(PUT).unwrap();
            let start = Instant::now();
            for (number, address) in addresses.iter().enumerate() {
                value[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
                put.execute((address, &value)).unwrap();
            }
            Some((start.elapsed(), addresses.len() as u64))
        }
        Measure::Batch(size) => {
            let mut put = connection.prepare(PUT).unwrap();
            let mut groups: Vec<_> = addresses.chunks_exact(size).collect();
            groups.shuffle(&mut rng);
            groups.truncate(16);
            let start = Instant::now();
            for group in &groups {
                connection.execute_batch("BEGIN").unwrap();
                for address in *group {
                    rng.fill_bytes(&mut value[..8]);
                    put.execute((address, &value)).unwrap();
                }
                connection.execute_batch("COMMIT").unwrap();
            }
            Some((start.elapsed(), (groups.len() * size) as u64))
        }
        _ => None,
    }
}
