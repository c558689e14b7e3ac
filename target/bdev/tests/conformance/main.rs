//! What every backend must do, whatever holds its blocks.

mod claims;
mod model;
mod user;

use std::collections::BTreeSet;
use std::time::Instant;

use bdev::{Bdev, Busy, Completions, FileBdev, Health, Io, NullBdev, Op, RamBdev};
use dma::Arena;
use nvme_spec::status::Status;
use tempfile::TempDir;

use self::user::{User, is_all};

const BLOCKS: u64 = 2048;

/// A backend, and the folder that its file is in.
struct Backend {
    bdev: Box<dyn Bdev>,
    keeps_data: bool,
    _folder: Option<TempDir>,
}

fn ram(block_bytes: u32) -> Backend {
    let bdev = Box::new(RamBdev::new("ram0", block_bytes, BLOCKS).unwrap());
    Backend { bdev, keeps_data: true, _folder: None }
}

fn null(block_bytes: u32) -> Backend {
    let bdev = Box::new(NullBdev::new("null0", block_bytes, BLOCKS));
    Backend { bdev, keeps_data: false, _folder: None }
}

fn file(block_bytes: u32) -> Backend {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk").display().to_string();
    FileBdev::create("file0", &path, BLOCKS * u64::from(block_bytes)).unwrap();
    let bdev = Box::new(FileBdev::open("file0", &path, block_bytes).unwrap());
    Backend { bdev, keeps_data: true, _folder: Some(folder) }
}

/// Runs a test over every backend and block size.
fn for_all(test: fn(&Backend)) {
    for block_bytes in [512, 4096] {
        for make in [ram, null, file] {
            let backend = make(block_bytes);
            println!("{} with blocks of {block_bytes}", backend.bdev.kind());
            test(&backend);
        }
    }
}

#[test]
fn geometry_is_what_was_asked_for() {
    for_all(|Backend { bdev, .. }| {
        let geometry = bdev.geometry();
        assert_eq!(geometry.block_count, BLOCKS);
        assert!(matches!(geometry.block_bytes, 512 | 4096));
        assert!(geometry.atomic_write_blocks >= 1 && geometry.preferred_write_blocks >= 1);
        assert_eq!(bdev.name(), format!("{}0", bdev.kind()));
        assert_eq!(bdev.health(), Health::Live);
        assert!(!bdev.uuid().is_nil());
    });
}

#[test]
fn what_is_written_is_read() {
    for_all(|backend| {
        let mut user = User::new(backend.bdev.as_ref());
        for (slba, blocks, fua) in [(0, 1, false), (7, 64, true), (BLOCKS - 3, 3, false)] {
            let data = user.data(blocks);
            data.fill(0x5A);
            assert_eq!(user.run(Op::Write { fua }, slba, blocks, Some(data)), Status::SUCCESS);
            data.fill(0xFF);
            assert_eq!(user.run(Op::Read, slba, blocks, Some(data)), Status::SUCCESS);
            assert!(is_all(data, if backend.keeps_data { 0x5A } else { 0 }));
        }
        assert_eq!(user.run(Op::Flush, 0, 0, None), Status::SUCCESS);
    });
}

#[test]
fn nothing_of_the_buffer_comes_back_from_blocks_never_written() {
    for_all(|backend| {
        let mut user = User::new(backend.bdev.as_ref());
        let data = user.data(64);
        data.fill(0xEE);
        assert_eq!(user.run(Op::Read, 100, 64, Some(data)), Status::SUCCESS);
        assert!(is_all(data, 0), "what another command left in memory");
    });
}

#[test]
fn compare_tells_equal_from_different() {
    for_all(|backend| {
        if !backend.keeps_data {
            return;
        }
        let mut user = User::new(backend.bdev.as_ref());
        let data = user.data(64);
        data.fill(3);
        user.run(Op::Write { fua: false }, 10, 64, Some(data));
        assert_eq!(user.run(Op::Compare, 10, 64, Some(data)), Status::SUCCESS);
        for at in [0, data.len() / 2, data.len() - 1] {
            data.write(at, &[4]);
            let status = user.run(Op::Compare, 10, 64, Some(data));
            assert_eq!(status, Status::COMPARE_FAILURE.with_dnr(), "byte {at}");
            data.write(at, &[3]);
        }
    });
}

