//! A connection, and beside it what must be true of it.

use std::collections::VecDeque;

use dma::DmaSpan;
use host::protocol::{Command, Completed, Connection, Event, Left};
use host::{Io, Op, Spans};
use nvme_spec::command::Sqe;
use nvme_spec::status::Status;
use nvme_spec::tcp::{
    CapsuleCmd, CapsuleResp, CommonHeader, Data, FLAG_LAST_PDU, FLAG_SUCCESS, IcResp, R2t, TermReq,
    fes, pdu_type,
};
use nvme_tcp::{Digests, Fault, Piece, Sender};
use zerocopy::{FromBytes, IntoBytes};

use crate::tcp::{Frame, Seen, Sent, frame, pattern};

const DEPTH: usize = 5;
/// Of a command: four runs of memory, and what is nobody's before each and behind the last.
const RUNS: usize = 4;
const RUN: u32 = 1500;
const GUARD: u32 = 100;
const STRIDE: u32 = RUNS as u32 * (GUARD + RUN);
const MEMORY: u32 = DEPTH as u32 * STRIDE + GUARD;

thread_local! {
    /// Arenas are for the life of a process, so that each thread has one only.
    static SPAN: DmaSpan = crate::arena().carve(MEMORY as usize, 4096).expect("room");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    In,
    Out,
    Neither,
}

/// A command on its way.
struct Sending {
    cid: u16,
    way: Way,
    /// Its memory, byte by byte.
    places: Vec<usize>,
    /// Bytes that have come, or were asked for.
    moved: usize,
    /// PDUs that have not left.
    leaving: usize,
    /// What an R2T asked for and was not handed on to be sent: tag, from where, to where.
    transfer: Option<(u16, usize, usize)>,
    last: bool,
    spoilt: bool,
    /// What the controller has said.
    answer: Option<(Status, u64)>,
}

/// What has to be sent, in this order.
#[derive(Debug)]
enum Due {
    IcReq,
    Capsule { tag: usize, sqe: Sqe, bytes: Vec<u8> },
    Data { tag: usize, ttag: u16, at: usize, bytes: Vec<u8>, last: bool },
    Term { fault: Fault, wrong: Vec<u8> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Initializing,
    Open,
    Ended,
}

/// What the controller's stream goes on with.
enum Next {
    /// More bytes are needed to tell.
    Unknown,
    /// It breaks a rule.
    Wrong,
    /// A PDU whose header is there; the command that it is for.
    Header(Frame, usize),
}

pub(super) struct World {
    digests: Digests,
    in_capsule_bytes: usize,
    max_h2c_data: usize,
    connection: Connection,
    span: DmaSpan,
    /// The memory as it must be.
    memory: Vec<u8>,
    /// By tag.
    commands: [Option<Sending>; DEPTH],
    phase: Phase,
    /// From the controller, not taken yet.
    input: Vec<u8>,
    /// Bytes of it that the connection has seen last and did not take.
    refused: usize,
    /// Taken, from the PDU on that is not whole yet.
    taken: Vec<u8>,
    /// Of that PDU the header was acted upon, for this command.
    begun: Option<(Frame, usize)>,
    /// Commands that have to be reported now.
    ending: VecDeque<usize>,
    opening: bool,
    sent: Sent,
    due: VecDeque<Due>,
    /// The socket is closed.
    is_abandoned: bool,
    submitted: u32,
    ended: u32,
    seed: u32,
}

impl World {
    pub(super) fn new(digests: Digests, in_capsule_bytes: u32) -> Self {
        let span = SPAN.with(|span| *span);
        let memory = pattern(7, MEMORY as usize);
        span.write(0, &memory);
        let mut connection = Connection::new(digests, DEPTH as u16);
        connection.set_in_capsule_bytes(in_capsule_bytes);
        Self {
            digests,
            in_capsule_bytes: in_capsule_bytes as usize,
            max_h2c_data: 0,
            connection,
            span,
            memory,
            commands: [const { None }; DEPTH],
            phase: Phase::Initializing,
            input: Vec::new(),
            refused: 0,
            taken: Vec::new(),
            begun: None,
            ending: VecDeque::new(),
            opening: false,
            sent: Sent::new(Sender::Host),
            due: VecDeque::from([Due::IcReq]),
            is_abandoned: false,
            submitted: 0,
            ended: 0,
            seed: 0,
        }
    }

