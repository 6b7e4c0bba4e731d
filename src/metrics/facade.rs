//! Exports the counts to the recorder of the `metrics` facade.

use std::sync::{Arc, OnceLock};

use ::metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit, with_recorder};

use super::operation::{Ended, LayerKind, Operation, TARGET};
use super::outcome::Outcome;
use crate::cache::{CacheLayer, Counters};
use crate::method::Record;
#[cfg(feature = "postgres")]
use crate::postgres::{Counters as PostgresCounters, WaitObserver};

/// A metric that is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportedMetric {
    /// The name, without the suffixes that exporters add for histograms.
    pub name: &'static str,
    /// The type and the unit.
    pub kind: MetricKind,
    /// The names of the labels.
    pub labels: &'static [&'static str],
    /// The meaning, in one sentence.
    pub help: &'static str,
}

/// The type of an exported metric and its unit. [`Unit`] is a type of the `metrics` crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// A number that only grows.
    Counter(Unit),
    /// A number that grows and shrinks.
    Gauge(Unit),
    /// A distribution.
    Histogram(Unit),
}

/// Bucket bounds in seconds for histograms of durations, for exporters that need them
/// (`PrometheusBuilder::set_buckets_for_metric`). There are three per decade, from a cache hit (1 µs) to a database
/// that hangs (10 s).
pub const DURATION_BUCKETS: &[f64] = &[
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0,
    5.0, 10.0,
];

/// Every exported metric, as in the table of the [module](super).
pub fn exported() -> impl Iterator<Item = ExportedMetric> {
    let families = [&STORE, &TRANSPORT, &HTTP, &CACHE_STORE].into_iter().flat_map(|family| {
        let Family { total, duration, in_flight, slow, rows, bytes, lookups } = family;
        let always = [Some(*total), Some(*duration), Some(*in_flight), Some(*slow)];
        always.into_iter().chain([*rows, Some(*bytes), *lookups]).flatten()
    });
    families.chain(CACHE).chain(POSTGRES).chain([QUEUE])
}

/// Describes every metric and its unit to the current recorder.
pub fn describe() {
    with_recorder(|recorder| {
        for metric in exported() {
            match metric.kind {
                MetricKind::Counter(unit) => {
                    recorder.describe_counter(metric.name.into(), Some(unit), metric.help.into());
                }
                MetricKind::Gauge(unit) => {
                    recorder.describe_gauge(metric.name.into(), Some(unit), metric.help.into());
                }
                MetricKind::Histogram(unit) => {
                    recorder.describe_histogram(metric.name.into(), Some(unit), metric.help.into());
                }
            }
        }
    });
}

/// The metrics of one kind of layer.
struct Family {
    total: ExportedMetric,
    duration: ExportedMetric,
    in_flight: ExportedMetric,
    slow: ExportedMetric,
    rows: Option<ExportedMetric>,
    bytes: ExportedMetric,
    lookups: Option<ExportedMetric>,
}

const OP: &[&str] = &["layer", "op"];
const OP_OUTCOME: &[&str] = &["layer", "op", "outcome"];
const OP_DIRECTION: &[&str] = &["layer", "op", "direction"];
const CACHE_RECORD: &[&str] = &["layer", "record"];
const LAYER: &[&str] = &["layer"];

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    unit: Unit,
    help: &'static str,
) -> ExportedMetric {
    ExportedMetric { name, kind: MetricKind::Counter(unit), labels, help }
}

const fn gauge(name: &'static str, help: &'static str) -> ExportedMetric {
    ExportedMetric { name, kind: MetricKind::Gauge(Unit::Count), labels: OP, help }
}

const fn duration(name: &'static str, help: &'static str) -> ExportedMetric {
    ExportedMetric { name, kind: MetricKind::Histogram(Unit::Seconds), labels: OP, help }
}

const STORE: Family = Family {
    total: counter("wa_store_op_total", OP_OUTCOME, Unit::Count, "Calls to the store by how they ended"),
    duration: duration("wa_store_op_duration_seconds", "Time of calls to the store"),
    in_flight: gauge("wa_store_op_in_flight", "Calls to the store that have not ended"),
    slow: counter("wa_store_op_slow_total", OP, Unit::Count, "Calls to the store slower than the threshold"),
    rows: Some(counter("wa_store_rows_total", OP_DIRECTION, Unit::Count, "Rows given to the store and by it")),
    bytes: counter("wa_store_bytes_total", OP_DIRECTION, Unit::Bytes, "Keys and contents given to the store and by it"),
    lookups: Some(counter("wa_store_lookups_total", OP_OUTCOME, Unit::Count, "Rows asked for, by whether they exist")),
};

