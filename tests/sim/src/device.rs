//! One device: what it has in flight, when that ends, and what it does to the media meanwhile.
//!
//! A device is as unhelpful as the specification lets it be. It completes in any order, some I/Os
//! only after a long time; it reads the memory of a write, sector by sector, at any time between
//! submission and completion; it fills the memory of a read with garbage first.

use std::ops::Range;
use std::sync::Arc;

use bdev::{Busy, Completion, Completions, Geometry, Io, Op};
use nvme_spec::nvm::DsmRange;
use nvme_spec::status::Status;

use crate::media::{Media, PAGE_BYTES};
use crate::random::Random;
use crate::store::{Fates, Store};

/// What the memory of a read holds until the device has written it.
const UNREAD: u8 = 0xEE;

/// What a device is to be like.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Size, in whole pages of 4 KiB.
    pub bytes: u64,
    /// 512 or 4096; also what is written all or nothing.
    pub block_bytes: u32,
    /// Completed writes may be lost at power loss until a flush.
    pub volatile_write_cache: bool,
    /// What a block holds after it was deallocated.
    pub deallocated: Deallocated,
    /// I/Os that a channel takes before it is busy.
    pub depth: usize,
    /// Every I/O takes so many polls; `None`: each takes its own time.
    pub latency: Option<u64>,
}

/// What a block holds after it was deallocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deallocated {
    /// What it held before.
    Kept,
    /// Anything.
    Garbage,
    /// Zeroes, and the geometry says so.
    Zeroes,
}

/// What goes wrong on a device: one read, write or flush in so many fails, 0 for none. A write that
/// fails has written some of its blocks.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// The bytes where reads and writes fail; `None` for anywhere.
    pub place: Option<Range<u64>>,
}

impl DeviceConfig {
    /// A device without faults that has a volatile cache and loses it.
    pub fn new(bytes: u64, block_bytes: u32) -> Self {
        Self {
            bytes,
            block_bytes,
            volatile_write_cache: true,
            deallocated: Deallocated::Garbage,
            depth: 64,
            latency: None,
        }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry {
            block_bytes: self.block_bytes,
            block_count: self.bytes / u64::from(self.block_bytes),
            volatile_write_cache: self.volatile_write_cache,
            deallocate_reads_zeroes: self.deallocated == Deallocated::Zeroes,
            atomic_write_blocks: 1,
            preferred_write_blocks: 1,
        }
    }
}

/// A device with its channels.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) config: DeviceConfig,
    pub(crate) store: Store,
    pub(crate) channels: Vec<Queue>,
    /// Completes everything at the next poll.
    pub(crate) hurries: bool,
    pub(crate) faults: Faults,
    /// The next write's number.
    next_write: u64,
}

/// What a channel has in flight.
#[derive(Debug)]
pub(crate) struct Queue {
    in_flight: Vec<InFlight>,
    polls: u64,
    /// One I/O in so many takes up to so many polls. Some cores see a slow device and some a fast
    /// one: what one of them began long ago is still in flight when another has moved on.
    slow_one_in: u64,
    slow_polls: u64,
}

#[derive(Debug)]
struct InFlight {
    io: Io,
    /// Number among the writes of the device.
    write: u64,
    submitted: u64,
    /// Completes when its channel has been polled so often.
    due: u64,
    /// What of a write has reached the cache, by sector; empty when all has.
    pending: Vec<u64>,
    transfer: Transfer,
}

/// When a device reads or writes the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transfer {
    AtSubmission,
    Piecewise,
    AtCompletion,
}

impl Device {
    pub(crate) fn new(config: &DeviceConfig, garbage: u64) -> Self {
        let media = Media::new(config.bytes, garbage);
        Self::over(config.clone(), Store::new(media, config.block_bytes))
    }

    /// A device over what another one left behind.
    pub(crate) fn over(config: DeviceConfig, store: Store) -> Self {
        let faults = Faults::default();
        Self { config, store, channels: Vec::new(), hurries: false, faults, next_write: 1 }
    }

