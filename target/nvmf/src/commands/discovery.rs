//! The discovery log page (NVMe Base 2.1, section 5.1.12.3.1): what a host may connect to.

use std::net::{IpAddr, SocketAddr};

use nvme_spec::fabrics::CNTLID_DYNAMIC;
use nvme_spec::identify::pad;
use nvme_spec::log_page::{
    DiscoveryEntry, DiscoveryHeader, RDMA_CMS_RDMA_CM, RDMA_QPTYPE_RC,
    TREQ_SECURE_CHANNEL_NOT_REQUIRED, TREQ_SQ_FLOW_CONTROL_OPTIONAL, adrfam, subtype, trtype,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::controller::Controller;
use crate::subsystem::Subsystem;
use crate::target::Target;
use crate::verbs::{Listener, Transport};

/// TSAS of RDMA: no provider type is given, for the core does not know the device.
const RDMA_PRTYPE_NOT_GIVEN: u8 = 1;
/// TSAS of TCP: no security.
const TCP_SECTYPE_NONE: u8 = 0;

impl Target {
    /// The log as this controller's host sees it: the same bytes as long as the generation is the
    /// same, so that a host can read it in parts.
    pub(crate) fn discovery_log(&self, controller: &Controller) -> Vec<u8> {
        let mut entries = Vec::new();
        let mut count = 0u64;
        for subsystem in self.subsystems().filter(|one| one.allows(&controller.host_nqn)) {
            for &(port, listener) in &self.listeners {
                let Some(addr) = reachable(listener.addr, controller.local) else { continue };
                let listener = Listener { addr, ..listener };
                let entry = self.discovery_entry(subsystem, port, listener);
                entries.extend_from_slice(entry.as_bytes());
                count += 1;
            }
        }
        let mut header = DiscoveryHeader::new_zeroed();
        header.genctr = self.generation.into();
        header.numrec = count.into();
        let mut log = header.as_bytes().to_vec();
        log.append(&mut entries);
        log
    }

    fn discovery_entry(
        &self,
        subsystem: &Subsystem,
        port: u16,
        listener: Listener,
    ) -> DiscoveryEntry {
        let mut entry = DiscoveryEntry::new_zeroed();
        match listener.transport {
            Transport::Rdma => {
                entry.trtype = trtype::RDMA;
                entry.tsas[..3].copy_from_slice(&[
                    RDMA_QPTYPE_RC,
                    RDMA_PRTYPE_NOT_GIVEN,
                    RDMA_CMS_RDMA_CM,
                ]);
            }
            Transport::Tcp => {
                entry.trtype = trtype::TCP;
                entry.tsas[0] = TCP_SECTYPE_NONE;
            }
        }
        entry.adrfam = if listener.addr.is_ipv4() { adrfam::IPV4 } else { adrfam::IPV6 };
        entry.subtype = subtype::NVM;
        entry.treq = TREQ_SECURE_CHANNEL_NOT_REQUIRED | TREQ_SQ_FLOW_CONTROL_OPTIONAL;
        entry.portid = port.into();
        entry.cntlid = CNTLID_DYNAMIC.into();
        entry.asqsz = self.config.max_queue_entries.into();
        pad(&mut entry.trsvcid, &listener.addr.port().to_string());
        pad(&mut entry.traddr, &listener.addr.ip().to_string());
        for (to, from) in entry.subnqn.iter_mut().zip(subsystem.nqn().bytes()) {
            *to = from;
        }
        entry
    }
}

/// The address that this host can use: its own way to us where the listener takes any. `None` where
/// the listener takes any address of another family than the host's.
fn reachable(listener: SocketAddr, local: SocketAddr) -> Option<SocketAddr> {
    if !listener.ip().is_unspecified() {
        return Some(listener);
    }
    let ip = local.ip().to_canonical();
    let is_served = match listener.ip() {
        IpAddr::V4(_) => ip.is_ipv4(),
        // An IPv6 listener takes both families.
        IpAddr::V6(_) => true,
    };
    is_served.then_some(SocketAddr::new(ip, listener.port()))
}
