//! Making, finding and opening pools. All of it waits for devices.

use std::fmt;
use std::sync::Arc;

use bdev::{Bdev, BdevError, Channel};
use dma::Pool as Memory;
use nvme_spec::status::Status;
use thiserror::Error;
use uuid::Uuid;

use crate::format::{
    DeviceSlot, Extent, Features, FormatError, JournalArea, PAGE_BYTES, Part, PoolState, SLOTS,
    Superblock, is_name, slots,
};
use crate::limits::{
    CLUSTER_BLOCKS, CLUSTER_BYTES, DEVICE_SHIFT, MAX_DEVICE_CLUSTERS, MAX_DEVICES,
    MAX_JOURNAL_BYTES, MIN_DEVICE_CLUSTERS, MIN_JOURNAL_BYTES,
};
use crate::wait::{SyncDevice, buffer};

/// Why a pool cannot be made or opened.
#[derive(Debug, Error)]
pub enum PoolError {
    /// A device does not open.
    #[error(transparent)]
    Bdev(#[from] BdevError),
    /// A device does not read or write.
    #[error("{device}: I/O at byte {byte} failed: {status:?}")]
    Io {
        /// The device.
        device: String,
        /// Where.
        byte: u64,
        /// What it said.
        status: Status,
    },
    /// A device holds something.
    #[error("{device} is not empty; if nothing on it is needed any more, use --force")]
    NotEmpty {
        /// The device.
        device: String,
    },
    /// A device belongs to a pool.
    #[error("{device} belongs to pool {pool}; destroy that, or use --force")]
    Member {
        /// The device.
        device: String,
        /// The pool's name.
        pool: String,
    },
    /// A device is too small, too large, or has blocks that do not fit.
    #[error("{device}: {reason}")]
    Device {
        /// The device.
        device: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No device, or too many.
    #[error("a pool has 1 to {MAX_DEVICES} devices, not {count}")]
    Count {
        /// How many were given.
        count: usize,
    },
    /// Not a name.
    #[error("{name:?} is no name: letters, digits, and . _ - only")]
    Name {
        /// What was given.
        name: String,
    },
    /// A size of the journal that cannot be.
    #[error(
        "a journal of {bytes} bytes is not possible; {MIN_JOURNAL_BYTES} to {MAX_JOURNAL_BYTES}"
    )]
    Journal {
        /// What was given.
        bytes: u64,
    },
    /// A device bears no label of ours.
    #[error("{device} bears no label of a pool: {reason}")]
    NoLabel {
        /// The device.
        device: String,
        /// What is there instead.
        reason: FormatError,
    },
    /// Devices of several pools.
    #[error("{device} belongs to pool {other}, not to {pool}")]
    Foreign {
        /// The device.
        device: String,
        /// Its pool.
        other: String,
        /// That of the others.
        pool: String,
    },
    /// A device is not there.
    #[error("pool {pool}: device {index} (UUID {uuid}) is missing")]
    Missing {
        /// The pool.
        pool: String,
        /// Number of the device in it.
        index: usize,
        /// What to look for.
        uuid: Uuid,
    },
    /// What every volume needs is damaged.
    #[error("pool {pool}: {reason}")]
    Damaged {
        /// The pool.
        pool: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// Volumes are damaged, and are not to be given up.
    #[error("pool {pool}: damaged, and so nothing is written to it: {volumes}")]
    DamagedVolumes {
        /// The pool.
        pool: String,
        /// Their names, with what is wrong.
        volumes: Volumes,
    },
    /// There is no memory for buffers.
    #[error("no buffer of {bytes} bytes; give the daemon more memory")]
    NoMemory {
        /// What was wanted.
        bytes: u32,
    },
}

/// Names of volumes, with what is wrong with each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volumes(pub Vec<(String, String)>);

impl fmt::Display for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, why)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{name} ({why})")?;
        }
        Ok(())
    }
}

/// How a pool is made.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Bytes of each of the two copies of the journal; by default a 64th of the pool, within
    /// limits.
    pub journal_bytes: Option<u64>,
    /// Make it although a device holds something.
    pub force: bool,
    /// When, in seconds since 1970.
    pub created_s: u64,
}

