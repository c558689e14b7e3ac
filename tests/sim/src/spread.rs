//! Where in a large volume the few places are that are used: a volume of terabytes, of which the
//! model keeps only what is there.
//!
//! The model, and whoever makes up I/Os, know volumes without what lies between two places. What is
//! handed to the pool is where it really is.

use std::ops::Range;

/// Bytes of a place: two clusters. All but the first have one on either side of a multiple of the
/// distance, which is where a leaf or directory ends.
const PLACE_BYTES: u64 = 128 << 10;
/// What a deallocate clears at a time at most.
const MOST_CLEARED: u64 = 64 << 30;
/// And a write zeroes.
const MOST_ZEROED: u64 = 64 << 20;

/// How far the places of a volume are from each other in bytes; 0: it is all one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread(pub u64);

impl Spread {
    /// Where a byte of the model is in the volume.
    fn real(self, byte: u64) -> u64 {
        match (self.0, byte / PLACE_BYTES) {
            (0, _) | (_, 0) => byte,
            (distance, place) => place * distance - PLACE_BYTES / 2 + byte % PLACE_BYTES,
        }
    }

    /// The size of a volume that has so many bytes in the model.
    pub(crate) fn real_size(self, bytes: u64) -> u64 {
        self.real(bytes - 1) + 1
    }

    /// And the other way round.
    pub(crate) fn model_size(self, bytes: u64) -> u64 {
        let Some(place) = (bytes - 1 + PLACE_BYTES / 2).checked_div(self.0) else { return bytes };
        let first = self.real(place * PLACE_BYTES);
        place * PLACE_BYTES + (bytes - first)
    }

    /// A range of the model up to the end of the place where it begins.
    pub(crate) fn within_place(self, bytes: Range<u64>) -> Range<u64> {
        let end = (bytes.start / PLACE_BYTES + 1) * PLACE_BYTES;
        if self.0 == 0 { bytes } else { bytes.start..bytes.end.min(end) }
    }

    /// A range of the model with what lies between its places, if it is not too much for one
    /// command; else up to the end of its first place.
    pub(crate) fn clearable(self, bytes: Range<u64>, deallocates: bool) -> Range<u64> {
        let real = self.real_range(&bytes);
        let most = if deallocates { MOST_CLEARED } else { MOST_ZEROED };
        if real.end - real.start <= most { bytes } else { self.within_place(bytes) }
    }

    /// Where a range is in the volume.
    pub(crate) fn real_range(self, bytes: &Range<u64>) -> Range<u64> {
        self.real(bytes.start)..self.real(bytes.end - 1) + 1
    }

    /// The first byte behind a place, where nobody ever wrote, given a byte of it in the model.
    pub(crate) fn gap_behind(self, byte: u64) -> Option<u64> {
        let last = (byte / PLACE_BYTES + 1) * PLACE_BYTES - 1;
        (self.0 > 0).then(|| self.real(last) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_on_either_side_of_a_multiple_of_the_distance() {
        let spread = Spread(32 << 20);
        assert_eq!(spread.real_range(&(0..PLACE_BYTES)), 0..PLACE_BYTES);
        let (second, half) = (PLACE_BYTES..2 * PLACE_BYTES, PLACE_BYTES / 2);
        assert_eq!(spread.real_range(&second), (32 << 20) - half..(32 << 20) + half);
        assert_eq!(spread.gap_behind(PLACE_BYTES), Some((32 << 20) + half));
        assert_eq!(spread.within_place(4096..PLACE_BYTES + 1), 4096..PLACE_BYTES);
        for pages in 1..200 {
            let size = spread.real_size(pages * 4096);
            assert_eq!(spread.model_size(size), pages * 4096, "{size}");
        }
        assert_eq!(Spread(0).model_size(12_345), 12_345);
    }
}
