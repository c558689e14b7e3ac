//! One core's worker: carriers, engine and channels in one straight line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bdev::{Channel, Completion, Completions};
use dma::Pool;
use nvmf::engine::{
    Carrier, Closed, Engine, EngineConfig, Namespace, QueueId, QueueParams, QueueRole, RequestId,
    Step,
};
use nvmf_rdma::RdmaCarrier;
use nvmf_tcp::{ConnectionConfig, TcpCarrier};
use reactor::Worker;
use verbs::Cq;
use volume::{Done, Lane};

use crate::limits::{
    COMPLETIONS_PER_POLL, CORE_OUTBOX, IDLE_CHANNEL_TURNS, LANE_END_LIMIT, MAX_POOLS,
    MAX_RDMA_DEVICES,
};
use crate::message::{
    ChannelStats, ControlMessage, ControlRing, CoreMessage, CoreStats, End, OpenQueue, PoolUse,
    Storage, Way,
};

/// The data path of one core. Everything it needs is its own.
pub(crate) struct Core {
    core: usize,
    requests: u32,
    engine: Engine,
    carriers: Carriers,
    /// What connections take memory from.
    memory: Pool,
    /// By queue index.
    queues: Vec<Option<OpenedQueue>>,
    /// By channel number.
    channels: Vec<Option<OpenChannel>>,
    /// By the pool's place.
    lanes: Vec<Option<OpenLane>>,
    completions: Completions,
    /// What a lane has completed in this turn.
    done: Vec<Done>,
    control: Arc<ControlRing>,
    /// Messages that found the ring to the control thread full; handed over at the next turn. At
    /// most `CORE_OUTBOX`.
    outbox: VecDeque<ControlMessage>,
    turn: u32,
}

/// What commands come and go by.
struct Carriers {
    /// By RDMA device.
    rdma: Vec<Option<RdmaCarrier>>,
    tcp: TcpCarrier,
}

#[derive(Clone, Copy)]
struct OpenedQueue {
    key: u64,
    via: Via,
    queue: QueueId,
}

/// The carrier of a queue.
#[derive(Clone, Copy)]
enum Via {
    /// That of an RDMA device.
    Rdma(usize),
    Tcp,
}

struct OpenChannel {
    way: ChannelWay,
    /// As the engine has it.
    namespace: Namespace,
    stats: ChannelStats,
    /// Detached: goes away when nothing is in flight.
    closing: bool,
}

/// Where the I/O of a namespace goes.
enum ChannelWay {
    Bdev(Box<dyn Channel>),
    /// To a lane, and there to a number that the lane gave.
    Volume {
        pool: usize,
        channel: u32,
    },
}

/// A pool.
struct OpenLane {
    lane: Box<Lane>,
    /// Our channel number, by that of the lane.
    channels: Vec<u32>,
    /// Given up: goes when no device is at work for it, or at this time.
    leaving: Option<Instant>,
}

impl Core {
    /// The worker of reactor number `core`. `data` is what commands take buffers from, `memory`
    /// what connections take capsules from.
    pub(crate) fn new(
        core: usize,
        config: EngineConfig,
        data: Pool,
        memory: Pool,
        control: Arc<ControlRing>,
    ) -> std::io::Result<Self> {
        let connections = nvmf::limits::MAX_QUEUES_PER_CORE;
        let tcp = TcpCarrier::new(nvmf_tcp::CarrierConfig {
            requests: config.requests,
            connections,
            connection: ConnectionConfig { header_digest: true, data_digest: true },
        })?;
        let rdma = (0..MAX_RDMA_DEVICES).map(|_| None).collect();
        Ok(Self {
            core,
            requests: config.requests,
            engine: Engine::new(config, data),
            carriers: Carriers { rdma, tcp },
            memory,
            queues: vec![None; connections],
            channels: Vec::new(),
            lanes: (0..MAX_POOLS).map(|_| None).collect(),
            completions: Completions::with_capacity(COMPLETIONS_PER_POLL),
            done: Vec::new(),
            control,
            outbox: VecDeque::new(),
            turn: 0,
        })
    }

