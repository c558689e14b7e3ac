//! An NVMe controller in software, with declared faults.
//!
//! [`EmulatedNvme`] stands behind the driver's seam (`nvme::PciDevice`): registers, an admin queue,
//! I/O queues that it reads from the arena by I/O virtual address, namespaces in memory, a volatile
//! write cache that [`EmulatedNvme::power_cut`] loses, shadow doorbells.
//!
//! It is deterministic. It works when a doorbell is written, or, where [`Setup::stepped`] says so,
//! when [`EmulatedNvme::step`] is called; it knows no time. A [`Fault`] is declared before and
//! happens then. It also watches the driver: what a driver must not do is noted in
//! [`EmulatedNvme::violations`].
//!
//! What it does not do: interrupts, namespace management, SGLs, anything a driver under test does
//! not use.
#![forbid(unsafe_code)]

mod admin;
mod core;
mod io;
mod media;

use std::sync::{Mutex, MutexGuard, PoisonError};

use dma::Arena;
use nvme::{PciDevice, SeamError};
use nvme_spec::aer::AsyncEvent;
use nvme_spec::status::Status;

use crate::core::Core;

/// What the controller is like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Of each namespace, from NSID 1.
    pub namespaces: Vec<NamespaceSetup>,
    /// PCI vendor and device identifiers.
    pub ids: (u16, u16),
    /// MDTS: the longest transfer is this power of two of 4 KiB; 0: no limit.
    pub mdts: u8,
    /// I/O queue pairs that it grants.
    pub queue_count: u16,
    /// MQES, 0's based.
    pub mqes_z: u16,
    /// What limits commands without data (Identify Controller of the NVM command set).
    pub limits: CommandLimits,
    /// Offers shadow doorbells.
    pub shadow_doorbells: bool,
    /// Works on I/O queues only when stepped.
    pub stepped: bool,
    /// Serial number.
    pub serial: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            namespaces: vec![NamespaceSetup::default()],
            ids: (0x1234, 1),
            mdts: 5,
            queue_count: 8,
            mqes_z: 1023,
            limits: CommandLimits::default(),
            shadow_doorbells: false,
            stepped: false,
            serial: "EMU1",
        }
    }
}

/// The fields of the figure; 0: no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommandLimits {
    /// Write Zeroes Size Limit: a power of two of 4 KiB.
    pub wzsl: u8,
    /// Dataset Management Ranges Limit.
    pub dmrl: u8,
    /// Dataset Management Range Size Limit, blocks.
    pub dmrsl: u32,
    /// Dataset Management Size Limit, blocks.
    pub dmsl: u64,
}

/// What a namespace is like.
#[derive(Clone, Copy, Debug)]
pub struct NamespaceSetup {
    /// LBADS: blocks of this power of two of bytes. Only 9 and 12 do I/O.
    pub lbads: u8,
    /// Size in blocks.
    pub block_count: u64,
    /// Bytes of metadata per block that it claims to have.
    pub metadata_bytes: u16,
    /// The command set that it claims to be of.
    pub csi: u8,
}

impl Default for NamespaceSetup {
    fn default() -> Self {
        Self { lbads: 9, block_count: 16 << 10, metadata_bytes: 0, csi: 0 }
    }
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next I/O command is held: neither done nor answered, until [`EmulatedNvme::let_go`], an
    /// abort or a reset.
    Hold,
    /// The next I/O command ends with this status.
    BadStatus(Status),
    /// The next I/O completion is preceded by one with an identifier of no command in flight.
    StaleCid,
    /// The next I/O completion comes twice.
    DoubledCompletion,
    /// CSTS.CFS is set now, and all work stops.
    ControllerFatal,
    /// CSTS.RDY becomes 0 now, and all work stops.
    ReadyDrops,
    /// Registers read this from now on (all ones, or zeroes), all work stops, and configuration
    /// space does not answer.
    SurpriseRemoval {
        /// What every register reads.
        reads: u32,
    },
    /// The kernel asks for the device.
    OrderlyRemoval,
    /// CSTS.RDY stays 0 when enabled.
    NeverReady,
    /// CSTS.CFS is set when enabled, and CSTS.RDY stays 0.
    FatalWhenEnabled,
    /// CSTS.SHST does not say that a shutdown is complete.
    NeverShutDown,
    /// CSTS.RDY stays 1 when disabled, and work goes on.
    NeverDisabled,
    /// Bus mastering cannot be turned off.
    BusMasterStuck,
    /// The arena cannot be unmapped.
    StaysMapped,
    /// A function reset does nothing and says so.
    ResetFails,
    /// A function reset lasts until this is taken back.
    SlowReset,
    /// Aborts are answered but do nothing.
    IgnoreAbort,
    /// Aborts are not answered, and do nothing.
    DeafAbort,
    /// Admin commands are not answered.
    DeafAdmin,
    /// Identify data is all ones.
    GarbageIdentify,
    /// After the next reset it has another serial number.
    OtherSerial,
}

