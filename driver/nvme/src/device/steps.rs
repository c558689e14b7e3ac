//! The steps of bring-up, reset and end that registers decide.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nvme_spec::registers::{ACQ, AQA, ASQ, CC, CSTS, Cc, Csts, aqa};

use super::script::Script;
use super::{Containment, Goal, NvmeDevice, Step};
use crate::error::NvmeError;
use crate::limits::{
    ADMIN_ENTRIES, DISABLE_LIMIT, DRAIN_LIMIT, HURRIED_SHUTDOWN_LIMIT, SHUTDOWN_LIMIT,
};
use crate::seam::{PciDevice, SeamError};
use crate::shared::Phase;

impl<D: PciDevice> NvmeDevice<D> {
    /// Goes as many steps as are ready to be gone.
    pub(super) fn advance(&mut self, now: Instant) {
        let csts = || Csts(self.pci.read32(CSTS));
        match self.step {
            Step::AwaitDrained { until } => {
                if self.all_acknowledged() {
                    self.shut_down(now, SHUTDOWN_LIMIT);
                } else if now >= until {
                    self.shut_down(now, HURRIED_SHUTDOWN_LIMIT);
                }
            }
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
                    self.disabled(now);
                } else if now >= until {
                    self.contain_by_force(now);
                }
            }
            Step::AwaitReset => {
                if let Some(outcome) = self.pci.poll_reset() {
                    self.was_reset(outcome, now);
                }
            }
            Step::AwaitAcknowledged => {
                if self.all_acknowledged() {
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

    /// Whether every queue pair has come as far as the present phase asks.
    fn all_acknowledged(&self) -> bool {
        let mut slots = self.shared.slots.iter().take(usize::from(self.queue_count));
        slots.all(|slot| slot.acknowledged.load(Ordering::Acquire) == self.epoch)
    }

    /// Begins an orderly end: first what was taken comes to its end.
    pub(super) fn drain(&mut self, now: Instant) {
        self.set_phase(Phase::Draining);
        self.current = None;
        self.step = Step::AwaitDrained { until: now + DRAIN_LIMIT };
    }

    /// Has the controller flush its caches (NVMe Base 2.1, section 3.6.1).
    fn shut_down(&mut self, now: Instant, limit: Duration) {
        self.set_phase(Phase::Stopping);
        let cc = Cc(self.pci.read32(CC));
        self.pci.write32(CC, cc.with_shn(1).0);
        self.step = Step::AwaitShutdown { until: now + limit };
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

    /// It does not let itself be disabled: it is kept from memory, and reset if it is to serve
    /// again. That comes last: a function that does not answer takes its time.
    fn contain_by_force(&mut self, now: Instant) {
        let containment = self.contain();
        let device = &self.name;
        tracing::error!(%device, ?containment, "the controller could not be disabled");
        if containment == Containment::BusMaster && self.goal != Goal::End {
            self.contained(now, Step::AwaitReset);
            if let Err(error) = self.pci.begin_reset() {
                self.give_up(error.into());
            }
            return;
        }
        if self.goal != Goal::End {
            self.fault = Some(NvmeError::NotReady { wanted: "disabled", after: DISABLE_LIMIT });
        }
        self.finish(containment.last_phase());
    }

    /// The function was reset, or was not.
    fn was_reset(&mut self, outcome: Result<(), SeamError>, now: Instant) {
        match outcome {
            Err(error) => self.give_up(error.into()),
            Ok(()) if Csts(self.pci.read32(CSTS)).rdy() => {
                let (wanted, after) = ("disabled by a function reset", DISABLE_LIMIT);
                self.give_up(NvmeError::NotReady { wanted, after });
            }
            Ok(()) => {
                self.step = Step::AwaitAcknowledged;
                self.advance(now);
            }
        }
    }

    /// Ends a device that was contained before its reset. That may have left it as anything.
    fn give_up(&mut self, fault: NvmeError) {
        tracing::error!(device = %self.name, %fault, "giving the device up");
        self.fault = Some(fault);
        self.finish_contained();
    }

    /// The controller has stopped all accesses to memory.
    fn disabled(&mut self, now: Instant) {
        if self.goal != Goal::End {
            self.contained(now, Step::AwaitAcknowledged);
            return self.advance(now);
        }
        if let Err(error) = self.pci.set_bus_master(false) {
            tracing::debug!(device = %self.name, %error, "at the end");
        }
        self.finish(Phase::Failed);
    }

    /// The controller reaches no memory, and is to serve again.
    fn contained(&mut self, now: Instant, next: Step) {
        self.admin.reset();
        self.set_phase(Phase::Contained);
        self.step = next;
        self.shared.each_parked(|pair| pair.poll(now));
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
