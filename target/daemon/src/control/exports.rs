//! Exports: block devices that are namespaces of subsystems.
//!
//! A namespace comes in order: claim the block device, attach it on every core, and when the last
//! core has it, save it; only then the control half, and so the hosts, hear of it. Until then
//! nothing is opened to anybody, and whatever fails is taken back step by step. It goes the other
//! way round: out of the state, hosts, the cores, each of which lets its I/O end, then the claim.

use std::sync::Arc;

use api::results::{ExportInfo, ExportState, ListenerInfo};
use api::{ErrorCode, ExportAdd, ExportRemove, RpcError};
use bdev::{Bdev, BdevError, Health};
use nvmf::engine::Namespace;
use nvmf::{NamespaceConfig, SubsystemConfig, TargetError};
use serde_json::{Value, json};
use uuid::Uuid;
use volume::{Call, VolumeHandle};

use super::Control;
use super::socket::Reply;
use super::volumes::Then;
use crate::limits::{MAX_CALLS, MAX_EXPORTS};
use crate::message::{CoreMessage, Storage};
use crate::state::{BdevIdentity, Export, SavedNamespace, State};
use crate::state_file::StateError;

/// Model number that hosts see.
const MODEL: &str = "Forebay";

/// Where a namespace stands in the tables of the cores: subsystem and NSID.
pub(super) type Place = (u32, u32);

/// A namespace on its way in or out.
pub(super) struct Change {
    /// Cores that have not said yet that it is done.
    waiting: usize,
    nqn: String,
    bdev: Arc<dyn Bdev>,
    direction: Direction,
}

enum Direction {
    /// In; a new one with what was asked for. One on a volume goes to the cores when its pool has
    /// opened that.
    In(SavedNamespace, Option<NewExport>),
    /// It has another size, and who changed that waits for this answer.
    Resize { block_count: u64, answer: Value, reply: Reply },
    /// Out; its block device is free afterwards.
    Out,
    /// Out again, because it could not be published.
    Back { nsid: u32, error: RpcError, reply: Option<Reply> },
}

/// An export that somebody has asked for.
struct NewExport {
    params: ExportAdd,
    reply: Reply,
}

/// Somebody who waits for the changes of namespaces, mostly to be gone.
pub(super) struct Removal {
    left: Vec<Place>,
    reply: Reply,
    answer: Result<Value, RpcError>,
}

