//! One open PCI function.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{Ordering, fence};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
};
use vfio_ioctls::VfioDevice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::VfioError;
use crate::open::SysfsEntry;
use crate::pci::Bdf;

/// Registers, then the doorbells of the admin queue.
const MIN_BAR_BYTES: u64 = 0x1008;
/// Offset of the command register in configuration space, and its bus master and memory bits.
const PCI_COMMAND: u64 = 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;

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
    /// Raised by the kernel when it wants the device back.
    request: Option<EventFd>,
    /// One writer at a time for configuration space, where changing a bit takes two accesses.
    inner: Mutex<VfioDevice>,
    /// What `inner` reads when it is dropped: after it in this list, so that it is dropped later.
    _entry: SysfsEntry,
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
    pub(crate) fn new(
        bdf: Bdf,
        vendor: u16,
        device: u16,
        inner: VfioDevice,
        entry: SysfsEntry,
    ) -> Result<Self, VfioError> {
        let bytes = inner.get_region_size(VFIO_PCI_BAR0_REGION_INDEX);
        let usable = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
        let (Some(length), true) = (usable, bytes >= MIN_BAR_BYTES) else {
            return Err(VfioError::Bar { bdf, bytes, wanted: MIN_BAR_BYTES });
        };
        let call = |call| move |errno| VfioError::Call { bdf, call, errno };
        let offset = inner.get_region_offset(VFIO_PCI_BAR0_REGION_INDEX);
        let offset = i64::try_from(offset).map_err(|_| call("BAR 0 offset")(Errno::EOVERFLOW))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the descriptor belongs to `inner`, which outlives this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(inner.as_raw_fd()) };
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let bar = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, fd, offset) }
            .map_err(call("mmap of BAR 0"))?;
        let request = request_eventfd(&inner);
        if request.is_none() {
            tracing::warn!(%bdf, "no removal requests from the kernel: hot-unplug will wait");
        }
        let device = Self {
            bdf,
            vendor,
            device,
            bar: bar.cast(),
            bar_bytes: length.get(),
            request,
            inner: Mutex::new(inner),
            _entry: entry,
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

    /// Lets the function read and write memory, or keeps it from doing so.
    ///
    /// # Errors
    /// The bit does not read back as it was written.
    pub fn set_bus_master(&self, on: bool) -> Result<(), VfioError> {
        let inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let read = || {
            let mut bytes = [0; 2];
            inner.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut bytes, PCI_COMMAND);
            u16::from_le_bytes(bytes)
        };
        let old = read() | COMMAND_MEMORY;
        let new = if on { old | COMMAND_BUS_MASTER } else { old & !COMMAND_BUS_MASTER };
        inner.region_write(VFIO_PCI_CONFIG_REGION_INDEX, &new.to_le_bytes(), PCI_COMMAND);
        let got = read() & COMMAND_BUS_MASTER != 0;
        let bdf = self.bdf;
        if got == on { Ok(()) } else { Err(VfioError::BusMaster { bdf, wanted: on, got }) }
    }

    /// Resets the function by whichever way the kernel has for it. Bus mastering is off afterwards.
    ///
    /// # Errors
    /// The function has no reset, or it failed.
    pub fn reset(&self) -> Result<(), VfioError> {
        {
            let inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // SAFETY: the descriptor is open and the request takes no argument.
            unsafe { ioctl::device_reset(inner.as_raw_fd()) }.map_err(|errno| VfioError::Call {
                bdf: self.bdf,
                call: "VFIO_DEVICE_RESET",
                errno,
            })?;
        }
        self.set_bus_master(false)
    }

    /// Whether the kernel has asked for the device since the last call: it is to be unplugged or
    /// unbound, and waits until everything of it is closed.
    pub fn take_removal_request(&self) -> bool {
        self.request.as_ref().is_some_and(|event| event.read().is_ok_and(|count| count > 0))
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
        if let Err(error) = self.set_bus_master(false) {
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
