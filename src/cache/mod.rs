//! A bounded cache over a slow store.
//!
//! | record | cached | forgotten when |
//! |--|--|--|
//! | session, identity, sender key, signed prekey | if chosen | it is written or deleted |
//! | sync key | yes | it is written; the latest id with any of them |
//! | collection version | yes | it is written |
//! | sender key devices of a group | yes | they are written or cleared; of all groups when devices are deleted |
//! | LID mapping, by LID and by number | yes | it is written; all by number with any of them |
//! | device list, group metadata | yes | it is written or deleted |
//! | tc token | yes | it is written, touched, received or deleted; all when a sweep deletes some |
//! | message secret | yes | it is written; all when a sweep deletes some |
//!
//! That a row is absent is cached as well. Everything else passes through: what is taken, counted, listed or compared
//! inside the store, prekeys, mutation MACs, messages, the device.
//!
//! Writes go to the store first; `Ok` means that the store said so. How reads and writes meet is in `slot.rs`.

mod app_sync;
mod content;
mod device;
mod msg_secret;
mod pool;
mod protocol;
mod signal;
mod slot;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use wacore::appstate::hash::HashState;
use wacore::store::error::Result;
use wacore::store::traits::{AppStateSyncKey, Backend, DeviceListRecord, LidPnMappingEntry, TcTokenEntry};

use crate::layer::Layer;
use crate::method::Record;
use content::Blob;
use pool::Pool;
pub use pool::RecordStats;
use slot::Slot;

/// A cache over a store, bounded in bytes.
///
/// A handle: clones share the cache. Applied to several stores, for example the accounts of one bot, it keeps their
/// records apart and shares its budget among them.
///
/// Over encryption it holds plaintext, which it wipes when it lets go of it; under encryption it holds ciphertext, and
/// every hit is decrypted. What it holds is never older than an acknowledged write **through the same application of this
/// layer**. If another process writes to the same store, or the layer is applied to it twice, limit the age of what it holds
/// with [`CacheLayer::time_to_live`]. When an account is deleted, or a store or a vault is closed, all caches of the process
/// begin from nothing.
///
/// ```
/// use std::sync::Arc;
/// use wacore::store::InMemoryBackend;
/// use wacore::store::traits::TcTokenEntry;
/// use wastore::{CacheLayer, Record, Stack};
///
/// # futures::executor::block_on(async {
/// let cache = CacheLayer::bytes(16 << 20).with(Record::Session);
/// let stack = Stack::new(Arc::new(InMemoryBackend::new())).layer(cache.clone());
/// assert_eq!(format!("{stack:?}"), "cache(16 MiB) > InMemoryBackend");
///
/// let store = stack.into_backend();
/// let token = TcTokenEntry { token: vec![1, 2, 3], token_timestamp: 1_700_000_000, sender_timestamp: None };
/// store.put_tc_token("100000000000001@lid", &token).await?;
/// for _ in 0..10 {
///     store.get_tc_token("100000000000001@lid").await?;
/// }
/// assert_eq!(cache.stats().record(Record::TcToken).unwrap().hits, 10);
/// # Ok::<(), wacore::store::error::StoreError>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct CacheLayer {
    config: Config,
    shared: Arc<OnceLock<Shared>>,
}

#[derive(Clone)]
struct Config {
    bytes: u64,
    /// What part of the budget each kind gets; 0 for those that are not cached.
    parts: [u32; CACHED.len()],
    time_to_live: Option<Duration>,
}

/// The kinds of records that can be cached, what part of the budget each gets, and whether it is cached unless chosen
/// otherwise. The client keeps the other ones itself, 2,000 of each (`wacore` 0.7, `signal_cache.rs`).
const CACHED: [(Record, u32, bool); 12] = [
    (Record::Session, 8, false),
    (Record::Identity, 1, false),
    (Record::SenderKey, 4, false),
    (Record::SignedPrekey, 1, false),
    (Record::SyncKey, 1, true),
    (Record::CollectionVersion, 1, true),
    (Record::SenderKeyDevice, 3, true),
    (Record::LidMapping, 3, true),
    (Record::DeviceList, 2, true),
    (Record::GroupMetadata, 3, true),
    (Record::TcToken, 2, true),
    (Record::MessageSecret, 3, true),
];

