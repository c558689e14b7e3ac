//! The devices of a pool: labels, how a pool is given up, and how its devices change.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bdev::{Bdev, Io, Op, RamBdev};
use dma::{Arena, DmaSpan, Pool};
use nvme_spec::status::Status;
use volume::format::PoolState;
use volume::{
    Call, CreateOptions, CreateVolume, GiveUp, Label, Lane, OpenOptions, PoolError, PoolInfo,
    Reply, VolumeError, pool,
};

const MIB: u64 = 1 << 20;

/// Two lanes to a pool on some of several devices.
struct Rig {
    arena: &'static Arena,
    bdevs: Vec<Arc<dyn Bdev>>,
    lanes: Vec<Lane>,
    data: DmaSpan,
}

impl Rig {
    /// Devices of so many MiB; the pool is on the first few.
    fn new(mib: &[u64], members: usize) -> Self {
        let arena = Arena::plain_pages(256 << 20).unwrap();
        let make = |(index, mib): (usize, &u64)| -> Arc<dyn Bdev> {
            Arc::new(RamBdev::new(&format!("r{index}"), 4096, mib * MIB / 4096).unwrap())
        };
        let bdevs: Vec<_> = mib.iter().enumerate().map(make).collect();
        let data = arena.carve(4 * MIB as usize, 4096).unwrap();
        let mut rig = Self { arena, bdevs, lanes: Vec::new(), data };
        if members > 0 {
            rig.create(members, false).unwrap();
        }
        rig
    }

    fn memory(&self) -> Pool {
        Pool::new(self.arena, 4 << 20, 1 << 20).unwrap()
    }

    fn create(&mut self, members: usize, force: bool) -> Result<(), PoolError> {
        let options = CreateOptions { force, ..CreateOptions::default() };
        pool::create("p", &self.bdevs[..members], &options, &mut self.memory())
    }

    fn labels(&self) -> Vec<Label> {
        pool::scan(&self.bdevs, &mut self.memory()).unwrap()
    }

    /// What the labels say of the pool.
    fn state(&self) -> PoolState {
        self.labels().iter().find(|label| label.member).unwrap().state
    }

    /// Opens the pool on the devices that say they are its own, as a daemon does. What was open is
    /// gone as if the process had been killed.
    fn reopen(&mut self) -> Result<(), PoolError> {
        let labels = self.labels().into_iter();
        let members = labels.filter(|label| label.member && label.state != PoolState::Destroyed);
        let members: Vec<String> = members.map(|label| label.device).collect();
        let bdevs = self.bdevs.iter().filter(|bdev| members.iter().any(|m| m == bdev.name()));
        self.open(&bdevs.cloned().collect::<Vec<_>>())
    }

    /// The same with the first devices alone.
    fn reopen_only(&mut self, members: usize) -> Result<(), PoolError> {
        self.open(&self.bdevs.clone()[..members])
    }

    fn open(&mut self, bdevs: &[Arc<dyn Bdev>]) -> Result<(), PoolError> {
        self.lanes.clear();
        let options =
            OpenOptions { lanes: 2, memory: self.memory(), give_up: GiveUp::Wrong, planted: None };
        self.lanes = pool::open(bdevs, options)?;
        Ok(())
    }

    fn wait(&mut self) -> Result<Reply, VolumeError> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            for lane in &mut self.lanes {
                lane.poll(Instant::now(), &mut Vec::new());
            }
            if let Some((_, reply)) = self.lanes[0].next_reply() {
                return reply;
            }
            assert!(Instant::now() < end, "no reply");
        }
    }

    fn call(&mut self, call: Call) -> Result<Reply, VolumeError> {
        self.lanes[0].call(1, call, 0);
        self.wait()
    }

    fn make(&mut self, name: &str, mib: u64) {
        let create = CreateVolume {
            name: name.to_owned(),
            bytes: mib * MIB,
            block_bytes: 4096,
            reserve: false,
            labels: Default::default(),
            description: String::new(),
        };
        self.call(Call::Create(create)).unwrap();
    }
}

