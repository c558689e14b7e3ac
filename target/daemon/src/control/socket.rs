//! The control socket: lines in, lines out. What they mean is the control loop's business.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use api::{Call, ErrorCode, Id, LineBuffer, Request, Response, RpcError};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::limits::MAX_CALLS;

/// Where the answer to a call goes.
pub(crate) type Reply = oneshot::Sender<Result<Value, RpcError>>;

/// A call that waits for its answer.
pub(crate) struct Asked {
    pub(crate) call: Call,
    pub(crate) reply: Reply,
}

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
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
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
        let count = match stream.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
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
                    let _ = stream.write_all(&Response::error(Id::Null, error).to_line()).await;
                    return;
                }
            };
            if stream.write_all(&response.to_line()).await.is_err() {
                return;
            }
        }
    }
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
