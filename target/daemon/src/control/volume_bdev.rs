//! Volumes and snapshots among the block devices: what can be asked of them, not how they are
//! reached, which is by the lanes of their pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bdev::{Bdev, BdevError, Channel, Geometry, Health};
use uuid::Uuid;
use volume::VolumeInfo;
use volume::format::VolumeKind;

/// A volume or snapshot of a pool that is open.
pub(super) struct VolumeBdev {
    /// `POOL/NAME`.
    name: String,
    pub(super) kind: VolumeKind,
    uuid: Uuid,
    pub(super) read_only: bool,
    block_bytes: u32,
    block_count: AtomicU64,
    /// A device of its pool has a cache that is lost at power loss.
    cache: bool,
    /// Of its pool: it has failed.
    lost: Arc<AtomicBool>,
}

impl VolumeBdev {
    pub(super) fn new(pool: &str, info: &VolumeInfo, cache: bool, lost: &Arc<AtomicBool>) -> Self {
        Self {
            name: format!("{pool}/{}", info.name),
            kind: info.kind,
            uuid: info.uuid,
            read_only: info.read_only,
            block_bytes: info.block_bytes,
            block_count: AtomicU64::new(info.bytes / u64::from(info.block_bytes)),
            cache,
            lost: Arc::clone(lost),
        }
    }

    pub(super) fn resize(&self, bytes: u64) {
        self.block_count.store(bytes / u64::from(self.block_bytes), Ordering::Relaxed);
    }
}

impl Bdev for VolumeBdev {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        match self.kind {
            VolumeKind::Volume => "volume",
            VolumeKind::Snapshot => "snapshot",
        }
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_bytes: self.block_bytes,
            block_count: self.block_count.load(Ordering::Relaxed),
            volatile_write_cache: self.cache,
            deallocate_reads_zeroes: true,
            atomic_write_blocks: 1,
            preferred_write_blocks: volume::limits::BLOCK_BYTES / self.block_bytes,
        }
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn health(&self) -> Health {
        if self.lost.load(Ordering::Relaxed) { Health::Failed } else { Health::Live }
    }

    fn open_channel(&self, _: usize) -> Result<Box<dyn Channel>, BdevError> {
        let reason = "a volume is reached by the lanes of its pool".to_owned();
        Err(BdevError::Invalid { name: self.name.clone(), reason })
    }
}
