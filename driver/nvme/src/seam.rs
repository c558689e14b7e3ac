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

    /// Lets the function access memory, or keeps it from doing so; done when it returns. One that
    /// is off the bus is kept from it.
    ///
    /// # Errors
    /// It did not take, or nobody knows.
    fn set_bus_master(&self, on: bool) -> Result<(), SeamError>;

    /// Begins to reset the function, which may take a minute. Until [`PciDevice::poll_reset`] has
    /// told the outcome nothing else of the function is touched.
    ///
    /// # Errors
    /// It could not begin.
    fn begin_reset(&self) -> Result<(), SeamError>;

    /// The outcome of the reset that was begun, once; `None` while it lasts. Bus mastering is off
    /// afterwards.
    fn poll_reset(&self) -> Option<Result<(), SeamError>>;

    /// Takes the arena out of the function's reach, for good; done when it returns.
    ///
    /// # Errors
    /// It did not take.
    fn unmap_arena(&self) -> Result<(), SeamError>;

    /// Whether the kernel has asked for the device since the last call.
    fn take_removal_request(&self) -> bool;
}

/// The hardware, or the kernel, did not do what it was told.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SeamError(pub String);

impl From<vfio::VfioError> for SeamError {
    fn from(error: vfio::VfioError) -> Self {
        Self(error.to_string())
    }
}

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
        Ok(vfio::Device::set_bus_master(self, on)?)
    }

    fn begin_reset(&self) -> Result<(), SeamError> {
        Ok(vfio::Device::begin_reset(self)?)
    }

    fn poll_reset(&self) -> Option<Result<(), SeamError>> {
        Some(vfio::Device::poll_reset(self)?.map_err(SeamError::from))
    }

    fn unmap_arena(&self) -> Result<(), SeamError> {
        Ok(vfio::Device::unmap_arena(self)?)
    }

    fn take_removal_request(&self) -> bool {
        vfio::Device::take_removal_request(self)
    }
}
