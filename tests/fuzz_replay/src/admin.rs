//! The control half under hostile commands.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nvme_spec::command::Sqe;
use nvme_spec::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, DISCOVERY_NQN, fctype_of};
use nvme_spec::opcode::{FABRICS, admin as opcode};
use nvme_spec::registers::{CC, Cc};
use nvme_spec::sgl::SglDescriptor;
use nvmf::{
    CommandKey, Listener, NamespaceConfig, Output, QueueInfo, QueueKey, SubsystemConfig, Target,
    TargetConfig, Transport,
};
use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::capsule::geometry;
use crate::input::Input;

const NQN: &str = "nqn.2026-11.io.forebay:one";
const ALICE: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-1111-1111-111111111111";
const MALLORY: &str = "nqn.2014-08.org.nvmexpress:uuid:22222222-2222-2222-2222-222222222222";

/// Most queues that a script opens.
const MAX_QUEUES: u64 = 32;

/// Runs a script of connections, commands, time and control verbs, then ends every queue. Each
/// command is answered exactly once, with no more data than its SGL has room for; each queue is
/// closed once at most; nothing is left at the end.
pub fn admin(bytes: &[u8]) {
    let mut world = World::new();
    let mut input = Input::new(bytes);
    world.open(0);
    world.connect(QueueKey(1), &mut Input::new(&[]));
    world.enable(QueueKey(1));
    while !input.is_empty() {
        world.event(&mut input);
    }
    world.finish();
}

struct World {
    target: Target,
    now: Instant,
    queues: BTreeSet<QueueKey>,
    closing: BTreeSet<QueueKey>,
    opened: u64,
    sent: u32,
    /// Bytes that the SGL of each unanswered command has room for.
    unanswered: BTreeMap<CommandKey, u32>,
    aborts: Vec<CommandKey>,
}

impl World {
    fn new() -> Self {
        let mut target = Target::new(TargetConfig::default());
        let subsystem = SubsystemConfig {
            nqn: NQN.to_owned(),
            serial: "FB0001".to_owned(),
            model: "Forebay".to_owned(),
            any_host: false,
            hosts: vec![ALICE.to_owned()],
        };
        target.add_subsystem(subsystem).expect("a subsystem");
        target.add_namespace(NQN, namespace(1)).expect("a namespace");
        let addr = ([0, 0, 0, 0], 4420).into();
        target.add_listener(Listener { transport: Transport::Rdma, addr }).expect("a listener");
        Self {
            target,
            now: Instant::now(),
            queues: BTreeSet::new(),
            closing: BTreeSet::new(),
            opened: 0,
            sent: 0,
            unanswered: BTreeMap::new(),
            aborts: Vec::new(),
        }
    }

    fn event(&mut self, input: &mut Input<'_>) {
        let (event, number) = (input.byte(), input.byte());
        let queue = QueueKey(u64::from(number) % (self.opened + 1) + 1);
        match event % 16 {
            0 => self.open(u16::from(number % 5)),
            1 | 2 => self.connect(queue, input),
            3 => self.enable(queue),
            4..=6 => {
                let sqe = admin_command(input);
                let data: [u8; 16] = input.take();
                self.send(queue, sqe, &data);
            }
            7 => {
                let sqe = fabrics_command(input);
                self.send(queue, sqe, &[]);
            }
            8 => {
                let sqe = input.sqe();
                let data: [u8; 64] = input.take();
                self.send(queue, sqe, &data);
            }
            9 => self.pass(u64::from(number)),
            10 => self.end_queue(queue, number & 0x80 == 0),
            11 => {
                if let Some(command) = self.aborts.pop() {
                    self.target.handle_aborted(command, number & 1 == 0);
                }
            }
            12 | 13 => self.change(number),
            _ => {
                // For a command that waits for no such thing: to be ignored.
                let command = CommandKey { queue, request: number.into() };
                if !self.aborts.contains(&command) {
                    self.target.handle_aborted(command, true);
                }
            }
        }
        self.take_outputs();
    }

