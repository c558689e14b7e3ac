//! The data path of one core: a fixed slab of requests, the queues they arrive on, the buffers
//! they hold, and the one state machine that all of them go through.
//!
//! A carrier reports what arrived (`handle_*`); each call returns the [`Step`] to take next, or
//! nothing when the request waits. No call allocates, locks or enters the kernel.
//!
//! ```text
//!            handle_capsule                       handle_buffer_freed
//!  Armed ────────┬───────────────> WaitBuffer ────────┐
//!    ^           │ (no data, or data in capsule)      │
//!    │           │<───────────────────────────────────┘
//!    │           ├──> Fetch ──handle_fetched──┐   write, compare, deallocate: data comes first
//!    │           │<───────────────────────────┘
//!    │           ├──> Execute ──handle_done──┐    the block device has it
//!    │           ├──> Control ──handle_answer┤    the control half has it
//!    │           │                           v
//!    └───────────┴─────────handle_sent──── Respond
//! ```
//!
//! A request waits for one buffer at most and holds nothing else that another waits for, so
//! waiting requests cannot deadlock. Those of one namespace are served in the order they came, and
//! namespaces take turns (`lines`). The commands of one queue hold only a part of the memory
//! (`parked`).
//!
//! A request whose queue has closed takes no further step that touches the host: whatever comes
//! back for it only releases it. A queue is gone when its last request has been released.

mod command;
mod lines;
mod parked;
mod request;
mod slab;
#[cfg(test)]
mod tests;

use bdev::Io;
use dma::{DmaSpan, Pool};
use nvme_spec::command::{Cqe, Sqe};
use nvme_spec::status::Status;

pub use self::command::{Namespace, Namespaces};
pub use self::request::{HostBuffer, Request, RequestId};
pub use self::slab::{Carrier, Closed, QueueId, QueueLoad, QueueParams, QueueRole};

use self::command::Plan;
use self::lines::{For, Lines};
use self::parked::Parked;
use self::request::{Buffer, State, Work};
use self::slab::Slab;
use crate::limits::MAX_QUEUES_PER_CORE;

/// What to do next for a request.
#[derive(Clone, Copy, Debug)]
#[must_use = "a step that is not taken leaves its request hanging"]
pub enum Step {
    /// Nothing now: the request waits, or it is over.
    None,
    /// The carrier brings the host's data into [`Request::data`], then calls
    /// [`Engine::handle_fetched`].
    Fetch(RequestId),
    /// The channel of the namespace takes the I/O, whose tag is the request's id; its completion
    /// goes to [`Engine::handle_done`]. If it is busy: [`Engine::handle_busy`].
    Submit {
        /// The namespace's channel on this core.
        channel: u32,
        /// What to submit.
        io: Io,
    },
    /// The control half answers by [`Engine::handle_answer`].
    Control(RequestId),
    /// The carrier sends [`Request::data_out`], if any, and then [`Request::cqe`]; once the
    /// buffer may be reused it calls [`Engine::handle_sent`].
    Respond(RequestId),
    /// The last request of a closed queue has ended.
    Drained(QueueId),
}

/// Sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Requests in the slab: the sum of what all queues of the core may have outstanding.
    pub requests: u32,
    /// Largest data transfer of one command, in bytes.
    pub max_transfer_bytes: u32,
    /// One over this is the part that the commands of one queue may hold of the memory that no
    /// other queue holds; one buffer they always may. 1: all of it.
    pub queue_share: usize,
}

/// Counters of one core, for the control half to read between turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// I/O commands that a block device has ended.
    pub ios: u64,
    /// Requests that had to wait for a buffer.
    pub buffer_waits: u64,
    /// Times a channel was busy.
    pub channel_waits: u64,
}

/// The data path of one core.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    slab: Slab,
    namespaces: Namespaces,
    pool: Pool,
    lines: Lines,
    parked: Parked,
    stats: EngineStats,
}

