//! Things go wrong in service: every command ends in time, its memory is left alone before, and the
//! device serves again or is given up.

use std::time::Duration;

use emulated_nvme::{Fault, Setup};
use nvme::{Completion, Config, Health};
use nvme_spec::status::Status;

use crate::world::{TICK, World, read, start_in, write};

const LIMIT: Duration = Duration::from_secs(15);

#[test]
fn a_late_command_is_aborted_and_may_be_retried() {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    world.ssd.inject(Fault::Hold);
    world.pairs[1].submit(read(5, 0, 8, span)).unwrap();
    let (done, time) = world.wait(1);
    assert_eq!((done[0].tag, done[0].status), (5, Status::COMMAND_INTERRUPTED));
    assert!(time > Duration::from_secs(5) && time < Duration::from_secs(6), "{time:?}");
    assert_eq!(world.ssd.enabled_count(), 1, "no reset was needed");
    world.assert_well();
}

#[test]
fn a_reset_ends_what_no_abort_reaches_and_service_goes_on() {
    for shadow_doorbells in [false, true] {
        let mut world = World::new(Setup { shadow_doorbells, ..Setup::default() });
        let span = world.memory(1 << 20);
        world.ssd.inject(Fault::IgnoreAbort);
        // One of many children, and one on the other queue pair.
        world.hold(0, write(1, 0, 2048, span));
        world.hold(1, read(2, 0, 8, span));
        let (mut done, time) = world.wait(2);
        assert!(time > Duration::from_secs(6) && time < Duration::from_secs(7), "{time:?}");
        done.sort_by_key(|completion| completion.tag);
        let interrupted = |tag| Completion { tag, status: Status::COMMAND_INTERRUPTED };
        assert_eq!(done, [interrupted(1), interrupted(2)]);
        assert_eq!(world.ssd.enabled_count(), 2);
        world.assert_well();
        let stats = world.device.queues().stats();
        assert!(stats.iter().all(|queue| queue.stale == 0), "rings were not reset: {stats:?}");
    }
}

#[test]
fn a_machine_that_slept_finds_late_commands_and_aborts_first() {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    world.hold(0, read(1, 0, 8, span));
    // Once before the abort is asked for, once before it is sent.
    for _ in 0..2 {
        world.now += Duration::from_secs(7);
        world.pairs[0].poll(world.now);
    }
    let (done, _) = world.wait(1);
    assert_eq!((done[0].tag, done[0].status), (1, Status::COMMAND_INTERRUPTED));
    assert_eq!(world.ssd.enabled_count(), 1, "the abort had its time");
    world.assert_well();
}

#[test]
fn an_abort_that_is_never_answered_holds_up_no_other_command() {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    world.ssd.inject(Fault::DeafAbort);
    world.hold(0, read(1, 0, 8, span));
    assert_eq!(world.turns(Duration::from_millis(5500)), []);
    world.ssd.let_go();
    assert_eq!(world.wait(1).0[0].status, Status::SUCCESS);
    world.hold(1, read(2, 0, 8, span));
    let (done, time) = world.wait(1);
    assert_eq!((done[0].tag, done[0].status), (2, Status::COMMAND_INTERRUPTED));
    assert!(time < Duration::from_secs(7), "{time:?}");
    assert_eq!(world.ssd.enabled_count(), 2);
    world.assert_well();
}

#[test]
fn many_late_commands_have_one_grace_together() {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    world.ssd.inject(Fault::IgnoreAbort);
    for tag in 0..31 {
        world.hold(0, read(tag, 0, 8, span));
    }
    let (done, time) = world.wait(31);
    assert!(done.iter().all(|completion| completion.status == Status::COMMAND_INTERRUPTED));
    assert!(time < Duration::from_secs(7), "{time:?}");
    world.assert_well();
}

#[test]
fn a_late_completion_before_the_reset_counts() {
    let mut world = World::new(Setup::default());
    let span = world.memory(512);
    world.ssd.inject(Fault::IgnoreAbort);
    world.ssd.inject(Fault::Hold);
    world.pairs[0].submit(read(1, 0, 1, span)).unwrap();
    assert_eq!(world.turns(Duration::from_millis(5500)), []);
    world.ssd.let_go();
    let (done, _) = world.wait(1);
    assert_eq!((done[0].tag, done[0].status), (1, Status::SUCCESS));
    world.turns(Duration::from_secs(2));
    assert_eq!(world.ssd.enabled_count(), 1);
    world.assert_well();
}

