//! What a controller may send to a host.

use dma::DmaSpan;
use host::protocol::{Command, Connection, Event, Left};
use host::{Io, Op, Spans};
use nvme_spec::tcp::{CapsuleResp, Data, FLAG_DDGST, FLAG_HDGST, IcResp, R2t, TermReq, pdu_type};
use nvme_tcp::{Digests, digest_of};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::arena;
use crate::input::Input;

/// Commands of the queue, each with its own memory.
const DEPTH: u16 = 4;
const BYTES: u32 = 4096;
/// What lies between the memory of two commands, and is nobody's.
const GUARD: u32 = 512;
const UNTOUCHED: u8 = 0xA5;
/// Steps of a script: enough to come round to each place several times.
const MAX_STEPS: usize = 200;

const AREA: u32 = DEPTH as u32 * (BYTES + GUARD) + GUARD;

thread_local! {
    /// One for all scripts: it is not given back.
    static MEMORY: DmaSpan = arena().carve(AREA as usize, 4096).expect("a part of the arena");
}

/// Plays a controller that sends whatever the script says, to a host that reads, writes and has its
/// data sent in between. No byte beyond a command's memory is touched, every command ends once, and
/// what waits to be sent stays bounded.
pub fn host_connection(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let digests = Digests { header: choice & 1 != 0, data: choice & 2 != 0 };
    let mut world = World::new(digests);
    if choice & 4 == 0 {
        world.receive(&ic_resp(digests, u32::from(input.byte()) * 4096 + 4096), &mut input);
    }
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.finish();
}

struct World {
    digests: Digests,
    connection: Connection,
    memory: DmaSpan,
    submitted: u32,
    ended: u32,
    busy: [bool; DEPTH as usize],
}

impl World {
    fn new(digests: Digests) -> Self {
        let memory = MEMORY.with(|memory| *memory);
        memory.fill(UNTOUCHED);
        let mut connection = Connection::new(digests, DEPTH);
        connection.set_in_capsule_bytes(1024);
        let busy = [false; DEPTH as usize];
        Self { digests, connection, memory, submitted: 0, ended: 0, busy }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 8 {
            0 | 1 => self.submit(input),
            2 | 3 => {
                let most = usize::from(input.take::<u16>() % 8192);
                let waits: usize = self.connection.pieces().map(|piece| piece.len()).sum();
                let pieces = self.connection.pieces().count();
                // A capsule and data for each command, and a first and a last word.
                assert!(pieces <= 3 * (2 * usize::from(DEPTH) + 2), "{pieces} pieces wait");
                self.connection.handle_sent(most.min(waits));
                self.collect();
            }
            4 => {
                let raw: [u8; 32] = input.take();
                self.receive(&raw, input);
            }
            _ => {
                let pdu = self.pdu(input);
                self.receive(&pdu, input);
            }
        }
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let op = input.one_of(&[Op::Read, Op::Read, Op::Write { fua: false }, Op::Flush]);
        let Some(tag) = self.busy.iter().position(|busy| !busy) else { return };
        let start = GUARD + tag as u32 * (BYTES + GUARD);
        let place = self.memory.subspan(start, BYTES);
        let data = match (op, input.byte() % 3) {
            (Op::Flush, _) => Spans::NONE,
            (_, 0) => place.into(),
            (_, 1) => place.subspan(0, 512).into(),
            _ => {
                let runs = [place.subspan(0, 700), place.subspan(700, BYTES - 700)];
                Spans::gather(&runs).expect("two runs")
            }
        };
        let io = Io { tag: tag as u32, nsid: 1, op, slba: 0, block_count: 1, data };
        if self.connection.submit(Command::of_io(&io, None)) {
            self.busy[tag] = true;
            self.submitted += 1;
        }
    }

