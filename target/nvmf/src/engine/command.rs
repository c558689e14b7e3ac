//! What a command capsule asks for: parsed once, checked against the queue and the namespace.

use bdev::{Geometry, Io, Op};
use dma::DmaSpan;
use nvme_spec::command::Sqe;
use nvme_spec::nvm::DsmRange;
use nvme_spec::opcode::{self, DataDirection};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::status::Status;
use nvme_spec::{fabrics, nvm, sgl};

use super::EngineConfig;
use super::request::{HostBuffer, Work};
use super::slab::{Carrier, Queue, QueueRole};
use crate::limits::{MAX_CONTROL_DATA_BYTES, MAX_DSM_RANGES, MAX_NAMESPACES, MAX_SUBSYSTEMS};

/// A namespace as a core sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its channel on this core.
    pub channel: u32,
    /// Size and limits.
    pub geometry: Geometry,
    /// Writes are refused.
    pub read_only: bool,
}

/// The namespaces of all subsystems, by subsystem index and NSID.
#[derive(Debug, Default)]
pub struct Namespaces {
    subsystems: Vec<Vec<Option<Namespace>>>,
}

impl Namespaces {
    /// Adds, changes or removes one. Indices beyond the limits assert: the control half gives them.
    pub(super) fn set(&mut self, subsystem: u32, nsid: u32, namespace: Option<Namespace>) {
        let (row, column) = (subsystem as usize, nsid as usize - 1);
        assert!(row < MAX_SUBSYSTEMS && column < MAX_NAMESPACES);
        if self.subsystems.len() <= row {
            self.subsystems.resize_with(row + 1, Vec::new);
        }
        let row = &mut self.subsystems[row];
        if row.len() <= column {
            row.resize(column + 1, None);
        }
        row[column] = namespace;
    }

    /// How many there are, and one more than the highest channel number.
    pub(super) fn channels(&self) -> (usize, usize) {
        let all = self.subsystems.iter().flatten().flatten();
        let highest = all.clone().map(|namespace| namespace.channel as usize + 1).max();
        (all.count(), highest.unwrap_or_default())
    }

    #[inline]
    fn get(&self, subsystem: u32, nsid: u32) -> Option<&Namespace> {
        let row = self.subsystems.get(subsystem as usize)?;
        row.get((nsid as usize).checked_sub(1)?)?.as_ref()
    }

    /// Checks once more, with the data in our memory: the namespace may have shrunk, gone, become
    /// read-only or made way for one with other blocks while the request waited, and the ranges of
    /// a deallocate can only be read now.
    #[inline]
    pub(super) fn recheck(
        &self,
        subsystem: u32,
        (nsid, channel): (u32, u32),
        io: &Io,
        data: Option<DmaSpan>,
    ) -> Result<(), Status> {
        let gone = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
        let namespace = self.get(subsystem, nsid).filter(|n| n.channel == channel).ok_or(gone)?;
        if namespace.read_only && writes(io.op) {
            return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
        }
        let blocks = namespace.geometry.block_count;
        if let Op::Deallocate { ranges } = io.op {
            let data = data.ok_or(Status::INTERNAL_ERROR)?;
            return (0..u32::from(ranges)).try_for_each(|index| {
                let range: DsmRange = data.read_obj(index * size_of::<DsmRange>() as u32);
                check_range(range.slba.get(), u64::from(range.block_count.get()), blocks)
            });
        }
        // A block device fills as many bytes as its blocks have: the host is sent the whole buffer,
        // so that what is left of it would be another command's data.
        let bytes = u64::from(io.block_count) * u64::from(namespace.geometry.block_bytes);
        if data.is_some_and(|data| u64::from(data.len()) != bytes) {
            return Err(gone);
        }
        check_range(io.slba, u64::from(io.block_count), blocks)
    }
}

/// What a command takes: work, and the data that goes with it.
pub(super) struct Plan {
    pub(super) work: Work,
    pub(super) transfer: Transfer,
}

/// The data of a command.
#[derive(Clone, Copy)]
pub(super) struct Transfer {
    pub(super) host: HostBuffer,
    pub(super) length: u32,
    pub(super) in_capsule: Option<DmaSpan>,
}

const NO_DATA: Transfer = Transfer { host: HostBuffer::None, length: 0, in_capsule: None };

