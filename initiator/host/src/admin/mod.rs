//! The life of an association, as commands on its admin queue; no I/O.
//!
//! ```text
//!  Connect ─> Capabilities ─> Enable ─> AwaitReady ─> Identify ─> [QueueCount] ─> [Events]
//!     ┌──────────────────────────────────────────────────────────────────────────────┘
//!     └─> [ListNamespaces ─> IdentifyNamespace*] ─> Ready <──> Request
//!              ^                                      │
//!              └─ ClearChanged <──(namespaces changed)┤
//!                                                     └──> Shutdown ─> AwaitShutdown ─> Down
//! ```
//!
//! One step is one command, and one step is under way at a time; besides there is a keep-alive now
//! and then, and one Asynchronous Event Request all the time. What is in brackets is left out on a
//! discovery controller, which has no namespaces and no I/O queues.

pub(crate) mod commands;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::DmaSpan;
use nvme_spec::aer::{AsyncEvent, event_type, notice};
use nvme_spec::command::Sqe;
use nvme_spec::fabrics::{CNTLID_DYNAMIC, CNTLID_MAX, DISCOVERY_NQN};
use nvme_spec::features::{self, fid, queue_counts, queue_counts_dword};
use nvme_spec::identify::{
    CNTRLTYPE_DISCOVERY, IDENTIFY_BYTES, Identify, IdentifyController, IdentifyNamespace,
    NAMESPACE_LIST_MAX, OAES_DISCOVERY_LOG, OAES_NAMESPACE_ATTRIBUTE, cns, namespaces,
};
use nvme_spec::log_page::lid;
use nvme_spec::opcode;
use nvme_spec::registers::{CAP, CC, CSTS, Cap, Cc, Csts};
use nvme_spec::status::Status;

use crate::error::Error;
use crate::info::{self, ControllerInfo, Namespace, Traits};
use crate::limits::{
    ADMIN_QUEUE_ENTRIES, MAX_NAMESPACES, PAGE_BYTES, PROPERTY_INTERVAL, SHUTDOWN_TIMEOUT,
};
use crate::options::Options;
use crate::slots::{Answer, Command, Completed};
use crate::spans::Spans;

/// Tags of the three kinds of commands on an admin queue.
const STEP: u32 = 0;
const KEEP_ALIVE: u32 = 1;
const EVENT_REQUEST: u32 = 2;

/// What happened on an admin queue.
#[derive(Debug)]
pub enum Output {
    /// Bring-up is over: I/O queues may be connected.
    Ready,
    /// Namespaces came, went or changed; the list is the new one.
    NamespacesChanged,
    /// The discovery log changed.
    DiscoveryChanged,
    /// The caller's request was answered, with as many bytes.
    Answered(Answer, Vec<u8>),
    /// The controller is shut down.
    Down,
}

/// A command of the caller's that returns up to [`PAGE_BYTES`].
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The command.
    pub sqe: Sqe,
    /// Bytes that it returns at most.
    pub bytes: u32,
}

/// The admin queue of one association.
#[derive(Debug)]
pub struct Admin {
    options: Arc<Options>,
    /// Data of the step under way.
    page: DmaSpan,
    step: Step,
    /// The command of the step is on its way.
    under_way: bool,
    /// The step waits until then.
    resume_at: Option<Instant>,
    cap: Cap,
    info: Option<ControllerInfo>,
    cntlid: u16,
    traits: Traits,
    namespaces: Vec<Namespace>,
    /// While namespaces are looked at: their identifiers, and those that can be used.
    listed: Vec<u32>,
    found: Vec<Namespace>,
    keep_alive_at: Option<Instant>,
    event_request: EventRequest,
    namespaces_changed: bool,
    /// Bring-up is over.
    was_ready: bool,
    request: Option<Request>,
    shutdown: bool,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Connect,
    Capabilities,
    Enable,
    AwaitReady(Wait),
    Identify,
    QueueCount,
    Events,
    ListNamespaces { after: u32 },
    IdentifyNamespace { index: usize },
    ClearChanged,
    Ready,
    Request,
    Shutdown,
    AwaitShutdown(Wait),
    Down,
}

/// For a change of CSTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait {
    since: Instant,
    limit: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventRequest {
    /// Not before the controller is ready; never, if it has no events for us.
    None,
    Due,
    Outstanding,
}

