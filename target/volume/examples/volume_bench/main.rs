//! What volumes cost, beside the bare block device and beside themselves.
//!
//! ```text
//! cargo xtask bench [--quick]
//! cargo run --release -p volume --example volume_bench -- --only mapped,first
//! ```
//!
//! One core, one lane, polled from here. What is compared runs in turns, several times; the figure
//! is the median of the turns' ratios. Where nothing is waited for, time is that of the core that
//! the process had. Devices are in memory; the slow one ends each I/O 80 µs after it was submitted.
//! What needs more space than there is memory runs on a device that keeps only metadata.
//!
//! It does not measure the protocol above volumes, several cores, or an SSD.
#![forbid(unsafe_code)]

mod devices;
mod gap;
mod large;
mod load;
mod report;
mod rig;
mod small;

use bdev::Op;
use clap::{Parser, ValueEnum};

use crate::report::Report;
use crate::rig::Rig;
use crate::small::First;

const WRITE: Op = Op::Write { fua: false };

/// Measures volumes.
#[derive(Parser)]
struct Arguments {
    /// Small sizes: whether it runs, rather than how fast.
    #[arg(long)]
    quick: bool,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only devices of this kind, in the parts that compare with a bare device or with overwrites.
    #[arg(long, value_enum)]
    device: Option<Device>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Memory, snapshot, clone and opening of a large volume. First, while the process has nothing.
    Large,
    /// Reads and overwrites, beside the bare device.
    Mapped,
    /// First writes after a snapshot, beside overwrites.
    First,
    /// Writes into a fresh volume, beside overwrites.
    Fresh,
    /// Bytes to the devices for each write.
    Bytes,
    /// The longest gap when a snapshot is taken.
    Gap,
    /// Reads of a volume with many snapshots.
    Snapshots,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Device {
    /// Memory.
    Ram,
    /// Ends each I/O after 80 µs.
    Slow,
}

/// Sizes of everything.
struct Scale {
    /// Only these devices, where there are two kinds.
    device: Option<Device>,
    rounds: u32,
    volume_bytes: u64,
    /// I/Os of a run in memory.
    ios: usize,
    bytes_volume: u64,
    bytes_writes: usize,
    large_bytes: u64,
    clones: u32,
    snapshots: u32,
    gap_bytes: u64,
    gap_rounds: u32,
}

const FULL: Scale = Scale {
    device: None,
    rounds: 7,
    volume_bytes: 1 << 30,
    ios: 1 << 18,
    bytes_volume: 64 << 30,
    bytes_writes: 1_000_000,
    large_bytes: 1 << 40,
    clones: 1000,
    snapshots: 1000,
    gap_bytes: 64 << 30,
    gap_rounds: 31,
};

const QUICK: Scale = Scale {
    device: None,
    rounds: 1,
    volume_bytes: 64 << 20,
    ios: 1 << 14,
    bytes_volume: 256 << 20,
    bytes_writes: 4096,
    large_bytes: 1 << 30,
    clones: 8,
    snapshots: 8,
    gap_bytes: 64 << 20,
    gap_rounds: 1,
};

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let scale = if arguments.quick { QUICK } else { FULL };
    let scale = Scale { device: arguments.device, ..scale };
    let mut rig = Rig::new()?;
    let mut report = Report { quick: arguments.quick, ..Report::default() };
    for part in Part::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(part) {
            continue;
        }
        match part {
            Part::Mapped => small::mapped(&mut rig, &scale, &mut report)?,
            Part::First => small::first(&mut rig, &scale, First::AfterSnapshot, &mut report)?,
            Part::Fresh => small::first(&mut rig, &scale, First::Fresh, &mut report)?,
            Part::Bytes => large::bytes_written(&mut rig, &scale, &mut report)?,
            Part::Large => large::large(&mut rig, &scale, &mut report)?,
            Part::Gap => gap::gap(&mut rig, &scale, &mut report)?,
            Part::Snapshots => large::many_snapshots(&mut rig, &scale, &mut report)?,
        }
    }
    match arguments.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => println!("{}", report.table()),
    }
    Ok(())
}
