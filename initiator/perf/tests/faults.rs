//! Block devices that lie, and what verification says of each.
#![allow(missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bdev::{
    Bdev, BdevError, Busy, Channel, Completion, Completions, Geometry, Health, Io, Op, RamBdev,
};
use dma::{Arena, DmaSpan};
use nvme_spec::status::Status;
use perf::checker::Checked;
use perf::job::Job;
use perf::log::AckLog;
use perf::options::JobOptions;
use perf::report::{Report, Subject, Verified};
use perf::run::{Ran, Surroundings, run, verify};
use uuid::Uuid;

/// What a device does wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing.
    None,
    /// A write is acknowledged and not done.
    Drop,
    /// A write goes to blocks before those it is for.
    Misplace,
    /// Half of a write's first block is written.
    Tear,
    /// A read gives what an earlier read of the same blocks gave.
    Stale,
    /// A bit of a block that is read is wrong.
    Flip,
    /// A write leaves zeroes.
    Zero,
    /// A write fails, and has done its work.
    FailDone,
    /// A write fails, and has done nothing.
    FailUndone,
}

/// Memory that lies. A fault happens once, to the I/O of number `at` of its kind.
struct Liar {
    honest: RamBdev,
    fault: Fault,
    at: u32,
    seen: Arc<AtomicU32>,
    happened: Arc<AtomicBool>,
    arena: &'static Arena,
}

impl Liar {
    fn new(arena: &'static Arena, fault: Fault, at: u32) -> Self {
        Self {
            honest: RamBdev::new("liar", 512, BLOCKS).unwrap(),
            fault,
            at,
            seen: Arc::default(),
            happened: Arc::default(),
            arena,
        }
    }
}

const BLOCKS: u64 = 256;

impl Bdev for Liar {
    fn name(&self) -> &'static str {
        "liar"
    }
    fn kind(&self) -> &'static str {
        "ram"
    }
    fn geometry(&self) -> Geometry {
        self.honest.geometry()
    }
    fn uuid(&self) -> Uuid {
        self.honest.uuid()
    }
    fn health(&self) -> Health {
        Health::Live
    }
    fn open_channel(&self, core: usize) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(LyingChannel {
            honest: self.honest.open_channel(core)?,
            fault: self.fault,
            at: self.at,
            seen: Arc::clone(&self.seen),
            happened: Arc::clone(&self.happened),
            old: (0..BLOCKS).map(|_| None).collect(),
            memory: self.arena.carve(64 << 10, 4096).unwrap(),
            to_flip: None,
            failed: Vec::new(),
        }))
    }
}

struct LyingChannel {
    honest: Box<dyn Channel>,
    fault: Fault,
    at: u32,
    seen: Arc<AtomicU32>,
    happened: Arc<AtomicBool>,
    /// What each block was once, for stale reads.
    old: Vec<Option<Vec<u8>>>,
    memory: DmaSpan,
    /// Data in which a bit is to be wrong, once it has been read.
    to_flip: Option<DmaSpan>,
    failed: Vec<Completion>,
}

impl LyingChannel {
    /// Whether this is the I/O that goes wrong.
    fn is_it(&self, io: &Io) -> bool {
        let is_of_kind = match (self.fault, io.op) {
            (Fault::None, _) => false,
            (Fault::Stale | Fault::Flip, op) => op == Op::Read,
            (_, op) => matches!(op, Op::Write { .. }),
        };
        is_of_kind && self.seen.fetch_add(1, Ordering::Relaxed) == self.at
    }

