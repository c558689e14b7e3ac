//! What may be wrong with the bytes of a pool.

use std::fmt;

use thiserror::Error;
use uuid::Uuid;

/// A part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A superblock.
    Superblock,
    /// A block of the journal.
    JournalBlock,
    /// The catalog of volumes.
    Catalog,
    /// The descriptor of a volume or snapshot.
    Descriptor,
    /// The root of a map.
    Root,
    /// A directory of a map.
    Directory,
    /// A leaf of a map.
    Leaf,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Superblock => "superblock",
            Part::JournalBlock => "journal block",
            Part::Catalog => "catalog",
            Part::Descriptor => "descriptor",
            Part::Root => "root",
            Part::Directory => "directory",
            Part::Leaf => "leaf",
        })
    }
}

/// Why bytes are refused. Offsets are from the first byte of the part.
#[derive(Debug, Error)]
pub enum FormatError {
    /// Too many bytes, or too few.
    #[error("{part}: {bytes} bytes instead of {expected}")]
    Length {
        /// Which part.
        part: Part,
        /// Bytes there are.
        bytes: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// These are not the bytes of such a part.
    #[error("{part}: begins with {found:#x}, not with its magic number")]
    Magic {
        /// Which part.
        part: Part,
        /// What stands in its place.
        found: u64,
    },
    /// Some byte is not what was written.
    #[error("{part}: the bytes have CRC {found:#018x}, their record says {expected:#018x}")]
    Checksum {
        /// Which part.
        part: Part,
        /// CRC of the bytes.
        found: u64,
        /// CRC that was kept.
        expected: u64,
    },
    /// Made by a later release that changed everything.
    #[error("superblock: version {version}; this release knows version {known}")]
    Version {
        /// The version found.
        version: u32,
        /// The version that can be read.
        known: u32,
    },
    /// Made by a later release, with features that cannot be ignored.
    #[error("superblock: incompatible features {bits:#x} are not known to this release")]
    Incompatible {
        /// The bits that are not known.
        bits: u64,
    },
    /// Left behind by another pool.
    #[error("{part}: is of pool {found}")]
    Pool {
        /// Which part.
        part: Part,
        /// The pool it is of.
        found: Uuid,
    },
    /// Left behind by an earlier incarnation of the pool.
    #[error("{part}: is of incarnation {found}, not {expected}")]
    Incarnation {
        /// Which part.
        part: Part,
        /// The incarnation it is of.
        found: u64,
        /// The one that was asked for.
        expected: u64,
    },
    /// A field has a value that means nothing.
    #[error("{part}: {field} at byte {at} is {value:#x}")]
    Field {
        /// Which part.
        part: Part,
        /// Which field.
        field: &'static str,
        /// Its offset.
        at: usize,
        /// Its value.
        value: u64,
    },
    /// Pages that cannot be where this says.
    #[error("{part}: the extent at byte {at} is {pages} pages from page {page:#x}")]
    Extent {
        /// Which part.
        part: Part,
        /// Offset of the extent.
        at: usize,
        /// Its first page.
        page: u64,
        /// Its number of pages.
        pages: u32,
    },
    /// Text that is not UTF-8, or too long, or has control characters.
    #[error("{part}: {field} at byte {at} is not valid text")]
    Text {
        /// Which part.
        part: Part,
        /// Which field.
        field: &'static str,
        /// Its offset.
        at: usize,
    },
    /// JSON that does not say what it should.
    #[error("{part}: {source}")]
    Json {
        /// Which part.
        part: Part,
        /// What, and at which line and column.
        source: serde_json::Error,
    },
    /// JSON whose values make no sense.
    #[error("{part}: {field} is out of bounds")]
    Bounds {
        /// Which part.
        part: Part,
        /// Which member.
        field: &'static str,
    },
}
