//! The carrier over loopback: a core's connections, played against hosts that are sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bdev::Geometry;
use dma::{Arena, DmaSpan, Pool};
use nvme_spec::command::Sqe;
use nvme_spec::nvm::ReadWrite;
use nvme_spec::opcode::nvm;
use nvme_spec::sgl::{PSDT_SGL, SglDescriptor};
use nvme_spec::status::Status;
use nvme_spec::tcp::{CapsuleCmd, CommonHeader, pdu_type};
use nvmf::engine::{
    Carrier, Closed, Engine, EngineConfig, Namespace, QueueId, QueueParams, QueueRole, Step,
};
use nvmf_tcp::limits::{CONNECT_SLOTS, IN_CAPSULE_BYTES, slots};
use nvmf_tcp::{CarrierConfig, ConnectionConfig, Event, TcpCarrier};
use sockets::Socket;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const ENTRIES: u16 = 32;
const BLOCK: u32 = 4096;

/// A core with one namespace, whose blocks hold their number's last byte.
struct Core {
    engine: Engine,
    carrier: TcpCarrier,
    memory: Pool,
    listener: TcpListener,
    broken: Vec<QueueId>,
}

impl Core {
    fn new() -> Self {
        let arena = Arena::plain_pages(32 << 20).unwrap();
        let pool = || Pool::new(arena, 12 << 20, 1 << 20).unwrap();
        let (requests, queue_share) = (1024, 4);
        let config = EngineConfig { requests, max_transfer_bytes: 1 << 20, queue_share };
        let mut engine = Engine::new(config, pool());
        let geometry = Geometry {
            block_bytes: BLOCK,
            block_count: 1 << 20,
            volatile_write_cache: false,
            deallocate_reads_zeroes: true,
            atomic_write_blocks: 1,
            preferred_write_blocks: 1,
        };
        engine.set_namespace(0, 1, Some(Namespace { channel: 0, geometry, read_only: false }));
        let connection = ConnectionConfig { header_digest: true, data_digest: true };
        let config = CarrierConfig { requests, connections: 1024, connection };
        Self {
            engine,
            carrier: TcpCarrier::new(config).unwrap(),
            memory: pool(),
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            broken: Vec::new(),
        }
    }

    /// A connection before its Connect.
    fn accept(&mut self) -> (QueueId, Host) {
        let stream = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let socket = Socket::new(self.listener.accept().unwrap().0).unwrap();
        let (queue, ids) = self.engine.open_queue(Carrier::Stream, CONNECT_SLOTS).unwrap();
        self.carrier.open(queue, 7, socket, &ids, &mut self.memory).unwrap();
        stream.set_nonblocking(true).unwrap();
        (queue, Host { stream, received: Vec::new() })
    }

    fn grow(&mut self, queue: QueueId, entries: u16, role: QueueRole, capsule_bytes: u32) {
        let ids = self.engine.grow_queue(queue, slots(entries)).unwrap();
        let memory = &mut self.memory;
        assert!(self.carrier.grow(queue, &ids, capsule_bytes, true, memory));
        let params = QueueParams { role, subsystem: 0, sq_entries: entries, flow_control: true };
        self.engine.bind_queue(queue, params);
    }

    /// A connected I/O queue.
    fn connect(&mut self) -> (QueueId, Host) {
        let (queue, mut host) = self.accept();
        let mut request = [0; 128];
        (request[2], request[4]) = (128, 128);
        host.send(&request);
        self.grow(queue, ENTRIES, QueueRole::Io, IN_CAPSULE_BYTES);
        self.until(|_| host.pdus(1));
        assert_eq!(host.take().0, pdu_type::IC_RESP);
        (queue, host)
    }

    /// One turn of a core.
    fn turn(&mut self) {
        self.carrier.begin_turn();
        while let Some(event) = self.carrier.next_event() {
            let step = match event {
                Event::Capsule { id, sqe, data } => self.engine.handle_capsule(id, sqe, data),
                Event::CorruptCapsule { id, sqe } => self.engine.handle_corrupt_capsule(id, sqe),
                Event::Fetched { id, intact } => self.engine.handle_fetched(id, intact),
                Event::Sent(id) => self.engine.handle_sent(id),
                Event::Broken(queue) => {
                    self.broken.push(queue);
                    continue;
                }
            };
            self.take(step);
        }
        if self.engine.waiting() > 0 {
            self.engine.begin_turn();
            loop {
                match self.engine.poll_step() {
                    Step::None => break,
                    step => self.take(step),
                }
            }
        }
        self.carrier.flush();
    }