impl Admin {
    /// An association that begins. `page` has [`PAGE_BYTES`] and is its own.
    pub fn new(options: Arc<Options>, page: DmaSpan) -> Self {
        Self {
            options,
            page,
            step: Step::Connect,
            under_way: false,
            resume_at: None,
            cap: Cap::default(),
            info: None,
            cntlid: CNTLID_DYNAMIC,
            traits: Traits::default(),
            namespaces: Vec::new(),
            listed: Vec::new(),
            found: Vec::new(),
            keep_alive_at: None,
            event_request: EventRequest::None,
            namespaces_changed: false,
            was_ready: false,
            request: None,
            shutdown: false,
            outputs: VecDeque::new(),
        }
    }

    /// The next command to submit, until there is none; asked again after each completion, and when
    /// [`Admin::next_wakeup`] has come.
    pub fn poll_command(&mut self, now: Instant) -> Option<Command> {
        let limit = now + self.options.admin_timeout;
        if self.keep_alive_at.is_some_and(|at| now >= at) {
            self.keep_alive_at = None;
            let sqe = Sqe::new(opcode::admin::KEEP_ALIVE, 0);
            let deadline = Some(now + self.options.keep_alive);
            return Some(command(KEEP_ALIVE, sqe, Spans::NONE, deadline));
        }
        if self.event_request == EventRequest::Due {
            self.event_request = EventRequest::Outstanding;
            let sqe = Sqe::new(opcode::admin::ASYNC_EVENT_REQUEST, 0);
            return Some(command(EVENT_REQUEST, sqe, Spans::NONE, None));
        }
        if self.under_way || self.resume_at.is_some_and(|at| now < at) {
            return None;
        }
        if self.step == Step::Ready {
            self.leave_ready();
        }
        let (sqe, data) = self.step_command()?;
        self.under_way = true;
        self.resume_at = None;
        Some(command(STEP, sqe, data, Some(limit)))
    }

    /// A command has come to its end.
    ///
    /// # Errors
    /// The association cannot go on.
    pub fn handle_completed(&mut self, now: Instant, done: Completed) -> Result<(), Error> {
        match done.tag {
            KEEP_ALIVE => {
                check("Keep Alive", done.answer)?;
                self.keep_alive_at = Some(now + self.options.keep_alive / 2);
                Ok(())
            }
            EVENT_REQUEST => {
                self.handle_event(done.answer);
                Ok(())
            }
            _ => {
                self.under_way = false;
                self.handle_step(now, done)
            }
        }
    }

    /// What happened, until there is nothing more.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Admin::poll_command`] is to be asked again, if nothing happens before.
    pub fn next_wakeup(&self) -> Option<Instant> {
        [self.keep_alive_at, self.resume_at].into_iter().flatten().min()
    }

    /// Submits a command of the caller's; [`Output::Answered`] follows. One at a time.
    pub fn request(&mut self, request: Request) {
        debug_assert!(self.request.is_none() && request.bytes as usize <= PAGE_BYTES);
        self.request = Some(request);
    }

    /// Begins an orderly end; [`Output::Down`] follows.
    pub fn shut_down(&mut self) {
        self.shutdown = true;
    }

    /// The controller, once it is ready.
    pub fn info(&self) -> Option<&ControllerInfo> {
        self.info.as_ref()
    }

    /// Namespaces that can be used.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// Most data in the capsule of an I/O command.
    pub fn in_capsule_bytes(&self) -> u32 {
        self.traits.in_capsule_bytes
    }

    /// How long after a loss this controller may still execute commands: it notices the loss when
    /// keep-alives have been missing, and then has its quiesce time (NVMe Base 2.1, section 9.6).
    pub fn quiesce_after_loss(&self) -> Duration {
        self.options.keep_alive * self.traits.notices_after + self.traits.quiesce
    }

    fn is_discovery(&self) -> bool {
        self.options.subnqn == DISCOVERY_NQN
    }

    /// Ready, and there is something to do: the most urgent first.
    fn leave_ready(&mut self) {
        if self.shutdown {
            self.step = Step::Shutdown;
        } else if self.namespaces_changed {
            self.namespaces_changed = false;
            self.step = Step::ClearChanged;
        } else if self.request.is_some() {
            self.step = Step::Request;
        }
    }

