//! Compares wastore with the alternatives, in one run.
//!
//! `cargo bench --bench peers` prints a table of medians and of ratios to upstream's plaintext store, and the goals
//! that are met and missed. It writes `target/bench/peers.md`, `peers.json` and `peers.svg`. Each subject runs in its
//! own process. The subjects take turns in every round, so that a drifting machine affects all alike.
//!
//! Two subjects are other builds: SQLCipher (`benches/sqlcipher`), and this crate without the feature `ring`. A build
//! that fails is skipped with a warning.
//!
//! `WASTORE_LONG=1` measures three times as many rounds. With an argument, only names that contain it are measured.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a failure is a failed measurement"
)]

mod naive;
mod report;
mod sealing;
mod workloads;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use matrix_sdk_store_encryption::StoreCipher;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use wacore::store::InMemoryBackend;
use wastore::{CacheLayer, Durability, Key, Layer, Metrics, Record, SqliteOptions, Stack, VaultOptions};
use whatsapp_rust_sqlite_storage::{SqliteStore as UpstreamStore, SqliteStoreConfig};

use naive::Naive;
use report::Report;
use workloads::{Measure, Measured, Open, Scene, Store, obey, resident_bytes, scenes};

pub(crate) const UPSTREAM: &str = "upstream";
pub(crate) const SQLCIPHER: &str = "upstream, SQLCipher";
pub(crate) const NAIVE: &str = "upstream, naively encrypted";
pub(crate) const PLAIN: &str = "wastore, plain";
pub(crate) const ENCRYPTED: &str = "wastore, encrypted";
pub(crate) const RUSTCRYPTO: &str = "encrypted, RustCrypto";
pub(crate) const FULL: &str = "full stack";
pub(crate) const DURABLE: &str = "encrypted, power-safe";
pub(crate) const MEMORY: &str = "upstream, memory";
pub(crate) const LOOP: &str = "rusqlite loop";

/// The fastest implementation of RFC 8439 on crates.io, of ring, aws-lc-rs, graviola, libcrux and orion.
pub(crate) const FASTEST_CIPHER: &str = "ring: ChaCha20-Poly1305";
/// The cipher with which this crate seals.
pub(crate) const OWN_CIPHER: &str = "wastore's XChaCha20-Poly1305";

/// Subjects of this build, in the order of the table.
const OWN_BUILD: [(&str, Open); 9] = [
    (UPSTREAM, |folder, accounts| Box::pin(upstream(folder, accounts, 0))),
    (NAIVE, |folder, accounts| Box::pin(naive(folder, accounts))),
    ("upstream, 4 readers", |folder, accounts| Box::pin(upstream(folder, accounts, 4))),
    (PLAIN, |folder, accounts| Box::pin(own(folder, accounts, Durability::Process, Layers::None))),
    (ENCRYPTED, |folder, accounts| Box::pin(own(folder, accounts, Durability::Process, Layers::Encrypt))),
    (FULL, |folder, accounts| Box::pin(own(folder, accounts, Durability::Process, Layers::All))),
    (DURABLE, |folder, accounts| Box::pin(own(folder, accounts, Durability::default(), Layers::Encrypt))),
    (MEMORY, |_, accounts| Box::pin(async move { Ok((0..accounts).map(|_| in_memory()).collect()) })),
    ("all layers, memory", |_, accounts| Box::pin(over_memory(accounts))),
];

#[derive(Clone, Copy, PartialEq)]
enum Layers {
    None,
    Encrypt,
    All,
}

/// Each account has its own connections, as upstream's documentation recommends.
async fn upstream(folder: PathBuf, accounts: i32, readers: u32) -> Result<Vec<Store>, String> {
    let path = folder.join("upstream.db");
    let mut stores: Vec<Store> = vec![];
    for account in 1..=accounts {
        let config = SqliteStoreConfig::default().with_read_pool_size(readers);
        let store = UpstreamStore::with_config_for_device(path.to_str().unwrap(), account, config).await;
        stores.push(Arc::new(store.map_err(|error| error.to_string())?));
    }
    Ok(stores)
}

