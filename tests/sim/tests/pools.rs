//! Pools survive ten thousand ends; and each bug that is planted in one is found.

use sim::{Config, DeviceConfig, Statistics, run};
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
    assert!(sum.full > 0 && sum.lives > 0 && sum.calls > 0 && sum.refused > 0, "{sum:?}");
    assert!(sum.removals > 0, "{sum:?}");
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

/// Small, and on devices that need no flush: what is let go is closed at once and soon used again.
fn hasty(config: &mut Config) {
    config.devices.truncate(1);
    for device in &mut config.devices {
        (device.bytes, device.volatile_write_cache) = (2 << 20, false);
    }
    (config.lanes, config.objects, config.volume_clusters, config.clears) = (3, 4, 4, 6);
}

/// The journal goes once around while a flush is on its way: records of clears need no other one.
fn long_flushes(config: &mut Config) {
    config.devices.truncate(1);
    for device in &mut config.devices {
        (device.bytes, device.block_bytes) = (8 << 20, 4096);
        (device.volatile_write_cache, device.slow_flushes) = (true, 6);
    }
    (config.flushes, config.clears, config.operations, config.one_in) = (0, 13, 1000, 32);
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
#[ignore = "takes minutes: `cargo nextest run -p sim --run-ignored only`"]
fn reuse_of_blocks_of_a_cluster_is_found() {
    find(Planted::ReuseBlocks);
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
    find_where(Planted::ReuseBeforeSwitch, long_flushes);
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
    let mut sum = Statistics::default();
    for seed in 1..=8 {
        let mut config = Config::from_seed(seed);
        restless(&mut config);
        match run(seed, &config) {
            Ok(summary) => sum.add(&summary.statistics),
            Err(failure) => panic!("seed {seed}: {failure}"),
        }
    }
    println!("{sum:?}");
    assert!(sum.removals >= 10, "{sum:?}");
}

#[test]
fn a_device_that_is_used_before_a_superblock_names_it_is_found() {
    // The checkpoint that names it takes long.
    find_where(Planted::DeviceUsedUnnamed, |config| {
        restless(config);
        for device in config.devices.iter_mut().chain(&mut config.spares) {
            (device.slow_flushes, device.volatile_write_cache) = (6, true);
        }
    });
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
