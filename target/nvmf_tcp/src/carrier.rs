//! One core's connections.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use dma::{DmaSpan, Pool};
use nvme_spec::command::Sqe;
use nvmf::engine::{Engine, QueueId, RequestId};
use sockets::{Poller, Socket};

use crate::connection::{ConnectionConfig, ConnectionEvent};
use crate::limits::{CONNECT_CAPSULE_BYTES, READY_BATCH};
use crate::link::{Link, Received};

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
    /// A command capsule whose data is not what was sent, for [`Engine::handle_corrupt_capsule`].
    CorruptCapsule {
        /// The slot it arrived in.
        id: RequestId,
        /// The command.
        sqe: Sqe,
    },
    /// The host's data is in the request's buffer, for [`Engine::handle_fetched`].
    Fetched {
        /// Whose.
        id: RequestId,
        /// It is what was sent.
        intact: bool,
    },
    /// The response has left, for [`Engine::handle_sent`].
    Sent(RequestId),
    /// The connection has ended or is broken: its queue has to be closed.
    Broken(QueueId),
}

/// Counters of one carrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarrierStats {
    /// Command capsules received.
    pub capsules: u64,
    /// Requests for data sent (R2T).
    pub fetches: u64,
    /// Responses sent, alone or as a flag of their data.
    pub responses: u64,
    /// Of those, such as had data.
    pub data_responses: u64,
    /// System calls that sent.
    pub send_calls: u64,
    /// System calls that received.
    pub receive_calls: u64,
    /// System calls that asked which connections have something to do.
    pub poll_calls: u64,
}

/// Sizes of a carrier.
#[derive(Clone, Copy, Debug)]
pub struct CarrierConfig {
    /// Requests in the engine's slab.
    pub requests: u32,
    /// Most connections.
    pub connections: usize,
    /// How connections work.
    pub connection: ConnectionConfig,
}

/// A connection that its core has given up.
#[derive(Debug)]
pub struct Detached {
    /// The number the control half gave to the connection.
    pub key: u64,
    /// The socket. Nothing touches memory of the arena through it any more.
    pub socket: Socket,
}

/// One core's connections over TCP.
///
/// A turn is [`TcpCarrier::begin_turn`], [`TcpCarrier::next_event`] until it is `None`, and
/// [`TcpCarrier::flush`]. It takes one system call to find out which connections have something,
/// one to receive from each of those, and one to send on each that has something to send, or a few
/// when that is much.
#[derive(Debug)]
pub struct TcpCarrier {
    config: ConnectionConfig,
    poller: Poller,
    /// The connection and the slot of each request, by its number.
    places: Box<[Option<(usize, u16)>]>,
    links: Box<[Option<Link>]>,
    open: usize,
    /// Connections to look at in this turn, the first one being looked at now.
    ready: VecDeque<usize>,
    /// Those of the next turn.
    again: Vec<usize>,
    /// Connections with something to send.
    touched: Vec<usize>,
    broken: VecDeque<QueueId>,
    stats: CarrierStats,
}

impl TcpCarrier {
    /// A carrier without connections.
    ///
    /// # Errors
    /// The system has no resources left.
    pub fn new(config: CarrierConfig) -> io::Result<Self> {
        Ok(Self {
            config: config.connection,
            poller: Poller::new(READY_BATCH)?,
            places: vec![None; config.requests as usize].into(),
            links: (0..config.connections).map(|_| None).collect(),
            open: 0,
            ready: VecDeque::with_capacity(config.connections),
            again: Vec::with_capacity(config.connections),
            touched: Vec::with_capacity(config.connections),
            broken: VecDeque::with_capacity(config.connections),
            stats: CarrierStats::default(),
        })
    }

    /// Starts a turn: finds out which connections have something. Each is received from once, so
    /// that none holds up another.
    #[inline]
    pub fn begin_turn(&mut self) {
        if self.open == 0 {
            return;
        }
        self.ready.extend(self.again.drain(..));
        self.stats.poll_calls += 1;
        let told = match self.poller.poll(Duration::ZERO) {
            Ok(told) => told,
            Err(error) => {
                tracing::error!(%error, "TCP connections cannot be polled");
                return;
            }
        };
        for told in told {
            let index = told.token as usize;
            let Some(Some(link)) = self.links.get_mut(index) else { continue };
            link.readable |= told.receive;
            link.ending |= told.ending;
            if told.send && std::mem::replace(&mut link.blocked, false) {
                link.touch(index, &mut self.touched);
            }
            if told.receive && !std::mem::replace(&mut link.queued, true) {
                self.ready.push_back(index);
            }
        }
        for &index in &self.ready {
            if let Some(link) = &mut self.links[index] {
                link.may_receive = true;
            }
        }
    }