    /// Follows a request as far as it goes now.
    #[inline]
    fn run(&mut self, step: Step) {
        match step {
            Step::None => {}
            Step::Submit { channel, io } => {
                let id = RequestId(io.tag);
                match self.channels.get_mut(channel as usize) {
                    Some(Some(open)) => {
                        let taken = match &mut open.way {
                            ChannelWay::Bdev(channel) => channel.submit(io),
                            ChannelWay::Volume { pool, channel } => match &mut self.lanes[*pool] {
                                Some(open) => open.lane.submit(*channel, io),
                                // A lane goes after the last namespace on it.
                                None => unreachable!("a namespace on a pool that is gone"),
                            },
                        };
                        match taken {
                            Ok(()) => open.stats.count(&io),
                            Err(bdev::Busy) => self.engine.handle_busy(id),
                        }
                    }
                    // Its namespace has just gone; the engine's table no longer has it either.
                    _ => {
                        let status = nvme_spec::status::Status::INVALID_NAMESPACE_OR_FORMAT;
                        let step = self.engine.handle_done(id, status.with_dnr());
                        self.finish(step);
                    }
                }
            }
            other => self.finish(other),
        }
    }

    /// The steps that lead away from the block device.
    #[inline]
    fn finish(&mut self, step: Step) {
        match step {
            Step::Fetch(id) => match self.via(id) {
                Some(Via::Tcp) => self.carriers.tcp.fetch(&self.engine, id),
                Some(Via::Rdma(device)) => {
                    if let Some(carrier) = &mut self.carriers.rdma[device] {
                        carrier.fetch(&self.engine, id);
                    }
                }
                None => {}
            },
            Step::Respond(id) => match self.via(id) {
                Some(Via::Tcp) => self.carriers.tcp.respond(&self.engine, id),
                Some(Via::Rdma(device)) => {
                    if let Some(carrier) = &mut self.carriers.rdma[device] {
                        carrier.respond(&self.engine, id);
                    }
                }
                None => {}
            },
            Step::Control(id) => {
                if let Some(opened) = self.queues[self.engine.queue_of(id).index()] {
                    let request = self.engine.request(id);
                    let (sqe, data) = (*request.sqe(), request.data());
                    self.tell(ControlMessage::Command { key: opened.key, request: id, sqe, data });
                }
            }
            Step::Drained(queue) => self.handle_drained(queue),
            Step::None | Step::Submit { .. } => {}
        }
    }

    fn poll_rdma(&mut self, device: usize) -> usize {
        use nvmf_rdma::Event;
        let Some(carrier) = &mut self.carriers.rdma[device] else { return 0 };
        carrier.begin_turn();
        let mut work = 0;
        while let Some(carrier) = &mut self.carriers.rdma[device]
            && let Some(event) = carrier.next_event()
        {
            work += 1;
            match event {
                Event::Capsule { id, sqe, data } => {
                    let step = self.engine.handle_capsule(id, sqe, data);
                    self.run(step);
                }
                Event::Fetched(id) => {
                    carrier.fetch_waiting(&self.engine, id);
                    let step = self.engine.handle_fetched(id, true);
                    self.run(step);
                }
                Event::Sent(id) => {
                    let step = self.engine.handle_sent(id);
                    self.run(step);
                }
                Event::Broken(queue) => self.close_queue(queue),
            }
        }
        work
    }

    fn poll_tcp(&mut self) -> usize {
        use nvmf_tcp::Event;
        self.carriers.tcp.begin_turn();
        let mut work = 0;
        while let Some(event) = self.carriers.tcp.next_event() {
            work += 1;
            let step = match event {
                Event::Capsule { id, sqe, data } => self.engine.handle_capsule(id, sqe, data),
                Event::CorruptCapsule { id, sqe } => self.engine.handle_corrupt_capsule(id, sqe),
                Event::Fetched { id, intact } => self.engine.handle_fetched(id, intact),
                Event::Sent(id) => self.engine.handle_sent(id),
                Event::Broken(queue) => {
                    self.close_queue(queue);
                    Step::None
                }
            };
            self.run(step);
        }
        work
    }

    fn poll_channels(&mut self, now: Instant) -> usize {
        let mut work = 0;
        self.turn = self.turn.wrapping_add(1);
        let all = self.turn.is_multiple_of(IDLE_CHANNEL_TURNS);
        for index in 0..self.channels.len() {
            let Some(OpenChannel { way: ChannelWay::Bdev(channel), stats, .. }) =
                &mut self.channels[index]
            else {
                continue;
            };
            if stats.in_flight == 0 && !all {
                continue;
            }
            channel.poll(now, &mut self.completions);
            while let Some(done) = self.completions.pop() {
                work += 1;
                self.end_io(index, done);
            }
            self.drop_if_closed(index);
        }
        work
    }

