//! A host that plays foul, against a target that serves others meanwhile.
//!
//! `verbs_hostile ADDRESS:PORT` connects with private data that is garbage, which has to be
//! rejected with the status that names it; sends garbage in capsules, each of which has to be
//! answered with an error; and sends capsules that are too short and too long, which has to end the
//! connection and nothing else. Exits non-zero when the target does anything else.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dma::{Arena, DmaSpan};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nvme_spec::command::{Cqe, Sqe};
use nvme_spec::rdma::{RejectPrivateData, reject};
use verbs::{
    Access, CmEvent, CmId, Completion, ConnParams, Cq, EventChannel, Mr, Pd, QpLimits, RdmaQp, Sge,
};
use zerocopy::FromBytes;

/// Entries of the queue that is asked for.
const ENTRIES: u32 = 32;
/// Garbage capsules on one connection.
const CAPSULES: u32 = 300;
/// More than any capsule may have.
const TOO_LONG: u32 = 64 << 10;
/// Nothing here takes longer, even on an emulated CPU.
const PATIENCE: Duration = Duration::from_secs(30);
const RESPONSE_BYTES: u32 = size_of::<Cqe>() as u32;
const COMMAND_BYTES: u32 = size_of::<Sqe>() as u32;

fn main() -> Result<()> {
    const USAGE: &str = "usage: verbs_hostile ADDRESS:PORT";
    let target: SocketAddr = std::env::args().nth(1).context(USAGE)?.parse().context(USAGE)?;
    let channel = EventChannel::new()?;
    for (what, data, status) in [
        ("nothing but ones", vec![0xFF; 32], reject::INVALID_RECFMT),
        ("an unknown format", private_data(1, 0, 32, 31), reject::INVALID_RECFMT),
        ("a queue of one entry", private_data(0, 0, 32, 0), reject::INVALID_HSQSIZE),
        ("a queue that is too large", private_data(0, 1, 65535, 65534), reject::INVALID_HSQSIZE),
        ("too few responses", private_data(0, 0, 3, 31), reject::INVALID_HRQSIZE),
    ] {
        let Err(found) = Host::connect(&channel, target, &data)? else {
            bail!("{what}: accepted");
        };
        ensure!(found == status, "{what}: rejected with {found:#x}, not {status:#x}");
        println!("{what}: rejected with {status:#x}");
    }
    // An admin queue, and an I/O queue of a controller that is somebody else's or nobody's.
    for qid in [0, 1] {
        let mut host = accepted(&channel, target, qid)?;
        host.send_garbage()?;
        println!("queue {qid}: {CAPSULES} capsules of garbage answered with errors");
    }
    for bytes in [0, 1, COMMAND_BYTES - 1, TOO_LONG] {
        let mut host = accepted(&channel, target, 0)?;
        host.post(0, bytes)?;
        host.wait_for_the_end(&channel)?;
        println!("a capsule of {bytes} bytes: the connection ended");
    }
    println!("verbs_hostile: ok");
    Ok(())
}

/// NVMe over RDMA Transport 1.1, section 3.3.
fn private_data(recfmt: u16, qid: u16, hrqsize: u16, hsqsize_z: u16) -> Vec<u8> {
    let mut data: Vec<u8> =
        [recfmt, qid, hrqsize, hsqsize_z, 1].into_iter().flat_map(u16::to_le_bytes).collect();
    data.resize(32, 0);
    data
}

fn accepted(channel: &EventChannel, target: SocketAddr, qid: u16) -> Result<Host> {
    let data = private_data(0, qid, ENTRIES as u16, ENTRIES as u16 - 1);
    let host = Host::connect(channel, target, &data)?;
    host.map_err(|status| anyhow::anyhow!("queue {qid} was rejected with {status:#x}"))
}

/// One connection. Fields are dropped in this order.
struct Host {
    qp: RdmaQp,
    id: CmId,
    cq: Cq,
    responses: DmaSpan,
    capsule: DmaSpan,
    /// State of the generator of garbage.
    seed: u64,
}

