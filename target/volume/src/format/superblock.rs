//! The superblock: which pool and device this is, and where everything else begins.
//!
//! Each device has two copies of it, and each copy two places that are written in turn. So a write
//! that is torn leaves the one before, and the copies lie 32 KiB apart, in different flash pages.

use std::mem::offset_of;

use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    CHECKED_BYTES, Extent, ExtentRaw, FormatError, PAGE_BYTES, Part, U32, U64, check_crc,
    decode_name, encode_name, is_data_cluster, put_own_crc, wrong_length,
};
use crate::limits::{
    CLUSTER_BLOCKS, DEVICE_SHIFT, MAX_DEVICE_CLUSTERS, MAX_DEVICES, MAX_JOURNAL_BLOCKS,
    MAX_NAME_BYTES,
};

/// Offsets of the places on a device: copy 0 for even and odd generations, then copy 1.
pub const SLOTS: [u64; 4] = [0, 4096, 32768, 36864];

/// Version of the format. Feature bits say what comes; this changes if they do not suffice.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"FOREBAY\n";
/// Feature bits that this release knows: none are taken yet.
const KNOWN: Features = Features { compatible: 0, read_only_compatible: 0, incompatible: 0 };
/// Flag of a device: it is in the pool. Without it, the number is free.
const PRESENT: u32 = 1 << 0;

/// Where both copies of the superblock of this generation go.
pub fn slots(generation: u64) -> [u64; 2] {
    let odd = (generation % 2) as usize;
    [SLOTS[odd], SLOTS[2 + odd]]
}

/// A pool as one of its devices knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The pool.
    pub pool: Uuid,
    /// This device.
    pub device: Uuid,
    /// Its number: the upper bits of its clusters' numbers, and its place in `devices`.
    pub device_index: u8,
    /// Device numbers in use, or once used: as many as `devices`.
    pub device_count: u8,
    /// The devices by their numbers.
    pub devices: Vec<DeviceSlot>,
    /// Bytes of the largest logical block of the devices: all I/O is in multiples of it.
    pub block_bytes: u32,
    /// The pool's name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created_s: u64,
    /// Counts superblocks; the highest that is valid counts.
    pub generation: u64,
    /// Counts the times that the pool was opened; part of every journal block.
    pub incarnation: u64,
    /// Who may open it.
    pub state: PoolState,
    /// What a reader has to know.
    pub features: Features,
    /// The two copies of the journal.
    pub journal: [JournalArea; 2],
    /// Sequence number of the first journal block to replay.
    pub journal_start: u64,
    /// The two copies of the catalog. Both absent: there are no volumes.
    pub catalog: [Extent; 2],
    /// The number that the next volume or snapshot gets. Numbers are not given twice.
    pub next_volume: u32,
}

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlot {
    /// The device that has it, or had it.
    pub uuid: Uuid,
    /// Its clusters, the first one included.
    pub clusters: u32,
    /// Whether it is in the pool still.
    pub present: bool,
}

/// Where a copy of the journal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalArea {
    /// Its first cluster; it goes on in those that follow.
    pub first_cluster: u32,
    /// Its 4 KiB blocks.
    pub blocks: u32,
}

/// What may be done with a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// In use, or was when its target ended.
    Open,
    /// Given up in order: may be imported elsewhere.
    Exported,
    /// Gone. Its devices are free.
    Destroyed,
}

/// Bits for what later releases add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Features {
    /// May be ignored. Who writes the pool without knowing a bit clears it.
    pub compatible: u64,
    /// The pool may be read by who does not know them, and not written.
    pub read_only_compatible: u64,
    /// The pool may not even be read by who does not know them.
    pub incompatible: u64,
}

impl Features {
    /// Bits that forbid this release to write.
    pub fn unknown_read_only(&self) -> u64 {
        self.read_only_compatible & !KNOWN.read_only_compatible
    }
}

