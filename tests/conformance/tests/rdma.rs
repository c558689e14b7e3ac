//! A connection over RDMA whose device is simulated, and whose controller answers what it likes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use dma::{Arena, DmaSpan};
use host::protocol::{Capsule, Command, Completed, Left, Placement, RdmaConnection};
use host::{Io, Op, Spans};
use nvme_spec::command::Cqe;
use nvme_spec::status::Status;
use proptest::prelude::*;

const DEPTH: u16 = 8;
const BLOCK: u32 = 8192;
const IN_CAPSULE: u32 = 4096;
const RESPONSE_BYTES: u32 = 16;

/// The queue pair: what was posted and has not completed, and the keys that give access.
struct World {
    connection: RdmaConnection,
    memory: DmaSpan,
    next_key: u32,
    /// Keys that are alive, with the place of their command.
    keys: BTreeMap<u32, u16>,
    capsules: BTreeMap<u16, (Capsule, u32)>,
    sends: VecDeque<u16>,
    invalidations: VecDeque<u16>,
    submitted: u32,
    ended: BTreeSet<u32>,
    broken: bool,
}

impl World {
    fn new() -> Self {
        let mut connection = RdmaConnection::new(DEPTH, IN_CAPSULE);
        connection.handle_accepted(0, DEPTH + 1).unwrap();
        let arena = Arena::plain_pages(1 << 20).unwrap();
        Self {
            connection,
            memory: arena.carve(usize::from(DEPTH) * BLOCK as usize, 4096).unwrap(),
            next_key: 1,
            keys: BTreeMap::new(),
            capsules: BTreeMap::new(),
            sends: VecDeque::new(),
            invalidations: VecDeque::new(),
            submitted: 0,
            ended: BTreeSet::new(),
            broken: false,
        }
    }

    fn submit(&mut self, kind: u8) {
        let tag = self.submitted;
        let memory = self.memory.subspan(tag % u32::from(DEPTH) * BLOCK, BLOCK);
        let (op, data) = match kind % 4 {
            0 => (Op::Read, memory.into()),
            1 => (Op::Write { fua: false }, memory.into()),
            2 => (Op::Write { fua: true }, memory.subspan(0, IN_CAPSULE).into()),
            _ => (Op::Flush, Spans::NONE),
        };
        let io = Io { tag, nsid: 1, op, slba: 0, block_count: 1, data };
        let command = Command::of_io(&io, Some(Instant::now()));
        let Some(capsule) = self.connection.submit(command) else { return };
        let place = capsule.place;
        assert!(!self.keys.values().any(|bound| *bound == place), "bound twice");
        if let Placement::Read(span) | Placement::Written(span) = capsule.data {
            assert_eq!((span.addr(), span.len()), (memory.addr(), memory.len()), "its data alone");
            self.keys.insert(self.next_key, place);
            self.connection.handle_bound(place, span, self.next_key);
            self.next_key += 1;
        }
        self.submitted += 1;
        self.capsules.insert(place, (capsule, tag));
        self.sends.push_back(place);
    }

    /// A response to the command in some place, with the invalidation of some key. A device refuses
    /// to invalidate a key that is not alive, so that such a response does not arrive.
    fn respond(&mut self, place: u16, lie: u8, bytes: u32, key: u32) {
        let Some((capsule, _)) = self.capsules.get(&place) else { return };
        let cid = capsule.sqe.cid() ^ if lie == 1 { 1 << 10 } else { 0 };
        let own = self.keys.iter().find(|(_, bound)| **bound == place).map(|(key, _)| *key);
        let key = match lie {
            0 | 1 => own,
            2 => None,
            _ => Some(key),
        };
        if key.is_some_and(|key| self.keys.remove(&key).is_none()) {
            return;
        }
        let cqe = Cqe::new(cid, 0, 0, Status::SUCCESS);
        match self.connection.handle_response(bytes, &cqe, key) {
            Ok(Some(place)) => self.invalidations.push_back(place),
            Ok(None) => {}
            Err(_) => self.broken = true,
        }
    }

    fn sent(&mut self) {
        let Some(place) = self.sends.pop_front() else { return };
        self.connection.handle_sent(place);
    }

    fn invalidated(&mut self) {
        let Some(place) = self.invalidations.pop_front() else { return };
        self.keys.retain(|_, bound| *bound != place);
        self.connection.handle_invalidated(place);
    }

    /// Whatever is over: nothing of it may be in use any more.
    fn complete(&mut self) {
        while let Some(Completed { tag, .. }) = self.connection.poll_completed() {
            let places = self.capsules.iter().filter(|(_, (_, other))| *other == tag);
            let place = *places.map(|(place, _)| place).next().expect("a command that is there");
            assert!(!self.keys.values().any(|bound| *bound == place), "its key is alive");
            assert!(!self.sends.contains(&place), "its capsule has not left");
            self.capsules.remove(&place);
            assert!(self.ended.insert(tag), "{tag} ended twice");
        }
    }

    /// The queue pair is destroyed: what is left ends here.
    fn end(mut self) {
        for left in self.connection.abandon() {
            let tag = match left {
                Left::Completed(done) => done.tag,
                Left::Unfinished(command) => command.tag,
            };
            assert!(self.ended.insert(tag), "{tag} ended twice");
        }
        assert!(self.ended.iter().copied().eq(0..self.submitted), "each command ends");
    }
}

proptest! {
    #[test]
    fn whatever_a_controller_answers_no_command_ends_with_its_key_alive(
        steps in proptest::collection::vec((0..5u8, any::<u8>(), 0..DEPTH, 1..24u32), 0..200),
        honest in any::<bool>(),
    ) {
        let mut world = World::new();
        for (step, what, place, key) in steps {
            match step {
                0 => world.submit(what),
                1 => world.sent(),
                2 => world.invalidated(),
                _ if honest => world.respond(place, what % 2 * 2, RESPONSE_BYTES, key),
                _ => {
                    let bytes = if what == 0 { 15 } else { RESPONSE_BYTES };
                    world.respond(place, what % 4, bytes, key);
                }
            }
            world.complete();
            if world.broken {
                break;
            }
        }
        world.end();
    }
}

#[test]
fn a_command_over_rdma_allocates_nothing() {
    let mut world = World::new();
    let memory = world.memory.subspan(0, BLOCK);
    let io = Io { tag: 0, nsid: 1, op: Op::Read, slba: 0, block_count: 1, data: memory.into() };
    let connection = &mut world.connection;
    let allocations = allocation_counter::measure(|| {
        for key in 0..1000 {
            let command = Command::of_io(&io, None);
            let capsule = connection.submit(command).unwrap();
            connection.handle_bound(capsule.place, memory, key);
            connection.handle_sent(capsule.place);
            let cqe = Cqe::new(capsule.sqe.cid(), 0, 0, Status::SUCCESS);
            connection.handle_response(RESPONSE_BYTES, &cqe, Some(key)).unwrap();
            assert!(connection.poll_completed().is_some());
        }
    });
    assert_eq!(allocations.count_total, 0);
}
