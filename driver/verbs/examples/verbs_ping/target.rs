//! The target: answers capsules by moving data and sending a response.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use verbs::{
    Access, CmEvent, CmId, Completion, ConnParams, ConnectionData, EventChannel, RdmaQp, Sge,
    VerbsError, WcOpcode, WcStatus,
};

use crate::{
    CAPSULE_BYTES, Capsule, DEPTH, OP_READ, OP_WRITE_AND_INVALIDATE, PATIENCE, Resources, Work,
    check, fill, next_event, qp_limits, sge, work_of, wr_id,
};

/// Turns the first connection down and serves two.
pub fn run(channel: &EventChannel, listener: &CmId) -> Result<()> {
    let (id, request) = connect_request(channel, listener)?;
    ensure!(request.private_data.as_bytes().starts_with(b"first"), "{request:?}");
    id.reject(b"not you")?;
    drop(id);

    let (id, request) = connect_request(channel, listener)?;
    let mut resources = Resources::new(&id, Access::default())?;
    ensure!(resources.mr.rkey().is_none(), "the target's memory is its own");
    let failed = Connection::accept(id, &request, &mut resources)?.serve(channel)?;
    ensure!(failed.is_none(), "failed: {failed:?}");

    let (id, request) = connect_request(channel, listener)?;
    ensure!(id.device()? == resources.device, "the same device gives the same resources");
    let failed = Connection::accept(id, &request, &mut resources)?.serve(channel)?;
    ensure!(failed == Some(WcStatus::REMOTE_ACCESS), "access with a dead rkey gave {failed:?}");
    while let Some(event) = resources.device.poll_async_event()? {
        println!("target: device event: {event}");
    }
    ensure!(resources.cq.handle().entries_left() == 4 * DEPTH, "entries are given back");
    Ok(())
}

fn connect_request(channel: &EventChannel, listener: &CmId) -> Result<(CmId, ConnectionData)> {
    loop {
        match next_event(channel)? {
            CmEvent::ConnectRequest { listener: key, id, request } => {
                ensure!(key == listener.key() && id.key() != key, "wrong listener");
                ensure!(id.peer_addr().is_some(), "a peer without an address");
                return Ok((id, request));
            }
            // Of the connection before.
            CmEvent::TimewaitExit { .. } | CmEvent::Disconnected { .. } => {}
            other => bail!("unexpected: {other:?}"),
        }
    }
}

struct Connection<'a> {
    id: CmId,
    qp: RdmaQp,
    resources: &'a mut Resources,
    capsules: [Option<Capsule>; DEPTH as usize],
    recvs: u32,
    /// Signaled work requests of the send queue.
    sends: u32,
    disconnected: bool,
    failed: Option<WcStatus>,
}

impl<'a> Connection<'a> {
    fn accept(id: CmId, request: &ConnectionData, resources: &'a mut Resources) -> Result<Self> {
        let params = ConnParams::answer(request, resources.device.limits(), DEPTH as u8);
        ensure!(params.initiator_depth > 0, "the peer allows no RDMA READ: {request:?}");
        let (mr, cq) = (&resources.mr, &resources.cq);
        let mut qp = RdmaQp::new(&id, mr, &cq.handle(), &cq.handle(), qp_limits())?;
        ensure!(
            RdmaQp::new(&id, mr, &cq.handle(), &cq.handle(), qp_limits()).is_err(),
            "two QPs on a connection"
        );
        let outside = Sge { addr: resources.inbox.addr() - 1, len: CAPSULE_BYTES };
        let refused = qp.recv(0, &[outside]);
        ensure!(matches!(refused, Err(VerbsError::OutsideRegion { .. })), "{refused:?}");
        for slot in 0..DEPTH {
            qp.recv(wr_id(Work::Recv, slot), &[sge(resources.inbox(slot))])?;
        }
        ensure!(matches!(qp.recv(0, &[]), Err(VerbsError::ChainFull { .. })), "too many receives");
        qp.flush()?;
        id.accept(&params, b"welcome")?;
        let capsules = [None; DEPTH as usize];
        let recvs = DEPTH;
        Ok(Self { id, qp, resources, capsules, recvs, sends: 0, disconnected: false, failed: None })
    }

