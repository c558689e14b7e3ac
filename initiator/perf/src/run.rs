//! Runs a job: opens what it needs, starts a lane on each core, looks after them, adds up.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bdev::Bdev;
use dma::{Arena, DmaSpan};
use rand::Rng as _;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng as _;
use reactor::{Health, IdlePolicy, Reactor};

use crate::checker::{self, Checked, Checker};
use crate::error::PerfError;
use crate::expect::Expect;
use crate::job::Job;
use crate::lane::{Lane, Order, Outcome, Pace, Setup, Shared, Source, Window};
use crate::limits::{MAX_DEPTH, TICK};
use crate::log::{AckLog, Coverage, LogError, now_us};
use crate::tally::{Counts, Tally};
use crate::workload::{Generator, Kind, part};

/// What a job has come to.
#[derive(Debug)]
pub struct Ran {
    /// Everything that was counted.
    pub tally: Tally,
    /// How long was measured.
    pub measured: Duration,
    /// What was done in each second or so of that.
    pub series: Vec<Sample>,
    /// I/Os that were due and never begun.
    pub owed: u64,
    /// I/Os that were given up.
    pub stalled: usize,
    /// Somebody asked for the end before it came.
    pub is_interrupted: bool,
    /// Why the log could not be written.
    pub log_error: Option<LogError>,
    /// What was checked, if anything.
    pub checked: Option<Checked>,
}

/// What was done between two looks at the cores.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it ends, from the beginning of measuring.
    pub end: Duration,
    /// How long it is.
    pub length: Duration,
    /// What was completed in it.
    pub counts: Counts,
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// From the start.
    pub elapsed: Duration,
    /// Of that, before measuring began.
    pub warm_up: Duration,
    /// From the start to the end, where that is known.
    pub total: Option<Duration>,
    /// What was completed since measuring began.
    pub counts: Counts,
    /// Bytes to be moved, where that is known.
    pub total_bytes: Option<u64>,
    /// I/Os that failed.
    pub failures: u64,
    /// It reads back what was written.
    pub is_sweep: bool,
}

/// What a run needs from outside.
pub struct Surroundings<'a> {
    /// Memory for the data.
    pub arena: &'static Arena,
    /// Set when the run is to end.
    pub stop: &'a AtomicBool,
    /// Looks after the target.
    pub poll: &'a mut dyn FnMut(Instant),
    /// Is told how far the run is, some ten times a second.
    pub progress: &'a mut dyn FnMut(&Progress),
}

/// Bytes of data that a job has in flight.
pub fn data_bytes(cores: usize, depth: usize, max_bytes: u32) -> u64 {
    cores as u64 * depth as u64 * u64::from(max_bytes.next_multiple_of(4096))
}

/// Runs a job's workload on a block device.
///
/// With verification whatever is read is checked, and what was written is read back at the end; a
/// bad block ends the run, so that all blocks stay as they were found.
///
/// # Errors
/// The job does not suit the device, or the log, or there is no core or memory for it.
pub fn run(job: &Job, bdev: &dyn Bdev, around: &mut Surroundings<'_>) -> Result<Ran, PerfError> {
    let geometry = bdev.geometry();
    let blocks = job.blocks(&geometry)?;
    let block_bytes = geometry.block_bytes;
    let mut log = match &job.verify {
        Some(path) => {
            let coverage = Coverage {
                block_bytes,
                first_block: blocks.start,
                block_count: blocks.end - blocks.start,
            };
            Some(AckLog::open_or_create(path, coverage, job.seed)?)
        }
        None => None,
    };
    let cores = job.cpus.len();
    let unit = u64::from(job.workload.max_bytes() / block_bytes);
    let parts: Vec<_> = (0..cores).map(|core| part(&blocks, unit, core, cores)).collect();
    let kinds = job.workload.kinds();
    let memory = Memory::take(around.arena, cores, job.depth, job.workload.max_bytes(), job.seed)?;
    let mut known = match &mut log {
        Some(log) => split(std::mem::take(&mut log.blocks), &parts),
        None => Vec::new(),
    };
    let mut setups = Vec::new();
    for (core, part) in parts.iter().enumerate() {
        let known = known.get_mut(core).map(std::mem::take).unwrap_or_default();
        setups.push(Setup {
            channel: bdev.open_channel(core)?,
            source: Source::Load(Box::new(Generator::new(
                &job.workload,
                job.seed,
                core,
                part.clone(),
                block_bytes,
            ))),
            checker: log.as_ref().map(|log| load_checker(log, job, core, part.start, known)),
            buffers: memory.buffers[core].clone(),
            block_bytes,
            fua: job.workload.fua,
            window: window(job, core),
            pace: pace(job, core),
            tally: Tally::new(&kinds),
            start_us: 0,
        });
    }
    let total = job.runtime.map(|runtime| job.warm_up + runtime);
    let (cpus, warm_up) = (&job.cpus, job.warm_up);
    let plan = Plan { cpus, warm_up, total, bytes: job.bytes, is_sweep: false };
    let ends = drive(setups, &plan, around)?;
    let mut ran = add_up(ends);
    if let Some(log) = log
        && ran.is_good()
        && !ran.ran.is_interrupted
    {
        let known = std::mem::take(&mut ran.known);
        let sweep = Sweep { cpus: &job.cpus, buffers: &memory.buffers, seed: log.seed };
        let again = sweep.run(bdev, &log.coverage, known, around)?;
        ran.absorb(again);
    }
    memory.give_back(ran.ran.stalled);
    Ok(ran.ran)
}

