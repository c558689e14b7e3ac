//! A seeded world of block devices that lose, tear and reorder writes, and pools in it.
//!
//! A [`World`] has devices, each with a volatile cache, that a seed drives. It counts steps, and
//! makes an [`Image`] of what power loss or the death of the process would leave at any of them,
//! without ending the run: a second world goes on from there. So one run is attacked at every step.
//!
//! What it does not do: time-outs, devices that come and go, threads. Cores are interleaved on one
//! thread; what true concurrency does is for loom.
#![forbid(unsafe_code)]

mod attack;
mod calls;
mod check;
mod config;
mod device;
mod failure;
mod full;
mod history;
mod life;
mod media;
mod members;
mod memory;
mod model;
mod pattern;
mod pool;
mod random;
mod run;
mod spread;
mod store;
mod traffic;
mod world;

pub use check::Check;
pub use config::Config;
pub use device::{Deallocated, DeviceConfig, Faults};
pub use failure::Failure;
pub use life::Statistics;
pub use memory::Memory;
pub use model::{Model, Operation, Violation};
pub use pattern::Found;
pub use random::{Random, mix};
pub use run::{Summary, run};
pub use spread::Spread;
pub use world::{End, Image, Watch, World};
