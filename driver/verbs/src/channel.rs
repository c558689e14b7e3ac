//! The event channel of rdma_cm, and its events as values.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rdma_sys::{
    rdma_ack_cm_event, rdma_cm_event, rdma_cm_event_type, rdma_conn_param,
    rdma_create_event_channel, rdma_destroy_event_channel, rdma_event_channel, rdma_get_cm_event,
};

use crate::cm_id::{CmId, CmKey};
use crate::device::{DeviceLimits, notice_removed_devices};
use crate::error::VerbsError;
use crate::limits::EVENT_PRIVATE_DATA_BYTES;

/// Where the connection manager reports what happens to the connections made on it.
///
/// Its descriptor never blocks and becomes readable when there is an event. One thread polls it;
/// connections may be used from any thread.
#[derive(Debug)]
pub struct EventChannel {
    inner: Arc<Channel>,
}

/// What happened. An event was acknowledged before it is handed out, so it may be kept.
#[derive(Debug)]
pub enum CmEvent {
    /// A peer wants to connect to a listener. Dropping `id` turns it away without a word.
    ConnectRequest {
        /// The listener.
        listener: CmKey,
        /// The new connection, to be accepted or rejected.
        id: CmId,
        /// What the peer asks for.
        request: ConnectionData,
    },
    /// The connection is up. On the initiator's side `data` is what the target answered; on the
    /// target's side it is empty.
    Established {
        /// The connection.
        id: CmKey,
        /// The other side's answer.
        data: ConnectionData,
    },
    /// The peer does not want the connection.
    Rejected {
        /// The connection.
        id: CmKey,
        /// Reason of the connection manager (InfiniBand Architecture 1.4, 12.6.7.2); 28 is "by the
        /// consumer", for which `private_data` says more.
        reason: i32,
        /// What the peer says.
        private_data: PrivateData,
    },
    /// The connection is going down, or was never used: either side disconnected, or the peer is
    /// gone.
    Disconnected {
        /// The connection.
        id: CmKey,
    },
    /// The connection's QP has left the wait after its disconnect.
    TimewaitExit {
        /// The connection.
        id: CmKey,
    },
    /// The device is being removed: everything made on it must go, this connection included, and
    /// every [`Device`](crate::Device) of it. The kernel may wait until then. (Of an rxe device it
    /// does not come where the module ib_uverbs was loaded after rdma_cm: the removal waits.)
    DeviceRemoval {
        /// The connection, or listener.
        id: CmKey,
    },
    /// The peer's address belongs to a device now: the connection is bound to it.
    AddrResolved {
        /// The connection.
        id: CmKey,
    },
    /// The way to the peer is known.
    RouteResolved {
        /// The connection.
        id: CmKey,
    },
    /// A step of connecting failed: resolving the address or route, or setting up the connection.
    ConnectFailed {
        /// The connection.
        id: CmKey,
        /// The step.
        step: ConnectStep,
        /// An errno, negative, or a reason of the connection manager.
        status: i32,
    },
    /// Anything else, such as a changed address: `code` is `enum rdma_cm_event_type`.
    Other {
        /// The connection.
        id: CmKey,
        /// The event.
        code: u32,
        /// Its status.
        status: i32,
    },
}

/// Which step of connecting failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectStep {
    /// Finding the device for the peer's address.
    Address,
    /// Finding the way.
    Route,
    /// Reaching the peer: nobody answered.
    Reach,
    /// Setting up the connection, on either side.
    Connect,
}

/// What the other side of a connection says about itself.
#[derive(Clone, Debug, Default)]
pub struct ConnectionData {
    /// RDMA READs that this side may have in flight, as far as the peer is concerned.
    pub initiator_depth: u8,
    /// RDMA READs that the peer would like to have in flight.
    pub responder_resources: u8,
    /// The peer's QP.
    pub qp_num: u32,
    /// The peer's private data.
    pub private_data: PrivateData,
}

/// Private data of the connection manager, as received.
#[derive(Clone)]
pub struct PrivateData {
    bytes: [u8; EVENT_PRIVATE_DATA_BYTES],
    len: u8,
}

/// How a connection is to work.
#[derive(Clone, Copy, Debug)]
pub struct ConnParams {
    /// RDMA READs that this side wants to have in flight.
    pub initiator_depth: u8,
    /// RDMA READs that this side lets the peer have in flight.
    pub responder_resources: u8,
    /// Times that a packet is sent again when nothing is heard, 0..=7.
    pub retry_count: u8,
    /// Times that a SEND is tried again when the peer has no receive posted, 0..=7; 7 is forever.
    pub rnr_retry_count: u8,
}

