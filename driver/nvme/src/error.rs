//! Why a controller or a namespace is not usable.

use std::time::Duration;

use dma::ArenaError;
use nvme_spec::status::Status;
use thiserror::Error;

use crate::seam::SeamError;

/// Why a controller did not come up, or was given up.
#[derive(Debug, Error)]
pub enum NvmeError {
    /// The arena is too small for the queues.
    #[error("no DMA memory for the queues: {0}; give the arena more hugepages")]
    Memory(#[from] ArenaError),
    /// Configuration space or reset.
    #[error(transparent)]
    Seam(#[from] SeamError),
    /// The registers describe nothing that can be driven.
    #[error("the controller's registers make no sense to this driver: {what} is {value:#x}")]
    Registers {
        /// Which field.
        what: &'static str,
        /// What it reads.
        value: u64,
    },
    /// CSTS.RDY did not follow CC.EN.
    #[error("the controller was not {wanted} after {after:?}")]
    NotReady {
        /// `ready` or `disabled`.
        wanted: &'static str,
        /// How long it was given.
        after: Duration,
    },
    /// An admin command was not answered.
    #[error("{command} was not answered within {after:?}")]
    AdminTimeout {
        /// The command.
        command: &'static str,
        /// How long it was given.
        after: Duration,
    },
    /// An admin command that cannot be done without failed.
    #[error("{command} ended with: {status}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The controller's answer.
        status: Status,
    },
    /// An I/O command was not answered, even to an abort.
    #[error("a command on I/O queue {qid} was neither completed nor aborted in time")]
    CommandTimeout {
        /// The queue.
        qid: u16,
    },
    /// CSTS.CFS is set.
    #[error("the controller reports a fatal error (CSTS.CFS)")]
    Fatal,
    /// The controller left the ready state by itself.
    #[error("the controller stopped being ready by itself")]
    Stopped,
    /// [`NvmeDevice::reset`](crate::NvmeDevice::reset) was called.
    #[error("a reset was asked for")]
    ResetRequested,
    /// The registers read all ones, or zeroes.
    #[error("the device is gone: its registers read {value:#x}")]
    Gone {
        /// What CSTS reads.
        value: u32,
    },
    /// The kernel wants it back.
    #[error("the kernel asked for the device: it is to be unplugged or unbound")]
    RemovalRequested,
    /// A reset showed another controller than before.
    #[error("after the reset the controller is another one")]
    Changed,
    /// Resets do not help.
    #[error("given up after {resets} resets within a minute, the last because: {last}")]
    TooManyResets {
        /// How many.
        resets: usize,
        /// What led to the last.
        last: String,
    },
    /// Recovery took too long.
    #[error("not recovered within {limit:?} from: {last}")]
    RecoveryTimeout {
        /// The limit.
        limit: Duration,
        /// What led to it.
        last: String,
    },
    /// Ended on purpose.
    #[error("the device was closed")]
    Closed,
}

/// Why a namespace is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NamespaceFault {
    /// Block size other than 512 and 4096 bytes.
    #[error("blocks of 2^{lbads} bytes; only 512 and 4096 bytes are supported: nvme format -l")]
    BlockSize {
        /// LBADS.
        lbads: u8,
    },
    /// Blocks carry metadata.
    #[error("{bytes} bytes of metadata per block; format it without: nvme format -l")]
    Metadata {
        /// Bytes per block.
        bytes: u16,
    },
    /// No blocks, or more than there are bytes to count.
    #[error("an impossible size of {blocks} blocks")]
    Size {
        /// NSZE.
        blocks: u64,
    },
    /// Not of the NVM command set.
    #[error("its commands are those of command set {csi}; only the NVM command set (0) is driven")]
    CommandSet {
        /// CSI.
        csi: u8,
    },
    /// After a reset it was not what it had been.
    #[error("after a reset of the controller it is not the namespace that it was")]
    Changed,
    /// Identify Namespace failed.
    #[error("Identify Namespace ended with: {0}")]
    Refused(Status),
}
