//! A connection with what moves its bytes: a socket, or a queue pair. Nobody above cares which.

mod rdma;
mod registration;
mod tcp;

use std::time::{Duration, Instant};

use dma::Arena;

use crate::error::Error;
use crate::link::rdma::RdmaLink;
use crate::link::tcp::TcpLink;
use crate::options::{Options, Transport};
use crate::slots::{Command, Completed, Left};

/// What happened on a link.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// Commands may be submitted.
    Opened,
    /// A command has come to its end.
    Completed(Completed),
}

/// The queue that a link is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    /// 0: the admin queue.
    pub(crate) qid: u16,
    /// The controller that an I/O queue belongs to; 0 for an admin queue, whose Connect gives it.
    pub(crate) cntlid: u16,
    /// Entries of the submission queue, of which one always stays free.
    pub(crate) entries: u16,
    /// Commands outstanding at a time.
    pub(crate) depth: u16,
    /// Most data in the capsule of a command, as far as the transport does not say.
    pub(crate) in_capsule_bytes: u32,
}

/// One connection, which is one queue.
#[derive(Debug)]
pub(crate) enum Link {
    Tcp(Box<TcpLink>),
    Rdma(Box<RdmaLink>),
}

impl Link {
    /// Begins to connect. The connection is usable when it has told so by [`Event::Opened`], within
    /// [`Options::connect_timeout`].
    pub(crate) fn open(
        now: Instant,
        options: &Options,
        queue: Queue,
        arena: &'static Arena,
    ) -> Result<Self, Error> {
        Ok(match options.transport {
            Transport::Tcp => Self::Tcp(Box::new(TcpLink::open(now, options, queue)?)),
            Transport::Rdma => Self::Rdma(Box::new(RdmaLink::open(now, options, queue, arena)?)),
        })
    }

    /// Sends what waits and receives what is there. Events are asked for after each turn, until
    /// there are none.
    ///
    /// # Errors
    /// The connection is over, or a command has taken too long, which ends it as well.
    #[inline]
    pub(crate) fn turn(&mut self, now: Instant) -> Result<(), Error> {
        match self {
            Self::Tcp(link) => link.turn(now),
            Self::Rdma(link) => link.turn(now),
        }
    }

    /// What happened, until there is nothing more.
    ///
    /// # Errors
    /// The connection is over because one side has broken the rules.
    #[inline]
    pub(crate) fn poll_event(&mut self) -> Result<Option<Event>, Error> {
        match self {
            Self::Tcp(link) => link.poll_event(),
            Self::Rdma(link) => Ok(link.poll_event()),
        }
    }

    /// Waits until a turn has something to do, or the time is over.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<(), Error> {
        match self {
            Self::Tcp(link) => link.wait(timeout),
            Self::Rdma(link) => link.wait(timeout),
        }
    }

    /// When a command has taken too long, at the earliest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::Tcp(link) => link.next_deadline(),
            Self::Rdma(link) => link.next_deadline(),
        }
    }

    /// Sends a command with the next turn; `false`: it was not taken, because the connection is not
    /// open or has no room for it.
    #[inline]
    pub(crate) fn submit(&mut self, command: Command) -> bool {
        match self {
            Self::Tcp(link) => link.submit(command),
            Self::Rdma(link) => link.submit(command),
        }
    }

    /// How many more commands fit; none while the connection is not open.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        match self {
            Self::Tcp(link) => link.room(),
            Self::Rdma(link) => link.room(),
        }
    }

    /// How many commands are on their way.
    #[inline]
    pub(crate) fn outstanding(&self) -> usize {
        match self {
            Self::Tcp(link) => link.outstanding(),
            Self::Rdma(link) => link.outstanding(),
        }
    }

    /// Calls that moved or tried to move bytes.
    pub(crate) fn calls(&self) -> u64 {
        match self {
            Self::Tcp(link) => link.calls(),
            Self::Rdma(link) => link.calls(),
        }
    }

    /// Closes the connection and tells what was on its way; after that nothing of it touches memory
    /// any more.
    pub(crate) fn close(self) -> Vec<Left> {
        match self {
            Self::Tcp(link) => link.close(),
            Self::Rdma(link) => link.close(),
        }
    }
}