impl Superblock {
    /// The bytes. Compatible features that this release does not know are not in them.
    pub fn encode(&self) -> Box<[u8; PAGE_BYTES]> {
        let (name, name_bytes) = encode_name(&self.name);
        let mut raw = SuperblockRaw {
            magic: MAGIC,
            version: U32::new(VERSION),
            block_bytes: U32::new(self.block_bytes),
            compatible: U64::new(self.features.compatible & KNOWN.compatible),
            read_only_compatible: U64::new(self.features.read_only_compatible),
            incompatible: U64::new(self.features.incompatible),
            generation: U64::new(self.generation),
            incarnation: U64::new(self.incarnation),
            pool: self.pool.into_bytes(),
            device: self.device.into_bytes(),
            created_s: U64::new(self.created_s),
            journal_start: U64::new(self.journal_start),
            journal: self.journal.map(JournalArea::to_raw),
            catalog: self.catalog.map(Extent::to_raw),
            next_volume: U32::new(self.next_volume),
            state: self.state.to_raw(),
            device_index: self.device_index,
            device_count: self.device_count,
            name_bytes,
            name,
            ..SuperblockRaw::new_zeroed()
        };
        for (slot, device) in raw.devices.iter_mut().zip(&self.devices) {
            *slot = device.to_raw();
        }
        let mut bytes = Box::new(zerocopy::transmute!(raw));
        put_own_crc(&mut bytes);
        let decoded = Superblock::decode(&bytes[..]);
        assert!(decoded.is_ok(), "a superblock that cannot be read: {decoded:?}");
        assert!(self.devices.len() == usize::from(self.device_count));
        assert!(self.features.unknown_read_only() == 0, "a pool that may only be read");
        bytes
    }

    /// Reads and checks the bytes of one place.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, FormatError> {
        let part = Part::Superblock;
        let Ok(raw) = SuperblockRaw::ref_from_bytes(bytes) else {
            return Err(wrong_length(part, bytes, PAGE_BYTES));
        };
        if raw.magic != MAGIC {
            return Err(FormatError::Magic { part, found: u64::from_be_bytes(raw.magic) });
        }
        check_crc(part, &bytes[..CHECKED_BYTES], raw.crc.get())?;
        // These stay where they are in every version, so that any release can say why it refuses.
        if raw.version.get() != VERSION {
            return Err(FormatError::Version { version: raw.version.get(), known: VERSION });
        }
        let bits = raw.incompatible.get() & !KNOWN.incompatible;
        if bits != 0 {
            return Err(FormatError::Incompatible { bits });
        }
        let superblock = raw.to_superblock()?;
        superblock.check()?;
        Ok(superblock)
    }

    /// Whether this cluster number is of a device of the pool, within it, and not its first.
    pub fn has_cluster(&self, cluster: u32) -> bool {
        self.has_clusters(cluster, 1)
    }

    /// Whether these pages are all in clusters of one device of the pool.
    pub fn has_extent(&self, extent: &Extent) -> bool {
        if !extent.is_valid() || extent.is_absent() {
            return false;
        }
        let cluster_blocks = u64::from(CLUSTER_BLOCKS);
        let end = (extent.page + u64::from(extent.pages)).div_ceil(cluster_blocks);
        self.has_clusters(extent.cluster(), (end - u64::from(extent.cluster())) as u32)
    }

    fn has_clusters(&self, first: u32, count: u32) -> bool {
        let place = first & (MAX_DEVICE_CLUSTERS - 1);
        let device = self.devices.get((first >> DEVICE_SHIFT) as usize);
        is_data_cluster(first)
            && device.is_some_and(|device| {
                device.present && u64::from(place) + u64::from(count) <= u64::from(device.clusters)
            })
    }

    /// Checks what one field alone does not show.
    fn check(&self) -> Result<(), FormatError> {
        let own = self.devices.get(usize::from(self.device_index));
        if !own.is_some_and(|own| own.present && own.uuid == self.device) {
            let at = offset_of!(SuperblockRaw, device_index);
            return Err(field("device_index", at, self.device_index));
        }
        let present = || self.devices.iter().enumerate().filter(|(_, device)| device.present);
        for (index, device) in present() {
            if present().any(|(other, twin)| other < index && twin.uuid == device.uuid) {
                return Err(field("device twice", device_at(index), index as u64));
            }
        }
        for (index, area) in self.journal.iter().enumerate() {
            let at = offset_of!(SuperblockRaw, journal) + index * size_of::<JournalAreaRaw>();
            if area.blocks != self.journal[0].blocks
                || !(1..=MAX_JOURNAL_BLOCKS).contains(&area.blocks)
            {
                return Err(field("journal blocks", at + size_of::<U32>(), area.blocks));
            }
            if !self.has_clusters(area.first_cluster, area.clusters()) {
                return Err(field("journal first_cluster", at, area.first_cluster));
            }
        }
        let [one, two] = self.journal;
        if one.first_cluster.abs_diff(two.first_cluster) < one.clusters() {
            let at = offset_of!(SuperblockRaw, journal);
            return Err(field("journal copies overlap", at, one.first_cluster));
        }
        for (index, extent) in self.catalog.iter().enumerate() {
            if !extent.is_absent() && !self.has_extent(extent) {
                let Extent { page, pages, .. } = *extent;
                return Err(FormatError::Extent {
                    part: Part::Superblock,
                    at: catalog_at(index),
                    page,
                    pages,
                });
            }
        }
        let [one, two] = self.catalog;
        if !one.is_absent() && !two.is_absent() && (one.pages, one.crc) != (two.pages, two.crc) {
            return Err(field("crc of the catalog's copies differs", catalog_at(1), two.crc));
        }
        Ok(())
    }
}

