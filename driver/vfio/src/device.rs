//! One open PCI function.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use dma::Arena;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
};
use vfio_ioctls::{VfioContainer, VfioDevice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::command::{self, BusMaster};
use crate::error::VfioError;
use crate::open::SysfsEntry;
use crate::pci::Bdf;

/// Registers, then the doorbells of the admin queue.
const MIN_BAR_BYTES: u64 = 0x1008;

mod ioctl {
    // VFIO_DEVICE_RESET: `_IO(';', 100 + 11)`, no argument.
    nix::ioctl_none_bad!(device_reset, nix::request_code_none!(b';', 111));
}

/// An open controller: its registers are mapped, its memory accesses go through the IOMMU.
pub struct Device {
    bdf: Bdf,
    vendor: u16,
    device: u16,
    bar: NonNull<u8>,
    bar_bytes: usize,
    /// Where configuration space is in the device's file.
    config_offset: i64,
    /// One at a time for configuration space, where changing a bit takes two accesses.
    config: Mutex<()>,
    /// Raised by the kernel when it wants the device back.
    request: Option<EventFd>,
    /// A function reset under way.
    reset: Mutex<Option<JoinHandle<Result<(), Errno>>>>,
    opened: Arc<Opened>,
    container: Arc<VfioContainer>,
    arena: &'static Arena,
}

/// What VFIO has of a device. When `vfio` is dropped it reads `entry` (docs/decisions/0008), which
/// therefore stands after it and goes after it, on every way out.
pub(crate) struct Opened<V = VfioDevice, E = SysfsEntry> {
    vfio: V,
    _entry: E,
}

impl<V, E> Opened<V, E> {
    pub(crate) fn new(vfio: V, entry: E) -> Self {
        Self { vfio, _entry: entry }
    }
}

impl Opened {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `vfio`, which outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.vfio.as_raw_fd()) }
    }
}

// SAFETY: `bar` is only used for volatile accesses to device registers, which any thread may make.
unsafe impl Send for Device {}
// SAFETY: as above; everything else is behind a mutex or immutable.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("bdf", &self.bdf).finish_non_exhaustive()
    }
}

impl Device {
    /// `container` has all of `arena` mapped for the device, and for no other.
    pub(crate) fn new(
        (bdf, vendor, device): (Bdf, u16, u16),
        opened: Opened,
        container: Arc<VfioContainer>,
        arena: &'static Arena,
    ) -> Result<Self, VfioError> {
        let vfio = &opened.vfio;
        let bytes = vfio.get_region_size(VFIO_PCI_BAR0_REGION_INDEX);
        let usable = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
        let (Some(length), true) = (usable, bytes >= MIN_BAR_BYTES) else {
            return Err(VfioError::Bar { bdf, bytes, wanted: MIN_BAR_BYTES });
        };
        let call = |call| move |errno| VfioError::Call { bdf, call, errno };
        let offset_of = |region, name| {
            let offset = i64::try_from(vfio.get_region_offset(region));
            offset.map_err(|_| call(name)(Errno::EOVERFLOW))
        };
        let config_offset = offset_of(VFIO_PCI_CONFIG_REGION_INDEX, "configuration space offset")?;
        let offset = offset_of(VFIO_PCI_BAR0_REGION_INDEX, "BAR 0 offset")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let (flags, fd) = (MapFlags::MAP_SHARED, opened.fd());
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let bar = unsafe { mmap(None, length, protection, flags, fd, offset) }
            .map_err(call("mmap of BAR 0"))?;
        let request = request_eventfd(vfio);
        if request.is_none() {
            tracing::warn!(%bdf, "no removal requests from the kernel: hot-unplug will wait");
        }
        let device = Self {
            bdf,
            vendor,
            device,
            bar: bar.cast(),
            bar_bytes: length.get(),
            config_offset,
            config: Mutex::new(()),
            request,
            reset: Mutex::new(None),
            opened: Arc::new(opened),
            container,
            arena,
        };
        device.set_bus_master(false)?;
        Ok(device)
    }

    /// PCI address.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// PCI vendor and device identifiers.
    pub fn ids(&self) -> (u16, u16) {
        (self.vendor, self.device)
    }

    /// Size of the register window.
    pub fn register_bytes(&self) -> usize {
        self.bar_bytes
    }

    /// Reads the 32-bit register at `offset`, a multiple of 4 within the window.
    #[inline]
    pub fn read32(&self, offset: u32) -> u32 {
        let register = self.register(offset, 4).cast::<u32>();
        // SAFETY: in bounds and aligned by `register`.
        let value = u32::from_le(unsafe { register.read_volatile() });
        // What is read from memory afterwards is at least as new as the register.
        fence(Ordering::Acquire);
        value
    }

