//! Work that waits for the disk, on threads of its own, and waiting for it to end.

#[cfg(feature = "upstream")]
use std::sync::Arc;
#[cfg(feature = "upstream")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How much of it is under way.
static UNDER_WAY: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

fn under_way() -> MutexGuard<'static, usize> {
    // Nothing panics while holding the guard.
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` on a thread that may block, from now on. Once begun, it goes on when the future is dropped.
pub(crate) fn unblock<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> + Send + 'static {
    let running = Running::new();
    // If nobody waits any more, the result is dropped first, and with it unfinished files.
    let task = blocking::unblock(move || (work(), running));
    async move { task.await.0 }
}

/// Blocks until copies, imports and exports whose futures were dropped have ended and removed what they did not finish. Call it
/// before a process exits that was told to end in the middle of one.
pub fn finish_background_work() {
    let mut count = under_way();
    while *count > 0 {
        count = ENDED.wait(count).unwrap_or_else(PoisonError::into_inner);
    }
}

struct Running;

impl Running {
    fn new() -> Self {
        *under_way() += 1;
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *under_way() -= 1;
        ENDED.notify_all();
    }
}

/// Tells work on another thread that its caller is gone, so that it must not give files their names any more.
#[cfg(feature = "upstream")]
pub(crate) struct Caller(Arc<AtomicBool>);

#[cfg(feature = "upstream")]
impl Caller {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// `true` as long as the caller waits.
    pub(crate) fn waits(&self) -> impl Fn() -> bool + Send + Clone + 'static {
        let waits = self.0.clone();
        move || waits.load(Ordering::Acquire)
    }
}

#[cfg(feature = "upstream")]
impl Drop for Caller {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
