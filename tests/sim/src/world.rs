//! The world: devices under one lock, one source of chance, one count of steps, and images of what
//! an end at a step would leave behind.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bdev::{Bdev, BdevError, Busy, Channel, Completions, Geometry, Health, Io, Op};
use uuid::Uuid;

use crate::device::{Device, DeviceConfig, Faults, Queue};
use crate::random::{Random, mix};
use crate::store::{Fates, Store};

/// How everything ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Writes that no flush made stable survive or not, whole or sector by sector.
    PowerLoss,
    /// Completed writes survive, those in flight happen or not.
    ProcessDeath,
}

impl End {
    /// Both.
    pub const ALL: [End; 2] = [End::PowerLoss, End::ProcessDeath];
}

/// The steps of which images are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// None.
    Nothing,
    /// One step in so many, by chance, both ends of each; 1 is every step. Steps with a flush in
    /// flight come four times as often: what does not wait for it is wrong then.
    OneIn(u64),
    /// This one.
    At(u64, End),
}

/// What an end at a step leaves: a world can be made over it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The step.
    pub step: u64,
    /// How it ended.
    pub end: End,
    devices: Vec<(DeviceConfig, Store)>,
}

impl Image {
    /// All devices have become larger, by whole pages.
    pub(crate) fn grow(&mut self, bytes: u64) {
        for (config, store) in &mut self.devices {
            config.bytes += bytes;
            store.grow(config.bytes);
        }
    }
}

/// Devices that a seed drives. Everything in it happens on the caller's thread, in the order of
/// its calls: the same calls after the same seed have the same effect.
#[derive(Debug)]
pub struct World {
    shared: Arc<Mutex<State>>,
    devices: Vec<Arc<SimDevice>>,
}

#[derive(Debug)]
struct State {
    seed: u64,
    random: Random,
    devices: Vec<Device>,
    /// Counts submissions and completions: what "before" means on a device.
    now: u64,
    step: u64,
    trace: u64,
    watch: Watch,
    images: Vec<Image>,
    is_halted: bool,
}

impl World {
    /// Devices that were never written.
    pub fn new(seed: u64, configs: &[DeviceConfig]) -> Self {
        let device = |(index, config)| Device::new(config, Random::of(&[seed, index]).draw());
        Self::of(seed, (0..).zip(configs).map(device).collect())
    }

    /// The devices of an image, with power and nothing in flight.
    pub fn over(seed: u64, image: Image) -> Self {
        let devices = image.devices.into_iter();
        Self::of(seed, devices.map(|(config, store)| Device::over(config, store)).collect())
    }

    fn of(seed: u64, devices: Vec<Device>) -> Self {
        let geometries: Vec<Geometry> = devices.iter().map(|d| d.config.geometry()).collect();
        let state = State {
            seed,
            random: Random::new(seed),
            devices,
            now: 1,
            step: 0,
            trace: seed,
            watch: Watch::Nothing,
            images: Vec::new(),
            is_halted: false,
        };
        let shared = Arc::new(Mutex::new(state));
        let devices = geometries.into_iter().enumerate().map(|(index, geometry)| {
            let name = format!("sim{index}");
            let uuid = Uuid::from_u128(0x51D0_0000 + index as u128);
            Arc::new(SimDevice { name, uuid, index, geometry, shared: Arc::clone(&shared) })
        });
        let devices = devices.collect();
        Self { shared, devices }
    }

    /// Its devices.
    pub fn devices(&self) -> Vec<Arc<dyn Bdev>> {
        self.devices.iter().map(|device| Arc::clone(device) as Arc<dyn Bdev>).collect()
    }

    /// One of them, by its name.
    pub(crate) fn device(&self, name: &str) -> Arc<dyn Bdev> {
        let device = self.devices.iter().find(|device| device.name == name);
        Arc::clone(device.expect("names are those of the world")) as Arc<dyn Bdev>
    }

    /// Steps so far: submissions of everything that changes a device, and [`World::step_on`].
    pub fn step(&self) -> u64 {
        self.state().step
    }

    /// Counts a step at which nothing is submitted, such as an acknowledgement.
    pub fn step_on(&self) {
        self.state().step_on();
    }

    /// Takes images of these steps from now on.
    pub fn watch(&self, watch: Watch) {
        self.state().watch = watch;
    }

