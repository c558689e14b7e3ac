//! Pools survive ten thousand ends; and each bug that is planted in one is found.

use std::ops::{Range, RangeInclusive};

use sim::{Config, DeviceConfig, Faults, Spread, Statistics, run};
use volume::Planted;

/// Ends that have to be survived here; `cargo xtask sim` does any number.
const POINTS: u64 = 10_000;
/// Seeds in which a planted bug has to be found.
const BUDGET: u64 = 200;

#[test]
fn ten_thousand_ends_break_no_promise() {
    let mut sum = Statistics::default();
    for seed in 1.. {
        match run(seed, &Config::from_seed(seed)) {
            Ok(summary) => sum.add(&summary.statistics),
            Err(failure) => {
                panic!("seed {seed}: {failure}\nagain: cargo xtask sim --first {seed} --seeds 1")
            }
        }
        if sum.points >= POINTS {
            break;
        }
    }
    println!("{sum:?}");
    assert!(sum.lives > 0 && sum.calls > 0 && sum.refused > 0 && sum.removals > 0, "{sum:?}");
}

#[test]
fn a_full_pool_refuses_what_it_must_and_breaks_no_promise() {
    let sum = survive(1..=12, hasty);
    assert!(sum.full > 100, "{sum:?}");
}

#[test]
fn a_device_that_missed_the_newest_superblock_gets_it_before_there_is_a_newer_one() {
    let mut config = Config::from_seed(517);
    config.devices.iter_mut().for_each(|device| device.latency = None);
    run(517, &config).unwrap();
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in [3, 4] {
        let config = Config::from_seed(seed);
        assert_eq!(run(seed, &config).unwrap(), run(seed, &config).unwrap());
    }
}

#[test]
fn every_bug_that_can_be_planted_has_a_test() {
    let text = include_str!("pools.rs");
    let missing = |bug: &&Planted| !text.contains(&format!("(Planted::{bug:?}"));
    assert_eq!(Planted::ALL.iter().filter(missing).collect::<Vec<_>>(), [] as [&Planted; 0]);
}

/// The superblocks of a device, and the two copies of the journal as pools of one and of more
/// devices have them: device and bytes.
const SUPERBLOCKS: Range<u64> = 0..64 << 10;
const FIRST_COPY: (usize, Range<u64>) = (0, 64 << 10..320 << 10);
const SECOND_COPY: [(usize, Range<u64>); 2] = [(0, 320 << 10..576 << 10), (1, 64 << 10..320 << 10)];

/// Runs pools whose devices fail from some instant on.
fn fail(
    seeds: RangeInclusive<u64>,
    faults: impl Fn(&Config) -> Vec<(usize, Faults)>,
) -> Statistics {
    survive(seeds, |config| {
        config.one_in = 1000;
        config.faults = faults(config);
    })
}

/// Runs these seeds, all of which break no promise.
fn survive(seeds: RangeInclusive<u64>, adapt: impl Fn(&mut Config)) -> Statistics {
    let mut sum = Statistics::default();
    for seed in seeds {
        let mut config = Config::from_seed(seed);
        adapt(&mut config);
        match run(seed, &config) {
            Ok(summary) => sum.add(&summary.statistics),
            Err(failure) => panic!("seed {seed}, faults {:?}: {failure}", config.faults),
        }
    }
    println!("{sum:?}");
    sum
}

#[test]
fn reads_and_writes_that_fail_here_and_there_end_with_an_error_and_nothing_else() {
    let here_and_there = |_: &Config| vec![(0, Faults { reads: 30, writes: 200, ..none() })];
    let sum = fail(1..=12, here_and_there);
    assert!(sum.failed > 0, "{sum:?}");
    let data =
        |_: &Config| vec![(0, Faults { writes: 30, place: Some(1 << 20..2 << 20), ..none() })];
    let sum = fail(13..=24, data);
    assert!(sum.failed > 0, "{sum:?}");
}

#[test]
fn a_flush_that_fails_makes_nothing_durable_and_one_that_always_does_ends_all_writes() {
    let sum = fail(1..=12, |_| vec![(0, Faults { flushes: 8, ..none() })]);
    assert!(sum.failed > 0, "{sum:?}");
    let sum = fail(13..=20, |_| vec![(0, Faults { flushes: 1, ..none() })]);
    assert!(sum.failed > 0 && sum.broken > 0, "{sum:?}");
}

#[test]
fn one_copy_of_the_journal_is_enough() {
    let first = vec![(FIRST_COPY.0, Faults { writes: 1, place: Some(FIRST_COPY.1), ..none() })];
    let sum = fail(1..=10, |_| first.clone());
    assert_eq!((sum.failed, sum.broken), (0, 0), "{sum:?}");
}

