//! One core's queue pair.

mod child;
mod request;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dma::{ArenaError, DmaSpan};
use nvme_spec::command::Cqe;
use nvme_spec::status::Status;

use crate::config::Config;
use crate::limits::{MAX_NAMESPACES, PRP_LIST_BYTES};
use crate::namespace::Namespace;
use crate::prp;
use crate::ring::Ring;
use crate::seam::PciDevice;
use crate::shared::{Phase, QueueStats, Shared, Slot, State};
use child::Children;
pub(crate) use request::{DeallocateLimits, Limits};
use request::{Request, Requests};

/// What a [`Command`] does, in the words of the NVM command set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Blocks into memory.
    Read,
    /// Memory into blocks.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Completed writes are on stable media afterwards.
    Flush,
    /// Blocks equal memory, or Compare Failure.
    Compare,
    /// Blocks read as zeroes afterwards.
    WriteZeroes {
        /// Their space may be freed.
        deallocate: bool,
        /// Force unit access.
        fua: bool,
    },
    /// Frees the ranges that stand in memory as 16-byte definitions (Dataset Management).
    Deallocate {
        /// How many: 1 to 256.
        ranges: u16,
    },
}

/// One I/O, of any length.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Comes back in the completion.
    pub tag: u32,
    /// Namespace identifier.
    pub nsid: u32,
    /// What to do.
    pub op: Op,
    /// First logical block; unused for flush and deallocate.
    pub slba: u64,
    /// Number of logical blocks; unused for flush and deallocate.
    pub block_count: u32,
    /// Memory: starts at a multiple of 4 and is at least as long as the blocks; `None` for flush
    /// and write zeroes. It belongs to the device until the completion.
    pub data: Option<DmaSpan>,
}

/// The end of a [`Command`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The tag it was submitted with.
    pub tag: u32,
    /// How it ended; without Do Not Retry where a reset ended it.
    pub status: Status,
}

/// No room for the moment: the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// A core's way to a controller's namespaces.
///
/// Its holder polls it every few milliseconds, also when it has nothing to do: a reset waits until
/// every queue pair has noticed. Dropped, it goes back to the device; what is in flight then ends
/// unseen, and its memory must not be used again.
pub struct IoQueuePair<D: PciDevice> {
    inner: Option<Box<Inner<D>>>,
}

impl<D: PciDevice> IoQueuePair<D> {
    pub(crate) fn new(inner: Box<Inner<D>>) -> Self {
        Self { inner: Some(inner) }
    }

    /// Takes a command, which then completes exactly once, and within [`Config::end_within`]. The
    /// controller learns of it with the next [`IoQueuePair::poll`], or when it is back from a
    /// reset.
    ///
    /// # Errors
    /// [`Busy`]: nothing was taken.
    #[inline]
    pub fn submit(&mut self, command: Command) -> Result<(), Busy> {
        self.inner().submit(&command)
    }

    /// One turn: takes what the controller completed, tells it of what was submitted, at most one
    /// doorbell each, and looks whether a command is overdue.
    #[inline]
    pub fn poll(&mut self, now: Instant) {
        self.inner().poll(now);
    }

    /// The next command that has ended.
    #[inline]
    pub fn completed(&mut self) -> Option<Completion> {
        self.inner().ended.pop_front()
    }

    /// Queue identifier, from 1.
    pub fn qid(&self) -> u16 {
        self.inner.as_ref().map_or(0, |inner| inner.qid)
    }

    #[inline]
    fn inner(&mut self) -> &mut Inner<D> {
        self.inner.as_mut().expect("taken only when dropped")
    }
}

impl<D: PciDevice> Drop for IoQueuePair<D> {
    fn drop(&mut self) {
        if let Some(mut inner) = self.inner.take() {
            // What the controller does not know of yet, it need not hear of.
            inner.end_waiting();
            inner.requests.orphan_all();
            inner.ended.clear();
            let shared = Arc::clone(&inner.shared);
            shared.park(inner);
        }
    }
}

