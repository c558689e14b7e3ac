//! Block devices to measure on: a slow one, one that counts, and one that is larger than memory.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bdev::{
    Bdev, BdevError, Busy, Channel, Completion, Completions, Geometry, Health, Io, Op, RamBdev,
};
use dma::{DmaSpan, Region};
use nvme_spec::status::Status;
use uuid::Uuid;

use crate::load::BLOCK;

/// Another device, whose I/Os end a fixed time after they were submitted, and are counted.
///
/// It takes any number at a time and has no volatile cache. `time` may be zero.
pub struct Slow {
    below: Arc<dyn Bdev>,
    time: Duration,
    written: Arc<AtomicU64>,
}

impl Slow {
    pub fn new(below: Arc<dyn Bdev>, time: Duration) -> Self {
        Self { below, time, written: Arc::default() }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Bdev for Slow {
    fn name(&self) -> &str {
        self.below.name()
    }

    fn kind(&self) -> &'static str {
        self.below.kind()
    }

    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn uuid(&self) -> Uuid {
        self.below.uuid()
    }

    fn health(&self) -> Health {
        self.below.health()
    }

    fn open_channel(&self, core: usize) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(SlowChannel {
            below: self.below.open_channel(core)?,
            block_bytes: self.below.geometry().block_bytes,
            time: self.time,
            written: Arc::clone(&self.written),
            due: VecDeque::new(),
            done: Completions::with_capacity(1 << 16),
        }))
    }
}

struct SlowChannel {
    below: Box<dyn Channel>,
    block_bytes: u32,
    time: Duration,
    written: Arc<AtomicU64>,
    /// When the I/Os in flight end, which they do in order.
    due: VecDeque<Instant>,
    done: Completions,
}

impl Channel for SlowChannel {
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        self.below.submit(io)?;
        self.due.push_back(Instant::now() + self.time);
        if matches!(io.op, Op::Write { .. }) {
            let bytes = u64::from(io.block_count) * u64::from(self.block_bytes);
            self.written.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    fn poll(&mut self, now: Instant, done: &mut Completions) {
        self.below.poll(now, &mut self.done);
        while done.room() > 0 && self.due.front().is_some_and(|due| *due <= now) {
            let Some(completion) = self.done.pop() else { return };
            self.due.pop_front();
            done.push(completion);
        }
    }
}

/// A device in memory with all of its memory taken, so that no first write pays for that.
pub fn ram(name: &str, bytes: u64, data: DmaSpan) -> anyhow::Result<Arc<dyn Bdev>> {
    let bdev = RamBdev::new(name, BLOCK, bytes / u64::from(BLOCK))?;
    let mut channel = bdev.open_channel(0)?;
    let mut done = Completions::with_capacity(1);
    data.clear();
    let blocks = u64::from(data.len() / BLOCK);
    for slba in (0..bytes / u64::from(BLOCK)).step_by(blocks as usize) {
        let block_count = blocks.min(bytes / u64::from(BLOCK) - slba) as u32;
        let op = Op::Write { fua: false };
        let io = Io { tag: 0, op, slba, block_count, buffer: Some(data) };
        channel.submit(io).ok().context("the device is busy")?;
        channel.poll(Instant::now(), &mut done);
        done.pop().context("a write did not end")?;
    }
    Ok(Arc::new(bdev))
}

/// A device of any size that keeps what is written from anywhere but the bench's own buffer: the
/// engine's metadata.
///
/// The bench's own data goes to a window of memory, at its offset modulo the window's size, and
/// comes from there; so it costs what it would cost in memory, and is not what was written.
pub struct Thin {
    name: String,
    geometry: Geometry,
    uuid: Uuid,
    store: Arc<Store>,
}

struct Store {
    data: DmaSpan,
    window: Region,
    pages: Mutex<Pages>,
}

struct Pages {
    index: HashMap<u64, u32>,
    slots: Region,
}

/// Metadata that a thin device keeps at most. Only what is written takes memory.
const PAGES_BYTES: usize = 8 << 30;

impl Thin {
    pub fn new(name: &str, bytes: u64, data: DmaSpan, window_bytes: u64) -> anyhow::Result<Self> {
        let geometry = Geometry {
            block_bytes: BLOCK,
            block_count: bytes / u64::from(BLOCK),
            volatile_write_cache: false,
            deallocate_reads_zeroes: false,
            atomic_write_blocks: 1,
            preferred_write_blocks: 1,
        };
        let window = Region::new(window_bytes as usize)?;
        for offset in (0..window.bytes()).step_by(data.len() as usize) {
            let bytes = (window.bytes() - offset).min(data.len() as usize) as u32;
            window.write(offset, data.subspan(0, bytes));
        }
        let pages = Pages { index: HashMap::new(), slots: Region::new(PAGES_BYTES)? };
        let store = Arc::new(Store { data, window, pages: Mutex::new(pages) });
        Ok(Self { name: name.to_owned(), geometry, uuid: Uuid::new_v4(), store })
    }

    /// Bytes of memory that the device's metadata takes.
    pub fn memory_bytes(&self) -> u64 {
        let pages = self.store.pages();
        (pages.index.len() * BLOCK as usize + pages.index.capacity() * 17) as u64
    }
}

impl Bdev for Thin {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "thin"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn health(&self) -> Health {
        Health::Live
    }

    fn open_channel(&self, _core: usize) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(ThinChannel { store: Arc::clone(&self.store), done: VecDeque::new() }))
    }
}

struct ThinChannel {
    store: Arc<Store>,
    done: VecDeque<Completion>,
}

impl Channel for ThinChannel {
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        let status = match (io.op, io.buffer) {
            (Op::Flush, _) => Status::SUCCESS,
            (Op::Read | Op::Write { .. }, Some(buffer)) => {
                let buffer = buffer.subspan(0, io.block_count * BLOCK);
                self.store.transfer(matches!(io.op, Op::Read), io.slba, buffer);
                Status::SUCCESS
            }
            _ => Status::INVALID_OPCODE.with_dnr(),
        };
        self.done.push_back(Completion { tag: io.tag, status });
        Ok(())
    }

    fn poll(&mut self, _now: Instant, done: &mut Completions) {
        while done.room() > 0
            && let Some(completion) = self.done.pop_front()
        {
            done.push(completion);
        }
    }
}

impl Store {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transfer(&self, read: bool, slba: u64, buffer: DmaSpan) {
        let own = self.data.addr()..self.data.addr() + u64::from(self.data.len());
        if own.contains(&buffer.addr()) {
            let blocks = self.window.bytes() as u64 / u64::from(BLOCK);
            for block in 0..buffer.len() / BLOCK {
                let part = buffer.subspan(block * BLOCK, BLOCK);
                let at = (slba + u64::from(block)) % blocks * u64::from(BLOCK);
                match read {
                    true => self.window.read(at as usize, part),
                    false => self.window.write(at as usize, part),
                }
            }
            return;
        }
        let Pages { index, slots } = &mut *self.pages();
        for block in 0..buffer.len() / BLOCK {
            let part = buffer.subspan(block * BLOCK, BLOCK);
            let page = slba + u64::from(block);
            let next = index.len() as u32;
            let slot = match read {
                true => index.get(&page).copied(),
                false => Some(*index.entry(page).or_insert(next)),
            };
            let offset = slot.map(|slot| slot as usize * BLOCK as usize);
            match (read, offset) {
                (true, Some(offset)) => slots.read(offset, part),
                (false, Some(offset)) => slots.write(offset, part),
                (_, None) => part.clear(),
            }
        }
    }
}
