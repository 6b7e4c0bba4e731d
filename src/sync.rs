//! Locks that stay usable after a panic.

use std::sync::{LockResult, PoisonError};

/// Takes a lock whether or not it is poisoned: `mutex.lock().ignore_poison()`.
///
/// A thread that panics while it holds a lock poisons it. This crate does not panic under a lock, but user code that
/// it calls there might, for example code that starts a load of the cache. The data under the lock is whole even
/// then, because no change is half done when user code runs. If a poisoned lock were an error, one panic would fail
/// all later calls.
pub(crate) trait IgnorePoison<G> {
    /// The guard.
    fn ignore_poison(self) -> G;
}

impl<G> IgnorePoison<G> for LockResult<G> {
    fn ignore_poison(self) -> G {
        self.unwrap_or_else(PoisonError::into_inner)
    }
}
