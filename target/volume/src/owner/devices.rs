//! The pool's devices change while it is open: one comes, or has become larger.
//!
//! A device that comes gets a channel on every lane first, then labels that do not count, as their
//! generation is lower than that of any superblock of the pool. Only a checkpoint's superblock
//! makes it one of the pool, and only when that is durable are its clusters given out. So no
//! journal ever names a device that a superblock does not, and a device whose label does not count
//! is not missed: wherever the end comes, the pool opens with it or without it.

use bdev::Op;
use dma::DmaBuffer;
use nvme_spec::status::Status;

use super::calls::Outcome;
use super::evacuate::Evacuation;
use super::{Call, Context, Owner, Planted, Reply, VolumeError};
use crate::devices::{Place, Token};
use crate::format::{DeviceSlot, PAGE_BYTES, Superblock, slots};
use crate::limits::{CLUSTER_BYTES, DEVICE_SHIFT, MAX_DEVICE_CLUSTERS, MAX_DEVICES};
use crate::pool::NewDevice;
use crate::shared::{LaneDevice, ToLane};

/// Generations of labels that do not count: those of superblocks begin above them.
const LABEL_GENERATIONS: [u64; 2] = [0, 1];

/// What is changing about the devices: one thing at a time.
#[derive(Debug, Default)]
pub(super) enum Devices {
    #[default]
    Still,
    Adding(Box<Adding>),
    Growing(Growing),
    Removing(Box<Evacuation>),
}

/// A device on its way into the pool.
pub(super) struct Adding {
    /// Of the call.
    id: u64,
    index: usize,
    name: String,
    slot: DeviceSlot,
    step: Step,
    buffer: Option<DmaBuffer>,
    status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Lanes have not said yet that they have a channel.
    Lanes { left: usize },
    /// Labels that do not count are being written.
    Labels { left: u32 },
    /// They are being flushed.
    Flush { left: u32 },
    /// A superblock of a higher generation than this names it, and is not durable yet.
    Superblock { above: u64 },
    /// It does not come: lanes have not said yet that they have no channel any more.
    Undo { left: usize },
}

impl Step {
    /// Whether a superblock of this generation names the device.
    fn is_named_by(self, generation: u64) -> bool {
        matches!(self, Step::Superblock { above } if generation > above)
    }
}

/// Devices that have become larger.
#[derive(Debug)]
pub(super) struct Growing {
    id: u64,
    /// Which, with their clusters.
    sizes: Vec<(usize, u32)>,
    /// As above.
    above: u64,
}

impl std::fmt::Debug for Adding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adding").field("name", &self.name).field("step", &self.step).finish()
    }
}

impl Owner {
    /// Calls that are about devices.
    pub(super) fn execute_devices(&mut self, id: u64, call: &Call) -> Outcome {
        match call {
            Call::Grow(bytes) => self.begin_grow(id, bytes)?,
            Call::Remove(name) => {
                let begun = self.begin_remove(id, call, name)?;
                return Ok(begun.then_some(Reply::Done));
            }
            Call::AwaitRemoval => self.await_removal(id)?,
            Call::CancelRemoval(name) => {
                self.cancel_removal(name)?;
                return Ok(Some(Reply::Done));
            }
            _ => unreachable!("{call:?} is not about devices"),
        }
        Ok(None)
    }

    /// A device is to be one of the pool.
    pub(crate) fn handle_new_device(&mut self, id: u64, device: NewDevice) {
        self.idle = false;
        match self.check_new_device(&device) {
            Ok(index) => self.begin_add(id, index, device),
            Err(error) => self.reply(id, Err(error)),
        }
    }

    /// The number that it gets.
    fn check_new_device(&self, device: &NewDevice) -> Result<usize, VolumeError> {
        self.check_devices_still(&device.name)?;
        let refuse =
            |reason: String| Err(VolumeError::Device { device: device.name.clone(), reason });
        if device.block_bytes > self.superblock.block_bytes {
            return refuse(format!(
                "its blocks have {} bytes; those of the pool have {}",
                device.block_bytes, self.superblock.block_bytes
            ));
        }
        if device.channels.len() != self.shared.to_lane.len() {
            return refuse("it has not as many channels as the pool has lanes".to_owned());
        }
        let vacant = self.superblock.devices.iter().position(|slot| !slot.present);
        let index = vacant.unwrap_or(self.superblock.devices.len());
        match index < MAX_DEVICES {
            true => Ok(index),
            false => refuse(format!("the pool has {MAX_DEVICES} devices already")),
        }
    }

