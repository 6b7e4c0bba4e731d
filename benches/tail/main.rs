//! How long a power-safe put takes at worst, beside everything else that uses the store.
//!
//! `cargo bench --bench tail` runs 16 tasks that put sessions all the time, on a runtime with one thread and a disk whose
//! `fsync` takes 5 ms longer, and beside them backups, rotations, sweeps or checkpoints, one after the other. It prints a
//! table, and writes it to `benches/results/tail.md` with a picture. `WASTORE_LONG=1` takes six times as long.

#![cfg(target_os = "linux")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a failure is a failed measurement"
)]

mod plot;
#[path = "../../tests/preload/mod.rs"]
mod preload;

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wacore::store::traits::{Backend, MsgSecretEntry};
use wastore::maintenance::Rotate;
use wastore::{Key, Layer, SqliteOptions, SqliteStore, Vault};

const TASKS: usize = 16;
const SESSION_BYTES: usize = 1500;
/// What the preloaded library adds to an `fsync`.
const SLOW: Duration = Duration::from_millis(5);

/// What runs beside the tasks.
#[derive(Clone, Copy, PartialEq)]
enum Beside {
    Nothing,
    Backups,
    Rotation,
    Sweeps,
    Checkpoints,
}

const SCENES: [(&str, Beside); 5] = [
    ("nothing else", Beside::Nothing),
    ("backups", Beside::Backups),
    ("rotations", Beside::Rotation),
    ("sweeps", Beside::Sweeps),
    ("checkpoints", Beside::Checkpoints),
];

/// A scene and the times of its puts in ms, in ascending order.
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    pub(crate) millis: Vec<f64>,
    /// How often the other work was done.
    times: u64,
}

impl Scene {
    pub(crate) fn at(&self, part: f64) -> f64 {
        self.millis[((self.millis.len() - 1) as f64 * part) as usize]
    }
}

fn main() {
    // `cargo test` also runs benchmarks.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    if std::env::var_os("WASTORE_SLOW_MICROS").is_none() {
        return on_slow_disk();
    }
    let seconds = if std::env::var_os("WASTORE_LONG").is_some() { 60 } else { 10 };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let alone = time_alone(folder.path());
    let scenes: Vec<_> = SCENES
        .iter()
        .map(|(name, beside)| {
            eprint!("\r{:<60}", format!("puts beside {name}"));
            play(folder.path(), name, *beside, Duration::from_secs(seconds))
        })
        .collect();
    eprintln!("\r{:<60}", "");
    write(&scenes, alone);
}

/// Starts this program again with the library in front of the C library.
fn on_slow_disk() {
    let folder = tempfile::tempdir().unwrap();
    let library = preload::compile("slow_disk", folder.path());
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.env("LD_PRELOAD", library).env("WASTORE_SLOW_MICROS", SLOW.as_micros().to_string());
    assert!(again.status().unwrap().success());
}

/// A new store with a vault and its layer.
async fn create(path: &Path) -> (SqliteStore, Vault, Arc<dyn Backend>) {
    let store = SqliteOptions::new().open(path).await.unwrap();
    let key = Key::from_bytes(&mut [0x5a; 32]);
    let vault = Vault::create(&store, key).await.unwrap();
    let layered = vault.layer().layer(Arc::new(store.clone()));
    (store, vault, layered)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn address(number: usize) -> String {
    format!("1555{number:07}:7@s.whatsapp.net")
}

/// The median time of a put with nothing beside it, in ms: one commit.
fn time_alone(folder: &Path) -> f64 {
    runtime().block_on(async {
        let (_store, _vault, layered) = create(&folder.join("alone.db")).await;
        let mut millis = vec![];
        for number in 0..200 {
            let start = Instant::now();
            layered.put_session(&address(number), &[7; SESSION_BYTES]).await.unwrap();
            millis.push(start.elapsed().as_secs_f64() * 1e3);
        }
        millis.sort_by(f64::total_cmp);
        millis[millis.len() / 2]
    })
}

fn play(folder: &Path, name: &'static str, beside: Beside, time: Duration) -> Scene {
    let runtime = runtime();
    let folder = folder.to_owned();
    runtime.block_on(async move {
        let (store, vault, layered) = create(&folder.join(format!("{name}.db"))).await;
        fill(&*layered).await;
        store.checkpoint().await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let (layered, stop) = (layered.clone(), stop.clone());
                tokio::spawn(async move {
                    let (mut value, mut millis) = ([7; SESSION_BYTES], vec![]);
                    for number in 0u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        value[..8].copy_from_slice(&number.to_le_bytes());
                        let start = Instant::now();
                        layered.put_session(&address(task * 100 + number as usize % 100), &value).await.unwrap();
                        millis.push(start.elapsed().as_secs_f64() * 1e3);
                    }
                    millis
                })
            })
            .collect();
        let (start, mut times) = (Instant::now(), 0);
        while start.elapsed() < time {
            work(beside, &store, &vault, &*layered, &folder.join("copy.db")).await;
            times += 1;
        }
        stop.store(true, Ordering::Relaxed);
        let mut millis = vec![];
        for task in tasks {
            millis.extend(task.await.unwrap());
        }
        millis.sort_by(f64::total_cmp);
        Scene { name, millis, times }
    })
}

