//! The numbers of one moment, and their differences.

use std::time::Duration;

use serde::Serialize;

use super::histogram::Histogram;
use super::operation::LayerKind;
use super::outcome::Outcome;
use crate::cache::CacheStats;
#[cfg(feature = "postgres")]
use crate::postgres::PostgresStats;

/// The counts of a [`Metrics`](super::Metrics) up to one moment, or between two moments ([`MetricsSnapshot::since`]).
///
/// `Display` prints a table for each layer, slowest operations first. In JSON, times are in seconds.
#[derive(Debug, Clone)]
pub struct MetricsSnapshot {
    pub(super) elapsed: Duration,
    pub(super) layers: Vec<LayerSnapshot>,
    pub(super) caches: Vec<(&'static str, CacheStats)>,
    #[cfg(feature = "postgres")]
    pub(super) postgres: Vec<(&'static str, PostgresStats)>,
}

/// The counts of one layer name.
#[derive(Debug, Clone, Serialize)]
pub struct LayerSnapshot {
    pub(super) name: &'static str,
    pub(super) kind: LayerKind,
    pub(super) operations: Vec<OpSnapshot>,
}

/// The counts of one operation: a storage method, or an operation of a network layer.
#[derive(Debug, Clone)]
pub struct OpSnapshot {
    pub(super) op: &'static str,
    /// The client decides how long the operation lasts.
    pub(super) lifetime: bool,
    /// Indexed by [`Outcome`].
    pub(super) outcomes: [u64; Outcome::ALL.len()],
    pub(super) in_flight: u64,
    /// The calls in flight at the beginning of the counted period.
    pub(super) in_flight_before: u64,
    pub(super) slow: u64,
    pub(super) rows: [u64; 2],
    pub(super) bytes: [u64; 2],
    pub(super) lookups: [u64; 2],
    pub(super) times: Histogram,
}

impl MetricsSnapshot {
    /// The length of the counted period: since the [`Metrics`](super::Metrics) was made, or between the two
    /// snapshots.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// All layers, in the order in which they were made.
    pub fn layers(&self) -> &[LayerSnapshot] {
        &self.layers
    }

    /// The layer of this name; `None` if there is none. Returns the one made first if a store and a network layer
    /// share a name; [`MetricsSnapshot::layer_of`] tells them apart.
    pub fn layer(&self, name: &str) -> Option<&LayerSnapshot> {
        self.layers.iter().find(|layer| layer.name == name)
    }

    /// The layer of this kind and name; `None` if there is none.
    pub fn layer_of(&self, kind: LayerKind, name: &str) -> Option<&LayerSnapshot> {
        self.layers.iter().find(|layer| (layer.kind, layer.name) == (kind, name))
    }

    /// The counts of a cache named with [`Metrics::track_cache`](super::Metrics::track_cache); `None` if no cache has
    /// this name.
    pub fn cache(&self, name: &str) -> Option<&CacheStats> {
        self.caches().find(|(found, _)| *found == name).map(|(_, stats)| stats)
    }

    /// The counts of every cache named with [`Metrics::track_cache`](super::Metrics::track_cache).
    pub fn caches(&self) -> impl Iterator<Item = (&'static str, &CacheStats)> {
        self.caches.iter().map(|(name, stats)| (*name, stats))
    }

    /// The counts of a store named with [`Metrics::track_postgres`](super::Metrics::track_postgres); `None` if no store
    /// has this name.
    #[cfg(feature = "postgres")]
    pub fn postgres(&self, name: &str) -> Option<&PostgresStats> {
        self.postgres_stores().find(|(found, _)| *found == name).map(|(_, stats)| stats)
    }

    /// The counts of every store named with [`Metrics::track_postgres`](super::Metrics::track_postgres).
    #[cfg(feature = "postgres")]
    pub fn postgres_stores(&self) -> impl Iterator<Item = (&'static str, &PostgresStats)> {
        self.postgres.iter().map(|(name, stats)| (*name, stats))
    }

    /// The counts since `earlier`, which must be a snapshot of the same [`Metrics`](super::Metrics). Calls in flight,
    /// calls that wait and the contents of caches are those of this snapshot. The longest time is exact if it is longer than all
    /// earlier ones; otherwise it is the end of a bucket.
    #[must_use]
    pub fn since(&self, earlier: &MetricsSnapshot) -> MetricsSnapshot {
        let layers = self.layers.iter().map(|layer| {
            let before = earlier.layer_of(layer.kind, layer.name);
            let operations = layer.operations.iter().map(|op| match before.and_then(|before| before.op(op.op)) {
                Some(before) => op.since(before),
                None => op.clone(),
            });
            LayerSnapshot { operations: operations.collect(), ..*layer }
        });
        let caches = self.caches.iter().map(|(name, stats)| {
            (*name, earlier.cache(name).map_or_else(|| stats.clone(), |before| stats.since(before)))
        });
        MetricsSnapshot {
            elapsed: self.elapsed.saturating_sub(earlier.elapsed),
            layers: layers.collect(),
            caches: caches.collect(),
            #[cfg(feature = "postgres")]
            postgres: self.postgres_since(earlier),
        }
    }
}

#[cfg(feature = "postgres")]
impl MetricsSnapshot {
    fn postgres_since(&self, earlier: &MetricsSnapshot) -> Vec<(&'static str, PostgresStats)> {
        let since =
            |name: &str, stats: &PostgresStats| earlier.postgres(name).map_or(*stats, |before| stats.since(before));
        self.postgres.iter().map(|(name, stats)| (*name, since(name, stats))).collect()
    }
}

impl LayerSnapshot {
    /// The name of the layer, which is the label `layer`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The kind of component that the layer wraps.
    pub fn kind(&self) -> LayerKind {
        self.kind
    }

    /// Every operation that was called.
    pub fn ops(&self) -> &[OpSnapshot] {
        &self.operations
    }

    /// An operation by its name, for example `get_session` or `send`; `None` if it was never called.
    pub fn op(&self, name: &str) -> Option<&OpSnapshot> {
        self.operations.iter().find(|op| op.op == name)
    }

    /// The operations that were called, slowest first by p99.
    pub(super) fn slowest_first(&self) -> Vec<&OpSnapshot> {
        let mut operations: Vec<_> = self.operations.iter().filter(|op| op.calls() + op.in_flight > 0).collect();
        operations.sort_by_cached_key(|op| std::cmp::Reverse((op.times.percentile(0.99), op.times.longest)));
        operations
    }

    /// The sum of all operations. It leaves out the times of `connection` and `streamed_body`, because the client
    /// decides how long they last.
    pub fn total(&self) -> OpSnapshot {
        let mut total = OpSnapshot::new("all");
        self.operations.iter().for_each(|op| total.add(op));
        total
    }
}

impl OpSnapshot {
    pub(super) fn new(op: &'static str) -> Self {
        let (rows, bytes, lookups) = Default::default();
        Self {
            op,
            lifetime: false,
            outcomes: Default::default(),
            in_flight: 0,
            in_flight_before: 0,
            slow: 0,
            rows,
            bytes,
            lookups,
            times: Histogram::new(),
        }
    }

    /// The name of the operation, which is the label `op`.
    pub fn name(&self) -> &'static str {
        self.op
    }

    /// Calls that ended, with any outcome.
    pub fn calls(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// Calls with this outcome.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// Calls that failed, without cancelled ones.
    pub fn errors(&self) -> u64 {
        self.outcomes().filter(|(outcome, _)| outcome.is_error()).map(|(_, count)| count).sum()
    }

    /// The outcomes that occurred, and the number of calls of each.
    pub fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.iter().copied().zip(self.outcomes).filter(|(_, count)| *count > 0)
    }

    /// Calls that have not ended yet; for `connection`, open connections.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Calls that reached the threshold of [`Metrics::log_slower_than`](super::Metrics::log_slower_than).
    pub fn slow(&self) -> u64 {
        self.slow
    }

    /// Rows or keys in the arguments of calls, whether or not they succeeded. For `send`, sent messages.
    pub fn rows_in(&self) -> u64 {
        self.rows[0]
    }

    /// Rows in the answers of calls. For sweeps, removed rows. For `receive`, messages.
    pub fn rows_out(&self) -> u64 {
        self.rows[1]
    }

    /// Bytes of keys and contents in the arguments of calls; numbers do not count. For `send` and HTTP, sent bytes.
    pub fn bytes_in(&self) -> u64 {
        self.bytes[0]
    }

    /// Bytes of keys and contents in the answers of calls.
    pub fn bytes_out(&self) -> u64 {
        self.bytes[1]
    }

    /// Rows asked for that exist.
    pub fn found(&self) -> u64 {
        self.lookups[0]
    }

    /// Rows asked for that do not exist.
    pub fn absent(&self) -> u64 {
        self.lookups[1]
    }

    /// How long calls took, including failed and cancelled ones.
    pub fn times(&self) -> &Histogram {
        &self.times
    }

    pub(super) fn since(&self, earlier: &OpSnapshot) -> OpSnapshot {
        let mut since = self.clone();
        since.combine(earlier, u64::saturating_sub);
        since.in_flight = self.in_flight;
        since.in_flight_before = earlier.in_flight;
        since.times = self.times.since(&earlier.times);
        since
    }

    pub(super) fn add(&mut self, other: &OpSnapshot) {
        self.combine(other, |one, two| one + two);
        self.in_flight += other.in_flight;
        self.in_flight_before += other.in_flight_before;
        if !other.lifetime {
            self.times.add(&other.times);
        }
    }

    fn combine(&mut self, other: &OpSnapshot, with: impl Fn(u64, u64) -> u64) {
        let each = |ours: &mut [u64], others: &[u64]| {
            for (ours, others) in ours.iter_mut().zip(others) {
                *ours = with(*ours, *others);
            }
        };
        each(&mut self.outcomes, &other.outcomes);
        each(&mut self.rows, &other.rows);
        each(&mut self.bytes, &other.bytes);
        each(&mut self.lookups, &other.lookups);
        self.slow = with(self.slow, other.slow);
    }
}
