//! From bring-up to the end, when all is well: events, removal, memory, what a reset brings back.

use std::sync::Arc;
use std::time::Duration;

use dma::Arena;
use emulated_nvme::{Fault, NamespaceSetup, Setup};
use nvme::{Command, Config, Health, NamespaceFault};
use nvme_spec::aer::{AsyncEvent, event_type};
use nvme_spec::log_page::lid;
use nvme_spec::status::Status;

use crate::world::{World, pattern, read, start_in, write};

#[test]
fn an_event_has_the_health_log_read_and_the_next_one_is_heard() {
    let mut world = World::new(Setup::default());
    let temperature = |world: &World| world.device.smart().unwrap().temperature_kelvin.get();
    assert_eq!(temperature(&world), 310);
    let event = AsyncEvent(u32::from(event_type::SMART) | 1 << 8 | u32::from(lid::SMART) << 16);
    for kelvin in 350..360 {
        world.turns(Duration::from_millis(50));
        world.ssd.set_temperature(kelvin);
        assert!(world.ssd.report(event), "the driver listens");
        world.turns(Duration::from_millis(50));
        assert_eq!(temperature(&world), kelvin);
    }
    world.ssd.set_temperature(300);
    world.device.request_smart();
    world.turns(Duration::from_millis(50));
    assert_eq!(temperature(&world), 300);
    world.assert_well();
}

#[test]
fn an_orderly_end_waits_for_what_was_taken() {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    let wanted = pattern(span, 5);
    world.hold(0, write(1, 0, 8, span));
    world.device.begin_close(world.now);
    assert_eq!(world.turns(Duration::from_millis(500)), []);
    world.pairs[0].submit(read(2, 0, 8, span)).unwrap();
    let (done, _) = world.wait(1);
    assert_eq!((done[0].tag, done[0].status), (2, Status::INTERNAL_ERROR.with_dnr()));
    world.ssd.let_go();
    let (done, _) = world.wait(1);
    assert_eq!((done[0].tag, done[0].status), (1, Status::SUCCESS));
    world.turns(Duration::from_millis(100));
    assert_eq!(world.device.health(), Health::Failed);
    world.ssd.power_cut();
    assert_eq!(world.ssd.bytes(1, 0, 4096), wanted, "flushed after it was written");
}

#[test]
fn a_removal_request_after_the_end_is_heard() {
    let mut world = World::new(Setup::default());
    world.ssd.inject(Fault::SurpriseRemoval { reads: u32::MAX });
    world.turns(Duration::from_millis(100));
    assert_eq!((world.device.health(), world.device.removal_requested()), (Health::Failed, false));
    world.ssd.inject(Fault::OrderlyRemoval);
    world.turns(Duration::from_millis(100));
    assert!(world.device.removal_requested());
    assert!(world.device.fault().unwrap().to_string().contains("gone"), "the reason stays");
}

#[test]
fn a_device_takes_no_memory_with_it() {
    let arena = Arena::plain_pages(2 << 20).unwrap();
    let left = arena.bytes_left();
    for round in 0..200 {
        let config = Config { cores: 2, queue_entries: 256, ..Config::default() };
        let mut world = start_in(arena, Setup::default(), config, |_| {}).unwrap();
        assert!(arena.bytes_left() < left / 2);
        match round % 4 {
            // In order; at once; by itself; with a queue pair that outlives it.
            0 => {
                world.device.begin_close(world.now);
                world.turns(Duration::from_secs(1));
            }
            1 => {}
            2 => {
                world.ssd.inject(Fault::SurpriseRemoval { reads: u32::MAX });
                world.turns(Duration::from_millis(100));
            }
            _ => {
                let World { device, pairs, .. } = world;
                drop(device);
                assert!(arena.bytes_left() < left);
                drop(pairs);
                assert_eq!(arena.bytes_left(), left);
                continue;
            }
        }
        let ssd = Arc::clone(&world.ssd);
        drop(world);
        assert_eq!((arena.bytes_left(), Arc::strong_count(&ssd)), (left, 1), "round {round}");
    }
}

