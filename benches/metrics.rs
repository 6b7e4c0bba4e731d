//! The cost of counting: time and allocations of a call, concurrent calls of several threads, and a snapshot during
//! them.
//!
//! `cargo bench --bench metrics --features metrics,testing,tracing` prints tables and writes them to `target/bench/`,
//! with a plot of the times that the layer itself counted. Each figure is the median of rounds, in which the subjects
//! take turns.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a failure is a failed measurement")]

use std::alloc::System;
use std::collections::HashMap;
use std::fmt::Write;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::executor::block_on;
use metrics_exporter_prometheus::PrometheusBuilder;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use wacore::store::InMemoryBackend;
use wacore::store::traits::{Backend, TcTokenEntry};
use wastore::metrics::DURATION_BUCKETS;
use wastore::testing::Operation;
use wastore::{Layer, Method, Metrics};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ADDRESS: &str = "15550001111:2@s.whatsapp.net";
const JID: &str = "100000000000001@lid";
const ROUNDS: usize = 41;

type Store = Arc<dyn Backend>;
type Workload = (&'static str, u32, fn(&Store, &[(Arc<str>, Bytes)]));

/// The name, the number of calls in a round, and the call.
const WORKLOADS: [Workload; 6] = [
    ("has_session", 20_000, |store, _| {
        black_box(block_on(store.has_session(ADDRESS)).unwrap());
    }),
    ("get_session, 1.5 KB", 20_000, |store, _| {
        black_box(block_on(store.get_session(ADDRESS)).unwrap().unwrap());
    }),
    ("get_session, absent", 20_000, |store, _| {
        black_box(block_on(store.get_session("absent")).unwrap());
    }),
    ("put_session, 1.5 KB", 20_000, |store, _| block_on(store.put_session(ADDRESS, &[7; 1500])).unwrap()),
    ("get_tc_token", 20_000, |store, _| {
        black_box(block_on(store.get_tc_token(JID)).unwrap().unwrap());
    }),
    ("put_sessions_batch, 64", 500, |store, batch| block_on(store.put_sessions_batch(batch)).unwrap()),
];

fn main() {
    // `cargo test --benches` passes this argument; then there is nothing to measure.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let mut report = String::new();
    let metrics = Metrics::new();
    let memory = filled();
    // No recorder is installed yet for the first layer. The second layer finds the recorder on its first call.
    let counted = metrics.layer("counted").layer(memory.clone());
    let twice = metrics.layer("outer").layer(metrics.layer("inner").layer(memory.clone()));
    calls(&mut report, "no recorder installed", &[("without", &memory), ("metrics", &counted), ("two", &twice)]);

    scaling(&mut report, "no recorder installed");

    let buckets = PrometheusBuilder::new().set_buckets(DURATION_BUCKETS).unwrap();
    let recorder = buckets.install_recorder().unwrap();
    let exported = metrics.layer("exported").layer(memory.clone());
    calls(&mut report, "Prometheus recorder installed", &[("without", &memory), ("metrics", &exported)]);
    recorder.run_upkeep();

    scaling(&mut report, "Prometheus recorder installed");
    recorder.run_upkeep();
    snapshots(&mut report);
    writeln!(report, "```text\n{}```", metrics.snapshot()).unwrap();
    println!("{report}");

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("metrics.md"), &report).unwrap();
    std::fs::write(folder.join("metrics.svg"), metrics.snapshot().to_svg()).unwrap();
    println!("written to target/bench/metrics.md and metrics.svg");
}

fn filled() -> Store {
    let store: Store = Arc::new(InMemoryBackend::new());
    block_on(store.put_session(ADDRESS, &[7; 1500])).unwrap();
    let token = TcTokenEntry { token: vec![7; 40], token_timestamp: 1, sender_timestamp: None };
    block_on(store.put_tc_token(JID, &token)).unwrap();
    store
}

