//! Non-blocking TCP sockets whose bytes come from the arena and go there.
//!
//! A [`Socket`] receives into a [`DmaSpan`] and what lies behind it in one system call, and sends a
//! [`Gather`] of spans and ordinary bytes in one. A [`Poller`] tells which sockets have something
//! to receive or room to send, without waiting or with.
//!
//! Spans live as long as the process, and the kernel copies within the call, so that nothing is
//! left behind that could outlive its memory.
//!
//! What it does not do: name resolution, TLS, zero-copy sends, or any protocol.
#![allow(unsafe_code)]

mod poller;
mod socket;

pub use poller::{Poller, Ready};
pub use socket::{Gather, MAX_GATHER, Moved, Socket};
