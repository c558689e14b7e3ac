//! A pool without I/O: what an engine does with the map, and what each volume must read.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use volume::format::{Extent, PAGE_BYTES};
use volume::map::{At, Entry, Fault, Map, NodeRef, Release, Root, Tree};
use volume::space::{Run, Space};

/// What is in a block of data: who wrote it, for which of its blocks, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    writer: u64,
    block: u64,
    time: u64,
}

/// Where the blocks of a tree are, or what is in them.
type Blocks<T> = BTreeMap<u64, T>;

/// A volume, or a snapshot.
#[derive(Clone, Debug)]
pub struct Volume {
    pub id: u64,
    pub root: Root,
    /// 0 for a snapshot, which nobody writes.
    pub head: u64,
    pub blocks: Blocks<Value>,
}

/// A read in flight, resolved when it began.
#[derive(Debug)]
struct Read {
    id: u64,
    place: Option<(u32, u32)>,
    block: u64,
    value: Option<Value>,
    /// Releases from this one on came after it began.
    position: u64,
}

/// Trees on disk: where, and where their blocks are.
type Stored = Vec<(Extent, Blocks<u32>)>;

pub struct World {
    pub tree: Tree,
    pub map: Arc<Map>,
    pub space: Space,
    pub volumes: Vec<Volume>,
    run: Run,
    data: HashMap<(u32, u32), Value>,
    /// Released, in order; the first has position `freed`.
    pub pending: VecDeque<Release>,
    freed: u64,
    dismantling: Vec<Root>,
    reads: Vec<Read>,
    time: u64,
    heads: u64,
    /// Pages on disk.
    disk: HashMap<u64, Vec<u8>>,
    /// What the last complete checkpoint has.
    pub stored: Stored,
    /// Pages that are free when the next one is complete.
    unused: Vec<Extent>,
    /// Of the checkpoint that is going: trees, and where their blocks were when it began.
    going: Option<Vec<(Root, Blocks<u32>)>>,
}

pub const DEVICES: [u32; 3] = [400, 0, 200];

impl World {
    pub fn new() -> World {
        let map = Arc::new(Map::new());
        let mut world = World {
            tree: Tree::new(map.clone()),
            map,
            space: Space::new(&DEVICES),
            volumes: Vec::new(),
            run: Run::default(),
            data: HashMap::new(),
            pending: VecDeque::new(),
            freed: 0,
            dismantling: Vec::new(),
            reads: Vec::new(),
            time: 0,
            heads: 0,
            disk: HashMap::new(),
            stored: Vec::new(),
            unused: Vec::new(),
            going: None,
        };
        world.create();
        world
    }

    pub fn create(&mut self) {
        let (id, head) = (self.now(), self.new_head());
        let root = self.tree.new_root();
        self.volumes.push(Volume { id, root, head, blocks: Blocks::new() });
    }

