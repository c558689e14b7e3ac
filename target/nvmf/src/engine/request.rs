//! One command from its capsule to its response.

use bdev::{Io, Op};
use dma::{DmaBuffer, DmaSpan};
use nvme_spec::command::{Cqe, Sqe};
use zerocopy::FromZeros;

use super::lines;

/// Names a request in its core's slab. It rides in the verbs work request id and in the tag of the
/// block device, so that whatever completes finds its request by one index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(pub u32);

/// Where the host keeps the data of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostBuffer {
    /// Nowhere, or in the capsule itself.
    None,
    /// Host memory that the carrier reads and writes by a key (keyed SGL data block).
    Keyed {
        /// Address in the host's memory.
        address: u64,
        /// The host's key for it.
        key: u32,
        /// The host wants the key invalidated by the response.
        invalidate: bool,
    },
    /// The carrier's own stream (transport SGL data block).
    Stream,
}

/// What a request is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// An I/O command, checked and translated; tag and buffer are filled in when it is submitted.
    Io {
        /// The namespace, which may have changed when the request goes on after waiting.
        nsid: u32,
        /// Its channel on this core when the command was parsed.
        channel: u32,
        /// The I/O.
        io: Io,
    },
    /// Whatever the control half answers.
    Control {
        /// The host sends data with the command.
        takes_data: bool,
    },
}

impl Work {
    /// The line where it waits.
    #[inline]
    pub(super) fn line(self) -> usize {
        match self {
            Work::Io { channel, .. } => channel as usize + 1,
            Work::Control { .. } => lines::CONTROL,
        }
    }

    /// Data goes from the host to us.
    #[inline]
    pub(super) fn takes_host_data(self) -> bool {
        match self {
            Work::Io { io, .. } => {
                matches!(io.op, Op::Write { .. } | Op::Compare | Op::Deallocate { .. })
            }
            Work::Control { takes_data } => takes_data,
        }
    }

    /// Data goes from us to the host by an I/O command.
    #[inline]
    pub(super) fn reads(self) -> bool {
        matches!(self, Work::Io { io: Io { op: Op::Read, .. }, .. })
    }
}

/// Where a request is in its life; see the picture in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In no queue.
    Free,
    /// Waits for a capsule.
    Armed,
    /// A capsule arrived and is being looked at: never seen between two calls.
    Arrived,
    /// Waits until its queue may hold more memory.
    Parked,
    /// Waits for a buffer.
    WaitBuffer,
    /// The carrier fetches the host's data.
    Fetch,
    /// Waits for room in the channel.
    WaitChannel,
    /// The block device has it.
    Execute,
    /// The control half has it.
    Control,
    /// The carrier sends the response.
    Respond,
}

/// The memory a request holds.
#[derive(Debug)]
pub(super) enum Buffer {
    /// None.
    None,
    /// The in-capsule data, in the carrier's memory of this slot.
    Capsule(DmaSpan),
    /// From the core's pool.
    Pool(DmaBuffer),
}

/// A command from its capsule to its response.
#[derive(Debug)]
pub struct Request {
    pub(super) sqe: Sqe,
    pub(super) cqe: Cqe,
    pub(super) state: State,
    pub(super) queue: u32,
    pub(super) work: Work,
    pub(super) host: HostBuffer,
    pub(super) buffer: Buffer,
    /// Bytes of data of the command.
    pub(super) length: u32,
    /// Bytes of data that precede the response.
    pub(super) send_bytes: u32,
    /// Neighbours in the line where it waits.
    pub(super) prev: Option<RequestId>,
    pub(super) next: Option<RequestId>,
}

impl Request {
    pub(super) fn new() -> Self {
        Self {
            sqe: Sqe::new_zeroed(),
            cqe: Cqe::new_zeroed(),
            state: State::Free,
            queue: 0,
            work: Work::Control { takes_data: false },
            host: HostBuffer::None,
            buffer: Buffer::None,
            length: 0,
            send_bytes: 0,
            prev: None,
            next: None,
        }
    }

    /// The command.
    #[inline]
    pub fn sqe(&self) -> &Sqe {
        &self.sqe
    }

    /// The response; meaningful from [`Step::Respond`](super::Step::Respond) on.
    #[inline]
    pub fn cqe(&self) -> &Cqe {
        &self.cqe
    }

    /// Where the host keeps the data.
    #[inline]
    pub fn host(&self) -> HostBuffer {
        self.host
    }

    /// The data in our memory, exactly as long as the command's transfer.
    #[inline]
    pub fn data(&self) -> Option<DmaSpan> {
        let span = match &self.buffer {
            Buffer::None => return None,
            Buffer::Capsule(span) => *span,
            Buffer::Pool(buffer) => buffer.span(),
        };
        Some(span.subspan(0, self.length))
    }

    /// What the carrier sends before the response.
    #[inline]
    pub fn data_out(&self) -> Option<DmaSpan> {
        match self.send_bytes {
            0 => None,
            bytes => Some(self.data()?.subspan(0, bytes)),
        }
    }

    pub(super) fn take_buffer(&mut self) -> Buffer {
        std::mem::replace(&mut self.buffer, Buffer::None)
    }
}
