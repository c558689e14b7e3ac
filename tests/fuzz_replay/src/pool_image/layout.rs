//! Where the metadata of an image is, and how to make its checksums right.

use std::collections::BTreeSet;

use volume::format::{
    Catalog, CatalogEntry, Extent, PAGE_BYTES, Part, SLOTS, Superblock, VolumeDescriptor, crc64,
    decode_children,
};

use super::disk::Disk;

/// Bytes of an extent, and where in it the checksum is.
const EXTENT_BYTES: u64 = 16;
const CRC_AT: u64 = 8;
/// Where a superblock has those of the catalog, and a catalog that of its first descriptor; how far
/// it is to the next.
const CATALOGS_AT: u64 = 120;
const DESCRIPTOR_AT: u64 = 16 + 8;
const ENTRY_BYTES: u64 = 88;
/// Pages that a mended extent has at most.
const MOST_PAGES: u64 = 64;

/// See the module.
pub(super) struct Layout {
    /// All pages of metadata.
    pub(super) pages: Vec<u64>,
    /// Bytes of the device at which extents of leaves are, then of directories.
    links: Vec<u64>,
    /// Pages of descriptors.
    descriptors: Vec<u64>,
    /// Extents of descriptors, then of catalogs.
    upper_links: Vec<u64>,
    /// Pages that end with their own checksum.
    sealed: Vec<u64>,
}

impl Layout {
    /// Of a pool that is sound.
    pub(super) fn of(disk: &Disk) -> Self {
        let slots = SLOTS.map(|at| at / PAGE_BYTES as u64);
        let superblocks = slots.iter().filter_map(|slot| {
            let found = Superblock::decode(&disk.page(*slot));
            found.ok()
        });
        let newest = superblocks.max_by_key(|superblock| superblock.generation);
        let superblock = newest.expect("the image has a superblock");
        let mut pages: BTreeSet<u64> = slots.into();
        let mut sealed: Vec<u64> = slots.into();
        for area in &superblock.journal {
            let first = u64::from(area.first_cluster) * 16;
            let used = (first..first + u64::from(area.blocks))
                .filter(|page| disk.page(*page) != [0; PAGE_BYTES]);
            sealed.extend(used);
        }
        pages.extend(&sealed);
        let mut layout = Self {
            pages: Vec::new(),
            links: Vec::new(),
            descriptors: Vec::new(),
            upper_links: Vec::new(),
            sealed,
        };
        let mut catalog_links = Vec::new();
        for slot in slots {
            let at = slot * PAGE_BYTES as u64 + CATALOGS_AT;
            catalog_links.extend([at, at + EXTENT_BYTES]);
        }
        let catalog = Catalog::decode(&read(disk, superblock.catalog[0])).expect("a catalog");
        for extent in superblock.catalog {
            add(&mut pages, extent);
            let first = extent.page * PAGE_BYTES as u64 + DESCRIPTOR_AT;
            let links = (0..catalog.volumes.len() as u64).map(|index| first + index * ENTRY_BYTES);
            layout.upper_links.extend(links);
        }
        layout.upper_links.extend(catalog_links);
        let mut directory_links = BTreeSet::new();
        let mut leaf_links = BTreeSet::new();
        for CatalogEntry { descriptor, .. } in &catalog.volumes {
            add(&mut pages, *descriptor);
            layout.descriptors.push(descriptor.page);
            let root = VolumeDescriptor::decode(&read(disk, *descriptor)).expect("sound").root;
            for (at, directory) in children(disk, root, Part::Root, &mut pages) {
                directory_links.insert(at);
                for (at, leaf) in children(disk, directory, Part::Directory, &mut pages) {
                    leaf_links.insert(at);
                    add(&mut pages, leaf);
                }
            }
        }
        layout.links.extend(leaf_links.into_iter().chain(directory_links));
        layout.pages = pages.into_iter().collect();
        layout
    }

    /// Makes checksums right, from the leaves up, of whatever is named by now.
    pub(super) fn mend(&self, disk: &Disk) {
        self.links.iter().for_each(|at| mend_extent(disk, *at));
        for number in &self.descriptors {
            mend_descriptor(disk, *number);
        }
        self.upper_links.iter().for_each(|at| mend_extent(disk, *at));
        for number in &self.sealed {
            let mut page = disk.page(*number);
            let (body, own) = page.split_at_mut(PAGE_BYTES - 8);
            own.copy_from_slice(&crc64(body).to_le_bytes());
            disk.put(*number, &page);
        }
    }
}

fn read(disk: &Disk, extent: Extent) -> Vec<u8> {
    disk.run(extent.page, extent.pages.into()).expect("pages of the device")
}

fn add(pages: &mut BTreeSet<u64>, extent: Extent) {
    pages.extend(extent.page..extent.page + u64::from(extent.pages));
}

/// The children of a node, each with the byte of the device at which its extent is.
fn children(
    disk: &Disk,
    node: Extent,
    part: Part,
    pages: &mut BTreeSet<u64>,
) -> Vec<(u64, Extent)> {
    if node.is_absent() {
        return Vec::new();
    }
    add(pages, node);
    let children = decode_children(part, &read(disk, node)).expect("a sound node");
    let first = node.page * PAGE_BYTES as u64;
    let all = (first..).step_by(EXTENT_BYTES as usize).zip(children.iter().copied());
    all.filter(|(_, child)| !child.is_absent()).collect()
}

/// Gives the extent at a byte of the device the checksum of what it names.
fn mend_extent(disk: &Disk, at: u64) {
    let (number, at) = (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize);
    let mut page = disk.page(number);
    let mut place = [0; 8];
    place.copy_from_slice(&page[at..at + 8]);
    let place = u64::from_le_bytes(place);
    let (first, count) = (place & ((1 << 48) - 1), place >> 48);
    if count == 0 || count > MOST_PAGES {
        return;
    }
    if let Some(bytes) = disk.run(first, count) {
        let at = at + CRC_AT as usize;
        page[at..at + 8].copy_from_slice(&crc64(&bytes).to_le_bytes());
        disk.put(number, &page);
    }
}

/// The root's checksum is text here.
fn mend_descriptor(disk: &Disk, number: u64) {
    let Ok(mut descriptor) = VolumeDescriptor::decode(&disk.page(number)) else { return };
    let Extent { page, pages, .. } = descriptor.root;
    let Some(bytes) = disk.run(page, pages.into()).filter(|bytes| !bytes.is_empty()) else {
        return;
    };
    descriptor.root.crc = crc64(&bytes);
    let mut encoded = Vec::new();
    descriptor.encode(&mut encoded);
    if let Ok(page) = encoded.as_slice().try_into() {
        disk.put(number, page);
    }
}
