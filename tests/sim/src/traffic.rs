//! I/Os by chance, and what the model makes of their ends.

use std::ops::Range;

use bdev::{Io, Op};
use nvme_spec::nvm::DsmRange;
use nvme_spec::status::Status;

use crate::failure::Failure;
use crate::history::Time;
use crate::life::Life;
use crate::model::Operation;
use crate::pattern;
use crate::pool::SLOT_BYTES;

/// Bytes of the unit that the engine maps, and of the one that it allocates.
const MAP_BLOCK_BYTES: u32 = 4096;
const CLUSTER_BYTES: u32 = 64 << 10;

/// An I/O in flight.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    name: String,
    op: Op,
    units: Vec<Range<u64>>,
    expected: Expected,
}

/// What its end means.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// Of a read or flush: when it began.
    Since(Time),
    /// The units hold this then.
    Change(Operation),
    /// It is refused: nobody writes to a snapshot.
    Refusal,
}

impl Life {
    /// Submits any I/O to anything that is open, if there is room; whether it did.
    pub(crate) fn submit_any(&mut self) -> bool {
        let Some(slot) = self.flights.iter().position(Option::is_none) else { return false };
        let names: Vec<&String> = self.pool.objects.keys().collect();
        if names.is_empty() {
            return false;
        }
        let name = (*self.random.pick(&names)).clone();
        let open = &self.pool.objects[&name];
        if open.closing {
            return false;
        }
        let block_bytes = open.handle.block_bytes();
        let size = open.handle.block_count() * u64::from(block_bytes);
        let blocks = self.config.spread.model_size(size) / u64::from(block_bytes);
        let blocks = match self.config.hot_bytes / u64::from(block_bytes) {
            0 => blocks,
            hot => blocks.min(hot),
        };
        let is_read_only = open.handle.read_only();
        let op = self.any_op(is_read_only);
        let count = if let Op::Deallocate { ranges } = op { ranges } else { 1 };
        let parts: Vec<Range<u64>> = match op {
            Op::Flush => Vec::new(),
            // Whoever clears much gives clusters back with that.
            Op::Deallocate { .. } | Op::WriteZeroes { .. }
                if self.random.chance(self.config.whole_clears, 8) =>
            {
                vec![self.any_clusters(block_bytes, blocks)]
            }
            _ => (0..count).map(|_| self.any_blocks(block_bytes, blocks)).collect(),
        };
        let parts: Vec<_> =
            parts.into_iter().map(|part| self.one_command(op, part, block_bytes)).collect();
        self.submit_io(slot, &name, op, &parts, is_read_only)
    }

    /// As much of a range as one command can be about.
    fn one_command(&self, op: Op, blocks: Range<u64>, block_bytes: u32) -> Range<u64> {
        let (spread, block_bytes) = (self.config.spread, u64::from(block_bytes));
        let bytes = blocks.start * block_bytes..blocks.end * block_bytes;
        let bytes = match op {
            Op::Deallocate { .. } => spread.clearable(bytes, true),
            Op::WriteZeroes { .. } => spread.clearable(bytes, false),
            _ => spread.within_place(bytes),
        };
        bytes.start / block_bytes..bytes.end / block_bytes
    }

    /// What comes next, as often as the run's configuration has it.
    fn any_op(&mut self, is_read_only: bool) -> Op {
        let random = &mut self.random;
        let flushes = self.config.flushes;
        match random.below(16) {
            0..=3 => Op::Read,
            kind if kind < 4 + flushes => Op::Flush,
            _ if is_read_only && !random.one_in(32) => Op::Read,
            _ if !random.chance(self.config.clears, 16) => {
                Op::Write { fua: random.chance(flushes, 6) }
            }
            _ if random.one_in(2) => {
                Op::WriteZeroes { deallocate: random.one_in(2), fua: random.one_in(4) }
            }
            _ => Op::Deallocate { ranges: 1 + random.below(3) as u16 },
        }
    }

