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
//! The cache also remembers that a row is absent. Every other call passes through: calls that take, count, list or
//! compare rows inside the store, and all calls for prekeys, mutation MACs, messages and the device.
//!
//! Writes go to the store first; the cache returns `Ok` only if the store did. `region.rs` has the rules for reads
//! and writes that meet.

mod app_sync;
mod device;
mod msg_secret;
mod pool;
mod protocol;
mod region;
mod signal;
mod stats;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use wacore::appstate::hash::HashState;
use wacore::store::error::Result;
use wacore::store::traits::{AppStateSyncKey, Backend, DeviceListRecord, LidPnMappingEntry, TcTokenEntry};

use crate::layer::Layer;
use crate::method::Record;
use crate::sync::IgnorePoison;
use pool::Pool;
use region::Region;
#[cfg(feature = "metrics")]
pub(crate) use stats::Counters;
pub use stats::{CacheStats, RecordStats};
use value::WipedBytes;

/// A cache over a store, bounded in bytes.
///
/// A handle: clones share the cache. You can apply one cache to several stores, for example to the accounts of one
/// bot. It keeps their records apart and shares its budget among them.
///
/// Above an encryption layer the cache holds plaintext, which it wipes when a value leaves it. Below one it holds
/// ciphertext, and every hit is decrypted.
///
/// A cached value is never older than an acknowledged write **through the same application of this layer**. Limit the
/// age of values with [`CacheLayer::time_to_live`] if another process writes to the same store, or if you apply the
/// layer to a store twice. All caches of the process become empty when an account is deleted, or when a store or a
/// vault is closed.
///
/// ```
/// use std::sync::Arc;
/// use wacore::store::InMemoryBackend;
/// use wacore::store::traits::TcTokenEntry;
/// use wastore::{CacheLayer, Record, Stack};
///
/// # futures::executor::block_on(async {
/// let cache = CacheLayer::new(16 << 20).with(Record::Session);
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
    shared: Arc<OnceLock<CacheContents>>,
}

#[derive(Clone)]
struct Config {
    bytes: u64,
    /// The parts of the budget that each kind gets; 0 for kinds that are not cached.
    parts: [u32; CACHED.len()],
    time_to_live: Option<Duration>,
}