/// The queue pair itself, on a core or parked.
///
/// A command becomes a request, and a request one or several children: the commands that the
/// controller sees. A request leaves `waiting` when its last child was pushed, and its slot when
/// the last child has completed.
pub(crate) struct Inner<D: PciDevice> {
    device: Arc<D>,
    shared: Arc<Shared<D>>,
    qid: u16,
    ring: Ring,
    prp_lists: DmaSpan,
    limits: Limits,
    config: Config,
    namespaces: Vec<Namespace>,
    requests: Requests,
    children: Children,
    /// Requests with children still to be pushed, in the order they came.
    waiting: VecDeque<u16>,
    /// Requests that a reset ended: told when the device is back, so that a retry finds it, or when
    /// their time is over.
    interrupted: VecDeque<u16>,
    /// When the first command in a row of late ones was taken for an abort.
    late_since: Option<Instant>,
    /// When this was last polled: the clock of what is submitted.
    now: Instant,
    /// What was submitted before is too old for another child.
    send_floor: Instant,
    ended: VecDeque<Completion>,
    state: State,
    stats: QueueStats,
}

impl<D: PciDevice> Inner<D> {
    /// Memory for a queue pair, which does not exist at the controller yet.
    pub(crate) fn new(
        device: &Arc<D>,
        shared: &Arc<Shared<D>>,
        (qid, entries, dstrd): (u16, u16, u8),
        limits: Limits,
        config: &Config,
        now: Instant,
    ) -> Result<Self, ArenaError> {
        let depth = entries - 1;
        let lists = usize::from(depth) * PRP_LIST_BYTES as usize;
        let room = usize::from(depth);
        Ok(Self {
            device: Arc::clone(device),
            shared: Arc::clone(shared),
            qid,
            ring: Ring::new(&shared.memory, qid, entries, dstrd)?,
            prp_lists: shared.memory.carve(lists, PRP_LIST_BYTES as usize)?,
            limits,
            config: config.clone(),
            namespaces: Vec::with_capacity(MAX_NAMESPACES),
            requests: Requests::new(depth),
            children: Children::new(depth, now),
            waiting: VecDeque::with_capacity(room),
            interrupted: VecDeque::with_capacity(room),
            late_since: None,
            now,
            send_floor: now,
            ended: VecDeque::with_capacity(room),
            state: shared.state(),
            stats: QueueStats::default(),
        })
    }

    pub(crate) fn qid(&self) -> u16 {
        self.qid
    }

    pub(crate) fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    pub(crate) fn set_namespaces(&mut self, namespaces: &[Namespace]) {
        self.namespaces.clear();
        self.namespaces.extend(namespaces.iter().take(MAX_NAMESPACES));
        self.forget_lost();
    }

    /// Forgets the namespaces that are not what they were: their commands are refused.
    fn forget_lost(&mut self) {
        let shared = &self.shared;
        self.namespaces.retain(|namespace| !shared.is_lost(namespace.nsid));
    }

    #[inline]
    fn submit(&mut self, command: &Command) -> Result<(), Busy> {
        // Ended commands hold no request, but must have room until they are fetched.
        if self.ended.len() + self.requests.in_use() >= self.ended.capacity() {
            return Err(Busy);
        }
        match self.state.phase {
            // Whatever cannot be sent at once waits; its time runs.
            Phase::Live | Phase::Stopping | Phase::Contained => {}
            Phase::Draining | Phase::Failed | Phase::Wedged => {
                self.ended.push_back(Completion { tag: command.tag, status: FAILED });
                return Ok(());
            }
        }
        let namespace = self.namespaces.iter().find(|namespace| namespace.nsid == command.nsid);
        match Request::new(command, namespace, &self.limits, self.now) {
            Ok(request) => {
                let index = self.requests.insert(request).ok_or(Busy)?;
                self.waiting.push_back(index);
                if self.state.phase == Phase::Live {
                    self.push_waiting();
                }
            }
            Err(status) => self.ended.push_back(Completion { tag: command.tag, status }),
        }
        Ok(())
    }

