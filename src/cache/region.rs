//! A region: the cached values of one kind of record of one store. Only here do they meet reads and writes in flight.
//!
//! A value must never be older than an acknowledged write. These rules ensure it:
//!
//! * A write removes the value before it goes to the store. While it is in flight, reads of the key go to the store
//!   as well. So readers see a batch as the store shows it: whole, if it is one step there.
//! * A read that asked the store keeps its answer only if no write of the key has begun since.
//! * A value counts only if the region has not been cleared since the read asked the store for it.
//! * A write keeps the value it wrote only if the store returned `Ok` and no other write of the key overlapped it.
//! * The store may carry out a write at any later time, even if it failed or its caller dropped the future. The key
//!   of such a write is in doubt: it is not cached for a while.
//!
//! Reads that miss at the same time share one call to the store. Each of them drives it when polled, so none depends
//! on another one's future being polled. No lock is held while the store works.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use smallvec::SmallVec;
use wacore::store::error::{Result, StoreError};

use super::pool::{Cached, Pool};
use super::value::CacheValue;
use crate::ended;
use crate::method::BoxFuture;
use crate::sync::IgnorePoison;

/// How long a key stays in doubt: the longest delay after which the store may carry out a failed or dropped write.
const DOUBT_TIME: Duration = Duration::from_secs(60);
/// The number of keys of a shard that may be in doubt before the whole region is.
const MAX_IN_DOUBT: usize = 256;
const SHARDS: usize = 16;

/// A key in the cache: the store's number and the parts of the record's key, each with its length before it.
pub(super) type Key = SmallVec<[u8; 96]>;

/// See the [module](self).
pub(super) struct Region<V: CacheValue> {
    pool: Arc<Pool<V>>,
    /// The number of the store, with which the keys of its values begin.
    store: [u8; 4],
    /// The reads and writes in flight, by key.
    shards: [Mutex<Shard<V>>; SHARDS],
    hasher: RandomState,
    /// Rises when everything is forgotten. Values of an earlier generation do not count, even if they arrive later.
    generation: AtomicU64,
    /// The number of ends (of accounts, stores and vaults) in this process that this region has already reacted to.
    ended: AtomicU64,
    /// A value was inserted since the last time everything was forgotten.
    kept: AtomicBool,
    /// The number of writes that have ended.
    writes: AtomicU64,
    /// Nothing is cached until then, because a call that concerns every key failed or was dropped.
    in_doubt_until: Mutex<Option<Instant>>,
    time_to_live: Option<Duration>,
}

type Shard<V> = HashMap<Box<[u8]>, InFlight<V>>;

/// The reads and writes of one key that have not ended.
struct InFlight<V: CacheValue> {
    load: Option<Load<V>>,
    writers: usize,
    /// Several writes were in flight at once, and the key has had a writer ever since.
    overlapped: bool,
    /// The key is not cached until then.
    in_doubt_until: Option<Instant>,
}

struct Load<V: CacheValue> {
    number: u64,
    generation: u64,
    /// Weak, so that a load is dropped when no task waits for it any more.
    call: WeakShared<Loading<V>>,
}

type Loading<V> = BoxFuture<'static, Loaded<V>>;

/// The answer of a load for all tasks that wait for it. The first task takes an error; the others ask the store
/// themselves.
type Loaded<V> = std::result::Result<Arc<Cached<V>>, Arc<Mutex<Option<StoreError>>>>;

impl<V: CacheValue> Default for InFlight<V> {
    fn default() -> Self {
        Self { load: None, writers: 0, overlapped: false, in_doubt_until: None }
    }
}

impl<V: CacheValue> InFlight<V> {
    fn is_over(&self) -> bool {
        self.load.is_none() && self.writers == 0 && self.in_doubt_until.is_none()
    }
}

/// The next step of a read.
enum Step<V: CacheValue> {
    Found(Arc<Cached<V>>),
    Wait(Shared<Loading<V>>),
    /// The read asks the store itself, and its answer is not kept.
    Bypass,
}

