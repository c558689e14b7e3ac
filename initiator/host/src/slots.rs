//! The commands outstanding on a queue, by their identifiers.
//!
//! A command identifier is a place and a count of how often that place was used. A completion that
//! names a command which is over (a second one, or one that comes too late) names a count that is
//! over, and is found out. The count has few bits and comes round again; by then that completion
//! is 64 commands late.

use std::time::Instant;

use dma::DmaSpan;
use nvme_spec::command::Sqe;
use nvme_spec::opcode::{self, DataDirection, nvm};
use nvme_spec::status::Status;
use nvme_spec::{fabrics, tcp::R2t};

use crate::io::Io;
use crate::limits::{INDEX_BITS, MAX_DEPTH};
use crate::spans::Spans;

/// A command as it is submitted. Its identifier and data pointer are filled in on the way.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Comes back with the answer.
    pub tag: u32,
    /// The command itself.
    pub sqe: Sqe,
    /// Its data.
    pub data: Spans,
    /// An answer with less data than there is room for is good.
    pub may_be_short: bool,
    /// When it has taken too long; `None` for one that waits for what may never happen.
    pub deadline: Option<Instant>,
}

impl Command {
    /// An I/O.
    #[inline]
    pub fn of_io(io: &Io, deadline: Option<Instant>) -> Self {
        let Io { tag, data, .. } = *io;
        Self { tag, sqe: io.to_sqe(), data, may_be_short: false, deadline }
    }

    /// Which way its data goes.
    #[inline]
    pub fn direction(&self) -> DataDirection {
        match (self.data.bytes(), self.sqe.opcode()) {
            (0, _) => DataDirection::None,
            (_, opcode::FABRICS) => DataDirection::of(fabrics::fctype(&self.sqe)),
            (_, opcode) => DataDirection::of(opcode),
        }
    }

    /// What executing it once more, or later than anyone expects, would do.
    pub fn effect(&self) -> Effect {
        match self.sqe.opcode() {
            nvm::READ | nvm::COMPARE => Effect::None,
            nvm::FLUSH => Effect::Harmless,
            _ => Effect::Changes,
        }
    }
}

/// What a command does to its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it may be executed at any time, and again.
    None,
    /// Nothing that could be in the way of later commands; but when it is executed matters.
    Harmless,
    /// It changes blocks.
    Changes,
}

/// What a controller says at the end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: Status,
    /// DW0 and DW1.
    pub result: u64,
}

impl Answer {
    /// Success, and nothing more to say.
    pub(crate) const SUCCESS: Self = Self { status: Status::SUCCESS, result: 0 };
}

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// The tag it was submitted with.
    pub tag: u32,
    /// What the controller said, and what the host side has to say besides.
    pub answer: Answer,
    /// Bytes of its data that were moved.
    pub bytes: u32,
}

/// A command of a connection that is over.
#[derive(Clone, Copy, Debug)]
pub enum Left {
    /// It was answered.
    Completed(Completed),
    /// Nobody knows what became of it.
    Unfinished(Command),
}

/// A command on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outstanding {
    pub(crate) command: Command,
    /// Bytes of its data that have come, or were asked for; over RDMA, where only the controller
    /// knows, all of them.
    pub(crate) moved: u32,
    /// Data that was asked for and still has to be sent.
    pub(crate) transfer: Option<Transfer>,
    /// What has not been done for it yet: PDUs that have not left, work requests that have not
    /// completed.
    pub(crate) leaving: u8,
    /// Nothing more of its data may come.
    pub(crate) last: bool,
    /// A part of its data did not match its digest.
    pub(crate) broken: bool,
    /// What the controller has said, while something is still to be done for it: until then its
    /// memory is in use.
    pub(crate) answer: Option<Answer>,
}

/// Data that an R2T asked for: from `at` to `end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) ttag: u16,
    pub(crate) at: u32,
    pub(crate) end: u32,
}

impl Transfer {
    pub(crate) fn new(r2t: &R2t, at: u32, end: u32) -> Self {
        Self { ttag: r2t.ttag.get(), at, end }
    }
}

impl Outstanding {
    /// The next place for data that comes.
    pub(crate) fn place(&self, len: u32) -> Option<DmaSpan> {
        self.command.data.part(self.moved, len)
    }

    /// How it ended, when it is also looked at what became of its data.
    pub(crate) fn completed(&self, answer: Answer) -> Completed {
        let command = &self.command;
        let whole = self.moved == command.data.bytes() && self.transfer.is_none();
        let status = match answer.status {
            status if !status.is_success() => status,
            _ if self.broken => Status::TRANSIENT_TRANSPORT_ERROR,
            _ if !whole && !command.may_be_short => Status::DATA_TRANSFER_ERROR,
            status => status,
        };
        Completed { tag: command.tag, answer: Answer { status, ..answer }, bytes: self.moved }
    }
}

