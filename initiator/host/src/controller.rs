//! A controller: its association, and what becomes of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::Arena;
use nvme_spec::command::Sqe;
use nvme_spec::identify::{IDENTIFY_BYTES, Identify};

use crate::admin::{Output, Request, check, commands};
use crate::association::Association;
use crate::error::Error;
use crate::info::{ControllerInfo, Namespace};
use crate::io_queue::IoQueue;
use crate::limits::PAGE_BYTES;
use crate::options::{Options, Reconnect};
use crate::shared::{Epoch, Shared, Up};

/// What happened to a controller, from [`Controller::poll`].
#[derive(Debug)]
pub enum ControllerEvent {
    /// Namespaces came, went or changed: [`Controller::namespaces`] is the new list.
    NamespacesChanged,
    /// The discovery log changed.
    DiscoveryLogChanged,
    /// The association is lost, and it is tried to get another.
    Lost(Error),
    /// There is a new association. Its I/O queues connect again by themselves; namespaces may be
    /// others. What the controller had acknowledged and not yet made durable may be gone.
    Reconnected,
    /// The association is lost for good.
    GaveUp(Error),
}

/// A controller that we are connected to.
///
/// Whoever owns it calls [`Controller::poll`] several times within the keep-alive time-out: that
/// keeps the association alive, and restores it when it is lost.
#[derive(Debug)]
pub struct Controller {
    options: Arc<Options>,
    arena: &'static Arena,
    shared: Arc<Shared>,
    association: Option<Association>,
    state: State,
    info: ControllerInfo,
    namespaces: Vec<Namespace>,
    opened: u16,
    events: VecDeque<ControllerEvent>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Up(Epoch),
    /// Lost; the next attempt begins at `attempt_at`, if none is under way.
    Lost {
        since: Instant,
        attempt_at: Instant,
    },
    Closed,
}

impl Controller {
    /// Connects, and waits until the controller is ready and its namespaces are known. Memory for
    /// queues comes from `arena`, and so must the data of I/Os.
    ///
    /// # Errors
    /// An option that cannot be, a network that does not reach the controller, a controller that
    /// refuses us or does not keep to the rules.
    pub fn connect(options: Options, arena: &'static Arena) -> Result<Self, Error> {
        options.check()?;
        let options = Arc::new(options);
        let mut association = connect(&options, arena)?;
        let info = info_of(&mut association)?;
        let namespaces = association.admin().namespaces().to_vec();
        let shared = Shared::new(up(&mut association, &info));
        let epoch = shared.epoch();
        Ok(Self {
            options,
            arena,
            shared: Arc::new(shared),
            association: Some(association),
            state: State::Up(epoch),
            info,
            namespaces,
            opened: 0,
            events: VecDeque::new(),
        })
    }

    /// One turn: keeps the association alive, and restores it. The next thing that happened, until
    /// there is nothing more.
    pub fn poll(&mut self, now: Instant) -> Option<ControllerEvent> {
        match self.state {
            State::Up(epoch) => self.poll_up(now, epoch),
            State::Lost { since, attempt_at } => self.poll_lost(now, since, attempt_at),
            State::Closed => {}
        }
        self.events.pop_front()
    }

    /// Waits until a turn has something to do, `timeout` at most.
    pub fn wait(&mut self, now: Instant, timeout: Duration) {
        if !self.events.is_empty() {
            return;
        }
        // Queues tell of a loss by a number that is looked at in each turn.
        let timeout = timeout.min(WAIT_MAX);
        match &mut self.association {
            // An error comes up again in the next turn.
            Some(association) => drop(association.wait(now, timeout)),
            None => std::thread::sleep(timeout),
        }
    }

    /// Opens the next I/O queue, and waits until it is ready. A queue is opened once: one that was
    /// dropped is not given again.
    ///
    /// # Errors
    /// All queues that the controller granted are open, or this one does not open.
    pub fn open_queue(&mut self) -> Result<IoQueue, Error> {
        let granted = self.info.io_queues;
        if self.opened >= granted {
            return Err(Error::NoQueue { granted });
        }
        let (_, up) = self.shared.up().ok_or(Error::Lost)?;
        let (options, shared) = (Arc::clone(&self.options), Arc::clone(&self.shared));
        let mut queue = IoQueue::new(options, shared, self.arena, self.opened + 1, up)?;
        loop {
            let now = Instant::now();
            queue.poll(now);
            if queue.is_ready() {
                self.opened += 1;
                return Ok(queue);
            }
            if let Some(error) = queue.take_error() {
                return Err(error);
            }
            self.turn_aside(now);
            queue.wait(now, WAIT_MAX);
        }
    }

