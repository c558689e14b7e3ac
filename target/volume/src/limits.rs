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

/// Bytes of the largest volume.
pub const MAX_VOLUME_BYTES: u64 = MAX_VOLUME_CLUSTERS as u64 * CLUSTER_BYTES as u64;
/// Blocks of the largest volume.
pub const MAX_VOLUME_BLOCKS: u64 = MAX_VOLUME_BYTES / BLOCK_BYTES as u64;
/// Blocks of each copy of the journal: 256 MiB.
pub const MAX_JOURNAL_BLOCKS: u32 = (256 << 20) / BLOCK_BYTES;
/// Bytes of a change of the catalog in the journal.
pub const MAX_CHANGE_BYTES: usize = 3584;
/// Pages of a leaf: its entries, and a line of 64 bytes for each where all are scattered.
pub const MAX_LEAF_PAGES: u32 = 1 + (LEAF_ENTRIES * 64) as u32 / BLOCK_BYTES;
/// Pages of a volume's descriptor.
pub const MAX_DESCRIPTOR_PAGES: u32 = 16;
/// Bytes of the name of a pool, volume or snapshot.
pub const MAX_NAME_BYTES: usize = 63;
/// Labels of a volume.
pub const MAX_LABELS: usize = 64;
/// Bytes of a label's key.
pub const MAX_LABEL_KEY_BYTES: usize = 63;
/// Bytes of a label's value.
pub const MAX_LABEL_VALUE_BYTES: usize = 255;
/// Bytes of a volume's description.
pub const MAX_DESCRIPTION_BYTES: usize = 1024;

// JSON writes a byte of text as two at most, as there are no control characters but in descriptions
// (tab and newline, which are two as well). 1024 bytes are ample for what has a fixed size.
const _: () = assert!(
    2 * (MAX_LABELS * (MAX_LABEL_KEY_BYTES + MAX_LABEL_VALUE_BYTES + 3)
        + MAX_DESCRIPTION_BYTES
        + MAX_NAME_BYTES)
        + 1024
        <= MAX_DESCRIPTOR_PAGES as usize * BLOCK_BYTES as usize
);

/// Roots, directories, leaves and lines that the first segments of a map's tables have room for.
pub const FIRST_ROOTS: usize = 16;
/// See [`FIRST_ROOTS`].
pub const FIRST_DIRECTORIES: usize = 16;
/// See [`FIRST_ROOTS`].
pub const FIRST_LEAVES: usize = 64;
/// See [`FIRST_ROOTS`].
pub const FIRST_LINES: usize = 1024;
/// Epochs in which a lane may have I/Os in flight at a time.
pub const LANE_EPOCHS: usize = 64;

/// Free clusters that a stream has for itself: 4 MiB.
pub const WINDOW_CLUSTERS: u32 = 64;
/// The share of a pool that data leaves to metadata, and the least number of clusters.
pub const RESERVE_DIVISOR: u64 = 256;
/// See [`RESERVE_DIVISOR`].
pub const MIN_RESERVE_CLUSTERS: u64 = 16;
/// Clusters whose counts grow together.
pub const COUNT_CHUNK: usize = 4096;

const _: () =
    assert!(WINDOW_CLUSTERS == u64::BITS, "a window is a word of the map of free clusters");
