//! Going through trees: what is in them, how two differ, what they reach.

use super::tree::Tree;
use super::{DIRECTORY_SHIFT, Entry, LEAF_SHIFT, NodeRef, Release, Root};
use crate::limits::{FANOUT, LEAF_ENTRIES};
use crate::space::Space;

/// A count that is not what the trees make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// References to a node.
    Node {
        /// The node.
        node: NodeRef,
        /// As counted.
        counted: u32,
        /// As found.
        found: u32,
    },
    /// References to a line.
    Line {
        /// The line.
        line: u32,
        /// As counted.
        counted: u32,
        /// As found.
        found: u32,
    },
    /// Holders of a cluster; a leak if more are counted than found.
    Cluster {
        /// The cluster.
        cluster: u32,
        /// As counted.
        counted: u32,
        /// As found.
        found: u32,
    },
}

/// References by the numbers of what they are to.
pub(super) struct Found {
    pub(super) roots: Vec<u32>,
    pub(super) directories: Vec<u32>,
    pub(super) leaves: Vec<u32>,
    pub(super) lines: Vec<u32>,
}

impl Found {
    fn of(&self, node: NodeRef) -> u32 {
        match node {
            NodeRef::Root(root) => self.roots[root as usize],
            NodeRef::Dir(directory) => self.directories[directory as usize],
            NodeRef::Leaf(leaf) => self.leaves[leaf as usize],
        }
    }
}

impl Tree {
    /// Calls `f` for entries from `from` on that are not zero, with whether no other tree has them:
    /// at most about `budget` leaves. Where to go on; `None` when the tree has no more.
    pub fn walk(
        &self,
        root: Root,
        from: u32,
        budget: usize,
        mut f: impl FnMut(u32, Entry, bool),
    ) -> Option<u32> {
        let alone = |index| {
            let directory = self.map.directory(root, super::root_slot(index));
            let leaf = self.map.leaf(root, index);
            self.directories[directory].refs == 1 && self.leaves[leaf].refs == 1
        };
        let mut unshared = (u32::MAX, false);
        self.diff(root, 0, from, budget, |index, entry, _| {
            if unshared.0 != index >> LEAF_SHIFT {
                unshared = (index >> LEAF_SHIFT, alone(index));
            }
            let own_line = !entry.is_scattered() || self.lines[entry.value()] == 1;
            f(index, entry, unshared.1 && own_line);
        })
    }

    /// Calls `f` for entries from `from` on whose blocks are not at the same places in both trees:
    /// at most about `budget` leaves of each. Where to go on; `None` when there are no more.
    ///
    /// What the trees share costs nothing.
    pub fn diff(
        &self,
        a: Root,
        b: Root,
        from: u32,
        budget: usize,
        mut f: impl FnMut(u32, Entry, Entry),
    ) -> Option<u32> {
        let mut left = budget;
        let mut index = u64::from(from);
        let end = 1u64 << (DIRECTORY_SHIFT + FANOUT.ilog2());
        while index < end {
            let at = index as u32;
            let pair = [a, b].map(|root| match root {
                0 => 0,
                root => self.map.directory(root, super::root_slot(at)),
            });
            if pair[0] == pair[1] {
                index = ((index >> DIRECTORY_SHIFT) + 1) << DIRECTORY_SHIFT;
                continue;
            }
            let next = ((index >> LEAF_SHIFT) + 1) << LEAF_SHIFT;
            let leaves = pair.map(|directory| match directory {
                0 => 0,
                directory => self.map.leaf_in(directory, super::directory_slot(at)),
            });
            if leaves[0] != leaves[1] {
                if left == 0 {
                    return Some(at);
                }
                left -= 1;
                self.diff_leaves(leaves, at, &mut f);
            }
            index = next;
        }
        None
    }

    fn diff_leaves(&self, leaves: [u32; 2], from: u32, f: &mut impl FnMut(u32, Entry, Entry)) {
        let first = super::leaf_slot(from);
        for (index, slot) in (from..).zip(first..LEAF_ENTRIES) {
            let [a, b] = leaves.map(|leaf| match leaf {
                0 => Entry::ZERO,
                leaf => self.map.leaf_entry(leaf, slot),
            });
            if a != b && self.map.changed_blocks(a, b) != 0 {
                f(index, a, b);
            }
        }
    }

