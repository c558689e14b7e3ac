//! The NVMe over Fabrics target core: protocol without I/O.
//!
//! It has two halves that never share memory. The data path, [`engine::Engine`], exists once per
//! core: it parses I/O commands, checks them against the namespace, holds their buffers and decides
//! what happens next. The control half exists once per daemon, on an ordinary thread: subsystems,
//! controllers, discovery, and every command that is not an I/O. Both take time, bytes and
//! completions as arguments and return what to do; carriers, block devices and threads are other
//! crates' business. So the same code runs under real verbs, in tests, and under fuzzing.
//!
//! What it does not do: move bytes, talk to a NIC or an SSD, keep time, persist anything; fused
//! commands, metadata and end-to-end protection, reservations, in-band authentication.
#![forbid(unsafe_code)]

mod commands;
mod controller;
pub mod engine;
pub mod limits;
mod output;
mod subsystem;
mod target;
mod verbs;

pub use controller::ControllerState;
pub use output::{CommandKey, Output, QueueKey, QueueKind, SubsystemId};
pub use subsystem::{HealthCounters, Namespace, NamespaceConfig, Subsystem, SubsystemConfig};
pub use target::{QueueInfo, Target, TargetConfig};
pub use verbs::{ControllerInfo, Listener, TargetError, Transport};
