//! An admin queue at work: an [`Admin`] on a [`Link`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::{Arena, DmaSpan};

use crate::admin::{Admin, Output};
use crate::connection::{Connection, Event};
use crate::error::Error;
use crate::limits::{ADMIN_DEPTH, ADMIN_IN_CAPSULE_BYTES, PAGE_BYTES};
use crate::link::Link;
use crate::options::Options;

/// Memory of the arena that is given back when nobody uses it any more.
#[derive(Debug)]
pub(crate) struct Page {
    arena: &'static Arena,
    pub(crate) span: DmaSpan,
}

impl Page {
    pub(crate) fn new(arena: &'static Arena) -> Result<Self, Error> {
        Ok(Self { arena, span: arena.carve(PAGE_BYTES, PAGE_BYTES)? })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.arena.give_back(self.span);
    }
}

/// One association with a controller.
#[derive(Debug)]
pub(crate) struct Association {
    admin: Admin,
    // Dropped before the page: closing the socket is what ends the use of memory.
    link: Link,
    _page: Page,
}

impl Association {
    /// Begins to connect.
    pub(crate) fn begin(
        now: Instant,
        options: &Arc<Options>,
        arena: &'static Arena,
    ) -> Result<Self, Error> {
        let page = Page::new(arena)?;
        let mut connection = Connection::new(options.digests(), ADMIN_DEPTH);
        connection.set_in_capsule_bytes(ADMIN_IN_CAPSULE_BYTES);
        let link = Link::open(now, options.addr, options.connect_timeout, connection)?;
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
        while self.link.connection().room() > 0 {
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
