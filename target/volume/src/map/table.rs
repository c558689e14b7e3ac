//! Tables that only grow, so that a number once given can be followed by any core at any time.

use std::sync::OnceLock;

use crate::sync::{Atom, Zeroed, zeroed};

/// Segments double in size; this many are enough for all numbers of 32 bits.
const SEGMENTS: usize = 32;

/// Rows of `WIDTH` atomics each, by number. The first segment has `FIRST` rows, a power of two.
///
/// A segment that does not exist yet is made by the owner, before anybody hears of a number in it.
pub(super) struct Table<A, const WIDTH: usize, const FIRST: usize> {
    segments: [OnceLock<Zeroed<A>>; SEGMENTS],
}

impl<A: Atom, const WIDTH: usize, const FIRST: usize> Table<A, WIDTH, FIRST> {
    pub(super) fn new() -> Self {
        const { assert!(FIRST.is_power_of_two()) };
        Table { segments: [const { OnceLock::new() }; SEGMENTS] }
    }

    /// Segment, and row in it. Segment k begins at row `FIRST * (2^k - 1)`.
    #[inline]
    fn place(number: u32) -> (usize, usize) {
        let from_first = number as usize + FIRST;
        let power = from_first.ilog2();
        ((power - FIRST.ilog2()) as usize, from_first - (1 << power))
    }

    /// Makes room for `number`.
    pub(super) fn make(&self, number: u32) {
        let (segment, _) = Self::place(number);
        self.segments[segment].get_or_init(|| zeroed((FIRST << segment) * WIDTH));
    }

    /// The row of a number that was made.
    #[inline]
    pub(super) fn row(&self, number: u32) -> &[A] {
        let (segment, row) = Self::place(number);
        let segment = self.segments[segment].get().expect("a number that was given");
        &segment[row * WIDTH..(row + 1) * WIDTH]
    }

    /// One of its atomics.
    #[inline]
    pub(super) fn at(&self, number: u32, column: usize) -> &A {
        let (segment, row) = Self::place(number);
        let segment = self.segments[segment].get().expect("a number that was given");
        &segment[row * WIDTH + column]
    }
}
