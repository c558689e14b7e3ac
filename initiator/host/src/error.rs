//! Why the host side cannot go on.

use std::fmt;
use std::mem::offset_of;
use std::net::SocketAddr;
use std::time::Duration;

use dma::ArenaError;
use nix::errno::Errno;
use nvme_spec::fabrics::{Connect, ConnectData, invalid_parameter};
use nvme_spec::rdma::reject;
use nvme_spec::status::Status;
use nvme_tcp::Fault;
use thiserror::Error;
use verbs::{ConnectStep, VerbsError, WcStatus};

use crate::rdma_connection::Violation;

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
    /// The RDMA device or the connection manager refused.
    #[error("{addr}: {source}{}", window_hint(source))]
    Rdma {
        /// The controller's address.
        addr: SocketAddr,
        /// The reason.
        source: VerbsError,
    },
    /// The controller is not reached over RDMA.
    #[error("{addr}: {} (status {status})", step_text(*step))]
    Unreachable {
        /// The controller's address.
        addr: SocketAddr,
        /// The step that failed.
        step: ConnectStep,
        /// An errno, negative, or a reason of the connection manager.
        status: i32,
    },
    /// The connection was not accepted.
    #[error("{addr}: the connection was rejected: {rejection}")]
    Rejected {
        /// The controller's address.
        addr: SocketAddr,
        /// By whom, and why.
        rejection: RdmaRejection,
    },
    /// A work request failed, and the connection with it.
    #[error("{addr}: {what}: {status}")]
    Transfer {
        /// The controller's address.
        addr: SocketAddr,
        /// What it was for.
        what: &'static str,
        /// What the device says.
        status: WcStatus,
    },
    /// The RDMA device is being removed.
    #[error("{addr}: the RDMA device of the connection is removed")]
    DeviceRemoved {
        /// The controller's address.
        addr: SocketAddr,
    },
    /// The controller has broken the rules of NVMe/RDMA.
    #[error("{addr}: the controller broke the rules of NVMe/RDMA: {violation}")]
    BrokenRdma {
        /// The controller's address.
        addr: SocketAddr,
        /// How.
        violation: Violation,
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

/// Why a connection was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RdmaRejection {
    /// By the controller, with one of [`nvme_spec::rdma::reject`].
    Controller {
        /// Which.
        status: u16,
    },
    /// By the connection manager, or by a controller that does not say why.
    Manager {
        /// Its reason (InfiniBand Architecture 1.4, 12.6.7.2).
        reason: i32,
    },
}

impl fmt::Display for RdmaRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NO_LISTENER: i32 = 8;
        match *self {
            Self::Manager { reason: NO_LISTENER } => f.write_str("nobody listens there"),
            Self::Manager { reason } => write!(f, "reason {reason} of the connection manager"),
            Self::Controller { status } => {
                let text = match status {
                    reject::INVALID_LENGTH => "invalid length of private data",
                    reject::INVALID_RECFMT => "invalid format of private data",
                    reject::INVALID_QID => "invalid queue identifier",
                    reject::INVALID_HSQSIZE => "invalid size of the send queue",
                    reject::INVALID_HRQSIZE => "invalid size of the receive queue",
                    reject::NO_RESOURCES => "no resources",
                    reject::INVALID_IRD | reject::INVALID_ORD => "invalid number of RDMA READs",
                    reject::INVALID_CNTLID => "invalid controller identifier",
                    _ => "for a reason of its own",
                };
                write!(f, "{text} (status {status:#04x})")
            }
        }
    }
}

fn step_text(step: ConnectStep) -> &'static str {
    match step {
        ConnectStep::Address => "no RDMA device leads to this address",
        ConnectStep::Route => "no way to this address was found",
        ConnectStep::Reach => "nobody answers",
        ConnectStep::Connect => "connecting failed",
    }
}

fn window_hint(error: &VerbsError) -> &'static str {
    match error {
        VerbsError::NoWindow { .. } => {
            "; without it a controller would get a key to all memory, which is not done"
        }
        _ => "",
    }
}

impl Error {
    /// Trying again later makes no sense.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Command { status, .. } => status.dnr(),
            Self::Option { .. } | Self::Unusable { .. } | Self::NoNamespace { .. } => true,
            // Windows may be had later, but not from a device that knows none.
            Self::Rdma { source: VerbsError::NoWindow { errno, .. }, .. } => {
                *errno == Errno::EOPNOTSUPP
            }
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
    fn a_device_without_windows_is_refused_for_good_and_says_why() {
        let error = |errno| Error::Rdma {
            addr: "192.0.2.1:4420".parse().unwrap(),
            source: VerbsError::NoWindow { device: "nic0".to_owned(), errno },
        };
        let text = error(Errno::EOPNOTSUPP).to_string();
        assert!(text.contains("nic0 gives no memory window of type 2"), "{text}");
        assert!(text.contains("a key to all memory"), "{text}");
        assert!(error(Errno::EOPNOTSUPP).is_final() && !error(Errno::ENOMEM).is_final());
    }

    #[test]
    fn rejections_say_who_and_why() {
        let controller = |status| RdmaRejection::Controller { status }.to_string();
        assert_eq!(controller(reject::NO_RESOURCES), "no resources (status 0x06)");
        assert_eq!(controller(0x77), "for a reason of its own (status 0x77)");
        assert_eq!(RdmaRejection::Manager { reason: 8 }.to_string(), "nobody listens there");
    }

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
