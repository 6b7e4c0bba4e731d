//! The counters of a cache.

use std::fmt;
use std::sync::Arc;

use crate::method::Record;
use crate::striped::Counter;

/// Counts the events of one kind of values.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) loads: Counter,
    /// Shared with the hook that the cache calls when it evicts a value.
    pub(crate) evictions: Arc<Counter>,
    pub(crate) invalidations: Counter,
}

/// The events in the cache of one kind of record, summed over all stores of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordStats {
    /// The kind of record.
    pub record: Record,
    /// Reads that were answered from the cache.
    pub hits: u64,
    /// Reads that were not.
    pub misses: u64,
    /// Calls to the store that misses led to. Fewer than misses if several tasks missed the same key at once.
    pub loads: u64,
    /// Values that had to make room, or were too large.
    pub evictions: u64,
    /// Values that were removed because a call made them stale.
    pub invalidations: u64,
    /// Values that are there now.
    pub entries: u64,
    /// The memory that they take, in bytes.
    pub bytes: u64,
    /// The memory that they may take, in bytes.
    pub capacity: u64,
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

    /// The part of the reads that was answered from the cache, from 0 to 1; `None` if there were none.
    pub fn hit_rate(&self) -> Option<f64> {
        let reads = self.hits + self.misses;
        (reads > 0).then(|| self.hits as f64 / reads as f64)
    }
}

/// The events in a cache, by kind of record. `Display` prints a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheStats {
    records: Vec<RecordStats>,
}

impl CacheStats {
    /// Adds up the counts of the same record.
    pub(super) fn sum(all: impl Iterator<Item = RecordStats>) -> Self {
        let mut records: Vec<RecordStats> = vec![];
        for stats in all {
            match records.iter_mut().find(|other| other.record == stats.record) {
                Some(other) => other.add(&stats),
                None => records.push(stats),
            }
        }
        Self { records }
    }

    /// Every kind that is cached.
    pub fn records(&self) -> &[RecordStats] {
        &self.records
    }

    /// Of one kind of record; `None` if it is not cached.
    pub fn record(&self, record: Record) -> Option<&RecordStats> {
        self.records.iter().find(|stats| stats.record == record)
    }

    /// The events after `earlier`, which must be of the same cache. Entries and bytes are those of now.
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

    /// The memory that all values take, in bytes.
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
