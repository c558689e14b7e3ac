//! What a connection takes, and what bounds it.

use nvme_spec::command::{Cqe, Sqe};

/// Bytes of data that a command capsule of an I/O queue may carry after the command: one memory
/// page, so that it needs one PRP entry and a 4 KiB write takes no RDMA READ.
pub const IN_CAPSULE_BYTES: u32 = 4096;

/// Entries of the largest queue we grant (MQES + 1).
pub const MAX_QUEUE_ENTRIES: u16 = 128;

/// Completions taken from the CQ in one call.
pub const POLL_BATCH: usize = 32;

/// Completions handled per poll turn, so that a busy NIC does not starve the SSDs.
pub const MAX_EVENTS_PER_TURN: usize = 256;

/// Capsule slots beyond the queue's entries: a slot's request is free only when its response has
/// completed here, while the host may send the next command as soon as the response has arrived
/// there. With a slot to spare that command is served at once; otherwise it waits in its slot.
pub const fn spare_slots(entries: u16) -> u32 {
    let quarter = entries as u32 / 4;
    if quarter < 4 { 4 } else { quarter }
}

/// Capsule slots of a queue with this many entries: requests of the engine, receive work requests,
/// and pages for in-capsule data.
pub const fn slots(entries: u16) -> u32 {
    entries as u32 + spare_slots(entries)
}

/// Send work requests of a queue: each slot sends data and a response, or reads data first; a
/// response follows only when the read has completed.
pub const fn send_depth(entries: u16) -> u32 {
    2 * slots(entries)
}

/// Bytes that an I/O queue of the largest size takes of a core's memory for connections.
pub const fn largest_queue_bytes() -> usize {
    let slots = slots(MAX_QUEUE_ENTRIES) as usize;
    let capsules = slots * (size_of::<Sqe>() + size_of::<Cqe>());
    capsules.next_power_of_two() + slots * IN_CAPSULE_BYTES as usize
}

const _: () = assert!(IN_CAPSULE_BYTES as usize == dma::limits::MIN_BLOCK_BYTES);
