//! The control half: which queues, controllers and subsystems there are, and who answers what.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use nvme_spec::command::Sqe;
use nvme_spec::opcode::{self, admin};
use nvme_spec::sgl::{PSDT_SGL, TYPE_KEYED_DATA_BLOCK};
use nvme_spec::status::Status;

use crate::controller::{Controller, ControllerState, Shutdown};
use crate::limits::{
    CONNECT_TIMEOUT, MAX_IO_QUEUES, MAX_QUEUE_ENTRIES, MAX_QUEUES, MAX_SUBSYSTEMS,
};
use crate::output::{Answer, CommandKey, Outcome, Output, QueueKey, SubsystemId};
use crate::subsystem::Subsystem;
use crate::verbs::{Listener, Transport};

/// Sizes of a target.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Largest data transfer of one command in bytes: a power of two from 4096.
    pub mdts_bytes: u32,
    /// Most I/O queues that a controller grants, from 1.
    pub max_io_queues: u16,
    /// I/O queues of full size that there is memory for, of all controllers together. A controller
    /// is granted what the others have left of them, and one at least.
    pub io_queue_budget: u32,
    /// Most entries of a queue, from 2 (CAP.MQES + 1).
    pub max_queue_entries: u16,
    /// Data that an I/O command capsule may carry, in bytes; a multiple of 16.
    pub in_capsule_bytes: u32,
    /// Where CNTLIDs begin: a number that differs between starts of the daemon, so that hosts do
    /// not meet a CNTLID again that they still know from before.
    pub cntlid_seed: u16,
    /// Firmware revision, up to 8 printable ASCII characters.
    pub firmware: String,
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            mdts_bytes: 1 << 20,
            max_io_queues: 128,
            io_queue_budget: MAX_QUEUES as u32,
            max_queue_entries: 128,
            in_capsule_bytes: 4096,
            cntlid_seed: 0,
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What is known of a queue before its Connect.
#[derive(Clone, Copy, Debug)]
pub struct QueueInfo {
    /// How the host reached us.
    pub transport: Transport,
    /// The address the host reached.
    pub local: SocketAddr,
    /// The host's address.
    pub peer: SocketAddr,
    /// Queue identifier in the connection request; Connect must say the same. `None` where the
    /// transport has none (TCP).
    pub qid: Option<u16>,
    /// Most entries that the submission queue may have: as many as the connection has receives for,
    /// or as are granted at all where it learns of them only by Connect (TCP).
    pub entries: u16,
}

#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) info: QueueInfo,
    pub(crate) role: Role,
    /// [`Output::CloseQueue`] was given out, or the transport is gone already.
    pub(crate) closing: bool,
    /// When to close it: no Connect yet, or the host lingers after a Disconnect.
    pub(crate) deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Unbound,
    Admin { cntlid: u16 },
    Io { cntlid: u16, qid: u16 },
}

impl Role {
    pub(crate) fn cntlid(self) -> Option<u16> {
        match self {
            Self::Unbound => None,
            Self::Admin { cntlid } | Self::Io { cntlid, .. } => Some(cntlid),
        }
    }
}

/// The control half of a target.
///
/// Every `handle_*` call and every control verb may leave something to do: the caller takes it by
/// [`Target::poll_output`] until there is nothing left, before the next call.
#[derive(Debug)]
pub struct Target {
    pub(crate) config: TargetConfig,
    /// By [`SubsystemId`].
    pub(crate) subsystems: Vec<Option<Subsystem>>,
    pub(crate) listeners: Vec<(u16, Listener)>,
    pub(crate) next_port: u16,
    /// Changes with everything that a discovery log page may show.
    pub(crate) generation: u64,
    pub(crate) controllers: BTreeMap<u16, Controller>,
    pub(crate) next_cntlid: u16,
    pub(crate) queues: BTreeMap<QueueKey, Queue>,
    pub(crate) outputs: VecDeque<Output>,
}

