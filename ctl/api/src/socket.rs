//! The calling end of the control socket.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::error::RpcError;
use crate::line::{LineBuffer, LineTooLong};
use crate::request::Call;
use crate::rpc::{Id, Request, Response};

/// A blocking connection to the daemon.
#[derive(Debug)]
pub struct ControlSocket {
    stream: UnixStream,
    lines: LineBuffer,
    next_id: u64,
    timeout: Duration,
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon says no.
    #[error("{0}")]
    Refused(#[source] RpcError),
    /// The socket failed.
    #[error("the control socket failed: {0}")]
    Io(#[from] io::Error),
    /// No response within the time.
    #[error("the daemon did not answer {method} within {} s", timeout.as_secs_f32())]
    TimedOut {
        /// What was asked.
        method: &'static str,
        /// How long was waited.
        timeout: Duration,
    },
    /// The daemon closed the connection instead of answering.
    #[error("the daemon closed the connection before it answered {method}")]
    Closed {
        /// What was asked.
        method: &'static str,
    },
    /// The response is too long.
    #[error(transparent)]
    TooLong(#[from] LineTooLong),
    /// The response does not say what it should; daemon and caller differ in version.
    #[error("the daemon's answer to {method} makes no sense: {source}")]
    Malformed {
        /// What was asked.
        method: &'static str,
        /// What is wrong with the answer.
        source: serde_json::Error,
    },
    /// The response has another request's id.
    #[error("the daemon answered another request than {method}")]
    WrongId {
        /// What was asked.
        method: &'static str,
    },
}

impl ControlSocket {
    /// Connects to the socket at `path`. Each call may take `timeout`, which must not be zero.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<ControlSocket> {
        let stream = UnixStream::connect(path)?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(ControlSocket { stream, lines: LineBuffer::default(), next_id: 1, timeout })
    }

    /// Makes a call and waits for its result. After an error other than
    /// [`Refused`](CallError::Refused) the connection is of no more use.
    pub fn call<R: DeserializeOwned>(&mut self, call: Call) -> Result<R, CallError> {
        let method = call.method();
        let deadline = Instant::now() + self.timeout;
        let request = Request { id: Id::from(self.next_id), call };
        self.next_id += 1;
        self.stream.write_all(&request.to_line()).map_err(|error| self.timed_out(error, method))?;
        let malformed = |source| CallError::Malformed { method, source };
        let response = loop {
            if let Some(line) = self.lines.next_line()? {
                break Response::parse(line).map_err(malformed)?;
            }
            self.receive(deadline, method)?;
        };
        match response {
            Response { id, outcome: Ok(result) } if id == request.id => {
                serde_json::from_value(result).map_err(malformed)
            }
            Response { outcome: Err(error), .. } => Err(CallError::Refused(error)),
            _ => Err(CallError::WrongId { method }),
        }
    }

    fn receive(&mut self, deadline: Instant, method: &'static str) -> Result<(), CallError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CallError::TimedOut { method, timeout: self.timeout });
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(CallError::Closed { method }),
            Ok(count) => {
                self.lines.push(bytes.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(self.timed_out(error, method)),
        }
    }

    fn timed_out(&self, error: io::Error, method: &'static str) -> CallError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                CallError::TimedOut { method, timeout: self.timeout }
            }
            _ => CallError::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Nothing;
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;

    /// Plays a daemon that gives `answer` to its first line and hangs up after `patience`.
    fn call(answer: &'static [u8], patience: Duration) -> Result<Nothing, CallError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            stream.write_all(answer).unwrap();
            std::thread::sleep(patience);
        });
        let mut socket = ControlSocket::connect(&path, Duration::from_millis(300)).unwrap();
        let outcome = socket.call(Call::Shutdown(Nothing {}));
        daemon.join().unwrap();
        outcome
    }

    #[test]
    fn every_outcome_of_a_call() {
        let call = |answer| call(answer, Duration::ZERO);
        assert!(call(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n").is_ok());
        let refused = call(
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32003,\"message\":\"busy\"}}\n",
        );
        assert!(matches!(refused, Err(CallError::Refused(error)) if error.message == "busy"));
        assert!(matches!(call(b""), Err(CallError::Closed { .. })));
        assert!(matches!(call(b"hello\n"), Err(CallError::Malformed { .. })));
        let result = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":5}\n";
        assert!(matches!(call(result), Err(CallError::Malformed { .. })));
        let other = b"{\"jsonrpc\":\"2.0\",\"id\":9,\"result\":{}}\n";
        assert!(matches!(call(other), Err(CallError::WrongId { .. })));
    }

    #[test]
    fn a_silent_daemon_is_given_up() {
        let outcome = call(b"{", Duration::from_secs(1));
        assert!(matches!(outcome, Err(CallError::TimedOut { .. })), "{outcome:?}");
    }
}
