//! What the control half asks of its caller, and the names both use.

use nvme_spec::status::Status;

/// Names a fabrics queue, which is one connection. The caller chooses it and never uses it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueKey(pub u64);

/// Names a command that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandKey {
    /// The queue it came on.
    pub queue: QueueKey,
    /// The caller's name for it on that queue.
    pub request: u32,
}

/// Names a subsystem by its place in the tables of the data path, below
/// [`crate::limits::MAX_SUBSYSTEMS`]. A place is used again only when every queue of the subsystem
/// that had it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubsystemId(pub u32);

impl SubsystemId {
    /// Of the discovery subsystem, which has no place in the tables.
    pub const DISCOVERY: Self = Self(u32::MAX);
}

/// What a queue was connected as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// The admin queue of a controller with namespaces.
    Admin,
    /// The admin queue of a discovery controller.
    Discovery,
    /// An I/O queue.
    Io {
        /// Its queue identifier, from 1.
        qid: u16,
    },
}

/// Something to do, from [`crate::Target::poll_output`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A Connect was accepted: the queue is this from now on. Always before the response to it.
    BindQueue {
        /// The queue.
        queue: QueueKey,
        /// What it is.
        kind: QueueKind,
        /// Its subsystem, [`SubsystemId::DISCOVERY`] on a discovery controller.
        subsystem: SubsystemId,
        /// Its controller.
        cntlid: u16,
        /// Entries of the submission queue, 2 or more.
        sq_entries: u16,
        /// The host wants SQHD.
        flow_control: bool,
    },
    /// The answer to a command. Every command gets exactly one, in its own time; when its queue has
    /// closed meanwhile, the answer only ends the request.
    Respond {
        /// Which command.
        command: CommandKey,
        /// DW0 and DW1 of the completion.
        result: u64,
        /// Status.
        status: Status,
        /// Data for the host, never more than its SGL has room for.
        data: Vec<u8>,
    },
    /// End this I/O command early if that is still possible, then call
    /// [`crate::Target::handle_aborted`] with `command`, the Abort command itself.
    Abort {
        /// The queue of the command to end.
        queue: QueueKey,
        /// Its identifier there.
        cid: u16,
        /// The Abort command.
        command: CommandKey,
    },
    /// Destroy the transport, let the I/O of the queue end, then call
    /// [`crate::Target::handle_queue_closed`]. Once for a queue at most.
    CloseQueue {
        /// The queue.
        queue: QueueKey,
    },
}

/// How a command went that did not fail.
#[derive(Debug)]
pub(crate) enum Answer {
    Now { result: u64, data: Vec<u8> },
    Later,
}

impl Answer {
    pub(crate) fn done() -> Outcome {
        Self::result(0)
    }

    pub(crate) fn result(result: u64) -> Outcome {
        Ok(Self::Now { result, data: Vec::new() })
    }

    pub(crate) fn data(data: Vec<u8>) -> Outcome {
        Ok(Self::Now { result: 0, data })
    }
}

/// Why a command failed, for the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: Status,
    pub(crate) result: u64,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { status, result: 0 }
    }
}

pub(crate) type Outcome = Result<Answer, Refusal>;