/// The kinds of records that can be cached, the parts of the budget that each gets, and whether it is cached by
/// default. The client itself keeps 2,000 records of each kind that is not (`wacore` 0.7, `signal_cache.rs`).
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
    /// A cache with a budget of `bytes` bytes, which includes keys and bookkeeping. It caches sync keys, collection
    /// versions, sender key devices, LID mappings, device lists, group metadata, tc tokens and message secrets: the
    /// client reads them often and does not keep them itself.
    ///
    /// Each record's share of the budget is split into up to 16 parts of at least 512 KiB. A value that does not fit
    /// into one part is not cached.
    pub fn new(bytes: u64) -> Self {
        let parts = CACHED.map(|(_, parts, usual)| if usual { parts } else { 0 });
        Self { config: Config { bytes, parts, time_to_live: None }, shared: Arc::default() }
    }

    /// Also caches records of this kind: sessions, identities, sender keys or signed prekeys. The client keeps 2,000
    /// of each itself, so this pays for bots that talk to more. Kinds that can never be cached are ignored.
    #[must_use]
    pub fn with(self, record: Record) -> Self {
        let usual = CACHED.iter().find(|(cached, ..)| *cached == record).map_or(0, |(_, parts, _)| *parts);
        self.share(record, usual)
    }

    /// Stops caching records of this kind.
    #[must_use]
    pub fn without(self, record: Record) -> Self {
        self.share(record, 0)
    }

    /// Gives records of this kind `parts` parts of the budget; with 0 they are not cached. The budget is divided
    /// among the parts of all cached kinds. The defaults:
    ///
    /// * 8 for sessions
    /// * 4 for sender keys
    /// * 3 for sender key devices, LID mappings, group metadata and message secrets
    /// * 2 for device lists and tc tokens
    /// * 1 for the others
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

    /// Asks the store again for values older than `age`. For stores that another process writes to. By default,
    /// values do not expire.
    #[must_use]
    pub fn time_to_live(mut self, age: Duration) -> Self {
        self.config.time_to_live = Some(age);
        self.shared = Arc::default();
        self
    }

    /// The events so far, summed over all stores that this layer is applied to.
    pub fn stats(&self) -> CacheStats {
        self.shared().pools.stats()
    }

    /// Forgets and wipes all values, in all stores that this layer is applied to. Reads in flight do not keep their
    /// values either.
    pub fn invalidate_all(&self) {
        for store in self.stores() {
            store.regions.forget();
        }
    }

    /// Reads the rows that the stores can list into the cache: LID mappings, tc tokens, and signed prekeys if they
    /// are cached. Returns the number of cached values. Values are evicted if not all of them fit.
    ///
    /// # Errors
    /// Errors of the stores.
    pub async fn warm_up(&self) -> Result<usize> {
        let mut kept = 0;
        for store in self.stores() {
            kept += store.warm_up().await?;
        }
        Ok(kept)
    }

    /// The counters behind [`CacheLayer::stats`], for observers. Some records have several.
    #[cfg(feature = "metrics")]
    pub(crate) fn counters(&self) -> Vec<(Record, &Counters)> {
        self.shared().pools.counters()
    }

    fn shared(&self) -> &CacheContents {
        self.shared.get_or_init(|| CacheContents {
            pools: Pools::new(&self.config),
            numbers: AtomicU32::new(0),
            stores: Mutex::default(),
        })
    }

    fn stores(&self) -> Vec<Arc<CacheStore>> {
        let mut stores = self.shared().stores.lock().ignore_poison();
        stores.retain(|store| store.strong_count() > 0);
        stores.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Layer for CacheLayer {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        let shared = self.shared();
        let number = shared.numbers.fetch_add(1, Ordering::Relaxed);
        let regions = Regions::new(&shared.pools, number, self.config.time_to_live);
        let store = Arc::new(CacheStore { inner, regions });
        let mut stores = shared.stores.lock().ignore_poison();
        stores.retain(|store| store.strong_count() > 0);
        stores.push(Arc::downgrade(&store));
        store
    }

    fn close(&self) {
        self.invalidate_all();
    }
}

/// The text that a stack prints, for example `cache(16 MiB)`.
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

/// The part that all stores of one layer share.
struct CacheContents {
    pools: Pools,
    numbers: AtomicU32,
    stores: Mutex<Vec<Weak<CacheStore>>>,
}

/// A store under a cache.
struct CacheStore {
    inner: Arc<dyn Backend>,
    regions: Regions,
}

macro_rules! define_regions {
    ($($region:ident: $value:ty, $record:ident;)*) => {
        /// The memory of each kind of value.
        struct Pools {
            $($region: Option<Arc<Pool<$value>>>,)*
        }

        /// The cached values of one store; `None` for kinds that are not cached.
        struct Regions {
            $($region: Option<Arc<Region<$value>>>,)*
        }

        impl Pools {
            fn new(config: &Config) -> Self {
                Self { $($region: config.budget(Record::$record).map(Pool::new),)* }
            }

            #[cfg(feature = "metrics")]
            fn counters(&self) -> Vec<(Record, &Counters)> {
                let counters = [$(self.$region.as_ref().map(|pool| (Record::$record, &pool.counters))),*];
                counters.into_iter().flatten().collect()
            }

            fn stats(&self) -> CacheStats {
                let stats = [$(self.$region.as_ref().map(|pool| pool.stats(Record::$record))),*];
                CacheStats::sum(stats.into_iter().flatten())
            }
        }

        impl Regions {
            fn new(pools: &Pools, number: u32, time_to_live: Option<Duration>) -> Self {
                Self { $($region: pools.$region.clone().map(|pool| Region::new(pool, number, time_to_live)),)* }
            }

            fn forget(&self) {
                $(if let Some(region) = &self.$region {
                    region.forget();
                })*
            }
        }

        /// The number of kinds of values that share the budget of a record.
        fn regions_of(record: Record) -> u64 {
            [$(Record::$record),*].iter().filter(|other| **other == record).count() as u64
        }
    };
}

