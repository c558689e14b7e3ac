//! io_uring for files and block devices, polled.
//!
//! A [`Ring`] belongs to one core. Operations are queued by [`Ring::push`], handed to the kernel by
//! [`Ring::submit`] with at most one system call, and found completed by [`Ring::reap`] with none:
//! completions are read from memory shared with the kernel.
//!
//! Memory is named by [`DmaSpan`]s, which live as long as the process, and files are registered
//! with the ring, which keeps them open. So there is nothing that an operation in flight could
//! outlive, and the interface is safe.
//!
//! What it does not do: retry short transfers, wait (but when a ring is dropped), or serve sockets.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use dma::DmaSpan;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use thiserror::Error;

/// The deepest ring.
pub const MAX_DEPTH: u32 = 4096;

/// What to do with a file.
#[derive(Clone, Copy, Debug)]
pub enum FileOp {
    /// Fills the span from the file.
    Read {
        /// First byte in the file.
        offset: u64,
        /// Where the bytes go.
        to: DmaSpan,
    },
    /// Writes the span to the file.
    Write {
        /// First byte in the file.
        offset: u64,
        /// Where the bytes come from.
        from: DmaSpan,
        /// On stable media when it completes (`RWF_DSYNC`).
        durable: bool,
    },
    /// Everything that completed before is on stable media when it completes (fdatasync).
    Flush,
    /// Frees the range, which reads as zeroes afterwards.
    PunchHole {
        /// First byte in the file.
        offset: u64,
        /// Length of the range.
        bytes: u64,
    },
    /// Makes the range read as zeroes and keeps its space.
    ZeroRange {
        /// First byte in the file.
        offset: u64,
        /// Length of the range.
        bytes: u64,
    },
}

/// The ring has as many operations in flight as it is deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Why there is no ring.
#[derive(Debug, Error)]
pub enum UringError {
    /// The kernel has no io_uring, or it is forbidden.
    #[error(
        "io_uring is not to be had ({source}): allow it with `sysctl -w \
         kernel.io_uring_disabled=0`, and in the container's seccomp profile"
    )]
    Unavailable {
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel refused the ring or the files.
    #[error("{action}: {source}")]
    Setup {
        /// What was tried.
        action: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// One core's way to a few files.
pub struct Ring {
    ring: IoUring,
    depth: u32,
    in_flight: u32,
    unsubmitted: bool,
    file_count: u32,
}

impl Ring {
    /// A ring for `files`, which operations name by their index, with at most `depth` operations in
    /// flight.
    ///
    /// # Errors
    /// io_uring is not available, or resources are short.
    pub fn new(files: &[File], depth: u32) -> Result<Self, UringError> {
        assert!((1..=MAX_DEPTH).contains(&depth) && !files.is_empty());
        let ring = IoUring::new(depth).map_err(|source| match source.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM) => UringError::Unavailable { source },
            _ => UringError::Setup { action: "setting up io_uring", source },
        })?;
        let descriptors: Vec<_> = files.iter().map(File::as_raw_fd).collect();
        let registered = ring.submitter().register_files(&descriptors);
        registered.map_err(|source| UringError::Setup {
            action: "registering files with io_uring",
            source,
        })?;
        let file_count = descriptors.len() as u32;
        Ok(Self { ring, depth, in_flight: 0, unsubmitted: false, file_count })
    }

    /// Queues an operation on a file, to be told apart by `tag`. It reaches the kernel with
    /// [`Ring::submit`].
    ///
    /// # Errors
    /// [`Full`]: nothing was queued.
    #[inline]
    pub fn push(&mut self, tag: u64, file: u32, op: FileOp) -> Result<(), Full> {
        assert!(file < self.file_count, "file {file} of {}", self.file_count);
        if self.in_flight == self.depth {
            return Err(Full);
        }
        let entry = entry(Fixed(file), op).user_data(tag);
        // SAFETY: the only memory an entry names is a span's, which lives as long as the process.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| Full)?;
        self.in_flight += 1;
        self.unsubmitted = true;
        Ok(())
    }

    /// Hands to the kernel what was queued since the last time: one system call, or none. What the
    /// kernel does not take now is handed over the next time.
    #[inline]
    pub fn submit(&mut self) {
        if self.unsubmitted {
            // An error (EAGAIN, EBUSY, EINTR) leaves the entries queued.
            let _ = self.ring.submit();
            self.unsubmitted = !self.ring.submission().is_empty();
        }
    }

    /// The next completion: its tag, and bytes done or the error number.
    #[inline]
    pub fn reap(&mut self) -> Option<(u64, Result<u32, i32>)> {
        // The completion queue is twice as deep as `depth`, so that it never overflows.
        let completion = self.ring.completion().next()?;
        self.in_flight -= 1;
        let result = completion.result();
        Some((completion.user_data(), u32::try_from(result).map_err(|_| -result)))
    }
}

impl Drop for Ring {
    /// Waits for what is in flight: afterwards the kernel touches no span on its behalf.
    fn drop(&mut self) {
        while self.in_flight > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(_) => return,
            }
            while self.reap().is_some() {}
        }
    }
}

#[inline]
fn entry(file: Fixed, op: FileOp) -> squeue::Entry {
    let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    match op {
        FileOp::Read { offset, to } => {
            opcode::Read::new(file, to.as_ptr(), to.len()).offset(offset).build()
        }
        FileOp::Write { offset, from, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            let write = opcode::Write::new(file, from.as_ptr().cast_const(), from.len());
            write.offset(offset).rw_flags(flags).build()
        }
        FileOp::Flush => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        FileOp::PunchHole { offset, bytes } => {
            opcode::Fallocate::new(file, bytes).offset(offset).mode(hole).build()
        }
        FileOp::ZeroRange { offset, bytes } => {
            opcode::Fallocate::new(file, bytes).offset(offset).mode(zero).build()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dma::Arena;

    fn run(ring: &mut Ring, op: FileOp) -> Result<u32, i32> {
        ring.push(7, 0, op).unwrap();
        ring.submit();
        loop {
            if let Some((tag, result)) = ring.reap() {
                assert_eq!(tag, 7);
                return result;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn bytes_go_out_and_come_back_and_a_hole_is_zero() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mut ring = Ring::new(&[file], 4).unwrap();
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let (out, back) = (arena.carve(8192, 4096).unwrap(), arena.carve(8192, 4096).unwrap());
        out.fill(5);
        for durable in [false, true] {
            let write = FileOp::Write { offset: 4096, from: out, durable };
            assert_eq!(run(&mut ring, write), Ok(8192));
        }
        assert_eq!(run(&mut ring, FileOp::Flush), Ok(0));
        assert_eq!(run(&mut ring, FileOp::PunchHole { offset: 8192, bytes: 4096 }), Ok(0));
        assert_eq!(run(&mut ring, FileOp::Read { offset: 4096, to: back }), Ok(8192));
        let mut bytes = [1; 8192];
        back.read(0, &mut bytes);
        assert!(bytes[..4096].iter().all(|&byte| byte == 5));
        assert!(bytes[4096..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_full_ring_refuses_and_a_dropped_one_waits() {
        let file = tempfile::tempfile().unwrap();
        let mut ring = Ring::new(&[file], 2).unwrap();
        ring.push(1, 0, FileOp::Flush).unwrap();
        ring.push(2, 0, FileOp::Flush).unwrap();
        assert_eq!(ring.push(3, 0, FileOp::Flush), Err(Full));
        ring.submit();
        while ring.reap().is_none() {
            std::thread::yield_now();
        }
        ring.push(3, 0, FileOp::Flush).unwrap();
    }
}
