//! The block devices of a pool that is open: they come, grow and go, while hosts do I/O.
//!
//! A device that comes is got ready by a job, one after another if there are several; the pool's
//! owner does the rest. One that goes is emptied by the owner, which takes as long as it takes:
//! whoever asked is told that it has begun, and `pool.show` how far it is.

use std::collections::VecDeque;

use api::{PoolAdd, PoolRemove, RpcError};
use dma::DmaSpan;
use serde_json::json;
use volume::{Call, NewDevice};

use super::Control;
use super::exports::in_use;
use super::job::Job;
use super::pools::pool_error;
use super::socket::Reply;
use super::volumes::Then;
use crate::limits::POOL_BLOCK_BYTES;
use crate::message::CoreMessage;
use crate::state::SavedPool;

/// Block devices on their way into a pool; all of them are claimed.
pub(super) struct Joining {
    pool: String,
    /// The one at hand, and those after it.
    bdev: String,
    left: VecDeque<String>,
    force: bool,
    reply: Reply,
}

/// What a job does on a device that is not of a pool yet, or no longer.
pub(super) struct DeviceWork {
    memory: DmaSpan,
    what: What,
}

enum What {
    Prepare(Job<NewDevice>, Box<Joining>),
    /// A label that does not count any more goes.
    Clear(Job<()>, String),
}

impl Control {
    pub(super) fn add_to_pool(&mut self, params: PoolAdd, reply: Reply) {
        let PoolAdd { name, bdevs, force } = params;
        let claimed = match self.pools.is_serving(&name) {
            true => self.claim_all(&bdevs, &format!("pool {name}")),
            false => Err(self.unknown_pool(&name)),
        };
        let mut left = VecDeque::from(bdevs);
        match (claimed, left.pop_front()) {
            (Ok(_), Some(bdev)) => {
                self.prepare_device(Box::new(Joining { pool: name, bdev, left, force, reply }));
            }
            (Ok(_), None) => {}
            (Err(error), _) => drop(reply.send(Err(error))),
        }
    }

    fn prepare_device(&mut self, joining: Box<Joining>) {
        let pool = self.pools.open.get(&joining.pool).map(|pool| pool.uuid);
        let (Some(uuid), Some(bdev)) = (pool, self.bdevs.get(&joining.bdev).cloned()) else {
            let error = self.unknown_pool(&joining.pool);
            return self.fail_joining(*joining, error);
        };
        let memory = match self.pool_memory() {
            Ok(memory) => memory,
            Err(error) => return self.fail_joining(*joining, error),
        };
        let (cores, force) = (self.cores.len(), joining.force);
        let job = Job::start(move || {
            let mut buffers = dma::Pool::over(memory, POOL_BLOCK_BYTES);
            let prepared = volume::pool::prepare_device(&bdev, uuid, cores, force, &mut buffers);
            prepared.map_err(pool_error)
        });
        self.pools.device_works.push(DeviceWork { memory, what: What::Prepare(job, joining) });
    }

    /// Ends those that have not come; those that have stay.
    fn fail_joining(&mut self, joining: Joining, error: RpcError) {
        let Joining { bdev, left, reply, .. } = joining;
        [bdev].iter().chain(&left).for_each(|bdev| self.bdevs.release(bdev));
        let _ = reply.send(Err(error));
    }

    /// Lets every device take its next step.
    pub(super) fn poll_pool_devices(&mut self) {
        for mut work in std::mem::take(&mut self.pools.device_works) {
            match &mut work.what {
                What::Prepare(job, _) => match job.poll() {
                    Some(device) => self.finish_prepare(work, device),
                    None => self.pools.device_works.push(work),
                },
                What::Clear(job, _) => match job.poll() {
                    Some(outcome) => self.finish_clear(work, outcome),
                    None => self.pools.device_works.push(work),
                },
            }
        }
    }

    fn finish_prepare(&mut self, work: DeviceWork, device: Result<NewDevice, RpcError>) {
        let What::Prepare(_, joining) = work.what else { return };
        let names = std::slice::from_ref(&joining.bdev);
        self.take_memory_back(work.memory, names, device.as_ref().err());
        let device = match device {
            Ok(device) if self.pools.is_serving(&joining.pool) => device,
            Ok(_) => {
                let error = self.unknown_pool(&joining.pool);
                return self.fail_joining(*joining, error);
            }
            Err(error) => return self.fail_joining(*joining, error),
        };
        let Some(pool) = self.pools.open.get_mut(&joining.pool) else { return };
        // From here on its loss is the pool's.
        pool.bdevs.push(joining.bdev.clone());
        let (name, place) = (joining.pool.clone(), pool.place);
        let id = self.pools.enter_call(&name, Then::Join(joining));
        self.tell(0, CoreMessage::PoolDevice { pool: place, id, device: Box::new(device) });
    }

    /// A device is one of the pool's.
    pub(super) fn finish_join(&mut self, mut joining: Box<Joining>, info: &volume::PoolInfo) {
        tracing::info!(pool = joining.pool, bdev = joining.bdev, "is one of the pool now");
        if let Err(error) = self.save_pool(&joining.pool) {
            joining.left.iter().for_each(|bdev| self.bdevs.release(bdev));
            return drop(joining.reply.send(Err(error)));
        }
        match joining.left.pop_front() {
            Some(next) => {
                joining.bdev = next;
                self.prepare_device(joining);
            }
            None => {
                let info = self.pool_info(info);
                let _ = joining.reply.send(Ok(json!(info)));
            }
        }
    }

