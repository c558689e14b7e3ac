//! Everything on a device of the pool moves to the others, and the device goes.
//!
//! 1. Nothing is taken on it any more. First touches that have a place on it end.
//! 2. Its blocks stop being own, and a grace period passes: from here on nobody writes what is on
//!    it. A write of such a block is a first touch, like after a snapshot.
//! 3. Position by position of the maps, its clusters are copied, and all who hold one hold its copy
//!    at once. That needs no record: until a checkpoint has the maps with the copy, a crash goes
//!    back to what is on the device still, which is the same. But then no copy may be overwritten
//!    in place before. So the evacuation holds it too, until that checkpoint: what two hold is not
//!    own.
//! 4. Pages of metadata on it are written anew by a checkpoint. The journal goes elsewhere.
//! 5. A checkpoint's superblock has the device no longer; then the lanes let it go.
//!
//! What ends before that has changed nothing that is read, and begins anew when it is asked for.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bdev::Op;
use dma::DmaBuffer;
use nvme_spec::status::Status;

use super::devices::Devices;
use super::releases::Item;
use super::{Call, Context, Owner, Planted, Reply, VolumeError};
use crate::devices::{Place, Token};
use crate::format::{Extent, JournalArea};
use crate::limits::{
    CLUSTER_BYTES, COPIES, DEVICE_SHIFT, HELD_COPIES, LEAVES_PER_TURN, POSITIONS_PER_TURN,
};
use crate::map::Release;
use crate::shared::ToLane;
use crate::space::Run;

/// How long what was let go on the device may take to be free, before it is looked for again.
const PATIENCE: Duration = Duration::from_millis(50);

/// An evacuation under way.
pub(super) struct Evacuation {
    device: usize,
    name: String,
    step: Step,
    /// The position of maps at hand.
    position: u32,
    /// Its clusters that are to be copied, the copies that are complete, and those on their way.
    wanted: Vec<u32>,
    copies: HashMap<u32, u32>,
    flights: Vec<Option<Flight>>,
    /// Where copies are placed.
    run: Run,
    /// Copies that maps name, and no durable checkpoint yet; and those that the one under way has.
    held: VecDeque<u32>,
    held_by_checkpoint: VecDeque<u32>,
    wish: Wish,
    /// Where copies of the journal come.
    areas: Vec<(usize, JournalArea)>,
    /// Their clusters that are zeroes, and what those are written from.
    zeroed: u32,
    zeroes: Option<DmaBuffer>,
    /// Writes of zeroes and flushes that have not ended.
    outstanding: u32,
    /// It ends without having done what it should.
    failure: Option<VolumeError>,
    /// Clusters in use on the device when it began.
    total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// First touches that have a place on the device end.
    Ending,
    /// Its blocks stop being own, in leaves from this number on.
    Disowning {
        leaf: u32,
    },
    /// Writes that began before end.
    Grace {
        epoch: u64,
    },
    /// Clusters of a position are copied.
    Copying,
    /// A position is to be looked for.
    Seeking,
    /// The journal's new places are being written with zeroes, and flushed.
    Zeroing,
    Flushing,
    /// The journal goes there from this block on; a checkpoint from which no earlier one is
    /// replayed has to be durable.
    Journal {
        from: u64,
    },
    /// A checkpoint is to have the maps as they are.
    Checkpoint,
    /// What was let go on the device is on its way to be free.
    Draining {
        since: Instant,
    },
    /// No superblock above this generation has the device.
    Unnaming {
        above: u64,
    },
    /// Lanes have not said yet that they have let it go.
    Lanes {
        left: usize,
    },
    /// It was given up: a checkpoint is to have the maps as they are, before the device is written.
    Undoing,
}

/// A checkpoint that began after it was wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    Wanted,
    Begun,
}

/// A cluster that is being copied.
struct Flight {
    from: u32,
    to: u32,
    buffer: DmaBuffer,
    state: Copying,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copying {
    Reading,
    Read,
    Writing,
}

/// Token number of what is no copy of a cluster.
const NO_FLIGHT: u32 = u32::MAX;

/// How far an evacuation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The device.
    pub device: String,
    /// Bytes that were on it when it began, and those that still are.
    pub total_bytes: u64,
    /// See `total_bytes`.
    pub left_bytes: u64,
}

