//! The state machine of one connection.
//!
//! ```text
//!  received:  header ──> data ──> data digest ──> (the PDU is complete) ──> header ...
//!                └──────────────────────────────────────^
//!  a slot:    Free ──capsule──> Busy ──fetch──> Receiving ──all data──> Busy ──respond──> Leaving
//!               ^                                                                            │
//!               └──────────────────────────────── the response has left ─────────────────────┘
//! ```

use std::mem::offset_of;

use dma::DmaSpan;
use nvme_spec::command::{Cqe, Sqe};
use nvme_spec::tcp::{
    CapsuleCmd, CapsuleResp, CommonHeader, DGST_DATA, DGST_HEADER, Data, FLAG_LAST_PDU,
    FLAG_SUCCESS, IcReq, IcResp, PFV_1_0, R2t, TermReq, alignment_bytes, fes, pdu_type,
};
use nvme_tcp::limits::{MAX_PDA_Z, MAX_QUOTED_BYTES};
use nvme_tcp::{Digests, Fault, Layout, Outbox, Piece, Received, Receiver, Sender};
use zerocopy::{FromBytes, FromZeros};

use crate::limits::MAX_H2C_DATA_BYTES;

/// What happened on a connection.
#[derive(Clone, Copy, Debug)]
pub enum ConnectionEvent {
    /// A command capsule. It keeps its slot until its response has left.
    Capsule {
        /// Its slot.
        slot: u16,
        /// The command.
        sqe: Sqe,
        /// What followed it in the capsule, in the slot's own memory.
        data: Option<DmaSpan>,
        /// Its data is what was sent; otherwise the answer is Transient Transport Error.
        intact: bool,
    },
    /// The data that [`Connection::fetch`] asked for is there.
    Fetched {
        /// Whose.
        slot: u16,
        /// As in a capsule.
        intact: bool,
    },
    /// A response has left, and its memory may be used again; the slot is free.
    Responded {
        /// Which.
        slot: u16,
    },
    /// The host has broken the rules, and is told so when what waits to be sent has left; nothing
    /// more is taken from it.
    Broken(Fault),
    /// The host says that we have broken the rules. It ends the connection.
    Refused {
        /// Fatal error status that the host gives.
        fes: u16,
    },
}

/// How a connection works.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionConfig {
    /// Digests that are used when the host wants them.
    pub header_digest: bool,
    /// As for headers.
    pub data_digest: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    config: ConnectionConfig,
    phase: Phase,
    slots: Vec<Slot>,
    /// Data that a capsule may carry, bytes.
    most_capsule_data: u32,
    free: Vec<u16>,
    receiver: Receiver,
    incoming: Incoming,
    outbox: Outbox,
    /// What was received and not reported yet; nothing more is taken before it is.
    event: Option<ConnectionEvent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing but ICReq may come.
    Initializing,
    Open,
    /// A fatal error: nothing more is taken.
    Ended,
}

#[derive(Debug)]
struct Slot {
    /// Memory for data in the capsule.
    page: DmaSpan,
    cid: u16,
    state: SlotState,
    /// A part of the data did not match its digest.
    broken: bool,
}

#[derive(Clone, Copy, Debug)]
enum SlotState {
    Free,
    /// The command is with the engine.
    Busy,
    /// An R2T for all of the data is out; so much has come.
    Receiving {
        to: DmaSpan,
        received: u32,
    },
    /// Its response is being sent.
    Leaving,
}

/// What the data is for that is being received.
#[derive(Clone, Copy, Debug)]
enum Incoming {
    /// There is none.
    None,
    /// A capsule with a complete header waits for a slot.
    AwaitSlot { layout: Layout },
    /// So many bytes in a capsule.
    Capsule { slot: u16, bytes: u32 },
    /// So many bytes for an R2T.
    Transfer { slot: u16, bytes: u32 },
}

impl Connection {
    /// A connection that was just accepted. `pages` has the memory of one slot for each command
    /// that the queue holds: as much as a capsule may carry.
    pub fn new(config: ConnectionConfig, pages: &[DmaSpan]) -> Self {
        let mut connection = Self {
            config,
            phase: Phase::Initializing,
            slots: Vec::new(),
            most_capsule_data: 0,
            free: Vec::new(),
            receiver: Receiver::new(Sender::Host),
            incoming: Incoming::None,
            outbox: Outbox::default(),
            event: None,
        };
        connection.grow(pages);
        connection
    }