    /// Pushes children for as long as there are slots for them. A request that is too old for
    /// another child to end in time gets no more.
    #[inline]
    fn push_waiting(&mut self) {
        while let Some(&index) = self.waiting.front() {
            let request = self.requests.get_mut(index);
            if request.submitted < self.send_floor {
                self.stop_first();
                continue;
            }
            while !request.is_issued() {
                let Some((slot, cid)) = self.children.take(index) else { return };
                let at = u32::from(slot) * PRP_LIST_BYTES;
                let list = self.prp_lists.subspan(at, PRP_LIST_BYTES);
                let (mut sqe, data) = request.next_child(&self.limits, list);
                sqe.cid = cid.into();
                if let Some(data) = data {
                    let (prp1, prp2) = prp::entries(data, list);
                    sqe.set_prps(prp1, prp2);
                }
                self.ring.push(&sqe);
                self.stats.submissions += 1;
            }
            self.waiting.pop_front();
        }
    }

    #[inline]
    pub(crate) fn poll(&mut self, now: Instant) {
        let state = self.shared.state();
        self.now = now;
        let mut busy = self.take_completions();
        if state != self.state {
            self.enter(state);
            busy = true;
        }
        match state.phase {
            Phase::Live | Phase::Draining => {
                // Room in the completion queue before the commands that may need it.
                self.ring.ring_head(&*self.device);
                if !self.waiting.is_empty() {
                    let floor = now.checked_sub(self.config.send_within());
                    self.send_floor = floor.unwrap_or(self.send_floor);
                    self.push_waiting();
                }
                if self.ring.has_untold() {
                    self.children.told(now);
                    self.ring.ring_tail(&*self.device);
                    busy = true;
                }
                self.check_oldest(now);
                if state.phase == Phase::Draining && self.requests.is_empty() {
                    self.acknowledge(state);
                }
            }
            Phase::Stopping | Phase::Contained => self.end_overdue(),
            Phase::Failed | Phase::Wedged => {}
        }
        if busy {
            self.stats.doorbells = self.ring.doorbells;
            self.slot().publish(&self.stats);
        }
    }

    /// Takes everything that the controller has completed; whether there was anything.
    #[inline]
    fn take_completions(&mut self) -> bool {
        // Bounded by what the queue holds, for controllers that never stop.
        for taken in 0..self.children.depth() {
            let Some(cqe) = self.ring.pop() else { return taken > 0 };
            self.take_completion(&cqe);
        }
        true
    }

    #[inline]
    fn take_completion(&mut self, cqe: &Cqe) {
        let Some((index, aborted)) = self.children.release(cqe.cid()) else {
            // Stale, doubled or made up: it must not end a command that is not its own.
            self.stats.stale += 1;
            return;
        };
        self.stats.completions += 1;
        let mut status = cqe.status();
        if !status.is_success() {
            self.stats.errors += 1;
        }
        if aborted {
            self.slot().late.store(0, Ordering::Relaxed);
            if status.code_and_type() == Status::COMMAND_ABORT_REQUESTED {
                // We asked, the host did not.
                status = INTERRUPTED;
            }
        }
        self.end_child(index, status);
    }

    /// Accounts for a child that has ended; the last one ends the request.
    #[inline]
    fn end_child(&mut self, index: u16, status: Status) {
        let request = self.requests.get_mut(index);
        let was_waiting = !request.is_issued();
        request.child_ended(status);
        if was_waiting && request.is_issued() {
            // It failed half-way. Only the first in line can have children while it waits.
            self.waiting.pop_front();
        }
        let request = self.requests.get_mut(index);
        if !request.is_done() {
            return;
        }
        if request.wants_flush() {
            request.turn_into_flush();
            self.waiting.push_back(index);
            return;
        }
        self.end(index);
    }

    #[inline]
    fn end(&mut self, index: u16) {
        let request = self.requests.remove(index);
        if !request.orphan {
            self.ended.push_back(Completion { tag: request.tag, status: request.status });
        }
    }

    /// Has the oldest command aborted when it is overdue, and then the next; has the controller
    /// reset when there are late ones still some time after the first abort.
    #[inline]
    fn check_oldest(&mut self, now: Instant) {
        let oldest = self.children.oldest(now);
        let Some((cid, _, aborted)) =
            oldest.filter(|&(_, age, _)| age >= self.config.command_limit)
        else {
            self.late_since = None;
            return;
        };
        let slot = &self.shared.slots[usize::from(self.qid) - 1];
        if !aborted {
            self.children.set_aborted(cid);
            slot.late.store(1 << 16 | u32::from(cid), Ordering::Relaxed);
        } else if self.late_since.is_none() && slot.late.load(Ordering::Relaxed) == 0 {
            // Not before: this core may have slept for as long as a command may take, and the other
            // side too.
            self.late_since = Some(now);
        }
        let is_over = |since| now.saturating_duration_since(since) >= self.config.abort_grace;
        if self.late_since.is_some_and(is_over) {
            slot.stuck.store(true, Ordering::Relaxed);
        }
    }