    fn open(&mut self, qid: u16) {
        if self.opened == MAX_QUEUES {
            return;
        }
        self.opened += 1;
        let key = QueueKey(self.opened);
        let info = QueueInfo {
            transport: Transport::Rdma,
            local: ([10, 0, 0, 1], 4420).into(),
            peer: ([10, 0, 0, 2], 50_000).into(),
            qid: (qid < 4).then_some(qid),
            entries: 128,
        };
        self.target.handle_queue_opened(self.now, key, info);
        self.queues.insert(key);
        self.take_outputs();
    }

    fn connect(&mut self, queue: QueueKey, input: &mut Input<'_>) {
        let (sqe, data) = connect_command(NQN, input);
        self.send(queue, sqe, &data);
    }

    fn enable(&mut self, queue: QueueKey) {
        self.send(queue, enable_command(), &[]);
    }

    /// The data path passes on only what arrives on a queue that is open.
    fn send(&mut self, queue: QueueKey, sqe: Sqe, data: &[u8]) {
        if !self.queues.contains(&queue) {
            return;
        }
        let command = CommandKey { queue, request: self.sent };
        self.sent += 1;
        self.unanswered.insert(command, room(&sqe));
        self.target.handle_command(self.now, command, &sqe, data);
        self.take_outputs();
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.target.handle_timeout(self.now);
        assert!(self.target.poll_timeout().is_none_or(|at| at > self.now), "time-outs are over");
    }

    fn end_queue(&mut self, queue: QueueKey, at_once: bool) {
        self.target.handle_queue_lost(queue);
        if at_once {
            self.target.handle_queue_closed(self.now, queue);
            self.queues.remove(&queue);
        }
    }

    /// What the operator may do meanwhile. Refusals are none of a host's business.
    fn change(&mut self, number: u8) {
        let nsid = u32::from(number >> 4) % 4 + 1;
        let target = &mut self.target;
        let _ = match number % 8 {
            0 => target.add_namespace(NQN, namespace(nsid)).map(drop),
            1 => target.remove_namespace(NQN, nsid),
            2 => target.resize_namespace(NQN, nsid, u64::from(number) * 8),
            3 => target.set_access(NQN, false, BTreeSet::new()),
            4 | 5 => target.set_access(NQN, false, [ALICE.to_owned()].into()),
            6 => target.set_access(NQN, number & 0x80 != 0, [ALICE.to_owned()].into()),
            _ => target.set_health(NQN, nvmf::HealthCounters::default()),
        };
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.target.poll_output() {
            match output {
                Output::BindQueue { queue, sq_entries, .. } => {
                    assert!(self.queues.contains(&queue) && sq_entries >= 2);
                }
                Output::Respond { command, data, status, .. } => {
                    let room = self.unanswered.remove(&command).expect("one answer");
                    assert!(data.len() <= room as usize, "{} bytes into {room}", data.len());
                    assert!(data.is_empty() || status.is_success());
                    self.aborts.retain(|&waiting| waiting != command);
                }
                Output::Abort { command, .. } => self.aborts.push(command),
                Output::CloseQueue { queue } => {
                    assert!(self.closing.insert(queue), "closed twice");
                }
            }
        }
    }

    fn finish(&mut self) {
        for queue in std::mem::take(&mut self.queues) {
            self.target.handle_queue_closed(self.now, queue);
            self.take_outputs();
        }
        assert!(self.unanswered.is_empty(), "no answer to {:?}", self.unanswered);
        assert_eq!(self.target.controllers().count(), 0);
        assert_eq!(self.target.unbound_queues(), 0);
        assert_eq!(self.target.poll_timeout(), None);
    }
}

fn namespace(nsid: u32) -> NamespaceConfig {
    NamespaceConfig {
        nsid: Some(nsid),
        name: format!("disk{nsid}"),
        geometry: geometry(4096, 1000),
        uuid: Uuid::from_u128(nsid.into()),
        nguid: [nsid as u8; 16],
        read_only: false,
    }
}

/// What the data path has as a buffer for the answer.
fn room(sqe: &Sqe) -> u32 {
    let sgl = sqe.sgl();
    if sgl.descriptor_type() == 4 { sgl.keyed_length() } else { sgl.length() }
}

fn property(fctype: u8, offset: u32) -> Sqe {
    let mut sqe = Sqe::new(FABRICS, u32::from(fctype));
    sqe.set_sgl(SglDescriptor::keyed(0, 0, 0, false));
    sqe.cdw11 = offset.into();
    sqe
}

