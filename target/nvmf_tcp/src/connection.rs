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
    CapsuleCmd, CapsuleResp, CommonHeader, DGST_DATA, DGST_HEADER, DIGEST_BYTES, Data,
    FLAG_LAST_PDU, FLAG_SUCCESS, IcReq, IcResp, PFV_1_0, R2t, TermReq, alignment_bytes, fes,
    pdu_type,
};
use nvme_tcp::limits::{MAX_HEADER_BYTES, MAX_PDA_Z, MAX_QUOTED_BYTES};
use nvme_tcp::{Crc, Digests, Fault, Layout, Outbox, Piece, Sender, digest_of, layout};
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
    digests: Digests,
    slots: Vec<Slot>,
    /// Data that a capsule may carry, bytes.
    most_capsule_data: u32,
    free: Vec<u16>,
    receiving: Receiving,
    /// Bytes before the data of the PDU that is being received.
    header: [u8; MAX_HEADER_BYTES],
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

/// Where the next bytes belong.
#[derive(Debug)]
enum Receiving {
    /// Into the header: so many are there; the layout is known once the common header is.
    Header { have: usize, layout: Option<Layout> },
    /// A capsule with a complete header waits for a slot.
    AwaitSlot { layout: Layout },
    /// Into memory; nowhere (`None`) for the data of a termination request.
    Data { layout: Layout, owner: Owner, to: Option<DmaSpan>, at: u32, crc: Option<Crc> },
    /// The digest of the data.
    DataDigest { layout: Layout, owner: Owner, crc: Crc, got: [u8; DIGEST_BYTES], have: usize },
}

/// Whose data it is.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Capsule(u16),
    Transfer(u16),
    Nobody,
}

const NEXT_HEADER: Receiving = Receiving::Header { have: 0, layout: None };
const COMMON_BYTES: usize = size_of::<CommonHeader>();

