//! Exports: block devices that are namespaces of subsystems.
//!
//! A namespace comes in order: claim the block device, attach it on every core, and only when the
//! last core has it tell the control half, and so the hosts. It goes the other way round: hosts
//! first, then the cores, each of which lets its I/O end, then the claim.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::results::{ExportInfo, HostAccess, ListenerInfo};
use api::{ErrorCode, ExportAdd, ExportRemove, HostChange, RpcError};
use bdev::{Bdev, BdevError};
use nvmf::engine::Namespace;
use nvmf::{NamespaceConfig, SubsystemConfig, TargetError};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Control;
use super::socket::Reply;
use crate::message::CoreMessage;
use crate::state::{Export, SavedNamespace};

/// Model number that hosts see.
const MODEL: &str = "Forebay";

/// A namespace on its way in or out.
pub(super) struct Change {
    /// Cores that have not said yet that it is done.
    waiting: usize,
    nqn: String,
    bdev: Arc<dyn Bdev>,
    direction: Direction,
    reply: Option<Reply>,
}

enum Direction {
    In(SavedNamespace),
    /// Out; its block device is free afterwards.
    Out,
}

impl Control {
    pub(super) fn add_export(&mut self, params: ExportAdd, reply: Reply) {
        match self.start_export(&params) {
            // The answer follows when the namespace is attached on every core.
            Ok(change) => {
                if let Some(change) = self.changes.get_mut(&change) {
                    change.reply = Some(reply);
                }
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn start_export(&mut self, params: &ExportAdd) -> Result<(u32, u32), RpcError> {
        let nqn = params.nqn.clone().unwrap_or_else(|| api::default_nqn(&params.bdev));
        let existing = self.state.exports.iter().find(|export| export.nqn == nqn);
        let who = existing.is_some_and(|export| export.any_host || !export.hosts.is_empty());
        if !params.any_host && params.hosts.is_empty() && !who {
            let reason = format!(
                "no host could connect to {}: hosts are denied unless they are named",
                params.bdev
            );
            let advice = format!(
                "forebay export {} --host $(cat /etc/nvme/hostnqn on the host), or --any-host to \
                 let every host in",
                params.bdev
            );
            return Err(RpcError::invalid("hosts", reason).with_advice(advice));
        }
        let nsid = match (params.nsid, existing) {
            (Some(nsid), _) => nsid,
            (None, None) => 1,
            (None, Some(export)) => lowest_free_nsid(export),
        };
        let limit = nvmf::limits::MAX_NAMESPACES as u32;
        if !(1..=limit).contains(&nsid) {
            return Err(RpcError::invalid("nsid", format!("{nsid} is outside 1..={limit}")));
        }
        let taken = |export: &Export| export.namespaces.iter().any(|saved| saved.nsid == nsid);
        if existing.is_some_and(taken) {
            return Err(in_use(format!("{nqn} has a namespace {nsid} already")));
        }
        let saved = SavedNamespace {
            nsid,
            bdev: params.bdev.clone(),
            uuid: Uuid::new_v4(),
            nguid: Uuid::new_v4(),
        };
        let export = Export {
            nqn: nqn.clone(),
            serial: existing.map_or_else(new_serial, |export| export.serial.clone()),
            any_host: params.any_host,
            hosts: params.hosts.iter().cloned().collect(),
            namespaces: Vec::new(),
        };
        self.open_listeners(&params.listeners)
            .map_err(|error| RpcError::new(ErrorCode::Failed, format!("listeners: {error:#}")))?;
        self.open_subsystem(&export)?;
        self.attach(&nqn, saved)
    }

    /// Serves again what was exported before a restart. What cannot be served now (its block device
    /// is missing) is kept, and shown with the reason.
    pub(crate) fn restore_exports(&mut self) {
        for export in self.state.exports.clone() {
            if let Err(error) = self.open_subsystem(&export) {
                tracing::error!(nqn = export.nqn, %error, "not exported");
                continue;
            }
            for saved in export.namespaces {
                let (nsid, bdev) = (saved.nsid, saved.bdev.clone());
                if let Err(error) = self.attach(&export.nqn, saved) {
                    tracing::error!(nqn = export.nqn, nsid, bdev, %error, "not exported");
                }
            }
        }
    }

    /// Serves the namespaces that waited for this block device.
    pub(crate) fn serve_waiting(&mut self, bdev: &str) {
        for export in self.state.exports.clone() {
            for saved in export.namespaces.iter().filter(|saved| saved.bdev == bdev) {
                if let Err(error) = self.attach(&export.nqn, saved.clone()) {
                    tracing::error!(nqn = export.nqn, bdev, %error, "not exported");
                }
            }
        }
    }

    /// Makes the subsystem if there is none, and lets the export's hosts in.
    fn open_subsystem(&mut self, export: &Export) -> Result<(), RpcError> {
        if self.target.subsystem(&export.nqn).is_none() {
            let config = SubsystemConfig {
                nqn: export.nqn.clone(),
                serial: export.serial.clone(),
                model: MODEL.to_owned(),
                any_host: export.any_host,
                hosts: export.hosts.iter().cloned().collect(),
            };
            return self.target.add_subsystem(config).map(drop).map_err(target_error);
        }
        if export.any_host {
            self.target.set_any_host(&export.nqn, true).map_err(target_error)?;
        }
        for host in &export.hosts {
            self.target.allow_host(&export.nqn, host).map_err(target_error)?;
        }
        Ok(())
    }

    /// Claims the block device and attaches it on every core.
    fn attach(&mut self, nqn: &str, saved: SavedNamespace) -> Result<(u32, u32), RpcError> {
        let subsystem = self.target.subsystem(nqn).map(|subsystem| subsystem.id().0);
        let subsystem = subsystem.ok_or_else(|| not_found(format!("no subsystem {nqn}")))?;
        let place = (subsystem, saved.nsid);
        if self.changes.contains_key(&place) {
            return Err(in_use(format!("namespace {} of {nqn} is changing", saved.nsid)));
        }
        let holder = format!("{nqn}, namespace {}", saved.nsid);
        let bdev = self.bdevs.claim(&saved.bdev, &holder).map_err(bdev_error)?;
        let channels = (0..self.cores.len()).map(|core| bdev.open_channel(core));
        let channels = match channels.collect::<Result<Vec<_>, _>>() {
            Ok(channels) => channels,
            Err(error) => {
                self.bdevs.release(&saved.bdev);
                return Err(bdev_error(error));
            }
        };
        let namespace = Namespace { channel: 0, geometry: bdev.geometry(), read_only: false };
        for (core, channel) in channels.into_iter().enumerate() {
            let (subsystem, nsid) = place;
            let attach = CoreMessage::AttachNamespace { subsystem, nsid, namespace, channel };
            self.tell(core, attach);
        }
        let change = Change {
            waiting: self.cores.len(),
            nqn: nqn.to_owned(),
            bdev,
            direction: Direction::In(saved),
            reply: None,
        };
        self.changes.insert(place, change);
        Ok(place)
    }

    /// A core is done with a change. After the last one, the change is.
    pub(super) fn handle_namespace_set(&mut self, subsystem: u32, nsid: u32) {
        let place = (subsystem, nsid);
        let Some(change) = self.changes.get_mut(&place) else { return };
        change.waiting -= 1;
        if change.waiting > 0 {
            return;
        }
        let Some(change) = self.changes.remove(&place) else { return };
        let Change { nqn, bdev, direction, reply, .. } = change;
        let result = match direction {
            Direction::In(saved) => self.finish_attach(&nqn, bdev.as_ref(), saved),
            Direction::Out => {
                self.bdevs.release(bdev.name());
                Ok(json!({}))
            }
        };
        match (reply, result) {
            (Some(reply), result) => drop(reply.send(result)),
            (None, Err(error)) => tracing::error!(nqn, nsid, %error, "not exported"),
            (None, Ok(_)) => {}
        }
    }

    fn finish_attach(
        &mut self,
        nqn: &str,
        bdev: &dyn Bdev,
        saved: SavedNamespace,
    ) -> Result<Value, RpcError> {
        let config = NamespaceConfig {
            nsid: Some(saved.nsid),
            name: saved.bdev.clone(),
            geometry: bdev.geometry(),
            uuid: saved.uuid,
            nguid: *saved.nguid.as_bytes(),
            read_only: false,
        };
        self.target.add_namespace(nqn, config).map_err(target_error)?;
        tracing::info!(nqn, nsid = saved.nsid, bdev = saved.bdev, "exported");
        self.remember(nqn, saved.clone());
        self.save_state()?;
        let export = self.state.exports.iter().find(|export| export.nqn == nqn);
        Ok(json!(export.map(|export| self.export_info(export, &saved))))
    }

    /// Enters a namespace that is served into the state.
    fn remember(&mut self, nqn: &str, saved: SavedNamespace) {
        let Some(subsystem) = self.target.subsystem(nqn) else { return };
        let (any_host, serial) = (subsystem.any_host(), subsystem.serial().to_owned());
        let hosts: BTreeSet<String> = subsystem.hosts().map(str::to_owned).collect();
        let exports = &mut self.state.exports;
        let index = exports.iter().position(|export| export.nqn == nqn).unwrap_or_else(|| {
            let (nqn, namespaces) = (nqn.to_owned(), Vec::new());
            exports.push(Export { nqn, serial, any_host, hosts: BTreeSet::new(), namespaces });
            exports.len() - 1
        });
        let export = &mut exports[index];
        export.any_host = any_host;
        export.hosts = hosts;
        if !export.namespaces.contains(&saved) {
            export.namespaces.push(saved);
            export.namespaces.sort_by_key(|saved| saved.nsid);
        }
    }

    pub(super) fn remove_export(&mut self, params: &ExportRemove, reply: Reply) {
        match self.start_removal(params) {
            Ok(place) => match place.and_then(|place| self.changes.get_mut(&place)) {
                Some(change) => change.reply = Some(reply),
                None => drop(reply.send(Ok(json!({})))),
            },
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Names one of the changes that were started, whose end is the end of the removal.
    fn start_removal(&mut self, params: &ExportRemove) -> Result<Option<(u32, u32)>, RpcError> {
        let ExportRemove { nqn, nsid, force } = params;
        let export = self.state.exports.iter().find(|export| export.nqn == *nqn);
        let export = export.ok_or_else(|| not_found(format!("no export has the NQN {nqn}")))?;
        let wanted = |saved: &&SavedNamespace| nsid.is_none_or(|nsid| nsid == saved.nsid);
        let going: Vec<_> = export.namespaces.iter().filter(wanted).cloned().collect();
        if let (true, Some(nsid)) = (going.is_empty(), nsid) {
            return Err(not_found(format!("{nqn} has no namespace {nsid}")));
        }
        let hosts: Vec<_> = self.target.controllers().filter(|c| c.subsystem_nqn == *nqn).collect();
        if let (false, Some(host)) = (*force, hosts.first()) {
            return Err(in_use(format!(
                "{} {} connected to {nqn}, such as {}; disconnect first (on the host: nvme \
                 disconnect -n {nqn}), or use --force",
                hosts.len(),
                if hosts.len() == 1 { "controller is" } else { "controllers are" },
                host.host_nqn
            )));
        }
        let subsystem = self.target.subsystem(nqn).map(|subsystem| subsystem.id().0);
        let whole = going.len() == export.namespaces.len();
        let mut place = None;
        for saved in &going {
            let served = self.target.remove_namespace(nqn, saved.nsid).is_ok();
            let (Some(subsystem), true) = (subsystem, served) else { continue };
            place = Some(self.detach(subsystem, nqn, saved));
        }
        if whole {
            self.state.exports.retain(|export| export.nqn != *nqn);
            if subsystem.is_some() {
                self.target.remove_subsystem(nqn).map_err(target_error)?;
            }
        } else if let Some(export) = self.state.exports.iter_mut().find(|e| e.nqn == *nqn) {
            export.namespaces.retain(|saved| !going.contains(saved));
        }
        self.save_state()?;
        Ok(place)
    }

    /// Ends every namespace on a block device that is lost. The exports stay in the state.
    pub(super) fn stop_serving(&mut self, bdev: &str) {
        for export in self.state.exports.clone() {
            let subsystem = self.target.subsystem(&export.nqn).map(|subsystem| subsystem.id().0);
            for saved in export.namespaces.iter().filter(|saved| saved.bdev == bdev) {
                let served = self.target.remove_namespace(&export.nqn, saved.nsid).is_ok();
                if let (Some(subsystem), true) = (subsystem, served) {
                    self.detach(subsystem, &export.nqn, saved);
                }
            }
        }
    }

    fn detach(&mut self, subsystem: u32, nqn: &str, saved: &SavedNamespace) -> (u32, u32) {
        let place = (subsystem, saved.nsid);
        let Some(bdev) = self.bdevs.get(&saved.bdev).cloned() else { return place };
        for core in 0..self.cores.len() {
            self.tell(core, CoreMessage::DetachNamespace { subsystem, nsid: saved.nsid });
        }
        let change = Change {
            waiting: self.cores.len(),
            nqn: nqn.to_owned(),
            bdev,
            direction: Direction::Out,
            reply: None,
        };
        self.changes.insert(place, change);
        place
    }

    pub(super) fn change_host(
        &mut self,
        change: &HostChange,
        allow: bool,
    ) -> Result<Value, RpcError> {
        let HostChange { nqn, host } = change;
        if !self.state.exports.iter().any(|export| export.nqn == *nqn) {
            return Err(not_found(format!("no export has the NQN {nqn}")));
        }
        match allow {
            true => self.target.allow_host(nqn, host),
            false => self.target.deny_host(nqn, host),
        }
        .map_err(target_error)?;
        let subsystem = self.target.subsystem(nqn);
        let export = self.state.exports.iter_mut().find(|export| export.nqn == *nqn);
        if let (Some(subsystem), Some(export)) = (subsystem, export) {
            export.any_host = subsystem.any_host();
            export.hosts = subsystem.hosts().map(str::to_owned).collect();
        }
        self.save_state()?;
        let export = self.state.exports.iter().find(|export| export.nqn == *nqn);
        Ok(json!(export.map(host_access)))
    }

    pub(super) fn export_list(&self) -> Vec<ExportInfo> {
        let exports = self.state.exports.iter();
        exports.flat_map(|e| e.namespaces.iter().map(|saved| self.export_info(e, saved))).collect()
    }

    fn export_info(&self, export: &Export, saved: &SavedNamespace) -> ExportInfo {
        let transport = || "rdma".to_owned();
        let listeners = self.listeners.iter();
        let connect = |&address| api::connect_command("rdma", address, &export.nqn);
        ExportInfo {
            bdev: saved.bdev.clone(),
            nqn: export.nqn.clone(),
            nsid: saved.nsid,
            uuid: saved.uuid.to_string(),
            nguid: saved.nguid.simple().to_string(),
            serial: export.serial.clone(),
            any_host: export.any_host,
            hosts: export.hosts.iter().cloned().collect(),
            connect_commands: listeners.clone().map(connect).collect(),
            listeners: listeners
                .map(|&address| ListenerInfo { transport: transport(), address })
                .collect(),
        }
    }

    pub(super) fn host_list(&self, nqn: Option<&str>) -> Result<Value, RpcError> {
        let exports = self.state.exports.iter().filter(|e| nqn.is_none_or(|nqn| e.nqn == nqn));
        let list: Vec<_> = exports.map(host_access).collect();
        match (list.is_empty(), nqn) {
            (true, Some(nqn)) => Err(not_found(format!("no export has the NQN {nqn}"))),
            _ => Ok(json!(list)),
        }
    }

    pub(super) fn save_state(&self) -> Result<(), RpcError> {
        self.state_file.save(&self.state).map_err(|error| {
            tracing::error!(%error, "the state is not saved");
            let message = format!("done, but it will be gone after a restart: {error}");
            RpcError::new(ErrorCode::Internal, message)
        })
    }
}

fn host_access(export: &Export) -> HostAccess {
    HostAccess {
        nqn: export.nqn.clone(),
        any_host: export.any_host,
        hosts: export.hosts.iter().cloned().collect(),
    }
}

/// A serial number of our own for a new subsystem: 20 characters at most.
fn new_serial() -> String {
    let id = Uuid::new_v4().simple().to_string().to_uppercase();
    format!("FB{}", &id[..16])
}

fn lowest_free_nsid(export: &Export) -> u32 {
    let used = |nsid: u32| export.namespaces.iter().any(|saved| saved.nsid == nsid);
    (1..).find(|&nsid| !used(nsid)).unwrap_or(1)
}

pub(super) fn not_found(message: impl Into<String>) -> RpcError {
    RpcError::new(ErrorCode::NotFound, message)
}

pub(super) fn in_use(message: impl Into<String>) -> RpcError {
    RpcError::new(ErrorCode::InUse, message)
}

pub(super) fn bdev_error(error: BdevError) -> RpcError {
    let code = match &error {
        BdevError::Claimed { .. } => ErrorCode::InUse,
        BdevError::Exists { .. } => ErrorCode::Exists,
        BdevError::Unknown { .. } => ErrorCode::NotFound,
        BdevError::Invalid { .. } => ErrorCode::InvalidParams,
        BdevError::NoQueue { .. } => ErrorCode::Limit,
        _ => ErrorCode::Failed,
    };
    RpcError::new(code, error.to_string())
}

pub(super) fn target_error(error: TargetError) -> RpcError {
    let code = match &error {
        TargetError::SubsystemExists { .. }
        | TargetError::NamespaceExists { .. }
        | TargetError::ListenerExists { .. } => ErrorCode::Exists,
        TargetError::UnknownSubsystem { .. }
        | TargetError::UnknownNamespace { .. }
        | TargetError::UnknownHost { .. }
        | TargetError::UnknownListener { .. } => ErrorCode::NotFound,
        TargetError::LimitReached { .. } => ErrorCode::Limit,
        _ => ErrorCode::InvalidParams,
    };
    RpcError::new(code, error.to_string())
}