    /// Whether a flush is in flight.
    pub(crate) fn is_flushing(&self) -> bool {
        let flights = self.channels.iter().flat_map(|queue| &queue.in_flight);
        flights.into_iter().any(|flight| flight.io.op == Op::Flush)
    }

    /// What the process's death would leave: everything completed, and of what is in flight
    /// whatever may be.
    pub(crate) fn after_process_death(&self, fates: &mut Fates) -> Store {
        let mut store = self.store.clone();
        self.finish_in_flight(&mut store, fates);
        store.end_process();
        store
    }

    /// What a loss of power would leave.
    pub(crate) fn after_power_loss(&self, fates: &mut Fates) -> Store {
        let mut store = self.store.clone();
        self.finish_in_flight(&mut store, fates);
        store.lose_power(fates);
        store
    }

    fn finish_in_flight(&self, store: &mut Store, fates: &mut Fates) {
        for queue in &self.channels {
            for flight in &queue.in_flight {
                let survivors = flight.pending.iter().filter(|_| fates.survives(flight.write));
                survivors.for_each(|&sector| flight.apply(store, sector));
            }
        }
    }

    /// Takes an I/O at a time.
    pub(crate) fn submit(
        &mut self,
        channel: usize,
        io: Io,
        now: u64,
        random: &mut Random,
    ) -> Result<(), Busy> {
        let queue = &mut self.channels[channel];
        let length = queue.in_flight.len();
        if length >= self.config.depth || (length > 0 && random.one_in(64)) {
            return Err(Busy);
        }
        let sectors = match io.op {
            Op::Write { .. } | Op::WriteZeroes { .. } => {
                (io.slba..io.slba + u64::from(io.block_count)).collect()
            }
            _ => Vec::new(),
        };
        let transfer = match random.below(4) {
            0 | 1 => Transfer::AtSubmission,
            2 => Transfer::Piecewise,
            _ => Transfer::AtCompletion,
        };
        let patience = match self.config.latency {
            _ if self.hurries => 0,
            Some(polls) => polls,
            None => queue.patience(io.op, random),
        };
        let (write, due) = (self.next_write, queue.polls + patience);
        self.next_write += 1;
        let mut flight = InFlight { io, write, submitted: now, due, pending: sectors, transfer };
        if let (Op::Read, Some(span)) = (io.op, io.buffer) {
            span.fill(UNREAD);
        }
        if flight.check(&self.config).is_err() {
            flight.pending.clear();
        } else if transfer == Transfer::AtSubmission {
            flight.transfer_all(&mut self.store);
        }
        queue.in_flight.push(flight);
        Ok(())
    }

    /// One turn of a channel at a time.
    pub(crate) fn poll(
        &mut self,
        channel: usize,
        now: &mut u64,
        random: &mut Random,
        done: &mut Completions,
        trace: &mut u64,
    ) {
        let Device { config, store, channels, faults, .. } = self;
        let queue = &mut channels[channel];
        queue.polls += 1;
        let mut ready: Vec<usize> = Vec::new();
        for (index, flight) in queue.in_flight.iter_mut().enumerate() {
            if flight.due <= queue.polls {
                ready.push(index);
            } else if flight.transfer == Transfer::Piecewise && random.one_in(4) {
                flight.transfer_one(store, random);
            }
        }
        random.shuffle(&mut ready);
        ready.truncate(done.room());
        for &index in &ready {
            let flight = &mut queue.in_flight[index];
            *now += 1;
            let status = flight.complete((config, faults), store, *now, random);
            done.push(Completion { tag: flight.io.tag, status });
            *trace = crate::random::mix(*trace ^ flight.write << 16 ^ u64::from(flight.io.tag));
        }
        ready.sort_unstable();
        for &index in ready.iter().rev() {
            queue.in_flight.swap_remove(index);
        }
    }

