//! A pool that is open in a world, its lanes, and what every lane has open of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bdev::{Bdev, Completion, Io, Op};
use dma::DmaSpan;
use nvme_spec::status::Status;
use uuid::Uuid;
use volume::{
    Call, CreateOptions, Done, GiveUp, Lane, NewDevice, OpenOptions, PoolError, PoolInfo, Reply,
    VolumeError, VolumeHandle, VolumeInfo,
};

use crate::config::Config;
use crate::failure::Failure;
use crate::media::PAGE_BYTES;
use crate::memory::Memory;
use crate::random::Random;
use crate::spread::Spread;
use crate::world::World;

/// Bytes of a buffer, and of the largest I/O: four clusters may be touched.
pub(crate) const SLOT_BYTES: u32 = 160 << 10;
/// I/Os in flight.
pub(crate) const SLOTS: usize = 12;
/// The harness's memory, which is a power of two.
const SPAN_BYTES: usize = 2 << 20;
/// The owner's memory.
pub(crate) const OWNER_BYTES: usize = 4 << 20;
/// Polls without an end of anything after which something must be stuck.
const PATIENCE: u64 = 200_000;

const _: () = assert!(SLOTS * SLOT_BYTES as usize <= SPAN_BYTES);

/// See the module. The lanes come first, so that they are gone before their memory is.
pub(crate) struct Pool {
    lanes: Vec<Lane>,
    pub world: World,
    /// The pool's UUID, and its devices.
    pub uuid: Uuid,
    pub members: BTreeSet<String>,
    /// What is open, by name.
    pub objects: BTreeMap<String, Open>,
    next_call: u64,
    /// Polls since something ended, and in all: the time.
    quiet: u64,
    polls: u64,
    poll_time: Duration,
    begun: Instant,
    done: Vec<Done>,
    memory: Memory,
}

/// A volume or snapshot that every lane has open.
pub(crate) struct Open {
    pub handle: Arc<VolumeHandle>,
    /// The number that each lane knows it by.
    pub channels: Vec<u32>,
    pub in_flight: u32,
    /// It takes no I/O, because it is to be closed.
    pub closing: bool,
}

/// Makes a pool on the first devices of a world; its UUID.
pub(crate) fn create(world: &World, name: &str, config: &Config) -> Result<Uuid, Failure> {
    let mut memory = Memory::new(&[OWNER_BYTES], 4096);
    let journal_bytes = Some(config.journal_bytes);
    let options = CreateOptions { journal_bytes, force: true, created_s: 0 };
    let failed = |error: PoolError| Failure::Open { reason: error.to_string() };
    let (devices, pool) = (world.devices(), &mut memory.pools()[0]);
    let devices = &devices[..config.devices.len()];
    volume::pool::create(name, devices, &options, pool).map_err(failed)?;
    let labels = volume::pool::scan(devices, pool).map_err(failed)?;
    labels.first().map(|label| label.uuid).ok_or(Failure::Open { reason: "no label".to_owned() })
}

impl Pool {
    /// Opens the pool of a world, with its devices in any order: those whose labels say that they
    /// are.
    pub(crate) fn open(
        world: World,
        uuid: Uuid,
        random: &mut Random,
        config: &Config,
    ) -> Result<Self, Failure> {
        let mut memory = Memory::new(&[OWNER_BYTES], SPAN_BYTES);
        let mut bdevs: Vec<Arc<dyn Bdev>> = world.devices();
        let failed = |error: PoolError| Failure::Open { reason: error.to_string() };
        let mut owner = memory.pools().remove(0);
        let labels = volume::pool::scan(&bdevs, &mut owner).map_err(failed)?;
        let labels = labels.into_iter().filter(|label| label.uuid == uuid && label.member);
        let members: BTreeSet<String> = labels.map(|label| label.device).collect();
        bdevs.retain(|bdev| members.contains(bdev.name()));
        random.shuffle(&mut bdevs);
        let options = OpenOptions {
            lanes: config.lanes,
            memory: owner,
            give_up: GiveUp::None,
            planted: config.planted,
        };
        let lanes = volume::pool::open(&bdevs, options);
        let lanes = lanes.map_err(failed)?;
        let mut pool = Self {
            lanes,
            world,
            uuid,
            members,
            objects: BTreeMap::new(),
            next_call: 1,
            quiet: 0,
            polls: 0,
            // What has failed is tried again after a while.
            poll_time: Duration::from_micros(if config.faults.is_empty() { 1 } else { 100 }),
            begun: Instant::now(),
            done: Vec::new(),
            memory,
        };
        // A lane takes I/O from its first turn on.
        (0..pool.lanes()).for_each(|lane| _ = pool.turn(lane));
        Ok(pool)
    }

