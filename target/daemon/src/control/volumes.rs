//! Volumes and snapshots: what callers ask of a pool goes to its owner as a message, and what
//! becomes of the answer is kept in `Pools::calls` meanwhile.
//!
//! A volume that is to be deleted, renamed or rolled back is claimed first, so that nobody exports
//! it on the way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::results::{Difference, Extent};
use api::{
    ErrorCode, RpcError, SnapshotClone, SnapshotCreate, SnapshotDiff, VolumeCreate, VolumeLabel,
    VolumeRename, VolumeResize, VolumeRollback,
};
use bdev::{Bdev, BdevError};
use serde_json::{Value, json};
use volume::format::VolumeKind;
use volume::{Call, CreateVolume, PoolInfo, VolumeError, VolumeInfo};

use super::Control;
use super::exports::{Place, bdev_error, in_use};
use super::gathering::{Found, Question};
use super::pool_devices::Joining;
use super::pools::Pools;
use super::socket::Reply;
use super::volume_bdev::VolumeBdev;
use crate::limits::{MAX_CALLS, MAX_POOL_CALLS, REMOVAL_LIMIT};
use crate::message::CoreMessage;

/// A call that an owner works on.
pub(super) struct PoolCall {
    pool: String,
    then: Then,
}

/// What becomes of the answer.
pub(super) enum Then {
    /// The pool has just been opened, for whoever waits: who it is, then its volumes.
    Identify(Option<Reply>),
    Admit(Option<Reply>, Box<PoolInfo>),
    /// A volume is opened for a namespace.
    Open(Place),
    /// Of a volume that was closed.
    Nothing,
    Checkpoint,
    /// How full is it?
    Watch,
    Gather(u64),
    Change(Change, Reply),
    /// Something that is told as it comes.
    Tell(Reply),
    /// A block device is one of the pool's.
    Join(Box<Joining>),
    /// One is on its way out; it has gone; it stays, as somebody wished.
    Remove(String, Reply),
    Removed(String),
    Cancel(Reply),
    /// All volumes, after a rollback of this one.
    RolledBack(String, Reply),
}

/// A change of volumes.
pub(super) enum Change {
    /// They are new; `list`: the caller wants a list.
    Made {
        list: bool,
    },
    Described,
    Resized(String),
    Deleted(String),
    DamagedDeleted(String),
    Renamed(String),
    RolledBack(String),
}

/// A rollback of a volume that is exported, until its hosts have seen that the namespace is gone.
pub(super) struct Rollback {
    nqn: String,
    nsid: u32,
    volume: String,
    call: Call,
    reply: Reply,
    limit: Instant,
}

impl Pools {
    /// Keeps what becomes of the answer to a call; the call's number.
    pub(super) fn enter_call(&mut self, pool: &str, then: Then) -> u64 {
        assert!(self.calls.len() < MAX_POOL_CALLS, "more calls to pools than can wait");
        let id = self.next_id;
        self.next_id += 1;
        self.calls.insert(id, PoolCall { pool: pool.to_owned(), then });
        id
    }

    /// What becomes of the answers that a pool has not given yet.
    pub(super) fn calls_to(&self, pool: &str) -> impl Iterator<Item = &Then> {
        self.calls.values().filter(move |call| call.pool == pool).map(|call| &call.then)
    }
}

impl Control {
    /// Asks the owner of a pool that is open.
    pub(super) fn ask_pool(&mut self, pool: &str, call: Call, then: Then) {
        let Some(open) = self.pools.open.get(pool) else {
            return self.fail_call(pool, then, &self.unknown_pool(pool));
        };
        let place = open.place;
        let id = self.pools.enter_call(pool, then);
        let call = Box::new(call);
        // Core 0 has the owner's lane.
        self.tell(0, CoreMessage::PoolCall { pool: place, id, call, now_s: now_s() });
    }