/// All places of a queue.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
}

#[derive(Debug)]
struct Slot {
    cid: u16,
    outstanding: Option<Outstanding>,
}

impl Slots {
    /// Places for `depth` commands.
    pub(crate) fn new(depth: u16) -> Self {
        assert!((1..=MAX_DEPTH).contains(&depth), "a queue of {depth} commands");
        let slots = (0..depth).map(|cid| Slot { cid, outstanding: None }).collect();
        Self { slots, free: (0..depth).rev().collect() }
    }

    /// Gives a command a place: which, and its identifier. `None`: all are taken.
    #[inline]
    pub(crate) fn take(&mut self, command: Command) -> Option<(u16, u16)> {
        let index = self.free.pop()?;
        let slot = &mut self.slots[usize::from(index)];
        slot.outstanding = Some(Outstanding {
            command,
            moved: 0,
            transfer: None,
            leaving: 0,
            last: false,
            broken: false,
            answer: None,
        });
        Some((index, slot.cid))
    }

    /// The place of a command that is outstanding and has not been answered.
    #[inline]
    pub(crate) fn find(&self, cid: u16) -> Option<u16> {
        let index = cid & MAX_DEPTH;
        let slot = self.slots.get(usize::from(index))?;
        let waits = slot.outstanding.as_ref().is_some_and(|it| it.answer.is_none());
        (slot.cid == cid && waits).then_some(index)
    }

    /// What is in a place.
    #[inline]
    pub(crate) fn get(&mut self, index: u16) -> Option<&mut Outstanding> {
        self.slots.get_mut(usize::from(index))?.outstanding.as_mut()
    }

    /// The identifier of the command in a place.
    #[inline]
    pub(crate) fn cid(&self, index: u16) -> u16 {
        self.slots[usize::from(index)].cid
    }

    /// Ends the command in a place.
    #[inline]
    pub(crate) fn release(&mut self, index: u16) -> Option<Outstanding> {
        let slot = self.slots.get_mut(usize::from(index))?;
        let outstanding = slot.outstanding.take()?;
        slot.cid = slot.cid.wrapping_add(1 << INDEX_BITS);
        self.free.push(index);
        Some(outstanding)
    }

    /// How many more fit.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    /// How many there are.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Ends all commands, and tells what became of each.
    pub(crate) fn drain(&mut self) -> Vec<Left> {
        let end = |it: Outstanding| match it.answer {
            Some(answer) => Left::Completed(it.completed(answer)),
            None => Left::Unfinished(it.command),
        };
        (0..self.slots.len() as u16).filter_map(|index| self.release(index).map(end)).collect()
    }

    /// The earliest time when a command has taken too long.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let outstanding = self.slots.iter().filter_map(|slot| slot.outstanding.as_ref());
        outstanding.filter_map(|it| it.command.deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(tag: u32) -> Command {
        let sqe = Sqe::new(nvm::FLUSH, 1);
        Command { tag, sqe, data: Spans::NONE, may_be_short: false, deadline: None }
    }

    #[test]
    fn an_identifier_names_one_command_and_no_later_one() {
        let mut slots = Slots::new(2);
        let (index, first) = slots.take(command(1)).unwrap();
        assert_eq!(slots.find(first), Some(index));
        let (_, other) = slots.take(command(2)).unwrap();
        assert!(slots.take(command(3)).is_none(), "two at a time");
        assert_eq!((slots.room(), slots.count()), (0, 2));
        assert_eq!(slots.release(index).map(|it| it.command.tag), Some(1));
        assert!(slots.release(index).is_none(), "once");
        assert_eq!(slots.find(first), None, "it is over");
        // The same place for the next 63 commands, and none of them answers to the old name.
        for _ in 1..64 {
            let (again, cid) = slots.take(command(4)).unwrap();
            assert_eq!(again, index);
            assert_ne!(cid, first);
            assert_eq!(slots.find(first), None);
            slots.release(again);
        }
        assert!(slots.find(other).is_some());
        assert_eq!(slots.find(u16::MAX), None);
        assert_eq!(slots.find(MAX_DEPTH - 1), None, "beyond the queue");
    }

    #[test]
    fn an_answered_command_is_not_found_again() {
        let mut slots = Slots::new(1);
        let (index, cid) = slots.take(command(1)).unwrap();
        slots.get(index).unwrap().answer = Some(Answer { status: Status::SUCCESS, result: 0 });
        assert_eq!(slots.find(cid), None);
    }
}
