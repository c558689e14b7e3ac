//! What reactors and the control thread tell each other. Everything goes by value: the data of a
//! command is named by its span in the arena.

use std::sync::Arc;

use bdev::{Channel, Io, Op};
use crossbeam_queue::ArrayQueue;
use dma::DmaSpan;
use nix::sys::eventfd::EventFd;
use nvme_spec::command::Sqe;
use nvme_spec::status::Status;
use nvmf::engine::{EngineStats, Namespace, QueueId, QueueLoad, QueueParams, RequestId};
use nvmf_rdma::OpenParams;
use sockets::Socket;
use verbs::{Cq, RdmaQp};
use volume::{Call, Lane, NewDevice, Reply, VolumeError, VolumeHandle};

/// From the control thread to a core.
pub(crate) enum CoreMessage {
    /// Poll this completion queue: the core's end of an RDMA device.
    AddDevice { device: usize, cq: Cq },
    /// Stop polling it: every connection through the device is gone.
    RemoveDevice { device: usize },
    /// Take a connection. Answered by `QueueOpened` or `QueueRefused`.
    OpenQueue(Box<OpenQueue>),
    /// The queue's Connect command was accepted.
    BindQueue { queue: QueueId, params: QueueParams },
    /// The answer to a command that the control half was asked.
    Answer { request: RequestId, result: u64, status: Status, data_bytes: u32 },
    /// End a command early if it still waits. Answered by `Aborted`.
    Abort { queue: QueueId, cid: u16, token: u64 },
    /// End a queue. Answered by `QueueClosed`.
    CloseQueue { queue: QueueId },
    /// What was given up with `QueueClosed` is destroyed.
    QueueDestroyed { queue: QueueId },
    /// Serve a namespace. Answered by `NamespaceSet`.
    AttachNamespace { subsystem: u32, nsid: u32, namespace: Namespace, storage: Storage },
    /// It has another size. Answered by `NamespaceSet`.
    ResizeNamespace { subsystem: u32, nsid: u32, block_count: u64 },
    /// Stop serving a namespace. Answered by `NamespaceSet` once its last I/O has ended.
    DetachNamespace { subsystem: u32, nsid: u32 },
    /// The core's way to a pool, to be polled; `pool` is the pool's place in the core's table.
    AddLane { pool: usize, lane: Box<Lane> },
    /// Give it up: no namespace is on it any more. Answered by `LaneRemoved`, when what devices do
    /// for it has ended.
    RemoveLane { pool: usize },
    /// For the pool's owner, whose lane this core has. Answered by `PoolReply`.
    PoolCall { pool: usize, id: u64, call: Box<Call>, now_s: u64 },
    /// A block device that is to be one of the pool's, for the owner. Answered by `PoolReply`.
    PoolDevice { pool: usize, id: u64, device: Box<NewDevice> },
    /// Answered by `Stats`.
    CollectStats,
}

/// What a namespace is on, for one core.
pub(crate) enum Storage {
    /// A block device, by a channel of its own.
    Bdev(Box<dyn Channel>),
    /// A volume, by the core's lane to its pool.
    Volume { pool: usize, handle: Arc<VolumeHandle> },
}

/// A connection for a core.
pub(crate) struct OpenQueue {
    pub(crate) key: u64,
    pub(crate) slots: u32,
    pub(crate) way: Way,
}

/// How its bytes come and go.
#[allow(clippy::large_enum_variant)] // a queue pair goes by value, as a socket does
pub(crate) enum Way {
    Rdma { device: usize, qp: RdmaQp, params: OpenParams },
    Tcp(Socket),
}

/// Our end of a connection that a core gives back, to be destroyed.
#[allow(clippy::large_enum_variant)] // as above
pub(crate) enum End {
    Rdma(RdmaQp),
    Tcp(Socket),
}

/// From a core to the control thread.
pub(crate) enum ControlMessage {
    /// The core is ready for the host's first command.
    QueueOpened { key: u64, queue: QueueId },
    /// No memory or no requests are left for the connection.
    QueueRefused { key: u64, end: Option<End> },
    /// A command that is not an I/O, with its data or with room for it.
    Command { key: u64, request: RequestId, sqe: Sqe, data: Option<DmaSpan> },
    /// The queue is closed: destroy its end, then say `QueueDestroyed`.
    QueueClosed { key: u64, queue: QueueId, end: End },
    /// Nothing of the queue is left, in memory or in block devices.
    QueueDrained { key: u64 },
    /// A lane that the core has given up. It is dropped elsewhere, maps and all. `idle`: no device
    /// is at work for it.
    LaneRemoved { pool: usize, lane: Option<Box<Lane>>, idle: bool },
    /// The answer of a pool's owner.
    PoolReply { id: u64, reply: Box<Result<Reply, VolumeError>> },
    /// A namespace is attached, resized or detached on this core.
    NamespaceSet { subsystem: u32, nsid: u32 },
    /// Whether the command was ended early.
    Aborted { token: u64, ended: bool },
    /// Counters of a core.
    Stats { core: usize, stats: Box<CoreStats> },
}

/// What a core has done so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct CoreStats {
    pub(crate) engine: EngineStats,
    pub(crate) rdma: nvmf_rdma::CarrierStats,
    pub(crate) tcp: nvmf_tcp::CarrierStats,
    /// Data that the core's CPU moved, rather than a device.
    pub(crate) copied_bytes: u64,
    pub(crate) data: PoolUse,
    pub(crate) connections: PoolUse,
    pub(crate) channels: Vec<ChannelStats>,
    /// By connection.
    pub(crate) queues: Vec<(u64, QueueLoad)>,
}

/// How full a pool is, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PoolUse {
    pub(crate) size: u64,
    pub(crate) free: u64,
}

/// What one channel of a core has done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ChannelStats {
    pub(crate) subsystem: u32,
    pub(crate) nsid: u32,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) others: u64,
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
    pub(crate) errors: u64,
    pub(crate) in_flight: u32,
}

impl ChannelStats {
    /// An I/O has been submitted.
    #[inline]
    pub(crate) fn count(&mut self, io: &Io) {
        self.in_flight += 1;
        let bytes = io.buffer.map_or(0, |buffer| u64::from(buffer.len()));
        match io.op {
            Op::Read => {
                self.reads += 1;
                self.read_bytes += bytes;
            }
            Op::Write { .. } => {
                self.writes += 1;
                self.write_bytes += bytes;
            }
            _ => self.others += 1,
        }
    }
}

/// The ring from all cores to the control thread, and the bell that wakes it.
pub(crate) struct ControlRing {
    ring: ArrayQueue<ControlMessage>,
    bell: EventFd,
}

impl ControlRing {
    pub(crate) fn new(capacity: usize, bell: EventFd) -> Arc<Self> {
        Arc::new(Self { ring: ArrayQueue::new(capacity), bell })
    }

    /// Hands a message over; gives it back when the ring is full.
    #[allow(clippy::result_large_err)] // it goes back by value, as it came
    pub(crate) fn push(&self, message: ControlMessage) -> Result<(), ControlMessage> {
        self.ring.push(message)?;
        // A bell that is full rings already.
        let _ = self.bell.write(1);
        Ok(())
    }

    pub(crate) fn pop(&self) -> Option<ControlMessage> {
        self.ring.pop()
    }

    pub(crate) fn len(&self) -> usize {
        self.ring.len()
    }

    pub(crate) fn bell(&self) -> &EventFd {
        &self.bell
    }
}
