//! The methods of the control socket and their parameters.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endpoint::Endpoint;
use crate::error::{ErrorCode, RpcError};
use crate::limits::{BLOCK_BYTES, MAX_HOSTS, MAX_LISTENERS};
use crate::names::{
    check_bdev_name, check_bdf, check_block_bytes, check_export_name, check_host_nqn,
    check_pool_name, check_size, check_subsystem_nqn, check_volume_name,
};
use crate::volumes::{
    PoolAdd, PoolCheck, PoolCreate, PoolDestroy, PoolImport, PoolName, PoolRemove, SnapshotClone,
    SnapshotCreate, SnapshotDiff, SnapshotList, VolumeCreate, VolumeLabel, VolumeList, VolumeName,
    VolumeRename, VolumeReserve, VolumeResize, VolumeRollback,
};

/// The methods in one table: variant, name, parameters.
macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident($params:ty) = $name:literal;)*) => {
        /// What is asked of the daemon, with parameters.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Call {
            $($(#[$doc])* $variant($params),)*
        }

        /// The names of all methods.
        pub const METHODS: &[&str] = &[$($name),*];

        impl Call {
            /// The name of the method.
            pub fn method(&self) -> &'static str {
                match self {
                    $(Call::$variant(_) => $name,)*
                }
            }

            pub(crate) fn params(&self) -> serde_json::Result<Value> {
                match self {
                    $(Call::$variant(params) => serde_json::to_value(params),)*
                }
            }

            pub(crate) fn parse(method: &str, params: Value) -> Result<Call, RpcError> {
                let call = match method {
                    $($name => Call::$variant(parse_params(params)?),)*
                    _ => {
                        let message = format!("no such method: {method:?}");
                        return Err(RpcError::new(ErrorCode::UnknownMethod, message));
                    }
                };
                call.check()?;
                Ok(call)
            }
        }
    };
}

