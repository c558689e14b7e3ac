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
            *at = if mask >> block & 1 == 1 { cluster } else { *at };
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
    pub(super) fn clusters(&self) -> Clusters {
        let mut clusters = Clusters::default();
        let mut left = self.present();
        while let Some(&cluster) = self.at.get(left.trailing_zeros() as usize) {
            let blocks = self.in_cluster(cluster);
            clusters.push(cluster, blocks);
            left &= !blocks;
        }
        clusters
    }
}

/// The clusters of an entry, each once, with the blocks that are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Clusters {
    list: [(u32, u16); BLOCKS],
    count: usize,
}

impl Clusters {
    /// Those of a direct entry.
    pub(super) fn of_direct(entry: Entry) -> Clusters {
        let mut clusters = Clusters::default();
        if !entry.is_zero() {
            clusters.push(entry.value(), entry.mask());
        }
        clusters
    }

    fn push(&mut self, cluster: u32, blocks: u16) {
        self.list[self.count] = (cluster, blocks);
        self.count += 1;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u16)> + '_ {
        self.list[..self.count].iter().copied()
    }

    /// Blocks that are in `cluster`.
    pub(super) fn blocks_in(&self, cluster: u32) -> u16 {
        self.iter().find(|(other, _)| *other == cluster).map_or(0, |(_, blocks)| blocks)
    }

    /// The same when blocks `mask` are in `cluster`, or zero if that is 0.
    pub(super) fn with(&self, mask: u16, cluster: u32) -> Clusters {
        let mut clusters = Clusters::default();
        let mut added = if cluster == 0 { 0 } else { mask };
        for (other, blocks) in self.iter() {
            let mut blocks = blocks & !mask;
            if other == cluster {
                blocks |= std::mem::take(&mut added);
            }
            if blocks != 0 {
                clusters.push(other, blocks);
            }
        }
        if added != 0 {
            clusters.push(cluster, added);
        }
        clusters
    }

    /// The entry, unless it needs a line: that is when blocks lie in several clusters.
    pub(super) fn without_line(&self, own: bool) -> Option<Entry> {
        match self.list[..self.count] {
            [] => Some(Entry::ZERO),
            [(cluster, blocks)] => Some(Entry::direct(cluster, blocks, own)),
            _ => None,
        }
    }
}
