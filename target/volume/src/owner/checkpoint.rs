//! The checkpoint: all maps as of one instant, on free pages; then the superblock that names them.

use std::collections::VecDeque;

use bdev::Op;
use dma::DmaBuffer;
use nvme_spec::status::Status;

use super::{Context, Owner, Planted, Reply, VolumeError};
use crate::devices::{Place, Token};
use crate::format::{Catalog, CatalogEntry, Extent, PAGE_BYTES, VolumeDescriptor, slots};
use crate::limits::{CHECKPOINT_DEPTH, CHECKPOINT_WRITE_BYTES, CLUSTER_BLOCKS, DEVICE_SHIFT};
use crate::map::Root;

/// A checkpoint under way, or none.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    step: Step,
    /// Journal block from which replay begins.
    start: u64,
    volumes: VecDeque<Frozen>,
    catalog: Catalog,
    next_volume: u32,
    /// Bytes that wait to be written.
    backlog: VecDeque<(Place, Vec<u8>)>,
    /// Those being written.
    buffers: Vec<Option<DmaBuffer>>,
    /// Writes and flushes that have not ended.
    outstanding: u32,
    failed: bool,
    /// There was no room in the last turn.
    lacks_pages: bool,
    /// Somebody waits for the next one.
    wanted: bool,
    /// Pages that the checkpoint before needs, and this one does not.
    replaced: Vec<Extent>,
    /// Who asked for it.
    calls: Vec<u64>,
}

/// A volume at the instant.
#[derive(Debug)]
struct Frozen {
    descriptor: VolumeDescriptor,
    extent: Extent,
    changed: bool,
    root: Root,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Idle,
    /// Nodes of maps, from the leaves up.
    Nodes,
    Descriptors,
    /// All pages are on their way.
    Pages,
    /// All pages have been written, and are being flushed.
    Flush,
    /// The superblock is being written.
    Switch,
    /// It is being flushed.
    Settle,
}

/// Token number of what has no buffer.
const NO_BUFFER: u32 = u32::MAX;

impl Owner {
    /// Begins a checkpoint if it is time, and goes on with it.
    pub(super) fn poll_checkpoint(&mut self, context: &mut Context<'_>) {
        if self.checkpoint.failed {
            self.journal.set_broken();
        }
        if self.journal.is_broken() {
            let calls = std::mem::take(&mut self.checkpoint.calls);
            let waiting = std::mem::take(&mut self.calls.checkpoints);
            for id in calls.into_iter().chain(waiting) {
                self.reply(id, Err(VolumeError::Broken));
            }
            return;
        }
        self.checkpoint.lacks_pages = false;
        match self.checkpoint.step {
            Step::Idle => self.begin_checkpoint(),
            Step::Nodes => self.write_nodes(),
            Step::Descriptors => self.write_descriptors(),
            Step::Pages if self.checkpoint.is_written() => {
                self.checkpoint.step = Step::Flush;
                if !self.bugs.is(Planted::SwitchWithoutFlush) {
                    self.flush_all(context);
                }
            }
            Step::Flush if self.checkpoint.is_written() => {
                self.write_superblocks();
                self.checkpoint.step = Step::Switch;
                if self.bugs.is(Planted::ReuseBeforeSwitch) {
                    self.free_replaced();
                }
            }
            Step::Switch if self.checkpoint.is_written() => {
                self.checkpoint.step = Step::Settle;
                self.flush_all(context);
            }
            Step::Settle if self.checkpoint.is_written() => self.end_checkpoint(),
            _ => {}
        }
        self.write_backlog(context);
    }

    /// A write or flush of the checkpoint has ended.
    pub(super) fn handle_checkpoint(&mut self, index: u32, status: Status) {
        let checkpoint = &mut self.checkpoint;
        checkpoint.outstanding -= 1;
        if !status.is_success() {
            tracing::error!(?status, "a checkpoint cannot be written; the pool takes no writes");
            checkpoint.failed = true;
        }
        if index != NO_BUFFER
            && let Some(buffer) = checkpoint.buffers[index as usize].take()
        {
            self.memory.free(buffer);
        }
    }

    /// Takes hold of the instant. What is replayed over this checkpoint, from the oldest record
    /// that is not in the maps yet, has no change of the catalog that is in it: a snapshot would
    /// miss blocks whose records are before its own, a rollback or shrink would not undo them
    /// again.
    fn begin_checkpoint(&mut self) {
        let (used, blocks) = self.journal.usage();
        let called = self.checkpoint.wanted || !self.calls.checkpoints.is_empty();
        let asked = called || self.devices_want_checkpoint();
        let wanted = used * 2 > blocks || asked;
        let broken = self.journal.is_broken();
        let late = self.pending.oldest().is_some_and(|oldest| oldest <= self.last_change);
        let behind = late || !self.settling.is_empty();
        if !wanted
            || (behind && !self.bugs.is(Planted::CheckpointBehindChange))
            || self.freezing.is_some()
            || broken
            || !self.journal.turn_over()
        {
            return;
        }
        let start = match self.bugs.is(Planted::CheckpointDropsPending) {
            true => self.journal.next(),
            false => self.oldest_pending(),
        };
        self.give_copies_to_checkpoint();
        let frozen = self.volumes.values_mut().map(|volume| Frozen {
            descriptor: volume.descriptor.clone(),
            extent: volume.extent,
            changed: std::mem::take(&mut volume.changed),
            root: volume.root(),
        });
        let volumes: VecDeque<Frozen> = frozen.collect();
        let roots: Vec<Root> = volumes.iter().map(|volume| volume.root).collect();
        self.tree.begin_checkpoint(&roots);
        self.checkpoint = Checkpoint {
            step: Step::Nodes,
            start,
            volumes,
            next_volume: self.superblock.next_volume,
            buffers: (0..CHECKPOINT_DEPTH).map(|_| None).collect(),
            replaced: std::mem::take(&mut self.old_pages),
            calls: std::mem::take(&mut self.calls.checkpoints),
            ..Checkpoint::default()
        };
    }