    /// Devices change one after another.
    pub(super) fn check_devices_still(&self, device: &str) -> Result<(), VolumeError> {
        if self.journal.is_broken() {
            return Err(VolumeError::Broken);
        }
        match &self.changing {
            Devices::Still => Ok(()),
            _ => {
                let reason = "another device of the pool comes, grows or goes just now".to_owned();
                Err(VolumeError::Device { device: device.to_owned(), reason })
            }
        }
    }

    fn begin_add(&mut self, id: u64, index: usize, device: NewDevice) {
        let NewDevice { name, uuid, clusters, block_bytes, volatile, channels } = device;
        let left = channels.len();
        for (ring, channel) in self.shared.to_lane.iter().zip(channels) {
            let device = LaneDevice { channel, block_bytes, volatile };
            let sent = ring.push(ToLane::AddDevice(index, device));
            assert!(sent.is_ok(), "one change of devices at a time");
        }
        self.changing = Devices::Adding(Box::new(Adding {
            id,
            index,
            name,
            slot: DeviceSlot { uuid, clusters, present: true },
            step: Step::Lanes { left },
            buffer: None,
            status: Status::SUCCESS,
        }));
    }

    /// A lane has a channel, or has one no more.
    pub(super) fn handle_lane_devices(&mut self) {
        match &mut self.changing {
            Devices::Adding(adding) => {
                if let Step::Lanes { left } | Step::Undo { left } = &mut adding.step {
                    *left -= 1;
                }
            }
            Devices::Removing(evacuation) => evacuation.handle_lane(),
            Devices::Still | Devices::Growing(_) => {}
        }
    }

    /// A label has been written or flushed.
    pub(super) fn handle_label(&mut self, status: Status) {
        let Devices::Adding(adding) = &mut self.changing else { return };
        if let Step::Labels { left } | Step::Flush { left } = &mut adding.step {
            *left -= 1;
        }
        if !status.is_success() {
            adding.status = status;
        }
    }

    /// Whether a checkpoint is wanted for what changes.
    pub(super) fn devices_want_checkpoint(&self) -> bool {
        match &self.changing {
            Devices::Still => false,
            Devices::Adding(adding) => matches!(adding.step, Step::Superblock { .. }),
            Devices::Growing(_) => true,
            Devices::Removing(evacuation) => evacuation.wants_checkpoint(),
        }
    }

    /// Goes on with what changes; says whether there is something.
    pub(super) fn poll_devices(&mut self, context: &mut Context<'_>) -> usize {
        if matches!(self.changing, Devices::Still) {
            return 0;
        }
        match std::mem::take(&mut self.changing) {
            Devices::Still => {}
            Devices::Adding(adding) => self.poll_adding(adding, context),
            Devices::Growing(growing) if self.journal.is_broken() => {
                self.reply(growing.id, Err(VolumeError::Broken));
            }
            Devices::Growing(growing) => self.changing = Devices::Growing(growing),
            Devices::Removing(evacuation) => self.poll_evacuation(evacuation, context),
        }
        1
    }

    fn poll_adding(&mut self, mut adding: Box<Adding>, context: &mut Context<'_>) {
        let cluster = (adding.index as u32) << DEVICE_SHIFT;
        match adding.step {
            // Until they are written, the device uses their buffer.
            Step::Labels { left } | Step::Flush { left } if left > 0 => {}
            _ if self.journal.is_broken() => {
                adding.buffer.take().into_iter().for_each(|buffer| self.memory.free(buffer));
                return self.reply(adding.id, Err(VolumeError::Broken));
            }
            Step::Lanes { left: 0 } => {
                let Some(left) = self.write_labels(&mut adding, cluster, context) else {
                    return self.undo_add(adding);
                };
                adding.step = Step::Labels { left };
                if self.bugs.is(Planted::DeviceUsedUnnamed) {
                    self.space.add_device(adding.index, adding.slot.clusters);
                }
            }
            Step::Labels { .. } if adding.status.is_success() => {
                let left = context.devices.flush_one(adding.index, Token::Label);
                adding.step = Step::Flush { left };
            }
            Step::Flush { .. } if adding.status.is_success() => self.name_device(&mut adding),
            Step::Labels { .. } | Step::Flush { .. } => return self.undo_add(adding),
            Step::Undo { left: 0 } => {
                let reason = format!("its label cannot be written: {:?}", adding.status);
                let error = VolumeError::Device { device: adding.name, reason };
                return self.reply(adding.id, Err(error));
            }
            _ => {}
        }
        self.changing = Devices::Adding(adding);
    }

