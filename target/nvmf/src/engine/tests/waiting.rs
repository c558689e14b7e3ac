//! Too few buffers, and channels that are busy.

use super::*;

/// Runs [`Engine::poll_step`] as a core does, and returns what it gave.
fn poll(world: &mut World) -> Vec<Step> {
    world.engine.begin_turn();
    let next = || match world.engine.poll_step() {
        Step::None => None,
        step => Some(step),
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn a_large_transfer_is_not_overtaken_by_small_ones() {
    let mut world = World::new();
    let first = [world.send(read(0, 2048)), world.send(read(0, 2048))];
    let small = world.send(read(0, 8));
    assert!(is_none(&world.send(read(0, 2048))), "one namespace may not have 1 MiB more");
    for _ in 0..3 {
        assert!(is_none(&world.send(read(0, 8))), "small ones line up behind the large one");
    }
    assert_eq!(world.engine.stats().buffer_waits, 4);
    assert!(poll(&mut world).is_empty());
    world.complete(small);
    let steps = poll(&mut world);
    let blocks: Vec<u32> = steps.iter().map(|step| submitted(step).1.block_count).collect();
    assert_eq!(blocks, [2048], "the large one goes first, and takes what there is");
    first.into_iter().for_each(|step| {
        world.complete(step);
    });
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
    let mut running: Vec<Step> = (0..3).map(|slba| world.send(read(slba, 2048))).collect();
    for slba in 3..20 {
        assert!(is_none(&world.send(read(slba, 2048))));
    }
    let mut order = Vec::new();
    while let Some(step) = running.pop() {
        order.push(submitted(&step).1.slba);
        world.complete(step);
        running.splice(0..0, poll(&mut world));
    }
    order.iter().zip([2, 1, 0].into_iter().chain(3..)).for_each(|(a, b)| assert_eq!(*a, b));
    assert_eq!(order.len(), 20);
    world.assert_idle();
}

#[test]
fn writes_wait_for_a_buffer_before_they_fetch() {
    let mut world = World::new();
    let running = [(); 3].map(|()| world.send(read(0, 2048)));
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
fn a_host_that_takes_no_response_holds_up_only_itself() {
    let mut world = World::new();
    let (other, ids) = world.engine.open_queue(Carrier::Keyed, 32).unwrap();
    world.engine.bind_queue(other, io_queue(32));
    let mut held = Vec::new();
    while !world.armed.is_empty() {
        let step = world.send(read(0, 8));
        held.push(world.engine.handle_done(submitted(&step).0, Status::SUCCESS));
    }
    assert!(held.iter().all(|step| matches!(step, Step::Respond(_))), "{held:?}");
    world.armed = ids;
    for _ in 0..10 * world.armed.len() {
        let step = world.send(read(0, 8));
        assert!(world.complete(step).status().is_success());
    }
    assert_eq!((world.engine.waiting(), world.engine.stats().buffer_waits), (0, 0));
    for step in held {
        world.sent(step);
    }
    world.assert_idle();
}

/// Reads of 64 KiB, and how many of them did not have to wait: their data is with the host.
fn fill(world: &mut World, ids: &[RequestId]) -> usize {
    let mut at_host = 0;
    for &id in ids {
        let step = world.engine.handle_capsule(id, read(0, 128), None);
        if let Step::Submit { .. } = step {
            let step = world.engine.handle_done(submitted(&step).0, Status::SUCCESS);
            assert!(matches!(step, Step::Respond(_)));
            at_host += 1;
        }
    }
    at_host
}

/// However many queues of hosts that take nothing there are, and however much they ask for: all
/// hold a part of what the others have left, and whoever goes on does so at once.
#[test]
fn hosts_that_take_nothing_leave_memory_for_the_others() {
    let mut world = World::with_share(Carrier::Keyed, io_queue(32), 4);
    let mut stuck = Vec::new();
    for slots in [16, 8, 8] {
        let (queue, ids) = match stuck.is_empty() {
            true => (world.queue, world.armed.split_off(16)),
            false => world.engine.open_queue(Carrier::Keyed, slots).unwrap(),
        };
        world.engine.bind_queue(queue, io_queue(32));
        let before = world.engine.pool().free_bytes();
        let at_host = fill(&mut world, &ids);
        let held = before - world.engine.pool().free_bytes();
        assert!(held * 4 <= before, "{held} of {before}");
        stuck.push((queue, at_host));
    }
    assert_eq!(stuck[0].1, 16, "a quarter of 4 MiB");
    let (other, ids) = world.engine.open_queue(Carrier::Keyed, 8).unwrap();
    world.engine.bind_queue(other, io_queue(32));
    for _ in 0..3 {
        for &id in &ids {
            let step = world.engine.handle_capsule(id, read(0, 128), None);
            let step = world.engine.handle_done(submitted(&step).0, Status::SUCCESS);
            assert!(matches!(step, Step::Respond(_)));
            assert!(is_none(&world.engine.handle_sent(id)));
        }
    }
    for (queue, _) in stuck {
        world.engine.close_queue(queue);
        assert_eq!(world.engine.release_carried(queue), Closed::Drained);
    }
    world.assert_idle();
}

#[test]
fn commands_beyond_what_a_queue_may_hold_wait_for_their_own_alone() {
    let mut world = World::with_share(Carrier::Keyed, io_queue(32), 4);
    let first = world.send(read(0, 2048));
    let waits: Vec<Step> = (1..4).map(|slba| world.send(with_cid(read(slba, 128), 9))).collect();
    assert!(waits.iter().all(is_none), "the first has all that the queue may hold");
    assert_eq!((world.engine.waiting(), world.engine.stats().buffer_waits), (3, 3));
    assert!(poll(&mut world).is_empty());
    let aborted = world.engine.abort(world.queue, 9).expect("it waits");
    assert_eq!(world.sent(aborted).status(), Status::COMMAND_ABORT_REQUESTED);
    world.complete(first);
    let steps = poll(&mut world);
    let order: Vec<u64> = steps.iter().map(|step| submitted(step).1.slba).collect();
    assert_eq!(order, [2, 3], "in their order, without the one that was aborted");
    let more: Vec<Step> = (0..20).map(|slba| world.send(read(slba, 128))).collect();
    assert_eq!(more.iter().filter(|step| is_none(step)).count(), 6);
    world.engine.close_queue(world.queue);
    assert_eq!(world.engine.waiting(), 0, "those that waited end with their queue");
    for step in steps.into_iter().chain(more.into_iter().filter(|step| !is_none(step))) {
        assert!(is_none(&world.engine.handle_done(submitted(&step).0, Status::SUCCESS)));
    }
    world.assert_idle();
}

#[test]
fn a_busy_channel_is_offered_one_per_turn_and_keeps_the_order() {
    let mut world = World::new();
    let first = world.send(read(0, 8));
    world.engine.handle_busy(submitted(&first).0);
    for slba in 1..4 {
        assert!(is_none(&world.send(read(slba, 8))), "nobody overtakes who waits");
    }
    for _ in 0..3 {
        world.engine.begin_turn();
        let step = world.engine.poll_step();
        let (id, io) = submitted(&step);
        assert_eq!(io.slba, 0);
        world.engine.handle_busy(id);
        assert!(is_none(&world.engine.poll_step()), "the channel has said that it is busy");
    }
    assert_eq!(world.engine.stats().channel_waits, 4);
    let steps = poll(&mut world);
    let order: Vec<u64> = steps.iter().map(|step| submitted(step).1.slba).collect();
    assert_eq!(order, [0, 1, 2, 3]);
    for step in steps {
        world.complete(step);
    }
    world.assert_idle();
}

/// Namespace 1 hangs: its commands hold buffers and do not end. Others go on.
#[test]
fn a_namespace_that_hangs_leaves_memory_for_the_others() {
    let mut world = World::new();
    let (mut hung, mut lined_up) = (Vec::new(), 0);
    for _ in 0..12 {
        match world.send(read(0, 2048)) {
            Step::None => lined_up += 1,
            step => hung.push(step),
        }
    }
    assert_eq!((hung.len(), lined_up), (3, 9));
    for _ in 0..8 {
        let first = world.send(read_of_second(64));
        let id = fetching(&world.send(connect(1024)));
        assert!(matches!(world.engine.handle_fetched(id, true), Step::Control(_)));
        let second = world.send(read_of_second(64));
        world.complete(first);
        world.complete(second);
        let step = world.engine.handle_answer(id, 1, Status::SUCCESS, 0);
        world.sent(step);
    }
    // When it comes back, those that waited are served as well.
    while let Some(step) = hung.pop() {
        world.complete(step);
        hung.extend(poll(&mut world));
    }
    assert_eq!(world.engine.stats().ios, 12 + 16);
    world.assert_idle();
}

/// Control commands hold no more than their share, however many there are.
#[test]
fn control_commands_leave_memory_for_io() {
    let mut world = World::new();
    let receive = command(FABRICS, fctype_of::AUTHENTICATION_RECEIVE.into(), keyed_sgl(512 << 10));
    let taken = (0..20).filter(|_| !is_none(&world.send(receive))).count();
    assert_eq!(taken, 2, "of 4 MiB a third");
    let step = world.send(read(0, 2048));
    world.complete(step);
}

/// A peer that has not connected gets no memory but for Connect.
#[test]
fn before_connect_only_connect_takes_memory() {
    let mut world = World::new();
    let (queue, ids) = world.engine.open_queue(Carrier::Keyed, 6).unwrap();
    let mut send = |at: usize, sqe| world.engine.handle_capsule(ids[at], sqe, None);
    let receive = command(FABRICS, fctype_of::AUTHENTICATION_RECEIVE.into(), keyed_sgl(4096));
    for (at, sqe) in [write(0, 2048), read(0, 8), receive, command(0x7D, 2, keyed_sgl(4096))]
        .into_iter()
        .enumerate()
    {
        assert!(matches!(send(at, sqe), Step::Control(_)), "the control half refuses it");
    }
    assert!(matches!(send(4, connect(4100)), Step::Respond(_)), "more than Connect ever has");
    let id = fetching(&send(5, connect(1024)));
    assert_eq!(world.engine.pool().bytes() - world.engine.pool().free_bytes(), 4096);
    assert_eq!(world.engine.request(id).data().unwrap().len(), 1024);
    world.engine.close_queue(queue);
}

#[test]
fn commands_that_wait_can_be_aborted() {
    let mut world = World::new();
    let before = world.send(read(0, 2048));
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
    world.complete(before);
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
