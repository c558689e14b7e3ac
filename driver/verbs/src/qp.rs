//! Queue pairs.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use nix::errno::Errno;
use rdma_sys::{
    bind_mw_t, bind_mw_tso_union_t, ibv_mw_bind_info, ibv_post_recv, ibv_post_send, ibv_qp,
    ibv_qp_init_attr, ibv_qp_type, ibv_recv_wr, ibv_send_flags, ibv_send_wr, ibv_wr_opcode,
    imm_data_invalidated_rkey_union_t, rdma_create_qp, rdma_destroy_qp, rdma_t, wr_t,
};

use crate::chain::{Chain, WorkRequest};
use crate::cm_id::{CmId, Connection};
use crate::cq::{CqHandle, CqInner};
use crate::error::{VerbsError, WorkQueue};
use crate::limits::{MAX_QUEUE_DEPTH, MAX_SGES};
use crate::memory::{Access, MemoryWindow, Mr, Range, Sge};

/// A reliable connected QP, on the connection it was made for.
///
/// Work requests are queued by [`recv`](Self::recv), [`send`](Self::send), [`write`](Self::write),
/// [`read`](Self::read), [`bind_window`](Self::bind_window) and
/// [`invalidate_window`](Self::invalidate_window), and go to the device with the next
/// [`flush`](Self::flush): one call for all receives, then one for all sends. Whoever drives it
/// counts what is outstanding: a work request occupies its queue until its completion, or that of a
/// later signaled one on the send queue, was polled. The memory of a work request belongs to the
/// device for as long.
///
/// To end it: stop posting, put it into the error state, poll until everything outstanding has
/// completed, but not for ever, and drop it. Only dropping ends the device's hold on the memory for
/// certain. Two habits of rxe are to be reckoned with: a receive that is posted when the QP is in
/// the error state already, which a peer can bring about at any time, never completes; and
/// completions that are in the CQ when the QP is dropped stay there, to be polled later and known
/// by their [`qp_num`](crate::Completion::qp_num).
pub struct RdmaQp {
    raw: NonNull<ibv_qp>,
    recvs: Chain<ibv_recv_wr>,
    sends: Chain<ibv_send_wr>,
    range: Range,
    limits: QpLimits,
    /// RDMA READs may have fewer entries than other sends, only one on iWARP devices.
    max_read_sges: u32,
    counters: QpCounters,
    qp_num: u32,
    windows: Vec<MemoryWindow>,
    /// Bindings that are queued: which window, and its next rkey.
    bindings: Vec<(u32, u32)>,
    // Everything below is only held so that it outlives the QP.
    connection: Arc<Connection>,
    mr: Mr,
    _cqs: Reservation,
    /// One thread at a time posts.
    _not_sync: PhantomData<Cell<()>>,
}

// SAFETY: the raw pointers within are to the QP, which libibverbs locks, and to arrays that the
// chains own.
unsafe impl Send for RdmaQp {}

/// How large the queues of a QP are. After creation: how large they really are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpLimits {
    /// Work requests of the receive queue.
    pub max_recv_wr: u32,
    /// Work requests of the send queue.
    pub max_send_wr: u32,
    /// Scatter-gather entries of a receive.
    pub max_recv_sges: u32,
    /// Scatter-gather entries of a send, write or read.
    pub max_send_sges: u32,
    /// Bytes of a SEND that may travel within its work request.
    pub max_inline_bytes: u32,
}

/// What a QP has posted. A call is a system call on devices driven through the kernel, such as rxe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QpCounters {
    /// Calls that posted receives.
    pub recv_calls: u64,
    /// Receives posted.
    pub recvs: u64,
    /// Calls that posted sends.
    pub send_calls: u64,
    /// Sends, writes, reads, bindings and invalidations posted.
    pub sends: u64,
}

