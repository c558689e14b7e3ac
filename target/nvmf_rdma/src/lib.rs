//! Carries the NVMe over Fabrics core over RDMA verbs (NVMe over RDMA Transport Specification).
//!
//! One [`RdmaCarrier`] per core and RDMA device. It owns the core's completion queue and, per
//! connection, the queue pair and the memory that capsules arrive in. It turns completions into
//! [`Event`]s and takes the engine's steps: an RDMA READ for data that the host sends, an RDMA
//! WRITE and a SEND for data and response. Work requests are collected during a turn and posted by
//! [`RdmaCarrier::flush`] in one chain per connection: one system call where the device needs one.
//!
//! Each capsule slot of a connection belongs to one request of the engine for as long as the
//! connection lives: the work request id carries the request's number, and the generation of its
//! queue, so that a completion of an earlier connection is recognized and dropped.
//!
//! A host may send its next command as soon as a response has arrived there, before that response
//! has completed here. So the slot's next receive is posted before its response, and a host that
//! keeps to its queue's size always finds one. A capsule that comes into a slot whose response has
//! not completed is early: it waits there until its request is free.
//!
//! What it does not do: connection management (the control half listens, accepts and destroys),
//! shared receive queues (docs/decisions/0004), more than one keyed SGL descriptor per command.
#![forbid(unsafe_code)]

mod connect_request;
mod connection;
pub mod limits;
mod wr_id;

use std::collections::VecDeque;

use dma::{DmaSpan, Pool};
use nvme_spec::command::{Cqe, Sqe};
use nvmf::engine::{Engine, HostBuffer, QueueId, RequestId};
use verbs::{Completion, Cq, RdmaQp, VerbsError, WcStatus};

pub use crate::connect_request::{ConnectRequest, ConnectRequestError};

use crate::connection::{Connection, Slot};
use crate::limits::{MAX_EVENTS_PER_TURN, POLL_BATCH};
use crate::wr_id::{Kind, WrId};

/// Bytes of a command capsule's command part.
const SQE_BYTES: u32 = size_of::<Sqe>() as u32;
/// Bytes of a response capsule.
const CQE_BYTES: u32 = size_of::<Cqe>() as u32;

/// What a carrier has to say.
#[derive(Debug)]
pub enum Event {
    /// A command capsule, for [`Engine::handle_capsule`].
    Capsule {
        /// The slot it arrived in.
        id: RequestId,
        /// The command.
        sqe: Sqe,
        /// What followed it in the capsule.
        data: Option<DmaSpan>,
    },
    /// The host's data is in the request's buffer, for [`Engine::handle_fetched`].
    Fetched(RequestId),
    /// The response has left, for [`Engine::handle_sent`].
    Sent(RequestId),
    /// The connection is broken: its queue has to be closed.
    Broken(QueueId),
}

/// Counters of one carrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarrierStats {
    /// Command capsules received.
    pub capsules: u64,
    /// Of those, such as came before the slot's last response had completed.
    pub early_capsules: u64,
    /// RDMA READs posted.
    pub reads: u64,
    /// RDMA WRITEs posted.
    pub writes: u64,
    /// Responses posted.
    pub responses: u64,
    /// Chains posted: system calls where the device needs one per post.
    pub send_chains: u64,
    /// Completions of work requests of connections that were gone already.
    pub stale: u64,
}

impl std::ops::AddAssign for CarrierStats {
    fn add_assign(&mut self, other: Self) {
        self.capsules += other.capsules;
        self.early_capsules += other.early_capsules;
        self.reads += other.reads;
        self.writes += other.writes;
        self.responses += other.responses;
        self.send_chains += other.send_chains;
        self.stale += other.stale;
    }
}

/// Sizes of a carrier.
#[derive(Clone, Copy, Debug)]
pub struct CarrierConfig {
    /// Requests in the engine's slab.
    pub requests: u32,
    /// Most connections.
    pub connections: usize,
}

