//! From a range of a volume to places in the pool.

use std::sync::atomic::Ordering;

use crate::devices::Place;
use crate::limits::{BLOCK_BYTES, CLUSTER_BYTES};
use crate::map::{Entry, Map, Root};
use crate::shared::VolumeHandle;

/// A run of bytes that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where it is; `None` reads as zeroes.
    pub place: Option<Place>,
    /// Where it is in the I/O's buffer.
    pub at: u32,
    pub bytes: u32,
}

/// The pieces of one I/O; used again for the next one.
#[derive(Debug, Default)]
pub(crate) struct Pieces(Vec<Piece>);

impl Pieces {
    pub(crate) fn list(&self) -> &[Piece] {
        &self.0
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Where `bytes` from byte `start` are.
    #[inline]
    pub(crate) fn find(&mut self, map: &Map, root: Root, start: u64, bytes: u32) {
        self.0.clear();
        for part in parts(start, bytes) {
            let (entry, _) = map.entry(root, part.entry);
            self.add(map, entry, part);
        }
    }

    /// The same, if all of it may be overwritten in place by this lane.
    #[inline]
    pub(crate) fn find_own(
        &mut self,
        map: &Map,
        handle: &VolumeHandle,
        start: u64,
        bytes: u32,
    ) -> bool {
        self.0.clear();
        let root = handle.root.load(Ordering::Acquire);
        let head = handle.head.load(Ordering::Acquire);
        for part in parts(start, bytes) {
            let (entry, leaf_head) = map.entry(root, part.entry);
            if leaf_head != head || entry.guarded() || part.mask() & !entry.own_mask() != 0 {
                return false;
            }
            self.add(map, entry, part);
        }
        true
    }

    /// Adds a part of an entry where it is.
    #[inline]
    pub(crate) fn add(&mut self, map: &Map, entry: Entry, part: Part) {
        if !entry.is_scattered() && part.mask() & !entry.mask() == 0 {
            let place = Place { cluster: entry.value(), offset: part.offset };
            return self.push(Some(place), part.at, part.bytes);
        }
        for block in part.blocks() {
            let cluster = map.cluster_of(entry, block.offset / BLOCK_BYTES);
            let place = (cluster != 0).then_some(Place { cluster, offset: block.offset });
            self.push(place, block.at, block.bytes);
        }
    }

    /// Adds a piece, to the last one if it goes on there.
    #[inline]
    pub(crate) fn push(&mut self, place: Option<Place>, at: u32, bytes: u32) {
        if let Some(last) = self.0.last_mut() {
            let goes_on = match (last.place, place) {
                (None, None) => true,
                (Some(last_place), Some(place)) => {
                    last_place.device() == place.device()
                        && last_place.byte() + u64::from(last.bytes) == place.byte()
                }
                _ => false,
            };
            if goes_on && last.at + last.bytes == at {
                last.bytes += bytes;
                return;
            }
        }
        self.0.push(Piece { place, at, bytes });
    }
}

/// The part of an I/O that one entry maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Index of the entry in the volume.
    pub entry: u32,
    /// First byte in the cluster.
    pub offset: u32,
    pub bytes: u32,
    /// Where it is in the I/O's buffer.
    pub at: u32,
}

impl Part {
    /// The blocks that it touches.
    #[inline]
    pub(crate) fn mask(self) -> u16 {
        let first = self.offset / BLOCK_BYTES;
        let last = (self.offset + self.bytes - 1) / BLOCK_BYTES;
        let upto = |block: u32| ((1u32 << block) - 1) as u16;
        upto(last + 1) & !upto(first)
    }

    /// It lies within one block.
    #[inline]
    pub(crate) fn is_one_block(self) -> bool {
        self.offset % BLOCK_BYTES + self.bytes <= BLOCK_BYTES
    }

    /// Block by block.
    #[inline]
    pub(crate) fn blocks(self) -> impl Iterator<Item = Part> {
        let end = self.offset + self.bytes;
        let mut offset = self.offset;
        std::iter::from_fn(move || {
            if offset == end {
                return None;
            }
            let next = (offset / BLOCK_BYTES + 1) * BLOCK_BYTES;
            let bytes = next.min(end) - offset;
            let part = Part { offset, bytes, at: self.at + (offset - self.offset), ..self };
            offset += bytes;
            Some(part)
        })
    }

    /// The first block is not written from its start, or the last not to its end.
    pub(crate) fn is_partial(self) -> bool {
        !self.offset.is_multiple_of(BLOCK_BYTES)
            || !(self.offset + self.bytes).is_multiple_of(BLOCK_BYTES)
    }
}

/// Entry by entry.
#[inline]
pub(crate) fn parts(start: u64, bytes: u32) -> impl Iterator<Item = Part> {
    let end = start + u64::from(bytes);
    let mut byte = start;
    std::iter::from_fn(move || {
        if byte == end {
            return None;
        }
        let offset = (byte % u64::from(CLUSTER_BYTES)) as u32;
        let left = end - byte;
        let bytes = u64::from(CLUSTER_BYTES - offset).min(left) as u32;
        let entry = (byte / u64::from(CLUSTER_BYTES)) as u32;
        let part = Part { entry, offset, bytes, at: (byte - start) as u32 };
        byte += u64::from(bytes);
        Some(part)
    })
}
