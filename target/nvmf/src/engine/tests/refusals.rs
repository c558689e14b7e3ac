//! What is refused, and by which status exactly.

use nvme_spec::opcode::admin;

use super::commands::{dataset_management, put_range};
use super::*;

#[test]
fn each_fault_has_its_status() {
    let in_capsule = SglDescriptor::in_capsule(0, 512);
    let too_large = command(nvm::READ, 1, SglDescriptor::keyed(0, MAX_TRANSFER + 512, KEY, false));
    let mut above_mdts = too_large;
    ReadWrite::new(0, 2049).set(&mut above_mdts);
    let mut read_only = command(nvm::WRITE, 2, SglDescriptor::keyed(0, 4096, KEY, false));
    ReadWrite::new(0, 1).set(&mut read_only);
    let mut fused = read(0, 1);
    fused.flags |= 1;
    let mut prps = read(0, 1);
    prps.set_prps(0x1000, 0);
    let mut reserved_psdt = read(0, 1);
    reserved_psdt.flags = 0b11 << 6;
    for (what, sqe, status) in [
        ("an opcode", command(0x7E, 1, in_capsule), Status::INVALID_OPCODE),
        ("an admin opcode", command(admin::IDENTIFY, 1, in_capsule), Status::INVALID_OPCODE),
        ("NSID 0", with_nsid(0), Status::INVALID_NAMESPACE_OR_FORMAT),
        ("NSID 3", with_nsid(3), Status::INVALID_NAMESPACE_OR_FORMAT),
        ("all namespaces", with_nsid(u32::MAX), Status::INVALID_NAMESPACE_OR_FORMAT),
        ("one block too many", read(BLOCKS - 1, 2), Status::LBA_OUT_OF_RANGE),
        ("the first block beyond", write(BLOCKS, 1), Status::LBA_OUT_OF_RANGE),
        ("an overflow", read(u64::MAX, 1), Status::LBA_OUT_OF_RANGE),
        ("zeroes beyond", keyed(nvm::WRITE_ZEROES, 1, 4096), Status::LBA_OUT_OF_RANGE),
        ("a compare beyond", keyed(nvm::COMPARE, BLOCKS, 1), Status::LBA_OUT_OF_RANGE),
        ("more than MDTS", above_mdts, Status::INVALID_FIELD),
        ("a fused command", fused, Status::INVALID_FIELD),
        ("PRPs", prps, Status::INVALID_FIELD),
        ("PSDT 3", reserved_psdt, Status::INVALID_FIELD),
        ("a write", read_only, Status::NAMESPACE_WRITE_PROTECTED),
        ("zeroes", of_nsid_2(nvm::WRITE_ZEROES), Status::NAMESPACE_WRITE_PROTECTED),
        ("too short a buffer", short(511), Status::DATA_SGL_LENGTH_INVALID),
        ("too long a buffer", short(513), Status::DATA_SGL_LENGTH_INVALID),
        ("no buffer", short(0), Status::DATA_SGL_LENGTH_INVALID),
    ] {
        let mut world = World::new();
        let step = world.send(sqe);
        let cqe = world.sent(step);
        assert_eq!((cqe.status(), cqe.cid()), (status.with_dnr(), 0x1234), "{what}");
        assert_eq!(world.engine.stats().ios, 0, "{what}");
        world.assert_idle();
    }
}

fn with_nsid(nsid: u32) -> Sqe {
    let mut sqe = read(0, 1);
    sqe.nsid = nsid.into();
    sqe
}

fn of_nsid_2(opcode: u8) -> Sqe {
    command(opcode, 2, SglDescriptor::keyed(0, 4096, KEY, false))
}

/// A read of one block into a buffer of another size.
fn short(bytes: u32) -> Sqe {
    with_sgl(read(0, 1), SglDescriptor::keyed(0, bytes, KEY, false))
}

#[test]
fn reading_a_read_only_namespace_is_no_fault() {
    let mut world = World::new();
    for opcode in [nvm::READ, nvm::FLUSH] {
        let step = world.send(of_nsid_2(opcode));
        world.complete(step);
    }
    let step = world.send(of_nsid_2(nvm::COMPARE));
    let step = world.engine.handle_fetched(fetching(&step), true);
    world.complete(step);
    world.assert_idle();
}

#[test]
fn sgl_descriptors_that_a_carrier_does_not_take() {
    let keyed_carrier = |sgl| {
        let mut world = World::new();
        let step = world.send_with(with_sgl(write(0, 1), sgl), 4096);
        let status = world.sent(step).status();
        world.assert_idle();
        status
    };
    let wrong_type = Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr();
    assert_eq!(keyed_carrier(SglDescriptor::transport(512)), wrong_type);
    let taken = [0x01, 0x40, 0x4F];
    for identifier in (0..=u8::MAX).filter(|identifier| !taken.contains(identifier)) {
        let mut sgl = SglDescriptor::in_capsule(0, 512);
        sgl.0[15] = identifier;
        assert_eq!(keyed_carrier(sgl), wrong_type, "{identifier:02X}h");
    }
    let mut world = World::with(Carrier::Stream, io_queue(32));
    assert_eq!(world.status(write(0, 1)), wrong_type, "a key without RDMA");
    // In-capsule data is not there, or goes the wrong way.
    let mut world = World::new();
    let sgl = SglDescriptor::in_capsule(0, 512);
    assert_eq!(world.status(with_sgl(write(0, 1), sgl)), wrong_type);
    let step = world.send_with(with_sgl(read(0, 1), sgl), 512);
    assert_eq!(world.sent(step).status(), wrong_type);
}

#[test]
fn data_beyond_the_capsule() {
    let mut world = World::new();
    for (offset, bytes) in [
        (0, 511),
        (4, 512),
        (3588, 4096),
        (4096, 4096),
        (2, 4096),
        (u64::MAX, 4096),
        (u64::MAX - 511, 4096),
        (1 << 32, 4096),
    ] {
        let sqe = with_sgl(write(0, 1), SglDescriptor::in_capsule(offset, 512));
        let step = world.send_with(sqe, bytes);
        let status = world.sent(step).status();
        assert_eq!(status, Status::SGL_OFFSET_INVALID.with_dnr(), "{offset} in {bytes}");
    }
    let sqe = with_sgl(write(0, 1), SglDescriptor::in_capsule(0, u32::MAX));
    let step = world.send_with(sqe, 4096);
    assert_eq!(world.sent(step).status(), Status::SGL_OFFSET_INVALID.with_dnr());
    world.assert_idle();
}

#[test]
fn one_range_out_of_range_deallocates_nothing() {
    for (slba, block_count) in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, 1), (1, u32::MAX)] {
        let mut world = World::new();
        let step = world.send(dataset_management(2));
        let id = fetching(&step);
        let data = world.engine.request(id).data().unwrap();
        put_range(data, 0, 0, 8);
        put_range(data, 1, slba, block_count);
        let step = world.engine.handle_fetched(id, true);
        assert_eq!(world.sent(step).status(), Status::LBA_OUT_OF_RANGE.with_dnr());
        world.assert_idle();
    }
}

#[test]
fn admin_data_is_bounded() {
    let admin_queue = QueueParams { role: QueueRole::Admin, ..io_queue(32) };
    let mut world = World::with(Carrier::Keyed, admin_queue);
    let sgl = SglDescriptor::keyed(0, MAX_TRANSFER + 1, KEY, false);
    let status = world.status(command(admin::GET_LOG_PAGE, 0, sgl));
    assert_eq!(status, Status::INVALID_FIELD.with_dnr());
    world.assert_idle();
}
