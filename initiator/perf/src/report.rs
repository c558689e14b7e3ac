//! What a job has come to, as it is shown: a table for people, JSON for scripts.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use api::show_size;
use bdev::Geometry;
use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::block::{Found, Label};
use crate::checker::{BadBlock, Checked};
use crate::expect::Expected;
use crate::job::Job;
use crate::log::AckLog;
use crate::run::{Ran, Sample};
use crate::tally::{Counts, Failure, KINDS};
use crate::workload::{Kind, Pattern, Workload};

/// What a job has come to.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The job.
    pub name: String,
    /// What it ran on.
    pub target: String,
    /// What it did, for people.
    pub workload: String,
    /// With this seed it does the same again.
    pub seed: u64,
    /// The CPUs.
    pub cpus: Vec<usize>,
    /// I/Os in flight on each.
    pub depth: usize,
    /// I/Os a second that were wanted.
    pub rate: Option<u64>,
    /// How long was measured.
    pub measured_s: f64,
    /// I/Os a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// What one I/O took of a core's time, where the cores never waited.
    pub core_ns_per_io: Option<f64>,
    /// Each kind of I/O.
    pub ops: Vec<OpReport>,
    /// What was done in each second or so.
    pub series: Vec<Point>,
    /// I/Os that failed.
    pub failures: u64,
    /// The first of them.
    pub first_failure: Option<String>,
    /// I/Os that were due and never begun.
    pub owed: u64,
    /// I/Os that were given up because nothing ended any more.
    pub given_up: usize,
    /// It was ended before its time.
    pub interrupted: bool,
    /// Why the acknowledgement log could not be written.
    pub log_error: Option<String>,
    /// What was verified.
    pub verified: Option<Verified>,
    /// Nothing failed, and no block is wrong.
    pub passed: bool,
}

/// One kind of I/O. Latencies are in nanoseconds.
#[derive(Clone, Debug, Serialize)]
pub struct OpReport {
    /// Its name.
    pub op: &'static str,
    /// How many were completed while it was measured.
    pub ios: u64,
    /// Of how many, begun while it was measured, the latency is known.
    pub latencies: u64,
    /// A second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// Mean latency.
    pub mean_ns: f64,
    /// Latency that half of them did not exceed; and so on.
    pub p50_ns: u64,
    /// 90 %.
    pub p90_ns: u64,
    /// 99 %.
    pub p99_ns: u64,
    /// 99.9 %.
    pub p99_9_ns: u64,
    /// 99.99 %.
    pub p99_99_ns: u64,
    /// 99.999 %.
    pub p99_999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// What was done in a stretch of time.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// When it ends.
    pub end_s: f64,
    /// I/Os a second in it.
    pub iops: f64,
    /// Reads a second.
    pub read_iops: f64,
    /// Writes a second.
    pub write_iops: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
}

/// What was verified.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Blocks that were compared with what was written.
    pub blocks: u64,
    /// Blocks that were read, and of which nothing is known.
    pub unknown_blocks: u64,
    /// Blocks that are wrong.
    pub bad_blocks: u64,
    /// The first of them.
    pub first_bad: Option<BadReport>,
}

/// A block that is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct BadReport {
    /// Its number.
    pub lba: u64,
    /// Where it begins.
    pub byte: u64,
    /// What it should hold.
    pub expected: String,
    /// When that was written.
    pub last_written: Option<String>,
    /// What it holds.
    pub found: String,
}

/// What a report is of.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The job.
    pub name: String,
    /// What it ran on.
    pub target: String,
    /// What it did.
    pub workload: String,
    /// Its seed.
    pub seed: u64,
    /// The CPUs.
    pub cpus: Vec<usize>,
    /// I/Os in flight on each.
    pub depth: usize,
    /// I/Os a second that were wanted.
    pub rate: Option<u64>,
    /// The target does its work on our cores, so that none of them ever waits for it.
    pub never_waits: bool,
}

impl Subject {
    /// A job.
    pub fn of_job(job: &Job) -> Self {
        Self {
            name: job.name.clone(),
            target: job.address.to_string(),
            workload: describe(&job.workload),
            seed: job.seed,
            cpus: job.cpus.clone(),
            depth: job.depth,
            rate: job.rate,
            never_waits: !job.address.keeps_data(),
        }
    }
}