impl Control {
    pub(super) fn add_export(&mut self, params: ExportAdd, reply: Reply) {
        match self.start_export(&params) {
            // The answer follows when the namespace is attached on every core.
            Ok(place) => {
                if let Some(Change { direction: Direction::In(_, new), .. }) =
                    self.changes.get_mut(&place)
                {
                    *new = Some(NewExport { params, reply });
                }
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Claims and attaches; opens nothing to anybody.
    fn start_export(&mut self, params: &ExportAdd) -> Result<Place, RpcError> {
        let nqn = nqn_of(params);
        let existing = self.state.export(&nqn);
        check_hosts(params, existing)?;
        let bdev = self.bdevs.get(&params.bdev);
        let bdev = bdev.ok_or_else(|| self.unknown_bdev(&params.bdev))?;
        let saved = SavedNamespace {
            nsid: self.choose_nsid(&nqn, params.nsid)?,
            bdev: params.bdev.clone(),
            made_on: BdevIdentity::of(bdev.as_ref()),
            // A volume has its own, which it tells when it is opened.
            uuid: Uuid::new_v4(),
            nguid: Uuid::new_v4(),
        };
        if self.target.subsystem(&nqn).is_none() {
            // Without hosts nobody sees it.
            let export = Export {
                nqn: nqn.clone(),
                serial: existing.map_or_else(new_serial, |export| export.serial.clone()),
                any_host: false,
                hosts: Default::default(),
                listeners: Default::default(),
                namespaces: Vec::new(),
            };
            self.open_subsystem(&export)?;
        }
        let attached = self.attach(&nqn, saved);
        if attached.is_err() {
            self.drop_unused_subsystem(&nqn);
        }
        attached
    }

    /// The NSID of a new namespace: the one wanted, or the lowest free one.
    fn choose_nsid(&self, nqn: &str, wanted: Option<u32>) -> Result<u32, RpcError> {
        if self.state.namespace_count() + self.changes.len() >= MAX_EXPORTS {
            let message = format!("no more than {MAX_EXPORTS} namespaces are exported");
            return Err(RpcError::new(ErrorCode::Limit, message));
        }
        let export = self.state.export(nqn);
        let saved = |nsid| export.is_some_and(|e| e.namespaces.iter().any(|s| s.nsid == nsid));
        let subsystem = self.target.subsystem(nqn).map(|subsystem| subsystem.id().0);
        let changing = |nsid| subsystem.is_some_and(|id| self.changes.contains_key(&(id, nsid)));
        let limit = nvmf::limits::MAX_NAMESPACES as u32;
        match wanted {
            Some(nsid) if !(1..=limit).contains(&nsid) => {
                Err(RpcError::invalid("nsid", format!("{nsid} is outside 1..={limit}")))
            }
            Some(nsid) if saved(nsid) => {
                Err(in_use(format!("{nqn} has a namespace {nsid} already")))
            }
            Some(nsid) => Ok(nsid),
            None => (1..=limit).find(|&nsid| !saved(nsid) && !changing(nsid)).ok_or_else(|| {
                RpcError::new(ErrorCode::Limit, format!("{nqn} has {limit} namespaces"))
            }),
        }
    }

    /// Serves again what was exported before a restart. What cannot be served now is kept, and
    /// shown with the reason.
    pub(crate) fn restore_exports(&mut self) {
        for export in self.state.exports.clone() {
            let opened = self.open_subsystem(&export);
            for saved in export.namespaces {
                match &opened {
                    Ok(()) => self.serve(&export.nqn, saved),
                    Err(error) => self.note_down(&export.nqn, saved.nsid, &error.message),
                }
            }
        }
    }

    /// Serves the namespaces that waited for this block device.
    pub(crate) fn serve_waiting(&mut self, bdev: &str) {
        for export in self.state.exports.clone() {
            // Not there yet: the daemon starts, and takes its devices before its exports.
            if self.target.subsystem(&export.nqn).is_none() {
                continue;
            }
            for saved in export.namespaces.into_iter().filter(|saved| saved.bdev == bdev) {
                self.serve(&export.nqn, saved);
            }
        }
    }

    fn serve(&mut self, nqn: &str, saved: SavedNamespace) {
        let nsid = saved.nsid;
        let attached = self.recognize(nqn, saved).and_then(|saved| self.attach(nqn, saved));
        if let Err(error) = attached {
            self.note_down(nqn, nsid, &error.message);
        }
    }

    /// The namespace, if its block device is still what it was made on. One that has lost its
    /// contents gets a new identity: hosts are to see another namespace, not zeroes in place of
    /// their file system.
    fn recognize(&self, nqn: &str, saved: SavedNamespace) -> Result<SavedNamespace, RpcError> {
        let bdev = self.bdevs.get(&saved.bdev).ok_or_else(|| self.unknown_bdev(&saved.bdev))?;
        let (expected, found) = (saved.made_on, BdevIdentity::of(bdev.as_ref()));
        let failed = |reason: String| Err(RpcError::new(ErrorCode::Failed, reason));
        if !bdev.keeps_data() && found != expected {
            let (uuid, nguid) = (Uuid::new_v4(), Uuid::new_v4());
            let SavedNamespace { nsid, bdev, uuid: old, .. } = &saved;
            tracing::warn!(nqn, nsid, bdev, %old, new = %uuid,
                "the block device was made anew and is empty: hosts see another namespace");
            return Ok(SavedNamespace { made_on: found, uuid, nguid, ..saved });
        }
        // A volume may have been resized since.
        if self.pools.volume(&saved.bdev).is_some() && found.uuid == expected.uuid {
            return Ok(SavedNamespace { made_on: found, ..saved });
        }
        if found != expected {
            return failed(format!(
                "{} is not what was exported: expected {expected}; found {found}",
                saved.bdev
            ));
        }
        if self.bdevs.iter().filter(|(other, _)| other.uuid() == found.uuid).count() > 1 {
            return failed(format!(
                "{} cannot be told from another block device with {found}",
                saved.bdev
            ));
        }
        Ok(saved)
    }

    /// Why a namespace is not served, for whoever looks.
    fn note_down(&mut self, nqn: &str, nsid: u32, reason: &str) {
        tracing::error!(nqn, nsid, reason, "not exported");
        self.down.insert((nqn.to_owned(), nsid), reason.to_owned());
    }

    /// Makes the subsystem and lets its hosts in.
    fn open_subsystem(&mut self, export: &Export) -> Result<(), RpcError> {
        let config = SubsystemConfig {
            nqn: export.nqn.clone(),
            serial: export.serial.clone(),
            model: MODEL.to_owned(),
            any_host: export.any_host,
            hosts: export.hosts.iter().cloned().collect(),
        };
        self.target.add_subsystem(config).map(drop).map_err(target_error)
    }

    /// Removes a subsystem that was made for an export that came to nothing.
    fn drop_unused_subsystem(&mut self, nqn: &str) {
        let wanted = self.state.export(nqn).is_some()
            || self.changes.values().any(|change| change.nqn == nqn);
        if !wanted {
            // One that is not there is what is wanted.
            let _ = self.target.remove_subsystem(nqn);
        }
    }

    /// Claims the block device and attaches it on every core.
    fn attach(&mut self, nqn: &str, saved: SavedNamespace) -> Result<Place, RpcError> {
        let subsystem = self.target.subsystem(nqn).map(|subsystem| subsystem.id().0);
        let subsystem = subsystem.ok_or_else(|| not_found(format!("no subsystem {nqn}")))?;
        let place = (subsystem, saved.nsid);
        if self.changes.contains_key(&place) {
            return Err(in_use(format!("namespace {} of {nqn} is changing", saved.nsid)));
        }
        let holder = format!("{nqn}, namespace {}", saved.nsid);
        if let Some(volume) = self.pools.volume(&saved.bdev).cloned() {
            let (pool, name) = super::volumes::split(&saved.bdev);
            let (pool, open) = (pool.to_owned(), Call::Open(name.to_owned()));
            if !self.pools.is_serving(&pool) {
                return Err(self.unknown_pool(&pool));
            }
            self.bdevs.claim(&saved.bdev, &holder).map_err(bdev_error)?;
            self.begin_change(place, nqn, volume, Direction::In(saved, None));
            self.ask_pool(&pool, open, Then::Open(place));
            return Ok(place);
        }
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
            self.attach_on(core, place, namespace, Storage::Bdev(channel));
        }
        self.begin_change(place, nqn, bdev, Direction::In(saved, None));
        Ok(place)
    }

    fn attach_on(&mut self, core: usize, place: Place, namespace: Namespace, storage: Storage) {
        let (subsystem, nsid) = place;
        self.tell(core, CoreMessage::AttachNamespace { subsystem, nsid, namespace, storage });
    }

    /// The pool has opened the volume of a namespace, which goes to the cores now.
    pub(super) fn finish_open_volume(&mut self, place: Place, handle: Arc<VolumeHandle>) {
        let Some(Change { bdev, direction: Direction::In(saved, _), .. }) =
            self.changes.get_mut(&place)
        else {
            return;
        };
        // A volume is the same to hosts wherever it is exported.
        (saved.uuid, saved.nguid) = (handle.uuid(), handle.nguid());
        let mut geometry = bdev.geometry();
        geometry.block_count = handle.block_count();
        let volume = bdev.name().to_owned();
        let namespace = Namespace { channel: 0, geometry, read_only: handle.read_only() };
        let (pool, _) = super::volumes::split(&volume);
        // It is there as long as a volume of it is claimed.
        let Some(open) = self.pools.open.get_mut(pool) else { return };
        let pool = open.place;
        open.handles.insert(volume, handle.id());
        for core in 0..self.cores.len() {
            let handle = Arc::clone(&handle);
            self.attach_on(core, place, namespace, Storage::Volume { pool, handle });
        }
    }

    /// The pool cannot open the volume of a namespace: no core has heard of it.
    pub(super) fn fail_open_volume(&mut self, place: Place, error: RpcError) {
        let Some(Change { nqn, bdev, direction, .. }) = self.changes.remove(&place) else { return };
        if let Direction::In(saved, new) = direction {
            let reply = new.map(|new| new.reply);
            self.come_to_nothing(&nqn, bdev.name(), saved.nsid, error, reply);
        }
        self.finish_removals();
    }

    /// Tells cores and hosts that a volume has another size, if it is served.
    pub(super) fn announce_size(&mut self, volume: &str, answer: Value, reply: Reply) {
        let place = self.exported_as(volume).and_then(|(nqn, nsid)| {
            let subsystem = self.target.subsystem(&nqn)?;
            subsystem.namespaces().find(|one| one.nsid == nsid)?;
            Some((nqn, (subsystem.id().0, nsid)))
        });
        let bdev = self.bdevs.get(volume).cloned();
        match (place, bdev) {
            // One that is on its way has the new size, or goes.
            (Some((nqn, place)), Some(bdev)) if !self.changes.contains_key(&place) => {
                let (subsystem, nsid) = place;
                let block_count = bdev.geometry().block_count;
                for core in 0..self.cores.len() {
                    self.tell(core, CoreMessage::ResizeNamespace { subsystem, nsid, block_count });
                }
                let direction = Direction::Resize { block_count, answer, reply };
                self.begin_change(place, &nqn, bdev, direction);
            }
            _ => drop(reply.send(Ok(answer))),
        }
    }

    fn finish_resize(&mut self, nqn: &str, nsid: u32, bdev: &dyn Bdev, block_count: u64) {
        if let Err(error) = self.target.resize_namespace(nqn, nsid, block_count) {
            // It went meanwhile.
            tracing::debug!(nqn, nsid, %error, "not resized");
        }
        let made_on = BdevIdentity::of(bdev);
        let enter = |state: &mut State| {
            let export = state.export_mut(nqn);
            let saved = export.and_then(|e| e.namespaces.iter_mut().find(|s| s.nsid == nsid));
            saved.into_iter().for_each(|saved| saved.made_on = made_on);
        };
        if let Err(error) = self.commit(enter, |_| Ok(())) {
            // A volume is known again by its UUID all the same.
            tracing::warn!(nqn, nsid, %error, "its size is not saved");
        }
    }

    /// Ends the claim of a namespace, and closes its volume.
    fn let_go(&mut self, bdev: &str) {
        self.bdevs.release(bdev);
        let (pool, _) = super::volumes::split(bdev);
        let pool = pool.to_owned();
        let handle = self.pools.open.get_mut(&pool).and_then(|open| open.handles.remove(bdev));
        if let Some(id) = handle {
            self.ask_pool(&pool, Call::Close(id), Then::Nothing);
        }
    }

    fn come_to_nothing(
        &mut self,
        nqn: &str,
        bdev: &str,
        nsid: u32,
        error: RpcError,
        reply: Option<Reply>,
    ) {
        self.let_go(bdev);
        self.drop_unused_subsystem(nqn);
        match reply {
            Some(reply) => drop(reply.send(Err(error))),
            None => self.note_down(nqn, nsid, &error.message),
        }
    }

    fn detach(&mut self, place: Place, nqn: &str, bdev: Arc<dyn Bdev>, direction: Direction) {
        let (subsystem, nsid) = place;
        for core in 0..self.cores.len() {
            self.tell(core, CoreMessage::DetachNamespace { subsystem, nsid });
        }
        self.begin_change(place, nqn, bdev, direction);
    }

    fn begin_change(&mut self, place: Place, nqn: &str, bdev: Arc<dyn Bdev>, direction: Direction) {
        let (waiting, nqn) = (self.cores.len(), nqn.to_owned());
        let before = self.changes.insert(place, Change { waiting, nqn, bdev, direction });
        assert!(before.is_none(), "one change at a time at {place:?}");
        assert!(self.changes.len() <= MAX_EXPORTS);
    }

    /// A core is done with a change. After the last one, the change is.
    pub(super) fn handle_namespace_set(&mut self, subsystem: u32, nsid: u32) {
        let place = (subsystem, nsid);
        let Some(change) = self.changes.get_mut(&place) else { return };
        change.waiting -= 1;
        if change.waiting > 0 {
            return;
        }
        let Some(Change { nqn, bdev, direction, .. }) = self.changes.remove(&place) else { return };
        match direction {
            Direction::In(saved, new) => self.finish_attach(place, &nqn, bdev, &saved, new),
            Direction::Resize { block_count, answer, reply } => {
                self.finish_resize(&nqn, nsid, bdev.as_ref(), block_count);
                let _ = reply.send(Ok(answer));
            }
            Direction::Out => self.let_go(bdev.name()),
            Direction::Back { nsid, error, reply } => {
                self.come_to_nothing(&nqn, bdev.name(), nsid, error, reply);
            }
        }
        self.finish_removals();
    }

    fn finish_attach(
        &mut self,
        place: Place,
        nqn: &str,
        bdev: Arc<dyn Bdev>,
        saved: &SavedNamespace,
        new: Option<NewExport>,
    ) {
        let params = new.as_ref().map(|new| &new.params);
        let published = self.publish(nqn, bdev.as_ref(), saved, params);
        let reply = new.map(|new| new.reply);
        match published {
            Ok(()) => {
                tracing::info!(nqn, nsid = saved.nsid, bdev = saved.bdev, "exported");
                self.down.remove(&(nqn.to_owned(), saved.nsid));
                let export = self.state.export(nqn);
                let info = export.map(|export| self.export_info(export, saved));
                if let Some(reply) = reply {
                    let _ = reply.send(Ok(json!(info)));
                }
            }
            Err(error) => {
                let back = Direction::Back { nsid: saved.nsid, error, reply };
                self.detach(place, nqn, bdev, back);
            }
        }
    }

    /// Saves a namespace that every core has, then tells the hosts. A failure leaves state, hosts
    /// and listeners as they were.
    fn publish(
        &mut self,
        nqn: &str,
        bdev: &dyn Bdev,
        saved: &SavedNamespace,
        new: Option<&ExportAdd>,
    ) -> Result<(), RpcError> {
        if bdev.health() == Health::Failed {
            let message = format!("{} failed while it was attached", saved.bdev);
            return Err(RpcError::new(ErrorCode::Failed, message));
        }
        let listeners = new.map(|new| new.listeners.as_slice()).unwrap_or_default();
        let opened = self.open_listeners(listeners)?;
        let serial = self.target.subsystem(nqn).map(|s| s.serial().to_owned()).unwrap_or_default();
        let config = NamespaceConfig {
            nsid: Some(saved.nsid),
            name: saved.bdev.clone(),
            geometry: bdev.geometry(),
            uuid: saved.uuid,
            nguid: *saved.nguid.as_bytes(),
            read_only: self.pools.volume(&saved.bdev).is_some_and(|volume| volume.read_only),
        };
        let published = self.commit(
            |state| remember(state, nqn, serial, saved, new),
            |control| {
                control.target.add_namespace(nqn, config).map_err(target_error)?;
                control.apply_access(nqn).inspect_err(|_| {
                    let _ = control.target.remove_namespace(nqn, saved.nsid);
                })
            },
        );
        if published.is_err() {
            opened.into_iter().for_each(|address| self.close_listener(address));
        }
        published
    }

    /// Changes the state: saves the new one, then applies it. When either fails, the old state
    /// stands, in memory and in the file.
    pub(super) fn commit<T>(
        &mut self,
        change: impl FnOnce(&mut State),
        apply: impl FnOnce(&mut Self) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let mut state = self.state.clone();
        change(&mut state);
        if state == self.state {
            return apply(self);
        }
        if let Err(error) = self.state_file.save(&state) {
            if matches!(error, StateError::Unsure { .. }) {
                self.put_state_back();
            }
            let message = format!("nothing was changed, because it cannot be saved: {error}");
            return Err(RpcError::new(ErrorCode::Failed, message));
        }
        let old = std::mem::replace(&mut self.state, state);
        let applied = apply(self);
        if applied.is_err() {
            self.state = old;
            self.put_state_back();
        }
        applied
    }

    fn put_state_back(&self) {
        if let Err(error) = self.state_file.save(&self.state) {
            tracing::error!(%error, "what was not done may be there after a restart");
        }
    }

    /// Saves what is done already.
    pub(super) fn save_state(&self) -> Result<(), RpcError> {
        self.state_file.save(&self.state).map_err(|error| {
            tracing::error!(%error, "the state is not saved");
            let message = format!("done, but it will be gone after a restart: {error}");
            RpcError::new(ErrorCode::Failed, message)
        })
    }

    pub(super) fn remove_export(&mut self, params: &ExportRemove, reply: Reply) {
        match self.start_removal(params) {
            Ok(left) => self.answer_after(left, reply, Ok(json!({}))),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Answers once the changes at these places are over.
    pub(super) fn answer_after(
        &mut self,
        left: Vec<Place>,
        reply: Reply,
        answer: Result<Value, RpcError>,
    ) {
        assert!(self.removals.len() < MAX_CALLS, "one for each call at most");
        self.removals.push(Removal { left, reply, answer });
        self.finish_removals();
    }

    /// Says which namespaces are on their way out.
    fn start_removal(&mut self, params: &ExportRemove) -> Result<Vec<Place>, RpcError> {
        let ExportRemove { nqn, nsid, force } = params;
        let export = self.state.export(nqn);
        let export = export.ok_or_else(|| not_found(format!("no export has the NQN {nqn}")))?;
        let wanted = |saved: &&SavedNamespace| nsid.is_none_or(|nsid| nsid == saved.nsid);
        let going: Vec<_> = export.namespaces.iter().filter(wanted).cloned().collect();
        if let (true, Some(nsid)) = (going.is_empty(), nsid) {
            return Err(not_found(format!("{nqn} has no namespace {nsid}")));
        }
        let whole = going.len() == export.namespaces.len();
        let out = |change: &Change| matches!(change.direction, Direction::Out);
        if self.changes.values().any(|change| change.nqn == *nqn && !out(change)) {
            return Err(in_use(format!("a namespace of {nqn} is on its way; try again")));
        }
        if !force {
            self.check_unused(nqn)?;
        }
        let keep = |saved: &SavedNamespace| !going.contains(saved);
        let forget = |state: &mut State| match state.export_mut(nqn) {
            Some(export) if !whole => export.namespaces.retain(keep),
            _ => state.exports.retain(|export| export.nqn != *nqn),
        };
        self.commit(forget, |_| Ok(()))?;
        let subsystem = self.target.subsystem(nqn).map(|subsystem| subsystem.id().0);
        let mut left = Vec::new();
        for saved in &going {
            self.down.remove(&(nqn.clone(), saved.nsid));
            self.withdraw(nqn, saved);
            let place = subsystem.map(|id| (id, saved.nsid));
            left.extend(place.filter(|place| self.changes.contains_key(place)));
        }
        if whole {
            // One that is not there never opened.
            let _ = self.target.remove_subsystem(nqn);
        }
        self.close_unused_listeners();
        Ok(left)
    }

    fn check_unused(&self, nqn: &str) -> Result<(), RpcError> {
        let hosts: Vec<_> = self.target.controllers().filter(|c| c.subsystem_nqn == nqn).collect();
        let Some(host) = hosts.first() else { return Ok(()) };
        Err(in_use(format!(
            "{} {} connected to {nqn}, such as {}; disconnect first (on the host: nvme disconnect \
             -n {nqn}), or use --force",
            hosts.len(),
            if hosts.len() == 1 { "controller is" } else { "controllers are" },
            host.host_nqn
        )))
    }

    /// Answers those whose namespaces are all gone.
    fn finish_removals(&mut self) {
        for Removal { left, .. } in &mut self.removals {
            left.retain(|place| self.changes.contains_key(place));
        }
        for done in self.removals.extract_if(.., |removal| removal.left.is_empty()) {
            let _ = done.reply.send(done.answer);
        }
    }

    /// Ends every namespace on a block device that is lost, or on the pool that has it. The exports
    /// stay in the state.
    pub(super) fn stop_serving(&mut self, bdev: &str) {
        self.lose_pool_on(bdev);
        for export in self.state.exports.clone() {
            for saved in export.namespaces.iter().filter(|saved| saved.bdev == bdev) {
                self.withdraw(&export.nqn, saved);
                self.note_down(&export.nqn, saved.nsid, &format!("{bdev} failed or was removed"));
            }
        }
    }

    /// Takes a namespace from hosts and cores, if it is served, and says whether it was.
    pub(super) fn withdraw(&mut self, nqn: &str, saved: &SavedNamespace) -> bool {
        let subsystem = self.target.subsystem(nqn).map(|subsystem| subsystem.id().0);
        let served = self.target.remove_namespace(nqn, saved.nsid).is_ok();
        let bdev = self.bdevs.get(&saved.bdev).cloned();
        let (Some(subsystem), true, Some(bdev)) = (subsystem, served, bdev) else { return false };
        let place = (subsystem, saved.nsid);
        if let Some(Change { direction: Direction::Resize { answer, reply, .. }, .. }) =
            self.changes.remove(&place)
        {
            let _ = reply.send(Ok(answer));
        }
        self.detach(place, nqn, bdev, Direction::Out);
        true
    }

    /// Why there is no block device of this name.
    pub(super) fn unknown_bdev(&self, name: &str) -> RpcError {
        let Some((pool, volume)) = api::split_volume_name(name) else {
            return bdev_error(BdevError::Unknown { name: name.to_owned() });
        };
        let Some(open) = self.pools.open.get(pool) else { return self.unknown_pool(pool) };
        match open.damaged.iter().find(|(damaged, _)| damaged == volume) {
            Some((_, reason)) => {
                RpcError::new(ErrorCode::Failed, format!("{name} is damaged: {reason}"))
            }
            None => not_found(format!("no volume or snapshot is named {name}"))
                .with_advice(format!("forebay volume list {pool}")),
        }
    }

    pub(super) fn export_list(&self) -> Vec<ExportInfo> {
        let exports = self.state.exports.iter();
        exports.flat_map(|e| e.namespaces.iter().map(|saved| self.export_info(e, saved))).collect()
    }

    fn export_info(&self, export: &Export, saved: &SavedNamespace) -> ExportInfo {
        let connect = |endpoint| api::connect_command(endpoint, &export.nqn);
        let (state, reason) = self.export_state(&export.nqn, saved.nsid);
        ExportInfo {
            bdev: saved.bdev.clone(),
            nqn: export.nqn.clone(),
            nsid: saved.nsid,
            state,
            reason,
            uuid: saved.uuid.to_string(),
            nguid: saved.nguid.simple().to_string(),
            serial: export.serial.clone(),
            any_host: export.any_host,
            hosts: export.hosts.iter().cloned().collect(),
            listeners: self.listeners.iter().copied().map(ListenerInfo::from).collect(),
            connect_commands: self.reachable_endpoints().into_iter().map(connect).collect(),
        }
    }

    fn export_state(&self, nqn: &str, nsid: u32) -> (ExportState, Option<String>) {
        if let Some(reason) = self.down.get(&(nqn.to_owned(), nsid)) {
            return (ExportState::Down, Some(reason.clone()));
        }
        let subsystem = self.target.subsystem(nqn);
        match subsystem.is_some_and(|s| s.namespaces().any(|one| one.nsid == nsid)) {
            true => (ExportState::Up, None),
            false => (ExportState::Starting, None),
        }
    }
}

fn nqn_of(params: &ExportAdd) -> String {
    params.nqn.clone().unwrap_or_else(|| api::default_nqn(&params.bdev))
}

/// Hosts are denied unless somebody says otherwise, now or before.
fn check_hosts(params: &ExportAdd, existing: Option<&Export>) -> Result<(), RpcError> {
    let before = existing.is_some_and(|export| export.any_host || !export.hosts.is_empty());
    if before || params.any_host || !params.hosts.is_empty() {
        return Ok(());
    }
    let bdev = &params.bdev;
    let reason = format!("no host could connect to {bdev}: hosts are denied unless they are named");
    let advice = format!(
        "forebay export {bdev} --host $(cat /etc/nvme/hostnqn on the host), or --any-host to let \
         every host in"
    );
    Err(RpcError::invalid("hosts", reason).with_advice(advice))
}

/// Enters a namespace into the state, and for a new export who may reach it and where.
fn remember(
    state: &mut State,
    nqn: &str,
    serial: String,
    saved: &SavedNamespace,
    new: Option<&ExportAdd>,
) {
    let index = state.exports.iter().position(|export| export.nqn == nqn).unwrap_or_else(|| {
        state.exports.push(Export {
            nqn: nqn.to_owned(),
            serial,
            any_host: false,
            hosts: Default::default(),
            listeners: Default::default(),
            namespaces: Vec::new(),
        });
        state.exports.len() - 1
    });
    let export = &mut state.exports[index];
    if let Some(new) = new {
        export.any_host |= new.any_host;
        export.hosts.extend(new.hosts.iter().cloned());
        export.listeners.extend(&new.listeners);
    }
    export.namespaces.retain(|known| known.nsid != saved.nsid);
    export.namespaces.push(saved.clone());
    export.namespaces.sort_by_key(|saved| saved.nsid);
}

/// A serial number of our own for a new subsystem: 20 characters at most.
fn new_serial() -> String {
    let id = Uuid::new_v4().simple().to_string().to_uppercase();
    format!("FB{}", &id[..16])
}

pub(super) fn not_found(message: impl Into<String>) -> RpcError {
    RpcError::new(ErrorCode::NotFound, message)
}

pub(super) fn in_use(message: impl Into<String>) -> RpcError {
    RpcError::new(ErrorCode::InUse, message)
}

pub(super) fn bdev_error(error: BdevError) -> RpcError {
    let message = error.to_string();
    let plain = |code, advice: &str| RpcError::new(code, &message).with_advice(advice);
    match error {
        // These say themselves what to do.
        BdevError::Invalid { .. } => RpcError::new(ErrorCode::InvalidParams, message),
        BdevError::Claimed { holder, .. } => {
            plain(ErrorCode::InUse, "end that use first").with_found(vec![holder])
        }
        BdevError::Exists { .. } => {
            plain(ErrorCode::Exists, "take another name, or forebay bdev delete")
        }
        BdevError::Unknown { .. } => plain(ErrorCode::NotFound, "forebay bdev list"),
        BdevError::NoMemory { .. } => plain(ErrorCode::Unavailable, "a smaller one, or a file"),
        BdevError::NoQueue { .. } => plain(
            ErrorCode::Limit,
            "end another export of that SSD, or start forebay-target on fewer cores",
        ),
        BdevError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            plain(ErrorCode::NotFound, "--size makes a file; its folder must exist")
        }
        BdevError::Io { .. } => plain(ErrorCode::Failed, "look at the path: ls -l, df -h"),
    }
}

pub(super) fn target_error(error: TargetError) -> RpcError {
    let code = match &error {
        TargetError::SubsystemExists { .. }
        | TargetError::NamespaceExists { .. }
        | TargetError::ListenerExists { .. } => ErrorCode::Exists,
        TargetError::UnknownSubsystem { .. }
        | TargetError::UnknownNamespace { .. }
        | TargetError::UnknownListener { .. } => ErrorCode::NotFound,
        TargetError::LimitReached { .. } => ErrorCode::Limit,
        _ => ErrorCode::InvalidParams,
    };
    RpcError::new(code, error.to_string())
}
