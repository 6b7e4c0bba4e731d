//! How long calls take, how they end and how much they carry: for people, and for Prometheus.
//!
//! A [`MetricsLayer`] counts the calls that pass one place of a stack. Several of them under different names show the
//! cost of the layers in between ([`MetricsSnapshot::between`]). [`Metrics::transport_factory`] and
//! [`Metrics::http_client`] do the same for the network side of the client, [`Metrics::cache_store`] for its external
//! cache.
//!
//! ```
//! use std::sync::Arc;
//! use wacore::store::InMemoryBackend;
//! use wastore::{Metrics, Stack};
//!
//! # futures::executor::block_on(async {
//! let metrics = Metrics::new();
//! let store = Stack::new(Arc::new(InMemoryBackend::new())).layer(metrics.layer("memory")).into_backend();
//! store.put_session("15550001111@s.whatsapp.net", b"record").await?;
//! store.get_session("15550002222@s.whatsapp.net").await?;
//!
//! let snapshot = metrics.snapshot();
//! println!("{snapshot}");
//! let lookup = snapshot.layer("memory").unwrap().op("get_session").unwrap();
//! assert_eq!((lookup.calls(), lookup.found(), lookup.absent()), (1, 0, 1));
//! # Ok::<(), wacore::store::error::StoreError>(())
//! # }).unwrap();
//! ```
//!
//! No counter, label, span or event ever holds a JID, a message id, a URL or a key: they identify only layer,
//! operation and outcome. The memory is bounded, no matter how long the process runs and how many accounts share a
//! layer. It is about 3 KB per called operation and thread that called it, for at most sixteen threads.
//!
//! # Exported metrics
//!
//! With the feature `metrics`, everything also goes to the recorder of the [`metrics`](https://docs.rs/metrics)
//! facade. Upstream uses it too, so one exporter shows both. The names follow upstream's (`wacore` 0.7,
//! `src/telemetry.rs`). `describe` tells the recorder the meaning and the unit of each metric; `exported` lists all
//! metrics.
//!
//! You can install the recorder before or after you make the layers. Events before that are not exported, and each
//! operation stays with the first recorder that it finds. Zero-sized recorders are ignored.
//!
//! Do not let an exporter forget idle series (`metrics-exporter-prometheus`: `idle_timeout`). Operations keep their
//! handles, so a forgotten series does not come back.
//!
//! | metric | type, unit | labels |
//! |--|--|--|
//! | `wa_store_op_total` | counter | `layer`, `op`, `outcome` |
//! | `wa_store_op_duration_seconds` | histogram, seconds | `layer`, `op` |
//! | `wa_store_op_in_flight` | gauge | `layer`, `op` |
//! | `wa_store_op_slow_total` | counter | `layer`, `op` |
//! | `wa_store_rows_total` | counter | `layer`, `op`, `direction` |
//! | `wa_store_bytes_total` | counter, bytes | `layer`, `op`, `direction` |
//! | `wa_store_lookups_total` | counter, rows | `layer`, `op`, `outcome` |
//! | `wa_store_cache_hits_total` | counter | `layer`, `record` |
//! | `wa_store_cache_misses_total` | counter | `layer`, `record` |
//! | `wa_store_cache_loads_total` | counter | `layer`, `record` |
//! | `wa_store_cache_evictions_total` | counter | `layer`, `record` |
//! | `wa_store_cache_invalidations_total` | counter | `layer`, `record` |
//! | `wa_store_groups_total` | counter | `layer` |
//! | `wa_store_group_calls_total` | counter | `layer` |
//! | `wa_store_group_statements_total` | counter | `layer` |
//! | `wa_store_read_statements_total` | counter | `layer` |
//! | `wa_store_retries_total` | counter | `layer` |
//! | `wa_store_reconnects_total` | counter | `layer` |
//! | `wa_store_lease_renewals_total` | counter | `layer` |
//! | `wa_store_lease_lost_total` | counter | `layer` |
//! | `wa_store_queue_length` | gauge | `layer` |
//! | `wa_transport_op_total` | counter | `layer`, `op`, `outcome` |
//! | `wa_transport_op_duration_seconds` | histogram, seconds | `layer`, `op` |
//! | `wa_transport_op_in_flight` | gauge | `layer`, `op` |
//! | `wa_transport_op_slow_total` | counter | `layer`, `op` |
//! | `wa_transport_messages_total` | counter | `layer`, `op`, `direction` |
//! | `wa_transport_bytes_total` | counter, bytes | `layer`, `op`, `direction` |
//! | `wa_http_op_total` | counter | `layer`, `op`, `outcome` |
//! | `wa_http_op_duration_seconds` | histogram, seconds | `layer`, `op` |
//! | `wa_http_op_in_flight` | gauge | `layer`, `op` |
//! | `wa_http_op_slow_total` | counter | `layer`, `op` |
//! | `wa_http_bytes_total` | counter, bytes | `layer`, `op`, `direction` |
//! | `wa_cache_store_op_total` | counter | `layer`, `op`, `outcome` |
//! | `wa_cache_store_op_duration_seconds` | histogram, seconds | `layer`, `op` |
//! | `wa_cache_store_op_in_flight` | gauge | `layer`, `op` |
//! | `wa_cache_store_op_slow_total` | counter | `layer`, `op` |
//! | `wa_cache_store_entries_total` | counter | `layer`, `op`, `direction` |
//! | `wa_cache_store_bytes_total` | counter, bytes | `layer`, `op`, `direction` |
//! | `wa_cache_store_lookups_total` | counter | `layer`, `op`, `outcome` |
//!
//! The metrics from `wa_store_groups_total` to `wa_store_queue_length` are those of a `PostgresStore`, and need the
//! feature `postgres`.
//!
//! * `layer`: the name given to [`Metrics::layer`], [`Metrics::transport_factory`], [`Metrics::http_client`],
//!   [`Metrics::cache_store`], [`Metrics::track_cache`] or `Metrics::track_postgres`.
//! * `op`: the operation. For stores, one of the 82 method names, for example `get_session`. For connections,
//!   `connect`, `connection` (from its beginning to its end), `send`, `receive` and `disconnect`. For HTTP,
//!   `execute`, `execute_streaming`, `execute_upload` and `streamed_body`. For external caches, a call and a namespace,
//!   for example `get_group`.
//! * `outcome`: how the call ended, see [`Outcome`].
//!   * For stores: `ok`, `busy`, `connection`, `validation`, `serialization`, `other` and `cancelled`.
//!   * For `connect`, `send`, `receive`, `disconnect`, `streamed_body` and external caches: `ok`, `error` and
//!     `cancelled`.
//!   * For `connection`, the reason: `server_close`, `server_error`, `stream_ended`, `read_error`, `local_close`,
//!     `unknown`, and `cancelled` if the runtime stopped.
//!   * For HTTP exchanges: `1xx` to `5xx`, `other`, `error` and `cancelled`.
//!   * For lookups: `found` and `absent`.
//! * `direction`: `in` for the arguments of a call, `out` for its answer. The answer of a sweep counts the rows that
//!   it removed.
//! * `record`: the kind of record, for example `tc_token`.
//!
//! The first call of an operation creates all its series with the value zero. So a rate shows even the first error,
//! if Prometheus scraped the operation before. An operation has about fifteen series on each layer and, in
//! Prometheus, one more for each bound of its histogram.
//!
//! Some exporters collect samples of histograms until they are scraped, or until their upkeep runs
//! (`metrics-exporter-prometheus`: `run_upkeep`, which its own listener calls every five seconds). Make sure that one
//! of the two happens.

