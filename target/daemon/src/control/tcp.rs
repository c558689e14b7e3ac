//! TCP connections: taken here, used on a core, and closed here.
//!
//! A socket goes to its core with `OpenQueue` and comes back with `QueueClosed`. It is not closed
//! at once then: what its peer was sent last may be lost when the peer is still sending, because
//! the system answers that with a reset.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use nvmf::Transport;
use nvmf_tcp::limits::{CONNECT_SLOTS, MAX_QUEUE_ENTRIES};
use socket2::{Domain, Protocol, Type};
use sockets::{Moved, Poller, Socket};

use super::connections::{Connection, Connections};
use super::rdma::Action;
use crate::limits::{ACCEPTS_PER_TURN, MAX_LEAVING, MAX_UNBOUND_TCP};
use crate::message::{CoreMessage, OpenQueue, Way};

/// How long to wait before listening again where an address was missing.
const RETRY_LISTENERS: Duration = Duration::from_secs(2);

/// How long a peer may take to read what it was sent last.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// Connections that the system keeps until they are taken.
const BACKLOG: i32 = 1024;

/// The TCP side of the control thread.
pub(crate) struct Tcp {
    poller: Poller,
    listeners: Vec<Listener>,
    /// There may be more to accept.
    more: bool,
    /// Nothing more is sent to these; they are closed when their peers have ended, or in time.
    leaving: Vec<(Socket, Instant)>,
    next_retry: Instant,
}

/// An address that hosts connect to. Without a socket the address is missing; it is tried again.
struct Listener {
    address: SocketAddr,
    socket: Option<TcpListener>,
}

impl Tcp {
    /// # Errors
    /// The system has no resources left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            poller: Poller::new(16)?,
            listeners: Vec::new(),
            more: false,
            leaving: Vec::new(),
            next_retry: Instant::now(),
        })
    }

    /// Becomes readable when [`Tcp::poll`] has something.
    pub(crate) fn poller(&self) -> &Poller {
        &self.poller
    }

    /// Listens on an address.
    ///
    /// # Errors
    /// The address is not this machine's, or its port is taken.
    pub(crate) fn listen(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let socket = self.bind(address).with_context(|| format!("listening on {address}"))?;
        self.listeners.push(Listener { address, socket: Some(socket) });
        Ok(())
    }

    /// Listens on an address as soon as this machine has it.
    pub(crate) fn listen_later(&mut self, address: SocketAddr) {
        self.listeners.push(Listener { address, socket: None });
    }

    pub(crate) fn stop_listening(&mut self, address: SocketAddr) {
        self.listeners.retain(|listener| listener.address != address);
    }

    fn bind(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let domain = Domain::for_address(address);
        let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        // After a restart there are connections of the last run, which are closed but not gone.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // One family: another listener may have the same port on IPv4.
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        self.poller.add(&listener, 0)?;
        Ok(listener)
    }

    /// Takes connections that have come, and says what to do.
    pub(crate) fn poll(&mut self, connections: &mut Connections, actions: &mut Vec<Action>) {
        // What is told is that there is something; where does not matter.
        if let Err(error) = self.poller.poll(Duration::ZERO).map(drop) {
            tracing::error!(%error, "TCP listeners cannot be polled");
        }
        self.more = false;
        for index in 0..self.listeners.len() {
            for accepted in 0.. {
                // Others have their turn, too.
                if accepted == ACCEPTS_PER_TURN {
                    self.more = true;
                    break;
                }
                let Some(listener) = &self.listeners[index].socket else { break };
                match listener.accept() {
                    Ok((stream, peer)) => add(stream, peer, connections, actions),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        // Descriptors or memory, as a rule; there may be some later.
                        tracing::warn!(%error, "a TCP connection cannot be accepted");
                        self.more = true;
                        break;
                    }
                }
            }
        }
    }

    /// Does what is due: accepts what was left, listens again, closes what has left.
    pub(crate) fn handle_tick(
        &mut self,
        now: Instant,
        connections: &mut Connections,
        actions: &mut Vec<Action>,
    ) {
        self.leaving.retain(|(socket, limit)| now < *limit && !has_ended(socket));
        if self.more {
            self.poll(connections, actions);
        }
        if now >= self.next_retry {
            self.next_retry = now + RETRY_LISTENERS;
            self.retry_listeners();
        }
    }

    fn retry_listeners(&mut self) {
        for index in 0..self.listeners.len() {
            let Listener { address, socket } = &self.listeners[index];
            if socket.is_none()
                && let Ok(socket) = self.bind(*address)
            {
                tracing::info!(%address, "listening");
                self.listeners[index].socket = Some(socket);
                self.more = true;
            }
        }
    }

    /// Ends a connection that its core has given up.
    pub(crate) fn close(&mut self, socket: Socket, now: Instant) {
        let told = socket.finish().is_ok();
        if told && self.leaving.len() < MAX_LEAVING {
            self.leaving.push((socket, now + LEAVE_LIMIT));
        }
    }
}

