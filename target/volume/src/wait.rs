//! I/O that is waited for, while a pool is made or opened.

use std::sync::Arc;
use std::time::Instant;

use bdev::{Bdev, Channel, Completions, Geometry, Io, Op};
use dma::{DmaBuffer, DmaSpan, Pool as Memory};

use crate::limits::CLUSTER_BYTES;
use crate::pool::PoolError;

/// A device, and a buffer of a cluster's size.
pub(crate) struct SyncDevice {
    name: String,
    channel: Box<dyn Channel>,
    pub geometry: Geometry,
    completions: Completions,
}

impl SyncDevice {
    pub(crate) fn open(bdev: &Arc<dyn Bdev>) -> Result<Self, PoolError> {
        let channel = bdev.open_channel(0)?;
        let geometry = bdev.geometry();
        let completions = Completions::with_capacity(1);
        Ok(Self { name: bdev.name().to_owned(), channel, geometry, completions })
    }

    /// Its name, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whole clusters that it has.
    pub(crate) fn clusters(&self) -> u64 {
        let bytes = self.geometry.block_count * u64::from(self.geometry.block_bytes);
        bytes / u64::from(CLUSTER_BYTES)
    }

    /// Does an I/O and waits for its end. How long that may take is the device's business, which
    /// ends every I/O.
    pub(crate) fn run(
        &mut self,
        op: Op,
        byte: u64,
        bytes: u32,
        buffer: Option<DmaSpan>,
    ) -> Result<(), PoolError> {
        let shift = self.geometry.block_bytes.trailing_zeros();
        let io = Io { tag: 0, op, slba: byte >> shift, block_count: bytes >> shift, buffer };
        while self.channel.submit(io).is_err() {
            self.channel.poll(Instant::now(), &mut self.completions);
        }
        loop {
            self.channel.poll(Instant::now(), &mut self.completions);
            match self.completions.pop() {
                Some(done) if done.status.is_success() => return Ok(()),
                Some(done) => {
                    let (device, status) = (self.name.clone(), done.status);
                    return Err(PoolError::Io { device, byte, status });
                }
                None => std::thread::yield_now(),
            }
        }
    }

    /// Reads into `to`, a cluster at most, through `buffer`.
    pub(crate) fn read(
        &mut self,
        byte: u64,
        to: &mut [u8],
        buffer: &DmaBuffer,
    ) -> Result<(), PoolError> {
        let span = buffer.span().subspan(0, to.len() as u32);
        self.run(Op::Read, byte, span.len(), Some(span))?;
        span.read(0, to);
        Ok(())
    }

    /// Writes `from`, a cluster at most, through `buffer`.
    pub(crate) fn write(
        &mut self,
        byte: u64,
        from: &[u8],
        buffer: &DmaBuffer,
    ) -> Result<(), PoolError> {
        let span = buffer.span().subspan(0, from.len() as u32);
        span.write(0, from);
        self.run(Op::Write { fua: false }, byte, span.len(), Some(span))
    }

    /// Makes what was written durable.
    pub(crate) fn flush(&mut self) -> Result<(), PoolError> {
        self.run(Op::Flush, 0, 0, None)
    }
}

/// A buffer for the above.
pub(crate) fn buffer(memory: &mut Memory) -> Result<DmaBuffer, PoolError> {
    memory.alloc(CLUSTER_BYTES).ok_or(PoolError::NoMemory { bytes: CLUSTER_BYTES })
}
