//! What the control thread asks of the owner.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use thiserror::Error;
use uuid::Uuid;

use super::changes::{Change, Member};
use super::info::{PoolInfo, VolumeInfo};
use super::reserve::Cover;
use super::{Owner, Planted};
use crate::format::{Extent, PoolState, Record, VolumeDescriptor, VolumeKind, is_name};
use crate::limits::{
    BLOCK_BYTES, CLUSTER_BYTES, MAX_CHANGE_BYTES, MAX_NAME_BYTES, MAX_VOLUME_CLUSTERS, MAX_VOLUMES,
};
use crate::shared::{ToLane, VolumeHandle};

/// A request.
#[derive(Clone, Debug)]
pub enum Call {
    /// Makes a volume. Answered with its [`VolumeInfo`].
    Create(CreateVolume),
    /// Removes a volume or snapshot that is not open. Other volumes and snapshots do not notice.
    Delete(String),
    /// Takes snapshots of one instant: of each volume by its name, with the snapshot's name.
    Snapshot(Vec<(String, String)>),
    /// Makes a volume that begins as a snapshot is.
    Clone {
        /// The snapshot.
        snapshot: String,
        /// Name of the volume.
        name: String,
        /// It takes no writes.
        read_only: bool,
    },
    /// Makes a volume that nobody has open what a snapshot is. What it was becomes another
    /// snapshot.
    Rollback {
        /// The volume.
        volume: String,
        /// The snapshot.
        snapshot: String,
        /// Name of the snapshot of what it was.
        kept: String,
    },
    /// Changes a volume's size.
    Resize {
        /// The volume.
        name: String,
        /// Its new size.
        bytes: u64,
        /// Blocks that were written may be cut off.
        force: bool,
    },
    /// Changes name, labels and description, those that are given.
    Describe {
        /// The volume or snapshot.
        name: String,
        /// Its new name.
        rename: Option<String>,
        /// Labels to set, and with `None` to remove.
        labels: BTreeMap<String, Option<String>>,
        /// Its new description.
        description: Option<String>,
    },
    /// Keeps space for all of a volume, or no longer.
    Reserve {
        /// The volume.
        name: String,
        /// Which of the two.
        reserve: bool,
    },
    /// Opens a volume or snapshot for I/O; each call is undone by a [`Call::Close`].
    Open(String),
    /// Undoes a [`Call::Open`].
    Close(u32),
    /// All volumes and snapshots.
    List,
    /// The pool.
    Info,
    /// Takes the place of what it was cloned from: the snapshots that both have in common are its
    /// own from here on. No data is copied, and no map is changed.
    Promote(String),
    /// Extents whose blocks are not at the same place in two snapshots or volumes: what was
    /// written between them, or never in one of them.
    Diff {
        /// The earlier one; `None` for what the other has at all.
        from: Option<String>,
        /// The later one.
        to: String,
        /// First byte to be looked at.
        start: u64,
    },
    /// Compares all counts with what the maps say. Answered with what is wrong.
    Check,
    /// Takes a checkpoint; answered when it is on the devices.
    Checkpoint,
    /// Takes the last checkpoint, which says that the pool was given up in order. The caller has
    /// seen the end of all I/O.
    Export,
    /// Block devices, by name, have so many bytes: those that have become larger are used to their
    /// end. Answered with the [`PoolInfo`].
    Grow(Vec<(String, u64)>),
    /// Begins to move everything from a block device to the others, and then lets it go.
    Remove(String),
    /// Answered when the removal that was begun has ended, or failed.
    AwaitRemoval,
    /// Gives it up, which is a failure of it.
    CancelRemoval(String),
}

/// A volume to be made.
#[derive(Clone, Debug)]
pub struct CreateVolume {
    /// Unique among volumes and snapshots of the pool.
    pub name: String,
    /// A multiple of 4096, and not zero.
    pub bytes: u64,
    /// 512 or 4096.
    pub block_bytes: u32,
    /// Space for all of it is kept: no write of it is refused for want of space.
    pub reserve: bool,
    /// `key=value`.
    pub labels: BTreeMap<String, String>,
    /// For people.
    pub description: String,
}

