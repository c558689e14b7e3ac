//! DMA memory that one life after another uses: arenas are for the life of a process, and a test
//! has ten thousand lives.

use std::sync::{Mutex, MutexGuard, PoisonError};

use dma::limits::MAX_BLOCK_BYTES;
use dma::{Arena, DmaSpan, Pool};

/// Arenas that nobody uses.
static IDLE: Mutex<Vec<&'static Arena>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<&'static Arena>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Arenas for a life. They go back when this is dropped, and by then nothing may be in flight in a
/// world that goes on.
#[derive(Debug)]
pub struct Memory {
    /// What is carved for good: it goes back whole, and zero.
    pools: &'static Arena,
    /// Sizes of pools that were not taken yet.
    sizes: Vec<usize>,
    /// The harness's own, never given back.
    span: DmaSpan,
    own: &'static Arena,
}

impl Memory {
    /// Memory for pools of these sizes, and a span of `span_bytes` for the harness; all of them
    /// powers of two.
    ///
    /// # Panics
    /// The machine has no memory left.
    pub fn new(sizes: &[usize], span_bytes: usize) -> Self {
        let (pools, own) = (take(sizes.iter().sum()), take(span_bytes));
        let span = own.at_iova(own.iova(), span_bytes as u32).expect("the arena has itself");
        Self { pools, sizes: sizes.to_vec(), span, own }
    }

    /// The harness's own span.
    pub fn span(&self) -> DmaSpan {
        self.span
    }

    /// The pools, once.
    ///
    /// # Panics
    /// The sizes were no powers of two, or the largest was not first.
    pub fn pools(&mut self) -> Vec<Pool> {
        let pool = |bytes: usize| {
            Pool::new(self.pools, bytes, bytes.min(MAX_BLOCK_BYTES)).expect("it adds up")
        };
        std::mem::take(&mut self.sizes).into_iter().map(pool).collect()
    }
}

fn take(bytes: usize) -> &'static Arena {
    let bytes = bytes.next_multiple_of(4096);
    let mut idle = idle();
    let fits = idle.iter().position(|arena| arena.bytes() == bytes);
    let found = fits.map(|at| idle.swap_remove(at));
    drop(idle);
    found.unwrap_or_else(|| Arena::plain_pages(bytes).expect("memory for an arena"))
}

impl Drop for Memory {
    fn drop(&mut self) {
        drop(self.pools());
        let whole = self.pools.at_iova(self.pools.iova(), self.pools.bytes() as u32);
        self.pools.give_back(whole.expect("the arena has itself"));
        idle().extend([self.pools, self.own]);
    }
}