const TRANSPORT: Family = Family {
    total: counter("wa_transport_op_total", OP_OUTCOME, Unit::Count, "Operations of connections by how they ended"),
    duration: duration("wa_transport_op_duration_seconds", "Time of operations of connections"),
    in_flight: gauge(
        "wa_transport_op_in_flight",
        "Operations of connections that have not ended, such as open connections",
    ),
    slow: counter("wa_transport_op_slow_total", OP, Unit::Count, "Operations of connections slower than the threshold"),
    rows: Some(counter(
        "wa_transport_messages_total",
        OP_DIRECTION,
        Unit::Count,
        "Messages that were sent and received",
    )),
    bytes: counter("wa_transport_bytes_total", OP_DIRECTION, Unit::Bytes, "Bytes that were sent and received"),
    lookups: None,
};

const HTTP: Family = Family {
    total: counter(
        "wa_http_op_total",
        OP_OUTCOME,
        Unit::Count,
        "HTTP exchanges by class of status, and streamed bodies by how they ended",
    ),
    duration: duration("wa_http_op_duration_seconds", "Time of HTTP exchanges and of reading streamed bodies"),
    in_flight: gauge("wa_http_op_in_flight", "HTTP exchanges and streamed bodies that have not ended"),
    slow: counter("wa_http_op_slow_total", OP, Unit::Count, "HTTP exchanges slower than the threshold"),
    rows: None,
    bytes: counter("wa_http_bytes_total", OP_DIRECTION, Unit::Bytes, "Bodies that were sent and received"),
    lookups: None,
};

const CACHE_STORE: Family = Family {
    total: counter("wa_cache_store_op_total", OP_OUTCOME, Unit::Count, "Calls to an external cache by how they ended"),
    duration: duration("wa_cache_store_op_duration_seconds", "Time of calls to an external cache"),
    in_flight: gauge("wa_cache_store_op_in_flight", "Calls to an external cache that have not ended"),
    slow: counter(
        "wa_cache_store_op_slow_total",
        OP,
        Unit::Count,
        "Calls to an external cache slower than the threshold",
    ),
    rows: Some(counter(
        "wa_cache_store_entries_total",
        OP_DIRECTION,
        Unit::Count,
        "Entries given to the cache and by it",
    )),
    bytes: counter(
        "wa_cache_store_bytes_total",
        OP_DIRECTION,
        Unit::Bytes,
        "Keys and values given to the cache and by it",
    ),
    lookups: Some(counter(
        "wa_cache_store_lookups_total",
        OP_OUTCOME,
        Unit::Count,
        "Entries asked for, by whether they exist: hits and misses",
    )),
};

const CACHE: [ExportedMetric; 5] = [
    counter("wa_store_cache_hits_total", CACHE_RECORD, Unit::Count, "Reads answered from the cache"),
    counter("wa_store_cache_misses_total", CACHE_RECORD, Unit::Count, "Reads not answered from the cache"),
    counter("wa_store_cache_loads_total", CACHE_RECORD, Unit::Count, "Calls to the store that misses caused"),
    counter("wa_store_cache_evictions_total", CACHE_RECORD, Unit::Count, "Values evicted to make room, or too large"),
    counter("wa_store_cache_invalidations_total", CACHE_RECORD, Unit::Count, "Values that a call made stale"),
];

/// Those of a `PostgresStore`. They are exported with the feature `postgres`.
const POSTGRES: [ExportedMetric; 8] = [
    counter("wa_store_groups_total", LAYER, Unit::Count, "Transactions that wrote; calls that wait together share one"),
    counter("wa_store_group_calls_total", LAYER, Unit::Count, "Writing calls in these transactions"),
    counter("wa_store_group_statements_total", LAYER, Unit::Count, "Statements in these transactions"),
    counter("wa_store_read_statements_total", LAYER, Unit::Count, "Statements that read"),
    counter("wa_store_retries_total", LAYER, Unit::Count, "Calls repeated after a conflict or a lost connection"),
    counter("wa_store_reconnects_total", LAYER, Unit::Count, "Connections made after the first ones"),
    counter("wa_store_lease_renewals_total", LAYER, Unit::Count, "Renewals of leases, one statement each"),
    counter("wa_store_lease_lost_total", LAYER, Unit::Count, "Accounts that another process took over"),
];