impl JournalArea {
    /// The clusters that it takes.
    pub fn clusters(&self) -> u32 {
        self.blocks.div_ceil(CLUSTER_BLOCKS)
    }

    /// The page of the block with this sequence number: the area is a ring.
    pub fn page(&self, sequence: u64) -> u64 {
        let first = u64::from(self.first_cluster) * u64::from(CLUSTER_BLOCKS);
        first + sequence % u64::from(self.blocks)
    }

    fn to_raw(self) -> JournalAreaRaw {
        JournalAreaRaw {
            first_cluster: U32::new(self.first_cluster),
            blocks: U32::new(self.blocks),
        }
    }
}

impl DeviceSlot {
    fn to_raw(self) -> DeviceSlotRaw {
        DeviceSlotRaw {
            uuid: self.uuid.into_bytes(),
            clusters: U32::new(self.clusters),
            flags: U32::new(if self.present { PRESENT } else { 0 }),
            reserved: [0; 8],
        }
    }
}

impl PoolState {
    fn to_raw(self) -> u8 {
        match self {
            PoolState::Open => 1,
            PoolState::Exported => 2,
            PoolState::Destroyed => 3,
        }
    }

    fn from_raw(raw: u8) -> Option<PoolState> {
        match raw {
            1 => Some(PoolState::Open),
            2 => Some(PoolState::Exported),
            3 => Some(PoolState::Destroyed),
            _ => None,
        }
    }
}

