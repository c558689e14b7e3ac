//! Reads from two SSDs until the kernel asks for the first, lets that go, and goes on with the
//! second for a while: an orderly hot-unplug, seen from the driver. Nothing is written.
//!
//! Usage: nvme_hold BDF BDF
//!
//! Prints `hold: reading` when both are read from and the first may be unplugged, and at last
//! `nvme_hold: ok`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dma::{Arena, DmaSpan};
use nvme::{Command, Config, Health, IoQueuePair, NvmeDevice, Op};
use nvme_spec::status::Status;
use vfio::Device;
use vfio::pci::{Bdf, System};

const DEPTH: u32 = 32;
const WAIT: Duration = Duration::from_secs(60);
/// Reads of the second after the first has gone: more than can be in flight.
const GO_ON: u64 = 10 * DEPTH as u64;

/// A device and the thread that reads from it.
struct Held {
    device: NvmeDevice<Device>,
    reads: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// Ends with the status that ended the reading, if it was not asked to stop.
    reader: JoinHandle<Option<Status>>,
}

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let bdfs: Vec<Bdf> =
        std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    ensure!(bdfs.len() == 2, "usage: nvme_hold BDF BDF");
    let system = System::default();
    for &bdf in &bdfs {
        system.bind(bdf, false)?;
    }
    let arena = Arena::hugepages(16 << 20)?;
    let mut first = Held::new(arena, bdfs[0])?;
    let mut second = Held::new(arena, bdfs[1])?;
    let both = &mut [&mut first, &mut second];
    poll_until(both, "reads of both", |both| both.iter().all(|held| held.count() > 0))?;
    println!("hold: reading");

    poll_until(both, "the kernel to ask for the first", |[first, _]| {
        first.device.removal_requested() && first.device.health() == Health::Failed
    })?;
    let status = first.reader.join().ok().flatten().context("reading did not end by itself")?;
    println!("hold: reading ended with: {status}");
    drop(first.device);
    println!("hold: let go");

    let before = second.count();
    poll_until(&mut [&mut second], "reads of the second", |[second]| {
        second.count() >= before + GO_ON
    })?;
    println!("hold: {GO_ON} more reads from {}", bdfs[1]);
    second.stop.store(true, Ordering::Relaxed);
    ensure!(second.reader.join().is_ok_and(|ended| ended.is_none()), "the other SSD had an error");
    second.device.close();
    system.release(bdfs[1])?;
    println!("nvme_hold: ok");
    Ok(())
}

/// Polls devices until it is so.
fn poll_until<const N: usize>(
    held: &mut [&mut Held; N],
    what: &str,
    is_so: impl Fn(&[&mut Held; N]) -> bool,
) -> Result<()> {
    let limit = Instant::now() + WAIT;
    while !is_so(held) {
        ensure!(Instant::now() < limit, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
        for held in held.iter_mut() {
            held.device.poll(Instant::now());
        }
    }
    Ok(())
}

impl Held {
    fn new(arena: &'static Arena, bdf: Bdf) -> Result<Self> {
        let pci = Arc::new(Device::open(bdf, arena)?);
        let device = NvmeDevice::bring_up(pci, arena, Config::default())?;
        let pair = device.queues().take(device.namespaces()).context("no queue pair")?;
        let data = arena.carve(4096, 4096)?;
        let reads = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (count, asked) = (Arc::clone(&reads), Arc::clone(&stop));
        let reader = std::thread::spawn(move || read(pair, data, &count, &asked));
        Ok(Self { device, reads, stop, reader })
    }

    fn count(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

/// Reads the first blocks over and over.
fn read(
    mut pair: IoQueuePair<Device>,
    data: DmaSpan,
    reads: &AtomicU64,
    stop: &AtomicBool,
) -> Option<Status> {
    let mut in_flight = 0;
    while !stop.load(Ordering::Relaxed) || in_flight > 0 {
        while in_flight < DEPTH && !stop.load(Ordering::Relaxed) {
            let (op, block_count, data) = (Op::Read, 8, Some(data));
            let command = Command { tag: 0, nsid: 1, op, slba: 0, block_count, data };
            if pair.submit(command).is_err() {
                break;
            }
            in_flight += 1;
        }
        pair.poll(Instant::now());
        while let Some(completion) = pair.completed() {
            in_flight -= 1;
            if !completion.status.is_success() {
                return Some(completion.status);
            }
            reads.fetch_add(1, Ordering::Relaxed);
        }
    }
    None
}