/// An answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// It is done.
    Done,
    /// Of [`Call::Open`].
    Handle(Arc<VolumeHandle>),
    /// Of a call that makes or changes volumes or snapshots, and of [`Call::List`].
    Volumes(Vec<VolumeInfo>),
    /// Of [`Call::Info`].
    Pool(PoolInfo),
    /// Of [`Call::Diff`]: first byte and number of bytes of each, and where to go on.
    Extents(Vec<(u64, u64)>, Option<u64>),
    /// Of [`Call::Check`]: what is wrong.
    Faults(Vec<String>),
}

/// Why a call is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VolumeError {
    /// No volume or snapshot of that name.
    #[error("the pool has no volume or snapshot named {name}")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The name is taken.
    #[error("the pool has a volume or snapshot named {name} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// Not a name.
    #[error("{name:?} is no name: 1 to {MAX_NAME_BYTES} of letters, digits, and . _ -")]
    Name {
        /// What was given.
        name: String,
    },
    /// A size that cannot be.
    #[error("{name}: {bytes} bytes are not possible: {reason}")]
    Size {
        /// The volume.
        name: String,
        /// The size.
        bytes: u64,
        /// Why not.
        reason: &'static str,
    },
    /// Somebody has it open.
    #[error("{name} is exported or otherwise in use; detach it first")]
    InUse {
        /// The volume.
        name: String,
    },
    /// It is a snapshot, or is none, where the other was wanted.
    #[error("{name} is {what}")]
    Kind {
        /// The name.
        name: String,
        /// What it is.
        what: &'static str,
    },
    /// Blocks would be cut off.
    #[error("{name} has written blocks beyond {bytes} bytes; shrinking needs `--force`")]
    Written {
        /// The volume.
        name: String,
        /// The size.
        bytes: u64,
    },
    /// There is not enough space for what would have to be kept.
    #[error("{missing} bytes are missing for that; delete what is not needed, or add a device")]
    Space {
        /// How much.
        missing: u64,
    },
    /// Too many members, labels or too long a description.
    #[error("too much for one change: {bytes} bytes of {MAX_CHANGE_BYTES}")]
    TooLarge {
        /// Bytes of the record.
        bytes: usize,
    },
    /// Labels or description that cannot be.
    #[error("{reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// A device that cannot come, grow or go.
    #[error("{device}: {reason}")]
    Device {
        /// The block device.
        device: String,
        /// Why not.
        reason: String,
    },
    /// The journal cannot be written.
    #[error("the pool takes no changes: its journal cannot be written")]
    Broken,
}

/// Calls and their answers.
#[derive(Debug, Default)]
pub(super) struct Calls {
    pub queue: VecDeque<(u64, Call)>,
    /// Journal block that has to be closed, and volumes that have to be settled, first.
    waiting: Vec<Waiting>,
    replies: VecDeque<(u64, Result<Reply, VolumeError>)>,
    /// Who waits for the next checkpoint.
    pub checkpoints: Vec<u64>,
    /// Of the last call, in seconds since 1970.
    now_s: u64,
}

impl Calls {
    /// Whether some have not been answered.
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.waiting.is_empty() || !self.checkpoints.is_empty()
    }
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    sequence: u64,
    settling: Vec<u32>,
    reply: Vec<u32>,
}

/// Lanes are being told to stop writes for a snapshot.
#[derive(Debug)]
pub(super) struct Freezing {
    /// Lanes that have not said so yet.
    pub left: usize,
    id: u64,
    volumes: Arc<[u32]>,
    change: Change,
}

pub(super) type Outcome = Result<Option<Reply>, VolumeError>;

impl Owner {
    /// Takes a call; the answer comes by [`Owner::next_reply`].
    pub(crate) fn handle_call(&mut self, id: u64, call: Call, now_s: u64) {
        self.idle = false;
        self.calls.now_s = now_s;
        self.calls.queue.push_back((id, call));
    }

    pub(crate) fn next_reply(&mut self) -> Option<(u64, Result<Reply, VolumeError>)> {
        self.calls.replies.pop_front()
    }

