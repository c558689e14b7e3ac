//! SGL descriptors: one command per 20 bytes.

use std::cell::RefCell;

use dma::{DmaSpan, Pool};
use nvme_spec::command::Sqe;
use nvme_spec::nvm::ReadWrite;
use nvme_spec::opcode::nvm;
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::status::Status;
use nvmf::engine::{
    Carrier, Engine, EngineConfig, HostBuffer, Namespace, QueueParams, QueueRole, RequestId, Step,
};

use crate::capsule::geometry;
use crate::input::Input;

const MAX_TRANSFER: u32 = 64 << 10;
const CAPSULE: u32 = 4096;

struct World {
    engine: Engine,
    /// A request on a queue with keys, and one on a queue that is a stream.
    requests: [RequestId; 2],
    capsule: DmaSpan,
}

thread_local! {
    /// Arenas are for the life of a process, so that each thread makes one world only. A world in
    /// which something failed is not used again.
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Sends commands with descriptors of any kind: what is taken lies within the capsule or is as long
/// as the blocks, and what is refused is refused for the descriptor.
pub fn sgl(bytes: &[u8]) {
    let mut world = WORLD.take().unwrap_or_else(World::new);
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        world.send(&mut input);
    }
    WORLD.set(Some(world));
}

impl World {
    fn new() -> Self {
        let arena = crate::arena();
        let capsule = arena.carve(CAPSULE as usize, 4096).expect("room");
        let pool = Pool::new(arena, 256 << 10, MAX_TRANSFER as usize).expect("room");
        let config = EngineConfig { requests: 2, max_transfer_bytes: MAX_TRANSFER, queue_share: 1 };
        let mut engine = Engine::new(config, pool);
        let namespace = Namespace { channel: 0, geometry: geometry(512, 1000), read_only: false };
        engine.set_namespace(0, 1, Some(namespace));
        let requests = [Carrier::Keyed, Carrier::Stream].map(|carrier| {
            let (queue, ids) = engine.open_queue(carrier, 1).expect("a queue");
            let role = QueueRole::Io;
            let params = QueueParams { role, subsystem: 0, sq_entries: 2, flow_control: true };
            engine.bind_queue(queue, params);
            ids[0]
        });
        Self { engine, requests, capsule }
    }

    fn send(&mut self, input: &mut Input<'_>) {
        let flags = input.byte();
        let blocks = u32::from(input.byte() % 140) + 1;
        let behind = u32::from(input.take::<u16>()) % (CAPSULE + 1);
        let sgl = SglDescriptor(input.take());
        let is_read = flags & 2 != 0;
        let id = self.requests[usize::from(flags & 1)];
        let mut sqe = Sqe::new(if is_read { nvm::READ } else { nvm::WRITE }, 1);
        ReadWrite::new(0, blocks).set(&mut sqe);
        sqe.set_sgl(sgl);
        let data = (behind > 0).then(|| self.capsule.subspan(0, behind));
        let mut step = self.engine.handle_capsule(id, sqe, data);
        let bytes = blocks * 512;
        if let Step::Fetch(same) = step {
            assert!(same == id && !is_read);
            assert_eq!(self.engine.request(id).data().map(|data| data.len()), Some(bytes));
            step = self.engine.handle_fetched(id, true);
        }
        if let Step::Submit { io, .. } = step {
            let buffer = io.buffer.expect("memory for the blocks");
            assert_eq!(buffer.len(), bytes);
            self.check_taken(id, &sgl, behind, buffer);
            step = self.engine.handle_done(id, Status::SUCCESS);
        } else {
            let refusals = [
                Status::INVALID_FIELD,
                Status::DATA_SGL_LENGTH_INVALID,
                Status::SGL_DESCRIPTOR_TYPE_INVALID,
                Status::SGL_OFFSET_INVALID,
            ];
            let status = self.engine.request(id).cqe().status();
            assert!(refusals.iter().any(|s| s.with_dnr() == status), "{status:?}");
        }
        assert!(matches!(step, Step::Respond(same) if same == id), "{step:?}");
        assert!(matches!(self.engine.handle_sent(id), Step::None));
        assert_eq!(self.engine.pool().free_bytes(), self.engine.pool().bytes());
    }

    fn check_taken(&self, id: RequestId, sgl: &SglDescriptor, behind: u32, buffer: DmaSpan) {
        let is_keyed = id == self.requests[0];
        match self.engine.request(id).host() {
            HostBuffer::Keyed { address, key, .. } => {
                assert!(is_keyed && sgl.descriptor_type() == 4);
                assert_eq!((address, key), (sgl.address(), sgl.key()));
                assert_eq!(sgl.keyed_length(), buffer.len());
            }
            HostBuffer::Stream => assert!(!is_keyed && sgl.0[15] == 0x5A),
            HostBuffer::None => {
                assert_eq!(sgl.0[15], 0x01);
                let start = self.capsule.addr();
                let end = buffer.addr() + u64::from(buffer.len());
                assert_eq!(buffer.addr(), start + sgl.address());
                assert!(end <= start + u64::from(behind), "within what arrived");
            }
        }
    }
}
