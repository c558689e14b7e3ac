//! What went wrong, where, and what to do next.

use std::io;
use std::path::PathBuf;

use api::CallError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The socket cannot be connected to.
    #[error("cannot reach the daemon at {}: {source}", socket.display())]
    Connect {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A call has no result.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The command makes no sense, for a reason that the parser of arguments cannot know.
    #[error("{0}")]
    Usage(String),
    /// Standard output failed.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// A result cannot be shown as JSON.
    #[error("cannot show the result: {0}")]
    Json(#[from] serde_json::Error),
}

impl CliError {
    /// The exit code, as `--help` tells it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            CliError::Connect { .. } => 3,
            CliError::Usage(_) => 2,
            CliError::Call(CallError::Refused(_)) | CliError::Output(_) | CliError::Json(_) => 1,
            CliError::Call(_) => 3,
        }
    }

    /// Some lines for people: the error, what was found, what to do next.
    pub(crate) fn report(&self) -> String {
        let mut lines = vec![format!("forebay: {self}")];
        let advice = match self {
            CliError::Connect { source, .. } => Some(connect_advice(source.kind()).to_owned()),
            CliError::Call(CallError::Refused(error)) => error.data.as_ref().and_then(|details| {
                lines.extend(details.found.iter().map(|found| format!("  found: {found}")));
                details.advice.clone()
            }),
            CliError::Call(CallError::Malformed { .. }) => {
                Some("compare `forebay version` with `forebay-target --version`".to_owned())
            }
            CliError::Call(_) => Some("look at what the daemon logged".to_owned()),
            _ => None,
        };
        lines.extend(advice.map(|advice| format!("  next: {advice}")));
        lines.join("\n")
    }
}

fn connect_advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::PermissionDenied => {
            "the socket belongs to the daemon's user: run this with sudo"
        }
        io::ErrorKind::NotFound => {
            "start the daemon with `sudo forebay-target`, or name its socket with --socket"
        }
        io::ErrorKind::ConnectionRefused => {
            "nobody listens there any more: start the daemon with `sudo forebay-target`"
        }
        _ => "see that --socket names the daemon's socket",
    }
}
