//! Calls by chance: volumes, snapshots and clones come and go while I/O goes on.

use std::collections::BTreeMap;

use volume::{Call, CreateVolume, Reply, VolumeError};

use crate::failure::Failure;
use crate::history::Time;
use crate::life::Life;

/// What is to be done, one after another.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Create { name: String, block_bytes: u32, bytes: u64, reserve: bool },
    Reserve { name: String, reserve: bool },
    Snapshot(Vec<(String, String)>),
    Clone { snapshot: String, name: String, read_only: bool },
    Rollback { volume: String, snapshot: String, kept: String },
    Resize { name: String, bytes: u64, force: bool },
    Delete(String),
    Open(String),
    Close(String),
    Promote(String),
    Check,
    Checkpoint,
    Add(String),
    Grow,
    Remove(String),
    CancelRemoval(String),
}

/// A call that was not answered.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    id: u64,
    plan: Plan,
    since: Time,
}

const CLUSTER_BYTES: u64 = 64 << 10;
/// Sizes of volumes are multiples of this.
const SIZE_UNIT: u64 = 4096;

impl Life {
    /// Goes on with what is planned, and takes the answer to what was asked.
    pub(crate) fn poll_calls(&mut self) -> Result<(), Failure> {
        if let Some((id, reply)) = self.pool.next_reply() {
            if self.changing.removal == Some(id) {
                tracing::debug!(step = self.pool.world.step(), ?reply, "removed");
                self.removed(&reply)?;
                return self.step_on();
            }
            match self.asked.take() {
                other if self.checkpoint == Some(id) => {
                    (self.asked, self.checkpoint) = (other, None);
                    if self.breaks(&reply) {
                        return self.step_on();
                    }
                    if !matches!(reply, Ok(Reply::Done)) {
                        return Err(Failure::Reply { reply: format!("{reply:?}") });
                    }
                }
                Some(asked) if asked.id == id => self.take_answer(asked, reply)?,
                _ => return Err(Failure::Reply { reply: format!("{reply:?}") }),
            }
            self.step_on()?;
        }
        if self.asked.is_some() {
            return Ok(());
        }
        if let Some(Plan::Close(name) | Plan::Resize { name, .. }) = self.script.front()
            && let Some(open) = self.pool.objects.get_mut(name)
        {
            open.closing = true;
            if open.in_flight > 0 {
                return Ok(());
            }
        }
        if let Some(plan) = self.script.pop_front() {
            self.begin(plan)?;
        }
        Ok(())
    }

    /// Whether a call is going or planned.
    pub(crate) fn is_calling(&self) -> bool {
        self.asked.is_some() || !self.script.is_empty()
    }

    /// Asks for a checkpoint now and then, while other calls go on.
    pub(crate) fn ask_checkpoint(&mut self) {
        let often = self.config.checkpoints;
        if often > 0 && !self.is_broken && self.checkpoint.is_none() && self.random.one_in(often) {
            self.checkpoint = Some(self.pool.call(Call::Checkpoint));
        }
    }

    fn begin(&mut self, plan: Plan) -> Result<(), Failure> {
        if let Plan::Add(name) = &plan {
            let id = self.begin_add(name)?;
            tracing::debug!(step = self.pool.world.step(), name, "asked to come");
            self.asked = Some(Asked { id, plan, since: 0 });
            return Ok(());
        }
        let mut since = 0;
        let (model, spread) = (&mut self.model, self.config.spread);
        let call = match plan.clone() {
            Plan::Create { name, block_bytes, bytes, reserve } => {
                model.begin_create(&name, block_bytes, bytes);
                model.reserve(&name, reserve);
                let (labels, description) = (BTreeMap::new(), String::new());
                let bytes = spread.real_size(bytes);
                Call::Create(CreateVolume {
                    name,
                    bytes,
                    block_bytes,
                    reserve,
                    labels,
                    description,
                })
            }
            Plan::Snapshot(members) => {
                since = model.begin_snapshots(&members);
                Call::Snapshot(members)
            }
            Plan::Clone { snapshot, name, read_only } => {
                model.begin_clone(&snapshot, &name);
                Call::Clone { snapshot, name, read_only }
            }
            Plan::Rollback { volume, snapshot, kept } => {
                since = model.begin_rollback(&volume, &snapshot, &kept);
                Call::Rollback { volume, snapshot, kept }
            }
            Plan::Resize { name, bytes, force } => {
                model.begin_resize(&name, bytes);
                Call::Resize { name, bytes: spread.real_size(bytes), force }
            }
            Plan::Delete(name) => {
                model.begin_delete(&name);
                Call::Delete(name)
            }
            Plan::Reserve { name, reserve } => {
                model.reserve(&name, false);
                Call::Reserve { name, reserve }
            }
            Plan::Open(name) => Call::Open(name),
            Plan::Close(name) => match self.pool.detach(&name) {
                Some(id) => Call::Close(id),
                None => return Ok(()),
            },
            Plan::Promote(name) => Call::Promote(name),
            Plan::Check => Call::Check,
            Plan::Checkpoint => Call::Checkpoint,
            Plan::Grow => self.grow_call(),
            Plan::Remove(name) => {
                self.changing.device = Some(name.clone());
                Call::Remove(name)
            }
            Plan::CancelRemoval(name) => Call::CancelRemoval(name),
            Plan::Add(_) => unreachable!("it has begun"),
        };
        tracing::debug!(step = self.pool.world.step(), ?call, "asked");
        let id = self.pool.call(call);
        self.asked = Some(Asked { id, plan, since });
        Ok(())
    }

