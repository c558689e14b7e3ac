//! Write zeroes and deallocate: blocks that read as zeroes and take no space.

use bdev::Op;
use dma::DmaSpan;
use nvme_spec::status::Status;

use super::write::Write;
use super::{Context, Origin, Owner};
use crate::format::Record;
use crate::limits::{BLOCK_BYTES, CLUSTER_BLOCKS, LEAF_ENTRIES, LEAVES_PER_TURN};
use crate::pieces::parts;

/// Blocks that are cleared in one turn.
const BLOCKS_PER_TURN: u64 = LEAVES_PER_TURN as u64 * LEAF_ENTRIES as u64 * CLUSTER_BLOCKS as u64;

/// Bytes of a range definition (NVM Command Set 1.0c, figure 45).
const RANGE_BYTES: u32 = 16;

impl Owner {
    /// Goes on with a clear as far as one turn may.
    pub(super) fn start_clear(&mut self, id: u32, context: &mut Context<'_>) {
        let write = &self.writes[id as usize];
        let key = write.volume;
        let Some(volume) = self.volumes.get(&key) else {
            return self.end_write(id, Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
        };
        if self.journal.is_broken() {
            // Zeroes at its edges may be on their way.
            return self.fail_clear(id, Status::INTERNAL_ERROR);
        }
        let (block_bytes, size) = (volume.handle.block_bytes(), volume.descriptor.bytes);
        let frozen = volume.frozen;
        let mut left = BLOCKS_PER_TURN;
        while let Some((start, bytes)) = range(&self.writes[id as usize], block_bytes) {
            if start.checked_add(bytes).is_none_or(|end| end > size) {
                return self.fail_clear(id, Status::LBA_OUT_OF_RANGE.with_dnr());
            }
            let first = start.div_ceil(u64::from(BLOCK_BYTES));
            let whole = ((start + bytes) / u64::from(BLOCK_BYTES)).saturating_sub(first);
            let done = self.writes[id as usize].cursor.1;
            let count = (whole - done.min(whole)).min(left);
            if frozen || !self.journal.has_room(false) || left == 0 {
                self.stalled.push_back(id);
                return;
            }
            if count > 0 {
                if self.wait_for_touches(id, key, first + done, count) {
                    return;
                }
                self.clear_blocks(id, key, first + done, count);
                left -= count;
                self.writes[id as usize].cursor.1 += count;
                continue;
            }
            self.clear_edges(id, key, start, bytes, context);
            let cursor = &mut self.writes[id as usize].cursor;
            *cursor = (cursor.0 + 1, 0);
        }
        // Blocks that were zero already may be so by a record that is still on its way.
        self.cleared.push_back((self.journal.last(), id));
    }

    /// Ends a clear once parts of it that are under way have ended.
    fn fail_clear(&mut self, id: u32, status: Status) {
        let write = &mut self.writes[id as usize];
        write.status = status;
        let last = write.last_record.unwrap_or(0);
        self.cleared.push_back((last, id));
    }

    /// Lets a clear wait when a first touch of one of its blocks is under way.
    fn wait_for_touches(&mut self, id: u32, volume: u32, first: u64, count: u64) -> bool {
        let blocks = first..first + count;
        let busy = self.writes.iter().filter(|write| write.volume == volume);
        let touched = busy.flat_map(|write| &write.touches).find(|touch| {
            let base = u64::from(touch.part.entry) * u64::from(CLUSTER_BLOCKS);
            let mut touched = (0..CLUSTER_BLOCKS).filter(|block| touch.mask & (1 << block) != 0);
            touched.any(|block| blocks.contains(&(base + u64::from(block))))
        });
        let Some(key) = touched.map(|touch| (volume, touch.part.entry)) else { return false };
        self.entries.entry(key).or_default().waiting.push(id);
        true
    }

    /// The record first, then the map: both at once here, because this core alone changes them. The
    /// host is told when the record has been written.
    fn clear_blocks(&mut self, id: u32, volume: u32, first: u64, count: u64) {
        let record = Record::Clear { volume, first_block: first, block_count: count };
        let position = self.journal.append(&record);
        self.writes[id as usize].last_record = Some(position.sequence);
        let entry = |block: u64| (block / u64::from(CLUSTER_BLOCKS)) as u32;
        self.forget_places(volume, entry(first)..=entry(first + count - 1));
        let (root, head) = self.volumes[&volume].tree();
        let mut released = std::mem::take(&mut self.released);
        self.tree.clear_range(root, head, first, count, &mut self.space, &mut released);
        self.releases.add(position.sequence, &mut released);
        self.released = released;
        self.recheck(volume, entry(first)..=entry(first + count - 1));
    }

    /// What is less than a block at either end is written with zeroes, unless it is zero.
    fn clear_edges(
        &mut self,
        id: u32,
        volume: u32,
        start: u64,
        bytes: u64,
        context: &mut Context<'_>,
    ) {
        let block = u64::from(BLOCK_BYTES);
        let end = start + bytes;
        let head_end = start.next_multiple_of(block).min(end);
        let tail_start = (end / block * block).max(head_end);
        for (from, to) in [(start, head_end), (tail_start, end)] {
            if from == to {
                continue;
            }
            let bytes = (to - from) as u32;
            let Some(part) = parts(from, bytes).next() else { continue };
            let (entry, _) = self.shared.map.entry(self.volumes[&volume].root(), part.entry);
            let state = self.entries.get(&(volume, part.entry));
            let pending = state.is_some_and(|state| state.pending & part.mask() != 0);
            if !pending && self.present(entry, part.mask()) == 0 {
                continue;
            }
            let child = self.vacant.pop().unwrap_or_else(|| {
                self.writes.push(Write::default());
                self.writes.len() as u32 - 1
            });
            self.writes[id as usize].outstanding += 1;
            self.writes[child as usize] = Write {
                origin: Origin { lane: Origin::PARENT, slot: id },
                volume,
                op: Op::Write { fua: false },
                start: from,
                bytes,
                buffer: Some(self.zeroes.span().subspan(0, bytes)),
                ..Write::default()
            };
            self.start_write(child, context);
        }
    }

    /// Zeroes at an edge have been written, or not. Where the block is shared that takes space; a
    /// deallocate in a full pool leaves it as it is, since it is advice.
    pub(super) fn end_edge(&mut self, id: u32, status: Status) {
        let is_advice = matches!(self.writes[id as usize].op, Op::Deallocate { .. });
        let is_full = status == Status::CAPACITY_EXCEEDED;
        self.handle_data(id, if is_advice && is_full { Status::SUCCESS } else { status });
    }

    /// Acknowledges clears whose records have been written.
    pub(super) fn poll_cleared(&mut self) {
        let completed = self.journal.completed();
        for _ in 0..self.cleared.len() {
            let Some((last, id)) = self.cleared.pop_front() else { return };
            let write = &self.writes[id as usize];
            if last >= completed || write.outstanding > 0 {
                self.cleared.push_back((last, id));
                continue;
            }
            let status = match self.journal.is_broken() {
                true => Status::INTERNAL_ERROR,
                false => write.status,
            };
            let fua = matches!(write.op, Op::WriteZeroes { fua: true, .. });
            match fua && status.is_success() {
                true => self.closing.add_flush(id),
                false => self.end_write(id, status),
            }
        }
    }
}

/// The range at hand in bytes, if there is one left.
fn range(write: &Write, block_bytes: u32) -> Option<(u64, u64)> {
    let (index, _) = write.cursor;
    match (write.op, write.buffer) {
        (Op::Deallocate { ranges }, Some(buffer)) if index < ranges => {
            Some(definition(buffer, index, block_bytes))
        }
        (Op::WriteZeroes { .. }, _) if index == 0 => Some((write.start, u64::from(write.bytes))),
        _ => None,
    }
}

fn definition(buffer: DmaSpan, index: u16, block_bytes: u32) -> (u64, u64) {
    let at = u32::from(index) * RANGE_BYTES;
    let blocks = u32::from_le_bytes(buffer.read_obj(at + 4));
    let slba = u64::from_le_bytes(buffer.read_obj(at + 8));
    let bytes = u64::from(block_bytes);
    (slba.saturating_mul(bytes), u64::from(blocks) * bytes)
}
