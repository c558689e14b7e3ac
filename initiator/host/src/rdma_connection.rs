//! The host's end of one NVMe/RDMA connection, without I/O.
//!
//! ```text
//!  a command:  submit ──> (window bound) ──> capsule is sent ───────────────┐
//!                                 └──> response ──> (window invalidated) ───┴──> Completed
//! ```
//!
//! Data is moved by the controller's device, straight to and from the memory of the command, so
//! there is nothing of it to be looked at here. What keeps the controller to that memory is its
//! key: each command has a window of its own, bound to its data and to nothing else, in its
//! direction and to no other. A command is over when its capsule has left, its response is there
//! and its window is invalid: by the controller, with the response, or by us.

use std::collections::VecDeque;
use std::time::Instant;

use dma::DmaSpan;
use nvme_spec::command::{Cqe, Sqe};
use nvme_spec::opcode::DataDirection;
use nvme_spec::sgl::SglDescriptor;
use thiserror::Error;

use crate::limits::MAX_KEYED_BYTES;
use crate::slots::{Answer, Command, Completed, Left, Slots};

/// A capsule that is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Capsule {
    /// The place of its command: a number below the depth, its own until the command is over.
    pub place: u16,
    /// The command. With data in a window it lacks the descriptor, which
    /// [`RdmaConnection::handle_bound`] gives.
    pub sqe: Sqe,
    /// Where its data is.
    pub data: Placement,
}

/// How the data of a command travels.
#[derive(Clone, Copy, Debug)]
pub enum Placement {
    /// There is none.
    None,
    /// Behind the command, in its capsule.
    InCapsule(DmaSpan),
    /// The controller reads it, through a window.
    Read(DmaSpan),
    /// The controller writes it, through a window.
    Written(DmaSpan),
}

/// How a controller breaks the rules of NVMe/RDMA.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// A response capsule of another size.
    #[error("a response of {bytes} bytes")]
    Length {
        /// Its size.
        bytes: u32,
    },
    /// A response to no command, or a second one.
    #[error("a response to command {cid:#06x}, which is not outstanding")]
    Command {
        /// The identifier that it names.
        cid: u16,
    },
    /// A response that invalidates a key of another command, or of none.
    #[error("the response to command {cid:#06x} invalidates key {key:#010x}, which is not its own")]
    Key {
        /// The command.
        cid: u16,
        /// The key.
        key: u32,
    },
    /// The private data of its accept is not what it has to be.
    #[error(
        "it accepts the connection with private data of format {recfmt}, for {crqsize} capsules"
    )]
    Accept {
        /// RECFMT.
        recfmt: u16,
        /// CRQSIZE.
        crqsize: u16,
    },
}

/// One connection, which is one queue.
#[derive(Debug)]
pub struct RdmaConnection {
    in_capsule_bytes: u32,
    open: bool,
    /// Most commands at a time.
    limit: usize,
    slots: Slots,
    /// By place: the key of the window that is bound for the command there.
    keys: Box<[Option<u32>]>,
    /// Places of commands that are over.
    over: VecDeque<u16>,
}

impl RdmaConnection {
    /// A connection for `depth` commands at a time, whose capsules carry up to so much data.
    pub fn new(depth: u16, in_capsule_bytes: u32) -> Self {
        Self {
            in_capsule_bytes,
            open: false,
            limit: depth.into(),
            slots: Slots::new(depth),
            keys: vec![None; depth.into()].into(),
            over: VecDeque::with_capacity(depth.into()),
        }
    }

    /// The controller has accepted the connection, and has receives for `crqsize` capsules.
    ///
    /// # Errors
    /// It has none, or speaks another format.
    pub fn handle_accepted(&mut self, recfmt: u16, crqsize: u16) -> Result<(), Violation> {
        if recfmt != 0 || crqsize == 0 {
            return Err(Violation::Accept { recfmt, crqsize });
        }
        self.limit = self.limit.min(crqsize.into());
        self.open = true;
        Ok(())
    }

    /// Takes a command, and gives the capsule that is to be sent for it; `None`: it was not taken,
    /// because the connection is not open or has no room for it. Its data is in one run.
    #[inline]
    pub fn submit(&mut self, mut command: Command) -> Option<Capsule> {
        if self.room() == 0 {
            return None;
        }
        let data = self.placement(&command);
        let sgl = match data {
            Placement::InCapsule(span) => SglDescriptor::in_capsule(0, span.len()),
            _ => SglDescriptor::keyed(0, 0, 0, false),
        };
        command.sqe.set_sgl(sgl);
        let (place, cid) = self.slots.take(command)?;
        let it = self.slots.get(place)?;
        it.leaving = 1;
        it.moved = command.data.bytes();
        let mut sqe = command.sqe;
        sqe.cid = cid.into();
        Some(Capsule { place, sqe, data })
    }

