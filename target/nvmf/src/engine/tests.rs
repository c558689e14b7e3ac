//! The engine as a carrier and a block device see it; both are played by the tests.

mod closing;
mod commands;
mod refusals;
mod waiting;

use bdev::{Geometry, Io};
use dma::{Arena, DmaSpan, Pool};
use nvme_spec::command::Sqe;
use nvme_spec::fabrics::fctype_of;
use nvme_spec::nvm::ReadWrite;
use nvme_spec::opcode::{FABRICS, nvm};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::status::Status;

use super::*;

const MAX_TRANSFER: u32 = 1 << 20;
const REQUESTS: u32 = 64;
const SUBSYSTEM: u32 = 3;
/// Namespace 1: 4096 blocks of 512 bytes. Namespace 2: 1000 blocks of 4 KiB, read-only.
const BLOCKS: u64 = 4096;
const CHANNEL: u32 = 7;
const KEY: u32 = 0xBEEF;

/// An engine with one I/O queue, and what its carrier knows.
struct World {
    engine: Engine,
    queue: QueueId,
    /// Requests whose slots wait for a capsule.
    armed: Vec<RequestId>,
    /// The memory of one capsule slot.
    capsule: DmaSpan,
}

fn geometry(block_bytes: u32, block_count: u64) -> Geometry {
    Geometry {
        block_bytes,
        block_count,
        volatile_write_cache: false,
        deallocate_reads_zeroes: true,
        atomic_write_blocks: 1,
        preferred_write_blocks: 1,
    }
}

fn namespace(channel: u32, block_bytes: u32, block_count: u64) -> Namespace {
    Namespace { channel, geometry: geometry(block_bytes, block_count), read_only: false }
}

fn io_queue(sq_entries: u16) -> QueueParams {
    QueueParams { role: QueueRole::Io, subsystem: SUBSYSTEM, sq_entries, flow_control: true }
}

impl World {
    /// A keyed I/O queue of 32 slots, and buffers of 4 MiB together.
    fn new() -> Self {
        Self::with(Carrier::Keyed, io_queue(32))
    }

    fn with(carrier: Carrier, params: QueueParams) -> Self {
        Self::with_share(carrier, params, 1)
    }

    fn with_share(carrier: Carrier, params: QueueParams, queue_share: usize) -> Self {
        let arena = Arena::plain_pages(8 << 20).unwrap();
        let capsule = arena.carve(8192, 4096).unwrap();
        let pool = Pool::new(arena, 4 << 20, MAX_TRANSFER as usize).unwrap();
        let config =
            EngineConfig { requests: REQUESTS, max_transfer_bytes: MAX_TRANSFER, queue_share };
        let mut engine = Engine::new(config, pool);
        engine.set_namespace(SUBSYSTEM, 1, Some(namespace(CHANNEL, 512, BLOCKS)));
        let read_only = Namespace { read_only: true, ..namespace(8, 4096, 1000) };
        engine.set_namespace(SUBSYSTEM, 2, Some(read_only));
        let (queue, mut armed) = engine.open_queue(carrier, 32).unwrap();
        engine.bind_queue(queue, params);
        armed.reverse();
        Self { engine, queue, armed, capsule }
    }

    fn send(&mut self, sqe: Sqe) -> Step {
        let id = self.armed.pop().expect("a slot");
        self.engine.handle_capsule(id, sqe, None)
    }

    /// Sends a command with `bytes` of data behind it in the capsule.
    fn send_with(&mut self, sqe: Sqe, bytes: u32) -> Step {
        let id = self.armed.pop().expect("a slot");
        self.engine.handle_capsule(id, sqe, Some(self.capsule.subspan(0, bytes)))
    }

    /// The response that a step sends, which has left when this returns.
    fn sent(&mut self, step: Step) -> Cqe {
        let Step::Respond(id) = step else { panic!("no response but {step:?}") };
        let cqe = *self.engine.request(id).cqe();
        assert!(matches!(self.engine.handle_sent(id), Step::None));
        self.armed.push(id);
        cqe
    }

    /// Sends a command that is answered at once, and says how.
    fn status(&mut self, sqe: Sqe) -> Status {
        let step = self.send(sqe);
        self.sent(step).status()
    }

    /// The block device ends what a step submitted; the response has left when this returns.
    fn complete(&mut self, step: Step) -> Cqe {
        let (id, _) = submitted(&step);
        let step = self.engine.handle_done(id, Status::SUCCESS);
        self.sent(step)
    }

    /// Nothing is held any more.
    fn assert_idle(&self) {
        assert_eq!(self.engine.pool().free_bytes(), self.engine.pool().bytes(), "buffers");
        assert_eq!(self.engine.waiting(), 0, "requests that wait");
        if let Some(load) = self.engine.queue_load(self.queue) {
            assert_eq!(load.in_flight, 0, "requests in flight");
        }
    }
}

fn submitted(step: &Step) -> (RequestId, Io) {
    let Step::Submit { io, .. } = step else { panic!("no I/O but {step:?}") };
    (RequestId(io.tag), *io)
}

fn fetching(step: &Step) -> RequestId {
    let Step::Fetch(id) = step else { panic!("no fetch but {step:?}") };
    *id
}

fn is_none(step: &Step) -> bool {
    matches!(step, Step::None)
}

fn command(opcode: u8, nsid: u32, sgl: SglDescriptor) -> Sqe {
    let mut sqe = Sqe::new(opcode, nsid);
    sqe.cid = 0x1234.into();
    sqe.set_sgl(sgl);
    sqe
}

/// A command on blocks of namespace 1, its data behind a key.
fn keyed(opcode: u8, slba: u64, block_count: u32) -> Sqe {
    let sgl = SglDescriptor::keyed(0x7000, block_count * 512, KEY, false);
    let mut sqe = command(opcode, 1, sgl);
    ReadWrite::new(slba, block_count).set(&mut sqe);
    sqe
}

/// A read of namespace 2.
fn read_of_second(block_count: u32) -> Sqe {
    let mut sqe = command(nvm::READ, 2, keyed_sgl(block_count * 4096));
    ReadWrite::new(0, block_count).set(&mut sqe);
    sqe
}

fn keyed_sgl(bytes: u32) -> SglDescriptor {
    SglDescriptor::keyed(0x7000, bytes, KEY, false)
}

/// Connect, with so much data.
fn connect(bytes: u32) -> Sqe {
    command(FABRICS, fctype_of::CONNECT.into(), keyed_sgl(bytes))
}

fn with_sgl(mut sqe: Sqe, sgl: SglDescriptor) -> Sqe {
    sqe.set_sgl(sgl);
    sqe
}

fn with_cid(mut sqe: Sqe, cid: u16) -> Sqe {
    sqe.cid = cid.into();
    sqe
}

fn read(slba: u64, block_count: u32) -> Sqe {
    keyed(nvm::READ, slba, block_count)
}

fn write(slba: u64, block_count: u32) -> Sqe {
    keyed(nvm::WRITE, slba, block_count)
}
