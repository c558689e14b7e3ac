//! The control socket: lines in, lines out. What they mean is the control loop's business.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use api::{Call, ErrorCode, Id, LineBuffer, Request, Response, RpcError};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::limits::MAX_CALLS;

/// Where the answer to a call goes.
pub(crate) type Reply = oneshot::Sender<Result<Value, RpcError>>;

/// A call that waits for its answer.
pub(crate) struct Asked {
    pub(crate) call: Call,
    pub(crate) reply: Reply,
}

/// How long a connection may ask nothing: its place may be wanted.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// How long a caller may take to read an answer.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Binds the socket, only for its owner, and serves it on this thread's runtime.
///
/// # Errors
/// Another daemon serves it, or it cannot be made.
pub(crate) fn listen(path: &Path) -> anyhow::Result<mpsc::Receiver<Asked>> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
    }
    if let Ok(metadata) = fs::symlink_metadata(path) {
        anyhow::ensure!(metadata.file_type().is_socket(), "{} is not a socket", path.display());
        // One that nobody answers was left by a daemon that was killed.
        let answered = std::os::unix::net::UnixStream::connect(path).is_ok();
        anyhow::ensure!(!answered, "another forebay-target serves {}", path.display());
        fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    }
    // Made unreachable for others from the first moment on, not only after a chmod.
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(mask);
    let listener = listener.with_context(|| format!("binding {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let (calls, receiver) = mpsc::channel(MAX_CALLS);
    tokio::spawn(accept(listener, calls));
    Ok(receiver)
}

async fn accept(listener: UnixListener, calls: mpsc::Sender<Asked>) {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CALLS));
    loop {
        let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let calls = calls.clone();
                tokio::spawn(async move {
                    serve(stream, calls).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting on the control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, calls: mpsc::Sender<Asked>) {
    let peer = stream.peer_cred().ok();
    let (uid, pid) = (peer.map(|peer| peer.uid()), peer.and_then(|peer| peer.pid()));
    let mut lines = LineBuffer::default();
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let count = match timeout(IDLE_LIMIT, stream.read(&mut bytes)).await {
            Ok(Ok(count)) if count > 0 => count,
            _ => return,
        };
        lines.push(&bytes[..count]);
        loop {
            let response = match lines.next_line() {
                Ok(None) => break,
                Ok(Some(line)) => match Request::parse(line) {
                    Ok(Request { id, call }) => {
                        if changes_something(&call) {
                            tracing::info!(?uid, ?pid, ?call, "control");
                        }
                        Response { id, outcome: ask(&calls, call).await }
                    }
                    Err(response) => *response,
                },
                Err(error) => {
                    // Where the next line begins is not known: end here.
                    let error = RpcError::new(ErrorCode::InvalidRequest, error.to_string());
                    let _ = write(&mut stream, &Response::error(Id::Null, error)).await;
                    return;
                }
            };
            if write(&mut stream, &response).await.is_err() {
                return;
            }
        }
    }
}

async fn write(stream: &mut UnixStream, response: &Response) -> std::io::Result<()> {
    timeout(WRITE_LIMIT, stream.write_all(&response.to_line())).await?
}

async fn ask(calls: &mpsc::Sender<Asked>, call: Call) -> Result<Value, RpcError> {
    let gone = || RpcError::new(ErrorCode::Unavailable, "the daemon is ending");
    let (reply, answer) = oneshot::channel();
    calls.send(Asked { call, reply }).await.map_err(|_| gone())?;
    answer.await.unwrap_or_else(|_| Err(gone()))
}

fn changes_something(call: &Call) -> bool {
    !matches!(
        call,
        Call::Version(_)
            | Call::DeviceList(_)
            | Call::DeviceShow(_)
            | Call::BdevList(_)
            | Call::ExportList(_)
            | Call::HostList(_)
            | Call::ConnectionList(_)
            | Call::Stats(_)
    )
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    /// A daemon's socket in a folder of its own.
    struct Bed {
        folder: tempfile::TempDir,
        calls: mpsc::Receiver<Asked>,
    }

    impl Bed {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let calls = listen(&folder.path().join("socket")).unwrap();
            Self { folder, calls }
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(self.folder.path().join("socket")).await.unwrap()
        }
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_only_and_for_one_daemon() {
        let bed = Bed::new();
        let path = bed.folder.path().join("socket");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let error = listen(&path).unwrap_err().to_string();
        assert!(error.contains("another forebay-target serves"), "{error}");
    }

    #[tokio::test]
    async fn who_changes_something_is_logged() {
        let log = Log::default();
        let writer = log.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        let _guard = tracing::subscriber::set_default(lines.finish());
        let mut bed = Bed::new();
        let mut stream = bed.connect().await;
        for method in ["version", "shutdown"] {
            let line = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\"}}\n");
            stream.write_all(line.as_bytes()).await.unwrap();
            let asked = bed.calls.recv().await.unwrap();
            asked.reply.send(Ok(Value::Null)).unwrap();
            let mut answer = String::new();
            BufReader::new(&mut stream).read_line(&mut answer).await.unwrap();
            assert!(answer.contains("\"result\":null"), "{answer}");
        }
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let (uid, pid) = (nix::unistd::getuid(), std::process::id());
        let wanted = format!("control uid=Some({uid}) pid=Some({pid}) call=Shutdown");
        assert!(log.contains(&wanted) && !log.contains("call=Version"), "{log}");
    }

    /// Time passes at once where nothing else is left to do.
    #[tokio::test(start_paused = true)]
    async fn idle_connections_do_not_keep_others_out() {
        let mut bed = Bed::new();
        let mut idle = Vec::new();
        for _ in 0..MAX_CALLS {
            idle.push(bed.connect().await);
        }
        let mut stream = bed.connect().await;
        stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"version\"}\n").await.unwrap();
        assert!(bed.calls.recv().await.is_some());
        for mut stream in idle {
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_does_not_read_is_given_up() {
        let mut bed = Bed::new();
        let mut stream = bed.connect().await;
        stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"version\"}\n").await.unwrap();
        let asked = bed.calls.recv().await.unwrap();
        asked.reply.send(Ok(Value::String("x".repeat(8 << 20)))).unwrap();
        tokio::time::sleep(WRITE_LIMIT + Duration::from_secs(1)).await;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        assert!(!bytes.ends_with(b"\n"), "it was cut off");
    }
}