    fn lie(&mut self, io: Io) -> Result<(), Busy> {
        self.happened.store(true, Ordering::Relaxed);
        let Io { tag, slba, block_count, buffer, .. } = io;
        let data = buffer.unwrap();
        let success = Completion { tag, status: Status::SUCCESS };
        let failure = Completion { tag, status: Status::WRITE_FAULT };
        match self.fault {
            Fault::Drop => self.failed.push(success),
            Fault::FailUndone => self.failed.push(failure),
            Fault::Misplace => {
                let slba = slba.checked_sub(2 * u64::from(block_count)).unwrap();
                return self.honest.submit(Io { slba, ..io });
            }
            Fault::Zero => {
                let op = Op::WriteZeroes { deallocate: false, fua: false };
                return self.honest.submit(Io { op, buffer: None, ..io });
            }
            Fault::Tear => {
                // What is there now, with the first half of what should be.
                let torn = self.memory.subspan(0, data.len());
                self.read_now(slba, block_count, torn);
                torn.copy_from(data, 256);
                return self.honest.submit(Io { buffer: Some(torn), ..io });
            }
            Fault::FailDone => {
                self.honest.submit(io)?;
                let mut done = Completions::with_capacity(1024);
                self.honest.poll(Instant::now(), &mut done);
                let others = std::iter::from_fn(|| done.pop()).filter(|one| one.tag != tag);
                self.failed.extend(others);
                self.failed.push(failure);
            }
            Fault::Flip => {
                self.to_flip = buffer;
                return self.honest.submit(io);
            }
            Fault::Stale => {
                // The first read of blocks that were read before as something else.
                let old = self.old[slba as usize].take().unwrap();
                data.write(0, &old);
                self.failed.push(success);
            }
            Fault::None => {}
        }
        Ok(())
    }

    /// Reads past what is going on; the completion is ours.
    fn read_now(&mut self, slba: u64, block_count: u32, to: DmaSpan) {
        let mut done = Completions::with_capacity(1024);
        self.honest.poll(Instant::now(), &mut done);
        self.failed.extend(std::iter::from_fn(|| done.pop()));
        let io = Io { tag: u32::MAX, op: Op::Read, slba, block_count, buffer: Some(to) };
        self.honest.submit(io).unwrap();
        self.honest.poll(Instant::now(), &mut done);
        assert_eq!(done.pop().unwrap().tag, u32::MAX);
    }

    fn note_old(&mut self, io: &Io) {
        if self.fault == Fault::Stale && matches!(io.op, Op::Write { .. }) {
            let bytes = io.block_count * 512;
            let span = self.memory.subspan(0, bytes);
            self.read_now(io.slba, io.block_count, span);
            let mut old = vec![0; bytes as usize];
            span.read(0, &mut old);
            // What a block was before its first write is nothing that verification knows.
            if old.iter().any(|&byte| byte != 0) {
                self.old[io.slba as usize] = Some(old);
            }
        }
    }
}

impl Channel for LyingChannel {
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        self.note_old(&io);
        let is_possible = self.fault != Fault::Stale
            || self.old[io.slba as usize].is_some() && !self.happened.load(Ordering::Relaxed);
        if is_possible && self.is_it(&io) { self.lie(io) } else { self.honest.submit(io) }
    }

    fn poll(&mut self, now: Instant, done: &mut Completions) {
        while done.room() > 0
            && let Some(completion) = self.failed.pop()
        {
            done.push(completion);
        }
        self.honest.poll(now, done);
        if let Some(span) = self.to_flip.take() {
            let byte: u8 = span.read_obj(100);
            span.write_obj(100, &(byte ^ 1));
        }
    }
}

/// Four blocks an I/O, in a sequence that writes every block again and again and reads some.
fn job(log: &Path, bytes: u64) -> Job {
    let options = JobOptions {
        target: Some("ram:128k".to_owned()),
        read: Some(30),
        block_size: Some("2k".parse().unwrap()),
        logical_block: Some("512".parse().unwrap()),
        bytes: Some(perf::text::Bytes(bytes)),
        depth: Some(4),
        seed: Some(11),
        verify: Some(log.to_owned()),
        ..JobOptions::default()
    };
    Job::new(&options).unwrap()
}

struct Bed {
    folder: tempfile::TempDir,
    arena: &'static Arena,
    device: Liar,
}

impl Bed {
    fn new(fault: Fault, at: u32) -> Self {
        let arena = Arena::plain_pages(64 << 20).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self { folder, arena, device: Liar::new(arena, fault, at) }
    }

    fn job(&self, bytes: u64) -> Job {
        job(&self.folder.path().join("log"), bytes)
    }

