//! A target that takes and gives bytes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use bdev::{Bdev, Channel, Completions, RamBdev};
use dma::{Arena, DmaBuffer, DmaSpan, Pool};
use nvme_spec::opcode::{self, DataDirection};
use nvme_spec::{command::Sqe, fabrics, status::Status};
use nvmf::engine::{
    Carrier, Closed, Engine, EngineConfig, Namespace, QueueId, QueueParams, QueueRole, RequestId,
    Step,
};
use nvmf::{
    CommandKey, Listener, NamespaceConfig, Output, QueueInfo, QueueKey, QueueKind, SubsystemConfig,
    Target, TargetConfig, Transport,
};
use nvmf_tcp::limits::{CONNECT_CAPSULE_BYTES, CONNECT_SLOTS, IN_CAPSULE_BYTES, slots};
use nvmf_tcp::{Connection, ConnectionConfig, ConnectionEvent, Piece};
use uuid::Uuid;

/// The subsystem.
pub const NQN: &str = "nqn.2026-11.io.forebay:conformance";
/// Bytes in a block of its namespace 1.
pub const BLOCK_BYTES: u32 = 512;
/// Blocks of its namespace 1.
pub const BLOCK_COUNT: u64 = 8192;

/// A target with one namespace in memory, which every host may use.
pub struct TargetSide {
    target: Target,
    engine: Engine,
    channel: Box<dyn Channel>,
    completions: Completions,
    memory: Pool,
    connections: BTreeMap<u64, Link>,
    next_key: u64,
    /// Commands that the control half has, and where its answers go.
    commands: BTreeMap<CommandKey, Option<DmaSpan>>,
    now: Instant,
    local: SocketAddr,
    subsystem: u32,
    geometry: bdev::Geometry,
}

struct Link {
    connection: Connection,
    queue: QueueId,
    ids: Vec<RequestId>,
    pages: Vec<DmaBuffer>,
    flow_control: bool,
    /// Received, and not taken yet.
    input: Vec<u8>,
    /// The connection ends when what waits has left.
    ending: bool,
    /// The target has ended it.
    closed: bool,
}

impl TargetSide {
    /// A target reached at `local`, whose memory comes from an arena of its own.
    pub fn new(now: Instant, local: SocketAddr) -> Self {
        Self::in_arena(Arena::plain_pages(64 << 20).expect("memory"), 24 << 20, now, local)
    }

    /// The same in another arena, with so much memory for the data of commands; it takes 24 MiB
    /// more. The largest command has 1 MiB.
    pub fn in_arena(
        arena: &'static Arena,
        data_bytes: usize,
        now: Instant,
        local: SocketAddr,
    ) -> Self {
        let pool = |bytes| Pool::new(arena, bytes, 1 << 20).expect("a part of the arena");
        let ram = RamBdev::new("ram", BLOCK_BYTES, BLOCK_COUNT).expect("memory");
        let geometry = ram.geometry();
        let (target, subsystem) = control_half(local, geometry);
        let config = EngineConfig { requests: 4096, max_transfer_bytes: 1 << 20, queue_share: 4 };
        let mut engine = Engine::new(config, pool(data_bytes));
        let on_core = Namespace { channel: 0, geometry, read_only: false };
        engine.set_namespace(subsystem, 1, Some(on_core));
        Self {
            target,
            engine,
            channel: ram.open_channel(0).expect("a channel"),
            completions: Completions::with_capacity(64),
            memory: pool(24 << 20),
            connections: BTreeMap::new(),
            next_key: 1,
            commands: BTreeMap::new(),
            now,
            local,
            subsystem,
            geometry,
        }
    }

    /// Ends all connections and begins anew, with the same memory.
    ///
    /// # Panics
    /// A request, a buffer or a controller has outlived its connection.
    pub fn restart(&mut self, now: Instant) {
        let keys: Vec<u64> = self.connections.keys().copied().collect();
        keys.into_iter().for_each(|key| self.close(now, key));
        self.turn(now);
        assert!(self.connections.is_empty() && self.commands.is_empty(), "queues that do not end");
        assert_eq!(self.engine.waiting(), 0, "requests wait");
        for pool in [self.engine.pool(), &self.memory] {
            assert_eq!(pool.free_bytes(), pool.bytes(), "buffers are lost");
        }
        assert_eq!((self.controllers(), self.target.unbound_queues()), (0, 0));
        (self.target, self.subsystem) = control_half(self.local, self.geometry);
        self.next_key = 1;
        self.resize(now, BLOCK_COUNT);
    }

