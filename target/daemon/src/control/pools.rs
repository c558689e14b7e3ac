//! Pools: made, looked for, opened, closed.
//!
//! Reading and writing what is on the devices of a pool that is not open yet takes seconds: that is
//! a [`Job`]. Its lanes go to the cores then; the owner's, which core 0 has, is asked by messages
//! from there on (`volumes`). How a pool goes is in `leaving`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use api::results::FoundPool;
use api::{ErrorCode, PoolCheck, PoolCreate, PoolImport, RpcError};
use bdev::{Bdev, Health};
use dma::DmaSpan;
use serde_json::json;
use uuid::Uuid;
use volume::{Call, CreateOptions, GiveUp, Label, Lane, OpenOptions, PoolError};

use super::Control;
use super::exports::{bdev_error, in_use, not_found};
use super::gathering::Gathering;
use super::job::Job;
use super::leaving::Stage;
use super::pool_check::Checked;
use super::pool_devices::DeviceWork;
use super::socket::Reply;
use super::volume_bdev::VolumeBdev;
use super::volumes::{PoolCall, Rollback, Then};
use crate::limits::{MAX_POOLS, POOL_BLOCK_BYTES, POOL_MEMORY_BYTES, POOLS_OPEN_LIMIT};
use crate::message::CoreMessage;
use crate::state::SavedPool;

/// How often each pool is asked how full it is.
const WATCH_PERIOD: Duration = Duration::from_secs(10);

/// Who has the block devices while pools are looked for.
const SEARCH: &str = "a search for pools";

/// The pools that are open, or become it.
pub(super) struct Pools {
    /// By name.
    pub(super) open: BTreeMap<String, OpenPool>,
    pub(super) works: Vec<Work>,
    pub(super) device_works: Vec<DeviceWork>,
    /// Why pools of the state are not open, by name.
    pub(super) down: BTreeMap<String, String>,
    /// Calls that owners have not answered yet.
    pub(super) calls: HashMap<u64, PoolCall>,
    pub(super) next_id: u64,
    pub(super) gatherings: HashMap<u64, Gathering>,
    pub(super) rollbacks: Vec<Rollback>,
    /// A block device has come: pools that are not open may be on it.
    pub(super) look_again: bool,
    watch_due: Instant,
}

/// A pool whose lanes the cores have.
pub(super) struct OpenPool {
    /// Where it stands in the tables of the cores.
    pub(super) place: usize,
    pub(super) uuid: Uuid,
    pub(super) bdevs: Vec<String>,
    pub(super) memory: DmaSpan,
    pub(super) cache: bool,
    /// A device had not ended its work for a lane when that was given up: it may still use the
    /// memory.
    pub(super) busy: bool,
    /// A device of it has failed.
    pub(super) lost: Arc<AtomicBool>,
    /// By full name.
    pub(super) volumes: BTreeMap<String, Arc<VolumeBdev>>,
    /// Numbers of those that are open for I/O, by full name.
    pub(super) handles: BTreeMap<String, u32>,
    /// Volumes that cannot be used, with the reason.
    pub(super) damaged: Vec<(String, String)>,
    /// A block device that is on its way out, or why the last one is not out.
    pub(super) removing: Option<String>,
    pub(super) not_removed: Option<String>,
    /// Percentage that was warned of.
    pub(super) warned: u8,
    pub(super) stage: Stage,
}

/// Something that a job does.
pub(super) struct Work {
    pub(super) memory: DmaSpan,
    /// Claimed for it.
    pub(super) bdevs: Vec<String>,
    pub(super) what: What,
}

pub(super) enum What {
    Check(Job<Checked>, Reply),
    Search(Job<Vec<Label>>, Wanted),
    Open(Job<Vec<Lane>>, String, Option<Reply>),
}

