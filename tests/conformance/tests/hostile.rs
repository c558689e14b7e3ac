//! A target that lies: the host errors out, and no byte beyond a command's memory is touched.

use std::time::Instant;

use dma::{Arena, DmaSpan};
use host::protocol::{Command, Connection, Event};
use host::{Io, Op, Spans};
use nvme_spec::command::Cqe;
use nvme_spec::status::Status;
use nvme_spec::tcp::{
    CapsuleCmd, CapsuleResp, CommonHeader, Data, FLAG_DDGST, FLAG_LAST_PDU, FLAG_SUCCESS, IcResp,
    R2t, TermReq, fes, pdu_type,
};
use nvme_tcp::{Digests, Fault, Piece, digest_of};
use proptest::prelude::*;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Bytes of the commands' memory, and of what lies around it.
const BYTES: u32 = 4096;
const GUARD: u32 = 1024;
const UNTOUCHED: u8 = 0xA5;

struct World {
    connection: Connection,
    /// The memory of the read, the write and the flush, with what lies around it.
    memory: DmaSpan,
    cids: Vec<u16>,
}

/// Numbers of the three commands.
const READ: usize = 0;
const WRITE: usize = 1;
const FLUSH: usize = 2;

fn pdu<T: IntoBytes + FromZeros + Immutable>(pdu_type: u8, fill: impl FnOnce(&mut T)) -> Vec<u8> {
    let mut value = T::new_zeroed();
    fill(&mut value);
    let mut bytes = value.as_bytes().to_vec();
    let hlen = bytes.len();
    (bytes[0], bytes[2]) = (pdu_type, hlen as u8);
    bytes[4..8].copy_from_slice(&(hlen as u32).to_le_bytes());
    bytes
}

fn ic_resp(fill: impl FnOnce(&mut IcResp)) -> Vec<u8> {
    pdu(pdu_type::IC_RESP, |response: &mut IcResp| {
        response.maxh2cdata = 65536.into();
        fill(response);
    })
}

fn response(cid: u16, status: Status) -> Vec<u8> {
    pdu(pdu_type::CAPSULE_RESP, |it: &mut CapsuleResp| it.cqe = Cqe::new(cid, 0, 0, status))
}

fn data(cid: u16, offset: u32, length: u32, flags: u8) -> Vec<u8> {
    let mut bytes = pdu(pdu_type::C2H_DATA, |data: &mut Data| {
        data.cccid = cid.into();
        (data.datao, data.datal) = (offset.into(), length.into());
        data.header.flags = flags;
    });
    bytes[3] = 24;
    bytes[4..8].copy_from_slice(&(24 + length).to_le_bytes());
    bytes.resize(24 + length as usize, 0xDD);
    bytes
}

fn r2t(cid: u16, offset: u32, length: u32) -> Vec<u8> {
    pdu(pdu_type::R2T, |r2t: &mut R2t| {
        (r2t.cccid, r2t.ttag) = (cid.into(), 77.into());
        (r2t.r2to, r2t.r2tl) = (offset.into(), length.into());
    })
}

impl World {
    fn new() -> Self {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let memory = arena.carve((BYTES + 2 * GUARD) as usize, 4096).unwrap();
        memory.fill(UNTOUCHED);
        Self { connection: Connection::new(Digests::default(), 8), memory, cids: Vec::new() }
    }

    /// A connection with a read, a write of data that is not in its capsule, and a flush.
    fn open() -> Self {
        let mut world = Self::new();
        world.receive(&ic_resp(|_| {}));
        assert!(matches!(world.events()[..], [Event::Opened]));
        let request = world.sent();
        assert_eq!((request.len(), request[0]), (128, pdu_type::IC_REQ));
        let data = Spans::from(world.memory.subspan(GUARD, BYTES));
        for (tag, op, data) in
            [(0, Op::Read, data), (1, Op::Write { fua: false }, data), (2, Op::Flush, Spans::NONE)]
        {
            let io = Io { tag, nsid: 1, op, slba: 0, block_count: 8, data };
            assert!(world.connection.submit(Command::of_io(&io, Some(Instant::now()))));
        }
        world
    }

