//! What a disk image may say: right checksums over what cannot be, and a journal with holes.

use nvme_spec::status::Status;
use volume::format::{
    Catalog, Extent, PAGE_BYTES, Part, SLOTS, Superblock, VolumeDescriptor, crc64, decode_children,
    encode_children, slots,
};
use volume::{Call, GiveUp, PoolError, Reply};

use crate::rig::Rig;

const MIB: u64 = 1 << 20;

/// An image of a pool on one device, and a way to change a leaf of it as if it had been so.
struct Image(Vec<u8>);

impl Image {
    fn superblock(&self) -> Superblock {
        let all = SLOTS.iter().map(|at| &self.0[*at as usize..][..PAGE_BYTES]);
        let valid = all.filter_map(|slot| Superblock::decode(slot).ok());
        valid.max_by_key(|superblock| superblock.generation).unwrap()
    }

    fn bytes(&self, extent: Extent) -> &[u8] {
        &self.0[extent.page as usize * PAGE_BYTES..][..extent.bytes()]
    }

    /// Puts bytes where an extent was; the extent of them.
    fn put(&mut self, extent: Extent, bytes: &[u8]) -> Extent {
        assert_eq!(bytes.len(), extent.bytes());
        self.0[extent.page as usize * PAGE_BYTES..][..bytes.len()].copy_from_slice(bytes);
        Extent::of(extent.page, bytes)
    }

    fn catalog(&self) -> Catalog {
        Catalog::decode(self.bytes(self.superblock().catalog[0])).unwrap()
    }

    /// Changes the entries of the first leaf of a volume, and with it all that is above; or puts it
    /// on another page.
    fn change_leaf(&mut self, name: &str, page: Option<u64>, change: impl Fn(&mut [[u8; 8]])) {
        let mut superblock = self.superblock();
        let mut catalog = self.catalog();
        let entry = catalog.volumes.iter_mut().find(|entry| entry.name == name).unwrap();
        let mut descriptor = VolumeDescriptor::decode(self.bytes(entry.descriptor)).unwrap();
        let mut root = decode_children(Part::Root, self.bytes(descriptor.root)).unwrap();
        let mut directory = decode_children(Part::Directory, self.bytes(root[0])).unwrap();
        let mut leaf = self.bytes(directory[0]).to_vec();
        change(leaf.as_chunks_mut().0);
        directory[0].page = page.unwrap_or(directory[0].page);
        directory[0] = self.put(directory[0], &leaf);
        let mut bytes = Vec::new();
        encode_children(&directory, &mut bytes);
        root[0] = self.put(root[0], &bytes);
        bytes.clear();
        encode_children(&root, &mut bytes);
        descriptor.root = self.put(descriptor.root, &bytes);
        bytes.clear();
        descriptor.encode(&mut bytes);
        entry.descriptor = self.put(entry.descriptor, &bytes);
        bytes.clear();
        catalog.encode(&mut bytes);
        superblock.catalog = superblock.catalog.map(|extent| self.put(extent, &bytes));
        for at in slots(superblock.generation) {
            self.0[at as usize..][..PAGE_BYTES].copy_from_slice(&superblock.encode()[..]);
        }
    }

    /// The pages that both copies of the journal have for a block.
    fn journal_pages(&self, sequence: u64) -> [usize; 2] {
        self.superblock().journal.map(|area| area.page(sequence) as usize * PAGE_BYTES)
    }

    /// The first block of the journal since the checkpoint, in which a text is.
    fn find_journal(&self, text: &[u8]) -> Option<u64> {
        let start = self.superblock().journal_start;
        (start..start + 32).find(|sequence| {
            let page = &self.0[self.journal_pages(*sequence)[0]..][..PAGE_BYTES];
            page.windows(text.len()).any(|part| part == text)
        })
    }
}

/// A volume with a few blocks in a checkpoint.
fn one_volume(bytes: u64) -> Rig {
    let mut rig = Rig::new(&[bytes]);
    rig.create("a", MIB, 4096);
    let a = rig.open("a");
    rig.write(a, 0, &[1; 8192]);
    rig.call(Call::Checkpoint).unwrap();
    rig
}

fn reason(opened: Result<(), PoolError>) -> String {
    opened.expect_err("the pool opens").to_string()
}

#[test]
fn a_change_in_the_journal_that_cannot_be_is_not_applied() {
    let mut rig = one_volume(4 * MIB);
    rig.create("b", MIB, 4096);
    let mut image = Image(rig.image());
    let text = b"\"block_bytes\":4096";
    let sequence = image.find_journal(text).expect("the record of b");
    for page in image.journal_pages(sequence) {
        let page = &mut image.0[page..][..PAGE_BYTES];
        let at = page.windows(text.len()).position(|part| part == text).unwrap();
        page[at..at + text.len()].copy_from_slice(b"\"block_bytes\":1024");
        let crc = crc64(&page[..PAGE_BYTES - 8]);
        page[PAGE_BYTES - 8..].copy_from_slice(&crc.to_le_bytes());
    }
    let reason = reason(rig.try_image(&image.0, GiveUp::Wrong));
    assert!(reason.contains(&format!("journal block {sequence}")), "{reason}");
}