    /// Polls the pools. A lane has work of its own, so it is polled whether we have I/O in it or
    /// not.
    fn poll_lanes(&mut self, now: Instant) -> usize {
        let mut work = 0;
        for pool in 0..self.lanes.len() {
            let Some(open) = &mut self.lanes[pool] else { continue };
            let mut done = std::mem::take(&mut self.done);
            work += open.lane.poll(now, &mut done);
            for Done { channel, completion } in done.drain(..) {
                let Some(open) = &self.lanes[pool] else { break };
                let index = open.channels[channel as usize] as usize;
                self.end_io(index, completion);
                self.drop_if_closed(index);
            }
            self.done = done;
            self.poll_replies(pool);
            self.remove_lane_if_left(pool, now);
        }
        work
    }

    /// The owner's lane has I/O of its own, which devices may still read memory for.
    fn remove_lane_if_left(&mut self, pool: usize, now: Instant) {
        let left = self.lanes[pool]
            .take_if(|open| open.leaving.is_some_and(|limit| open.lane.is_idle() || now >= limit));
        if let Some(OpenLane { lane, .. }) = left {
            let idle = lane.is_idle();
            self.tell(ControlMessage::LaneRemoved { pool, lane: Some(lane), idle });
        }
    }

    #[inline]
    fn end_io(&mut self, index: usize, done: Completion) {
        if let Some(open) = &mut self.channels[index] {
            open.stats.in_flight -= 1;
            open.stats.errors += u64::from(!done.status.is_success());
        }
        let step = self.engine.handle_done(RequestId(done.tag), done.status);
        self.run(step);
    }

    fn poll_replies(&mut self, pool: usize) {
        while let Some(open) = &mut self.lanes[pool]
            && let Some((id, reply)) = open.lane.next_reply()
        {
            self.tell(ControlMessage::PoolReply { id, reply: Box::new(reply) });
        }
    }

    /// Gives waiting requests their turn. Every step takes one out of its line for good, or finds
    /// the line's channel busy for this turn.
    fn poll_waiting(&mut self) -> usize {
        let before = self.engine.waiting();
        if before == 0 {
            return 0;
        }
        self.engine.begin_turn();
        loop {
            match self.engine.poll_step() {
                Step::None => break before.saturating_sub(self.engine.waiting()),
                step => self.run(step),
            }
        }
    }

    fn open_queue(&mut self, open: OpenQueue) {
        let OpenQueue { key, slots, way } = open;
        let kind = match way {
            Way::Rdma { .. } => Carrier::Keyed,
            Way::Tcp(_) => Carrier::Stream,
        };
        let Some((queue, ids)) = self.engine.open_queue(kind, slots) else {
            let end = Some(match way {
                Way::Rdma { qp, .. } => End::Rdma(qp),
                Way::Tcp(socket) => End::Tcp(socket),
            });
            return self.tell(ControlMessage::QueueRefused { key, end });
        };
        let memory = &mut self.memory;
        let (via, opened) = match way {
            Way::Rdma { device, qp, params } => {
                let opened = match self.carriers.rdma.get_mut(device).and_then(Option::as_mut) {
                    Some(carrier) => carrier.open(queue, key, qp, params, &ids, memory),
                    None => Err(qp),
                };
                (Via::Rdma(device), opened.map_err(End::Rdma))
            }
            Way::Tcp(socket) => {
                let opened = self.carriers.tcp.open(queue, key, socket, &ids, memory);
                (Via::Tcp, opened.map_err(End::Tcp))
            }
        };
        match opened {
            Ok(()) => {
                self.queues[queue.index()] = Some(OpenedQueue { key, via, queue });
                self.tell(ControlMessage::QueueOpened { key, queue });
            }
            Err(end) => {
                self.engine.close_queue(queue);
                let _ = self.engine.release_carried(queue);
                self.tell(ControlMessage::QueueRefused { key, end: Some(end) });
            }
        }
    }

    /// Connect was accepted. A connection that learns only now how many commands its queue holds
    /// gets the memory for them, or ends: the host sees that and tries again.
    fn bind_queue(&mut self, queue: QueueId, params: QueueParams) {
        if let Some(OpenedQueue { key, via: Via::Tcp, .. }) = self.opened(queue)
            && !self.grow_tcp(queue, &params)
        {
            tracing::warn!(key, entries = params.sq_entries, "no memory left for a connection");
            return self.close_queue(queue);
        }
        self.engine.bind_queue(queue, params);
    }

