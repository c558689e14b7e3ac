//! Closing: what makes mappings durable, and frees what they replaced.

use std::collections::hash_map;
use std::time::{Duration, Instant};

use nvme_spec::status::Status;

use super::{Context, Owner, Planted, share_of};
use crate::devices::Token;
use crate::limits::{LATE_GUARDS, MAX_FAILED_FLUSHES, MAX_OPEN};

/// How long a mapping stays open without anybody waiting for it.
const CLOSE_AFTER: Duration = Duration::from_millis(100);

/// Flushing and marking. Positions are sequence numbers of journal blocks; `before` excludes.
#[derive(Debug)]
pub(crate) struct Closing {
    step: Step,
    /// Mappings and releases in blocks before this one are closed.
    pub closed_before: u64,
    /// Somebody waits until all before this one are.
    wanted_before: u64,
    /// Flushes and FUA writes for the next round.
    waiting: Vec<u32>,
    /// Those of this round.
    flushing: Vec<u32>,
    /// Flushes that have begun, and the last of them that was a success.
    begun: u64,
    done: u64,
    /// Another one is wanted, whatever there is to close.
    flush_wanted: bool,
    last: Option<Instant>,
    /// Of the open mappings, how many there were when this round began.
    taken: usize,
    /// Flushes that have failed since the last one that was a success.
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    /// Devices are being flushed; what is before `target` had completed when that began.
    Flushing {
        target: u64,
        left: u32,
        status: Status,
    },
    /// The journal block that says so is on its way.
    Marking {
        target: u64,
        sequence: u64,
    },
}

impl Closing {
    pub(crate) fn new(closed_before: u64) -> Self {
        Self {
            step: Step::Idle,
            closed_before,
            wanted_before: closed_before,
            waiting: Vec::new(),
            flushing: Vec::new(),
            begun: 0,
            done: 0,
            flush_wanted: false,
            last: None,
            taken: 0,
            failures: 0,
        }
    }

    /// Whether a round is going, or wanted.
    pub(crate) fn has_work(&self) -> bool {
        self.step != Step::Idle
            || !self.waiting.is_empty()
            || self.flush_wanted
            || self.wanted_before > self.closed_before
    }

    /// Has the devices flushed once more: the number of that flush.
    pub(crate) fn want_flush(&mut self) -> u64 {
        self.flush_wanted = true;
        self.begun + 1
    }

    /// Whether the devices were flushed by this flush or a later one.
    pub(crate) fn is_flushed(&self, flush: u64) -> bool {
        self.done >= flush
    }

    /// The write or flush `id` ends when everything completed before now is durable.
    pub(crate) fn add_flush(&mut self, id: u32) {
        self.waiting.push(id);
    }

    /// Everything in blocks before this one is to be closed.
    pub(crate) fn want(&mut self, before: u64) {
        self.wanted_before = self.wanted_before.max(before);
    }
}

impl Owner {
    /// Goes on with closing; ends I/Os that waited for it.
    pub(super) fn poll_closing(&mut self, context: &mut Context<'_>) {
        if self.journal.is_broken() {
            return self.give_up_closing();
        }
        match self.closing.step {
            Step::Idle => self.begin_closing(context),
            Step::Flushing { target, left: 0, status } => self.end_flushing(target, status),
            Step::Marking { target, sequence } if self.journal.completed() > sequence => {
                self.closing.step = Step::Idle;
                self.closing.closed_before = target;
                self.wake_closed();
            }
            Step::Flushing { .. } | Step::Marking { .. } => {}
        }
        self.end_open();
    }

    /// Nothing can be closed any more: nobody waits for it.
    fn give_up_closing(&mut self) {
        for id in std::mem::take(&mut self.closing.waiting) {
            self.end_write(id, Status::INTERNAL_ERROR);
        }
        if matches!(self.closing.step, Step::Flushing { left: 0, .. }) {
            for id in std::mem::take(&mut self.closing.flushing) {
                self.end_write(id, Status::INTERNAL_ERROR);
            }
            self.closing.step = Step::Idle;
        }
        self.ready.extend(self.wait_closed.drain(..).map(|(_, id)| id));
        self.ready.extend(self.wait_space.drain(..));
    }

