//! An [`RdmaConnection`] on a queue pair.
//!
//! ```text
//!   resolving address ──> resolving route ──> connecting ──> open
//!                                        └ memory registered, queue pair made, receives posted
//! ```
//!
//! In a turn one call posts all receives and one all sends. A command is a binding of its window,
//! if it has data, and a SEND; the SEND completes for both. Receives are posted before any capsule
//! whose response may need them. Capsules leave before completions are looked at, so that no
//! response, whatever it claims, finds a window that is still to be bound.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::{Arena, DmaSpan};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nvme_spec::command::{Cqe, Sqe};
use nvme_spec::rdma::{AcceptPrivateData, RejectPrivateData, RequestPrivateData};
use verbs::{
    Access, CmEvent, CmId, Completion, ConnParams, Cq, EventChannel, PrivateData, QpLimits, RdmaQp,
    Sge, VerbsError, WcStatus,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::error::{Error, RdmaRejection};
use crate::limits::{CQ_BATCH, CQ_BATCHES_PER_TURN, DEADLINE_GRANULARITY, RDMA_WORK_PER_COMMAND};
use crate::link::registration::Registration;
use crate::link::{Event, Queue};
use crate::memory::Carved;
use crate::options::Options;
use crate::rdma_connection::{Placement, RdmaConnection, Violation};
use crate::slots::{Command, Left};

/// A connection and its queue pair.
#[derive(Debug)]
pub(crate) struct RdmaLink {
    addr: SocketAddr,
    queue: Queue,
    arena: &'static Arena,
    connection: RdmaConnection,
    // Before the connection manager's part, which a queue pair needs to the end.
    end: Option<End>,
    id: CmId,
    channel: EventChannel,
    /// The connection manager has something to tell.
    told: bool,
    /// The connection is open, which has not been reported yet.
    opened: bool,
    /// Why the connection is over, for the next turn to say.
    failed: Option<Error>,
    /// The connection must be open by then.
    open_by: Option<(Instant, Duration)>,
    /// When time-outs and the connection manager are looked at again.
    check_at: Instant,
}

/// What a connection has of its device.
#[derive(Debug)]
struct End {
    // Dropped first: with it ends all use of the memory, of this and of the commands.
    qp: RdmaQp,
    cq: Cq,
    memory: Carved,
    /// Commands at a time: before the responses, the memory has so many capsules.
    depth: u16,
    _registration: Arc<Registration>,
}

/// What a work request is: in the upper half of its id, above a place or the number of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Receive,
    Bind,
    Send,
    Invalidate,
}

const SQE_BYTES: u32 = size_of::<Sqe>() as u32;
const CQE_BYTES: u32 = size_of::<Cqe>() as u32;

impl RdmaLink {
    /// As [`Link::open`](crate::link::Link::open).
    pub(crate) fn open(
        now: Instant,
        options: &Options,
        queue: Queue,
        arena: &'static Arena,
    ) -> Result<Self, Error> {
        let (addr, limit) = (options.addr, options.connect_timeout);
        let wrap = |source| Error::Rdma { addr, source };
        let channel = EventChannel::new().map_err(wrap)?;
        let id = channel.create_id().map_err(wrap)?;
        id.resolve_addr(addr, limit).map_err(wrap)?;
        // On the admin queue data never is in capsules (NVMe/RDMA Transport 1.1, section 3.2).
        let in_capsule_bytes = if queue.qid == 0 { 0 } else { queue.in_capsule_bytes };
        Ok(Self {
            addr,
            queue,
            arena,
            connection: RdmaConnection::new(queue.depth, in_capsule_bytes),
            end: None,
            id,
            channel,
            told: false,
            opened: false,
            failed: None,
            open_by: Some((now + limit, limit)),
            check_at: now,
        })
    }