methods! {
    /// Versions of the daemon and the interface.
    /// Returns [`VersionInfo`](crate::results::VersionInfo).
    Version(Nothing) = "version";
    /// NVMe controllers of this machine.
    /// Returns a list of [`DeviceInfo`](crate::results::DeviceInfo).
    DeviceList(Nothing) = "device.list";
    /// One of them. Returns its `DeviceInfo`.
    DeviceShow(DeviceShow) = "device.show";
    /// Takes a controller from the kernel and opens it. Returns its `DeviceInfo`.
    DeviceBind(DeviceBind) = "device.bind";
    /// Gives a controller back to the kernel. Returns its `DeviceInfo`.
    DeviceRelease(DeviceRelease) = "device.release";
    /// Block devices. Returns a list of [`BdevInfo`](crate::results::BdevInfo).
    BdevList(Nothing) = "bdev.list";
    /// Makes a block device. Returns its `BdevInfo`.
    BdevCreate(BdevCreate) = "bdev.create";
    /// Removes a block device that was made, and that nothing uses. Returns nothing.
    BdevDelete(BdevDelete) = "bdev.delete";
    /// Makes a pool of block devices. Returns its [`PoolInfo`](crate::results::PoolInfo).
    PoolCreate(PoolCreate) = "pool.create";
    /// Opens a pool that is on block devices. Returns its `PoolInfo`.
    PoolImport(PoolImport) = "pool.import";
    /// Pools that could be opened.
    /// Returns a list of [`FoundPool`](crate::results::FoundPool).
    PoolScan(Nothing) = "pool.scan";
    /// Closes a pool that nothing uses. Returns nothing.
    PoolExport(PoolName) = "pool.export";
    /// Adds block devices to a pool. Returns its `PoolInfo`.
    PoolAdd(PoolAdd) = "pool.add";
    /// Uses block devices of a pool that have become larger to their end. Returns its `PoolInfo`.
    PoolGrow(PoolName) = "pool.grow";
    /// Begins to remove a block device from a pool, or gives that up. Returns its `PoolInfo`, which
    /// tells how far that is.
    PoolRemove(PoolRemove) = "pool.remove";
    /// Destroys a pool that nothing uses: its block devices are free. Returns nothing.
    PoolDestroy(PoolDestroy) = "pool.destroy";
    /// Pools. Returns a list of `PoolInfo`.
    PoolList(Nothing) = "pool.list";
    /// One of them. Returns its `PoolInfo`.
    PoolShow(PoolName) = "pool.show";
    /// Compares what a pool has counted with its maps, while I/O waits; reads one that is not open.
    /// Returns a [`PoolReport`](crate::results::PoolReport).
    PoolCheck(PoolCheck) = "pool.check";
    /// Makes a volume. Returns its [`VolumeInfo`](crate::results::VolumeInfo).
    VolumeCreate(VolumeCreate) = "volume.create";
    /// Volumes and snapshots. Returns a list of `VolumeInfo`.
    VolumeList(VolumeList) = "volume.list";
    /// One of them. Returns its `VolumeInfo`.
    VolumeShow(VolumeName) = "volume.show";
    /// Removes a volume that is not exported. Returns nothing.
    VolumeDelete(VolumeName) = "volume.delete";
    /// Gives a volume or snapshot that is not exported another name. Returns its `VolumeInfo`.
    VolumeRename(VolumeRename) = "volume.rename";
    /// Changes the size of a volume; hosts that have it hear of it. Returns its `VolumeInfo`.
    VolumeResize(VolumeResize) = "volume.resize";
    /// Keeps space for all of a volume, or no longer. Returns its `VolumeInfo`.
    VolumeReserve(VolumeReserve) = "volume.reserve";
    /// Changes labels and description of a volume or snapshot. Returns its `VolumeInfo`.
    VolumeLabel(VolumeLabel) = "volume.label";
    /// Makes a volume what a snapshot is. What it was stays as another snapshot. Returns the
    /// volume's `VolumeInfo`.
    VolumeRollback(VolumeRollback) = "volume.rollback";
    /// Lets a clone take the place of what it was cloned from. Returns its `VolumeInfo`.
    VolumePromote(VolumeName) = "volume.promote";
    /// Takes snapshots of one instant. Returns a list of `VolumeInfo`, in the order asked for.
    SnapshotCreate(SnapshotCreate) = "snapshot.create";
    /// Snapshots. Returns a list of `VolumeInfo`.
    SnapshotList(SnapshotList) = "snapshot.list";
    /// Removes a snapshot that is not exported. Returns nothing.
    SnapshotDelete(VolumeName) = "snapshot.delete";
    /// What was written between two snapshots or volumes of a pool.
    /// Returns a [`Difference`](crate::results::Difference).
    SnapshotDiff(SnapshotDiff) = "snapshot.diff";
    /// Makes a volume that begins as a snapshot is. Returns its `VolumeInfo`.
    SnapshotClone(SnapshotClone) = "snapshot.clone";
    /// Exports a block device. Returns its [`ExportInfo`](crate::results::ExportInfo).
    ExportAdd(ExportAdd) = "export.add";
    /// Ends an export. Returns nothing.
    ExportRemove(ExportRemove) = "export.remove";
    /// Exports. Returns a list of `ExportInfo`.
    ExportList(Nothing) = "export.list";
    /// Lets a host reach a subsystem, or every host.
    /// Returns the subsystem's [`HostAccess`](crate::results::HostAccess).
    HostAllow(HostChange) = "host.allow";
    /// Ends that, and disconnects who may not reach it any more. Returns the subsystem's
    /// `HostAccess`.
    HostDeny(HostChange) = "host.deny";
    /// Who may reach what. Returns a list of `HostAccess`.
    HostList(HostList) = "host.list";
    /// Connected hosts. Returns a list of [`ConnectionInfo`](crate::results::ConnectionInfo).
    ConnectionList(Nothing) = "connection.list";
    /// Counters. Returns [`Stats`](crate::results::Stats).
    Stats(Nothing) = "stats";
    /// Sets how much is logged. Returns nothing.
    LogLevel(LogSet) = "log.level";
    /// Ends the daemon in good order. Returns nothing, before it ends.
    Shutdown(Nothing) = "shutdown";
}

/// No parameters; also the result of a call that returns nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Parameters of `device.show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceShow {
    /// PCI address, such as `0000:01:00.0`.
    pub bdf: String,
}

/// Parameters of `device.bind`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceBind {
    /// PCI address, such as `0000:01:00.0`.
    pub bdf: String,
    /// Take it although it bears a file system, partition table or other signature. A device in
    /// use is refused all the same.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `device.release`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRelease {
    /// PCI address, such as `0000:01:00.0`.
    pub bdf: String,
}

