//! Measurements of `SqliteStore` that `benches/peers` lacks: batches of rows that were not stored together, the
//! memory of idle accounts, and the lateness of timers under a full write load.
//!
//! `cargo bench --bench sqlite` prints them. Times of batches are the median of several rounds, in which the stores
//! take turns.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a failure is a failed measurement")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::executor::block_on;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use wacore::store::traits::{Backend, SignalStore};
use wastore::{Durability, Key, SqliteOptions, SqliteStore, Stack, VaultOptions};

const SESSION_BYTES: usize = 1500;
const SESSIONS: usize = 2000;
const TASKS: usize = 16;
const BATCH: usize = 64;
const UPSTREAM: &str = "upstream";
const PLAIN: &str = "wastore";
/// With the default durability. The others commit like upstream's store.
const POWER_SAFE: &str = "wastore, power-safe";

fn main() {
    let folder = tempfile::tempdir().unwrap();
    batches_of_strangers(folder.path());
    memory_of_accounts(folder.path());
    timer_stalls(folder.path());
}

fn address(number: usize) -> Arc<str> {
    format!("1555{number:07}:7@s.whatsapp.net").into()
}

async fn upstream(folder: &Path, name: &str) -> Arc<dyn Backend> {
    let path = folder.join(name).to_str().unwrap().to_owned();
    Arc::new(whatsapp_rust_sqlite_storage::SqliteStore::new(&path).await.unwrap())
}

async fn own(folder: &Path, name: &str, durability: Durability) -> Arc<dyn Backend> {
    Arc::new(SqliteOptions::new().durability(durability).open(folder.join(name)).await.unwrap())
}

/// The time per row of a batch whose rows were not stored together.
fn batches_of_strangers(folder: &Path) {
    let rounds = if std::env::var_os("WASTORE_LONG").is_some() { 25 } else { 9 };
    let mut rng = StdRng::seed_from_u64(1);
    let mut rows: Vec<(Arc<str>, Bytes)> =
        (0..SESSIONS).map(|number| (address(number), Bytes::from(vec![0; SESSION_BYTES]))).collect();
    println!("batch of {BATCH} strangers, µs per row, median");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let sealed = own(folder, "encrypted.db", Durability::Process).await;
        let vault = VaultOptions::new().create(sealed.clone(), Key::generate().unwrap()).await.unwrap();
        let mut stores = [
            (UPSTREAM, upstream(folder, "upstream.db").await, vec![]),
            (PLAIN, own(folder, "plain.db", Durability::Process).await, vec![]),
            ("wastore, encrypted", Stack::new(sealed).layer(vault.layer()).into_backend(), vec![]),
            (POWER_SAFE, own(folder, "durable.db", Durability::default()).await, vec![]),
        ];
        for (_, store, _) in &stores {
            store.put_sessions_batch(&rows).await.unwrap();
        }
        for _ in 0..rounds {
            rows.shuffle(&mut rng);
            for (_, session) in &mut rows {
                let mut value = vec![0; SESSION_BYTES];
                rng.fill_bytes(&mut value);
                *session = value.into();
            }
            for (_, store, micros) in &mut stores {
                let start = Instant::now();
                for batch in rows.chunks(BATCH) {
                    store.put_sessions_batch(batch).await.unwrap();
                }
                micros.push(start.elapsed().as_secs_f64() * 1e6 / SESSIONS as f64);
            }
        }
        for (name, _, micros) in &mut stores {
            micros.sort_by(f64::total_cmp);
            println!("  {name:<28} {:>6.2}", micros[micros.len() / 2]);
        }
    });
}

/// The growth of the process for each account that was used once and is now idle.
fn memory_of_accounts(folder: &Path) {
    const ACCOUNTS: i32 = 2000;
    let Some(_) = resident_bytes() else { return };
    block_on(async {
        let process = SqliteOptions::new().durability(Durability::Process);
        let first = process.open(folder.join("accounts.db")).await.unwrap();
        let work = async |store: &SqliteStore| {
            store.put_session("a", &[1; SESSION_BYTES]).await.unwrap();
            store.get_session("a").await.unwrap();
        };
        // Fills the page cache first, because all accounts share it.
        for number in 0..ACCOUNTS {
            work(&first.account(-number)).await;
        }
        let before = resident_bytes().unwrap();
        let mut accounts = Vec::new();
        for number in 1..=ACCOUNTS {
            let account: Arc<dyn Backend> = Arc::new(first.account(number));
            work(&first.account(number)).await;
            accounts.push(account);
        }
        let grown = resident_bytes().unwrap().saturating_sub(before);
        println!("memory per idle account: {} bytes (under 65536)\n", grown / ACCOUNTS as u64);
    });
}

/// Only on Linux.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// The lateness of a timer of 1 ms on the only thread of a runtime, while 16 tasks write all the time.
fn timer_stalls(folder: &Path) {
    const TIME: Duration = Duration::from_secs(3);
    println!("lateness of a 1 ms timer beside 16 writing tasks, one thread; median, 99 %, worst, ms");
    const BATCHES: &str = "wastore, batches of 64";
    for name in ["nothing", "fsync on a blocking thread", UPSTREAM, PLAIN, BATCHES, POWER_SAFE] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut late = runtime.block_on(async {
            let stop = Arc::new(AtomicBool::new(false));
            let store = match name {
                PLAIN | BATCHES => Some(own(folder, name, Durability::Process).await),
                POWER_SAFE => Some(own(folder, "timer safe.db", Durability::default()).await),
                UPSTREAM => Some(upstream(folder, "timer upstream.db").await),
                _ => None,
            };
            let load = (0..if name == "nothing" { 0 } else { TASKS }).map(|task| {
                let (store, stop, file) = (store.clone(), stop.clone(), folder.join(format!("fsync {task}")));
                tokio::spawn(async move {
                    let value = [7; SESSION_BYTES];
                    let row = |number| (address(task * 1000 + number), Bytes::from_owner(value));
                    let batch: Vec<(Arc<str>, Bytes)> = (0..BATCH).map(row).collect();
                    for number in 0.. {
                        match &store {
                            _ if stop.load(Ordering::Relaxed) => return,
                            Some(store) if name == BATCHES => store.put_sessions_batch(&batch).await.unwrap(),
                            Some(store) => {
                                store.put_session(&address(task * 1000 + number % 100), &value).await.unwrap()
                            }
                            None => {
                                let file = file.clone();
                                let sync = move || {
                                    let mut file = std::fs::File::create(file).unwrap();
                                    std::io::Write::write_all(&mut file, &value).unwrap();
                                    file.sync_all().unwrap();
                                };
                                tokio::task::spawn_blocking(sync).await.unwrap();
                            }
                        }
                    }
                })
            });
            let load: Vec<_> = load.collect();
            let mut late = Vec::new();
            let start = Instant::now();
            while start.elapsed() < TIME {
                let before = Instant::now();
                tokio::time::sleep(Duration::from_millis(1)).await;
                late.push(before.elapsed().saturating_sub(Duration::from_millis(1)).as_secs_f64() * 1000.0);
            }
            stop.store(true, Ordering::Relaxed);
            for task in load {
                task.await.unwrap();
            }
            late
        });
        late.sort_by(f64::total_cmp);
        let at = |part: f64| late[((late.len() - 1) as f64 * part) as usize];
        println!("  {name:<28} {:>6.2} {:>6.2} {:>6.2}", at(0.5), at(0.99), at(1.0));
    }
}
