//! The data path allocates nothing per I/O: engine, buffer pool, and the channels in memory.

use std::time::Instant;

use allocation_counter::{AllocationInfo, measure};
use bdev::{Bdev, Channel, Completions, NullBdev, RamBdev};
use dma::{Arena, DmaSpan, Pool};
use nvme_spec::command::Sqe;
use nvme_spec::nvm::ReadWrite;
use nvme_spec::opcode::nvm;
use nvme_spec::sgl::SglDescriptor;
use nvmf::engine::{
    Carrier, Engine, EngineConfig, Namespace, QueueParams, QueueRole, RequestId, Step,
};

const SLOTS: u32 = 16;
const MAX_TRANSFER: u32 = 64 << 10;
const TURNS: usize = 200;

/// One core: an engine, a channel, and a carrier that is played here.
struct Core {
    engine: Engine,
    channel: Box<dyn Channel>,
    completions: Completions,
    ids: Vec<RequestId>,
    capsule: DmaSpan,
    now: Instant,
    responses: usize,
}

impl Core {
    fn new(bdev: &dyn Bdev) -> Self {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let capsule = arena.carve(4096, 4096).unwrap();
        // Half of what all slots want, so that requests wait for buffers too.
        let pool = Pool::new(arena, 8 * MAX_TRANSFER as usize, MAX_TRANSFER as usize).unwrap();
        let config =
            EngineConfig { requests: SLOTS, max_transfer_bytes: MAX_TRANSFER, queue_share: 1 };
        let mut engine = Engine::new(config, pool);
        let geometry = bdev.geometry();
        engine.set_namespace(0, 1, Some(Namespace { channel: 0, geometry, read_only: false }));
        let (queue, ids) = engine.open_queue(Carrier::Keyed, SLOTS).unwrap();
        let role = QueueRole::Io;
        let params = QueueParams { role, subsystem: 0, sq_entries: 16, flow_control: true };
        engine.bind_queue(queue, params);
        Self {
            engine,
            channel: bdev.open_channel(0).unwrap(),
            // Fewer than there are requests, so that some are left for the next poll.
            completions: Completions::with_capacity(4),
            ids,
            capsule,
            now: Instant::now(),
            responses: 0,
        }
    }

    fn run(&mut self, mut step: Step) {
        loop {
            step = match step {
                Step::Fetch(id) => self.engine.handle_fetched(id, true),
                Step::Submit { io, .. } => {
                    if self.channel.submit(io).is_err() {
                        self.engine.handle_busy(RequestId(io.tag));
                    }
                    return;
                }
                Step::Respond(id) => {
                    assert!(self.engine.request(id).cqe().status().is_success());
                    self.responses += 1;
                    self.engine.handle_sent(id)
                }
                Step::None => return,
                Step::Control(_) | Step::Drained(_) => panic!("{step:?}"),
            };
        }
    }

    /// The same command in every slot, until all have been answered.
    fn turn(&mut self, sqe: Sqe, in_capsule: bool) {
        let expected = self.responses + self.ids.len();
        for at in 0..self.ids.len() {
            let data = in_capsule.then_some(self.capsule);
            let step = self.engine.handle_capsule(self.ids[at], sqe, data);
            self.run(step);
        }
        while self.responses < expected {
            self.channel.poll(self.now, &mut self.completions);
            while let Some(done) = self.completions.pop() {
                let step = self.engine.handle_done(RequestId(done.tag), done.status);
                self.run(step);
            }
            self.engine.begin_turn();
            loop {
                match self.engine.poll_step() {
                    Step::None => break,
                    step => self.run(step),
                }
            }
        }
    }
}

/// What is allocated by 3200 I/Os of a kind, after one turn in which lists may grow.
fn allocations(bdev: &dyn Bdev, sqe: Sqe, in_capsule: bool) -> AllocationInfo {
    let mut core = Core::new(bdev);
    core.turn(sqe, in_capsule);
    let info = measure(|| (0..TURNS).for_each(|_| core.turn(sqe, in_capsule)));
    assert_eq!(core.engine.stats().ios as usize, (TURNS + 1) * core.ids.len());
    info
}

fn command(opcode: u8, block_count: u32, sgl: SglDescriptor) -> Sqe {
    let mut sqe = Sqe::new(opcode, 1);
    sqe.set_sgl(sgl);
    ReadWrite::new(64, block_count).set(&mut sqe);
    sqe
}

fn check(bdev: &dyn Bdev) {
    let keyed = |blocks: u32| SglDescriptor::keyed(0, blocks * 512, 1, true);
    for (what, sqe, in_capsule) in [
        ("read", command(nvm::READ, 8, keyed(8)), false),
        ("large read that waits for buffers", command(nvm::READ, 128, keyed(128)), false),
        ("write by fetch", command(nvm::WRITE, 128, keyed(128)), false),
        ("write in capsule", command(nvm::WRITE, 8, SglDescriptor::in_capsule(0, 4096)), true),
        ("flush", command(nvm::FLUSH, 1, keyed(0)), false),
    ] {
        let info = allocations(bdev, sqe, in_capsule);
        assert_eq!(info.count_total, 0, "{what} on {}: {info:?}", bdev.kind());
    }
}

#[test]
fn an_io_allocates_nothing() {
    check(&RamBdev::new("ram0", 512, 2048).unwrap());
    check(&NullBdev::new("null0", 512, 2048));
}

#[test]
fn a_pool_allocates_nothing() {
    let arena = Arena::plain_pages(1 << 20).unwrap();
    let mut pool = Pool::new(arena, 1 << 20, 256 << 10).unwrap();
    let info = measure(|| {
        for size in 0..TURNS as u32 {
            let first = pool.alloc(size * 1000).unwrap();
            let second = pool.alloc(4096).unwrap();
            pool.free(first);
            pool.free(second);
        }
    });
    assert_eq!(info.count_total, 0, "{info:?}");
}

/// The counter counts: a test of the test.
#[test]
fn an_allocation_is_seen() {
    let info = measure(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(100))));
    assert_eq!(info.count_total, 1);
}