define_regions! {
    sessions: Option<WipedBytes>, Session;
    identities: Option<[u8; 32]>, Identity;
    sender_keys: Option<WipedBytes>, SenderKey;
    signed_prekeys: Option<WipedBytes>, SignedPrekey;
    sync_keys: Option<AppStateSyncKey>, SyncKey;
    latest_sync_key: Option<Vec<u8>>, SyncKey;
    versions: HashState, CollectionVersion;
    sender_key_devices: Vec<(String, bool)>, SenderKeyDevice;
    mappings_by_lid: Option<LidPnMappingEntry>, LidMapping;
    mappings_by_number: Option<LidPnMappingEntry>, LidMapping;
    device_lists: Option<DeviceListRecord>, DeviceList;
    group_metadata: Option<WipedBytes>, GroupMetadata;
    tc_tokens: Option<TcTokenEntry>, TcToken;
    message_secrets: Option<(Vec<u8>, i64)>, MessageSecret;
}

impl Config {
    /// The budget in bytes of one kind of value of this record, or `None` if it is not cached.
    fn budget(&self, record: Record) -> Option<u64> {
        let position = CACHED.iter().position(|(cached, ..)| *cached == record)?;
        let parts = u64::from(*self.parts.get(position)?);
        let all: u64 = self.parts.iter().map(|parts| u64::from(*parts)).sum();
        let budget = (u128::from(self.bytes) * u128::from(parts)).checked_div(u128::from(all * regions_of(record)))?;
        (budget > 0).then_some(budget as u64)
    }
}

impl CacheStore {
    async fn warm_up(&self) -> Result<usize> {
        let mut kept = 0;
        if let Some(region) = &self.regions.mappings_by_lid {
            let snapshot = region.snapshot();
            let rows = self.inner.get_all_lid_mappings().await?;
            kept += region.fill(rows.into_iter().map(|row| (region.key([row.lid.as_bytes()]), Some(row))), snapshot);
        }
        if let Some(region) = &self.regions.signed_prekeys {
            let snapshot = region.snapshot();
            let rows = self.inner.load_all_signed_prekeys().await?;
            let row = |(id, record): (u32, Vec<u8>)| (region.key([&id.to_le_bytes()]), Some(WipedBytes::from(record)));
            kept += region.fill(rows.into_iter().map(row), snapshot);
        }
        if let Some(region) = &self.regions.tc_tokens {
            for jid in self.inner.get_all_tc_token_jids().await? {
                let key = region.key([jid.as_bytes()]);
                kept += usize::from(region.get(key, || self.load_tc_token(&jid)).await?.value.is_some());
            }
        }
        Ok(kept)
    }
}

/// Reads through the cache, or directly from the store if the record is not cached.
macro_rules! read {
    ($self:ident.$region:ident [$($part:expr),*] => $inner:ident($($argument:expr),*) => $load:expr) => {{
        let Some(region) = &$self.regions.$region else { return $self.inner.$inner($($argument),*).await };
        region.get(region.key([$($part),*]), $load).await?
    }};
}

/// Writes to the store, and then to the cache.
macro_rules! write_one {
    ($self:ident.$region:ident [$($part:expr),*] => $inner:ident($($argument:expr),*), $written:expr) => {{
        let Some(region) = &$self.regions.$region else { return $self.inner.$inner($($argument),*).await };
        let write = region.write(std::iter::once(region.key([$($part),*])));
        let result = $self.inner.$inner($($argument),*).await;
        write.end(result, |_| $written)
    }};
}

/// Calls the store for any number of rows. Then forgets all of them if the call changed some.
macro_rules! clear_all {
    ($self:ident.$region:ident => $inner:ident($($argument:expr),*), $changed:expr) => {{
        let Some(region) = &$self.regions.$region else { return $self.inner.$inner($($argument),*).await };
        let clear = region.clear();
        let result = $self.inner.$inner($($argument),*).await;
        clear.end(result, $changed)
    }};
}
use {clear_all, read, write_one};
