//! Lanes in simulated time, over a channel that does what the test says.

use std::fs::OpenOptions;
use std::time::Duration;

use bdev::{Bdev as _, Busy, Completion, NullBdev, RamBdev};
use dma::Arena;
use nvme_spec::status::Status;

use super::*;
use crate::checker;
use crate::expect::Expect;
use crate::log::{AckLog, Coverage, LogWriter};
use crate::workload::{Pattern, Workload};

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

/// Completes what it has at the next poll, but for times at which it does nothing.
struct Script {
    start: Instant,
    capacity: usize,
    /// In nanoseconds from the start.
    quiet: Range<u64>,
    held: VecDeque<u32>,
    submitted: Arc<Mutex<Vec<Io>>>,
}

impl Channel for Script {
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        if self.held.len() == self.capacity {
            return Err(Busy);
        }
        self.held.push_back(io.tag);
        self.submitted.lock().unwrap().push(io);
        Ok(())
    }

    fn poll(&mut self, now: Instant, done: &mut Completions) {
        let now_ns = now.saturating_duration_since(self.start).as_nanos() as u64;
        while !self.quiet.contains(&now_ns)
            && done.room() > 0
            && let Some(tag) = self.held.pop_front()
        {
            done.push(Completion { tag, status: Status::SUCCESS });
        }
    }
}

struct Bed {
    start: Instant,
    lane: Lane,
    shared: Arc<Shared>,
    submitted: Arc<Mutex<Vec<Io>>>,
}

/// What differs from lane to lane.
struct Wish {
    depth: usize,
    capacity: usize,
    quiet: Range<u64>,
    window: Window,
    pace: Pace,
    workload: Workload,
    checker: Option<Checker>,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            depth: 4,
            capacity: 1000,
            quiet: 0..0,
            window: Window { start_ns: 0, end_ns: S, bytes: u64::MAX },
            pace: Pace::Closed,
            workload: workload(100),
            checker: None,
        }
    }
}

fn workload(read_percent: u32) -> Workload {
    Workload {
        pattern: Pattern::Random,
        sizes: vec![(4096, 1)],
        read_percent,
        write_zeroes_percent: 0,
        deallocate_percent: 0,
        flush_every: None,
        fua: false,
    }
}

fn setup(wish: Wish, channel: Box<dyn Channel>) -> Setup {
    let arena = Arena::plain_pages(4 << 20).unwrap();
    let buffers = (0..wish.depth).map(|_| arena.carve(4096, 4096).unwrap()).collect();
    Setup {
        channel,
        source: Source::Load(Box::new(Generator::new(&wish.workload, 1, 0, 0..256, 4096))),
        checker: wish.checker,
        buffers,
        block_bytes: 4096,
        fua: false,
        window: wish.window,
        pace: wish.pace,
        tally: Tally::new(&Kind::ALL),
        start_us: 0,
    }
}

impl Bed {
    fn new(wish: Wish) -> Self {
        let (start, submitted) = (Instant::now(), Arc::default());
        let script = Script {
            start,
            capacity: wish.capacity,
            quiet: wish.quiet.clone(),
            held: VecDeque::new(),
            submitted: Arc::clone(&submitted),
        };
        let shared = Arc::new(Shared::default());
        let mut lane = Lane::new(setup(wish, Box::new(script)), Arc::clone(&shared));
        lane.handle_message(Order::Start(start));
        Self { start, lane, shared, submitted }
    }

    /// A turn every `step_ns` until the lane ends; what it has come to, and when that was.
    fn run(&mut self, step_ns: u64) -> (Outcome, u64) {
        let mut now_ns = 0;
        while !self.shared.has_ended.load(Ordering::Relaxed) {
            now_ns += step_ns;
            assert!(now_ns < 1000 * S, "it never ends");
            self.lane.poll(self.start + Duration::from_nanos(now_ns));
        }
        (self.shared.outcome.lock().unwrap().take().unwrap(), now_ns)
    }
}

fn open(rate: u64) -> Pace {
    Pace::Open { first_ns: 0.0, interval_ns: 1e9 / rate as f64, begun: 0 }
}

fn longer_than(outcome: &Outcome, ns: u64) -> u64 {
    outcome.tally.latencies[0].as_ref().unwrap().count_between(ns, u64::MAX)
}