    /// It did not become one.
    pub(super) fn fail_join(&mut self, joining: Joining, error: RpcError) {
        match self.pools.open.get_mut(&joining.pool) {
            Some(pool) if !pool.is_leaving() => {
                pool.bdevs.retain(|bdev| *bdev != joining.bdev);
                self.fail_joining(joining, error);
            }
            // The pool goes, and then lets go of all it has.
            _ => {
                joining.left.iter().for_each(|bdev| self.bdevs.release(bdev));
                let _ = joining.reply.send(Err(error));
            }
        }
    }

    /// Its block devices are others now.
    fn save_pool(&mut self, name: &str) -> Result<(), RpcError> {
        let Some(pool) = self.pools.open.get(name) else { return Ok(()) };
        let (uuid, bdevs) = (pool.uuid, pool.bdevs.clone());
        let saved = SavedPool { name: name.to_owned(), uuid, bdevs };
        self.commit(|state| state.enter_pool(saved), |_| Ok(()))
    }

    pub(super) fn grow_pool(&mut self, name: &str, reply: Reply) {
        if !self.pools.is_serving(name) {
            return drop(reply.send(Err(self.unknown_pool(name))));
        }
        let bdevs = self.pools.open.get(name).map(|pool| pool.bdevs.clone()).unwrap_or_default();
        let bytes = bdevs.into_iter().map(|bdev| {
            let bytes = self.bdev_bytes(&bdev);
            (bdev, bytes)
        });
        let call = Call::Grow(bytes.collect());
        self.ask_pool(name, call, Then::Tell(reply));
    }

    /// Bytes of a block device, 0 if it is not there.
    pub(super) fn bdev_bytes(&self, name: &str) -> u64 {
        self.bdevs.get(name).map_or(0, |bdev| {
            let geometry = bdev.geometry();
            geometry.block_count * u64::from(geometry.block_bytes)
        })
    }

    pub(super) fn remove_from_pool(&mut self, params: PoolRemove, reply: Reply) {
        let PoolRemove { name, bdev, cancel } = params;
        if !self.pools.is_serving(&name) {
            return drop(reply.send(Err(self.unknown_pool(&name))));
        }
        match cancel {
            true => self.ask_pool(&name, Call::CancelRemoval(bdev), Then::Cancel(reply)),
            false => {
                self.ask_pool(&name, Call::Remove(bdev.clone()), Then::Remove(bdev, reply));
            }
        }
    }

    /// A removal has begun: whoever asked is told how far it is.
    pub(super) fn begin_removal(&mut self, pool: &str, bdev: String, reply: Reply) {
        if let Some(open) = self.pools.open.get_mut(pool) {
            (open.removing, open.not_removed) = (Some(bdev.clone()), None);
        }
        self.ask_pool(pool, Call::AwaitRemoval, Then::Removed(bdev));
        self.ask_pool(pool, Call::Info, Then::Tell(reply));
    }

    /// A device is of the pool no longer.
    pub(super) fn finish_removal(&mut self, pool: &str, bdev: &str) {
        tracing::info!(pool, bdev, "is of the pool no longer");
        if let Some(open) = self.pools.open.get_mut(pool) {
            open.removing = None;
            open.bdevs.retain(|known| known != bdev);
        }
        if let Err(error) = self.save_pool(pool) {
            tracing::error!(pool, %error, "its state cannot be saved");
        }
        let (Some(device), Ok(memory)) = (self.bdevs.get(bdev).cloned(), self.pool_memory()) else {
            // Its label does not count. Whoever uses it again has to force that.
            tracing::warn!(bdev, "its label stays on it");
            return self.bdevs.release(bdev);
        };
        let job = Job::start(move || {
            let mut buffers = dma::Pool::over(memory, POOL_BLOCK_BYTES);
            volume::pool::clear_label(&device, &mut buffers).map_err(pool_error)
        });
        let what = What::Clear(job, bdev.to_owned());
        self.pools.device_works.push(DeviceWork { memory, what });
    }

    fn finish_clear(&mut self, work: DeviceWork, outcome: Result<(), RpcError>) {
        let What::Clear(_, bdev) = work.what else { return };
        let error = outcome.as_ref().err();
        if let Some(error) = error {
            tracing::warn!(bdev, %error, "its label stays on it");
        }
        self.take_memory_back(work.memory, std::slice::from_ref(&bdev), error);
        self.bdevs.release(&bdev);
    }

    pub(super) fn fail_removal(&mut self, pool: &str, bdev: &str, error: &RpcError) {
        tracing::warn!(pool, bdev, %error, "was not removed");
        if let Some(open) = self.pools.open.get_mut(pool) {
            open.removing = None;
            open.not_removed = Some(format!("not removed: {}", error.message));
        }
    }

    /// A pool whose device is on its way out stays until that has gone.
    pub(super) fn check_no_removal(&self, pool: &str) -> Result<(), RpcError> {
        let open = self.pools.open.get(pool);
        let adds =
            self.pools.device_works.iter().any(
                |work| matches!(&work.what, What::Prepare(_, joining) if joining.pool == pool),
            );
        if adds || self.pools.calls_to(pool).any(|then| matches!(then, Then::Join(_))) {
            return Err(in_use(format!("a block device is being added to {pool}")));
        }
        match open.and_then(|open| open.removing.as_ref()) {
            Some(bdev) => {
                let error = in_use(format!("{bdev} is being removed from {pool}"));
                let advice = format!("wait, or: forebay pool remove {pool} {bdev} --cancel");
                Err(error.with_advice(advice))
            }
            None => Ok(()),
        }
    }
}
