//! Control verbs and getters: what the operator changes and sees. A verb that fails has changed
//! nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use nvme_spec::fabrics::{DISCOVERY_NQN, is_valid_nqn};
use nvme_spec::identify::{OAES_DISCOVERY_LOG, OAES_NAMESPACE_ATTRIBUTE};
use thiserror::Error;
use uuid::Uuid;

use crate::controller::{Controller, ControllerState};
use crate::limits::{MAX_HOSTS_PER_SUBSYSTEM, MAX_LISTENERS, MAX_NAMESPACES, MAX_SUBSYSTEMS};
use crate::output::{QueueKey, SubsystemId};
use crate::subsystem::{HealthCounters, Namespace, NamespaceConfig, Subsystem, SubsystemConfig};
use crate::target::{Role, Target};

/// A fabrics transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// NVMe/RDMA.
    Rdma,
    /// NVMe/TCP.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rdma => "rdma",
            Self::Tcp => "tcp",
        })
    }
}

/// Where hosts reach the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// How.
    pub transport: Transport,
    /// At which address; an unspecified one stands for every address of the machine.
    pub addr: SocketAddr,
}

/// Why a control verb was refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // fields are what the messages say they are
pub enum TargetError {
    /// Not an NQN.
    #[error("`{nqn}` is not an NQN (nqn.yyyy-mm.reverse.domain:name, at most 223 bytes)")]
    InvalidNqn { nqn: String },
    /// The name belongs to the discovery subsystem.
    #[error("{DISCOVERY_NQN} is the name of the discovery subsystem")]
    ReservedNqn,
    /// Two subsystems cannot have one name.
    #[error("subsystem {nqn} exists already")]
    SubsystemExists { nqn: String },
    /// No such subsystem.
    #[error("there is no subsystem {nqn}")]
    UnknownSubsystem { nqn: String },
    /// Serial or model number that hosts could not be told.
    #[error("{field} `{value}` must be 1 to {max} printable ASCII characters")]
    InvalidText { field: &'static str, value: String, max: usize },
    /// NSID 0 or beyond the highest.
    #[error("NSID {nsid} is not within 1 to {max}")]
    InvalidNsid { nsid: u32, max: u32 },
    /// The NSID is taken.
    #[error("subsystem {nqn} has a namespace {nsid} already")]
    NamespaceExists { nqn: String, nsid: u32 },
    /// No such namespace.
    #[error("subsystem {nqn} has no namespace {nsid}")]
    UnknownNamespace { nqn: String, nsid: u32 },
    /// Hosts would take two namespaces for one.
    #[error("namespace {nsid} of {nqn} has the same UUID {uuid} or NGUID")]
    DuplicateIdentity { nqn: String, nsid: u32, uuid: Uuid },
    /// A geometry that NVMe cannot express.
    #[error("blocks of {block_bytes} bytes, {block_count} of them, cannot be a namespace")]
    InvalidGeometry { block_bytes: u32, block_count: u64 },
    /// Two listeners cannot have one address.
    #[error("there is a {transport} listener at {addr} already", transport = listener.transport,
        addr = listener.addr)]
    ListenerExists { listener: Listener },
    /// No such listener.
    #[error("there is no {transport} listener at {addr}", transport = listener.transport,
        addr = listener.addr)]
    UnknownListener { listener: Listener },
    /// A limit is reached.
    #[error("no more than {max} {what}")]
    LimitReached { what: &'static str, max: usize },
}

/// A controller, as shown to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Controller identifier.
    pub cntlid: u16,
    /// NQN of the subsystem, or of the discovery subsystem.
    pub subsystem_nqn: String,
    /// NQN of the host.
    pub host_nqn: String,
    /// Host identifier.
    pub host_id: [u8; 16],
    /// Address of the host's admin connection.
    pub peer: SocketAddr,
    /// Address it reached.
    pub local: SocketAddr,
    /// How the host came in.
    pub transport: Transport,
    /// Keep-alive time-out in milliseconds; 0: none.
    pub kato_ms: u32,
    /// State.
    pub state: ControllerState,
    /// Its queues are being closed.
    pub ending: bool,
    /// Its admin queue.
    pub admin_queue: QueueKey,
    /// Its I/O queues by QID.
    pub io_queues: Vec<(u16, QueueKey)>,
}