    /// A channel is closed with I/Os in flight: of each whatever may be is done.
    pub(crate) fn abandon(&mut self, channel: usize, random: &mut Random) {
        let mut fates = Fates::new(random.clone());
        for flight in std::mem::take(&mut self.channels[channel].in_flight) {
            let survivors = flight.pending.iter().filter(|_| fates.survives(flight.write));
            survivors.for_each(|&sector| flight.apply(&mut self.store, sector));
        }
    }
}

impl Queue {
    pub(crate) fn new(random: &mut Random) -> Self {
        let slow_one_in = *random.pick(&[4, 32, 128]);
        let slow_polls = *random.pick(&[100, 400, 1000]);
        Self { in_flight: Vec::new(), polls: 0, slow_one_in, slow_polls }
    }

    /// For how many polls an I/O is in flight: mostly few, sometimes very many.
    fn patience(&self, op: Op, random: &mut Random) -> u64 {
        if random.one_in(self.slow_one_in) {
            return random.below(self.slow_polls);
        }
        match random.below(8) {
            kind if op == Op::Flush => random.below(if kind == 0 { 1500 } else { 80 }),
            0 => random.below(40),
            1..=3 => random.below(6),
            _ => 0,
        }
    }
}

impl InFlight {
    fn check(&self, config: &DeviceConfig) -> Result<(), Status> {
        let blocks = config.bytes / u64::from(config.block_bytes);
        let data_bytes = match self.io.op {
            Op::Flush => return Ok(()),
            Op::Deallocate { ranges } => u64::from(ranges) * size_of::<DsmRange>() as u64,
            Op::WriteZeroes { .. } => 0,
            _ => u64::from(self.io.block_count) * u64::from(config.block_bytes),
        };
        let has_data = self.io.buffer.is_some_and(|span| u64::from(span.len()) >= data_bytes);
        assert!(has_data || data_bytes == 0, "an I/O without the memory for it: {:?}", self.io);
        let end = self.io.slba.checked_add(u64::from(self.io.block_count));
        let is_deallocate = matches!(self.io.op, Op::Deallocate { .. });
        if is_deallocate || end.is_some_and(|end| end <= blocks) {
            Ok(())
        } else {
            Err(Status::LBA_OUT_OF_RANGE.with_dnr())
        }
    }

    /// Everything that an I/O moves, at once.
    fn transfer_all(&mut self, store: &mut Store) {
        match self.io.op {
            Op::Read => {
                self.read(store);
            }
            Op::Write { .. } | Op::WriteZeroes { .. } if !self.pending.is_empty() => {
                let sector_bytes = store.sector_bytes();
                let mut data = vec![0; self.io.block_count as usize * sector_bytes as usize];
                if let (Op::Write { .. }, Some(span)) = (self.io.op, self.io.buffer) {
                    span.read(0, &mut data);
                }
                let data: Arc<[u8]> = data.into();
                for sector in self.pending.drain(..) {
                    let at = (sector - self.io.slba) as u32 * sector_bytes;
                    store.apply(self.write, sector, &data, at);
                }
            }
            _ => {}
        }
    }

    /// One sector of a write, any.
    fn transfer_one(&mut self, store: &mut Store, random: &mut Random) {
        if self.pending.is_empty() {
            return;
        }
        let sector = self.pending.swap_remove(random.below(self.pending.len() as u64) as usize);
        self.apply(store, sector);
    }

    /// A sector of a write, with what the host's memory holds now.
    fn apply(&self, store: &mut Store, sector: u64) {
        let sector_bytes = store.sector_bytes();
        let mut data = vec![0; sector_bytes as usize];
        if let (Op::Write { .. }, Some(span)) = (self.io.op, self.io.buffer) {
            span.read((sector - self.io.slba) as u32 * sector_bytes, &mut data);
        }
        store.apply(self.write, sector, &data.into(), 0);
    }

