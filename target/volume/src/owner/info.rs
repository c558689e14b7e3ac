//! What is told about a pool and its volumes.

use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

use super::{Owner, Removal, Reply};
use crate::format::VolumeKind;
use crate::limits::{
    BLOCK_BYTES, CLUSTER_BLOCKS, CLUSTER_BYTES, DEVICE_SHIFT, DIFF_LEAVES, LEAVES_PER_TURN,
};
use crate::map::Root;

/// A volume or snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeInfo {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Which of the two it is.
    pub kind: VolumeKind,
    /// Name of what it was made from, if that is still there.
    pub parent: Option<String>,
    /// Of a snapshot: name of the volume whose line it is in, if that is still there.
    pub line: Option<String>,
    /// What hosts know it by.
    pub uuid: Uuid,
    /// It takes no writes.
    pub read_only: bool,
    /// Space is kept for all of it.
    pub reserved: bool,
    /// Bytes that are kept for what it may still write.
    pub kept_bytes: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Bytes of a logical block.
    pub block_bytes: u32,
    /// Bytes that hold data, shared or not. Counted for [`Call::List`](super::Call::List) only, as
    /// that takes a walk through the map.
    pub mapped_bytes: Option<u64>,
    /// Bytes that nothing else holds: what deleting it frees. Counted as the above.
    pub unique_bytes: Option<u64>,
    /// `key=value`.
    pub labels: BTreeMap<String, String>,
    /// For people.
    pub description: String,
    /// Seconds since 1970.
    pub created_s: u64,
    /// Of a snapshot of a group: the group's.
    pub group: Option<Uuid>,
    /// How often it is open.
    pub users: u32,
}

/// A pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolInfo {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Bytes of all devices, in clusters.
    pub bytes: u64,
    /// Bytes of free clusters.
    pub free_bytes: u64,
    /// Of those, bytes that are kept for reserved volumes.
    pub kept_bytes: u64,
    /// Of those, bytes that writes of other volumes may have: what is left is for metadata.
    pub available_bytes: u64,
    /// Bytes that are on their way to be free.
    pub releasing_bytes: u64,
    /// Journal blocks in use, and all of them.
    pub journal: (u64, u64),
    /// Volumes and snapshots.
    pub volumes: usize,
    /// Those that are damaged, with the reason.
    pub damaged: Vec<(String, String)>,
    /// It takes no writes, because its journal cannot be written.
    pub broken: bool,
    /// Its block devices.
    pub devices: Vec<DeviceInfo>,
    /// One of them is on its way out.
    pub removal: Option<Removal>,
}

/// A block device of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Its number in the pool.
    pub index: usize,
    /// Bytes of it that the pool uses, in clusters.
    pub bytes: u64,
    /// Bytes that hold something.
    pub used_bytes: u64,
    /// It has a copy of the journal.
    pub journal: bool,
}

/// A [`Call::List`](super::Call::List) on its way.
#[derive(Debug, Default)]
pub(super) struct Listing {
    id: u64,
    /// Those that are not in `infos` yet.
    volumes: VecDeque<u32>,
    /// The entry of the first of them from which counting goes on, and what has been counted.
    next: u32,
    mapped_blocks: u64,
    unique_clusters: u64,
    infos: Vec<VolumeInfo>,
}

impl Owner {
    pub(super) fn volume_info(&self, id: u32) -> Option<VolumeInfo> {
        let volume = self.volumes.get(&id)?;
        let descriptor = volume.descriptor.clone();
        let parent = descriptor.parent.and_then(|parent| self.volumes.get(&parent));
        let line = descriptor.line.and_then(|line| self.volumes.get(&line));
        Some(VolumeInfo {
            id,
            name: descriptor.name,
            kind: descriptor.kind,
            parent: parent.map(|parent| parent.descriptor.name.clone()),
            line: line.map(|line| line.descriptor.name.clone()),
            uuid: descriptor.uuid,
            read_only: volume.handle.read_only(),
            reserved: descriptor.reserved,
            kept_bytes: volume.cover.as_ref().map_or(0, |cover| cover.promise())
                * u64::from(CLUSTER_BYTES),
            bytes: descriptor.bytes,
            block_bytes: descriptor.block_bytes,
            mapped_bytes: None,
            unique_bytes: None,
            labels: descriptor.labels,
            description: descriptor.description,
            created_s: descriptor.created_s,
            group: descriptor.group,
            users: volume.users,
        })
    }

