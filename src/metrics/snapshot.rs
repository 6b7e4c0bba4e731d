//! What was counted, at one moment: numbers, a table for people, JSON for programs.

use std::fmt;
use std::time::Duration;

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::outcome::Outcome;
use crate::cache::CacheStats;

/// What a [`Metrics`](super::Metrics) counted until one moment, or between two of them ([`MetricsSnapshot::since`]).
///
/// `Display` prints a table of each layer, slowest operations first. As JSON, times are in seconds.
#[derive(Debug, Clone, Serialize)]
pub struct MetricsSnapshot {
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub(super) elapsed: Duration,
    pub(super) layers: Vec<LayerSnapshot>,
    #[serde(serialize_with = "caches")]
    pub(super) caches: Vec<(&'static str, CacheStats)>,
}

/// What a layer is put around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LayerKind {
    /// A storage backend.
    Store,
    /// The connections to the server.
    Transport,
    /// HTTP exchanges.
    Http,
}

impl LayerKind {
    /// Every kind.
    pub const ALL: &'static [LayerKind] = &[LayerKind::Store, LayerKind::Transport, LayerKind::Http];
}

/// What was counted under one name.
#[derive(Debug, Clone, Serialize)]
pub struct LayerSnapshot {
    pub(super) name: &'static str,
    pub(super) kind: LayerKind,
    pub(super) operations: Vec<OpSnapshot>,
}

/// What was counted of one operation: a storage method, or something that a network layer does.
#[derive(Debug, Clone)]
pub struct OpSnapshot {
    pub(super) op: &'static str,
    /// It lasts as long as somebody wants it to.
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

    /// What a cache did that was named with [`Metrics::cache`](super::Metrics::cache); `None` if none was.
    pub fn cache(&self, name: &str) -> Option<&CacheStats> {
        self.caches().find(|(found, _)| *found == name).map(|(_, stats)| stats)
    }

    /// Every cache that was named with [`Metrics::cache`](super::Metrics::cache).
    pub fn caches(&self) -> impl Iterator<Item = (&'static str, &CacheStats)> {
        self.caches.iter().map(|(name, stats)| (*name, stats))
    }

    /// What happened after `earlier`, which must be a snapshot of the same [`Metrics`](super::Metrics). Calls in flight, and
    /// what caches hold, are those of this snapshot. The longest time is exact if it is longer than any before;
    /// otherwise it is that of a percentile.
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

    /// What it is put around.
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

    /// All operations together. The time of `connection` and `streamed_body` is left out: they last as long as somebody
    /// wants them to.
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

    fn since(&self, earlier: &OpSnapshot) -> OpSnapshot {
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

/// How long calls took. Every power of two of nanoseconds has eight buckets, and within a bucket times are taken to be spread
/// evenly, so a percentile is off by 12.5 % at most and by much less as a rule. What takes longer than 39 hours falls into
/// the last one.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    pub(super) counts: Vec<u64>,
    pub(super) nanos: u64,
    pub(super) longest: u64,
}

/// The number of bits that tell buckets of the same power of two apart.
const PRECISION: u32 = 3;
/// The powers of two of nanoseconds: 2⁴⁷ ns are 39 hours.
const POWERS: u32 = 47;

impl Histogram {
    pub(super) const BUCKETS: usize = ((POWERS - PRECISION + 1) << PRECISION) as usize;

    fn new() -> Self {
        Self { counts: vec![0; Self::BUCKETS], nanos: 0, longest: 0 }
    }

    /// Log-linear, as in HdrHistogram: below 2³ ns exact, above by the highest bit and the three that follow it.
    #[inline]
    pub(super) fn bucket(nanos: u64) -> usize {
        let power = nanos.max(1).ilog2();
        let bucket = match power {
            0..PRECISION => nanos as usize,
            _ => {
                let shift = power - PRECISION;
                ((shift << PRECISION) as usize) + (nanos >> shift) as usize
            }
        };
        bucket.min(Self::BUCKETS - 1)
    }

