//! What went wrong, where, and what to do next.

use std::path::PathBuf;

use serde_json::json;
use thiserror::Error;

use crate::log::LogError;

/// Why a run, or a verification, has no result.
#[derive(Debug, Error)]
pub enum PerfError {
    /// An option that cannot be, by itself or beside others.
    #[error("{job}: {option}: {reason}")]
    Option {
        /// The job it belongs to.
        job: String,
        /// The option as it is typed.
        option: &'static str,
        /// What is wrong and what is possible.
        reason: String,
    },
    /// A file of jobs that cannot be read as one.
    #[error("{}: {reason}", path.display())]
    Jobs {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and key.
        reason: String,
    },
    /// The job would destroy what the target holds.
    #[error("{job}: it writes to {target}, and what is there would be lost")]
    NeedsConsent {
        /// The job.
        job: String,
        /// The target.
        target: String,
    },
    /// A file of ours that cannot be read or written.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The block device cannot be had.
    #[error(transparent)]
    Bdev(#[from] bdev::BdevError),
    /// The SSD cannot be taken or given back.
    #[error(transparent)]
    Vfio(#[from] vfio::VfioError),
    /// The SSD does not come up.
    #[error(transparent)]
    Nvme(#[from] nvme::NvmeError),
    /// The target on the fabric cannot be had, or was lost.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// There is no memory for the data.
    #[error("memory for the data: {0}")]
    Memory(#[from] dma::ArenaError),
    /// A core cannot be had.
    #[error(transparent)]
    Reactor(#[from] reactor::ReactorError),
    /// The acknowledgement log cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Nothing can be verified, because the log knows of no write.
    #[error("{} knows of no write: there is nothing to verify", path.display())]
    NothingWritten {
        /// The log.
        path: PathBuf,
    },
    /// A defect of this program.
    #[error("core {core} panicked: a defect of forebay-perf")]
    Panicked {
        /// The core, counted from 0.
        core: usize,
    },
    /// The plot cannot be drawn.
    #[error("drawing {}: {reason}", path.display())]
    Plot {
        /// The file.
        path: PathBuf,
        /// What the drawing says.
        reason: String,
    },
    /// Standard output failed.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

impl PerfError {
    /// 2 where nothing was run, and 1 where it was.
    pub fn exit_code(&self) -> u8 {
        match self {
            PerfError::Panicked { .. } | PerfError::Plot { .. } | PerfError::Output(_) => 1,
            _ => 2,
        }
    }

    /// What to do next, where there is something to be said that the error does not say itself.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            PerfError::NeedsConsent { .. } => {
                Some("add --destroy-data (destroy-data = true) if it may be lost")
            }
            PerfError::Option { .. } => Some("forebay-perf run --help"),
            PerfError::Jobs { .. } => Some("docs/perf.md describes the file"),
            PerfError::Bdev(bdev::BdevError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Some("make the file first: truncate -s 1G PATH")
            }
            PerfError::Log(error) => error.advice(),
            _ => None,
        }
    }

    /// Some lines for people.
    pub fn report(&self) -> String {
        let next = self.advice().map(|advice| format!("\n  next: {advice}")).unwrap_or_default();
        format!("forebay-perf: {self}{next}")
    }

    /// The same in one line of JSON, for scripts.
    pub fn report_json(&self) -> String {
        let error = json!({ "message": self.to_string(), "advice": self.advice() });
        json!({ "error": error, "exit_code": self.exit_code() }).to_string()
    }
}
