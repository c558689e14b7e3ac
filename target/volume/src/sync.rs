//! The atomics of this crate, by way of a module of their own: `tests/loom` compiles the map and
//! the epochs with loom's in their place.

pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use zerocopy::{FromZeros, KnownLayout};

/// What tables are made of.
pub trait Atom: Sized {
    /// So many zeroes. Memory that nobody has written yet costs nothing.
    fn zeroed(count: usize) -> Box<[Self]>;
}

impl<A: FromZeros + KnownLayout> Atom for A {
    fn zeroed(count: usize) -> Box<[A]> {
        <[A]>::new_box_zeroed_with_elems(count).expect("memory for the map")
    }
}