    /// The next thing that happened; `None` ends the turn.
    #[inline]
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(queue) = self.broken.pop_front() {
                return Some(Event::Broken(queue));
            }
            let &index = self.ready.front()?;
            let event = self.take_in(index);
            if event.is_some() {
                return event;
            }
            self.ready.pop_front();
            if let Some(link) = &mut self.links[index] {
                link.queued = false;
                // The connection answers by itself, too.
                if !link.connection.is_idle() {
                    link.touch(index, &mut self.touched);
                }
                // What was received and cannot be taken in waits for a response to leave.
                if link.readable && !link.has_input() && link.is_open() {
                    link.queue(index, &mut self.again);
                }
            }
        }
    }

    /// Brings the host's data into the request's buffer: asks for it.
    pub fn fetch(&mut self, engine: &Engine, id: RequestId) {
        let Some((index, slot)) = self.place(id) else { return };
        let Some(link) = &mut self.links[index] else { return };
        let Some(to) = engine.request(id).data() else { return };
        self.stats.fetches += 1;
        link.connection.fetch(slot, to);
        link.touch(index, &mut self.touched);
    }

    /// Sends the request's data, if any, and its response.
    pub fn respond(&mut self, engine: &Engine, id: RequestId) {
        let Some((index, slot)) = self.place(id) else { return };
        let Some(link) = &mut self.links[index] else { return };
        let request = engine.request(id);
        let data = request.data_out();
        self.stats.responses += 1;
        self.stats.data_responses += u64::from(data.is_some());
        link.connection.respond(slot, request.cqe(), data, link.flow_control);
        link.touch(index, &mut self.touched);
    }

    /// Sends what the turn has collected, as far as there is room. What has left is reported in the
    /// next turn.
    pub fn flush(&mut self) {
        while let Some(index) = self.touched.pop() {
            let Some(link) = &mut self.links[index] else { continue };
            link.touched = false;
            let alive = link.send(&mut self.stats);
            if link.connection.has_event() {
                link.queue(index, &mut self.again);
            }
            if !alive {
                self.mark_broken(index);
            }
        }
    }

    /// Takes a new connection. `ids` are the requests of its queue in the engine, which has to take
    /// no more than Connect; [`TcpCarrier::grow`] follows.
    ///
    /// # Errors
    /// Gives the socket back when memory is short or the system refuses to watch it.
    pub fn open(
        &mut self,
        queue: QueueId,
        key: u64,
        socket: Socket,
        ids: &[RequestId],
        memory: &mut Pool,
    ) -> Result<(), Socket> {
        let index = queue.index();
        let Some(pages) = take_pages(memory, ids.len(), CONNECT_CAPSULE_BYTES) else {
            return Err(socket);
        };
        if let Err(error) = self.poller.add(&socket, index as u64) {
            tracing::warn!(key, %error, "a TCP connection cannot be watched");
            pages.into_iter().for_each(|page| memory.free(page));
            return Err(socket);
        }
        self.links[index] = Some(Link::new((queue, key), socket, self.config, pages, ids));
        self.open += 1;
        self.place_all(index, 0, ids);
        Ok(())
    }

    /// The queue's Connect was accepted: more requests of the engine, `ids`, whose capsules carry
    /// at most `capsule_bytes` of data. `false`, and no change: memory is short.
    pub fn grow(
        &mut self,
        queue: QueueId,
        ids: &[RequestId],
        capsule_bytes: u32,
        flow_control: bool,
        memory: &mut Pool,
    ) -> bool {
        let index = queue.index();
        let Some(Some(link)) = self.links.get_mut(index) else { return false };
        let Some(pages) = take_pages(memory, ids.len(), capsule_bytes) else { return false };
        let first = link.ids.len();
        link.flow_control = flow_control;
        link.grow(pages, ids);
        self.place_all(index, first, ids);
        true
    }

    /// Gives up a connection's socket. Its memory stays until [`TcpCarrier::release`].
    pub fn detach(&mut self, queue: QueueId) -> Option<Detached> {
        let link = self.links.get_mut(queue.index())?.as_mut()?;
        if link.queue != queue {
            return None;
        }
        let socket = link.socket.take()?;
        self.open -= 1;
        // It is closed elsewhere, and later.
        if let Err(error) = self.poller.remove(&socket) {
            tracing::debug!(key = link.key, %error, "a TCP connection was not watched");
        }
        Some(Detached { key: link.key, socket })
    }

    /// The queue has drained ([`Step::Drained`] or [`Closed::Drained`]): frees what the connection
    /// held. Not earlier: data in a capsule is read by the block device for as long as its request
    /// runs.
    ///
    /// [`Step::Drained`]: nvmf::engine::Step::Drained
    /// [`Closed::Drained`]: nvmf::engine::Closed::Drained
    pub fn release(&mut self, queue: QueueId, memory: &mut Pool) {
        let index = queue.index();
        let Some(place) = self.links.get_mut(index) else { return };
        let Some(link) = place.take_if(|link| link.queue == queue) else { return };
        debug_assert!(link.socket.is_none(), "released before its socket was given up");
        link.ids.iter().for_each(|id| self.places[id.0 as usize] = None);
        // Its place may be taken by another connection before the next turn.
        self.ready.retain(|&other| other != index);
        self.again.retain(|&other| other != index);
        self.touched.retain(|&other| other != index);
        link.pages.into_iter().for_each(|page| memory.free(page));
    }

    /// Counters so far.
    pub fn stats(&self) -> CarrierStats {
        self.stats
    }

    /// Receives for one connection, and takes in what was received, up to the next event.
    fn take_in(&mut self, index: usize) -> Option<Event> {
        loop {
            let link = self.links[index].as_mut().filter(|link| link.is_open())?;
            if let Some(event) = link.next_event() {
                match self.translate(index, event) {
                    None => continue,
                    event => return event,
                }
            }
            if link.has_input() || !link.readable || !link.may_receive {
                return None;
            }
            self.stats.receive_calls += 1;
            match link.receive() {
                Received::Some => {}
                Received::Nothing => return None,
                Received::End => {
                    self.mark_broken(index);
                    return self.broken.pop_front().map(Event::Broken);
                }
            }
        }
    }

    fn translate(&mut self, index: usize, event: ConnectionEvent) -> Option<Event> {
        let link = self.links[index].as_mut()?;
        let id_of = |slot: u16| link.ids.get(usize::from(slot)).copied();
        match event {
            ConnectionEvent::Capsule { slot, sqe, data, intact } => {
                self.stats.capsules += 1;
                let id = id_of(slot)?;
                Some(match intact {
                    true => Event::Capsule { id, sqe, data },
                    false => Event::CorruptCapsule { id, sqe },
                })
            }
            ConnectionEvent::Fetched { slot, intact } => {
                Some(Event::Fetched { id: id_of(slot)?, intact })
            }
            ConnectionEvent::Responded { slot } => Some(Event::Sent(id_of(slot)?)),
            ConnectionEvent::Broken(fault) => {
                tracing::warn!(
                    key = link.key,
                    fes = fault.fes,
                    fei = fault.fei,
                    "a host breaks the rules of NVMe/TCP; its connection ends"
                );
                // When it has been told so, or cannot be.
                link.last_words = true;
                link.touch(index, &mut self.touched);
                None
            }
            ConnectionEvent::Refused { fes } => {
                tracing::warn!(key = link.key, fes, "a host refuses what it was sent");
                self.mark_broken(index);
                self.broken.pop_front().map(Event::Broken)
            }
        }
    }

    fn mark_broken(&mut self, index: usize) {
        if let Some(link) = &mut self.links[index]
            && !std::mem::replace(&mut link.broken, true)
        {
            self.broken.push_back(link.queue);
        }
    }

    fn place(&self, id: RequestId) -> Option<(usize, u16)> {
        *self.places.get(id.0 as usize)?
    }

    fn place_all(&mut self, index: usize, first: usize, ids: &[RequestId]) {
        for (slot, id) in (first as u16..).zip(ids) {
            self.places[id.0 as usize] = Some((index, slot));
        }
    }
}

/// Memory for the capsules of `count` slots, all of it or none.
fn take_pages(memory: &mut Pool, count: usize, bytes: u32) -> Option<Vec<dma::DmaBuffer>> {
    let mut pages = Vec::with_capacity(count);
    while pages.len() < count {
        match memory.alloc(bytes) {
            Some(page) => pages.push(page),
            None => {
                pages.into_iter().for_each(|page| memory.free(page));
                return None;
            }
        }
    }
    Some(pages)
}
