//! Reset, shutdown, time-outs, and queues that go.

use std::time::Duration;

use nvme_spec::command::Sqe;
use nvme_spec::fabrics::fctype_of;
use nvme_spec::opcode::{self, admin};
use nvme_spec::registers::{CC, Cc, Csts};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::status::Status;
use nvmf::{ControllerState, TargetError};

use crate::host::{
    ALICE, BOB, ConnectFields, NQN, World, admin_connect, hosts, io_connect, namespace, subsystem,
};

#[test]
fn disable_waits_for_the_io_queues() {
    let mut world = World::new();
    let (queue, cntlid) = world.bring_up(ALICE);
    let request = world.event_request(queue, 1);
    let io = [world.io_queue(ALICE, cntlid, 1), world.io_queue(ALICE, cntlid, 2)];
    world.admin(queue, admin::SET_FEATURES, 0x0B, 1 << 8);
    let cc = Cc::enabled(0, 0);
    assert_eq!(world.set_property(queue, CC, cc.disabled().0).status, Status::SUCCESS);
    assert_eq!(world.closed, io);
    assert_eq!(world.answers[&request].status, Status::ABORTED_SQ_DELETION);
    assert!(world.csts(queue).rdy(), "I/O may still run");
    let hasty = world.set_property(queue, CC, cc.0);
    assert_eq!(hasty.status, Status::COMMAND_SEQUENCE_ERROR);
    let (_, answer) = world.attempt(&io_connect(ALICE, cntlid, 3));
    assert_eq!(answer.status, Status::COMMAND_SEQUENCE_ERROR);
    world.finish_close(io[0]);
    assert!(world.csts(queue).rdy(), "one queue is left");
    world.finish_close(io[1]);
    assert!(!world.csts(queue).rdy());
    world.set_property(queue, CC, cc.0);
    assert!(world.csts(queue).rdy(), "up again");
    assert_eq!(world.admin(queue, admin::GET_FEATURES, 0x0B, 0).result, 0, "defaults again");
    world.io_queue(ALICE, cntlid, 1);
}

#[test]
fn shutdown_waits_for_the_io_queues() {
    let mut world = World::new();
    let (queue, cntlid) = world.bring_up(ALICE);
    let io = world.io_queue(ALICE, cntlid, 1);
    world.set_property(queue, CC, Cc::enabled(0, 0).with_shn(1).0);
    assert_eq!(world.csts(queue).shst(), Csts::SHST_OCCURRING);
    assert_eq!(world.finish_closes(), [io]);
    let csts = world.csts(queue);
    assert_eq!((csts.shst(), csts.rdy()), (Csts::SHST_COMPLETE, true));
    world.set_property(queue, CC, Cc::enabled(0, 0).disabled().0);
    assert_eq!(world.csts(queue).0, 0);
    world.set_property(queue, CC, Cc::enabled(0, 0).0);
    assert_eq!(world.csts(queue).0, 1);
}

#[test]
fn a_configuration_that_does_not_exist_is_fatal_until_disabled() {
    let mut world = World::new();
    let (queue, _) = world.attempt(&admin_connect(ALICE));
    world.set_property(queue, CC, 0x0047_0001);
    assert_eq!(world.csts(queue).0, 0b10);
    world.set_property(queue, CC, 0);
    assert_eq!(world.csts(queue).0, 0);
    world.set_property(queue, CC, Cc::enabled(0, 0).0);
    assert!(world.csts(queue).rdy());
}

