//! Opening a pool: the checkpoint, what the journal has since, and a new checkpoint.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bdev::Bdev;
use dma::{DmaBuffer, Pool as Memory};
use std::time::Instant;

use super::changes::Change;
use super::checkpoint::{Checkpoint, superblocks};
use super::closing::Closing;
use super::journal::{Journal, place};
use super::load::{Bad, Loader};
use super::planted::Bugs;
use super::releases::Releases;
use super::{Call, Item, Owner, Pending, Planted};
use crate::devices::{Devices, Place};
use crate::epoch::OwnerEpoch;
use crate::format::{
    CatalogEntry, PAGE_BYTES, PoolState, Record, Superblock, VolumeDescriptor, crc64, decode_block,
    slots,
};
use crate::lane::Lane;
use crate::limits::{
    BLOCK_BYTES, CLUSTER_BLOCKS, CLUSTER_BYTES, JOURNAL_BUFFERS, MAX_DEVICES, MAX_VOLUME_BLOCKS,
    MAX_VOLUME_CLUSTERS,
};
use crate::map::{At, Map, Release, Root, Tree};
use crate::pieces::Pieces;
use crate::pool::{PoolError, Volumes, newer, read_label};
use crate::shared::Shared;
use crate::space::Space;
use crate::wait::{SyncDevice, buffer};

/// Which damaged volumes are given up when a pool is opened. Those stay closed for good: clusters
/// that what is damaged of their maps may name look free, and are written over from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// None: the pool does not open.
    None,
    /// Those of which something is not what was written; that does not come back. A pool of which
    /// something cannot be read does not open: it may be readable again.
    Wrong,
    /// All.
    Unreadable,
}

/// How a pool is opened.
pub struct OpenOptions {
    /// Lanes, one for each core.
    pub lanes: usize,
    /// The owner's buffers, for the journal and checkpoints: at least 4 MiB, in blocks of 64 KiB at
    /// least.
    pub memory: Memory,
    /// Which damaged volumes stay closed for good, so that the others can be opened.
    pub give_up: GiveUp,
    /// A bug, for the simulator. Without debug assertions it is none.
    pub planted: Option<Planted>,
}

/// Opens a pool on its devices, in any order; gives one lane for each core. The first is the
/// owner's.
///
/// # Errors
/// A device is missing, foreign, or does not work; or what all volumes need is damaged. So is it
/// when a volume is damaged that is not to be given up. One that is stays closed, and
/// [`Call::Info`] names it.
pub fn open(bdevs: &[Arc<dyn Bdev>], options: OpenOptions) -> Result<Vec<Lane>, PoolError> {
    let OpenOptions { lanes, mut memory, give_up, planted } = options;
    let io = buffer(&mut memory)?;
    let (superblock, order, mut devices) = find_devices(bdevs, &io)?;
    let bugs = Bugs::new(planted);
    let shared = Arc::new(Shared::new(Arc::new(Map::new()), lanes));
    let mut owner = Owner::empty(Arc::clone(&shared), superblock, memory, bugs)?;
    for (name, at) in owner.names.iter_mut().zip(&order) {
        *name = at.map_or(String::new(), |at| bdevs[at].name().to_owned());
    }
    let mut recovery = Recovery { owner: &mut owner, devices: &mut devices, io: &io };
    recovery.run(give_up)?;
    drop(devices);
    owner.memory.free(io);
    let mut made = Vec::with_capacity(lanes);
    let mut owner = Some(Box::new(owner));
    for core in 0..lanes {
        let mut channels = Devices::new();
        for (index, bdev) in order.iter().enumerate() {
            let Some(bdev) = bdev.map(|at| &bdevs[at]) else { continue };
            let geometry = bdev.geometry();
            let channel = bdev.open_channel(core)?;
            let volatile = geometry.volatile_write_cache;
            channels.add(index, channel, geometry.block_bytes, volatile);
        }
        made.push(Lane::new(core, Arc::clone(&shared), channels, owner.take()));
    }
    // Nothing is served before this: it begins a new incarnation, so that no block of the old
    // journal is ever taken for one of the new.
    checkpoint(&mut made[0], Call::Checkpoint)?;
    Ok(made)
}

