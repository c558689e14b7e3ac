//! Round trips, every flipped bit, and bytes that nobody wrote.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::limits::{
    FANOUT, LEAF_ENTRIES, MAX_CHANGE_BYTES, MAX_DESCRIPTION_BYTES, MAX_DESCRIPTOR_PAGES,
    MAX_DEVICE_CLUSTERS, MAX_LABEL_KEY_BYTES, MAX_LABEL_VALUE_BYTES, MAX_LABELS, MAX_LEAF_PAGES,
    MAX_VOLUME_BLOCKS, MAX_VOLUME_BYTES, MAX_VOLUME_CLUSTERS,
};

const POOL: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

/// Names of one to 63 bytes.
fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9._-]{1,63}", "[ä-ü/@ ]{1,31}"]
}

fn data_cluster() -> impl Strategy<Value = u32> {
    any::<u32>().prop_filter("the first of a device", |cluster| is_data_cluster(*cluster))
}

fn extent(max_pages: u32) -> impl Strategy<Value = Extent> {
    (data_cluster(), 0..16u64, 1..=max_pages, any::<u64>())
        .prop_map(|(cluster, block, pages, crc)| Extent {
            page: u64::from(cluster) * 16 + block,
            pages,
            crc,
        })
        .prop_filter("leaves its device", Extent::is_valid)
}

/// A superblock with `count` devices, all of them large enough for what it says is on them.
fn superblock() -> impl Strategy<Value = Superblock> {
    let devices = prop::collection::vec((uuid(), any::<bool>()), 1..=16);
    let numbers = any::<[u64; 5]>();
    (devices, any::<prop::sample::Index>(), name(), numbers, 1..=65536u32, any::<[u32; 3]>())
        .prop_map(|(devices, own, name, numbers, blocks, [clusters, next_volume, bits])| {
            let own = own.index(devices.len());
            let areas = 2 * blocks.div_ceil(16) + 100;
            let clusters = areas + clusters % (MAX_DEVICE_CLUSTERS - areas);
            let devices: Vec<_> = devices
                .iter()
                .enumerate()
                .map(|(i, &(uuid, present))| DeviceSlot {
                    uuid,
                    clusters,
                    present: present || i == own,
                })
                .collect();
            let base = (own as u32) << 28;
            let catalog = |page| Extent { page, pages: 3, crc: numbers[4] };
            let page = u64::from(base) * 16 + 16;
            let [created_s, generation, incarnation, journal_start, _] = numbers;
            Superblock {
                pool: POOL,
                device: devices[own].uuid,
                device_index: own as u8,
                device_count: devices.len() as u8,
                devices,
                block_bytes: if bits & 1 == 0 { 512 } else { 4096 },
                name,
                created_s,
                generation,
                incarnation,
                state: match bits >> 1 & 3 {
                    0 => PoolState::Exported,
                    1 => PoolState::Destroyed,
                    _ => PoolState::Open,
                },
                features: Features::default(),
                journal: [
                    JournalArea { first_cluster: base + 10, blocks },
                    JournalArea { first_cluster: base + 10 + blocks.div_ceil(16), blocks },
                ],
                journal_start,
                catalog: if bits & 8 == 0 {
                    [catalog(page), catalog(page + 3)]
                } else {
                    [Extent::default(); 2]
                },
                next_volume,
            }
        })
}

/// A record that owns what it names.
#[derive(Clone, Debug)]
enum Owned {
    Map { volume: u32, entry: u32, mask: u16, cluster: u32, crcs: Vec<U64> },
    Clear { volume: u32, first_block: u64, block_count: u64 },
    Cancel { sequence: u64, index: u16 },
    Change(Vec<u8>),
}

impl Owned {
    fn record(&self) -> Record<'_> {
        match *self {
            Owned::Map { volume, entry, mask, cluster, ref crcs } => {
                Record::Map { volume, entry, mask, cluster, crcs }
            }
            Owned::Clear { volume, first_block, block_count } => {
                Record::Clear { volume, first_block, block_count }
            }
            Owned::Cancel { sequence, index } => Record::Cancel { sequence, index },
            Owned::Change(ref json) => Record::Change(json),
        }
    }
}

