//! A pool on RAM devices with one lane, and I/O that is waited for.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bdev::{
    Bdev, BdevError, Busy, Channel, Completion, Completions, Geometry, Health, Io, Op, RamBdev,
};
use dma::{Arena, DmaSpan, Pool};
use nvme_spec::status::Status;
use uuid::Uuid;
use volume::pool::Report;
use volume::{
    Call, CreateOptions, CreateVolume, GiveUp, Lane, OpenOptions, PoolError, Reply, VolumeError,
    VolumeHandle, pool,
};

const IO_BYTES: u32 = 4 << 20;

/// A RAM device, one block of which may not read.
struct Worn {
    ram: RamBdev,
    unreadable: Arc<AtomicU64>,
}

struct WornChannel {
    ram: Box<dyn Channel>,
    unreadable: Arc<AtomicU64>,
    failed: Vec<u32>,
}

impl Bdev for Worn {
    fn name(&self) -> &str {
        self.ram.name()
    }

    fn kind(&self) -> &'static str {
        self.ram.kind()
    }

    fn geometry(&self) -> Geometry {
        self.ram.geometry()
    }

    fn uuid(&self) -> Uuid {
        self.ram.uuid()
    }

    fn health(&self) -> Health {
        self.ram.health()
    }

    fn open_channel(&self, core: usize) -> Result<Box<dyn Channel>, BdevError> {
        let (ram, unreadable) = (self.ram.open_channel(core)?, Arc::clone(&self.unreadable));
        Ok(Box::new(WornChannel { ram, unreadable, failed: Vec::new() }))
    }
}

impl Channel for WornChannel {
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        let blocks = io.slba..io.slba + u64::from(io.block_count);
        if io.op == Op::Read && blocks.contains(&self.unreadable.load(Ordering::Relaxed)) {
            self.failed.push(io.tag);
            return Ok(());
        }
        self.ram.submit(io)
    }

    fn poll(&mut self, now: Instant, done: &mut Completions) {
        while done.room() > 0
            && let Some(tag) = self.failed.pop()
        {
            done.push(Completion { tag, status: Status::UNRECOVERED_READ_ERROR });
        }
        self.ram.poll(now, done);
    }
}

pub struct Rig {
    arena: &'static Arena,
    bdevs: Vec<Arc<dyn Bdev>>,
    /// A block of all devices that does not read.
    pub unreadable: Arc<AtomicU64>,
    lane: Option<Lane>,
    data: DmaSpan,
    open: Vec<(u32, Arc<VolumeHandle>)>,
}

impl Rig {
    pub fn new(sizes: &[u64]) -> Self {
        Self::with_blocks(sizes, 4096)
    }

    pub fn with_blocks(sizes: &[u64], block_bytes: u32) -> Self {
        let arena = Arena::plain_pages(512 << 20).unwrap();
        let unreadable = Arc::new(AtomicU64::new(u64::MAX));
        let make = |(index, bytes): (usize, &u64)| -> Arc<dyn Bdev> {
            let blocks = bytes / u64::from(block_bytes);
            let ram = RamBdev::new(&format!("r{index}"), block_bytes, blocks).unwrap();
            Arc::new(Worn { ram, unreadable: Arc::clone(&unreadable) })
        };
        let bdevs: Vec<Arc<dyn Bdev>> = sizes.iter().enumerate().map(make).collect();
        let mut memory = Pool::new(arena, 1 << 20, 1 << 20).unwrap();
        pool::create("p", &bdevs, &CreateOptions::default(), &mut memory).unwrap();
        let data = arena.carve(IO_BYTES as usize, 4096).unwrap();
        let mut rig = Self { arena, bdevs, unreadable, lane: None, data, open: Vec::new() };
        rig.reopen();
        rig
    }

    /// Nothing is lost or counted wrongly.
    pub fn check(&mut self) {
        let Ok(Reply::Faults(faults)) = self.call(Call::Check) else { panic!() };
        assert!(faults.is_empty(), "{faults:#?}");
    }