impl Engine {
    /// An engine whose data buffers come from `pool`.
    pub fn new(config: EngineConfig, pool: Pool) -> Self {
        assert!(config.max_transfer_bytes <= pool.max_block_bytes(), "a transfer fits a buffer");
        assert!(config.queue_share > 0);
        Self {
            config,
            slab: Slab::new(config.requests),
            namespaces: Namespaces::default(),
            lines: Lines::new(pool.bytes()),
            parked: Parked::new(MAX_QUEUES_PER_CORE),
            pool,
            stats: EngineStats::default(),
        }
    }

    /// A command capsule arrived on the queue that `id` is armed for. `data` is what followed the
    /// command in the capsule: in-capsule data, in the slot's own memory.
    pub fn handle_capsule(&mut self, id: RequestId, sqe: Sqe, data: Option<DmaSpan>) -> Step {
        let Some((request, queue)) = self.slab.arrive(id, sqe) else {
            return Step::None;
        };
        let plan = command::plan(&request.sqe, queue, &self.namespaces, &self.config, data);
        match plan {
            Ok(Plan { work, transfer }) => {
                request.work = work;
                request.host = transfer.host;
                request.length = transfer.length;
                match transfer.in_capsule {
                    Some(span) => request.buffer = Buffer::Capsule(span),
                    None if transfer.length > 0 => return self.acquire_buffer(id),
                    None => {}
                }
                self.begin(id)
            }
            Err(status) => self.respond(id, 0, status, 0),
        }
    }

    /// A command capsule arrived whose data is not what the host sent, as its digest says.
    pub fn handle_corrupt_capsule(&mut self, id: RequestId, sqe: Sqe) -> Step {
        match self.slab.arrive(id, sqe) {
            Some(_) => self.respond(id, 0, Status::TRANSIENT_TRANSPORT_ERROR, 0),
            None => Step::None,
        }
    }

    /// The carrier has brought the host's data in. `intact`: it is what the host sent; otherwise
    /// the host is told to try again.
    pub fn handle_fetched(&mut self, id: RequestId, intact: bool) -> Step {
        match self.slab.state(id) {
            State::Fetch if !self.slab.is_open(id) => self.release(id),
            State::Fetch if intact => self.execute(id),
            State::Fetch => self.respond(id, 0, Status::TRANSIENT_TRANSPORT_ERROR, 0),
            _ => Step::None,
        }
    }

    /// The channel refused the I/O for the moment: it is offered again by [`Engine::poll_step`] in
    /// the next turn, and what came after it waits behind it.
    pub fn handle_busy(&mut self, id: RequestId) {
        if self.slab.state(id) == State::Execute {
            self.stats.channel_waits += 1;
            self.slab.set_state(id, State::WaitChannel);
            let line = self.slab.request(id).work.line();
            self.lines.set_busy(line);
            self.lines.push_front(&mut self.slab, line, For::Channel, id);
        }
    }

    /// The block device has completed the I/O with this tag.
    pub fn handle_done(&mut self, id: RequestId, status: Status) -> Step {
        if self.slab.state(id) != State::Execute {
            return Step::None;
        }
        if !self.slab.is_open(id) {
            return self.release(id);
        }
        self.stats.ios += 1;
        let request = self.slab.request(id);
        let sends_data = status.is_success() && request.work.reads();
        let send_bytes = if sends_data { request.length } else { 0 };
        self.respond(id, 0, status, send_bytes)
    }

    /// The control half has answered, and has put `data_bytes` of data into the request's buffer.
    pub fn handle_answer(
        &mut self,
        id: RequestId,
        result: u64,
        status: Status,
        data_bytes: u32,
    ) -> Step {
        if self.slab.state(id) != State::Control {
            return Step::None;
        }
        if !self.slab.is_open(id) {
            return self.release(id);
        }
        let request = self.slab.request(id);
        let (room, disconnects) = (request.length, command::is_disconnect(&request.sqe));
        let step = self.respond(id, result, status, data_bytes.min(room));
        if disconnects && status.is_success() {
            // This is the last that the host hears of the queue. What was posted before arrives
            // before it; nothing is posted after it.
            self.close_queue(self.slab.queue_of(id));
        }
        step
    }

