//! Host core against target core, over a network in memory that cuts bytes anywhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use conformance::{BLOCK_BYTES, HostSide, NQN, Random, TargetSide};
use dma::{Arena, DmaSpan};
use host::protocol::{Left, Output, Request};
use host::{Error, Io, Op, Options, Spans, Transport};
use nvme_spec::log_page::{GetLogPage, lid};
use nvme_spec::status::Status;
use nvme_spec::{command::Sqe, opcode};

/// Blocks that the tests use.
const BLOCKS: u64 = 2048;
/// Most blocks of one I/O.
const MOST: u64 = 64;

fn options(digests: u8) -> Options {
    Options {
        header_digest: digests & 1 != 0,
        data_digest: digests & 2 != 0,
        ..Options::new(Transport::Tcp, "10.0.0.1:4420".parse().unwrap(), NQN)
    }
}

struct World {
    now: Instant,
    arena: &'static Arena,
    target: TargetSide,
    host: HostSide,
}

impl World {
    /// A host that has its I/O queue.
    fn ready(digests: u8, seed: u64) -> Self {
        let mut now = Instant::now();
        let mut target = TargetSide::new(now, "10.0.0.1:4420".parse().unwrap());
        let arena = Arena::plain_pages(16 << 20).unwrap();
        let mut host = HostSide::new(now, options(digests), arena, &mut target, seed);
        host.run_until(&mut now, &mut target, |host| host.is_ready()).unwrap();
        Self { now, arena, target, host }
    }

    fn run(&mut self, io: &Io) -> Status {
        assert!(self.host.submit(self.now, io));
        let mut status = None;
        let done = |host: &mut HostSide| {
            status = host.completed().map(|done| done.answer.status);
            status.is_some()
        };
        self.host.run_until(&mut self.now, &mut self.target, done).unwrap();
        status.unwrap()
    }
}

fn io(tag: u32, op: Op, slba: u64, block_count: u32, data: Spans) -> Io {
    Io { tag, nsid: 1, op, slba, block_count, data }
}

fn bytes_of(span: DmaSpan) -> Vec<u8> {
    let mut bytes = vec![0; span.len() as usize];
    span.read(0, &mut bytes);
    bytes
}

/// Whole blocks of memory, in one run or in several.
fn spans(random: &mut Random, span: DmaSpan) -> Spans {
    if random.below(3) > 0 {
        return span.into();
    }
    let first = 1 + random.below(u64::from(span.len()) - 1) as u32;
    let runs = [span.subspan(0, first), span.subspan(first, span.len() - first)];
    Spans::gather(&runs).unwrap()
}

#[test]
fn every_op_over_a_network_that_cuts_bytes_anywhere() {
    for (seed, digests) in (0..12).map(|seed| (seed, seed as u8 & 3)) {
        println!("seed {seed}, digests {digests}");
        let mut world = World::ready(digests, seed);
        let mut random = Random::new(seed);
        let mut model = vec![0; BLOCKS as usize * BLOCK_BYTES as usize];
        let arena = world.arena;
        let places: Vec<DmaSpan> =
            (0..16).map(|_| arena.carve((MOST * 512) as usize, 4096).unwrap()).collect();
        // On their way, by tag: what is to be read, or nothing; blocks of one are no other's.
        let mut on_the_way: BTreeMap<u32, (Io, Option<Vec<u8>>)> = BTreeMap::new();
        let mut submitted = 0;
        while submitted < 300 || !on_the_way.is_empty() {
            let tag = random.below(16) as u32;
            if submitted < 300 && !on_the_way.contains_key(&tag) {
                let (slba, count) = (random.below(BLOCKS - MOST), 1 + random.below(MOST));
                let free = on_the_way.values().all(|(io, _)| {
                    let end = io.slba + u64::from(io.block_count);
                    end <= slba || slba + count <= io.slba
                });
                if free {
                    let place = places[tag as usize].subspan(0, (count * 512) as u32);
                    let range = slba as usize * 512..(slba + count) as usize * 512;
                    let it = prepare(&mut random, tag, (slba, count), place, &mut model[range]);
                    assert!(world.host.submit(world.now, &it.0), "16 of 16");
                    on_the_way.insert(tag, it);
                    submitted += 1;
                }
            }
            world.host.turn(world.now, &mut world.target).unwrap();
            world.now += Duration::from_micros(1);
            while let Some(done) = world.host.completed() {
                let (io, wanted) = on_the_way.remove(&done.tag).expect("completed once");
                assert_eq!(done.answer.status, Status::SUCCESS, "{io:?}");
                if let Some(wanted) = wanted {
                    let got = bytes_of(places[done.tag as usize].subspan(0, io.data.bytes()));
                    assert!(got == wanted, "{io:?} read something else");
                }
            }
        }
    }
}