    /// The shortest and the longest time of a bucket, in nanoseconds.
    fn bounds(bucket: usize) -> (u64, u64) {
        let (high, low) = ((bucket >> PRECISION) as u32, (bucket & ((1 << PRECISION) - 1)) as u64);
        match high {
            0 => (low, low),
            _ => {
                let shift = high - 1;
                let first = ((1 << PRECISION) + low) << shift;
                (first, first + (1 << shift) - 1)
            }
        }
    }

    /// The number of calls.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The time of all calls together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos)
    }

    /// The average time; zero if there were no calls.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.nanos.checked_div(self.count()).unwrap_or(0))
    }

    /// The longest time.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.longest)
    }

    /// The time that this part of the calls did not exceed, for example 0.99 for p99; zero if there were no calls. Parts
    /// below 0 count as 0, above 1 as 1.
    pub fn percentile(&self, part: f64) -> Duration {
        let count = self.count();
        let rank = ((count as f64 * part.clamp(0.0, 1.0)).ceil() as u64).max(1);
        if rank >= count {
            return self.max();
        }
        let mut seen = 0;
        for (bucket, counted) in self.counts.iter().enumerate() {
            if seen + counted >= rank {
                let (first, last) = Self::bounds(bucket);
                let width = last.min(self.longest).saturating_sub(first) + 1;
                let within = (rank - seen) as f64 - 0.5;
                let nanos = first + (width as f64 * within / *counted as f64) as u64;
                return Duration::from_nanos(nanos.min(self.longest));
            }
            seen += counted;
        }
        Duration::ZERO
    }

    /// The buckets that are not empty: the longest time that falls into each, and how many calls did.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (Duration::from_nanos(Self::bounds(bucket).1), *count))
    }

    fn add(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(ours, others)| *ours += others);
        self.nanos = self.nanos.saturating_add(other.nanos);
        self.longest = self.longest.max(other.longest);
    }

    fn since(&self, earlier: &Histogram) -> Histogram {
        let counts = self.counts.iter().zip(&earlier.counts).map(|(now, before)| now.saturating_sub(*before));
        let counts: Vec<u64> = counts.collect();
        let longest = match self.longest > earlier.longest {
            true => self.longest,
            false => counts.iter().rposition(|count| *count > 0).map_or(0, |bucket| Self::bounds(bucket).1),
        };
        let nanos = self.nanos.saturating_sub(earlier.nanos);
        Histogram { counts, nanos, longest: longest.min(self.longest) }
    }
}

/// The percentiles, not the buckets.
impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Histogram");
        shown.field("count", &self.count());
        for (name, part) in PERCENTILES {
            shown.field(name, &self.percentile(part));
        }
        shown.field("max", &self.max()).finish_non_exhaustive()
    }
}

/// The percentiles that tables and charts show.
pub(super) const PERCENTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

impl fmt::Display for MetricsSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, layer) in self.layers.iter().enumerate() {
            if position > 0 {
                writeln!(f)?;
            }
            write!(f, "{layer}")?;
        }
        for (name, stats) in &self.caches {
            write!(f, "\ncache {name}\n{stats}")?;
        }
        Ok(())
    }
}

