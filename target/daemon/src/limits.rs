//! What the daemon bounds.

use std::time::Duration;

/// RDMA devices in use at the same time.
pub(crate) const MAX_RDMA_DEVICES: usize = 4;

/// Completions taken from one channel per turn.
pub(crate) const COMPLETIONS_PER_POLL: usize = 64;

/// Turns after which a channel without I/O in flight is polled too: its device may be in recovery.
pub(crate) const IDLE_CHANNEL_TURNS: u32 = 16;

/// Requests in the slab of a core.
pub(crate) const REQUESTS_PER_CORE: u32 = 16 * 1024;

/// Messages to a core that may wait in its ring.
pub(crate) const CORE_RING: usize = 4096;

/// Connections of all hosts to all cores.
pub(crate) const MAX_CONNECTIONS: usize = 4096;

/// TCP connections that wait for their Connect. A host opens all of a controller's before it sends
/// the first.
pub(crate) const MAX_UNBOUND_TCP: usize = 512;

/// TCP connections taken from one listener before others have their turn.
pub(crate) const ACCEPTS_PER_TURN: usize = 64;

/// TCP connections that are over and wait for their hosts to see it.
pub(crate) const MAX_LEAVING: usize = 256;

/// Namespaces of all exports. One change of each is under way at most.
pub(crate) const MAX_EXPORTS: usize = 4096;

/// Pools that are open at the same time.
pub(crate) const MAX_POOLS: usize = 8;

/// Memory of a pool's owner: for its journal, checkpoints, and blocks that are filled up.
pub(crate) const POOL_MEMORY_BYTES: usize = 4 << 20;

/// The largest buffer in it: a cluster.
pub(crate) const POOL_BLOCK_BYTES: usize = volume::limits::CLUSTER_BYTES as usize;

/// Calls to the owners of pools that wait for their answers: for each call of ours one or, from
/// `pool.list`, one a pool; for each namespace one to open and one to close its volume; for each
/// pool one that asks how full it is, one on its way in or out, and one that waits for a device to
/// be out.
pub(crate) const MAX_POOL_CALLS: usize = MAX_CALLS * MAX_POOLS + 2 * MAX_EXPORTS + 4 * MAX_POOLS;

/// Connections to the control socket at the same time, and so calls that wait for their answer.
pub(crate) const MAX_CALLS: usize = 64;

/// Abort commands that wait for a core's word; beyond, a command is not aborted.
pub(crate) const MAX_ABORTS: usize = 4096;

/// Messages from a core that may wait for room in the ring: one for each request, three for each
/// connection (opened or refused, closed, drained), and an answer to whatever it was asked.
pub(crate) const CORE_OUTBOX: usize = REQUESTS_PER_CORE as usize
    + 3 * MAX_CONNECTIONS
    + MAX_EXPORTS
    + MAX_ABORTS
    + MAX_CALLS
    + MAX_POOL_CALLS
    + MAX_POOLS
    + 1;

/// Messages that may wait for room in a core's ring: an answer for each request, four for each
/// connection (open, bind, close, destroyed), one for each change of a namespace, each abort and
/// each caller, one for the health of subsystems, calls to pools, and the coming and going of pools
/// and RDMA devices.
pub(crate) const CORE_BACKLOG: usize = REQUESTS_PER_CORE as usize
    + 4 * MAX_CONNECTIONS
    + MAX_EXPORTS
    + MAX_ABORTS
    + MAX_CALLS
    + 1
    + MAX_POOL_CALLS
    + 2 * MAX_POOLS
    + 2 * MAX_RDMA_DEVICES;

/// How long a core waits for devices to end what they do for a lane that goes. Every driver answers
/// sooner, be it with an error; memory of a pool whose devices did not is never used again.
pub(crate) const LANE_END_LIMIT: Duration = Duration::from_secs(60);

/// How long the daemon waits at its end for connections to close and for the I/O in them.
pub(crate) const EXPORTS_END_LIMIT: Duration = Duration::from_secs(20);

/// How long it waits then for pools to take their checkpoints.
pub(crate) const POOLS_END_LIMIT: Duration = Duration::from_secs(20);

/// How long it waits at its start for pools to open: a journal may have to be replayed.
pub(crate) const POOLS_OPEN_LIMIT: Duration = Duration::from_secs(300);

/// How long hosts may take to see that a namespace is gone, before a rollback is given up.
pub(crate) const REMOVAL_LIMIT: Duration = Duration::from_secs(20);

/// How long it waits then for SSDs to shut down.
pub(crate) const DEVICES_END_LIMIT: Duration = Duration::from_secs(15);

/// Largest data transfer of one command: MDTS, 1 MiB.
pub(crate) const MAX_TRANSFER_BYTES: u32 = 1 << 20;

/// One over this is the part that one queue may hold of a core's memory for data, as far as other
/// queues have left it. Eight queues whose hosts take nothing leave a tenth.
pub(crate) const QUEUE_SHARE: usize = 4;

/// RDMA READs that we ask to have in flight on a connection.
pub(crate) const READ_DEPTH: u8 = 16;

/// Entries of a core's completion queue of one RDMA device, as far as the device can: what the
/// largest number of full-size queues would take, 68 of them.
pub(crate) const CQ_ENTRIES: u32 = 32 * 1024;

/// Smallest data pool of a core: every command can be served, if only one after the other.
pub(crate) const MIN_DATA_BYTES: usize = 4 * MAX_TRANSFER_BYTES as usize;

// What one transport grants the other can keep: queues are granted before it is known which it is.
const _: () = {
    use {nvmf_rdma::limits as rdma, nvmf_tcp::limits as tcp};
    assert!(tcp::MAX_QUEUE_ENTRIES == rdma::MAX_QUEUE_ENTRIES);
    assert!(tcp::IN_CAPSULE_BYTES == rdma::IN_CAPSULE_BYTES);
    assert!(tcp::largest_queue_bytes() <= rdma::largest_queue_bytes());
};
const _: () = assert!(MAX_UNBOUND_TCP < MAX_CONNECTIONS);
const _: () = assert!(MAX_TRANSFER_BYTES as usize <= dma::limits::MAX_BLOCK_BYTES);
const _: () = assert!(MIN_DATA_BYTES >= MAX_TRANSFER_BYTES as usize);
