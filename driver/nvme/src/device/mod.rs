//! The admin side of a controller.

mod replies;
mod script;
mod steps;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dma::{Arena, DmaSpan};
use nvme_spec::command::Sqe;
use nvme_spec::log_page::Smart;
use nvme_spec::opcode::admin;
use nvme_spec::registers::{CAP, CC, CSTS, Cap, Cc, Csts, VS};

use crate::admin::{AdminQueue, Purpose};
use crate::config::Config;
use crate::error::{NamespaceFault, NvmeError};
use crate::limits::{MAX_RESETS, PAGE_BYTES, RESET_WINDOW};
use crate::namespace::Namespace;
use crate::queue::Limits;
use crate::quirks::Quirks;
use crate::seam::PciDevice;
use crate::shared::{Health, Phase, QueuePool, Shared, State};
use script::Script;

/// What a controller says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// A volatile write cache is present and enabled.
    pub volatile_write_cache: bool,
    /// Most bytes in one command, by the controller and by us.
    pub transfer_bytes: u32,
    /// Doorbells are looked for in memory.
    pub shadow_doorbells: bool,
}

/// A controller, from bring-up to its end.
pub struct NvmeDevice<D: PciDevice> {
    pci: Arc<D>,
    name: String,
    config: Config,
    shared: Arc<Shared<D>>,
    cap: Cap,
    admin: AdminQueue,
    /// Memory that admin commands read from and write to.
    scratch: DmaSpan,
    /// Shadow doorbells and event indices.
    shadows: [DmaSpan; 2],
    step: Step,
    goal: Goal,
    /// The command that the present step waits for, and until when.
    current: Option<(Script, Instant)>,
    epoch: u64,
    identity: Option<Identity>,
    limits: Limits,
    awupf_z: u16,
    abort_limit: u8,
    event_limit: u8,
    wants_shadows: bool,
    has_write_cache: bool,
    /// Identifiers of the active namespaces, and those of them that turned out usable so far.
    active: Vec<u32>,
    found: Vec<Namespace>,
    namespaces: Vec<Namespace>,
    unusable: Vec<(u32, NamespaceFault)>,
    /// Entries of an I/O queue, and how many there are: 0 until negotiated.
    entries: u16,
    queue_count: u16,
    /// Where the rings of each queue pair are: submission, completion.
    queue_iovas: Vec<(u64, u64)>,
    /// Queue pairs before they are all created.
    #[expect(clippy::vec_box)] // they move between threads, by their address
    pairs: Vec<Box<crate::queue::Inner<D>>>,
    smart: Option<Smart>,
    /// What to do when nothing else is: log pages that clear events, then SMART.
    pending_logs: VecDeque<u8>,
    resets: VecDeque<Instant>,
    recover_by: Option<Instant>,
    removal_requested: bool,
    fault: Option<NvmeError>,
}

/// Where the controller is on its way; [`NvmeDevice::poll`] moves it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Wait until every queue pair has ended what it took.
    AwaitDrained { until: Instant },
    /// Wait until it has flushed what it caches.
    AwaitShutdown { until: Instant },
    /// Wait until it reaches no memory any more.
    AwaitDisabled { until: Instant },
    /// It is contained, but must be reset to be of use again: wait for that. Nothing else of it is
    /// touched meanwhile.
    AwaitReset,
    /// Wait until every queue pair has noticed.
    AwaitAcknowledged,
    /// Wait until it takes commands.
    AwaitReady { since: Instant, until: Instant },
    /// Wait for the answer to the current command.
    AwaitReply,
    /// In service.
    Live,
    /// For good.
    Ended,
}

/// What keeps a controller from memory without its help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Containment {
    /// Bus mastering is off, and may be turned on again.
    BusMaster,
    /// The IOMMU, for good.
    Iommu,
    Nothing,
}

impl Containment {
    /// Of a device that ends like this.
    fn last_phase(self) -> Phase {
        match self {
            Self::BusMaster | Self::Iommu => Phase::Failed,
            Self::Nothing => Phase::Wedged,
        }
    }
}

/// What the steps lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// First bring-up.
    Start,
    /// Service, after a reset.
    Resume,
    /// The end.
    End,
}