/// Why pools are looked for.
pub(super) enum Wanted {
    Check(PoolCheck, Reply),
    List(Reply),
    Import(PoolImport, Reply),
    /// Those of the state.
    Saved,
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            works: Vec::new(),
            device_works: Vec::new(),
            down: BTreeMap::new(),
            calls: HashMap::new(),
            next_id: 0,
            gatherings: HashMap::new(),
            rollbacks: Vec::new(),
            look_again: false,
            watch_due: Instant::now(),
        }
    }
}

impl Control {
    pub(super) fn create_pool(&mut self, params: PoolCreate, reply: Reply) {
        let PoolCreate { name, bdevs, force, journal_bytes } = params;
        let options = CreateOptions { journal_bytes, force, created_s: super::volumes::now_s() };
        let cores = self.cores.len();
        let made = self.check_new_pool(&name).and_then(|()| self.prepare(&name, &bdevs));
        let (devices, memory) = match made {
            Ok(made) => made,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if devices.iter().any(|device| !device.keeps_data()) {
            tracing::warn!(pool = name, "it is in memory, and gone after a restart");
        }
        let pool = name.clone();
        let job = Job::start(move || {
            let mut buffers = dma::Pool::over(memory, POOL_BLOCK_BYTES);
            volume::pool::create(&pool, &devices, &options, &mut buffers).map_err(pool_error)?;
            open(&devices, cores, buffers, false)
        });
        self.pools.works.push(Work { memory, bdevs, what: What::Open(job, name, Some(reply)) });
    }

    fn check_new_pool(&self, name: &str) -> Result<(), RpcError> {
        let known = self.state.pools.iter().any(|saved| saved.name == name);
        if self.pools.open.contains_key(name) || known {
            let error = RpcError::new(ErrorCode::Exists, format!("there is a pool {name} already"));
            return Err(error.with_advice("forebay pool list shows those there are"));
        }
        self.check_pool_place(name)
    }

    fn check_pool_place(&self, name: &str) -> Result<(), RpcError> {
        if self.pools.is_opening(name) {
            return Err(in_use(format!("{name} is being made or opened; try again in a moment")));
        }
        let opening = self.pools.works.iter().filter(|one| matches!(one.what, What::Open(..)));
        if self.pools.open.len() + opening.count() >= MAX_POOLS {
            let message = format!("no more than {MAX_POOLS} pools are open at a time");
            let error = RpcError::new(ErrorCode::Limit, message);
            return Err(error.with_advice("forebay pool export NAME closes one"));
        }
        Ok(())
    }

    /// Claims block devices for a pool, and gives it memory.
    pub(super) fn prepare(
        &mut self,
        pool: &str,
        bdevs: &[String],
    ) -> Result<(Vec<Arc<dyn Bdev>>, DmaSpan), RpcError> {
        let memory = self.pool_memory()?;
        match self.claim_all(bdevs, &format!("pool {pool}")) {
            Ok(devices) => Ok((devices, memory)),
            Err(error) => {
                self.arena.give_back(memory);
                Err(error)
            }
        }
    }

    pub(super) fn claim_all(
        &mut self,
        names: &[String],
        holder: &str,
    ) -> Result<Vec<Arc<dyn Bdev>>, RpcError> {
        let mut devices = Vec::new();
        for name in names {
            match self.bdevs.claim(name, holder) {
                Ok(device) => devices.push(device),
                Err(error) => {
                    devices.iter().for_each(|device| self.bdevs.release(device.name()));
                    return Err(bdev_error(error));
                }
            }
        }
        Ok(devices)
    }

    pub(super) fn pool_memory(&self) -> Result<DmaSpan, RpcError> {
        self.arena.carve(POOL_MEMORY_BYTES, POOL_BLOCK_BYTES).map_err(|error| {
            let error = RpcError::new(ErrorCode::Unavailable, error.to_string());
            error.with_advice("start forebay-target with more --memory")
        })
    }

    pub(super) fn import_pool(&mut self, params: PoolImport, reply: Reply) {
        let name = &params.name;
        let open = self
            .pools
            .open
            .iter()
            .find(|(known, pool)| *known == name || pool.uuid.to_string() == *name);
        match open {
            Some((name, _)) => {
                let error = RpcError::new(ErrorCode::Exists, format!("{name} is open already"));
                drop(reply.send(Err(error)));
            }
            None => self.search(Wanted::Import(params, reply)),
        }
    }

    pub(super) fn scan_pools(&mut self, reply: Reply) {
        self.search(Wanted::List(reply));
    }

    /// Looks at every block device that nobody has.
    pub(super) fn search(&mut self, wanted: Wanted) {
        let free = self.bdevs.iter().filter(|(bdev, holder)| {
            holder.is_none() && !bdev.name().contains('/') && bdev.health() == Health::Live
        });
        let bdevs: Vec<String> = free.map(|(bdev, _)| bdev.name().to_owned()).collect();
        let memory = match self.pool_memory() {
            Ok(memory) => memory,
            Err(error) => return self.fail_search(wanted, error),
        };
        match self.claim_all(&bdevs, SEARCH) {
            Ok(devices) => {
                let job = Job::start(move || {
                    let mut buffers = dma::Pool::over(memory, POOL_BLOCK_BYTES);
                    volume::pool::scan(&devices, &mut buffers).map_err(pool_error)
                });
                self.pools.works.push(Work { memory, bdevs, what: What::Search(job, wanted) });
            }
            Err(error) => {
                self.arena.give_back(memory);
                self.fail_search(wanted, error);
            }
        }
    }

    fn fail_search(&mut self, wanted: Wanted, error: RpcError) {
        match wanted {
            Wanted::List(reply) | Wanted::Import(_, reply) | Wanted::Check(_, reply) => {
                drop(reply.send(Err(error)));
            }
            Wanted::Saved => {
                for name in self.closed_pools() {
                    self.note_pool_down(&name, &error.message);
                }
            }
        }
    }

    /// Opens again the pools that were open before a restart, and waits for them: exports on their
    /// volumes come after them.
    pub(crate) async fn restore_pools(&mut self) {
        if self.state.pools.is_empty() {
            return;
        }
        // SSDs that have come call for it, too.
        self.pools.look_again = false;
        self.search(Wanted::Saved);
        let limit = Instant::now() + POOLS_OPEN_LIMIT;
        if !self.wait_until(limit, |control| control.pools.is_settled()).await {
            tracing::error!("pools are still being opened; their exports come when they have");
        }
    }

    /// A block device has come.
    pub(super) fn wake_pools(&mut self) {
        self.pools.look_again = !self.closed_pools().is_empty();
    }

    /// Pools of the state that are neither open nor on their way.
    fn closed_pools(&self) -> Vec<String> {
        let names = self.state.pools.iter().map(|saved| saved.name.clone());
        let closed =
            |name: &String| !self.pools.open.contains_key(name) && !self.pools.is_opening(name);
        names.filter(closed).collect()
    }

    pub(super) fn note_pool_down(&mut self, name: &str, reason: &str) {
        tracing::error!(pool = name, reason, "not open");
        self.pools.down.insert(name.to_owned(), reason.to_owned());
    }

    /// Lets every pool take its next step.
    pub(super) fn poll_pools(&mut self, now: Instant) {
        for mut work in std::mem::take(&mut self.pools.works) {
            match &mut work.what {
                What::Search(job, _) => match job.poll() {
                    Some(labels) => self.finish_search(work, labels),
                    None => self.pools.works.push(work),
                },
                What::Check(job, _) => match job.poll() {
                    Some(checked) => self.finish_check(work, checked),
                    None => self.pools.works.push(work),
                },
                What::Open(job, ..) => match job.poll() {
                    Some(lanes) => self.finish_open(work, lanes),
                    None => self.pools.works.push(work),
                },
            }
        }
        let searching = |work: &Work| matches!(work.what, What::Search(..));
        if self.pools.look_again && !self.pools.works.iter().any(searching) {
            self.pools.look_again = false;
            self.search(Wanted::Saved);
        }
        let leaving = self.pools.open.iter().filter(|(_, pool)| pool.is_leaving());
        for name in leaving.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.poll_leaving(&name);
        }
        self.poll_pool_devices();
        self.poll_rollbacks(now);
        if now >= self.pools.watch_due {
            self.pools.watch_due = now + WATCH_PERIOD;
            for name in self.pools.serving() {
                self.ask_pool(&name, Call::Info, Then::Watch);
            }
        }
    }

