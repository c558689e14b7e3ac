//! An SSD through our own driver, which is looked after while it runs.
#![allow(missing_docs)]

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bdev::{Bdev as _, NvmeBdev};
use dma::Arena;
use emulated_nvme::{EmulatedNvme, Setup};
use nvme::{Config, Health, NvmeDevice};
use perf::job::Job;
use perf::options::JobOptions;
use perf::report::{Report, Subject};
use perf::run::{Surroundings, run};

#[test]
fn a_reset_under_load_loses_nothing_that_was_acknowledged() {
    let arena = Arena::plain_pages(64 << 20).unwrap();
    let ssd = Arc::new(EmulatedNvme::new(arena, Setup::default()));
    let device = NvmeDevice::bring_up(ssd, arena, Config::default()).unwrap();
    let bdev = NvmeBdev::new("ssd", &device, 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = JobOptions {
        target: Some("ram:1M".to_owned()),
        read: Some(50),
        runtime: Some("1500ms".parse().unwrap()),
        size: Some("4M".parse().unwrap()),
        verify: Some(folder.path().join("log")),
        ..JobOptions::default()
    };
    let job = Job::new(&options).unwrap();
    let stop = AtomicBool::new(false);
    let device = RefCell::new(device);
    let start = Instant::now();
    let mut resets = 0;
    let poll = &mut |now: Instant| {
        let mut device = device.borrow_mut();
        device.poll(now);
        let is_due = now.saturating_duration_since(start) > Duration::from_millis(500);
        if is_due && resets == 0 && device.health() == Health::Live {
            device.reset(now);
            resets += 1;
        }
    };
    let progress = &mut |_: &perf::run::Progress| {};
    let mut around = Surroundings { arena, stop: &stop, poll, progress };
    let ran = run(&job, &bdev, &mut around).unwrap();
    let report = Report::new(&Subject::of_job(&job), &ran, &bdev.geometry(), None);
    assert_eq!(resets, 1);
    let verified = report.verified.as_ref().unwrap();
    assert!(verified.bad_blocks == 0 && verified.blocks > 1000, "{}", report.to_text());
    // What the reset met in flight, if anything, has failed, and is not forgotten.
    assert_eq!(report.passed, report.failures == 0, "{}", report.to_text());
    drop(bdev);
    device.into_inner().close();
}
