//! The admin queue: one command at a time, aborts, and asynchronous event requests.

use dma::ArenaError;
use nvme_spec::command::{Cqe, Sqe};

use crate::limits::ADMIN_ENTRIES;
use crate::memory::Memory;
use crate::ring::Ring;
use crate::seam::PciDevice;

/// What an admin command was sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The step that the device waits for.
    Command,
    /// An event, whenever it comes.
    Event,
    /// An abort, whose answer tells nothing that is needed.
    Abort,
}

#[derive(Debug)]
pub(crate) struct AdminQueue {
    pub(crate) ring: Ring,
    /// By slot: what is in flight, and how often the slot was used.
    slots: [(Option<Purpose>, u8); ADMIN_ENTRIES as usize - 1],
}

impl AdminQueue {
    pub(crate) fn new(memory: &Memory, dstrd: u8) -> Result<Self, ArenaError> {
        let ring = Ring::new(memory, 0, ADMIN_ENTRIES, dstrd)?;
        Ok(Self { ring, slots: [(None, 0); ADMIN_ENTRIES as usize - 1] })
    }

    /// Forgets what is in flight. The controller must not look at the queues.
    pub(crate) fn reset(&mut self) {
        self.ring.reset();
        self.slots.iter_mut().for_each(|slot| slot.0 = None);
    }

    /// Sends a command; false when every slot is taken.
    pub(crate) fn submit<D: PciDevice>(
        &mut self,
        device: &D,
        mut sqe: Sqe,
        purpose: Purpose,
    ) -> bool {
        let free = self.slots.iter_mut().enumerate().find(|(_, slot)| slot.0.is_none());
        let Some((index, slot)) = free else { return false };
        *slot = (Some(purpose), slot.1.wrapping_add(1));
        sqe.cid = (u16::from(slot.1) << 8 | index as u16).into();
        self.ring.push(&sqe);
        self.ring.ring_tail(device);
        true
    }

    /// Commands in flight for a purpose.
    pub(crate) fn in_flight(&self, purpose: Purpose) -> usize {
        self.slots.iter().filter(|slot| slot.0 == Some(purpose)).count()
    }

    /// Takes the next completion of a command in flight; others are dropped.
    pub(crate) fn poll<D: PciDevice>(&mut self, device: &D) -> Option<(Purpose, Cqe)> {
        let mut found = None;
        // Bounded by what the queue holds, for controllers that never stop.
        for _ in 0..ADMIN_ENTRIES {
            let Some(cqe) = self.ring.pop() else { break };
            let (index, uses) = (usize::from(cqe.cid() & 0xFF), (cqe.cid() >> 8) as u8);
            match self.slots.get_mut(index) {
                Some(slot) if slot.1 == uses && slot.0.is_some() => {
                    found = slot.0.take().map(|purpose| (purpose, cqe));
                    break;
                }
                _ => tracing::warn!(cid = cqe.cid(), "admin completion for no command in flight"),
            }
        }
        self.ring.ring_head(device);
        found
    }
}