impl<D: PciDevice> NvmeDevice<D> {
    /// Brings a controller up, waiting for it: seconds at worst, by its own CAP.TO.
    ///
    /// # Errors
    /// It did not come up; it is contained and given up then.
    pub fn bring_up(pci: Arc<D>, arena: &'static Arena, config: Config) -> Result<Self, NvmeError> {
        let mut device = Self::start(pci, arena, config, Instant::now())?;
        while device.health() == Health::Recovering {
            std::thread::sleep(Duration::from_micros(200));
            device.poll(Instant::now());
        }
        match device.fault.take() {
            None => Ok(device),
            Some(fault) => Err(fault),
        }
    }

    /// Begins to bring a controller up; [`NvmeDevice::poll`] goes on with it, and
    /// [`NvmeDevice::health`] tells the outcome.
    ///
    /// # Errors
    /// Its registers make no sense, or there is no memory for its queues.
    pub fn start(
        pci: Arc<D>,
        arena: &'static Arena,
        config: Config,
        now: Instant,
    ) -> Result<Self, NvmeError> {
        let cap = checked_capabilities(&*pci)?;
        let quirks = Quirks::of(pci.ids());
        let shared = Arc::new(Shared::new(arena));
        let page = || shared.memory.carve(PAGE_BYTES as usize, PAGE_BYTES as usize);
        let mut device = Self {
            name: pci.name(),
            cap,
            admin: AdminQueue::new(&shared.memory, cap.dstrd())?,
            scratch: page()?,
            shadows: [page()?, page()?],
            step: Step::Ended,
            goal: Goal::Start,
            current: None,
            epoch: 0,
            identity: None,
            limits: Limits {
                transfer_bytes: PAGE_BYTES,
                ignores_fua: quirks.ignores_fua,
                has_compare: false,
                write_zeroes_bytes: 0,
                deallocate: None,
            },
            awupf_z: 0,
            abort_limit: 1,
            event_limit: 0,
            wants_shadows: false,
            has_write_cache: false,
            active: Vec::new(),
            found: Vec::new(),
            namespaces: Vec::new(),
            unusable: Vec::new(),
            entries: config.entries(cap.mqes_z()),
            queue_count: 0,
            queue_iovas: Vec::new(),
            pairs: Vec::new(),
            smart: None,
            pending_logs: VecDeque::new(),
            resets: VecDeque::new(),
            recover_by: None,
            removal_requested: false,
            fault: None,
            config,
            shared,
            pci,
        };
        device.disable(now);
        Ok(device)
    }

    /// One turn of the control thread, every few milliseconds: never waits.
    pub fn poll(&mut self, now: Instant) {
        self.shared.each_parked(|pair| pair.poll(now));
        if self.pci.take_removal_request() {
            tracing::warn!(device = %self.name, "the kernel asks for the device");
            self.removal_requested = true;
            self.end(NvmeError::RemovalRequested, now);
        }
        match self.step {
            Step::Ended => return,
            Step::AwaitReset => {}
            _ => {
                match self.look_at_status() {
                    Some(fault @ NvmeError::Gone { .. }) => return self.gone(fault),
                    Some(fault) => self.recover(fault, now),
                    None => {}
                }
                self.take_replies(now);
            }
        }
        self.advance(now);
        if self.step == Step::Live {
            self.watch_queues(now);
        }
        self.check_recovery_limit(now);
    }

    /// What the device is at the moment.
    pub fn health(&self) -> Health {
        match self.step {
            Step::Live => Health::Live,
            Step::Ended => Health::Failed,
            _ => Health::Recovering,
        }
    }

    /// Why the device is not live, or was last reset.
    pub fn fault(&self) -> Option<&NvmeError> {
        self.fault.as_ref()
    }

    /// Whether the kernel has asked for the device: when all queue pairs and this are dropped, the
    /// device is closed and goes.
    pub fn removal_requested(&self) -> bool {
        self.removal_requested
    }

    /// Name for messages: the PCI address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the controller says it is; from the end of bring-up on.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Namespaces that can be used.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// Namespaces that cannot, and why.
    pub fn unusable_namespaces(&self) -> &[(u32, NamespaceFault)] {
        &self.unusable
    }

