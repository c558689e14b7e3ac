//! The owner's side of the map: changing it.

use std::collections::HashSet;
use std::sync::Arc;

use super::checkpoint::{Checkpoint, Dirty, NodeRef};
use super::load::Loading;
use super::nodes::{Lines, Node, Nodes};
use super::places::{Clusters, Places};
use super::{Entry, Map, Release, Root, directory_slot, leaf_slot, root_slot};
use crate::limits::{CLUSTER_BLOCKS, FANOUT, LEAF_ENTRIES};
use crate::space::Space;
use crate::sync::Ordering;

/// An entry of a volume, and the number by which the volume's own leaves are known.
///
/// A volume gets a new head number whenever its tree is shared, and nobody else ever has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The volume's tree.
    pub root: Root,
    /// Its head number, not 0.
    pub head: u64,
    /// The entry.
    pub index: u32,
}

/// What the owner knows of the map. There is one for each [`Map`].
pub struct Tree {
    pub(super) map: Arc<Map>,
    pub(super) roots: Nodes,
    pub(super) directories: Nodes,
    pub(super) leaves: Nodes,
    pub(super) lines: Lines,
    /// References that are to be dropped: their time has come, but there is much below them.
    pub(super) doomed: Vec<Release>,
    /// Changed since they were written last.
    pub(super) dirty: Dirty,
    pub(super) checkpoint: Option<Box<Checkpoint>>,
    pub(super) loading: Loading,
    /// Nodes that could not be read.
    pub(super) lost: HashSet<NodeRef>,
}

/// How blocks come to an entry.
#[derive(Clone, Copy)]
struct Change {
    mask: u16,
    /// 0 clears them.
    cluster: u32,
    /// Whether they may be own.
    own: bool,
    guard: bool,
}

impl Tree {
    /// For an empty map.
    pub fn new(map: Arc<Map>) -> Tree {
        Tree {
            map,
            roots: Nodes::new(),
            directories: Nodes::new(),
            leaves: Nodes::new(),
            lines: Lines::new(),
            doomed: Vec::new(),
            dirty: Dirty::new(),
            checkpoint: None,
            loading: Loading::default(),
            lost: HashSet::new(),
        }
    }

    /// What all cores see.
    pub fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// A tree of nothing but zeroes.
    pub fn new_root(&mut self) -> Root {
        let root = self.roots.add();
        self.map.roots.make(root);
        for child in self.map.roots.row(root) {
            child.store(0, Ordering::Relaxed);
        }
        self.touch(NodeRef::Root(root));
        root
    }

    /// Another tree with the same content. Whoever has `root` needs a new head number with it.
    pub fn share(&mut self, root: Root) -> Root {
        let copy = self.new_root();
        for slot in 0..FANOUT {
            let directory = self.map.directory(root, slot);
            if directory != 0 {
                self.directories[directory].refs += 1;
                self.store_child(NodeRef::Root(copy), slot, directory);
            }
        }
        copy
    }

    /// Blocks `mask` of an entry are in `cluster` from now on; guarded if `guard`, and else as the
    /// entry was.
    ///
    /// They are own if nobody held the cluster, or the entry had it for its own already.
    #[inline]
    pub fn set(
        &mut self,
        at: At,
        mask: u16,
        cluster: u32,
        guard: bool,
        space: &mut Space,
        released: &mut Vec<Release>,
    ) {
        let leaf = self.changeable(at, space, released);
        let change = Change { mask, cluster, own: true, guard };
        self.change(leaf, leaf_slot(at.index), change, space, released);
    }

    /// Publishes a first touch whose record is before a snapshot's, after the snapshot: in the
    /// snapshot, and blocks of its mask in the volume too, if that is still there. Nothing of it is
    /// own; all of it is guarded.
    ///
    /// `snapshot` has the head number that the volume had when the record was made. A leaf with
    /// that number is shared by nobody but these two, because only snapshots that have settled are
    /// shared again: it is changed in place, for both.
    pub fn set_late(
        &mut self,
        snapshot: At,
        mask: u16,
        volume: Option<(At, u16)>,
        cluster: u32,
        space: &mut Space,
        released: &mut Vec<Release>,
    ) {
        let slot = leaf_slot(snapshot.index);
        let late = |mask| Change { mask, cluster, own: false, guard: true };
        let leaf = self.changeable(snapshot, space, released);
        self.change(leaf, slot, late(mask), space, released);
        let Some((at, mask)) = volume else { return };
        if self.map.leaf(at.root, at.index) == leaf {
            self.touch_path(at.root, at.index);
        } else if mask != 0 {
            let leaf = self.changeable(at, space, released);
            self.change(leaf, slot, late(mask), space, released);
        }
    }

