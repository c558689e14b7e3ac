//! NVMe over Fabrics from the host's side: finds subsystems, connects to them, and moves data.
//!
//! - [`discover`] asks which subsystems there are.
//! - [`Controller::connect`] connects to one, tells its [`Namespace`]s, keeps the association alive
//!   and restores it when it is lost.
//! - [`Controller::open_queue`] gives an [`IoQueue`] for each core: I/Os are submitted and their
//!   completions polled, without locks. Data goes between the socket and the caller's memory
//!   without another copy wherever it can; over RDMA the controller moves it, by a key to that
//!   memory alone.
//! - [`Attached`] is all of that for one thread and one namespace, each call waiting for its I/O.
//!
//! Protocol is apart from I/O. `connection` is the state machine of one NVMe/TCP connection,
//! `rdma_connection` that of one NVMe/RDMA connection, and `admin` that of an association; all take
//! bytes, completions and time as arguments. `link` has the socket, or the queue pair. A controller
//! that lies (about identifiers, lengths, offsets, order, keys) makes us end the connection, and
//! never reaches memory beyond that of the command it names.
//!
//! What it does not do: TLS, authentication, several paths to one namespace, metadata and
//! end-to-end protection, fused commands, Abort (a command that takes too long ends its
//! association), and I/O on threads of its own.
#![forbid(unsafe_code)]

mod admin;
mod association;
mod attached;
mod connection;
mod controller;
mod discovery;
mod error;
mod info;
mod io;
mod io_queue;
pub mod limits;
mod link;
mod memory;
mod options;
mod rdma_connection;
mod shared;
mod slots;
mod spans;

/// The state machines without I/O, for whoever has another way to move bytes: a simulated network,
/// a fuzzer.
pub mod protocol {
    pub use crate::admin::commands::connect_io;
    pub use crate::admin::{Admin, Output, Request};
    pub use crate::connection::{Connection, Event};
    pub use crate::rdma_connection::{Capsule, Placement, RdmaConnection, Violation};
    pub use crate::slots::{Answer, Command, Completed, Effect, Left};
}

pub use attached::Attached;
pub use controller::{Controller, ControllerEvent};
pub use discovery::{Discovered, SubsystemKind, discover};
pub use error::{Error, RdmaRejection};
pub use info::{ControllerInfo, Namespace};
pub use io::{Completion, Io, Op};
pub use io_queue::{Busy, IoQueue};
pub use options::{HostIdentity, Options, Reconnect, Transport};
pub use spans::Spans;