    /// A host has connected: the number of the connection.
    pub fn open(&mut self, now: Instant, peer: SocketAddr) -> u64 {
        self.now = now;
        let key = self.next_key;
        self.next_key += 1;
        let (queue, ids) =
            self.engine.open_queue(Carrier::Stream, CONNECT_SLOTS).expect("requests are left");
        let pages = self.take_pages(ids.len(), CONNECT_CAPSULE_BYTES);
        let spans: Vec<DmaSpan> = pages.iter().map(DmaBuffer::span).collect();
        let config = ConnectionConfig { header_digest: true, data_digest: true };
        let link = Link {
            connection: Connection::new(config, &spans),
            queue,
            ids,
            pages,
            flow_control: true,
            input: Vec::new(),
            ending: false,
            closed: false,
        };
        self.connections.insert(key, link);
        let info =
            QueueInfo { transport: Transport::Tcp, local: peer, peer, qid: None, entries: 128 };
        self.target.handle_queue_opened(now, QueueKey(key), info);
        self.handle_outputs();
        key
    }

    /// Bytes have come on a connection.
    pub fn receive(&mut self, now: Instant, key: u64, bytes: &[u8]) {
        self.now = now;
        let Some(link) = self.connections.get_mut(&key) else { return };
        link.input.extend_from_slice(bytes);
        self.turn(now);
    }

    /// The next bytes to send on a connection, `most` at most; they have left.
    pub fn send(&mut self, now: Instant, key: u64, most: usize) -> Vec<u8> {
        self.now = now;
        let mut sent = Vec::new();
        let Some(link) = self.connections.get_mut(&key) else { return sent };
        for piece in link.connection.pieces() {
            let from = sent.len();
            match piece {
                Piece::Bytes(bytes) => sent.extend_from_slice(bytes),
                Piece::Span(span) => {
                    sent.resize(from + span.len() as usize, 0);
                    span.read(0, &mut sent[from..]);
                }
            }
            if sent.len() >= most {
                break;
            }
        }
        sent.truncate(most);
        link.connection.handle_sent(sent.len());
        self.turn(now);
        sent
    }

    /// The target has ended the connection, and everything that it had to say has left.
    pub fn has_ended(&self, key: u64) -> bool {
        self.connections
            .get(&key)
            .is_none_or(|link| link.closed || link.ending && link.connection.is_idle())
    }

    /// Bytes have come on a connection that are not taken: its host has sent more commands than
    /// its queue holds.
    pub fn is_behind(&self, key: u64) -> bool {
        self.connections.get(&key).is_some_and(|link| !link.input.is_empty())
    }

    /// The connection is gone.
    pub fn close(&mut self, now: Instant, key: u64) {
        self.now = now;
        let Some(link) = self.connections.get_mut(&key) else { return };
        link.closed = true;
        let queue = link.queue;
        self.engine.close_queue(queue);
        self.target.handle_queue_lost(QueueKey(key));
        let of_queue = |command: &&CommandKey| command.queue == QueueKey(key);
        let commands: Vec<_> = self.commands.keys().filter(of_queue).copied().collect();
        for command in commands {
            self.answer(command, 0, Status::ABORTED_SQ_DELETION, &[]);
        }
        if self.engine.release_carried(queue) == Closed::Drained {
            self.drained(queue);
        }
        self.handle_outputs();
    }

    /// Does what can be done, and what is due.
    pub fn turn(&mut self, now: Instant) {
        self.now = now;
        self.target.handle_timeout(now);
        self.handle_outputs();
        let keys: Vec<u64> = self.connections.keys().copied().collect();
        for key in keys {
            self.take_in(key);
        }
        self.poll_channel();
        self.engine.begin_turn();
        loop {
            match self.engine.poll_step() {
                Step::None => break,
                step => self.run(step),
            }
        }
        self.poll_channel();
    }

