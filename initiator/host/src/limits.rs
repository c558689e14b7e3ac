//! What bounds the host side.

use std::time::Duration;

/// Most runs of memory that one command's data consists of.
pub const MAX_SPANS: usize = 4;

/// Most commands outstanding on a queue: their places fit the lower bits of a command identifier.
pub const MAX_DEPTH: u16 = (1 << INDEX_BITS) - 1;

/// Bits of a command identifier that say which place the command has; the others count how often
/// that place was used, so that a completion that comes twice or too late is noticed.
pub const INDEX_BITS: u32 = 10;

/// Most bytes of one command's data, whatever the controller takes.
pub const MAX_TRANSFER_BYTES: u32 = 1 << 20;

/// Most data that the capsule of an admin or fabrics command carries (NVMe/TCP Transport 1.1,
/// section 3.3.2, in-capsule data).
pub const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;

/// Bytes that are received at a time besides data that goes straight to its place.
pub const INPUT_BYTES: usize = 64 << 10;

/// Most data that a keyed SGL descriptor tells of: its length has 24 bits.
pub const MAX_KEYED_BYTES: u32 = (1 << 24) - 1;

/// Work requests that a command has in the send queue at a time: the binding of its window, its
/// capsule, and the invalidation of the window, which may begin before the others are reported.
pub const RDMA_WORK_PER_COMMAND: u32 = 3;

/// Completions taken from an RDMA completion queue in one call.
pub const CQ_BATCH: usize = 32;

/// Most such calls in a turn: whoever polls also has other things to do.
pub const CQ_BATCHES_PER_TURN: usize = 16;

/// Commands outstanding on an admin queue: one step of bring-up or of the caller's, a keep-alive,
/// and an Asynchronous Event Request. A controller has at least as many (NVMe Base 2.1, ASQSZ).
pub const ADMIN_DEPTH: u16 = 4;

/// Entries of an admin queue.
pub const ADMIN_QUEUE_ENTRIES: u16 = 32;

/// Bytes of the memory that admin commands share.
pub const PAGE_BYTES: usize = 4096;

/// Most I/O queues that a controller is asked for.
pub const MAX_IO_QUEUES: u16 = 1024;

/// Most namespaces that are looked at.
pub const MAX_NAMESPACES: usize = 1024;

/// Most entries of a discovery log that are read.
pub const MAX_DISCOVERY_ENTRIES: u64 = 4096;

/// How often a discovery log is read anew because it changed while it was read.
pub const MAX_DISCOVERY_TRIES: u32 = 8;

/// How often outstanding commands are looked at for time-outs.
pub const DEADLINE_GRANULARITY: Duration = Duration::from_millis(10);

/// How often CSTS is read while it is to change.
pub const PROPERTY_INTERVAL: Duration = Duration::from_millis(10);

/// How long a shutdown may take if the controller does not say (RTD3E 0).
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

const _: () = {
    use nvme_spec::{fabrics::ConnectData, identify::IDENTIFY_BYTES};
    // Places and counts share 16 bits, and FFFFh names no command (NVMe Base 2.1, CID).
    assert!(INDEX_BITS < 16);
    assert!(ADMIN_DEPTH <= MAX_DEPTH && ADMIN_DEPTH >= 3);
    // One entry always stays free.
    assert!(ADMIN_DEPTH < ADMIN_QUEUE_ENTRIES);
    assert!(MAX_TRANSFER_BYTES <= MAX_KEYED_BYTES);
    assert!(PAGE_BYTES >= IDENTIFY_BYTES && PAGE_BYTES >= size_of::<ConnectData>());
    assert!(PAGE_BYTES <= ADMIN_IN_CAPSULE_BYTES as usize);
};
