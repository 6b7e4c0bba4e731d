//! Putting the count, and a span, around a call.

use std::ops::Deref;

use super::stats::{Call, End, LayerStats, Operation};
use super::volume::Volume;

/// Awaits what `start` gives, counts it, and puts a span around it (feature `tracing`). Nothing happens before the first
/// poll.
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

/// The same for a call that blocks.
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
