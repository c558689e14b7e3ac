//! An admin queue at work: an [`Admin`] on a [`Link`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::Arena;

use crate::admin::{Admin, Output};
use crate::error::Error;
use crate::limits::{ADMIN_DEPTH, ADMIN_QUEUE_ENTRIES, PAGE_BYTES};
use crate::link::{Event, Link, Queue};
use crate::memory::Carved;
use crate::options::Options;

/// One association with a controller.
#[derive(Debug)]
pub(crate) struct Association {
    admin: Admin,
    // Dropped before the page: closing the connection is what ends the use of memory.
    link: Link,
    _page: Carved,
}

impl Association {
    /// Begins to connect.
    pub(crate) fn begin(
        now: Instant,
        options: &Arc<Options>,
        arena: &'static Arena,
    ) -> Result<Self, Error> {
        let page = Carved::new(arena, PAGE_BYTES)?;
        let queue = Queue {
            qid: 0,
            cntlid: 0,
            entries: ADMIN_QUEUE_ENTRIES,
            depth: ADMIN_DEPTH,
            in_capsule_bytes: 0,
        };
        let link = Link::open(now, options, queue, arena)?;
        Ok(Self { admin: Admin::new(Arc::clone(options), page.span), link, _page: page })
    }

    /// One turn: I/O, and what follows from it.
    ///
    /// # Errors
    /// The association is over.
    pub(crate) fn turn(&mut self, now: Instant) -> Result<(), Error> {
        self.link.turn(now)?;
        while let Some(event) = self.link.poll_event()? {
            if let Event::Completed(done) = event {
                self.admin.handle_completed(now, done)?;
            }
        }
        // A connection that is not open has no room.
        while self.link.room() > 0 {
            let Some(command) = self.admin.poll_command(now) else { break };
            self.link.submit(command);
        }
        Ok(())
    }

    /// Waits until a turn has something to do, `timeout` at most.
    pub(crate) fn wait(&mut self, now: Instant, timeout: Duration) -> Result<(), Error> {
        let due = [self.link.next_deadline(), self.admin.next_wakeup()].into_iter().flatten().min();
        let until_due = due.map_or(timeout, |at| at.saturating_duration_since(now));
        // Rounded up, or the end of the wait would be spent in many short ones.
        self.link.wait(timeout.min(until_due + Duration::from_millis(1)))
    }

    pub(crate) fn admin(&mut self) -> &mut Admin {
        &mut self.admin
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.admin.poll_output()
    }

    /// Turns until `done` says so, `limit` at most.
    pub(crate) fn run<T>(
        &mut self,
        what: &'static str,
        addr: std::net::SocketAddr,
        limit: Duration,
        mut done: impl FnMut(Output) -> Option<T>,
    ) -> Result<T, Error> {
        let until = Instant::now() + limit;
        loop {
            let now = Instant::now();
            self.turn(now)?;
            while let Some(output) = self.poll_output() {
                if let Some(result) = done(output) {
                    return Ok(result);
                }
            }
            if now >= until {
                return Err(Error::TimedOut { addr, what, after: limit });
            }
            self.wait(now, until - now)?;
        }
    }
}