    fn take_answer(
        &mut self,
        asked: Asked,
        reply: Result<Reply, VolumeError>,
    ) -> Result<(), Failure> {
        if self.breaks(&reply) {
            // It may have happened all the same: for the model it is not answered.
            self.script.clear();
            return Ok(());
        }
        let success = reply.is_ok();
        tracing::debug!(step = self.pool.world.step(), ?reply, "answered");
        match &reply {
            Ok(_) => self.statistics.calls += 1,
            Err(
                VolumeError::InUse { .. }
                | VolumeError::Written { .. }
                | VolumeError::Device { .. },
            ) => {
                self.statistics.refused += 1;
            }
            Err(VolumeError::Space { .. }) if self.takes_space(&asked.plan) => {
                self.statistics.refused += 1;
            }
            Err(error) => {
                let reason = format!("{:?}: {error}", asked.plan);
                return Err(Failure::Refused { reason });
            }
        }
        let model = &mut self.model;
        match asked.plan {
            Plan::Create { name, .. } | Plan::Clone { name, .. } => {
                model.end_create(&name, success);
            }
            Plan::Snapshot(members) => model.end_snapshots(&members, asked.since, success),
            Plan::Rollback { volume, .. } => {
                model.end_rollback(&volume, asked.since, success);
            }
            Plan::Resize { name, .. } => {
                model.end_resize(&name, success);
                if let Some(open) = self.pool.objects.get_mut(&name) {
                    open.closing = false;
                }
            }
            Plan::Delete(name) => {
                model.end_delete(&name, success);
                if !success {
                    self.script.push_front(Plan::Open(name));
                }
            }
            Plan::Open(name) => match reply {
                Ok(Reply::Handle(handle)) => self.pool.attach(&name, &handle),
                other => return Err(Failure::Reply { reply: format!("{other:?}") }),
            },
            Plan::Check => match reply {
                Ok(Reply::Faults(faults)) if !faults.is_empty() => {
                    return Err(Failure::Damaged { what: faults.join("; ") });
                }
                _ => {}
            },
            Plan::Add(name) => self.added(&name, success),
            Plan::Remove(name) => self.removal_begun(&name, success),
            Plan::Reserve { name, reserve } => self.model.reserve(&name, reserve && success),
            Plan::Close(_) | Plan::Promote(_) | Plan::Checkpoint => {}
            Plan::Grow | Plan::CancelRemoval(_) => {}
        }
        // What was not made is not opened.
        let model = &self.model;
        self.script.retain(|plan| !matches!(plan, Plan::Open(name) if !model.knows(name)));
        Ok(())
    }

    /// Whether a full pool may refuse this.
    fn takes_space(&self, plan: &Plan) -> bool {
        match plan {
            Plan::Rollback { volume, .. } => self.model.is_reserved(volume),
            Plan::Create { .. } | Plan::Snapshot(_) | Plan::Clone { .. } => true,
            Plan::Resize { .. } | Plan::Reserve { .. } => true,
            _ => false,
        }
    }

    /// Whether an answer says that the pool takes no writes any more, which only a device that
    /// fails can make it do.
    fn breaks(&mut self, reply: &Result<Reply, VolumeError>) -> bool {
        let breaks = !self.config.faults.is_empty() && matches!(reply, Err(VolumeError::Broken));
        self.is_broken |= breaks;
        breaks
    }