impl EventChannel {
    /// Opens a channel.
    ///
    /// # Errors
    /// [`VerbsError::NoDevice`] where the kernel has no connection manager for user space.
    pub fn new() -> Result<Self, VerbsError> {
        const CALL: &str = "rdma_create_event_channel";
        // SAFETY: no preconditions.
        let raw = NonNull::new(unsafe { rdma_create_event_channel() });
        let raw = raw.ok_or_else(|| match Errno::last() {
            errno @ (Errno::ENODEV | Errno::ENOENT | Errno::ENOSYS | Errno::ENXIO) => {
                VerbsError::NoDevice { call: CALL, errno }
            }
            errno => VerbsError::Call { call: CALL, errno },
        })?;
        let channel = Self { inner: Arc::new(Channel { raw, lock: Mutex::new(()) }) };
        let nonblocking = |errno| VerbsError::Call { call: "fcntl(event channel)", errno };
        let flags = fcntl(channel.as_fd(), FcntlArg::F_GETFL).map_err(nonblocking)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(channel.as_fd(), FcntlArg::F_SETFL(flags)).map_err(nonblocking)?;
        Ok(channel)
    }

    /// Makes a connection, not bound to anything yet, whose events this channel reports.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn create_id(&self) -> Result<CmId, VerbsError> {
        CmId::create(&self.inner)
    }

    /// The next event; `None` when there is none now.
    ///
    /// # Errors
    /// The channel does not work any more.
    pub fn poll(&self) -> Result<Option<CmEvent>, VerbsError> {
        let _guard = self.inner.lock();
        let mut event = null_mut();
        // SAFETY: the channel is open; its descriptor does not block. The lock keeps everybody off
        // the connection that the call works on.
        if unsafe { rdma_get_cm_event(self.inner.raw.as_ptr(), &raw mut event) } != 0 {
            return match Errno::last() {
                Errno::EAGAIN | Errno::EINTR => Ok(None),
                errno => Err(VerbsError::Call { call: "rdma_get_cm_event", errno }),
            };
        }
        // SAFETY: the event is not acknowledged yet, so it and its connections live.
        let safe = unsafe { CmEvent::of(&*event, &self.inner) };
        // SAFETY: the event came from `rdma_get_cm_event` and is acknowledged once. As this happens
        // under the lock, no connection is ever destroyed with an event outstanding, for which its
        // destruction would wait.
        unsafe { rdma_ack_cm_event(event) };
        if matches!(safe, CmEvent::DeviceRemoval { .. }) {
            notice_removed_devices();
        }
        Ok(Some(safe))
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.inner.raw.as_ref().fd) }
    }
}

impl AsRawFd for EventChannel {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl CmEvent {
    /// # Safety
    /// The event came from `channel`, which the caller has locked, and was not acknowledged yet.
    unsafe fn of(event: &rdma_cm_event, channel: &Arc<Channel>) -> Self {
        use rdma_cm_event_type as kind;
        // SAFETY: the connection of an event that is not acknowledged lives.
        let id = unsafe { CmKey::of(event.id) };
        // SAFETY: all events of RC connections have these parameters; zeroes where they mean
        // nothing.
        let data = || unsafe { ConnectionData::of(&event.param.conn) };
        let failed = |step| Self::ConnectFailed { id, step, status: event.status };
        match event.event {
            // SAFETY: such an event hands over a connection that nobody else knows of.
            kind::RDMA_CM_EVENT_CONNECT_REQUEST => unsafe {
                let listener = CmKey::of(event.listen_id);
                let id = CmId::adopt(NonNull::new_unchecked(event.id), channel);
                Self::ConnectRequest { listener, id, request: data() }
            },
            kind::RDMA_CM_EVENT_ESTABLISHED => Self::Established { id, data: data() },
            kind::RDMA_CM_EVENT_REJECTED => {
                let private_data = data().private_data;
                Self::Rejected { id, reason: event.status, private_data }
            }
            kind::RDMA_CM_EVENT_DISCONNECTED => Self::Disconnected { id },
            kind::RDMA_CM_EVENT_TIMEWAIT_EXIT => Self::TimewaitExit { id },
            kind::RDMA_CM_EVENT_DEVICE_REMOVAL => Self::DeviceRemoval { id },
            // The library may fail in its own part of the step and then says so here.
            kind::RDMA_CM_EVENT_ADDR_RESOLVED if event.status != 0 => failed(ConnectStep::Address),
            kind::RDMA_CM_EVENT_ADDR_RESOLVED => Self::AddrResolved { id },
            kind::RDMA_CM_EVENT_ROUTE_RESOLVED if event.status != 0 => failed(ConnectStep::Route),
            kind::RDMA_CM_EVENT_ROUTE_RESOLVED => Self::RouteResolved { id },
            kind::RDMA_CM_EVENT_ADDR_ERROR => failed(ConnectStep::Address),
            kind::RDMA_CM_EVENT_ROUTE_ERROR => failed(ConnectStep::Route),
            kind::RDMA_CM_EVENT_UNREACHABLE => failed(ConnectStep::Reach),
            kind::RDMA_CM_EVENT_CONNECT_ERROR => failed(ConnectStep::Connect),
            code => Self::Other { id, code, status: event.status },
        }
    }
}

impl ConnectionData {
    /// # Safety
    /// The private data of `param` is readable for its length.
    unsafe fn of(param: &rdma_conn_param) -> Self {
        let mut bytes = [0; EVENT_PRIVATE_DATA_BYTES];
        let mut len = 0;
        if !param.private_data.is_null() {
            len = param.private_data_len;
            // SAFETY: by the contract; an 8-bit length fits the array (asserted in limits.rs).
            unsafe {
                let from = param.private_data.cast::<u8>();
                from.copy_to_nonoverlapping(bytes.as_mut_ptr(), len.into());
            }
        }
        Self {
            initiator_depth: param.initiator_depth,
            responder_resources: param.responder_resources,
            qp_num: param.qp_num,
            private_data: PrivateData { bytes, len },
        }
    }
}

impl PrivateData {
    /// The bytes that arrived. rdma_cm pads them with zeroes, so that their number says nothing
    /// about what was sent: read a fixed layout from the front.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

impl Default for PrivateData {
    fn default() -> Self {
        Self { bytes: [0; EVENT_PRIVATE_DATA_BYTES], len: 0 }
    }
}

impl std::fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.as_bytes()).finish()
    }
}

