//! The control thread: everything that is not an I/O, in one loop that sleeps when nothing happens.
//!
//! It owns the control half of NVMe-oF, the connections, the block devices and the exports,
//! and talks to the cores by messages. Nothing here is shared, so nothing is locked; what takes
//! several steps (a namespace is attached on every core before hosts hear of it) keeps its place in
//! [`Control::changes`] meanwhile. What is to survive a restart is in [`Control::state`], which is
//! saved before anybody hears of a change.

mod admin;
mod connections;
mod device_info;
mod devices;
mod ending;
mod exports;
mod gathering;
mod health;
mod hosts;
mod job;
mod leaving;
mod listeners;
mod pool_check;
mod pool_devices;
mod pools;
mod rdma;
mod requests;
mod socket;
mod stats;
mod tcp;
#[cfg(test)]
mod tests;
mod volume_bdev;
#[cfg(test)]
mod volume_tests;
mod volumes;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Endpoint;
use bdev::Registry;
use dma::Arena;
use nvmf::engine::QueueId;
use nvmf::{CommandKey, Target};
use reactor::{Health, Reactor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::{EnvFilter, reload};

pub(crate) use self::rdma::Rdma;
pub(crate) use self::socket::{Asked, listen};
pub(crate) use self::tcp::Tcp;

use self::admin::Pending;
use self::connections::Connections;
use self::device_info::Look;
use self::devices::Devices;
use self::exports::{Change, Place, Removal};
use self::pools::Pools;
use self::rdma::Action;
use self::stats::Waiting;
use crate::limits::CORE_BACKLOG;
use crate::message::{ControlMessage, ControlRing, CoreMessage, End};
use crate::state::State;
use crate::state_file::StateFile;

/// How often devices, listeners and reactors are looked after.
const TICK: Duration = Duration::from_millis(10);

/// How long answers have to leave after the last request.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// The control thread's own.
pub(crate) struct Control {
    pub(crate) target: Target,
    pub(crate) cores: Vec<Reactor<CoreMessage>>,
    pub(crate) ring: Arc<ControlRing>,
    pub(crate) rdma: Option<Rdma>,
    tcp: Tcp,
    connections: Connections,
    /// Where hosts connect, and which of that the command line asked for.
    pub(crate) listeners: Vec<Endpoint>,
    configured: Vec<Endpoint>,
    pub(crate) bdevs: Registry,
    pub(crate) state: State,
    pub(crate) state_file: StateFile,
    pub(crate) started: Instant,
    pub(crate) arena: &'static Arena,
    pub(crate) log: LogHandle,
    devices: Devices,
    pools: Pools,
    /// Callers that wait for a look at controllers.
    looks: Vec<Look>,
    /// When the subsystems' health is brought up to date again.
    health_due: Instant,
    /// Messages that found a core's inbox full, in order, by core; at most `CORE_BACKLOG` each.
    backlog: Vec<VecDeque<CoreMessage>>,
    /// The queue of each connection on its core, from when the core has taken it.
    queues: HashMap<u64, CoreQueue>,
    /// Commands that cores wait for.
    commands: HashMap<CommandKey, Pending>,
    /// Abort commands that wait for a core's word.
    aborts: HashMap<u64, CommandKey>,
    next_token: u64,
    /// Namespaces on their way in or out.
    changes: HashMap<Place, Change>,
    removals: Vec<Removal>,
    /// Why namespaces of the state are not served, by NQN and NSID.
    down: BTreeMap<(String, u32), String>,
    stats_wanted: VecDeque<Waiting>,
    stopping: bool,
}

/// A queue as its core knows it.
struct CoreQueue {
    id: QueueId,
    /// The core was told to close it.
    closing: bool,
}

/// What a new control thread is made of.
pub(crate) struct Parts {
    pub(crate) target: Target,
    pub(crate) cores: Vec<Reactor<CoreMessage>>,
    pub(crate) ring: Arc<ControlRing>,
    pub(crate) rdma: Option<Rdma>,
    pub(crate) tcp: Tcp,
    pub(crate) state: State,
    pub(crate) state_file: StateFile,
    pub(crate) arena: &'static Arena,
    pub(crate) log: LogHandle,
}

/// Changes what is logged.
pub(crate) type LogHandle = reload::Handle<EnvFilter, tracing_subscriber::Registry>;

impl Control {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { target, cores, ring, rdma, tcp, state, state_file, arena, log } = parts;
        Self {
            backlog: cores.iter().map(|_| VecDeque::new()).collect(),
            connections: Connections::new(cores.len()),
            target,
            cores,
            ring,
            rdma,
            tcp,
            listeners: Vec::new(),
            configured: Vec::new(),
            bdevs: Registry::default(),
            state,
            state_file,
            started: Instant::now(),
            arena,
            log,
            devices: Devices::default(),
            pools: Pools::default(),
            looks: Vec::new(),
            health_due: Instant::now(),
            queues: HashMap::new(),
            commands: HashMap::new(),
            aborts: HashMap::new(),
            next_token: 0,
            changes: HashMap::new(),
            removals: Vec::new(),
            down: BTreeMap::new(),
            stats_wanted: VecDeque::new(),
            stopping: false,
        }
    }

    /// Runs until the daemon is to end, and ends everything in order.
    ///
    /// # Errors
    /// A reactor has died, or the event loop cannot be set up.
    pub(crate) async fn run(mut self, mut calls: mpsc::Receiver<Asked>) -> anyhow::Result<()> {
        let result = self.serve_all(&mut calls).await;
        tracing::info!("ending");
        // Whoever asked for it still gets the answer.
        calls.close();
        tokio::time::sleep(LAST_WORDS).await;
        if result.is_ok() {
            self.end_exports().await;
            self.end_pools().await;
        }
        self.end_devices().await;
        result
    }

    async fn serve_all(&mut self, calls: &mut mpsc::Receiver<Asked>) -> anyhow::Result<()> {
        let bell = watch(self.ring.bell())?;
        let events = match &self.rdma {
            Some(rdma) => Some(watch(rdma.channel())?),
            None => None,
        };
        let hosts = watch(self.tcp.poller())?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        while !self.stopping {
            tokio::select! {
                guard = bell.readable() => {
                    // Before the ring is read: a message that comes later rings again.
                    let _ = self.ring.bell().read();
                    guard?.clear_ready();
                    self.drain_ring();
                }
                guard = readable(events.as_ref()) => {
                    guard?.clear_ready();
                    self.with_rdma(Rdma::poll);
                }
                guard = hosts.readable() => {
                    // Before it is polled: what comes later is told again.
                    guard?.clear_ready();
                    self.with_tcp(Tcp::poll);
                }
                Some(asked) = calls.recv() => self.handle_call(asked),
                _ = tick.tick() => self.handle_tick()?,
                _ = terminate.recv() => self.stopping = true,
                _ = interrupt.recv() => self.stopping = true,
            }
            self.handle_outputs();
            self.flush_backlog();
        }
        Ok(())
    }

    /// Waits until what was restored is attached on every core.
    ///
    /// # Errors
    /// A core does not answer.
    pub(crate) async fn settle(&mut self) -> anyhow::Result<()> {
        let limit = Instant::now() + Duration::from_secs(10);
        let settled = self.wait_until(limit, |control| control.changes.is_empty()).await;
        anyhow::ensure!(settled, "a reactor does not answer");
        Ok(())
    }

    fn handle_tick(&mut self) -> anyhow::Result<()> {
        // Before anything is found late: while this thread was busy, a keep-alive may have come.
        self.drain_ring();
        let now = Instant::now();
        if self.target.poll_timeout().is_some_and(|at| at <= now) {
            self.target.handle_timeout(now);
        }
        self.poll_devices(now);
        self.poll_pools(now);
        self.poll_looks();
        self.poll_health(now);
        if let Some(rdma) = &mut self.rdma {
            rdma.retry_listeners(now);
        }
        self.with_tcp(|tcp, connections, actions| tcp.handle_tick(now, connections, actions));
        match self.cores.iter().position(|core| core.health() == Health::Panicked) {
            // Its queues hang: ending lets hosts reconnect to a new process.
            Some(core) => anyhow::bail!("reactor {core} has died; see the log for its last words"),
            None => Ok(()),
        }
    }

    /// Takes what is in the ring now; what comes meanwhile rings the bell again.
    fn drain_ring(&mut self) {
        for _ in 0..self.ring.len() {
            let Some(message) = self.ring.pop() else { return };
            self.handle_message(message);
            // Answers go out as they come, not after a whole ring of questions.
            self.handle_outputs();
        }
    }

    fn handle_message(&mut self, message: ControlMessage) {
        match message {
            ControlMessage::QueueOpened { key, queue } => self.handle_opened(key, queue),
            ControlMessage::QueueRefused { key, end } => self.refuse_connection(key, end),
            ControlMessage::Command { key, request, sqe, data } => {
                self.handle_command(key, request, &sqe, data);
            }
            ControlMessage::QueueClosed { key, queue, end } => {
                self.target.handle_queue_lost(nvmf::QueueKey(key));
                self.abandon_commands(key);
                match end {
                    End::Rdma(qp) => self.with_rdma(|rdma, _, _| rdma.destroy(key, qp)),
                    End::Tcp(socket) => self.tcp.close(socket, Instant::now()),
                }
                self.tell_core_of(key, CoreMessage::QueueDestroyed { queue });
            }
            ControlMessage::QueueDrained { key } => {
                self.queues.remove(&key);
                self.target.handle_queue_closed(Instant::now(), nvmf::QueueKey(key));
                self.forget_connection(key);
            }
            ControlMessage::NamespaceSet { subsystem, nsid } => {
                self.handle_namespace_set(subsystem, nsid);
            }
            ControlMessage::LaneRemoved { pool, lane, idle } => {
                self.handle_lane_removed(pool, lane, idle);
            }
            ControlMessage::PoolReply { id, reply } => self.handle_pool_reply(id, *reply),
            ControlMessage::Aborted { token, ended } => self.handle_aborted(token, ended),
            ControlMessage::Stats { core, stats } => self.handle_stats(core, *stats),
        }
    }

    /// Lets the RDMA side act, and does what comes of it.
    fn with_rdma(&mut self, act: impl FnOnce(&mut Rdma, &mut Connections, &mut Vec<Action>)) {
        let mut actions = Vec::new();
        if let Some(rdma) = &mut self.rdma {
            act(rdma, &mut self.connections, &mut actions);
        }
        self.take_actions(actions);
    }

    /// Lets the TCP side act, and does what comes of it.
    fn with_tcp(&mut self, act: impl FnOnce(&mut Tcp, &mut Connections, &mut Vec<Action>)) {
        let mut actions = Vec::new();
        act(&mut self.tcp, &mut self.connections, &mut actions);
        self.take_actions(actions);
    }

    fn take_actions(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Tell(core, message) => self.tell(core, message),
                Action::Close(key) => self.close_queue(key),
            }
        }
    }

    /// A core has no memory for a connection.
    fn refuse_connection(&mut self, key: u64, end: Option<End>) {
        if let Some(connection) = self.connections.get(key) {
            let peer = connection.peer;
            tracing::warn!(%peer, "connection refused: no memory left for it");
        }
        // The queue pair goes before the host is told, its receives with it.
        drop(end);
        self.with_rdma(|rdma, _, _| rdma.refuse(key));
        self.forget_connection(key);
    }

    /// Nothing of a connection is left.
    fn forget_connection(&mut self, key: u64) {
        self.connections.remove(key);
        self.with_rdma(|rdma, _, actions| rdma.remove(key, actions));
    }

    /// Ends the queue of a connection, whoever wants it and how often. One that its core has not
    /// taken yet is closed when it has.
    fn close_queue(&mut self, key: u64) {
        match self.queues.get_mut(&key) {
            Some(CoreQueue { closing: true, .. }) => {}
            Some(CoreQueue { id, closing }) => {
                *closing = true;
                let queue = *id;
                self.tell_core_of(key, CoreMessage::CloseQueue { queue });
            }
            None => {
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.doomed = true;
                }
            }
        }
    }

    fn tell_core_of(&mut self, key: u64, message: CoreMessage) {
        if let Some(core) = self.connections.get(key).map(|connection| connection.core) {
            self.tell(core, message);
        }
    }

    fn tell(&mut self, core: usize, message: CoreMessage) {
        let backlog = &mut self.backlog[core];
        let refused = match backlog.is_empty() {
            true => self.cores[core].send(message).err(),
            false => Some(message),
        };
        if let Some(message) = refused {
            assert!(backlog.len() < CORE_BACKLOG, "more messages to core {core} than can wait");
            backlog.push_back(message);
        }
    }

    fn flush_backlog(&mut self) {
        for (core, backlog) in self.cores.iter().zip(&mut self.backlog) {
            while let Some(message) = backlog.pop_front() {
                if let Err(message) = core.send(message) {
                    backlog.push_front(message);
                    break;
                }
            }
        }
    }
}

/// Watches a descriptor of its own for the same file: it stays open for as long as it is watched,
/// which is all that tokio's newer, unsafe constructor asks for.
#[allow(deprecated)]
fn watch(file: &impl AsFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(file.as_fd().try_clone_to_owned()?, Interest::READABLE)
}

/// Waits for a descriptor; for ever where there is none.
async fn readable(
    fd: Option<&AsyncFd<OwnedFd>>,
) -> std::io::Result<tokio::io::unix::AsyncFdReadyGuard<'_, OwnedFd>> {
    match fd {
        Some(fd) => fd.readable().await,
        None => std::future::pending().await,
    }
}
