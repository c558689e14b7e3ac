//! One core's way to a pool: reads, and overwrites of own blocks, from their arrival to their end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bdev::{Busy, Completion, Io, Op};
use dma::DmaSpan;
use nvme_spec::status::Status;

use crate::devices::{Devices, Place, Token};
use crate::epoch::{LaneEpoch, Tag};
use crate::limits::{BLOCK_BYTES, CLUSTER_BYTES, LANE_REQUESTS, MAX_IO_BYTES};
use crate::map::{Entry, Map};
use crate::owner::{Call, Context, Origin, Owner, Reply, VolumeError};
use crate::pieces::{Part, Piece, Pieces, parts};
use crate::pool::NewDevice;
use crate::shared::{LaneDevice, Shared, ToLane, ToOwner, VolumeHandle, pop};

/// The end of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// What [`Lane::attach`] gave.
    pub channel: u32,
    /// Tag and status.
    pub completion: Completion,
}

/// One core's way to a pool. That of the owner's core changes maps, too.
pub struct Lane {
    core: usize,
    shared: Arc<Shared>,
    devices: Devices,
    epoch: LaneEpoch,
    volumes: Vec<Option<Attached>>,
    /// Volumes that take no writes for the moment.
    frozen: Vec<u32>,
    /// The device that goes.
    leaving: Option<usize>,
    requests: Vec<Request>,
    vacant: Vec<u32>,
    /// Taken since the last turn, and looked up.
    looked: Vec<Looked>,
    pieces: Pieces,
    done: Vec<Done>,
    events: Vec<(Token, Status)>,
    owner: Option<Box<Owner>>,
}

struct Attached {
    handle: Arc<VolumeHandle>,
    /// Takes no writes for the moment: a snapshot is being taken.
    frozen: bool,
}

#[derive(Clone, Copy)]
struct Request {
    tag: u32,
    channel: u32,
    /// Device I/Os that have not ended.
    outstanding: u32,
    status: Status,
    epoch: Option<Tag>,
}

/// An I/O within one entry that was looked up and goes to its device when the next turn begins. So
/// the loads of I/Os that come together, which miss the near caches, are under way side by side;
/// an I/O that went out at once would first move its data.
///
/// It is of the turn in which it was looked up: that turn ends, and what it read from the map may
/// be used again, only after the I/O has begun.
#[derive(Clone, Copy)]
struct Looked {
    slot: u32,
    volume: u32,
    io: Io,
    part: Part,
    entry: Entry,
    /// The leaf is the volume's own.
    own_leaf: bool,
    /// Where its first block is.
    cluster: u32,
}

impl Looked {
    /// Nothing here waits for what is loaded last.
    #[inline]
    fn new(map: &Map, handle: &VolumeHandle, slot: u32, io: Io, part: Part) -> Self {
        let root = handle.root.load(Ordering::Acquire);
        let head = handle.head.load(Ordering::Acquire);
        let (entry, leaf_head) = map.entry(root, part.entry);
        let (volume, own_leaf) = (handle.id(), leaf_head == head);
        Self { slot, volume, io, part, entry, own_leaf, cluster: 0 }
    }

    /// It may be done without the owner.
    #[inline]
    fn is_ours(&self) -> bool {
        let own = if self.own_leaf { self.entry.own_mask() } else { 0 };
        let in_place = self.part.mask() & !own == 0 && !self.entry.guarded();
        in_place || !matches!(self.io.op, Op::Write { .. })
    }
}

impl Lane {
    pub(crate) fn new(
        core: usize,
        shared: Arc<Shared>,
        devices: Devices,
        owner: Option<Box<Owner>>,
    ) -> Self {
        let request =
            Request { tag: 0, channel: 0, outstanding: 0, status: Status::SUCCESS, epoch: None };
        let mut epoch = LaneEpoch::new(core);
        epoch.begin_turn(&shared.epochs);
        Self {
            core,
            shared,
            devices,
            epoch,
            volumes: Vec::new(),
            frozen: Vec::new(),
            leaving: None,
            requests: vec![request; LANE_REQUESTS],
            vacant: (0..LANE_REQUESTS as u32).rev().collect(),
            looked: Vec::with_capacity(LANE_REQUESTS),
            pieces: Pieces::default(),
            done: Vec::with_capacity(LANE_REQUESTS),
            events: Vec::with_capacity(LANE_REQUESTS),
            owner,
        }
    }

