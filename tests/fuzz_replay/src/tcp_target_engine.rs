//! A whole target under hostile hosts on NVMe/TCP connections.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use conformance::{BLOCK_BYTES, BLOCK_COUNT, NQN, TargetSide};
use nvme_spec::command::Sqe;
use nvme_spec::fabrics::{fctype, fctype_of};
use nvme_spec::opcode::{FABRICS, admin};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::tcp::{
    CapsuleCmd, CapsuleResp, Data, FLAG_LAST_PDU, FLAG_SUCCESS, IcReq, R2t, TermReq, fes, pdu_type,
};
use nvme_tcp::{Digests, Piece, Sender};
use zerocopy::{FromBytes, FromZeros};

use crate::admin::{admin_command, connect_command, enable_command, fabrics_command};
use crate::arena_of;
use crate::capsule::plausible;
use crate::input::Input;
use crate::tcp::{Frame, Seen, Sent, frame, pattern, pdu};

/// Events of a script.
const MAX_EVENTS: usize = 300;
/// Connections that a script opens.
const MAX_CONNECTIONS: usize = 5;

thread_local! {
    /// Arenas are for the life of a process, so that each thread makes one target only. One in
    /// which something failed is not used again.
    static TARGET: RefCell<Option<TargetSide>> = const { RefCell::new(None) };
}

/// Runs a script of what hosts send on their connections, of time, and of connections that break.
/// What hosts receive are whole and well-formed PDUs; each command is answered once at most, with
/// no more data than it asked for, and data is asked for only where a command has some to give. A
/// host that has kept to the rules has all answers in the end. When all connections have ended,
/// every request and every buffer is back, and no controller is left.
pub fn tcp_target_engine(bytes: &[u8]) {
    let now = Instant::now();
    // Little enough that commands wait.
    let local = ([10, 0, 0, 1], 4420).into();
    let make = || TargetSide::in_arena(arena_of(32 << 20), 1 << 20, now, local);
    let mut target = TARGET.take().unwrap_or_else(make);
    let mut input = Input::new(bytes);
    let mut world = World { now, target: &mut target, hosts: Vec::new(), seed: 0 };
    let choice = input.byte();
    if choice & 1 == 0 {
        world.bring_up(choice);
    }
    for _ in 0..MAX_EVENTS {
        if input.is_empty() {
            break;
        }
        world.event(&mut input);
    }
    let now = world.finish();
    target.restart(now);
    TARGET.set(Some(target));
}

/// One connection, as its host knows it.
struct Host {
    key: u64,
    /// To the target, from the PDU on that is not whole yet; nothing after what is no PDU.
    stream: Vec<u8>,
    is_lost: bool,
    /// Its ICReq was sent.
    is_open: bool,
    /// It need not get all answers: it has sent a Disconnect, after which a queue answers nothing,
    /// or data that it was not asked for, as far as it knows.
    is_unsure: bool,
    /// From the target.
    received: Sent,
    /// Commands that were not answered: most bytes of their data, by their identifiers.
    commands: BTreeMap<u16, Vec<u32>>,
    /// How many of them may wait for ever.
    patient: BTreeMap<u16, usize>,
    /// What the target has asked for, from where it was not sent yet.
    wanted: Vec<R2t>,
    has_ended: bool,
}

struct World<'a> {
    now: Instant,
    target: &'a mut TargetSide,
    hosts: Vec<Host>,
    seed: u32,
}

