//! Protection domains, registered memory and memory windows.

use std::ptr::NonNull;
use std::sync::Arc;

use dma::Arena;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use rdma_sys::{
    ibv_access_flags, ibv_alloc_mw, ibv_alloc_pd, ibv_dealloc_mw, ibv_dealloc_pd, ibv_dereg_mr,
    ibv_inc_rkey, ibv_mr, ibv_mw, ibv_mw_type, ibv_pd, ibv_reg_mr,
};

use crate::device::Device;
use crate::error::VerbsError;

/// A protection domain: QPs reach only memory registered in their own.
#[derive(Clone, Debug)]
pub struct Pd {
    inner: Arc<PdInner>,
}

#[derive(Debug)]
struct PdInner {
    raw: NonNull<ibv_pd>,
    device: Device,
}

/// The arena, registered with a device. Clones are the same registration.
#[derive(Clone, Debug)]
pub struct Mr {
    inner: Arc<MrInner>,
}

#[derive(Debug)]
struct MrInner {
    raw: NonNull<ibv_mr>,
    range: Range,
    access: Access,
    pd: Pd,
}

/// What the peer may do with registered memory, besides what its SENDs do. The default is nothing:
/// only this side moves bytes, which is what a target wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// RDMA READs of the peer are served.
    pub remote_read: bool,
    /// RDMA WRITEs of the peer are served.
    pub remote_write: bool,
    /// Memory windows may be bound.
    pub bind: bool,
}

/// A run of registered memory that a work request moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sge {
    /// Virtual address of the first byte.
    pub addr: u64,
    /// Number of bytes, at least one.
    pub len: u32,
}

/// A memory window of type 2: an rkey of its own for a part of a registration, which the peer can
/// invalidate with its last SEND. It belongs to a [`RdmaQp`](crate::RdmaQp).
#[derive(Debug)]
pub(crate) struct MemoryWindow {
    raw: NonNull<ibv_mw>,
    /// Held so that it outlives the window.
    _mr: Mr,
}

/// The addresses of a registration, and the check that keeps the device inside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    pub(crate) lkey: u32,
}

// SAFETY: libibverbs locks internally; the pointers are only passed to it.
unsafe impl Send for PdInner {}
// SAFETY: as above.
unsafe impl Sync for PdInner {}
// SAFETY: as above.
unsafe impl Send for MrInner {}
// SAFETY: as above.
unsafe impl Sync for MrInner {}
// SAFETY: as above.
unsafe impl Send for MemoryWindow {}

impl Pd {
    /// Allocates a protection domain.
    ///
    /// # Errors
    /// The device has none left.
    pub fn new(device: &Device) -> Result<Self, VerbsError> {
        // SAFETY: the context lives as long as the device object, which is kept.
        let raw = NonNull::new(unsafe { ibv_alloc_pd(device.context().as_ptr()) });
        let raw = raw.ok_or_else(|| VerbsError::last("ibv_alloc_pd"))?;
        Ok(Self { inner: Arc::new(PdInner { raw, device: device.clone() }) })
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    pub(crate) fn raw(&self) -> NonNull<ibv_pd> {
        self.inner.raw
    }
}

impl Mr {
    /// Registers the whole arena, which the device pins. This is the only way to memory for a
    /// device: an arena is never unmapped and never lent as a slice, so a device that writes into
    /// it at any time does no harm to anything but the bytes of its own work requests.
    ///
    /// # Errors
    /// [`VerbsError::Register`] where the limit on locked memory is too low.
    pub fn register(pd: &Pd, arena: &'static Arena, access: Access) -> Result<Self, VerbsError> {
        let bytes = arena.bytes();
        #[allow(clippy::cast_possible_wrap)] // a few low bits
        let flags = access.flags() as i32;
        // SAFETY: the arena is readable and writable memory for the life of the process.
        let raw = unsafe { ibv_reg_mr(pd.raw().as_ptr(), arena.as_ptr().cast(), bytes, flags) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::Register {
            errno: Errno::last(),
            device: pd.device().name().to_owned(),
            bytes,
            limit_bytes: getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft),
        })?;
        // SAFETY: a registration that was just made.
        let lkey = unsafe { raw.as_ref().lkey };
        let range = Range { base: arena.addr(), bytes: bytes as u64, lkey };
        Ok(Self { inner: Arc::new(MrInner { raw, range, access, pd: pd.clone() }) })
    }

    /// The key for the peer; `None` where the peer was given no access.
    pub fn rkey(&self) -> Option<u32> {
        let access = self.inner.access;
        // SAFETY: the registration lives as long as this object.
        (access.remote_read || access.remote_write).then(|| unsafe { self.inner.raw.as_ref().rkey })
    }

    /// Its protection domain.
    pub fn pd(&self) -> &Pd {
        &self.inner.pd
    }

    pub(crate) fn range(&self) -> Range {
        self.inner.range
    }

    pub(crate) fn raw(&self) -> NonNull<ibv_mr> {
        self.inner.raw
    }
}

impl Access {
    pub(crate) fn flags(self) -> u32 {
        let bind = if self.bind { ibv_access_flags::IBV_ACCESS_MW_BIND.0 } else { 0 };
        ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0 | self.remote_flags() | bind
    }