    pub(super) fn reply(&mut self, id: u64, reply: Result<Reply, VolumeError>) {
        self.calls.replies.push_back((id, reply));
    }

    /// Goes on with calls.
    pub(super) fn poll_calls(&mut self) {
        self.poll_settling();
        self.poll_lists();
        self.poll_freezing();
        if !self.calls.waiting.is_empty() {
            self.poll_waiting();
        }
        if self.freezing.is_some() || (!self.journal.has_room(false) && !self.journal.is_broken()) {
            return;
        }
        let Some((id, call)) = self.calls.queue.pop_front() else { return };
        match self.execute(id, &call) {
            Ok(Some(reply)) => self.reply(id, Ok(reply)),
            Ok(None) => {}
            Err(error) => self.reply(id, Err(error)),
        }
    }

    /// Ends snapshots whose blocks cannot change any more: writes that began before have ended, and
    /// a flush since has made them durable. Else what somebody has read of the snapshot could be
    /// undone by power loss.
    fn poll_settling(&mut self) {
        let grace = !self.bugs.is(Planted::SnapshotNotSettled);
        let Self { settling, volumes, epoch, launched, writes, closing, .. } = self;
        settling.retain(|id| {
            let Some(volume) = volumes.get_mut(id) else { return false };
            let Some(since) = &mut volume.settling else { return false };
            let late = |write: &u32| {
                let write = &writes[*write as usize];
                write.volume == *id && write.head == since.head
            };
            let waits = match since.flush {
                _ if !grace => false,
                Some(flush) => !closing.is_flushed(flush),
                None => {
                    if epoch.is_over(since.epoch) && !launched.iter().any(late) {
                        since.flush = Some(closing.want_flush());
                    }
                    true
                }
            };
            if !waits {
                volume.settling = None;
            }
            waits
        });
    }

    fn poll_freezing(&mut self) {
        let room = self.journal.has_room(false) || self.journal.is_broken();
        if !room || self.freezing.as_ref().is_none_or(|freezing| freezing.left > 0) {
            return;
        }
        let Some(Freezing { id, volumes, change, .. }) = self.freezing.take() else { return };
        let Change::Snapshot { members } = &change else { unreachable!("only for snapshots") };
        let origins = members.iter().map(|member| member.origin).collect();
        let made = members.iter().map(|member| member.descriptor.id).collect();
        let outcome = self.commit_change(id, &change, origins, made);
        for volume in volumes.iter() {
            if let Some(volume) = self.volumes.get_mut(volume) {
                volume.frozen = false;
            }
        }
        self.tell_lanes(|| ToLane::Thaw(Arc::clone(&volumes)));
        if let Err(error) = outcome {
            self.reply(id, Err(error));
        }
    }

    /// Answers calls whose change is durable and settled.
    fn poll_waiting(&mut self) {
        let closed = self.closing.closed_before;
        for waiting in std::mem::take(&mut self.calls.waiting) {
            let settled = waiting
                .settling
                .iter()
                .all(|id| self.volumes.get(id).is_none_or(|volume| volume.settling.is_none()));
            if self.journal.is_broken() {
                self.reply(waiting.id, Err(VolumeError::Broken));
            } else if waiting.sequence >= closed || !settled {
                self.closing.want(waiting.sequence + 1);
                self.calls.waiting.push(waiting);
            } else {
                let infos = waiting.reply.iter().filter_map(|id| self.volume_info(*id));
                let infos: Vec<VolumeInfo> = infos.collect();
                let reply = if infos.is_empty() { Reply::Done } else { Reply::Volumes(infos) };
                self.reply(waiting.id, Ok(reply));
            }
        }
    }

    /// Writes a change into the journal and applies it. The call is answered when it is durable.
    fn commit_change(
        &mut self,
        id: u64,
        change: &Change,
        settling: Vec<u32>,
        reply: Vec<u32>,
    ) -> Result<(), VolumeError> {
        if self.journal.is_broken() {
            return Err(VolumeError::Broken);
        }
        let invalid = |error: serde_json::Error| VolumeError::Invalid { reason: error.to_string() };
        let json = serde_json::to_vec(change).map_err(invalid)?;
        if json.len() > MAX_CHANGE_BYTES {
            return Err(VolumeError::TooLarge { bytes: json.len() });
        }
        let position = self.journal.append(&Record::Change(&json));
        self.last_change = position.sequence;
        self.apply(change, position.sequence);
        let sequence = position.sequence;
        self.calls.waiting.push(Waiting { id, sequence, settling, reply });
        Ok(())
    }

