//! The numbers of one moment, and arithmetic with them.

use std::time::Duration;

use serde::Serialize;

use super::histogram::Histogram;
use super::operation::LayerKind;
use super::outcome::Outcome;
use crate::cache::CacheStats;

/// The counts of a [`Metrics`](super::Metrics) until one moment, or between two of them ([`MetricsSnapshot::since`]).
///
/// `Display` prints a table of each layer, slowest operations first. As JSON, times are in seconds.
#[derive(Debug, Clone)]
pub struct MetricsSnapshot {
    pub(super) elapsed: Duration,
    pub(super) layers: Vec<LayerSnapshot>,
    pub(super) caches: Vec<(&'static str, CacheStats)>,
}

/// The counts under one name.
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
    /// It lasts as long as the client wants.
    pub(super) lifetime: bool,
    /// By [`Outcome`].
    pub(super) outcomes: [u64; Outcome::ALL.len()],
    pub(super) in_flight: u64,
    /// At the beginning of what is counted here.
    pub(super) in_flight_before: u64,
    pub(super) slow: u64,
    pub(super) rows: [u64; 2],
    pub(super) bytes: [u64; 2],
    pub(super) lookups: [u64; 2],
    pub(super) times: Histogram,
}

impl MetricsSnapshot {
    /// How long it was counted: since the [`Metrics`](super::Metrics) was made, or between the two snapshots.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Every layer, in the order in which they were made.
    pub fn layers(&self) -> &[LayerSnapshot] {
        &self.layers
    }

    /// The layer of this name; `None` if there is none. If a store and a network layer have the same name, the one that was
    /// made first; [`MetricsSnapshot::layer_of`] tells them apart.
    pub fn layer(&self, name: &str) -> Option<&LayerSnapshot> {
        self.layers.iter().find(|layer| layer.name == name)
    }

    /// The layer of this kind and name; `None` if there is none.
    pub fn layer_of(&self, kind: LayerKind, name: &str) -> Option<&LayerSnapshot> {
        self.layers.iter().find(|layer| (layer.kind, layer.name) == (kind, name))
    }

    /// The counts of a cache that was named with [`Metrics::track_cache`](super::Metrics::track_cache); `None` if none was.
    pub fn cache(&self, name: &str) -> Option<&CacheStats> {
        self.caches().find(|(found, _)| *found == name).map(|(_, stats)| stats)
    }

    /// Every cache that was named with [`Metrics::track_cache`](super::Metrics::track_cache).
    pub fn caches(&self) -> impl Iterator<Item = (&'static str, &CacheStats)> {
        self.caches.iter().map(|(name, stats)| (*name, stats))
    }

    /// The counts after `earlier`, which must be a snapshot of the same [`Metrics`](super::Metrics). Calls in flight and
    /// the contents of caches are those of this snapshot. The longest time is exact if it is longer than any before;
    /// otherwise it is that of a bucket.
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
        }
    }
}

impl LayerSnapshot {
    /// The name that the layer was given; the label `layer`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The kind of thing that it is put around.
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

    /// Those that were called, slowest first by p99.
    pub(super) fn slowest_first(&self) -> Vec<&OpSnapshot> {
        let mut operations: Vec<_> = self.operations.iter().filter(|op| op.calls() + op.in_flight > 0).collect();
        operations.sort_by_cached_key(|op| std::cmp::Reverse((op.times.percentile(0.99), op.times.longest)));
        operations
    }

    /// All operations together. The time of `connection` and `streamed_body` is left out: they last as long as
    /// the client wants.
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

    /// The operation's name; the label `op`.
    pub fn name(&self) -> &'static str {
        self.op
    }

    /// Calls that ended, however they did.
    pub fn calls(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// Calls that ended like this.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// Calls that failed, cancelled ones not included.
    pub fn errors(&self) -> u64 {
        self.outcomes().filter(|(outcome, _)| outcome.is_error()).map(|(_, count)| count).sum()
    }

    /// How calls ended, and how many of them; those that did not happen are left out.
    pub fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.iter().copied().zip(self.outcomes).filter(|(_, count)| *count > 0)
    }

    /// Calls that have not ended yet; for `connection`, those that are open.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Calls that took as long as [`Metrics::log_slower_than`](super::Metrics::log_slower_than) says, or longer.
    pub fn slow(&self) -> u64 {
        self.slow
    }

    /// Rows or keys that calls were given, whether or not they succeeded. For `send`, messages that were sent.
    pub fn rows_in(&self) -> u64 {
        self.rows[0]
    }

    /// Rows that calls gave, or, for sweeps, removed. For `receive`, messages.
    pub fn rows_out(&self) -> u64 {
        self.rows[1]
    }

    /// Bytes of keys and contents that calls were given; numbers do not count. For `send` and HTTP, those that were sent.
    pub fn bytes_in(&self) -> u64 {
        self.bytes[0]
    }

    /// Bytes of keys and contents that calls gave.
    pub fn bytes_out(&self) -> u64 {
        self.bytes[1]
    }

    /// Rows that were asked for and are there.
    pub fn found(&self) -> u64 {
        self.lookups[0]
    }

    /// Rows that were asked for and are not there.
    pub fn absent(&self) -> u64 {
        self.lookups[1]
    }

    /// How long calls took, those that failed or were cancelled included.
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