    /// Makes the namespace smaller or larger as far as hosts are told.
    pub fn resize(&mut self, now: Instant, block_count: u64) {
        self.now = now;
        self.geometry.block_count = block_count;
        let namespace = Namespace { channel: 0, geometry: self.geometry, read_only: false };
        self.engine.set_namespace(self.subsystem, 1, Some(namespace));
        self.target.resize_namespace(NQN, 1, block_count).expect("the namespace");
        self.handle_outputs();
    }

    /// Controllers that there are.
    pub fn controllers(&self) -> usize {
        self.target.controllers().count()
    }

    fn take_in(&mut self, key: u64) {
        loop {
            let Some(link) = self.connections.get_mut(&key).filter(|link| !link.closed) else {
                return;
            };
            let taken = link.connection.handle_input(&link.input);
            link.input.drain(..taken);
            let Some(event) = link.connection.poll_event() else {
                if taken == 0 {
                    return;
                }
                continue;
            };
            let id_of = |slot: u16| link.ids[usize::from(slot)];
            let step = match event {
                ConnectionEvent::Capsule { slot, sqe, data, intact: true } => {
                    self.engine.handle_capsule(id_of(slot), sqe, data)
                }
                ConnectionEvent::Capsule { slot, sqe, .. } => {
                    self.engine.handle_corrupt_capsule(id_of(slot), sqe)
                }
                ConnectionEvent::Fetched { slot, intact } => {
                    self.engine.handle_fetched(id_of(slot), intact)
                }
                ConnectionEvent::Responded { slot } => self.engine.handle_sent(id_of(slot)),
                ConnectionEvent::Broken(_) | ConnectionEvent::Refused { .. } => {
                    link.ending = true;
                    Step::None
                }
            };
            self.run(step);
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::None => {}
            Step::Fetch(id) => {
                let data = self.engine.request(id).data();
                if let (Some((link, slot)), Some(to)) = (self.place(id), data) {
                    link.connection.fetch(slot, to);
                }
            }
            Step::Submit { io, .. } => {
                if self.channel.submit(io).is_err() {
                    self.engine.handle_busy(RequestId(io.tag));
                }
            }
            Step::Control(id) => self.control(id),
            Step::Respond(id) => {
                let request = self.engine.request(id);
                let (cqe, data) = (*request.cqe(), request.data_out());
                if let Some((link, slot)) = self.place(id) {
                    link.connection.respond(slot, &cqe, data, link.flow_control);
                }
            }
            Step::Drained(queue) => self.drained(queue),
        }
    }

    fn control(&mut self, id: RequestId) {
        let request = self.engine.request(id);
        let (sqe, span) = (*request.sqe(), request.data());
        let mut data = Vec::new();
        if let Some(span) = span.filter(|_| takes_data(&sqe)) {
            data.resize(span.len() as usize, 0);
            span.read(0, &mut data);
        }
        let queue = self.engine.queue_of(id);
        let Some(key) = self.key_of(queue) else { return };
        let command = CommandKey { queue: QueueKey(key), request: id.0 };
        self.commands.insert(command, span);
        self.target.handle_command(self.now, command, &sqe, &data);
        self.handle_outputs();
    }

    fn answer(&mut self, command: CommandKey, result: u64, status: Status, data: &[u8]) {
        let Some(span) = self.commands.remove(&command) else { return };
        let fits = span.map_or(0, |span| data.len().min(span.len() as usize));
        if let Some(span) = span {
            span.write(0, &data[..fits]);
        }
        let id = RequestId(command.request);
        let step = self.engine.handle_answer(id, result, status, fits as u32);
        self.run(step);
    }

