//! What volumes and snapshots must hold: the contract of `docs/volumes.md`, unit by unit.
//!
//! A unit is what a device writes all or nothing. The model is told what the host did and saw and
//! knows nothing of clusters, maps and journals.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use thiserror::Error;

use crate::history::{NEVER, Time, Unit, Value, Version};
use crate::pattern::{Found, identify};

/// A broken promise.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// A unit holds what it must not.
    #[error("unit {unit} of {name} holds {found}; allowed: {allowed:?}")]
    Holds {
        /// The volume or snapshot.
        name: String,
        /// Number of the unit.
        unit: u64,
        /// What it holds.
        found: Found,
        /// Numbers of the writes that it may hold; 0 for zeroes.
        allowed: Vec<Value>,
    },
    /// No instant had what a group of snapshots holds.
    #[error(
        "unit {unit} of {name} holds {found}, which does not go with what its group holds elsewhere"
    )]
    NoInstant {
        /// The snapshot.
        name: String,
        /// Number of the unit.
        unit: u64,
        /// What it holds.
        found: Found,
    },
    /// A volume or snapshot has a size that it should not have.
    #[error("{name} has {bytes} bytes")]
    Size {
        /// The volume or snapshot.
        name: String,
        /// What it has.
        bytes: u64,
    },
    /// Some snapshots of a group are there, and some are not.
    #[error("{name} is there without others of its group")]
    Group {
        /// One that is there.
        name: String,
    },
    /// A volume or snapshot is gone, or one that was deleted is back.
    #[error("{name} should {}be there", if *.expected { "" } else { "not " })]
    Presence {
        /// The volume or snapshot.
        name: String,
        /// It should be there.
        expected: bool,
    },
}

/// Whether a volume or snapshot is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Presence {
    pub(crate) is_there: bool,
    /// The call that makes or deletes it has not been answered.
    pub(crate) pending: bool,
}

/// A volume, a snapshot or a clone.
#[derive(Clone, Debug)]
pub struct Object {
    pub(crate) presence: Presence,
    block_bytes: u32,
    pub(crate) units: Vec<Unit>,
    /// Units that are not settled; may name one twice.
    pub(crate) busy: Vec<u32>,
    pub(crate) snapshot: Option<Frozen>,
    /// A snapshot of it has not been answered. Nothing is forgotten meanwhile: that may be of any
    /// instant since it was asked for.
    pub(crate) is_freezing: bool,
    /// A rollback that was not answered: the snapshot of what it was, and what it will be.
    pub(crate) rollback: Option<(String, Vec<Unit>)>,
    /// Units that it will have, when the call is answered that changes its size.
    pub(crate) new_size: Option<usize>,
}

/// What makes a snapshot of a volume's units.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    pub(crate) origin: String,
    /// Number of its group.
    pub(crate) cut: usize,
    /// When the snapshot was asked for. Its units have no version that began after the answer.
    pub(crate) asked: Time,
    /// What each unit was found to hold.
    pub(crate) seen: Vec<Option<Value>>,
}

/// The instants that a group of snapshots can be of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) earliest: Time,
    pub(crate) latest: Time,
}

/// An operation that was submitted, and its value.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    number: u64,
    /// What its units hold then.
    pub value: Value,
}

/// Everything that a pool should hold.
#[derive(Clone, Debug)]
pub struct Model {
    /// Tells this pool's bytes from those of earlier ones.
    pub salt: u64,
    unit_bytes: u32,
    pub(crate) now: Time,
    pub(crate) objects: BTreeMap<String, Object>,
    pub(crate) cuts: Vec<Cut>,
    /// When reads and snapshots that have not ended began.
    pub(crate) active: BTreeSet<Time>,
    /// Volumes for which space is kept.
    reserved: BTreeSet<String>,
}

impl Model {
    /// An empty pool on devices that write `unit_bytes` all or nothing.
    pub fn new(salt: u64, unit_bytes: u32) -> Self {
        let (objects, active) = (BTreeMap::new(), BTreeSet::new());
        let reserved = BTreeSet::new();
        Self { salt, unit_bytes, now: 1, objects, cuts: Vec::new(), active, reserved }
    }

    /// Space is kept for a volume from here on, or perhaps no longer.
    pub fn reserve(&mut self, name: &str, reserved: bool) {
        match reserved {
            true => drop(self.reserved.insert(name.to_owned())),
            false => drop(self.reserved.remove(name)),
        }
    }

