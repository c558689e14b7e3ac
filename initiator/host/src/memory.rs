//! Memory of a connection's own.

use dma::{Arena, DmaSpan};

use crate::error::Error;

/// Memory of the arena that is given back when nobody uses it any more.
#[derive(Debug)]
pub(crate) struct Carved {
    arena: &'static Arena,
    pub(crate) span: DmaSpan,
}

impl Carved {
    /// So many bytes, from a page's boundary on.
    pub(crate) fn new(arena: &'static Arena, bytes: usize) -> Result<Self, Error> {
        const PAGE_BYTES: usize = 4096;
        Ok(Self { arena, span: arena.carve(bytes, PAGE_BYTES)? })
    }
}

impl Drop for Carved {
    fn drop(&mut self) {
        self.arena.give_back(self.span);
    }
}
