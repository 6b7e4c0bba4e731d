//! Work that waits for the disk, on threads of its own, and waiting for it to end.

use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(feature = "sqlite")]
use std::sync::{Arc, atomic::AtomicBool};
use std::time::Duration;

/// How much of it is under way.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Runs `work` on a thread that may block, from now on. Once begun, it goes on when the future is dropped.
#[cfg(feature = "sqlite")]
pub(crate) fn unblock<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> + Send + 'static {
    let running = Running::new();
    // If nobody waits any more, the result is dropped first, and with it unfinished files.
    let task = blocking::unblock(move || (work(), running));
    async move { task.await.0 }
}

/// The same for work that is not waited for.
#[cfg(feature = "sqlite")]
pub(crate) fn detached(work: impl FnOnce() + Send + 'static) {
    let running = Running::new();
    blocking::unblock(move || {
        work();
        drop(running);
    })
    .detach();
}

/// Blocks until all work whose futures were dropped has ended: files that are unfinished are removed, and databases are closed.
/// Call it before a process exits that was told to end in the middle of one.
pub fn finish_background_work() {
    while UNDER_WAY.load(Ordering::Acquire) > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Work that is under way as long as this exists.
pub(crate) struct Running(());

impl Running {
    pub(crate) fn new() -> Self {
        UNDER_WAY.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Release);
    }
}

/// Tells work on another thread that its caller is gone, so that it must not give files their names any more.
#[cfg(feature = "sqlite")]
pub(crate) struct Caller(Arc<AtomicBool>);

#[cfg(feature = "sqlite")]
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

#[cfg(feature = "sqlite")]
impl Drop for Caller {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