impl CacheLayer {
    /// A cache of so many bytes, keys and bookkeeping included, for sync keys, collection versions, sender key devices,
    /// LID mappings, device lists, group metadata, tc tokens and message secrets: what the client asks for again and
    /// again and does not keep itself.
    ///
    /// A record's share of the budget is kept in up to 16 parts of at least half a MiB, and a value that does not fit into
    /// one part is not cached.
    pub fn bytes(bytes: u64) -> Self {
        let parts = CACHED.map(|(_, parts, usual)| if usual { parts } else { 0 });
        Self { config: Config { bytes, parts, time_to_live: None }, shared: Arc::default() }
    }

    /// Caches records of this kind too: sessions, identities, sender keys or signed prekeys. The client keeps 2,000 of
    /// each itself, so this pays for bots that talk to more. Kinds that are not cached at all are ignored.
    #[must_use]
    pub fn with(self, record: Record) -> Self {
        let usual = CACHED.iter().find(|(cached, ..)| *cached == record).map_or(0, |(_, parts, _)| *parts);
        self.share(record, usual)
    }

    /// Does not cache records of this kind.
    #[must_use]
    pub fn without(self, record: Record) -> Self {
        self.share(record, 0)
    }

    /// Gives records of this kind so many parts of the budget; with 0 they are not cached. The usual parts are 8 for
    /// sessions, 4 for sender keys, 3 for sender key devices, LID mappings, group metadata and message secrets, 2 for
    /// device lists and tc tokens, 1 for the others; the budget is divided among the parts of all that are cached.
    #[must_use]
    pub fn share(mut self, record: Record, parts: u32) -> Self {
        for ((cached, ..), share) in CACHED.iter().zip(&mut self.config.parts) {
            if *cached == record {
                *share = parts;
            }
        }
        self.shared = Arc::default();
        self
    }

    /// Asks the store again for what is older than this. For stores that another process writes to.
    #[must_use]
    pub fn time_to_live(mut self, age: Duration) -> Self {
        self.config.time_to_live = Some(age);
        self.shared = Arc::default();
        self
    }

    /// What happened so far, in all stores that this layer is applied to.
    pub fn stats(&self) -> CacheStats {
        CacheStats { records: self.shared().pools.stats() }
    }

    /// Forgets and wipes everything, in all stores that this layer is applied to. What is being read at the moment
    /// does not count either.
    pub fn invalidate_all(&self) {
        for store in self.stores() {
            store.slots.forget();
        }
    }

    /// Reads what the stores can list into the cache: LID mappings, tc tokens, and signed prekeys if they are cached.
    /// Gives the number of values. What does not fit makes room for the rest.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn warm_up(&self) -> Result<usize> {
        let mut kept = 0;
        for store in self.stores() {
            kept += store.warm_up().await?;
        }
        Ok(kept)
    }

    /// Exports under this name what happens from now on. A cache has one name; later ones are ignored.
    #[cfg(feature = "metrics")]
    pub(crate) fn export(&self, layer: &'static str) {
        self.shared().pools.export(layer);
    }

    fn shared(&self) -> &Shared {
        self.shared.get_or_init(|| Shared {
            pools: Pools::new(&self.config),
            numbers: AtomicU32::new(0),
            stores: Mutex::default(),
        })
    }

    fn stores(&self) -> Vec<Arc<CacheStore>> {
        let mut stores = self.shared().stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|store| store.strong_count() > 0);
        stores.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Layer for CacheLayer {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        let shared = self.shared();
        let number = shared.numbers.fetch_add(1, Ordering::Relaxed);
        let slots = Slots::new(&shared.pools, number, self.config.time_to_live);
        let store = Arc::new(CacheStore { inner, slots });
        let mut stores = shared.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|store| store.strong_count() > 0);
        stores.push(Arc::downgrade(&store));
        store
    }

    fn close(&self) {
        self.invalidate_all();
    }
}

/// How a stack prints it, for example `cache(16 MiB)`.
impl fmt::Debug for CacheLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.config.bytes;
        match bytes {
            0 => write!(f, "cache(0)"),
            _ if bytes.is_multiple_of(1 << 20) => write!(f, "cache({} MiB)", bytes >> 20),
            _ if bytes.is_multiple_of(1 << 10) => write!(f, "cache({} KiB)", bytes >> 10),
            _ => write!(f, "cache({bytes} bytes)"),
        }
    }
}