    pub(super) fn handle_pool_reply(&mut self, id: u64, reply: Result<volume::Reply, VolumeError>) {
        // One of a pool that was lost meanwhile is not waited for any more.
        let Some(PoolCall { pool, then }) = self.pools.calls.remove(&id) else { return };
        match reply {
            Ok(reply) => self.finish_call(&pool, then, reply),
            Err(error) => self.fail_call(&pool, then, &volume_error(&pool, &error)),
        }
    }

    /// Nobody will answer what a pool was asked.
    pub(super) fn fail_pool_calls(&mut self, pool: &str) {
        let error = RpcError::new(ErrorCode::Unavailable, format!("pool {pool} is closed"));
        let lost: Vec<PoolCall> = self
            .pools
            .calls
            .extract_if(|_, call| call.pool == pool)
            .map(|(_, call)| call)
            .collect();
        lost.into_iter().for_each(|call| self.fail_call(pool, call.then, &error));
    }

    fn finish_call(&mut self, pool: &str, then: Then, answer: volume::Reply) {
        use volume::Reply as Answer;
        match (then, answer) {
            (Then::Identify(reply), Answer::Pool(info)) => {
                if let Some(open) = self.pools.open.get_mut(pool) {
                    open.uuid = info.uuid;
                    open.damaged.clone_from(&info.damaged);
                }
                for (name, reason) in &info.damaged {
                    tracing::error!(pool, name, reason, "damaged: it cannot be used");
                }
                self.ask_pool(pool, Call::List, Then::Admit(reply, Box::new(info)));
            }
            (Then::Admit(reply, info), Answer::Volumes(volumes)) => {
                self.note_volumes(pool, &volumes);
                match self.admit_pool(pool) {
                    Ok(()) => {
                        let info = self.pool_info(&info);
                        reply.into_iter().for_each(|reply| drop(reply.send(Ok(json!(info)))));
                    }
                    Err(error) => self.refuse_pool(pool, reply, error),
                }
            }
            (Then::Open(place), Answer::Handle(handle)) => self.finish_open_volume(place, handle),
            (Then::Checkpoint, _) => self.handle_checkpoint(pool),
            (Then::Watch, Answer::Pool(info)) => self.watch_pool(&info),
            (Then::Gather(id), Answer::Pool(info)) => self.gather(id, Some(Found::Pool(info))),
            (Then::Gather(id), Answer::Volumes(volumes)) => {
                self.gather(id, Some(Found::Volumes(pool.to_owned(), volumes)));
            }
            (Then::Change(change, reply), answer) => {
                let volumes = match answer {
                    Answer::Volumes(volumes) => volumes,
                    _ => Vec::new(),
                };
                self.finish_change_of(pool, change, &volumes, reply);
            }
            (Then::RolledBack(volume, reply), Answer::Volumes(volumes)) => {
                self.note_volumes(pool, &volumes);
                let rolled = volumes.iter().find(|info| full(pool, &info.name) == volume);
                let answer = rolled.map(|info| json!(self.volume_info(pool, info)));
                self.serve_again(&volume, reply, Ok(json!(answer)));
            }
            (Then::Tell(reply), Answer::Faults(faults)) => {
                let _ = reply.send(Ok(json!(self.report_open(pool, faults))));
            }
            (Then::Tell(reply), Answer::Extents(extents, next)) => {
                let extents = extents.into_iter();
                let extents = extents.map(|(start, bytes)| Extent { start, bytes }).collect();
                let _ = reply.send(Ok(json!(Difference { extents, next })));
            }
            (Then::Tell(reply), Answer::Pool(info)) => {
                drop(reply.send(Ok(json!(self.pool_info(&info)))));
            }
            (Then::Join(joining), Answer::Pool(info)) => self.finish_join(joining, &info),
            (Then::Remove(bdev, reply), Answer::Done) => self.begin_removal(pool, bdev, reply),
            (Then::Removed(bdev), Answer::Done) => self.finish_removal(pool, &bdev),
            (Then::Cancel(reply), Answer::Done) => {
                self.ask_pool(pool, Call::Info, Then::Tell(reply));
            }
            (Then::Nothing, _) => {}
            (then, answer) => {
                let message = format!("pool {pool} gave an answer to another question: {answer:?}");
                self.fail_call(pool, then, &RpcError::new(ErrorCode::Internal, message));
            }
        }
    }