    fn begin_closing(&mut self, context: &mut Context<'_>) {
        let closing = &self.closing;
        let pending = !self.open.is_empty() || !self.releases.is_empty();
        let behind = closing.wanted_before > closing.closed_before;
        if closing.waiting.is_empty() && !behind && !pending && !closing.flush_wanted {
            return;
        }
        let due = closing.last.is_none_or(|last| context.now.duration_since(last) >= CLOSE_AFTER);
        let wanted = !closing.waiting.is_empty()
            || ((behind || closing.flush_wanted) && (closing.failures == 0 || due))
            || (pending && (due || self.open.len() >= closing.taken + MAX_OPEN));
        // What a flush makes durable is what has completed; what has not may be a hole.
        let target = self.journal.completed().min(self.oldest_pending());
        let advances = target > closing.closed_before;
        if !wanted || !(advances || closing.flush_wanted || !closing.waiting.is_empty()) {
            return;
        }
        self.closing.last = Some(context.now);
        self.closing.begun += 1;
        self.closing.flush_wanted = false;
        self.closing.taken = self.open.len();
        self.closing.flushing.append(&mut self.closing.waiting);
        let left = match self.bugs.is(Planted::CloseWithoutFlush) {
            true => 0,
            false => context.devices.flush(Token::Close),
        };
        self.closing.step = Step::Flushing { target, left, status: Status::SUCCESS };
    }

    pub(super) fn handle_flushed(&mut self, result: Status) {
        let Step::Flushing { left, status, .. } = &mut self.closing.step else {
            unreachable!("a flush nobody asked for")
        };
        *left -= 1;
        if !result.is_success() && status.is_success() {
            *status = result;
        }
    }

    /// The devices are flushed: whoever asked for that is answered. Mappings before `target` are
    /// durable, but may be overwritten in place only when a journal block says so: replay would
    /// find other data than their records name, and drop them.
    fn end_flushing(&mut self, target: u64, status: Status) {
        let mut flushing = std::mem::take(&mut self.closing.flushing);
        flushing.drain(..).for_each(|id| self.end_write(id, status));
        self.closing.flushing = flushing;
        if !status.is_success() {
            return self.fail_flushing(status);
        }
        (self.closing.done, self.closing.failures) = (self.closing.begun, 0);
        if target <= self.closing.closed_before {
            self.closing.step = Step::Idle;
            return;
        }
        let closed = self.closing.closed_before;
        if !self.open.iter().rev().any(|(sequence, ..)| *sequence >= closed) {
            // Nothing of it is guarded: that the records are durable is all there is to it.
            self.closing.step = Step::Idle;
            self.closing.closed_before = target;
            return self.wake_closed();
        }
        if !self.journal.has_room(true) {
            // A checkpoint is on its way, and the step stays; but not when that waits for a
            // snapshot to settle, which takes another flush.
            if self.closing.flush_wanted {
                self.closing.step = Step::Idle;
            }
            return;
        }
        let fua = !self.bugs.is(Planted::MarkWithoutFua);
        let sequence = self.journal.mark(target - 1, fua);
        self.closing.step = Step::Marking { target, sequence };
        if self.bugs.is(Planted::UnguardBeforeMark) {
            self.closing.closed_before = target;
            self.wake_closed();
        }
    }

    /// Whoever waits for what a flush would have brought is told; the next one is tried after a
    /// while. After many, nothing can be promised any more, and calls must not wait for ever.
    fn fail_flushing(&mut self, status: Status) {
        (self.closing.step, self.closing.flush_wanted) = (Step::Idle, true);
        self.closing.failures += 1;
        if self.closing.failures >= MAX_FAILED_FLUSHES {
            tracing::error!(?status, "the devices cannot be flushed; the pool takes no writes");
            self.journal.set_broken();
        }
        let closed = std::mem::take(&mut self.wait_closed).into_iter().map(|(_, id)| id);
        for id in closed.chain(std::mem::take(&mut self.wait_space)) {
            self.end_write(id, status);
        }
    }

    /// Takes the guards from what is closed, from some in each turn: until then writes of it come
    /// to the owner, which knows better.
    fn end_open(&mut self) {
        let closed = self.closing.closed_before;
        let most = self.open.len().saturating_sub(LATE_GUARDS);
        for _ in 0..share_of(self.open.len()).min(most) {
            let first = self.open.front().copied();
            let Some((sequence, volume, entry)) = first.filter(|first| first.0 < closed) else {
                return;
            };
            self.open.pop_front();
            self.closing.taken = self.closing.taken.saturating_sub(1);
            let hash_map::Entry::Occupied(mut state) = self.entries.entry((volume, entry)) else {
                continue;
            };
            if state.get().open_sequence != Some(sequence) {
                continue;
            }
            state.get_mut().open_sequence = None;
            if !state.get().is_busy() {
                state.remove();
            }
            if let Some(volume) = self.volumes.get(&volume) {
                self.tree.set_guard(volume.root(), entry, false);
            }
        }
    }
}
