//! A namespace of the target as a block device, over loopback.

use std::time::{Duration, Instant};

use bdev::{Bdev, Completions, FabricsBdev, Health, Io, Op};
use conformance::{NQN, Server, ServerConfig};
use dma::Arena;
use host::{Controller, Options, Transport};
use nvme_spec::status::Status;

fn attach(server: &Server, arena: &'static Arena) -> FabricsBdev {
    let controller =
        Controller::connect(Options::new(Transport::Tcp, server.addr(), NQN), arena).unwrap();
    FabricsBdev::new("fabrics0", controller, NQN, 1).unwrap()
}

/// Runs one I/O on a channel of its own.
fn run(bdev: &FabricsBdev, io: Io) -> Status {
    let mut channel = bdev.open_channel(0).unwrap();
    channel.submit(io).unwrap();
    let mut done = Completions::with_capacity(1);
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let now = Instant::now();
        assert!(now < limit, "in vain");
        channel.poll(now, &mut done);
        bdev.poll(now);
        if let Some(done) = done.pop() {
            assert_eq!(done.tag, io.tag);
            return done.status;
        }
    }
}

#[test]
fn a_namespace_of_a_target_is_a_block_device() {
    let server = Server::start("127.0.0.1", ServerConfig::default());
    let arena = Arena::plain_pages(4 << 20).unwrap();
    let bdev = attach(&server, arena);
    let geometry = bdev.geometry();
    assert_eq!((bdev.kind(), bdev.health()), ("fabrics", Health::Live));
    assert!(!bdev.uuid().is_nil() && geometry.block_count > 16);
    let bytes = 8 * geometry.block_bytes as usize;
    // Longer than the data, as a buffer may be.
    let data = arena.carve(2 * bytes, 4096).unwrap();
    data.fill(0x5A);
    let io = |tag, op, buffer| Io { tag, op, slba: 4, block_count: 8, buffer };
    // The controller grants one queue: each channel has it in its turn.
    assert_eq!(run(&bdev, io(1, Op::Write { fua: true }, Some(data))), Status::SUCCESS);
    assert_eq!(run(&bdev, io(2, Op::Compare, Some(data))), Status::SUCCESS);
    data.fill(0);
    assert_eq!(run(&bdev, io(3, Op::Read, Some(data))), Status::SUCCESS);
    assert_eq!(data.read_obj::<[u8; 4]>(bytes as u32 - 4), [0x5A; 4]);
    let flush = Io { tag: 4, op: Op::Flush, slba: 0, block_count: 0, buffer: None };
    assert_eq!(run(&bdev, flush), Status::SUCCESS);
    bdev.detach().unwrap();
}

#[test]
fn a_namespace_that_is_not_there_is_refused_with_those_that_are() {
    let server = Server::start("127.0.0.1", ServerConfig::default());
    let arena = Arena::plain_pages(4 << 20).unwrap();
    let controller =
        Controller::connect(Options::new(Transport::Tcp, server.addr(), NQN), arena).unwrap();
    let error = FabricsBdev::new("f", controller, NQN, 7).err().unwrap().to_string();
    assert!(error.contains('7') && error.contains("there are: 1"), "{error}");
}