    pub(crate) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// The memory of one I/O.
    pub(crate) fn buffer(&self, slot: usize) -> DmaSpan {
        self.memory.span().subspan(slot as u32 * SLOT_BYTES, SLOT_BYTES)
    }

    /// One turn of a lane; what ended is in [`Pool::next_done`]. False when nothing has ended for
    /// so long that nothing will.
    pub(crate) fn turn(&mut self, lane: usize) -> bool {
        self.polls += 1;
        self.quiet += 1;
        let now = self.begun + self.poll_time * self.polls as u32;
        self.lanes[lane].poll(now, &mut self.done);
        if !self.done.is_empty() {
            self.quiet = 0;
        }
        self.quiet < PATIENCE
    }

    /// The next end of an I/O.
    pub(crate) fn next_done(&mut self) -> Option<Completion> {
        self.done.pop().map(|done| done.completion)
    }

    /// Lets an I/O go; whether it was taken.
    pub(crate) fn submit(&mut self, lane: usize, channel: u32, io: Io) -> bool {
        self.lanes[lane].submit(channel, io).is_ok()
    }

    /// Asks the owner; the number of the call.
    pub(crate) fn call(&mut self, call: Call) -> u64 {
        self.next_call += 1;
        self.lanes[0].call(self.next_call, call, 0);
        self.next_call
    }

    /// Lets a device come; the number of the call.
    pub(crate) fn add_device(&mut self, device: NewDevice) -> u64 {
        self.next_call += 1;
        self.lanes[0].add_device(self.next_call, device);
        self.next_call
    }

    /// The owner's next answer.
    pub(crate) fn next_reply(&mut self) -> Option<(u64, Result<Reply, VolumeError>)> {
        let reply = self.lanes[0].next_reply();
        if reply.is_some() {
            self.quiet = 0;
        }
        reply
    }

    /// Asks the owner and waits, while nothing else goes on.
    pub(crate) fn ask(&mut self, call: Call) -> Result<Reply, Failure> {
        let id = self.call(call.clone());
        for lane in (0..self.lanes.len()).cycle() {
            if !self.turn(lane) {
                break;
            }
            match self.next_reply() {
                Some((answered, Ok(reply))) if answered == id => return Ok(reply),
                Some((answered, Err(error))) if answered == id => {
                    let reason = format!("{call:?}: {error}");
                    return Err(Failure::Refused { reason });
                }
                Some(reply) => return Err(Failure::Reply { reply: format!("{reply:?}") }),
                None => {}
            }
        }
        Err(Failure::Stuck { waiting: format!("{call:?}") })
    }

    /// What the pool says of itself.
    pub(crate) fn info(&mut self) -> Result<PoolInfo, Failure> {
        match self.ask(Call::Info)? {
            Reply::Pool(info) => Ok(info),
            other => Err(Failure::Reply { reply: format!("{other:?}") }),
        }
    }

    /// `pool check`, which must find nothing.
    pub(crate) fn check(&mut self) -> Result<(), Failure> {
        match self.ask(Call::Check)? {
            Reply::Faults(faults) if faults.is_empty() => Ok(()),
            Reply::Faults(faults) => Err(Failure::Damaged { what: faults.join("; ") }),
            other => Err(Failure::Reply { reply: format!("{other:?}") }),
        }
    }

