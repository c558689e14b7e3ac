//! The whole host side against a target behind loopback TCP.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use conformance::{BLOCK_BYTES, BLOCK_COUNT, NQN, Random, Server, ServerConfig};
use dma::Arena;
use host::{
    Attached, Controller, ControllerEvent, Error, HostIdentity, Io, IoQueue, Op, Options,
    Reconnect, SubsystemKind, Transport, discover,
};
use nvme_spec::identify::cns;
use nvme_spec::log_page::lid;
use nvme_spec::status::Status;

fn options(server: &Server) -> Options {
    Options::new(Transport::Tcp, server.addr(), NQN)
}

fn arena() -> &'static Arena {
    Arena::plain_pages(16 << 20).unwrap()
}

#[test]
fn a_namespace_is_attached_used_and_detached() {
    for (ip, digests) in [("127.0.0.1", false), ("127.0.0.1", true), ("::1", true)] {
        let (server, arena) = (Server::start(ip, ServerConfig::default()), arena());
        let options = Options { header_digest: digests, data_digest: digests, ..options(&server) };
        let mut disk = Attached::attach(options, 1, arena).unwrap();
        let namespace = disk.namespace();
        assert_eq!((namespace.block_bytes, namespace.block_count), (BLOCK_BYTES, BLOCK_COUNT));
        // More than one command takes.
        let long = 2 << 20;
        let (from, to) = (arena.carve(long, 4096).unwrap(), arena.carve(long, 4096).unwrap());
        from.write(0, &(0..long as u32).map(|at| (at % 253) as u8).collect::<Vec<_>>());
        disk.write(100, from).unwrap();
        disk.flush().unwrap();
        disk.read(100, to).unwrap();
        let bytes = |span: dma::DmaSpan| {
            let mut bytes = vec![0; long];
            span.read(0, &mut bytes);
            bytes
        };
        assert!(bytes(from) == bytes(to));
        disk.compare(100, from).unwrap();
        disk.write_zeroes(100, 8).unwrap();
        let different = disk.compare(100, from).unwrap_err();
        let failure = Status::COMPARE_FAILURE;
        assert!(matches!(different, Error::Command { command: "Compare", status, .. }
            if status.code_and_type() == failure));
        disk.keep_alive();
        let controller = disk.controller();
        assert_eq!(controller.info().model, "Forebay");
        assert_eq!(controller.identify(cns::CONTROLLER, 0).unwrap().len(), 4096);
        assert_eq!(controller.log_page(lid::SMART, u32::MAX, 0, 512).unwrap().len(), 512);
        let refused = controller.log_page(0xC0, 0, 0, 512).unwrap_err();
        assert!(matches!(refused, Error::Command { command: "Get Log Page", .. }), "{refused}");
        disk.detach().unwrap();
        assert_eq!(arena.bytes_left(), (16 << 20) - 2 * long, "all memory is given back");
    }
}

#[test]
fn what_is_there_is_discovered() {
    let server = Server::start("127.0.0.1", ServerConfig::default());
    let found = discover(Transport::Tcp, server.addr(), &HostIdentity::random(), arena()).unwrap();
    let ours = found.iter().find(|entry| entry.subnqn == NQN).expect("the subsystem");
    assert_eq!((ours.transport, ours.kind), (Some(Transport::Tcp), SubsystemKind::Nvm));
    assert_eq!(ours.addr(), Some(server.addr()));
}

#[test]
fn what_cannot_be_connected_to_is_told() {
    let (server, arena) = (Server::start("127.0.0.1", ServerConfig::default()), arena());
    let connect = |options| Controller::connect(options, arena).unwrap_err();
    let unknown =
        connect(Options { subnqn: "nqn.2026-11.io.forebay:x".into(), ..options(&server) });
    assert!(unknown.to_string().ends_with("the subsystem NQN"), "{unknown}");
    let addr = server.addr();
    server.stop();
    let refused = connect(Options::new(Transport::Tcp, addr, NQN));
    assert!(matches!(refused, Error::Socket { .. }), "{refused}");
    // Somebody who accepts and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = Options {
        connect_timeout: Duration::from_millis(200),
        ..Options::new(Transport::Tcp, silent.local_addr().unwrap(), NQN)
    };
    let late = connect(options);
    assert!(matches!(late, Error::TimedOut { .. }), "{late}");
    assert_eq!(arena.bytes_left(), 16 << 20, "all memory is given back");
}

