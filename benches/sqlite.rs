//! `SqliteStore` beside upstream's SQLite store and a plain rusqlite loop, in one run, on files of their own.
//!
//! `cargo bench --bench sqlite` prints a table and writes it, with a plot, to `target/bench/`. Every figure is the median of
//! several rounds in which the stores take turns; values change with every write, addresses are shuffled.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a failure is a failed measurement")]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use wacore::store::traits::Backend;
use wastore::{Durability, Key, SqliteConfig, SqliteStore, Stack, VaultOptions};

const SESSION_BYTES: usize = 1500;
const SESSIONS: usize = 2000;
const TASKS: usize = 16;
const BATCH: usize = 64;
const POWER_SAFE: &str = "wastore, power-safe";

/// A store to measure.
#[derive(Clone)]
struct Subject {
    name: &'static str,
    store: Arc<dyn Backend>,
}

fn main() {
    let runtime = if std::env::var_os("XCT").is_some() {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    } else {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let subjects = runtime.block_on(subjects(folder.path()));
    let mut results = Results::default();
    // Cargo adds `--bench`.
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let only = std::env::var("ONLY").unwrap_or_default();
    let subjects: Vec<_> = subjects.into_iter().filter(|s| only.is_empty() || s.name == only).collect();
    for subject in &subjects {
        runtime.block_on(fill(&*subject.store));
    }
    let rounds = if std::env::var_os("WASTORE_LONG").is_some() { 25 } else { 9 };
    for round in 0..rounds {
        if filter.is_none() {
            plain_loop(folder.path(), round, &mut results);
        }
        for (workload, measure) in WORKLOADS.iter().filter(|(name, _)| filter.as_ref().is_none_or(|f| f == name)) {
            for subject in &subjects {
                let (elapsed, operations) = measure(&runtime, subject, round);
                results.add(workload, subject.name, elapsed, operations);
            }
        }
    }
    results.print();
}

async fn subjects(folder: &Path) -> Vec<Subject> {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let upstream = whatsapp_rust_sqlite_storage::SqliteStore::new(&path("upstream.db")).await.unwrap();
    let process = SqliteConfig::new().durability(Durability::Process);
    let own = process.clone().open(path("own.db")).await.unwrap();
    let sealed: Arc<dyn Backend> = Arc::new(process.open(path("encrypted.db")).await.unwrap());
    let vault = VaultOptions::new().create(sealed.clone(), Key::generate().unwrap()).await.unwrap();
    let durable = SqliteStore::open(path("durable.db")).await.unwrap();
    vec![
        Subject { name: "upstream", store: Arc::new(upstream) },
        Subject { name: "wastore", store: Arc::new(own) },
        Subject { name: "wastore, encrypted", store: Stack::new(sealed).layer(vault.layer()).into_backend() },
        Subject { name: POWER_SAFE, store: Arc::new(durable) },
    ]
}

fn address(number: usize) -> String {
    format!("1555{number:07}:7@s.whatsapp.net")
}

fn session(rng: &mut impl Rng) -> Vec<u8> {
    let mut session = vec![0; SESSION_BYTES];
    rng.fill_bytes(&mut session);
    session
}

async fn fill(store: &dyn Backend) {
    let mut rng = StdRng::seed_from_u64(1);
    let rows: Vec<(Arc<str>, Bytes)> =
        (0..SESSIONS).map(|number| (address(number).into(), session(&mut rng).into())).collect();
    store.put_sessions_batch(&rows).await.unwrap();
}

/// What is measured: its name, and how long how many operations took in one round.
const WORKLOADS: [(&str, fn(&Runtime, &Subject, u64) -> (Duration, usize)); 6] = [
    ("get", get),
    ("put", put),
    ("batch of 64, per row", |runtime, subject, round| batches(runtime, subject, groups(round))),
    ("batch of 64 strangers, per row", |runtime, subject, round| batches(runtime, subject, shuffled(round))),
    ("16 tasks, get", |runtime, Subject { store, .. }, round| {
        runtime.block_on(concurrently(shuffled(round), store, |store, addresses| async move {
            for address in addresses {
                assert!(store.get_session(&address).await.unwrap().is_some());
            }
        }))
    }),
    ("16 tasks, put", |runtime, subject, round| {
        let mut addresses = shuffled(round);
        addresses.truncate(subject.writes());
        runtime.block_on(concurrently(addresses, &subject.store, |store, addresses| async move {
            let mut rng: StdRng = rand::make_rng();
            let mut value = session(&mut rng);
            for (number, address) in addresses.into_iter().enumerate() {
                value[..8].copy_from_slice(&number.to_be_bytes());
                store.put_session(&address, &value).await.unwrap();
            }
        }))
    }),
];

impl Subject {
    /// How many single writes fit into a round.
    fn writes(&self) -> usize {
        if self.name == POWER_SAFE { 200 } else { SESSIONS }
    }
}

/// All addresses, in another order every round.
fn shuffled(round: u64) -> Vec<Arc<str>> {
    let mut addresses: Vec<Arc<str>> = (0..SESSIONS).map(|number| address(number).into()).collect();
    addresses.shuffle(&mut StdRng::seed_from_u64(round));
    addresses
}

/// All addresses, those together that were first stored together, as the devices of a group are.
fn groups(round: u64) -> Vec<Arc<str>> {
    let addresses: Vec<Arc<str>> = (0..SESSIONS).map(|number| address(number).into()).collect();
    let mut groups: Vec<_> = addresses.chunks_exact(BATCH).collect();
    groups.shuffle(&mut StdRng::seed_from_u64(round));
    groups.concat()
}

fn get(runtime: &Runtime, Subject { store, .. }: &Subject, round: u64) -> (Duration, usize) {
    let (store, addresses) = (store.clone(), shuffled(round));
    let count = addresses.len();
    let run = async move {
        let mut start = Instant::now();
        // The first pass makes the page cache as warm as that of the plain loop.
        for pass in 0..2 {
            if pass == 1 {
                start = Instant::now();
            }
            for address in &addresses {
                assert!(store.get_session(address).await.unwrap().is_some());
            }
        }
        start.elapsed()
    };
    (runtime.block_on(async { tokio::spawn(run).await.unwrap() }), count)
}

fn put(runtime: &Runtime, subject: &Subject, round: u64) -> (Duration, usize) {
    let (store, mut addresses) = (subject.store.clone(), shuffled(round));
    addresses.truncate(subject.writes());
    let count = addresses.len();
    let mut value = session(&mut StdRng::seed_from_u64(round));
    let run = async move {
        let start = Instant::now();
        for (number, address) in addresses.iter().enumerate() {
            value[..8].copy_from_slice(&number.to_le_bytes());
            store.put_session(address, &value).await.unwrap();
        }
        start.elapsed()
    };
    (runtime.block_on(async { tokio::spawn(run).await.unwrap() }), count)
}

fn batches(runtime: &Runtime, Subject { store, .. }: &Subject, addresses: Vec<Arc<str>>) -> (Duration, usize) {
    let mut rng: StdRng = rand::make_rng();
    let store = store.clone();
    let batches: Vec<Vec<(Arc<str>, Bytes)>> = addresses
        .chunks_exact(BATCH)
        .map(|chunk| chunk.iter().map(|address| (address.clone(), session(&mut rng).into())).collect())
        .collect();
    let rows = batches.len() * BATCH;
    let run = async move {
        let start = Instant::now();
        for batch in &batches {
            store.put_sessions_batch(batch).await.unwrap();
        }
        start.elapsed()
    };
    (runtime.block_on(async { tokio::spawn(run).await.unwrap() }), rows)
}

/// How long [`TASKS`] tasks together take, each with its share of the addresses.
async fn concurrently<F: Future<Output = ()> + Send + 'static>(
    addresses: Vec<Arc<str>>,
    store: &Arc<dyn Backend>,
    task: impl Fn(Arc<dyn Backend>, Vec<Arc<str>>) -> F,
) -> (Duration, usize) {
    let start = Instant::now();
    let shares = addresses.chunks(addresses.len().div_ceil(TASKS));
    let tasks: Vec<_> = shares.map(|share| tokio::spawn(task(store.clone(), share.to_vec()))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    (start.elapsed(), addresses.len())
}

/// What SQLite itself takes, with the same schema and settings, without any trait, lock or copy around it.
fn plain_loop(folder: &Path, round: u64, results: &mut Results) {
    let connection = rusqlite::Connection::open(folder.join("plain.db")).unwrap();
    connection
        .execute_batch(
            "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
             PRAGMA secure_delete = ON; PRAGMA cache_size = -4096;
             CREATE TABLE IF NOT EXISTS sessions
                 (account INTEGER NOT NULL, address TEXT NOT NULL, record BLOB NOT NULL) STRICT;
             CREATE UNIQUE INDEX IF NOT EXISTS sessions_key ON sessions (account, address);",
        )
        .unwrap();
    let mut put = connection
        .prepare(
            "INSERT INTO sessions (account, address, record) VALUES (1, ?1, ?2)
             ON CONFLICT (account, address) DO UPDATE SET record = excluded.record",
        )
        .unwrap();
    let mut get = connection.prepare("SELECT record FROM sessions WHERE account = 1 AND address = ?1").unwrap();
    let mut rng = StdRng::seed_from_u64(round);
    let mut addresses: Vec<String> = (0..SESSIONS).map(address).collect();
    if round == 0 {
        connection.execute_batch("BEGIN").unwrap();
        for address in &addresses {
            put.execute((address, session(&mut rng))).unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
    }
    addresses.shuffle(&mut rng);
    let mut value = session(&mut rng);
    // A first pass fills the page cache, which the stores keep from round to round.
    for pass in 0..2 {
        let start = Instant::now();
        for address in &addresses {
            let found: Vec<u8> = get.query_row([address], |row| row.get(0)).unwrap();
            assert_eq!(found.len(), SESSION_BYTES);
        }
        if pass == 1 {
            results.add("get", "plain rusqlite loop", start.elapsed(), SESSIONS);
        }
    }
    let start = Instant::now();
    for (number, address) in addresses.iter().enumerate() {
        value[..8].copy_from_slice(&number.to_le_bytes());
        put.execute((address, &value)).unwrap();
    }
    results.add("put", "plain rusqlite loop", start.elapsed(), SESSIONS);
}

/// Nanoseconds per operation, by workload and subject.
#[derive(Default)]
struct Results {
    order: Vec<&'static str>,
    rounds: BTreeMap<(&'static str, &'static str), Vec<u64>>,
}

impl Results {
    fn add(&mut self, workload: &'static str, subject: &'static str, elapsed: Duration, operations: usize) {
        if !self.order.contains(&workload) {
            self.order.push(workload);
        }
        let nanos = elapsed.as_nanos() as u64 / operations as u64;
        self.rounds.entry((workload, subject)).or_default().push(nanos);
    }

    fn median(&self, workload: &'static str, subject: &'static str) -> Option<f64> {
        let mut rounds = self.rounds.get(&(workload, subject))?.clone();
        rounds.sort_unstable();
        Some(rounds[rounds.len() / 2] as f64 / 1000.0)
    }

    fn print(&self) {
        for workload in &self.order {
            println!("{workload}");
            let upstream = self.median(workload, "upstream");
            for ((_, subject), _) in self.rounds.iter().filter(|((found, _), _)| found == workload) {
                let median = self.median(workload, subject).unwrap();
                println!("  {subject:<22} {median:>9.2} µs   {:>6.1}x", upstream.unwrap_or(median) / median);
            }
        }
    }
}