impl Connection {
    /// A connection that was just accepted. `pages` has the memory of one slot for each command
    /// that the queue holds: as much as a capsule may carry.
    pub fn new(config: ConnectionConfig, pages: &[DmaSpan]) -> Self {
        let mut connection = Self {
            config,
            phase: Phase::Initializing,
            digests: Digests::default(),
            slots: Vec::new(),
            most_capsule_data: 0,
            free: Vec::new(),
            receiving: NEXT_HEADER,
            header: [0; MAX_HEADER_BYTES],
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
        while self.event.is_none() && self.phase != Phase::Ended {
            let taken = match self.receive(rest) {
                Ok(Some(taken)) => taken,
                Ok(None) => break,
                Err(fault) => {
                    self.end(fault);
                    break;
                }
            };
            rest = &rest[taken..];
        }
        input.len() - rest.len()
    }

    /// Where the next received bytes belong, if they are data: they may be put there directly, and
    /// are reported by [`Connection::handle_payload`] then.
    pub fn payload(&self) -> Option<DmaSpan> {
        match &self.receiving {
            Receiving::Data { to: Some(to), at, .. }
                if self.event.is_none() && self.phase != Phase::Ended =>
            {
                Some(to.subspan(*at, to.len() - at))
            }
            _ => None,
        }
    }

    /// The first `bytes` of [`Connection::payload`] have been received.
    pub fn handle_payload(&mut self, bytes: u32) {
        let Receiving::Data { to: Some(to), at, crc, .. } = &mut self.receiving else { return };
        let bytes = bytes.min(to.len() - *at);
        if let Some(crc) = crc {
            crc.add_span(to.subspan(*at, bytes));
        }
        *at += bytes;
        self.finish_data_if_complete();
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

    /// Takes the beginning of `input` to where it belongs: how much. `None`: more is needed.
    fn receive(&mut self, input: &[u8]) -> Result<Option<usize>, Fault> {
        match &mut self.receiving {
            Receiving::Header { have, layout: known } => {
                let need = known.map_or(COMMON_BYTES, |layout| layout.before_data);
                let taken = input.len().min(need - *have);
                self.header[*have..*have + taken].copy_from_slice(&input[..taken]);
                *have += taken;
                if *have < need {
                    return Ok((taken > 0).then_some(taken));
                }
                let layout = match *known {
                    Some(layout) => layout,
                    None => self.layout()?,
                };
                if layout.before_data > need {
                    self.receiving = Receiving::Header { have: need, layout: Some(layout) };
                } else {
                    self.handle_header(layout)?;
                }
                Ok(Some(taken))
            }
            Receiving::AwaitSlot { layout } => {
                let layout = *layout;
                if self.free.is_empty() {
                    return Ok(None);
                }
                self.handle_capsule(layout)?;
                Ok(Some(0))
            }
            Receiving::Data { layout, to, at, crc, .. } => {
                let taken = input.len().min((layout.data - *at) as usize);
                if taken == 0 {
                    return Ok(None);
                }
                let bytes = &input[..taken];
                if let Some(to) = to {
                    to.write(*at, bytes);
                }
                if let Some(crc) = crc {
                    crc.add(bytes);
                }
                *at += taken as u32;
                self.finish_data_if_complete();
                Ok(Some(taken))
            }
            Receiving::DataDigest { owner, crc, got, have, .. } => {
                let taken = input.len().min(DIGEST_BYTES - *have);
                if taken == 0 {
                    return Ok(None);
                }
                got[*have..*have + taken].copy_from_slice(&input[..taken]);
                *have += taken;
                if *have == DIGEST_BYTES {
                    let (owner, intact) = (*owner, crc.to_bytes() == *got);
                    self.complete(owner, intact);
                }
                Ok(Some(taken))
            }
        }
    }

    /// How the PDU lies whose common header is there.
    fn layout(&self) -> Result<Layout, Fault> {
        let (common, _) = CommonHeader::ref_from_prefix(&self.header)
            .map_err(|_| Fault::of(fes::INVALID_HEADER_FIELD))?;
        let layout = layout(common, Sender::Host, self.digests)?;
        let first = layout.pdu_type == pdu_type::IC_REQ;
        if first != (self.phase == Phase::Initializing) {
            return Err(Fault::of(fes::SEQUENCE_ERROR));
        }
        let most = match layout.pdu_type {
            pdu_type::H2C_TERM_REQ => MAX_QUOTED_BYTES as u32,
            // As much as its slot has room for, which is known when it gets one.
            pdu_type::CAPSULE_CMD => u32::MAX,
            _ => MAX_H2C_DATA_BYTES,
        };
        match layout.data <= most {
            true => Ok(layout),
            false if layout.pdu_type == pdu_type::H2C_DATA => Err(Fault::of(fes::LIMIT_EXCEEDED)),
            false => Err(Fault::field(offset_of!(CommonHeader, plen))),
        }
    }

    /// All bytes before the data are there.
    fn handle_header(&mut self, layout: Layout) -> Result<(), Fault> {
        if layout.header_digest {
            let (header, rest) = self.header.split_at(layout.hlen);
            let got = rest.first_chunk::<DIGEST_BYTES>().copied().unwrap_or_default();
            if digest_of(header) != got {
                let fei = u32::from_le_bytes(got);
                return Err(Fault { fes: fes::HEADER_DIGEST_ERROR, fei });
            }
        }
        match layout.pdu_type {
            pdu_type::IC_REQ => self.handle_ic_req(),
            pdu_type::CAPSULE_CMD => self.handle_capsule(layout),
            pdu_type::H2C_DATA => self.handle_data_header(layout),
            _ => {
                self.handle_data(layout, Owner::Nobody, None);
                Ok(())
            }
        }
    }

    fn handle_ic_req(&mut self) -> Result<(), Fault> {
        let (request, _) = IcReq::ref_from_prefix(&self.header)
            .map_err(|_| Fault::of(fes::INVALID_HEADER_FIELD))?;
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
        self.digests = digests;
        self.phase = Phase::Open;
        self.receiving = NEXT_HEADER;
        Ok(())
    }

    fn handle_capsule(&mut self, layout: Layout) -> Result<(), Fault> {
        let (capsule, _) = CapsuleCmd::ref_from_prefix(&self.header)
            .map_err(|_| Fault::of(fes::INVALID_HEADER_FIELD))?;
        if layout.data > self.most_capsule_data {
            return Err(Fault::field(offset_of!(CommonHeader, plen)));
        }
        let Some(slot) = self.free.pop() else {
            self.receiving = Receiving::AwaitSlot { layout };
            return Ok(());
        };
        let it = &mut self.slots[usize::from(slot)];
        it.cid = capsule.sqe.cid();
        it.state = SlotState::Busy;
        let to = (layout.data > 0).then(|| it.page.subspan(0, layout.data));
        self.handle_data(layout, Owner::Capsule(slot), to);
        Ok(())
    }

    /// Data for a command must be what its R2T asked for, from the beginning to the end.
    fn handle_data_header(&mut self, layout: Layout) -> Result<(), Fault> {
        let (data, _) = Data::ref_from_prefix(&self.header)
            .map_err(|_| Fault::of(fes::INVALID_HEADER_FIELD))?;
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
        let part = to.subspan(received, layout.data);
        self.handle_data(layout, Owner::Transfer(slot), Some(part));
        Ok(())
    }

    /// From here on data is received, if there is any.
    fn handle_data(&mut self, layout: Layout, owner: Owner, to: Option<DmaSpan>) {
        let crc = layout.data_digest.then(Crc::new);
        self.receiving = Receiving::Data { layout, owner, to, at: 0, crc };
        self.finish_data_if_complete();
    }

    fn finish_data_if_complete(&mut self) {
        let Receiving::Data { layout, owner, at, crc, .. } = &mut self.receiving else { return };
        if *at < layout.data {
            return;
        }
        let (layout, owner) = (*layout, *owner);
        match crc.take() {
            Some(crc) => {
                let got = [0; DIGEST_BYTES];
                self.receiving = Receiving::DataDigest { layout, owner, crc, got, have: 0 };
            }
            None => self.complete(owner, true),
        }
    }

    /// A PDU is complete.
    fn complete(&mut self, owner: Owner, intact: bool) {
        let layout = match &self.receiving {
            Receiving::Data { layout, .. } | Receiving::DataDigest { layout, .. } => *layout,
            Receiving::Header { .. } | Receiving::AwaitSlot { .. } => return,
        };
        self.receiving = NEXT_HEADER;
        match owner {
            Owner::Capsule(slot) => {
                let Ok((capsule, _)) = CapsuleCmd::ref_from_prefix(&self.header) else { return };
                let page = self.slots[usize::from(slot)].page;
                let data = (layout.data > 0).then(|| page.subspan(0, layout.data));
                self.event =
                    Some(ConnectionEvent::Capsule { slot, sqe: capsule.sqe, data, intact });
            }
            Owner::Transfer(slot) => self.complete_transfer(slot, layout.data, intact),
            Owner::Nobody => {
                self.phase = Phase::Ended;
                let fes = TermReq::ref_from_prefix(&self.header).map_or(0, |(it, _)| it.fes.get());
                self.event = Some(ConnectionEvent::Refused { fes });
            }
        }
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
        // The header that was wrong, as far as it is there.
        let have = match &self.receiving {
            Receiving::Header { have, .. } => *have,
            _ => COMMON_BYTES,
        };
        self.outbox.push_plain(&term, &self.header[..have.min(MAX_QUOTED_BYTES)]);
        self.event = Some(ConnectionEvent::Broken(fault));
    }
}