/// An I/O, what it is to read, and what it makes of the blocks.
fn prepare(
    random: &mut Random,
    tag: u32,
    (slba, count): (u64, u64),
    place: DmaSpan,
    blocks: &mut [u8],
) -> (Io, Option<Vec<u8>>) {
    let block_count = count as u32;
    match random.below(10) {
        0..=3 => {
            let bytes: Vec<u8> = (0..place.len()).map(|_| random.draw() as u8).collect();
            place.write(0, &bytes);
            blocks.copy_from_slice(&bytes);
            let op = Op::Write { fua: random.below(2) == 0 };
            (io(tag, op, slba, block_count, spans(random, place)), None)
        }
        4..=6 => {
            place.fill(0xEE);
            let wanted = blocks.to_vec();
            (io(tag, Op::Read, slba, block_count, spans(random, place)), Some(wanted))
        }
        7 => {
            place.write(0, blocks);
            (io(tag, Op::Compare, slba, block_count, spans(random, place)), None)
        }
        8 => {
            blocks.fill(0);
            let op = Op::WriteZeroes { deallocate: random.below(2) == 0, fua: false };
            (io(tag, op, slba, block_count, Spans::NONE), None)
        }
        _ => (io(tag, Op::Flush, slba, block_count, Spans::NONE), None),
    }
}

#[test]
fn deallocated_blocks_read_as_zeroes_and_a_difference_is_told() {
    let mut world = World::ready(3, 1);
    let data = world.arena.carve(4096, 4096).unwrap();
    data.fill(7);
    assert_eq!(world.run(&io(1, Op::Write { fua: false }, 8, 8, data.into())), Status::SUCCESS);
    data.fill(8);
    let compared = world.run(&io(2, Op::Compare, 8, 8, data.into()));
    assert_eq!(compared.code_and_type(), Status::COMPARE_FAILURE);
    let range = world.arena.carve(16, 16).unwrap();
    range.write(4, &[8, 0, 0, 0, 8]);
    let deallocate = Op::Deallocate { ranges: 1 };
    assert_eq!(world.run(&io(3, deallocate, 0, 0, range.into())), Status::SUCCESS);
    assert_eq!(world.run(&io(4, Op::Read, 8, 8, data.into())), Status::SUCCESS);
    assert_eq!(bytes_of(data), [0; 4096]);
    let beyond = world.run(&io(5, Op::Read, conformance::BLOCK_COUNT, 8, data.into()));
    assert_eq!(beyond, Status::LBA_OUT_OF_RANGE.with_dnr());
}

#[test]
fn a_connection_that_breaks_at_any_byte_ends_every_command_once() {
    for seed in 0..60 {
        let mut world = World::ready(seed as u8 & 3, seed);
        let mut random = Random::new(seed);
        let breaks = random.below(60_000);
        println!("seed {seed}: breaks after {breaks} bytes");
        world.host.io_wire().unwrap().break_after(breaks);
        let data = world.arena.carve(16 * 8192, 4096).unwrap();
        let mut ended = [0; 16];
        for tag in 0..16 {
            let op = if random.below(2) == 0 { Op::Read } else { Op::Write { fua: false } };
            let place = data.subspan(tag * 8192, 8192);
            let it = io(tag, op, u64::from(tag) * 16, 16, place.into());
            assert!(world.host.submit(world.now, &it));
        }
        // At last nothing moves, or the connection has broken.
        let mut quiet = 0;
        while quiet < 100 {
            match world.host.turn(world.now, &mut world.target) {
                Ok(true) => quiet = 0,
                Ok(false) => quiet += 1,
                Err(Error::Lost) => break,
                Err(other) => panic!("{other}"),
            }
            while let Some(done) = world.host.completed() {
                assert_eq!(done.answer.status, Status::SUCCESS);
                ended[done.tag as usize] += 1;
            }
        }
        while let Some(done) = world.host.completed() {
            ended[done.tag as usize] += 1;
        }
        for left in world.host.abandon_io() {
            match left {
                Left::Completed(done) => ended[done.tag as usize] += 1,
                Left::Unfinished(command) => ended[command.tag as usize] += 1,
            }
        }
        assert_eq!(ended, [1; 16]);
        assert!(world.host.abandon_io().is_empty(), "once");
    }
}

