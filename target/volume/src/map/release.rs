//! What is no longer named: its references, and taking apart what has none.

use super::tree::Tree;
use super::{Entry, NodeRef, Root};
use crate::format::Extent;
use crate::limits::{FANOUT, LEAF_ENTRIES};
use crate::space::Space;
use crate::sync::Ordering;

/// Something that the map no longer names in some place. [`Tree::free`] gets it back when its time
/// has come: the record that released it is closed and its grace period is over; for
/// [`Release::Pages`], a checkpoint that does not need them is complete.
///
/// It stands for one reference. Others may be left; what has none is taken apart then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The entry no longer uses blocks `mask` of `cluster`, which are places for new blocks when
    /// the time has come. If `last`, it has let go of the cluster.
    ///
    /// A cluster that is not own is no place for new blocks, and that some have left it is not
    /// said. It may become own later ([`Tree::adopt`]): whoever asks for that waits until the
    /// records by which blocks of the entry have moved are closed.
    Cluster {
        /// The cluster.
        cluster: u32,
        /// Blocks of it.
        mask: u16,
        /// Whether the entry holds it no longer.
        last: bool,
    },
    /// A line.
    Line(u32),
    /// A leaf.
    Leaf(u32),
    /// A directory.
    Dir(u32),
    /// A whole tree.
    Root(u32),
    /// Pages of a node that is no more, or is elsewhere.
    Pages(Extent),
}

impl Tree {
    /// The time of a release has come. Takes a bounded time: what is large is left to
    /// [`Tree::reap`].
    pub fn free(&mut self, release: Release, space: &mut Space, released: &mut Vec<Release>) {
        match release {
            Release::Cluster { last: false, .. } => {}
            Release::Cluster { cluster, last: true, .. } => space.release(cluster),
            Release::Line(line) => self.drop_line(line, space),
            Release::Leaf(leaf) if self.checkpoint.is_none() => {
                self.drop_leaf(leaf, space, released);
            }
            Release::Leaf(_) | Release::Dir(_) | Release::Root(_) => self.doomed.push(release),
            Release::Pages(extent) => space.free_pages(extent.page, extent.pages),
        }
    }

    /// Takes a tree apart that no lane can reach any more and no crash can bring back: at most
    /// about `budget` leaves. True when all is done, also what [`Tree::free`] left; until then it
    /// is called again with the same root.
    ///
    /// Does nothing while a checkpoint is going, which may have to write what goes away.
    pub fn dismantle(
        &mut self,
        root: Root,
        budget: usize,
        space: &mut Space,
        released: &mut Vec<Release>,
    ) -> bool {
        if self.checkpoint.is_some() {
            return false;
        }
        self.doom_children(NodeRef::Root(root));
        let done = self.reap(budget, space, released);
        if done {
            self.remove(NodeRef::Root(root), released);
        }
        done
    }

    /// Goes on taking apart what [`Tree::free`] left: at most about `budget` leaves. True when all
    /// is done. Does nothing while a checkpoint is going.
    pub fn reap(&mut self, budget: usize, space: &mut Space, released: &mut Vec<Release>) -> bool {
        let mut left = if self.checkpoint.is_some() { 0 } else { budget };
        while left > 0
            && let Some(release) = self.doomed.pop()
        {
            left -= 1;
            match release {
                Release::Leaf(leaf) => self.drop_leaf(leaf, space, released),
                Release::Dir(dir) => self.drop_node(NodeRef::Dir(dir), released),
                Release::Root(root) => self.drop_node(NodeRef::Root(root), released),
                _ => self.free(release, space, released),
            }
        }
        self.doomed.is_empty()
    }

    /// Whether [`Tree::reap`] has something to do.
    pub fn has_doomed(&self) -> bool {
        !self.doomed.is_empty()
    }

    /// A directory or root has one reference less.
    fn drop_node(&mut self, node: NodeRef, released: &mut Vec<Release>) {
        self.node_mut(node).refs -= 1;
        if self.node(node).refs == 0 {
            self.doom_children(node);
            self.remove(node, released);
        }
    }

    /// The references of a directory or root to its children go to `doomed`.
    fn doom_children(&mut self, node: NodeRef) {
        for slot in 0..FANOUT {
            match self.child(node, slot) {
                0 => continue,
                leaf if matches!(node, NodeRef::Dir(_)) => self.doomed.push(Release::Leaf(leaf)),
                dir => self.doomed.push(Release::Dir(dir)),
            }
            self.store_child(node, slot, 0);
        }
    }

    fn drop_leaf(&mut self, leaf: u32, space: &mut Space, released: &mut Vec<Release>) {
        self.leaves[leaf].refs -= 1;
        if self.leaves[leaf].refs > 0 {
            return;
        }
        let mut used = self.leaves[leaf].used;
        for slot in 0..LEAF_ENTRIES {
            if used == 0 {
                break;
            }
            let entry = self.map.leaf_entry(leaf, slot);
            used -= u32::from(!entry.is_zero());
            if entry.is_scattered() {
                self.drop_line(entry.value(), space);
            } else if !entry.is_zero() {
                space.release(entry.value());
            }
        }
        self.map.heads.at(leaf, 0).store(0, Ordering::Release);
        self.remove(NodeRef::Leaf(leaf), released);
    }

    fn drop_line(&mut self, line: u32, space: &mut Space) {
        self.lines[line] -= 1;
        if self.lines[line] == 0 {
            for (cluster, _) in self.map.places(Entry::scattered(line, 0)).clusters().iter() {
                space.release(cluster);
            }
            self.lines.remove(line);
        }
    }

    fn remove(&mut self, node: NodeRef, released: &mut Vec<Release>) {
        let extent = match node {
            NodeRef::Root(root) => self.roots.remove(root),
            NodeRef::Dir(dir) => self.directories.remove(dir),
            NodeRef::Leaf(leaf) => self.leaves.remove(leaf),
        };
        self.lost.remove(&node);
        if extent.pages > 0 {
            released.push(Release::Pages(extent));
        }
    }
}
