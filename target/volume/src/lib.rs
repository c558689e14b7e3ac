//! Pools of block devices, and thin volumes in them with snapshots and clones.
//!
//! `docs/volumes.md` says how it works and why nothing acknowledged is lost;
//! `docs/on-disk-format.md` has the bytes.
//!
//! What it does not do: mirroring, checksums of data at rest, compression, encryption, quotas.
#![forbid(unsafe_code)]

pub mod epoch;
pub mod format;
pub mod limits;
pub mod map;
pub mod space;
mod sync;
