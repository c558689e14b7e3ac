//! What the driver itself costs: submits and completes 4 KiB reads over completions that are there
//! already, without a controller.
//!
//! Usage: nvme_cost [TURNS]
//!
//! Prints nanoseconds per command and doorbells per command. For instructions per command, run it
//! under `valgrind --tool=callgrind --toggle-collect='*measured*'` and divide by the commands that
//! it prints.

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

/// Hands everything to an emulated controller that works only when stepped; doorbells of the I/O
/// queue later, so that the driver pays one store for each.
struct Counting {
    ssd: EmulatedNvme,
    doorbells: AtomicU64,
    /// Submission tail and completion head of queue 1.
    rung: [AtomicU32; 2],
}

/// The doorbells of queue 1, with a stride of 4 bytes.
const IO_DOORBELLS: [u32; 2] = [sq_tail_doorbell(1, 0), cq_head_doorbell(1, 0)];

impl Counting {
    /// The controller's turn.
    fn step(&self) {
        for (register, value) in IO_DOORBELLS.into_iter().zip(&self.rung) {
            self.ssd.write32(register, value.load(Ordering::Relaxed));
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

    fn reset(&self) -> Result<(), SeamError> {
        self.ssd.reset()
    }

    fn take_removal_request(&self) -> bool {
        false
    }
}

fn main() -> Result<()> {
    let turns: u32 = std::env::args().nth(1).map_or(Ok(20_000), |text| text.parse())?;
    let arena = Arena::plain_pages(16 << 20)?;
    let setup = Setup { stepped: true, ..Setup::default() };
    let ssd = EmulatedNvme::new(arena, setup);
    let device = Arc::new(Counting { ssd, doorbells: AtomicU64::new(0), rung: Default::default() });
    let mut nvme = NvmeDevice::bring_up(Arc::clone(&device), arena, Config::default())?;
    let mut pair = nvme.queues().take(nvme.namespaces()).context("no queue pair")?;
    let data = arena.carve(4096, 4096)?;
    let mut spent = Duration::ZERO;
    for turn in 0..turns {
        let began = Instant::now();
        measured_submit(&mut pair, data, turn);
        measured_poll(&mut pair, began);
        spent += began.elapsed();
        device.step();
        let began = Instant::now();
        measured_poll(&mut pair, began);
        let ended = measured_completed(&mut pair);
        spent += began.elapsed();
        ensure!(ended == DEPTH, "{ended} of {DEPTH} commands ended");
    }
    nvme.poll(Instant::now());
    let commands = u64::from(turns) * u64::from(DEPTH);
    let doorbells = device.doorbells.load(Ordering::Relaxed);
    println!(
        "{commands} commands, {:.1} ns and {:.3} doorbells each",
        spent.as_nanos() as f64 / commands as f64,
        doorbells as f64 / commands as f64
    );
    Ok(())
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
