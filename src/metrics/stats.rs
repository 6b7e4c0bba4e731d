//! The counters and the histogram of each operation, in stripes that threads do not share.
//!
//! The memory of an operation is allocated on its first call and does not grow with further calls.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

#[cfg(feature = "metrics")]
use super::facade;
use super::histogram::Histogram;
use super::operation::{Ended, LayerKind, Operation, TARGET};
use super::outcome::Outcome;
use super::snapshot::{LayerSnapshot, OpSnapshot};
use crate::striped::{STRIPES, Stripe};

/// The counters of one layer name.
pub(super) struct LayerStats {
    pub(super) kind: LayerKind,
    pub(super) name: &'static str,
    operations: Box<[OnceLock<Box<OpStats>>]>,
    slow: Arc<SlowCalls>,
}

/// Which calls are slow, and since when.
pub(super) struct SlowCalls {
    /// In nanoseconds, by [`LayerKind`]; with `u64::MAX` no call is slow.
    pub(super) thresholds: [AtomicU64; LayerKind::ALL.len()],
    pub(super) since: Instant,
}

impl LayerStats {
    pub(super) fn new<O: Operation>(name: &'static str, slow: Arc<SlowCalls>) -> Self {
        let operations = O::ALL.iter().map(|_| OnceLock::new()).collect();
        Self { kind: O::KIND, name, operations, slow }
    }

    /// The counters of this operation.
    pub(super) fn operation<O: Operation>(&self, operation: O) -> &OpStats {
        debug_assert_eq!(self.kind, O::KIND);
        self.operations[operation.index()].get_or_init(|| Box::new(OpStats::new(self.name, operation)))
    }

    /// Returns whether a call of this operation that took `time` is slow.
    pub(super) fn is_slow(&self, operation: &OpStats, time: Duration) -> bool {
        let threshold = self.slow.thresholds[self.kind as usize].load(Relaxed);
        !operation.lifetime && time.as_nanos() >= u128::from(threshold)
    }

    /// Reports a slow call of this operation.
    pub(super) fn report_slow(&self, operation: &OpStats, outcome: Outcome, time: Duration) {
        operation.slow_log.log(self, operation.name, outcome, time);
    }

    pub(super) fn snapshot(&self) -> LayerSnapshot {
        let operations = self.operations.iter().filter_map(|operation| operation.get());
        LayerSnapshot { name: self.name, kind: self.kind, operations: operations.map(|op| op.snapshot()).collect() }
    }
}

/// The counters of one operation.
pub(super) struct OpStats {
    name: &'static str,
    lifetime: bool,
    stripes: [OnceLock<Box<StripeCounts>>; STRIPES],
    slow_log: SlowLog,
    #[cfg(feature = "metrics")]
    export: facade::OpExport,
}

/// The counts of one stripe.
#[repr(align(128))]
struct StripeCounts {
    /// Calls that started minus calls that ended. A call may end on another thread than it started on, so only the
    /// sum of all stripes has a meaning.
    open: AtomicU64,
    /// Indexed by [`Outcome`]. `Ok` is not counted here: it is the number of all calls minus these.
    not_ok: [AtomicU64; Outcome::ALL.len()],
    rows: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
    /// Rows found, and rows absent.
    lookups: [AtomicU64; 2],
    slow: AtomicU64,
    nanos: AtomicU64,
    longest: AtomicU64,
    times: [AtomicU64; Histogram::BUCKETS],
}

impl Default for StripeCounts {
    fn default() -> Self {
        Self {
            open: AtomicU64::default(),
            not_ok: Default::default(),
            rows: Default::default(),
            bytes: Default::default(),
            lookups: Default::default(),
            slow: AtomicU64::default(),
            nanos: AtomicU64::default(),
            longest: AtomicU64::default(),
            times: [const { AtomicU64::new(0) }; Histogram::BUCKETS],
        }
    }
}

impl OpStats {
    fn new<O: Operation>(layer: &'static str, operation: O) -> Self {
        #[cfg(not(feature = "metrics"))]
        let _ = layer;
        Self {
            name: operation.name(),
            lifetime: operation.is_lifetime(),
            stripes: Default::default(),
            slow_log: SlowLog::default(),
            #[cfg(feature = "metrics")]
            export: facade::OpExport::new(layer, operation),
        }
    }

    /// The stripe of this thread.
    fn stripe(&self) -> (Stripe, &StripeCounts) {
        let stripe = Stripe::current();
        (stripe, self.stripes[stripe.index].get_or_init(Box::default))
    }