impl Report {
    /// Sums a run up. `log` is where it kept its acknowledgements.
    pub fn new(subject: &Subject, ran: &Ran, geometry: &Geometry, log: Option<&Path>) -> Self {
        let Subject { name, target, workload, seed, cpus, depth, rate, never_waits } =
            subject.clone();
        let seconds = ran.measured.as_secs_f64();
        let (ios, bytes) = total(&ran.tally.counts);
        let is_busy = never_waits && rate.is_none() && ios > 0;
        let core_ns = ran.measured.as_nanos() as f64 * cpus.len() as f64 / ios as f64;
        let verified = ran.checked.as_ref().map(|checked| verified(checked, geometry, log));
        let is_verified = verified.as_ref().is_none_or(|verified| verified.bad_blocks == 0);
        let is_whole = ran.tally.failures == 0 && ran.stalled == 0 && ran.log_error.is_none();
        Self {
            name,
            target,
            workload,
            seed,
            cpus,
            depth,
            rate,
            measured_s: seconds,
            iops: per_second(ios, seconds),
            bytes_per_s: per_second(bytes, seconds),
            core_ns_per_io: is_busy.then_some(core_ns),
            ops: Kind::ALL.into_iter().filter_map(|kind| op_report(kind, ran)).collect(),
            series: ran.series.iter().map(point).collect(),
            failures: ran.tally.failures,
            first_failure: ran.tally.first_failure.map(show_failure),
            owed: ran.owed,
            given_up: ran.stalled,
            interrupted: ran.is_interrupted,
            log_error: ran.log_error.as_ref().map(ToString::to_string),
            passed: is_verified && is_whole,
            verified,
        }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let cores = match self.cpus.as_slice() {
            [one] => format!("CPU {one}"),
            several => format!("CPUs {}", list(several)),
        };
        let loop_text = match self.rate {
            Some(rate) => format!("{rate} I/Os a second wanted"),
            None => "closed loop".to_owned(),
        };
        let mut lines = vec![
            format!("{}: {} on {}", self.name, self.workload, self.target),
            format!("depth {}, {cores}, {loop_text}, seed {}", self.depth, self.seed),
        ];
        if !self.ops.is_empty() {
            lines.push(String::new());
            lines.push(self.table());
            let core = self.core_ns_per_io.map(|ns| format!(", {ns:.1} ns of a core for each"));
            lines.push(format!(
                "{} IOPS, {} over {:.2} s{}",
                show_count(self.iops),
                show_rate(self.bytes_per_s),
                self.measured_s,
                core.unwrap_or_default()
            ));
        }
        lines.extend(self.remarks());
        lines.join("\n")
    }

    fn table(&self) -> String {
        let header = [
            "OP",
            "I/OS",
            "IOPS",
            "BANDWIDTH",
            "MEAN",
            "P50",
            "P90",
            "P99",
            "P99.9",
            "P99.99",
            "P99.999",
            "MAX",
        ];
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header.to_vec());
        for op in &self.ops {
            let latencies = [
                op.mean_ns as u64,
                op.p50_ns,
                op.p90_ns,
                op.p99_ns,
                op.p99_9_ns,
                op.p99_99_ns,
                op.p99_999_ns,
                op.max_ns,
            ];
            let figures = [
                op.op.to_owned(),
                op.ios.to_string(),
                show_count(op.iops),
                show_rate(op.bytes_per_s),
            ];
            table.add_row(figures.into_iter().chain(latencies.map(show_latency)));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let trimmed = |line: String| line.trim_end().trim_start_matches(' ').to_owned();
        table.lines().map(trimmed).collect::<Vec<_>>().join("\n")
    }

    /// What figures do not say.
    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.interrupted {
            remarks.push("ended before its time".to_owned());
        }
        if self.owed > 0 {
            remarks.push(format!(
                "{} I/Os were due and never begun: the target does not keep up with this rate at \
                 this depth; their waiting counts as latency",
                self.owed
            ));
        }
        if let Some(first) = &self.first_failure {
            remarks.push(format!("{} I/Os FAILED; the first: {first}", self.failures));
        }
        if self.given_up > 0 {
            remarks.push(format!("{} I/Os NEVER ENDED", self.given_up));
        }
        if let Some(error) = &self.log_error {
            remarks.push(format!("the run ENDED, because the log FAILED: {error}"));
        }
        let Some(verified) = &self.verified else { return remarks };
        let Verified { blocks, unknown_blocks, bad_blocks, .. } = verified;
        let unknown = match unknown_blocks {
            0 => String::new(),
            count => format!("; {count} read of which nothing is known"),
        };
        remarks.push(match bad_blocks {
            0 => format!("verified: {blocks} blocks are what was written{unknown}"),
            bad => format!("verification FAILED: {bad} of {blocks} blocks are wrong{unknown}"),
        });
        if let Some(BadReport { lba, byte, expected, last_written, found }) = &verified.first_bad {
            remarks.push(format!("  block {lba} (byte {byte})"));
            remarks.push(format!("    expected: {expected}"));
            let time = last_written.as_deref().unwrap_or("the log does not say when");
            remarks.push(format!("    written:  {time}"));
            remarks.push(format!("    found:    {found}"));
        }
        remarks
    }
}