/// One core's connections through one RDMA device.
#[derive(Debug)]
pub struct RdmaCarrier {
    cq: Cq,
    slots: Box<[Option<Slot>]>,
    connections: Box<[Option<Connection>]>,
    batch: Box<[Completion; POLL_BATCH]>,
    batch_len: usize,
    batch_next: usize,
    events_left: usize,
    /// A connection whose responses up to this one have completed; they are reported one by one.
    sent_up_to: Option<(usize, RequestId)>,
    /// Its request has just become free, and its slot holds a capsule that was early.
    due: Option<RequestId>,
    /// Connections with work requests to post.
    touched: Vec<usize>,
    broken: VecDeque<QueueId>,
    stats: CarrierStats,
}

/// How a connection works.
#[derive(Clone, Copy, Debug)]
pub struct OpenParams {
    /// RDMA READs that may be in flight, as negotiated; at least 1.
    pub read_limit: u32,
    /// Capsules may carry data.
    pub in_capsule: bool,
}

/// A queue pair that its core has given up, to be destroyed on the control thread.
#[derive(Debug)]
pub struct Detached {
    /// The number the control half gave to the connection.
    pub key: u64,
    /// The queue pair.
    pub qp: RdmaQp,
}

impl RdmaCarrier {
    /// A carrier that completes through `cq`.
    pub fn new(config: CarrierConfig, cq: Cq) -> Self {
        Self {
            cq,
            slots: (0..config.requests).map(|_| None).collect(),
            connections: (0..config.connections).map(|_| None).collect(),
            batch: Box::new([Completion::EMPTY; POLL_BATCH]),
            batch_len: 0,
            batch_next: 0,
            events_left: 0,
            sent_up_to: None,
            due: None,
            touched: Vec::with_capacity(config.connections),
            broken: VecDeque::with_capacity(config.connections),
            stats: CarrierStats::default(),
        }
    }

    /// Starts a turn: bounds the events that it may yield.
    #[inline]
    pub fn begin_turn(&mut self) {
        self.events_left = MAX_EVENTS_PER_TURN;
    }

