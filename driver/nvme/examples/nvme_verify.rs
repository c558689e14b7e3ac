//! Takes an SSD from the kernel, checks the driver on it, and gives it back. Everything on one of
//! its namespaces (the first, unless told otherwise) is overwritten.
//!
//! Usage: nvme_verify BDF [--force] [NSID]
//!
//! The last line is `nvme_verify: ok`, or the error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dma::{Arena, DmaSpan};
use nvme::{Command, Completion, Config, Health, IoQueuePair, Namespace, NvmeDevice, Op};
use nvme_spec::nvm::DsmRange;
use nvme_spec::status::Status;
use vfio::Device;
use vfio::pci::{Bdf, System};

const ARENA_BYTES: usize = 160 << 20;
const DEPTH: u32 = 32;
const MAX_IO_BYTES: u32 = 1 << 20;
/// Fewer than a device may have within a minute.
const RESETS: u32 = 3;

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: nvme_verify BDF [--force] [NSID]";
    let bdf: Bdf = arguments.next().context(usage)?.parse()?;
    let (mut force, mut nsid) = (false, 1);
    for argument in arguments {
        match argument.as_str() {
            "--force" => force = true,
            text => nsid = text.parse().context(usage)?,
        }
    }
    let system = System::default();
    let before = system.controller(bdf)?;
    println!("found {bdf}: {:?}, serial {:?}", before.model, before.serial);
    system.bind(bdf, force)?;
    let outcome = verify(bdf, nsid);
    let released = system.release(bdf);
    outcome?;
    println!("released to {:?}", released?.driver);
    println!("nvme_verify: ok");
    Ok(())
}

fn verify(bdf: Bdf, nsid: u32) -> Result<()> {
    let arena = Arena::hugepages(ARENA_BYTES)?;
    let pci = Arc::new(Device::open(bdf, arena)?);
    let config = Config { cores: 2, ..Config::default() };
    let mut device = NvmeDevice::bring_up(pci, arena, config)?;
    println!("identity {:?}", device.identity());
    println!("namespaces {:?}", device.namespaces());
    let smart = device.smart().context("no SMART log")?;
    println!("smart: {} K", smart.temperature_kelvin.get());
    let namespaces = device.namespaces().to_vec();
    let namespace = namespace_of(&device, nsid)?;
    let pool = device.queues();
    let take = || pool.take(&namespaces).context("no queue pair left");
    let half = namespace.block_count / 2;
    let mut lanes =
        [Lane::new(take()?, arena, namespace, 0)?, Lane::new(take()?, arena, namespace, half)?];

    single_commands(&mut lanes[0])?;
    both_queue_pairs(&mut device, lanes)?;

    for (index, stats) in pool.stats().iter().take(2).enumerate() {
        println!("queue {}: {stats:?}", index + 1);
        ensure!(stats.completions > 1000, "queue {} was hardly used", index + 1);
        ensure!(stats.doorbells < stats.submissions, "doorbells are not batched");
        ensure!(stats.stale == 0, "stale completions");
    }
    device.close();
    reopened(arena, bdf, nsid)
}

fn namespace_of(device: &NvmeDevice<Device>, nsid: u32) -> Result<Namespace> {
    let found = device.namespaces().iter().find(|namespace| namespace.nsid == nsid);
    found.copied().with_context(|| format!("no namespace {nsid} to test"))
}

/// One queue pair on its part of the namespace.
struct Lane {
    pair: IoQueuePair<Device>,
    namespace: Namespace,
    memory: DmaSpan,
    first_block: u64,
}

impl Lane {
    fn new(
        pair: IoQueuePair<Device>,
        arena: &'static Arena,
        namespace: Namespace,
        first_block: u64,
    ) -> Result<Self> {
        let memory = arena.carve((DEPTH * MAX_IO_BYTES) as usize, 4096)?;
        Ok(Self { pair, namespace, memory, first_block })
    }

    fn command(
        &self,
        op: Op,
        tag: u32,
        slba: u64,
        block_count: u32,
        data: Option<DmaSpan>,
    ) -> Command {
        let slba = self.first_block + slba;
        Command { tag, nsid: self.namespace.nsid, op, slba, block_count, data }
    }

