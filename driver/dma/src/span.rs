//! A run of bytes in the arena, by all its addresses.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use zerocopy::{FromBytes, IntoBytes};

thread_local! {
    static COPIED_BYTES: Cell<u64> = const { Cell::new(0) };
}

/// Bytes of data that the calling thread has moved in or out of the arena so far, by
/// [`DmaSpan::read`], [`DmaSpan::write`], [`DmaSpan::copy_from`], [`DmaSpan::fill`] and
/// [`Region`](crate::Region). Fields of commands and completions are no data: `read_obj`,
/// `write_obj` and `clear` do not count.
pub fn copied_bytes() -> u64 {
    COPIED_BYTES.get()
}

/// Counts bytes that the CPU moves rather than a device.
#[inline]
pub(crate) fn count_copy(bytes: usize) {
    COPIED_BYTES.set(COPIED_BYTES.get() + bytes as u64);
}

/// A run of bytes in the arena: where the CPU finds it, and where a device does.
///
/// Fields are private and every span comes from an [`Arena`](crate::Arena) or from a larger span,
/// so a span always names memory that lives as long as the process. Accesses beyond its end are a
/// programmer's error and assert; whoever computes an offset from outside input checks it first.
#[derive(Clone, Copy, Debug)]
pub struct DmaSpan {
    addr: NonNull<u8>,
    iova: u64,
    len: u32,
}

// SAFETY: a span is an address of process-lifetime memory that is only ever copied in and out
// through raw pointers; no reference to the bytes exists. Threads that race on the same bytes see
// what a device racing with them would make them see: mixed old and new bytes, nothing worse.
unsafe impl Send for DmaSpan {}
// SAFETY: as above.
unsafe impl Sync for DmaSpan {}

impl DmaSpan {
    /// `addr..addr + len` must lie in an arena and `iova` must be the device's address of `addr`.
    pub(crate) fn new(addr: NonNull<u8>, iova: u64, len: u32) -> Self {
        Self { addr, iova, len }
    }

    /// I/O virtual address: what an NVMe controller behind the IOMMU uses.
    #[inline]
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Virtual address: what an RDMA device (which the kernel lets translate) and io_uring use.
    #[inline]
    pub fn addr(&self) -> u64 {
        self.addr.as_ptr() as u64
    }