    fn write_nodes(&mut self) {
        while self.checkpoint.backlog.len() < CHECKPOINT_DEPTH {
            if self.spare_pages.is_none() {
                // The largest node is known to fit before it is asked for.
                self.spare_pages = self.space.take_pages(CLUSTER_BLOCKS);
            }
            let Some(spare) = self.spare_pages else {
                self.checkpoint.lacks_pages = true;
                return;
            };
            let Some((node, bytes)) = self.tree.next_page() else {
                if !self.tree.checkpoint_pending() {
                    self.checkpoint.step = Step::Descriptors;
                }
                return;
            };
            let pages = (bytes.len() / PAGE_BYTES) as u32;
            let page = match self.space.take_pages(pages) {
                Some(page) => page,
                None => {
                    self.spare_pages = None;
                    self.space.free_pages(spare + u64::from(pages), CLUSTER_BLOCKS - pages);
                    spare
                }
            };
            let extent = Extent::of(page, &bytes);
            self.tree.placed(node, extent, &mut self.checkpoint.replaced);
            self.checkpoint.add(extent, bytes);
        }
    }

    fn write_descriptors(&mut self) {
        while self.checkpoint.backlog.len() < CHECKPOINT_DEPTH {
            let Some(mut frozen) = self.checkpoint.volumes.pop_front() else {
                return self.write_catalog();
            };
            let root = self.tree.extent(frozen.root);
            if frozen.changed || frozen.descriptor.root != root || frozen.extent.is_absent() {
                frozen.descriptor.root = root;
                let mut bytes = Vec::new();
                frozen.descriptor.encode(&mut bytes);
                let Some(page) = self.space.take_pages((bytes.len() / PAGE_BYTES) as u32) else {
                    self.checkpoint.volumes.push_front(frozen);
                    self.checkpoint.lacks_pages = true;
                    return;
                };
                let extent = Extent::of(page, &bytes);
                self.checkpoint.add(extent, bytes);
                match self.volumes.get_mut(&frozen.descriptor.id) {
                    Some(volume) => {
                        if !frozen.extent.is_absent() {
                            self.checkpoint.replaced.push(frozen.extent);
                        }
                        (volume.extent, volume.descriptor.root) = (extent, root);
                    }
                    // Deleted since: the old one is on the list for the next checkpoint.
                    None => self.old_pages.push(extent),
                }
                frozen.extent = extent;
            }
            let VolumeDescriptor { id, name, .. } = frozen.descriptor;
            let entry = CatalogEntry { id, name, descriptor: frozen.extent, given_up: false };
            self.checkpoint.catalog.volumes.push(entry);
        }
    }

    fn write_catalog(&mut self) {
        let mut bytes = Vec::new();
        let kept = self.damaged.iter().filter(|damaged| !damaged.deleted);
        self.checkpoint.catalog.volumes.extend(kept.map(|damaged| damaged.entry.clone()));
        self.checkpoint.catalog.encode(&mut bytes);
        let pages = (bytes.len() / PAGE_BYTES) as u32;
        let Some(first) = self.space.take_pages(pages) else {
            return self.wait_for_catalog();
        };
        let Some(second) = self.space.take_pages(pages) else {
            self.space.free_pages(first, pages);
            return self.wait_for_catalog();
        };
        for (extent, page) in self.superblock.catalog.iter_mut().zip([first, second]) {
            if !extent.is_absent() {
                self.checkpoint.replaced.push(*extent);
            }
            *extent = Extent::of(page, &bytes);
            self.checkpoint.add(*extent, bytes.clone());
        }
        self.checkpoint.step = Step::Pages;
    }

    /// There is no room for the catalog at the moment; it is made anew in the next turn.
    fn wait_for_catalog(&mut self) {
        self.checkpoint.lacks_pages = true;
        let damaged = self.damaged.iter().filter(|damaged| !damaged.deleted).count();
        let volumes = &mut self.checkpoint.catalog.volumes;
        volumes.truncate(volumes.len() - damaged);
    }