/// What a device says it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The block device.
    pub device: String,
    /// The pool's name.
    pub pool: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Number of the device in it.
    pub index: usize,
    /// Devices that it has.
    pub devices: usize,
    /// Whether this is one of them: it is none if it was removed, or if it was to be added and the
    /// end came before.
    pub member: bool,
    /// Open if a target has the pool, or ended without closing it in order.
    pub state: PoolState,
}

/// A device that may come to a pool, by [`Lane::add_device`](crate::Lane::add_device).
pub struct NewDevice {
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    pub(crate) clusters: u32,
    pub(crate) block_bytes: u32,
    pub(crate) volatile: bool,
    /// One for each lane.
    pub(crate) channels: Vec<Box<dyn Channel>>,
}

/// Makes a pool over devices.
///
/// # Errors
/// A device holds something and `force` was not given, is too small or does not work. Nothing has
/// been written then, unless it is that writing failed.
pub fn create(
    name: &str,
    bdevs: &[Arc<dyn Bdev>],
    options: &CreateOptions,
    memory: &mut Memory,
) -> Result<(), PoolError> {
    if !is_name(name) {
        return Err(PoolError::Name { name: name.to_owned() });
    }
    if bdevs.is_empty() || bdevs.len() > MAX_DEVICES {
        return Err(PoolError::Count { count: bdevs.len() });
    }
    let mut devices = Vec::with_capacity(bdevs.len());
    for bdev in bdevs {
        devices.push(SyncDevice::open(bdev)?);
    }
    let io = buffer(memory)?;
    let made = (|| {
        for device in &mut devices {
            check_device(device, options.force, &io)?;
        }
        let superblock = first_superblock(name, &devices, options)?;
        write_labels(&superblock, devices.iter_mut().enumerate(), &io)
    })();
    memory.free(io);
    made
}

fn check_device(
    device: &mut SyncDevice,
    force: bool,
    io: &dma::DmaBuffer,
) -> Result<(), PoolError> {
    let clusters = device.clusters();
    let name = device.name().to_owned();
    if clusters < u64::from(MIN_DEVICE_CLUSTERS) {
        let least = u64::from(MIN_DEVICE_CLUSTERS) * u64::from(CLUSTER_BYTES);
        let reason = format!("too small: a device of a pool has at least {least} bytes");
        return Err(PoolError::Device { device: name, reason });
    }
    if force {
        return Ok(());
    }
    let mut bytes = vec![0; CLUSTER_BYTES as usize];
    device.read(0, &mut bytes, io)?;
    let labels = SLOTS.iter().map(|at| &bytes[*at as usize..][..PAGE_BYTES]);
    let labels = labels.filter_map(|slot| Superblock::decode(slot).ok());
    let found = labels.max_by_key(|superblock| superblock.generation);
    match found {
        Some(label) if label.state == PoolState::Destroyed => Ok(()),
        Some(label) => Err(PoolError::Member { device: name, pool: label.name }),
        None if bytes.iter().any(|byte| *byte != 0) => Err(PoolError::NotEmpty { device: name }),
        None => Ok(()),
    }
}

