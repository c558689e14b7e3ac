//! Chains of work requests: built one by one, posted by one call.

use rdma_sys::{ibv_recv_wr, ibv_send_wr, ibv_sge};

use crate::error::{VerbsError, WorkQueue};
use crate::memory::{Range, Sge};

/// Work requests that wait to be posted to one queue, in memory taken once.
pub(crate) struct Chain<W> {
    queue: WorkQueue,
    wrs: Box<[W]>,
    /// `max_sges` for each work request.
    sges: Box<[ibv_sge]>,
    max_sges: usize,
    /// `wrs[..start]` were posted by a call that then failed; `wrs[start..end]` wait.
    start: usize,
    end: usize,
}

/// What receive and send work requests have in common.
pub(crate) trait WorkRequest: Copy {
    const QUEUE: WorkQueue;
    /// A work request that does nothing.
    const EMPTY: Self;

    fn wr_id(&self) -> u64;
    fn set_id(&mut self, wr_id: u64, num_sge: i32);
    fn set_links(&mut self, next: *mut Self, sg_list: *mut ibv_sge);
}

impl<W: WorkRequest> Chain<W> {
    /// Takes memory for `depth` work requests of up to `max_sges` entries each.
    pub(crate) fn new(depth: u32, max_sges: u32) -> Self {
        let (depth, max_sges) = (depth as usize, max_sges as usize);
        let sge = ibv_sge { addr: 0, length: 0, lkey: 0 };
        Self {
            queue: W::QUEUE,
            wrs: vec![W::EMPTY; depth].into(),
            sges: vec![sge; depth * max_sges].into(),
            max_sges,
            start: 0,
            end: 0,
        }
    }

    /// Adds a work request over `sges`, each of which must lie in `range`, and gives it out for the
    /// fields that only its kind has.
    #[inline]
    pub(crate) fn push(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        range: &Range,
    ) -> Result<&mut W, VerbsError> {
        let (at, depth) = (self.end, self.wrs.len() as u32);
        let full = VerbsError::ChainFull { queue: self.queue, depth };
        let Some(wr) = self.wrs.get_mut(at) else { return Err(full) };
        let first = at * self.max_sges;
        let slots = self.sges.get_mut(first..first + self.max_sges).unwrap_or_default();
        if sges.len() > slots.len() {
            return Err(VerbsError::Limit {
                what: "scatter-gather entries of a work request",
                wanted: sges.len() as u64,
                limit: slots.len() as u64,
            });
        }
        for (slot, sge) in slots.iter_mut().zip(sges) {
            range.check(*sge)?;
            *slot = ibv_sge { addr: sge.addr, length: sge.len, lkey: range.lkey };
        }
        wr.set_id(wr_id, sges.len() as i32);
        self.end = at + 1;
        Ok(wr)
    }

    /// Work requests that wait.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Links what waits into a list that C can walk; `None` when nothing waits. The list is valid
    /// until the chain is touched again.
    #[inline]
    pub(crate) fn link(&mut self) -> Option<*mut W> {
        if self.start == self.end {
            return None;
        }
        let wrs = self.wrs.as_mut_ptr();
        let sges = self.sges.as_mut_ptr();
        for at in self.start..self.end {
            let last = at + 1 == self.end;
            let next = if last { std::ptr::null_mut() } else { wrs.wrapping_add(at + 1) };
            // SAFETY: `start <= at < end <= wrs.len()`, and no reference to the array is alive.
            unsafe { (*wrs.add(at)).set_links(next, sges.wrapping_add(at * self.max_sges)) };
        }
        Some(wrs.wrapping_add(self.start))
    }

    /// Everything that waited was posted.
    #[inline]
    pub(crate) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// The device took what is before `bad` and refused the rest, or took all if `bad` points
    /// nowhere. The rest goes on waiting. Gives how many it took.
    pub(crate) fn keep_from(&mut self, bad: *const W) -> usize {
        let waiting = self.start..self.end;
        let base = self.wrs.as_ptr();
        let refused = waiting.clone().find(|at| std::ptr::eq(base.wrapping_add(*at), bad));
        match refused {
            Some(at) => self.start = at,
            None => self.clear(),
        }
        refused.unwrap_or(waiting.end) - waiting.start
    }

    /// Takes the oldest work request that waits, and gives its id.
    pub(crate) fn take_first(&mut self) -> Option<u64> {
        let wr = self.wrs.get(self.start..self.end)?.first()?;
        let wr_id = wr.wr_id();
        self.start += 1;
        if self.start == self.end {
            self.clear();
        }
        Some(wr_id)
    }
}

impl WorkRequest for ibv_recv_wr {
    const QUEUE: WorkQueue = WorkQueue::Recv;
    // SAFETY: zero is a valid value of every field.
    const EMPTY: Self = unsafe { std::mem::zeroed() };

    fn wr_id(&self) -> u64 {
        self.wr_id
    }

    #[inline]
    fn set_id(&mut self, wr_id: u64, num_sge: i32) {
        (self.wr_id, self.num_sge) = (wr_id, num_sge);
    }

    #[inline]
    fn set_links(&mut self, next: *mut Self, sg_list: *mut ibv_sge) {
        (self.next, self.sg_list) = (next, sg_list);
    }
}

