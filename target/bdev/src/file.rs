//! A block device in a file, or a block device of the kernel.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use dma::DmaSpan;
use nvme_spec::status::Status;
use uring::{FileOp, Ring};
use uuid::Uuid;

use crate::limits::{FILE_DEPTH, SCRATCH_BYTES};
use crate::open_file::{OpenFile, check_size, open};
use crate::range::{Span, check, ranges};
use crate::scratch::Scratch;
use crate::{
    Bdev, BdevError, Busy, Channel, Completion, Completions, Geometry, Health, Io, Op, errno,
};

/// Blocks in a regular file, or in a block device that the kernel drives. Held exclusively for as
/// long as it is open.
#[derive(Debug)]
pub struct FileBdev {
    name: String,
    geometry: Geometry,
    uuid: Uuid,
    file: OpenFile,
}

impl FileBdev {
    /// Opens `path`, whose size must be a whole number of blocks of `block_bytes` (512 or 4096).
    ///
    /// # Errors
    /// The path cannot be opened, is in use (the error names by whom), or its size is wrong.
    pub fn open(name: &str, path: &str, block_bytes: u32) -> Result<Self, BdevError> {
        let file = open(name, path, block_bytes)?;
        let geometry = Geometry {
            block_bytes,
            block_count: file.bytes / u64::from(block_bytes),
            // The page cache, or the cache of the disk below.
            volatile_write_cache: true,
            deallocate_reads_zeroes: file.punches_holes,
            atomic_write_blocks: 1,
            preferred_write_blocks: (4096 / block_bytes).max(1),
        };
        Ok(Self { name: name.to_owned(), geometry, uuid: file.uuid, file })
    }

    /// Sees to it that there is a file of `bytes` at `path`, to be opened afterwards: makes a
    /// sparse one, which survives power loss when this returns, or finds one of this size.
    ///
    /// # Errors
    /// What is at the path has another size, or the file cannot be made; nothing of it is left.
    pub fn create(name: &str, path: &str, bytes: u64) -> Result<(), BdevError> {
        let failed =
            |source| BdevError::Io { name: name.to_owned(), action: "making the file", source };
        let file = match File::create_new(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return check_size(name, path, bytes);
            }
            Err(error) => return Err(failed(error)),
        };
        let folder = Path::new(path).parent().unwrap_or(Path::new("/"));
        let made = || {
            file.set_len(bytes)?;
            file.sync_all()?;
            // The name, too.
            File::open(folder)?.sync_all()
        };
        made().map_err(|error| {
            // A file of the wrong size would be in the way of the next attempt.
            let _ = std::fs::remove_file(path);
            failed(error)
        })
    }
}

impl Bdev for FileBdev {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "file"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn health(&self) -> Health {
        Health::Live
    }

    fn open_channel(&self, _core: usize) -> Result<Box<dyn Channel>, BdevError> {
        let failed = |action, source| BdevError::Io { name: self.name.clone(), action, source };
        let files = self.file.duplicate().map_err(|error| failed("duplicating the file", error))?;
        let ring = Ring::new(&files, FILE_DEPTH).map_err(|error| BdevError::Invalid {
            name: self.name.clone(),
            reason: error.to_string(),
        })?;
        let scratch = Scratch::take().map_err(|error| BdevError::Invalid {
            name: self.name.clone(),
            reason: error.to_string(),
        })?;
        Ok(Box::new(FileChannel {
            ring,
            direct: (files.len() > 1).then_some(self.file.memory_align),
            geometry: self.geometry,
            slots: vec![None; FILE_DEPTH as usize],
            free: (0..FILE_DEPTH).collect(),
            ended: VecDeque::with_capacity(FILE_DEPTH as usize),
            comparing: false,
            scratch,
        }))
    }
}

/// File 0 goes through the page cache, file 1 past it.
const BUFFERED: u32 = 0;
const DIRECT: u32 = 1;

struct FileChannel {
    /// Dropped before `scratch`: it waits for what is in flight.
    ring: Ring,
    /// Alignment of memory that file 1 wants, if there is a file 1.
    direct: Option<u64>,
    geometry: Geometry,
    slots: Vec<Option<Running>>,
    free: Vec<u32>,
    /// Completions not handed out yet. Each keeps its slot until then, which bounds the list.
    ended: VecDeque<(u32, Completion)>,
    /// One Compare at a time has the scratch memory.
    comparing: bool,
    scratch: Scratch,
}

