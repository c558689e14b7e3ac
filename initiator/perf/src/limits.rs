//! Bounds of a run.

use std::time::Duration;

/// I/Os that a core has in flight at most: what a queue pair of an SSD holds.
pub const MAX_DEPTH: usize = 1023;

/// Most bytes of one I/O.
pub const MAX_IO_BYTES: u64 = 4 << 20;

/// Most sizes that I/Os are mixed of.
pub const MAX_SIZES: usize = 16;

/// Most cores.
pub const MAX_CORES: usize = 64;

/// Latencies beyond this are counted as this.
pub const MAX_LATENCY_NS: u64 = 3_600_000_000_000;

/// Digits of a latency that are kept: an error of a thousandth.
pub const LATENCY_DIGITS: u8 = 3;

/// After this long without a completion the I/Os in flight are given up. A driver ends each of its
/// own within 15 seconds; hosts of a fabric wait for 30.
pub const STALL_LIMIT: Duration = Duration::from_secs(60);

/// How often a core shows others what it has done.
pub const PUBLISH_INTERVAL: Duration = Duration::from_millis(1);

/// How often the control thread looks after the device and the cores.
pub const TICK: Duration = Duration::from_millis(10);

/// How long to wait for a file that somebody has.
pub const RELEASE_LIMIT: Duration = Duration::from_secs(1);

/// Blocks that one acknowledgement log covers at most. Each takes 16 bytes of memory.
pub const MAX_VERIFIED_BLOCKS: u64 = 1 << 26;

/// Most points of the series that a plot draws.
pub const MAX_PLOT_POINTS: usize = 600;

const _: () = assert!(MAX_DEPTH < nvme::limits::MAX_QUEUE_ENTRIES as usize);
const _: () = assert!(MAX_IO_BYTES as usize <= dma::limits::MAX_SPAN_BYTES);
const _: () = assert!(PUBLISH_INTERVAL.as_nanos() < TICK.as_nanos());
