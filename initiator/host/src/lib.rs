//! NVMe over Fabrics from the host's side: finds subsystems, connects to them, and moves data.
//!
//! - [`discover`] asks which subsystems there are.
//! - [`Controller::connect`] connects to one, tells its [`Namespace`]s, keeps the association alive
//!   and restores it when it is lost.
//! - [`Controller::open_queue`] gives an [`IoQueue`] for each core: I/Os are submitted and their
//!   completions polled, without locks, and data goes between the socket and the caller's memory
//!   without another copy wherever it can.
//! - [`Attached`] is all of that for one thread and one namespace, each call waiting for its I/O.
//!
//! Protocol is apart from I/O. `connection` is the state machine of one NVMe/TCP connection and
//! `admin` that of an association; both take bytes, completions and time as arguments. `link` has
//! the socket. A controller that lies (about identifiers, lengths, offsets, order) makes us end the
//! connection, and never reaches memory beyond that of the command it names.
//!
//! What it does not do: RDMA, TLS, authentication, several paths to one namespace, metadata and
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
mod options;
mod shared;
mod slots;
mod spans;

/// The state machines without I/O, for whoever has another way to move bytes: a simulated network,
/// a fuzzer.
pub mod protocol {
    pub use crate::admin::commands::connect_io;
    pub use crate::admin::{Admin, Output, Request};
    pub use crate::connection::{Completed, Connection, Event, Left};
    pub use crate::slots::{Answer, Command, Effect};
}

pub use attached::Attached;
pub use controller::{Controller, ControllerEvent};
pub use discovery::{Discovered, SubsystemKind, Transport, discover};
pub use error::Error;
pub use info::{ControllerInfo, Namespace};
pub use io::{Completion, Io, Op};
pub use io_queue::{Busy, IoQueue};
pub use options::{HostIdentity, Options, Reconnect};
pub use spans::Spans;
