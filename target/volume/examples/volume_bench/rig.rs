//! A pool with one lane, and calls that are waited for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bdev::{Bdev, Op};
use dma::{Arena, DmaSpan, Pool as Memory};
use rand::seq::SliceRandom as _;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng as _;
use volume::{Call, CreateOptions, CreateVolume, GiveUp, Lane, OpenOptions, PoolInfo, Reply, pool};

use crate::load::{BLOCK, Load, OfVolume, Run, on_core, run};

/// Bytes of the writes that map a volume.
const MAP_BYTES: u32 = 1 << 20;
/// I/Os in flight of those.
const MAP_DEPTH: u32 = 4;

/// Memory that all parts of the bench share.
pub struct Rig {
    arena: &'static Arena,
    /// What I/Os write and read into.
    pub data: DmaSpan,
    rng: Xoshiro256PlusPlus,
}

impl Rig {
    pub fn new() -> anyhow::Result<Self> {
        let arena = Arena::plain_pages(512 << 20)?;
        let data = arena.carve((MAP_DEPTH * MAP_BYTES) as usize, 4096)?;
        for at in (0..data.len()).step_by(8) {
            data.write_obj(at, &u64::from(at).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
        Ok(Self { arena, data, rng: Xoshiro256PlusPlus::seed_from_u64(3) })
    }

    /// Numbers below `count` in random order.
    pub fn shuffled(&mut self, count: u32) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..count).collect();
        numbers.shuffle(&mut self.rng);
        numbers
    }

    /// So many numbers below `below`, each as likely as any other.
    pub fn random(&mut self, count: usize, below: u32) -> Vec<u32> {
        use rand::RngExt as _;
        (0..count).map(|_| self.rng.random_range(0..below)).collect()
    }

    /// A new order of the same numbers.
    pub fn shuffle(&mut self, numbers: &mut [u32]) {
        numbers.shuffle(&mut self.rng);
    }

    /// A pool on these devices, whatever they hold.
    pub fn create(&self, bdevs: &[Arc<dyn Bdev>]) -> anyhow::Result<Pool> {
        let mut memory = Memory::new(self.arena, 1 << 20, 1 << 20)?;
        let options = CreateOptions { force: true, ..CreateOptions::default() };
        pool::create("p", bdevs, &options, &mut memory)?;
        self.open(bdevs)
    }

    /// Opens a pool.
    pub fn open(&self, bdevs: &[Arc<dyn Bdev>]) -> anyhow::Result<Pool> {
        let memory = Memory::new(self.arena, 4 << 20, 1 << 20)?;
        let options = OpenOptions { lanes: 1, memory, give_up: GiveUp::Wrong, planted: None };
        let lane = pool::open(bdevs, options)?.pop().context("no lane")?;
        Ok(Pool { lane, open: Vec::new() })
    }
}

/// What a call cost: time of the core.
pub type Cost = Duration;

/// An open pool.
pub struct Pool {
    pub lane: Lane,
    /// Channels and volumes.
    open: Vec<(u32, u32)>,
}

impl Pool {
    pub fn call(&mut self, call: Call) -> anyhow::Result<(Reply, Cost)> {
        let busy = on_core()?;
        self.lane.call(1, call, 1_700_000_000);
        let end = Instant::now() + Duration::from_secs(100);
        let mut done = Vec::new();
        loop {
            let now = Instant::now();
            self.lane.poll(now, &mut done);
            if let Some((_, reply)) = self.lane.next_reply() {
                return Ok((reply?, on_core()? - busy));
            }
            ensure!(now < end, "no reply");
        }
    }

    /// Makes a volume of blocks of 4 KiB.
    pub fn volume(&mut self, name: &str, bytes: u64) -> anyhow::Result<()> {
        self.call(Call::Create(CreateVolume {
            name: name.to_owned(),
            bytes,
            block_bytes: BLOCK,
            reserve: false,
            labels: Default::default(),
            description: String::new(),
        }))?;
        Ok(())
    }

    pub fn attach(&mut self, name: &str) -> anyhow::Result<u32> {
        match self.call(Call::Open(name.to_owned()))?.0 {
            Reply::Handle(handle) => {
                let volume = handle.id();
                let channel = self.lane.attach(handle);
                self.open.push((channel, volume));
                Ok(channel)
            }
            reply => bail!("{reply:?} for an open"),
        }
    }

    pub fn close(&mut self, channel: u32) -> anyhow::Result<()> {
        self.lane.detach(channel);
        let at = self.open.iter().position(|(other, _)| *other == channel);
        let (_, volume) = self.open.swap_remove(at.context("it is not open")?);
        self.call(Call::Close(volume))?;
        Ok(())
    }

    pub fn snapshot(&mut self, volume: &str, name: &str) -> anyhow::Result<Cost> {
        let members = vec![(volume.to_owned(), name.to_owned())];
        Ok(self.call(Call::Snapshot(members))?.1)
    }

    pub fn delete(&mut self, name: &str) -> anyhow::Result<()> {
        self.call(Call::Delete(name.to_owned()))?;
        Ok(())
    }

    pub fn info(&mut self) -> anyhow::Result<PoolInfo> {
        match self.call(Call::Info)?.0 {
            Reply::Pool(info) => Ok(info),
            reply => bail!("{reply:?} for an info"),
        }
    }

    /// Turns until nothing is left of what went before: mappings are closed, releases free.
    pub fn rest(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(100);
        let mut quiet_since = Instant::now();
        let mut done = Vec::new();
        while quiet_since.elapsed() < Duration::from_millis(150) {
            for _ in 0..10_000 {
                if self.lane.poll(Instant::now(), &mut done) > 0 {
                    quiet_since = Instant::now();
                }
            }
            if self.info()?.releasing_bytes > 0 {
                quiet_since = Instant::now();
            }
            ensure!(Instant::now() < end, "the pool does not come to rest");
        }
        Ok(())
    }

    pub fn run(&mut self, channel: u32, load: &Load<'_>) -> anyhow::Result<Run> {
        let lane = &mut self.lane;
        run(&mut OfVolume { lane, channel, done: Vec::with_capacity(1024) }, load)
    }

    /// Writes all of a volume in order.
    pub fn map(&mut self, channel: u32, bytes: u64, data: DmaSpan) -> anyhow::Result<Run> {
        let places: Vec<u32> = (0..(bytes / u64::from(MAP_BYTES)) as u32).collect();
        let op = Op::Write { fua: false };
        let load = Load { op, places: &places, blocks: MAP_BYTES / BLOCK, depth: MAP_DEPTH, data };
        let run = self.run(channel, &load)?;
        self.rest()?;
        Ok(run)
    }
}