    /// Follows the admin side into another phase.
    #[cold]
    fn enter(&mut self, state: State) {
        self.state = state;
        match state.phase {
            Phase::Live => {
                self.forget_lost();
                self.end_of_lost();
                self.tell_interrupted(Duration::ZERO);
            }
            Phase::Draining | Phase::Stopping => {}
            Phase::Contained => {
                // The controller can neither read nor write the memory of what is in flight.
                self.interrupt(INTERRUPTED);
                self.ring.reset();
                self.slot().late.store(0, Ordering::Relaxed);
                self.slot().stuck.store(false, Ordering::Relaxed);
                self.late_since = None;
                self.acknowledge(state);
            }
            Phase::Failed => {
                self.interrupt(FAILED);
                self.end_waiting();
                self.tell_interrupted(Duration::ZERO);
            }
            // Children in flight keep their requests, and so their memory, for good.
            Phase::Wedged => {
                self.end_waiting();
                self.tell_interrupted(Duration::ZERO);
            }
        }
    }

    fn acknowledge(&self, state: State) {
        self.slot().acknowledged.store(state.epoch, Ordering::Release);
    }

    /// Ends every child in flight.
    fn interrupt(&mut self, status: Status) {
        while let Some(index) = self.children.release_any() {
            let request = self.requests.get_mut(index);
            if !request.is_issued() {
                self.waiting.pop_front();
            }
            request.child_ended(status);
            if request.is_done() {
                self.interrupted.push_back(index);
            }
        }
    }

    /// While nothing can be sent: ends the requests whose time is over. Those with a child at the
    /// controller end with it.
    #[cold]
    fn end_overdue(&mut self) {
        let limit = self.config.end_within();
        self.tell_interrupted(limit);
        let now = self.now;
        self.stop_waiting(INTERRUPTED, |request| request.age(now) >= limit);
    }

    /// Tells of those requests that are as old as this.
    fn tell_interrupted(&mut self, age: Duration) {
        for _ in 0..self.interrupted.len() {
            let Some(index) = self.interrupted.pop_front() else { return };
            if self.requests.get_mut(index).age(self.now) >= age {
                self.end(index);
            } else {
                self.interrupted.push_back(index);
            }
        }
    }

    fn end_waiting(&mut self) {
        self.stop_waiting(FAILED, |_| true);
    }

    /// Stops the waiting requests whose namespace is not what it was.
    fn end_of_lost(&mut self) {
        let shared = Arc::clone(&self.shared);
        self.stop_waiting(FAILED, |request| shared.is_lost(request.nsid));
    }

    /// Stops those of the waiting requests that are meant; the others wait on, in their order.
    fn stop_waiting(&mut self, status: Status, is_meant: impl Fn(&Request) -> bool) {
        for _ in 0..self.waiting.len() {
            let Some(index) = self.waiting.pop_front() else { return };
            if is_meant(self.requests.get_mut(index)) {
                self.stop(index, status);
            } else {
                self.waiting.push_back(index);
            }
        }
    }

    #[cold]
    fn stop_first(&mut self) {
        if let Some(index) = self.waiting.pop_front() {
            self.stop(index, INTERRUPTED);
        }
    }

    /// Pushes no more children of a request that has left `waiting`: it ends with the last of those
    /// in flight.
    #[cold]
    fn stop(&mut self, index: u16, status: Status) {
        let request = self.requests.get_mut(index);
        request.fail(status);
        if request.is_done() {
            self.end(index);
        }
    }

    fn slot(&self) -> &Slot {
        &self.shared.slots[usize::from(self.qid) - 1]
    }
}

/// A reset ended it; the controller did not say that it would fail again.
const INTERRUPTED: Status = Status::COMMAND_INTERRUPTED;
/// There is no controller to try again.
const FAILED: Status = Status::INTERNAL_ERROR.with_dnr();