impl RdmaQp {
    /// Makes the QP of `id`, which must be bound to a device: after a connect request or after
    /// `AddrResolved`. Receives may be posted at once; sends when the connection is established.
    ///
    /// All memory it moves lies in `mr`. The same queue may be given for both kinds of completion.
    ///
    /// # Errors
    /// `limits` are beyond the device, a queue lacks room, objects belong to different devices, or
    /// `id` has a QP already.
    pub fn new(
        id: &CmId,
        mr: &Mr,
        send_cq: &CqHandle,
        recv_cq: &CqHandle,
        limits: QpLimits,
    ) -> Result<Self, VerbsError> {
        const CALL: &str = "rdma_create_qp";
        let device = mr.pd().device();
        if send_cq.device() != device || recv_cq.device() != device {
            return Err(VerbsError::OtherDevice { call: CALL, what: "a completion queue" });
        }
        limits.check(mr)?;
        let cqs = Reservation::new(send_cq, recv_cq, &limits)?;

        // SAFETY: zero is a valid value.
        let mut attr: ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        attr.send_cq = send_cq.inner().raw().as_ptr();
        attr.recv_cq = recv_cq.inner().raw().as_ptr();
        attr.qp_type = ibv_qp_type::IBV_QPT_RC;
        attr.cap.max_send_wr = limits.max_send_wr;
        attr.cap.max_recv_wr = limits.max_recv_wr;
        attr.cap.max_send_sge = limits.max_send_sges;
        attr.cap.max_recv_sge = limits.max_recv_sges;
        attr.cap.max_inline_data = limits.max_inline_bytes;
        let raw = id.connection().locked(|id| {
            // SAFETY: the connection lives and is locked.
            let context = unsafe { id.as_ref().verbs };
            if context.is_null() {
                return Err(VerbsError::Unbound { call: CALL });
            }
            if context != device.context().as_ptr() {
                return Err(VerbsError::OtherDevice { call: CALL, what: "the registration" });
            }
            // SAFETY: PD and CQs live as long as this object, which keeps them.
            unsafe {
                if rdma_create_qp(id.as_ptr(), mr.pd().raw().as_ptr(), &raw mut attr) != 0 {
                    return Err(VerbsError::last(CALL));
                }
                NonNull::new(id.as_ref().qp).ok_or(VerbsError::last(CALL))
            }
        })?;
        // The device may give more than was asked for; what was asked for is what the CQs have room
        // for. Only the inline size is worth taking.
        let max_inline_bytes = attr.cap.max_inline_data;
        Ok(Self {
            raw,
            recvs: Chain::new(limits.max_recv_wr, limits.max_recv_sges),
            sends: Chain::new(limits.max_send_wr, limits.max_send_sges),
            range: mr.range(),
            limits: QpLimits { max_inline_bytes, ..limits },
            max_read_sges: device.limits().max_sge_rd.min(limits.max_send_sges),
            counters: QpCounters::default(),
            // SAFETY: the QP was just made.
            qp_num: unsafe { raw.as_ref().qp_num },
            windows: Vec::new(),
            bindings: Vec::new(),
            connection: Arc::clone(id.connection()),
            mr: mr.clone(),
            _cqs: cqs,
            _not_sync: PhantomData,
        })
    }

    /// Its number, which completions carry.
    pub fn qp_num(&self) -> u32 {
        self.qp_num
    }

    /// How large its queues are.
    pub fn limits(&self) -> &QpLimits {
        &self.limits
    }

    /// What it has posted so far.
    pub fn counters(&self) -> QpCounters {
        self.counters
    }

    /// Queues a receive into `sges`.
    ///
    /// # Errors
    /// The chain is full, or memory is not registered. Nothing was queued.
    #[inline]
    pub fn recv(&mut self, wr_id: u64, sges: &[Sge]) -> Result<(), VerbsError> {
        self.recvs.push(wr_id, sges, &self.range)?;
        Ok(())
    }

    /// Queues a SEND of `sges`; with `invalidate`, it also invalidates that rkey of the peer.
    /// `inline` sends copy the bytes at the flush, and may be no longer than
    /// [`QpLimits::max_inline_bytes`]. Only `signaled` ones complete when they succeed.
    ///
    /// # Errors
    /// The chain is full, memory is not registered, or the data is too long to be inline. Nothing
    /// was queued.
    #[inline]
    pub fn send(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        invalidate: Option<u32>,
        signaled: bool,
        inline: bool,
    ) -> Result<(), VerbsError> {
        if inline {
            let bytes = sges.iter().map(|sge| u64::from(sge.len)).sum();
            if bytes > u64::from(self.limits.max_inline_bytes) {
                return Err(VerbsError::Limit {
                    what: "bytes of an inline send",
                    wanted: bytes,
                    limit: self.limits.max_inline_bytes.into(),
                });
            }
        }
        let wr = self.sends.push(wr_id, sges, &self.range)?;
        wr.send_flags = signaled_flag(signaled);
        if inline {
            wr.send_flags |= ibv_send_flags::IBV_SEND_INLINE.0;
        }
        wr.opcode = match invalidate {
            None => ibv_wr_opcode::IBV_WR_SEND,
            Some(_) => ibv_wr_opcode::IBV_WR_SEND_WITH_INV,
        };
        wr.imm_data_invalidated_rkey_union =
            imm_data_invalidated_rkey_union_t { invalidated_rkey: invalidate.unwrap_or_default() };
        Ok(())
    }

