//! What a controller and its I/O queues, each on a core of its own, know of each other.
//!
//! Associations are counted. An even number is one that is up, the odd one after it says that it is
//! lost. A queue compares numbers once in each turn, which is the only thing it shares while it
//! works; whoever notices a loss first makes the number odd, and the controller makes it even again
//! when there is a new association.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The number of an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

impl Epoch {
    /// There is no association any more, and never will be.
    const CLOSED: Self = Self(u64::MAX);

    pub(crate) fn is_up(self) -> bool {
        self.0.is_multiple_of(2)
    }

    pub(crate) fn is_closed(self) -> bool {
        self == Self::CLOSED
    }
}

/// What a queue needs to connect to an association.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Up {
    pub(crate) cntlid: u16,
    pub(crate) depth: u16,
    pub(crate) in_capsule_bytes: u32,
    /// How long after a loss the controller may still execute commands.
    pub(crate) quiesce: Duration,
}

#[derive(Debug)]
pub(crate) struct Shared {
    epoch: AtomicU64,
    up: Mutex<Up>,
}

impl Shared {
    /// With the first association, which is up.
    pub(crate) fn new(up: Up) -> Self {
        Self { epoch: AtomicU64::new(0), up: Mutex::new(up) }
    }

    #[inline]
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// The association, with its number, if it is up.
    pub(crate) fn up(&self) -> Option<(Epoch, Up)> {
        // Under the lock, so that number and contents belong together.
        let up = self.lock();
        let epoch = self.epoch();
        epoch.is_up().then_some((epoch, *up))
    }

    /// An association is lost, which others may have noticed before.
    pub(crate) fn lose(&self, epoch: Epoch) {
        let lost = epoch.0.saturating_add(1);
        let _ = self.epoch.compare_exchange(epoch.0, lost, Ordering::AcqRel, Ordering::Acquire);
    }

    /// There is a new association; only after the last one was lost.
    pub(crate) fn rise(&self, up: Up) -> Epoch {
        let mut place = self.lock();
        *place = up;
        let epoch = Epoch(self.epoch().0.wrapping_add(1));
        debug_assert!(epoch.is_up());
        self.epoch.store(epoch.0, Ordering::Release);
        epoch
    }

    /// There will be no association any more.
    pub(crate) fn close(&self) {
        self.epoch.store(Epoch::CLOSED.0, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Up> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_counts_once_and_only_for_its_association() {
        let up = Up { cntlid: 1, depth: 1, in_capsule_bytes: 0, quiesce: Duration::ZERO };
        let shared = Shared::new(up);
        let (first, _) = shared.up().unwrap();
        shared.lose(first);
        shared.lose(first);
        assert!(!shared.epoch().is_up() && shared.up().is_none());
        let second = shared.rise(Up { cntlid: 2, ..up });
        shared.lose(first);
        assert_eq!(shared.up().map(|(epoch, up)| (epoch, up.cntlid)), Some((second, 2)));
        shared.close();
        assert!(shared.up().is_none() && shared.epoch().is_closed());
    }
}