#[test]
fn a_leaf_that_names_a_page_of_metadata_closes_its_volume_and_no_other() {
    let mut rig = one_volume(4 * MIB);
    rig.create("b", MIB, 4096);
    let b = rig.open("b");
    rig.write(b, 0, &[2; 8192]);
    rig.call(Call::Checkpoint).unwrap();
    let mut image = Image(rig.image());
    // One that is known before leaves are read, and one that either leaf may be read before.
    image.change_leaf("a", Some(41 * 16), |_| {});
    image.change_leaf("b", Some(40 * 16), |_| {});
    let catalog = image.superblock().catalog[0].cluster();
    for (name, cluster) in [("a", catalog), ("a", 40), ("b", 41)] {
        let mut image = Image(image.0.clone());
        let entry = u64::from(cluster) | 1 << 32;
        image.change_leaf(name, None, |entries| entries[3] = entry.to_le_bytes());
        rig.try_image(&image.0, GiveUp::Wrong).unwrap();
        let Ok(Reply::Pool(info)) = rig.call(Call::Info) else { panic!() };
        let damaged: Vec<&str> = info.damaged.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(damaged, [name], "{:?}", info.damaged);
        assert!(rig.call(Call::Open(name.into())).is_err());
        let (other, byte) = if name == "a" { ("b", 2) } else { ("a", 1) };
        let channel = rig.open(other);
        assert_eq!(rig.read(channel, 0, 8192), [byte; 8192]);
    }
}

#[test]
fn a_pool_with_features_that_only_reading_may_ignore_does_not_open() {
    let mut rig = one_volume(2 * MIB);
    let mut image = rig.image();
    for at in SLOTS.map(|at| at as usize) {
        let page = &mut image[at..at + PAGE_BYTES];
        page[24..32].copy_from_slice(&(1u64 << 40).to_le_bytes());
        let crc = crc64(&page[..PAGE_BYTES - 8]);
        page[PAGE_BYTES - 8..].copy_from_slice(&crc.to_le_bytes());
    }
    let reason = reason(rig.try_image(&image, GiveUp::Wrong));
    assert!(reason.contains("a later release (bits 0x10000000000)"), "{reason}");
}

#[test]
fn a_damaged_descriptor_stays_where_it_is_whatever_is_written() {
    let mut rig = one_volume(4 * MIB);
    let mut image = Image(rig.image());
    let descriptor = image.catalog().volumes[0].descriptor;
    image.0[descriptor.page as usize * PAGE_BYTES + 77] ^= 1;
    let before = image.bytes(descriptor).to_vec();
    rig.try_image(&image.0, GiveUp::Wrong).unwrap();
    rig.create("b", 4 * MIB, 4096);
    let b = rig.open("b");
    let mut written = 0;
    while rig.write(b, written, &[3; 65536]) == Status::SUCCESS {
        written += 65536;
    }
    assert!(written > MIB, "the pool is full");
    rig.call(Call::Checkpoint).unwrap();
    assert!(Image(rig.image()).bytes(descriptor) == before);
}

#[test]
fn a_pool_without_room_for_its_first_checkpoint_does_not_open_and_says_why() {
    let mut rig = one_volume(2 * MIB);
    let mut image = Image(rig.image());
    let superblock = image.superblock();
    let journal = superblock.journal.map(|area| area.first_cluster..area.first_cluster + 4);
    // Whatever has no metadata holds data.
    let is_metadata = |cluster: &u32| {
        let bytes = &image.0[*cluster as usize * 65536..][..65536];
        journal.iter().any(|area| area.contains(cluster))
            || bytes.chunks(PAGE_BYTES).any(|page| page.iter().any(|byte| *byte > 1))
    };
    let clusters: Vec<u32> = (1..32).filter(|cluster| !is_metadata(cluster)).collect();
    image.change_leaf("a", None, |entries| {
        for (entry, cluster) in entries.iter_mut().zip(&clusters) {
            *entry = (u64::from(*cluster) | 1 << 32).to_le_bytes();
        }
    });
    let reason = reason(rig.try_image(&image.0, GiveUp::Wrong));
    assert!(reason.contains("no room left"), "{reason}");
}

#[test]
fn a_damaged_block_of_one_copy_of_the_journal_loses_nothing_and_of_both_is_told() {
    let mut rig = one_volume(4 * MIB);
    rig.create("b", MIB, 4096);
    let b = rig.open("b");
    for block in 0..4 {
        assert_eq!(rig.write(b, block * 4096, &[5; 4096]), Status::SUCCESS);
        // The next one finds the one before closed: a mark says so.
        assert_eq!(rig.write(b, block * 4096, &[6; 4096]), Status::SUCCESS);
    }
    let image = Image(rig.image());
    let sequence = image.find_journal(b"\"block_bytes\":4096").expect("the record of b");
    let [first, second] = image.journal_pages(sequence);
    for damaged in [vec![first], vec![second]] {
        let mut bytes = image.0.clone();
        damaged.iter().for_each(|at| bytes[at + 100] ^= 1);
        rig.try_image(&bytes, GiveUp::Wrong).unwrap();
        let b = rig.open("b");
        assert_eq!(rig.read(b, 0, 16384), [6; 16384]);
    }
    let mut bytes = image.0.clone();
    [first, second].iter().for_each(|at| bytes[at + 100] ^= 1);
    let reason = reason(rig.try_image(&bytes, GiveUp::Wrong));
    assert!(reason.contains(&format!("journal block {sequence} is damaged")), "{reason}");
}