    /// Lets I/O on a volume come this way; gives the number for [`Lane::submit`].
    pub fn attach(&mut self, handle: Arc<VolumeHandle>) -> u32 {
        let vacant = self.volumes.iter().position(Option::is_none);
        let channel = vacant.unwrap_or(self.volumes.len());
        if channel == self.volumes.len() {
            self.volumes.push(None);
        }
        let frozen = self.frozen.contains(&handle.id());
        self.volumes[channel] = Some(Attached { handle, frozen });
        channel as u32
    }

    /// Ends that. The caller has seen the end of all I/Os of this number.
    pub fn detach(&mut self, channel: u32) {
        self.volumes[channel as usize] = None;
    }

    /// Whether no device is at work for this lane: what it has memory for may be used otherwise
    /// once it is gone.
    pub fn is_idle(&self) -> bool {
        self.looked.is_empty() && self.devices.is_idle()
    }

    /// Whether this is the lane that takes [`Lane::call`].
    pub fn is_owner(&self) -> bool {
        self.owner.is_some()
    }

    /// Asks the owner for something, at `now_s` seconds since 1970; the answer comes by
    /// [`Lane::next_reply`] with the same `id`.
    ///
    /// # Panics
    /// This is not the owner's lane.
    pub fn call(&mut self, id: u64, call: Call, now_s: u64) {
        let Some(owner) = &mut self.owner else { panic!("a call on a lane without the owner") };
        owner.handle_call(id, call, now_s);
    }

    /// Makes a device one of the pool; the answer comes by [`Lane::next_reply`], as to a call.
    ///
    /// # Panics
    /// This is not the owner's lane.
    pub fn add_device(&mut self, id: u64, device: NewDevice) {
        let Some(owner) = &mut self.owner else { panic!("a call on a lane without the owner") };
        owner.handle_new_device(id, device);
    }

    /// The pool's name, if it takes no writes any more because it cannot write its journal.
    pub(crate) fn broken_pool(&self) -> Option<String> {
        self.owner.as_ref()?.broken_pool()
    }

