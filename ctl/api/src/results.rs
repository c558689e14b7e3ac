//! What calls return. Field names are stable: scripts read them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::endpoint::{Endpoint, Transport};
use crate::volumes::Labels;

/// Result of `version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The daemon's version.
    pub version: String,
    /// Version of the interface, [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION).
    pub protocol: u32,
    /// The daemon's process.
    pub pid: u32,
    /// Time since it started, in milliseconds.
    pub uptime_ms: u64,
}

/// An NVMe controller on the PCI bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// PCI address.
    pub bdf: String,
    /// PCI vendor.
    pub vendor_id: u16,
    /// PCI device.
    pub device_id: u16,
    /// Model, where known.
    pub model: Option<String>,
    /// Serial number, where known.
    pub serial: Option<String>,
    /// Kernel driver that has it: `nvme`, `vfio-pci`, or none.
    pub driver: Option<String>,
    /// IOMMU group; none without an IOMMU.
    pub iommu_group: Option<u32>,
    /// Forebay drives it.
    pub open: bool,
    /// Who uses it: mounts, swap, md, LVM, processes.
    pub used_by: Vec<String>,
    /// What is on it: partition table, file system, other signatures. Not looked for on one that
    /// Forebay drives.
    pub signatures: Vec<String>,
    /// Why it cannot be told what is on it; then `signatures` says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents_unknown: Option<String>,
    /// Block devices that stand on its namespaces.
    pub bdevs: Vec<String>,
    /// What it says of its own health, where Forebay drives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<DeviceHealth>,
}

/// From an SSD's SMART / Health log, read at most a minute ago unless the SSD hangs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceHealth {
    /// What it warns of: `spare`, `temperature`, `reliability`, `read-only`, `backup`.
    pub warnings: Vec<String>,
    /// Composite temperature in degrees Celsius; none where it has no sensor.
    pub temperature_celsius: Option<i32>,
    /// Spare capacity that is left, in percent.
    pub spare_percent: u8,
    /// Percentage of it below which the SSD warns.
    pub spare_threshold_percent: u8,
    /// How much of its life is used, in percent; may go beyond 100.
    pub used_percent: u8,
    /// Times that data was not recovered.
    pub media_errors: u64,
    /// Times that it lost power without being told before.
    pub unsafe_shutdowns: u64,
    /// Hours that it was on.
    pub power_on_hours: u64,
    /// Bytes written to it over its life.
    pub written_bytes: u64,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BdevInfo {
    /// Its name.
    pub name: String,
    /// `nvme`, `file`, `ram`, `null`, `volume` or `snapshot`.
    pub kind: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Size of its logical blocks in bytes.
    pub block_bytes: u32,
    /// `live`, `recovering` or `failed`.
    pub health: String,
    /// Who has claimed it: the NQN of a subsystem, or a pool.
    pub claimed_by: Option<String>,
    /// The file, or the controller's PCI address.
    pub path: Option<String>,
}

/// Whether a pool is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolState {
    /// It serves its volumes.
    Open,
    /// It is being opened or closed.
    Changing,
    /// It is kept, and not open: its volumes cannot be reached.
    Down,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether it is open. Unless it is, sizes are 0.
    pub state: PoolState,
    /// Why it is not.
    pub reason: Option<String>,
    /// The block devices it is made of.
    pub bdevs: Vec<String>,
    /// What its block devices hold, in bytes.
    pub size_bytes: u64,
    /// Bytes that nothing uses.
    pub free_bytes: u64,
    /// Of those, bytes that are kept for what reserved volumes may still write.
    pub kept_bytes: u64,
    /// Of those, bytes that other volumes may have. What is left is for metadata.
    pub available_bytes: u64,
    /// Bytes that are on their way to be free.
    pub releasing_bytes: u64,
    /// How full it is, in percent; what is being released counts as used.
    pub used_percent: u8,
    /// Blocks of the journal that are in use.
    pub journal_used: u64,
    /// Blocks of the journal.
    pub journal_blocks: u64,
    /// Volumes and snapshots in it.
    pub volumes: u64,
    /// Volumes and snapshots that cannot be used.
    pub damaged: Vec<DamagedVolume>,
    /// Its block devices, one by one, while it is open.
    #[serde(default)]
    pub devices: Vec<PoolDevice>,
    /// One of them is being removed.
    #[serde(default)]
    pub removal: Option<RemovalInfo>,
    /// What somebody should look after.
    pub warnings: Vec<String>,
}

