//! The requests of one core and the queues that own them.

use nvme_spec::command::Sqe;

use super::request::{Buffer, HostBuffer, Request, RequestId, State, Work};
use crate::limits::MAX_QUEUES_PER_CORE;

/// Names a queue on its core; never names another queue later, however often slots are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueId {
    index: u32,
    generation: u32,
}

impl QueueId {
    /// The queue's place in per-core tables, below the limit of queues per core.
    #[inline]
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// Both halves in one number.
    #[inline]
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The reverse of [`QueueId::to_bits`]. Any number is good: one that names no queue is ignored
    /// wherever it is given.
    #[inline]
    pub fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// What a queue is, once its Connect command has been accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueParams {
    /// What commands it takes.
    pub role: QueueRole,
    /// Index of its subsystem in the namespace tables.
    pub subsystem: u32,
    /// Entries of the submission queue, at least 2: SQHD wraps there.
    pub sq_entries: u16,
    /// SQHD is maintained; otherwise it is reported as FFFFh (NVMe Base, Connect response).
    pub flow_control: bool,
}

/// How a queue's carrier moves data that is not in a capsule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// By keys to host memory: RDMA.
    Keyed,
    /// In the connection's own stream: TCP.
    Stream,
}

/// Which commands a queue takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueRole {
    /// Connect has not been accepted yet: everything goes to the control half, which refuses all
    /// but Connect.
    Unbound,
    /// An admin queue: everything goes to the control half.
    Admin,
    /// An I/O queue.
    Io,
}

/// What remains of a queue whose carrier is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Nothing: the queue is gone.
    Drained,
    /// Requests in a block device or with the control half.
    Pending,
}

/// What a queue has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLoad {
    /// Commands received so far.
    pub commands: u64,
    /// Commands between arrival and response.
    pub in_flight: u32,
}

#[derive(Debug)]
pub(super) struct Queue {
    generation: u32,
    state: QueueState,
    carrier: Carrier,
    params: QueueParams,
    sqhd: u16,
    /// Requests between arrival and release.
    outstanding: u32,
    /// Bytes of the buffers that they hold.
    held: usize,
    commands: u64,
    ids: Vec<RequestId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueueState {
    Vacant,
    Open,
    /// No step touches the host any more, but the carrier still may hold memory.
    Closing,
    /// The carrier is gone.
    Retired,
}

impl Queue {
    #[inline]
    pub(super) fn params(&self) -> &QueueParams {
        &self.params
    }

    #[inline]
    pub(super) fn carrier(&self) -> Carrier {
        self.carrier
    }
}

#[derive(Debug)]
pub(super) struct Slab {
    requests: Box<[Request]>,
    free: Vec<RequestId>,
    queues: Box<[Queue]>,
    /// Of the queue that was opened last.
    generation: u32,
}

const UNBOUND: QueueParams =
    QueueParams { role: QueueRole::Unbound, subsystem: 0, sq_entries: 0, flow_control: true };

impl Slab {
    pub(super) fn new(requests: u32) -> Self {
        let vacant = || Queue {
            generation: 0,
            state: QueueState::Vacant,
            carrier: Carrier::Keyed,
            params: UNBOUND,
            sqhd: 0,
            outstanding: 0,
            held: 0,
            commands: 0,
            ids: Vec::new(),
        };
        Self {
            requests: (0..requests).map(|_| Request::new()).collect(),
            free: (0..requests).rev().map(RequestId).collect(),
            queues: (0..MAX_QUEUES_PER_CORE).map(|_| vacant()).collect(),
            generation: 0,
        }
    }

    /// A capsule for an armed request of an open queue; `None` for any other, which is ignored.
    #[inline]
    pub(super) fn arrive(&mut self, id: RequestId, sqe: Sqe) -> Option<(&mut Request, &Queue)> {
        let request = self.requests.get_mut(id.0 as usize)?;
        let queue = &mut self.queues[request.queue as usize];
        if request.state != State::Armed || queue.state != QueueState::Open {
            return None;
        }
        queue.outstanding += 1;
        queue.commands += 1;
        queue.sqhd = match queue.params.sq_entries {
            // Before Connect is accepted the size is unknown; `bind` wraps what was counted.
            0 => queue.sqhd.wrapping_add(1),
            entries if queue.sqhd + 1 >= entries => 0,
            _ => queue.sqhd + 1,
        };
        request.state = State::Arrived;
        request.sqe = sqe;
        request.work = Work::Control { takes_data: false };
        request.host = HostBuffer::None;
        request.length = 0;
        request.send_bytes = 0;
        Some((request, queue))
    }

    /// Ends a request. Names the queue when that was the last one of a retired queue.
    #[inline]
    pub(super) fn release(&mut self, id: RequestId) -> Option<QueueId> {
        let request = &mut self.requests[id.0 as usize];
        debug_assert!(!matches!(request.state, State::Free | State::Armed), "released twice");
        debug_assert!(!matches!(request.buffer, Buffer::Pool(_)), "released with its buffer");
        request.state = State::Armed;
        request.buffer = Buffer::None;
        let index = request.queue;
        let queue = &mut self.queues[index as usize];
        queue.outstanding -= 1;
        if queue.state != QueueState::Retired || queue.outstanding > 0 {
            return None;
        }
        let generation = queue.generation;
        self.vacate(index);
        Some(QueueId { index, generation })
    }