fn record() -> impl Strategy<Value = Owned> {
    let map = (any::<u32>(), 0..MAX_VOLUME_CLUSTERS, 1..=u16::MAX, data_cluster(), any::<u64>());
    prop_oneof![
        4 => map.prop_map(|(volume, entry, mask, cluster, crc)| {
            let crcs = (0..mask.count_ones().into()).map(|i| U64::new(crc.wrapping_mul(i)));
            Owned::Map { volume, entry, mask, cluster, crcs: crcs.collect() }
        }),
        1 => (any::<u32>(), 0..MAX_VOLUME_BLOCKS, any::<prop::sample::Index>()).prop_map(
            |(volume, first_block, count)| {
                let most = (MAX_VOLUME_BLOCKS - first_block) as usize;
                Owned::Clear { volume, first_block, block_count: count.index(most) as u64 + 1 }
            }
        ),
        1 => any::<(u64, u16)>().prop_map(|(sequence, index)| Owned::Cancel { sequence, index }),
        1 => prop::collection::vec(any::<u8>(), 0..=MAX_CHANGE_BYTES).prop_map(Owned::Change),
    ]
}

/// A block of the first of these records, and how many fitted.
fn block(records: &[Owned], sequence: u64, closed_up_to: u64) -> (Box<[u8; PAGE_BYTES]>, usize) {
    let mut builder = BlockBuilder::new(POOL, 7, sequence);
    for (index, owned) in records.iter().enumerate() {
        match builder.push(&owned.record()) {
            Ok(at) => assert_eq!(usize::from(at), index),
            Err(Full) => break,
        }
    }
    let count = builder.len();
    (Box::new(*builder.finish(closed_up_to)), count)
}

/// Entries as a map has them, with what is not kept in them too, and the lines they name.
fn leaf() -> impl Strategy<Value = (Vec<u64>, BTreeMap<u32, [u32; 16]>)> {
    let line = prop::array::uniform16(prop_oneof![Just(0), data_cluster()]);
    let word = prop_oneof![
        3 => Just((0, 0, 0, [0; 16])),
        3 => (Just(1), data_cluster(), any::<u16>(), Just([0; 16])),
        1 => (Just(2), any::<u32>(), any::<u16>(), line),
    ];
    let words = prop::collection::vec((word, 0..4u64), LEAF_ENTRIES);
    words.prop_map(|words| {
        let mut lines = BTreeMap::new();
        let entries = words.into_iter().map(|((kind, value, mask, line), marks)| match kind {
            0 => 0,
            1 => u64::from(value) | u64::from(mask) << 32 | marks << 48,
            _ => {
                lines.insert(value, line);
                u64::from(value) | u64::from(mask) << 32 | (marks & 2) << 48 | 1 << 50
            }
        });
        (entries.collect(), lines)
    })
}

fn encoded_leaf(entries: &[u64], lines: &BTreeMap<u32, [u32; 16]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_leaf(entries.try_into().unwrap(), |number| lines[&number], &mut bytes);
    bytes
}