/// The controller. Share it with the driver in an `Arc`.
#[derive(Debug)]
pub struct EmulatedNvme {
    core: Mutex<Core>,
}

impl EmulatedNvme {
    /// A controller that reaches this arena and nothing else.
    pub fn new(arena: &'static Arena, setup: Setup) -> Self {
        Self { core: Mutex::new(Core::new(arena, setup)) }
    }

    /// Works on everything submitted.
    pub fn step(&self) {
        self.core().step();
    }

    /// Declares a fault. Those that befall "the next" of something queue up.
    pub fn inject(&self, fault: Fault) {
        self.core().inject(fault);
    }

    /// Takes back a lasting fault.
    pub fn mend(&self, fault: Fault) {
        self.core().lasting.retain(|&other| other != fault);
    }

    /// Does and answers the commands that are held: late, but as they should be.
    pub fn let_go(&self) {
        self.core().let_go();
    }

    /// Commands that are held.
    pub fn held(&self) -> usize {
        self.core().held.len()
    }

    /// Answers an Asynchronous Event Request; false when it has none.
    pub fn report(&self, event: AsyncEvent) -> bool {
        self.core().report(event)
    }

    /// Sets the temperature of the SMART log.
    pub fn set_temperature(&self, kelvin: u16) {
        self.core().temperature_kelvin = kelvin;
    }

    /// Makes a namespace another one, empty.
    pub fn reformat(&self, nsid: u32, namespace: NamespaceSetup) {
        self.core().reformat(nsid, namespace);
    }

    /// Whether the function may access memory.
    pub fn is_bus_master(&self) -> bool {
        self.core().bus_master
    }

    /// Function resets so far.
    pub fn reset_count(&self) -> u32 {
        self.core().reset_count
    }

    /// Whether the arena is in its reach.
    pub fn is_mapped(&self) -> bool {
        self.core().is_mapped
    }

    /// Loses what is in the volatile write cache.
    pub fn power_cut(&self) {
        self.core().media.iter_mut().for_each(media::Media::power_cut);
    }

    /// Bytes of a namespace, from its cache or media.
    pub fn bytes(&self, nsid: u32, offset: usize, len: usize) -> Vec<u8> {
        self.core().media[nsid as usize - 1].bytes(offset, len).to_vec()
    }

    /// How often it was enabled.
    pub fn enabled_count(&self) -> u32 {
        self.core().enabled_count
    }

    /// What the driver did that no driver may do.
    pub fn violations(&self) -> Vec<String> {
        self.core().violations.clone()
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciDevice for EmulatedNvme {
    fn name(&self) -> String {
        format!("emulated {}", self.core().setup.serial)
    }

    fn ids(&self) -> (u16, u16) {
        self.core().setup.ids
    }

    fn register_bytes(&self) -> usize {
        0x4000
    }

    fn read32(&self, offset: u32) -> u32 {
        self.core().read(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.core().write(offset, value);
    }

    fn set_bus_master(&self, on: bool) -> Result<(), SeamError> {
        self.core().set_bus_master(on)
    }

    fn begin_reset(&self) -> Result<(), SeamError> {
        self.core().begin_reset();
        Ok(())
    }

    fn poll_reset(&self) -> Option<Result<(), SeamError>> {
        self.core().poll_reset()
    }

    fn unmap_arena(&self) -> Result<(), SeamError> {
        self.core().unmap_arena()
    }

    fn take_removal_request(&self) -> bool {
        std::mem::take(&mut self.core().removal_requested)
    }
}
