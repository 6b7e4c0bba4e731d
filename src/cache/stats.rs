//! The counters of a cache.

use std::fmt;
use std::sync::Arc;

use crate::method::Record;
use crate::striped::Counter;

/// Counts the events of one kind of value.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) loads: Counter,
    /// Shared with the hook that the cache calls when it evicts a value.
    pub(crate) evictions: Arc<Counter>,
    pub(crate) invalidations: Counter,
}

/// The cache events of one kind of record, summed over all stores of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordStats {
    /// The kind of record.
    pub record: Record,
    /// Reads answered from the cache.
    pub hits: u64,
    /// Reads not answered from the cache.
    pub misses: u64,
    /// Calls to the store that misses caused. Fewer than misses if several tasks missed the same key at once.
    pub loads: u64,
    /// Values evicted to make room, or too large to be cached.
    pub evictions: u64,
    /// Values removed because a call made them stale.
    pub invalidations: u64,
    /// Values in the cache now.
    pub entries: u64,
    /// The memory that the values take, in bytes.
    pub bytes: u64,
    /// The memory that the values may take, in bytes.
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

    /// The fraction of reads answered from the cache, from 0 to 1; `None` if there were no reads.
    pub fn hit_rate(&self) -> Option<f64> {
        let reads = self.hits + self.misses;
        (reads > 0).then(|| self.hits as f64 / reads as f64)
    }
}

/// The events of a cache, by kind of record. `Display` prints a table.
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

    /// The numbers of every kind of record that is cached.
    pub fn records(&self) -> &[RecordStats] {
        &self.records
    }

    /// The numbers of one kind of record; `None` if it is not cached.
    pub fn record(&self, record: Record) -> Option<&RecordStats> {
        self.records.iter().find(|stats| stats.record == record)
    }

    /// The events since `earlier`, which must come from the same cache. Entries, bytes and capacity are the current
    /// ones.
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
