//! Checking a pool that is not open: everything is read, replayed in memory and compared, and
//! nothing is written.
//!
//! Counts are not on the devices, and so cannot be wrong there; nor is there a list of what is
//! free, from which something could be missing. What can be wrong is what is named: a page that
//! does not verify, one that two name, data where metadata is, a record that makes no sense.

use std::sync::Arc;

use bdev::Bdev;
use dma::{DmaBuffer, Pool as Memory};
use uuid::Uuid;

use super::journal::place;
use super::load::Loader;
use super::planted::Bugs;
use super::recover::{GiveUp, OpenOptions, Recovery, checkpoint, find_devices, open};
use super::{Call, Owner};
use crate::format::{JournalArea, PAGE_BYTES, PoolState, Superblock, decode_block, slots};
use crate::map::Map;
use crate::pool::PoolError;
use crate::shared::Shared;
use crate::wait::{SyncDevice, buffer};

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The pool's name.
    pub pool: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// What its newest superblock says.
    pub state: PoolState,
    /// Volumes and snapshots, damaged ones too.
    pub volumes: usize,
    /// Journal blocks that were replayed.
    pub replayed: u64,
    /// What is wrong.
    pub faults: Vec<Finding>,
    /// Copies that are missing as a crash may leave them. The next opening writes them anew.
    pub notes: Vec<String>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The volumes and snapshots that it closes; none if it closes none, or all.
    pub volumes: Vec<String>,
    /// What it is, and where.
    pub what: String,
    /// There is another copy: a new checkpoint makes it good.
    pub repairable: bool,
}

impl Report {
    fn fault(&mut self, volumes: Vec<String>, what: String) {
        self.faults.push(Finding { volumes, what, repairable: false });
    }

    /// What volumes are closed for: a new checkpoint would not bring them back.
    pub fn is_repairable(&self) -> bool {
        self.faults.iter().all(|fault| fault.repairable)
    }
}

/// Checks a pool on its devices, in any order. Nobody else may have it. Nothing is written.
///
/// # Errors
/// A device is missing, foreign or does not work. What is damaged is no error but in the report.
pub fn check(bdevs: &[Arc<dyn Bdev>], mut memory: Memory) -> Result<Report, PoolError> {
    let io = buffer(&mut memory)?;
    let (superblock, _, mut devices) = find_devices(bdevs, &io)?;
    let mut report = Report {
        pool: superblock.name.clone(),
        uuid: superblock.pool,
        state: superblock.state,
        volumes: 0,
        replayed: 0,
        faults: Vec::new(),
        notes: Vec::new(),
    };
    check_superblocks(&mut report, &superblock, &mut devices, &io);
    let shared = Arc::new(Shared::new(Arc::new(Map::new()), 1));
    let mut owner = Owner::empty(shared, superblock, memory, Bugs::default())?;
    let mut recovery = Recovery { owner: &mut owner, devices: &mut devices, io: &io };
    match inspect(&mut recovery, &mut report) {
        // It closes the whole pool.
        Err(PoolError::Damaged { reason, .. }) => report.fault(Vec::new(), reason),
        other => other?,
    }
    owner.memory.free(io);
    Ok(report)
}

/// Writes anew all that a pool has, both copies of everything, and closes it in order. Nobody else
/// may have it.
///
/// # Errors
/// As [`open`](super::recover::open) with [`GiveUp::None`]: nothing has been written then.
pub fn repair(bdevs: &[Arc<dyn Bdev>], memory: Memory) -> Result<(), PoolError> {
    let options = OpenOptions { lanes: 1, memory, give_up: GiveUp::None, planted: None };
    let mut lanes = open(bdevs, options)?;
    lanes.iter_mut().try_for_each(|lane| checkpoint(lane, Call::Export))
}

/// All copies of the newest superblock: on each device, two.
fn check_superblocks(
    report: &mut Report,
    newest: &Superblock,
    devices: &mut [Option<SyncDevice>],
    io: &DmaBuffer,
) {
    for device in devices.iter_mut().flatten() {
        for offset in slots(newest.generation) {
            let mut page = [0; PAGE_BYTES];
            let why = match device.read(offset, &mut page, io) {
                Err(error) => error.to_string(),
                Ok(()) => match Superblock::decode(&page) {
                    Ok(found) if found.generation == newest.generation => continue,
                    Ok(found) => format!("it is of generation {}", found.generation),
                    Err(error) => error.to_string(),
                },
            };
            let device = device.name();
            report.notes.push(format!("{device}: a copy of the superblock at {offset}: {why}"));
        }
    }
}

fn inspect(recovery: &mut Recovery<'_>, report: &mut Report) -> Result<(), PoolError> {
    let mut loader = Loader::new(recovery.devices, recovery.io);
    loader.load(recovery.owner)?;
    let (copies, lost) = (loader.bad_copies, loader.lost);
    for what in copies {
        report.faults.push(Finding { volumes: Vec::new(), what, repairable: true });
    }
    recovery.owner.count();
    let owner = &*recovery.owner;
    report.volumes = owner.volumes.len() + owner.damaged.len();
    for (node, bad) in lost {
        let named = owner
            .damaged
            .iter()
            .filter(|damaged| damaged.root.is_some_and(|root| owner.tree.reaches(root, node)));
        report.fault(named.map(|damaged| damaged.entry.name.clone()).collect(), bad.why);
    }
    for damaged in &owner.damaged {
        let name = &damaged.entry.name;
        if !report.faults.iter().any(|fault| fault.volumes.contains(name)) {
            report.fault(vec![name.clone()], damaged.why.clone());
        }
    }
    let (blocks, closed_up_to) = recovery.read_journal()?;
    report.replayed = blocks.len() as u64;
    check_journal(report, recovery);
    recovery.replay(&blocks, closed_up_to)?;
    recovery.settle(blocks.len() as u64);
    for what in recovery.owner.check_counts() {
        report.fault(Vec::new(), what);
    }
    Ok(())
}

/// Both copies of each block that is replayed.
fn check_journal(report: &mut Report, recovery: &mut Recovery<'_>) {
    let superblock = recovery.owner.superblock.clone();
    let first = superblock.journal_start;
    for (copy, area) in superblock.journal.iter().enumerate() {
        let valid = |sequence: &u64| recovery.has_block(area, *sequence, &superblock);
        let count = (first..first + report.replayed).filter(valid).count() as u64;
        if count < report.replayed {
            let missing = report.replayed - count;
            report.notes.push(format!("copy {copy} of the journal lacks {missing} blocks"));
        }
    }
}

impl Recovery<'_> {
    /// Whether an area has a block of this number.
    fn has_block(&mut self, area: &JournalArea, sequence: u64, superblock: &Superblock) -> bool {
        let place = place(area, sequence);
        let mut page = [0; PAGE_BYTES];
        let Some(device) = &mut self.devices[place.device()] else { return false };
        let read = device.read(place.byte(), &mut page, self.io);
        let block = decode_block(&page, &superblock.pool, superblock.incarnation);
        read.is_ok() && block.is_ok_and(|(header, _)| header.sequence == sequence)
    }
}
