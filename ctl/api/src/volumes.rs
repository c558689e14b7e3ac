//! Parameters of the methods for pools, volumes and snapshots.
//!
//! A volume or snapshot is named `POOL/NAME` everywhere. What is made in a pool (a clone, a kept
//! snapshot, a new name) is named by `NAME` alone, since it cannot be in another one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::RpcError;
use crate::limits::{
    MAX_DESCRIPTION_BYTES, MAX_LABEL_VALUE_BYTES, MAX_LABELS, MAX_POOL_DEVICES, MAX_SNAPSHOT_GROUP,
    MIN_JOURNAL_BYTES,
};
use crate::names::{
    check_bdev_name, check_block_bytes, check_pool_name, check_size, check_volume_name, snapshot_of,
};
use crate::request::{check_count, check_field, default_block_bytes};

/// Labels of a volume: `key=value`.
pub type Labels = BTreeMap<String, String>;

/// Parameters of `pool.create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolCreate {
    /// Its name.
    pub name: String,
    /// The block devices it is made of.
    pub bdevs: Vec<String>,
    /// Although there is something on them.
    #[serde(default)]
    pub force: bool,
    /// Size of the journal; by default it follows from the devices' size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_bytes: Option<u64>,
}

/// Parameters of `pool.export` and `pool.show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolName {
    /// Its name.
    pub name: String,
}

/// Parameters of `pool.add`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolAdd {
    /// The pool.
    pub name: String,
    /// The block devices that come to it.
    pub bdevs: Vec<String>,
    /// Although there is something on them.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `pool.remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRemove {
    /// The pool.
    pub name: String,
    /// The block device that is to go.
    pub bdev: String,
    /// It is not to go after all.
    #[serde(default)]
    pub cancel: bool,
}

/// Parameters of `pool.destroy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolDestroy {
    /// Its name.
    pub name: String,
    /// Although there are volumes or snapshots in it.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `pool.import`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolImport {
    /// Its name, or its UUID.
    pub name: String,
    /// Although parts of volumes cannot be read; those are given up by that.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `pool.check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolCheck {
    /// Its name; of one that is not open its UUID will do.
    pub name: String,
    /// Of one that is not open: write anew what has another copy.
    #[serde(default)]
    pub repair: bool,
}

/// Parameters of `volume.create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// `POOL/NAME`.
    pub volume: String,
    /// Its size in bytes. Space is taken as it is written.
    pub size_bytes: u64,
    /// Size of its logical blocks: 512 or 4096 (the default).
    #[serde(default = "default_block_bytes")]
    pub block_bytes: u32,
    /// Space for all of it is kept, so that no write is refused for want of it.
    #[serde(default)]
    pub reserve: bool,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// For people.
    #[serde(default)]
    pub description: String,
}

/// Parameters of `volume.list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeList {
    /// Only those of this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Only those that have all of these labels.
    #[serde(default)]
    pub labels: Labels,
}

/// Parameters of `snapshot.list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotList {
    /// Only those of this volume, `POOL/NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// Parameters of `volume.show`, `volume.delete`, `volume.promote` and `snapshot.delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeName {
    /// `POOL/NAME`.
    pub volume: String,
}

/// Parameters of `volume.rename`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRename {
    /// `POOL/NAME`.
    pub volume: String,
    /// Its new name, without the pool.
    pub name: String,
}

/// Parameters of `volume.resize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeResize {
    /// `POOL/NAME`.
    pub volume: String,
    /// Its new size in bytes.
    pub size_bytes: u64,
    /// Blocks that were written may be cut off.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `volume.reserve`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeReserve {
    /// `POOL/NAME`.
    pub volume: String,
    /// Space for all of it is kept from here on, or no longer.
    pub reserve: bool,
}

/// Parameters of `volume.label`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeLabel {
    /// `POOL/NAME`.
    pub volume: String,
    /// Labels to set, and with `null` to take away; others stay.
    #[serde(default)]
    pub labels: BTreeMap<String, Option<String>>,
    /// Its new description; by default it keeps its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Parameters of `volume.rollback`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRollback {
    /// `POOL/NAME`.
    pub volume: String,
    /// The snapshot, without the pool.
    pub snapshot: String,
    /// Name of the snapshot that what the volume was becomes; by default
    /// `NAME.before-rollback-1`, or the next number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
    /// Although it is exported: the namespace is taken from its hosts meanwhile.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `snapshot.create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// The volumes, `POOL/NAME` each, of one pool. All snapshots are of one instant.
    pub volumes: Vec<String>,
    /// What each snapshot's name ends with: that of the volume `a` is `a.NAME`.
    pub name: String,
}

/// Parameters of `snapshot.clone`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotClone {
    /// `POOL/NAME`.
    pub snapshot: String,
    /// Name of the volume, without the pool.
    pub name: String,
    /// It takes no writes.
    #[serde(default)]
    pub read_only: bool,
}

/// Parameters of `snapshot.diff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotDiff {
    /// The earlier one, `POOL/NAME`; by default nothing: all that the other has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The later one, of the same pool.
    pub to: String,
    /// First byte to look at: where the answer before left off.
    #[serde(default)]
    pub start: u64,
}

impl PoolCreate {
    pub(crate) fn check(&self) -> Result<(), RpcError> {
        check_field("name", check_pool_name(&self.name))?;
        check_bdevs(&self.bdevs)?;
        match self.journal_bytes {
            Some(bytes) if bytes < MIN_JOURNAL_BYTES => {
                let reason = format!("{bytes} is less than {MIN_JOURNAL_BYTES}");
                Err(RpcError::invalid("journal_bytes", reason))
            }
            _ => Ok(()),
        }
    }
}

