//! What maps no longer name, until nobody can need it any more.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

use crate::epoch::OwnerEpoch;
use crate::map::Release;

/// Something let go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Item {
    /// By a map.
    Map(Release),
    /// Blocks that a write took and did not map.
    Blocks { cluster: u32, mask: u16 },
}

/// In the order of their records. An item is free again when its record is closed, because until
/// then a crash may bring the old mapping back, and when the grace period is over, because until
/// then an I/O that began under the old mapping may be in flight.
#[derive(Debug, Default)]
pub(crate) struct Releases {
    list: VecDeque<Waiting>,
    /// How many of the first have a grace period.
    stamped: usize,
    /// Blocks that must not be written yet although nothing maps them, by cluster.
    cooling: HashMap<u32, [u8; 16], RandomState>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    sequence: u64,
    /// Of the grace period; set when the record is closed.
    epoch: Option<u64>,
    item: Item,
}

impl Releases {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// All that wait.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.list.iter().map(|waiting| &waiting.item)
    }

    /// Journal block of the first one.
    pub(crate) fn first_position(&self) -> Option<u64> {
        self.list.front().map(|waiting| waiting.sequence)
    }

    /// Journal block of the last one.
    pub(crate) fn last_position(&self) -> Option<u64> {
        self.list.back().map(|waiting| waiting.sequence)
    }

    /// Blocks of a cluster that must not be written yet.
    pub(crate) fn cooling(&self, cluster: u32) -> u16 {
        let Some(counts) = self.cooling.get(&cluster) else { return 0 };
        (0..16).filter(|block| counts[*block] > 0).fold(0, |mask, block| mask | 1 << block)
    }

    /// Adds what a record in this block let go; empties the list.
    pub(crate) fn add(&mut self, sequence: u64, released: &mut Vec<Release>) {
        for release in released.drain(..) {
            self.add_item(sequence, Item::Map(release));
        }
    }

    pub(crate) fn add_item(&mut self, sequence: u64, item: Item) {
        // Positions may come in a slightly different order; a later one is safe for an earlier.
        let sequence = sequence.max(self.last_position().unwrap_or(0));
        self.cool(item, true);
        self.list.push_back(Waiting { sequence, epoch: None, item });
    }

    fn cool(&mut self, item: Item, on: bool) {
        // A cluster that is let go altogether counts its holder until then, and is not free.
        let (Item::Map(Release::Cluster { cluster, mask, last: false })
        | Item::Blocks { cluster, mask }) = item
        else {
            return;
        };
        let counts = self.cooling.entry(cluster).or_default();
        let mut left = mask;
        while left != 0 {
            let count = &mut counts[left.trailing_zeros() as usize];
            *count = if on { count.saturating_add(1) } else { count.saturating_sub(1) };
            left &= left - 1;
        }
        if !on && *counts == [0; 16] {
            self.cooling.remove(&cluster);
        }
    }

    /// The next one whose record is before `closed` and, if `grace`, whose grace period is over.
    pub(crate) fn pop(&mut self, closed: u64, epoch: &mut OwnerEpoch, grace: bool) -> Option<Item> {
        while let Some(waiting) = self.list.get_mut(self.stamped)
            && waiting.sequence < closed
        {
            waiting.epoch = Some(epoch.retire());
            self.stamped += 1;
        }
        let since = self.list.front()?.epoch?;
        if grace && !epoch.is_over(since) {
            return None;
        }
        self.stamped -= 1;
        let item = self.list.pop_front()?.item;
        self.cool(item, false);
        Some(item)
    }

    /// All of them, where nobody reads yet.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Item> {
        self.stamped = 0;
        self.cooling.clear();
        self.list.drain(..).map(|waiting| waiting.item)
    }
}