impl std::fmt::Debug for Evacuation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evacuation").field("name", &self.name).field("step", &self.step).finish()
    }
}

impl Evacuation {
    fn is_on(&self, cluster: u32) -> bool {
        cluster >> DEVICE_SHIFT == self.device as u32
    }

    pub(super) fn wants_checkpoint(&self) -> bool {
        let unnaming = matches!(self.step, Step::Unnaming { .. } | Step::Journal { .. });
        self.wish == Wish::Wanted || unnaming || self.held.len() >= HELD_COPIES
    }

    pub(super) fn handle_lane(&mut self) {
        if let Step::Lanes { left } = &mut self.step {
            *left -= 1;
        }
    }

    /// Whether a superblock has the journal's new places.
    fn is_named(&self, journal: &[JournalArea; 2]) -> bool {
        self.areas.iter().all(|(copy, area)| journal[*copy] == *area)
    }

    fn is_copying(&self) -> bool {
        self.flights.iter().any(Option::is_some)
    }
}

fn device_of(extent: Extent) -> usize {
    (extent.cluster() >> DEVICE_SHIFT) as usize
}

impl Owner {
    /// Begins to remove a device; what becomes of that is told by [`Call::AwaitRemoval`]. False:
    /// the call waits.
    pub(super) fn begin_remove(
        &mut self,
        id: u64,
        call: &Call,
        name: &str,
    ) -> Result<bool, VolumeError> {
        self.check_devices_still(name)?;
        let device = self.device_named(name)?;
        let refuse = |reason: String| Err(VolumeError::Device { device: name.to_owned(), reason });
        if self.superblock.devices.iter().filter(|slot| slot.present).count() == 1 {
            return refuse("it is the only one of the pool; pool destroy frees it".to_owned());
        }
        if let Some(damaged) = self.damaged.first() {
            let volume = &damaged.entry.name;
            return refuse(format!("{volume} is damaged, so not all on it can be moved"));
        }
        let areas = self.superblock.journal.iter();
        let areas: Vec<usize> = areas
            .enumerate()
            .filter(|(_, area)| area.first_cluster >> DEVICE_SHIFT == device as u32)
            .map(|(copy, _)| copy)
            .collect();
        self.space.set_readonly(device, true);
        let total = self.space.used_clusters(device);
        let journal = areas.len() as u64 * u64::from(self.superblock.journal[0].clusters());
        // With nothing on it, reserved volumes may still count on its free space.
        let areas = match self.has_room_for(id, call, (total + journal).max(1)) {
            Ok(true) => self.place_areas(device, &areas).ok_or_else(|| {
                "the others have no room in one piece for its copy of the journal".to_owned()
            }),
            // It is asked again when what is being released is free.
            Ok(false) => {
                self.space.set_readonly(device, false);
                return Ok(false);
            }
            Err(error) => Err(format!("the others have no room for it: {error}")),
        };
        let areas = match areas {
            Ok(areas) => areas,
            Err(reason) => {
                self.space.set_readonly(device, false);
                return refuse(reason);
            }
        };
        self.removal = None;
        self.changing = Devices::Removing(Box::new(Evacuation {
            device,
            name: name.to_owned(),
            step: Step::Ending,
            position: 0,
            wanted: Vec::new(),
            copies: HashMap::new(),
            flights: (0..COPIES).map(|_| None).collect(),
            run: Run::default(),
            held: VecDeque::new(),
            held_by_checkpoint: VecDeque::new(),
            wish: Wish::Nothing,
            areas,
            zeroed: 0,
            zeroes: None,
            outstanding: 0,
            failure: None,
            total,
        }));
        Ok(true)
    }

    /// Takes places for these copies of the journal: on a device that has no other one, if there is
    /// one.
    fn place_areas(
        &mut self,
        device: usize,
        copies: &[usize],
    ) -> Option<Vec<(usize, JournalArea)>> {
        let blocks = self.superblock.journal[0].blocks;
        let clusters = self.superblock.journal[0].clusters();
        let mut placed: Vec<(usize, JournalArea)> = Vec::new();
        for &copy in copies {
            let other = match placed.first() {
                Some((_, area)) => area.first_cluster,
                None => self.superblock.journal[1 - copy].first_cluster,
            };
            let all = (0..self.superblock.devices.len()).filter(|index| *index != device);
            let (apart, beside): (Vec<usize>, Vec<usize>) =
                all.partition(|index| *index as u32 != other >> DEVICE_SHIFT);
            let mut places = apart.into_iter().chain(beside);
            match places.find_map(|index| self.space.take_fixed(index, clusters)) {
                Some(first_cluster) => placed.push((copy, JournalArea { first_cluster, blocks })),
                None => {
                    self.give_areas_back(&placed);
                    return None;
                }
            }
        }
        Some(placed)
    }

