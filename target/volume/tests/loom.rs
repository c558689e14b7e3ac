//! The map and the epochs as every order of the cores' loads and stores has them.
//!
//! Compiles the sources of both with loom's atomics, and with nodes of two children and entries,
//! so that loom can go through all interleavings that have few preemptions.
#![allow(dead_code, unused_imports, reason = "the modules are whole, and these tests use a part")]

use std::sync::Arc;

use loom::thread;

use epoch::{Epochs, LaneEpoch, OwnerEpoch};
use map::{At, Map, Release, Tree};
use space::{Run, Space};

#[path = "../src/epoch.rs"]
mod epoch;
#[path = "../src/map/mod.rs"]
mod map;

mod space {
    pub use volume::space::*;
}

mod limits {
    pub use volume::limits::CLUSTER_BLOCKS;
    pub const LEAF_ENTRIES: usize = 2;
    pub const FANOUT: usize = 2;
    pub const FIRST_ROOTS: usize = 4;
    pub const FIRST_DIRECTORIES: usize = 4;
    pub const FIRST_LEAVES: usize = 4;
    pub const FIRST_LINES: usize = 4;
    pub const LANE_EPOCHS: usize = 4;
}

mod sync {
    pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

    pub type Zeroed<A> = Box<[A]>;

    pub trait Atom: Sized {
        fn zero() -> Self;
    }

    impl Atom for AtomicU32 {
        fn zero() -> AtomicU32 {
            AtomicU32::new(0)
        }
    }

    impl Atom for AtomicU64 {
        fn zero() -> AtomicU64 {
            AtomicU64::new(0)
        }
    }

    pub fn zeroed<A: Atom>(count: usize) -> Zeroed<A> {
        (0..count).map(|_| A::zero()).collect()
    }
}

/// Nothing is written or read here: nodes of this size have no bytes.
mod format {
    use super::limits::{FANOUT, LEAF_ENTRIES};
    pub use volume::format::{Extent, FormatError, Part, crc64};

    type Leaf = (Box<[u64; LEAF_ENTRIES]>, Vec<[u32; 16]>);

    pub fn encode_leaf(_: &[u64; LEAF_ENTRIES], _: impl Fn(u32) -> [u32; 16], _: &mut Vec<u8>) {}

    pub fn encode_children(_: &[Extent; FANOUT], _: &mut Vec<u8>) {}

    pub fn decode_leaf(_: &[u8]) -> Result<Leaf, FormatError> {
        unreachable!("nothing is read")
    }

    pub fn decode_children(_: Part, _: &[u8]) -> Result<Box<[Extent; FANOUT]>, FormatError> {
        unreachable!("nothing is read")
    }
}

struct Pool {
    tree: Tree,
    space: Space,
    run: Run,
    released: Vec<Release>,
}

impl Pool {
    fn new() -> Pool {
        let tree = Tree::new(Arc::new(Map::new()));
        Pool { tree, space: Space::new(&[64]), run: Run::default(), released: Vec::new() }
    }

    fn set(&mut self, at: At, mask: u16) -> u32 {
        let cluster = self.space.take(&mut self.run).expect("space");
        self.tree.set(at, mask, cluster, false, &mut self.space, &mut self.released);
        cluster
    }

    fn free(&mut self) {
        while !self.released.is_empty() {
            for release in std::mem::take(&mut self.released) {
                self.tree.free(release, &mut self.space, &mut self.released);
            }
            self.tree.reap(usize::MAX, &mut self.space, &mut self.released);
        }
    }
}

/// All interleavings with at most so many preemptions.
fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(f);
}

#[test]
fn a_reader_sees_an_entry_with_its_line_and_its_leaf() {
    model(5, || {
        let mut pool = Pool::new();
        let at = At { root: pool.tree.new_root(), head: 1, index: 1 };
        let old = pool.set(at, 0b11);
        pool.tree.share(at.root);
        let new = pool.space.take(&mut pool.run).expect("space");
        let map = pool.tree.map().clone();
        let reader = thread::spawn(move || {
            for _ in 0..2 {
                let (entry, head) = map.entry(at.root, at.index);
                assert_eq!(map.cluster_of(entry, 0), old);
                let second = map.cluster_of(entry, 1);
                let own = head == 2 && entry.own_mask() & 0b10 != 0;
                assert_eq!(second, if entry.is_scattered() { new } else { old });
                assert!(!own || second == new);
            }
        });
        // Copies the directory and the leaf, and makes a line.
        let at = At { head: 2, ..at };
        pool.tree.set(at, 0b10, new, false, &mut pool.space, &mut pool.released);
        reader.join().expect("the reader");
    });
}

