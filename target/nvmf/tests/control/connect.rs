//! Connect and its refusals: status, and the field that the host is told is wrong.

use nvme_spec::opcode::admin;
use nvme_spec::registers::{CC, Cc};
use nvme_spec::status::Status;

use crate::host::{
    ALICE, BOB, ConnectFields, NQN, World, admin_connect, admin_sqe, hosts, io_connect, subsystem,
};

const IN_DATA: u64 = 1 << 16;

fn refused(world: &mut World, fields: ConnectFields, status: Status, result: u64) {
    let (queue, answer) = world.attempt(&fields);
    assert_eq!((answer.status, answer.result), (status, result));
    assert!(!world.bound.iter().any(|(bound, ..)| *bound == queue));
}

#[test]
fn admin_connects_that_are_refused() {
    let mut world = World::new();
    let good = admin_connect(ALICE);
    let invalid = Status::CONNECT_INVALID_PARAMETERS;
    let hopeless = invalid.with_dnr();
    let cases = [
        (
            ConnectFields { recfmt: 1, ..good.clone() },
            { Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr() },
            0,
        ),
        (ConnectFields { sqsize_z: 0, ..good.clone() }, hopeless, 44),
        (ConnectFields { sqsize_z: 128, ..good.clone() }, hopeless, 44),
        (ConnectFields { cntlid: 1, ..good.clone() }, hopeless, IN_DATA | 16),
        (ConnectFields { hostid: [0; 16], ..good.clone() }, hopeless, IN_DATA),
        (ConnectFields { hostnqn: "bob".into(), ..good.clone() }, hopeless, IN_DATA | 512),
        (ConnectFields { hostnqn: "x".repeat(256), ..good.clone() }, hopeless, IN_DATA | 512),
        (ConnectFields { subnqn: "x".repeat(256), ..good.clone() }, hopeless, IN_DATA | 256),
        // Not there may mean not there yet.
        (ConnectFields { subnqn: format!("{NQN}x"), ..good.clone() }, invalid, IN_DATA | 256),
        (admin_connect(BOB), Status::CONNECT_INVALID_HOST.with_dnr(), 0),
    ];
    for (fields, status, result) in cases {
        refused(&mut world, fields, status, result);
    }
    assert_eq!(world.target.controllers().count(), 0, "nothing is left of a refused Connect");
    let queue = world.open(3);
    let answer = world.connect(queue, &good);
    assert_eq!((answer.status, answer.result), (hopeless, 42), "QID of the connection request");
}

#[test]
fn a_refused_queue_may_try_again_and_a_connected_one_may_not() {
    let mut world = World::new();
    let (queue, _) = world.attempt(&admin_connect(BOB));
    assert_eq!(world.connect(queue, &admin_connect(ALICE)).status, Status::SUCCESS);
    let twice = world.connect(queue, &admin_connect(ALICE));
    assert_eq!(twice.status, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
}

#[test]
fn commands_before_connect() {
    let mut world = World::new();
    let queue = world.open(0);
    let sequence = Status::COMMAND_SEQUENCE_ERROR.with_dnr();
    for opcode in [admin::IDENTIFY, admin::KEEP_ALIVE, 0xC0] {
        let sqe = admin_sqe(opcode, 0, 0, 0);
        assert_eq!(world.command(queue, &sqe, &[]).status, sequence);
    }
    assert_eq!(world.csts_status(queue), sequence);
}

impl World {
    fn csts_status(&mut self, queue: nvmf::QueueKey) -> Status {
        self.get_property(queue, nvme_spec::registers::CSTS, false).status
    }
}

#[test]
fn io_connects_that_are_refused() {
    let mut world = World::new();
    world.target.set_access(NQN, false, hosts(&[ALICE, BOB])).unwrap();
    world.target.add_subsystem(subsystem("nqn.2026-11.io.forebay:two", &[ALICE])).unwrap();
    let (queue, early) = world.attempt(&admin_connect(ALICE));
    let cntlid = early.result as u16;
    let good = io_connect(ALICE, cntlid, 1);
    refused(&mut world, good.clone(), Status::COMMAND_SEQUENCE_ERROR, 0);
    world.set_property(queue, CC, Cc::enabled(0, 0).0);
    world.admin(queue, admin::SET_FEATURES, 7, 0x1_0001);

    let invalid = Status::CONNECT_INVALID_PARAMETERS;
    let hopeless = invalid.with_dnr();
    let two = "nqn.2026-11.io.forebay:two".to_owned();
    let cases = [
        (ConnectFields { cntlid: cntlid + 1, ..good.clone() }, invalid, IN_DATA | 16),
        (ConnectFields { subnqn: two, ..good.clone() }, hopeless, IN_DATA | 256),
        (ConnectFields { hostnqn: BOB.into(), ..good.clone() }, hopeless, IN_DATA | 512),
        (ConnectFields { hostid: [9; 16], ..good.clone() }, hopeless, IN_DATA),
        (ConnectFields { qid: 3, ..good.clone() }, hopeless, 42),
        (ConnectFields { sqsize_z: 128, ..good.clone() }, hopeless, 44),
    ];
    for (fields, status, result) in cases {
        refused(&mut world, fields, status, result);
    }
    let first = world.io_queue(ALICE, cntlid, 1);
    refused(&mut world, good.clone(), invalid, 42);
    // The queue that had the QID goes, and it is free again.
    world.finish_close(first);
    world.io_queue(ALICE, cntlid, 1);
}

#[test]
fn cntlids_go_round_and_are_never_the_lowest_free() {
    let mut world = World::new();
    let mut seen = Vec::new();
    for _ in 0..5 {
        let (queue, cntlid) = world.bring_up(ALICE);
        assert!(!seen.contains(&cntlid) && cntlid != 0 && cntlid < 0xFFF0);
        seen.push(cntlid);
        world.finish_close(queue);
        assert_eq!(world.target.controllers().count(), 0);
    }
}

#[test]
fn the_round_of_cntlids_begins_anew_at_one() {
    let mut world = World::new();
    let config = nvmf::TargetConfig { cntlid_seed: 0xFFEE, ..Default::default() };
    world.target = nvmf::Target::new(config);
    world.target.add_subsystem(subsystem(NQN, &[ALICE])).unwrap();
    let ids: Vec<u16> = (0..3).map(|_| world.bring_up(ALICE).1).collect();
    assert_eq!(ids, [0xFFEF, 1, 2]);
}

#[test]
fn two_hosts_have_controllers_of_their_own() {
    let mut world = World::new();
    world.target.set_access(NQN, false, hosts(&[ALICE, BOB])).unwrap();
    let (alice, first) = world.bring_up(ALICE);
    let (bob, second) = world.bring_up(BOB);
    assert_ne!(first, second);
    world.io_queue(ALICE, first, 1);
    let bobs = world.io_queue(BOB, second, 1);
    world.target.set_access(NQN, false, hosts(&[ALICE])).unwrap();
    world.take_outputs();
    assert_eq!(world.finish_closes(), [bobs, bob]);
    let left: Vec<_> = world.target.controllers().map(|one| one.host_nqn).collect();
    assert_eq!(left, [ALICE]);
    assert!(world.csts(alice).rdy());
    refused(&mut world, admin_connect(BOB), Status::CONNECT_INVALID_HOST.with_dnr(), 0);
    world.target.set_access(NQN, true, hosts(&[ALICE])).unwrap();
    world.bring_up(BOB);
    world.target.set_access(NQN, false, hosts(&[ALICE])).unwrap();
    world.take_outputs();
    assert_eq!(world.closed.len(), 1, "only the one that is not in the list");
}