    /// The response, and the data before it, have left: the buffer is free again.
    pub fn handle_sent(&mut self, id: RequestId) -> Step {
        match self.slab.state(id) {
            State::Respond => self.release(id),
            _ => Step::None,
        }
    }

    /// Begins a turn: channels that were busy are offered again.
    #[inline]
    pub fn begin_turn(&mut self) {
        self.lines.begin_turn();
    }

    /// What can go on now that buffers were freed or channels have room. Called each turn until it
    /// returns [`Step::None`], which it does when nobody waits, every channel that is waited for is
    /// busy, and no buffer can be had.
    pub fn poll_step(&mut self) -> Step {
        while let Some(id) = self.next_parked() {
            match self.line_up(id) {
                // Into the line of its namespace.
                Step::None => {}
                step => return step,
            }
        }
        while let Some(id) = self.next_for_buffer() {
            match self.begin(id) {
                // From one line to the next: its channel is busy.
                Step::None => {}
                step => return step,
            }
        }
        let Some((line, id)) = self.lines.next(For::Channel, |_, _, _| true) else {
            return Step::None;
        };
        self.lines.pass(For::Channel);
        self.lines.remove(&mut self.slab, line, For::Channel, id);
        self.submit(id)
    }

    /// How many requests wait for a buffer or a channel.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.lines.waiting() + self.parked.count()
    }

    /// Ends a command early if it still waits here: it is answered with Command Abort Requested.
    /// `None` when it cannot be ended any more, or is not there.
    pub fn abort(&mut self, queue: QueueId, cid: u16) -> Option<Step> {
        let id = self.slab.find(queue, cid)?;
        match self.slab.state(id) {
            State::Parked | State::WaitBuffer | State::WaitChannel => {
                self.stop_waiting(id);
                Some(self.respond(id, 0, Status::COMMAND_ABORT_REQUESTED, 0))
            }
            _ => None,
        }
    }

    /// The request, for the carrier and for the control half.
    #[inline]
    pub fn request(&self, id: RequestId) -> &Request {
        self.slab.request(id)
    }

    /// The queue a request belongs to.
    #[inline]
    pub fn queue_of(&self, id: RequestId) -> QueueId {
        self.slab.queue_of(id)
    }

    /// Opens a queue with `slots` requests of its own, all armed, or `None` when the slab has too
    /// few left.
    pub fn open_queue(
        &mut self,
        carrier: Carrier,
        slots: u32,
    ) -> Option<(QueueId, Vec<RequestId>)> {
        self.slab.open(carrier, slots)
    }

    /// Gives an open queue requests until it has `slots`, and returns the new ones, armed; `None`,
    /// and no change, when the slab has too few left. For carriers that learn only by Connect how
    /// many the host wants.
    pub fn grow_queue(&mut self, queue: QueueId, slots: u32) -> Option<Vec<RequestId>> {
        self.slab.grow(queue, slots)
    }

    /// Makes a queue what its Connect command asked for. Unknown queues are ignored: theirs closed
    /// while the control half was thinking.
    pub fn bind_queue(&mut self, queue: QueueId, params: QueueParams) {
        self.slab.bind(queue, params);
    }

    /// Closes a queue: from here on no step of its requests touches the host. Requests that only
    /// this engine knows of end at once. Those that a carrier has ([`State::Fetch`],
    /// [`State::Respond`], armed) end when the carrier says that it can no longer touch them, by
    /// [`Engine::release_carried`]; those in a block device or with the control half when they come
    /// back.
    pub fn close_queue(&mut self, queue: QueueId) {
        for id in self.slab.close(queue) {
            if matches!(self.slab.state(id), State::Parked | State::WaitBuffer | State::WaitChannel)
            {
                self.stop_waiting(id);
                let _ = self.release(id);
            }
        }
    }

    /// The carrier's end of a closed queue is destroyed: nothing of it touches memory any more.
    /// Says whether requests are left whose end is announced by [`Step::Drained`]. Until then the
    /// carrier keeps the memory of its slots: in-capsule data may be in use by a block device.
    pub fn release_carried(&mut self, queue: QueueId) -> Closed {
        for id in self.slab.ids(queue) {
            if matches!(self.slab.state(id), State::Fetch | State::Respond) {
                let _ = self.release(id);
            }
        }
        self.slab.retire(queue)
    }

    /// Adds, changes or removes a namespace of a subsystem on this core.
    pub fn set_namespace(&mut self, subsystem: u32, nsid: u32, namespace: Option<Namespace>) {
        self.namespaces.set(subsystem, nsid, namespace);
        let (count, highest) = self.namespaces.channels();
        self.lines.set_channels(count, highest);
    }

    /// Counters so far.
    pub fn stats(&self) -> EngineStats {
        self.stats
    }

    /// Commands received and under way on an open queue.
    pub fn queue_load(&self, queue: QueueId) -> Option<QueueLoad> {
        self.slab.load(queue)
    }

    /// Where data buffers come from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn acquire_buffer(&mut self, id: RequestId) -> Step {
        // A later request must not overtake those that wait.
        let queue = self.slab.request(id).queue;
        if self.parked.has(queue) || !self.queue_may_have(id) {
            self.stats.buffer_waits += 1;
            self.park(id);
            return Step::None;
        }
        self.line_up(id)
    }

    /// Gives a request its buffer, or a place in the line of its namespace.
    fn line_up(&mut self, id: RequestId) -> Step {
        let line = self.slab.request(id).work.line();
        // A later request must not overtake those that wait.
        if self.lines.is_free(line, For::Buffer) && self.give_buffer(line, id) {
            return self.begin(id);
        }
        self.stats.buffer_waits += 1;
        self.slab.set_state(id, State::WaitBuffer);
        self.lines.push_back(&mut self.slab, line, For::Buffer, id);
        Step::None
    }

    /// The next request that waits for a buffer, which it has when this returns.
    fn next_for_buffer(&mut self) -> Option<RequestId> {
        loop {
            let free = self.pool.free_bytes();
            let slab = &self.slab;
            let may = |lines: &Lines, line: usize, id: RequestId| {
                lines.may_have(line, Pool::block_bytes(slab.request(id).length), free)
            };
            let (line, id) = self.lines.next(For::Buffer, may)?;
            let parks = !self.queue_may_have(id);
            // Without a run that is long enough it stays the next.
            if !parks && !self.give_buffer(line, id) {
                return None;
            }
            self.lines.pass(For::Buffer);
            self.lines.remove(&mut self.slab, line, For::Buffer, id);
            if !parks {
                return Some(id);
            }
            // Out of the way of other queues.
            self.park(id);
        }
    }

    /// Whether the queue of this request may hold the memory for it, too.
    #[inline]
    fn queue_may_have(&self, id: RequestId) -> bool {
        may_hold(&self.slab, id, self.pool.free_bytes(), self.config.queue_share)
    }

    fn park(&mut self, id: RequestId) {
        self.slab.set_state(id, State::Parked);
        let queue = self.slab.request(id).queue;
        self.parked.push(&mut self.slab, queue, id);
    }

    /// The next request whose queue may hold the memory for it again.
    fn next_parked(&mut self) -> Option<RequestId> {
        if self.parked.count() == 0 {
            return None;
        }
        let (free, share) = (self.pool.free_bytes(), self.config.queue_share);
        self.parked.next(&mut self.slab, |slab, id| may_hold(slab, id, free, share))
    }

    /// Gives a request its buffer, if its line may have one and there is one.
    #[inline]
    fn give_buffer(&mut self, line: usize, id: RequestId) -> bool {
        let request = self.slab.request_mut(id);
        let bytes = Pool::block_bytes(request.length);
        if !self.lines.may_have(line, bytes, self.pool.free_bytes()) {
            return false;
        }
        let buffer = self.pool.alloc(request.length);
        self.lines.set_starved(buffer.is_none());
        let Some(buffer) = buffer else { return false };
        request.buffer = Buffer::Pool(buffer);
        self.lines.hold(line, bytes);
        self.slab.hold(id, bytes);
        true
    }

    /// The request has all the memory it needs: data comes in first where the host sends some.
    fn begin(&mut self, id: RequestId) -> Step {
        let request = self.slab.request(id);
        if request.work.takes_host_data()
            && request.length > 0
            && matches!(request.buffer, Buffer::Pool(_))
        {
            self.slab.set_state(id, State::Fetch);
            return Step::Fetch(id);
        }
        self.execute(id)
    }

    /// The data, if any, is in our memory, where the host cannot change it any more.
    fn execute(&mut self, id: RequestId) -> Step {
        let request = self.slab.request(id);
        let Work::Io { .. } = request.work else {
            self.slab.set_state(id, State::Control);
            return Step::Control(id);
        };
        let line = request.work.line();
        if !self.lines.is_free(line, For::Channel) {
            self.slab.set_state(id, State::WaitChannel);
            self.lines.push_back(&mut self.slab, line, For::Channel, id);
            return Step::None;
        }
        self.submit(id)
    }

    /// Hands an I/O to its channel.
    fn submit(&mut self, id: RequestId) -> Step {
        let request = self.slab.request(id);
        let Work::Io { nsid, channel, io } = request.work else { return Step::None };
        let buffer = request.data();
        let subsystem = self.slab.subsystem_of(id);
        let checked = self.namespaces.recheck(subsystem, (nsid, channel), &io, buffer);
        if let Err(status) = checked {
            return self.respond(id, 0, status, 0);
        }
        self.slab.set_state(id, State::Execute);
        Step::Submit { channel, io: Io { tag: id.0, buffer, ..io } }
    }

    fn respond(&mut self, id: RequestId, result: u64, status: Status, data_bytes: u32) -> Step {
        let sqhd = self.slab.sqhd_of(id);
        let request = self.slab.request_mut(id);
        let sqe = &request.sqe;
        request.cqe = Cqe::new(sqe.cid(), sqhd, result, status);
        request.send_bytes = data_bytes;
        self.slab.set_state(id, State::Respond);
        Step::Respond(id)
    }

    /// Takes a request that waits out of its line.
    fn stop_waiting(&mut self, id: RequestId) {
        let request = self.slab.request(id);
        let (line, queue) = (request.work.line(), request.queue);
        let what = match self.slab.state(id) {
            State::Parked => return self.parked.remove(&mut self.slab, queue, id),
            State::WaitBuffer => For::Buffer,
            State::WaitChannel => For::Channel,
            _ => return,
        };
        self.lines.remove(&mut self.slab, line, what, id);
    }

    fn release(&mut self, id: RequestId) -> Step {
        let request = self.slab.request_mut(id);
        let line = request.work.line();
        if let Buffer::Pool(buffer) = request.take_buffer() {
            let bytes = buffer.span().len() as usize;
            self.lines.give_back(line, bytes);
            self.pool.free(buffer);
            self.slab.give_back(id, bytes);
        }
        match self.slab.release(id) {
            Some(queue) => Step::Drained(queue),
            None => Step::None,
        }
    }
}

/// Whether the queue of a request may hold the memory for it, with so much free.
#[inline]
fn may_hold(slab: &Slab, id: RequestId, free: usize, share: usize) -> bool {
    let (held, bytes) = (slab.held_of(id), Pool::block_bytes(slab.request(id).length));
    held == 0 || (held + bytes) * share <= free + held
}
