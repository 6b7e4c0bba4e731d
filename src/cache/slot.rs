//! The cached values of one kind of record of one store, and the only place where they meet reads and writes under way.
//!
//! What a value must never be is older than an acknowledged write. So that it cannot,
//!
//! * a write removes the value before it goes to the store, and as long as it is under way, reads of the key go to the
//!   store as well. So a batch is seen as the store shows it: whole, if it is one step there;
//! * a read that asked the store keeps its answer only if no write of the key has begun since;
//! * what is kept counts only as long as the slot has not been cleared since it was asked for;
//! * a write keeps the value it wrote only if it was the only write of the key from its beginning to its end, and the store
//!   said so;
//! * a write that failed, or whose future was dropped, may still be carried out by the store, nobody knows when: its key is
//!   not cached for a while.
//!
//! Reads that miss at the same time share one call to the store. Each of them drives it when polled, so none depends on
//! another one's future being polled. No lock is held while the store is asked.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use smallvec::SmallVec;
use wacore::store::error::{Result, StoreError};

use super::content::Content;
use super::pool::{Cached, Pool};
use crate::ended;
use crate::method::BoxFuture;

/// How long a write that failed or was dropped may still be under way.
const UNSURE: Duration = Duration::from_secs(60);
/// How many keys of a shard may be in doubt before the whole slot is.
const MOST_UNSURE: usize = 256;
const SHARDS: usize = 16;

/// A key in the cache: the store's number and the parts of the record's key, each with its length before it.
pub(super) type Key = SmallVec<[u8; 96]>;

pub(super) struct Slot<V: Content> {
    pool: Arc<Pool<V>>,
    /// The store whose values these are: what their keys begin with.
    store: [u8; 4],
    /// What is under way, by key.
    activities: [Mutex<Activities<V>>; SHARDS],
    hasher: RandomState,
    /// Rises when everything is forgotten. Values of an earlier generation do not count, also if they come late.
    generation: AtomicU64,
    /// How often something had ended in this process when everything was forgotten for that.
    ended: AtomicU64,
    /// Something was kept since everything was forgotten last.
    kept: AtomicBool,
    /// How many writes have ended.
    writes: AtomicU64,
    /// Nothing is cached before, because a call that concerns every key failed or was dropped.
    unsure: Mutex<Option<Instant>>,
    time_to_live: Option<Duration>,
}

type Activities<V> = HashMap<Box<[u8]>, Activity<V>>;

/// The reads and writes of one key that are under way.
struct Activity<V: Content> {
    load: Option<Load<V>>,
    writers: usize,
    /// There were several writers at once, and not none since.
    overlapped: bool,
    /// Not cached before.
    unsure: Option<Instant>,
}

struct Load<V: Content> {
    number: u64,
    generation: u64,
    /// Weak, so that a load nobody waits for is dropped.
    call: WeakShared<Loading<V>>,
}

type Loading<V> = BoxFuture<'static, Loaded<V>>;

/// What a load gives to all who wait for it. The first takes the error, the others try for themselves.
type Loaded<V> = std::result::Result<Arc<Cached<V>>, Arc<Mutex<Option<StoreError>>>>;

impl<V: Content> Default for Activity<V> {
    fn default() -> Self {
        Self { load: None, writers: 0, overlapped: false, unsure: None }
    }
}

impl<V: Content> Activity<V> {
    fn is_over(&self) -> bool {
        self.load.is_none() && self.writers == 0 && self.unsure.is_none()
    }
}

enum Step<V: Content> {
    Found(Arc<Cached<V>>),
    Wait(Shared<Loading<V>>),
    Bypass,
}

