//! Counts of a store's connections, groups and leases.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the store was opened, and the calls that wait now. All accounts of the store together.
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
    /// Calls that wait now.
    pub queued: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) groups: AtomicU64,
    pub(super) grouped_calls: AtomicU64,
    pub(super) statements: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) renewals: AtomicU64,
    pub(super) leases_lost: AtomicU64,
}

/// Adds to a count.
pub(super) fn add(count: &AtomicU64, number: u64) {
    count.fetch_add(number, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn read(&self, queued: u64) -> PostgresStats {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        PostgresStats {
            groups: read(&self.groups),
            grouped_calls: read(&self.grouped_calls),
            statements: read(&self.statements),
            reads: read(&self.reads),
            retries: read(&self.retries),
            reconnects: read(&self.reconnects),
            renewals: read(&self.renewals),
            leases_lost: read(&self.leases_lost),
            queued,
        }
    }
}