    fn give_areas_back(&mut self, areas: &[(usize, JournalArea)]) {
        for (_, area) in areas {
            self.space.free_fixed(area.first_cluster, area.clusters());
        }
    }

    /// Gives a removal up, if it is not as good as done; it is told as a failure.
    pub(super) fn cancel_removal(&mut self, name: &str) -> Result<(), VolumeError> {
        let refuse = |reason: &str| {
            let (device, reason) = (name.to_owned(), reason.to_owned());
            Err(VolumeError::Device { device, reason })
        };
        match &mut self.changing {
            Devices::Removing(evacuation) if evacuation.name == name => match evacuation.step {
                Step::Unnaming { .. } | Step::Lanes { .. } => refuse("it is as good as removed"),
                _ => {
                    let reason = "its removal was cancelled".to_owned();
                    let error = VolumeError::Device { device: name.to_owned(), reason };
                    evacuation.failure.get_or_insert(error);
                    Ok(())
                }
            },
            _ => refuse("it is not being removed"),
        }
    }

    /// A write finds no room. Whether a removal is why: it is given up, if it is not as good as
    /// done, so that what need not grow can be overwritten, and the write waits for its end.
    pub(super) fn removal_yields(&mut self) -> bool {
        let Devices::Removing(one) = &mut self.changing else { return false };
        if !matches!(one.step, Step::Unnaming { .. } | Step::Lanes { .. }) {
            let reason = "the pool is too full to be without it".to_owned();
            let error = VolumeError::Device { device: one.name.clone(), reason };
            one.failure.get_or_insert(error);
        }
        true
    }

    /// How far a removal is.
    pub(super) fn removal_info(&self) -> Option<Removal> {
        let Devices::Removing(evacuation) = &self.changing else { return None };
        let bytes = u64::from(CLUSTER_BYTES);
        Some(Removal {
            device: evacuation.name.clone(),
            total_bytes: evacuation.total * bytes,
            left_bytes: self.space.used_clusters(evacuation.device) * bytes,
        })
    }