    pub(crate) fn turn(&mut self, now: Instant) -> Result<(), Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if now >= self.check_at {
            self.check_at = now + DEADLINE_GRANULARITY;
            self.check_time(now)?;
            self.told = true;
        }
        if self.told || self.open_by.is_some() {
            self.told = false;
            self.handle_cm_events()?;
        }
        self.flush()?;
        self.poll_cq().map(drop)
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.opened) {
            return Some(Event::Opened);
        }
        self.connection.poll_completed().map(Event::Completed)
    }

    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<(), Error> {
        let waits = self.end.as_ref().is_some_and(|end| end.qp.queued() > 0);
        if waits || self.opened || self.failed.is_some() || self.connection.has_completed() {
            return Ok(());
        }
        if let Some(end) = &mut self.end {
            end.cq.arm().map_err(|source| Error::Rdma { addr: self.addr, source })?;
        }
        // What has come before that is not told by the descriptor.
        match self.poll_cq() {
            Ok(0) => {}
            Ok(_) => return Ok(()),
            Err(error) => {
                self.failed = Some(error);
                return Ok(());
            }
        }
        let manager = self.channel.as_fd();
        let completions = self.end.as_ref().and_then(|end| end.cq.fd()).unwrap_or(manager);
        let mut fds = [manager, completions].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                let (addr, action) = (self.addr, "waiting");
                return Err(Error::Socket { addr, action, source: errno.into() });
            }
        }
        let told = fds[0].any() == Some(true);
        self.told |= told;
        Ok(())
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let opens = self.open_by.map(|(at, _)| at);
        [opens, self.connection.next_deadline()].into_iter().flatten().min()
    }

    #[inline]
    pub(crate) fn submit(&mut self, command: Command) -> bool {
        let Some(end) = &mut self.end else { return false };
        let Some(mut capsule) = self.connection.submit(command) else { return false };
        if let (true, Placement::Written(span)) = (command.may_be_short, capsule.data) {
            // How much of it the controller writes is not told: the rest reads as zeroes.
            span.clear();
        }
        let (place, connection) = (capsule.place, &mut self.connection);
        let mut bind = |span: DmaSpan, access| {
            let bound =
                end.qp.bind_window(id(Work::Bind, place), place.into(), sge(span), access, false);
            bound.map(|key| capsule.sqe.set_sgl(connection.handle_bound(place, span, key)))
        };
        let queued = match capsule.data {
            Placement::Read(span) => bind(span, Access { remote_read: true, ..Access::default() }),
            Placement::Written(span) => {
                bind(span, Access { remote_write: true, ..Access::default() })
            }
            Placement::None | Placement::InCapsule(_) => Ok(()),
        };
        let to = end.capsule(place);
        to.write_obj(0, &capsule.sqe);
        let queued = queued.and_then(|()| {
            let work = id(Work::Send, place);
            match capsule.data {
                Placement::InCapsule(data) => {
                    end.qp.send(work, &[sge(to), sge(data)], None, true, false)
                }
                _ => end.qp.send(work, &[sge(to)], None, true, false),
            }
        });
        // The command is taken: that it cannot be sent ends the connection, and it with it.
        if let Err(source) = queued {
            self.failed = Some(Error::Rdma { addr: self.addr, source });
        }
        true
    }

    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.connection.room()
    }

    #[inline]
    pub(crate) fn outstanding(&self) -> usize {
        self.connection.outstanding()
    }

    pub(crate) fn calls(&self) -> u64 {
        let counters = self.end.as_ref().map(|end| end.qp.counters()).unwrap_or_default();
        counters.recv_calls + counters.send_calls
    }

    /// Destroys the queue pair and its windows.
    pub(crate) fn close(mut self) -> Vec<Left> {
        self.end = None;
        self.connection.abandon()
    }

    fn handle_cm_events(&mut self) -> Result<(), Error> {
        let addr = self.addr;
        let wrap = |source| Error::Rdma { addr, source };
        while let Some(event) = self.channel.poll().map_err(wrap)? {
            match event {
                CmEvent::AddrResolved { .. } => {
                    let limit = self.open_by.map_or(DEADLINE_GRANULARITY, |(_, limit)| limit);
                    self.id.resolve_route(limit).map_err(wrap)?;
                }
                CmEvent::RouteResolved { .. } => self.connect()?,
                CmEvent::Established { data, .. } => self.handle_accepted(&data.private_data)?,
                CmEvent::Rejected { reason, private_data, .. } => {
                    let rejection = rejection(reason, &private_data);
                    return Err(Error::Rejected { addr, rejection });
                }
                CmEvent::ConnectFailed { step, status, .. } => {
                    return Err(Error::Unreachable { addr, step, status });
                }
                CmEvent::Disconnected { .. } => return Err(Error::Closed { addr }),
                CmEvent::DeviceRemoval { .. } => return Err(Error::DeviceRemoved { addr }),
                CmEvent::ConnectRequest { .. }
                | CmEvent::TimewaitExit { .. }
                | CmEvent::Other { .. } => {}
            }
        }
        Ok(())
    }

    /// The device is known: makes what belongs to it, and asks the controller for a connection.
    fn connect(&mut self) -> Result<(), Error> {
        let addr = self.addr;
        let wrap = |source| Error::Rdma { addr, source };
        let device = self.id.device().map_err(wrap)?;
        let limits = *device.limits();
        let registration = Registration::of(device, self.arena).map_err(wrap)?;
        let end = self.end.insert(End::new(&self.id, self.queue, registration, self.arena, addr)?);
        for number in 0..self.queue.entries {
            end.receive(number).map_err(wrap)?;
        }
        end.qp.flush().map_err(wrap)?;
        // The controller reads and writes; we never do.
        let params = ConnParams {
            initiator_depth: 0,
            responder_resources: limits.max_responder_reads,
            ..ConnParams::default()
        };
        let mut request = RequestPrivateData::new_zeroed();
        let Queue { qid, cntlid, entries, .. } = self.queue;
        (request.qid, request.cntlid) = (qid.into(), cntlid.into());
        (request.hrqsize, request.hsqsize_z) = (entries.into(), (entries - 1).into());
        self.id.connect(&params, request.as_bytes()).map_err(wrap)
    }

    fn handle_accepted(&mut self, data: &PrivateData) -> Result<(), Error> {
        // Without private data of its own a controller accepts nothing.
        let (recfmt, crqsize) = match AcceptPrivateData::read_from_prefix(data.as_bytes()) {
            Ok((accept, _)) => (accept.recfmt.get(), accept.crqsize.get()),
            Err(_) => (u16::MAX, 0),
        };
        let accepted = self.connection.handle_accepted(recfmt, crqsize);
        accepted.map_err(|violation| self.broken(violation))?;
        (self.open_by, self.opened) = (None, true);
        Ok(())
    }

    #[inline]
    fn flush(&mut self) -> Result<(), Error> {
        let Some(end) = &mut self.end else { return Ok(()) };
        end.qp.flush().map_err(|source| Error::Rdma { addr: self.addr, source })
    }

    /// Takes what has completed: how many work requests.
    #[inline]
    fn poll_cq(&mut self) -> Result<usize, Error> {
        let mut total = 0;
        for _ in 0..CQ_BATCHES_PER_TURN {
            let Some(end) = &mut self.end else { break };
            let mut completions = [Completion::EMPTY; CQ_BATCH];
            let polled = end.cq.poll(&mut completions);
            let count = polled.map_err(|source| Error::Rdma { addr: self.addr, source })?;
            for completion in &completions[..count] {
                self.handle_completion(completion)?;
            }
            total += count;
            if count < CQ_BATCH {
                break;
            }
        }
        Ok(total)
    }

    #[inline]
    fn handle_completion(&mut self, completion: &Completion) -> Result<(), Error> {
        let (work, number) = work_of(completion.wr_id());
        match completion.status() {
            WcStatus::SUCCESS => {}
            // What a disconnect looks like from here.
            WcStatus::FLUSHED => return Err(Error::Closed { addr: self.addr }),
            status => {
                let what = match work {
                    Work::Receive => "receiving a response",
                    Work::Bind => "binding a memory window",
                    Work::Send => "sending a capsule",
                    Work::Invalidate => "invalidating a memory window",
                };
                return Err(Error::Transfer { addr: self.addr, what, status });
            }
        }
        match work {
            Work::Receive => self.handle_response(number, completion)?,
            Work::Send => self.connection.handle_sent(number),
            Work::Invalidate => self.connection.handle_invalidated(number),
            Work::Bind => {}
        }
        Ok(())
    }

    /// A response has arrived. Its receive goes out again before anything that could need it.
    #[inline]
    fn handle_response(&mut self, number: u16, completion: &Completion) -> Result<(), Error> {
        let Some(end) = &mut self.end else { return Ok(()) };
        let cqe: Cqe = end.response(number).read_obj(0);
        let invalidated = completion.invalidated_rkey();
        let handled = self.connection.handle_response(completion.byte_len(), &cqe, invalidated);
        let place = match handled {
            Ok(place) => place,
            Err(violation) => return Err(self.broken(violation)),
        };
        let wrap = |source| Error::Rdma { addr: self.addr, source };
        end.receive(number).map_err(wrap)?;
        if let Some(place) = place {
            let work = id(Work::Invalidate, place);
            end.qp.invalidate_window(work, place.into(), true).map_err(wrap)?;
        }
        Ok(())
    }

    fn check_time(&self, now: Instant) -> Result<(), Error> {
        if let Some((at, limit)) = self.open_by
            && now >= at
        {
            let what = "opening a connection";
            return Err(Error::TimedOut { addr: self.addr, what, after: limit });
        }
        match self.connection.next_deadline() {
            Some(at) if now >= at => Err(Error::CommandTimedOut { addr: self.addr }),
            _ => Ok(()),
        }
    }

    fn broken(&self, violation: Violation) -> Error {
        Error::BrokenRdma { addr: self.addr, violation }
    }
}

