//! The one error type of this crate.

use std::path::PathBuf;

use nix::errno::Errno;
use thiserror::Error;

use crate::pci::Bdf;

/// Why a device was not found, taken, opened or given back.
#[derive(Debug, Error)]
pub enum VfioError {
    /// Text that is no PCI address.
    #[error("{text:?} is not a PCI address; write it like 0000:3b:00.0 (`forebay device list`)")]
    BadBdf {
        /// The text.
        text: String,
    },
    /// No PCI function has the address.
    #[error("there is no PCI device {bdf}; `forebay device list` shows the NVMe controllers")]
    NoDevice {
        /// The address.
        bdf: Bdf,
    },
    /// The function is something else.
    #[error("{bdf} is not an NVMe controller: its class is {class:#08x}, not 0x0108xx")]
    NotNvme {
        /// The address.
        bdf: Bdf,
        /// Its PCI class.
        class: u32,
    },
    /// Another driver has it.
    #[error("{bdf} is driven by {driver}; only nvme and vfio-pci are ever unbound")]
    OtherDriver {
        /// The address.
        bdf: Bdf,
        /// The driver.
        driver: String,
    },
    /// No IOMMU isolates the device.
    #[error(
        "{bdf} has no IOMMU group: enable the IOMMU in the firmware (VT-d, AMD-Vi) and boot with \
         intel_iommu=on on Intel machines"
    )]
    NoIommu {
        /// The address.
        bdf: Bdf,
    },
    /// The IOMMU cannot keep the device apart from others.
    #[error(
        "IOMMU group {group} of {bdf} also holds {others}: they would all have to leave the \
         kernel; move the SSD to a slot of its own or enable ACS in the firmware",
        others = others.join(", ")
    )]
    SharedGroup {
        /// The address.
        bdf: Bdf,
        /// The group.
        group: u32,
        /// The other devices.
        others: Vec<String>,
    },
    /// Somebody uses it. Nothing overrides this.
    #[error("{bdf} is in use: {}; end that use first (this cannot be forced)", uses.join(", "))]
    InUse {
        /// The address.
        bdf: Bdf,
        /// What uses it.
        uses: Vec<String>,
    },
    /// It bears data.
    #[error(
        "{bdf} bears data: {}; it would be at risk: use --force if it may be lost",
        found.join(", ")
    )]
    BearsData {
        /// The address.
        bdf: Bdf,
        /// What was found.
        found: Vec<String>,
    },
    /// What it bears cannot be found out.
    #[error("what is on {bdf} cannot be told ({reason}); use --force if it may be lost")]
    ContentsUnknown {
        /// The address.
        bdf: Bdf,
        /// Why.
        reason: String,
    },
    /// The kernel's vfio-pci driver is missing.
    #[error("the kernel has no vfio-pci driver: modprobe vfio-pci{}", if_any(.reason))]
    NoVfioPci {
        /// What modprobe said.
        reason: String,
    },
    /// The driver that should have taken the device did not.
    #[error("{driver} did not take {bdf}; the kernel log (dmesg) says why")]
    NotTaken {
        /// The address.
        bdf: Bdf,
        /// The driver.
        driver: &'static str,
    },
    /// The device is not with vfio-pci.
    #[error("{bdf} is not bound to vfio-pci: forebay device bind {bdf}")]
    NotBound {
        /// The address.
        bdf: Bdf,
    },
    /// A file of sysfs, procfs or devfs.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// /dev/vfio/vfio or a group cannot be opened.
    #[error("opening VFIO for {what}: {reason}; it needs root, `modprobe vfio-pci`, and an IOMMU")]
    Open {
        /// The container or the device.
        what: String,
        /// The reason.
        reason: String,
    },
    /// The IOMMU does not take the arena.
    #[error("mapping {bytes} bytes of DMA memory into the IOMMU: {errno}")]
    Map {
        /// Size of the arena.
        bytes: usize,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The process may not lock as much memory.
    #[error(
        "{bytes} bytes of DMA memory, which count once for each open SSD, would make \
         {wanted_bytes} bytes of locked memory; the limit is {limit_bytes} bytes: raise it with \
         `ulimit -l unlimited` or LimitMEMLOCK=infinity"
    )]
    LockedMemory {
        /// Size of the arena.
        bytes: usize,
        /// What the process would have locked.
        wanted_bytes: u64,
        /// What it may.
        limit_bytes: u64,
    },
    /// The IOMMU keeps the arena.
    #[error("{bdf}: taking DMA memory out of the IOMMU: {reason}")]
    Unmap {
        /// The address.
        bdf: Bdf,
        /// The reason.
        reason: String,
    },
    /// Nobody answers at the address.
    #[error("{bdf} does not answer in configuration space: it is off the bus")]
    OffTheBus {
        /// The address.
        bdf: Bdf,
    },
    /// The register window is missing or too small.
    #[error("BAR 0 of {bdf} has {bytes} bytes, at least {wanted} wanted: not a usable controller")]
    Bar {
        /// The address.
        bdf: Bdf,
        /// Size found.
        bytes: u64,
        /// Size wanted.
        wanted: u64,
    },
    /// A call on an open device.
    #[error("{bdf}: {call}: {errno}")]
    Call {
        /// The address.
        bdf: Bdf,
        /// The call.
        call: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The command register did not take a value.
    #[error("{bdf}: bus mastering reads {got} after {wanted} was written")]
    BusMaster {
        /// The address.
        bdf: Bdf,
        /// What was written.
        wanted: bool,
        /// What it reads.
        got: bool,
    },
}

fn if_any(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}
