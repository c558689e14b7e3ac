//! Target and initiator in one process, over rdma_cm and a real (or soft) RDMA device.
//!
//! `verbs_ping ADDRESS:PORT` with an address of an RDMA device. The initiator is rejected once,
//! then connects, sends capsules that the target answers with RDMA WRITEs, RDMA READs and SENDs
//! that invalidate a memory window, invalidates others itself, and disconnects; a third connection
//! ends with an access error, by a key that this side has invalidated. Every byte and every private
//! data is compared.
//!
//! `verbs_ping ADDRESS:PORT removal` connects, waits until the device is removed, and connects
//! again when it is back.
//!
//! Both exit non-zero at the first thing that is not as it should be.

#[path = "verbs_ping/initiator.rs"]
mod initiator;
#[path = "verbs_ping/removal.rs"]
mod removal;
#[path = "verbs_ping/target.rs"]
mod target;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dma::{Arena, DmaSpan};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use verbs::{Access, CmEvent, CmId, Completion, Cq, Device, EventChannel, Mr, Pd, QpLimits, Sge};

/// Capsules that are in flight at once.
const DEPTH: u32 = 16;
/// Bytes that one capsule moves.
const DATA_BYTES: u32 = 4096;
const CAPSULE_BYTES: u32 = 64;
/// Nothing here takes longer, even on an emulated CPU.
const PATIENCE: Duration = Duration::from_secs(30);
/// Reason of the connection manager for a reject by the consumer.
const REJECTED_BY_CONSUMER: i32 = 28;

/// What a capsule asks for.
const OP_WRITE: u32 = 1;
const OP_READ: u32 = 2;
const OP_WRITE_AND_INVALIDATE: u32 = 3;

fn main() -> Result<()> {
    const USAGE: &str = "usage: verbs_ping ADDRESS:PORT [removal]";
    let address: SocketAddr = std::env::args().nth(1).context(USAGE)?.parse().context(USAGE)?;
    println!("devices: {}", Device::names()?.join(", "));
    match std::env::args().nth(2).as_deref() {
        None => ping(address),
        Some("removal") => removal::run(address),
        Some(_) => bail!(USAGE),
    }
}

fn ping(address: SocketAddr) -> Result<()> {
    let channel = EventChannel::new()?;
    let listener = channel.create_id()?;
    listener.bind(address)?;
    listener.listen(8)?;
    let bound = listener.local_addr().context("the listener has no address")?;
    ensure!(bound.ip() == address.ip() && bound.port() != 0, "bound to {bound}");
    let second = channel.create_id()?.bind(bound).err().context("a port was given twice")?;
    println!("second listener: {second}");

    let target = std::thread::spawn(move || target::run(&channel, &listener));
    let initiator = initiator::run(bound);
    let target = target.join().map_err(|_| anyhow::anyhow!("the target panicked"))?;
    initiator.context("initiator").and(target.context("target"))?;
    println!("verbs_ping: ok");
    Ok(())
}

/// The fields of a capsule, and of a response, which only has `seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Capsule {
    seq: u64,
    addr: u64,
    op: u32,
    rkey: u32,
}

impl Capsule {
    fn write(&self, span: DmaSpan) {
        span.write_obj(0, &self.seq);
        span.write_obj(8, &self.addr);
        span.write_obj(16, &self.op);
        span.write_obj(20, &self.rkey);
    }

    fn read(span: DmaSpan) -> Self {
        Self {
            seq: span.read_obj(0),
            addr: span.read_obj(8),
            op: span.read_obj(16),
            rkey: span.read_obj(20),
        }
    }
}

/// A device with one PD, registration and CQ, and a buffer for each capsule in flight.
struct Resources {
    device: Device,
    mr: Mr,
    cq: Cq,
    /// Arrived capsules or responses.
    inbox: DmaSpan,
    /// Capsules or responses to be sent.
    outbox: DmaSpan,
    data: DmaSpan,
}

impl Resources {
    fn new(id: &CmId, access: Access) -> Result<Self> {
        let device = id.device()?;
        let arena = Arena::plain_pages(1 << 20)?;
        let mr = Mr::register(&Pd::new(&device)?, arena, access)?;
        let cq = Cq::new(&device, 4 * DEPTH)?;
        Ok(Self {
            device,
            mr,
            cq,
            inbox: arena.carve((DEPTH * CAPSULE_BYTES) as usize, 4096)?,
            outbox: arena.carve((DEPTH * CAPSULE_BYTES) as usize, 4096)?,
            data: arena.carve((DEPTH * DATA_BYTES) as usize, 4096)?,
        })
    }

    fn inbox(&self, slot: u32) -> DmaSpan {
        self.inbox.subspan(slot * CAPSULE_BYTES, CAPSULE_BYTES)
    }

    fn outbox(&self, slot: u32) -> DmaSpan {
        self.outbox.subspan(slot * CAPSULE_BYTES, CAPSULE_BYTES)
    }

    fn data(&self, slot: u32) -> DmaSpan {
        self.data.subspan(slot * DATA_BYTES, DATA_BYTES)
    }

    fn poll(&mut self) -> Result<impl Iterator<Item = Completion> + use<>> {
        let mut completions = [Completion::EMPTY; 8];
        let count = self.cq.poll(&mut completions)?;
        Ok(completions.into_iter().take(count))
    }
}

fn qp_limits() -> QpLimits {
    QpLimits {
        max_recv_wr: DEPTH,
        // Data and response of each capsule; one window at a time, bound and invalidated.
        max_send_wr: 2 * DEPTH + 2,
        max_recv_sges: 1,
        max_send_sges: 2,
        max_inline_bytes: CAPSULE_BYTES,
    }
}

/// What a work request is, in its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Recv,
    Send,
    Data,
    Bind,
    Invalidate,
}

fn wr_id(work: Work, slot: u32) -> u64 {
    (work as u64) << 32 | u64::from(slot)
}

fn work_of(completion: &Completion) -> Result<(Work, u32)> {
    let slot = (completion.wr_id() & 0xffff_ffff) as u32;
    let works = [Work::Recv, Work::Send, Work::Data, Work::Bind, Work::Invalidate];
    let work = works.into_iter().find(|work| completion.wr_id() >> 32 == *work as u64);
    Ok((work.with_context(|| format!("unknown id in {completion:?}"))?, slot))
}

fn sge(span: DmaSpan) -> Sge {
    Sge { addr: span.addr(), len: span.len() }
}

fn fill(span: DmaSpan, seq: u64) {
    for offset in (0..span.len()).step_by(8) {
        span.write_obj(offset, &(seq << 16 | u64::from(offset)));
    }
}

fn check(span: DmaSpan, seq: u64) -> Result<()> {
    for offset in (0..span.len()).step_by(8) {
        let found: u64 = span.read_obj(offset);
        ensure!(found == (seq << 16 | u64::from(offset)), "capsule {seq}: {found:#x} at {offset}");
    }
    Ok(())
}

/// Waits for the next event of the connection manager, asleep on the channel's descriptor.
fn next_event(channel: &EventChannel) -> Result<CmEvent> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(event) = channel.poll()? {
            return Ok(event);
        }
        let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(Duration::from_millis(500))?)?;
    }
    bail!("no event in {PATIENCE:?}")
}