    /// The command of the step, and the memory of its data.
    fn step_command(&mut self) -> Option<(Sqe, Spans)> {
        let page = |bytes: usize| Spans::from(self.page.subspan(0, bytes as u32));
        let identify = |cns, nsid| {
            let sqe = Identify { cns, cntid: 0, csi: 0 }.to_sqe(nsid);
            (sqe, page(IDENTIFY_BYTES))
        };
        Some(match self.step {
            Step::Connect => {
                let data = commands::connect_data(&self.options, CNTLID_DYNAMIC);
                self.page.write_obj(0, &data);
                let kato_ms = self.options.keep_alive.as_millis() as u32;
                // As many as we have outstanding, and one more that always stays free.
                let sqe = commands::connect(0, ADMIN_QUEUE_ENTRIES, kato_ms);
                (sqe, page(size_of_val(&data)))
            }
            Step::Capabilities => (commands::property_get(CAP, true), Spans::NONE),
            Step::Enable => {
                let cc = Cc::enabled(Cc::CSS_NVM, 0);
                (commands::property_set(CC, cc.0), Spans::NONE)
            }
            Step::AwaitReady(_) | Step::AwaitShutdown(_) => {
                (commands::property_get(CSTS, false), Spans::NONE)
            }
            Step::Identify => identify(cns::CONTROLLER, 0),
            Step::QueueCount => {
                let count = u32::from(self.options.io_queues);
                let dword = queue_counts_dword(count, count);
                (features::set(fid::NUMBER_OF_QUEUES, dword), Spans::NONE)
            }
            Step::Events => {
                let events = self.wanted_events();
                (features::set(fid::ASYNC_EVENT_CONFIGURATION, events), Spans::NONE)
            }
            Step::ListNamespaces { after } => identify(cns::ACTIVE_NAMESPACES, after),
            Step::IdentifyNamespace { index } => identify(cns::NAMESPACE, *self.listed.get(index)?),
            // Reading it is what clears the event (NVMe Base 2.1, Changed Attached Namespace List).
            Step::ClearChanged => {
                let bytes = PAGE_BYTES as u64;
                let sqe = commands::log_page(lid::CHANGED_NAMESPACES, u32::MAX, 0, bytes);
                (sqe, page(PAGE_BYTES))
            }
            Step::Request => {
                let request = self.request?;
                let data = match request.bytes {
                    0 => Spans::NONE,
                    bytes => page(bytes as usize),
                };
                (request.sqe, data)
            }
            Step::Shutdown => {
                let cc = Cc::enabled(Cc::CSS_NVM, 0).with_shn(Cc::SHN_NORMAL);
                (commands::property_set(CC, cc.0), Spans::NONE)
            }
            Step::Ready | Step::Down => return None,
        })
    }

    /// The command of the step has ended: on to the next.
    fn handle_step(&mut self, now: Instant, done: Completed) -> Result<(), Error> {
        let answer = done.answer;
        self.step = match self.step {
            Step::Connect => {
                self.handle_connected(answer)?;
                Step::Capabilities
            }
            Step::Capabilities => {
                self.cap = Cap(check("Property Get (CAP)", answer)?);
                Step::Enable
            }
            Step::Enable => {
                check("Property Set (CC)", answer)?;
                // In units of 500 ms.
                let limit = Duration::from_millis(500) * u32::from(self.cap.to()).max(1);
                Step::AwaitReady(Wait { since: now, limit })
            }
            Step::AwaitReady(wait) => self.handle_status(now, answer, wait)?,
            Step::Identify => self.handle_controller(done)?,
            Step::QueueCount => {
                self.handle_queue_count(check("Set Features (Number of Queues)", answer)?)?;
                self.after_queue_count()
            }
            Step::Events => {
                check("Set Features (Asynchronous Event Configuration)", answer)?;
                self.event_request = EventRequest::Due;
                self.after_events()
            }
            Step::ClearChanged => {
                check("Get Log Page (Changed Attached Namespace List)", answer)?;
                self.begin_list()
            }
            Step::ListNamespaces { .. } => self.handle_list(done)?,
            Step::IdentifyNamespace { index } => self.handle_namespace(done, index)?,
            Step::Request => {
                self.request = None;
                let bytes = if answer.status.is_success() { done.bytes } else { 0 };
                let mut data = vec![0; bytes as usize];
                self.page.read(0, &mut data);
                self.outputs.push_back(Output::Answered(answer, data));
                Step::Ready
            }
            Step::Shutdown => {
                check("Property Set (CC.SHN)", answer)?;
                let limit = match self.traits.shutdown_time {
                    Duration::ZERO => SHUTDOWN_TIMEOUT,
                    time => time,
                };
                Step::AwaitShutdown(Wait { since: now, limit })
            }
            Step::AwaitShutdown(wait) => self.handle_shutdown(now, answer, wait)?,
            Step::Ready | Step::Down => self.step,
        };
        Ok(())
    }

