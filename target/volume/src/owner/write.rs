//! Writes that the owner takes: first touches, and what goes with them.
//!
//! A write is looked at as a whole before anything of it is done. If a block of it is being written
//! for the first time by another one, or is open, it waits without holding anything, and is looked
//! at again from the start. So overlapping first touches resolve once, and nothing waits in a
//! circle.

use std::ops::RangeInclusive;

use bdev::Op;
use dma::{DmaBuffer, DmaSpan};
use nvme_spec::status::Status;

use super::journal::Position;
use super::releases::Item;
use super::{Context, Key, Origin, Owner, Planted};
use crate::devices::{Place, Token};
use crate::epoch::Tag;
use crate::format::{Record, U64, crc64};
use crate::limits::{BLOCK_BYTES, CLUSTER_BLOCKS};
use crate::map::{At, Entry, Root};
use crate::pieces::{Part, parts};

/// An I/O in the owner's hands.
#[derive(Debug)]
pub(crate) struct Write {
    pub origin: Origin,
    pub volume: u32,
    pub op: Op,
    /// First byte in the volume, and how many.
    pub start: u64,
    pub bytes: u32,
    pub buffer: Option<DmaSpan>,
    pub status: Status,
    /// Device I/Os that have not ended.
    pub outstanding: u32,
    /// Of the volume when it was looked at.
    pub head: u64,
    /// Mappings that it makes.
    pub touches: Vec<Touch>,
    /// Blocks that are only written in part, first and last.
    pub fills: Vec<Fill>,
    /// Its records are in journal blocks up to this one.
    pub last_record: Option<u64>,
    /// Its cancelled records are known to replay once this block has completed.
    pub cancelled_in: Option<u64>,
    /// Of a deallocate: the range at hand, and how far it is done in blocks of 4 KiB.
    pub cursor: (u16, u64),
    pub epoch: Option<Tag>,
}

/// Blocks of one entry that get a new place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touch {
    pub part: Part,
    /// Blocks that are mapped; the part's others are overwritten where they are.
    pub mask: u16,
    pub cluster: u32,
    pub position: Option<Position>,
}

/// The rest of a block that is written in part.
#[derive(Debug)]
pub(crate) struct Fill {
    pub entry: u32,
    pub block: u32,
    pub buffer: DmaBuffer,
}

/// What is going on at an entry. Kept while anything is.
#[derive(Debug, Default)]
pub(crate) struct EntryState {
    /// Blocks that are being mapped.
    pub pending: u16,
    /// Where new blocks of the entry go, 0 for nowhere yet; and its blocks that are taken.
    pub cluster: u32,
    pub used: u16,
    /// The last block with a record of this entry that is not closed.
    pub open_sequence: Option<u64>,
    /// Who waits for a pending block.
    pub waiting: Vec<u32>,
}

/// How a write stands after a look.
enum Look {
    /// Everything can be done.
    Go,
    /// It waits where it was put.
    Waits,
    /// It ends like this.
    Ends(Status),
}

impl Owner {
    /// Looks at a write, and does it or lets it wait.
    pub(super) fn start_write(&mut self, id: u32, context: &mut Context<'_>) {
        let look = self.plan(id, context);
        match look {
            Look::Waits => {}
            Look::Ends(status) => {
                self.forget_plan(id);
                self.end_write(id, status);
            }
            Look::Go if self.writes[id as usize].outstanding == 0 => self.launch(id, context),
            Look::Go => {} // the rest of its partly written blocks is being read
        }
    }

