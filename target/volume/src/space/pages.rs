//! Pages of metadata, in clusters that have nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::counts::METADATA;
use super::{Run, Space, cluster_at, device_of, place_of};
use crate::limits::CLUSTER_BLOCKS;

const FULL: u16 = u16::MAX;
const BLOCKS: usize = CLUSTER_BLOCKS as usize;

/// The clusters that have pages.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// The pages of each that are in use.
    used: BTreeMap<u32, u16>,
    /// Those that may be given more, by the longest run that is free in them.
    by_run: [BTreeSet<u32>; BLOCKS + 1],
    /// The window that new ones come from.
    run: Run,
    /// Devices, one bit each, on which nothing is given.
    readonly: u16,
}

impl Pages {
    pub(super) fn set_readonly(&mut self, device: usize, readonly: bool) {
        let on_device = cluster_at(device, 0)..=cluster_at(device, super::PLACE_MASK);
        if readonly {
            self.readonly |= 1 << device;
            for clusters in &mut self.by_run {
                clusters.retain(|cluster| !on_device.contains(cluster));
            }
        } else {
            self.readonly &= !(1 << device);
            for (&cluster, &used) in self.used.range(on_device) {
                self.by_run[longest_run(!used) as usize].insert(cluster);
            }
        }
    }

    /// The pages in use of a cluster have changed. A cluster of which none is, is not kept.
    fn set_used(&mut self, cluster: u32, used: u16) {
        let before = match used {
            0 => self.used.remove(&cluster),
            _ => self.used.insert(cluster, used),
        };
        if let Some(before) = before {
            self.by_run[longest_run(!before) as usize].remove(&cluster);
        }
        if used != 0 && self.readonly >> device_of(cluster) & 1 == 0 {
            self.by_run[longest_run(!used) as usize].insert(cluster);
        }
    }
}

impl Space {
    /// Takes pages that lie side by side; the number of the first. Up to 16 lie in one cluster,
    /// more in clusters side by side.
    pub fn take_pages(&mut self, pages: u32) -> Option<u64> {
        assert!(pages > 0, "no pages");
        if pages > CLUSTER_BLOCKS {
            return self.take_clusters_for(pages);
        }
        let mut fitting = self.pages.by_run[pages as usize..].iter();
        let cluster = match fitting.find_map(BTreeSet::first) {
            Some(&cluster) => cluster,
            None => {
                // Metadata may have the reserve.
                let mut run = std::mem::take(&mut self.pages.run);
                let cluster = self.claim(&mut run);
                if cfg!(debug_assertions) {
                    // The next one may be any that is free by then, as in a pool that is nearly
                    // full: what was freed too early is found by that.
                    self.close_run(&mut run);
                }
                self.pages.run = run;
                let cluster = cluster?;
                self.set_count(cluster, METADATA);
                cluster
            }
        };
        let used = self.pages.used.get(&cluster).copied().unwrap_or(0);
        let first = run_of(!used, pages)?;
        self.pages.set_used(cluster, used | run_mask(first, pages));
        Some(u64::from(cluster) * u64::from(CLUSTER_BLOCKS) + u64::from(first))
    }

    /// Frees pages that were taken together.
    ///
    /// # Panics
    /// If one of them is not in use.
    pub fn free_pages(&mut self, page: u64, pages: u32) {
        for (cluster, mask) in parts(page, pages) {
            let used = self.pages.used.get(&cluster).copied().unwrap_or(0);
            assert!(used & mask == mask, "pages {mask:#x} of cluster {cluster:#x} are not in use");
            self.pages.set_used(cluster, used & !mask);
            if used == mask {
                self.free_cluster(cluster);
            }
        }
    }

    /// Pages that were found to be in use when the pool was opened. False, and nothing changed,
    /// when one of them is in use already or is none.
    pub fn mark_pages(&mut self, page: u64, pages: u32) -> bool {
        let last = page.checked_add(u64::from(pages)).map(|end| end - 1);
        let cluster = |page: u64| u32::try_from(page / u64::from(CLUSTER_BLOCKS)).ok();
        let (Some(first), Some(last)) = (cluster(page), last.and_then(cluster)) else {
            return false;
        };
        let size = self.devices[device_of(first)].clusters;
        if pages == 0 || device_of(first) != device_of(last) || place_of(last) >= size {
            return false;
        }
        let possible = parts(page, pages).all(|(cluster, mask)| match self.count(cluster) {
            0 => true,
            METADATA => self.pages.used.get(&cluster).is_none_or(|used| used & mask == 0),
            _ => false,
        });
        for (cluster, mask) in parts(page, pages).filter(|_| possible) {
            let used = self.pages.used.get(&cluster).copied().unwrap_or(0);
            if used == 0 {
                self.unfree(cluster);
                self.set_count(cluster, METADATA);
            }
            self.pages.set_used(cluster, used | mask);
        }
        possible
    }

    /// Clusters with pages on a device, and which of their pages are in use.
    pub fn page_clusters(&self, device: usize) -> impl Iterator<Item = (u32, u16)> + '_ {
        let on_device = cluster_at(device, 0)..=cluster_at(device, super::PLACE_MASK);
        self.pages.used.range(on_device).map(|(cluster, used)| (*cluster, *used))
    }

    /// Whole clusters side by side. Rare, so that a walk over all free ones will do.
    fn take_clusters_for(&mut self, pages: u32) -> Option<u64> {
        for number in 0..self.windows.len() {
            self.empty_window(number);
        }
        let wanted = pages.div_ceil(CLUSTER_BLOCKS);
        let (device, place) = (0..self.devices.len()).find_map(|device| {
            let place = self.devices[device].free_run(wanted)?;
            Some((device, place))
        })?;
        let page = u64::from(cluster_at(device, place)) * u64::from(CLUSTER_BLOCKS);
        self.mark_pages(page, pages).then_some(page)
    }
}

impl super::Device {
    /// The first of so many free clusters side by side.
    pub(super) fn free_run(&self, wanted: u32) -> Option<u32> {
        if self.readonly || self.clusters == 0 {
            return None;
        }
        let mut first = self.free.next(0)?;
        loop {
            let end = first + wanted as usize;
            let mut places = first..end.min(self.clusters as usize);
            match places.find(|place| !self.free.contains(*place)) {
                Some(gap) => first = self.free.next(gap)?,
                None if end <= self.clusters as usize => return Some(first as u32),
                None => return None,
            }
        }
    }
}

/// The clusters of a run of pages, and which pages of each.
fn parts(page: u64, pages: u32) -> impl Iterator<Item = (u32, u16)> {
    let blocks = u64::from(CLUSTER_BLOCKS);
    let end = page + u64::from(pages);
    (page / blocks..end.div_ceil(blocks)).map(move |cluster| {
        let first = page.saturating_sub(cluster * blocks) as u32;
        let last = (end - cluster * blocks).min(blocks) as u32;
        (cluster as u32, run_mask(first, last - first))
    })
}

fn run_mask(first: u32, pages: u32) -> u16 {
    (u32::from(FULL) >> (CLUSTER_BLOCKS - pages) << first) as u16
}

/// Where so many bits side by side are set first.
fn run_of(mask: u16, pages: u32) -> Option<u32> {
    (0..=CLUSTER_BLOCKS - pages).find(|first| {
        let run = run_mask(*first, pages);
        mask & run == run
    })
}

/// The most bits side by side that are set.
fn longest_run(mask: u16) -> u32 {
    (1..=CLUSTER_BLOCKS).rev().find(|pages| run_of(mask, *pages).is_some()).unwrap_or(0)
}
