//! What controllers tell about themselves and their namespaces.

use std::time::Duration;

use nvme_spec::identify::{
    CTRATT_TBKAS, DLFEAT_READS_ZEROES, IdentifyController, IdentifyNamespace,
    NSATTR_WRITE_PROTECTED, ONCS_COMPARE, ONCS_DATASET_MANAGEMENT, ONCS_WRITE_ZEROES, SGLS_KEYED,
    SGLS_OFFSET, VWC_PRESENT, trimmed,
};

use crate::error::Error;
use crate::limits::{MAX_SPANS, MAX_TRANSFER_BYTES};
use crate::options::Transport;

/// A controller, as it is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Controller identifier.
    pub cntlid: u16,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// I/O queues that it granted.
    pub io_queues: u16,
    /// Commands outstanding on an I/O queue.
    pub depth: u16,
    /// Most data of one command, bytes.
    pub max_transfer_bytes: u32,
    /// Most runs of memory that the data of one command lies in.
    pub max_spans: usize,
    /// Completed writes may be lost at power loss until a flush.
    pub volatile_write_cache: bool,
    /// It knows Compare.
    pub compare: bool,
    /// It knows Write Zeroes.
    pub write_zeroes: bool,
    /// It knows Dataset Management, and so deallocate.
    pub deallocate: bool,
}

/// A namespace that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Namespace identifier.
    pub nsid: u32,
    /// Bytes in a logical block, a power of two from 512 on.
    pub block_bytes: u32,
    /// Number of logical blocks.
    pub block_count: u64,
    /// It cannot be written to.
    pub read_only: bool,
    /// Deallocated blocks read as zeroes.
    pub deallocate_reads_zeroes: bool,
    /// Blocks that are written all or nothing at power loss, at least 1.
    pub atomic_write_blocks: u32,
    /// Globally unique identifier; zeroes: none.
    pub nguid: [u8; 16],
}

/// What the core keeps of Identify Controller besides.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traits {
    pub(crate) in_capsule_bytes: u32,
    pub(crate) max_commands: u16,
    pub(crate) keeps_alive: bool,
    pub(crate) events: u32,
    pub(crate) shutdown_time: Duration,
    /// How long after a loss the controller may still execute commands, but for the keep-alives.
    pub(crate) quiesce: Duration,
    /// In how many keep-alive time-outs it notices for certain that it lost its host.
    pub(crate) notices_after: u32,
    pub(crate) atomic_blocks: u32,
}

/// Reads Identify Controller.
///
/// # Errors
/// A controller that has another identifier than Connect gave, or asks for what we do not do.
pub(crate) fn controller(
    id: &IdentifyController,
    transport: Transport,
    cntlid: u16,
    min_page_bytes: u64,
) -> Result<(ControllerInfo, Traits), Error> {
    let unusable = |reason| Err(Error::Unusable { reason });
    if id.cntlid.get() != cntlid {
        return unusable("its identifier is not the one that Connect gave");
    }
    if id.sgls.get() & 3 == 0 {
        return unusable("it does not take SGLs");
    }
    if transport == Transport::Rdma && id.sgls.get() & SGLS_KEYED == 0 {
        return unusable("it does not take keyed SGLs");
    }
    if id.icdoff.get() != 0 {
        return unusable("it wants data at an offset in capsules (ICDOFF)");
    }
    // In units of 16 bytes; the command takes four of them. A discovery controller has none.
    let capsule = u64::from(id.ioccsz.get()) * 16;
    let in_capsule = transport == Transport::Tcp || id.sgls.get() & SGLS_OFFSET != 0;
    let in_capsule_bytes = match in_capsule {
        true => capsule.saturating_sub(64).min(u64::from(MAX_TRANSFER_BYTES)) as u32,
        false => 0,
    };
    let transfer = match id.mdts {
        0 => MAX_TRANSFER_BYTES,
        mdts => min_page_bytes
            .checked_shl(u32::from(mdts))
            .filter(|bytes| *bytes > 0)
            .map_or(MAX_TRANSFER_BYTES, |bytes| bytes.min(u64::from(MAX_TRANSFER_BYTES)) as u32),
    };
    let oncs = id.oncs.get();
    let info = ControllerInfo {
        cntlid,
        serial: trimmed(&id.sn),
        model: trimmed(&id.mn),
        firmware: trimmed(&id.fr),
        io_queues: 0,
        depth: 0,
        max_transfer_bytes: transfer,
        max_spans: match transport {
            Transport::Tcp => MAX_SPANS,
            // A key is for one run.
            Transport::Rdma => 1,
        },
        volatile_write_cache: id.vwc & VWC_PRESENT != 0,
        compare: oncs & ONCS_COMPARE != 0,
        write_zeroes: oncs & ONCS_WRITE_ZEROES != 0,
        deallocate: oncs & ONCS_DATASET_MANAGEMENT != 0,
    };
    let traffic_counts = id.ctratt.get() & CTRATT_TBKAS != 0;
    let traits = Traits {
        in_capsule_bytes,
        max_commands: id.maxcmd.get(),
        keeps_alive: id.kas.get() != 0,
        events: id.oaes.get(),
        shutdown_time: Duration::from_micros(u64::from(id.rtd3e.get())),
        quiesce: Duration::from_millis(u64::from(id.cqt.get())),
        notices_after: if traffic_counts { 3 } else { 2 },
        atomic_blocks: u32::from(id.awupf_z.get()) + 1,
    };
    Ok((info, traits))
}

/// Reads Identify Namespace; `None`: a namespace that is not there, or that cannot be used.
pub(crate) fn namespace(nsid: u32, id: &IdentifyNamespace, traits: &Traits) -> Option<Namespace> {
    let format = id.format();
    if format.ms.get() != 0 || !(9..=16).contains(&format.lbads) || id.nsze.get() == 0 {
        return None;
    }
    let atomic = match id.nsfeat & nvme_spec::identify::NSFEAT_ATOMICS {
        0 => traits.atomic_blocks,
        _ => u32::from(id.nawupf.get()) + 1,
    };
    Some(Namespace {
        nsid,
        block_bytes: 1 << format.lbads,
        block_count: id.nsze.get(),
        read_only: id.nsattr & NSATTR_WRITE_PROTECTED != 0,
        deallocate_reads_zeroes: id.dlfeat & 7 == DLFEAT_READS_ZEROES,
        atomic_write_blocks: atomic,
        nguid: id.nguid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn what_a_transport_needs_is_looked_for() {
        let mut id = IdentifyController::new_zeroed();
        (id.cntlid, id.ioccsz) = (7.into(), (4 + 4096 / 16).into());
        let of = |id: &IdentifyController, transport| controller(id, transport, 7, 4096);
        id.sgls = 1.into();
        let tcp = of(&id, Transport::Tcp).unwrap();
        assert_eq!((tcp.1.in_capsule_bytes, tcp.0.max_spans), (4096, MAX_SPANS));
        let unkeyed = of(&id, Transport::Rdma).unwrap_err();
        assert!(unkeyed.to_string().contains("keyed"), "{unkeyed}");
        // Without offsets there is no data in capsules.
        id.sgls = (1 | SGLS_KEYED).into();
        assert_eq!(of(&id, Transport::Rdma).unwrap().1.in_capsule_bytes, 0);
        id.sgls = (1 | SGLS_KEYED | SGLS_OFFSET).into();
        let rdma = of(&id, Transport::Rdma).unwrap();
        assert_eq!((rdma.1.in_capsule_bytes, rdma.0.max_spans), (4096, 1));
    }
}
