//! Identify (NVMe Base 2.1, section 5.1.13; NVM Command Set 1.1, section 4.1.5).
//!
//! Limits and atomicity come from what the target guarantees, which a namespace's geometry says.

use nvme_spec::command::Sqe;
use nvme_spec::fabrics::DISCOVERY_NQN;
use nvme_spec::identify::*;
use nvme_spec::status::Status;
use zerocopy::{FromZeros, IntoBytes};

use super::fabrics::VERSION;
use crate::controller::{CRITICAL_KELVIN, Controller, WARNING_KELVIN};
use crate::limits::{
    KEEP_ALIVE_GRANULARITY_MS, MAX_ABORTS, MAX_ASYNC_EVENT_REQUESTS, MAX_ERROR_ENTRIES,
    MAX_NAMESPACES, READY_TIMEOUT_500MS,
};
use crate::output::{Answer, Outcome};
use crate::subsystem::{Namespace, Subsystem};
use crate::target::{Target, TargetConfig, check_room};
use crate::verbs::Transport;

const _: () = assert!(MAX_NAMESPACES <= IDENTIFY_BYTES / 4, "one list of NSIDs holds all");

/// CNTRLTYPE of a controller with namespaces, and of a discovery controller.
const CNTRLTYPE_IO: u8 = 1;
const CNTRLTYPE_DISCOVERY: u8 = 2;
/// FRMW: one slot, read only.
const FRMW_ONE_READ_ONLY_SLOT: u8 = 1 << 1 | 1;
/// LPA: Commands Supported and Effects log; offsets and long lengths in Get Log Page.
const LPA_EFFECTS_AND_OFFSETS: u8 = 1 << 1 | 1 << 2;
/// OFCS: Disconnect.
const OFCS_DISCONNECT: u16 = 1;
/// NSTAT: the namespace is ready.
const NSTAT_READY: u8 = 1;
/// Serial and model number of the discovery controller.
const DISCOVERY_SERIAL: &str = "DISCOVERY";
const DISCOVERY_MODEL: &str = "Forebay discovery";
/// SQES and CQES: entries of 64 and 16 bytes, required and maximum.
const SQES: u8 = 0x66;
const CQES: u8 = 0x44;

impl Target {
    pub(crate) fn identify(&mut self, cntlid: u16, sqe: &Sqe) -> Outcome {
        let controller = self.controllers.get(&cntlid).ok_or(Status::INTERNAL_ERROR)?;
        let subsystem = self.subsystem_of(controller.subsystem);
        let (cns, csi) = (sqe.cdw10.get() as u8, (sqe.cdw11.get() >> 24) as u8);
        check_room(sqe, IDENTIFY_BYTES as u64)?;
        let mut data = match (cns, subsystem) {
            (cns::CONTROLLER, _) => {
                identify_controller(&self.config, controller, subsystem).as_bytes().to_vec()
            }
            (cns::NAMESPACE, Some(subsystem)) => of_namespace(subsystem, sqe, identify_namespace)?,
            (cns::INDEPENDENT_NAMESPACE, Some(subsystem)) => {
                of_namespace(subsystem, sqe, independent_namespace)?
            }
            // Nothing of the NVM command set's own structures applies: all zero.
            (cns::COMMAND_SET_NAMESPACE, Some(subsystem)) if csi == CSI_NVM => {
                of_namespace(subsystem, sqe, |_| Vec::new())?
            }
            (cns::COMMAND_SET_CONTROLLER, Some(_)) if csi == CSI_NVM => Vec::new(),
            (cns::ACTIVE_NAMESPACES, Some(subsystem)) => active_namespaces(subsystem, sqe)?,
            (cns::COMMAND_SET_ACTIVE_NAMESPACES, Some(subsystem)) if csi == CSI_NVM => {
                active_namespaces(subsystem, sqe)?
            }
            (cns::NAMESPACE_DESCRIPTORS, Some(subsystem)) => {
                let namespace = find_namespace(subsystem, sqe.nsid())?;
                descriptors_of(namespace.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?)
            }
            // One combination of command sets: the NVM command set alone.
            (cns::COMMAND_SETS, Some(_)) => 1u64.to_le_bytes().to_vec(),
            _ => return Err(Status::INVALID_FIELD.with_dnr().into()),
        };
        data.resize(IDENTIFY_BYTES, 0);
        if matches!(cns, cns::ACTIVE_NAMESPACES | cns::COMMAND_SET_ACTIVE_NAMESPACES)
            && let Some(controller) = self.controllers.get_mut(&cntlid)
        {
            // The host sees that they are gone: a list holds all there can be.
            controller.removed.retain(|&nsid| nsid <= sqe.nsid());
        }
        Answer::data(data)
    }
}

