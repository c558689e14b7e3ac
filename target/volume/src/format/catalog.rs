//! The catalog, which names all volumes and snapshots, and the descriptor that each of them has.
//!
//! Names stand in the catalog too, so that a volume whose descriptor is damaged can be named.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    CHILDREN_PAGES, Extent, ExtentRaw, FormatError, PAGE_BYTES, Part, U32, check_length,
    decode_name, encode_name, is_name, pad_to_page, wrong_length,
};
use crate::limits::{
    MAX_DESCRIPTION_BYTES, MAX_DESCRIPTOR_PAGES, MAX_LABEL_KEY_BYTES, MAX_LABEL_VALUE_BYTES,
    MAX_LABELS, MAX_NAME_BYTES, MAX_VOLUME_BYTES,
};

const MAGIC: [u8; 8] = *b"FBCATLOG";
/// A bit of an entry's flags.
const GIVEN_UP: u8 = 1;

/// All volumes and snapshots of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Catalog {
    /// In any order; no number is there twice.
    pub volumes: Vec<CatalogEntry>,
}

/// A volume or snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Where its descriptor is.
    pub descriptor: Extent,
    /// It was damaged, and others may have its space since: it is never opened again.
    pub given_up: bool,
}

impl Catalog {
    /// Appends the catalog to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let count = U32::new(self.volumes.len() as u32);
        out.extend_from_slice(HeaderRaw { magic: MAGIC, count, zero: [0; 4] }.as_bytes());
        for entry in &self.volumes {
            let (name, name_bytes) = encode_name(&entry.name);
            assert!(!entry.descriptor.is_absent(), "{} has no descriptor", entry.name);
            assert!(entry.descriptor.pages <= MAX_DESCRIPTOR_PAGES);
            let raw = EntryRaw {
                id: U32::new(entry.id),
                name_bytes,
                flags: if entry.given_up { GIVEN_UP } else { 0 },
                zero: [0; 2],
                descriptor: entry.descriptor.to_raw(),
                name,
            };
            out.extend_from_slice(raw.as_bytes());
        }
        pad_to_page(out, start);
    }

    /// Reads and checks a catalog.
    pub fn decode(bytes: &[u8]) -> Result<Catalog, FormatError> {
        let part = Part::Catalog;
        let Ok((header, rest)) = HeaderRaw::ref_from_prefix(bytes) else {
            return Err(wrong_length(part, bytes, PAGE_BYTES));
        };
        if header.magic != MAGIC {
            return Err(FormatError::Magic { part, found: u64::from_be_bytes(header.magic) });
        }
        let count = header.count.get() as usize;
        let expected =
            (size_of::<HeaderRaw>() + count * size_of::<EntryRaw>()).next_multiple_of(PAGE_BYTES);
        let Ok((raw, _)) = <[EntryRaw]>::ref_from_prefix_with_elems(rest, count) else {
            return Err(wrong_length(part, bytes, expected));
        };
        check_length(part, bytes, expected)?;
        let mut seen = BTreeSet::new();
        let mut volumes = Vec::with_capacity(count);
        for (index, raw) in raw.iter().enumerate() {
            let at = size_of::<HeaderRaw>() + index * size_of::<EntryRaw>();
            let id = raw.id.get();
            if !seen.insert(id) {
                return Err(FormatError::Field { part, field: "id", at, value: id.into() });
            }
            volumes.push(raw.to_entry(at)?);
        }
        Ok(Catalog { volumes })
    }
}

/// A volume or snapshot, as JSON on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDescriptor {
    /// Its number, as in the catalog.
    pub id: u32,
    /// What hosts know it by.
    pub uuid: Uuid,
    /// The same for hosts that ask for an NGUID.
    pub nguid: Uuid,
    /// Its name, as in the catalog.
    pub name: String,
    /// Which of the two it is.
    pub kind: VolumeKind,
    /// The volume or snapshot that it was made from.
    pub parent: Option<u32>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether all of its space is reserved.
    pub reserved: bool,
    /// Bytes of a logical block.
    pub block_bytes: u32,
    /// Its size.
    pub bytes: u64,
    /// `key=value`, for people and their tools.
    pub labels: BTreeMap<String, String>,
    /// For people.
    pub description: String,
    /// When it was made, in seconds since 1970.
    pub created_s: u64,
    /// Of a snapshot: the group it was taken in.
    pub group: Option<Uuid>,
    /// Of a snapshot: the volume whose line it is in, which it was taken of unless a clone was
    /// promoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The root of its map; absent if it reads as zeroes.
    pub root: Extent,
}