/// Reads everything that a log knows of, and checks it.
///
/// # Errors
/// The log is not of this device, or there is no core or memory for it.
pub fn verify(
    log: AckLog,
    bdev: &dyn Bdev,
    cpus: &[usize],
    (depth, max_bytes): (usize, u32),
    around: &mut Surroundings<'_>,
) -> Result<Ran, PerfError> {
    let geometry = bdev.geometry();
    let coverage = log.coverage;
    let here = Coverage {
        block_bytes: geometry.block_bytes,
        first_block: coverage.first_block,
        block_count: geometry.block_count.saturating_sub(coverage.first_block),
    };
    if here.block_bytes != coverage.block_bytes || here.block_count < coverage.block_count {
        let path = log.path().to_owned();
        return Err(LogError::OtherBlocks { path, log: coverage, wanted: here }.into());
    }
    let memory = Memory::take(around.arena, cpus.len(), depth, max_bytes, log.seed)?;
    let sweep = Sweep { cpus, buffers: &memory.buffers, seed: log.seed };
    let ran = sweep.run(bdev, &coverage, log.blocks, around)?;
    memory.give_back(ran.ran.stalled);
    Ok(ran.ran)
}

/// What is added up, and what is known of the blocks at the end.
struct Sum {
    ran: Ran,
    known: Vec<Expect>,
}

impl Sum {
    fn is_good(&self) -> bool {
        let is_wrong = |checked: &Checked| checked.bad_blocks > 0;
        self.ran.stalled == 0
            && self.ran.log_error.is_none()
            && !self.ran.checked.as_ref().is_some_and(is_wrong)
    }

    /// Takes over what a sweep has come to; its figures are not those of the job.
    fn absorb(&mut self, sweep: Sum) {
        let Ran { tally, stalled, is_interrupted, checked, .. } = sweep.ran;
        self.ran.tally.failures += tally.failures;
        self.ran.tally.first_failure = self.ran.tally.first_failure.or(tally.first_failure);
        self.ran.stalled += stalled;
        self.ran.is_interrupted |= is_interrupted;
        if let (Some(mine), Some(theirs)) = (&mut self.ran.checked, checked) {
            mine.add(theirs);
        }
    }
}

/// Reading everything that is known.
struct Sweep<'a> {
    cpus: &'a [usize],
    buffers: &'a [Vec<DmaSpan>],
    seed: u64,
}

impl Sweep<'_> {
    fn run(
        &self,
        bdev: &dyn Bdev,
        coverage: &Coverage,
        known: Vec<Expect>,
        around: &mut Surroundings<'_>,
    ) -> Result<Sum, PerfError> {
        let Coverage { block_bytes, first_block, block_count } = *coverage;
        let cores = self.cpus.len();
        let known_blocks = known.iter().filter(|block| block.is_known()).count() as u64;
        let bytes = known_blocks * u64::from(block_bytes);
        let covered = first_block..first_block + block_count;
        let parts: Vec<_> = (0..cores).map(|core| part(&covered, 1, core, cores)).collect();
        let known = split(known, &parts);
        let mut setups = Vec::new();
        for ((core, part), blocks) in parts.iter().enumerate().zip(known) {
            let max_bytes = self.buffers[core].first().map_or(0, DmaSpan::len);
            let checker = Checker::new(checker::Setup {
                block_bytes,
                seed: self.seed,
                first_block: part.start,
                blocks,
                max_bytes,
                generations: (0, 0),
                log: None,
            });
            let max_blocks = max_bytes / block_bytes;
            setups.push(Setup {
                channel: bdev.open_channel(core)?,
                source: Source::Sweep { next: part.start, end: part.end, max_blocks },
                checker: Some(checker),
                buffers: self.buffers[core].clone(),
                block_bytes,
                fua: false,
                window: Window { start_ns: 0, end_ns: u64::MAX, bytes: u64::MAX },
                pace: Pace::Closed,
                tally: Tally::new(&[Kind::Read]),
                start_us: 0,
            });
        }
        let (cpus, warm_up) = (self.cpus, Duration::ZERO);
        let plan = Plan { cpus, warm_up, total: None, bytes: Some(bytes), is_sweep: true };
        Ok(add_up(drive(setups, &plan, around)?))
    }
}