const QUEUE: ExportedMetric = ExportedMetric {
    name: "wa_store_queue_length",
    kind: MetricKind::Gauge(Unit::Count),
    labels: LAYER,
    help: "Calls that wait for a connection of the store",
};

const METADATA: Metadata<'static> = Metadata::new(TARGET, Level::INFO, Some(module_path!()));

fn key(metric: &ExportedMetric, values: &[&'static str]) -> Key {
    let labels = metric.labels.iter().zip(values).map(|(name, value)| Label::from_static_parts(name, value));
    Key::from_parts(metric.name, labels.collect::<Vec<_>>())
}

/// The recorder's handles for one operation of one layer. They are registered on the first call that finds a
/// recorder.
pub(super) struct OpExport {
    layer: &'static str,
    op: &'static str,
    kind: LayerKind,
    looks_up: bool,
    outcomes: &'static [Outcome],
    handles: OnceLock<Handles>,
}

struct Handles {
    outcomes: Vec<(Outcome, Counter)>,
    duration: Histogram,
    in_flight: Gauge,
    slow: Counter,
    rows: Option<[Counter; 2]>,
    bytes: [Counter; 2],
    lookups: Option<[Counter; 2]>,
}

impl OpExport {
    pub(super) fn new<O: Operation>(layer: &'static str, operation: O) -> Self {
        Self {
            layer,
            op: operation.name(),
            kind: O::KIND,
            looks_up: operation.looks_up(),
            outcomes: operation.outcomes(),
            handles: OnceLock::new(),
        }
    }

    /// Returns whether the recorder counted the start of the call, and so must count its end.
    pub(super) fn start(&self) -> bool {
        let handles = self.handles();
        if let Some(handles) = handles {
            handles.in_flight.increment(1);
        }
        handles.is_some()
    }

    pub(super) fn end(&self, ended: &Ended, slow: bool, started: bool) {
        let Some(handles) = self.handles() else { return };
        if let Some((_, counter)) = handles.outcomes.iter().find(|(outcome, _)| *outcome == ended.outcome) {
            counter.increment(1);
        }
        handles.duration.record(ended.time);
        if started {
            handles.in_flight.decrement(1);
        }
        if slow {
            handles.slow.increment(1);
        }
        let add = |counters: &[Counter; 2], numbers: [u64; 2]| {
            for (counter, number) in counters.iter().zip(numbers).filter(|(_, number)| *number > 0) {
                counter.increment(number);
            }
        };
        add(&handles.bytes, [ended.given.bytes, ended.got.bytes]);
        if let Some(rows) = &handles.rows {
            add(rows, [ended.given.rows, ended.got.rows]);
        }
        if let (Some(lookups), Some(numbers)) = (&handles.lookups, ended.lookups) {
            add(lookups, numbers);
        }
    }

    fn handles(&self) -> Option<&Handles> {
        resolved(&self.handles, |recorder| self.register(recorder))
    }

    fn register(&self, recorder: &dyn Recorder) -> Handles {
        let (layer, op) = (self.layer, self.op);
        let family = match self.kind {
            LayerKind::Store => &STORE,
            LayerKind::Transport => &TRANSPORT,
            LayerKind::Http => &HTTP,
            LayerKind::CacheStore => &CACHE_STORE,
        };
        let counter = |metric, values: &[_]| recorder.register_counter(&key(metric, values), &METADATA);
        let outcome = |outcome: &Outcome| (*outcome, counter(&family.total, &[layer, op, outcome.label()]));
        let both = |metric, values: [_; 2]| values.map(|value| counter(metric, &[layer, op, value]));
        Handles {
            outcomes: self.outcomes.iter().map(outcome).collect(),
            duration: recorder.register_histogram(&key(&family.duration, &[layer, op]), &METADATA),
            in_flight: recorder.register_gauge(&key(&family.in_flight, &[layer, op]), &METADATA),
            slow: counter(&family.slow, &[layer, op]),
            rows: family.rows.as_ref().map(|rows| both(rows, ["in", "out"])),
            bytes: both(&family.bytes, ["in", "out"]),
            lookups: family
                .lookups
                .as_ref()
                .filter(|_| self.looks_up)
                .map(|lookups| both(lookups, ["found", "absent"])),
        }
    }
}

/// Exports the counts of a cache under this name from now on. A cache has one name; later ones are ignored.
pub(super) fn export_cache(layer: &'static str, cache: &CacheLayer) {
    for (record, counters) in cache.counters() {
        let export = Arc::new(CacheExport { layer, record, handles: OnceLock::new() });
        // In the order of `CACHE`.
        let Counters { hits, misses, loads, evictions, invalidations } = counters;
        for (position, counter) in [hits, misses, loads, &**evictions, invalidations].into_iter().enumerate() {
            let export = export.clone();
            counter.observe(move |number| export.add(position, number));
        }
    }
}

/// The recorder's handles for one kind of record of a cache. They are registered on the first event that finds a
/// recorder.
struct CacheExport {
    layer: &'static str,
    record: Record,
    handles: OnceLock<[Counter; CACHE.len()]>,
}

impl CacheExport {
    fn add(&self, position: usize, number: u64) {
        let register = |recorder: &dyn Recorder| {
            CACHE.map(|metric| recorder.register_counter(&key(&metric, &[self.layer, self.record.label()]), &METADATA))
        };
        if let Some(handles) = resolved(&self.handles, register) {
            handles[position].increment(number);
        }
    }
}

/// Exports the counts of a store under this name from now on. A store has one name; later ones are ignored.
#[cfg(feature = "postgres")]
pub(super) fn export_postgres(layer: &'static str, store: &PostgresCounters) {
    let export = Arc::new(PostgresExport { layer, handles: OnceLock::new() });
    let PostgresCounters {
        groups,
        grouped_calls,
        statements,
        reads,
        retries,
        reconnects,
        renewals,
        leases_lost,
        waiting,
    } = store;
    // In the order of `POSTGRES`.
    let counters = [groups, grouped_calls, statements, reads, retries, reconnects, renewals, leases_lost];
    for (position, counter) in counters.into_iter().enumerate() {
        let export = export.clone();
        counter.observe(move |number| export.add(position, number));
    }
    waiting.observe(QueueExport(export));
}

/// The recorder's handles for a store. They are registered on the first event that finds a recorder.
#[cfg(feature = "postgres")]
struct PostgresExport {
    layer: &'static str,
    handles: OnceLock<([Counter; POSTGRES.len()], Gauge)>,
}

#[cfg(feature = "postgres")]
impl PostgresExport {
    fn handles(&self) -> Option<&([Counter; POSTGRES.len()], Gauge)> {
        resolved(&self.handles, |recorder| {
            let counters = POSTGRES.map(|metric| recorder.register_counter(&key(&metric, &[self.layer]), &METADATA));
            (counters, recorder.register_gauge(&key(&QUEUE, &[self.layer]), &METADATA))
        })
    }

    fn add(&self, position: usize, number: u64) {
        if let Some((counters, _)) = self.handles() {
            counters[position].increment(number);
        }
    }
}

#[cfg(feature = "postgres")]
struct QueueExport(Arc<PostgresExport>);

#[cfg(feature = "postgres")]
impl WaitObserver for QueueExport {
    fn begins(&self) -> bool {
        let handles = self.0.handles();
        if let Some((_, queue)) = handles {
            queue.increment(1);
        }
        handles.is_some()
    }

    fn ends(&self) {
        if let Some((_, queue)) = self.0.handles() {
            queue.decrement(1);
        }
    }
}

/// `None` while no recorder is installed. The facade then passes a zero-sized recorder, and its size is the only way
/// to recognize it. Handles registered with it would never count.
fn resolved<T>(handles: &OnceLock<T>, register: impl FnOnce(&dyn Recorder) -> T) -> Option<&T> {
    handles.get().or_else(|| {
        let registered = with_recorder(|recorder| (size_of_val(recorder) > 0).then(|| register(recorder)));
        registered.map(|registered| handles.get_or_init(|| registered))
    })
}
