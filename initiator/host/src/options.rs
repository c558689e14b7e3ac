//! Whom to connect to, as whom, and how.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use nvme_spec::fabrics::{UUID_NQN_PREFIX, is_valid_nqn};
use nvme_tcp::Digests;
use uuid::Uuid;

use crate::error::Error;
use crate::limits::{MAX_DEPTH, MAX_IO_QUEUES};

/// How a controller is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// NVMe/RDMA.
    Rdma,
    /// NVMe/TCP.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rdma => "rdma",
            Self::Tcp => "tcp",
        })
    }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "rdma" => Ok(Self::Rdma),
            "tcp" => Ok(Self::Tcp),
            _ => Err(format!("`{text}` is neither `rdma` nor `tcp`")),
        }
    }
}

/// Who a host is to the subsystems it connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// Host NQN: what subsystems allow or deny.
    pub nqn: String,
    /// Host identifier: the same on every connection of a host.
    pub id: Uuid,
}

impl HostIdentity {
    /// A host that consists of its UUID.
    pub fn new(id: Uuid) -> Self {
        Self { nqn: format!("{UUID_NQN_PREFIX}{id}"), id }
    }

    /// Who this machine is to nvme-cli and the kernel's initiator, by `hostnqn` and `hostid` in a
    /// folder (`/etc/nvme`). `None` without a host NQN there; without an identifier it follows from
    /// the NQN.
    pub fn of_machine(folder: &Path) -> Option<Self> {
        let line = |name| {
            let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
            Some(text.trim().to_owned()).filter(|line| !line.is_empty())
        };
        let id = line("hostid").and_then(|line| Uuid::parse_str(&line).ok());
        let named = Self::named(line("hostnqn")?);
        Some(Self { id: id.unwrap_or(named.id), ..named })
    }

    /// The host of this name, with an identifier that follows from it: the UUID in it, if it is
    /// made of one.
    pub fn named(nqn: String) -> Self {
        let own = nqn.strip_prefix(UUID_NQN_PREFIX).and_then(|text| Uuid::parse_str(text).ok());
        let id = own.unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_OID, nqn.as_bytes()));
        Self { nqn, id }
    }

    /// A host that nobody has seen before.
    pub fn random() -> Self {
        Self::new(Uuid::new_v4())
    }
}

/// Whether and how a lost association comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// Time from a loss, or an attempt that failed, to the next attempt.
    pub delay: Duration,
    /// Time from a loss to giving up.
    pub give_up_after: Duration,
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// The transport.
    pub transport: Transport,
    /// The controller's address; over RDMA one that belongs to an RDMA device.
    pub addr: SocketAddr,
    /// The subsystem's name.
    pub subnqn: String,
    /// Who we are.
    pub host: HostIdentity,
    /// I/O queues to ask for; the controller may grant fewer.
    pub io_queues: u16,
    /// Commands outstanding on an I/O queue; the controller may take fewer.
    pub depth: u16,
    /// Keep-alive time-out: the controller ends the association when it hears nothing for so long,
    /// and so do we.
    pub keep_alive: Duration,
    /// Digests of headers, without which the connection fails. NVMe/RDMA has none.
    pub header_digest: bool,
    /// Digests of data, without which the connection fails. NVMe/RDMA has none.
    pub data_digest: bool,
    /// How long connecting may take, up to the point where I/O can begin.
    pub connect_timeout: Duration,
    /// How long an admin command may take.
    pub admin_timeout: Duration,
    /// How long an I/O may take. One that takes longer ends its association: that is the only way
    /// to be sure that its memory is not used any more.
    pub io_timeout: Duration,
    /// `None`: a lost association stays lost.
    pub reconnect: Option<Reconnect>,
}

impl Options {
    /// One I/O queue of 128 commands, a keep-alive of 5 s, no digests, a random host identity, and
    /// for ten minutes a new attempt every 2 s once the association is lost.
    pub fn new(transport: Transport, addr: SocketAddr, subnqn: impl Into<String>) -> Self {
        Self {
            transport,
            addr,
            subnqn: subnqn.into(),
            host: HostIdentity::random(),
            io_queues: 1,
            depth: 128,
            keep_alive: Duration::from_secs(5),
            header_digest: false,
            data_digest: false,
            connect_timeout: Duration::from_secs(10),
            admin_timeout: Duration::from_secs(10),
            io_timeout: Duration::from_secs(30),
            reconnect: Some(Reconnect {
                delay: Duration::from_secs(2),
                give_up_after: Duration::from_secs(600),
            }),
        }
    }

