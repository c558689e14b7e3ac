//! Completion queues.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rdma_sys::{
    ibv_ack_cq_events, ibv_comp_channel, ibv_cq, ibv_create_comp_channel, ibv_create_cq,
    ibv_destroy_comp_channel, ibv_destroy_cq, ibv_get_cq_event, ibv_poll_cq, ibv_req_notify_cq,
    ibv_wc, ibv_wc_opcode, ibv_wc_status, ibv_wc_status_str,
};

use crate::device::{Device, text};
use crate::error::VerbsError;
use crate::limits::MAX_CQ_ENTRIES;
use crate::memory::warn_on_failure;

/// A completion queue: one thread polls it, for any number of QPs.
///
/// QPs reserve room in it for everything they can have outstanding, so that it cannot overflow.
#[derive(Debug)]
pub struct Cq {
    inner: Arc<CqInner>,
}

/// Names a completion queue when QPs are made, on any thread, while one thread polls it.
#[derive(Clone, Debug)]
pub struct CqHandle {
    inner: Arc<CqInner>,
}

/// The queue itself, kept alive by its QPs as well.
#[derive(Debug)]
pub(crate) struct CqInner {
    raw: NonNull<ibv_cq>,
    entries: u32,
    reserved: AtomicU32,
    // Both outlive the queue.
    channel: Option<Channel>,
    device: Device,
}

/// Tells by a descriptor, which never blocks, that a queue has something.
#[derive(Debug)]
struct Channel {
    raw: NonNull<ibv_comp_channel>,
}

// SAFETY: libibverbs locks a CQ internally.
unsafe impl Send for CqInner {}
// SAFETY: as above.
unsafe impl Sync for CqInner {}
// SAFETY: the pointer is only passed to libibverbs, which reads a descriptor behind it.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

/// A work request that is done, one way or the other.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Completion(ibv_wc);

/// How a work request ended: `enum ibv_wc_status`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WcStatus(pub u32);

/// What kind of work request completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WcOpcode {
    /// A SEND.
    Send,
    /// An RDMA WRITE.
    RdmaWrite,
    /// An RDMA READ.
    RdmaRead,
    /// The binding of a memory window.
    BindWindow,
    /// The invalidation of a memory window by this side.
    InvalidateWindow,
    /// A receive.
    Recv,
    /// Anything else: `enum ibv_wc_opcode`.
    Other(u32),
}

impl Cq {
    /// Makes a queue of at least `entries`.
    ///
    /// # Errors
    /// More entries than the device can, or the device has no queue left.
    pub fn new(device: &Device, entries: u32) -> Result<Self, VerbsError> {
        Self::make(device, entries, None)
    }

    /// As [`Cq::new`]; besides, it can be waited for: see [`Cq::arm`].
    ///
    /// # Errors
    /// As [`Cq::new`], or there is no descriptor left.
    pub fn with_channel(device: &Device, entries: u32) -> Result<Self, VerbsError> {
        Self::make(device, entries, Some(Channel::new(device)?))
    }