#[test]
fn stale_and_doubled_completions_end_nothing() {
    let mut world = World::new(Setup::default());
    let span = world.memory(512);
    for (fault, stale) in [(Fault::StaleCid, 2), (Fault::DoubledCompletion, 3)] {
        world.ssd.inject(fault);
        assert_eq!(world.run(read(1, 0, 1, span)), Status::SUCCESS);
        assert_eq!(world.turns(Duration::from_millis(100)), []);
        assert_eq!(world.device.queues().stats()[0].stale, stale);
    }
    world.assert_well();
}

#[test]
fn a_bad_status_reaches_the_user_once() {
    let mut world = World::new(Setup::default());
    let span = world.memory(1 << 20);
    world.ssd.inject(Fault::BadStatus(Status::UNRECOVERED_READ_ERROR));
    assert_eq!(world.run(read(1, 0, 2048, span)), Status::UNRECOVERED_READ_ERROR);
    assert_eq!(world.turns(Duration::from_secs(1)), []);
    assert_eq!(world.device.queues().stats()[0].errors, 1);
    world.assert_well();
}

#[test]
fn a_fatal_status_leads_to_a_reset() {
    let mut world = World::new(Setup::default());
    let span = world.memory(512);
    world.ssd.inject(Fault::Hold);
    world.pairs[0].submit(read(1, 0, 1, span)).unwrap();
    world.pairs[0].poll(world.now);
    world.ssd.inject(Fault::ControllerFatal);
    let (done, time) = world.wait(1);
    assert_eq!(done[0].status, Status::COMMAND_INTERRUPTED);
    assert!(time < Duration::from_secs(1), "{time:?}");
    world.assert_well();
}

#[test]
fn a_device_that_is_gone_fails_everything_at_once() {
    for reads in [u32::MAX, 0] {
        let mut world = World::new(Setup::default());
        let config = Config { cores: 2, queue_entries: 32, ..Config::default() };
        let mut other = start_in(world.arena, Setup::default(), config, |_| {}).unwrap();
        let span = world.memory(512);
        world.hold(0, read(1, 0, 1, span));
        other.hold(0, read(1, 0, 1, span));
        world.ssd.inject(Fault::SurpriseRemoval { reads });
        let (done, time) = world.wait(1);
        assert_eq!(done[0].status, Status::INTERNAL_ERROR.with_dnr());
        assert!(time < Duration::from_secs(1), "{time:?}");
        assert_eq!(world.device.health(), Health::Failed);
        assert!(world.device.fault().unwrap().to_string().contains("gone"));
        world.pairs[0].submit(read(2, 0, 1, span)).unwrap();
        assert_eq!(world.wait(1).0[0].status, Status::INTERNAL_ERROR.with_dnr());
        // Another one, with memory of the same arena, goes on.
        assert_eq!(other.turns(time), []);
        other.ssd.let_go();
        assert_eq!(other.wait(1).0[0].status, Status::SUCCESS);
        other.assert_well();
    }
}

#[test]
fn an_orderly_removal_ends_what_is_in_flight_and_lets_go() {
    let mut world = World::new(Setup::default());
    let span = world.memory(512);
    world.hold(0, read(1, 0, 1, span));
    world.ssd.inject(Fault::OrderlyRemoval);
    let (done, time) = world.wait(1);
    assert_eq!(done[0].status, Status::INTERNAL_ERROR.with_dnr());
    assert!(time < Duration::from_secs(2), "{time:?}");
    assert!(world.device.removal_requested());
    let World { ssd, device, pairs, .. } = world;
    drop(pairs);
    drop(device);
    assert_eq!(std::sync::Arc::strong_count(&ssd), 1, "nothing keeps it open");
}