    /// Plans anything, if nothing is planned.
    pub(crate) fn plan_any(&mut self) {
        if self.is_calling() {
            return;
        }
        if self.config.changes_devices && self.random.one_in(4) {
            return self.plan_devices();
        }
        let (snapshots, volumes): (Vec<String>, Vec<String>) =
            self.model.names().map(str::to_owned).partition(|name| self.model.is_snapshot(name));
        let is_full = volumes.len() + snapshots.len() >= self.config.objects;
        let kind = self.random.below(19);
        match kind {
            _ if volumes.len() < 2 => self.plan_create(),
            0..=7 if is_full => self.plan_delete(volumes, snapshots),
            0 => self.plan_create(),
            1..=5 => self.plan_snapshot(volumes),
            6..=8 if !snapshots.is_empty() && !is_full => {
                let (snapshot, name) = (self.random.pick(&snapshots).clone(), self.new_name("c"));
                let read_only = self.random.one_in(6);
                let clone = Plan::Clone { snapshot, name: name.clone(), read_only };
                self.script.extend([clone, Plan::Open(name)]);
            }
            9 | 10 => self.plan_delete(volumes, snapshots),
            11 | 12 if !snapshots.is_empty() && !is_full => {
                self.plan_rollback(&volumes, &snapshots);
            }
            13 | 14 => {
                let name = self.random.pick(&volumes).clone();
                let bytes = self.any_size();
                let force = !self.random.one_in(3);
                self.script.push_back(Plan::Resize { name, bytes, force });
            }
            15 => self.script.push_back(Plan::Checkpoint),
            16 => self.script.push_back(Plan::Check),
            18 => {
                let name = self.random.pick(&volumes).clone();
                let reserve = self.random.one_in(2);
                if self.pool.objects.get(&name).is_some_and(|open| !open.handle.read_only()) {
                    self.script.push_back(Plan::Reserve { name, reserve });
                }
            }
            17 => self.script.push_back(Plan::Promote(self.random.pick(&volumes).clone())),
            _ => {}
        }
    }

    fn plan_create(&mut self) {
        let name = self.new_name("v");
        let smallest = self.model.unit_bytes();
        let block_bytes = if self.random.one_in(2) { 4096 } else { smallest };
        let bytes = self.any_size();
        let reserve = self.random.one_in(4);
        let create = Plan::Create { name: name.clone(), block_bytes, bytes, reserve };
        self.script.extend([create, Plan::Open(name)]);
    }

    fn plan_snapshot(&mut self, mut volumes: Vec<String>) {
        self.random.shuffle(&mut volumes);
        volumes.truncate(*self.random.pick(&[1, 1, 1, 2, 3]));
        let member = |volume: String| {
            let name = self.new_name("s");
            (volume, name)
        };
        let members: Vec<_> = volumes.into_iter().map(member).collect();
        let opens: Vec<_> = members.iter().map(|(_, name)| Plan::Open(name.clone())).collect();
        self.script.push_back(Plan::Snapshot(members));
        self.script.extend(opens);
    }

    fn plan_delete(&mut self, mut volumes: Vec<String>, snapshots: Vec<String>) {
        volumes.extend(snapshots);
        let name = self.random.pick(&volumes).clone();
        self.script.extend([Plan::Close(name.clone()), Plan::Delete(name)]);
    }

    /// To any snapshot of as large a volume, of its own line or not.
    pub(crate) fn plan_rollback(&mut self, volumes: &[String], snapshots: &[String]) {
        let volume = self.random.pick(volumes).clone();
        let snapshot = self.random.pick(snapshots).clone();
        let blocks = |name: &str| (self.model.block_bytes(name), self.model.units(name));
        if blocks(&volume) != blocks(&snapshot) {
            return;
        }
        let kept = self.new_name("k");
        self.script.extend([
            Plan::Close(volume.clone()),
            Plan::Rollback { volume: volume.clone(), snapshot, kept: kept.clone() },
            Plan::Open(volume),
            Plan::Open(kept),
        ]);
    }

    fn new_name(&mut self, kind: &str) -> String {
        self.next_name += 1;
        format!("{kind}{}", self.next_name)
    }

    /// Mostly no whole number of clusters.
    fn any_size(&mut self) -> u64 {
        let most = self.config.volume_clusters * CLUSTER_BYTES / SIZE_UNIT;
        (1 + self.random.below(most)) * SIZE_UNIT
    }
}