/// Waits for a checkpoint, which this call asks for.
pub(super) fn checkpoint(lane: &mut Lane, call: Call) -> Result<(), PoolError> {
    lane.call(0, call, 0);
    let mut done = Vec::new();
    loop {
        lane.poll(Instant::now(), &mut done);
        if lane.next_reply().is_some() {
            return Ok(());
        }
        if let Some(pool) = lane.broken_pool() {
            let reason = "a checkpoint cannot be written".to_owned();
            return Err(PoolError::Damaged { pool, reason });
        }
        if lane.lacks_pages() {
            let reason = "it has no room left for a checkpoint".to_owned();
            return Err(PoolError::Damaged { pool: lane.pool_name(), reason });
        }
        std::thread::yield_now();
    }
}

type Found = (Superblock, Vec<Option<usize>>, Vec<Option<SyncDevice>>);

/// Reads the labels, and puts the devices in the pool's order.
pub(crate) fn find_devices(bdevs: &[Arc<dyn Bdev>], io: &DmaBuffer) -> Result<Found, PoolError> {
    let mut newest: Option<Superblock> = None;
    let mut labelled = Vec::with_capacity(bdevs.len());
    for bdev in bdevs {
        let mut device = SyncDevice::open(bdev)?;
        let label = read_label(&mut device, io)?;
        if let Some(other) = &newest
            && other.pool != label.pool
        {
            let device = bdev.name().to_owned();
            return Err(PoolError::Foreign { device, other: label.name, pool: other.name.clone() });
        }
        newest = Some(newest.map_or(label.clone(), |newest| newer(&newest, &label).clone()));
        labelled.push((device, label));
    }
    let Some(superblock) = newest else { return Err(PoolError::Count { count: 0 }) };
    let pool = superblock.name.clone();
    if superblock.state == PoolState::Destroyed {
        return Err(PoolError::Damaged { pool, reason: "it was destroyed".to_owned() });
    }
    let unknown = superblock.features.unknown_read_only();
    if unknown != 0 {
        let reason = format!("it has features of a later release (bits {unknown:#x})");
        return Err(PoolError::Damaged { pool, reason });
    }
    let mut order = vec![None; MAX_DEVICES];
    let mut devices: Vec<Option<SyncDevice>> = (0..MAX_DEVICES).map(|_| None).collect();
    for (at, (device, label)) in labelled.into_iter().enumerate() {
        let index = superblock.devices.iter().position(|slot| slot.uuid == label.device);
        let Some(index) = index.filter(|index| superblock.devices[*index].present) else {
            let name = device.name().to_owned();
            let reason = format!("no member of pool {pool} any more");
            return Err(PoolError::Device { device: name, reason });
        };
        if device.clusters() < u64::from(superblock.devices[index].clusters) {
            let name = device.name().to_owned();
            let reason = format!("it is smaller than when it was added to pool {pool}");
            return Err(PoolError::Device { device: name, reason });
        }
        order[index] = Some(at);
        devices[index] = Some(device);
    }
    for (index, slot) in superblock.devices.iter().enumerate() {
        if slot.present && devices[index].is_none() {
            return Err(PoolError::Missing { pool, index, uuid: slot.uuid });
        }
    }
    Ok((superblock, order, devices))
}

impl Owner {
    pub(super) fn empty(
        shared: Arc<Shared>,
        superblock: Superblock,
        mut memory: Memory,
        bugs: Bugs,
    ) -> Result<Self, PoolError> {
        let mut alloc = || {
            let buffer = memory.alloc(PAGE_BYTES as u32);
            buffer.ok_or(PoolError::NoMemory { bytes: PAGE_BYTES as u32 })
        };
        let zeroes = alloc()?;
        zeroes.span().clear();
        let buffers = (0..JOURNAL_BUFFERS).map(|_| alloc()).collect::<Result<Vec<_>, _>>()?;
        let (areas, pool) = (superblock.journal, superblock.pool);
        let next = superblock.journal_start;
        let journal = Journal::new(areas, pool, superblock.incarnation, next, buffers);
        let mut space = empty_space(&superblock);
        if bugs.is(Planted::WindowsKept) {
            space.keep_windows();
        }
        Ok(Self {
            tree: Tree::new(Arc::clone(&shared.map)),
            space,
            shared,
            memory,
            journal,
            closing: Closing::new(next),
            releases: Releases::default(),
            epoch: OwnerEpoch::new(),
            checkpoint: Checkpoint::default(),
            superblock,
            names: vec![String::new(); MAX_DEVICES],
            changing: Default::default(),
            removal_call: None,
            removal: None,
            volumes: Default::default(),
            damaged: Vec::new(),
            last_head: 0,
            last_change: 0,
            settling: Vec::new(),
            lists: VecDeque::new(),
            writes: Vec::new(),
            vacant: Vec::new(),
            entries: HashMap::default(),
            pending: Pending::default(),
            open: VecDeque::new(),
            ready: VecDeque::new(),
            launched: VecDeque::new(),
            cleared: VecDeque::new(),
            stalled: VecDeque::new(),
            wait_closed: Vec::new(),
            wait_space: Vec::new(),
            finished: VecDeque::new(),
            calls: Default::default(),
            freezing: None,
            covers: Default::default(),
            old_pages: Vec::new(),
            spare_pages: None,
            zeroes,
            pieces: Pieces::default(),
            released: Vec::new(),
            planned: Vec::new(),
            idle: false,
            bugs,
        })
    }
}

