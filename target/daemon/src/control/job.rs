//! Work that may block, off the control thread: keep-alives are answered meanwhile.

use api::{ErrorCode, RpcError};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

/// Work on a thread of its own; the control thread looks for its result at every tick.
pub(super) struct Job<T> {
    result: oneshot::Receiver<Result<T, RpcError>>,
}

impl<T: Send + 'static> Job<T> {
    /// Starts it. It runs to its end, also when the daemon ends: a device is never left half way.
    pub(super) fn start(work: impl FnOnce() -> Result<T, RpcError> + Send + 'static) -> Self {
        let (sender, result) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            // The control thread may have ended.
            let _ = sender.send(work());
        });
        Self { result }
    }

    /// Its result, once.
    pub(super) fn poll(&mut self) -> Option<Result<T, RpcError>> {
        match self.result.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Closed) => {
                let message = "it panicked half way; the log of forebay-target has its last words";
                Some(Err(RpcError::new(ErrorCode::Internal, message)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn result_of(mut job: Job<u8>) -> Result<u8, RpcError> {
        loop {
            match job.poll() {
                Some(result) => return result,
                None => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn work_goes_on_elsewhere_and_has_one_result_even_if_it_panics() {
        let (go, wait) = std::sync::mpsc::channel();
        let mut job = Job::start(move || {
            wait.recv().unwrap();
            Ok(7)
        });
        assert!(job.poll().is_none(), "this thread is free meanwhile");
        go.send(()).unwrap();
        assert_eq!(result_of(job).await, Ok(7));
        let error = result_of(Job::start(|| panic!("on purpose"))).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
    }
}