    pub(crate) fn digests(&self) -> Digests {
        Digests { header: self.header_digest, data: self.data_digest }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = |option, reason: &str| Err(Error::Option { option, reason: reason.to_owned() });
        for (option, nqn) in [("subsystem NQN", &self.subnqn), ("host NQN", &self.host.nqn)] {
            if !is_valid_nqn(nqn) {
                return wrong(option, &format!("`{nqn}` is not an NQN"));
            }
        }
        if self.host.id.is_nil() {
            return wrong("host identifier", "all zeroes name no host");
        }
        if !(1..=MAX_DEPTH).contains(&self.depth) {
            return wrong("queue depth", &format!("{} is not within 1 to {MAX_DEPTH}", self.depth));
        }
        if !(1..=MAX_IO_QUEUES).contains(&self.io_queues) {
            let reason = format!("{} is not within 1 to {MAX_IO_QUEUES}", self.io_queues);
            return wrong("I/O queues", &reason);
        }
        let digests = self.digests();
        if self.transport == Transport::Rdma && (digests.header || digests.data) {
            return wrong("digests", "NVMe/RDMA has none: the network checks what it carries");
        }
        let kato = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
        if !kato.contains(&self.keep_alive) {
            let reason = format!("{:?} is not within 1 s to a day", self.keep_alive);
            return wrong("keep-alive", &reason);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_by_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let of_machine = || HostIdentity::of_machine(folder.path());
        assert_eq!(of_machine(), None);
        let id = Uuid::from_u128(7);
        std::fs::write(folder.path().join("hostnqn"), format!("{UUID_NQN_PREFIX}{id}\n")).unwrap();
        assert_eq!(of_machine(), Some(HostIdentity::new(id)));
        let other = Uuid::from_u128(8);
        std::fs::write(folder.path().join("hostid"), format!("{other}\n")).unwrap();
        assert_eq!(of_machine(), Some(HostIdentity { id: other, ..HostIdentity::new(id) }));
        std::fs::write(folder.path().join("hostnqn"), "nqn.2026-11.io.forebay:host").unwrap();
        std::fs::write(folder.path().join("hostid"), "none").unwrap();
        let named = of_machine().unwrap();
        assert_eq!(named, HostIdentity::named("nqn.2026-11.io.forebay:host".to_owned()));
        assert!(!named.id.is_nil());
    }

    #[test]
    fn options_that_cannot_be_are_named() {
        let addr = "127.0.0.1:4420".parse().unwrap();
        let good = Options::new(Transport::Tcp, addr, "nqn.2026-11.io.forebay:one");
        good.check().unwrap();
        let nameless = HostIdentity { nqn: String::new(), ..good.host.clone() };
        let wrong = [
            ("subsystem NQN", Options { subnqn: "one".to_owned(), ..good.clone() }),
            ("host NQN", Options { host: nameless, ..good.clone() }),
            ("host identifier", Options { host: HostIdentity::new(Uuid::nil()), ..good.clone() }),
            ("queue depth", Options { depth: 0, ..good.clone() }),
            ("I/O queues", Options { io_queues: MAX_IO_QUEUES + 1, ..good.clone() }),
            ("keep-alive", Options { keep_alive: Duration::ZERO, ..good.clone() }),
            ("digests", Options { transport: Transport::Rdma, data_digest: true, ..good.clone() }),
        ];
        for (name, options) in wrong {
            match options.check() {
                Err(Error::Option { option, .. }) => assert_eq!(option, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn transports_read_as_they_are_shown() {
        for transport in [Transport::Rdma, Transport::Tcp] {
            assert_eq!(transport.to_string().parse(), Ok(transport));
        }
        assert!("RDMA".parse::<Transport>().is_err());
    }
}