    /// The images taken since the last call.
    pub fn take_images(&self) -> Vec<Image> {
        std::mem::take(&mut self.state().images)
    }

    /// What an end right now would leave.
    pub fn image(&self, end: End) -> Image {
        self.state().image(end)
    }

    /// Devices complete everything at the next poll, or take their time again: for what is not
    /// attacked.
    pub fn hurry(&self, hurries: bool) {
        self.state().devices.iter_mut().for_each(|device| device.hurries = hurries);
    }

    /// From now on this goes wrong on a device.
    pub fn fail(&self, device: usize, faults: Faults) {
        self.state().devices[device].faults = faults;
    }

    /// From now on nothing completes: what is above the devices can be dropped, and changes
    /// nothing any more.
    pub fn halt(&self) {
        self.state().is_halted = true;
    }

    /// A number that two runs share only if they did the same.
    pub fn trace(&self) -> u64 {
        self.state().trace
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn step_on(&mut self) {
        self.step += 1;
        match self.watch {
            Watch::Nothing => {}
            Watch::OneIn(times) => {
                let is_flushing = self.devices.iter().any(Device::is_flushing);
                let times = if is_flushing { times.div_ceil(4) } else { times };
                // Chance of its own: watching changes nothing of what happens.
                if !Random::of(&[self.seed, self.step]).one_in(times) {
                    return;
                }
                let images = End::ALL.map(|end| self.image(end));
                self.images.extend(images);
            }
            Watch::At(step, end) if step == self.step => {
                let image = self.image(end);
                self.images.push(image);
            }
            Watch::At(..) => {}
        }
    }

    fn image(&self, end: End) -> Image {
        let device = |(index, device): (u64, &Device)| {
            let parts = [self.seed, self.step, end as u64, index];
            let mut fates = Fates::new(Random::of(&parts));
            let store = match end {
                End::PowerLoss => device.after_power_loss(&mut fates),
                End::ProcessDeath => device.after_process_death(&mut fates),
            };
            (device.config.clone(), store)
        };
        let devices = (0..).zip(&self.devices).map(device).collect();
        Image { step: self.step, end, devices }
    }
}

/// A block device of a world.
#[derive(Debug)]
struct SimDevice {
    name: String,
    uuid: Uuid,
    index: usize,
    geometry: Geometry,
    shared: Arc<Mutex<State>>,
}

impl Bdev for SimDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "sim"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn health(&self) -> Health {
        Health::Live
    }

    fn open_channel(&self, _core: usize) -> Result<Box<dyn Channel>, BdevError> {
        let mut guard = lock(&self.shared);
        let State { devices, random, .. } = &mut *guard;
        let channels = &mut devices[self.index].channels;
        channels.push(Queue::new(random));
        let channel = channels.len() - 1;
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(SimChannel { device: self.index, channel, shared }))
    }
}

struct SimChannel {
    device: usize,
    channel: usize,
    shared: Arc<Mutex<State>>,
}

impl Channel for SimChannel {
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        let mut guard = lock(&self.shared);
        let state = &mut *guard;
        state.now += 1;
        let device = &mut state.devices[self.device];
        device.submit(self.channel, io, state.now, &mut state.random)?;
        let (device, step) = (self.device, state.step);
        tracing::trace!(step, device, op = ?io.op, slba = io.slba, count = io.block_count, "I/O");
        let what = (self.device as u64) << 56 ^ u64::from(io.block_count) << 40 ^ io.slba;
        state.trace = mix(state.trace ^ what);
        if !matches!(io.op, Op::Read | Op::Compare) {
            state.step_on();
        }
        Ok(())
    }

    fn poll(&mut self, _now: Instant, done: &mut Completions) {
        let mut guard = lock(&self.shared);
        let State { devices, now, random, trace, is_halted, .. } = &mut *guard;
        if !*is_halted {
            devices[self.device].poll(self.channel, now, random, done, trace);
        }
    }
}

impl Drop for SimChannel {
    fn drop(&mut self) {
        let mut guard = lock(&self.shared);
        let State { devices, random, is_halted, .. } = &mut *guard;
        if !*is_halted {
            devices[self.device].abandon(self.channel, random);
        }
    }
}
