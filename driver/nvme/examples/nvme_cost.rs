//! What the driver itself costs: submits and completes 4 KiB reads over completions that are there
//! already, without a controller.
//!
//! Usage: nvme_cost [TURNS [plain|shadow]]
//!
//! With doorbells in registers (plain) and with shadow doorbells, in rounds that alternate: prints
//! nanoseconds per command, the median of the rounds, and doorbells per command. For instructions
//! there is `tests/cost`: it runs this under callgrind, which collects in what is named measured.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dma::{Arena, DmaSpan};
use emulated_nvme::{EmulatedNvme, Setup};
use nvme::{Command, Config, IoQueuePair, NvmeDevice, Op, PciDevice, SeamError};
use nvme_spec::registers::{cq_head_doorbell, sq_tail_doorbell};

const DEPTH: u32 = 32;

/// Rounds of each kind.
const ROUNDS: u32 = 9;

/// Hands everything to an emulated controller that works only when stepped; doorbells of the I/O
/// queue later, so that the driver pays one store for each.
struct Counting {
    ssd: EmulatedNvme,
    doorbells: AtomicU64,
    /// Submission tail and completion head of queue 1, if rung since the last step.
    rung: [AtomicU32; 2],
}

/// No value of a doorbell.
const SILENT: u32 = u32::MAX;

/// The doorbells of queue 1, with a stride of 4 bytes.
const IO_DOORBELLS: [u32; 2] = [sq_tail_doorbell(1, 0), cq_head_doorbell(1, 0)];

impl Counting {
    /// The controller's turn.
    fn step(&self) {
        for (register, rung) in IO_DOORBELLS.into_iter().zip(&self.rung) {
            match rung.swap(SILENT, Ordering::Relaxed) {
                SILENT => {}
                value => self.ssd.write32(register, value),
            }
        }
        self.ssd.step();
    }
}

impl PciDevice for Counting {
    fn name(&self) -> String {
        self.ssd.name()
    }

    fn ids(&self) -> (u16, u16) {
        self.ssd.ids()
    }

    fn register_bytes(&self) -> usize {
        self.ssd.register_bytes()
    }

    fn read32(&self, offset: u32) -> u32 {
        self.ssd.read32(offset)
    }

    #[inline]
    fn write32(&self, offset: u32, value: u32) {
        match IO_DOORBELLS.iter().position(|&register| register == offset) {
            Some(index) => {
                self.doorbells.fetch_add(1, Ordering::Relaxed);
                self.rung[index].store(value, Ordering::Relaxed);
            }
            None => self.ssd.write32(offset, value),
        }
    }

    fn set_bus_master(&self, on: bool) -> Result<(), SeamError> {
        self.ssd.set_bus_master(on)
    }

    fn begin_reset(&self) -> Result<(), SeamError> {
        self.ssd.begin_reset()
    }

    fn poll_reset(&self) -> Option<Result<(), SeamError>> {
        self.ssd.poll_reset()
    }

    fn unmap_arena(&self) -> Result<(), SeamError> {
        self.ssd.unmap_arena()
    }

    fn take_removal_request(&self) -> bool {
        false
    }
}

fn main() -> Result<()> {
    let turns: u32 = std::env::args().nth(1).map_or(Ok(20_000), |text| text.parse())?;
    let only = std::env::args().nth(2);
    let mut benches = Vec::new();
    for (name, shadow_doorbells) in [("plain", false), ("shadow", true)] {
        if only.as_deref().is_none_or(|only| only == name) {
            benches.push(Bench::new(name, shadow_doorbells)?);
        }
    }
    for _ in 0..ROUNDS {
        for bench in &mut benches {
            bench.round(turns.div_ceil(ROUNDS))?;
        }
    }
    benches.iter_mut().for_each(Bench::report);
    Ok(())
}

/// One way to tell the controller of commands.
struct Bench {
    name: &'static str,
    device: Arc<Counting>,
    nvme: NvmeDevice<Counting>,
    pair: IoQueuePair<Counting>,
    data: DmaSpan,
    commands: u64,
    /// Of each round.
    ns_per_command: Vec<f64>,
}

impl Bench {
    fn new(name: &'static str, shadow_doorbells: bool) -> Result<Self> {
        let arena = Arena::plain_pages(16 << 20)?;
        let setup = Setup { stepped: true, shadow_doorbells, ..Setup::default() };
        let ssd = EmulatedNvme::new(arena, setup);
        let rung = [AtomicU32::new(SILENT), AtomicU32::new(SILENT)];
        let device = Arc::new(Counting { ssd, doorbells: AtomicU64::new(0), rung });
        let nvme = NvmeDevice::bring_up(Arc::clone(&device), arena, Config::default())?;
        let pair = nvme.queues().take(nvme.namespaces()).context("no queue pair")?;
        let data = arena.carve(4096, 4096)?;
        let ns_per_command = Vec::new();
        Ok(Self { name, device, nvme, pair, data, commands: 0, ns_per_command })
    }

    fn round(&mut self, turns: u32) -> Result<()> {
        let mut spent = Duration::ZERO;
        for turn in 0..turns {
            let began = Instant::now();
            measured_submit(&mut self.pair, self.data, turn);
            measured_poll(&mut self.pair, began);
            spent += began.elapsed();
            self.device.step();
            let began = Instant::now();
            measured_poll(&mut self.pair, began);
            let ended = measured_completed(&mut self.pair);
            spent += began.elapsed();
            ensure!(ended == DEPTH, "{ended} of {DEPTH} commands ended");
        }
        self.nvme.poll(Instant::now());
        let commands = u64::from(turns) * u64::from(DEPTH);
        self.commands += commands;
        self.ns_per_command.push(spent.as_nanos() as f64 / commands as f64);
        Ok(())
    }

    fn report(&mut self) {
        self.ns_per_command.sort_by(f64::total_cmp);
        let ns = self.ns_per_command[self.ns_per_command.len() / 2];
        let doorbells = self.device.doorbells.load(Ordering::Relaxed) as f64;
        let Self { name, commands, .. } = self;
        println!(
            "{name}: {commands} commands, {ns:.1} ns and {:.3} doorbells each",
            doorbells / *commands as f64
        );
    }
}

#[inline(never)]
fn measured_submit(pair: &mut IoQueuePair<Counting>, data: DmaSpan, turn: u32) {
    for tag in 0..DEPTH {
        let slba = u64::from((turn * DEPTH + tag) % 1024) * 8;
        let command =
            Command { tag, nsid: 1, op: Op::Read, slba, block_count: 8, data: Some(data) };
        assert!(pair.submit(black_box(command)).is_ok());
    }
}

#[inline(never)]
fn measured_poll(pair: &mut IoQueuePair<Counting>, now: Instant) {
    pair.poll(now);
}

#[inline(never)]
fn measured_completed(pair: &mut IoQueuePair<Counting>) -> u32 {
    let mut ended = 0;
    while let Some(completion) = pair.completed() {
        assert!(black_box(completion).status.is_success());
        ended += 1;
    }
    ended
}
