//! What the lanes of a pool share, and what they tell each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bdev::{Channel, Io};
use crossbeam_queue::ArrayQueue;
use nvme_spec::status::Status;
use uuid::Uuid;

use crate::epoch::Epochs;
use crate::limits::{LANE_REQUESTS, OWNER_MESSAGES};
use crate::map::{Map, Root};

/// Of a pool, by all lanes.
pub(crate) struct Shared {
    pub map: Arc<Map>,
    pub epochs: Epochs,
    /// From each lane to the owner. As long as a lane has requests, and a few more.
    pub to_owner: Box<[ArrayQueue<ToOwner>]>,
    /// From the owner to each lane.
    pub to_lane: Box<[ArrayQueue<ToLane>]>,
}

impl Shared {
    pub(crate) fn new(map: Arc<Map>, lanes: usize) -> Self {
        let capacity = LANE_REQUESTS + OWNER_MESSAGES;
        let to_owner = (0..lanes).map(|_| ArrayQueue::new(capacity)).collect();
        let to_lane = (0..lanes).map(|_| ArrayQueue::new(capacity)).collect();
        Self { map, epochs: Epochs::new(lanes), to_owner, to_lane }
    }
}

/// The next message of a ring. Most turns find none; to pop it from an empty ring takes a fence.
#[inline]
pub(crate) fn pop<T>(ring: &ArrayQueue<T>) -> Option<T> {
    if ring.is_empty() { None } else { ring.pop() }
}

/// From a lane.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ToOwner {
    /// An I/O that changes maps, or waits for the journal.
    Io { slot: u32, volume: u32, io: Io },
    /// It takes no writes for the frozen volumes any more.
    Frozen,
    /// It has a channel to a device, or has let it go.
    Devices,
}

/// A device for a lane.
pub(crate) struct LaneDevice {
    pub channel: Box<dyn Channel>,
    pub block_bytes: u32,
    pub volatile: bool,
}

/// To a lane.
pub(crate) enum ToLane {
    /// The end of an I/O.
    Done { slot: u32, status: Status },
    /// Take no writes for these volumes until [`ToLane::Thaw`]; say so.
    Freeze(Arc<[u32]>),
    /// Take them again.
    Thaw(Arc<[u32]>),
    /// A device comes, with its number. Say so.
    AddDevice(usize, LaneDevice),
    /// It goes: let it go when no I/O on it is in flight, and say so then.
    RemoveDevice(usize),
}

/// A volume or snapshot as the lanes know it.
#[derive(Debug)]
pub struct VolumeHandle {
    id: u32,
    uuid: Uuid,
    nguid: Uuid,
    block_bytes: u32,
    read_only: bool,
    pub(crate) root: AtomicU32,
    pub(crate) head: AtomicU64,
    /// Logical blocks.
    pub(crate) block_count: AtomicU64,
    pub(crate) closed: AtomicBool,
}

impl VolumeHandle {
    pub(crate) fn new(
        (id, uuid, nguid): (u32, Uuid, Uuid),
        (block_bytes, bytes): (u32, u64),
        read_only: bool,
        (root, head): (Root, u64),
    ) -> Self {
        Self {
            id,
            uuid,
            nguid,
            block_bytes,
            read_only,
            root: AtomicU32::new(root),
            head: AtomicU64::new(head),
            block_count: AtomicU64::new(bytes / u64::from(block_bytes)),
            closed: AtomicBool::new(false),
        }
    }

    /// Its number in the pool; never given twice.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its UUID.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Its NGUID.
    pub fn nguid(&self) -> Uuid {
        self.nguid
    }

    /// Bytes of its logical blocks: 512 or 4096.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Logical blocks it has now.
    pub fn block_count(&self) -> u64 {
        self.block_count.load(Ordering::Acquire)
    }

    /// It takes no writes: a snapshot, or a read-only clone.
    pub fn read_only(&self) -> bool {
        self.read_only
    }
}