/// An I/O in flight. It has one operation in the ring at any time, so that a ring as deep as there
/// are slots is never full.
#[derive(Clone, Copy, Debug)]
struct Running {
    io: Io,
    span: Span,
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Reading, writing or comparing from this many bytes on.
    Data(u64),
    /// Freeing or zeroing; for deallocate, the range of this number.
    Range(u16),
    /// Freeing because the file system cannot zero in place.
    ZeroByHole,
    /// The last step of a flush, or of write zeroes with FUA.
    Flush,
}

/// What becomes of an I/O after a step.
enum Next {
    Step(Step),
    End(Status),
}

impl FileChannel {
    /// The operation of a step, or the status that the I/O ends with already.
    fn operation(&self, running: &Running) -> Result<(u32, FileOp), Status> {
        let Span { offset, bytes, data } = running.span;
        let operation = match (running.io.op, running.step, data) {
            (Op::Read, Step::Data(done), Some(data)) => {
                let to = data.subspan(done as u32, (bytes - done) as u32);
                (self.file_for(to), FileOp::Read { offset: offset + done, to })
            }
            (Op::Write { fua }, Step::Data(done), Some(data)) => {
                let from = data.subspan(done as u32, (bytes - done) as u32);
                let write = FileOp::Write { offset: offset + done, from, durable: fua };
                (self.file_for(from), write)
            }
            (Op::Compare, Step::Data(done), _) => {
                let to = self.scratch.span();
                let part = (bytes - done).min(u64::from(SCRATCH_BYTES)) as u32;
                let to = to.subspan(0, part);
                (self.file_for(to), FileOp::Read { offset: offset + done, to })
            }
            (Op::WriteZeroes { deallocate: false, .. }, Step::Range(_), _) => {
                (BUFFERED, FileOp::ZeroRange { offset, bytes })
            }
            (Op::WriteZeroes { .. }, Step::Range(_) | Step::ZeroByHole, _) => {
                (BUFFERED, FileOp::PunchHole { offset, bytes })
            }
            (Op::Deallocate { ranges: count }, Step::Range(index), Some(data)) => {
                let range = ranges(count, data, &self.geometry).nth(usize::from(index));
                let (offset, bytes) = range.ok_or(Status::SUCCESS)??;
                // The kernel refuses an empty range; on the wire it is a valid one.
                let bytes =
                    if bytes == 0 { return self.skip(running, index, count) } else { bytes };
                (BUFFERED, FileOp::PunchHole { offset, bytes })
            }
            (_, Step::Flush, _) => (BUFFERED, FileOp::Flush),
            _ => return Err(Status::INTERNAL_ERROR.with_dnr()),
        };
        Ok(operation)
    }

    /// The next range that is not empty, after an empty one. At most 256 in a row.
    fn skip(&self, running: &Running, index: u16, count: u16) -> Result<(u32, FileOp), Status> {
        if index + 1 >= count {
            return Err(Status::SUCCESS);
        }
        self.operation(&Running { step: Step::Range(index + 1), ..*running })
    }

    /// What follows a step that ended with `result`.
    fn next(&self, running: &Running, result: Result<u32, i32>) -> Next {
        let is_write = !matches!(running.io.op, Op::Read | Op::Compare);
        let bytes = running.span.bytes;
        match (running.io.op, running.step, result) {
            (_, step @ Step::Data(_), Err(code)) if again(code) => Next::Step(step),
            (Op::WriteZeroes { deallocate: false, .. }, Step::Range(_), Err(libc::EOPNOTSUPP)) => {
                Next::Step(Step::ZeroByHole)
            }
            // Deallocate is a hint, and the geometry does not promise zeroes in this case.
            (Op::Deallocate { .. }, Step::Range(_), Err(libc::EOPNOTSUPP)) => {
                Next::End(Status::SUCCESS)
            }
            (_, _, Err(code)) => Next::End(errno::status(code, is_write)),
            // Somebody made the file shorter, or the device ended.
            (_, Step::Data(_), Ok(0)) => Next::End(errno::status(libc::EIO, is_write)),
            (op, Step::Data(done), Ok(count)) => {
                let wrong = op == Op::Compare && !self.equals(running, done, count);
                let done = done + u64::from(count);
                match (wrong, done >= bytes) {
                    (true, _) => Next::End(Status::COMPARE_FAILURE.with_dnr()),
                    (false, true) => Next::End(Status::SUCCESS),
                    (false, false) => Next::Step(Step::Data(done)),
                }
            }
            (Op::Deallocate { ranges }, Step::Range(index), Ok(_)) if index + 1 < ranges => {
                Next::Step(Step::Range(index + 1))
            }
            (Op::WriteZeroes { fua: true, .. }, Step::Range(_) | Step::ZeroByHole, Ok(_)) => {
                Next::Step(Step::Flush)
            }
            (_, _, Ok(_)) => Next::End(Status::SUCCESS),
        }
    }

