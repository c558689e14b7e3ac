//! One core's loop: begins I/Os, notes how they end.
//!
//! A turn of the reactor is: handle what the last turn's poll completed, begin new I/Os, poll. The
//! reactor reads the clock once a turn, right after the poll; that is the time at which whatever
//! the poll found counts as completed, and at which the I/Os begun next count as begun. So a
//! latency is never shorter than it was, and longer by what the core does in a turn at most.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bdev::{Channel, Completions, Io, Op};
use dma::DmaSpan;
use nvme_spec::nvm::DsmRange;
use reactor::Worker;

use crate::checker::Checker;
use crate::limits::{PUBLISH_INTERVAL, STALL_LIMIT};
use crate::log::{LogError, Logged};
use crate::tally::{LiveCounts, Tally};
use crate::workload::{Generator, Kind, Step};

#[cfg(test)]
mod tests;

/// What a lane is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Begin. Times are counted from here.
    Start(Instant),
    /// End in good order.
    Stop,
}

/// When what is measured begins and ends, in nanoseconds from the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) start_ns: u64,
    /// `u64::MAX` where time is not what ends it.
    pub(crate) end_ns: u64,
    /// Bytes of I/Os that begin within; `u64::MAX` where there is no limit.
    pub(crate) bytes: u64,
}

/// When I/Os are due.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As soon as there is room for one.
    Closed,
    /// At fixed times, whether there is room or not.
    Open {
        first_ns: f64,
        interval_ns: f64,
        /// How many were begun.
        begun: u64,
    },
}

impl Pace {
    /// When the next I/O was due, if that is not later than `now_ns`.
    #[inline]
    fn due(&self, now_ns: u64) -> Option<u64> {
        match self {
            Pace::Closed => Some(now_ns),
            Pace::Open { begun, .. } => Some(self.due_at(*begun)).filter(|&due| due <= now_ns),
        }
    }

    #[inline]
    fn due_at(&self, index: u64) -> u64 {
        match self {
            Pace::Closed => 0,
            Pace::Open { first_ns, interval_ns, .. } => {
                (first_ns + interval_ns * index as f64) as u64
            }
        }
    }

    #[inline]
    fn advance(&mut self) {
        if let Pace::Open { begun, .. } = self {
            *begun += 1;
        }
    }

    /// The I/Os that were due before `end_ns` and not begun, by their numbers.
    fn owed(&self, end_ns: u64) -> Range<u64> {
        match self {
            Pace::Closed => 0..0,
            Pace::Open { first_ns, interval_ns, begun } => {
                let due = ((end_ns as f64 - first_ns) / interval_ns).ceil().max(0.0) as u64;
                *begun..due.max(*begun)
            }
        }
    }
}

/// Where I/Os come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A workload, which never ends.
    Load(Box<Generator>),
    /// Every block of which something is known, once.
    Sweep { next: u64, end: u64, max_blocks: u32 },
}

/// What a lane is made of.
pub(crate) struct Setup {
    pub(crate) channel: Box<dyn Channel>,
    pub(crate) source: Source,
    pub(crate) checker: Option<Checker>,
    /// The data of each I/O in flight; as many as there may be.
    pub(crate) buffers: Vec<DmaSpan>,
    pub(crate) block_bytes: u32,
    pub(crate) fua: bool,
    pub(crate) window: Window,
    pub(crate) pace: Pace,
    pub(crate) tally: Tally,
    /// Wall clock at the start, for the log.
    pub(crate) start_us: u64,
}

/// What becomes of a lane, and what it shows meanwhile.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) live: LiveCounts,
    /// Set once there is an outcome.
    pub(crate) has_ended: AtomicBool,
    pub(crate) outcome: Mutex<Option<Outcome>>,
}

/// What a lane has come to.
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    pub(crate) checker: Option<Checker>,
    /// How long it measured.
    pub(crate) measured_ns: u64,
    /// I/Os that were due and never begun.
    pub(crate) owed: u64,
    /// I/Os that had not ended when the lane gave up.
    pub(crate) stalled: usize,
    /// Why the log could not be written.
    pub(crate) log_error: Option<LogError>,
}

#[derive(Clone, Copy)]
struct Slot {
    buffer: DmaSpan,
    step: Step,
    begun_ns: u64,
    generation: u64,
    is_used: bool,
}

pub(crate) struct Lane {
    setup: Setup,
    shared: Arc<Shared>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Begun, and not taken by the channel yet.
    ready: VecDeque<u32>,
    /// Waits for others on the same blocks to end.
    held: Option<Step>,
    done: Completions,
    start: Option<Instant>,
    is_stopping: bool,
    log_error: Option<LogError>,
    bytes_begun: u64,
    last_completion_ns: u64,
    /// Since when nothing has completed although something was in flight.
    quiet_since_ns: u64,
    published_ns: u64,
}

