//! Which bytes of the arena nobody has.

use std::collections::BTreeMap;

/// Disjoint runs of bytes, by where they start; neighbours are one run. Each take and each return
/// looks at every run at most once: there are few, as spans are carved when a core or a device
/// starts.
#[derive(Debug)]
pub(crate) struct Runs(BTreeMap<usize, usize>);

impl Runs {
    /// One run of `bytes` from 0.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(BTreeMap::from([(0, bytes)]))
    }

    /// Takes the first `bytes` that start at a multiple of `align`: where they start.
    pub(crate) fn take(&mut self, bytes: usize, align: usize) -> Option<usize> {
        let fits = |(&start, &len): (&usize, &usize)| {
            let at = start.next_multiple_of(align);
            (at + bytes <= start + len).then_some((start, len, at))
        };
        let (start, len, at) = self.0.iter().find_map(fits)?;
        self.0.remove(&start);
        for (start, end) in [(start, at), (at + bytes, start + len)] {
            if start < end {
                self.0.insert(start, end - start);
            }
        }
        Some(at)
    }

    /// Takes back `bytes` from `start`; bytes that are here already assert.
    pub(crate) fn give_back(&mut self, mut start: usize, mut bytes: usize) {
        let end = start + bytes;
        let before = self.0.range(..end).next_back().map(|(&at, &len)| (at, at + len));
        assert!(
            before.is_none_or(|(_, to)| to <= start),
            "{bytes} bytes at {start} is vacant already"
        );
        if let Some((at, _)) = before.filter(|&(_, to)| to == start) {
            (start, bytes) = (at, end - at);
        }
        if let Some(after) = self.0.remove(&end) {
            bytes += after;
        }
        self.0.insert(start, bytes);
    }

    /// How many there are, in all runs.
    pub(crate) fn bytes(&self) -> usize {
        self.0.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is taken is aligned and nobody else's, and when all is back it is one run again.
        #[test]
        fn runs_never_overlap_and_grow_together(
            steps in prop::collection::vec((any::<bool>(), 1usize..5000, 0u32..13), 1..200),
        ) {
            let mut runs = Runs::new(64 << 10);
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (take, number, shift) in steps {
                if !take && !held.is_empty() {
                    let (start, bytes) = held.swap_remove(number % held.len());
                    runs.give_back(start, bytes);
                } else if let Some(start) = runs.take(number, 1 << shift) {
                    prop_assert!(start.is_multiple_of(1 << shift) && start + number <= 64 << 10);
                    for &(at, bytes) in &held {
                        prop_assert!(start + number <= at || at + bytes <= start);
                    }
                    held.push((start, number));
                }
                let used: usize = held.iter().map(|&(_, bytes)| bytes).sum();
                prop_assert_eq!(runs.bytes() + used, 64 << 10);
            }
            held.into_iter().for_each(|(start, bytes)| runs.give_back(start, bytes));
            prop_assert_eq!(runs.take(64 << 10, 4096), Some(0));
        }
    }
}