    /// Runs one command to its end.
    fn run(&mut self, command: Command) -> Result<Status> {
        ensure!(self.pair.submit(command).is_ok(), "an empty queue is busy");
        Ok(self.next()?.status)
    }

    fn next(&mut self) -> Result<Completion> {
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            let now = Instant::now();
            self.pair.poll(now);
            if let Some(completion) = self.pair.completed() {
                return Ok(completion);
            }
            ensure!(now < limit, "no completion within 20 s");
        }
    }

    fn all_sizes(&mut self) -> Result<()> {
        for bytes in [512, 4096, 12 << 10, 64 << 10, 128 << 10, 516 << 10, 1 << 20] {
            if bytes >= self.namespace.block_bytes {
                let retries = self.sweep(bytes, ((24 << 20) / bytes).min(1000), 7)?;
                ensure!(retries == 0, "retries without a reset");
            }
        }
        Ok(())
    }

    /// Writes and reads back `count` I/Os of `bytes` each, `DEPTH` at a time. Commands that a reset
    /// ended are sent again; returns how many.
    fn sweep(&mut self, bytes: u32, count: u32, seed: u8) -> Result<u32> {
        let mut retries = 0;
        for op in [Op::Write { fua: false }, Op::Read] {
            let (mut sent, mut done) = (0, 0);
            let mut again = Vec::new();
            let mut free: Vec<u32> = (0..DEPTH).rev().collect();
            let mut index_of = [0; DEPTH as usize];
            while done < count {
                while let Some(&slot) = free.last() {
                    let Some(index) = again.pop().or_else(|| (sent < count).then_some(sent)) else {
                        break;
                    };
                    let data = self.memory.subspan(slot * MAX_IO_BYTES, bytes);
                    match op {
                        Op::Read => data.fill(0),
                        _ => data.write(0, &pattern(index, bytes, seed)),
                    }
                    let blocks = bytes / self.namespace.block_bytes;
                    let slba = u64::from(index) * u64::from(blocks);
                    if self.pair.submit(self.command(op, slot, slba, blocks, Some(data))).is_err() {
                        again.push(index);
                        break;
                    }
                    sent += u32::from(index == sent);
                    index_of[slot as usize] = index;
                    free.pop();
                }
                ensure!(free.len() < DEPTH as usize, "busy with nothing in flight");
                let Completion { tag, status } = self.next()?;
                let index = index_of[tag as usize];
                free.push(tag);
                if status == Status::COMMAND_INTERRUPTED {
                    retries += 1;
                    again.push(index);
                    continue;
                }
                ensure!(status.is_success(), "{op:?} {index} of {bytes} bytes: {status}");
                if op == Op::Read {
                    let mut got = vec![0; bytes as usize];
                    self.memory.read(tag * MAX_IO_BYTES, &mut got);
                    ensure!(got == pattern(index, bytes, seed), "wrong bytes in I/O {index}");
                }
                done += 1;
            }
        }
        Ok(retries)
    }
}

/// A device that was closed can be opened again.
fn reopened(arena: &'static Arena, bdf: Bdf, nsid: u32) -> Result<()> {
    let pci = Arc::new(Device::open(bdf, arena)?);
    let device = NvmeDevice::bring_up(pci, arena, Config::default())?;
    let namespace = namespace_of(&device, nsid)?;
    let pair = device.queues().take(&[namespace]).context("no queue pair left")?;
    let mut lane = Lane::new(pair, arena, namespace, 0)?;
    lane.sweep(4096, 100, 99)?;
    drop(lane);
    device.close();
    println!("reopened");
    Ok(())
}

fn pattern(index: u32, bytes: u32, seed: u8) -> Vec<u8> {
    let word = (u64::from(index) << 8 | u64::from(seed)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..u64::from(bytes / 8)).flat_map(|at| (word ^ at).to_le_bytes()).collect()
}

