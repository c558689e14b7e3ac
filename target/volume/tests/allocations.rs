//! I/O in the steady state takes no memory from the heap.

mod rig;

use allocation_counter::measure;
use nvme_spec::status::Status;
use rig::Rig;
use volume::Call;

const BYTES: u64 = 32 << 20;
const BLOCK: u64 = 4096;

#[test]
fn reads_and_overwrites_allocate_nothing() {
    let mut rig = Rig::new(&[128 << 20]);
    rig.create("v", BYTES, 4096);
    let volume = rig.open("v");
    let data = vec![7; 1 << 20];
    for at in (0..BYTES).step_by(data.len()) {
        assert_eq!(rig.write(volume, at, &data), Status::SUCCESS);
    }
    rig.idle(std::time::Duration::from_millis(300));
    let (block, mut found) = ([9; BLOCK as usize], Vec::new());
    let mut round = |rig: &mut Rig, at| {
        assert_eq!(rig.write(volume, at, &block), Status::SUCCESS);
        found = rig.read(volume, at, BLOCK as usize);
    };
    round(&mut rig, 0);
    let rounds = 100;
    let info = measure(|| (1..=rounds).for_each(|index| round(&mut rig, index * BLOCK)));
    // What the rig takes for itself: a list of ends for each I/O, and the bytes that were read.
    assert_eq!(info.count_total, rounds * 3, "{info:?}");
}

#[test]
fn first_touches_allocate_nothing_once_there_is_room_for_as_many() {
    let mut rig = Rig::new(&[128 << 20]);
    rig.create("v", BYTES, 4096);
    let volume = rig.open("v");
    let block = [9; BLOCK as usize];
    let touch = |rig: &mut Rig, at| assert_eq!(rig.write(volume, at, &block), Status::SUCCESS);
    // The entries, nodes and lists that grow with what is under way are there after this.
    (0..1000).for_each(|index| touch(&mut rig, index * BLOCK));
    rig.idle(std::time::Duration::from_millis(300));
    // A checkpoint does take memory, and so do its lists of what has changed; the next one is far
    // away then.
    rig.call(Call::Checkpoint).unwrap();
    touch(&mut rig, 1000 * BLOCK);
    let touches = 100;
    let info = measure(|| (1001..1001 + touches).for_each(|index| touch(&mut rig, index * BLOCK)));
    assert_eq!(info.count_total, touches, "one list of ends for each in the rig: {info:?}");
}