impl Lane {
    pub(crate) fn new(setup: Setup, shared: Arc<Shared>) -> Self {
        let depth = setup.buffers.len();
        let step = Step { kind: Kind::Flush, slba: 0, block_count: 0 };
        let slot = |&buffer| Slot { buffer, step, begun_ns: 0, generation: 0, is_used: false };
        Self {
            slots: setup.buffers.iter().map(slot).collect(),
            free: (0..depth as u32).rev().collect(),
            ready: VecDeque::with_capacity(depth),
            held: None,
            done: Completions::with_capacity(depth),
            start: None,
            is_stopping: false,
            log_error: None,
            bytes_begun: 0,
            last_completion_ns: 0,
            quiet_since_ns: 0,
            published_ns: 0,
            setup,
            shared,
        }
    }

    /// Handles what was completed by `now_ns`; says how much that was.
    #[inline]
    fn take_completions(&mut self, now_ns: u64) -> usize {
        let mut count = 0;
        let Window { start_ns, end_ns, .. } = self.setup.window;
        let is_measured = (start_ns..=end_ns).contains(&now_ns);
        while let Some(completion) = self.done.pop() {
            count += 1;
            let slot = &mut self.slots[completion.tag as usize];
            slot.is_used = false;
            let Slot { buffer, step, begun_ns, generation, .. } = *slot;
            self.free.push(completion.tag);
            if !completion.status.is_success() {
                self.setup.tally.note_failure(step, completion.status);
                continue;
            }
            let tally = &mut self.setup.tally;
            if is_measured {
                let bytes = u64::from(step.block_count) * u64::from(self.setup.block_bytes);
                tally.counts.ios[step.kind as usize] += 1;
                tally.counts.bytes[step.kind as usize] += bytes;
            }
            if begun_ns >= start_ns {
                tally.note_latency(step.kind, now_ns - begun_ns, 1);
            }
            if let Some(checker) = &mut self.setup.checker {
                let Step { kind, slba, block_count } = step;
                let time_us = self.setup.start_us + now_ns / 1000;
                match kind {
                    Kind::Read => checker.check(slba, block_count, buffer),
                    Kind::Flush => {}
                    Kind::Write | Kind::WriteZeroes | Kind::Deallocate => {
                        let write = Logged { slba, block_count, generation, kind };
                        checker.acknowledge(&write, time_us);
                    }
                }
            }
        }
        if count > 0 {
            self.last_completion_ns = now_ns;
            self.quiet_since_ns = now_ns;
        }
        count
    }

    /// Begins as many I/Os as are due and have room; says how many.
    #[inline]
    fn begin(&mut self, now_ns: u64) -> usize {
        let mut count = 0;
        while !self.free.is_empty()
            && self.bytes_begun < self.setup.window.bytes
            && let Some(due_ns) = self.setup.pace.due(now_ns)
        {
            let Some(step) = self.held.take().or_else(|| self.next_step()) else {
                self.is_stopping = true;
                break;
            };
            if self.setup.checker.is_some() && self.collides(&step) {
                self.held = Some(step);
                break;
            }
            if self.free.len() == self.slots.len() {
                self.quiet_since_ns = now_ns;
            }
            let Some(tag) = self.free.pop() else { break };
            self.prepare(tag, step, due_ns, now_ns);
            self.ready.push_back(tag);
            self.setup.pace.advance();
            count += 1;
        }
        self.submit();
        count
    }

    #[inline]
    fn next_step(&mut self) -> Option<Step> {
        match &mut self.setup.source {
            Source::Load(generator) => Some(generator.next_step()),
            Source::Sweep { next, end, max_blocks } => {
                let slba = self.setup.checker.as_ref()?.next_known(*next)?;
                let block_count = u64::from(*max_blocks).min(*end - slba) as u32;
                *next = slba + u64::from(block_count);
                Some(Step { kind: Kind::Read, slba, block_count })
            }
        }
    }

    /// Whether blocks of it are in flight already, and either of the two changes them: then nobody
    /// could tell what is to be read.
    fn collides(&self, step: &Step) -> bool {
        let end = |step: &Step| step.slba + u64::from(step.block_count);
        self.slots.iter().filter(|slot| slot.is_used).any(|slot| {
            let overlaps = step.slba < end(&slot.step) && slot.step.slba < end(step);
            overlaps && (step.kind.changes_blocks() || slot.step.kind.changes_blocks())
        })
    }

    #[inline]
    fn prepare(&mut self, tag: u32, step: Step, due_ns: u64, now_ns: u64) {
        let slot = &mut self.slots[tag as usize];
        *slot = Slot { step, begun_ns: due_ns, is_used: true, generation: 0, ..*slot };
        let Step { kind, slba, block_count } = step;
        if due_ns >= self.setup.window.start_ns {
            self.bytes_begun += u64::from(block_count) * u64::from(self.setup.block_bytes);
        }
        if let Some(checker) = &mut self.setup.checker
            && kind.changes_blocks()
        {
            let time_us = self.setup.start_us + now_ns / 1000;
            slot.generation = checker.prepare(kind, slba, block_count, slot.buffer, time_us);
        }
        if kind == Kind::Deallocate {
            let range = DsmRange {
                attributes: 0.into(),
                block_count: block_count.into(),
                slba: slba.into(),
            };
            slot.buffer.write_obj(0, &range);
        }
    }