    /// Reads the 64-bit register at `offset`, a multiple of 8 within the window.
    pub fn read64(&self, offset: u32) -> u64 {
        // In two halves, which every controller must allow (NVMe Base 2.1, section 3.1.4).
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    /// Writes the 32-bit register at `offset`, after every write to memory made before.
    #[inline]
    pub fn write32(&self, offset: u32, value: u32) {
        let register = self.register(offset, 4).cast::<u32>();
        fence(Ordering::Release);
        // SAFETY: in bounds and aligned by `register`.
        unsafe { register.write_volatile(value.to_le()) };
    }

    /// Writes the 64-bit register at `offset`, low half first.
    pub fn write64(&self, offset: u32, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }

    /// Lets the function read and write memory, or keeps it from doing so. A function that does
    /// not answer in configuration space is off the bus, and kept from it.
    ///
    /// # Errors
    /// The bit could not be written, or does not read back as it was.
    pub fn set_bus_master(&self, on: bool) -> Result<(), VfioError> {
        let bdf = self.bdf;
        let _one_at_a_time = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let got = command::set_bus_master(self.opened.fd(), self.config_offset, on)
            .map_err(self.call("the command register"))?;
        match (got, on) {
            (BusMaster::On, true) | (BusMaster::Off | BusMaster::Absent, false) => Ok(()),
            (BusMaster::Absent, true) => Err(VfioError::OffTheBus { bdf }),
            (got, wanted) => Err(VfioError::BusMaster { bdf, wanted, got: got == BusMaster::On }),
        }
    }

    /// Begins to reset the function by whichever way the kernel has for it, on a thread of its own:
    /// the kernel waits for a function that does not come back, up to a minute. Until
    /// [`Device::poll_reset`] has told the outcome nobody uses registers or configuration space:
    /// the kernel would have them wait, too.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn begin_reset(&self) -> Result<(), VfioError> {
        let opened = Arc::clone(&self.opened);
        let work = move || {
            // SAFETY: the descriptor is open and the request takes no argument.
            unsafe { ioctl::device_reset(opened.vfio.as_raw_fd()) }.map(drop)
        };
        let thread = std::thread::Builder::new().name("vfio-reset".to_owned()).spawn(work);
        let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        let thread = thread.map_err(|error| self.call("a thread for the reset")(errno(error)))?;
        *self.reset() = Some(thread);
        Ok(())
    }

    /// The outcome of the reset that was begun, once; `None` while it lasts. Bus mastering is off
    /// afterwards.
    pub fn poll_reset(&self) -> Option<Result<(), VfioError>> {
        let thread = self.reset().take_if(|thread| thread.is_finished())?;
        let outcome = thread.join().unwrap_or(Err(Errno::EIO));
        let outcome = outcome.map_err(self.call("VFIO_DEVICE_RESET"));
        Some(outcome.and_then(|()| self.set_bus_master(false)))
    }

    /// Takes the arena out of the function's IOMMU address space, for good: whatever the function
    /// still does, it reaches no memory. Time in proportion to the arena's hugepages.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unmap_arena(&self) -> Result<(), VfioError> {
        self.container
            .vfio_dma_unmap(self.arena.iova(), self.arena.bytes())
            .map_err(|error| VfioError::Unmap { bdf: self.bdf, reason: error.to_string() })
    }

    /// Whether the kernel has asked for the device since the last call: it is to be unplugged or
    /// unbound, and waits until everything of it is closed.
    pub fn take_removal_request(&self) -> bool {
        self.request.as_ref().is_some_and(|event| event.read().is_ok_and(|count| count > 0))
    }

    fn reset(&self) -> MutexGuard<'_, Option<JoinHandle<Result<(), Errno>>>> {
        self.reset.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, call: &'static str) -> impl Fn(Errno) -> VfioError {
        let bdf = self.bdf;
        move |errno| VfioError::Call { bdf, call, errno }
    }

    #[inline]
    fn register(&self, offset: u32, bytes: usize) -> *mut u8 {
        let offset = offset as usize;
        assert!(
            offset.is_multiple_of(bytes) && offset + bytes <= self.bar_bytes,
            "register {offset:#x} in a window of {:#x} bytes",
            self.bar_bytes
        );
        // SAFETY: in bounds by the check.
        unsafe { self.bar.add(offset).as_ptr() }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // During a reset it is off, and configuration space would have us wait. The thread of the
        // reset then closes the device.
        if self.reset().is_none()
            && let Err(error) = self.set_bus_master(false)
        {
            // Closing resets the function in any case.
            tracing::debug!(%error, "before closing");
        }
        // SAFETY: the mapping is ours and nothing uses it any more.
        if let Err(errno) = unsafe { munmap(self.bar.cast(), self.bar_bytes) } {
            tracing::error!(bdf = %self.bdf, %errno, "unmapping registers");
        }
    }
}

fn request_eventfd(inner: &VfioDevice) -> Option<EventFd> {
    let event = EventFd::new(EFD_NONBLOCK).ok()?;
    inner.enable_irq(VFIO_PCI_REQ_IRQ_INDEX, vec![&event]).ok()?;
    Some(event)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// Looks for a file when it is dropped, as vfio-ioctls does for the link.
    struct Reader<'a>(PathBuf, &'a AtomicBool);

    impl Drop for Reader<'_> {
        fn drop(&mut self) {
            self.1.store(self.0.exists(), Ordering::Relaxed);
        }
    }

    #[test]
    fn the_entry_outlives_what_reads_it() {
        let (folder, found) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
        let reader = Reader(folder.path().to_owned(), &found);
        drop(Opened::new(reader, folder));
        assert!(found.load(Ordering::Relaxed));
    }
}