/// A block device of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDevice {
    /// Its name.
    pub bdev: String,
    /// Bytes of it that the pool uses.
    pub size_bytes: u64,
    /// Bytes of those that hold something, but for the journal.
    pub used_bytes: u64,
    /// It has a copy of the journal.
    pub journal: bool,
    /// Bytes that it has become larger by: `pool.grow` takes them into use.
    pub growth_bytes: u64,
}

/// A block device on its way out of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovalInfo {
    /// Its name.
    pub bdev: String,
    /// Bytes that were on it when that began.
    pub total_bytes: u64,
    /// Bytes that still are.
    pub left_bytes: u64,
}

/// A volume or snapshot that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedVolume {
    /// `POOL/NAME`.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a check of a pool found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// It was open, and compared what it has counted with its maps. If not, all of it was read.
    pub open: bool,
    /// What is wrong.
    pub faults: Vec<PoolFault>,
    /// Copies that are missing as a crash may leave them: opening the pool writes them anew.
    pub notes: Vec<String>,
    /// It was repaired: all that was found is good again.
    pub repaired: bool,
}

/// Something that is wrong with a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolFault {
    /// The volumes and snapshots that it closes, `POOL/NAME` each.
    pub volumes: Vec<String>,
    /// What it is, and where.
    pub what: String,
    /// There is another copy.
    pub repairable: bool,
}

/// A pool that could be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundPool {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Block devices of it that are there.
    pub bdevs: Vec<String>,
    /// How many it has.
    pub bdevs_expected: u32,
    /// Whether it was closed in order. If not, its target has ended otherwise.
    #[serde(default)]
    pub exported: bool,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// A volume; a clone is one.
    Volume,
    /// A snapshot.
    Snapshot,
}

/// A volume or snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// `POOL/NAME`.
    pub name: String,
    /// What it is.
    pub kind: VolumeKind,
    /// The snapshot that it comes from: of a volume its newest one, or the one that it was cloned
    /// from or rolled back to; of a snapshot the one before it.
    pub parent: Option<String>,
    /// Of a snapshot: the volume that it is of, if that is still there.
    pub line: Option<String>,
    /// What hosts know it by.
    pub uuid: String,
    /// It takes no writes.
    pub read_only: bool,
    /// Space for all of it is kept.
    pub reserved: bool,
    /// Bytes that are kept for what it may still write.
    pub kept_bytes: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Size of its logical blocks in bytes.
    pub block_bytes: u32,
    /// Bytes that hold data, shared with others or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped_bytes: Option<u64>,
    /// Bytes that nothing else holds: what deleting it would free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_bytes: Option<u64>,
    /// Its labels.
    pub labels: Labels,
    /// For people.
    pub description: String,
    /// When it was made, in seconds since 1970.
    pub created_s: u64,
    /// What the snapshots of one instant have in common.
    pub group: Option<String>,
    /// Who has claimed it: the NQN of a subsystem.
    pub claimed_by: Option<String>,
}

/// What was written between two snapshots or volumes, from some byte on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Where, in order.
    pub extents: Vec<Extent>,
    /// Where to go on; none at the end.
    pub next: Option<u64>,
}

/// A part of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Its first byte.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Whether an export is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportState {
    /// Hosts that may connect reach it.
    Up,
    /// It is on its way to the cores.
    Starting,
    /// It is kept, and not served.
    Down,
}

/// An exported block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportInfo {
    /// The block device.
    pub bdev: String,
    /// The subsystem's NQN.
    pub nqn: String,
    /// The namespace's number in it.
    pub nsid: u32,
    /// Whether it is served.
    pub state: ExportState,
    /// Why not.
    pub reason: Option<String>,
    /// The namespace's UUID.
    pub uuid: String,
    /// The namespace's NGUID: 32 hexadecimal digits.
    pub nguid: String,
    /// The subsystem's serial number.
    pub serial: String,
    /// Every host may connect.
    pub any_host: bool,
    /// Hosts that may connect.
    pub hosts: Vec<String>,
    /// Where it can be reached.
    pub listeners: Vec<ListenerInfo>,
    /// The lines that attach it on a Linux host, one for each address.
    pub connect_commands: Vec<String>,
}

/// An address that takes connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerInfo {
    /// `rdma` or `tcp`.
    pub transport: Transport,
    /// Address and port.
    pub address: SocketAddr,
}

impl From<Endpoint> for ListenerInfo {
    fn from(Endpoint { transport, address }: Endpoint) -> Self {
        Self { transport, address }
    }
}

/// Who may reach a subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAccess {
    /// The subsystem.
    pub nqn: String,
    /// Every host.
    pub any_host: bool,
    /// These hosts.
    pub hosts: Vec<String>,
}

