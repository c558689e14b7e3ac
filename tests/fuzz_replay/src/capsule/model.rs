//! An engine, and beside it what must be true of it.

use bdev::{Io, Op};
use dma::{DmaSpan, Pool};
use nvme_spec::command::Sqe;
use nvme_spec::fabrics::{fctype, fctype_of};
use nvme_spec::nvm::DsmRange;
use nvme_spec::opcode::FABRICS;
use nvme_spec::status::Status;
use nvmf::engine::{
    Carrier, Closed, Engine, EngineConfig, Namespace, QueueId, QueueParams, RequestId, Step,
};

const REQUESTS: u32 = 24;
const SLOTS: u32 = 8;
const MAX_TRANSFER: u32 = 64 << 10;
const PAGE: u32 = 4096;

/// Where a request must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Armed,
    Waiting,
    Fetching,
    Executing,
    Control,
    Responding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Closed,
    Retired,
}

struct Queue {
    id: QueueId,
    phase: Phase,
    requests: Vec<RequestId>,
}

pub(super) struct World {
    engine: Engine,
    queues: Vec<Queue>,
    /// By request.
    at: [At; REQUESTS as usize],
    namespaces: [Option<Namespace>; 2],
    /// One page for each slot.
    pages: DmaSpan,
}

impl World {
    pub(super) fn new() -> Self {
        let arena = crate::arena();
        let pages = arena.carve((REQUESTS * PAGE) as usize, 4096).expect("room");
        // Little enough that requests wait.
        let pool = Pool::new(arena, 192 << 10, MAX_TRANSFER as usize).expect("room");
        let config =
            EngineConfig { requests: REQUESTS, max_transfer_bytes: MAX_TRANSFER, queue_share: 2 };
        Self {
            engine: Engine::new(config, pool),
            queues: Vec::new(),
            at: [At::Armed; REQUESTS as usize],
            namespaces: [None; 2],
            pages,
        }
    }

    pub(super) fn set_namespace(&mut self, nsid: u32, namespace: Option<Namespace>) {
        self.engine.set_namespace(0, nsid, namespace);
        self.namespaces[nsid as usize - 1] = namespace;
    }

    pub(super) fn open(&mut self, carrier: Carrier) {
        let taken = self.queues.len() as u32 * SLOTS;
        let opened = self.engine.open_queue(carrier, SLOTS);
        assert_eq!(opened.is_some(), taken + SLOTS <= REQUESTS, "slots are lost or double");
        let Some((id, requests)) = opened else { return };
        assert!(self.queues.iter().all(|queue| queue.id != id));
        for request in &requests {
            self.at[request.0 as usize] = At::Armed;
        }
        self.queues.push(Queue { id, phase: Phase::Open, requests });
    }

    pub(super) fn bind(&mut self, queue: usize, params: QueueParams) {
        if let Some(queue) = self.queues.get(queue % 4) {
            self.engine.bind_queue(queue.id, params);
        }
    }

    pub(super) fn capsule(&mut self, number: u8, sqe: Sqe, behind: u32) {
        let id = request(number);
        let at = self.pages.subspan(id.0 % REQUESTS * PAGE, PAGE);
        let data = (behind > 0).then(|| at.subspan(0, behind.min(PAGE)));
        let taken = self.is_at(id, At::Armed) && self.is_open(id);
        let step = self.engine.handle_capsule(id, sqe, data);
        match step {
            _ if !taken => assert!(matches!(step, Step::None), "{step:?} for a busy slot"),
            Step::None => self.put(id, At::Waiting),
            step => self.follow(id, step),
        }
    }

    /// `data` is what the host sent first; the rest of the buffer is whatever it was.
    pub(super) fn fetched(&mut self, number: u8, ok: bool, data: &[u8]) {
        let id = self.nearest(number, At::Fetching);
        if self.is_at(id, At::Fetching) {
            let span = self.engine.request(id).data().expect("a buffer to fetch to");
            span.write(0, &data[..data.len().min(span.len() as usize)]);
        }
        let goes_on = self.is_open(id);
        let was = self.is_at(id, At::Fetching);
        let step = self.engine.handle_fetched(id, ok);
        self.after(id, was, goes_on, step);
    }

    pub(super) fn done(&mut self, number: u8, status: Status) {
        let id = self.nearest(number, At::Executing);
        let (was, open) = (self.is_at(id, At::Executing), self.is_open(id));
        let step = self.engine.handle_done(id, status);
        self.after(id, was, open, step);
    }

    pub(super) fn busy(&mut self, number: u8) {
        let id = self.nearest(number, At::Executing);
        // A channel says so at once, so that its queue cannot have closed meanwhile.
        if self.is_at(id, At::Executing) && self.is_open(id) {
            self.engine.handle_busy(id);
            self.put(id, At::Waiting);
        }
    }

