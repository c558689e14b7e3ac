//! What only shows at size: on devices that keep metadata alone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bdev::{Bdev, Op};
use volume::Call;

use crate::devices::{Slow, Thin};
use crate::load::{BLOCK, Load, on_core};
use crate::report::{Aim, Report, median};
use crate::rig::{Pool, Rig};
use crate::{Scale, WRITE};

const MIB: f64 = (1 << 20) as f64;
const MS: f64 = 1e3;

/// Bytes to the devices for each first write, all that comes with it and a checkpoint.
pub fn bytes_written(rig: &mut Rig, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let bytes = scale.bytes_volume;
    let device_bytes = 3 * bytes + scale.bytes_writes as u64 * 65536;
    for (name, time, depth) in [("RAM", 0, 32), ("80 µs", 80, 32), ("RAM", 0, 1)] {
        for after_snapshot in [false, true] {
            let thin = Thin::new("t0", device_bytes, rig.data, 1 << 28)?;
            let counter = Arc::new(Slow::new(Arc::new(thin), Duration::from_micros(time)));
            let bdevs = [Arc::clone(&counter) as Arc<dyn Bdev>];
            let mut pool = rig.create(&bdevs)?;
            pool.volume("v", bytes)?;
            let channel = pool.attach("v")?;
            if after_snapshot {
                pool.map(channel, bytes, rig.data)?;
                pool.snapshot("v", "s")?;
            }
            pool.rest()?;
            pool.call(Call::Checkpoint)?;
            let places = rig.random(scale.bytes_writes, (bytes / u64::from(BLOCK)) as u32);
            let mut distinct = places.clone();
            distinct.sort_unstable();
            distinct.dedup();
            let again = (places.len() - distinct.len()) as u64 * u64::from(BLOCK);
            let before = counter.written();
            let load = Load { op: WRITE, places: &places, blocks: 1, depth, data: rig.data };
            pool.run(channel, &load)?;
            pool.rest()?;
            pool.call(Call::Checkpoint)?;
            let written = counter.written() - before - again;
            let first = distinct.len() as f64 * f64::from(BLOCK);
            let state = if after_snapshot { "after a snapshot" } else { "fresh volume" };
            let what =
                format!("bytes to devices per first 4 KiB write, {state}, {name}, QD{depth}");
            let aim = if depth == 1 { Aim::None } else { Aim::AtMost(1.5) };
            let of = format!("{:.0} MiB of {:.0} MiB", written as f64 / MIB, first / MIB);
            report.add(&what, written as f64 / first, "× 4 KiB", aim, of);
        }
    }
    Ok(())
}

/// A large volume, all of it mapped: memory, snapshots, clones, opening it.
pub fn large(rig: &mut Rig, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let bytes = scale.large_bytes;
    let tib = bytes as f64 / (1u64 << 40) as f64;
    let thin = Arc::new(Thin::new("t0", bytes + bytes / 8 + (4 << 30), rig.data, 16 << 20)?);
    let bdevs = [Arc::clone(&thin) as Arc<dyn Bdev>];
    let mut pool = rig.create(&bdevs)?;
    pool.volume("v", bytes)?;
    let channel = pool.attach("v")?;
    let before = memory(&thin)?;
    let run = pool.map(channel, bytes, rig.data)?;
    eprintln!("{tib} TiB mapped in {:.0} s", run.elapsed.as_secs_f64());
    pool.call(Call::Checkpoint)?;
    let mapped = memory(&thin)?;
    let per_tib = (mapped - before) / tib / MIB;
    let of = format!("{:.0} MiB for {tib} TiB", (mapped - before) / MIB);
    report.add("memory per mapped TiB", per_tib, "MiB", Aim::AtMost(160.0), of);
    snapshots_and_clones(&mut pool, &thin, scale, report)?;
    opened(rig, &bdevs, pool, channel, scale, report)
}

fn snapshots_and_clones(
    pool: &mut Pool,
    thin: &Thin,
    scale: &Scale,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (mut snapshots, mut clones) = (Vec::new(), Vec::new());
    for index in 0..scale.rounds {
        let cost = pool.snapshot("v", &format!("s{index}"))?;
        snapshots.push(cost.as_secs_f64() * MS);
        pool.rest()?;
    }
    let before = memory(thin)?;
    for index in 0..scale.clones {
        let (snapshot, name) = ("s0".to_owned(), format!("c{index}"));
        let (_, cost) = pool.call(Call::Clone { snapshot, name, read_only: false })?;
        clones.push(cost.as_secs_f64() * MS);
    }
    let each = (memory(thin)? - before) / f64::from(scale.clones) / 1024.0;
    let of = |costs: &[f64]| {
        let most = costs.iter().copied().fold(0.0, f64::max);
        format!("median of {}, most {most:.3} ms", costs.len())
    };
    let (snapshots_of, clones_of) = (of(&snapshots), of(&clones));
    let most = Aim::AtMost(1.0);
    report.add("snapshot of all that, CPU", median(snapshots), "ms", most, snapshots_of);
    report.add("clone of all that, CPU", median(clones), "ms", most, clones_of);
    let of = format!("{} clones", scale.clones);
    report.add("memory of a clone of all that", each, "KiB", Aim::AtMost(64.0), of);
    Ok(())
}