    pub(super) fn open(
        &mut self,
        carrier: Carrier,
        slots: u32,
    ) -> Option<(QueueId, Vec<RequestId>)> {
        let index = self.queues.iter().position(|q| q.state == QueueState::Vacant)?;
        let ids = self.arm(index as u32, slots as usize)?;
        let queue = &mut self.queues[index];
        // One count for all places: a completion of a queue that is gone cannot pass for one of
        // whatever queue its requests belong to now.
        self.generation = self.generation.wrapping_add(1);
        queue.generation = self.generation;
        queue.state = QueueState::Open;
        queue.carrier = carrier;
        queue.params = UNBOUND;
        queue.sqhd = 0;
        queue.commands = 0;
        queue.ids.clone_from(&ids);
        Some((QueueId { index: index as u32, generation: queue.generation }, ids))
    }

    pub(super) fn grow(&mut self, id: QueueId, slots: u32) -> Option<Vec<RequestId>> {
        let queue = self.queue_mut(id).filter(|queue| queue.state == QueueState::Open)?;
        let more = (slots as usize).saturating_sub(queue.ids.len());
        let ids = self.arm(id.index, more)?;
        self.queues[id.index()].ids.extend_from_slice(&ids);
        Some(ids)
    }

    /// Takes free requests for a queue.
    fn arm(&mut self, queue: u32, count: usize) -> Option<Vec<RequestId>> {
        let keep = self.free.len().checked_sub(count)?;
        let ids = self.free.split_off(keep);
        for id in &ids {
            let request = &mut self.requests[id.0 as usize];
            request.state = State::Armed;
            request.queue = queue;
        }
        Some(ids)
    }

    pub(super) fn bind(&mut self, id: QueueId, params: QueueParams) {
        assert!(params.sq_entries >= 2, "Connect with fewer than two entries is refused");
        if let Some(queue) = self.queue_mut(id) {
            queue.params = params;
            queue.sqhd %= params.sq_entries;
        }
    }

    /// The requests of the queue that was closed; none if it is not open.
    pub(super) fn close(&mut self, id: QueueId) -> Vec<RequestId> {
        match self.queue_mut(id) {
            Some(queue) if queue.state == QueueState::Open => {
                queue.state = QueueState::Closing;
                queue.ids.clone()
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn ids(&mut self, id: QueueId) -> Vec<RequestId> {
        self.queue_mut(id).map(|queue| queue.ids.clone()).unwrap_or_default()
    }

    pub(super) fn retire(&mut self, id: QueueId) -> Closed {
        let Some(queue) = self.queue_mut(id) else { return Closed::Drained };
        queue.state = QueueState::Retired;
        if queue.outstanding > 0 {
            return Closed::Pending;
        }
        self.vacate(id.index);
        Closed::Drained
    }

    #[inline]
    pub(super) fn state(&self, id: RequestId) -> State {
        self.requests.get(id.0 as usize).map_or(State::Free, |request| request.state)
    }

    #[inline]
    pub(super) fn set_state(&mut self, id: RequestId, state: State) {
        self.requests[id.0 as usize].state = state;
    }

    #[inline]
    pub(super) fn request(&self, id: RequestId) -> &Request {
        &self.requests[id.0 as usize]
    }

    #[inline]
    pub(super) fn request_mut(&mut self, id: RequestId) -> &mut Request {
        &mut self.requests[id.0 as usize]
    }

    #[inline]
    pub(super) fn is_open(&self, id: RequestId) -> bool {
        self.queue(id).state == QueueState::Open
    }

    #[inline]
    pub(super) fn subsystem_of(&self, id: RequestId) -> u32 {
        self.queue(id).params.subsystem
    }

    /// What the response of this request reports as SQHD.
    #[inline]
    pub(super) fn sqhd_of(&self, id: RequestId) -> u16 {
        let queue = self.queue(id);
        if queue.params.flow_control { queue.sqhd } else { u16::MAX }
    }

    /// Bytes of the buffers that the queue of this request holds.
    #[inline]
    pub(super) fn held_of(&self, id: RequestId) -> usize {
        self.queue(id).held
    }

    #[inline]
    pub(super) fn hold(&mut self, id: RequestId, bytes: usize) {
        self.queues[self.requests[id.0 as usize].queue as usize].held += bytes;
    }

    #[inline]
    pub(super) fn give_back(&mut self, id: RequestId, bytes: usize) {
        self.queues[self.requests[id.0 as usize].queue as usize].held -= bytes;
    }

    #[inline]
    pub(super) fn queue_of(&self, id: RequestId) -> QueueId {
        let index = self.request(id).queue;
        QueueId { index, generation: self.queues[index as usize].generation }
    }

    pub(super) fn load(&self, id: QueueId) -> Option<QueueLoad> {
        let queue = self.queues.get(id.index as usize)?;
        let open = queue.generation == id.generation && queue.state == QueueState::Open;
        open.then_some(QueueLoad { commands: queue.commands, in_flight: queue.outstanding })
    }

    /// The request of an open queue that carries this command identifier.
    pub(super) fn find(&self, id: QueueId, cid: u16) -> Option<RequestId> {
        let queue = self.queues.get(id.index as usize)?;
        if queue.generation != id.generation || queue.state != QueueState::Open {
            return None;
        }
        let is_it = |request: &Request| {
            !matches!(request.state, State::Free | State::Armed) && request.sqe.cid() == cid
        };
        queue.ids.iter().copied().find(|&id| is_it(self.request(id)))
    }

    #[inline]
    fn queue(&self, id: RequestId) -> &Queue {
        &self.queues[self.request(id).queue as usize]
    }

    fn queue_mut(&mut self, id: QueueId) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(id.index as usize)?;
        (queue.generation == id.generation && queue.state != QueueState::Vacant).then_some(queue)
    }

    fn vacate(&mut self, index: u32) {
        let queue = &mut self.queues[index as usize];
        queue.state = QueueState::Vacant;
        for id in queue.ids.drain(..) {
            self.requests[id.0 as usize].state = State::Free;
            self.free.push(id);
        }
    }
}
