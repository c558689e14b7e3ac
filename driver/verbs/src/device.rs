//! RDMA devices: what they are, what they can do, and what befalls them.

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use libc::c_int;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rdma_sys::{
    ibv_ack_async_event, ibv_async_event, ibv_context, ibv_device_attr, ibv_event_type,
    ibv_event_type_str, ibv_free_device_list, ibv_get_async_event, ibv_get_device_guid,
    ibv_get_device_list, ibv_get_device_name, ibv_query_device, rdma_free_devices,
    rdma_get_devices,
};

use crate::error::VerbsError;
use crate::limits::MAX_READ_DEPTH;

/// An RDMA device that connections were found on. Clones are the same device.
///
/// Its PD, CQs and registrations live as long as something refers to them, even after the device
/// was pulled out of the machine.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Opened>,
}

struct Opened {
    context: NonNull<ibv_context>,
    /// The references that rdma_cm gave us to all contexts, ours among them: without one, it closes
    /// the context of a removed device with that device's last connection.
    references: NonNull<*mut ibv_context>,
    name: String,
    guid: u64,
    limits: DeviceLimits,
}

// SAFETY: libibverbs and librdmacm lock internally; the pointers are only read here.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

/// What a device can do at most, of what this crate uses.
#[derive(Clone, Copy, Debug)]
pub struct DeviceLimits {
    /// Work requests of one queue of a QP.
    pub max_qp_wr: u32,
    /// Scatter-gather entries of one work request other than an RDMA READ.
    pub max_sge: u32,
    /// Scatter-gather entries of an RDMA READ.
    pub max_sge_rd: u32,
    /// Entries of one CQ.
    pub max_cqe: u32,
    /// QPs.
    pub max_qp: u32,
    /// RDMA READs that a QP serves at once, when its peer reads.
    pub max_responder_reads: u8,
    /// RDMA READs that a QP has in flight at once.
    pub max_initiator_reads: u8,
    /// Bytes of one registration.
    pub max_mr_bytes: u64,
}

impl Device {
    /// Names of the RDMA devices of this machine.
    ///
    /// # Errors
    /// [`VerbsError::NoDevice`] where there is none; it says what to do about it.
    pub fn names() -> Result<Vec<String>, VerbsError> {
        const CALL: &str = "ibv_get_device_list";
        let mut count = 0;
        // SAFETY: `count` is ours.
        let list = unsafe { ibv_get_device_list(&raw mut count) };
        if list.is_null() {
            return Err(VerbsError::NoDevice { call: CALL, errno: Errno::last() });
        }
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: the list has that many devices and lives until it is freed below.
        let names = (0..count).map(|at| unsafe { text(ibv_get_device_name(*list.add(at))) });
        let names: Vec<String> = names.collect();
        // SAFETY: the list is not used any more.
        unsafe { ibv_free_device_list(list) };
        if names.is_empty() {
            return Err(VerbsError::NoDevice { call: CALL, errno: Errno::ENODEV });
        }
        Ok(names)
    }

    /// Takes a reference to the device whose context rdma_cm gave to a live connection, and makes
    /// its events pollable.
    ///
    /// # Safety
    /// `context` is the context of a connection that lives during the call.
    pub(crate) unsafe fn of_context(context: NonNull<ibv_context>) -> Result<Self, VerbsError> {
        // SAFETY: the count may be left out.
        let list = unsafe { rdma_get_devices(std::ptr::null_mut()) };
        let references = NonNull::new(list).ok_or_else(|| VerbsError::last("rdma_get_devices"))?;
        let guard = References(references);
        if !guard.contains(context) {
            // It was removed in this very moment.
            return Err(VerbsError::NoDevice { call: "rdma_get_devices", errno: Errno::ENODEV });
        }
        // SAFETY: the context lives: the list refers to it.
        let (device, async_fd) = unsafe {
            let context = context.as_ref();
            (context.device, BorrowedFd::borrow_raw(context.async_fd))
        };
        let nonblocking = |errno| VerbsError::Call { call: "fcntl(async_fd)", errno };
        let flags = fcntl(async_fd, FcntlArg::F_GETFL).map_err(nonblocking)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(async_fd, FcntlArg::F_SETFL(flags)).map_err(nonblocking)?;
        let opened = Opened {
            context,
            references,
            // SAFETY: a context's device lives as long as the context.
            name: unsafe { text(ibv_get_device_name(device)) },
            // SAFETY: as above.
            guid: u64::from_be(unsafe { ibv_get_device_guid(device) }),
            // SAFETY: as above.
            limits: unsafe { DeviceLimits::query(context)? },
        };
        std::mem::forget(guard);
        Ok(Self { inner: Arc::new(opened) })
    }