    fn execute(&mut self, id: u64, call: &Call) -> Outcome {
        match call {
            Call::Create(create) => {
                let descriptor = self.new_descriptor(create)?;
                let more =
                    if create.reserve { Cover::new(create.bytes, true).promise() } else { 0 };
                if !self.has_room_for(id, call, more)? {
                    return Ok(None);
                }
                let made = vec![descriptor.id];
                self.commit_change(id, &Change::Create { descriptor }, vec![], made)?;
            }
            Call::Delete(name) => {
                let damaged = self.damaged.iter().find(|d| !d.deleted && d.entry.name == *name);
                let volume = match damaged {
                    Some(damaged) => damaged.entry.id,
                    None => self.find(name)?,
                };
                if damaged.is_none() {
                    self.check_unused(volume)?;
                }
                self.commit_change(id, &Change::Delete { id: volume }, vec![volume], vec![])?;
            }
            Call::Snapshot(members) => return self.begin_snapshot(id, members),
            Call::Clone { .. } => return self.begin_clone(id, call),
            Call::Rollback { .. } => return self.begin_rollback(id, call),
            Call::Resize { name, bytes, force } => {
                return self.begin_resize(id, name, *bytes, *force);
            }
            Call::Describe { name, rename, labels, description } => {
                let volume = self.find(name)?;
                let change = self.describe(volume, rename, labels, description)?;
                self.commit_change(id, &change, vec![], vec![volume])?;
            }
            Call::Reserve { name, reserve } => return self.begin_reserve(id, call, name, *reserve),
            Call::Open(name) => {
                let volume = self.find(name)?;
                if self.is_settling(volume) {
                    return self.wait_to_settle(id, call);
                }
                let Some(volume) = self.volumes.get_mut(&volume) else { return Ok(None) };
                volume.users += 1;
                return Ok(Some(Reply::Handle(Arc::clone(&volume.handle))));
            }
            Call::Close(volume) => {
                if let Some(volume) = self.volumes.get_mut(volume) {
                    volume.users = volume.users.saturating_sub(1);
                }
                return Ok(Some(Reply::Done));
            }
            Call::List => self.begin_list(id),
            Call::Info => return Ok(Some(Reply::Pool(self.pool_info()))),
            Call::Promote(name) => {
                let volume = self.find(name)?;
                self.check_kind(volume, false)?;
                self.commit_change(id, &Change::Promote { id: volume }, vec![], vec![volume])?;
            }
            Call::Diff { from, to, start } => {
                let from = from.as_ref().map(|name| self.find(name)).transpose()?;
                let to = self.find(to)?;
                return Ok(Some(self.diff(from, to, *start)));
            }
            // A checkpoint that will never end leaves pages that nothing names.
            Call::Check if self.is_checkpointing() && self.journal.is_broken() => {
                return Err(VolumeError::Broken);
            }
            Call::Check if self.is_checkpointing() => {
                self.calls.queue.push_front((id, call.clone()));
            }
            Call::Check => return Ok(Some(Reply::Faults(self.check()))),
            Call::Checkpoint => self.calls.checkpoints.push(id),
            Call::Export => {
                self.superblock.state = PoolState::Exported;
                self.calls.checkpoints.push(id);
            }
            Call::Grow(_) | Call::Remove(_) | Call::AwaitRemoval | Call::CancelRemoval(_) => {
                return self.execute_devices(id, call);
            }
        }
        Ok(None)
    }

