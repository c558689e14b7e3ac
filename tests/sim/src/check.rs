//! After an end: what a pool that was opened again holds, against what it may hold.

use std::collections::BTreeMap;

use crate::history::{Unit, Value, Version};
use crate::model::{Cut, Model, Object, Presence, Violation, held};
use crate::pattern::{Found, identify};
use crate::world::End;

/// Compares a pool with the model of the life before, which stays as it is: it may go on in
/// another world. What was found makes the model of the next life.
#[derive(Debug)]
pub struct Check<'a> {
    model: &'a Model,
    end: End,
    /// What is there, and its units.
    sizes: BTreeMap<String, usize>,
    cuts: Vec<Cut>,
    found: BTreeMap<String, Vec<Value>>,
}

impl<'a> Check<'a> {
    /// After an end, with the names and sizes in bytes of what the pool has.
    ///
    /// # Errors
    /// Something is missing, or back, or has another size.
    pub fn new(
        model: &'a Model,
        end: End,
        bytes: &BTreeMap<String, u64>,
    ) -> Result<Self, Violation> {
        for (name, object) in &model.objects {
            let Presence { is_there: expected, pending } = object.presence;
            if bytes.contains_key(name) != expected && !pending {
                return Err(Violation::Presence { name: name.clone(), expected });
            }
        }
        let mut sizes = BTreeMap::new();
        for (name, &bytes) in bytes {
            let Some(object) = model.objects.get(name) else {
                return Err(Violation::Presence { name: name.clone(), expected: false });
            };
            let units = (bytes / u64::from(model.unit_bytes())) as usize;
            if units != model.units_of(object).len() && Some(units) != object.new_size {
                return Err(Violation::Size { name: name.clone(), bytes });
            }
            sizes.insert(name.clone(), units);
        }
        model.check_groups(&sizes)?;
        let (cuts, found) = (model.cuts.clone(), BTreeMap::new());
        Ok(Self { model, end, sizes, cuts, found })
    }

    /// The next units of a volume or snapshot.
    ///
    /// # Errors
    /// A unit holds what it must not.
    pub fn units(&mut self, name: &str, bytes: &[u8]) -> Result<(), Violation> {
        let mut values = self.found.remove(name).unwrap_or_default();
        let object = &self.model.objects[name];
        // It was rolled back if what it was has become a snapshot.
        let rolled_back = object.rollback.as_ref();
        let rolled_back = rolled_back.filter(|(kept, _)| self.sizes.contains_key(kept));
        let units = rolled_back.map_or(object.units.as_slice(), |(_, units)| units);
        for bytes in bytes.chunks_exact(self.model.unit_bytes() as usize) {
            let index = values.len() as u64;
            let found = identify(self.model.salt, bytes, index);
            values.push(match (&object.snapshot, units.get(index as usize)) {
                (Some(_), _) => self.snapshot_unit(name, object, index, found)?,
                (None, Some(unit)) => self.volume_unit(name, unit, index, found)?,
                // It has become longer than anybody was told.
                (None, None) if found == Found::Value(0) => 0,
                (None, None) => {
                    let (name, allowed) = (name.to_owned(), vec![0]);
                    return Err(Violation::Holds { name, unit: index, found, allowed });
                }
            });
        }
        self.found.insert(name.to_owned(), values);
        Ok(())
    }

    fn volume_unit(
        &self,
        name: &str,
        unit: &Unit,
        index: u64,
        found: Found,
    ) -> Result<Value, Violation> {
        match self.end {
            End::ProcessDeath => held(name, index, found, unit.live(self.model.now)),
            End::PowerLoss => held(name, index, found, unit.durable()),
        }
    }