    fn grow_tcp(&mut self, queue: QueueId, params: &QueueParams) -> bool {
        use nvmf_tcp::limits::{CONNECT_CAPSULE_BYTES, IN_CAPSULE_BYTES, slots};
        let capsule_bytes = match params.role {
            QueueRole::Io => IN_CAPSULE_BYTES,
            QueueRole::Admin | QueueRole::Unbound => CONNECT_CAPSULE_BYTES,
        };
        let ids = self.engine.grow_queue(queue, slots(params.sq_entries));
        let (tcp, memory) = (&mut self.carriers.tcp, &mut self.memory);
        ids.is_some_and(|ids| tcp.grow(queue, &ids, capsule_bytes, params.flow_control, memory))
    }

    /// Ends a queue as far as this core goes; told again about the same queue, it does nothing.
    fn close_queue(&mut self, queue: QueueId) {
        let Some(OpenedQueue { key, via, .. }) = self.opened(queue) else { return };
        let end = match via {
            Via::Rdma(device) => {
                let carrier = self.carriers.rdma[device].as_mut();
                let detached = carrier.and_then(|carrier| carrier.detach(queue));
                detached.map(|detached| End::Rdma(detached.qp))
            }
            Via::Tcp => {
                let detached = self.carriers.tcp.detach(queue);
                detached.map(|detached| End::Tcp(detached.socket))
            }
        };
        if let Some(end) = end {
            self.engine.close_queue(queue);
            self.tell(ControlMessage::QueueClosed { key, queue, end });
        }
    }

    fn handle_queue_destroyed(&mut self, queue: QueueId) {
        if self.engine.release_carried(queue) == Closed::Drained {
            self.handle_drained(queue);
        }
    }

    /// Nothing of the queue is left: its capsule slots are freed only now, because a block device
    /// may have read the data in them until a moment ago.
    fn handle_drained(&mut self, queue: QueueId) {
        let place = &mut self.queues[queue.index()];
        let Some(opened) = place.take_if(|opened| opened.queue == queue) else { return };
        match opened.via {
            Via::Rdma(device) => {
                if let Some(carrier) = &mut self.carriers.rdma[device] {
                    carrier.release(queue, &mut self.memory);
                }
            }
            Via::Tcp => self.carriers.tcp.release(queue, &mut self.memory),
        }
        self.tell(ControlMessage::QueueDrained { key: opened.key });
    }

    fn attach_namespace(
        &mut self,
        (subsystem, nsid): (u32, u32),
        mut namespace: Namespace,
        storage: Storage,
    ) {
        let vacant = self.channels.iter().position(Option::is_none);
        let index = vacant.unwrap_or(self.channels.len());
        if index == self.channels.len() {
            self.channels.push(None);
        }
        namespace.channel = index as u32;
        let way = match storage {
            Storage::Bdev(channel) => ChannelWay::Bdev(channel),
            Storage::Volume { pool, handle } => {
                let Some(open) = &mut self.lanes[pool] else {
                    unreachable!("a namespace on a pool that is not there yet")
                };
                let channel = open.lane.attach(handle);
                let places = open.channels.len().max(channel as usize + 1);
                open.channels.resize(places, 0);
                open.channels[channel as usize] = index as u32;
                ChannelWay::Volume { pool, channel }
            }
        };
        let stats = ChannelStats { subsystem, nsid, ..ChannelStats::default() };
        self.channels[index] = Some(OpenChannel { way, namespace, stats, closing: false });
        self.engine.set_namespace(subsystem, nsid, Some(namespace));
        self.tell(ControlMessage::NamespaceSet { subsystem, nsid });
    }

    fn channel_of(&self, subsystem: u32, nsid: u32) -> Option<usize> {
        let is_it = |open: &Option<OpenChannel>| {
            open.as_ref().is_some_and(|open| {
                (open.stats.subsystem, open.stats.nsid, open.closing) == (subsystem, nsid, false)
            })
        };
        self.channels.iter().position(is_it)
    }

