//! Runs seeds: `cargo xtask sim`. Ends at the first failure and says how to see it again.
#![forbid(unsafe_code)]

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use sim::{Config, Failure, Statistics, run};
use volume::Planted;

/// Attacks pools at the steps of seeded runs.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// I/Os and calls of each run.
    #[arg(long)]
    operations: Option<u64>,
    /// Attack at one step in so many; 1 is every step.
    #[arg(long)]
    one_in: Option<u64>,
    /// A bug to plant; only in builds with debug assertions.
    #[arg(long, value_parser = planted)]
    planted: Option<Planted>,
    /// What happens, to standard error: `debug`, or `trace` for what the devices see.
    #[arg(long)]
    log: Option<tracing::Level>,
    /// Seeds that run at a time; by default as many as there are cores.
    #[arg(long)]
    jobs: Option<usize>,
}

fn planted(name: &str) -> Result<Planted, String> {
    let found = Planted::ALL.iter().find(|bug| format!("{bug:?}") == name);
    found.copied().ok_or_else(|| format!("one of {:?}", Planted::ALL))
}

impl Arguments {
    fn config(&self, seed: u64) -> Config {
        let mut config = Config::from_seed(seed);
        config.operations = self.operations.unwrap_or(config.operations);
        config.one_in = self.one_in.unwrap_or(config.one_in);
        config.planted = self.planted;
        config
    }
}

/// What all threads know.
struct Progress {
    next: AtomicU64,
    stop: AtomicBool,
    done: Mutex<(Statistics, Vec<(u64, Failure)>)>,
    bar: ProgressBar,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(level) = arguments.log {
        let subscriber = tracing_subscriber::fmt().without_time().with_max_level(level);
        subscriber.with_writer(std::io::stderr).init();
    }
    let begun = Instant::now();
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(arguments.seeds),
        false => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} seeds {msg} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(500));
    let progress = Progress {
        next: AtomicU64::new(arguments.first),
        stop: AtomicBool::new(false),
        done: Mutex::new((Statistics::default(), Vec::new())),
        bar,
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.unwrap_or(cores).max(1) {
            scope.spawn(|| run_seeds(&arguments, &progress));
        }
    });
    progress.bar.finish_and_clear();
    let (sum, failures) = progress.done.into_inner().unwrap_or_default();
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} ends survived, {} lives after one, {} I/Os, {} without space, {} calls, {} refused, \
         {} devices removed; \
         {seconds:.1} s, {:.0} ends/s",
        sum.points,
        sum.lives,
        sum.ios,
        sum.full,
        sum.calls,
        sum.refused,
        sum.removals,
        sum.points as f64 / seconds
    );
    for (seed, failure) in &failures {
        println!("seed {seed}: {failure}");
        println!("again: {}", command(&arguments, *seed));
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_seeds(arguments: &Arguments, progress: &Progress) {
    let end = arguments.first.saturating_add(arguments.seeds);
    while !progress.stop.load(Ordering::Relaxed) {
        let seed = progress.next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            break;
        }
        let config = arguments.config(seed);
        tracing::info!(seed, ?config, "begins");
        let outcome = run(seed, &config);
        let Ok(mut done) = progress.done.lock() else { break };
        match outcome {
            Ok(summary) => done.0.add(&summary.statistics),
            Err(failure) => {
                done.1.push((seed, failure));
                progress.stop.store(true, Ordering::Relaxed);
            }
        }
        progress.bar.inc(1);
        progress.bar.set_message(format!("{} ends", done.0.points));
    }
}

/// The command that runs one of these seeds alone.
fn command(arguments: &Arguments, seed: u64) -> String {
    let mut command = match arguments.planted {
        None => "cargo xtask sim".to_owned(),
        Some(bug) => format!("cargo run -p sim -- --planted {bug:?}"),
    };
    command += &format!(" --first {seed} --seeds 1");
    if let Some(operations) = arguments.operations {
        command += &format!(" --operations {operations}");
    }
    if let Some(one_in) = arguments.one_in {
        command += &format!(" --one-in {one_in}");
    }
    command
}