impl WorkRequest for ibv_send_wr {
    const QUEUE: WorkQueue = WorkQueue::Send;
    // SAFETY: zero is a valid value of every field.
    const EMPTY: Self = unsafe { std::mem::zeroed() };

    fn wr_id(&self) -> u64 {
        self.wr_id
    }

    #[inline]
    fn set_id(&mut self, wr_id: u64, num_sge: i32) {
        (self.wr_id, self.num_sge) = (wr_id, num_sge);
    }

    #[inline]
    fn set_links(&mut self, next: *mut Self, sg_list: *mut ibv_sge) {
        (self.next, self.sg_list) = (next, sg_list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: Range = Range { base: 0x1000, bytes: 0x1000, lkey: 7 };
    const SGE: Sge = Sge { addr: 0x1800, len: 64 };

    /// Address, length and key.
    type Entry = (u64, u32, u32);

    /// The list as C would walk it: ids and entries.
    fn walk(chain: &mut Chain<ibv_recv_wr>) -> Vec<(u64, Vec<Entry>)> {
        let mut seen = Vec::new();
        let mut next = chain.link().unwrap_or(std::ptr::null_mut());
        while !next.is_null() {
            // SAFETY: the list was just linked; every entry list is as long as it says.
            let wr = unsafe { *next };
            let entry = |at| {
                // SAFETY: as above.
                let sge = unsafe { *wr.sg_list.add(at) };
                (sge.addr, sge.length, sge.lkey)
            };
            seen.push((wr.wr_id, (0..wr.num_sge as usize).map(entry).collect()));
            next = wr.next;
        }
        seen
    }

    #[test]
    fn requests_are_linked_in_order_with_their_own_entries() {
        let mut chain = Chain::new(3, 2);
        assert!(walk(&mut chain).is_empty());
        chain.push(10, &[SGE], &RANGE).unwrap();
        chain.push(11, &[], &RANGE).unwrap();
        chain.push(12, &[SGE, Sge { addr: 0x1fff, len: 1 }], &RANGE).unwrap();
        let first = vec![(0x1800, 64, 7)];
        let third = vec![(0x1800, 64, 7), (0x1fff, 1, 7)];
        let expected = vec![(10, first), (11, vec![]), (12, third)];
        assert_eq!(walk(&mut chain), expected);
        let mut moved = chain;
        assert_eq!(walk(&mut moved), expected, "a chain may move between calls");
        assert_eq!(moved.len(), 3);
        moved.clear();
        assert!(walk(&mut moved).is_empty());
        moved.push(13, &[], &RANGE).unwrap();
        assert_eq!(walk(&mut moved), vec![(13, vec![])], "the old tail is cut off");
    }

    #[test]
    fn what_does_not_fit_leaves_the_chain_as_it_was() {
        let mut chain = Chain::<ibv_recv_wr>::new(2, 1);
        chain.push(1, &[SGE], &RANGE).unwrap();
        let many = chain.push(2, &[SGE, SGE], &RANGE).err().unwrap();
        assert!(matches!(many, VerbsError::Limit { wanted: 2, limit: 1, .. }), "{many}");
        let outside = chain.push(2, &[Sge { addr: 0x1fff, len: 2 }], &RANGE).err().unwrap();
        assert!(matches!(outside, VerbsError::OutsideRegion { len: 2, .. }), "{outside}");
        assert_eq!(chain.len(), 1);
        chain.push(2, &[], &RANGE).unwrap();
        let full = chain.push(3, &[], &RANGE).err().unwrap();
        let queue = WorkQueue::Recv;
        assert!(matches!(full, VerbsError::ChainFull { depth: 2, queue: q } if q == queue));
        assert_eq!(walk(&mut chain).len(), 2);
    }

    #[test]
    fn after_a_partial_post_the_rest_waits() {
        let mut chain = Chain::<ibv_recv_wr>::new(4, 1);
        for wr_id in 1..=4 {
            chain.push(wr_id, &[SGE], &RANGE).unwrap();
        }
        let head = chain.link().unwrap();
        assert_eq!(chain.keep_from(head.wrapping_add(1)), 1);
        let ids: Vec<u64> = walk(&mut chain).into_iter().map(|(wr_id, _)| wr_id).collect();
        assert_eq!(ids, [2, 3, 4]);
        assert!(chain.push(5, &[], &RANGE).is_err(), "posted slots come back when all is posted");
        assert_eq!(chain.keep_from(head.wrapping_add(3)), 2);
        assert_eq!((chain.take_first(), chain.take_first()), (Some(4), None));
        chain.push(5, &[], &RANGE).unwrap();
        assert_eq!(chain.len(), 1);
    }

    #[test]
    fn when_no_request_is_named_all_count_as_posted() {
        let mut chain = Chain::<ibv_recv_wr>::new(2, 1);
        chain.push(1, &[], &RANGE).unwrap();
        chain.push(2, &[], &RANGE).unwrap();
        assert_eq!(chain.keep_from(std::ptr::null()), 2);
        assert_eq!((chain.len(), chain.take_first()), (0, None));
    }
}