impl End {
    fn new(
        id: &CmId,
        queue: Queue,
        registration: Arc<Registration>,
        arena: &'static Arena,
        addr: SocketAddr,
    ) -> Result<Self, Error> {
        let (depth, entries) = (u32::from(queue.depth), u32::from(queue.entries));
        let memory = Carved::new(arena, (depth * SQE_BYTES + entries * CQE_BYTES) as usize)?;
        let limits = QpLimits {
            max_recv_wr: entries,
            max_send_wr: depth * RDMA_WORK_PER_COMMAND,
            max_recv_sges: 1,
            // Command and data.
            max_send_sges: 2,
            max_inline_bytes: 0,
        };
        let make = || {
            let work = limits.max_recv_wr + limits.max_send_wr;
            let cq = Cq::with_channel(&registration.device, work)?;
            let mut qp = RdmaQp::new(id, &registration.mr, &cq.handle(), &cq.handle(), limits)?;
            qp.add_windows(depth)?;
            Ok((qp, cq))
        };
        let (qp, cq) = make().map_err(|source: VerbsError| Error::Rdma { addr, source })?;
        Ok(Self { qp, cq, memory, depth: queue.depth, _registration: registration })
    }

    /// The memory of a place's capsule.
    #[inline]
    fn capsule(&self, place: u16) -> DmaSpan {
        self.memory.span.subspan(u32::from(place) * SQE_BYTES, SQE_BYTES)
    }