    /// Blocks `mask` of an entry are zero from now on.
    pub fn clear(&mut self, at: At, mask: u16, space: &mut Space, released: &mut Vec<Release>) {
        let (entry, _) = self.map.entry(at.root, at.index);
        if entry.is_zero() || self.map.places(entry).present() & mask == 0 {
            return;
        }
        let leaf = self.changeable(at, space, released);
        let change = Change { mask, cluster: 0, own: false, guard: false };
        self.change(leaf, leaf_slot(at.index), change, space, released);
        if self.leaves[leaf].used == 0 {
            self.unlink_leaf(at.root, at.index, released);
        }
    }

    /// `count` blocks from `first_block` on, in 4 KiB, are zero from now on. What is whole is let
    /// go as a whole, so this takes no longer for a large range than for a few leaves.
    pub fn clear_range(
        &mut self,
        root: Root,
        head: u64,
        first_block: u64,
        count: u64,
        space: &mut Space,
        released: &mut Vec<Release>,
    ) {
        const LEAF: u64 = LEAF_ENTRIES as u64 * CLUSTER_BLOCKS as u64;
        const DIRECTORY: u64 = LEAF * FANOUT as u64;
        let end = first_block + count;
        let mut block = first_block;
        while block < end {
            let index = (block / u64::from(CLUSTER_BLOCKS)) as u32;
            let whole = |size| block.is_multiple_of(size) && block + size <= end;
            let directory = self.map.directory(root, root_slot(index));
            let next = if directory == 0 {
                (block / DIRECTORY + 1) * DIRECTORY
            } else if whole(DIRECTORY) {
                self.unlink_directory(root, index, released);
                block + DIRECTORY
            } else if self.map.leaf_in(directory, directory_slot(index)) == 0 {
                (block / LEAF + 1) * LEAF
            } else if whole(LEAF) {
                self.unlink_leaf(root, index, released);
                block + LEAF
            } else {
                let from = block % u64::from(CLUSTER_BLOCKS);
                let next = (block - from + u64::from(CLUSTER_BLOCKS)).min(end);
                let mask = u32::from(u16::MAX) >> (16 - (next - block)) << from;
                self.clear(At { root, head, index }, mask as u16, space, released);
                next
            };
            block = next;
        }
    }

    /// Whether blocks `mask` of an entry are own, having looked whether they could be: all of them
    /// there, in clusters that nobody else holds, of devices that are written, in a leaf that
    /// nobody else has.
    pub fn adopt(&mut self, at: At, mask: u16, space: &Space) -> bool {
        let Some((leaf, head)) = self.unshared_leaf(at) else { return false };
        let slot = leaf_slot(at.index);
        let entry = self.map.leaf_entry(leaf, slot);
        let own = if head == at.head { entry.own_mask() } else { 0 };
        if own & mask == mask {
            return true;
        }
        // Most often somebody has the first one.
        let first = self.map.cluster_of(entry, (mask & !own).trailing_zeros());
        if first == 0 || space.holders(first) != 1 {
            return false;
        }
        let mut places = self.map.places(entry);
        let unshared = !entry.is_scattered() || self.lines[entry.value()] == 1;
        let clusters = places.clusters();
        let wanted = clusters.iter().filter(|(_, blocks)| blocks & mask & !own != 0);
        let mut found = 0;
        for (cluster, blocks) in wanted {
            if !unshared || space.holders(cluster) != 1 || space.is_readonly(cluster) {
                return false;
            }
            found |= blocks;
        }
        if (own | found) & mask != mask {
            return false;
        }
        if head != at.head {
            self.take_over(leaf, at.head);
        }
        places.own = own | found;
        let marked = match entry.is_scattered() {
            true => Entry::scattered(entry.value(), places.own),
            false => Entry::direct(entry.value(), entry.mask(), true),
        };
        self.map.store_entry(leaf, slot, marked.with_guard(entry.guarded()));
        true
    }

    /// Marks own all of an entry that can be; whether anything of it is own then.
    pub fn adopt_any(&mut self, at: At, space: &Space) -> bool {
        let (entry, _) = self.map.entry(at.root, at.index);
        let clusters = self.map.places(entry).clusters();
        let adopted = clusters.iter().filter(|(_, blocks)| self.adopt(at, *blocks, space));
        adopted.count() > 0
    }

