//! Per-core buffers: a buddy allocator over a part of the arena.

use crate::arena::{Arena, ArenaError};
use crate::limits::{MAX_BLOCK_BYTES, MAX_SPAN_BYTES, MIN_BLOCK_BYTES};
use crate::span::DmaSpan;

/// A buffer that a [`Pool`] handed out. It goes back by [`Pool::free`]; one that is merely dropped
/// is never used again, which is what becomes of memory that a lost device may still write.
#[derive(Debug)]
#[must_use = "a buffer that is dropped is lost to its pool"]
pub struct DmaBuffer {
    span: DmaSpan,
    /// First minimal block in the pool.
    block: u32,
    order: u8,
}

impl DmaBuffer {
    /// The whole buffer, which may be longer than what was asked for.
    #[inline]
    pub fn span(&self) -> DmaSpan {
        self.span
    }
}

/// A buddy allocator that belongs to one core: blocks of 4 KiB times a power of two, each in one
/// run of I/O virtual addresses and aligned to its size. Allocating and freeing take a number of
/// steps bounded by the number of sizes, and no memory.
#[derive(Debug)]
pub struct Pool {
    /// All but the last have as many blocks, a power of two; no larger block lies in two.
    spans: Vec<DmaSpan>,
    /// That power.
    span_order: u32,
    /// Head of the list of free blocks, by order.
    heads: [u32; ORDERS],
    /// State of each minimal block, valid at the first one of a larger block.
    blocks: Vec<Block>,
    max_order: u8,
    free_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    state: State,
    next: u32,
    prev: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Inside a larger block.
    Inner,
    Free(u8),
    Used(u8),
}

const NONE: u32 = u32::MAX;
const ORDERS: usize = (MAX_BLOCK_BYTES / MIN_BLOCK_BYTES).ilog2() as usize + 1;

impl Pool {
    /// Bytes of the block that a buffer of `bytes` takes.
    #[inline]
    pub fn block_bytes(bytes: u32) -> usize {
        (bytes as usize).next_power_of_two().max(MIN_BLOCK_BYTES)
    }

    /// Carves `bytes` (rounded up to whole blocks of the largest size), for good, for a pool whose
    /// largest buffer is `max_block` bytes, a power of two from 4 KiB to 4 MiB.
    ///
    /// # Errors
    /// The arena has no room left.
    pub fn new(arena: &'static Arena, bytes: usize, max_block: usize) -> Result<Pool, ArenaError> {
        Self::over_spans(arena, bytes, max_block, MAX_SPAN_BYTES)
    }

    /// A pool over a span that was carved for it, aligned to `max_block` and a multiple of it. It
    /// can be given back to the arena when the pool, and all buffers of it, are gone.
    pub fn over(span: DmaSpan, max_block: usize) -> Pool {
        assert!(max_block.is_power_of_two() && (span.len() as usize).is_multiple_of(max_block));
        assert!((MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&max_block) && span.len() > 0);
        assert!(span.iova().is_multiple_of(max_block as u64), "a span that is not aligned");
        Self::new_over(vec![span], span.len() as usize, max_block, MAX_SPAN_BYTES)
    }

    fn over_spans(
        arena: &'static Arena,
        bytes: usize,
        max_block: usize,
        span_bytes: usize,
    ) -> Result<Pool, ArenaError> {
        assert!(max_block.is_power_of_two() && span_bytes.is_power_of_two());
        assert!((MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&max_block) && bytes > 0);
        assert!(max_block <= span_bytes);
        let bytes = bytes.next_multiple_of(max_block);
        let starts = (0..bytes).step_by(span_bytes);
        let spans = starts.map(|start| arena.carve(span_bytes.min(bytes - start), max_block));
        Ok(Self::new_over(spans.collect::<Result<_, _>>()?, bytes, max_block, span_bytes))
    }

    fn new_over(spans: Vec<DmaSpan>, bytes: usize, max_block: usize, span_bytes: usize) -> Pool {
        let max_order = (max_block / MIN_BLOCK_BYTES).ilog2() as u8;
        let count = (bytes / MIN_BLOCK_BYTES) as u32;
        let inner = Block { state: State::Inner, next: NONE, prev: NONE };
        let mut pool = Pool {
            spans,
            span_order: (span_bytes / MIN_BLOCK_BYTES).ilog2(),
            heads: [NONE; ORDERS],
            blocks: vec![inner; count as usize],
            max_order,
            free_bytes: bytes,
        };
        for block in (0..count).step_by(1 << max_order).rev() {
            pool.push(block, max_order);
        }
        pool
    }

    /// A buffer of at least `bytes`, or `None` when the pool has no run that long just now.
    /// More than the pool's largest block is a programmer's error.
    #[inline]
    pub fn alloc(&mut self, bytes: u32) -> Option<DmaBuffer> {
        let order = order_for(bytes);
        assert!(order <= self.max_order, "{bytes} bytes are more than a block of this pool");
        let found = (order..=self.max_order).find(|&o| self.heads[usize::from(o)] != NONE)?;
        let block = self.heads[usize::from(found)];
        self.unlink(block, found);
        for smaller in (order..found).rev() {
            self.push(block + (1 << smaller), smaller);
        }
        self.blocks[block as usize].state = State::Used(order);
        let len = (MIN_BLOCK_BYTES as u32) << order;
        self.free_bytes -= len as usize;
        Some(DmaBuffer { span: self.span(block, len), block, order })
    }

