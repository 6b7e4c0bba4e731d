//! Counts of a store's connections, groups and leases.

use std::fmt;
use std::sync::Arc;
#[cfg(feature = "metrics")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::striped::Counter;

/// Counts since the store was opened, and the calls that wait now. All accounts of the store together. `Display` prints
/// a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PostgresStats {
    /// Transactions that wrote. Calls that waited together share one.
    pub groups: u64,
    /// Writing calls in these transactions.
    pub grouped_calls: u64,
    /// Statements in these transactions. Calls of one kind that waited together share one.
    pub statements: u64,
    /// Statements that read.
    pub reads: u64,
    /// Calls that were repeated, because of another transaction or a lost connection.
    pub retries: u64,
    /// Connections that were made after the first of their lane.
    pub reconnects: u64,
    /// Renewals of leases, each one statement for all accounts of a lane.
    pub renewals: u64,
    /// Accounts that another process took over.
    pub leases_lost: u64,
    /// Calls that wait now, in a queue or for room in it.
    pub queued: u64,
}

impl PostgresStats {
    /// The counts since `earlier`, which must come from the same store. The waiting calls are the current ones.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            groups: self.groups.saturating_sub(earlier.groups),
            grouped_calls: self.grouped_calls.saturating_sub(earlier.grouped_calls),
            statements: self.statements.saturating_sub(earlier.statements),
            reads: self.reads.saturating_sub(earlier.reads),
            retries: self.retries.saturating_sub(earlier.retries),
            reconnects: self.reconnects.saturating_sub(earlier.reconnects),
            renewals: self.renewals.saturating_sub(earlier.renewals),
            leases_lost: self.leases_lost.saturating_sub(earlier.leases_lost),
            queued: self.queued,
        }
    }

    /// The number of calls that share a transaction, on average; `None` if there was no transaction.
    pub fn calls_per_group(&self) -> Option<f64> {
        (self.groups > 0).then(|| self.grouped_calls as f64 / self.groups as f64)
    }
}

impl fmt::Display for PostgresStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_group = self.calls_per_group().map_or_else(|| "-".to_owned(), |calls| format!("{calls:.1}"));
        writeln!(
            f,
            "{:>9} {:>9} {:>9} {:>10} {:>9} {:>8} {:>10} {:>8} {:>11} {:>6}",
            "groups",
            "calls",
            "per group",
            "statements",
            "reads",
            "retries",
            "reconnects",
            "renewals",
            "leases lost",
            "queued"
        )?;
        writeln!(
            f,
            "{:>9} {:>9} {per_group:>9} {:>10} {:>9} {:>8} {:>10} {:>8} {:>11} {:>6}",
            self.groups,
            self.grouped_calls,
            self.statements,
            self.reads,
            self.retries,
            self.reconnects,
            self.renewals,
            self.leases_lost,
            self.queued
        )
    }
}

/// The counters of a store. Who observes them does not keep the store open.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) groups: Counter,
    pub(crate) grouped_calls: Counter,
    pub(crate) statements: Counter,
    pub(crate) reads: Counter,
    pub(crate) retries: Counter,
    pub(crate) reconnects: Counter,
    pub(crate) renewals: Counter,
    pub(crate) leases_lost: Counter,
    pub(crate) waiting: Waiting,
}

/// Adds to a count.
pub(super) fn add(count: &Counter, number: u64) {
    count.add(number);
}

impl Counters {
    pub(crate) fn read(&self) -> PostgresStats {
        PostgresStats {
            groups: self.groups.sum(),
            grouped_calls: self.grouped_calls.sum(),
            statements: self.statements.sum(),
            reads: self.reads.sum(),
            retries: self.retries.sum(),
            reconnects: self.reconnects.sum(),
            renewals: self.renewals.sum(),
            leases_lost: self.leases_lost.sum(),
            queued: self.waiting.number.load(Ordering::Relaxed),
        }
    }
}

/// The number of calls that wait.
#[derive(Default)]
pub(crate) struct Waiting {
    number: AtomicU64,
    #[cfg(feature = "metrics")]
    observer: OnceLock<Box<dyn WaitObserver>>,
}

/// Hears of the calls that wait.
#[cfg(feature = "metrics")]
pub(crate) trait WaitObserver: Send + Sync {
    /// A call begins to wait. Returns whether the observer wants to hear of the end.
    fn begins(&self) -> bool;

    fn ends(&self);
}

#[cfg(feature = "metrics")]
impl Waiting {
    /// Tells `observer` of the calls that wait from now on. There is one observer; later ones are ignored.
    pub(crate) fn observe(&self, observer: impl WaitObserver + 'static) {
        self.observer.get_or_init(|| Box::new(observer));
    }
}

/// A call that waits, until this value is dropped.
pub(crate) struct Wait {
    counters: Arc<Counters>,
    #[cfg(feature = "metrics")]
    observed: bool,
}

impl Wait {
    pub(crate) fn begin(counters: Arc<Counters>) -> Self {
        counters.waiting.number.fetch_add(1, Ordering::Relaxed);
        Self {
            #[cfg(feature = "metrics")]
            observed: counters.waiting.observer.get().is_some_and(|observer| observer.begins()),
            counters,
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let waiting = &self.counters.waiting;
        waiting.number.fetch_sub(1, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        if let Some(observer) = waiting.observer.get().filter(|_| self.observed) {
            observer.ends();
        }
    }
}