    /// What differs between two, as far as one turn may look.
    pub(super) fn diff(&self, from: Option<u32>, to: u32, start: u64) -> Reply {
        let map = &self.shared.map;
        let a = from.map_or(0, |from| self.volumes[&from].root());
        let b = self.volumes[&to].root();
        let mut extents: Vec<(u64, u64)> = Vec::new();
        let first = u32::try_from(start / u64::from(CLUSTER_BYTES)).unwrap_or(u32::MAX);
        let next = self.tree.diff(a, b, first, DIFF_LEAVES, |index, a, b| {
            let changed = map.changed_blocks(a, b);
            for block in (0..CLUSTER_BLOCKS).filter(|block| changed & (1 << block) != 0) {
                let blocks = u64::from(index) * u64::from(CLUSTER_BLOCKS) + u64::from(block);
                let byte = blocks * u64::from(BLOCK_BYTES);
                match extents.last_mut() {
                    Some((at, bytes)) if *at + *bytes == byte => *bytes += u64::from(BLOCK_BYTES),
                    _ => extents.push((byte, u64::from(BLOCK_BYTES))),
                }
            }
        });
        Reply::Extents(extents, next.map(|index| u64::from(index) * u64::from(CLUSTER_BYTES)))
    }

    /// Lists all volumes. The answer comes when what they hold has been counted.
    pub(super) fn begin_list(&mut self, id: u64) {
        let volumes = self.volumes.keys().copied().collect();
        self.lists.push_back(Listing { id, volumes, ..Listing::default() });
    }

    /// Goes on with counting, as far as one turn may. What changes meanwhile is counted as it is
    /// found.
    pub(super) fn poll_lists(&mut self) {
        let Some(mut list) = self.lists.pop_front() else { return };
        let Some(&volume) = list.volumes.front() else {
            return self.reply(list.id, Ok(Reply::Volumes(list.infos)));
        };
        let next = match self.volumes.get(&volume) {
            Some(volume) => self.count_usage(volume.root(), &mut list),
            None => None, // deleted meanwhile
        };
        list.next = next.unwrap_or(0);
        if next.is_none() {
            list.volumes.pop_front();
            let blocks = std::mem::take(&mut list.mapped_blocks);
            let clusters = std::mem::take(&mut list.unique_clusters);
            list.infos.extend(self.volume_info(volume).map(|info| VolumeInfo {
                mapped_bytes: Some(blocks * u64::from(BLOCK_BYTES)),
                unique_bytes: Some(clusters * u64::from(CLUSTER_BYTES)),
                ..info
            }));
        }
        self.lists.push_front(list);
    }

    /// Counts blocks that hold data, and clusters that nothing else holds; where to go on.
    fn count_usage(&self, root: Root, list: &mut Listing) -> Option<u32> {
        let map = &self.shared.map;
        self.tree.walk(root, list.next, LEAVES_PER_TURN, |_, entry, unshared| {
            list.mapped_blocks += u64::from(self.present(entry, u16::MAX).count_ones());
            if !unshared {
                return;
            }
            let mut last = 0;
            for block in 0..CLUSTER_BLOCKS {
                let cluster = map.cluster_of(entry, block);
                if cluster != 0 && cluster != last && self.space.holders(cluster) == 1 {
                    list.unique_clusters += 1;
                }
                last = cluster;
            }
        })
    }

    /// Whether blocks from this one on hold data.
    pub(super) fn has_blocks_from(&self, root: Root, block: u64) -> bool {
        let blocks = u64::from(CLUSTER_BLOCKS);
        let (first, offset) = ((block / blocks) as u32, block % blocks);
        let mut found = false;
        self.tree.walk(root, first, usize::MAX, |index, entry, _| {
            let mask = if index == first { u16::MAX << offset } else { u16::MAX };
            found |= self.present(entry, mask) != 0;
        });
        found
    }

    pub(super) fn pool_info(&self) -> PoolInfo {
        let damaged = self.damaged.iter().filter(|damaged| !damaged.deleted);
        PoolInfo {
            name: self.superblock.name.clone(),
            uuid: self.superblock.pool,
            bytes: self.space.total_clusters() * u64::from(CLUSTER_BYTES),
            free_bytes: self.space.free_clusters() * u64::from(CLUSTER_BYTES),
            kept_bytes: self.space.promised() * u64::from(CLUSTER_BYTES),
            available_bytes: self.space.available_clusters() * u64::from(CLUSTER_BYTES),
            releasing_bytes: self.releases.len() as u64 * u64::from(CLUSTER_BYTES),
            journal: self.journal.usage(),
            volumes: self.volumes.len(),
            damaged: damaged.map(|d| (d.entry.name.clone(), d.why.clone())).collect(),
            broken: self.journal.is_broken(),
            devices: self.device_infos(),
            removal: self.removal_info(),
        }
    }

    fn device_infos(&self) -> Vec<DeviceInfo> {
        let slots = self.superblock.devices.iter().enumerate().filter(|(_, slot)| slot.present);
        let journal = |index: usize| {
            let areas = self.superblock.journal.iter();
            areas.into_iter().any(|area| area.first_cluster >> DEVICE_SHIFT == index as u32)
        };
        let infos = slots.map(|(index, slot)| DeviceInfo {
            name: self.names[index].clone(),
            index,
            bytes: u64::from(slot.clusters) * u64::from(CLUSTER_BYTES),
            used_bytes: self.space.used_clusters(index) * u64::from(CLUSTER_BYTES),
            journal: journal(index),
        });
        infos.collect()
    }
}
