//! Controllers that are not what they should be: an error, in bounded time.

use emulated_nvme::{Fault, NamespaceSetup, Setup};
use nvme::{Config, NamespaceFault};

use crate::world::{World, start};

fn refusal(setup: Setup, fault: Fault) -> String {
    start(setup, Config::default(), |ssd| ssd.inject(fault)).map(|_| ()).unwrap_err()
}

#[test]
fn a_controller_that_does_not_come_up_says_why() {
    let refused = |fault| refusal(Setup::default(), fault);
    let never = refused(Fault::NeverReady);
    assert!(never.contains("not ready after 1"), "{never}");
    assert!(refused(Fault::FatalWhenEnabled).contains("CSTS.CFS"));
    assert!(refused(Fault::DeafAdmin).contains("Identify Controller was not answered within 4s"));
    assert!(refused(Fault::SurpriseRemoval { reads: u32::MAX }).contains("CAP"));
    assert!(refused(Fault::SurpriseRemoval { reads: 0 }).contains("CAP is 0x0"));
    let none = Setup { mqes_z: 0, ..Setup::default() };
    assert!(refusal(none, Fault::OtherSerial).contains("CAP.MQES"));
}

#[test]
fn identify_garbage_makes_no_namespace() {
    let garbage =
        start(Setup::default(), Config::default(), |ssd| ssd.inject(Fault::GarbageIdentify));
    let world = garbage.unwrap();
    assert!(world.device.namespaces().is_empty());
    assert_eq!(world.device.identity().unwrap().transfer_bytes, 1 << 20);
}

#[test]
fn namespaces_that_cannot_be_used_do_not_spoil_the_others() {
    let good = NamespaceSetup::default();
    let namespaces = vec![
        good,
        NamespaceSetup { metadata_bytes: 8, ..good },
        NamespaceSetup { lbads: 63, ..good },
        NamespaceSetup { block_count: 0, ..good },
        NamespaceSetup { block_count: u64::MAX, ..good },
    ];
    let mut world = World::new(Setup { namespaces, ..Setup::default() });
    assert_eq!(world.device.namespaces().len(), 1);
    let faults = [
        (2, NamespaceFault::Metadata { bytes: 8 }),
        (3, NamespaceFault::BlockSize { lbads: 63 }),
        (4, NamespaceFault::Size { blocks: 0 }),
        (5, NamespaceFault::Size { blocks: u64::MAX }),
    ];
    assert_eq!(world.device.unusable_namespaces(), faults);
    world.assert_well();
}

#[test]
fn fewer_and_smaller_queues_than_wanted() {
    let setup = Setup { queue_count: 1, mqes_z: 3, ..Setup::default() };
    let mut world = World::new(setup);
    assert_eq!((world.pairs.len(), world.device.queues().queue_count()), (1, 1));
    world.assert_well();
}
