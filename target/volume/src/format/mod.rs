//! The bytes of a pool: how each part is encoded, and what is refused when it is decoded.
//!
//! Layouts are `zerocopy` structs of little-endian fields with const asserts on their sizes;
//! `docs/on-disk-format.md` has them as tables. A superblock and a journal block carry their own
//! CRC-64/NVME. Every other part is named by an [`Extent`], which carries it; its reader calls
//! [`Extent::verify`] before it decodes.
//!
//! Decoding takes any bytes and never panics: what makes no sense is refused with its part, field
//! and offset. Encoding asserts that what it is given can be decoded again: its callers checked.
//!
//! What it does not do: I/O; choosing between two copies; checks that need more than one part, such
//! as whether two maps agree.

mod catalog;
mod error;
mod journal;
mod node;
mod superblock;

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use catalog::{Catalog, CatalogEntry, VolumeDescriptor, VolumeKind};
pub use error::{FormatError, Part};
pub use journal::{BlockBuilder, BlockHeader, Full, RECORD_BYTES, Record, Records, decode_block};
pub use node::{CHILDREN_PAGES, decode_children, decode_leaf, encode_children, encode_leaf};
pub use superblock::{
    DeviceSlot, Features, JournalArea, PoolState, SLOTS, Superblock, VERSION, slots,
};
pub use zerocopy::little_endian::{U16, U32, U64};

use crate::limits::{BLOCK_BYTES, CLUSTER_BLOCKS, DEVICE_SHIFT, MAX_NAME_BYTES};

/// Bytes of a page, the unit of metadata. One page is as large as one block of data, so that both
/// are taken from the same clusters.
pub const PAGE_BYTES: usize = BLOCK_BYTES as usize;

/// Bits of a page's number: those of a cluster's, and four for its place in the cluster.
const PAGE_BITS: u32 = 36;
/// Bits of a page's number that say where on its device it is.
const PAGE_DEVICE_SHIFT: u32 = DEVICE_SHIFT + 4;
/// In an [`ExtentRaw`], the bits below this one are the page, those above the number of pages.
const PAGES_SHIFT: u32 = 48;

const _: () = assert!(CLUSTER_BLOCKS == 1 << 4 && PAGE_DEVICE_SHIFT == 32);

/// CRC-64/NVME of some bytes.
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// Where pages are, how many, and what they must hold. All zero is "absent".
///
/// A page's number is its cluster's times 16, plus its place there. A run goes on from a cluster
/// to the next one of the same device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Extent {
    /// Number of the first page; 0 is absent.
    pub page: u64,
    /// How many pages.
    pub pages: u32,
    /// CRC-64 of all their bytes.
    pub crc: u64,
}

impl Extent {
    /// The extent of these bytes, whole pages, that are written from `page` on.
    pub fn of(page: u64, bytes: &[u8]) -> Extent {
        assert!(bytes.len().is_multiple_of(PAGE_BYTES), "metadata is written in whole pages");
        let pages = (bytes.len() / PAGE_BYTES) as u32;
        let extent = Extent { page, pages, crc: crc64(bytes) };
        assert!(extent.is_valid() && !extent.is_absent(), "{extent:?} is on no device");
        extent
    }

    /// Whether there is nothing.
    pub fn is_absent(&self) -> bool {
        self.page == 0
    }

    /// The cluster of the first page.
    pub fn cluster(&self) -> u32 {
        (self.page / u64::from(CLUSTER_BLOCKS)) as u32
    }

    /// How many bytes.
    pub fn bytes(&self) -> usize {
        self.pages as usize * PAGE_BYTES
    }

    /// Checks that `bytes` are what this extent was made of.
    pub fn verify(&self, part: Part, bytes: &[u8]) -> Result<(), FormatError> {
        check_length(part, bytes, self.bytes())?;
        check_crc(part, bytes, self.crc)
    }

