//! The arena: one run of memory for everything that devices touch.

use std::alloc::Layout;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use thiserror::Error;

use crate::limits::{IOVA_BASE, MAX_ARENA_BYTES, MAX_BLOCK_BYTES, MAX_SPAN_BYTES};
use crate::runs::Runs;
use crate::span::DmaSpan;

/// Why there is no arena, or no room left in it.
#[derive(Debug, Error)]
pub enum ArenaError {
    /// Fewer free hugepages than the arena wants.
    #[error(
        "{wanted} free hugepages of {page_kib} KiB wanted, {free} found; reserve them with: \
         sysctl -w vm.nr_hugepages={mend}"
    )]
    TooFewHugepages {
        /// Pages wanted.
        wanted: usize,
        /// Pages free.
        free: usize,
        /// Size of one page in KiB.
        page_kib: usize,
        /// The value for `vm.nr_hugepages` that mends it.
        mend: usize,
    },
    /// The kernel has no hugepages at all (no `Hugepagesize:` in /proc/meminfo).
    #[error("this kernel has no hugepages (no Hugepagesize in /proc/meminfo)")]
    NoHugepages,
    /// The kernel refused ordinary memory.
    #[error("mapping {bytes} bytes of memory failed: {errno}")]
    Map {
        /// Bytes asked for.
        bytes: usize,
        /// The kernel's reason.
        errno: nix::errno::Errno,
    },
    /// A size outside what an arena can be.
    #[error("an arena of {bytes} bytes is outside 1..={MAX_ARENA_BYTES}")]
    Size {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The arena has no run left that is as long as was asked for.
    #[error("{wanted} bytes of DMA memory in one run wanted; {left} of {total} left, in all runs")]
    Exhausted {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes not in use.
        left: usize,
        /// Size of the arena.
        total: usize,
    },
}

/// One run of memory at one run of I/O virtual addresses, for the life of the process.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    bytes: usize,
    /// What nobody has; every byte of it is zero.
    vacant: Mutex<Runs>,
}

// SAFETY: the base address is never written through; see `DmaSpan` for the bytes themselves.
unsafe impl Send for Arena {}
// SAFETY: as above; the one mutable field is a mutex.
unsafe impl Sync for Arena {}

