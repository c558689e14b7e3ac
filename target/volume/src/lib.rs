//! Pools of block devices, and thin volumes in them with snapshots and clones.
//!
//! `docs/volumes.md` says how it works and why nothing acknowledged is lost;
//! `docs/on-disk-format.md` has the bytes.
//!
//! This is the outside of the engine only, with what control calls do to names and sizes; it holds
//! no data. The engine itself takes its place.
#![forbid(unsafe_code)]

pub mod limits;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bdev::{Busy, Completion, Io};
use nvme_spec::status::Status;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// The end of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// What [`Lane::attach`] gave.
    pub channel: u32,
    /// Tag and status.
    pub completion: Completion,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKind {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
}

/// A volume or snapshot.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct VolumeInfo {
    pub id: u32,
    pub name: String,
    pub kind: VolumeKind,
    pub parent: Option<String>,
    pub uuid: Uuid,
    pub read_only: bool,
    pub bytes: u64,
    pub block_bytes: u32,
    pub mapped_bytes: u64,
    pub unique_bytes: u64,
    pub labels: BTreeMap<String, String>,
    pub description: String,
    pub created_s: u64,
    pub group: Option<Uuid>,
    pub users: u32,
}

/// A pool.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct PoolInfo {
    pub name: String,
    pub uuid: Uuid,
    pub bytes: u64,
    pub free_bytes: u64,
    pub releasing_bytes: u64,
    pub journal: (u64, u64),
    pub map_bytes: u64,
    pub volumes: usize,
    pub damaged: Vec<(String, String)>,
    pub broken: bool,
}

/// A request.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Call {
    Create(CreateVolume),
    Delete(String),
    Snapshot(Vec<(String, String)>),
    Clone { snapshot: String, name: String, read_only: bool },
    Rollback { volume: String, snapshot: String, kept: String },
    Resize { name: String, bytes: u64, force: bool },
    Describe {
        name: String,
        rename: Option<String>,
        labels: BTreeMap<String, Option<String>>,
        description: Option<String>,
    },
    Open(String),
    Close(u32),
    List,
    Info,
    Checkpoint,
}

/// A volume to be made.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct CreateVolume {
    pub name: String,
    pub bytes: u64,
    pub block_bytes: u32,
    pub labels: BTreeMap<String, String>,
    pub description: String,
    pub created_s: u64,
}

/// An answer.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Reply {
    Done,
    Handle(Arc<VolumeHandle>),
    Volumes(Vec<VolumeInfo>),
    Pool(PoolInfo),
}

/// Why a call is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VolumeError {
    #[error("the pool has no volume or snapshot named {name}")]
    Unknown { name: String },
    #[error("the pool has a volume or snapshot named {name} already")]
    Exists { name: String },
    #[error("{name:?} is no name")]
    Name { name: String },
    #[error("{name}: {bytes} bytes are not possible: {reason}")]
    Size { name: String, bytes: u64, reason: &'static str },
    #[error("{name} is exported or otherwise in use; detach it first")]
    InUse { name: String },
    #[error("{name} is {what}")]
    Kind { name: String, what: &'static str },
    #[error("{name} has written blocks beyond {bytes} bytes; shrinking needs `--force`")]
    Written { name: String, bytes: u64 },
    #[error("too much for one change: {bytes} bytes")]
    TooLarge { bytes: usize },
    #[error("{reason}")]
    Invalid { reason: String },
    #[error("the pool takes no changes: its journal cannot be written")]
    Broken,
}

/// A volume or snapshot as the lanes know it.
#[derive(Debug)]
pub struct VolumeHandle {
    id: u32,
    uuid: Uuid,
    block_bytes: u32,
    read_only: bool,
    block_count: AtomicU64,
}

#[allow(missing_docs)]
impl VolumeHandle {
    pub fn id(&self) -> u32 {
        self.id
    }
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }
    pub fn nguid(&self) -> Uuid {
        Uuid::from_u128(self.uuid.as_u128() ^ 1)
    }
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }
    pub fn block_count(&self) -> u64 {
        self.block_count.load(Ordering::Acquire)
    }
    pub fn read_only(&self) -> bool {
        self.read_only
    }
}

struct Known {
    info: VolumeInfo,
    handle: Arc<VolumeHandle>,
}

struct Owner {
    info: PoolInfo,
    volumes: BTreeMap<u32, Known>,
    next: u32,
    replies: VecDeque<(u64, Result<Reply, VolumeError>)>,
}

/// One core's way to a pool.
pub struct Lane {
    volumes: Vec<Option<Arc<VolumeHandle>>>,
    done: VecDeque<Done>,
    owner: Option<Box<Owner>>,
}

#[allow(missing_docs)]
impl Lane {
    pub fn attach(&mut self, handle: Arc<VolumeHandle>) -> u32 {
        self.volumes.push(Some(handle));
        self.volumes.len() as u32 - 1
    }

