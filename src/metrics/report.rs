//! Snapshots as tables for people and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::histogram::PERCENTILES;
use super::outcome::Outcome;
use super::snapshot::{LayerSnapshot, MetricsSnapshot, OpSnapshot};
#[cfg(feature = "postgres")]
use crate::postgres::PostgresStats;

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
        #[cfg(feature = "postgres")]
        for (name, stats) in &self.postgres {
            write!(f, "\npostgres {name}\n{stats}")?;
        }
        Ok(())
    }
}

/// A table, slowest operation first by p99. Below it, the failures and other unusual ends of calls.
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

/// Times are in seconds.
impl Serialize for MetricsSnapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Snapshot<'a> {
            seconds: f64,
            layers: &'a [LayerSnapshot],
            caches: Vec<Cache<'a>>,
            #[cfg(feature = "postgres")]
            postgres: Vec<Postgres<'a>>,
        }
        #[derive(Serialize)]
        struct Cache<'a> {
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
        let caches = self.caches().flat_map(|(name, stats)| {
            stats.records().iter().map(move |stats| Cache {
                name,
                record: stats.record.name(),
                hits: stats.hits,
                misses: stats.misses,
                loads: stats.loads,
                evictions: stats.evictions,
                invalidations: stats.invalidations,
                entries: stats.entries,
                bytes: stats.bytes,
                capacity: stats.capacity,
            })
        });
        Snapshot {
            seconds: self.elapsed.as_secs_f64(),
            layers: &self.layers,
            caches: caches.collect(),
            #[cfg(feature = "postgres")]
            postgres: self.postgres.iter().map(|(name, stats)| Postgres::new(name, stats)).collect(),
        }
        .serialize(serializer)
    }
}

/// The counts of a store in JSON.
#[cfg(feature = "postgres")]
#[derive(Serialize)]
struct Postgres<'a> {
    name: &'a str,
    groups: u64,
    grouped_calls: u64,
    statements: u64,
    reads: u64,
    retries: u64,
    reconnects: u64,
    renewals: u64,
    leases_lost: u64,
    queued: u64,
}

#[cfg(feature = "postgres")]
impl<'a> Postgres<'a> {
    fn new(name: &'a str, stats: &PostgresStats) -> Self {
        Self {
            name,
            groups: stats.groups,
            grouped_calls: stats.grouped_calls,
            statements: stats.statements,
            reads: stats.reads,
            retries: stats.retries,
            reconnects: stats.reconnects,
            renewals: stats.renewals,
            leases_lost: stats.leases_lost,
            queued: stats.queued,
        }
    }
}

impl Serialize for OpSnapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Op<'a> {
            op: &'a str,
            calls: u64,
            errors: u64,
            outcomes: BTreeMap<&'a str, u64>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        let shown = [0, 7, 999, 1_000, 12_345, 123_456, 1_234_567, 12_000_000_000];
        let shown = shown.map(|nanos| time(Duration::from_nanos(nanos)));
        assert_eq!(shown, ["0", "7 ns", "999 ns", "1.00 µs", "12.3 µs", "123 µs", "1.23 ms", "12.0 s"]);
        assert_eq!([0, 999, 1_500, 2_000_000_000].map(size), ["0 B", "999 B", "1.50 kB", "2.00 GB"]);
    }
}
