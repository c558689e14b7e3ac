//! A block device of pages that are there when they were written.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bdev::{Bdev, BdevError, Busy, Channel, Completion, Completions, Geometry, Health, Io, Op};
use nvme_spec::status::Status;
use uuid::Uuid;

pub(super) type Page = [u8; PAGE_BYTES];
type Pages = BTreeMap<u64, Box<Page>>;

const PAGE_BYTES: usize = 4096;
/// 64 clusters.
const PAGES: u64 = 64 * 16;

/// See the module. Its blocks are pages.
#[derive(Clone)]
pub(super) struct Disk(Arc<Mutex<Pages>>);

impl Disk {
    pub(super) fn over(pages: Pages) -> Self {
        Self(Arc::new(Mutex::new(pages)))
    }

    pub(super) fn pages(&self) -> Pages {
        self.lock().clone()
    }

    /// One that was never written is zero.
    pub(super) fn page(&self, number: u64) -> Page {
        self.lock().get(&number).map_or([0; PAGE_BYTES], |page| **page)
    }

    pub(super) fn put(&self, number: u64, page: &Page) {
        self.lock().insert(number, Box::new(*page));
    }

    /// Whole pages, if the device has them all.
    pub(super) fn run(&self, first: u64, count: u64) -> Option<Vec<u8>> {
        let end = first.checked_add(count).filter(|end| *end <= PAGES)?;
        Some((first..end).flat_map(|number| self.page(number)).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bdev for Disk {
    fn name(&self) -> &str {
        "disk"
    }

    fn kind(&self) -> &'static str {
        "fuzz"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_bytes: PAGE_BYTES as u32,
            block_count: PAGES,
            volatile_write_cache: true,
            deallocate_reads_zeroes: false,
            atomic_write_blocks: 1,
            preferred_write_blocks: 1,
        }
    }

    fn uuid(&self) -> Uuid {
        Uuid::nil()
    }

    fn health(&self) -> Health {
        Health::Live
    }

    fn open_channel(&self, _core: usize) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(DiskChannel { disk: self.clone(), done: VecDeque::new() }))
    }
}

struct DiskChannel {
    disk: Disk,
    done: VecDeque<Completion>,
}

impl DiskChannel {
    fn run(&self, io: &Io) -> Status {
        let end = io.slba.checked_add(u64::from(io.block_count));
        if end.is_none_or(|end| end > PAGES) {
            return Status::LBA_OUT_OF_RANGE;
        }
        let Some(span) = io.buffer else { return Status::SUCCESS };
        for index in 0..io.block_count {
            let (number, at) = (io.slba + u64::from(index), index * PAGE_BYTES as u32);
            match io.op {
                Op::Read => span.write(at, &self.disk.page(number)),
                Op::Write { .. } => {
                    let mut page = [0; PAGE_BYTES];
                    span.read(at, &mut page);
                    self.disk.put(number, &page);
                }
                _ => return Status::INVALID_OPCODE,
            }
        }
        Status::SUCCESS
    }
}

impl Channel for DiskChannel {
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        let status = self.run(&io);
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