/// A table, slowest first by p99, and below it how calls failed.
impl fmt::Display for LayerSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut operations = self.slowest_first();
        let total = self.total();
        if operations.len() > 1 {
            operations.push(&total);
        }
        let width = operations.iter().map(|op| op.op.len()).max().unwrap_or(0).max(self.name.len());
        writeln!(
            f,
            "{:<width$} {:>9} {:>7} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>8} {:>8} {:>7}",
            self.name,
            "calls",
            "errors",
            "cancelled",
            "in flight",
            "p50",
            "p90",
            "p99",
            "max",
            "rows in",
            "rows out",
            "in",
            "out",
            "found",
        )?;
        for op in &operations {
            let [p50, p90, p99] = PERCENTILES.map(|(_, part)| time(op.times.percentile(part)));
            writeln!(
                f,
                "{:<width$} {:>9} {:>7} {:>9} {:>9} {p50:>8} {p90:>8} {p99:>8} {:>8} {:>9} {:>9} {:>8} {:>8} {:>7}",
                op.op,
                op.calls(),
                op.errors(),
                op.count(Outcome::Cancelled),
                op.in_flight,
                time(op.times.max()),
                op.rows_in(),
                op.rows_out(),
                size(op.bytes_in()),
                size(op.bytes_out()),
                op.found().checked_add(op.absent()).filter(|asked| *asked > 0).map_or_else(
                    || "-".to_owned(),
                    |asked| format!("{:.1} %", op.found() as f64 * 100.0 / asked as f64)
                ),
            )?;
        }
        for op in &self.operations {
            let unusual = |(outcome, _): &(Outcome, u64)| !matches!(outcome, Outcome::Ok | Outcome::Status2xx);
            let ends: Vec<_> =
                op.outcomes().filter(unusual).map(|(outcome, count)| format!("{count} {outcome}")).collect();
            if !ends.is_empty() {
                writeln!(f, "  {}: {}", op.op, ends.join(", "))?;
            }
            if op.slow > 0 {
                writeln!(f, "  {}: {} slow", op.op, op.slow)?;
            }
        }
        Ok(())
    }
}

/// Three digits and a unit.
pub(super) fn time(time: Duration) -> String {
    let nanos = time.as_nanos() as f64;
    match nanos {
        0.0 => "0".to_owned(),
        _ if nanos < 1e3 => format!("{nanos:.0} ns"),
        _ if nanos < 1e6 => digits(nanos / 1e3, "µs"),
        _ if nanos < 1e9 => digits(nanos / 1e6, "ms"),
        _ => digits(nanos / 1e9, "s"),
    }
}

fn size(bytes: u64) -> String {
    let number = bytes as f64;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => digits(number / 1e3, "kB"),
        1_000_000..1_000_000_000 => digits(number / 1e6, "MB"),
        _ => digits(number / 1e9, "GB"),
    }
}

