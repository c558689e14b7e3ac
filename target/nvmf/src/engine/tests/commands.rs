//! What goes well: each command on each way that data can take.

use bdev::Op;
use nvme_spec::nvm::{DsmRange, set_dsm_deallocate};
use nvme_spec::opcode::{FABRICS, admin};
use zerocopy::IntoBytes;

use super::*;

#[test]
fn a_read_fills_a_buffer_that_is_sent_to_the_host() {
    let mut world = World::new();
    let sgl = SglDescriptor::keyed(0x9000, 8 * 512, KEY, true);
    let step = world.send(with_sgl(read(16, 8), sgl));
    let (id, io) = submitted(&step);
    assert!(matches!(step, Step::Submit { channel: CHANNEL, .. }));
    assert_eq!((io.op, io.slba, io.block_count), (Op::Read, 16, 8));
    io.buffer.unwrap().fill(0xAB);
    let step = world.engine.handle_done(id, Status::SUCCESS);
    let request = world.engine.request(id);
    let host = HostBuffer::Keyed { address: 0x9000, key: KEY, invalidate: true };
    assert_eq!(request.host(), host);
    let data = request.data_out().expect("data for the host");
    assert_eq!((data.len(), data.read_obj::<u8>(4095)), (4096, 0xAB));
    let cqe = world.sent(step);
    assert_eq!((cqe.cid(), cqe.status(), cqe.result()), (0x1234, Status::SUCCESS, 0));
    assert_eq!(world.engine.stats().ios, 1);
    world.assert_idle();
}

#[test]
fn a_read_that_fails_sends_no_data() {
    let mut world = World::new();
    let step = world.send(read(0, 8));
    let (id, _) = submitted(&step);
    let step = world.engine.handle_done(id, Status::UNRECOVERED_READ_ERROR);
    assert!(world.engine.request(id).data_out().is_none());
    assert_eq!(world.sent(step).status(), Status::UNRECOVERED_READ_ERROR);
    world.assert_idle();
}

#[test]
fn data_of_writes_and_compares_is_fetched_first() {
    for (opcode, fua, op) in [
        (nvm::WRITE, false, Op::Write { fua: false }),
        (nvm::WRITE, true, Op::Write { fua: true }),
        (nvm::COMPARE, false, Op::Compare),
    ] {
        let mut world = World::new();
        let mut sqe = keyed(opcode, 5, 2048);
        ReadWrite::new(5, 2048).with_fua(fua).set(&mut sqe);
        let step = world.send(sqe);
        let id = fetching(&step);
        assert_eq!(world.engine.request(id).data().unwrap().len(), MAX_TRANSFER);
        let step = world.engine.handle_fetched(id, true);
        assert_eq!(submitted(&step).1.op, op);
        let (id, _) = submitted(&step);
        let step = world.engine.handle_done(id, Status::SUCCESS);
        assert!(world.engine.request(id).data_out().is_none(), "the host sent the data");
        assert!(world.sent(step).status().is_success());
        world.assert_idle();
    }
}

#[test]
fn data_in_the_capsule_stays_where_it_is() {
    let mut world = World::new();
    for (offset, length) in [(0, 4096), (512, 3584), (4, 512)] {
        let sqe = with_sgl(write(9, length / 512), SglDescriptor::in_capsule(offset, length));
        let step = world.send_with(sqe, 4096);
        let (id, io) = submitted(&step);
        let buffer = io.buffer.unwrap();
        assert_eq!(buffer.addr(), world.capsule.addr() + offset);
        assert_eq!(buffer.len(), length);
        assert_eq!(world.engine.request(id).host(), HostBuffer::None);
        assert_eq!(world.engine.pool().free_bytes(), world.engine.pool().bytes());
        world.complete(step);
    }
    world.assert_idle();
}

#[test]
fn a_stream_brings_and_takes_data_in_its_own_order() {
    let mut world = World::with(Carrier::Stream, io_queue(32));
    let step = world.send(with_sgl(write(0, 16), SglDescriptor::transport(8192)));
    let id = fetching(&step);
    assert_eq!(world.engine.request(id).host(), HostBuffer::Stream);
    let step = world.engine.handle_fetched(id, true);
    world.complete(step);
    let step = world.send(with_sgl(read(0, 16), SglDescriptor::transport(8192)));
    let (id, _) = submitted(&step);
    let step = world.engine.handle_done(id, Status::SUCCESS);
    assert_eq!(world.engine.request(id).data_out().unwrap().len(), 8192);
    world.sent(step);
    world.assert_idle();
}