    /// The memory of a response.
    #[inline]
    fn response(&self, number: u16) -> DmaSpan {
        let responses = u32::from(self.depth) * SQE_BYTES;
        self.memory.span.subspan(responses + u32::from(number) * CQE_BYTES, CQE_BYTES)
    }

    #[inline]
    fn receive(&mut self, number: u16) -> Result<(), VerbsError> {
        let to = sge(self.response(number));
        self.qp.recv(id(Work::Receive, number), &[to])
    }
}

#[inline]
fn id(work: Work, number: u16) -> u64 {
    (work as u64) << 32 | u64::from(number)
}

#[inline]
fn work_of(id: u64) -> (Work, u16) {
    let work = match id >> 32 {
        0 => Work::Receive,
        1 => Work::Bind,
        2 => Work::Send,
        _ => Work::Invalidate,
    };
    (work, id as u16)
}

#[inline]
fn sge(span: DmaSpan) -> Sge {
    Sge { addr: span.addr(), len: span.len() }
}

/// Why a connection was rejected. Its private data counts only where the controller did so itself.
fn rejection(reason: i32, data: &PrivateData) -> RdmaRejection {
    const BY_CONSUMER: i32 = 28;
    match RejectPrivateData::read_from_prefix(data.as_bytes()) {
        Ok((data, _)) if reason == BY_CONSUMER && data.recfmt.get() == 0 => {
            RdmaRejection::Controller { status: data.status.get() }
        }
        _ => RdmaRejection::Manager { reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_work_request_is_comes_back_with_it() {
        for work in [Work::Receive, Work::Bind, Work::Send, Work::Invalidate] {
            for number in [0, 7, u16::MAX] {
                assert_eq!(work_of(id(work, number)), (work, number));
            }
        }
    }
}
