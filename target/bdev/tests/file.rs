//! The file backend over a real file.

use std::time::{Duration, Instant};

use bdev::{Bdev, BdevError, Channel, Completions, FileBdev, Io, Op};
use dma::{Arena, DmaSpan};
use nvme_spec::status::Status;

const BLOCK: u32 = 512;

fn run(channel: &mut dyn Channel, op: Op, slba: u64, count: u32, data: DmaSpan) -> Status {
    let io = Io { tag: 9, op, slba, block_count: count, buffer: Some(data) };
    channel.submit(io).unwrap();
    let mut done = Completions::with_capacity(4);
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        channel.poll(Instant::now(), &mut done);
        if let Some(completion) = done.pop() {
            assert_eq!(completion.tag, 9);
            return completion.status;
        }
        assert!(Instant::now() < end, "never completed");
    }
}

fn is_all(span: DmaSpan, value: u8) -> bool {
    let mut bytes = vec![!value; span.len() as usize];
    span.read(0, &mut bytes);
    bytes.iter().all(|&byte| byte == value)
}

#[test]
fn what_is_written_is_read_compared_zeroed_and_freed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk").display().to_string();
    FileBdev::create("f0", &path, 4 << 20).unwrap();
    let bdev = FileBdev::open("f0", &path, BLOCK).unwrap();
    let mut channel = bdev.open_channel(0).unwrap();
    let channel = channel.as_mut();
    let arena = Arena::plain_pages(4 << 20).unwrap();
    let whole = arena.carve(2 << 20, 4096).unwrap();
    // Aligned memory, and memory as in-capsule data has it; larger than Compare's scratch.
    for offset in [0, 64] {
        let data = whole.subspan(offset, 800 * BLOCK);
        for fua in [false, true] {
            data.fill(7);
            assert!(run(channel, Op::Write { fua }, 8, 800, data).is_success());
            data.fill(0);
            assert!(run(channel, Op::Read, 8, 800, data).is_success());
            assert!(is_all(data, 7));
        }
        assert!(run(channel, Op::Compare, 8, 800, data).is_success());
        data.write(799 * BLOCK, &[1]);
        let status = run(channel, Op::Compare, 8, 800, data);
        assert_eq!(status, Status::COMPARE_FAILURE.with_dnr());
        assert!(run(channel, Op::Flush, 0, 0, data).is_success());
        let zero = Op::WriteZeroes { deallocate: offset == 0, fua: true };
        assert!(run(channel, zero, 8, 8, data).is_success());
        let first = data.subspan(0, 9 * BLOCK);
        assert!(run(channel, Op::Read, 8, 9, first).is_success());
        assert!(is_all(first.subspan(0, 8 * BLOCK), 0) && is_all(first.subspan(8 * BLOCK, 512), 7));
        // Two ranges of a deallocate, an empty one between them.
        for (index, (blocks, slba)) in [(8u32, 16u64), (0, 0), (8, 64)].iter().enumerate() {
            data.write(16 * index as u32 + 4, &blocks.to_le_bytes());
            data.write(16 * index as u32 + 8, &slba.to_le_bytes());
        }
        assert!(run(channel, Op::Deallocate { ranges: 3 }, 0, 0, data).is_success());
        for slba in [16, 64] {
            assert!(run(channel, Op::Read, slba, 9, first).is_success());
            assert!(is_all(first.subspan(0, 8 * BLOCK), 0));
            assert!(is_all(first.subspan(8 * BLOCK, BLOCK), 7));
        }
    }
    let status = run(channel, Op::Read, 8192, 1, whole);
    assert_eq!(status, Status::LBA_OUT_OF_RANGE.with_dnr());
}

#[test]
fn the_second_to_open_a_file_is_told_who_holds_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk").display().to_string();
    FileBdev::create("f0", &path, 1 << 20).unwrap();
    let first = FileBdev::open("f0", &path, BLOCK).unwrap();
    let error = FileBdev::open("f1", &path, BLOCK).err().unwrap();
    assert!(matches!(error, BdevError::Claimed { .. }), "{error}");
    println!("{error}");
    let uuid = first.uuid();
    drop(first);
    assert_eq!(FileBdev::open("f0", &path, BLOCK).unwrap().uuid(), uuid);
    assert!(FileBdev::open("f0", &path, 1024).is_err());
    assert!(FileBdev::open("f0", "/dev/null", BLOCK).is_err());
}

#[test]
fn a_file_of_another_size_is_refused_and_one_that_cannot_be_made_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let name = path.to_str().unwrap();
    assert!(FileBdev::create("f0", name, u64::MAX).is_err(), "no file is that large");
    assert!(!path.exists());
    FileBdev::create("f0", name, 1 << 20).unwrap();
    FileBdev::create("f0", name, 1 << 20).unwrap();
    let error = FileBdev::create("f0", name, 2 << 20).unwrap_err().to_string();
    assert!(error.contains("1048576 bytes, not 2097152"), "{error}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20, "left alone");
}
