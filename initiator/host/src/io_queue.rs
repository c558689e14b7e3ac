//! An I/O queue: commands in, completions out, on one core.
//!
//! ```text
//!     ┌──────── Connecting: connection, Connect <─────────┐
//!     v                                                   │ (the association is up again)
//!   Ready ────(connection lost, command timed out)────> Down
//! ```
//!
//! What was on its way when the connection was lost (NVMe Base 2.1, section 9.6):
//!
//! - Read and Compare have no effect, and may be executed at any time: they are kept and submitted
//!   again when there is a new association. One that has timed out is not.
//! - Write, Write Zeroes and Dataset Management may have been executed, or may still be: the old
//!   controller works on them until it has noticed the loss. They are never submitted again. Their
//!   completions ([`Status::HOST_PATHING_ERROR`]) wait until the old controller has stopped for
//!   certain, so that whoever then writes to the same blocks is not overtaken by its own past.
//! - Everything else ends at once with the same status. Flush is among it: the controller that
//!   comes back may have lost what the flush was to save.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::Arena;
use nvme_spec::status::Status;

use crate::admin::check;
use crate::admin::commands::{self, connect_io};
use crate::error::Error;
use crate::io::{Completion, Io};
use crate::limits::PAGE_BYTES;
use crate::link::{Event, Link, Queue};
use crate::memory::Carved;
use crate::options::Options;
use crate::shared::{Epoch, Shared, Up};
use crate::slots::{Command, Completed, Effect, Left};

/// The queue has no room for the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// An I/O queue of a [`Controller`](crate::Controller): for one core, and not shared with others.
///
/// It is polled. Each [`IoQueue::poll`] is one turn: over TCP what was submitted since the last one
/// leaves in one system call, and one receives; over RDMA one call posts what was submitted, one
/// what can be received, and neither is a system call where the device's library drives it. A
/// caller with nothing else to do may [`IoQueue::wait`] between turns instead of spinning.
#[derive(Debug)]
pub struct IoQueue {
    options: Arc<Options>,
    shared: Arc<Shared>,
    qid: u16,
    epoch: Option<Epoch>,
    up: Up,
    state: State,
    arena: &'static Arena,
    // Before the page: closing the connection is what ends the use of memory.
    link: Option<Link>,
    page: Carved,
    /// Commands that are submitted again.
    kept: VecDeque<Command>,
    /// Commands that the old controller may still execute, and until when it may.
    held: VecDeque<(Instant, Completion)>,
    done: VecDeque<Completion>,
    error: Option<Error>,
    calls: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down,
    /// The connection is being opened, or Connect is on its way.
    Connecting,
    Ready,
}

impl IoQueue {
    pub(crate) fn new(
        options: Arc<Options>,
        shared: Arc<Shared>,
        arena: &'static Arena,
        qid: u16,
        up: Up,
    ) -> Result<Self, Error> {
        let depth = usize::from(up.depth);
        Ok(Self {
            options,
            shared,
            qid,
            epoch: None,
            up,
            state: State::Down,
            arena,
            link: None,
            page: Carved::new(arena, PAGE_BYTES)?,
            kept: VecDeque::with_capacity(depth),
            held: VecDeque::with_capacity(depth),
            done: VecDeque::with_capacity(depth),
            error: None,
            calls: 0,
        })
    }

    /// Takes an I/O, which then completes exactly once. It leaves with the next turn.
    ///
    /// # Errors
    /// [`Busy`]: as many are on their way as the queue holds, or there is no connection for the
    /// moment; nothing was taken.
    #[inline]
    pub fn submit(&mut self, now: Instant, io: &Io) -> Result<(), Busy> {
        if self.room() == 0 {
            return Err(Busy);
        }
        let command = Command::of_io(io, Some(now + self.options.io_timeout));
        let link = self.link.as_mut().ok_or(Busy)?;
        if link.submit(command) { Ok(()) } else { Err(Busy) }
    }

    /// How many more I/Os it takes for the moment.
    #[inline]
    pub fn room(&mut self) -> usize {
        if self.state != State::Ready {
            return 0;
        }
        // What is kept and held is on its way as well.
        let waiting = self.kept.len() + self.held.len();
        let room = self.link.as_ref().map_or(0, Link::room);
        room.saturating_sub(waiting)
    }

    /// How many are on their way.
    pub fn outstanding(&mut self) -> usize {
        let sent = match (&self.link, self.state) {
            (Some(link), State::Ready) => link.outstanding(),
            _ => 0,
        };
        sent + self.kept.len() + self.held.len() + self.done.len()
    }

    /// One turn. Completions are taken out by [`IoQueue::completed`] afterwards.
    #[inline]
    pub fn poll(&mut self, now: Instant) {
        match (self.state, self.epoch) {
            (State::Down, _) => self.poll_down(now),
            (_, Some(epoch)) if self.shared.epoch() == epoch => {
                if let Err(error) = self.turn(now) {
                    self.shared.lose(epoch);
                    self.lose(now, error);
                }
            }
            _ => self.lose(now, Error::Lost),
        }
        while let Some(&(until, completion)) = self.held.front()
            && now >= until
        {
            self.held.pop_front();
            self.done.push_back(completion);
        }
    }

