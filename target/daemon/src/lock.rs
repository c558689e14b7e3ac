//! One daemon at a time: a lock on what two must not share, taken before anything else is.
//!
//! The lock is the kernel's (`flock`) and ends with the process, however that ends; the file stays
//! and means nothing by itself.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

/// A lock that this process holds until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}

/// Why the lock is not ours.
#[derive(Debug, Error)]
pub(crate) enum LockError {
    #[error("another forebay-target, process {holder}, serves {}", what.display())]
    Held { what: PathBuf, holder: String },
    #[error("{}: {action}: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
}

impl Lock {
    /// Takes the lock in the file `path` on `what`, which the error names.
    ///
    /// # Errors
    /// Another process has it, or the file cannot be made.
    pub(crate) fn take(path: &Path, what: &Path) -> Result<Self, LockError> {
        let failed = |action, source| LockError::Io { path: path.to_owned(), action, source };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| failed("opening the lock", source))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                // For whoever comes second.
                let text = format!("{}\n", std::process::id());
                file.set_len(0)
                    .and_then(|()| file.write_all(text.as_bytes()))
                    .map_err(|source| failed("writing the lock", source))?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    // It has the lock, but has not written yet.
                    "" => "unknown".to_owned(),
                    id => id.to_owned(),
                };
                Err(LockError::Held { what: what.to_owned(), holder })
            }
            Err((_, errno)) => Err(failed("locking", errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = Lock::take(&path, directory.path()).unwrap();
        let error = Lock::take(&path, directory.path()).unwrap_err().to_string();
        let (process, what) = (std::process::id(), directory.path().display());
        assert_eq!(error, format!("another forebay-target, process {process}, serves {what}"));
        drop(first);
        Lock::take(&path, directory.path()).unwrap();
        let error = Lock::take(&path.join("x"), directory.path()).unwrap_err().to_string();
        assert!(error.contains("opening the lock"), "{error}");
    }
}
