//! Giving way to other tasks.
//!
//! Calls that run on the caller's thread never wait. A task that makes many of them in a row would
//! therefore starve timers and other tasks of that thread. So each thread counts the work done on
//! it, and the current call yields after about half a millisecond.

use std::cell::Cell;
use std::future;
use std::mem;
use std::task::Poll;

/// The cost of a call on the caller's thread, in about a microsecond each.
pub(super) const READ: u32 = 4;
pub(super) const WRITE: u32 = 20;
pub(super) const ROW: u32 = 2;
/// This many bytes cost 1.
pub(super) const BYTES: u32 = 1024;
/// How much a thread may spend before it yields.
pub(super) const BUDGET: u32 = 500;

thread_local! {
    static SPENT: Cell<u32> = const { Cell::new(0) };
}

/// Adds to the work done on this thread.
pub(super) fn charge(cost: u32) {
    SPENT.set(SPENT.get().saturating_add(cost));
}

/// `true` if this thread has used up its budget, so that the next call yields.
pub(super) fn over_budget() -> bool {
    SPENT.get() > BUDGET
}

/// Returns when the other tasks have run. Under tokio, timers and sockets are polled too; the
/// runtime does not look at them each time that a task only wakes itself.
pub(super) async fn yield_to_runtime() {
    tokio::task::yield_now().await;
    SPENT.set(0);
}

/// Lets the tasks run that are ready.
pub(super) async fn yield_once() {
    let mut yielded = false;
    future::poll_fn(|context| {
        if mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
