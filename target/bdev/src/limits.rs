//! Bounds of the backends.

/// I/Os that a channel of a file has in flight.
pub const FILE_DEPTH: u32 = 256;

/// Bytes that a file's Compare reads at a time.
pub const SCRATCH_BYTES: u32 = 128 << 10;

const _: () = assert!(FILE_DEPTH <= uring::MAX_DEPTH);
const _: () = assert!(SCRATCH_BYTES.is_multiple_of(4096));