#[test]
fn a_namespace_that_changes_is_looked_at_again() {
    let mut world = World::ready(0, 3);
    assert_eq!(world.host.admin.namespaces()[0].block_count, conformance::BLOCK_COUNT);
    world.host.outputs.clear();
    for block_count in [4096, 1024] {
        world.target.resize(world.now, block_count);
        let changed = |host: &mut HostSide| {
            let output = host.outputs.pop_front();
            matches!(output, Some(Output::NamespacesChanged))
        };
        world.host.run_until(&mut world.now, &mut world.target, changed).unwrap();
        assert_eq!(world.host.admin.namespaces()[0].block_count, block_count);
    }
}

#[test]
fn keep_alives_keep_the_association_and_their_absence_ends_it() {
    let mut world = World::ready(0, 4);
    let end = world.now + Duration::from_secs(60);
    let passed = |host: &mut HostSide, now: &mut Instant, target: &mut TargetSide| {
        host.run_until(now, target, |_| true).map(|()| *now += Duration::from_millis(500))
    };
    while world.now < end {
        passed(&mut world.host, &mut world.now, &mut world.target).unwrap();
    }
    assert_eq!(world.target.controllers(), 1);
    // Nobody serves the host for longer than the time-out: the target ends its connections.
    world.now += Duration::from_secs(20);
    world.target.turn(world.now);
    let mut ended = false;
    for _ in 0..100 {
        ended |= passed(&mut world.host, &mut world.now, &mut world.target).is_err();
    }
    assert!(ended);
    assert_eq!(world.target.controllers(), 0);
}

#[test]
fn log_pages_are_read_and_a_request_that_fails_is_answered() {
    let mut world = World::ready(2, 5);
    for (lid, good) in [(lid::SMART, true), (0xC0, false)] {
        let mut sqe = Sqe::new(opcode::admin::GET_LOG_PAGE, u32::MAX);
        let page = GetLogPage {
            lid,
            lsp: 0,
            rae: false,
            bytes: 512,
            offset: 0,
            offset_is_index: false,
            lsi: 0,
        };
        page.set(&mut sqe);
        world.host.admin.request(Request { sqe, bytes: 512 });
        let mut answered = None;
        let done = |host: &mut HostSide| match host.outputs.pop_front() {
            Some(Output::Answered(answer, data)) => {
                answered = Some((answer.status.is_success(), data.len()));
                true
            }
            _ => false,
        };
        world.host.run_until(&mut world.now, &mut world.target, done).unwrap();
        assert_eq!(answered, Some((good, if good { 512 } else { 0 })));
    }
}

#[test]
fn a_controller_is_shut_down_in_order() {
    let mut world = World::ready(1, 6);
    world.host.admin.shut_down();
    let down = |host: &mut HostSide| {
        let output = host.outputs.pop_front();
        matches!(output, Some(Output::Down))
    };
    // The target closes the I/O queue: that connection ends, and the admin queue's stays.
    let mut is_down = false;
    for _ in 0..10_000 {
        let turned = world.host.turn(world.now, &mut world.target);
        assert!(matches!(turned, Ok(_) | Err(Error::Lost)), "{turned:?}");
        world.now += Duration::from_millis(1);
        is_down |= down(&mut world.host);
    }
    assert!(is_down);
}
