//! Log pages: contents, offsets, lengths.

use nvme_spec::identify::cns;
use nvme_spec::log_page::{Effects, ErrorEntry, FirmwareSlots, Smart, lid};
use nvme_spec::opcode::{admin, nvm};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::status::Status;
use nvmf::HealthCounters;
use zerocopy::FromBytes;

use crate::host::{ALICE, NQN, World, admin_sqe};

#[test]
fn errors_are_kept_newest_first_and_bounded() {
    let mut world = World::new();
    let (queue, _) = world.bring_up(ALICE);
    for cns in 0..100 {
        world.identify(queue, 0x80 + cns, 0);
    }
    world.identify(queue, cns::NAMESPACE, 9999);
    let page = world.log(queue, lid::ERROR, 0, 64 * 64).data;
    let newest = ErrorEntry::read_from_bytes(&page[..64]).unwrap();
    assert_eq!((newest.error_count.get(), newest.nsid.get()), (101, 9999));
    let status = Status::from_field(newest.status_field.get());
    assert_eq!(status, Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    let oldest = ErrorEntry::read_from_bytes(&page[63 * 64..]).unwrap();
    assert_eq!(oldest.error_count.get(), 38);
}

#[test]
fn smart_comes_from_the_counters() {
    let mut world = World::new();
    let (queue, _) = world.bring_up(ALICE);
    let health = HealthCounters {
        temperature_kelvin: 313,
        read_bytes: 512_001,
        reads: 5,
        media_errors: 2,
        ..Default::default()
    };
    world.target.set_health(NQN, health).unwrap();
    let page = world.log(queue, lid::SMART, 0, 512).data;
    let smart = Smart::read_from_bytes(&page).unwrap();
    assert_eq!(u128::from_le_bytes(smart.data_units_read), 2, "rounded up");
    assert_eq!(u128::from_le_bytes(smart.host_reads), 5);
    assert_eq!(u128::from_le_bytes(smart.media_errors), 2);
    assert_eq!((smart.temperature_kelvin.get(), smart.critical_warning), (313, 0));
}

#[test]
fn effects_and_firmware() {
    let mut world = World::new();
    let (queue, _) = world.bring_up(ALICE);
    let page = world.log(queue, lid::EFFECTS, 0, 4096).data;
    let effects = Effects::read_from_bytes(&page).unwrap();
    assert_eq!(effects.io[usize::from(nvm::WRITE)].get(), 3);
    assert_eq!(effects.io[usize::from(nvm::READ)].get(), 1);
    assert_eq!(effects.admin[usize::from(admin::CREATE_SQ)].get(), 0);
    for opcode in 0..=255u8 {
        // What the log says is there is there, and nothing else is.
        if matches!(opcode, admin::ASYNC_EVENT_REQUEST | nvme_spec::opcode::FABRICS) {
            continue;
        }
        let status = world.command(queue, &admin_sqe(opcode, 0, 0, 0), &[]).status;
        let is_there = status != Status::INVALID_OPCODE.with_dnr();
        assert_eq!(effects.admin[usize::from(opcode)].get() != 0, is_there, "{opcode:#x}");
    }
    let page = world.log(queue, lid::FIRMWARE_SLOT, 0, 512).data;
    let slots = FirmwareSlots::read_from_bytes(&page).unwrap();
    assert_eq!((slots.afi, &slots.frs[0][..5]), (1, env!("CARGO_PKG_VERSION").as_bytes()));
    assert_eq!(world.log(queue, lid::SUPPORTED, 4, 4).data, [1, 0, 0, 0]);
    assert_eq!(world.log(queue, lid::SUPPORTED, 4 * 0x70, 4).data, [0; 4]);
}

#[test]
fn offsets_and_lengths() {
    let mut world = World::new();
    let (queue, _) = world.bring_up(ALICE);
    let whole = world.log(queue, lid::SMART, 0, 512).data;
    assert_eq!(world.log(queue, lid::SMART, 4, 8).data, whole[4..12]);
    let past = world.log(queue, lid::SMART, 508, 8).data;
    assert_eq!(past, [0; 8], "zeroes behind the end");
    let invalid = Status::INVALID_FIELD.with_dnr();
    assert_eq!(world.log(queue, lid::SMART, 2, 8).status, invalid);
    assert_eq!(world.log(queue, lid::SMART, 516, 8).status, invalid);
    assert_eq!(world.log(queue, lid::SMART, u64::MAX - 3, 8).status, invalid);
    assert_eq!(world.log(queue, lid::SMART, 0, (1 << 20) + 4).status, invalid, "beyond MDTS");
    let unknown = Status::INVALID_LOG_PAGE.with_dnr();
    assert_eq!(world.log(queue, lid::DISCOVERY, 0, 1024).status, unknown);
    assert_eq!(world.log(queue, 0xC0, 0, 512).status, unknown);
    let mut sqe = admin_sqe(admin::GET_LOG_PAGE, u32::MAX, 127 << 16 | 2, 0);
    sqe.set_sgl(SglDescriptor::keyed(0, 508, 7, false));
    let short = world.command(queue, &sqe, &[]).status;
    assert_eq!(short, Status::DATA_SGL_LENGTH_INVALID.with_dnr());
}
