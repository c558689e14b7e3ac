//! NVMe controllers as PCI functions: finding them, taking them from the kernel, and reaching their
//! registers from user space.
//!
//! [`pci`] reads sysfs: which controllers there are, who drives them and what is on them. It gives
//! one to `vfio-pci` ([`pci::System::bind`]) unless that could destroy something, and gives it back
//! ([`pci::System::release`]).
//!
//! [`Device::open`] opens one: an IOMMU address space with the DMA arena in it, at the same I/O
//! virtual address for every device; mapped registers, bus mastering, function reset, and the
//! kernel's request to let the device go.
//!
//! What it does not do: interrupts (everything is polled), devices without an IOMMU, or anything
//! that is particular to NVMe registers (crate `nvme`). Registers are ordered as x86-64 orders
//! them: a register write follows every memory write before it.
#![allow(unsafe_code)]

mod command;
mod device;
mod error;
mod open;
pub mod pci;

pub use device::Device;
pub use error::VfioError;
