//! What a reactor does when there is nothing to do.

use std::time::Duration;

/// How a reactor spends turns without work: it spins, then yields its CPU, then naps.
///
/// Spinning has the lowest latency and burns the core. Yielding costs a system call per turn and
/// lets others on the same CPU run at once: with soft-RoCE, whose packets the kernel handles on the
/// CPUs at hand, that is what makes progress. Napping gives the core back and adds up to the nap
/// (and the kernel's timer slack) to the first I/O after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdlePolicy {
    /// Turns without work before it starts to yield.
    pub spin_turns: u32,
    /// Turns without work before it starts to nap.
    pub yield_turns: u32,
    /// Length of a nap; zero: never nap.
    pub nap: Duration,
}

impl IdlePolicy {
    /// Spins for ever: for a core that has nothing else to do.
    pub const SPIN: Self =
        Self { spin_turns: u32::MAX, yield_turns: u32::MAX, nap: Duration::ZERO };
}

impl Default for IdlePolicy {
    /// Spins for some tens of microseconds, then yields, and never naps: the latency of an I/O
    /// stays that of polling wherever the core is its own.
    fn default() -> Self {
        Self { spin_turns: 256, yield_turns: u32::MAX, nap: Duration::ZERO }
    }
}

#[derive(Debug)]
pub(crate) struct Idler {
    policy: IdlePolicy,
    idle_turns: u32,
}

impl Idler {
    pub(crate) fn new(policy: IdlePolicy) -> Self {
        Self { policy, idle_turns: 0 }
    }

    /// After a turn; says whether time has passed for something other than the turn.
    #[inline]
    pub(crate) fn after_turn(&mut self, work: usize) -> bool {
        if work > 0 {
            self.idle_turns = 0;
            return false;
        }
        self.idle_turns = self.idle_turns.saturating_add(1);
        if self.idle_turns <= self.policy.spin_turns {
            std::hint::spin_loop();
            return false;
        }
        if self.idle_turns > self.policy.yield_turns && !self.policy.nap.is_zero() {
            std::thread::sleep(self.policy.nap);
        } else {
            std::thread::yield_now();
        }
        true
    }
}
