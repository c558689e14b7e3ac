//! Registers, queues and faults.

use std::collections::{BTreeMap, VecDeque};

use dma::{Arena, DmaSpan};
use nvme::SeamError;
use nvme_spec::aer::AsyncEvent;
use nvme_spec::command::{Cqe, Sqe};
use nvme_spec::registers::{ACQ, AQA, ASQ, CAP, CC, CSTS, Cap, Cc, Csts, DOORBELLS, VS, version};
use nvme_spec::status::Status;

use crate::media::Media;
use crate::{Fault, NamespaceSetup, Setup};

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) arena: &'static Arena,
    pub(crate) setup: Setup,
    pub(crate) media: Vec<Media>,
    /// Faults that befall the next of something, in order.
    next: VecDeque<Fault>,
    pub(crate) lasting: Vec<Fault>,
    /// Queue and command of what is held.
    pub(crate) held: Vec<(u16, Sqe)>,
    pub(crate) removal_requested: bool,
    pub(crate) enabled_count: u32,
    pub(crate) violations: Vec<String>,
    pub(crate) queues: BTreeMap<u16, QueuePair>,
    /// Pages of shadow doorbells and event indices.
    pub(crate) shadows: Option<(u64, u64)>,
    pub(crate) queue_count: u16,
    /// Identifiers of the Asynchronous Event Requests that wait.
    pub(crate) events: Vec<u16>,
    pub(crate) temperature_kelvin: u16,
    pub(crate) bus_master: bool,
    pub(crate) is_mapped: bool,
    pub(crate) reset_count: u32,
    is_resetting: bool,
    cc: Cc,
    csts: Csts,
    aqa: u32,
    asq: u64,
    acq: u64,
}

/// A submission queue with the completion queue of the same number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueuePair {
    pub(crate) sq: u64,
    pub(crate) cq: u64,
    pub(crate) sq_entries: u16,
    pub(crate) cq_entries: u16,
    pub(crate) sq_head: u16,
    pub(crate) sq_tail: u16,
    pub(crate) cq_head: u16,
    pub(crate) cq_tail: u16,
    pub(crate) phase: bool,
}

impl Core {
    pub(crate) fn new(arena: &'static Arena, setup: Setup) -> Self {
        Self {
            arena,
            media: setup.namespaces.iter().map(media_of).collect(),
            setup,
            next: VecDeque::new(),
            lasting: Vec::new(),
            held: Vec::new(),
            removal_requested: false,
            enabled_count: 0,
            violations: Vec::new(),
            queues: BTreeMap::new(),
            shadows: None,
            queue_count: 0,
            events: Vec::new(),
            temperature_kelvin: 310,
            bus_master: false,
            is_mapped: true,
            reset_count: 0,
            is_resetting: false,
            cc: Cc(0),
            csts: Csts(0),
            aqa: 0,
            asq: 0,
            acq: 0,
        }
    }