/// A workload in a few words.
fn describe(workload: &Workload) -> String {
    let sizes: Vec<_> = workload.sizes.iter().map(|(bytes, weight)| (*bytes, *weight)).collect();
    let sizes = match sizes.as_slice() {
        [(bytes, _)] => show_size(u64::from(*bytes)),
        several => {
            let one = |(bytes, weight): &(u32, u32)| {
                format!("{}:{weight}", show_size(u64::from(*bytes)).replace(' ', ""))
            };
            several.iter().map(one).collect::<Vec<_>>().join(",")
        }
    };
    let pattern = match workload.pattern {
        Pattern::Sequential => "sequential".to_owned(),
        Pattern::Random => "random".to_owned(),
        Pattern::Zipf { exponent } => format!("Zipf ({exponent})"),
    };
    let kinds = match workload.read_percent {
        100 => "reads".to_owned(),
        0 => "writes".to_owned(),
        percent => format!("{percent} % reads"),
    };
    let also: [(u32, &str); 2] = [
        (workload.write_zeroes_percent, "write zeroes"),
        (workload.deallocate_percent, "deallocate"),
    ];
    let also = also.iter().filter(|(percent, _)| *percent > 0);
    let also: String =
        also.map(|(percent, what)| format!(", {percent} % of the others {what}")).collect();
    let flush = workload.flush_every.map(|every| format!(", flush every {every}"));
    let fua = if workload.fua { ", FUA" } else { "" };
    format!("{sizes} {pattern} {kinds}{also}{}{fua}", flush.unwrap_or_default())
}

fn op_report(kind: Kind, ran: &Ran) -> Option<OpReport> {
    let histogram: &Histogram<u64> = ran.tally.latencies[kind as usize].as_ref()?;
    let seconds = ran.measured.as_secs_f64();
    let (ios, bytes) = (ran.tally.counts.ios[kind as usize], ran.tally.counts.bytes[kind as usize]);
    let at = |quantile| histogram.value_at_quantile(quantile);
    Some(OpReport {
        op: kind.name(),
        ios,
        latencies: histogram.len(),
        iops: per_second(ios, seconds),
        bytes_per_s: per_second(bytes, seconds),
        mean_ns: histogram.mean(),
        p50_ns: at(0.5),
        p90_ns: at(0.9),
        p99_ns: at(0.99),
        p99_9_ns: at(0.999),
        p99_99_ns: at(0.9999),
        p99_999_ns: at(0.99999),
        max_ns: histogram.max(),
    })
}

fn point(sample: &Sample) -> Point {
    let seconds = sample.length.as_secs_f64();
    let (ios, bytes) = total(&sample.counts);
    let of = |kind: Kind| per_second(sample.counts.ios[kind as usize], seconds);
    Point {
        end_s: sample.end.as_secs_f64(),
        iops: per_second(ios, seconds),
        read_iops: of(Kind::Read),
        write_iops: of(Kind::Write),
        bytes_per_s: per_second(bytes, seconds),
    }
}