    /// More slots: a connection learns by its Connect command what its queue is and how many
    /// commands it holds. From now on a capsule may carry as much as every slot has room for.
    pub fn grow(&mut self, pages: &[DmaSpan]) {
        let first = self.slots.len();
        let count = u16::try_from(first + pages.len()).expect("a queue has at most 65535 entries");
        let slot = |&page| Slot { page, cid: 0, state: SlotState::Free, broken: false };
        self.slots.extend(pages.iter().map(slot));
        self.free.reserve(pages.len());
        self.free.extend((first as u16..count).rev());
        self.outbox.grow(self.slots.len());
        let shortest = self.slots.iter().map(|slot| slot.page.len()).min();
        self.most_capsule_data = shortest.unwrap_or_default();
    }

    /// Whether something has happened that was not asked for yet.
    pub fn has_event(&self) -> bool {
        self.event.is_some() || self.outbox.has_left()
    }

    /// What happened; asked until there is nothing more, after each other call that takes input.
    pub fn poll_event(&mut self) -> Option<ConnectionEvent> {
        if let Some(slot) = self.outbox.pop_left() {
            let it = self.slots.get_mut(usize::from(slot))?;
            it.state = SlotState::Free;
            self.free.push(slot);
            return Some(ConnectionEvent::Responded { slot });
        }
        self.event.take()
    }

    /// Takes received bytes, up to the next event: how many. Fewer than there are: report the event
    /// first. None: nothing can be taken until a response has left, or ever again.
    pub fn handle_input(&mut self, input: &[u8]) -> usize {
        let mut rest = input;
        while self.takes_input() {
            let outcome = match self.incoming {
                Incoming::AwaitSlot { .. } if self.free.is_empty() => break,
                Incoming::AwaitSlot { layout } => self.handle_capsule(layout),
                _ if rest.is_empty() => break,
                _ => match self.receiver.receive(rest) {
                    Ok((taken, received)) => {
                        rest = &rest[taken..];
                        received.map_or(Ok(()), |received| self.handle_received(received))
                    }
                    Err(fault) => Err(fault),
                },
            };
            if let Err(fault) = outcome {
                self.end(fault);
            }
        }
        input.len() - rest.len()
    }

    /// Where the next received bytes belong, if they are data: they may be put there directly, and
    /// are reported by [`Connection::handle_payload`] then.
    pub fn payload(&self) -> Option<DmaSpan> {
        self.takes_input().then(|| self.receiver.payload())?
    }

    /// The first `bytes` of [`Connection::payload`] have been received.
    pub fn handle_payload(&mut self, bytes: u32) {
        if !self.takes_input() {
            return;
        }
        if let Some(received) = self.receiver.handle_payload(bytes)
            && let Err(fault) = self.handle_received(received)
        {
            self.end(fault);
        }
    }

    /// Asks the host for the data of a slot's command, all of it at once, to be put into `to`.
    /// Once the host was told that it is over, nothing is asked for.
    pub fn fetch(&mut self, slot: u16, to: DmaSpan) {
        let Some(it) = self.slots.get_mut(usize::from(slot)) else { return };
        if self.phase == Phase::Ended {
            return;
        }
        it.state = SlotState::Receiving { to, received: 0 };
        let mut r2t = R2t::new_zeroed();
        r2t.header.pdu_type = pdu_type::R2T;
        r2t.cccid = it.cid.into();
        r2t.ttag = slot.into();
        r2t.r2tl = to.len().into();
        self.outbox.push(&r2t, None, None);
    }

