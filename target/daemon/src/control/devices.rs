//! SSDs, from the kernel and back.
//!
//! A device is brought up, watched and closed by [`Control::poll_devices`], a step at a time, so
//! that a controller that takes its seconds does not hold up anything else. Its block devices are
//! named after its serial number: that stays with the data when slots and addresses change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use api::results::{DeviceInfo, QueuePairStats};
use api::{DeviceBind, ErrorCode, RpcError};
use bdev::{Bdev, NvmeBdev};
use nvme::{Config, NvmeDevice};
use serde_json::{Value, json};
use vfio::pci::{Bdf, Controller, System};
use vfio::{Device, VfioError};

use super::Control;
use super::exports::bdev_error;
use super::socket::Reply;

/// The SSDs that are ours.
#[derive(Default)]
pub(super) struct Devices {
    open: BTreeMap<Bdf, OpenDevice>,
}

struct OpenDevice {
    device: NvmeDevice<Device>,
    /// Names of its block devices, each with its namespace.
    bdevs: Vec<(String, Arc<NvmeBdev<Device>>)>,
    stage: Stage,
}

/// Where a device is between the kernel and the kernel.
enum Stage {
    /// It is being brought up for whoever waits for the answer.
    Starting(Option<Reply>),
    /// It serves I/O, or recovers.
    Serving,
    /// It failed for good, or the kernel wants it back: its exports are going.
    Leaving,
    /// It is being closed, to be given back to the kernel.
    Closing(Option<Reply>),
    /// It is being closed because the daemon ends, and stays with vfio-pci.
    Ending,
}

impl Control {
    pub(super) fn device_list(&self) -> Result<Value, RpcError> {
        let system = System::default();
        let controllers = system.controllers().map_err(vfio_error)?;
        let info = |controller: &Controller| self.device_info(&system, controller);
        Ok(json!(controllers.iter().map(info).collect::<Vec<_>>()))
    }

    fn device_info(&self, system: &System, controller: &Controller) -> DeviceInfo {
        let open = self.devices.open.get(&controller.bdf);
        let identity = open.and_then(|open| open.device.identity());
        let bdevs = open.map(|open| open.bdevs.iter().map(|(name, _)| name.clone()).collect());
        DeviceInfo {
            bdf: controller.bdf.to_string(),
            vendor_id: controller.vendor,
            device_id: controller.device,
            model: controller.model.clone().or_else(|| identity.map(|id| id.model.clone())),
            serial: controller.serial.clone().or_else(|| identity.map(|id| id.serial.clone())),
            driver: controller.driver.clone(),
            iommu_group: controller.iommu_group,
            open: open.is_some(),
            used_by: if open.is_some() { Vec::new() } else { system.uses(controller) },
            signatures: system.signatures(controller).unwrap_or_default(),
            bdevs: bdevs.unwrap_or_default(),
        }
    }