fn first_superblock(
    name: &str,
    devices: &[SyncDevice],
    options: &CreateOptions,
) -> Result<Superblock, PoolError> {
    let slots: Vec<DeviceSlot> = (devices.iter())
        .map(|device| DeviceSlot {
            uuid: Uuid::new_v4(),
            clusters: device.clusters().min(u64::from(MAX_DEVICE_CLUSTERS)) as u32,
            present: true,
        })
        .collect();
    let total: u64 = slots.iter().map(|slot| u64::from(slot.clusters)).sum();
    let total = total * u64::from(CLUSTER_BYTES);
    let bytes = match options.journal_bytes {
        Some(bytes) if !(MIN_JOURNAL_BYTES..=MAX_JOURNAL_BYTES).contains(&bytes) => {
            return Err(PoolError::Journal { bytes });
        }
        Some(bytes) => bytes,
        None => (total / 64).clamp(MIN_JOURNAL_BYTES, MAX_JOURNAL_BYTES),
    };
    let clusters = bytes.div_ceil(u64::from(CLUSTER_BYTES)) as u32;
    let blocks = clusters * CLUSTER_BLOCKS;
    // Two copies, on two devices where there are two; behind the superblocks.
    let (second, offset) = if slots.len() > 1 { (1 << DEVICE_SHIFT, 1) } else { (0, 1 + clusters) };
    let journal = [
        JournalArea { first_cluster: 1, blocks },
        JournalArea { first_cluster: second | offset, blocks },
    ];
    let copies: &[usize] = if slots.len() > 1 { &[0, 1] } else { &[0, 0] };
    for (index, slot) in slots.iter().enumerate() {
        let here = copies.iter().filter(|copy| **copy == index).count() as u32;
        if slot.clusters / 2 < 1 + here * clusters {
            let reason = format!("too small for a journal of {bytes} bytes");
            return Err(PoolError::Device { device: devices[index].name().to_owned(), reason });
        }
    }
    Ok(Superblock {
        pool: Uuid::new_v4(),
        device: slots[0].uuid,
        device_index: 0,
        device_count: slots.len() as u8,
        devices: slots,
        block_bytes: devices.iter().map(|d| d.geometry.block_bytes).max().unwrap_or(4096),
        name: name.to_owned(),
        created_s: options.created_s,
        generation: 2,
        incarnation: 1,
        state: PoolState::Exported,
        features: Features::default(),
        journal,
        journal_start: 1,
        catalog: [Extent::default(); 2],
        next_volume: 1,
    })
}

/// Writes the superblock to all slots of these devices, each with its number, durably: older labels
/// are gone then.
fn write_labels<'a>(
    superblock: &Superblock,
    devices: impl Iterator<Item = (usize, &'a mut SyncDevice)>,
    io: &dma::DmaBuffer,
) -> Result<(), PoolError> {
    let last = superblock.generation;
    let mut devices: Vec<_> = devices.collect();
    for generation in [last - 1, last] {
        for (index, device) in &mut devices {
            let index = *index;
            let own = Superblock {
                generation,
                device: superblock.devices[index].uuid,
                device_index: index as u8,
                ..superblock.clone()
            };
            for offset in slots(generation) {
                device.write(offset, &own.encode()[..], io)?;
            }
            device.flush()?;
        }
    }
    Ok(())
}

/// The labels of those devices that bear one. What is said of a pool is what the newest of its
/// superblocks says that are there.
///
/// # Errors
/// A device does not open or read.
pub fn scan(bdevs: &[Arc<dyn Bdev>], memory: &mut Memory) -> Result<Vec<Label>, PoolError> {
    let io = buffer(memory)?;
    let mut found = Vec::new();
    let mut scan = |bdev: &Arc<dyn Bdev>| -> Result<(), PoolError> {
        let mut device = SyncDevice::open(bdev)?;
        if device.clusters() > 0
            && let Ok(superblock) = read_label(&mut device, &io)
        {
            found.push((bdev.name().to_owned(), superblock));
        }
        Ok(())
    };
    let scanned = bdevs.iter().try_for_each(&mut scan);
    memory.free(io);
    scanned?;
    let label = |(device, own): &(String, Superblock)| {
        let same = found.iter().map(|(_, other)| other).filter(|other| other.pool == own.pool);
        let newest = same.reduce(newer).unwrap_or(own);
        let member = newest.devices.iter().position(|slot| slot.present && slot.uuid == own.device);
        Label {
            device: device.clone(),
            pool: newest.name.clone(),
            uuid: newest.pool,
            index: member.unwrap_or(usize::from(own.device_index)),
            devices: newest.devices.iter().filter(|slot| slot.present).count(),
            member: member.is_some(),
            state: newest.state,
        }
    };
    Ok(found.iter().map(label).collect())
}

/// The one of two superblocks of a pool that counts.
pub(crate) fn newer<'a>(a: &'a Superblock, b: &'a Superblock) -> &'a Superblock {
    if a.generation < b.generation { b } else { a }
}

