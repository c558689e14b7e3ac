//! Blocks, with a volatile write cache in front.

use std::collections::BTreeSet;

/// What is read is what was last written; what a power cut leaves is what was flushed.
#[derive(Debug)]
pub(crate) struct Media {
    pub(crate) block_bytes: usize,
    now: Vec<u8>,
    stable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Media {
    pub(crate) fn new(block_bytes: usize, block_count: usize) -> Self {
        let bytes = block_bytes * block_count;
        Self { block_bytes, now: vec![0; bytes], stable: vec![0; bytes], dirty: BTreeSet::new() }
    }

    pub(crate) fn block_count(&self) -> u64 {
        (self.now.len() / self.block_bytes) as u64
    }

    pub(crate) fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        &self.now[offset..offset + len]
    }

    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8], fua: bool) {
        self.now[offset..offset + bytes.len()].copy_from_slice(bytes);
        for block in offset / self.block_bytes..(offset + bytes.len()) / self.block_bytes {
            self.dirty.insert(block);
            if fua {
                self.flush_block(block);
            }
        }
        if fua {
            self.dirty.retain(|block| {
                !(offset..offset + bytes.len()).contains(&(block * self.block_bytes))
            });
        }
    }

    pub(crate) fn flush(&mut self) {
        for block in std::mem::take(&mut self.dirty) {
            self.flush_block(block);
        }
    }

    pub(crate) fn power_cut(&mut self) {
        self.dirty.clear();
        self.now.clone_from(&self.stable);
    }

    fn flush_block(&mut self, block: usize) {
        let range = block * self.block_bytes..(block + 1) * self.block_bytes;
        self.stable[range.clone()].copy_from_slice(&self.now[range]);
    }
}