/// What the stores of one layer share.
struct Shared {
    pools: Pools,
    numbers: AtomicU32,
    stores: Mutex<Vec<Weak<CacheStore>>>,
}

/// A store under a cache.
struct CacheStore {
    inner: Arc<dyn Backend>,
    slots: Slots,
}

macro_rules! define_slots {
    ($($slot:ident: $value:ty, $record:ident;)*) => {
        /// The memory for each kind of value.
        struct Pools {
            $($slot: Option<Arc<Pool<$value>>>,)*
        }

        /// The cached values of one store, where they are cached.
        struct Slots {
            $($slot: Option<Arc<Slot<$value>>>,)*
        }

        impl Pools {
            fn new(config: &Config) -> Self {
                Self { $($slot: config.budget(Record::$record).map(Pool::new),)* }
            }

            #[cfg(feature = "metrics")]
            fn export(&self, layer: &'static str) {
                $(if let Some(pool) = &self.$slot {
                    pool.export(layer, Record::$record);
                })*
            }

            fn stats(&self) -> Vec<RecordStats> {
                let mut records: Vec<RecordStats> = vec![];
                $(if let Some(pool) = &self.$slot {
                    let stats = pool.stats(Record::$record);
                    match records.iter_mut().find(|other| other.record == stats.record) {
                        Some(other) => other.add(&stats),
                        None => records.push(stats),
                    }
                })*
                records
            }
        }

        impl Slots {
            fn new(pools: &Pools, number: u32, time_to_live: Option<Duration>) -> Self {
                Self { $($slot: pools.$slot.clone().map(|pool| Slot::new(pool, number, time_to_live)),)* }
            }

            fn forget(&self) {
                $(if let Some(slot) = &self.$slot {
                    slot.forget();
                })*
            }
        }

        /// How many kinds of values share the budget of a record.
        fn slots_of(record: Record) -> u64 {
            [$(Record::$record),*].iter().filter(|other| **other == record).count() as u64
        }
    };
}

define_slots! {
    sessions: Option<Blob>, Session;
    identities: Option<[u8; 32]>, Identity;
    sender_keys: Option<Blob>, SenderKey;
    signed_prekeys: Option<Blob>, SignedPrekey;
    sync_keys: Option<AppStateSyncKey>, SyncKey;
    latest_sync_key: Option<Vec<u8>>, SyncKey;
    versions: HashState, CollectionVersion;
    sender_key_devices: Vec<(String, bool)>, SenderKeyDevice;
    mappings_by_lid: Option<LidPnMappingEntry>, LidMapping;
    mappings_by_number: Option<LidPnMappingEntry>, LidMapping;
    device_lists: Option<DeviceListRecord>, DeviceList;
    group_metadata: Option<Blob>, GroupMetadata;
    tc_tokens: Option<TcTokenEntry>, TcToken;
    message_secrets: Option<(Vec<u8>, i64)>, MessageSecret;
}

impl Config {
    /// The bytes for one kind of value of this record, or `None` if it is not cached.
    fn budget(&self, record: Record) -> Option<u64> {
        let position = CACHED.iter().position(|(cached, ..)| *cached == record)?;
        let parts = u64::from(*self.parts.get(position)?);
        let all: u64 = self.parts.iter().map(|parts| u64::from(*parts)).sum();
        let budget = (u128::from(self.bytes) * u128::from(parts)).checked_div(u128::from(all * slots_of(record)))?;
        (budget > 0).then_some(budget as u64)
    }
}

impl RecordStats {
    fn add(&mut self, other: &RecordStats) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.loads += other.loads;
        self.evictions += other.evictions;
        self.invalidations += other.invalidations;
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.capacity += other.capacity;
    }

    /// Which part of the reads was answered from the cache, from 0 to 1; `None` if there were none.
    pub fn hit_rate(&self) -> Option<f64> {
        let reads = self.hits + self.misses;
        (reads > 0).then(|| self.hits as f64 / reads as f64)
    }
}

/// What happened to a cache, by kind of record. `Display` prints a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheStats {
    records: Vec<RecordStats>,
}