#[test]
fn a_pool_says_whether_it_was_given_up_in_order() {
    let mut rig = Rig::new(&[4, 4, 4], 3);
    assert_eq!(rig.state(), PoolState::Exported, "nobody has it yet");
    rig.reopen().unwrap();
    assert_eq!(rig.state(), PoolState::Open);
    rig.make("a", 1);
    rig.call(Call::Export).unwrap();
    rig.lanes.clear();
    assert_eq!(rig.state(), PoolState::Exported);
    rig.reopen().unwrap();
    assert_eq!(rig.state(), PoolState::Open, "before anything is served");
    let Ok(Reply::Volumes(volumes)) = rig.call(Call::List) else { panic!() };
    assert_eq!(volumes.len(), 1);
    rig.reopen().unwrap();
    assert_eq!(rig.state(), PoolState::Open, "nobody has closed it");
}

#[test]
fn every_device_knows_as_much_as_the_first() {
    let mut rig = Rig::new(&[4, 4, 4], 3);
    rig.reopen().unwrap();
    rig.lanes.clear();
    for bdev in rig.bdevs.clone() {
        let labels = pool::scan(&[bdev], &mut rig.memory()).unwrap();
        assert_eq!((labels[0].state, labels[0].devices), (PoolState::Open, 3));
    }
}

#[test]
fn a_destroyed_pool_is_gone_and_its_devices_are_free() {
    let mut rig = Rig::new(&[4, 4, 4], 3);
    rig.reopen().unwrap();
    rig.make("a", 1);
    rig.lanes.clear();
    assert!(matches!(rig.create(3, false), Err(PoolError::Member { .. })));
    pool::destroy(&rig.bdevs, &mut rig.memory()).unwrap();
    assert_eq!(rig.state(), PoolState::Destroyed);
    let refused = rig.open(&rig.bdevs.clone());
    assert!(matches!(refused, Err(PoolError::Damaged { .. })), "{refused:?}");
    rig.create(2, false).unwrap();
    rig.reopen().unwrap();
    let Ok(Reply::Volumes(volumes)) = rig.call(Call::List) else { panic!() };
    assert_eq!(volumes.len(), 0);
}

/// A channel to a volume on each of the lanes.
struct Opened(Vec<u32>);

impl Rig {
    fn open_volume(&mut self, name: &str) -> Opened {
        let Ok(Reply::Handle(handle)) = self.call(Call::Open(name.to_owned())) else { panic!() };
        Opened(self.lanes.iter_mut().map(|lane| lane.attach(Arc::clone(&handle))).collect())
    }

    fn io(&mut self, volume: &Opened, op: Op, byte: u64, bytes: u32) -> Status {
        let (slba, block_count) = (byte / 4096, bytes / 4096);
        let io = Io { tag: 7, op, slba, block_count, buffer: Some(self.data) };
        let lane = (slba % 2) as usize;
        while self.lanes[lane].submit(volume.0[lane], io).is_err() {
            self.turn(&mut Vec::new());
        }
        let end = Instant::now() + Duration::from_secs(20);
        let mut done = Vec::new();
        while done.is_empty() {
            self.turn(&mut done);
            assert!(Instant::now() < end, "{op:?} at {byte} does not end");
        }
        done[0].completion.status
    }

    fn turn(&mut self, done: &mut Vec<volume::Done>) {
        self.lanes.iter_mut().for_each(|lane| _ = lane.poll(Instant::now(), done));
    }

    fn write(&mut self, volume: &Opened, byte: u64, bytes: u32, value: u8) -> Status {
        self.data.fill(value);
        self.io(volume, Op::Write { fua: false }, byte, bytes)
    }

    fn write_zeroes(&mut self, volume: &Opened, byte: u64, bytes: u32) {
        let op = Op::WriteZeroes { deallocate: true, fua: false };
        assert_eq!(self.io(volume, op, byte, bytes), Status::SUCCESS);
    }

    /// The value that all of these bytes have.
    fn read(&mut self, volume: &Opened, byte: u64, bytes: u32) -> u8 {
        self.data.fill(0xEE);
        assert_eq!(self.io(volume, Op::Read, byte, bytes), Status::SUCCESS);
        let mut read = vec![0; bytes as usize];
        self.data.read(0, &mut read);
        assert!(read.iter().all(|value| *value == read[0]), "all of {byte}");
        read[0]
    }

