//! RDMA connections, from the connect request to the last trace: the control thread's half.
//!
//! A connection is made here and used on a core. Its queue pair goes there with `OpenQueue` and
//! comes back with `QueueClosed`; it is destroyed here, because that may take long, and the core
//! frees the memory only after it has been told so.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;
use dma::Arena;
use nvme_spec::rdma::{AcceptPrivateData, RejectPrivateData, reject};
use nvmf::Transport;
use nvmf_rdma::{ConnectRequest, OpenParams, limits};
use verbs::{
    Access, CmEvent, CmId, CmKey, ConnParams, ConnectionData, Cq, CqHandle, Device, EventChannel,
    Mr, Pd, QpLimits, RdmaQp,
};
use zerocopy::IntoBytes;

use super::connections::{Connection, Connections};
use crate::limits::{CQ_ENTRIES, MAX_CONNECTIONS, MAX_RDMA_DEVICES, READ_DEPTH};
use crate::message::{CoreMessage, OpenQueue, Way};

/// How long to wait before listening again where a device was away.
const RETRY_LISTENERS: Duration = Duration::from_secs(2);

/// The RDMA side of the control thread.
pub(crate) struct Rdma {
    arena: &'static Arena,
    cores: usize,
    channel: EventChannel,
    listeners: Vec<Listener>,
    devices: [Option<OpenDevice>; MAX_RDMA_DEVICES],
    ends: HashMap<u64, RdmaEnd>,
    by_cm: HashMap<CmKey, u64>,
    next_retry: Instant,
}

/// An address that hosts connect to. Without an id its device is away; it is tried again.
struct Listener {
    address: SocketAddr,
    id: Option<CmId>,
}

/// A device that connections came in on: one PD, one registration, one CQ per core.
///
/// It is kept while a listener or a connection is on it, because those are what the connection
/// manager tells of its removal, and the kernel may wait with that until nothing of it is left.
struct OpenDevice {
    device: Device,
    mr: Mr,
    cqs: Vec<CqHandle>,
    connections: usize,
    /// It is being removed: what comes in on an address of it from now on is on another device.
    leaving: bool,
}

/// Our end of a connection.
struct RdmaEnd {
    id: CmId,
    device: usize,
    params: ConnParams,
    /// Entries of its queue, as it asked for.
    entries: u16,
}

/// What the control thread has to do for a connection.
pub(crate) enum Action {
    /// Tell a core.
    Tell(usize, CoreMessage),
    /// The queue of this connection has to be closed on its core.
    Close(u64),
}

impl Rdma {
    /// # Errors
    /// The kernel has no RDMA connection manager.
    pub(crate) fn new(arena: &'static Arena, cores: usize) -> anyhow::Result<Self> {
        Ok(Self {
            arena,
            cores,
            channel: EventChannel::new()?,
            listeners: Vec::new(),
            devices: Default::default(),
            ends: HashMap::new(),
            by_cm: HashMap::new(),
            next_retry: Instant::now(),
        })
    }

    /// Becomes readable when [`Rdma::poll`] has something.
    pub(crate) fn channel(&self) -> &EventChannel {
        &self.channel
    }

    /// Listens on an address.
    ///
    /// # Errors
    /// The address is no RDMA device's, or its port is taken.
    pub(crate) fn listen(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let id = Some(self.bind(address)?);
        self.listeners.push(Listener { address, id });
        Ok(())
    }

    /// Listens on an address as soon as a device has it.
    pub(crate) fn listen_later(&mut self, address: SocketAddr) {
        self.listeners.push(Listener { address, id: None });
    }

    pub(crate) fn stop_listening(&mut self, address: SocketAddr) {
        self.listeners.retain(|listener| listener.address != address);
    }

    /// Whether an RDMA device has this address.
    pub(crate) fn has_address(&self, ip: IpAddr) -> bool {
        let bound = self.channel.create_id().map(|id| id.bind(SocketAddr::new(ip, 0)));
        matches!(bound, Ok(Ok(())))
    }

    /// Listens again, every now and then, on addresses whose device was away.
    pub(crate) fn retry_listeners(&mut self, now: Instant) {
        if now < self.next_retry {
            return;
        }
        self.next_retry = now + RETRY_LISTENERS;
        for index in 0..self.listeners.len() {
            let Listener { address, id } = &self.listeners[index];
            if id.is_none()
                && let Ok(id) = self.bind(*address)
            {
                tracing::info!(%address, "listening");
                self.listeners[index].id = Some(id);
            }
        }
    }

    fn bind(&self, address: SocketAddr) -> anyhow::Result<CmId> {
        let id = self.channel.create_id()?;
        id.bind(address)?;
        id.listen(128).with_context(|| format!("listening on {address}"))?;
        Ok(id)
    }

