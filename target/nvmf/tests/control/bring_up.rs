//! The Linux kernel's way from connection to namespaces, and what it reads on it.

use nvme_spec::features::fid;
use nvme_spec::identify::{IdentifyController, IdentifyNamespace, cns, descriptors, nidt, trimmed};
use nvme_spec::opcode::admin;
use nvme_spec::registers::{CAP, CC, Cap, Cc, VS};
use nvme_spec::status::Status;
use nvmf::{QueueKind, TargetConfig};
use zerocopy::FromBytes;

use crate::host::{ALICE, NQN, World, admin_connect, admin_sqe, geometry, namespace};

#[test]
fn as_the_linux_kernel_does_it() {
    let mut world = World::new();
    let (queue, answer) = world.attempt(&admin_connect(ALICE));
    assert_eq!(answer.status, Status::SUCCESS);
    let cntlid = answer.result as u16;
    assert_eq!(world.bound, [(queue, QueueKind::Admin, cntlid)]);
    let cap = Cap(world.get_property(queue, CAP, true).result);
    assert_eq!((cap.mqes_z(), cap.cqr(), cap.css() & 1, cap.mpsmin()), (127, true, 1, 0));
    let early = world.identify(queue, cns::CONTROLLER, 0);
    assert_eq!(early.status, Status::COMMAND_SEQUENCE_ERROR, "not enabled yet");
    let cc = Cc::enabled(0, 0);
    world.set_property(queue, CC, cc.disabled().0);
    world.set_property(queue, CC, cc.0);
    assert!(world.csts(queue).rdy());
    assert_eq!(world.get_property(queue, CC, false).result, u64::from(cc.0));
    assert_eq!(world.get_property(queue, VS, false).result, 0x2_0100);

    let data = world.identify(queue, cns::CONTROLLER, 0).data;
    let id = IdentifyController::read_from_bytes(&data).unwrap();
    assert_eq!(id.cntlid.get(), cntlid);
    assert_eq!((trimmed(&id.sn).as_str(), trimmed(&id.mn).as_str()), ("FB0001", "Forebay"));
    assert_eq!(nvme_spec::fabrics::text(&id.subnqn), Some(NQN));
    assert_eq!((id.mdts, id.kas.get(), id.cmic, id.cntrltype), (8, 10, 3, 1));
    assert_eq!((id.ioccsz.get(), id.iorcsz.get(), id.icdoff.get(), id.msdbd), (260, 1, 0, 1));
    assert_eq!((id.sgls.get(), id.maxcmd.get(), id.aerl_z), (0x10_0005, 128, 3));
    assert_eq!((id.sqes, id.cqes, id.oncs.get(), id.vwc), (0x66, 0x44, 0b1101, 0b100));
    assert_eq!((id.oacs.get(), id.oaes.get(), id.ctratt.get()), (0, 1 << 8, 1));
    assert_eq!((id.awun_z.get(), id.awupf_z.get(), id.nn.get()), (0, 0, 1024));

    let granted = world.admin(queue, admin::SET_FEATURES, fid::NUMBER_OF_QUEUES.into(), 0x3_0003);
    assert_eq!((granted.status, granted.result), (Status::SUCCESS, 0x3_0003));
    for cid in 0..4 {
        let request = world.event_request(queue, cid);
        assert!(!world.answers.contains_key(&request), "no event yet");
    }
    for qid in 1..=4 {
        world.io_queue(ALICE, cntlid, qid);
        assert!(matches!(world.bound.last(), Some((_, QueueKind::Io { qid: q }, c))
            if (*q, *c) == (qid, cntlid)));
    }
    let again = world.admin(queue, admin::SET_FEATURES, fid::NUMBER_OF_QUEUES.into(), 0);
    assert_eq!(again.status, Status::COMMAND_SEQUENCE_ERROR.with_dnr());

    let list = world.identify(queue, cns::ACTIVE_NAMESPACES, 0).data;
    assert_eq!(list[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    let data = world.identify(queue, cns::NAMESPACE_DESCRIPTORS, 1).data;
    let all: Vec<_> = descriptors(&data).collect();
    let (uuid, nguid) = ([1u8; 16], [0x81u8; 16]);
    assert_eq!(all, [(nidt::UUID, &uuid[..]), (nidt::NGUID, &nguid), (nidt::CSI, &[0][..])]);
}

#[test]
fn a_namespace_says_what_its_geometry_guarantees() {
    let mut world = World::new();
    let (queue, _) = world.bring_up(ALICE);
    let data = world.identify(queue, cns::NAMESPACE, 1).data;
    let id = IdentifyNamespace::read_from_bytes(&data).unwrap();
    assert_eq!((id.nsze.get(), id.ncap.get(), id.nuse.get()), (1000, 1000, 1000));
    assert_eq!((id.format().lbads, id.format().ms.get(), id.nlbaf_z), (12, 0, 0));
    assert_eq!((id.nsfeat, id.nmic, id.dlfeat), (0b1_0010, 1, 0b1001));
    assert_eq!((id.nawun.get(), id.nawupf.get(), id.noiob.get()), (3, 3, 0));
    assert_eq!((id.npwg_z.get(), id.npdg_z.get(), id.nguid), (7, 7, [0x81; 16]));
    assert_eq!(u128::from_le_bytes(id.nvmcap), 4_096_000);
}

#[test]
fn nsids_that_are_not_there() {
    let mut world = World::new();
    let (queue, _) = world.bring_up(ALICE);
    let absent = world.identify(queue, cns::NAMESPACE, 2);
    assert_eq!((absent.status, absent.data), (Status::SUCCESS, vec![0; 4096]));
    let invalid = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
    for nsid in [0, 1025, u32::MAX] {
        assert_eq!(world.identify(queue, cns::NAMESPACE, nsid).status, invalid, "{nsid}");
    }
    assert_eq!(world.identify(queue, cns::NAMESPACE_DESCRIPTORS, 2).status, invalid);
    assert_eq!(world.identify(queue, cns::ACTIVE_NAMESPACES, u32::MAX - 1).status, invalid);
    assert_eq!(world.identify(queue, 0x55, 0).status, Status::INVALID_FIELD.with_dnr());
    assert_eq!(world.identify(queue, cns::COMMAND_SETS, 0).data[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.identify(queue, cns::INDEPENDENT_NAMESPACE, 1).data[14], 1, "ready");
    let mut sqe = admin_sqe(admin::IDENTIFY, 0, cns::CONTROLLER.into(), 0);
    sqe.set_sgl(nvme_spec::sgl::SglDescriptor::keyed(0, 4095, 7, false));
    let short = world.command(queue, &sqe, &[]);
    assert_eq!(short.status, Status::DATA_SGL_LENGTH_INVALID.with_dnr());
}

#[test]
fn a_volatile_cache_shows_only_where_there_is_one() {
    let mut world = World::new();
    let (queue, _) = world.bring_up(ALICE);
    let cache = u32::from(fid::VOLATILE_WRITE_CACHE);
    let refused = world.admin(queue, admin::GET_FEATURES, cache, 0);
    assert_eq!(refused.status, Status::INVALID_FIELD.with_dnr());
    let mut cached = namespace(2, None);
    cached.geometry = bdev::Geometry { volatile_write_cache: true, ..geometry() };
    assert_eq!(world.target.add_namespace(NQN, cached), Ok(2));
    let data = world.identify(queue, cns::CONTROLLER, 0).data;
    assert_eq!(data[525], 0b101);
    assert_eq!(world.admin(queue, admin::GET_FEATURES, cache, 0).result, 1);
    let off = world.admin(queue, admin::SET_FEATURES, cache, 0);
    assert_eq!(off.status, Status::FEATURE_NOT_CHANGEABLE.with_dnr());
}

#[test]
fn features() {
    let mut world = World::new();
    let (queue, _) = world.bring_up(ALICE);
    let get = |world: &mut World, id: u8, select: u32| {
        world.admin(queue, admin::GET_FEATURES, u32::from(id) | select << 8, 1)
    };
    assert_eq!(get(&mut world, fid::KEEP_ALIVE_TIMER, 0).result, 5000);
    world.admin(queue, admin::SET_FEATURES, fid::KEEP_ALIVE_TIMER.into(), 6100);
    assert_eq!(get(&mut world, fid::KEEP_ALIVE_TIMER, 0).result, 7000, "rounded up to KAS");
    assert_eq!(get(&mut world, fid::KEEP_ALIVE_TIMER, 1).result, 0, "default");
    assert_eq!(get(&mut world, fid::KEEP_ALIVE_TIMER, 3).result, 0b100, "changeable");
    assert_eq!(get(&mut world, fid::NUMBER_OF_QUEUES, 0).result, 0x7F_007F);
    assert_eq!(get(&mut world, fid::HOST_IDENTIFIER, 0).data.len(), 16);
    for id in [0, 0x03, 0x08, 0x0C, 0x80, 0xFF] {
        let status = get(&mut world, id, 0).status;
        assert_eq!(status, Status::INVALID_FIELD.with_dnr(), "{id:#x}");
    }
    let set = |world: &mut World, cdw10: u32, value| {
        world.admin(queue, admin::SET_FEATURES, cdw10, value).status
    };
    let saved = set(&mut world, 1 << 31 | u32::from(fid::ARBITRATION), 0);
    assert_eq!(saved, Status::FEATURE_NOT_SAVEABLE.with_dnr());
    let host = set(&mut world, fid::HOST_IDENTIFIER.into(), 1);
    assert_eq!(host, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    let power = set(&mut world, fid::POWER_MANAGEMENT.into(), 1);
    assert_eq!(power, Status::INVALID_FIELD.with_dnr());
    let queues = set(&mut world, fid::NUMBER_OF_QUEUES.into(), 0xFFFF);
    assert_eq!(queues, Status::INVALID_FIELD.with_dnr());
}

#[test]
fn commands_that_are_not_there() {
    let mut world = World::new();
    let (queue, cntlid) = world.bring_up(ALICE);
    let unknown = world.admin(queue, admin::CREATE_SQ, 0, 0);
    assert_eq!(unknown.status, Status::INVALID_OPCODE.with_dnr());
    let mut fused = admin_sqe(admin::KEEP_ALIVE, 0, 0, 0);
    fused.flags |= 1;
    assert_eq!(world.command(queue, &fused, &[]).status, Status::INVALID_FIELD.with_dnr());
    let mut prps = admin_sqe(admin::KEEP_ALIVE, 0, 0, 0);
    prps.set_prps(0, 0);
    assert_eq!(world.command(queue, &prps, &[]).status, Status::INVALID_FIELD.with_dnr());
    let io = world.io_queue(ALICE, cntlid, 1);
    let property = world.get_property(io, CAP, true);
    assert_eq!(property.status, Status::INVALID_OPCODE.with_dnr(), "admin queues only");
    let size = world.get_property(queue, CAP, false);
    assert_eq!(size.status, Status::INVALID_FIELD.with_dnr(), "CAP has 8 bytes");
}

/// A host that is granted more queues than there is memory for fails to connect the last of them.
#[test]
fn queues_are_granted_from_a_budget() {
    let mut world = World::with(TargetConfig { io_queue_budget: 10, ..TargetConfig::default() });
    let count = |world: &mut World, queue, wanted: u32| {
        let dword = (wanted - 1) << 16 | (wanted - 1);
        let id = fid::NUMBER_OF_QUEUES.into();
        (world.admin(queue, admin::SET_FEATURES, id, dword).result as u32 & 0xFFFF) + 1
    };
    let (first, _) = world.bring_up(ALICE);
    assert_eq!(count(&mut world, first, 8), 8);
    let (second, _) = world.bring_up(ALICE);
    assert_eq!(count(&mut world, second, 8), 2, "what is left");
    let (third, _) = world.bring_up(ALICE);
    assert_eq!(count(&mut world, third, 8), 1, "one at least");
    world.target.handle_queue_lost(first);
    world.target.handle_queue_closed(world.now, first);
    let (fourth, _) = world.bring_up(ALICE);
    assert_eq!(count(&mut world, fourth, 8), 7, "a controller that has gone gives back");
}
