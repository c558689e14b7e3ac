//! Memory for tables that are large and read at random.

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use zerocopy::FromZeros;

use crate::arena::ArenaError;

/// A slice of values that begin as zero bytes, in ordinary memory of its own. The system is asked
/// for large pages, so that a load from anywhere in it seldom waits for a translation of its
/// address too. It takes memory where it was written, by pages of either size.
#[derive(Debug)]
pub struct ZeroedSlice<T> {
    base: NonNull<T>,
    count: usize,
    owns: PhantomData<T>,
}

// SAFETY: it owns its values as a boxed slice does.
unsafe impl<T: Send> Send for ZeroedSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for ZeroedSlice<T> {}

impl<T: FromZeros> ZeroedSlice<T> {
    /// Reserves address space for `count` values.
    ///
    /// # Errors
    /// The kernel refuses, or that is no number of bytes, or none.
    pub fn new(count: usize) -> Result<Self, ArenaError> {
        const { assert!(!std::mem::needs_drop::<T>() && align_of::<T>() <= 4096) };
        let bytes = count.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= isize::MAX as usize);
        let bytes = bytes.unwrap_or(usize::MAX);
        let length = NonZeroUsize::new(bytes).ok_or(ArenaError::Size { bytes })?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(None, length, protection, flags) }
            .map_err(|errno| ArenaError::Map { bytes, errno })?;
        // SAFETY: all of the mapping that was just made. A kernel that has no large pages says so,
        // and then there are small ones.
        let _ = unsafe { madvise(base, bytes, MmapAdvise::MADV_HUGEPAGE) };
        Ok(Self { base: base.cast(), count, owns: PhantomData })
    }
}

impl<T> Deref for ZeroedSlice<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `count` values of `T`, for which zero bytes stand, at an address aligned to a
        // page; the mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

impl<T> Drop for ZeroedSlice<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and who borrowed from it borrowed `self`.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.count * size_of::<T>()) } {
            debug_assert!(false, "unmapping a table: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn values_are_zero_until_they_are_written_and_keep_what_was_written() {
        let count = (8 << 20) / size_of::<AtomicU64>() + 1;
        let slice = ZeroedSlice::<AtomicU64>::new(count).unwrap();
        assert_eq!(slice.len(), count);
        for (index, value) in slice.iter().enumerate().step_by(511) {
            assert_eq!(value.load(Ordering::Relaxed), 0);
            value.store(index as u64, Ordering::Relaxed);
        }
        let right = |index: usize| if index.is_multiple_of(511) { index as u64 } else { 0 };
        let mut values = slice.iter().enumerate();
        assert!(values.all(|(index, value)| value.load(Ordering::Relaxed) == right(index)));
    }

    #[test]
    fn a_size_that_cannot_be_is_refused() {
        assert!(matches!(ZeroedSlice::<u64>::new(0), Err(ArenaError::Size { bytes: 0 })));
        for count in [usize::MAX, usize::MAX / 8, 1 << 60] {
            assert!(matches!(ZeroedSlice::<u64>::new(count), Err(ArenaError::Map { .. })));
        }
    }
}