    /// Digests of what the controller sends next.
    pub(super) fn digests(&self) -> Digests {
        self.sent.digests
    }

    /// A number for a pattern.
    pub(super) fn seed(&self) -> u32 {
        self.seed
    }

    /// A command on its way, from tag `number` on: its identifier, the bytes that were moved, and
    /// all of them.
    pub(super) fn command(&self, number: u8) -> (u16, u32, u32) {
        let tags = (0..DEPTH).map(|step| (usize::from(number) + step) % DEPTH);
        let mut commands = tags.filter_map(|tag| self.commands[tag].as_ref());
        let of = |it: &Sending| (it.cid, it.moved as u32, it.places.len() as u32);
        commands.next().map_or((number.into(), 0, 512), of)
    }

    /// Submits an I/O whose data has as many runs, and bytes in each, as `shape` says.
    pub(super) fn submit(&mut self, op: Op, shape: u8) {
        let Some(tag) = self.commands.iter().position(Option::is_none) else {
            assert_eq!(self.connection.room(), 0);
            return;
        };
        let way = match op {
            Op::Read => Way::In,
            Op::Write { .. } | Op::Compare | Op::Deallocate { .. } => Way::Out,
            Op::Flush | Op::WriteZeroes { .. } => Way::Neither,
        };
        let run_bytes = [512, RUN, 1, 700][usize::from(shape >> 2) % 4];
        let runs = if way == Way::Neither { 0 } else { u32::from(shape) % RUNS as u32 + 1 };
        let starts = (0..runs).map(|run| tag as u32 * STRIDE + GUARD + run * (GUARD + RUN));
        let spans: Vec<DmaSpan> =
            starts.clone().map(|at| self.span.subspan(at, run_bytes)).collect();
        let data = Spans::gather(&spans).expect("few runs");
        let io = Io { tag: tag as u32, nsid: 1, op, slba: 5, block_count: 1, data };
        let taken = self.connection.submit(Command::of_io(&io, None));
        assert_eq!(taken, self.phase == Phase::Open);
        if !taken {
            return;
        }
        let places: Vec<usize> =
            starts.flat_map(|at| at as usize..(at + run_bytes) as usize).collect();
        let fits = way == Way::Out && runs == 1 && places.len() <= self.in_capsule_bytes;
        let bytes: Vec<u8> = places
            .iter()
            .take(if fits { usize::MAX } else { 0 })
            .map(|&at| self.memory[at])
            .collect();
        let sqe = last_capsule(&self.connection);
        let cid = sqe.cid();
        let in_use = self.commands.iter().flatten().any(|other| other.cid == cid);
        assert!(!in_use, "an identifier that is in use");
        self.commands[tag] = Some(Sending {
            cid,
            way,
            moved: bytes.len(),
            places,
            leaving: 1,
            transfer: None,
            last: false,
            spoilt: false,
            answer: None,
        });
        self.due.push_back(Due::Capsule { tag, sqe, bytes });
        self.submitted += 1;
    }