    /// Nothing is wrong but that these are damaged.
    pub fn check_but_for(&mut self, damaged: &[String]) {
        let Ok(Reply::Faults(faults)) = self.call(Call::Check) else { panic!() };
        assert_eq!(faults.len(), damaged.len(), "{faults:#?}");
    }

    /// Ends the pool as a process would that is killed, and opens it again.
    pub fn reopen(&mut self) {
        if self.lane.is_some() {
            self.check();
        }
        self.lane = None;
        self.open.clear();
        let memory = Pool::new(self.arena, 4 << 20, 1 << 20).unwrap();
        let options = OpenOptions { lanes: 1, memory, give_up: GiveUp::None, planted: None };
        self.lane = pool::open(&self.bdevs, options).unwrap().pop();
        self.check();
    }

    /// Ends the pool; what the first device holds.
    pub fn image(&mut self) -> Vec<u8> {
        self.lane = None;
        let bytes = self.bdevs[0].geometry().block_count as usize * 4096;
        let mut image = vec![0; bytes];
        for (block, page) in image.chunks_mut(4096).enumerate() {
            self.raw(Op::Read, block as u64);
            self.data.read(0, page);
        }
        image
    }

    /// Puts an image on the first device.
    pub fn put_image(&mut self, image: &[u8]) {
        self.lane = None;
        self.open.clear();
        for (block, page) in image.chunks(4096).enumerate() {
            self.data.write(0, page);
            self.raw(Op::Write { fua: false }, block as u64);
        }
    }

    /// Checks the pool, which is not open.
    pub fn check_closed(&mut self) -> Result<Report, PoolError> {
        assert!(self.lane.is_none(), "the pool is open");
        pool::check(&self.bdevs, Pool::new(self.arena, 2 << 20, 1 << 20).unwrap())
    }

    /// Puts an image on the first device and opens the pool; false: it does not open.
    pub fn open_image(&mut self, image: &[u8], give_up: GiveUp) -> bool {
        self.try_image(image, give_up).is_ok()
    }

    /// The same, with the reason.
    pub fn try_image(&mut self, image: &[u8], give_up: GiveUp) -> Result<(), PoolError> {
        self.put_image(image);
        let memory = Pool::new(self.arena, 2 << 20, 1 << 20).unwrap();
        let options = OpenOptions { lanes: 1, memory, give_up, planted: None };
        self.lane = pool::open(&self.bdevs, options)?.pop();
        Ok(())
    }

    fn raw(&mut self, op: Op, block: u64) {
        let mut channel = self.bdevs[0].open_channel(0).unwrap();
        let io = Io { tag: 0, op, slba: block, block_count: 1, buffer: Some(self.data) };
        channel.submit(io).unwrap();
        channel.poll(Instant::now(), &mut bdev::Completions::with_capacity(1));
    }

    fn lane(&mut self) -> &mut Lane {
        self.lane.as_mut().unwrap()
    }

