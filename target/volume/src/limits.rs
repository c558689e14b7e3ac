//! Sizes of the format and bounds of the engine.

/// Bytes of a cluster, the unit of allocation.
pub const CLUSTER_BYTES: u32 = 64 << 10;
/// Bytes of a block of this crate, the unit of mapping.
pub const BLOCK_BYTES: u32 = 4 << 10;
/// Blocks of a cluster.
pub const CLUSTER_BLOCKS: u32 = CLUSTER_BYTES / BLOCK_BYTES;
/// Entries of a leaf.
pub const LEAF_ENTRIES: usize = 512;
/// Children of a directory, and of a root.
pub const FANOUT: usize = 1024;
/// Clusters of the largest volume: 32 TiB.
pub const MAX_VOLUME_CLUSTERS: u32 = (LEAF_ENTRIES * FANOUT * FANOUT) as u32;
/// Bits of a cluster number that say where on its device it is; those above name the device.
pub const DEVICE_SHIFT: u32 = 28;
/// Devices of a pool.
pub const MAX_DEVICES: usize = 16;
/// Clusters of a device: 16 TiB.
pub const MAX_DEVICE_CLUSTERS: u32 = 1 << DEVICE_SHIFT;

const _: () = assert!(CLUSTER_BLOCKS == 16, "masks of blocks are u16");
const _: () = assert!((MAX_DEVICES as u64) << DEVICE_SHIFT == 1 << 32);