    pub fn detach(&mut self, channel: u32) {
        self.volumes[channel as usize] = None;
    }

    pub fn is_owner(&self) -> bool {
        self.owner.is_some()
    }

    pub fn submit(&mut self, channel: u32, io: Io) -> Result<(), Busy> {
        let completion = Completion { tag: io.tag, status: Status::SUCCESS };
        self.done.push_back(Done { channel, completion });
        Ok(())
    }

    pub fn poll(&mut self, _: Instant, done: &mut Vec<Done>) -> usize {
        let work = self.done.len();
        done.extend(self.done.drain(..));
        work
    }

    pub fn call(&mut self, id: u64, call: Call, now_s: u64) {
        let Some(owner) = &mut self.owner else { panic!("a call on a lane without the owner") };
        let reply = owner.execute(call, now_s);
        owner.replies.push_back((id, reply));
    }

    pub fn next_reply(&mut self) -> Option<(u64, Result<Reply, VolumeError>)> {
        self.owner.as_mut()?.replies.pop_front()
    }
}

impl Owner {
    fn find(&self, name: &str) -> Result<u32, VolumeError> {
        let found = self.volumes.iter().find(|(_, known)| known.info.name == name);
        found.map(|(id, _)| *id).ok_or(VolumeError::Unknown { name: name.to_owned() })
    }

    fn add(&mut self, mut info: VolumeInfo) -> Result<Vec<VolumeInfo>, VolumeError> {
        if self.find(&info.name).is_ok() {
            return Err(VolumeError::Exists { name: info.name });
        }
        (info.id, info.uuid, info.users) = (self.next, Uuid::new_v4(), 0);
        self.next += 1;
        let handle = Arc::new(VolumeHandle {
            id: info.id,
            uuid: info.uuid,
            block_bytes: info.block_bytes,
            read_only: info.read_only,
            block_count: AtomicU64::new(info.bytes / u64::from(info.block_bytes)),
        });
        self.volumes.insert(info.id, Known { info: info.clone(), handle });
        Ok(vec![info])
    }

    fn execute(&mut self, call: Call, now_s: u64) -> Result<Reply, VolumeError> {
        match call {
            Call::Create(create) => {
                let CreateVolume { name, bytes, block_bytes, labels, description, created_s } =
                    create;
                let info = VolumeInfo {
                    id: 0,
                    name,
                    kind: VolumeKind::Volume,
                    parent: None,
                    uuid: Uuid::nil(),
                    read_only: false,
                    bytes,
                    block_bytes,
                    mapped_bytes: 0,
                    unique_bytes: 0,
                    labels,
                    description,
                    created_s,
                    group: None,
                    users: 0,
                };
                self.add(info).map(Reply::Volumes)
            }
            Call::Delete(name) => {
                let id = self.find(&name)?;
                if self.volumes[&id].info.users > 0 {
                    return Err(VolumeError::InUse { name });
                }
                self.volumes.remove(&id);
                Ok(Reply::Done)
            }
            Call::Snapshot(members) => {
                let mut made = Vec::new();
                let group = (members.len() > 1).then(Uuid::new_v4);
                for (volume, name) in members {
                    let mut info = self.volumes[&self.find(&volume)?].info.clone();
                    (info.name, info.kind, info.read_only) = (name, VolumeKind::Snapshot, true);
                    (info.group, info.created_s) = (group, now_s);
                    made.extend(self.add(info)?);
                }
                Ok(Reply::Volumes(made))
            }
            Call::Clone { snapshot, name, read_only } => {
                let mut info = self.volumes[&self.find(&snapshot)?].info.clone();
                (info.name, info.kind, info.parent) = (name, VolumeKind::Volume, Some(snapshot));
                (info.read_only, info.created_s) = (read_only, now_s);
                self.add(info).map(Reply::Volumes)
            }
            Call::Rollback { volume, snapshot, kept } => {
                let id = self.find(&volume)?;
                self.find(&snapshot)?;
                if self.volumes[&id].info.users > 0 {
                    return Err(VolumeError::InUse { name: volume });
                }
                let mut info = self.volumes[&id].info.clone();
                (info.name, info.kind, info.read_only) = (kept, VolumeKind::Snapshot, true);
                self.add(info)?;
                Ok(Reply::Volumes(vec![self.volumes[&id].info.clone()]))
            }
            Call::Resize { name, bytes, .. } => {
                let id = self.find(&name)?;
                let Some(known) = self.volumes.get_mut(&id) else { return Ok(Reply::Done) };
                known.info.bytes = bytes;
                let blocks = bytes / u64::from(known.info.block_bytes);
                known.handle.block_count.store(blocks, Ordering::Release);
                Ok(Reply::Volumes(vec![known.info.clone()]))
            }
            Call::Describe { name, rename, labels, description } => {
                let id = self.find(&name)?;
                if let Some(name) = &rename
                    && self.find(name).is_ok()
                {
                    return Err(VolumeError::Exists { name: name.clone() });
                }
                let Some(known) = self.volumes.get_mut(&id) else { return Ok(Reply::Done) };
                known.info.name = rename.unwrap_or(name);
                for (key, value) in labels {
                    match value {
                        Some(value) => known.info.labels.insert(key, value),
                        None => known.info.labels.remove(&key),
                    };
                }
                known.info.description = description.unwrap_or(known.info.description.clone());
                Ok(Reply::Volumes(vec![known.info.clone()]))
            }
            Call::Open(name) => {
                let id = self.find(&name)?;
                let Some(known) = self.volumes.get_mut(&id) else { return Ok(Reply::Done) };
                known.info.users += 1;
                Ok(Reply::Handle(Arc::clone(&known.handle)))
            }
            Call::Close(id) => {
                if let Some(known) = self.volumes.get_mut(&id) {
                    known.info.users -= 1;
                }
                Ok(Reply::Done)
            }
            Call::List => {
                Ok(Reply::Volumes(self.volumes.values().map(|k| k.info.clone()).collect()))
            }
            Call::Info => {
                Ok(Reply::Pool(PoolInfo { volumes: self.volumes.len(), ..self.info.clone() }))
            }
            Call::Checkpoint => Ok(Reply::Done),
        }
    }
}

