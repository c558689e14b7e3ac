//! Whatever is done to volumes, each reads what was written to it.

use proptest::prelude::*;

use crate::world::World;

#[derive(Clone, Debug)]
enum Step {
    Write { volume: usize, index: usize, mask: u16, guard: bool },
    Late { volume: usize, index: usize, mask: u16, overtaken: u16 },
    Unguard { volume: usize, index: usize },
    Clear { volume: usize, index: usize, mask: u16 },
    ClearRange { volume: usize, index: usize, from: u64, to: usize },
    Create,
    Share { volume: usize, writable: bool },
    Delete { volume: usize },
    BeginRead { volume: usize, index: usize, block: u64 },
    EndRead,
    Free { count: usize },
    Reap { budget: usize },
    BeginCheckpoint,
    GoOn { count: usize },
    AbortCheckpoint,
}

/// Entries in several leaves and directories; the first and last of each are among them.
const INDEXES: [u32; 10] =
    [0, 1, 511, 512, 513, 1024, 512 * 1024 - 1, 512 * 1024, 512 * 1025, (1 << 29) - 1];

fn masks() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(u16::MAX),
        (0..16u32).prop_map(|block| 1 << block),
        (0..4u32).prop_map(|quarter| 15 << (4 * quarter)),
        1..=u16::MAX,
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let (volume, index) = (0..8usize, 0..INDEXES.len());
    let at = (volume.clone(), index.clone());
    prop_oneof![
        14 => (at.clone(), masks(), any::<bool>())
            .prop_map(|((volume, index), mask, guard)| Step::Write { volume, index, mask, guard }),
        2 => (at.clone(), masks(), masks(), any::<bool>()).prop_map(
            |((volume, index), mask, other, both)| {
                Step::Late { volume, index, mask, overtaken: if both { other } else { 0 } }
            }
        ),
        2 => at.clone().prop_map(|(volume, index)| Step::Unguard { volume, index }),
        3 => (at.clone(), masks())
            .prop_map(|((volume, index), mask)| Step::Clear { volume, index, mask }),
        2 => (at.clone(), 0..16u64, index.clone()).prop_map(|((volume, index), from, to)| {
            Step::ClearRange { volume, index, from, to }
        }),
        1 => Just(Step::Create),
        3 => (volume.clone(), any::<bool>())
            .prop_map(|(volume, writable)| Step::Share { volume, writable }),
        2 => volume.clone().prop_map(|volume| Step::Delete { volume }),
        4 => (at, 0..16u64)
            .prop_map(|((volume, index), block)| Step::BeginRead { volume, index, block }),
        4 => Just(Step::EndRead),
        6 => (0..12usize).prop_map(|count| Step::Free { count }),
        4 => (0..5usize).prop_map(|budget| Step::Reap { budget }),
        2 => Just(Step::BeginCheckpoint),
        6 => (0..4usize).prop_map(|count| Step::GoOn { count }),
        1 => Just(Step::AbortCheckpoint),
    ]
}

fn take(world: &mut World, step: &Step) {
    let volumes = world.volumes.len();
    let few = volumes < 8;
    match *step {
        Step::Create if few => return world.create(),
        Step::EndRead => return world.end_read(),
        Step::Free { count } => return world.free(count),
        Step::Reap { budget } => return world.reap(budget),
        Step::BeginCheckpoint => return world.begin_checkpoint(),
        Step::AbortCheckpoint => return world.abort_checkpoint(),
        Step::GoOn { count } => {
            world.step_checkpoint(count);
            return world.check_stored();
        }
        _ if volumes == 0 => return,
        _ => {}
    }
    match *step {
        Step::Write { volume, index, mask, guard } => {
            world.write(volume % volumes, INDEXES[index], mask, guard);
        }
        Step::Late { volume, index, mask, overtaken } if few => {
            world.late(volume % volumes, INDEXES[index], mask, overtaken);
        }
        Step::Unguard { volume, index } => world.unguard(volume % volumes, INDEXES[index]),
        Step::Clear { volume, index, mask } => {
            world.clear(volume % volumes, INDEXES[index], mask);
        }
        Step::ClearRange { volume, index, from, to } => {
            let first = u64::from(INDEXES[index]) * 16 + from;
            let end = (u64::from(INDEXES[to]) + 1) * 16;
            world.clear_range(volume % volumes, first, end.saturating_sub(first));
        }
        Step::Share { volume, writable } if few => world.share(volume % volumes, writable),
        Step::Delete { volume } => world.delete(volume % volumes),
        Step::BeginRead { volume, index, block } => {
            world.begin_read(volume % volumes, u64::from(INDEXES[index]) * 16 + block);
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Also while reads of an older map are in flight, and a checkpoint is written, which has the
    /// state of the instant at which it began; and all that was taken is free in the end.
    #[test]
    fn each_volume_reads_what_was_written_to_it(
        steps in prop::collection::vec(steps(), 1..150),
    ) {
        let mut world = World::new();
        for step in &steps {
            take(&mut world, step);
            world.check();
        }
        world.check_reopened();
        world.check();
        world.check_empty();
    }
}
