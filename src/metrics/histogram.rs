//! Times in buckets whose width is relative to the time: bounded memory, bounded error.

use std::fmt;
use std::time::Duration;

/// How long calls took. Every power of two of nanoseconds has eight buckets, and times are assumed to be evenly
/// spread within a bucket. So a percentile is wrong by at most 12.5 %, and usually by much less. Times over 39 hours
/// count in the last bucket.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    pub(super) counts: Vec<u64>,
    pub(super) nanos: u64,
    pub(super) longest: u64,
}

/// The number of bits that select a bucket within a power of two.
const PRECISION: u32 = 3;

/// The number of powers of two of nanoseconds: 2⁴⁷ ns are 39 hours.
const POWERS: u32 = 47;

impl Histogram {
    pub(super) const BUCKETS: usize = ((POWERS - PRECISION + 1) << PRECISION) as usize;

    pub(super) fn new() -> Self {
        Self { counts: vec![0; Self::BUCKETS], nanos: 0, longest: 0 }
    }

    /// Log-linear, as in HdrHistogram: exact below 2³ ns. Above, the highest bit and the next three select the
    /// bucket.
    #[inline]
    pub(super) fn bucket(nanos: u64) -> usize {
        let power = nanos.max(1).ilog2();
        let bucket = match power {
            0..PRECISION => nanos as usize,
            _ => {
                let shift = power - PRECISION;
                ((shift << PRECISION) as usize) + (nanos >> shift) as usize
            }
        };
        bucket.min(Self::BUCKETS - 1)
    }

    /// The shortest and the longest time of a bucket, in nanoseconds.
    fn bounds(bucket: usize) -> (u64, u64) {
        let (high, low) = ((bucket >> PRECISION) as u32, (bucket & ((1 << PRECISION) - 1)) as u64);
        match high {
            0 => (low, low),
            _ => {
                let shift = high - 1;
                let first = ((1 << PRECISION) + low) << shift;
                (first, first + (1 << shift) - 1)
            }
        }
    }

    /// The number of calls.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The total time of all calls.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos)
    }

    /// The average time; zero if there were no calls.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.nanos.checked_div(self.count()).unwrap_or(0))
    }

    /// The longest time.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.longest)
    }

    /// The time that this fraction of the calls did not exceed, for example 0.99 for p99. Zero if there were no
    /// calls. Fractions below 0 count as 0, above 1 as 1.
    pub fn percentile(&self, part: f64) -> Duration {
        let count = self.count();
        let rank = ((count as f64 * part.clamp(0.0, 1.0)).ceil() as u64).max(1);
        if rank >= count {
            return self.max();
        }
        let mut seen = 0;
        for (bucket, counted) in self.counts.iter().enumerate() {
            if seen + counted >= rank {
                let (first, last) = Self::bounds(bucket);
                let width = last.min(self.longest).saturating_sub(first) + 1;
                let within = (rank - seen) as f64 - 0.5;
                let nanos = first + (width as f64 * within / *counted as f64) as u64;
                return Duration::from_nanos(nanos.min(self.longest));
            }
            seen += counted;
        }
        Duration::ZERO
    }

    /// The buckets that are not empty: the longest time that counts in each, and its number of calls.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (Duration::from_nanos(Self::bounds(bucket).1), *count))
    }

    pub(super) fn add(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(ours, others)| *ours += others);
        self.nanos = self.nanos.saturating_add(other.nanos);
        self.longest = self.longest.max(other.longest);
    }

    pub(super) fn since(&self, earlier: &Histogram) -> Histogram {
        let counts = self.counts.iter().zip(&earlier.counts).map(|(now, before)| now.saturating_sub(*before));
        let counts: Vec<u64> = counts.collect();
        let longest = match self.longest > earlier.longest {
            true => self.longest,
            false => counts.iter().rposition(|count| *count > 0).map_or(0, |bucket| Self::bounds(bucket).1),
        };
        let nanos = self.nanos.saturating_sub(earlier.nanos);
        Histogram { counts, nanos, longest: longest.min(self.longest) }
    }
}

/// The percentiles that tables and charts show.
pub(super) const PERCENTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

/// Prints the percentiles, not the buckets.
impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Histogram");
        shown.field("count", &self.count());
        for (name, part) in PERCENTILES {
            shown.field(name, &self.percentile(part));
        }
        shown.field("max", &self.max()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_leave_no_gap_and_hold_their_values() {
        let mut expected = 0;
        for bucket in 0..Histogram::BUCKETS {
            let (first, last) = Histogram::bounds(bucket);
            assert_eq!(first, expected, "bucket {bucket}");
            assert_eq!((Histogram::bucket(first), Histogram::bucket(last)), (bucket, bucket));
            assert!(last - first <= first / 8, "bucket {bucket} is too wide");
            expected = last + 1;
        }
        assert_eq!(expected, 1 << POWERS, "the last bucket has the wrong end");
        assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
    }

    fn of(times: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::new();
        for nanos in times {
            histogram.counts[Histogram::bucket(nanos)] += 1;
            histogram.nanos += nanos;
            histogram.longest = histogram.longest.max(nanos);
        }
        histogram
    }

    #[test]
    fn percentiles_are_off_by_an_eighth_at_most() {
        let mut times: Vec<u64> = (0..10_000u64).map(|number| number * number % 7_919 * number % 40_000_000).collect();
        let histogram = of(times.iter().copied());
        times.sort_unstable();
        for part in [0.0001, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let exact = times[(times.len() as f64 * part).ceil() as usize - 1] as f64;
            let found = histogram.percentile(part).as_nanos() as f64;
            assert!((found - exact).abs() <= exact / 8.0, "{part}: {found} instead of {exact}");
            if (0.25..0.999).contains(&part) {
                assert!((found - exact).abs() <= exact / 50.0, "{part}: {found} instead of {exact}");
            }
        }
        assert_eq!(histogram.max().as_nanos() as u64, times[times.len() - 1]);
        assert_eq!(histogram.sum().as_nanos() as u64, times.iter().sum::<u64>());
        assert_eq!(of([]).percentile(0.5), Duration::ZERO);
        assert_eq!(of([]).mean(), Duration::ZERO);
        assert_eq!(of([1_000_000]).percentile(0.5), Duration::from_millis(1), "the longest time is exact");
    }

    #[test]
    fn what_happened_since_forgets_what_was_before() {
        let (before, now) = (of([5_000_000, 100]), of([5_000_000, 100, 200, 201, 202]));
        let since = now.since(&before);
        assert_eq!((since.count(), since.sum()), (3, Duration::from_nanos(603)));
        assert!(since.max() >= Duration::from_nanos(202) && since.max() < Duration::from_nanos(230), "{since:?}");
        assert_eq!(of([100, 7_000_000]).since(&of([100])).max(), Duration::from_millis(7));
    }
}
