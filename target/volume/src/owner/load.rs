//! Reading a checkpoint. What cannot be read, or is not what was written, closes the volumes that
//! need it; the others open.

use dma::DmaBuffer;

use super::volume::Volume;
use super::{Damaged, Owner};
use crate::devices::Place;
use crate::format::{Catalog, CatalogEntry, Extent, PAGE_BYTES, Part, VolumeDescriptor};
use crate::limits::{CLUSTER_BLOCKS, MAX_CATALOG_PAGES};
use crate::map::{NodeRef, Root};
use crate::pool::PoolError;
use crate::wait::SyncDevice;

/// Of a volume that was damaged when the pool was opened all the same.
const GIVEN_UP: &str = "it was damaged, and given up when the pool was opened";

/// Why something is damaged.
#[derive(Clone, Debug)]
pub(super) struct Bad {
    pub why: String,
    /// A device did not read it: it may do so again.
    pub unreadable: bool,
}

impl From<String> for Bad {
    fn from(why: String) -> Self {
        Self { why, unreadable: false }
    }
}

pub(super) struct Loader<'a> {
    devices: &'a mut [Option<SyncDevice>],
    io: &'a DmaBuffer,
    /// Copies that do not verify, where another does.
    pub(super) bad_copies: Vec<String>,
    /// Nodes that could not be read, and why.
    pub(super) lost: Vec<(NodeRef, Bad)>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(devices: &'a mut [Option<SyncDevice>], io: &'a DmaBuffer) -> Self {
        Self { devices, io, bad_copies: Vec::new(), lost: Vec::new() }
    }

    /// Fills an empty owner with what the checkpoint has.
    pub(super) fn load(&mut self, owner: &mut Owner) -> Result<(), PoolError> {
        let catalog = self.read_catalog(owner)?;
        let mut found = Vec::with_capacity(catalog.volumes.len());
        for entry in catalog.volumes {
            let descriptor = self.read_descriptor(owner, &entry);
            let descriptor = match entry.given_up {
                // It may be readable now; but others may have its space since.
                true => Err(Bad::from(GIVEN_UP.to_owned())),
                false => descriptor,
            };
            let root = match &descriptor {
                Ok(descriptor) => Some(owner.tree.load_root(descriptor.root)),
                Err(_) => None,
            };
            found.push((entry, descriptor, root));
        }
        self.read_trees(owner);
        for (entry, descriptor, root) in found {
            let whole = root.is_none_or(|root| owner.tree.is_whole(root));
            match (descriptor, root) {
                (Ok(descriptor), Some(root)) if whole => owner.add_loaded(entry, descriptor, root),
                (Ok(_), root) => {
                    let why = "a part of its map is damaged".to_owned();
                    let lost = self.lost.iter().filter(|(_, bad)| bad.unreadable);
                    let unreadable = root.is_some_and(|root| {
                        lost.clone().any(|(node, _)| owner.tree.reaches(root, *node))
                    });
                    owner.add_damaged(entry, Bad { why, unreadable }, root);
                }
                (Err(bad), root) => owner.add_damaged(entry, bad, root),
            }
        }
        Ok(())
    }

    /// Either copy will do.
    fn read_catalog(&mut self, owner: &mut Owner) -> Result<Catalog, PoolError> {
        let superblock = &owner.superblock;
        if superblock.catalog.iter().all(Extent::is_absent) {
            return Ok(Catalog::default());
        }
        let mut good = None;
        for (copy, extent) in superblock.catalog.into_iter().enumerate() {
            let bytes = self.read_extent(owner, extent, MAX_CATALOG_PAGES, Part::Catalog);
            let decode =
                |bytes: Vec<u8>| Catalog::decode(&bytes).map_err(|e| Bad::from(e.to_string()));
            match bytes.and_then(decode) {
                Ok(catalog) => good = good.or(Some(catalog)),
                Err(Bad { why, .. }) => {
                    tracing::error!(copy, why, "a copy of the catalog is damaged");
                    self.bad_copies.push(format!("copy {copy} of the catalog: {why}"));
                }
            }
        }
        let Some(catalog) = good else {
            let (pool, reason) = (owner.superblock.name.clone(), self.bad_copies.join("; "));
            self.bad_copies.clear();
            return Err(PoolError::Damaged { pool, reason });
        };
        for extent in owner.superblock.catalog {
            owner.space.mark_pages(extent.page, extent.pages);
        }
        Ok(catalog)
    }

    fn read_descriptor(
        &mut self,
        owner: &mut Owner,
        entry: &CatalogEntry,
    ) -> Result<VolumeDescriptor, Bad> {
        let extent = entry.descriptor;
        let pages = crate::limits::MAX_DESCRIPTOR_PAGES;
        // Kept whatever is on them: it stays named as damaged.
        let possible = extent.pages <= pages && owner.superblock.has_extent(&extent);
        if !possible || !owner.space.mark_pages(extent.page, extent.pages) {
            return Err("its descriptor is where something else is".to_owned().into());
        }
        let bytes = self.read_extent(owner, extent, pages, Part::Descriptor)?;
        let descriptor =
            VolumeDescriptor::decode(&bytes).map_err(|error| Bad::from(error.to_string()))?;
        match descriptor.id == entry.id {
            true => Ok(descriptor),
            false => Err(format!("its descriptor is that of volume {}", descriptor.id).into()),
        }
    }

    /// Reads every node once, whoever shares it.
    fn read_trees(&mut self, owner: &mut Owner) {
        while let Some((node, extent)) = owner.tree.next_wanted() {
            let read = self.read_extent(owner, extent, CLUSTER_BLOCKS, Part::Leaf);
            let marked = owner.superblock.has_extent(&extent)
                && owner.space.mark_pages(extent.page, extent.pages);
            let loaded = match read {
                Ok(bytes) if marked => {
                    let loaded = owner.tree.loaded(node, &bytes, &owner.space);
                    loaded.map_err(|error| Bad::from(error.to_string()))
                }
                Ok(_) => Err("its pages are in use by something else".to_owned().into()),
                Err(bad) => Err(bad),
            };
            if let Err(Bad { why, unreadable }) = loaded {
                tracing::error!(?node, page = extent.page, why, "a node of a map is lost");
                owner.tree.lost(node);
                let why = format!("page {} of its map: {why}", extent.page);
                self.lost.push((node, Bad { why, unreadable }));
            }
        }
        owner.tree.end_load();
    }

    /// The bytes of an extent, verified.
    fn read_extent(
        &mut self,
        owner: &Owner,
        extent: Extent,
        most: u32,
        part: Part,
    ) -> Result<Vec<u8>, Bad> {
        if extent.is_absent() || extent.pages > most || !owner.superblock.has_extent(&extent) {
            return Err(format!("{part}: page {} is not possible", extent.page).into());
        }
        let mut bytes = vec![0; extent.bytes()];
        let blocks = u64::from(CLUSTER_BLOCKS);
        let (mut page, mut rest) = (extent.page, &mut bytes[..]);
        while !rest.is_empty() {
            let room = (blocks - page % blocks) as usize * PAGE_BYTES;
            let (now, later) = rest.split_at_mut(rest.len().min(room));
            let offset = (page % blocks) as u32 * PAGE_BYTES as u32;
            let place = Place { cluster: (page / blocks) as u32, offset };
            let device = self.devices[place.device()].as_mut();
            let device = device.ok_or_else(|| format!("page {page} has no device"))?;
            let read = device.read(place.byte(), now, self.io);
            read.map_err(|error| Bad { why: error.to_string(), unreadable: true })?;
            page += (now.len() / PAGE_BYTES) as u64;
            rest = later;
        }
        // Nodes verify themselves, with what they are.
        if part != Part::Leaf {
            extent.verify(part, &bytes).map_err(|error| Bad::from(error.to_string()))?;
        }
        Ok(bytes)
    }
}

impl Owner {
    fn add_loaded(&mut self, entry: CatalogEntry, descriptor: VolumeDescriptor, root: Root) {
        let head = self.next_head();
        let mut volume = Volume::new(descriptor, root, head);
        (volume.extent, volume.changed) = (entry.descriptor, false);
        self.volumes.insert(entry.id, volume);
    }

    pub(super) fn add_damaged(&mut self, entry: CatalogEntry, bad: Bad, root: Option<Root>) {
        let Bad { why, unreadable } = bad;
        tracing::error!(volume = entry.name, why, "a volume is damaged and stays closed");
        self.damaged.push(Damaged { entry, why, unreadable, root, deleted: false });
    }
}