fn descriptor() -> impl Strategy<Value = VolumeDescriptor> {
    let labels = prop::collection::btree_map("[a-z\"\\\\]{1,63}", "[ -~]{0,255}", 0..=MAX_LABELS);
    let root = prop_oneof![
        Just(Extent::default()),
        extent(1).prop_filter_map("leaves its device", |extent| {
            let extent = Extent { pages: CHILDREN_PAGES as u32, ..extent };
            extent.is_valid().then_some(extent)
        })
    ];
    let numbers = any::<(u32, Option<u32>, u64)>();
    let ids = (uuid(), uuid(), prop::option::of(uuid()));
    let bytes = (0..=MAX_VOLUME_BYTES / 4096).prop_map(|blocks| blocks * 4096);
    (numbers, ids, name(), any::<[bool; 4]>(), bytes, labels, "[ -~\n\t]{0,1024}", root).prop_map(
        |((id, parent, created_s), (uuid, nguid, group), name, is, bytes, labels, text, root)| {
            VolumeDescriptor {
                id,
                uuid,
                nguid,
                name,
                kind: if is[0] { VolumeKind::Volume } else { VolumeKind::Snapshot },
                parent,
                read_only: is[1],
                reserved: is[2],
                block_bytes: if is[3] { 512 } else { 4096 },
                bytes,
                labels,
                description: text,
                created_s,
                group,
                line: parent.map(|parent| parent ^ 1),
                root,
            }
        },
    )
}

/// A plain superblock, to be changed.
fn plain_superblock() -> Superblock {
    let device = Uuid::from_u128(1);
    Superblock {
        pool: POOL,
        device,
        device_index: 0,
        device_count: 2,
        devices: vec![
            DeviceSlot { uuid: device, clusters: 1000, present: true },
            DeviceSlot { uuid: Uuid::from_u128(2), clusters: 500, present: false },
        ],
        block_bytes: 512,
        name: "tank".into(),
        created_s: 1,
        generation: 2,
        incarnation: 3,
        state: PoolState::Open,
        features: Features::default(),
        journal: [
            JournalArea { first_cluster: 1, blocks: 32 },
            JournalArea { first_cluster: 3, blocks: 32 },
        ],
        journal_start: 1,
        catalog: [Extent { page: 80, pages: 1, crc: 9 }, Extent { page: 81, pages: 1, crc: 9 }],
        next_volume: 1,
    }
}

/// Its bytes after `change`, with a CRC that is right.
fn changed(bytes: &[u8; PAGE_BYTES], change: impl Fn(&mut [u8; PAGE_BYTES])) -> Vec<u8> {
    let mut bytes = *bytes;
    change(&mut bytes);
    put_own_crc(&mut bytes);
    bytes.to_vec()
}