#[test]
fn a_device_that_does_not_come_up_takes_no_memory_either() {
    let arena = Arena::plain_pages(2 << 20).unwrap();
    let left = arena.bytes_left();
    for fault in [Fault::NeverReady, Fault::DeafAdmin] {
        let refused = start_in(arena, Setup::default(), Config::default(), |ssd| ssd.inject(fault));
        assert!(refused.is_err());
        assert_eq!(arena.bytes_left(), left);
    }
}

#[test]
fn a_namespace_that_a_reset_changed_fails_and_the_others_go_on() {
    let good = NamespaceSetup::default();
    let changes = [
        NamespaceSetup { block_count: good.block_count - 1, ..good },
        NamespaceSetup { lbads: 12, block_count: good.block_count / 8, ..good },
        NamespaceSetup { metadata_bytes: 8, ..good },
    ];
    for changed in changes {
        let mut world = World::new(Setup { namespaces: vec![good, good], ..Setup::default() });
        let span = world.memory(4096);
        let on_2 = |tag| Command { nsid: 2, ..read(tag, 0, 8, span) };
        world.hold(0, on_2(1));
        world.ssd.inject(Fault::NeverDisabled);
        world.device.reset(world.now);
        world.turns(Duration::from_millis(500));
        world.pairs[0].submit(on_2(2)).unwrap();
        world.pairs[0].submit(read(3, 0, 8, span)).unwrap();
        world.ssd.reformat(2, changed);
        let (mut done, _) = world.wait(3);
        done.sort_by_key(|completion| completion.tag);
        let statuses: Vec<_> = done.iter().map(|completion| completion.status).collect();
        let failed = Status::INTERNAL_ERROR.with_dnr();
        assert_eq!(statuses, [Status::COMMAND_INTERRUPTED, failed, Status::SUCCESS]);
        let refused = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
        assert_eq!(world.run(on_2(4)), refused);
        assert_eq!(world.device.namespaces().len(), 1);
        assert_eq!(world.device.unusable_namespaces()[0].0, 2);
        // Also where the queue pair is taken anew by someone who knows it from before.
        let old = [
            world.device.namespaces()[0],
            nvme::Namespace { nsid: 2, ..world.device.namespaces()[0] },
        ];
        let pool = world.device.queues();
        world.pairs.clear();
        world.pairs.push(pool.take(&old).unwrap());
        assert_eq!(world.run(on_2(5)), refused);
        world.ssd.mend(Fault::NeverDisabled);
        world.assert_well();
    }
}

#[test]
fn a_namespace_that_has_grown_goes_on_as_it_was() {
    let good = NamespaceSetup::default();
    let mut world = World::new(Setup::default());
    world.ssd.reformat(1, NamespaceSetup { block_count: good.block_count * 2, ..good });
    world.device.reset(world.now);
    world.turns(Duration::from_secs(1));
    assert_eq!(world.device.namespaces()[0].block_count, good.block_count);
    assert_eq!(world.device.unusable_namespaces(), []);
    world.assert_well();
}

#[test]
fn other_command_sets_are_left_alone() {
    let good = NamespaceSetup::default();
    let namespaces = vec![NamespaceSetup { csi: 2, ..good }, good];
    let mut world = World::new(Setup { namespaces, ..Setup::default() });
    let nsids: Vec<_> = world.device.namespaces().iter().map(|one| one.nsid).collect();
    assert_eq!(nsids, [2]);
    let faults = [(1, NamespaceFault::CommandSet { csi: 2 })];
    assert_eq!(world.device.unusable_namespaces(), faults);
    let span = world.memory(512);
    assert_eq!(world.run(Command { nsid: 2, ..read(1, 0, 1, span) }), Status::SUCCESS);
}
