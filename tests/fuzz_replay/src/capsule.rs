//! The engine under hostile capsules, in any order of events.

mod model;

use std::cell::RefCell;

use bdev::Geometry;
use nvme_spec::command::Sqe;
use nvme_spec::nvm::{DSM_DEALLOCATE, ReadWrite};
use nvme_spec::opcode::{FABRICS, admin, nvm};
use nvme_spec::status::Status;
use nvmf::engine::{Carrier, Namespace, QueueParams, QueueRole};

use self::model::World;
use crate::input::Input;

thread_local! {
    /// Arenas are for the life of a process, so that each thread makes one world only. A world in
    /// which something failed is not used again.
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Runs a script of capsules, completions and closes, then ends everything. A request is answered
/// once at most and never after its queue has closed, each queue drains once, and all buffers come
/// back.
pub fn capsule(bytes: &[u8]) {
    let mut world = WORLD.take().unwrap_or_else(World::new);
    let mut input = Input::new(bytes);
    world.set_namespace(1, Some(namespace(0, 512, 1000)));
    world.set_namespace(2, Some(Namespace { read_only: true, ..namespace(1, 4096, 64) }));
    world.open(Carrier::Keyed);
    world.bind(0, io_queue(8));
    while !input.is_empty() {
        event(&mut world, &mut input);
        world.check();
    }
    world.finish();
    WORLD.set(Some(world));
}

pub(crate) fn geometry(block_bytes: u32, block_count: u64) -> Geometry {
    Geometry {
        block_bytes,
        block_count,
        volatile_write_cache: true,
        deallocate_reads_zeroes: true,
        atomic_write_blocks: 1,
        preferred_write_blocks: 1,
    }
}

fn namespace(channel: u32, block_bytes: u32, block_count: u64) -> Namespace {
    Namespace { channel, geometry: geometry(block_bytes, block_count), read_only: false }
}

fn io_queue(sq_entries: u16) -> QueueParams {
    QueueParams { role: QueueRole::Io, subsystem: 0, sq_entries, flow_control: true }
}

fn event(world: &mut World, input: &mut Input<'_>) {
    let event = input.byte();
    let number = input.byte();
    match event % 16 {
        0..=5 => {
            let sqe = if number & 0x80 == 0 { plausible(input) } else { input.sqe() };
            let behind = u32::from(input.byte()) * 17;
            world.capsule(number & 0x7F, sqe, behind);
        }
        6 => {
            let data: [u8; 32] = input.take();
            world.fetched(number, event & 0x10 == 0, &data);
        }
        7 | 8 => world.done(number, if event & 0x10 == 0 { Status::SUCCESS } else { failed() }),
        9 => world.busy(number),
        10 => world.sent(number),
        11 => world.answer(number, u32::from(input.byte()) * 512),
        12 => world.poll(),
        13 => world.abort(usize::from(number), input.byte().into()),
        14 => match number % 4 {
            0 => world.close(usize::from(event >> 4)),
            1 => world.release_carried(usize::from(event >> 4)),
            2 => world.open(if event & 0x10 == 0 { Carrier::Keyed } else { Carrier::Stream }),
            _ => {
                let entries = 2 + u16::from(input.byte());
                let role = input.one_of(&[QueueRole::Io, QueueRole::Admin, QueueRole::Unbound]);
                let flow_control = event & 0x80 == 0;
                let params = QueueParams { role, flow_control, ..io_queue(entries) };
                world.bind(usize::from(event >> 4), params);
            }
        },
        _ => {
            let nsid = u32::from(number % 2) + 1;
            world.set_namespace(nsid, any_namespace(number, input));
        }
    }
}

fn failed() -> Status {
    Status::UNRECOVERED_READ_ERROR
}

fn any_namespace(number: u8, input: &mut Input<'_>) -> Option<Namespace> {
    let block_bytes = if number & 4 == 0 { 512 } else { 4096 };
    let blocks = u64::from(input.byte()) + 1;
    let read_only = number & 8 != 0;
    let channel = u32::from(number >> 4 & 1);
    (number & 2 == 0).then(|| Namespace { read_only, ..namespace(channel, block_bytes, blocks) })
}

/// A command that a host could have meant, but for a field or two.
pub(crate) fn plausible(input: &mut Input<'_>) -> Sqe {
    let opcodes = [
        nvm::READ,
        nvm::WRITE,
        nvm::WRITE,
        nvm::COMPARE,
        nvm::WRITE_ZEROES,
        nvm::FLUSH,
        nvm::DATASET_MANAGEMENT,
        FABRICS,
        admin::IDENTIFY,
    ];
    let opcode = input.one_of(&opcodes);
    // On fabrics commands its lowest byte is FCTYPE: 8 is Disconnect.
    let nsid = input.one_of(&[1, 1, 1, 2, 2, 0, 8, u32::MAX]);
    let mut sqe = Sqe::new(opcode, nsid);
    let count = u32::from(input.byte()) % 160 + 1;
    let block_bytes = if nsid == 2 { 4096 } else { 512 };
    let bytes = match opcode {
        nvm::DATASET_MANAGEMENT => 16 * count,
        FABRICS => 1024,
        admin::IDENTIFY => 4096,
        _ => count * block_bytes,
    };
    sqe.set_sgl(input.sgl(bytes));
    sqe.cid = u16::from(input.byte() % 32).into();
    if opcode == nvm::DATASET_MANAGEMENT {
        (sqe.cdw10, sqe.cdw11) = ((count - 1).into(), DSM_DEALLOCATE.into());
    } else {
        let slba = input.near(1000);
        ReadWrite::new(slba, count).set(&mut sqe);
    }
    sqe
}
