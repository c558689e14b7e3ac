//! The owner: whoever changes maps, writes the journal and takes checkpoints.
//!
//! It belongs to one lane and runs in its turns. Nothing of it is shared.

mod calls;
mod changes;
mod check;
mod checkpoint;
mod clear;
mod closing;
mod devices;
mod evacuate;
mod info;
pub(crate) mod inspect;
mod journal;
mod load;
mod planted;
pub(crate) mod recover;
mod releases;
mod reserve;
mod volume;
mod write;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bdev::{Io, Op};
use crossbeam_queue::ArrayQueue;
use dma::{DmaBuffer, Pool as Memory};
use foldhash::fast::RandomState;
use nvme_spec::status::Status;

use crate::devices::{Devices, Token};
use crate::epoch::{LaneEpoch, OwnerEpoch};
use crate::format::{CatalogEntry, Extent, Superblock};
use crate::limits::{ITEMS_PER_TURN, LEAVES_PER_TURN};
use crate::map::{Release, Root, Tree};
use crate::pieces::{Part, Pieces};
use crate::shared::{Shared, ToLane, ToOwner, pop};
use crate::space::Space;

pub use calls::{Call, CreateVolume, Reply, VolumeError};
pub use evacuate::Removal;
pub use info::{DeviceInfo, PoolInfo, VolumeInfo};
pub use planted::Planted;

use calls::{Calls, Freezing};
use checkpoint::Checkpoint;
use closing::Closing;
use info::Listing;
use journal::Journal;
use planted::Bugs;
use releases::{Item, Releases};
use reserve::Covers;
use volume::Volume;
use write::{EntryState, Write};

/// A volume's entry.
pub(crate) type Key = (u32, u32);

/// What the owner uses of its lane.
pub(crate) struct Context<'a> {
    pub devices: &'a mut Devices,
    pub epoch: &'a mut LaneEpoch,
    pub now: Instant,
}

/// Where an I/O came from: the number of a lane, and its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub lane: u32,
    pub slot: u32,
}

impl Origin {
    /// As a lane: the owner itself; the slot is then the write that this one is a part of.
    pub(crate) const PARENT: u32 = u32::MAX;
}

/// A volume that stays closed.
pub(crate) struct Damaged {
    pub entry: CatalogEntry,
    pub why: String,
    /// Something could not be read; else it is not what was written.
    pub unreadable: bool,
    /// What could be read of its map; its clusters are not given to others.
    pub root: Option<Root>,
    /// Somebody has deleted it. What it has is free when the pool is opened next.
    pub deleted: bool,
}

/// See the module.
pub(crate) struct Owner {
    shared: Arc<Shared>,
    memory: Memory,
    tree: Tree,
    space: Space,
    journal: Journal,
    closing: Closing,
    releases: Releases,
    epoch: OwnerEpoch,
    checkpoint: Checkpoint,
    superblock: Superblock,
    /// Of the block devices, by their numbers.
    names: Vec<String>,
    /// What is going on with them.
    changing: devices::Devices,
    /// Who waits for the end of a removal, or what became of the last one.
    removal_call: Option<u64>,
    removal: Option<Result<(), VolumeError>>,
    volumes: BTreeMap<u32, Volume>,
    damaged: Vec<Damaged>,
    last_head: u64,
    /// Journal block of the last change of the catalog.
    last_change: u64,
    /// Volumes whose snapshot is not settled.
    settling: Vec<u32>,
    lists: VecDeque<Listing>,
    writes: Vec<Write>,
    vacant: Vec<u32>,
    entries: HashMap<Key, EntryState, RandomState>,
    /// Of mappings whose records are not in maps yet.
    pending: Pending,
    /// Mappings that are not closed: journal block, volume, entry.
    open: VecDeque<(u64, u32, u32)>,
    /// To be looked at in this turn.
    ready: VecDeque<u32>,
    /// Data and records are on their way.
    launched: VecDeque<u32>,
    /// Clears whose record is on its way: its block.
    cleared: VecDeque<(u64, u32)>,
    /// Until the next turn.
    stalled: VecDeque<u32>,
    /// Until what is before a journal block is closed.
    wait_closed: Vec<(u64, u32)>,
    wait_space: Vec<u32>,
    finished: VecDeque<(Origin, Status)>,
    calls: Calls,
    freezing: Option<Freezing>,
    covers: Covers,
    /// Pages of the checkpoint on disk that the next one does not need.
    old_pages: Vec<Extent>,
    /// Room for the largest node, so that no node is taken for a checkpoint that has no place.
    spare_pages: Option<u64>,
    zeroes: DmaBuffer,
    pieces: Pieces,
    released: Vec<Release>,
    /// Of the write at hand: its parts, and their blocks that get a new place.
    planned: Vec<(Part, u16)>,
    /// The last turn left nothing to be done, and nobody has come since.
    idle: bool,
    bugs: Bugs,
}

