//! Block devices: one trait for whatever holds blocks, and the things that do.
//!
//! A [`Bdev`] is shared by all cores and answers questions; a [`Channel`] is one core's way to it
//! and moves data. The split is what keeps the data path free of locks: everything a core needs to
//! submit and complete an I/O is behind its own channel.
//!
//! An [`Io`] carries a tag that comes back with its [`Completion`]; what happened is an NVMe
//! status, the one language that host, target and SSD share. An I/O is either taken, and then
//! completes exactly once, or refused for the moment.
//!
//! What it does not do: caching, merging, reordering, or I/O of its own accord.
#![forbid(unsafe_code)]

mod errno;
mod fabrics;
mod file;
pub mod limits;
mod null;
mod nvme;
mod open_file;
mod ram;
mod range;
mod registry;
mod scratch;

use std::collections::VecDeque;
use std::time::Instant;

use dma::DmaSpan;
use nvme_spec::status::Status;
use thiserror::Error;
use uuid::Uuid;

pub use self::nvme::NvmeBdev;
pub use fabrics::FabricsBdev;
pub use file::FileBdev;
pub use null::NullBdev;
pub use ram::RamBdev;
pub use registry::Registry;

/// One I/O for a [`Channel`].
#[derive(Clone, Copy, Debug)]
pub struct Io {
    /// Comes back in the completion. Unique among the I/Os a channel has in flight.
    pub tag: u32,
    /// What to do.
    pub op: Op,
    /// First logical block; unused for flush and deallocate.
    pub slba: u64,
    /// Number of logical blocks; unused for flush and deallocate.
    pub block_count: u32,
    /// Where data comes from or goes to; at least `block_count` blocks long. `None` for flush and
    /// write zeroes.
    pub buffer: Option<DmaSpan>,
}

/// What an [`Io`] does, in the words of the NVM command set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Blocks into the buffer.
    Read,
    /// Buffer into blocks. With `fua` the blocks are on stable media when it completes.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Everything completed before, on any channel, is on stable media when it completes.
    Flush,
    /// Blocks equal the buffer, or Compare Failure.
    Compare,
    /// Blocks read as zeroes afterwards; `deallocate` allows their space to be freed.
    WriteZeroes {
        /// The host set DEAC.
        deallocate: bool,
        /// Force unit access.
        fua: bool,
    },
    /// Frees space. The buffer holds this many range definitions of 16 bytes (NVM Command Set,
    /// Dataset Management), already checked against the namespace. They read as zeroes afterwards
    /// where [`Geometry::deallocate_reads_zeroes`] says so.
    Deallocate {
        /// Number of range definitions.
        ranges: u16,
    },
}

/// The end of an [`Io`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The tag it was submitted with.
    pub tag: u32,
    /// For the host.
    pub status: Status,
}

/// What a block device is made of; fixed while it is open, but for its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes in a logical block: 512 or 4096.
    pub block_bytes: u32,
    /// Number of logical blocks.
    pub block_count: u64,
    /// Completed writes may be lost at power loss until a flush.
    pub volatile_write_cache: bool,
    /// Deallocated blocks read as zeroes.
    pub deallocate_reads_zeroes: bool,
    /// Blocks that are written all or nothing at power loss; at least 1.
    pub atomic_write_blocks: u32,
    /// Preferred granularity and alignment of writes, in blocks; at least 1.
    pub preferred_write_blocks: u32,
}

/// What a device is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Serves I/O.
    Live,
    /// Ends I/O with a retryable status while it recovers.
    Recovering,
    /// Ends every I/O with an error, for good.
    Failed,
}

/// A block device, shared by all cores.
pub trait Bdev: Send + Sync {
    /// The name users gave it or know it by; unique in a daemon.
    fn name(&self) -> &str;

    /// The kind of backend: `nvme`, `file`, `ram`, `null`, `fabrics`.
    fn kind(&self) -> &'static str;

    /// Size and limits.
    fn geometry(&self) -> Geometry;

    /// Stable across restarts for a device that keeps its data, made anew for one that does not.
    fn uuid(&self) -> Uuid;

    /// What was written to it outlives the daemon.
    fn keeps_data(&self) -> bool {
        true
    }

    /// What it is at the moment.
    fn health(&self) -> Health;

    /// This core's way to the device. `core` counts the daemon's reactors from 0.
    ///
    /// # Errors
    /// The device has no queue left for the core, or is gone.
    fn open_channel(&self, core: usize) -> Result<Box<dyn Channel>, BdevError>;
}

/// One core's way to a [`Bdev`].
pub trait Channel: Send {
    /// Takes an I/O, which then completes exactly once through [`Channel::poll`], and only when the
    /// device does not touch its buffer any more: with an error, too, the memory may be used again.
    ///
    /// # Errors
    /// [`Busy`]: the queue is full; nothing was taken, and after the next completion there is room.
    fn submit(&mut self, io: Io) -> Result<(), Busy>;

    /// Tells the device of what was submitted since the last turn, in one go, and appends what has
    /// completed to `done`, at most as much as it has room for. `now` serves time-outs.
    fn poll(&mut self, now: Instant, done: &mut Completions);
}

/// The queue is full for the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// A fixed-size list that channels complete into.
#[derive(Debug)]
pub struct Completions {
    list: VecDeque<Completion>,
    capacity: usize,
}

impl Completions {
    /// A list with room for `capacity` completions, at least one.
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self { list: VecDeque::with_capacity(capacity), capacity }
    }

    /// How many more fit.
    #[inline]
    pub fn room(&self) -> usize {
        self.capacity - self.list.len()
    }

    /// Appends one. The caller has checked [`Completions::room`]; without room it asserts.
    #[inline]
    pub fn push(&mut self, completion: Completion) {
        assert!(self.room() > 0, "completions beyond their room");
        self.list.push_back(completion);
    }

    /// Takes the oldest out.
    #[inline]
    pub fn pop(&mut self) -> Option<Completion> {
        self.list.pop_front()
    }
}

/// Why a block device cannot be had.
#[derive(Debug, Error)]
pub enum BdevError {
    /// Somebody has it.
    #[error("{name} is in use by {holder}")]
    Claimed {
        /// The device.
        name: String,
        /// Who holds the claim.
        holder: String,
    },
    /// No device of that name.
    #[error("no block device is named {name}; `forebay bdev list` shows those there are")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The name is taken.
    #[error("a block device named {name} exists already")]
    Exists {
        /// The name asked for.
        name: String,
    },
    /// A size, name or path that cannot be.
    #[error("{name}: {reason}")]
    Invalid {
        /// The device.
        name: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The system refused.
    #[error("{name}: {action}: {source}")]
    Io {
        /// The device.
        name: String,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The machine has too little memory.
    #[error("{name}: {wanted} bytes of memory wanted, {available} are available")]
    NoMemory {
        /// The device.
        name: String,
        /// Bytes wanted.
        wanted: u64,
        /// Bytes that the kernel says could be taken.
        available: u64,
    },
    /// Every queue of the device is taken.
    #[error("{name} has no I/O queue left for core {core}")]
    NoQueue {
        /// The device.
        name: String,
        /// The reactor that asked.
        core: usize,
    },
}