/// Upstream's store under the encryption of `naive.rs`.
async fn naive(folder: PathBuf, accounts: i32) -> Result<Vec<Store>, String> {
    let stores = upstream(folder, accounts, 0).await?;
    let encrypt = |inner| Arc::new(Naive { inner, cipher: StoreCipher::new().unwrap() }) as Store;
    Ok(stores.into_iter().map(encrypt).collect())
}

/// With `Durability::Process` it commits like upstream's store. All accounts share one open file.
async fn own(folder: PathBuf, accounts: i32, durability: Durability, layers: Layers) -> Result<Vec<Store>, String> {
    let file = SqliteOptions::new().durability(durability).open(folder.join("own.db")).await;
    let file = file.map_err(|error| error.to_string())?;
    let stores: Vec<Store> = (1..=accounts).map(|account| Arc::new(file.account(account)) as Store).collect();
    layered(stores, layers).await
}

fn in_memory() -> Store {
    Arc::new(InMemoryBackend::new())
}

async fn over_memory(accounts: i32) -> Result<Vec<Store>, String> {
    layered((0..accounts).map(|_| in_memory()).collect(), Layers::All).await
}

/// A vault for each account; one cache and one set of metrics for all accounts.
async fn layered(stores: Vec<Store>, layers: Layers) -> Result<Vec<Store>, String> {
    if layers == Layers::None {
        return Ok(stores);
    }
    let (metrics, cache) = (Metrics::new(), CacheLayer::new(16 << 20).with(Record::Session));
    let mut layered = vec![];
    for store in stores {
        let key = Key::from_bytes(&mut [0x5a; 32]);
        let vault = VaultOptions::new().open_or_create(store.clone(), key).await.map_err(|error| error.to_string())?;
        layered.push(match layers {
            Layers::All => Stack::new(store)
                .layer(metrics.layer("store"))
                .layer(vault.layer())
                .layer(cache.clone())
                .layer(metrics.layer("client"))
                .into_backend(),
            _ => vault.layer().layer(store),
        });
    }
    Ok(layered)
}

fn main() {
    // Another build of this program, or this one in a separate process, measures one subject for the main process.
    if let Ok(subject) = std::env::var("WASTORE_PEER") {
        return match subject.as_str() {
            "seal" => sealing::print(),
            name => {
                let (_, open) = OWN_BUILD.into_iter().find(|(own, _)| *own == name).unwrap();
                obey(open);
            }
        };
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    if !cfg!(feature = "ring") {
        eprintln!("run it with the default features: it builds the programs it needs, and labels the builds");
        std::process::exit(2);
    }
    let wanted = arguments.into_iter().find(|argument| !argument.starts_with("--"));
    // On the disk of the build, because a folder for temporary files may be in memory.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let builds = Builds::make();
    let mut report = Report::default();
    let rounds = if std::env::var_os("WASTORE_LONG").is_some() { 21 } else { 7 };
    compare(&builds, folder.path(), rounds, wanted.as_deref(), &mut report);
    if wanted.is_none() {
        sealing::compare(builds.rustcrypto.as_deref(), &mut report);
        memory(&builds, folder.path(), &mut report);
    }
    report.write(wanted.is_none());
}

/// Other programs that measure subjects.
struct Builds {
    rustcrypto: Option<PathBuf>,
    sqlcipher: Option<PathBuf>,
}

impl Builds {
    fn make() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let build = |what: &str, arguments: &[&str]| {
            eprintln!("building {what}");
            let arguments = arguments.iter().chain(&["--locked", "--message-format=json"]);
            let built = Command::new(&cargo).args(arguments).current_dir(root).stderr(Stdio::inherit()).output();
            let program = built.ok().filter(|built| built.status.success()).and_then(|built| {
                let text = String::from_utf8(built.stdout).ok()?;
                let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
                messages.filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?))).next_back()
            });
            if program.is_none() {
                println!("\n**{what} is skipped, because it cannot be built here.**\n");
            }
            program
        };
        let rustcrypto =
            ["bench", "--bench", "peers", "--no-default-features", "--features", "bundled-sqlite", "--no-run"];
        let sqlcipher = ["build", "--release", "--manifest-path", "benches/sqlcipher/Cargo.toml", "--target-dir"];
        let target = root.join("target/sqlcipher");
        let sqlcipher = [&sqlcipher[..], &[target.to_str().unwrap()]].concat();
        Self {
            rustcrypto: build("wastore with RustCrypto's cipher", &rustcrypto),
            sqlcipher: build("upstream's store with SQLCipher", &sqlcipher),
        }
    }
}