#[test]
fn a_reader_of_a_line_that_changes_in_place_has_own_and_unguarded_only_what_stays() {
    model(5, || {
        let mut pool = Pool::new();
        let at = At { root: pool.tree.new_root(), head: 1, index: 1 };
        let first = pool.set(at, 0b0001);
        let second = pool.set(at, 0b0010);
        pool.free();
        let map = pool.tree.map().clone();
        let line = map.entry(at.root, at.index).0.value();
        let third = pool.space.take(&mut pool.run).expect("space");
        let reader = thread::spawn(move || {
            for _ in 0..2 {
                let (entry, _) = map.entry(at.root, at.index);
                assert_eq!(entry.value(), line, "in place");
                let found = [0, 1, 2].map(|block| map.cluster_of(entry, block));
                assert_eq!(found[..2], [first, second]);
                let own = entry.own_mask() >> 2 & 1 == 1;
                assert!(found[2] == third || found[2] == 0 && !own);
                assert!(!own || entry.guarded());
            }
        });
        let Pool { tree, space, released, .. } = &mut pool;
        tree.set(at, 0b0100, third, true, space, released);
        assert_eq!(*released, []);
        reader.join().expect("the reader");
    });
}

#[test]
fn a_reader_of_a_leaf_that_is_taken_over_sees_no_own_mark_of_an_earlier_time() {
    model(5, || {
        let mut pool = Pool::new();
        let at = At { root: pool.tree.new_root(), head: 1, index: 0 };
        pool.set(at, 1);
        let clone = At { root: pool.tree.share(at.root), head: 3, index: 1 };
        pool.set(clone, 1);
        pool.free();
        let map = pool.tree.map().clone();
        let reader = thread::spawn(move || {
            let (entry, head) = map.entry(at.root, at.index);
            assert!(head != 2 || entry.own_mask() == 0);
        });
        pool.set(At { head: 2, index: 1, ..at }, 1);
        assert_eq!(pool.released, [], "nothing was copied");
        reader.join().expect("the reader");
    });
}

/// A lane that begins to poll, and has an I/O in flight from its second turn to its third.
fn reader(map: &Map, epochs: &Epochs, at: At, may_be: [u32; 2]) {
    let mut lane = LaneEpoch::new(0);
    lane.begin_turn(epochs);
    let (entry, _) = map.entry(at.root, at.index);
    assert!(may_be.contains(&map.cluster_of(entry, 0)));
    lane.begin_turn(epochs);
    let (entry, _) = map.entry(at.root, at.index);
    let tag = lane.begin_io();
    lane.begin_turn(epochs);
    // Loom does not come upon this by itself: here the owner may go on.
    thread::yield_now();
    assert!(may_be.contains(&map.cluster_of(entry, 0)), "the I/O is in flight");
    lane.end_io(tag);
    lane.begin_turn(epochs);
}

#[test]
fn a_line_is_used_again_when_no_reader_has_it() {
    model(5, || {
        let mut pool = Pool::new();
        let at = At { root: pool.tree.new_root(), head: 1, index: 0 };
        let first = pool.set(at, 0b01);
        pool.set(at, 0b10);
        pool.free();
        let second = pool.space.take(&mut pool.run).expect("space");
        let map = pool.tree.map().clone();
        let epochs = Arc::new(Epochs::new(1));
        let thread = {
            let (map, epochs) = (map.clone(), epochs.clone());
            thread::spawn(move || reader(&map, &epochs, at, [first, second]))
        };
        let before = map.entry(at.root, at.index).0.value();
        pool.tree.set(at, 0b01, second, false, &mut pool.space, &mut pool.released);
        let mut owner = OwnerEpoch::new();
        let retired = owner.retire();
        for _ in 0..2 {
            owner.try_advance(&epochs);
            if owner.is_over(retired) {
                // Somebody else gets the line.
                pool.free();
                let other = At { index: 1, ..at };
                pool.set(other, 0b01);
                pool.set(other, 0b10);
                assert_eq!(map.entry(other.root, other.index).0.value(), before);
                break;
            }
        }
        thread.join().expect("the reader");
    });
}

#[test]
fn a_leaf_is_used_again_when_no_reader_has_it() {
    model(5, || {
        let mut pool = Pool::new();
        let at = At { root: pool.tree.new_root(), head: 1, index: 0 };
        let cluster = pool.set(at, 1);
        // So that the directory stays.
        pool.set(At { index: 2, ..at }, 1);
        let map = pool.tree.map().clone();
        let epochs = Arc::new(Epochs::new(1));
        let thread = {
            let (map, epochs) = (map.clone(), epochs.clone());
            thread::spawn(move || reader(&map, &epochs, at, [cluster, 0]))
        };
        pool.tree.clear(at, 1, &mut pool.space, &mut pool.released);
        let mut owner = OwnerEpoch::new();
        let retired = owner.retire();
        for _ in 0..2 {
            owner.try_advance(&epochs);
            if owner.is_over(retired) {
                pool.free();
                // The same leaf is somebody else's.
                let other = At { index: 4, ..at };
                pool.set(other, 1);
                break;
            }
        }
        thread.join().expect("the reader");
    });
}