mod between;
mod cache_store;
mod call;
mod chart;
#[cfg(feature = "metrics")]
mod facade;
mod histogram;
mod network;
mod operation;
mod outcome;
mod report;
mod snapshot;
mod stats;
mod store;
#[cfg(test)]
mod tests;
mod volume;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wacore::net::{HttpClient, TransportFactory};
use wacore::runtime::Runtime;
use wacore::store::cache::CacheStore;

pub use between::{LayerCost, OpCost};
pub use cache_store::MetricsCacheStore;
#[cfg(feature = "metrics")]
pub use facade::{DURATION_BUCKETS, ExportedMetric, MetricKind, describe, exported};
pub use histogram::Histogram;
pub use network::{MetricsHttpClient, MetricsTransportFactory};
pub use operation::LayerKind;
pub use outcome::Outcome;
pub use snapshot::{LayerSnapshot, MetricsSnapshot, OpSnapshot};
pub use store::MetricsLayer;

use crate::cache::CacheLayer;
#[cfg(feature = "postgres")]
use crate::postgres::{Counters, PostgresStore};
use crate::sync::IgnorePoison;
use operation::Operation;
use stats::{LayerStats, SlowCalls};

/// Counts calls at any number of places. A cheap handle; clones share all counts.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use wacore::store::InMemoryBackend;
/// use wastore::metrics::LayerKind;
/// use wastore::{CacheLayer, Metrics, Stack};
///
/// let metrics = Metrics::new();
/// metrics.log_slower_than(LayerKind::Store, Some(Duration::from_millis(100)));
/// let cache = CacheLayer::new(16 << 20);
/// metrics.track_cache("cache", &cache);
/// let stack = Stack::new(Arc::new(InMemoryBackend::new()))
///     .layer(metrics.layer("memory"))
///     .layer(cache)
///     .layer(metrics.layer("client"));
/// assert_eq!(format!("{stack:?}"), "metrics(client) > cache(16 MiB) > metrics(memory) > InMemoryBackend");
/// ```
#[derive(Clone)]
pub struct Metrics {
    shared: Arc<Observed>,
}