    /// The window of the command in this place is bound to `span` under `key`, before its capsule
    /// is sent: the descriptor for it. The controller is asked to invalidate the key.
    #[inline]
    pub fn handle_bound(&mut self, place: u16, span: DmaSpan, key: u32) -> SglDescriptor {
        self.keys[usize::from(place)] = Some(key);
        SglDescriptor::keyed(span.addr(), span.len(), key, true)
    }

    /// The capsule of the command in this place has left; its memory is not read any more.
    #[inline]
    pub fn handle_sent(&mut self, place: u16) {
        self.settle(place);
    }

    /// A response of `bytes` has arrived, and has invalidated a key, or none. The place whose
    /// window is to be invalidated, if that is still to be done.
    ///
    /// # Errors
    /// The controller breaks the rules: the connection is to be ended.
    #[inline]
    pub fn handle_response(
        &mut self,
        bytes: u32,
        cqe: &Cqe,
        invalidated: Option<u32>,
    ) -> Result<Option<u16>, Violation> {
        if bytes as usize != size_of::<Cqe>() {
            return Err(Violation::Length { bytes });
        }
        let cid = cqe.cid();
        let place = self.slots.find(cid).ok_or(Violation::Command { cid })?;
        let it = self.slots.get(place).ok_or(Violation::Command { cid })?;
        let bound = &mut self.keys[usize::from(place)];
        if let Some(key) = invalidated {
            if *bound != Some(key) {
                return Err(Violation::Key { cid, key });
            }
            *bound = None;
        }
        it.answer = Some(Answer { status: cqe.status(), result: cqe.result() });
        if bound.is_some() {
            it.leaving += 1;
            return Ok(Some(place));
        }
        if it.leaving == 0 {
            self.over.push_back(place);
        }
        Ok(None)
    }

    /// The window of the command in this place is invalid.
    #[inline]
    pub fn handle_invalidated(&mut self, place: u16) {
        if let Some(key) = self.keys.get_mut(usize::from(place)) {
            *key = None;
            self.settle(place);
        }
    }

    /// The next command that is over.
    #[inline]
    pub fn poll_completed(&mut self) -> Option<Completed> {
        let it = self.slots.release(self.over.pop_front()?)?;
        Some(it.completed(it.answer.unwrap_or(Answer::SUCCESS)))
    }

    /// Whether [`RdmaConnection::poll_completed`] has something.
    #[inline]
    pub fn has_completed(&self) -> bool {
        !self.over.is_empty()
    }

    /// How many more commands fit.
    #[inline]
    pub fn room(&self) -> usize {
        if self.open { self.limit.saturating_sub(self.slots.count()) } else { 0 }
    }

