//! Requests: what the user submitted, on its way through one or several children.

use std::time::{Duration, Instant};

use dma::DmaSpan;
use nvme_spec::command::Sqe;
use nvme_spec::identify::NvmController;
use nvme_spec::nvm::{DSM_RANGE_BYTES, DsmRange, MAX_DSM_RANGES, ReadWrite, set_dsm_deallocate};
use nvme_spec::opcode::nvm;
use nvme_spec::status::Status;

use super::{Command, Op};
use crate::limits::MAX_RANGES;
use crate::namespace::Namespace;

/// What the controller can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Most bytes in one command with data.
    pub(crate) transfer_bytes: u32,
    pub(crate) ignores_fua: bool,
    pub(crate) has_compare: bool,
    /// Most bytes in one Write Zeroes; 0 where it has none.
    pub(crate) write_zeroes_bytes: u32,
    /// `None` where it has no Dataset Management.
    pub(crate) deallocate: Option<DeallocateLimits>,
}

/// What fits in one Dataset Management command; each at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeallocateLimits {
    pub(crate) ranges: u32,
    pub(crate) range_blocks: u32,
    pub(crate) blocks: u64,
}

impl Default for DeallocateLimits {
    fn default() -> Self {
        Self { ranges: MAX_RANGES, range_blocks: u32::MAX, blocks: u64::MAX }
    }
}

impl DeallocateLimits {
    /// What the controller says, where zero stands for no limit.
    pub(crate) fn of(identify: &NvmController) -> Self {
        let or_most = |limit: u64| if limit == 0 { u64::MAX } else { limit };
        let most = |limit: u32, most: u32| or_most(limit.into()).min(most.into()) as u32;
        Self {
            ranges: most(identify.dmrl.into(), MAX_RANGES),
            range_blocks: most(identify.dmrsl.get(), u32::MAX),
            blocks: or_most(identify.dmsl.get()),
        }
    }
}

/// One user's command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) tag: u32,
    /// Nobody waits for it any more.
    pub(super) orphan: bool,
    /// Success until a child failed.
    pub(super) status: Status,
    pub(super) nsid: u32,
    op: Op,
    pub(super) submitted: Instant,
    /// The next block to be pushed, and how many are left. A flush counts as one. A deallocate
    /// counts its ranges, and in `slba` the blocks of the next one that were pushed already.
    slba: u64,
    left: u32,
    data: Option<DmaSpan>,
    data_offset: u32,
    block_bytes: u32,
    in_flight: u16,
    /// A flush follows, because the controller ignores FUA.
    flush_follows: bool,
}

impl Request {
    /// Checks a command: what the controller, or its absence, would make of it.
    #[inline]
    pub(super) fn new(
        command: &Command,
        namespace: Option<&Namespace>,
        limits: &Limits,
        now: Instant,
    ) -> Result<Self, Status> {
        let namespace = namespace.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
        let mut request = Self {
            tag: command.tag,
            orphan: false,
            status: Status::SUCCESS,
            nsid: command.nsid,
            op: command.op,
            submitted: now,
            slba: command.slba,
            left: command.block_count,
            data: command.data,
            data_offset: 0,
            block_bytes: namespace.block_bytes,
            in_flight: 0,
            flush_follows: false,
        };
        let blocks_bytes = u64::from(command.block_count) * u64::from(namespace.block_bytes);
        let mut needed_bytes = Some(blocks_bytes);
        match command.op {
            Op::Read => {}
            Op::Write { fua } => request.flush_follows = fua && limits.ignores_fua,
            Op::Compare if !limits.has_compare => return Err(Status::INVALID_OPCODE.with_dnr()),
            Op::Compare => {}
            Op::WriteZeroes { .. } if limits.write_zeroes_bytes == 0 => {
                return Err(Status::INVALID_OPCODE.with_dnr());
            }
            Op::WriteZeroes { fua, .. } => {
                request.flush_follows = fua && limits.ignores_fua;
                needed_bytes = None;
            }
            Op::Flush => (request.left, needed_bytes) = (1, None),
            // Deallocating is advice.
            Op::Deallocate { .. } if limits.deallocate.is_none() => return Err(Status::SUCCESS),
            Op::Deallocate { ranges } => {
                if ranges == 0 || u32::from(ranges) > MAX_DSM_RANGES {
                    return Err(Status::INVALID_FIELD.with_dnr());
                }
                (request.slba, request.left) = (0, ranges.into());
                needed_bytes = Some(u64::from(ranges) * u64::from(DSM_RANGE_BYTES));
            }
        }
        if !matches!(command.op, Op::Flush | Op::Deallocate { .. }) {
            if command.block_count == 0 {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            let end = command.slba.checked_add(u64::from(command.block_count));
            if end.is_none_or(|end| end > namespace.block_count) {
                return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
            }
        }
        match (needed_bytes, command.data) {
            (None, _) => request.data = None,
            (Some(bytes), Some(data))
                if u64::from(data.len()) >= bytes && data.iova().is_multiple_of(4) => {}
            _ => return Err(Status::INVALID_FIELD.with_dnr()),
        }
        Ok(request)
    }

    /// Since it was submitted.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.submitted)
    }