    /// The next I/O that has come to its end.
    #[inline]
    pub fn completed(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    /// Waits until a turn has something to do, `timeout` at most.
    pub fn wait(&mut self, now: Instant, timeout: Duration) {
        if !self.done.is_empty() {
            return;
        }
        let held = self.held.front().map(|(until, _)| *until);
        let due = self.link.as_ref().and_then(Link::next_deadline);
        let next = [held, due].into_iter().flatten().min();
        let until_next = next.map_or(timeout, |at| at.saturating_duration_since(now));
        // Rounded up, or the end of the wait would be spent in many short ones. What other threads
        // tell by the association's number is looked at often enough.
        let timeout = timeout.min(until_next + Duration::from_millis(1)).min(LOSS_INTERVAL);
        match &mut self.link {
            // An error comes up again in the next turn.
            Some(link) => drop(link.wait(timeout)),
            None => std::thread::sleep(timeout),
        }
    }

    /// I/Os may be submitted.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Nothing is submitted here ever again: the controller is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.epoch().is_closed()
    }

    /// Why the connection was lost last, once.
    pub fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    /// Most I/Os on their way at a time.
    pub fn depth(&self) -> u16 {
        self.up.depth
    }

    /// Queue identifier.
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// Calls so far that moved or tried to move bytes: system calls, but for those of RDMA devices
    /// that their library drives.
    pub fn calls(&self) -> u64 {
        self.calls + self.link.as_ref().map_or(0, Link::calls)
    }

    fn turn(&mut self, now: Instant) -> Result<(), Error> {
        let Some(link) = &mut self.link else { return Ok(()) };
        link.turn(now)?;
        while let Some(event) = link.poll_event()? {
            match event {
                Event::Completed(done) if self.state == State::Ready => {
                    self.done.push_back(completion(done));
                }
                Event::Completed(done) => {
                    check("Connect (I/O queue)", done.answer)?;
                    self.state = State::Ready;
                    self.error = None;
                }
                Event::Opened => {
                    let Up { cntlid, depth, .. } = self.up;
                    let deadline = now + self.options.admin_timeout;
                    let page = self.page.span;
                    let options = &self.options;
                    link.submit(connect_io(options, cntlid, self.qid, depth, page, deadline));
                }
            }
        }
        if self.state == State::Ready {
            while let Some(command) = self.kept.front() {
                let deadline = Some(now + self.options.io_timeout);
                if !link.submit(Command { deadline, ..*command }) {
                    break;
                }
                self.kept.pop_front();
            }
        }
        Ok(())
    }

    /// Without a connection: connects as soon as there is an association again.
    fn poll_down(&mut self, now: Instant) {
        if let Some((epoch, up)) = self.shared.up() {
            (self.up, self.epoch) = (up, Some(epoch));
            let Up { cntlid, depth, in_capsule_bytes, .. } = up;
            let entries = commands::entries(depth);
            let queue = Queue { qid: self.qid, cntlid, entries, depth, in_capsule_bytes };
            match Link::open(now, &self.options, queue, self.arena) {
                Ok(link) => (self.link, self.state) = (Some(link), State::Connecting),
                Err(error) => {
                    self.shared.lose(epoch);
                    self.error = Some(error);
                }
            }
        } else if self.is_closed() {
            let kept = self.kept.drain(..).map(|command| lost(command.tag));
            self.done.extend(kept);
        }
    }

    /// The connection is lost, or given up. Closing it comes first: what is decided about commands
    /// presumes that nothing touches their memory any more.
    fn lose(&mut self, now: Instant, error: Error) {
        let Some(link) = self.link.take() else { return };
        self.calls += link.calls();
        let left = link.close();
        tracing::debug!(qid = self.qid, %error, commands = left.len(), "connection lost");
        let was_ready = std::mem::replace(&mut self.state, State::Down) == State::Ready;
        self.error = Some(error);
        // Until then nothing but Connect was on its way.
        if !was_ready {
            return;
        }
        for command in left {
            match command {
                Left::Completed(done) => self.done.push_back(completion(done)),
                Left::Unfinished(command) => self.end(now, &command),
            }
        }
    }

    /// Decides about a command of which nobody knows whether it was executed.
    fn end(&mut self, now: Instant, command: &Command) {
        let timed_out = command.deadline.is_some_and(|at| now >= at);
        let status = match timed_out {
            true => Status::ABORTED_BY_HOST,
            false => Status::HOST_PATHING_ERROR,
        };
        let completion = Completion { tag: command.tag, status };
        match command.effect() {
            Effect::None if !timed_out && self.options.reconnect.is_some() => {
                self.kept.push_back(*command);
            }
            Effect::Changes => {
                self.held.push_back((now + self.up.quiesce, completion));
            }
            Effect::None | Effect::Harmless => self.done.push_back(completion),
        }
    }
}

/// How soon a queue that waits notices what other threads say of the association.
const LOSS_INTERVAL: Duration = Duration::from_millis(100);

#[inline]
fn completion(done: Completed) -> Completion {
    Completion { tag: done.tag, status: done.answer.status }
}

fn lost(tag: u32) -> Completion {
    Completion { tag, status: Status::HOST_PATHING_ERROR }
}
