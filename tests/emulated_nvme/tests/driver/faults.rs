//! Things go wrong in service: every command ends in time, its memory is left alone before, and the
//! device serves again or is given up.

use std::time::Duration;

use emulated_nvme::{Fault, Setup};
use nvme::{Busy, Health};
use nvme_spec::status::Status;

use crate::world::{TICK, World, read, write};

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
        world.ssd.inject(Fault::Hold);
        world.ssd.inject(Fault::Hold);
        // One of many children, and one on the other queue pair.
        world.pairs[0].submit(write(1, 0, 2048, span)).unwrap();
        world.pairs[1].submit(read(2, 0, 8, span)).unwrap();
        let (done, time) = world.wait(2);
        assert!(time > Duration::from_secs(5) && time < LIMIT, "{time:?}");
        for completion in done {
            let wanted = if completion.tag == 1 || world.ssd.held() > 0 {
                Status::COMMAND_INTERRUPTED
            } else {
                completion.status
            };
            assert_eq!(completion.status, wanted);
            assert!(!completion.status.dnr());
        }
        assert_eq!(world.ssd.enabled_count(), 2);
        world.assert_well();
        let stats = world.device.queues().stats();
        assert!(stats.iter().all(|queue| queue.stale == 0), "rings were not reset: {stats:?}");
    }
}

#[test]
fn memory_is_withheld_until_the_controller_cannot_write_it() {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    world.ssd.inject(Fault::IgnoreAbort);
    world.ssd.inject(Fault::NeverDisabled);
    world.ssd.inject(Fault::NeverContained);
    world.ssd.inject(Fault::Hold);
    world.pairs[0].submit(read(1, 0, 8, span)).unwrap();
    assert_eq!(world.turns(Duration::from_secs(60)), [], "it may still be written");
    assert_eq!(world.device.health(), Health::Failed);
    // Another command does end, and does not reach the controller.
    world.pairs[0].submit(read(2, 0, 8, span)).unwrap();
    let (done, _) = world.wait(1);
    assert_eq!((done[0].tag, done[0].status), (2, Status::INTERNAL_ERROR.with_dnr()));
    // The real completion arrives at last.
    world.ssd.let_go();
    let (done, _) = world.wait(1);
    assert_eq!((done[0].tag, done[0].status), (1, Status::SUCCESS));
}

#[test]
fn bus_mastering_contains_a_controller_that_does_not_disable() {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    world.ssd.inject(Fault::IgnoreAbort);
    world.ssd.inject(Fault::NeverDisabled);
    world.ssd.inject(Fault::Hold);
    world.pairs[0].submit(read(1, 0, 8, span)).unwrap();
    let (done, time) = world.wait(1);
    assert!(time < LIMIT, "{time:?}");
    assert_eq!(done[0].status, Status::COMMAND_INTERRUPTED);
    world.ssd.mend(Fault::NeverDisabled);
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
        let mut other = World::new(Setup::default());
        let span = world.memory(512);
        world.ssd.inject(Fault::Hold);
        world.pairs[0].submit(read(1, 0, 1, span)).unwrap();
        world.pairs[0].poll(world.now);
        world.ssd.inject(Fault::SurpriseRemoval { reads });
        let (done, time) = world.wait(1);
        assert_eq!(done[0].status, Status::INTERNAL_ERROR.with_dnr());
        assert!(time < Duration::from_secs(1), "{time:?}");
        assert_eq!(world.device.health(), Health::Failed);
        assert!(world.device.fault().unwrap().to_string().contains("gone"));
        world.pairs[0].submit(read(2, 0, 1, span)).unwrap();
        assert_eq!(world.wait(1).0[0].status, Status::INTERNAL_ERROR.with_dnr());
        other.assert_well();
    }
}

#[test]
fn an_orderly_removal_ends_what_is_in_flight_and_lets_go() {
    let mut world = World::new(Setup::default());
    let span = world.memory(512);
    world.ssd.inject(Fault::Hold);
    world.pairs[0].submit(read(1, 0, 1, span)).unwrap();
    world.pairs[0].poll(world.now);
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
        assert!(!done[0].status.is_success());
        world.turns(Duration::from_secs(10));
        assert_eq!(world.device.health(), Health::Failed, "{fault:?}");
    }
}

#[test]
fn while_it_recovers_the_queue_is_busy_and_a_retry_finds_it_back() {
    let mut world = World::new(Setup::default());
    let span = world.memory(512);
    world.ssd.inject(Fault::NeverDisabled);
    world.ssd.inject(Fault::Hold);
    world.pairs[0].submit(read(1, 0, 1, span)).unwrap();
    world.pairs[0].poll(world.now);
    world.device.reset(world.now);
    assert_eq!(world.turns(Duration::from_millis(500)), []);
    assert_eq!(world.device.health(), Health::Recovering);
    assert_eq!(world.pairs[0].submit(read(2, 0, 1, span)), Err(Busy));
    world.ssd.mend(Fault::NeverDisabled);
    let (done, _) = world.wait(1);
    assert_eq!((done[0].tag, done[0].status), (1, Status::COMMAND_INTERRUPTED));
    assert_eq!(world.device.health(), Health::Live, "a retry finds it back");
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