impl Target {
    /// A target without subsystems or listeners. Sizes that make no sense assert.
    pub fn new(config: TargetConfig) -> Self {
        assert!(config.mdts_bytes.is_power_of_two() && config.mdts_bytes >= 4096);
        assert!((1..=MAX_IO_QUEUES).contains(&config.max_io_queues));
        assert!((2..=MAX_QUEUE_ENTRIES).contains(&config.max_queue_entries));
        assert!(config.in_capsule_bytes.is_multiple_of(16));
        let next_cntlid = config.cntlid_seed;
        Self {
            config,
            subsystems: Vec::new(),
            listeners: Vec::new(),
            next_port: 1,
            generation: 1,
            controllers: BTreeMap::new(),
            next_cntlid,
            queues: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// A connection was accepted. Beyond the limit of queues it is told to close at once.
    pub fn handle_queue_opened(&mut self, now: Instant, key: QueueKey, info: QueueInfo) {
        if self.queues.contains_key(&key) {
            return;
        }
        if self.queues.len() >= MAX_QUEUES {
            tracing::warn!(peer = %info.peer, MAX_QUEUES, "too many queues: connection refused");
            self.outputs.push_back(Output::CloseQueue { queue: key });
            return;
        }
        let deadline = Some(now + CONNECT_TIMEOUT);
        self.queues.insert(key, Queue { info, role: Role::Unbound, closing: false, deadline });
    }

    /// A command arrived that is not an I/O: anything on a queue that is not connected yet or on an
    /// admin queue, and fabrics commands on I/O queues. `data_in` is the data that the host sent
    /// with it.
    pub fn handle_command(&mut self, now: Instant, command: CommandKey, sqe: &Sqe, data_in: &[u8]) {
        match self.execute(now, command, sqe, data_in) {
            Ok(Answer::Now { result, data }) => {
                self.respond(command, result, Status::SUCCESS, data);
            }
            Ok(Answer::Later) => {}
            Err(refusal) => {
                let (opcode, status) = (sqe.opcode(), refusal.status);
                tracing::debug!(?command, opcode, %status, "refused");
                let cntlid = self.queues.get(&command.queue).and_then(|queue| queue.role.cntlid());
                if let Some(controller) = cntlid.and_then(|id| self.controllers.get_mut(&id)) {
                    controller.note_error(sqe, status);
                }
                self.respond(command, refusal.result, status, Vec::new());
            }
        }
    }

    /// The data path did what an [`Output::Abort`] asked; `ended` says whether the command was
    /// ended early.
    pub fn handle_aborted(&mut self, command: CommandKey, ended: bool) {
        let cntlid = self.queues.get(&command.queue).and_then(|queue| queue.role.cntlid());
        let Some(controller) = cntlid.and_then(|id| self.controllers.get_mut(&id)) else { return };
        let Some(at) = controller.aborts.iter().position(|&waiting| waiting == command) else {
            return;
        };
        controller.aborts.swap_remove(at);
        self.respond(command, u64::from(!ended), Status::SUCCESS, Vec::new());
    }

    /// The transport of a queue is gone without our asking; its I/O may still run, and
    /// [`Target::handle_queue_closed`] follows when it has ended. No [`Output::CloseQueue`] is
    /// given for it any more.
    pub fn handle_queue_lost(&mut self, queue: QueueKey) {
        let Some(found) = self.queues.get_mut(&queue) else { return };
        found.closing = true;
        found.deadline = None;
        if let Role::Admin { cntlid } = found.role {
            self.end_controller(cntlid, "its admin queue is gone");
        }
    }

    /// The transport of a queue is gone, and all its I/O has ended.
    pub fn handle_queue_closed(&mut self, now: Instant, key: QueueKey) {
        self.handle_queue_lost(key);
        let Some(queue) = self.queues.remove(&key) else { return };
        let Some(cntlid) = queue.role.cntlid() else { return };
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        if let Role::Io { qid, .. } = queue.role {
            controller.io_queues.remove(&qid);
            controller.settle(now);
        }
        let admin_is_gone = !self.queues.contains_key(&controller.admin);
        if admin_is_gone && controller.io_queues.is_empty() {
            self.forget_controller(cntlid);
        }
    }

    /// When [`Target::handle_timeout`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let queues = self.queues.values().filter_map(|queue| queue.deadline);
        let controllers = self.controllers.values().filter_map(Controller::deadline);
        queues.chain(controllers).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late_queues: Vec<QueueKey> = (self.queues.iter())
            .filter(|(_, queue)| queue.deadline.is_some_and(|at| at <= now))
            .map(|(&key, _)| key)
            .collect();
        for key in late_queues {
            self.close_queue(key);
        }
        let late_controllers: Vec<u16> = (self.controllers.values())
            .filter(|controller| controller.deadline().is_some_and(|at| at <= now))
            .map(|controller| controller.cntlid)
            .collect();
        for cntlid in late_controllers {
            self.end_controller(cntlid, "nothing was heard of its host in time");
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn execute(&mut self, now: Instant, command: CommandKey, sqe: &Sqe, data_in: &[u8]) -> Outcome {
        let queue = self.queues.get(&command.queue).filter(|queue| !queue.closing);
        let role = queue.ok_or(Status::ABORTED_SQ_DELETION)?.role;
        if sqe.fuse() != 0 || sqe.psdt() != PSDT_SGL {
            return Err(Status::INVALID_FIELD.with_dnr().into());
        }
        if sqe.opcode() == opcode::FABRICS {
            return self.execute_fabrics(now, command, role, sqe, data_in);
        }
        match role {
            Role::Unbound => Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into()),
            Role::Io { .. } => Err(Status::INVALID_OPCODE.with_dnr().into()),
            Role::Admin { cntlid } => self.execute_admin(now, command, cntlid, sqe),
        }
    }

    fn execute_admin(
        &mut self,
        now: Instant,
        command: CommandKey,
        cntlid: u16,
        sqe: &Sqe,
    ) -> Outcome {
        let controller =
            self.controllers.get_mut(&cntlid).ok_or(Status::INTERNAL_ERROR.with_dnr())?;
        // Any sign of life restarts the timers, not only Keep Alive: a host that is busy bringing
        // up its queues has not begun to send those.
        controller.heard = now;
        if controller.state != ControllerState::Ready {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        }
        match sqe.opcode() {
            admin::IDENTIFY => self.identify(cntlid, sqe),
            admin::GET_LOG_PAGE => self.get_log_page(cntlid, sqe),
            admin::GET_FEATURES => self.get_features(cntlid, sqe),
            admin::SET_FEATURES => self.set_features(cntlid, sqe),
            admin::KEEP_ALIVE => Answer::done(),
            admin::ASYNC_EVENT_REQUEST => self.async_event_request(cntlid, command, sqe),
            admin::ABORT => self.abort(cntlid, command, sqe),
            _ => Err(Status::INVALID_OPCODE.with_dnr().into()),
        }
    }

    /// The subsystem of a controller; `None` for the discovery subsystem.
    pub(crate) fn subsystem_of(&self, id: SubsystemId) -> Option<&Subsystem> {
        self.subsystems.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn respond(
        &mut self,
        command: CommandKey,
        result: u64,
        status: Status,
        data: Vec<u8>,
    ) {
        self.outputs.push_back(Output::Respond { command, result, status, data });
    }

    /// Tells the caller to close a queue, once.
    pub(crate) fn close_queue(&mut self, key: QueueKey) {
        let Some(queue) = self.queues.get_mut(&key) else { return };
        queue.deadline = None;
        if !queue.closing {
            queue.closing = true;
            self.outputs.push_back(Output::CloseQueue { queue: key });
        }
    }

    /// Closes every queue of a controller. What waits on its admin queue is answered, so that the
    /// queue can drain.
    pub(crate) fn end_controller(&mut self, cntlid: u16, reason: &'static str) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        if std::mem::replace(&mut controller.ending, true) {
            return;
        }
        tracing::info!(cntlid, host = controller.host_nqn, peer = %controller.peer, reason,
            "controller ends");
        let aborts = std::mem::take(&mut controller.aborts);
        let queues: Vec<QueueKey> =
            controller.io_queues.values().copied().chain([controller.admin]).collect();
        self.cancel_event_requests(cntlid);
        for command in aborts {
            self.respond(command, 1, Status::SUCCESS, Vec::new());
        }
        for queue in queues {
            self.close_queue(queue);
        }
    }

    /// Answers the Asynchronous Event Requests that wait.
    pub(crate) fn cancel_event_requests(&mut self, cntlid: u16) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        for (command, _) in std::mem::take(&mut controller.event_requests) {
            self.respond(command, 0, Status::ABORTED_SQ_DELETION, Vec::new());
        }
    }

    /// Tells the caller to close the I/O queues of a controller that is disabled or shut down.
    pub(crate) fn close_io_queues(&mut self, cntlid: u16) {
        let Some(controller) = self.controllers.get(&cntlid) else { return };
        let queues: Vec<QueueKey> = controller.io_queues.values().copied().collect();
        for queue in queues {
            self.close_queue(queue);
        }
    }

    /// Gives an event to the host, if there is one and a request to answer.
    pub(crate) fn deliver_event(&mut self, cntlid: u16) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        if controller.ending || controller.shutdown != Shutdown::None {
            return;
        }
        if let Some((command, event)) = controller.take_event() {
            self.respond(command, u64::from(event.0), Status::SUCCESS, Vec::new());
        }
    }

