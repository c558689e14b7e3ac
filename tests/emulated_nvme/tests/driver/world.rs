//! A device under test, in simulated time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::{Arena, DmaSpan};
use emulated_nvme::{EmulatedNvme, Fault, Setup};
use nvme::{Command, Completion, Config, Health, IoQueuePair, NvmeDevice, NvmeError, Op};
use nvme_spec::status::Status;

pub const TICK: Duration = Duration::from_millis(10);

pub struct World {
    pub ssd: Arc<EmulatedNvme>,
    pub device: NvmeDevice<EmulatedNvme>,
    pub pairs: Vec<IoQueuePair<EmulatedNvme>>,
    pub arena: &'static Arena,
    pub now: Instant,
}

/// Brings a controller up in simulated time, or tells why it did not come up.
pub fn start(
    setup: Setup,
    config: Config,
    prepare: impl Fn(&EmulatedNvme),
) -> Result<World, String> {
    start_in(Arena::plain_pages(16 << 20).unwrap(), setup, config, prepare)
}

pub fn start_in(
    arena: &'static Arena,
    setup: Setup,
    config: Config,
    prepare: impl Fn(&EmulatedNvme),
) -> Result<World, String> {
    let ssd = Arc::new(EmulatedNvme::new(arena, setup));
    prepare(&ssd);
    let mut now = Instant::now();
    let began = now;
    let device = NvmeDevice::start(Arc::clone(&ssd), arena, config, now);
    let mut device = device.map_err(|error: NvmeError| error.to_string())?;
    while device.health() == Health::Recovering {
        now += TICK;
        device.poll(now);
        assert!(now - began < Duration::from_secs(30), "bring-up takes for ever");
    }
    if device.health() == Health::Failed {
        return Err(device.fault().map_or_else(String::new, ToString::to_string));
    }
    let pool = device.queues();
    let pairs = std::iter::from_fn(|| pool.take(device.namespaces())).collect();
    Ok(World { ssd, device, pairs, arena, now })
}

impl World {
    pub fn new(setup: Setup) -> Self {
        Self::with(setup, Config { cores: 2, queue_entries: 32, ..Config::default() })
    }

    pub fn with(setup: Setup, config: Config) -> Self {
        start(setup, config, |_| {}).unwrap()
    }

    pub fn memory(&self, bytes: usize) -> DmaSpan {
        self.arena.carve(bytes, 4096).unwrap()
    }

    /// One turn of everything: cores, control thread, controller.
    pub fn turn(&mut self) -> Vec<Completion> {
        self.now += TICK;
        let mut done = Vec::new();
        for pair in &mut self.pairs {
            pair.poll(self.now);
        }
        self.ssd.step();
        self.device.poll(self.now);
        for pair in &mut self.pairs {
            pair.poll(self.now);
            done.extend(std::iter::from_fn(|| pair.completed()));
        }
        done
    }

    /// Turns until `count` commands have ended, and how long that took.
    pub fn wait(&mut self, count: usize) -> (Vec<Completion>, Duration) {
        let (began, mut done) = (self.now, Vec::new());
        while done.len() < count {
            done.extend(self.turn());
            assert!(self.now - began < Duration::from_secs(40), "waited in vain: {done:?}");
        }
        (done, self.now - began)
    }

    pub fn turns(&mut self, time: Duration) -> Vec<Completion> {
        let until = self.now + time;
        let mut done = Vec::new();
        while self.now < until {
            done.extend(self.turn());
        }
        done
    }

    /// Submits a command that the controller holds.
    pub fn hold(&mut self, pair: usize, command: Command) {
        let held = self.ssd.held();
        self.ssd.inject(Fault::Hold);
        self.pairs[pair].submit(command).unwrap();
        self.pairs[pair].poll(self.now);
        self.ssd.step();
        assert_eq!(self.ssd.held(), held + 1);
    }

    /// One command on the first queue pair, to its end.
    pub fn run(&mut self, command: Command) -> Status {
        self.pairs[0].submit(command).unwrap();
        let (done, _) = self.wait(1);
        assert_eq!((done.len(), done[0].tag), (1, command.tag));
        done[0].status
    }

    pub fn assert_well(&mut self) {
        assert_eq!(self.ssd.violations(), Vec::<String>::new());
        assert_eq!(self.device.health(), Health::Live);
        let data = self.memory(512);
        data.fill(0x5A);
        assert_eq!(self.run(write(90, 7, 1, data)), Status::SUCCESS);
        data.fill(0);
        assert_eq!(self.run(read(91, 7, 1, data)), Status::SUCCESS);
        assert_eq!(data.read_obj::<u8>(511), 0x5A);
    }
}

pub fn command(op: Op, tag: u32, slba: u64, block_count: u32, data: Option<DmaSpan>) -> Command {
    Command { tag, nsid: 1, op, slba, block_count, data }
}

pub fn read(tag: u32, slba: u64, block_count: u32, data: DmaSpan) -> Command {
    command(Op::Read, tag, slba, block_count, Some(data))
}

pub fn write(tag: u32, slba: u64, block_count: u32, data: DmaSpan) -> Command {
    command(Op::Write { fua: false }, tag, slba, block_count, Some(data))
}

/// Bytes that tell where they belong.
pub fn pattern(span: DmaSpan, seed: u8) -> Vec<u8> {
    let bytes: Vec<u8> =
        (0..span.len()).map(|at| (at / 512) as u8 ^ (at % 251) as u8 ^ seed).collect();
    span.write(0, &bytes);
    bytes
}
