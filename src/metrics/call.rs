//! A call in flight, counted and wrapped in a span.

use std::ops::Deref;
use std::time::Instant;

#[cfg(feature = "tracing")]
use super::operation::TARGET;
use super::operation::{End, Ended, Operation};
use super::outcome::Outcome;
use super::stats::LayerStats;
use super::volume::Volume;

/// A call in flight. It counts as cancelled if it is dropped before its end.
pub(super) struct Call<L: Deref<Target = LayerStats>, O: Operation> {
    layer: L,
    operation: O,
    given: Volume,
    start: Instant,
    exported: bool,
    ended: bool,
    /// Has the names of layer, operation and outcome.
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl<L: Deref<Target = LayerStats>, O: Operation> Call<L, O> {
    pub(super) fn start(layer: L, operation: O, given: Volume) -> Self {
        #[cfg(feature = "tracing")]
        let span = match operation.is_lifetime() {
            true => tracing::Span::none(),
            false => {
                let (layer, op) = (layer.name, operation.name());
                tracing::debug_span!(target: TARGET, "wa.call", layer, op, outcome = tracing::field::Empty)
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

    /// Counts the call as ended.
    pub(super) fn end(mut self, end: End) {
        self.count(end);
    }

    fn count(&mut self, End { outcome, given, got }: End) {
        debug_assert!(self.operation.outcomes().contains(&outcome));
        self.ended = true;
        let time = self.start.elapsed();
        let given = given.unwrap_or(self.given);
        let lookups = (self.operation.looks_up() && outcome == Outcome::Ok).then(|| {
            // A call for a record without a key, such as the device, asks for one row.
            let asked = given.rows.max(1);
            let found = got.rows.min(asked);
            [found, asked - found]
        });
        let stats = self.layer.operation(self.operation);
        let slow = self.layer.is_slow(stats, time);
        stats.end(&Ended { outcome, given, got, lookups, time }, slow, self.exported);
        #[cfg(feature = "tracing")]
        self.span.record("outcome", outcome.label());
        if slow {
            let report = || self.layer.report_slow(stats, outcome, time);
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

/// Awaits the future that `start` makes, counts it, and puts a span around it (feature `tracing`). Does nothing
/// before the first poll.
pub(super) async fn observe<L, O, F>(
    layer: L,
    operation: O,
    given: Volume,
    start: impl FnOnce() -> F,
    read: impl FnOnce(&F::Output) -> End,
) -> F::Output
where
    L: Deref<Target = LayerStats>,
    O: Operation,
    F: Future,
{
    let call = Call::start(layer, operation, given);
    #[cfg(feature = "tracing")]
    let answer = tracing::Instrument::instrument(call.span.in_scope(start), call.span.clone()).await;
    #[cfg(not(feature = "tracing"))]
    let answer = start().await;
    call.end(read(&answer));
    answer
}

/// Like [`observe`], for a blocking call.
pub(super) fn observe_blocking<T>(
    layer: &LayerStats,
    operation: impl Operation,
    start: impl FnOnce() -> T,
    read: impl FnOnce(&T) -> End,
) -> T {
    let call = Call::start(layer, operation, Volume::default());
    #[cfg(feature = "tracing")]
    let answer = call.span.in_scope(start);
    #[cfg(not(feature = "tracing"))]
    let answer = start();
    call.end(read(&answer));
    answer
}
