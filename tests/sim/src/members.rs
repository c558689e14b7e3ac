//! Devices that come to a pool, grow, and go, while I/O and calls go on.

use std::collections::BTreeSet;
use std::sync::Arc;

use bdev::Bdev;
use volume::{Call, Reply, VolumeError};

use crate::calls::Plan;
use crate::failure::Failure;
use crate::life::Life;
use crate::memory::Memory;
use crate::pool::OWNER_BYTES;

/// What changes about the devices of a pool. One that comes or goes may be a member or not when
/// everything ends.
#[derive(Debug, Default)]
pub(crate) struct Changing {
    /// Which comes or goes.
    pub device: Option<String>,
    /// The call that is answered when it has gone.
    pub removal: Option<u64>,
}

impl Life {
    /// Plans that a device comes, grows or goes.
    pub(crate) fn plan_devices(&mut self) {
        let all = self.pool.world.devices();
        // On a device that fails, coming and going fail as well: not with the pool, but before.
        if all.len() < 2 || !self.config.faults.is_empty() {
            return;
        }
        let names: Vec<String> = all.iter().map(|bdev| bdev.name().to_owned()).collect();
        let is_member = |name: &String| self.pool.members.contains(name);
        let (members, spares): (Vec<String>, Vec<String>) = names.into_iter().partition(is_member);
        let plan = match (self.random.below(4), &self.changing.removal) {
            (0, Some(_)) => self.changing.device.clone().map(Plan::CancelRemoval),
            (_, Some(_)) => None,
            (0, None) => Some(Plan::Grow),
            (1 | 2, None) if !spares.is_empty() => {
                Some(Plan::Add(self.random.pick(&spares).clone()))
            }
            _ => Some(Plan::Remove(self.random.pick(&members).clone())),
        };
        self.script.extend(plan);
    }

    /// Gets a device ready and lets it come; the number of the call.
    pub(crate) fn begin_add(&mut self, name: &str) -> Result<u64, Failure> {
        let bdev = self.pool.world.device(name);
        let mut memory = Memory::new(&[OWNER_BYTES], 4096);
        let (uuid, lanes) = (self.pool.uuid, self.pool.lanes());
        let prepared =
            volume::pool::prepare_device(&bdev, uuid, lanes, true, &mut memory.pools()[0]);
        let device = prepared.map_err(|error| Failure::Open { reason: error.to_string() })?;
        self.changing.device = Some(name.to_owned());
        Ok(self.pool.add_device(device))
    }

    /// Sizes of all devices.
    pub(crate) fn grow_call(&self) -> Call {
        let bytes = |bdev: &Arc<dyn Bdev>| {
            let geometry = bdev.geometry();
            geometry.block_count * u64::from(geometry.block_bytes)
        };
        let all = self.pool.world.devices();
        let members = all.iter().filter(|bdev| self.pool.members.contains(bdev.name()));
        Call::Grow(members.map(|bdev| (bdev.name().to_owned(), bytes(bdev))).collect())
    }

    /// A removal has begun, or was refused.
    pub(crate) fn removal_begun(&mut self, name: &str, begun: bool) {
        if begun {
            self.changing.device = Some(name.to_owned());
            self.changing.removal = Some(self.pool.call(Call::AwaitRemoval));
        }
    }

    /// A device has come, or not.
    pub(crate) fn added(&mut self, name: &str, success: bool) {
        self.changing.device = None;
        if success {
            self.pool.members.insert(name.to_owned());
        }
    }

    /// The removal has ended.
    pub(crate) fn removed(&mut self, reply: &Result<Reply, VolumeError>) -> Result<(), Failure> {
        self.changing.removal = None;
        let Some(name) = self.changing.device.take() else { return Ok(()) };
        match reply {
            Ok(_) => {
                self.statistics.removals += 1;
                self.pool.members.remove(&name);
                self.clear_label(&name)
            }
            Err(VolumeError::Device { .. }) => {
                self.statistics.refused += 1;
                Ok(())
            }
            Err(error) => Err(Failure::Refused { reason: format!("removal of {name}: {error}") }),
        }
    }

    fn clear_label(&mut self, name: &str) -> Result<(), Failure> {
        let bdev = self.pool.world.device(name);
        let mut memory = Memory::new(&[OWNER_BYTES], 4096);
        let cleared = volume::pool::clear_label(&bdev, &mut memory.pools()[0]);
        cleared.map_err(|error| Failure::Open { reason: error.to_string() })
    }

    /// Whether a pool that was opened after an end has the devices that it must have.
    pub(crate) fn check_members(&self, found: &BTreeSet<String>) -> Result<(), Failure> {
        let mut differ = found.symmetric_difference(&self.pool.members);
        match differ.find(|name| Some(*name) != self.changing.device.as_ref()) {
            None => Ok(()),
            Some(name) => {
                let what = format!("{name} is a member of the pool, or none, against its promise");
                Err(Failure::Damaged { what })
            }
        }
    }
}
