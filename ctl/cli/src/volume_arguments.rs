//! What can be typed about pools, volumes and snapshots.

use api::parse_size;
use clap::{Args, Subcommand};

use crate::arguments::{checked, parse_block_bytes};

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Make a pool of block devices, for volumes to be carved from
    Create {
        #[arg(value_parser = checked(api::check_pool_name))]
        name: String,
        /// Its block devices (see `forebay bdev list`); what is on them is lost
        #[arg(value_name = "BDEV", required = true, value_parser = checked(api::check_bdev_name))]
        bdevs: Vec<String>,
        /// Although there is something on them
        #[arg(long)]
        force: bool,
        /// Size of the journal, of which there are two copies [default: a 64th of the pool, at most
        /// 128M]
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        journal: Option<u64>,
    },
    /// Open a pool that is on block devices; without a name, list those that could be opened
    Import {
        /// Its name, or its UUID where several have the same name
        #[arg(value_parser = checked(api::check_pool_name))]
        name: Option<String>,
        /// Although a part of a volume cannot be read: the others are opened. It stays closed for
        /// good then, as what it had may be written over
        #[arg(long, requires = "name")]
        force: bool,
    },
    /// Close a pool of which nothing is exported; its block devices are free then
    Export {
        #[arg(value_parser = checked(api::check_pool_name))]
        name: String,
    },
    /// Add block devices to a pool that is open; what is on them is lost
    Add {
        /// The pool
        #[arg(value_parser = checked(api::check_pool_name))]
        name: String,
        /// The block devices (see `forebay bdev list`)
        #[arg(value_name = "BDEV", required = true, value_parser = checked(api::check_bdev_name))]
        bdevs: Vec<String>,
        /// Although there is something on them
        #[arg(long)]
        force: bool,
    },
    /// Use block devices of a pool that have become larger to their end
    Grow {
        /// The pool
        #[arg(value_parser = checked(api::check_pool_name))]
        name: String,
    },
    /// Move everything from a block device of a pool to its others, while hosts do I/O, and let it
    /// go
    Remove {
        /// The pool
        #[arg(value_parser = checked(api::check_pool_name))]
        name: String,
        /// The block device
        #[arg(value_parser = checked(api::check_bdev_name))]
        bdev: String,
        /// Do not wait for its end; `forebay pool show` tells how far it is
        #[arg(long, conflicts_with = "cancel")]
        no_wait: bool,
        /// Let it stay after all: what has been moved stays where it is now
        #[arg(long)]
        cancel: bool,
    },
    /// Destroy a pool of which nothing is exported: what is in it is lost, its block devices are
    /// free
    Destroy {
        #[arg(value_parser = checked(api::check_pool_name))]
        name: String,
        /// Although there are volumes or snapshots in it
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Look for what is wrong with a pool; exits with 1 if something is. One that is open compares
    /// what it has counted with its maps, while I/O on it waits. One that is not is read whole, and
    /// not written
    Check {
        /// Its name; of one that is not open its UUID will do
        #[arg(value_parser = checked(api::check_pool_name))]
        name: String,
        /// Of one that is not open: write anew what has another copy
        #[arg(long)]
        repair: bool,
    },
    /// Show all pools
    List,
    /// Show one pool: how full it is, what is wrong with it
    #[command(visible_alias = "status")]
    Show {
        #[arg(value_parser = checked(api::check_pool_name))]
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a volume; it takes space as it is written, unless that is reserved
    Create {
        /// POOL/NAME
        #[arg(value_parser = checked(api::check_volume_name))]
        volume: String,
        /// Size: 256M, 1G, 1GiB
        #[arg(value_parser = parse_size)]
        size: u64,
        /// Size of a logical block: 512 or 4096
        #[arg(long, default_value_t = 4096, value_parser = parse_block_bytes)]
        block_size: u32,
        /// Keep space for all of it: no write is refused because the pool is full
        #[arg(long)]
        reserve: bool,
        #[command(flatten)]
        labels: Labels,
        /// A sentence for people
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Show volumes and snapshots
    List {
        /// Only those of this pool
        #[arg(value_parser = checked(api::check_pool_name))]
        pool: Option<String>,
        #[command(flatten)]
        labels: Labels,
        /// As a tree: snapshots below their volume, clones below the snapshot they come from
        #[arg(long)]
        tree: bool,
    },
    /// Show one volume or snapshot
    Show {
        /// POOL/NAME
        #[arg(value_parser = checked(api::check_volume_name))]
        volume: String,
    },
    /// Remove volumes that are not exported; their snapshots and clones stay
    Delete {
        /// POOL/NAME
        #[arg(value_name = "VOLUME", value_parser = checked(api::check_volume_name),
              required_unless_present = "labels", conflicts_with = "labels")]
        volumes: Vec<String>,
        #[command(flatten)]
        labels: Labels,
        /// With --label: do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Give a volume or snapshot that is not exported another name
    Rename {
        /// POOL/NAME
        #[arg(value_parser = checked(api::check_volume_name))]
        volume: String,
        /// Its new name, without the pool
        #[arg(value_parser = checked(api::check_pool_name))]
        name: String,
    },
    /// Change the size of a volume, exported or not; attached hosts see it
    Resize {
        /// POOL/NAME
        #[arg(value_parser = checked(api::check_volume_name))]
        volume: String,
        /// Its new size: 256M, 1G, 1GiB
        #[arg(value_parser = parse_size)]
        size: u64,
        /// Blocks that were written may be cut off
        #[arg(long)]
        force: bool,
    },
    /// Keep space for all of a volume, so that no write of it is refused because the pool is full
    Reserve {
        /// POOL/NAME
        #[arg(value_parser = checked(api::check_volume_name))]
        volume: String,
        /// Keep none any longer: it takes space as it is written
        #[arg(long)]
        off: bool,
    },
    /// Set and take away labels of a volume or snapshot
    Label {
        /// POOL/NAME
        #[arg(value_parser = checked(api::check_volume_name))]
        volume: String,
        /// KEY=VALUE sets a label, KEY- takes it away
        #[arg(value_name = "KEY=VALUE|KEY-", value_parser = parse_label_change,
              required_unless_present = "description")]
        changes: Vec<(String, Option<String>)>,
        /// A sentence for people, in place of the old one
        #[arg(long)]
        description: Option<String>,
    },
    /// Make a volume what a snapshot is; what it was becomes another snapshot
    Rollback {
        /// POOL/NAME
        #[arg(value_parser = checked(api::check_volume_name))]
        volume: String,
        /// The snapshot, with its pool or without
        snapshot: String,
        /// Name of the snapshot of what the volume was, without the pool
        /// [default: VOLUME.before-rollback-1, or the next number]
        #[arg(long, value_name = "NAME", value_parser = checked(api::check_pool_name))]
        keep: Option<String>,
        /// Although it is exported: hosts lose the namespace, and see it again afterwards
        #[arg(long)]
        force: bool,
    },
    /// Let a clone take the place of what it was cloned from: the snapshots that both have in
    /// common are its own afterwards. Nothing is copied
    Promote {
        /// POOL/NAME
        #[arg(value_parser = checked(api::check_volume_name))]
        volume: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Take snapshots of one or several volumes of a pool, all of one instant. That of POOL/VOLUME
    /// is named POOL/VOLUME.NAME
    Create {
        /// POOL/VOLUME
        #[arg(value_name = "VOLUME", required = true,
              value_parser = checked(api::check_volume_name))]
        volumes: Vec<String>,
        /// What their names end with
        #[arg(long, value_parser = checked(api::check_pool_name))]
        name: String,
    },
    /// Show snapshots
    List {
        /// Only those of this volume, POOL/VOLUME
        #[arg(value_parser = checked(api::check_volume_name))]
        volume: Option<String>,
    },
    /// Remove snapshots that are not exported; their volumes and clones stay
    Delete {
        /// POOL/VOLUME.NAME
        #[arg(value_name = "SNAPSHOT", required = true,
              value_parser = checked(api::check_volume_name))]
        snapshots: Vec<String>,
    },
    /// Show what was written between two snapshots or volumes of a pool
    Diff {
        /// The earlier one, POOL/NAME
        #[arg(value_parser = checked(api::check_volume_name))]
        from: String,
        /// The later one
        #[arg(value_parser = checked(api::check_volume_name))]
        to: String,
    },
    /// Make a volume that begins as a snapshot is; nothing is copied
    Clone {
        /// POOL/VOLUME.NAME
        #[arg(value_parser = checked(api::check_volume_name))]
        snapshot: String,
        /// Name of the new volume, without the pool
        #[arg(value_parser = checked(api::check_pool_name))]
        name: String,
        /// It takes no writes
        #[arg(long)]
        read_only: bool,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Labels {
    /// Those with this label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(String, String)>,
}

impl Labels {
    pub(crate) fn map(&self) -> api::Labels {
        self.labels.iter().cloned().collect()
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not like KEY=VALUE")?;
    api::check_label_key(key)?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_label_change(text: &str) -> Result<(String, Option<String>), String> {
    if let Some(key) = text.strip_suffix('-')
        && !key.contains('=')
    {
        return api::check_label_key(key).map(|()| (key.to_owned(), None));
    }
    parse_label(text).map(|(key, value)| (key, Some(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_taken_away() {
        let set = |key: &str, value: &str| Ok((key.to_owned(), Some(value.to_owned())));
        assert_eq!(parse_label_change("a=b"), set("a", "b"));
        assert_eq!(parse_label_change("a=b-"), set("a", "b-"));
        assert_eq!(parse_label_change("a="), set("a", ""));
        assert_eq!(parse_label_change("a=b=c"), set("a", "b=c"));
        assert_eq!(parse_label_change("a-"), Ok(("a".to_owned(), None)));
        for text in ["a", "", "-", "=b", "a b=c", "a-=b"] {
            assert!(parse_label_change(text).is_err(), "{text}");
        }
    }
}