    fn begin_clone(&mut self, id: u64, call: &Call) -> Outcome {
        let Call::Clone { snapshot, name, read_only } = call else { return Ok(None) };
        let source = self.find(snapshot)?;
        self.check_kind(source, true)?;
        self.check_new(name)?;
        if self.is_settling(source) {
            return self.wait_to_settle(id, call);
        }
        if !self.has_room_for(id, call, 0)? {
            return Ok(None);
        }
        let mut descriptor = self.derived(source, name, VolumeKind::Volume);
        descriptor.read_only = *read_only;
        let made = vec![descriptor.id];
        let change = Change::Clone { source, descriptor };
        self.commit_change(id, &change, vec![], made)?;
        Ok(None)
    }

    fn begin_rollback(&mut self, id: u64, call: &Call) -> Outcome {
        let Call::Rollback { volume, snapshot, kept } = call else { return Ok(None) };
        let (volume, to) = (self.find(volume)?, self.find(snapshot)?);
        self.check_kind(volume, false)?;
        self.check_kind(to, true)?;
        self.check_unused(volume)?;
        self.check_new(kept)?;
        let sizes = [volume, to].map(|id| self.volumes[&id].descriptor.block_bytes);
        if sizes[0] != sizes[1] {
            let name = self.volumes[&to].descriptor.name.clone();
            return Err(VolumeError::Kind { name, what: "of another block size" });
        }
        if self.is_settling(to) {
            return self.wait_to_settle(id, call);
        }
        let more = self.cost_of_rollback(volume, to);
        if more > 0 && !self.has_room_for(id, call, more)? {
            return Ok(None);
        }
        let kept = self.derived(volume, kept, VolumeKind::Snapshot);
        let change = Change::Rollback { id: volume, to, kept };
        self.commit_change(id, &change, vec![], vec![volume])?;
        Ok(None)
    }

    fn begin_snapshot(&mut self, id: u64, names: &[(String, String)]) -> Outcome {
        let mut members = Vec::with_capacity(names.len());
        let group = (names.len() > 1).then(Uuid::new_v4);
        for (index, (name, snapshot)) in names.iter().enumerate() {
            let origin = self.find(name)?;
            self.check_kind(origin, false)?;
            self.check_new(snapshot)?;
            if names[..index].iter().any(|(other, made)| other == name || made == snapshot) {
                return Err(VolumeError::Exists { name: snapshot.clone() });
            }
            if self.volumes[&origin].settling.is_some() {
                // The one before is not complete yet; that takes as long as an I/O.
                return self.wait_to_settle(id, &Call::Snapshot(names.to_vec()));
            }
            let mut descriptor = self.derived(origin, snapshot, VolumeKind::Snapshot);
            descriptor.id += index as u32;
            descriptor.group = group;
            members.push(Member { origin, descriptor });
        }
        let change = Change::Snapshot { members };
        let bytes = serde_json::to_vec(&change).map_or(usize::MAX, |json| json.len());
        if bytes > MAX_CHANGE_BYTES {
            return Err(VolumeError::TooLarge { bytes });
        }
        let Change::Snapshot { members } = &change else { unreachable!() };
        let volumes: Arc<[u32]> = members.iter().map(|member| member.origin).collect();
        let more = self.cost_of_sharing(volumes.iter().copied());
        if !self.has_room_for(id, &Call::Snapshot(names.to_vec()), more)? {
            return Ok(None);
        }
        for volume in volumes.iter() {
            self.uncover_all(*volume);
            if let Some(volume) = self.volumes.get_mut(volume) {
                volume.frozen = true;
            }
        }
        self.tell_lanes(|| ToLane::Freeze(Arc::clone(&volumes)));
        let left = self.shared.to_lane.len();
        self.freezing = Some(Freezing { left, id, volumes, change });
        Ok(None)
    }

