//! A connection, and beside it what must be true of it.

use std::collections::VecDeque;

use dma::DmaSpan;
use nvme_spec::command::Cqe;
use nvme_spec::status::Status;
use nvme_spec::tcp::{
    CapsuleResp, CommonHeader, DGST_DATA, DGST_HEADER, Data, FLAG_LAST_PDU, FLAG_SUCCESS, IcReq,
    IcResp, R2t, TermReq, fes, pdu_type,
};
use nvme_tcp::{Digests, Fault, Sender};
use nvmf_tcp::limits::MAX_H2C_DATA_BYTES;
use nvmf_tcp::{Connection, ConnectionConfig, ConnectionEvent};
use zerocopy::{FromBytes, IntoBytes};

use crate::tcp::{Frame, Seen, Sent, frame, pattern};

const SLOTS: usize = 6;
/// Of a slot: what is nobody's, the page, again nobody's, and memory for a transfer.
const GUARD: u32 = 256;
const FIRST_PAGE: u32 = 1024;
const PAGE: u32 = 512;
const BUFFER: u32 = 2048;
const STRIDE: u32 = GUARD + FIRST_PAGE + GUARD + BUFFER;
const MEMORY: u32 = SLOTS as u32 * STRIDE + GUARD;

thread_local! {
    /// Arenas are for the life of a process, so that each thread has one only.
    static SPAN: DmaSpan = crate::arena().carve(MEMORY as usize, 4096).expect("room");
}

/// A run of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    at: u32,
    bytes: u32,
}

/// Where a slot must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Free,
    /// With the engine; `fetched`: its data was asked for.
    Held {
        fetched: bool,
    },
    Fetching {
        to: Run,
    },
    /// All of its data is there, and nobody was told yet.
    Arrived {
        to: Run,
    },
    Leaving,
    /// All of its response has left.
    Left,
}

struct Slot {
    page: Run,
    at: At,
    cid: u16,
    /// What the host has sent of a transfer, and whether a part of it was spoilt.
    received: Vec<u8>,
    spoilt: bool,
}

/// What has to be sent, in this order.
#[derive(Debug)]
enum Due {
    IcResp,
    R2t { slot: usize, bytes: u32 },
    Data { slot: usize, bytes: Vec<u8>, success: bool },
    Response { slot: usize, cqe: Cqe },
    Term { fault: Fault, wrong: Vec<u8> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Initializing,
    Open,
    Ended,
}

/// The transfer of a slot, as far as a host knows it.
pub(super) struct Transfer {
    pub(super) slot: u16,
    pub(super) cid: u16,
    pub(super) bytes: u32,
    pub(super) received: u32,
}

/// What the host's stream goes on with.
enum Next {
    /// More bytes are needed to tell.
    Unknown,
    /// It breaks a rule.
    Wrong,
    /// A PDU whose header is there.
    Header(Frame),
}

pub(super) struct World {
    config: ConnectionConfig,
    connection: Connection,
    span: DmaSpan,
    /// The memory as it must be.
    memory: Vec<u8>,
    slots: Vec<Slot>,
    phase: Phase,
    /// From the host, not taken yet.
    input: Vec<u8>,
    /// Bytes of it that the connection has seen last and did not take.
    refused: usize,
    /// Taken, from the PDU on that is not whole yet.
    taken: Vec<u8>,
    /// The capsule that is being received was found short enough once; it has got a slot.
    measured: bool,
    admitted: bool,
    sent: Sent,
    due: VecDeque<Due>,
    seed: u32,
}

impl World {
    pub(super) fn new(config: ConnectionConfig) -> Self {
        let span = SPAN.with(|span| *span);
        let memory = pattern(7, MEMORY as usize);
        span.write(0, &memory);
        let slot = slot(0, FIRST_PAGE);
        let page = span.subspan(slot.page.at, slot.page.bytes);
        Self {
            config,
            connection: Connection::new(config, &[page]),
            span,
            memory,
            slots: vec![slot],
            phase: Phase::Initializing,
            input: Vec::new(),
            refused: 0,
            taken: Vec::new(),
            measured: false,
            admitted: false,
            sent: Sent::new(Sender::Controller),
            due: VecDeque::new(),
            seed: 0,
        }
    }

    pub(super) fn digests(&self) -> Digests {
        self.sent.digests
    }