/// When lanes run, and on which CPUs.
struct Plan<'a> {
    cpus: &'a [usize],
    warm_up: Duration,
    total: Option<Duration>,
    bytes: Option<u64>,
    is_sweep: bool,
}

/// What the lanes have come to.
struct Ends {
    outcomes: Vec<Outcome>,
    series: Vec<Sample>,
    is_interrupted: bool,
}

/// Starts the lanes, and waits for them.
fn drive(
    setups: Vec<Setup>,
    plan: &Plan<'_>,
    around: &mut Surroundings<'_>,
) -> Result<Ends, PerfError> {
    let mut lanes = Vec::new();
    let start_us = now_us();
    for (setup, &cpu) in setups.into_iter().zip(plan.cpus) {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let setup = Setup { start_us, ..setup };
        let name = format!("perf-{}", lanes.len());
        let make = move || Lane::new(setup, theirs);
        lanes.push((Reactor::spawn(&name, cpu, 2, IdlePolicy::SPIN, make)?, shared));
    }
    let start = Instant::now();
    let order = |order: Order| {
        for (reactor, _) in &lanes {
            // An inbox has room for the two orders that there are.
            let _ = reactor.send(order);
        }
    };
    order(Order::Start(start));
    let mut watch = Watch::new(start, plan);
    let mut is_interrupted = false;
    let mut is_ending = false;
    loop {
        std::thread::sleep(TICK);
        let now = Instant::now();
        (around.poll)(now);
        let ended = |shared: &Shared| shared.has_ended.load(Ordering::Acquire);
        let count = lanes.iter().filter(|(_, shared)| ended(shared)).count();
        if let Some(core) = lanes.iter().position(|(lane, _)| lane.health() == Health::Panicked) {
            return Err(PerfError::Panicked { core });
        }
        let is_over = count == lanes.len();
        let shared = lanes.iter().map(|(_, shared)| shared.as_ref());
        watch.look(now, is_over, shared, around.progress);
        if is_over {
            break;
        }
        // A lane that found a bad block has ended, and the others follow.
        let is_wanted = around.stop.load(Ordering::Relaxed);
        let is_over = is_wanted || lanes.iter().any(|(_, shared)| has_failed(shared));
        if is_over && !is_ending {
            is_ending = true;
            is_interrupted = is_wanted;
            order(Order::Stop);
        }
    }
    // The reactors first: their channels must be gone before the target is.
    let shared: Vec<_> = lanes.into_iter().map(|(_, shared)| shared).collect();
    let take = |shared: &Arc<Shared>| {
        shared.outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    };
    let outcomes = shared.iter().filter_map(take).collect();
    Ok(Ends { outcomes, series: watch.series, is_interrupted })
}

/// Whether a lane has ended in a way that ends the others.
fn has_failed(shared: &Shared) -> bool {
    if !shared.has_ended.load(Ordering::Acquire) {
        return false;
    }
    let outcome = shared.outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    outcome.as_ref().is_some_and(|outcome| {
        let checker = outcome.checker.as_ref();
        outcome.log_error.is_some() || checker.is_some_and(|one| one.checked().bad_blocks > 0)
    })
}

/// Looks at what the lanes show.
struct Watch {
    start: Instant,
    warm_up: Duration,
    total: Option<Duration>,
    total_bytes: Option<u64>,
    is_sweep: bool,
    series: Vec<Sample>,
    last: (Duration, Counts),
    shown: Duration,
}

impl Watch {
    fn new(start: Instant, plan: &Plan<'_>) -> Self {
        Self {
            start,
            warm_up: plan.warm_up,
            total: plan.total,
            total_bytes: plan.bytes,
            is_sweep: plan.is_sweep,
            series: Vec::new(),
            last: (plan.warm_up, Counts::default()),
            shown: Duration::ZERO,
        }
    }

