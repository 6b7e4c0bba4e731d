//! How many accounts one process and one PostgreSQL server carry.
//!
//! `cargo bench --bench scale --features postgres` starts a server of its own on a disk, opens more and more accounts in
//! one process, and plays the calls that whatsapp-rust makes for warm messages: each account sends or receives one a
//! second on average, at random moments. It ends at the number of accounts at which a durable write of one in a
//! hundred takes longer than 50 ms, or messages come late. It prints a table, and writes it to
//! `benches/results/scale.md` with a picture. `WASTORE_LONG=1` plays each step three times as long. With an argument, the
//! process has so many writing lanes, and the table is only printed.

#![cfg(unix)]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a failure is a failed measurement"
)]

mod machine;
mod report;
#[path = "../../tests/postgres/server.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;
use wacore::store::traits::{Backend, MsgSecretEntry, TcTokenEntry};
use wastore::{Key, Layer, PostgresOptions, PostgresStore, VaultOptions};

use machine::{Usage, load};
use report::{Idle, Step};
use server::Server;

const STEPS: [usize; 7] = [125, 250, 500, 1000, 2000, 4000, 8000];
/// The time between two messages of an account, on average.
const PAUSE: Duration = Duration::from_secs(1);
/// The goals.
const DURABLE_P99: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_millis(250);

/// The records of an account before it is played.
const CONTACTS: usize = 40;
const PREKEYS: u32 = 100;
const SESSION_BYTES: usize = 1500;

fn main() {
    // `cargo test` also runs benchmarks.
    if std::env::args().any(|argument| argument == "--test") || !server::available() {
        return;
    }
    let lanes = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let seconds = if std::env::var_os("WASTORE_LONG").is_some() { 60 } else { 20 };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = Server::with_settings(&[
        ("shared_buffers", "1GB"),
        ("max_wal_size", "8GB"),
        ("checkpoint_timeout", "15min"),
        ("fsync", "on"),
    ]);
    let memory_before = machine::resident();
    let mut world = World::new(&runtime, &server, lanes.unwrap_or(1));
    let (mut steps, mut idle) = (vec![], None);
    for accounts in STEPS {
        world.grow(accounts);
        if idle.is_none() {
            idle = Some(world.rest());
        }
        let memory = machine::resident().saturating_sub(memory_before) / accounts as u64;
        let step = world.play(accounts, Duration::from_secs(seconds), memory);
        eprintln!("{accounts} accounts: {:.0} messages a second, p99 {:.1} ms", step.messages, step.durable[1]);
        let holds = step.holds(DURABLE_P99, LATE);
        steps.push(step);
        if !holds {
            break;
        }
    }
    let idle = idle.unwrap();
    report::print(&steps, &idle);
    if lanes.is_none() {
        report::write(&steps, &idle, seconds);
    }
}

/// The server, and the accounts that are open.
struct World<'a> {
    runtime: &'a Runtime,
    server: &'a Server,
    store: PostgresStore,
    accounts: Vec<Arc<dyn Backend>>,
    handles: Vec<PostgresStore>,
}

impl<'a> World<'a> {
    fn new(runtime: &'a Runtime, server: &'a Server, lanes: usize) -> Self {
        let options = PostgresOptions::new(&server.url()).unwrap().deadline(Duration::from_secs(60)).lanes(lanes);
        let store = runtime.block_on(options.open_without_lease(0)).unwrap();
        Self { runtime, server, store, accounts: vec![], handles: vec![] }
    }

    /// Opens accounts with a vault each, and fills them.
    fn grow(&mut self, count: usize) {
        let begun = Instant::now();
        let (store, first) = (self.store.clone(), self.accounts.len());
        let opened = self.runtime.block_on(self.runtime.spawn(async move {
            let mut opening = FuturesUnordered::new();
            let mut opened = vec![];
            for number in first..count {
                let store = store.clone();
                opening.push(tokio::spawn(async move { account(&store, number).await }));
                while opening.len() >= 32 {
                    opened.push(opening.next().await.unwrap().unwrap());
                }
                if number % 100 == 0 {
                    eprint!("\r{:<60}", format!("opening account {number} of {count}"));
                }
            }
            while let Some(account) = opening.next().await {
                opened.push(account.unwrap());
            }
            opened
        }));
        for (handle, layered) in opened.unwrap() {
            self.handles.push(handle);
            self.accounts.push(layered);
        }
        eprintln!("\r{:<60}", format!("{count} accounts are open, {:.1} s", begun.elapsed().as_secs_f64()));
        self.server.psql("CHECKPOINT");
    }

    /// Measures accounts that do nothing.
    fn rest(&self) -> Idle {
        const TIME: Duration = Duration::from_secs(15);
        let (wal, begin) = (self.wal(), self.store.stats());
        std::thread::sleep(TIME);
        let seconds = TIME.as_secs_f64();
        Idle {
            accounts: self.accounts.len(),
            renewals: self.store.stats().since(&begin).renewals as f64 / seconds,
            wal: (self.wal() - wal) as f64 / seconds,
        }
    }

    fn wal(&self) -> u64 {
        self.server.psql("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").parse().unwrap()
    }