    /// How many commands are on their way.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.slots.count()
    }

    /// The earliest time when a command has taken too long.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.slots.next_deadline()
    }

    /// Ends the connection and tells what was on its way. The caller has destroyed the queue pair
    /// and its windows: nothing reaches the memory of these commands any more.
    pub fn abandon(&mut self) -> Vec<Left> {
        self.open = false;
        self.over.clear();
        self.keys.fill(None);
        self.slots.drain()
    }

    #[inline]
    fn placement(&self, command: &Command) -> Placement {
        let direction = command.direction();
        if direction == DataDirection::None {
            return Placement::None;
        }
        let Some(span) = command.data.only().filter(|span| span.len() <= MAX_KEYED_BYTES) else {
            panic!("over RDMA data lies in one run, of 16 MiB at most: {:?}", command.data);
        };
        match direction {
            DataDirection::HostToController if span.len() <= self.in_capsule_bytes => {
                Placement::InCapsule(span)
            }
            DataDirection::HostToController => Placement::Read(span),
            _ => Placement::Written(span),
        }
    }

    /// One of the things that were to be done for a command is done.
    #[inline]
    fn settle(&mut self, place: u16) {
        let Some(it) = self.slots.get(place) else { return };
        it.leaving = it.leaving.saturating_sub(1);
        if it.leaving == 0 && it.answer.is_some() {
            self.over.push_back(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use dma::Arena;
    use nvme_spec::opcode::nvm;
    use nvme_spec::sgl;
    use nvme_spec::status::Status;

    use super::*;
    use crate::spans::Spans;

    const RESPONSE_BYTES: u32 = 16;

    fn command(tag: u32, opcode: u8, data: Spans) -> Command {
        Command { tag, sqe: Sqe::new(opcode, 1), data, may_be_short: false, deadline: None }
    }

    fn memory(bytes: usize) -> DmaSpan {
        Arena::plain_pages(1 << 20).unwrap().carve(bytes, 4096).unwrap()
    }

    fn open(depth: u16) -> RdmaConnection {
        let mut connection = RdmaConnection::new(depth, 4096);
        assert!(connection.submit(command(0, nvm::FLUSH, Spans::NONE)).is_none(), "not open");
        connection.handle_accepted(0, depth + 1).unwrap();
        connection
    }

    fn response(capsule: &Capsule, status: Status) -> Cqe {
        Cqe::new(capsule.sqe.cid(), 0, 0, status)
    }

    /// A read whose window is bound under `key`.
    fn read(connection: &mut RdmaConnection, tag: u32, to: DmaSpan, key: u32) -> Capsule {
        let mut capsule = connection.submit(command(tag, nvm::READ, to.into())).unwrap();
        let Placement::Written(span) = capsule.data else { panic!("{capsule:?}") };
        capsule.sqe.set_sgl(connection.handle_bound(capsule.place, span, key));
        capsule
    }

    #[test]
    fn data_has_the_descriptor_of_its_way() {
        let (mut connection, span) = (open(4), memory(8192));
        let small = span.subspan(0, 4096);
        let write = connection.submit(command(1, nvm::WRITE, small.into())).unwrap();
        assert!(matches!(write.data, Placement::InCapsule(it) if it.addr() == small.addr()));
        let descriptor = write.sqe.sgl();
        assert_eq!((descriptor.0[15], descriptor.address(), descriptor.length()), (1, 0, 4096));
        let write = connection.submit(command(2, nvm::WRITE, span.into())).unwrap();
        assert!(matches!(write.data, Placement::Read(it) if it.len() == 8192));
        let flush = connection.submit(command(3, nvm::FLUSH, Spans::NONE)).unwrap();
        assert!(matches!(flush.data, Placement::None));
        assert_eq!((flush.sqe.sgl().0[15], flush.sqe.sgl().keyed_length()), (0x40, 0));
        let read = read(&mut connection, 4, small, 0xABCD);
        let descriptor = read.sqe.sgl();
        assert_eq!((descriptor.address(), descriptor.keyed_length()), (small.addr(), 4096));
        assert_eq!((descriptor.key(), descriptor.subtype()), (0xABCD, sgl::SUBTYPE_INVALIDATE_KEY));
        assert!(connection.submit(command(5, nvm::FLUSH, Spans::NONE)).is_none(), "four at a time");
        assert_eq!((connection.room(), connection.outstanding()), (0, 4));
    }

    #[test]
    #[should_panic(expected = "one run")]
    fn data_in_several_runs_is_the_callers_fault() {
        let (mut connection, span) = (open(1), memory(8192));
        let runs = Spans::gather(&[span.subspan(0, 512), span.subspan(4096, 512)]).unwrap();
        connection.submit(command(1, nvm::READ, runs));
    }

    #[test]
    fn a_command_is_over_when_all_is_done_in_whatever_order() {
        let (mut connection, span) = (open(1), memory(4096));
        // Sent, answered, invalidated by the controller.
        let capsule = read(&mut connection, 1, span, 7);
        connection.handle_sent(capsule.place);
        let cqe = response(&capsule, Status::SUCCESS);
        assert_eq!(connection.handle_response(RESPONSE_BYTES, &cqe, Some(7)), Ok(None));
        let done = connection.poll_completed().unwrap();
        assert_eq!((done.tag, done.answer.status, done.bytes), (1, Status::SUCCESS, 4096));
        // Answered and invalidated before it was told that the capsule has left.
        let capsule = read(&mut connection, 2, span, 8);
        let cqe = response(&capsule, Status::SUCCESS);
        assert_eq!(connection.handle_response(RESPONSE_BYTES, &cqe, Some(8)), Ok(None));
        assert!(connection.poll_completed().is_none(), "its capsule may be read still");
        connection.handle_sent(capsule.place);
        assert_eq!(connection.poll_completed().map(|done| done.tag), Some(2));
        // Not invalidated by the controller.
        let capsule = read(&mut connection, 3, span, 9);
        connection.handle_sent(capsule.place);
        let cqe = response(&capsule, Status::LBA_OUT_OF_RANGE);
        let place = Some(capsule.place);
        assert_eq!(connection.handle_response(RESPONSE_BYTES, &cqe, None), Ok(place));
        assert!(connection.poll_completed().is_none(), "its memory can be written still");
        assert_eq!((connection.room(), connection.outstanding()), (0, 1));
        connection.handle_invalidated(capsule.place);
        let done = connection.poll_completed().unwrap();
        assert_eq!((done.tag, done.answer.status), (3, Status::LBA_OUT_OF_RANGE));
        assert_eq!((connection.room(), connection.outstanding()), (1, 0));
    }

    #[test]
    fn each_lie_is_found() {
        let (mut connection, span) = (open(2), memory(8192));
        let one = read(&mut connection, 1, span.subspan(0, 4096), 7);
        let two = read(&mut connection, 2, span.subspan(4096, 4096), 8);
        let (cid, cqe) = (one.sqe.cid(), response(&one, Status::SUCCESS));
        for bytes in [0, 15, 17, 4096] {
            let short = connection.handle_response(bytes, &cqe, Some(7));
            assert_eq!(short, Err(Violation::Length { bytes }));
        }
        let other = connection.handle_response(RESPONSE_BYTES, &cqe, Some(8));
        assert_eq!(other, Err(Violation::Key { cid, key: 8 }), "the key of the other command");
        for cid in [u16::MAX, cid ^ 0x400, 2] {
            let stranger = Cqe::new(cid, 0, 0, Status::SUCCESS);
            let found = connection.handle_response(RESPONSE_BYTES, &stranger, None);
            assert_eq!(found, Err(Violation::Command { cid }));
        }
        connection.handle_sent(one.place);
        connection.handle_response(RESPONSE_BYTES, &cqe, Some(7)).unwrap();
        let again = connection.handle_response(RESPONSE_BYTES, &cqe, None);
        assert_eq!(again, Err(Violation::Command { cid }), "twice");
        assert!(connection.poll_completed().is_some() && connection.poll_completed().is_none());
        let late = connection.handle_response(RESPONSE_BYTES, &cqe, None);
        assert_eq!(late, Err(Violation::Command { cid }), "too late");
        // A command without a window has no key.
        let flush = connection.submit(command(3, nvm::FLUSH, Spans::NONE)).unwrap();
        let cqe = response(&flush, Status::SUCCESS);
        let lie = connection.handle_response(RESPONSE_BYTES, &cqe, Some(8));
        assert_eq!(lie, Err(Violation::Key { cid: flush.sqe.cid(), key: 8 }));
        assert_eq!(connection.outstanding(), 2);
        let left = connection.abandon();
        assert_eq!(left.len(), 2);
        assert!(left.iter().all(|left| matches!(left, Left::Unfinished(_))));
        assert!(connection.submit(two_more(span)).is_none(), "nothing after the end");
        connection.handle_sent(two.place);
        assert!(connection.poll_completed().is_none());
    }

    fn two_more(span: DmaSpan) -> Command {
        command(9, nvm::READ, span.into())
    }

    #[test]
    fn no_more_commands_are_sent_than_the_controller_receives() {
        let mut connection = RdmaConnection::new(8, 0);
        for (recfmt, crqsize) in [(0, 0), (1, 8)] {
            let refused = connection.handle_accepted(recfmt, crqsize);
            assert_eq!(refused, Err(Violation::Accept { recfmt, crqsize }));
        }
        connection.handle_accepted(0, 3).unwrap();
        for _ in 0..3 {
            connection.submit(command(0, nvm::FLUSH, Spans::NONE)).unwrap();
        }
        assert!(connection.submit(command(0, nvm::FLUSH, Spans::NONE)).is_none());
    }

    #[test]
    fn what_was_answered_when_the_connection_ended_is_told() {
        let (mut connection, span) = (open(2), memory(4096));
        let read = read(&mut connection, 1, span, 7);
        connection.submit(command(2, nvm::FLUSH, Spans::NONE)).unwrap();
        let cqe = response(&read, Status::SUCCESS);
        connection.handle_response(RESPONSE_BYTES, &cqe, None).unwrap();
        let left = connection.abandon();
        assert!(matches!(left[0], Left::Completed(done) if done.tag == 1));
        assert!(matches!(left[1], Left::Unfinished(command) if command.tag == 2));
    }
}