/// Gets a device ready for a pool that is open, which has so many lanes: what it may bear of labels
/// is gone then.
///
/// # Errors
/// It holds something and `force` was not given, is too small or does not work. A label of this
/// very pool is nothing that it holds: the pool is open without it.
pub fn prepare_device(
    bdev: &Arc<dyn Bdev>,
    pool: Uuid,
    lanes: usize,
    force: bool,
    memory: &mut Memory,
) -> Result<NewDevice, PoolError> {
    let mut device = SyncDevice::open(bdev)?;
    let io = buffer(memory)?;
    let prepared = (|| {
        let own = read_label(&mut device, &io).is_ok_and(|label| label.pool == pool);
        check_device(&mut device, force || own, &io)?;
        clear(&mut device, &io)
    })();
    memory.free(io);
    prepared?;
    let clusters = device.clusters().min(u64::from(MAX_DEVICE_CLUSTERS)) as u32;
    let geometry = device.geometry;
    // An SSD may have no more channels than there are lanes.
    drop(device);
    let channels = (0..lanes).map(|core| bdev.open_channel(core)).collect::<Result<_, _>>()?;
    Ok(NewDevice {
        name: bdev.name().to_owned(),
        uuid: Uuid::new_v4(),
        clusters,
        block_bytes: geometry.block_bytes,
        volatile: geometry.volatile_write_cache,
        channels,
    })
}

/// Takes the label from a device that is no longer one of a pool.
///
/// # Errors
/// The device does not work. Its label does not count, whether it is there or not.
pub fn clear_label(bdev: &Arc<dyn Bdev>, memory: &mut Memory) -> Result<(), PoolError> {
    let mut device = SyncDevice::open(bdev)?;
    let io = buffer(memory)?;
    let cleared = clear(&mut device, &io);
    memory.free(io);
    cleared
}

fn clear(device: &mut SyncDevice, io: &dma::DmaBuffer) -> Result<(), PoolError> {
    for offset in SLOTS {
        device.write(offset, &[0; PAGE_BYTES], io)?;
    }
    device.flush()
}

/// Ends a pool that nobody has open: its devices may be used for anything else.
///
/// # Errors
/// A device is missing or does not work. Where that is in the midst of it, the pool does not open
/// any more.
pub fn destroy(bdevs: &[Arc<dyn Bdev>], memory: &mut Memory) -> Result<(), PoolError> {
    let io = buffer(memory)?;
    let destroyed = (|| {
        let (mut superblock, _, mut devices) = find_devices(bdevs, &io)?;
        superblock.state = PoolState::Destroyed;
        superblock.generation += 2;
        let devices = devices.iter_mut().enumerate();
        let devices = devices.filter_map(|(index, device)| Some((index, device.as_mut()?)));
        write_labels(&superblock, devices, &io)
    })();
    memory.free(io);
    destroyed
}

/// The newest valid superblock of a device.
pub(crate) fn read_label(
    device: &mut SyncDevice,
    io: &dma::DmaBuffer,
) -> Result<Superblock, PoolError> {
    let mut best: Option<Superblock> = None;
    let mut reason = None;
    let mut page = [0; PAGE_BYTES];
    for offset in SLOTS {
        // A slot that cannot be read is one that is not there; there are three others.
        if let Err(error) = device.read(offset, &mut page, io) {
            tracing::warn!(%error, "a superblock cannot be read");
            continue;
        }
        match Superblock::decode(&page) {
            Ok(superblock) => {
                if best.as_ref().is_none_or(|best| best.generation < superblock.generation) {
                    best = Some(superblock);
                }
            }
            Err(error) => reason = Some(error),
        }
    }
    let device = device.name().to_owned();
    let none = || FormatError::Length { part: Part::Superblock, bytes: 0, expected: PAGE_BYTES };
    best.ok_or_else(|| PoolError::NoLabel { device, reason: reason.unwrap_or_else(none) })
}

pub use crate::owner::inspect::{Finding, Report, check, repair};
use crate::owner::recover::find_devices;
pub use crate::owner::recover::{GiveUp, OpenOptions, open};