    fn run(&self, job: &Job) -> Ran {
        let stop = AtomicBool::new(false);
        let (poll, progress) = (&mut |_: Instant| {}, &mut |_: &perf::run::Progress| {});
        let mut around = Surroundings { arena: self.arena, stop: &stop, poll, progress };
        run(job, &self.device, &mut around).unwrap()
    }

    fn verify(&self, job: &Job) -> Checked {
        let log = AckLog::open(job.verify.as_ref().unwrap()).unwrap();
        let stop = AtomicBool::new(false);
        let (poll, progress) = (&mut |_: Instant| {}, &mut |_: &perf::run::Progress| {});
        let mut around = Surroundings { arena: self.arena, stop: &stop, poll, progress };
        let ran = verify(log, &self.device, &job.cpus, (4, 8192), &mut around).unwrap();
        ran.checked.unwrap()
    }

    fn report(&self, job: &Job, ran: &Ran) -> Report {
        let geometry = self.device.geometry();
        Report::new(&Subject::of_job(job), ran, &geometry, job.verify.as_deref())
    }
}

/// What is said of the first bad block of a device with this fault.
fn caught(fault: Fault, at: u32) -> Verified {
    let bed = Bed::new(fault, at);
    let job = bed.job(1 << 20);
    let ran = bed.run(&job);
    assert!(bed.device.happened.load(Ordering::Relaxed), "{fault:?} did not happen");
    let report = bed.report(&job, &ran);
    assert!(!report.passed, "{fault:?}: {}", report.to_text());
    let text = report.to_text();
    assert!(text.contains("verification FAILED") && text.contains("expected:"), "{text}");
    report.verified.unwrap()
}

#[test]
fn an_honest_device_is_verified_and_stays_so_over_several_runs() {
    let bed = Bed::new(Fault::None, 0);
    let available: Vec<usize> = bed.job(1).cpus;
    let both = JobOptions { cores: Some(2), target: Some("ram:1M".into()), ..Default::default() };
    // Parts of other sizes in the second run, where there is more than one CPU.
    let several = Job::new(&both).map_or(available.clone(), |job| job.cpus);
    for (seed, cpus) in (0..).zip([available.clone(), several, available]) {
        let job = Job { seed, cpus, ..bed.job(1 << 20) };
        let report = bed.report(&job, &bed.run(&job));
        assert!(report.passed, "{}", report.to_text());
        let verified = report.verified.unwrap();
        assert!(verified.blocks > 256 && verified.bad_blocks == 0);
        let checked = bed.verify(&job);
        assert_eq!((checked.bad_blocks, checked.unknown_blocks), (0, 0));
    }
}

#[test]
fn a_dropped_write_is_named_as_the_older_one_that_is_still_there() {
    let found = caught(Fault::Drop, 362).first_bad.unwrap();
    assert!(found.found.contains("stale") && found.found.contains("written 20"), "{found:?}");
    assert!(found.last_written.unwrap().starts_with("20"));
}

#[test]
fn a_dropped_first_write_is_named_as_zeroes() {
    let found = caught(Fault::Drop, 0).first_bad.unwrap();
    assert_eq!(found.found, "zeroes");
}

#[test]
fn a_misplaced_write_is_named_with_the_block_it_belongs_to() {
    let found = caught(Fault::Misplace, 362).first_bad.unwrap();
    let belongs = format!("block {}, generation ", found.lba + 8);
    assert!(found.found.starts_with(&belongs), "{found:?}");
    assert!(found.found.ends_with("misplaced"), "{found:?}");
}

#[test]
fn a_torn_block_is_named_with_both_parts() {
    let found = caught(Fault::Tear, 362).first_bad.unwrap();
    let Some(rest) = found.found.strip_prefix("torn at byte 256: generation ") else {
        panic!("{found:?}")
    };
    assert!(rest.contains("before, generation"), "{found:?}");
}

#[test]
fn a_stale_read_is_named() {
    let found = caught(Fault::Stale, 0).first_bad.unwrap();
    assert!(found.found.contains("stale"), "{found:?}");
}