    fn take(&mut self, mut step: Step) {
        loop {
            step = match step {
                Step::Submit { io, .. } => {
                    if let Some(buffer) = io.buffer {
                        fill(buffer, io.slba);
                    }
                    self.engine.handle_done(nvmf::engine::RequestId(io.tag), Status::SUCCESS)
                }
                Step::Fetch(id) => return self.carrier.fetch(&self.engine, id),
                Step::Respond(id) => return self.carrier.respond(&self.engine, id),
                Step::None | Step::Drained(_) => return,
                Step::Control(_) => panic!("nothing here is for the control half"),
            };
        }
    }

    fn until(&mut self, mut is_so: impl FnMut(&mut Self) -> bool) {
        let limit = Instant::now() + Duration::from_secs(20);
        while !is_so(self) {
            assert!(Instant::now() < limit, "in vain");
            self.turn();
        }
    }

    fn close(&mut self, queue: QueueId) {
        drop(self.carrier.detach(queue).expect("it is open"));
        assert!(self.carrier.detach(queue).is_none());
        self.engine.close_queue(queue);
        assert_eq!(self.engine.release_carried(queue), Closed::Drained);
        self.carrier.release(queue, &mut self.memory);
    }

    fn assert_nothing_is_held(&self) {
        assert_eq!(self.engine.pool().free_bytes(), self.engine.pool().bytes());
        assert_eq!(self.memory.free_bytes(), self.memory.bytes());
    }
}

fn fill(buffer: DmaSpan, slba: u64) {
    for (block, slba) in (0..buffer.len() / BLOCK).zip(slba..) {
        buffer.subspan(block * BLOCK, BLOCK).fill(slba as u8);
    }
}

struct Host {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Host {
    /// What is sent is small: there is always room.
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn read(cid: u16, slba: u64, blocks: u32) -> Vec<u8> {
        let mut sqe = Sqe::new(nvm::READ, 1);
        sqe.cid = cid.into();
        ReadWrite::new(slba, blocks).set(&mut sqe);
        sqe.set_sgl(SglDescriptor::transport(blocks * BLOCK));
        assert_eq!(sqe.psdt(), PSDT_SGL);
        let mut pdu = CapsuleCmd::new_zeroed();
        pdu.header.pdu_type = pdu_type::CAPSULE_CMD;
        pdu.header.hlen = size_of::<CapsuleCmd>() as u8;
        pdu.header.plen = (size_of::<CapsuleCmd>() as u32).into();
        pdu.sqe = sqe;
        pdu.as_bytes().to_vec()
    }

