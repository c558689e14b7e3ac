//! What a run can find.

use thiserror::Error;

use crate::model::Violation;
use crate::world::End;

/// What went wrong.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Failure {
    /// A promise is broken.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// A pool does not open.
    #[error("the pool does not open: {reason}")]
    Open {
        /// What it said.
        reason: String,
    },
    /// The pool names damage that there cannot be.
    #[error("the pool is damaged: {what}")]
    Damaged {
        /// What it said.
        what: String,
    },
    /// A call was refused that should not be.
    #[error("a call was refused: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
    /// A call was answered with something else.
    #[error("an answer to another question: {reply}")]
    Reply {
        /// The answer.
        reply: String,
    },
    /// An I/O ended with a status that it should not have.
    #[error("{what} ended with {status}")]
    Status {
        /// The I/O.
        what: String,
        /// Its status.
        status: String,
    },
    /// Something never ends.
    #[error("stuck: {waiting}")]
    Stuck {
        /// What has not ended.
        waiting: String,
    },
    /// Code under test panicked.
    #[error("a panic: {message}")]
    Panicked {
        /// Its message.
        message: String,
    },
    /// Any of these, in a life after an end.
    #[error("after {} at step {step}: {failure}", show(*.end))]
    After {
        /// The step of the life before.
        step: u64,
        /// How that ended.
        end: End,
        /// What went wrong then.
        failure: Box<Failure>,
    },
}

fn show(end: End) -> &'static str {
    match end {
        End::PowerLoss => "power loss",
        End::ProcessDeath => "process death",
    }
}