/// All is free but superblocks and journal.
fn empty_space(superblock: &Superblock) -> Space {
    let clusters = superblock.devices.iter().map(|d| if d.present { d.clusters } else { 0 });
    let mut space = Space::new(&clusters.collect::<Vec<u32>>());
    for area in &superblock.journal {
        for cluster in 0..area.clusters() {
            space.mark_fixed(area.first_cluster + cluster);
        }
    }
    space
}

type Page = [u8; PAGE_BYTES];

/// Brings an empty owner to where the pool was.
pub(super) struct Recovery<'a> {
    pub(super) owner: &'a mut Owner,
    pub(super) devices: &'a mut [Option<SyncDevice>],
    pub(super) io: &'a DmaBuffer,
}

impl Recovery<'_> {
    fn run(&mut self, give_up: GiveUp) -> Result<(), PoolError> {
        let mut loader = Loader::new(self.devices, self.io);
        loader.load(self.owner)?;
        self.owner.count();
        self.owner.give_up_damaged(give_up)?;
        // As it is on the devices: replay counts volumes in the owner's.
        let newest = self.owner.superblock.clone();
        let (blocks, closed_up_to) = self.read_journal()?;
        self.replay(&blocks, closed_up_to)?;
        self.renew_labels(&newest)?;
        // What was read may be in a volatile cache: it must not be lost after something has been
        // written that relies on it.
        if !self.owner.bugs.is(Planted::RecoverWithoutFlush) {
            for device in self.devices.iter_mut().flatten() {
                device.flush()?;
            }
        }
        self.settle(blocks.len() as u64);
        Ok(())
    }

    /// A device on which the newest superblock did not arrive gets it now, in the places where it
    /// was to be: the next one replaces the one before, which is all that such a device has.
    fn renew_labels(&mut self, newest: &Superblock) -> Result<(), PoolError> {
        for (index, bytes) in superblocks(newest) {
            let Some(device) = &mut self.devices[index] else { continue };
            if read_label(device, self.io)?.generation < newest.generation {
                for offset in slots(newest.generation) {
                    device.write(offset, &bytes[..], self.io)?;
                }
            }
        }
        Ok(())
    }

    /// The blocks from where the checkpoint ends, in order, without a gap; and up to where records
    /// are closed. Behind a gap no record counts, but a mark does: it was durable when it was
    /// acted upon. A gap before what it says was closed is damage: that block was durable.
    pub(super) fn read_journal(&mut self) -> Result<(Vec<Page>, u64), PoolError> {
        let superblock = self.owner.superblock.clone();
        let limit = superblock.journal.iter().map(|area| area.blocks).min().unwrap_or(0);
        let mut windows = [Window::default(), Window::default()];
        let (mut blocks, mut gap, mut closed_up_to) = (Vec::new(), None, 0);
        for sequence in (superblock.journal_start..).take(limit as usize) {
            let mut found = None;
            for (area, window) in superblock.journal.iter().zip(&mut windows) {
                let bytes = window.read(place(area, sequence), self.devices, self.io);
                let Some(bytes) = bytes else { continue };
                let valid = decode_block(bytes, &superblock.pool, superblock.incarnation);
                if let Ok((header, _)) = valid
                    && header.sequence == sequence
                {
                    closed_up_to = closed_up_to.max(header.closed_up_to);
                    found = Some(*bytes);
                    break;
                }
            }
            if found.is_none() {
                gap = gap.or(Some(sequence));
            }
            if gap.is_none() {
                blocks.extend(found);
            }
        }
        match gap.filter(|gap| *gap <= closed_up_to) {
            None => Ok((blocks, closed_up_to)),
            Some(gap) => {
                let reason = format!("journal block {gap} is damaged in both copies");
                Err(PoolError::Damaged { pool: superblock.name, reason })
            }
        }
    }

    pub(super) fn replay(&mut self, blocks: &[Page], closed_up_to: u64) -> Result<(), PoolError> {
        let (pool, incarnation) = (self.owner.superblock.pool, self.owner.superblock.incarnation);
        let name = self.owner.superblock.name.clone();
        let mut cancelled = HashSet::new();
        for block in blocks {
            let Ok((_, records)) = decode_block(block, &pool, incarnation) else { continue };
            for record in records {
                if let Ok(Record::Cancel { sequence, index }) = record {
                    cancelled.insert((sequence, index));
                }
            }
        }
        for block in blocks {
            let Ok((header, records)) = decode_block(block, &pool, incarnation) else { continue };
            for (index, record) in records.enumerate() {
                let sequence = header.sequence;
                let damaged = |reason: String| {
                    let reason = format!("journal block {sequence}, record {index}: {reason}");
                    PoolError::Damaged { pool: name.clone(), reason }
                };
                let record = record.map_err(|error| damaged(error.to_string()))?;
                if cancelled.contains(&(sequence, index as u16)) {
                    continue;
                }
                let open = sequence > closed_up_to;
                self.replay_record(&record, sequence, open).map_err(damaged)?;
            }
        }
        Ok(())
    }

    fn replay_record(
        &mut self,
        record: &Record<'_>,
        sequence: u64,
        open: bool,
    ) -> Result<(), String> {
        let mut released = std::mem::take(&mut self.owner.released);
        match *record {
            Record::Map { volume, entry, mask, cluster, crcs } => {
                let holds = self.owner.superblock.has_cluster(cluster)
                    && self.owner.space.may_hold(cluster);
                if entry >= MAX_VOLUME_CLUSTERS || !holds {
                    return Err(format!("entry {entry}, cluster {cluster} are not possible"));
                }
                let verify = open && !self.owner.bugs.is(Planted::ReplayUnverified);
                let mask = match verify {
                    true => self.verify(mask, cluster, crcs.iter().map(|crc| crc.get())),
                    false => mask,
                };
                if let Some((root, head)) = self.owner.volumes.get(&volume).map(|v| v.tree())
                    && mask != 0
                {
                    let Owner { tree, space, .. } = &mut *self.owner;
                    let at = At { root, head, index: entry };
                    tree.set(at, mask, cluster, false, space, &mut released);
                }
            }
            Record::Clear { volume, first_block, block_count } => {
                let end = first_block.checked_add(block_count);
                if end.is_none_or(|end| end > MAX_VOLUME_BLOCKS) {
                    return Err(format!("block {first_block} is not possible"));
                }
                if let Some((root, head)) = self.owner.volumes.get(&volume).map(|v| v.tree()) {
                    let Owner { tree, space, .. } = &mut *self.owner;
                    tree.clear_range(root, head, first_block, block_count, space, &mut released);
                }
            }
            Record::Change(json) => {
                let change: Change =
                    serde_json::from_slice(json).map_err(|error| error.to_string())?;
                change.check()?;
                self.owner.apply(&change, sequence);
            }
            Record::Cancel { .. } => {}
        }
        self.owner.releases.add(sequence, &mut released);
        self.owner.released = released;
        Ok(())
    }

    /// Which of these blocks hold what the record says. The others were on their way when the end
    /// came, and nobody was told that they had arrived. One that cannot be read is kept: whoever
    /// reads it is told.
    fn verify(&mut self, mask: u16, cluster: u32, crcs: impl Iterator<Item = u64>) -> u16 {
        let blocks = (0..CLUSTER_BLOCKS).filter(|block| mask & (1 << block) != 0);
        let mut bytes = [0; BLOCK_BYTES as usize];
        let mut good = 0;
        for (block, crc) in blocks.zip(crcs) {
            let place = Place { cluster, offset: block * BLOCK_BYTES };
            let Some(device) = &mut self.devices[place.device()] else { continue };
            let read = device.read(place.byte(), &mut bytes, self.io);
            if read.is_err() || crc64(&bytes) == crc {
                good |= 1 << block;
            }
        }
        good
    }

    /// Frees what replay let go, and begins a new incarnation. Nobody reads yet, so that needs no
    /// waiting; pages stay, because the checkpoint on the devices has them.
    pub(super) fn settle(&mut self, blocks: u64) {
        let owner = &mut *self.owner;
        let mut released = Vec::new();
        for item in owner.releases.drain() {
            match item {
                Item::Map(Release::Pages(extent)) => owner.old_pages.push(extent),
                Item::Map(release) => owner.tree.free(release, &mut owner.space, &mut released),
                Item::Blocks { .. } => {}
            }
        }
        while !owner.tree.reap(usize::MAX, &mut owner.space, &mut released) {}
        owner.keep_pages(&mut released);
        owner.volumes.values_mut().for_each(|volume| volume.settling = None);
        owner.settling.clear();
        let next = owner.superblock.journal_start + blocks;
        if !owner.bugs.is(Planted::OldIncarnation) {
            owner.superblock.incarnation += 1;
        }
        owner.superblock.state = PoolState::Open;
        owner.journal.restart(owner.superblock.incarnation, next);
        owner.closing = Closing::new(next);
        owner.cover_all();
    }
}