    /// The same, and the commands have left.
    fn under_way() -> Self {
        let mut world = Self::open();
        let sent = world.sent();
        let capsules = sent.chunks_exact(size_of::<CapsuleCmd>());
        assert!(capsules.remainder().is_empty(), "no data in capsules");
        world.cids =
            capsules.map(|bytes| CapsuleCmd::read_from_bytes(bytes).unwrap().sqe.cid()).collect();
        assert_eq!(world.cids.len(), 3);
        world
    }

    fn sent(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        for piece in self.connection.pieces() {
            match piece {
                Piece::Bytes(bytes) => sent.extend_from_slice(bytes),
                Piece::Span(span) => {
                    let from = sent.len();
                    sent.resize(from + span.len() as usize, 0);
                    span.read(0, &mut sent[from..]);
                }
            }
        }
        self.connection.handle_sent(sent.len());
        sent
    }

    fn receive(&mut self, bytes: &[u8]) {
        let taken = self.connection.handle_input(bytes);
        assert!(taken <= bytes.len());
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.connection.poll_event()).collect()
    }

    /// Receives all of it, event by event.
    fn feed(&mut self, mut bytes: &[u8]) -> Vec<Event> {
        let mut all = Vec::new();
        loop {
            let taken = self.connection.handle_input(bytes);
            bytes = &bytes[taken..];
            let events = self.events();
            if taken == 0 && events.is_empty() {
                return all;
            }
            all.extend(events);
        }
    }

    /// The fault that these bytes are, which the target is told, too.
    fn broken_by(&mut self, bytes: &[u8]) -> Option<Fault> {
        let fault = self.feed(bytes).into_iter().find_map(|event| match event {
            Event::Broken(fault) => Some(fault),
            _ => None,
        })?;
        let told = self.sent();
        let (term, _) = TermReq::read_from_prefix(&told).unwrap();
        assert_eq!(term.header.pdu_type, pdu_type::H2C_TERM_REQ);
        assert_eq!((term.fes.get(), term.fei.get()), (fault.fes, fault.fei));
        assert_eq!(self.connection.handle_input(&response(self.cids[FLUSH], Status::SUCCESS)), 0);
        Some(fault)
    }

    fn check_guards(&self) {
        let mut bytes = vec![0; self.memory.len() as usize];
        self.memory.read(0, &mut bytes);
        let (before, after) = (&bytes[..GUARD as usize], &bytes[(GUARD + BYTES) as usize..]);
        assert!(before.iter().chain(after).all(|&byte| byte == UNTOUCHED), "beyond the memory");
    }
}

/// The end of a command, by its tag.
fn ends(events: &[Event]) -> Vec<(u32, Status)> {
    let end = |event: &Event| match event {
        Event::Completed(done) => Some((done.tag, done.answer.status)),
        _ => None,
    };
    events.iter().filter_map(end).collect()
}

