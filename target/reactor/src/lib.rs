//! One pinned thread per core that polls, and a bounded ring of messages to each.
//!
//! A [`Reactor`] owns a [`Worker`] and calls it over and over: messages first, then one poll turn.
//! The clock is read once per turn. What the worker does, and in which order, is its own business;
//! that it never blocks is its promise. Others reach it through the reactor's inbox alone, so
//! nothing in a worker is shared.
//!
//! A worker that panics ends its thread: the panic is logged and [`Reactor::health`] says so. What
//! it was serving then hangs until the daemon ends, which is what the daemon does.
//!
//! What it does not do: storage, networking, timers, or moving work between cores.
#![forbid(unsafe_code)]

mod idle;
mod stats;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use core_affinity::CoreId;
use crossbeam_queue::ArrayQueue;
use thiserror::Error;

pub use idle::IdlePolicy;
pub use stats::ReactorStats;

use idle::Idler;
use stats::Counters;

/// Messages handled between two poll turns at most: a flood of them must not stop the I/O.
const MESSAGES_PER_TURN: usize = 32;

/// What a reactor runs.
pub trait Worker {
    /// What others may tell it.
    type Message: Send + 'static;

    /// Takes a message.
    fn handle_message(&mut self, message: Self::Message);

    /// Does what there is to do, without waiting; says how much that was, 0 for nothing.
    fn poll(&mut self, now: Instant) -> usize;
}

/// A reactor's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// It runs.
    Running = 0,
    /// It was told to stop, and has.
    Stopped = 1,
    /// Its worker panicked.
    Panicked = 2,
}

/// Why there is no reactor.
#[derive(Debug, Error)]
pub enum ReactorError {
    /// The thread cannot be started.
    #[error("starting the thread of reactor {name}: {source}")]
    Spawn {
        /// Its name.
        name: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The thread cannot be pinned.
    #[error("pinning reactor {name} to CPU {cpu} failed; the CPUs of this process are {allowed:?}")]
    Pin {
        /// Its name.
        name: String,
        /// The CPU asked for.
        cpu: usize,
        /// Those there are.
        allowed: Vec<usize>,
    },
}

/// A running reactor. Dropping it stops it.
#[derive(Debug)]
pub struct Reactor<M> {
    shared: Arc<Shared<M>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<M> {
    inbox: ArrayQueue<M>,
    counters: Counters,
    stop: AtomicBool,
    health: AtomicU8,
}

impl<M: Send + 'static> Reactor<M> {
    /// Starts a thread on CPU `cpu` that runs the worker which `make` makes on that thread.
    ///
    /// # Errors
    /// The thread cannot be started, or not be pinned.
    pub fn spawn<W, F>(
        name: &str,
        cpu: usize,
        inbox_capacity: usize,
        idle: IdlePolicy,
        make: F,
    ) -> Result<Self, ReactorError>
    where
        W: Worker<Message = M>,
        F: FnOnce() -> W + Send + 'static,
    {
        let shared = Arc::new(Shared {
            inbox: ArrayQueue::new(inbox_capacity.max(1)),
            counters: Counters::default(),
            stop: AtomicBool::new(false),
            health: AtomicU8::new(Health::Running as u8),
        });
        let (pinned, is_pinned) = std::sync::mpsc::channel();
        let theirs = Arc::clone(&shared);
        let run = move || {
            let _ = pinned.send(core_affinity::set_for_current(CoreId { id: cpu }));
            let outcome = catch_unwind(AssertUnwindSafe(|| theirs.run(make(), idle)));
            let health = if outcome.is_ok() { Health::Stopped } else { Health::Panicked };
            theirs.health.store(health as u8, Ordering::Release);
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread =
            thread.map_err(|source| ReactorError::Spawn { name: name.to_owned(), source })?;
        let reactor = Self { shared, thread: Some(thread) };
        if is_pinned.recv() == Ok(true) {
            return Ok(reactor);
        }
        let allowed = core_affinity::get_core_ids().unwrap_or_default();
        let allowed = allowed.into_iter().map(|core| core.id).collect();
        Err(ReactorError::Pin { name: name.to_owned(), cpu, allowed })
    }

    /// Puts a message into the inbox; gives it back when the inbox is full.
    ///
    /// # Errors
    /// The inbox is full: the reactor is behind by as many messages as it holds.
    pub fn send(&self, message: M) -> Result<(), M> {
        self.shared.inbox.push(message)
    }

    /// What it has done so far.
    pub fn stats(&self) -> ReactorStats {
        self.shared.counters.read()
    }

    /// Whether it runs.
    pub fn health(&self) -> Health {
        match self.shared.health.load(Ordering::Acquire) {
            0 => Health::Running,
            1 => Health::Stopped,
            _ => Health::Panicked,
        }
    }
}

impl<M> Shared<M> {
    fn run<W: Worker<Message = M>>(&self, mut worker: W, idle: IdlePolicy) {
        let mut idler = Idler::new(idle);
        let mut now = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let mut work = 0;
            // Looking is cheaper than taking, and mostly there is nothing.
            while work < MESSAGES_PER_TURN
                && !self.inbox.is_empty()
                && let Some(message) = self.inbox.pop()
            {
                worker.handle_message(message);
                work += 1;
            }
            let messages = work;
            work += worker.poll(now);
            // The end of this turn is the start of the next: one reading of the clock for both.
            let end = Instant::now();
            self.counters.add_turn(end.saturating_duration_since(now), messages, work);
            now = end;
            if idler.after_turn(work) {
                now = Instant::now();
            }
        }
    }
}

impl<M> Drop for Reactor<M> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a reactor's thread ended by a panic outside its worker");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Adder {
        sum: Arc<std::sync::Mutex<Vec<u64>>>,
    }

    impl Worker for Adder {
        type Message = u64;
        fn handle_message(&mut self, message: u64) {
            assert!(message != 13, "unlucky");
            self.sum.lock().unwrap().push(message);
        }
        fn poll(&mut self, _: Instant) -> usize {
            0
        }
    }

    fn start() -> (Reactor<u64>, Arc<std::sync::Mutex<Vec<u64>>>) {
        let sum = Arc::new(std::sync::Mutex::new(Vec::new()));
        let theirs = Arc::clone(&sum);
        let cpu = core_affinity::get_core_ids().unwrap()[0].id;
        let make = move || Adder { sum: theirs };
        (Reactor::spawn("test", cpu, 4, IdlePolicy::default(), make).unwrap(), sum)
    }

    fn wait_until(what: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < end, "in vain");
            std::thread::yield_now();
        }
    }

    #[test]
    fn messages_arrive_in_order_and_a_full_inbox_gives_them_back() {
        let (reactor, sum) = start();
        for message in 100..1100 {
            let mut message = message;
            while let Err(back) = reactor.send(message) {
                message = back;
                std::thread::yield_now();
            }
        }
        wait_until(|| sum.lock().unwrap().len() == 1000);
        assert!(sum.lock().unwrap().iter().copied().eq(100..1100));
        assert_eq!(reactor.stats().messages, 1000);
        assert!(reactor.stats().turns > 0);
        assert_eq!(reactor.health(), Health::Running);
    }

    #[test]
    fn a_panic_is_seen_from_outside() {
        let (reactor, _) = start();
        reactor.send(13).unwrap();
        wait_until(|| reactor.health() == Health::Panicked);
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named() {
        let make = || Adder { sum: Arc::default() };
        let error = Reactor::spawn("r9", 1020, 4, IdlePolicy::default(), make).unwrap_err();
        assert!(error.to_string().contains("CPU 1020"), "{error}");
    }
}