#[test]
fn keep_alive_expires() {
    let mut world = World::new();
    let fields = ConnectFields { kato_ms: 4100, ..admin_connect(ALICE) };
    let (queue, cntlid) = world.bring_up_with(&fields);
    let io = world.io_queue(ALICE, cntlid, 1);
    let request = world.event_request(queue, 1);
    assert_eq!(world.target.poll_timeout(), Some(world.now + Duration::from_secs(5)));
    for _ in 0..10 {
        world.pass(Duration::from_millis(4999));
        assert_eq!(world.admin(queue, admin::KEEP_ALIVE, 0, 0).status, Status::SUCCESS);
    }
    assert_eq!(world.closed.len(), 0);
    world.pass(Duration::from_secs(5));
    assert!(world.answers.contains_key(&request), "what waits is answered, so queues can drain");
    let late = world.admin(queue, admin::KEEP_ALIVE, 0, 0);
    assert_eq!(late.status, Status::ABORTED_SQ_DELETION);
    let (_, answer) = world.attempt(&io_connect(ALICE, cntlid, 2));
    assert_eq!(answer.status, Status::CONNECT_INVALID_PARAMETERS, "a host may start over");
    assert_eq!(world.finish_closes(), [io, queue]);
    assert_eq!(world.target.controllers().count(), 0);
}

#[test]
fn without_keep_alive_a_controller_stays() {
    let mut world = World::new();
    world.bring_up_with(&ConnectFields { kato_ms: 0, ..admin_connect(ALICE) });
    assert_eq!(world.target.poll_timeout(), None);
    world.pass(Duration::from_secs(1_000_000));
    assert_eq!(world.closed.len(), 0);
}

#[test]
fn a_queue_that_never_connects_and_a_controller_never_enabled_are_closed() {
    let mut world = World::new();
    let silent = world.open(0);
    let (queue, _) = world.attempt(&admin_connect(ALICE));
    assert_eq!(world.target.unbound_queues(), 1);
    world.pass(Duration::from_secs(30));
    assert_eq!(world.finish_closes(), [silent]);
    world.pass(Duration::from_secs(95));
    assert_eq!(world.finish_closes(), [queue]);
    assert_eq!(world.target.poll_timeout(), None);
}

#[test]
fn a_lost_admin_queue_takes_the_controller_with_it() {
    let mut world = World::new();
    let (queue, cntlid) = world.bring_up(ALICE);
    let io = world.io_queue(ALICE, cntlid, 1);
    let request = world.event_request(queue, 1);
    world.target.handle_queue_lost(queue);
    world.take_outputs();
    assert!(world.answers.contains_key(&request));
    assert_eq!(world.finish_closes(), [io], "the admin queue is gone already");
    assert_eq!(world.target.controllers().count(), 1, "until its last I/O has ended");
    world.finish_close(queue);
    assert_eq!(world.target.controllers().count(), 0);
}

#[test]
fn disconnect_of_an_io_queue() {
    let mut world = World::new();
    let (queue, cntlid) = world.bring_up(ALICE);
    let io = world.io_queue(ALICE, cntlid, 1);
    let mut sqe = Sqe::new(opcode::FABRICS, u32::from(fctype_of::DISCONNECT));
    sqe.set_sgl(SglDescriptor::keyed(0, 0, 0, false));
    let admin = world.command(queue, &sqe, &[]);
    assert_eq!(admin.status, Status::DISCONNECT_INVALID_QUEUE_TYPE.with_dnr());
    let mut odd = sqe;
    odd.cdw10 = 1.into();
    let status = world.command(io, &odd, &[]).status;
    assert_eq!(status, Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr());
    assert_eq!(world.command(io, &sqe, &[]).status, Status::SUCCESS);
    assert_eq!(world.closed.len(), 0, "the host closes it");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.finish_closes(), [io], "unless it does not");
    assert!(world.csts(queue).rdy());
    world.io_queue(ALICE, cntlid, 1);
}

#[test]
fn a_removed_subsystem_keeps_its_place_until_its_queues_are_gone() {
    let mut world = World::new();
    let (queue, _) = world.bring_up(ALICE);
    let place = world.target.subsystem(NQN).unwrap().id();
    world.target.remove_subsystem(NQN).unwrap();
    world.take_outputs();
    assert_eq!(world.target.subsystem(NQN).map(|one| one.id()), None);
    let other = world.target.add_subsystem(subsystem(NQN, &[BOB])).unwrap();
    assert_ne!(other, place);
    assert_eq!(world.finish_closes(), [queue]);
    let third = world.target.add_subsystem(subsystem("nqn.2026-11.io.forebay:3", &[])).unwrap();
    assert_eq!(third, place);
}