impl<V: CacheValue> Region<V> {
    pub(super) fn new(pool: Arc<Pool<V>>, store: u32, time_to_live: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            pool,
            store: store.to_le_bytes(),
            shards: Default::default(),
            hasher: RandomState::new(),
            generation: AtomicU64::new(0),
            ended: AtomicU64::new(ended::count()),
            kept: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            in_doubt_until: Mutex::new(None),
            time_to_live,
        })
    }

    /// The cache's key for a record's key, which has several parts.
    pub(super) fn key<const PARTS: usize>(&self, parts: [&[u8]; PARTS]) -> Key {
        let mut key = Key::from_slice(&self.store);
        for part in parts {
            key.extend_from_slice(&part.len().to_le_bytes());
            key.extend_from_slice(part);
        }
        key
    }

    /// Counts a read that bypasses the cache.
    pub(super) fn count_miss(&self) {
        self.pool.counters.misses.increment();
    }

    /// The value, if it is cached.
    pub(super) fn peek(&self, key: &Key) -> Option<Arc<Cached<V>>> {
        interleave();
        let found = self.fresh(key)?;
        self.pool.counters.hits.increment();
        Some(found)
    }

    /// The value from the cache, or from the store by calling `load`.
    ///
    /// # Errors
    /// The error of `load`.
    pub(super) async fn get<F>(self: &Arc<Self>, key: Key, load: impl Fn() -> F) -> Result<Arc<Cached<V>>>
    where
        F: Future<Output = Result<V>> + Send + 'static,
    {
        if let Some(found) = self.peek(&key) {
            return Ok(found);
        }
        match self.step(&key, &load) {
            Step::Found(found) => {
                self.pool.counters.hits.increment();
                return Ok(found);
            }
            Step::Wait(call) => {
                self.pool.counters.misses.increment();
                match call.await {
                    Ok(found) => return Ok(found),
                    Err(error) => {
                        if let Some(error) = error.lock().ignore_poison().take() {
                            return Err(error);
                        }
                    }
                }
            }
            Step::Bypass => self.pool.counters.misses.increment(),
        }
        // On its own: when the store fails, no task should wait for the failures of others.
        self.pool.counters.loads.increment();
        Ok(Arc::new(Cached::new(load().await?, 0, 0)))
    }

    fn step<F>(self: &Arc<Self>, key: &Key, load: &impl Fn() -> F) -> Step<V>
    where
        F: Future<Output = Result<V>> + Send + 'static,
    {
        let mut shard = self.shard(key);
        // Another task may have inserted it in between.
        if let Some(found) = self.fresh(key) {
            return Step::Found(found);
        }
        // The order matters: a dropped call puts the region in doubt first, and then forgets everything.
        let generation = self.generation();
        if self.is_in_doubt() {
            return Step::Bypass;
        }
        let in_flight = shard.entry(key.as_slice().into()).or_default();
        if in_flight.writers > 0 || in_flight.in_doubt_until.is_some_and(|until| until > Instant::now()) {
            return Step::Bypass;
        }
        in_flight.in_doubt_until = None;
        if let Some(load) = in_flight.load.as_ref().filter(|load| load.generation == generation)
            && let Some(call) = load.call.upgrade()
        {
            return Step::Wait(call);
        }
        self.pool.counters.loads.increment();
        let number = NEXT_LOAD.fetch_add(1, Ordering::Relaxed);
        let guard = LoadGuard { region: self.clone(), key: key.clone(), number, generation };
        let answer = load();
        let call: Loading<V> = Box::pin(async move {
            // After a panic each caller asks the store itself, as it does after an error.
            match AssertUnwindSafe(answer).catch_unwind().await {
                Ok(answer) => guard.keep(answer),
                Err(_) => Err(Arc::default()),
            }
        });
        let call = call.shared();
        if let Some(weak) = call.downgrade() {
            in_flight.load = Some(Load { number, generation, call: weak });
        }
        Step::Wait(call)
    }

    /// Announces a write of these keys. The caller ends it with [`WriteGuard::end`] when the store has returned.
    pub(super) fn write(self: &Arc<Self>, keys: impl Iterator<Item = Key>) -> WriteGuard<V> {
        let keys: SmallVec<[Key; 1]> = keys.collect();
        for key in &keys {
            let mut shard = self.shard(key);
            let in_flight = shard.entry(key.as_slice().into()).or_default();
            in_flight.writers += 1;
            in_flight.overlapped |= in_flight.writers > 1;
            // The readers of this load began before the write. No later read joins them, and their answer is not
            // kept.
            in_flight.load = None;
            self.remove(key);
        }
        WriteGuard { region: self.clone(), keys, generation: self.generation(), ended: false }
    }

    /// Announces a call that concerns any number of keys. The caller ends it with [`ClearGuard::end`].
    pub(super) fn clear(self: &Arc<Self>) -> ClearGuard<V> {
        ClearGuard { region: self.clone(), ended: false }
    }

    /// The current generation. It rises when everything is forgotten, and when an account, a store or a vault ends.
    fn generation(&self) -> u64 {
        let ended = ended::count();
        if self.ended.load(Ordering::Relaxed) != ended && self.ended.swap(ended, Ordering::SeqCst) != ended {
            self.forget();
        }
        // Neither number falls, so the sum after an end is higher than ever before.
        self.generation.load(Ordering::SeqCst) + ended
    }

    /// Forgets everything.
    pub(super) fn forget(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.kept.swap(false, Ordering::SeqCst) {
            let forgotten = self.pool.remove_store(self.store);
            self.pool.counters.invalidations.add(forgotten);
        }
    }

    /// Keeps the values of a listing, unless a write has ended after the snapshot `since`.
    pub(super) fn fill(&self, rows: impl Iterator<Item = (Key, V)>, since: Snapshot) -> usize {
        let mut kept = 0;
        for (key, value) in rows {
            let value = Arc::new(Cached::new(value, key.len(), since.generation));
            let shard = self.shard(&key);
            let untouched = self.snapshot() == since && !self.is_in_doubt();
            if !untouched || shard.contains_key(key.as_slice()) {
                continue;
            }
            self.insert(&key, value);
            kept += 1;
        }
        kept
    }

    /// The state before a listing, for [`Region::fill`].
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot { generation: self.generation(), writes: self.writes.load(Ordering::SeqCst) }
    }

    /// The value, if it is cached and may be used.
    fn fresh(&self, key: &Key) -> Option<Arc<Cached<V>>> {
        let found = self.pool.get(key)?;
        let expired = self.time_to_live.is_some_and(|time| found.since.elapsed() >= time);
        (found.generation == self.generation() && !expired).then_some(found)
    }

    fn is_in_doubt(&self) -> bool {
        self.in_doubt_until.lock().ignore_poison().is_some_and(|until| until > Instant::now())
    }

    fn mark_in_doubt(&self) {
        *self.in_doubt_until.lock().ignore_poison() = Instant::now().checked_add(DOUBT_TIME);
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard<V>> {
        interleave();
        let shard = self.hasher.hash_one(key.as_slice()) as usize % SHARDS;
        self.shards[shard].lock().ignore_poison()
    }

    /// Does nothing if everything was forgotten since the read began: the value would not count, only take memory.
    fn insert(&self, key: &Key, value: Arc<Cached<V>>) {
        if value.generation == self.generation() {
            self.kept.store(true, Ordering::SeqCst);
            self.pool.insert(key, value);
        }
    }

    fn remove(&self, key: &Key) {
        if self.pool.remove(key) {
            self.pool.counters.invalidations.increment();
        }
    }
}