    /// Copies that are in use, though no map need name them any more.
    pub(super) fn held_copies(&self) -> impl Iterator<Item = Release> + '_ {
        let evacuation = match &self.changing {
            Devices::Removing(evacuation) => Some(evacuation),
            _ => None,
        };
        let held =
            evacuation.into_iter().flat_map(|one| one.held.iter().chain(&one.held_by_checkpoint));
        held.map(|cluster| Release::Cluster { cluster: *cluster, mask: 0, last: true })
    }

    /// Goes on with an evacuation.
    pub(super) fn poll_evacuation(&mut self, mut one: Box<Evacuation>, context: &mut Context<'_>) {
        if self.journal.is_broken() {
            one.failure.get_or_insert(VolumeError::Broken);
            // Until then devices use its buffers.
            if !one.is_copying() && one.outstanding == 0 {
                return self.end_removal(one, Err(VolumeError::Broken));
            }
        }
        if one.failure.is_some() && !self.is_undoing(&mut one) {
            self.changing = Devices::Removing(one);
            return;
        }
        match one.step {
            Step::Ending if !self.has_touches_on(&one) => one.step = Step::Disowning { leaf: 1 },
            Step::Disowning { leaf } => self.disown(&mut one, leaf),
            Step::Grace { epoch } if self.epoch.is_over(epoch) => one.step = Step::Seeking,
            Step::Seeking => self.seek(&mut one),
            Step::Copying => self.copy(&mut one, context),
            Step::Zeroing => self.zero_areas(&mut one, context),
            Step::Flushing if one.outstanding == 0 => {
                self.journal.add_areas(one.areas.iter().map(|(_, area)| *area));
                one.step = Step::Journal { from: self.journal.next() };
            }
            Step::Checkpoint if one.wish == Wish::Nothing => {
                one.step = Step::Draining { since: context.now };
            }
            Step::Draining { since } => self.drain(&mut one, since, context.now),
            Step::Lanes { left: 0 } => return self.end_removal(one, Ok(())),
            Step::Undoing => {
                self.space.set_readonly(one.device, false);
                let outcome = one.failure.take().map_or(Ok(()), Err);
                return self.end_removal(one, outcome);
            }
            _ => {}
        }
        self.changing = Devices::Removing(one);
    }

    /// Undoes what could not be done. False while that waits for something, or is all there is to
    /// do.
    fn is_undoing(&mut self, one: &mut Evacuation) -> bool {
        // What has been read is not written any more.
        for flight in &mut one.flights {
            if let Some(flight) = flight.take_if(|flight| flight.state == Copying::Read) {
                self.memory.free(flight.buffer);
                self.space.untake(flight.to);
            }
        }
        match one.step {
            // The journal's way to another place is not gone back.
            Step::Journal { .. } => return true,
            Step::Undoing if one.wish == Wish::Nothing => return true,
            Step::Undoing => return false,
            _ if one.is_copying() || one.outstanding > 0 => return false,
            _ => {}
        }
        for (_, copy) in one.copies.drain() {
            self.space.untake(copy);
        }
        one.wanted.clear();
        self.give_areas_back(&std::mem::take(&mut one.areas));
        (one.step, one.wish) = (Step::Undoing, Wish::Wanted);
        false
    }

    fn has_touches_on(&mut self, one: &Evacuation) -> bool {
        for state in self.entries.values_mut().filter(|state| one.is_on(state.cluster)) {
            (state.cluster, state.used) = (0, 0);
        }
        let mut touches = self.writes.iter().flat_map(|write| &write.touches);
        touches.any(|touch| one.is_on(touch.cluster))
    }

    fn disown(&mut self, one: &mut Evacuation, leaf: u32) {
        let next = match self.bugs.is(Planted::MoveOwn) {
            true => None,
            false => self.tree.disown(leaf, LEAVES_PER_TURN, |cluster| one.is_on(cluster)),
        };
        one.step = match next {
            Some(leaf) => Step::Disowning { leaf },
            None => Step::Grace { epoch: self.epoch.retire() },
        };
    }

    /// Looks for the next position that has something on the device.
    fn seek(&mut self, one: &mut Evacuation) {
        let mut leaves = Vec::new();
        let found = self.tree.leaves_from(one.position, POSITIONS_PER_TURN, &mut leaves);
        let Some(position) = found else { return self.end_walk(one) };
        one.position = position;
        let device = one.device as u32;
        let is_on = |cluster: u32| cluster >> DEVICE_SHIFT == device;
        let is_found = !leaves.is_empty();
        for leaf in leaves {
            self.tree.clusters_in(leaf, is_on, &mut one.wanted);
        }
        one.wanted.sort_unstable_by(|a, b| b.cmp(a));
        one.wanted.dedup();
        match (is_found, one.wanted.is_empty()) {
            (_, false) => one.step = Step::Copying,
            (true, true) => self.leave_position(one),
            (false, true) => {}
        }
    }

    fn leave_position(&mut self, one: &mut Evacuation) {
        let device = one.device;
        let is_on = |extent: Extent| !extent.is_absent() && device_of(extent) == device;
        self.tree.rewrite(one.position, is_on);
        one.position += 1;
        one.step = Step::Seeking;
    }

    fn copy(&mut self, one: &mut Evacuation, context: &mut Context<'_>) {
        while one.held.len() < HELD_COPIES
            && let Some(index) = one.flights.iter().position(Option::is_none)
            && let Some(from) = one.wanted.pop()
        {
            // A part of the pool's memory may be in use for a checkpoint.
            let Some(buffer) = self.memory.alloc(CLUSTER_BYTES) else {
                one.wanted.push(from);
                break;
            };
            let Some(to) = self.space.take(&mut one.run) else {
                self.memory.free(buffer);
                let reason = "the pool is too full to be without it".to_owned();
                one.failure = Some(VolumeError::Device { device: one.name.clone(), reason });
                return;
            };
            let (place, span) = (Place { cluster: from, offset: 0 }, Some(buffer.span()));
            let token = Token::Move(index as u32);
            context.devices.submit(Op::Read, place, CLUSTER_BYTES, span, token);
            let state = Copying::Reading;
            one.flights[index] = Some(Flight { from, to, buffer, state });
        }
        for (index, flight) in one.flights.iter_mut().enumerate() {
            let Some(flight) = flight.as_mut().filter(|f| f.state == Copying::Read) else {
                continue;
            };
            let (place, span) = (Place { cluster: flight.to, offset: 0 }, flight.buffer.span());
            let (op, token) = (Op::Write { fua: false }, Token::Move(index as u32));
            context.devices.submit(op, place, CLUSTER_BYTES, Some(span), token);
            flight.state = Copying::Writing;
            if self.bugs.is(Planted::MoveUnwritten) {
                one.copies.insert(flight.from, flight.to);
            }
        }
        let early = self.bugs.is(Planted::MoveUnwritten);
        let reads = one.flights.iter().flatten().filter(|f| f.state != Copying::Writing).count();
        if one.wanted.is_empty() && (!one.is_copying() || (early && reads == 0)) {
            self.publish_copies(one);
            self.leave_position(one);
        }
    }

    /// Something of an evacuation has ended.
    pub(super) fn handle_moved(&mut self, index: u32, status: Status) {
        let Devices::Removing(one) = &mut self.changing else { return };
        if !status.is_success() {
            let reason = match index {
                NO_FLIGHT => format!("the journal cannot be moved: {status:?}"),
                _ => format!("a cluster cannot be moved: {status:?}"),
            };
            one.failure.get_or_insert(VolumeError::Device { device: one.name.clone(), reason });
        }
        if index == NO_FLIGHT {
            one.outstanding -= 1;
            return;
        }
        let flight = &mut one.flights[index as usize];
        match flight {
            Some(flight) if flight.state == Copying::Reading && status.is_success() => {
                flight.state = Copying::Read;
            }
            _ => {
                let Some(flight) = flight.take() else { unreachable!("no copy is on its way") };
                self.memory.free(flight.buffer);
                match status.is_success() {
                    true if self.bugs.is(Planted::MoveUnwritten) => {}
                    true => drop(one.copies.insert(flight.from, flight.to)),
                    false => self.space.untake(flight.to),
                }
            }
        }
    }

    /// What is in the position's clusters that have been copied is in the copies from now on. Which
    /// entries that are is looked for only now.
    fn publish_copies(&mut self, one: &mut Evacuation) {
        let copies = std::mem::take(&mut one.copies);
        let is_held = !self.bugs.is(Planted::MoveUnheld);
        for copy in copies.values().filter(|_| is_held) {
            self.space.acquire(*copy);
            one.held.push_back(*copy);
        }
        let mut released = std::mem::take(&mut self.released);
        self.tree.replace(one.position, &copies, &mut self.space, &mut released);
        self.releases.add(0, &mut released);
        self.released = released;
        // Only with the bug: what nobody holds.
        for copy in copies.into_values() {
            if self.space.is_taken(copy) {
                self.space.untake(copy);
            }
        }
    }

    /// Nothing that the maps name is on the device any more.
    fn end_walk(&mut self, one: &mut Evacuation) {
        let device = one.device;
        let is_on = |extent: Extent| !extent.is_absent() && device_of(extent) == device;
        self.tree.rewrite_roots(is_on);
        for volume in self.volumes.values_mut().filter(|volume| is_on(volume.extent)) {
            volume.changed = true;
        }
        match one.areas.is_empty() {
            true => (one.step, one.wish) = (Step::Checkpoint, Wish::Wanted),
            false => one.step = Step::Zeroing,
        }
    }

    /// What was written there before might look like a block of this journal.
    fn zero_areas(&mut self, one: &mut Evacuation, context: &mut Context<'_>) {
        if one.outstanding > 0 {
            return;
        }
        let token = Token::Move(NO_FLIGHT);
        let clusters =
            |area: &JournalArea| area.first_cluster..area.first_cluster + area.clusters();
        let mut all = one.areas.iter().flat_map(|(_, area)| clusters(area));
        let Some(cluster) = all.nth(one.zeroed as usize) else {
            drop(all);
            one.zeroes.take().into_iter().for_each(|buffer| self.memory.free(buffer));
            one.outstanding = context.devices.flush(token);
            one.step = Step::Flushing;
            return;
        };
        if one.zeroes.is_none() {
            one.zeroes = self.memory.alloc(CLUSTER_BYTES);
            one.zeroes.iter().for_each(|buffer| buffer.span().clear());
        }
        let Some(buffer) = &one.zeroes else { return };
        let (op, place) = (Op::Write { fua: false }, Place { cluster, offset: 0 });
        context.devices.submit(op, place, CLUSTER_BYTES, Some(buffer.span()), token);
        (one.zeroed, one.outstanding) = (one.zeroed + 1, 1);
    }

    /// Whether the device is out of use already.
    fn drain(&mut self, one: &mut Evacuation, since: Instant, now: Instant) {
        if self.space.used_clusters(one.device) == 0 && !self.is_checkpointing() {
            self.superblock.devices[one.device].present = false;
            one.step = Step::Unnaming { above: self.superblock.generation };
        } else if now.duration_since(since) >= PATIENCE {
            (one.position, one.step) = (0, Step::Seeking);
        } else if let Some(last) = self.releases.last_position() {
            self.closing.want(last + 1);
        }
    }

    /// A checkpoint takes hold of the maps.
    pub(super) fn give_copies_to_checkpoint(&mut self) {
        if let Devices::Removing(one) = &mut self.changing {
            one.held_by_checkpoint.append(&mut one.held);
            if one.wish == Wish::Wanted {
                one.wish = Wish::Begun;
            }
        }
    }

    /// A superblock is written from which replay begins at this journal block: it names the places
    /// of the journal where all of that is.
    pub(super) fn name_areas(&mut self, start: u64) {
        if let Devices::Removing(one) = &self.changing
            && matches!(one.step, Step::Journal { from } if start >= from)
        {
            for (copy, area) in &one.areas {
                self.superblock.journal[*copy] = *area;
            }
        }
    }

    /// A checkpoint is durable.
    pub(super) fn go_on_after_checkpoint(&mut self) {
        if !matches!(self.changing, Devices::Removing(_)) {
            return;
        }
        let Devices::Removing(mut one) = std::mem::take(&mut self.changing) else { return };
        for cluster in one.held_by_checkpoint.drain(..) {
            let release = Release::Cluster { cluster, mask: 0, last: true };
            self.releases.add_item(0, Item::Map(release));
        }
        if one.wish == Wish::Begun {
            one.wish = Wish::Nothing;
        }
        match one.step {
            Step::Journal { .. } if one.is_named(&self.superblock.journal) => {
                for area in self.journal.set_areas(self.superblock.journal) {
                    self.space.free_fixed(area.first_cluster, area.clusters());
                }
                one.areas.clear();
                (one.step, one.wish) = (Step::Checkpoint, Wish::Wanted);
            }
            Step::Unnaming { above } if self.superblock.generation > above => {
                self.space.remove_device(one.device);
                self.names[one.device].clear();
                let device = one.device;
                self.tell_lanes(|| ToLane::RemoveDevice(device));
                one.step = Step::Lanes { left: self.shared.to_lane.len() };
            }
            _ => {}
        }
        self.changing = Devices::Removing(one);
    }

    fn end_removal(&mut self, mut one: Box<Evacuation>, outcome: Result<(), VolumeError>) {
        self.space.close_run(&mut one.run);
        self.ready.extend(self.wait_space.drain(..));
        one.zeroes.take().into_iter().for_each(|buffer| self.memory.free(buffer));
        match self.removal_call.take() {
            Some(id) => self.reply(id, outcome.map(|()| Reply::Done)),
            None => self.removal = Some(outcome),
        }
    }

    /// Somebody wants to know what became of a removal.
    pub(super) fn await_removal(&mut self, id: u64) -> Result<(), VolumeError> {
        if let Some(outcome) = self.removal.take() {
            self.reply(id, outcome.map(|()| Reply::Done));
            return Ok(());
        }
        match (&self.changing, self.removal_call) {
            (Devices::Removing(_), None) => self.removal_call = Some(id),
            _ => {
                let reason = "no device of the pool is being removed".to_owned();
                return Err(VolumeError::Invalid { reason });
            }
        }
        Ok(())
    }
}
