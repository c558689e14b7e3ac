//! Connections and listeners of rdma_cm.

use std::net::SocketAddr;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use libc::c_void;
use nix::errno::Errno;
use rdma_sys::{
    ibv_modify_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_state, rdma_accept, rdma_bind_addr,
    rdma_cm_id, rdma_conn_param, rdma_connect, rdma_create_id, rdma_destroy_id, rdma_disconnect,
    rdma_listen, rdma_port_space, rdma_reject, rdma_resolve_addr, rdma_resolve_route,
};

use crate::channel::{Channel, ConnParams, address_error};
use crate::device::Device;
use crate::error::VerbsError;
use crate::limits::{
    ACCEPT_PRIVATE_DATA_BYTES, CONNECT_PRIVATE_DATA_BYTES, REJECT_PRIVATE_DATA_BYTES,
};
use crate::sockaddr::{self, RawAddr};

/// A connection, or a listener. Dropping it closes it, once its QP is gone too.
///
/// It may be used from any thread: every call takes the lock of its event channel for a moment. It
/// belongs on the control path; the data path has the [`RdmaQp`](crate::RdmaQp).
#[derive(Debug)]
pub struct CmId {
    inner: Arc<Connection>,
}

/// Which connection, or listener, an event is about. Never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CmKey(u64);

/// The connection itself, kept alive by its QP as well.
#[derive(Debug)]
pub(crate) struct Connection {
    raw: NonNull<rdma_cm_id>,
    key: CmKey,
    channel: Arc<Channel>,
}

// SAFETY: everything behind the pointer is reached under the channel's lock.
unsafe impl Send for Connection {}
// SAFETY: as above.
unsafe impl Sync for Connection {}

impl CmId {
    /// The name under which events speak of it.
    pub fn key(&self) -> CmKey {
        self.inner.key
    }

    /// Binds it to a local address; port 0 picks one, which [`local_addr`](Self::local_addr) tells.
    ///
    /// # Errors
    /// The address or port is not to be had.
    pub fn bind(&self, address: SocketAddr) -> Result<(), VerbsError> {
        let mut raw = RawAddr::new(address);
        let _guard = self.inner.channel.lock();
        // SAFETY: the connection lives and is locked; the address is only read.
        if unsafe { rdma_bind_addr(self.inner.raw.as_ptr(), raw.as_mut_ptr()) } != 0 {
            return Err(address_error("rdma_bind_addr", address));
        }
        Ok(())
    }

    /// Makes it a listener on the address it is bound to; `backlog` is the number of connect
    /// requests that may wait.
    ///
    /// # Errors
    /// It is not bound, or the kernel refuses.
    pub fn listen(&self, backlog: u16) -> Result<(), VerbsError> {
        let _guard = self.inner.channel.lock();
        // SAFETY: the connection lives and is locked.
        if unsafe { rdma_listen(self.inner.raw.as_ptr(), backlog.into()) } != 0 {
            return Err(VerbsError::last("rdma_listen"));
        }
        Ok(())
    }

    /// Starts to find the device for `peer`; the answer is an event, after `timeout` at the latest.
    ///
    /// # Errors
    /// The kernel refuses at once.
    pub fn resolve_addr(&self, peer: SocketAddr, timeout: Duration) -> Result<(), VerbsError> {
        let mut raw = RawAddr::new(peer);
        let _guard = self.inner.channel.lock();
        let timeout_ms = milliseconds(timeout);
        // SAFETY: the connection lives and is locked; the address is only read, and a missing
        // local address means any.
        let result = unsafe {
            rdma_resolve_addr(self.inner.raw.as_ptr(), null_mut(), raw.as_mut_ptr(), timeout_ms)
        };
        if result != 0 {
            return Err(address_error("rdma_resolve_addr", peer));
        }
        Ok(())
    }

    /// Starts to find the way to the peer, whose address is resolved; the answer is an event.
    ///
    /// # Errors
    /// The address is not resolved yet, or the kernel refuses.
    pub fn resolve_route(&self, timeout: Duration) -> Result<(), VerbsError> {
        let timeout_ms = milliseconds(timeout);
        // SAFETY: the closure gets a live, locked and bound connection.
        self.bound("rdma_resolve_route", |raw| unsafe { rdma_resolve_route(raw, timeout_ms) })
    }

    /// Asks the peer for a connection; the answer is an event. Needs a QP.
    ///
    /// # Errors
    /// The private data is too long, parameters are beyond the device, or the kernel refuses.
    pub fn connect(&self, params: &ConnParams, private_data: &[u8]) -> Result<(), VerbsError> {
        let mut param = params.raw(private_data, CONNECT_PRIVATE_DATA_BYTES)?;
        // SAFETY: the closure gets a live, locked and bound connection; the parameters are copied.
        self.bound("rdma_connect", |raw| unsafe { rdma_connect(raw, &raw mut param) })
    }