impl World<'_> {
    /// An admin queue and an I/O queue.
    fn bring_up(&mut self, choice: u8) {
        let digests = Digests { header: choice & 2 != 0, data: choice & 4 != 0 };
        for index in 0..2 {
            self.open();
            let request = ic_req(digests, choice >> 3);
            self.send(index, &request);
            let connect = connect_command(NQN, &mut Input::new(&[0, index as u8]));
            self.capsule(index, connect, SglDescriptor::in_capsule(0, 1024));
            if index == 0 {
                self.capsule(0, (enable_command(), Vec::new()), SglDescriptor::transport(0));
            }
            self.receive(index, usize::MAX);
        }
    }

    fn event(&mut self, input: &mut Input<'_>) {
        let event = input.byte();
        if self.hosts.is_empty() {
            return self.open();
        }
        let index = usize::from(event >> 4) % self.hosts.len();
        match event % 16 {
            0 => self.open(),
            1 => {
                let choice = input.byte();
                let digests = Digests { header: choice & 1 != 0, data: choice & 2 != 0 };
                self.send(index, &ic_req(digests, choice >> 2));
            }
            2 => {
                let connect = connect_command(NQN, input);
                let length = connect.1.len() as u32;
                self.capsule(index, connect, SglDescriptor::in_capsule(0, length));
            }
            3..=5 => self.io(index, input),
            6 => self.admin(index, input),
            7 | 8 => {
                let data = self.data(index, input);
                self.send(index, &data);
            }
            9 => {
                let raw: [u8; 16] = input.take();
                self.send(index, &raw);
            }
            10 => {
                // A PDU with one byte that is another one.
                let mut wrong = self.data(index, input);
                let at = usize::from(input.byte()) % wrong.len();
                wrong[at] ^= input.byte();
                self.send(index, &wrong);
            }
            11 | 12 => {
                let few = event % 16 == 11;
                let most = if few { usize::from(input.byte()) * 4 } else { usize::MAX };
                self.receive(index, most);
            }
            13 => {
                self.now += Duration::from_millis(u64::from(input.byte()) * 50);
                self.target.turn(self.now);
            }
            14 => {
                let key = self.hosts.remove(index).key;
                self.target.close(self.now, key);
            }
            _ => match input.byte() {
                0..=127 => {
                    let blocks = u64::from(input.byte()) * 32 + 1;
                    self.target.resize(self.now, blocks.min(BLOCK_COUNT));
                }
                _ => {
                    let term = TermReq { fes: fes::SEQUENCE_ERROR.into(), ..TermReq::new_zeroed() };
                    let kind = (pdu_type::H2C_TERM_REQ, 0);
                    self.send(index, &pdu(&term, kind, &[], 0, Digests::default()));
                }
            },
        }
    }

    fn open(&mut self) {
        if self.hosts.len() == MAX_CONNECTIONS {
            return;
        }
        let key = self.target.open(self.now, ([10, 0, 0, 2], 50_000).into());
        self.hosts.push(Host {
            key,
            stream: Vec::new(),
            is_lost: false,
            is_open: false,
            is_unsure: false,
            received: Sent::new(Sender::Controller),
            commands: BTreeMap::new(),
            patient: BTreeMap::new(),
            wanted: Vec::new(),
            has_ended: false,
        });
    }

    /// A command on a namespace, with its data behind it or not.
    fn io(&mut self, index: usize, input: &mut Input<'_>) {
        let sqe = plausible(input);
        let blocks = (sqe.cdw12.get() & 0xFFFF) + 1;
        let bytes = input.one_of(&[blocks * BLOCK_BYTES, blocks * BLOCK_BYTES, 16, 4096]);
        let (sgl, behind) = match input.byte() % 8 {
            0..=2 => (SglDescriptor::transport(bytes), 0),
            3 | 4 => (SglDescriptor::in_capsule(0, bytes.min(4096)), bytes.min(4096)),
            5 => (SglDescriptor::in_capsule(input.byte().into(), bytes), bytes.min(8192)),
            6 => (sqe.sgl(), u32::from(input.byte())),
            _ => (SglDescriptor(input.take()), u32::from(input.byte()) * 40),
        };
        self.seed += 1;
        let data = pattern(self.seed, behind as usize);
        self.capsule(index, (sqe, data), sgl);
    }

    fn admin(&mut self, index: usize, input: &mut Input<'_>) {
        let is_fabrics = input.byte() & 1 != 0;
        let sqe = if is_fabrics { fabrics_command(input) } else { admin_command(input) };
        let length = if is_fabrics { 0 } else { sqe.sgl().keyed_length() };
        let (sgl, behind) = match input.byte() % 4 {
            0 => (SglDescriptor::in_capsule(0, 512), 512),
            1 => (SglDescriptor::transport(4096), 0),
            _ => (SglDescriptor::transport(length), 0),
        };
        self.capsule(index, (sqe, vec![0; behind]), sgl);
    }

    fn capsule(&mut self, index: usize, (sqe, data): (Sqe, Vec<u8>), sgl: SglDescriptor) {
        let mut capsule = CapsuleCmd::new_zeroed();
        capsule.sqe = sqe;
        capsule.sqe.set_sgl(sgl);
        let digests = self.hosts[index].received.digests;
        let bytes = pdu(&capsule, (pdu_type::CAPSULE_CMD, 0), &data, 0, digests);
        self.send(index, &bytes);
    }

    /// The next part of what the target has asked for, or something else.
    fn data(&mut self, index: usize, input: &mut Input<'_>) -> Vec<u8> {
        self.seed += 1;
        let wanted = &self.hosts[index].wanted;
        let number = usize::from(input.byte()) % wanted.len().max(1);
        let none = R2t { r2tl: 512.into(), ..R2t::new_zeroed() };
        let wanted = wanted.get(number).unwrap_or(&none);
        let rest = wanted.r2tl.get();
        let mut data = Data::new_zeroed();
        (data.cccid, data.ttag, data.datao) = (wanted.cccid, wanted.ttag, wanted.r2to);
        let (part, wrong) = (input.byte(), input.byte());
        let mut bytes = if part < 64 { rest.min(u32::from(part) * 128 + 4) } else { rest };
        let mut flags = if bytes == rest { FLAG_LAST_PDU } else { 0 };
        match wrong {
            1 => data.datao = input.take(),
            2 => bytes = u32::from(input.take::<u16>()) + 1,
            3 => data.ttag = u16::from(input.byte()).into(),
            4 => data.cccid = u16::from(input.byte()).into(),
            5 => flags ^= FLAG_LAST_PDU,
            _ => {}
        }
        data.datal = bytes.into();
        let bytes = pattern(self.seed, bytes as usize);
        let mut pdu =
            pdu(&data, (pdu_type::H2C_DATA, flags), &bytes, 0, self.hosts[index].received.digests);
        if let (6, Some(last)) = (wrong, pdu.last_mut()) {
            *last ^= 1;
        }
        pdu
    }

    /// A host sends bytes.
    fn send(&mut self, index: usize, bytes: &[u8]) {
        let host = &mut self.hosts[index];
        if !host.is_lost {
            host.stream.extend_from_slice(bytes);
            host.note_commands();
        }
        self.target.receive(self.now, host.key, bytes);
    }

    /// A host receives so many bytes at most; whether there were any.
    fn receive(&mut self, index: usize, most: usize) -> bool {
        let most = most.min(4 << 20);
        let host = &mut self.hosts[index];
        let bytes = self.target.send(self.now, host.key, most);
        assert!(bytes.is_empty() || !host.has_ended, "sent after the last words");
        host.received.take(std::iter::once(Piece::Bytes(&bytes)), bytes.len());
        while let Some((frame, pdu)) = host.received.next() {
            assert!(!host.has_ended, "sent after the last words");
            host.take(&frame, &pdu);
        }
        !bytes.is_empty()
    }

    /// What one host receives may make room for another's commands.
    fn receive_all(&mut self) {
        let mut any = true;
        while any {
            any = false;
            for index in 0..self.hosts.len() {
                any |= self.receive(index, usize::MAX);
            }
        }
    }

    /// Hosts that have broken the rules go; the others send what was asked for, and receive all.
    fn finish(&mut self) -> Instant {
        for index in (0..self.hosts.len()).rev() {
            while self.receive(index, usize::MAX) {}
            let host = &self.hosts[index];
            let has_ended = self.target.has_ended(host.key);
            assert!(has_ended || !host.has_ended, "its last words, and it goes on");
            let is_over = has_ended || host.is_lost || host.is_unsure;
            if is_over || !host.stream.is_empty() {
                let key = self.hosts.remove(index).key;
                self.target.close(self.now, key);
            }
        }
        self.receive_all();
        while let Some(index) = self.hosts.iter().position(|host| !host.wanted.is_empty()) {
            // The first of its transfers, as much as is left of it.
            let data = self.data(index, &mut Input::new(&[0, 0xFF]));
            self.send(index, &data);
            self.receive_all();
        }
        for host in &self.hosts {
            if self.target.has_ended(host.key) || self.target.is_behind(host.key) {
                continue;
            }
            for (cid, lengths) in &host.commands {
                let patient = host.patient.get(cid).copied().unwrap_or(0);
                assert!(lengths.len() <= patient, "no answer to command {cid}");
            }
        }
        self.now
    }
}

