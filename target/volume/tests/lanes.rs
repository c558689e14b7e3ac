//! Two lanes on two threads: both write blocks of the same clusters while snapshots are taken,
//! checked and deleted. What the simulator interleaves turn by turn runs here at the same time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bdev::{Bdev, Io, Op, RamBdev};
use dma::{Arena, DmaSpan, Pool};
use volume::{
    Call, CreateOptions, CreateVolume, Done, GiveUp, Lane, OpenOptions, Reply, VolumeHandle, pool,
};

const BLOCKS: u64 = 1024;
const DEPTH: u32 = 16;
const TIME: Duration = Duration::from_secs(3);

/// Which versions of each block have been sent, and acknowledged. A version is what is in it.
struct Versions {
    sent: Vec<AtomicU64>,
    acknowledged: Vec<AtomicU64>,
}

impl Versions {
    fn new() -> Self {
        let zeroes = || (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
        Self { sent: zeroes(), acknowledged: zeroes() }
    }

    fn read(list: &[AtomicU64]) -> Vec<u64> {
        list.iter().map(|version| version.load(Ordering::SeqCst)).collect()
    }
}

/// One thread's load: blocks of one parity, so that it knows what it has to read.
struct Load {
    channel: u32,
    parity: u64,
    versions: Arc<Versions>,
    data: DmaSpan,
    /// Block and version of what is in flight, by tag; a version of 0 is a read.
    busy: HashMap<u32, (u64, u64)>,
    random: u64,
    ended: u64,
}

impl Load {
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn submit(&mut self, lane: &mut Lane) {
        for tag in 0..DEPTH {
            let block = (self.next_random() % (BLOCKS / 2)) * 2 + self.parity;
            let taken = self.busy.values().any(|(other, _)| *other == block);
            if taken || self.busy.contains_key(&tag) {
                continue;
            }
            let buffer = self.data.subspan(tag * 4096, 4096);
            let writes = self.next_random().is_multiple_of(2);
            let version = match writes {
                true => self.versions.sent[block as usize].fetch_add(1, Ordering::SeqCst) + 1,
                false => 0,
            };
            let op = if writes { Op::Write { fua: false } } else { Op::Read };
            (0..4096).step_by(8).for_each(|at| buffer.write_obj(at, &(version << 32 | block)));
            let io = Io { tag, op, slba: block, block_count: 1, buffer: Some(buffer) };
            match lane.submit(self.channel, io) {
                Ok(()) => {
                    self.busy.insert(tag, (block, version));
                }
                Err(bdev::Busy) if writes => {
                    self.versions.sent[block as usize].fetch_sub(1, Ordering::SeqCst);
                }
                Err(bdev::Busy) => {}
            }
        }
    }

    fn end(&mut self, done: &Done) {
        let Some((block, version)) = self.busy.remove(&done.completion.tag) else { panic!() };
        assert!(done.completion.status.is_success(), "{:?}", done.completion);
        self.ended += 1;
        let known = &self.versions.acknowledged[block as usize];
        if version > 0 {
            return known.store(version, Ordering::SeqCst);
        }
        let known = known.load(Ordering::SeqCst);
        let buffer = self.data.subspan(done.completion.tag * 4096, 4096);
        assert_eq!(content(buffer, block), known, "block {block}");
    }
}

/// The version in a block, all of which is the same.
fn content(buffer: DmaSpan, block: u64) -> u64 {
    let words: Vec<u64> = (0..4096).step_by(8).map(|at| buffer.read_obj(at)).collect();
    assert!(words.iter().all(|word| *word == words[0]), "block {block} is of two writes");
    match words[0] {
        0 => 0,
        word => {
            assert_eq!(word & 0xFFFF_FFFF, block, "another block's bytes");
            word >> 32
        }
    }
}

/// The owner's thread besides its load: snapshots, one after the other.
struct Snapshots {
    lane: Lane,
    load: Load,
    next_call: u64,
    others: Vec<Done>,
}

impl Snapshots {
    fn turn(&mut self) {
        self.load.submit(&mut self.lane);
        let mut done = Vec::new();
        self.lane.poll(Instant::now(), &mut done);
        for done in done {
            match done.channel == self.load.channel {
                true => self.load.end(&done),
                false => self.others.push(done),
            }
        }
    }

    fn call(&mut self, call: Call) -> Reply {
        self.next_call += 1;
        self.lane.call(self.next_call, call, 0);
        loop {
            self.turn();
            if let Some((id, reply)) = self.lane.next_reply() {
                assert_eq!(id, self.next_call);
                return reply.unwrap();
            }
        }
    }