    /// Accepts the peer's connect request. Needs a QP, with receives posted: the peer may send at
    /// once.
    ///
    /// # Errors
    /// The private data is too long, parameters are beyond the device, the peer has gone away, or
    /// there is no QP.
    pub fn accept(&self, params: &ConnParams, private_data: &[u8]) -> Result<(), VerbsError> {
        let mut param = params.raw(private_data, ACCEPT_PRIVATE_DATA_BYTES)?;
        // SAFETY: the closure gets a live, locked and bound connection; the parameters are copied.
        self.bound("rdma_accept", |raw| unsafe { rdma_accept(raw, &raw mut param) })
    }

    /// Turns the peer's connect request down.
    ///
    /// # Errors
    /// The private data is too long, or the peer has gone away.
    pub fn reject(&self, private_data: &[u8]) -> Result<(), VerbsError> {
        let len = private_data_len(private_data, REJECT_PRIVATE_DATA_BYTES)?;
        let bytes = private_data.as_ptr().cast::<c_void>();
        // SAFETY: the closure gets a live, locked and bound connection; the bytes are copied.
        self.bound("rdma_reject", |raw| unsafe { rdma_reject(raw, bytes, len) })
    }

    /// Ends the connection: its QP goes to the error state, so that all its work requests complete,
    /// and both sides get an event.
    ///
    /// # Errors
    /// There is no connection.
    pub fn disconnect(&self) -> Result<(), VerbsError> {
        // SAFETY: the closure gets a live, locked and bound connection.
        self.bound("rdma_disconnect", |raw| unsafe { rdma_disconnect(raw) })
    }

    /// Puts its QP, if it has one, into the error state: all its work requests complete, with an
    /// error, and no more of its bytes move. The peer notices with its next request.
    ///
    /// # Errors
    /// The device refuses.
    pub fn qp_to_error(&self) -> Result<(), VerbsError> {
        self.inner.qp_to_error()
    }

    /// The local address, as far as it is known.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let _guard = self.inner.channel.lock();
        // SAFETY: the connection lives and is locked; all variants are plain integers.
        let storage = unsafe { self.inner.raw.as_ref().route.addr.src_addr_union.src_storage };
        sockaddr::from_storage(&storage)
    }

    /// The peer's address, as far as it is known.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        let _guard = self.inner.channel.lock();
        // SAFETY: the connection lives and is locked; all variants are plain integers.
        let storage = unsafe { self.inner.raw.as_ref().route.addr.dst_addr_union.dst_storage };
        sockaddr::from_storage(&storage)
    }

    /// The device it is bound to. Compare it with the devices already known: PDs, CQs and
    /// registrations are made once for each.
    ///
    /// # Errors
    /// It is not bound to a device yet, or that device has just gone away.
    pub fn device(&self) -> Result<Device, VerbsError> {
        let _guard = self.inner.channel.lock();
        // SAFETY: the connection lives and is locked.
        let context = unsafe { self.inner.raw.as_ref().verbs };
        let context = NonNull::new(context).ok_or(VerbsError::Unbound { call: "device" })?;
        // SAFETY: the context lives as long as the connection, which is locked.
        unsafe { Device::of_context(context) }
    }

    /// Whether it is bound to this device. Unlike [`device`](Self::device) it can be asked of a
    /// device that has just gone away.
    pub fn is_on(&self, device: &Device) -> bool {
        let _guard = self.inner.channel.lock();
        // SAFETY: the connection lives and is locked. A context that it is bound to is open as long
        // as the connection is, so no other device's can have the same address.
        unsafe { self.inner.raw.as_ref().verbs == device.context().as_ptr() }
    }

    pub(crate) fn create(channel: &Arc<Channel>) -> Result<Self, VerbsError> {
        let key = CmKey::next();
        let mut raw = null_mut();
        let _guard = channel.lock();
        // SAFETY: the channel is open; the key travels as the connection's context.
        let result = unsafe {
            let space = rdma_port_space::RDMA_PS_TCP;
            rdma_create_id(channel.raw().as_ptr(), &raw mut raw, key.to_context(), space)
        };
        match NonNull::new(raw) {
            Some(raw) if result == 0 => {
                let channel = Arc::clone(channel);
                Ok(Self { inner: Arc::new(Connection { raw, key, channel }) })
            }
            _ => Err(VerbsError::last("rdma_create_id")),
        }
    }

    /// Takes a connection that came with a connect request.
    ///
    /// # Safety
    /// The connection lives on `channel`, which is locked, and nobody else will destroy it.
    pub(crate) unsafe fn adopt(mut raw: NonNull<rdma_cm_id>, channel: &Arc<Channel>) -> Self {
        let key = CmKey::next();
        // SAFETY: the connection lives. It came with the listener's key.
        unsafe { raw.as_mut().context = key.to_context() };
        Self { inner: Arc::new(Connection { raw, key, channel: Arc::clone(channel) }) }
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.inner
    }

    /// Makes a call that librdmacm makes through the device, without looking whether there is one.
    fn bound(
        &self,
        call: &'static str,
        make: impl FnOnce(*mut rdma_cm_id) -> i32,
    ) -> Result<(), VerbsError> {
        let _guard = self.inner.channel.lock();
        // SAFETY: the connection lives and is locked.
        if unsafe { self.inner.raw.as_ref().verbs.is_null() } {
            return Err(VerbsError::Unbound { call });
        }
        if make(self.inner.raw.as_ptr()) != 0 { Err(VerbsError::last(call)) } else { Ok(()) }
    }
}