impl CacheStats {
    /// Every kind that is cached.
    pub fn records(&self) -> &[RecordStats] {
        &self.records
    }

    /// Of one kind of record; `None` if it is not cached.
    pub fn record(&self, record: Record) -> Option<&RecordStats> {
        self.records.iter().find(|stats| stats.record == record)
    }

    /// What happened after `earlier`, of the same cache. Entries and bytes are those of now.
    #[must_use]
    pub fn since(&self, earlier: &CacheStats) -> CacheStats {
        let records = self.records.iter().map(|stats| {
            let Some(before) = earlier.record(stats.record) else { return *stats };
            RecordStats {
                hits: stats.hits.saturating_sub(before.hits),
                misses: stats.misses.saturating_sub(before.misses),
                loads: stats.loads.saturating_sub(before.loads),
                evictions: stats.evictions.saturating_sub(before.evictions),
                invalidations: stats.invalidations.saturating_sub(before.invalidations),
                ..*stats
            }
        });
        CacheStats { records: records.collect() }
    }

    /// What all values take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.records.iter().map(|stats| stats.bytes).sum()
    }
}

impl fmt::Display for CacheStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<18} {:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9} {:>11}",
            "record", "hits", "of reads", "misses", "loads", "evicted", "outdated", "entries", "bytes"
        )?;
        for stats in &self.records {
            let rate = stats.hit_rate().map_or_else(|| "-".to_owned(), |rate| format!("{:.1} %", rate * 100.0));
            writeln!(
                f,
                "{:<18} {rate:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9} {:>11}",
                stats.record.name(),
                stats.hits + stats.misses,
                stats.misses,
                stats.loads,
                stats.evictions,
                stats.invalidations,
                stats.entries,
                stats.bytes,
            )?;
        }
        Ok(())
    }
}

impl CacheStore {
    async fn warm_up(&self) -> Result<usize> {
        let mut kept = 0;
        if let Some(slot) = &self.slots.mappings_by_lid {
            let before = slot.before();
            let rows = self.inner.get_all_lid_mappings().await?;
            kept += slot.fill(rows.into_iter().map(|row| (slot.key([row.lid.as_bytes()]), Some(row))), before);
        }
        if let Some(slot) = &self.slots.signed_prekeys {
            let before = slot.before();
            let rows = self.inner.load_all_signed_prekeys().await?;
            let row = |(id, record): (u32, Vec<u8>)| (slot.key([&id.to_le_bytes()]), Some(Blob::from(record)));
            kept += slot.fill(rows.into_iter().map(row), before);
        }
        if let Some(slot) = &self.slots.tc_tokens {
            for jid in self.inner.get_all_tc_token_jids().await? {
                let key = slot.key([jid.as_bytes()]);
                kept += usize::from(slot.get(key, || self.load_tc_token(&jid)).await?.value.is_some());
            }
        }
        Ok(kept)
    }
}

/// Reads through the cache, or around it if there is none.
macro_rules! read {
    ($self:ident.$slot:ident [$($part:expr),*] => $inner:ident($($argument:expr),*) => $load:expr) => {{
        let Some(slot) = &$self.slots.$slot else { return $self.inner.$inner($($argument),*).await };
        slot.get(slot.key([$($part),*]), $load).await?
    }};
}

/// Writes to the store, and then to the cache.
macro_rules! write_one {
    ($self:ident.$slot:ident [$($part:expr),*] => $inner:ident($($argument:expr),*), $written:expr) => {{
        let Some(slot) = &$self.slots.$slot else { return $self.inner.$inner($($argument),*).await };
        let write = slot.write(std::iter::once(slot.key([$($part),*])));
        let result = $self.inner.$inner($($argument),*).await;
        write.end(result, |_| $written)
    }};
}

/// Calls the store for any number of rows, and then forgets all of them if it changed some.
macro_rules! clear_all {
    ($self:ident.$slot:ident => $inner:ident($($argument:expr),*), $changed:expr) => {{
        let Some(slot) = &$self.slots.$slot else { return $self.inner.$inner($($argument),*).await };
        let clear = slot.clear();
        let result = $self.inner.$inner($($argument),*).await;
        clear.end(result, $changed)
    }};
}
use {clear_all, read, write_one};