    fn handle_outputs(&mut self) {
        while let Some(output) = self.target.poll_output() {
            match output {
                Output::BindQueue { queue, kind, subsystem, sq_entries, flow_control, .. } => {
                    let role = match kind {
                        QueueKind::Io { .. } => QueueRole::Io,
                        QueueKind::Admin | QueueKind::Discovery => QueueRole::Admin,
                    };
                    let subsystem = subsystem.0;
                    let params = QueueParams { role, subsystem, sq_entries, flow_control };
                    self.bind(queue.0, params);
                }
                Output::Respond { command, result, status, data } => {
                    self.answer(command, result, status, &data);
                }
                Output::Abort { command, .. } => self.target.handle_aborted(command, false),
                Output::CloseQueue { queue } => self.close(self.now, queue.0),
            }
        }
    }

    fn bind(&mut self, key: u64, params: QueueParams) {
        let Some(queue) = self.connections.get(&key).map(|link| link.queue) else { return };
        let capsule_bytes = match params.role {
            QueueRole::Io => IN_CAPSULE_BYTES,
            QueueRole::Admin | QueueRole::Unbound => CONNECT_CAPSULE_BYTES,
        };
        let more = self.engine.grow_queue(queue, slots(params.sq_entries));
        let more = more.expect("requests are left");
        let pages = self.take_pages(more.len(), capsule_bytes);
        let spans: Vec<DmaSpan> = pages.iter().map(DmaBuffer::span).collect();
        if let Some(link) = self.connections.get_mut(&key) {
            link.connection.grow(&spans);
            link.ids.extend(more);
            link.pages.extend(pages);
            link.flow_control = params.flow_control;
        }
        self.engine.bind_queue(queue, params);
    }

    fn poll_channel(&mut self) {
        loop {
            self.channel.poll(self.now, &mut self.completions);
            let Some(first) = self.completions.pop() else { return };
            let mut next = Some(first);
            while let Some(done) = next {
                let step = self.engine.handle_done(RequestId(done.tag), done.status);
                self.run(step);
                next = self.completions.pop();
            }
        }
    }

    fn drained(&mut self, queue: QueueId) {
        let Some(key) = self.key_of(queue) else { return };
        let Some(link) = self.connections.remove(&key) else { return };
        link.pages.into_iter().for_each(|page| self.memory.free(page));
        self.target.handle_queue_closed(self.now, QueueKey(key));
    }

    fn key_of(&self, queue: QueueId) -> Option<u64> {
        self.connections.iter().find(|(_, link)| link.queue == queue).map(|(&key, _)| key)
    }

    fn place(&mut self, id: RequestId) -> Option<(&mut Link, u16)> {
        let queue = self.engine.queue_of(id);
        let link = self.connections.values_mut().find(|link| link.queue == queue)?;
        let slot = link.ids.iter().position(|&other| other == id)?;
        Some((link, slot as u16))
    }

    fn take_pages(&mut self, count: usize, bytes: u32) -> Vec<DmaBuffer> {
        (0..count).map(|_| self.memory.alloc(bytes).expect("memory is left")).collect()
    }
}

/// A control half with the subsystem; the number that it gave to it.
fn control_half(local: SocketAddr, geometry: bdev::Geometry) -> (Target, u32) {
    let mut target = Target::new(TargetConfig::default());
    let subsystem = SubsystemConfig {
        nqn: NQN.to_owned(),
        serial: "FB0001".to_owned(),
        model: "Forebay".to_owned(),
        any_host: true,
        hosts: Vec::new(),
    };
    let subsystem = target.add_subsystem(subsystem).expect("a name").0;
    target.add_namespace(NQN, namespace(geometry)).expect("a namespace");
    let listener = Listener { transport: Transport::Tcp, addr: local };
    target.add_listener(listener).expect("an address");
    (target, subsystem)
}

fn namespace(geometry: bdev::Geometry) -> NamespaceConfig {
    NamespaceConfig {
        nsid: Some(1),
        name: "ram".to_owned(),
        geometry,
        uuid: Uuid::from_u128(1),
        nguid: [7; 16],
        read_only: false,
    }
}

fn takes_data(sqe: &Sqe) -> bool {
    let code = match sqe.opcode() {
        opcode::FABRICS => fabrics::fctype(sqe),
        other => other,
    };
    DataDirection::of(code) == DataDirection::HostToController
}
