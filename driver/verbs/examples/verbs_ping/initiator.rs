//! The initiator: sends capsules and checks what comes back.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use verbs::{
    Access, CmEvent, CmId, Completion, ConnParams, EventChannel, PrivateData, RdmaQp, WcOpcode,
};

use crate::{
    Capsule, DEPTH, OP_READ, OP_WRITE, OP_WRITE_AND_INVALIDATE, PATIENCE, REJECTED_BY_CONSUMER,
    Resources, Work, check, fill, next_event, qp_limits, sge, work_of, wr_id,
};

const WRITES: u64 = 2000;
const READS: u64 = 500;
const INVALIDATIONS: u64 = 200;
/// All the peer may do; windows are for the rest.
const ACCESS: Access = Access { remote_read: true, remote_write: true, bind: true };

pub fn run(target: SocketAddr) -> Result<()> {
    let channel = EventChannel::new()?;
    let rejected = connect(&channel, target, b"first")?;
    ensure!(rejected.is_err(), "the first connection was to be rejected");
    println!("initiator: rejected as it should be");

    let Ok(mut connection) = connect(&channel, target, b"second")? else { bail!("rejected") };
    connection.transfer(OP_WRITE, WRITES)?;
    connection.transfer(OP_READ, READS)?;
    connection.invalidate(INVALIDATIONS)?;
    connection.id.disconnect()?;
    connection.finish(&channel)?;

    let Ok(mut connection) = connect(&channel, target, b"third")? else { bail!("rejected") };
    let dead_rkey = connection.invalidate(1)?;
    connection.trespass(dead_rkey)?;
    connection.finish(&channel)
}

/// Connects; a reject is the inner error.
fn connect(
    channel: &EventChannel,
    target: SocketAddr,
    private_data: &[u8],
) -> Result<Result<Connection, PrivateData>> {
    let id = channel.create_id()?;
    ensure!(id.device().is_err() && id.disconnect().is_err(), "not bound to a device yet");
    id.resolve_addr(target, PATIENCE)?;
    let event = next_event(channel)?;
    ensure!(matches!(event, CmEvent::AddrResolved { id: key } if key == id.key()), "{event:?}");
    id.resolve_route(PATIENCE)?;
    let event = next_event(channel)?;
    ensure!(matches!(event, CmEvent::RouteResolved { .. }), "{event:?}");

    let resources = Resources::new(&id, ACCESS)?;
    let (mr, cq) = (&resources.mr, &resources.cq);
    let mut qp = RdmaQp::new(&id, mr, &cq.handle(), &cq.handle(), qp_limits())?;
    for slot in 0..DEPTH {
        qp.recv(wr_id(Work::Recv, slot), &[sge(resources.inbox(slot))])?;
    }
    qp.flush()?;
    let limits = resources.device.limits();
    let params = ConnParams {
        initiator_depth: limits.max_initiator_reads,
        responder_resources: limits.max_responder_reads,
        ..ConnParams::default()
    };
    id.connect(&params, private_data)?;
    loop {
        match next_event(channel)? {
            CmEvent::Established { id: key, data } => {
                ensure!(key == id.key(), "whose?");
                ensure!(data.private_data.as_bytes().starts_with(b"welcome"), "{data:?}");
                println!(
                    "initiator: {:?} -> {:?}, the target reads {} at once",
                    id.local_addr(),
                    id.peer_addr(),
                    data.responder_resources
                );
                return Ok(Ok(Connection { resources, id, qp, recvs: DEPTH, sends: 0 }));
            }
            CmEvent::Rejected { id: key, reason, private_data } => {
                ensure!(key == id.key() && reason == REJECTED_BY_CONSUMER, "reason {reason}");
                ensure!(private_data.as_bytes().starts_with(b"not you"), "{private_data:?}");
                return Ok(Err(private_data));
            }
            // Of the connection before.
            CmEvent::TimewaitExit { .. } => {}
            other => bail!("unexpected: {other:?}"),
        }
    }
}

struct Connection {
    id: CmId,
    qp: RdmaQp,
    resources: Resources,
    recvs: u32,
    sends: u32,
}

impl Connection {
    /// `count` capsules, as many at once as there are slots.
    fn transfer(&mut self, op: u32, count: u64) -> Result<()> {
        let rkey = self.resources.mr.rkey().context("no rkey")?;
        let (mut sent, mut done) = (0, 0);
        let mut free: Vec<u32> = (0..DEPTH).collect();
        let mut slots = vec![0; count as usize];
        let start = Instant::now();
        while done < count {
            ensure!(start.elapsed() < PATIENCE, "{done} of {count} done");
            while sent < count && !free.is_empty() {
                let slot = free.pop().unwrap_or_default();
                slots[sent as usize] = slot;
                self.send(slot, Capsule { seq: sent, addr: 0, op, rkey })?;
                sent += 1;
            }
            self.qp.flush()?;
            for completion in self.resources.poll()? {
                let Some(capsule) = self.response(&completion)? else { continue };
                let slot = *slots.get(capsule.seq as usize).context("unknown capsule")?;
                check(self.resources.data(slot), capsule.seq)?;
                free.push(slot);
                done += 1;
            }
        }
        println!("initiator: {count} of op {op}: {:?}", start.elapsed());
        Ok(())
    }

