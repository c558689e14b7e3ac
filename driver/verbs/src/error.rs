//! The one error type of this crate.

use std::net::SocketAddr;

use nix::errno::Errno;
use thiserror::Error;

/// Which of a QP's two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkQueue {
    /// The receive queue.
    Recv,
    /// The send queue: SEND, RDMA WRITE, RDMA READ.
    Send,
}

/// Why a call into the RDMA stack failed, or was not made.
#[derive(Debug, Error)]
pub enum VerbsError {
    /// The kernel has no RDMA device, or no RDMA support at all.
    #[error(
        "no RDMA device ({call}: {errno}); load the NIC's driver and rdma_ucm, or for soft-RoCE: \
         modprobe -a rdma_rxe rdma_ucm && rdma link add rxe0 type rxe netdev INTERFACE"
    )]
    NoDevice {
        /// The call that found none.
        call: &'static str,
        /// Its reason.
        errno: Errno,
    },
    /// A call failed.
    #[error("{call}: {errno}")]
    Call {
        /// The call.
        call: &'static str,
        /// Its reason.
        errno: Errno,
    },
    /// A call that concerns an address failed.
    #[error("{call} {address}: {errno}{}", address_hint(*errno))]
    Address {
        /// The call.
        call: &'static str,
        /// The address it was given.
        address: SocketAddr,
        /// Its reason.
        errno: Errno,
    },
    /// The device cannot pin the memory.
    #[error(
        "registering {bytes} bytes with {device}: {errno}; the limit on locked memory is \
         {limit_bytes} bytes: raise it with `ulimit -l unlimited` or LimitMEMLOCK=infinity"
    )]
    Register {
        /// Name of the device.
        device: String,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes this process may lock (`u64::MAX`: no limit).
        limit_bytes: u64,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The device gives no memory window of type 2.
    #[error("{device} gives no memory window of type 2: {errno}")]
    NoWindow {
        /// Name of the device.
        device: String,
        /// The kernel's reason; "not supported" where the device knows no such windows.
        errno: Errno,
    },
    /// More was asked for than the device, or this crate, allows.
    #[error("{what}: {wanted} wanted, {limit} possible")]
    Limit {
        /// What was asked for.
        what: &'static str,
        /// How much of it.
        wanted: u64,
        /// How much there can be.
        limit: u64,
    },
    /// The connection is not bound to a device yet: its address is not resolved.
    #[error("{call}: the connection is not bound to an RDMA device")]
    Unbound {
        /// What was attempted.
        call: &'static str,
    },
    /// Objects of different devices were combined.
    #[error("{call}: {what} belongs to another RDMA device than the connection")]
    OtherDevice {
        /// What was attempted.
        call: &'static str,
        /// The object that does not fit.
        what: &'static str,
    },
    /// A scatter-gather entry is empty or leaves the registered memory.
    #[error("{len} bytes at {addr:#x} are not within the {bytes} registered bytes at {base:#x}")]
    OutsideRegion {
        /// First address of the entry.
        addr: u64,
        /// Its length in bytes.
        len: u32,
        /// First address of the registered memory.
        base: u64,
        /// Its length in bytes.
        bytes: u64,
    },
    /// As many work requests are queued as the QP's queue holds: flush first.
    #[error("{queue:?} chain is full: {depth} work requests")]
    ChainFull {
        /// The queue.
        queue: WorkQueue,
        /// Its depth.
        depth: u32,
    },
    /// The device refused a chain of work requests. The connection is to be torn down;
    /// [`RdmaQp::take_unposted`](crate::RdmaQp::take_unposted) tells which requests the device does
    /// not have.
    #[error("{queue:?} chain: {errno} after {posted} work requests, {unposted} not posted")]
    Post {
        /// The queue.
        queue: WorkQueue,
        /// The device's reason.
        errno: Errno,
        /// Work requests that the device took.
        posted: usize,
        /// Work requests that it did not take.
        unposted: usize,
    },
}

impl VerbsError {
    /// `errno` as the reason why `call` failed.
    pub(crate) fn last(call: &'static str) -> Self {
        Self::Call { call, errno: Errno::last() }
    }

    /// Checks that `wanted` is within `1..=limit`.
    pub(crate) fn check_limit(what: &'static str, wanted: u32, limit: u32) -> Result<(), Self> {
        if (1..=limit).contains(&wanted) {
            return Ok(());
        }
        Err(Self::Limit { what, wanted: wanted.into(), limit: limit.into() })
    }
}

fn address_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ENODEV | Errno::EADDRNOTAVAIL => {
            "; no RDMA device has this address (`rdma link` lists devices, `ip addr` addresses)"
        }
        Errno::EADDRINUSE => "; another listener has this port",
        _ => "",
    }
}
