//! Whether what is counted is what the maps make it: `forebay pool check`.

use std::collections::BTreeMap;

use super::{Item, Owner};
use crate::format::Extent;
use crate::limits::CLUSTER_BLOCKS;
use crate::map::Fault;

impl Owner {
    /// What is wrong, each with where; nothing is changed. To be called when no checkpoint is
    /// going.
    pub(super) fn check(&self) -> Vec<String> {
        let mut found = self.check_counts();
        for damaged in self.damaged.iter().filter(|damaged| !damaged.deleted) {
            found.push(format!("{}: {}", damaged.entry.name, damaged.why));
        }
        found
    }

    /// Counts, and pages that are in use.
    pub(super) fn check_counts(&self) -> Vec<String> {
        let volumes = self.volumes.values().map(|volume| volume.root());
        let damaged = self.damaged.iter().filter_map(|damaged| damaged.root);
        let roots: Vec<u32> = volumes.chain(damaged).collect();
        let pending = self.releases.iter().filter_map(only_map);
        let pending: Vec<_> = pending.chain(self.held_copies()).collect();
        let faults = self.tree.check(&roots, &pending, &self.space);
        let mut found: Vec<String> = faults.iter().map(describe).collect();
        self.check_pages(&mut found);
        found
    }

    /// Pages that are in use, and those that something is on.
    fn check_pages(&self, found: &mut Vec<String>) {
        let mut named: BTreeMap<u32, u16> = BTreeMap::new();
        let mut name = |extent: Extent| {
            let blocks = u64::from(CLUSTER_BLOCKS);
            for page in extent.page..extent.page + u64::from(extent.pages) {
                let mask = named.entry((page / blocks) as u32).or_default();
                let bit = 1 << (page % blocks);
                if *mask & bit != 0 {
                    found.push(format!("page {page} is in use twice"));
                }
                *mask |= bit;
            }
        };
        self.tree.for_each_extent(&mut name);
        let volumes = self.volumes.values().map(|volume| volume.extent);
        let damaged = self.damaged.iter().map(|damaged| damaged.entry.descriptor);
        let released = self.releases.iter().filter_map(|item| match item {
            Item::Map(crate::map::Release::Pages(extent)) => Some(*extent),
            _ => None,
        });
        let all = volumes.chain(damaged).chain(released).chain(self.superblock.catalog);
        all.chain(self.old_pages.iter().copied()).for_each(&mut name);
        for device in 0..self.superblock.devices.len() {
            for (cluster, used) in self.space.page_clusters(device) {
                let named = named.remove(&cluster).unwrap_or(0);
                if named != used {
                    let (lost, free) = (used & !named, named & !used);
                    found.push(format!(
                        "cluster {cluster:#x}: pages {lost:#06x} are lost, {free:#06x} are not kept"
                    ));
                }
            }
        }
        for (cluster, _) in named.into_iter().filter(|(_, mask)| *mask != 0) {
            found.push(format!("cluster {cluster:#x} holds pages and is not kept for that"));
        }
    }
}

fn only_map(item: &Item) -> Option<crate::map::Release> {
    match item {
        Item::Map(release) => Some(*release),
        Item::Blocks { .. } => None,
    }
}

fn describe(fault: &Fault) -> String {
    match *fault {
        Fault::Node { node, counted, found } => {
            format!("{node:?} has {found} references, and {counted} are counted")
        }
        Fault::Line { line, counted, found } => {
            format!("line {line} has {found} references, and {counted} are counted")
        }
        Fault::Cluster { cluster, counted, found } => {
            let what = if counted > found { "a leak" } else { "shared by too few" };
            format!("cluster {cluster:#x} has {found} holders, and {counted} are counted: {what}")
        }
    }
}
