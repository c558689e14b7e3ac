//! A volume or snapshot, as the owner knows it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::reserve::Cover;
use crate::format::{Extent, VolumeDescriptor, VolumeKind};
use crate::map::Root;
use crate::shared::VolumeHandle;
use crate::space::Run;

pub(crate) struct Volume {
    /// Its `root` is what the last checkpoint has.
    pub descriptor: VolumeDescriptor,
    /// Where the last checkpoint has the descriptor.
    pub extent: Extent,
    /// The descriptor has changed since.
    pub changed: bool,
    pub handle: Arc<VolumeHandle>,
    /// Free clusters for its next writes.
    pub run: Run,
    /// Of a reserved volume: what space is kept for.
    pub cover: Option<Cover>,
    /// The snapshot that is being taken of it.
    pub settling: Option<Settling>,
    /// Writes wait.
    pub frozen: bool,
    /// How many cores have it open.
    pub users: u32,
}

/// A snapshot whose blocks may still change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settling {
    pub snapshot: u32,
    /// What the volume's head number was.
    pub head: u64,
    /// The grace period after which no write that began before is in flight.
    pub epoch: u64,
    /// No write is in flight any more, and this flush makes them durable: what the snapshot is
    /// read to hold is not undone by power loss.
    pub flush: Option<u64>,
}

impl Volume {
    /// What `descriptor` says, with this tree.
    pub(crate) fn new(descriptor: VolumeDescriptor, root: Root, head: u64) -> Self {
        let handle = VolumeHandle::new(
            (descriptor.id, descriptor.uuid, descriptor.nguid),
            (descriptor.block_bytes, descriptor.bytes),
            descriptor.read_only || descriptor.kind == VolumeKind::Snapshot,
            (root, head),
        );
        let cover = descriptor.reserved.then(|| Cover::new(descriptor.bytes, true));
        Self {
            descriptor,
            extent: Extent::default(),
            changed: true,
            handle: Arc::new(handle),
            run: Run::default(),
            cover,
            settling: None,
            frozen: false,
            users: 0,
        }
    }

    pub(crate) fn root(&self) -> Root {
        self.handle.root.load(Ordering::Relaxed)
    }

    pub(crate) fn head(&self) -> u64 {
        self.handle.head.load(Ordering::Relaxed)
    }

    /// Root and head number.
    pub(crate) fn tree(&self) -> (Root, u64) {
        (self.root(), self.head())
    }

    pub(crate) fn is_snapshot(&self) -> bool {
        self.descriptor.kind == VolumeKind::Snapshot
    }
}
