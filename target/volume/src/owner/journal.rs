//! The journal: a ring of blocks on two places, written in order and completed in order.

use std::collections::VecDeque;

use bdev::Op;
use dma::DmaBuffer;
use nvme_spec::status::Status;
use uuid::Uuid;

use crate::devices::{Devices, Place, Token};
use crate::format::{BlockBuilder, JournalArea, PAGE_BYTES, Record};
use crate::limits::{
    CLUSTER_BLOCKS, CLUSTER_BYTES, JOURNAL_BUFFERS, JOURNAL_DEPTH, JOURNAL_MARGIN, JOURNAL_SPARSE,
    RECORDS_MARGIN,
};

/// Where a record is: sequence number of its block, and its place among the block's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub sequence: u64,
    pub index: u16,
}

pub(crate) struct Journal {
    /// The two copies, and places where they come.
    areas: Vec<JournalArea>,
    pool: Uuid,
    /// Of the block that is being filled; its sequence number is `next`.
    builder: BlockBuilder,
    next: u64,
    /// Blocks before this one may be written over.
    start: u64,
    /// Full or due, not yet submitted.
    sealed: VecDeque<Block>,
    in_flight: VecDeque<Block>,
    buffers: Vec<DmaBuffer>,
    /// Says "closed up to" in blocks to come; sequence numbers begin at 1.
    closed_up_to: u64,
    /// Neither copy of a block could be written: nothing can be promised any more.
    broken: bool,
}

struct Block {
    sequence: u64,
    buffer: DmaBuffer,
    fua: bool,
    copies_left: usize,
    /// Copies that were not written.
    failures: usize,
    copies: usize,
}

