//! The memory that the caches of all stores share, per kind of record.

use std::sync::Arc;
#[cfg(feature = "metrics")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};

use super::content::Content;
use crate::method::Record;
#[cfg(feature = "metrics")]
use crate::metrics::facade::{CacheExport, CounterExport};
use crate::striped::{self, STRIPES};

/// A value in the cache. It is wiped when the last one who has it drops it.
pub(super) struct Cached<V: Content> {
    pub(super) value: V,
    pub(super) generation: u64,
    pub(super) since: Instant,
    /// What it takes in memory, in bytes, its key and its place in the tables included.
    weight: u64,
}

impl<V: Content> Cached<V> {
    pub(super) fn new(value: V, key_length: usize, generation: u64) -> Self {
        let weight = (OVERHEAD + size_of::<Self>() + key_length + value.heap_bytes()) as u64;
        Self { value, generation, since: Instant::now(), weight }
    }
}

impl<V: Content> Drop for Cached<V> {
    fn drop(&mut self) {
        self.value.wipe();
    }
}

/// What an entry takes besides its key and its value: the counters of the `Arc`, allocations rounded up, the slot in
/// quick_cache's slab and hash table with room to grow, and its share of the keys that were evicted lately and are
/// remembered without their values. `tests/cache_budget.rs` weighs it.
const OVERHEAD: usize = 176;

/// Values of one kind under their keys, as many as the budget holds.
pub(super) struct Pool<V: Content> {
    cache: Cache<Box<[u8]>, Arc<Cached<V>>, Weight, DefaultHashBuilder, CountEvictions>,
    pub(super) counters: Counters,
    evictions: Arc<Counter>,
}

impl<V: Content> Pool<V> {
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        let evictions = Arc::new(Counter::default());
        // quick_cache rounds up to a power of two; so that a part is not smaller, this rounds down before.
        let shards = 1usize << (bytes / SHARD_BYTES).clamp(1, 16).ilog2();
        let options = OptionsBuilder::new()
            .shards(shards)
            // Sizes the tables at the start, and how many evicted keys are remembered.
            .estimated_items_capacity((bytes / 1024).max(32 * shards as u64) as usize)
            .weight_capacity(bytes)
            .build();
        let lifecycle = CountEvictions(evictions.clone());
        let cache = match options {
            Ok(options) => Cache::with_options(options, Weight, DefaultHashBuilder::default(), lifecycle),
            // Both capacities are given.
            Err(_) => Cache::with(32, bytes, Weight, DefaultHashBuilder::default(), lifecycle),
        };
        Arc::new(Self { cache, counters: Counters::default(), evictions })
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<Cached<V>>> {
        self.cache.get(key)
    }

    pub(super) fn insert(&self, key: &[u8], value: Arc<Cached<V>>) {
        self.cache.insert(key.into(), value);
    }

    /// `true` if there was a value.
    pub(super) fn remove(&self, key: &[u8]) -> bool {
        self.cache.remove(key).is_some()
    }

    /// Removes all values of a store; gives their number.
    pub(super) fn remove_store(&self, store: [u8; 4]) -> u64 {
        let removed = AtomicU64::new(0);
        self.cache.retain(|key, _| {
            let keep = !key.starts_with(&store);
            removed.fetch_add(u64::from(!keep), Ordering::Relaxed);
            keep
        });
        removed.into_inner()
    }

    /// Exports what is counted from now on. Once only.
    #[cfg(feature = "metrics")]
    pub(super) fn export(&self, layer: &'static str, record: Record) {
        let Counters { hits, misses, loads, invalidations } = &self.counters;
        let counters = [hits, misses, loads, &*self.evictions, invalidations];
        for (counter, export) in counters.into_iter().zip(CacheExport::counters(layer, record)) {
            counter.export.get_or_init(|| export);
        }
    }

    pub(super) fn stats(&self, record: Record) -> RecordStats {
        let Counters { hits, misses, loads, invalidations } = &self.counters;
        RecordStats {
            record,
            hits: hits.sum(),
            misses: misses.sum(),
            loads: loads.sum(),
            evictions: self.evictions.sum(),
            invalidations: invalidations.sum(),
            entries: self.cache.len() as u64,
            bytes: self.cache.weight(),
            capacity: self.cache.capacity(),
        }
    }
}

/// A shard is a lock, and what the largest value has to fit into.
const SHARD_BYTES: u64 = 512 * 1024;

/// What happened to the cache of one kind of record. Sums over all stores of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordStats {
    /// The kind of record.
    pub record: Record,
    /// Reads that were answered from the cache.
    pub hits: u64,
    /// Reads that were not.
    pub misses: u64,
    /// Calls to the store that misses led to. Fewer than misses if several tasks missed the same key at once.
    pub loads: u64,
    /// Values that had to make room, or were too large.
    pub evictions: u64,
    /// Values that were removed because a call made them stale.
    pub invalidations: u64,
    /// Values that are there now.
    pub entries: u64,
    /// What they take, in bytes.
    pub bytes: u64,
    /// What they may take, in bytes.
    pub capacity: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) hits: Counter,
    pub(super) misses: Counter,
    pub(super) loads: Counter,
    pub(super) invalidations: Counter,
}

/// A counter in stripes, so that threads do not wait for one another's cache line.
#[derive(Default)]
pub(super) struct Counter {
    stripes: [Stripe; STRIPES],
    #[cfg(feature = "metrics")]
    export: OnceLock<CounterExport>,
}

#[derive(Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

impl Counter {
    pub(super) fn increment(&self) {
        self.add(1);
    }

    pub(super) fn add(&self, number: u64) {
        let stripe = striped::Stripe::current();
        stripe.add(&self.stripes[stripe.index].0, number);
        #[cfg(feature = "metrics")]
        if let Some(export) = self.export.get() {
            export.add(number);
        }
    }

    fn sum(&self) -> u64 {
        self.stripes.iter().map(|Stripe(count)| count.load(Ordering::Relaxed)).sum()
    }
}

#[derive(Clone)]
struct Weight;

impl<V: Content> Weighter<Box<[u8]>, Arc<Cached<V>>> for Weight {
    fn weight(&self, _: &Box<[u8]>, value: &Arc<Cached<V>>) -> u64 {
        value.weight
    }
}

#[derive(Clone)]
struct CountEvictions(Arc<Counter>);

impl<V: Content> Lifecycle<Box<[u8]>, Arc<Cached<V>>> for CountEvictions {
    type RequestState = ();

    fn begin_request(&self) {}

    fn on_evict(&self, (): &mut (), _: Box<[u8]>, _: Arc<Cached<V>>) {
        self.0.increment();
    }
}
