//! The process's IOMMU address space.

use std::sync::Arc;

use dma::Arena;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError as IoctlError, VfioOps};

use crate::device::Device;
use crate::error::VfioError;
use crate::pci::{Bdf, System};

/// One IOMMU address space with the arena in it. A VFIO group can be in one container only, so a
/// process has one of these and shares it.
pub struct Container {
    inner: Arc<VfioContainer>,
    arena: &'static Arena,
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container").field("arena", self.arena).finish_non_exhaustive()
    }
}

impl Container {
    /// Opens VFIO. The arena is mapped with the first device: the kernel attaches an IOMMU to a
    /// container no earlier.
    ///
    /// # Errors
    /// VFIO is not there, or may not be used.
    pub fn new(arena: &'static Arena) -> Result<Self, VfioError> {
        let inner = VfioContainer::new(None).map_err(|error| VfioError::Open {
            what: "/dev/vfio/vfio".to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self { inner: Arc::new(inner), arena })
    }

    /// The arena that devices of this container reach.
    pub fn arena(&self) -> &'static Arena {
        self.arena
    }

    /// Opens a controller that is bound to vfio-pci; bus mastering is off.
    ///
    /// # Errors
    /// It is not bound, not isolated, held by another process, or the arena cannot be mapped.
    pub fn open(&self, bdf: Bdf) -> Result<Device, VfioError> {
        let system = System::default();
        let controller = system.controller(bdf)?;
        if controller.driver.as_deref() != Some("vfio-pci") {
            return Err(VfioError::NotBound { bdf });
        }
        if controller.iommu_group.is_none() {
            return Err(VfioError::NoIommu { bdf });
        }
        let ops: Arc<dyn VfioOps> = Arc::clone(&self.inner) as Arc<dyn VfioOps>;
        let inner = VfioDevice::new(&system.device_path(bdf), ops, false).map_err(|error| {
            VfioError::Open { what: bdf.to_string(), reason: error.to_string() }
        })?;
        self.map_arena()?;
        Device::new(bdf, controller.vendor, controller.device, inner)
    }

    /// The kernel drops all mappings when the last device of a container is closed, so each opening
    /// maps; that the mapping exists already is then the usual case.
    fn map_arena(&self) -> Result<(), VfioError> {
        let (iova, bytes) = (self.arena.iova(), self.arena.bytes());
        // SAFETY: the arena is never unmapped and no reference to its bytes exists (crate `dma`).
        let result = unsafe { self.inner.vfio_dma_map(iova, bytes, self.arena.as_ptr()) };
        let errno = match result {
            Ok(()) => return Ok(()),
            Err(IoctlError::IommuDmaMap(error)) => Errno::from_raw(error.errno()),
            Err(_) => Errno::UnknownErrno,
        };
        // Nothing but this function maps into this container.
        if errno == Errno::EEXIST {
            return Ok(());
        }
        let limit_bytes = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(u64::MAX, |(soft, _)| soft);
        Err(VfioError::Map { bytes, limit_bytes, errno })
    }
}