/// A subject that takes turns with the others.
struct Subject {
    name: &'static str,
    /// The folder of the current scene's files.
    folder: PathBuf,
    kind: Kind,
}

enum Kind {
    /// In a separate process, because all stores of a process share SQLite's page cache.
    Process(Process),
    /// The cost of SQLite itself.
    Loop { connection: Option<rusqlite::Connection>, bytes: usize },
}

fn subjects(builds: &Builds, folder: &Path) -> Vec<Subject> {
    let own = std::env::current_exe().unwrap();
    let mut subjects = vec![];
    let mut add = |name: &'static str, kind: Kind| {
        subjects.push(Subject { name, folder: folder.join(name.replace([' ', ','], "_")), kind });
    };
    for (name, program, subject) in programs(builds, &own) {
        add(name, Kind::Process(Process::start(program, subject)));
    }
    add(LOOP, Kind::Loop { connection: None, bytes: 0 });
    subjects
}

/// The subjects, the program that measures each, and the subject's name in that program.
fn programs<'a>(builds: &'a Builds, own: &'a Path) -> Vec<(&'static str, &'a Path, &'static str)> {
    let mut programs = vec![];
    for (name, _) in OWN_BUILD {
        programs.push((name, own, name));
        let other = match name {
            ENCRYPTED => builds.rustcrypto.as_deref().map(|program| (RUSTCRYPTO, program, ENCRYPTED)),
            UPSTREAM => builds.sqlcipher.as_deref().map(|program| (SQLCIPHER, program, "")),
            _ => None,
        };
        programs.extend(other);
    }
    programs
}

fn compare(builds: &Builds, folder: &Path, rounds: u64, wanted: Option<&str>, report: &mut Report) {
    let mut subjects = subjects(builds, folder);
    let mut rng = StdRng::seed_from_u64(0);
    for (number, (scene, measures)) in scenes().into_iter().enumerate() {
        let measures: Vec<_> = measures
            .into_iter()
            .enumerate()
            .filter(|(_, measure)| {
                wanted.is_none_or(|wanted| format!("{} {}", scene.name(), measure.name()).contains(wanted))
            })
            .collect();
        if measures.is_empty() {
            continue;
        }
        eprint!("\r{:<60}", format!("{}: filling", scene.name()));
        let mut on = vec![];
        for (at, subject) in subjects.iter_mut().enumerate() {
            match subject.set(number, scene) {
                Ok(true) => on.push(at),
                Ok(false) => {}
                Err(error) => {
                    eprintln!("\n{} cannot do `{}`: {error}", subject.name, scene.name());
                    report.fail(scene, subject.name);
                }
            }
        }
        for round in 0..rounds {
            eprint!("\r{:<60}", format!("{}: round {} of {rounds}", scene.name(), round + 1));
            for (index, measure) in &measures {
                on.shuffle(&mut rng);
                for at in &on {
                    let subject = &mut subjects[*at];
                    if let Some((elapsed, operations)) = subject.measure(*index, *measure, round) {
                        report.add(scene, *measure, subject.name, elapsed.as_nanos() as f64 / operations as f64 / 1e3);
                    }
                    // Some stores still work in the background for a moment, for example on checkpoints.
                    std::thread::sleep(Duration::from_millis(15));
                }
            }
        }
        for at in on {
            let subject = &mut subjects[at];
            subject.strike();
            if let Some((rows, bytes)) = scene.rows()
                && let Some(size) = subject.size_on_disk()
            {
                report.size(scene, subject.name, size as f64 / rows as f64, bytes);
            }
            if matches!(scene, Scene::Sessions { rows: 2000, bytes: 1500 }) {
                for _ in 0..rounds {
                    if let Some(elapsed) = subject.reopen() {
                        report.reopened(subject.name, elapsed.as_secs_f64() * 1e3);
                    }
                }
            }
            std::fs::remove_dir_all(&subject.folder).ok();
        }
    }
    eprintln!("\r{:<60}", "");
}

