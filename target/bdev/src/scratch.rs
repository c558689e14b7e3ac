//! Memory that Compare reads a file's blocks into.

use std::sync::{Mutex, PoisonError};

use dma::{Arena, ArenaError, DmaSpan};

use crate::limits::SCRATCH_BYTES;

/// Spans live as long as the process, so those of closed channels are kept for later ones.
static SPARE: Mutex<Vec<DmaSpan>> = Mutex::new(Vec::new());

/// [`SCRATCH_BYTES`] of page-aligned memory that one channel has to itself.
pub(crate) struct Scratch(DmaSpan);

impl Scratch {
    pub(crate) fn take() -> Result<Self, ArenaError> {
        let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match spare {
            Some(span) => Ok(Self(span)),
            None => {
                let bytes = SCRATCH_BYTES as usize;
                Arena::plain_pages(bytes)?.carve(bytes, 4096).map(Self)
            }
        }
    }

    pub(crate) fn span(&self) -> DmaSpan {
        self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SPARE.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}
