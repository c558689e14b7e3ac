//! The devices of a pool: labels, how a pool is given up, and how its devices change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bdev::{Bdev, RamBdev};
use dma::{Arena, Pool};
use volume::format::PoolState;
use volume::{
    Call, CreateOptions, CreateVolume, Label, Lane, OpenOptions, PoolError, Reply, VolumeError,
    pool,
};

const MIB: u64 = 1 << 20;

/// Two lanes to a pool on some of several devices.
struct Rig {
    arena: &'static Arena,
    bdevs: Vec<Arc<dyn Bdev>>,
    lanes: Vec<Lane>,
}

impl Rig {
    /// Devices of so many MiB; the pool is on the first few.
    fn new(mib: &[u64], members: usize) -> Self {
        let arena = Arena::plain_pages(64 << 20).unwrap();
        let make = |(index, mib): (usize, &u64)| -> Arc<dyn Bdev> {
            Arc::new(RamBdev::new(&format!("r{index}"), 4096, mib * MIB / 4096).unwrap())
        };
        let bdevs: Vec<_> = mib.iter().enumerate().map(make).collect();
        let mut rig = Self { arena, bdevs, lanes: Vec::new() };
        rig.create(members, false).unwrap();
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

    fn open(&mut self, bdevs: &[Arc<dyn Bdev>]) -> Result<(), PoolError> {
        self.lanes.clear();
        let options = OpenOptions { lanes: 2, memory: self.memory(), force: false, planted: None };
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
