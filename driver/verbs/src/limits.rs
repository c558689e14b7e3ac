//! What this crate bounds, and what the protocols below it bound.

/// Room for the private data of one event: its length travels in 8 bits.
pub const EVENT_PRIVATE_DATA_BYTES: usize = 256;
/// Most private data a connect request carries (rdma_connect(3), port space TCP).
pub const CONNECT_PRIVATE_DATA_BYTES: usize = 56;
/// Most private data an accept carries (rdma_accept(3)).
pub const ACCEPT_PRIVATE_DATA_BYTES: usize = 196;
/// Most private data a reject carries (rdma_reject(3)).
pub const REJECT_PRIVATE_DATA_BYTES: usize = 148;

/// Most RDMA READs in flight that can be negotiated: 255 would mean "whatever the device can".
pub const MAX_READ_DEPTH: u8 = 254;

/// Most scatter-gather entries of one work request.
pub const MAX_SGES: u32 = 32;
/// Most work requests of one queue of a QP.
pub const MAX_QUEUE_DEPTH: u32 = 32_768;
/// Most entries of one completion queue.
pub const MAX_CQ_ENTRIES: u32 = 4 * 1024 * 1024;

const _: () = {
    assert!(EVENT_PRIVATE_DATA_BYTES > u8::MAX as usize);
    assert!(ACCEPT_PRIVATE_DATA_BYTES < EVENT_PRIVATE_DATA_BYTES);
    assert!(CONNECT_PRIVATE_DATA_BYTES < EVENT_PRIVATE_DATA_BYTES);
    assert!(REJECT_PRIVATE_DATA_BYTES < EVENT_PRIVATE_DATA_BYTES);
    // One QP always fits into the largest CQ, and the counts fit the `int`s of the C interface.
    assert!(2 * MAX_QUEUE_DEPTH <= MAX_CQ_ENTRIES);
    assert!(MAX_CQ_ENTRIES <= i32::MAX as u32);
};