    /// Each block has a version that was acknowledged before the snapshot was asked for, or was
    /// sent until it was there; and the same when it is read again.
    fn check_one(&mut self, name: &str, data: DmaSpan) {
        let before = Versions::read(&self.load.versions.acknowledged);
        self.call(Call::Snapshot(vec![("v".into(), name.into())]));
        let after = Versions::read(&self.load.versions.sent);
        let Reply::Handle(handle) = self.call(Call::Open(name.into())) else { panic!() };
        let id = handle.id();
        let channel = self.lane.attach(handle);
        let mut first = Vec::new();
        for round in 0..2 {
            for block in 0..BLOCKS {
                let io =
                    Io { tag: 1000, op: Op::Read, slba: block, block_count: 1, buffer: Some(data) };
                self.lane.submit(channel, io).unwrap();
                while self.others.is_empty() {
                    self.turn();
                }
                assert!(self.others.pop().unwrap().completion.status.is_success());
                let version = content(data, block);
                let at = block as usize;
                let range = before[at]..=after[at];
                assert!(range.contains(&version), "{name}: {block} is {version}, not {range:?}");
                match round {
                    0 => first.push(version),
                    _ => assert_eq!(version, first[at], "{name}: {block} has changed"),
                }
            }
        }
        self.lane.detach(channel);
        self.call(Call::Close(id));
    }
}

#[test]
fn two_lanes_write_while_snapshots_are_taken_and_deleted() {
    let arena = Arena::plain_pages(64 << 20).unwrap();
    let bdevs: [Arc<dyn Bdev>; 2] = ["r0", "r1"]
        .map(|name| -> Arc<dyn Bdev> { Arc::new(RamBdev::new(name, 4096, 1 << 14).unwrap()) });
    let pages = || Pool::new(arena, 4 << 20, 1 << 20).unwrap();
    pool::create("p", &bdevs, &CreateOptions::default(), &mut pages()).unwrap();
    let options = OpenOptions { lanes: 2, memory: pages(), give_up: GiveUp::Wrong, planted: None };
    let mut lanes = pool::open(&bdevs, options).unwrap();
    let versions = Arc::new(Versions::new());
    let load = |channel, parity| Load {
        channel,
        parity,
        versions: Arc::clone(&versions),
        data: arena.carve(DEPTH as usize * 4096, 4096).unwrap(),
        busy: HashMap::new(),
        random: 0x9E37_79B9 + parity,
        ended: 0,
    };
    let (mut other, lane) = (lanes.pop().unwrap(), lanes.pop().unwrap());
    let mut owner = Snapshots { lane, load: load(0, 0), next_call: 0, others: Vec::new() };
    let stop = Arc::new(AtomicBool::new(false));
    let handle = open_volume(&mut owner);
    let thread = std::thread::spawn({
        let (mut load, stop) = (load(other.attach(handle), 1), Arc::clone(&stop));
        move || {
            let mut done = Vec::new();
            while !stop.load(Ordering::Relaxed) || !load.busy.is_empty() {
                if !stop.load(Ordering::Relaxed) {
                    load.submit(&mut other);
                }
                other.poll(Instant::now(), &mut done);
                done.drain(..).for_each(|done| load.end(&done));
            }
            // Goes on until the owner has done its part.
            (load.ended, other)
        }
    });
    let data = arena.carve(4096, 4096).unwrap();
    let end = Instant::now() + TIME;
    let mut taken = 0;
    while Instant::now() < end {
        owner.check_one(&format!("s{taken}"), data);
        if taken >= 3 {
            owner.call(Call::Delete(format!("s{}", taken - 3)));
        }
        taken += 1;
    }
    let Reply::Faults(faults) = owner.call(Call::Check) else { panic!() };
    assert!(faults.is_empty(), "{faults:#?}");
    stop.store(true, Ordering::Relaxed);
    while !thread.is_finished() {
        owner.turn();
    }
    let (ended, _lane) = thread.join().unwrap();
    assert!(taken > 3 && ended > 100, "{taken} snapshots, {ended} I/Os of the other lane");
}

fn open_volume(owner: &mut Snapshots) -> Arc<VolumeHandle> {
    let create = CreateVolume {
        name: "v".into(),
        bytes: BLOCKS * 4096,
        block_bytes: 4096,
        reserve: false,
        labels: Default::default(),
        description: String::new(),
    };
    owner.lane.call(1, Call::Create(create), 0);
    owner.lane.call(2, Call::Open("v".into()), 0);
    let mut opened = None;
    for _ in 0..2 {
        let reply = loop {
            owner.lane.poll(Instant::now(), &mut Vec::new());
            if let Some((_, reply)) = owner.lane.next_reply() {
                break reply.unwrap();
            }
        };
        if let Reply::Handle(handle) = reply {
            owner.load.channel = owner.lane.attach(Arc::clone(&handle));
            opened = Some(handle);
        }
    }
    owner.next_call = 2;
    opened.unwrap()
}
