//! A command ends within 15 s from when it was taken, however many commands of the controller it
//! takes and whatever happens meanwhile.

use std::time::Duration;

use emulated_nvme::{Fault, Setup};
use nvme::{Config, Health, Op};
use nvme_spec::status::Status;

use crate::world::{TICK, World, command, read};

const LIMIT: Duration = Duration::from_secs(15);

#[test]
fn the_flush_that_follows_a_write_gets_no_time_of_its_own() {
    let mut world = World::new(Setup { ids: (0x1b36, 0x0010), ..Setup::default() });
    let span = world.memory(4096);
    let began = world.now;
    world.hold(0, command(Op::Write { fua: true }, 1, 0, 8, Some(span)));
    assert_eq!(world.turns(Duration::from_millis(4900)), []);
    // The flush is held, and nothing helps.
    world.ssd.inject(Fault::Hold);
    world.ssd.let_go();
    for fault in [Fault::IgnoreAbort, Fault::NeverDisabled, Fault::SlowReset] {
        world.ssd.inject(fault);
    }
    let (done, _) = world.wait(1);
    assert_eq!((done[0].tag, done[0].status), (1, Status::COMMAND_INTERRUPTED));
    assert!(world.now - began < LIMIT + 2 * TICK, "{:?}", world.now - began);
}

#[test]
fn a_command_of_many_parts_ends_in_time_on_a_slow_controller() {
    let config = Config { cores: 1, queue_entries: 2, ..Config::default() };
    let mut world = World::with(Setup { mdts: 1, ..Setup::default() }, config);
    let span = world.memory(64 << 10);
    // Eight parts of 4 s each, one at a time: none of them is late.
    let began = world.now;
    world.hold(0, read(1, 0, 128, span));
    let mut done = Vec::new();
    while done.is_empty() {
        world.ssd.inject(Fault::Hold);
        done = world.turns(Duration::from_secs(4));
        world.ssd.let_go();
    }
    assert_eq!((done[0].tag, done[0].status), (1, Status::COMMAND_INTERRUPTED));
    assert!(world.now - began < LIMIT, "{:?}", world.now - began);
    assert_eq!(world.ssd.enabled_count(), 1, "nothing is wrong with the controller");
}

#[test]
fn a_command_that_comes_during_a_recovery_has_a_clock_too() {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    world.ssd.inject(Fault::NeverDisabled);
    world.ssd.inject(Fault::SlowReset);
    world.device.reset(world.now);
    world.turns(Duration::from_secs(2));
    world.pairs[0].submit(read(1, 0, 8, span)).unwrap();
    let (done, time) = world.wait(1);
    assert!(!done[0].status.is_success() && time < LIMIT, "{time:?}");
    assert_eq!(world.device.health(), Health::Failed);
}

#[test]
fn a_removal_does_not_prolong_what_is_in_flight() {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    let began = world.now;
    world.ssd.inject(Fault::IgnoreAbort);
    world.hold(0, read(1, 0, 8, span));
    assert_eq!(world.turns(Duration::from_millis(5900)), []);
    for fault in [Fault::OrderlyRemoval, Fault::NeverShutDown, Fault::NeverDisabled] {
        world.ssd.inject(fault);
    }
    let (done, _) = world.wait(1);
    assert_eq!(done[0].status, Status::INTERNAL_ERROR.with_dnr());
    assert!(world.now - began < LIMIT, "{:?}", world.now - began);
}
