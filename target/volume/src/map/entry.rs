//! An entry of a leaf: where the sixteen blocks of one cluster of a volume are.
//!
//! | bits | direct | scattered |
//! | --- | --- | --- |
//! | 0 to 31 | the cluster | the line |
//! | 32 to 47 | blocks that are there; the others are zero | blocks that are own |
//! | 48 | the cluster is own | 0 |
//! | 49 | guarded | guarded |
//! | 50 | 0 | 1 |
//!
//! The word 0 is an entry of nothing but zeroes. An entry is scattered only if its blocks lie in
//! two clusters or more.

const MASK_SHIFT: u32 = 32;
const OWN: u64 = 1 << 48;
const GUARD: u64 = 1 << 49;
const SCATTERED: u64 = 1 << 50;
const OWN_MASK: u64 = 0xffff << MASK_SHIFT;

/// The word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry(pub u64);

impl Entry {
    /// All blocks are zero.
    pub const ZERO: Entry = Entry(0);

    /// Blocks `present` are in `cluster`, the others zero.
    pub const fn direct(cluster: u32, present: u16, own: bool) -> Entry {
        let own = if own { OWN } else { 0 };
        Entry(cluster as u64 | (present as u64) << MASK_SHIFT | own)
    }

    /// The blocks are where `line` says.
    pub const fn scattered(line: u32, own: u16) -> Entry {
        Entry(line as u64 | (own as u64) << MASK_SHIFT | SCATTERED)
    }

    /// Whether all blocks are zero.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whether `value` is a line.
    pub const fn is_scattered(self) -> bool {
        self.0 & SCATTERED != 0
    }

    /// The cluster of a direct entry, the line of a scattered one.
    pub const fn value(self) -> u32 {
        self.0 as u32
    }

    /// Blocks that are there (direct) or own (scattered).
    pub const fn mask(self) -> u16 {
        (self.0 >> MASK_SHIFT) as u16
    }

    /// Blocks that are own, if the leaf is the asking volume's: see `docs/volumes.md`, Ownership.
    pub const fn own_mask(self) -> u16 {
        if self.0 & (OWN | SCATTERED) == 0 { 0 } else { self.mask() }
    }

    /// Whether writes go to the owner.
    pub const fn guarded(self) -> bool {
        self.0 & GUARD != 0
    }

    /// The same, guarded or not. What is all zero needs no guard: nothing in it is own.
    pub const fn with_guard(self, on: bool) -> Entry {
        if on && !self.is_zero() { Entry(self.0 | GUARD) } else { Entry(self.0 & !GUARD) }
    }

    /// The same with nothing own.
    pub const fn without_own(self) -> Entry {
        if self.is_scattered() { Entry(self.0 & !OWN_MASK) } else { Entry(self.0 & !OWN) }
    }

    /// With nothing own or guarded: what is left says where blocks are.
    pub const fn stored(self) -> Entry {
        self.without_own().with_guard(false)
    }
}