    pub(crate) fn remote_flags(self) -> u32 {
        let read = ibv_access_flags::IBV_ACCESS_REMOTE_READ.0;
        let write = ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        (if self.remote_read { read } else { 0 }) | (if self.remote_write { write } else { 0 })
    }
}

impl MemoryWindow {
    /// Allocates a window on `mr`. It gives no access until it is bound.
    ///
    /// # Errors
    /// The device has no windows of type 2, or none left.
    pub(crate) fn new(mr: &Mr) -> Result<Self, VerbsError> {
        let kind = ibv_mw_type::IBV_MW_TYPE_2;
        // SAFETY: the protection domain lives as long as the registration, which is kept.
        let raw = unsafe { ibv_alloc_mw(mr.pd().raw().as_ptr(), kind) };
        let raw = raw.and_then(NonNull::new).ok_or_else(|| VerbsError::NoWindow {
            device: mr.pd().device().name().to_owned(),
            errno: Errno::last(),
        })?;
        Ok(Self { raw, _mr: mr.clone() })
    }

    /// The key of the last binding.
    #[inline]
    pub(crate) fn rkey(&self) -> u32 {
        // SAFETY: the window lives as long as this object.
        unsafe { self.raw.as_ref().rkey }
    }

    pub(crate) fn raw(&self) -> NonNull<ibv_mw> {
        self.raw
    }

    /// The key for the next binding.
    #[inline]
    pub(crate) fn next_rkey(&self) -> u32 {
        // SAFETY: pure arithmetic.
        unsafe { ibv_inc_rkey(self.rkey()) }
    }

    /// Notes that the binding under `rkey` was posted. Providers send the key of the last binding
    /// along with the next one, and leave keeping it to the consumer for windows of type 2.
    pub(crate) fn set_rkey(&mut self, rkey: u32) {
        // SAFETY: the window lives as long as this object, and no work request refers to it.
        unsafe { self.raw.as_mut().rkey = rkey };
    }
}

impl Range {
    /// Whether `sge` has at least one byte and all of it is registered. An empty entry is refused
    /// because some devices take length 0 for 2 GiB.
    #[inline]
    pub(crate) fn check(&self, sge: Sge) -> Result<(), VerbsError> {
        // An address below the base wraps to a huge offset.
        let offset = sge.addr.wrapping_sub(self.base);
        let len = u64::from(sge.len);
        if len != 0 && len <= self.bytes && offset <= self.bytes - len {
            return Ok(());
        }
        let Self { base, bytes, .. } = *self;
        Err(VerbsError::OutsideRegion { addr: sge.addr, len: sge.len, base, bytes })
    }
}

impl Drop for PdInner {
    fn drop(&mut self) {
        // SAFETY: everything made in the domain keeps it alive, so nothing is left in it.
        warn_on_failure("ibv_dealloc_pd", unsafe { ibv_dealloc_pd(self.raw.as_ptr()) });
    }
}

impl Drop for MrInner {
    fn drop(&mut self) {
        // SAFETY: QPs and windows that use the registration keep it alive.
        warn_on_failure("ibv_dereg_mr", unsafe { ibv_dereg_mr(self.raw.as_ptr()) });
    }
}

impl Drop for MemoryWindow {
    fn drop(&mut self) {
        // SAFETY: its QP, which has all work requests that name it, posts none any more.
        warn_on_failure("ibv_dealloc_mw", unsafe { ibv_dealloc_mw(self.raw.as_ptr()) });
    }
}

/// A device that is gone may refuse to give things back; nothing can be done about it.
pub(crate) fn warn_on_failure(call: &'static str, errno: i32) {
    if errno != 0 {
        tracing::warn!(call, errno = %Errno::from_raw(errno.abs()), "destroying failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_within_the_registration_pass() {
        let range = Range { base: 0x1000, bytes: 0x1000, lkey: 1 };
        let check = |addr, len| range.check(Sge { addr, len }).is_ok();
        assert!(check(0x1000, 0x1000) && check(0x1fff, 1) && check(0x1000, 1));
        assert!(!check(0x0fff, 1) && !check(0x0fff, 0x1000), "before");
        assert!(!check(0x2000, 1) && !check(0x1fff, 2) && !check(0x1000, 0x1001), "behind");
        assert!(!check(u64::MAX, 1) && !check(0, u32::MAX), "far away");
        assert!(!check(0x1800, 0), "empty");
    }

    #[test]
    fn a_registration_that_ends_at_the_last_address_does_not_wrap() {
        let range = Range { base: u64::MAX - 0xfff, bytes: 0x1000, lkey: 1 };
        assert!(range.check(Sge { addr: u64::MAX - 0xfff, len: 0x1000 }).is_ok());
        assert!(range.check(Sge { addr: u64::MAX, len: 2 }).is_err());
        assert!(range.check(Sge { addr: 0, len: 1 }).is_err());
    }

    #[test]
    fn by_default_only_this_side_moves_bytes() {
        assert_eq!(Access::default().flags(), ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0);
        let all = Access { remote_read: true, remote_write: true, bind: true };
        assert_eq!(all.flags(), 0b10111);
        assert_eq!(all.remote_flags(), 0b00110);
    }
}