impl Arena {
    /// Takes at least `bytes` of hugepages and touches each, so that nothing faults later.
    ///
    /// # Errors
    /// Too few hugepages: the error names the numbers and the command that mends it.
    pub fn hugepages(bytes: usize) -> Result<&'static Arena, ArenaError> {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let page_bytes = 1024 * meminfo_value(&meminfo, "Hugepagesize:").unwrap_or(0);
        if page_bytes == 0 {
            return Err(ArenaError::NoHugepages);
        }
        let bytes = checked_size(bytes, page_bytes)?;
        let layout =
            Layout::from_size_align(bytes, page_bytes).map_err(|_| ArenaError::Size { bytes })?;
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { hugepage_rs::alloc(layout) }).ok_or_else(|| {
            let of = |name| meminfo_value(&meminfo, name).unwrap_or(0);
            let (wanted, total) = (bytes / page_bytes, of("HugePages_Total:"));
            // Pages that others hold a reservation on count as free in meminfo, but are not ours.
            let free = of("HugePages_Free:").saturating_sub(of("HugePages_Rsvd:"));
            let mend = total + wanted.saturating_sub(free);
            ArenaError::TooFewHugepages { wanted, free, page_kib: page_bytes / 1024, mend }
        })?;
        for offset in (0..bytes).step_by(page_bytes) {
            // SAFETY: within the mapping; the kernel reserved the pages when it was made, so the
            // fault cannot fail.
            unsafe { base.add(offset).write_volatile(0) };
        }
        Ok(Self::leak(base, bytes))
    }

    /// Takes `bytes` of ordinary memory: for tests, and for machines where no SSD is driven by us
    /// (an RDMA device pins what is registered with it).
    ///
    /// # Errors
    /// The kernel refuses the memory, or the size makes no sense.
    pub fn plain_pages(bytes: usize) -> Result<&'static Arena, ArenaError> {
        let bytes = checked_size(bytes, 4096)?;
        let length = NonZeroUsize::new(bytes).ok_or(ArenaError::Size { bytes })?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }
            .map_err(|errno| ArenaError::Map { bytes, errno })?;
        Ok(Self::leak(base.cast(), bytes))
    }

    /// Takes a part of the arena: `bytes` (up to 2 GiB), all zero, aligned to `align` (a power of
    /// two up to 4 MiB) in I/O virtual addresses.
    ///
    /// # Errors
    /// [`ArenaError::Exhausted`] when the arena has no such run left.
    pub fn carve(&'static self, bytes: usize, align: usize) -> Result<DmaSpan, ArenaError> {
        assert!(align.is_power_of_two() && align <= MAX_BLOCK_BYTES);
        assert!((1..=MAX_SPAN_BYTES).contains(&bytes), "a span of {bytes} bytes");
        let mut vacant = self.vacant();
        match vacant.take(bytes, align) {
            Some(start) => Ok(self.span(start, bytes as u32)),
            None => {
                let left = vacant.bytes();
                Err(ArenaError::Exhausted { wanted: bytes, left, total: self.bytes })
            }
        }
    }

    /// Takes back a span that was carved, whole. Whoever gives it back has seen to it that no
    /// device reaches it any more, and uses no copy of it: its bytes may be another's at once.
    ///
    /// A span that is not of this arena, or that was given back already, asserts.
    pub fn give_back(&'static self, span: DmaSpan) {
        let start = span.iova().checked_sub(IOVA_BASE).map(|start| start as usize);
        let start = start.filter(|start| start + span.len() as usize <= self.bytes);
        let start = start.expect("a span of this arena");
        span.fill(0);
        self.vacant().give_back(start, span.len() as usize);
    }

    /// Bytes that nobody has.
    pub fn bytes_left(&self) -> usize {
        self.vacant().bytes()
    }

    /// Virtual address of the first byte.
    pub fn addr(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The first byte, for the crates that map or register the arena.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// I/O virtual address of the first byte, the same in every process.
    pub fn iova(&self) -> u64 {
        IOVA_BASE
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a device that is told `iova` and `len` touches; `None` where that leaves the arena.
    /// This is the view of an emulated device, which must survive whatever address it is given.
    pub fn at_iova(&'static self, iova: u64, len: u32) -> Option<DmaSpan> {
        let start = usize::try_from(iova.checked_sub(IOVA_BASE)?).ok()?;
        (start.checked_add(len as usize)? <= self.bytes).then(|| self.span(start, len))
    }

    fn span(&'static self, start: usize, len: u32) -> DmaSpan {
        debug_assert!(start + len as usize <= self.bytes);
        // SAFETY: the callers checked that the range lies within the mapping, which is never
        // unmapped: every `Arena` is leaked.
        DmaSpan::new(unsafe { self.base.add(start) }, IOVA_BASE + start as u64, len)
    }

    fn leak(base: NonNull<u8>, bytes: usize) -> &'static Arena {
        Box::leak(Box::new(Arena { base, bytes, vacant: Mutex::new(Runs::new(bytes)) }))
    }

    fn vacant(&self) -> MutexGuard<'_, Runs> {
        self.vacant.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn checked_size(bytes: usize, page_bytes: usize) -> Result<usize, ArenaError> {
    if bytes == 0 || bytes > MAX_ARENA_BYTES {
        return Err(ArenaError::Size { bytes });
    }
    Ok(bytes.next_multiple_of(page_bytes))
}

fn meminfo_value(meminfo: &str, name: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carved_spans_are_aligned_and_apart() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let first = arena.carve(100, 64).unwrap();
        let second = arena.carve(4096, 4096).unwrap();
        assert_eq!(second.iova() % 4096, 0);
        assert!(second.iova() >= first.iova() + 100);
        let left = arena.bytes_left();
        let error = arena.carve(1 << 20, 64).unwrap_err();
        assert!(matches!(error, ArenaError::Exhausted { total: 1_048_576, .. }), "{error}");
        assert_eq!(arena.bytes_left(), left, "a refused carve takes nothing");
    }

    #[test]
    fn what_is_given_back_is_zero_when_it_is_carved_again() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let spans = [arena.carve(1 << 19, 4096).unwrap(), arena.carve(1 << 19, 4096).unwrap()];
        spans.iter().for_each(|span| span.fill(7));
        assert_eq!(arena.bytes_left(), 0);
        spans.iter().for_each(|&span| arena.give_back(span));
        let whole = arena.carve(1 << 20, 4096).unwrap();
        let mut bytes = vec![1; 1 << 20];
        whole.read(0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 0));
    }

    #[test]
    #[should_panic(expected = "is vacant already")]
    fn giving_back_twice_asserts() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let span = arena.carve(4096, 4096).unwrap();
        arena.give_back(span);
        arena.give_back(span);
    }

    #[test]
    fn a_device_reaches_the_arena_and_nothing_else() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let span = arena.carve(4096, 4096).unwrap();
        span.write(0, b"seen");
        assert_eq!(arena.at_iova(span.iova(), 4).unwrap().read_obj::<[u8; 4]>(0), *b"seen");
        assert!(arena.at_iova(IOVA_BASE - 1, 1).is_none());
        assert!(arena.at_iova(IOVA_BASE + (1 << 20) - 1, 2).is_none());
        assert!(arena.at_iova(u64::MAX, u32::MAX).is_none());
    }

    #[test]
    fn too_many_hugepages_wanted_names_the_command_that_mends_it() {
        match Arena::hugepages(MAX_ARENA_BYTES) {
            Err(ArenaError::TooFewHugepages { wanted, free, mend, .. }) => {
                assert!(wanted > free && mend >= wanted);
            }
            Err(ArenaError::NoHugepages) => {}
            other => panic!("256 GiB of hugepages cannot be had here: {other:?}"),
        }
    }
}
