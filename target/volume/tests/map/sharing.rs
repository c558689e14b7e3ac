//! Who may change what in place, when trees share it.

use std::sync::Arc;

use volume::map::{At, Entry, Map, Release, Root, Tree};
use volume::space::{Run, Space};

struct Pool {
    tree: Tree,
    map: Arc<Map>,
    space: Space,
    run: Run,
    released: Vec<Release>,
}

impl Pool {
    fn new() -> Pool {
        let map = Arc::new(Map::new());
        let tree = Tree::new(map.clone());
        let space = Space::new(&[1000]);
        Pool { tree, map, space, run: Run::default(), released: Vec::new() }
    }

    fn set(&mut self, at: At, mask: u16) -> u32 {
        let cluster = self.space.take(&mut self.run).expect("space");
        self.set_in(at, mask, cluster);
        cluster
    }

    fn set_in(&mut self, at: At, mask: u16, cluster: u32) {
        self.tree.set(at, mask, cluster, false, &mut self.space, &mut self.released);
    }

    fn clear(&mut self, at: At, mask: u16) {
        self.tree.clear(at, mask, &mut self.space, &mut self.released);
    }

    fn clear_range(&mut self, at: At, first: u64, count: u64) {
        let At { root, head, .. } = at;
        self.tree.clear_range(root, head, first, count, &mut self.space, &mut self.released);
    }

    fn released(&mut self) -> Vec<Release> {
        std::mem::take(&mut self.released)
    }

    /// The time of all that was released has come.
    fn free(&mut self) {
        while !self.released.is_empty() {
            for release in self.released() {
                self.tree.free(release, &mut self.space, &mut self.released);
            }
            assert!(self.tree.reap(usize::MAX, &mut self.space, &mut self.released));
        }
    }

    fn delete(&mut self, root: Root) {
        self.released.push(Release::Root(root));
        self.free();
    }

    fn own(&self, at: At) -> u16 {
        let (entry, head) = self.map.entry(at.root, at.index);
        if head == at.head { entry.own_mask() } else { 0 }
    }

    fn entry(&self, at: At) -> Entry {
        self.map.entry(at.root, at.index).0
    }
}

/// A volume with four blocks in one cluster, and a clone of it.
fn volume_and_clone() -> (Pool, At, At, u32) {
    let mut pool = Pool::new();
    let volume = At { root: pool.tree.new_root(), head: 1, index: 7 };
    let cluster = pool.set(volume, 0b1111);
    assert_eq!(pool.own(volume), 0b1111);
    let clone = At { root: pool.tree.share(volume.root), head: 3, index: 7 };
    (pool, At { head: 2, ..volume }, clone, cluster)
}

#[test]
fn after_a_snapshot_nothing_is_own_and_writes_go_elsewhere() {
    let (mut pool, volume, clone, cluster) = volume_and_clone();
    assert_eq!(pool.own(volume), 0);
    assert!(!pool.tree.adopt(volume, 1, &pool.space));
    assert_eq!(pool.tree.own_cluster(volume), None);
    let other = pool.set(volume, 0b0001);
    let entry = pool.entry(volume);
    assert!(entry.is_scattered());
    let clusters: Vec<u32> = (0..5).map(|block| pool.map.cluster_of(entry, block)).collect();
    assert_eq!(clusters, [other, cluster, cluster, cluster, 0]);
    assert_eq!(pool.own(volume), 0b0001);
    assert_eq!(pool.tree.own_cluster(volume), Some(other));
    assert_eq!(pool.entry(clone).stored(), Entry::direct(cluster, 0b1111, false));
}

