//! What has come to its end in this process: accounts that were deleted, stores and vaults that were closed. What was kept in
//! memory of any of them must not be given out afterwards, and no layer knows all that is below it; so all that keep something
//! look here.

use std::sync::atomic::{AtomicU64, Ordering};

static ENDED: AtomicU64 = AtomicU64::new(0);

/// How often something has ended.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn count() -> u64 {
    ENDED.load(Ordering::SeqCst)
}

/// Notes that something has ended. After that nothing of it is given out from memory.
pub(crate) fn note() {
    ENDED.fetch_add(1, Ordering::SeqCst);
}
