//! Blocks of the journal, and the records in them.
//!
//! A block is written once, whole: 48 bytes of header, records one behind the other, zeroes, and
//! the CRC-64 of all that. A record is known by its block's sequence number and its index there.

use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    CHECKED_BYTES, FormatError, PAGE_BYTES, Part, U16, U32, U64, check_crc, is_data_cluster,
    put_own_crc, wrong_length,
};
use crate::limits::{MAX_CHANGE_BYTES, MAX_VOLUME_BLOCKS, MAX_VOLUME_CLUSTERS};

/// Bytes of records that a block has room for.
pub const RECORD_BYTES: usize = CHECKED_BYTES - RECORDS_AT;

const MAGIC: [u8; 4] = *b"FBJ1";
/// Where records begin.
const RECORDS_AT: usize = size_of::<HeaderRaw>();

const MAP: u8 = 1;
const CLEAR: u8 = 2;
const CANCEL: u8 = 3;
const CHANGE: u8 = 4;

/// What a block says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// The pool.
    pub pool: Uuid,
    /// Its incarnation that wrote the block.
    pub incarnation: u64,
    /// Its number, one more than that of the block before. The first is 1.
    pub sequence: u64,
    /// The data of all map records in blocks up to this one was durable when this was written.
    pub closed_up_to: u64,
    /// How many records there are.
    pub records: u16,
    /// How many bytes they take.
    pub used: u16,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// Blocks of a volume's entry are in this cluster from here on.
    Map {
        /// The volume.
        volume: u32,
        /// The entry: the volume's cluster index.
        entry: u32,
        /// Which of its blocks.
        mask: u16,
        /// Where they are.
        cluster: u32,
        /// CRC-64 of each of these blocks, in the order of the bits of `mask`, lowest first.
        crcs: &'a [U64],
    },
    /// Blocks of a volume read as zeroes from here on.
    Clear {
        /// The volume.
        volume: u32,
        /// The first block.
        first_block: u64,
        /// How many.
        block_count: u64,
    },
    /// That record never happened: its write failed.
    Cancel {
        /// Sequence number of its block.
        sequence: u64,
        /// Its index there.
        index: u16,
    },
    /// A change of the catalog, in the engine's JSON.
    Change(&'a [u8]),
}

/// The record does not fit in this block; an empty one has room for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal block is full")]
pub struct Full;

/// Fills a block. Its memory is taken once.
#[derive(Debug)]
pub struct BlockBuilder {
    bytes: Box<[u8; PAGE_BYTES]>,
    pool: Uuid,
    incarnation: u64,
    sequence: u64,
    /// Records so far.
    records: u16,
    /// Where the next one goes.
    end: usize,
}

impl BlockBuilder {
    /// An empty block.
    pub fn new(pool: Uuid, incarnation: u64, sequence: u64) -> BlockBuilder {
        let bytes = Box::new([0; PAGE_BYTES]);
        BlockBuilder { bytes, pool, incarnation, sequence, records: 0, end: RECORDS_AT }
    }

    /// Makes it an empty block again, with another number.
    pub fn reset(&mut self, sequence: u64) {
        self.sequence = sequence;
        self.records = 0;
        self.end = RECORDS_AT;
    }

