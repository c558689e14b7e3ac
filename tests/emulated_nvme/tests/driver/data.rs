//! Data arrives where it belongs.

use dma::DmaSpan;
use emulated_nvme::{CommandLimits, NamespaceSetup, Setup};
use nvme::{Busy, Command, Config, Op};
use nvme_spec::nvm::DsmRange;
use nvme_spec::status::Status;

use crate::world::{World, command, pattern, read, write};

fn bytes_of(span: DmaSpan) -> Vec<u8> {
    let mut bytes = vec![0; span.len() as usize];
    span.read(0, &mut bytes);
    bytes
}

#[test]
fn any_length_at_any_alignment() {
    for shadow_doorbells in [false, true] {
        let mut world = World::new(Setup { shadow_doorbells, ..Setup::default() });
        assert_eq!(world.device.identity().unwrap().shadow_doorbells, shadow_doorbells);
        assert_eq!(world.device.identity().unwrap().transfer_bytes, 128 << 10);
        let memory = world.memory(2 << 20);
        for (index, blocks) in
            [1, 7, 8, 9, 16, 17, 255, 256, 257, 1000, 2048].into_iter().enumerate()
        {
            for offset in [0, 4, 2048, 4092] {
                let span = memory.subspan(offset, blocks * 512);
                let wanted = pattern(span, index as u8 ^ offset as u8);
                let slba = 3 + index as u64;
                assert_eq!(world.run(write(1, slba, blocks, span)), Status::SUCCESS);
                assert_eq!(world.ssd.bytes(1, slba as usize * 512, wanted.len()), wanted);
                span.fill(0);
                assert_eq!(world.run(read(2, slba, blocks, span)), Status::SUCCESS);
                assert!(bytes_of(span) == wanted, "{blocks} blocks at {offset}");
                assert_eq!(
                    world.run(command(Op::Compare, 3, slba, blocks, Some(span))),
                    Status::SUCCESS
                );
            }
        }
        world.assert_well();
    }
}

#[test]
fn queues_wrap_and_fill_and_both_work() {
    for shadow_doorbells in [false, true] {
        let setup = Setup { shadow_doorbells, stepped: true, ..Setup::default() };
        let mut world = World::new(setup);
        let span = world.memory(4096);
        let depth = 31;
        for round in 0..50u32 {
            for pair in &mut world.pairs {
                for tag in 0..depth {
                    pair.submit(read(round * 100 + tag, u64::from(tag), 8, span)).unwrap();
                }
                assert_eq!(pair.submit(read(99, 0, 1, span)), Err(Busy));
            }
            let (done, _) = world.wait(2 * depth as usize);
            let mut tags: Vec<_> = done.iter().map(|completion| completion.tag).collect();
            tags.sort_unstable();
            let wanted: Vec<_> = (0..depth).flat_map(|tag| [round * 100 + tag; 2]).collect();
            assert_eq!(tags, wanted);
            assert!(done.iter().all(|completion| completion.status.is_success()));
        }
        for stats in world.device.queues().stats() {
            assert_eq!((stats.submissions, stats.completions, stats.stale), (1550, 1550, 0));
            // One for all submissions of a turn, one for all its completions.
            assert!((1..=100).contains(&stats.doorbells), "{stats:?}");
        }
        world.assert_well();
    }
}

#[test]
fn more_children_than_slots() {
    let config = Config { cores: 1, queue_entries: 4, ..Config::default() };
    let mut world = World::with(Setup { mdts: 1, ..Setup::default() }, config);
    let span = world.memory(1 << 20);
    let wanted = pattern(span, 9);
    // 128 children, three at a time, and two requests more behind it.
    let commands = [write(1, 0, 2048, span), write(2, 4096, 100, span), read(3, 8000, 1, span)];
    for command in &commands[..2] {
        world.pairs[0].submit(*command).unwrap();
    }
    let (done, _) = world.wait(1);
    assert_eq!((done[0].tag, done[0].status), (1, Status::SUCCESS));
    world.pairs[0].submit(commands[2]).unwrap();
    let (done, _) = world.wait(2);
    assert!(done.iter().all(|completion| completion.status.is_success()));
    assert!(world.ssd.bytes(1, 0, 1 << 20) == wanted);
    assert!(world.ssd.bytes(1, 4096 * 512, 51200) == wanted[..51200]);
    world.assert_well();
}

#[test]
fn zeroes_ranges_and_differences() {
    let blocks_of_4096 =
        NamespaceSetup { lbads: 12, block_count: 1024, ..NamespaceSetup::default() };
    let setup =
        Setup { namespaces: vec![NamespaceSetup::default(), blocks_of_4096], ..Setup::default() };
    let mut world = World::new(setup);
    assert_eq!(world.device.namespaces()[1].block_bytes, 4096);
    assert_eq!(world.device.namespaces()[1].uuid, Some([2; 16]));
    let on_2 = |command: Command| Command { nsid: 2, ..command };
    let span = world.memory(64 << 10);
    pattern(span, 3);
    assert_eq!(world.run(on_2(write(1, 10, 16, span))), Status::SUCCESS);
    let zeroes = Op::WriteZeroes { deallocate: true, fua: false };
    assert_eq!(world.run(on_2(command(zeroes, 2, 11, 2, None))), Status::SUCCESS);
    assert_eq!(world.run(on_2(command(Op::Compare, 3, 10, 1, Some(span)))), Status::SUCCESS);
    let differs = world.run(on_2(command(Op::Compare, 4, 10, 16, Some(span))));
    assert_eq!(differs, Status::COMPARE_FAILURE);
    for (index, (slba, blocks)) in [(10u64, 1u32), (20, 3)].into_iter().enumerate() {
        let range =
            DsmRange { attributes: 0.into(), block_count: blocks.into(), slba: slba.into() };
        span.write_obj(index as u32 * 16, &range);
    }
    let deallocate = command(Op::Deallocate { ranges: 2 }, 5, 0, 0, Some(span));
    assert_eq!(world.run(on_2(deallocate)), Status::SUCCESS);
    for (block, is_zero) in
        [(10, true), (11, true), (12, true), (13, false), (20, true), (23, false)]
    {
        let bytes = world.ssd.bytes(2, block * 4096, 4096);
        assert_eq!(bytes.iter().all(|&byte| byte == 0), is_zero, "block {block}");
    }
    world.assert_well();
}