    fn add(&mut self, device: usize, force: bool) -> Result<Reply, VolumeError> {
        let uuid = self.info().uuid;
        let bdev = Arc::clone(&self.bdevs[device]);
        let prepared = pool::prepare_device(&bdev, uuid, 2, force, &mut self.memory()).unwrap();
        self.lanes[0].add_device(1, prepared);
        self.wait()
    }

    fn remove(&mut self, device: &str) -> Result<Reply, VolumeError> {
        self.call(Call::Remove(device.to_owned()))?;
        self.call(Call::AwaitRemoval)
    }

    fn info(&mut self) -> PoolInfo {
        let Ok(Reply::Pool(info)) = self.call(Call::Info) else { panic!() };
        info
    }

    fn check(&mut self) {
        let Ok(Reply::Faults(faults)) = self.call(Call::Check) else { panic!() };
        assert!(faults.is_empty(), "{faults:#?}");
    }

    fn devices(&mut self) -> Vec<(String, u64)> {
        let devices = self.info().devices.into_iter();
        devices.map(|device| (device.name, device.bytes / MIB)).collect()
    }
}

fn names(devices: &[(&str, u64)]) -> Vec<(String, u64)> {
    devices.iter().map(|(name, mib)| ((*name).to_owned(), *mib)).collect()
}

#[test]
fn a_device_comes_to_a_pool_that_is_full_and_is_there_after_the_end() {
    let mut rig = Rig::new(&[4, 4], 1);
    rig.reopen().unwrap();
    rig.make("a", 16);
    let a = rig.open_volume("a");
    let mut written = 0;
    while rig.write(&a, written * MIB, MIB as u32, 1) == Status::SUCCESS {
        written += 1;
    }
    let free = rig.info().free_bytes;
    let Ok(Reply::Pool(info)) = rig.add(1, false) else { panic!() };
    assert!(info.free_bytes >= free + 3 * MIB);
    assert_eq!(rig.devices(), names(&[("r0", 4), ("r1", 4)]));
    for at in 0..written + 3 {
        assert_eq!(rig.write(&a, at * MIB, MIB as u32, 2), Status::SUCCESS, "{at}");
    }
    rig.check();
    rig.reopen().unwrap();
    rig.check();
    assert_eq!(rig.devices(), names(&[("r0", 4), ("r1", 4)]));
    let a = rig.open_volume("a");
    for at in 0..written + 3 {
        assert_eq!(rig.read(&a, at * MIB, MIB as u32), 2, "{at}");
    }
    rig.lanes.clear();
    let missing = rig.reopen_only(1);
    assert!(matches!(missing, Err(PoolError::Missing { index: 1, .. })), "{missing:?}");
}

#[test]
fn what_is_on_a_device_is_not_overwritten_unless_forced() {
    let mut rig = Rig::new(&[4, 4, 4], 1);
    pool::create("q", &rig.bdevs[1..2], &CreateOptions::default(), &mut rig.memory()).unwrap();
    rig.reopen_only(1).unwrap();
    let uuid = rig.info().uuid;
    let bdev = Arc::clone(&rig.bdevs[1]);
    let refused = pool::prepare_device(&bdev, uuid, 2, false, &mut rig.memory());
    assert!(matches!(refused, Err(PoolError::Member { .. })));
    rig.add(1, true).unwrap();
    assert_eq!(rig.devices(), names(&[("r0", 4), ("r1", 4)]));
}

#[test]
fn a_device_with_smaller_blocks_comes_and_one_with_larger_blocks_does_not() {
    let mut rig = Rig::new(&[4], 1);
    rig.bdevs.push(Arc::new(RamBdev::new("r1", 512, 4 * MIB / 512).unwrap()));
    rig.reopen_only(1).unwrap();
    rig.add(1, false).unwrap();
    let mut small = Rig::new(&[4], 1);
    small.bdevs = vec![
        Arc::new(RamBdev::new("r0", 512, 4 * MIB / 512).unwrap()),
        Arc::new(RamBdev::new("r1", 4096, 4 * MIB / 4096).unwrap()),
    ];
    small.create(1, false).unwrap();
    small.reopen_only(1).unwrap();
    assert!(matches!(small.add(1, false), Err(VolumeError::Device { .. })));
}

