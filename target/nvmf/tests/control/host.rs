//! A world with one target in it, and the hosts' side of its queues.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bdev::Geometry;
use nvme_spec::command::Sqe;
use nvme_spec::fabrics::{Connect, ConnectData, Property, fctype_of};
use nvme_spec::registers::{CC, CSTS, Cc, Csts};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::status::Status;
use nvme_spec::{log_page::GetLogPage, opcode};
use nvmf::{
    CommandKey, Listener, NamespaceConfig, Output, QueueInfo, QueueKey, QueueKind, SubsystemConfig,
    Target, TargetConfig, Transport,
};
use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

pub const NQN: &str = "nqn.2026-11.io.forebay:one";
pub const ALICE: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-1111-1111-111111111111";
pub const BOB: &str = "nqn.2014-08.org.nvmexpress:uuid:22222222-2222-2222-2222-222222222222";

/// An answer as the host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: Status,
    pub result: u64,
    pub data: Vec<u8>,
}

pub struct World {
    pub target: Target,
    pub now: Instant,
    pub answers: BTreeMap<CommandKey, Answer>,
    pub bound: Vec<(QueueKey, QueueKind, u16)>,
    pub closed: VecDeque<QueueKey>,
    pub aborts: Vec<(QueueKey, u16, CommandKey)>,
    ever_closed: BTreeSet<QueueKey>,
    next_queue: u64,
    next_request: u32,
}

pub fn geometry() -> Geometry {
    Geometry {
        block_bytes: 4096,
        block_count: 1000,
        volatile_write_cache: false,
        deallocate_reads_zeroes: true,
        atomic_write_blocks: 4,
        preferred_write_blocks: 8,
    }
}

pub fn namespace(seed: u8, nsid: Option<u32>) -> NamespaceConfig {
    NamespaceConfig {
        nsid,
        name: format!("disk{seed}"),
        geometry: geometry(),
        uuid: Uuid::from_bytes([seed; 16]),
        nguid: [seed ^ 0x80; 16],
        read_only: false,
    }
}

pub fn subsystem(nqn: &str, hosts: &[&str]) -> SubsystemConfig {
    SubsystemConfig {
        nqn: nqn.to_owned(),
        serial: "FB0001".to_owned(),
        model: "Forebay".to_owned(),
        any_host: false,
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
    }
}

/// What a Connect carries; every field can be made wrong.
#[derive(Clone)]
pub struct ConnectFields {
    pub recfmt: u16,
    pub qid: u16,
    pub sqsize_z: u16,
    pub kato_ms: u32,
    pub cntlid: u16,
    pub subnqn: String,
    pub hostnqn: String,
    pub hostid: [u8; 16],
}

pub fn admin_connect(host: &str) -> ConnectFields {
    ConnectFields {
        recfmt: 0,
        qid: 0,
        sqsize_z: 31,
        kato_ms: 5000,
        cntlid: 0xFFFF,
        subnqn: NQN.to_owned(),
        hostnqn: host.to_owned(),
        hostid: [host.len() as u8 ^ host.as_bytes()[host.len() - 1]; 16],
    }
}

pub fn io_connect(host: &str, cntlid: u16, qid: u16) -> ConnectFields {
    ConnectFields { qid, cntlid, sqsize_z: 127, kato_ms: 0, ..admin_connect(host) }
}