    /// `count` capsules with a window each, which the target invalidates, and as many with one that
    /// we invalidate ourselves; gives the last rkey.
    fn invalidate(&mut self, count: u64) -> Result<u32> {
        self.qp.add_windows(2)?;
        let start = Instant::now();
        let mut dead_rkey = 0;
        for seq in 0..2 * count {
            let (window, by_target) = ((seq % 2) as u32, seq % 2 == 0);
            let op = if by_target { OP_WRITE_AND_INVALIDATE } else { OP_WRITE };
            let id = wr_id(Work::Bind, 0);
            let data = sge(self.resources.data(0));
            let access = Access { remote_write: true, ..Access::default() };
            let rkey = self.qp.bind_window(id, window, data, access, true)?;
            self.sends += 1;
            self.send(0, Capsule { seq, addr: 0, op, rkey })?;
            self.qp.flush()?;
            let mut responded = false;
            while !responded {
                ensure!(start.elapsed() < PATIENCE, "{seq} of {} done", 2 * count);
                for completion in self.resources.poll()? {
                    let invalidated = completion.invalidated_rkey();
                    if let Some(capsule) = self.response(&completion)? {
                        check(self.resources.data(0), capsule.seq)?;
                        let wanted = by_target.then_some(rkey);
                        ensure!(invalidated == wanted, "{wanted:x?} is not {invalidated:x?}");
                        responded = true;
                    }
                }
            }
            if !by_target {
                self.qp.invalidate_window(wr_id(Work::Invalidate, 0), window, true)?;
                self.sends += 1;
                dead_rkey = rkey;
            }
        }
        self.qp.flush()?;
        println!("initiator: {count} windows invalidated by each side: {:?}", start.elapsed());
        Ok(dead_rkey)
    }

    /// Lets the target write with an rkey that is dead, whereupon it disconnects.
    fn trespass(&mut self, rkey: u32) -> Result<()> {
        fill(self.resources.data(0), 7);
        self.send(0, Capsule { seq: 1, addr: 0, op: OP_WRITE, rkey })?;
        Ok(self.qp.flush()?)
    }

    fn send(&mut self, slot: u32, mut capsule: Capsule) -> Result<()> {
        let (outbox, data) = (self.resources.outbox(slot), self.resources.data(slot));
        if capsule.op == OP_READ {
            fill(data, capsule.seq);
        } else {
            data.fill(0xee);
        }
        capsule.addr = data.addr();
        capsule.write(outbox);
        self.sends += 1;
        Ok(self.qp.send(wr_id(Work::Send, slot), &[sge(outbox)], None, true, false)?)
    }

    /// Takes note of a completion; a response is given back, and its receive queued again.
    fn response(&mut self, completion: &Completion) -> Result<Option<Capsule>> {
        let (work, slot) = work_of(completion)?;
        ensure!(completion.status().is_success(), "{completion:?}");
        if work != Work::Recv {
            let expected = match work {
                Work::Bind => WcOpcode::BindWindow,
                Work::Invalidate => WcOpcode::InvalidateWindow,
                _ => WcOpcode::Send,
            };
            ensure!(completion.opcode() == Some(expected), "{completion:?}");
            self.sends -= 1;
            return Ok(None);
        }
        let inbox = self.resources.inbox(slot);
        let capsule = Capsule::read(inbox);
        self.qp.recv(wr_id(Work::Recv, slot), &[sge(inbox)])?;
        Ok(Some(capsule))
    }

    /// Waits for the end of the connection, and sees everything outstanding complete.
    fn finish(mut self, channel: &EventChannel) -> Result<()> {
        println!("initiator: {:?}", self.qp.counters());
        let event = next_event(channel)?;
        ensure!(matches!(event, CmEvent::Disconnected { id } if id == self.id.key()), "{event:?}");
        self.id.qp_to_error()?;
        // A receive posted now might never complete: see `RdmaQp`.
        while self.qp.take_unposted().is_some() {
            self.recvs -= 1;
        }
        let start = Instant::now();
        while self.recvs + self.sends > 0 {
            ensure!(start.elapsed() < PATIENCE, "{} + {} outstanding", self.recvs, self.sends);
            self.drain()?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        for completion in self.resources.poll()? {
            match work_of(&completion)?.0 {
                Work::Recv => self.recvs -= 1,
                _ => self.sends -= 1,
            }
        }
        Ok(())
    }
}
