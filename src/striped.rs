//! Counters that threads increment without waiting for each other. A counter has stripes, and most threads own a
//! stripe.

#[cfg(feature = "metrics")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The number of stripes of a counter.
pub(crate) const STRIPES: usize = 16;

/// The stripe in which a thread counts.
#[derive(Clone, Copy)]
pub(crate) struct Stripe {
    pub(crate) index: usize,
    /// No other thread writes to it, so adding needs no atomic read-modify-write.
    own: bool,
}

impl Stripe {
    /// The stripe of the current thread.
    pub(crate) fn current() -> Self {
        thread_local! {
            static OWNED: Owned = Owned::acquire();
        }
        // A thread that is ending may already have given its stripe back.
        OWNED.try_with(|owned| owned.0).unwrap_or(SHARED)
    }

    /// Adds to a counter of this stripe.
    pub(crate) fn add(self, counter: &AtomicU64, number: u64) {
        if self.own {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(number), Ordering::Relaxed);
        } else {
            counter.fetch_add(number, Ordering::Relaxed);
        }
    }
}

/// For threads that found no free stripe.
const SHARED: Stripe = Stripe { index: STRIPES - 1, own: false };

/// The stripes that have an owner, one bit each.
static OWNERS: AtomicUsize = AtomicUsize::new(0);

/// A stripe that belongs to a thread until it ends.
struct Owned(Stripe);

impl Owned {
    fn acquire() -> Self {
        let free = |owners: usize| (0..SHARED.index).find(|index| owners & (1 << index) == 0);
        // A thread that takes over a stripe continues from the count of the last owner.
        let taken = OWNERS
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |owners| free(owners).map(|index| owners | 1 << index));
        Self(taken.ok().and_then(free).map_or(SHARED, |index| Stripe { index, own: true }))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.0.own {
            OWNERS.fetch_and(!(1 << self.0.index), Ordering::Release);
        }
    }
}

/// A counter in stripes. One observer, for example an exporter of metrics, can follow it.
#[derive(Default)]
pub(crate) struct Counter {
    stripes: [CacheLine; STRIPES],
    #[cfg(feature = "metrics")]
    observer: OnceLock<Observer>,
}

/// Receives each number that is added to a [`Counter`].
#[cfg(feature = "metrics")]
pub(crate) type Observer = Box<dyn Fn(u64) + Send + Sync>;

/// Aligned so that threads do not wait for each other's cache line.
#[derive(Default)]
#[repr(align(128))]
struct CacheLine(AtomicU64);

impl Counter {
    pub(crate) fn increment(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, number: u64) {
        let stripe = Stripe::current();
        stripe.add(&self.stripes[stripe.index].0, number);
        #[cfg(feature = "metrics")]
        if let Some(observer) = self.observer.get() {
            observer(number);
        }
    }

    pub(crate) fn sum(&self) -> u64 {
        self.stripes.iter().map(|CacheLine(count)| count.load(Ordering::Relaxed)).sum()
    }

    /// Passes everything that is added from now on to `observer`. A counter has one observer; later ones are ignored.
    #[cfg(feature = "metrics")]
    pub(crate) fn observe(&self, observer: impl Fn(u64) + Send + Sync + 'static) {
        self.observer.get_or_init(|| Box::new(observer));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn no_two_threads_own_a_stripe_and_no_count_is_lost() {
        const THREADS: usize = 40;
        let counters: [AtomicU64; STRIPES] = Default::default();
        for _ in 0..20 {
            let barrier = Barrier::new(THREADS);
            std::thread::scope(|scope| {
                let count = || {
                    let stripe = Stripe::current();
                    barrier.wait();
                    for _ in 0..1000 {
                        stripe.add(&counters[stripe.index], 1);
                    }
                    stripe
                };
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(count)).collect();
                let stripes: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
                let mut owned: Vec<_> = stripes.iter().filter(|stripe| stripe.own).map(|stripe| stripe.index).collect();
                owned.sort_unstable();
                assert!(owned.windows(2).all(|pair| pair[0] != pair[1]), "{owned:?}");
                assert!(!owned.contains(&SHARED.index));
            });
        }
        let sum: u64 = counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum();
        assert_eq!(sum, 20 * THREADS as u64 * 1000);
    }
}
