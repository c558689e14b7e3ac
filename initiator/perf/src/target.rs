//! Opening a target.
//!
//! Whatever a target is, it comes as a [`Bdev`]; the rest of the crate knows nothing else. A kind
//! of target that is added becomes an [`Address`], and one more arm of [`Target::open`].

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use api::Endpoint;
use bdev::{Bdev, BdevError, FabricsBdev, FileBdev, NullBdev, NvmeBdev, RamBdev};
use dma::Arena;
use host::{Controller, HostIdentity};
use nvme::{Config, NvmeDevice};
use vfio::Device;
use vfio::pci::{Bdf, Before, System};

use crate::address::Address;
use crate::error::PerfError;
use crate::limits::{RELEASE_LIMIT, TICK};

/// How a target is used.
#[derive(Clone, Debug)]
pub struct Use {
    /// Bytes of a logical block, where we choose.
    pub logical_block: u32,
    /// How many cores use it.
    pub cores: usize,
    /// I/Os that each has in flight.
    pub depth: usize,
    /// An SSD is taken although it bears data, or vfio-pci has it already.
    pub force: bool,
    /// Who we are to a target on the fabric: by default who this machine is, or nobody in
    /// particular.
    pub host_nqn: Option<String>,
    /// Digests of headers on the fabric.
    pub header_digest: bool,
    /// Digests of data on the fabric.
    pub data_digest: bool,
}

/// An open target.
pub struct Target {
    bdev: Arc<dyn Bdev>,
    keeper: Keeper,
}

/// What keeps a target going.
enum Keeper {
    /// It goes by itself.
    Nobody,
    Ssd(Box<Ssd>),
    Fabrics(Arc<FabricsBdev>),
}

struct Ssd {
    device: NvmeDevice<Device>,
    bdf: Bdf,
    before: Before,
}

impl Target {
    /// Opens a target. An SSD is taken from the kernel for that.
    ///
    /// # Errors
    /// It cannot be had, and is left as it was.
    pub fn open(address: &Address, how: &Use, arena: &'static Arena) -> Result<Self, PerfError> {
        let name = address.to_string();
        let block = how.logical_block;
        let bdev: Arc<dyn Bdev> = match address {
            Address::Null { bytes } => {
                Arc::new(NullBdev::new(&name, block, blocks(&name, *bytes, block)?))
            }
            Address::Ram { bytes } => {
                Arc::new(RamBdev::new(&name, block, blocks(&name, *bytes, block)?)?)
            }
            Address::File { path } => Arc::new(open_file(&name, path, block)?),
            Address::Pcie { bdf, nsid } => return Self::open_ssd(&name, *bdf, *nsid, how, arena),
            Address::Fabrics { endpoint, nqn, nsid } => {
                return Self::connect(&name, *endpoint, (nqn, *nsid), how, arena);
            }
        };
        Ok(Self { bdev, keeper: Keeper::Nobody })
    }

    fn connect(
        name: &str,
        endpoint: Endpoint,
        (nqn, nsid): (&str, u32),
        how: &Use,
        arena: &'static Arena,
    ) -> Result<Self, PerfError> {
        let machine = || HostIdentity::of_machine(Path::new("/etc/nvme"));
        let host = how.host_nqn.clone().map(HostIdentity::named).or_else(machine);
        let transport = match endpoint.transport {
            api::Transport::Rdma => host::Transport::Rdma,
            api::Transport::Tcp => host::Transport::Tcp,
        };
        let options = host::Options {
            host: host.unwrap_or_else(HostIdentity::random),
            io_queues: how.cores as u16,
            depth: how.depth as u16,
            header_digest: how.header_digest,
            data_digest: how.data_digest,
            ..host::Options::new(transport, endpoint.address, nqn)
        };
        let controller = Controller::connect(options, arena)?;
        let taken = usize::from(controller.info().depth);
        if taken < how.depth {
            let reason = format!("it takes {taken} commands at a time on a queue: --depth {taken}");
            return Err(BdevError::Invalid { name: name.to_owned(), reason }.into());
        }
        let bdev = Arc::new(FabricsBdev::new(name, controller, nqn, nsid)?);
        Ok(Self { bdev: Arc::clone(&bdev) as Arc<dyn Bdev>, keeper: Keeper::Fabrics(bdev) })
    }

