//! An association and one I/O queue of the host's core, on wires.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::{Arena, DmaSpan};
use host::protocol::{Admin, Command, Completed, Connection, Event, Left, Output, connect_io};
use host::{Error, Io, Options};
use nvme_tcp::Digests;

use crate::target_side::TargetSide;
use crate::wire::{Pump, Wire};

/// Commands of the I/O queue.
const DEPTH: u16 = 16;

/// A host with one I/O queue.
pub struct HostSide {
    options: Arc<Options>,
    /// What the association is at.
    pub admin: Admin,
    admin_connection: Connection,
    admin_wire: Wire,
    io_page: DmaSpan,
    io: Option<(Connection, Wire)>,
    io_ready: bool,
    completed: VecDeque<Completed>,
    /// What happened on the admin queue.
    pub outputs: VecDeque<Output>,
    seed: u64,
}

impl HostSide {
    /// Begins to connect.
    pub fn new(
        now: Instant,
        options: Options,
        arena: &'static Arena,
        target: &mut TargetSide,
        seed: u64,
    ) -> Self {
        let options = Arc::new(options);
        let page = || arena.carve(4096, 4096).expect("a part of the arena");
        let mut admin_connection = Connection::new(digests(&options), 4);
        admin_connection.set_in_capsule_bytes(8192);
        Self {
            admin: Admin::new(Arc::clone(&options), page()),
            admin_connection,
            admin_wire: Wire::new(now, target, seed),
            io_page: page(),
            io: None,
            io_ready: false,
            completed: VecDeque::new(),
            outputs: VecDeque::new(),
            options,
            seed,
        }
    }

    /// One turn of everything; whether anything has moved.
    ///
    /// # Errors
    /// A connection is gone, or the association cannot go on.
    pub fn turn(&mut self, now: Instant, target: &mut TargetSide) -> Result<bool, Error> {
        let mut events = Vec::new();
        let connection = &mut self.admin_connection;
        let pump = self.admin_wire.pump(now, connection, target, &mut events);
        for event in events.drain(..) {
            match event {
                Event::Completed(done) => self.admin.handle_completed(now, done)?,
                Event::Opened => {}
                Event::Broken(fault) => {
                    return Err(Error::Broken { addr: self.options.addr, fault });
                }
                Event::Refused { fes } => {
                    return Err(Error::Refused { addr: self.options.addr, fes });
                }
            }
        }
        while connection.room() > 0 {
            let Some(command) = self.admin.poll_command(now) else { break };
            assert!(connection.submit(command), "there was room");
        }
        while let Some(output) = self.admin.poll_output() {
            if matches!(output, Output::Ready) {
                self.open_io(now, target);
            }
            self.outputs.push_back(output);
        }
        let io = self.turn_io(now, target, &mut events)?;
        match (pump, io) {
            (Pump::Broken, _) | (_, Pump::Broken) => Err(Error::Lost),
            (Pump::Idle, Pump::Idle) => Ok(false),
            _ => Ok(true),
        }
    }

    /// Turns until `done` says so.
    ///
    /// # Errors
    /// As [`HostSide::turn`].
    ///
    /// # Panics
    /// Nothing moves any more, or it takes for ever.
    pub fn run_until(
        &mut self,
        now: &mut Instant,
        target: &mut TargetSide,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), Error> {
        let mut idle = 0;
        for _ in 0..2_000_000 {
            let moved = self.turn(*now, target)?;
            if done(self) {
                return Ok(());
            }
            idle = if moved { 0 } else { idle + 1 };
            assert!(idle < 10_000, "nothing moves any more");
            // Time passes where there is nothing to move, and a little otherwise.
            *now += if moved { Duration::from_micros(1) } else { Duration::from_millis(5) };
        }
        panic!("it takes for ever");
    }

    /// I/Os may be submitted.
    pub fn is_ready(&self) -> bool {
        self.io_ready
    }

    /// Submits an I/O; `false`: the queue is full.
    pub fn submit(&mut self, now: Instant, io: &Io) -> bool {
        let Some((connection, _)) = self.io.as_mut().filter(|_| self.io_ready) else {
            return false;
        };
        let deadline = Some(now + Duration::from_secs(30));
        connection.submit(Command::of_io(io, deadline))
    }

    /// The next I/O that has completed.
    pub fn completed(&mut self) -> Option<Completed> {
        self.completed.pop_front()
    }

    /// The wire of the I/O queue.
    pub fn io_wire(&mut self) -> Option<&mut Wire> {
        self.io.as_mut().map(|(_, wire)| wire)
    }

    /// Gives up the I/O queue: what was on its way.
    pub fn abandon_io(&mut self) -> Vec<Left> {
        self.io.as_mut().map(|(connection, _)| connection.abandon()).unwrap_or_default()
    }

    fn open_io(&mut self, now: Instant, target: &mut TargetSide) {
        let mut connection = Connection::new(digests(&self.options), DEPTH);
        connection.set_in_capsule_bytes(self.admin.in_capsule_bytes());
        self.io = Some((connection, Wire::new(now, target, self.seed ^ 0x5555)));
    }

    fn turn_io(
        &mut self,
        now: Instant,
        target: &mut TargetSide,
        events: &mut Vec<Event>,
    ) -> Result<Pump, Error> {
        let Some((connection, wire)) = &mut self.io else { return Ok(Pump::Idle) };
        let pump = wire.pump(now, connection, target, events);
        for event in events.drain(..) {
            match event {
                Event::Opened => {
                    let cntlid = self.admin.info().map_or(0, |info| info.cntlid);
                    let deadline = now + Duration::from_secs(10);
                    let page = self.io_page;
                    let command = connect_io(&self.options, cntlid, 1, DEPTH, page, deadline);
                    assert!(connection.submit(command), "nothing else is on its way");
                }
                Event::Completed(done) if self.io_ready => self.completed.push_back(done),
                Event::Completed(done) => {
                    assert!(done.answer.status.is_success(), "{:?}", done.answer);
                    self.io_ready = true;
                }
                Event::Broken(fault) => {
                    return Err(Error::Broken { addr: self.options.addr, fault });
                }
                Event::Refused { fes } => {
                    return Err(Error::Refused { addr: self.options.addr, fes });
                }
            }
        }
        Ok(pump)
    }
}

fn digests(options: &Options) -> Digests {
    Digests { header: options.header_digest, data: options.data_digest }
}
