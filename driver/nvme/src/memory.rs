//! The parts of the arena that one controller has.

use std::sync::{Mutex, PoisonError};

use dma::{Arena, ArenaError, DmaSpan};

/// Remembers what was carved, so that all of it can go back.
#[derive(Debug)]
pub(crate) struct Memory {
    arena: &'static Arena,
    spans: Mutex<Vec<DmaSpan>>,
}

impl Memory {
    pub(crate) fn new(arena: &'static Arena) -> Self {
        Self { arena, spans: Mutex::new(Vec::new()) }
    }

    pub(crate) fn carve(&self, bytes: usize, align: usize) -> Result<DmaSpan, ArenaError> {
        let span = self.arena.carve(bytes, align)?;
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
        Ok(span)
    }

    /// Gives everything back. The controller reaches none of it, and nobody uses it.
    pub(crate) fn give_back(&mut self) {
        let spans = self.spans.get_mut().unwrap_or_else(PoisonError::into_inner);
        spans.drain(..).for_each(|span| self.arena.give_back(span));
    }
}