impl ConnParams {
    /// Parameters that a target answers `request` with: as many RDMA READs each way as the peer
    /// asks for and the device can do, `wanted_reads` at most from this side.
    pub fn answer(request: &ConnectionData, device: &DeviceLimits, wanted_reads: u8) -> Self {
        let mine = request.initiator_depth.min(device.max_initiator_reads);
        Self {
            initiator_depth: mine.min(wanted_reads),
            responder_resources: request.responder_resources.min(device.max_responder_reads),
            ..Self::default()
        }
    }
}

impl Default for ConnParams {
    /// No RDMA READs; as many retries as there can be.
    fn default() -> Self {
        Self { initiator_depth: 0, responder_resources: 0, retry_count: 7, rnr_retry_count: 7 }
    }
}

/// The channel itself, kept open by every connection made on it.
#[derive(Debug)]
pub(crate) struct Channel {
    raw: NonNull<rdma_event_channel>,
    /// Held around every call that reads or changes a connection of this channel.
    /// `rdma_get_cm_event` changes connections too: it moves their QPs to other states, while
    /// another thread might be destroying them.
    lock: Mutex<()>,
}

// SAFETY: the lock orders everything that is done through the pointer.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Channel {
    pub(crate) fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn raw(&self) -> NonNull<rdma_event_channel> {
        self.raw
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: every connection holds a reference to the channel, so none is left.
        unsafe { rdma_destroy_event_channel(self.raw.as_ptr()) };
    }
}

/// An error about `address`.
pub(crate) fn address_error(call: &'static str, address: SocketAddr) -> VerbsError {
    VerbsError::Address { call, address, errno: Errno::last() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(bytes: &[u8]) -> rdma_conn_param {
        // SAFETY: zero is a valid value.
        let mut param: rdma_conn_param = unsafe { std::mem::zeroed() };
        param.private_data = bytes.as_ptr().cast();
        param.private_data_len = u8::try_from(bytes.len()).unwrap();
        param.initiator_depth = 16;
        param.responder_resources = 200;
        param
    }

    #[test]
    fn private_data_is_copied_whole_even_at_its_longest() {
        let sent: Vec<u8> = (0..=254).collect();
        // SAFETY: the bytes outlive the call.
        let data = unsafe { ConnectionData::of(&param(&sent)) };
        assert_eq!(data.private_data.as_bytes(), sent);
        // SAFETY: zero is a valid value; there is no private data.
        let none = unsafe { ConnectionData::of(&std::mem::zeroed()) };
        assert_eq!(none.private_data.as_bytes(), []);
    }

    #[test]
    fn a_target_never_promises_more_reads_than_peer_device_and_caller_allow() {
        let device = DeviceLimits {
            max_qp_wr: 1,
            max_sge: 1,
            max_sge_rd: 1,
            max_cqe: 1,
            max_qp: 1,
            max_responder_reads: 128,
            max_initiator_reads: 12,
            max_mr_bytes: 1,
        };
        // SAFETY: there is no private data to read.
        let request = unsafe { ConnectionData::of(&param(&[])) };
        let answer = ConnParams::answer(&request, &device, 255);
        assert_eq!((answer.initiator_depth, answer.responder_resources), (12, 128));
        assert_eq!(ConnParams::answer(&request, &device, 4).initiator_depth, 4);
    }

    #[test]
    fn without_a_connection_manager_the_error_says_what_to_do() {
        match EventChannel::new() {
            Ok(channel) => assert!(channel.poll().unwrap().is_none()),
            Err(error @ VerbsError::NoDevice { .. }) => {
                assert!(error.to_string().contains("rdma_ucm"), "{error}");
            }
            Err(other) => panic!("unexpected: {other}"),
        }
    }
}
