//! What stays on a device without power: pages that images share until one of them changes one.

use std::sync::Arc;

use crate::random::mix;

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 4096;

type Page = [u8; PAGE_BYTES];

/// Pages of a device. One that was never written reads as garbage, the same each time: an earlier
/// life that nobody remembers.
#[derive(Clone, Debug)]
pub(crate) struct Media {
    pages: Vec<Option<Arc<Page>>>,
    garbage: u64,
}

impl Media {
    /// `bytes` (whole pages) of garbage that follows from a number.
    pub(crate) fn new(bytes: u64, garbage: u64) -> Self {
        assert!(bytes.is_multiple_of(PAGE_BYTES as u64), "a device has whole pages");
        Self { pages: vec![None; bytes as usize / PAGE_BYTES], garbage }
    }

    /// It has so many bytes now, no fewer than before.
    pub(crate) fn grow(&mut self, bytes: u64) {
        self.pages.resize(bytes as usize / PAGE_BYTES, None);
    }

    /// Copies bytes that lie in one page.
    #[inline]
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
        let (page, start) = place(offset);
        match &self.pages[page] {
            Some(page) => bytes.copy_from_slice(&page[start..start + bytes.len()]),
            None => self.fill_with_garbage(page, start, bytes),
        }
    }

    /// Replaces bytes that lie in one page.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let (number, start) = place(offset);
        if self.pages[number].is_none() {
            let mut page = [0; PAGE_BYTES];
            self.fill_with_garbage(number, 0, &mut page);
            self.pages[number] = Some(Arc::new(page));
        }
        if let Some(page) = &mut self.pages[number] {
            Arc::make_mut(page)[start..start + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn fill_with_garbage(&self, page: usize, start: usize, bytes: &mut [u8]) {
        let seed = self.garbage ^ (page as u64) << 16;
        for (at, word) in bytes.chunks_mut(8).enumerate() {
            let word_number = (start / 8 + at) as u64;
            word.copy_from_slice(&mix(seed ^ word_number).to_le_bytes()[..word.len()]);
        }
    }
}

/// The page of a byte, and where in it the byte is.
#[inline]
fn place(offset: u64) -> (usize, usize) {
    ((offset / PAGE_BYTES as u64) as usize, (offset % PAGE_BYTES as u64) as usize)
}