    /// A PDU that is nearly right.
    fn pdu(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        // A place, and one of the first counts of its use.
        let cid = u16::from(input.byte() % 5) | u16::from(input.byte() % 4) << 10;
        match input.byte() % 6 {
            0 | 1 => {
                let mut pdu = CapsuleResp::new_zeroed();
                pdu.header.pdu_type = pdu_type::CAPSULE_RESP;
                pdu.cqe.cid = cid.into();
                pdu.cqe.status_field = u16::from(input.byte() & 0x02).into();
                self.finished(&pdu, 0)
            }
            2 | 3 => {
                let mut pdu = Data::new_zeroed();
                pdu.header.pdu_type = pdu_type::C2H_DATA;
                pdu.header.flags = input.byte() & 0x0C;
                pdu.cccid = cid.into();
                pdu.datao = (input.near(u64::from(BYTES)) as u32 & !3).into();
                let length = input.one_of(&[4, 512, 696, 700, BYTES, BYTES + 4]);
                pdu.datal = length.into();
                self.finished(&pdu, length)
            }
            4 => {
                let mut pdu = R2t::new_zeroed();
                pdu.header.pdu_type = pdu_type::R2T;
                (pdu.cccid, pdu.ttag) = (cid.into(), input.take::<u16>().into());
                pdu.r2to = (input.near(u64::from(BYTES)) as u32).into();
                pdu.r2tl = input.one_of(&[512, BYTES, 1, u32::MAX]).into();
                self.finished(&pdu, 0)
            }
            _ => {
                let mut pdu = TermReq::new_zeroed();
                pdu.header.pdu_type = pdu_type::C2H_TERM_REQ;
                let mut bytes = pdu.as_bytes().to_vec();
                (bytes[2], bytes[4]) = (24, 24);
                bytes
            }
        }
    }

    /// With lengths and digests as they should be.
    fn finished(&self, pdu: &(impl IntoBytes + Immutable), data: u32) -> Vec<u8> {
        let mut bytes = pdu.as_bytes().to_vec();
        let hlen = bytes.len();
        let head = hlen + if self.digests.header { 4 } else { 0 };
        let tail = if self.digests.data && data > 0 { 4 } else { 0 };
        bytes[1] |= if self.digests.header { FLAG_HDGST } else { 0 };
        bytes[1] |= if tail > 0 { FLAG_DDGST } else { 0 };
        bytes[2] = hlen as u8;
        bytes[3] = if data > 0 { head as u8 } else { 0 };
        bytes[4..8].copy_from_slice(&((head + tail) as u32 + data).to_le_bytes());
        if self.digests.header {
            let digest = digest_of(&bytes);
            bytes.extend(digest);
        }
        let body = vec![0xDD; data as usize];
        bytes.extend_from_slice(&body);
        if tail > 0 {
            bytes.extend(digest_of(&body));
        }
        bytes
    }

    /// Hands bytes over, cut as the script says, some of them straight to their place.
    fn receive(&mut self, bytes: &[u8], input: &mut Input<'_>) {
        let cut = usize::from(input.byte()) * 8 + 1;
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = &rest[..rest.len().min(cut)];
            let taken = match self.connection.payload().filter(|_| cut % 16 == 1) {
                Some(span) => {
                    let direct = piece.len().min(span.len() as usize);
                    span.write(0, &piece[..direct]);
                    self.connection.handle_payload(direct as u32);
                    direct
                }
                None => self.connection.handle_input(piece),
            };
            rest = &rest[taken..];
            if !self.collect() && taken == 0 {
                break;
            }
        }
    }

    /// Whether anything has happened.
    fn collect(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.connection.poll_event() {
            any = true;
            if let Event::Completed(done) = event {
                self.end(done.tag);
            }
        }
        any
    }

    fn end(&mut self, tag: u32) {
        let busy = &mut self.busy[tag as usize];
        assert!(std::mem::replace(busy, false), "command {tag} ended twice");
        self.ended += 1;
    }

    fn finish(&mut self) {
        for left in self.connection.abandon() {
            match left {
                Left::Completed(done) => self.end(done.tag),
                Left::Unfinished(command) => self.end(command.tag),
            }
        }
        assert_eq!(self.submitted, self.ended);
        let mut guard = [0; GUARD as usize];
        for index in 0..=u32::from(DEPTH) {
            self.memory.read(index * (BYTES + GUARD), &mut guard);
            assert!(guard.iter().all(|&byte| byte == UNTOUCHED), "beyond a command's memory");
        }
    }
}

fn ic_resp(digests: Digests, maxh2cdata: u32) -> Vec<u8> {
    let mut response = IcResp::new_zeroed();
    (response.header.pdu_type, response.header.hlen) = (pdu_type::IC_RESP, 128);
    response.header.plen = 128.into();
    response.dgst = u8::from(digests.header) | u8::from(digests.data) << 1;
    response.maxh2cdata = maxh2cdata.into();
    response.as_bytes().to_vec()
}
