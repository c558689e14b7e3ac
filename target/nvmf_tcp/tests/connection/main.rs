//! A host played PDU by PDU, over a wire that cuts bytes anywhere.

mod host;

use host::{BOTH, Host, NONE, RECEIVED, World, bytes_of, command};
use nvme_spec::command::Cqe;
use nvme_spec::status::Status;
use nvme_spec::tcp::{FLAG_LAST_PDU, FLAG_SUCCESS, fes, pdu_type};
use nvmf_tcp::{ConnectionEvent, Fault};

fn fault_at(offset: u32) -> Fault {
    Fault { fes: fes::INVALID_HEADER_FIELD, fei: offset }
}

fn success(cid: u16) -> Cqe {
    Cqe::new(cid, 1, 0, Status::SUCCESS)
}

#[test]
fn digests_are_used_when_both_sides_want_them() {
    for (host, ours, wanted) in [(BOTH, BOTH, 3), (NONE, BOTH, 0), (BOTH, NONE, 0), (2, BOTH, 2)] {
        let mut world = World::new(ours);
        world.receive(&Host::ic_req(host, 0));
        let sent = world.sent();
        assert_eq!((sent.len(), sent[0], sent[2]), (128, pdu_type::IC_RESP, 128));
        assert_eq!(sent[11], wanted, "digests of ICResp");
        assert!(u32::from_le_bytes(sent[12..16].try_into().unwrap()) >= 4096, "MAXH2CDATA");
    }
}

#[test]
fn a_connection_request_that_cannot_be_met() {
    for (at, what) in [(8, "the version"), (10, "the alignment")] {
        let mut world = World::new(NONE);
        let mut request = Host::ic_req(NONE, 0);
        request[at] = 200;
        world.receive(&request);
        let fault = Fault { fes: fes::UNSUPPORTED_PARAMETER, fei: at as u32 };
        assert_eq!(world.broken(), Some(fault), "{what}");
    }
}

#[test]
fn only_a_connection_request_comes_first_and_only_first() {
    let sequence = Some(Fault { fes: fes::SEQUENCE_ERROR, fei: 0 });
    let mut world = World::new(NONE);
    world.receive(&Host::default().capsule(&command(1), &[]));
    assert_eq!(world.broken(), sequence);
    let (mut world, _) = World::open(NONE, 0);
    world.receive(&Host::ic_req(NONE, 0));
    assert_eq!(world.broken(), sequence);
}

#[test]
fn capsules_come_in_pieces_of_any_size() {
    for digests in [NONE, BOTH] {
        for size in [1, 2, 7, 64, 1000] {
            let (mut world, host) = World::open(digests, 0);
            let data: Vec<u8> = (0..512).map(|at| at as u8).collect();
            let mut stream = host.capsule(&command(7), &data);
            stream.extend(host.capsule(&command(8), &[]));
            for piece in stream.chunks(size) {
                world.receive(piece);
            }
            let events = world.take_events();
            let [
                ConnectionEvent::Capsule { sqe: first, data: Some(span), intact: true, .. },
                ConnectionEvent::Capsule { sqe: second, data: None, intact: true, .. },
            ] = events[..]
            else {
                panic!("{events:?}")
            };
            assert_eq!((first.cid(), second.cid()), (7, 8));
            assert_eq!(bytes_of(span), data, "in pieces of {size}, digests {digests}");
        }
    }
}

#[test]
fn a_write_is_asked_for_and_comes_in_several_parts() {
    for digests in [NONE, BOTH] {
        let (mut world, host) = World::open(digests, 0);
        world.receive(&host.capsule(&command(5), &[]));
        let slot = world.capsule_slot();
        let buffer = world.buffer(12288);
        world.connection.fetch(slot, buffer);
        let r2t = host.r2t(&world.sent());
        assert_eq!((r2t.cccid.get(), r2t.r2to.get(), r2t.r2tl.get()), (5, 0, 12288));
        let data: Vec<u8> = (0..12288u32).map(|at| (at % 241) as u8).collect();
        for (at, last) in [(0, false), (4096, false), (8192, true)] {
            assert!(world.take_events().is_empty(), "nothing before all of it is there");
            let part = &data[at..at + 4096];
            world.receive_directly(&host.data(&r2t, at as u32, part, last));
        }
        let events = world.take_events();
        assert!(
            matches!(events[..], [ConnectionEvent::Fetched { intact: true, .. }]),
            "{events:?}"
        );
        assert_eq!(bytes_of(buffer), data);
    }
}

