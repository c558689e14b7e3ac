//! The admin commands of bring-up, in order.

use std::time::Instant;

use nvme_spec::command::Sqe;
use nvme_spec::features::{fid, queue_counts_dword};
use nvme_spec::identify::{OACS_DOORBELL_BUFFER, cns};
use nvme_spec::log_page::{GetLogPage, Smart, lid};
use nvme_spec::opcode::admin;
use nvme_spec::registers::{VS, version};

use super::{NvmeDevice, Step};
use crate::admin::Purpose;
use crate::error::NvmeError;
use crate::limits::{MAX_EVENTS, MAX_IO_QUEUES};
use crate::seam::PciDevice;

/// One admin command, and what its answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    IdentifyController,
    /// What limits the commands of the NVM command set.
    CommandLimits,
    ActiveNamespaces,
    /// By index in the list of active namespaces.
    IdentifyNamespace(usize),
    Descriptors(usize),
    WriteCache,
    Events,
    QueueCount,
    Shadows,
    CreateCq(u16),
    CreateSq(u16),
    /// Reads a log page; in service, where that clears an event.
    Log(u8),
}

impl Script {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::IdentifyController => "Identify Controller",
            Self::CommandLimits => "Identify Controller (NVM Command Set)",
            Self::ActiveNamespaces => "Identify Active Namespaces",
            Self::IdentifyNamespace(_) => "Identify Namespace",
            Self::Descriptors(_) => "Identify Namespace Descriptors",
            Self::WriteCache => "Get Features (Volatile Write Cache)",
            Self::Events => "Set Features (Asynchronous Event Configuration)",
            Self::QueueCount => "Set Features (Number of Queues)",
            Self::Shadows => "Doorbell Buffer Config",
            Self::CreateCq(_) => "Create I/O Completion Queue",
            Self::CreateSq(_) => "Create I/O Submission Queue",
            Self::Log(_) => "Get Log Page",
        }
    }

    /// Whether the controller is usable without it.
    pub(super) fn is_optional(self) -> bool {
        matches!(
            self,
            Self::CommandLimits
                | Self::IdentifyNamespace(_)
                | Self::Descriptors(_)
                | Self::WriteCache
                | Self::Events
                | Self::Shadows
                | Self::Log(_)
        )
    }
}

impl<D: PciDevice> NvmeDevice<D> {
    /// Sends a command and waits for its answer, from the next turn on.
    pub(super) fn send(&mut self, script: Script, now: Instant) {
        let sqe = self.command(script);
        if !self.admin.submit(&*self.pci, sqe, Purpose::Command) {
            let (command, after) = (script.name(), std::time::Duration::ZERO);
            return self.recover(NvmeError::AdminTimeout { command, after }, now);
        }
        self.current = Some((script, now + self.config.admin_limit));
        if self.step != Step::Live {
            self.step = Step::AwaitReply;
        }
    }

    /// Resets the controller when the current command is overdue; in service, sends the next one
    /// that is wanted.
    pub(super) fn check_current(&mut self, now: Instant) {
        match self.current {
            Some((script, until)) if now >= until => {
                let (command, after) = (script.name(), self.config.admin_limit);
                self.recover(NvmeError::AdminTimeout { command, after }, now);
            }
            None if self.step == Step::Live => {
                self.post_events();
                if let Some(lid) = self.pending_logs.pop_front() {
                    self.send(Script::Log(lid), now);
                }
            }
            _ => {}
        }
    }

    /// Keeps as many Asynchronous Event Requests at the controller as it takes, up to a few.
    fn post_events(&mut self) {
        let wanted = self.event_limit.min(MAX_EVENTS);
        for _ in self.admin.in_flight(Purpose::Event)..usize::from(wanted) {
            let sqe = Sqe::new(admin::ASYNC_EVENT_REQUEST, 0);
            self.admin.submit(&*self.pci, sqe, Purpose::Event);
        }
    }

