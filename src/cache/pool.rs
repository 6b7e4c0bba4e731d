//! The memory that the caches of all stores share, per kind of record.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};

use super::stats::{Counters, RecordStats};
use super::value::CacheValue;
use crate::method::Record;
use crate::striped::Counter;

/// A value in the cache. It is wiped when its last holder drops it.
pub(super) struct Cached<V: CacheValue> {
    pub(super) value: V,
    pub(super) generation: u64,
    pub(super) since: Instant,
    /// The memory of the value, its key and its place in the tables, in bytes.
    weight: u64,
}

impl<V: CacheValue> Cached<V> {
    pub(super) fn new(value: V, key_length: usize, generation: u64) -> Self {
        let weight = (OVERHEAD + size_of::<Self>() + key_length + value.heap_bytes()) as u64;
        Self { value, generation, since: Instant::now(), weight }
    }
}

impl<V: CacheValue> Drop for Cached<V> {
    fn drop(&mut self) {
        self.value.wipe();
    }
}

/// The memory in bytes of an entry besides its key and its value: the counters of the `Arc`, rounding of allocations,
/// and the slot in quick_cache's slab and hash table with room to grow. It includes the entry's share of the keys
/// that quick_cache remembers after it evicted their values. `tests/cache_budget.rs` measures it.
const OVERHEAD: usize = 176;

/// Values of one kind by key, as many as the budget allows.
pub(super) struct Pool<V: CacheValue> {
    cache: Cache<Box<[u8]>, Arc<Cached<V>>, Weight, DefaultHashBuilder, CountEvictions>,
    pub(super) counters: Counters,
}

impl<V: CacheValue> Pool<V> {
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        let counters = Counters::default();
        // quick_cache rounds up to a power of two. This rounds down first, so that a shard does not get smaller.
        let shards = 1usize << (bytes / SHARD_BYTES).clamp(1, 16).ilog2();
        let options = OptionsBuilder::new()
            .shards(shards)
            // Determines the initial size of the tables, and how many evicted keys quick_cache remembers.
            .estimated_items_capacity((bytes / 1024).max(32 * shards as u64) as usize)
            .weight_capacity(bytes)
            .build();
        let lifecycle = CountEvictions(counters.evictions.clone());
        let cache = match options {
            Ok(options) => Cache::with_options(options, Weight, DefaultHashBuilder::default(), lifecycle),
            // Unreachable, because both capacities are set.
            Err(_) => Cache::with(32, bytes, Weight, DefaultHashBuilder::default(), lifecycle),
        };
        Arc::new(Self { cache, counters })
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<Cached<V>>> {
        self.cache.get(key)
    }

    pub(super) fn insert(&self, key: &[u8], value: Arc<Cached<V>>) {
        self.cache.insert(key.into(), value);
    }

    /// Returns whether there was a value.
    pub(super) fn remove(&self, key: &[u8]) -> bool {
        self.cache.remove(key).is_some()
    }

    /// Removes all values of a store, and returns their number.
    pub(super) fn remove_store(&self, store: [u8; 4]) -> u64 {
        let removed = AtomicU64::new(0);
        self.cache.retain(|key, _| {
            let keep = !key.starts_with(&store);
            removed.fetch_add(u64::from(!keep), Ordering::Relaxed);
            keep
        });
        removed.into_inner()
    }

    pub(super) fn stats(&self, record: Record) -> RecordStats {
        let Counters { hits, misses, loads, evictions, invalidations } = &self.counters;
        RecordStats {
            record,
            hits: hits.sum(),
            misses: misses.sum(),
            loads: loads.sum(),
            evictions: evictions.sum(),
            invalidations: invalidations.sum(),
            entries: self.cache.len() as u64,
            bytes: self.cache.weight(),
            capacity: self.cache.capacity(),
        }
    }
}

/// The size of a shard in bytes. Each has its own lock, and the largest value must fit into one.
const SHARD_BYTES: u64 = 512 * 1024;

#[derive(Clone)]
struct Weight;

impl<V: CacheValue> Weighter<Box<[u8]>, Arc<Cached<V>>> for Weight {
    fn weight(&self, _: &Box<[u8]>, value: &Arc<Cached<V>>) -> u64 {
        value.weight
    }
}

#[derive(Clone)]
struct CountEvictions(Arc<Counter>);

impl<V: CacheValue> Lifecycle<Box<[u8]>, Arc<Cached<V>>> for CountEvictions {
    type RequestState = ();

    fn begin_request(&self) {}

    fn on_evict(&self, (): &mut (), _: Box<[u8]>, _: Arc<Cached<V>>) {
        self.0.increment();
    }
}
