//! Spreading what threads count over cache lines, so that they do not wait for one another's.

use std::sync::atomic::{AtomicUsize, Ordering};

/// In how many parts a counter is kept.
pub(crate) const STRIPES: usize = 8;

/// The part that belongs to the current thread; shared with others when there are more than [`STRIPES`] threads.
pub(crate) fn stripe() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static STRIPE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % STRIPES;
    }
    STRIPE.try_with(|stripe| *stripe).unwrap_or(0)
}
