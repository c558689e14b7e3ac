//! Moving what lies in some clusters to others: content is equal, so nobody who reads notices.
//!
//! Trees share nodes only at the same place: by copies of a root, and then of what is below. So a
//! cluster is held by entries of one index alone, in whatever trees, and all that hold it are found
//! at one *position*: the leaves of all trees that map the same 512 entries. They change at once.

use std::collections::HashMap;

use super::tree::Tree;
use super::{Entry, NodeRef, Release, Root};
use crate::format::Extent;
use crate::limits::{FANOUT, LEAF_ENTRIES};
use crate::space::Space;

/// Leaves of the largest volume, and so positions.
const POSITIONS: u32 = (FANOUT * FANOUT) as u32;

impl Tree {
    /// Blocks in these clusters are own no longer, in leaves from this number on, so many of them;
    /// where to go on. Whoever sees them so yet has begun before: see [`crate::epoch`].
    pub fn disown(&self, from: u32, leaves: usize, is_in: impl Fn(u32) -> bool) -> Option<u32> {
        let all = self.leaves.numbers();
        let end = all.end.min(from + leaves as u32);
        for leaf in (from..end).filter(|leaf| self.leaves[*leaf].refs > 0) {
            for slot in 0..LEAF_ENTRIES {
                let entry = self.map.leaf_entry(leaf, slot);
                if entry.own_mask() == 0 {
                    continue;
                }
                let kept = match entry.is_scattered() {
                    true => {
                        let clusters = self.map.places(entry).clusters();
                        let lost = clusters.iter().filter(|(cluster, _)| is_in(*cluster));
                        let lost = lost.fold(0, |mask, (_, blocks)| mask | blocks);
                        Entry::scattered(entry.value(), entry.own_mask() & !lost)
                    }
                    false if is_in(entry.value()) => entry.without_own(),
                    false => continue,
                };
                self.map.store_entry(leaf, slot, kept.with_guard(entry.guarded()));
            }
        }
        (end < all.end).then_some(end)
    }

    /// The leaves at the first position from this one on that has any, having looked at so many;
    /// where that is or where to go on, and `None` behind the last one.
    pub fn leaves_from(&self, from: u32, positions: usize, leaves: &mut Vec<u32>) -> Option<u32> {
        leaves.clear();
        let mut position = from;
        for _ in 0..positions {
            if position >= POSITIONS {
                return None;
            }
            let mut has_directory = false;
            for root in self.live_roots() {
                let directory = self.map.directory(root, position as usize / FANOUT);
                if directory != 0 {
                    has_directory = true;
                    let leaf = self.map.leaf_in(directory, position as usize % FANOUT);
                    if leaf != 0 {
                        leaves.push(leaf);
                    }
                }
            }
            if !leaves.is_empty() {
                leaves.sort_unstable();
                leaves.dedup();
                return Some(position);
            }
            position = match has_directory {
                true => position + 1,
                false => (position / FANOUT as u32 + 1) * FANOUT as u32,
            };
        }
        (position < POSITIONS).then_some(position)
    }