    /// Queues an RDMA WRITE of `sges` to the peer's memory. Writes and later sends of one QP arrive
    /// in order.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    #[inline]
    pub fn write(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        remote_addr: u64,
        rkey: u32,
        signaled: bool,
    ) -> Result<(), VerbsError> {
        let wr = self.sends.push(wr_id, sges, &self.range)?;
        wr.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
        wr.send_flags = signaled_flag(signaled);
        wr.wr = wr_t { rdma: rdma_t { remote_addr, rkey } };
        Ok(())
    }

    /// Queues an RDMA READ of the peer's memory into `sges`. No more of them are in flight than was
    /// negotiated as `initiator_depth`: the device waits with the rest, and with everything behind
    /// them.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    #[inline]
    pub fn read(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        remote_addr: u64,
        rkey: u32,
        signaled: bool,
    ) -> Result<(), VerbsError> {
        if sges.len() > self.max_read_sges as usize {
            return Err(VerbsError::Limit {
                what: "scatter-gather entries of an RDMA READ",
                wanted: sges.len() as u64,
                limit: self.max_read_sges.into(),
            });
        }
        let wr = self.sends.push(wr_id, sges, &self.range)?;
        wr.opcode = ibv_wr_opcode::IBV_WR_RDMA_READ;
        wr.send_flags = signaled_flag(signaled);
        wr.wr = wr_t { rdma: rdma_t { remote_addr, rkey } };
        Ok(())
    }

    /// Work requests that wait for a flush.
    #[inline]
    pub fn queued(&self) -> usize {
        self.recvs.len() + self.sends.len()
    }

    /// Posts everything queued: all receives by one call, then all sends by one. Makes no call for
    /// a queue that has nothing.
    ///
    /// # Errors
    /// [`VerbsError::Post`]: the device refused some; they stay queued. Tear the connection down,
    /// and see [`take_unposted`](Self::take_unposted) for what the device does not have.
    #[inline]
    pub fn flush(&mut self) -> Result<(), VerbsError> {
        if let Some(head) = self.recvs.link() {
            let (waiting, mut bad) = (self.recvs.len(), null_mut());
            // SAFETY: the QP lives; the list is linked within arrays that stay in place.
            let result = unsafe { ibv_post_recv(self.raw.as_ptr(), head, &raw mut bad) };
            self.counters.recv_calls += 1;
            let posted = settle(&mut self.recvs, result, bad);
            self.counters.recvs += posted as u64;
            check_posted(WorkQueue::Recv, result, posted, waiting)?;
        }
        if let Some(head) = self.sends.link() {
            let (waiting, mut bad) = (self.sends.len(), null_mut());
            // SAFETY: as above; every entry of every request was checked to be registered memory.
            let result = unsafe { ibv_post_send(self.raw.as_ptr(), head, &raw mut bad) };
            self.counters.send_calls += 1;
            let posted = settle(&mut self.sends, result, bad);
            self.counters.sends += posted as u64;
            check_posted(WorkQueue::Send, result, posted, waiting)?;
            // Only now: the device is told the key of the last binding along with the next.
            for (window, rkey) in self.bindings.drain(..) {
                self.windows[window as usize].set_rkey(rkey);
            }
        }
        Ok(())
    }

    /// Takes one work request that was queued and not posted: receives first, oldest first. After a
    /// failed flush, call it until it gives nothing: none of these will ever complete.
    pub fn take_unposted(&mut self) -> Option<(WorkQueue, u64)> {
        let recv = self.recvs.take_first().map(|wr_id| (WorkQueue::Recv, wr_id));
        recv.or_else(|| self.sends.take_first().map(|wr_id| (WorkQueue::Send, wr_id)))
    }