impl Connection {
    /// Runs `work` with the connection locked.
    pub(crate) fn locked<T>(&self, work: impl FnOnce(NonNull<rdma_cm_id>) -> T) -> T {
        let _guard = self.channel.lock();
        work(self.raw)
    }

    pub(crate) fn qp_to_error(&self) -> Result<(), VerbsError> {
        let _guard = self.channel.lock();
        // SAFETY: the connection lives and is locked: its QP is not destroyed meanwhile.
        let errno = unsafe {
            let qp = self.raw.as_ref().qp;
            if qp.is_null() {
                return Ok(());
            }
            let mut attr: ibv_qp_attr = std::mem::zeroed();
            attr.qp_state = ibv_qp_state::IBV_QPS_ERR;
            #[allow(clippy::cast_possible_wrap)] // a flag of bit 0
            ibv_modify_qp(qp, &raw mut attr, ibv_qp_attr_mask::IBV_QP_STATE.0 as i32)
        };
        if errno == 0 {
            return Ok(());
        }
        Err(VerbsError::Call { call: "ibv_modify_qp", errno: Errno::from_raw(errno) })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _guard = self.channel.lock();
        // SAFETY: this is the last reference, and the QP, which held one, is gone. No event is
        // outstanding, because events are acknowledged under the lock: this does not wait.
        if unsafe { rdma_destroy_id(self.raw.as_ptr()) } != 0 {
            tracing::warn!(key = self.key.0, errno = %Errno::last(), "rdma_destroy_id failed");
        }
    }
}

impl CmKey {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn to_context(self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0 as usize)
    }

    /// # Safety
    /// The connection lives, and its channel is locked.
    pub(crate) unsafe fn of(id: *const rdma_cm_id) -> Self {
        // SAFETY: by the contract; every connection's context is its key.
        Self(unsafe { (*id).context }.addr() as u64)
    }
}

impl ConnParams {
    fn raw(&self, private_data: &[u8], limit: usize) -> Result<rdma_conn_param, VerbsError> {
        // SAFETY: zero is a valid value.
        let mut param: rdma_conn_param = unsafe { std::mem::zeroed() };
        param.private_data = private_data.as_ptr().cast();
        param.private_data_len = private_data_len(private_data, limit)?;
        param.initiator_depth = self.initiator_depth;
        param.responder_resources = self.responder_resources;
        param.retry_count = self.retry_count.min(7);
        param.rnr_retry_count = self.rnr_retry_count.min(7);
        param.flow_control = 1;
        Ok(param)
    }
}

fn private_data_len(private_data: &[u8], limit: usize) -> Result<u8, VerbsError> {
    let too_long = VerbsError::Limit {
        what: "bytes of private data",
        wanted: private_data.len() as u64,
        limit: limit as u64,
    };
    let len = u8::try_from(private_data.len()).ok().filter(|len| usize::from(*len) <= limit);
    len.ok_or(too_long)
}

/// What the C interface takes: at least one millisecond, where 0 would mean none at all.
fn milliseconds(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_data_beyond_its_limit_is_refused_before_any_call() {
        let params = ConnParams::default();
        let fits = params.raw(&[0; 56], CONNECT_PRIVATE_DATA_BYTES).unwrap();
        assert_eq!((fits.private_data_len, fits.retry_count), (56, 7));
        let error = params.raw(&[0; 57], CONNECT_PRIVATE_DATA_BYTES).err().unwrap();
        assert!(matches!(error, VerbsError::Limit { wanted: 57, limit: 56, .. }), "{error}");
        assert!(params.raw(&[0; 300], ACCEPT_PRIVATE_DATA_BYTES).is_err());
    }

    #[test]
    fn keys_travel_through_the_context() {
        let key = CmKey::next();
        // SAFETY: zero is a valid value.
        let mut id: rdma_cm_id = unsafe { std::mem::zeroed() };
        id.context = key.to_context();
        // SAFETY: the struct lives.
        assert_eq!(unsafe { CmKey::of(&raw const id) }, key);
        assert_ne!(CmKey::next(), key);
    }

    #[test]
    fn timeouts_stay_in_range() {
        assert_eq!(milliseconds(Duration::ZERO), 1);
        assert_eq!(milliseconds(Duration::MAX), i32::MAX);
    }
}