    fn handle_connected(&mut self, answer: Answer) -> Result<(), Error> {
        let result = check("Connect", answer)?;
        // An authentication that the controller demands is in the upper half.
        if result >> 16 & 0xFFFF != 0 {
            return Err(Error::Unusable { reason: "it demands authentication" });
        }
        self.cntlid = result as u16;
        if self.cntlid > CNTLID_MAX {
            return Err(Error::Unusable { reason: "Connect gave a reserved identifier" });
        }
        Ok(())
    }

    /// CSTS while CSTS.RDY is waited for.
    fn handle_status(&mut self, now: Instant, answer: Answer, wait: Wait) -> Result<Step, Error> {
        let csts = Csts(check("Property Get (CSTS)", answer)? as u32);
        if csts.cfs() {
            return Err(Error::FatalStatus);
        }
        if csts.rdy() {
            // From here on the controller counts time; before, it would refuse the command.
            self.keep_alive_at = Some(now + self.options.keep_alive / 2);
            return Ok(Step::Identify);
        }
        self.wait_on(now, wait, "becoming ready (CSTS.RDY)")?;
        Ok(Step::AwaitReady(wait))
    }

    fn handle_shutdown(&mut self, now: Instant, answer: Answer, wait: Wait) -> Result<Step, Error> {
        let csts = Csts(check("Property Get (CSTS)", answer)? as u32);
        if csts.shst() == Csts::SHST_COMPLETE {
            self.keep_alive_at = None;
            self.outputs.push_back(Output::Down);
            return Ok(Step::Down);
        }
        self.wait_on(now, wait, "shutting down (CSTS.SHST)")?;
        Ok(Step::AwaitShutdown(wait))
    }

    fn handle_controller(&mut self, done: Completed) -> Result<Step, Error> {
        check("Identify Controller", done.answer)?;
        let id: IdentifyController = self.page.read_obj(0);
        let min_page_bytes = 4096 << self.cap.mpsmin();
        let transport = self.options.transport;
        let (info, traits) = info::controller(&id, transport, self.cntlid, min_page_bytes)?;
        if !traits.keeps_alive {
            self.keep_alive_at = None;
        }
        self.info = Some(info);
        self.traits = traits;
        Ok(match self.is_discovery() || id.cntrltype == CNTRLTYPE_DISCOVERY {
            true => self.after_queue_count(),
            false => Step::QueueCount,
        })
    }

    fn handle_queue_count(&mut self, result: u64) -> Result<(), Error> {
        let counts = queue_counts(result as u32);
        let (submission, completion) =
            counts.ok_or(Error::Unusable { reason: "it granted no I/O queue" })?;
        let granted = submission.min(completion).min(u32::from(self.options.io_queues));
        // One entry of a queue always stays free; the controller may take fewer commands still.
        let mut depth = self.options.depth.min(self.cap.mqes_z());
        if self.traits.max_commands > 0 {
            depth = depth.min(self.traits.max_commands);
        }
        if depth == 0 {
            return Err(Error::Unusable { reason: "its queues hold no command (CAP.MQES)" });
        }
        if let Some(info) = &mut self.info {
            (info.io_queues, info.depth) = (granted as u16, depth);
        }
        Ok(())
    }

    fn wanted_events(&self) -> u32 {
        self.traits.events & (OAES_NAMESPACE_ATTRIBUTE | OAES_DISCOVERY_LOG)
    }

    fn after_queue_count(&mut self) -> Step {
        match self.wanted_events() {
            0 => self.after_events(),
            _ => Step::Events,
        }
    }

