//! Threads for work that waits for the disk, and a way to wait until that work ends.

use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(feature = "sqlite")]
use std::sync::{Arc, atomic::AtomicBool};
use std::time::Duration;

/// The number of tasks that are under way.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Starts `work` at once, on a thread that may block. The work goes on if the future is dropped.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) fn unblock<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> + Send + 'static {
    let running = Running::new();
    // If the future was dropped, the result is dropped first, and with it unfinished files.
    let task = blocking::unblock(move || (work(), running));
    async move { task.await.0 }
}

/// The same for work whose result no one needs.
#[cfg(feature = "sqlite")]
pub(crate) fn detached(work: impl FnOnce() + Send + 'static) {
    let running = Running::new();
    blocking::unblock(move || {
        work();
        drop(running);
    })
    .detach();
}

/// Works on many items on all cores, and keeps them in order. `work` returns something about some of its items, by their
/// places. Few items, or all without threads, are worked on by the caller.
pub(crate) async fn in_parallel<T: Send + 'static, U: Send + 'static>(
    mut items: Vec<T>,
    work: impl Fn(&mut [T]) -> Vec<(usize, U)> + Clone + Send + 'static,
) -> (Vec<T>, Vec<(usize, U)>) {
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    if items.len() > FEW_ITEMS {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = items.len().div_ceil(cores).max(FEW_ITEMS);
        let shares = (0..items.len().div_ceil(share)).rev().map(|number| items.split_off(number * share));
        let shares: Vec<_> = shares.collect();
        let shares = shares.into_iter().rev().map(|mut share| {
            let work = work.clone();
            unblock(move || {
                let told = work(&mut share);
                (share, told)
            })
        });
        // All of them start before the first one is waited for.
        let shares: Vec<_> = shares.collect();
        let mut told = Vec::new();
        for share in shares {
            let (share, told_of_share) = share.await;
            told.extend(told_of_share.into_iter().map(|(at, what)| (items.len() + at, what)));
            items.extend(share);
        }
        return (items, told);
    }
    let told = work(&mut items);
    (items, told)
}

/// So many items take less than about half a millisecond.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
const FEW_ITEMS: usize = 512;

/// Blocks until all work whose futures were dropped has ended. Unfinished files are removed then, and databases are
/// closed. Call it before the process exits if a signal ended it in the middle of such work.
pub fn finish_background_work() {
    while UNDER_WAY.load(Ordering::Acquire) > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Counts work as under way as long as this value exists.
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

/// Tells work on another thread that its caller is gone. After that the work must not give files their final names.
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

#[cfg(all(test, any(feature = "postgres", feature = "sqlite")))]
mod tests {
    use super::{FEW_ITEMS, in_parallel};

    #[tokio::test]
    async fn items_and_their_places_keep_their_order() {
        for count in [0, 1, FEW_ITEMS, FEW_ITEMS + 1, 10 * FEW_ITEMS + 7] {
            let work = |items: &mut [usize]| {
                items.iter_mut().for_each(|item| *item *= 2);
                items.iter().enumerate().filter(|(_, item)| **item % 10 == 0).map(|(at, item)| (at, *item)).collect()
            };
            let (items, told) = in_parallel((0..count).collect(), work).await;
            assert_eq!(items, (0..count).map(|number| number * 2).collect::<Vec<_>>());
            assert_eq!(told, (0..count).step_by(5).map(|number| (number, number * 2)).collect::<Vec<_>>());
        }
    }
}