#[test]
fn queues_are_as_many_as_were_granted() {
    let server = Server::start("127.0.0.1", ServerConfig::default());
    let options = Options { io_queues: 3, depth: 1000, ..options(&server) };
    let mut controller = Controller::connect(options, arena()).unwrap();
    let queues: Vec<IoQueue> = (0..3).map(|_| controller.open_queue().unwrap()).collect();
    assert!(queues.iter().map(IoQueue::qid).eq(1..=3));
    // The target's queues have 128 entries, and one stays free.
    assert_eq!(queues[0].depth(), 127);
    let error = controller.open_queue().unwrap_err();
    assert!(matches!(error, Error::NoQueue { granted: 3 }), "{error}");
    assert!(matches!(controller.namespace(2).unwrap_err(), Error::NoNamespace { nsid: 2 }));
    controller.detach().unwrap();
}

#[test]
fn each_queue_works_on_a_thread_of_its_own() {
    let (server, arena) = (Server::start("127.0.0.1", ServerConfig::default()), arena());
    let options = Options { io_queues: 4, ..options(&server) };
    let mut controller = Controller::connect(options, arena).unwrap();
    let threads: Vec<_> = (0..4u8)
        .map(|fill| {
            let mut queue = controller.open_queue().unwrap();
            let data = arena.carve(4096, 4096).unwrap();
            std::thread::spawn(move || {
                for (op, byte) in [(Op::Write { fua: true }, fill), (Op::Read, 0xEE)] {
                    data.fill(byte);
                    let slba = u64::from(fill) * 8;
                    let data = data.into();
                    let io = Io { tag: 1, nsid: 1, op, slba, block_count: 8, data };
                    queue.submit(Instant::now(), &io).unwrap();
                    let done = loop {
                        let now = Instant::now();
                        queue.poll(now);
                        match queue.completed() {
                            Some(done) => break done,
                            None => queue.wait(now, Duration::from_millis(100)),
                        }
                    };
                    assert_eq!(done.status, Status::SUCCESS);
                }
                assert_eq!(data.read_obj::<[u8; 4096]>(0), [fill; 4096]);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    controller.detach().unwrap();
}

/// Submits random I/Os on blocks of their own, and knows what each block may hold.
struct Load {
    random: Random,
    now: Instant,
    /// By block: contents that it may have. More than one after a write that nobody knows of.
    blocks: BTreeMap<u64, Vec<u8>>,
    submitted: BTreeMap<u32, (Io, u8)>,
    lost: u32,
}

impl Load {
    /// Keeps the queue busy; `true`: all `count` I/Os have ended.
    fn turn(&mut self, queue: &mut IoQueue, memory: dma::DmaSpan, count: &mut u32) -> bool {
        self.now = Instant::now();
        let tag = self.random.below(32) as u32;
        if *count > 0 && !self.submitted.contains_key(&tag) {
            let place = memory.subspan(tag * BLOCK_BYTES, BLOCK_BYTES);
            // Blocks of a tag are no other tag's.
            let slba = self.random.below(8) * 32 + u64::from(tag);
            let fill = self.random.draw() as u8;
            let op = match self.random.below(2) {
                0 => Op::Read,
                _ => Op::Write { fua: false },
            };
            let io = Io { tag, nsid: 1, op, slba, block_count: 1, data: place.into() };
            if queue.room() > 0 {
                if op != Op::Read {
                    place.fill(fill);
                }
                queue.submit(self.now, &io).unwrap();
                self.submitted.insert(tag, (io, fill));
                *count -= 1;
            }
        }
        queue.poll(self.now);
        while let Some(done) = queue.completed() {
            let (io, fill) = self.submitted.remove(&done.tag).expect("completed once");
            self.check(&io, fill, done.status, memory);
        }
        *count == 0 && self.submitted.is_empty()
    }

    fn check(&mut self, io: &Io, fill: u8, status: Status, memory: dma::DmaSpan) {
        let may_be = self.blocks.entry(io.slba).or_insert_with(|| vec![0]);
        match (io.op, status) {
            (Op::Read, Status::SUCCESS) => {
                let place = memory.subspan(io.tag * BLOCK_BYTES, BLOCK_BYTES);
                let mut bytes = vec![0; BLOCK_BYTES as usize];
                place.read(0, &mut bytes);
                assert!(bytes.iter().all(|&byte| byte == bytes[0]), "a torn block");
                assert!(may_be.contains(&bytes[0]), "{} not in {may_be:?}", bytes[0]);
                // What was read once stays: no lost write is executed later.
                *may_be = vec![bytes[0]];
            }
            (_, Status::SUCCESS) => *may_be = vec![fill],
            (Op::Write { .. }, Status::HOST_PATHING_ERROR) => {
                self.lost += 1;
                may_be.push(fill);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_connection_that_breaks_loses_no_read_and_repeats_no_write() {
    let mut lost = 0;
    for seed in 0..4 {
        println!("seed {seed}");
        let broken =
            ServerConfig { break_below: Some(200_000), breaks: 6, seed, ..ServerConfig::default() };
        let (server, arena) = (Server::start("127.0.0.1", broken), arena());
        let reconnect =
            Reconnect { delay: Duration::from_millis(20), give_up_after: Duration::from_secs(60) };
        let options = Options {
            keep_alive: Duration::from_secs(1),
            reconnect: Some(reconnect),
            data_digest: true,
            ..options(&server)
        };
        // The first connections may break before they are of use.
        let (mut controller, mut queue) = (0..20)
            .find_map(|_| {
                let mut controller = Controller::connect(options.clone(), arena).ok()?;
                let queue = controller.open_queue().ok()?;
                Some((controller, queue))
            })
            .expect("it breaks six times only");
        let memory = arena.carve(32 * BLOCK_BYTES as usize, 4096).unwrap();
        let mut load = Load {
            random: Random::new(seed),
            now: Instant::now(),
            blocks: BTreeMap::new(),
            submitted: BTreeMap::new(),
            lost: 0,
        };
        let mut count = 4000;
        let until = Instant::now() + Duration::from_secs(60);
        while !load.turn(&mut queue, memory, &mut count) {
            while let Some(event) = controller.poll(load.now) {
                assert!(!matches!(event, ControllerEvent::GaveUp(_)), "{event:?}");
            }
            assert!(load.now < until, "{count} to go, {:?}", load.submitted.keys());
        }
        println!("{} writes lost", load.lost);
        lost += load.lost;
        assert!(server.stop() >= 3, "nothing was broken");
    }
    assert!(lost > 0, "writes that were on their way are not submitted again");
}

/// Reads one block after the other, waiting between turns, until `count` have ended.
fn read_waiting(queue: &mut IoQueue, to: dma::DmaSpan, count: u32) {
    let io = Io { tag: 7, nsid: 1, op: Op::Read, slba: 0, block_count: 8, data: to.into() };
    for _ in 0..count {
        queue.submit(Instant::now(), &io).unwrap();
        let mut done = None;
        while done.is_none() {
            let now = Instant::now();
            queue.poll(now);
            done = queue.completed();
            queue.wait(now, Duration::from_secs(1));
        }
        assert_eq!(done.map(|done| done.status), Some(Status::SUCCESS));
    }
}

#[test]
fn a_command_that_takes_too_long_ends_its_association() {
    let stall = ServerConfig { stall_after: Some(20_000), ..ServerConfig::default() };
    let (server, arena) = (Server::start("127.0.0.1", stall), arena());
    let options = Options {
        io_timeout: Duration::from_millis(300),
        reconnect: Some(Reconnect {
            delay: Duration::from_millis(20),
            give_up_after: Duration::from_secs(30),
        }),
        ..options(&server)
    };
    let mut controller = Controller::connect(options, arena).unwrap();
    let mut queue = controller.open_queue().unwrap();
    let to = arena.carve(4096, 4096).unwrap();
    let (mut late, mut lost, mut reconnected) = (0, 0, 0);
    let (began, mut read) = (Instant::now(), 0);
    let io = Io { tag: 7, nsid: 1, op: Op::Read, slba: 0, block_count: 8, data: to.into() };
    while read < 100 || reconnected == 0 {
        let now = Instant::now();
        assert!(now - began < Duration::from_secs(30));
        if queue.outstanding() == 0 {
            let _ = queue.submit(now, &io);
        }
        queue.poll(now);
        match queue.completed().map(|done| done.status) {
            Some(Status::SUCCESS) => read += 1,
            Some(Status::ABORTED_BY_HOST) => late += 1,
            Some(other) => panic!("{other}"),
            None => {}
        }
        match controller.poll(now) {
            Some(ControllerEvent::Lost(_)) => lost += 1,
            Some(ControllerEvent::Reconnected) => reconnected += 1,
            Some(other) => panic!("{other:?}"),
            None => {}
        }
        queue.wait(now, Duration::from_millis(1));
    }
    assert_eq!((late, lost, reconnected), (1, 1, 1));
}

#[test]
fn whoever_waits_makes_few_calls_and_nobody_allocates() {
    let (server, arena) = (Server::start("127.0.0.1", ServerConfig::default()), arena());
    let mut controller = Controller::connect(options(&server), arena).unwrap();
    let mut queue = controller.open_queue().unwrap();
    let to = arena.carve(4096, 4096).unwrap();
    read_waiting(&mut queue, to, 10);
    let calls = queue.calls();
    let allocations = allocation_counter::measure(|| read_waiting(&mut queue, to, 200));
    assert_eq!(allocations.count_total, 0);
    // The command leaves, its data and what ends it come, and nothing more is there.
    let each = (queue.calls() - calls) as f64 / 200.0;
    assert!(each < 8.0, "{each} calls per I/O");
}

#[test]
fn an_association_that_stays_lost_ends_everything() {
    let (server, arena) = (Server::start("127.0.0.1", ServerConfig::default()), arena());
    let options = Options {
        keep_alive: Duration::from_secs(1),
        reconnect: Some(Reconnect {
            delay: Duration::from_millis(50),
            give_up_after: Duration::from_millis(300),
        }),
        ..options(&server)
    };
    let mut controller = Controller::connect(options, arena).unwrap();
    let mut queue = controller.open_queue().unwrap();
    let memory = arena.carve(8192, 4096).unwrap();
    server.stop();
    let began = Instant::now();
    let io = |tag, op| Io {
        tag,
        nsid: 1,
        op,
        slba: 0,
        block_count: 8,
        data: memory.subspan(tag * 4096, 4096).into(),
    };
    queue.submit(began, &io(0, Op::Read)).unwrap();
    queue.submit(began, &io(1, Op::Write { fua: false })).unwrap();
    let (mut ended, mut gave_up) = (Vec::new(), false);
    while ended.len() < 2 || !gave_up {
        let now = Instant::now();
        queue.poll(now);
        while let Some(done) = queue.completed() {
            assert_eq!(done.status, Status::HOST_PATHING_ERROR);
            ended.push((done.tag, now));
        }
        let event = controller.poll(now);
        gave_up |= matches!(event, Some(ControllerEvent::GaveUp(_)));
        queue.wait(now, Duration::from_millis(10));
        assert!(now - began < Duration::from_secs(10) && ended.len() <= 2, "{ended:?}");
    }
    // The write ends when the old controller must have stopped: after two keep-alive time-outs.
    let (_, at) = ended.iter().find(|(tag, _)| *tag == 1).expect("the write");
    assert!(*at - began >= Duration::from_secs(2));
    assert!(queue.is_closed() && queue.room() == 0);
}
