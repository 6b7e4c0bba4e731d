//! `SqliteStore` beside upstream's SQLite store and a plain rusqlite loop, in one run, on files of their own.
//!
//! `cargo bench --bench sqlite` prints a table and writes it, with a plot, to `target/bench/`. Every figure is the median of
//! several rounds in which the stores take turns; values change with every write, addresses are shuffled. After that it
//! measures the memory of idle accounts and how late timers are beside a full write load.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a failure is a failed measurement"
)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::executor::block_on;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use wacore::store::traits::{Backend, SignalStore};
use wastore::{Durability, Key, SqliteOptions, SqliteStore, Stack, VaultOptions};

const SESSION_BYTES: usize = 1500;
const SESSIONS: usize = 2000;
const TASKS: usize = 16;
const BATCH: usize = 64;
const MANY_SESSIONS: usize = 50_000;
const PLAIN: &str = "wastore";
const ENCRYPTED: &str = "wastore, encrypted";
/// With the default durability; the others commit as upstream's store does.
const POWER_SAFE: &str = "wastore, power-safe";
const LOOP: &str = "plain rusqlite loop";
const SUBJECTS: [&str; 5] = ["upstream", PLAIN, ENCRYPTED, POWER_SAFE, LOOP];

/// A store to measure.
#[derive(Clone)]
struct Subject {
    name: &'static str,
    store: Arc<dyn Backend>,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let subjects = runtime.block_on(subjects(folder.path()));
    let mut results = Results::default();
    // `cargo bench --bench sqlite -- "16 tasks, put"` measures only that. Cargo adds `--bench`.
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let wanted = |name: &str| filter.as_ref().is_none_or(|filter| filter == name);

    runtime.block_on(fill(&subjects, 0..SESSIONS));
    let rounds = if std::env::var_os("WASTORE_LONG").is_some() { 25 } else { 9 };
    for round in 0..rounds {
        eprint!("\rround {} of {rounds} ", round + 1);
        if filter.is_none() {
            plain_loop(folder.path(), round, &mut results);
        }
        for workload in WORKLOADS.iter().filter(|workload| wanted(workload.name)) {
            for subject in &subjects {
                let (elapsed, operations) = (workload.measure)(&runtime, subject, round);
                results.add(workload.name, subject.name, elapsed, operations);
            }
        }
    }
    if wanted(SIGNAL_STATE) {
        eprint!("\rfilling up to {MANY_SESSIONS} sessions ");
        runtime.block_on(fill(&subjects[..3], SESSIONS..MANY_SESSIONS));
        for _ in 0..rounds {
            for subject in &subjects[..3] {
                let (elapsed, operations) = runtime.block_on(signal_state(subject));
                results.add(SIGNAL_STATE, subject.name, elapsed, operations);
            }
        }
    }
    eprintln!("\r                                ");
    results.report(filter.is_none());
    if filter.is_none() {
        drop((subjects, runtime));
        memory_of_accounts(folder.path());
        timer_stalls(folder.path());
    }
}