    /// Bytes come from the controller, cut and placed as `how` says.
    pub(super) fn receive(&mut self, bytes: &[u8], how: u8) {
        self.seed += 1;
        let cut = [usize::MAX, 1, 7, 300][usize::from(how >> 1) % 4];
        self.input.extend_from_slice(bytes);
        loop {
            let piece = &self.input[..self.input.len().min(cut)];
            let payload = self.connection.payload().filter(|_| how & 1 != 0 && !piece.is_empty());
            let taken = match payload {
                Some(to) => {
                    let direct = piece.len().min(to.len() as usize);
                    to.write(0, &piece[..direct]);
                    self.connection.handle_payload(direct as u32);
                    direct
                }
                None => self.connection.handle_input(piece),
            };
            assert!(taken == 0 || self.phase != Phase::Ended, "taken after the end");
            self.refused = piece.len() - taken;
            self.taken.extend(self.input.drain(..taken));
            self.advance();
            if !self.poll_events() && taken == 0 {
                break;
            }
        }
        if self.phase != Phase::Ended {
            assert!(!matches!(self.next(), Next::Wrong), "taken against the rules");
            assert!(self.input.is_empty(), "not taken, and nothing is in the way");
        }
    }

    /// The kernel takes so many bytes at most.
    pub(super) fn send(&mut self, most: usize) {
        if self.is_abandoned {
            return;
        }
        let pieces = self.connection.pieces().count();
        assert!(pieces <= 3 * (2 * DEPTH + 2), "{pieces} pieces wait");
        // What leaves may be followed by more: as often as the caller has more room.
        let mut left = most.min(1 << 20);
        while left > 0 {
            let count = self.sent.take(self.connection.pieces(), left);
            if count == 0 {
                break;
            }
            left -= count;
            self.connection.handle_sent(count);
            while let Some((frame, pdu)) = self.sent.next() {
                let due = self.due.pop_front().expect("nothing is due");
                self.check_sent(&frame, &pdu, due);
            }
            assert_eq!(self.connection.is_idle(), self.due.is_empty());
            self.poll_events();
        }
    }

    /// What must be true between any two events.
    pub(super) fn check(&mut self) {
        let mut now = vec![0; MEMORY as usize];
        self.span.read(0, &mut now);
        // Data of a PDU that is not whole yet may be where it is due.
        if let Some((frame, tag)) = self.begun
            && let Some(it) = &self.commands[tag]
        {
            let there = self.taken.len().saturating_sub(frame.head).min(frame.data);
            let from = it.moved - frame.data;
            for (place, byte) in it.places[from..from + there].iter().zip(&self.taken[frame.head..])
            {
                assert_eq!(now[*place], *byte, "not what was sent");
                self.memory[*place] = *byte;
            }
        }
        assert!(self.memory == now, "memory that was nobody's to write has changed");
        let on_their_way = self.commands.iter().flatten().count();
        assert_eq!(self.connection.outstanding(), on_their_way);
        if self.phase == Phase::Ended {
            assert!(self.connection.payload().is_none() && self.connection.room() == 0);
        }
    }

    /// The caller has closed the socket.
    pub(super) fn abandon(&mut self) {
        for left in self.connection.abandon() {
            match left {
                Left::Completed(done) => {
                    let tag = done.tag as usize;
                    assert!(self.commands[tag].as_ref().is_some_and(|it| it.answer.is_some()));
                    self.end(done);
                }
                Left::Unfinished(command) => {
                    let it = self.commands[command.tag as usize].take().expect("it ended before");
                    assert!(it.answer.is_none(), "it was answered");
                    self.ended += 1;
                }
            }
        }
        assert!(self.commands.iter().all(Option::is_none));
        (self.phase, self.is_abandoned) = (Phase::Ended, true);
        self.begun = None;
    }

    pub(super) fn finish(&mut self) {
        if !self.is_abandoned {
            self.send(usize::MAX);
            assert!(self.due.is_empty() && !self.sent.has_begun() && self.connection.is_idle());
            self.check();
            self.abandon();
        }
        self.check();
        assert!(self.connection.poll_event().is_none(), "after it was abandoned");
        assert_eq!(self.submitted, self.ended);
    }

