//! How long to wait for another process or connection, and in what pauses.

use std::sync::Arc;
use std::sync::atomic::{self, AtomicUsize};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Retries `attempt` while it fails with contention and `backoff` has pauses left. Blocks its
/// thread.
pub(super) fn retry_busy<T>(backoff: &mut BusyBackoff, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match attempt() {
            Err(error) if error.is_contention() => match backoff.next() {
                Some(pause) => thread::sleep(pause),
                None => return Err(error),
            },
            result => return result,
        }
    }
}

/// The pauses between attempts. Together they are as long as the timeout.
pub(super) struct BusyBackoff {
    deadline: Option<Instant>,
    pause: Duration,
    longest: Duration,
    waiting: Option<Waiting>,
}

/// Counts the callers that were turned away and try again.
struct Waiting {
    count: Arc<AtomicUsize>,
    entered: bool,
}

impl BusyBackoff {
    pub(super) fn new(timeout: Duration) -> Self {
        let (pause, longest) = (Duration::from_millis(1), Duration::from_millis(50));
        Self { deadline: Instant::now().checked_add(timeout), pause, longest, waiting: None }
    }

    /// Limits each pause to `longest`, and counts the caller in `count` from the first pause to the
    /// last.
    pub(super) fn with_max_pause(self, longest: Duration, count: &Arc<AtomicUsize>) -> Self {
        let waiting = Some(Waiting { count: count.clone(), entered: false });
        Self { pause: self.pause.min(longest), longest, waiting, ..self }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.entered {
            self.count.fetch_sub(1, atomic::Ordering::Relaxed);
        }
    }
}

impl Iterator for BusyBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let left = self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        let pause = self.pause.min(left);
        self.pause = (self.pause * 2).min(self.longest);
        if let Some(waiting) = &mut self.waiting
            && !std::mem::replace(&mut waiting.entered, true)
        {
            waiting.count.fetch_add(1, atomic::Ordering::Relaxed);
        }
        (!left.is_zero()).then_some(pause)
    }
}

/// The error that SQLite returns when another connection holds the database.
pub(super) fn contended() -> Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    rusqlite::Error::SqliteFailure(code, None).into()
}