    /// The owner's checkpoint finds no room.
    pub(crate) fn lacks_pages(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.lacks_pages())
    }

    /// The pool's name; empty on a lane without the owner.
    pub(crate) fn pool_name(&self) -> String {
        self.owner.as_ref().map(|owner| owner.pool_name()).unwrap_or_default()
    }

    /// The next answer to a call.
    pub fn next_reply(&mut self) -> Option<(u64, Result<Reply, VolumeError>)> {
        self.owner.as_mut()?.next_reply()
    }

    /// Takes an I/O, which then ends exactly once through [`Lane::poll`]. Its tag is unique in this
    /// lane.
    ///
    /// # Errors
    /// [`Busy`]: no room, or the volume takes no writes for this moment.
    #[inline]
    pub fn submit(&mut self, channel: u32, io: Io) -> Result<(), Busy> {
        let Some(Some(attached)) = self.volumes.get(channel as usize) else {
            self.end(channel, io.tag, Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
            return Ok(());
        };
        let changes = !matches!(io.op, Op::Read | Op::Compare | Op::Flush);
        if changes && attached.frozen {
            return Err(Busy);
        }
        let handle = &attached.handle;
        if let Err(status) = check(handle, &io, changes) {
            self.end(channel, io.tag, status);
            return Ok(());
        }
        let Some(slot) = self.vacant.pop() else { return Err(Busy) };
        self.requests[slot as usize] =
            Request { tag: io.tag, channel, outstanding: 0, status: Status::SUCCESS, epoch: None };
        let shift = handle.block_bytes().trailing_zeros();
        let (start, bytes) = (io.slba << shift, io.block_count << shift);
        let part = parts(start, bytes).next();
        match (io.op, io.buffer, part) {
            (Op::Read | Op::Compare | Op::Write { .. }, Some(_), Some(part))
                if part.bytes == bytes =>
            {
                self.looked.push(Looked::new(&self.shared.map, handle, slot, io, part));
            }
            (Op::Read | Op::Compare, Some(buffer), Some(_)) => {
                let root = handle.root.load(Ordering::Acquire);
                self.pieces.find(&self.shared.map, root, start, bytes);
                self.begin(slot, io.op, buffer);
            }
            (Op::Write { .. }, Some(buffer), Some(_))
                if self.pieces.find_own(&self.shared.map, handle, start, bytes) =>
            {
                self.begin(slot, io.op, buffer);
            }
            _ => {
                let volume = handle.id();
                self.forward(slot, volume, io);
            }
        }
        Ok(())
    }

    /// Begins what was looked up.
    #[inline]
    fn launch(&mut self) {
        let mut looked = std::mem::take(&mut self.looked);
        for io in &mut looked {
            io.cluster = self.shared.map.cluster_of(io.entry, io.part.offset / BLOCK_BYTES);
        }
        for looked in looked.drain(..) {
            let Looked { slot, volume, io, part, entry, cluster, .. } = looked;
            match io.buffer {
                Some(buffer) if looked.is_ours() => {
                    self.pieces.clear();
                    if part.is_one_block() {
                        let place = Place { cluster, offset: part.offset };
                        self.pieces.push((cluster != 0).then_some(place), 0, part.bytes);
                    } else {
                        self.pieces.add(&self.shared.map, entry, part);
                    }
                    self.begin(slot, io.op, buffer);
                }
                _ => self.forward(slot, volume, io),
            }
        }
        self.looked = looked;
    }

    /// Submits the pieces to the devices; zeroes are served from here.
    #[inline]
    fn begin(&mut self, slot: u32, op: Op, buffer: DmaSpan) {
        let request = &mut self.requests[slot as usize];
        request.epoch = Some(self.epoch.begin_io());
        if let [Piece { place: Some(place), bytes, .. }] = *self.pieces.list() {
            request.outstanding = 1;
            return self.devices.submit_whole(op, place, bytes, buffer, slot);
        }
        for piece in self.pieces.list() {
            let part = buffer.subspan(piece.at, piece.bytes);
            match piece.place {
                Some(place) => {
                    request.outstanding += 1;
                    let token = Token::Request(slot);
                    self.devices.submit(op, place, piece.bytes, Some(part), token);
                }
                None if op == Op::Read => part.fill(0),
                None if !is_zero(part) => {
                    request.status = Status::COMPARE_FAILURE.with_dnr();
                }
                None => {}
            }
        }
        if request.outstanding == 0 {
            self.finish(slot);
        }
    }

    fn forward(&mut self, slot: u32, volume: u32, io: Io) {
        match &mut self.owner {
            Some(owner) => owner.handle_io(Origin { lane: self.core as u32, slot }, volume, io),
            None => {
                let message = ToOwner::Io { slot, volume, io };
                let sent = self.shared.to_owner[self.core].push(message);
                assert!(sent.is_ok(), "more I/Os than a lane has requests");
            }
        }
    }

    /// One turn. What has ended is appended to `done`; says how much happened.
    pub fn poll(&mut self, now: Instant, done: &mut Vec<Done>) -> usize {
        self.launch();
        self.epoch.begin_turn(&self.shared.epochs);
        let mut work = self.poll_messages();
        let mut events = std::mem::take(&mut self.events);
        self.devices.poll(now, &mut events);
        work += events.len();
        for (token, status) in events.drain(..) {
            match (token, &mut self.owner) {
                (Token::Request(slot), _) => self.end_piece(slot, status),
                (token, Some(owner)) => owner.handle_device(token, status),
                (token, None) => unreachable!("{token:?} without an owner"),
            }
        }
        self.events = events;
        work += self.poll_owner(now);
        work += self.done.len();
        done.append(&mut self.done);
        work
    }

    fn poll_messages(&mut self) -> usize {
        let mut work = 0;
        while let Some(message) = pop(&self.shared.to_lane[self.core]) {
            work += 1;
            match message {
                ToLane::Done { slot, status } => {
                    self.requests[slot as usize].status = status;
                    self.finish(slot);
                }
                ToLane::Freeze(volumes) => {
                    self.set_frozen(&volumes, true);
                    let sent = self.shared.to_owner[self.core].push(ToOwner::Frozen);
                    assert!(sent.is_ok(), "one freeze at a time");
                }
                ToLane::Thaw(volumes) => self.set_frozen(&volumes, false),
                ToLane::AddDevice(index, LaneDevice { channel, block_bytes, volatile }) => {
                    self.devices.add(index, channel, block_bytes, volatile);
                    self.tell_devices();
                }
                ToLane::RemoveDevice(index) => self.leaving = Some(index),
            }
        }
        if let Some(index) = self.leaving
            && self.devices.remove(index)
        {
            self.leaving = None;
            self.tell_devices();
        }
        work
    }

    fn tell_devices(&self) {
        let sent = self.shared.to_owner[self.core].push(ToOwner::Devices);
        assert!(sent.is_ok(), "one change of devices at a time");
    }

    fn set_frozen(&mut self, volumes: &[u32], frozen: bool) {
        match frozen {
            true => self.frozen.extend(volumes),
            false => self.frozen.retain(|volume| !volumes.contains(volume)),
        }
        for attached in self.volumes.iter_mut().flatten() {
            if volumes.contains(&attached.handle.id()) {
                attached.frozen = frozen;
            }
        }
    }

    fn poll_owner(&mut self, now: Instant) -> usize {
        if self.owner.as_ref().is_none_or(|owner| owner.is_idle()) {
            return 0;
        }
        let Some(mut owner) = self.owner.take() else { return 0 };
        let mut context = Context { devices: &mut self.devices, epoch: &mut self.epoch, now };
        let work = owner.poll(&mut context);
        while let Some((origin, status)) = owner.next_finished() {
            if origin.lane as usize == self.core {
                self.requests[origin.slot as usize].status = status;
                self.finish(origin.slot);
            } else {
                let ring = &self.shared.to_lane[origin.lane as usize];
                let sent = ring.push(ToLane::Done { slot: origin.slot, status });
                assert!(sent.is_ok(), "more ends than a lane has requests");
            }
        }
        self.owner = Some(owner);
        work
    }

    #[inline]
    fn end_piece(&mut self, slot: u32, status: Status) {
        let request = &mut self.requests[slot as usize];
        if !status.is_success() && request.status.is_success() {
            request.status = status;
        }
        request.outstanding -= 1;
        if request.outstanding == 0 {
            self.finish(slot);
        }
    }

    #[inline]
    fn finish(&mut self, slot: u32) {
        let request = &mut self.requests[slot as usize];
        let (channel, tag, status) = (request.channel, request.tag, request.status);
        if let Some(epoch) = request.epoch.take() {
            self.epoch.end_io(epoch);
        }
        self.vacant.push(slot);
        self.end(channel, tag, status);
    }

    #[inline]
    fn end(&mut self, channel: u32, tag: u32, status: Status) {
        self.done.push(Done { channel, completion: Completion { tag, status } });
    }
}