    /// Whether anything has happened.
    fn poll_events(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.connection.poll_event() {
            any = true;
            match event {
                Event::Opened => assert!(std::mem::take(&mut self.opening)),
                Event::Completed(done) => {
                    let tag = self.ending.pop_front();
                    assert_eq!(tag, Some(done.tag as usize), "not its end");
                    let it = self.commands[done.tag as usize].as_ref();
                    assert!(it.is_some_and(|it| it.leaving == 0), "its memory is in use");
                    self.end(done);
                }
                Event::Broken(fault) => {
                    self.taken.extend(self.input.drain(..self.refused));
                    assert!(matches!(self.next(), Next::Wrong), "nothing is wrong: {fault:?}");
                    assert!((fes::INVALID_HEADER_FIELD..=6).contains(&fault.fes), "{fault:?}");
                    self.phase = Phase::Ended;
                    self.due.truncate(usize::from(self.sent.has_begun()));
                    let wrong = std::mem::take(&mut self.taken);
                    self.due.push_back(Due::Term { fault, wrong });
                }
                Event::Refused { fes } => {
                    let Next::Header(frame, _) = self.next() else { panic!("no termination") };
                    assert_eq!(frame.pdu_type, pdu_type::C2H_TERM_REQ);
                    let (term, _) = TermReq::ref_from_prefix(&self.taken).expect("a header");
                    assert_eq!(term.fes.get(), fes);
                    self.phase = Phase::Ended;
                }
            }
        }
        assert!(self.ending.is_empty() && !self.opening, "it has happened, and nobody was told");
        any
    }

    /// A command has ended: what is said of it is what became of it.
    fn end(&mut self, done: Completed) {
        let it = self.commands[done.tag as usize].take().expect("it ended before");
        let (status, result) = it.answer.expect("nobody has answered");
        assert_eq!((done.answer.result, done.bytes as usize), (result, it.moved));
        let is_whole = it.moved == it.places.len() && it.transfer.is_none();
        match status {
            status if !status.is_success() => assert_eq!(done.answer.status, status),
            _ if it.spoilt => assert_eq!(done.answer.status, Status::TRANSIENT_TRANSPORT_ERROR),
            _ if !is_whole => assert_eq!(done.answer.status, Status::DATA_TRANSFER_ERROR),
            status => assert_eq!(done.answer.status, status),
        }
        self.ended += 1;
    }

    /// Acts upon what was taken.
    fn advance(&mut self) {
        loop {
            if self.begun.is_none() {
                let Next::Header(frame, tag) = self.next() else { return };
                if self.phase == Phase::Ended || frame.pdu_type == pdu_type::C2H_TERM_REQ {
                    return;
                }
                self.begin(&frame, tag);
                self.begun = Some((frame, tag));
            }
            let Some((frame, tag)) = self.begun.filter(|(it, _)| it.plen <= self.taken.len())
            else {
                return;
            };
            if frame.data > 0 {
                self.take_data(&frame, tag);
            }
            self.begun = None;
            self.taken.drain(..frame.plen);
        }
    }

    /// The header of a PDU is there.
    fn begin(&mut self, frame: &Frame, tag: usize) {
        if frame.pdu_type == pdu_type::IC_RESP {
            let (response, _) = IcResp::ref_from_prefix(&self.taken).expect("a header");
            self.max_h2c_data = response.maxh2cdata.get() as usize;
            self.sent.negotiated(self.digests, response.cpda_z);
            (self.phase, self.opening) = (Phase::Open, true);
            return;
        }
        let Some(it) = &mut self.commands[tag] else { return };
        match frame.pdu_type {
            pdu_type::CAPSULE_RESP => {
                let (response, _) = CapsuleResp::ref_from_prefix(&self.taken).expect("a header");
                self.answer(tag, response.cqe.status(), response.cqe.result());
            }
            pdu_type::C2H_DATA => {
                it.moved += frame.data;
                it.last = frame.flags & FLAG_LAST_PDU != 0;
            }
            _ => {
                let (r2t, _) = R2t::ref_from_prefix(&self.taken).expect("a header");
                let from = it.moved;
                it.moved += r2t.r2tl.get() as usize;
                it.transfer = Some((r2t.ttag.get(), from, it.moved));
                self.send_data(tag);
            }
        }
    }

