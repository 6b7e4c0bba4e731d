//! The cost of a hit and of a miss, and how hits scale with threads.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a failure is a failed measurement")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use futures::executor::block_on;
use wacore::store::InMemoryBackend;
use wacore::store::traits::{Backend, TcTokenEntry};
use wastore::{CacheLayer, Layer, Record};

const ADDRESS: &str = "15550001111:2@s.whatsapp.net";
const JID: &str = "100000000000001@lid";

fn layer() -> CacheLayer {
    CacheLayer::new(64 << 20).with(Record::Session)
}

fn filled() -> Arc<dyn Backend> {
    let store: Arc<dyn Backend> = Arc::new(InMemoryBackend::new());
    block_on(async {
        store.put_session(ADDRESS, &[7; 1500]).await.unwrap();
        let token = TcTokenEntry { token: vec![7; 40], token_timestamp: 1, sender_timestamp: None };
        store.put_tc_token(JID, &token).await.unwrap();
    });
    store
}

fn calls(criterion: &mut Criterion) {
    let inner = filled();
    let cache = layer();
    let cached = cache.layer(inner.clone());
    for (name, store) in [("without", &inner), ("hit", &cached)] {
        let mut group = criterion.benchmark_group(name);
        group.bench_function("get_session, 1.5 KB", |b| {
            b.iter(|| block_on(store.get_session(ADDRESS)).unwrap().unwrap());
        });
        group.bench_function("get_tc_token", |b| b.iter(|| block_on(store.get_tc_token(JID)).unwrap().unwrap()));
        group.bench_function("put_session, 1.5 KB", |b| {
            b.iter(|| block_on(store.put_session(ADDRESS, &[7; 1500])).unwrap());
        });
        group.finish();
    }
    // A miss: every key is read once.
    let mut group = criterion.benchmark_group("miss");
    for (name, store) in [("get_session, absent, without", &inner), ("get_session, absent", &cached)] {
        let mut number = 0u64;
        group.bench_function(name, |b| {
            b.iter(|| {
                number += 1;
                block_on(store.get_session(&format!("{number}@s.whatsapp.net"))).unwrap()
            });
        });
    }
    group.finish();
    scaling(&cached);
}

/// Hits per second of 1, 2, 4 and 16 threads, on one key and on a separate key for each thread.
fn scaling(store: &Arc<dyn Backend>) {
    println!("\n{:<10} {:>16} {:>16}", "threads", "one key", "own keys");
    for threads in [1, 2, 4, 16] {
        let rate = |own: bool| {
            let address = |thread: usize| if own { format!("{thread}@s") } else { ADDRESS.to_owned() };
            (0..threads).for_each(|thread| block_on(store.put_session(&address(thread), &[7; 1500])).unwrap());
            let start = Instant::now();
            let counts: Vec<u64> = std::thread::scope(|scope| {
                let run = |thread| {
                    let address = address(thread);
                    move || {
                        let mut count = 0;
                        while start.elapsed() < Duration::from_millis(300) {
                            for _ in 0..100 {
                                block_on(store.get_session(&address)).unwrap().unwrap();
                            }
                            count += 100;
                        }
                        count
                    }
                };
                let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            counts.iter().sum::<u64>() as f64 / start.elapsed().as_secs_f64() / 1e6
        };
        println!("{threads:<10} {:>11.2} M/s {:>11.2} M/s", rate(false), rate(true));
    }
}

criterion_group!(benches, calls);
criterion_main!(benches);