    /// The first byte, for the crates that hand memory to the kernel.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.addr.as_ptr()
    }

    /// Length in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // a span is never empty by construction of its users
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The part that starts `offset` bytes in and is `len` bytes long.
    #[inline]
    pub fn subspan(&self, offset: u32, len: u32) -> DmaSpan {
        self.check(offset, len as usize);
        // SAFETY: the check above keeps the result within this span.
        let addr = unsafe { self.addr.add(offset as usize) };
        DmaSpan { addr, iova: self.iova + u64::from(offset), len }
    }

    /// Copies `bytes` to `offset`.
    #[inline]
    pub fn write(&self, offset: u32, bytes: &[u8]) {
        count_copy(bytes.len());
        self.put(offset, bytes);
    }

    /// Copies bytes from `offset` into all of `bytes`.
    #[inline]
    pub fn read(&self, offset: u32, bytes: &mut [u8]) {
        count_copy(bytes.len());
        self.get(offset, bytes);
    }

    /// Writes the bytes of `value` at `offset`.
    #[inline]
    pub fn write_obj<T: IntoBytes + zerocopy::Immutable>(&self, offset: u32, value: &T) {
        self.put(offset, value.as_bytes());
    }

    /// Reads a `T` from the bytes at `offset`.
    #[inline]
    pub fn read_obj<T: FromBytes>(&self, offset: u32) -> T {
        self.check(offset, size_of::<T>());
        // SAFETY: in bounds by the check, and any bytes are a `T`. They need not be aligned.
        unsafe { self.addr.add(offset as usize).cast::<T>().read_unaligned() }
    }

    #[inline]
    fn put(&self, offset: u32, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: in bounds by the check; `bytes` is ordinary memory and cannot overlap the arena,
        // to which no reference exists.
        unsafe {
            let to = self.addr.add(offset as usize).as_ptr();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    #[inline]
    fn get(&self, offset: u32, bytes: &mut [u8]) {
        self.check(offset, bytes.len());
        // SAFETY: as in `put`.
        unsafe {
            let from = self.addr.add(offset as usize).as_ptr();
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len());
        }
    }

    /// Copies the first `len` bytes of `source` to the start of this span; the two may overlap.
    #[inline]
    pub fn copy_from(&self, source: DmaSpan, len: u32) {
        self.check(0, len as usize);
        source.check(0, len as usize);
        count_copy(len as usize);
        // SAFETY: both runs are in bounds by the checks; `copy` allows overlap.
        unsafe { std::ptr::copy(source.as_ptr(), self.as_ptr(), len as usize) };
    }

    /// Makes every byte zero, where queues and tables of a device are to be.
    pub fn clear(&self) {
        self.set(0);
    }

    /// Sets every byte to `value`.
    pub fn fill(&self, value: u8) {
        count_copy(self.len as usize);
        self.set(value);
    }

    fn set(&self, value: u8) {
        // SAFETY: exactly this span's bytes.
        unsafe { std::ptr::write_bytes(self.addr.as_ptr(), value, self.len as usize) };
    }

    /// Loads the little-endian 32-bit word at `offset` (a multiple of 4) that a device writes.
    /// Whatever the device wrote before that word is visible afterwards.
    #[inline]
    pub fn load_u32(&self, offset: u32) -> u32 {
        u32::from_le(self.word(offset).load(Ordering::Acquire))
    }

    /// Stores the little-endian 32-bit word at `offset` (a multiple of 4) for a device to read.
    /// Whatever was written before is visible to the device once it sees the word.
    #[inline]
    pub fn store_u32(&self, offset: u32, value: u32) {
        self.word(offset).store(value.to_le(), Ordering::Release);
    }

    /// Orders every earlier store before every later load, towards devices too: needed between
    /// writing a shadow doorbell and reading its event index.
    #[inline]
    pub fn full_barrier() {
        fence(Ordering::SeqCst);
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        self.check(offset, 4);
        assert!(offset.is_multiple_of(4) && self.iova.is_multiple_of(4), "misaligned word");
        // SAFETY: in bounds and aligned (an arena starts page-aligned for CPU and device alike);
        // arena memory is always initialized; an atomic tolerates the device's concurrent access.
        unsafe { AtomicU32::from_ptr(self.addr.add(offset as usize).as_ptr().cast()) }
    }

    #[inline]
    fn check(&self, offset: u32, len: usize) {
        assert!(
            offset as usize + len <= self.len as usize,
            "access of {len} bytes at {offset} in a span of {}",
            self.len
        );
    }
}

#[cfg(test)]
mod tests {
    use super::copied_bytes;
    use crate::{Arena, Region};

    #[test]
    fn bytes_written_are_bytes_read_and_addresses_move_together() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let span = arena.carve(8192, 4096).unwrap();
        let part = span.subspan(4096, 512);
        part.write(8, b"forebay");
        let mut back = [0; 7];
        span.read(4104, &mut back);
        assert_eq!(&back, b"forebay");
        assert_eq!(part.iova() - span.iova(), 4096);
        assert_eq!(part.addr() - span.addr(), 4096);
        span.store_u32(0, 0x0102_0304);
        assert_eq!(span.read_obj::<[u8; 4]>(0), [4, 3, 2, 1], "words are little-endian");
        assert_eq!(span.load_u32(0), 0x0102_0304);
    }

    #[test]
    fn data_that_this_thread_moved_is_counted_and_fields_are_not() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let span = arena.carve(8192, 4096).unwrap();
        let region = Region::new(8192).unwrap();
        let before = copied_bytes();
        span.write_obj(0, &7u64);
        assert_eq!(span.read_obj::<u64>(0), 7);
        span.clear();
        assert_eq!(copied_bytes(), before);
        span.write(0, &[0; 100]);
        span.read(0, &mut [0; 20]);
        span.subspan(0, 3).fill(1);
        span.copy_from(span.subspan(4096, 4096), 1000);
        region.write(0, span);
        region.read(0, span.subspan(0, 512));
        assert_eq!(copied_bytes() - before, 100 + 20 + 3 + 1000 + 8192 + 512);
        let there = std::thread::spawn(copied_bytes).join().unwrap();
        assert_eq!(there, 0, "each thread counts its own");
    }

    #[test]
    #[should_panic(expected = "access of 4 bytes at 509")]
    fn access_beyond_the_end_asserts() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        arena.carve(512, 512).unwrap().write(509, &[0; 4]);
    }
}
