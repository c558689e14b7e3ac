//! Carries the NVMe over Fabrics core over TCP (NVMe/TCP Transport Specification 1.1).
//!
//! [`Connection`] is the state machine of one connection and does no I/O. Bytes that were received
//! go into it, and what it makes of them comes out as [`ConnectionEvent`]s: a command capsule, a
//! host's data, a response that has left. What is to be sent comes out as [`Piece`]s: headers of
//! its own, and the very memory that a block device has filled.
//!
//! Data is received where it belongs: while a PDU's data is due, [`Connection::payload`] names the
//! memory that the next bytes go to, so that whoever has the socket can receive there directly.
//!
//! A capsule slot is taken when a command arrives and free again when its response has left. A host
//! that sends more commands than its queue holds is not read until one is: it only delays itself.
//!
//! [`TcpCarrier`] has a core's connections with their sockets. It receives and sends for all of
//! them without waiting for any, turns what comes into events for the engine, and takes the
//! engine's steps. A connection takes, besides its slots, one buffer for what was received and
//! cannot be taken in yet.
//!
//! What it does not do: listening, time, TLS, or more than one R2T for a command at a time.
#![forbid(unsafe_code)]

mod carrier;
mod connection;
pub mod limits;
mod link;

pub use carrier::{CarrierConfig, CarrierStats, Detached, Event, TcpCarrier};
pub use connection::{Connection, ConnectionConfig, ConnectionEvent};
pub use nvme_tcp::{Fault, Piece};