struct Observed {
    slow: Arc<SlowCalls>,
    layers: Mutex<Vec<Arc<LayerStats>>>,
    caches: Mutex<Vec<(&'static str, CacheLayer)>>,
    #[cfg(feature = "postgres")]
    postgres: Mutex<Vec<(&'static str, Arc<Counters>)>>,
}

impl Metrics {
    /// Makes a handle that has counted nothing yet.
    pub fn new() -> Self {
        let slow = SlowCalls { thresholds: [const { AtomicU64::new(u64::MAX) }; _], since: Instant::now() };
        let observed = Observed {
            slow: Arc::new(slow),
            layers: Mutex::default(),
            caches: Mutex::default(),
            #[cfg(feature = "postgres")]
            postgres: Mutex::default(),
        };
        Self { shared: Arc::new(observed) }
    }

    /// A layer that counts under this name, which becomes the label `layer`. Layers of the same name, for example
    /// those of several accounts, are counted together. Give layers different names to tell them apart.
    ///
    /// The name is a `&'static str`, so that the name of an account cannot become a label.
    pub fn layer(&self, name: &'static str) -> MetricsLayer {
        MetricsLayer::new(self.stats::<store::StoreOp>(name))
    }

    /// Counts the connections that `factory` makes, the data sent and received over them, and the reasons why they
    /// end. Pass the result to `Bot::builder().with_transport_factory(..)`.
    ///
    /// For each connection, a task spawned on `runtime` forwards the received messages, through a second channel as
    /// deep as the transport's own.
    pub fn transport_factory(
        &self,
        name: &'static str,
        factory: Arc<dyn TransportFactory>,
        runtime: Arc<dyn Runtime>,
    ) -> MetricsTransportFactory {
        MetricsTransportFactory::new(self.stats::<network::TransportOp>(name), factory, runtime)
    }

    /// Counts the HTTP exchanges of `client`, including streamed bodies. Pass the result to
    /// `Bot::builder().with_http_client(..)`.
    pub fn http_client(&self, name: &'static str, client: Arc<dyn HttpClient>) -> MetricsHttpClient {
        MetricsHttpClient::new(self.stats::<network::HttpOp>(name), client)
    }

    /// Counts the calls to an external cache. Over [`Vault::cache_store`](crate::Vault::cache_store) it tells the hits
    /// from the misses. Below it, it also sees the errors, which that one hides, and blinded namespaces: all calls then
    /// count as `other`.
    pub fn cache_store(&self, name: &'static str, inner: Arc<dyn CacheStore>) -> Arc<MetricsCacheStore> {
        Arc::new(MetricsCacheStore::new(self.stats::<cache_store::CacheOp>(name), inner))
    }

    /// Shows the events of a cache in snapshots, and exports them. The settings of the cache must be final, because
    /// `with`, `share` and `time_to_live` make another cache. In snapshots, a cache replaces an earlier one of the
    /// same name. A cache is exported under its first name; caches with the same name are exported together.
    pub fn track_cache(&self, name: &'static str, cache: &CacheLayer) {
        #[cfg(feature = "metrics")]
        facade::export_cache(name, cache);
        let mut caches = self.shared.caches.lock().ignore_poison();
        caches.retain(|(other, _)| *other != name);
        caches.push((name, cache.clone()));
    }

    /// Shows the connections, groups and leases of a store in snapshots, and exports them: one name for all accounts of
    /// the store. Only the counters are kept, so the store closes as if it were not tracked.
    ///
    /// In snapshots, a store replaces an earlier one of the same name. A store is exported under its first name; stores
    /// with the same name are exported together.
    #[cfg(feature = "postgres")]
    pub fn track_postgres(&self, name: &'static str, store: &PostgresStore) {
        self.track_counters(name, store.counters());
    }

    #[cfg(feature = "postgres")]
    fn track_counters(&self, name: &'static str, counters: &Arc<Counters>) {
        #[cfg(feature = "metrics")]
        facade::export_postgres(name, counters);
        let mut stores = self.shared.postgres.lock().ignore_poison();
        stores.retain(|(other, _)| *other != name);
        stores.push((name, counters.clone()));
    }

    /// Counts and reports calls that take `threshold` or longer, in all layers of a kind. The report is a warning
    /// with the names of layer, operation and outcome, the time in milliseconds and the number of suppressed reports.
    /// With the feature `tracing` it is an event within the call's span, otherwise a line of the `log` crate. Each
    /// operation reports at most one call a second.
    ///
    /// `None`, the default, reports no calls. `connection` and `streamed_body` are never slow.
    pub fn log_slower_than(&self, kind: LayerKind, threshold: Option<Duration>) {
        let nanos = threshold.map_or(u64::MAX, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        self.shared.slow.thresholds[kind as usize].store(nanos, Relaxed);
    }

    /// The counts so far. Calls continue while the snapshot is taken, so numbers that belong together may differ by
    /// the calls that end at that moment.
    pub fn snapshot(&self) -> MetricsSnapshot {
        let elapsed = self.shared.slow.since.elapsed();
        let layers: Vec<_> = self.shared.layers.lock().ignore_poison().clone();
        let caches: Vec<_> = self.shared.caches.lock().ignore_poison().clone();
        MetricsSnapshot {
            elapsed,
            layers: layers.iter().map(|layer| layer.snapshot()).collect(),
            caches: caches.iter().map(|(name, cache)| (*name, cache.stats())).collect(),
            #[cfg(feature = "postgres")]
            postgres: self
                .shared
                .postgres
                .lock()
                .ignore_poison()
                .iter()
                .map(|(name, store)| (*name, store.read()))
                .collect(),
        }
    }

    fn stats<O: Operation>(&self, name: &'static str) -> Arc<LayerStats> {
        let mut layers = self.shared.layers.lock().ignore_poison();
        if let Some(layer) = layers.iter().find(|layer| (layer.name, layer.kind) == (name, O::KIND)) {
            return layer.clone();
        }
        let layer = Arc::new(LayerStats::new::<O>(name, self.shared.slow.clone()));
        layers.push(layer.clone());
        layer
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Prints the names of the layers.
impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")?;
        f.debug_list().entries(self.shared.layers.lock().ignore_poison().iter().map(|layer| layer.name)).finish()
    }
}
