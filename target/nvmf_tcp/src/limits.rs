//! What a connection takes, and what bounds it.

use nvme_spec::tcp::MAXH2CDATA_MIN;

/// Most entries of a queue that is granted (MQES + 1).
pub const MAX_QUEUE_ENTRIES: u16 = 128;

/// Slots of a connection before its Connect is accepted: that command comes alone.
pub const CONNECT_SLOTS: u32 = 1;

/// Bytes of data that a capsule may carry on an admin queue, and before the queue is connected
/// (NVMe/TCP Transport 1.1, in-capsule data of fabrics and admin commands).
pub const CONNECT_CAPSULE_BYTES: u32 = 8192;

/// Bytes of data that a capsule may carry on an I/O queue: one memory page, so that it needs one
/// PRP entry and a 4 KiB write is not asked for.
pub const IN_CAPSULE_BYTES: u32 = 4096;

/// Bytes that a connection receives at most beyond the data of the PDU that has begun: several
/// small commands with one call.
pub const INPUT_BYTES: usize = 64 * 1024;

/// Connections that one call tells to have something.
pub const READY_BATCH: usize = 64;

/// Slots of a queue with this many entries. A host sends the next command when it has the response,
/// and that has left here by then.
pub const fn slots(entries: u16) -> u32 {
    entries as u32
}

/// Bytes that an I/O queue of the largest size takes of a core's memory for connections.
pub const fn largest_queue_bytes() -> usize {
    (CONNECT_SLOTS * CONNECT_CAPSULE_BYTES
        + (slots(MAX_QUEUE_ENTRIES) - CONNECT_SLOTS) * IN_CAPSULE_BYTES) as usize
}

/// Most bytes of data that the host may put into one H2CData: a whole transfer.
pub const MAX_H2C_DATA_BYTES: u32 = 1 << 20;

const _: () = {
    assert!(IN_CAPSULE_BYTES as usize >= dma::limits::MIN_BLOCK_BYTES);
    assert!(CONNECT_CAPSULE_BYTES as usize <= INPUT_BYTES);
    assert!(MAX_H2C_DATA_BYTES >= MAXH2CDATA_MIN && MAX_H2C_DATA_BYTES.is_multiple_of(4));
};
