//! Writing what has changed, exactly as it was at one instant.
//!
//! A changed node is *due* in the next checkpoint, and what is above it as well, because it holds
//! the place of what is below. When a checkpoint begins, the lists of due nodes become its own and
//! new ones are begun. Whoever changes a node of the checkpoint's lists before it was written keeps
//! the old content for it. Nothing is freed while a checkpoint is going.
//!
//! Leaves are written first, then directories, then roots: a node can be encoded when it is known
//! where its children are.

use std::collections::{HashMap, HashSet};

use super::tree::Tree;
use super::{Entry, Root};
use crate::format::{Extent, encode_children, encode_leaf};
use crate::limits::{FANOUT, LEAF_ENTRIES};

/// A node by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeRef {
    /// A root.
    Root(u32),
    /// A directory.
    Dir(u32),
    /// A leaf.
    Leaf(u32),
}

impl NodeRef {
    fn level(self) -> usize {
        match self {
            NodeRef::Leaf(_) => 0,
            NodeRef::Dir(_) => 1,
            NodeRef::Root(_) => 2,
        }
    }
}

/// Nodes of each level, leaves first. A number may stand there that is due no more, or twice.
type Levels = [Vec<NodeRef>; 3];

/// What the next checkpoint has to write.
pub(super) struct Dirty {
    /// Number of that checkpoint.
    number: u32,
    levels: Levels,
}

/// Content that was kept.
enum Saved {
    Leaf(Vec<u8>),
    Children(Box<[u32; FANOUT]>),
}

/// A checkpoint that is going.
pub(super) struct Checkpoint {
    number: u32,
    levels: Levels,
    /// The level that is being written.
    level: usize,
    /// What was changed before it was written.
    saved: HashMap<NodeRef, Saved>,
    /// Given by `next_page`, and not placed yet.
    outstanding: HashSet<NodeRef>,
}

impl Dirty {
    pub(super) fn new() -> Dirty {
        Dirty { number: 1, levels: Levels::default() }
    }
}

impl Tree {
    /// Fixes the state that is written, as of now, of these trees. Those that are not named are
    /// left to a later checkpoint.
    pub fn begin_checkpoint(&mut self, roots: &[Root]) {
        assert!(self.checkpoint.is_none(), "one checkpoint at a time");
        let number = self.dirty.number;
        self.dirty.number += 1;
        let mut levels = std::mem::take(&mut self.dirty.levels);
        let named: HashSet<NodeRef> = roots.iter().map(|root| NodeRef::Root(*root)).collect();
        levels[2].retain(|root| {
            let written = named.contains(root);
            if !written && self.node(*root).due == number {
                self.mark_due(*root);
            }
            written
        });
        self.checkpoint = Some(Box::new(Checkpoint {
            number,
            levels,
            level: 0,
            saved: HashMap::new(),
            outstanding: HashSet::new(),
        }));
    }

    /// The next node to be written, and its bytes in whole pages. `None` while others must be
    /// placed first, or when all are written ([`Tree::checkpoint_pending`]).
    pub fn next_page(&mut self) -> Option<(NodeRef, Vec<u8>)> {
        let mut checkpoint = self.checkpoint.take()?;
        let page = self.next_of(&mut checkpoint);
        self.checkpoint = Some(checkpoint);
        page
    }

    fn next_of(&mut self, checkpoint: &mut Checkpoint) -> Option<(NodeRef, Vec<u8>)> {
        loop {
            let Some(node) = checkpoint.levels[checkpoint.level].pop() else {
                if !checkpoint.outstanding.is_empty() || checkpoint.level == 2 {
                    return None;
                }
                checkpoint.level += 1;
                continue;
            };
            let content = match checkpoint.saved.remove(&node) {
                Some(content) => content,
                None if self.node(node).due == checkpoint.number => {
                    self.node_mut(node).due = 0;
                    self.content(node)
                }
                None => continue,
            };
            checkpoint.outstanding.insert(node);
            return Some((node, self.encode(node, content)));
        }
    }