#[test]
fn a_device_goes_and_takes_nothing_along() {
    for device in ["r0", "r1", "r2"] {
        let mut rig = Rig::new(&[8, 8, 8], 3);
        rig.reopen().unwrap();
        rig.make("a", 8);
        let a = rig.open_volume("a");
        for at in 0..5 {
            rig.write(&a, at * MIB, MIB as u32, 1);
        }
        rig.call(Call::Snapshot(vec![("a".into(), "s".into())])).unwrap();
        rig.call(Call::Clone { snapshot: "s".into(), name: "c".into(), read_only: false }).unwrap();
        let (s, c) = (rig.open_volume("s"), rig.open_volume("c"));
        for at in 0..40 {
            rig.write(&a, at * 128 * 1024, 4096, 2);
            rig.write(&c, at * 128 * 1024 + 8192, 4096, 3);
        }
        rig.call(Call::Checkpoint).unwrap();
        rig.remove(device).unwrap();
        rig.check();
        let left: Vec<_> = ["r0", "r1", "r2"].into_iter().filter(|name| *name != device).collect();
        assert_eq!(rig.devices().into_iter().map(|d| d.0).collect::<Vec<_>>(), left);
        let holds = |rig: &mut Rig, [a, s, c]: [&Opened; 3]| {
            for at in 0..40 {
                let byte = at * 128 * 1024;
                assert_eq!(rig.read(a, byte, 4096), 2);
                assert_eq!(rig.read(s, byte, 4096), 1);
                assert_eq!(rig.read(c, byte + 8192, 4096), 3);
                assert_eq!(rig.read(c, byte + 12288, 4096), 1);
            }
        };
        holds(&mut rig, [&a, &s, &c]);
        assert_eq!(rig.write(&a, 4096, 4096, 9), Status::SUCCESS);
        rig.reopen().unwrap();
        rig.check();
        let opened = ["a", "s", "c"].map(|name| rig.open_volume(name));
        holds(&mut rig, [&opened[0], &opened[1], &opened[2]]);
        assert_eq!(rig.read(&opened[0], 4096, 4096), 9);
        let label = rig.labels().into_iter().find(|label| label.device == device).unwrap();
        assert!(!label.member, "what is on it does not count");
        // Its number is given again.
        let at = rig.bdevs.iter().position(|bdev| bdev.name() == device).unwrap();
        rig.add(at, false).unwrap();
        rig.check();
        assert_eq!(rig.devices().len(), 3);
    }
}

#[test]
fn a_device_with_both_copies_of_the_journal_goes() {
    let mut rig = Rig::new(&[8, 8], 1);
    rig.reopen_only(1).unwrap();
    rig.make("a", 4);
    let a = rig.open_volume("a");
    rig.write(&a, 0, 4 * MIB as u32, 1);
    rig.add(1, false).unwrap();
    rig.remove("r0").unwrap();
    assert_eq!(rig.devices(), names(&[("r1", 8)]));
    assert!(rig.info().devices[0].journal);
    rig.write(&a, MIB, 4096, 2);
    rig.check();
    rig.reopen().unwrap();
    let a = rig.open_volume("a");
    assert_eq!((rig.read(&a, 0, MIB as u32), rig.read(&a, MIB, 4096)), (1, 2));
}

#[test]
fn a_device_stays_where_the_others_lack_room_or_when_its_removal_is_cancelled() {
    let mut rig = Rig::new(&[8, 4], 2);
    rig.reopen().unwrap();
    let error = rig.remove("r7").unwrap_err();
    assert!(error.to_string().contains("no such device"), "{error}");
    rig.make("a", 8);
    let a = rig.open_volume("a");
    rig.write(&a, 0, 4 * MIB as u32, 1);
    rig.write(&a, 4 * MIB, 2 * MIB as u32, 1);
    let error = rig.remove("r0").unwrap_err();
    assert!(error.to_string().contains("bytes are missing"), "{error}");
    rig.write_zeroes(&a, 2 * MIB, 4 * MIB as u32);
    rig.call(Call::Remove("r1".into())).unwrap();
    let error = rig.call(Call::Remove("r1".into())).unwrap_err();
    assert!(error.to_string().contains("just now"), "{error}");
    rig.call(Call::CancelRemoval("r1".into())).unwrap();
    let error = rig.call(Call::AwaitRemoval).unwrap_err();
    assert!(error.to_string().contains("cancelled"), "{error}");
    rig.check();
    assert_eq!(rig.devices().len(), 2);
    assert_eq!(rig.info().removal, None);
    assert_eq!(rig.write(&a, 0, 2 * MIB as u32, 2), Status::SUCCESS);
    rig.remove("r1").unwrap();
    assert_eq!(rig.read(&a, 0, 2 * MIB as u32), 2);
    let error = rig.remove("r0").unwrap_err();
    assert!(error.to_string().contains("the only one"), "{error}");
}