/// A connection that has come in.
fn add(
    stream: TcpStream,
    peer: SocketAddr,
    connections: &mut Connections,
    actions: &mut Vec<Action>,
) {
    if connections.is_full() {
        tracing::warn!(%peer, "connection refused: too many are open");
        return;
    }
    let socket = Socket::new(stream);
    let (socket, local) = match socket.and_then(|socket| Ok((socket.local_addr()?, socket))) {
        Ok((local, socket)) => (socket, local),
        Err(error) => {
            tracing::debug!(%peer, %error, "a TCP connection broke");
            return;
        }
    };
    // Whoever opens connections and says nothing makes room for those who say something.
    if let Some(oldest) = connections.oldest_unbound(Transport::Tcp, MAX_UNBOUND_TCP) {
        tracing::warn!(key = oldest, "closed: too many connections wait for their Connect");
        // It is not there for the next one to close: each that comes closes another.
        if let Some(connection) = connections.get_mut(oldest) {
            connection.doomed = true;
        }
        actions.push(Action::Close(oldest));
    }
    let core = connections.least_loaded();
    let key = connections.add(Connection {
        core,
        transport: Transport::Tcp,
        peer,
        local,
        qid: None,
        entries: MAX_QUEUE_ENTRIES,
        bound: false,
        doomed: false,
    });
    let open = OpenQueue { key, slots: CONNECT_SLOTS, way: Way::Tcp(socket) };
    actions.push(Action::Tell(core, CoreMessage::OpenQueue(Box::new(open))));
}

/// Throws away what a peer still sends; says whether it has ended.
fn has_ended(socket: &Socket) -> bool {
    let mut bytes = [0; 4096];
    // Bounded: a peer that sends on has until its time is up.
    for _ in 0..16 {
        match socket.receive(None, &mut bytes) {
            Ok(Moved::Bytes(_)) => {}
            Ok(Moved::Blocked) => return false,
            Ok(Moved::Ended) | Err(_) => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn tcp() -> (Tcp, SocketAddr) {
        let mut tcp = Tcp::new().unwrap();
        tcp.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = tcp.listeners[0].socket.as_ref().unwrap();
        let address = listener.local_addr().unwrap();
        (tcp, address)
    }

    fn accept(tcp: &mut Tcp, connections: &mut Connections) -> Vec<Action> {
        let mut actions = Vec::new();
        while actions.is_empty() {
            tcp.poll(connections, &mut actions);
        }
        actions
    }

    #[test]
    fn a_connection_goes_to_a_core_and_is_told_the_end() {
        let (mut tcp, address) = tcp();
        let mut connections = Connections::new(2);
        let mut host = TcpStream::connect(address).unwrap();
        let Some(Action::Tell(core, CoreMessage::OpenQueue(open))) =
            accept(&mut tcp, &mut connections).pop()
        else {
            panic!("no queue to open");
        };
        let connection = connections.get(open.key).unwrap();
        assert_eq!((connection.core, connection.local), (core, address));
        assert_eq!(connection.peer, host.local_addr().unwrap());
        let Way::Tcp(socket) = open.way else { panic!("not TCP") };
        let now = Instant::now();
        tcp.close(socket, now);
        assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
        tcp.handle_tick(now, &mut connections, &mut Vec::new());
        assert_eq!(tcp.leaving.len(), 1, "the host has not ended");
        tcp.handle_tick(now + LEAVE_LIMIT, &mut connections, &mut Vec::new());
        assert!(tcp.leaving.is_empty(), "time is up");
    }

    #[test]
    fn a_flood_of_silent_connections_makes_room_for_new_ones() {
        let (mut tcp, address) = tcp();
        let mut connections = Connections::new(1);
        let mut hosts = Vec::new();
        let mut closed = Vec::new();
        while closed.is_empty() {
            hosts.push(TcpStream::connect(address).unwrap());
            for action in accept(&mut tcp, &mut connections) {
                if let Action::Close(key) = action {
                    closed.push(key);
                }
            }
        }
        assert_eq!((hosts.len(), &closed[..]), (MAX_UNBOUND_TCP + 1, &[1][..]));
        // Cores take their time to close: each that comes makes room by another one.
        for _ in 0..3 {
            hosts.push(TcpStream::connect(address).unwrap());
            closed.extend(accept(&mut tcp, &mut connections).iter().filter_map(|it| match it {
                Action::Close(key) => Some(*key),
                Action::Tell(..) => None,
            }));
        }
        assert_eq!(closed, [1, 2, 3, 4]);
    }
}
