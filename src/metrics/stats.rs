//! Where calls are counted: counters and a histogram for each operation, in parts that threads do not share.
//!
//! The memory of an operation is allocated when it is first called, and stays as it is however often it is called.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

#[cfg(feature = "metrics")]
use super::facade;
use super::histogram::Histogram;
use super::outcome::Outcome;
use super::snapshot::{LayerKind, LayerSnapshot, OpSnapshot};
use super::volume::Volume;
use crate::striped::{self, STRIPES};

/// What a layer counts calls of.
pub(super) trait Operation: Copy + 'static {
    const KIND: LayerKind;
    /// Every operation, in the order of `index`.
    const ALL: &'static [Self];

    /// The value of the label `op`.
    fn name(self) -> &'static str;
    fn index(self) -> usize;
    /// `true` if what it is asked for may be absent.
    fn looks_up(self) -> bool {
        false
    }
    /// `true` if it lasts as long as somebody wants it to, so that its time says nothing about how well things go.
    fn is_lifetime(self) -> bool {
        false
    }
    /// How it can end.
    fn outcomes(self) -> &'static [Outcome];
}

/// What is counted under one name.
pub(super) struct LayerStats {
    pub(super) kind: LayerKind,
    pub(super) name: &'static str,
    operations: Box<[OnceLock<Box<OpStats>>]>,
    slow: Arc<SlowCalls>,
}

/// Which calls are slow.
pub(super) struct SlowCalls {
    /// In nanoseconds, by [`LayerKind`]; none are with `u64::MAX`.
    pub(super) thresholds: [AtomicU64; LayerKind::ALL.len()],
    pub(super) since: Instant,
}

impl LayerStats {
    pub(super) fn new<O: Operation>(name: &'static str, slow: Arc<SlowCalls>) -> Self {
        let operations = O::ALL.iter().map(|_| OnceLock::new()).collect();
        Self { kind: O::KIND, name, operations, slow }
    }

    fn operation<O: Operation>(&self, operation: O) -> &OpStats {
        debug_assert_eq!(self.kind, O::KIND);
        self.operations[operation.index()].get_or_init(|| Box::new(OpStats::new(self.name, operation)))
    }

    pub(super) fn snapshot(&self) -> LayerSnapshot {
        let operations = self.operations.iter().filter_map(|operation| operation.get());
        LayerSnapshot { name: self.name, kind: self.kind, operations: operations.map(|op| op.snapshot()).collect() }
    }
}

/// What is counted of one operation.
struct OpStats {
    name: &'static str,
    lifetime: bool,
    stripes: [OnceLock<Box<Stripe>>; STRIPES],
    slow_log: SlowLog,
    #[cfg(feature = "metrics")]
    export: facade::OpExport,
}

/// The part of the threads that count here.
#[repr(align(128))]
struct Stripe {
    /// Calls that started minus calls that ended. A call may end in another thread than it started in, so only the sum
    /// of all stripes means something.
    open: AtomicU64,
    /// By [`Outcome`]; those that are `Ok` are the rest of all.
    not_ok: [AtomicU64; Outcome::ALL.len()],
    rows: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
    /// What was found, and what was absent.
    lookups: [AtomicU64; 2],
    slow: AtomicU64,
    nanos: AtomicU64,
    longest: AtomicU64,
    times: [AtomicU64; Histogram::BUCKETS],
}

impl Default for Stripe {
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

/// What ended.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) given: Volume,
    pub(super) got: Volume,
    /// How many of the rows that were asked for there are, and how many there are not.
    pub(super) lookups: Option<[u64; 2]>,
    pub(super) time: Duration,
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

    /// Where this thread counts.
    fn stripe(&self) -> (striped::Stripe, &Stripe) {
        let place = striped::Stripe::current();
        (place, self.stripes[place.index].get_or_init(Box::default))
    }

    /// `true` if the start was exported.
    fn start(&self) -> bool {
        let (place, stripe) = self.stripe();
        place.add(&stripe.open, 1);
        #[cfg(feature = "metrics")]
        return self.export.start();
        #[cfg(not(feature = "metrics"))]
        false
    }