    /// The next thing that happened; `None` ends the turn.
    #[inline]
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(queue) = self.broken.pop_front() {
                return Some(Event::Broken(queue));
            }
            if let Some(event) = self.next_due().or_else(|| self.next_sent()) {
                return Some(event);
            }
            if self.batch_next == self.batch_len {
                if self.events_left == 0 {
                    return None;
                }
                // Emptied before it is filled: a poll that brings nothing leaves nothing behind.
                (self.batch_next, self.batch_len) = (0, 0);
                match self.cq.poll(&mut self.batch[..]) {
                    Ok(0) => return None,
                    Ok(count) => self.batch_len = count,
                    Err(error) => {
                        self.handle_broken_cq(&error);
                        continue;
                    }
                }
                self.events_left = self.events_left.saturating_sub(self.batch_len);
            }
            let completion = self.batch[self.batch_next];
            self.batch_next += 1;
            if let Some(event) = self.handle_completion(&completion) {
                return Some(event);
            }
        }
    }

    /// Brings the host's data into the request's buffer: an RDMA READ, now or, when as many are in
    /// flight as was negotiated, after one of those has ended.
    pub fn fetch(&mut self, engine: &Engine, id: RequestId) {
        let Some(index) = self.connection_of(id) else { return };
        let Some(connection) = &mut self.connections[index] else { return };
        if connection.reads_in_flight >= connection.read_limit {
            connection.waiting_reads.push_back(id);
            return;
        }
        self.post_read(engine, index, id);
    }

    /// After a READ has completed: starts the next that waits, if any.
    pub fn fetch_waiting(&mut self, engine: &Engine, completed: RequestId) {
        let Some(index) = self.connection_of(completed) else { return };
        let Some(connection) = &mut self.connections[index] else { return };
        if connection.reads_in_flight < connection.read_limit
            && let Some(id) = connection.waiting_reads.pop_front()
        {
            self.post_read(engine, index, id);
        }
    }

    /// Sends the request's data, if any, and its response.
    pub fn respond(&mut self, engine: &Engine, id: RequestId) {
        let Some(slot) = self.slots.get_mut(id.0 as usize).and_then(Option::as_mut) else { return };
        let index = slot.connection;
        let Some(connection) = &mut self.connections[index] else { return };
        let request = engine.request(id);
        slot.response.write_obj(0, request.cqe());
        slot.responds = true;
        // Command and in-capsule data are done with.
        let mut posted = connection.receive(id, slot);
        posted = posted && connection.send_held_response(&self.slots, false);
        let mut invalidate = None;
        if let HostBuffer::Keyed { address, key, invalidate: wanted } = request.host() {
            invalidate = wanted.then_some(key);
            if let Some(data) = request.data_out() {
                self.stats.writes += 1;
                posted = posted && connection.write(id, data, address, key);
            }
        }
        self.stats.responses += 1;
        connection.held_response = Some((id, invalidate));
        if !posted {
            self.mark_broken(index);
        }
        self.touch(index);
    }

    /// Posts what the turn has collected: per connection the receives, then one chain of sends of
    /// which the last response is signalled; its completion stands for all before it.
    pub fn flush(&mut self) {
        while let Some(index) = self.touched.pop() {
            let Some(connection) = &mut self.connections[index] else { continue };
            connection.touched = false;
            let held = connection.send_held_response(&self.slots, true);
            match connection.flush() {
                Ok(()) if held => self.stats.send_chains += connection.new_send_calls(),
                Ok(()) => self.mark_broken(index),
                Err(error) => {
                    tracing::warn!(key = connection.key, %error, "posting failed");
                    self.mark_broken(index);
                }
            }
        }
    }

    /// Takes a new connection: memory for every slot, receives posted, ready to be accepted.
    /// `ids` are the requests of its queue in the engine. `memory` is apart from that for data:
    /// what lives as long as a connection must not break up the runs that large transfers need.
    ///
    /// # Errors
    /// Gives the queue pair back when memory is short or the device refuses the receives.
    #[allow(clippy::result_large_err)] // the queue pair goes back by value
    pub fn open(
        &mut self,
        queue: QueueId,
        key: u64,
        qp: RdmaQp,
        params: OpenParams,
        ids: &[RequestId],
        memory: &mut Pool,
    ) -> Result<(), RdmaQp> {
        let mut connection = Connection::new(queue, key, Some(qp), params.read_limit, ids);
        if connection.allocate(memory, &mut self.slots, params.in_capsule) {
            let posted = ids.iter().all(|&id| {
                self.slots[id.0 as usize].as_ref().is_some_and(|slot| connection.receive(id, slot))
            });
            if posted && connection.flush().is_ok() {
                self.connections[queue.index()] = Some(connection);
                return Ok(());
            }
        }
        // Receives that were posted may still be written to: destroy the queue pair first. It has
        // never been connected, so nothing was; the caller drops it before anything else.
        connection.free(memory, &mut self.slots);
        match connection.take_qp() {
            Some(qp) => Err(qp),
            None => Ok(()),
        }
    }

    /// Gives up a connection's queue pair. Its memory stays until [`RdmaCarrier::release`].
    pub fn detach(&mut self, queue: QueueId) -> Option<Detached> {
        let connection = self.connections.get_mut(queue.index())?.as_mut()?;
        if connection.queue != queue {
            return None;
        }
        self.stats.send_chains += connection.new_send_calls();
        connection.take_qp().map(|qp| Detached { key: connection.key, qp })
    }

    /// The queue pair is destroyed and the queue has drained ([`Step::Drained`] or
    /// [`Closed::Drained`]): frees what the connection held. Not earlier: data in a capsule is read
    /// by the block device for as long as its request runs.
    ///
    /// [`Step::Drained`]: nvmf::engine::Step::Drained
    /// [`Closed::Drained`]: nvmf::engine::Closed::Drained
    pub fn release(&mut self, queue: QueueId, memory: &mut Pool) {
        let Some(place) = self.connections.get_mut(queue.index()) else { return };
        if let Some(mut connection) = place.take_if(|connection| connection.queue == queue) {
            debug_assert!(!connection.has_qp(), "released before its queue pair was destroyed");
            connection.free(memory, &mut self.slots);
        }
    }

    /// Counters so far.
    pub fn stats(&self) -> CarrierStats {
        self.stats
    }

    fn next_sent(&mut self) -> Option<Event> {
        let (index, last) = self.sent_up_to?;
        let connection = self.connections[index].as_mut();
        let id = connection.and_then(|connection| connection.sent.pop_front());
        if id.is_none() || id == Some(last) {
            self.sent_up_to = None;
        }
        let id = id?;
        if let Some(Some(slot)) = self.slots.get_mut(id.0 as usize) {
            slot.responds = false;
            self.due = slot.early.is_some().then_some(id);
        }
        Some(Event::Sent(id))
    }

    /// The capsule that was waiting for the request that was last reported as sent.
    #[inline]
    fn next_due(&mut self) -> Option<Event> {
        let id = self.due.take()?;
        let slot = self.slots.get_mut(id.0 as usize)?.as_mut()?;
        let bytes = slot.early.take()?;
        Some(slot.capsule_event(id, bytes))
    }

    #[inline]
    fn handle_completion(&mut self, completion: &Completion) -> Option<Event> {
        let wr_id = WrId::from_bits(completion.wr_id());
        let id = wr_id.request();
        let Some((slot, connection)) = owner(&mut self.slots, &mut self.connections, wr_id) else {
            self.stats.stale += 1;
            return None;
        };
        let index = slot.connection;
        let status = completion.status();
        if !status.is_success() {
            // A flush is what a disconnect looks like from here.
            if status != WcStatus::FLUSHED {
                tracing::warn!(key = connection.key, kind = ?wr_id.kind(), %status, "RDMA failed");
            }
            self.mark_broken(index);
            return None;
        }
        match wr_id.kind() {
            Kind::Receive => {
                let bytes = completion.byte_len();
                if bytes < SQE_BYTES {
                    tracing::warn!(key = connection.key, "a capsule shorter than a command");
                    self.mark_broken(index);
                    return None;
                }
                self.stats.capsules += 1;
                if slot.responds {
                    self.stats.early_capsules += 1;
                    slot.early = Some(bytes);
                    return None;
                }
                Some(slot.capsule_event(id, bytes))
            }
            Kind::Read => {
                connection.reads_in_flight -= 1;
                Some(Event::Fetched(id))
            }
            // Only a failed WRITE completes by itself.
            Kind::Write => None,
            Kind::Send => {
                self.sent_up_to = Some((index, id));
                self.next_sent()
            }
        }
    }

    /// The device is gone or failed: every connection is broken, and nothing completes any more.
    fn handle_broken_cq(&mut self, error: &VerbsError) {
        self.events_left = 0;
        for index in 0..self.connections.len() {
            if self.connections[index].as_ref().is_some_and(|connection| !connection.broken) {
                tracing::error!(%error, "the RDMA device is gone");
                self.mark_broken(index);
            }
        }
    }

    fn post_read(&mut self, engine: &Engine, index: usize, id: RequestId) {
        let Some(connection) = &mut self.connections[index] else { return };
        let request = engine.request(id);
        let posted = match (request.host(), request.data()) {
            (HostBuffer::Keyed { address, key, .. }, Some(data)) => {
                connection.read(id, data, address, key)
            }
            _ => false,
        };
        self.stats.reads += 1;
        if !posted {
            self.mark_broken(index);
        }
        self.touch(index);
    }

    #[inline]
    fn connection_of(&self, id: RequestId) -> Option<usize> {
        Some(self.slots.get(id.0 as usize)?.as_ref()?.connection)
    }

    fn touch(&mut self, index: usize) {
        if let Some(connection) = &mut self.connections[index]
            && !connection.touched
        {
            connection.touched = true;
            self.touched.push(index);
        }
    }

    fn mark_broken(&mut self, index: usize) {
        if let Some(connection) = &mut self.connections[index]
            && !connection.broken
        {
            connection.broken = true;
            self.broken.push_back(connection.queue);
        }
    }
}

