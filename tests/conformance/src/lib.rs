//! The host side against the target: one protocol suite, run over a network in memory that cuts
//! bytes anywhere, and over loopback TCP with connections that break at any byte.
//!
//! [`TargetSide`] is a whole target (control half, one core's engine, connections, a RAM block
//! device) that takes and gives bytes; [`Server`] puts it behind a listener. [`HostSide`] is an
//! association and one I/O queue of the host's core, which takes and gives bytes as well; [`Wire`]
//! moves them between the two.
//!
//! What it does not do: RDMA, several cores, slow block devices.
#![forbid(unsafe_code)]

mod host_side;
mod random;
mod server;
mod target_side;
mod wire;

pub use host_side::HostSide;
pub use random::Random;
pub use server::{Server, ServerConfig};
pub use target_side::{BLOCK_BYTES, BLOCK_COUNT, NQN, TargetSide};
pub use wire::{Pump, Wire};
