//! Measures `PostgresStore` beside its driver, `SqliteStore` and a store as published ones are.
//!
//! `cargo bench --bench postgres` starts servers of its own, prints a table and the goals that are met and missed, and
//! writes `benches/results/postgres.md` and its picture. It needs the programs of PostgreSQL, and some
//! gigabytes in memory. All peers take turns in every round, so that a drifting machine affects all alike.
//!
//! It has three parts, each in a process of its own: `memory` with the server's files in memory, `disk` with them in the
//! folder for temporary files, and `whole`: large tables, idle accounts and failovers. With their names as arguments it
//! measures only these. `report` measures nothing, and prints what the parts measured last. `WASTORE_LONG=1` measures
//! three times as many rounds.

#![cfg(unix)]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a failure is a failed measurement"
)]

mod calls;
mod naive;
mod peers;
mod plot;
#[path = "../../tests/postgres/proxy.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod proxy;
mod report;
#[path = "../../tests/postgres/server.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod server;
mod whole;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use wacore::store::traits::Backend;
use wastore::{Durability, Key, PostgresOptions, SqliteOptions, Stack, VaultOptions};

use calls::{MEASURES, Measure, Subject, fill, rounds};
use naive::Naive;
use peers::{Disk, Driver, Empty, Peer, Stored};
use proxy::{Mode, Proxy};
use report::{AWAY, DISK, Data, EMPTY, HERE, SYNC};
use server::Server;

const PART: &str = "WASTORE_POSTGRES_PART";
const PARTS: [&str; 3] = ["memory", "disk", "whole"];

/// One way.
const DELAY: Duration = Duration::from_micros(250);

const MEMORY: &str = "/dev/shm";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    // `cargo test` also runs benchmarks.
    if arguments.iter().any(|argument| argument == "--test") || !server::available() {
        return;
    }
    if let Ok(part) = std::env::var(PART) {
        return measure(&part);
    }
    for part in PARTS {
        if arguments.is_empty() || arguments.iter().any(|argument| argument == part) {
            let program = std::env::current_exe().unwrap();
            assert!(Command::new(program).env(PART, part).status().unwrap().success(), "the part {part} failed");
        }
    }
    let parts = PARTS.iter().filter_map(|part| Data::read(&file_of(part)));
    report::write(&parts.reduce(Data::and).expect("no part was measured"));
}

fn file_of(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench").join(format!("postgres-{part}.json"))
}

/// Measures one part, in this process.
fn measure(part: &str) {
    let in_memory = part != "disk" && Path::new(MEMORY).is_dir();
    if in_memory {
        tempfile::env::override_temp_dir(Path::new(MEMORY)).unwrap();
    }
    let number = if std::env::var_os("WASTORE_LONG").is_some() { 45 } else { 15 };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut data = Data::new();
    match part {
        "whole" => whole::measure(&runtime, &mut data, number),
        _ => beside_each_other(&runtime, &mut data, in_memory, number),
    }
    data.end();
    let file = file_of(part);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, data.json()).unwrap();
}

fn beside_each_other(runtime: &Runtime, data: &mut Data, in_memory: bool, number: u64) {
    let server = Server::with_settings(&[("shared_buffers", "256MB"), ("max_wal_size", "4GB")]);
    let folder = tempfile::tempdir().unwrap();
    eprintln!("filling the stores");
    if !in_memory {
        let subjects = runtime.block_on(near(&server, folder.path(), true));
        return rounds(runtime, data, DISK, &subjects, number);
    }
    let subjects = runtime.block_on(near(&server, folder.path(), false));
    rounds(runtime, data, HERE, &subjects, number);
    let proxy = Proxy::start(server.port());
    let subjects = runtime.block_on(far(&proxy));
    rounds(runtime, data, AWAY, &subjects, number);
}