    /// A cluster that only this entry holds, in which new blocks of it could be placed: where none
    /// of its blocks are (`Map::blocks_in`), nor were until recently ([`Release::Cluster`]).
    pub fn own_cluster(&self, at: At) -> Option<u32> {
        let (entry, head) = self.map.entry(at.root, at.index);
        let own = if head == at.head { entry.own_mask() } else { 0 };
        (own != 0).then(|| self.map.cluster_of(entry, own.trailing_zeros()))
    }

    /// Guards an entry, in whatever leaf it is, or takes the guard away.
    pub fn set_guard(&mut self, root: Root, index: u32, on: bool) {
        let leaf = self.map.leaf(root, index);
        if leaf != 0 {
            let slot = leaf_slot(index);
            let entry = self.map.leaf_entry(leaf, slot);
            self.map.store_entry(leaf, slot, entry.with_guard(on));
        }
    }

    /// The leaf of an entry, and its head number, if no other tree has it.
    fn unshared_leaf(&self, at: At) -> Option<(u32, u64)> {
        let directory = self.map.directory(at.root, root_slot(at.index));
        let leaf = self.map.leaf(at.root, at.index);
        let unshared =
            leaf != 0 && self.directories[directory].refs == 1 && self.leaves[leaf].refs == 1;
        unshared.then(|| (leaf, self.map.head(leaf)))
    }

    /// The leaf of an entry, to be changed in place: made, taken over or copied as need be, and due
    /// to be written with all above it.
    #[inline]
    fn changeable(&mut self, at: At, space: &mut Space, released: &mut Vec<Release>) -> u32 {
        debug_assert!(at.head != 0, "head number 0 is nobody's");
        let leaf = self.map.leaf(at.root, at.index);
        if leaf == 0 || self.map.head(leaf) != at.head {
            return self.make_changeable(at, space, released);
        }
        // What is above a leaf that is due was made due with it.
        if !self.is_due(leaf) {
            self.touch_path(at.root, at.index);
        }
        leaf
    }

    #[cold]
    fn make_changeable(&mut self, at: At, space: &mut Space, released: &mut Vec<Release>) -> u32 {
        let directory = self.changeable_directory(at, released);
        let slot = directory_slot(at.index);
        let leaf = self.map.leaf_in(directory, slot);
        if leaf != 0 && self.leaves[leaf].refs == 1 {
            self.take_over(leaf, at.head);
            self.touch(NodeRef::Leaf(leaf));
            return leaf;
        }
        let new = self.leaves.add();
        self.map.leaves.make(new);
        self.map.heads.make(new);
        self.map.heads.at(new, 0).store(at.head, Ordering::Relaxed);
        if leaf == 0 {
            for entry in self.map.leaves.row(new) {
                entry.store(0, Ordering::Relaxed);
            }
            self.directories[directory].used += 1;
        } else {
            self.copy_entries(leaf, new, space);
            released.push(Release::Leaf(leaf));
        }
        self.touch(NodeRef::Leaf(new));
        self.store_child(NodeRef::Dir(directory), slot, new);
        new
    }

    /// The directory of an entry, made or copied as need be.
    fn changeable_directory(&mut self, at: At, released: &mut Vec<Release>) -> u32 {
        let slot = root_slot(at.index);
        let directory = self.map.directory(at.root, slot);
        self.touch(NodeRef::Root(at.root));
        if directory != 0 && self.directories[directory].refs == 1 {
            self.touch(NodeRef::Dir(directory));
            return directory;
        }
        let new = self.directories.add();
        self.map.directories.make(new);
        for slot in 0..FANOUT {
            let leaf = if directory == 0 { 0 } else { self.map.leaf_in(directory, slot) };
            if leaf != 0 {
                self.leaves[leaf].refs += 1;
            }
            self.map.directories.at(new, slot).store(leaf, Ordering::Relaxed);
        }
        if directory != 0 {
            self.directories[new].used = self.directories[directory].used;
            released.push(Release::Dir(directory));
        }
        self.touch(NodeRef::Dir(new));
        self.store_child(NodeRef::Root(at.root), slot, new);
        new
    }

