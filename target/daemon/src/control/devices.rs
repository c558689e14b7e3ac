//! SSDs, from the kernel and back.
//!
//! A device is brought up, watched and closed by [`Control::poll_devices`], a step at a time, so
//! that a controller that takes its seconds does not hold up anything else. What may block (sysfs,
//! drivers, processes, the reset on closing) is a [`Job`]; as long as one has a device, or it is
//! not in service for another reason, calls for the same device are refused. Its block devices are
//! named after its serial number: that stays with the data when slots and addresses change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::results::QueuePairStats;
use api::{DeviceBind, ErrorCode, RpcError};
use bdev::{Bdev, NvmeBdev};
use dma::Arena;
use nvme::{Config, NvmeDevice};
use nvme_spec::log_page::Smart;
use serde_json::json;
use vfio::Device;
use vfio::pci::{Bdf, Before, Controller, System};

use super::Control;
use super::device_info::{Seen, vfio_error};
use super::exports::bdev_error;
use super::job::Job;
use super::socket::Reply;
use crate::state::State;

/// How often an SSD is asked for its health, besides when it reports an event.
const SMART_PERIOD: Duration = Duration::from_secs(60);

/// The SSDs that are ours, or become it, or were it.
#[derive(Default)]
pub(super) struct Devices {
    taking: BTreeMap<Bdf, Taking>,
    open: BTreeMap<Bdf, OpenDevice>,
    returning: BTreeMap<Bdf, Returning>,
    /// The daemon ends: no device starts any more.
    ending: bool,
}

/// A device that is being taken from the kernel and opened.
struct Taking {
    job: Job<Taken>,
    wish: Wish,
}

struct Taken {
    pci: Arc<Device>,
    before: Before,
}

struct OpenDevice {
    device: NvmeDevice<Device>,
    before: Before,
    /// Names of its block devices, each with its namespace.
    bdevs: Vec<(String, Arc<NvmeBdev<Device>>)>,
    stage: Stage,
    smart_due: Instant,
}

/// Where an open device is between the kernel and the kernel.
enum Stage {
    /// It is being brought up.
    Starting(Wish),
    /// It serves I/O, or recovers.
    Serving,
    /// It failed for good, or the kernel wants it back: its exports are going.
    Leaving,
    /// It is being closed.
    Closing(Return),
}

/// Why a device is taken.
enum Wish {
    /// A caller wants it, and waits.
    Bind { force: bool, reply: Reply },
    /// It was ours before a restart: the SSD of this serial number, then at this address.
    Restart { serial: String, place: String },
}

/// The way back of a device.
struct Return {
    to: Place,
    /// Why it did not become ours, if that was wanted.
    failure: Option<RpcError>,
    reply: Option<Reply>,
}

enum Place {
    /// To the kernel's driver.
    Kernel,
    /// To who had it before.
    Before(Before),
    /// It stays with vfio-pci.
    Vfio,
}

/// A device that has ended, on its way back.
struct Returning {
    job: Job<Option<Seen>>,
    failure: Option<RpcError>,
    reply: Option<Reply>,
}

