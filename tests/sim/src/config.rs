//! What a run is to be like; all of it may follow from the seed.

use volume::Planted;

use crate::device::{Deallocated, DeviceConfig, Faults};
use crate::random::Random;
use crate::spread::Spread;

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
    /// Clusters of a volume at most, and how far apart they are.
    pub volume_clusters: u64,
    /// See there.
    pub spread: Spread,
    /// So many of 16 I/Os are flushes, and so many of 6 writes are FUA.
    pub flushes: u64,
    /// So many of 16 changes are deallocates and write zeroes.
    pub clears: u64,
    /// Of eight clears so many are of whole clusters.
    pub whole_clears: u64,
    /// All I/Os are on so many bytes at the beginning of a volume; 0: they are anywhere.
    pub hot_bytes: u64,
    /// At one turn in so many a checkpoint is asked for, whatever else goes on; 0: at none.
    pub checkpoints: u64,
    /// The first life is attacked at one step in so many.
    pub one_in: u64,
    /// One recovery in so many is attacked.
    pub recoveries_one_in: u64,
    /// What goes wrong, on which device, in the first life once the pool is open.
    pub faults: Vec<(usize, Faults)>,
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
        // In a large volume every few blocks have a leaf for themselves, or a directory.
        let spread = *random.pick(&[0, 0, 0, 0, 0, 32 << 20, 32 << 30, 1 << 40]);
        let is_tight = is_tight && spread == 0;
        // In a crowded one all I/Os meet in a few blocks.
        let is_crowded = random.one_in(3);
        let mib = match (is_tight, spread) {
            (true, _) => 2,
            (false, 0) => 8 / count + 4,
            (false, _) => 16 / count + 4,
        };
        let volatile_write_cache = !random.one_in(6);
        let deallocated =
            *random.pick(&[Deallocated::Kept, Deallocated::Garbage, Deallocated::Zeroes]);
        // Where all take as long, none overtakes another.
        let latency = *random.pick(&[None, None, None, None, None, None, Some(5), Some(25)]);
        let device = |_| DeviceConfig {
            bytes: mib << 20,
            block_bytes,
            volatile_write_cache,
            deallocated,
            depth: *random.pick(&[4, 16, 64]),
            latency,
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
            spread: Spread(spread),
            whole_clears: *random.pick(&[0, 4, 4, 8]),
            hot_bytes: *random.pick(&[0, 0, 0, 32 << 10]),
            checkpoints: *random.pick(&[0, 0, 0, 1000]),
            // Devices that change take many steps.
            one_in: if changes_devices { 1024 } else { 256 },
            recoveries_one_in: 8,
            faults: Vec::new(),
            planted: None,
        }
    }
}