#[test]
fn a_wrong_bit_is_named_with_its_byte() {
    let found = caught(Fault::Flip, 50).first_bad.unwrap();
    assert!(found.found.contains("damaged at byte 100"), "{found:?}");
}

#[test]
fn a_write_that_became_zeroes_is_named() {
    let found = caught(Fault::Zero, 362).first_bad.unwrap();
    assert_eq!(found.found, "zeroes");
}

#[test]
fn what_a_failed_write_leaves_may_be_either_and_is_still_a_failure() {
    for fault in [Fault::FailDone, Fault::FailUndone] {
        let bed = Bed::new(fault, 300);
        let job = bed.job(1 << 20);
        let report = bed.report(&job, &bed.run(&job));
        assert!(!report.passed && report.failures == 1, "{}", report.to_text());
        assert!(report.first_failure.unwrap().contains("write of 4 blocks"));
        assert_eq!(report.verified.unwrap().bad_blocks, 0);
        assert_eq!(bed.verify(&job).bad_blocks, 0, "nor after a restart");
    }
}

/// A process that is killed leaves a log that ends anywhere; the device may have done more than the
/// log knows to be acknowledged, and never more than it knows to be sent.
#[test]
fn wherever_the_log_ends_what_was_in_flight_may_be_either() {
    let bed = Bed::new(Fault::None, 0);
    let job = Job { workload: writes(&bed), ..bed.job(1 << 20) };
    bed.run(&job);
    let path = job.verify.as_ref().unwrap();
    let whole = std::fs::read(path).unwrap();
    // Records of 40 bytes behind a header of 64; the last ones are acknowledgements.
    let is_ack = |record: &[u8]| record[0] == 2;
    let trailing = whole[64..].chunks(40).rev().take_while(|record| is_ack(record)).count();
    assert!(trailing > 0);
    for cut in 0..=trailing {
        std::fs::write(path, &whole[..whole.len() - cut * 40]).unwrap();
        assert_eq!(bed.verify(&job).bad_blocks, 0, "{cut} acknowledgements are missing");
    }
    // Without the record that the last writes were sent, they are more than the log allows.
    let sent = whole[64..].chunks(40).rev().skip(trailing).take_while(|one| !is_ack(one)).count();
    std::fs::write(path, &whole[..whole.len() - (trailing + sent) * 40]).unwrap();
    let checked = bed.verify(&job);
    assert!(checked.bad_blocks > 0, "{checked:?}");
}

fn writes(bed: &Bed) -> perf::workload::Workload {
    perf::workload::Workload { read_percent: 0, ..bed.job(1).workload }
}

#[test]
fn zeroes_that_were_written_are_verified_as_such() {
    let bed = Bed::new(Fault::None, 0);
    let mut job = bed.job(1 << 20);
    (job.workload.write_zeroes_percent, job.workload.deallocate_percent) = (30, 30);
    let report = bed.report(&job, &bed.run(&job));
    assert!(report.passed, "{}", report.to_text());
    assert_eq!(bed.verify(&job).bad_blocks, 0);
}

#[test]
fn a_bad_block_ends_the_run_and_stays_as_it_was_found() {
    let bed = Bed::new(Fault::Flip, 50);
    let job = Job { bytes: None, runtime: Some(Duration::from_secs(3600)), ..bed.job(1) };
    let report = bed.report(&job, &bed.run(&job));
    assert_eq!(report.verified.unwrap().bad_blocks, 1);
    assert_eq!(bed.verify(&job).bad_blocks, 0, "it was the read that was wrong");
}

#[test]
fn a_log_of_other_blocks_is_refused() {
    let bed = Bed::new(Fault::None, 0);
    let job = bed.job(64 << 10);
    bed.run(&job);
    let stop = AtomicBool::new(false);
    let (poll, progress) = (&mut |_: Instant| {}, &mut |_: &perf::run::Progress| {});
    let mut around = Surroundings { arena: bed.arena, stop: &stop, poll, progress };
    let other = Job { size: Some(64 << 10), ..job };
    let error = run(&other, &bed.device, &mut around).unwrap_err().to_string();
    assert!(error.contains("256 blocks of 512 bytes"), "{error}");
}
