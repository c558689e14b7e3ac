//! Pools that are checked while they are not open, and what is done with damaged ones.

mod rig;

use std::sync::atomic::Ordering;

use rig::Rig;
use volume::{Call, GiveUp, PoolInfo, Reply};

const MIB: u64 = 1 << 20;

fn info(rig: &mut Rig) -> PoolInfo {
    let Ok(Reply::Pool(info)) = rig.call(Call::Info) else { panic!() };
    info
}

fn names(rig: &mut Rig) -> Vec<String> {
    let Ok(Reply::Volumes(volumes)) = rig.call(Call::List) else { panic!() };
    volumes.into_iter().map(|volume| volume.name).collect()
}

/// Two volumes and a snapshot, on the device as of a checkpoint.
fn pool() -> (Rig, Vec<u8>) {
    let mut rig = Rig::new(&[4 * MIB]);
    for (name, byte) in [("a", 1), ("b", 2)] {
        rig.create(name, MIB, 4096);
        let channel = rig.open(name);
        rig.write(channel, 0, &[byte; 8192]);
        if name == "a" {
            rig.snapshot("a", "a.s");
            rig.write(channel, 4096, &[byte; 4096]);
        }
        rig.close(channel);
    }
    rig.call(Call::Checkpoint).unwrap();
    let image = rig.image();
    (rig, image)
}

/// Pages that are neither zero nor data.
fn metadata(image: &[u8]) -> Vec<usize> {
    let page = |page: &usize| &image[page * 4096..][..4096];
    let pages = (0..image.len() / 4096).filter(|number| page(number) != [0; 4096]);
    pages.filter(|number| page(number) != [1; 4096] && page(number) != [2; 4096]).collect()
}

fn flip(image: &[u8], page: usize, byte: usize) -> Vec<u8> {
    let mut wrong = image.to_vec();
    wrong[page * 4096 + byte] ^= 4;
    wrong
}

/// Pages of metadata that only volume b needs.
fn pages_of_b(rig: &mut Rig, image: &[u8]) -> Vec<usize> {
    let mut pages = metadata(image);
    pages.retain(|page| {
        rig.put_image(&flip(image, *page, 77));
        rig.check_closed().unwrap().faults.iter().any(|fault| fault.volumes == ["b"])
    });
    pages
}

#[test]
fn a_check_reads_everything_and_writes_nothing() {
    let (mut rig, image) = pool();
    let report = rig.check_closed().unwrap();
    assert_eq!((report.faults, report.notes, report.volumes), (vec![], vec![], 3));
    assert_eq!(rig.image(), image);
    // As a process would leave it that is killed.
    assert!(rig.open_image(&image, GiveUp::None));
    let a = rig.open("a");
    for block in 0..8 {
        rig.write(a, MIB / 2 + block * 65536, &[3; 65536]);
    }
    rig.snapshot("a", "a.t");
    let image = rig.image();
    let report = rig.check_closed().unwrap();
    assert!(report.replayed > 0 && report.faults.is_empty(), "{report:?}");
    assert_eq!((report.volumes, report.notes), (3, vec![]), "those of the checkpoint");
    assert_eq!(rig.image(), image);
}

#[test]
fn a_check_names_what_opening_would_close() {
    let (mut rig, image) = pool();
    let (mut closing, mut repairable, mut noted) = (0, 0, 0);
    for page in metadata(&image) {
        for byte in [77, 4000] {
            let wrong = flip(&image, page, byte);
            rig.put_image(&wrong);
            let report = rig.check_closed().unwrap();
            assert_eq!(rig.image(), wrong, "page {page}: a check writes nothing");
            let mut named: Vec<String> =
                report.faults.iter().flat_map(|fault| fault.volumes.clone()).collect();
            named.sort();
            named.dedup();
            assert!(rig.open_image(&wrong, GiveUp::Wrong));
            let damaged: Vec<String> =
                info(&mut rig).damaged.into_iter().map(|(name, _)| name).collect();
            assert_eq!(named, damaged, "page {page}: {report:#?}");
            match report.is_repairable() {
                true => repairable += usize::from(!report.faults.is_empty()),
                false => closing += 1,
            }
            noted += report.notes.len();
            rig.check_but_for(&damaged);
        }
    }
    assert!(closing >= 10 && repairable >= 4 && noted >= 4, "{closing}, {repairable}, {noted}");
}