    pub fn idle(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.lane().poll(Instant::now(), &mut Vec::new());
        }
    }

    pub fn call(&mut self, call: Call) -> Result<Reply, VolumeError> {
        self.lane().call(1, call, 1_700_000_000);
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            self.lane().poll(Instant::now(), &mut Vec::new());
            if let Some((id, reply)) = self.lane().next_reply() {
                assert_eq!(id, 1);
                return reply;
            }
            assert!(Instant::now() < end, "no reply");
        }
    }

    pub fn create(&mut self, name: &str, bytes: u64, block_bytes: u32) {
        self.try_create(name, bytes, block_bytes, false).unwrap();
    }

    pub fn try_create(
        &mut self,
        name: &str,
        bytes: u64,
        block_bytes: u32,
        reserve: bool,
    ) -> Result<Reply, VolumeError> {
        self.call(Call::Create(CreateVolume {
            name: name.to_owned(),
            bytes,
            block_bytes,
            reserve,
            labels: Default::default(),
            description: String::new(),
        }))
    }

    pub fn snapshot(&mut self, volume: &str, name: &str) {
        self.call(Call::Snapshot(vec![(volume.to_owned(), name.to_owned())])).unwrap();
    }

    pub fn free(&mut self) -> u64 {
        let Ok(Reply::Pool(info)) = self.call(Call::Info) else { panic!() };
        info.free_bytes
    }

    pub fn open(&mut self, name: &str) -> u32 {
        let Ok(Reply::Handle(handle)) = self.call(Call::Open(name.to_owned())) else { panic!() };
        let channel = self.lane().attach(Arc::clone(&handle));
        self.open.push((channel, handle));
        channel
    }

    pub fn close(&mut self, channel: u32) {
        let at = self.open.iter().position(|(other, _)| *other == channel).unwrap();
        let (_, handle) = self.open.swap_remove(at);
        self.lane().detach(channel);
        self.call(Call::Close(handle.id())).unwrap();
    }

    fn io(&mut self, channel: u32, op: Op, byte: u64, bytes: u64) -> Status {
        let (_, handle) = self.open.iter().find(|(other, _)| *other == channel).unwrap();
        let block = u64::from(handle.block_bytes());
        let buffer = (!matches!(op, Op::WriteZeroes { .. } | Op::Flush)).then_some(self.data);
        let (slba, block_count) = (byte / block, (bytes / block) as u32);
        self.lane().submit(channel, Io { tag: 7, op, slba, block_count, buffer }).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        let mut done = Vec::new();
        while done.is_empty() {
            self.lane().poll(Instant::now(), &mut done);
            assert!(Instant::now() < end, "{op:?} at {byte} does not end");
        }
        assert_eq!((done.len(), done[0].channel, done[0].completion.tag), (1, channel, 7));
        done[0].completion.status
    }

    pub fn write(&mut self, channel: u32, byte: u64, bytes: &[u8]) -> Status {
        self.data.write(0, bytes);
        self.io(channel, Op::Write { fua: false }, byte, bytes.len() as u64)
    }

    /// Writes a block of whatever is in the buffer at each of these bytes, all at once; how many
    /// were taken.
    pub fn write_blocks(&mut self, channel: u32, bytes: impl Iterator<Item = u64>) -> usize {
        let (mut begun, mut done) = (0, Vec::new());
        for (tag, byte) in (0..).zip(bytes) {
            let (op, slba, buffer) = (Op::Write { fua: false }, byte / 4096, Some(self.data));
            self.lane().submit(channel, Io { tag, op, slba, block_count: 1, buffer }).unwrap();
            begun += 1;
        }
        let end = Instant::now() + Duration::from_secs(20);
        while done.len() < begun {
            self.lane().poll(Instant::now(), &mut done);
            assert!(Instant::now() < end, "{} of {begun} writes end", done.len());
        }
        done.iter().filter(|done| done.completion.status.is_success()).count()
    }

    /// A write of whatever is in the buffer.
    pub fn write_bytes(&mut self, channel: u32, byte: u64, bytes: u64) -> Status {
        self.io(channel, Op::Write { fua: false }, byte, bytes)
    }

    pub fn read(&mut self, channel: u32, byte: u64, bytes: usize) -> Vec<u8> {
        self.data.fill(0xEE);
        assert_eq!(self.io(channel, Op::Read, byte, bytes as u64), Status::SUCCESS);
        let mut read = vec![0; bytes];
        self.data.read(0, &mut read);
        read
    }

    pub fn write_zeroes(&mut self, channel: u32, byte: u64, bytes: u64) -> Status {
        self.io(channel, Op::WriteZeroes { deallocate: true, fua: false }, byte, bytes)
    }

    pub fn deallocate(&mut self, channel: u32, ranges: &[(u64, u64)]) -> Status {
        let (_, handle) = self.open.iter().find(|(other, _)| *other == channel).unwrap();
        let block = u64::from(handle.block_bytes());
        for (index, (byte, bytes)) in ranges.iter().enumerate() {
            let at = 16 * index as u32;
            self.data.write_obj(at, &0u32);
            self.data.write_obj(at + 4, &((bytes / block) as u32));
            self.data.write_obj(at + 8, &(byte / block));
        }
        self.io(channel, Op::Deallocate { ranges: ranges.len() as u16 }, 0, 0)
    }
}