    fn command(&self, script: Script) -> Sqe {
        let scratch = self.scratch.iova();
        let identify = |cns: u8, nsid: u32| {
            let mut sqe = Sqe::new(admin::IDENTIFY, nsid);
            sqe.cdw10 = u32::from(cns).into();
            sqe.set_prps(scratch, 0);
            sqe
        };
        let feature = |opcode: u8, fid: u8, value: u32| {
            let mut sqe = Sqe::new(opcode, 0);
            (sqe.cdw10, sqe.cdw11) = (u32::from(fid).into(), value.into());
            sqe
        };
        match script {
            Script::IdentifyController => identify(cns::CONTROLLER, 0),
            // CSI 0, which is the NVM command set's.
            Script::CommandLimits => identify(cns::COMMAND_SET_CONTROLLER, 0),
            Script::ActiveNamespaces => identify(cns::ACTIVE_NAMESPACES, 0),
            Script::IdentifyNamespace(index) => identify(cns::NAMESPACE, self.nsid(index)),
            Script::Descriptors(index) => identify(cns::NAMESPACE_DESCRIPTORS, self.nsid(index)),
            Script::WriteCache => feature(admin::GET_FEATURES, fid::VOLATILE_WRITE_CACHE, 0),
            Script::Events => {
                // The SMART / health warnings, which every controller has.
                feature(admin::SET_FEATURES, fid::ASYNC_EVENT_CONFIGURATION, 0x1F)
            }
            Script::QueueCount => {
                let wanted = u32::from(self.wanted_queues());
                let counts = queue_counts_dword(wanted, wanted);
                feature(admin::SET_FEATURES, fid::NUMBER_OF_QUEUES, counts)
            }
            Script::Shadows => {
                let mut sqe = Sqe::new(admin::DOORBELL_BUFFER_CONFIG, 0);
                sqe.set_prps(self.shadows[0].iova(), self.shadows[1].iova());
                sqe
            }
            Script::CreateCq(index) | Script::CreateSq(index) => self.create(script, index),
            Script::Log(lid) => {
                let mut sqe = Sqe::new(admin::GET_LOG_PAGE, u32::MAX);
                let bytes = size_of::<Smart>() as u64;
                let (lsp, offset, lsi) = (0, 0, 0);
                let (rae, offset_is_index) = (false, false);
                GetLogPage { lid, lsp, rae, bytes, offset, offset_is_index, lsi }.set(&mut sqe);
                sqe.set_prps(scratch, 0);
                sqe
            }
        }
    }

    /// Create I/O Completion or Submission Queue (NVMe Base 2.1, sections 5.2.1 and 5.2.2): each
    /// in one run of memory, without interrupts.
    fn create(&self, script: Script, index: u16) -> Sqe {
        const CONTIGUOUS: u32 = 1;
        let qid = u32::from(index) + 1;
        let iovas = self.queue_iovas.get(usize::from(index)).copied().unwrap_or_default();
        let mut sqe;
        if matches!(script, Script::CreateCq(_)) {
            sqe = Sqe::new(admin::CREATE_CQ, 0);
            sqe.set_prps(iovas.1, 0);
            sqe.cdw11 = CONTIGUOUS.into();
        } else {
            sqe = Sqe::new(admin::CREATE_SQ, 0);
            sqe.set_prps(iovas.0, 0);
            sqe.cdw11 = (CONTIGUOUS | qid << 16).into();
        }
        sqe.cdw10 = (qid | (u32::from(self.entries) - 1) << 16).into();
        sqe
    }

    /// Each namespace gets a queue pair for each core, within what the register window and we have
    /// room for.
    pub(super) fn wanted_queues(&self) -> u16 {
        if self.queue_count > 0 {
            return self.queue_count;
        }
        let wanted = usize::from(self.config.cores.max(1)) * self.namespaces.len().max(1);
        let stride = 8usize << self.cap.dstrd();
        let window = self.pci.register_bytes().saturating_sub(0x1000) / stride;
        let most = window.saturating_sub(1).min(usize::from(MAX_IO_QUEUES));
        wanted.clamp(1, most.max(1)) as u16
    }

    /// What comes after a command that was answered.
    pub(super) fn next(&mut self, script: Script, now: Instant) {
        let next = match script {
            // Earlier controllers look at fewer bits of CNS.
            Script::IdentifyController if self.pci.read32(VS) >= version(1, 2, 0) => {
                Script::CommandLimits
            }
            Script::IdentifyController | Script::CommandLimits => Script::ActiveNamespaces,
            Script::ActiveNamespaces => self.next_namespace(0),
            Script::IdentifyNamespace(index) => Script::Descriptors(index),
            Script::Descriptors(index) => self.next_namespace(index + 1),
            Script::WriteCache => Script::Events,
            Script::Events => Script::QueueCount,
            Script::QueueCount if self.wants_shadows => Script::Shadows,
            Script::QueueCount | Script::Shadows => Script::CreateCq(0),
            Script::CreateCq(index) => Script::CreateSq(index),
            Script::CreateSq(index) if index + 1 < self.queue_count => Script::CreateCq(index + 1),
            Script::CreateSq(_) => Script::Log(lid::SMART),
            Script::Log(_) if self.step == Step::Live => return,
            Script::Log(_) => return self.go_live(now),
        };
        self.send(next, now);
    }

    fn next_namespace(&mut self, index: usize) -> Script {
        if index < self.active.len() {
            return Script::IdentifyNamespace(index);
        }
        self.settle_namespaces();
        if self.has_write_cache { Script::WriteCache } else { Script::Events }
    }

    pub(super) fn nsid(&self, index: usize) -> u32 {
        self.active.get(index).copied().unwrap_or(0)
    }

    /// Whether the controller has, and we use, shadow doorbells.
    pub(super) fn note_shadows(&mut self, oacs: u16) {
        let fit = (usize::from(MAX_IO_QUEUES) + 1) * (8 << self.cap.dstrd()) <= 4096;
        self.wants_shadows =
            self.config.shadow_doorbells && fit && oacs & OACS_DOORBELL_BUFFER != 0;
    }
}