impl Target {
    /// Adds a subsystem without namespaces.
    ///
    /// # Errors
    /// A bad or taken name, a bad serial or model number or host, or too many subsystems.
    pub fn add_subsystem(&mut self, config: SubsystemConfig) -> Result<SubsystemId, TargetError> {
        check_nqn(&config.nqn)?;
        if config.nqn == DISCOVERY_NQN {
            return Err(TargetError::ReservedNqn);
        }
        if self.subsystem(&config.nqn).is_some() {
            return Err(TargetError::SubsystemExists { nqn: config.nqn });
        }
        check_text("serial number", &config.serial, 20)?;
        check_text("model number", &config.model, 40)?;
        config.hosts.iter().try_for_each(|host| check_nqn(host))?;
        let hosts: BTreeSet<String> = config.hosts.into_iter().collect();
        if hosts.len() > MAX_HOSTS_PER_SUBSYSTEM {
            return Err(too_many("hosts of a subsystem", MAX_HOSTS_PER_SUBSYSTEM));
        }
        let free = self.subsystems.iter().position(Option::is_none);
        let index = free.unwrap_or(self.subsystems.len());
        if index >= MAX_SUBSYSTEMS {
            return Err(too_many("subsystems", MAX_SUBSYSTEMS));
        }
        let id = SubsystemId(index as u32);
        let subsystem = Subsystem {
            id,
            nqn: config.nqn,
            serial: config.serial,
            model: config.model,
            any_host: config.any_host,
            hosts,
            namespaces: std::collections::BTreeMap::new(),
            health: HealthCounters::default(),
            highest_nsid: 0,
            removed: false,
        };
        match self.subsystems.get_mut(index) {
            Some(place) => *place = Some(subsystem),
            None => self.subsystems.push(Some(subsystem)),
        }
        self.discovery_changed();
        Ok(id)
    }

