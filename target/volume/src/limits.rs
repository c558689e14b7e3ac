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
/// Clusters of a device that goes which are copied at a time.
pub const COPIES: usize = 8;
/// Clusters that were copied, and that no checkpoint has yet.
pub const HELD_COPIES: usize = 4096;
/// Positions of maps that are looked at in one turn.
pub const POSITIONS_PER_TURN: usize = 8;
/// Clusters of a device: 16 TiB.
pub const MAX_DEVICE_CLUSTERS: u32 = 1 << DEVICE_SHIFT;

const _: () = assert!(CLUSTER_BLOCKS == 16, "masks of blocks are u16");
const _: () = assert!((MAX_DEVICES as u64) << DEVICE_SHIFT == 1 << 32);

/// I/Os that a lane has in flight.
pub const LANE_REQUESTS: usize = 1024;
/// Messages besides I/Os between a lane and the owner.
pub const OWNER_MESSAGES: usize = 64;
/// Journal blocks in flight.
pub const JOURNAL_DEPTH: usize = 8;
/// So many of those have to be there for one that is not full to wait.
pub const JOURNAL_SPARSE: usize = 4;
/// Bytes of each copy of the journal at most, and at least.
pub const MAX_JOURNAL_BYTES: u64 = 128 << 20;
/// See [`MAX_JOURNAL_BYTES`].
pub const MIN_JOURNAL_BYTES: u64 = 256 << 10;
/// Pages of a checkpoint in flight, in writes. With debug assertions so few that the simulator's
/// small pools take as long for a checkpoint as large ones: much else happens meanwhile.
pub const CHECKPOINT_DEPTH: usize = if cfg!(debug_assertions) { 2 } else { 16 };
/// Bytes of one write of a checkpoint at most.
pub const CHECKPOINT_WRITE_BYTES: u32 = CLUSTER_BYTES;
/// Leaves that are taken apart or cleared in one turn.
pub const LEAVES_PER_TURN: usize = 4;
/// Journal blocks in memory: those in flight, and those that wait for them.
pub const JOURNAL_BUFFERS: usize = 4 * JOURNAL_DEPTH;
/// Journal blocks that the records of one I/O take at most.
pub const RECORDS_MARGIN: u64 = 6;
/// Journal blocks that first touches leave to everything else.
pub const JOURNAL_MARGIN: u64 = 24;
/// Flushes that fail in a row before a pool takes no writes any more.
pub const MAX_FAILED_FLUSHES: u32 = 10;
/// Largest I/O on a volume in bytes.
pub const MAX_IO_BYTES: u32 = 4 << 20;
/// Open records that begin a closing, whether somebody waits for it or not.
pub const MAX_OPEN: usize = 8192;

// A record of a whole cluster takes 16 + 16 * 8 bytes.
const _: () = assert!(
    (MAX_IO_BYTES / CLUSTER_BYTES + 1) as u64 * 144 <= (RECORDS_MARGIN - 2) * (4096 - 64 - 144)
);
const _: () = assert!(JOURNAL_SPARSE <= JOURNAL_DEPTH);
const _: () = assert!(2 * RECORDS_MARGIN < JOURNAL_BUFFERS as u64);
const _: () = assert!(JOURNAL_MARGIN + RECORDS_MARGIN < MIN_JOURNAL_BYTES / 4096 / 2);
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
/// Clusters of the smallest device of a pool: 2 MiB.
pub const MIN_DEVICE_CLUSTERS: u32 = 32;
/// Releases that are freed in one turn, and mappings that lose their guard, at least.
pub const ITEMS_PER_TURN: usize = 64;
/// Closed mappings whose guard stays until others come. With debug assertions some, as there are in
/// a pool with thousands of them; see [`CHECKPOINT_DEPTH`].
pub const LATE_GUARDS: usize = if cfg!(debug_assertions) { 12 } else { 0 };
/// Pages of the catalog: some 40,000 volumes and snapshots.
pub const MAX_CATALOG_PAGES: u32 = 1024;

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
/// Leaves of each of two trees that one call of diff looks at.
pub const DIFF_LEAVES: usize = 64;
/// Volumes and snapshots of a pool.
pub const MAX_VOLUMES: usize = 40_000;

// An entry of the catalog takes 88 bytes.
const _: () = assert!(MAX_VOLUMES * 88 + 4096 <= MAX_CATALOG_PAGES as usize * BLOCK_BYTES as usize);
