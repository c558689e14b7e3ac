//! One connection: its queue pair, its memory, and what it has in flight.

use std::collections::VecDeque;

use dma::{DmaBuffer, DmaSpan, Pool};
use nvmf::engine::{QueueId, RequestId};
use verbs::{RdmaQp, Sge, VerbsError};

use crate::limits::IN_CAPSULE_BYTES;
use crate::wr_id::{Kind, WrId};
use crate::{CQE_BYTES, Event, SQE_BYTES};

/// One capsule slot: its memory, and what is in it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) connection: usize,
    pub(crate) capsule: DmaSpan,
    /// In-capsule data, on I/O queues.
    pub(crate) page: Option<DmaSpan>,
    pub(crate) response: DmaSpan,
    /// Its response has not completed yet.
    pub(crate) responds: bool,
    /// Bytes of a capsule that arrived meanwhile.
    pub(crate) early: Option<u32>,
}

impl Slot {
    /// The capsule of `bytes`, at least those of a command, that is in the slot.
    #[inline]
    pub(crate) fn capsule_event(&self, id: RequestId, bytes: u32) -> Event {
        let extra = (bytes - SQE_BYTES).min(IN_CAPSULE_BYTES);
        let data = self.page.filter(|_| extra > 0).map(|page| page.subspan(0, extra));
        Event::Capsule { id, sqe: self.capsule.read_obj(0), data }
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) queue: QueueId,
    pub(crate) key: u64,
    /// RDMA READs in flight, and how many may be.
    pub(crate) reads_in_flight: u32,
    pub(crate) read_limit: u32,
    pub(crate) waiting_reads: VecDeque<RequestId>,
    /// The latest response, held back until it is known whether it is the last of its chain, with
    /// the host's key that it invalidates.
    pub(crate) held_response: Option<(RequestId, Option<u32>)>,
    /// Responses posted and not completed, in order.
    pub(crate) sent: VecDeque<RequestId>,
    pub(crate) touched: bool,
    pub(crate) broken: bool,
    /// Calls that posted sends and are in the carrier's counters already.
    send_calls_counted: u64,
    qp: Option<RdmaQp>,
    ids: Vec<RequestId>,
    /// Capsules and responses of all slots.
    capsules: Option<DmaBuffer>,
    pages: Vec<DmaBuffer>,
}

impl Connection {
    pub(crate) fn new(
        queue: QueueId,
        key: u64,
        qp: Option<RdmaQp>,
        read_limit: u32,
        ids: &[RequestId],
    ) -> Self {
        Self {
            queue,
            key,
            reads_in_flight: 0,
            read_limit,
            waiting_reads: VecDeque::with_capacity(ids.len()),
            held_response: None,
            sent: VecDeque::with_capacity(ids.len()),
            touched: false,
            broken: false,
            send_calls_counted: 0,
            qp,
            ids: ids.to_vec(),
            capsules: None,
            pages: Vec::new(),
        }
    }

    /// Takes memory for every slot; `false` when there is too little, and then what was taken is
    /// returned by [`Connection::free`].
    pub(crate) fn allocate(
        &mut self,
        memory: &mut Pool,
        slots: &mut [Option<Slot>],
        in_capsule: bool,
    ) -> bool {
        let per_slot = SQE_BYTES + CQE_BYTES;
        let Some(capsules) = memory.alloc(per_slot * self.ids.len() as u32) else {
            return false;
        };
        let all = capsules.span();
        self.capsules = Some(capsules);
        for (at, id) in (0u32..).zip(&self.ids) {
            let mut page = None;
            if in_capsule {
                let Some(buffer) = memory.alloc(IN_CAPSULE_BYTES) else {
                    return false;
                };
                page = Some(buffer.span());
                self.pages.push(buffer);
            }
            let slot = all.subspan(at * per_slot, per_slot);
            slots[id.0 as usize] = Some(Slot {
                connection: self.queue.index(),
                capsule: slot.subspan(0, SQE_BYTES),
                page,
                response: slot.subspan(SQE_BYTES, CQE_BYTES),
                responds: false,
                early: None,
            });
        }
        true
    }

    pub(crate) fn free(&mut self, memory: &mut Pool, slots: &mut [Option<Slot>]) {
        for id in &self.ids {
            slots[id.0 as usize] = None;
        }
        self.pages.drain(..).chain(self.capsules.take()).for_each(|buffer| memory.free(buffer));
    }

    /// Queues a receive for a slot; `false` when the queue pair refuses.
    #[inline]
    pub(crate) fn receive(&mut self, id: RequestId, slot: &Slot) -> bool {
        let wr_id = WrId::new(Kind::Receive, self.queue, id).to_bits();
        let Some(qp) = &mut self.qp else { return true };
        match slot.page {
            Some(page) => qp.recv(wr_id, &[sge(slot.capsule), sge(page)]),
            None => qp.recv(wr_id, &[sge(slot.capsule)]),
        }
        .is_ok()
    }

    /// Queues an RDMA READ of the host's memory.
    #[inline]
    pub(crate) fn read(&mut self, id: RequestId, to: DmaSpan, address: u64, key: u32) -> bool {
        let wr_id = WrId::new(Kind::Read, self.queue, id).to_bits();
        self.reads_in_flight += 1;
        let Some(qp) = &mut self.qp else { return true };
        qp.read(wr_id, &[sge(to)], address, key, true).is_ok()
    }

    /// Queues an RDMA WRITE to the host's memory.
    #[inline]
    pub(crate) fn write(&mut self, id: RequestId, from: DmaSpan, address: u64, key: u32) -> bool {
        let wr_id = WrId::new(Kind::Write, self.queue, id).to_bits();
        let Some(qp) = &mut self.qp else { return true };
        qp.write(wr_id, &[sge(from)], address, key, false).is_ok()
    }

    /// Queues the response that was held back, if any.
    #[inline]
    pub(crate) fn send_held_response(&mut self, slots: &[Option<Slot>], signaled: bool) -> bool {
        let Some((id, invalidate)) = self.held_response.take() else { return true };
        let (Some(qp), Some(slot)) = (&mut self.qp, &slots[id.0 as usize]) else { return true };
        self.sent.push_back(id);
        let wr_id = WrId::new(Kind::Send, self.queue, id).to_bits();
        let inline = qp.limits().max_inline_bytes >= CQE_BYTES;
        qp.send(wr_id, &[sge(slot.response)], invalidate, signaled, inline).is_ok()
    }

    /// Posts what was queued.
    pub(crate) fn flush(&mut self) -> Result<(), VerbsError> {
        self.qp.as_mut().map_or(Ok(()), RdmaQp::flush)
    }

    /// Calls that posted sends since this was last asked for.
    pub(crate) fn new_send_calls(&mut self) -> u64 {
        let Some(qp) = &self.qp else { return 0 };
        let calls = qp.counters().send_calls;
        calls - std::mem::replace(&mut self.send_calls_counted, calls)
    }

    pub(crate) fn take_qp(&mut self) -> Option<RdmaQp> {
        self.broken = true;
        self.qp.take()
    }

    pub(crate) fn has_qp(&self) -> bool {
        self.qp.is_some()
    }
}

fn sge(span: DmaSpan) -> Sge {
    Sge { addr: span.addr(), len: span.len() }
}
