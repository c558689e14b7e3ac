//! Opening a controller: its IOMMU address space with the arena in it, its registers.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dma::Arena;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use tempfile::TempDir;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError as IoctlError, VfioOps};

use crate::device::{Device, Opened};
use crate::error::VfioError;
use crate::pci::{Bdf, System};

/// Where an open device's entry is kept: only root writes there, and nothing is removed by its age.
const RUN: &str = "/run";

impl Device {
    /// Opens a controller that is bound to vfio-pci; bus mastering is off.
    ///
    /// Each device has an IOMMU address space of its own, with all of `arena` in it from here until
    /// it is closed (docs/decisions/0008).
    ///
    /// # Errors
    /// It is not bound, not isolated, held by another process, or the arena cannot be mapped.
    pub fn open(bdf: Bdf, arena: &'static Arena) -> Result<Self, VfioError> {
        let controller = System::default().controller(bdf)?;
        if controller.driver.as_deref() != Some("vfio-pci") {
            return Err(VfioError::NotBound { bdf });
        }
        let group = controller.iommu_group.ok_or(VfioError::NoIommu { bdf })?;
        let entry = SysfsEntry::new(Path::new(RUN), bdf, group)?;
        let refused =
            |what| move |error: IoctlError| VfioError::Open { what, reason: error.to_string() };
        let container = VfioContainer::new(None).map_err(refused("/dev/vfio/vfio".to_owned()))?;
        let container = Arc::new(container);
        let ops: Arc<dyn VfioOps> = Arc::clone(&container) as Arc<dyn VfioOps>;
        let vfio = VfioDevice::new(&entry.path, ops, false).map_err(refused(bdf.to_string()))?;
        let opened = Opened::new(vfio, entry);
        // Not earlier: the kernel gives a container its IOMMU with the first device.
        map_arena(&container, arena)?;
        Self::new((bdf, controller.vendor, controller.device), opened, container, arena)
    }
}

fn map_arena(container: &VfioContainer, arena: &'static Arena) -> Result<(), VfioError> {
    let (iova, bytes) = (arena.iova(), arena.bytes());
    // SAFETY: the arena is never unmapped and no reference to its bytes exists (crate `dma`).
    let result = unsafe { container.vfio_dma_map(iova, bytes, arena.as_ptr()) };
    let errno = match result {
        Ok(()) => return Ok(()),
        Err(IoctlError::IommuDmaMap(error)) => Errno::from_raw(error.errno()),
        Err(_) => Errno::UnknownErrno,
    };
    // Every open SSD counts the whole arena once more.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let wanted_bytes = locked_bytes(&status) + bytes as u64;
    let limit_bytes = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(u64::MAX, |(soft, _)| soft);
    Err(if errno == Errno::ENOMEM && wanted_bytes > limit_bytes {
        VfioError::LockedMemory { bytes, wanted_bytes, limit_bytes }
    } else {
        VfioError::Map { bytes, errno }
    })
}

/// What the process has locked, by /proc/self/status.
fn locked_bytes(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// What vfio-ioctls reads of a device's folder in sysfs, the link to its IOMMU group, in a folder
/// of our own.
///
/// It reads the link once more after it has closed the device, and panics without it. By then the
/// kernel may have removed the folder in sysfs: a removal waits for nothing but that closing.
#[derive(Debug)]
pub(crate) struct SysfsEntry {
    path: PathBuf,
    _folder: TempDir,
}

impl SysfsEntry {
    /// Makes a folder below `base`, with the link in it.
    fn new(base: &Path, bdf: Bdf, group: u32) -> Result<Self, VfioError> {
        let folder = tempfile::Builder::new().prefix("forebay-vfio-").tempdir_in(base);
        let failed = |action, path: PathBuf| move |source| VfioError::File { action, path, source };
        let folder = folder.map_err(failed("making a folder in", base.to_owned()))?;
        // The kernel is asked for the device by the last part of the path.
        let path = folder.path().join(bdf.to_string());
        let link = path.join("iommu_group");
        std::fs::create_dir(&path).map_err(failed("making", path.clone()))?;
        symlink(group.to_string(), &link).map_err(failed("making", link.clone()))?;
        Ok(Self { path, _folder: folder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_memory_is_found() {
        let status = "VmPeak:\t  100 kB\nVmLck:\t   2048 kB\nVmPin:\t 1 kB\n";
        assert_eq!(locked_bytes(status), 2 << 20);
        assert_eq!(locked_bytes(""), 0);
    }

    #[test]
    fn the_entry_names_device_and_group_and_goes_when_dropped() {
        let bdf: Bdf = "0000:3b:00.0".parse().unwrap();
        let base = tempfile::tempdir().unwrap();
        let entry = SysfsEntry::new(base.path(), bdf, 17).unwrap();
        assert!(entry.path.starts_with(base.path()) && entry.path.ends_with("0000:3b:00.0"));
        let group = entry.path.join("iommu_group").read_link().unwrap();
        assert_eq!(group.file_name().unwrap(), "17");
        drop(entry);
        assert_eq!(base.path().read_dir().unwrap().count(), 0);
    }
}