/// Sessions of 20,000 contacts, so that a backup or a change of the data key takes a while.
async fn fill(layered: &dyn Backend) {
    for chunk in 0..10 {
        let row = |number: usize| (Arc::from(address(number)), bytes::Bytes::from(vec![1; SESSION_BYTES]));
        let rows: Vec<_> = (chunk * 2000..(chunk + 1) * 2000).map(row).collect();
        layered.put_sessions_batch(&rows).await.unwrap();
    }
}

/// Does the other work once.
async fn work(beside: Beside, store: &SqliteStore, vault: &Vault, layered: &dyn Backend, copy: &Path) {
    match beside {
        Beside::Nothing => tokio::time::sleep(Duration::from_millis(100)).await,
        Beside::Backups => {
            store.backup(copy).await.unwrap();
            std::fs::remove_file(copy).unwrap();
        }
        Beside::Rotation => {
            Rotate::new().run(store, vault).await.unwrap();
        }
        Beside::Sweeps => {
            let secret = |number: usize| MsgSecretEntry {
                chat: "chat@g.us".into(),
                sender: "sender@lid".into(),
                msg_id: format!("{number}").into(),
                secret: [7; 32],
                expires_at: 1,
                message_ts: 1,
            };
            for chunk in 0..10 {
                let secrets = (chunk * 1000..(chunk + 1) * 1000).map(secret).collect();
                layered.put_msg_secrets(secrets).await.unwrap();
            }
            assert_eq!(layered.delete_expired_msg_secrets(2).await.unwrap(), 10_000);
        }
        Beside::Checkpoints => {
            // A reader may be in the way; the next one comes at once.
            store.checkpoint().await.ok();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn write(scenes: &[Scene], alone: f64) {
    let mut table = String::from(
        "| beside | done | puts | p50, ms | p99 | p99.9 | worst | p99.9 in commits |\n|--|--|--|--|--|--|--|--|\n",
    );
    for scene in scenes {
        let [p50, p99, p999, worst] = [0.5, 0.99, 0.999, 1.0].map(|part| scene.at(part));
        let (name, times, puts) = (scene.name, scene.times, scene.millis.len());
        let done = if name == SCENES[0].0 { String::new() } else { times.to_string() };
        let commits = p999 / alone;
        writeln!(table, "| {name} | {done} | {puts} | {p50:.1} | {p99:.1} | {p999:.1} | {worst:.1} | {commits:.1} |")
            .unwrap();
    }
    println!("{table}");
    let text = format!(
        "# A run of `cargo bench --bench tail`\n\n![How many puts take longer](tail.svg)\n\nPower-safe puts of 1.5 KB by \
         {TASKS} tasks on a runtime with one thread, encrypted. An `fsync` takes {} ms longer than the disk's own. A put \
         alone takes {alone:.1} ms, the time of one commit.\n\n{table}",
        SLOW.as_millis()
    );
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    std::fs::write(folder.join("tail.md"), text).unwrap();
    std::fs::write(folder.join("tail.svg"), plot::plot(scenes, alone)).unwrap();
}
