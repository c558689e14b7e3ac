//! Puts load on a block device, measures it, and verifies what it holds: the engine of
//! `forebay-perf`.
//!
//! A [`job::Job`] names a target, a [`workload::Workload`] and for how long. [`target::Target`]
//! opens the target as a block device, whatever it is. [`run::run`] starts a lane on each core: a
//! worker of the reactor that begins I/Os, polls the device's channel and notes latencies in
//! histograms of its own, without a lock, allocation or system call for an I/O, and with one look
//! at the clock a turn. What the cores show meanwhile is looked at by the control thread.
//!
//! In a closed loop the next I/O begins when one has ended. In an open one I/Os are due at fixed
//! times, and latency counts from when an I/O was due, however late it began.
//!
//! With verification every block that is written says which write of which block it is
//! ([`block`]); what was sent and acknowledged is kept in a log ([`log::AckLog`]) that survives the
//! process, and tells what each block must hold ([`expect::Expect`]). A turn then makes one system
//! call, to write the log.
//!
//! What it does not do: several jobs at once, file systems, fabrics (a target that is reached over
//! a fabric becomes one more address), and verification of a loss of power, where acknowledged
//! writes that were not flushed may be gone.
#![forbid(unsafe_code)]

pub mod address;
pub mod block;
pub mod checker;
pub mod error;
pub mod expect;
pub mod job;
mod lane;
pub mod limits;
pub mod log;
pub mod options;
pub mod plot;
pub mod progress;
pub mod report;
pub mod run;
pub mod tally;
pub mod target;
pub mod text;
pub mod workload;
