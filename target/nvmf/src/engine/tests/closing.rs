//! Queues that end while their commands are anywhere.

use nvme_spec::opcode::FABRICS;

use super::*;

/// One request in each state: what waits for a buffer, for the host, for the channel, for the
/// block device, for the control half, and for its response to leave.
struct Everywhere {
    world: World,
    fetch: RequestId,
    execute: RequestId,
    capsule: RequestId,
    control: RequestId,
    respond: RequestId,
}

/// Large responses on their way: no other large buffer is to be had.
const LARGE: usize = 2;

impl Everywhere {
    fn new() -> Self {
        let mut world = World::new();
        let sgl = SglDescriptor::keyed(0, 0, KEY, false);
        let fetch = fetching(&world.send(with_cid(write(0, 8), 1)));
        let execute = submitted(&world.send(with_cid(read(0, 8), 2))).0;
        let in_capsule = with_sgl(write(0, 1), SglDescriptor::in_capsule(0, 512));
        let capsule = submitted(&world.send_with(with_cid(in_capsule, 3), 512)).0;
        let Step::Control(control) = world.send(with_cid(command(FABRICS, 0, sgl), 5)) else {
            panic!("not for the control half")
        };
        let respond = submitted(&world.send(with_cid(read(0, 8), 6))).0;
        let _ = world.engine.handle_done(respond, Status::SUCCESS);
        for _ in 0..LARGE {
            let large = submitted(&world.send(with_cid(read(0, 2048), 7))).0;
            let _ = world.engine.handle_done(large, Status::SUCCESS);
        }
        let busy = submitted(&world.send(with_cid(read(0, 8), 4))).0;
        world.engine.handle_busy(busy);
        assert!(is_none(&world.send(with_cid(read(0, 2048), 8))), "waits for a buffer");
        assert_eq!(world.engine.queue_load(world.queue).unwrap().in_flight as usize, 7 + LARGE);
        Self { world, fetch, execute, capsule, control, respond }
    }
}

#[test]
fn a_closed_queue_drains_once_when_its_last_request_comes_back() {
    let mut all = Everywhere::new();
    let engine = &mut all.world.engine;
    engine.close_queue(all.world.queue);
    assert_eq!(engine.waiting(), 0, "who waits here ends at once");
    assert!(engine.queue_load(all.world.queue).is_none());
    assert_eq!(engine.release_carried(all.world.queue), Closed::Pending);
    // What the carrier had is over, and not over twice.
    assert!(is_none(&engine.handle_fetched(all.fetch, true)));
    assert!(is_none(&engine.handle_sent(all.respond)));
    // In-capsule data belongs to the request until the block device is done with it.
    assert_eq!(engine.request(all.capsule).data().unwrap().addr(), all.world.capsule.addr());
    assert!(is_none(&engine.handle_done(all.execute, Status::SUCCESS)));
    assert!(is_none(&engine.handle_answer(all.control, 0, Status::SUCCESS, 0)));
    let step = engine.handle_done(all.capsule, Status::SUCCESS);
    assert!(matches!(step, Step::Drained(queue) if queue == all.world.queue), "{step:?}");
    assert!(is_none(&engine.handle_done(all.capsule, Status::SUCCESS)));
    assert_eq!(
        engine.stats().ios as usize,
        1 + LARGE,
        "what ends after the close is counted for nobody"
    );
    all.world.assert_idle();
    let (_, ids) = all.world.engine.open_queue(Carrier::Keyed, REQUESTS).expect("every slot");
    assert_eq!(ids.len(), REQUESTS as usize);
}

#[test]
fn nothing_touches_the_host_after_the_close() {
    let mut all = Everywhere::new();
    let engine = &mut all.world.engine;
    engine.close_queue(all.world.queue);
    // The carrier may still report what had completed before; each only releases its request.
    assert!(is_none(&engine.handle_fetched(all.fetch, true)));
    assert!(is_none(&engine.handle_done(all.execute, Status::SUCCESS)));
    assert!(is_none(&engine.handle_done(all.capsule, Status::SUCCESS)));
    assert!(is_none(&engine.handle_answer(all.control, 0, Status::SUCCESS, 0)));
    assert!(is_none(&engine.handle_sent(all.respond)));
    assert!(is_none(&engine.poll_step()));
    // Capsules that arrived before the close, and were polled after it, are dropped.
    let armed = all.world.armed.pop().unwrap();
    assert!(is_none(&engine.handle_capsule(armed, read(0, 1), None)));
    assert!(engine.abort(all.world.queue, 7).is_none());
    assert_eq!(engine.release_carried(all.world.queue), Closed::Drained);
    all.world.assert_idle();
}

#[test]
fn an_idle_queue_drains_at_once_and_its_name_means_nothing_then() {
    let mut world = World::new();
    let stale = world.queue;
    world.engine.close_queue(stale);
    assert_eq!(world.engine.release_carried(stale), Closed::Drained);
    let (queue, ids) = world.engine.open_queue(Carrier::Keyed, REQUESTS).unwrap();
    assert_eq!(queue.index(), stale.index(), "the place is used again");
    assert_ne!(queue, stale);
    world.engine.bind_queue(queue, io_queue(32));
    let Step::Submit { .. } = world.engine.handle_capsule(ids[0], read(0, 8), None) else {
        panic!("no I/O")
    };
    for name in [stale, QueueId::from_bits(u64::MAX), QueueId::from_bits(1 << 40)] {
        world.engine.close_queue(name);
        assert_eq!(world.engine.release_carried(name), Closed::Drained);
        world.engine.bind_queue(name, io_queue(2));
        assert!(world.engine.queue_load(name).is_none());
        assert!(world.engine.abort(name, 0x1234).is_none());
    }
    assert_eq!(world.engine.queue_load(queue).unwrap().in_flight, 1);
    assert_eq!(QueueId::from_bits(queue.to_bits()), queue);
}