fn no_flipped_bit_passes<T>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T, FormatError>) {
    let mut bytes = bytes.to_vec();
    assert!(decode(&bytes).is_ok());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(decode(&bytes).is_err(), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn the_checksum_is_crc_64_nvme() {
    assert_eq!(crc64(b"123456789"), 0xae8b_1486_0a79_9888);
}

#[test]
fn every_flipped_bit_of_a_superblock_is_refused() {
    no_flipped_bit_passes(&plain_superblock().encode()[..], Superblock::decode);
}

#[test]
fn every_flipped_bit_of_a_journal_block_is_refused() {
    let records = [
        Owned::Map { volume: 1, entry: 2, mask: 5, cluster: 3, crcs: vec![U64::new(4); 2] },
        Owned::Change(b"{}".to_vec()),
    ];
    let (bytes, _) = block(&records, 9, 8);
    no_flipped_bit_passes(&bytes[..], |bytes| decode_block(bytes, &POOL, 7).map(drop));
}

#[test]
fn every_flipped_bit_of_what_an_extent_names_is_refused() {
    let mut bytes = Vec::new();
    encode_children(&[Extent { page: 16, pages: 1, crc: 5 }; FANOUT], &mut bytes);
    let extent = Extent::of(32, &bytes);
    no_flipped_bit_passes(&bytes, |bytes| extent.verify(Part::Directory, bytes));
}

#[test]
fn superblocks_of_two_generations_never_share_a_place() {
    for generation in [0, 1, u64::MAX - 1] {
        let both = [slots(generation), slots(generation + 1)];
        let mut all = both.concat();
        all.sort_unstable();
        assert_eq!(all, SLOTS);
    }
    assert_eq!(slots(0), [0, 32768]);
}

#[test]
fn the_journal_is_a_ring() {
    let area = JournalArea { first_cluster: 2, blocks: 40 };
    assert_eq!([1, 39, 40, 41].map(|sequence| area.page(sequence)), [33, 71, 32, 33]);
    assert_eq!(area.clusters(), 3);
}

#[test]
fn features_say_who_may_read_and_write() {
    let bytes = plain_superblock().encode();
    let with = |at: usize| changed(&bytes, |bytes| bytes[at] = 4);

    let newer = Superblock::decode(&with(16)).unwrap();
    assert_eq!(newer.features.compatible, 4);
    assert_eq!(newer.encode(), bytes, "a bit that is not known is cleared");

    let newer = Superblock::decode(&with(24)).unwrap();
    assert_eq!(newer.features.unknown_read_only(), 4);

    let refused = Superblock::decode(&with(32));
    assert!(matches!(refused, Err(FormatError::Incompatible { bits: 4 })), "{refused:?}");

    let refused = Superblock::decode(&with(8));
    assert!(matches!(refused, Err(FormatError::Version { version: 4, known: 1 })), "{refused:?}");
}

#[test]
fn a_superblock_that_makes_no_sense_is_refused_by_field() {
    let bytes = plain_superblock().encode();
    for (what, at, value) in [
        ("block_bytes", 13, 4),
        ("state", 156, 0),
        ("device_index", 157, 1),
        ("device_count", 158, 17),
        ("clusters", 256 + 19, 0xff),
        ("flags", 256 + 20, 3),
        ("journal blocks", 108, 0),
        ("journal first_cluster", 104, 0),
        ("journal first_cluster", 107, 0x10),
        ("journal copies overlap", 104, 2),
        ("crc of the catalog's copies differs", 144, 1),
    ] {
        match Superblock::decode(&changed(&bytes, |bytes| bytes[at] = value)) {
            Err(FormatError::Field { field, .. }) => assert_eq!(field, what),
            other => panic!("{what}: {other:?}"),
        }
    }
    let renamed = Superblock::decode(&changed(&bytes, |bytes| bytes[159] = 64));
    assert!(matches!(renamed, Err(FormatError::Text { at: 160, .. })), "{renamed:?}");
    let beyond = Superblock::decode(&changed(&bytes, |bytes| bytes[123] = 1));
    assert!(matches!(beyond, Err(FormatError::Extent { at: 120, .. })), "{beyond:?}");
}

#[test]
fn a_superblock_says_what_its_devices_hold() {
    let superblock = plain_superblock();
    assert!(superblock.has_cluster(1) && superblock.has_cluster(999));
    assert!(!superblock.has_cluster(0), "superblocks are there");
    assert!(!superblock.has_cluster(1000) && !superblock.has_cluster(1 << 28 | 1));
    let last = Extent { page: 16000 - 2, pages: 2, crc: 0 };
    assert!(superblock.has_extent(&last));
    assert!(!superblock.has_extent(&Extent { pages: 3, ..last }));
    assert!(!superblock.has_extent(&Extent::default()));
}

#[test]
fn blocks_of_another_pool_or_incarnation_are_told_apart() {
    let (bytes, _) = block(&[], 9, 9);
    let other = decode_block(&bytes[..], &Uuid::nil(), 7).unwrap_err();
    assert!(matches!(other, FormatError::Pool { found: POOL, .. }), "{other}");
    let earlier = decode_block(&bytes[..], &POOL, 8).unwrap_err();
    assert!(matches!(earlier, FormatError::Incarnation { found: 7, expected: 8, .. }), "{earlier}");
}

#[test]
fn a_block_that_is_full_keeps_what_it_has() {
    let mut builder = BlockBuilder::new(POOL, 7, 1);
    let record = Record::Map { volume: 1, entry: 2, mask: 1, cluster: 3, crcs: &[U64::new(4)] };
    let mut count = 0;
    while builder.push(&record).is_ok() {
        count += 1;
    }
    assert_eq!(count, RECORD_BYTES / 24);
    let (_, records) = decode_block(&builder.finish(0)[..], &POOL, 7).unwrap();
    assert!(records.clone().all(|read| read.unwrap() == record));
    assert_eq!(records.count(), count);

    builder.reset(2);
    assert!(builder.is_empty());
    let change = vec![b'x'; MAX_CHANGE_BYTES];
    assert_eq!(builder.push(&Record::Change(&change)), Ok(0));
    let bytes = *builder.finish(1);
    let (header, mut records) = decode_block(&bytes, &POOL, 7).unwrap();
    assert_eq!((header.sequence, header.records), (2, 1));
    assert_eq!(records.next().unwrap().unwrap(), Record::Change(&change));
    assert!(records.next().is_none());
    assert!(bytes[48 + usize::from(header.used)..4088].iter().all(|byte| *byte == 0));
}

#[test]
fn records_that_make_no_sense_are_refused_by_field() {
    let records = [
        Owned::Map { volume: 1, entry: 2, mask: 1, cluster: 3, crcs: vec![U64::new(4)] },
        Owned::Clear { volume: 1, first_block: 2, block_count: 3 },
        Owned::Change(b"{}".to_vec()),
    ];
    let (bytes, _) = block(&records, 9, 8);
    for (what, at, value) in [
        ("kind of record", 48, 9),
        ("unused byte of the record", 49, 1),
        ("mask", 50, 0),
        ("entry", 59, 0x20),
        ("cluster", 60, 0),
        ("block_count", 72 + 16, 0),
        ("block_count", 72 + 23, 0xff),
        ("bytes of a change", 99, 0xff),
        ("bytes behind the last record", 6, 2),
        ("record that is missing", 6, 4),
        ("record that is cut off", 4, 15),
        ("record that is cut off", 4, 47),
        ("record that is cut off", 51, 0xff),
        ("record that is cut off", 98, 3),
    ] {
        let bytes = changed(&bytes, |bytes| bytes[at] = value);
        let (_, records) = decode_block(&bytes, &POOL, 7).unwrap();
        match records.clone().last() {
            Some(Err(FormatError::Field { field, .. })) => assert_eq!(field, what),
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(records.filter(Result::is_err).count(), 1, "{what}: it goes on");
    }
    for (what, at, value) in [("sequence", 8, 0), ("closed_up_to", 24, 10), ("used", 5, 0x10)] {
        match decode_block(&changed(&bytes, |bytes| bytes[at] = value), &POOL, 7) {
            Err(FormatError::Field { field, .. }) => assert_eq!(field, what),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn entries_that_make_no_sense_are_refused() {
    let decode = |word: u64| {
        let mut bytes = vec![0; 2 * PAGE_BYTES];
        bytes[8..16].copy_from_slice(&word.to_le_bytes());
        bytes.truncate(PAGE_BYTES << (word >> 50 & 1));
        decode_leaf(&bytes)
    };
    assert!(decode(0x1_0000_0001).is_ok());
    assert!(decode(1 << 50).is_ok());
    for (what, word) in [
        ("direct without blocks", 1),
        ("no cluster", 0x1_0000_0000),
        ("the superblocks' cluster", 0x1_1000_0000),
        ("own", 1 << 48 | 0x1_0000_0001),
        ("guarded", 1 << 49 | 0x1_0000_0001),
        ("not defined", 1 << 51 | 0x1_0000_0001),
        ("a line that is not the next one", 1 << 50 | 1),
        ("own blocks of a line", 1 << 50 | 1 << 32),
    ] {
        match decode(word) {
            Err(FormatError::Field { field: "entry", at: 8, value, .. }) => assert_eq!(value, word),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn lines_that_make_no_sense_are_refused() {
    let mut entries = vec![0; LEAF_ENTRIES];
    entries[1] = 1 << 50 | 77;
    let bytes = encoded_leaf(&entries, &BTreeMap::from([(77, [5; 16])]));
    let mut of_superblocks = bytes.clone();
    of_superblocks[PAGE_BYTES..PAGE_BYTES + 4].copy_from_slice(&(1u32 << 28).to_le_bytes());
    let refused = decode_leaf(&of_superblocks);
    assert!(matches!(refused, Err(FormatError::Field { at: PAGE_BYTES, .. })), "{refused:?}");
    let mut padded = bytes.clone();
    padded[PAGE_BYTES + 64] = 1;
    let refused = decode_leaf(&padded);
    assert!(matches!(refused, Err(FormatError::Field { at: 4160, .. })), "{refused:?}");
    let refused = decode_leaf(&bytes[..PAGE_BYTES]);
    assert!(matches!(refused, Err(FormatError::Length { .. })), "{refused:?}");
}

#[test]
fn a_leaf_of_scattered_entries_alone_has_nine_pages() {
    let entries: Vec<u64> = (0..LEAF_ENTRIES as u64).rev().map(|number| 1 << 50 | number).collect();
    let lines = (0..LEAF_ENTRIES as u32).map(|number| (number, [number + 1; 16])).collect();
    let bytes = encoded_leaf(&entries, &lines);
    assert_eq!(bytes.len(), MAX_LEAF_PAGES as usize * PAGE_BYTES);
    let (_, read) = decode_leaf(&bytes).unwrap();
    assert_eq!(read[0], [LEAF_ENTRIES as u32; 16]);
}

#[test]
fn children_of_a_root_are_directories() {
    let mut children = [Extent::default(); FANOUT];
    children[3] = Extent { page: 16, pages: 1, crc: 5 };
    let mut bytes = Vec::new();
    encode_children(&children, &mut bytes);
    assert_eq!(bytes.len(), CHILDREN_PAGES * PAGE_BYTES);
    assert_eq!(*decode_children(Part::Directory, &bytes).unwrap(), children);
    let refused = decode_children(Part::Root, &bytes);
    assert!(matches!(refused, Err(FormatError::Extent { at: 48, .. })), "{refused:?}");
    bytes[3 * 16 + 6] = 10;
    let refused = decode_children(Part::Directory, &bytes);
    assert!(matches!(refused, Err(FormatError::Extent { at: 48, pages: 10, .. })), "{refused:?}");
}

#[test]
fn an_extent_stays_on_one_device_and_off_its_superblocks() {
    let valid = |page, pages| Extent { page, pages, crc: 1 }.is_valid();
    assert!(valid(16, 1) && valid((1 << 32) + 16, 65535) && valid((1 << 32) - 2, 2));
    assert!(!valid(15, 1) && !valid(1 << 32, 1) && !valid((1 << 32) - 2, 3));
    assert!(!valid(0, 0) && !valid(16, 0) && !valid(16, 65536) && !valid((1 << 36) + 16, 1));
}

#[test]
fn a_number_is_in_a_catalog_once() {
    let descriptor = Extent { page: 16, pages: 1, crc: 5 };
    let entry = |id| CatalogEntry { id, name: "twin".into(), descriptor, given_up: false };
    let mut bytes = Vec::new();
    Catalog { volumes: vec![entry(1), entry(2), entry(1)] }.encode(&mut bytes);
    let refused = Catalog::decode(&bytes);
    assert!(matches!(refused, Err(FormatError::Field { at: 192, value: 1, .. })), "{refused:?}");
    bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let refused = Catalog::decode(&bytes);
    assert!(matches!(refused, Err(FormatError::Length { .. })), "{refused:?}");
}

#[test]
fn the_largest_descriptor_has_room() {
    let key = |i: usize| format!("{i:02}{}", "\"".repeat(MAX_LABEL_KEY_BYTES - 2));
    let labels = (0..MAX_LABELS).map(|i| (key(i), "\\".repeat(MAX_LABEL_VALUE_BYTES))).collect();
    let mut largest = plain_descriptor();
    largest.labels = labels;
    largest.description = "\n".repeat(MAX_DESCRIPTION_BYTES);
    largest.name = "\"".repeat(63);
    let mut bytes = Vec::new();
    largest.encode(&mut bytes);
    assert!(bytes.len() <= MAX_DESCRIPTOR_PAGES as usize * PAGE_BYTES, "{}", bytes.len());
    assert_eq!(VolumeDescriptor::decode(&bytes).unwrap(), largest);
}

fn plain_descriptor() -> VolumeDescriptor {
    VolumeDescriptor {
        id: u32::MAX,
        uuid: POOL,
        nguid: POOL,
        name: "v".into(),
        kind: VolumeKind::Snapshot,
        parent: Some(u32::MAX),
        read_only: false,
        reserved: false,
        block_bytes: 4096,
        bytes: MAX_VOLUME_BYTES,
        labels: BTreeMap::new(),
        description: String::new(),
        created_s: u64::MAX,
        group: Some(POOL),
        line: Some(3),
        root: Extent { page: u64::from(u32::MAX) * 16, pages: 4, crc: u64::MAX },
    }
}

#[test]
fn a_descriptor_out_of_bounds_is_refused_by_member() {
    type Change = fn(&mut VolumeDescriptor);
    let changes: [(&str, Change); 8] = [
        ("name", |d| d.name.clear()),
        ("name", |d| d.name = "a\nb".into()),
        ("block_bytes", |d| d.block_bytes = 0),
        ("bytes", |d| d.bytes = MAX_VOLUME_BYTES + 4096),
        ("bytes", |d| d.bytes = 512),
        ("labels", |d| drop(d.labels.insert(String::new(), String::new()))),
        ("description", |d| d.description = "\0".into()),
        ("root", |d| d.root.pages = 3),
    ];
    for (what, change) in changes {
        let mut descriptor = plain_descriptor();
        change(&mut descriptor);
        let json = serde_json::to_vec(&descriptor).unwrap();
        let mut bytes = (json.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&json);
        bytes.resize(PAGE_BYTES, 0);
        match VolumeDescriptor::decode(&bytes) {
            Err(FormatError::Bounds { field, .. }) => assert_eq!(field, what),
            other => panic!("{what}: {other:?}"),
        }
    }
    let mut bytes = vec![0; PAGE_BYTES];
    let refused = VolumeDescriptor::decode(&[bytes.clone(), bytes.clone()].concat());
    assert!(matches!(refused, Err(FormatError::Length { .. })), "{refused:?}");
    bytes[..4].copy_from_slice(&4093u32.to_le_bytes());
    let refused = VolumeDescriptor::decode(&bytes);
    assert!(matches!(refused, Err(FormatError::Field { .. })), "{refused:?}");
    bytes[..4].copy_from_slice(&4092u32.to_le_bytes());
    let refused = VolumeDescriptor::decode(&bytes);
    assert!(matches!(refused, Err(FormatError::Json { .. })), "{refused:?}");
}

/// What the parts begin with, so that noise gets a little further.
const STARTS: &[&[u8]] =
    &[b"", b"FOREBAY\n\x01\0\0\0", b"FBJ1", b"FBCATLOG\x02\0\0\0", b"\x20\0\0\0{\"id\":1"];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn superblocks_come_back(superblock in superblock()) {
        let bytes = superblock.encode();
        prop_assert_eq!(Superblock::decode(&bytes[..]).unwrap(), superblock);
    }

    #[test]
    fn journal_blocks_come_back(
        records in prop::collection::vec(record(), 0..40),
        sequence in 1..u64::MAX,
    ) {
        let (bytes, count) = block(&records, sequence, sequence / 2);
        let (header, read) = decode_block(&bytes[..], &POOL, 7).unwrap();
        prop_assert_eq!(header.sequence, sequence);
        prop_assert_eq!(header.closed_up_to, sequence / 2);
        prop_assert_eq!(usize::from(header.records), count);
        let read: Vec<_> = read.map(Result::unwrap).collect();
        let written: Vec<_> = records[..count].iter().map(Owned::record).collect();
        prop_assert_eq!(read, written);
    }

    #[test]
    fn leaves_come_back((entries, lines) in leaf()) {
        let bytes = encoded_leaf(&entries, &lines);
        let (read, read_lines) = decode_leaf(&bytes).unwrap();
        for (&entry, &read) in entries.iter().zip(read.iter()) {
            if entry >> 50 & 1 != 0 {
                prop_assert_eq!(read_lines[read as u32 as usize], lines[&(entry as u32)]);
            } else if entry >> 32 & 0xffff != 0 {
                prop_assert_eq!(read, entry & ((1 << 48) - 1));
            } else {
                prop_assert_eq!(read, 0);
            }
        }
    }

    #[test]
    fn children_come_back(
        some in prop::collection::vec((0..FANOUT, extent(MAX_LEAF_PAGES)), 0..50),
    ) {
        let mut children = [Extent::default(); FANOUT];
        some.iter().for_each(|(index, extent)| children[*index] = *extent);
        let mut bytes = Vec::new();
        encode_children(&children, &mut bytes);
        prop_assert_eq!(*decode_children(Part::Directory, &bytes).unwrap(), children);
    }

    #[test]
    fn catalogs_come_back(
        volumes in prop::collection::btree_map(any::<u32>(), (name(), extent(16)), 0..200),
    ) {
        let volumes = volumes.into_iter();
        let volumes = volumes.map(|(id, (name, descriptor))| CatalogEntry {
            id,
            name,
            descriptor,
            given_up: id % 2 == 0,
        });
        let catalog = Catalog { volumes: volumes.collect() };
        let mut bytes = Vec::new();
        catalog.encode(&mut bytes);
        prop_assert_eq!(Catalog::decode(&bytes).unwrap(), catalog);
    }

    #[test]
    fn descriptors_come_back(descriptor in descriptor()) {
        let mut bytes = Vec::new();
        descriptor.encode(&mut bytes);
        prop_assert_eq!(VolumeDescriptor::decode(&bytes).unwrap(), descriptor);
    }

    #[test]
    fn bytes_that_nobody_wrote_never_panic(
        start in prop::sample::select(STARTS),
        noise in prop::collection::vec(any::<u8>(), 0..200),
        zeroes in any::<bool>(),
        pages in 1..=MAX_LEAF_PAGES as usize,
    ) {
        let mut bytes = start.to_vec();
        bytes.extend_from_slice(&noise);
        let fill = if zeroes { 0 } else { *noise.first().unwrap_or(&1) };
        bytes.resize(pages * PAGE_BYTES, fill);
        let mut page: [u8; PAGE_BYTES] = bytes[..PAGE_BYTES].try_into().unwrap();
        put_own_crc(&mut page);
        let _ = Superblock::decode(&page);
        if let Ok((_, records)) = decode_block(&page, &Uuid::nil(), 0) {
            records.for_each(drop);
        }
        for bytes in [&bytes[..], &noise] {
            let _ = Superblock::decode(bytes);
            let _ = decode_block(bytes, &POOL, 0).map(|(_, records)| records.count());
            let _ = decode_leaf(bytes);
            let _ = decode_children(Part::Root, bytes);
            let _ = Catalog::decode(bytes);
            let _ = VolumeDescriptor::decode(bytes);
        }
    }

    /// Noise seldom gets far, so here it is in records that somebody wrote.
    #[test]
    fn records_that_were_changed_never_panic(
        records in prop::collection::vec(record(), 1..20),
        header in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let (bytes, _) = block(&records, 1, 0);
        let used = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        let bytes = changed(&bytes, |bytes| {
            // Either the numbers of bytes and records, or bytes of the records.
            let range = if header { 4..8 } else { 48..48 + used };
            for (at, value) in &changes {
                bytes[range.start + at.index(range.len())] = *value;
            }
        });
        if let Ok((header, records)) = decode_block(&bytes, &POOL, 7) {
            prop_assert!(records.count() <= usize::from(header.records) + 1);
        }
    }
}