/// Sets CC.EN.
pub(crate) fn enable_command() -> Sqe {
    let mut sqe = property(fctype_of::PROPERTY_SET, CC);
    sqe.cdw12 = Cc::enabled(0, 0).0.into();
    sqe
}

/// A Connect and its data, in which a field or two are wrong, or none when there is no input.
pub(crate) fn connect_command(nqn: &str, input: &mut Input<'_>) -> (Sqe, Vec<u8>) {
    let wrong = input.byte();
    let mut sqe = Sqe::new(FABRICS, u32::from(fctype_of::CONNECT));
    sqe.set_sgl(SglDescriptor::keyed(0x1000, 1024, 7, false));
    let mut connect = Connect::read_from_bytes(sqe.as_bytes()).expect("of one size");
    let mut data = ConnectData::new_zeroed();
    let qid = u16::from(input.byte()) % 4;
    connect.qid = qid.into();
    connect.sqsize_z = 31.into();
    connect.kato_ms = 5000.into();
    data.hostid = [1; 16];
    let cntlid = if qid == 0 { CNTLID_DYNAMIC } else { 1 };
    data.cntlid = cntlid.into();
    let subnqn = if wrong & 1 == 0 { nqn } else { DISCOVERY_NQN };
    let hostnqn = if wrong & 2 == 0 { ALICE } else { MALLORY };
    data.subnqn[..subnqn.len()].copy_from_slice(subnqn.as_bytes());
    data.hostnqn[..hostnqn.len()].copy_from_slice(hostnqn.as_bytes());
    match wrong >> 2 {
        1 => connect.recfmt = input.take(),
        2 => connect.qid = input.take(),
        3 => connect.sqsize_z = input.take(),
        4 => connect.kato_ms = input.take(),
        5 => connect.cattr = input.byte(),
        6 => data.cntlid = input.take(),
        7 => data.hostid = input.take(),
        8 => data.hostnqn = input.take(),
        9 => data.subnqn = input.take(),
        10 => data.cntlid = u16::from(input.byte()).into(),
        _ => {}
    }
    let sqe = Sqe::read_from_bytes(connect.as_bytes()).expect("of one size");
    let length = if wrong == 0xFF { usize::from(input.take::<u16>()) % 1025 } else { 1024 };
    (sqe, data.as_bytes()[..length].to_vec())
}

pub(crate) fn fabrics_command(input: &mut Input<'_>) -> Sqe {
    let kinds = [
        fctype_of::PROPERTY_SET,
        fctype_of::PROPERTY_GET,
        fctype_of::PROPERTY_SET,
        fctype_of::DISCONNECT,
        fctype_of::AUTHENTICATION_SEND,
    ];
    let mut sqe = property(input.one_of(&kinds), u32::from(input.byte()) & !3);
    sqe.cdw10 = u32::from(input.byte()).into();
    sqe.cdw12 = input.take();
    sqe.cdw13 = u32::from(input.byte()).into();
    sqe
}

pub(crate) fn admin_command(input: &mut Input<'_>) -> Sqe {
    let opcodes = [
        opcode::IDENTIFY,
        opcode::GET_LOG_PAGE,
        opcode::GET_LOG_PAGE,
        opcode::GET_FEATURES,
        opcode::SET_FEATURES,
        opcode::SET_FEATURES,
        opcode::ASYNC_EVENT_REQUEST,
        opcode::ASYNC_EVENT_REQUEST,
        opcode::ABORT,
        opcode::KEEP_ALIVE,
    ];
    let mut sqe = Sqe::new(input.one_of(&opcodes), u32::from(input.byte()) % 6);
    if sqe.nsid() == 5 {
        sqe.nsid = u32::MAX.into();
    }
    sqe.set_sgl(SglDescriptor::keyed(0x2000, u32::from(input.take::<u16>()), 7, false));
    sqe.cid = u16::from(input.byte() % 8).into();
    sqe.cdw10 = input.take();
    sqe.cdw11 = u32::from(input.take::<u16>()).into();
    sqe.cdw12 = (input.near(4096) as u32).into();
    sqe.cdw13 = u32::from(input.byte()).into();
    sqe
}
