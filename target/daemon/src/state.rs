//! What survives a restart: block devices, exports, and who may connect.
//!
//! Identities (serial number, NSID, UUID, NGUID) are made when an export is created and stand here:
//! hosts know volumes by them. What a namespace was made on stands beside them: after a restart it
//! is served from the same data, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use api::{BdevKind, Endpoint};
use bdev::Bdev;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::limits::MAX_EXPORTS;

/// The layout that this version writes. A file of a newer one is refused.
pub(crate) const VERSION: u32 = 1;

/// Everything that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    version: u32,
    /// SSDs to take from the kernel: serial numbers by PCI address. An SSD with another serial
    /// number at the same address is another SSD, and stays with the kernel.
    pub(crate) devices: BTreeMap<String, String>,
    /// Block devices that users created.
    pub(crate) bdevs: Vec<SavedBdev>,
    /// Pools that are to be open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pools: Vec<SavedPool>,
    /// Subsystems with their namespaces.
    pub(crate) exports: Vec<Export>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            devices: BTreeMap::new(),
            bdevs: Vec::new(),
            pools: Vec::new(),
            exports: Vec::new(),
        }
    }
}

/// How to make a block device again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedBdev {
    pub(crate) kind: BdevKind,
    pub(crate) name: String,
    /// 0 for a file, which has its own.
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<PathBuf>,
}

/// A pool that is to be open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPool {
    pub(crate) name: String,
    /// By what it is found again; its block devices say themselves that they are of it.
    pub(crate) uuid: Uuid,
    /// To say which is missing.
    pub(crate) bdevs: Vec<String>,
}

/// One subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Export {
    pub(crate) nqn: String,
    pub(crate) serial: String,
    pub(crate) any_host: bool,
    pub(crate) hosts: BTreeSet<String>,
    /// Addresses that are listened on for its sake, besides those of the command line.
    pub(crate) listeners: BTreeSet<Endpoint>,
    pub(crate) namespaces: Vec<SavedNamespace>,
}

/// One namespace of a subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedNamespace {
    pub(crate) nsid: u32,
    pub(crate) bdev: String,
    pub(crate) made_on: BdevIdentity,
    pub(crate) uuid: Uuid,
    pub(crate) nguid: Uuid,
}

/// By what a block device is known again: a name alone may have passed to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BdevIdentity {
    pub(crate) uuid: Uuid,
    pub(crate) block_bytes: u32,
    pub(crate) block_count: u64,
}

impl BdevIdentity {
    pub(crate) fn of(bdev: &dyn Bdev) -> Self {
        let bdev::Geometry { block_bytes, block_count, .. } = bdev.geometry();
        Self { uuid: bdev.uuid(), block_bytes, block_count }
    }
}

impl fmt::Display for BdevIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uuid, block_bytes, block_count } = self;
        write!(f, "UUID {uuid}, {block_count} blocks of {block_bytes} bytes")
    }
}

impl State {
    pub(crate) fn export(&self, nqn: &str) -> Option<&Export> {
        self.exports.iter().find(|export| export.nqn == nqn)
    }

    pub(crate) fn export_mut(&mut self, nqn: &str) -> Option<&mut Export> {
        self.exports.iter_mut().find(|export| export.nqn == nqn)
    }

    /// Enters a pool, in place of what was known of it.
    pub(crate) fn enter_pool(&mut self, pool: SavedPool) {
        self.pools.retain(|known| known.name != pool.name);
        self.pools.push(pool);
        self.pools.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// Namespaces of all exports.
    pub(crate) fn namespace_count(&self) -> usize {
        self.exports.iter().map(|export| export.namespaces.len()).sum()
    }

    /// Whether it is what the daemon could have saved; if not, what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        for bdev in &self.bdevs {
            bdev.check().map_err(|reason| format!("bdevs: {:?}: {reason}", bdev.name))?;
            once(&mut names, &bdev.name, "bdevs")?;
        }
        let (mut names, mut uuids) = (BTreeSet::new(), BTreeSet::new());
        for pool in &self.pools {
            let check = pool.bdevs.iter().try_for_each(|bdev| api::check_bdev_name(bdev));
            let check = check.and_then(|()| api::check_pool_name(&pool.name));
            check.map_err(|reason| format!("pools: {:?}: {reason}", pool.name))?;
            once(&mut names, &pool.name, "pools")?;
            once(&mut uuids, &pool.uuid, "pools: uuid")?;
        }
        if self.namespace_count() > MAX_EXPORTS {
            return Err(format!("exports: more than {MAX_EXPORTS} namespaces"));
        }
        let (mut nqns, mut uuids, mut nguids) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for export in &self.exports {
            export.check().map_err(|reason| format!("exports: {:?}: {reason}", export.nqn))?;
            once(&mut nqns, &export.nqn, "exports")?;
            for namespace in &export.namespaces {
                once(&mut uuids, &namespace.uuid, "exports: uuid")?;
                once(&mut nguids, &namespace.nguid, "exports: nguid")?;
            }
        }
        Ok(())
    }
}

