//! The seam between driver and hardware.

use thiserror::Error;

/// A PCI function with a register window. The methods may be called from any thread; those that
/// touch a register do so before they return, after every write to memory made before.
pub trait PciDevice: Send + Sync + 'static {
    /// Name for messages: the PCI address.
    fn name(&self) -> String;
    /// PCI vendor and device identifiers.
    fn ids(&self) -> (u16, u16);
    /// Size of the register window in bytes.
    fn register_bytes(&self) -> usize;
    /// Reads a 32-bit register.
    fn read32(&self, offset: u32) -> u32;
    /// Writes a 32-bit register.
    fn write32(&self, offset: u32, value: u32);

    /// Reads a 64-bit register, in halves.
    fn read64(&self, offset: u32) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    /// Writes a 64-bit register, low half first.
    fn write64(&self, offset: u32, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }

    /// Lets the function access memory, or keeps it from doing so; done when it returns.
    ///
    /// # Errors
    /// It did not take.
    fn set_bus_master(&self, on: bool) -> Result<(), SeamError>;

    /// Resets the function; bus mastering is off afterwards.
    ///
    /// # Errors
    /// There is no reset, or it failed.
    fn reset(&self) -> Result<(), SeamError>;

    /// Whether the kernel has asked for the device since the last call.
    fn take_removal_request(&self) -> bool;
}

/// The hardware, or the kernel, did not do what it was told.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SeamError(pub String);

impl PciDevice for vfio::Device {
    fn name(&self) -> String {
        self.bdf().to_string()
    }

    fn ids(&self) -> (u16, u16) {
        vfio::Device::ids(self)
    }

    fn register_bytes(&self) -> usize {
        vfio::Device::register_bytes(self)
    }

    #[inline]
    fn read32(&self, offset: u32) -> u32 {
        vfio::Device::read32(self, offset)
    }

    #[inline]
    fn write32(&self, offset: u32, value: u32) {
        vfio::Device::write32(self, offset, value);
    }

    fn set_bus_master(&self, on: bool) -> Result<(), SeamError> {
        vfio::Device::set_bus_master(self, on).map_err(|error| SeamError(error.to_string()))
    }

    fn reset(&self) -> Result<(), SeamError> {
        vfio::Device::reset(self).map_err(|error| SeamError(error.to_string()))
    }

    fn take_removal_request(&self) -> bool {
        vfio::Device::take_removal_request(self)
    }
}
