//! Reserved volumes: space is kept for every block of them that may still need it.
//!
//! An entry is *covered* when it has a cluster that nobody else holds, or one that a write is
//! bringing it: there is a place for each of its blocks then. Any other entry may take one cluster
//! more, and no second one, because the first covers it. So what is to be kept is a count of
//! entries; `docs/volumes.md` (Reserved volumes) has the argument. That an entry is covered is
//! found here when it takes a cluster, and when something was deleted; that it no longer is, when
//! blocks are cleared and when a snapshot shares them all.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::volume::Volume;
use super::{Call, Owner, Planted, VolumeError};
use crate::limits::{CLUSTER_BYTES, LEAF_ENTRIES};
use crate::map::At;
use crate::space::Space;

/// Which entries of a volume are covered.
#[derive(Debug)]
pub(crate) struct Cover {
    words: Vec<u64>,
    entries: u32,
    /// Entries that are not.
    missing: u32,
    /// Space is kept for those. Not yet so while they are being counted.
    kept: bool,
}

/// The search for entries that have come to be covered because something else is gone.
#[derive(Debug, Default)]
pub(crate) struct Covers {
    /// Volumes, and the entry from which to go on.
    queue: VecDeque<(u32, u32)>,
    /// It is to begin when what was released up to this journal block is free.
    wanted_after: Option<u64>,
    /// The call that waits for it, because there was not enough space before.
    short: Option<u64>,
    found: Vec<u32>,
}

impl Covers {
    /// Whether it is going, or wanted.
    pub(super) fn is_busy(&self) -> bool {
        self.wanted_after.is_some() || !self.queue.is_empty()
    }

    /// Looks once more when what was released up to this journal block is free.
    pub(super) fn want(&mut self, after: u64) {
        self.wanted_after = self.wanted_after.max(Some(after));
    }
}

impl Cover {
    /// Of a volume of which nothing is covered.
    pub(crate) fn new(bytes: u64, kept: bool) -> Self {
        let entries = bytes.div_ceil(u64::from(CLUSTER_BYTES)) as u32;
        let words = vec![0; (entries as usize).div_ceil(64)];
        Self { words, entries, missing: entries, kept }
    }

    /// Clusters that are to be kept for it: one for each entry that is not covered, and its map's
    /// pages. A leaf takes less than a cluster, and is there twice while a checkpoint is written;
    /// so is what is above it.
    pub(crate) fn promise(&self) -> u64 {
        match self.kept {
            true => self.cost(),
            false => 0,
        }
    }

    fn cost(&self) -> u64 {
        let leaves = u64::from(self.entries).div_ceil(LEAF_ENTRIES as u64);
        u64::from(self.missing) + 2 * (leaves + 1)
    }

    fn has(&self, entry: u32) -> bool {
        entry >= self.entries || self.words[entry as usize / 64] >> (entry % 64) & 1 == 1
    }

    fn set(&mut self, entry: u32) {
        self.words[entry as usize / 64] |= 1 << (entry % 64);
        self.missing -= 1;
    }

    fn unset(&mut self, entry: u32) {
        self.words[entry as usize / 64] &= !(1 << (entry % 64));
        self.missing += 1;
    }

    /// The same for another size.
    fn resize(&mut self, bytes: u64) {
        let Self { words, entries, missing, kept } = Self::new(bytes, self.kept);
        let last = words.len();
        self.words.resize(last, 0);
        (self.entries, self.missing, self.kept) = (entries, missing, kept);
        if let Some(word) = self.words.last_mut()
            && entries % 64 != 0
        {
            *word &= (1 << (entries % 64)) - 1;
        }
        self.missing -= self.words.iter().map(|word| word.count_ones()).sum::<u32>();
    }
}

impl Volume {
    /// Takes a cluster for an entry. Only the first one of an entry may be one that was kept.
    pub(super) fn take_cluster(&mut self, entry: u32, space: &mut Space) -> Option<u32> {
        let Some(cover) = self.cover.as_mut().filter(|cover| !cover.has(entry)) else {
            return space.take(&mut self.run);
        };
        let cluster = match cover.kept {
            true => space.take_promised(&mut self.run)?,
            false => space.take(&mut self.run)?,
        };
        cover.set(entry);
        Some(cluster)
    }
}

