//! How pools go: exported, destroyed, lost, or because the daemon ends.
//!
//! First their namespaces go, then the owner takes the last checkpoint, then the lanes come back
//! from the cores and a job takes them apart; at last the claims on the block devices go.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::{ErrorCode, PoolDestroy, RpcError};
use bdev::Bdev;
use serde_json::{Value, json};
use volume::{Call, Lane};

use super::Control;
use super::exports::in_use;
use super::job::Job;
use super::pools::{OpenPool, pool_error};
use super::socket::Reply;
use super::volumes::Then;
use crate::limits::POOL_BLOCK_BYTES;
use crate::message::CoreMessage;
use crate::state::State;

/// Where a pool is between open and closed.
pub(super) enum Stage {
    /// Its volumes are being listed.
    Opening,
    Serving,
    /// Its namespaces are going.
    Leaving(Leave),
    /// Its owner takes the last checkpoint.
    Checkpoint(Leave),
    /// Its lanes come back from the cores.
    Removing(Leave, Vec<Lane>, usize),
    /// A job takes them apart, and destroys the pool if that is wanted.
    Dropping(Leave, Job<()>),
}

/// The way out of a pool.
#[derive(Default)]
pub(super) struct Leave {
    how: How,
    /// Why it is not open any more, if it is to be again.
    reason: Option<String>,
    answer: Option<(Reply, Result<Value, RpcError>)>,
}

/// What is to be left of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum How {
    /// A pool that is opened again when the daemon starts.
    #[default]
    Closed,
    /// One that may be imported anywhere.
    Exported,
    /// Nothing.
    Destroyed,
}

impl Control {
    pub(super) fn export_pool(&mut self, name: &str, reply: Reply) {
        let checked = self.check_pool_unused(name);
        self.give_pool_up(name, How::Exported, checked, reply);
    }

    pub(super) fn destroy_pool(&mut self, params: &PoolDestroy, reply: Reply) {
        let PoolDestroy { name, force } = params;
        let checked = self.check_pool_unused(name).and_then(|()| self.check_empty(name, *force));
        self.give_pool_up(name, How::Destroyed, checked, reply);
    }

    /// Only what is open is known to be empty, or to be whole.
    fn check_empty(&self, name: &str, force: bool) -> Result<(), RpcError> {
        if !self.pools.open.contains_key(name) {
            return Err(self.unknown_pool(name));
        }
        let volumes = self.pools.volumes_of(name);
        let damaged = self.pools.open.get(name).map_or(0, |pool| pool.damaged.len());
        let count = volumes.len() + damaged;
        if count == 0 || force {
            return Ok(());
        }
        let message = format!("{name} has {count} volumes and snapshots");
        let error = RpcError::new(ErrorCode::NeedsForce, message).with_found(volumes);
        Err(error.with_advice("pool destroy --force destroys them, too"))
    }

