//! Who waits for a buffer or for room in a channel, and whose turn it is.
//!
//! Each channel has a line of its own, and control commands have one. Lines take turns; within a
//! line it is first come, first served. So a block device that hangs holds up its own commands:
//!
//! - Of the buffers a line may always have its share, and more than that only as long as a reserve
//!   is left for the others. Control commands have no more than their share.
//! - A line whose channel was busy is not offered again in the same turn.
//!
//! When a request may have a buffer and no run of memory is long enough, nobody gets one until it
//! does: a large transfer is not starved by small ones.

use super::request::RequestId;
use super::slab::Slab;

/// The line of control commands; that of a channel is its number plus one.
pub(super) const CONTROL: usize = 0;

/// One over this is the part of the pool that is left to lines within their share.
const RESERVE: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: Vec<Line>,
    /// Channels that lines share the pool with, besides control commands.
    channels: usize,
    pool_bytes: usize,
    /// Requests in all lines, by what they wait for.
    waiting: [usize; 2],
    /// The lines that are looked at first, by what they wait for.
    next: [usize; 2],
    turn: u64,
    /// Somebody who may have a buffer waits for a run of memory that is long enough.
    starved: bool,
}

#[derive(Debug, Default)]
struct Line {
    lists: [List; 2],
    /// Bytes of the buffers that its requests hold.
    held: usize,
    /// The turn in which its channel was last busy.
    busy_at: u64,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    Buffer = 0,
    Channel = 1,
}

/// The first and the last of those that wait; the requests have the links.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct List {
    ends: Option<(RequestId, RequestId)>,
}

impl Lines {
    pub(super) fn new(pool_bytes: usize) -> Self {
        Self { lines: vec![Line::default()], pool_bytes, turn: 1, ..Self::default() }
    }

    /// There are so many channels, with numbers below `highest`.
    pub(super) fn set_channels(&mut self, channels: usize, highest: usize) {
        self.channels = channels;
        if self.lines.len() < highest + 1 {
            self.lines.resize_with(highest + 1, Line::default);
        }
    }

    /// Channels that were busy are offered again.
    #[inline]
    pub(super) fn begin_turn(&mut self) {
        self.turn += 1;
    }

    /// How many wait.
    #[inline]
    pub(super) fn waiting(&self) -> usize {
        self.waiting[0] + self.waiting[1]
    }

    /// Whether a line may have `bytes` more of a pool with `free` bytes left.
    #[inline]
    pub(super) fn may_have(&self, line: usize, bytes: usize, free: usize) -> bool {
        let held = self.lines[line].held;
        let share = self.pool_bytes / (self.channels + 1);
        held == 0
            || held + bytes <= share
            || (line != CONTROL && free >= bytes + self.pool_bytes / RESERVE)
    }

    /// Whether a request that has just come may go on without waiting.
    #[inline]
    pub(super) fn is_free(&self, line: usize, what: For) -> bool {
        let blocked = what == For::Buffer && self.starved;
        self.lines[line].lists[what as usize].is_empty() && !blocked
    }

    #[inline]
    pub(super) fn hold(&mut self, line: usize, bytes: usize) {
        self.lines[line].held += bytes;
    }

    #[inline]
    pub(super) fn give_back(&mut self, line: usize, bytes: usize) {
        self.lines[line].held -= bytes;
    }

    /// There was no run of memory for a request that may have one.
    #[inline]
    pub(super) fn set_starved(&mut self, starved: bool) {
        self.starved = starved;
    }

    /// The line's channel takes no more in this turn.
    #[inline]
    pub(super) fn set_busy(&mut self, line: usize) {
        self.lines[line].busy_at = self.turn;
    }

    /// The first of the next line that has somebody waiting for `what` and is found good.
    #[inline]
    pub(super) fn next(
        &mut self,
        what: For,
        good: impl Fn(&Self, usize, RequestId) -> bool,
    ) -> Option<(usize, RequestId)> {
        if self.waiting[what as usize] == 0 {
            return None;
        }
        let count = self.lines.len();
        let start = self.next[what as usize];
        for line in (start..count).chain(0..start.min(count)) {
            if let Some(first) = self.lines[line].lists[what as usize].first()
                && (what == For::Buffer || self.lines[line].busy_at != self.turn)
                && good(self, line, first)
            {
                self.next[what as usize] = line;
                return Some((line, first));
            }
        }
        None
    }

    /// The line that was last found has had its turn.
    #[inline]
    pub(super) fn pass(&mut self, what: For) {
        self.next[what as usize] += 1;
    }

    pub(super) fn push_back(&mut self, slab: &mut Slab, line: usize, what: For, id: RequestId) {
        self.waiting[what as usize] += 1;
        self.lines[line].lists[what as usize].push_back(slab, id);
    }

    pub(super) fn push_front(&mut self, slab: &mut Slab, line: usize, what: For, id: RequestId) {
        self.waiting[what as usize] += 1;
        self.lines[line].lists[what as usize].push_front(slab, id);
    }

    pub(super) fn remove(&mut self, slab: &mut Slab, line: usize, what: For, id: RequestId) {
        self.waiting[what as usize] -= 1;
        self.lines[line].lists[what as usize].remove(slab, id);
        if self.waiting[For::Buffer as usize] == 0 {
            self.starved = false;
        }
    }
}

impl List {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_none()
    }

    #[inline]
    pub(super) fn first(&self) -> Option<RequestId> {
        self.ends.map(|(first, _)| first)
    }

    pub(super) fn push_back(&mut self, slab: &mut Slab, id: RequestId) {
        match self.ends {
            None => self.ends = Some((id, id)),
            Some((first, last)) => {
                slab.request_mut(last).next = Some(id);
                slab.request_mut(id).prev = Some(last);
                self.ends = Some((first, id));
            }
        }
    }

    pub(super) fn push_front(&mut self, slab: &mut Slab, id: RequestId) {
        match self.ends {
            None => self.ends = Some((id, id)),
            Some((first, last)) => {
                slab.request_mut(first).prev = Some(id);
                slab.request_mut(id).next = Some(first);
                self.ends = Some((id, last));
            }
        }
    }

    pub(super) fn remove(&mut self, slab: &mut Slab, id: RequestId) {
        let request = slab.request_mut(id);
        let (prev, next) = (request.prev.take(), request.next.take());
        if let Some(prev) = prev {
            slab.request_mut(prev).next = next;
        }
        if let Some(next) = next {
            slab.request_mut(next).prev = prev;
        }
        if let Some((first, last)) = self.ends {
            let first = if first == id { next } else { Some(first) };
            let last = if last == id { prev } else { Some(last) };
            self.ends = first.zip(last);
        }
    }
}