    fn snapshot_unit(
        &mut self,
        name: &str,
        object: &Object,
        index: u64,
        found: Found,
    ) -> Result<Value, Violation> {
        let Some(frozen) = &object.snapshot else { unreachable!("the caller's match") };
        let unit = &self.model.units_of(object)[index as usize];
        if self.end == End::PowerLoss && object.presence.pending && !object.presence.is_there {
            // Nobody was told of it. It is of some instant since it was asked for, and may lack
            // what was not stable then.
            return held(name, index, found, unit.versions());
        }
        let value = frozen.check(name, index, found, unit)?;
        if frozen.seen[index as usize].is_some() {
            return Ok(value);
        }
        let cut = self.cuts[frozen.cut].narrow(value, unit, frozen.asked);
        let apart = |_| Violation::NoInstant { name: name.to_owned(), unit: index, found };
        cut.map_err(apart).map(|()| value)
    }

    /// The model of the life that begins with what was found, all of it.
    pub fn into_model(self) -> Model {
        let mut model = self.model.clone();
        model.now += 2;
        model.active.clear();
        model.cuts = self.cuts;
        let (now, is_stable) = (model.now, self.end == End::PowerLoss);
        let adopted = model.pending_snapshots(&self.sizes);
        for (name, units) in adopted {
            if let Some(object) = model.objects.get_mut(&name) {
                object.units = units;
            }
        }
        model.objects.retain(|name, _| self.sizes.contains_key(name));
        for (name, object) in &mut model.objects {
            object.presence = Presence { is_there: true, pending: false };
            let values = &self.found[name];
            if let Some(frozen) = &mut object.snapshot {
                frozen.seen = values.iter().copied().map(Some).collect();
                continue;
            }
            match object.rollback.take() {
                Some((kept, units)) if self.sizes.contains_key(&kept) => object.set_units(units),
                _ => {}
            }
            (object.new_size, object.is_freezing) = (None, false);
            object.resize(values.len(), now - 1);
            object.restart(values, now, is_stable);
        }
        model
    }
}

impl Model {
    /// The units of an object; those of a snapshot that nobody was told of are its volume's.
    fn units_of<'a>(&'a self, object: &'a Object) -> &'a [Unit] {
        match &object.snapshot {
            Some(frozen) if object.units.is_empty() => &self.objects[&frozen.origin].units,
            _ => &object.units,
        }
    }

    /// Snapshots that were made although nobody was told, with their units.
    fn pending_snapshots(&self, sizes: &BTreeMap<String, usize>) -> Vec<(String, Vec<Unit>)> {
        let pending = |(name, object): &(&String, &Object)| {
            object.snapshot.is_some() && object.units.is_empty() && sizes.contains_key(*name)
        };
        let units =
            |(name, object): (&String, &Object)| (name.clone(), self.units_of(object).to_vec());
        self.objects.iter().filter(pending).map(units).collect()
    }

    /// Snapshots that were asked for together are there together.
    fn check_groups(&self, sizes: &BTreeMap<String, usize>) -> Result<(), Violation> {
        let mut groups: BTreeMap<usize, (Vec<&String>, bool)> = BTreeMap::new();
        for (name, object) in &self.objects {
            // One that was made before may have been deleted alone.
            let (Some(frozen), true) = (&object.snapshot, object.units.is_empty()) else {
                continue;
            };
            let (there, all) = groups.entry(frozen.cut).or_insert((Vec::new(), true));
            match sizes.contains_key(name) {
                true => there.push(name),
                false => *all = false,
            }
        }
        match groups.into_values().find(|(there, all)| !there.is_empty() && !all) {
            Some((there, _)) => Err(Violation::Group { name: there[0].clone() }),
            None => Ok(()),
        }
    }
}

impl Object {
    /// Begins another life with what its units were found to hold.
    fn restart(&mut self, values: &[Value], now: u64, is_stable: bool) {
        self.busy.clear();
        for (index, (unit, &value)) in (0..).zip(self.units.iter_mut().zip(values)) {
            if is_stable {
                *unit = Unit::new(Version::given(value, now, true));
            } else {
                unit.restart(value, now);
            }
            if !unit.is_settled() {
                self.busy.push(index);
            }
        }
    }
}