impl Owner {
    /// Nothing is written while a volume is damaged that is not given up: what is damaged of its
    /// map does not say which clusters are its own, so they look free.
    fn give_up_damaged(&mut self, give_up: GiveUp) -> Result<(), PoolError> {
        let mut kept = Vec::new();
        for damaged in self.damaged.iter_mut().filter(|damaged| !damaged.entry.given_up) {
            match (give_up, damaged.unreadable) {
                (GiveUp::Wrong, false) | (GiveUp::Unreadable, _) => damaged.entry.given_up = true,
                _ => kept.push((damaged.entry.name.clone(), damaged.why.clone())),
            }
        }
        match kept.is_empty() {
            true => Ok(()),
            false => {
                let (pool, volumes) = (self.superblock.name.clone(), Volumes(kept));
                Err(PoolError::DamagedVolumes { pool, volumes })
            }
        }
    }

    /// Counts what the loaded maps hold.
    pub(super) fn count(&mut self) {
        let roots = self.volumes.values().map(|volume| match volume.handle.read_only() {
            true => (volume.root(), 0),
            false => volume.tree(),
        });
        let damaged = self.damaged.iter().filter_map(|damaged| Some((damaged.root?, 0)));
        let roots: Vec<(Root, u64)> = roots.chain(damaged).collect();
        self.old_pages.extend(self.tree.recount(&roots, &mut self.space));
        // Only now every page is known: a leaf that names one of them for data is damaged.
        let lost = self.volumes.iter().filter(|(_, volume)| !self.tree.is_whole(volume.root()));
        let lost: Vec<u32> = lost.map(|(id, _)| *id).collect();
        for id in lost {
            let Some(volume) = self.volumes.remove(&id) else { continue };
            let VolumeDescriptor { id, name, .. } = volume.descriptor.clone();
            let entry = CatalogEntry { id, name, descriptor: volume.extent, given_up: false };
            let why = "its map names a page of metadata".to_owned();
            self.add_damaged(entry, Bad::from(why), Some(volume.root()));
        }
    }
}

/// The cluster that was read last of a journal.
#[derive(Default)]
struct Window {
    cluster: Option<u32>,
    bytes: Vec<u8>,
}

impl Window {
    /// A block of the journal; `None` if it cannot be read.
    fn read(
        &mut self,
        place: Place,
        devices: &mut [Option<SyncDevice>],
        io: &DmaBuffer,
    ) -> Option<&[u8; PAGE_BYTES]> {
        if self.cluster != Some(place.cluster) {
            self.bytes.resize(CLUSTER_BYTES as usize, 0);
            let start = Place { offset: 0, ..place };
            let device = devices[place.device()].as_mut()?;
            if let Err(error) = device.read(start.byte(), &mut self.bytes, io) {
                tracing::warn!(%error, "a part of the journal cannot be read");
                self.cluster = None;
                return None;
            }
            self.cluster = Some(place.cluster);
        }
        self.bytes[place.offset as usize..].first_chunk()
    }
}