impl Host {
    /// Goes over what was sent: which commands the target has, and how it will talk.
    fn note_commands(&mut self) {
        loop {
            let digests = self.received.digests;
            let frame = match frame(&self.stream, Sender::Host, digests) {
                Seen::Header(frame) if frame.plen <= self.stream.len() => frame,
                Seen::Wrong => {
                    self.is_lost = true;
                    return;
                }
                _ => return,
            };
            let is_first = !std::mem::replace(&mut self.is_open, true);
            if is_first != (frame.pdu_type == pdu_type::IC_REQ) {
                self.is_lost = true;
                return;
            }
            if let (true, Ok((request, _))) = (is_first, IcReq::ref_from_prefix(&self.stream)) {
                let digests =
                    Digests { header: request.dgst & 1 != 0, data: request.dgst & 2 != 0 };
                // One that is refused is followed by nothing that could be aligned.
                self.received.negotiated(digests, request.hpda_z.min(31));
            }
            if let (pdu_type::CAPSULE_CMD, Ok((capsule, _))) =
                (frame.pdu_type, CapsuleCmd::ref_from_prefix(&self.stream))
            {
                let cid = capsule.sqe.cid();
                self.commands.entry(cid).or_default().push(capsule.sqe.sgl().length());
                match (capsule.sqe.opcode(), fctype(&capsule.sqe)) {
                    (FABRICS, fctype_of::DISCONNECT) => self.is_unsure = true,
                    (admin::ASYNC_EVENT_REQUEST, _) => {
                        *self.patient.entry(cid).or_default() += 1;
                    }
                    _ => {}
                }
            }
            if let (pdu_type::H2C_DATA, Ok((data, _))) =
                (frame.pdu_type, Data::ref_from_prefix(&self.stream))
            {
                self.is_unsure |= !note_data(&mut self.wanted, data, frame.data as u32);
            }
            self.stream.drain(..frame.plen);
        }
    }