/// How much is done of so many things at hand, in one turn. A share of them rather than a number,
/// so that they do not pile up however fast they come.
fn share_of(count: usize) -> usize {
    (count / 64).max(ITEMS_PER_TURN)
}

/// How many records of each journal block are not in maps yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Sequence number of the first of `counts`.
    first: u64,
    /// From a block that has some on.
    counts: VecDeque<u32>,
}

impl Pending {
    /// One more of this block, which is the last one or follows it.
    fn add(&mut self, sequence: u64) {
        if self.counts.is_empty() {
            self.first = sequence;
        }
        let place = (sequence - self.first) as usize;
        if place >= self.counts.len() {
            self.counts.resize(place + 1, 0);
        }
        self.counts[place] += 1;
    }

    fn remove(&mut self, sequence: u64) {
        self.counts[(sequence - self.first) as usize] -= 1;
        while self.counts.front() == Some(&0) {
            self.counts.pop_front();
            self.first += 1;
        }
    }

    /// The oldest block that has some.
    fn oldest(&self) -> Option<u64> {
        (!self.counts.is_empty()).then_some(self.first)
    }
}

impl Owner {
    /// Takes an I/O of a lane.
    pub(crate) fn handle_io(&mut self, origin: Origin, volume: u32, io: Io) {
        self.idle = false;
        let Some(block_bytes) = self.volumes.get(&volume).map(|v| v.handle.block_bytes()) else {
            let status = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
            return self.finished.push_back((origin, status));
        };
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.writes.push(Write::default());
            self.writes.len() as u32 - 1
        });
        let shift = block_bytes.trailing_zeros();
        let write = &mut self.writes[id as usize];
        write.origin = origin;
        (write.volume, write.op, write.buffer) = (volume, io.op, io.buffer);
        (write.start, write.bytes) = (io.slba << shift, io.block_count << shift);
        (write.status, write.outstanding) = (Status::SUCCESS, 0);
        (write.last_record, write.cancelled_in, write.cursor) = (None, None, (0, 0));
        self.ready.push_back(id);
    }

    /// A device has ended something.
    pub(crate) fn handle_device(&mut self, token: Token, status: Status) {
        self.idle = false;
        match token {
            Token::Write(id) => self.handle_data(id, status),
            Token::Fill(id) => self.handle_filled(id, status),
            Token::Journal(sequence) => self.journal.handle_written(sequence, status),
            Token::Close => self.handle_flushed(status),
            Token::Checkpoint(index) => self.handle_checkpoint(index, status),
            Token::Label => self.handle_label(status),
            Token::Move(index) => self.handle_moved(index, status),
            Token::Request(_) => unreachable!("the lane's"),
        }
    }

    /// One turn; says how much happened.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> usize {
        self.poll_lanes();
        self.epoch.try_advance(&self.shared.epochs);
        self.space.set_due(self.tree.due_clusters());
        let mut work = self.ready.len() + self.launched.len();
        self.poll_launched(context);
        self.poll_cleared();
        work += self.poll_releases();
        self.poll_covers();
        self.poll_calls();
        self.poll_closing(context);
        work += self.poll_devices(context);
        self.poll_checkpoint(context);
        self.ready.append(&mut self.stalled);
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { break };
            self.start(id, context);
        }
        self.journal.submit(context.devices);
        self.idle = !self.has_work();
        work
    }

    /// Whether a turn would do nothing. Most do nothing, and cost more than an I/O of a lane.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.idle && self.shared.to_owner.iter().all(ArrayQueue::is_empty)
    }

    /// Whether there is anything that goes on with time, or with the next turn. What comes from
    /// outside ends idleness by itself; every list that a turn looks at stands here.
    fn has_work(&self) -> bool {
        let writes = [&self.ready, &self.launched, &self.stalled];
        writes.iter().any(|list| !list.is_empty())
            || !self.cleared.is_empty()
            || !self.wait_closed.is_empty()
            || !self.wait_space.is_empty()
            || !self.finished.is_empty()
            || !self.open.is_empty()
            || !self.releases.is_empty()
            || self.tree.has_doomed()
            || self.closing.has_work()
            || self.is_checkpointing()
            || self.calls.has_work()
            || self.covers.is_busy()
            || self.freezing.is_some()
            || !matches!(self.changing, devices::Devices::Still)
            || !self.settling.is_empty()
            || !self.lists.is_empty()
            || self.journal.has_work()
    }

    /// The pool's name.
    pub(crate) fn pool_name(&self) -> String {
        self.superblock.name.clone()
    }

    /// The pool's name, if it takes no writes any more.
    pub(crate) fn broken_pool(&self) -> Option<String> {
        self.journal.is_broken().then(|| self.superblock.name.clone())
    }

    /// The end of an I/O that a lane sent.
    pub(crate) fn next_finished(&mut self) -> Option<(Origin, Status)> {
        self.finished.pop_front()
    }

    fn start(&mut self, id: u32, context: &mut Context<'_>) {
        match self.writes[id as usize].op {
            Op::Flush => self.closing.add_flush(id),
            Op::WriteZeroes { .. } | Op::Deallocate { .. } => self.start_clear(id, context),
            _ if self.writes[id as usize].is_filled() => self.launch(id, context),
            _ => self.start_write(id, context),
        }
    }

    fn poll_lanes(&mut self) {
        for lane in 0..self.shared.to_owner.len() {
            while let Some(message) = pop(&self.shared.to_owner[lane]) {
                match message {
                    ToOwner::Io { slot, volume, io } => {
                        self.handle_io(Origin { lane: lane as u32, slot }, volume, io);
                    }
                    ToOwner::Frozen => {
                        if let Some(freezing) = &mut self.freezing {
                            freezing.left -= 1;
                        }
                    }
                    ToOwner::Devices => self.handle_lane_devices(),
                }
            }
        }
    }

    /// Says something to every lane.
    fn tell_lanes(&self, message: impl Fn() -> ToLane) {
        for ring in &self.shared.to_lane {
            let sent = ring.push(message());
            assert!(sent.is_ok(), "one freeze, and one change of devices, at a time");
        }
    }

    /// Frees what nobody needs any more. Nothing while a checkpoint is written: its maps are of the
    /// instant when it began and may name what was released since, so it must not land there
    /// itself, nor may anybody else before it is complete.
    fn poll_releases(&mut self) -> usize {
        if self.is_checkpointing() && !self.bugs.is(Planted::ReuseInCheckpoint) {
            return 0;
        }
        let closed = match self.bugs.is(Planted::ReuseBeforeClosed) {
            true => u64::MAX,
            false => self.closing.closed_before,
        };
        let grace = !self.bugs.is(Planted::ReuseBeforeGrace);
        let mut released = std::mem::take(&mut self.released);
        let mut freed = 0;
        let most = share_of(self.releases.len());
        while freed < most
            && let Some(item) = self.releases.pop(closed, &mut self.epoch, grace)
        {
            freed += 1;
            match item {
                Item::Map(Release::Pages(extent)) => self.old_pages.push(extent),
                Item::Map(release) => self.tree.free(release, &mut self.space, &mut released),
                Item::Blocks { cluster, .. } => self.untake_if_unused(cluster),
            }
        }
        if self.tree.has_doomed() {
            self.tree.reap(LEAVES_PER_TURN, &mut self.space, &mut released);
            freed += 1;
        }
        self.keep_pages(&mut released);
        self.released = released;
        let idle = self.releases.is_empty() && !self.tree.has_doomed();
        if (freed > 0 || idle) && !self.wait_space.is_empty() {
            self.ready.extend(self.wait_space.drain(..));
        }
        freed
    }

    /// What taking nodes apart lets go: pages that the checkpoint on the devices may still name.
    fn keep_pages(&mut self, released: &mut Vec<Release>) {
        for release in released.drain(..) {
            let Release::Pages(extent) = release else {
                unreachable!("{release:?} of a free node")
            };
            self.old_pages.push(extent);
        }
    }

    /// A cluster that was taken for writes which all failed. The entry may have gone on to another
    /// one while a write to this one is still on its way.
    fn untake_if_unused(&mut self, cluster: u32) {
        let in_use = self.entries.values().any(|state| state.cluster == cluster)
            || self.writes.iter().flat_map(|write| &write.touches).any(|t| t.cluster == cluster);
        if !in_use && self.space.is_taken(cluster) {
            self.space.untake(cluster);
        }
    }

    /// Journal block of the oldest record that is not in maps yet, or the next one's.
    fn oldest_pending(&self) -> u64 {
        self.pending.oldest().unwrap_or(self.journal.next())
    }

    fn end_write(&mut self, id: u32, status: Status) {
        let write = &mut self.writes[id as usize];
        debug_assert!(write.outstanding == 0 && write.fills.is_empty() || !status.is_success());
        write.touches.clear();
        let origin = write.origin;
        match origin.lane {
            Origin::PARENT => self.end_edge(origin.slot, status),
            _ => self.finished.push_back((origin, status)),
        }
        self.vacant.push(id);
    }

    fn wake_entry(&mut self, key: Key) {
        if let Some(state) = self.entries.get_mut(&key) {
            self.ready.extend(state.waiting.drain(..));
        }
        self.drop_entry_if_idle(key);
    }

    fn drop_entry_if_idle(&mut self, key: Key) {
        if self.entries.get(&key).is_some_and(|state| !state.is_busy()) {
            self.entries.remove(&key);
        }
    }

    fn wake_closed(&mut self) {
        let closed = self.closing.closed_before;
        let ready = &mut self.ready;
        self.wait_closed.retain(|(before, id)| {
            let waits = *before > closed;
            if !waits {
                ready.push_back(*id);
            }
            waits
        });
    }
}
