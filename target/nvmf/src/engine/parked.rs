//! Requests of queues that hold as much memory as they may.
//!
//! A host that takes no responses, or sends no data for what it writes, keeps the buffers of those
//! commands. So the commands of one queue hold no more than a part of the memory that others have
//! left, and each such queue leaves the rest to all others. Its further requests wait here, apart
//! from the lines of the namespaces, where they would be in the way of others.

use std::collections::VecDeque;

use super::lines::List;
use super::request::RequestId;
use super::slab::Slab;

#[derive(Debug)]
pub(super) struct Parked {
    /// By queue index.
    lists: Box<[List]>,
    /// Queues with somebody in their list, the next to be looked at first.
    queues: VecDeque<u32>,
    count: usize,
}

impl Parked {
    pub(super) fn new(queues: usize) -> Self {
        Self {
            lists: vec![List::default(); queues].into(),
            queues: VecDeque::with_capacity(queues),
            count: 0,
        }
    }

    /// How many wait.
    #[inline]
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether somebody of this queue waits.
    #[inline]
    pub(super) fn has(&self, queue: u32) -> bool {
        !self.lists[queue as usize].is_empty()
    }

    pub(super) fn push(&mut self, slab: &mut Slab, queue: u32, id: RequestId) {
        let list = &mut self.lists[queue as usize];
        if list.is_empty() {
            self.queues.push_back(queue);
        }
        list.push_back(slab, id);
        self.count += 1;
    }

    /// Takes out the first of the next queue that is found good.
    pub(super) fn next(
        &mut self,
        slab: &mut Slab,
        good: impl Fn(&Slab, RequestId) -> bool,
    ) -> Option<RequestId> {
        for _ in 0..self.queues.len() {
            let queue = *self.queues.front()?;
            self.queues.rotate_left(1);
            if let Some(id) = self.lists[queue as usize].first()
                && good(slab, id)
            {
                self.remove(slab, queue, id);
                return Some(id);
            }
        }
        None
    }

    pub(super) fn remove(&mut self, slab: &mut Slab, queue: u32, id: RequestId) {
        let list = &mut self.lists[queue as usize];
        list.remove(slab, id);
        if list.is_empty() {
            self.queues.retain(|&other| other != queue);
        }
        self.count -= 1;
    }
}
