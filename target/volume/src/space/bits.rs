//! A set of numbers in which the next one is found fast.

/// Each level has one bit for each word of the level below: whether any bit in it is set.
#[derive(Debug, Default)]
pub(super) struct Bits {
    levels: Vec<Vec<u64>>,
}

const WORD: usize = u64::BITS as usize;

impl Bits {
    /// Room for numbers below `count`. Those that are set stay.
    pub(super) fn resize(&mut self, count: usize) {
        let mut words = count.div_ceil(WORD).max(1);
        self.levels.truncate(1);
        self.levels.resize_with(1, Vec::new);
        self.levels[0].resize(words, 0);
        while words > 1 {
            let below = self.levels.last().into_iter().flatten();
            let mut level = vec![0; words.div_ceil(WORD)];
            for (index, _) in below.enumerate().filter(|(_, word)| **word != 0) {
                level[index / WORD] |= 1 << (index % WORD);
            }
            words = level.len();
            self.levels.push(level);
        }
    }

    /// The numbers from `64 * index` on.
    #[inline]
    pub(super) fn word(&self, index: usize) -> u64 {
        self.levels[0][index]
    }

    /// Adds all of `mask` to that word.
    pub(super) fn set_in(&mut self, index: usize, mask: u64) {
        let mut index = index;
        let mut mask = mask;
        for level in &mut self.levels {
            let was = level[index];
            level[index] = was | mask;
            if was != 0 || mask == 0 {
                break;
            }
            (index, mask) = (index / WORD, 1 << (index % WORD));
        }
    }

    /// Removes all of `mask` from that word.
    pub(super) fn clear_in(&mut self, index: usize, mask: u64) {
        let mut index = index;
        let mut mask = mask;
        for level in &mut self.levels {
            level[index] &= !mask;
            if level[index] != 0 {
                break;
            }
            (index, mask) = (index / WORD, 1 << (index % WORD));
        }
    }

    pub(super) fn contains(&self, number: usize) -> bool {
        self.word(number / WORD) >> (number % WORD) & 1 == 1
    }

    pub(super) fn set(&mut self, number: usize) {
        self.set_in(number / WORD, 1 << (number % WORD));
    }

    pub(super) fn clear(&mut self, number: usize) {
        self.clear_in(number / WORD, 1 << (number % WORD));
    }

    /// The least number that is set, from `from` on.
    pub(super) fn next(&self, from: usize) -> Option<usize> {
        let mut at = from;
        let mut level = 0;
        loop {
            let words = self.levels.get(level)?;
            let bits = words.get(at / WORD).map_or(0, |word| word & u64::MAX << (at % WORD));
            if bits != 0 {
                at = at / WORD * WORD + bits.trailing_zeros() as usize;
                break;
            }
            at = at / WORD + 1;
            level += 1;
        }
        while level > 0 {
            level -= 1;
            at = at * WORD + self.levels[level][at].trailing_zeros() as usize;
        }
        Some(at)
    }

    /// The same, and from the beginning when there is none.
    pub(super) fn next_around(&self, from: usize) -> Option<usize> {
        self.next(from).or_else(|| self.next(0))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::Bits;

    proptest! {
        #[test]
        fn the_next_number_is_that_of_an_ordered_set(
            count in 1..300_000usize,
            more in 0..300_000usize,
            numbers in prop::collection::vec((any::<u32>(), any::<bool>()), 0..50),
            from in any::<u32>(),
        ) {
            let mut bits = Bits::default();
            let mut set = BTreeSet::new();
            bits.resize(count);
            for (number, on) in numbers {
                let number = number as usize % count;
                if on {
                    bits.set(number);
                    set.insert(number);
                } else {
                    bits.clear(number);
                    set.remove(&number);
                }
            }
            bits.resize(count + more);
            let from = from as usize % (count + more);
            prop_assert_eq!(bits.next(from), set.range(from..).next().copied());
            let all: Vec<usize> =
                std::iter::successors(bits.next(0), |last| bits.next(last + 1)).collect();
            prop_assert_eq!(all, set.into_iter().collect::<Vec<_>>());
        }
    }
}
