//! A volume of 1 GiB beside the bare device, and first touches beside overwrites: in turns, so that
//! what the machine does beside it meets both.

use std::sync::Arc;
use std::time::Duration;

use bdev::{Bdev, Op};

use crate::devices::{Slow, ram};
use crate::load::{BLOCK, Bare, Load, Run, run};
use crate::report::{Aim, Report, median};
use crate::rig::{Pool, Rig};
use crate::{Device, Scale, WRITE};

/// A kind of device.
#[derive(Clone, Copy)]
pub struct Kind {
    name: &'static str,
    time: Option<Duration>,
}

pub const KINDS: [Kind; 2] = [
    Kind { name: "RAM", time: None },
    Kind { name: "80 µs", time: Some(Duration::from_micros(80)) },
];

impl Kind {
    fn device(self, name: &str, bytes: u64, rig: &Rig) -> anyhow::Result<Arc<dyn Bdev>> {
        let below = ram(name, bytes, rig.data)?;
        Ok(match self.time {
            None => below,
            Some(time) => Arc::new(Slow::new(below, time)),
        })
    }

    fn is_wanted(self, scale: &Scale) -> bool {
        let own = if self.time.is_some() { Device::Slow } else { Device::Ram };
        scale.device.is_none_or(|device| device == own)
    }

    /// Where nothing is waited for, what others do on the machine is left out.
    fn rate(self) -> fn(&Run) -> f64 {
        if self.time.is_some() { Run::iops } else { Run::busy_iops }
    }

    /// As above.
    fn time_of_one(self) -> fn(&Run) -> f64 {
        if self.time.is_some() { Run::mean_ns } else { Run::busy_ns }
    }

    /// I/Os of a run at this depth.
    fn ios(self, scale: &Scale, depth: u32) -> usize {
        match (self.time, depth) {
            (None, _) => scale.ios,
            (Some(_), 1) => scale.ios / 64,
            (Some(_), _) => scale.ios / 4,
        }
    }
}

/// What was measured in turns, of one thing and of what it is held against.
#[derive(Default)]
struct Pair {
    ours: Vec<Run>,
    other: Vec<Run>,
}

impl Pair {
    /// Median of the ratios of each turn, and the medians that they are of.
    fn ratio(&self, of: fn(&Run) -> f64) -> (f64, f64, f64) {
        let both = self.ours.iter().zip(&self.other);
        let ratio = median(both.map(|(ours, other)| of(ours) / of(other)).collect());
        let median_of = |runs: &[Run]| median(runs.iter().map(of).collect());
        (ratio, median_of(&self.ours), median_of(&self.other))
    }

    fn add_iops(&self, report: &mut Report, what: &str, kind: Kind, least: f64) {
        let (ratio, ours, other) = self.ratio(kind.rate());
        let of = format!("{:.0} k/s of {:.0} k/s", ours / 1e3, other / 1e3);
        report.add(&format!("{what}, QD32 IOPS"), ratio, "", Aim::AtLeast(least), of);
    }

    fn add_time(&self, report: &mut Report, what: &str, of: fn(&Run) -> f64, most: Aim) {
        let (ratio, ours, other) = self.ratio(of);
        let of = format!("{ours:.0} ns of {other:.0} ns");
        report.add(what, ratio, "", most, of);
    }
}

/// 4 KiB reads and overwrites of a mapped volume, and of the bare device.
pub fn mapped(rig: &mut Rig, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    for kind in KINDS.into_iter().filter(|kind| kind.is_wanted(scale)) {
        let bytes = scale.volume_bytes;
        let bare = kind.device("bare", bytes, rig)?;
        let mut bare = Bare::new(bare.open_channel(0)?);
        let bdevs = [kind.device("r0", 2 * bytes, rig)?];
        let mut pool = rig.create(&bdevs)?;
        pool.volume("v", bytes)?;
        let channel = pool.attach("v")?;
        pool.map(channel, bytes, rig.data)?;
        for (op, name) in [(Op::Read, "read"), (WRITE, "overwrite")] {
            for depth in [32, 1] {
                let mut pair = Pair::default();
                for _ in 0..scale.rounds {
                    let ios = kind.ios(scale, depth);
                    let places = rig.random(ios, (bytes / u64::from(BLOCK)) as u32);
                    let load = Load { op, places: &places, blocks: 1, depth, data: rig.data };
                    pair.other.push(run(&mut bare, &load)?);
                    pair.ours.push(pool.run(channel, &load)?);
                }
                let what = format!("4 KiB random {name}, mapped, {}, of the bare bdev", kind.name);
                if depth == 1 {
                    let what = format!("{what}, QD1 latency");
                    pair.add_time(report, &what, kind.time_of_one(), Aim::AtMost(1.05));
                } else {
                    pair.add_iops(report, &what, kind, 0.95);
                }
            }
        }
    }
    Ok(())
}

/// How blocks come to be written for the first time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum First {
    AfterSnapshot,
    Fresh,
}

/// First writes of 4 KiB, and overwrites of the same blocks.
pub fn first(
    rig: &mut Rig,
    scale: &Scale,
    first: First,
    report: &mut Report,
) -> anyhow::Result<()> {
    let what = match first {
        First::AfterSnapshot => "first 4 KiB random writes after a snapshot",
        First::Fresh => "4 KiB random writes into a fresh volume",
    };
    for kind in KINDS.into_iter().filter(|kind| kind.is_wanted(scale)) {
        let bytes = scale.volume_bytes;
        let bdevs = [kind.device("r0", 4 * bytes, rig)?];
        let mut pool = rig.create(&bdevs)?;
        for depth in [32, 1] {
            let mut pair = Pair::default();
            for _ in 0..scale.rounds {
                let mut places = rig.shuffled((bytes / u64::from(BLOCK)) as u32);
                places.truncate(kind.ios(scale, depth));
                first_round(rig, &mut pool, (first, bytes), &mut places, depth, &mut pair)?;
            }
            let what = format!("{what}, {}, of overwrites", kind.name);
            let slow = kind.time.is_some();
            if depth == 32 {
                pair.add_iops(report, &what, kind, if slow { 0.5 } else { 0.8 });
                let aim = if slow { Aim::None } else { Aim::AtMost(2.0) };
                pair.add_time(report, &format!("{what}, QD32 p99"), Run::p99_ns, aim);
            } else {
                let aim = if slow { Aim::AtMost(2.1) } else { Aim::None };
                pair.add_time(report, &format!("{what}, QD1 latency"), kind.time_of_one(), aim);
            }
        }
    }
    Ok(())
}

/// On a volume of its own: what earlier rounds left where would change where this one writes.
fn first_round(
    rig: &mut Rig,
    pool: &mut Pool,
    (first, bytes): (First, u64),
    places: &mut [u32],
    depth: u32,
    pair: &mut Pair,
) -> anyhow::Result<()> {
    pool.volume("v", bytes)?;
    let channel = pool.attach("v")?;
    if first == First::AfterSnapshot {
        pool.map(channel, bytes, rig.data)?;
        pool.snapshot("v", "s")?;
    }
    pool.rest()?;
    let load = Load { op: WRITE, places, blocks: 1, depth, data: rig.data };
    pair.ours.push(pool.run(channel, &load)?);
    pool.rest()?;
    rig.shuffle(places);
    let load = Load { op: WRITE, places, blocks: 1, depth, data: rig.data };
    pair.other.push(pool.run(channel, &load)?);
    pool.close(channel)?;
    pool.delete("v")?;
    if first == First::AfterSnapshot {
        pool.delete("s")?;
    }
    pool.rest()
}