    fn begin_resize(&mut self, id: u64, name: &str, bytes: u64, force: bool) -> Outcome {
        let volume = self.find(name)?;
        self.check_kind(volume, false)?;
        let descriptor = &self.volumes[&volume].descriptor;
        check_size(name, bytes)?;
        if bytes < descriptor.bytes {
            let root = self.volumes[&volume].root();
            if !force && self.has_blocks_from(root, bytes.div_ceil(4096)) {
                let blocks = descriptor.bytes / u64::from(descriptor.block_bytes);
                let handle = &self.volumes[&volume].handle;
                handle.block_count.store(blocks, Ordering::Release);
                return Err(VolumeError::Written { name: name.to_owned(), bytes });
            }
            let blocks = bytes / u64::from(descriptor.block_bytes);
            let handle = &self.volumes[&volume].handle;
            handle.block_count.store(blocks, Ordering::Release);
            // First touches beyond the new end that are under way end first.
            let first = (bytes / u64::from(CLUSTER_BYTES)) as u32;
            let late = |write: &super::Write| {
                let late = write.touches.iter().any(|touch| touch.part.entry >= first);
                write.volume == volume && late
            };
            if self.writes.iter().any(late) {
                let call = Call::Resize { name: name.to_owned(), bytes, force };
                self.calls.queue.push_front((id, call));
                return Ok(None);
            }
        }
        let more = self.cost_of_size(volume, bytes);
        let call = Call::Resize { name: name.to_owned(), bytes, force };
        if more > 0 && !self.has_room_for(id, &call, more)? {
            return Ok(None);
        }
        self.commit_change(id, &Change::Resize { id: volume, bytes }, vec![], vec![volume])?;
        Ok(None)
    }

