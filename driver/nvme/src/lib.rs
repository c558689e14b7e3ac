//! The NVMe driver: a controller is brought up, driven by polling, and recovered when it fails.
//!
//! [`NvmeDevice`] is the admin side. It lives on a control thread, whose [`NvmeDevice::poll`] moves
//! it from step to step and never waits. [`IoQueuePair`] is one core's way to the namespaces: a
//! submission and a completion queue, with no lock, allocation or system call from submission to
//! completion. The two sides share a few atomics and nothing else: a phase that the device
//! publishes and each queue pair acknowledges (docs/decisions/0003).
//!
//! Everything is generic over [`PciDevice`], the seam to the hardware: `vfio::Device` in earnest,
//! an emulated controller with declared faults in tests.
//!
//! The controller is not trusted: what it says is checked once, where it is read, and a wrong
//! answer ends that controller and nothing else. It reaches no memory but the arena (IOMMU).
//!
//! What it does not do: interrupts, metadata and protection information, block sizes other than
//! 512 and 4096 bytes, memory pages other than 4 KiB, namespace management, command sets other than
//! NVM, several controllers for one namespace.
#![forbid(unsafe_code)]

mod admin;
mod config;
mod device;
mod error;
pub mod limits;
mod memory;
mod namespace;
mod prp;
mod queue;
mod quirks;
mod ring;
mod seam;
mod shared;

pub use config::Config;
pub use device::{Identity, NvmeDevice};
pub use error::{NamespaceFault, NvmeError};
pub use namespace::Namespace;
pub use queue::{Busy, Command, Completion, IoQueuePair, Op};
pub use quirks::Quirks;
pub use seam::{PciDevice, SeamError};
pub use shared::{Health, QueuePool, QueueStats};