impl<V: Content> Slot<V> {
    pub(super) fn new(pool: Arc<Pool<V>>, store: u32, time_to_live: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            pool,
            store: store.to_le_bytes(),
            activities: Default::default(),
            hasher: RandomState::new(),
            generation: AtomicU64::new(0),
            ended: AtomicU64::new(ended::count()),
            kept: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            unsure: Mutex::new(None),
            time_to_live,
        })
    }

    /// The cache's key for a record's key of several parts.
    pub(super) fn key<const PARTS: usize>(&self, parts: [&[u8]; PARTS]) -> Key {
        let mut key = Key::from_slice(&self.store);
        for part in parts {
            key.extend_from_slice(&part.len().to_le_bytes());
            key.extend_from_slice(part);
        }
        key
    }

    /// Counts a read that the store answers without the cache.
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

    /// The value, from the cache or from the store, which is asked with `load`.
    ///
    /// # Errors
    /// What `load` returns.
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
                        if let Some(error) = lock(&error).take() {
                            return Err(error);
                        }
                    }
                }
            }
            Step::Bypass => self.pool.counters.misses.increment(),
        }
        // By itself: where the store fails, nobody should wait for the failures of others.
        self.pool.counters.loads.increment();
        Ok(Arc::new(Cached::new(load().await?, 0, 0)))
    }

    fn step<F>(self: &Arc<Self>, key: &Key, load: &impl Fn() -> F) -> Step<V>
    where
        F: Future<Output = Result<V>> + Send + 'static,
    {
        let mut activities = self.activities(key);
        // It may have come since.
        if let Some(found) = self.fresh(key) {
            return Step::Found(found);
        }
        // Before the question that follows: a dropped call puts the slot in doubt first, and then forgets everything.
        let generation = self.generation();
        if self.is_unsure() {
            return Step::Bypass;
        }
        let activity = activities.entry(key.as_slice().into()).or_default();
        if activity.writers > 0 || activity.unsure.is_some_and(|until| until > Instant::now()) {
            return Step::Bypass;
        }
        activity.unsure = None;
        if let Some(load) = activity.load.as_ref().filter(|load| load.generation == generation)
            && let Some(call) = load.call.upgrade()
        {
            return Step::Wait(call);
        }
        self.pool.counters.loads.increment();
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let ending = Ending { slot: self.clone(), key: key.clone(), number, generation };
        let answer = load();
        let call: Loading<V> = Box::pin(async move {
            // A panic is for each caller by itself as well.
            match AssertUnwindSafe(answer).catch_unwind().await {
                Ok(answer) => ending.keep(answer),
                Err(_) => Err(Arc::default()),
            }
        });
        let call = call.shared();
        if let Some(weak) = call.downgrade() {
            activity.load = Some(Load { number, generation, call: weak });
        }
        Step::Wait(call)
    }

    /// Announces a write of these keys. To be ended with [`Write::end`] when the store has answered.
    pub(super) fn write(self: &Arc<Self>, keys: impl Iterator<Item = Key>) -> Write<V> {
        let keys: SmallVec<[Key; 1]> = keys.collect();
        for key in &keys {
            let mut activities = self.activities(key);
            let activity = activities.entry(key.as_slice().into()).or_default();
            activity.writers += 1;
            activity.overlapped |= activity.writers > 1;
            // Whoever waits for it began before the write; nobody joins it any more, and it does not keep its answer.
            activity.load = None;
            self.remove(key);
        }
        Write { slot: self.clone(), keys, generation: self.generation(), ended: false }
    }

    /// Announces a call that concerns any number of keys. To be ended with [`Clear::end`].
    pub(super) fn clear(self: &Arc<Self>) -> Clear<V> {
        Clear { slot: self.clone(), ended: false }
    }

    /// Rises when everything is forgotten, and when something ends that the store below may be.
    fn generation(&self) -> u64 {
        let ended = ended::count();
        if self.ended.load(Ordering::Relaxed) != ended && self.ended.swap(ended, Ordering::SeqCst) != ended {
            self.forget();
        }
        // Neither goes back, so that after an end the sum is above every one from before it.
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

    /// Keeps values that a listing gave, unless something was written since `before`.
    pub(super) fn fill(&self, rows: impl Iterator<Item = (Key, V)>, before: Before) -> usize {
        let mut kept = 0;
        for (key, value) in rows {
            let value = Arc::new(Cached::new(value, key.len(), before.generation));
            let activities = self.activities(&key);
            let untouched = self.before() == before && !self.is_unsure();
            if !untouched || activities.contains_key(key.as_slice()) {
                continue;
            }
            self.insert(&key, value);
            kept += 1;
        }
        kept
    }

    /// What [`Slot::fill`] compares with.
    pub(super) fn before(&self) -> Before {
        Before { generation: self.generation(), writes: self.writes.load(Ordering::SeqCst) }
    }

    /// A value that is there and may be used.
    fn fresh(&self, key: &Key) -> Option<Arc<Cached<V>>> {
        let found = self.pool.get(key)?;
        let expired = self.time_to_live.is_some_and(|time| found.since.elapsed() >= time);
        (found.generation == self.generation() && !expired).then_some(found)
    }

    fn is_unsure(&self) -> bool {
        lock(&self.unsure).is_some_and(|until| until > Instant::now())
    }

    fn be_unsure(&self) {
        *lock(&self.unsure) = Instant::now().checked_add(UNSURE);
    }

    fn activities(&self, key: &Key) -> MutexGuard<'_, Activities<V>> {
        interleave();
        let shard = self.hasher.hash_one(key.as_slice()) as usize % SHARDS;
        lock(&self.activities[shard])
    }

    /// What comes late, after everything was forgotten, would not count and only take memory.
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

/// Tells loads apart.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// What has happened to a slot so far.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Before {
    generation: u64,
    writes: u64,
}

/// Ends a load, also one that is dropped.
struct Ending<V: Content> {
    slot: Arc<Slot<V>>,
    key: Key,
    number: u64,
    generation: u64,
}

