//! The host's end of one NVMe/TCP connection, without I/O.
//!
//! ```text
//!  a command:  submit ──> capsule leaves ──> (R2T ──> H2CData leaves)* ──┐
//!                                  └───────> C2HData*  ──────────────────┼──> answer ──> Completed
//!                                  └─────────────────────────────────────┘
//! ```
//!
//! Nothing that the controller sends reaches beyond the memory of the command that it names. Data
//! comes and is asked for from the beginning to the end, without gaps and never twice; whatever
//! breaks a rule ends the connection. An answer that comes before all PDUs of its command have left
//! is kept until they have, because until then their memory is in use.

use std::collections::VecDeque;
use std::mem::offset_of;
use std::time::Instant;

use dma::DmaSpan;
use nvme_spec::command::Cqe;
use nvme_spec::opcode::{self, DataDirection};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::tcp::{
    CapsuleCmd, CapsuleResp, CommonHeader, DGST_DATA, DGST_HEADER, Data, FLAG_LAST_PDU,
    FLAG_SUCCESS, IcReq, IcResp, MAXH2CDATA_MIN, PFV_1_0, R2t, TermReq, alignment_bytes, fes,
    pdu_type,
};
use nvme_tcp::limits::MAX_PDA_Z;
use nvme_tcp::{Digests, Fault, Layout, Outbox, Piece, Received, Receiver, Sender};
use zerocopy::{FromBytes, FromZeros};

use crate::limits::ADMIN_IN_CAPSULE_BYTES;
use crate::slots::{Answer, Command, Completed, Left, Slots, Transfer};

/// What happened on a connection.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// The connection is initialized: commands may be submitted.
    Opened,
    /// A command has come to its end.
    Completed(Completed),
    /// The controller has broken the rules, and is told so when what has begun to leave has left;
    /// nothing more is taken from it.
    Broken(Fault),
    /// The controller says that we have broken the rules. Nothing more is taken from it.
    Refused {
        /// Fatal error status that the controller gives.
        fes: u16,
    },
}

/// One connection, which is one queue.
#[derive(Debug)]
pub struct Connection {
    /// Digests that were asked for.
    digests: Digests,
    /// Most data in the capsule of an I/O command.
    in_capsule_bytes: u32,
    /// Most data in one H2CData.
    max_h2c_data: u32,
    phase: Phase,
    slots: Slots,
    receiver: Receiver,
    /// The C2HData that is being received.
    incoming: Option<Incoming>,
    outbox: Outbox,
    /// Places of commands that were answered and have left since.
    left: VecDeque<u16>,
    /// What was received and not reported yet; nothing more is taken before it is.
    event: Option<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing but ICResp may come.
    Initializing,
    Open,
    Ended,
}

/// Data of a command that is on its way to us.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    index: u16,
    /// Bytes that have no place yet.
    due: u32,
    /// The command has succeeded when all of it is there.
    success: bool,
}

impl Connection {
    /// A connection that begins by asking for these digests, for `depth` commands at a time.
    pub fn new(digests: Digests, depth: u16) -> Self {
        let mut request = IcReq::new_zeroed();
        request.header.pdu_type = pdu_type::IC_REQ;
        request.pfv = PFV_1_0.into();
        request.dgst |= if digests.header { DGST_HEADER } else { 0 };
        request.dgst |= if digests.data { DGST_DATA } else { 0 };
        // HPDA 0 and one R2T at a time: zeroes.
        let mut outbox = Outbox::default();
        outbox.grow(usize::from(depth));
        outbox.push_plain(&request, &[]);
        Self {
            digests,
            in_capsule_bytes: 0,
            max_h2c_data: MAXH2CDATA_MIN,
            phase: Phase::Initializing,
            slots: Slots::new(depth),
            receiver: Receiver::new(Sender::Controller),
            incoming: None,
            outbox,
            left: VecDeque::with_capacity(usize::from(depth)),
            event: None,
        }
    }

    /// From now on capsules of I/O commands carry up to so much data.
    pub fn set_in_capsule_bytes(&mut self, bytes: u32) {
        self.in_capsule_bytes = bytes;
    }

