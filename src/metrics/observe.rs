//! Putting the count, and a span, around a call.

use std::ops::Deref;

use super::outcome::Outcome;
use super::stats::{Call, LayerStats, Operation};
use super::volume::Volume;

/// Awaits what `start` gives, counts it, and puts a span around it (feature `tracing`). Nothing happens before the first
/// poll.
pub(super) async fn observe<L, O, F>(
    layer: L,
    operation: O,
    given: Volume,
    start: impl FnOnce() -> F,
    read: impl FnOnce(&F::Output) -> (Outcome, Volume),
) -> F::Output
where
    L: Deref<Target = LayerStats>,
    O: Operation,
    F: Future,
{
    #[cfg(feature = "tracing")]
    let span = span(layer.name, operation.name());
    let call = Call::start(layer, operation, given);
    #[cfg(feature = "tracing")]
    let answer = tracing::Instrument::instrument(span.in_scope(start), span.clone()).await;
    #[cfg(not(feature = "tracing"))]
    let answer = start().await;
    let (outcome, got) = read(&answer);
    call.end(outcome, got);
    #[cfg(feature = "tracing")]
    span.record("outcome", outcome.label());
    answer
}

/// The same for a call that blocks.
pub(super) fn observe_blocking<T>(
    layer: &LayerStats,
    operation: impl Operation,
    start: impl FnOnce() -> T,
    read: impl FnOnce(&T) -> (Outcome, Volume, Volume),
) -> T {
    #[cfg(feature = "tracing")]
    let span = span(layer.name, operation.name());
    let call = Call::start(layer, operation, Volume::default());
    #[cfg(feature = "tracing")]
    let answer = span.in_scope(start);
    #[cfg(not(feature = "tracing"))]
    let answer = start();
    let (outcome, given, got) = read(&answer);
    call.end_given(outcome, given, got);
    #[cfg(feature = "tracing")]
    span.record("outcome", outcome.label());
    answer
}

#[cfg(feature = "tracing")]
fn span(layer: &'static str, op: &'static str) -> tracing::Span {
    tracing::debug_span!(target: super::TARGET, "wa.call", layer, op, outcome = tracing::field::Empty)
}