impl<V: Content> Ending<V> {
    fn keep(self, answer: Result<V>) -> Loaded<V> {
        let value = answer.map_err(|error| Arc::new(Mutex::new(Some(error))))?;
        let cached = Arc::new(Cached::new(value, self.key.len(), self.generation));
        let slot = &self.slot;
        let activities = slot.activities(&self.key);
        // A write that has begun has taken the load out.
        let load = activities.get(self.key.as_slice()).and_then(|activity| activity.load.as_ref());
        if load.is_some_and(|load| load.number == self.number) {
            slot.insert(&self.key, cached.clone());
        }
        drop(activities);
        Ok(cached)
    }
}

impl<V: Content> Drop for Ending<V> {
    fn drop(&mut self) {
        let mut activities = self.slot.activities(&self.key);
        if let MapEntry::Occupied(mut entry) = activities.entry(self.key.as_slice().into()) {
            let activity = entry.get_mut();
            if activity.load.as_ref().is_some_and(|load| load.number == self.number) {
                activity.load = None;
            }
            if activity.is_over() {
                entry.remove();
            }
        }
    }
}

/// A write under way. Dropping it says that nobody knows whether the store carries it out.
#[must_use = "a write that is not ended counts as dropped"]
pub(super) struct Write<V: Content> {
    slot: Arc<Slot<V>>,
    keys: SmallVec<[Key; 1]>,
    generation: u64,
    ended: bool,
}

impl<V: Content> Write<V> {
    /// Ends the write with what the store said, and gives it back. Of a success, `written` gives the value of the n-th
    /// key, or `None` if only the store knows it.
    ///
    /// # Errors
    /// `result`.
    pub(super) fn end<T>(mut self, result: Result<T>, mut written: impl FnMut(usize) -> Option<V>) -> Result<T> {
        if result.is_ok() {
            self.ended = true;
            for (position, key) in self.keys.iter().enumerate() {
                self.end_one(key, written(position), false);
            }
        }
        // An error may say no more than that nobody knows, such as a timeout: dropped, the write is in doubt.
        result
    }

    fn end_one(&self, key: &Key, value: Option<V>, unsure: bool) {
        let slot = &self.slot;
        // Wiped, whether it is kept or not.
        let value = value.map(|value| Arc::new(Cached::new(value, key.len(), self.generation)));
        let mut activities = slot.activities(key);
        slot.writes.fetch_add(1, Ordering::SeqCst);
        let many = unsure && {
            let now = Instant::now();
            activities.retain(|_, activity| {
                activity.unsure = activity.unsure.filter(|until| *until > now);
                !activity.is_over()
            });
            activities.values().filter(|activity| activity.unsure.is_some()).count() >= MOST_UNSURE
        };
        let MapEntry::Occupied(mut entry) = activities.entry(key.as_slice().into()) else { return };
        let activity = entry.get_mut();
        activity.writers -= 1;
        if many {
            slot.be_unsure();
        } else if unsure {
            activity.unsure = Instant::now().checked_add(UNSURE);
        }
        let sure = activity.unsure.is_none() && !slot.is_unsure();
        match value {
            Some(value) if !activity.overlapped && sure => {
                slot.insert(key, value);
            }
            _ => slot.remove(key),
        }
        activity.overlapped &= activity.writers > 0;
        if activity.is_over() {
            entry.remove();
        }
    }
}

impl<V: Content> Drop for Slot<V> {
    fn drop(&mut self) {
        self.pool.remove_store(self.store);
    }
}

impl<V: Content> Drop for Write<V> {
    fn drop(&mut self) {
        if !self.ended {
            let many = self.keys.len() > MOST_UNSURE;
            if many {
                self.slot.be_unsure();
            }
            for key in &self.keys {
                self.end_one(key, None, !many);
            }
        }
    }
}

/// A call under way that concerns any number of keys.
#[must_use = "a call that is not ended counts as dropped"]
pub(super) struct Clear<V: Content> {
    slot: Arc<Slot<V>>,
    ended: bool,
}

impl<V: Content> Clear<V> {
    /// Ends the call with what the store said, and gives it back. `changed` tells whether a success has changed any row.
    ///
    /// # Errors
    /// `result`.
    pub(super) fn end<T>(mut self, result: Result<T>, changed: impl FnOnce(&T) -> bool) -> Result<T> {
        if let Ok(result) = &result {
            self.ended = true;
            if changed(result) {
                self.slot.forget();
            }
        }
        // An error leaves the call in doubt, as with a write.
        result
    }
}

impl<V: Content> Drop for Clear<V> {
    fn drop(&mut self) {
        if !self.ended {
            self.slot.be_unsure();
            self.slot.forget();
        }
    }
}

/// Where the tests let other tasks run.
fn interleave() {
    #[cfg(test)]
    super::tests::interleave();
}

/// Nothing panics while holding one of the locks, but a user's loader might.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
