//! Why the host side cannot go on.

use std::mem::offset_of;
use std::net::SocketAddr;
use std::time::Duration;

use dma::ArenaError;
use nvme_spec::fabrics::{Connect, ConnectData, invalid_parameter};
use nvme_spec::status::Status;
use nvme_tcp::Fault;
use thiserror::Error;

/// Why there is no controller, or no longer one.
#[derive(Debug, Error)]
pub enum Error {
    /// An option that cannot be.
    #[error("{option}: {reason}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No memory for a queue.
    #[error("memory for a queue: {0}")]
    Memory(#[from] ArenaError),
    /// The system refused, or the network did.
    #[error("{addr}: {action}: {source}")]
    Socket {
        /// The controller's address.
        addr: SocketAddr,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The controller has closed the connection.
    #[error("{addr}: the controller closed the connection")]
    Closed {
        /// The controller's address.
        addr: SocketAddr,
    },
    /// Something has taken too long.
    #[error("{addr}: {what} took more than {after:?}")]
    TimedOut {
        /// The controller's address.
        addr: SocketAddr,
        /// What it was.
        what: &'static str,
        /// How long it may take.
        after: Duration,
    },
    /// A command has taken too long.
    #[error("{addr}: a command was not answered in time")]
    CommandTimedOut {
        /// The controller's address.
        addr: SocketAddr,
    },
    /// The controller has broken the rules of NVMe/TCP; it was told so.
    #[error("{addr}: the controller broke the rules of NVMe/TCP: fatal error status {:#04x}, \
        information {:#x}", fault.fes, fault.fei)]
    Broken {
        /// The controller's address.
        addr: SocketAddr,
        /// What it was told.
        fault: Fault,
    },
    /// The controller says that we have broken the rules of NVMe/TCP.
    #[error("{addr}: the controller ended the connection: fatal error status {fes:#04x}")]
    Refused {
        /// The controller's address.
        addr: SocketAddr,
        /// Fatal error status that it gives.
        fes: u16,
    },
    /// A command of bring-up or of the caller's failed.
    #[error("{command} failed: {status}{}", hint(*status, *result))]
    Command {
        /// Which.
        command: &'static str,
        /// The controller's status.
        status: Status,
        /// DW0 and DW1 of the answer.
        result: u64,
    },
    /// The controller is not one that we can use.
    #[error("the controller cannot be used: {reason}")]
    Unusable {
        /// Why.
        reason: &'static str,
    },
    /// CSTS.CFS is set.
    #[error("the controller reports a fatal error (CSTS.CFS)")]
    FatalStatus,
    /// All I/O queues that the controller granted have been opened.
    #[error("the controller granted {granted} I/O queues, and all of them have been opened")]
    NoQueue {
        /// How many.
        granted: u16,
    },
    /// There is no such namespace, or it has a format that is not supported (metadata, blocks that
    /// are not 512 bytes to 64 KiB).
    #[error("the controller has no namespace {nsid} that can be used")]
    NoNamespace {
        /// The one asked for.
        nsid: u32,
    },
    /// The association is lost: its queues end what is on its way, and connect again when it is
    /// there again.
    #[error("the connection to the controller is lost")]
    Lost,
    /// The discovery log changed whenever it was read.
    #[error("the discovery log did not stay the same while it was read")]
    DiscoveryUnsteady,
}

impl Error {
    /// Trying again later makes no sense.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Command { status, .. } => status.dnr(),
            Self::Option { .. } | Self::Unusable { .. } | Self::NoNamespace { .. } => true,
            _ => false,
        }
    }
}

/// Which field of Connect is wrong, as its answer says (NVMe Base 2.1, figure "Connect Response -
/// Dword 0 Value Based on Status Code").
fn hint(status: Status, result: u64) -> &'static str {
    if status.code_and_type() != Status::CONNECT_INVALID_PARAMETERS {
        return "";
    }
    let at = |offset: usize, in_data| invalid_parameter(offset as u16, in_data);
    match result & 0x1_FFFF {
        place if place == at(offset_of!(ConnectData, subnqn), true) => ": the subsystem NQN",
        place if place == at(offset_of!(ConnectData, hostnqn), true) => ": the host NQN",
        place if place == at(offset_of!(ConnectData, hostid), true) => ": the host identifier",
        place if place == at(offset_of!(ConnectData, cntlid), true) => ": the controller",
        place if place == at(offset_of!(Connect, sqsize_z), false) => ": the queue size",
        place if place == at(offset_of!(Connect, qid), false) => ": the queue identifier",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_connect_is_named() {
        let error =
            |status, result| Error::Command { command: "Connect", status, result }.to_string();
        let wrong = error(Status::CONNECT_INVALID_PARAMETERS.with_dnr(), 0x1_0100);
        assert!(wrong.ends_with(": the subsystem NQN"), "{wrong}");
        let wrong = error(Status::CONNECT_INVALID_PARAMETERS, 44);
        assert!(wrong.ends_with(": the queue size"), "{wrong}");
        let other = error(Status::CONNECT_INVALID_HOST, 0x1_0100);
        assert!(other.ends_with(')'), "{other}");
    }
}
