//! The world itself: it loses what it may lose and keeps what it must keep, and a toy store shows
//! that it finds a missing flush.

use std::time::Instant;

use bdev::{Channel, Completions, Io, Op};
use dma::DmaSpan;
use nvme_spec::status::Status;
use sim::{DeviceConfig, End, Image, Memory, Watch, World};

const BLOCK: u32 = 512;

/// Does one I/O after another on the first device of a world.
struct User {
    channel: Box<dyn Channel>,
    span: DmaSpan,
    next_tag: u32,
    _memory: Memory,
}

impl User {
    fn new(world: &World) -> Self {
        let memory = Memory::new(&[4096], 64 << 10);
        let span = memory.span();
        let channel = world.devices()[0].open_channel(0).unwrap();
        Self { channel, span, next_tag: 0, _memory: memory }
    }

    fn submit(&mut self, op: Op, slba: u64, block_count: u32, span: DmaSpan) -> u32 {
        self.next_tag += 1;
        let io = Io { tag: self.next_tag, op, slba, block_count, buffer: Some(span) };
        while self.channel.submit(io).is_err() {}
        self.next_tag
    }

    fn wait_for(&mut self, tags: &[u32]) {
        let (mut left, mut done) = (tags.len(), Completions::with_capacity(8));
        while left > 0 {
            self.channel.poll(Instant::now(), &mut done);
            while let Some(completion) = done.pop() {
                assert_eq!(completion.status, Status::SUCCESS);
                left -= usize::from(tags.contains(&completion.tag));
            }
        }
    }

    fn write(&mut self, slba: u64, block_count: u32, value: u8) {
        self.span.fill(value);
        let tag = self.submit(Op::Write { fua: false }, slba, block_count, self.span);
        self.wait_for(&[tag]);
    }

    fn flush(&mut self) {
        let tag = self.submit(Op::Flush, 0, 0, self.span);
        self.wait_for(&[tag]);
    }

    fn read(&mut self, slba: u64, block_count: u32) -> Vec<u8> {
        let tag = self.submit(Op::Read, slba, block_count, self.span);
        self.wait_for(&[tag]);
        let mut bytes = vec![0; (block_count * BLOCK) as usize];
        self.span.read(0, &mut bytes);
        bytes
    }
}

fn world(seed: u64) -> World {
    World::new(seed, &[DeviceConfig::new(1 << 20, BLOCK)])
}

/// Writes values with a header that says which is the newest; the bug leaves the flush between out.
fn toy_store(seed: u64, has_flush: bool) -> (Vec<Image>, u64) {
    let world = world(seed);
    let mut user = User::new(&world);
    for slba in 0..3 {
        user.write(slba * 8, 8, 0);
    }
    user.flush();
    world.watch(Watch::OneIn(1));
    for value in 1..6 {
        user.write(8 + u64::from(value % 2) * 8, 8, value);
        if has_flush {
            user.flush();
        }
        user.write(0, 1, value);
    }
    (world.take_images(), world.trace())
}

/// The header's value must be there, whole.
fn is_sound(image: Image) -> bool {
    let world = World::over(7, image);
    let mut user = User::new(&world);
    let value = user.read(0, 1)[0];
    user.read(8 + u64::from(value % 2) * 8, 8).iter().all(|&byte| byte >= value)
}

#[test]
fn a_missing_flush_is_found_and_a_store_that_flushes_passes() {
    let unsound = |has_flush: bool| {
        let images = (0..20).flat_map(|seed| toy_store(seed, has_flush).0);
        images.filter(|image| !is_sound(image.clone())).map(|image| image.end).collect::<Vec<_>>()
    };
    assert_eq!(unsound(true), []);
    let found = unsound(false);
    assert!(found.contains(&End::PowerLoss), "{found:?}");
    assert!(!found.contains(&End::ProcessDeath), "a completed write survives the process");
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(toy_store(3, true).1, toy_store(3, true).1);
    assert_ne!(toy_store(3, true).1, toy_store(4, true).1);
}

#[test]
fn writes_in_flight_are_torn_and_flushed_ones_are_not() {
    let (mut torn, mut lost, mut whole) = (0, 0, 0);
    for seed in 0..100 {
        let world = world(seed);
        let mut user = User::new(&world);
        user.write(0, 8, 1);
        user.write(16, 8, 1);
        user.flush();
        user.span.fill(2);
        user.submit(Op::Write { fua: false }, 0, 8, user.span);
        let mut after = User::new(&World::over(seed, world.image(End::PowerLoss)));
        let bytes = after.read(0, 8);
        let sectors = bytes.chunks(BLOCK as usize);
        assert!(sectors.clone().all(|sector| sector.iter().all(|&byte| byte == sector[0])));
        match sectors.filter(|sector| sector[0] == 2).count() {
            0 => lost += 1,
            8 => whole += 1,
            _ => torn += 1,
        }
        assert!(after.read(16, 8).iter().all(|&byte| byte == 1), "flushed");
    }
    assert!(torn > 5 && lost > 5 && whole > 5, "{torn} torn, {lost} lost, {whole} whole");
}

#[test]
fn fua_makes_one_write_stable_and_a_flush_what_completed_before_it() {
    for seed in 0..100 {
        let world = world(seed);
        let mut user = User::new(&world);
        user.span.fill(3);
        let early = user.submit(Op::Write { fua: true }, 0, 1, user.span);
        user.wait_for(&[early]);
        let flush = user.submit(Op::Flush, 0, 0, user.span);
        let late = user.submit(Op::Write { fua: false }, 8, 1, user.span);
        user.wait_for(&[flush, late]);
        let image = world.image(End::PowerLoss);
        let mut after = User::new(&World::over(seed, image));
        assert_eq!(after.read(0, 1), [3; 512]);
    }
    let late_is_lost = (0..100).any(|seed| {
        let world = world(seed);
        let mut user = User::new(&world);
        user.span.fill(3);
        let flush = user.submit(Op::Flush, 0, 0, user.span);
        let late = user.submit(Op::Write { fua: false }, 8, 1, user.span);
        user.wait_for(&[flush, late]);
        User::new(&World::over(seed, world.image(End::PowerLoss))).read(8, 1) != [3; 512]
    });
    assert!(late_is_lost, "a flush covers nothing that completed after it was submitted");
}

#[test]
fn media_that_nobody_wrote_is_garbage_and_the_same_each_time() {
    let world = world(1);
    let mut user = User::new(&world);
    let first = user.read(100, 4);
    assert_ne!(first, vec![0; 2048]);
    assert_eq!(user.read(100, 4), first);
    user.write(100, 1, 9);
    assert_eq!(user.read(101, 3), first[512..], "the rest of the page stays");
}