    fn fail_call(&mut self, pool: &str, then: Then, error: &RpcError) {
        let error = error.clone();
        match then {
            Then::Identify(reply) | Then::Admit(reply, _) => self.refuse_pool(pool, reply, error),
            Then::Open(place) => self.fail_open_volume(place, error),
            Then::Gather(id) => self.gather(id, None),
            // Its lanes go all the same: recovery replays the journal.
            Then::Checkpoint => {
                tracing::error!(pool, %error, "no checkpoint at its end");
                self.handle_checkpoint(pool);
            }
            Then::Nothing | Then::Watch => {}
            Then::Tell(reply) | Then::Remove(_, reply) | Then::Cancel(reply) => {
                drop(reply.send(Err(error)));
            }
            Then::Join(joining) => self.fail_join(*joining, error),
            Then::Removed(bdev) => self.fail_removal(pool, &bdev, &error),
            Then::Change(change, reply) => match change {
                Change::RolledBack(volume) => self.serve_again(&volume, reply, Err(error)),
                Change::Deleted(volume) | Change::Renamed(volume) => {
                    self.bdevs.release(&volume);
                    let _ = reply.send(Err(error));
                }
                Change::Made { .. }
                | Change::Described
                | Change::Resized(_)
                | Change::DamagedDeleted(_) => {
                    let _ = reply.send(Err(error));
                }
            },
            Then::RolledBack(volume, reply) => self.serve_again(&volume, reply, Err(error)),
        }
    }

    fn finish_change_of(
        &mut self,
        pool: &str,
        change: Change,
        volumes: &[VolumeInfo],
        reply: Reply,
    ) {
        match &change {
            Change::RolledBack(volume) => {
                // What was kept is new as well.
                let then = Then::RolledBack(volume.clone(), reply);
                return self.ask_pool(pool, Call::List, then);
            }
            Change::Deleted(volume) | Change::Renamed(volume) => {
                self.bdevs.release(volume);
                self.forget_volume(volume);
            }
            Change::DamagedDeleted(name) => {
                if let Some(open) = self.pools.open.get_mut(pool) {
                    open.damaged.retain(|(damaged, _)| damaged != name);
                }
            }
            Change::Made { .. } | Change::Described | Change::Resized(_) => {}
        }
        self.note_volumes(pool, volumes);
        let infos: Vec<_> = volumes.iter().map(|info| self.volume_info(pool, info)).collect();
        let answer = match (&change, infos.first()) {
            (Change::Made { list: true }, _) => json!(infos),
            (_, Some(info)) => json!(info),
            (_, None) => json!({}),
        };
        match change {
            Change::Resized(volume) => self.announce_size(&volume, answer, reply),
            _ => drop(reply.send(Ok(answer))),
        }
    }

    /// Makes block devices of volumes that are new, and lets others have their size.
    fn note_volumes(&mut self, pool: &str, volumes: &[VolumeInfo]) {
        let Some(open) = self.pools.open.get_mut(pool) else { return };
        for info in volumes {
            let name = full(pool, &info.name);
            match open.volumes.get(&name) {
                Some(known) => known.resize(info.bytes),
                None => {
                    let bdev = Arc::new(VolumeBdev::new(pool, info, open.cache, &open.lost));
                    match self.bdevs.add(Arc::clone(&bdev) as Arc<dyn Bdev>) {
                        Ok(()) => drop(open.volumes.insert(name, bdev)),
                        Err(error) => tracing::error!(%error, "a volume cannot be exported"),
                    }
                }
            }
        }
    }