    fn resize_namespace(&mut self, subsystem: u32, nsid: u32, block_count: u64) {
        let index = self.channel_of(subsystem, nsid);
        if let Some(open) = index.and_then(|index| self.channels[index].as_mut()) {
            open.namespace.geometry.block_count = block_count;
            self.engine.set_namespace(subsystem, nsid, Some(open.namespace));
        }
        self.tell(ControlMessage::NamespaceSet { subsystem, nsid });
    }

    fn detach_namespace(&mut self, subsystem: u32, nsid: u32) {
        self.engine.set_namespace(subsystem, nsid, None);
        match self.channel_of(subsystem, nsid) {
            Some(index) => {
                if let Some(open) = &mut self.channels[index] {
                    open.closing = true;
                }
                self.drop_if_closed(index);
            }
            None => self.tell(ControlMessage::NamespaceSet { subsystem, nsid }),
        }
    }

    /// Drops a detached channel once its last I/O has ended, and tells only then: the control
    /// thread may close the device at once, which must not be left to this core.
    #[inline]
    fn drop_if_closed(&mut self, index: usize) {
        let idle = |open: &mut OpenChannel| open.closing && open.stats.in_flight == 0;
        if let Some(open) = self.channels[index].take_if(idle) {
            let ChannelStats { subsystem, nsid, .. } = open.stats;
            if let ChannelWay::Volume { pool, channel } = open.way
                && let Some(open) = &mut self.lanes[pool]
            {
                open.lane.detach(channel);
            }
            drop(open);
            self.tell(ControlMessage::NamespaceSet { subsystem, nsid });
        }
    }

    fn add_device(&mut self, device: usize, cq: Cq) {
        let config =
            nvmf_rdma::CarrierConfig { requests: self.requests, connections: self.queues.len() };
        self.carriers.rdma[device] = Some(RdmaCarrier::new(config, cq));
    }

    fn collect_stats(&self) -> CoreStats {
        let mut rdma = nvmf_rdma::CarrierStats::default();
        self.carriers.rdma.iter().flatten().for_each(|one| rdma += one.stats());
        let channels = self.channels.iter().flatten().map(|open| open.stats);
        let queues = self.queues.iter().flatten();
        let queues = queues.filter_map(|o| Some((o.key, self.engine.queue_load(o.queue)?)));
        CoreStats {
            engine: self.engine.stats(),
            rdma,
            tcp: self.carriers.tcp.stats(),
            copied_bytes: dma::copied_bytes(),
            data: pool_use(self.engine.pool()),
            connections: pool_use(&self.memory),
            channels: channels.collect(),
            queues: queues.collect(),
        }
    }

    /// The carrier of the queue that a request belongs to.
    #[inline]
    fn via(&self, id: RequestId) -> Option<Via> {
        self.queues[self.engine.queue_of(id).index()].map(|opened| opened.via)
    }

    fn opened(&self, queue: QueueId) -> Option<OpenedQueue> {
        let opened = (*self.queues.get(queue.index())?)?;
        (opened.queue == queue).then_some(opened)
    }

    fn tell(&mut self, message: ControlMessage) {
        let refused = match self.outbox.is_empty() {
            true => self.control.push(message).err(),
            false => Some(message),
        };
        if let Some(message) = refused {
            assert!(self.outbox.len() < CORE_OUTBOX, "more messages than can wait");
            self.outbox.push_back(message);
        }
    }

    fn flush_outbox(&mut self) {
        while let Some(message) = self.outbox.pop_front() {
            if let Err(message) = self.control.push(message) {
                self.outbox.push_front(message);
                return;
            }
        }
    }
}

fn pool_use(pool: &Pool) -> PoolUse {
    PoolUse { size: pool.bytes() as u64, free: pool.free_bytes() as u64 }
}

impl Worker for Core {
    type Message = CoreMessage;