#[test]
fn a_pool_of_which_something_cannot_be_read_is_not_written_until_somebody_says_so() {
    let (mut rig, image) = pool();
    let pages = pages_of_b(&mut rig, &image);
    assert!(pages.len() >= 2, "a descriptor and a leaf");
    for page in pages {
        rig.unreadable.store(page as u64, Ordering::Relaxed);
        assert!(!rig.open_image(&image, GiveUp::None));
        assert!(!rig.open_image(&image, GiveUp::Wrong), "it may be readable again");
        rig.unreadable.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(rig.image(), image, "page {page}");
        rig.unreadable.store(page as u64, Ordering::Relaxed);
        assert!(rig.open_image(&image, GiveUp::Unreadable));
        assert_eq!(names(&mut rig), ["a", "a.s"]);
        rig.unreadable.store(u64::MAX, Ordering::Relaxed);
        let given_up = rig.image();
        assert!(rig.open_image(&given_up, GiveUp::None));
        assert_eq!(names(&mut rig), ["a", "a.s"], "others may have its space since");
    }
}

#[test]
fn a_volume_that_is_not_what_was_written_stays_closed_and_the_others_open() {
    let (mut rig, image) = pool();
    let page = pages_of_b(&mut rig, &image)[0];
    let wrong = flip(&image, page, 77);
    assert!(!rig.open_image(&wrong, GiveUp::None));
    assert_eq!(rig.image(), wrong);
    assert!(rig.open_image(&image, GiveUp::None), "nothing was lost by that");
    assert!(rig.open_image(&wrong, GiveUp::Wrong));
    assert_eq!(names(&mut rig), ["a", "a.s"]);
    // From then on it opens, and b stays closed though its page may be readable again.
    let mut given_up = rig.image();
    given_up[page * 4096 + 77] ^= 4;
    assert!(rig.open_image(&given_up, GiveUp::None));
    let damaged = info(&mut rig).damaged;
    assert_eq!((damaged.len(), damaged[0].0.as_str()), (1, "b"));
    assert!(damaged[0].1.contains("given up"), "{damaged:?}");
}

#[test]
fn a_damaged_volume_can_be_deleted_and_its_space_comes_back() {
    let (mut rig, image) = pool();
    let pages = pages_of_b(&mut rig, &image);
    for page in pages {
        assert!(rig.open_image(&flip(&image, page, 77), GiveUp::Wrong));
        rig.call(Call::Delete("b".into())).unwrap();
        assert_eq!(info(&mut rig).damaged, []);
        rig.check();
        rig.create("b", MIB, 4096);
        let b = rig.open("b");
        assert_eq!(rig.read(b, 0, 8192), [0; 8192]);
        rig.reopen();
        assert_eq!((info(&mut rig).damaged, names(&mut rig).len()), (vec![], 3));
    }
}

#[test]
fn bytes_that_nobody_wrote_never_panic_in_a_check() {
    let (mut rig, image) = pool();
    let pages = metadata(&image);
    for round in 0..200u64 {
        let mut wrong = image.clone();
        for step in 0..1 + round % 3 {
            let page = pages[(round * 7 + step * 13) as usize % pages.len()] * 4096;
            let at = page + (round.wrapping_mul(0x9e37_79b9).wrapping_add(step) % 4096) as usize;
            let end = (at + 1 + (round % 64) as usize).min(page + 4096);
            wrong[at..end].iter_mut().for_each(|byte| *byte = byte.wrapping_add(round as u8 | 1));
        }
        rig.put_image(&wrong);
        // It may have no superblock left.
        let _ = rig.check_closed();
    }
}
