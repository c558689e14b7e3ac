//! One core's load: so many I/Os in flight, until a list of blocks is done.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bdev::{Busy, Channel, Completion, Completions, Io, Op};
use dma::DmaSpan;
use hdrhistogram::Histogram;
use volume::{Done, Lane};

/// Bytes of a block, here and on all devices.
pub const BLOCK: u32 = 4096;

/// What takes I/Os and is polled.
pub trait Way {
    fn submit(&mut self, io: Io) -> Result<(), Busy>;
    fn poll(&mut self, now: Instant, done: &mut Vec<Completion>);
}

/// A block device.
pub struct Bare {
    channel: Box<dyn Channel>,
    completions: Completions,
}

impl Bare {
    pub fn new(channel: Box<dyn Channel>) -> Self {
        Self { channel, completions: Completions::with_capacity(64) }
    }
}

impl Way for Bare {
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        self.channel.submit(io)
    }

    fn poll(&mut self, now: Instant, done: &mut Vec<Completion>) {
        self.channel.poll(now, &mut self.completions);
        while let Some(completion) = self.completions.pop() {
            done.push(completion);
        }
    }
}

/// A volume.
pub struct OfVolume<'a> {
    pub lane: &'a mut Lane,
    pub channel: u32,
    pub done: Vec<Done>,
}

impl Way for OfVolume<'_> {
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        self.lane.submit(self.channel, io)
    }

    fn poll(&mut self, now: Instant, done: &mut Vec<Completion>) {
        self.lane.poll(now, &mut self.done);
        done.extend(self.done.drain(..).map(|done| done.completion));
    }
}

/// What is to be done.
pub struct Load<'a> {
    pub op: Op,
    /// Where each I/O begins, in its own length.
    pub places: &'a [u32],
    /// Blocks of each.
    pub blocks: u32,
    pub depth: u32,
    /// As long as `depth` I/Os.
    pub data: DmaSpan,
}

/// How it went.
pub struct Run {
    pub ios: u64,
    pub elapsed: Duration,
    /// What the process had of its core.
    pub busy: Duration,
    /// Nanoseconds of each, from the turn that it was submitted in to the end of the one in which
    /// it ended.
    pub latency: Histogram<u64>,
}

impl Run {
    pub fn iops(&self) -> f64 {
        self.ios as f64 / self.elapsed.as_secs_f64()
    }

    /// In a second of the core: where nothing is waited for, the same on a machine with nothing
    /// else to do.
    pub fn busy_iops(&self) -> f64 {
        self.ios as f64 / self.busy.as_secs_f64()
    }

    pub fn mean_ns(&self) -> f64 {
        self.elapsed.as_nanos() as f64 / self.ios as f64
    }

    pub fn busy_ns(&self) -> f64 {
        self.busy.as_nanos() as f64 / self.ios as f64
    }

    pub fn p99_ns(&self) -> f64 {
        self.latency.value_at_quantile(0.99) as f64
    }
}

/// Runs a load to its end.
pub fn run<W: Way>(way: &mut W, load: &Load<'_>) -> anyhow::Result<Run> {
    let mut free: Vec<u32> = (0..load.depth).rev().collect();
    let mut began = vec![Instant::now(); load.depth as usize];
    let mut done = Vec::with_capacity(load.depth as usize);
    let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    let bytes = load.blocks * BLOCK;
    let (mut next, mut ended) = (0, 0);
    let busy = on_core()?;
    let start = Instant::now();
    let mut now = start;
    while ended < load.places.len() {
        while next < load.places.len()
            && let Some(slot) = free.pop()
        {
            let slba = u64::from(load.places[next]) * u64::from(load.blocks);
            let buffer = Some(load.data.subspan(slot * bytes, bytes));
            let io = Io { tag: slot, op: load.op, slba, block_count: load.blocks, buffer };
            if way.submit(io).is_err() {
                free.push(slot);
                break;
            }
            began[slot as usize] = now;
            next += 1;
        }
        way.poll(now, &mut done);
        now = Instant::now();
        for Completion { tag, status } in done.drain(..) {
            ensure!(status.is_success(), "an I/O ended with {status:?}");
            latency.saturating_record((now - began[tag as usize]).as_nanos() as u64);
            free.push(tag);
            ended += 1;
        }
    }
    let (ios, elapsed) = (load.places.len() as u64, start.elapsed());
    Ok(Run { ios, elapsed, busy: on_core()? - busy, latency })
}

/// How long this thread has had a core so far.
pub fn on_core() -> anyhow::Result<Duration> {
    // The kernel's count is exact only when it has just looked.
    std::thread::yield_now();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = stat.split(' ').next().context("/proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}
