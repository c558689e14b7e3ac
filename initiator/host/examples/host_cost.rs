//! What the host side costs: nanoseconds of CPU per I/O.
//!
//! ```text
//! cargo run --release -p host --example host_cost
//! cargo run --release -p host --example host_cost -- tcp 192.0.2.7:4420 nqn.2026-11.io.example:a 1
//! ```
//!
//! Without arguments: the protocol alone, over a peer in memory that answers at once. Commands are
//! submitted, their capsules taken apart by address, reads answered with data and the success flag;
//! the time is that of all of it, less that of the peer alone.
//!
//! With a target: random 4 KiB reads over its network, for three seconds at each depth; wall-clock
//! time, and calls that move bytes per I/O. Reads only: nothing on the namespace changes.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dma::{Arena, DmaSpan};
use host::protocol::{Command, Connection, Event};
use host::{Controller, Io, IoQueue, Namespace, Op, Options};
use nvme_spec::tcp::{
    CapsuleCmd, Data, FLAG_LAST_PDU, FLAG_SUCCESS, IcResp, MAXH2CDATA_MIN, pdu_type,
};
use nvme_tcp::{Digests, Piece};
use zerocopy::{FromZeros, IntoBytes};

const BLOCK: u32 = 4096;
const DEPTH: usize = 32;
const ROUNDS: u32 = 100_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => in_memory(),
        [transport, addr, subnqn, nsid] => {
            let transport = transport.parse().map_err(anyhow::Error::msg)?;
            let addr = addr.parse().with_context(|| format!("{addr} is not ADDRESS:PORT"))?;
            let nsid = nsid.parse().with_context(|| format!("{nsid} is not a namespace"))?;
            over_network(Options::new(transport, addr, subnqn), nsid)
        }
        _ => bail!("usage: host_cost [tcp|rdma ADDRESS:PORT SUBSYSTEM-NQN NSID]"),
    }
}

/// A read of one block.
fn read(tag: u32, namespace: u32, slba: u64, block_count: u32, to: DmaSpan) -> Io {
    Io { tag, nsid: namespace, op: Op::Read, slba, block_count, data: to.into() }
}

fn in_memory() -> anyhow::Result<()> {
    let arena = Arena::plain_pages(4 << 20)?;
    let memory = arena.carve(DEPTH * BLOCK as usize, 4096)?;
    for (name, digests) in
        [("no digests", Digests::default()), ("both digests", Digests { header: true, data: true })]
    {
        let mut connection = open(digests)?;
        let mut answers = Vec::new();
        let mut spent = Duration::ZERO;
        for round in 0..ROUNDS / DEPTH as u32 {
            let began = Instant::now();
            let deadline = Some(began);
            for tag in 0..DEPTH as u32 {
                let to = memory.subspan(tag * BLOCK, BLOCK);
                let io = read(tag, 1, u64::from(round), 1, to);
                ensure!(connection.submit(Command::of_io(&io, deadline)), "no room");
            }
            let bytes: usize = connection.pieces().map(|piece| piece.len()).sum();
            spent += began.elapsed();
            answer(&connection, digests, memory, &mut answers);
            let began = Instant::now();
            connection.handle_sent(bytes);
            let mut done = 0;
            for pdu in &answers {
                // As a socket would: the header from a buffer, the data straight to its place.
                let header = connection.handle_input(&pdu.0);
                ensure!(header == pdu.0.len(), "the header was not taken");
                connection.handle_payload(BLOCK);
                connection.handle_input(&pdu.1);
                while let Some(event) = connection.poll_event() {
                    done += usize::from(matches!(event, Event::Completed(_)));
                }
            }
            spent += began.elapsed();
            ensure!(done == DEPTH, "{done} of {DEPTH} completed");
        }
        let each = spent.as_nanos() / u128::from(ROUNDS);
        println!("4 KiB reads over a peer in memory, {name}: {each} ns per I/O");
    }
    Ok(())
}

