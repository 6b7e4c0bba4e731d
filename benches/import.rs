//! The speed of an import and of a change of the data key, and how much memory they take.
//!
//! `cargo bench --bench import --features import` imports a database with 200,000 sessions of 1 KB, or with
//! `WASTORE_RECORDS` sessions if it is set. Then it seals them again with a new data key. Each of the two runs in its
//! own process. The benchmark prints the rates and the peak memory of each.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a failure is a failed measurement")]

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::executor::block_on;
use rusqlite::Connection;
use wastore::import::Import;
use wastore::maintenance::Phase;
use wastore::maintenance::Rotate;
use wastore::{Key, SqliteStore, Vault};
use whatsapp_rust_sqlite_storage::SqliteStore as UpstreamStore;

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    if let Some(folder) = std::env::var_os("WASTORE_IMPORT") {
        return import(Path::new(&folder));
    }
    if let Some(folder) = std::env::var_os("WASTORE_ROTATE") {
        return rotate(Path::new(&folder));
    }
    let records = std::env::var("WASTORE_RECORDS").ok().and_then(|number| number.parse().ok()).unwrap_or(200_000);
    let folder = tempfile::tempdir().unwrap();
    fill(&folder.path().join("whatsapp.db"), records);
    let itself = std::env::current_exe().unwrap();
    for part in ["WASTORE_IMPORT", "WASTORE_ROTATE"] {
        assert!(Command::new(&itself).env(part, folder.path()).status().unwrap().success());
    }
}

/// Upstream's schema, created by upstream's store, with rows inserted in one transaction.
fn fill(path: &Path, records: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use wacore::store::traits::DeviceStore;
        UpstreamStore::new(path.to_str().unwrap()).await.unwrap().create().await.unwrap();
    });
    let mut connection = Connection::open(path).unwrap();
    let transaction = connection.transaction().unwrap();
    let mut insert =
        transaction.prepare("INSERT INTO sessions (address, record, device_id) VALUES (?1, ?2, 1)").unwrap();
    for number in 0..records {
        let address = format!("{}:{}@s.whatsapp.net", 15_550_000_000 + number / 3, number % 3);
        insert.execute((address, [number as u8; 1024])).unwrap();
    }
    drop(insert);
    transaction.commit().unwrap();
}

fn import(folder: &Path) {
    let start = Instant::now();
    let copied = Arc::new(Mutex::new((0, start.elapsed())));
    let seen = copied.clone();
    let import = Import::new().on_progress(move |progress| {
        if progress.phase == Phase::Copying {
            *seen.lock().unwrap() = (progress.done, start.elapsed());
        }
    });
    block_on(import.run(folder.join("whatsapp.db"), folder.join("wa.db"), key())).unwrap();
    let whole = start.elapsed().as_secs_f64();
    let (records, copying) = *copied.lock().unwrap();
    let (records, copying) = (records as f64, copying.as_secs_f64());
    println!("| phase | seconds | records per second |\n|--|--|--|");
    println!("| copying | {copying:.1} | {:.0} |", records / copying);
    println!("| comparing, and waiting for the disk | {:.1} | {:.0} |", whole - copying, records / (whole - copying));
    println!("| whole | {whole:.1} | {:.0} |", records / whole);
    print_memory();
}

fn key() -> Key {
    Key::from_bytes(&mut [7; 32])
}

fn rotate(folder: &Path) {
    let store = block_on(SqliteStore::open(folder.join("wa.db"))).unwrap();
    let vault = block_on(Vault::open(Arc::new(store.clone()), key())).unwrap();
    let start = Instant::now();
    let report = block_on(Rotate::new().run(&store, &vault)).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("| change of the data key | {seconds:.1} | {:.0} |", report.resealed() as f64 / seconds);
    print_memory();
}

fn print_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(line) = status.lines().find(|line| line.starts_with("VmHWM")) {
        println!("\nmost memory: {}\n", line.trim_start_matches("VmHWM:").trim());
    }
}
