//! An entry taken apart.

use super::entry::Entry;
use crate::limits::CLUSTER_BLOCKS;

const BLOCKS: usize = CLUSTER_BLOCKS as usize;

/// Where each block is, and which are own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Places {
    /// Cluster of each block, 0 for zero.
    pub(super) at: [u32; BLOCKS],
    pub(super) own: u16,
}

impl Places {
    /// Blocks `mask` are in `cluster` from now on.
    pub(super) fn put(&mut self, mask: u16, cluster: u32) {
        for (block, at) in self.at.iter_mut().enumerate() {
            if mask >> block & 1 == 1 {
                *at = cluster;
            }
        }
    }

    /// Blocks that are in `cluster`.
    pub(super) fn in_cluster(&self, cluster: u32) -> u16 {
        self.mask(|at| at == cluster)
    }

    /// Blocks that are not zero.
    pub(super) fn present(&self) -> u16 {
        self.mask(|at| at != 0)
    }

    /// Blocks that are elsewhere in `other`.
    pub(super) fn differ(&self, other: &Places) -> u16 {
        let pairs = self.at.iter().zip(&other.at).enumerate();
        pairs.fold(0, |mask, (block, (a, b))| mask | u16::from(a != b) << block)
    }

    fn mask(&self, f: impl Fn(u32) -> bool) -> u16 {
        let places = self.at.iter().enumerate();
        places.fold(0, |mask, (block, at)| mask | u16::from(f(*at)) << block)
    }

    /// Each cluster once, with the blocks that are in it.
    pub(super) fn clusters(&self) -> impl Iterator<Item = (u32, u16)> + '_ {
        let mut left = self.present();
        std::iter::from_fn(move || {
            let cluster = *self.at.get(left.trailing_zeros() as usize)?;
            let blocks = self.in_cluster(cluster);
            left &= !blocks;
            Some((cluster, blocks))
        })
    }

    /// The entry, unless it needs a line: that is when blocks lie in several clusters.
    pub(super) fn without_line(&self) -> Option<Entry> {
        let mut clusters = self.clusters();
        let Some((cluster, blocks)) = clusters.next() else { return Some(Entry::ZERO) };
        let alone = clusters.next().is_none();
        alone.then(|| Entry::direct(cluster, blocks, self.own != 0))
    }
}