    /// Hands over what is ready, as far as the channel takes it. A write goes out after the log
    /// has it, or not at all.
    #[inline]
    fn submit(&mut self) {
        self.flush_log();
        if self.log_error.is_some() {
            while let Some(tag) = self.ready.pop_front() {
                self.slots[tag as usize].is_used = false;
                self.free.push(tag);
            }
        }
        while let Some(&tag) = self.ready.front() {
            let Slot { buffer, step, .. } = self.slots[tag as usize];
            let fua = self.setup.fua;
            let (op, buffer) = match step.kind {
                Kind::Read => (Op::Read, Some(buffer)),
                Kind::Write => (Op::Write { fua }, Some(buffer)),
                Kind::Flush => (Op::Flush, None),
                Kind::WriteZeroes => (Op::WriteZeroes { deallocate: false, fua }, None),
                Kind::Deallocate => (Op::Deallocate { ranges: 1 }, Some(buffer)),
            };
            let Step { slba, block_count, .. } = step;
            if self.setup.channel.submit(Io { tag, op, slba, block_count, buffer }).is_err() {
                break;
            }
            self.ready.pop_front();
        }
    }

    fn flush_log(&mut self) {
        if let Some(checker) = &mut self.setup.checker
            && let Err(error) = checker.flush_log()
        {
            self.log_error.get_or_insert(error);
            self.is_stopping = true;
        }
    }

    /// Whether more I/Os are to be begun.
    fn goes_on(&self, now_ns: u64) -> bool {
        let window = &self.setup.window;
        let in_window = now_ns < window.end_ns && self.bytes_begun < window.bytes;
        // The blocks stay as the first bad one was found. A sweep changes nothing, and goes on.
        let checker = self.setup.checker.as_ref();
        let is_good = matches!(self.setup.source, Source::Sweep { .. })
            || checker.is_none_or(|checker| checker.checked().bad_blocks == 0);
        in_window && is_good && !self.is_stopping
    }

    fn end(&mut self, now_ns: u64) {
        self.flush_log();
        let window = self.setup.window;
        // Where neither time nor bytes were used up, the lane was stopped, or gave up.
        let end_ns = match now_ns >= window.end_ns {
            true => window.end_ns,
            false => self.last_completion_ns.max(window.start_ns),
        };
        let owed = if self.bytes_begun < window.bytes { self.note_owed(end_ns) } else { 0 };
        self.setup.tally.settle();
        self.shared.live.publish(&self.setup.tally);
        let outcome = Outcome {
            tally: self.setup.tally.clone(),
            checker: self.setup.checker.take(),
            measured_ns: end_ns - window.start_ns,
            owed,
            stalled: self.slots.len() - self.free.len(),
            log_error: self.log_error.take(),
        };
        *self.shared.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.shared.has_ended.store(true, Ordering::Release);
    }

    /// I/Os that were due and never begun have waited until now, and would wait on: left out, they
    /// would make a target that cannot keep up look better than it is.
    fn note_owed(&mut self, end_ns: u64) -> u64 {
        /// Of more than these only every so-manieth is looked at, and stands for the others.
        const SAMPLES: u64 = 100_000;
        let owed = self.setup.pace.owed(end_ns);
        let step = (owed.end - owed.start).div_ceil(SAMPLES).max(1);
        for index in owed.clone().step_by(step as usize) {
            let due_ns = self.setup.pace.due_at(index);
            let count = step.min(owed.end - index);
            if let (true, Some(next)) = (due_ns >= self.setup.window.start_ns, self.next_step()) {
                self.setup.tally.note_latency(next.kind, end_ns.saturating_sub(due_ns), count);
            }
        }
        owed.end - owed.start
    }
}

impl Worker for Lane {
    type Message = Order;

    fn handle_message(&mut self, order: Order) {
        match order {
            Order::Start(at) => self.start = Some(at),
            Order::Stop => self.is_stopping = true,
        }
    }

    #[inline]
    fn poll(&mut self, now: Instant) -> usize {
        let Some(start) = self.start else { return 0 };
        let now_ns = now.saturating_duration_since(start).as_nanos() as u64;
        let ended = self.take_completions(now_ns);
        let goes_on = self.goes_on(now_ns);
        let begun = if goes_on {
            self.begin(now_ns)
        } else {
            self.submit();
            0
        };
        self.setup.channel.poll(now, &mut self.done);
        let quiet_ns = now_ns.saturating_sub(self.quiet_since_ns);
        let in_flight = self.slots.len() - self.free.len();
        let is_stalled = in_flight > 0
            && quiet_ns > STALL_LIMIT.as_nanos() as u64
            && self.done.room() == self.slots.len();
        if is_stalled || !goes_on && in_flight == 0 {
            self.end(now_ns);
            self.start = None;
        } else if now_ns.saturating_sub(self.published_ns) >= PUBLISH_INTERVAL.as_nanos() as u64 {
            self.shared.live.publish(&self.setup.tally);
            self.published_ns = now_ns;
        }
        ended + begun
    }
}
