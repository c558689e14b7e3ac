//! The host's end of an NVMe/TCP connection under a hostile controller.

mod model;

use host::Op;
use nvme_spec::command::Cqe;
use nvme_spec::status::Status;
use nvme_spec::tcp::{
    CapsuleResp, Data, FLAG_LAST_PDU, FLAG_SUCCESS, IcResp, R2t, TermReq, pdu_type,
};
use nvme_tcp::Digests;
use zerocopy::FromZeros;

use self::model::World;
use crate::input::Input;
use crate::tcp::{pattern, pdu};

/// Events of a script.
const MAX_EVENTS: usize = 400;

/// Runs a script of what a controller sends, however cut, and of I/Os that are submitted and leave
/// meanwhile. What is taken is exactly what the specification allows; nothing is written but to the
/// memory of a read, where it is due, and nothing is sent but the memory of a write, as far as it
/// was asked for; each I/O ends once, and none after the connection was abandoned; none succeeds
/// whose data has not come or gone, whole and intact; after the end nothing is taken, and nothing
/// said but its reason.
pub fn tcp_host(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let bit = |bit: u8| choice & bit != 0;
    let digests = Digests { header: bit(1), data: bit(2) };
    let mut world = World::new(digests, if bit(16) { 1024 } else { 0 });
    if !bit(4) {
        let cpda_z = if bit(8) { input.byte() % 32 } else { 0 };
        let response = ic_resp(digests, cpda_z, 4096);
        world.receive(&response, input.byte());
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
        0..=2 => submit(world, input),
        3 => world.send(usize::from(input.byte())),
        4 => world.send(usize::MAX),
        5 | 6 => {
            let data = data(world, input);
            world.receive(&data, event >> 4);
        }
        7 | 8 => {
            let r2t = r2t(world, input);
            world.receive(&r2t, event >> 4);
        }
        9 | 10 => {
            let response = response(world, input);
            world.receive(&response, event >> 4);
        }
        11 => {
            let raw: [u8; 16] = input.take();
            world.receive(&raw, event >> 4);
        }
        12 => {
            // A PDU with one byte that is another one.
            let mut wrong = match event & 0x30 {
                0 => response(world, input),
                0x10 => r2t(world, input),
                _ => data(world, input),
            };
            let at = usize::from(input.byte()) % wrong.len();
            wrong[at] ^= input.byte();
            world.receive(&wrong, event >> 4);
        }
        13 if event & 0xF0 == 0 => world.abandon(),
        13 => world.receive(&[], event >> 4),
        _ => {
            let other = other(event, input);
            world.receive(&other, input.byte());
        }
    }
}

fn submit(world: &mut World, input: &mut Input<'_>) {
    let op = input.one_of(&[
        Op::Read,
        Op::Read,
        Op::Write { fua: false },
        Op::Write { fua: true },
        Op::Compare,
        Op::Flush,
        Op::WriteZeroes { deallocate: false, fua: false },
        Op::Deallocate { ranges: 4 },
    ]);
    // Up to four runs of its memory.
    let shape = input.byte();
    world.submit(op, shape);
}

/// The identifier of a command that is on its way, or of none.
fn cid(world: &World, input: &mut Input<'_>) -> (u16, u32, u32) {
    let number = input.byte();
    let (cid, moved, bytes) = world.command(number);
    (if number == 0xFF { input.take() } else { cid }, moved, bytes)
}

/// The next data of a command, or some that is not.
fn data(world: &World, input: &mut Input<'_>) -> Vec<u8> {
    let (cid, moved, bytes) = cid(world, input);
    let mut data = Data::new_zeroed();
    (data.cccid, data.datao) = (cid.into(), moved.into());
    let rest = bytes.saturating_sub(moved).max(1);
    let (part, what) = (input.byte(), input.byte());
    let mut length = if part < 128 { rest.min(u32::from(part) * 16 + 1) } else { rest };
    let mut flags = if length == rest { FLAG_LAST_PDU } else { 0 };
    match what % 16 {
        0..=3 if flags != 0 => flags |= FLAG_SUCCESS,
        4 => flags ^= FLAG_LAST_PDU,
        5 => flags ^= FLAG_SUCCESS,
        6 => data.datao = input.take(),
        7 => length = input.near(rest.into()) as u32 % 8192,
        _ => {}
    }
    data.datal = length.into();
    let padding = input.one_of(&[0, 0, 0, 4, 100, 1]);
    let bytes = pattern(world.seed(), length as usize);
    pdu(&data, (pdu_type::C2H_DATA, flags), &bytes, padding, world.digests())
}

fn r2t(world: &World, input: &mut Input<'_>) -> Vec<u8> {
    let (cid, moved, bytes) = cid(world, input);
    let mut r2t = R2t::new_zeroed();
    r2t.cccid = cid.into();
    r2t.ttag = u16::from(input.byte()).into();
    let rest = bytes.saturating_sub(moved);
    (r2t.r2to, r2t.r2tl) = (moved.into(), rest.into());
    match input.byte() {
        1 => r2t.r2to = input.take(),
        2 => r2t.r2tl = (input.near(rest.into()) as u32).into(),
        number @ 128.. => r2t.r2tl = rest.min(u32::from(number)).into(),
        _ => {}
    }
    pdu(&r2t, (pdu_type::R2T, 0), &[], 0, world.digests())
}

fn response(world: &World, input: &mut Input<'_>) -> Vec<u8> {
    let (cid, ..) = cid(world, input);
    let mut response = CapsuleResp::new_zeroed();
    let status = input.one_of(&[Status::SUCCESS, Status::SUCCESS, Status::WRITE_FAULT]);
    response.cqe = Cqe::new(cid, 1, input.byte().into(), status);
    pdu(&response, (pdu_type::CAPSULE_RESP, 0), &[], 0, world.digests())
}

fn ic_resp(digests: Digests, cpda_z: u8, maxh2cdata: u32) -> Vec<u8> {
    let mut response = IcResp::new_zeroed();
    response.dgst = u8::from(digests.header) | u8::from(digests.data) << 1;
    (response.cpda_z, response.maxh2cdata) = (cpda_z, maxh2cdata.into());
    pdu(&response, (pdu_type::IC_RESP, 0), &[], 0, Digests::default())
}

/// What opens and what ends a connection.
fn other(event: u8, input: &mut Input<'_>) -> Vec<u8> {
    if event & 0x10 == 0 {
        let choice = input.byte();
        let digests = Digests { header: choice & 1 != 0, data: choice & 2 != 0 };
        let mut response = ic_resp(digests, 0, 4096 + u32::from(choice >> 2));
        response[8 + usize::from(input.byte() % 8)] ^= input.byte();
        return response;
    }
    let mut term = TermReq::new_zeroed();
    term.fes = input.take();
    let quoted = pattern(0, usize::from(input.byte() % 140));
    pdu(&term, (pdu_type::C2H_TERM_REQ, 0), &quoted, 0, Digests::default())
}