    pub(crate) fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Hold | Fault::BadStatus(_) | Fault::StaleCid | Fault::DoubledCompletion => {
                self.next.push_back(fault);
            }
            Fault::OrderlyRemoval => self.removal_requested = true,
            Fault::ControllerFatal => self.csts = Csts(self.csts.0 | 2),
            Fault::ReadyDrops => self.csts = Csts(0),
            fault => self.lasting.push(fault),
        }
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.lasting.contains(&fault)
    }

    /// Takes the next fault if `wanted` says that it befalls what is at hand.
    pub(crate) fn take_next(&mut self, wanted: impl Fn(Fault) -> bool) -> Option<Fault> {
        let fault = self.next.front().copied().filter(|&fault| wanted(fault))?;
        self.next.pop_front();
        Some(fault)
    }

    pub(crate) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    fn gone(&self) -> Option<u32> {
        self.lasting.iter().find_map(|fault| match fault {
            Fault::SurpriseRemoval { reads } => Some(*reads),
            _ => None,
        })
    }

    /// Whether it can work on queues.
    fn works(&self) -> bool {
        let reaches_memory = self.bus_master && self.is_mapped;
        self.csts.rdy() && !self.csts.cfs() && reaches_memory && self.gone().is_none()
    }

    /// Whoever touches it during a reset has to wait.
    fn touched(&mut self) {
        if self.is_resetting {
            self.violation("touched during a function reset".to_owned());
        }
    }

    pub(crate) fn read(&mut self, offset: u32) -> u32 {
        self.touched();
        if let Some(value) = self.gone() {
            return value;
        }
        // MPSMAX 4 and CAP.TO 1 s; contiguous queues required.
        let cap = Cap(Cap::new(self.setup.mqes_z, true, 2).0 | 4 << 52).0;
        match offset {
            CAP => cap as u32,
            0x04 => (cap >> 32) as u32,
            VS => version(2, 1, 0),
            CC => self.cc.0,
            CSTS => self.csts.0,
            AQA => self.aqa,
            _ => 0,
        }
    }

    pub(crate) fn write(&mut self, offset: u32, value: u32) {
        self.touched();
        if self.gone().is_some() {
            return;
        }
        let low = |old: u64| old >> 32 << 32 | u64::from(value);
        let high = |old: u64| old & 0xFFFF_FFFF | u64::from(value) << 32;
        match offset {
            CC => self.configure(Cc(value)),
            AQA => self.aqa = value,
            ASQ => self.asq = low(self.asq),
            0x2C => self.asq = high(self.asq),
            ACQ => self.acq = low(self.acq),
            0x34 => self.acq = high(self.acq),
            DOORBELLS.. => self.doorbell((offset - DOORBELLS) / 4, value),
            _ => self.violation(format!("write of {value:#x} to register {offset:#x}")),
        }
    }

    fn configure(&mut self, cc: Cc) {
        let was = std::mem::replace(&mut self.cc, cc);
        if cc.shn() != 0 && !self.has(Fault::NeverShutDown) {
            self.media.iter_mut().for_each(Media::flush);
            self.csts = Csts(self.csts.0 & !0xC | u32::from(Csts::SHST_COMPLETE) << 2);
        }
        if was.en() && !cc.en() && !self.has(Fault::NeverDisabled) {
            self.stop();
        }
        if !was.en() && cc.en() {
            if (cc.iosqes(), cc.iocqes(), cc.mps()) != (6, 4, 0) {
                self.violation(format!("enabled with CC {:#x}", cc.0));
            }
            if self.has(Fault::NeverReady) {
                return;
            }
            if self.has(Fault::FatalWhenEnabled) {
                self.csts = Csts::new(false, true, 0);
                return;
            }
            let entries = |z: u32| (z & 0xFFF) as u16 + 1;
            let admin =
                QueuePair::new((self.asq, entries(self.aqa)), (self.acq, entries(self.aqa >> 16)));
            self.queues.insert(0, admin);
            self.csts = Csts::new(true, false, 0);
            self.enabled_count += 1;
        }
    }

    fn stop(&mut self) {
        self.queues.clear();
        self.held.clear();
        self.events.clear();
        self.shadows = None;
        self.queue_count = 0;
        self.csts = Csts(self.csts.0 & 0xC);
        if self.has(Fault::OtherSerial) {
            self.setup.serial = "EMU-OTHER";
        }
    }

    pub(crate) fn set_bus_master(&mut self, on: bool) -> Result<(), SeamError> {
        self.touched();
        if if on { self.gone().is_some() } else { self.has(Fault::BusMasterStuck) } {
            return Err(SeamError("the command register does not change".to_owned()));
        }
        self.bus_master = on;
        Ok(())
    }

    pub(crate) fn begin_reset(&mut self) {
        self.touched();
        self.is_resetting = true;
    }

    pub(crate) fn poll_reset(&mut self) -> Option<Result<(), SeamError>> {
        if !self.is_resetting || self.has(Fault::SlowReset) {
            return None;
        }
        self.is_resetting = false;
        if self.gone().is_some() || self.has(Fault::ResetFails) {
            return Some(Err(SeamError("the function does not reset".to_owned())));
        }
        self.stop();
        (self.cc, self.csts, self.bus_master) = (Cc(0), Csts(0), false);
        self.reset_count += 1;
        Some(Ok(()))
    }

    pub(crate) fn unmap_arena(&mut self) -> Result<(), SeamError> {
        if self.has(Fault::StaysMapped) {
            return Err(SeamError("the arena stays mapped".to_owned()));
        }
        self.is_mapped = false;
        Ok(())
    }

    pub(crate) fn reformat(&mut self, nsid: u32, namespace: NamespaceSetup) {
        let at = nsid as usize - 1;
        self.setup.namespaces[at] = namespace;
        self.media[at] = media_of(&namespace);
    }

    pub(crate) fn report(&mut self, event: AsyncEvent) -> bool {
        let Some(cid) = self.events.pop() else { return false };
        self.complete(0, cid, event.0.into(), Status::SUCCESS);
        true
    }

    fn doorbell(&mut self, index: u32, value: u32) {
        let (qid, is_cq) = ((index / 2) as u16, !index.is_multiple_of(2));
        let Some(queue) = self.queues.get_mut(&qid) else {
            // A queue pair may ring once more while the controller is being disabled.
            return;
        };
        let entries = if is_cq { queue.cq_entries } else { queue.sq_entries };
        if value >= u32::from(entries) {
            return self.violation(format!("doorbell {index} set to {value} of {entries} entries"));
        }
        if is_cq {
            queue.cq_head = value as u16;
        } else {
            queue.sq_tail = value as u16;
        }
        if qid == 0 {
            self.work(0);
        } else if !self.setup.stepped {
            self.step();
        }
    }

    pub(crate) fn step(&mut self) {
        let qids: Vec<u16> = self.queues.keys().copied().collect();
        for qid in qids {
            // Once more after the event index is written: the driver may have looked before.
            for _ in 0..2 {
                self.read_shadows(qid);
                self.work(qid);
            }
        }
    }

    fn read_shadows(&mut self, qid: u16) {
        let Some((values, events)) = self.shadows.filter(|_| qid != 0 && self.works()) else {
            return;
        };
        for is_cq in [0, 1] {
            let at = 8 * u64::from(qid) + 4 * is_cq;
            let (Some(value), Some(event)) = (self.span(values + at, 4), self.span(events + at, 4))
            else {
                return;
            };
            let told = value.load_u32(0);
            let Some(queue) = self.queues.get_mut(&qid) else { return };
            if is_cq == 0 {
                queue.sq_tail = told as u16 % queue.sq_entries;
            } else {
                queue.cq_head = told as u16 % queue.cq_entries;
            }
            event.store_u32(0, told);
        }
    }

    /// Takes every command that is there and executes it.
    fn work(&mut self, qid: u16) {
        while self.works() {
            let Some(queue) = self.queues.get_mut(&qid) else { return };
            if queue.sq_head == queue.sq_tail {
                return;
            }
            let at = queue.sq + 64 * u64::from(queue.sq_head);
            queue.sq_head = (queue.sq_head + 1) % queue.sq_entries;
            let Some(span) = self.span(at, 64) else { return };
            let sqe: Sqe = span.read_obj(0);
            if qid == 0 {
                self.execute_admin(&sqe);
            } else {
                self.execute_io(qid, &sqe);
            }
        }
    }

    pub(crate) fn let_go(&mut self) {
        if !self.works() {
            return self.held.clear();
        }
        for (qid, sqe) in std::mem::take(&mut self.held) {
            let status = self.do_io(&sqe).err().unwrap_or(Status::SUCCESS);
            self.complete(qid, sqe.cid(), 0, status);
        }
    }

    pub(crate) fn complete(&mut self, qid: u16, cid: u16, result: u64, status: Status) {
        if !self.works() {
            return;
        }
        let Some(queue) = self.queues.get_mut(&qid) else { return };
        let mut cqe = Cqe::new(cid, queue.sq_head, result, status);
        cqe.sqid = qid.into();
        cqe.status_field = (cqe.status_field.get() | u16::from(queue.phase)).into();
        let at = queue.cq + 16 * u64::from(queue.cq_tail);
        let next = (queue.cq_tail + 1) % queue.cq_entries;
        if next == queue.cq_head {
            return self.violation(format!("completion queue {qid} overflows"));
        }
        queue.phase ^= next == 0;
        queue.cq_tail = next;
        let Some(span) = self.span(at, 16) else { return };
        // The word with the phase tag last.
        let bytes = zerocopy::IntoBytes::as_bytes(&cqe);
        span.write(0, &bytes[..12]);
        let (_, word) = bytes.split_at(12);
        span.store_u32(12, u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    }

    /// Memory as the controller reaches it.
    pub(crate) fn span(&mut self, iova: u64, len: u32) -> Option<DmaSpan> {
        let span = self.arena.at_iova(iova, len);
        if span.is_none() {
            self.violation(format!("{len} bytes at {iova:#x} are outside the arena"));
        }
        span
    }
}

fn media_of(namespace: &NamespaceSetup) -> Media {
    match namespace.lbads {
        lbads @ (9 | 12) if namespace.metadata_bytes == 0 && namespace.block_count < 1 << 20 => {
            Media::new(1 << lbads, namespace.block_count as usize)
        }
        _ => Media::new(512, 0),
    }
}

impl QueuePair {
    pub(crate) fn new((sq, sq_entries): (u64, u16), (cq, cq_entries): (u64, u16)) -> Self {
        Self {
            sq,
            cq,
            sq_entries,
            cq_entries,
            sq_head: 0,
            sq_tail: 0,
            cq_head: 0,
            cq_tail: 0,
            phase: true,
        }
    }
}