    /// Removes a subsystem and closes the queues of its controllers.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove_subsystem(&mut self, nqn: &str) -> Result<(), TargetError> {
        let subsystem = self.subsystem_mut(nqn)?;
        subsystem.removed = true;
        let id = subsystem.id;
        self.end_controllers(|controller| controller.subsystem == id, "its subsystem is removed");
        self.free_subsystem(id);
        self.discovery_changed();
        Ok(())
    }

    /// Adds a namespace and says which NSID it has.
    ///
    /// # Errors
    /// Unknown subsystem, a bad or taken NSID, an identity that another namespace has, a geometry
    /// that cannot be, or too many namespaces.
    pub fn add_namespace(
        &mut self,
        nqn: &str,
        config: NamespaceConfig,
    ) -> Result<u32, TargetError> {
        self.check_identity(&config)?;
        let geometry = config.geometry;
        let bytes = u64::from(geometry.block_bytes).checked_mul(geometry.block_count);
        if !geometry.block_bytes.is_power_of_two() || geometry.block_bytes < 512 || bytes.is_none()
        {
            let bdev::Geometry { block_bytes, block_count, .. } = geometry;
            return Err(TargetError::InvalidGeometry { block_bytes, block_count });
        }
        let subsystem = self.subsystem_mut(nqn)?;
        let nsid = match config.nsid {
            Some(nsid) => nsid,
            None => subsystem.free_nsid().ok_or_else(|| too_many("namespaces", MAX_NAMESPACES))?,
        };
        let max = MAX_NAMESPACES as u32;
        if !(1..=max).contains(&nsid) {
            return Err(TargetError::InvalidNsid { nsid, max });
        }
        if subsystem.namespaces.contains_key(&nsid) {
            return Err(TargetError::NamespaceExists { nqn: nqn.to_owned(), nsid });
        }
        let NamespaceConfig { nsid: _, name, geometry, uuid, nguid, read_only } = config;
        let namespace = Namespace { nsid, name, geometry, uuid, nguid, read_only };
        subsystem.namespaces.insert(nsid, namespace);
        subsystem.highest_nsid = subsystem.highest_nsid.max(nsid);
        let id = subsystem.id;
        self.namespace_changed(id, nsid);
        Ok(nsid)
    }

    /// Removes a namespace.
    ///
    /// # Errors
    /// There is no such subsystem or namespace.
    pub fn remove_namespace(&mut self, nqn: &str, nsid: u32) -> Result<(), TargetError> {
        let subsystem = self.subsystem_mut(nqn)?;
        if subsystem.namespaces.remove(&nsid).is_none() {
            return Err(TargetError::UnknownNamespace { nqn: nqn.to_owned(), nsid });
        }
        let id = subsystem.id;
        for controller in self.controllers.values_mut().filter(|one| one.subsystem == id) {
            if controller.state == ControllerState::Ready {
                controller.removed.insert(nsid);
            }
        }
        self.namespace_changed(id, nsid);
        Ok(())
    }

    /// Hosts that are connected and have not listed the namespaces since this one was removed. As
    /// long as there are any, another one under its NSID could be taken for it, and what a host
    /// remembers of its data for the other's.
    pub fn hosts_with_removed(&self, nqn: &str, nsid: u32) -> Vec<String> {
        let Some(id) = self.subsystem(nqn).map(Subsystem::id) else { return Vec::new() };
        let of_it = |one: &&Controller| one.subsystem == id && !one.ending;
        let controllers = self.controllers.values().filter(of_it);
        let unaware = controllers.filter(|one| one.removed.contains(&nsid));
        unaware.map(|one| one.host_nqn.clone()).collect()
    }

    /// Changes the number of blocks of a namespace.
    ///
    /// # Errors
    /// There is no such subsystem or namespace, or the size cannot be.
    pub fn resize_namespace(
        &mut self,
        nqn: &str,
        nsid: u32,
        block_count: u64,
    ) -> Result<(), TargetError> {
        let subsystem = self.subsystem_mut(nqn)?;
        let Some(namespace) = subsystem.namespaces.get_mut(&nsid) else {
            return Err(TargetError::UnknownNamespace { nqn: nqn.to_owned(), nsid });
        };
        let block_bytes = namespace.geometry.block_bytes;
        if u64::from(block_bytes).checked_mul(block_count).is_none() {
            return Err(TargetError::InvalidGeometry { block_bytes, block_count });
        }
        let changed = std::mem::replace(&mut namespace.geometry.block_count, block_count);
        let id = subsystem.id;
        if changed != block_count {
            self.namespace_changed(id, nsid);
        }
        Ok(())
    }

    /// Says who may see and connect to a subsystem: these hosts, or every host. Hosts that may not
    /// any more lose their controllers.
    ///
    /// # Errors
    /// A bad name, an unknown subsystem, or too many hosts.
    pub fn set_access(
        &mut self,
        nqn: &str,
        any_host: bool,
        hosts: BTreeSet<String>,
    ) -> Result<(), TargetError> {
        hosts.iter().try_for_each(|host| check_nqn(host))?;
        if hosts.len() > MAX_HOSTS_PER_SUBSYSTEM {
            return Err(too_many("hosts of a subsystem", MAX_HOSTS_PER_SUBSYSTEM));
        }
        let subsystem = self.subsystem_mut(nqn)?;
        let id = subsystem.id;
        let changed = (subsystem.any_host, &subsystem.hosts) != (any_host, &hosts);
        (subsystem.any_host, subsystem.hosts) = (any_host, hosts);
        if changed {
            self.end_denied(id);
            self.discovery_changed();
        }
        Ok(())
    }

    /// Closes every queue there is: the target is to end.
    pub fn close_queues(&mut self) {
        self.end_controllers(|_| true, "the target ends");
        let left: Vec<QueueKey> = self.queues.keys().copied().collect();
        left.into_iter().for_each(|key| self.close_queue(key));
    }

    /// Shows hosts in discovery that they can connect here.
    ///
    /// # Errors
    /// It is there already, or there are too many.
    pub fn add_listener(&mut self, listener: Listener) -> Result<(), TargetError> {
        if self.listeners.iter().any(|(_, known)| *known == listener) {
            return Err(TargetError::ListenerExists { listener });
        }
        if self.listeners.len() >= MAX_LISTENERS {
            return Err(too_many("listeners", MAX_LISTENERS));
        }
        self.listeners.push((self.next_port, listener));
        self.next_port = self.next_port.checked_add(1).unwrap_or(1);
        self.discovery_changed();
        Ok(())
    }

    /// Hides a listener from discovery. Connections made through it stay.
    ///
    /// # Errors
    /// There is no such listener.
    pub fn remove_listener(&mut self, listener: Listener) -> Result<(), TargetError> {
        let at = self.listeners.iter().position(|(_, known)| *known == listener);
        self.listeners.remove(at.ok_or(TargetError::UnknownListener { listener })?);
        self.discovery_changed();
        Ok(())
    }

    /// Replaces the counters behind the SMART log of a subsystem.
    ///
    /// # Errors
    /// Unknown subsystem.
    pub fn set_health(&mut self, nqn: &str, health: HealthCounters) -> Result<(), TargetError> {
        self.subsystem_mut(nqn)?.health = health;
        Ok(())
    }

    /// The subsystem of this name.
    pub fn subsystem(&self, nqn: &str) -> Option<&Subsystem> {
        self.subsystems().find(|subsystem| subsystem.nqn == nqn)
    }

    /// All subsystems.
    pub fn subsystems(&self) -> impl Iterator<Item = &Subsystem> {
        self.subsystems.iter().flatten().filter(|subsystem| !subsystem.removed)
    }

    /// All listeners.
    pub fn listeners(&self) -> impl Iterator<Item = Listener> {
        self.listeners.iter().map(|&(_, listener)| listener)
    }

    /// All controllers by CNTLID, those that are about to end included.
    pub fn controllers(&self) -> impl Iterator<Item = ControllerInfo> {
        self.controllers.values().map(|controller| ControllerInfo {
            cntlid: controller.cntlid,
            subsystem_nqn: self
                .subsystem_of(controller.subsystem)
                .map_or(DISCOVERY_NQN, Subsystem::nqn)
                .to_owned(),
            host_nqn: controller.host_nqn.clone(),
            host_id: controller.host_id,
            peer: controller.peer,
            local: controller.local,
            transport: controller.transport,
            kato_ms: controller.kato_ms,
            state: controller.state,
            ending: controller.ending,
            admin_queue: controller.admin,
            io_queues: controller.io_queues.iter().map(|(&qid, &key)| (qid, key)).collect(),
        })
    }

    /// Queues that are open but have not been connected yet.
    pub fn unbound_queues(&self) -> usize {
        self.queues.values().filter(|queue| queue.role == Role::Unbound).count()
    }

    fn subsystem_mut(&mut self, nqn: &str) -> Result<&mut Subsystem, TargetError> {
        (self.subsystems.iter_mut().flatten())
            .find(|subsystem| !subsystem.removed && subsystem.nqn == nqn)
            .ok_or_else(|| TargetError::UnknownSubsystem { nqn: nqn.to_owned() })
    }

    /// Hosts tell namespaces apart by UUID and NGUID across subsystems too.
    fn check_identity(&self, config: &NamespaceConfig) -> Result<(), TargetError> {
        for subsystem in self.subsystems() {
            for other in subsystem.namespaces() {
                if other.uuid == config.uuid || other.nguid == config.nguid {
                    let (nqn, nsid) = (subsystem.nqn.clone(), other.nsid);
                    return Err(TargetError::DuplicateIdentity { nqn, nsid, uuid: other.uuid });
                }
            }
        }
        Ok(())
    }

    fn end_denied(&mut self, id: SubsystemId) {
        let Some(subsystem) = self.subsystem_of(id) else { return };
        let denied: BTreeSet<u16> = (self.controllers.values())
            .filter(|controller| controller.subsystem == id)
            .filter(|controller| !subsystem.allows(&controller.host_nqn))
            .map(|controller| controller.cntlid)
            .collect();
        self.end_controllers(
            |one| denied.contains(&one.cntlid),
            "its host is not allowed any more",
        );
    }

    fn end_controllers(&mut self, which: impl Fn(&Controller) -> bool, reason: &'static str) {
        let ending: Vec<u16> =
            self.controllers.values().filter(|one| which(one)).map(|one| one.cntlid).collect();
        for cntlid in ending {
            self.end_controller(cntlid, reason);
        }
    }

    fn namespace_changed(&mut self, id: SubsystemId, nsid: u32) {
        let mut concerned = Vec::new();
        for controller in self.controllers.values_mut().filter(|one| one.subsystem == id) {
            if controller.state == ControllerState::Ready {
                controller.changed.insert(nsid);
                controller.raise(OAES_NAMESPACE_ATTRIBUTE);
                concerned.push(controller.cntlid);
            }
        }
        concerned.into_iter().for_each(|cntlid| self.deliver_event(cntlid));
    }

    fn discovery_changed(&mut self) {
        self.generation += 1;
        let mut concerned = Vec::new();
        for controller in self.controllers.values_mut().filter(|one| one.is_discovery()) {
            controller.raise(OAES_DISCOVERY_LOG);
            concerned.push(controller.cntlid);
        }
        concerned.into_iter().for_each(|cntlid| self.deliver_event(cntlid));
    }
}

fn too_many(what: &'static str, max: usize) -> TargetError {
    TargetError::LimitReached { what, max }
}

fn check_nqn(nqn: &str) -> Result<(), TargetError> {
    match is_valid_nqn(nqn) {
        true => Ok(()),
        false => Err(TargetError::InvalidNqn { nqn: nqn.to_owned() }),
    }
}

fn check_text(field: &'static str, value: &str, max: usize) -> Result<(), TargetError> {
    let printable = value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if printable && !value.trim().is_empty() && value.len() <= max {
        return Ok(());
    }
    Err(TargetError::InvalidText { field, value: value.to_owned(), max })
}