/// The connection that a completion is for: none, when its queue pair was given up, or belonged to
/// an earlier connection of the same slots.
#[inline]
fn owner<'a>(
    slots: &'a mut [Option<Slot>],
    connections: &'a mut [Option<Connection>],
    wr_id: WrId,
) -> Option<(&'a mut Slot, &'a mut Connection)> {
    let slot = slots.get_mut(wr_id.request().0 as usize)?.as_mut()?;
    let connection = connections[slot.connection].as_mut()?;
    (wr_id.is_of(connection.queue) && !connection.broken).then_some((slot, connection))
}

#[cfg(test)]
mod tests {
    use dma::Arena;

    use super::*;

    #[test]
    fn a_completion_of_a_destroyed_queue_pair_is_for_no_connection() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let mut memory = Pool::new(arena, 64 << 10, 32 << 10).unwrap();
        let (mut slots, mut connections) = ([const { None }; 2], [const { None }; 4]);
        let id = RequestId(1);
        let queue = |generation: u64| QueueId::from_bits(generation << 32 | 3);
        let left_behind = WrId::new(Kind::Read, queue(7), id);
        for generation in [7, 8] {
            let mut connection = Connection::new(queue(generation), 0, None, 1, &[id]);
            assert!(connection.allocate(&mut memory, &mut slots, false));
            connections[3] = Some(connection);
            let own = WrId::new(Kind::Read, queue(generation), id);
            assert!(owner(&mut slots, &mut connections, own).is_some());
            let stale = owner(&mut slots, &mut connections, left_behind).is_none();
            assert_eq!(stale, generation == 8, "generation {generation}");
            let other_slot = WrId::new(Kind::Read, queue(generation), RequestId(0));
            assert!(owner(&mut slots, &mut connections, other_slot).is_none());
            // The queue pair is given up; its memory stays until the queue has drained.
            assert!(connections[3].as_mut().is_some_and(|it| it.take_qp().is_none()));
            assert!(owner(&mut slots, &mut connections, own).is_none());
            connections[3].take().unwrap().free(&mut memory, &mut slots);
            assert!(owner(&mut slots, &mut connections, own).is_none());
        }
    }
    /// `docs/data-path.md` says what a connection takes; this is what it takes.
    #[test]
    fn what_a_connection_takes_is_what_the_page_says() {
        let page = include_str!("../../../docs/data-path.md");
        let arena = Arena::plain_pages(4 << 20).unwrap();
        let mut memory = Pool::new(arena, 2 << 20, 1 << 20).unwrap();
        let columns = [(128, true), (32, true), (32, false)].map(|(entries, in_capsule)| {
            let count = limits::slots(entries);
            let ids: Vec<_> = (0..count).map(RequestId).collect();
            let mut slots: Vec<_> = ids.iter().map(|_| None).collect();
            let mut connection = Connection::new(QueueId::from_bits(0), 0, None, 1, &ids);
            assert!(connection.allocate(&mut memory, &mut slots, in_capsule));
            let taken = memory.bytes() - memory.free_bytes();
            connection.free(&mut memory, &mut slots);
            assert_eq!(memory.free_bytes(), memory.bytes());
            (count, limits::send_depth(entries), taken)
        });
        let row = |what: &str, cell: &dyn Fn((u32, u32, usize)) -> String| {
            let row = format!("| {what} | {} |", columns.map(cell).join(" | "));
            assert!(page.contains(&row), "the page does not say: {row}");
        };
        row("slots, and requests of the slab", &|(slots, _, _)| slots.to_string());
        row("capsules: slots × (64 + 16)", &|(slots, _, _)| grouped(slots as usize * 80));
        row("**bytes of the arena**", &|(_, _, taken)| format!("**{}**", grouped(taken)));
        row("receive + send work requests", &|(slots, sends, _)| format!("{slots} + {sends}"));
        row("entries reserved in the core's CQ", &|(slots, sends, _)| (slots + sends).to_string());
        let queues = (28 << 20) / columns[0].2;
        assert!(page.contains(&format!("which is {queues} I/O")), "{queues}");
    }

    /// 12,800
    fn grouped(number: usize) -> String {
        match number {
            0..1000 => number.to_string(),
            _ => format!("{},{:03}", grouped(number / 1000), number % 1000),
        }
    }
}