fn single_commands(lane: &mut Lane) -> Result<()> {
    let block = lane.namespace.block_bytes;
    let data = lane.memory.subspan(4, 16 * block);
    let bytes = pattern(1, 16 * block, 1);
    data.write(0, &bytes);
    let expect = |what: &str, got: Status, wanted: Status| {
        println!("{what}: {got}");
        if got.code_and_type() == wanted { Ok(()) } else { bail!("{what}: {got}, not {wanted}") }
    };
    let command = lane.command(Op::Write { fua: true }, 1, 0, 16, Some(data));
    expect("write with FUA", lane.run(command)?, Status::SUCCESS)?;
    let compare = lane.command(Op::Compare, 2, 0, 16, Some(data));
    expect("compare", lane.run(compare)?, Status::SUCCESS)?;
    data.write(100, &[!bytes[100]]);
    expect("compare with a difference", lane.run(compare)?, Status::COMPARE_FAILURE)?;
    expect("flush", lane.run(lane.command(Op::Flush, 3, 0, 0, None))?, Status::SUCCESS)?;
    let zeroes = Op::WriteZeroes { deallocate: false, fua: false };
    expect("write zeroes", lane.run(lane.command(zeroes, 4, 0, 8, None))?, Status::SUCCESS)?;
    expect("read", lane.run(lane.command(Op::Read, 5, 0, 16, Some(data)))?, Status::SUCCESS)?;
    let mut got = vec![0; 16 * block as usize];
    data.read(0, &mut got);
    let half = 8 * block as usize;
    ensure!(got[..half].iter().all(|&byte| byte == 0), "written zeroes are not zero");
    ensure!(got[half..] == bytes[half..], "blocks beside the zeroes changed");
    let range = DsmRange { attributes: 0.into(), block_count: 8.into(), slba: 8.into() };
    data.write_obj(0, &range);
    let deallocate = lane.command(Op::Deallocate { ranges: 1 }, 6, 0, 0, Some(data));
    expect("deallocate", lane.run(deallocate)?, Status::SUCCESS)?;
    let beyond = lane.namespace.block_count;
    let beyond = lane.run(lane.command(Op::Read, 7, beyond, 1, Some(data)))?;
    expect("read beyond the end", beyond, Status::LBA_OUT_OF_RANGE)
}

/// Two threads, a queue pair each: all sizes, then the same size until the controller was reset
/// under them a few times.
fn both_queue_pairs(device: &mut NvmeDevice<Device>, lanes: [Lane; 2]) -> Result<()> {
    let sizes_done = Barrier::new(2);
    let (under_load, resets_done) = (AtomicBool::new(false), AtomicBool::new(false));
    let retries = std::thread::scope(|scope| -> Result<u32> {
        let workers = lanes.map(|mut lane| {
            let (under_load, resets_done, sizes_done) = (&under_load, &resets_done, &sizes_done);
            scope.spawn(move || -> Result<u32> {
                let sizes = lane.all_sizes();
                // No reset before both are done, even when one failed.
                sizes_done.wait();
                sizes?;
                under_load.store(true, Ordering::Relaxed);
                let (mut retries, mut round) = (0, 0u8);
                while !resets_done.load(Ordering::Relaxed) {
                    retries += lane.sweep(4096, 1000, round)?;
                    round = round.wrapping_add(1);
                }
                Ok(retries)
            })
        });
        let mut resets = 0;
        while !workers.iter().all(|worker| worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(2));
            device.poll(Instant::now());
            if device.health() == Health::Failed {
                resets_done.store(true, Ordering::Relaxed);
                bail!("given up: {:?}", device.fault());
            }
            if !under_load.load(Ordering::Relaxed) || device.health() != Health::Live {
                continue;
            }
            if resets == RESETS {
                resets_done.store(true, Ordering::Relaxed);
            } else {
                std::thread::sleep(Duration::from_millis(100));
                device.reset(Instant::now());
                resets += 1;
            }
        }
        println!("{resets} resets under load");
        let mut total = 0;
        for worker in workers {
            let retries = worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?;
            total += retries?;
        }
        Ok(total)
    })?;
    println!("verified on two queue pairs; {retries} commands sent again after resets");
    ensure!(retries > 0, "no reset met a command in flight");
    Ok(())
}
