//! One core's channels to the devices of a pool.

use std::collections::VecDeque;
use std::time::Instant;

use bdev::{Channel, Completion, Completions, Io, Op};
use dma::DmaSpan;
use nvme_spec::status::Status;

use crate::limits::{CLUSTER_BYTES, DEVICE_SHIFT, LANE_REQUESTS, MAX_DEVICES};

/// A place in the pool: a cluster and a byte in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub cluster: u32,
    pub offset: u32,
}

impl Place {
    /// Number of its device.
    #[inline]
    pub(crate) fn device(self) -> usize {
        (self.cluster >> DEVICE_SHIFT) as usize
    }

    /// Byte on its device.
    #[inline]
    pub(crate) fn byte(self) -> u64 {
        let cluster = self.cluster & ((1 << DEVICE_SHIFT) - 1);
        u64::from(cluster) * u64::from(CLUSTER_BYTES) + u64::from(self.offset)
    }
}

/// Who waits for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A request of the lane.
    Request(u32),
    /// A write of the owner.
    Write(u32),
    /// What the owner reads to fill the rest of a block.
    Fill(u32),
    /// A copy of a journal block.
    Journal(u64),
    /// A flush for closing.
    Close,
    /// Pages of a checkpoint, by buffer; its flushes.
    Checkpoint(u32),
    /// Labels of a device that comes.
    Label,
    /// What is moved from a device that goes.
    Move(u32),
}

struct Device {
    channel: Box<dyn Channel>,
    block_bytes: u32,
    volatile: bool,
    /// Taken from us, not yet by the channel.
    backlog: VecDeque<Io>,
}

/// Channels, and who waits for what. I/Os beyond what a channel takes wait here, in order.
///
/// The tag of an I/O is the number of the request that is all of it, or from `LANE_REQUESTS` on the
/// place of its token.
pub(crate) struct Devices {
    list: Vec<Option<Device>>,
    tokens: Vec<Option<Token>>,
    vacant: Vec<u32>,
    in_flight: Vec<u32>,
    completions: Completions,
}

impl Devices {
    pub(crate) fn new() -> Self {
        Self {
            list: Vec::new(),
            tokens: Vec::new(),
            vacant: Vec::new(),
            in_flight: vec![0; MAX_DEVICES],
            completions: Completions::with_capacity(64),
        }
    }

    pub(crate) fn add(
        &mut self,
        index: usize,
        channel: Box<dyn Channel>,
        block_bytes: u32,
        volatile: bool,
    ) {
        let backlog = VecDeque::new();
        if self.list.len() <= index {
            self.list.resize_with(index + 1, || None);
        }
        self.list[index] = Some(Device { channel, block_bytes, volatile, backlog });
    }

    /// Lets a device go, which nobody uses. False: an I/O on it has not ended yet.
    pub(crate) fn remove(&mut self, index: usize) -> bool {
        let Some(device) = &mut self.list[index] else { return true };
        device.volatile = false;
        let is_idle = self.in_flight[index] == 0;
        if is_idle {
            self.list[index] = None;
        }
        is_idle
    }

    /// Submits an I/O on `bytes` at `place`; multiples of the device's block.
    #[inline]
    pub(crate) fn submit(
        &mut self,
        op: Op,
        place: Place,
        bytes: u32,
        buffer: Option<DmaSpan>,
        token: Token,
    ) {
        let place_of_token = self.vacant.pop().unwrap_or_else(|| {
            self.tokens.push(None);
            self.tokens.len() as u32 - 1
        });
        self.tokens[place_of_token as usize] = Some(token);
        self.send(op, place, bytes, buffer, LANE_REQUESTS as u32 + place_of_token);
    }

    /// The same for a request of the lane that is one piece.
    #[inline]
    pub(crate) fn submit_whole(
        &mut self,
        op: Op,
        place: Place,
        bytes: u32,
        buffer: DmaSpan,
        slot: u32,
    ) {
        debug_assert!(slot < LANE_REQUESTS as u32);
        self.send(op, place, bytes, Some(buffer), slot);
    }

    #[inline]
    fn send(&mut self, op: Op, place: Place, bytes: u32, buffer: Option<DmaSpan>, tag: u32) {
        let index = place.device();
        let Some(Some(device)) = self.list.get_mut(index) else {
            unreachable!("a map names device {index}, which the pool does not have")
        };
        let shift = device.block_bytes.trailing_zeros();
        let (slba, block_count) = (place.byte() >> shift, bytes >> shift);
        let io = Io { tag, op, slba, block_count, buffer };
        self.in_flight[index] += 1;
        if !device.backlog.is_empty() || device.channel.submit(io).is_err() {
            device.backlog.push_back(io);
        }
    }

    /// Flushes those devices that have to be for what completed on them to be durable; says how
    /// many.
    pub(crate) fn flush(&mut self, token: Token) -> u32 {
        (0..self.list.len()).map(|index| self.flush_one(index, token)).sum()
    }

    /// The same of one device.
    pub(crate) fn flush_one(&mut self, index: usize, token: Token) -> u32 {
        let volatile = self.list[index].as_ref().is_some_and(|device| device.volatile);
        if volatile {
            let place = Place { cluster: (index as u32) << DEVICE_SHIFT, offset: 0 };
            self.submit(Op::Flush, place, 0, None, token);
        }
        u32::from(volatile)
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.iter().all(|count| *count == 0)
    }

    /// Turns every channel once; what has completed is appended to `done`.
    #[inline]
    pub(crate) fn poll(&mut self, now: Instant, done: &mut Vec<(Token, Status)>) {
        for index in 0..self.list.len() {
            let Some(device) = &mut self.list[index] else { continue };
            if self.in_flight[index] == 0 {
                continue;
            }
            while let Some(io) = device.backlog.front() {
                if device.channel.submit(*io).is_err() {
                    break;
                }
                device.backlog.pop_front();
            }
            device.channel.poll(now, &mut self.completions);
            while let Some(Completion { tag, status }) = self.completions.pop() {
                let token = match tag.checked_sub(LANE_REQUESTS as u32) {
                    None => Token::Request(tag),
                    Some(place) => {
                        let token = self.tokens[place as usize].take();
                        self.vacant.push(place);
                        let Some(token) = token else { unreachable!("nobody waits for {tag}") };
                        token
                    }
                };
                self.in_flight[index] -= 1;
                done.push((token, status));
            }
        }
    }
}
