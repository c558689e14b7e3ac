//! Asynchronous events, the changed-namespace log, and Abort.

use nvme_spec::features::fid;
use nvme_spec::identify::cns;
use nvme_spec::log_page::lid;
use nvme_spec::opcode::admin;
use nvme_spec::status::Status;

use crate::host::{ALICE, NQN, World, namespace};

const NAMESPACE_EVENTS: u32 = 1 << 8;
const NAMESPACE_CHANGED: u64 = 0x0004_0002;

fn with_events() -> (World, nvmf::QueueKey) {
    let mut world = World::new();
    let (queue, _) = world.bring_up(ALICE);
    let id = fid::ASYNC_EVENT_CONFIGURATION.into();
    let set = world.admin(queue, admin::SET_FEATURES, id, NAMESPACE_EVENTS);
    assert_eq!(set.status, Status::SUCCESS);
    (world, queue)
}

#[test]
fn one_more_event_request_than_allowed() {
    let (mut world, queue) = with_events();
    for cid in 0..4 {
        let kept = world.event_request(queue, cid);
        assert!(!world.answers.contains_key(&kept));
    }
    let fifth = world.event_request(queue, 4);
    let status = world.answers[&fifth].status;
    assert_eq!(status, Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED.with_dnr());
}

#[test]
fn changes_are_told_once_until_the_log_is_read() {
    let (mut world, queue) = with_events();
    let first = world.event_request(queue, 1);
    let second = world.event_request(queue, 2);
    world.target.add_namespace(NQN, namespace(2, Some(5))).unwrap();
    world.take_outputs();
    assert_eq!(world.answers[&first].result, NAMESPACE_CHANGED);
    world.target.resize_namespace(NQN, 1, 2000).unwrap();
    world.target.remove_namespace(NQN, 5).unwrap();
    world.take_outputs();
    assert!(!world.answers.contains_key(&second), "masked");

    let retained = world.log_with(queue, lid::CHANGED_NAMESPACES, 0, 4096, true).data;
    assert_eq!(retained[..12], [1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    world.target.resize_namespace(NQN, 1, 3000).unwrap();
    world.take_outputs();
    assert!(!world.answers.contains_key(&second), "masked still: the event was retained");
    assert_eq!(world.log(queue, lid::CHANGED_NAMESPACES, 0, 4096).data, retained);
    assert_eq!(world.log(queue, lid::CHANGED_NAMESPACES, 0, 4096).data, [0; 4096]);
    world.target.resize_namespace(NQN, 1, 4000).unwrap();
    world.take_outputs();
    assert_eq!(world.answers[&second].result, NAMESPACE_CHANGED);
}

#[test]
fn a_host_is_known_to_have_seen_a_removal_when_it_has_listed_what_is_left() {
    let (mut world, queue) = with_events();
    world.target.add_namespace(NQN, namespace(2, Some(5))).unwrap();
    world.target.remove_namespace(NQN, 5).unwrap();
    let unaware = |world: &World| world.target.hosts_with_removed(NQN, 5);
    assert_eq!(unaware(&world), [ALICE]);
    // Neither the log nor the end of the list says so.
    world.log(queue, lid::CHANGED_NAMESPACES, 0, 4096);
    world.identify(queue, cns::ACTIVE_NAMESPACES, 5);
    assert_eq!(unaware(&world), [ALICE]);
    world.identify(queue, cns::ACTIVE_NAMESPACES, 4);
    assert_eq!(unaware(&world), [""; 0]);
    assert_eq!(world.target.hosts_with_removed("nqn.2026-11.io:none", 5), [""; 0]);
}

#[test]
fn an_event_waits_for_a_request() {
    let (mut world, queue) = with_events();
    world.target.resize_namespace(NQN, 1, 2000).unwrap();
    let request = world.event_request(queue, 1);
    assert_eq!(world.answers[&request].result, NAMESPACE_CHANGED);
    let next = world.event_request(queue, 2);
    assert!(!world.answers.contains_key(&next), "the same event is not told twice");
}

#[test]
fn events_are_told_only_to_those_who_asked() {
    let mut world = World::new();
    let (queue, _) = world.bring_up(ALICE);
    let request = world.event_request(queue, 1);
    world.target.resize_namespace(NQN, 1, 2000).unwrap();
    world.take_outputs();
    assert!(!world.answers.contains_key(&request));
    let unknown = fid::ASYNC_EVENT_CONFIGURATION.into();
    let set = world.admin(queue, admin::SET_FEATURES, unknown, 1 << 31);
    assert_eq!(set.status, Status::INVALID_FIELD.with_dnr(), "discovery events are not here");
}

#[test]
fn aborts() {
    let (mut world, queue) = with_events();
    let cntlid = world.target.controllers().next().unwrap().cntlid;
    let request = world.event_request(queue, 7);
    let abort = |world: &mut World, sqid: u32, cid: u32| {
        let sqe = crate::host::admin_sqe(admin::ABORT, 0, cid << 16 | sqid, 0);
        world.send(queue, &sqe, &[])
    };
    let missed = abort(&mut world, 0, 8);
    assert_eq!(world.answers[&missed].result, 1);
    let hit = abort(&mut world, 0, 7);
    assert_eq!(world.answers[&hit].result, 0);
    assert_eq!(world.answers[&request].status, Status::COMMAND_ABORT_REQUESTED);

    let no_queue = abort(&mut world, 1, 3);
    assert_eq!(world.answers[&no_queue].result, 1);
    let io = world.io_queue(ALICE, cntlid, 1);
    let pending: Vec<_> = (0..4).map(|cid| abort(&mut world, 1, cid)).collect();
    assert_eq!(world.aborts.last(), Some(&(io, 3, pending[3])));
    assert!(pending.iter().all(|one| !world.answers.contains_key(one)));
    let fifth = abort(&mut world, 1, 9);
    assert_eq!(world.answers[&fifth].status, Status::ABORT_COMMAND_LIMIT_EXCEEDED);
    for (index, &command) in pending.iter().enumerate() {
        world.target.handle_aborted(command, index == 0);
        world.target.handle_aborted(command, true);
        world.take_outputs();
        assert_eq!(world.answers[&command].result, u64::from(index != 0));
    }
}
