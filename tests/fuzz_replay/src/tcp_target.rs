//! The target's end of an NVMe/TCP connection under a hostile host.

mod model;

use nvme_spec::command::Sqe;
use nvme_spec::tcp::{CapsuleCmd, Data, FLAG_LAST_PDU, IcReq, MAXH2CDATA_MIN, TermReq, pdu_type};
use nvme_tcp::Digests;
use nvmf_tcp::ConnectionConfig;
use zerocopy::FromZeros;

use self::model::World;
use crate::input::Input;
use crate::tcp::{pattern, pdu};

/// Events of a script.
const MAX_EVENTS: usize = 400;

/// Runs a script of what a host sends, however cut, and of what the engine and the socket do
/// meanwhile. What is taken is exactly what the specification allows; nothing is written but to the
/// page of a free slot and to the memory of a transfer, and there stands what was sent; each slot
/// is reported once until its response has left; what is sent is what was to be sent, as whole and
/// well-formed PDUs; after the end nothing is taken, and nothing said but its reason.
pub fn tcp_target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let bit = |bit: u8| choice & bit != 0;
    let config = ConnectionConfig { header_digest: bit(1), data_digest: bit(2) };
    let mut world = World::new(config);
    if !bit(4) {
        let wanted = Digests { header: !bit(8), data: !bit(16) };
        let request = ic_req(wanted, if bit(32) { input.byte() % 32 } else { 0 });
        world.receive(&request, input.byte());
    }
    for _ in 0..MAX_EVENTS {
        if input.is_empty() {
            break;
        }
        event(&mut world, &mut input);
        world.check();
    }
    world.finish();
}

fn event(world: &mut World, input: &mut Input<'_>) {
    let event = input.byte();
    match event % 16 {
        0..=2 => {
            let capsule = capsule(world, input);
            world.receive(&capsule, event >> 4);
        }
        3..=5 => {
            let data = data(world, input);
            world.receive(&data, event >> 4);
        }
        6 => {
            // A PDU with one byte that is another one.
            let mut wrong =
                if event & 0x10 == 0 { capsule(world, input) } else { data(world, input) };
            let at = usize::from(input.byte()) % wrong.len();
            wrong[at] ^= input.byte();
            world.receive(&wrong, event >> 4);
        }
        7 => {
            let raw: [u8; 16] = input.take();
            world.receive(&raw, event >> 4);
        }
        8 => {
            let other = other(event, input);
            world.receive(&other, input.byte());
        }
        9 => world.fetch(input.byte(), length(input)),
        10 | 11 => {
            let data = (event & 0x10 != 0).then(|| length(input));
            world.respond(input.byte(), data, event & 0x20 != 0, u64::from(event >> 6));
        }
        12 => world.send(usize::from(input.byte())),
        13 => world.send(usize::MAX),
        14 => world.grow(usize::from(event >> 4) % 4),
        _ => world.receive(&[], event >> 4),
    }
}

/// Bytes of data of a transfer or a response, not none.
fn length(input: &mut Input<'_>) -> u32 {
    match input.byte() {
        number @ 0..=127 => u32::from(number % 4 + 1) * 512,
        number => u32::from(number),
    }
}

fn ic_req(wanted: Digests, hpda_z: u8) -> Vec<u8> {
    let mut request = IcReq::new_zeroed();
    request.dgst = u8::from(wanted.header) | u8::from(wanted.data) << 1;
    request.hpda_z = hpda_z;
    pdu(&request, (pdu_type::IC_REQ, 0), &[], 0, Digests::default())
}

/// A command with or without data behind it, which may be too much.
fn capsule(world: &World, input: &mut Input<'_>) -> Vec<u8> {
    let mut capsule = CapsuleCmd::new_zeroed();
    capsule.sqe = Sqe::new(input.byte(), 1);
    capsule.sqe.cid = u16::from(input.byte()).into();
    let data = input.one_of(&[0, 0, 4, 512, 512, 1024, 1025, 9000]);
    let padding = input.one_of(&[0, 0, 0, 4, 56, 2]);
    let data = pattern(world.seed(), data);
    pdu(&capsule, (pdu_type::CAPSULE_CMD, 0), &data, padding, world.digests())
}

/// The next data of a transfer, or some that is not.
fn data(world: &World, input: &mut Input<'_>) -> Vec<u8> {
    let transfer = world.transfer(input.byte());
    let mut data = Data::new_zeroed();
    (data.cccid, data.ttag) = (transfer.cid.into(), transfer.slot.into());
    data.datao = transfer.received.into();
    let rest = transfer.bytes - transfer.received;
    let mut bytes = match input.byte() {
        number @ 0..=127 => rest.min(u32::from(number) * 16 + 1),
        _ => rest,
    };
    let mut flags = if bytes == rest { FLAG_LAST_PDU } else { 0 };
    match input.byte() {
        1 => data.datao = input.take(),
        2 => bytes = input.near(rest.into()) as u32 % (2 * MAXH2CDATA_MIN),
        3 => data.ttag = u16::from(input.byte()).into(),
        4 => data.cccid = u16::from(input.byte()).into(),
        5 => flags ^= FLAG_LAST_PDU,
        _ => {}
    }
    data.datal = bytes.into();
    let padding = input.one_of(&[0, 0, 0, 4, 100, 1]);
    let bytes = pattern(world.seed(), bytes as usize);
    pdu(&data, (pdu_type::H2C_DATA, flags), &bytes, padding, world.digests())
}

/// What opens and what ends a connection.
fn other(event: u8, input: &mut Input<'_>) -> Vec<u8> {
    if event & 0x10 == 0 {
        let mut request = ic_req(Digests { header: true, data: true }, 0);
        request[8 + usize::from(input.byte() % 8)] = input.byte();
        return request;
    }
    let mut term = TermReq::new_zeroed();
    term.fes = input.take();
    let quoted = pattern(0, usize::from(input.byte() % 140));
    pdu(&term, (pdu_type::H2C_TERM_REQ, 0), &quoted, 0, Digests::default())
}