    /// A range of blocks of a volume, mostly short, and where others are.
    fn any_blocks(&mut self, block_bytes: u32, blocks: u64) -> Range<u64> {
        let random = &mut self.random;
        let most = match random.below(16) {
            0..=6 => 1,
            7..=11 => 8 * 512 / block_bytes,
            12..=14 => (32 << 10) / block_bytes,
            _ => SLOT_BYTES / block_bytes,
        };
        let hot = match random.below(4) {
            0 => (8 << 10) / u64::from(block_bytes),
            1 | 2 => (96 << 10) / u64::from(block_bytes),
            _ => blocks,
        };
        let start = random.below(blocks.min(hot));
        let mut count = 1 + random.below(u64::from(most.max(1)));
        if random.one_in(4) {
            // A whole block of the map, or the end of one.
            count = u64::from(4096 / block_bytes);
        }
        start..(start + count).min(blocks)
    }

    /// One or two whole clusters of a volume, as far as it has them.
    fn any_clusters(&mut self, block_bytes: u32, blocks: u64) -> Range<u64> {
        let per_cluster = u64::from(CLUSTER_BYTES / block_bytes);
        let first = self.random.below(blocks.div_ceil(per_cluster));
        let end = first + 1 + self.random.below(2);
        first * per_cluster..(end * per_cluster).min(blocks)
    }

    pub(crate) fn submit_io(
        &mut self,
        slot: usize,
        name: &str,
        op: Op,
        parts: &[Range<u64>],
        is_read_only: bool,
    ) -> bool {
        let lane = self.random.below(self.pool.lanes() as u64) as usize;
        let open = &self.pool.objects[name];
        let (channel, block_bytes) = (open.channels[lane], open.handle.block_bytes());
        let per_block = u64::from(block_bytes / self.model.unit_bytes());
        let units = |blocks: &Range<u64>| blocks.start * per_block..blocks.end * per_block;
        let units: Vec<Range<u64>> = parts.iter().map(units).collect();
        let parts: Vec<Range<u64>> =
            parts.iter().map(|part| self.real_blocks(part, block_bytes)).collect();
        let buffer = self.pool.buffer(slot);
        let expected = match op {
            Op::Read | Op::Flush => Expected::Since(self.model.begin()),
            _ if is_read_only => Expected::Refusal,
            _ => {
                let zeroes = !matches!(op, Op::Write { .. });
                Expected::Change(self.model.begin_write(name, &units, zeroes))
            }
        };
        match (op, expected) {
            (Op::Write { .. }, Expected::Change(operation)) => {
                let unit_bytes = self.model.unit_bytes();
                pattern::fill(buffer, self.model.salt, operation.value, &units[0], unit_bytes);
            }
            (Op::Deallocate { .. }, _) => {
                for (index, part) in (0..).zip(&parts) {
                    let range = DsmRange {
                        attributes: 0.into(),
                        block_count: ((part.end - part.start) as u32).into(),
                        slba: part.start.into(),
                    };
                    buffer.write_obj(index * size_of::<DsmRange>() as u32, &range);
                }
            }
            _ => {}
        }
        let op = match op {
            Op::Deallocate { .. } => Op::Deallocate { ranges: parts.len() as u16 },
            other => other,
        };
        let blocks = if let [part] = &parts[..] { part.clone() } else { 0..0 };
        let (slba, block_count) = match op {
            Op::Deallocate { .. } => (0, 0),
            _ => (blocks.start, (blocks.end - blocks.start) as u32),
        };
        let has_data = !matches!(op, Op::Flush | Op::WriteZeroes { .. });
        let io = Io { tag: slot as u32, op, slba, block_count, buffer: has_data.then_some(buffer) };
        let step = self.pool.world.step();
        if self.pool.submit(lane, channel, io) {
            tracing::debug!(step, lane, slot, name, ?op, ?units, ?expected, "submitted");
            let flight = Flight { name: name.to_owned(), op, units, expected };
            self.flights[slot] = Some(flight);
            if let Some(open) = self.pool.objects.get_mut(name) {
                open.in_flight += 1;
            }
            return true;
        }
        match expected {
            Expected::Since(since) => self.model.cancel(since),
            Expected::Change(operation) => self.model.cancel_write(name, &units, operation),
            Expected::Refusal => {}
        }
        false
    }

