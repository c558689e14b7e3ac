//! A whole pool of which a device returns other bytes than were written: it is opened, read,
//! written and checked.
//!
//! Mostly all checksums are made right, so that what they would stop is looked at by what is behind
//! them. Then nobody can tell whose a cluster is; but whatever the maps say, a write to one volume
//! changes nothing in another. Else, every volume reads as it ever was, or is not there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use volume::{Call, CreateVolume, PoolInfo, Reply, VolumeError};

use crate::input::Input;

mod disk;
mod layout;
mod open;

use disk::{Disk, Page};
use layout::Layout;
use open::Open;

/// Volumes and snapshots of the image, and whose bytes they may hold: a volume's are its name.
const WHOSE: [(&str, &[u8]); 5] =
    [("a", b"a"), ("b", b"b"), ("s", b"a"), ("c", b"ac"), ("t", b"b")];
/// Bytes of a volume that are looked at: all that it has if it is as it was.
const VOLUME_BYTES: u64 = 256 << 10;
/// Calls and I/Os after the pool has been opened.
const MOST_STEPS: usize = 12;

/// Edits a pool's image as the bytes say, and uses it.
pub fn pool_image(bytes: &[u8]) {
    thread_local! {
        static IMAGE: (BTreeMap<u64, Box<Page>>, Layout) = image();
    }
    IMAGE.with(|(pages, layout)| {
        let mut input = Input::new(bytes);
        let disk = Disk::over(pages.clone());
        let is_mended = !input.byte().is_multiple_of(4);
        for _ in 0..input.byte() % 6 {
            edit(&mut input, &disk, layout);
        }
        if is_mended {
            layout.mend(&disk);
        }
        let Some(mut pool) = Open::pool(&disk) else { return };
        let info = pool.info();
        if !is_mended {
            check_owners(&mut pool, &info);
        }
        for _ in 0..MOST_STEPS {
            if input.is_empty() {
                break;
            }
            step(&mut input, &mut pool);
        }
        check(&mut pool, &info);
    });
}

/// A pool with two volumes, snapshots, a clone, scattered blocks, and changes that only the journal
/// has.
fn image() -> (BTreeMap<u64, Box<Page>>, Layout) {
    let disk = Disk::over(BTreeMap::new());
    let mut pool = Open::new_pool(&disk);
    for name in ["a", "b"] {
        let create = CreateVolume {
            name: name.to_owned(),
            bytes: VOLUME_BYTES,
            block_bytes: 4096,
            reserve: false,
            labels: BTreeMap::new(),
            description: String::new(),
        };
        pool.done(Call::Create(create));
        pool.open(name).expect("it is new");
    }
    pool.write("a", 0, 40, b'a');
    pool.write("b", 10, 20, b'b');
    pool.done(Call::Snapshot(vec![("a".to_owned(), "s".to_owned())]));
    let clone = Call::Clone { snapshot: "s".to_owned(), name: "c".to_owned(), read_only: false };
    pool.done(clone);
    pool.open("c").expect("it is new");
    pool.write("a", 4, 3, b'a');
    pool.write("c", 1, 1, b'c');
    pool.done(Call::Checkpoint);
    pool.write("a", 50, 8, b'a');
    pool.done(Call::Snapshot(vec![("b".to_owned(), "t".to_owned())]));
    pool.clear("b", 12, 2);
    pool.write("b", 30, 1, b'b');
    drop(pool);
    let layout = Layout::of(&disk);
    (disk.pages(), layout)
}

fn edit(input: &mut Input<'_>, disk: &Disk, layout: &Layout) {
    let number = layout.pages[usize::from(input.take::<u16>()) % layout.pages.len()];
    let mut page = disk.page(number);
    let at = usize::from(input.take::<u16>()) % page.len();
    match input.byte() % 4 {
        0 => page[at] ^= input.byte().max(1),
        1 => put(&mut page, at & !3, &input.take::<u32>().to_le_bytes()),
        2 => put(&mut page, at & !7, &input.near(1 << 20).to_le_bytes()),
        _ => {
            let from = layout.pages[usize::from(input.byte()) % layout.pages.len()];
            let from_at = (usize::from(input.take::<u16>()) % page.len()) & !15;
            let bytes = disk.page(from);
            put(&mut page, at & !15, &bytes[from_at..from_at + 16]);
        }
    }
    disk.put(number, &page);
}

fn put(page: &mut Page, at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Each volume that opens holds what it or its origin ever held, and zeroes.
fn check_owners(pool: &mut Open, info: &PoolInfo) {
    for (name, whose) in WHOSE {
        let is_damaged = info.damaged.iter().any(|(damaged, _)| damaged == name);
        if pool.open(name).is_err() {
            continue;
        }
        assert!(!is_damaged, "{name} is damaged and opens");
        let bytes = pool.read(name);
        for (block, bytes) in bytes.chunks(4096).enumerate() {
            let first = bytes[0];
            let is_whole = bytes.iter().all(|byte| *byte == first);
            assert!(is_whole && (first == 0 || whose.contains(&first)), "block {block} of {name}");
        }
    }
}

fn step(input: &mut Input<'_>, pool: &mut Open) {
    let names = pool.names();
    if names.is_empty() {
        return;
    }
    let mut any = || names[usize::from(input.byte()) % names.len()].clone();
    let (name, other) = (any(), any());
    let (kind, block, count) = (input.byte() % 10, input.byte() % 64, 1 + input.byte() % 20);
    let new = format!("n{}", input.byte() % 8);
    let call = match kind {
        0..=3 => {
            if pool.open(&name).is_ok() {
                write(pool, &name, block, count);
            }
            return;
        }
        4 => {
            if pool.open(&name).is_ok() {
                pool.clear(&name, block.into(), count.into());
            }
            return;
        }
        5 => Call::Snapshot(vec![(name, new)]),
        6 => Call::Clone { snapshot: name, name: new, read_only: false },
        7 => {
            pool.close(&name);
            Call::Delete(name)
        }
        8 => {
            pool.close(&name);
            Call::Rollback { volume: name, snapshot: other, kept: new }
        }
        _ => Call::Resize { name, bytes: u64::from(block) << 14, force: count > 10 },
    };
    let _: Result<Reply, VolumeError> = pool.ask(call);
}

/// Others do not notice a write, whatever the maps say.
fn write(pool: &mut Open, name: &str, block: u8, count: u8) {
    let others: Vec<String> = pool.names().into_iter().filter(|other| other != name).collect();
    let others: Vec<&String> = others.iter().filter(|other| pool.open(other).is_ok()).collect();
    let before: Vec<Vec<u8>> = others.iter().map(|other| pool.read(other)).collect();
    pool.write(name, block.into(), count.into(), b'w');
    for (other, before) in others.iter().zip(before) {
        assert!(pool.read(other) == before, "a write to {name} changed {other}");
    }
}

/// Nothing is wrong with a pool of which nothing is damaged. What is damaged may claim pages that
/// something else has.
fn check(pool: &mut Open, info: &PoolInfo) {
    let Ok(Reply::Faults(faults)) = pool.ask(Call::Check) else { panic!("no answer to a check") };
    assert!(faults.is_empty() || !info.damaged.is_empty(), "{faults:?}");
}

/// Time that goes on with each poll.
struct Clock(Instant);

impl Clock {
    fn tick(&mut self) -> Instant {
        self.0 += Duration::from_millis(1);
        self.0
    }
}