#[test]
fn a_read_sends_the_memory_itself_and_then_the_response() {
    for (digests, hpda_z) in [(NONE, 0), (BOTH, 0), (NONE, 31), (BOTH, 31)] {
        let (mut world, host) = World::open(digests, hpda_z);
        world.receive(&host.capsule(&command(3), &[]));
        let slot = world.capsule_slot();
        let buffer = world.buffer(8192);
        buffer.fill(0x5A);
        world.connection.respond(slot, &success(3), Some(buffer), true);
        let sent = world.sent();
        let (data, rest) = host.split(&sent);
        assert_eq!(
            (data.pdu_type, data.flags & FLAG_LAST_PDU),
            (pdu_type::C2H_DATA, FLAG_LAST_PDU)
        );
        assert_eq!(usize::from(data.pdo) % ((usize::from(hpda_z) + 1) * 4), 0, "alignment");
        assert_eq!(data.data, vec![0x5A; 8192]);
        let (response, rest) = host.split(rest);
        assert_eq!((response.pdu_type, rest.len()), (pdu_type::CAPSULE_RESP, 0));
        assert_eq!(response.header[8..24], *zerocopy::IntoBytes::as_bytes(&success(3)));
        assert!(matches!(world.take_events()[..], [ConnectionEvent::Responded { .. }]));
    }
}

#[test]
fn without_flow_control_success_needs_no_response() {
    let (mut world, host) = World::open(NONE, 0);
    world.receive(&host.capsule(&command(3), &[]));
    let slot = world.capsule_slot();
    let buffer = world.buffer(4096);
    world.connection.respond(slot, &success(3), Some(buffer), false);
    let sent = world.sent();
    let (data, rest) = host.split(&sent);
    assert_eq!((data.flags, rest.len()), (FLAG_LAST_PDU | FLAG_SUCCESS, 0));
    assert!(matches!(world.take_events()[..], [ConnectionEvent::Responded { .. }]));
    // A failure has its response, and so has success without data.
    for (status, data) in [(Status::INTERNAL_ERROR, Some(buffer)), (Status::SUCCESS, None)] {
        world.receive(&host.capsule(&command(4), &[]));
        let slot = world.capsule_slot();
        world.connection.respond(slot, &Cqe::new(4, 1, 0, status), data, false);
        let sent = world.sent();
        let (last, _) = host.last(&sent);
        assert_eq!(last, pdu_type::CAPSULE_RESP);
        world.take_events();
    }
}

#[test]
fn a_response_has_left_when_its_last_byte_has() {
    let (mut world, host) = World::open(BOTH, 0);
    world.receive(&host.capsule(&command(3), &[]));
    let slot = world.capsule_slot();
    let buffer = world.buffer(4096);
    world.connection.respond(slot, &success(3), Some(buffer), true);
    let length: usize = world.connection.pieces().map(|piece| piece.len()).sum();
    for left in (0..length).rev() {
        world.connection.handle_sent(1);
        let rest: usize = world.connection.pieces().map(|piece| piece.len()).sum();
        assert_eq!(rest, left);
        assert_eq!(world.take_events().len(), usize::from(left == 0));
    }
    assert!(world.connection.is_idle());
}

#[test]
fn data_that_does_not_match_its_digest_fails_its_command_alone() {
    let (mut world, host) = World::open(BOTH, 0);
    let mut capsule = host.capsule(&command(1), &[1; 512]);
    *capsule.last_mut().unwrap() ^= 1;
    world.receive(&capsule);
    let events = world.take_events();
    let [ConnectionEvent::Capsule { slot, intact: false, .. }] = events[..] else {
        panic!("{events:?}")
    };
    world.connection.respond(slot, &success(1), None, true);
    world.sent();
    world.take_events();
    // Of a transfer in two parts the first is broken: the second still belongs to it.
    world.receive(&host.capsule(&command(2), &[]));
    let slot = world.capsule_slot();
    let buffer = world.buffer(8192);
    world.connection.fetch(slot, buffer);
    let r2t = host.r2t(&world.sent());
    let mut part = host.data(&r2t, 0, &[2; 4096], false);
    *part.last_mut().unwrap() ^= 1;
    world.receive(&part);
    world.receive(&host.data(&r2t, 4096, &[2; 4096], true));
    let events = world.take_events();
    assert!(matches!(events[..], [ConnectionEvent::Fetched { intact: false, .. }]), "{events:?}");
}

