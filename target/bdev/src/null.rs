//! A block device that stores nothing, to measure everything above it.

use std::collections::VecDeque;
use std::time::Instant;

use nvme_spec::status::Status;
use uuid::Uuid;

use crate::range::{Span, check};
use crate::{Bdev, BdevError, Busy, Channel, Completion, Completions, Geometry, Health, Io, Op};

/// Completes everything with success. What is read is zero: a buffer that came here unfilled would
/// show the host whatever another host's command left in it.
#[derive(Debug)]
pub struct NullBdev {
    name: String,
    geometry: Geometry,
    uuid: Uuid,
}

impl NullBdev {
    /// A device of `block_count` blocks of `block_bytes`.
    pub fn new(name: &str, block_bytes: u32, block_count: u64) -> Self {
        let geometry = Geometry {
            block_bytes,
            block_count,
            volatile_write_cache: false,
            deallocate_reads_zeroes: true,
            atomic_write_blocks: 1,
            preferred_write_blocks: 1,
        };
        Self { name: name.to_owned(), geometry, uuid: Uuid::new_v4() }
    }
}

impl Bdev for NullBdev {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "null"
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
        Ok(Box::new(NullChannel { geometry: self.geometry, done: VecDeque::with_capacity(DEPTH) }))
    }
}

/// I/Os that a channel holds between two polls.
const DEPTH: usize = 1024;

struct NullChannel {
    geometry: Geometry,
    done: VecDeque<Completion>,
}

impl Channel for NullChannel {
    #[inline]
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        if self.done.len() == DEPTH {
            return Err(Busy);
        }
        let status = match check(&io, &self.geometry) {
            Ok(Span { data: Some(data), .. }) if io.op == Op::Read => {
                data.fill(0);
                Status::SUCCESS
            }
            Ok(_) => Status::SUCCESS,
            Err(status) => status,
        };
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