    pub(super) fn sent(&mut self, number: u8) {
        let id = self.nearest(number, At::Responding);
        let was = self.is_at(id, At::Responding);
        let step = self.engine.handle_sent(id);
        self.after(id, was, false, step);
    }

    pub(super) fn answer(&mut self, number: u8, data_bytes: u32) {
        let id = self.nearest(number, At::Control);
        let (was, open) = (self.is_at(id, At::Control), self.is_open(id));
        let step = self.engine.handle_answer(id, 1, Status::SUCCESS, data_bytes);
        self.after(id, was, open, step);
        // The response to a Disconnect closes its queue.
        if was && open && is_disconnect(self.engine.request(id).sqe()) {
            let queue = self.queue_of(id).expect("it is in a queue");
            self.closed(queue);
        }
    }

    pub(super) fn poll(&mut self) {
        self.engine.begin_turn();
        // Each is offered once at most: nobody is busy here.
        for _ in 0..=self.engine.waiting() {
            let step = self.engine.poll_step();
            let Some(id) = request_of(&step) else {
                assert!(matches!(step, Step::None));
                return;
            };
            assert!(self.is_at(id, At::Waiting), "{step:?} for {:?}", self.at[id.0 as usize]);
            self.follow(id, step);
        }
    }

    pub(super) fn abort(&mut self, queue: usize, cid: u16) {
        let Some(queue) = self.queues.get(queue % 4).map(|queue| queue.id) else { return };
        if let Some(step) = self.engine.abort(queue, cid) {
            let id = request_of(&step).expect("an answer");
            assert!(self.is_at(id, At::Waiting));
            let status = self.engine.request(id).cqe().status();
            assert_eq!(status, Status::COMMAND_ABORT_REQUESTED);
            self.follow(id, step);
        }
    }

    pub(super) fn close(&mut self, queue: usize) {
        let Some(found) = self.queues.get(queue % 4) else { return };
        self.engine.close_queue(found.id);
        self.closed(queue % 4);
    }

    /// The queue has closed: who waits ends here and now.
    fn closed(&mut self, queue: usize) {
        let queue = &mut self.queues[queue];
        if queue.phase == Phase::Open {
            queue.phase = Phase::Closed;
            for id in &queue.requests {
                let at = &mut self.at[id.0 as usize];
                *at = if *at == At::Waiting { At::Armed } else { *at };
            }
        }
    }

    pub(super) fn release_carried(&mut self, queue: usize) {
        let index = queue % 4;
        let Some(queue) = self.queues.get_mut(index) else { return };
        if queue.phase == Phase::Open {
            return;
        }
        let closed = self.engine.release_carried(queue.id);
        queue.phase = Phase::Retired;
        for id in &queue.requests {
            let at = &mut self.at[id.0 as usize];
            let carried = matches!(at, At::Fetching | At::Responding);
            *at = if carried { At::Armed } else { *at };
        }
        let drained = self.in_flight(index) == 0;
        assert_eq!(closed, if drained { Closed::Drained } else { Closed::Pending });
        if drained {
            self.queues.remove(index);
        }
    }

    /// What must be true between any two events.
    pub(super) fn check(&self) {
        let mut waiting = 0;
        for (index, queue) in self.queues.iter().enumerate() {
            let is_waiting = |id: &&RequestId| self.at[id.0 as usize] == At::Waiting;
            waiting += queue.requests.iter().filter(is_waiting).count();
            let load = self.engine.queue_load(queue.id);
            assert_eq!(load.is_some(), queue.phase == Phase::Open);
            if let Some(load) = load {
                assert_eq!(load.in_flight as usize, self.in_flight(index));
            }
        }
        assert_eq!(self.engine.waiting(), waiting);
    }

    /// Ends everything: block devices and the control half give back what they have.
    pub(super) fn finish(&mut self) {
        for index in 0..self.queues.len() {
            self.close(index);
        }
        for index in (0..self.queues.len()).rev() {
            self.release_carried(index);
        }
        for number in 0..REQUESTS as u8 {
            self.done(number, Status::SUCCESS);
            self.answer(number, 0);
        }
        assert!(self.queues.is_empty(), "every queue drains");
        assert_eq!(self.engine.pool().free_bytes(), self.engine.pool().bytes());
        assert_eq!(self.engine.waiting(), 0);
    }

