//! Pools of block devices, and thin volumes in them with snapshots and clones.
//!
//! `docs/volumes.md` says how it works and why nothing acknowledged is lost;
//! `docs/on-disk-format.md` has the bytes.
//!
//! [`pool::create`] and [`pool::open`] wait for devices. Everything else is in [`Lane`], one for
//! each core, which is polled and never waits.
//!
//! What it does not do: mirroring, checksums of data at rest, compression, encryption, quotas.
#![forbid(unsafe_code)]

mod devices;
pub mod epoch;
pub mod format;
mod lane;
pub mod limits;
pub mod map;
mod owner;
mod pieces;
pub mod pool;
mod shared;
pub mod space;
mod sync;
mod wait;

pub use lane::{Done, Lane};
pub use owner::{
    Call, CreateVolume, DeviceInfo, Planted, PoolInfo, Removal, Reply, VolumeError, VolumeInfo,
};
pub use pool::{CreateOptions, GiveUp, Label, NewDevice, OpenOptions, PoolError};
pub use shared::VolumeHandle;
