//! Numbers from a seed: the one source of chance in a world.

use rand::RngExt as _;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng as _;

/// The same numbers for the same seed.
#[derive(Clone, Debug)]
pub struct Random(Xoshiro256PlusPlus);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// From several numbers that together name what the chance is for.
    pub fn of(parts: &[u64]) -> Self {
        Self::new(parts.iter().fold(0, |sum, &part| mix(sum ^ part)))
    }

    /// Any number.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        self.0.random()
    }

    /// A number below `end`, which is not zero.
    #[inline]
    pub fn below(&mut self, end: u64) -> u64 {
        // The bias of a remainder is nothing for the small ranges that are asked for.
        self.draw() % end
    }

    /// True once in `times`.
    #[inline]
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// True `count` times in `times`.
    #[inline]
    pub fn chance(&mut self, count: u64, times: u64) -> bool {
        self.below(times) < count
    }

    /// One of a list that is not empty.
    #[inline]
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }

    /// Puts a list in any order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// Spreads a number over all 64 bits (the end of SplitMix64).
#[inline]
pub fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ mixed >> 31
}