    /// Counts the start of a call. Returns whether it was exported.
    pub(super) fn start(&self) -> bool {
        let (stripe, counts) = self.stripe();
        stripe.add(&counts.open, 1);
        #[cfg(feature = "metrics")]
        return self.export.start();
        #[cfg(not(feature = "metrics"))]
        false
    }

    pub(super) fn end(&self, ended: &Ended, slow: bool, exported: bool) {
        let (stripe, counts) = self.stripe();
        stripe.add(&counts.open, 1u64.wrapping_neg());
        let nanos = u64::try_from(ended.time.as_nanos()).unwrap_or(u64::MAX);
        if ended.outcome != Outcome::Ok {
            stripe.add(&counts.not_ok[ended.outcome as usize], 1);
        }
        let add = |counters: &[AtomicU64; 2], numbers: [u64; 2]| {
            for (counter, number) in counters.iter().zip(numbers).filter(|(_, number)| *number > 0) {
                stripe.add(counter, number);
            }
        };
        add(&counts.rows, [ended.given.rows, ended.got.rows]);
        add(&counts.bytes, [ended.given.bytes, ended.got.bytes]);
        add(&counts.lookups, ended.lookups.unwrap_or_default());
        if slow {
            stripe.add(&counts.slow, 1);
        }
        stripe.add(&counts.nanos, nanos);
        if nanos > counts.longest.load(Relaxed) {
            counts.longest.fetch_max(nanos, Relaxed);
        }
        stripe.add(&counts.times[Histogram::bucket(nanos)], 1);
        #[cfg(feature = "metrics")]
        self.export.end(ended, slow, exported);
        #[cfg(not(feature = "metrics"))]
        let _ = exported;
    }

    fn snapshot(&self) -> OpSnapshot {
        let mut sum = OpSnapshot { lifetime: self.lifetime, ..OpSnapshot::new(self.name) };
        let stripes = || self.stripes.iter().filter_map(OnceLock::get);
        // Read in quick succession, because calls continue.
        let open = stripes().fold(0, |sum: u64, stripe| sum.wrapping_add(stripe.open.load(Relaxed)));
        sum.in_flight = (open as i64).max(0) as u64;
        for stripe in stripes() {
            for (count, bucket) in sum.times.counts.iter_mut().zip(&stripe.times) {
                *count += bucket.load(Relaxed);
            }
            for (count, outcome) in sum.outcomes.iter_mut().zip(&stripe.not_ok) {
                *count += outcome.load(Relaxed);
            }
            let load = |counters: &[AtomicU64; 2], sum: &mut [u64; 2]| {
                for (count, counter) in sum.iter_mut().zip(counters) {
                    *count += counter.load(Relaxed);
                }
            };
            load(&stripe.rows, &mut sum.rows);
            load(&stripe.bytes, &mut sum.bytes);
            load(&stripe.lookups, &mut sum.lookups);
            sum.slow += stripe.slow.load(Relaxed);
            sum.times.nanos = sum.times.nanos.saturating_add(stripe.nanos.load(Relaxed));
            sum.times.longest = sum.times.longest.max(stripe.longest.load(Relaxed));
        }
        let not_ok: u64 = sum.outcomes.iter().sum();
        sum.outcomes[Outcome::Ok as usize] = sum.times.count().saturating_sub(not_ok);
        sum
    }
}

/// Reports slow calls of an operation, at most once a second. A database that hangs must not fill a disk with logs.
#[derive(Default)]
struct SlowLog {
    /// The time of the next report, in nanoseconds since the beginning.
    next: AtomicU64,
    suppressed: AtomicU64,
}

const BETWEEN_REPORTS: Duration = Duration::from_secs(1);

impl SlowLog {
    #[cold]
    fn log(&self, layer: &LayerStats, op: &'static str, outcome: Outcome, time: Duration) {
        let now = layer.slow.since.elapsed().as_nanos() as u64;
        let next = self.next.load(Relaxed);
        let later = now + BETWEEN_REPORTS.as_nanos() as u64;
        if now < next || self.next.compare_exchange(next, later, Relaxed, Relaxed).is_err() {
            self.suppressed.fetch_add(1, Relaxed);
            return;
        }
        let suppressed = self.suppressed.swap(0, Relaxed);
        let (layer, outcome, milliseconds) = (layer.name, outcome.label(), time.as_secs_f64() * 1e3);
        #[cfg(feature = "tracing")]
        tracing::warn!(target: TARGET, layer, op, outcome, milliseconds, suppressed, "slow call");
        #[cfg(not(feature = "tracing"))]
        log::warn!(
            target: TARGET,
            "slow call: layer={layer} op={op} outcome={outcome} milliseconds={milliseconds:.3} suppressed={suppressed}"
        );
    }
}
