//! Bounds of the control socket, and of what may be asked for over it.

/// Longest line in either direction, in bytes, without its line feed.
pub const MAX_LINE_BYTES: usize = 1 << 20;
/// Longest NVMe qualified name, in bytes (NVMe Base 2.1, section 4.7).
pub const MAX_NQN_BYTES: usize = 223;
/// Longest name of a block device, in bytes.
pub const MAX_BDEV_NAME_BYTES: usize = 64;
/// Longest name of a pool, volume or snapshot, in bytes.
pub const MAX_VOLUME_NAME_BYTES: usize = 63;
/// Block devices of a pool.
pub const MAX_POOL_DEVICES: usize = 16;
/// Smallest journal of a pool, in bytes.
pub const MIN_JOURNAL_BYTES: u64 = 256 << 10;
/// Volumes in one group of snapshots.
pub const MAX_SNAPSHOT_GROUP: usize = 64;
/// Labels of a volume.
pub const MAX_LABELS: usize = 64;
/// Longest key of a label, in bytes.
pub const MAX_LABEL_KEY_BYTES: usize = 63;
/// Longest value of a label, in bytes.
pub const MAX_LABEL_VALUE_BYTES: usize = 255;
/// Longest description of a volume, in bytes.
pub const MAX_DESCRIPTION_BYTES: usize = 1024;
/// Hosts in one request.
pub const MAX_HOSTS: usize = 256;
/// Listeners in one request.
pub const MAX_LISTENERS: usize = 16;
/// Sizes of a logical block, in bytes.
pub const BLOCK_BYTES: [u32; 2] = [512, 4096];
/// Largest namespace, in bytes: far beyond any SSD, far below where sums of sizes overflow.
pub const MAX_SIZE_BYTES: u64 = 1 << 56;

/// Prefix of the NQN that an export gets when none is given.
pub const NQN_PREFIX: &str = "nqn.2026-11.io.forebay:";

const _: () = assert!(NQN_PREFIX.len() + MAX_BDEV_NAME_BYTES <= MAX_NQN_BYTES);
const _: () = assert!(NQN_PREFIX.len() + 2 * MAX_VOLUME_NAME_BYTES < MAX_NQN_BYTES);
// A request as large as its limits allow fits in a line, with its punctuation and escapes.
const _: () = assert!(MAX_HOSTS * (6 * MAX_NQN_BYTES + 3) + MAX_LISTENERS * 64 < MAX_LINE_BYTES);
