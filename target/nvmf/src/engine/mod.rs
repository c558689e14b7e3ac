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
//! waiting requests cannot deadlock; they are served in the order they came.
//!
//! A request whose queue has closed takes no further step that touches the host: whatever comes
//! back for it only releases it. A queue is gone when its last request has been released.

mod command;
mod request;
mod slab;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bdev::Io;
use dma::{DmaSpan, Pool};
use nvme_spec::command::{Cqe, Sqe};
use nvme_spec::status::Status;

pub use self::command::{Namespace, Namespaces};
pub use self::request::{HostBuffer, Request, RequestId};
pub use self::slab::{Carrier, Closed, QueueId, QueueLoad, QueueParams, QueueRole};

use self::command::Plan;
use self::request::{Buffer, State, Work};
use self::slab::Slab;

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
    /// Requests waiting for a buffer, oldest first; room for every request of the slab.
    waiting: VecDeque<RequestId>,
    /// Requests whose channel was busy, oldest first; room for every request of the slab.
    busy: VecDeque<RequestId>,
    stats: EngineStats,
}

impl Engine {
    /// An engine whose data buffers come from `pool`.
    pub fn new(config: EngineConfig, pool: Pool) -> Self {
        assert!(config.max_transfer_bytes <= pool.max_block_bytes(), "a transfer fits a buffer");
        let requests = config.requests as usize;
        Self {
            config,
            slab: Slab::new(config.requests),
            namespaces: Namespaces::default(),
            pool,
            waiting: VecDeque::with_capacity(requests),
            busy: VecDeque::with_capacity(requests),
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

    /// The carrier has brought the host's data in, or failed to: then the connection is broken and
    /// its queue about to close.
    pub fn handle_fetched(&mut self, id: RequestId, ok: bool) -> Step {
        match (self.slab.state(id), ok) {
            (State::Fetch, true) if self.slab.is_open(id) => self.execute(id),
            (State::Fetch, _) => self.release(id),
            _ => Step::None,
        }
    }

    /// The channel refused the I/O for the moment: it is offered again by [`Engine::poll_step`].
    pub fn handle_busy(&mut self, id: RequestId) {
        if self.slab.state(id) == State::Execute {
            self.stats.channel_waits += 1;
            self.slab.set_state(id, State::WaitChannel);
            self.busy.push_back(id);
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

    /// What can go on now that buffers were freed or channels have room. Called each turn until it
    /// returns [`Step::None`], but at most [`Engine::waiting`] times: a request whose channel is
    /// still busy goes to the end of its line, and each is to be offered once.
    pub fn poll_step(&mut self) -> Step {
        if let Some(&id) = self.waiting.front() {
            let request = self.slab.request_mut(id);
            if let Some(buffer) = self.pool.alloc(request.length) {
                self.waiting.pop_front();
                request.buffer = Buffer::Pool(buffer);
                return self.begin(id);
            }
        }
        match self.busy.pop_front() {
            Some(id) => self.execute(id),
            None => Step::None,
        }
    }

    /// How many requests [`Engine::poll_step`] may find something for: the bound of its loop.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.busy.len()
    }

    /// Ends a command early if it still waits here: it is answered with Command Abort Requested.
    /// `None` when it cannot be ended any more, or is not there.
    pub fn abort(&mut self, queue: QueueId, cid: u16) -> Option<Step> {
        let id = self.slab.find(queue, cid)?;
        match self.slab.state(id) {
            State::WaitBuffer | State::WaitChannel => {
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
            if matches!(self.slab.state(id), State::WaitBuffer | State::WaitChannel) {
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
        let length = self.slab.request(id).length;
        // First come, first served: a later request must not overtake those that wait.
        if self.waiting.is_empty()
            && let Some(buffer) = self.pool.alloc(length)
        {
            self.slab.request_mut(id).buffer = Buffer::Pool(buffer);
            return self.begin(id);
        }
        self.stats.buffer_waits += 1;
        self.slab.set_state(id, State::WaitBuffer);
        self.waiting.push_back(id);
        Step::None
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
        let Work::Io { nsid, channel, io } = request.work else {
            self.slab.set_state(id, State::Control);
            return Step::Control(id);
        };
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

    /// Takes a request out of the lists of those that wait: rare, so a search will do.
    fn stop_waiting(&mut self, id: RequestId) {
        self.waiting.retain(|&other| other != id);
        self.busy.retain(|&other| other != id);
    }

    fn release(&mut self, id: RequestId) -> Step {
        if let Buffer::Pool(buffer) = self.slab.request_mut(id).take_buffer() {
            self.pool.free(buffer);
        }
        match self.slab.release(id) {
            Some(queue) => Step::Drained(queue),
            None => Step::None,
        }
    }
}