#[test]
fn a_closed_loop_keeps_its_depth() {
    let mut bed = Bed::new(Wish::default());
    let (outcome, _) = bed.run(MS);
    let (ios, bytes) = (outcome.tally.counts.ios[0], outcome.tally.counts.bytes[0]);
    // A thousand turns; the first one only begins, and the last ones begin nothing.
    assert!((3980..=4000).contains(&ios) && bytes == ios * 4096, "{ios}");
    let histogram = outcome.tally.latencies[0].as_ref().unwrap();
    assert!(histogram.max() >= MS && histogram.min() < MS + MS / 500);
    assert_eq!((outcome.measured_ns, outcome.owed, outcome.stalled), (S, 0, 0));
}

/// The target does nothing for a second; a thousand I/Os were due in it, and one was in flight.
#[test]
fn at_a_fixed_rate_latency_counts_from_when_an_io_was_due() {
    let end = Window { start_ns: 0, end_ns: 4 * S, bytes: u64::MAX };
    let wish = || Wish { depth: 1, quiet: S..2 * S, window: end, ..Wish::default() };
    let (outcome, _) = Bed::new(Wish { pace: open(1000), ..wish() }).run(MS / 10);
    assert_eq!((outcome.tally.latencies[0].as_ref().unwrap().len(), outcome.owed), (4000, 0));
    let late = longer_than(&outcome, 500 * MS);
    assert!((500..700).contains(&late), "{late} waited half a second or more");
    // The closed loop sees a single one.
    let (outcome, _) = Bed::new(wish()).run(MS / 10);
    assert_eq!(longer_than(&outcome, 500 * MS), 1);
}

#[test]
fn what_was_due_and_never_begun_counts_with_the_time_it_has_waited() {
    let window = Window { start_ns: 0, end_ns: 2 * S, bytes: u64::MAX };
    let quiet = S..20 * S;
    let wish = Wish { depth: 1, pace: open(1000), quiet, window, ..Wish::default() };
    let (outcome, _) = Bed::new(wish).run(MS / 10);
    assert!((995..1000).contains(&outcome.owed), "{}", outcome.owed);
    assert_eq!(outcome.tally.latencies[0].as_ref().unwrap().len(), 2000);
    let late = longer_than(&outcome, 500 * MS);
    assert!((490..510).contains(&late), "{late}");
    assert!(longer_than(&outcome, 10 * S) == 1, "the one in flight");
}

#[test]
fn a_target_that_stops_answering_is_given_up() {
    let mut bed = Bed::new(Wish { quiet: S / 2..u64::MAX, ..Wish::default() });
    let (outcome, ended_ns) = bed.run(MS);
    assert_eq!(outcome.stalled, 4);
    let limit = STALL_LIMIT.as_nanos() as u64;
    assert!((limit..limit + S).contains(&ended_ns), "{ended_ns}");
}

#[test]
fn a_slow_rate_is_no_stall() {
    let window = Window { start_ns: 0, end_ns: 400 * S, bytes: u64::MAX };
    let pace = Pace::Open { first_ns: 0.0, interval_ns: 100e9, begun: 0 };
    let (outcome, _) = Bed::new(Wish { pace, window, ..Wish::default() }).run(S);
    assert_eq!((outcome.stalled, outcome.tally.counts.ios[0]), (0, 4));
}

#[test]
fn bytes_end_a_run_exactly_and_warming_up_is_not_counted() {
    let window = Window { start_ns: 100 * MS, end_ns: u64::MAX, bytes: 4096 * 1001 };
    let mut bed = Bed::new(Wish { window, ..Wish::default() });
    let (outcome, _) = bed.run(MS);
    let histogram = outcome.tally.latencies[0].as_ref().unwrap();
    assert_eq!(histogram.len(), 1001);
    assert!(bed.submitted.lock().unwrap().len() > 1001 + 350, "it was warmed up");
}

#[test]
fn a_channel_that_is_busy_gets_the_rest_later() {
    let wish = Wish { depth: 32, capacity: 3, ..Wish::default() };
    let (outcome, _) = Bed::new(wish).run(MS);
    let ios = outcome.tally.counts.ios[0];
    assert!((2950..=3000).contains(&ios), "{ios}");
    assert_eq!(outcome.stalled, 0);
}

#[test]
fn a_failed_io_is_counted_as_such_and_has_no_latency() {
    struct Failing(VecDeque<u32>);
    impl Channel for Failing {
        fn submit(&mut self, io: Io) -> Result<(), Busy> {
            self.0.push_back(io.tag);
            Ok(())
        }
        fn poll(&mut self, _: Instant, done: &mut Completions) {
            while let Some(tag) = self.0.pop_front() {
                done.push(Completion { tag, status: Status::LBA_OUT_OF_RANGE });
            }
        }
    }
    let mut bed = Bed::new(Wish::default());
    bed.lane.setup.channel = Box::new(Failing(VecDeque::new()));
    let (outcome, _) = bed.run(MS);
    assert!(outcome.tally.failures > 3900);
    assert_eq!(outcome.tally.counts.ios[0], 0);
    let first = outcome.tally.first_failure.unwrap();
    assert_eq!((first.step.kind, first.status), (Kind::Read, Status::LBA_OUT_OF_RANGE));
}