impl SavedBdev {
    fn check(&self) -> Result<(), String> {
        api::check_bdev_name(&self.name)?;
        api::check_block_bytes(self.block_bytes)?;
        match (self.kind, &self.path) {
            (BdevKind::File, Some(_)) => Ok(()),
            (BdevKind::File, None) => Err("path is missing".to_owned()),
            (BdevKind::Ram | BdevKind::Null, _) => {
                api::check_size(self.size_bytes, self.block_bytes)
            }
        }
    }
}

impl Export {
    fn check(&self) -> Result<(), String> {
        api::check_subsystem_nqn(&self.nqn)?;
        let serial = self.serial.as_bytes();
        if !(1..=20).contains(&serial.len()) || !serial.iter().all(u8::is_ascii_graphic) {
            return Err(format!("{:?} is no serial number", self.serial));
        }
        let limit = nvmf::limits::MAX_HOSTS_PER_SUBSYSTEM;
        if self.hosts.len() > limit {
            return Err(format!("{} hosts, {limit} are allowed", self.hosts.len()));
        }
        for host in &self.hosts {
            api::check_host_nqn(host).map_err(|reason| format!("host {host:?} {reason}"))?;
        }
        let mut nsids = BTreeSet::new();
        for namespace in &self.namespaces {
            let nsid = namespace.nsid;
            let limit = nvmf::limits::MAX_NAMESPACES as u32;
            if !(1..=limit).contains(&nsid) {
                return Err(format!("NSID {nsid} is outside 1..={limit}"));
            }
            once(&mut nsids, nsid, "NSID")?;
            api::check_export_name(&namespace.bdev)?;
            api::check_block_bytes(namespace.made_on.block_bytes)?;
        }
        Ok(())
    }
}

/// Nothing that identifies may stand there twice.
fn once<T: Ord + Copy + fmt::Debug>(
    seen: &mut BTreeSet<T>,
    value: T,
    place: &str,
) -> Result<(), String> {
    if seen.insert(value) { Ok(()) } else { Err(format!("{place}: {value:?} stands there twice")) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One subsystem with a namespace on a RAM block device.
    pub(crate) fn sample() -> State {
        State {
            bdevs: vec![SavedBdev {
                kind: BdevKind::Ram,
                name: "ram0".to_owned(),
                size_bytes: 1 << 20,
                block_bytes: 4096,
                path: None,
            }],
            pools: vec![SavedPool {
                name: "tank".to_owned(),
                uuid: Uuid::from_u128(9),
                bdevs: vec!["ssd0n1".to_owned()],
            }],
            exports: vec![Export {
                nqn: "nqn.2026-11.io.forebay:a".to_owned(),
                serial: "FB01".to_owned(),
                any_host: false,
                hosts: BTreeSet::from(["nqn.2026-11.io.host:b".to_owned()]),
                listeners: BTreeSet::from(["10.0.0.1:4421".parse().unwrap()]),
                namespaces: vec![namespace(1, 1)],
            }],
            ..State::default()
        }
    }

    fn namespace(nsid: u32, seed: u128) -> SavedNamespace {
        SavedNamespace {
            nsid,
            bdev: "ram0".to_owned(),
            made_on: BdevIdentity { uuid: Uuid::from_u128(3), block_bytes: 4096, block_count: 256 },
            uuid: Uuid::from_u128(seed),
            nguid: Uuid::from_u128(seed + 100),
        }
    }

    #[test]
    fn what_could_not_have_been_saved_is_named() {
        assert_eq!(sample().check(), Ok(()));
        type Damage = fn(&mut State);
        let damages: [(&str, Damage); 16] = [
            ("a/b", |state| state.bdevs[0].name = "a/b".to_owned()),
            ("1000", |state| state.bdevs[0].size_bytes = 1000),
            ("1024", |state| state.bdevs[0].block_bytes = 1024),
            ("path", |state| state.bdevs[0].kind = BdevKind::File),
            ("ram0", |state| state.bdevs.push(state.bdevs[0].clone())),
            ("x/y", |state| state.pools[0].bdevs[0] = "x/y".to_owned()),
            ("tank", |state| state.pools.push(state.pools[0].clone())),
            ("pools: uuid", |state| {
                state.pools.push(SavedPool { name: "b".to_owned(), ..state.pools[0].clone() });
            }),
            ("nqn.2026-99", |state| state.exports[0].nqn = "nqn.2026-99.io:a".to_owned()),
            ("twice", |state| state.exports.push(state.exports[0].clone())),
            ("serial", |state| state.exports[0].serial = "x".repeat(21)),
            ("bad", |state| state.exports[0].hosts = ["bad".to_owned()].into()),
            ("NSID 0", |state| state.exports[0].namespaces[0].nsid = 0),
            ("NSID: 1", |state| state.exports[0].namespaces.push(namespace(1, 2))),
            ("uuid", |state| state.exports[0].namespaces.push(namespace(2, 1))),
            ("1024", |state| state.exports[0].namespaces[0].made_on.block_bytes = 1024),
        ];
        for (wanted, damage) in damages {
            let mut state = sample();
            damage(&mut state);
            let reason = state.check().unwrap_err();
            assert!(reason.contains(wanted), "{wanted}: {reason}");
        }
    }
}