    /// What the controller says of itself.
    pub fn info(&self) -> &ControllerInfo {
        &self.info
    }

    /// Namespaces that can be used: without metadata.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// The namespace with this identifier.
    ///
    /// # Errors
    /// There is none that can be used.
    pub fn namespace(&self, nsid: u32) -> Result<Namespace, Error> {
        let found = self.namespaces.iter().find(|namespace| namespace.nsid == nsid);
        found.copied().ok_or(Error::NoNamespace { nsid })
    }

    /// Identify, whatever `cns` asks for: 4096 bytes.
    ///
    /// # Errors
    /// The association is lost, or the controller refuses.
    pub fn identify(&mut self, cns: u8, nsid: u32) -> Result<Vec<u8>, Error> {
        let sqe = Identify { cns, cntid: 0, csi: 0 }.to_sqe(nsid);
        self.request("Identify", sqe, IDENTIFY_BYTES as u32)
    }

    /// Part of a log page: up to `bytes` (4 to 4096, a multiple of 4) from `offset` on.
    ///
    /// # Errors
    /// The association is lost, or the controller refuses.
    pub fn log_page(
        &mut self,
        lid: u8,
        nsid: u32,
        offset: u64,
        bytes: u32,
    ) -> Result<Vec<u8>, Error> {
        assert!((4..=PAGE_BYTES as u32).contains(&bytes) && bytes.is_multiple_of(4));
        let sqe = commands::log_page(lid, nsid, offset, bytes.into());
        self.request("Get Log Page", sqe, bytes)
    }

    /// Shuts the controller down in order and disconnects. Its queues end what is on their way.
    ///
    /// # Errors
    /// The controller did not say in time that it is shut down; it is disconnected nevertheless.
    pub fn detach(mut self) -> Result<(), Error> {
        let Some(mut association) = self.association.take() else { return Err(Error::Lost) };
        self.shared.close();
        association.admin().shut_down();
        let limit = self.options.admin_timeout.max(crate::limits::SHUTDOWN_TIMEOUT);
        association.run("shutting down", self.options.addr, limit, |output| match output {
            Output::Down => Some(()),
            _ => None,
        })
    }

    fn request(&mut self, command: &'static str, sqe: Sqe, bytes: u32) -> Result<Vec<u8>, Error> {
        let State::Up(epoch) = self.state else { return Err(Error::Lost) };
        let association = self.association.as_mut().ok_or(Error::Lost)?;
        association.admin().request(Request { sqe, bytes });
        let limit = self.options.admin_timeout * 2;
        let mut others = Vec::new();
        let answered = association.run(command, self.options.addr, limit, |output| match output {
            Output::Answered(answer, data) => Some((answer, data)),
            other => {
                others.push(other);
                None
            }
        });
        others.into_iter().for_each(|output| self.handle_output(output));
        match answered {
            Ok((answer, data)) => check(command, answer).map(|_| data),
            // What is wrong with it is told here; that it is lost is told by the next turn.
            Err(error) => {
                self.shared.lose(epoch);
                Err(error)
            }
        }
    }

    /// One turn while something else is waited for; what happens is told later.
    fn turn_aside(&mut self, now: Instant) {
        if let Some(event) = self.poll(now) {
            self.events.push_front(event);
        }
    }

    fn poll_up(&mut self, now: Instant, epoch: Epoch) {
        let Some(association) = &mut self.association else { return };
        let turned = match self.shared.epoch() == epoch {
            true => association.turn(now),
            false => Err(Error::Lost),
        };
        while let Some(output) = self.association.as_mut().and_then(Association::poll_output) {
            self.handle_output(output);
        }
        if let Err(error) = turned {
            self.lose(now, epoch, error);
        }
    }