#[test]
fn data_that_was_corrupted_on_its_way_is_asked_for_again() {
    let mut world = World::with(Carrier::Stream, io_queue(32));
    let step = world.send(with_sgl(write(0, 16), SglDescriptor::transport(8192)));
    let step = world.engine.handle_fetched(fetching(&step), false);
    assert_eq!(world.sent(step).status(), Status::TRANSIENT_TRANSPORT_ERROR);
    let id = world.armed.pop().unwrap();
    let step = world.engine.handle_corrupt_capsule(id, write(0, 8));
    assert!(matches!(world.engine.handle_corrupt_capsule(id, write(0, 8)), Step::None), "busy");
    assert_eq!(world.sent(step).status(), Status::TRANSIENT_TRANSPORT_ERROR);
    world.assert_idle();
}

#[test]
fn commands_without_data_take_no_buffer() {
    let mut world = World::new();
    let flush = command(nvm::FLUSH, 1, SglDescriptor::keyed(0, 0, 0, false));
    let step = world.send(flush);
    let (_, io) = submitted(&step);
    assert_eq!((io.op, io.block_count, io.buffer.is_none()), (Op::Flush, 0, true));
    world.complete(step);
    let mut zeroes = keyed(nvm::WRITE_ZEROES, 96, 4000);
    ReadWrite::new(96, 4000).with_deac(true).with_fua(true).set(&mut zeroes);
    let step = world.send(zeroes);
    let (_, io) = submitted(&step);
    assert_eq!(io.op, Op::WriteZeroes { deallocate: true, fua: true });
    assert_eq!((io.slba, io.block_count, io.buffer.is_none()), (96, 4000, true));
    world.complete(step);
    world.assert_idle();
}

/// A Dataset Management command whose ranges are fetched.
pub(super) fn dataset_management(ranges: u32) -> Sqe {
    let sgl = SglDescriptor::keyed(0x5000, ranges * 16, KEY, false);
    let mut sqe = command(nvm::DATASET_MANAGEMENT, 1, sgl);
    set_dsm_deallocate(&mut sqe, ranges);
    sqe
}

pub(super) fn put_range(data: DmaSpan, index: u32, slba: u64, block_count: u32) {
    let range =
        DsmRange { attributes: 0.into(), block_count: block_count.into(), slba: slba.into() };
    data.write(16 * index, range.as_bytes());
}

#[test]
fn deallocate_checks_its_ranges_when_they_are_here() {
    let mut world = World::new();
    let step = world.send(dataset_management(256));
    let id = fetching(&step);
    let data = world.engine.request(id).data().unwrap();
    assert_eq!(data.len(), 4096);
    (0..256).for_each(|index| put_range(data, index, u64::from(index) * 16, 16));
    let step = world.engine.handle_fetched(id, true);
    assert_eq!(submitted(&step).1.op, Op::Deallocate { ranges: 256 });
    world.complete(step);
    world.assert_idle();
}

/// As Linux does it.
#[test]
fn deallocate_may_bring_memory_for_more_ranges_than_it_has() {
    let mut world = World::new();
    let sqe = with_sgl(dataset_management(1), SglDescriptor::keyed(0x5000, 4096, KEY, false));
    let step = world.send(sqe);
    let id = fetching(&step);
    let data = world.engine.request(id).data().unwrap();
    put_range(data, 0, 8, 8);
    put_range(data, 1, BLOCKS, 1);
    let step = world.engine.handle_fetched(id, true);
    assert_eq!(submitted(&step).1.op, Op::Deallocate { ranges: 1 });
    world.complete(step);
    for bytes in [15, 4097] {
        let sgl = SglDescriptor::keyed(0x5000, bytes, KEY, false);
        let status = world.status(with_sgl(dataset_management(1), sgl));
        assert_eq!(status, Status::DATA_SGL_LENGTH_INVALID.with_dnr());
    }
    world.assert_idle();
}

