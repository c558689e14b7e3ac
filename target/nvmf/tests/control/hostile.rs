//! Whatever a host sends: no panic, one answer for each command, bounded memory.

use std::time::Duration;

use nvme_spec::command::Sqe;
use nvme_spec::opcode::{self, admin};
use nvme_spec::sgl::SglDescriptor;
use nvmf::QueueKey;
use proptest::prelude::*;
use zerocopy::FromBytes;

use crate::host::{ALICE, NQN, World, admin_connect, hosts, io_connect};

#[derive(Clone, Debug)]
enum Act {
    Open(u16),
    Connect { queue: usize, qid: u16, cntlid: u16 },
    Raw { queue: usize, sqe: [u8; 64], data: Vec<u8> },
    Likely { queue: usize, opcode: u8, nsid: u32, dwords: [u32; 6], length: u32 },
    Close(usize),
    Lose(usize),
    Pass(u32),
    Resize(u64),
    Deny,
}

fn act() -> impl Strategy<Value = Act> {
    let opcode = prop_oneof![
        Just(opcode::FABRICS),
        Just(admin::IDENTIFY),
        Just(admin::GET_LOG_PAGE),
        Just(admin::SET_FEATURES),
        Just(admin::GET_FEATURES),
        Just(admin::ASYNC_EVENT_REQUEST),
        Just(admin::ABORT),
        Just(admin::KEEP_ALIVE),
    ];
    let nsid = prop_oneof![0..12u32, any::<u32>()];
    let dword = || prop_oneof![0..0x100u32, Just(0x46_0001), any::<u32>()];
    let dwords = [dword(), dword(), dword(), dword(), dword(), dword()];
    let length = prop_oneof![Just(4096u32), 0..0x2000u32, any::<u32>()];
    prop_oneof![
        1 => (0..3u16).prop_map(Act::Open),
        2 => (0..8usize, 0..3u16, prop_oneof![Just(0xFFFF), 0..6u16])
            .prop_map(|(queue, qid, cntlid)| Act::Connect { queue, qid, cntlid }),
        2 => (0..8usize, any::<[u8; 64]>(), prop::collection::vec(any::<u8>(), 0..1100))
            .prop_map(|(queue, sqe, data)| Act::Raw { queue, sqe, data }),
        8 => (0..8usize, opcode, nsid, dwords, length)
            .prop_map(|(queue, opcode, nsid, dwords, length)| {
                Act::Likely { queue, opcode, nsid, dwords, length }
            }),
        1 => (0..8usize).prop_map(Act::Close),
        1 => (0..8usize).prop_map(Act::Lose),
        1 => (0..200_000u32).prop_map(Act::Pass),
        1 => (0..5000u64).prop_map(Act::Resize),
        1 => Just(Act::Deny),
    ]
}

fn perform(world: &mut World, queues: &mut Vec<QueueKey>, sent: &mut usize, act: Act) {
    let pick = |queues: &[QueueKey], index: usize| queues[index % queues.len()];
    match act {
        Act::Open(qid) => queues.push(world.open(qid)),
        Act::Connect { queue, qid, cntlid } => {
            let fields = match qid {
                0 => crate::host::ConnectFields { cntlid, ..admin_connect(ALICE) },
                qid => io_connect(ALICE, cntlid, qid),
            };
            world.connect(pick(queues, queue), &fields);
        }
        Act::Raw { queue, sqe, data } => {
            let sqe = Sqe::read_from_bytes(&sqe).unwrap();
            world.send(pick(queues, queue), &sqe, &data);
            *sent += 1;
        }
        Act::Likely { queue, opcode, nsid, dwords, length } => {
            let mut sqe = Sqe::new(opcode, nsid);
            sqe.set_sgl(SglDescriptor::keyed(0, length, 1, false));
            let [a, b, c, d, e, f] = dwords.map(Into::into);
            (sqe.cdw10, sqe.cdw11, sqe.cdw12) = (a, b, c);
            (sqe.cdw13, sqe.cdw14, sqe.cdw15) = (d, e, f);
            world.send(pick(queues, queue), &sqe, &[]);
            *sent += 1;
        }
        Act::Close(queue) => world.finish_close(pick(queues, queue)),
        Act::Lose(queue) => {
            world.target.handle_queue_lost(pick(queues, queue));
            world.take_outputs();
        }
        Act::Pass(ms) => world.pass(Duration::from_millis(ms.into())),
        Act::Resize(blocks) => {
            world.target.resize_namespace(NQN, 1, blocks).unwrap();
            world.take_outputs();
        }
        Act::Deny => {
            let allowed = world.target.subsystem(NQN).unwrap().allows(ALICE);
            let hosts = hosts(if allowed { &[] } else { &[ALICE] });
            world.target.set_access(NQN, false, hosts).unwrap();
            world.take_outputs();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_hosts_send(acts in prop::collection::vec(act(), 1..120)) {
        let mut world = World::new();
        let (admin, cntlid) = world.bring_up(ALICE);
        let mut queues = vec![admin, world.io_queue(ALICE, cntlid, 1), world.open(0)];
        let mut sent = 0;
        for act in acts {
            perform(&mut world, &mut queues, &mut sent, act);
            // Only event requests and aborts wait, and no more of them than a controller keeps.
            let waiting = sent - world.answers.len();
            prop_assert!(waiting <= 8 * world.target.controllers().count());
        }
        for queue in queues {
            world.finish_close(queue);
        }
        prop_assert_eq!(world.answers.len(), sent, "every command has its answer in the end");
        prop_assert_eq!(world.target.controllers().count(), 0);
        prop_assert_eq!(world.target.poll_timeout(), None);
    }
}