    /// Where blocks of the model are in the volume.
    fn real_blocks(&self, blocks: &Range<u64>, block_bytes: u32) -> Range<u64> {
        let block_bytes = u64::from(block_bytes);
        let bytes = blocks.start * block_bytes..blocks.end * block_bytes;
        let real = self.config.spread.real_range(&bytes);
        real.start / block_bytes..real.end / block_bytes
    }

    /// Tells the model of what has ended.
    pub(crate) fn take_ends(&mut self) -> Result<(), Failure> {
        while let Some(completion) = self.pool.next_done() {
            let slot = completion.tag as usize;
            let flight = self.flights.get_mut(slot).and_then(Option::take);
            let Some(flight) = flight else {
                let (what, status) = ("nothing".to_owned(), format!("{:?}", completion.status));
                return Err(Failure::Status { what, status });
            };
            if let Some(open) = self.pool.objects.get_mut(&flight.name) {
                open.in_flight -= 1;
            }
            self.statistics.ios += 1;
            let step = self.pool.world.step();
            tracing::debug!(step, slot, status = ?completion.status, "ended");
            self.end_flight(slot, &flight, completion.status)?;
            self.step_on()?;
        }
        Ok(())
    }

    fn end_flight(&mut self, slot: usize, flight: &Flight, status: Status) -> Result<(), Failure> {
        let Flight { name, op, units, expected } = flight;
        let success = status.is_success();
        let is_full =
            status.code_and_type() == Status::CAPACITY_EXCEEDED && !self.model.is_reserved(name);
        let may_be = match expected {
            Expected::Since(_) => success,
            Expected::Refusal => !success,
            Expected::Change(_) => match op {
                Op::Write { .. } => success || is_full,
                // Parts of blocks are written, and where the block is shared that takes space.
                Op::WriteZeroes { .. } => success || is_full && self.has_parts(units),
                _ => success,
            },
        };
        if !may_be && !self.config.faults.is_empty() {
            self.statistics.failed += 1;
        } else if !may_be {
            let (what, status) = (format!("{flight:?}"), format!("{status:?}"));
            return Err(Failure::Status { what, status });
        }
        match (op, expected) {
            (Op::Read, Expected::Since(since)) if !success => self.model.cancel(*since),
            (Op::Read, Expected::Since(since)) => {
                let bytes = (units[0].end - units[0].start) as u32 * self.model.unit_bytes();
                let mut data = vec![0; bytes as usize];
                self.pool.buffer(slot).read(0, &mut data);
                self.model.end_read(name, units[0].start, &data, *since)?;
            }
            (_, Expected::Since(since)) => self.model.end_flush(name, *since, success),
            (Op::Write { fua } | Op::WriteZeroes { fua, .. }, Expected::Change(operation)) => {
                self.statistics.full += u64::from(is_full);
                self.full += u64::from(is_full);
                self.model.end_write(name, units, *operation, success, *fua);
            }
            (_, Expected::Change(operation)) => {
                // The rest of a block may be left as it is: deallocation is advice.
                self.model.end_write(name, &self.whole_blocks(units), *operation, success, false);
                self.model.end_write(name, units, *operation, false, false);
            }
            (_, Expected::Refusal) => {}
        }
        Ok(())
    }

    /// Whether one of these ranges begins or ends within a block of the map.
    fn has_parts(&self, units: &[Range<u64>]) -> bool {
        let per_block = u64::from(MAP_BLOCK_BYTES / self.model.unit_bytes());
        let is_whole = |unit: u64| unit.is_multiple_of(per_block);
        units.iter().any(|units| !is_whole(units.start) || !is_whole(units.end))
    }

    /// What these ranges have of whole blocks of the map.
    fn whole_blocks(&self, units: &[Range<u64>]) -> Vec<Range<u64>> {
        let per_block = u64::from(MAP_BLOCK_BYTES / self.model.unit_bytes());
        let whole = |units: &Range<u64>| {
            units.start.next_multiple_of(per_block)..units.end / per_block * per_block
        };
        units.iter().map(whole).filter(|units| !units.is_empty()).collect()
    }

    /// Whether an I/O is in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.flights.iter().any(Option::is_some)
    }
}