    /// Whether so many whole PDUs are there.
    fn pdus(&mut self, count: usize) -> bool {
        let mut bytes = [0; 65536];
        match self.stream.read(&mut bytes) {
            Ok(count) => self.received.extend_from_slice(&bytes[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        let mut rest = &self.received[..];
        (0..count).all(|_| match CommonHeader::ref_from_prefix(rest) {
            Ok((common, _)) if rest.len() >= common.plen.get() as usize => {
                rest = &rest[common.plen.get() as usize..];
                true
            }
            _ => false,
        })
    }

    /// Type and bytes of the first PDU.
    fn take(&mut self) -> (u8, Vec<u8>) {
        let (common, _) = CommonHeader::read_from_prefix(&self.received).unwrap();
        let rest = self.received.split_off(common.plen.get() as usize);
        (common.pdu_type, std::mem::replace(&mut self.received, rest))
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.stream.read(&mut [0; 64]),
            Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

#[test]
fn a_read_brings_its_blocks_and_its_response() {
    let mut core = Core::new();
    let (queue, mut host) = core.connect();
    host.send(&Host::read(1, 100, 3));
    core.until(|_| host.pdus(2));
    let (kind, pdu) = host.take();
    assert_eq!(kind, pdu_type::C2H_DATA);
    let data = &pdu[24..];
    assert!(data.chunks(4096).zip(100..).all(|(block, slba)| block.iter().all(|&b| b == slba)));
    assert_eq!((data.len(), host.take().0), (3 * 4096, pdu_type::CAPSULE_RESP));
    drop(host);
    core.until(|core| !core.broken.is_empty());
    assert_eq!(core.broken, [queue], "told once");
    core.close(queue);
    core.assert_nothing_is_held();
}

#[test]
fn a_host_that_does_not_read_and_one_that_sends_a_byte_at_a_time_hold_up_nobody() {
    let mut core = Core::new();
    let (stuck_queue, mut stuck) = core.connect();
    for cid in 0..ENTRIES {
        stuck.send(&Host::read(cid, 0, 128));
    }
    let (slow_queue, mut slow) = core.connect();
    let dribble = Host::read(1, 5, 1);
    let (queue, mut host) = core.connect();
    for (round, byte) in dribble.iter().enumerate() {
        slow.send(&[*byte]);
        // All that its queue holds, and far more than the socket's buffers do.
        for cid in 0..ENTRIES {
            host.send(&Host::read(cid, round as u64, 16));
        }
        core.until(|_| host.pdus(2 * usize::from(ENTRIES)));
        host.received.clear();
    }
    core.until(|_| slow.pdus(2));
    assert_eq!(slow.take().1[24..], [5; 4096]);
    assert!(core.engine.queue_load(stuck_queue).unwrap().in_flight > 0, "it is stuck");
    assert!(core.broken.is_empty());
    // It reads at last: everything is there.
    core.until(|_| stuck.pdus(2 * usize::from(ENTRIES)));
    for queue in [stuck_queue, slow_queue, queue] {
        core.close(queue);
    }
    core.assert_nothing_is_held();
}

#[test]
fn a_host_that_breaks_the_rules_hears_why_and_then_the_end() {
    let mut core = Core::new();
    let (queue, mut host) = core.connect();
    let mut wrong = Host::read(1, 0, 1);
    wrong[0] = 0x0F;
    host.send(&wrong);
    core.until(|core| host.pdus(1) && !core.broken.is_empty());
    let (kind, pdu) = host.take();
    assert_eq!((kind, &pdu[8..14]), (pdu_type::C2H_TERM_REQ, &[1, 0, 0, 0, 0, 0][..]));
    core.close(queue);
    core.until(|_| host.has_ended());
    core.assert_nothing_is_held();
}

#[test]
fn more_commands_than_the_queue_holds_wait_in_the_socket() {
    let mut core = Core::new();
    let (queue, mut host) = core.connect();
    let all = 3 * usize::from(ENTRIES);
    for cid in 0..all {
        host.send(&Host::read(cid as u16, cid as u64, 1));
    }
    core.until(|_| host.pdus(2 * all));
    for cid in 0..all {
        assert_eq!(host.take().1[24..], [cid as u8; 4096]);
        host.take();
    }
    core.close(queue);
    core.assert_nothing_is_held();
}

#[test]
fn a_turn_takes_one_call_for_all_and_two_for_each_connection_at_work() {
    let mut core = Core::new();
    let mut hosts: Vec<_> = (0..3).map(|_| core.connect()).collect();
    for (_, host) in &mut hosts[..2] {
        let commands: Vec<u8> = (0..16).flat_map(|cid| Host::read(cid, 0, 1)).collect();
        host.send(&commands);
    }
    // Loopback is quick, but not at once: until both are there, turns find nothing.
    std::thread::sleep(Duration::from_millis(50));
    let before = core.carrier.stats();
    core.turn();
    let after = core.carrier.stats();
    assert_eq!(after.poll_calls - before.poll_calls, 1);
    assert_eq!(after.receive_calls - before.receive_calls, 2, "one for each that has something");
    assert_eq!(after.send_calls - before.send_calls, 2, "one for each with something to send");
    assert_eq!(after.capsules - before.capsules, 32);
    core.turn();
    let later = core.carrier.stats();
    let calls = (later.receive_calls, later.send_calls);
    assert_eq!(calls, (after.receive_calls, after.send_calls), "nothing more was there");
    for (queue, _) in hosts {
        core.close(queue);
    }
    core.assert_nothing_is_held();
}

/// `docs/data-path.md` says what a connection takes; this is what it takes.
#[test]
fn what_a_connection_takes_is_what_the_page_says() {
    use nvmf_tcp::limits::{CONNECT_CAPSULE_BYTES, INPUT_BYTES};
    let page = include_str!("../../../docs/data-path.md");
    let mut core = Core::new();
    let kinds = [
        None,
        Some((128, QueueRole::Io, IN_CAPSULE_BYTES)),
        Some((32, QueueRole::Admin, CONNECT_CAPSULE_BYTES)),
    ];
    let bytes = kinds.map(|kind| {
        let (queue, _host) = core.accept();
        if let Some((entries, role, capsule_bytes)) = kind {
            core.grow(queue, entries, role, capsule_bytes);
        }
        let taken = core.memory.bytes() - core.memory.free_bytes();
        core.close(queue);
        format!("**{},{:03}**", taken / 1000, taken % 1000)
    });
    let row = format!("| **bytes of the arena** | {} |", bytes.join(" | "));
    assert!(page.contains(&row), "the page does not say: {row}");
    let input = format!("{},{:03}", INPUT_BYTES / 1000, INPUT_BYTES % 1000);
    let row = format!("| input buffer, ordinary memory | {input} | {input} | {input} |");
    assert!(page.contains(&row), "the page does not say: {row}");
    core.assert_nothing_is_held();
}