    /// Name in the kernel, such as `mlx5_0` or `rxe0`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Node GUID.
    pub fn guid(&self) -> u64 {
        self.inner.guid
    }

    /// What the device can do at most.
    pub fn limits(&self) -> &DeviceLimits {
        &self.inner.limits
    }

    /// The next event of the device, its ports or its objects; `None` when there is none now.
    /// The descriptor of [`AsFd`] becomes readable when there is one.
    ///
    /// # Errors
    /// The device is gone.
    pub fn poll_async_event(&self) -> Result<Option<AsyncEvent>, VerbsError> {
        // SAFETY: zero is a valid value; the call fills it.
        let mut event: ibv_async_event = unsafe { std::mem::zeroed() };
        // SAFETY: the context lives as long as this object.
        if unsafe { ibv_get_async_event(self.inner.context.as_ptr(), &raw mut event) } != 0 {
            return match Errno::last() {
                Errno::EAGAIN | Errno::EINTR => Ok(None),
                errno => Err(VerbsError::Call { call: "ibv_get_async_event", errno }),
            };
        }
        // SAFETY: the object that the event names cannot be destroyed before the acknowledgement
        // below, for which its destruction waits.
        let safe = unsafe { AsyncEvent::of(&event) };
        // SAFETY: the event came from `ibv_get_async_event` and is acknowledged once.
        unsafe { ibv_ack_async_event(&raw mut event) };
        Ok(Some(safe))
    }

    pub(crate) fn context(&self) -> NonNull<ibv_context> {
        self.inner.context
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        self.inner.context == other.inner.context
    }
}

impl Eq for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.inner.name).finish()
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context, which owns the descriptor, lives as long as this object.
        unsafe { BorrowedFd::borrow_raw(self.inner.context.as_ref().async_fd) }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        drop(References(self.references));
    }
}

/// Makes rdma_cm notice which devices are gone, so that it closes the context of each with the last
/// thing that uses it: it looks only when it is asked for devices. Until the context is closed, the
/// kernel goes on waiting with the removal of a device that it cannot tear from its users (rxe).
///
/// rdma_cm does not notice when the last of all devices goes (seen in rdma-core 44 to 56): such a
/// device stays until another appears or the process ends.
pub(crate) fn notice_removed_devices() {
    // SAFETY: the count may be left out.
    drop(NonNull::new(unsafe { rdma_get_devices(std::ptr::null_mut()) }).map(References));
}

/// A list of references to contexts, returned when dropped.
struct References(NonNull<*mut ibv_context>);

impl References {
    fn contains(&self, context: NonNull<ibv_context>) -> bool {
        // SAFETY: the list ends with a null pointer.
        let at = |index| unsafe { *self.0.add(index).as_ptr() };
        (0..).map(at).take_while(|listed| !listed.is_null()).any(|l| l == context.as_ptr())
    }
}

impl Drop for References {
    fn drop(&mut self) {
        // SAFETY: the list came from `rdma_get_devices` and is returned once.
        unsafe { rdma_free_devices(self.0.as_ptr()) };
    }
}

impl DeviceLimits {
    /// # Safety
    /// `context` is open.
    unsafe fn query(context: NonNull<ibv_context>) -> Result<Self, VerbsError> {
        // SAFETY: zero is a valid value; the call fills it.
        let mut attr: ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, by the contract of this function.
        let errno = unsafe { ibv_query_device(context.as_ptr(), &raw mut attr) };
        if errno != 0 {
            return Err(VerbsError::Call {
                call: "ibv_query_device",
                errno: Errno::from_raw(errno),
            });
        }
        let count = |value: c_int| u32::try_from(value).unwrap_or(0);
        let reads = |value: c_int| u8::try_from(value.clamp(0, MAX_READ_DEPTH.into())).unwrap_or(0);
        Ok(Self {
            max_qp_wr: count(attr.max_qp_wr),
            max_sge: count(attr.max_sge),
            max_sge_rd: count(attr.max_sge_rd),
            max_cqe: count(attr.max_cqe),
            max_qp: count(attr.max_qp),
            max_responder_reads: reads(attr.max_qp_rd_atom),
            max_initiator_reads: reads(attr.max_qp_init_rd_atom),
            max_mr_bytes: attr.max_mr_size,
        })
    }
}