/// Parses and checks a command. `capsule` is the data that followed it in the capsule.
///
/// # Errors
/// The status that ends the command at once: DNR wherever the same command would fail the same way
/// again, and success where there is nothing to do.
#[inline]
pub(super) fn plan(
    sqe: &Sqe,
    queue: &Queue,
    namespaces: &Namespaces,
    config: &EngineConfig,
    capsule: Option<DmaSpan>,
) -> Result<Plan, Status> {
    // Fused commands are not supported, and fabrics commands carry an SGL (NVMe Base, figure
    // "Common Command Format": FUSE 00b, PSDT 01b).
    if sqe.fuse() != 0 || sqe.psdt() != sgl::PSDT_SGL {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let params = queue.params();
    // Before Connect nothing else is served, so nothing else gets memory: a peer that nobody has
    // let in could take all there is.
    if params.role == QueueRole::Unbound && !is_connect(sqe) {
        return Ok(Plan { work: Work::Control { takes_data: false }, transfer: NO_DATA });
    }
    if params.role != QueueRole::Io || sqe.opcode() == opcode::FABRICS {
        return plan_control(sqe, queue.carrier(), config, capsule);
    }
    let namespace = namespaces
        .get(params.subsystem, sqe.nsid())
        .ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
    plan_io(sqe, queue.carrier(), namespace, config, capsule)
}

/// Whether this is a Disconnect command.
pub(super) fn is_disconnect(sqe: &Sqe) -> bool {
    sqe.opcode() == opcode::FABRICS && fabrics::fctype(sqe) == fabrics::fctype_of::DISCONNECT
}

fn is_connect(sqe: &Sqe) -> bool {
    sqe.opcode() == opcode::FABRICS && fabrics::fctype(sqe) == fabrics::fctype_of::CONNECT
}

/// Admin and fabrics commands: the opcode says which way data goes, the SGL how much.
fn plan_control(
    sqe: &Sqe,
    carrier: Carrier,
    config: &EngineConfig,
    capsule: Option<DmaSpan>,
) -> Result<Plan, Status> {
    let direction = match sqe.opcode() {
        opcode::FABRICS => DataDirection::of(fabrics::fctype(sqe)),
        other => DataDirection::of(other),
    };
    let takes_data = direction == DataDirection::HostToController;
    let transfer = match direction {
        DataDirection::HostToController | DataDirection::ControllerToHost => {
            transfer(&sqe.sgl(), carrier, capsule.filter(|_| takes_data))?
        }
        DataDirection::None | DataDirection::Both => NO_DATA,
    };
    // Connect has the most data of what a host sends.
    let most = if takes_data { MAX_CONTROL_DATA_BYTES } else { config.max_transfer_bytes };
    if transfer.length > most {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    Ok(Plan { work: Work::Control { takes_data }, transfer })
}

#[inline]
fn plan_io(
    sqe: &Sqe,
    carrier: Carrier,
    namespace: &Namespace,
    config: &EngineConfig,
    capsule: Option<DmaSpan>,
) -> Result<Plan, Status> {
    let geometry = &namespace.geometry;
    let rw = nvm::ReadWrite::of(sqe);
    let blocks = rw.block_count();
    let (op, length) = match sqe.opcode() {
        opcode::nvm::READ => (Op::Read, data_bytes(blocks, geometry, config)?),
        opcode::nvm::WRITE => (Op::Write { fua: rw.fua() }, data_bytes(blocks, geometry, config)?),
        opcode::nvm::COMPARE => (Op::Compare, data_bytes(blocks, geometry, config)?),
        opcode::nvm::WRITE_ZEROES => (Op::WriteZeroes { deallocate: rw.deac(), fua: rw.fua() }, 0),
        opcode::nvm::FLUSH => (Op::Flush, 0),
        // Without Attribute - Deallocate its ranges only say how they will be used.
        opcode::nvm::DATASET_MANAGEMENT if !nvm::dsm_deallocates(sqe) => {
            return Err(Status::SUCCESS);
        }
        opcode::nvm::DATASET_MANAGEMENT => {
            let ranges = nvm::dsm_range_count(sqe);
            const _: () = assert!(MAX_DSM_RANGES <= u16::MAX as u32);
            (Op::Deallocate { ranges: ranges as u16 }, ranges * nvm::DSM_RANGE_BYTES)
        }
        _ => return Err(Status::INVALID_OPCODE.with_dnr()),
    };
    if namespace.read_only && writes(op) {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
    }
    let positioned = !matches!(op, Op::Flush | Op::Deallocate { .. });
    let (slba, block_count) = if positioned { (rw.slba(), blocks) } else { (0, 0) };
    check_range(slba, u64::from(block_count), geometry.block_count)?;
    let transfer = match length {
        0 => NO_DATA,
        _ => transfer(&sqe.sgl(), carrier, capsule.filter(|_| op != Op::Read))?,
    };
    // Linux always sends the memory of 256 ranges along, whatever the number of ranges.
    let fits = match op {
        Op::Deallocate { .. } => (length..=MAX_DSM_BYTES).contains(&transfer.length),
        _ => transfer.length == length,
    };
    if !fits {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr());
    }
    let io = Io { tag: 0, op, slba, block_count, buffer: None };
    Ok(Plan { work: Work::Io { nsid: sqe.nsid(), channel: namespace.channel, io }, transfer })
}

/// Data of a Dataset Management command at most.
const MAX_DSM_BYTES: u32 = MAX_DSM_RANGES * nvm::DSM_RANGE_BYTES;

/// Whether it changes what the namespace holds.
#[inline]
fn writes(op: Op) -> bool {
    match op {
        Op::Write { .. } | Op::WriteZeroes { .. } | Op::Deallocate { .. } => true,
        Op::Read | Op::Compare | Op::Flush => false,
    }
}

#[inline]
fn data_bytes(blocks: u32, geometry: &Geometry, config: &EngineConfig) -> Result<u32, Status> {
    let bytes = u64::from(blocks) * u64::from(geometry.block_bytes);
    match u32::try_from(bytes) {
        Ok(bytes) if bytes <= config.max_transfer_bytes => Ok(bytes),
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}

#[inline]
fn check_range(slba: u64, block_count: u64, blocks: u64) -> Result<(), Status> {
    match slba.checked_add(block_count) {
        Some(end) if end <= blocks => Ok(()),
        _ => Err(Status::LBA_OUT_OF_RANGE.with_dnr()),
    }
}

/// The data that the command's only SGL descriptor describes (NVMe Base, "Scatter Gather List").
#[inline]
fn transfer(
    sgl: &SglDescriptor,
    carrier: Carrier,
    capsule: Option<DmaSpan>,
) -> Result<Transfer, Status> {
    match (sgl.descriptor_type(), sgl.subtype()) {
        (sgl::TYPE_KEYED_DATA_BLOCK, sgl::SUBTYPE_ADDRESS | sgl::SUBTYPE_INVALIDATE_KEY)
            if carrier == Carrier::Keyed =>
        {
            let host = HostBuffer::Keyed {
                address: sgl.address(),
                key: sgl.key(),
                invalidate: sgl.subtype() == sgl::SUBTYPE_INVALIDATE_KEY,
            };
            Ok(Transfer { host, length: sgl.keyed_length(), in_capsule: None })
        }
        (sgl::TYPE_DATA_BLOCK, sgl::SUBTYPE_OFFSET) => {
            let (offset, length) = (sgl.address(), sgl.length());
            if length == 0 {
                return Ok(NO_DATA);
            }
            let capsule = capsule.ok_or(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr())?;
            let end = offset.checked_add(u64::from(length));
            let start = u32::try_from(offset)
                .ok()
                .filter(|_| end.is_some_and(|end| end <= u64::from(capsule.len())));
            // Devices read from addresses that are a multiple of four (NVMe Base, PRP entry).
            match start {
                Some(start) if start.is_multiple_of(4) => Ok(Transfer {
                    host: HostBuffer::None,
                    length,
                    in_capsule: Some(capsule.subspan(start, length)),
                }),
                _ => Err(Status::SGL_OFFSET_INVALID.with_dnr()),
            }
        }
        (sgl::TYPE_TRANSPORT_DATA_BLOCK, sgl::SUBTYPE_TRANSPORT) if carrier == Carrier::Stream => {
            Ok(Transfer { host: HostBuffer::Stream, length: sgl.length(), in_capsule: None })
        }
        _ => Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr()),
    }
}