    fn live_roots(&self) -> impl Iterator<Item = Root> + '_ {
        self.roots.numbers().filter(|root| self.roots[*root].refs > 0)
    }

    /// Adds those clusters of a leaf that `is_in` picks.
    pub fn clusters_in(&self, leaf: u32, is_in: impl Fn(u32) -> bool, clusters: &mut Vec<u32>) {
        for slot in 0..LEAF_ENTRIES {
            let entry = self.map.leaf_entry(leaf, slot);
            if entry.is_scattered() {
                let all = self.map.places(entry).clusters();
                clusters.extend(all.iter().map(|(cluster, _)| cluster).filter(|c| is_in(*c)));
            } else if !entry.is_zero() && is_in(entry.value()) {
                clusters.push(entry.value());
            }
        }
    }

    /// What lies in a cluster that has been copied lies in its copy from now on, in all leaves at a
    /// position. Nothing of it is own.
    pub fn replace(
        &mut self,
        position: u32,
        copies: &HashMap<u32, u32>,
        space: &mut Space,
        released: &mut Vec<Release>,
    ) {
        let mut leaves = Vec::new();
        if self.leaves_from(position, 1, &mut leaves) != Some(position) {
            return;
        }
        let mut lines = HashMap::new();
        for leaf in leaves {
            let mut found = Vec::new();
            self.clusters_in(leaf, |cluster| copies.contains_key(&cluster), &mut found);
            if found.is_empty() {
                continue;
            }
            self.touch_paths(position, leaf);
            for slot in 0..LEAF_ENTRIES {
                let old = self.map.leaf_entry(leaf, slot);
                let new = match old.is_scattered() {
                    true => self.replace_in_line(old, copies, &mut lines, space),
                    false => copies.get(&old.value()).filter(|_| !old.is_zero()).map(|copy| {
                        space.acquire(*copy);
                        Entry::direct(*copy, old.mask(), false)
                    }),
                };
                let Some(new) = new else { continue };
                self.map.store_entry(leaf, slot, new.with_guard(old.guarded()));
                released.push(match old.is_scattered() {
                    true => Release::Line(old.value()),
                    false => Release::Cluster { cluster: old.value(), mask: 0, last: true },
                });
            }
        }
    }

    /// A scattered entry with another line; the same one for all that had the same.
    fn replace_in_line(
        &mut self,
        old: Entry,
        copies: &HashMap<u32, u32>,
        lines: &mut HashMap<u32, u32>,
        space: &mut Space,
    ) -> Option<Entry> {
        let mut places = self.map.places(old);
        let moved = places.clusters();
        let moved = moved.iter().filter(|(cluster, _)| copies.contains_key(cluster));
        let moved = moved.fold(0, |mask, (_, blocks)| mask | blocks);
        if moved == 0 {
            return None;
        }
        let line = match lines.get(&old.value()) {
            Some(&line) => {
                self.lines[line] += 1;
                line
            }
            None => {
                for at in &mut places.at {
                    *at = copies.get(at).copied().unwrap_or(*at);
                }
                places.clusters().iter().for_each(|(cluster, _)| space.acquire(cluster));
                let line = self.new_line(&places).value();
                lines.insert(old.value(), line);
                line
            }
        };
        Some(Entry::scattered(line, old.own_mask() & !moved))
    }

    /// A leaf is to be written, and so all above it in every tree that has it.
    fn touch_paths(&mut self, position: u32, leaf: u32) {
        let (slot, below) = (position as usize / FANOUT, position as usize % FANOUT);
        for root in self.live_roots().collect::<Vec<_>>() {
            let directory = self.map.directory(root, slot);
            if directory != 0 && self.map.leaf_in(directory, below) == leaf {
                self.touch(NodeRef::Root(root));
                self.touch(NodeRef::Dir(directory));
            }
        }
        self.touch(NodeRef::Leaf(leaf));
    }

    /// The next checkpoint writes those nodes at a position anew, leaves and what is above them,
    /// that are in such places.
    pub fn rewrite(&mut self, position: u32, is_in: impl Fn(Extent) -> bool) {
        let mut leaves = Vec::new();
        if self.leaves_from(position, 1, &mut leaves) != Some(position) {
            return;
        }
        leaves.retain(|leaf| is_in(self.leaves[*leaf].extent));
        leaves.into_iter().for_each(|leaf| self.touch_paths(position, leaf));
        for root in self.live_roots().collect::<Vec<_>>() {
            let directory = self.map.directory(root, position as usize / FANOUT);
            if directory != 0 && is_in(self.directories[directory].extent) {
                self.touch(NodeRef::Root(root));
                self.touch(NodeRef::Dir(directory));
            }
        }
    }

    /// The same of all roots.
    pub fn rewrite_roots(&mut self, is_in: impl Fn(Extent) -> bool) {
        for root in self.live_roots().collect::<Vec<_>>() {
            if is_in(self.roots[root].extent) {
                self.touch(NodeRef::Root(root));
            }
        }
    }
}