impl Journal {
    pub(crate) fn new(
        areas: [JournalArea; 2],
        pool: Uuid,
        incarnation: u64,
        next: u64,
        buffers: Vec<DmaBuffer>,
    ) -> Self {
        assert!(buffers.len() == JOURNAL_BUFFERS && next > 0);
        Self {
            areas: areas.to_vec(),
            pool,
            builder: BlockBuilder::new(pool, incarnation, next),
            next,
            start: next,
            sealed: VecDeque::with_capacity(JOURNAL_BUFFERS),
            in_flight: VecDeque::with_capacity(JOURNAL_BUFFERS),
            buffers,
            closed_up_to: next - 1,
            broken: false,
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether blocks are on their way, or it is more than half full or broken: somebody looks at
    /// that in each turn.
    pub(crate) fn has_work(&self) -> bool {
        let (used, blocks) = self.usage();
        !self.builder.is_empty()
            || !self.sealed.is_empty()
            || !self.in_flight.is_empty()
            || used * 2 > blocks
            || self.broken
    }

    /// Takes no records any more.
    pub(crate) fn set_broken(&mut self) {
        self.broken = true;
    }

    /// Goes on behind what was replayed.
    pub(crate) fn restart(&mut self, incarnation: u64, next: u64) {
        self.builder = BlockBuilder::new(self.pool, incarnation, next);
        (self.next, self.start, self.closed_up_to) = (next, next, next - 1);
    }

    /// Sequence number of the block that the next record goes into.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Sequence number of the last block that has a record, complete or not.
    pub(crate) fn last(&self) -> u64 {
        if self.builder.is_empty() { self.next - 1 } else { self.next }
    }

    /// All blocks before this one have completed.
    pub(crate) fn completed(&self) -> u64 {
        let waiting = self.in_flight.front().or(self.sealed.front());
        waiting.map_or(self.next, |block| block.sequence)
    }

    /// Blocks in use, and all there are.
    pub(crate) fn usage(&self) -> (u64, u64) {
        (self.next - self.start, u64::from(self.areas[0].blocks))
    }

    /// Room for the records of a write of the largest size. `reserved`: for what must go on when
    /// writes do not.
    pub(crate) fn has_room(&self, reserved: bool) -> bool {
        let (used, blocks) = self.usage();
        let (ring, buffers) = match reserved {
            true => (RECORDS_MARGIN, RECORDS_MARGIN),
            false => (JOURNAL_MARGIN, 2 * RECORDS_MARGIN),
        };
        !self.broken && used + ring <= blocks && self.buffers.len() as u64 >= buffers
    }

    /// Appends a record. The caller has looked at [`Journal::has_room`].
    pub(crate) fn append(&mut self, record: &Record<'_>) -> Position {
        let index = match self.builder.push(record) {
            Ok(index) => index,
            Err(_) => {
                self.seal(false);
                let pushed = self.builder.push(record);
                let Ok(index) = pushed else { unreachable!("a record fits an empty block") };
                index
            }
        };
        Position { sequence: self.next, index }
    }

    /// Puts what there is into a block, an empty one if need be. It says how far the journal is
    /// closed.
    pub(crate) fn mark(&mut self, closed_up_to: u64, fua: bool) -> u64 {
        self.closed_up_to = closed_up_to;
        let sequence = self.next;
        self.seal(fua);
        sequence
    }

    /// Begins a new block unless the present one is empty. False: there is no room just now.
    pub(crate) fn turn_over(&mut self) -> bool {
        if self.builder.is_empty() {
            return true;
        }
        let (used, blocks) = self.usage();
        let room = used < blocks && !self.buffers.is_empty();
        if room {
            self.seal(false);
        }
        room
    }

    fn seal(&mut self, fua: bool) {
        let Some(buffer) = self.buffers.pop() else { unreachable!("has_room was not asked") };
        buffer.span().write_obj(0, self.builder.finish(self.closed_up_to));
        let sequence = self.next;
        self.sealed.push_back(Block {
            sequence,
            buffer,
            fua,
            copies_left: 0,
            failures: 0,
            copies: 0,
        });
        self.next += 1;
        self.builder.reset(self.next);
    }

    /// Sends what has come together.
    pub(crate) fn submit(&mut self, devices: &mut Devices) {
        // With blocks enough on their way, one that is not full waits for more: each is written
        // twice, whatever it holds.
        if self.sealed.is_empty() && self.in_flight.len() < JOURNAL_SPARSE {
            let (used, blocks) = self.usage();
            if !self.builder.is_empty() && used < blocks && !self.buffers.is_empty() {
                self.seal(false);
            }
        }
        while self.in_flight.len() < JOURNAL_DEPTH
            && let Some(mut block) = self.sealed.pop_front()
        {
            block.copies = self.areas.len();
            block.copies_left = block.copies;
            for area in &self.areas {
                let op = Op::Write { fua: block.fua };
                let place = place(area, block.sequence);
                let (span, token) = (block.buffer.span(), Token::Journal(block.sequence));
                devices.submit(op, place, PAGE_BYTES as u32, Some(span), token);
            }
            self.in_flight.push_back(block);
        }
    }

    /// A copy has been written, or not.
    pub(crate) fn handle_written(&mut self, sequence: u64, status: Status) {
        let first = self.in_flight.front().map_or(sequence, |block| block.sequence);
        let block = &mut self.in_flight[(sequence - first) as usize];
        block.copies_left -= 1;
        if !status.is_success() {
            block.failures += 1;
            tracing::error!(sequence, ?status, "a copy of a journal block cannot be written");
            self.broken |= block.failures == block.copies;
        }
        while self.in_flight.front().is_some_and(|block| block.copies_left == 0)
            && let Some(block) = self.in_flight.pop_front()
        {
            self.buffers.push(block.buffer);
        }
    }

    /// Blocks go there, too, from the next one that is filled on. The places are as large as those
    /// there are.
    pub(crate) fn add_areas(&mut self, areas: impl Iterator<Item = JournalArea>) {
        self.areas.extend(areas);
    }

    /// Blocks go to these two places alone. Those where they do not go any more.
    pub(crate) fn set_areas(&mut self, areas: [JournalArea; 2]) -> Vec<JournalArea> {
        let mut before = std::mem::replace(&mut self.areas, areas.to_vec());
        before.retain(|area| !areas.contains(area));
        before
    }

    /// A checkpoint holds everything before this block.
    pub(crate) fn release_before(&mut self, start: u64) {
        self.start = start;
    }
}

/// Where a block of this number goes in an area.
pub(crate) fn place(area: &JournalArea, sequence: u64) -> Place {
    let block = (sequence % u64::from(area.blocks)) as u32;
    let cluster = area.first_cluster + block / CLUSTER_BLOCKS;
    Place { cluster, offset: block % CLUSTER_BLOCKS * PAGE_BYTES as u32 }
}

const _: () = assert!(CLUSTER_BYTES as usize == PAGE_BYTES * CLUSTER_BLOCKS as usize);