    fn make(device: &Device, entries: u32, channel: Option<Channel>) -> Result<Self, VerbsError> {
        let limit = device.limits().max_cqe.min(MAX_CQ_ENTRIES);
        VerbsError::check_limit("entries of a completion queue", entries, limit)?;
        let wanted = i32::try_from(entries).unwrap_or(i32::MAX);
        let told = channel.as_ref().map_or(null_mut(), |channel| channel.raw.as_ptr());
        // SAFETY: the context and the channel live as long as this object, which keeps them.
        let raw = unsafe { ibv_create_cq(device.context().as_ptr(), wanted, null_mut(), told, 0) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_create_cq"))?;
        let (reserved, device) = (AtomicU32::new(0), device.clone());
        Ok(Self { inner: Arc::new(CqInner { raw, entries, reserved, channel, device }) })
    }

    /// The descriptor becomes readable with the next completion. Those that came before do not
    /// count: poll once more before waiting. Two calls into the kernel; none without a channel.
    ///
    /// # Errors
    /// The device is gone.
    pub fn arm(&mut self) -> Result<(), VerbsError> {
        let Some(channel) = &self.inner.channel else { return Ok(()) };
        let (mut cq, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel is open and does not block; it tells of this queue only.
        while unsafe { ibv_get_cq_event(channel.raw.as_ptr(), &raw mut cq, &raw mut context) } == 0
        {
            // SAFETY: an event of this queue, acknowledged once: destroying it waits for that.
            unsafe { ibv_ack_cq_events(self.inner.raw.as_ptr(), 1) };
        }
        // SAFETY: the queue lives.
        let errno = unsafe { ibv_req_notify_cq(self.inner.raw.as_ptr(), 0) };
        if errno == 0 {
            return Ok(());
        }
        let errno = Errno::from_raw(errno.saturating_abs());
        Err(VerbsError::Call { call: "ibv_req_notify_cq", errno })
    }

    /// The descriptor that [`Cq::arm`] speaks of; `None` without a channel.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.channel.as_ref().map(AsFd::as_fd)
    }

    /// Takes completions, oldest first, as many as there are and fit into `out`. Never waits.
    ///
    /// # Errors
    /// The queue is broken: its device is gone or failed.
    #[inline]
    pub fn poll(&mut self, out: &mut [Completion]) -> Result<usize, VerbsError> {
        let room = i32::try_from(out.len()).unwrap_or(i32::MAX);
        // SAFETY: a `Completion` is an `ibv_wc`, and there is room for as many as asked for.
        let count = unsafe { ibv_poll_cq(self.inner.raw.as_ptr(), room, out.as_mut_ptr().cast()) };
        usize::try_from(count).map_err(|_| {
            let errno = Errno::from_raw(count.saturating_neg());
            VerbsError::Call { call: "ibv_poll_cq", errno }
        })
    }

    /// Its name, for making QPs.
    pub fn handle(&self) -> CqHandle {
        CqHandle { inner: Arc::clone(&self.inner) }
    }
}

impl CqHandle {
    /// Entries that no QP has reserved.
    pub fn entries_left(&self) -> u32 {
        self.inner.entries.saturating_sub(self.inner.reserved.load(Ordering::Relaxed))
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    pub(crate) fn inner(&self) -> &Arc<CqInner> {
        &self.inner
    }
}

impl CqInner {
    pub(crate) fn raw(&self) -> NonNull<ibv_cq> {
        self.raw
    }

    /// Sets entries aside, until `release`.
    pub(crate) fn reserve(&self, wanted: u32) -> Result<(), VerbsError> {
        let claim = |reserved: u32| {
            reserved.checked_add(wanted).filter(|reserved| *reserved <= self.entries)
        };
        let order = Ordering::Relaxed;
        self.reserved.fetch_update(order, order, claim).map(drop).map_err(|reserved| {
            VerbsError::Limit {
                what: "free entries of the completion queue",
                wanted: wanted.into(),
                limit: (self.entries - reserved).into(),
            }
        })
    }

