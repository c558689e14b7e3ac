//! Fabrics commands (NVMe Base 2.1, section 6): Connect, Disconnect, Property Get and Set.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::offset_of;
use std::time::Instant;

use nvme_spec::command::Sqe;
use nvme_spec::fabrics::{
    CATTR_DISABLE_SQ_FLOW_CONTROL, CNTLID_DYNAMIC, CNTLID_MAX, Connect, ConnectData, DISCOVERY_NQN,
    Property, disconnect_recfmt, fctype, fctype_of, invalid_parameter, is_valid_nqn, text,
};
use nvme_spec::registers::{self, Cap, Cc, version};
use nvme_spec::status::Status;
use zerocopy::{FromBytes, IntoBytes};

use crate::controller::{Controller, ControllerState, Features, Notice, Shutdown, granted_kato_ms};
use crate::limits::{DISCONNECT_LINGER, MAX_CONTROLLERS, READY_TIMEOUT_500MS};
use crate::output::{
    Answer, CommandKey, Outcome, Output, QueueKey, QueueKind, Refusal, SubsystemId,
};
use crate::target::{Role, Target};

/// The version of the specification that controllers report: 2.1.
pub(crate) const VERSION: u32 = version(2, 1, 0);

impl Target {
    pub(crate) fn execute_fabrics(
        &mut self,
        now: Instant,
        command: CommandKey,
        role: Role,
        sqe: &Sqe,
        data_in: &[u8],
    ) -> Outcome {
        match (fctype(sqe), role) {
            (fctype_of::CONNECT, Role::Unbound) => self.connect(now, command.queue, sqe, data_in),
            (_, Role::Unbound) | (fctype_of::CONNECT, _) => {
                Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into())
            }
            (fctype_of::PROPERTY_GET, Role::Admin { cntlid }) => {
                self.property_get(now, cntlid, sqe)
            }
            (fctype_of::PROPERTY_SET, Role::Admin { cntlid }) => {
                self.property_set(now, cntlid, sqe)
            }
            (fctype_of::DISCONNECT, _) => self.disconnect(now, command.queue, role, sqe),
            _ => Err(Status::INVALID_OPCODE.with_dnr().into()),
        }
    }

    fn connect(&mut self, now: Instant, queue: QueueKey, sqe: &Sqe, data_in: &[u8]) -> Outcome {
        let connect = Connect::ref_from_bytes(sqe.as_bytes())
            .map_err(|_| Status::INTERNAL_ERROR.with_dnr())?;
        let (data, _) = ConnectData::ref_from_prefix(data_in)
            .map_err(|_| Status::DATA_SGL_LENGTH_INVALID.with_dnr())?;
        if connect.recfmt.get() != 0 {
            return Err(Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr().into());
        }
        let info = self.queues.get(&queue).ok_or(Status::INTERNAL_ERROR)?.info;
        if info.qid.is_some_and(|qid| qid != connect.qid.get()) {
            return Err(in_command(offset_of!(Connect, qid)).hopeless());
        }
        let sqsize_z = connect.sqsize_z.get();
        let most_entries = self.config.max_queue_entries.min(info.entries);
        if sqsize_z == 0 || sqsize_z >= most_entries {
            return Err(in_command(offset_of!(Connect, sqsize_z)).hopeless());
        }
        let host = text(&data.hostnqn).filter(|nqn| is_valid_nqn(nqn));
        let host = host.ok_or(in_data(offset_of!(ConnectData, hostnqn)).hopeless())?;
        if data.hostid == [0; 16] {
            return Err(in_data(offset_of!(ConnectData, hostid)).hopeless());
        }
        let subsystem = self.find_subsystem(data)?;
        if self.subsystem_of(subsystem).is_some_and(|found| !found.allows(host)) {
            tracing::warn!(peer = %info.peer, host, "host is not allowed");
            return Err(Status::CONNECT_INVALID_HOST.with_dnr().into());
        }
        let (cntlid, kind, role) = match connect.qid.get() {
            0 => {
                let cntlid = self.connect_admin(now, queue, connect, data, host, subsystem)?;
                let kind = match subsystem {
                    SubsystemId::DISCOVERY => QueueKind::Discovery,
                    _ => QueueKind::Admin,
                };
                (cntlid, kind, Role::Admin { cntlid })
            }
            qid => {
                let cntlid = self.connect_io(now, queue, qid, data, host, subsystem)?;
                (cntlid, QueueKind::Io { qid }, Role::Io { cntlid, qid })
            }
        };
        if let Some(queue) = self.queues.get_mut(&queue) {
            queue.role = role;
            queue.deadline = None;
        }
        tracing::info!(cntlid, ?kind, host, peer = %info.peer, "connected");
        self.outputs.push_back(Output::BindQueue {
            queue,
            kind,
            subsystem,
            cntlid,
            sq_entries: sqsize_z + 1,
            flow_control: connect.cattr & CATTR_DISABLE_SQ_FLOW_CONTROL == 0,
        });
        Answer::result(u64::from(cntlid))
    }

    /// Not found may mean not yet: the host is to try again.
    fn find_subsystem(&self, data: &ConnectData) -> Result<SubsystemId, Refusal> {
        let at_subnqn = in_data(offset_of!(ConnectData, subnqn));
        match text(&data.subnqn).ok_or(at_subnqn.hopeless())? {
            DISCOVERY_NQN => Ok(SubsystemId::DISCOVERY),
            nqn => Ok(self.subsystem(nqn).ok_or(at_subnqn)?.id),
        }
    }

    fn connect_admin(
        &mut self,
        now: Instant,
        queue: QueueKey,
        connect: &Connect,
        data: &ConnectData,
        host: &str,
        subsystem: SubsystemId,
    ) -> Result<u16, Refusal> {
        if data.cntlid.get() != CNTLID_DYNAMIC {
            return Err(in_data(offset_of!(ConnectData, cntlid)).hopeless());
        }
        if self.controllers.len() >= MAX_CONTROLLERS {
            return Err(Status::CONNECT_CONTROLLER_BUSY.into());
        }
        let info = self.queues.get(&queue).ok_or(Status::INTERNAL_ERROR)?.info;
        let cntlid = self.new_cntlid();
        let controller = Controller {
            cntlid,
            subsystem,
            host_nqn: host.to_owned(),
            host_id: data.hostid,
            admin: queue,
            transport: info.transport,
            local: info.local,
            peer: info.peer,
            io_queues: BTreeMap::new(),
            state: ControllerState::Disabled,
            shutdown: Shutdown::None,
            cc: Cc(0),
            ending: false,
            kato_ms: granted_kato_ms(connect.kato_ms.get()),
            heard: now,
            idle_since: now,
            features: Features::default(),
            event_requests: VecDeque::new(),
            notice: Notice::Clear,
            aborts: Vec::new(),
            changed: BTreeSet::new(),
            removed: BTreeSet::new(),
            errors: VecDeque::new(),
            error_count: 0,
        };
        self.controllers.insert(cntlid, controller);
        Ok(cntlid)
    }

    fn connect_io(
        &mut self,
        now: Instant,
        queue: QueueKey,
        qid: u16,
        data: &ConnectData,
        host: &str,
        subsystem: SubsystemId,
    ) -> Result<u16, Refusal> {
        if subsystem == SubsystemId::DISCOVERY {
            return Err(in_command(offset_of!(Connect, qid)).hopeless());
        }
        let most_queues = self.config.max_io_queues;
        let cntlid = data.cntlid.get();
        let controller = self.controllers.get_mut(&cntlid).filter(|found| !found.ending);
        // It may have ended between the host's two Connects: a host that starts over will succeed.
        let controller = controller.ok_or(in_data(offset_of!(ConnectData, cntlid)))?;
        if controller.subsystem != subsystem {
            return Err(in_data(offset_of!(ConnectData, subnqn)).hopeless());
        }
        if controller.host_nqn != host {
            return Err(in_data(offset_of!(ConnectData, hostnqn)).hopeless());
        }
        if controller.host_id != data.hostid {
            return Err(in_data(offset_of!(ConnectData, hostid)).hopeless());
        }
        if !controller.takes_io_queues() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        }
        if qid > controller.features.io_queues.unwrap_or(most_queues) {
            return Err(in_command(offset_of!(Connect, qid)).hopeless());
        }
        // The queue that has this QID may be about to go: no DNR.
        if controller.io_queues.contains_key(&qid) {
            return Err(in_command(offset_of!(Connect, qid)));
        }
        controller.io_queues.insert(qid, queue);
        controller.heard = now;
        Ok(cntlid)
    }

    /// Round-robin over 1 to FFEFh, so that one just freed comes back as late as possible. There
    /// are far fewer controllers than numbers, so the search ends.
    fn new_cntlid(&mut self) -> u16 {
        loop {
            self.next_cntlid = match self.next_cntlid {
                last if last >= CNTLID_MAX => 1,
                last => last + 1,
            };
            if !self.controllers.contains_key(&self.next_cntlid) {
                return self.next_cntlid;
            }
        }
    }

    /// Ends an I/O queue. Its connection is the host's to close; ours only when it does not.
    fn disconnect(&mut self, now: Instant, key: QueueKey, role: Role, sqe: &Sqe) -> Outcome {
        if disconnect_recfmt(sqe) != 0 {
            return Err(Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr().into());
        }
        let Role::Io { .. } = role else {
            return Err(Status::DISCONNECT_INVALID_QUEUE_TYPE.with_dnr().into());
        };
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.deadline.get_or_insert(now + DISCONNECT_LINGER);
        }
        Answer::done()
    }

    fn property_get(&mut self, now: Instant, cntlid: u16, sqe: &Sqe) -> Outcome {
        let mqes_z = self.config.max_queue_entries - 1;
        let controller = self.controllers.get_mut(&cntlid).ok_or(Status::INTERNAL_ERROR)?;
        controller.heard = now;
        let property = property_of(sqe)?;
        let value = match (property.offset.get(), property.attrib & 7) {
            (registers::CAP, 1) => Cap::new(mqes_z, true, READY_TIMEOUT_500MS).0,
            (registers::VS, 0) => u64::from(VERSION),
            (registers::CC, 0) => u64::from(controller.cc.0),
            (registers::CSTS, 0) => u64::from(controller.csts().0),
            _ => return Err(Status::INVALID_FIELD.with_dnr().into()),
        };
        Answer::result(value)
    }

    /// CC is the only property that can be set. The command completes at once; the host reads in
    /// CSTS when the change has happened.
    fn property_set(&mut self, now: Instant, cntlid: u16, sqe: &Sqe) -> Outcome {
        let property = property_of(sqe)?;
        if (property.offset.get(), property.attrib & 7) != (registers::CC, 0) {
            return Err(Status::INVALID_FIELD.with_dnr().into());
        }
        let cc = Cc(property.value.get() as u32);
        let controller = self.controllers.get_mut(&cntlid).ok_or(Status::INTERNAL_ERROR)?;
        controller.heard = now;
        match (controller.state, cc.en()) {
            // Enabled again before CSTS.RDY was seen to be 0.
            (ControllerState::Disabling, true) => {
                return Err(Status::COMMAND_SEQUENCE_ERROR.into());
            }
            (ControllerState::Disabled, true) => {
                controller.state = match is_possible(cc, controller.is_discovery()) {
                    true => ControllerState::Ready,
                    false => ControllerState::Failed,
                };
                controller.shutdown = Shutdown::None;
                controller.idle_since = now;
            }
            (ControllerState::Ready | ControllerState::Failed, false) => {
                controller.state = ControllerState::Disabling;
                controller.shutdown = Shutdown::None;
                controller.idle_since = now;
            }
            _ => {}
        }
        if cc.shn() != 0 && controller.shutdown == Shutdown::None {
            controller.shutdown = Shutdown::Occurring;
            controller.idle_since = now;
        }
        controller.cc = cc;
        let disabling = controller.state == ControllerState::Disabling;
        let shutting_down = controller.shutdown == Shutdown::Occurring;
        controller.settle(now);
        if disabling {
            self.cancel_event_requests(cntlid);
        }
        if disabling || shutting_down {
            self.close_io_queues(cntlid);
        }
        Answer::done()
    }
}