    /// Its number.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How many records it has.
    pub fn len(&self) -> usize {
        usize::from(self.records)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Adds a record and returns its index.
    pub fn push(&mut self, record: &Record<'_>) -> Result<u16, Full> {
        match *record {
            Record::Map { volume, entry, mask, cluster, crcs } => {
                assert!(crcs.len() == mask.count_ones() as usize, "one CRC for each block");
                assert!(mask != 0 && entry < MAX_VOLUME_CLUSTERS && is_data_cluster(cluster));
                let head = MapRaw {
                    kind: MAP,
                    zero: 0,
                    mask: mask.into(),
                    volume: volume.into(),
                    entry: entry.into(),
                    cluster: cluster.into(),
                };
                self.put(head.as_bytes(), crcs.as_bytes())
            }
            Record::Clear { volume, first_block, block_count } => {
                assert!(is_range(first_block, block_count), "{block_count} from {first_block}");
                let head = ClearRaw {
                    kind: CLEAR,
                    zero: [0; 3],
                    volume: volume.into(),
                    first_block: first_block.into(),
                    block_count: block_count.into(),
                };
                self.put(head.as_bytes(), &[])
            }
            Record::Cancel { sequence, index } => {
                let head = CancelRaw {
                    kind: CANCEL,
                    zero: 0,
                    index: index.into(),
                    more_zero: [0; 4],
                    sequence: sequence.into(),
                };
                self.put(head.as_bytes(), &[])
            }
            Record::Change(json) => {
                assert!(json.len() <= MAX_CHANGE_BYTES, "a change of {} bytes", json.len());
                let bytes = U16::new(json.len() as u16);
                self.put(ChangeRaw { kind: CHANGE, zero: 0, bytes }.as_bytes(), json)
            }
        }
    }

    /// Completes the block. Records may still be added and it be completed again, as long as it
    /// was not given to a device.
    pub fn finish(&mut self, closed_up_to: u64) -> &[u8; PAGE_BYTES] {
        assert!(self.sequence > 0 && closed_up_to <= self.sequence);
        let header = HeaderRaw {
            magic: MAGIC,
            used: U16::new((self.end - RECORDS_AT) as u16),
            records: U16::new(self.records),
            sequence: U64::new(self.sequence),
            incarnation: U64::new(self.incarnation),
            closed_up_to: U64::new(closed_up_to),
            pool: self.pool.into_bytes(),
        };
        self.bytes[..RECORDS_AT].copy_from_slice(header.as_bytes());
        self.bytes[self.end..].zero();
        put_own_crc(&mut self.bytes);
        &self.bytes
    }

    fn put(&mut self, head: &[u8], tail: &[u8]) -> Result<u16, Full> {
        let middle = self.end + head.len();
        let end = middle + tail.len();
        if end > CHECKED_BYTES {
            return Err(Full);
        }
        self.bytes[self.end..middle].copy_from_slice(head);
        self.bytes[middle..end].copy_from_slice(tail);
        self.end = end;
        self.records += 1;
        Ok(self.records - 1)
    }
}

/// Reads and checks a block of this incarnation of the pool.
pub fn decode_block<'a>(
    bytes: &'a [u8],
    pool: &Uuid,
    incarnation: u64,
) -> Result<(BlockHeader, Records<'a>), FormatError> {
    let part = Part::JournalBlock;
    let Ok(block) = BlockRaw::ref_from_bytes(bytes) else {
        return Err(wrong_length(part, bytes, PAGE_BYTES));
    };
    let raw = &block.header;
    if raw.magic != MAGIC {
        return Err(FormatError::Magic { part, found: u32::from_be_bytes(raw.magic).into() });
    }
    check_crc(part, &bytes[..CHECKED_BYTES], block.crc.get())?;
    let header = BlockHeader {
        pool: Uuid::from_bytes(raw.pool),
        incarnation: raw.incarnation.get(),
        sequence: raw.sequence.get(),
        closed_up_to: raw.closed_up_to.get(),
        records: raw.records.get(),
        used: raw.used.get(),
    };
    if header.pool != *pool {
        return Err(FormatError::Pool { part, found: header.pool });
    }
    if header.incarnation != incarnation {
        let found = header.incarnation;
        return Err(FormatError::Incarnation { part, found, expected: incarnation });
    }
    if header.sequence == 0 {
        return Err(field("sequence", 8, 0u64));
    }
    if header.closed_up_to > header.sequence {
        return Err(field("closed_up_to", 24, header.closed_up_to));
    }
    let Some(bytes) = block.records.get(..usize::from(header.used)) else {
        return Err(field("used", 4, header.used));
    };
    Ok((header, Records { bytes, at: RECORDS_AT, left: header.records }))
}

/// The records of a block in order. It ends behind the first one that makes no sense.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    /// What has not been read yet.
    bytes: &'a [u8],
    /// Its offset in the block.
    at: usize,
    /// Records that it should have.
    left: u16,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.bytes.is_empty() {
                return None;
            }
            let error = field("bytes behind the last record", self.at, self.bytes.len() as u64);
            self.bytes = &[];
            return Some(Err(error));
        }
        self.left -= 1;
        match decode_record(self.bytes, self.at) {
            Ok((record, rest)) => {
                self.at += self.bytes.len() - rest.len();
                self.bytes = rest;
                Some(Ok(record))
            }
            Err(error) => {
                (self.bytes, self.left) = (&[], 0);
                Some(Err(error))
            }
        }
    }
}

