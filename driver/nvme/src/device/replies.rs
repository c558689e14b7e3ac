//! What the controller answers.

use std::time::Instant;

use nvme_spec::aer::{AsyncEvent, event_type};
use nvme_spec::command::Cqe;
use nvme_spec::features::queue_counts;
use nvme_spec::identify::{
    IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, NvmController, ONCS_COMPARE,
    ONCS_DATASET_MANAGEMENT, ONCS_WRITE_ZEROES, VWC_PRESENT, trimmed,
};
use nvme_spec::log_page::lid;

use super::script::Script;
use super::{Goal, Identity, NvmeDevice};
use crate::admin::Purpose;
use crate::error::{NamespaceFault, NvmeError};
use crate::limits::{
    ADMIN_ENTRIES, MAX_ABORTS, MAX_NAMESPACES, MAX_TRANSFER_BYTES, MAX_WRITE_ZEROES_BYTES,
    PAGE_BYTES,
};
use crate::namespace::Namespace;
use crate::queue::{DeallocateLimits, Inner};
use crate::seam::PciDevice;

impl<D: PciDevice> NvmeDevice<D> {
    pub(super) fn take_replies(&mut self, now: Instant) {
        for _ in 0..ADMIN_ENTRIES {
            let Some((purpose, cqe)) = self.admin.poll(&*self.pci) else { break };
            match purpose {
                Purpose::Command => self.take_reply(&cqe, now),
                Purpose::Event => self.take_event(&cqe),
                Purpose::Abort => {
                    tracing::info!(device = %self.name, status = %cqe.status(), "abort answered");
                }
            }
        }
    }

    fn take_reply(&mut self, cqe: &Cqe, now: Instant) {
        let Some((script, _)) = self.current.take() else { return };
        let status = cqe.status();
        if !status.is_success() && !script.is_optional() {
            let command = script.name();
            return self.recover(NvmeError::Refused { command, status }, now);
        }
        let result = if status.is_success() {
            self.use_reply(script, cqe, now)
        } else {
            tracing::debug!(device = %self.name, command = script.name(), %status, "refused");
            match script {
                Script::IdentifyNamespace(index) => {
                    self.set_unusable(self.nsid(index), NamespaceFault::Refused(status));
                }
                // The rings rely on them since bring-up.
                Script::Shadows if self.goal == Goal::Resume => {
                    return self.end(NvmeError::Changed, now);
                }
                Script::Shadows => self.wants_shadows = false,
                _ => {}
            }
            Ok(())
        };
        match result {
            Ok(()) => self.next(script, now),
            Err(fault) => self.end(fault, now),
        }
    }

    fn use_reply(&mut self, script: Script, cqe: &Cqe, now: Instant) -> Result<(), NvmeError> {
        match script {
            Script::IdentifyController => return self.use_controller(),
            Script::CommandLimits => self.use_command_limits(),
            Script::ActiveNamespaces => self.use_active_namespaces(),
            Script::IdentifyNamespace(index) => {
                let identify: IdentifyNamespace = self.scratch.read_obj(0);
                let nsid = self.nsid(index);
                let transfer_bytes = self.limits.transfer_bytes;
                match Namespace::check(nsid, &identify, self.awupf_z, transfer_bytes) {
                    Ok(namespace) => self.found.push(namespace),
                    Err(fault) => self.set_unusable(nsid, fault),
                }
            }
            Script::Descriptors(index) => {
                let mut list = [0; IDENTIFY_BYTES];
                self.scratch.read(0, &mut list);
                let nsid = self.nsid(index);
                if let Some(last) = self.found.last_mut().filter(|last| last.nsid == nsid)
                    && let Err(fault) = last.describe(&list)
                {
                    self.found.pop();
                    self.set_unusable(nsid, fault);
                }
            }
            Script::WriteCache => {
                if let Some(identity) = &mut self.identity {
                    identity.volatile_write_cache = cqe.dw0.get() & 1 != 0;
                }
            }
            Script::QueueCount => return self.use_queue_count(cqe.dw0.get(), now),
            Script::Shadows => {
                let (dstrd, [values, events]) = (self.cap.dstrd(), self.shadows);
                for pair in &mut self.pairs {
                    let qid = pair.qid();
                    pair.ring().set_shadows(qid, dstrd, values, events);
                }
                if let Some(identity) = &mut self.identity {
                    identity.shadow_doorbells = true;
                }
            }
            Script::Log(lid::SMART) => self.smart = Some(self.scratch.read_obj(0)),
            Script::Events | Script::CreateCq(_) | Script::CreateSq(_) | Script::Log(_) => {}
        }
        Ok(())
    }