    /// Fills a new leaf with what another has, which holds all of it too.
    fn copy_entries(&mut self, from: u32, to: u32, space: &mut Space) {
        for slot in 0..LEAF_ENTRIES {
            let entry = self.map.leaf_entry(from, slot).without_own();
            if entry.is_scattered() {
                self.lines[entry.value()] += 1;
            } else if !entry.is_zero() {
                space.acquire(entry.value());
            }
            self.map.leaves.at(to, slot).store(entry.0, Ordering::Relaxed);
        }
        self.leaves[to].used = self.leaves[from].used;
    }

    /// A leaf that has become `head`'s alone. Own marks in it are those of an earlier time, and
    /// must be gone before a reader sees the new head number.
    pub(super) fn take_over(&self, leaf: u32, head: u64) {
        for slot in 0..LEAF_ENTRIES {
            let entry = self.map.leaf_entry(leaf, slot);
            if entry.own_mask() != 0 {
                self.map.store_entry(leaf, slot, entry.without_own());
            }
        }
        self.map.heads.at(leaf, 0).store(head, Ordering::Release);
    }

    #[inline]
    fn change(
        &mut self,
        leaf: u32,
        slot: usize,
        change: Change,
        space: &mut Space,
        released: &mut Vec<Release>,
    ) {
        let old = self.map.leaf_entry(leaf, slot);
        let Change { mask, cluster, own, guard } = change;
        let guard = guard || old.guarded();
        if old.is_zero() && cluster != 0 {
            let own = own && space.holders(cluster) == 0;
            space.acquire(cluster);
            self.leaves[leaf].used += 1;
            let new = Entry::direct(cluster, mask, own).with_guard(guard);
            return self.map.store_entry(leaf, slot, new);
        }
        if !old.is_scattered() && old.value() == cluster && cluster != 0 {
            let own = own && old.own_mask() != 0;
            let new = Entry::direct(cluster, old.mask() | mask, own).with_guard(guard);
            return self.map.store_entry(leaf, slot, new);
        }
        self.change_places(leaf, slot, old, Change { guard, ..change }, space, released);
    }

    /// The general case: takes the entry apart. The new one acquires all it needs, then the old one
    /// lets go of all it had. What a direct entry held it goes on to hold by its line.
    fn change_places(
        &mut self,
        leaf: u32,
        slot: usize,
        old: Entry,
        change: Change,
        space: &mut Space,
        released: &mut Vec<Release>,
    ) {
        let Change { mask, cluster, own, guard } = change;
        let mut places = self.map.places(old);
        if self.change_line(leaf, slot, old, &places, change, space, released) {
            return;
        }
        let before = match old.is_scattered() {
            true => places.clusters(),
            false => Clusters::of_direct(old),
        };
        let after = before.with(mask, cluster);
        if after == before && guard == old.guarded() {
            return;
        }
        let was_own = places.own;
        let fresh = || space.holders(cluster) == 0;
        let own = own && (was_own & before.blocks_in(cluster) != 0 || fresh());
        let blocks = after.blocks_in(cluster);
        places.put(mask, cluster);
        places.own &= !mask & !blocks;
        places.own |= if own { blocks } else { 0 };
        let new = after.without_line(places.own != 0);
        let new = new.unwrap_or_else(|| self.new_line(&places));
        // A scattered entry's hold on a cluster is its line's.
        let held = if old.is_scattered() { 0 } else { old.value() };
        let clusters = after.iter().map(|(cluster, _)| cluster);
        clusters.filter(|cluster| *cluster != held).for_each(|cluster| space.acquire(cluster));
        self.map.store_entry(leaf, slot, new.with_guard(guard));
        self.leaves[leaf].used -= u32::from(new.is_zero());
        for (other, blocks) in before.iter() {
            let kept = after.blocks_in(other);
            let last = other == held && kept == 0;
            let place = kept != 0 && blocks & !kept != 0 && (cluster == 0 || was_own & blocks != 0);
            if last || place {
                released.push(Release::Cluster { cluster: other, mask: blocks & !kept, last });
            }
        }
        if old.is_scattered() {
            released.push(Release::Line(old.value()));
        }
    }