    fn handle_message(&mut self, message: CoreMessage) {
        match message {
            CoreMessage::AddDevice { device, cq } => self.add_device(device, cq),
            CoreMessage::RemoveDevice { device } => self.carriers.rdma[device] = None,
            CoreMessage::OpenQueue(open) => self.open_queue(*open),
            CoreMessage::BindQueue { queue, params } => self.bind_queue(queue, params),
            CoreMessage::Answer { request, result, status, data_bytes } => {
                let step = self.engine.handle_answer(request, result, status, data_bytes);
                self.run(step);
            }
            CoreMessage::Abort { queue, cid, token } => {
                let step = self.engine.abort(queue, cid);
                let ended = step.is_some();
                self.run(step.unwrap_or(Step::None));
                self.tell(ControlMessage::Aborted { token, ended });
            }
            CoreMessage::CloseQueue { queue } => self.close_queue(queue),
            CoreMessage::QueueDestroyed { queue } => self.handle_queue_destroyed(queue),
            CoreMessage::AttachNamespace { subsystem, nsid, namespace, storage } => {
                self.attach_namespace((subsystem, nsid), namespace, storage);
            }
            CoreMessage::ResizeNamespace { subsystem, nsid, block_count } => {
                self.resize_namespace(subsystem, nsid, block_count);
            }
            CoreMessage::DetachNamespace { subsystem, nsid } => {
                self.detach_namespace(subsystem, nsid);
            }
            CoreMessage::AddLane { pool, lane } => {
                self.lanes[pool] = Some(OpenLane { lane, channels: Vec::new(), leaving: None });
            }
            CoreMessage::RemoveLane { pool } => match &mut self.lanes[pool] {
                Some(open) => open.leaving = Some(Instant::now() + LANE_END_LIMIT),
                None => self.tell(ControlMessage::LaneRemoved { pool, lane: None, idle: true }),
            },
            CoreMessage::PoolCall { pool, id, call, now_s } => {
                if let Some(open) = &mut self.lanes[pool] {
                    open.lane.call(id, *call, now_s);
                }
            }
            CoreMessage::PoolDevice { pool, id, device } => {
                if let Some(open) = &mut self.lanes[pool] {
                    open.lane.add_device(id, *device);
                }
            }
            CoreMessage::CollectStats => {
                let stats = Box::new(self.collect_stats());
                self.tell(ControlMessage::Stats { core: self.core, stats });
            }
        }
    }

    /// One turn: what arrived, then the block devices, then who waited for either, and at last what
    /// is to be sent: for each connection one chain of work requests, or one call.
    fn poll(&mut self, now: Instant) -> usize {
        let mut work = 0;
        for device in 0..self.carriers.rdma.len() {
            work += self.poll_rdma(device);
        }
        work += self.poll_tcp();
        work += self.poll_channels(now);
        work += self.poll_lanes(now);
        work += self.poll_waiting();
        self.carriers.rdma.iter_mut().flatten().for_each(RdmaCarrier::flush);
        self.carriers.tcp.flush();
        if !self.outbox.is_empty() {
            self.flush_outbox();
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bdev::{Busy, Geometry, Io};
    use dma::Arena;
    use nix::sys::eventfd::EventFd;

    use super::*;

    /// Notes when it is dropped how many messages the control thread has.
    struct Noting(Arc<ControlRing>, Arc<AtomicUsize>);

    impl Channel for Noting {
        fn submit(&mut self, _: Io) -> Result<(), Busy> {
            Err(Busy)
        }

        fn poll(&mut self, _: Instant, _: &mut Completions) {}
    }

    impl Drop for Noting {
        fn drop(&mut self) {
            self.1.store(self.0.len(), Ordering::Relaxed);
        }
    }

    #[test]
    fn a_channel_is_gone_when_the_control_thread_hears_of_it() {
        let arena = Arena::plain_pages(4 << 20).unwrap();
        let pool = || Pool::new(arena, 1 << 20, 1 << 20).unwrap();
        let ring = ControlRing::new(8, EventFd::new().unwrap());
        let config = EngineConfig { requests: 8, max_transfer_bytes: 4096, queue_share: 1 };
        let mut core = Core::new(0, config, pool(), pool(), Arc::clone(&ring)).unwrap();
        let geometry = Geometry {
            block_bytes: 512,
            block_count: 8,
            volatile_write_cache: false,
            deallocate_reads_zeroes: false,
            atomic_write_blocks: 1,
            preferred_write_blocks: 1,
        };
        let namespace = Namespace { channel: 0, geometry, read_only: false };
        let told = Arc::new(AtomicUsize::new(usize::MAX));
        let storage = Storage::Bdev(Box::new(Noting(Arc::clone(&ring), Arc::clone(&told))));
        core.handle_message(CoreMessage::AttachNamespace {
            subsystem: 0,
            nsid: 1,
            namespace,
            storage,
        });
        assert!(ring.pop().is_some());
        core.handle_message(CoreMessage::DetachNamespace { subsystem: 0, nsid: 1 });
        assert_eq!((told.load(Ordering::Relaxed), ring.len()), (0, 1));
    }
}
