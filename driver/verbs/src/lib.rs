//! A safe, thin, polled layer over libibverbs and librdmacm, for both ends of NVMe/RDMA. The only
//! user of `rdma-sys`.
//!
//! How it works. An [`EventChannel`] reports what happens to connections; its descriptor goes into
//! an epoll set or is polled. A [`CmId`] is one connection or listener. Once it is bound to a
//! [`Device`], that device's [`Pd`], [`Mr`] and [`Cq`]s are made, one set for each device, and the
//! connection's [`RdmaQp`], which a core then drives: it queues work requests, flushes them once
//! per turn (one call for all receives, one for all sends) and polls the CQ, which any number of
//! QPs share. Nothing on that path allocates, or locks beyond what the device's provider does.
//! Whoever has nothing else to do may wait for a CQ ([`Cq::with_channel`]) instead of polling.
//!
//! A target: [`CmId::bind`], [`CmId::listen`], [`CmEvent::ConnectRequest`], [`RdmaQp::new`],
//! receives posted, [`CmId::accept`] or [`CmId::reject`], [`CmEvent::Established`]. An initiator:
//! [`CmId::resolve_addr`], [`CmId::resolve_route`], [`RdmaQp::new`], [`CmId::connect`], each after
//! the event that ends the step before. Either: [`CmId::disconnect`], [`CmEvent::Disconnected`],
//! and polling until all that was outstanding has completed.
//!
//! What makes it safe:
//! - Memory is registered only as a whole [`dma::Arena`], which is never unmapped and never lent as
//!   a slice, and every entry of every work request is checked to lie in it. A wrong address moves
//!   wrong bytes; it cannot reach memory outside.
//! - Each object keeps alive what it was made from, so they are destroyed in the right order
//!   whatever the order in which they are dropped; so is a device that was pulled out.
//! - Events are copied and acknowledged under the lock of their channel, which every call on a
//!   connection takes: a connection cannot be destroyed under an event, nor a QP under a call.
//! - A QP reserves room in its CQs for all it can have outstanding; a CQ cannot overflow.
//! - What a peer sends arrives as bytes and numbers, never as an enum or a pointer.
//!
//! Threads: all objects may be made on one thread and moved to another. [`RdmaQp`] and [`Cq`] are
//! used by one thread at a time; the others by any number. [`CmId::qp_to_error`] and
//! [`CmId::disconnect`] may be called while another thread posts and polls.
//!
//! What it does not do: datagrams, shared receive queues, atomics, fast registration, memory other
//! than an arena; it counts no outstanding work requests and never retries. Without an
//! RDMA device every constructor gives [`VerbsError::NoDevice`].
#![allow(unsafe_code)]

mod chain;
mod channel;
mod cm_id;
mod cq;
mod device;
mod error;
pub mod limits;
mod memory;
mod qp;
mod sockaddr;

pub use channel::{CmEvent, ConnParams, ConnectStep, ConnectionData, EventChannel, PrivateData};
pub use cm_id::{CmId, CmKey};
pub use cq::{Completion, Cq, CqHandle, WcOpcode, WcStatus};
pub use device::{AsyncEvent, AsyncSource, Device, DeviceLimits};
pub use error::{VerbsError, WorkQueue};
pub use memory::{Access, Mr, Pd, Sge};
pub use qp::{QpCounters, QpLimits, RdmaQp};
