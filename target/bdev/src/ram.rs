//! A block device in memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use dma::Region;
use nvme_spec::status::Status;
use uuid::Uuid;

use crate::range::{check, ranges};
use crate::{Bdev, BdevError, Busy, Channel, Completion, Completions, Geometry, Health, Io, Op};

/// Blocks in memory, gone with the process. Memory is taken when a block is first written.
#[derive(Debug)]
pub struct RamBdev {
    name: String,
    geometry: Geometry,
    uuid: Uuid,
    region: Arc<Region>,
}

impl RamBdev {
    /// A device of `block_count` blocks of `block_bytes`, all zero.
    ///
    /// # Errors
    /// The machine has less memory available: it would end the daemon when the blocks are written.
    pub fn new(name: &str, block_bytes: u32, block_count: u64) -> Result<Self, BdevError> {
        let invalid = |reason: String| BdevError::Invalid { name: name.to_owned(), reason };
        let bytes = block_count.checked_mul(u64::from(block_bytes));
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| invalid("too large for memory".to_owned()))?;
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        check_memory(name, bytes as u64, &meminfo)?;
        let region = Region::new(bytes).map_err(|error| invalid(error.to_string()))?;
        let geometry = Geometry {
            block_bytes,
            block_count,
            volatile_write_cache: false,
            deallocate_reads_zeroes: true,
            atomic_write_blocks: 1,
            preferred_write_blocks: 1,
        };
        let (name, uuid) = (name.to_owned(), Uuid::new_v4());
        Ok(Self { name, geometry, uuid, region: Arc::new(region) })
    }
}

/// Compares with what the kernel says could be taken without swapping, if it does.
fn check_memory(name: &str, wanted: u64, meminfo: &str) -> Result<(), BdevError> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    match kib.map(|kib| kib.saturating_mul(1024)) {
        Some(available) if available < wanted => {
            Err(BdevError::NoMemory { name: name.to_owned(), wanted, available })
        }
        _ => Ok(()),
    }
}

impl Bdev for RamBdev {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "ram"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn keeps_data(&self) -> bool {
        false
    }

    fn health(&self) -> Health {
        Health::Live
    }

    fn open_channel(&self, _core: usize) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(RamChannel {
            geometry: self.geometry,
            region: Arc::clone(&self.region),
            done: VecDeque::with_capacity(DEPTH),
        }))
    }
}

/// I/Os that a channel holds between two polls.
const DEPTH: usize = 1024;

struct RamChannel {
    geometry: Geometry,
    region: Arc<Region>,
    done: VecDeque<Completion>,
}

impl RamChannel {
    #[inline]
    fn execute(&mut self, io: &Io) -> Result<(), Status> {
        let span = check(io, &self.geometry)?;
        // The region was sized in `usize`, and `check` keeps offsets within it.
        let offset = span.offset as usize;
        match (io.op, span.data) {
            (Op::Read, Some(data)) => self.region.read(offset, data),
            (Op::Write { .. }, Some(data)) => self.region.write(offset, data),
            (Op::Compare, Some(data)) if !self.region.equals(offset, data) => {
                return Err(Status::COMPARE_FAILURE.with_dnr());
            }
            (Op::WriteZeroes { .. }, _) => self.region.deallocate(offset, span.bytes as usize),
            (Op::Deallocate { ranges: count }, Some(data)) => {
                for range in ranges(count, data, &self.geometry) {
                    let (offset, bytes) = range?;
                    self.region.deallocate(offset as usize, bytes as usize);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Channel for RamChannel {
    #[inline]
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        if self.done.len() == DEPTH {
            return Err(Busy);
        }
        let status = self.execute(&io).err().unwrap_or(Status::SUCCESS);
        self.done.push_back(Completion { tag: io.tag, status });
        Ok(())
    }

    #[inline]
    fn poll(&mut self, _now: Instant, done: &mut Completions) {
        while done.room() > 0
            && let Some(completion) = self.done.pop_front()
        {
            done.push(completion);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_machine_has_available_is_refused_with_both_figures() {
        let meminfo = "MemTotal:  4096 kB\nMemAvailable:    1024 kB\n";
        assert!(check_memory("r0", 1 << 20, meminfo).is_ok());
        let error = check_memory("r0", (1 << 20) + 1, meminfo).unwrap_err().to_string();
        assert!(error.contains("1048577") && error.contains("1048576"), "{error}");
        assert!(check_memory("r0", 1 << 40, "").is_ok(), "an old kernel does not say");
        assert!(matches!(RamBdev::new("r0", 4096, 1 << 40), Err(BdevError::NoMemory { .. })));
    }
}