/// A connection that is initialized.
fn open(digests: Digests) -> anyhow::Result<Connection> {
    let mut connection = Connection::new(digests, DEPTH as u16);
    let sent = connection.pieces().map(|piece| piece.len()).sum();
    connection.handle_sent(sent);
    let mut response = IcResp::new_zeroed();
    (response.header.pdu_type, response.header.hlen) = (pdu_type::IC_RESP, 128);
    response.header.plen = 128.into();
    response.maxh2cdata = MAXH2CDATA_MIN.into();
    response.dgst = u8::from(digests.header) | u8::from(digests.data) << 1;
    connection.handle_input(response.as_bytes());
    ensure!(matches!(connection.poll_event(), Some(Event::Opened)), "not opened");
    Ok(connection)
}

/// What the peer sends for all capsules: before the data, and behind it.
fn answer(
    connection: &Connection,
    digests: Digests,
    memory: DmaSpan,
    answers: &mut Vec<(Vec<u8>, Vec<u8>)>,
) {
    answers.clear();
    for (index, piece) in connection.pieces().enumerate() {
        let Piece::Bytes(bytes) = piece else { continue };
        let Ok((capsule, _)) = <CapsuleCmd as zerocopy::FromBytes>::ref_from_prefix(bytes) else {
            continue;
        };
        let mut outbox = nvme_tcp::Outbox::default();
        outbox.negotiated(digests, 4);
        let mut data = Data::new_zeroed();
        data.header.pdu_type = pdu_type::C2H_DATA;
        data.header.flags = FLAG_LAST_PDU | FLAG_SUCCESS;
        data.cccid = capsule.sqe.cid;
        data.datal = BLOCK.into();
        let span = memory.subspan(index as u32 * BLOCK, BLOCK);
        outbox.push(&data, Some(span), None);
        let around = outbox.pieces().filter_map(|piece| match piece {
            Piece::Bytes(bytes) => Some(bytes.to_vec()),
            Piece::Span(_) => None,
        });
        let mut around: Vec<Vec<u8>> = around.collect();
        let behind = if around.len() > 1 { around.swap_remove(1) } else { Vec::new() };
        answers.push((around.swap_remove(0), behind));
    }
}

fn over_network(options: Options, nsid: u32) -> anyhow::Result<()> {
    let arena = Arena::plain_pages(4 << 20)?;
    let mut controller = Controller::connect(options, arena)?;
    let namespace = controller.namespace(nsid)?;
    let mut queue = controller.open_queue()?;
    let memory = arena.carve(128 * BLOCK as usize, 4096)?;
    println!("random 4 KiB reads, one queue, polled");
    for depth in [1, 32, 127] {
        measure(&mut controller, &mut queue, namespace, memory, depth)?;
    }
    controller.detach()?;
    Ok(())
}

fn measure(
    controller: &mut Controller,
    queue: &mut IoQueue,
    namespace: Namespace,
    memory: DmaSpan,
    depth: u32,
) -> anyhow::Result<()> {
    let blocks = BLOCK / namespace.block_bytes;
    let places = namespace.block_count / u64::from(blocks.max(1));
    ensure!(blocks > 0 && places > 0, "the namespace is too small");
    let began = Instant::now();
    let calls = queue.calls();
    let (mut now, mut done, mut seed) = (began, 0u64, 1u64);
    let mut free: Vec<u32> = (0..depth).collect();
    let mut turns = 0u32;
    while now - began < Duration::from_secs(3) {
        while let Some(tag) = free.pop() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let slba = (seed >> 33) % places * u64::from(blocks);
            let io = read(tag, namespace.nsid, slba, blocks, memory.subspan(tag * BLOCK, BLOCK));
            if queue.submit(now, &io).is_err() {
                free.push(tag);
                break;
            }
        }
        now = Instant::now();
        queue.poll(now);
        while let Some(completion) = queue.completed() {
            ensure!(completion.status.is_success(), "{}", completion.status);
            done += 1;
            free.push(completion.tag);
        }
        turns = turns.wrapping_add(1);
        if turns.is_multiple_of(1024) {
            while controller.poll(now).is_some() {}
        }
    }
    // What is still on its way uses the memory.
    while free.len() < depth as usize {
        queue.poll(Instant::now());
        free.extend(std::iter::from_fn(|| queue.completed()).map(|completion| completion.tag));
    }
    let per_second = done as f64 / (now - began).as_secs_f64();
    let calls = (queue.calls() - calls) as f64 / done as f64;
    println!("depth {depth:3}: {per_second:8.0} IOPS, {calls:.2} calls per I/O");
    Ok(())
}