impl Owner {
    /// What is kept for all volumes together, counted anew.
    pub(super) fn promise_anew(&mut self) {
        let covers = self.volumes.values().filter_map(|volume| volume.cover.as_ref());
        self.space.set_promised(covers.map(Cover::promise).sum());
    }

    /// No entry of a volume is covered any more: all is shared, or will be in a moment.
    pub(super) fn uncover_all(&mut self, id: u32) {
        if self.bugs.is(Planted::SharedStaysCovered) {
            return;
        }
        if let Some(volume) = self.volumes.get_mut(&id)
            && let Some(cover) = &mut volume.cover
        {
            *cover = Cover::new(volume.descriptor.bytes, cover.kept);
            self.promise_anew();
        }
    }

    /// A volume has another size.
    pub(super) fn resize_cover(&mut self, id: u32) {
        if let Some(volume) = self.volumes.get_mut(&id)
            && let Some(cover) = &mut volume.cover
        {
            cover.resize(volume.descriptor.bytes);
            self.promise_anew();
        }
    }

    /// Space is kept for a volume from here on, or no longer.
    pub(super) fn reserve(&mut self, id: u32, reserved: bool) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        (volume.descriptor.reserved, volume.changed) = (reserved, true);
        let bytes = volume.descriptor.bytes;
        match reserved {
            true => volume.cover.get_or_insert_with(|| Cover::new(bytes, true)).kept = true,
            false => volume.cover = None,
        }
        self.promise_anew();
    }

    /// Something of these entries is gone: those that have nothing of their own left are not
    /// covered any more.
    pub(super) fn recheck(&mut self, id: u32, entries: RangeInclusive<u32>) {
        let Self { volumes, tree, space, .. } = self;
        let Some(volume) = volumes.get_mut(&id) else { return };
        let (root, head) = volume.tree();
        let Some(cover) = &mut volume.cover else { return };
        let last = (*entries.end()).min(cover.entries.saturating_sub(1));
        for index in *entries.start()..=last {
            if !cover.has(index) {
                continue;
            }
            let state = self.entries.get(&(id, index));
            let coming = state.is_some_and(|state| state.cluster != 0 || state.pending != 0);
            if !coming && tree.own_cluster(At { root, head, index }).is_none() {
                cover.unset(index);
                if cover.kept {
                    space.set_promised(space.promised() + 1);
                }
            }
        }
    }

    /// Finds all that is covered, where nobody reads or writes yet.
    pub(super) fn cover_all(&mut self) {
        let reserved = self.volumes.iter().filter(|(_, volume)| volume.descriptor.reserved);
        for id in reserved.map(|(id, _)| *id).collect::<Vec<u32>>() {
            self.uncover_all(id);
            self.cover_from(id, 0, usize::MAX);
        }
        self.promise_anew();
    }

    /// Covers entries from `from` on that have come to own something, as far as `budget` leaves;
    /// where to go on.
    fn cover_from(&mut self, id: u32, from: u32, budget: usize) -> Option<u32> {
        let Self { volumes, tree, space, covers, entries, closing, .. } = self;
        let volume = volumes.get_mut(&id)?;
        let (root, head) = volume.tree();
        let cover = volume.cover.as_mut()?;
        covers.found.clear();
        let next = tree.walk(root, from, budget, |index, _, unshared| {
            if unshared && !cover.has(index) {
                covers.found.push(index);
            }
        });
        for index in covers.found.drain(..) {
            let at = At { root, head, index };
            // One with an open record has its cluster from that: see `Owner::find_place`.
            let state = entries.get(&(id, index));
            let covered = match state.and_then(|state| state.open(closing.closed_before)) {
                Some(_) => tree.own_cluster(at).is_some(),
                None => tree.adopt_any(at, space),
            };
            if covered {
                cover.set(index);
                if cover.kept {
                    space.set_promised(space.promised().saturating_sub(1));
                }
            }
        }
        next
    }

    /// Goes on with the search, by one leaf in a turn.
    pub(super) fn poll_covers(&mut self) {
        if let Some(after) = self.covers.wanted_after
            && !self.tree.has_doomed()
            && self.releases.first_position().is_none_or(|first| first > after)
        {
            self.covers.wanted_after = None;
            let with = self.volumes.iter().filter(|(_, volume)| volume.cover.is_some());
            self.covers.queue = with.map(|(id, _)| (*id, 0)).collect();
        }
        let Some(&(id, from)) = self.covers.queue.front() else { return };
        // What is found of a volume that is about to be shared would not be so for long.
        if self.volumes.get(&id).is_some_and(|volume| volume.frozen) {
            return;
        }
        match self.cover_from(id, from, 1) {
            Some(next) => self.covers.queue[0].1 = next,
            None => drop(self.covers.queue.pop_front()),
        }
    }

    /// Whether there is space for `more` clusters to be kept; with 0, for one volume or snapshot
    /// more that takes no space but for its map. If not, the call waits once for what is being
    /// released, and then it is refused.
    ///
    /// # Errors
    /// There is not, and nothing is coming.
    pub(super) fn has_room_for(
        &mut self,
        id: u64,
        call: &Call,
        more: u64,
    ) -> Result<bool, VolumeError> {
        if self.journal.is_broken() {
            return Err(VolumeError::Broken);
        }
        let lacking = self.space.lacking(more);
        let waited = self.covers.short == Some(id);
        let coming = self.covers.is_busy() || (self.is_checkpoint_coming() && !self.lacks_pages());
        if lacking == 0 || (waited && !coming) {
            self.covers.short = None;
            return match lacking {
                0 => Ok(true),
                clusters => {
                    Err(VolumeError::Space { missing: clusters * u64::from(CLUSTER_BYTES) })
                }
            };
        }
        if !waited {
            let last = self.releases.last_position().unwrap_or(0);
            self.closing.want(last + 1);
            self.covers.want(last);
            self.covers.short = Some(id);
            self.want_checkpoint();
        }
        self.calls.queue.push_front((id, call.clone()));
        Ok(false)
    }

    /// What taking snapshots of these volumes has to keep space for anew.
    pub(super) fn cost_of_sharing(&self, ids: impl Iterator<Item = u32>) -> u64 {
        let covers = ids.filter_map(|id| self.volumes.get(&id)?.cover.as_ref());
        covers.map(|cover| u64::from(cover.entries - cover.missing)).sum()
    }

    /// What a volume has to keep space for beyond what it does, once it has this size.
    pub(super) fn cost_of_size(&self, id: u32, bytes: u64) -> u64 {
        let cover = self.volumes.get(&id).and_then(|volume| volume.cover.as_ref());
        cover.map_or(0, |cover| {
            let (old, new) = (u64::from(cover.entries), Cover::new(bytes, true));
            let more = u64::from(new.entries).saturating_sub(old);
            more + (new.cost() - u64::from(new.missing))
                .saturating_sub(cover.cost() - u64::from(cover.missing))
        })
    }

    /// What it has to keep space for beyond what it does, once it is what another one is.
    pub(super) fn cost_of_rollback(&self, id: u32, to: u32) -> u64 {
        let cover = self.volumes.get(&id).and_then(|volume| volume.cover.as_ref());
        let bytes = self.volumes.get(&to).map_or(0, |volume| volume.descriptor.bytes);
        cover.map_or(0, |cover| Cover::new(bytes, true).cost().saturating_sub(cover.cost()))
    }

    /// Whether all that a volume has is known; if not, the call that asked waits until it is.
    pub(super) fn is_covered_known(&mut self, id: u64, call: &Call, volume: u32) -> bool {
        let Some(own) = self.volumes.get_mut(&volume) else { return true };
        if own.cover.is_none() {
            own.cover = Some(Cover::new(own.descriptor.bytes, false));
            self.covers.queue.push_back((volume, 0));
        }
        let known = !self.covers.queue.iter().any(|(other, _)| *other == volume);
        if !known {
            self.calls.queue.push_front((id, call.clone()));
        }
        known
    }

    /// What reserving a volume takes.
    pub(super) fn cost_of_reserving(&self, id: u32) -> u64 {
        let cover = self.volumes.get(&id).and_then(|volume| volume.cover.as_ref());
        cover.filter(|cover| !cover.kept).map_or(0, Cover::cost)
    }

    /// A volume is not to be reserved after all.
    pub(super) fn forget_cover(&mut self, id: u32) {
        if let Some(volume) = self.volumes.get_mut(&id)
            && !volume.descriptor.reserved
        {
            volume.cover = None;
        }
    }
}