    /// The step after an event for a request: `was` in the state that the event is for; `goes_on`
    /// to a step that touches the host or the block device.
    fn after(&mut self, id: RequestId, was: bool, goes_on: bool, step: Step) {
        if !was {
            assert!(matches!(step, Step::None), "{step:?} out of nothing");
        } else if goes_on && matches!(step, Step::None) {
            // Its channel was busy for another one.
            self.put(id, At::Waiting);
        } else if goes_on {
            self.follow(id, step);
        } else {
            let index = self.queue_of(id).expect("it was in a queue");
            self.put(id, At::Armed);
            let drained = self.queues[index].phase == Phase::Retired && self.in_flight(index) == 0;
            match step {
                Step::Drained(queue) => {
                    assert!(drained && self.queues[index].id == queue);
                    self.queues.remove(index);
                }
                step => assert!(!drained && matches!(step, Step::None), "{step:?}"),
            }
        }
    }

    fn follow(&mut self, id: RequestId, step: Step) {
        assert!(self.is_open(id), "{step:?} after the close");
        assert_eq!(request_of(&step), Some(id), "{step:?}");
        let was = self.at[id.0 as usize];
        let at = match step {
            Step::Fetch(_) => At::Fetching,
            Step::Control(_) => At::Control,
            Step::Submit { channel, io } => {
                self.check_io(id, channel, &io);
                At::Executing
            }
            Step::Respond(_) => {
                let request = self.engine.request(id);
                assert_eq!(request.cqe().cid(), request.sqe().cid());
                let room = request.data().map_or(0, |data| data.len());
                assert!(request.data_out().is_none_or(|data| data.len() <= room));
                assert!(was != At::Responding, "answered twice");
                At::Responding
            }
            Step::None | Step::Drained(_) => unreachable!("they name no request"),
        };
        self.put(id, at);
    }

    /// What reaches a block device lies within the namespace that has the channel.
    fn check_io(&self, id: RequestId, channel: u32, io: &Io) {
        let nsid = self.engine.request(id).sqe().nsid();
        let namespace = self.namespaces[nsid as usize - 1].expect("a namespace");
        assert_eq!(namespace.channel, channel);
        let blocks = namespace.geometry.block_count;
        let within = |slba: u64, count: u64| slba.checked_add(count).is_some_and(|e| e <= blocks);
        let bytes = u64::from(io.block_count) * u64::from(namespace.geometry.block_bytes);
        let length = io.buffer.map(|buffer| u64::from(buffer.len()));
        match io.op {
            Op::Read | Op::Compare | Op::Write { .. } => assert_eq!(length, Some(bytes)),
            Op::Flush | Op::WriteZeroes { .. } => assert_eq!(length, None),
            Op::Deallocate { ranges } => {
                assert!(length.is_some_and(|l| (u64::from(ranges) * 16..=4096).contains(&l)));
                for index in 0..u32::from(ranges) {
                    let range: DsmRange = io.buffer.expect("ranges").read_obj(16 * index);
                    assert!(within(range.slba.get(), range.block_count.get().into()));
                }
            }
        }
        assert!(within(io.slba, io.block_count.into()));
        let changes = !matches!(io.op, Op::Read | Op::Compare | Op::Flush);
        assert!(!(changes && namespace.read_only), "a write to a read-only namespace");
    }

    /// The first request from `number` on that is in this state, else request `number`: so that
    /// most events have an effect, and some come out of nowhere.
    fn nearest(&self, number: u8, at: At) -> RequestId {
        let all = (0..REQUESTS).map(|step| RequestId((u32::from(number) + step) % REQUESTS));
        let mut found = all.filter(|&id| self.is_at(id, at));
        found.next().unwrap_or(request(number))
    }

    fn is_at(&self, id: RequestId, at: At) -> bool {
        self.queue_of(id).is_some() && self.at[id.0 as usize] == at
    }

    fn is_open(&self, id: RequestId) -> bool {
        self.queue_of(id).is_some_and(|index| self.queues[index].phase == Phase::Open)
    }

    fn queue_of(&self, id: RequestId) -> Option<usize> {
        self.queues.iter().position(|queue| queue.requests.contains(&id))
    }

    fn in_flight(&self, queue: usize) -> usize {
        let requests = self.queues[queue].requests.iter();
        requests.filter(|id| self.at[id.0 as usize] != At::Armed).count()
    }

    fn put(&mut self, id: RequestId, at: At) {
        self.at[id.0 as usize] = at;
    }
}

/// A request of the slab, or now and then none.
fn request(number: u8) -> RequestId {
    match number {
        0x7F => RequestId(u32::MAX),
        number => RequestId(u32::from(number) % (REQUESTS + 1)),
    }
}

fn is_disconnect(sqe: &Sqe) -> bool {
    sqe.opcode() == FABRICS && fctype(sqe) == fctype_of::DISCONNECT
}

fn request_of(step: &Step) -> Option<RequestId> {
    match step {
        Step::Fetch(id) | Step::Control(id) | Step::Respond(id) => Some(*id),
        Step::Submit { io, .. } => Some(RequestId(io.tag)),
        Step::None | Step::Drained(_) => None,
    }
}