    fn forget_volume(&mut self, name: &str) {
        if let Some((pool, _)) = api::split_volume_name(name)
            && let Some(open) = self.pools.open.get_mut(pool)
        {
            open.volumes.remove(name);
        }
        if let Err(error) = self.bdevs.remove(name) {
            tracing::error!(%error, "it is not there any more");
        }
    }

    pub(super) fn handle_volume_call(&mut self, call: api::Call, reply: Reply) {
        use api::Call;
        match call {
            Call::VolumeCreate(params) => self.create_volume(params, reply),
            Call::VolumeList(params) => {
                self.ask_pools(params.pool.as_deref(), Question::Volumes(params.labels), reply);
            }
            Call::VolumeShow(params) => {
                let pool = split(&params.volume).0.to_owned();
                self.ask_pools(Some(&pool), Question::Volume(params.volume), reply);
            }
            Call::VolumeDelete(params) => {
                self.delete_volume(&params.volume, VolumeKind::Volume, reply);
            }
            Call::VolumeRename(params) => self.rename_volume(params, reply),
            Call::VolumeResize(params) => self.resize_volume(params, reply),
            Call::VolumeReserve(api::VolumeReserve { volume, reserve }) => {
                let (pool, name) = split(&volume);
                let call = volume::Call::Reserve { name: name.to_owned(), reserve };
                self.change(pool, call, Change::Described, reply);
            }
            Call::VolumeLabel(params) => self.label_volume(params, reply),
            Call::VolumeRollback(params) => self.rollback_volume(params, reply),
            Call::VolumePromote(params) => {
                let (pool, name) = split(&params.volume);
                let call = volume::Call::Promote(name.to_owned());
                self.change(pool, call, Change::Described, reply);
            }
            Call::SnapshotCreate(params) => self.create_snapshots(params, reply),
            Call::SnapshotList(params) => {
                let pool = params.volume.as_deref().map(|volume| split(volume).0.to_owned());
                self.ask_pools(pool.as_deref(), Question::Snapshots(params.volume), reply);
            }
            Call::SnapshotDelete(params) => {
                self.delete_volume(&params.volume, VolumeKind::Snapshot, reply);
            }
            Call::SnapshotClone(params) => self.clone_snapshot(params, reply),
            Call::SnapshotDiff(params) => self.diff_snapshots(&params, reply),
            // The others are not of volumes; `handle_call` has seen to them.
            _ => {}
        }
    }

    fn create_volume(&mut self, params: VolumeCreate, reply: Reply) {
        let VolumeCreate { volume, size_bytes, block_bytes, reserve, labels, description } = params;
        let (pool, name) = split(&volume);
        let create = CreateVolume {
            name: name.to_owned(),
            bytes: size_bytes,
            block_bytes,
            reserve,
            labels,
            description,
        };
        self.change(pool, Call::Create(create), Change::Made { list: false }, reply);
    }

    /// Asks a pool for a change, if it serves.
    fn change(&mut self, pool: &str, call: Call, change: Change, reply: Reply) {
        match self.pools.is_serving(pool) {
            true => self.ask_pool(pool, call, Then::Change(change, reply)),
            false => drop(reply.send(Err(self.unknown_pool(pool)))),
        }
    }