    /// Every lane takes I/O for it from now on.
    pub(crate) fn attach(&mut self, name: &str, handle: &Arc<VolumeHandle>) {
        let attach = |lane: &mut Lane| lane.attach(Arc::clone(handle));
        let channels = self.lanes.iter_mut().map(attach).collect();
        let handle = Arc::clone(handle);
        let open = Open { handle, channels, in_flight: 0, closing: false };
        self.objects.insert(name.to_owned(), open);
    }

    /// No lane does any more; its number.
    pub(crate) fn detach(&mut self, name: &str) -> Option<u32> {
        let open = self.objects.remove(name)?;
        for (lane, channel) in self.lanes.iter_mut().zip(&open.channels) {
            lane.detach(*channel);
        }
        Some(open.handle.id())
    }

    /// Opens everything that the pool has.
    pub(crate) fn open_all(&mut self) -> Result<Vec<VolumeInfo>, Failure> {
        let infos = match self.ask(Call::List)? {
            Reply::Volumes(infos) => infos,
            Reply::Done => Vec::new(),
            other => return Err(Failure::Reply { reply: format!("{other:?}") }),
        };
        for info in &infos {
            match self.ask(Call::Open(info.name.clone()))? {
                Reply::Handle(handle) => self.attach(&info.name, &handle),
                other => return Err(Failure::Reply { reply: format!("{other:?}") }),
            }
        }
        Ok(infos)
    }

    /// Reads all of a volume or snapshot while nothing else goes on.
    pub(crate) fn read_all(
        &mut self,
        name: &str,
        spread: Spread,
        mut handle: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let handle_of = &self.objects[name].handle;
        let real_size = handle_of.block_count() * u64::from(handle_of.block_bytes());
        let size = spread.model_size(real_size);
        let (mut next, mut page) = (0, [0; PAGE_BYTES]);
        while next < size {
            let part = spread.within_place(next..size.min(next + u64::from(SLOT_BYTES)));
            self.read(name, spread.real_range(&part))?;
            // Sizes of volumes are multiples of a page, and so is that of a buffer.
            for at in (0..(part.end - part.start) as u32).step_by(PAGE_BYTES) {
                self.buffer(0).read(at, &mut page);
                handle(&page)?;
            }
            if let Some(gap) = spread.gap_behind(next).filter(|gap| *gap < real_size) {
                self.read(name, gap..gap + PAGE_BYTES as u64)?;
                self.buffer(0).read(0, &mut page);
                if page != [0; PAGE_BYTES] {
                    return Err(Failure::Damaged { what: format!("{name} has bytes at {gap}") });
                }
            }
            next = part.end;
        }
        Ok(())
    }

    /// Reads these bytes into the first buffer, through any lane.
    fn read(&mut self, name: &str, bytes: Range<u64>) -> Result<(), Failure> {
        let open = &self.objects[name];
        let block_bytes = u64::from(open.handle.block_bytes());
        let lane = (bytes.start / u64::from(SLOT_BYTES)) as usize % open.channels.len();
        let channel = open.channels[lane];
        let (op, buffer) = (Op::Read, Some(self.buffer(0)));
        let block_count = ((bytes.end - bytes.start) / block_bytes) as u32;
        let io = Io { tag: 0, op, slba: bytes.start / block_bytes, block_count, buffer };
        let status = match self.submit(lane, channel, io) {
            true => self.wait(lane),
            false => None,
        };
        match status {
            Some(Status::SUCCESS) => Ok(()),
            other => {
                let what = format!("a read of bytes {bytes:?} of {name}");
                Err(Failure::Status { what, status: format!("{other:?}") })
            }
        }
    }

    /// The status of the one I/O in flight.
    fn wait(&mut self, lane: usize) -> Option<Status> {
        loop {
            let goes_on = self.turn(lane);
            if let Some(completion) = self.next_done() {
                return Some(completion.status);
            }
            if !goes_on {
                return None;
            }
        }
    }
}
