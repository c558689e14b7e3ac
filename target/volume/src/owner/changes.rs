//! Changes of the catalog: records of the journal, applied alike when they are made and when they
//! are replayed. Applying one that a checkpoint already holds changes nothing.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::volume::{Settling, Volume};
use super::{Item, Owner};
use crate::format::VolumeDescriptor;
use crate::limits::{BLOCK_BYTES, CLUSTER_BLOCKS, MAX_VOLUME_BYTES, MAX_VOLUME_CLUSTERS};
use crate::map::Release;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Change {
    /// A volume without blocks.
    Create { descriptor: VolumeDescriptor },
    /// A volume or snapshot is gone.
    Delete { id: u32 },
    /// Snapshots of one instant.
    Snapshot { members: Vec<Member> },
    /// A volume that begins as a snapshot.
    Clone { source: u32, descriptor: VolumeDescriptor },
    /// Name, labels, description.
    Describe { id: u32, name: String, labels: BTreeMap<String, String>, description: String },
    /// Its size in bytes.
    Resize { id: u32, bytes: u64 },
    /// A volume is what the snapshot is; what it was becomes another snapshot.
    Rollback { id: u32, to: u32, kept: VolumeDescriptor },
    /// A clone takes the place of what it was cloned from.
    Promote { id: u32 },
    /// Space is kept for it, or no longer.
    Reserve { id: u32, reserved: bool },
}

/// A snapshot of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    pub origin: u32,
    pub descriptor: VolumeDescriptor,
}

impl Change {
    /// Whether it could have been made: one that comes from a device is looked at before it is
    /// applied.
    pub(super) fn check(&self) -> Result<(), String> {
        let (descriptors, bytes): (Vec<&VolumeDescriptor>, u64) = match self {
            Change::Create { descriptor } | Change::Clone { descriptor, .. } => {
                (vec![descriptor], 0)
            }
            Change::Rollback { kept, .. } => (vec![kept], 0),
            Change::Snapshot { members } => (members.iter().map(|m| &m.descriptor).collect(), 0),
            Change::Resize { bytes, .. } => (vec![], *bytes),
            Change::Delete { .. }
            | Change::Describe { .. }
            | Change::Promote { .. }
            | Change::Reserve { .. } => (vec![], 0),
        };
        if bytes > MAX_VOLUME_BYTES {
            return Err(format!("a volume of {bytes} bytes is not possible"));
        }
        let checked = descriptors.into_iter().try_for_each(VolumeDescriptor::check);
        checked.map_err(|error| error.to_string())
    }
}

impl Owner {
    /// Applies a change whose record is in this journal block. In an order that a replay keeps:
    /// mappings whose records stand before it are in the maps, or belong to what settles.
    pub(super) fn apply(&mut self, change: &Change, sequence: u64) {
        match change {
            Change::Create { descriptor } => {
                if !self.is_known(descriptor.id) {
                    let root = self.tree.new_root();
                    self.add_volume(descriptor, root);
                }
            }
            Change::Delete { id } => self.delete(*id, sequence),
            Change::Snapshot { members } => {
                for Member { origin, descriptor } in members {
                    self.snapshot(*origin, descriptor);
                }
            }
            Change::Clone { source, descriptor } => {
                if !self.is_known(descriptor.id)
                    && let Some(source) = self.volumes.get(source)
                {
                    let root = source.root();
                    let root = self.tree.share(root);
                    self.add_volume(descriptor, root);
                }
            }
            Change::Describe { id, name, labels, description } => {
                if let Some(volume) = self.volumes.get_mut(id) {
                    volume.descriptor.name.clone_from(name);
                    volume.descriptor.labels.clone_from(labels);
                    volume.descriptor.description.clone_from(description);
                    volume.changed = true;
                }
            }
            Change::Resize { id, bytes } => self.resize(*id, *bytes, sequence),
            Change::Promote { id } => self.promote(*id),
            Change::Reserve { id, reserved } => self.reserve(*id, *reserved),
            Change::Rollback { id, to, kept } => self.roll_back(*id, *to, kept, sequence),
        }
    }

    /// Numbers are not given twice, so one that is below the next is there, or was.
    fn is_known(&mut self, id: u32) -> bool {
        let known = id < self.superblock.next_volume;
        self.superblock.next_volume = self.superblock.next_volume.max(id + 1);
        known
    }

    pub(super) fn next_head(&mut self) -> u64 {
        self.last_head += 1;
        self.last_head
    }

    fn add_volume(&mut self, descriptor: &VolumeDescriptor, root: u32) {
        let head = self.next_head();
        self.volumes.insert(descriptor.id, Volume::new(descriptor.clone(), root, head));
        self.promise_anew();
    }