    pub(super) fn bind_device(&mut self, params: &DeviceBind, reply: Reply) {
        match self.start_device(&params.bdf, params.force) {
            // The answer follows when the controller is up.
            Ok(open) => open.stage = Stage::Starting(Some(reply)),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Takes again the SSDs that were ours before a restart. Whatever they bear was put there by
    /// our hosts, or its owner has said that it may go.
    pub(crate) fn restore_devices(&mut self) {
        for (bdf, serial) in self.state.devices.clone() {
            // While the kernel's driver has it, the serial number is known before anything is done.
            let found = bdf.parse().ok().and_then(|bdf| System::default().controller(bdf).ok());
            let found = found.and_then(|controller| controller.serial);
            if found.as_ref().is_some_and(|found| *found != serial) {
                tracing::error!(bdf, serial, ?found, "another SSD sits there: left alone");
            } else if let Err(error) = self.start_device(&bdf, true) {
                tracing::error!(bdf, %error, "not there after the restart");
            }
        }
        let starting = |open: &OpenDevice| matches!(open.stage, Stage::Starting(_));
        while self.devices.open.values().any(starting) {
            self.poll_devices(Instant::now());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn start_device(&mut self, bdf: &str, force: bool) -> Result<&mut OpenDevice, RpcError> {
        let bdf: Bdf = bdf.parse().map_err(vfio_error)?;
        if self.devices.open.contains_key(&bdf) {
            let message = format!("{bdf} is driven by forebay already");
            return Err(RpcError::new(ErrorCode::Exists, message));
        }
        let system = System::default();
        system.bind(bdf, force).map_err(vfio_error)?;
        let started = self.open_device(bdf);
        if started.is_err()
            && let Err(error) = system.release(bdf)
        {
            tracing::error!(%bdf, %error, "not given back to the kernel");
        }
        let device = started?;
        let stage = Stage::Starting(None);
        let open = OpenDevice { device, bdevs: Vec::new(), stage };
        Ok(self.devices.open.entry(bdf).or_insert(open))
    }

    fn open_device(&mut self, bdf: Bdf) -> Result<NvmeDevice<Device>, RpcError> {
        let pci = Arc::new(Device::open(bdf, self.arena).map_err(vfio_error)?);
        let config = Config { cores: self.cores.len() as u16, ..Config::default() };
        NvmeDevice::start(pci, self.arena, config, Instant::now())
            .map_err(|error| RpcError::new(ErrorCode::Failed, format!("{bdf}: {error}")))
    }

    pub(super) fn release_device(&mut self, bdf: &str, reply: Reply) {
        let start = || -> Result<(Bdf, bool), RpcError> {
            let bdf: Bdf = bdf.parse().map_err(vfio_error)?;
            let Some(open) = self.devices.open.get(&bdf) else {
                // Not ours: all that is left to do is to give it to the kernel's driver.
                System::default().release(bdf).map_err(vfio_error)?;
                return Ok((bdf, false));
            };
            for (name, _) in &open.bdevs {
                if let Some(holder) = self.bdevs.holder(name) {
                    let message = format!("{name} on {bdf} is in use by {holder}");
                    let error = RpcError::new(ErrorCode::InUse, message);
                    return Err(error.with_advice("end the export first: forebay unexport NQN"));
                }
            }
            Ok((bdf, true))
        };
        match start() {
            Ok((bdf, true)) => {
                self.forget_bdevs(bdf);
                self.state.devices.remove(&bdf.to_string());
                if let Some(open) = self.devices.open.get_mut(&bdf) {
                    open.device.begin_close(Instant::now());
                    open.stage = Stage::Closing(Some(reply));
                }
            }
            Ok((bdf, false)) => drop(reply.send(self.describe(bdf))),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Lets every device take its next step.
    pub(super) fn poll_devices(&mut self, now: Instant) {
        let bdfs: Vec<Bdf> = self.devices.open.keys().copied().collect();
        for bdf in bdfs {
            let Some(open) = self.devices.open.get_mut(&bdf) else { continue };
            open.device.poll(now);
            let health = open.device.health();
            match (&mut open.stage, health) {
                (Stage::Starting(reply), nvme::Health::Live) => {
                    let reply = reply.take();
                    open.stage = Stage::Serving;
                    let result = self.add_bdevs(bdf);
                    if let Some(reply) = reply {
                        let _ = reply.send(result);
                    }
                }
                (Stage::Starting(reply), nvme::Health::Failed) => {
                    let reply = reply.take();
                    let fault = open.device.fault().map(ToString::to_string).unwrap_or_default();
                    self.give_back(bdf);
                    let error = RpcError::new(ErrorCode::Failed, format!("{bdf}: {fault}"));
                    match reply {
                        Some(reply) => drop(reply.send(Err(error))),
                        None => tracing::error!(%bdf, fault, "the SSD did not come up"),
                    }
                }
                (Stage::Serving, nvme::Health::Failed) => {
                    let fault = open.device.fault().map(ToString::to_string).unwrap_or_default();
                    tracing::error!(%bdf, fault, "the SSD is lost");
                    open.stage = Stage::Leaving;
                    self.withdraw_exports(bdf);
                }
                (Stage::Leaving, _) => self.finish_leaving(bdf),
                (Stage::Closing(reply), nvme::Health::Failed) => {
                    let reply = reply.take();
                    self.give_back(bdf);
                    let saved = self.save_state();
                    if let Some(reply) = reply {
                        let _ = reply.send(saved.and_then(|()| self.describe(bdf)));
                    }
                }
                _ => {}
            }
        }
    }

    /// Closes a device that has ended and gives it back to the kernel's driver.
    fn give_back(&mut self, bdf: Bdf) {
        // Its file descriptor closes with the last queue pair, which went with the last channel.
        self.devices.open.remove(&bdf);
        if let Err(error) = System::default().release(bdf) {
            tracing::error!(%bdf, %error, "not given back to the kernel");
        }
    }

    /// Makes a block device of each namespace of a controller that has come up.
    fn add_bdevs(&mut self, bdf: Bdf) -> Result<Value, RpcError> {
        let Some(open) = self.devices.open.get_mut(&bdf) else { return self.describe(bdf) };
        let serial = open.device.identity().map(|id| id.serial.clone()).unwrap_or_default();
        let known = self.state.devices.get(&bdf.to_string());
        if known.is_some_and(|known| *known != serial) {
            open.device.begin_close(Instant::now());
            open.stage = Stage::Closing(None);
            let message = format!("{bdf} is another SSD than before the restart: {serial}");
            tracing::error!(message);
            return Err(RpcError::new(ErrorCode::Failed, message));
        }
        for (nsid, fault) in open.device.unusable_namespaces() {
            tracing::warn!(%bdf, nsid, %fault, "the namespace is left alone");
        }
        let nsids: Vec<u32> = open.device.namespaces().iter().map(|found| found.nsid).collect();
        let mut names = Vec::new();
        for nsid in nsids {
            let taken = |name: &str| self.bdevs.get(name).is_some();
            let name = bdev_name(&serial, bdf, nsid, taken);
            let bdev = Arc::new(NvmeBdev::new(&name, &open.device, nsid).map_err(bdev_error)?);
            self.bdevs.add(Arc::clone(&bdev) as Arc<dyn Bdev>).map_err(bdev_error)?;
            open.bdevs.push((name.clone(), bdev));
            names.push(name);
        }
        self.state.devices.insert(bdf.to_string(), serial);
        self.save_state()?;
        for name in &names {
            self.serve_waiting(name);
        }
        self.describe(bdf)
    }

    /// Ends the exports of a device that is lost; they stay in the state, and are served again when
    /// the device comes back.
    fn withdraw_exports(&mut self, bdf: Bdf) {
        let Some(open) = self.devices.open.get(&bdf) else { return };
        let names: Vec<String> = open.bdevs.iter().map(|(name, _)| name.clone()).collect();
        for name in names {
            self.stop_serving(&name);
        }
    }

    /// Once nothing uses its block devices any more, a lost device is closed.
    fn finish_leaving(&mut self, bdf: Bdf) {
        let Some(open) = self.devices.open.get(&bdf) else { return };
        if open.bdevs.iter().any(|(name, _)| self.bdevs.holder(name).is_some()) {
            return;
        }
        self.forget_bdevs(bdf);
        self.devices.open.remove(&bdf);
        tracing::info!(%bdf, "closed");
    }

    /// Begins to shut every device down, because the daemon ends.
    pub(super) fn begin_close_devices(&mut self, now: Instant) {
        for open in self.devices.open.values_mut() {
            open.device.begin_close(now);
            open.stage = Stage::Ending;
        }
    }

    pub(super) fn devices_ended(&self) -> bool {
        self.devices.open.values().all(|open| open.device.health() == nvme::Health::Failed)
    }

    fn forget_bdevs(&mut self, bdf: Bdf) {
        let Some(open) = self.devices.open.get_mut(&bdf) else { return };
        for (name, _) in open.bdevs.drain(..) {
            if let Err(error) = self.bdevs.remove(&name) {
                tracing::error!(%error, "a block device of a closed SSD is in use");
            }
        }
    }

    /// PCI address of the SSD that a block device is on.
    pub(super) fn device_of_bdev(&self, name: &str) -> Option<String> {
        let has_it = |open: &OpenDevice| open.bdevs.iter().any(|(other, _)| other == name);
        let found = self.devices.open.iter().find(|(_, open)| has_it(open));
        found.map(|(bdf, _)| bdf.to_string())
    }

    /// Counters of every queue pair.
    pub(super) fn queue_pair_stats(&self) -> Vec<QueuePairStats> {
        let of = |(bdf, open): (&Bdf, &OpenDevice)| {
            let bdf = bdf.to_string();
            let stats = open.device.queues().stats();
            (1u16..).zip(stats).map(move |(qid, stats)| QueuePairStats {
                bdf: bdf.clone(),
                qid,
                submissions: stats.submissions,
                completions: stats.completions,
                errors: stats.errors,
                stale: stats.stale,
                doorbells: stats.doorbells,
            })
        };
        self.devices.open.iter().flat_map(of).collect()
    }

    /// How a device is now, for the answer to a call that changed it.
    fn describe(&self, bdf: Bdf) -> Result<Value, RpcError> {
        let system = System::default();
        let controller = system.controller(bdf).map_err(vfio_error)?;
        Ok(json!(self.device_info(&system, &controller)))
    }
}

/// Serial number and NSID, as far as a name may have its characters; with the address where another
/// SSD claims the same serial number.
fn bdev_name(serial: &str, bdf: Bdf, nsid: u32, taken: impl Fn(&str) -> bool) -> String {
    let plain = |text: &str| -> String {
        let good = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
        text.chars().map(good).collect::<String>().trim_matches(['-', '_', '.']).to_owned()
    };
    let address = plain(&bdf.to_string());
    let base = plain(serial);
    let base = if base.is_empty() { format!("ssd-{address}") } else { base };
    let name = format!("{base}n{nsid}");
    if taken(&name) { format!("{base}-{address}n{nsid}") } else { name }
}

fn vfio_error(error: VfioError) -> RpcError {
    let code = match &error {
        VfioError::BadBdf { .. } => ErrorCode::InvalidParams,
        VfioError::NoDevice { .. } | VfioError::NotNvme { .. } => ErrorCode::NotFound,
        VfioError::InUse { .. } | VfioError::OtherDriver { .. } => ErrorCode::InUse,
        VfioError::BearsData { .. } | VfioError::ContentsUnknown { .. } => ErrorCode::NeedsForce,
        VfioError::NoIommu { .. } | VfioError::NoVfioPci { .. } => ErrorCode::Unavailable,
        _ => ErrorCode::Failed,
    };
    RpcError::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_serial_number_and_never_collide() {
        let bdf: Bdf = "0000:3b:00.0".parse().unwrap();
        let name = |serial: &str, taken: bool| bdev_name(serial, bdf, 1, |_| taken);
        assert_eq!(name("S4EWNX0R", false), "S4EWNX0Rn1");
        assert_eq!(name("S4EWNX0R", true), "S4EWNX0R-0000-3b-00.0n1");
        assert_eq!(name("a b/c", false), "a-b-cn1");
        assert_eq!(name("  ", false), "ssd-0000-3b-00.0n1");
        for name in [name("S4EWNX0R", true), name("a b/c", false), name("", false)] {
            assert_eq!(api::check_bdev_name(&name), Ok(()), "{name}");
        }
    }
}