    /// Whether no write to it may be refused for want of space.
    pub fn is_reserved(&self, name: &str) -> bool {
        self.reserved.contains(name)
    }

    /// Whether there is such a volume or snapshot, or may be.
    pub fn knows(&self, name: &str) -> bool {
        self.objects.contains_key(name)
    }

    /// Bytes of a unit.
    pub fn unit_bytes(&self) -> u32 {
        self.unit_bytes
    }

    /// Names of what is there, for all that the host knows.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let there =
            |(_, object): &(&String, &Object)| object.presence.is_there && !object.presence.pending;
        self.objects.iter().filter(there).map(|(name, _)| name.as_str())
    }

    /// Whether it is a snapshot.
    pub fn is_snapshot(&self, name: &str) -> bool {
        self.objects[name].snapshot.is_some()
    }

    /// Units of a volume or snapshot.
    pub fn units(&self, name: &str) -> u64 {
        self.objects[name].units.len() as u64
    }

    /// Bytes of its logical blocks.
    pub fn block_bytes(&self, name: &str) -> u32 {
        self.objects[name].block_bytes
    }

    fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    fn object(&mut self, name: &str) -> &mut Object {
        self.objects.get_mut(name).expect("an object of the model")
    }

    fn horizon(&self) -> Time {
        self.active.first().copied().unwrap_or(self.now)
    }

    /// Writes, or with `zeroes` makes zero, these units.
    pub fn begin_write(&mut self, name: &str, units: &[Range<u64>], zeroes: bool) -> Operation {
        let now = self.tick();
        let value = if zeroes { 0 } else { now };
        let (ended, acknowledged, stable) = (NEVER, NEVER, false);
        let version =
            Version { operation: now, value, submitted: now, ended, acknowledged, stable };
        let horizon = self.horizon();
        let object = self.object(name);
        for unit in units.iter().cloned().flatten() {
            if !object.is_freezing {
                object.units[unit as usize].prune(horizon);
            }
            object.units[unit as usize].begin(version);
            object.busy.push(unit as u32);
        }
        Operation { number: now, value }
    }

    /// That was not taken after all.
    pub fn cancel_write(&mut self, name: &str, units: &[Range<u64>], operation: Operation) {
        for unit in units.iter().cloned().flatten() {
            self.object(name).units[unit as usize].cancel(operation.number);
        }
    }

    /// That ended.
    pub fn end_write(
        &mut self,
        name: &str,
        units: &[Range<u64>],
        operation: Operation,
        success: bool,
        fua: bool,
    ) {
        let now = self.tick();
        for unit in units.iter().cloned().flatten() {
            let unit = &mut self.object(name).units[unit as usize];
            unit.end(operation.number, now, success, fua);
        }
    }

    /// A read, flush or snapshot begins; the model remembers what it needs until that ends.
    pub fn begin(&mut self) -> Time {
        let now = self.tick();
        self.active.insert(now);
        now
    }

    /// It did not, after all.
    pub fn cancel(&mut self, since: Time) {
        self.active.remove(&since);
    }

    /// A read that [`Model::begin`] began found these bytes from a unit on.
    ///
    /// # Errors
    /// A unit holds what it must not.
    pub fn end_read(
        &mut self,
        name: &str,
        first: u64,
        bytes: &[u8],
        since: Time,
    ) -> Result<(), Violation> {
        self.active.remove(&since);
        let (now, salt) = (self.tick(), self.salt);
        let is_oldest = self.active.first().is_none_or(|oldest| *oldest > since);
        let chunks = bytes.chunks_exact(self.unit_bytes as usize);
        for (index, bytes) in (first..).zip(chunks) {
            let found = identify(salt, bytes, index);
            if self.object(name).snapshot.is_some() {
                self.see_snapshot(name, index, found)?;
                continue;
            }
            let object = self.object(name);
            let is_freezing = object.is_freezing;
            let unit = &mut object.units[index as usize];
            let value = held(name, index, found, unit.live(since))?;
            if is_oldest && since < now && !is_freezing {
                unit.narrow(value, since);
            }
        }
        Ok(())
    }

    /// A snapshot's unit was read: it holds the same for ever.
    fn see_snapshot(&mut self, name: &str, index: u64, found: Found) -> Result<(), Violation> {
        let object = &self.objects[name];
        let Some(frozen) = &object.snapshot else { return Ok(()) };
        let (at, cut) = (index as usize, frozen.cut);
        let value = frozen.check(name, index, found, &object.units[at])?;
        if frozen.seen[at].is_some() {
            return Ok(());
        }
        self.cuts[cut]
            .narrow(value, &object.units[at], frozen.asked)
            .map_err(|Apart| Violation::NoInstant { name: name.to_owned(), unit: index, found })?;
        if let Some(frozen) = &mut self.object(name).snapshot {
            frozen.seen[at] = Some(value);
        }
        Ok(())
    }

    /// A flush that [`Model::begin`] began ended.
    pub fn end_flush(&mut self, name: &str, since: Time, success: bool) {
        self.active.remove(&since);
        self.tick();
        if !success {
            return;
        }
        let horizon = self.horizon();
        let object = self.object(name);
        for unit in std::mem::take(&mut object.busy) {
            let state = &mut object.units[unit as usize];
            state.flush(since);
            if !object.is_freezing {
                state.prune(horizon);
            }
            if !state.is_settled() {
                object.busy.push(unit);
            }
        }
        object.busy.sort_unstable();
        object.busy.dedup();
    }

    /// A volume of zeroes is asked for.
    pub fn begin_create(&mut self, name: &str, block_bytes: u32, bytes: u64) {
        let now = self.tick();
        let units = bytes / u64::from(self.unit_bytes);
        let unit = Unit::new(Version::given(0, now, true));
        let units = vec![unit; units as usize];
        self.objects.insert(name.to_owned(), Object::pending(block_bytes, units, None));
    }

    /// A clone of a snapshot is asked for.
    pub fn begin_clone(&mut self, snapshot: &str, name: &str) {
        let now = self.tick();
        let object = &self.objects[snapshot];
        let units = object.copied_units(now);
        self.objects.insert(name.to_owned(), Object::pending(object.block_bytes, units, None));
    }

    /// Snapshots are asked for: the volumes and what their snapshots are to be called.
    pub fn begin_snapshots(&mut self, members: &[(String, String)]) -> Time {
        let asked = self.begin();
        self.cuts.push(Cut { earliest: asked, latest: NEVER });
        let cut = self.cuts.len() - 1;
        for (volume, name) in members {
            // Its units come with the answer, or from what a restart finds.
            let object = self.object(volume);
            object.is_freezing = true;
            let seen = vec![None; object.units.len()];
            let frozen = Frozen { origin: volume.clone(), cut, asked, seen };
            let snapshot = Object::pending(object.block_bytes, Vec::new(), Some(frozen));
            self.objects.insert(name.clone(), snapshot);
        }
        asked
    }

    /// They were, or were not.
    pub fn end_snapshots(&mut self, members: &[(String, String)], asked: Time, success: bool) {
        let now = self.tick();
        for (volume, name) in members {
            self.object(volume).is_freezing = false;
            if success {
                let units = self.objects[volume].units.clone();
                let snapshot = self.object(name);
                snapshot.units = units;
                snapshot.answer(true);
                if let Some(Frozen { cut, .. }) = snapshot.snapshot {
                    self.cuts[cut].latest = now;
                }
            } else {
                self.objects.remove(name);
            }
        }
        self.active.remove(&asked);
    }

    /// The call that makes a volume or clone was answered.
    pub fn end_create(&mut self, name: &str, success: bool) {
        self.tick();
        if success {
            self.object(name).answer(true);
        } else {
            self.objects.remove(name);
        }
    }

    /// It is to be deleted.
    pub fn begin_delete(&mut self, name: &str) {
        self.object(name).presence.pending = true;
    }

    /// It was, or was not.
    pub fn end_delete(&mut self, name: &str, success: bool) {
        self.tick();
        if success {
            self.object(name).answer(false);
        } else {
            self.object(name).presence.pending = false;
        }
    }

    /// A volume of which nothing is in flight is to be what a snapshot is; what it was becomes
    /// another snapshot.
    pub fn begin_rollback(&mut self, name: &str, snapshot: &str, kept: &str) -> Time {
        let asked = self.begin_snapshots(&[(name.to_owned(), kept.to_owned())]);
        let units = self.objects[snapshot].copied_units(asked);
        self.object(name).rollback = Some((kept.to_owned(), units));
        asked
    }

    /// It is, or is not.
    pub fn end_rollback(&mut self, name: &str, asked: Time, success: bool) {
        let Some((kept, units)) = self.object(name).rollback.take() else { return };
        self.end_snapshots(&[(name.to_owned(), kept)], asked, success);
        if success {
            self.object(name).set_units(units);
        }
    }

    /// A volume of which nothing is in flight is to have another size.
    pub fn begin_resize(&mut self, name: &str, bytes: u64) {
        let units = bytes / u64::from(self.unit_bytes);
        self.object(name).new_size = Some(units as usize);
    }

    /// It has, or has not.
    pub fn end_resize(&mut self, name: &str, success: bool) {
        let now = self.tick();
        let object = self.object(name);
        if let Some(size) = object.new_size.take().filter(|_| success) {
            object.resize(size, now);
        }
    }
}