    /// A number for a pattern.
    pub(super) fn seed(&self) -> u32 {
        self.seed
    }

    /// A transfer under way, from slot `number` on; one that nobody asked for, if there is none.
    pub(super) fn transfer(&self, number: u8) -> Transfer {
        for index in self.order(number) {
            if let Slot { cid, at: At::Fetching { to }, received, .. } = &self.slots[index] {
                let (slot, received) = (index as u16, received.len() as u32);
                return Transfer { slot, cid: *cid, bytes: to.bytes, received };
            }
        }
        Transfer { slot: number.into(), cid: 0, bytes: 512, received: 0 }
    }

    /// Bytes come from the host, cut and placed as `how` says; what cannot be taken waits.
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
            if !self.poll_events() && taken == 0 {
                break;
            }
        }
        self.settle();
    }

    /// The engine asks for the data of a command.
    pub(super) fn fetch(&mut self, number: u8, bytes: u32) {
        let Some(slot) = self.held(number) else { return };
        if self.slots[slot].at != (At::Held { fetched: false }) {
            return;
        }
        let to = Run { at: buffer(slot), bytes };
        self.connection.fetch(slot as u16, self.span.subspan(to.at, to.bytes));
        if self.phase == Phase::Open {
            self.slots[slot].at = At::Fetching { to };
            self.slots[slot].received.clear();
            self.slots[slot].spoilt = false;
            self.due.push_back(Due::R2t { slot, bytes });
        }
    }

    /// The engine answers a command; only one that sent no data is sent some.
    pub(super) fn respond(&mut self, number: u8, data: Option<u32>, flow_control: bool, more: u64) {
        let Some(slot) = self.held(number) else { return };
        let fetched = self.slots[slot].at == (At::Held { fetched: true });
        let data = data.filter(|_| !fetched);
        let status = if more & 1 == 0 { Status::SUCCESS } else { Status::INVALID_FIELD };
        let cqe = Cqe::new(self.slots[slot].cid, 3, more >> 1, status);
        let span = data.map(|bytes| {
            self.seed += 1;
            let run = Run { at: buffer(slot), bytes };
            self.span.write(run.at, &pattern(self.seed, bytes as usize));
            self.adopt(run);
            self.span.subspan(run.at, bytes)
        });
        self.connection.respond(slot as u16, &cqe, span, flow_control);
        if self.phase != Phase::Open {
            return;
        }
        self.slots[slot].at = At::Leaving;
        let plain = !flow_control && more == 0;
        if let Some(bytes) = data {
            let at = buffer(slot) as usize;
            let bytes = self.memory[at..at + bytes as usize].to_vec();
            self.due.push_back(Due::Data { slot, bytes, success: plain });
        }
        if data.is_none() || !plain {
            self.due.push_back(Due::Response { slot, cqe });
        }
    }

    /// The kernel takes so many bytes at most.
    pub(super) fn send(&mut self, most: usize) {
        let pieces = self.connection.pieces().count();
        assert!(pieces <= 3 * (2 * self.slots.len() + 2), "{pieces} pieces wait");
        let most = most.min(1 << 20);
        let left = self.sent.take(self.connection.pieces(), most);
        self.connection.handle_sent(left);
        while let Some((frame, pdu)) = self.sent.next() {
            let due = self.due.pop_front().expect("nothing is due");
            self.check_sent(&frame, &pdu, due);
        }
        assert_eq!(self.connection.is_idle(), self.due.is_empty());
        self.poll_events();
    }

    /// Its Connect was accepted: more slots.
    pub(super) fn grow(&mut self, count: usize) {
        let first = self.slots.len();
        let new: Vec<Slot> = (first..(first + count).min(SLOTS)).map(|at| slot(at, PAGE)).collect();
        let page = |slot: &Slot| self.span.subspan(slot.page.at, slot.page.bytes);
        let pages: Vec<DmaSpan> = new.iter().map(page).collect();
        self.connection.grow(&pages);
        self.slots.extend(new);
    }

    /// What must be true between any two events.
    pub(super) fn check(&mut self) {
        let mut now = vec![0; MEMORY as usize];
        self.span.read(0, &mut now);
        for slot in &self.slots {
            // These may be written.
            let run = match slot.at {
                At::Free => slot.page,
                At::Fetching { to } => to,
                _ => continue,
            };
            let range = run.at as usize..(run.at + run.bytes) as usize;
            self.memory[range.clone()].copy_from_slice(&now[range]);
        }
        assert!(self.memory == now, "memory that was nobody's to write has changed");
        if self.phase == Phase::Ended {
            assert!(self.connection.payload().is_none());
        }
    }

    /// The engine answers everything; what the host has sent is taken; all of it leaves.
    pub(super) fn finish(&mut self) {
        loop {
            for slot in 0..self.slots.len() {
                self.respond(slot as u8, None, true, 0);
            }
            self.send(usize::MAX);
            self.receive(&[], 0);
            let is_held = |slot: &Slot| matches!(slot.at, At::Held { .. });
            if self.phase == Phase::Ended || !self.slots.iter().any(is_held) {
                break;
            }
        }
        self.check();
        self.send(usize::MAX);
        assert!(self.due.is_empty() && !self.sent.has_begun() && self.connection.is_idle());
        assert!(!self.poll_events() && !self.connection.has_event());
        let is_over = |slot: &Slot| matches!(slot.at, At::Free | At::Fetching { .. });
        assert!(self.phase == Phase::Ended || self.slots.iter().all(is_over), "slots are lost");
    }

    /// Whether anything has happened.
    fn poll_events(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.connection.poll_event() {
            any = true;
            self.advance();
            match event {
                ConnectionEvent::Responded { slot } => {
                    let at = &mut self.slots[usize::from(slot)].at;
                    assert_eq!(*at, At::Left, "its response has not left");
                    *at = At::Free;
                }
                ConnectionEvent::Fetched { slot, intact } => self.fetched(slot, intact),
                ConnectionEvent::Capsule { slot, sqe, data, intact } => {
                    let Next::Header(frame) = self.next() else { panic!("a capsule of nothing") };
                    assert_eq!(sqe.as_bytes(), &self.taken[8..72]);
                    assert_eq!(intact, frame.is_intact(&self.taken));
                    self.capsule(slot, &frame, data);
                }
                ConnectionEvent::Broken(fault) => {
                    self.taken.extend(self.input.drain(..self.refused));
                    assert!(matches!(self.next(), Next::Wrong), "nothing is wrong: {fault:?}");
                    assert!((fes::INVALID_HEADER_FIELD..=6).contains(&fault.fes), "{fault:?}");
                    self.phase = Phase::Ended;
                    // What has begun to leave leaves.
                    self.due.truncate(usize::from(self.sent.has_begun()));
                    let wrong = std::mem::take(&mut self.taken);
                    self.due.push_back(Due::Term { fault, wrong });
                }
                ConnectionEvent::Refused { fes } => {
                    let Next::Header(frame) = self.next() else { panic!("no termination") };
                    assert_eq!(frame.pdu_type, pdu_type::H2C_TERM_REQ);
                    let (term, _) = TermReq::ref_from_prefix(&self.taken).expect("a header");
                    assert_eq!(term.fes.get(), fes);
                    self.phase = Phase::Ended;
                }
            }
        }
        any
    }

    fn capsule(&mut self, slot: u16, frame: &Frame, data: Option<DmaSpan>) {
        assert_eq!((frame.pdu_type, frame.plen), (pdu_type::CAPSULE_CMD, self.taken.len()));
        let Slot { page, at, .. } = self.slots[usize::from(slot)];
        assert_eq!(at, At::Free, "a slot that is taken");
        assert_eq!(data.map_or(0, |data| data.len()) as usize, frame.data);
        self.adopt(page);
        if let Some(data) = data {
            assert!(data.addr() == self.span.addr() + u64::from(page.at));
            assert!(data.len() <= page.bytes, "more than the page has");
            let at = page.at as usize;
            assert_eq!(&self.memory[at..at + frame.data], frame.data(&self.taken));
        }
        let slot = &mut self.slots[usize::from(slot)];
        slot.cid = u16::from_le_bytes([self.taken[10], self.taken[11]]);
        slot.at = At::Held { fetched: false };
        self.taken.clear();
        (self.measured, self.admitted) = (false, false);
    }

    fn fetched(&mut self, slot: u16, intact: bool) {
        let slot = &mut self.slots[usize::from(slot)];
        let At::Arrived { to } = slot.at else { panic!("{:?}, and yet fetched", slot.at) };
        assert_eq!(intact, !slot.spoilt);
        slot.at = At::Held { fetched: true };
        let received = std::mem::take(&mut slot.received);
        self.adopt(to);
        assert_eq!(self.memory[to.at as usize..(to.at + to.bytes) as usize], received);
    }

    /// Goes over the PDUs of which nobody is told.
    fn advance(&mut self) {
        while let Next::Header(frame) = self.next() {
            if self.phase == Phase::Ended || self.taken.len() < frame.plen {
                return;
            }
            match frame.pdu_type {
                pdu_type::IC_REQ => self.initialize(),
                pdu_type::H2C_DATA => {
                    let (data, _) = Data::ref_from_prefix(&self.taken).expect("a header");
                    let slot = &mut self.slots[usize::from(data.ttag.get())];
                    slot.received.extend_from_slice(frame.data(&self.taken));
                    slot.spoilt |= !frame.is_intact(&self.taken);
                    if let At::Fetching { to } = slot.at
                        && slot.received.len() == to.bytes as usize
                    {
                        slot.at = At::Arrived { to };
                    }
                }
                _ => return,
            }
            self.taken.drain(..frame.plen);
        }
    }

    fn initialize(&mut self) {
        let (request, _) = IcReq::ref_from_prefix(&self.taken).expect("a header");
        let digests = Digests {
            header: self.config.header_digest && request.dgst & DGST_HEADER != 0,
            data: self.config.data_digest && request.dgst & DGST_DATA != 0,
        };
        self.sent.negotiated(digests, request.hpda_z);
        self.phase = Phase::Open;
        self.due.push_back(Due::IcResp);
    }

    /// Whether the host's stream, from the PDU on that is not whole yet, keeps to the rules.
    fn next(&self) -> Next {
        let digests = self.sent.digests;
        let (frame, header) = match frame(&self.taken, Sender::Host, digests) {
            Seen::Short => return Next::Unknown,
            Seen::Wrong => return Next::Wrong,
            Seen::Common(frame) => (frame, false),
            Seen::Header(frame) => (frame, true),
        };
        let is_first = frame.pdu_type == pdu_type::IC_REQ;
        let most = match frame.pdu_type {
            pdu_type::H2C_TERM_REQ => 128,
            pdu_type::H2C_DATA => MAX_H2C_DATA_BYTES as usize,
            _ => usize::MAX,
        };
        if is_first != (self.phase == Phase::Initializing) || frame.data > most {
            return Next::Wrong;
        }
        let is_right = match frame.pdu_type {
            _ if !header => return Next::Unknown,
            pdu_type::IC_REQ => {
                let (request, _) = IcReq::ref_from_prefix(&self.taken).expect("a header");
                request.pfv.get() == 0 && request.hpda_z < 32
            }
            pdu_type::H2C_DATA => self.is_asked_for(&frame),
            pdu_type::CAPSULE_CMD => {
                let is_free = self.slots.iter().any(|slot| slot.at == At::Free);
                let looks = !self.measured || is_free && !self.admitted;
                let most = self.slots.iter().map(|slot| slot.page.bytes).min().unwrap_or(0);
                !looks || frame.data <= most as usize
            }
            _ => true,
        };
        if is_right { Next::Header(frame) } else { Next::Wrong }
    }

    /// Whether data is the next part of a transfer.
    fn is_asked_for(&self, frame: &Frame) -> bool {
        let (data, _) = Data::ref_from_prefix(&self.taken).expect("a header");
        let Some(slot) = self.slots.get(usize::from(data.ttag.get())) else { return false };
        let At::Fetching { to } = slot.at else { return false };
        let end = slot.received.len() + frame.data;
        let is_last = frame.flags & FLAG_LAST_PDU != 0;
        data.cccid.get() == slot.cid
            && frame.data > 0
            && data.datal.get() as usize == frame.data
            && data.datao.get() as usize == slot.received.len()
            && end <= to.bytes as usize
            && is_last == (end == to.bytes as usize)
    }

    /// Everything that could be taken has been.
    fn settle(&mut self) {
        self.advance();
        if self.phase == Phase::Ended {
            return;
        }
        let waits = match self.next() {
            Next::Wrong => panic!("taken against the rules: {:02x?}", self.taken),
            Next::Unknown => false,
            Next::Header(frame) => {
                let is_free = self.slots.iter().any(|slot| slot.at == At::Free);
                self.measured = true;
                self.admitted |= is_free;
                assert!(!is_free || self.taken.len() < frame.plen, "nobody was told of it");
                frame.pdu_type == pdu_type::CAPSULE_CMD && !self.admitted
            }
        };
        assert!(self.input.is_empty() || waits, "not taken, and nothing is in the way");
        let is_arrived = |slot: &Slot| matches!(slot.at, At::Arrived { .. });
        assert!(!self.slots.iter().any(is_arrived), "arrived, and nobody was told");
    }

    fn check_sent(&mut self, frame: &Frame, pdu: &[u8], due: Due) {
        let data = frame.data(pdu);
        match due {
            Due::IcResp => {
                let (response, _) = IcResp::ref_from_prefix(pdu).expect("a header");
                let digests = self.sent.digests;
                let dgst = u8::from(digests.header) | u8::from(digests.data) << 1;
                assert_eq!((frame.pdu_type, response.dgst), (pdu_type::IC_RESP, dgst));
                assert_eq!(response.maxh2cdata.get(), MAX_H2C_DATA_BYTES);
            }
            Due::R2t { slot, bytes } => {
                let (r2t, _) = R2t::ref_from_prefix(pdu).expect("a header");
                let cid = self.slots[slot].cid;
                assert_eq!((frame.pdu_type, r2t.cccid.get()), (pdu_type::R2T, cid));
                let range = (r2t.ttag.get(), r2t.r2to.get(), r2t.r2tl.get());
                assert_eq!(range, (slot as u16, 0, bytes));
            }
            Due::Data { slot, bytes, success } => {
                let (header, _) = Data::ref_from_prefix(pdu).expect("a header");
                let flags = FLAG_LAST_PDU | if success { FLAG_SUCCESS } else { 0 };
                assert_eq!((frame.pdu_type, frame.flags & 0x0C), (pdu_type::C2H_DATA, flags));
                let datal = bytes.len() as u32;
                let fields = (header.cccid.get(), header.datao.get(), header.datal.get());
                assert_eq!(fields, (self.slots[slot].cid, 0, datal));
                assert_eq!(data, bytes);
                if success {
                    self.slots[slot].at = At::Left;
                }
            }
            Due::Response { slot, cqe } => {
                let (response, _) = CapsuleResp::ref_from_prefix(pdu).expect("a header");
                assert_eq!(frame.pdu_type, pdu_type::CAPSULE_RESP);
                assert_eq!(response.cqe.as_bytes(), cqe.as_bytes());
                self.slots[slot].at = At::Left;
            }
            Due::Term { fault, wrong } => {
                let (term, _) = TermReq::ref_from_prefix(pdu).expect("a header");
                assert_eq!(frame.pdu_type, pdu_type::C2H_TERM_REQ);
                assert_eq!((term.fes.get(), term.fei.get()), (fault.fes, fault.fei));
                assert!(wrong.starts_with(data), "it quotes what was not sent");
                assert!(data.len() >= size_of::<CommonHeader>(), "it quotes too little");
            }
        }
    }

    /// What stands in the memory now is right.
    fn adopt(&mut self, run: Run) {
        let range = run.at as usize..(run.at + run.bytes) as usize;
        self.span.read(run.at, &mut self.memory[range]);
    }

    /// A slot that the engine has, from `number` on.
    fn held(&self, number: u8) -> Option<usize> {
        self.order(number).find(|&slot| matches!(self.slots[slot].at, At::Held { .. }))
    }

    fn order(&self, number: u8) -> impl Iterator<Item = usize> + use<> {
        let count = self.slots.len();
        (0..count).map(move |step| (usize::from(number) + step) % count)
    }
}

fn slot(index: usize, page_bytes: u32) -> Slot {
    let page = Run { at: index as u32 * STRIDE + GUARD, bytes: page_bytes };
    Slot { page, at: At::Free, cid: 0, received: Vec::new(), spoilt: false }
}

/// Where a slot's memory for a transfer begins.
fn buffer(slot: usize) -> u32 {
    slot as u32 * STRIDE + GUARD + FIRST_PAGE + GUARD
}
