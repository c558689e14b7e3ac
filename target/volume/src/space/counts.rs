//! How many hold each cluster, in a byte each where that is enough.

use crate::limits::COUNT_CHUNK;

/// Taken, and nobody holds it yet.
pub(super) const TAKEN: u32 = u32::MAX;
/// Has pages of metadata.
pub(super) const METADATA: u32 = u32::MAX - 1;
/// Never given: superblocks, the journal.
pub(super) const FIXED: u32 = u32::MAX - 2;

/// In a byte, these are the ends of the range too.
const SPECIAL: u32 = u32::MAX - u8::MAX as u32;
const MOST_IN_A_BYTE: u32 = u8::MAX as u32 - 3;

/// A run of clusters. Counts are small nearly everywhere; where one is not, its run has words.
#[derive(Debug)]
enum Chunk {
    /// All are 0.
    Empty,
    Bytes(Box<[u8; COUNT_CHUNK]>),
    Words(Box<[u32; COUNT_CHUNK]>),
}

/// The count of each cluster of a device: 0 when it is free, or one of the constants above.
#[derive(Debug, Default)]
pub(super) struct Counts {
    chunks: Vec<Chunk>,
}

impl Counts {
    pub(super) fn resize(&mut self, clusters: u32) {
        let chunks = (clusters as usize).div_ceil(COUNT_CHUNK);
        self.chunks.resize_with(chunks, || Chunk::Empty);
    }

    #[inline]
    pub(super) fn get(&self, place: u32) -> u32 {
        let at = place as usize % COUNT_CHUNK;
        match &self.chunks[place as usize / COUNT_CHUNK] {
            Chunk::Empty => 0,
            Chunk::Bytes(bytes) => match u32::from(bytes[at]) {
                count if count <= MOST_IN_A_BYTE => count,
                special => SPECIAL + special,
            },
            Chunk::Words(words) => words[at],
        }
    }

    /// Those that are not 0.
    pub(super) fn not_free(&self) -> Vec<u32> {
        let chunks = self.chunks.iter().zip((0..).step_by(COUNT_CHUNK));
        let used = chunks.filter(|(chunk, _)| !matches!(chunk, Chunk::Empty));
        let places = used.flat_map(|(_, first)| first..first + COUNT_CHUNK as u32);
        places.filter(|place| self.get(*place) != 0).collect()
    }

    #[inline]
    pub(super) fn set(&mut self, place: u32, count: u32) {
        let at = place as usize % COUNT_CHUNK;
        let chunk = &mut self.chunks[place as usize / COUNT_CHUNK];
        if let Chunk::Bytes(bytes) = chunk
            && (count <= MOST_IN_A_BYTE || count >= FIXED)
        {
            bytes[at] = count as u8;
            return;
        }
        self.set_slowly(place, count);
    }

    #[cold]
    fn set_slowly(&mut self, place: u32, count: u32) {
        let chunk = &mut self.chunks[place as usize / COUNT_CHUNK];
        match chunk {
            Chunk::Words(words) => words[place as usize % COUNT_CHUNK] = count,
            Chunk::Empty if count == 0 => {}
            Chunk::Empty => {
                *chunk = Chunk::Bytes(Box::new([0; COUNT_CHUNK]));
                self.set(place, count);
            }
            Chunk::Bytes(_) => {
                let first = place / COUNT_CHUNK as u32 * COUNT_CHUNK as u32;
                let words: Vec<u32> =
                    (0..COUNT_CHUNK as u32).map(|at| self.get(first + at)).collect();
                let words = words.try_into().expect("as many as a chunk has");
                self.chunks[place as usize / COUNT_CHUNK] = Chunk::Words(words);
                self.set(place, count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_whatever_their_size() {
        let mut counts = Counts::default();
        counts.resize(COUNT_CHUNK as u32 + 10);
        let kept = [0, 1, MOST_IN_A_BYTE, TAKEN, METADATA, FIXED];
        let check = |counts: &Counts, first: u32| {
            for (place, &count) in (first..).zip(&kept) {
                assert_eq!(counts.get(place), count, "cluster {place}");
            }
        };
        for first in [0, COUNT_CHUNK as u32] {
            for (place, &count) in (first..).zip(&kept) {
                counts.set(place, count);
            }
            check(&counts, first);
        }
        for count in [MOST_IN_A_BYTE + 1, 255, 256, 1 << 20] {
            counts.set(6, count);
            assert_eq!(counts.get(6), count);
        }
        check(&counts, 0);
        check(&counts, COUNT_CHUNK as u32);
        assert!(matches!(counts.chunks[1], Chunk::Bytes(_)), "only where it is needed");
    }
}