/// Nanoseconds and allocations per call, on one thread.
fn calls(report: &mut String, title: &str, subjects: &[(&str, &Store)]) {
    let batch: Vec<(Arc<str>, Bytes)> =
        (0..64).map(|row| (format!("{row}@s.whatsapp.net").into(), vec![7; 1500].into())).collect();
    writeln!(report, "Nanoseconds (allocations) per call, one thread, {title}:\n").unwrap();
    let names: Vec<_> = subjects.iter().map(|(name, _)| *name).collect();
    writeln!(report, "| | {} | added |\n|--|{}--|", names.join(" | "), "--|".repeat(names.len())).unwrap();
    for (workload, repeat, call) in WORKLOADS {
        let mut times: HashMap<&str, Vec<f64>> = HashMap::new();
        for round in 0..ROUNDS {
            for turn in 0..subjects.len() {
                let (name, store) = subjects[(round + turn) % subjects.len()];
                let start = Instant::now();
                (0..repeat).for_each(|_| call(store, &batch));
                times.entry(name).or_default().push(start.elapsed().as_nanos() as f64 / f64::from(repeat));
            }
        }
        let median = |name: &str| {
            let mut times = times[name].clone();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        write!(report, "| {workload} |").unwrap();
        for (name, store) in subjects {
            let region = Region::new(ALLOCATOR);
            (0..100).for_each(|_| call(store, &batch));
            let allocations = region.change().allocations as f64 / 100.0;
            write!(report, " {:.0} ({allocations:.2}) |", median(name)).unwrap();
        }
        writeln!(report, " **{:.0}** |", median(names[1]) - median(names[0])).unwrap();
    }
    report.push('\n');
}

/// A layer name for each thread.
const NAMES: [&str; 16] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];

/// Calls per second of several threads at once, through layers of the same name.
fn scaling(report: &mut String, title: &str) {
    writeln!(report, "Concurrent calls of get_session, millions per second, {title}:\n").unwrap();
    report.push_str("| threads | without | one layer | one layer each |\n|--|--|--|--|\n");
    for threads in [1, 2, 4, 16] {
        let mut rates = [vec![], vec![], vec![]];
        for round in 0..7 {
            for turn in 0..3 {
                let counted = (round + turn) % 3;
                let metrics = Metrics::new();
                // Each thread has its own store, so that the measurement does not include waiting for the store.
                let stores: Vec<_> = (0..threads).map(|_| filled()).collect();
                let stores: Vec<_> = match counted {
                    0 => stores,
                    1 => stores.into_iter().map(|store| metrics.layer("shared").layer(store)).collect(),
                    // The gain over the line above is the loss of threads that count in the same place.
                    _ => stores.into_iter().zip(NAMES).map(|(store, name)| metrics.layer(name).layer(store)).collect(),
                };
                let start = Instant::now();
                let counts: Vec<u64> = std::thread::scope(|scope| {
                    let run = |store: Store| {
                        move || {
                            let mut count = 0u64;
                            while start.elapsed() < Duration::from_millis(150) {
                                (0..100).for_each(|_| {
                                    black_box(block_on(store.get_session(ADDRESS)).unwrap());
                                });
                                count += 100;
                            }
                            count
                        }
                    };
                    let threads: Vec<_> = stores.into_iter().map(|store| scope.spawn(run(store))).collect();
                    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
                });
                rates[counted].push(counts.iter().sum::<u64>() as f64 / start.elapsed().as_secs_f64() / 1e6);
            }
        }
        let [without, one, each] = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        });
        writeln!(report, "| {threads} | {without:.2} | {one:.2} | {each:.2} |").unwrap();
    }
    report.push('\n');
}

/// The time of a snapshot while eight threads call every method through three layers.
fn snapshots(report: &mut String) {
    let (metrics, stop) = (Metrics::new(), AtomicBool::new(false));
    let store = ["one", "two", "three"].iter().fold(filled(), |store, name| metrics.layer(name).layer(store));
    let mut times: Vec<f64> = std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Snapshots of the database are files, and not every store supports them.
                    for method in Method::ALL.iter().filter(|method| **method != Method::SnapshotDb) {
                        block_on(Operation::sample(*method).run(&*store, 0)).unwrap();
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_secs(1));
        let times = (0..200).map(|_| {
            let start = Instant::now();
            black_box(metrics.snapshot());
            let time = start.elapsed();
            std::thread::sleep(Duration::from_millis(2));
            time.as_secs_f64() * 1e6
        });
        let times = times.collect();
        stop.store(true, Ordering::Relaxed);
        times
    });
    times.sort_by(f64::total_cmp);
    let operations: usize = metrics.snapshot().layers().iter().map(|layer| layer.ops().len()).sum();
    let calls: u64 = metrics.snapshot().layers().iter().map(|layer| layer.total().calls()).sum();
    writeln!(
        report,
        "A snapshot of {operations} operations on 3 layers, while 8 threads call all of them ({calls} calls so far): {:.0} µs \
         (best), {:.0} µs (median), {:.0} µs (p90; the threads share the processors)\n",
        times[0],
        times[times.len() / 2],
        times[times.len() * 9 / 10],
    )
    .unwrap();
}
