//! What went wrong, where, and what to do next.

use std::io;
use std::path::PathBuf;

use api::{CallError, ErrorDetails};
use serde_json::json;

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
    /// A check has found something, which is printed.
    #[error("{count} faults")]
    Faults {
        /// How many.
        count: usize,
    },
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
            CliError::Call(CallError::Refused(_))
            | CliError::Faults { .. }
            | CliError::Output(_)
            | CliError::Json(_) => 1,
            CliError::Call(_) => 3,
        }
    }

    /// Some lines for people: the error, what was found, what to do next.
    pub(crate) fn report(&self) -> String {
        let details = self.details();
        let mut lines = vec![format!("forebay: {self}")];
        lines.extend(details.found.iter().map(|found| format!("  found: {found}")));
        lines.extend(details.advice.iter().map(|advice| format!("  next: {advice}")));
        lines.join("\n")
    }

    /// The same as JSON in one line, for scripts. `code` is the daemon's, where it has answered.
    pub(crate) fn report_json(&self) -> String {
        let code = match self {
            CliError::Call(CallError::Refused(error)) => Some(error.code),
            _ => None,
        };
        let error = json!({ "code": code, "message": self.to_string(), "data": self.details() });
        json!({ "error": error, "exit_code": self.exit_code() }).to_string()
    }

    fn details(&self) -> ErrorDetails {
        let advice = match self {
            CliError::Call(CallError::Refused(error)) => {
                return error.data.clone().unwrap_or_default();
            }
            CliError::Connect { source, .. } => Some(connect_advice(source.kind())),
            CliError::Call(CallError::Malformed { .. }) => {
                Some("compare `forebay version` with `forebay-target --version`")
            }
            CliError::Call(_) => Some("look at what the daemon logged"),
            _ => None,
        };
        ErrorDetails { advice: advice.map(str::to_owned), ..ErrorDetails::default() }
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

#[cfg(test)]
mod tests {
    use super::*;
    use api::{ErrorCode, RpcError};

    #[test]
    fn what_was_found_and_what_to_do_is_told_to_people_and_to_scripts() {
        let error = RpcError::new(ErrorCode::InUse, "busy")
            .with_found(vec!["mounted at /mnt".into()])
            .with_advice("umount /mnt");
        let error = CliError::Call(CallError::Refused(error));
        let text = "forebay: busy\n  found: mounted at /mnt\n  next: umount /mnt";
        assert_eq!(error.report(), text);
        let data = json!({ "advice": "umount /mnt", "found": ["mounted at /mnt"] });
        let object = json!({ "code": -32003, "message": "busy", "data": data });
        let value: serde_json::Value = serde_json::from_str(&error.report_json()).unwrap();
        assert_eq!(value, json!({ "error": object, "exit_code": 1 }));
        let socket = "/nowhere".into();
        let error = CliError::Connect { socket, source: io::ErrorKind::NotFound.into() };
        let value: serde_json::Value = serde_json::from_str(&error.report_json()).unwrap();
        assert!(value["error"]["code"].is_null() && value["exit_code"] == 3, "{value}");
        assert!(value["error"]["data"]["advice"].as_str().unwrap().contains("forebay-target"));
    }
}