    /// A node that `next_page` gave is at `extent` now. Where it was before goes to `replaced`: to
    /// be freed when the checkpoint is complete.
    pub fn placed(&mut self, node: NodeRef, extent: Extent, replaced: &mut Vec<Extent>) {
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.outstanding.remove(&node);
        }
        let before = std::mem::replace(&mut self.node_mut(node).extent, extent);
        if before.pages > 0 {
            replaced.push(before);
        }
    }

    /// Whether there is more to be written or placed.
    pub fn checkpoint_pending(&self) -> bool {
        self.checkpoint.as_ref().is_some_and(|checkpoint| {
            !checkpoint.outstanding.is_empty() || checkpoint.levels.iter().any(|l| !l.is_empty())
        })
    }

    /// Clusters that may be needed for what is to be written: one for a leaf, which has 9 pages of
    /// 16 at most; nodes above it have 4.
    #[inline]
    pub fn due_clusters(&self) -> u64 {
        let going = self.checkpoint.as_ref().map(|checkpoint| &checkpoint.levels);
        let lists = |level: usize| {
            let count = |levels: &Levels| levels[level].len() as u64;
            count(&self.dirty.levels) + going.map_or(0, count)
        };
        lists(0) + (lists(1) + lists(2)).div_ceil(4)
    }

    /// Everything was written and placed.
    pub fn end_checkpoint(&mut self) {
        assert!(!self.checkpoint_pending(), "the checkpoint is not all written");
        self.checkpoint = None;
    }

    /// A checkpoint came to nothing: what it did not write is left to the next one. What it wrote
    /// is where it was placed, and what that replaced is to be kept until the next one is complete.
    pub fn abort_checkpoint(&mut self) {
        let Some(checkpoint) = self.checkpoint.take() else { return };
        for node in checkpoint.levels.into_iter().flatten() {
            if self.node(node).due == checkpoint.number {
                self.mark_due(node);
            }
        }
        for node in checkpoint.outstanding {
            self.touch(node);
        }
    }

    /// Where a tree is on disk.
    pub fn extent(&self, root: Root) -> Extent {
        self.roots[root].extent
    }

    /// Calls `f` for where each node is on disk, those that are going away too.
    pub fn for_each_extent(&self, mut f: impl FnMut(Extent)) {
        for nodes in [&self.roots, &self.directories, &self.leaves] {
            let all = nodes.numbers().map(|number| nodes[number].extent);
            all.filter(|extent| extent.pages > 0).for_each(&mut f);
        }
    }

    #[inline]
    pub(super) fn is_due(&self, leaf: u32) -> bool {
        self.leaves[leaf].due == self.dirty.number
    }

    /// A node is about to be changed.
    pub(super) fn touch(&mut self, node: NodeRef) {
        let due = self.node(node).due;
        if due == self.dirty.number {
            return;
        }
        if let Some(mut checkpoint) = self.checkpoint.take() {
            if checkpoint.number == due {
                let content = self.content(node);
                checkpoint.saved.insert(node, content);
            }
            self.checkpoint = Some(checkpoint);
        }
        self.mark_due(node);
    }

    fn mark_due(&mut self, node: NodeRef) {
        self.node_mut(node).due = self.dirty.number;
        self.dirty.levels[node.level()].push(node);
    }

    fn content(&self, node: NodeRef) -> Saved {
        let NodeRef::Leaf(leaf) = node else {
            let mut children = Box::new([0; FANOUT]);
            for (slot, child) in children.iter_mut().enumerate() {
                *child = self.child(node, slot);
            }
            return Saved::Children(children);
        };
        let mut entries = [0; LEAF_ENTRIES];
        for (slot, entry) in entries.iter_mut().enumerate() {
            *entry = self.map.leaf_entry(leaf, slot).0;
        }
        let line = |line| self.map.places(Entry::scattered(line, 0)).at;
        let mut bytes = Vec::new();
        encode_leaf(&entries, line, &mut bytes);
        Saved::Leaf(bytes)
    }

    /// As on disk. The extents of children are those of the checkpoint, since all that were due in
    /// it are placed.
    fn encode(&self, node: NodeRef, content: Saved) -> Vec<u8> {
        let children = match content {
            Saved::Leaf(bytes) => return bytes,
            Saved::Children(children) => children,
        };
        let below: fn(u32) -> NodeRef = match node {
            NodeRef::Root(_) => NodeRef::Dir,
            _ => NodeRef::Leaf,
        };
        let mut extents = Box::new([Extent::default(); FANOUT]);
        for (extent, &child) in extents.iter_mut().zip(children.iter()).filter(|(_, c)| **c != 0) {
            *extent = self.node(below(child)).extent;
            debug_assert!(extent.pages > 0, "child {child} of {node:?} is not on disk");
        }
        let mut bytes = Vec::new();
        encode_children(&extents, &mut bytes);
        bytes
    }
}