/// The hosts of a subsystem, for `Target::set_access`.
pub fn hosts(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

impl World {
    pub fn new() -> Self {
        Self::with(TargetConfig::default())
    }

    pub fn with(config: TargetConfig) -> Self {
        let mut target = Target::new(config);
        target.add_subsystem(subsystem(NQN, &[ALICE])).unwrap();
        target.add_namespace(NQN, namespace(1, Some(1))).unwrap();
        let listener =
            Listener { transport: Transport::Rdma, addr: "0.0.0.0:4420".parse().unwrap() };
        target.add_listener(listener).unwrap();
        Self {
            target,
            now: Instant::now(),
            answers: BTreeMap::new(),
            bound: Vec::new(),
            closed: VecDeque::new(),
            aborts: Vec::new(),
            ever_closed: BTreeSet::new(),
            next_queue: 1,
            next_request: 0,
        }
    }

    pub fn open(&mut self, qid: u16) -> QueueKey {
        let key = QueueKey(self.next_queue);
        self.next_queue += 1;
        let info = QueueInfo {
            transport: Transport::Rdma,
            local: "10.0.0.1:4420".parse().unwrap(),
            peer: "10.0.0.2:50000".parse().unwrap(),
            qid: Some(qid),
            entries: 128,
        };
        self.target.handle_queue_opened(self.now, key, info);
        self.take_outputs();
        key
    }

    /// Sends a command and says which it is; its answer, if there is one yet, is in `answers`.
    pub fn send(&mut self, queue: QueueKey, sqe: &Sqe, data: &[u8]) -> CommandKey {
        let command = CommandKey { queue, request: self.next_request };
        self.next_request += 1;
        self.target.handle_command(self.now, command, sqe, data);
        self.take_outputs();
        command
    }

    pub fn command(&mut self, queue: QueueKey, sqe: &Sqe, data: &[u8]) -> Answer {
        let command = self.send(queue, sqe, data);
        self.answers.remove(&command).expect("an answer")
    }

    pub fn connect(&mut self, queue: QueueKey, fields: &ConnectFields) -> Answer {
        let mut sqe = Sqe::new(opcode::FABRICS, u32::from(fctype_of::CONNECT));
        sqe.set_sgl(SglDescriptor::keyed(0x1000, 1024, 7, false));
        let mut connect = Connect::read_from_bytes(sqe.as_bytes()).unwrap();
        connect.recfmt = fields.recfmt.into();
        connect.qid = fields.qid.into();
        connect.sqsize_z = fields.sqsize_z.into();
        connect.kato_ms = fields.kato_ms.into();
        let mut data = ConnectData::new_zeroed();
        data.hostid = fields.hostid;
        data.cntlid = fields.cntlid.into();
        data.subnqn[..fields.subnqn.len()].copy_from_slice(fields.subnqn.as_bytes());
        data.hostnqn[..fields.hostnqn.len()].copy_from_slice(fields.hostnqn.as_bytes());
        let sqe = Sqe::read_from_bytes(connect.as_bytes()).unwrap();
        self.command(queue, &sqe, data.as_bytes())
    }

    /// Opens a queue and connects it.
    pub fn attempt(&mut self, fields: &ConnectFields) -> (QueueKey, Answer) {
        let queue = self.open(fields.qid);
        let answer = self.connect(queue, fields);
        (queue, answer)
    }

    /// A controller up to CSTS.RDY = 1.
    pub fn bring_up(&mut self, host: &str) -> (QueueKey, u16) {
        self.bring_up_with(&admin_connect(host))
    }

    pub fn bring_up_with(&mut self, fields: &ConnectFields) -> (QueueKey, u16) {
        let (queue, answer) = self.attempt(fields);
        assert_eq!(answer.status, Status::SUCCESS);
        assert_eq!(self.set_property(queue, CC, Cc::enabled(0, 0).0).status, Status::SUCCESS);
        assert!(self.csts(queue).rdy());
        (queue, answer.result as u16)
    }

    pub fn io_queue(&mut self, host: &str, cntlid: u16, qid: u16) -> QueueKey {
        let (queue, answer) = self.attempt(&io_connect(host, cntlid, qid));
        assert_eq!(answer.status, Status::SUCCESS);
        queue
    }

    fn property(fctype: u8, offset: u32, eight_bytes: bool, value: u64) -> Sqe {
        let mut sqe = Sqe::new(opcode::FABRICS, u32::from(fctype));
        sqe.set_sgl(SglDescriptor::keyed(0, 0, 0, false));
        let mut property = Property::read_from_bytes(sqe.as_bytes()).unwrap();
        property.attrib = u8::from(eight_bytes);
        property.offset = offset.into();
        property.value = value.into();
        Sqe::read_from_bytes(property.as_bytes()).unwrap()
    }

    pub fn get_property(&mut self, queue: QueueKey, offset: u32, eight_bytes: bool) -> Answer {
        let sqe = Self::property(fctype_of::PROPERTY_GET, offset, eight_bytes, 0);
        self.command(queue, &sqe, &[])
    }

    pub fn set_property(&mut self, queue: QueueKey, offset: u32, value: u32) -> Answer {
        let sqe = Self::property(fctype_of::PROPERTY_SET, offset, false, value.into());
        self.command(queue, &sqe, &[])
    }

    pub fn csts(&mut self, queue: QueueKey) -> Csts {
        Csts(self.get_property(queue, CSTS, false).result as u32)
    }

    pub fn admin(&mut self, queue: QueueKey, opcode: u8, cdw10: u32, cdw11: u32) -> Answer {
        let sqe = admin_sqe(opcode, 0, cdw10, cdw11);
        self.command(queue, &sqe, &[])
    }

    pub fn identify(&mut self, queue: QueueKey, cns: u8, nsid: u32) -> Answer {
        let sqe = admin_sqe(opcode::admin::IDENTIFY, nsid, cns.into(), 0);
        self.command(queue, &sqe, &[])
    }

    pub fn log(&mut self, queue: QueueKey, lid: u8, offset: u64, bytes: u64) -> Answer {
        self.log_with(queue, lid, offset, bytes, false)
    }

    pub fn log_with(
        &mut self,
        queue: QueueKey,
        lid: u8,
        offset: u64,
        bytes: u64,
        rae: bool,
    ) -> Answer {
        let mut sqe = admin_sqe(opcode::admin::GET_LOG_PAGE, u32::MAX, 0, 0);
        let page = GetLogPage { lid, lsp: 0, rae, bytes, offset, offset_is_index: false, lsi: 0 };
        page.set(&mut sqe);
        sqe.set_sgl(SglDescriptor::keyed(0, bytes as u32, 7, false));
        self.command(queue, &sqe, &[])
    }

    pub fn event_request(&mut self, queue: QueueKey, cid: u16) -> CommandKey {
        let mut sqe = admin_sqe(opcode::admin::ASYNC_EVENT_REQUEST, 0, 0, 0);
        sqe.cid = cid.into();
        self.send(queue, &sqe, &[])
    }

    /// The transport of a queue is destroyed and its I/O has ended.
    pub fn finish_close(&mut self, queue: QueueKey) {
        self.target.handle_queue_closed(self.now, queue);
        self.take_outputs();
    }

    /// Does what the target asked for: ends every queue that it closed.
    pub fn finish_closes(&mut self) -> Vec<QueueKey> {
        let mut all = Vec::new();
        while let Some(queue) = self.closed.pop_front() {
            self.finish_close(queue);
            all.push(queue);
        }
        all
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.target.handle_timeout(self.now);
        self.take_outputs();
    }

    pub fn take_outputs(&mut self) {
        while let Some(output) = self.target.poll_output() {
            match output {
                Output::BindQueue { queue, kind, cntlid, .. } => {
                    self.bound.push((queue, kind, cntlid));
                }
                Output::Respond { command, result, status, data } => {
                    let answer = Answer { status, result, data };
                    let before = self.answers.insert(command, answer);
                    assert_eq!(before, None, "one answer for a command");
                }
                Output::Abort { queue, cid, command } => self.aborts.push((queue, cid, command)),
                Output::CloseQueue { queue } => {
                    assert!(self.ever_closed.insert(queue), "closed once");
                    self.closed.push_back(queue);
                }
            }
        }
    }
}

pub fn admin_sqe(opcode: u8, nsid: u32, cdw10: u32, cdw11: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode, nsid);
    sqe.set_sgl(SglDescriptor::keyed(0x2000, 4096, 7, false));
    sqe.cdw10 = cdw10.into();
    sqe.cdw11 = cdw11.into();
    sqe
}
