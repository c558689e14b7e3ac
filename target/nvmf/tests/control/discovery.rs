//! The discovery controller: who sees what, and hears of changes.

use std::time::Duration;

use nvme_spec::fabrics::{DISCOVERY_NQN, text};
use nvme_spec::features::fid;
use nvme_spec::identify::{IdentifyController, cns, trimmed};
use nvme_spec::log_page::{DiscoveryEntry, DiscoveryHeader, adrfam, lid, trtype};
use nvme_spec::opcode::admin;
use nvme_spec::status::Status;
use nvmf::{Listener, QueueKey, QueueKind, Transport};
use zerocopy::FromBytes;

use crate::host::{ALICE, BOB, ConnectFields, NQN, World, admin_connect, hosts, subsystem};

fn discovery(host: &str) -> ConnectFields {
    ConnectFields { subnqn: DISCOVERY_NQN.to_owned(), kato_ms: 0, ..admin_connect(host) }
}

fn read_log(world: &mut World, queue: QueueKey) -> (DiscoveryHeader, Vec<DiscoveryEntry>) {
    let head = world.log(queue, lid::DISCOVERY, 0, 1024).data;
    let header = DiscoveryHeader::read_from_bytes(&head).unwrap();
    let entries = (1..=header.numrec.get())
        .map(|index| world.log(queue, lid::DISCOVERY, index * 1024, 1024).data)
        .map(|data| DiscoveryEntry::read_from_bytes(&data).unwrap())
        .collect();
    (header, entries)
}

#[test]
fn a_host_sees_what_it_may_connect_to() {
    let mut world = World::new();
    let two = "nqn.2026-11.io.forebay:two";
    world.target.add_subsystem(subsystem(two, &[BOB])).unwrap();
    let (alice, cntlid) = world.bring_up_with(&discovery(ALICE));
    assert_eq!(world.bound, [(alice, QueueKind::Discovery, cntlid)]);
    let (header, entries) = read_log(&mut world, alice);
    assert_eq!((header.numrec.get(), header.recfmt.get()), (1, 0));
    let [entry] = &entries[..] else { panic!("one entry") };
    assert_eq!(text(&entry.subnqn), Some(NQN));
    assert_eq!((entry.trtype, entry.adrfam, entry.subtype), (trtype::RDMA, adrfam::IPV4, 2));
    assert_eq!(trimmed(&entry.traddr), "10.0.0.1", "where the host reached us, not 0.0.0.0");
    assert_eq!(trimmed(&entry.trsvcid), "4420");
    assert_eq!((entry.cntlid.get(), entry.tsas[0], entry.tsas[2]), (0xFFFF, 1, 1));

    let (bob, _) = world.bring_up_with(&discovery(BOB));
    let (_, entries) = read_log(&mut world, bob);
    assert_eq!(entries.iter().map(|one| text(&one.subnqn)).collect::<Vec<_>>(), [Some(two)]);
    let tcp = "[2001:db8::1]:8009".parse().unwrap();
    world.target.add_listener(Listener { transport: Transport::Tcp, addr: tcp }).unwrap();
    let (later, entries) = read_log(&mut world, bob);
    assert_eq!(entries.len(), 2);
    assert_eq!((entries[1].trtype, entries[1].adrfam), (trtype::TCP, adrfam::IPV6));
    assert_eq!(trimmed(&entries[1].traddr), "2001:db8::1");
    assert_ne!(entries[0].portid, entries[1].portid);
    assert_ne!(later.genctr, header.genctr, "a change is a new generation");
    let (still, _) = read_log(&mut world, bob);
    assert_eq!(still.genctr, later.genctr, "and nothing else is");
    world.target.set_access(two, false, hosts(&[])).unwrap();
    assert_eq!(read_log(&mut world, bob).1.len(), 0);
}

#[test]
fn it_says_that_it_is_a_discovery_controller() {
    let mut world = World::new();
    let (queue, cntlid) = world.bring_up_with(&discovery(ALICE));
    let data = world.identify(queue, cns::CONTROLLER, 0).data;
    let id = IdentifyController::read_from_bytes(&data).unwrap();
    assert_eq!(text(&id.subnqn), Some(DISCOVERY_NQN));
    assert_eq!((id.cntrltype, id.cntlid.get(), id.oaes.get()), (2, cntlid, 1 << 31));
    assert_eq!((id.nn.get(), id.oncs.get()), (0, 0));
    let invalid = Status::INVALID_FIELD.with_dnr();
    assert_eq!(world.identify(queue, cns::ACTIVE_NAMESPACES, 0).status, invalid);
    let queues = world.admin(queue, admin::GET_FEATURES, fid::NUMBER_OF_QUEUES.into(), 0);
    assert_eq!(queues.status, invalid);
    assert_eq!(world.log(queue, lid::SMART, 0, 512).status, Status::INVALID_LOG_PAGE.with_dnr());
    let io = ConnectFields { qid: 1, cntlid, ..discovery(ALICE) };
    let (_, answer) = world.attempt(&io);
    let status = Status::CONNECT_INVALID_PARAMETERS.with_dnr();
    assert_eq!((answer.status, answer.result), (status, 42), "it has no I/O queues");
}

#[test]
fn changes_are_told_with_the_event_that_udev_rules_match() {
    let mut world = World::new();
    let (queue, _) = world.bring_up_with(&discovery(ALICE));
    let id = fid::ASYNC_EVENT_CONFIGURATION.into();
    world.admin(queue, admin::SET_FEATURES, id, 1 << 31);
    let request = world.event_request(queue, 1);
    world.target.add_subsystem(subsystem("nqn.2026-11.io.forebay:two", &[ALICE])).unwrap();
    world.take_outputs();
    assert_eq!(world.answers[&request].result, 0x0070_F002);
    let next = world.event_request(queue, 2);
    world.target.remove_subsystem(NQN).unwrap();
    world.take_outputs();
    assert!(!world.answers.contains_key(&next), "masked until the log is read");
    assert_eq!(read_log(&mut world, queue).1.len(), 1);
    world.target.set_access("nqn.2026-11.io.forebay:two", true, hosts(&[])).unwrap();
    world.take_outputs();
    assert!(world.answers.contains_key(&next));
}

#[test]
fn without_keep_alive_it_ends_when_idle() {
    let mut world = World::new();
    let (queue, _) = world.bring_up_with(&discovery(ALICE));
    world.pass(Duration::from_secs(119));
    assert_eq!(world.closed.len(), 0);
    read_log(&mut world, queue);
    world.pass(Duration::from_secs(119));
    assert_eq!(world.closed.len(), 0);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.finish_closes(), [queue]);
}
