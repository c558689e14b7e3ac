//! One namespace, used by one thread that waits for each I/O.

use std::time::{Duration, Instant};

use dma::{Arena, DmaSpan};
use nvme_spec::status::Status;

use crate::controller::Controller;
use crate::error::Error;
use crate::info::Namespace;
use crate::io::{Completion, Io, Op};
use crate::io_queue::IoQueue;
use crate::options::Options;
use crate::spans::Spans;

/// A namespace that is attached, with a controller and an I/O queue of its own. Each call waits
/// until its I/O is done, also for as long as a lost association takes to come back.
///
/// Whoever pauses for longer than the keep-alive time-out calls [`Attached::keep_alive`] now and
/// then.
#[derive(Debug)]
pub struct Attached {
    // Before the controller, whose end closes it.
    queue: IoQueue,
    controller: Controller,
    namespace: Namespace,
}

impl Attached {
    /// Connects and looks for the namespace.
    ///
    /// # Errors
    /// As [`Controller::connect`] and [`Controller::open_queue`]; or there is no such namespace.
    pub fn attach(options: Options, nsid: u32, arena: &'static Arena) -> Result<Self, Error> {
        let mut controller = Controller::connect(options, arena)?;
        let namespace = controller.namespace(nsid)?;
        let queue = controller.open_queue()?;
        Ok(Self { queue, controller, namespace })
    }

    /// What is attached.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// The controller.
    pub fn controller(&mut self) -> &mut Controller {
        &mut self.controller
    }

    /// Reads blocks from `slba` on into all of `to`, which is whole blocks long.
    ///
    /// # Errors
    /// The controller's status, or the host side's own.
    pub fn read(&mut self, slba: u64, to: DmaSpan) -> Result<(), Error> {
        self.transfer("Read", Op::Read, slba, to)
    }

    /// Writes all of `from`, which is whole blocks long, to `slba` and on.
    ///
    /// # Errors
    /// As for a read.
    pub fn write(&mut self, slba: u64, from: DmaSpan) -> Result<(), Error> {
        self.transfer("Write", Op::Write { fua: false }, slba, from)
    }

    /// Compares blocks from `slba` on with `with`.
    ///
    /// # Errors
    /// They differ ([`Status::COMPARE_FAILURE`]); else as for a read.
    pub fn compare(&mut self, slba: u64, with: DmaSpan) -> Result<(), Error> {
        self.transfer("Compare", Op::Compare, slba, with)
    }

    /// What was written before is on stable media when this returns.
    ///
    /// # Errors
    /// As for a read.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.run("Flush", self.io(Op::Flush, 0, 0, Spans::NONE))
    }

    /// Makes `block_count` blocks (1 to 65,536) from `slba` on read as zeroes, and frees their
    /// space if it can.
    ///
    /// # Errors
    /// As for a read.
    pub fn write_zeroes(&mut self, slba: u64, block_count: u32) -> Result<(), Error> {
        let op = Op::WriteZeroes { deallocate: true, fua: false };
        self.run("Write Zeroes", self.io(op, slba, block_count, Spans::NONE))
    }

    /// Frees the space of as many ranges as `ranges` says; `definitions` has 16 bytes for each.
    ///
    /// # Errors
    /// As for a read.
    pub fn deallocate(&mut self, definitions: DmaSpan, ranges: u16) -> Result<(), Error> {
        let op = Op::Deallocate { ranges };
        self.run("Dataset Management", self.io(op, 0, 0, definitions.into()))
    }

    /// Does what is due to keep the association alive.
    pub fn keep_alive(&mut self) {
        let now = Instant::now();
        self.serve(now);
        self.queue.poll(now);
    }

    /// Shuts the controller down in order and disconnects.
    ///
    /// # Errors
    /// As [`Controller::detach`].
    pub fn detach(self) -> Result<(), Error> {
        self.controller.detach()
    }

    /// What happens to the controller shows in the I/Os.
    fn serve(&mut self, now: Instant) {
        while self.controller.poll(now).is_some() {}
    }

    fn transfer(
        &mut self,
        command: &'static str,
        op: Op,
        slba: u64,
        data: DmaSpan,
    ) -> Result<(), Error> {
        let block_bytes = self.namespace.block_bytes;
        assert!(data.len() > 0 && data.len().is_multiple_of(block_bytes), "whole blocks");
        let most = self.controller.info().max_transfer_bytes / block_bytes * block_bytes;
        let mut at = 0;
        while at < data.len() {
            let part = data.subspan(at, most.max(block_bytes).min(data.len() - at));
            let slba = slba + u64::from(at / block_bytes);
            let io = self.io(op, slba, part.len() / block_bytes, part.into());
            self.run(command, io)?;
            at += part.len();
        }
        Ok(())
    }

    fn io(&self, op: Op, slba: u64, block_count: u32, data: Spans) -> Io {
        Io { tag: 0, nsid: self.namespace.nsid, op, slba, block_count, data }
    }

    fn run(&mut self, command: &'static str, io: Io) -> Result<(), Error> {
        let mut submitted = false;
        loop {
            let now = Instant::now();
            if !submitted {
                submitted = self.queue.submit(now, &io).is_ok();
            }
            self.queue.poll(now);
            if let Some(Completion { status, .. }) = self.queue.completed() {
                return match status.is_success() {
                    true => Ok(()),
                    false => Err(Error::Command { command, status, result: 0 }),
                };
            }
            if !submitted && self.queue.is_closed() {
                let status = Status::HOST_PATHING_ERROR;
                return Err(Error::Command { command, status, result: 0 });
            }
            self.serve(now);
            self.queue.wait(now, Duration::from_millis(10));
        }
    }
}
