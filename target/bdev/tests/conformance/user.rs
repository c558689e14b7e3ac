//! Whoever uses a block device: one I/O at a time, or as the tests want.

use std::time::{Duration, Instant};

use bdev::{Bdev, Channel, Completions, Io, Op};
use dma::{Arena, DmaSpan};
use nvme_spec::nvm::DsmRange;
use nvme_spec::status::Status;
use zerocopy::IntoBytes;

/// One channel and memory for it.
pub struct User {
    channel: Box<dyn Channel>,
    done: Completions,
    memory: DmaSpan,
    block_bytes: u32,
    tag: u32,
}

impl User {
    pub fn new(bdev: &dyn Bdev) -> Self {
        Self::on(bdev, 0)
    }

    pub fn on(bdev: &dyn Bdev, core: usize) -> Self {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        Self {
            channel: bdev.open_channel(core).unwrap(),
            done: Completions::with_capacity(2),
            memory: arena.carve(512 << 10, 4096).unwrap(),
            block_bytes: bdev.geometry().block_bytes,
            tag: 0,
        }
    }

    /// Memory for as many blocks; the same each time.
    pub fn data(&self, blocks: u32) -> DmaSpan {
        self.memory.subspan(0, blocks * self.block_bytes)
    }

    pub fn run(&mut self, op: Op, slba: u64, block_count: u32, buffer: Option<DmaSpan>) -> Status {
        self.tag += 1;
        let tag = self.tag;
        self.channel.submit(Io { tag, op, slba, block_count, buffer }).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            self.channel.poll(Instant::now(), &mut self.done);
            if let Some(completion) = self.done.pop() {
                assert_eq!(completion.tag, tag);
                return completion.status;
            }
            assert!(Instant::now() < end, "never completed");
        }
    }

    /// Deallocates these ranges: first block and number of blocks.
    pub fn deallocate(&mut self, ranges: &[(u64, u32)]) -> Status {
        let data = self.memory.subspan(256 << 10, ranges.len() as u32 * 16);
        for (at, &(slba, block_count)) in (0..).zip(ranges) {
            let attributes = 0.into();
            let range = DsmRange { attributes, block_count: block_count.into(), slba: slba.into() };
            data.write(16 * at, range.as_bytes());
        }
        self.run(Op::Deallocate { ranges: ranges.len() as u16 }, 0, 0, Some(data))
    }

    /// Every block is all `value`, but those that are to be zero.
    pub fn assert_blocks(&self, data: DmaSpan, value: u8, is_zero: fn(u32) -> bool) {
        for block in 0..data.len() / self.block_bytes {
            let expected = if is_zero(block) { 0 } else { value };
            let span = data.subspan(block * self.block_bytes, self.block_bytes);
            assert!(is_all(span, expected), "block {block} is not all {expected}");
        }
    }
}

pub fn is_all(span: DmaSpan, value: u8) -> bool {
    let mut bytes = vec![!value; span.len() as usize];
    span.read(0, &mut bytes);
    bytes.iter().all(|&byte| byte == value)
}