    /// The same in place, where the entry has its line for itself and will still need one: blocks
    /// that were not own come to a cluster that is. False: that is not so, and nothing was done.
    ///
    /// A reader with the entry of before finds each block where it was or where it is. The line is
    /// changed first: who sees the new own marks, and the guard that comes with them, sees where
    /// the blocks are. So nobody writes a block in place where it was or, unguarded, where it is.
    #[expect(clippy::too_many_arguments, reason = "those of its caller, and what that knows")]
    fn change_line(
        &self,
        leaf: u32,
        slot: usize,
        old: Entry,
        places: &Places,
        change: Change,
        space: &mut Space,
        released: &mut Vec<Release>,
    ) -> bool {
        let Change { mask, cluster, own, guard } = change;
        if !old.is_scattered() || cluster == 0 || !own || self.lines[old.value()] != 1 {
            return false;
        }
        let there = places.in_cluster(cluster);
        let becomes_own = match there {
            0 => space.holders(cluster) == 0,
            _ => places.own & there != 0,
        };
        let present = places.present();
        if !becomes_own || mask & (there | places.own) != 0 || present & !(there | mask) == 0 {
            return false;
        }
        if there == 0 {
            space.acquire(cluster);
        }
        for (block, place) in self.map.lines.row(old.value()).iter().enumerate() {
            if mask >> block & 1 == 1 {
                place.store(cluster, Ordering::Release);
            }
        }
        let new = Entry::scattered(old.value(), places.own | mask).with_guard(guard);
        self.map.store_entry(leaf, slot, new);
        let mut left = mask & present;
        while left != 0 {
            let cluster = places.at[left.trailing_zeros() as usize];
            let blocks = places.in_cluster(cluster);
            left &= !blocks;
            if blocks & !mask == 0 {
                released.push(Release::Cluster { cluster, mask: blocks, last: true });
            }
        }
        true
    }

    /// A line, which nobody sees before the entry is stored.
    pub(super) fn new_line(&mut self, places: &Places) -> Entry {
        let line = self.lines.add();
        self.map.lines.make(line);
        for (atom, cluster) in self.map.lines.row(line).iter().zip(places.at) {
            atom.store(cluster, Ordering::Relaxed);
        }
        Entry::scattered(line, places.own)
    }

    /// The tree has no such leaf any more; nor its directory if that has no other.
    fn unlink_leaf(&mut self, root: Root, index: u32, released: &mut Vec<Release>) {
        let directory = self.map.directory(root, root_slot(index));
        if self.directories[directory].used == 1 {
            return self.unlink_directory(root, index, released);
        }
        let at = At { root, head: 0, index };
        let directory = NodeRef::Dir(self.changeable_directory(at, released));
        let slot = directory_slot(index);
        released.push(Release::Leaf(self.child(directory, slot)));
        self.store_child(directory, slot, 0);
        self.node_mut(directory).used -= 1;
    }

    fn unlink_directory(&mut self, root: Root, index: u32, released: &mut Vec<Release>) {
        let root = NodeRef::Root(root);
        let slot = root_slot(index);
        self.touch(root);
        released.push(Release::Dir(self.child(root, slot)));
        self.store_child(root, slot, 0);
    }

    /// A leaf is to be written, and so all above it.
    fn touch_path(&mut self, root: Root, index: u32) {
        let directory = self.map.directory(root, root_slot(index));
        self.touch(NodeRef::Root(root));
        self.touch(NodeRef::Dir(directory));
        self.touch(NodeRef::Leaf(self.map.leaf(root, index)));
    }

    pub(super) fn node(&self, node: NodeRef) -> &Node {
        match node {
            NodeRef::Root(root) => &self.roots[root],
            NodeRef::Dir(directory) => &self.directories[directory],
            NodeRef::Leaf(leaf) => &self.leaves[leaf],
        }
    }

    pub(super) fn node_mut(&mut self, node: NodeRef) -> &mut Node {
        match node {
            NodeRef::Root(root) => &mut self.roots[root],
            NodeRef::Dir(directory) => &mut self.directories[directory],
            NodeRef::Leaf(leaf) => &mut self.leaves[leaf],
        }
    }

    /// A child of a root or directory.
    pub(super) fn child(&self, node: NodeRef, slot: usize) -> u32 {
        match node {
            NodeRef::Root(root) => self.map.directory(root, slot),
            NodeRef::Dir(directory) => self.map.leaf_in(directory, slot),
            NodeRef::Leaf(_) => 0,
        }
    }

    pub(super) fn store_child(&self, node: NodeRef, slot: usize, child: u32) {
        let atom = match node {
            NodeRef::Root(root) => self.map.roots.at(root, slot),
            NodeRef::Dir(directory) => self.map.directories.at(directory, slot),
            NodeRef::Leaf(_) => return,
        };
        atom.store(child, Ordering::Release);
    }
}