    fn write_superblocks(&mut self) {
        self.superblock.generation += 1;
        self.superblock.journal_start = self.checkpoint.start;
        self.name_areas(self.checkpoint.start);
        let next_volume =
            std::mem::replace(&mut self.superblock.next_volume, self.checkpoint.next_volume);
        for (device, bytes) in superblocks(&self.superblock) {
            for offset in slots(self.superblock.generation) {
                let cluster = (device as u32) << DEVICE_SHIFT;
                let place = Place { cluster, offset: offset as u32 };
                self.checkpoint.backlog.push_back((place, bytes.to_vec()));
            }
        }
        self.superblock.next_volume = next_volume;
    }

    /// Whether a checkpoint may bring clusters for data: the one that is going, or the next one,
    /// which is begun then. It frees old pages, and takes less than has to be left to it before.
    pub(super) fn checkpoint_helps(&mut self) -> bool {
        if self.is_checkpointing() {
            return !self.lacks_pages();
        }
        let helps = !self.old_pages.is_empty() || self.space.is_short_of_due();
        self.checkpoint.wanted |= helps;
        helps
    }

    /// Has a checkpoint begun.
    pub(super) fn want_checkpoint(&mut self) {
        self.checkpoint.wanted = true;
    }

    /// Whether one is going or wanted.
    pub(super) fn is_checkpoint_coming(&self) -> bool {
        self.is_checkpointing() || self.checkpoint.wanted
    }

    /// Whether one is under way.
    pub(super) fn is_checkpointing(&self) -> bool {
        self.checkpoint.step != Step::Idle
    }

    fn end_checkpoint(&mut self) {
        self.free_replaced();
        self.tree.end_checkpoint();
        if let Some(spare) = self.spare_pages.take() {
            self.space.free_pages(spare, CLUSTER_BLOCKS);
        }
        for id in std::mem::take(&mut self.checkpoint.calls) {
            self.reply(id, Ok(Reply::Done));
        }
        self.checkpoint.step = Step::Idle;
        self.use_named_devices();
        self.go_on_after_checkpoint();
    }

    /// Only now: until the superblock is durable, a crash goes back to the checkpoint before.
    fn free_replaced(&mut self) {
        for extent in std::mem::take(&mut self.checkpoint.replaced) {
            self.space.free_pages(extent.page, extent.pages);
        }
        self.journal.release_before(self.checkpoint.start);
    }

    fn flush_all(&mut self, context: &mut Context<'_>) {
        self.checkpoint.outstanding += context.devices.flush(Token::Checkpoint(NO_BUFFER));
    }

    /// Whether a checkpoint has nothing under way and finds no room for what is left of it.
    pub(crate) fn lacks_pages(&self) -> bool {
        let checkpoint = &self.checkpoint;
        let places = matches!(checkpoint.step, Step::Nodes | Step::Descriptors);
        places && checkpoint.is_written() && checkpoint.lacks_pages
    }

    fn write_backlog(&mut self, context: &mut Context<'_>) {
        while let Some(index) = self.checkpoint.buffers.iter().position(Option::is_none)
            && let Some((place, bytes)) = self.checkpoint.backlog.front()
            && let Some(buffer) = self.memory.alloc(bytes.len() as u32)
        {
            let span = buffer.span().subspan(0, bytes.len() as u32);
            span.write(0, bytes);
            let op = Op::Write { fua: false };
            let token = Token::Checkpoint(index as u32);
            context.devices.submit(op, *place, bytes.len() as u32, Some(span), token);
            self.checkpoint.buffers[index] = Some(buffer);
            self.checkpoint.outstanding += 1;
            self.checkpoint.backlog.pop_front();
        }
    }
}

impl Checkpoint {
    fn is_written(&self) -> bool {
        self.outstanding == 0 && self.backlog.is_empty()
    }

    /// Lines up what goes to an extent, in pieces that lie in one cluster each.
    fn add(&mut self, extent: Extent, bytes: Vec<u8>) {
        let blocks = u64::from(CLUSTER_BLOCKS);
        let (mut page, mut rest) = (extent.page, &bytes[..]);
        while !rest.is_empty() {
            let room = (blocks - page % blocks) as usize * PAGE_BYTES;
            let (now, later) = rest.split_at(rest.len().min(room));
            let offset = (page % blocks) as u32 * PAGE_BYTES as u32;
            let place = Place { cluster: (page / blocks) as u32, offset };
            self.backlog.push_back((place, now.to_vec()));
            page += (now.len() / PAGE_BYTES) as u64;
            rest = later;
        }
    }
}

/// The superblock for each device of the pool.
pub(crate) fn superblocks(
    superblock: &crate::format::Superblock,
) -> impl Iterator<Item = (usize, Box<[u8; PAGE_BYTES]>)> + '_ {
    let devices = superblock.devices.iter().enumerate().filter(|(_, slot)| slot.present);
    devices.map(|(index, slot)| {
        let (device, device_index) = (slot.uuid, index as u8);
        let own = crate::format::Superblock { device, device_index, ..superblock.clone() };
        (index, own.encode())
    })
}

const _: () = assert!(CHECKPOINT_WRITE_BYTES as usize == CLUSTER_BLOCKS as usize * PAGE_BYTES);