    /// Sends a slot's data, if there is any, and its response. Without flow control of the
    /// submission queue, a response that says nothing but success is left out: a flag of the data
    /// says as much.
    pub fn respond(&mut self, slot: u16, cqe: &Cqe, data: Option<DmaSpan>, flow_control: bool) {
        let Some(it) = self.slots.get_mut(usize::from(slot)) else { return };
        if self.phase == Phase::Ended {
            return;
        }
        it.state = SlotState::Leaving;
        let plain = !flow_control && cqe.status().is_success() && cqe.result() == 0;
        if let Some(span) = data {
            let mut data = Data::new_zeroed();
            data.header.pdu_type = pdu_type::C2H_DATA;
            data.header.flags = FLAG_LAST_PDU | if plain { FLAG_SUCCESS } else { 0 };
            data.cccid = it.cid.into();
            data.datal = span.len().into();
            self.outbox.push(&data, Some(span), plain.then_some(slot));
            if plain {
                return;
            }
        }
        let mut response = CapsuleResp::new_zeroed();
        response.header.pdu_type = pdu_type::CAPSULE_RESP;
        response.cqe = *cqe;
        self.outbox.push(&response, None, Some(slot));
    }

    /// What is to be sent, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.outbox.pieces()
    }

    /// The first `bytes` of all pieces have left.
    pub fn handle_sent(&mut self, bytes: usize) {
        self.outbox.handle_sent(bytes);
    }

    /// Everything has left.
    pub fn is_idle(&self) -> bool {
        self.outbox.is_empty()
    }

    fn takes_input(&self) -> bool {
        self.event.is_none() && self.phase != Phase::Ended
    }

    fn handle_received(&mut self, received: Received) -> Result<(), Fault> {
        match received {
            Received::Header(layout) => self.handle_header(layout),
            Received::Data { intact } => self.handle_data_end(intact),
            // Data has one place, which is as long as it is.
            Received::Full => Ok(()),
        }
    }

    /// All bytes before the data are there.
    fn handle_header(&mut self, layout: Layout) -> Result<(), Fault> {
        let first = layout.pdu_type == pdu_type::IC_REQ;
        if first != (self.phase == Phase::Initializing) {
            return Err(Fault::of(fes::SEQUENCE_ERROR));
        }
        match layout.pdu_type {
            pdu_type::IC_REQ => self.handle_ic_req(),
            pdu_type::CAPSULE_CMD => self.handle_capsule(layout),
            pdu_type::H2C_DATA => self.handle_data_header(layout),
            _ => self.handle_term_req(layout),
        }
    }

    fn handle_ic_req(&mut self) -> Result<(), Fault> {
        let request: IcReq = self.read_header()?;
        let unsupported = |at: usize| Fault { fes: fes::UNSUPPORTED_PARAMETER, fei: at as u32 };
        if request.pfv.get() != PFV_1_0 {
            return Err(unsupported(offset_of!(IcReq, pfv)));
        }
        if request.hpda_z > MAX_PDA_Z {
            return Err(unsupported(offset_of!(IcReq, hpda_z)));
        }
        let digests = Digests {
            header: self.config.header_digest && request.dgst & DGST_HEADER != 0,
            data: self.config.data_digest && request.dgst & DGST_DATA != 0,
        };
        let mut response = IcResp::new_zeroed();
        response.header.pdu_type = pdu_type::IC_RESP;
        response.dgst |= if digests.header { DGST_HEADER } else { 0 };
        response.dgst |= if digests.data { DGST_DATA } else { 0 };
        response.maxh2cdata = MAX_H2C_DATA_BYTES.into();
        self.outbox.push_plain(&response, &[]);
        self.outbox.negotiated(digests, alignment_bytes(request.hpda_z) as usize);
        self.receiver.negotiated(digests);
        self.phase = Phase::Open;
        Ok(())
    }

    fn handle_capsule(&mut self, layout: Layout) -> Result<(), Fault> {
        let capsule: CapsuleCmd = self.read_header()?;
        if layout.data > self.most_capsule_data {
            return Err(Fault::field(offset_of!(CommonHeader, plen)));
        }
        let Some(slot) = self.free.pop() else {
            self.incoming = Incoming::AwaitSlot { layout };
            return Ok(());
        };
        let it = &mut self.slots[usize::from(slot)];
        it.cid = capsule.sqe.cid();
        it.state = SlotState::Busy;
        if layout.data == 0 {
            self.incoming = Incoming::None;
            let sqe = capsule.sqe;
            self.event = Some(ConnectionEvent::Capsule { slot, sqe, data: None, intact: true });
            return Ok(());
        }
        self.incoming = Incoming::Capsule { slot, bytes: layout.data };
        self.receiver.place(it.page);
        Ok(())
    }

    /// Data for a command must be what its R2T asked for, from the beginning to the end.
    fn handle_data_header(&mut self, layout: Layout) -> Result<(), Fault> {
        if layout.data > MAX_H2C_DATA_BYTES {
            return Err(Fault::of(fes::LIMIT_EXCEEDED));
        }
        let data: Data = self.read_header()?;
        let slot = data.ttag.get();
        let it = self.slots.get(usize::from(slot));
        let Some((&Slot { cid, .. }, SlotState::Receiving { to, received })) =
            it.map(|it| (it, it.state))
        else {
            return Err(Fault::field(offset_of!(Data, ttag)));
        };
        if data.cccid.get() != cid {
            return Err(Fault::field(offset_of!(Data, cccid)));
        }
        if data.datal.get() != layout.data || layout.data == 0 {
            return Err(Fault::field(offset_of!(Data, datal)));
        }
        if data.datao.get() != received || layout.data > to.len() - received {
            return Err(Fault::of(fes::DATA_OUT_OF_RANGE));
        }
        let ends = received + layout.data == to.len();
        if (data.header.flags & FLAG_LAST_PDU != 0) != ends {
            return Err(Fault::field(offset_of!(CommonHeader, flags)));
        }
        self.incoming = Incoming::Transfer { slot, bytes: layout.data };
        self.receiver.place(to.subspan(received, layout.data));
        Ok(())
    }

    /// What the host quotes is of no use to us, so that nothing more is received.
    fn handle_term_req(&mut self, layout: Layout) -> Result<(), Fault> {
        if layout.data > MAX_QUOTED_BYTES as u32 {
            return Err(Fault::field(offset_of!(CommonHeader, plen)));
        }
        let fes = self.read_header::<TermReq>()?.fes.get();
        self.phase = Phase::Ended;
        self.event = Some(ConnectionEvent::Refused { fes });
        Ok(())
    }

    /// The data of a PDU is there.
    fn handle_data_end(&mut self, intact: bool) -> Result<(), Fault> {
        match std::mem::replace(&mut self.incoming, Incoming::None) {
            Incoming::Capsule { slot, bytes } => {
                let sqe = self.read_header::<CapsuleCmd>()?.sqe;
                let data = Some(self.slots[usize::from(slot)].page.subspan(0, bytes));
                self.event = Some(ConnectionEvent::Capsule { slot, sqe, data, intact });
            }
            Incoming::Transfer { slot, bytes } => self.complete_transfer(slot, bytes, intact),
            Incoming::None | Incoming::AwaitSlot { .. } => {}
        }
        Ok(())
    }

    fn read_header<T: FromBytes>(&self) -> Result<T, Fault> {
        self.receiver.header().ok_or(Fault::of(fes::INVALID_HEADER_FIELD))
    }

    /// A part of a transfer is there. One broken part breaks the transfer; the rest of it comes
    /// nevertheless.
    fn complete_transfer(&mut self, slot: u16, bytes: u32, intact: bool) {
        let it = &mut self.slots[usize::from(slot)];
        let SlotState::Receiving { to, received } = it.state else { return };
        let received = received + bytes;
        it.broken |= !intact;
        if received < to.len() {
            it.state = SlotState::Receiving { to, received };
            return;
        }
        it.state = SlotState::Busy;
        let intact = !std::mem::take(&mut it.broken);
        self.event = Some(ConnectionEvent::Fetched { slot, intact });
    }

    /// A fatal error: the host is told, and what waits and has not begun to leave is dropped.
    fn end(&mut self, fault: Fault) {
        self.phase = Phase::Ended;
        self.outbox.truncate();
        let mut term = TermReq::new_zeroed();
        term.header.pdu_type = pdu_type::C2H_TERM_REQ;
        term.fes = fault.fes.into();
        term.fei = fault.fei.into();
        self.outbox.push_plain(&term, self.receiver.quoted());
        self.event = Some(ConnectionEvent::Broken(fault));
    }
}