fn opened(
    rig: &mut Rig,
    bdevs: &[Arc<dyn Bdev>],
    mut pool: Pool,
    channel: u32,
    scale: &Scale,
    report: &mut Report,
) -> anyhow::Result<()> {
    pool.call(Call::Checkpoint)?;
    pool.close(channel)?;
    drop(pool);
    let mut times = Vec::new();
    for _ in 0..3 {
        let busy = on_core()?;
        let pool = rig.open(bdevs)?;
        times.push((on_core()? - busy).as_secs_f64());
        drop(pool);
    }
    let of = format!(
        "{times:.2?} s of the core, with {} snapshots and {} clones",
        scale.rounds, scale.clones
    );
    report.add("open after a crash", median(times.clone()), "s", Aim::AtMost(1.0), of);
    let mut pool = rig.open(bdevs)?;
    let channel = pool.attach("v")?;
    loop {
        let (used, all) = pool.info()?.journal;
        if used * 20 > all * 9 {
            break;
        }
        let ios = (all / 100 * 32) as usize;
        let places = rig.random(ios, (scale.large_bytes / u64::from(BLOCK)) as u32);
        let load = Load { op: WRITE, places: &places, blocks: 1, depth: 32, data: rig.data };
        pool.run(channel, &load)?;
    }
    pool.rest()?;
    let (used, all) = pool.info()?.journal;
    drop(pool);
    let busy = on_core()?;
    drop(rig.open(bdevs)?);
    let time = (on_core()? - busy).as_secs_f64();
    let of =
        format!("{used} of {all} journal blocks to replay, each of 32 random first writes at most");
    report.add("open after a crash, journal half full", time, "s", Aim::None, of);
    Ok(())
}

/// Random reads of a volume with many snapshots, and of one with none.
pub fn many_snapshots(rig: &mut Rig, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let bytes = scale.volume_bytes;
    let blocks = (bytes / u64::from(BLOCK)) as u32;
    let writes = blocks as usize / 100;
    let device_bytes = 4 * bytes + u64::from(scale.snapshots) * writes as u64 * 65536;
    let thin: Arc<dyn Bdev> = Arc::new(Thin::new("t0", device_bytes, rig.data, bytes)?);
    let mut pool = rig.create(&[thin])?;
    let mut channels = Vec::new();
    for name in ["v", "none"] {
        pool.volume(name, bytes)?;
        let channel = pool.attach(name)?;
        pool.map(channel, bytes, rig.data)?;
        channels.push(channel);
    }
    for snapshot in 0..scale.snapshots {
        pool.snapshot("v", &format!("s{snapshot}"))?;
        let places = rig.random(writes, blocks);
        let load = Load { op: WRITE, places: &places, blocks: 1, depth: 32, data: rig.data };
        pool.run(channels[0], &load)?;
    }
    pool.rest()?;
    for depth in [32, 1] {
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..scale.rounds {
            let places = rig.random(scale.ios, blocks);
            for (rates, channel) in rates.iter_mut().zip(&channels) {
                let data = rig.data;
                let load = Load { op: Op::Read, places: &places, blocks: 1, depth, data };
                rates.push(pool.run(*channel, &load)?.busy_iops());
            }
        }
        let [with, without] = rates;
        let ratios = with.iter().zip(&without).map(|(with, without)| with / without);
        let ratio = median(ratios.collect());
        let count = scale.snapshots;
        let what = format!("random read with {count} snapshots, of none, QD{depth}");
        let of = format!("{:.0} k/s of {:.0} k/s", median(with) / 1e3, median(without) / 1e3);
        report.add(&what, ratio, "", Aim::AtLeast(0.9), of);
    }
    Ok(())
}

/// Bytes of memory that the process has, without the device's.
fn memory(thin: &Thin) -> anyhow::Result<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').nth(1).context("/proc/self/statm")?.parse::<u64>()?;
    Ok((pages * 4096) as f64 - thin.memory_bytes() as f64)
}
