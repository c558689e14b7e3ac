//! One connection.

use std::io;
use std::marker::PhantomData;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::null_mut;

use dma::DmaSpan;

/// Most runs of bytes that one call sends.
pub const MAX_GATHER: usize = 64;

const _: () = assert!(MAX_GATHER <= libc::UIO_MAXIOV as usize);

/// What a call has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes, at least one, have been received or taken for sending.
    Bytes(usize),
    /// Nothing is there to receive, or there is no room to send.
    Blocked,
    /// The peer sends nothing more.
    Ended,
}

/// A TCP connection that never blocks.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
}

impl Socket {
    /// Takes a connection over: no call on it blocks, and small segments leave at once.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Receives what is there: first into all of `to`, if it is given, then into `rest`.
    ///
    /// # Errors
    /// The connection is broken.
    #[inline]
    pub fn receive(&self, to: Option<DmaSpan>, rest: &mut [u8]) -> io::Result<Moved> {
        let mut runs = [EMPTY; 2];
        let mut count = 0;
        if let Some(span) = to {
            runs[0] = libc::iovec { iov_base: span.as_ptr().cast(), iov_len: span.len() as usize };
            count = 1;
        }
        if !rest.is_empty() {
            runs[count] = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
            count += 1;
        }
        debug_assert!(count > 0, "nowhere to receive");
        let mut header = header(&mut runs[..count]);
        let fd = self.stream.as_raw_fd();
        // SAFETY: the header names runs that are ours for the call: a span of the arena, which
        // lives as long as the process and has no references to it, and a slice that is borrowed
        // mutably.
        let received = unsafe { libc::recvmsg(fd, &raw mut header, libc::MSG_DONTWAIT) };
        match usize::try_from(received) {
            Ok(0) => Ok(Moved::Ended),
            Ok(bytes) => Ok(Moved::Bytes(bytes)),
            Err(_) => blocked_or_error(),
        }
    }

    /// Sends the beginning of what is gathered, as much as there is room for.
    ///
    /// # Errors
    /// The connection is broken.
    #[inline]
    pub fn send(&self, gather: &mut Gather<'_>) -> io::Result<Moved> {
        debug_assert!(gather.count > 0, "nothing to send");
        let mut header = header(&mut gather.runs[..gather.count]);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let fd = self.stream.as_raw_fd();
        // SAFETY: the header names runs that are only read: spans of the arena, which lives as long
        // as the process, and slices that are borrowed for as long as `gather` is.
        let sent = unsafe { libc::sendmsg(fd, &raw mut header, flags) };
        match usize::try_from(sent) {
            Ok(bytes) => Ok(Moved::Bytes(bytes)),
            Err(_) => blocked_or_error(),
        }
    }

    /// Says that nothing more is sent.
    ///
    /// # Errors
    /// The connection is gone already.
    pub fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// The address that the peer reached.
    ///
    /// # Errors
    /// The system refuses.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Runs of bytes to send, in order; at most [`MAX_GATHER`].
pub struct Gather<'a> {
    runs: [libc::iovec; MAX_GATHER],
    count: usize,
    bytes: usize,
    borrowed: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    /// Nothing yet.
    #[inline]
    pub fn new() -> Self {
        Self { runs: [EMPTY; MAX_GATHER], count: 0, bytes: 0, borrowed: PhantomData }
    }

    /// Adds ordinary bytes; `false`: there is no place for them.
    #[inline]
    pub fn push_bytes(&mut self, bytes: &'a [u8]) -> bool {
        self.push(bytes.as_ptr().cast_mut(), bytes.len())
    }

    /// Adds bytes of the arena; `false`: there is no place for them.
    #[inline]
    pub fn push_span(&mut self, span: DmaSpan) -> bool {
        self.push(span.as_ptr(), span.len() as usize)
    }

    /// How many bytes there are.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    fn push(&mut self, base: *mut u8, len: usize) -> bool {
        let Some(run) = self.runs.get_mut(self.count) else { return false };
        *run = libc::iovec { iov_base: base.cast(), iov_len: len };
        self.count += 1;
        self.bytes += len;
        true
    }
}

impl Default for Gather<'_> {
    fn default() -> Self {
        Self::new()
    }
}

const EMPTY: libc::iovec = libc::iovec { iov_base: null_mut(), iov_len: 0 };

#[inline]
fn header(runs: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: a structure of integers and pointers, for all of which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = runs.as_mut_ptr();
    header.msg_iovlen = runs.len() as _;
    header
}

#[cold]
fn blocked_or_error() -> io::Result<Moved> {
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Moved::Blocked),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use dma::Arena;

    use super::*;

    fn pair() -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        (Socket::new(one).unwrap(), Socket::new(other).unwrap())
    }

    /// Until something has arrived: loopback is quick, but not at once.
    fn receive(socket: &Socket, to: Option<DmaSpan>, rest: &mut [u8]) -> Moved {
        loop {
            match socket.receive(to, rest).unwrap() {
                Moved::Blocked => std::thread::yield_now(),
                moved => return moved,
            }
        }
    }

    #[test]
    fn bytes_go_to_the_span_first_and_then_behind_it() {
        let (one, other) = pair();
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let (from, to) = (arena.carve(16, 16).unwrap(), arena.carve(8, 8).unwrap());
        from.write(0, b"span of the data");
        let mut gather = Gather::new();
        assert!(gather.push_bytes(b"head ") && gather.push_span(from) && gather.push_bytes(b"!"));
        assert_eq!(gather.bytes(), 22);
        assert_eq!(one.send(&mut gather).unwrap(), Moved::Bytes(22));
        let mut rest = [0; 64];
        assert_eq!(receive(&other, Some(to), &mut rest), Moved::Bytes(22));
        assert_eq!(
            (to.read_obj::<[u8; 8]>(0), &rest[..14]),
            (*b"head spa", &b"n of the data!"[..])
        );
    }

    #[test]
    fn a_socket_never_blocks_and_tells_the_end() {
        let (one, other) = pair();
        let mut rest = [0; 8];
        assert_eq!(other.receive(None, &mut rest).unwrap(), Moved::Blocked);
        let block = [7; 1 << 16];
        let full = (0..10_000).any(|_| {
            let mut gather = Gather::new();
            gather.push_bytes(&block);
            one.send(&mut gather).unwrap() == Moved::Blocked
        });
        assert!(full, "nobody reads, and yet there is always room");
        let (quiet, gone) = pair();
        gone.finish().unwrap();
        assert_eq!(receive(&quiet, None, &mut rest), Moved::Ended);
        drop(gone);
    }

    #[test]
    fn no_more_than_fits_is_gathered() {
        let mut gather = Gather::new();
        for _ in 0..MAX_GATHER {
            assert!(gather.push_bytes(b"x"));
        }
        assert!(!gather.push_bytes(b"x"));
        assert_eq!(gather.bytes(), MAX_GATHER);
    }
}