    /// All of a PDU's data is there.
    fn take_data(&mut self, frame: &Frame, tag: usize) {
        let Some(it) = &mut self.commands[tag] else { return };
        it.spoilt |= !frame.is_intact(&self.taken);
        let from = it.moved - frame.data;
        for (&place, &byte) in it.places[from..it.moved].iter().zip(frame.data(&self.taken)) {
            self.memory[place] = byte;
        }
        if frame.flags & FLAG_SUCCESS != 0 && it.answer.is_none() {
            self.answer(tag, Status::SUCCESS, 0);
        }
    }

    fn answer(&mut self, tag: usize, status: Status, result: u64) {
        let Some(it) = &mut self.commands[tag] else { return };
        it.answer = Some((status, result));
        if it.leaving == 0 {
            self.ending.push_back(tag);
        }
    }

    /// The next part of a transfer is due: no more than the controller takes, from one run.
    fn send_data(&mut self, tag: usize) {
        let Some(it) = &mut self.commands[tag] else { return };
        let Some((ttag, at, end)) = it.transfer else { return };
        let run = it.places[at..end].windows(2).take_while(|two| two[1] == two[0] + 1).count() + 1;
        let part = run.min(self.max_h2c_data);
        let bytes = it.places[at..at + part].iter().map(|&place| self.memory[place]).collect();
        let last = at + part == end;
        it.transfer = (!last).then_some((ttag, at + part, end));
        it.leaving += 1;
        self.due.push_back(Due::Data { tag, ttag, at, bytes, last });
    }

    /// Whether the controller's stream, from the PDU on that is not whole yet, keeps to the rules.
    fn next(&self) -> Next {
        if let Some((frame, tag)) = self.begun {
            return Next::Header(frame, tag);
        }
        let (frame, header) = match frame(&self.taken, Sender::Controller, self.sent.digests) {
            Seen::Short => return Next::Unknown,
            Seen::Wrong => return Next::Wrong,
            Seen::Common(frame) => (frame, false),
            Seen::Header(frame) => (frame, true),
        };
        if !header {
            return Next::Unknown;
        }
        let is_first = frame.pdu_type == pdu_type::IC_RESP;
        let is_term = frame.pdu_type == pdu_type::C2H_TERM_REQ;
        if !is_term && is_first != (self.phase == Phase::Initializing) {
            return Next::Wrong;
        }
        let tag = match frame.pdu_type {
            pdu_type::C2H_TERM_REQ => Some(0),
            pdu_type::IC_RESP => self.is_for_us().then_some(0),
            pdu_type::CAPSULE_RESP => self.named(20),
            pdu_type::C2H_DATA => self.named(8).filter(|&tag| self.is_data_of(&frame, tag)),
            _ => self.named(8).filter(|&tag| self.may_ask(tag)),
        };
        tag.map_or(Next::Wrong, |tag| Next::Header(frame, tag))
    }

    fn is_for_us(&self) -> bool {
        let (response, _) = IcResp::ref_from_prefix(&self.taken).expect("a header");
        let most = response.maxh2cdata.get();
        let dgst = u8::from(self.digests.header) | u8::from(self.digests.data) << 1;
        response.pfv.get() == 0
            && response.cpda_z < 32
            && response.dgst & 3 == dgst
            && most >= 4096
            && most.is_multiple_of(4)
    }

    /// The command whose identifier stands here, unless it was answered.
    fn named(&self, at: usize) -> Option<usize> {
        let cid = u16::from_le_bytes([self.taken[at], self.taken[at + 1]]);
        let is_named = |it: &Sending| it.cid == cid && it.answer.is_none();
        self.commands.iter().position(|it| it.as_ref().is_some_and(is_named))
    }