#[test]
fn a_removal_is_given_up_before_an_overwrite_finds_no_room() {
    let mut rig = Rig::new(&[8, 8, 8], 2);
    rig.reopen().unwrap();
    rig.make("a", 16);
    let a = rig.open_volume("a");
    let mut written = 0;
    while rig.info().free_bytes > 10 * MIB {
        assert_eq!(rig.write(&a, written, 65536, 1), Status::SUCCESS);
        written += 65536;
    }
    rig.call(Call::Checkpoint).unwrap();
    rig.call(Call::Remove("r0".into())).unwrap();
    let mut overwritten = 0;
    for round in 2..5 {
        for at in (0..written).step_by(65536) {
            assert_eq!(rig.write(&a, at, 65536, round), Status::SUCCESS, "{at}");
            overwritten += 1;
        }
    }
    let removed = rig.call(Call::AwaitRemoval);
    println!("{overwritten} overwrites, {removed:?}");
    rig.check();
    rig.reopen().unwrap();
    let a = rig.open_volume("a");
    for at in (0..written).step_by(65536) {
        assert_eq!(rig.read(&a, at, 65536), 4, "{at}");
    }
}

/// A device that becomes larger.
struct Growing {
    ram: RamBdev,
    blocks: AtomicU64,
}

impl Bdev for Growing {
    fn name(&self) -> &str {
        self.ram.name()
    }

    fn kind(&self) -> &'static str {
        self.ram.kind()
    }

    fn geometry(&self) -> bdev::Geometry {
        let block_count = self.blocks.load(Ordering::Relaxed);
        bdev::Geometry { block_count, ..self.ram.geometry() }
    }

    fn uuid(&self) -> uuid::Uuid {
        self.ram.uuid()
    }

    fn health(&self) -> bdev::Health {
        self.ram.health()
    }

    fn open_channel(&self, core: usize) -> Result<Box<dyn bdev::Channel>, bdev::BdevError> {
        self.ram.open_channel(core)
    }
}

#[test]
fn a_device_that_has_grown_is_used_to_its_end() {
    let mut rig = Rig::new(&[], 0);
    let growing = Growing {
        ram: RamBdev::new("r0", 4096, 16 * MIB / 4096).unwrap(),
        blocks: AtomicU64::new(4 * MIB / 4096),
    };
    let growing = Arc::new(growing);
    rig.bdevs.push(Arc::clone(&growing) as Arc<dyn Bdev>);
    rig.create(1, false).unwrap();
    rig.reopen().unwrap();
    let grow = |rig: &mut Rig, mib: u64| rig.call(Call::Grow(vec![("r0".into(), mib * MIB)]));
    grow(&mut rig, 3).unwrap();
    assert_eq!(rig.devices(), names(&[("r0", 4)]), "they only grow");
    growing.blocks.store(16 * MIB / 4096, Ordering::Relaxed);
    grow(&mut rig, 16).unwrap();
    assert_eq!(rig.devices(), names(&[("r0", 16)]));
    rig.make("a", 16);
    let a = rig.open_volume("a");
    for at in 0..10 {
        assert_eq!(rig.write(&a, at * MIB, MIB as u32, 1), Status::SUCCESS);
    }
    rig.reopen().unwrap();
    assert_eq!(rig.devices(), names(&[("r0", 16)]));
    rig.check();
    rig.lanes.clear();
    growing.blocks.store(4 * MIB / 4096, Ordering::Relaxed);
    assert!(matches!(rig.reopen(), Err(PoolError::Device { .. })), "it has shrunk");
}