async fn subjects(folder: &Path) -> Vec<Subject> {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let upstream = whatsapp_rust_sqlite_storage::SqliteStore::new(&path("upstream.db")).await.unwrap();
    let process = SqliteOptions::new().durability(Durability::Process);
    let own = process.clone().open(path("own.db")).await.unwrap();
    let sealed: Arc<dyn Backend> = Arc::new(process.open(path("encrypted.db")).await.unwrap());
    let vault = VaultOptions::new().create(sealed.clone(), Key::generate().unwrap()).await.unwrap();
    let durable = SqliteStore::open(path("durable.db")).await.unwrap();
    vec![
        Subject { name: SUBJECTS[0], store: Arc::new(upstream) },
        Subject { name: PLAIN, store: Arc::new(own) },
        Subject { name: ENCRYPTED, store: Stack::new(sealed).layer(vault.layer()).into_backend() },
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

async fn fill(subjects: &[Subject], numbers: Range<usize>) {
    let mut rng = StdRng::seed_from_u64(1);
    for start in numbers.clone().step_by(1000) {
        let chunk = start..numbers.end.min(start + 1000);
        let rows: Vec<(Arc<str>, Bytes)> =
            chunk.map(|number| (address(number).into(), session(&mut rng).into())).collect();
        for Subject { store, .. } in subjects {
            store.put_sessions_batch(&rows).await.unwrap();
        }
    }
}

/// What is measured.
struct Workload {
    name: &'static str,
    /// How many times faster than upstream's store it has to be, plain and encrypted.
    targets: (f64, f64),
    /// How long how many operations took in one round.
    measure: fn(&Runtime, &Subject, u64) -> (Duration, usize),
}

const WORKLOADS: [Workload; 6] = [
    Workload { name: "get", targets: (5.0, 2.0), measure: get },
    Workload { name: "put", targets: (2.5, 2.0), measure: put },
    Workload {
        name: "batch of 64, per row",
        targets: (4.0, 1.4),
        measure: |runtime, subject, round| batches(runtime, subject, groups(round)),
    },
    Workload {
        name: "batch of 64 strangers, per row",
        targets: (0.0, 0.0),
        measure: |runtime, subject, round| batches(runtime, subject, shuffled(round)),
    },
    Workload {
        name: "16 tasks, get",
        targets: (15.0, 2.0),
        measure: |runtime, Subject { store, .. }, round| {
            runtime.block_on(concurrently(shuffled(round), store, |store, addresses| async move {
                for address in addresses {
                    assert!(store.get_session(&address).await.unwrap().is_some());
                }
            }))
        },
    },
    Workload {
        name: "16 tasks, put",
        targets: (10.0, 2.0),
        measure: |runtime, subject, round| {
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
        },
    },
];

const SIGNAL_STATE: &str = "has_signal_state_for_user, miss";
const SIGNAL_STATE_TARGETS: (f64, f64) = (500.0, 0.0);

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
            results.add("get", LOOP, start.elapsed(), SESSIONS);
        }
    }
    let start = Instant::now();
    for (number, address) in addresses.iter().enumerate() {
        value[..8].copy_from_slice(&number.to_le_bytes());
        put.execute((address, &value)).unwrap();
    }
    results.add("put", LOOP, start.elapsed(), SESSIONS);
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

    /// In microseconds.
    fn median(&self, workload: &'static str, subject: &'static str) -> Option<f64> {
        let mut rounds = self.rounds.get(&(workload, subject))?.clone();
        rounds.sort_unstable();
        Some(rounds[rounds.len() / 2] as f64 / 1000.0)
    }

    fn report(&self, keep: bool) {
        let mut table = String::from("| µs per operation |");
        SUBJECTS.iter().for_each(|subject| write!(table, " {subject} |").unwrap());
        table.push_str("\n|--|--|--|--|--|--|\n");
        for workload in &self.order {
            write!(table, "| {workload} |").unwrap();
            let upstream = self.median(workload, SUBJECTS[0]);
            for subject in SUBJECTS {
                let (Some(median), Some(upstream)) = (self.median(workload, subject), upstream) else {
                    table.push_str(" |");
                    continue;
                };
                let targets = WORKLOADS.iter().find(|found| found.name == *workload).map(|found| found.targets);
                let (plain, encrypted) = targets.unwrap_or(SIGNAL_STATE_TARGETS);
                let target = match subject {
                    PLAIN => plain,
                    ENCRYPTED => encrypted,
                    _ => 0.0,
                };
                write!(table, " {median:.2}").unwrap();
                if subject != SUBJECTS[0] {
                    write!(table, " ({:.1}×", upstream / median).unwrap();
                    match target {
                        0.0 => {}
                        target if upstream / median >= target => write!(table, ", at least {target}").unwrap(),
                        target => write!(table, ", **missed** {target}").unwrap(),
                    }
                    table.push(')');
                }
                table.push_str(" |");
            }
            table.push('\n');
        }
        println!("{table}");
        if keep {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("sqlite.md"), &table).unwrap();
            std::fs::write(folder.join("sqlite.svg"), self.plot()).unwrap();
            println!("written to target/bench/sqlite.md and sqlite.svg\n");
        }
    }

    /// Bars on a logarithmic scale from 1 µs to 1 s.
    fn plot(&self) -> String {
        const COLOURS: [&str; 5] = ["#999999", "#1b7837", "#5aae61", "#762a83", "#dddddd"];
        const LEFT: f64 = 250.0;
        const DECADE: f64 = 100.0;
        const BAR: f64 = 13.0;
        let height = (self.order.len() * (SUBJECTS.len() + 1)) as f64 * BAR + 90.0;
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='960' height='{height}' font-family='sans-serif' \
             font-size='11'><rect width='100%' height='100%' fill='white'/>\n"
        );
        for (position, (subject, colour)) in SUBJECTS.iter().zip(COLOURS).enumerate() {
            let x = 20 + position * 180;
            writeln!(svg, "<rect x='{x}' y='12' width='11' height='11' fill='{colour}'/>").unwrap();
            writeln!(svg, "<text x='{}' y='22'>{subject}</text>", x + 16).unwrap();
        }
        for (decade, label) in ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s"].iter().enumerate() {
            let x = LEFT + decade as f64 * DECADE;
            writeln!(svg, "<line x1='{x}' x2='{x}' y1='50' y2='{}' stroke='#cccccc'/>", height - 20.0).unwrap();
            writeln!(svg, "<text x='{x}' y='45' text-anchor='middle'>{label}</text>").unwrap();
        }
        let mut y = 60.0;
        for workload in &self.order {
            writeln!(svg, "<text x='{}' y='{}' text-anchor='end'>{workload}</text>", LEFT - 8.0, y + 30.0).unwrap();
            for (subject, colour) in SUBJECTS.iter().zip(COLOURS) {
                if let Some(median) = self.median(workload, subject) {
                    let width = median.log10().max(0.02) * DECADE;
                    writeln!(svg, "<rect x='{LEFT}' y='{y}' width='{width:.1}' height='11' fill='{colour}'/>").unwrap();
                    let x = LEFT + width + 4.0;
                    writeln!(svg, "<text x='{x:.1}' y='{}'>{median:.1}</text>", y + 9.5).unwrap();
                }
                y += BAR;
            }
            y += BAR;
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// A user that is not there among [`MANY_SESSIONS`].
async fn signal_state(Subject { name, store }: &Subject) -> (Duration, usize) {
    let calls = if *name == SUBJECTS[0] { 3 } else { 2000 };
    let start = Instant::now();
    for number in 0..calls {
        assert!(!store.has_signal_state_for_user(&format!("1666{number:07}")).await.unwrap());
    }
    (start.elapsed(), calls)
}

/// What the process grows by for each account that was used once and then idles.
fn memory_of_accounts(folder: &Path) {
    const ACCOUNTS: i32 = 2000;
    let Some(_) = resident_bytes() else { return };
    block_on(async {
        let first =
            SqliteOptions::new().durability(Durability::Process).open(folder.join("accounts.db")).await.unwrap();
        let work = async |store: &SqliteStore| {
            store.put_session("a", &[1; SESSION_BYTES]).await.unwrap();
            store.get_session("a").await.unwrap();
        };
        // Fill the page cache first: it belongs to all accounts.
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

/// On Linux.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// How late a timer of 1 ms is beside 16 tasks that write all the time, on the only thread of a runtime.
fn timer_stalls(folder: &Path) {
    const TIME: Duration = Duration::from_secs(3);
    println!("lateness of a 1 ms timer beside 16 writing tasks, one thread; median, 99 %, worst, ms");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    const BATCHES: &str = "wastore, batches of 64";
    for name in ["nothing", "fsync on a blocking thread", SUBJECTS[0], PLAIN, BATCHES, POWER_SAFE] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut late = runtime.block_on(async {
            let stop = Arc::new(AtomicBool::new(false));
            let store: Option<Arc<dyn Backend>> = match name {
                PLAIN | BATCHES => {
                    let config = SqliteOptions::new().durability(Durability::Process);
                    Some(Arc::new(config.open(path(name)).await.unwrap()))
                }
                POWER_SAFE => Some(Arc::new(SqliteStore::open(path("timer safe.db")).await.unwrap())),
                "upstream" => Some(Arc::new(
                    whatsapp_rust_sqlite_storage::SqliteStore::new(&path("timer upstream.db")).await.unwrap(),
                )),
                _ => None,
            };
            let load = (0..if name == "nothing" { 0 } else { TASKS }).map(|task| {
                let (store, stop, file) = (store.clone(), stop.clone(), path(&format!("fsync {task}")));
                tokio::spawn(async move {
                    let value = [7; SESSION_BYTES];
                    let row = |number| (address(task * 1000 + number).into(), Bytes::from_owner(value));
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
