//! The steps of bring-up, reset and end that registers decide.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nvme_spec::registers::{ACQ, AQA, ASQ, CC, CSTS, Cc, Csts, aqa};

use super::script::Script;
use super::{Goal, NvmeDevice, Step};
use crate::error::NvmeError;
use crate::limits::{ADMIN_ENTRIES, DISABLE_LIMIT, SHUTDOWN_LIMIT};
use crate::seam::PciDevice;
use crate::shared::Phase;

impl<D: PciDevice> NvmeDevice<D> {
    /// Goes as many steps as are ready to be gone.
    pub(super) fn advance(&mut self, now: Instant) {
        let csts = || Csts(self.pci.read32(CSTS));
        match self.step {
            Step::AwaitShutdown { until } => {
                if csts().shst() == Csts::SHST_COMPLETE {
                    tracing::info!(device = %self.name, "shut down in order");
                    self.disable(now);
                } else if now >= until {
                    tracing::error!(device = %self.name, after = ?SHUTDOWN_LIMIT,
                        "not shut down in time: what it caches may be lost");
                    self.disable(now);
                }
            }
            Step::AwaitDisabled { until } => {
                if !csts().rdy() {
                    self.contained(now);
                } else if now >= until {
                    self.contain_by_force(now);
                }
            }
            Step::AwaitAcknowledged => {
                let slots = self.shared.slots.iter().take(usize::from(self.queue_count));
                let epoch = self.epoch;
                let all =
                    |slot: &crate::shared::Slot| slot.acknowledged.load(Ordering::Acquire) == epoch;
                if self.goal == Goal::Start || slots.into_iter().all(all) {
                    self.enable(now);
                }
            }
            Step::AwaitReady { since, until } => {
                if csts().rdy() {
                    self.send(Script::IdentifyController, now);
                } else if now >= until {
                    let after = now.saturating_duration_since(since);
                    self.recover(NvmeError::NotReady { wanted: "ready", after }, now);
                }
            }
            Step::AwaitReply | Step::Live => self.check_current(now),
            Step::Ended => {}
        }
    }

    /// Begins an orderly shutdown (NVMe Base 2.1, section 3.6.1).
    pub(super) fn shut_down(&mut self, now: Instant) {
        let cc = Cc(self.pci.read32(CC));
        self.pci.write32(CC, cc.with_shn(1).0);
        self.current = None;
        self.step = Step::AwaitShutdown { until: now + SHUTDOWN_LIMIT };
    }

    /// Begins a controller reset (section 3.7.2): when CSTS.RDY is 0, the controller has stopped
    /// all accesses to memory.
    pub(super) fn disable(&mut self, now: Instant) {
        let cc = Cc(self.pci.read32(CC));
        self.pci.write32(CC, cc.with_shn(0).disabled().0);
        self.current = None;
        // In bring-up nothing of ours is in flight and nobody waits, so it may take its time.
        let limit = match self.goal {
            Goal::Start => self.ready_limit(),
            Goal::Resume | Goal::End => self.ready_limit().min(DISABLE_LIMIT),
        };
        self.step = Step::AwaitDisabled { until: now + limit };
    }

    /// It does not let itself be disabled: take memory away from it.
    fn contain_by_force(&mut self, now: Instant) {
        let off = self.pci.set_bus_master(false);
        let reset = self.pci.reset();
        tracing::error!(
            device = %self.name,
            bus_master_off = off.is_ok(),
            function_reset = reset.is_ok(),
            "the controller could not be disabled"
        );
        if off.is_err() && reset.is_err() {
            // It may write at any time: nothing that it knows of may be used again.
            self.set_phase(Phase::Wedged);
            self.fault = Some(NvmeError::NotReady { wanted: "disabled", after: DISABLE_LIMIT });
            self.goal = Goal::End;
            self.step = Step::Ended;
        } else if Csts(self.pci.read32(CSTS)).rdy() && self.goal != Goal::End {
            // Contained, but no use.
            self.goal = Goal::End;
            self.fault = Some(NvmeError::NotReady { wanted: "disabled", after: DISABLE_LIMIT });
            self.contained(now);
        } else {
            self.contained(now);
        }
    }

    /// The controller reaches no memory.
    fn contained(&mut self, now: Instant) {
        self.admin.reset();
        match self.goal {
            Goal::End => {
                if let Err(error) = self.pci.set_bus_master(false) {
                    tracing::debug!(device = %self.name, %error, "at the end");
                }
                self.set_phase(Phase::Failed);
                self.step = Step::Ended;
            }
            Goal::Start | Goal::Resume => {
                self.set_phase(Phase::Contained);
                self.step = Step::AwaitAcknowledged;
                self.shared.each_parked(|pair| pair.poll(now));
                self.advance(now);
            }
        }
    }

    fn enable(&mut self, now: Instant) {
        if let Err(error) = self.pci.set_bus_master(true) {
            return self.end(error.into(), now);
        }
        self.shadows.iter().for_each(|span| span.clear());
        self.pci.write32(AQA, aqa(ADMIN_ENTRIES, ADMIN_ENTRIES));
        self.pci.write64(ASQ, self.admin.ring.sq_iova());
        self.pci.write64(ACQ, self.admin.ring.cq_iova());
        // All command sets where that is how the controller wants it, otherwise NVM.
        let css = if self.cap.css() >> 6 & 1 != 0 { 6 } else { 0 };
        self.pci.write32(CC, Cc::enabled(css, 0).0);
        self.step = Step::AwaitReady { since: now, until: now + self.ready_limit() };
    }

    /// How long CSTS.RDY may take to follow CC.EN.
    fn ready_limit(&self) -> Duration {
        Duration::from_millis(500 * u64::from(self.cap.to()).max(1))
    }

    /// In service.
    pub(super) fn go_live(&mut self, now: Instant) {
        for pair in self.pairs.drain(..) {
            self.shared.park(pair);
        }
        let resumed = self.goal == Goal::Resume;
        tracing::info!(device = %self.name, resumed, queues = self.queue_count, "live");
        self.goal = Goal::Resume;
        if !resumed {
            self.fault = None;
        }
        self.recover_by = None;
        self.step = Step::Live;
        self.set_phase(Phase::Live);
        // A queue pair that is taken now serves at once.
        self.shared.each_parked(|pair| pair.poll(now));
    }
}