    fn begin_reserve(&mut self, id: u64, call: &Call, name: &str, reserved: bool) -> Outcome {
        let volume = self.find(name)?;
        self.check_kind(volume, false)?;
        if self.volumes[&volume].descriptor.read_only && reserved {
            return Err(VolumeError::Kind { name: name.to_owned(), what: "read-only" });
        }
        if reserved && !self.volumes[&volume].descriptor.reserved {
            if !self.is_covered_known(id, call, volume) {
                return Ok(None);
            }
            let more = self.cost_of_reserving(volume);
            match self.has_room_for(id, call, more) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => {
                    self.forget_cover(volume);
                    return Err(error);
                }
            }
        }
        let change = Change::Reserve { id: volume, reserved };
        self.commit_change(id, &change, vec![], vec![volume])?;
        Ok(None)
    }

    fn describe(
        &self,
        id: u32,
        rename: &Option<String>,
        changes: &BTreeMap<String, Option<String>>,
        text: &Option<String>,
    ) -> Result<Change, VolumeError> {
        let mut descriptor = self.volumes[&id].descriptor.clone();
        if let Some(name) = rename
            && *name != descriptor.name
        {
            self.check_new(name)?;
            descriptor.name.clone_from(name);
        }
        for (key, value) in changes {
            match value {
                Some(value) => descriptor.labels.insert(key.clone(), value.clone()),
                None => descriptor.labels.remove(key),
            };
        }
        if let Some(text) = text {
            descriptor.description.clone_from(text);
        }
        check_descriptor(&descriptor)?;
        let VolumeDescriptor { name, labels, description, .. } = descriptor;
        Ok(Change::Describe { id, name, labels, description })
    }

    fn new_descriptor(&self, create: &CreateVolume) -> Result<VolumeDescriptor, VolumeError> {
        self.check_new(&create.name)?;
        let smallest = self.superblock.block_bytes;
        if ![512, 4096].contains(&create.block_bytes) || create.block_bytes < smallest {
            let reason = format!(
                "{}: blocks of {} bytes are not possible; the pool's devices have {smallest}",
                create.name, create.block_bytes
            );
            return Err(VolumeError::Invalid { reason });
        }
        check_size(&create.name, create.bytes)?;
        let descriptor = VolumeDescriptor {
            id: self.superblock.next_volume,
            uuid: Uuid::new_v4(),
            nguid: Uuid::new_v4(),
            name: create.name.clone(),
            kind: VolumeKind::Volume,
            parent: None,
            read_only: false,
            reserved: create.reserve,
            block_bytes: create.block_bytes,
            bytes: create.bytes,
            labels: create.labels.clone(),
            description: create.description.clone(),
            created_s: self.calls.now_s,
            group: None,
            line: None,
            root: Extent::default(),
        };
        check_descriptor(&descriptor)?;
        Ok(descriptor)
    }

    /// A snapshot or clone of `source`.
    fn derived(&self, source: u32, name: &str, kind: VolumeKind) -> VolumeDescriptor {
        let source = &self.volumes[&source].descriptor;
        let (parent, line) = match kind {
            VolumeKind::Volume => (Some(source.id), None),
            VolumeKind::Snapshot => (source.parent, Some(source.id)),
        };
        VolumeDescriptor {
            id: self.superblock.next_volume,
            uuid: Uuid::new_v4(),
            nguid: Uuid::new_v4(),
            name: name.to_owned(),
            kind,
            parent,
            read_only: kind == VolumeKind::Snapshot,
            reserved: false,
            labels: BTreeMap::new(),
            description: String::new(),
            created_s: self.calls.now_s,
            group: None,
            line,
            root: Extent::default(),
            ..source.clone()
        }
    }

    fn find(&self, name: &str) -> Result<u32, VolumeError> {
        let found = self.volumes.iter().find(|(_, volume)| volume.descriptor.name == name);
        let found = found.map(|(id, _)| *id);
        found.ok_or_else(|| VolumeError::Unknown { name: name.to_owned() })
    }

    /// Takes a call again in a later turn. Nothing settles in a pool that cannot be flushed any
    /// more.
    fn wait_to_settle(&mut self, id: u64, call: &Call) -> Outcome {
        if self.journal.is_broken() {
            return Err(VolumeError::Broken);
        }
        self.calls.queue.push_back((id, call.clone()));
        Ok(None)
    }

    /// Whether a snapshot's blocks may still change.
    fn is_settling(&self, snapshot: u32) -> bool {
        self.volumes.values().any(|v| v.settling.is_some_and(|s| s.snapshot == snapshot))
    }

    fn check_new(&self, name: &str) -> Result<(), VolumeError> {
        if !is_name(name) {
            return Err(VolumeError::Name { name: name.to_owned() });
        }
        if self.volumes.len() + self.damaged.len() >= MAX_VOLUMES {
            let reason = format!("the pool has {MAX_VOLUMES} volumes and snapshots already");
            return Err(VolumeError::Invalid { reason });
        }
        let mut damaged = self.damaged.iter().filter(|damaged| !damaged.deleted);
        let damaged = damaged.any(|damaged| damaged.entry.name == name);
        match self.find(name) {
            Err(_) if damaged => Err(VolumeError::Exists { name: name.to_owned() }),
            Ok(_) => Err(VolumeError::Exists { name: name.to_owned() }),
            Err(_) => Ok(()),
        }
    }

    fn check_kind(&self, id: u32, snapshot: bool) -> Result<(), VolumeError> {
        let volume = &self.volumes[&id];
        if volume.is_snapshot() == snapshot {
            return Ok(());
        }
        let what = match snapshot {
            true => "a volume; take a snapshot of it first",
            false => "a snapshot, which does not change",
        };
        Err(VolumeError::Kind { name: volume.descriptor.name.clone(), what })
    }

    fn check_unused(&self, id: u32) -> Result<(), VolumeError> {
        let volume = &self.volumes[&id];
        let settles = self.volumes.values().any(|v| v.settling.is_some_and(|s| s.snapshot == id));
        match volume.users > 0 || volume.settling.is_some() || settles {
            true => Err(VolumeError::InUse { name: volume.descriptor.name.clone() }),
            false => Ok(()),
        }
    }
}

/// Whole blocks of the map, whatever the volume's own are: what is cut off then is given up whole,
/// and reads as zeroes should the volume grow again.
fn check_size(name: &str, bytes: u64) -> Result<(), VolumeError> {
    let reason = if bytes == 0 {
        "a volume has at least one block"
    } else if !bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
        "not a multiple of 4096"
    } else if bytes > u64::from(MAX_VOLUME_CLUSTERS) * u64::from(CLUSTER_BYTES) {
        "the largest volume has 32 TiB"
    } else {
        return Ok(());
    };
    Err(VolumeError::Size { name: name.to_owned(), bytes, reason })
}

fn check_descriptor(descriptor: &VolumeDescriptor) -> Result<(), VolumeError> {
    let checked = descriptor.check();
    checked.map_err(|error| VolumeError::Invalid { reason: error.to_string() })
}
