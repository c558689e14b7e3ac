//! What a reactor has done, written by its thread and read by others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of a reactor since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReactorStats {
    /// Turns.
    pub turns: u64,
    /// Turns that found something to do.
    pub busy_turns: u64,
    /// Time of the turns that found something to do, in nanoseconds.
    pub busy_ns: u64,
    /// Messages handled.
    pub messages: u64,
}

/// On cache lines of its own: the thread writes it every turn.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    turns: AtomicU64,
    busy_turns: AtomicU64,
    busy_ns: AtomicU64,
    messages: AtomicU64,
}

impl Counters {
    /// Only the reactor's thread calls this, so plain loads and stores lose nothing.
    #[inline]
    pub(crate) fn add_turn(&self, time: Duration, messages: usize, work: usize) {
        add(&self.turns, 1);
        if work > 0 {
            add(&self.busy_turns, 1);
            add(&self.busy_ns, time.as_nanos() as u64);
            add(&self.messages, messages as u64);
        }
    }

    pub(crate) fn read(&self) -> ReactorStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReactorStats {
            turns: read(&self.turns),
            busy_turns: read(&self.busy_turns),
            busy_ns: read(&self.busy_ns),
            messages: read(&self.messages),
        }
    }
}

#[inline]
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed) + amount, Ordering::Relaxed);
}
