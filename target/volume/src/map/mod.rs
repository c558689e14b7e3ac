//! Where each block of each volume is.
//!
//! [`Map`] is what every core reads, by plain atomic loads; [`Tree`] is what the pool's owner has
//! besides, and with which it changes the map. `docs/volumes.md` (Map, Releases, Checkpoint)
//! says what it is for; here is what makes it right.
//!
//! **Readers.** A node or line is filled first and published by one `Release` store of its number
//! after that; readers load numbers with `Acquire`. What readers may have reached by a number is
//! used again only when its [`Release`] has come back.
//!
//! **Lines** that only one entry names change in place, block by block: a block that is not own
//! comes to a new place by one `Release` store, before the entry has it for its own and guarded. A
//! reader finds it here or there, and both are right until the write that moves it has ended. Any
//! other change of a scattered entry is a new line.
//!
//! **References.** Directories and leaves count the nodes that name them, lines the leaves,
//! clusters their holders. Whoever stops naming something gives its reference to a [`Release`]
//! and does not count down. So what another volume shares with a reader of the old map, or with
//! the map to which a crash may go back, stays shared until that reader and that crash are past:
//! it is copied, not changed in place, and it is not adopted.
//!
//! **Own marks** count only in a leaf whose head number is that of the volume. Nobody takes them
//! away when a leaf becomes shared; whoever takes a leaf over removes them before it stores the
//! new head number. Readers load the head number first and the entry after it.

mod checkpoint;
mod entry;
mod load;
mod moving;
mod nodes;
mod places;
mod release;
mod table;
mod tree;
mod walk;

pub use checkpoint::NodeRef;
pub use entry::Entry;
pub use release::Release;
pub use tree::{At, Tree};
pub use walk::Fault;

use crate::limits::{
    CLUSTER_BLOCKS, FANOUT, FIRST_DIRECTORIES, FIRST_LEAVES, FIRST_LINES, FIRST_ROOTS, LEAF_ENTRIES,
};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use places::Places;
use table::Table;

/// Number of a root node, and so of a volume's or snapshot's tree. 0 is the empty tree.
pub type Root = u32;

const LEAF_SHIFT: u32 = LEAF_ENTRIES.ilog2();
const DIRECTORY_SHIFT: u32 = LEAF_SHIFT + FANOUT.ilog2();

/// The child of a root that entry `index` is under.
const fn root_slot(index: u32) -> usize {
    (index >> DIRECTORY_SHIFT) as usize
}

/// The child of a directory that entry `index` is under.
const fn directory_slot(index: u32) -> usize {
    (index >> LEAF_SHIFT) as usize % FANOUT
}

/// The place of entry `index` in its leaf.
const fn leaf_slot(index: u32) -> usize {
    index as usize % LEAF_ENTRIES
}

/// The trees of a pool as all cores see them.
pub struct Map {
    roots: Table<AtomicU32, FANOUT, FIRST_ROOTS>,
    directories: Table<AtomicU32, FANOUT, FIRST_DIRECTORIES>,
    leaves: Table<AtomicU64, LEAF_ENTRIES, FIRST_LEAVES>,
    heads: Table<AtomicU64, 1, FIRST_LEAVES>,
    lines: Table<AtomicU32, { CLUSTER_BLOCKS as usize }, FIRST_LINES>,
}

impl Default for Map {
    fn default() -> Map {
        Map::new()
    }
}

impl Map {
    /// A map of nothing.
    pub fn new() -> Map {
        Map {
            roots: Table::new(),
            directories: Table::new(),
            leaves: Table::new(),
            heads: Table::new(),
            lines: Table::new(),
        }
    }

    /// Entry `index` of a tree, and the head number of its leaf; 0 when there is no leaf.
    ///
    /// What is in the entry may be followed until the turn ends, or the I/O that was begun in it:
    /// see [`crate::epoch`].
    #[inline]
    pub fn entry(&self, root: Root, index: u32) -> (Entry, u64) {
        let leaf = self.leaf(root, index);
        if leaf == 0 {
            return (Entry::ZERO, 0);
        }
        // In this order: an own mark that is seen beside a head number was made for it.
        let head = self.head(leaf);
        (self.leaf_entry(leaf, leaf_slot(index)), head)
    }

    /// The cluster that block `block` of an entry is in; 0 when it is zero.
    #[inline]
    pub fn cluster_of(&self, entry: Entry, block: u32) -> u32 {
        if entry.is_scattered() {
            self.lines.at(entry.value(), block as usize).load(Ordering::Acquire)
        } else if entry.mask() >> block & 1 == 1 {
            entry.value()
        } else {
            0
        }
    }

    /// Blocks of an entry that are in `cluster`.
    pub fn blocks_in(&self, entry: Entry, cluster: u32) -> u16 {
        self.places(entry).in_cluster(cluster)
    }

    /// Blocks that are not at the same place in both entries.
    pub fn changed_blocks(&self, a: Entry, b: Entry) -> u16 {
        self.places(a).differ(&self.places(b))
    }

    fn places(&self, entry: Entry) -> Places {
        let mut places = Places { own: entry.own_mask(), ..Places::default() };
        if entry.is_scattered() {
            for (place, atom) in places.at.iter_mut().zip(self.lines.row(entry.value())) {
                *place = atom.load(Ordering::Relaxed);
            }
        } else {
            places.put(entry.mask(), entry.value());
        }
        places
    }

    #[inline]
    fn directory(&self, root: Root, slot: usize) -> u32 {
        self.roots.at(root, slot).load(Ordering::Acquire)
    }

    #[inline]
    fn leaf(&self, root: Root, index: u32) -> u32 {
        if root == 0 {
            return 0;
        }
        match self.directory(root, root_slot(index)) {
            0 => 0,
            directory => self.leaf_in(directory, directory_slot(index)),
        }
    }

    #[inline]
    fn leaf_in(&self, directory: u32, slot: usize) -> u32 {
        self.directories.at(directory, slot).load(Ordering::Acquire)
    }

    #[inline]
    fn head(&self, leaf: u32) -> u64 {
        self.heads.at(leaf, 0).load(Ordering::Acquire)
    }

    #[inline]
    fn leaf_entry(&self, leaf: u32, slot: usize) -> Entry {
        Entry(self.leaves.at(leaf, slot).load(Ordering::Acquire))
    }

    #[inline]
    fn store_entry(&self, leaf: u32, slot: usize, entry: Entry) {
        self.leaves.at(leaf, slot).store(entry.0, Ordering::Release);
    }
}