#[test]
fn a_header_that_does_not_match_its_digest_ends_the_connection() {
    let (mut world, host) = World::open(BOTH, 0);
    let mut capsule = host.capsule(&command(1), &[]);
    capsule[30] ^= 1;
    let digest = u32::from_le_bytes(capsule[72..76].try_into().unwrap());
    world.receive(&capsule);
    assert_eq!(world.broken(), Some(Fault { fes: fes::HEADER_DIGEST_ERROR, fei: digest }));
    let sent = world.sent();
    assert_eq!((sent[0], sent[2]), (pdu_type::C2H_TERM_REQ, 24));
    assert_eq!(sent[24..24 + 72], capsule[..72], "the header that was wrong is quoted");
    // Nothing more is taken.
    assert_eq!(world.connection.handle_input(&host.capsule(&command(2), &[])), 0);
}

#[test]
fn data_outside_of_what_was_asked_for() {
    type Change = fn(&mut Vec<u8>);
    let cases: [(Change, Fault, &str); 8] = [
        (|pdu| pdu[10] = 9, fault_at(10), "a transfer tag never given"),
        (|pdu| pdu[8] = 99, fault_at(8), "another command"),
        (|pdu| pdu[12] = 4, Fault { fes: fes::DATA_OUT_OF_RANGE, fei: 0 }, "not at the beginning"),
        (|pdu| pdu[16] = 1, fault_at(16), "a length that is not that of the data"),
        (|pdu| pdu[1] = 0, fault_at(1), "the end without a flag"),
        (|pdu| pdu[6] = 0x20, Fault { fes: fes::LIMIT_EXCEEDED, fei: 0 }, "more than MAXH2CDATA"),
        (|pdu| pdu.truncate(24), fault_at(4), "no data at all"),
        (
            |pdu| {
                pdu[5] = 0x21;
                pdu[17] = 0x21;
            },
            Fault { fes: fes::DATA_OUT_OF_RANGE, fei: 0 },
            "more than was asked for",
        ),
    ];
    for (change, fault, what) in cases {
        let (mut world, host) = World::open(NONE, 0);
        world.receive(&host.capsule(&command(5), &[]));
        let slot = world.capsule_slot();
        let buffer = world.buffer(4096);
        buffer.fill(RECEIVED);
        world.connection.fetch(slot, buffer);
        let r2t = host.r2t(&world.sent());
        let mut pdu = host.data(&r2t, 0, &[7; 4096], true);
        change(&mut pdu);
        if what == "no data at all" {
            pdu[4..8].copy_from_slice(&20u32.to_le_bytes());
        }
        world.receive(&pdu);
        assert_eq!(world.broken(), Some(fault), "{what}");
        assert_eq!(bytes_of(buffer), vec![RECEIVED; 4096], "{what}: nothing was written");
    }
}

#[test]
fn nothing_is_said_after_the_last_words() {
    let (mut world, host) = World::open(NONE, 0);
    world.receive(&host.capsule(&command(1), &[]));
    let fetched = world.capsule_slot();
    world.receive(&host.capsule(&command(2), &[]));
    let answered = world.capsule_slot();
    world.receive(&[0xFF; 8]);
    assert!(world.broken().is_some());
    // The engine goes on until it is told that the queue is closed.
    let buffer = world.buffer(512);
    world.connection.fetch(fetched, buffer);
    world.connection.respond(answered, &success(2), Some(buffer), true);
    let sent = world.sent();
    assert_eq!((sent[0], sent.len()), (pdu_type::C2H_TERM_REQ, 24 + 8));
}

