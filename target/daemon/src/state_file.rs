//! The file that holds the state.
//!
//! JSON, written whole to a temporary file beside it, flushed, and renamed over the old one, so
//! that a crash leaves either the old state or the new. One daemon at a time has it: see
//! [`crate::lock`].

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::state::{State, VERSION};

/// Why the state cannot be read or kept.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    #[error("{}: {action}: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: io::Error },
    #[error(
        "{}: syncing its directory: {source}; whether the old state or the new one survives a \
         power cut is open",
        path.display()
    )]
    Unsure { path: PathBuf, source: io::Error },
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

/// What every version's file begins with, as far as reading it goes.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl StateFile {
    /// The file `state.json` in `directory`, which exists.
    pub(crate) fn new(directory: &Path) -> Self {
        Self { path: directory.join("state.json") }
    }

    /// The state that was saved last, or the empty one.
    ///
    /// # Errors
    /// The file cannot be read, or does not hold what [`StateFile::save`] writes.
    pub(crate) fn load(&self) -> Result<State, StateError> {
        let invalid = |reason: String| StateError::Invalid { path: self.path.clone(), reason };
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::default()),
            Err(source) => return Err(self.error("reading", source)),
        };
        let parsing = |error: serde_json::Error| invalid(error.to_string());
        // Before anything else: of a newer version's fields only their number is our business.
        let Versioned { version } = serde_json::from_str(&text).map_err(parsing)?;
        if version != VERSION {
            let reason = format!("it has version {version}; this forebay-target reads {VERSION}");
            return Err(invalid(reason));
        }
        let state: State = serde_json::from_str(&text).map_err(parsing)?;
        state.check().map_err(invalid)?;
        Ok(state)
    }

    /// Replaces the saved state. When it returns, the new one survives power loss.
    ///
    /// # Errors
    /// [`StateError::Unsure`]: the new one is in place, but may not survive power loss. Any other:
    /// the old one stands.
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
            fs::rename(&temporary, &self.path)
        };
        write().map_err(|source| self.error("writing", source))?;
        sync_parent(&self.path)
            .map_err(|source| StateError::Unsure { path: self.path.clone(), source })
    }

    fn error(&self, action: &'static str, source: io::Error) -> StateError {
        StateError::Io { path: self.path.clone(), action, source }
    }
}

/// Makes a directory and those above it. When it returns, they survive power loss, and so does
/// what is synced in them.
///
/// # Errors
/// One cannot be made, or synced.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), make_directory)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_parent(path)
}

/// Makes a name in a directory survive power loss.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::state::tests::sample;

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("deep").join("deeper");
        make_directory(&deep).unwrap();
        make_directory(&deep).unwrap();
        let file = StateFile::new(&deep);
        assert_eq!(file.load().unwrap(), State::default());
        file.save(&sample()).unwrap();
        assert_eq!(file.load().unwrap(), sample());
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::new(directory.path());
        file.save(&sample()).unwrap();
        let path = directory.path().join("state.json");
        let good = fs::read_to_string(&path).unwrap();
        let damages = [
            ("version 2", good.replace("\"version\": 1", "\"version\": 2, \"pools\": []")),
            ("pools", good.replace("\"version\": 1", "\"version\": 1, \"pools\": []")),
            ("2026-99", good.replace("nqn.2026-11", "nqn.2026-99")),
            ("tape", good.replace("\"ram\"", "\"tape\"")),
            ("EOF", good[..good.len() / 2].to_owned()),
            ("EOF", String::new()),
        ];
        for (wanted, bad) in damages {
            fs::write(&path, &bad).unwrap();
            let error = file.load().unwrap_err().to_string();
            assert!(error.contains("state.json") && error.contains(wanted), "{wanted}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
    }

    #[test]
    fn a_state_that_cannot_be_written_leaves_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::new(directory.path());
        file.save(&sample()).unwrap();
        fs::create_dir(directory.path().join("state.json.new")).unwrap();
        let error = file.save(&State::default()).unwrap_err();
        assert!(matches!(error, StateError::Io { .. }), "{error}");
        assert_eq!(file.load().unwrap(), sample());
    }

    /// Says which directory the child of the test below saves in.
    const CHILD: &str = "FOREBAY_TEST_SAVE_IN";

    fn other() -> State {
        let mut state = sample();
        state.exports[0].serial = "FB02".repeat(5);
        state
    }

    #[test]
    #[ignore = "a process of its own in the test below, which kills it"]
    fn save_until_killed() {
        let Some(directory) = std::env::var_os(CHILD) else { return };
        let file = StateFile::new(Path::new(&directory));
        loop {
            file.save(&sample()).unwrap();
            file.save(&other()).unwrap();
        }
    }

    #[test]
    fn a_kill_at_any_moment_leaves_the_old_state_or_the_new() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::new(directory.path());
        let mut loaded = [0; 2];
        for round in 0..100u64 {
            file.save(&State::default()).unwrap();
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "state_file::tests::save_until_killed", "--ignored"])
                .env(CHILD, directory.path())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            while file.load().unwrap() == State::default() {
                assert!(child.try_wait().unwrap().is_none(), "it saves until it is killed");
                std::thread::yield_now();
            }
            // Wherever in a save the kill comes, it is to do no harm; so it comes anywhere.
            std::thread::sleep(Duration::from_micros(round * 37 % 1000));
            child.kill().unwrap();
            child.wait().unwrap();
            let state = file.load().unwrap();
            let which = [sample(), other()].iter().position(|one| *one == state);
            loaded[which.unwrap()] += 1;
        }
        assert_eq!(loaded[0] + loaded[1], 100, "{loaded:?}");
    }
}
