//! Commands in flight at the controller, by slot, in the order they were pushed.

use std::time::{Duration, Instant};

use crate::limits::SLOT_BITS;

const NONE: u16 = u16::MAX;

/// A fixed table. The slots in flight form a list from the oldest to the newest; `untold` is the
/// first of those that the controller has not been told of.
#[derive(Debug)]
pub(super) struct Children {
    slots: Box<[Child]>,
    /// The free slots, another list by `next`. The one that has been free for longest is used
    /// first: a completion of its last use, doubled and late, finds its count still telling.
    first_free: u16,
    last_free: u16,
    oldest: u16,
    newest: u16,
    untold: u16,
}

#[derive(Clone, Debug)]
struct Child {
    /// The request it is part of; `NONE` while the slot is free.
    request: u16,
    /// How often the slot was used, as far as it fits in an identifier.
    uses: u16,
    aborted: bool,
    next: u16,
    prev: u16,
    told: Instant,
}

impl Children {
    pub(super) fn new(depth: u16, now: Instant) -> Self {
        let child = |slot| Child {
            request: NONE,
            uses: 0,
            aborted: false,
            next: if slot + 1 < depth { slot + 1 } else { NONE },
            prev: NONE,
            told: now,
        };
        Self {
            slots: (0..depth).map(child).collect(),
            first_free: 0,
            last_free: depth - 1,
            oldest: NONE,
            newest: NONE,
            untold: NONE,
        }
    }

    pub(super) fn depth(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Takes a slot for a child of `request`: its number, and the command identifier.
    #[inline]
    pub(super) fn take(&mut self, request: u16) -> Option<(u16, u16)> {
        let slot = self.first_free;
        let newest = self.newest;
        let child = self.slots.get_mut(usize::from(slot))?;
        self.first_free = child.next;
        child.request = request;
        child.uses = child.uses.wrapping_add(1);
        child.aborted = false;
        (child.prev, child.next) = (newest, NONE);
        let cid = child.uses << SLOT_BITS | slot;
        match newest {
            NONE => self.oldest = slot,
            newest => self.slots[usize::from(newest)].next = slot,
        }
        self.newest = slot;
        if self.untold == NONE {
            self.untold = slot;
        }
        Some((slot, cid))
    }

    /// The controller is being told of everything: from now on the clock runs.
    #[inline]
    pub(super) fn told(&mut self, now: Instant) {
        while self.untold != NONE {
            let child = &mut self.slots[usize::from(self.untold)];
            child.told = now;
            self.untold = child.next;
        }
    }

    /// Frees the slot that `cid` names: its request, and whether it was to be aborted. `None` when
    /// no command with this identifier is in flight.
    #[inline]
    pub(super) fn release(&mut self, cid: u16) -> Option<(u16, bool)> {
        let slot = self.find(cid)?;
        Some(self.free_slot(slot))
    }

    /// Frees the oldest slot in flight, whatever it is: its request.
    pub(super) fn release_any(&mut self) -> Option<u16> {
        (self.oldest != NONE).then(|| self.free_slot(self.oldest).0)
    }

    /// Identifier and age of the oldest command that the controller knows, and whether it was to
    /// be aborted.
    #[inline]
    pub(super) fn oldest(&self, now: Instant) -> Option<(u16, Duration, bool)> {
        if self.oldest == NONE || self.oldest == self.untold {
            return None;
        }
        let child = &self.slots[usize::from(self.oldest)];
        let cid = child.uses << SLOT_BITS | self.oldest;
        Some((cid, now.saturating_duration_since(child.told), child.aborted))
    }

    pub(super) fn set_aborted(&mut self, cid: u16) {
        if let Some(slot) = self.find(cid) {
            self.slots[usize::from(slot)].aborted = true;
        }
    }

    #[inline]
    fn find(&self, cid: u16) -> Option<u16> {
        let slot = cid & ((1 << SLOT_BITS) - 1);
        let child = self.slots.get(usize::from(slot))?;
        (child.request != NONE && child.uses << SLOT_BITS == cid & !((1 << SLOT_BITS) - 1))
            .then_some(slot)
    }

    #[inline]
    fn free_slot(&mut self, slot: u16) -> (u16, bool) {
        let child = &mut self.slots[usize::from(slot)];
        let (request, aborted) = (child.request, child.aborted);
        let (prev, next) = (child.prev, child.next);
        child.request = NONE;
        child.next = NONE;
        match prev {
            NONE => self.oldest = next,
            prev => self.slots[usize::from(prev)].next = next,
        }
        match next {
            NONE => self.newest = prev,
            next => self.slots[usize::from(next)].prev = prev,
        }
        if self.untold == slot {
            self.untold = next;
        }
        match self.first_free {
            NONE => self.first_free = slot,
            _ => self.slots[usize::from(self.last_free)].next = slot,
        }
        self.last_free = slot;
        (request, aborted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_comes_again_only_after_all_others() {
        let (depth, now) = (31u16, Instant::now());
        let mut children = Children::new(depth, now);
        let (_, first) = children.take(0).unwrap();
        assert_eq!(children.release(first), Some((0, false)));
        let uses = 1 << (16 - SLOT_BITS);
        for _ in 1..u32::from(depth) * uses {
            let (_, cid) = children.take(1).unwrap();
            assert_eq!(children.release(first), None, "a doubled completion");
            children.release(cid);
        }
        assert_eq!(children.take(2).unwrap().1, first);
    }
}