/// The value found, if it is one of these.
///
/// # Errors
/// It is not.
pub(crate) fn held<'a>(
    name: &str,
    unit: u64,
    found: Found,
    versions: impl Iterator<Item = &'a Version> + Clone,
) -> Result<Value, Violation> {
    if let Found::Value(value) = found
        && versions.clone().any(|version| version.value == value)
    {
        return Ok(value);
    }
    let allowed = versions.map(|version| version.value).collect();
    Err(Violation::Holds { name: name.to_owned(), unit, found, allowed })
}

/// No instant is left.
#[derive(Debug)]
pub(crate) struct Apart;

impl Cut {
    /// A unit of the group holds this.
    pub(crate) fn narrow(&mut self, value: Value, unit: &Unit, asked: Time) -> Result<(), Apart> {
        let same = unit.live(asked).filter(|version| version.value == value);
        let mut earliest = NEVER;
        let mut latest = 0;
        for version in same {
            earliest = earliest.min(version.submitted);
            latest = latest.max(unit.replaced_at(version));
        }
        self.earliest = self.earliest.max(earliest);
        self.latest = self.latest.min(latest);
        if self.earliest <= self.latest { Ok(()) } else { Err(Apart) }
    }
}

impl Frozen {
    /// What a snapshot's unit may hold while nothing was lost.
    pub(crate) fn check(
        &self,
        name: &str,
        index: u64,
        found: Found,
        unit: &Unit,
    ) -> Result<Value, Violation> {
        match self.seen[index as usize] {
            Some(value) if found == Found::Value(value) => Ok(value),
            Some(value) => {
                let (name, allowed) = (name.to_owned(), vec![value]);
                Err(Violation::Holds { name, unit: index, found, allowed })
            }
            None => held(name, index, found, unit.live(self.asked)),
        }
    }
}