    fn end(&self, ended: &Ended, slow: bool, exported: bool) {
        let (place, stripe) = self.stripe();
        place.add(&stripe.open, 1u64.wrapping_neg());
        let nanos = u64::try_from(ended.time.as_nanos()).unwrap_or(u64::MAX);
        if ended.outcome != Outcome::Ok {
            place.add(&stripe.not_ok[ended.outcome as usize], 1);
        }
        let add = |counters: &[AtomicU64; 2], numbers: [u64; 2]| {
            for (counter, number) in counters.iter().zip(numbers).filter(|(_, number)| *number > 0) {
                place.add(counter, number);
            }
        };
        add(&stripe.rows, [ended.given.rows, ended.got.rows]);
        add(&stripe.bytes, [ended.given.bytes, ended.got.bytes]);
        add(&stripe.lookups, ended.lookups.unwrap_or_default());
        if slow {
            place.add(&stripe.slow, 1);
        }
        place.add(&stripe.nanos, nanos);
        if nanos > stripe.longest.load(Relaxed) {
            stripe.longest.fetch_max(nanos, Relaxed);
        }
        place.add(&stripe.times[Histogram::bucket(nanos)], 1);
        #[cfg(feature = "metrics")]
        self.export.end(ended, slow, exported);
        #[cfg(not(feature = "metrics"))]
        let _ = exported;
    }

    fn snapshot(&self) -> OpSnapshot {
        let mut sum = OpSnapshot { lifetime: self.lifetime, ..OpSnapshot::new(self.name) };
        let stripes = || self.stripes.iter().filter_map(OnceLock::get);
        // Close together, because calls go on.
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

/// How a call ended, and what it carried.
pub(super) struct End {
    pub(super) outcome: Outcome,
    /// What it was given, if that is known only now.
    pub(super) given: Option<Volume>,
    pub(super) got: Volume,
}

impl From<Outcome> for End {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, given: None, got: Volume::default() }
    }
}

/// A call under way. Dropped before its end, it counts as cancelled.
pub(super) struct Call<L: Deref<Target = LayerStats>, O: Operation> {
    layer: L,
    operation: O,
    given: Volume,
    start: Instant,
    exported: bool,
    ended: bool,
    /// With the names of layer, operation and outcome.
    #[cfg(feature = "tracing")]
    pub(super) span: tracing::Span,
}

impl<L: Deref<Target = LayerStats>, O: Operation> Call<L, O> {
    pub(super) fn start(layer: L, operation: O, given: Volume) -> Self {
        #[cfg(feature = "tracing")]
        let span = match operation.is_lifetime() {
            true => tracing::Span::none(),
            false => {
                let (layer, op) = (layer.name, operation.name());
                tracing::debug_span!(target: super::TARGET, "wa.call", layer, op, outcome = tracing::field::Empty)
            }
        };
        let exported = layer.operation(operation).start();
        Self {
            layer,
            operation,
            given,
            start: Instant::now(),
            exported,
            ended: false,
            #[cfg(feature = "tracing")]
            span,
        }
    }

    /// The call ended.
    pub(super) fn end(mut self, end: End) {
        self.count(end);
    }

    fn count(&mut self, End { outcome, given, got }: End) {
        debug_assert!(self.operation.outcomes().contains(&outcome));
        self.ended = true;
        let time = self.start.elapsed();
        let given = given.unwrap_or(self.given);
        let lookups = (self.operation.looks_up() && outcome == Outcome::Ok).then(|| {
            // What has no key, such as the device, is asked for as well.
            let asked = given.rows.max(1);
            let found = got.rows.min(asked);
            [found, asked - found]
        });
        let stats = self.layer.operation(self.operation);
        let threshold = self.layer.slow.thresholds[self.layer.kind as usize].load(Relaxed);
        let slow = !stats.lifetime && time.as_nanos() >= u128::from(threshold);
        stats.end(&Ended { outcome, given, got, lookups, time }, slow, self.exported);
        #[cfg(feature = "tracing")]
        self.span.record("outcome", outcome.label());
        if slow {
            let report = || stats.slow_log.log(&self.layer, stats.name, outcome, time);
            #[cfg(feature = "tracing")]
            self.span.in_scope(report);
            #[cfg(not(feature = "tracing"))]
            report();
        }
    }
}

impl<L: Deref<Target = LayerStats>, O: Operation> Drop for Call<L, O> {
    fn drop(&mut self) {
        if !self.ended {
            self.count(Outcome::Cancelled.into());
        }
    }
}

/// Reports slow calls of an operation, once a second at most: a database that hangs must not fill a disk with logs.
#[derive(Default)]
struct SlowLog {
    /// Nanoseconds from the beginning until the next may be reported.
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
        tracing::warn!(target: super::TARGET, layer, op, outcome, milliseconds, suppressed, "slow call");
        #[cfg(not(feature = "tracing"))]
        log::warn!(
            target: super::TARGET,
            "slow call: layer={layer} op={op} outcome={outcome} milliseconds={milliseconds:.3} suppressed={suppressed}"
        );
    }
}
