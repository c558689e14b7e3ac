//! What a run is to be like; all of it may follow from the seed.

use volume::Planted;

use crate::device::{Deallocated, DeviceConfig, Faults};
use crate::random::Random;

/// A run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The pool's devices.
    pub devices: Vec<DeviceConfig>,
    /// Devices that may come to it.
    pub spares: Vec<DeviceConfig>,
    /// Devices come, grow and go.
    pub changes_devices: bool,
    /// Cores.
    pub lanes: usize,
    /// Bytes of each copy of the journal.
    pub journal_bytes: u64,
    /// I/Os and calls of the first life.
    pub operations: u64,
    /// Volumes and snapshots at most.
    pub objects: usize,
    /// Clusters of a volume at most.
    pub volume_clusters: u64,
    /// So many of 16 I/Os are flushes, and so many of 6 writes are FUA.
    pub flushes: u64,
    /// So many of 16 changes are deallocates and write zeroes.
    pub clears: u64,
    /// The first life is attacked at one step in so many.
    pub one_in: u64,
    /// One recovery in so many is attacked.
    pub recoveries_one_in: u64,
    /// A bug to be found.
    pub planted: Option<Planted>,
}

impl Config {
    /// In every third pool the devices change.
    fn changes(seed: u64, devices: &[DeviceConfig]) -> (bool, Vec<DeviceConfig>) {
        let mut random = Random::of(&[seed, 4]);
        if !random.one_in(3) {
            return (false, Vec::new());
        }
        let spare = |_| DeviceConfig { bytes: 4 << 20, ..devices[0].clone() };
        (true, (0..1 + random.below(2)).map(spare).collect())
    }

    /// Small pools of all kinds, with all that may happen in them.
    pub fn from_seed(seed: u64) -> Self {
        let mut random = Random::of(&[seed, 1]);
        let block_bytes = *random.pick(&[512, 4096, 4096]);
        let count = *random.pick(&[1, 1, 2, 2, 3]);
        // In a tight pool a cluster is used again as soon as it is free.
        let is_tight = random.one_in(2);
        // In a crowded one all I/Os meet in a few blocks.
        let is_crowded = random.one_in(3);
        let mib = if is_tight { 2 } else { 8 / count + 4 };
        let volatile_write_cache = !random.one_in(6);
        let deallocated =
            *random.pick(&[Deallocated::Kept, Deallocated::Garbage, Deallocated::Zeroes]);
        let device = |_| DeviceConfig {
            bytes: mib << 20,
            block_bytes,
            volatile_write_cache,
            deallocated,
            depth: *random.pick(&[4, 16, 64]),
            slow_flushes: 1,
            faults: Faults::default(),
        };
        let devices: Vec<DeviceConfig> = (0..count).map(device).collect();
        let (changes_devices, spares) = Self::changes(seed, &devices);
        Self {
            devices,
            spares,
            changes_devices,
            lanes: *random.pick(&[1, 2, 2, 3, 4]),
            journal_bytes: 256 << 10,
            operations: 400,
            objects: match (is_crowded, is_tight) {
                (true, _) => 3,
                (false, true) => 3 + count as usize,
                (false, false) => 8,
            },
            volume_clusters: match (is_crowded, is_tight) {
                (true, _) => 1,
                (false, true) => 3,
                (false, false) => 8,
            },
            flushes: 1,
            clears: *random.pick(&[1, 2, 6]),
            one_in: 256,
            recoveries_one_in: 8,
            planted: None,
        }
    }
}