    fn read(&self, store: &Store) {
        let Some(span) = self.io.buffer else { return };
        let sector_bytes = store.sector_bytes();
        let (mut page, mut index) = ([0; PAGE_BYTES], 0);
        let sectors = PAGE_BYTES as u32 / sector_bytes;
        while index < self.io.block_count {
            let sector = self.io.slba + u64::from(index);
            let to_page_end = sectors - (sector % u64::from(sectors)) as u32;
            let count = to_page_end.min(self.io.block_count - index);
            let bytes = &mut page[..(count * sector_bytes) as usize];
            store.read(sector, bytes);
            span.write(index * sector_bytes, bytes);
            index += count;
        }
    }

    fn complete(
        &mut self,
        (config, faults): (&DeviceConfig, &Faults),
        store: &mut Store,
        now: u64,
        random: &mut Random,
    ) -> Status {
        if let Err(status) = self.check(config) {
            return status;
        }
        let sectors = self.io.slba..self.io.slba + u64::from(self.io.block_count);
        let fails = faults.meet(&self.io, config.block_bytes, random);
        match self.io.op {
            Op::Read if fails => return Status::UNRECOVERED_READ_ERROR,
            Op::Read if self.transfer != Transfer::AtSubmission => self.read(store),
            Op::Write { fua } | Op::WriteZeroes { fua, .. } => {
                if !fails {
                    self.transfer_all(store);
                }
                let stable = fua || !config.volatile_write_cache;
                store.complete(self.write, sectors, now, stable);
                if fails {
                    return Status::WRITE_FAULT;
                }
            }
            Op::Flush if fails => return Status::INTERNAL_ERROR,
            Op::Flush => store.flush(self.submitted),
            Op::Compare if !self.equals(store) => return Status::COMPARE_FAILURE.with_dnr(),
            Op::Deallocate { ranges } => self.deallocate(config, store, ranges, random),
            _ => {}
        }
        Status::SUCCESS
    }

    fn equals(&self, store: &Store) -> bool {
        let Some(span) = self.io.buffer else { return false };
        let sector_bytes = store.sector_bytes() as usize;
        let (mut ours, mut theirs) = (vec![0; sector_bytes], vec![0; sector_bytes]);
        (0..self.io.block_count).all(|index| {
            store.read(self.io.slba + u64::from(index), &mut ours);
            span.read(index * sector_bytes as u32, &mut theirs);
            ours == theirs
        })
    }

    fn deallocate(
        &self,
        config: &DeviceConfig,
        store: &mut Store,
        ranges: u16,
        random: &mut Random,
    ) {
        let Some(span) = self.io.buffer.filter(|_| config.deallocated != Deallocated::Kept) else {
            return;
        };
        let blocks = config.bytes / u64::from(config.block_bytes);
        let mut data = vec![0; config.block_bytes as usize];
        if config.deallocated == Deallocated::Garbage {
            data.chunks_mut(8).for_each(|word| word.copy_from_slice(&random.draw().to_le_bytes()));
        }
        let data: Arc<[u8]> = data.into();
        for index in 0..u32::from(ranges) {
            let range: DsmRange = span.read_obj(index * size_of::<DsmRange>() as u32);
            let start = range.slba.get().min(blocks);
            let end = start.saturating_add(u64::from(range.block_count.get())).min(blocks);
            (start..end).for_each(|sector| store.apply(self.write, sector, &data, 0));
        }
    }
}

impl Faults {
    fn meet(&self, io: &Io, block_bytes: u32, random: &mut Random) -> bool {
        let often = match io.op {
            Op::Read => self.reads,
            Op::Write { .. } | Op::WriteZeroes { .. } => self.writes,
            Op::Flush => self.flushes,
            _ => 0,
        };
        let first = io.slba * u64::from(block_bytes);
        let end = first + u64::from(io.block_count) * u64::from(block_bytes);
        let there = |place: &Range<u64>| place.start < end && first < place.end;
        let is_there = io.op == Op::Flush || self.place.as_ref().is_none_or(there);
        often > 0 && is_there && random.one_in(often)
    }
}