    fn now(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    fn new_head(&mut self) -> u64 {
        self.heads += 1;
        self.heads
    }

    fn at(&self, volume: usize, index: u32) -> At {
        let Volume { root, head, .. } = self.volumes[volume];
        At { root, head, index }
    }

    /// Calls the tree with the space, and keeps what it releases.
    fn with<T>(&mut self, f: impl FnOnce(&mut Tree, &mut Space, &mut Vec<Release>) -> T) -> T {
        let mut released = Vec::new();
        let result = f(&mut self.tree, &mut self.space, &mut released);
        self.pending.extend(released);
        result
    }

    /// Blocks of a cluster that were in use until what is pending was released.
    fn cooling(&self, cluster: u32) -> u16 {
        self.pending.iter().fold(0, |cooling, release| match release {
            Release::Cluster { cluster: of, mask, .. } if *of == cluster => cooling | mask,
            _ => cooling,
        })
    }

    /// As an engine does: in place what is own or can be, else to a new place.
    pub fn write(&mut self, volume: usize, index: u32, mask: u16, guard: bool) {
        let at = self.at(volume, index);
        if at.head == 0 || mask == 0 {
            return;
        }
        let (entry, head) = self.map.entry(at.root, index);
        let own = head == at.head && entry.own_mask() & mask == mask;
        if own && !entry.guarded() || self.tree.adopt(at, mask, &self.space) {
            let (entry, _) = self.map.entry(at.root, index);
            assert_eq!(entry.own_mask() & mask, mask, "what was adopted is own");
            for block in blocks_of(mask) {
                let value = self.value(volume, index, block);
                let cluster = self.map.cluster_of(entry, block);
                assert!(cluster != 0, "an own block is somewhere");
                self.data.insert((cluster, block), value);
            }
            return;
        }
        let own = self.tree.own_cluster(at).filter(|cluster| {
            (self.map.blocks_in(entry, *cluster) | self.cooling(*cluster)) & mask == 0
        });
        let Some(cluster) = own.or_else(|| self.space.take(&mut self.run)) else { return };
        for block in blocks_of(mask) {
            let value = self.value(volume, index, block);
            self.data.insert((cluster, block), value);
        }
        self.with(|tree, space, released| tree.set(at, mask, cluster, guard, space, released));
    }

    /// A new value of a block of a volume.
    fn value(&mut self, volume: usize, index: u32, block: u32) -> Value {
        let time = self.now();
        let volume = &mut self.volumes[volume];
        let block = u64::from(index) * 16 + u64::from(block);
        let value = Value { writer: volume.id, block, time };
        volume.blocks.insert(block, value);
        value
    }

    pub fn clear(&mut self, volume: usize, index: u32, mask: u16) {
        let at = self.at(volume, index);
        if at.head != 0 {
            self.with(|tree, space, released| tree.clear(at, mask, space, released));
            let blocks = &mut self.volumes[volume].blocks;
            for block in blocks_of(mask) {
                blocks.remove(&(u64::from(index) * 16 + u64::from(block)));
            }
        }
    }

    pub fn clear_range(&mut self, volume: usize, first: u64, count: u64) {
        let At { root, head, .. } = self.at(volume, 0);
        if head != 0 {
            self.with(|tree, space, released| {
                tree.clear_range(root, head, first, count, space, released);
            });
            self.volumes[volume].blocks.retain(|block, _| !(first..first + count).contains(block));
        }
    }

    pub fn share(&mut self, volume: usize, writable: bool) {
        let root = self.tree.share(self.volumes[volume].root);
        if self.volumes[volume].head != 0 {
            self.volumes[volume].head = self.new_head();
        }
        let blocks = self.volumes[volume].blocks.clone();
        let head = if writable { self.new_head() } else { 0 };
        let id = self.now();
        self.volumes.push(Volume { id, root, head, blocks });
    }

    /// A write that a snapshot, and perhaps another write, overtakes before it is published.
    pub fn late(&mut self, volume: usize, index: u32, mask: u16, overtaken: u16) {
        let old = self.at(volume, index);
        if old.head == 0 || mask == 0 {
            return;
        }
        let Some(cluster) = self.space.take(&mut self.run) else { return };
        let before = self.volumes[volume].blocks.clone();
        let values: Vec<_> =
            blocks_of(mask).map(|block| (block, self.value(volume, index, block))).collect();
        self.data.extend(values.iter().map(|(block, value)| ((cluster, *block), *value)));
        let both = std::mem::replace(&mut self.volumes[volume].blocks, before);
        self.share(volume, false);
        let snapshot = At { root: self.volumes.last().expect("a snapshot").root, ..old };
        self.write(volume, index, overtaken, false);
        let block_of = |block: u32| u64::from(index) * 16 + u64::from(block);
        let last = self.volumes.len() - 1;
        let mut left = 0;
        for (block, value) in values {
            let blocks = &mut self.volumes[volume].blocks;
            if blocks.get(&block_of(block)).is_none_or(|other| other.time < value.time) {
                blocks.insert(block_of(block), value);
                left |= 1 << block;
            }
        }
        self.volumes[last].blocks = both;
        let at = self.at(volume, index);
        self.with(|tree, space, released| {
            tree.set_late(snapshot, mask, Some((at, left)), cluster, space, released);
        });
    }

    pub fn unguard(&mut self, volume: usize, index: u32) {
        self.tree.set_guard(self.volumes[volume].root, index, false);
    }

    pub fn delete(&mut self, volume: usize) {
        let volume = self.volumes.remove(volume);
        self.pending.push_back(Release::Root(volume.root));
    }

    /// Resolves a block as a reader does.
    pub fn begin_read(&mut self, volume: usize, block: u64) {
        let Volume { id, root, ref blocks, .. } = self.volumes[volume];
        let (entry, _) = self.map.entry(root, (block / 16) as u32);
        let at = (block % 16) as u32;
        let cluster = self.map.cluster_of(entry, at);
        self.reads.push(Read {
            id,
            place: (cluster != 0).then_some((cluster, at)),
            block,
            value: blocks.get(&block).copied(),
            position: self.freed + self.pending.len() as u64,
        });
    }

    /// The first read in flight ends.
    pub fn end_read(&mut self) {
        if !self.reads.is_empty() {
            self.reads.remove(0);
        }
    }

    /// The time of some of what was released has come: not of what a read in flight may use.
    pub fn free(&mut self, count: usize) {
        for _ in 0..count {
            let first = self.reads.iter().map(|read| read.position).min();
            if first.is_some_and(|first| first <= self.freed) {
                return;
            }
            let Some(release) = self.pending.pop_front() else { return };
            self.freed += 1;
            match release {
                Release::Pages(extent) => self.unused.push(extent),
                // Both ways must do.
                Release::Root(root) if root % 2 == 0 => self.dismantling.push(root),
                _ => self.with(|tree, space, released| tree.free(release, space, released)),
            }
        }
    }

    pub fn reap(&mut self, budget: usize) {
        self.with(|tree, space, released| tree.reap(budget, space, released));
        if let Some(&root) = self.dismantling.first()
            && self.with(|tree, space, released| tree.dismantle(root, budget, space, released))
        {
            self.dismantling.remove(0);
        }
    }

    /// Waits for everything: no read is in flight after this, and no checkpoint is going.
    pub fn settle(&mut self) {
        self.reads.clear();
        while self.step_checkpoint(1) {}
        while !self.pending.is_empty() || self.tree.has_doomed() || !self.dismantling.is_empty() {
            self.free(1);
            self.reap(1);
        }
    }

    pub fn begin_checkpoint(&mut self) {
        if self.going.is_none() {
            let roots: Vec<Root> = self.volumes.iter().map(|volume| volume.root).collect();
            self.tree.begin_checkpoint(&roots);
            let places = |root: &Root| (*root, places(&self.tree, *root));
            self.going = Some(roots.iter().map(places).collect());
        }
    }

    /// Writes a node to disk; false when there is no room.
    pub fn place(&mut self, node: NodeRef, bytes: &[u8]) -> bool {
        let pages = (bytes.len() / PAGE_BYTES) as u32;
        let Some(page) = self.space.take_pages(pages) else { return false };
        for (page, bytes) in (page..).zip(bytes.chunks(PAGE_BYTES)) {
            self.disk.insert(page, bytes.to_vec());
        }
        self.tree.placed(node, Extent::of(page, bytes), &mut self.unused);
        true
    }

    /// Writes some nodes of the checkpoint that is going, if one is; whether one still is.
    pub fn step_checkpoint(&mut self, count: usize) -> bool {
        if self.going.is_none() {
            return false;
        }
        for _ in 0..count {
            let mut given = Vec::new();
            while given.len() < 3
                && let Some(page) = self.tree.next_page()
            {
                given.push(page);
            }
            for (node, bytes) in given.into_iter().rev() {
                if !self.place(node, &bytes) {
                    self.abort_checkpoint();
                    return false;
                }
            }
        }
        if self.tree.checkpoint_pending() {
            return true;
        }
        let going = self.going.take().unwrap_or_default();
        let extent = |(root, places)| (self.tree.extent(root), places);
        self.stored = going.into_iter().map(extent).collect();
        self.tree.end_checkpoint();
        for extent in self.unused.drain(..) {
            self.space.free_pages(extent.page, extent.pages);
        }
        false
    }

    pub fn abort_checkpoint(&mut self) {
        if self.going.take().is_some() {
            self.tree.abort_checkpoint();
        }
    }

    pub fn whole_checkpoint(&mut self) {
        while self.step_checkpoint(1) {}
        self.begin_checkpoint();
        while self.step_checkpoint(1) {}
    }

    /// Reads trees from disk as an opened pool does.
    pub fn load(&self, extents: impl Iterator<Item = Extent>) -> (Tree, Vec<Root>, Space) {
        let mut tree = Tree::new(Arc::new(Map::new()));
        let mut space = Space::new(&DEVICES);
        let roots: Vec<Root> = extents.map(|extent| tree.load_root(extent)).collect();
        while let Some((node, extent)) = tree.next_wanted() {
            assert!(space.mark_pages(extent.page, extent.pages), "{node:?} is where others are");
            tree.loaded(node, &self.bytes(extent), &space).expect("what was written");
        }
        tree.end_load();
        (tree, roots, space)
    }

    /// What was written to an extent.
    pub fn bytes(&self, extent: Extent) -> Vec<u8> {
        let pages = extent.page..extent.page + u64::from(extent.pages);
        pages.flat_map(|page| self.disk[&page].clone()).collect()
    }

    /// What the last complete checkpoint has can be read.
    pub fn check_stored(&self) {
        let (tree, roots, _) = self.load(self.stored.iter().map(|(extent, _)| *extent));
        for (root, (extent, expected)) in roots.iter().zip(&self.stored) {
            assert!(tree.is_whole(*root));
            assert_eq!(places(&tree, *root), *expected, "the tree at {extent:?}");
        }
    }

    /// Everything is as it should be.
    pub fn check(&self) {
        let mut held: HashMap<u32, (Root, u32)> = HashMap::new();
        let mut shared = std::collections::HashSet::new();
        for volume in &self.volumes {
            let mut found = Blocks::new();
            for (block, cluster) in places(&self.tree, volume.root) {
                let value = self.data.get(&(cluster, (block % 16) as u32));
                found.insert(block, *value.expect("nobody reads what was never written"));
                let holder = (volume.root, (block / 16) as u32);
                if *held.entry(cluster).or_insert(holder) != holder {
                    shared.insert(cluster);
                }
            }
            assert_eq!(found, volume.blocks, "volume {}", volume.id);
        }
        for volume in self.volumes.iter().filter(|volume| volume.head != 0) {
            self.tree.walk(volume.root, 0, usize::MAX, |index, entry, _| {
                let (again, head) = self.map.entry(volume.root, index);
                assert_eq!(again, entry);
                for block in blocks_of(entry.own_mask()).filter(|_| head == volume.head) {
                    let cluster = self.map.cluster_of(entry, block);
                    assert!(!shared.contains(&cluster), "{cluster:#x} is not own");
                }
            });
        }
        for read in &self.reads {
            let found = read.place.map(|place| self.data[&place]);
            let newer = found.zip(read.value).is_some_and(|(found, value)| {
                found.writer == read.id && found.block == read.block && found.time > value.time
            });
            assert!(found == read.value || newer, "{read:?} reads {found:?}");
        }
        let roots: Vec<Root> = self.volumes.iter().map(|volume| volume.root).collect();
        let roots = [roots, self.dismantling.clone()].concat();
        let pending: Vec<Release> = self.pending.iter().copied().collect();
        assert_eq!(self.tree.check(&roots, &pending, &self.space), []);
    }

    /// An opened pool has the same volumes, with the same counts, and own is what can be.
    pub fn check_reopened(&mut self) {
        self.settle();
        self.whole_checkpoint();
        self.settle();
        let extents: Vec<Extent> = self.stored.iter().map(|(extent, _)| *extent).collect();
        let (mut tree, roots, mut space) = self.load(extents.into_iter());
        let heads = roots.iter().zip(&self.volumes).map(|(root, volume)| (*root, volume.head));
        let heads: Vec<(Root, u64)> = heads.collect();
        let faults = tree.check(&roots, &[], &space);
        let of_cluster = |fault: &Fault| matches!(fault, Fault::Cluster { .. });
        assert!(faults.iter().all(of_cluster), "nodes are counted as they are read: {faults:?}");
        assert_eq!(tree.recount(&heads, &mut space), []);
        assert_eq!(tree.check(&roots, &[], &space), []);
        for (root, volume) in roots.iter().zip(&self.volumes) {
            assert_eq!(places(&tree, *root), places(&self.tree, volume.root));
            tree.walk(*root, 0, usize::MAX, |index, entry, alone| {
                let (_, head) = tree.map().entry(*root, index);
                for block in 0..16 {
                    let cluster = tree.map().cluster_of(entry, block);
                    let own = head == volume.head && entry.own_mask() >> block & 1 == 1;
                    let may_be = cluster != 0 && alone && space.holders(cluster) == 1;
                    assert_eq!(own, may_be && volume.head != 0, "entry {index} block {block}");
                }
            });
        }
    }

    /// When all volumes are gone all space is free.
    pub fn check_empty(&mut self) {
        while !self.volumes.is_empty() {
            self.delete(0);
        }
        while self.step_checkpoint(1) {}
        self.settle();
        self.whole_checkpoint();
        let mut all = Space::new(&DEVICES);
        assert_eq!(self.space.free_clusters(), all.free_clusters());
        let taken =
            |space: &mut Space, mut run| std::iter::from_fn(|| space.take(&mut run)).count();
        let expected = taken(&mut all, Run::default());
        assert_eq!(taken(&mut self.space, Run::default()), expected);
    }
}

/// Where each block of a tree is.
pub fn places(tree: &Tree, root: Root) -> Blocks<u32> {
    let mut places = Blocks::new();
    tree.walk(root, 0, usize::MAX, |index, entry, _| {
        assert_ne!(entry, Entry::ZERO);
        for block in 0..16 {
            let cluster = tree.map().cluster_of(entry, block);
            if cluster != 0 {
                places.insert(u64::from(index) * 16 + u64::from(block), cluster);
            }
        }
    });
    places
}

pub fn blocks_of(mask: u16) -> impl Iterator<Item = u32> {
    (0..16).filter(move |block| mask >> block & 1 == 1)
}
