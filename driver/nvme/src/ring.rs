//! A submission and a completion queue in memory, and their doorbells.

use dma::{ArenaError, DmaSpan};
use nvme_spec::command::{Cqe, Sqe};
use nvme_spec::registers::{cq_head_doorbell, sq_tail_doorbell};

use crate::limits::PAGE_BYTES;
use crate::memory::Memory;
use crate::seam::PciDevice;

const SQE_BYTES: u32 = 64;
const CQE_BYTES: u32 = 16;

/// A queue pair's rings. The owner keeps fewer commands in flight than there are entries, so the
/// submission queue never overflows and its head, which the controller reports, need not be
/// believed.
#[derive(Debug)]
pub(crate) struct Ring {
    sq: DmaSpan,
    cq: DmaSpan,
    entries: u16,
    tail: u16,
    head: u16,
    /// Phase tag of entries that are new.
    phase: bool,
    tail_doorbell: Doorbell,
    head_doorbell: Doorbell,
    /// Doorbell registers written so far.
    pub(crate) doorbells: u64,
}

/// One doorbell: a register, and its shadow in memory where the controller looks at that.
#[derive(Debug)]
struct Doorbell {
    register: u32,
    shadow: Option<Shadow>,
    /// The value last told.
    told: u16,
}

#[derive(Clone, Copy, Debug)]
struct Shadow {
    value: DmaSpan,
    event: DmaSpan,
}

impl Ring {
    pub(crate) fn new(
        memory: &Memory,
        qid: u16,
        entries: u16,
        dstrd: u8,
    ) -> Result<Self, ArenaError> {
        let page = PAGE_BYTES as usize;
        let sq = memory.carve(usize::from(entries) * SQE_BYTES as usize, page)?;
        let cq = memory.carve(usize::from(entries) * CQE_BYTES as usize, page)?;
        let doorbell = |register| Doorbell { register, shadow: None, told: 0 };
        Ok(Self {
            sq,
            cq,
            entries,
            tail: 0,
            head: 0,
            phase: true,
            tail_doorbell: doorbell(sq_tail_doorbell(qid, dstrd)),
            head_doorbell: doorbell(cq_head_doorbell(qid, dstrd)),
            doorbells: 0,
        })
    }

    pub(crate) fn sq_iova(&self) -> u64 {
        self.sq.iova()
    }

    pub(crate) fn cq_iova(&self) -> u64 {
        self.cq.iova()
    }

    /// Has the doorbells of queue `qid` looked for in these pages (Doorbell Buffer Config; NVMe
    /// Base 2.1, section 5.2.5): each at the offset that its register has from the first.
    pub(crate) fn set_shadows(&mut self, qid: u16, dstrd: u8, values: DmaSpan, events: DmaSpan) {
        let shadow = |register: u32| {
            let at = register - sq_tail_doorbell(0, dstrd);
            let fits = at + 4 <= values.len() && at + 4 <= events.len();
            fits.then(|| Shadow { value: values.subspan(at, 4), event: events.subspan(at, 4) })
        };
        self.tail_doorbell.shadow = shadow(sq_tail_doorbell(qid, dstrd));
        self.head_doorbell.shadow = shadow(cq_head_doorbell(qid, dstrd));
    }

    /// As after creation. The controller must not look at the queues.
    pub(crate) fn reset(&mut self) {
        // Phase tags of old entries must not be taken for new ones.
        self.cq.clear();
        (self.tail, self.head, self.phase) = (0, 0, true);
        for doorbell in [&mut self.tail_doorbell, &mut self.head_doorbell] {
            doorbell.told = 0;
            if let Some(shadow) = doorbell.shadow {
                shadow.value.store_u32(0, 0);
                shadow.event.store_u32(0, 0);
            }
        }
    }

    /// Appends a command; the controller learns of it by [`Ring::ring_tail`].
    #[inline]
    pub(crate) fn push(&mut self, sqe: &Sqe) {
        self.sq.write_obj(u32::from(self.tail) * SQE_BYTES, sqe);
        self.tail = if self.tail + 1 == self.entries { 0 } else { self.tail + 1 };
    }

    /// Takes the next completion.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Cqe> {
        let at = u32::from(self.head) * CQE_BYTES;
        // The last word holds the phase tag; loading it orders the reading of the rest after it.
        if (self.cq.load_u32(at + 12) >> 16 & 1 != 0) != self.phase {
            return None;
        }
        let cqe = self.cq.read_obj(at);
        self.head += 1;
        if self.head == self.entries {
            (self.head, self.phase) = (0, !self.phase);
        }
        Some(cqe)
    }

    /// Whether commands were appended that the controller has not been told of.
    #[inline]
    pub(crate) fn has_untold(&self) -> bool {
        self.tail != self.tail_doorbell.told
    }

    /// Tells the controller of all commands appended.
    #[inline]
    pub(crate) fn ring_tail<D: PciDevice>(&mut self, device: &D) {
        self.doorbells += u64::from(self.tail_doorbell.ring(device, self.tail));
    }

    /// Gives the controller back the completion entries that were taken.
    #[inline]
    pub(crate) fn ring_head<D: PciDevice>(&mut self, device: &D) {
        self.doorbells += u64::from(self.head_doorbell.ring(device, self.head));
    }
}

impl Doorbell {
    /// Tells a new value, if it is one; whether that took a register write.
    #[inline]
    fn ring<D: PciDevice>(&mut self, device: &D, value: u16) -> bool {
        let old = std::mem::replace(&mut self.told, value);
        if old == value {
            return false;
        }
        if let Some(shadow) = self.shadow {
            shadow.value.store_u32(0, u32::from(value));
            // The controller writes its event index, then looks at the shadow once more; we write
            // the shadow, then look at the event index. Of the two, one sees the other.
            DmaSpan::full_barrier();
            if !passes(shadow.event.load_u32(0) as u16, old, value) {
                return false;
            }
        }
        device.write32(self.register, u32::from(value));
        true
    }
}

/// Whether going from `old` to `new` passes `event`, the value at which the controller wants to be
/// told; all modulo 2^16.
#[inline]
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_index_is_passed_or_not() {
        assert!(passes(5, 5, 6), "it slept at the old value");
        assert!(!passes(4, 5, 6), "it has not come this far: it will look again");
        assert!(passes(6, 5, 8));
        assert!(!passes(8, 5, 8));
        assert!(passes(0xFFFF, 0xFFFE, 1));
        // A queue that wrapped: from 255 to 1 of 256 entries.
        assert!(passes(0, 255, 1));
    }
}
