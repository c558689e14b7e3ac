//! Memory that devices read and write: one arena, the spans in it, and per-core buffer pools.
//!
//! [`Arena`] is one run of hugepages, taken once and kept until the process ends. It is mapped once
//! into each SSD's IOMMU address space, at a fixed I/O virtual address, and registered once with
//! each RDMA device, so that an SSD reads into the very bytes that the NIC sends. That it never
//! goes away is what makes everything above it simple: a device that writes late writes into memory
//! that is still ours.
//!
//! [`DmaSpan`] names a run of bytes in the arena by all the addresses it has. It is `Copy` and can
//! only be made from an arena, so it always points at live memory. The CPU reaches the bytes by
//! copying in and out; they are never lent as a slice: a device may change them at any time.
//!
//! [`DmaBuffer`] owns a span that came from a [`Pool`], a buddy allocator that belongs to one core.
//!
//! Beside the arena there are two kinds of ordinary memory: a [`Region`] pretends to be a disk, a
//! [`ZeroedSlice`] is a large table.
//!
//! What it does not do: map anything for the IOMMU (crate `vfio`), register anything with a NIC
//! (crate `verbs`), grow, shrink, or know about NUMA nodes.
#![allow(unsafe_code)]

mod arena;
pub mod limits;
mod pool;
mod region;
mod runs;
mod span;
mod zeroed;

pub use arena::{Arena, ArenaError};
pub use pool::{DmaBuffer, Pool};
pub use region::Region;
pub use span::{DmaSpan, copied_bytes};
pub use zeroed::ZeroedSlice;