/// All I/Os, and all bytes that were moved: those that are zeroed or given up move nowhere.
pub(crate) fn total(counts: &Counts) -> (u64, u64) {
    let moved = counts.bytes[Kind::Read as usize] + counts.bytes[Kind::Write as usize];
    ((0..KINDS).map(|kind| counts.ios[kind]).sum(), moved)
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

fn verified(checked: &Checked, geometry: &Geometry, log: Option<&Path>) -> Verified {
    let first_bad = checked.first_bad.as_ref().map(|bad| bad_report(bad, geometry, log));
    Verified {
        blocks: checked.blocks,
        unknown_blocks: checked.unknown_blocks,
        bad_blocks: checked.bad_blocks,
        first_bad,
    }
}

fn bad_report(bad: &BadBlock, geometry: &Geometry, log: Option<&Path>) -> BadReport {
    let BadBlock { lba, seed, expected, found } = bad;
    let theirs = match found {
        Found::Intact(label) | Found::Damaged { label, .. } => label.generation,
        _ => 0,
    };
    // A log that cannot be read any more leaves the times out; the block is bad all the same.
    let times = log.and_then(|log| AckLog::times(log, &[expected.generation, theirs]).ok());
    let times = times.unwrap_or_else(|| vec![None; 2]);
    BadReport {
        lba: *lba,
        byte: lba * u64::from(geometry.block_bytes),
        expected: show_expected(expected),
        last_written: times[0].map(show_time),
        found: show_found(found, expected, *seed, *lba, times[1]),
    }
}

fn show_expected(expected: &Expected) -> String {
    let Expected { generation, zeroes, or_until } = expected;
    let what = if *zeroes { "zeroes, of generation" } else { "generation" };
    let or = or_until.map(|until| {
        format!(", or a later one until {until}, which was sent and not acknowledged")
    });
    format!("{what} {generation}{}", or.unwrap_or_default())
}

fn show_found(
    found: &Found,
    expected: &Expected,
    seed: u64,
    lba: u64,
    time_us: Option<u64>,
) -> String {
    let time = time_us.map(|us| format!(", written {}", show_time(us))).unwrap_or_default();
    match found {
        Found::Intact(label) if label.seed != seed => {
            let Label { seed, lba, generation } = label;
            format!("a block of another log: seed {seed}, block {lba}, generation {generation}")
        }
        Found::Intact(label) if label.lba != lba => {
            format!("block {}, generation {}{time}: misplaced", label.lba, label.generation)
        }
        Found::Intact(label) if label.generation <= expected.generation => {
            format!("generation {} of this block{time}: stale", label.generation)
        }
        Found::Intact(label) => {
            format!("generation {} of this block, which the log does not know", label.generation)
        }
        Found::Zeroes => "zeroes".to_owned(),
        Found::Torn { at, head, tail } => {
            format!("torn at byte {at}: {head} before, {tail} from there on")
        }
        Found::Damaged { label, at } => format!(
            "block {}, generation {}{time}: damaged at byte {at}",
            label.lba, label.generation
        ),
        Found::Foreign { head } => {
            let bytes: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("something that was never written, beginning with {bytes}")
        }
    }
}

fn show_failure(failure: Failure) -> String {
    let Failure { step, status } = failure;
    match step.kind {
        Kind::Flush => format!("flush: {status}"),
        kind => {
            format!("{} of {} blocks from {}: {status}", kind.name(), step.block_count, step.slba)
        }
    }
}

fn show_time(us: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_micros(us)).to_string()
}

fn list(numbers: &[usize]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A latency for people, to three digits or so.
pub(crate) fn show_latency(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => three_digits(value / 1e3, "µs"),
        1_000_000..1_000_000_000 => three_digits(value / 1e6, "ms"),
        _ => three_digits(value / 1e9, "s"),
    }
}

fn three_digits(value: f64, unit: &str) -> String {
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

/// A number of I/Os for people.
pub(crate) fn show_count(count: f64) -> String {
    match count {
        0.0..10_000.0 => format!("{count:.0}"),
        10_000.0..1e6 => format!("{:.1} k", count / 1e3),
        _ => format!("{:.2} M", count / 1e6),
    }
}

/// Bytes a second for people.
pub(crate) fn show_rate(bytes_per_s: f64) -> String {
    format!("{}/s", show_size(bytes_per_s as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_units() {
        let shown = [0, 999, 1_000, 12_345, 999_499, 1_500_000, 61_000_000_000].map(show_latency);
        let wanted = ["0 ns", "999 ns", "1.00 µs", "12.3 µs", "999 µs", "1.50 ms", "61.0 s"];
        assert_eq!(shown, wanted);
        let shown = [7.0, 9999.0, 12_345.0, 2_345_678.0].map(show_count);
        assert_eq!(shown, ["7", "9999", "12.3 k", "2.35 M"]);
    }

    #[test]
    fn what_is_found_is_told_in_words() {
        let expected = Expected { generation: 57, zeroes: false, or_until: None };
        let shown = |found: Found| show_found(&found, &expected, 7, 100, Some(0));
        let label = Label { seed: 7, lba: 100, generation: 41 };
        for (found, words) in [
            (Found::Intact(label), "generation 41 of this block, written 1970"),
            (Found::Intact(Label { lba: 99, ..label }), "block 99, generation 41"),
            (Found::Intact(Label { seed: 8, ..label }), "another log: seed 8"),
            (Found::Intact(Label { generation: 58, ..label }), "which the log does not know"),
            (Found::Damaged { label, at: 33 }, "damaged at byte 33"),
            (Found::Foreign { head: [0xAB; 16] }, "abab"),
        ] {
            let text = shown(found);
            assert!(text.contains(words), "{text}");
        }
        let expected = Expected { generation: 5, zeroes: true, or_until: Some(9) };
        let text = show_expected(&expected);
        assert!(text.contains("zeroes, of generation 5") && text.contains("until 9"), "{text}");
    }
}
