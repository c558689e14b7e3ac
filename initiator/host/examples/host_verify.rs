//! Writes a namespace and compares what it reads, over either transport.
//!
//! ```text
//! cargo run -p host --example host_verify -- rdma 192.0.2.7:4420 nqn.2026-11.io.example:disk 1
//! ```
//!
//! First all kinds of I/O, each by itself; then, for sizes from 4 KiB to 1 MiB, as many writes at a
//! time as fit, and the reads of them. With a further word:
//!
//! - `until-lost`: I/O until the controller is gone, and how that ended which was on its way;
//! - `through-loss`: writes and reads until the controller is lost, and on until it is back and all
//!   of it as written. Writes that were lost are written again.
//!
//! It overwrites the first 4 MiB of the namespace. The exit status tells; so does the last line.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dma::{Arena, DmaSpan};
use host::{
    Attached, Completion, Controller, ControllerEvent, Discovered, Error, HostIdentity, Io,
    IoQueue, Op, Options, discover,
};
use nvme_spec::status::Status;

const AREA_BYTES: u32 = 4 << 20;
const SIZES: [u32; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
const DEPTH: u32 = 16;
const LARGEST: u32 = 1 << 20;

/// Status code type of what the host side itself says.
const PATH_RELATED: u8 = 3;

fn main() -> Result<()> {
    const USAGE: &str =
        "usage: host_verify tcp|rdma ADDRESS:PORT SUBSYSTEM-NQN NSID [until-lost|through-loss]";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [transport, addr, subnqn, nsid, word @ ..] = &arguments[..] else { bail!(USAGE) };
    let transport = transport.parse().map_err(anyhow::Error::msg)?;
    let addr = addr.parse().with_context(|| format!("{addr} is not ADDRESS:PORT"))?;
    let nsid = nsid.parse().with_context(|| format!("{nsid} is not a namespace"))?;
    let arena = Arena::plain_pages(64 << 20)?;
    let options = Options::new(transport, addr, subnqn);
    // A slow machine must not look like a dead one; but a loss is to be told soon.
    let (patient, soon) = (Duration::from_secs(30), Duration::from_secs(2));
    match word {
        [] => {
            let found = discover(transport, addr, &HostIdentity::random(), arena)?;
            let is_it = |it: &Discovered| it.subnqn == *subnqn && it.transport == Some(transport);
            ensure!(found.iter().any(is_it), "{subnqn} is not in the discovery log");
            let options = Options { keep_alive: patient, ..options };
            each_kind(options.clone(), nsid, arena)?;
            each_size(Load::begin(options, nsid, arena)?)?;
        }
        [word] if word == "until-lost" => {
            let options = Options { keep_alive: soon, reconnect: None, ..options };
            until_lost(Load::begin(options, nsid, arena)?)?;
        }
        [word] if word == "through-loss" => {
            let options = Options { keep_alive: soon, ..options };
            through_loss(Load::begin(options, nsid, arena)?)?;
        }
        _ => bail!(USAGE),
    }
    println!("host_verify: ok");
    Ok(())
}

/// Every kind of I/O, one after the other.
fn each_kind(options: Options, nsid: u32, arena: &'static Arena) -> Result<()> {
    let mut disk = Attached::attach(options, nsid, arena)?;
    let block_bytes = disk.namespace().block_bytes;
    let (data, zeroes) = (arena.carve(8192, 4096)?, arena.carve(8192, 4096)?);
    let ranges = arena.carve(4096, 4096)?;
    fill(data, 7);
    zeroes.clear();
    disk.write(0, data)?;
    disk.flush()?;
    let info = disk.controller().info().clone();
    if info.compare {
        disk.compare(0, data)?;
        let error = disk.compare(0, zeroes).err().context("zeroes compare equal")?;
        ensure!(error.to_string().contains("Compare Failure"), "{error}");
    }
    // A refusal moves nothing, and leaves the connection as it was.
    let behind = disk.read(disk.namespace().block_count, zeroes).err();
    let error = behind.context("a read behind the end succeeds")?;
    let by_controller = |status: Status| status.code_type() != PATH_RELATED;
    let refused = matches!(error, Error::Command { status, .. } if by_controller(status));
    ensure!(refused, "{error}");
    if info.write_zeroes {
        disk.write_zeroes(0, 8192 / block_bytes)?;
        fill(data, 8);
        disk.read(0, data)?;
        ensure!(data.read_obj::<[u8; 8192]>(0) == [0; 8192], "zeroes read as something else");
    }
    if info.deallocate {
        // Context attributes, length, first block.
        ranges.write_obj(0, &0u32);
        ranges.write_obj(4, &(8192 / block_bytes));
        ranges.write_obj(8, &0u64);
        disk.deallocate(ranges.subspan(0, 16), 1)?;
    }
    println!("{}: each kind of I/O does what it should", info.model);
    disk.detach()?;
    [data, zeroes].into_iter().for_each(|span| arena.give_back(span));
    arena.give_back(ranges);
    Ok(())
}

/// Many I/Os at a time.
struct Load {
    controller: Controller,
    queue: IoQueue,
    nsid: u32,
    block_bytes: u32,
    memory: DmaSpan,
    may_be_lost: bool,
    reconnected: bool,
}

impl Load {
    fn begin(options: Options, nsid: u32, arena: &'static Arena) -> Result<Self> {
        let memory = arena.carve((DEPTH * LARGEST) as usize, 4096)?;
        let mut controller = Controller::connect(options, arena)?;
        let namespace = controller.namespace(nsid)?;
        let room = namespace.block_count * u64::from(namespace.block_bytes);
        ensure!(room >= AREA_BYTES.into(), "the namespace is too small");
        ensure!(controller.info().max_transfer_bytes >= LARGEST, "1 MiB is too much for it");
        let queue = controller.open_queue()?;
        let block_bytes = namespace.block_bytes;
        let (may_be_lost, reconnected) = (false, false);
        Ok(Self { controller, queue, nsid, block_bytes, memory, may_be_lost, reconnected })
    }

    /// Writes the area in parts of `size`, then reads and compares them.
    fn round(&mut self, round: u32, size: u32) -> Result<()> {
        for op in [Op::Write { fua: false }, Op::Read] {
            let parts = AREA_BYTES / size;
            let mut due: VecDeque<u32> = (0..parts).collect();
            let mut free: Vec<u32> = (0..DEPTH).collect();
            let (mut done, mut part_of) = (0, [0; DEPTH as usize]);
            while done < parts {
                let now = Instant::now();
                while let (Some(&place), Some(&part)) = (free.last(), due.front()) {
                    let span = self.memory.subspan(place * LARGEST, size);
                    match op {
                        Op::Read => span.fill(0xEE),
                        _ => fill(span, round ^ part),
                    }
                    if self.queue.submit(now, &self.io(op, place, part, size)).is_err() {
                        break;
                    }
                    free.pop();
                    due.pop_front();
                    part_of[place as usize] = part;
                }
                self.turn(now)?;
                while let Some(Completion { tag: place, status }) = self.queue.completed() {
                    let part = part_of[place as usize];
                    free.push(place);
                    if status == Status::HOST_PATHING_ERROR && self.may_be_lost {
                        due.push_back(part);
                        continue;
                    }
                    ensure!(status.is_success(), "{op:?} of {size} bytes: {status}");
                    if op == Op::Read {
                        let span = self.memory.subspan(place * LARGEST, size);
                        compare(span, round ^ part).with_context(|| format!("part {part}"))?;
                    }
                    done += 1;
                }
            }
        }
        Ok(())
    }

    fn io(&self, op: Op, place: u32, part: u32, size: u32) -> Io {
        let blocks = size / self.block_bytes;
        let slba = u64::from(part) * u64::from(blocks);
        let data = self.memory.subspan(place * LARGEST, size).into();
        Io { tag: place, nsid: self.nsid, op, slba, block_count: blocks, data }
    }

    fn turn(&mut self, now: Instant) -> Result<()> {
        self.queue.poll(now);
        while let Some(event) = self.controller.poll(now) {
            match event {
                ControllerEvent::Lost(error) if self.may_be_lost => println!("lost: {error}"),
                ControllerEvent::Lost(error) | ControllerEvent::GaveUp(error) => {
                    return Err(error.into());
                }
                ControllerEvent::Reconnected => self.reconnected = true,
                _ => {}
            }
        }
        self.queue.wait(now, Duration::from_millis(5));
        Ok(())
    }
}

fn each_size(mut load: Load) -> Result<()> {
    for (round, size) in (1..).zip(SIZES) {
        load.round(round, size)?;
        println!("{size} bytes, {} at a time: as written", DEPTH.min(AREA_BYTES / size));
    }
    Ok(load.controller.detach()?)
}

fn through_loss(mut load: Load) -> Result<()> {
    load.may_be_lost = true;
    println!("until lost");
    let mut round = 0;
    while !load.reconnected {
        round += 1;
        load.round(round, 64 << 10)?;
    }
    load.round(round + 1, 64 << 10)?;
    println!("as written, through the loss, in {} rounds", round + 1);
    Ok(load.controller.detach()?)
}

/// Writes and reads until the controller is gone; each I/O ends once: done, refused because the
/// namespace has gone already, or lost.
fn until_lost(mut load: Load) -> Result<()> {
    let (mut done, mut refused, mut lost, mut on_the_way) = (0u32, 0u32, [0u32; 2], 0u32);
    let mut free: Vec<u32> = (0..DEPTH).collect();
    println!("until lost");
    while !load.queue.is_closed() || on_the_way > 0 {
        let now = Instant::now();
        while let Some(place) = free.pop() {
            let op = if place % 2 == 0 { Op::Read } else { Op::Write { fua: false } };
            if load.queue.submit(now, &load.io(op, place, place, 64 << 10)).is_err() {
                free.push(place);
                break;
            }
            on_the_way += 1;
        }
        load.queue.poll(now);
        while let Some(event) = load.controller.poll(now) {
            println!("{event:?}");
        }
        while let Some(completion) = load.queue.completed() {
            match completion.status {
                Status::SUCCESS => done += 1,
                Status::HOST_PATHING_ERROR => lost[(completion.tag % 2) as usize] += 1,
                status if is_gone(status) => refused += 1,
                status => bail!("ended with {status}"),
            }
            on_the_way -= 1;
            free.push(completion.tag);
        }
        load.queue.wait(now, Duration::from_millis(5));
    }
    if let Some(error) = load.queue.take_error() {
        println!("{error}");
    }
    ensure!(done > 0, "no I/O before the loss");
    println!("{done} done, {refused} refused; {} reads and {} writes lost", lost[0], lost[1]);
    Ok(())
}

fn is_gone(status: Status) -> bool {
    status.code_and_type() == Status::INVALID_NAMESPACE_OR_FORMAT
}

fn fill(span: DmaSpan, seed: u32) {
    for offset in (0..span.len()).step_by(4096) {
        let words: [u32; 1024] = std::array::from_fn(|at| word(seed, offset, at));
        span.write_obj(offset, &words);
    }
}

fn compare(span: DmaSpan, seed: u32) -> Result<()> {
    for offset in (0..span.len()).step_by(4096) {
        let words: [u32; 1024] = span.read_obj(offset);
        for (at, found) in words.into_iter().enumerate() {
            let wanted = word(seed, offset, at);
            ensure!(found == wanted, "{found:#x} instead of {wanted:#x} at {offset} + 4 * {at}");
        }
    }
    Ok(())
}

fn word(seed: u32, offset: u32, at: usize) -> u32 {
    (seed << 24 ^ offset ^ at as u32).wrapping_mul(0x9E37_79B1)
}
