//! Subsystems and their namespaces, as configured.

use std::collections::{BTreeMap, BTreeSet};

use bdev::Geometry;
use uuid::Uuid;

use crate::limits::MAX_NAMESPACES;
use crate::output::SubsystemId;

/// A subsystem to add.
#[derive(Clone, Debug)]
pub struct SubsystemConfig {
    /// Its name.
    pub nqn: String,
    /// Serial number, 1 to 20 printable ASCII characters; the same for good.
    pub serial: String,
    /// Model number, 1 to 40 printable ASCII characters.
    pub model: String,
    /// Every host may connect.
    pub any_host: bool,
    /// Names of the hosts that may connect.
    pub hosts: Vec<String>,
}

/// A namespace to add.
#[derive(Clone, Debug)]
pub struct NamespaceConfig {
    /// Its identifier, or `None` for one that was not used before as long as there are any.
    pub nsid: Option<u32>,
    /// What people call it.
    pub name: String,
    /// Size and limits.
    pub geometry: Geometry,
    /// Its UUID; the same for good, unlike every other's.
    pub uuid: Uuid,
    /// Its NGUID; the same for good, unlike every other's.
    pub nguid: [u8; 16],
    /// Writes are refused.
    pub read_only: bool,
}

/// Counters behind the SMART log of a subsystem; the caller keeps them up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCounters {
    /// Critical warning bits (NVMe Base 2.1, figure "SMART / Health Information Log Page").
    pub critical_warning: u8,
    /// Composite temperature in kelvins; 0 where there is none.
    pub temperature_kelvin: u16,
    /// Available spare in percent.
    pub available_spare: u8,
    /// Percentage used.
    pub percentage_used: u8,
    /// Bytes read by hosts.
    pub read_bytes: u64,
    /// Bytes written by hosts.
    pub write_bytes: u64,
    /// Read commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Media and data integrity errors.
    pub media_errors: u64,
    /// Hours of operation.
    pub power_on_hours: u64,
}

impl Default for HealthCounters {
    /// Something in good health that has done nothing yet, and has no temperature.
    fn default() -> Self {
        Self {
            critical_warning: 0,
            temperature_kelvin: 0,
            available_spare: 100,
            percentage_used: 0,
            read_bytes: 0,
            write_bytes: 0,
            reads: 0,
            writes: 0,
            media_errors: 0,
            power_on_hours: 0,
        }
    }
}

/// A namespace of a subsystem.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its identifier.
    pub nsid: u32,
    /// What people call it.
    pub name: String,
    /// Size and limits.
    pub geometry: Geometry,
    /// UUID.
    pub uuid: Uuid,
    /// NGUID.
    pub nguid: [u8; 16],
    /// Writes are refused.
    pub read_only: bool,
}

/// A subsystem with its namespaces and hosts.
#[derive(Clone, Debug)]
pub struct Subsystem {
    pub(crate) id: SubsystemId,
    pub(crate) nqn: String,
    pub(crate) serial: String,
    pub(crate) model: String,
    pub(crate) any_host: bool,
    pub(crate) hosts: BTreeSet<String>,
    pub(crate) namespaces: BTreeMap<u32, Namespace>,
    pub(crate) health: HealthCounters,
    /// The highest NSID ever used: one of another namespace is not handed out again until all were.
    pub(crate) highest_nsid: u32,
    /// Removed by its owner; stays until its last queue is gone.
    pub(crate) removed: bool,
}

impl Subsystem {
    /// Where it stands in the tables of the data path.
    pub fn id(&self) -> SubsystemId {
        self.id
    }

    /// Name.
    pub fn nqn(&self) -> &str {
        &self.nqn
    }

    /// Serial number.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Model number.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whether every host may connect.
    pub fn any_host(&self) -> bool {
        self.any_host
    }

    /// Names of the hosts that may connect, in order.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(String::as_str)
    }

    /// Namespaces by NSID.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// Whether this host may see it and connect to it.
    pub fn allows(&self, host_nqn: &str) -> bool {
        self.any_host || self.hosts.contains(host_nqn)
    }

    pub(crate) fn has_volatile_cache(&self) -> bool {
        self.namespaces.values().any(|namespace| namespace.geometry.volatile_write_cache)
    }

    /// An NSID for a new namespace; `None` when all are taken.
    pub(crate) fn free_nsid(&self) -> Option<u32> {
        let fresh = self.highest_nsid + 1;
        if fresh <= MAX_NAMESPACES as u32 {
            return Some(fresh);
        }
        (1..=MAX_NAMESPACES as u32).find(|nsid| !self.namespaces.contains_key(nsid))
    }
}