    /// A PDU has come from the target.
    fn take(&mut self, frame: &Frame, pdu: &[u8]) {
        match frame.pdu_type {
            pdu_type::IC_RESP => {}
            pdu_type::CAPSULE_RESP => {
                let (response, _) = CapsuleResp::ref_from_prefix(pdu).expect("a header");
                self.answered(response.cqe.cid());
            }
            pdu_type::C2H_DATA => {
                let (data, _) = Data::ref_from_prefix(pdu).expect("a header");
                let cid = data.cccid.get();
                assert_eq!((data.datao.get(), data.datal.get()), (0, frame.data as u32));
                assert!(frame.data as u32 <= self.room(cid), "more than was asked for");
                assert!(frame.flags & FLAG_LAST_PDU != 0);
                if frame.flags & FLAG_SUCCESS != 0 {
                    self.answered(cid);
                }
            }
            pdu_type::R2T => {
                let r2t = R2t::read_from_prefix(pdu).expect("a header").0;
                assert!(r2t.r2tl.get() > 0 && r2t.r2tl.get() <= self.room(r2t.cccid.get()));
                self.wanted.push(r2t);
            }
            _ => {
                let (term, _) = TermReq::ref_from_prefix(pdu).expect("a header");
                assert!((1..=6).contains(&term.fes.get()));
                self.has_ended = true;
            }
        }
    }

    /// Most data that a command with this identifier may have.
    fn room(&self, cid: u16) -> u32 {
        let lengths = self.commands.get(&cid).map_or(&[][..], Vec::as_slice);
        *lengths.iter().max().expect("no such command")
    }

    fn answered(&mut self, cid: u16) {
        let lengths = self.commands.get_mut(&cid).filter(|lengths| !lengths.is_empty());
        // Of several with one identifier nobody knows which: the shortest, so that none is missed.
        let lengths = lengths.expect("an answer to nothing");
        lengths.sort_unstable();
        lengths.remove(0);
    }
}

/// A part of a transfer is sent; whether it was asked for.
fn note_data(wanted: &mut Vec<R2t>, data: &Data, bytes: u32) -> bool {
    let is_of = |r2t: &R2t| r2t.ttag == data.ttag && r2t.cccid == data.cccid;
    let Some(index) = wanted.iter().position(is_of) else { return false };
    let (at, rest) = (wanted[index].r2to.get(), wanted[index].r2tl.get());
    let is_last = data.header.flags & FLAG_LAST_PDU != 0;
    if data.datao.get() != at || data.datal.get() != bytes || is_last != (bytes == rest) {
        return false;
    }
    if bytes < rest {
        (wanted[index].r2to, wanted[index].r2tl) = ((at + bytes).into(), (rest - bytes).into());
    } else {
        wanted.remove(index);
    }
    bytes <= rest
}

fn ic_req(wanted: Digests, hpda_z: u8) -> Vec<u8> {
    let mut request = IcReq::new_zeroed();
    request.dgst = u8::from(wanted.header) | u8::from(wanted.data) << 1;
    request.hpda_z = hpda_z;
    pdu(&request, (pdu_type::IC_REQ, 0), &[], 0, Digests::default())
}
