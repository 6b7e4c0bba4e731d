//! The cost of the encrypting layer per call, compared with the same store without it in the same run.
//!
//! `cargo bench --bench encrypt`. The inner store is upstream's in-memory one, so that the layer dominates.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure is a failed test or measurement")]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::executor::block_on;
use wacore::store::InMemoryBackend;
use wacore::store::cache::CacheStore;
use wacore::store::traits::{Backend, MsgSecretEntry};
use wastore::{Key, Stack, VaultOptions};

const ADDRESS: &str = "15550109921:7@s.whatsapp.net";
const SESSION_BYTES: usize = 1500;

fn stores() -> [(&'static str, Arc<dyn Backend>); 2] {
    let (plain, inner) = (Arc::new(InMemoryBackend::new()), Arc::new(InMemoryBackend::new()));
    let vault = block_on(VaultOptions::new().create(inner.clone(), Key::generate().unwrap())).unwrap();
    [("plain", plain), ("encrypted", Stack::new(inner).layer(vault.layer()).into_backend())]
}

fn sessions(criterion: &mut Criterion) {
    let session = vec![0x42; SESSION_BYTES];
    for (name, store) in stores() {
        let mut group = criterion.benchmark_group(name);
        group.bench_function("put_session", |bencher| {
            bencher.iter(|| block_on(store.put_session(black_box(ADDRESS), black_box(&session))).unwrap());
        });
        group.bench_function("get_session", |bencher| {
            bencher.iter(|| block_on(store.get_session(black_box(ADDRESS))).unwrap());
        });
        group.bench_function("has_session", |bencher| {
            bencher.iter(|| block_on(store.has_session(black_box(ADDRESS))).unwrap());
        });
        let batch: Vec<(Arc<str>, Bytes)> = (0..64)
            .map(|number| (format!("1555010{number:04}:7@s.whatsapp.net").into(), Bytes::from(session.clone())))
            .collect();
        group.throughput(Throughput::Elements(64));
        group.bench_function("put_sessions_batch, 64 rows", |bencher| {
            bencher.iter(|| block_on(store.put_sessions_batch(black_box(&batch))).unwrap());
        });
        group.finish();
    }
}

fn other_records(criterion: &mut Criterion) {
    for (name, store) in stores() {
        let mut group = criterion.benchmark_group(name);
        group.bench_function("put_identity", |bencher| {
            bencher.iter(|| block_on(store.put_identity(black_box(ADDRESS), [7; 32])).unwrap());
        });
        group.bench_function("get_tc_token", |bencher| {
            block_on(store.store_received_tc_token("100000099887766@lid", &[9; 32], 1)).unwrap();
            bencher.iter(|| block_on(store.get_tc_token(black_box("100000099887766@lid"))).unwrap());
        });
        group.bench_function("store_sent_message, 200 B", |bencher| {
            bencher
                .iter(|| block_on(store.store_sent_message("15550109921@s.whatsapp.net", "3EB0", &[1; 200])).unwrap());
        });
        let entry = MsgSecretEntry {
            chat: "15550109921@s.whatsapp.net".into(),
            sender: "15550109921@s.whatsapp.net".into(),
            msg_id: "3EB0CA11AB1E".into(),
            secret: [5; 32],
            expires_at: 0,
            message_ts: 0,
        };
        group.bench_function("put_msg_secrets, 1 row", |bencher| {
            bencher.iter_batched(
                || vec![entry.clone()],
                |entries| block_on(store.put_msg_secrets(entries)).unwrap(),
                BatchSize::SmallInput,
            );
        });
        let device = wacore::store::Device::new();
        group.bench_function("save device", |bencher| {
            bencher.iter(|| block_on(store.save(black_box(&device))).unwrap());
        });
        group.bench_function("load device", |bencher| {
            bencher.iter(|| block_on(store.load()).unwrap());
        });
        group.finish();
    }
}

/// The client's external cache, in memory.
#[derive(Default)]
struct MemoryCache(Mutex<HashMap<(String, String), Vec<u8>>>);

#[async_trait]
impl CacheStore for MemoryCache {
    async fn get(&self, namespace: &str, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(&(namespace.to_owned(), key.to_owned())).cloned())
    }

    async fn set(&self, namespace: &str, key: &str, value: &[u8], _: Option<Duration>) -> anyhow::Result<()> {
        self.0.lock().unwrap().insert((namespace.to_owned(), key.to_owned()), value.to_vec());
        Ok(())
    }

    async fn delete(&self, namespace: &str, key: &str) -> anyhow::Result<()> {
        self.0.lock().unwrap().remove(&(namespace.to_owned(), key.to_owned()));
        Ok(())
    }

    async fn clear(&self, namespace: &str) -> anyhow::Result<()> {
        self.0.lock().unwrap().retain(|(of, _), _| of != namespace);
        Ok(())
    }
}

fn external_cache(criterion: &mut Criterion) {
    const GROUP: &str = "120363021033254949@g.us";
    let vault = block_on(VaultOptions::new().create(Arc::new(InMemoryBackend::new()), Key::generate().unwrap()));
    let caches: [(&str, Arc<dyn CacheStore>); 2] = [
        ("plain", Arc::new(MemoryCache::default())),
        ("encrypted", vault.unwrap().cache_store(Arc::new(MemoryCache::default()))),
    ];
    for (name, cache) in caches {
        let mut group = criterion.benchmark_group(name);
        for bytes in [100, 1000] {
            block_on(cache.set("group", GROUP, &vec![7; bytes], None)).unwrap();
            group.bench_function(format!("external cache, hit of {bytes} B"), |bencher| {
                bencher.iter(|| block_on(cache.get("group", black_box(GROUP))).unwrap().unwrap());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, sessions, other_records, external_cache);
criterion_main!(benches);