#[test]
fn a_host_that_sends_more_than_its_queue_holds_waits() {
    let (mut world, host) = World::open(NONE, 0);
    let stream: Vec<u8> =
        (0..6).flat_map(|cid| host.capsule(&command(cid), &[cid as u8; 64])).collect();
    let rest = world.receive(&stream);
    assert!(rest > 0, "not all of it is taken");
    let first = world.take_events();
    assert_eq!(first.len(), host::SLOTS);
    let mut stream = &stream[stream.len() - rest..];
    for (answered, event) in (0..).zip(first) {
        let ConnectionEvent::Capsule { slot, .. } = event else { panic!("{event:?}") };
        world.connection.respond(slot, &success(answered), None, true);
        world.sent();
        let rest = world.receive(stream);
        stream = &stream[stream.len() - rest..];
    }
    let events = world.take_events();
    let capsules = events.iter().filter(|event| matches!(event, ConnectionEvent::Capsule { .. }));
    assert_eq!((capsules.count(), stream.len()), (2, 0), "all have come in the end");
}

#[test]
fn a_connection_grows_and_a_capsule_that_waited_fits_its_slot() {
    let (mut world, host) = World::open(NONE, 0);
    let fill: Vec<u8> = (0..4).flat_map(|cid| host.capsule(&command(cid), &[])).collect();
    assert_eq!(world.receive(&fill), 0);
    let more = world.buffer(1024);
    let waits = host.capsule(&command(4), &[1; 512]);
    assert_eq!(world.receive(&waits), 512, "its header is taken, and no more");
    world.connection.grow(&[more.subspan(0, 512)]);
    assert_eq!(world.receive(&waits[waits.len() - 512..]), 0);
    assert_eq!(world.take_events().len(), 5);
    let waits = host.capsule(&command(5), &[1; 513]);
    world.receive(&waits);
    assert_eq!(world.broken(), Some(fault_at(4)), "more than every slot has room for");

    let (mut world, host) = World::open(NONE, 0);
    world.receive(&fill);
    let waits = host.capsule(&command(4), &[1; 4096]);
    assert_eq!(world.receive(&waits), 4096);
    world.connection.grow(&[more.subspan(512, 512)]);
    world.receive(&waits[waits.len() - 4096..]);
    assert_eq!(world.broken(), Some(fault_at(4)), "not what its slot has room for");
}

#[test]
fn a_host_that_refuses_us_is_heard() {
    let (mut world, _) = World::open(NONE, 0);
    let mut term = vec![0; 24 + 32];
    term[0] = pdu_type::H2C_TERM_REQ;
    term[2] = 24;
    term[4] = 56;
    term[8] = fes::SEQUENCE_ERROR as u8;
    world.receive(&term);
    let events = world.take_events();
    assert!(
        matches!(events[..], [ConnectionEvent::Refused { fes: fes::SEQUENCE_ERROR }]),
        "{events:?}"
    );
}

/// Whatever arrives, in whatever pieces: no panic, no byte outside of the memory that was named,
/// and the same events as in one piece.
#[test]
fn any_bytes_in_any_pieces() {
    use proptest::prelude::*;
    let stream = prop::collection::vec(any::<u8>(), 0..600);
    // Half of them valid PDUs with a byte changed: random bytes do not get far.
    let broken = (0u8..6, any::<u16>(), any::<u8>());
    let cuts = prop::collection::vec(1usize..200, 1..20);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(noise in stream, (digests, at, to) in broken, cuts in cuts)| {
        let digests = digests & 3;
        let run = |cuts: &[usize]| {
            let (mut world, host) = World::open(digests, 0);
            let mut bytes = host.capsule(&command(1), &[3; 300]);
            bytes.extend(host.capsule(&command(2), &[]));
            let place = usize::from(at) % bytes.len();
            bytes[place] ^= to;
            bytes.extend(&noise);
            let mut rest = &bytes[..];
            let mut seen = Vec::new();
            for &cut in cuts.iter().cycle() {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                let left = world.receive(piece);
                seen.extend(world.take_events().iter().map(told));
                if later.is_empty() || left > 0 {
                    break;
                }
                rest = later;
            }
            (seen, world.sent())
        };
        prop_assert_eq!(run(&cuts), run(&[usize::MAX]));
    });
}

/// An event as two worlds tell it, whose memory is elsewhere.
fn told(event: &ConnectionEvent) -> String {
    match *event {
        ConnectionEvent::Capsule { slot, sqe, data: Some(data), intact } => {
            format!("{slot} {sqe:?} {:?} {intact}", bytes_of(data))
        }
        other => format!("{other:?}"),
    }
}