/// The record that these bytes begin with, and what follows it. They are at `at` in the block.
fn decode_record(bytes: &[u8], at: usize) -> Result<(Record<'_>, &[u8]), FormatError> {
    match bytes.first() {
        Some(&MAP) => {
            let (raw, rest) = take::<MapRaw>(bytes, at)?;
            let count = raw.mask.get().count_ones() as usize;
            let Ok((crcs, rest)) = <[U64]>::ref_from_prefix_with_elems(rest, count) else {
                return Err(field("record that is cut off", at, MAP));
            };
            let record = Record::Map {
                volume: raw.volume.get(),
                entry: raw.entry.get(),
                mask: raw.mask.get(),
                cluster: raw.cluster.get(),
                crcs,
            };
            check_zero(&[raw.zero], at)?;
            if count == 0 {
                return Err(field("mask", at + 2, 0u64));
            }
            if raw.entry.get() >= MAX_VOLUME_CLUSTERS {
                return Err(field("entry", at + 8, raw.entry.get()));
            }
            if !is_data_cluster(raw.cluster.get()) {
                return Err(field("cluster", at + 12, raw.cluster.get()));
            }
            Ok((record, rest))
        }
        Some(&CLEAR) => {
            let (raw, rest) = take::<ClearRaw>(bytes, at)?;
            let (first_block, block_count) = (raw.first_block.get(), raw.block_count.get());
            check_zero(&raw.zero, at)?;
            if !is_range(first_block, block_count) {
                return Err(field("block_count", at + 16, block_count));
            }
            Ok((Record::Clear { volume: raw.volume.get(), first_block, block_count }, rest))
        }
        Some(&CANCEL) => {
            let (raw, rest) = take::<CancelRaw>(bytes, at)?;
            check_zero(&[raw.zero], at)?;
            check_zero(&raw.more_zero, at)?;
            Ok((Record::Cancel { sequence: raw.sequence.get(), index: raw.index.get() }, rest))
        }
        Some(&CHANGE) => {
            let (raw, rest) = take::<ChangeRaw>(bytes, at)?;
            check_zero(&[raw.zero], at)?;
            let count = usize::from(raw.bytes.get());
            if count > MAX_CHANGE_BYTES {
                return Err(field("bytes of a change", at + 2, raw.bytes.get()));
            }
            let Some((json, rest)) = rest.split_at_checked(count) else {
                return Err(field("record that is cut off", at, CHANGE));
            };
            Ok((Record::Change(json), rest))
        }
        Some(&kind) => Err(field("kind of record", at, kind)),
        None => Err(field("record that is missing", at, 0u64)),
    }
}

fn take<T: FromBytes + Immutable + KnownLayout + Unaligned>(
    bytes: &[u8],
    at: usize,
) -> Result<(&T, &[u8]), FormatError> {
    T::ref_from_prefix(bytes).map_err(|_| field("record that is cut off", at, bytes[0]))
}

/// Whether these are blocks that a volume may have, and at least one.
fn is_range(first_block: u64, block_count: u64) -> bool {
    let end = first_block.checked_add(block_count);
    block_count > 0 && end.is_some_and(|end| end <= MAX_VOLUME_BLOCKS)
}

fn check_zero(bytes: &[u8], at: usize) -> Result<(), FormatError> {
    match bytes.iter().find(|byte| **byte != 0) {
        Some(byte) => Err(field("unused byte of the record", at, *byte)),
        None => Ok(()),
    }
}

fn field(field: &'static str, at: usize, value: impl Into<u64>) -> FormatError {
    FormatError::Field { part: Part::JournalBlock, field, at, value: value.into() }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderRaw {
    magic: [u8; 4],
    used: U16,
    records: U16,
    sequence: U64,
    incarnation: U64,
    closed_up_to: U64,
    pool: [u8; 16],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BlockRaw {
    header: HeaderRaw,
    records: [u8; RECORD_BYTES],
    crc: U64,
}

/// One CRC-64 for each bit of the mask follows.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MapRaw {
    kind: u8,
    zero: u8,
    mask: U16,
    volume: U32,
    entry: U32,
    cluster: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ClearRaw {
    kind: u8,
    zero: [u8; 3],
    volume: U32,
    first_block: U64,
    block_count: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CancelRaw {
    kind: u8,
    zero: u8,
    index: U16,
    more_zero: [u8; 4],
    sequence: U64,
}

/// As many bytes of JSON follow.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ChangeRaw {
    kind: u8,
    zero: u8,
    bytes: U16,
}

const _: () = assert!(size_of::<BlockRaw>() == PAGE_BYTES && size_of::<HeaderRaw>() == 48);
const _: () = assert!(size_of::<MapRaw>() == 16 && size_of::<ClearRaw>() == 24);
const _: () = assert!(size_of::<CancelRaw>() == 16 && size_of::<ChangeRaw>() == 4);
const _: () = assert!(size_of::<ChangeRaw>() + MAX_CHANGE_BYTES <= RECORD_BYTES);