impl Control {
    pub(super) fn bind_device(&mut self, params: &DeviceBind, reply: Reply) {
        let check = || -> Result<Bdf, RpcError> {
            let bdf: Bdf = params.bdf.parse().map_err(vfio_error)?;
            self.devices.check_settled(bdf)?;
            if self.devices.open.contains_key(&bdf) {
                let message = format!("{bdf} is driven by forebay already");
                return Err(RpcError::new(ErrorCode::Exists, message));
            }
            Ok(bdf)
        };
        match check() {
            Ok(bdf) => self.take_device(bdf, Wish::Bind { force: params.force, reply }),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Takes again the SSDs that were ours before a restart. Whatever they bear was put there by
    /// our hosts, or its owner has said that it may go.
    pub(crate) async fn restore_devices(&mut self) {
        let controllers = System::default().controllers().unwrap_or_else(|error| {
            tracing::error!(%error, "no SSD is found");
            Vec::new()
        });
        for (place, serial) in self.state.devices.clone() {
            match find(&controllers, &place, &serial) {
                Ok(bdf) if self.devices.taking.contains_key(&bdf) => {
                    tracing::error!(%bdf, serial, "saved twice");
                }
                Ok(bdf) => self.take_device(bdf, Wish::Restart { serial, place }),
                Err(reason) => {
                    tracing::error!(place, serial, reason, "not taken after the restart");
                }
            }
        }
        while !self.devices.is_settled() {
            self.poll_devices(Instant::now());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn take_device(&mut self, bdf: Bdf, wish: Wish) {
        let arena = self.arena;
        let force = !matches!(wish, Wish::Bind { force: false, .. });
        let after_restart = matches!(wish, Wish::Restart { .. });
        let job = Job::start(move || take(bdf, force, after_restart, arena));
        self.devices.taking.insert(bdf, Taking { job, wish });
    }

    pub(super) fn release_device(&mut self, bdf: &str, reply: Reply) {
        match self.forget_device(bdf) {
            Ok(bdf) => {
                let way = Return { to: Place::Kernel, failure: None, reply: Some(reply) };
                if self.devices.open.contains_key(&bdf) {
                    self.close_device(bdf, way);
                } else {
                    // Not open: all that is left to do is to give it to the kernel's driver.
                    self.send_back(bdf, (), way);
                }
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Sees to it that a device which nobody uses is not taken again after a restart.
    fn forget_device(&mut self, bdf: &str) -> Result<Bdf, RpcError> {
        let bdf: Bdf = bdf.parse().map_err(vfio_error)?;
        self.devices.check_settled(bdf)?;
        for name in self.bdevs_of(bdf) {
            if let Some(holder) = self.bdevs.holder(&name) {
                let message = format!("{name} on {bdf} is in use by {holder}");
                let error = RpcError::new(ErrorCode::InUse, message);
                let advice = match holder.strip_prefix("pool ") {
                    Some(pool) => format!("close the pool first: forebay pool export {pool}"),
                    None => "end the export first: forebay unexport NQN".to_owned(),
                };
                return Err(error.with_advice(advice));
            }
        }
        let forget = |state: &mut State| drop(state.devices.remove(&bdf.to_string()));
        self.commit(forget, |_| Ok(bdf))
    }

    /// Begins to close an open device whose block devices nobody uses.
    fn close_device(&mut self, bdf: Bdf, way: Return) {
        self.forget_bdevs(bdf);
        if let Some(open) = self.devices.open.get_mut(&bdf) {
            open.device.begin_close(Instant::now());
            open.stage = Stage::Closing(way);
        }
    }

    /// Gives a device back that has ended. `held` is what keeps it open: closing resets the
    /// function, which takes its time.
    fn send_back(&mut self, bdf: Bdf, held: impl Send + 'static, way: Return) {
        let Return { to, failure, reply } = way;
        let job = Job::start(move || {
            drop(held);
            let system = System::default();
            match to {
                Place::Kernel => {
                    let controller = system.release(bdf).map_err(vfio_error)?;
                    return Ok(Some(Seen::look(&system, controller)));
                }
                Place::Before(before) => system.restore(bdf, &before).map_err(vfio_error)?,
                Place::Vfio => {}
            }
            Ok(None)
        });
        self.devices.returning.insert(bdf, Returning { job, failure, reply });
    }

    /// Lets every device take its next step.
    pub(super) fn poll_devices(&mut self, now: Instant) {
        for (bdf, mut taking) in std::mem::take(&mut self.devices.taking) {
            match taking.job.poll() {
                None => drop(self.devices.taking.insert(bdf, taking)),
                Some(Ok(taken)) => self.start_device(bdf, taken, taking.wish, now),
                Some(Err(error)) => taking.wish.fail(bdf, error),
            }
        }
        for (bdf, mut returning) in std::mem::take(&mut self.devices.returning) {
            match returning.job.poll() {
                None => drop(self.devices.returning.insert(bdf, returning)),
                Some(result) => self.finish_return(bdf, result, returning),
            }
        }
        let bdfs: Vec<Bdf> = self.devices.open.keys().copied().collect();
        for bdf in bdfs {
            self.poll_open(bdf, now);
        }
    }

    fn poll_open(&mut self, bdf: Bdf, now: Instant) {
        let Some(open) = self.devices.open.get_mut(&bdf) else { return };
        open.device.poll(now);
        match (&open.stage, open.device.health()) {
            (Stage::Starting(_), nvme::Health::Live) => {
                if let Stage::Starting(wish) = std::mem::replace(&mut open.stage, Stage::Serving) {
                    self.admit_device(bdf, wish);
                }
            }
            (Stage::Serving, nvme::Health::Live) if now >= open.smart_due => {
                open.smart_due = now + SMART_PERIOD;
                open.device.request_smart();
            }
            (Stage::Serving, nvme::Health::Failed) => {
                let fault = open.device.fault().map(ToString::to_string).unwrap_or_default();
                tracing::error!(%bdf, fault, "the SSD is lost");
                open.stage = Stage::Leaving;
                self.withdraw_exports(bdf);
            }
            (Stage::Leaving, _) => self.finish_leaving(bdf),
            (Stage::Starting(_) | Stage::Closing(_), nvme::Health::Failed) => self.finish(bdf),
            _ => {}
        }
    }

    /// Begins to bring a device up.
    fn start_device(&mut self, bdf: Bdf, taken: Taken, wish: Wish, now: Instant) {
        let Taken { pci, before } = taken;
        if self.devices.ending {
            let error = RpcError::new(ErrorCode::Unavailable, "the daemon is ending");
            return self.send_back(bdf, pci, wish.undo(before, error));
        }
        let config = Config { cores: self.cores.len() as u16, ..Config::default() };
        match NvmeDevice::start(Arc::clone(&pci), self.arena, config, now) {
            Ok(device) => {
                let (bdevs, stage, smart_due) = (Vec::new(), Stage::Starting(wish), now);
                let open = OpenDevice { device, before, bdevs, stage, smart_due };
                self.devices.open.insert(bdf, open);
            }
            Err(fault) => {
                let error = RpcError::new(ErrorCode::Failed, format!("{bdf}: {fault}"));
                self.send_back(bdf, pci, wish.undo(before, error));
            }
        }
    }

    /// A device has come up: its namespaces become block devices, unless it is not the one that was
    /// wanted.
    fn admit_device(&mut self, bdf: Bdf, wish: Wish) {
        let Some(open) = self.devices.open.get(&bdf) else { return };
        let serial = open.device.identity().map(|id| id.serial.clone()).unwrap_or_default();
        let known = self.state.devices.get(&bdf.to_string());
        let checked = wish.check(bdf, &serial, known);
        let open: BTreeSet<String> = self.devices.open.keys().map(Bdf::to_string).collect();
        let enter = |state: &mut State| {
            // Where it was before, it is not any more.
            state.devices.retain(|place, known| *known != serial || open.contains(place));
            state.devices.insert(bdf.to_string(), serial.clone());
        };
        let added = checked.and_then(|()| self.commit(enter, |c| c.add_bdevs(bdf, &serial)));
        let answer = match added {
            Ok(names) => {
                names.iter().for_each(|name| self.serve_waiting(name));
                self.wake_pools();
                self.describe(bdf)
            }
            Err(failure) => {
                tracing::error!(%bdf, serial, %failure, "not served");
                let Some(open) = self.devices.open.get(&bdf) else { return };
                let to = Place::Before(open.before.clone());
                let way = Return { to, failure: Some(failure), reply: wish.reply() };
                return self.close_device(bdf, way);
            }
        };
        if let Some(reply) = wish.reply() {
            let _ = reply.send(answer);
        }
    }

    /// Makes a block device of each namespace, and names them.
    fn add_bdevs(&mut self, bdf: Bdf, serial: &str) -> Result<Vec<String>, RpcError> {
        let Some(open) = self.devices.open.get_mut(&bdf) else { return Ok(Vec::new()) };
        for (nsid, fault) in open.device.unusable_namespaces() {
            tracing::warn!(%bdf, nsid, %fault, "the namespace is left alone");
        }
        let nsids: Vec<u32> = open.device.namespaces().iter().map(|found| found.nsid).collect();
        for nsid in nsids {
            let taken = |name: &str| self.bdevs.get(name).is_some();
            let name = bdev_name(serial, bdf, nsid, taken);
            let bdev = Arc::new(NvmeBdev::new(&name, &open.device, nsid).map_err(bdev_error)?);
            self.bdevs.add(Arc::clone(&bdev) as Arc<dyn Bdev>).map_err(bdev_error)?;
            open.bdevs.push((name, bdev));
        }
        Ok(open.bdevs.iter().map(|(name, _)| name.clone()).collect())
    }

    /// A device that was starting or closing has ended.
    fn finish(&mut self, bdf: Bdf) {
        let Some(open) = self.devices.open.remove(&bdf) else { return };
        let OpenDevice { device, before, stage, .. } = open;
        let way = match stage {
            Stage::Starting(wish) => {
                let fault = device.fault().map(ToString::to_string).unwrap_or_default();
                let error = RpcError::new(ErrorCode::Failed, format!("{bdf}: {fault}"));
                wish.undo(before, error.with_advice("the log of forebay-target says more"))
            }
            Stage::Closing(way) => way,
            Stage::Serving | Stage::Leaving => {
                Return { to: Place::Vfio, failure: None, reply: None }
            }
        };
        // The last queue pair went with the last channel: this is what keeps it open.
        self.send_back(bdf, device, way);
    }

    fn finish_return(
        &mut self,
        bdf: Bdf,
        result: Result<Option<Seen>, RpcError>,
        returning: Returning,
    ) {
        let Returning { failure, reply, .. } = returning;
        match &result {
            Ok(_) => tracing::info!(%bdf, "closed"),
            Err(error) => tracing::error!(%bdf, %error, "not given back"),
        }
        let answer = result.map(|seen| json!(seen.map(|seen| self.device_info(seen))));
        let answer = failure.map_or(answer, Err);
        match (reply, answer) {
            (Some(reply), answer) => drop(reply.send(answer)),
            (None, Err(error)) => tracing::error!(%bdf, %error, "not ours any more"),
            (None, Ok(_)) => {}
        }
    }

    /// Ends the exports of a device that is lost; they stay in the state, and are served again when
    /// the device comes back.
    fn withdraw_exports(&mut self, bdf: Bdf) {
        for name in self.bdevs_of(bdf) {
            self.stop_serving(&name);
        }
    }

    /// Once nothing uses its block devices any more, a lost device is closed.
    fn finish_leaving(&mut self, bdf: Bdf) {
        if self.bdevs_of(bdf).iter().any(|name| self.bdevs.holder(name).is_some()) {
            return;
        }
        self.forget_bdevs(bdf);
        self.finish(bdf);
    }

    /// Begins to shut every device down, because the daemon ends. They stay with vfio-pci.
    pub(super) fn begin_close_devices(&mut self, now: Instant) {
        self.devices.ending = true;
        for open in self.devices.open.values_mut() {
            open.device.begin_close(now);
            open.stage = Stage::Closing(Return { to: Place::Vfio, failure: None, reply: None });
        }
    }

    pub(super) fn devices_ended(&self) -> bool {
        let Devices { taking, open, returning, .. } = &self.devices;
        taking.is_empty() && open.is_empty() && returning.is_empty()
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
        self.devices.with_bdev(name).map(|(bdf, _)| bdf.to_string())
    }

    /// What the SSD that a block device is on says of its health.
    pub(super) fn smart_of_bdev(&self, name: &str) -> Option<&Smart> {
        self.devices.with_bdev(name)?.1.device.smart()
    }

    /// Names of the block devices on an SSD that is open.
    pub(super) fn bdevs_of(&self, bdf: Bdf) -> Vec<String> {
        let bdevs = self.devices.open.get(&bdf).map(|open| open.bdevs.iter());
        bdevs.into_iter().flatten().map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn open_device(&self, bdf: Bdf) -> Option<&NvmeDevice<Device>> {
        self.devices.open.get(&bdf).map(|open| &open.device)
    }

    /// Addresses of everything that is open, or about to be, or was a moment ago.
    pub(super) fn open_bdfs(&self) -> BTreeSet<Bdf> {
        let Devices { taking, open, returning, .. } = &self.devices;
        taking.keys().chain(open.keys()).chain(returning.keys()).copied().collect()
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
}

impl Devices {
    /// Refuses a device that is on its way somewhere.
    fn check_settled(&self, bdf: Bdf) -> Result<(), RpcError> {
        let stage = self.open.get(&bdf).map(|open| &open.stage);
        let doing = match (stage, self.taking.contains_key(&bdf)) {
            (Some(Stage::Starting(_)), _) | (None, true) => "is being bound",
            (Some(Stage::Leaving), _) => "has failed, and is being closed",
            (Some(Stage::Closing(_)), _) => "is being released",
            (None, false) if self.returning.contains_key(&bdf) => "is being released",
            _ => return Ok(()),
        };
        let error = RpcError::new(ErrorCode::InUse, format!("{bdf} {doing}"));
        Err(error.with_advice("try again in a moment; forebay device list shows what became of it"))
    }

    /// Whether every device is in service or gone.
    fn is_settled(&self) -> bool {
        let moves = |open: &OpenDevice| !matches!(open.stage, Stage::Serving);
        self.taking.is_empty() && self.returning.is_empty() && !self.open.values().any(moves)
    }

    fn with_bdev(&self, name: &str) -> Option<(Bdf, &OpenDevice)> {
        let has_it = |open: &OpenDevice| open.bdevs.iter().any(|(other, _)| other == name);
        self.open.iter().find(|(_, open)| has_it(open)).map(|(bdf, open)| (*bdf, open))
    }
}

impl Wish {
    fn reply(self) -> Option<Reply> {
        match self {
            Wish::Bind { reply, .. } => Some(reply),
            Wish::Restart { .. } => None,
        }
    }

    /// It could not be taken.
    fn fail(self, bdf: Bdf, error: RpcError) {
        match self {
            Wish::Bind { reply, .. } => drop(reply.send(Err(error))),
            Wish::Restart { serial, .. } => {
                tracing::error!(%bdf, serial, %error, "not taken after the restart");
            }
        }
    }

    /// It was taken in vain.
    fn undo(self, before: Before, error: RpcError) -> Return {
        let to = match self {
            Wish::Bind { .. } => Place::Before(before),
            // What our hosts have written is not for the kernel to look at.
            Wish::Restart { .. } => Place::Vfio,
        };
        Return { to, failure: Some(error), reply: self.reply() }
    }

    /// Whether a device of this serial number is the one that was meant; `known` is the one that
    /// was at its address before.
    fn check(&self, bdf: Bdf, serial: &str, known: Option<&String>) -> Result<(), RpcError> {
        match (self, known) {
            (Wish::Restart { serial: wanted, place }, _) if wanted != serial => {
                let message = format!("{bdf} is {serial}, not {wanted}, which was at {place}");
                Err(RpcError::new(ErrorCode::Failed, message))
            }
            (Wish::Bind { force: false, .. }, Some(known)) if known != serial => {
                let message = format!("{bdf} is {serial}, and was {known} before");
                let error = RpcError::new(ErrorCode::NeedsForce, message);
                Err(error.with_advice(format!(
                    "forebay device release {bdf} forgets the other; bind --force replaces it"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Takes a controller from the kernel and opens it.
fn take(
    bdf: Bdf,
    force: bool,
    after_restart: bool,
    arena: &'static Arena,
) -> Result<Taken, RpcError> {
    let system = System::default();
    let before = system.bind(bdf, force).map_err(vfio_error)?;
    match Device::open(bdf, arena) {
        Ok(pci) => Ok(Taken { pci: Arc::new(pci), before }),
        Err(error) => {
            if !after_restart && let Err(error) = system.restore(bdf, &before) {
                tracing::error!(%bdf, %error, "not given back");
            }
            Err(vfio_error(error))
        }
    }
}

/// Where an SSD is now that was at `place` once. Serial numbers can be read only of those that the
/// kernel's driver has.
fn find(controllers: &[Controller], place: &str, serial: &str) -> Result<Bdf, String> {
    let bears_it = |one: &&Controller| one.serial.as_deref() == Some(serial);
    let bearers: Vec<Bdf> = controllers.iter().filter(bears_it).map(|one| one.bdf).collect();
    let there = controllers.iter().find(|one| one.bdf.to_string() == place);
    match (bearers.as_slice(), there) {
        (bearers, Some(there)) if bearers.contains(&there.bdf) => Ok(there.bdf),
        (&[one], _) => Ok(one),
        ([], None) => Err("no SSD is there, and none elsewhere bears the serial number".into()),
        // Whether it is the right one is seen when it has come up.
        ([], Some(there)) if there.serial.is_none() => Ok(there.bdf),
        ([], Some(there)) => Err(format!("another SSD is there: {:?}", there.serial)),
        (several, _) => Err(format!("several SSDs bear the serial number: {several:?}")),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(bdf: &str, serial: Option<&str>) -> Controller {
        Controller {
            bdf: bdf.parse().unwrap(),
            vendor: 0,
            device: 0,
            driver: None,
            model: None,
            serial: serial.map(str::to_owned),
            iommu_group: None,
            numa_node: None,
            namespaces: Vec::new(),
        }
    }

    #[test]
    fn an_ssd_is_found_wherever_it_is_now() {
        let [a, b, c] = ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"];
        let found = |all: &[(&str, Option<&str>)]| {
            let all: Vec<_> = all.iter().map(|(bdf, serial)| controller(bdf, *serial)).collect();
            find(&all, a, "S1").map(|bdf| bdf.to_string())
        };
        assert_eq!(found(&[(a, Some("S1")), (b, Some("S2"))]).unwrap(), a);
        assert_eq!(found(&[(a, Some("S2")), (b, Some("S1"))]).unwrap(), b, "renumbered");
        assert_eq!(found(&[(a, None), (b, Some("S1"))]).unwrap(), b, "renumbered");
        assert_eq!(found(&[(a, None), (b, Some("S2"))]).unwrap(), a, "with vfio-pci still");
        assert_eq!(found(&[(a, Some("S1")), (b, Some("S1"))]).unwrap(), a, "not unique");
        assert!(found(&[(b, Some("S1")), (c, Some("S1"))]).unwrap_err().contains("several"));
        assert!(found(&[(a, Some("S2"))]).unwrap_err().contains("another SSD"));
        assert!(found(&[(b, None)]).unwrap_err().contains("no SSD is there"));
    }

    #[test]
    fn a_slot_that_holds_another_ssd_than_before_is_bound_by_force_only() {
        let bdf: Bdf = "0000:01:00.0".parse().unwrap();
        let known = Some("S1".to_owned());
        let bind = |force| Wish::Bind { force, reply: tokio::sync::oneshot::channel().0 };
        assert!(bind(false).check(bdf, "S1", known.as_ref()).is_ok());
        assert!(bind(false).check(bdf, "S2", None).is_ok());
        assert!(bind(true).check(bdf, "S2", known.as_ref()).is_ok());
        let error = bind(false).check(bdf, "S2", known.as_ref()).unwrap_err();
        assert_eq!(error.code, ErrorCode::NeedsForce);
        let restart = Wish::Restart { serial: "S1".into(), place: bdf.to_string() };
        assert!(restart.check(bdf, "S2", known.as_ref()).is_err());
        assert!(restart.check(bdf, "S1", None).is_ok());
    }

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