    /// Both copies of both generations, so that one stays whole whatever is written over another.
    fn write_labels(
        &mut self,
        adding: &mut Adding,
        cluster: u32,
        context: &mut Context<'_>,
    ) -> Option<u32> {
        let named = self.with_device(adding.index, adding.slot);
        let (device, device_index) = (adding.slot.uuid, adding.index as u8);
        let bytes = PAGE_BYTES as u32;
        let buffer = self.memory.alloc(bytes * LABEL_GENERATIONS.len() as u32)?;
        let mut left = 0;
        for (at, generation) in (0..).step_by(PAGE_BYTES).zip(LABEL_GENERATIONS) {
            let label = Superblock { generation, device, device_index, ..named.clone() };
            let span = buffer.span().subspan(at, bytes);
            span.write(0, &label.encode()[..]);
            for offset in slots(generation) {
                let place = Place { cluster, offset: offset as u32 };
                let op = Op::Write { fua: false };
                context.devices.submit(op, place, bytes, Some(span), Token::Label);
                left += 1;
            }
        }
        adding.buffer = Some(buffer);
        Some(left)
    }

    fn with_device(&self, index: usize, slot: DeviceSlot) -> Superblock {
        let mut superblock = self.superblock.clone();
        superblock.devices.resize(superblock.devices.len().max(index + 1), slot);
        superblock.devices[index] = slot;
        superblock.device_count = superblock.devices.len() as u8;
        superblock
    }

    /// Every superblock from the next one on names the device.
    fn name_device(&mut self, adding: &mut Adding) {
        adding.buffer.take().into_iter().for_each(|buffer| self.memory.free(buffer));
        self.superblock = self.with_device(adding.index, adding.slot);
        self.names[adding.index] = adding.name.clone();
        adding.step = Step::Superblock { above: self.superblock.generation };
    }

    fn undo_add(&mut self, mut adding: Box<Adding>) {
        adding.buffer.take().into_iter().for_each(|buffer| self.memory.free(buffer));
        if adding.status.is_success() {
            adding.status = Status::INTERNAL_ERROR;
        }
        adding.step = Step::Undo { left: self.shared.to_lane.len() };
        self.tell_lanes(|| ToLane::RemoveDevice(adding.index));
        self.changing = Devices::Adding(adding);
    }

    /// Devices, by name, have so many bytes now. Those that have become larger are used to their
    /// new size.
    pub(super) fn begin_grow(
        &mut self,
        id: u64,
        bytes: &[(String, u64)],
    ) -> Result<(), VolumeError> {
        self.check_devices_still(bytes.first().map_or("", |(name, _)| name))?;
        let mut sizes = Vec::new();
        for (name, bytes) in bytes {
            let index = self.device_named(name)?;
            let clusters = bytes / u64::from(CLUSTER_BYTES);
            let clusters = clusters.min(u64::from(MAX_DEVICE_CLUSTERS)) as u32;
            if clusters > self.superblock.devices[index].clusters {
                sizes.push((index, clusters));
            }
        }
        if sizes.is_empty() {
            self.reply(id, Ok(Reply::Pool(self.pool_info())));
            return Ok(());
        }
        for (index, clusters) in &sizes {
            self.superblock.devices[*index].clusters = *clusters;
        }
        self.changing = Devices::Growing(Growing { id, sizes, above: self.superblock.generation });
        Ok(())
    }

    pub(super) fn device_named(&self, name: &str) -> Result<usize, VolumeError> {
        let mut devices = self.superblock.devices.iter().zip(&self.names);
        devices.position(|(slot, known)| slot.present && known == name).ok_or_else(|| {
            let reason = "the pool has no such device".to_owned();
            VolumeError::Device { device: name.to_owned(), reason }
        })
    }

    /// A checkpoint is durable: what its superblock names for the first time is used.
    pub(super) fn use_named_devices(&mut self) {
        let generation = self.superblock.generation;
        match std::mem::take(&mut self.changing) {
            Devices::Adding(adding) if adding.step.is_named_by(generation) => {
                if !self.bugs.is(Planted::DeviceUsedUnnamed) {
                    self.space.add_device(adding.index, adding.slot.clusters);
                }
                self.ready.extend(self.wait_space.drain(..));
                self.reply(adding.id, Ok(Reply::Pool(self.pool_info())));
            }
            Devices::Growing(growing) if generation > growing.above => {
                for (index, clusters) in growing.sizes {
                    self.space.grow_device(index, clusters);
                }
                self.ready.extend(self.wait_space.drain(..));
                self.reply(growing.id, Ok(Reply::Pool(self.pool_info())));
            }
            other => self.changing = other,
        }
    }
}