impl Host {
    /// Connects; a reject is the inner error, by its status.
    fn connect(
        channel: &EventChannel,
        target: SocketAddr,
        private_data: &[u8],
    ) -> Result<Result<Self, u16>> {
        let id = channel.create_id()?;
        id.resolve_addr(target, PATIENCE)?;
        wait_for(channel, |event| matches!(event, CmEvent::AddrResolved { .. }).then_some(()))?;
        id.resolve_route(PATIENCE)?;
        wait_for(channel, |event| matches!(event, CmEvent::RouteResolved { .. }).then_some(()))?;
        let device = id.device()?;
        let arena = Arena::plain_pages(1 << 20)?;
        let mr = Mr::register(&Pd::new(&device)?, arena, Access::default())?;
        let cq = Cq::new(&device, 4 * ENTRIES)?;
        let limits = QpLimits {
            max_recv_wr: ENTRIES,
            max_send_wr: ENTRIES,
            max_recv_sges: 1,
            max_send_sges: 1,
            max_inline_bytes: 0,
        };
        let qp = RdmaQp::new(&id, &mr, &cq.handle(), &cq.handle(), limits)?;
        let responses = arena.carve((ENTRIES * RESPONSE_BYTES) as usize, 4096)?;
        let capsule = arena.carve(TOO_LONG as usize, 4096)?;
        let mut host = Self { qp, id, cq, responses, capsule, seed: 0x9E37_79B9_7F4A_7C15 };
        for slot in 0..ENTRIES {
            host.receive(slot)?;
        }
        host.qp.flush()?;
        let params = ConnParams { initiator_depth: 4, responder_resources: 4, ..<_>::default() };
        host.id.connect(&params, private_data)?;
        let rejected = wait_for(channel, |event| match event {
            CmEvent::Established { .. } => Some(None),
            CmEvent::Rejected { private_data, .. } => Some(Some(private_data.as_bytes().to_vec())),
            _ => None,
        })?;
        let Some(bytes) = rejected else { return Ok(Ok(host)) };
        let data = RejectPrivateData::read_from_prefix(&bytes);
        let (data, _) = data.map_err(|_| anyhow::anyhow!("rejected with {bytes:?}"))?;
        Ok(Err(data.status.get()))
    }

    fn receive(&mut self, slot: u32) -> Result<()> {
        let span = self.responses.subspan(slot * RESPONSE_BYTES, RESPONSE_BYTES);
        Ok(self.qp.recv(slot.into(), &[sge(span)])?)
    }

    /// Sends the first bytes of the capsule's memory.
    fn post(&mut self, cid: u32, bytes: u32) -> Result<()> {
        // Nothing is no part of any memory.
        let sges = (bytes > 0).then(|| sge(self.capsule.subspan(0, bytes)));
        self.qp.send(u64::from(cid) | 1 << 32, sges.as_slice(), None, true, false)?;
        Ok(self.qp.flush()?)
    }

    /// One capsule after the other, each with a CID of its own; the rest is garbage.
    fn send_garbage(&mut self) -> Result<()> {
        for cid in 0..CAPSULES {
            for at in (0..COMMAND_BYTES).step_by(8) {
                let word = self.random();
                self.capsule.write_obj(at, &word);
            }
            self.capsule.write_obj(2, &(cid as u16));
            self.post(cid, COMMAND_BYTES)?;
            let cqe = self.response().with_context(|| format!("the response to capsule {cid}"))?;
            ensure!(u32::from(cqe.cid()) == cid, "{cqe:?} answers capsule {cid}");
            ensure!(!cqe.status().is_success(), "garbage succeeded: {cqe:?}");
        }
        Ok(())
    }

    /// The next response; its receive is posted again.
    fn response(&mut self) -> Result<Cqe> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for completion in self.poll()? {
                ensure!(completion.status().is_success(), "{completion:?}");
                if completion.wr_id() < 1 << 32 {
                    let slot = completion.wr_id() as u32;
                    let cqe = self.responses.read_obj(slot * RESPONSE_BYTES);
                    self.receive(slot)?;
                    self.qp.flush()?;
                    return Ok(cqe);
                }
            }
        }
        bail!("nothing came in {PATIENCE:?}")
    }

    fn wait_for_the_end(&mut self, channel: &EventChannel) -> Result<()> {
        wait_for(channel, |event| match event {
            CmEvent::Disconnected { id } if *id == self.id.key() => Some(()),
            _ => None,
        })
    }

    fn poll(&mut self) -> Result<impl Iterator<Item = Completion> + use<>> {
        // One at a time: what follows a response in the same call would be lost.
        let mut completions = [Completion::EMPTY; 1];
        let count = self.cq.poll(&mut completions)?;
        Ok(completions.into_iter().take(count))
    }

    /// xorshift64*: garbage, and the same in every run.
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        self.seed.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

fn sge(span: DmaSpan) -> Sge {
    Sge { addr: span.addr(), len: span.len() }
}

/// Waits for an event of the connection manager that `wanted` takes; drops others.
fn wait_for<T>(channel: &EventChannel, mut wanted: impl FnMut(&CmEvent) -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(event) = channel.poll()? {
            match wanted(&event) {
                Some(found) => return Ok(found),
                None => println!("    {event:?}"),
            }
            continue;
        }
        let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(Duration::from_millis(500))?)?;
    }
    bail!("no event in {PATIENCE:?}")
}
