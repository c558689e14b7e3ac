//! Nodes of a map: leaves with their lines, and the lists of children that directories and roots
//! are.

use std::mem::size_of_val;

use zerocopy::{FromBytes, IntoBytes};

use super::{
    Extent, ExtentRaw, FormatError, PAGE_BYTES, Part, U32, U64, check_length, is_data_cluster,
    pad_to_page, wrong_length,
};
use crate::limits::{FANOUT, LEAF_ENTRIES, MAX_LEAF_PAGES};

/// Pages of a directory or root.
pub const CHILDREN_PAGES: usize = FANOUT * size_of::<ExtentRaw>() / PAGE_BYTES;

/// Bits of an entry, as in memory: the mask begins at this one, below it is the value.
const MASK_SHIFT: u32 = 32;
/// The entry is scattered: its value is a line, in memory by its number, on disk by its place among
/// the lines of the leaf.
const SCATTERED: u64 = 1 << 50;
/// What a direct entry has on disk: value and mask. The other bits are the engine's, for a time.
const DIRECT_BITS: u64 = (1 << 48) - 1;

/// Bytes of a line.
const LINE_BYTES: usize = 16 * size_of::<U32>();

const _: () = assert!(LEAF_ENTRIES * size_of::<U64>() == PAGE_BYTES);
const _: () = assert!(CHILDREN_PAGES == 4);
const _: () =
    assert!(PAGE_BYTES + LEAF_ENTRIES * LINE_BYTES == MAX_LEAF_PAGES as usize * PAGE_BYTES);

/// Appends a leaf to `out`: entries as the map has them, and `lines` by their numbers.
///
/// What is only of use while a pool is open (own marks, guards) is not in it. A direct entry
/// without blocks becomes zero.
pub fn encode_leaf(
    entries: &[u64; LEAF_ENTRIES],
    lines: impl Fn(u32) -> [u32; 16],
    out: &mut Vec<u8>,
) {
    let start = out.len();
    let mut scattered = 0u64;
    for &entry in entries {
        let word = if entry & SCATTERED != 0 {
            scattered += 1;
            SCATTERED | (scattered - 1)
        } else if mask_of(entry) == 0 {
            0
        } else {
            entry & DIRECT_BITS
        };
        out.extend_from_slice(&word.to_le_bytes());
    }
    for &entry in entries.iter().filter(|entry| **entry & SCATTERED != 0) {
        let line = lines(entry as u32).map(U32::new);
        out.extend_from_slice(line.as_bytes());
    }
    pad_to_page(out, start);
}

/// Reads and checks a leaf. The values of its scattered entries are indexes into the lines that
/// come with it.
#[expect(clippy::type_complexity, reason = "two arrays, each named by its type")]
pub fn decode_leaf(
    bytes: &[u8],
) -> Result<(Box<[u64; LEAF_ENTRIES]>, Vec<[u32; 16]>), FormatError> {
    let part = Part::Leaf;
    let Ok((words, rest)) = <[U64; LEAF_ENTRIES]>::ref_from_prefix(bytes) else {
        return Err(wrong_length(part, bytes, PAGE_BYTES));
    };
    let mut entries = Box::new([0; LEAF_ENTRIES]);
    let mut scattered = 0;
    for (index, (entry, word)) in entries.iter_mut().zip(words).enumerate() {
        *entry = word.get();
        let as_it_should_be = if *entry & SCATTERED != 0 {
            scattered += 1;
            *entry == SCATTERED | (scattered - 1)
        } else {
            *entry == 0
                || *entry & !DIRECT_BITS == 0
                    && mask_of(*entry) != 0
                    && is_data_cluster(*entry as u32)
        };
        if !as_it_should_be {
            let at = index * size_of::<U64>();
            return Err(FormatError::Field { part, field: "entry", at, value: *entry });
        }
    }
    let count = scattered as usize;
    let expected = (PAGE_BYTES + count * LINE_BYTES).next_multiple_of(PAGE_BYTES);
    let Ok((raw, padding)) = <[[U32; 16]]>::ref_from_prefix_with_elems(rest, count) else {
        return Err(wrong_length(part, bytes, expected));
    };
    check_length(part, bytes, expected)?;
    let lines: Vec<[u32; 16]> = raw.iter().map(|line| line.map(U32::get)).collect();
    for (index, &cluster) in lines.as_flattened().iter().enumerate() {
        if cluster != 0 && !is_data_cluster(cluster) {
            let at = PAGE_BYTES + index * size_of::<U32>();
            let value = cluster.into();
            return Err(FormatError::Field { part, field: "cluster of a line", at, value });
        }
    }
    if let Some(index) = padding.iter().position(|byte| *byte != 0) {
        let at = bytes.len() - padding.len() + index;
        let value = padding[index].into();
        return Err(FormatError::Field { part, field: "padding", at, value });
    }
    Ok((entries, lines))
}

/// Appends the children of a directory or root to `out`.
pub fn encode_children(children: &[Extent; FANOUT], out: &mut Vec<u8>) {
    out.reserve(size_of_val(children));
    for child in children {
        assert!(child.pages <= MAX_LEAF_PAGES, "{child:?} is no node");
        out.extend_from_slice(child.to_raw().as_bytes());
    }
}

/// Reads and checks the children of a directory or root, which `part` says.
pub fn decode_children(part: Part, bytes: &[u8]) -> Result<Box<[Extent; FANOUT]>, FormatError> {
    let Ok(raw) = <[ExtentRaw; FANOUT]>::ref_from_bytes(bytes) else {
        return Err(wrong_length(part, bytes, CHILDREN_PAGES * PAGE_BYTES));
    };
    // The children of a root are directories, which have one size.
    let (least, most) = match part {
        Part::Root => (CHILDREN_PAGES as u32, CHILDREN_PAGES as u32),
        _ => (1, MAX_LEAF_PAGES),
    };
    let mut children = Box::new([Extent::default(); FANOUT]);
    for (index, (child, raw)) in children.iter_mut().zip(raw).enumerate() {
        let at = index * size_of::<ExtentRaw>();
        *child = Extent::from_raw(raw, part, at, most)?;
        if !child.is_absent() && child.pages < least {
            let Extent { page, pages, .. } = *child;
            return Err(FormatError::Extent { part, at, page, pages });
        }
    }
    Ok(children)
}

fn mask_of(entry: u64) -> u16 {
    (entry >> MASK_SHIFT) as u16
}