    /// Its queue pairs, for the cores.
    pub fn queues(&self) -> QueuePool<D> {
        QueuePool::new(&self.shared, self.queue_count)
    }

    /// The last SMART / health log read: at bring-up, when the controller reported an event, and
    /// after [`NvmeDevice::request_smart`].
    pub fn smart(&self) -> Option<&Smart> {
        self.smart.as_ref()
    }

    /// Has the SMART / health log read anew when the device has nothing else to do.
    pub fn request_smart(&mut self) {
        self.want_log(nvme_spec::log_page::lid::SMART);
    }

    /// Resets the controller, as if it had failed.
    pub fn reset(&mut self, now: Instant) {
        if self.step == Step::Live {
            self.recover(NvmeError::ResetRequested, now);
        }
    }

    /// Begins to end the device in order: I/O in flight ends, the controller flushes its caches and
    /// is disabled.
    pub fn begin_close(&mut self, now: Instant) {
        self.end(NvmeError::Closed, now);
    }

    /// Ends the device in order, waiting for it.
    pub fn close(mut self) {
        self.begin_close(Instant::now());
        while self.step != Step::Ended {
            std::thread::sleep(Duration::from_millis(1));
            self.poll(Instant::now());
        }
    }

    /// What is wrong with the controller by its registers, if anything.
    fn look_at_status(&self) -> Option<NvmeError> {
        let value = self.pci.read32(CSTS);
        if value == u32::MAX {
            return Some(NvmeError::Gone { value });
        }
        let csts = Csts(value);
        // All zeroes is what a controller that is not there reads in some places.
        if value == 0 && self.pci.read32(VS) == 0 && self.pci.read64(CAP) == 0 {
            return Some(NvmeError::Gone { value });
        }
        let (is_enabled, is_ready) = match self.step {
            Step::Live | Step::AwaitReply => (true, true),
            Step::AwaitReady { .. } => (true, false),
            _ => (false, false),
        };
        if is_enabled && csts.cfs() {
            return Some(NvmeError::Fatal);
        }
        (is_ready && !csts.rdy()).then_some(NvmeError::Stopped)
    }

    /// Aborts what is late; resets the controller when that does not help.
    fn watch_queues(&mut self, now: Instant) {
        for index in 0..self.queue_count {
            let slot = &self.shared.slots[usize::from(index)];
            if slot.stuck.swap(false, Ordering::Relaxed) {
                return self.recover(NvmeError::CommandTimeout { qid: index + 1 }, now);
            }
            // Taken even where there is no room for the abort: the queue pair waits so long for the
            // command, and then has the controller reset.
            let late = slot.late.swap(0, Ordering::Relaxed);
            if late != 0 {
                let (qid, cid) = (u32::from(index) + 1, late & 0xFFFF);
                if self.admin.in_flight(Purpose::Abort) >= usize::from(self.abort_limit) {
                    let device = &self.name;
                    tracing::warn!(%device, qid, cid, "command is late, and aborts are unanswered");
                    continue;
                }
                tracing::warn!(device = %self.name, qid, cid, "command is late: aborting it");
                let mut sqe = Sqe::new(admin::ABORT, 0);
                sqe.cdw10 = (qid | cid << 16).into();
                self.admin.submit(&*self.pci, sqe, Purpose::Abort);
            }
        }
    }

    /// Resets the controller, unless that was tried too often.
    fn recover(&mut self, fault: NvmeError, now: Instant) {
        if self.goal != Goal::Resume && self.step != Step::Live {
            // It never came up, or it is ending anyway.
            return self.end(fault, now);
        }
        tracing::error!(device = %self.name, %fault, "resetting the controller");
        while self.resets.front().is_some_and(|&then| now >= then + RESET_WINDOW) {
            self.resets.pop_front();
        }
        if self.resets.len() >= MAX_RESETS {
            let (resets, last) = (self.resets.len(), fault.to_string());
            return self.end(NvmeError::TooManyResets { resets, last }, now);
        }
        self.resets.push_back(now);
        // A reset during a recovery is part of it.
        self.recover_by.get_or_insert(now + self.config.recovery_limit);
        self.fault = Some(fault);
        self.goal = Goal::Resume;
        self.epoch += 1;
        self.set_phase(Phase::Stopping);
        self.disable(now);
    }