impl Object {
    /// One whose call was not answered yet.
    fn pending(block_bytes: u32, units: Vec<Unit>, snapshot: Option<Frozen>) -> Self {
        let presence = Presence { is_there: false, pending: true };
        let busy = (0..units.len() as u32).collect();
        let (is_freezing, rollback, new_size) = (false, None, None);
        Self { presence, block_bytes, units, busy, snapshot, is_freezing, rollback, new_size }
    }

    /// What its call asked for is so, and outlives everything.
    fn answer(&mut self, is_there: bool) {
        self.presence = Presence { is_there, pending: false };
    }

    pub(crate) fn set_units(&mut self, units: Vec<Unit>) {
        self.busy = (0..units.len() as u32).collect();
        self.units = units;
    }

    /// What is new reads as zeroes.
    pub(crate) fn resize(&mut self, size: usize, now: Time) {
        self.units.resize(size, Unit::new(Version::given(0, now, true)));
        self.busy.retain(|&unit| (unit as usize) < size);
    }

    /// A snapshot's units as those of a volume that begins with them.
    fn copied_units(&self, now: Time) -> Vec<Unit> {
        let Some(frozen) = &self.snapshot else { return self.units.clone() };
        let held = |value| Version::given(value, now, true);
        let copy = |(unit, seen): (&Unit, &Option<Value>)| match seen {
            Some(value) => Unit::new(held(*value)),
            None => {
                let versions: Vec<_> = unit.live(frozen.asked).map(|v| held(v.value)).collect();
                Unit::of(&versions)
            }
        };
        self.units.iter().zip(&frozen.seen).map(copy).collect()
    }
}
