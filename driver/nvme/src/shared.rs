//! What the admin side and the queue pairs share: atomics on the data path, locks beside it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dma::Arena;

use crate::limits::MAX_IO_QUEUES;
use crate::memory::Memory;
use crate::namespace::Namespace;
use crate::queue::{Inner, IoQueuePair};
use crate::seam::PciDevice;

/// Where a controller is in its life, as queue pairs need to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Serves.
    Live = 0,
    /// Ends in order: bring what was taken to its end, take nothing more, acknowledge.
    Draining = 1,
    /// Submit nothing more. The controller may still write: what is in flight stays.
    Stopping = 2,
    /// The controller reaches no memory any more: end what is in flight, reset the rings,
    /// acknowledge.
    Contained = 3,
    /// As contained, and for good.
    Failed = 4,
    /// Given up, but it may still write: what is in flight stays for good, all else ends.
    Wedged = 5,
}

/// What a device is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Serves I/O.
    Live,
    /// Is being brought up or reset.
    Recovering,
    /// Given up or gone: it will not come back.
    Failed,
}

/// Phase and the number of the recovery it belongs to, read and written as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) epoch: u64,
    pub(crate) phase: Phase,
}

/// One per controller.
pub(crate) struct Shared<D: PciDevice> {
    state: AtomicU64,
    pub(crate) slots: Box<[Slot]>,
    /// Queue pairs that no core has, and whether the device is closed: then none is kept.
    parked: Mutex<Parked<D>>,
    /// Namespaces that a reset changed. Whoever takes a queue pair, or finds the device live again,
    /// looks here.
    lost: Mutex<Vec<u32>>,
    /// What the controller was told of: goes back when nobody is left.
    pub(crate) memory: Memory,
}

struct Parked<D: PciDevice> {
    #[expect(clippy::vec_box)] // they move between threads, by their address
    pairs: Vec<Box<Inner<D>>>,
    closed: bool,
}

/// What one queue pair tells the admin side, and what others may read of it.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// The last epoch in which it found the controller contained, or had nothing left to end.
    pub(crate) acknowledged: AtomicU64,
    /// A command to abort: its identifier plus 2^16; 0 for none, and when the admin side has seen
    /// it.
    pub(crate) late: AtomicU32,
    /// Aborts did not help.
    pub(crate) stuck: AtomicBool,
    submissions: AtomicU64,
    completions: AtomicU64,
    errors: AtomicU64,
    stale: AtomicU64,
    doorbells: AtomicU64,
}

/// Counters of one queue pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Commands handed to the controller.
    pub submissions: u64,
    /// Commands it completed.
    pub completions: u64,
    /// Of those, with a status other than success.
    pub errors: u64,
    /// Completions for no command in flight: dropped.
    pub stale: u64,
    /// Doorbell registers written.
    pub doorbells: u64,
}

impl Slot {
    /// Called by the owning queue pair only, once per poll turn that did something.
    pub(crate) fn publish(&self, stats: &QueueStats) {
        self.submissions.store(stats.submissions, Ordering::Relaxed);
        self.completions.store(stats.completions, Ordering::Relaxed);
        self.errors.store(stats.errors, Ordering::Relaxed);
        self.stale.store(stats.stale, Ordering::Relaxed);
        self.doorbells.store(stats.doorbells, Ordering::Relaxed);
    }

    fn stats(&self) -> QueueStats {
        QueueStats {
            submissions: self.submissions.load(Ordering::Relaxed),
            completions: self.completions.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            stale: self.stale.load(Ordering::Relaxed),
            doorbells: self.doorbells.load(Ordering::Relaxed),
        }
    }
}

impl<D: PciDevice> Shared<D> {
    pub(crate) fn new(arena: &'static Arena) -> Self {
        let shared = Self {
            state: AtomicU64::new(0),
            slots: (0..MAX_IO_QUEUES).map(|_| Slot::default()).collect(),
            parked: Mutex::new(Parked { pairs: Vec::new(), closed: false }),
            lost: Mutex::new(Vec::new()),
            memory: Memory::new(arena),
        };
        shared.set_state(State { epoch: 0, phase: Phase::Contained });
        shared
    }

    /// Whatever was done before the state was set is visible.
    #[inline]
    pub(crate) fn state(&self) -> State {
        let packed = self.state.load(Ordering::Acquire);
        let phase = match packed & 7 {
            0 => Phase::Live,
            1 => Phase::Draining,
            2 => Phase::Stopping,
            3 => Phase::Contained,
            4 => Phase::Failed,
            _ => Phase::Wedged,
        };
        State { epoch: packed >> 3, phase }
    }

    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state.epoch << 3 | state.phase as u64, Ordering::Release);
    }

    pub(crate) fn park(&self, pair: Box<Inner<D>>) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        if !parked.closed {
            parked.pairs.push(pair);
        }
    }

    /// The one with the lowest identifier.
    pub(crate) fn unpark(&self) -> Option<Box<Inner<D>>> {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, _) = parked.pairs.iter().enumerate().min_by_key(|(_, pair)| pair.qid())?;
        Some(parked.pairs.swap_remove(index))
    }

    pub(crate) fn each_parked(&self, mut action: impl FnMut(&mut Inner<D>)) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.pairs.iter_mut().for_each(|pair| action(pair));
    }

    pub(crate) fn lose_namespace(&self, nsid: u32) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(nsid);
    }

    pub(crate) fn is_lost(&self, nsid: u32) -> bool {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).contains(&nsid)
    }

    pub(crate) fn close(&self) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.closed = true;
        parked.pairs.clear();
    }
}

impl<D: PciDevice> Drop for Shared<D> {
    fn drop(&mut self) {
        // In any other phase the controller may still reach it.
        if matches!(self.state().phase, Phase::Contained | Phase::Failed) {
            self.memory.give_back();
        }
    }
}

/// A device's queue pairs, for whoever hands them to cores, and how the device is. Any thread may
/// ask.
pub struct QueuePool<D: PciDevice> {
    shared: Arc<Shared<D>>,
    queue_count: u16,
}

impl<D: PciDevice> Clone for QueuePool<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), queue_count: self.queue_count }
    }
}

impl<D: PciDevice> QueuePool<D> {
    pub(crate) fn new(shared: &Arc<Shared<D>>, queue_count: u16) -> Self {
        Self { shared: Arc::clone(shared), queue_count }
    }

    /// A queue pair that nobody has; it comes back when it is dropped. `None` when all are taken.
    /// `namespaces` are those it can reach.
    pub fn take(&self, namespaces: &[Namespace]) -> Option<IoQueuePair<D>> {
        let mut inner = self.shared.unpark()?;
        inner.set_namespaces(namespaces);
        Some(IoQueuePair::new(inner))
    }

    /// How many queue pairs the controller granted.
    pub fn queue_count(&self) -> u16 {
        self.queue_count
    }

    /// What the device is at the moment.
    pub fn health(&self) -> Health {
        match self.shared.state().phase {
            Phase::Live => Health::Live,
            Phase::Draining | Phase::Stopping | Phase::Contained => Health::Recovering,
            Phase::Failed | Phase::Wedged => Health::Failed,
        }
    }

    /// Counters of every queue pair; the first is queue 1's.
    pub fn stats(&self) -> Vec<QueueStats> {
        let slots = self.shared.slots.iter().take(usize::from(self.queue_count));
        slots.map(Slot::stats).collect()
    }
}