/// Whether a controller can be enabled like this: NVM command set, 4 KiB pages, round robin, and
/// entries of 64 and 16 bytes. A discovery controller has no I/O queues to have entries.
fn is_possible(cc: Cc, discovery: bool) -> bool {
    let entries_fit = discovery || (cc.iosqes(), cc.iocqes()) == (6, 4);
    cc.css() == 0 && cc.mps() == 0 && cc.ams() == 0 && entries_fit
}

fn property_of(sqe: &Sqe) -> Result<&Property, Refusal> {
    Property::ref_from_bytes(sqe.as_bytes()).map_err(|_| Status::INTERNAL_ERROR.into())
}

/// Connect Invalid Parameters that points into the command.
fn in_command(offset: usize) -> Refusal {
    let result = invalid_parameter(offset as u16, false);
    Refusal { status: Status::CONNECT_INVALID_PARAMETERS, result }
}

/// Connect Invalid Parameters that points into the data.
fn in_data(offset: usize) -> Refusal {
    let result = invalid_parameter(offset as u16, true);
    Refusal { status: Status::CONNECT_INVALID_PARAMETERS, result }
}

impl Refusal {
    /// The same with Do Not Retry.
    fn hopeless(self) -> Self {
        Self { status: self.status.with_dnr(), ..self }
    }
}
