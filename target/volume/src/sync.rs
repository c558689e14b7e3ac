//! The atomics of this crate, by way of a module of their own: `tests/loom` compiles the map and
//! the epochs with loom's in their place.

pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// What tables are made of: so many zeroes. Memory that nobody has written yet costs nothing.
pub type Zeroed<A> = dma::ZeroedSlice<A>;

pub use zerocopy::FromZeros as Atom;

/// Zeroes for a table.
pub fn zeroed<A: Atom>(count: usize) -> Zeroed<A> {
    Zeroed::new(count).expect("memory for the map")
}