/// Numbers the loads.
static NEXT_LOAD: AtomicU64 = AtomicU64::new(0);

/// How often a region was forgotten and written to so far.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Snapshot {
    generation: u64,
    writes: u64,
}

/// A load in flight. Dropping it ends the load as well.
struct LoadGuard<V: CacheValue> {
    region: Arc<Region<V>>,
    key: Key,
    number: u64,
    generation: u64,
}

impl<V: CacheValue> LoadGuard<V> {
    /// Ends the load, and keeps its answer unless a write of the key has begun.
    fn keep(self, answer: Result<V>) -> Loaded<V> {
        let value = answer.map_err(|error| Arc::new(Mutex::new(Some(error))))?;
        let cached = Arc::new(Cached::new(value, self.key.len(), self.generation));
        let region = &self.region;
        let shard = region.shard(&self.key);
        // A write of the key removes the load when it begins.
        let load = shard.get(self.key.as_slice()).and_then(|in_flight| in_flight.load.as_ref());
        if load.is_some_and(|load| load.number == self.number) {
            region.insert(&self.key, cached.clone());
        }
        drop(shard);
        Ok(cached)
    }
}

impl<V: CacheValue> Drop for LoadGuard<V> {
    fn drop(&mut self) {
        let mut shard = self.region.shard(&self.key);
        if let MapEntry::Occupied(mut entry) = shard.entry(self.key.as_slice().into()) {
            let in_flight = entry.get_mut();
            if in_flight.load.as_ref().is_some_and(|load| load.number == self.number) {
                in_flight.load = None;
            }
            if in_flight.is_over() {
                entry.remove();
            }
        }
    }
}