    fn delete(&mut self, id: u32, sequence: u64) {
        let Some(mut volume) = self.volumes.remove(&id) else {
            // A damaged one keeps what is known of it until the pool is opened again.
            let damaged = self.damaged.iter_mut().filter(|damaged| damaged.entry.id == id);
            return damaged.for_each(|damaged| damaged.deleted = true);
        };
        volume.handle.closed.store(true, Ordering::Release);
        self.space.close_run(&mut volume.run);
        self.releases.add_item(sequence, Item::Map(Release::Root(volume.root())));
        self.promise_anew();
        self.covers.want(sequence);
        if !volume.extent.is_absent() {
            self.old_pages.push(volume.extent);
        }
        // What was made from it hangs where it hung.
        for other in self.volumes.values_mut() {
            if other.descriptor.parent == Some(id) {
                other.descriptor.parent = volume.descriptor.parent;
                other.changed = true;
            }
        }
    }

    fn snapshot(&mut self, origin: u32, descriptor: &VolumeDescriptor) {
        if self.is_known(descriptor.id) || !self.volumes.contains_key(&origin) {
            return;
        }
        let root = self.volumes[&origin].root();
        let root = self.tree.share(root);
        self.add_volume(descriptor, root);
        self.forget_places(origin, 0..=u32::MAX);
        let head = self.next_head();
        let epoch = self.epoch.retire();
        let Some(volume) = self.volumes.get_mut(&origin) else { return };
        let old = volume.handle.head.swap(head, Ordering::AcqRel);
        volume.settling = Some(Settling { snapshot: descriptor.id, head: old, epoch, flush: None });
        self.settling.push(origin);
        volume.descriptor.parent = Some(descriptor.id);
        volume.changed = true;
        self.uncover_all(origin);
    }

    fn resize(&mut self, id: u32, bytes: u64, sequence: u64) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let before = std::mem::replace(&mut volume.descriptor.bytes, bytes);
        volume.changed = true;
        let block_bytes = u64::from(volume.descriptor.block_bytes);
        volume.handle.block_count.store(bytes / block_bytes, Ordering::Release);
        self.resize_cover(id);
        if bytes >= before {
            return;
        }
        // The rest reads as zeroes should it grow again.
        let Some((root, head)) = self.volumes.get(&id).map(Volume::tree) else { return };
        self.forget_places(id, 0..=u32::MAX);
        let first = bytes.div_ceil(u64::from(BLOCK_BYTES));
        let last = before.div_ceil(u64::from(BLOCK_BYTES));
        debug_assert!(before.div_ceil(u64::from(BLOCK_BYTES) * 16) <= MAX_VOLUME_CLUSTERS.into());
        let mut released = std::mem::take(&mut self.released);
        let (tree, space) = (&mut self.tree, &mut self.space);
        tree.clear_range(root, head, first, last - first, space, &mut released);
        self.releases.add(sequence, &mut released);
        self.released = released;
        self.recheck(id, (first / u64::from(CLUSTER_BLOCKS)) as u32..=u32::MAX);
    }

    /// The snapshots from which it comes are of its line from here on.
    fn promote(&mut self, id: u32) {
        let mut next = self.volumes.get(&id).and_then(|volume| volume.descriptor.parent);
        while let Some(snapshot) = next.and_then(|parent| self.volumes.get_mut(&parent)) {
            next = snapshot.descriptor.parent;
            if snapshot.is_snapshot() && snapshot.descriptor.line != Some(id) {
                snapshot.descriptor.line = Some(id);
                snapshot.changed = true;
            }
        }
    }

    fn roll_back(&mut self, id: u32, to: u32, kept: &VolumeDescriptor, sequence: u64) {
        let (Some(volume), Some(target)) = (self.volumes.get(&id), self.volumes.get(&to)) else {
            return;
        };
        let (old, new) = (volume.root(), target.root());
        let bytes = target.descriptor.bytes;
        let new = self.tree.share(new);
        self.forget_places(id, 0..=u32::MAX);
        match self.is_known(kept.id) {
            true => self.releases.add_item(sequence, Item::Map(Release::Root(old))),
            false => self.add_volume(kept, old),
        }
        let head = self.next_head();
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        volume.handle.head.store(head, Ordering::Release);
        volume.handle.root.store(new, Ordering::Release);
        let blocks = bytes / u64::from(volume.descriptor.block_bytes);
        volume.handle.block_count.store(blocks, Ordering::Release);
        volume.descriptor.bytes = bytes;
        volume.descriptor.parent = Some(to);
        volume.changed = true;
        self.uncover_all(id);
    }
}
