//! Reading trees from disk, and counting what they hold.

use std::collections::HashMap;

use zerocopy::IntoBytes;

use super::tree::Tree;
use super::{Entry, NodeRef, Release, Root};
use crate::format::{Extent, FormatError, Part, crc64, decode_children, decode_leaf};
use crate::limits::{FANOUT, LEAF_ENTRIES};
use crate::space::Space;
use crate::sync::Ordering;

/// What there is only while a pool is opened.
#[derive(Default)]
pub(super) struct Loading {
    wanted: Vec<(NodeRef, Extent)>,
    /// Directories and leaves by their first page: who is there twice is one node.
    by_page: HashMap<(Level, u64), (Extent, u32)>,
    /// Lines by the CRC-64 of their content. Those of the same content are one line.
    lines: HashMap<u64, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Level {
    Directory,
    Leaf,
}

impl Tree {
    /// Begins to read the tree that is at `extent`; an absent one is empty.
    pub fn load_root(&mut self, extent: Extent) -> Root {
        if extent.pages == 0 {
            return self.new_root();
        }
        let root = self.roots.add();
        self.map.roots.make(root);
        for child in self.map.roots.row(root) {
            child.store(0, Ordering::Relaxed);
        }
        self.roots[root].extent = extent;
        self.loading.wanted.push((NodeRef::Root(root), extent));
        root
    }

    /// What is to be read next. Each node is given once, so this is where to mark its pages.
    pub fn next_wanted(&mut self) -> Option<(NodeRef, Extent)> {
        self.loading.wanted.pop()
    }

    /// A node was read. It is lost if these are not its bytes, or if they make no sense.
    pub fn loaded(
        &mut self,
        node: NodeRef,
        bytes: &[u8],
        space: &Space,
    ) -> Result<(), FormatError> {
        let result = match node {
            NodeRef::Root(_) => self.load_children(node, Level::Directory, bytes),
            NodeRef::Dir(_) => self.load_children(node, Level::Leaf, bytes),
            NodeRef::Leaf(leaf) => self.load_leaf(leaf, bytes, space),
        };
        if result.is_err() {
            self.lost(node);
        }
        result
    }

    /// A node cannot be read. It stays on disk as it is.
    pub fn lost(&mut self, node: NodeRef) {
        self.lost.insert(node);
    }

    /// Whether all of a tree was read.
    pub fn is_whole(&self, root: Root) -> bool {
        !self.lost.iter().any(|lost| self.reaches(root, *lost))
    }

    /// Whether a tree has a node.
    pub fn reaches(&self, root: Root, node: NodeRef) -> bool {
        let mut directories = self.directories_of(root);
        match node {
            NodeRef::Root(node) => node == root,
            NodeRef::Dir(node) => directories.any(|dir| dir == node),
            NodeRef::Leaf(node) => {
                directories.flat_map(|dir| self.leaves_of(dir)).any(|leaf| leaf == node)
            }
        }
    }

    /// All was read that can be.
    pub fn end_load(&mut self) {
        assert!(self.loading.wanted.is_empty(), "not all was read");
        self.loading = Loading::default();
    }

    fn load_children(
        &mut self,
        node: NodeRef,
        level: Level,
        bytes: &[u8],
    ) -> Result<(), FormatError> {
        let part = match level {
            Level::Directory => Part::Root,
            Level::Leaf => Part::Directory,
        };
        self.node(node).extent.verify(part, bytes)?;
        let children = decode_children(part, bytes)?;
        for (slot, extent) in children.iter().enumerate().filter(|(_, child)| child.pages > 0) {
            let child = self.load_child(level, *extent);
            self.store_child(node, slot, child);
            self.node_mut(node).used += 1;
        }
        Ok(())
    }

    /// The number of a child, which is wanted unless it was met before.
    fn load_child(&mut self, level: Level, extent: Extent) -> u32 {
        let known = self.loading.by_page.get(&(level, extent.page));
        // One that claims the same page for something else is a node of its own: its pages are
        // found to be in use, and it is lost.
        if let Some(&(_, child)) = known.filter(|(known, _)| *known == extent) {
            let nodes = match level {
                Level::Directory => &mut self.directories,
                Level::Leaf => &mut self.leaves,
            };
            nodes[child].refs += 1;
            return child;
        }
        let child = match level {
            Level::Directory => {
                let child = self.directories.add();
                self.map.directories.make(child);
                let row = self.map.directories.row(child);
                row.iter().for_each(|leaf| leaf.store(0, Ordering::Relaxed));
                NodeRef::Dir(child)
            }
            Level::Leaf => {
                let child = self.leaves.add();
                self.map.leaves.make(child);
                self.map.heads.make(child);
                let row = self.map.leaves.row(child);
                row.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
                NodeRef::Leaf(child)
            }
        };
        let (NodeRef::Root(number) | NodeRef::Dir(number) | NodeRef::Leaf(number)) = child;
        self.node_mut(child).extent = extent;
        self.loading.wanted.push((child, extent));
        self.loading.by_page.entry((level, extent.page)).or_insert((extent, number));
        number
    }

