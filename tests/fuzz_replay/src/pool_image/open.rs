//! A pool that is open on a disk, and what is waited for, but not for ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bdev::{Bdev, Io, Op};
use nvme_spec::nvm::DsmRange;
use nvme_spec::status::Status;
use sim::Memory;
use volume::{
    Call, CreateOptions, GiveUp, Lane, OpenOptions, PoolInfo, Reply, VolumeError, VolumeHandle,
    pool,
};

use super::disk::Disk;
use super::{Clock, VOLUME_BYTES};

/// Bytes of the owner's memory, and of the largest I/O.
const OWNER_BYTES: usize = 2 << 20;
const IO_BYTES: u32 = VOLUME_BYTES as u32;
/// Polls after which whatever has not ended never will.
const PATIENCE: u64 = 20_000;

/// See the module. The lane is gone before its memory is.
pub(super) struct Open {
    lane: Lane,
    clock: Clock,
    open: BTreeMap<String, (u32, Arc<VolumeHandle>)>,
    memory: Memory,
}

impl Open {
    /// Makes a pool and opens it.
    pub(super) fn new_pool(disk: &Disk) -> Self {
        let mut memory = Memory::new(&[OWNER_BYTES], 4096);
        let bdevs: [Arc<dyn Bdev>; 1] = [Arc::new(disk.clone())];
        let options = CreateOptions { journal_bytes: Some(256 << 10), ..CreateOptions::default() };
        let made = pool::create("p", &bdevs, &options, &mut memory.pools()[0]);
        made.expect("a pool on an empty disk");
        Self::pool(disk).expect("it was just made")
    }

    /// Opens a disk's pool, if it opens; else it says why.
    pub(super) fn pool(disk: &Disk) -> Option<Self> {
        let mut memory = Memory::new(&[OWNER_BYTES], IO_BYTES as usize);
        let bdevs: [Arc<dyn Bdev>; 1] = [Arc::new(disk.clone())];
        let options = OpenOptions {
            lanes: 1,
            memory: memory.pools().remove(0),
            give_up: GiveUp::Wrong,
            planted: None,
        };
        match pool::open(&bdevs, options) {
            Ok(mut lanes) => {
                let (lane, clock) = (lanes.remove(0), Clock(Instant::now()));
                Some(Self { lane, clock, open: BTreeMap::new(), memory })
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                None
            }
        }
    }

    pub(super) fn ask(&mut self, call: Call) -> Result<Reply, VolumeError> {
        self.lane.call(1, call.clone(), 0);
        for _ in 0..PATIENCE {
            self.lane.poll(self.clock.tick(), &mut Vec::new());
            if let Some((_, reply)) = self.lane.next_reply() {
                return reply;
            }
        }
        panic!("no answer to {call:?}");
    }

    /// Asks for something that nothing speaks against.
    pub(super) fn done(&mut self, call: Call) {
        self.ask(call).expect("nothing speaks against it");
    }

    pub(super) fn info(&mut self) -> PoolInfo {
        match self.ask(Call::Info) {
            Ok(Reply::Pool(info)) => info,
            other => panic!("{other:?}"),
        }
    }

    /// Names of volumes and snapshots.
    pub(super) fn names(&mut self) -> Vec<String> {
        match self.ask(Call::List) {
            Ok(Reply::Volumes(infos)) => infos.into_iter().map(|info| info.name).collect(),
            _ => Vec::new(),
        }
    }

    /// Opens a volume or snapshot unless it is open.
    pub(super) fn open(&mut self, name: &str) -> Result<(), VolumeError> {
        if self.open.contains_key(name) {
            return Ok(());
        }
        match self.ask(Call::Open(name.to_owned()))? {
            Reply::Handle(handle) => {
                let channel = self.lane.attach(Arc::clone(&handle));
                self.open.insert(name.to_owned(), (channel, handle));
                Ok(())
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn close(&mut self, name: &str) {
        if let Some((channel, handle)) = self.open.remove(name) {
            self.lane.detach(channel);
            self.done(Call::Close(handle.id()));
        }
    }

    /// The first bytes of something that is open, as far as it has them.
    pub(super) fn read(&mut self, name: &str) -> Vec<u8> {
        let (_, handle) = &self.open[name];
        let block_bytes = u64::from(handle.block_bytes());
        let blocks = handle.block_count().min(VOLUME_BYTES / block_bytes);
        let bytes = (blocks * block_bytes) as u32;
        if bytes == 0 {
            return Vec::new();
        }
        let status = self.io(name, Op::Read, 0, blocks as u32);
        assert!(status.is_success(), "a read of {name}: {status:?}");
        let mut data = vec![0; bytes as usize];
        self.memory.span().read(0, &mut data);
        data
    }

    /// Writes blocks of 4096 bytes, if the volume takes it.
    pub(super) fn write(&mut self, name: &str, block: u64, count: u64, byte: u8) {
        self.memory.span().fill(byte);
        let per_block = 4096 / u64::from(self.open[name].1.block_bytes());
        let op = Op::Write { fua: false };
        self.io(name, op, block * per_block, (count * per_block) as u32);
    }

    /// Deallocates them.
    pub(super) fn clear(&mut self, name: &str, block: u64, count: u64) {
        let per_block = 4096 / u64::from(self.open[name].1.block_bytes());
        let range = DsmRange {
            attributes: 0.into(),
            block_count: ((count * per_block) as u32).into(),
            slba: (block * per_block).into(),
        };
        self.memory.span().write_obj(0, &range);
        self.io(name, Op::Deallocate { ranges: 1 }, 0, 0);
    }

    fn io(&mut self, name: &str, op: Op, slba: u64, block_count: u32) -> Status {
        let channel = self.open[name].0;
        let io = Io { tag: 1, op, slba, block_count, buffer: Some(self.memory.span()) };
        let mut done = Vec::new();
        let mut is_taken = false;
        for _ in 0..PATIENCE {
            is_taken = is_taken || self.lane.submit(channel, io).is_ok();
            self.lane.poll(self.clock.tick(), &mut done);
            if let Some(done) = done.pop() {
                return done.completion.status;
            }
        }
        panic!("{op:?} on {name} does not end");
    }
}