    /// Plays all accounts for a while.
    fn play(&self, accounts: usize, time: Duration, memory: u64) -> Step {
        let latencies = Arc::new(Latencies::default());
        let (wal, stats, usage) = (self.wal(), self.store.stats(), Usage::now(self.server));
        let begun = Instant::now();
        let playing: Vec<_> = self
            .accounts
            .iter()
            .enumerate()
            .map(|(number, store)| {
                let (store, latencies) = (store.clone(), latencies.clone());
                self.runtime.spawn(async move { play(number, &*store, begun, time, &latencies).await })
            })
            .collect();
        self.runtime.block_on(async {
            for playing in playing {
                playing.await.unwrap();
            }
        });
        let seconds = begun.elapsed().as_secs_f64();
        let messages = latencies.messages.load(Ordering::Relaxed);
        let (stats, usage) = (self.store.stats().since(&stats), Usage::now(self.server).since(&usage));
        let size = self.server.psql(
            "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c
            JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'wastore' AND c.relkind = 'r'",
        );
        let connections =
            self.server.psql("SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend'");
        Step {
            accounts,
            messages: messages as f64 / seconds,
            durable: latencies.durable.percentiles(),
            relaxed: latencies.relaxed.percentiles(),
            late: latencies.late.percentiles()[1],
            statements: (stats.statements + stats.reads) as f64 / messages as f64,
            transactions: stats.groups as f64 / messages as f64,
            calls_per_group: stats.calls_per_group().unwrap_or(0.0),
            wal: (self.wal() - wal) as f64 / messages as f64,
            disk: size.parse::<u64>().unwrap() / accounts as u64,
            memory,
            connections: connections.parse().unwrap(),
            server_cores: usage.server / seconds,
            process_cores: usage.own / seconds,
            load: load(),
        }
    }
}

/// Opens an account, makes its vault, and stores what an account has.
async fn account(store: &PostgresStore, number: usize) -> (PostgresStore, Arc<dyn Backend>) {
    let handle = store.account(i32::try_from(number).unwrap() + 1).await.unwrap();
    let mut key = [7; 32];
    key[..8].copy_from_slice(&(number as u64).to_le_bytes());
    let vault = VaultOptions::new().create(&handle, Key::from_bytes(&mut key)).await.unwrap();
    let layered = vault.layer().layer(Arc::new(handle.clone()));
    let sessions: Vec<_> =
        (0..CONTACTS).map(|contact| (address(contact).into(), vec![contact as u8; SESSION_BYTES].into())).collect();
    layered.put_sessions_batch(&sessions).await.unwrap();
    let prekeys: Vec<_> = (0..PREKEYS).map(|id| (id, vec![id as u8; 70].into())).collect();
    layered.store_prekeys_batch(&prekeys, true).await.unwrap();
    for contact in 0..CONTACTS {
        let token = TcTokenEntry { token: vec![contact as u8; 40], token_timestamp: 1, sender_timestamp: None };
        layered.put_tc_token(&jid(contact), &token).await.unwrap();
    }
    (handle, layered)
}

fn jid(contact: usize) -> String {
    format!("{}@lid", 100_000_000_000_000 + contact)
}

fn address(contact: usize) -> String {
    format!("{}:1@lid", 100_000_000_000_000 + contact)
}

/// The times of calls, in µs.
#[derive(Default)]
struct Times(std::sync::Mutex<Vec<f32>>);

impl Times {
    fn add(&self, time: Duration) {
        self.0.lock().unwrap().push(time.as_secs_f32() * 1000.0);
    }

    /// The median, the 99th and the 99.9th percentile, in ms.
    fn percentiles(&self) -> [f64; 3] {
        let mut times = self.0.lock().unwrap().clone();
        times.sort_by(f32::total_cmp);
        let at = |part: f64| times.get(((times.len() as f64 * part) as usize).min(times.len().max(1) - 1));
        [0.5, 0.99, 0.999].map(|part| f64::from(at(part).copied().unwrap_or(0.0)))
    }
}

#[derive(Default)]
struct Latencies {
    messages: AtomicU64,
    durable: Times,
    relaxed: Times,
    /// How much later than its moment a message began.
    late: Times,
}

/// Sends and receives messages at random moments.
async fn play(account: usize, store: &dyn Backend, begun: Instant, time: Duration, latencies: &Latencies) {
    let mut rng = StdRng::seed_from_u64(account as u64);
    let mut at = Duration::ZERO;
    for message in 0.. {
        // The pauses between independent events.
        at += PAUSE.mul_f64(-f64::ln(1.0 - rng.random::<f64>()));
        if at >= time {
            return;
        }
        tokio::time::sleep_until((begun + at).into()).await;
        latencies.late.add(begun.elapsed().saturating_sub(at));
        let (contact, sends) = (rng.random_range(0..CONTACTS), rng.random());
        exchange(store, contact, &format!("3EB0{account:08X}{message:08X}"), sends, latencies).await;
        latencies.messages.fetch_add(1, Ordering::Relaxed);
    }
}

/// The calls of a warm message of its own, as whatsapp-rust 0.7 makes them.
async fn exchange(store: &dyn Backend, contact: usize, id: &str, sends: bool, latencies: &Latencies) {
    if sends {
        let start = Instant::now();
        store.get_tc_token(&jid(contact)).await.unwrap();
        store.store_sent_message(&jid(contact), id, &[7; 200]).await.unwrap();
        latencies.relaxed.add(start.elapsed());
    }
    let start = Instant::now();
    let session = vec![id.len() as u8; SESSION_BYTES];
    store.put_sessions_batch(&[(address(contact).into(), session.into())]).await.unwrap();
    latencies.durable.add(start.elapsed());
    let (chat, sender): (Arc<str>, Arc<str>) = (jid(contact).into(), jid(contact).into());
    let secret =
        MsgSecretEntry { chat, sender, msg_id: id.into(), secret: [7; 32], expires_at: i64::MAX / 2, message_ts: 1 };
    store.put_msg_secrets(vec![secret]).await.unwrap();
}