#[test]
fn what_a_volume_has_left_is_not_changed_in_place_while_readers_may_be_in_it() {
    let (mut pool, volume, clone, _) = volume_and_clone();
    pool.set(volume, 0b0001);
    let left = pool.released();
    assert!(matches!(left[..], [Release::Dir(_), Release::Leaf(_)]));
    // The clone alone reaches the old directory and leaf by now, but not a reader of the volume
    // that was on its way.
    pool.set(clone, 0b0010);
    let copied = pool.released();
    assert!(matches!(copied[..], [Release::Dir(_), Release::Leaf(_)]));
    pool.released = [left, copied].concat();
    pool.free();

    // Once more, and the time of what the volume left has come.
    let (mut pool, volume, clone, _) = volume_and_clone();
    pool.set(volume, 0b0001);
    pool.free();
    pool.set(clone, 0b0010);
    assert_eq!(pool.released(), [], "nothing was copied");
}

#[test]
fn own_marks_of_an_earlier_time_are_gone_when_a_leaf_is_taken_over() {
    let (mut pool, volume, clone, cluster) = volume_and_clone();
    let other = At { index: 8, ..clone };
    pool.set(other, 1);
    pool.free();
    assert_eq!(pool.space.holders(cluster), 2, "the clone has a leaf of its own");
    // The volume's leaf is its own again, and the cluster is marked in it, but not its own.
    pool.set(At { index: 9, ..volume }, 1);
    assert_eq!(pool.released(), [], "nothing was copied");
    assert_eq!(pool.own(volume), 0);
    assert!(!pool.tree.adopt(volume, 0b0001, &pool.space));
}

#[test]
fn when_what_shared_a_block_is_gone_it_is_own_again() {
    let (mut pool, volume, clone, cluster) = volume_and_clone();
    pool.set(volume, 0b0001);
    pool.free();
    assert!(!pool.tree.adopt(volume, 0b0010, &pool.space));
    pool.delete(clone.root);
    assert_eq!(pool.own(volume), 0b0001);
    assert!(!pool.tree.adopt(volume, 0b1_0010, &pool.space), "block 4 is zero");
    assert!(pool.tree.adopt(volume, 0b0010, &pool.space));
    assert_eq!(pool.own(volume), 0b1111);
    assert_eq!(pool.space.holders(cluster), 1);
}

#[test]
fn a_place_in_an_own_cluster_is_released_when_its_block_goes() {
    let mut pool = Pool::new();
    let volume = At { root: pool.tree.new_root(), head: 1, index: 0 };
    let cluster = pool.set(volume, 0b0111);
    pool.clear(volume, 0b0001);
    let place = |mask| Release::Cluster { cluster, mask, last: false };
    assert_eq!(pool.released(), [place(0b0001)]);
    let other = pool.set(volume, 0b0010);
    assert_eq!(pool.released(), [place(0b0010)], "the line holds what the entry held");
    let third = pool.set(volume, 0b1000);
    let line = pool.entry(volume).value();
    assert_eq!(pool.released(), [], "the line is changed in place");
    pool.set_in(volume, 0b0001, other);
    pool.clear(volume, 0b0001);
    let released = pool.released();
    let gone = Release::Cluster { cluster: other, mask: 0b0001, last: false };
    assert!(released[..2].contains(&Release::Line(line)) && released.contains(&gone));
    assert_eq!(pool.own(volume), 0b1110);
    assert_eq!(pool.map.blocks_in(pool.entry(volume), third), 0b1000);
}