#[test]
fn a_device_that_fails_again_and_again_is_given_up() {
    let mut world = World::new(Setup::default());
    for _ in 0..5 {
        world.ssd.inject(Fault::ControllerFatal);
        world.turns(Duration::from_secs(1));
        assert_eq!(world.device.health(), Health::Live);
    }
    world.ssd.inject(Fault::ControllerFatal);
    world.turns(Duration::from_secs(1));
    assert_eq!(world.device.health(), Health::Failed);
    assert!(world.device.fault().unwrap().to_string().contains("given up after 5 resets"));
}

#[test]
fn a_device_that_does_not_come_back_is_given_up_in_time() {
    for fault in [Fault::NeverReady, Fault::DeafAdmin, Fault::OtherSerial] {
        let mut world = World::new(Setup::default());
        let span = world.memory(512);
        world.ssd.inject(Fault::IgnoreAbort);
        world.ssd.inject(Fault::Hold);
        world.pairs[0].submit(read(1, 0, 1, span)).unwrap();
        world.turns(Duration::from_secs(5));
        world.ssd.inject(fault);
        let (done, time) = world.wait(1);
        assert!(Duration::from_secs(5) + time < LIMIT + Duration::from_millis(100), "{time:?}");
        assert_eq!(done[0].status, Status::COMMAND_INTERRUPTED);
        world.turns(Duration::from_secs(10));
        assert_eq!(world.device.health(), Health::Failed, "{fault:?}");
    }
}

#[test]
fn commands_that_come_during_a_reset_wait_for_its_end() {
    let mut world = World::new(Setup::default());
    let span = world.memory(512);
    world.ssd.inject(Fault::NeverDisabled);
    world.hold(0, read(1, 0, 1, span));
    world.device.reset(world.now);
    assert_eq!(world.turns(Duration::from_millis(500)), []);
    assert_eq!(world.device.health(), Health::Recovering);
    world.pairs[0].submit(read(2, 0, 1, span)).unwrap();
    assert_eq!(world.turns(Duration::from_millis(200)), []);
    let (done, _) = world.wait(2);
    assert_eq!((done[0].tag, done[0].status), (1, Status::COMMAND_INTERRUPTED));
    assert_eq!((done[1].tag, done[1].status), (2, Status::SUCCESS));
    assert_eq!(world.device.health(), Health::Live, "a retry finds it back");
    world.assert_well();
}

#[test]
fn a_controller_that_stops_by_itself_is_reset() {
    let mut world = World::new(Setup::default());
    let span = world.memory(512);
    world.hold(0, read(1, 0, 1, span));
    world.ssd.inject(Fault::ReadyDrops);
    let (done, time) = world.wait(1);
    assert_eq!(done[0].status, Status::COMMAND_INTERRUPTED);
    assert!(time < Duration::from_secs(1), "{time:?}");
    assert!(world.device.fault().unwrap().to_string().contains("stopped being ready"));
    assert_eq!(world.ssd.enabled_count(), 2);
    world.assert_well();
}

#[test]
fn a_queue_pair_that_was_given_back_recovers_and_serves_another() {
    let mut world = World::new(Setup::default());
    let span = world.memory(512);
    world.ssd.inject(Fault::Hold);
    world.pairs[0].submit(read(1, 0, 1, span)).unwrap();
    world.pairs[0].poll(world.now);
    world.pairs.clear();
    world.turns(Duration::from_secs(8));
    assert_eq!(world.device.health(), Health::Live);
    let pool = world.device.queues();
    world.pairs = std::iter::from_fn(|| pool.take(world.device.namespaces())).collect();
    assert_eq!(world.pairs.len(), 2);
    assert_eq!(world.turns(Duration::from_secs(1)), [], "the orphan ends unseen");
    world.assert_well();
}

#[test]
fn a_reset_waits_until_every_queue_pair_has_noticed() {
    let mut world = World::new(Setup::default());
    world.device.reset(world.now);
    for _ in 0..100 {
        world.now += TICK;
        world.pairs[0].poll(world.now);
        world.device.poll(world.now);
    }
    assert_eq!((world.device.health(), world.ssd.enabled_count()), (Health::Recovering, 1));
    world.turns(Duration::from_millis(100));
    assert_eq!((world.device.health(), world.ssd.enabled_count()), (Health::Live, 2));
    world.assert_well();
}