    /// The next child, without identifier and data pointer, and its memory, which may be `page`:
    /// the child's own.
    #[inline]
    pub(super) fn next_child(&mut self, limits: &Limits, page: DmaSpan) -> (Sqe, Option<DmaSpan>) {
        debug_assert!(self.left > 0);
        self.in_flight += 1;
        let (opcode, most_bytes) = match self.op {
            Op::Read => (nvm::READ, limits.transfer_bytes),
            Op::Write { .. } => (nvm::WRITE, limits.transfer_bytes),
            Op::Compare => (nvm::COMPARE, limits.transfer_bytes),
            Op::WriteZeroes { .. } => (nvm::WRITE_ZEROES, limits.write_zeroes_bytes),
            Op::Flush => {
                self.left = 0;
                return (Sqe::new(nvm::FLUSH, self.nsid), None);
            }
            Op::Deallocate { .. } => {
                let ranges = self.next_ranges(limits.deallocate.unwrap_or_default(), page);
                let mut sqe = Sqe::new(nvm::DATASET_MANAGEMENT, self.nsid);
                set_dsm_deallocate(&mut sqe, ranges);
                return (sqe, Some(page.subspan(0, ranges * DSM_RANGE_BYTES)));
            }
        };
        let blocks = self.left.min(most_bytes / self.block_bytes);
        let bytes = blocks * self.block_bytes;
        let mut fields = ReadWrite::new(self.slba, blocks);
        match self.op {
            Op::Write { fua } => fields = fields.with_fua(fua && !self.flush_follows),
            Op::WriteZeroes { deallocate, fua } => {
                fields = fields.with_fua(fua && !self.flush_follows).with_deac(deallocate);
            }
            _ => {}
        }
        let mut sqe = Sqe::new(opcode, self.nsid);
        fields.set(&mut sqe);
        let data = self.data.map(|data| data.subspan(self.data_offset, bytes));
        if data.is_some() {
            self.data_offset += bytes;
        }
        self.slba += u64::from(blocks);
        self.left -= blocks;
        (sqe, data)
    }

    /// Copies what one command may carry of the ranges that are left; how many ranges that makes.
    #[cold]
    fn next_ranges(&mut self, limits: DeallocateLimits, page: DmaSpan) -> u32 {
        let Some(data) = self.data else { unreachable!("checked by `new`") };
        let (mut count, mut room) = (0, limits.blocks);
        while self.left > 0 && count < limits.ranges && room > 0 {
            let mut range: DsmRange = data.read_obj(self.data_offset);
            let rest = u64::from(range.block_count.get()).saturating_sub(self.slba);
            let blocks = rest.min(limits.range_blocks.into()).min(room);
            range.slba = range.slba.get().wrapping_add(self.slba).into();
            range.block_count = (blocks as u32).into();
            page.write_obj(count * DSM_RANGE_BYTES, &range);
            (count, room) = (count + 1, room - blocks);
            if blocks < rest {
                self.slba += blocks;
            } else {
                (self.slba, self.left) = (0, self.left - 1);
                self.data_offset += DSM_RANGE_BYTES;
            }
        }
        count
    }

    /// Every child was pushed.
    #[inline]
    pub(super) fn is_issued(&self) -> bool {
        self.left == 0
    }

    /// Every child was pushed and has ended.
    #[inline]
    pub(super) fn is_done(&self) -> bool {
        self.left == 0 && self.in_flight == 0
    }

    /// A child has ended. The first failure is the request's, and keeps further children back.
    #[inline]
    pub(super) fn child_ended(&mut self, status: Status) {
        self.in_flight -= 1;
        if !status.is_success() {
            self.fail(status);
        }
    }

    pub(super) fn fail(&mut self, status: Status) {
        if self.status.is_success() {
            self.status = status;
        }
        self.left = 0;
        self.flush_follows = false;
    }

    #[inline]
    pub(super) fn wants_flush(&self) -> bool {
        self.flush_follows
    }

    pub(super) fn turn_into_flush(&mut self) {
        (self.op, self.left, self.data) = (Op::Flush, 1, None);
        self.flush_follows = false;
    }
}

/// A fixed table of requests.
#[derive(Debug)]
pub(super) struct Requests {
    slots: Box<[Option<Request>]>,
    free: Vec<u16>,
}

impl Requests {
    pub(super) fn new(depth: u16) -> Self {
        Self { slots: vec![None; usize::from(depth)].into(), free: (0..depth).rev().collect() }
    }

    #[inline]
    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    #[inline]
    pub(super) fn insert(&mut self, request: Request) -> Option<u16> {
        let index = self.free.pop()?;
        self.slots[usize::from(index)] = Some(request);
        Some(index)
    }

    /// The request in a slot that is in use; indices come from this table only.
    #[inline]
    pub(super) fn get_mut(&mut self, index: u16) -> &mut Request {
        self.slots[usize::from(index)].as_mut().expect("the slot is in use")
    }

    #[inline]
    pub(super) fn remove(&mut self, index: u16) -> Request {
        let request = self.slots[usize::from(index)].take().expect("the slot is in use");
        self.free.push(index);
        request
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(super) fn orphan_all(&mut self) {
        self.slots.iter_mut().flatten().for_each(|request| request.orphan = true);
    }
}
