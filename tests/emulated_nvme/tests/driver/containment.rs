//! A controller that does not let itself be disabled is kept from memory, and what it may still
//! reach is nobody's meanwhile.

use std::time::Duration;

use emulated_nvme::{Fault, Setup};
use nvme::Health;
use nvme_spec::status::Status;

use crate::world::{World, read};

const LIMIT: Duration = Duration::from_secs(15);
/// Time-out, grace, and as long as the controller may take to be disabled (CAP.TO).
const CONTAINED_AFTER: Duration = Duration::from_millis(7100);

/// A controller that holds a command of queue pair 0 and obeys nothing of the specification.
fn stubborn(faults: &[Fault]) -> World {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    world.hold(0, read(1, 0, 8, span));
    for &fault in [Fault::IgnoreAbort, Fault::NeverDisabled].iter().chain(faults) {
        world.ssd.inject(fault);
    }
    world
}

#[test]
fn bus_mastering_contains_a_controller_that_does_not_disable() {
    let mut world = stubborn(&[Fault::SlowReset]);
    assert_eq!(world.turns(CONTAINED_AFTER), []);
    assert!(!world.ssd.is_bus_master(), "before the reset, which may take a minute");
    assert_eq!((world.ssd.reset_count(), world.device.health()), (0, Health::Recovering));
    world.ssd.mend(Fault::SlowReset);
    world.ssd.mend(Fault::NeverDisabled);
    let (done, time) = world.wait(1);
    assert!(time < Duration::from_secs(1), "{time:?}");
    assert_eq!(done[0].status, Status::COMMAND_INTERRUPTED);
    assert_eq!((world.ssd.reset_count(), world.ssd.enabled_count()), (1, 2));
    world.assert_well();
}

#[test]
fn a_function_reset_that_does_not_end_holds_up_nobody() {
    let mut world = stubborn(&[Fault::SlowReset]);
    let (done, time) = world.wait(1);
    assert!(time < LIMIT + Duration::from_millis(100), "{time:?}");
    assert_eq!((done[0].tag, done[0].status), (1, Status::COMMAND_INTERRUPTED));
    world.turns(Duration::from_secs(1));
    assert_eq!(world.device.health(), Health::Failed);
    drop(world.device);
    assert_eq!(world.ssd.violations(), Vec::<String>::new(), "nothing of it was touched");
}

#[test]
fn a_function_reset_that_fails_ends_the_device() {
    let mut world = stubborn(&[Fault::ResetFails]);
    let (done, time) = world.wait(1);
    assert!(time < LIMIT && !done[0].status.is_success(), "{time:?}");
    assert_eq!(world.device.health(), Health::Failed);
    assert!(world.device.fault().unwrap().to_string().contains("does not reset"));
    assert!(!world.ssd.is_bus_master() && world.ssd.is_mapped());
}

#[test]
fn the_iommu_contains_a_controller_whose_bus_mastering_is_stuck() {
    let mut world = stubborn(&[Fault::BusMasterStuck]);
    let (done, time) = world.wait(1);
    assert!(time < LIMIT, "{time:?}");
    assert_eq!(done[0].status, Status::INTERNAL_ERROR.with_dnr());
    assert!(world.ssd.is_bus_master() && !world.ssd.is_mapped());
    assert_eq!(world.device.health(), Health::Failed);
}

#[test]
fn memory_is_withheld_until_the_controller_cannot_write_it() {
    let mut world = stubborn(&[Fault::BusMasterStuck, Fault::StaysMapped]);
    let span = world.memory(4096);
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
    // Rings and lists are as much at risk as data.
    let left = world.arena.bytes_left();
    drop((world.pairs, world.device));
    assert_eq!(world.arena.bytes_left(), left);
}

#[test]
fn registers_that_are_gone_prove_nothing_of_memory() {
    let mut world = World::new(Setup::default());
    let span = world.memory(512);
    world.hold(0, read(1, 0, 1, span));
    for fault in [Fault::BusMasterStuck, Fault::StaysMapped] {
        world.ssd.inject(fault);
    }
    world.ssd.inject(Fault::SurpriseRemoval { reads: u32::MAX });
    assert_eq!(world.turns(Duration::from_secs(1)), [], "it may still be written");
    assert_eq!(world.device.health(), Health::Failed);

    let mut world = World::new(Setup::default());
    let span = world.memory(512);
    world.hold(0, read(1, 0, 1, span));
    world.ssd.inject(Fault::BusMasterStuck);
    world.ssd.inject(Fault::SurpriseRemoval { reads: u32::MAX });
    assert_eq!(world.wait(1).0[0].status, Status::INTERNAL_ERROR.with_dnr());
    assert!(!world.ssd.is_mapped());
}
