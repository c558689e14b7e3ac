//! Requests and responses of the control socket.
//!
//! The daemon listens on a Unix socket and speaks JSON-RPC 2.0, one JSON object a line in either
//! direction. [`Request::parse`] turns a line into a [`Call`] whose parameters are checked as far
//! as they can be without knowing the daemon's state, or into the [`Response`] that says what is
//! wrong with it. The types in [`results`] are what `--json` of the command line prints, so their
//! field names are stable. [`LineBuffer`] cuts a stream into lines for both ends;
//! [`ControlSocket`] is the calling end, blocking and with a time-out. [`parse_size`] and
//! [`show_size`] are how sizes are typed and shown.
//!
//! It does no I/O for the daemon, knows no batches and no notifications: every request has an id
//! and gets one response.
#![forbid(unsafe_code)]

mod endpoint;
mod error;
pub mod limits;
mod line;
mod names;
mod request;
pub mod results;
mod rpc;
mod size;
mod socket;
mod volumes;

pub use endpoint::{Endpoint, Transport};
pub use error::{ErrorCode, ErrorDetails, RpcError};
pub use line::{LineBuffer, LineTooLong};
pub use names::{
    check_bdev_name, check_bdf, check_block_bytes, check_export_name, check_host_nqn,
    check_label_key, check_nqn, check_pool_name, check_size, check_subsystem_nqn,
    check_volume_name, connect_command, default_nqn, snapshot_of, split_volume_name,
};
pub use request::{
    BdevCreate, BdevDelete, BdevKind, Call, DeviceBind, DeviceRelease, DeviceShow, ExportAdd,
    ExportRemove, HostChange, HostList, LogLevel, LogSet, METHODS, Nothing,
};
pub use rpc::{Id, Request, Response};
pub use size::{parse_size, show_size};
pub use socket::{CallError, ControlSocket};
pub use volumes::{
    Labels, PoolAdd, PoolCheck, PoolCreate, PoolDestroy, PoolImport, PoolName, PoolRemove,
    SnapshotClone, SnapshotCreate, SnapshotDiff, SnapshotList, VolumeCreate, VolumeLabel,
    VolumeList, VolumeName, VolumeRename, VolumeReserve, VolumeResize, VolumeRollback,
};

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/forebay/forebay.sock";

/// Port of NVMe/RDMA that IANA assigned, used where none is given.
pub const DEFAULT_PORT: u16 = 4420;

/// Version of this interface. It grows when a method, parameter or result changes its meaning;
/// additions leave it as it is.
pub const PROTOCOL_VERSION: u32 = 1;