    fn give_pool_up(&mut self, name: &str, how: How, checked: Result<(), RpcError>, reply: Reply) {
        let forget = |state: &mut State| state.pools.retain(|saved| saved.name != name);
        match checked.and_then(|()| self.commit(forget, |_| Ok(()))) {
            Ok(()) if self.pools.open.contains_key(name) => {
                let answer = Some((reply, Ok(json!({}))));
                self.leave_pool(name, Leave { how, reason: None, answer });
            }
            // It could not be opened: all there was is its entry.
            Ok(()) => {
                self.pools.down.remove(name);
                let _ = reply.send(Ok(json!({})));
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn check_pool_unused(&self, name: &str) -> Result<(), RpcError> {
        let open = self.pools.open.get(name);
        if open.is_none() && !self.pools.down.contains_key(name) {
            return Err(self.unknown_pool(name));
        }
        if open.is_some_and(|pool| !matches!(pool.stage, Stage::Serving)) {
            return Err(in_use(format!("{name} is being opened or closed; try again in a moment")));
        }
        self.check_no_removal(name)?;
        let prefix = format!("{name}/");
        let exports = self.state.exports.iter();
        let used = exports.filter(|e| e.namespaces.iter().any(|n| n.bdev.starts_with(&prefix)));
        let nqns: Vec<String> = used.map(|export| export.nqn.clone()).collect();
        if let Some(nqn) = nqns.first() {
            let error = in_use(format!("volumes of {name} are exported"));
            let advice = format!("end that first, such as: forebay unexport {nqn}");
            return Err(error.with_found(nqns).with_advice(advice));
        }
        let claimed = self.pools.volumes_of(name).into_iter();
        match claimed.filter_map(|volume| self.bdevs.holder(&volume)).next() {
            Some(holder) => Err(in_use(format!("a volume of {name} is in use by {holder}"))),
            None => Ok(()),
        }
    }

    /// Begins to close a pool whose namespaces are gone, or on their way out.
    fn leave_pool(&mut self, name: &str, leave: Leave) {
        if let Some(bdev) = self.pools.open.get(name).and_then(|pool| pool.removing.clone()) {
            self.ask_pool(name, Call::CancelRemoval(bdev), Then::Nothing);
        }
        match self.pools.open.get_mut(name) {
            Some(pool) if !pool.is_leaving() => pool.stage = Stage::Leaving(leave),
            // It goes already, and whoever asked for that is told when it is gone.
            _ => {
                if let Some((reply, answer)) = leave.answer {
                    let _ = reply.send(answer);
                }
            }
        }
    }

    /// What could not be kept is closed again.
    pub(super) fn refuse_pool(&mut self, name: &str, reply: Option<Reply>, error: RpcError) {
        let reason = error.message.clone();
        tracing::error!(pool = name, reason, "closed again");
        let kept = self.state.pools.iter().any(|saved| saved.name == name);
        let answer = reply.map(|reply| (reply, Err(error)));
        let reason = kept.then_some(reason);
        self.leave_pool(name, Leave { reason, answer, ..Leave::default() });
    }

    /// Ends the pool that has this block device, which is lost. It stays in the state, and is
    /// opened again when the device comes back.
    pub(super) fn lose_pool_on(&mut self, bdev: &str) {
        let has_it = |(_, pool): &(&String, &OpenPool)| pool.bdevs.iter().any(|one| one == bdev);
        let Some(name) = self.pools.open.iter().find(has_it).map(|(name, _)| name.clone()) else {
            return;
        };
        let reason = format!("{bdev} failed or was removed");
        if let Some(pool) = self.pools.open.get(&name) {
            pool.lost.store(true, Ordering::Relaxed);
        }
        self.leave_pool(&name, Leave { reason: Some(reason), ..Leave::default() });
        for volume in self.pools.volumes_of(&name) {
            self.stop_serving(&volume);
        }
        // Its owner may never answer.
        self.fail_pool_calls(&name);
    }

    /// Begins to close every pool, because the daemon ends.
    pub(super) fn begin_close_pools(&mut self) {
        self.pools.look_again = false;
        for name in self.pools.open.keys().cloned().collect::<Vec<_>>() {
            self.leave_pool(&name, Leave::default());
        }
    }

    pub(super) fn poll_leaving(&mut self, name: &str) {
        let used = self.pools.volumes_of(name).iter().any(|v| self.bdevs.holder(v).is_some());
        let cores = self.cores.len();
        let Some(pool) = self.pools.open.get_mut(name) else { return };
        let (place, lost) = (pool.place, pool.lost.load(Ordering::Relaxed));
        match std::mem::replace(&mut pool.stage, Stage::Opening) {
            Stage::Leaving(leave) if !used && lost => {
                pool.stage = Stage::Removing(leave, Vec::new(), cores);
                self.remove_lanes(place);
            }
            // A device on its way out stays, or has gone.
            Stage::Leaving(leave) if !used && pool.removing.is_none() => {
                let call = match leave.how {
                    How::Closed | How::Destroyed => Call::Checkpoint,
                    How::Exported => Call::Export,
                };
                pool.stage = Stage::Checkpoint(leave);
                self.ask_pool(name, call, Then::Checkpoint);
            }
            // Its owner may never answer.
            Stage::Checkpoint(leave) if lost => {
                pool.stage = Stage::Removing(leave, Vec::new(), cores);
                self.remove_lanes(place);
            }
            Stage::Removing(leave, lanes, 0) => {
                let destroyed =
                    (leave.how == How::Destroyed && !lost && !pool.busy).then_some(pool.memory);
                let bdevs = pool.bdevs.iter().filter_map(|name| self.bdevs.get(name).cloned());
                let bdevs: Vec<Arc<dyn Bdev>> = bdevs.collect();
                let job = Job::start(move || {
                    drop(lanes);
                    let Some(memory) = destroyed else { return Ok(()) };
                    let mut memory = dma::Pool::over(memory, POOL_BLOCK_BYTES);
                    volume::pool::destroy(&bdevs, &mut memory).map_err(pool_error)
                });
                pool.stage = Stage::Dropping(leave, job);
                self.fail_pool_calls(name);
            }
            Stage::Dropping(mut leave, mut job) => match job.poll() {
                Some(outcome) => {
                    if let (Err(error), Some((_, answer))) = (outcome, &mut leave.answer) {
                        *answer = Err(error);
                    }
                    self.finish_leaving_pool(name, leave);
                }
                None => pool.stage = Stage::Dropping(leave, job),
            },
            stage => pool.stage = stage,
        }
    }

    /// The maps of a pool are on its devices.
    pub(super) fn handle_checkpoint(&mut self, name: &str) {
        let cores = self.cores.len();
        let Some(pool) = self.pools.open.get_mut(name) else { return };
        match std::mem::replace(&mut pool.stage, Stage::Opening) {
            Stage::Checkpoint(leave) => {
                pool.stage = Stage::Removing(leave, Vec::new(), cores);
                let place = pool.place;
                self.remove_lanes(place);
            }
            stage => pool.stage = stage,
        }
    }

    fn remove_lanes(&mut self, place: usize) {
        for core in 0..self.cores.len() {
            self.tell(core, CoreMessage::RemoveLane { pool: place });
        }
    }

    pub(super) fn handle_lane_removed(
        &mut self,
        place: usize,
        lane: Option<Box<Lane>>,
        idle: bool,
    ) {
        let pool = self.pools.open.values_mut().find(|pool| pool.place == place);
        let Some(pool) = pool else { return };
        pool.busy |= !idle;
        if let Stage::Removing(_, lanes, left) = &mut pool.stage {
            lanes.extend(lane.map(|lane| *lane));
            *left -= 1;
        }
    }

    fn finish_leaving_pool(&mut self, name: &str, leave: Leave) {
        let Some(pool) = self.pools.open.remove(name) else { return };
        for volume in pool.volumes.keys() {
            if let Err(error) = self.bdevs.remove(volume) {
                tracing::error!(%error, "a volume of a closed pool is in use");
            }
        }
        pool.bdevs.iter().for_each(|bdev| self.bdevs.release(bdev));
        match pool.busy {
            false => self.arena.give_back(pool.memory),
            true => tracing::error!(pool = name, "a device does not end: memory is not used again"),
        }
        tracing::info!(pool = name, "closed");
        if let Some(reason) = leave.reason {
            self.note_pool_down(name, &reason);
        }
        if let Some((reply, answer)) = leave.answer {
            let _ = reply.send(answer);
        }
    }
}