fn digits(number: f64, unit: &str) -> String {
    match number {
        _ if number < 10.0 => format!("{number:.2} {unit}"),
        _ if number < 100.0 => format!("{number:.1} {unit}"),
        _ => format!("{number:.0} {unit}"),
    }
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

fn caches<S: Serializer>(caches: &[(&'static str, CacheStats)], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Cached<'a> {
        name: &'a str,
        record: &'a str,
        hits: u64,
        misses: u64,
        loads: u64,
        evictions: u64,
        invalidations: u64,
        entries: u64,
        bytes: u64,
        capacity: u64,
    }
    let mut list = serializer.serialize_seq(None)?;
    for (name, stats) in caches {
        for record in stats.records() {
            list.serialize_element(&Cached {
                name,
                record: record.record.name(),
                hits: record.hits,
                misses: record.misses,
                loads: record.loads,
                evictions: record.evictions,
                invalidations: record.invalidations,
                entries: record.entries,
                bytes: record.bytes,
                capacity: record.capacity,
            })?;
        }
    }
    list.end()
}

impl Serialize for OpSnapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Op<'a> {
            op: &'a str,
            calls: u64,
            errors: u64,
            outcomes: std::collections::BTreeMap<&'a str, u64>,
            in_flight: u64,
            slow: u64,
            rows_in: u64,
            rows_out: u64,
            bytes_in: u64,
            bytes_out: u64,
            found: u64,
            absent: u64,
            sum_seconds: f64,
            mean_seconds: f64,
            p50_seconds: f64,
            p90_seconds: f64,
            p99_seconds: f64,
            max_seconds: f64,
            /// The longest time of each bucket that is not empty, and its count.
            buckets: Vec<(f64, u64)>,
        }
        let [p50_seconds, p90_seconds, p99_seconds] =
            PERCENTILES.map(|(_, part)| self.times.percentile(part).as_secs_f64());
        Op {
            op: self.op,
            calls: self.calls(),
            errors: self.errors(),
            outcomes: self.outcomes().map(|(outcome, count)| (outcome.label(), count)).collect(),
            in_flight: self.in_flight,
            slow: self.slow,
            rows_in: self.rows_in(),
            rows_out: self.rows_out(),
            bytes_in: self.bytes_in(),
            bytes_out: self.bytes_out(),
            found: self.found(),
            absent: self.absent(),
            sum_seconds: self.times.sum().as_secs_f64(),
            mean_seconds: self.times.mean().as_secs_f64(),
            p50_seconds,
            p90_seconds,
            p99_seconds,
            max_seconds: self.times.max().as_secs_f64(),
            buckets: self.times.buckets().map(|(longest, count)| (longest.as_secs_f64(), count)).collect(),
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_one_another_without_a_gap_and_hold_what_falls_into_them() {
        let mut expected = 0;
        for bucket in 0..Histogram::BUCKETS {
            let (first, last) = Histogram::bounds(bucket);
            assert_eq!(first, expected, "bucket {bucket}");
            assert_eq!((Histogram::bucket(first), Histogram::bucket(last)), (bucket, bucket));
            assert!(last - first <= first / 8, "bucket {bucket} is too wide");
            expected = last + 1;
        }
        assert_eq!(expected, 1 << POWERS, "the last bucket ends elsewhere");
        assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
    }

    fn of(times: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::new();
        for nanos in times {
            histogram.counts[Histogram::bucket(nanos)] += 1;
            histogram.nanos += nanos;
            histogram.longest = histogram.longest.max(nanos);
        }
        histogram
    }

    #[test]
    fn percentiles_are_off_by_an_eighth_at_most_and_by_much_less_as_a_rule() {
        let mut times: Vec<u64> = (0..10_000u64).map(|number| number * number % 7_919 * number % 40_000_000).collect();
        let histogram = of(times.iter().copied());
        times.sort_unstable();
        for part in [0.0001, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let exact = times[(times.len() as f64 * part).ceil() as usize - 1] as f64;
            let found = histogram.percentile(part).as_nanos() as f64;
            assert!((found - exact).abs() <= exact / 8.0, "{part}: {found} instead of {exact}");
            if (0.25..0.999).contains(&part) {
                assert!((found - exact).abs() <= exact / 50.0, "{part}: {found} instead of {exact}");
            }
        }
        assert_eq!(histogram.max().as_nanos() as u64, times[times.len() - 1]);
        assert_eq!(histogram.sum().as_nanos() as u64, times.iter().sum::<u64>());
        assert_eq!(of([]).percentile(0.5), Duration::ZERO);
        assert_eq!(of([]).mean(), Duration::ZERO);
        assert_eq!(of([1_000_000]).percentile(0.5), Duration::from_millis(1), "the longest is known");
    }

    #[test]
    fn what_happened_since_forgets_what_was_before() {
        let (before, now) = (of([5_000_000, 100]), of([5_000_000, 100, 200, 201, 202]));
        let since = now.since(&before);
        assert_eq!((since.count(), since.sum()), (3, Duration::from_nanos(603)));
        assert!(since.max() >= Duration::from_nanos(202) && since.max() < Duration::from_nanos(230), "{since:?}");
        assert_eq!(of([100, 7_000_000]).since(&of([100])).max(), Duration::from_millis(7));
    }

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        let shown = [0, 7, 999, 1_000, 12_345, 123_456, 1_234_567, 12_000_000_000];
        let shown = shown.map(|nanos| time(Duration::from_nanos(nanos)));
        assert_eq!(shown, ["0", "7 ns", "999 ns", "1.00 µs", "12.3 µs", "123 µs", "1.23 ms", "12.0 s"]);
        assert_eq!([0, 999, 1_500, 2_000_000_000].map(size), ["0 B", "999 B", "1.50 kB", "2.00 GB"]);
    }
}