impl Subject {
    /// Prepares a scene. Returns `false` if there is nothing to measure on it.
    fn set(&mut self, number: usize, scene: Scene) -> Result<bool, String> {
        self.folder = self.folder.with_extension(number.to_string());
        std::fs::create_dir_all(&self.folder).unwrap();
        match &mut self.kind {
            Kind::Process(process) => match process.ask(&format!("set {number} {}", self.folder.display())).as_str() {
                "ok" => Ok(true),
                error => Err(error.to_owned()),
            },
            Kind::Loop { connection, bytes } => match scene {
                Scene::Sessions { rows: 2000, bytes: size } => {
                    *connection = Some(sealing::fill_loop(&self.folder.join("loop.db"), 2000, size));
                    *bytes = size;
                    Ok(true)
                }
                _ => Ok(false),
            },
        }
    }

    fn measure(&mut self, index: usize, measure: Measure, round: u64) -> Option<Measured> {
        match &mut self.kind {
            Kind::Process(process) => {
                let answer = process.ask(&format!("measure {index} {round}"));
                let (nanos, operations) = answer.split_once(' ')?;
                Some((Duration::from_nanos(nanos.parse().ok()?), operations.parse().ok()?))
            }
            Kind::Loop { connection, bytes } => sealing::plain_loop(connection.as_ref()?, 2000, *bytes, measure, round),
        }
    }

    fn strike(&mut self) {
        match &mut self.kind {
            Kind::Process(process) => {
                process.ask("strike");
            }
            Kind::Loop { connection, .. } => *connection = None,
        }
    }

    fn size_on_disk(&self) -> Option<u64> {
        let files = std::fs::read_dir(&self.folder).ok()?;
        let size = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum::<u64>();
        (size > 0 && !matches!(self.kind, Kind::Loop { .. })).then_some(size)
    }

    fn reopen(&mut self) -> Option<Duration> {
        self.size_on_disk()?;
        let Kind::Process(process) = &mut self.kind else { return None };
        let answer = process.ask(&format!("reopen {}", self.folder.display()));
        Some(Duration::from_nanos(answer.parse().ok()?))
    }
}

/// A process that measures one subject on request.
struct Process {
    child: Child,
    answers: std::io::Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(program: &Path, subject: &str) -> Self {
        let mut command = Command::new(program);
        command.env("WASTORE_PEER", subject).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, answers }
    }

    fn ask(&mut self, question: &str) -> String {
        let asked = self.child.stdin.as_mut().is_some_and(|stdin| writeln!(stdin, "{question}").is_ok());
        match self.answers.next().filter(|_| asked) {
            Some(Ok(answer)) => answer,
            _ => "failed: the process is gone".to_owned(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The growth of a process that fills a store and reads from it, one process for each store.
fn memory(builds: &Builds, folder: &Path, report: &mut Report) {
    let own = std::env::current_exe().unwrap();
    for (name, program, subject) in programs(builds, &own) {
        for (number, (scene, _)) in scenes().into_iter().enumerate() {
            if !matches!(scene, Scene::Sessions { bytes: 200, .. } | Scene::Client(_)) || resident_bytes().is_none() {
                continue;
            }
            eprint!("\r{:<60}", format!("memory of {name}, {}", scene.name()));
            let folder = folder.join("memory");
            std::fs::create_dir_all(&folder).unwrap();
            let mut process = Process::start(program, subject);
            let mut resident = || process.ask("memory").parse::<u64>().unwrap_or_default();
            let before = resident();
            if process.ask(&format!("set {number} {}", folder.display())) == "ok" {
                process.ask("measure 0 0");
                let after = process.ask("memory").parse::<u64>().unwrap_or_default();
                report.memory(scene, name, after.saturating_sub(before) as f64 / 1e6);
            }
            drop(process);
            std::fs::remove_dir_all(&folder).ok();
        }
    }
}
