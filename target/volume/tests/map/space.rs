//! Clusters and pages.

use std::collections::BTreeSet;

use proptest::prelude::*;
use volume::space::{Run, Space};

const DEVICE_1: u32 = 1 << 28;

fn take(space: &mut Space, run: &mut Run, count: usize) -> Vec<u32> {
    (0..count).map(|_| space.take(run).expect("space")).collect()
}

#[test]
fn streams_are_contiguous_and_do_not_mix_and_use_all_devices() {
    let mut space = Space::new(&[1000, 1000]);
    let (mut a, mut b) = (Run::default(), Run::default());
    let mut taken = [Vec::new(), Vec::new()];
    for _ in 0..64 {
        taken[0].extend(take(&mut space, &mut a, 2));
        taken[1].extend(take(&mut space, &mut b, 1));
    }
    for stream in &taken {
        for window in stream.chunks(64) {
            assert!(window.windows(2).all(|pair| pair[1] == pair[0] + 1), "{window:x?}");
        }
    }
    let on_second = taken.iter().flatten().filter(|cluster| **cluster >= DEVICE_1).count();
    assert!((64..=128).contains(&on_second), "{on_second} of 192");
}

#[test]
fn what_is_free_in_another_window_is_taken_last_and_the_reserve_never_by_data() {
    let mut space = Space::new(&[256]);
    let (mut a, mut b) = (Run::default(), Run::default());
    take(&mut space, &mut a, 1);
    let left = space.available_clusters() as usize;
    assert_eq!(left, 255 - 16 - 1, "the first cluster is fixed");
    let taken: BTreeSet<u32> = take(&mut space, &mut b, left).into_iter().collect();
    assert_eq!(taken.len(), left);
    assert_eq!(space.take(&mut a), None);
    assert_eq!(space.take(&mut b), None);
    for _ in 0..16 {
        assert!(space.take_pages(16).is_some());
    }
    assert_eq!(space.take_pages(1), None);
    assert_eq!(space.free_clusters(), 0);
}

#[test]
fn a_cluster_is_free_when_its_last_holder_lets_go() {
    let mut space = Space::new(&[100]);
    let free = space.free_clusters();
    let cluster = space.take(&mut Run::default()).expect("space");
    assert_eq!((space.holders(cluster), space.free_clusters()), (0, free - 1));
    for _ in 0..1000 {
        space.acquire(cluster);
    }
    assert_eq!(space.holders(cluster), 1000);
    for _ in 0..999 {
        space.release(cluster);
    }
    assert_eq!((space.holders(cluster), space.free_clusters()), (1, free - 1));
    space.release(cluster);
    assert_eq!((space.holders(cluster), space.free_clusters()), (0, free));
    let cluster = space.take(&mut Run::default()).expect("space");
    space.untake(cluster);
    assert_eq!(space.free_clusters(), free);
}

#[test]
fn a_free_cluster_of_a_window_can_be_taken_by_its_number() {
    let mut space = Space::new(&[100]);
    let mut run = Run::default();
    let first = space.take(&mut run).expect("space");
    space.acquire(first + 1);
    assert_eq!(space.take(&mut run), Some(first + 2));
    space.close_run(&mut run);
    space.acquire(first + 3);
    let free: Vec<u32> = std::iter::from_fn(|| space.take(&mut run)).collect();
    assert!(!free.contains(&(first + 3)) && free.contains(&(first + 4)));
}

#[test]
fn nothing_is_taken_on_a_read_only_device() {
    let mut space = Space::new(&[300, 300]);
    let mut run = Run::default();
    let all = space.free_clusters();
    let (data, page) = (space.take(&mut run).expect("space"), space.take_pages(1).expect("space"));
    let second = space.take(&mut Run::default()).expect("space");
    space.acquire(data);
    assert_eq!((data >> 28, page >> 32, second >> 28), (0, 1, 0));
    space.set_readonly(0, true);
    assert_eq!((space.total_clusters(), space.free_clusters()), (300, 298));
    let taken: Vec<u32> = std::iter::from_fn(|| space.take(&mut run)).collect();
    assert!(taken.iter().all(|cluster| *cluster >= DEVICE_1) && taken.len() == 298 - 16);
    space.release(data);
    space.untake(second);
    assert_eq!(space.used_clusters(0), 0);
    space.set_readonly(0, false);
    assert_eq!(space.free_clusters(), all - 1 - taken.len() as u64);
    space.set_readonly(1, true);
    assert!(space.take_pages(1).expect("space") >> 32 == 0, "not in the other device's cluster");
    space.set_readonly(1, false);
    assert_eq!(space.page_clusters(1).collect::<Vec<_>>(), [((page / 16) as u32, 1)]);
    space.free_pages(page, 1);
    taken.into_iter().for_each(|cluster| space.untake(cluster));
    assert_eq!(space.used_clusters(1), 0);
    space.remove_device(1);
    assert_eq!(space.total_clusters(), 300);
    assert!(!space.may_hold(DEVICE_1 + 1));
}