    fn equals(&self, running: &Running, done: u64, count: u32) -> bool {
        let Some(data) = running.span.data else { return false };
        let (mut ours, mut theirs) = ([0; 512], [0; 512]);
        let mut at = 0;
        while at < count {
            let part = (count - at).min(512) as usize;
            self.scratch.span().read(at, &mut ours[..part]);
            data.read(done as u32 + at, &mut theirs[..part]);
            if ours[..part] != theirs[..part] {
                return false;
            }
            at += part as u32;
        }
        true
    }

    /// Memory that is not aligned as direct I/O wants it (in-capsule data) goes through the page
    /// cache; the kernel keeps the two coherent.
    fn file_for(&self, span: DmaSpan) -> u32 {
        match self.direct {
            Some(align) if span.addr().is_multiple_of(align) => DIRECT,
            _ => BUFFERED,
        }
    }

    /// Queues the I/O's step, or ends it.
    fn start(&mut self, slot: u32, running: Running) {
        let status = match self.operation(&running) {
            Ok((file, operation)) => match self.ring.push(u64::from(slot), file, operation) {
                Ok(()) => {
                    // An operation may have skipped ranges; doing those again is harmless.
                    self.slots[slot as usize] = Some(running);
                    return;
                }
                Err(uring::Full) => Status::INTERNAL_ERROR,
            },
            Err(status) => status,
        };
        self.end(slot, &running.io, status);
    }

    fn end(&mut self, slot: u32, io: &Io, status: Status) {
        if io.op == Op::Compare {
            self.comparing = false;
        }
        self.slots[slot as usize] = None;
        self.ended.push_back((slot, Completion { tag: io.tag, status }));
    }
}

impl Channel for FileChannel {
    fn submit(&mut self, io: Io) -> Result<(), Busy> {
        let is_compare = io.op == Op::Compare;
        if is_compare && self.comparing {
            return Err(Busy);
        }
        let slot = self.free.pop().ok_or(Busy)?;
        let checked = check(&io, &self.geometry);
        let step = match io.op {
            Op::Read | Op::Write { .. } | Op::Compare => Step::Data(0),
            Op::WriteZeroes { .. } | Op::Deallocate { .. } => Step::Range(0),
            Op::Flush => Step::Flush,
        };
        self.comparing |= is_compare;
        match checked {
            Ok(span) => self.start(slot, Running { io, span, step }),
            Err(status) => self.end(slot, &io, status),
        }
        Ok(())
    }

    fn poll(&mut self, _now: Instant, done: &mut Completions) {
        // First what is complete, so that what follows from it goes out with the same call.
        while self.ended.len() < FILE_DEPTH as usize
            && let Some((tag, result)) = self.ring.reap()
        {
            let slot = tag as u32;
            let Some(Some(running)) = self.slots.get(slot as usize).copied() else { continue };
            match self.next(&running, result) {
                Next::Step(step) => self.start(slot, Running { step, ..running }),
                Next::End(status) => self.end(slot, &running.io, status),
            }
        }
        self.ring.submit();
        while done.room() > 0
            && let Some((slot, completion)) = self.ended.pop_front()
        {
            self.free.push(slot);
            done.push(completion);
        }
    }
}

fn again(code: i32) -> bool {
    code == libc::EINTR || code == libc::EAGAIN
}

/// Whether direct I/O in single blocks works: file systems and disks differ in what they want.
pub(crate) fn direct_works(file: &File, block_bytes: u32, align: usize) -> bool {
    let block = block_bytes as usize;
    let mut memory = vec![0; block + 2 * 4096];
    // Aligned to `align` and to nothing more.
    let start = memory.as_ptr().align_offset(4096) + align % 4096;
    let Some(bytes) = memory.get_mut(start..start + block) else { return false };
    file.read_at(bytes, 0).is_ok()
}