fn checker(log: LogWriter) -> Checker {
    Checker::new(checker::Setup {
        block_bytes: 4096,
        seed: 5,
        first_block: 0,
        blocks: vec![Expect::default(); 256],
        max_bytes: 4096,
        generations: (1, 1),
        log: Some(log),
    })
}

#[test]
fn nothing_goes_out_that_the_log_has_not_taken() {
    let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let log = LogWriter::new(Arc::new(file), "/dev/full".into(), 0, 64);
    let checker = Some(checker(log));
    let mut bed = Bed::new(Wish { workload: workload(0), checker, ..Wish::default() });
    let (outcome, _) = bed.run(MS);
    assert!(bed.submitted.lock().unwrap().is_empty());
    assert!(outcome.log_error.unwrap().to_string().contains("/dev/full"));
    assert_eq!(outcome.stalled, 0);
}

/// Notes what is submitted. Everything is in flight until the next poll.
struct Noting(Box<dyn Channel>, Arc<Mutex<Vec<Io>>>);

impl Channel for Noting {
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        self.1.lock().unwrap().push(io);
        self.0.submit(io)
    }

    fn poll(&mut self, now: Instant, done: &mut Completions) {
        self.0.poll(now, done);
    }
}

#[test]
fn with_verification_no_two_ios_on_a_block_are_in_flight_unless_both_read() {
    let folder = tempfile::tempdir().unwrap();
    let coverage = Coverage { block_bytes: 4096, first_block: 0, block_count: 256 };
    let log = AckLog::open_or_create(&folder.path().join("log"), coverage, 5).unwrap();
    let checker = Some(checker(log.writer(0, 2048)));
    let wish = Wish { depth: 64, checker, workload: workload(50), ..Wish::default() };
    let mut bed = Bed::new(wish);
    let honest = RamBdev::new("ram", 4096, 256).unwrap().open_channel(0).unwrap();
    bed.lane.setup.channel = Box::new(Noting(honest, Arc::clone(&bed.submitted)));
    let mut seen = 0;
    for turn in 1..2000 {
        bed.lane.poll(bed.start + Duration::from_nanos(turn * MS / 10));
        let mut submitted = bed.submitted.lock().unwrap();
        for (index, one) in submitted.iter().enumerate() {
            let both_read = |other: &Io| one.op == Op::Read && other.op == Op::Read;
            let others = &submitted[index + 1..];
            assert!(others.iter().all(|other| other.slba != one.slba || both_read(other)));
        }
        seen += submitted.len();
        submitted.clear();
    }
    assert!(seen > 10_000, "{seen}");
}

#[test]
fn an_io_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let coverage = Coverage { block_bytes: 4096, first_block: 0, block_count: 256 };
    let log = AckLog::open_or_create(&folder.path().join("log"), coverage, 5).unwrap();
    let null = NullBdev::new("null", 4096, 256).open_channel(0).unwrap();
    let ram = RamBdev::new("ram", 4096, 256).unwrap().open_channel(0).unwrap();
    let mixed = Workload { sizes: vec![(4096, 1)], flush_every: Some(9), ..workload(50) };
    let verified = Wish {
        checker: Some(checker(log.writer(0, 2048))),
        workload: Workload { write_zeroes_percent: 10, ..mixed.clone() },
        ..Wish::default()
    };
    let zipf = Workload { pattern: Pattern::Zipf { exponent: 1.1 }, ..mixed };
    let plain = Wish { workload: zipf, pace: open(20_000), ..Wish::default() };
    for setup in [setup(verified, ram), setup(plain, null)] {
        let start = Instant::now();
        let mut lane = Lane::new(setup, Arc::new(Shared::default()));
        lane.handle_message(Order::Start(start));
        let mut turns = |from: u64, to: u64| {
            for turn in from..to {
                lane.poll(start + Duration::from_nanos(turn * MS / 10));
            }
            lane.setup.tally.counts.ios.iter().sum::<u64>()
        };
        let before = turns(1, 100);
        let mut after = 0;
        let info = allocation_counter::measure(|| after = turns(100, 5000));
        assert!(after - before > 5000, "{before} to {after}");
        assert_eq!(info.count_total, 0, "{info:?}");
    }
}