fn identify_controller(
    config: &TargetConfig,
    controller: &Controller,
    subsystem: Option<&Subsystem>,
) -> IdentifyController {
    let mut id = IdentifyController::new_zeroed();
    let nqn = subsystem.map_or(DISCOVERY_NQN, Subsystem::nqn);
    pad(&mut id.sn, subsystem.map_or(DISCOVERY_SERIAL, Subsystem::serial));
    pad(&mut id.mn, subsystem.map_or(DISCOVERY_MODEL, Subsystem::model));
    pad(&mut id.fr, &config.firmware);
    for (to, from) in id.subnqn.iter_mut().zip(nqn.bytes()) {
        *to = from;
    }
    // In units of the smallest memory page, which is 4 KiB (CAP.MPSMIN 0).
    id.mdts = (config.mdts_bytes / 4096).trailing_zeros() as u8;
    id.cntlid = controller.cntlid.into();
    id.ver = VERSION.into();
    id.rtd3e = (u32::from(READY_TIMEOUT_500MS) * 500_000).into();
    id.ctratt = CTRATT_HOSTID_128.into();
    id.aerl_z = (MAX_ASYNC_EVENT_REQUESTS - 1) as u8;
    id.lpa = LPA_EFFECTS_AND_OFFSETS;
    id.elpe_z = (MAX_ERROR_ENTRIES - 1) as u8;
    id.kas = ((KEEP_ALIVE_GRANULARITY_MS / 100) as u16).into();
    id.maxcmd = config.max_queue_entries.into();
    let sgls = match controller.transport {
        Transport::Rdma => SGLS_KEYED,
        Transport::Tcp => SGLS_TRANSPORT,
    };
    id.sgls = (SGLS_SUPPORTED | SGLS_OFFSET | sgls).into();
    // A command capsule is the command and its data, in units of 16 bytes; a response is one unit.
    id.ioccsz = (4 + config.in_capsule_bytes / 16).into();
    id.iorcsz = 1.into();
    id.msdbd = 1;
    id.frmw = FRMW_ONE_READ_ONLY_SLOT;
    match subsystem {
        None => {
            id.cntrltype = CNTRLTYPE_DISCOVERY;
            id.oaes = OAES_DISCOVERY_LOG.into();
        }
        Some(subsystem) => {
            id.cntrltype = CNTRLTYPE_IO;
            id.cmic = CMIC_MULTI_PORT | CMIC_MULTI_CONTROLLER;
            id.oaes = OAES_NAMESPACE_ATTRIBUTE.into();
            id.acl_z = (MAX_ABORTS - 1) as u8;
            id.wctemp = WARNING_KELVIN.into();
            id.cctemp = CRITICAL_KELVIN.into();
            id.sqes = SQES;
            id.cqes = CQES;
            id.nn = (MAX_NAMESPACES as u32).into();
            id.mnan = (MAX_NAMESPACES as u32).into();
            id.oncs = (ONCS_COMPARE | ONCS_DATASET_MANAGEMENT | ONCS_WRITE_ZEROES).into();
            // Flush of all namespaces at once is not served, cache or not.
            id.vwc = VWC_FLUSH_ALL_UNSUPPORTED;
            if subsystem.has_volatile_cache() {
                id.vwc |= VWC_PRESENT;
            }
            id.ofcs = OFCS_DISCONNECT.into();
        }
    }
    id
}