#[test]
fn hints_about_use_deallocate_nothing() {
    let mut world = World::new();
    let mut sqe = dataset_management(1);
    // Integral Dataset for Read and for Write, but not Deallocate.
    sqe.cdw11 = 3.into();
    assert_eq!(world.status(sqe), Status::SUCCESS);
    assert_eq!(world.engine.stats().ios, 0);
    world.assert_idle();
}

#[test]
fn the_control_half_answers_what_is_no_io() {
    let admin_queue = QueueParams { role: QueueRole::Admin, ..io_queue(32) };
    let mut world = World::with(Carrier::Keyed, admin_queue);
    let sgl = SglDescriptor::keyed(0x9000, 4096, KEY, false);
    let step = world.send(command(admin::IDENTIFY, 0, sgl));
    let Step::Control(id) = step else { panic!("{step:?}") };
    assert_eq!(world.engine.request(id).data().unwrap().len(), 4096);
    // More than the host has room for is cut off.
    let step = world.engine.handle_answer(id, 0x1_0000_0002, Status::SUCCESS, 5000);
    assert_eq!(world.engine.request(id).data_out().unwrap().len(), 4096);
    assert_eq!(world.sent(step).result(), 0x1_0000_0002);
    // Set Features: the host's data comes first.
    let step = world.send(command(admin::SET_FEATURES, 0, sgl));
    let id = fetching(&step);
    let step = world.engine.handle_fetched(id, true);
    assert!(matches!(step, Step::Control(same) if same == id));
    let step = world.engine.handle_answer(id, 0, Status::SUCCESS, 0);
    assert!(world.engine.request(id).data_out().is_none());
    world.sent(step);
    // Without data there is no buffer either.
    let step = world.send(command(admin::KEEP_ALIVE, 0, sgl));
    let Step::Control(id) = step else { panic!("{step:?}") };
    assert!(world.engine.request(id).data().is_none());
    let step = world.engine.handle_answer(id, 0, Status::SUCCESS, 0);
    world.sent(step);
    world.assert_idle();
}

#[test]
fn fabrics_commands_on_io_queues_go_to_the_control_half() {
    let mut world = World::new();
    // The nsid field holds FCTYPE: 00h, Property Set, has no data; 01h, Connect, has.
    let sgl = SglDescriptor::keyed(0x9000, 1024, KEY, false);
    assert!(matches!(world.send(command(FABRICS, 0, sgl)), Step::Control(_)));
    let step = world.send(command(FABRICS, 1, sgl));
    let step = world.engine.handle_fetched(fetching(&step), true);
    assert!(matches!(step, Step::Control(_)));
}

#[test]
fn the_queue_head_wraps_at_the_size_of_the_queue() {
    let mut world = World::with(Carrier::Keyed, io_queue(3));
    let mut heads = Vec::new();
    for _ in 0..7 {
        let step = world.send(command(0xFF, 1, SglDescriptor::in_capsule(0, 0)));
        heads.push(world.sent(step).sqhd.get());
    }
    assert_eq!(heads, [1, 2, 0, 1, 2, 0, 1]);
    // It is that of the moment of the response, not of the command's arrival.
    let first = world.send(read(0, 1));
    let second = world.send(read(0, 1));
    assert_eq!(world.complete(first).sqhd.get(), 0);
    assert_eq!(world.complete(second).sqhd.get(), 0);
}

#[test]
fn without_flow_control_the_queue_head_is_ffff() {
    let mut world = World::with(Carrier::Keyed, QueueParams { flow_control: false, ..io_queue(3) });
    for _ in 0..4 {
        let step = world.send(read(0, 1));
        assert_eq!(world.complete(step).sqhd.get(), 0xFFFF);
    }
}

#[test]
fn commands_before_connect_count_for_the_queue_head() {
    let mut world = World::new();
    let (queue, ids) = world.engine.open_queue(Carrier::Keyed, 4).unwrap();
    let sgl = SglDescriptor::keyed(0x9000, 0, KEY, false);
    for id in &ids[..3] {
        let step = world.engine.handle_capsule(*id, command(FABRICS, 0, sgl), None);
        assert!(matches!(step, Step::Control(_)));
    }
    world.engine.bind_queue(queue, io_queue(2));
    let step = world.engine.handle_answer(ids[0], 0, Status::SUCCESS, 0);
    assert_eq!(world.sent(step).sqhd.get(), 1);
}
