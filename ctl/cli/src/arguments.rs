//! What can be typed.

use std::path::PathBuf;

use api::{Endpoint, parse_size};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::volume_arguments::{PoolCommand, SnapshotCommand, VolumeCommand};

/// Exports NVMe SSDs over RDMA: the command line of the Forebay daemon.
#[derive(Debug, Parser)]
#[command(
    name = "forebay",
    version,
    after_help = "Exit codes: 0 success; 1 the daemon refused or failed; 2 wrong usage; \
                  3 the daemon cannot be reached."
)]
pub(crate) struct Arguments {
    /// Socket of the daemon
    #[arg(long, global = true, value_name = "PATH", env = "FOREBAY_SOCKET",
          default_value = api::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// Print JSON for scripts instead of tables
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// NVMe controllers of this machine
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Block devices that can be exported
    #[command(subcommand)]
    Bdev(BdevCommand),
    /// Pools of block devices, that volumes are carved from
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Thin volumes in pools
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Snapshots of volumes, and clones of them
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Export a block device, volume or snapshot to hosts
    Export(ExportArguments),
    /// End an export
    Unexport(UnexportArguments),
    /// List exports
    Exports,
    /// Who may connect
    #[command(subcommand)]
    Host(HostCommand),
    /// Connected hosts
    #[command(subcommand)]
    Connection(ConnectionCommand),
    /// Counters
    Stats {
        /// Repeat every so many seconds
        #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..=86400))]
        watch: Option<u32>,
    },
    /// Set how much the daemon logs
    Log { level: Level },
    /// End the daemon in good order
    Shutdown,
    /// Versions of this program and of the daemon
    Version,
    /// Print completions for a shell
    Completions { shell: Shell },
    /// Print the manual page
    Man,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Show each controller, who drives it and what is on it
    List,
    /// Show one controller, with its health where Forebay drives it
    Show {
        /// PCI address, such as 0000:01:00.0
        #[arg(value_parser = checked(api::check_bdf))]
        bdf: String,
    },
    /// Take a controller from the kernel
    Bind {
        /// PCI address, such as 0000:01:00.0
        #[arg(value_parser = checked(api::check_bdf))]
        bdf: String,
        /// Take it although it bears a file system, partition table or other signature
        #[arg(long)]
        force: bool,
    },
    /// Give a controller back to the kernel
    Release {
        /// PCI address, such as 0000:01:00.0
        #[arg(value_parser = checked(api::check_bdf))]
        bdf: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BdevCommand {
    /// Show all block devices
    List,
    /// Make a block device
    #[command(subcommand)]
    Create(CreateCommand),
    /// Remove a block device that was made
    Delete {
        #[arg(value_parser = checked(api::check_bdev_name))]
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CreateCommand {
    /// Of memory; its contents end with the daemon
    Ram(SizedArguments),
    /// Of nothing, for benchmarks: writes vanish
    Null(SizedArguments),
    /// Of a file or a block device of the kernel
    File {
        #[arg(value_parser = checked(api::check_bdev_name))]
        name: String,
        /// The file; made if it does not exist and --size is given
        path: PathBuf,
        /// Size of a new file, or of one that must have it: 256M, 1G, 1GiB
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
        /// Size of a logical block: 512 or 4096
        #[arg(long, default_value_t = 4096, value_parser = parse_block_bytes)]
        block_size: u32,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SizedArguments {
    #[arg(value_parser = checked(api::check_bdev_name))]
    pub(crate) name: String,
    /// Size: 256M, 1G, 1GiB
    #[arg(value_parser = parse_size)]
    pub(crate) size: u64,
    /// Size of a logical block: 512 or 4096
    #[arg(long, default_value_t = 4096, value_parser = parse_block_bytes)]
    pub(crate) block_size: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// The block device, volume or snapshot (see `forebay bdev list`)
    #[arg(value_parser = checked(api::check_export_name))]
    pub(crate) bdev: String,
    /// Name of the subsystem [default: nqn.2026-11.io.forebay:BDEV]
    #[arg(long, value_parser = checked(api::check_subsystem_nqn))]
    pub(crate) nqn: Option<String>,
    /// A host that may connect, by its NQN (/etc/nvme/hostnqn there); may be repeated
    #[arg(long = "host", value_name = "NQN", value_parser = checked(api::check_host_nqn))]
    pub(crate) hosts: Vec<String>,
    /// Let every host connect
    #[arg(long, conflicts_with = "hosts")]
    pub(crate) any_host: bool,
    /// Number of the namespace [default: the lowest free one]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=0xFFFF_FFFE))]
    pub(crate) nsid: Option<u32>,
    /// Where to listen, for RDMA unless it begins with tcp://, on port 4420 unless another is
    /// given; may be repeated [default: as the daemon was configured]
    #[arg(long = "listen", value_name = "[tcp://]ADDR[:PORT]")]
    pub(crate) listeners: Vec<Endpoint>,
}

#[derive(Debug, Args)]
pub(crate) struct UnexportArguments {
    /// Name of the subsystem (see `forebay exports`)
    #[arg(value_parser = checked(api::check_subsystem_nqn))]
    pub(crate) nqn: String,
    /// Only this namespace of it
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=0xFFFF_FFFE))]
    pub(crate) nsid: Option<u32>,
    /// Although hosts are connected
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Let a host connect to a subsystem, or every host
    Allow(HostArguments),
    /// Take that back, and disconnect who may not be there any more
    Deny(HostArguments),
    /// Show who may connect to what
    List {
        /// Only this subsystem
        #[arg(value_parser = checked(api::check_subsystem_nqn))]
        nqn: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct HostArguments {
    /// Name of the subsystem
    #[arg(value_parser = checked(api::check_subsystem_nqn))]
    pub(crate) nqn: String,
    /// NQN of the host
    #[arg(value_parser = checked(api::check_host_nqn), required_unless_present = "any_host")]
    pub(crate) host: Option<String>,
    /// Every host instead of one; those allowed by name are another matter
    #[arg(long, conflicts_with = "host")]
    pub(crate) any_host: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConnectionCommand {
    /// Show connected hosts and their queues
    List,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// A parser of arguments from a check of the control socket.
pub(crate) fn checked(
    check: fn(&str) -> Result<(), String>,
) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |text| check(text).map(|()| text.to_owned())
}

pub(crate) fn parse_block_bytes(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text)?.try_into().unwrap_or(u32::MAX);
    api::check_block_bytes(bytes).map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn bad_input_is_refused_before_the_daemon_sees_it() {
        for line in [
            "device bind 01:00",
            "device bind",
            "device show x",
            "bdev create ram r0",
            "bdev create ram r0 5X",
            "bdev create ram r0 1G --block-size 1024",
            "bdev create tape t0 1G",
            "bdev delete a/b",
            "export ram0 --nqn bad",
            "export ram0 --host bad",
            "export ram0 --any-host --host nqn.2026-11.io.a:b",
            "export ram0 --any-host --listen host:1",
            "export ram0 --any-host --listen 10.0.0.1:0",
            "export ram0 --any-host --nsid 0",
            "host allow nqn.2026-11.io.a:b",
            "host deny nqn.2026-11.io.a:b nqn.2026-11.io.a:b --any-host",
            "stats --watch 0",
            "pool create tank",
            "pool create a/b ram0",
            "pool create tank tank/a",
            "pool create tank ram0 --journal x",
            "volume create tank 1G",
            "volume create tank/a 1G --label x",
            "volume create tank/a 1G --block-size 1024",
            "volume delete",
            "volume delete tank/a --label a=b",
            "volume rename tank/a tank/b",
            "volume label tank/a",
            "volume label tank/a =b",
            "volume resize tank/a",
            "snapshot create tank/a",
            "snapshot create --name a",
            "snapshot delete",
            "snapshot clone tank/a.s tank/b",
            "",
        ] {
            let line = format!("forebay {line}");
            assert!(Arguments::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