#[test]
fn what_is_late_is_in_the_snapshot_and_in_the_volume_and_own_in_neither() {
    let mut pool = Pool::new();
    let volume = At { root: pool.tree.new_root(), head: 1, index: 0 };
    pool.set(volume, 0b0001);
    let cluster = pool.space.take(&mut pool.run).expect("space");
    let snapshot = At { root: pool.tree.share(volume.root), ..volume };
    let volume = At { head: 2, ..volume };
    let late = |pool: &mut Pool, snapshot, cluster| {
        let volume = Some((volume, 0b0010));
        let Pool { tree, space, released, .. } = pool;
        tree.set_late(snapshot, 0b0010, volume, cluster, space, released);
    };
    late(&mut pool, snapshot, cluster);
    for at in [snapshot, volume] {
        assert_eq!(pool.map.cluster_of(pool.entry(at), 1), cluster);
        assert_eq!(pool.own(at) & 0b0010, 0);
        assert!(pool.entry(at).guarded());
    }
    assert_eq!(pool.space.holders(cluster), 1, "they share a leaf");
    // A leaf that is in neither yet.
    let cluster = pool.space.take(&mut pool.run).expect("space");
    let far = At { index: 1 << 20, ..snapshot };
    let Pool { tree, space, released, .. } = &mut pool;
    let volume = At { index: far.index, ..volume };
    tree.set_late(far, 0b0010, Some((volume, 0b0010)), cluster, space, released);
    assert_eq!(pool.space.holders(cluster), 2);
    assert_eq!((pool.own(far), pool.own(volume)), (0, 0));
}

#[test]
fn guards_stay_until_they_are_taken_away() {
    let mut pool = Pool::new();
    let at = At { root: pool.tree.new_root(), head: 1, index: 3 };
    let cluster = pool.space.take(&mut pool.run).expect("space");
    pool.tree.set(at, 1, cluster, true, &mut pool.space, &mut pool.released);
    pool.set_in(at, 2, cluster);
    pool.set(at, 4);
    pool.clear(at, 1);
    assert!(pool.entry(at).guarded() && pool.own(at) == 6);
    pool.tree.set_guard(at.root, at.index, false);
    assert!(!pool.entry(at).guarded() && pool.own(at) == 6);
    pool.tree.set_guard(at.root, at.index, true);
    pool.clear(at, 6);
    assert_eq!(pool.entry(at), Entry::ZERO, "nothing is left to be guarded");
    pool.tree.set_guard(at.root, at.index, true);
    assert_eq!(pool.entry(at), Entry::ZERO);
}

#[test]
fn a_large_range_is_cleared_by_leaf_and_directory() {
    const DIRECTORY: u32 = 512 * 1024;
    let mut pool = Pool::new();
    let volume = At { root: pool.tree.new_root(), head: 1, index: 0 };
    for index in [0, 1, 600, DIRECTORY - 1, DIRECTORY, 2 * DIRECTORY, 3 * DIRECTORY + 5] {
        pool.set(At { index, ..volume }, u16::MAX);
    }
    // From the middle of entry 0 to the middle of the last one.
    pool.clear_range(volume, 8, u64::from(3 * DIRECTORY + 5) * 16);
    assert_eq!(pool.entry(volume).mask(), 0xff);
    assert_eq!(pool.entry(At { index: 3 * DIRECTORY + 5, ..volume }).mask(), 0xff00);
    let mut left = 0;
    assert_eq!(pool.tree.walk(volume.root, 0, usize::MAX, |_, _, _| left += 1), None);
    assert_eq!(left, 2);
    assert!(pool.released.len() < 10, "{:?}", pool.released);
    pool.free();
    assert_eq!(pool.tree.check(&[volume.root], &[], &pool.space), []);
}