    fn plan(&mut self, id: u32, context: &mut Context<'_>) -> Look {
        let write = &self.writes[id as usize];
        let (key, start, bytes) = (write.volume, write.start, write.bytes);
        let Some(volume) = self.volumes.get(&key) else {
            return Look::Ends(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
        };
        if volume.frozen || !self.journal.has_room(false) {
            if self.journal.is_broken() {
                return Look::Ends(Status::INTERNAL_ERROR);
            }
            self.stalled.push_back(id);
            return Look::Waits;
        }
        // It may have waited while the volume became smaller.
        if start + u64::from(bytes) > volume.descriptor.bytes {
            return Look::Ends(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        let tree = volume.tree();
        self.planned.clear();
        for part in parts(start, bytes) {
            match self.find_obstacle(id, (key, part.entry), tree, part) {
                Ok(own) => self.planned.push((part, part.mask() & !own)),
                Err(waits) => return waits,
            }
        }
        let epoch = context.epoch.begin_io();
        let write = &mut self.writes[id as usize];
        (write.head, write.epoch, write.status) = (tree.1, Some(epoch), Status::SUCCESS);
        for index in 0..self.planned.len() {
            let (part, mask) = self.planned[index];
            if mask == 0 {
                continue;
            }
            match self.plan_part(id, key, tree, (part, mask), context) {
                Look::Go => {}
                other => return other,
            }
        }
        self.read_fills(id, context);
        Look::Go
    }

    /// What keeps a part from being written now; else which blocks of it are own. Marks blocks as
    /// own that nobody else holds.
    fn find_obstacle(
        &mut self,
        id: u32,
        key: Key,
        (root, head): (Root, u64),
        part: Part,
    ) -> Result<u16, Look> {
        let mask = part.mask();
        let mut open = None;
        if let Some(state) = self.entries.get_mut(&key) {
            if state.pending & mask != 0 && !self.bugs.is(Planted::OverlapNotResolved) {
                state.waiting.push(id);
                return Err(Look::Waits);
            }
            open = state.open(self.closing.closed_before);
        }
        let (entry, leaf_head) = self.shared.map.entry(root, part.entry);
        let mut own = if leaf_head == head { entry.own_mask() & mask } else { 0 };
        // While one is open, a crash may go back to what a block of the entry has left: its cluster
        // must not become a place for new blocks.
        if open.is_none() {
            let present = self.present(entry, mask & !own);
            let at = At { root, head, index: part.entry };
            if present != 0 && self.tree.adopt(at, present, &self.space) {
                own |= present;
            }
        }
        // The rest of a partly written block is read from where the snapshot has it now. Writes
        // that began before are still changing it there.
        if part.is_partial() && mask & !own != 0 && self.has_late_writes(key.0) {
            self.stalled.push_back(id);
            return Err(Look::Waits);
        }
        if own == 0 {
            return Ok(0);
        }
        match open.filter(|_| !self.bugs.is(Planted::OverwriteOpen)) {
            Some(sequence) => {
                self.closing.want(sequence + 1);
                self.wait_closed.push((sequence + 1, id));
                Err(Look::Waits)
            }
            None => {
                if entry.guarded() {
                    // Of what is closed, or it came with a leaf that another volume had.
                    self.tree.set_guard(root, part.entry, false);
                }
                Ok(own)
            }
        }
    }

    /// Whether writes from before a volume's last snapshot may be in flight.
    fn has_late_writes(&self, volume: u32) -> bool {
        let settling = self.volumes.get(&volume).and_then(|volume| volume.settling);
        settling.is_some_and(|settling| settling.flush.is_none())
    }

    /// Which of these blocks hold data.
    pub(super) fn present(&self, entry: Entry, mask: u16) -> u16 {
        if !entry.is_scattered() {
            return entry.mask() & mask;
        }
        let there = |block: &u32| self.shared.map.cluster_of(entry, *block) != 0;
        let blocks = (0..CLUSTER_BLOCKS).filter(|block| mask & (1 << block) != 0);
        blocks.filter(there).fold(0, |found, block| found | 1 << block)
    }

    /// Finds a place for those blocks of a part that get one, and has the rest of partly written
    /// ones read.
    fn plan_part(
        &mut self,
        id: u32,
        volume: u32,
        (root, head): (Root, u64),
        (part, mask): (Part, u16),
        context: &mut Context<'_>,
    ) -> Look {
        let at = At { root, head, index: part.entry };
        let Some(cluster) = self.find_place(volume, mask, at) else {
            let (entry, leaf_head) = self.shared.map.entry(root, part.entry);
            if leaf_head == head && entry.own_mask() & mask != 0 {
                // Looking for a place has found that some of these blocks can be overwritten.
                self.forget_plan(id);
                self.end_epoch(id, context);
                self.stalled.push_back(id);
                return Look::Waits;
            }
            return self.wait_for_space(id, (volume, part.entry), context);
        };
        let touch = Touch { part, mask, cluster, position: None };
        self.writes[id as usize].touches.push(touch);
        if !part.is_partial() {
            return Look::Go;
        }
        for block in part.blocks().filter(|block| block.bytes < BLOCK_BYTES) {
            let number = block.offset / BLOCK_BYTES;
            if mask & (1 << number) == 0 {
                continue;
            }
            let Some(buffer) = self.memory.alloc(BLOCK_BYTES) else {
                self.forget_plan(id);
                self.end_epoch(id, context);
                self.stalled.push_back(id);
                return Look::Waits;
            };
            let fill = Fill { entry: part.entry, block: number, buffer };
            self.writes[id as usize].fills.push(fill);
        }
        Look::Go
    }

    /// Has the rest of partly written blocks read.
    fn read_fills(&mut self, id: u32, context: &mut Context<'_>) {
        let write = &mut self.writes[id as usize];
        if write.fills.is_empty() {
            return;
        }
        let root = self.volumes[&write.volume].root();
        for fill in &write.fills {
            let (entry, _) = self.shared.map.entry(root, fill.entry);
            let span = fill.buffer.span();
            match self.shared.map.cluster_of(entry, fill.block) {
                0 => span.clear(),
                cluster => {
                    write.outstanding += 1;
                    let place = Place { cluster, offset: fill.block * BLOCK_BYTES };
                    let devices = &mut context.devices;
                    devices.submit(Op::Read, place, BLOCK_BYTES, Some(span), Token::Fill(id));
                }
            }
        }
    }

    /// Takes blocks `mask` of a cluster for the entry: of its own one if they were never used.
    fn find_place(&mut self, volume: u32, mask: u16, at: At) -> Option<u32> {
        let key = (volume, at.index);
        let state = self.entries.entry(key).or_default();
        if state.cluster == 0
            && let Some(cluster) = self.tree.own_cluster(at)
            && !self.space.is_readonly(cluster)
        {
            let (entry, _) = self.shared.map.entry(at.root, at.index);
            state.cluster = cluster;
            state.used = self.shared.map.blocks_in(entry, cluster) | state.pending;
            if !self.bugs.is(Planted::ReuseBlocks) {
                state.used |= self.releases.cooling(cluster);
            }
        }
        if state.cluster == 0 || state.used & mask != 0 {
            self.space.set_due(self.tree.due_clusters());
            let volume = self.volumes.get_mut(&volume);
            let taken = volume.and_then(|own| own.take_cluster(at.index, &mut self.space));
            let place = taken.map(|cluster| (cluster, 0)).or_else(|| {
                // Nothing is left: what has become the entry's alone since will do, once no crash
                // brings back what its blocks have left.
                let open = state.open(self.closing.closed_before).is_some();
                let own = !open && self.tree.adopt_any(at, &self.space);
                let cluster = own.then(|| self.tree.own_cluster(at)).flatten()?;
                let (entry, _) = self.shared.map.entry(at.root, at.index);
                let used = self.shared.map.blocks_in(entry, cluster) | state.pending;
                Some((cluster, used | self.releases.cooling(cluster)))
            });
            let Some((cluster, used)) = place.filter(|(_, used)| used & mask == 0) else {
                self.drop_entry_if_idle(key);
                return None;
            };
            (state.cluster, state.used) = (cluster, used);
        }
        state.used |= mask;
        state.pending |= mask;
        Some(state.cluster)
    }

    /// Data and records go out together.
    pub(super) fn launch(&mut self, id: u32, context: &mut Context<'_>) {
        let write = &self.writes[id as usize];
        let volume = self.volumes.get(&write.volume);
        if !write.status.is_success() {
            let status = write.status;
            self.forget_plan(id);
            self.end_epoch(id, context);
            return self.end_write(id, status);
        }
        // While partly written blocks were read, a snapshot may have been taken: what was own then
        // is the snapshot's now. The journal may also have filled.
        let same = volume.is_some_and(|volume| {
            let owned = write.fills.is_empty() || self.is_still_own(write, volume.tree());
            volume.head() == write.head && !volume.frozen && owned
        });
        if !same || !self.journal.has_room(false) {
            self.forget_plan(id);
            self.end_epoch(id, context);
            self.stalled.push_back(id);
            return;
        }
        let mut writes = std::mem::take(&mut self.writes);
        let write = &mut writes[id as usize];
        let Some(buffer) = write.buffer else { unreachable!("a write has a buffer") };
        for fill in &write.fills {
            merge(write, fill, buffer);
        }
        self.place_pieces(write, buffer);
        self.append_records(write, buffer);
        for piece in self.pieces.list() {
            let Some(place) = piece.place else { unreachable!("every block has a place") };
            write.outstanding += 1;
            let part = buffer.subspan(piece.at, piece.bytes);
            context.devices.submit(write.op, place, piece.bytes, Some(part), Token::Write(id));
        }
        for fill in &write.fills {
            let touch = write.touches.iter().find(|touch| touch.part.entry == fill.entry);
            let Some(touch) = touch else { unreachable!("a fill without a touch") };
            let place = Place { cluster: touch.cluster, offset: fill.block * BLOCK_BYTES };
            write.outstanding += 1;
            let span = Some(fill.buffer.span());
            context.devices.submit(write.op, place, BLOCK_BYTES, span, Token::Write(id));
        }
        self.writes = writes;
        self.launched.push_back(id);
    }

    /// What was to be overwritten in place has not been deallocated meanwhile, and the entries
    /// still have the clusters that were taken for the rest.
    fn is_still_own(&self, write: &Write, (root, head): (Root, u64)) -> bool {
        parts(write.start, write.bytes).all(|part| {
            let touch = write.touches.iter().find(|touch| touch.part.entry == part.entry);
            let state = self.entries.get(&(write.volume, part.entry));
            let place = state.map_or(0, |state| state.cluster);
            if touch.is_some_and(|touch| touch.cluster != place) {
                return false;
            }
            let in_place = part.mask() & !touch.map_or(0, |touch| touch.mask);
            let (entry, leaf_head) = self.shared.map.entry(root, part.entry);
            in_place == 0 || (leaf_head == head && in_place & !entry.own_mask() == 0)
        })
    }

    /// Where everything goes that is not filled up first.
    fn place_pieces(&mut self, write: &Write, buffer: DmaSpan) {
        debug_assert!(buffer.len() >= write.bytes);
        self.pieces.clear();
        let root = self.volumes[&write.volume].root();
        let mut touches = write.touches.iter().peekable();
        for part in parts(write.start, write.bytes) {
            let touch = touches.next_if(|touch| touch.part.entry == part.entry);
            if let Some(touch) = touch
                && touch.mask == part.mask()
                && !part.is_partial()
            {
                let place = Place { cluster: touch.cluster, offset: part.offset };
                self.pieces.push(Some(place), part.at, part.bytes);
                continue;
            }
            let (entry, _) = self.shared.map.entry(root, part.entry);
            let Some(touch) = touch else {
                self.pieces.add(&self.shared.map, entry, part);
                continue;
            };
            for block in part.blocks() {
                let number = block.offset / BLOCK_BYTES;
                let touched = touch.mask & (1 << number) != 0;
                if touched && block.bytes < BLOCK_BYTES {
                    continue;
                }
                let cluster = match touched {
                    true => touch.cluster,
                    false => self.shared.map.cluster_of(entry, number),
                };
                let place = Place { cluster, offset: block.offset };
                self.pieces.push(Some(place), block.at, block.bytes);
            }
        }
    }

    fn append_records(&mut self, write: &mut Write, buffer: DmaSpan) {
        let mut crcs = [U64::ZERO; CLUSTER_BLOCKS as usize];
        for touch in &mut write.touches {
            let mut count = 0;
            for block in 0..CLUSTER_BLOCKS {
                if touch.mask & (1 << block) == 0 {
                    continue;
                }
                let fill = write.fills.iter();
                let fill = fill.clone().find(|f| (f.entry, f.block) == (touch.part.entry, block));
                let span = match fill {
                    Some(fill) => fill.buffer.span(),
                    None => {
                        let at = touch.part.at + block * BLOCK_BYTES - touch.part.offset;
                        buffer.subspan(at, BLOCK_BYTES)
                    }
                };
                crcs[count] = crc64(&span.read_obj::<[u8; BLOCK_BYTES as usize]>(0)).into();
                count += 1;
            }
            let position = self.journal.append(&Record::Map {
                volume: write.volume,
                entry: touch.part.entry,
                mask: touch.mask,
                cluster: touch.cluster,
                crcs: &crcs[..count],
            });
            touch.position = Some(position);
            self.pending.add(position.sequence);
            write.last_record = Some(position.sequence);
        }
    }

    /// A device has ended something of a write.
    pub(super) fn handle_data(&mut self, id: u32, status: Status) {
        let write = &mut self.writes[id as usize];
        write.outstanding -= 1;
        if !status.is_success() && write.status.is_success() {
            write.status = status;
        }
    }

    /// What was read to fill a block is there.
    pub(super) fn handle_filled(&mut self, id: u32, status: Status) {
        self.handle_data(id, status);
        if self.writes[id as usize].outstanding == 0 {
            self.ready.push_back(id);
        }
    }

    /// Ends those launched writes whose data and records are complete.
    pub(super) fn poll_launched(&mut self, context: &mut Context<'_>) {
        let completed = self.journal.completed();
        for _ in 0..self.launched.len() {
            let Some(id) = self.launched.pop_front() else { return };
            let write = &self.writes[id as usize];
            let early = self.bugs.is(Planted::AckBeforeRecord);
            let recorded = write.last_record.is_none_or(|last| last < completed) || early;
            let data = write.outstanding == 0 || (self.bugs.is(Planted::AckBeforeData));
            if !data || !recorded {
                self.launched.push_back(id);
            } else if self.journal.is_broken() && write.last_record.is_some() {
                self.writes[id as usize].status = Status::INTERNAL_ERROR;
                self.abandon(id, context);
            } else if !write.status.is_success() && write.last_record.is_some() {
                if !self.cancel(id, completed, context) {
                    self.launched.push_back(id);
                }
            } else {
                self.publish(id, context);
            }
        }
    }

    /// The mappings become visible, and the write is acknowledged.
    fn publish(&mut self, id: u32, context: &mut Context<'_>) {
        let mut writes = std::mem::take(&mut self.writes);
        let write = &mut writes[id as usize];
        for touch in write.touches.drain(..) {
            let Some(position) = touch.position else { unreachable!("launched without a record") };
            self.publish_touch(write.volume, write.head, &touch, position);
            self.pending.remove(position.sequence);
            let key = (write.volume, touch.part.entry);
            if let Some(state) = self.entries.get_mut(&key) {
                state.pending &= !touch.mask;
                // Records may complete in another order than they were made.
                state.open_sequence = state.open_sequence.max(Some(position.sequence));
                self.ready.extend(state.waiting.drain(..));
            }
            self.open.push_back((position.sequence, write.volume, touch.part.entry));
        }
        for fill in write.fills.drain(..) {
            self.memory.free(fill.buffer);
        }
        let touched = write.last_record.is_some();
        let fua = matches!(write.op, Op::Write { fua: true }) && touched;
        let status = write.status;
        self.writes = writes;
        self.end_epoch(id, context);
        if fua && status.is_success() && !self.bugs.is(Planted::FuaMappingVolatile) {
            // Its blocks are durable, but the records before its own may not be.
            self.closing.add_flush(id);
        } else {
            self.end_write(id, status);
        }
    }

    fn publish_touch(&mut self, volume: u32, head: u64, touch: &Touch, position: Position) {
        let Touch { part, mask, cluster, .. } = *touch;
        let Some(own) = self.volumes.get(&volume) else { return };
        let (root, own_head) = own.tree();
        let index = part.entry;
        let at = At { root, head: own_head, index };
        let mut released = std::mem::take(&mut self.released);
        let (tree, space) = (&mut self.tree, &mut self.space);
        if own_head == head {
            tree.set(at, mask, cluster, true, space, &mut released);
        } else if let Some(snapshot) = own.settling.and_then(|s| self.volumes.get(&s.snapshot)) {
            // The record stands before the snapshot's: the mapping belongs to both.
            let snapshot = At { root: snapshot.root(), head, index };
            match self.bugs.is(Planted::LateTouchNotInSnapshot) {
                true => tree.set(at, mask, cluster, true, space, &mut released),
                false => {
                    let volume = Some((at, mask));
                    tree.set_late(snapshot, mask, volume, cluster, space, &mut released);
                }
            }
        }
        self.releases.add(position.sequence, &mut released);
        self.released = released;
    }

    /// The data did not arrive: the records never happened. False: no room for that yet.
    fn cancel(&mut self, id: u32, completed: u64, context: &mut Context<'_>) -> bool {
        if let Some(cancelled) = self.writes[id as usize].cancelled_in {
            if cancelled >= completed {
                return false;
            }
            self.abandon(id, context);
            return true;
        }
        if !self.journal.has_room(true) {
            return false;
        }
        let mut last = 0;
        for touch in &self.writes[id as usize].touches {
            let Some(Position { sequence, index }) = touch.position else { continue };
            let position = self.journal.append(&Record::Cancel { sequence, index });
            last = position.sequence;
        }
        self.writes[id as usize].cancelled_in = Some(last);
        false
    }

    /// Ends a write that has failed after it was launched.
    fn abandon(&mut self, id: u32, context: &mut Context<'_>) {
        let status = self.writes[id as usize].status;
        let next = self.journal.next();
        for index in 0..self.writes[id as usize].touches.len() {
            let touch = self.writes[id as usize].touches[index];
            if let Some(position) = touch.position {
                self.pending.remove(position.sequence);
            }
            let blocks = Item::Blocks { cluster: touch.cluster, mask: touch.mask };
            self.releases.add_item(next, blocks);
        }
        self.forget_plan(id);
        self.end_epoch(id, context);
        self.end_write(id, status);
    }

    /// Gives back what a plan took, before or after it was launched.
    pub(super) fn forget_plan(&mut self, id: u32) {
        let write = &mut self.writes[id as usize];
        let volume = write.volume;
        let mut touches = std::mem::take(&mut write.touches);
        let mut fills = std::mem::take(&mut write.fills);
        (write.last_record, write.cancelled_in) = (None, None);
        fills.drain(..).for_each(|fill| self.memory.free(fill.buffer));
        for touch in touches.drain(..) {
            let key = (volume, touch.part.entry);
            if let Some(state) = self.entries.get_mut(&key) {
                state.pending &= !touch.mask;
                if touch.position.is_none() && state.cluster == touch.cluster {
                    state.used &= !touch.mask;
                    if state.used == 0 {
                        state.cluster = 0;
                    }
                }
                // Of a cluster to which nothing came in the end.
                let taken = state.cluster == touch.cluster && self.space.is_taken(touch.cluster);
                if taken && state.pending == 0 {
                    (state.cluster, state.used) = (0, 0);
                }
            }
            if touch.position.is_none() {
                self.untake_if_unused(touch.cluster);
            }
            self.wake_entry(key);
            self.recheck(volume, touch.part.entry..=touch.part.entry);
        }
        let write = &mut self.writes[id as usize];
        (write.touches, write.fills) = (touches, fills);
    }

    /// Entries look for a place anew: their cluster may be let go, or is a snapshot's by now. A new
    /// block there would come too late to keep it.
    pub(super) fn forget_places(&mut self, volume: u32, entries: RangeInclusive<u32>) {
        if self.bugs.is(Planted::KeepPlaces) {
            return;
        }
        for ((other, entry), state) in &mut self.entries {
            if *other == volume && entries.contains(entry) {
                (state.cluster, state.used) = (0, 0);
            }
        }
    }

    /// There is no free cluster: what is being released may bring one, or a write that is on its
    /// way to the same entry or not closed yet; else the host is told.
    fn wait_for_space(&mut self, id: u32, key: Key, context: &mut Context<'_>) -> Look {
        self.end_epoch(id, context);
        let closed = self.closing.closed_before;
        let state = self.entries.get(&key).map(|state| (state.open(closed), state.pending));
        let (open, pending) = state.unwrap_or_default();
        if let Some(open) = open {
            // What has become the entry's alone cannot be used before.
            self.forget_plan(id);
            self.closing.want(open + 1);
            self.wait_closed.push((open + 1, id));
            return Look::Waits;
        }
        let releasing =
            !self.releases.is_empty() || self.tree.has_doomed() || self.checkpoint_helps();
        let waits = releasing || self.removal_yields();
        if !waits || self.bugs.is(Planted::RefusedBeforeReleases) {
            if pending == 0 {
                return Look::Ends(Status::CAPACITY_EXCEEDED);
            }
            self.forget_plan(id);
            if let Some(state) = self.entries.get_mut(&key) {
                state.waiting.push(id);
            }
            return Look::Waits;
        }
        self.forget_plan(id);
        self.closing.want(self.releases.last_position().unwrap_or(0) + 1);
        self.wait_space.push(id);
        Look::Waits
    }

    fn end_epoch(&mut self, id: u32, context: &mut Context<'_>) {
        if let Some(tag) = self.writes[id as usize].epoch.take() {
            context.epoch.end_io(tag);
        }
    }
}

impl Default for Write {
    fn default() -> Self {
        Self {
            origin: Origin { lane: Origin::PARENT, slot: 0 },
            volume: 0,
            op: Op::Flush,
            start: 0,
            bytes: 0,
            buffer: None,
            status: Status::SUCCESS,
            outstanding: 0,
            head: 0,
            touches: Vec::new(),
            fills: Vec::new(),
            last_record: None,
            cancelled_in: None,
            cursor: (0, 0),
            epoch: None,
        }
    }
}

impl Write {
    /// What was read to fill its partly written blocks has arrived.
    pub(super) fn is_filled(&self) -> bool {
        !self.fills.is_empty()
    }
}

impl EntryState {
    /// Block of its last record, if that is open.
    pub(crate) fn open(&self, closed_before: u64) -> Option<u64> {
        self.open_sequence.filter(|sequence| *sequence >= closed_before)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.pending != 0 || self.open_sequence.is_some() || !self.waiting.is_empty()
    }
}

/// Puts the written part of a block over what was there.
fn merge(write: &Write, fill: &Fill, buffer: DmaSpan) {
    let all = parts(write.start, write.bytes).filter(|part| part.entry == fill.entry);
    let blocks = all.flat_map(Part::blocks);
    for block in blocks.filter(|block| block.offset / BLOCK_BYTES == fill.block) {
        let within = block.offset % BLOCK_BYTES;
        let to = fill.buffer.span().subspan(within, block.bytes);
        to.copy_from(buffer.subspan(block.at, block.bytes), block.bytes);
    }
}