    fn finish_search(&mut self, work: Work, labels: Result<Vec<Label>, RpcError>) {
        let Work { memory, bdevs, what } = work;
        bdevs.iter().for_each(|name| self.bdevs.release(name));
        self.take_memory_back(memory, &bdevs, labels.as_ref().err());
        let What::Search(_, wanted) = what else { return };
        let found = match labels {
            Ok(labels) => group(labels),
            Err(error) => return self.fail_search(wanted, error),
        };
        match wanted {
            Wanted::List(reply) => {
                let found: Vec<FoundPool> = found.into_values().collect();
                let _ = reply.send(Ok(json!(found)));
            }
            Wanted::Import(params, reply) => match choose(&found, &params.name) {
                Ok(found) => self.open_pool(found, params.force, Some(reply)),
                Err(error) => drop(reply.send(Err(error))),
            },
            Wanted::Check(params, reply) => match choose(&found, &params.name) {
                Ok(found) => self.start_check(found, params.repair, reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Wanted::Saved => {
                for saved in self.state.pools.clone() {
                    if !self.closed_pools().contains(&saved.name) {
                        continue;
                    }
                    match complete(found.get(&saved.uuid), &saved) {
                        Ok(found) => self.open_pool(found, false, None),
                        Err(reason) => self.note_pool_down(&saved.name, &reason),
                    }
                }
            }
        }
    }

    /// A job is done with memory. What a device may write into still is never used again.
    pub(super) fn take_memory_back(
        &self,
        memory: DmaSpan,
        bdevs: &[String],
        error: Option<&RpcError>,
    ) {
        let live =
            |name: &String| self.bdevs.get(name).is_none_or(|bdev| bdev.health() == Health::Live);
        let panicked = error.is_some_and(|error| error.code == ErrorCode::Internal);
        if !panicked && bdevs.iter().all(live) {
            self.arena.give_back(memory);
        }
    }

    fn open_pool(&mut self, found: FoundPool, force: bool, reply: Option<Reply>) {
        let FoundPool { name, bdevs, .. } = found;
        let cores = self.cores.len();
        match self.check_pool_place(&name).and_then(|()| self.prepare(&name, &bdevs)) {
            Ok((devices, memory)) => {
                let job = Job::start(move || {
                    let buffers = dma::Pool::over(memory, POOL_BLOCK_BYTES);
                    open(&devices, cores, buffers, force)
                });
                self.pools.works.push(Work { memory, bdevs, what: What::Open(job, name, reply) });
            }
            Err(error) => self.fail_open(&name, reply, error),
        }
    }

    fn fail_open(&mut self, name: &str, reply: Option<Reply>, error: RpcError) {
        match reply {
            Some(reply) => drop(reply.send(Err(error))),
            None => self.note_pool_down(name, &error.message),
        }
    }

    /// The lanes of a pool go to the cores.
    fn finish_open(&mut self, work: Work, lanes: Result<Vec<Lane>, RpcError>) {
        let Work { memory, bdevs, what } = work;
        let What::Open(_, name, reply) = what else { return };
        let lanes = match lanes {
            Ok(lanes) => lanes,
            Err(error) => {
                bdevs.iter().for_each(|name| self.bdevs.release(name));
                self.take_memory_back(memory, &bdevs, Some(&error));
                return self.fail_open(&name, reply, error);
            }
        };
        let taken = |place: &usize| self.pools.open.values().all(|pool| pool.place != *place);
        let place = (0..MAX_POOLS).find(taken).expect("checked before it was opened");
        let cached = |name: &String| {
            self.bdevs.get(name).is_some_and(|bdev| bdev.geometry().volatile_write_cache)
        };
        let pool = OpenPool {
            place,
            uuid: Uuid::nil(),
            cache: bdevs.iter().any(cached),
            bdevs,
            memory,
            busy: false,
            lost: Arc::default(),
            volumes: BTreeMap::new(),
            handles: BTreeMap::new(),
            damaged: Vec::new(),
            removing: None,
            not_removed: None,
            warned: 0,
            stage: Stage::Opening,
        };
        self.pools.open.insert(name.clone(), pool);
        for (core, lane) in lanes.into_iter().enumerate() {
            self.tell(core, CoreMessage::AddLane { pool: place, lane: Box::new(lane) });
        }
        self.ask_pool(&name, Call::Info, Then::Identify(reply));
    }

    /// Owner and volumes of a pool are known: it is kept from now on, and what is exported of it is
    /// served.
    pub(super) fn admit_pool(&mut self, name: &str) -> Result<(), RpcError> {
        let Some(pool) = self.pools.open.get_mut(name) else { return Ok(()) };
        let (uuid, bdevs) = (pool.uuid, pool.bdevs.clone());
        let saved = SavedPool { name: name.to_owned(), uuid, bdevs };
        self.commit(|state| state.enter_pool(saved), |_| Ok(()))?;
        if let Some(pool) = self.pools.open.get_mut(name) {
            pool.stage = Stage::Serving;
        }
        self.pools.down.remove(name);
        tracing::info!(pool = name, %uuid, "open");
        for volume in self.pools.volumes_of(name) {
            self.serve_waiting(&volume);
        }
        Ok(())
    }

    pub(super) fn unknown_pool(&self, name: &str) -> RpcError {
        match self.pools.down.get(name) {
            Some(reason) => {
                let message = format!("pool {name} is not open: {reason}");
                RpcError::new(ErrorCode::Unavailable, message)
                    .with_advice(format!("mend that, then: forebay pool import {name}"))
            }
            None => not_found(format!("no pool is named {name}")).with_advice(
                "forebay pool list shows those there are, pool import those there could be",
            ),
        }
    }
}

impl Pools {
    /// Whether a job makes or opens this pool.
    pub(super) fn is_opening(&self, name: &str) -> bool {
        let opens = |work: &Work| matches!(&work.what, What::Open(_, one, _) if one == name);
        self.works.iter().any(opens)
    }

    /// Whether every pool is open or not, and none on its way.
    pub(super) fn is_settled(&self) -> bool {
        let settled = |pool: &OpenPool| matches!(pool.stage, Stage::Serving);
        self.works.is_empty() && !self.look_again && self.open.values().all(settled)
    }

    pub(super) fn is_serving(&self, name: &str) -> bool {
        self.open.get(name).is_some_and(|pool| matches!(pool.stage, Stage::Serving))
    }

    /// Names of the pools that serve.
    pub(super) fn serving(&self) -> Vec<String> {
        self.open.keys().filter(|name| self.is_serving(name)).cloned().collect()
    }

    /// Full names of a pool's volumes and snapshots.
    pub(super) fn volumes_of(&self, pool: &str) -> Vec<String> {
        self.open.get(pool).map(|pool| pool.volumes.keys().cloned().collect()).unwrap_or_default()
    }

    /// The pool of a volume or snapshot.
    pub(super) fn pool_of(&self, volume: &str) -> Option<(&str, &OpenPool)> {
        let (pool, _) = api::split_volume_name(volume)?;
        self.open.get_key_value(pool).map(|(name, pool)| (name.as_str(), pool))
    }

    /// A volume or snapshot by its full name.
    pub(super) fn volume(&self, name: &str) -> Option<&Arc<VolumeBdev>> {
        self.pool_of(name)?.1.volumes.get(name)
    }
}

impl OpenPool {
    pub(super) fn is_leaving(&self) -> bool {
        !matches!(self.stage, Stage::Opening | Stage::Serving)
    }
}

/// Opens a pool; a lane for each core.
fn open(
    devices: &[Arc<dyn Bdev>],
    cores: usize,
    memory: dma::Pool,
    force: bool,
) -> Result<Vec<Lane>, RpcError> {
    let give_up = if force { GiveUp::Unreadable } else { GiveUp::Wrong };
    let options = OpenOptions { lanes: cores, memory, give_up, planted: None };
    volume::pool::open(devices, options).map_err(pool_error)
}

/// Labels by pool, of those that can be opened.
fn group(labels: Vec<Label>) -> BTreeMap<Uuid, FoundPool> {
    let mut found = BTreeMap::new();
    let labels = labels.into_iter().filter(|label| label.member);
    for label in labels.filter(|label| label.state != volume::format::PoolState::Destroyed) {
        let pool = found.entry(label.uuid).or_insert_with(|| FoundPool {
            name: label.pool,
            uuid: label.uuid.to_string(),
            bdevs: Vec::new(),
            bdevs_expected: label.devices as u32,
            exported: label.state == volume::format::PoolState::Exported,
        });
        pool.bdevs.push(label.device);
    }
    found
}

/// The pool that somebody means by a name or UUID.
fn choose(found: &BTreeMap<Uuid, FoundPool>, name: &str) -> Result<FoundPool, RpcError> {
    let meant = found.values().filter(|pool| pool.name == name || pool.uuid == name);
    let meant: Vec<&FoundPool> = meant.collect();
    match meant.as_slice() {
        [] => Err(not_found(format!("no pool {name} is on the block devices that nobody uses"))
            .with_advice(
                "forebay pool import shows those there are; forebay device bind adds SSDs",
            )),
        [pool] if pool.bdevs.len() < pool.bdevs_expected as usize => {
            let message = format!(
                "{name} has {} block devices, of which {} are there",
                pool.bdevs_expected,
                pool.bdevs.len()
            );
            Err(RpcError::new(ErrorCode::Unavailable, message)
                .with_found(pool.bdevs.clone())
                .with_advice("bring the others, such as by forebay device bind"))
        }
        [pool] => Ok((*pool).clone()),
        several => {
            let error = in_use(format!("{} pools are named {name}", several.len()));
            let uuids = several.iter().map(|pool| pool.uuid.clone()).collect();
            Err(error.with_found(uuids).with_advice("name it by its UUID"))
        }
    }
}

/// A pool of the state, if all its block devices are there.
fn complete(found: Option<&FoundPool>, saved: &SavedPool) -> Result<FoundPool, String> {
    match found {
        Some(found) if found.bdevs.len() >= found.bdevs_expected as usize => Ok(found.clone()),
        Some(found) => Err(missing(saved, &found.bdevs)),
        None => Err(missing(saved, &[])),
    }
}

fn missing(saved: &SavedPool, there: &[String]) -> String {
    let missing = saved.bdevs.iter().filter(|bdev| !there.contains(bdev));
    let missing: Vec<&str> = missing.map(String::as_str).collect();
    format!("missing, or without its label: {}", missing.join(", "))
}

pub(super) fn pool_error(error: PoolError) -> RpcError {
    let message = error.to_string();
    match error {
        PoolError::NotEmpty { .. } | PoolError::Member { .. } => {
            let error = RpcError::new(ErrorCode::NeedsForce, message);
            error.with_advice("--force destroys what is there")
        }
        PoolError::DamagedVolumes { pool, .. } => {
            let error = RpcError::new(ErrorCode::NeedsForce, message);
            error.with_advice(format!(
                "forebay pool check {pool} says more; if it cannot be read again, forebay pool \
                 import {pool} --force opens the others and gives these up"
            ))
        }
        PoolError::Bdev(error) => bdev_error(error),
        PoolError::Device { .. } | PoolError::Journal { .. } => {
            RpcError::new(ErrorCode::InvalidParams, message)
        }
        _ => RpcError::new(ErrorCode::Failed, message),
    }
}
