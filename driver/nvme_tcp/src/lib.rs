//! Framing of NVMe/TCP PDUs (NVMe/TCP Transport Specification 1.1, section 3.3): what hosts and
//! controllers share.
//!
//! [`layout`] checks what a PDU begins with and tells where its header, digests and data lie. A
//! [`Receiver`] takes a stream of bytes apart into PDUs and puts their data where it belongs; an
//! [`Outbox`] is a queue of PDUs to send, as [`Piece`]s: headers of its own, and the very memory
//! that holds the data. [`Crc`] is the digest of either.
//!
//! What it does not do: I/O, and anything that needs to know what a PDU means.
#![forbid(unsafe_code)]

mod digest;
mod header;
pub mod limits;
mod receive;
mod send;

pub use digest::{Crc, digest_of};
pub use header::{Digests, Fault, Layout, Sender, layout};
pub use receive::{Received, Receiver};
pub use send::{Outbox, PduHeader, Piece};