    pub(crate) fn release(&self, entries: u32) {
        self.reserved.fetch_sub(entries, Ordering::Relaxed);
    }
}

impl Channel {
    fn new(device: &Device) -> Result<Self, VerbsError> {
        // SAFETY: the context lives as long as the device object.
        let raw = unsafe { ibv_create_comp_channel(device.context().as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_create_comp_channel"))?;
        let channel = Self { raw };
        let nonblocking = |errno| VerbsError::Call { call: "fcntl(completion channel)", errno };
        let flags = fcntl(channel.as_fd(), FcntlArg::F_GETFL).map_err(nonblocking)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(channel.as_fd(), FcntlArg::F_SETFL(flags)).map_err(nonblocking)?;
        Ok(channel)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.raw.as_ref().fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: the queue that it belonged to is destroyed.
        let errno = unsafe { ibv_destroy_comp_channel(self.raw.as_ptr()) };
        warn_on_failure("ibv_destroy_comp_channel", errno);
    }
}

impl Drop for CqInner {
    fn drop(&mut self) {
        // SAFETY: QPs keep the queue alive, so none uses it any more.
        warn_on_failure("ibv_destroy_cq", unsafe { ibv_destroy_cq(self.raw.as_ptr()) });
    }
}

impl Completion {
    /// One that says nothing, to make arrays of.
    pub const EMPTY: Self = {
        // SAFETY: zero is a valid value of every field.
        Self(unsafe { std::mem::zeroed() })
    };

    /// The id that the work request was queued with.
    #[inline]
    pub fn wr_id(&self) -> u64 {
        self.0.wr_id
    }

    /// How the work request ended.
    #[inline]
    pub fn status(&self) -> WcStatus {
        WcStatus(self.0.status)
    }

    /// The QP it was queued on.
    #[inline]
    pub fn qp_num(&self) -> u32 {
        self.0.qp_num
    }

    /// What kind of work request it was; `None` if it failed: devices do not say it then.
    #[inline]
    pub fn opcode(&self) -> Option<WcOpcode> {
        if !self.status().is_success() {
            return None;
        }
        Some(match self.0.opcode {
            ibv_wc_opcode::IBV_WC_SEND => WcOpcode::Send,
            ibv_wc_opcode::IBV_WC_RDMA_WRITE => WcOpcode::RdmaWrite,
            ibv_wc_opcode::IBV_WC_RDMA_READ => WcOpcode::RdmaRead,
            ibv_wc_opcode::IBV_WC_BIND_MW => WcOpcode::BindWindow,
            ibv_wc_opcode::IBV_WC_LOCAL_INV => WcOpcode::InvalidateWindow,
            ibv_wc_opcode::IBV_WC_RECV => WcOpcode::Recv,
            other => WcOpcode::Other(other),
        })
    }

    /// Bytes received; 0 for anything but a receive that succeeded.
    #[inline]
    pub fn byte_len(&self) -> u32 {
        if self.opcode() == Some(WcOpcode::Recv) { self.0.byte_len } else { 0 }
    }

    /// The rkey that the peer's SEND invalidated, if it did.
    #[inline]
    pub fn invalidated_rkey(&self) -> Option<u32> {
        // IBV_WC_WITH_INV is bit 3; rxe passes the kernel's numbering through, where it is bit 2.
        // For user space bit 2 means a good IP checksum, which only UD and raw QPs report.
        const WITH_INVALIDATE: u32 = 1 << 3 | 1 << 2;
        let invalidated =
            self.opcode() == Some(WcOpcode::Recv) && self.0.wc_flags & WITH_INVALIDATE != 0;
        // SAFETY: both variants of the union are a `u32`.
        let rkey = unsafe { self.0.imm_data_invalidated_rkey_union.invalidated_rkey };
        invalidated.then_some(rkey)
    }

    /// The vendor's own error code, for a log; 0 on success.
    #[inline]
    pub fn vendor_err(&self) -> u32 {
        if self.status().is_success() { 0 } else { self.0.vendor_err }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("wr_id", &self.wr_id())
            .field("status", &self.status())
            .field("opcode", &self.opcode())
            .field("byte_len", &self.byte_len())
            .field("qp_num", &self.qp_num())
            .field("vendor_err", &self.vendor_err())
            .finish()
    }
}

impl WcStatus {
    /// It succeeded.
    pub const SUCCESS: Self = Self(ibv_wc_status::IBV_WC_SUCCESS);
    /// It was not executed, or not to its end, because the QP is in the error state.
    pub const FLUSHED: Self = Self(ibv_wc_status::IBV_WC_WR_FLUSH_ERR);
    /// The peer does not allow access to the memory that was named.
    pub const REMOTE_ACCESS: Self = Self(ibv_wc_status::IBV_WC_REM_ACCESS_ERR);

    /// Whether it succeeded.
    #[inline]
    pub fn is_success(self) -> bool {
        self == Self::SUCCESS
    }
}

impl fmt::Display for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: gives a constant string for any number.
        f.write_str(&unsafe { text(ibv_wc_status_str(self.0)) })
    }
}

impl fmt::Debug for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(wc_flags: u32) -> Completion {
        let mut completion = Completion::EMPTY;
        completion.0.opcode = ibv_wc_opcode::IBV_WC_RECV;
        completion.0.byte_len = 64;
        completion.0.wc_flags = wc_flags;
        completion.0.imm_data_invalidated_rkey_union.invalidated_rkey = 0x1234;
        completion
    }

    #[test]
    fn an_invalidated_rkey_is_seen_in_either_numbering() {
        assert_eq!(received(0x8).invalidated_rkey(), Some(0x1234));
        assert_eq!(received(0x5).invalidated_rkey(), Some(0x1234), "rxe");
        assert_eq!(received(0x0).invalidated_rkey(), None);
        assert_eq!(received(0x2).invalidated_rkey(), None, "immediate data");
    }

    #[test]
    fn a_failed_completion_claims_nothing() {
        let mut failed = received(0x8);
        failed.0.status = ibv_wc_status::IBV_WC_WR_FLUSH_ERR;
        assert_eq!(failed.status(), WcStatus::FLUSHED);
        assert_eq!((failed.opcode(), failed.byte_len()), (None, 0));
        assert_eq!(failed.invalidated_rkey(), None);
        assert_eq!(received(0).byte_len(), 64);
    }

    #[test]
    fn unknown_numbers_are_kept() {
        let mut odd = received(0);
        odd.0.opcode = 4711;
        assert_eq!(odd.opcode(), Some(WcOpcode::Other(4711)));
        assert!(!WcStatus(4711).to_string().is_empty());
    }
}