    /// Sends a command; `false`: it was not taken, because the connection is not open or has no
    /// place for it.
    #[inline]
    pub fn submit(&mut self, mut command: Command) -> bool {
        if self.phase != Phase::Open {
            return false;
        }
        let bytes = command.data.bytes();
        let capsule = self.in_capsule(&command);
        command.sqe.set_sgl(match capsule {
            Some(span) => SglDescriptor::in_capsule(0, span.len()),
            None => SglDescriptor::transport(bytes),
        });
        let Some((index, cid)) = self.slots.take(command) else { return false };
        let mut pdu = CapsuleCmd::new_zeroed();
        pdu.header.pdu_type = pdu_type::CAPSULE_CMD;
        pdu.sqe = command.sqe;
        pdu.sqe.cid = cid.into();
        self.outbox.push(&pdu, capsule, Some(index));
        if let Some(it) = self.slots.get(index) {
            it.leaving = 1;
            it.moved = capsule.map_or(0, |span| span.len());
        }
        true
    }

    /// What happened; asked until there is nothing more, after each other call.
    #[inline]
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(index) = self.left.pop_front()
            && let Some(it) = self.slots.release(index)
        {
            let answer = it.answer.unwrap_or(Answer::SUCCESS);
            return Some(Event::Completed(it.completed(answer)));
        }
        self.event.take()
    }

    /// Takes received bytes, up to the next event: how many. Fewer than there are: report the event
    /// first, or nothing is taken ever again.
    pub fn handle_input(&mut self, input: &[u8]) -> usize {
        let mut rest = input;
        while self.takes_input() && !rest.is_empty() {
            let outcome = match self.receiver.receive(rest) {
                Ok((taken, received)) => {
                    rest = &rest[taken..];
                    received.map_or(Ok(()), |received| self.handle_received(received))
                }
                Err(fault) => Err(fault),
            };
            if let Err(fault) = outcome {
                self.end(fault);
            }
        }
        input.len() - rest.len()
    }

    /// Where the next received bytes belong, if they are data: they may be put there directly, and
    /// are reported by [`Connection::handle_payload`] then.
    #[inline]
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

    /// What is to be sent, in order.
    #[inline]
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.outbox.pieces()
    }

    /// The first `bytes` of all pieces have left.
    #[inline]
    pub fn handle_sent(&mut self, bytes: usize) {
        self.outbox.handle_sent(bytes);
        while let Some(index) = self.outbox.pop_left() {
            let Some(it) = self.slots.get(index) else { continue };
            it.leaving = it.leaving.saturating_sub(1);
            if it.leaving > 0 {
                continue;
            }
            match it.answer {
                Some(_) => self.left.push_back(index),
                // The last words may have been queued meanwhile.
                None if self.phase == Phase::Ended => {}
                None => self.send_data(index),
            }
        }
    }

    /// Everything has left.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.outbox.is_empty()
    }

    /// How many more commands fit.
    #[inline]
    pub fn room(&self) -> usize {
        if self.phase == Phase::Open { self.slots.room() } else { 0 }
    }

    /// How many commands are on their way.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.slots.count()
    }

    /// The earliest time when a command has taken too long.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.slots.next_deadline()
    }

    /// Ends the connection and tells what was on its way. Nothing more is received or sent for any
    /// of them: the caller closes the socket, and their memory is free.
    pub fn abandon(&mut self) -> Vec<Left> {
        self.phase = Phase::Ended;
        self.slots.drain()
    }

    #[inline]
    fn takes_input(&self) -> bool {
        self.event.is_none() && self.phase != Phase::Ended
    }

    /// The data that the capsule of a command carries.
    #[inline]
    fn in_capsule(&self, command: &Command) -> Option<DmaSpan> {
        if command.direction() != DataDirection::HostToController {
            return None;
        }
        let most = match command.sqe.opcode() {
            opcode::FABRICS => ADMIN_IN_CAPSULE_BYTES,
            _ => self.in_capsule_bytes,
        };
        command.data.only().filter(|span| span.len() <= most)
    }

    fn handle_received(&mut self, received: Received) -> Result<(), Fault> {
        match received {
            Received::Header(layout) => self.handle_header(&layout),
            Received::Full => {
                self.place();
                Ok(())
            }
            Received::Data { intact } => {
                self.handle_data_end(intact);
                Ok(())
            }
        }
    }

    /// All bytes before the data are there.
    fn handle_header(&mut self, layout: &Layout) -> Result<(), Fault> {
        let first = layout.pdu_type == pdu_type::IC_RESP;
        if layout.pdu_type == pdu_type::C2H_TERM_REQ {
            // What it quotes is of no use to us.
            let fes = self.read_header::<TermReq>()?.fes.get();
            self.phase = Phase::Ended;
            self.event = Some(Event::Refused { fes });
            return Ok(());
        }
        if first != (self.phase == Phase::Initializing) {
            return Err(Fault::of(fes::SEQUENCE_ERROR));
        }
        match layout.pdu_type {
            pdu_type::IC_RESP => self.handle_ic_resp(),
            pdu_type::CAPSULE_RESP => self.handle_response(),
            pdu_type::C2H_DATA => self.handle_data(layout),
            _ => self.handle_r2t(),
        }
    }

    fn handle_ic_resp(&mut self) -> Result<(), Fault> {
        let response: IcResp = self.read_header()?;
        let unsupported = |at: usize| Fault { fes: fes::UNSUPPORTED_PARAMETER, fei: at as u32 };
        if response.pfv.get() != PFV_1_0 {
            return Err(unsupported(offset_of!(IcResp, pfv)));
        }
        if response.cpda_z > MAX_PDA_Z {
            return Err(unsupported(offset_of!(IcResp, cpda_z)));
        }
        // Whoever asks for digests relies on them.
        let digests = Digests {
            header: response.dgst & DGST_HEADER != 0,
            data: response.dgst & DGST_DATA != 0,
        };
        if digests != self.digests {
            return Err(unsupported(offset_of!(IcResp, dgst)));
        }
        let most = response.maxh2cdata.get();
        if most < MAXH2CDATA_MIN || !most.is_multiple_of(4) {
            return Err(unsupported(offset_of!(IcResp, maxh2cdata)));
        }
        self.max_h2c_data = most;
        self.receiver.negotiated(digests);
        self.outbox.negotiated(digests, alignment_bytes(response.cpda_z) as usize);
        self.phase = Phase::Open;
        self.event = Some(Event::Opened);
        Ok(())
    }

    fn handle_response(&mut self) -> Result<(), Fault> {
        let cqe = self.read_header::<CapsuleResp>()?.cqe;
        let at_cid = offset_of!(CapsuleResp, cqe) + offset_of!(Cqe, cid);
        let index = self.slots.find(cqe.cid()).ok_or(Fault::field(at_cid))?;
        self.answer(index, Answer { status: cqe.status(), result: cqe.result() });
        Ok(())
    }

    /// Data for a command must go on where the last of it ended, and end with the command's memory.
    fn handle_data(&mut self, layout: &Layout) -> Result<(), Fault> {
        let data: Data = self.read_header()?;
        let at_cccid = Fault::field(offset_of!(Data, cccid));
        let index = self.slots.find(data.cccid.get()).ok_or(at_cccid)?;
        let it = self.slots.get(index).ok_or(at_cccid)?;
        if it.command.direction() != DataDirection::ControllerToHost {
            return Err(at_cccid);
        }
        if data.datal.get() != layout.data || layout.data == 0 {
            return Err(Fault::field(offset_of!(Data, datal)));
        }
        let left = it.command.data.bytes() - it.moved;
        if it.last || data.datao.get() != it.moved || layout.data > left {
            return Err(Fault::of(fes::DATA_OUT_OF_RANGE));
        }
        let flag = |flag| data.header.flags & flag != 0;
        it.last = flag(FLAG_LAST_PDU);
        let success = flag(FLAG_SUCCESS);
        if success && !it.last {
            return Err(Fault::field(offset_of!(CommonHeader, flags)));
        }
        self.incoming = Some(Incoming { index, due: layout.data, success });
        self.place();
        Ok(())
    }

    /// Gives the data that is due the next run of its command's memory.
    fn place(&mut self) {
        let Some(incoming) = &mut self.incoming else { return };
        let Some(it) = self.slots.get(incoming.index) else { return };
        let Some(to) = it.place(incoming.due) else { return };
        it.moved += to.len();
        incoming.due -= to.len();
        self.receiver.place(to);
    }

    fn handle_data_end(&mut self, intact: bool) {
        let Some(Incoming { index, success, .. }) = self.incoming.take() else { return };
        if let Some(it) = self.slots.get(index) {
            it.broken |= !intact;
        }
        if success {
            self.answer(index, Answer::SUCCESS);
        }
    }

    /// Data is asked for where the last of it ended, and not before that has left.
    fn handle_r2t(&mut self) -> Result<(), Fault> {
        let r2t: R2t = self.read_header()?;
        let at_cccid = Fault::field(offset_of!(R2t, cccid));
        let index = self.slots.find(r2t.cccid.get()).ok_or(at_cccid)?;
        let it = self.slots.get(index).ok_or(at_cccid)?;
        if it.command.direction() != DataDirection::HostToController {
            return Err(at_cccid);
        }
        // The command has not even left, or the last R2T is not answered yet.
        if it.leaving > 0 || it.transfer.is_some() {
            return Err(Fault::of(fes::LIMIT_EXCEEDED));
        }
        let (offset, length) = (r2t.r2to.get(), r2t.r2tl.get());
        if length == 0 {
            return Err(Fault::field(offset_of!(R2t, r2tl)));
        }
        if offset != it.moved || length > it.command.data.bytes() - it.moved {
            return Err(Fault::of(fes::DATA_OUT_OF_RANGE));
        }
        it.moved += length;
        it.transfer = Some(Transfer::new(&r2t, offset, offset + length));
        self.send_data(index);
        Ok(())
    }

    /// Sends the next part of what an R2T asked for: one PDU at a time, so that what waits to be
    /// sent stays bounded however small the parts are that the controller takes.
    fn send_data(&mut self, index: u16) {
        let cid = self.slots.cid(index);
        let Some(it) = self.slots.get(index) else { return };
        let Some(transfer) = &mut it.transfer else { return };
        let most = self.max_h2c_data.min(transfer.end - transfer.at);
        let Some(part) = it.command.data.part(transfer.at, most) else { return };
        let mut data = Data::new_zeroed();
        data.header.pdu_type = pdu_type::H2C_DATA;
        (data.cccid, data.ttag) = (cid.into(), transfer.ttag.into());
        (data.datao, data.datal) = (transfer.at.into(), part.len().into());
        transfer.at += part.len();
        if transfer.at == transfer.end {
            data.header.flags = FLAG_LAST_PDU;
            it.transfer = None;
        }
        it.leaving += 1;
        self.outbox.push(&data, Some(part), Some(index));
    }

    /// The controller has said how a command ended.
    fn answer(&mut self, index: u16, answer: Answer) {
        let Some(it) = self.slots.get(index) else { return };
        if it.leaving > 0 {
            it.answer = Some(answer);
            return;
        }
        if let Some(it) = self.slots.release(index) {
            self.event = Some(Event::Completed(it.completed(answer)));
        }
    }

    fn read_header<T: FromBytes>(&self) -> Result<T, Fault> {
        self.receiver.header().ok_or(Fault::of(fes::INVALID_HEADER_FIELD))
    }

    /// A fatal error: the controller is told, and what has not begun to leave is dropped.
    fn end(&mut self, fault: Fault) {
        self.phase = Phase::Ended;
        self.outbox.truncate();
        let mut term = TermReq::new_zeroed();
        term.header.pdu_type = pdu_type::H2C_TERM_REQ;
        term.fes = fault.fes.into();
        term.fei = fault.fei.into();
        self.outbox.push_plain(&term, self.receiver.quoted());
        self.event = Some(Event::Broken(fault));
    }
}