#[test]
fn devices_come_and_grow() {
    let mut space = Space::new(&[70]);
    space.grow_device(0, 130);
    space.add_device(3, 65);
    assert_eq!((space.total_clusters(), space.free_clusters()), (195, 193));
    assert!(space.may_hold(129) && !space.may_hold(130) && !space.may_hold(3 << 28));
    assert!(space.mark_fixed(5) && space.mark_fixed(5) && !space.mark_fixed(130));
    let mut all = BTreeSet::new();
    let mut run = Run::default();
    while let Some(cluster) = space.take(&mut run) {
        assert!(all.insert(cluster) && space.may_hold(cluster));
    }
    assert_eq!(all.len(), 192 - 16);
}

#[test]
fn pages_that_are_in_use_or_nowhere_are_not_marked() {
    let mut space = Space::new(&[100, 0, 100]);
    let cluster = space.take(&mut Run::default()).expect("space");
    let free = space.free_clusters();
    let nowhere = [(0, 1), (15, 2), (100 * 16 - 1, 2), (1 << 32, 1), (u64::MAX, 1), (1 << 40, 1)];
    for (page, pages) in nowhere {
        assert!(!space.mark_pages(page, pages), "{page:#x}");
    }
    assert!(!space.mark_pages(u64::from(cluster) * 16, 1));
    assert!(!space.mark_pages(32 * 16, 0));
    assert_eq!(space.free_clusters(), free);
    assert!(space.mark_pages(50 * 16 + 15, 18), "from a cluster's last page to another's first");
    assert_eq!(space.free_clusters(), free - 3);
    for (page, pages) in [(50 * 16 + 15, 1), (50 * 16, 40), (52 * 16, 1), (51 * 16 + 3, 2)] {
        assert!(!space.mark_pages(page, pages), "{page:#x}");
    }
    assert!(space.mark_pages(50 * 16, 15) && space.mark_pages(52 * 16 + 1, 15));
    space.free_pages(50 * 16 + 15, 18);
    assert!(!space.may_hold(50) && space.may_hold(51) && !space.may_hold(52));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// No page and no cluster is given twice, and what was given back is there again.
    #[test]
    fn pages_and_clusters_are_given_once(
        steps in prop::collection::vec((0..4u8, 1..40u32), 1..300),
    ) {
        let mut space = Space::new(&[150, 90]);
        let all = space.free_clusters();
        let mut run = Run::default();
        let mut used = BTreeSet::new();
        let mut pages: Vec<(u64, u32)> = Vec::new();
        let mut clusters = Vec::new();
        for (step, size) in steps {
            match step {
                0 => if let Some(page) = space.take_pages(size) {
                    prop_assert!(size > 16 || page / 16 == (page + u64::from(size) - 1) / 16);
                    prop_assert!((page..page + u64::from(size)).all(|page| used.insert(page)));
                    pages.push((page, size));
                },
                1 if !pages.is_empty() => {
                    let (page, size) = pages.swap_remove(size as usize % pages.len());
                    space.free_pages(page, size);
                    (page..page + u64::from(size)).for_each(|page| { used.remove(&page); });
                }
                2 => if let Some(cluster) = space.take(&mut run) {
                    let page = u64::from(cluster) * 16;
                    prop_assert!((page..page + 16).all(|page| used.insert(page)));
                    space.acquire(cluster);
                    clusters.push(cluster);
                },
                3 if !clusters.is_empty() => {
                    let cluster = clusters.swap_remove(size as usize % clusters.len());
                    let page = u64::from(cluster) * 16;
                    (page..page + 16).for_each(|page| { used.remove(&page); });
                    space.release(cluster);
                }
                _ => {}
            }
            let mut busy: Vec<u64> = used.iter().map(|page| page / 16).collect();
            busy.dedup();
            prop_assert_eq!(space.free_clusters(), all - busy.len() as u64);
        }
    }
}
