//! What a core counts.

use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use nvme_spec::status::Status;

use crate::limits::{LATENCY_DIGITS, MAX_LATENCY_NS};
use crate::workload::{Kind, Step};

/// How many kinds of I/O there are.
pub const KINDS: usize = Kind::ALL.len();

/// I/Os and bytes, by the number of their kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// I/Os.
    pub ios: [u64; KINDS],
    /// Bytes.
    pub bytes: [u64; KINDS],
}

impl Counts {
    /// Adds others.
    pub fn add(&mut self, other: &Counts) {
        for kind in 0..KINDS {
            self.ios[kind] += other.ios[kind];
            self.bytes[kind] += other.bytes[kind];
        }
    }

    /// What was counted after `earlier`.
    pub fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            ios: std::array::from_fn(|kind| self.ios[kind] - earlier.ios[kind]),
            bytes: std::array::from_fn(|kind| self.bytes[kind] - earlier.bytes[kind]),
        }
    }
}

/// An I/O that ended with an error.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// What it was.
    pub step: Step,
    /// What the target said.
    pub status: Status,
}

/// What one core has counted.
#[derive(Clone, Debug)]
pub struct Tally {
    /// I/Os that were completed while it was measured.
    pub counts: Counts,
    /// Latencies in nanoseconds of those that began while it was measured, by kind.
    pub latencies: [Option<Histogram<u64>>; KINDS],
    /// I/Os that failed, at any time.
    pub failures: u64,
    /// The first of them.
    pub first_failure: Option<Failure>,
    /// The latency that came last, of which kind it was and how often in a row: those that complete
    /// in one turn are often the same.
    run: (usize, u64, u64),
}

impl Tally {
    /// For I/Os of these kinds.
    pub fn new(kinds: &[Kind]) -> Self {
        let of = |kind: Kind| kinds.contains(&kind).then(histogram);
        Self {
            counts: Counts::default(),
            latencies: Kind::ALL.map(of),
            failures: 0,
            first_failure: None,
            run: (0, 0, 0),
        }
    }

    /// Notes the latency of `count` I/Os.
    #[inline]
    pub fn note_latency(&mut self, kind: Kind, latency_ns: u64, count: u64) {
        let (last_kind, last_latency, times) = self.run;
        if (last_kind, last_latency) == (kind as usize, latency_ns) {
            self.run.2 = times + count;
        } else {
            self.settle();
            self.run = (kind as usize, latency_ns, count);
        }
    }

    /// Puts what was noted last into its histogram.
    pub fn settle(&mut self) {
        let (kind, latency, times) = std::mem::take(&mut self.run);
        if times > 0
            && let Some(histogram) = &mut self.latencies[kind]
        {
            // The histogram has no zero: what takes less than a nanosecond takes one.
            histogram.saturating_record_n(latency.max(1), times);
        }
    }

    /// Notes an I/O that failed.
    #[inline(never)]
    pub fn note_failure(&mut self, step: Step, status: Status) {
        self.failures += 1;
        self.first_failure.get_or_insert(Failure { step, status });
    }

    /// Adds what another core has counted. Both are settled.
    pub fn add(&mut self, other: &Tally) {
        self.counts.add(&other.counts);
        self.failures += other.failures;
        self.first_failure = self.first_failure.or(other.first_failure);
        for (mine, theirs) in self.latencies.iter_mut().zip(&other.latencies) {
            match (mine, theirs) {
                // Both have the same bounds, so nothing is lost.
                (Some(mine), Some(theirs)) => mine.add(theirs).unwrap_or_default(),
                (mine, theirs) => *mine = mine.take().or_else(|| theirs.clone()),
            }
        }
    }
}

/// An empty histogram of latencies in nanoseconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_NS, LATENCY_DIGITS)
        .expect("the bounds are constants, and a test makes one")
}

/// What a core shows others while it runs, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct LiveCounts {
    ios: [AtomicU64; KINDS],
    bytes: [AtomicU64; KINDS],
    failures: AtomicU64,
}

impl LiveCounts {
    /// Called by the core that counts.
    pub(crate) fn publish(&self, tally: &Tally) {
        for kind in 0..KINDS {
            self.ios[kind].store(tally.counts.ios[kind], Ordering::Relaxed);
            self.bytes[kind].store(tally.counts.bytes[kind], Ordering::Relaxed);
        }
        self.failures.store(tally.failures, Ordering::Relaxed);
    }

    /// I/Os, bytes, and failures.
    pub(crate) fn read(&self) -> (Counts, u64) {
        let load = |counters: &[AtomicU64; KINDS]| {
            std::array::from_fn(|kind| counters[kind].load(Ordering::Relaxed))
        };
        let counts = Counts { ios: load(&self.ios), bytes: load(&self.bytes) };
        (counts, self.failures.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_that_repeat_are_counted_as_often_as_they_come() {
        let mut tally = Tally::new(&[Kind::Read, Kind::Write]);
        for (kind, latency) in [(Kind::Read, 5), (Kind::Read, 5), (Kind::Write, 5), (Kind::Read, 0)]
        {
            tally.note_latency(kind, latency, 1);
        }
        tally.note_latency(Kind::Write, u64::MAX, 3);
        tally.settle();
        let [reads, writes, ..] = tally.latencies.each_ref().map(Option::as_ref);
        let (reads, writes) = (reads.unwrap(), writes.unwrap());
        assert_eq!((reads.count_at(5), reads.count_at(1), reads.len()), (2, 1, 3));
        assert_eq!((writes.count_at(5), writes.len()), (1, 4));
        assert!(writes.max() >= MAX_LATENCY_NS);
        let mut sum = Tally::new(&[Kind::Read]);
        sum.add(&tally);
        sum.add(&tally);
        assert_eq!(sum.latencies[0].as_ref().unwrap().len(), 6);
        assert_eq!(sum.latencies[1].as_ref().unwrap().len(), 8);
    }
}
