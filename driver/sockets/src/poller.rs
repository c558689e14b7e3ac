//! Which sockets have something to do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What happened on a socket since it was last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The number that the socket was added with.
    pub token: u64,
    /// Something is there to receive, or the connection has ended or broken, which receiving tells.
    pub receive: bool,
    /// There is room to send.
    pub send: bool,
    /// The peer sends nothing more: after what is there to receive comes the end.
    pub ending: bool,
}

/// Watches sockets, each for changes (edge-triggered): what it has told once it tells again only
/// when more has happened.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    events: Box<[EpollEvent]>,
}

impl Poller {
    /// One that tells of at most `batch` sockets at a time.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new(batch: usize) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, events: vec![EpollEvent::empty(); batch].into() })
    }

    /// Watches a socket until it is closed or removed. What is there already is told, too.
    ///
    /// # Errors
    /// The system refuses, or the socket is watched already.
    pub fn add(&self, socket: &impl AsFd, token: u64) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        Ok(self.epoll.add(socket, EpollEvent::new(flags, token))?)
    }

    /// Watches a socket no more.
    ///
    /// # Errors
    /// It is not watched.
    pub fn remove(&self, socket: &impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(socket)?)
    }

    /// What happened; waits for `timeout` at most until something does.
    ///
    /// # Errors
    /// The system refuses.
    #[inline]
    pub fn poll(&mut self, timeout: Duration) -> io::Result<impl Iterator<Item = Ready> + '_> {
        let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::MAX);
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let broken = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        Ok(self.events[..count].iter().map(move |event| {
            let flags = event.events();
            let ending = flags.intersects(broken | EpollFlags::EPOLLRDHUP);
            Ready {
                token: event.data(),
                receive: ending || flags.contains(EpollFlags::EPOLLIN),
                send: flags.intersects(broken | EpollFlags::EPOLLOUT),
                ending,
            }
        }))
    }
}

/// Readable when there is something to tell.
impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::{Moved, Socket};

    fn told(poller: &mut Poller) -> Vec<Ready> {
        poller.poll(Duration::from_millis(200)).unwrap().collect()
    }

    #[test]
    fn what_happens_is_told_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = Socket::new(listener.accept().unwrap().0).unwrap();
        let mut poller = Poller::new(4).unwrap();
        poller.add(&socket, 42).unwrap();
        let first = Ready { token: 42, receive: false, send: true, ending: false };
        assert_eq!(told(&mut poller), [first]);
        assert_eq!(told(&mut poller), []);
        peer.write_all(b"x").unwrap();
        assert!(matches!(told(&mut poller)[..], [Ready { receive: true, ending: false, .. }]));
        assert_eq!(told(&mut poller), []);
        let mut rest = [0; 8];
        assert_eq!(socket.receive(None, &mut rest).unwrap(), Moved::Bytes(1));
        drop(peer);
        assert!(matches!(told(&mut poller)[..], [Ready { receive: true, ending: true, .. }]));
        poller.remove(&socket).unwrap();
        assert!(poller.remove(&socket).is_err());
    }
}