    fn after_events(&mut self) -> Step {
        match self.is_discovery() {
            true => self.ready(),
            false => self.begin_list(),
        }
    }

    fn begin_list(&mut self) -> Step {
        self.listed.clear();
        self.found.clear();
        Step::ListNamespaces { after: 0 }
    }

    fn handle_list(&mut self, done: Completed) -> Result<Step, Error> {
        check("Identify (active namespaces)", done.answer)?;
        let mut list = [0; IDENTIFY_BYTES];
        self.page.read(0, &mut list);
        let before = self.listed.len();
        for nsid in namespaces(&list).take(MAX_NAMESPACES - before) {
            // In ascending order; one that is not would have us go round in circles.
            if self.listed.last().is_some_and(|&last| nsid <= last) {
                return Err(Error::Unusable { reason: "its list of namespaces is not in order" });
            }
            self.listed.push(nsid);
        }
        let full = self.listed.len() - before == NAMESPACE_LIST_MAX;
        Ok(match self.listed.last() {
            Some(&after) if full && self.listed.len() < MAX_NAMESPACES => {
                Step::ListNamespaces { after }
            }
            Some(_) => Step::IdentifyNamespace { index: 0 },
            None => self.listed_all(),
        })
    }

    fn handle_namespace(&mut self, done: Completed, index: usize) -> Result<Step, Error> {
        // One that has gone since it was listed has no identity any more.
        if done.answer.status.is_success() {
            let id: IdentifyNamespace = self.page.read_obj(0);
            let namespace = info::namespace(self.listed[index], &id, &self.traits);
            self.found.extend(namespace);
        } else if !is_gone(done.answer.status) {
            check("Identify Namespace", done.answer)?;
        }
        Ok(match index + 1 < self.listed.len() {
            true => Step::IdentifyNamespace { index: index + 1 },
            false => self.listed_all(),
        })
    }

    fn listed_all(&mut self) -> Step {
        self.namespaces = std::mem::take(&mut self.found);
        self.ready()
    }

    /// Bring-up is over, or namespaces were looked at again.
    fn ready(&mut self) -> Step {
        let output = if self.was_ready { Output::NamespacesChanged } else { Output::Ready };
        self.was_ready = true;
        self.outputs.push_back(output);
        Step::Ready
    }

    fn handle_event(&mut self, answer: Answer) {
        self.event_request = EventRequest::None;
        if !answer.status.is_success() {
            // Aborted because the controller is disabled or shut down: no more events.
            return;
        }
        self.event_request = EventRequest::Due;
        let event = AsyncEvent(answer.result as u32);
        match (event.event_type(), event.information()) {
            (event_type::NOTICE, notice::NAMESPACE_ATTRIBUTE_CHANGED) => {
                self.namespaces_changed = true;
            }
            (event_type::NOTICE, notice::DISCOVERY_LOG_CHANGE) => {
                self.outputs.push_back(Output::DiscoveryChanged);
            }
            _ => tracing::debug!(?event, "an event that nobody asked for"),
        }
    }

    /// Looks again a little later, unless that is too late.
    fn wait_on(&mut self, now: Instant, wait: Wait, what: &'static str) -> Result<(), Error> {
        if now.saturating_duration_since(wait.since) >= wait.limit {
            return Err(Error::TimedOut { addr: self.options.addr, what, after: wait.limit });
        }
        self.resume_at = Some(now + PROPERTY_INTERVAL);
        Ok(())
    }
}

/// The result of a command that has succeeded.
pub(crate) fn check(command: &'static str, answer: Answer) -> Result<u64, Error> {
    let Answer { status, result } = answer;
    match status.is_success() {
        true => Ok(result),
        false => Err(Error::Command { command, status, result }),
    }
}

fn is_gone(status: Status) -> bool {
    let gone = Status::INVALID_NAMESPACE_OR_FORMAT;
    (status.code_type(), status.code()) == (gone.code_type(), gone.code())
}

fn command(tag: u32, sqe: Sqe, data: Spans, deadline: Option<Instant>) -> Command {
    // A log page may end before the memory for it does.
    let may_be_short = sqe.opcode() == opcode::admin::GET_LOG_PAGE;
    Command { tag, sqe, data, may_be_short, deadline }
}