/// What can be refused before anything is looked up.
#[inline]
fn check(handle: &VolumeHandle, io: &Io, changes: bool) -> Result<(), Status> {
    if handle.closed.load(Ordering::Relaxed) {
        return Err(Status::NAMESPACE_NOT_READY.with_dnr());
    }
    if changes && handle.read_only() {
        return Err(Status::WRITE_TO_READ_ONLY_RANGE.with_dnr());
    }
    if matches!(io.op, Op::Flush | Op::Deallocate { .. }) {
        return Ok(());
    }
    // The journal has room for the records of so much, and lengths in bytes have 32 bits.
    let bytes = u64::from(io.block_count) * u64::from(handle.block_bytes());
    let most = if matches!(io.op, Op::WriteZeroes { .. }) { u32::MAX } else { MAX_IO_BYTES };
    if bytes > u64::from(most) {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    // The volume may have become smaller since the namespace's table was looked at.
    match io.slba.checked_add(u64::from(io.block_count)) {
        Some(end) if end <= handle.block_count() => Ok(()),
        _ => Err(Status::LBA_OUT_OF_RANGE.with_dnr()),
    }
}

fn is_zero(span: DmaSpan) -> bool {
    let mut bytes = [0; 512];
    (0..span.len()).step_by(bytes.len()).all(|at| {
        let part = &mut bytes[..(span.len() - at).min(512) as usize];
        span.read(at, part);
        part.iter().all(|byte| *byte == 0)
    })
}

const _: () = assert!(CLUSTER_BYTES.is_multiple_of(BLOCK_BYTES));