/// Making, finding and opening pools.
pub mod pool {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use bdev::Bdev;
    use thiserror::Error;
    use uuid::Uuid;

    use super::{Lane, Owner, PoolInfo};

    /// How a pool is made.
    #[derive(Clone, Debug, Default)]
    #[allow(missing_docs)]
    pub struct CreateOptions {
        pub journal_bytes: Option<u64>,
        pub force: bool,
        pub created_s: u64,
    }

    /// What a device says of the pool that it is of.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[allow(missing_docs)]
    pub struct Label {
        pub pool: String,
        pub uuid: Uuid,
        pub bdev: String,
        pub index: u32,
        pub devices: u32,
    }

    /// Why not.
    #[derive(Debug, Error)]
    #[allow(missing_docs)]
    pub enum PoolError {
        #[error("{bdev} is not empty: {found}")]
        NotEmpty { bdev: String, found: String },
        #[error("{reason}")]
        Other { reason: String },
    }

    /// Labels by UUID of the block device: what would be on it.
    static LABELS: Mutex<BTreeMap<Uuid, Label>> = Mutex::new(BTreeMap::new());

    /// Makes a pool.
    pub fn create(
        name: &str,
        devices: &[Arc<dyn Bdev>],
        options: &CreateOptions,
        _: &mut dma::Pool,
    ) -> Result<(), PoolError> {
        let mut labels = LABELS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for device in devices {
            if let (Some(label), false) = (labels.get(&device.uuid()), options.force) {
                let found = format!("the pool {}", label.pool);
                return Err(PoolError::NotEmpty { bdev: device.name().to_owned(), found });
            }
        }
        let uuid = Uuid::new_v4();
        for (index, device) in (0..).zip(devices) {
            let (pool, bdev) = (name.to_owned(), String::new());
            let label = Label { pool, uuid, bdev, index, devices: devices.len() as u32 };
            labels.insert(device.uuid(), label);
        }
        Ok(())
    }

    /// What pools these devices are of.
    pub fn scan(devices: &[Arc<dyn Bdev>], _: &mut dma::Pool) -> Vec<Label> {
        let labels = LABELS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let of = |device: &Arc<dyn Bdev>| {
            let label = labels.get(&device.uuid())?.clone();
            Some(Label { bdev: device.name().to_owned(), ..label })
        };
        devices.iter().filter_map(of).collect()
    }

    /// Opens a pool.
    pub fn open(
        devices: &[Arc<dyn Bdev>],
        lanes: usize,
        mut memory: dma::Pool,
    ) -> Result<Vec<Lane>, PoolError> {
        let labels = scan(devices, &mut memory);
        let Some(label) = labels.first() else {
            return Err(PoolError::Other { reason: "no pool is on these devices".to_owned() });
        };
        let bytes = |device: &Arc<dyn Bdev>| {
            device.geometry().block_count * u64::from(device.geometry().block_bytes)
        };
        let bytes: u64 = devices.iter().map(bytes).sum();
        let info = PoolInfo {
            name: label.pool.clone(),
            uuid: label.uuid,
            bytes,
            free_bytes: bytes,
            releasing_bytes: 0,
            journal: (0, 64),
            map_bytes: 0,
            volumes: 0,
            damaged: Vec::new(),
            broken: false,
        };
        let owner = || {
            let (volumes, replies) = Default::default();
            Box::new(Owner { info: info.clone(), volumes, next: 1, replies })
        };
        let lane = |core| Lane {
            volumes: Vec::new(),
            done: Default::default(),
            owner: (core == 0).then(owner),
        };
        Ok((0..lanes).map(lane).collect())
    }
}