#[test]
fn a_pool_whose_journal_cannot_be_written_takes_no_writes_and_loses_none() {
    let both = |config: &Config, writes| {
        let second = SECOND_COPY[usize::from(config.devices.len() > 1)].clone();
        let copy = |(device, place)| (device, Faults { writes, place: Some(place), ..none() });
        match second.0 {
            0 => vec![copy((0, FIRST_COPY.1.start..second.1.end))],
            _ => vec![copy(FIRST_COPY), copy(second)],
        }
    };
    let sum = fail(1..=8, |config| both(config, 1));
    assert!(sum.failed > 0 && sum.broken > 0, "{sum:?}");
    let sum = fail(9..=20, |config| both(config, 6));
    assert!(sum.failed > 0 && sum.broken > 0, "{sum:?}");
}

#[test]
fn a_superblock_that_cannot_be_written_ends_all_writes_and_loses_none() {
    let sum = fail(1..=12, |_| vec![(0, Faults { writes: 1, place: Some(SUPERBLOCKS), ..none() })]);
    assert!(sum.broken > 0, "{sum:?}");
}

fn none() -> Faults {
    Faults::default()
}

/// Runs seeds until one shows the bug.
fn find(bug: Planted) {
    find_where(bug, |_| {});
}

/// The same, in pools that make it likely.
fn find_where(bug: Planted, adapt: impl Fn(&mut Config)) {
    for seed in 1..=BUDGET {
        let mut config = Config { planted: Some(bug), ..Config::from_seed(seed) };
        adapt(&mut config);
        if let Err(failure) = run(seed, &config) {
            println!("seed {seed}: {failure}");
            return;
        }
    }
    panic!("{bug:?} was not found in {BUDGET} seeds");
}

/// One small device that needs no flush: what is let go is closed at once and soon used again.
fn hasty(config: &mut Config) {
    config.devices.truncate(1);
    for device in &mut config.devices {
        (device.bytes, device.volatile_write_cache, device.latency) = (2 << 20, false, None);
    }
    (config.lanes, config.objects, config.volume_clusters) = (3, 4, 4);
    (config.spread, config.hot_bytes) = (Spread(0), 0);
    (config.clears, config.whole_clears) = (6, 4);
}

/// Clusters are written and let go, and are short; all I/Os take as long, so that what is begun
/// when a cluster is on its way to be free ends when it is.
fn let_go(config: &mut Config) {
    hasty(config);
    for device in &mut config.devices {
        (device.bytes, device.block_bytes, device.latency) = (5 << 19, 4096, Some(15));
    }
    (config.lanes, config.objects, config.volume_clusters) = (1, 2, 12);
    (config.flushes, config.whole_clears, config.checkpoints) = (0, 8, 0);
    (config.operations, config.one_in) = (1000, 1000);
}

/// The same while checkpoints are written, one after another.
fn many_checkpoints(config: &mut Config) {
    hasty(config);
    for device in &mut config.devices {
        (device.bytes, device.block_bytes) = (5 << 19, 4096);
    }
    (config.lanes, config.volume_clusters) = (1, 8);
    (config.flushes, config.whole_clears, config.checkpoints) = (2, 8, 100);
    (config.operations, config.one_in) = (600, 500);
}

/// Single blocks of a cluster come and go on several cores, and nothing asks for a flush.
fn few_blocks(config: &mut Config) {
    hasty(config);
    for device in &mut config.devices {
        (device.bytes, device.block_bytes) = (4 << 20, 4096);
    }
    (config.lanes, config.objects, config.volume_clusters) = (4, 3, 1);
    (config.clears, config.whole_clears, config.hot_bytes) = (3, 0, 64 << 10);
    (config.flushes, config.checkpoints, config.one_in) = (0, 0, 100);
}

/// Snapshots of a few blocks that are read again and again, while checkpoints are taken and many
/// I/Os are on their way.
fn late_touches(config: &mut Config) {
    hasty(config);
    for device in &mut config.devices {
        (device.bytes, device.volatile_write_cache) = (8 << 20, true);
        device.latency = Some(25);
    }
    (config.lanes, config.objects, config.volume_clusters) = (2, 6, 1);
    (config.clears, config.whole_clears, config.hot_bytes) = (5, 0, 32 << 10);
    (config.flushes, config.checkpoints) = (1, 100);
    (config.operations, config.one_in) = (600, 500);
}

/// Many checkpoints, of which each flush is worth something.
fn many_flushes(config: &mut Config) {
    many_checkpoints(config);
    for device in &mut config.devices {
        (device.volatile_write_cache, device.latency) = (true, Some(8));
    }
    (config.flushes, config.checkpoints) = (1, 50);
}

#[test]
fn an_acknowledgement_before_the_data_is_found() {
    find(Planted::AckBeforeData);
}