    /// Whether it is absent, or pages of one device that are not in its first cluster, which
    /// superblocks have.
    fn is_valid(&self) -> bool {
        if self.page == 0 {
            return *self == Extent::default();
        }
        let place = self.page & ((1 << PAGE_DEVICE_SHIFT) - 1);
        self.page < 1 << PAGE_BITS
            && place >= u64::from(CLUSTER_BLOCKS)
            && (1..=u32::from(u16::MAX)).contains(&self.pages)
            && place + u64::from(self.pages) <= 1 << PAGE_DEVICE_SHIFT
    }

    fn to_raw(self) -> ExtentRaw {
        assert!(self.is_valid(), "{self:?} is on no device");
        let place = self.page | u64::from(self.pages) << PAGES_SHIFT;
        ExtentRaw { place: U64::new(place), crc: U64::new(self.crc) }
    }

    /// Decodes what stands at byte `at` of `part`; it has at most `max_pages`.
    fn from_raw(
        raw: &ExtentRaw,
        part: Part,
        at: usize,
        max_pages: u32,
    ) -> Result<Extent, FormatError> {
        let place = raw.place.get();
        let extent = Extent {
            page: place & ((1 << PAGES_SHIFT) - 1),
            pages: (place >> PAGES_SHIFT) as u32,
            crc: raw.crc.get(),
        };
        if !extent.is_valid() || extent.pages > max_pages {
            let Extent { page, pages, .. } = extent;
            return Err(FormatError::Extent { part, at, page, pages });
        }
        Ok(extent)
    }
}

/// An [`Extent`] on disk, 16 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtentRaw {
    /// The page in the lower 48 bits, the number of pages in the upper 16.
    place: U64,
    crc: U64,
}

const _: () = assert!(size_of::<ExtentRaw>() == 16);

/// Whether a cluster number names data: the first cluster of each device holds superblocks.
fn is_data_cluster(cluster: u32) -> bool {
    cluster & ((1 << DEVICE_SHIFT) - 1) != 0
}

fn wrong_length(part: Part, bytes: &[u8], expected: usize) -> FormatError {
    FormatError::Length { part, bytes: bytes.len(), expected }
}

fn check_length(part: Part, bytes: &[u8], expected: usize) -> Result<(), FormatError> {
    if bytes.len() == expected { Ok(()) } else { Err(wrong_length(part, bytes, expected)) }
}

/// Checks bytes against the CRC-64 that was kept of them.
fn check_crc(part: Part, bytes: &[u8], expected: u64) -> Result<(), FormatError> {
    let found = crc64(bytes);
    if found == expected { Ok(()) } else { Err(FormatError::Checksum { part, found, expected }) }
}

/// Bytes of a page that ends with its own CRC: all before.
const CHECKED_BYTES: usize = PAGE_BYTES - size_of::<U64>();

/// Puts the CRC-64 of all before into the last 8 bytes of a page.
fn put_own_crc(bytes: &mut [u8; PAGE_BYTES]) {
    let (body, own) = bytes.split_at_mut(CHECKED_BYTES);
    own.copy_from_slice(&crc64(body).to_le_bytes());
}

/// Fills up the last page with zeroes.
fn pad_to_page(out: &mut Vec<u8>, start: usize) {
    out.resize(start + (out.len() - start).next_multiple_of(PAGE_BYTES), 0);
}

/// Whether this can be the name of a pool, volume or snapshot. What else is asked of a name is for
/// those who make it.
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// A name in a field of 64 bytes, of which `bytes` are used.
fn decode_name(
    part: Part,
    at: usize,
    field: &[u8; MAX_NAME_BYTES + 1],
    bytes: u8,
) -> Result<String, FormatError> {
    let used = field.get(..usize::from(bytes)).unwrap_or_default();
    match std::str::from_utf8(used) {
        Ok(name) if is_name(name) => Ok(name.to_owned()),
        _ => Err(FormatError::Text { part, field: "name", at }),
    }
}

fn encode_name(name: &str) -> ([u8; MAX_NAME_BYTES + 1], u8) {
    assert!(is_name(name), "{name:?} is no name");
    let mut field = [0; MAX_NAME_BYTES + 1];
    field[..name.len()].copy_from_slice(name.as_bytes());
    (field, name.len() as u8)
}

#[cfg(test)]
mod tests;