/// The peers beside the server. On a disk only the writes are measured: reads do not touch it.
async fn near(server: &Server, folder: &Path, on_disk: bool) -> Vec<Subject> {
    let url = server.url();
    let process = postgres(&url).durability(Durability::Process);
    let (store, relaxed) = (postgres(&url).open(1).await.unwrap(), process.open(4).await.unwrap());
    let sqlite = SqliteOptions::new().open(folder.join("default.db")).await.unwrap();
    let process = SqliteOptions::new().durability(Durability::Process);
    let sqlite_relaxed = process.open(folder.join("process.db")).await.unwrap();
    let vault = encrypted(Arc::new(store.account(2).await.unwrap())).await;
    let sealed_relaxed = encrypted(Arc::new(relaxed.account(5).await.unwrap())).await;
    let all: Vec<Measure> = MEASURES.into_iter().filter(|measure| *measure != Measure::PutRelaxed).collect();
    let single = vec![
        Measure::Get { tasks: 1 },
        Measure::Get { tasks: 16 },
        Measure::Put { tasks: 1 },
        Measure::Put { tasks: 16 },
        Measure::Batch,
    ];
    let mut subjects = vec![
        subject("driver", Driver::new(&url, 91, true).await, single),
        subject("driver", Driver::new(&url, 92, false).await, vec![Measure::PutRelaxed]),
        subject("PostgresStore", Stored(Arc::new(store)), all.clone()),
        subject("PostgresStore", Stored(Arc::new(relaxed)), vec![Measure::PutRelaxed]),
        subject("encrypted", Stored(vault), all.clone()),
        subject("encrypted", Stored(sealed_relaxed), vec![Measure::PutRelaxed]),
        subject("naive", Naive::new(&url, 1).await, all.clone()),
        subject("SqliteStore", Stored(Arc::new(sqlite)), all),
        subject("SqliteStore", Stored(Arc::new(sqlite_relaxed)), vec![Measure::PutRelaxed]),
    ];
    for subject in &subjects {
        fill(&*subject.peer, subject.measures.contains(&Measure::Burst)).await;
    }
    let empty = subject("driver", Empty::new(&url).await, vec![Measure::Get { tasks: 1 }]);
    subjects.push(Subject { line: Some(EMPTY), ..empty });
    if on_disk {
        let disk = subject("driver", Disk::new(folder), vec![Measure::Put { tasks: 1 }]);
        subjects.push(Subject { line: Some(SYNC), ..disk });
        subjects.iter_mut().for_each(|subject| subject.measures.retain(|measure| measure.writes()));
    }
    subjects
}

/// The peers on the other side of the proxy.
async fn far(proxy: &Proxy) -> Vec<Subject> {
    let url = proxy.url();
    let store = postgres(&url).open(11).await.unwrap();
    let vault = encrypted(Arc::new(store.account(12).await.unwrap())).await;
    let all: Vec<Measure> = MEASURES.into_iter().filter(|measure| *measure != Measure::PutRelaxed).collect();
    let single = vec![Measure::Get { tasks: 1 }, Measure::Put { tasks: 1 }];
    let mut subjects = vec![
        subject("driver", Driver::new(&url, 93, true).await, single),
        subject("PostgresStore", Stored(Arc::new(store)), all.clone()),
        subject("encrypted", Stored(vault), all.clone()),
        subject("naive", Naive::new(&url, 2).await, all),
    ];
    for subject in &subjects {
        fill(&*subject.peer, subject.measures.contains(&Measure::Burst)).await;
    }
    let empty = subject("driver", Empty::new(&url).await, vec![Measure::Get { tasks: 1 }]);
    subjects.push(Subject { line: Some(EMPTY), ..empty });
    proxy.set(Mode::Delay { up: DELAY, down: DELAY });
    subjects
}

fn postgres(url: &str) -> PostgresOptions {
    PostgresOptions::new(url).unwrap()
}

async fn encrypted(store: Arc<dyn Backend>) -> Arc<dyn Backend> {
    let vault = VaultOptions::new().create(store.clone(), Key::generate().unwrap()).await.unwrap();
    Stack::new(store).layer(vault.layer()).into_backend()
}

fn subject(column: &'static str, peer: impl Peer + 'static, measures: Vec<Measure>) -> Subject {
    Subject { column, line: None, peer: Arc::new(peer), measures }
}