    /// Serves until the peer disconnects or something fails; gives what failed.
    fn serve(mut self, channel: &EventChannel) -> Result<Option<WcStatus>> {
        let deadline = Instant::now() + PATIENCE;
        while !self.disconnected || self.recvs + self.sends > 0 {
            ensure!(Instant::now() < deadline, "{} + {} outstanding", self.recvs, self.sends);
            for completion in self.resources.poll()? {
                self.handle(&completion)?;
            }
            self.qp.flush()?;
            match channel.poll()? {
                None => {}
                Some(CmEvent::Established { id, .. }) => ensure!(id == self.id.key(), "whose?"),
                Some(CmEvent::Disconnected { id }) => {
                    ensure!(id == self.id.key(), "whose?");
                    self.qp.to_error()?;
                    self.id.disconnect()?;
                    self.disconnected = true;
                }
                Some(other) => bail!("unexpected: {other:?}"),
            }
        }
        println!("target: {:?}", self.qp.counters());
        Ok(self.failed)
    }

    fn handle(&mut self, completion: &Completion) -> Result<()> {
        ensure!(completion.qp_num() == self.qp.qp_num(), "of another QP: {completion:?}");
        let (work, slot) = work_of(completion)?;
        match work {
            Work::Recv => self.recvs -= 1,
            Work::Send => self.sends -= 1,
            // Data by RDMA READ is signaled, data by RDMA WRITE only completes when it fails.
            Work::Data if completion.opcode() == Some(WcOpcode::RdmaRead) => self.sends -= 1,
            Work::Data => {}
            Work::Bind | Work::Invalidate => bail!("a target has no windows"),
        }
        if !completion.status().is_success() {
            if self.failed.is_none() && !self.disconnected {
                self.failed = Some(completion.status());
                self.id.disconnect()?;
            }
            return Ok(());
        }
        match work {
            Work::Recv => self.start(slot, completion.byte_len()),
            Work::Data => self.respond(slot, None),
            _ => Ok(()),
        }
    }

    fn start(&mut self, slot: u32, bytes: u32) -> Result<()> {
        ensure!(bytes == CAPSULE_BYTES, "a capsule of {bytes} bytes");
        let capsule = Capsule::read(self.resources.inbox(slot));
        let data = self.resources.data(slot);
        self.capsules[slot as usize] = Some(capsule);
        let id = wr_id(Work::Data, slot);
        if capsule.op == OP_READ {
            self.sends += 1;
            return Ok(self.qp.read(id, &[sge(data)], capsule.addr, capsule.rkey, true)?);
        }
        fill(data, capsule.seq);
        // Two entries: the data is gathered.
        let (head, tail) = (data.subspan(0, 512), data.subspan(512, data.len() - 512));
        self.qp.write(id, &[sge(head), sge(tail)], capsule.addr, capsule.rkey, false)?;
        let invalidate = (capsule.op == OP_WRITE_AND_INVALIDATE).then_some(capsule.rkey);
        self.respond(slot, invalidate)
    }

    fn respond(&mut self, slot: u32, invalidate: Option<u32>) -> Result<()> {
        let Some(capsule) = self.capsules[slot as usize].take() else {
            bail!("no capsule in slot {slot}")
        };
        if capsule.op == OP_READ {
            check(self.resources.data(slot), capsule.seq)?;
        }
        let outbox = self.resources.outbox(slot);
        capsule.write(outbox);
        let inline = capsule.op != OP_READ;
        self.qp.recv(wr_id(Work::Recv, slot), &[sge(self.resources.inbox(slot))])?;
        self.qp.send(wr_id(Work::Send, slot), &[sge(outbox)], invalidate, true, inline)?;
        self.recvs += 1;
        self.sends += 1;
        Ok(())
    }
}