/// Backends that can be made by request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BdevKind {
    /// Memory; its contents end with the daemon.
    Ram,
    /// Nothing: writes vanish, reads return zeroes. For benchmarks.
    Null,
    /// A file or a block device of the kernel.
    File,
}

/// Parameters of `bdev.create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BdevCreate {
    /// What it is made of.
    pub kind: BdevKind,
    /// Its name, unique in the daemon.
    pub name: String,
    /// Its size in bytes. Needed for `ram` and `null`; a file is made with it, or must have it
    /// if it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Size of its logical blocks: 512 or 4096 (the default).
    #[serde(default = "default_block_bytes")]
    pub block_bytes: u32,
    /// The file's absolute path, for `file` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Parameters of `bdev.delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BdevDelete {
    /// Its name.
    pub name: String,
}

/// Parameters of `export.add`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportAdd {
    /// The block device; a volume or snapshot is `POOL/NAME`.
    pub bdev: String,
    /// The subsystem's name; by default [`default_nqn`](crate::default_nqn) of the bdev.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nqn: Option<String>,
    /// Hosts that may connect, by NQN.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Every host may connect.
    #[serde(default)]
    pub any_host: bool,
    /// The namespace's number in the subsystem; by default the lowest free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsid: Option<u32>,
    /// Where to listen; by default where the daemon's configuration says.
    #[serde(default)]
    pub listeners: Vec<Endpoint>,
}

/// Parameters of `export.remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRemove {
    /// The subsystem.
    pub nqn: String,
    /// One namespace of it; by default all of them, and the subsystem with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsid: Option<u32>,
    /// End it although hosts are connected.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `host.allow` and `host.deny`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostChange {
    /// The subsystem.
    pub nqn: String,
    /// One host, by its NQN: either this or `any_host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Every host that is not named.
    #[serde(default)]
    pub any_host: bool,
}

/// Parameters of `host.list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostList {
    /// Only this subsystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nqn: Option<String>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What went wrong.
    Error,
    /// And what is odd.
    Warn,
    /// And what happens at the rate of connections.
    Info,
    /// And what happens at the rate of admin commands.
    Debug,
}

/// Parameters of `log.level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSet {
    /// The new level.
    pub level: LogLevel,
}

pub(crate) fn default_block_bytes() -> u32 {
    4096
}

fn parse_params<T: for<'de> Deserialize<'de>>(params: Value) -> Result<T, RpcError> {
    if !params.is_object() {
        return Err(RpcError::invalid("params", "is not an object"));
    }
    serde_path_to_error::deserialize(params).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "params".to_owned() } else { path };
        RpcError::invalid(field, error.inner())
    })
}

/// What can be said of parameters without knowing the daemon's state.
impl Call {
    fn check(&self) -> Result<(), RpcError> {
        match self {
            Call::DeviceShow(DeviceShow { bdf })
            | Call::DeviceBind(DeviceBind { bdf, .. })
            | Call::DeviceRelease(DeviceRelease { bdf }) => check_field("bdf", check_bdf(bdf)),
            Call::BdevCreate(create) => create.check(),
            Call::BdevDelete(delete) => check_field("name", check_bdev_name(&delete.name)),
            Call::ExportAdd(add) => add.check(),
            Call::ExportRemove(remove) => {
                check_field("nqn", check_subsystem_nqn(&remove.nqn))?;
                check_nsid(remove.nsid)
            }
            Call::HostAllow(change) | Call::HostDeny(change) => {
                check_field("nqn", check_subsystem_nqn(&change.nqn))?;
                match (&change.host, change.any_host) {
                    (Some(host), false) => check_field("host", check_host_nqn(host)),
                    (None, true) => Ok(()),
                    _ => Err(RpcError::invalid("host", "is needed, or any_host, not both")),
                }
            }
            Call::HostList(HostList { nqn: Some(nqn) }) => {
                check_field("nqn", check_subsystem_nqn(nqn))
            }
            _ => self.check_volumes(),
        }
    }