    /// Makes `count` memory windows more. All are named by their numbers, from 0 on, and gone with
    /// the QP.
    ///
    /// # Errors
    /// [`VerbsError::NoWindow`]: the device has no windows of type 2, or none left.
    pub fn add_windows(&mut self, count: u32) -> Result<(), VerbsError> {
        self.bindings.reserve(self.windows.len() + count as usize);
        for _ in 0..count {
            self.windows.push(MemoryWindow::new(&self.mr)?);
        }
        Ok(())
    }

    /// Queues the binding of a window, which is not bound: it gives the peer `access` to the bytes
    /// of `sge` under a new rkey, which is the result, until either side invalidates it. What is
    /// queued later is executed when the binding is done. The registration must allow
    /// [`Access::bind`].
    ///
    /// rxe keeps the peer to the kind of access and to the time of a binding, but not to its bytes:
    /// it compares addresses with the whole registration (seen in Linux 6.12).
    ///
    /// # Errors
    /// There is no such window, or as [`recv`](Self::recv).
    #[inline]
    pub fn bind_window(
        &mut self,
        wr_id: u64,
        window: u32,
        sge: Sge,
        access: Access,
        signaled: bool,
    ) -> Result<u32, VerbsError> {
        self.range.check(sge)?;
        let rkey = self.window(window)?.next_rkey();
        let mw = self.window(window)?.raw().as_ptr();
        let wr = self.sends.push(wr_id, &[], &self.range)?;
        wr.opcode = ibv_wr_opcode::IBV_WR_BIND_MW;
        wr.send_flags = signaled_flag(signaled);
        // What an earlier work request left here rxe takes for immediate data, which a binding has
        // not.
        wr.imm_data_invalidated_rkey_union =
            imm_data_invalidated_rkey_union_t { invalidated_rkey: 0 };
        wr.bind_mw_tso_union = bind_mw_tso_union_t {
            bind_mw: bind_mw_t {
                mw,
                rkey,
                bind_info: ibv_mw_bind_info {
                    mr: self.mr.raw().as_ptr(),
                    addr: sge.addr,
                    length: sge.len.into(),
                    mw_access_flags: access.remote_flags(),
                },
            },
        };
        self.bindings.push((window, rkey));
        Ok(rkey)
    }

    /// Queues the invalidation of a window: when it has completed, nothing reaches memory by the
    /// window's last rkey any more. Not before its binding was flushed.
    ///
    /// # Errors
    /// There is no such window, or as [`recv`](Self::recv).
    #[inline]
    pub fn invalidate_window(
        &mut self,
        wr_id: u64,
        window: u32,
        signaled: bool,
    ) -> Result<(), VerbsError> {
        let invalidated_rkey = self.window(window)?.rkey();
        let wr = self.sends.push(wr_id, &[], &self.range)?;
        wr.opcode = ibv_wr_opcode::IBV_WR_LOCAL_INV;
        wr.send_flags = signaled_flag(signaled);
        wr.imm_data_invalidated_rkey_union = imm_data_invalidated_rkey_union_t { invalidated_rkey };
        Ok(())
    }

    /// The window of this number, of which no binding is queued: its rkey is that of the last one.
    #[inline]
    fn window(&self, window: u32) -> Result<&MemoryWindow, VerbsError> {
        debug_assert!(
            self.bindings.iter().all(|(bound, _)| *bound != window),
            "bound in this chain"
        );
        self.windows.get(window as usize).ok_or(VerbsError::Limit {
            what: "number of a memory window",
            wanted: window.into(),
            limit: self.windows.len() as u64,
        })
    }

    /// Puts it into the error state: everything outstanding completes, with an error. The control
    /// side does the same by [`CmId::qp_to_error`].
    ///
    /// # Errors
    /// The device refuses.
    pub fn to_error(&self) -> Result<(), VerbsError> {
        self.connection.qp_to_error()
    }
}

