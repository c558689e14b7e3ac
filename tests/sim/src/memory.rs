//! DMA memory that one life after another uses: arenas are for the life of a process, and a test
//! has ten thousand lives.

use std::cell::RefCell;

use dma::{Arena, DmaSpan, Pool};

thread_local! {
    /// Arenas that nobody uses, by what they are large enough for.
    static IDLE: RefCell<Vec<&'static Arena>> = const { RefCell::new(Vec::new()) };
}

/// An arena of this thread's. It goes back when this is dropped, and by then nothing may be in
/// flight in a world that goes on.
#[derive(Debug)]
pub struct Memory {
    arena: &'static Arena,
    pool_bytes: usize,
    span: DmaSpan,
    pools: usize,
}

impl Memory {
    /// Memory for so many pools of `pool_bytes`, and a span of `span_bytes` for the harness; both
    /// powers of two.
    ///
    /// # Panics
    /// The machine has no memory left.
    pub fn new(pools: usize, pool_bytes: usize, span_bytes: usize) -> Self {
        assert!(pool_bytes.is_power_of_two() && span_bytes.is_power_of_two());
        let bytes = pools * pool_bytes + span_bytes;
        let idle = IDLE.with_borrow_mut(|idle| {
            let fits = idle.iter().position(|arena| arena.bytes() == bytes);
            fits.map(|at| idle.swap_remove(at))
        });
        let arena = idle.unwrap_or_else(|| Arena::plain_pages(bytes).expect("memory for an arena"));
        let span = arena.carve(span_bytes, 1).expect("an arena that nobody uses");
        Self { arena, pool_bytes, span, pools }
    }

    /// The harness's own span.
    pub fn span(&self) -> DmaSpan {
        self.span
    }

    /// The pools, once.
    ///
    /// # Panics
    /// They were taken already.
    pub fn pools(&mut self) -> Vec<Pool> {
        let count = std::mem::take(&mut self.pools);
        assert!(count > 0, "pools taken twice");
        let pool = |_| Pool::new(self.arena, self.pool_bytes, self.pool_bytes);
        (0..count).map(pool).collect::<Result<_, _>>().expect("sizes add up to the arena")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // The pools carved what was left of the arena, for good; it goes back whole.
        if self.pools > 0 {
            drop(self.pools());
        }
        let whole = self.arena.at_iova(self.arena.iova(), self.arena.bytes() as u32);
        self.arena.give_back(whole.expect("the arena has itself"));
        IDLE.with_borrow_mut(|idle| idle.push(self.arena));
    }
}