#[test]
fn a_slab_that_is_full_refuses_a_queue_and_loses_nothing() {
    let mut world = World::new();
    assert!(world.engine.open_queue(Carrier::Keyed, REQUESTS - 31).is_none());
    let (second, _) = world.engine.open_queue(Carrier::Keyed, REQUESTS - 32).unwrap();
    assert!(world.engine.open_queue(Carrier::Keyed, 1).is_none());
    world.engine.close_queue(second);
    assert!(world.engine.open_queue(Carrier::Keyed, 1).is_none(), "its carrier has them yet");
    assert_eq!(world.engine.release_carried(second), Closed::Drained);
    assert!(world.engine.open_queue(Carrier::Keyed, REQUESTS - 32).is_some());
}

#[test]
fn a_queue_grows_by_requests_of_its_own() {
    let mut world = World::new();
    let (second, ids) = world.engine.open_queue(Carrier::Keyed, 2).unwrap();
    assert!(world.engine.grow_queue(second, REQUESTS - 31).is_none());
    let more = world.engine.grow_queue(second, REQUESTS - 32).unwrap();
    assert_eq!(ids.len() + more.len(), REQUESTS as usize - 32);
    assert_eq!(world.engine.grow_queue(second, 8), Some(Vec::new()), "it has more already");
    world.engine.bind_queue(second, io_queue(32));
    let Step::Submit { io, .. } = world.engine.handle_capsule(more[0], read(0, 8), None) else {
        panic!("a new request takes no command");
    };
    assert_eq!(io.tag, more[0].0);
    world.engine.close_queue(second);
    assert!(world.engine.grow_queue(second, 64).is_none());
    assert_eq!(world.engine.release_carried(second), Closed::Pending);
    let drained = world.engine.handle_done(more[0], Status::SUCCESS);
    assert!(matches!(drained, Step::Drained(queue) if queue == second));
    assert!(world.engine.open_queue(Carrier::Keyed, REQUESTS - 32).is_some());
    world.assert_idle();
}

#[test]
fn the_response_to_disconnect_is_the_last_thing_the_host_hears() {
    let mut world = World::new();
    let executing = submitted(&world.send(read(0, 8))).0;
    let busy = submitted(&world.send(read(0, 8))).0;
    world.engine.handle_busy(busy);
    let disconnect = || {
        let nsid = u32::from(nvme_spec::fabrics::fctype_of::DISCONNECT);
        command(FABRICS, nsid, SglDescriptor::keyed(0, 0, KEY, false))
    };
    let Step::Control(refused) = world.send(disconnect()) else { panic!("not for control") };
    let step = world.engine.handle_answer(refused, 0, Status::INVALID_FIELD, 0);
    world.sent(step);
    assert!(world.engine.queue_load(world.queue).is_some(), "refused: the queue goes on");
    let Step::Control(id) = world.send(disconnect()) else { panic!("not for control") };
    let step = world.engine.handle_answer(id, 0, Status::SUCCESS, 0);
    assert_eq!(world.sent(step).status(), Status::SUCCESS);
    assert!(world.engine.queue_load(world.queue).is_none());
    assert!(is_none(&world.engine.handle_done(executing, Status::SUCCESS)));
    assert!(is_none(&world.engine.poll_step()));
    assert!(is_none(&world.send(read(0, 8))), "capsules are dropped");
    world.engine.close_queue(world.queue);
    assert_eq!(world.engine.release_carried(world.queue), Closed::Drained);
    world.assert_idle();
}

#[test]
fn events_that_do_not_fit_the_state_are_ignored() {
    let mut all = Everywhere::new();
    let armed = *all.world.armed.last().unwrap();
    let waiting = all.world.engine.waiting();
    let engine = &mut all.world.engine;
    for id in [RequestId(u32::MAX), armed, all.fetch, all.execute, all.control, all.respond] {
        if id != armed {
            assert!(is_none(&engine.handle_capsule(id, read(0, 1), None)), "{id:?}");
        }
        if id != all.fetch {
            assert!(is_none(&engine.handle_fetched(id, true)), "{id:?}");
            assert!(is_none(&engine.handle_fetched(id, false)), "{id:?}");
        }
        if id != all.execute {
            assert!(is_none(&engine.handle_done(id, Status::SUCCESS)), "{id:?}");
            engine.handle_busy(id);
        }
        if id != all.control {
            assert!(is_none(&engine.handle_answer(id, 0, Status::SUCCESS, 0)), "{id:?}");
        }
        if id != all.respond {
            assert!(is_none(&engine.handle_sent(id)), "{id:?}");
        }
    }
    assert_eq!(engine.waiting(), waiting);
    // Each still goes its own way.
    assert!(is_none(&engine.handle_fetched(all.fetch, true)), "behind the one that found it busy");
    engine.begin_turn();
    for _ in 0..2 {
        let Step::Submit { .. } = engine.poll_step() else { panic!("no I/O") };
    }
    let Step::Respond(_) = engine.handle_done(all.execute, Status::SUCCESS) else {
        panic!("no response")
    };
    let Step::Respond(_) = engine.handle_answer(all.control, 0, Status::SUCCESS, 0) else {
        panic!("no response")
    };
    assert!(is_none(&engine.handle_sent(all.respond)));
    assert_eq!(engine.queue_load(all.world.queue).unwrap().in_flight as usize, 6 + LARGE);
}
