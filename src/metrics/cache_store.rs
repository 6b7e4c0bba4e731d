//! The layer around the client's external cache.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use wacore::store::cache::CacheStore;

use super::call::observe;
use super::operation::{End, LayerKind, Operation};
use super::outcome::Outcome;
use super::stats::LayerStats;
use super::volume::Volume;

/// Counts the calls to an external cache, each of the client's four namespaces by itself. Made by
/// [`Metrics::cache_store`](super::Metrics::cache_store). Arguments, answers and errors pass unchanged.
///
/// An operation is a call and a namespace: `get_group`, `set_device_registry`, `delete_lid_pn_by_lid`,
/// `clear_lid_pn_by_pn`, `entry_count_group`; `get_other` for a namespace that whatsapp-rust 0.7 does not have. The
/// lookups of the `get` operations tell the hits from the misses.
pub struct MetricsCacheStore {
    inner: Arc<dyn CacheStore>,
    stats: Arc<LayerStats>,
}

impl MetricsCacheStore {
    pub(super) fn new(stats: Arc<LayerStats>, inner: Arc<dyn CacheStore>) -> Self {
        Self { inner, stats }
    }
}

/// For example `metrics(redis)`.
impl fmt::Debug for MetricsCacheStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metrics({})", self.stats.name)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CacheStore for MetricsCacheStore {
    async fn get(&self, namespace: &str, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let get = || self.inner.get(namespace, key);
        observe(&*self.stats, CacheOp::new(CacheCall::Get, namespace), entry(key.len()), get, |got| End {
            outcome: ended(got),
            given: None,
            got: match got {
                Ok(Some(value)) => entry(value.len()),
                _ => Volume::default(),
            },
        })
        .await
    }

    async fn set(&self, namespace: &str, key: &str, value: &[u8], ttl: Option<Duration>) -> anyhow::Result<()> {
        let (given, set) = (entry(key.len() + value.len()), || self.inner.set(namespace, key, value, ttl));
        observe(&*self.stats, CacheOp::new(CacheCall::Set, namespace), given, set, |set| ended(set).into()).await
    }

    async fn delete(&self, namespace: &str, key: &str) -> anyhow::Result<()> {
        let (given, delete) = (entry(key.len()), || self.inner.delete(namespace, key));
        observe(&*self.stats, CacheOp::new(CacheCall::Delete, namespace), given, delete, |gone| ended(gone).into())
            .await
    }

    async fn clear(&self, namespace: &str) -> anyhow::Result<()> {
        let (given, clear) = (Volume::default(), || self.inner.clear(namespace));
        observe(&*self.stats, CacheOp::new(CacheCall::Clear, namespace), given, clear, |gone| ended(gone).into()).await
    }

    async fn entry_count(&self, namespace: &str) -> anyhow::Result<u64> {
        let (given, count) = (Volume::default(), || self.inner.entry_count(namespace));
        observe(&*self.stats, CacheOp::new(CacheCall::EntryCount, namespace), given, count, |count| ended(count).into())
            .await
    }
}

fn entry(bytes: usize) -> Volume {
    Volume { rows: 1, bytes: bytes as u64 }
}

fn ended<T>(result: &anyhow::Result<T>) -> Outcome {
    if result.is_ok() { Outcome::Ok } else { Outcome::Error }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CacheCall {
    Get,
    Set,
    Delete,
    Clear,
    EntryCount,
}

/// A call to an external cache, and the namespace that it is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheOp {
    call: CacheCall,
    /// A place in [`NAMESPACES`].
    namespace: usize,
}

const CALLS: [CacheCall; 5] =
    [CacheCall::Get, CacheCall::Set, CacheCall::Delete, CacheCall::Clear, CacheCall::EntryCount];

macro_rules! define_namespaces {
    ($($namespace:literal)*) => {
        const NAMESPACES: &[&str] = &[$($namespace),*];
        /// The names of the operations by namespace, in the order of [`CALLS`].
        const NAMES: &[[&str; CALLS.len()]] = &[$([
            concat!("get_", $namespace),
            concat!("set_", $namespace),
            concat!("delete_", $namespace),
            concat!("clear_", $namespace),
            concat!("entry_count_", $namespace),
        ]),*];
    };
}
// Those of whatsapp-rust 0.7 (`lid_pn_cache.rs` and others), and at the end any other.
define_namespaces!("group" "device_registry" "lid_pn_by_lid" "lid_pn_by_pn" "other");

impl CacheOp {
    fn new(call: CacheCall, namespace: &str) -> Self {
        let known = NAMESPACES.iter().position(|known| *known == namespace);
        Self { call, namespace: known.unwrap_or(NAMESPACES.len() - 1) }
    }
}

impl Operation for CacheOp {
    const KIND: LayerKind = LayerKind::CacheStore;
    const ALL: &'static [Self] = &{
        let mut all = [CacheOp { call: CacheCall::Get, namespace: 0 }; CALLS.len() * NAMESPACES.len()];
        let mut at = 0;
        while at < all.len() {
            all[at] = CacheOp { call: CALLS[at % CALLS.len()], namespace: at / CALLS.len() };
            at += 1;
        }
        all
    };

    fn name(self) -> &'static str {
        NAMES[self.namespace][self.call as usize]
    }

    fn index(self) -> usize {
        self.namespace * CALLS.len() + self.call as usize
    }

    fn looks_up(self) -> bool {
        self.call == CacheCall::Get
    }

    fn outcomes(self) -> &'static [Outcome] {
        &[Outcome::Ok, Outcome::Error, Outcome::Cancelled]
    }
}