/// What an [`AsyncEvent`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncSource {
    /// The QP with this number.
    Qp {
        /// Its number.
        qp_num: u32,
    },
    /// A completion queue.
    Cq,
    /// A port of the device, counted from 1.
    Port {
        /// Its number.
        port: i32,
    },
    /// The device itself, or something this crate does not use.
    Device,
}

/// Something that happened to a device outside of any completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// What it is about.
    pub source: AsyncSource,
    /// `enum ibv_event_type`; newer libraries may give numbers unknown here.
    pub code: u32,
}

impl AsyncEvent {
    /// Whether its source is unusable from now on.
    pub fn is_fatal(&self) -> bool {
        use ibv_event_type as event;
        [
            event::IBV_EVENT_CQ_ERR,
            event::IBV_EVENT_QP_FATAL,
            event::IBV_EVENT_QP_REQ_ERR,
            event::IBV_EVENT_QP_ACCESS_ERR,
            event::IBV_EVENT_DEVICE_FATAL,
        ]
        .contains(&self.code)
    }

    /// # Safety
    /// The event was got and not acknowledged yet.
    unsafe fn of(event: &ibv_async_event) -> Self {
        use ibv_event_type as kind;
        let code = event.event_type;
        let source = match code {
            kind::IBV_EVENT_QP_FATAL
            | kind::IBV_EVENT_QP_REQ_ERR
            | kind::IBV_EVENT_QP_ACCESS_ERR
            | kind::IBV_EVENT_COMM_EST
            | kind::IBV_EVENT_SQ_DRAINED
            | kind::IBV_EVENT_PATH_MIG
            | kind::IBV_EVENT_PATH_MIG_ERR
            | kind::IBV_EVENT_QP_LAST_WQE_REACHED => {
                // SAFETY: these events carry a QP, which lives by the contract of this function.
                AsyncSource::Qp { qp_num: unsafe { (*event.element.qp).qp_num } }
            }
            kind::IBV_EVENT_CQ_ERR => AsyncSource::Cq,
            kind::IBV_EVENT_PORT_ACTIVE
            | kind::IBV_EVENT_PORT_ERR
            | kind::IBV_EVENT_LID_CHANGE
            | kind::IBV_EVENT_PKEY_CHANGE
            | kind::IBV_EVENT_SM_CHANGE
            | kind::IBV_EVENT_CLIENT_REREGISTER
            | kind::IBV_EVENT_GID_CHANGE => {
                // SAFETY: these events carry a port number.
                AsyncSource::Port { port: unsafe { event.element.port_num } }
            }
            _ => AsyncSource::Device,
        };
        Self { source, code }
    }
}

impl fmt::Display for AsyncEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: gives a constant string for any number.
        let name = unsafe { text(ibv_event_type_str(self.code)) };
        write!(f, "{name} ({:?})", self.source)
    }
}

/// Copies a string of the library.
///
/// # Safety
/// `string` is null or ends with a zero byte.
pub(crate) unsafe fn text(string: *const libc::c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: by the contract of this function.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_device_the_error_says_what_to_do() {
        match Device::names() {
            Ok(names) => assert!(!names.is_empty()),
            Err(error @ VerbsError::NoDevice { .. }) => {
                assert!(error.to_string().contains("rdma link add"), "{error}");
            }
            Err(other) => panic!("unexpected: {other}"),
        }
    }

    #[test]
    fn events_name_their_source_and_unknown_ones_are_kept() {
        // SAFETY: zero is a valid value.
        let mut event: ibv_async_event = unsafe { std::mem::zeroed() };
        event.event_type = ibv_event_type::IBV_EVENT_PORT_ERR;
        event.element.port_num = 2;
        // SAFETY: the event carries a port.
        let port = unsafe { AsyncEvent::of(&event) };
        assert_eq!(port.source, AsyncSource::Port { port: 2 });
        assert!(!port.is_fatal());

        event.event_type = 4711;
        // SAFETY: an unknown event carries nothing.
        let unknown = unsafe { AsyncEvent::of(&event) };
        assert_eq!(unknown, AsyncEvent { source: AsyncSource::Device, code: 4711 });
        assert!(!unknown.to_string().is_empty());
    }
}