    /// Compares all counts with what these trees reach, and `pending`: what was released and has
    /// not come back. `holders` of clusters are compared for all that are found, and all together.
    pub fn check(&self, roots: &[Root], pending: &[Release], space: &Space) -> Vec<Fault> {
        let mut held = Vec::new();
        let starts = roots.iter().map(|root| Release::Root(*root));
        let starts = starts.chain(pending.iter().copied()).chain(self.doomed.iter().copied());
        let found = self.reach(starts, |_, cluster| held.push(cluster));
        let mut faults = Vec::new();
        let nodes = (self.roots.numbers().map(NodeRef::Root))
            .chain(self.directories.numbers().map(NodeRef::Dir))
            .chain(self.leaves.numbers().map(NodeRef::Leaf));
        for node in nodes {
            let (counted, found) = (self.node(node).refs, found.of(node));
            if counted != found {
                faults.push(Fault::Node { node, counted, found });
            }
        }
        for line in self.lines.numbers() {
            let (counted, found) = (self.lines[line], found.lines[line as usize]);
            if counted != found {
                faults.push(Fault::Line { line, counted, found });
            }
        }
        held.sort_unstable();
        let mut known = held.chunk_by(|a, b| a == b).peekable();
        let mut compare = |cluster, found| {
            let counted = space.holders(cluster);
            if counted != found {
                faults.push(Fault::Cluster { cluster, counted, found });
            }
        };
        for cluster in space.held() {
            while let Some(run) = known.next_if(|run| run[0] < cluster) {
                compare(run[0], run.len() as u32);
            }
            let run = known.next_if(|run| run[0] == cluster);
            compare(cluster, run.map_or(0, |run| run.len() as u32));
        }
        for run in known {
            compare(run[0], run.len() as u32);
        }
        faults
    }

    /// Counts the references of everything that is reached from `starts`, each of which is one.
    /// `hold` is called for each holder of a cluster, with the leaf in which it was found, or 0.
    pub(super) fn reach(
        &self,
        starts: impl Iterator<Item = Release>,
        mut hold: impl FnMut(u32, u32),
    ) -> Found {
        let none = |numbers: std::ops::Range<u32>| vec![0; numbers.end as usize];
        let mut found = Found {
            roots: none(self.roots.numbers()),
            directories: none(self.directories.numbers()),
            leaves: none(self.leaves.numbers()),
            lines: none(self.lines.numbers()),
        };
        let mut left: Vec<(u32, Release)> = Vec::new();
        for start in starts {
            left.push((0, start));
            while let Some((leaf, reference)) = left.pop() {
                self.reach_one(leaf, reference, &mut found, &mut hold, &mut left);
            }
        }
        found
    }

    /// One reference. If it is the first to something, what that names goes to `left`.
    fn reach_one(
        &self,
        leaf: u32,
        reference: Release,
        found: &mut Found,
        hold: &mut impl FnMut(u32, u32),
        left: &mut Vec<(u32, Release)>,
    ) {
        let first = |counts: &mut Vec<u32>, number: u32| {
            let count = &mut counts[number as usize];
            *count += 1;
            *count == 1
        };
        match reference {
            Release::Root(root) if first(&mut found.roots, root) => {
                left.extend(self.directories_of(root).map(|dir| (0, Release::Dir(dir))));
            }
            Release::Dir(directory) if first(&mut found.directories, directory) => {
                left.extend(self.leaves_of(directory).map(|leaf| (0, Release::Leaf(leaf))));
            }
            Release::Leaf(leaf) if first(&mut found.leaves, leaf) => {
                for slot in 0..LEAF_ENTRIES {
                    let entry = self.map.leaf_entry(leaf, slot);
                    if entry.is_scattered() {
                        left.push((leaf, Release::Line(entry.value())));
                    } else if !entry.is_zero() {
                        hold(leaf, entry.value());
                    }
                }
            }
            Release::Line(line) if first(&mut found.lines, line) => {
                for (cluster, _) in self.map.places(Entry::scattered(line, 0)).clusters().iter() {
                    hold(leaf, cluster);
                }
            }
            Release::Cluster { cluster, last: true, .. } => hold(leaf, cluster),
            _ => {}
        }
    }
}
