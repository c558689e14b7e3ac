//! The discovery log: which subsystems there are, and where.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use dma::Arena;
use nvme_spec::fabrics::{DISCOVERY_NQN, text};
use nvme_spec::identify::trimmed;
use nvme_spec::log_page::{DiscoveryEntry, DiscoveryHeader, lid, subtype, trtype};
use zerocopy::FromBytes;

use crate::admin::{Output, Request, check, commands};
use crate::association::Association;
use crate::controller::connect;
use crate::error::Error;
use crate::limits::{MAX_DISCOVERY_ENTRIES, MAX_DISCOVERY_TRIES};
use crate::options::{HostIdentity, Options, Transport};

/// What is found there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubsystemKind {
    /// A subsystem with namespaces.
    Nvm,
    /// Another discovery subsystem.
    Referral,
    /// The discovery subsystem that was asked.
    Current,
    /// Another kind, by its number.
    Other(u8),
}

/// One entry of a discovery log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// How it is reached; `None`: in a way that we do not know.
    pub transport: Option<Transport>,
    /// Kind of subsystem.
    pub kind: SubsystemKind,
    /// Name of the subsystem.
    pub subnqn: String,
    /// Address, as the subsystem gives it.
    pub traddr: String,
    /// Service: the port.
    pub trsvcid: String,
}

impl Discovered {
    /// Where to connect to, if that is an IP address.
    pub fn addr(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.traddr.parse().ok()?;
        Some(SocketAddr::new(ip, self.trsvcid.parse().ok()?))
    }
}

/// Asks the discovery controller at `addr` which subsystems `host` may connect to.
///
/// # Errors
/// As for [`Controller::connect`](crate::Controller::connect); or the log changes all the time.
pub fn discover(
    transport: Transport,
    addr: SocketAddr,
    host: &HostIdentity,
    arena: &'static Arena,
) -> Result<Vec<Discovered>, Error> {
    let options = Options { host: host.clone(), ..Options::new(transport, addr, DISCOVERY_NQN) };
    options.check()?;
    let options = Arc::new(options);
    let mut association = connect(&options, arena)?;
    let until = Instant::now() + options.connect_timeout;
    for _ in 0..MAX_DISCOVERY_TRIES {
        if let Some(entries) = read(&mut association, &options, until)? {
            return Ok(entries);
        }
    }
    Err(Error::DiscoveryUnsteady)
}

/// Reads the log entry by entry; `None`: it changed meanwhile.
fn read(
    association: &mut Association,
    options: &Options,
    until: Instant,
) -> Result<Option<Vec<Discovered>>, Error> {
    let before = header(association, options)?;
    if before.recfmt.get() != 0 {
        return Err(Error::Unusable { reason: "its discovery log has an unknown format" });
    }
    let count = before.numrec.get().min(MAX_DISCOVERY_ENTRIES);
    let mut entries = Vec::new();
    for index in 0..count {
        if Instant::now() >= until {
            let (addr, after) = (options.addr, options.connect_timeout);
            return Err(Error::TimedOut { addr, what: "reading the discovery log", after });
        }
        let offset = size_of::<DiscoveryHeader>() as u64 + index * ENTRY_BYTES as u64;
        let bytes = log_page(association, options, offset, ENTRY_BYTES)?;
        let Ok((entry, _)) = DiscoveryEntry::read_from_prefix(&bytes) else { return Ok(None) };
        entries.push(discovered(&entry));
    }
    let after = header(association, options)?;
    Ok((after.genctr == before.genctr).then_some(entries))
}

const ENTRY_BYTES: usize = size_of::<DiscoveryEntry>();

fn header(association: &mut Association, options: &Options) -> Result<DiscoveryHeader, Error> {
    let bytes = log_page(association, options, 0, size_of::<DiscoveryHeader>())?;
    match DiscoveryHeader::read_from_prefix(&bytes) {
        Ok((header, _)) => Ok(header),
        Err(_) => Err(Error::Unusable { reason: "its discovery log is too short" }),
    }
}

fn log_page(
    association: &mut Association,
    options: &Options,
    offset: u64,
    bytes: usize,
) -> Result<Vec<u8>, Error> {
    let command = "Get Log Page (Discovery)";
    let sqe = commands::log_page(lid::DISCOVERY, 0, offset, bytes as u64);
    association.admin().request(Request { sqe, bytes: bytes as u32 });
    let limit = options.admin_timeout * 2;
    let (answer, data) = association.run(command, options.addr, limit, |output| match output {
        Output::Answered(answer, data) => Some((answer, data)),
        _ => None,
    })?;
    check(command, answer)?;
    Ok(data)
}

fn discovered(entry: &DiscoveryEntry) -> Discovered {
    // Padded with spaces, by some with nulls.
    let padded = |field: &[u8]| {
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
        trimmed(&field[..end])
    };
    Discovered {
        transport: match entry.trtype {
            trtype::RDMA => Some(Transport::Rdma),
            trtype::TCP => Some(Transport::Tcp),
            _ => None,
        },
        kind: match entry.subtype {
            subtype::NVM => SubsystemKind::Nvm,
            subtype::REFERRAL => SubsystemKind::Referral,
            subtype::CURRENT_DISCOVERY => SubsystemKind::Current,
            other => SubsystemKind::Other(other),
        },
        subnqn: text(&entry.subnqn).unwrap_or_default().to_owned(),
        traddr: padded(&entry.traddr),
        trsvcid: padded(&entry.trsvcid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn entries_are_read_however_they_are_padded() {
        let mut entry = DiscoveryEntry::new_zeroed();
        (entry.trtype, entry.subtype) = (trtype::TCP, subtype::NVM);
        entry.traddr.fill(b' ');
        entry.traddr[..8].copy_from_slice(b"10.0.0.1");
        entry.trsvcid[..4].copy_from_slice(b"4420");
        entry.subnqn[..3].copy_from_slice(b"nqn");
        let found = discovered(&entry);
        assert_eq!((found.transport, found.kind), (Some(Transport::Tcp), SubsystemKind::Nvm));
        assert_eq!((found.subnqn.as_str(), found.addr()), ("nqn", "10.0.0.1:4420".parse().ok()));
        // A name without an end, an address that is none: nothing to connect to.
        entry.subnqn.fill(b'x');
        entry.traddr.fill(0xFF);
        let found = discovered(&entry);
        assert_eq!((found.subnqn.as_str(), found.addr()), ("", None));
    }
}
