//! Counts endings in this process: of accounts that were deleted, and of stores and vaults that were closed. After an
//! ending, no layer may return anything of it from memory. A layer does not know everything below it, so every layer
//! that keeps something compares this count.

use std::sync::atomic::{AtomicU64, Ordering};

static ENDED: AtomicU64 = AtomicU64::new(0);

/// The number of endings so far.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn count() -> u64 {
    ENDED.load(Ordering::SeqCst)
}

/// Notes an ending. After that no layer returns anything of it from memory.
pub(crate) fn note() {
    ENDED.fetch_add(1, Ordering::SeqCst);
}
