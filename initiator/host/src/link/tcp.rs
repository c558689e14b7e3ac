//! A [`Connection`] on a socket.
//!
//! At most one system call sends and one receives in a turn. Data of reads that is due goes
//! straight to its place; what comes with it, up to [`INPUT_BYTES`], is looked at from a buffer.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nvme_tcp::Piece;
use socket2::{Domain, Protocol, Type};
use sockets::{Gather, Moved, Poller, Socket};

use crate::connection::{self, Connection};
use crate::error::Error;
use crate::limits::{ADMIN_IN_CAPSULE_BYTES, DEADLINE_GRANULARITY, INPUT_BYTES};
use crate::link::{Event, Queue};
use crate::options::Options;
use crate::slots::{Command, Left};

/// A connection and its socket.
#[derive(Debug)]
pub(crate) struct TcpLink {
    addr: SocketAddr,
    socket: Socket,
    poller: Poller,
    connection: Connection,
    input: Box<[u8]>,
    /// What was received and not looked at yet: a range of `input`.
    from: usize,
    to: usize,
    /// The last call found nothing to receive, or no room to send.
    receive_blocked: bool,
    send_blocked: bool,
    /// The connection must be initialized by then.
    open_by: Option<(Instant, Duration)>,
    /// When time-outs are looked for again.
    check_at: Instant,
    calls: u64,
}

impl TcpLink {
    /// As [`Link::open`](crate::link::Link::open).
    pub(crate) fn open(now: Instant, options: &Options, queue: Queue) -> Result<Self, Error> {
        let (addr, limit) = (options.addr, options.connect_timeout);
        let mut connection = Connection::new(options.digests(), queue.depth);
        connection.set_in_capsule_bytes(match queue.qid {
            0 => ADMIN_IN_CAPSULE_BYTES,
            _ => queue.in_capsule_bytes,
        });
        let wrap = |action| move |source| Error::Socket { addr, action, source };
        let socket = connect(addr).map_err(wrap("connecting"))?;
        let poller = Poller::new(1).map_err(wrap("watching the socket"))?;
        poller.add(&socket, 0).map_err(wrap("watching the socket"))?;
        Ok(Self {
            addr,
            socket,
            poller,
            connection,
            input: vec![0; INPUT_BYTES].into(),
            from: 0,
            to: 0,
            receive_blocked: false,
            send_blocked: false,
            open_by: Some((now + limit, limit)),
            check_at: now,
            calls: 0,
        })
    }

    pub(crate) fn turn(&mut self, now: Instant) -> Result<(), Error> {
        if now >= self.check_at {
            self.check_at = now + DEADLINE_GRANULARITY;
            self.check_time(now)?;
        }
        self.send()?;
        self.receive()
    }

    pub(crate) fn poll_event(&mut self) -> Result<Option<Event>, Error> {
        loop {
            match self.connection.poll_event() {
                Some(connection::Event::Opened) => {
                    self.open_by = None;
                    return Ok(Some(Event::Opened));
                }
                Some(connection::Event::Completed(done)) => {
                    return Ok(Some(Event::Completed(done)));
                }
                Some(connection::Event::Broken(fault)) => {
                    // As far as there is room: nobody waits for a controller that breaks rules.
                    let _ = self.send();
                    return Err(Error::Broken { addr: self.addr, fault });
                }
                Some(connection::Event::Refused { fes }) => {
                    return Err(Error::Refused { addr: self.addr, fes });
                }
                None => {}
            }
            if self.from == self.to {
                return Ok(None);
            }
            match self.connection.handle_input(&self.input[self.from..self.to]) {
                // A connection that has ended takes nothing.
                0 => self.from = self.to,
                taken => self.from += taken,
            }
        }
    }

    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<(), Error> {
        let sends = !self.connection.is_idle() && !self.send_blocked;
        if sends || !self.receive_blocked {
            return Ok(());
        }
        let told = self.poller.poll(timeout).map(|ready| ready.for_each(drop));
        told.map_err(|source| self.error("waiting", source))
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let opens = self.open_by.map(|(at, _)| at);
        [opens, self.connection.next_deadline()].into_iter().flatten().min()
    }

    #[inline]
    pub(crate) fn submit(&mut self, command: Command) -> bool {
        self.connection.submit(command)
    }

    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.connection.room()
    }

    #[inline]
    pub(crate) fn outstanding(&self) -> usize {
        self.connection.outstanding()
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls
    }

    /// Closes the socket.
    pub(crate) fn close(self) -> Vec<Left> {
        let Self { socket, mut connection, .. } = self;
        drop(socket);
        connection.abandon()
    }

    #[inline]
    fn send(&mut self) -> Result<(), Error> {
        if self.connection.is_idle() {
            return Ok(());
        }
        let mut gather = Gather::new();
        for piece in self.connection.pieces() {
            let fits = match piece {
                Piece::Bytes(bytes) => gather.push_bytes(bytes),
                Piece::Span(span) => gather.push_span(span),
            };
            if !fits {
                break;
            }
        }
        self.calls += 1;
        let sent = self.socket.send(&mut gather);
        match sent {
            Ok(Moved::Bytes(bytes)) => {
                self.send_blocked = false;
                self.connection.handle_sent(bytes);
                Ok(())
            }
            Ok(Moved::Blocked) => {
                self.send_blocked = true;
                Ok(())
            }
            Ok(Moved::Ended) => Err(Error::Closed { addr: self.addr }),
            Err(source) => Err(self.error("sending", source)),
        }
    }

    #[inline]
    fn receive(&mut self) -> Result<(), Error> {
        // Events that nobody has asked for hold up what is behind them.
        if self.from < self.to {
            return Ok(());
        }
        self.calls += 1;
        let payload = self.connection.payload();
        match self.socket.receive(payload, &mut self.input) {
            Ok(Moved::Bytes(bytes)) => {
                self.receive_blocked = false;
                let direct = payload.map_or(0, |span| bytes.min(span.len() as usize));
                if direct > 0 {
                    self.connection.handle_payload(direct as u32);
                }
                (self.from, self.to) = (0, bytes - direct);
                Ok(())
            }
            Ok(Moved::Blocked) => {
                self.receive_blocked = true;
                Ok(())
            }
            Ok(Moved::Ended) => Err(Error::Closed { addr: self.addr }),
            Err(source) => Err(self.error("receiving", source)),
        }
    }

    fn check_time(&self, now: Instant) -> Result<(), Error> {
        if let Some((at, limit)) = self.open_by
            && now >= at
        {
            let what = "opening a connection";
            return Err(Error::TimedOut { addr: self.addr, what, after: limit });
        }
        match self.connection.next_deadline() {
            Some(at) if now >= at => Err(Error::CommandTimedOut { addr: self.addr }),
            _ => Ok(()),
        }
    }

    fn error(&self, action: &'static str, source: io::Error) -> Error {
        Error::Socket { addr: self.addr, action, source }
    }
}

/// A socket that connects while it is not waited for: until it is connected, it has nothing to
/// receive and no room to send.
fn connect(addr: SocketAddr) -> io::Result<Socket> {
    let socket =
        socket2::Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&addr.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Socket::new(socket.into())
}