/// A write in flight. Dropping it puts its keys in doubt: the store may still carry the write out.
#[must_use = "a write that is not ended counts as dropped"]
pub(super) struct WriteGuard<V: CacheValue> {
    region: Arc<Region<V>>,
    keys: SmallVec<[Key; 1]>,
    generation: u64,
    ended: bool,
}

impl<V: CacheValue> WriteGuard<V> {
    /// Ends the write with the store's result, and returns that result. After a success, `written` returns the value
    /// of the n-th key, or `None` if only the store knows it.
    ///
    /// # Errors
    /// The error in `result`.
    pub(super) fn end<T>(mut self, result: Result<T>, mut written: impl FnMut(usize) -> Option<V>) -> Result<T> {
        if result.is_ok() {
            self.ended = true;
            for (position, key) in self.keys.iter().enumerate() {
                self.end_one(key, written(position), false);
            }
        }
        // After an error, for example a timeout, the store may still carry the write out. So the dropped guard puts
        // it in doubt.
        result
    }

    fn end_one(&self, key: &Key, value: Option<V>, in_doubt: bool) {
        let region = &self.region;
        // `Cached` wipes the value, even if it is not kept.
        let value = value.map(|value| Arc::new(Cached::new(value, key.len(), self.generation)));
        let mut shard = region.shard(key);
        region.writes.fetch_add(1, Ordering::SeqCst);
        let many = in_doubt && {
            let now = Instant::now();
            shard.retain(|_, in_flight| {
                in_flight.in_doubt_until = in_flight.in_doubt_until.filter(|until| *until > now);
                !in_flight.is_over()
            });
            shard.values().filter(|in_flight| in_flight.in_doubt_until.is_some()).count() >= MAX_IN_DOUBT
        };
        let MapEntry::Occupied(mut entry) = shard.entry(key.as_slice().into()) else { return };
        let in_flight = entry.get_mut();
        in_flight.writers -= 1;
        if many {
            region.mark_in_doubt();
        } else if in_doubt {
            in_flight.in_doubt_until = Instant::now().checked_add(DOUBT_TIME);
        }
        let certain = in_flight.in_doubt_until.is_none() && !region.is_in_doubt();
        match value {
            Some(value) if !in_flight.overlapped && certain => {
                region.insert(key, value);
            }
            _ => region.remove(key),
        }
        in_flight.overlapped &= in_flight.writers > 0;
        if in_flight.is_over() {
            entry.remove();
        }
    }
}

impl<V: CacheValue> Drop for Region<V> {
    fn drop(&mut self) {
        self.pool.remove_store(self.store);
    }
}

impl<V: CacheValue> Drop for WriteGuard<V> {
    fn drop(&mut self) {
        if !self.ended {
            let many = self.keys.len() > MAX_IN_DOUBT;
            if many {
                self.region.mark_in_doubt();
            }
            for key in &self.keys {
                self.end_one(key, None, !many);
            }
        }
    }
}

/// A call in flight that concerns any number of keys.
#[must_use = "a call that is not ended counts as dropped"]
pub(super) struct ClearGuard<V: CacheValue> {
    region: Arc<Region<V>>,
    ended: bool,
}

impl<V: CacheValue> ClearGuard<V> {
    /// Ends the call with the store's result, and returns that result. `changed` tells whether a successful call
    /// changed any row.
    ///
    /// # Errors
    /// The error in `result`.
    pub(super) fn end<T>(mut self, result: Result<T>, changed: impl FnOnce(&T) -> bool) -> Result<T> {
        if let Ok(result) = &result {
            self.ended = true;
            if changed(result) {
                self.region.forget();
            }
        }
        // An error leaves the call in doubt, as it does with a write.
        result
    }
}

impl<V: CacheValue> Drop for ClearGuard<V> {
    fn drop(&mut self) {
        if !self.ended {
            self.region.mark_in_doubt();
            self.region.forget();
        }
    }
}

/// The point where tests let other tasks run.
fn interleave() {
    #[cfg(test)]
    super::tests::interleave();
}