    fn check_volumes(&self) -> Result<(), RpcError> {
        match self {
            Call::PoolCreate(create) => create.check(),
            Call::PoolAdd(add) => add.check(),
            Call::PoolRemove(PoolRemove { name, bdev, .. }) => {
                check_field("name", check_pool_name(name))?;
                check_field("bdev", check_bdev_name(bdev))
            }
            Call::PoolImport(PoolImport { name, .. })
            | Call::PoolGrow(PoolName { name })
            | Call::PoolExport(PoolName { name })
            | Call::PoolDestroy(PoolDestroy { name, .. })
            | Call::PoolCheck(PoolCheck { name, .. })
            | Call::PoolShow(PoolName { name }) => check_field("name", check_pool_name(name)),
            Call::VolumeCreate(create) => create.check(),
            Call::VolumeList(list) => list.check(),
            Call::VolumeShow(VolumeName { volume })
            | Call::VolumeDelete(VolumeName { volume })
            | Call::VolumePromote(VolumeName { volume })
            | Call::VolumeReserve(VolumeReserve { volume, .. })
            | Call::SnapshotDelete(VolumeName { volume })
            | Call::SnapshotList(SnapshotList { volume: Some(volume) }) => {
                check_field("volume", check_volume_name(volume))
            }
            Call::VolumeRename(VolumeRename { volume, name }) => {
                check_field("volume", check_volume_name(volume))?;
                check_field("name", check_pool_name(name))
            }
            Call::VolumeResize(VolumeResize { volume, size_bytes, .. }) => {
                check_field("volume", check_volume_name(volume))?;
                check_field("size_bytes", check_size(*size_bytes, BLOCK_BYTES[0]))
            }
            Call::VolumeLabel(label) => label.check(),
            Call::VolumeRollback(rollback) => rollback.check(),
            Call::SnapshotCreate(create) => create.check(),
            Call::SnapshotClone(clone) => clone.check(),
            Call::SnapshotDiff(diff) => diff.check(),
            _ => Ok(()),
        }
    }
}

impl BdevCreate {
    fn check(&self) -> Result<(), RpcError> {
        check_field("name", check_bdev_name(&self.name))?;
        check_field("block_bytes", check_block_bytes(self.block_bytes))?;
        if let Some(size_bytes) = self.size_bytes {
            check_field("size_bytes", check_size(size_bytes, self.block_bytes))?;
        }
        match (self.kind, &self.path) {
            (BdevKind::File, None) => Err(RpcError::invalid("path", "is needed for a file")),
            (BdevKind::File, Some(path)) if !path.starts_with('/') || path.contains('\0') => {
                Err(RpcError::invalid("path", format!("{path:?} is no absolute path")))
            }
            (BdevKind::File, Some(_)) => Ok(()),
            (_, Some(_)) => Err(RpcError::invalid("path", "is for kind \"file\" only")),
            (_, None) if self.size_bytes.is_none() => {
                Err(RpcError::invalid("size_bytes", "is needed for this kind"))
            }
            (_, None) => Ok(()),
        }
    }
}

impl ExportAdd {
    fn check(&self) -> Result<(), RpcError> {
        check_field("bdev", check_export_name(&self.bdev))?;
        if let Some(nqn) = &self.nqn {
            check_field("nqn", check_subsystem_nqn(nqn))?;
        }
        check_nsid(self.nsid)?;
        check_count("hosts", self.hosts.len(), MAX_HOSTS)?;
        check_count("listeners", self.listeners.len(), MAX_LISTENERS)?;
        for (index, host) in self.hosts.iter().enumerate() {
            check_field(&format!("hosts[{index}]"), check_host_nqn(host))?;
        }
        Ok(())
    }
}

/// NSID 0 and FFFFFFFFh name no namespace (NVMe Base 2.1, section 3.2.1).
fn check_nsid(nsid: Option<u32>) -> Result<(), RpcError> {
    match nsid {
        Some(nsid @ (0 | u32::MAX)) => {
            Err(RpcError::invalid("nsid", format!("{nsid} names no namespace")))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_count(field: &str, count: usize, max: usize) -> Result<(), RpcError> {
    if count <= max {
        return Ok(());
    }
    Err(RpcError::invalid(field, format!("{count} given, {max} are allowed")))
}

pub(crate) fn check_field(field: &str, outcome: Result<(), String>) -> Result<(), RpcError> {
    outcome.map_err(|reason| RpcError::invalid(field, reason))
}