#[test]
fn a_diff_calls_what_differs_and_goes_on_where_it_stopped() {
    let (mut pool, volume, clone, _) = volume_and_clone();
    for index in [0, 512, 513, 5000, 1 << 22] {
        pool.set(At { index, ..volume }, 0b10);
    }
    let expected = [0, 512, 513, 5000, 1 << 22];
    for budget in [1, 2, usize::MAX] {
        let (mut found, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            from = pool.tree.diff(clone.root, volume.root, at, budget, |index, a, b| {
                assert_eq!((a, pool.map.changed_blocks(a, b)), (Entry::ZERO, 0b10));
                found.push(index);
            });
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn a_wrong_count_is_found() {
    let (mut pool, volume, clone, cluster) = volume_and_clone();
    let roots = [volume.root, clone.root];
    assert_eq!(pool.tree.check(&roots, &[], &pool.space), []);
    pool.space.acquire(cluster);
    assert_eq!(pool.tree.check(&roots, &[], &pool.space).len(), 1, "a leak");
    pool.space.release(cluster);
    pool.space.release(cluster);
    assert_eq!(pool.tree.check(&roots, &[], &pool.space).len(), 1, "used and free");
    pool.space.acquire(cluster);
    assert_eq!(pool.tree.check(&roots[..1], &[], &pool.space).len(), 2, "root and directory");
    let line = [Release::Cluster { cluster, mask: 0, last: true }];
    assert_eq!(pool.tree.check(&roots, &line, &pool.space).len(), 1);
}

#[test]
fn a_line_of_one_entry_is_changed_in_place() {
    let (mut pool, volume, clone, cluster) = volume_and_clone();
    let other = pool.set(volume, 0b0001);
    let line = pool.entry(volume);
    pool.free();
    assert_eq!(pool.space.holders(cluster), 2);
    // Another block that is not own, and one that was zero; what they leave is not said.
    pool.set_in(volume, 0b0010, other);
    pool.set_in(volume, 0b1_0000, other);
    assert_eq!((pool.entry(volume).value(), pool.released()), (line.value(), vec![]));
    assert_eq!((pool.own(volume), pool.space.holders(other)), (0b1_0011, 1));
    assert_eq!(pool.map.blocks_in(pool.entry(volume), cluster), 0b1100);
    // A cluster that has no more blocks is held until the time has come.
    let third = pool.set(volume, 0b1100);
    let gone = Release::Cluster { cluster, mask: 0b1100, last: true };
    assert_eq!(pool.released, [gone]);
    assert_eq!(pool.tree.check(&[volume.root, clone.root], &[gone], &pool.space), []);
    pool.free();
    assert_eq!((pool.space.holders(cluster), pool.space.holders(third)), (1, 1));
    assert_eq!(pool.map.blocks_in(pool.entry(clone), cluster), 0b1111);
}

#[test]
fn a_line_is_not_changed_in_place_for_own_blocks_nor_where_somebody_else_may_have_it() {
    let mut pool = Pool::new();
    let volume = At { root: pool.tree.new_root(), head: 1, index: 0 };
    let cluster = pool.set(volume, 0b0111);
    pool.set(volume, 0b1000);
    pool.free();
    let line = pool.entry(volume).value();
    pool.set(volume, 0b0001);
    let left = Release::Cluster { cluster, mask: 0b0001, last: false };
    assert_eq!(pool.released(), [left, Release::Line(line)], "an own block");
    let line = pool.entry(volume).value();
    let clone = At { root: pool.tree.share(volume.root), head: 3, index: 1 };
    let volume = At { head: 2, ..volume };
    pool.set(clone, 1);
    pool.set(volume, 0b0010);
    assert_ne!(pool.entry(volume).value(), line, "the clone's leaf has it too");
    assert_eq!(pool.entry(At { index: 0, ..clone }).value(), line);
}

#[test]
fn what_two_leaves_have_by_one_line_is_nobodys_own() {
    let mut pool = Pool::new();
    let volume = At { root: pool.tree.new_root(), head: 1, index: 0 };
    let cluster = pool.set(volume, 0b01);
    pool.set(volume, 0b10);
    pool.free();
    let clone = At { root: pool.tree.share(volume.root), head: 3, index: 1 };
    let volume = At { head: 2, ..volume };
    pool.set(clone, 1);
    pool.free();
    assert_eq!(pool.space.holders(cluster), 1, "the line");
    assert!(!pool.tree.adopt(volume, 0b01, &pool.space));
    assert!(!pool.tree.adopt(At { index: 0, ..clone }, 0b01, &pool.space));
    pool.delete(clone.root);
    assert!(pool.tree.adopt(volume, 0b11, &pool.space));
}
