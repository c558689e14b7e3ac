//! Admin commands.

use nvme_spec::command::Sqe;
use nvme_spec::features::{feature_id, fid, queue_counts, queue_counts_dword};
use nvme_spec::identify::{
    IdentifyController, IdentifyNamespace, NvmController, OACS_DOORBELL_BUFFER, ONCS_COMPARE,
    ONCS_DATASET_MANAGEMENT, ONCS_WRITE_ZEROES, VWC_PRESENT, cns, nidt, pad, push_descriptor,
};
use nvme_spec::log_page::Smart;
use nvme_spec::opcode::admin;
use nvme_spec::status::Status;
use zerocopy::{FromZeros, IntoBytes};

use crate::core::{Core, QueuePair};
use crate::{CommandLimits, Fault};

/// Asynchronous Event Requests that it takes.
const EVENTS: usize = 4;

impl Core {
    pub(crate) fn execute_admin(&mut self, sqe: &Sqe) {
        let is_deaf = self.has(Fault::DeafAdmin)
            || self.has(Fault::DeafAbort) && sqe.opcode() == admin::ABORT;
        if is_deaf {
            return;
        }
        if sqe.opcode() == admin::ASYNC_EVENT_REQUEST {
            self.events.push(sqe.cid());
            if self.events.len() > EVENTS {
                self.violation(format!("{} asynchronous event requests", self.events.len()));
            }
            return;
        }
        let (result, status) = match self.do_admin(sqe) {
            Ok(result) => (result, Status::SUCCESS),
            Err(status) => (0, status),
        };
        self.complete(0, sqe.cid(), u64::from(result), status);
    }

    fn do_admin(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        let (dw10, dw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        match sqe.opcode() {
            admin::IDENTIFY => self.identify(sqe),
            admin::GET_LOG_PAGE => {
                let mut smart = Smart::new_zeroed();
                smart.temperature_kelvin = self.temperature_kelvin.into();
                self.answer(sqe, smart.as_bytes())
            }
            admin::GET_FEATURES if feature_id(sqe) == fid::VOLATILE_WRITE_CACHE => Ok(1),
            admin::SET_FEATURES if feature_id(sqe) == fid::NUMBER_OF_QUEUES => {
                let (sq, cq) = queue_counts(dw11).ok_or(Status::INVALID_FIELD)?;
                let granted = sq.min(cq).min(u32::from(self.setup.queue_count));
                self.queue_count = granted as u16;
                Ok(queue_counts_dword(granted, granted))
            }
            admin::SET_FEATURES => Ok(0),
            admin::DOORBELL_BUFFER_CONFIG => {
                self.shadows = Some((sqe.prp1(), sqe.prp2()));
                Ok(0)
            }
            admin::CREATE_CQ | admin::CREATE_SQ => {
                let (qid, entries) = (dw10 as u16, (dw10 >> 16) as u16 + 1);
                if qid == 0 || qid > self.queue_count {
                    return Err(Status::INVALID_QUEUE_IDENTIFIER);
                }
                if entries > self.setup.mqes_z.saturating_add(1) || dw11 & 1 == 0 {
                    return Err(Status::INVALID_QUEUE_SIZE);
                }
                let place = (sqe.prp1(), entries);
                if sqe.opcode() == admin::CREATE_CQ {
                    self.queues.insert(qid, QueuePair::new((0, 2), place));
                } else {
                    let queue =
                        self.queues.get_mut(&qid).ok_or(Status::COMPLETION_QUEUE_INVALID)?;
                    (queue.sq, queue.sq_entries) = place;
                }
                Ok(0)
            }
            admin::ABORT => {
                let (qid, cid) = (dw10 as u16, (dw10 >> 16) as u16);
                let at = self.held.iter().position(|(q, sqe)| *q == qid && sqe.cid() == cid);
                match at.filter(|_| !self.has(Fault::IgnoreAbort)) {
                    Some(at) => {
                        self.held.remove(at);
                        self.complete(qid, cid, 0, Status::COMMAND_ABORT_REQUESTED);
                        Ok(0)
                    }
                    None => Ok(1),
                }
            }
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    fn identify(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        if self.has(Fault::GarbageIdentify) {
            return self.answer(sqe, &[0xFF; 4096]);
        }
        let namespace = (sqe.nsid() as usize).checked_sub(1);
        let namespace = namespace.and_then(|at| self.setup.namespaces.get(at)).copied();
        match sqe.cdw10.get() as u8 {
            cns::CONTROLLER => {
                let mut identify = IdentifyController::new_zeroed();
                pad(&mut identify.sn, self.setup.serial);
                pad(&mut identify.mn, "Forebay emulated");
                pad(&mut identify.fr, "1");
                identify.mdts = self.setup.mdts;
                identify.aerl_z = EVENTS as u8 - 1;
                let shadows = if self.setup.shadow_doorbells { OACS_DOORBELL_BUFFER } else { 0 };
                identify.oacs = shadows.into();
                let oncs = ONCS_COMPARE | ONCS_DATASET_MANAGEMENT | ONCS_WRITE_ZEROES;
                identify.oncs = oncs.into();
                identify.vwc = VWC_PRESENT;
                identify.nn = (self.setup.namespaces.len() as u32).into();
                self.answer(sqe, identify.as_bytes())
            }
            cns::COMMAND_SET_CONTROLLER => {
                let mut identify = NvmController::new_zeroed();
                let CommandLimits { wzsl, dmrl, dmrsl, dmsl } = self.setup.limits;
                (identify.wzsl, identify.dmrl) = (wzsl, dmrl);
                (identify.dmrsl, identify.dmsl) = (dmrsl.into(), dmsl.into());
                self.answer(sqe, identify.as_bytes())
            }
            cns::ACTIVE_NAMESPACES => {
                let mut list = vec![0; 4096];
                for nsid in 1..=self.setup.namespaces.len() {
                    list[nsid * 4 - 4..nsid * 4].copy_from_slice(&(nsid as u32).to_le_bytes());
                }
                self.answer(sqe, &list)
            }
            cns::NAMESPACE => {
                let namespace = namespace.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT)?;
                let mut identify = IdentifyNamespace::new_zeroed();
                identify.nsze = namespace.block_count.into();
                identify.ncap = namespace.block_count.into();
                identify.lbaf[0].lbads = namespace.lbads;
                identify.lbaf[0].ms = namespace.metadata_bytes.into();
                identify.dlfeat = 1;
                self.answer(sqe, identify.as_bytes())
            }
            cns::NAMESPACE_DESCRIPTORS => {
                let namespace = namespace.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT)?;
                let mut list = Vec::new();
                push_descriptor(&mut list, nidt::CSI, &[namespace.csi]);
                push_descriptor(&mut list, nidt::UUID, &[sqe.nsid() as u8; 16]);
                list.resize(4096, 0);
                self.answer(sqe, &list)
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn answer(&mut self, sqe: &Sqe, bytes: &[u8]) -> Result<u32, Status> {
        let span = self.span(sqe.prp1(), bytes.len() as u32).ok_or(Status::DATA_TRANSFER_ERROR)?;
        span.write(0, bytes);
        Ok(0)
    }
}