#[test]
fn an_acknowledgement_before_the_record_is_found() {
    find(Planted::AckBeforeRecord);
}

#[test]
fn closing_without_a_flush_is_found() {
    find(Planted::CloseWithoutFlush);
}

#[test]
fn a_mark_without_fua_is_found() {
    find(Planted::MarkWithoutFua);
}

#[test]
fn guards_that_go_before_the_mark_is_durable_are_found() {
    find(Planted::UnguardBeforeMark);
}

#[test]
fn an_overwrite_of_an_open_block_is_found() {
    find(Planted::OverwriteOpen);
}

#[test]
fn reuse_before_the_release_is_durable_is_found() {
    find_where(Planted::ReuseBeforeClosed, hasty);
}

#[test]
fn reuse_before_the_grace_period_is_over_is_found() {
    find_where(Planted::ReuseBeforeGrace, hasty);
}

#[test]
fn reuse_of_blocks_of_a_cluster_is_found() {
    find_where(Planted::ReuseBlocks, few_blocks);
}

#[test]
fn a_place_that_is_kept_although_it_was_let_go_is_found() {
    find_where(Planted::KeepPlaces, let_go);
}

#[test]
fn reuse_while_a_checkpoint_is_written_is_found() {
    find_where(Planted::ReuseInCheckpoint, many_checkpoints);
}

#[test]
fn a_checkpoint_that_is_begun_behind_a_change_is_found() {
    find_where(Planted::CheckpointBehindChange, late_touches);
}

#[test]
fn first_touches_that_overlap_and_are_not_told_apart_are_found() {
    find(Planted::OverlapNotResolved);
}

#[test]
fn a_late_touch_that_is_not_in_the_snapshot_is_found() {
    find(Planted::LateTouchNotInSnapshot);
}

#[test]
fn a_snapshot_that_has_not_settled_is_found() {
    find(Planted::SnapshotNotSettled);
}

#[test]
fn a_fua_write_with_a_volatile_mapping_is_found() {
    find(Planted::FuaMappingVolatile);
}

#[test]
fn a_superblock_before_its_pages_is_found() {
    find(Planted::SwitchWithoutFlush);
}

#[test]
fn reuse_of_pages_before_the_superblock_is_durable_is_found() {
    find_where(Planted::ReuseBeforeSwitch, many_flushes);
}

#[test]
fn a_checkpoint_that_drops_what_is_pending_is_found() {
    find(Planted::CheckpointDropsPending);
}

#[test]
fn a_replay_that_does_not_verify_is_found() {
    find(Planted::ReplayUnverified);
}

#[test]
fn a_recovery_without_a_flush_is_found() {
    find_where(Planted::RecoverWithoutFlush, |config| config.recoveries_one_in = 1);
}

/// Several volumes that fill the pool, some of them reserved.
fn full(config: &mut Config) {
    config.devices.truncate(1);
    for device in &mut config.devices {
        device.bytes = 3 << 20;
    }
    (config.objects, config.volume_clusters) = (5, 8);
}

#[test]
fn windows_that_others_cannot_have_are_found() {
    find_where(Planted::WindowsKept, full);
}

#[test]
fn a_refusal_while_something_is_being_released_is_found() {
    find_where(Planted::RefusedBeforeReleases, full);
}

#[test]
fn a_snapshot_that_reserves_nothing_again_is_found() {
    find_where(Planted::SharedStaysCovered, full);
}

#[test]
fn a_journal_that_goes_on_with_the_old_incarnation_is_found() {
    find(Planted::OldIncarnation);
}

/// Pools whose devices come and go all the time, on devices that lose what is not flushed.
fn restless(config: &mut Config) {
    let device = DeviceConfig { bytes: 6 << 20, ..config.devices[0].clone() };
    (config.devices, config.spares) = (vec![device.clone(); 2], vec![device; 2]);
    (config.changes_devices, config.objects, config.volume_clusters) = (true, 4, 4);
}

#[test]
fn devices_come_and_go_and_break_no_promise() {
    let sum = survive(1..=8, restless);
    assert!(sum.removals >= 10, "{sum:?}");
}

#[test]
fn a_device_that_is_used_before_a_superblock_names_it_is_found() {
    find_where(Planted::DeviceUsedUnnamed, restless);
}

#[test]
fn blocks_that_are_overwritten_while_they_are_moved_are_found() {
    find_where(Planted::MoveOwn, restless);
}

#[test]
fn a_copy_that_is_named_before_it_has_been_written_is_found() {
    find_where(Planted::MoveUnwritten, restless);
}

#[test]
fn a_copy_that_is_overwritten_before_a_checkpoint_names_it_is_found() {
    find_where(Planted::MoveUnheld, restless);
}
