//! A seeded world of block devices that lose, tear and reorder writes, and pools in it.
//!
//! A [`World`] has devices, each with a volatile cache, that a seed drives. It counts steps, and
//! makes an [`Image`] of what power loss or the death of the process would leave at any of them,
//! without ending the run: a second world goes on from there. So one run is attacked at every step.
//!
//! What it does not do: time-outs, devices that come and go, threads. Cores are interleaved on one
//! thread; what true concurrency does is for loom.
#![forbid(unsafe_code)]

mod check;
mod device;
mod history;
mod media;
mod memory;
mod model;
mod pattern;
mod random;
mod store;
mod world;

pub use check::Check;
pub use device::{Deallocated, DeviceConfig, Faults};
pub use memory::Memory;
pub use model::{Model, Operation, Violation};
pub use pattern::Found;
pub use random::{Random, mix};
pub use world::{End, Image, Watch, World};
