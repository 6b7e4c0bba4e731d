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
//! Writes go to the store first; `Ok` means that the store said so. How reads and writes meet is in `region.rs`.

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
/// A handle: clones share the cache. Applied to several stores, for example the accounts of one bot, it keeps their
/// records apart and shares its budget among them.
///
/// Over encryption it holds plaintext, which it wipes when it lets go of it; under encryption it holds ciphertext, and
/// every hit is decrypted. A value in it is never older than an acknowledged write **through the same application of this
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

/// The kinds of records that can be cached, the parts of the budget that each gets, and whether it is cached by default.
/// The client keeps the other ones itself, 2,000 of each (`wacore` 0.7, `signal_cache.rs`).
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
    /// LID mappings, device lists, group metadata, tc tokens and message secrets: the records that the client asks for again
    /// and again and does not keep itself.
    ///
    /// A record's share of the budget is kept in up to 16 parts of at least half a MiB, and a value that does not fit into
    /// one part is not cached.
    pub fn new(bytes: u64) -> Self {
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

    /// Asks the store again for values that are older than this. For stores that another process writes to.
    #[must_use]
    pub fn time_to_live(mut self, age: Duration) -> Self {
        self.config.time_to_live = Some(age);
        self.shared = Arc::default();
        self
    }

    /// The events so far, in all stores that this layer is applied to.
    pub fn stats(&self) -> CacheStats {
        self.shared().pools.stats()
    }

    /// Forgets and wipes everything, in all stores that this layer is applied to. Values that are being read at the moment
    /// are not kept either.
    pub fn invalidate_all(&self) {
        for store in self.stores() {
            store.regions.forget();
        }
    }

    /// Reads what the stores can list into the cache: LID mappings, tc tokens, and signed prekeys if they are cached.
    /// Returns the number of values. Values that do not fit make room for the rest.
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

/// The part that the stores of one layer share.
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
        /// The memory for each kind of value.
        struct Pools {
            $($region: Option<Arc<Pool<$value>>>,)*
        }

        /// The cached values of one store, where they are cached.
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

        /// How many kinds of values share the budget of a record.
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
    /// The bytes for one kind of value of this record, or `None` if it is not cached.
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

/// Reads through the cache, or around it if there is none.
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

/// Calls the store for any number of rows, and then forgets all of them if it changed some.
macro_rules! clear_all {
    ($self:ident.$region:ident => $inner:ident($($argument:expr),*), $changed:expr) => {{
        let Some(region) = &$self.regions.$region else { return $self.inner.$inner($($argument),*).await };
        let clear = region.clear();
        let result = $self.inner.$inner($($argument),*).await;
        clear.end(result, $changed)
    }};
}
use {clear_all, read, write_one};