#[test]
fn verbs_that_are_refused_change_nothing() {
    let mut world = World::new();
    let nqn = NQN.to_owned();
    let target = &mut world.target;
    let exists = target.add_subsystem(subsystem(NQN, &[])).unwrap_err();
    assert_eq!(exists, TargetError::SubsystemExists { nqn: nqn.clone() });
    assert!(target.add_subsystem(subsystem("bad", &[])).is_err());
    assert!(target.add_subsystem(subsystem("nqn.2026-11.io.forebay:x", &["bad"])).is_err());
    let reserved = subsystem(nvme_spec::fabrics::DISCOVERY_NQN, &[]);
    assert_eq!(target.add_subsystem(reserved).unwrap_err(), TargetError::ReservedNqn);
    let taken = target.add_namespace(NQN, namespace(2, Some(1))).unwrap_err();
    assert_eq!(taken, TargetError::NamespaceExists { nqn: nqn.clone(), nsid: 1 });
    let twin = target.add_namespace(NQN, namespace(1, None)).unwrap_err();
    assert!(matches!(twin, TargetError::DuplicateIdentity { nsid: 1, .. }));
    for nsid in [0, 1025, u32::MAX] {
        let bad = target.add_namespace(NQN, namespace(2, Some(nsid))).unwrap_err();
        assert_eq!(bad, TargetError::InvalidNsid { nsid, max: 1024 });
    }
    let mut odd = namespace(2, None);
    odd.geometry.block_bytes = 513;
    assert!(matches!(
        target.add_namespace(NQN, odd).unwrap_err(),
        TargetError::InvalidGeometry { .. }
    ));
    assert!(target.remove_namespace(NQN, 9).is_err());
    assert!(target.resize_namespace(NQN, 1, u64::MAX).is_err());
    assert!(target.set_access(NQN, true, hosts(&[ALICE, "nqn.bad"])).is_err());
    let found = target.subsystem(NQN).unwrap();
    assert_eq!((found.namespaces().count(), found.hosts().count()), (1, 1));
    assert!(!found.any_host());
    assert_eq!(target.subsystems().count(), 1);
}

#[test]
fn an_nsid_is_not_given_again_while_there_are_others() {
    let mut world = World::new();
    assert_eq!(world.target.add_namespace(NQN, namespace(2, None)), Ok(2));
    world.target.remove_namespace(NQN, 2).unwrap();
    assert_eq!(world.target.add_namespace(NQN, namespace(3, None)), Ok(3));
    assert_eq!(world.target.add_namespace(NQN, namespace(4, Some(1024))), Ok(1024));
    assert_eq!(world.target.add_namespace(NQN, namespace(5, None)), Ok(2));
}

#[test]
fn controllers_are_bounded() {
    let mut world = World::new();
    for _ in 0..nvmf::limits::MAX_CONTROLLERS {
        let (_, answer) = world.attempt(&admin_connect(ALICE));
        assert_eq!(answer.status, Status::SUCCESS);
    }
    let (_, answer) = world.attempt(&admin_connect(ALICE));
    assert_eq!(answer.status, Status::CONNECT_CONTROLLER_BUSY, "to be tried again");
    let states = world.target.controllers().map(|one| one.state);
    assert!(states.into_iter().all(|state| state == ControllerState::Disabled));
}

#[test]
fn closing_all_queues_closes_each_once() {
    let mut world = World::new();
    let (admin, cntlid) = world.bring_up(ALICE);
    let io = world.io_queue(ALICE, cntlid, 1);
    let unbound = world.open(0);
    world.target.close_queues();
    world.target.close_queues();
    world.take_outputs();
    let mut closed = world.finish_closes();
    closed.sort();
    assert_eq!(closed, [admin, io, unbound]);
    assert_eq!(world.target.controllers().count(), 0);
}
