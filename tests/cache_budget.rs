//! The cache keeps its budget for all sizes and keys, measured at the allocator.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure is a failed test")]

use std::alloc::System;
use std::sync::Arc;

use futures::executor::block_on;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use wacore::store::InMemoryBackend;
use wacore::store::traits::TcTokenEntry;
use wastore::{CacheLayer, Layer, Record};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn allocated() -> i64 {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as i64 - stats.bytes_deallocated as i64
}

/// The memory that stays allocated after values of mixed sizes, relative to the budget.
fn resident(name: &str, budget: u64, mut size: impl FnMut(&mut SmallRng) -> (usize, usize)) -> f64 {
    let mut random = SmallRng::seed_from_u64(7);
    // The store stays empty: rows are deleted below the cache after they were read.
    let below = Arc::new(InMemoryBackend::new());
    let all = [Record::SyncKey, Record::CollectionVersion, Record::SenderKeyDevice, Record::LidMapping];
    let none = [Record::DeviceList, Record::GroupMetadata, Record::MessageSecret];
    let cache = all.into_iter().chain(none).fold(CacheLayer::new(budget), CacheLayer::without).with(Record::Session);
    let before = allocated();
    let store = cache.layer(below.clone());
    let mut most = 0;
    for number in 0..20_000u32 {
        let (key, value) = size(&mut random);
        let key = format!("{number:0key$}");
        block_on(async {
            use wacore::store::traits::{ProtocolStore, SignalStore};
            if number % 2 == 0 {
                store.put_session(&key, &vec![1; value]).await.unwrap();
                below.delete_session(&key).await.unwrap();
            } else {
                let token = TcTokenEntry { token: vec![1; value], token_timestamp: 1, sender_timestamp: None };
                store.put_tc_token(&key, &token).await.unwrap();
                below.delete_tc_token(&key).await.unwrap();
            }
        });
        most = most.max(allocated() - before);
    }
    let stats = cache.stats();
    assert!(stats.bytes() > budget * 8 / 10, "{name}: only {} bytes of {budget} are used", stats.bytes());
    assert!(stats.bytes() <= budget + 64, "{name}: {} bytes", stats.bytes());
    let relative = most as f64 / budget as f64;
    assert!(relative < 1.1, "{name}: {relative:.3} of the budget was allocated");
    relative
}

#[test]
fn the_budget_holds_whatever_the_sizes() {
    let budget = 4 << 20;
    // Allocates memory that is allocated only once, such as the tables of the in-memory store.
    let warm = resident("warm-up", budget, |_| (20, 100));
    let figures = [
        ("tiny", resident("tiny", budget, |_| (8, 0))),
        ("sessions", resident("sessions", budget, |_| (28, 1500))),
        ("long keys", resident("long keys", budget, |_| (1000, 1))),
        ("large", resident("large", budget, |random| (30, random.random_range(10_000..100_000)))),
        ("mixed", resident("mixed", budget, |random| (random.random_range(8..300), 1 << random.random_range(0..17)))),
    ];
    let report: Vec<_> = figures.iter().map(|(name, relative)| format!("{name} {relative:.3}")).collect();
    assert!(warm < 1.1, "{report:?}");
}