impl PoolAdd {
    pub(crate) fn check(&self) -> Result<(), RpcError> {
        check_field("name", check_pool_name(&self.name))?;
        check_bdevs(&self.bdevs)
    }
}

fn check_bdevs(bdevs: &[String]) -> Result<(), RpcError> {
    if bdevs.is_empty() {
        return Err(RpcError::invalid("bdevs", "one block device at least is needed"));
    }
    check_count("bdevs", bdevs.len(), MAX_POOL_DEVICES)?;
    for (index, bdev) in bdevs.iter().enumerate() {
        let field = format!("bdevs[{index}]");
        check_field(&field, check_bdev_name(bdev))?;
        if bdevs[..index].contains(bdev) {
            return Err(RpcError::invalid(field, format!("{bdev} is named twice")));
        }
    }
    Ok(())
}

impl VolumeCreate {
    pub(crate) fn check(&self) -> Result<(), RpcError> {
        check_field("volume", check_volume_name(&self.volume))?;
        check_field("block_bytes", check_block_bytes(self.block_bytes))?;
        check_field("size_bytes", check_size(self.size_bytes, self.block_bytes))?;
        check_labels(self.labels.iter().map(|(key, value)| (key, Some(value))))?;
        check_description(&self.description)
    }
}

impl VolumeLabel {
    pub(crate) fn check(&self) -> Result<(), RpcError> {
        check_field("volume", check_volume_name(&self.volume))?;
        if self.labels.is_empty() && self.description.is_none() {
            return Err(RpcError::invalid("labels", "nothing to change"));
        }
        check_labels(self.labels.iter().map(|(key, value)| (key, value.as_ref())))?;
        self.description.as_deref().map_or(Ok(()), check_description)
    }
}

impl VolumeList {
    pub(crate) fn check(&self) -> Result<(), RpcError> {
        if let Some(pool) = &self.pool {
            check_field("pool", check_pool_name(pool))?;
        }
        check_labels(self.labels.iter().map(|(key, value)| (key, Some(value))))
    }
}

impl VolumeRollback {
    pub(crate) fn check(&self) -> Result<(), RpcError> {
        check_field("volume", check_volume_name(&self.volume))?;
        check_field("snapshot", check_pool_name(&self.snapshot))?;
        self.keep.as_deref().map_or(Ok(()), |keep| check_field("keep", check_pool_name(keep)))
    }
}

impl SnapshotCreate {
    pub(crate) fn check(&self) -> Result<(), RpcError> {
        if self.volumes.is_empty() {
            return Err(RpcError::invalid("volumes", "of at least one volume"));
        }
        check_count("volumes", self.volumes.len(), MAX_SNAPSHOT_GROUP)?;
        check_field("name", check_pool_name(&self.name))?;
        let pool = |name: &str| name.split_once('/').map(|(pool, _)| pool.to_owned());
        for (index, volume) in self.volumes.iter().enumerate() {
            let field = format!("volumes[{index}]");
            check_field(&field, check_volume_name(volume))?;
            if pool(volume) != pool(&self.volumes[0]) {
                let reason = "is in another pool; one instant is of one pool";
                return Err(RpcError::invalid(field, reason));
            }
            if self.volumes[..index].contains(volume) {
                return Err(RpcError::invalid(field, format!("{volume} is named twice")));
            }
            check_field("name", check_volume_name(&snapshot_of(volume, &self.name)))?;
        }
        Ok(())
    }
}

impl SnapshotClone {
    pub(crate) fn check(&self) -> Result<(), RpcError> {
        check_field("snapshot", check_volume_name(&self.snapshot))?;
        check_field("name", check_pool_name(&self.name))
    }
}

impl SnapshotDiff {
    pub(crate) fn check(&self) -> Result<(), RpcError> {
        check_field("to", check_volume_name(&self.to))?;
        let Some(from) = &self.from else { return Ok(()) };
        check_field("from", check_volume_name(from))?;
        let pool = |name: &str| name.split_once('/').map(|(pool, _)| pool.to_owned());
        match pool(from) == pool(&self.to) {
            true => Ok(()),
            false => Err(RpcError::invalid("from", format!("is not in the pool of {}", self.to))),
        }
    }
}

fn check_labels<'a>(
    labels: impl Iterator<Item = (&'a String, Option<&'a String>)>,
) -> Result<(), RpcError> {
    for (index, (key, value)) in labels.enumerate() {
        check_count("labels", index + 1, MAX_LABELS)?;
        check_field("labels", crate::names::check_label_key(key))?;
        let value = value.map(String::as_str).unwrap_or_default();
        if value.len() > MAX_LABEL_VALUE_BYTES {
            let reason = format!("{key}: a value has {MAX_LABEL_VALUE_BYTES} bytes at most");
            return Err(RpcError::invalid("labels", reason));
        }
        if value.chars().any(char::is_control) {
            let reason = format!("{key}: {value:?} contains a control character");
            return Err(RpcError::invalid("labels", reason));
        }
    }
    Ok(())
}

fn check_description(text: &str) -> Result<(), RpcError> {
    if text.len() > MAX_DESCRIPTION_BYTES {
        let reason = format!("{} bytes, {MAX_DESCRIPTION_BYTES} are allowed", text.len());
        return Err(RpcError::invalid("description", reason));
    }
    match text.chars().find(|c| c.is_control() && !"\n\t".contains(*c)) {
        Some(c) => Err(RpcError::invalid("description", format!("contains {c:?}"))),
        None => Ok(()),
    }
}