    /// Ends the device. Only an orderly end waits for I/O and caches: whatever else is the reason,
    /// the controller is not to be trusted with more time.
    fn end(&mut self, fault: NvmeError, now: Instant) {
        if self.goal == Goal::End {
            return;
        }
        let orderly = matches!(fault, NvmeError::Closed | NvmeError::RemovalRequested)
            && self.step == Step::Live;
        match fault {
            NvmeError::Closed => tracing::info!(device = %self.name, "closing"),
            _ => tracing::error!(device = %self.name, %fault, "giving the device up"),
        }
        self.fault = Some(fault);
        self.goal = Goal::End;
        self.recover_by = None;
        self.epoch += 1;
        if orderly {
            self.drain(now);
        } else if self.step == Step::AwaitReset {
            self.finish(Phase::Failed);
        } else {
            self.set_phase(Phase::Stopping);
            self.disable(now);
        }
    }

    /// Its registers are gone. So is the whole of it, most likely, but that has to be seen.
    fn gone(&mut self, fault: NvmeError) {
        tracing::error!(device = %self.name, %fault, "giving the device up");
        if self.goal != Goal::End {
            self.fault = Some(fault);
        }
        self.epoch += 1;
        self.finish_contained();
    }

    /// Keeps the controller from memory without its help: by bus mastering, or for good.
    fn contain(&self) -> Containment {
        let device = &self.name;
        let Err(error) = self.pci.set_bus_master(false) else { return Containment::BusMaster };
        tracing::error!(%device, %error, "taking DMA memory away from it");
        let Err(error) = self.pci.unmap_arena() else { return Containment::Iommu };
        tracing::error!(%device, %error, "it may write memory at any time: that is withheld");
        Containment::Nothing
    }

    fn finish_contained(&mut self) {
        let containment = self.contain();
        self.finish(containment.last_phase());
    }

    fn finish(&mut self, phase: Phase) {
        self.goal = Goal::End;
        self.current = None;
        self.recover_by = None;
        self.step = Step::Ended;
        self.set_phase(phase);
    }

    fn check_recovery_limit(&mut self, now: Instant) {
        if self.recover_by.is_some_and(|by| now >= by) && self.goal == Goal::Resume {
            let last = self.fault.as_ref().map_or_else(String::new, ToString::to_string);
            let limit = self.config.recovery_limit;
            self.end(NvmeError::RecoveryTimeout { limit, last }, now);
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.shared.set_state(State { epoch: self.epoch, phase });
    }

    fn want_log(&mut self, lid: u8) {
        if !self.pending_logs.contains(&lid) {
            self.pending_logs.push_back(lid);
        }
    }
}

impl<D: PciDevice> Drop for NvmeDevice<D> {
    fn drop(&mut self) {
        self.shared.close();
        self.epoch += 1;
        match self.step {
            Step::Ended => {}
            Step::AwaitReset => self.finish(Phase::Failed),
            // Not ended in order: keep it from memory, at least, and tell the queue pairs.
            _ => {
                let cc = Cc(self.pci.read32(CC));
                self.pci.write32(CC, cc.disabled().0);
                self.finish_contained();
            }
        }
    }
}

/// Capabilities that can be driven.
fn checked_capabilities<D: PciDevice>(pci: &D) -> Result<Cap, NvmeError> {
    let cap = Cap(pci.read64(CAP));
    let bad = |what, value: u64| Err(NvmeError::Registers { what, value });
    if cap.0 == u64::MAX || cap.0 == 0 {
        return bad("CAP", cap.0);
    }
    if cap.mpsmin() != 0 {
        return bad("CAP.MPSMIN", u64::from(cap.mpsmin()));
    }
    if cap.css() & 1 == 0 && cap.css() >> 6 & 1 == 0 {
        return bad("CAP.CSS", u64::from(cap.css()));
    }
    if cap.mqes_z() == 0 {
        return bad("CAP.MQES", 0);
    }
    // The doorbells of the admin queue and of one I/O queue pair.
    let doorbells = nvme_spec::registers::cq_head_doorbell(1, cap.dstrd());
    if pci.register_bytes() < doorbells as usize + 4 {
        return bad("the register window", pci.register_bytes() as u64);
    }
    Ok(cap)
}
