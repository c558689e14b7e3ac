//! Memory that pretends to be a disk.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::arena::ArenaError;
use crate::span::{DmaSpan, count_copy};

/// A run of ordinary memory that several cores read and write by copying from and to the arena, as
/// if it were a device: bytes that nobody has written are zero and take no memory.
///
/// Two copies that touch the same bytes at the same time leave a mixture, as a device would.
/// Offsets beyond the end assert; whoever takes them from outside checks first.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the bytes are only copied through raw pointers; no reference to them exists, and no value
// in them is trusted.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves `bytes` of address space, all zero.
    ///
    /// # Errors
    /// The kernel refuses, or `bytes` is zero.
    pub fn new(bytes: usize) -> Result<Self, ArenaError> {
        let length = NonZeroUsize::new(bytes).ok_or(ArenaError::Size { bytes })?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(None, length, protection, flags) }
            .map_err(|errno| ArenaError::Map { bytes, errno })?;
        Ok(Self { base: base.cast(), bytes })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Fills `to` with the bytes from `offset`.
    #[inline]
    pub fn read(&self, offset: usize, to: DmaSpan) {
        let from = self.at(offset, to.len() as usize);
        count_copy(to.len() as usize);
        // SAFETY: both runs are in bounds and of different mappings.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_ptr(), to.len() as usize) };
    }

    /// Puts the bytes of `from` at `offset`.
    #[inline]
    pub fn write(&self, offset: usize, from: DmaSpan) {
        let to = self.at(offset, from.len() as usize);
        count_copy(from.len() as usize);
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len() as usize) };
    }

    /// Whether the bytes from `offset` are those of `other`.
    pub fn equals(&self, offset: usize, other: DmaSpan) -> bool {
        let (mut mine, mut theirs) = ([0; 512], [0; 512]);
        let mut done = 0;
        while done < other.len() {
            let count = (other.len() - done).min(512);
            let part = count as usize;
            let from = self.at(offset + done as usize, part);
            // SAFETY: `from` is in bounds for as many bytes; the array is ours.
            unsafe { std::ptr::copy_nonoverlapping(from, mine.as_mut_ptr(), part) };
            other.read(done, &mut theirs[..part]);
            if mine[..part] != theirs[..part] {
                return false;
            }
            done += count;
        }
        true
    }

    /// Makes `bytes` from `offset` zero and gives whole pages of them back to the system.
    pub fn deallocate(&self, offset: usize, bytes: usize) {
        let start = self.at(offset, bytes);
        let pages = offset.next_multiple_of(4096)..(offset + bytes) / 4096 * 4096;
        // A call for less than a few pages costs more than it frees.
        if pages.len() < 64 * 1024 {
            // SAFETY: in bounds.
            unsafe { std::ptr::write_bytes(start, 0, bytes) };
            return;
        }
        let (head, tail) = (pages.start - offset, offset + bytes - pages.end);
        // SAFETY: in bounds: the head and tail lie within the range that was checked.
        unsafe {
            std::ptr::write_bytes(start, 0, head);
            std::ptr::write_bytes(start.add(bytes - tail), 0, tail);
        }
        // SAFETY: whole pages of this mapping, which is anonymous and private: they read as zeroes
        // afterwards.
        let advised = unsafe {
            let first = self.base.add(pages.start).cast();
            madvise(first, pages.len(), MmapAdvise::MADV_DONTNEED)
        };
        if advised.is_err() {
            // SAFETY: in bounds, as above.
            unsafe { std::ptr::write_bytes(self.base.add(pages.start).as_ptr(), 0, pages.len()) };
        }
    }

    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.bytes), "{len} bytes at {offset} of a region");
        // SAFETY: in bounds by the check.
        unsafe { self.base.add(offset).as_ptr() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it: bytes are only ever copied.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.bytes) } {
            debug_assert!(false, "unmapping a region: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arena;

    #[test]
    fn deallocated_bytes_are_zero_and_their_neighbours_are_not() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let span = arena.carve(512 << 10, 4096).unwrap();
        let region = Region::new(1 << 20).unwrap();
        span.fill(7);
        region.write(0, span);
        assert!(region.equals(0, span));
        for (offset, bytes) in [(5000, 300_000), (400_000, 100)] {
            region.deallocate(offset, bytes);
            let back = span.subspan(0, bytes as u32);
            region.read(offset, back);
            let mut copy = vec![1; bytes];
            back.read(0, &mut copy);
            assert!(copy.iter().all(|&byte| byte == 0));
            for neighbour in [offset - 1, offset + bytes] {
                let one = span.subspan(0, 1);
                region.read(neighbour, one);
                assert_eq!(one.read_obj::<u8>(0), 7);
            }
            span.fill(7);
        }
    }
}