/// A superblock on disk. Reserved bytes are written as zeroes and not looked at.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SuperblockRaw {
    magic: [u8; 8],
    version: U32,
    block_bytes: U32,
    compatible: U64,
    read_only_compatible: U64,
    incompatible: U64,
    generation: U64,
    incarnation: U64,
    pool: [u8; 16],
    device: [u8; 16],
    created_s: U64,
    journal_start: U64,
    journal: [JournalAreaRaw; 2],
    catalog: [ExtentRaw; 2],
    next_volume: U32,
    state: u8,
    device_index: u8,
    device_count: u8,
    name_bytes: u8,
    name: [u8; MAX_NAME_BYTES + 1],
    reserved: [u8; 32],
    devices: [DeviceSlotRaw; MAX_DEVICES],
    more_reserved: [u8; 3320],
    crc: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DeviceSlotRaw {
    uuid: [u8; 16],
    clusters: U32,
    flags: U32,
    reserved: [u8; 8],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct JournalAreaRaw {
    first_cluster: U32,
    blocks: U32,
}

const _: () = assert!(size_of::<SuperblockRaw>() == PAGE_BYTES);
const _: () = assert!(offset_of!(SuperblockRaw, incompatible) == 32);
const _: () = assert!(offset_of!(SuperblockRaw, journal) == 104);
const _: () = assert!(offset_of!(SuperblockRaw, catalog) == 120);
const _: () = assert!(offset_of!(SuperblockRaw, name) == 160);
const _: () = assert!(offset_of!(SuperblockRaw, devices) == 256);
const _: () = assert!(offset_of!(SuperblockRaw, crc) == 4088);
const _: () = assert!(size_of::<DeviceSlotRaw>() == 32 && size_of::<JournalAreaRaw>() == 8);

impl SuperblockRaw {
    /// The fields, each checked for itself.
    fn to_superblock(self) -> Result<Superblock, FormatError> {
        if !matches!(self.block_bytes.get(), 512 | 4096) {
            let at = offset_of!(SuperblockRaw, block_bytes);
            return Err(field("block_bytes", at, self.block_bytes.get()));
        }
        let Some(state) = PoolState::from_raw(self.state) else {
            return Err(field("state", offset_of!(SuperblockRaw, state), self.state));
        };
        let Some(slots) = self.devices.get(..usize::from(self.device_count)) else {
            let at = offset_of!(SuperblockRaw, device_count);
            return Err(field("device_count", at, self.device_count));
        };
        let devices =
            slots.iter().enumerate().map(|(i, raw)| raw.to_slot(i)).collect::<Result<_, _>>()?;
        let name_at = offset_of!(SuperblockRaw, name);
        let extent = |i: usize| {
            let max_pages = u32::from(u16::MAX);
            Extent::from_raw(&self.catalog[i], Part::Superblock, catalog_at(i), max_pages)
        };
        Ok(Superblock {
            pool: Uuid::from_bytes(self.pool),
            device: Uuid::from_bytes(self.device),
            device_index: self.device_index,
            device_count: self.device_count,
            devices,
            block_bytes: self.block_bytes.get(),
            name: decode_name(Part::Superblock, name_at, &self.name, self.name_bytes)?,
            created_s: self.created_s.get(),
            generation: self.generation.get(),
            incarnation: self.incarnation.get(),
            state,
            features: Features {
                compatible: self.compatible.get(),
                read_only_compatible: self.read_only_compatible.get(),
                incompatible: self.incompatible.get(),
            },
            journal: self.journal.map(|area| JournalArea {
                first_cluster: area.first_cluster.get(),
                blocks: area.blocks.get(),
            }),
            journal_start: self.journal_start.get(),
            catalog: [extent(0)?, extent(1)?],
            next_volume: self.next_volume.get(),
        })
    }
}

impl DeviceSlotRaw {
    fn to_slot(self, index: usize) -> Result<DeviceSlot, FormatError> {
        let at = device_at(index);
        let (clusters, flags) = (self.clusters.get(), self.flags.get());
        if clusters > MAX_DEVICE_CLUSTERS {
            return Err(field("clusters", at + offset_of!(DeviceSlotRaw, clusters), clusters));
        }
        if flags & !PRESENT != 0 {
            return Err(field("flags", at + offset_of!(DeviceSlotRaw, flags), flags));
        }
        Ok(DeviceSlot {
            uuid: Uuid::from_bytes(self.uuid),
            clusters,
            present: flags & PRESENT != 0,
        })
    }
}

fn device_at(index: usize) -> usize {
    offset_of!(SuperblockRaw, devices) + index * size_of::<DeviceSlotRaw>()
}

fn catalog_at(index: usize) -> usize {
    offset_of!(SuperblockRaw, catalog) + index * size_of::<ExtentRaw>()
}

fn field(field: &'static str, at: usize, value: impl Into<u64>) -> FormatError {
    FormatError::Field { part: Part::Superblock, field, at, value: value.into() }
}