    fn load_leaf(&mut self, leaf: u32, bytes: &[u8], space: &Space) -> Result<(), FormatError> {
        self.leaves[leaf].extent.verify(Part::Leaf, bytes)?;
        let (entries, lines) = decode_leaf(bytes)?;
        let wrong = |field, at, value| FormatError::Field { part: Part::Leaf, field, at, value };
        for (slot, &entry) in entries.iter().enumerate() {
            let entry = Entry(entry);
            if !entry.is_zero() && !entry.is_scattered() && !space.may_hold(entry.value()) {
                return Err(wrong("cluster of an entry", slot * 8, entry.0));
            }
        }
        for (index, line) in lines.iter().enumerate() {
            let at = |block| LEAF_ENTRIES * 8 + index * 64 + block * 4;
            let mut clusters = line.iter().enumerate().filter(|(_, cluster)| **cluster != 0);
            if let Some((block, &cluster)) = clusters.clone().find(|(_, c)| !space.may_hold(**c)) {
                return Err(wrong("cluster of a line", at(block), cluster.into()));
            }
            let first = clusters.next().map(|(_, cluster)| *cluster);
            if clusters.all(|(_, cluster)| Some(*cluster) == first) {
                return Err(wrong("line of fewer than two clusters", at(0), index as u64));
            }
        }
        let numbers: Vec<u32> = lines.into_iter().map(|line| self.load_line(line)).collect();
        for (slot, &entry) in entries.iter().enumerate().filter(|(_, entry)| **entry != 0) {
            let stored = Entry(entry);
            let entry = match stored.is_scattered() {
                true => Entry::scattered(numbers[stored.value() as usize], 0),
                false => stored,
            };
            self.map.store_entry(leaf, slot, entry);
        }
        let used = entries.iter().filter(|entry| **entry != 0).count();
        self.leaves[leaf].used = used as u32;
        Ok(())
    }

    fn load_line(&mut self, content: [u32; 16]) -> u32 {
        let key = crc64(content.as_bytes());
        if let Some(&line) = self.loading.lines.get(&key)
            && self.map.places(Entry::scattered(line, 0)).at == content
        {
            self.lines[line] += 1;
            return line;
        }
        let line = self.lines.add();
        self.map.lines.make(line);
        for (atom, cluster) in self.map.lines.row(line).iter().zip(content) {
            atom.store(cluster, Ordering::Relaxed);
        }
        self.loading.lines.insert(key, line);
        line
    }

    /// Counts anew what these trees hold, each with the head number of its volume, 0 for a
    /// snapshot: references, holders of clusters, own marks. To be called once between reading and
    /// replay, with nothing released. What no tree reaches is no more; where it was on disk is
    /// returned.
    ///
    /// A leaf that names a cluster which cannot have data is lost.
    pub fn recount(&mut self, roots: &[(Root, u64)], space: &mut Space) -> Vec<Extent> {
        space.forget_holders();
        let mut wrong = Vec::new();
        let starts = roots.iter().map(|(root, _)| Release::Root(*root));
        let found = self.reach(starts, |leaf, cluster| match space.may_hold(cluster) {
            true => space.acquire(cluster),
            false => wrong.push(NodeRef::Leaf(leaf)),
        });
        self.lost.extend(wrong);
        let mut unreached = Vec::new();
        let kinds = [
            (&mut self.roots, &found.roots),
            (&mut self.directories, &found.directories),
            (&mut self.leaves, &found.leaves),
        ];
        for (nodes, found) in kinds {
            for number in nodes.numbers() {
                let before = std::mem::replace(&mut nodes[number].refs, found[number as usize]);
                if before > 0 && nodes[number].refs == 0 {
                    unreached.push(nodes.remove(number));
                }
            }
        }
        for line in self.lines.numbers() {
            let before = std::mem::replace(&mut self.lines[line], found.lines[line as usize]);
            if before > 0 && self.lines[line] == 0 {
                self.lines.remove(line);
            }
        }
        for leaf in self.leaves.numbers().filter(|leaf| self.leaves[*leaf].refs > 0) {
            self.take_over(leaf, 0);
        }
        for &(root, head) in roots.iter().filter(|(_, head)| *head != 0) {
            self.mark_own(root, head, space);
        }
        unreached.retain(|extent| extent.pages > 0);
        unreached
    }

    /// Marks own what can be in a tree.
    fn mark_own(&self, root: Root, head: u64, space: &Space) {
        let unshared = self.directories_of(root).filter(|dir| self.directories[*dir].refs == 1);
        let leaves = unshared.flat_map(|dir| self.leaves_of(dir));
        for leaf in leaves.filter(|leaf| self.leaves[*leaf].refs == 1) {
            for slot in 0..LEAF_ENTRIES {
                let entry = self.map.leaf_entry(leaf, slot);
                let alone = |cluster| space.holders(cluster) == 1;
                let own = if entry.is_zero() {
                    continue;
                } else if !entry.is_scattered() {
                    Entry::direct(entry.value(), entry.mask(), alone(entry.value()))
                } else if self.lines[entry.value()] == 1 {
                    let places = self.map.places(entry);
                    let clusters = places.clusters();
                    let own = clusters.iter().filter(|(cluster, _)| alone(*cluster));
                    Entry::scattered(entry.value(), own.fold(0, |own, (_, blocks)| own | blocks))
                } else {
                    continue;
                };
                self.map.store_entry(leaf, slot, own.with_guard(entry.guarded()));
            }
            self.map.heads.at(leaf, 0).store(head, Ordering::Release);
        }
    }

    pub(super) fn directories_of(&self, root: Root) -> impl Iterator<Item = u32> + '_ {
        (0..FANOUT).map(move |slot| self.map.directory(root, slot)).filter(|dir| *dir != 0)
    }

    pub(super) fn leaves_of(&self, directory: u32) -> impl Iterator<Item = u32> + '_ {
        (0..FANOUT).map(move |slot| self.map.leaf_in(directory, slot)).filter(|leaf| *leaf != 0)
    }
}