    /// `is_over`: all lanes have ended, and what they show is final.
    fn look<'a>(
        &mut self,
        now: Instant,
        is_over: bool,
        lanes: impl Iterator<Item = &'a Shared>,
        progress: &mut dyn FnMut(&Progress),
    ) {
        const SAMPLE: Duration = Duration::from_secs(1);
        const SHOW: Duration = Duration::from_millis(100);
        let elapsed = now.saturating_duration_since(self.start);
        // What is done after the end is no part of the series.
        let sampled = self.total.map_or(elapsed, |total| elapsed.min(total));
        let length = sampled.saturating_sub(self.last.0);
        // What is left at the end is a sample if it is long enough to say something; the lanes have
        // shown all of it when they have ended.
        let is_within = self.total.is_none_or(|total| elapsed < total);
        let is_due = if is_over { length >= SAMPLE / 10 } else { is_within && length >= SAMPLE };
        if !is_due && elapsed < self.shown + SHOW {
            return;
        }
        let (mut counts, mut failures) = (Counts::default(), 0);
        for shared in lanes {
            let (more, failed) = shared.live.read();
            counts.add(&more);
            failures += failed;
        }
        if is_due {
            let end = sampled - self.warm_up;
            self.series.push(Sample { end, length, counts: counts.since(&self.last.1) });
            self.last = (sampled, counts);
        }
        if elapsed >= self.shown + SHOW {
            self.shown = elapsed;
            let Self { warm_up, total, total_bytes, is_sweep, .. } = *self;
            progress(&Progress {
                elapsed,
                warm_up,
                total,
                counts,
                total_bytes,
                failures,
                is_sweep,
            });
        }
    }
}

fn add_up(ends: Ends) -> Sum {
    let Ends { outcomes, series, is_interrupted } = ends;
    let mut ran = Ran {
        tally: Tally::new(&[]),
        measured: Duration::ZERO,
        series,
        owed: 0,
        stalled: 0,
        is_interrupted,
        log_error: None,
        checked: None,
    };
    let mut known = Vec::new();
    for outcome in outcomes {
        ran.tally.add(&outcome.tally);
        ran.measured = ran.measured.max(Duration::from_nanos(outcome.measured_ns));
        ran.owed += outcome.owed;
        ran.stalled += outcome.stalled;
        ran.log_error = ran.log_error.or(outcome.log_error);
        if let Some(checker) = outcome.checker {
            ran.checked.get_or_insert_default().add(checker.checked().clone());
            known.extend(checker.into_blocks());
        }
    }
    Sum { ran, known }
}

/// What is known of all blocks, as what is known of each part.
fn split(mut known: Vec<Expect>, parts: &[Range<u64>]) -> Vec<Vec<Expect>> {
    let first = parts.first().map_or(0, |part| part.start);
    // From the end, so that nothing is copied twice.
    let from_end = parts.iter().rev();
    let mut split: Vec<_> =
        from_end.map(|part| known.split_off((part.start - first) as usize)).collect();
    split.reverse();
    split
}

fn load_checker(
    log: &AckLog,
    job: &Job,
    core: usize,
    first_block: u64,
    blocks: Vec<Expect>,
) -> Checker {
    let cores = job.cpus.len() as u64;
    Checker::new(checker::Setup {
        block_bytes: log.coverage.block_bytes,
        seed: log.seed,
        first_block,
        blocks,
        max_bytes: job.workload.max_bytes(),
        generations: (log.last_generation + 1 + core as u64, cores),
        // In a turn each I/O in flight may end, and another one begin.
        log: Some(log.writer(core, 2 * MAX_DEPTH)),
    })
}

/// Each core has its share of the bytes.
fn window(job: &Job, core: usize) -> Window {
    let nanos = |time: Duration| time.as_nanos() as u64;
    let cores = job.cpus.len() as u64;
    let share = |bytes: u64| bytes / cores + u64::from((core as u64) < bytes % cores);
    Window {
        start_ns: nanos(job.warm_up),
        end_ns: job.runtime.map_or(u64::MAX, |runtime| nanos(job.warm_up + runtime)),
        bytes: job.bytes.map_or(u64::MAX, share),
    }
}

/// Each core has its share of the rate, and the cores take turns.
fn pace(job: &Job, core: usize) -> Pace {
    let Some(rate) = job.rate else { return Pace::Closed };
    let interval_ns = 1e9 * job.cpus.len() as f64 / rate as f64;
    Pace::Open { first_ns: 1e9 * core as f64 / rate as f64, interval_ns, begun: 0 }
}

/// The data of the I/Os in flight, for each core.
struct Memory {
    arena: &'static Arena,
    buffers: Vec<Vec<DmaSpan>>,
}

impl Memory {
    /// Takes it, and fills it with bytes that no device can make smaller.
    fn take(
        arena: &'static Arena,
        cores: usize,
        depth: usize,
        max_bytes: u32,
        seed: u64,
    ) -> Result<Self, PerfError> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut bytes = vec![0; max_bytes as usize];
        let mut memory = Self { arena, buffers: vec![Vec::with_capacity(depth); cores] };
        for buffers in &mut memory.buffers {
            for _ in 0..depth {
                let span = arena.carve(max_bytes as usize, 4096)?;
                rng.fill_bytes(&mut bytes);
                span.write(0, &bytes);
                buffers.push(span);
            }
        }
        Ok(memory)
    }

    /// Gives it back, unless a device may still write it.
    fn give_back(self, stalled: usize) {
        if stalled == 0 {
            self.buffers.into_iter().flatten().for_each(|span| self.arena.give_back(span));
        }
    }
}
