//! The time of day that stores and headers note. The readings of `wacore::time` belong to the client, whose tests count
//! them.

/// Seconds since 1970; 0 before.
pub(crate) fn now_secs() -> u64 {
    #[cfg(target_arch = "wasm32")]
    // The standard library has no clock on this target.
    return wacore::time::now_secs_u64();
    #[cfg(not(target_arch = "wasm32"))]
    since_1970().as_secs()
}

/// Milliseconds since 1970; 0 before.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) fn now_millis() -> i64 {
    i64::try_from(since_1970().as_millis()).unwrap_or(i64::MAX)
}

#[cfg(not(target_arch = "wasm32"))]
fn since_1970() -> std::time::Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
