//! Too few buffers, and channels that are busy.

use super::*;

/// Runs [`Engine::poll_step`] as a core does, and returns what it gave.
fn poll(world: &mut World) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..world.engine.waiting() {
        match world.engine.poll_step() {
            Step::None => break,
            step => steps.push(step),
        }
    }
    steps
}

#[test]
fn a_large_transfer_is_not_overtaken_by_small_ones() {
    let mut world = World::new();
    let first = world.send(read(0, 2048));
    let small = world.send(read(0, 8));
    assert!(is_none(&world.send(read(0, 2048))), "no run of 1 MiB is left");
    for _ in 0..3 {
        assert!(is_none(&world.send(read(0, 8))), "small ones line up behind the large one");
    }
    assert_eq!(world.engine.stats().buffer_waits, 4);
    assert!(poll(&mut world).is_empty());
    world.complete(small);
    let steps = poll(&mut world);
    let blocks: Vec<u32> = steps.iter().map(|step| submitted(step).1.block_count).collect();
    assert_eq!(blocks, [2048], "the large one goes first, and takes all there is");
    world.complete(first);
    let rest = poll(&mut world);
    assert_eq!(rest.len(), 3);
    for step in steps.into_iter().chain(rest) {
        world.complete(step);
    }
    world.assert_idle();
}

#[test]
fn buffers_go_out_in_the_order_of_the_commands() {
    let mut world = World::new();
    let mut running = vec![world.send(read(0, 2048)), world.send(read(1, 2048))];
    for slba in 2..20 {
        assert!(is_none(&world.send(read(slba, 2048))));
    }
    let mut order = Vec::new();
    while let Some(step) = running.pop() {
        order.push(submitted(&step).1.slba);
        world.complete(step);
        running.splice(0..0, poll(&mut world));
    }
    assert_eq!(order[0], 1);
    order[1..].iter().zip([0].into_iter().chain(2..)).for_each(|(a, b)| assert_eq!(*a, b));
    assert_eq!(order.len(), 20);
    world.assert_idle();
}

#[test]
fn writes_wait_for_a_buffer_before_they_fetch() {
    let mut world = World::new();
    let running = [world.send(read(0, 2048)), world.send(read(0, 2048))];
    assert!(is_none(&world.send(write(0, 8))));
    // In-capsule data needs no buffer.
    let step = world.send_with(with_sgl(write(0, 1), SglDescriptor::in_capsule(0, 512)), 512);
    world.complete(step);
    running.into_iter().for_each(|step| {
        world.complete(step);
    });
    let steps = poll(&mut world);
    let step = world.engine.handle_fetched(fetching(&steps[0]), true);
    world.complete(step);
    world.assert_idle();
}

#[test]
fn a_busy_channel_is_offered_each_once_per_turn_in_order() {
    let mut world = World::new();
    for slba in 0..4 {
        let step = world.send(read(slba, 8));
        world.engine.handle_busy(submitted(&step).0);
    }
    for _ in 0..3 {
        let mut order = Vec::new();
        for _ in 0..world.engine.waiting() {
            let step = world.engine.poll_step();
            let (id, io) = submitted(&step);
            order.push(io.slba);
            world.engine.handle_busy(id);
        }
        assert_eq!(order, [0, 1, 2, 3]);
    }
    assert_eq!(world.engine.stats().channel_waits, 16);
    for step in poll(&mut world) {
        world.complete(step);
    }
    world.assert_idle();
}

#[test]
fn commands_that_wait_can_be_aborted() {
    let mut world = World::new();
    let first = world.send(with_cid(read(0, 2048), 1));
    let second = world.send(with_cid(read(0, 2048), 2));
    assert!(is_none(&world.send(with_cid(read(0, 8), 3))));
    world.engine.handle_busy(submitted(&second).0);
    assert!(world.engine.abort(world.queue, 9).is_none(), "no such command");
    assert!(world.engine.abort(world.queue, 1).is_none(), "the block device has it");
    for cid in [3, 2] {
        let step = world.engine.abort(world.queue, cid).expect("it waits");
        let cqe = world.sent(step);
        assert_eq!((cqe.cid(), cqe.status()), (cid, Status::COMMAND_ABORT_REQUESTED));
    }
    assert!(poll(&mut world).is_empty());
    world.complete(first);
    world.assert_idle();
}

#[test]
fn a_namespace_that_changes_while_a_command_waits() {
    let gone = Status::INVALID_NAMESPACE_OR_FORMAT;
    let with_read_only = Namespace { read_only: true, ..namespace(CHANNEL, 512, BLOCKS) };
    for (what, now, status) in [
        ("gone", None, gone),
        ("on another channel", Some(namespace(9, 512, BLOCKS)), gone),
        ("with other blocks", Some(namespace(CHANNEL, 4096, BLOCKS)), gone),
        ("smaller", Some(namespace(CHANNEL, 512, 15)), Status::LBA_OUT_OF_RANGE),
        ("read-only", Some(with_read_only), Status::NAMESPACE_WRITE_PROTECTED),
    ] {
        let mut world = World::new();
        let step = world.send(write(8, 8));
        world.engine.set_namespace(SUBSYSTEM, 1, now);
        let step = world.engine.handle_fetched(fetching(&step), true);
        assert_eq!(world.sent(step).status(), status.with_dnr(), "{what}");
        world.assert_idle();
    }
}