/// What `describe` says of an active namespace; nothing (zeroes) for one that is not active.
fn of_namespace(
    subsystem: &Subsystem,
    sqe: &Sqe,
    describe: impl Fn(&Namespace) -> Vec<u8>,
) -> Result<Vec<u8>, Status> {
    Ok(find_namespace(subsystem, sqe.nsid())?.map_or_else(Vec::new, describe))
}

/// The namespace, or `None` for an NSID that could be one.
fn find_namespace(subsystem: &Subsystem, nsid: u32) -> Result<Option<&Namespace>, Status> {
    // FFFFFFFFh asks for what all namespaces have in common, which only makes sense to a host that
    // creates namespaces.
    if nsid == 0 || nsid > MAX_NAMESPACES as u32 {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    Ok(subsystem.namespaces.get(&nsid))
}

fn identify_namespace(namespace: &Namespace) -> Vec<u8> {
    let geometry = &namespace.geometry;
    let mut id = IdentifyNamespace::new_zeroed();
    id.nsze = geometry.block_count.into();
    id.ncap = geometry.block_count.into();
    id.nuse = geometry.block_count.into();
    id.nsfeat = nsfeat(namespace);
    id.nmic = NMIC_SHARED;
    if geometry.deallocate_reads_zeroes {
        id.dlfeat = DLFEAT_READS_ZEROES | DLFEAT_WRITE_ZEROES_DEALLOCATES;
    }
    // 0's based, where 0 would say "as the controller", which guarantees a single block.
    let atomic_z = blocks_z(geometry.atomic_write_blocks);
    id.nawun = atomic_z.into();
    id.nawupf = atomic_z.into();
    let preferred_z = blocks_z(geometry.preferred_write_blocks);
    id.npwg_z = preferred_z.into();
    id.npwa_z = preferred_z.into();
    id.npdg_z = preferred_z.into();
    id.npda_z = preferred_z.into();
    id.nows_z = preferred_z.into();
    let bytes = u128::from(geometry.block_count) * u128::from(geometry.block_bytes);
    id.nvmcap = bytes.to_le_bytes();
    id.nsattr = if namespace.read_only { NSATTR_WRITE_PROTECTED } else { 0 };
    id.nguid = namespace.nguid;
    let [format, ..] = &mut id.lbaf;
    format.lbads = geometry.block_bytes.trailing_zeros() as u8;
    id.as_bytes().to_vec()
}

fn independent_namespace(namespace: &Namespace) -> Vec<u8> {
    let mut id = IndependentNamespace::new_zeroed();
    id.nmic = NMIC_SHARED;
    id.nsattr = if namespace.read_only { NSATTR_WRITE_PROTECTED } else { 0 };
    id.nstat = NSTAT_READY;
    id.as_bytes().to_vec()
}

fn nsfeat(namespace: &Namespace) -> u8 {
    let atomics = if namespace.geometry.atomic_write_blocks > 1 { NSFEAT_ATOMICS } else { 0 };
    NSFEAT_OPTIMAL | atomics
}

/// A number of blocks, 0's based; what is too large for the field becomes the largest there is.
fn blocks_z(blocks: u32) -> u16 {
    u16::try_from(blocks.saturating_sub(1)).unwrap_or(u16::MAX)
}

/// NSIDs above that of the command, in order.
fn active_namespaces(subsystem: &Subsystem, sqe: &Sqe) -> Result<Vec<u8>, Status> {
    let after = sqe.nsid();
    if after >= u32::MAX - 1 {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    let nsids = subsystem.namespaces.range(after + 1..).map(|(nsid, _)| nsid.to_le_bytes());
    Ok(nsids.take(IDENTIFY_BYTES / 4).flatten().collect())
}

fn descriptors_of(namespace: &Namespace) -> Vec<u8> {
    let mut list = Vec::with_capacity(IDENTIFY_BYTES);
    push_descriptor(&mut list, nidt::UUID, namespace.uuid.as_bytes());
    push_descriptor(&mut list, nidt::NGUID, &namespace.nguid);
    push_descriptor(&mut list, nidt::CSI, &[CSI_NVM]);
    list
}