#[test]
fn zeroes_and_deallocated_blocks_read_as_zeroes_and_their_neighbours_do_not() {
    for_all(|backend| {
        if !backend.keeps_data {
            return;
        }
        let geometry = backend.bdev.geometry();
        let mut user = User::new(backend.bdev.as_ref());
        let all = user.data(64);
        for deallocate in [false, true] {
            for fua in [false, true] {
                all.fill(9);
                user.run(Op::Write { fua: false }, 0, 64, Some(all));
                let op = Op::WriteZeroes { deallocate, fua };
                assert_eq!(user.run(op, 5, 40, None), Status::SUCCESS);
                user.run(Op::Read, 0, 64, Some(all));
                user.assert_blocks(all, 9, |block| (5..45).contains(&block));
            }
        }
        all.fill(9);
        user.run(Op::Write { fua: false }, 0, 64, Some(all));
        let ranges = [(8, 3), (0, 0), (20, 1), (60, 4)];
        assert_eq!(user.deallocate(&ranges), Status::SUCCESS);
        if geometry.deallocate_reads_zeroes {
            user.run(Op::Read, 0, 64, Some(all));
            user.assert_blocks(all, 9, |block| matches!(block, 8..11 | 20 | 60..64));
        }
    });
}

#[test]
fn blocks_that_are_not_there_are_refused() {
    for_all(|backend| {
        let mut user = User::new(backend.bdev.as_ref());
        let data = user.data(64);
        let zeroes = Op::WriteZeroes { deallocate: true, fua: false };
        for op in [Op::Read, Op::Write { fua: true }, Op::Compare, zeroes] {
            let outside = [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 64)];
            for (slba, blocks) in outside {
                let status = user.run(op, slba, blocks, Some(data));
                assert_eq!(status, Status::LBA_OUT_OF_RANGE.with_dnr(), "{op:?} {slba} {blocks}");
            }
        }
    });
}

/// The protocol core has checked the ranges; a backend that frees space checks them again.
#[test]
fn ranges_that_are_not_there_are_refused() {
    for_all(|backend| {
        if !backend.keeps_data {
            return;
        }
        let mut user = User::new(backend.bdev.as_ref());
        for range in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, 1), (1, u32::MAX)] {
            let status = user.deallocate(&[range]);
            assert_eq!(status, Status::LBA_OUT_OF_RANGE.with_dnr(), "{range:?}");
        }
    });
}

#[test]
fn too_short_a_buffer_is_refused() {
    for_all(|backend| {
        let mut user = User::new(backend.bdev.as_ref());
        let block_bytes = backend.bdev.geometry().block_bytes;
        let short = user.data(2).subspan(0, 2 * block_bytes - 1);
        for op in [Op::Read, Op::Write { fua: false }, Op::Compare] {
            for buffer in [None, Some(short)] {
                let status = user.run(op, 0, 2, buffer);
                assert_eq!(status, Status::INTERNAL_ERROR.with_dnr(), "{op:?}");
            }
        }
        let status = user.run(Op::Deallocate { ranges: 256 }, 0, 0, Some(short.subspan(0, 16)));
        assert_eq!(status, Status::INTERNAL_ERROR.with_dnr());
    });
}

#[test]
fn a_full_channel_is_busy_and_completes_everything_once() {
    for_all(|backend| {
        let mut channel = backend.bdev.open_channel(0).unwrap();
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let data = arena.carve(4096, 4096).unwrap();
        let read = |tag: u32| Io {
            tag,
            op: Op::Read,
            slba: u64::from(tag) % BLOCKS,
            block_count: 1,
            buffer: Some(data),
        };
        let full = (0..100_000).find(|&tag| channel.submit(read(tag)) == Err(Busy));
        let full = full.expect("a bound");
        let mut done = Completions::with_capacity(3);
        let mut tags = BTreeSet::new();
        let mut submitted = full;
        while tags.len() < submitted as usize {
            channel.poll(Instant::now(), &mut done);
            while let Some(completion) = done.pop() {
                assert_eq!(completion.status, Status::SUCCESS);
                assert!(tags.insert(completion.tag), "{} completed twice", completion.tag);
                // After a completion there is room.
                if submitted < full + 500 {
                    assert_eq!(channel.submit(read(submitted)), Ok(()));
                    submitted += 1;
                }
            }
        }
        channel.poll(Instant::now(), &mut done);
        assert!(done.pop().is_none());
    });
}

#[test]
fn two_channels_on_two_threads_share_the_blocks() {
    for_all(|backend| {
        if !backend.keeps_data {
            return;
        }
        let bdev = backend.bdev.as_ref();
        std::thread::scope(|scope| {
            for core in 0..2_u8 {
                scope.spawn(move || {
                    let mut user = User::on(bdev, core.into());
                    let data = user.data(8);
                    for turn in 0..64 {
                        // Each has every other run of eight blocks.
                        let slba = (turn * 2 + u64::from(core)) * 8;
                        let value = core * 100 + turn as u8;
                        data.fill(value);
                        user.run(Op::Write { fua: false }, slba, 8, Some(data));
                        data.fill(0xFF);
                        user.run(Op::Read, slba, 8, Some(data));
                        assert!(is_all(data, value));
                    }
                });
            }
        });
        let mut user = User::new(bdev);
        let data = user.data(8);
        for run in 0..128_u64 {
            user.run(Op::Read, run * 8, 8, Some(data));
            assert!(is_all(data, (run % 2 * 100 + run / 2) as u8), "run {run}");
        }
    });
}
