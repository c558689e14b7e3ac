//! `forebay-perf`: puts load on a block device, measures it, and verifies what it holds.
//!
//! `options` says what can be typed, `job` checks it, `run` does it, `report` shows what came of
//! it: a table for people, with `--json` one object for scripts. Progress goes to standard error.
//!
//! Every job of a file is checked before the first one runs. Exit codes: 0 success; 1 an I/O
//! failed, or a block is not what was written; 2 nothing was run.
//!
//! It runs until its jobs are done: there is no daemon, and nothing is kept but what a job was told
//! to write.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use clap::{CommandFactory as _, Parser as _};
use perf::address::Address;
use perf::error::PerfError;
use perf::job::{self, Job};
use perf::limits::MAX_IO_BYTES;
use perf::log::AckLog;
use perf::options::{Arguments, Command, RunArguments, VerifyArguments};
use perf::plot;
use perf::progress::Display;
use perf::report::{Report, Subject};
use perf::run::{self, Ran, Surroundings};
use perf::target::{self, Target, Use};
use serde_json::json;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // What the driver says of an SSD is not part of the output.
    tracing_subscriber::fmt()
        .with_env_filter("vfio_ioctls=off,warn")
        .with_writer(io::stderr)
        .init();
    let mut out = io::stdout().lock();
    let result = execute(&arguments, &mut out).and_then(|passed| {
        out.flush()?;
        Ok(passed)
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // Whoever read the output has enough.
        Err(PerfError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let report = if arguments.json { error.report_json() } else { error.report() };
            let _ = writeln!(io::stderr(), "{report}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Whether everything that was run has passed.
fn execute(arguments: &Arguments, out: &mut impl Write) -> Result<bool, PerfError> {
    match &arguments.command {
        Command::Run(run) => run_jobs(run, arguments.json, out),
        Command::Verify(verify) => run_verify(verify, arguments.json, out),
        Command::Completions { shell } => {
            // Into memory first: the generator panics when a write fails, as under `| head`.
            let mut text = Vec::new();
            let mut command = Arguments::command();
            clap_complete::generate(*shell, &mut command, "forebay-perf", &mut text);
            out.write_all(&text)?;
            Ok(true)
        }
        Command::Man => {
            clap_mangen::Man::new(Arguments::command()).render(out)?;
            Ok(true)
        }
    }
}

fn run_jobs(arguments: &RunArguments, json: bool, out: &mut impl Write) -> Result<bool, PerfError> {
    let jobs: Vec<Job> = arguments.jobs()?.iter().map(Job::new).collect::<Result<_, _>>()?;
    let uses: Vec<Use> = jobs.iter().map(how).collect();
    let needs = jobs.iter().zip(&uses).map(|(job, how)| {
        let data = run::data_bytes(job.cpus.len(), job.depth, job.workload.max_bytes());
        (&job.address, how, data)
    });
    let arena = target::arena(needs)?;
    let stop = stop_flag()?;
    let mut reports = Vec::new();
    for (number, (job, how)) in jobs.iter().zip(&uses).enumerate() {
        let mut target = Target::open(&job.address, how, arena)?;
        let bdev = Arc::clone(target.bdev());
        let geometry = bdev.geometry();
        let ran = shown(&job.name, |progress| {
            let poll = &mut |now: Instant| target.poll(now);
            let mut around = Surroundings { arena, stop: &stop, poll, progress };
            run::run(job, bdev.as_ref(), &mut around)
        });
        drop(bdev);
        let closed = target.close();
        let (ran, ()) = (ran?, closed?);
        let report = Report::new(&Subject::of_job(job), &ran, &geometry, job.verify.as_deref());
        if let Some(path) = &job.plot {
            plot::draw(path, &report, &ran)?;
        }
        if !json {
            let gap = if number > 0 { "\n" } else { "" };
            writeln!(out, "{gap}{}", report.to_text())?;
            out.flush()?;
        }
        reports.push(report);
        if ran.is_interrupted {
            break;
        }
    }
    finish(&reports, json, out)
}

fn run_verify(
    arguments: &VerifyArguments,
    json: bool,
    out: &mut impl Write,
) -> Result<bool, PerfError> {
    let wrong = |option: &'static str, reason: String| PerfError::Option {
        job: "verify".to_owned(),
        option,
        reason,
    };
    let address: Address = arguments.target.parse().map_err(|reason| wrong("target", reason))?;
    let cpus = job::cpus(arguments.cores, arguments.cpus.as_ref())
        .map_err(|(option, reason)| wrong(option, reason))?;
    job::check_depth(arguments.depth).map_err(|reason| wrong("--depth", reason))?;
    let log = AckLog::open(&arguments.log)?;
    let block = log.coverage.block_bytes;
    let max_bytes = arguments.block_size.0;
    if max_bytes > MAX_IO_BYTES || !max_bytes.is_multiple_of(u64::from(block)) {
        let reason = format!("a multiple of {block} bytes, at most {MAX_IO_BYTES}, is possible");
        return Err(wrong("--block-size", reason));
    }
    let max_bytes = max_bytes as u32;
    if !log.blocks.iter().any(|block| block.is_known()) {
        return Err(PerfError::NothingWritten { path: arguments.log.clone() });
    }
    let depth = arguments.depth;
    let how = Use {
        logical_block: block,
        cores: cpus.len(),
        depth,
        force: arguments.force,
        host_nqn: arguments.host_nqn.clone(),
        header_digest: arguments.hdr_digest,
        data_digest: arguments.data_digest,
    };
    let data = run::data_bytes(cpus.len(), depth, max_bytes);
    let arena = target::arena(std::iter::once((&address, &how, data)))?;
    let stop = stop_flag()?;
    let subject = Subject {
        name: "verify".to_owned(),
        target: address.to_string(),
        workload: format!("all that {} knows of", arguments.log.display()),
        seed: log.seed,
        cpus: cpus.clone(),
        depth,
        rate: None,
        never_waits: !address.keeps_data(),
    };
    let mut target = Target::open(&address, &how, arena)?;
    let bdev = Arc::clone(target.bdev());
    let geometry = bdev.geometry();
    let ran = shown("verify", |progress| {
        let poll = &mut |now: Instant| target.poll(now);
        let mut around = Surroundings { arena, stop: &stop, poll, progress };
        run::verify(log, bdev.as_ref(), &cpus, (depth, max_bytes), &mut around)
    });
    drop(bdev);
    let closed = target.close();
    let (ran, ()) = (ran?, closed?);
    let report = Report::new(&subject, &ran, &geometry, Some(&arguments.log));
    if !json {
        writeln!(out, "{}", report.to_text())?;
    }
    // What was not read is not verified.
    let is_whole = !ran.is_interrupted;
    Ok(finish(&[report], json, out)? && is_whole)
}

/// Runs something with a display of its progress.
fn shown(
    name: &str,
    run: impl FnOnce(&mut dyn FnMut(&run::Progress)) -> Result<Ran, PerfError>,
) -> Result<Ran, PerfError> {
    let mut display = Display::new(name);
    let ran = run(&mut |progress| display.show(progress));
    display.end();
    ran
}

fn how(job: &Job) -> Use {
    Use {
        logical_block: job.logical_block,
        cores: job.cpus.len(),
        depth: job.depth,
        force: job.force,
        host_nqn: job.host_nqn.clone(),
        header_digest: job.header_digest,
        data_digest: job.data_digest,
    }
}

/// Set by the first signal that asks for the end; the second one ends the process at once.
fn stop_flag() -> Result<Arc<AtomicBool>, PerfError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

fn finish(reports: &[Report], json: bool, out: &mut impl Write) -> Result<bool, PerfError> {
    let passed = reports.iter().all(|report| report.passed);
    if json {
        let object = json!({ "passed": passed, "jobs": reports });
        let text = serde_json::to_string_pretty(&object).map_err(io::Error::other)?;
        writeln!(out, "{text}")?;
    }
    Ok(passed)
}