#[test]
fn commands_without_data_keep_to_the_limits_of_the_controller() {
    let (dmrl, dmrsl, dmsl) = (3, 10, 25);
    let limits = CommandLimits { wzsl: 1, dmrl, dmrsl, dmsl };
    let mut world = World::new(Setup { limits, ..Setup::default() });
    let span = world.memory(256 << 10);
    span.fill(0xA5);
    assert_eq!(world.run(write(1, 0, 512, span)), Status::SUCCESS);
    let zeroes = Op::WriteZeroes { deallocate: false, fua: false };
    assert_eq!(world.run(command(zeroes, 2, 1, 40, None)), Status::SUCCESS);
    // The first is as long as three, the second has nothing in it.
    let ranges = [(100u64, 35u32), (50, 0), (200, 10), (300, 1), (400, 7)];
    for (index, (slba, blocks)) in ranges.into_iter().enumerate() {
        let range =
            DsmRange { attributes: 0.into(), block_count: blocks.into(), slba: slba.into() };
        span.write_obj(index as u32 * 16, &range);
    }
    let deallocate = command(Op::Deallocate { ranges: 5 }, 3, 0, 0, Some(span));
    assert_eq!(world.run(deallocate), Status::SUCCESS);
    for block in 0..512u64 {
        let covers =
            |&(slba, blocks): &(u64, u32)| (slba..slba + u64::from(blocks)).contains(&block);
        let is_zero = (1..41).contains(&block) || ranges.iter().any(covers);
        let bytes = world.ssd.bytes(1, block as usize * 512, 512);
        assert_eq!(bytes[0] == 0 && bytes[511] == 0, is_zero, "block {block}");
    }
    world.assert_well();
}

#[test]
fn what_cannot_be_is_refused_without_the_controller() {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    for (command, wanted) in [
        (read(1, 16 << 10, 1, span), Status::LBA_OUT_OF_RANGE),
        (read(1, u64::MAX, 2, span), Status::LBA_OUT_OF_RANGE),
        (read(1, 0, 9, span), Status::INVALID_FIELD),
        (read(1, 0, 0, span), Status::INVALID_FIELD),
        (read(1, 0, 1, span.subspan(2, 600)), Status::INVALID_FIELD),
        (command(Op::Write { fua: false }, 1, 0, 1, None), Status::INVALID_FIELD),
        (Command { nsid: 9, ..read(1, 0, 1, span) }, Status::INVALID_NAMESPACE_OR_FORMAT),
        (command(Op::Deallocate { ranges: 257 }, 1, 0, 0, Some(span)), Status::INVALID_FIELD),
    ] {
        assert_eq!(world.run(command), wanted.with_dnr(), "{command:?}");
    }
    assert_eq!(world.device.queues().stats()[0].submissions, 0);
    world.assert_well();
}

#[test]
fn what_was_flushed_or_forced_survives_a_power_cut() {
    for ids in [(0x1234, 1), (0x1b36, 0x0010)] {
        let mut world = World::new(Setup { ids, ..Setup::default() });
        let span = world.memory(256 << 10);
        let wanted = pattern(span, 1);
        world.run(write(1, 0, 8, span));
        world.ssd.power_cut();
        assert_eq!(world.ssd.bytes(1, 0, 4096), vec![0; 4096], "it has a cache that is volatile");
        let forced = command(Op::Write { fua: true }, 2, 0, 512, Some(span));
        assert_eq!(world.run(forced), Status::SUCCESS);
        world.ssd.power_cut();
        assert!(world.ssd.bytes(1, 0, wanted.len()) == wanted, "FUA on {ids:x?}");
        world.run(write(3, 1024, 8, span));
        world.run(command(Op::Flush, 4, 0, 0, None));
        world.ssd.power_cut();
        assert_eq!(world.ssd.bytes(1, 1024 * 512, 4096), wanted[..4096]);
        world.assert_well();
    }
}

#[test]
fn closing_in_order_flushes() {
    let mut world = World::new(Setup::default());
    let span = world.memory(4096);
    let wanted = pattern(span, 5);
    world.run(write(1, 0, 8, span));
    world.pairs.clear();
    world.device.begin_close(world.now);
    world.turns(std::time::Duration::from_secs(1));
    assert_eq!(world.device.health(), nvme::Health::Failed);
    world.ssd.power_cut();
    assert_eq!(world.ssd.bytes(1, 0, 4096), wanted);
}