    fn handle_output(&mut self, output: Output) {
        match output {
            Output::NamespacesChanged => {
                if let Some(association) = &mut self.association {
                    self.namespaces = association.admin().namespaces().to_vec();
                }
                self.tell(ControllerEvent::NamespacesChanged);
            }
            Output::DiscoveryChanged => self.tell(ControllerEvent::DiscoveryLogChanged),
            Output::Ready | Output::Answered(..) | Output::Down => {}
        }
    }

    /// Told once, however often it happens before it is asked for.
    fn tell(&mut self, event: ControllerEvent) {
        let kind = std::mem::discriminant(&event);
        if self.events.back().map(std::mem::discriminant) != Some(kind) {
            self.events.push_back(event);
        }
    }

    fn lose(&mut self, now: Instant, epoch: Epoch, error: Error) {
        self.association = None;
        self.shared.lose(epoch);
        match self.options.reconnect {
            Some(Reconnect { delay, .. }) => {
                tracing::warn!(addr = %self.options.addr, %error, "association lost");
                self.state = State::Lost { since: now, attempt_at: now + delay };
                self.events.push_back(ControllerEvent::Lost(error));
            }
            None => self.give_up(error),
        }
    }

    fn give_up(&mut self, error: Error) {
        tracing::warn!(addr = %self.options.addr, %error, "association lost for good");
        self.association = None;
        self.shared.close();
        self.state = State::Closed;
        self.events.push_back(ControllerEvent::GaveUp(error));
    }

    /// The association is lost: an attempt at another is begun, or goes on.
    fn poll_lost(&mut self, now: Instant, since: Instant, attempt_at: Instant) {
        let limit = self.options.connect_timeout;
        let turned = match &mut self.association {
            Some(_) if now.saturating_duration_since(attempt_at) >= limit => {
                let (addr, what) = (self.options.addr, "reconnecting");
                Err(Error::TimedOut { addr, what, after: limit })
            }
            Some(association) => association.turn(now),
            None if now < attempt_at => return,
            None => match Association::begin(now, &self.options, self.arena) {
                Ok(association) => {
                    self.association = Some(association);
                    self.state = State::Lost { since, attempt_at: now };
                    Ok(())
                }
                Err(error) => Err(error),
            },
        };
        let turned = turned.and_then(|()| self.try_rise());
        let Err(error) = turned else { return };
        self.association = None;
        let Some(Reconnect { delay, give_up_after }) = self.options.reconnect else { return };
        if error.is_final() || now.saturating_duration_since(since) >= give_up_after {
            return self.give_up(error);
        }
        tracing::debug!(addr = %self.options.addr, %error, "reconnecting failed");
        self.state = State::Lost { since, attempt_at: now + delay };
    }

    /// The new association is the controller's, once it is ready.
    fn try_rise(&mut self) -> Result<(), Error> {
        let Some(association) = &mut self.association else { return Ok(()) };
        while let Some(output) = association.poll_output() {
            if !matches!(output, Output::Ready) {
                continue;
            }
            let info = info_of(association)?;
            if info.io_queues < self.opened {
                return Err(Error::NoQueue { granted: info.io_queues });
            }
            self.namespaces = association.admin().namespaces().to_vec();
            let epoch = self.shared.rise(up(association, &info));
            tracing::info!(addr = %self.options.addr, cntlid = info.cntlid, "reconnected");
            self.info = info;
            self.state = State::Up(epoch);
            self.events.push_back(ControllerEvent::Reconnected);
            return Ok(());
        }
        Ok(())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // Queues outlive it without being served.
        self.shared.close();
    }
}

/// The longest wait.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Connects and waits until the controller is ready.
pub(crate) fn connect(options: &Arc<Options>, arena: &'static Arena) -> Result<Association, Error> {
    let mut association = Association::begin(Instant::now(), options, arena)?;
    let limit = options.connect_timeout;
    association.run("connecting", options.addr, limit, |output| match output {
        Output::Ready => Some(()),
        _ => None,
    })?;
    Ok(association)
}

fn info_of(association: &mut Association) -> Result<ControllerInfo, Error> {
    association.admin().info().cloned().ok_or(Error::Lost)
}

fn up(association: &mut Association, info: &ControllerInfo) -> Up {
    let admin = association.admin();
    Up {
        cntlid: info.cntlid,
        depth: info.depth,
        in_capsule_bytes: admin.in_capsule_bytes(),
        quiesce: admin.quiesce_after_loss(),
    }
}