impl std::fmt::Debug for RdmaQp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RdmaQp")
            .field("qp_num", &self.qp_num)
            .field("limits", &self.limits)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Drop for RdmaQp {
    fn drop(&mut self) {
        if !self.windows.is_empty() {
            // A bound window belongs to its QP, and rxe waits for it when the QP is destroyed: it
            // goes first, and not under the peer's requests.
            if let Err(error) = self.to_error() {
                tracing::warn!(%error, "a queue pair with memory windows is destroyed as it is");
            }
            self.windows.clear();
        }
        self.connection.locked(|id| {
            // SAFETY: the connection lives and is locked; its QP is this one. Only then are the
            // fields dropped that it depends on.
            unsafe { rdma_destroy_qp(id.as_ptr()) };
        });
    }
}

impl QpLimits {
    fn check(&self, mr: &Mr) -> Result<(), VerbsError> {
        let device = mr.pd().device().limits();
        let wrs = device.max_qp_wr.min(MAX_QUEUE_DEPTH);
        let sges = device.max_sge.min(MAX_SGES);
        VerbsError::check_limit("work requests of the receive queue", self.max_recv_wr, wrs)?;
        VerbsError::check_limit("work requests of the send queue", self.max_send_wr, wrs)?;
        VerbsError::check_limit("entries of a receive", self.max_recv_sges, sges)?;
        VerbsError::check_limit("entries of a send", self.max_send_sges, sges)
    }
}

/// The room in the CQs that a QP has reserved, and the CQs themselves.
struct Reservation {
    send: Arc<CqInner>,
    recv: Arc<CqInner>,
    max_send_wr: u32,
    max_recv_wr: u32,
}

impl Reservation {
    fn new(send_cq: &CqHandle, recv_cq: &CqHandle, limits: &QpLimits) -> Result<Self, VerbsError> {
        let &QpLimits { max_send_wr, max_recv_wr, .. } = limits;
        let (send, recv) = (Arc::clone(send_cq.inner()), Arc::clone(recv_cq.inner()));
        send.reserve(max_send_wr)?;
        if let Err(error) = recv.reserve(max_recv_wr) {
            send.release(max_send_wr);
            return Err(error);
        }
        Ok(Self { send, recv, max_send_wr, max_recv_wr })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.send.release(self.max_send_wr);
        self.recv.release(self.max_recv_wr);
    }
}

#[inline]
fn signaled_flag(signaled: bool) -> u32 {
    if signaled { ibv_send_flags::IBV_SEND_SIGNALED.0 } else { 0 }
}

/// Takes note of what a post did, and gives how many work requests the device took.
#[inline]
fn settle<W: WorkRequest>(chain: &mut Chain<W>, result: i32, bad: *const W) -> usize {
    if result != 0 {
        return chain.keep_from(bad);
    }
    let posted = chain.len();
    chain.clear();
    posted
}

#[inline]
fn check_posted(
    queue: WorkQueue,
    result: i32,
    posted: usize,
    waiting: usize,
) -> Result<(), VerbsError> {
    if result == 0 {
        return Ok(());
    }
    // Verbs give a positive errno; some providers -1 and the errno in its usual place.
    let errno = if result > 0 { Errno::from_raw(result) } else { Errno::last() };
    Err(VerbsError::Post { queue, errno, posted, unposted: waiting - posted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_chain_tells_what_was_posted_and_what_not() {
        let range = Range { base: 0, bytes: 4096, lkey: 0 };
        let mut chain = Chain::<ibv_send_wr>::new(4, 1);
        for wr_id in 0..3 {
            chain.push(wr_id, &[Sge { addr: 0, len: 1 }], &range).unwrap();
        }
        let head = chain.link().unwrap();
        let posted = settle(&mut chain, libc::ENOMEM, head.wrapping_add(2));
        assert_eq!((posted, chain.len()), (2, 1));
        let error = check_posted(WorkQueue::Send, libc::ENOMEM, posted, 3).unwrap_err();
        let VerbsError::Post { errno, posted: 2, unposted: 1, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(errno, Errno::ENOMEM);

        chain.link();
        assert_eq!(settle(&mut chain, 0, null_mut()), 1);
        assert_eq!(chain.take_first(), None);
        check_posted(WorkQueue::Send, 0, 1, 1).unwrap();
    }

    #[test]
    fn a_qp_may_move_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<RdmaQp>();
        is_send::<crate::Cq>();
        is_send::<CmId>();
    }
}