/// What a descriptor is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// A volume. A clone is one as well.
    Volume,
    /// A snapshot.
    Snapshot,
}

impl VolumeDescriptor {
    /// Appends the descriptor to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let checked = self.check();
        assert!(checked.is_ok(), "a descriptor that cannot be read: {checked:?}");
        let start = out.len();
        out.extend_from_slice(&[0; size_of::<U32>()]);
        // Writing to a vector does not fail, and the keys of all maps in it are strings.
        serde_json::to_writer(&mut *out, self).expect("a descriptor is JSON");
        let bytes = (out.len() - start - size_of::<U32>()) as u32;
        out[start..start + size_of::<U32>()].copy_from_slice(&bytes.to_le_bytes());
        pad_to_page(out, start);
    }

    /// Reads and checks a descriptor.
    pub fn decode(bytes: &[u8]) -> Result<VolumeDescriptor, FormatError> {
        let part = Part::Descriptor;
        let Ok((length, rest)) = U32::ref_from_prefix(bytes) else {
            return Err(wrong_length(part, bytes, PAGE_BYTES));
        };
        let Some(json) = rest.get(..length.get() as usize) else {
            let value = length.get().into();
            return Err(FormatError::Field { part, field: "length", at: 0, value });
        };
        check_length(part, bytes, (size_of::<U32>() + json.len()).next_multiple_of(PAGE_BYTES))?;
        let descriptor: VolumeDescriptor =
            serde_json::from_slice(json).map_err(|source| FormatError::Json { part, source })?;
        descriptor.check()?;
        Ok(descriptor)
    }

    /// Checks that every member is within its bounds, and says which is not.
    pub fn check(&self) -> Result<(), FormatError> {
        let is_label = |(key, value): (&String, &String)| {
            (1..=MAX_LABEL_KEY_BYTES).contains(&key.len())
                && value.len() <= MAX_LABEL_VALUE_BYTES
                && !key.chars().chain(value.chars()).any(char::is_control)
        };
        let is_in_text = |c: char| !c.is_control() || c == '\n' || c == '\t';
        let within = [
            ("name", is_name(&self.name)),
            ("block_bytes", matches!(self.block_bytes, 512 | 4096)),
            (
                "bytes",
                self.bytes <= MAX_VOLUME_BYTES
                    && self.bytes.is_multiple_of(self.block_bytes.max(1).into()),
            ),
            ("labels", self.labels.len() <= MAX_LABELS && self.labels.iter().all(is_label)),
            (
                "description",
                self.description.len() <= MAX_DESCRIPTION_BYTES
                    && self.description.chars().all(is_in_text),
            ),
            (
                "root",
                self.root.is_valid()
                    && (self.root.is_absent() || self.root.pages == CHILDREN_PAGES as u32),
            ),
        ];
        match within.iter().find(|(_, within)| !within) {
            Some((field, _)) => Err(FormatError::Bounds { part: Part::Descriptor, field }),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderRaw {
    magic: [u8; 8],
    count: U32,
    zero: [u8; 4],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct EntryRaw {
    id: U32,
    name_bytes: u8,
    flags: u8,
    zero: [u8; 2],
    descriptor: ExtentRaw,
    name: [u8; MAX_NAME_BYTES + 1],
}

const _: () = assert!(size_of::<HeaderRaw>() == 16 && size_of::<EntryRaw>() == 88);

impl EntryRaw {
    /// The entry, which is at byte `at`.
    fn to_entry(self, at: usize) -> Result<CatalogEntry, FormatError> {
        let part = Part::Catalog;
        let extent_at = at + offset_of!(EntryRaw, descriptor);
        let descriptor = Extent::from_raw(&self.descriptor, part, extent_at, MAX_DESCRIPTOR_PAGES)?;
        if descriptor.is_absent() {
            return Err(FormatError::Extent { part, at: extent_at, page: 0, pages: 0 });
        }
        let name_at = at + offset_of!(EntryRaw, name);
        let name = decode_name(part, name_at, &self.name, self.name_bytes)?;
        let given_up = self.flags & GIVEN_UP != 0;
        Ok(CatalogEntry { id: self.id.get(), name, descriptor, given_up })
    }
}
