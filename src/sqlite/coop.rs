//! Giving way to other tasks.
//!
//! Calls that run where the caller is never wait, so a task that makes many of them in a row would keep its thread from
//! timers and from other tasks for as long as it likes. Each thread therefore keeps account of the work done on it, and
//! after about half a millisecond the call at hand steps aside.

use std::cell::Cell;
use std::future;
use std::mem;
use std::task::Poll;

/// What a call costs on the caller's thread: roughly microseconds.
pub(super) const READ: u32 = 4;
pub(super) const WRITE: u32 = 20;
pub(super) const ROW: u32 = 2;
/// So many bytes cost as much as 1.
pub(super) const BYTES: u32 = 1024;
/// What a thread does before it gives way.
pub(super) const BUDGET: u32 = 500;

thread_local! {
    static SPENT: Cell<u32> = const { Cell::new(0) };
}

/// Books work on this thread.
pub(super) fn charge(cost: u32) {
    SPENT.set(SPENT.get().saturating_add(cost));
}

/// `true` if this thread has done so much that the next call is to give way.
pub(super) fn over_budget() -> bool {
    SPENT.get() > BUDGET
}

/// Comes back when the other tasks have had their turn. Under tokio, timers and sockets have theirs as well, which are not looked at
/// every time that a task just asks to be called again.
pub(super) async fn yield_to_runtime() {
    tokio::task::yield_now().await;
    SPENT.set(0);
}

/// Lets those run who are ready.
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