    /// Takes a buffer back. One from another pool, or one freed already, asserts.
    #[inline]
    pub fn free(&mut self, buffer: DmaBuffer) {
        let DmaBuffer { span, mut block, mut order } = buffer;
        let home = self.span(block, span.len());
        assert!(span.addr() == home.addr(), "a buffer of another pool");
        assert!(self.blocks[block as usize].state == State::Used(order), "freed twice");
        self.free_bytes += span.len() as usize;
        while order < self.max_order {
            let buddy = block ^ (1 << order);
            if self.blocks[buddy as usize].state != State::Free(order) {
                break;
            }
            self.unlink(buddy, order);
            self.blocks[block as usize].state = State::Inner;
            self.blocks[buddy as usize].state = State::Inner;
            block = block.min(buddy);
            order += 1;
        }
        self.push(block, order);
    }

    /// Bytes not handed out. They need not be in one run.
    pub fn free_bytes(&self) -> usize {
        self.free_bytes
    }

    /// Size of the pool in bytes.
    pub fn bytes(&self) -> usize {
        self.blocks.len() * MIN_BLOCK_BYTES
    }

    /// The largest buffer this pool hands out, in bytes.
    pub fn max_block_bytes(&self) -> u32 {
        (MIN_BLOCK_BYTES as u32) << self.max_order
    }

    /// `len` bytes from the start of a block.
    #[inline]
    fn span(&self, block: u32, len: u32) -> DmaSpan {
        let span = &self.spans[(block >> self.span_order) as usize];
        let block = block & ((1 << self.span_order) - 1);
        span.subspan(block * MIN_BLOCK_BYTES as u32, len)
    }

    fn push(&mut self, block: u32, order: u8) {
        let head = self.heads[usize::from(order)];
        self.blocks[block as usize] = Block { state: State::Free(order), next: head, prev: NONE };
        if head != NONE {
            self.blocks[head as usize].prev = block;
        }
        self.heads[usize::from(order)] = block;
    }

    fn unlink(&mut self, block: u32, order: u8) {
        let Block { next, prev, .. } = self.blocks[block as usize];
        match prev {
            NONE => self.heads[usize::from(order)] = next,
            _ => self.blocks[prev as usize].next = next,
        }
        if next != NONE {
            self.blocks[next as usize].prev = prev;
        }
    }
}

fn order_for(bytes: u32) -> u8 {
    let blocks = bytes.max(1).div_ceil(MIN_BLOCK_BYTES as u32);
    blocks.next_power_of_two().ilog2() as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_freed_pool_has_its_largest_blocks_again() {
        let arena = Arena::plain_pages(4 << 20).unwrap();
        let mut pool = Pool::new(arena, 2 << 20, 1 << 20).unwrap();
        let small: Vec<_> = (0..512).map(|_| pool.alloc(512).unwrap()).collect();
        assert!(pool.alloc(1).is_none());
        assert_eq!(pool.free_bytes(), 0);
        small.into_iter().for_each(|buffer| pool.free(buffer));
        let whole = [pool.alloc(1 << 20).unwrap(), pool.alloc(1 << 20).unwrap()];
        assert_eq!(whole[0].span().iova() % (1 << 20), 0);
        assert!(pool.alloc(1).is_none());
    }

    #[test]
    fn a_pool_longer_than_a_span_has_all_its_blocks() {
        let arena = Arena::plain_pages(8 << 20).unwrap();
        let mut pool = Pool::over_spans(arena, 5 << 20, 1 << 20, 2 << 20).unwrap();
        let mut all: Vec<_> = (0..5).map(|_| pool.alloc(1 << 20).unwrap()).collect();
        assert!(pool.alloc(1).is_none() && pool.free_bytes() == 0);
        all.sort_by_key(|buffer| buffer.span().iova());
        assert!(all.windows(2).all(|two| two[0].span().iova() + (1 << 20) <= two[1].span().iova()));
        all.into_iter().for_each(|buffer| pool.free(buffer));
        assert_eq!(pool.free_bytes(), 5 << 20);
    }

    #[test]
    fn a_span_serves_one_pool_after_another() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        for _ in 0..3 {
            let span = arena.carve(512 << 10, 64 << 10).unwrap();
            let mut pool = Pool::over(span, 64 << 10);
            let all: Vec<_> = (0..8).map(|_| pool.alloc(64 << 10).unwrap()).collect();
            assert!(pool.alloc(1).is_none() && pool.bytes() == 512 << 10);
            all.into_iter().for_each(|buffer| pool.free(buffer));
            assert_eq!(pool.free_bytes(), pool.bytes());
            arena.give_back(span);
        }
        assert_eq!(arena.bytes_left(), 1 << 20);
    }

    proptest! {
        /// Buffers in use never overlap, are as long as asked, and freeing all restores the pool.
        #[test]
        fn buffers_never_overlap(
            steps in prop::collection::vec((any::<bool>(), 1u32..200_000), 1..200),
        ) {
            let arena = Arena::plain_pages(2 << 20).unwrap();
            let mut pool = Pool::new(arena, 1 << 20, 256 << 10).unwrap();
            let mut held: Vec<DmaBuffer> = Vec::new();
            for (take, number) in steps {
                if take {
                    if let Some(buffer) = pool.alloc(number) {
                        let (start, len) = (buffer.span().addr(), u64::from(buffer.span().len()));
                        prop_assert!(len >= u64::from(number));
                        for other in &held {
                            let (at, to) = (other.span().addr(), u64::from(other.span().len()));
                            prop_assert!(start + len <= at || at + to <= start);
                        }
                        held.push(buffer);
                    }
                } else if !held.is_empty() {
                    let index = number as usize % held.len();
                    pool.free(held.swap_remove(index));
                }
                let used: usize = held.iter().map(|b| b.span().len() as usize).sum();
                prop_assert_eq!(pool.free_bytes() + used, pool.bytes());
            }
            held.into_iter().for_each(|buffer| pool.free(buffer));
            for _ in 0..4 {
                prop_assert!(pool.alloc(256 << 10).is_some());
            }
        }
    }
}