/// A host's connection to a subsystem: one controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// The subsystem.
    pub nqn: String,
    /// The host.
    pub host_nqn: String,
    /// Its host identifier, as a UUID.
    pub host_id: String,
    /// The controller's number.
    pub cntlid: u16,
    /// `rdma` or `tcp`.
    pub transport: Transport,
    /// The host's end.
    pub host_address: SocketAddr,
    /// Our end.
    pub local_address: SocketAddr,
    /// Keep-alive time-out in milliseconds; 0 for none.
    pub keep_alive_ms: u32,
    /// Its queues, the admin queue (qid 0) first.
    pub queues: Vec<QueueInfo>,
}

/// A queue of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Queue identifier; 0 is the admin queue.
    pub qid: u16,
    /// The reactor that serves it.
    pub core: u32,
    /// Entries granted.
    pub depth: u16,
    /// Commands being worked on.
    pub in_flight: u32,
    /// Commands received so far.
    pub commands: u64,
}

/// Result of `stats`. Everything counts from the daemon's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Time since the daemon started, in milliseconds.
    pub uptime_ms: u64,
    /// Reactors.
    pub cores: Vec<CoreStats>,
    /// Exported namespaces.
    pub namespaces: Vec<NamespaceStats>,
    /// Each core's way to each block device: for an SSD, a queue pair.
    pub channels: Vec<ChannelStats>,
    /// I/O queue pairs of SSDs.
    pub queue_pairs: Vec<QueuePairStats>,
    /// Each core's end of the network.
    pub carriers: Vec<CarrierStats>,
    /// The arena that all data moves through.
    pub memory: MemoryStats,
}

/// What a reactor did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreStats {
    /// The reactor.
    pub core: u32,
    /// Turns of its loop.
    pub turns: u64,
    /// Turns that found something to do.
    pub busy_turns: u64,
    /// Time of those, in nanoseconds.
    pub busy_ns: u64,
    /// I/O commands ended.
    pub ios: u64,
    /// `busy_ns / ios`: what an I/O costs; 0 before the first.
    pub busy_ns_per_io: u64,
    /// Commands that waited for a buffer.
    pub buffer_waits: u64,
    /// Commands that waited for a block device's queue.
    pub channel_waits: u64,
    /// Bytes of data that the CPU moved in or out of buffers, rather than an SSD or a NIC: none
    /// between those two, all for memory. What the kernel copies for a file is not known.
    pub copied_bytes: u64,
}

/// What hosts did to a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceStats {
    /// The subsystem.
    pub nqn: String,
    /// The namespace.
    pub nsid: u32,
    /// Read commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Other I/O commands.
    pub others: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Commands that ended with an error.
    pub errors: u64,
}

/// What went through a core's way to a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelStats {
    /// The block device.
    pub bdev: String,
    /// The reactor.
    pub core: u32,
    /// I/Os submitted.
    pub submitted: u64,
    /// I/Os that ended with an error.
    pub errors: u64,
    /// I/Os under way.
    pub in_flight: u32,
}

/// What an I/O queue pair of an SSD did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePairStats {
    /// PCI address of the SSD.
    pub bdf: String,
    /// Queue identifier.
    pub qid: u16,
    /// Commands handed to the SSD.
    pub submissions: u64,
    /// Commands it completed.
    pub completions: u64,
    /// Of those, with an error.
    pub errors: u64,
    /// Completions for no command in flight: dropped.
    pub stale: u64,
    /// Doorbell registers written.
    pub doorbells: u64,
}

/// What went over a core's end of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarrierStats {
    /// `rdma` or `tcp`.
    pub transport: String,
    /// The reactor.
    pub core: u32,
    /// Command capsules received.
    pub capsules: u64,
    /// Responses sent.
    pub responses: u64,
    /// Transfers of data from hosts: RDMA READs; with TCP, those that were asked for (R2T).
    pub reads: u64,
    /// Transfers of data to hosts: RDMA WRITEs; with TCP, C2HData PDUs.
    pub writes: u64,
    /// Work requests posted, in chains; with TCP, the PDUs of the above and the responses.
    pub posts: u64,
    /// System calls: those that posting took, one a chain on software devices; with TCP, to find
    /// what arrived, to receive and to send.
    pub system_calls: u64,
}

/// The arena.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// Size in bytes.
    pub arena_bytes: u64,
    /// Not given to any pool, in bytes.
    pub free_bytes: u64,
    /// Its parts.
    pub pools: Vec<PoolStats>,
}

/// A part of the arena.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStats {
    /// What it is for: `data` or `connections`.
    pub name: String,
    /// The reactor.
    pub core: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Free, in bytes.
    pub free_bytes: u64,
}
