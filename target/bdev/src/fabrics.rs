//! A namespace of another target, over NVMe over Fabrics.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use host::{Controller, ControllerEvent, IoQueue, Namespace, Spans};
use nvme_spec::nvm::DSM_RANGE_BYTES;
use uuid::Uuid;

use crate::{Bdev, BdevError, Busy, Channel, Completion, Completions, Geometry, Health, Io, Op};

/// One namespace of a controller that we are connected to. Each channel is an I/O queue of its own:
/// there are as many as the controller granted.
///
/// Whoever opened it calls [`FabricsBdev::poll`] several times within the keep-alive time-out.
pub struct FabricsBdev {
    name: String,
    namespace: Namespace,
    volatile_write_cache: bool,
    uuid: Uuid,
    health: AtomicU8,
    /// Not on the data path: channels have queues of their own.
    controller: Mutex<Controller>,
    /// Queues of channels that are gone, for the next ones: a controller opens each only once.
    idle: Arc<Mutex<Vec<IoQueue>>>,
}

const LIVE: u8 = 0;
const RECOVERING: u8 = 1;
const FAILED: u8 = 2;

impl FabricsBdev {
    /// Namespace `nsid` of a controller of the subsystem `subnqn`.
    ///
    /// # Errors
    /// It has no such namespace, or one with blocks of a size that block devices do not have.
    pub fn new(
        name: &str,
        controller: Controller,
        subnqn: &str,
        nsid: u32,
    ) -> Result<Self, BdevError> {
        let invalid = |reason: String| BdevError::Invalid { name: name.to_owned(), reason };
        let namespace = controller.namespace(nsid).map_err(|error| {
            let known: Vec<_> =
                controller.namespaces().iter().map(|one| one.nsid.to_string()).collect();
            invalid(format!("{error}; there are: {}", known.join(", ")))
        })?;
        if !matches!(namespace.block_bytes, 512 | 4096) {
            let bytes = namespace.block_bytes;
            return Err(invalid(format!("blocks of {bytes} bytes; 512 or 4096 are supported")));
        }
        let uuid = match namespace.nguid {
            [0, ..] if namespace.nguid == [0; 16] => {
                let name = format!("nvmf:{subnqn}:{nsid}");
                Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
            }
            nguid => Uuid::from_bytes(nguid),
        };
        Ok(Self {
            name: name.to_owned(),
            namespace,
            volatile_write_cache: controller.info().volatile_write_cache,
            uuid,
            health: AtomicU8::new(LIVE),
            controller: Mutex::new(controller),
            idle: Arc::default(),
        })
    }

    /// Keeps the association alive, and restores it when it is lost.
    pub fn poll(&self, now: Instant) {
        let mut controller = lock(&self.controller);
        while let Some(event) = controller.poll(now) {
            let health = match event {
                ControllerEvent::Lost(_) => RECOVERING,
                ControllerEvent::Reconnected => LIVE,
                ControllerEvent::GaveUp(_) => FAILED,
                ControllerEvent::NamespacesChanged | ControllerEvent::DiscoveryLogChanged => {
                    continue;
                }
            };
            self.health.store(health, Ordering::Relaxed);
        }
    }

    /// Shuts the controller down in order and disconnects. No channel is left.
    ///
    /// # Errors
    /// It did not say in time that it is shut down; it is disconnected nevertheless.
    pub fn detach(self) -> Result<(), host::Error> {
        drop(self.idle);
        self.controller.into_inner().unwrap_or_else(PoisonError::into_inner).detach()
    }
}

impl Bdev for FabricsBdev {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "fabrics"
    }

    fn geometry(&self) -> Geometry {
        let namespace = &self.namespace;
        Geometry {
            block_bytes: namespace.block_bytes,
            block_count: namespace.block_count,
            volatile_write_cache: self.volatile_write_cache,
            deallocate_reads_zeroes: namespace.deallocate_reads_zeroes,
            atomic_write_blocks: namespace.atomic_write_blocks,
            preferred_write_blocks: 1,
        }
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            LIVE => Health::Live,
            RECOVERING => Health::Recovering,
            _ => Health::Failed,
        }
    }

    fn open_channel(&self, core: usize) -> Result<Box<dyn Channel>, BdevError> {
        let used = lock(&self.idle).pop();
        let opened = used.map_or_else(|| lock(&self.controller).open_queue(), Ok);
        let queue = opened.map_err(|error| match error {
            host::Error::NoQueue { .. } => BdevError::NoQueue { name: self.name.clone(), core },
            error => BdevError::Invalid { name: self.name.clone(), reason: error.to_string() },
        })?;
        Ok(Box::new(FabricsChannel {
            queue: Some(queue),
            nsid: self.namespace.nsid,
            block_bytes: self.namespace.block_bytes,
            now: Instant::now(),
            idle: Arc::clone(&self.idle),
        }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An I/O queue on its core. I/O that is in flight when the channel is dropped has no end: drain it
/// first.
struct FabricsChannel {
    /// There until the channel is dropped.
    queue: Option<IoQueue>,
    nsid: u32,
    block_bytes: u32,
    /// Of the last turn: what is submitted in this one times out from there.
    now: Instant,
    idle: Arc<Mutex<Vec<IoQueue>>>,
}

impl Drop for FabricsChannel {
    fn drop(&mut self) {
        if let Some(mut queue) = self.queue.take()
            && queue.outstanding() == 0
        {
            lock(&self.idle).push(queue);
        }
    }
}

impl Channel for FabricsChannel {
    #[inline]
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        let op = match io.op {
            Op::Read => host::Op::Read,
            Op::Write { fua } => host::Op::Write { fua },
            Op::Flush => host::Op::Flush,
            Op::Compare => host::Op::Compare,
            Op::WriteZeroes { deallocate, fua } => host::Op::WriteZeroes { deallocate, fua },
            Op::Deallocate { ranges } => host::Op::Deallocate { ranges },
        };
        let Io { tag, slba, block_count, buffer, .. } = io;
        // A buffer may be longer than the data; what goes over the fabric is as long.
        let bytes = match io.op {
            Op::Deallocate { ranges } => u32::from(ranges) * DSM_RANGE_BYTES,
            _ => block_count * self.block_bytes,
        };
        let data = buffer.map_or(Spans::NONE, |buffer| Spans::from(buffer.subspan(0, bytes)));
        let io = host::Io { tag, nsid: self.nsid, op, slba, block_count, data };
        let queue = self.queue.as_mut().ok_or(Busy)?;
        queue.submit(self.now, &io).map_err(|host::Busy| Busy)
    }

    #[inline]
    fn poll(&mut self, now: Instant, done: &mut Completions) {
        self.now = now;
        let Some(queue) = &mut self.queue else { return };
        queue.poll(now);
        while done.room() > 0
            && let Some(host::Completion { tag, status }) = queue.completed()
        {
            done.push(Completion { tag, status });
        }
    }
}