    /// Takes what the connection manager has to say, and says what to do.
    pub(crate) fn poll(&mut self, connections: &mut Connections, actions: &mut Vec<Action>) {
        loop {
            match self.channel.poll() {
                Ok(Some(event)) => self.handle_event(event, connections, actions),
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "the RDMA connection manager fails");
                    return;
                }
            }
        }
    }

    fn handle_event(
        &mut self,
        event: CmEvent,
        connections: &mut Connections,
        actions: &mut Vec<Action>,
    ) {
        match event {
            CmEvent::ConnectRequest { id, request, .. } => {
                let peer = id.peer_addr();
                let handled = self.handle_request(id, &request, connections, actions);
                if let Err(refusal) = handled {
                    tracing::warn!(?peer, reason = %refusal.reason, "connection refused");
                    let data = RejectPrivateData::new(refusal.status);
                    // A peer that has gone away cannot be told.
                    let _ = refusal.id.reject(data.as_bytes());
                }
            }
            CmEvent::Disconnected { id } | CmEvent::ConnectFailed { id, .. } => {
                actions.extend(self.by_cm.get(&id).copied().map(Action::Close));
            }
            CmEvent::DeviceRemoval { id } => self.handle_removal(id, actions),
            other => tracing::debug!(?other, "connection manager"),
        }
    }

    fn handle_removal(&mut self, id: CmKey, actions: &mut Vec<Action>) {
        let is_it = |listener: &&mut Listener| listener.id.as_ref().is_some_and(|l| l.key() == id);
        let mut device = None;
        if let Some(listener) = self.listeners.iter_mut().find(is_it) {
            tracing::warn!(address = %listener.address, "the RDMA device goes away");
            let id = listener.id.take();
            let is_on = |open: &OpenDevice| id.as_ref().is_some_and(|id| id.is_on(&open.device));
            device = self.devices.iter().position(|open| open.as_ref().is_some_and(is_on));
        } else if let Some(end) = self.by_cm.get(&id).and_then(|key| self.ends.get(key)) {
            device = Some(end.device);
        }
        let Some(index) = device else { return };
        if let Some(open) = &mut self.devices[index] {
            open.leaving = true;
        }
        let on_it = self.ends.iter().filter(|(_, other)| other.device == index);
        actions.extend(on_it.map(|(&key, _)| Action::Close(key)));
        self.close_unused(index, actions);
    }

    /// Gives a device up that nobody would tell us about any more.
    fn close_unused(&mut self, index: usize, actions: &mut Vec<Action>) {
        let Some(open) = &self.devices[index] else { return };
        let is_on_it = |id: &CmId| id.is_on(&open.device);
        let listened_on = self.listeners.iter().any(|l| l.id.as_ref().is_some_and(is_on_it));
        if open.connections > 0 || (listened_on && !open.leaving) {
            return;
        }
        tracing::info!(device = open.device.name(), "RDMA device closed");
        for core in 0..self.cores {
            actions.push(Action::Tell(core, CoreMessage::RemoveDevice { device: index }));
        }
        self.devices[index] = None;
    }

    fn handle_request(
        &mut self,
        id: CmId,
        request: &ConnectionData,
        connections: &mut Connections,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let wanted = match ConnectRequest::parse(request.private_data.as_bytes()) {
            Ok(wanted) => wanted,
            Err(error) => {
                return Err(Refusal { id, status: error.status(), reason: error.into() });
            }
        };
        if connections.is_full() {
            let reason = anyhow::anyhow!("{MAX_CONNECTIONS} connections are open");
            return Err(Refusal { id, status: reject::NO_RESOURCES, reason });
        }
        let (Some(peer), Some(local)) = (id.peer_addr(), id.local_addr()) else {
            let reason = anyhow::anyhow!("the connection has no addresses");
            return Err(Refusal { id, status: reject::NO_RESOURCES, reason });
        };
        let core = connections.least_loaded();
        match self.make_end(&id, (core, request), &wanted, actions) {
            Ok((device, qp, params)) => {
                let ConnectRequest { qid, entries, .. } = wanted;
                let key = connections.add(Connection {
                    core,
                    transport: Transport::Rdma,
                    peer,
                    local,
                    qid: Some(qid),
                    entries,
                    bound: false,
                    doomed: false,
                });
                self.by_cm.insert(id.key(), key);
                let read_limit = params.initiator_depth.into();
                let way = Way::Rdma {
                    device,
                    qp,
                    params: OpenParams { read_limit, in_capsule: qid != 0 },
                };
                let open = OpenQueue { key, slots: limits::slots(entries), way };
                actions.push(Action::Tell(core, CoreMessage::OpenQueue(Box::new(open))));
                self.ends.insert(key, RdmaEnd { id, device, params, entries });
                Ok(())
            }
            Err(reason) => Err(Refusal { id, status: reject::NO_RESOURCES, reason }),
        }
    }

    fn make_end(
        &mut self,
        id: &CmId,
        (core, request): (usize, &ConnectionData),
        wanted: &ConnectRequest,
        actions: &mut Vec<Action>,
    ) -> anyhow::Result<(usize, RdmaQp, ConnParams)> {
        let index = self.open_device(id.device()?, actions)?;
        let made = self.make_qp((index, core), id, request, wanted);
        if made.is_err() {
            self.close_unused(index, actions);
        }
        let (qp, params) = made?;
        Ok((index, qp, params))
    }

    fn make_qp(
        &mut self,
        (index, core): (usize, usize),
        id: &CmId,
        request: &ConnectionData,
        wanted: &ConnectRequest,
    ) -> anyhow::Result<(RdmaQp, ConnParams)> {
        let device = self.devices[index].as_mut().context("the device was just opened")?;
        let params = ConnParams::answer(request, device.device.limits(), READ_DEPTH);
        anyhow::ensure!(params.initiator_depth > 0, "the host allows no RDMA READ");
        let limits = QpLimits {
            max_recv_wr: limits::slots(wanted.entries),
            max_send_wr: limits::send_depth(wanted.entries),
            max_recv_sges: 2,
            max_send_sges: 1,
            max_inline_bytes: 16,
        };
        let cq = &device.cqs[core];
        let qp = RdmaQp::new(id, &device.mr, cq, cq, limits)?;
        device.connections += 1;
        Ok((qp, params))
    }

    /// The device's number; opens it for the first connection that comes in on it.
    fn open_device(&mut self, device: Device, actions: &mut Vec<Action>) -> anyhow::Result<usize> {
        let is_it = |open: &Option<OpenDevice>| {
            open.as_ref().is_some_and(|open| open.device == device && !open.leaving)
        };
        if let Some(index) = self.devices.iter().position(is_it) {
            return Ok(index);
        }
        let vacant = self.devices.iter().position(Option::is_none);
        let index =
            vacant.with_context(|| format!("{MAX_RDMA_DEVICES} RDMA devices are in use"))?;
        let pd = Pd::new(&device)?;
        // Local write only: no host reaches the arena by itself.
        let mr = Mr::register(&pd, self.arena, Access::default())?;
        let entries = CQ_ENTRIES.min(device.limits().max_cqe);
        let cqs = (0..self.cores).map(|_| Cq::new(&device, entries));
        let cqs = cqs.collect::<Result<Vec<_>, _>>()?;
        let handles = cqs.iter().map(Cq::handle).collect();
        for (core, cq) in cqs.into_iter().enumerate() {
            actions.push(Action::Tell(core, CoreMessage::AddDevice { device: index, cq }));
        }
        tracing::info!(device = device.name(), "RDMA device opened");
        self.devices[index] =
            Some(OpenDevice { device, mr, cqs: handles, connections: 0, leaving: false });
        Ok(index)
    }

    /// The core has taken the connection: accepts it. `false`: the host has gone away already.
    pub(crate) fn accept(&mut self, key: u64) -> bool {
        let Some(end) = self.ends.get(&key) else { return false };
        let data = AcceptPrivateData::new(end.entries);
        match end.id.accept(&end.params, data.as_bytes()) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(key, %error, "accepting failed");
                false
            }
        }
    }

    /// The core could not take the connection: the host is told so.
    pub(crate) fn refuse(&mut self, key: u64) {
        if let Some(end) = self.ends.get(&key) {
            let data = RejectPrivateData::new(reject::NO_RESOURCES);
            let _ = end.id.reject(data.as_bytes());
        }
    }

    /// Destroys a queue pair that a core has given up: when this returns, none of its work requests
    /// touches memory any more.
    pub(crate) fn destroy(&mut self, key: u64, qp: RdmaQp) {
        if let Some(end) = self.ends.get(&key) {
            // Tells the host. It fails where the connection never came up, or is down.
            let _ = end.id.disconnect();
        }
        drop(qp);
    }

    /// Forgets a connection of which nothing is left.
    pub(crate) fn remove(&mut self, key: u64, actions: &mut Vec<Action>) {
        let Some(end) = self.ends.remove(&key) else { return };
        self.by_cm.remove(&end.id.key());
        let index = end.device;
        // Its id holds on to the device, too.
        drop(end);
        if let Some(open) = &mut self.devices[index] {
            open.connections -= 1;
        }
        self.close_unused(index, actions);
    }
}

/// A connect request that is turned down.
struct Refusal {
    id: CmId,
    status: u16,
    reason: anyhow::Error,
}