#[test]
fn each_lie_ends_the_connection() {
    let field = |offset: usize| Fault::field(offset);
    let range = Fault::of(fes::DATA_OUT_OF_RANGE);
    let limit = Fault::of(fes::LIMIT_EXCEEDED);
    let cccid = field(8);
    type Lie = (&'static str, fn(&World) -> Vec<u8>, Fault);
    let lies: [Lie; 19] = [
        ("garbage", |_| vec![0xFF; 64], field(0)),
        ("a PDU of hosts", |_| pdu::<IcResp>(pdu_type::IC_REQ, |_| {}), field(0)),
        ("a second ICResp", |_| ic_resp(|_| {}), Fault::of(fes::SEQUENCE_ERROR)),
        ("an answer to nothing", |_| response(5, Status::SUCCESS), field(20)),
        ("an answer to a late name", |w| response(w.cids[FLUSH] ^ 0x8000, Status::SUCCESS), {
            field(20)
        }),
        (
            "the same answer twice",
            |w| response(w.cids[FLUSH], Status::SUCCESS).repeat(2),
            field(20),
        ),
        ("data for nothing", |_| data(5, 0, 512, 0), cccid),
        ("data for a write", |w| data(w.cids[WRITE], 0, 512, 0), cccid),
        ("data for a flush", |w| data(w.cids[FLUSH], 0, 512, 0), cccid),
        ("data beyond the end", |w| data(w.cids[READ], 0, BYTES + 4, 0), range),
        ("data with a gap", |w| data(w.cids[READ], 512, 512, 0), range),
        ("data twice", |w| data(w.cids[READ], 0, 512, 0).repeat(2), range),
        (
            "data after the last",
            |w| [data(w.cids[READ], 0, 512, FLAG_LAST_PDU), data(w.cids[READ], 512, 4, 0)].concat(),
            range,
        ),
        ("success before the last", |w| data(w.cids[READ], 0, 512, FLAG_SUCCESS), field(1)),
        ("an R2T for nothing", |_| r2t(5, 0, 512), cccid),
        ("an R2T for a read", |w| r2t(w.cids[READ], 0, 512), cccid),
        ("an R2T beyond the end", |w| r2t(w.cids[WRITE], 0, BYTES + 1), range),
        ("an R2T with a gap", |w| r2t(w.cids[WRITE], 512, 512), range),
        ("a second R2T before the first is answered", |w| r2t(w.cids[WRITE], 0, 512).repeat(2), {
            limit
        }),
    ];
    for (what, bytes, fault) in lies {
        let mut world = World::under_way();
        let bytes = bytes(&world);
        assert_eq!(world.broken_by(&bytes), Some(fault), "{what}");
        world.check_guards();
        assert!(world.connection.abandon().len() >= 2, "{what}: the rest is told of");
    }
}

#[test]
fn the_length_in_a_data_header_is_that_of_its_data() {
    let mut world = World::under_way();
    let mut lying = data(world.cids[READ], 0, 512, 0);
    lying[16..20].copy_from_slice(&1024u32.to_le_bytes());
    assert_eq!(world.broken_by(&lying), Some(Fault::field(16)));
    let mut empty = World::under_way();
    let none = pdu(pdu_type::C2H_DATA, |it: &mut Data| it.cccid = empty.cids[READ].into());
    assert_eq!(empty.broken_by(&none), Some(Fault::field(16)));
    let mut none = World::under_way();
    let r2t = r2t(none.cids[WRITE], 0, 0);
    assert_eq!(none.broken_by(&r2t), Some(Fault::field(16)));
}

#[test]
fn data_is_not_asked_for_before_its_command_has_left() {
    let mut world = World::open();
    world.cids = vec![0, 1, 2];
    assert_eq!(world.broken_by(&r2t(1, 0, 512)), Some(Fault::of(fes::LIMIT_EXCEEDED)));
}

#[test]
fn a_connection_response_that_cannot_be() {
    let unsupported = |at: u32| Some(Fault { fes: fes::UNSUPPORTED_PARAMETER, fei: at });
    type Spoil = fn(&mut IcResp);
    let wrong: [(Spoil, u32); 5] = [
        (|it| it.pfv = 1.into(), 8),
        (|it| it.cpda_z = 32, 10),
        (|it| it.dgst = 1, 11),
        (|it| it.maxh2cdata = 4092.into(), 12),
        (|it| it.maxh2cdata = 4097.into(), 12),
    ];
    for (spoil, at) in wrong {
        let mut world = World::new();
        world.cids = vec![0; 3];
        assert!(!world.sent().is_empty());
        assert_eq!(world.broken_by(&ic_resp(spoil)), unsupported(at));
    }
    let mut early = World::new();
    early.cids = vec![0; 3];
    early.sent();
    let early = early.broken_by(&response(0, Status::SUCCESS));
    assert_eq!(early, Some(Fault::of(fes::SEQUENCE_ERROR)));
}

#[test]
fn success_without_the_data_is_no_success() {
    let mut world = World::under_way();
    let [read, write, flush] = world.cids[..] else { panic!("three commands") };
    let stream = [
        data(read, 0, 512, FLAG_LAST_PDU | FLAG_SUCCESS),
        response(write, Status::SUCCESS),
        response(flush, Status::SUCCESS),
    ];
    let events = world.feed(&stream.concat());
    let short = Status::DATA_TRANSFER_ERROR;
    assert_eq!(ends(&events), [(0, short), (1, short), (2, Status::SUCCESS)]);
    world.check_guards();
}

#[test]
fn data_that_does_not_match_its_digest_fails_its_command_alone() {
    for spoilt in [false, true] {
        let mut world = World::new();
        world.connection = Connection::new(Digests { header: false, data: true }, 8);
        world.receive(&ic_resp(|it| it.dgst = 2));
        world.events();
        world.sent();
        let data_of = |at| Spans::from(world.memory.subspan(GUARD + at, 512));
        for tag in 0..2 {
            let data = data_of(tag * 512);
            let io = Io { tag, nsid: 1, op: Op::Read, slba: 0, block_count: 1, data };
            assert!(world.connection.submit(Command::of_io(&io, None)));
        }
        world.sent();
        let mut stream = Vec::new();
        for cid in 0..2 {
            let mut pdu = data(cid, 0, 512, FLAG_LAST_PDU | FLAG_SUCCESS | FLAG_DDGST);
            pdu[4..8].copy_from_slice(&(24u32 + 512 + 4).to_le_bytes());
            let digest = digest_of(&pdu[24..]);
            pdu.extend(digest);
            stream.extend(pdu);
        }
        stream[100] ^= u8::from(spoilt);
        let first = if spoilt { Status::TRANSIENT_TRANSPORT_ERROR } else { Status::SUCCESS };
        assert_eq!(ends(&world.feed(&stream)), [(0, first), (1, Status::SUCCESS)]);
    }
}

#[test]
fn memory_is_given_back_only_when_the_last_of_it_has_left() {
    let mut world = World::under_way();
    let write = world.cids[WRITE];
    // All of the data is asked for, and before it has left the command is answered.
    let stream = [r2t(write, 0, BYTES), response(write, Status::WRITE_FAULT)].concat();
    assert!(world.feed(&stream).is_empty());
    world.connection.handle_sent(24 + BYTES as usize - 1);
    assert!(world.events().is_empty(), "one byte is still to be sent");
    world.connection.handle_sent(1);
    assert_eq!(ends(&world.events()), [(1, Status::WRITE_FAULT)]);
}

#[test]
fn data_is_sent_in_parts_that_the_target_takes() {
    let mut world = World::new();
    world.receive(&ic_resp(|it| it.maxh2cdata = 4096.into()));
    world.events();
    world.sent();
    let arena = Arena::plain_pages(1 << 20).unwrap();
    let memory = arena.carve(20_000, 4096).unwrap();
    let runs = [memory.subspan(0, 5000), memory.subspan(8000, 5000)];
    let data = Spans::gather(&runs).unwrap();
    let io = Io { tag: 9, nsid: 1, op: Op::Write { fua: false }, slba: 0, block_count: 1, data };
    assert!(world.connection.submit(Command::of_io(&io, None)));
    let capsule = CapsuleCmd::read_from_bytes(&world.sent()).unwrap();
    assert!(world.feed(&r2t(capsule.sqe.cid(), 0, 10_000)).is_empty());
    let mut parts = Vec::new();
    loop {
        let sent = world.sent();
        let Ok((header, _)) = Data::read_from_prefix(&sent) else { break };
        assert_eq!(header.ttag.get(), 77);
        let last = header.header.flags & FLAG_LAST_PDU != 0;
        assert_eq!(sent.len(), 24 + header.datal.get() as usize);
        parts.push((header.datao.get(), header.datal.get(), last));
    }
    let wanted = [(0, 4096, false), (4096, 904, false), (5000, 4096, false), (9096, 904, true)];
    assert_eq!(parts, wanted, "no part in two runs, none larger than MAXH2CDATA");
}

#[test]
fn nothing_is_said_after_the_last_words() {
    let mut world = World::new();
    world.receive(&ic_resp(|it| it.maxh2cdata = 4096.into()));
    world.events();
    world.sent();
    let data = Spans::gather(&[world.memory.subspan(0, 512), world.memory.subspan(1024, 512)]);
    let data = data.unwrap();
    let io = Io { tag: 0, nsid: 1, op: Op::Write { fua: false }, slba: 0, block_count: 2, data };
    assert!(world.connection.submit(Command::of_io(&io, None)));
    let capsule = CapsuleCmd::read_from_bytes(&world.sent()).unwrap();
    assert!(world.feed(&r2t(capsule.sqe.cid(), 0, 1024)).is_empty());
    // The first of two PDUs of data has begun to leave when the target breaks the rules.
    world.connection.handle_sent(100);
    assert!(matches!(world.feed(&[0xFF; 8])[..], [Event::Broken(_)]));
    let sent = world.sent();
    assert_eq!((sent.len(), sent[24 + 512 - 100]), (24 + 512 - 100 + 32, pdu_type::H2C_TERM_REQ));
    assert!(world.sent().is_empty());
}

#[test]
fn a_target_that_refuses_us_is_heard() {
    let mut world = World::under_way();
    let term = pdu(pdu_type::C2H_TERM_REQ, |term: &mut TermReq| term.fes = 2.into());
    assert!(matches!(world.feed(&term)[..], [Event::Refused { fes: 2 }]));
    assert_eq!(world.connection.handle_input(&[0; 8]), 0, "nothing more is taken");
}

/// PDUs of a target, true or not.
fn any_pdu() -> impl Strategy<Value = Vec<u8>> {
    let cid = prop_oneof![0..4u16, any::<u16>()];
    let number = prop_oneof![Just(0), Just(512), Just(BYTES), 0..2 * BYTES, any::<u32>()];
    let length = prop_oneof![Just(512), Just(BYTES), 0..2 * BYTES];
    let flags = prop_oneof![Just(0u8), Just(FLAG_LAST_PDU), Just(12), any::<u8>()];
    prop_oneof![
        (cid.clone(), 0..4u16)
            .prop_map(|(cid, status)| { response(cid, Status::from_field(status << 1)) }),
        (cid.clone(), number.clone(), length, flags)
            .prop_map(|(cid, offset, length, flags)| data(cid, offset, length, flags)),
        (cid, number.clone(), number).prop_map(|(cid, offset, length)| r2t(cid, offset, length)),
        proptest::collection::vec(any::<u8>(), 0..200),
        any::<(u8, u8, u8, u8, u32)>().prop_map(|(pdu_type, flags, hlen, pdo, plen)| {
            CommonHeader { pdu_type, flags, hlen, pdo, plen: plen.into() }.as_bytes().to_vec()
        }),
    ]
}

proptest! {
    #[test]
    fn any_pdus_in_any_pieces(
        pdus in proptest::collection::vec(any_pdu(), 0..12),
        cuts in proptest::collection::vec(1..3000usize, 1..8),
        direct in any::<bool>(),
    ) {
        let mut world = World::under_way();
        let stream = pdus.concat();
        let (mut rest, mut ended) = (&stream[..], 0);
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let piece = &rest[..rest.len().min(*cut)];
            let taken = match world.connection.payload().filter(|_| direct) {
                Some(span) => {
                    let bytes = piece.len().min(span.len() as usize);
                    span.write(0, &piece[..bytes]);
                    world.connection.handle_payload(bytes as u32);
                    bytes
                }
                None => world.connection.handle_input(piece),
            };
            rest = &rest[taken..];
            let events = world.events();
            ended += ends(&events).len();
            if taken == 0 && events.is_empty() {
                break;
            }
            world.sent();
            ended += ends(&world.events()).len();
        }
        world.check_guards();
        ended += world.connection.abandon().len();
        prop_assert_eq!(ended, 3, "each command ends once");
    }
}
