//! What survives a restart: block devices, exports, and who may connect.
//!
//! One JSON file, written whole to a temporary file beside it, flushed, and renamed over the old
//! one, so that a crash leaves either the old state or the new. Identities (serial number, NSID,
//! UUID, NGUID) are made when an export is created and stand here: hosts know volumes by them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// The layout that this version writes. A file of a newer one is refused.
const VERSION: u32 = 1;

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
    /// Subsystems with their namespaces.
    pub(crate) exports: Vec<Export>,
}

impl Default for State {
    fn default() -> Self {
        Self { version: VERSION, devices: BTreeMap::new(), bdevs: Vec::new(), exports: Vec::new() }
    }
}

/// How to make a block device again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedBdev {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<PathBuf>,
}

/// One subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Export {
    pub(crate) nqn: String,
    pub(crate) serial: String,
    pub(crate) any_host: bool,
    pub(crate) hosts: BTreeSet<String>,
    pub(crate) namespaces: Vec<SavedNamespace>,
}

/// One namespace of a subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedNamespace {
    pub(crate) nsid: u32,
    pub(crate) bdev: String,
    pub(crate) uuid: Uuid,
    pub(crate) nguid: Uuid,
}

/// Why the state cannot be read or kept.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    #[error("{}: {action}: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error(
        "{}: {reason}; it was left as it is: mend it, or move it away to start without exports",
        path.display()
    )]
    Invalid { path: PathBuf, reason: String },
}

/// The file that holds the state.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The file `state.json` in `directory`, which is made if it is missing.
    pub(crate) fn new(directory: &Path) -> Result<Self, StateError> {
        let path = directory.join("state.json");
        fs::create_dir_all(directory).map_err(|source| StateError::Io {
            path: path.clone(),
            action: "mkdir",
            source,
        })?;
        Ok(Self { path })
    }

    /// The state that was saved last, or the empty one.
    ///
    /// # Errors
    /// The file cannot be read, or does not hold what [`StateFile::save`] writes.
    pub(crate) fn load(&self) -> Result<State, StateError> {
        let invalid = |reason: String| StateError::Invalid { path: self.path.clone(), reason };
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(State::default());
            }
            Err(source) => return Err(self.error("reading", source)),
        };
        let state: State =
            serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        state.check().map_err(invalid)?;
        Ok(state)
    }

    /// Replaces the saved state. When it returns, the new one survives power loss.
    ///
    /// # Errors
    /// The file cannot be written; the old one stands.
    pub(crate) fn save(&self, state: &State) -> Result<(), StateError> {
        let mut text = serde_json::to_string_pretty(state).map_err(|error| {
            StateError::Invalid { path: self.path.clone(), reason: error.to_string() }
        })?;
        text.push('\n');
        let temporary = self.path.with_extension("json.new");
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            // The bytes before the name: after a crash the name never leads to half a file.
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        write().map_err(|source| self.error("writing", source))
    }

    fn error(&self, action: &'static str, source: std::io::Error) -> StateError {
        StateError::Io { path: self.path.clone(), action, source }
    }
}

impl State {
    fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("it has version {}; this forebay-target reads 1", self.version));
        }
        for bdev in &self.bdevs {
            let checked = api::check_block_bytes(bdev.block_bytes);
            checked.map_err(|reason| format!("bdevs: {:?}: {reason}", bdev.name))?;
        }
        let mut nqns = BTreeSet::new();
        for export in &self.exports {
            let nqn = &export.nqn;
            if !nvme_spec::fabrics::is_valid_nqn(nqn) || !nqns.insert(nqn) {
                return Err(format!("exports: {nqn:?} is not an NQN, or stands there twice"));
            }
            let mut nsids = BTreeSet::new();
            for namespace in &export.namespaces {
                let nsid = namespace.nsid;
                let limit = nvmf::limits::MAX_NAMESPACES as u32;
                if !(1..=limit).contains(&nsid) || !nsids.insert(nsid) {
                    return Err(format!("{nqn}: NSID {nsid} is outside 1..={limit}, or twice"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> State {
        State {
            bdevs: vec![SavedBdev {
                kind: "ram".to_owned(),
                name: "ram0".to_owned(),
                size_bytes: 1 << 20,
                block_bytes: 4096,
                path: None,
            }],
            exports: vec![Export {
                nqn: "nqn.2026-11.io.forebay:a".to_owned(),
                serial: "FB01".to_owned(),
                any_host: false,
                hosts: BTreeSet::from(["nqn.2014-08.org.nvmexpress:uuid:1".to_owned()]),
                namespaces: vec![SavedNamespace {
                    nsid: 1,
                    bdev: "ram0".to_owned(),
                    uuid: Uuid::from_u128(1),
                    nguid: Uuid::from_u128(2),
                }],
            }],
            ..State::default()
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::new(&directory.path().join("deep")).unwrap();
        assert_eq!(file.load().unwrap(), State::default());
        file.save(&sample()).unwrap();
        assert_eq!(file.load().unwrap(), sample());
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::new(directory.path()).unwrap();
        file.save(&sample()).unwrap();
        let path = directory.path().join("state.json");
        let good = fs::read_to_string(&path).unwrap();
        let damages = [
            good.replace("\"version\": 1", "\"version\": 2"),
            good.replace("nqn.2026-11", "nqn.2026-99"),
            good.replace("\"nsid\": 1", "\"nsid\": 0"),
            good.replace("\"block_bytes\": 4096", "\"block_bytes\": 0"),
            good[..good.len() / 2].to_owned(),
            String::new(),
        ];
        for bad in damages {
            fs::write(&path, &bad).unwrap();
            let error = file.load().unwrap_err().to_string();
            assert!(error.contains("state.json"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
    }
}