    fn forget_controller(&mut self, cntlid: u16) {
        let Some(controller) = self.controllers.remove(&cntlid) else { return };
        self.free_subsystem(controller.subsystem);
    }

    /// Frees the place of a removed subsystem once no controller of it is left.
    pub(crate) fn free_subsystem(&mut self, id: SubsystemId) {
        if self.controllers.values().any(|controller| controller.subsystem == id) {
            return;
        }
        if let Some(place) = self.subsystems.get_mut(id.0 as usize) {
            place.take_if(|subsystem| subsystem.removed);
        }
    }
}

// Subsystem places are never mistaken for the discovery subsystem.
const _: () = assert!((MAX_SUBSYSTEMS as u64) < SubsystemId::DISCOVERY.0 as u64);

/// Checks that the host's buffer, as the SGL of its command describes it, has room for `bytes`.
pub(crate) fn check_room(sqe: &Sqe, bytes: u64) -> Result<(), Status> {
    if bytes <= u64::from(sgl_bytes(sqe)) {
        Ok(())
    } else {
        Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr())
    }
}

fn sgl_bytes(sqe: &Sqe) -> u32 {
    let sgl = sqe.sgl();
    match sgl.descriptor_type() {
        TYPE_KEYED_DATA_BLOCK => sgl.keyed_length(),
        _ => sgl.length(),
    }
}