    fn use_controller(&mut self) -> Result<(), NvmeError> {
        let identify: IdentifyController = self.scratch.read_obj(0);
        // The smallest page is 4 KiB; larger exponents than this are larger than we use anyway.
        let mdts_bytes = match identify.mdts {
            0 => MAX_TRANSFER_BYTES,
            mdts if mdts < 16 => PAGE_BYTES << mdts,
            _ => MAX_TRANSFER_BYTES,
        };
        let identity = Identity {
            serial: trimmed(&identify.sn),
            model: trimmed(&identify.mn),
            firmware: trimmed(&identify.fr),
            volatile_write_cache: identify.vwc & VWC_PRESENT != 0,
            transfer_bytes: mdts_bytes.min(MAX_TRANSFER_BYTES),
            shadow_doorbells: false,
        };
        if let Some(known) = &self.identity {
            // Firmware may have been activated by the reset; anything else means another device.
            let is_same = known.serial == identity.serial && known.model == identity.model;
            let is_enough = identity.transfer_bytes >= known.transfer_bytes;
            return if is_same && is_enough { Ok(()) } else { Err(NvmeError::Changed) };
        }
        let oncs = identify.oncs.get();
        self.limits.transfer_bytes = identity.transfer_bytes;
        self.limits.has_compare = oncs & ONCS_COMPARE != 0;
        if oncs & ONCS_WRITE_ZEROES != 0 {
            // MDTS is not meant for it, but some controllers without limits of its own apply it.
            self.limits.write_zeroes_bytes = identity.transfer_bytes;
        }
        if oncs & ONCS_DATASET_MANAGEMENT != 0 {
            self.limits.deallocate = Some(DeallocateLimits::default());
        }
        self.awupf_z = identify.awupf_z.get();
        self.abort_limit = identify.acl_z.saturating_add(1).min(MAX_ABORTS);
        self.event_limit = identify.aerl_z.saturating_add(1);
        self.has_write_cache = identity.volatile_write_cache;
        self.note_shadows(identify.oacs.get());
        self.identity = Some(identity);
        Ok(())
    }

    /// Zero stands for no limit.
    fn use_command_limits(&mut self) {
        if self.queue_count > 0 {
            return;
        }
        let identify: NvmController = self.scratch.read_obj(0);
        if self.limits.write_zeroes_bytes > 0 {
            let bytes = match identify.wzsl {
                wzsl @ 1..16 => PAGE_BYTES << wzsl,
                _ => MAX_WRITE_ZEROES_BYTES,
            };
            self.limits.write_zeroes_bytes = bytes.min(MAX_WRITE_ZEROES_BYTES);
        }
        if let Some(limits) = &mut self.limits.deallocate {
            *limits = DeallocateLimits::of(&identify);
        }
    }

    /// The list is ascending and ends at the first zero; one that is not ends where it breaks.
    fn use_active_namespaces(&mut self) {
        self.active.clear();
        self.found.clear();
        let mut last = 0;
        for index in 0..(IDENTIFY_BYTES / 4) as u32 {
            let nsid = self.scratch.load_u32(index * 4);
            if nsid <= last || nsid > 0xFFFF_FFFE {
                break;
            }
            if self.active.len() == MAX_NAMESPACES {
                let device = &self.name;
                tracing::warn!(%device, "only the first {MAX_NAMESPACES} namespaces are used");
                break;
            }
            self.active.push(nsid);
            last = nsid;
        }
    }

    /// All namespaces were looked at. After a reset those that are in use must be what they were:
    /// nothing else is known to those who use them.
    pub(super) fn settle_namespaces(&mut self) {
        let found = std::mem::take(&mut self.found);
        if self.queue_count == 0 {
            self.namespaces = found;
            return;
        }
        for known in std::mem::take(&mut self.namespaces) {
            if found.iter().any(|namespace| namespace.can_stand_for(&known)) {
                self.namespaces.push(known);
            } else {
                self.shared.lose_namespace(known.nsid);
                self.set_unusable(known.nsid, NamespaceFault::Changed);
            }
        }
    }

    /// The first fault of a namespace stays.
    fn set_unusable(&mut self, nsid: u32, fault: NamespaceFault) {
        if self.unusable.iter().all(|&(other, _)| other != nsid) {
            tracing::warn!(device = %self.name, nsid, %fault, "namespace not usable");
            self.unusable.push((nsid, fault));
        }
    }

    fn use_queue_count(&mut self, dword: u32, now: Instant) -> Result<(), NvmeError> {
        // 0's based, and FFFFh, which no controller may answer, is more than we ask for.
        let (sq, cq) = queue_counts(dword).unwrap_or((u32::MAX, u32::MAX));
        let granted = sq.min(cq).min(u32::from(self.wanted_queues())) as u16;
        if self.queue_count > 0 {
            return if granted == self.queue_count { Ok(()) } else { Err(NvmeError::Changed) };
        }
        for qid in 1..=granted {
            let shape = (qid, self.entries, self.cap.dstrd());
            let (shared, config) = (&self.shared, &self.config);
            let mut pair = Inner::new(&self.pci, shared, shape, self.limits, config, now)?;
            self.queue_iovas.push((pair.ring().sq_iova(), pair.ring().cq_iova()));
            self.pairs.push(Box::new(pair));
        }
        self.queue_count = granted;
        Ok(())
    }

    fn take_event(&mut self, cqe: &Cqe) {
        let (status, event) = (cqe.status(), AsyncEvent(cqe.dw0.get()));
        if !status.is_success() {
            // More of them would end the same way.
            self.event_limit = 0;
            tracing::debug!(device = %self.name, %status, "no asynchronous events");
            return;
        }
        tracing::warn!(
            device = %self.name,
            kind = event.event_type(),
            information = event.information(),
            log_page = event.log_page(),
            "the controller reports an event"
        );
        // Reading the log page clears the event; the next of its kind comes only then.
        if matches!(event.event_type(), event_type::ERROR | event_type::SMART) {
            self.want_log(event.log_page());
        }
    }
}