    fn open_ssd(
        name: &str,
        bdf: Bdf,
        nsid: u32,
        how: &Use,
        arena: &'static Arena,
    ) -> Result<Self, PerfError> {
        let system = System::default();
        let before = system.bind(bdf, how.force)?;
        let opened =
            bring_up(bdf, how, arena).and_then(|device| match NvmeBdev::new(name, &device, nsid) {
                Ok(bdev) => Ok((bdev, device)),
                Err(error) => {
                    device.close();
                    Err(error.into())
                }
            });
        match opened {
            Ok((bdev, device)) => {
                let keeper = Keeper::Ssd(Box::new(Ssd { device, bdf, before }));
                Ok(Self { bdev: Arc::new(bdev), keeper })
            }
            Err(error) => {
                // The first error says more than one of the way back would.
                let _ = system.restore(bdf, &before);
                Err(error)
            }
        }
    }

    /// The block device.
    pub fn bdev(&self) -> &Arc<dyn Bdev> {
        &self.bdev
    }

    /// Does what the target needs from time to time.
    pub fn poll(&mut self, now: Instant) {
        match &mut self.keeper {
            Keeper::Nobody => {}
            Keeper::Ssd(ssd) => ssd.device.poll(now),
            Keeper::Fabrics(fabrics) => fabrics.poll(now),
        }
    }

    /// Closes it, gives an SSD back to whoever had it, and disconnects. No channel of it is left.
    ///
    /// # Errors
    /// The SSD cannot be given back, or the controller does not shut down.
    pub fn close(self) -> Result<(), PerfError> {
        let Self { bdev, keeper } = self;
        drop(bdev);
        match keeper {
            Keeper::Nobody => Ok(()),
            Keeper::Ssd(ssd) => {
                let Ssd { device, bdf, before } = *ssd;
                device.close();
                Ok(System::default().restore(bdf, &before)?)
            }
            Keeper::Fabrics(fabrics) => match Arc::into_inner(fabrics) {
                Some(fabrics) => Ok(fabrics.detach()?),
                None => Ok(()),
            },
        }
    }
}

/// Opens a file. The kernel takes a moment to let go of one whose user has just ended, so a file
/// that is in use is tried again for a while.
fn open_file(name: &str, path: &str, block: u32) -> Result<FileBdev, BdevError> {
    let end = Instant::now() + RELEASE_LIMIT;
    loop {
        match FileBdev::open(name, path, block) {
            Err(BdevError::Claimed { .. }) if Instant::now() < end => std::thread::sleep(TICK),
            other => return other,
        }
    }
}

fn bring_up(bdf: Bdf, how: &Use, arena: &'static Arena) -> Result<NvmeDevice<Device>, PerfError> {
    let pci = Arc::new(Device::open(bdf, arena)?);
    let config = Config {
        cores: how.cores as u16,
        // One entry of a queue stays empty.
        queue_entries: (how.depth + 1) as u16,
        ..Config::default()
    };
    Ok(NvmeDevice::bring_up(pci, arena, config)?)
}

fn blocks(name: &str, bytes: u64, block: u32) -> Result<u64, PerfError> {
    if bytes.is_multiple_of(u64::from(block)) {
        return Ok(bytes / u64::from(block));
    }
    let reason = format!("{bytes} bytes are no multiple of a block, {block} bytes");
    Err(BdevError::Invalid { name: name.to_owned(), reason }.into())
}

/// DMA memory for jobs on these targets, each with so many bytes of data.
///
/// # Errors
/// It is not to be had.
pub fn arena<'a>(
    jobs: impl Iterator<Item = (&'a Address, &'a Use, u64)>,
) -> Result<&'static Arena, PerfError> {
    /// What an SSD has for its admin queues and tables.
    const SSD_BYTES: u64 = 4 << 20;
    /// What each of its queue pairs has at most: 1,024 entries with a list of 2,048 bytes each.
    const QUEUE_BYTES: u64 = 4 << 20;
    /// What an association has for its admin queue, and each of its I/O queues.
    const ASSOCIATION_BYTES: u64 = 64 << 10;
    let (mut bytes, mut has_ssd) = (0, false);
    for (address, how, data) in jobs {
        let cores = how.cores as u64;
        let queues = match address {
            Address::Null { .. } | Address::Ram { .. } | Address::File { .. } => 0,
            Address::Pcie { .. } => SSD_BYTES + cores * QUEUE_BYTES,
            Address::Fabrics { .. } => (1 + cores) * ASSOCIATION_BYTES,
        };
        has_ssd |= matches!(address, Address::Pcie { .. });
        bytes = bytes.max(data + queues);
    }
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    // An SSD's memory must not move.
    Ok(if has_ssd { Arena::hugepages(bytes)? } else { Arena::plain_pages(bytes)? })
}
