//! One core's side of verification: fills what is written, checks what is read, keeps the log.

use dma::DmaSpan;

use crate::block::{Found, Label, decode, encode, inspect};
use crate::expect::{Expect, Expected};
use crate::log::{LogError, LogWriter, Logged};
use crate::workload::Kind;

/// A block that does not hold what it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadBlock {
    /// Which.
    pub lba: u64,
    /// Seed of the log that says so.
    pub seed: u64,
    /// What it should hold.
    pub expected: Expected,
    /// What it holds.
    pub found: Found,
}

/// What checking has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Blocks that were compared with what is known of them.
    pub blocks: u64,
    /// Blocks of which nothing is known.
    pub unknown_blocks: u64,
    /// Blocks that are wrong.
    pub bad_blocks: u64,
    /// The one with the lowest number.
    pub first_bad: Option<BadBlock>,
}

impl Checked {
    /// Adds what another core has come to.
    pub fn add(&mut self, other: Checked) {
        self.blocks += other.blocks;
        self.unknown_blocks += other.unknown_blocks;
        self.bad_blocks += other.bad_blocks;
        let both = [self.first_bad.take(), other.first_bad];
        self.first_bad = both.into_iter().flatten().min_by_key(|bad| bad.lba);
    }
}

/// Verification of one core's part of the blocks.
#[derive(Debug)]
pub struct Checker {
    block_bytes: u32,
    seed: u64,
    /// Number of the first block of `blocks`.
    first_block: u64,
    blocks: Vec<Expect>,
    /// One I/O's data, as ordinary memory.
    scratch: Vec<u8>,
    /// Generations of several cores never meet: each counts in steps of the number of cores.
    next_generation: u64,
    generation_step: u64,
    /// None where nothing is written.
    log: Option<LogWriter>,
    checked: Checked,
}

/// What a [`Checker`] is made of.
#[derive(Debug)]
pub struct Setup {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Seed of the log.
    pub seed: u64,
    /// The first block of the part.
    pub first_block: u64,
    /// What is known of each block of the part.
    pub blocks: Vec<Expect>,
    /// Bytes of the largest I/O.
    pub max_bytes: u32,
    /// The first generation to give, and how far it is to the next.
    pub generations: (u64, u64),
    /// Where the log is written.
    pub log: Option<LogWriter>,
}

impl Checker {
    /// Verifies one part.
    pub fn new(setup: Setup) -> Self {
        Self {
            block_bytes: setup.block_bytes,
            seed: setup.seed,
            first_block: setup.first_block,
            blocks: setup.blocks,
            scratch: vec![0; setup.max_bytes as usize],
            next_generation: setup.generations.0,
            generation_step: setup.generations.1,
            log: setup.log,
            checked: Checked::default(),
        }
    }

    /// A write is to be sent: gives it its number, fills its data, and puts it into the log, which
    /// is to be flushed before it goes out.
    #[inline]
    pub fn prepare(
        &mut self,
        kind: Kind,
        slba: u64,
        count: u32,
        data: DmaSpan,
        time_us: u64,
    ) -> u64 {
        let generation = self.next_generation;
        self.next_generation += self.generation_step;
        if kind == Kind::Write {
            let bytes = (count * self.block_bytes) as usize;
            let blocks = self.scratch[..bytes].chunks_exact_mut(self.block_bytes as usize);
            for (block, lba) in blocks.zip(slba..) {
                encode(block, Label { seed: self.seed, lba, generation });
            }
            data.write(0, &self.scratch[..bytes]);
        }
        for expect in self.known(slba, count) {
            expect.note_sent(generation, kind != Kind::Write);
        }
        if let Some(log) = &mut self.log {
            log.sent(&Logged { slba, block_count: count, generation, kind }, time_us);
        }
        generation
    }

    /// A write was acknowledged.
    #[inline]
    pub fn acknowledge(&mut self, write: &Logged, time_us: u64) {
        for expect in self.known(write.slba, write.block_count) {
            expect.note_acked(write.generation, write.kind != Kind::Write);
        }
        if let Some(log) = &mut self.log {
            log.acked(write, time_us);
        }
    }

    /// Blocks were read. No write of them is in flight.
    #[inline]
    pub fn check(&mut self, slba: u64, count: u32, data: DmaSpan) {
        let bytes = (count * self.block_bytes) as usize;
        data.read(0, &mut self.scratch[..bytes]);
        let start = (slba - self.first_block) as usize;
        let known = &self.blocks[start..start + count as usize];
        let blocks = self.scratch[..bytes].chunks_exact(self.block_bytes as usize);
        for ((block, expect), lba) in blocks.zip(known).zip(slba..) {
            if !expect.is_known() {
                self.checked.unknown_blocks += 1;
                continue;
            }
            self.checked.blocks += 1;
            if decode(block).is_some_and(|label| expect.allows(label, self.seed, lba)) {
                continue;
            }
            let found = inspect(block, self.seed, lba);
            if !expect.allows_found(&found, self.seed, lba) {
                let (seed, expected) = (self.seed, expect.expected());
                let bad = BadBlock { lba, seed, expected, found };
                let one = Checked { bad_blocks: 1, first_bad: Some(bad), ..Checked::default() };
                self.checked.add(one);
            }
        }
    }

    /// Writes what there is to the log.
    ///
    /// # Errors
    /// The log cannot be written: nothing may be sent any more.
    #[inline]
    pub fn flush_log(&mut self) -> Result<(), LogError> {
        self.log.as_mut().map_or(Ok(()), LogWriter::flush)
    }

    /// The first block from `lba` on of which something is known.
    pub fn next_known(&self, lba: u64) -> Option<u64> {
        let start = lba.checked_sub(self.first_block)? as usize;
        let next = self.blocks.get(start..)?.iter().position(|expect| expect.is_known())?;
        Some(lba + next as u64)
    }

    /// What checking has come to.
    pub fn checked(&self) -> &Checked {
        &self.checked
    }

    /// What is known of the blocks now.
    pub fn into_blocks(self) -> Vec<Expect> {
        self.blocks
    }

    fn known(&mut self, slba: u64, count: u32) -> &mut [Expect] {
        let start = (slba - self.first_block) as usize;
        &mut self.blocks[start..start + count as usize]
    }
}