    fn delete_volume(&mut self, volume: &str, kind: VolumeKind, reply: Reply) {
        let (pool, name) = split(volume);
        let damaged = self.pools.open.get(pool).map(|open| open.damaged.iter());
        if damaged.is_some_and(|mut damaged| damaged.any(|(other, _)| other == name)) {
            // Nobody can have it, whatever it was.
            let call = Call::Delete(name.to_owned());
            return self.change(pool, call, Change::DamagedDeleted(name.to_owned()), reply);
        }
        let checked = self.find_volume(volume, Some(kind));
        match checked.and_then(|()| self.claim_volume(volume, "a deletion")) {
            Ok(()) => {
                let (pool, name) = split(volume);
                let call = Call::Delete(name.to_owned());
                self.change(pool, call, Change::Deleted(volume.to_owned()), reply);
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn rename_volume(&mut self, params: VolumeRename, reply: Reply) {
        let VolumeRename { volume, name: new } = params;
        let checked = self.find_volume(&volume, None);
        match checked.and_then(|()| self.claim_volume(&volume, "a rename")) {
            Ok(()) => {
                let (pool, name) = split(&volume);
                let call = Call::Describe {
                    name: name.to_owned(),
                    rename: Some(new),
                    labels: BTreeMap::new(),
                    description: None,
                };
                self.change(pool, call, Change::Renamed(volume.clone()), reply);
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn label_volume(&mut self, params: VolumeLabel, reply: Reply) {
        let VolumeLabel { volume, labels, description } = params;
        let (pool, name) = split(&volume);
        let call = Call::Describe { name: name.to_owned(), rename: None, labels, description };
        self.change(pool, call, Change::Described, reply);
    }

    fn create_snapshots(&mut self, params: SnapshotCreate, reply: Reply) {
        let SnapshotCreate { volumes, name } = params;
        let pool = volumes.first().map(|volume| split(volume).0.to_owned()).unwrap_or_default();
        let member = |volume: &String| {
            let volume = split(volume).1;
            (volume.to_owned(), api::snapshot_of(volume, &name))
        };
        let call = Call::Snapshot(volumes.iter().map(member).collect());
        self.change(&pool, call, Change::Made { list: true }, reply);
    }

    fn clone_snapshot(&mut self, params: SnapshotClone, reply: Reply) {
        let SnapshotClone { snapshot, name, read_only } = params;
        let (pool, snapshot) = split(&snapshot);
        let call = Call::Clone { snapshot: snapshot.to_owned(), name, read_only };
        self.change(pool, call, Change::Made { list: false }, reply);
    }

    fn diff_snapshots(&mut self, params: &SnapshotDiff, reply: Reply) {
        let (pool, to) = split(&params.to);
        let from = params.from.as_deref().map(|from| split(from).1.to_owned());
        let call = Call::Diff { from, to: to.to_owned(), start: params.start };
        match self.pools.is_serving(pool) {
            true => self.ask_pool(pool, call, Then::Tell(reply)),
            false => drop(reply.send(Err(self.unknown_pool(pool)))),
        }
    }

    fn resize_volume(&mut self, params: VolumeResize, reply: Reply) {
        let VolumeResize { volume, size_bytes, force } = params;
        let (pool, name) = split(&volume);
        let call = Call::Resize { name: name.to_owned(), bytes: size_bytes, force };
        self.change(pool, call, Change::Resized(volume.clone()), reply);
    }

    fn rollback_volume(&mut self, params: VolumeRollback, reply: Reply) {
        match self.start_rollback(&params) {
            // Nobody has it.
            Ok((call, None)) => {
                let (pool, _) = split(&params.volume);
                self.change(pool, call, Change::RolledBack(params.volume.clone()), reply);
            }
            Ok((call, Some((nqn, nsid)))) => {
                let reason = format!("{} is being rolled back", params.volume);
                tracing::info!(nqn, nsid, reason, "taken from its hosts");
                self.down.insert((nqn.clone(), nsid), reason);
                assert!(self.pools.rollbacks.len() < MAX_CALLS, "one for each call at most");
                let (volume, limit) = (params.volume, Instant::now() + REMOVAL_LIMIT);
                self.pools.rollbacks.push(Rollback { nqn, nsid, volume, call, reply, limit });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Claims the volume, or takes it from its hosts: then where it was exported comes back.
    fn start_rollback(
        &mut self,
        params: &VolumeRollback,
    ) -> Result<(Call, Option<(String, u32)>), RpcError> {
        let VolumeRollback { volume, snapshot, keep, force } = params;
        self.find_volume(volume, Some(VolumeKind::Volume))?;
        let (pool, name) = split(volume);
        self.find_volume(&full(pool, snapshot), Some(VolumeKind::Snapshot))?;
        let is_free = |kept: &String| self.pools.volume(&full(pool, kept)).is_none();
        let mut names = (1..).map(|n| api::snapshot_of(name, &format!("before-rollback-{n}")));
        let kept = match keep {
            Some(kept) if is_free(kept) => kept.clone(),
            Some(kept) => {
                let message = format!("{pool} has a volume or snapshot named {kept} already");
                return Err(RpcError::new(ErrorCode::Exists, message));
            }
            None => names.find(is_free).unwrap_or_default(),
        };
        if let Err(reason) = api::check_pool_name(&kept) {
            let error = RpcError::invalid("keep", reason);
            return Err(error.with_advice("--keep NAME gives it a name that is not so long"));
        }
        let (volume_name, snapshot) = (name.to_owned(), snapshot.clone());
        let call = Call::Rollback { volume: volume_name, snapshot, kept };
        let exported = self.exported_as(volume);
        match (exported, *force) {
            (Some((nqn, nsid)), true) if self.bdevs.holder(volume).is_some() => {
                let saved = self.state.export(&nqn).and_then(|export| {
                    export.namespaces.iter().find(|saved| saved.nsid == nsid).cloned()
                });
                let withdrawn = saved.is_some_and(|saved| self.withdraw(&nqn, &saved));
                match withdrawn {
                    true => Ok((call, Some((nqn, nsid)))),
                    false => Err(in_use(format!("namespace {nsid} of {nqn} is on its way"))
                        .with_advice("try again in a moment")),
                }
            }
            // Exported by what is saved, and down: nobody reaches it.
            (Some(_), true) | (None, _) => {
                self.claim_for(volume, "a rollback").map(|()| (call, None))
            }
            (Some((nqn, _)), false) => {
                let error = in_use(format!("{volume} is exported as {nqn}"));
                Err(error.with_found(vec![nqn.clone()]).with_advice(format!(
                    "unmount it on its hosts, then forebay unexport {nqn}; or --force, which takes \
                     the namespace from them for as long as it takes"
                )))
            }
        }
    }

    /// Rolls back volumes whose hosts have seen that the namespace is gone: one that had not would
    /// take what comes back for what it was, and show what it remembers of it.
    pub(super) fn poll_rollbacks(&mut self, now: Instant) {
        for mut rollback in std::mem::take(&mut self.pools.rollbacks) {
            let Rollback { nqn, nsid, volume, .. } = &rollback;
            if self.bdevs.holder(volume).is_some() {
                // The last I/O has not ended; hosts have their time from there on.
                rollback.limit = now + REMOVAL_LIMIT;
                self.pools.rollbacks.push(rollback);
                continue;
            }
            let unaware = self.target.hosts_with_removed(nqn, *nsid);
            if !unaware.is_empty() && now < rollback.limit {
                self.pools.rollbacks.push(rollback);
                continue;
            }
            let Rollback { nqn, nsid, volume, call, reply, .. } = rollback;
            if unaware.is_empty() {
                // Nobody holds it; a pool that is gone meanwhile says so.
                let _ = self.claim_for(&volume, "a rollback");
                let (pool, _) = split(&volume);
                let then = Then::Change(Change::RolledBack(volume.clone()), reply);
                self.ask_pool(pool, call, then);
            } else {
                let message = format!("hosts do not let go of namespace {nsid} of {nqn}");
                let error = RpcError::new(ErrorCode::Failed, message).with_found(unaware);
                let error = error.with_advice(format!(
                    "nothing was rolled back; disconnect them (nvme disconnect -n {nqn}), or \
                     forebay unexport {nqn} --force"
                ));
                self.serve_again(&volume, reply, Err(error));
            }
        }
    }

    /// Ends the claim of a rollback. If the volume was exported it is again, before the answer.
    fn serve_again(&mut self, volume: &str, reply: Reply, answer: Result<Value, RpcError>) {
        self.bdevs.release(volume);
        self.serve_waiting(volume);
        let place = self
            .exported_as(volume)
            .and_then(|(nqn, nsid)| Some((self.target.subsystem(&nqn)?.id().0, nsid)));
        self.answer_after(place.into_iter().collect(), reply, answer);
    }

    /// Refuses a name that is of no volume or snapshot, or of the other kind.
    fn find_volume(&self, name: &str, kind: Option<VolumeKind>) -> Result<(), RpcError> {
        let Some(volume) = self.pools.volume(name) else { return Err(self.unknown_bdev(name)) };
        let (pool, _) = split(name);
        if !self.pools.is_serving(pool) {
            return Err(in_use(format!("{pool} is being opened or closed; try again in a moment")));
        }
        if kind.is_none_or(|kind| kind == volume.kind) {
            return Ok(());
        }
        let (is, advice) = match volume.kind {
            VolumeKind::Volume => ("a volume, not a snapshot", "forebay snapshot list"),
            VolumeKind::Snapshot => ("a snapshot, not a volume", "forebay volume list"),
        };
        let error = RpcError::new(ErrorCode::InvalidParams, format!("{name} is {is}"));
        Err(error.with_advice(advice))
    }

    /// Claims a volume that is not exported.
    fn claim_volume(&mut self, name: &str, holder: &str) -> Result<(), RpcError> {
        if let Some((nqn, nsid)) = self.exported_as(name) {
            let error = in_use(format!("{name} is exported as namespace {nsid} of {nqn}"));
            let error = error.with_found(vec![nqn.clone()]);
            return Err(error.with_advice(format!("end that first: forebay unexport {nqn}")));
        }
        self.claim_for(name, holder)
    }

    fn claim_for(&mut self, name: &str, holder: &str) -> Result<(), RpcError> {
        match self.bdevs.claim(name, holder) {
            Ok(_) => Ok(()),
            Err(error @ BdevError::Claimed { .. }) => Err(bdev_error(error)),
            Err(_) => Err(self.unknown_bdev(name)),
        }
    }

    /// As what a block device is exported, be it up or down.
    pub(super) fn exported_as(&self, bdev: &str) -> Option<(String, u32)> {
        self.state.exports.iter().find_map(|export| {
            let saved = export.namespaces.iter().find(|saved| saved.bdev == bdev)?;
            Some((export.nqn.clone(), saved.nsid))
        })
    }
}

/// `POOL/NAME`.
pub(super) fn full(pool: &str, name: &str) -> String {
    format!("{pool}/{name}")
}

/// Pool and volume; names were checked when the call was parsed.
pub(super) fn split(name: &str) -> (&str, &str) {
    api::split_volume_name(name).unwrap_or((name, ""))
}

/// Seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn volume_error(pool: &str, error: &VolumeError) -> RpcError {
    let message = format!("pool {pool}: {error}");
    let plain = |code| RpcError::new(code, &message);
    match error {
        VolumeError::Unknown { .. } => {
            plain(ErrorCode::NotFound).with_advice(format!("forebay volume list {pool}"))
        }
        VolumeError::Exists { .. } => plain(ErrorCode::Exists).with_advice("take another name"),
        VolumeError::InUse { .. } => plain(ErrorCode::InUse),
        VolumeError::Written { .. } => plain(ErrorCode::NeedsForce)
            .with_advice("shrink the file system on it first; --force cuts off what is there"),
        VolumeError::Space { .. } => plain(ErrorCode::Limit)
            .with_advice("forebay pool show says what is left; a thin volume keeps no space"),
        VolumeError::Broken => {
            plain(ErrorCode::Failed).with_advice("forebay device list shows how the SSDs are")
        }
        VolumeError::TooLarge { .. } => {
            plain(ErrorCode::Limit).with_advice("fewer labels or volumes at a time")
        }
        _ => plain(ErrorCode::InvalidParams),
    }
}