    fn is_data_of(&self, frame: &Frame, tag: usize) -> bool {
        let (data, _) = Data::ref_from_prefix(&self.taken).expect("a header");
        let Some(it) = &self.commands[tag] else { return false };
        let last = frame.flags & FLAG_LAST_PDU != 0;
        it.way == Way::In
            && !it.last
            && frame.data > 0
            && data.datal.get() as usize == frame.data
            && data.datao.get() as usize == it.moved
            && frame.data <= it.places.len() - it.moved
            && (last || frame.flags & FLAG_SUCCESS == 0)
    }

    fn may_ask(&self, tag: usize) -> bool {
        let (r2t, _) = R2t::ref_from_prefix(&self.taken).expect("a header");
        let Some(it) = &self.commands[tag] else { return false };
        it.way == Way::Out
            && it.leaving == 0
            && it.transfer.is_none()
            && r2t.r2tl.get() > 0
            && r2t.r2to.get() as usize == it.moved
            && r2t.r2tl.get() as usize <= it.places.len() - it.moved
    }

    fn check_sent(&mut self, frame: &Frame, pdu: &[u8], due: Due) {
        let data = frame.data(pdu);
        match due {
            Due::IcReq => {
                let dgst = u8::from(self.digests.header) | u8::from(self.digests.data) << 1;
                assert_eq!((frame.pdu_type, pdu[11]), (pdu_type::IC_REQ, dgst));
            }
            Due::Capsule { tag, sqe, bytes } => {
                assert_eq!(frame.pdu_type, pdu_type::CAPSULE_CMD);
                assert_eq!(&pdu[8..72], sqe.as_bytes());
                assert_eq!(data, bytes);
                let it = self.commands[tag].as_ref().expect("it is on its way");
                let length = if bytes.is_empty() { it.places.len() } else { bytes.len() };
                assert_eq!(sqe.sgl().length() as usize, length);
                self.has_left(tag);
            }
            Due::Data { tag, ttag, at, bytes, last } => {
                let (header, _) = Data::ref_from_prefix(pdu).expect("a header");
                let cid = self.commands[tag].as_ref().expect("it is on its way").cid;
                let flags = if last { FLAG_LAST_PDU } else { 0 };
                assert_eq!((frame.pdu_type, frame.flags & 0x0C), (pdu_type::H2C_DATA, flags));
                assert_eq!((header.cccid.get(), header.ttag.get()), (cid, ttag));
                assert_eq!(header.datao.get() as usize, at);
                assert_eq!((header.datal.get() as usize, data), (bytes.len(), &bytes[..]));
                self.has_left(tag);
            }
            Due::Term { fault, wrong } => {
                let (term, _) = TermReq::ref_from_prefix(pdu).expect("a header");
                assert_eq!(frame.pdu_type, pdu_type::H2C_TERM_REQ);
                assert_eq!((term.fes.get(), term.fei.get()), (fault.fes, fault.fei));
                assert!(wrong.starts_with(data), "it quotes what was not sent");
                assert!(data.len() >= size_of::<CommonHeader>(), "it quotes too little");
            }
        }
    }

    /// A PDU of a command has left.
    fn has_left(&mut self, tag: usize) {
        let Some(it) = &mut self.commands[tag] else { return };
        it.leaving -= 1;
        match it.answer {
            Some(_) if it.leaving == 0 => self.ending.push_back(tag),
            Some(_) => {}
            None if it.leaving == 0 && self.phase != Phase::Ended => self.send_data(tag),
            None => {}
        }
    }
}

/// The command in the capsule that was the last to be queued.
fn last_capsule(connection: &Connection) -> Sqe {
    let headers = connection.pieces().filter_map(|piece| match piece {
        Piece::Bytes(bytes) if bytes.len() >= size_of::<CapsuleCmd>() => {
            CapsuleCmd::read_from_prefix(bytes).ok()
        }
        _ => None,
    });
    headers.last().expect("it waits to leave").0.sqe
}
