//! How long nothing ends when a snapshot is taken under load.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bdev::{Bdev, Io};
use volume::{Call, Done};

use crate::devices::{Slow, Thin};
use crate::load::BLOCK;
use crate::report::{Aim, Report, median};
use crate::rig::{Pool, Rig};
use crate::{Scale, WRITE};

const DEPTH: u32 = 32;
/// How long the load is watched each time.
const WINDOW: Duration = Duration::from_millis(50);

/// The longest gap between two ends in a window with a snapshot, and in one without, in turns. The
/// figure is of the windows that the machine disturbed least.
pub fn gap(rig: &mut Rig, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let bytes = scale.gap_bytes;
    for (name, time) in [("RAM", 0), ("80 µs", 80)] {
        let thin = Thin::new("t0", 4 * bytes, rig.data, scale.volume_bytes)?;
        let bdevs: [Arc<dyn Bdev>; 1] =
            [Arc::new(Slow::new(Arc::new(thin), Duration::from_micros(time)))];
        let mut pool = rig.create(&bdevs)?;
        pool.volume("v", bytes)?;
        let channel = pool.attach("v")?;
        pool.map(channel, bytes, rig.data)?;
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..scale.gap_rounds {
            pool.rest()?;
            without.push(window(rig, &mut pool, channel, bytes, None)?);
            let name = "s".to_owned();
            with.push(window(rig, &mut pool, channel, bytes, Some(name))?);
            pool.delete("s")?;
        }
        let least = |gaps: &[f64]| gaps.iter().copied().fold(f64::INFINITY, f64::min);
        let of = format!(
            "least of {}: {:.3} ms with it, {:.3} ms without; medians {:.3} and {:.3}",
            with.len(),
            least(&with),
            least(&without),
            median(with.clone()),
            median(without.clone())
        );
        let (with, without) = (least(&with), least(&without));
        let what = format!("longest gap between ends for a snapshot under load, {name}");
        report.add(&what, with - without, "ms", Aim::AtMost(1.0), of);
    }
    Ok(())
}

/// Longest time in which nothing ended, in milliseconds, under random writes. A third into the
/// window the snapshot is taken.
fn window(
    rig: &mut Rig,
    pool: &mut Pool,
    channel: u32,
    bytes: u64,
    mut snapshot: Option<String>,
) -> anyhow::Result<f64> {
    let places = rig.random(1 << 16, (bytes / u64::from(BLOCK)) as u32);
    let mut places = places.iter().cycle();
    let mut free: Vec<u32> = (0..DEPTH).collect();
    let mut done: Vec<Done> = Vec::with_capacity(DEPTH as usize);
    let start = Instant::now();
    let (mut now, mut last) = (start, start);
    let mut longest = Duration::ZERO;
    let taken = snapshot.is_some();
    let mut replied = !taken;
    while now - start < WINDOW || free.len() < DEPTH as usize || !replied {
        if now - start > WINDOW / 3
            && let Some(name) = snapshot.take()
        {
            pool.lane.call(1, Call::Snapshot(vec![("v".to_owned(), name)]), 1);
        }
        while now - start < WINDOW
            && let Some(tag) = free.pop()
        {
            let slba = u64::from(places.next().copied().unwrap_or(0));
            let buffer = Some(rig.data.subspan(tag * BLOCK, BLOCK));
            let io = Io { tag, op: WRITE, slba, block_count: 1, buffer };
            if pool.lane.submit(channel, io).is_err() {
                free.push(tag);
                break;
            }
        }
        pool.lane.poll(now, &mut done);
        replied |= pool.lane.next_reply().is_some();
        now = Instant::now();
        if !done.is_empty() {
            longest = longest.max(now - last);
            last = now;
        }
        for Done { completion, .. } in done.drain(..) {
            ensure!(completion.status.is_success(), "{:?}", completion.status);
            free.push(completion.tag);
        }
    }
    Ok(longest.as_secs_f64() * 1e3)
}
