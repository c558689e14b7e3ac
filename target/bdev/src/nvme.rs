//! A namespace of an SSD that the driver has.

use std::time::Instant;

use nvme::{Command, IoQueuePair, Namespace, NvmeDevice, PciDevice, QueuePool, QueueStats};
use uuid::Uuid;

use crate::{Bdev, BdevError, Busy, Channel, Completion, Completions, Geometry, Health, Io, Op};

/// One namespace. Each channel has a queue pair of the controller to itself: the driver asks for as
/// many as there are namespaces times cores, so that no core shares one.
pub struct NvmeBdev<D: PciDevice> {
    name: String,
    namespace: Namespace,
    volatile_write_cache: bool,
    uuid: Uuid,
    queues: QueuePool<D>,
}

impl<D: PciDevice> NvmeBdev<D> {
    /// Namespace `nsid` of a device that has come up.
    ///
    /// # Errors
    /// It has no such namespace, or none that can be used; the error says why.
    pub fn new(name: &str, device: &NvmeDevice<D>, nsid: u32) -> Result<Self, BdevError> {
        let invalid = |reason: String| BdevError::Invalid { name: name.to_owned(), reason };
        let identity =
            device.identity().ok_or_else(|| invalid("the device has not come up".to_owned()))?;
        let namespaces = device.namespaces();
        let found = namespaces.iter().find(|namespace| namespace.nsid == nsid);
        let namespace = *found.ok_or_else(|| {
            let mut unusable = device.unusable_namespaces().iter();
            match unusable.find(|(other, _)| *other == nsid) {
                Some((_, fault)) => invalid(format!("namespace {nsid}: {fault}")),
                None => {
                    let known: Vec<_> = namespaces.iter().map(|one| one.nsid.to_string()).collect();
                    invalid(format!("no namespace {nsid}; there are: {}", known.join(", ")))
                }
            }
        })?;
        Ok(Self {
            name: name.to_owned(),
            namespace,
            volatile_write_cache: identity.volatile_write_cache,
            uuid: stable_uuid(&namespace, &identity.model, &identity.serial),
            queues: device.queues(),
        })
    }

    /// Counters of each queue pair of the controller, whichever namespace uses it; the first is
    /// queue 1's.
    pub fn queue_stats(&self) -> Vec<QueueStats> {
        self.queues.stats()
    }
}

/// The namespace's own identifier, or one that follows from what it has.
fn stable_uuid(namespace: &Namespace, model: &str, serial: &str) -> Uuid {
    match namespace.uuid.or(namespace.nguid) {
        Some(bytes) => Uuid::from_bytes(bytes),
        None => {
            let name = format!("nvme:{model}:{serial}:{}", namespace.nsid);
            Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
        }
    }
}

impl<D: PciDevice> Bdev for NvmeBdev<D> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "nvme"
    }

    fn geometry(&self) -> Geometry {
        let namespace = &self.namespace;
        Geometry {
            block_bytes: namespace.block_bytes,
            block_count: namespace.block_count,
            volatile_write_cache: self.volatile_write_cache,
            deallocate_reads_zeroes: namespace.deallocate_reads_zeroes,
            atomic_write_blocks: namespace.atomic_write_blocks,
            preferred_write_blocks: namespace.preferred_write_blocks,
        }
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn health(&self) -> Health {
        match self.queues.health() {
            nvme::Health::Live => Health::Live,
            nvme::Health::Recovering => Health::Recovering,
            nvme::Health::Failed => Health::Failed,
        }
    }

    fn open_channel(&self, core: usize) -> Result<Box<dyn Channel>, BdevError> {
        let pair = self
            .queues
            .take(std::slice::from_ref(&self.namespace))
            .ok_or_else(|| BdevError::NoQueue { name: self.name.clone(), core })?;
        Ok(Box::new(NvmeChannel { pair, nsid: self.namespace.nsid }))
    }
}

/// A queue pair on its core. I/O that is in flight when the channel is dropped may still reach its
/// memory: drain it first.
struct NvmeChannel<D: PciDevice> {
    pair: IoQueuePair<D>,
    nsid: u32,
}

impl<D: PciDevice> Channel for NvmeChannel<D> {
    #[inline]
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        let op = match io.op {
            Op::Read => nvme::Op::Read,
            Op::Write { fua } => nvme::Op::Write { fua },
            Op::Flush => nvme::Op::Flush,
            Op::Compare => nvme::Op::Compare,
            Op::WriteZeroes { deallocate, fua } => nvme::Op::WriteZeroes { deallocate, fua },
            Op::Deallocate { ranges } => nvme::Op::Deallocate { ranges },
        };
        let Io { tag, slba, block_count, buffer: data, .. } = io;
        let command = Command { tag, nsid: self.nsid, op, slba, block_count, data };
        self.pair.submit(command).map_err(|nvme::Busy| Busy)
    }

    #[inline]
    fn poll(&mut self, now: Instant, done: &mut Completions) {
        self.pair.poll(now);
        while done.room() > 0
            && let Some(nvme::Completion { tag, status }) = self.pair.completed()
        {
            done.push(Completion { tag, status });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dma::Arena;
    use emulated_nvme::{EmulatedNvme, NamespaceSetup, Setup};
    use nvme::Config;
    use nvme_spec::status::Status;

    use super::*;

    #[test]
    fn a_namespace_is_a_block_device_with_a_queue_pair_per_channel() {
        let arena = Arena::plain_pages(8 << 20).unwrap();
        let bad = NamespaceSetup { metadata_bytes: 8, ..NamespaceSetup::default() };
        let namespaces = vec![NamespaceSetup::default(), bad];
        let setup = Setup { namespaces, queue_count: 2, ..Setup::default() };
        let ssd = Arc::new(EmulatedNvme::new(arena, setup));
        let config = Config { cores: 2, queue_entries: 8, ..Config::default() };
        let device = NvmeDevice::bring_up(Arc::clone(&ssd), arena, config).unwrap();
        let bdev = NvmeBdev::new("a", &device, 1).unwrap();
        assert_eq!((bdev.geometry().block_bytes, bdev.geometry().block_count), (512, 16 << 10));
        assert_eq!(bdev.uuid(), Uuid::from_bytes([1; 16]));
        for (nsid, wanted) in [(2, "8 bytes of metadata"), (3, "no namespace 3; there are: 1")] {
            let error = NvmeBdev::new("a", &device, nsid).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let data = arena.carve(4096, 4096).unwrap();
        let mut channels = [bdev.open_channel(0).unwrap(), bdev.open_channel(1).unwrap()];
        assert!(matches!(bdev.open_channel(2), Err(BdevError::NoQueue { core: 2, .. })));
        for (index, channel) in channels.iter_mut().enumerate() {
            let io = Io {
                tag: 7,
                op: Op::Write { fua: false },
                slba: 1,
                block_count: 8,
                buffer: Some(data),
            };
            channel.submit(io).unwrap();
            let mut done = Completions::with_capacity(4);
            while done.room() == 4 {
                channel.poll(Instant::now(), &mut done);
            }
            assert_eq!(done.pop(), Some(Completion { tag: 7, status: Status::SUCCESS }));
            assert_eq!(bdev.queue_stats()[index].completions, 1);
        }
        drop(channels);
        assert!(bdev.open_channel(0).is_ok(), "queue pairs come back");
        device.close();
        assert_eq!(bdev.health(), Health::Failed);
    }
}
