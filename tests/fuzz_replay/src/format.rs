//! Bytes of a pool, as a device may return them.
//!
//! What is taken is written again, and is what it was: so no two readings of the same bytes exist,
//! and nothing is taken that this release would not write.

use std::collections::BTreeSet;

use uuid::Uuid;
use volume::format::{
    BlockBuilder, Catalog, Extent, FormatError, PAGE_BYTES, Part, Superblock, VolumeDescriptor,
    crc64, decode_block, decode_children, decode_leaf, encode_children, encode_leaf,
};
use volume::limits::MAX_LEAF_PAGES;

/// Decodes the bytes as a superblock whose checksum is right.
pub fn superblock(bytes: &[u8]) {
    let page = page(bytes);
    match Superblock::decode(&page) {
        Ok(superblock) => {
            assert!(superblock.catalog.iter().all(|e| e.is_absent() || superblock.has_extent(e)));
            assert!(superblock.journal.iter().all(|a| superblock.has_cluster(a.first_cluster)));
            if superblock.features.unknown_read_only() == 0 {
                let again = Superblock::decode(&superblock.encode()[..]).expect("ours");
                let features = again.features;
                assert_eq!(features.compatible, 0, "none is known");
                assert_eq!(again, Superblock { features, ..superblock });
            }
        }
        Err(error) => is_told(&error),
    }
}

/// Decodes the bytes as a block of the journal whose checksum is right.
pub fn journal_block(bytes: &[u8]) {
    let page = page(bytes);
    let (header, records) = match decode_block(&page, &Uuid::nil(), 0) {
        Ok(decoded) => decoded,
        Err(error) => return is_told(&error),
    };
    let mut builder = BlockBuilder::new(header.pool, header.incarnation, header.sequence);
    for record in records {
        match record {
            Ok(record) => drop(builder.push(&record).expect("it had room")),
            Err(error) => return is_told(&error),
        }
    }
    assert_eq!(builder.len(), usize::from(header.records));
    let (body, used) = (48, usize::from(header.used));
    let again = builder.finish(header.closed_up_to);
    assert_eq!(again[..body + used], page[..body + used]);
}

/// Decodes the bytes, filled up with zeroes, as each kind of node.
pub fn leaf(bytes: &[u8]) {
    let mut bytes = bytes[..bytes.len().min(MAX_LEAF_PAGES as usize * PAGE_BYTES)].to_vec();
    bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
    let mut again = Vec::new();
    match decode_leaf(&bytes) {
        Ok((entries, lines)) => {
            encode_leaf(&entries, |line| lines[line as usize], &mut again);
            assert!(again == bytes);
        }
        Err(error) => is_told(&error),
    }
    bytes.resize(4 * PAGE_BYTES, 0);
    for part in [Part::Directory, Part::Root] {
        match decode_children(part, &bytes) {
            Ok(children) => {
                again.clear();
                encode_children(&children, &mut again);
                assert!(again == bytes);
            }
            Err(error) => is_told(&error),
        }
    }
}

/// Decodes the bytes, filled up with zeroes, as a catalog, and as a descriptor behind its length.
pub fn catalog(bytes: &[u8]) {
    let fill = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
    let mut again = Vec::new();
    let mut pages = bytes.to_vec();
    fill(&mut pages);
    match Catalog::decode(&pages) {
        Ok(catalog) => {
            let numbers: BTreeSet<u32> = catalog.volumes.iter().map(|entry| entry.id).collect();
            assert_eq!(numbers.len(), catalog.volumes.len(), "one volume for each number");
            catalog.encode(&mut again);
            assert_eq!(Catalog::decode(&again).expect("ours"), catalog);
        }
        Err(error) => is_told(&error),
    }
    let mut pages = (bytes.len() as u32).to_le_bytes().to_vec();
    pages.extend_from_slice(bytes);
    fill(&mut pages);
    match VolumeDescriptor::decode(&pages) {
        Ok(descriptor) => {
            again.clear();
            descriptor.encode(&mut again);
            Extent::of(16, &again).verify(Part::Descriptor, &again).expect("ours");
            assert_eq!(VolumeDescriptor::decode(&again).expect("ours"), descriptor);
        }
        Err(error) => is_told(&error),
    }
}

/// A page that begins with these bytes and ends with its CRC.
fn page(bytes: &[u8]) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    let body = PAGE_BYTES - 8;
    let count = bytes.len().min(body);
    page[..count].copy_from_slice(&bytes[..count]);
    let crc = crc64(&page[..body]);
    page[body..].copy_from_slice(&crc.to_le_bytes());
    page
}

fn is_told(error: &FormatError) {
    assert!(!error.to_string().is_empty());
}
