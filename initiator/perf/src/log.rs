//! The acknowledgement log: which writes were sent, and which were acknowledged.
//!
//! A header of 64 bytes, then records of 40 bytes, only ever appended. That a write is sent is
//! written to the log before the write goes out; that it was acknowledged, a turn later at most. So
//! the log of a process that was killed misses no write, and where it misses an acknowledgement it
//! allows both. It survives the end of the process, not that of the machine that keeps it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::expect::Expect;
use crate::limits::MAX_VERIFIED_BLOCKS;
use crate::workload::Kind;

const MAGIC: [u8; 8] = *b"FBACKLOG";
const VERSION: u32 = 1;

/// Why a log cannot be used.
#[derive(Debug, Error)]
pub enum LogError {
    /// The system refused.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The log.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process writes it.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The log.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{} is no acknowledgement log of this version", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
    },
    /// A record is not what was written.
    #[error("{} is damaged at byte {at}", path.display())]
    Damaged {
        /// The log.
        path: PathBuf,
        /// Where the record begins.
        at: u64,
    },
    /// It is of other blocks.
    #[error(
        "{} is of {} blocks of {} bytes from block {}; the job has {} of {} from block {}",
        path.display(), log.block_count, log.block_bytes, log.first_block,
        wanted.block_count, wanted.block_bytes, wanted.first_block
    )]
    OtherBlocks {
        /// The log.
        path: PathBuf,
        /// Its blocks.
        log: Coverage,
        /// Those of the job, or of the target.
        wanted: Coverage,
    },
    /// It would be too large for memory.
    #[error("{block_count} blocks; a log covers {MAX_VERIFIED_BLOCKS} at most")]
    TooLarge {
        /// Blocks wanted.
        block_count: u64,
    },
}

impl LogError {
    pub(crate) fn advice(&self) -> Option<&'static str> {
        match self {
            LogError::NotALog { .. } => Some("name a file that does not exist, to begin a new log"),
            LogError::Damaged { .. } => Some("write everything anew, with a new log"),
            LogError::OtherBlocks { .. } => {
                Some("give --offset, --size and --logical-block as in the first run")
            }
            LogError::TooLarge { .. } => Some("limit the range with --size"),
            LogError::File { .. } | LogError::InUse { .. } => None,
        }
    }
}

/// The blocks that a log is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// The first.
    pub first_block: u64,
    /// How many.
    pub block_count: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    block_bytes: U32,
    seed: U64,
    first_block: U64,
    block_count: U64,
    created_us: U64,
    reserved: [u8; 12],
    crc: U32,
}

const HEADER_BYTES: usize = 64;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    /// [`SENT`] or [`ACKED`].
    event: u8,
    /// 0: a write; 1: it leaves zeroes.
    zeroes: u8,
    reserved: [u8; 2],
    block_count: U32,
    slba: U64,
    generation: U64,
    /// Microseconds since 1970.
    time_us: U64,
    core: U32,
    crc: U32,
}

const RECORD_BYTES: usize = 40;
const _: () = assert!(size_of::<Record>() == RECORD_BYTES);

const SENT: u8 = 1;
const ACKED: u8 = 2;

/// A log, and what follows from it.
#[derive(Debug)]
pub struct AckLog {
    /// What the data of all blocks follows from.
    pub seed: u64,
    /// Which blocks it is of.
    pub coverage: Coverage,
    /// What each of them must hold.
    pub blocks: Vec<Expect>,
    /// The greatest generation that was given.
    pub last_generation: u64,
    file: Arc<File>,
    path: PathBuf,
}

impl AckLog {
    /// Opens the log at `path` to go on with it, or begins one there.
    ///
    /// # Errors
    /// There is something else, the log is damaged, in use, or of other blocks.
    pub fn open_or_create(path: &Path, wanted: Coverage, seed: u64) -> Result<Self, LogError> {
        if wanted.block_count > MAX_VERIFIED_BLOCKS {
            return Err(LogError::TooLarge { block_count: wanted.block_count });
        }
        match OpenOptions::new().read(true).append(true).create_new(true).open(path) {
            Ok(file) => {
                lock(path, &file)?;
                let header = Header::new(wanted, seed);
                (&file).write_all(header.as_bytes()).map_err(file_error("writing", path))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(file_error("making", path)(error)),
        }
        let log = Self::open(path)?;
        if log.coverage != wanted {
            let path = path.to_owned();
            return Err(LogError::OtherBlocks { path, log: log.coverage, wanted });
        }
        Ok(log)
    }

    /// Opens the log at `path`. A record of which only a part is there was never relied on: it is
    /// cut off.
    ///
    /// # Errors
    /// There is none, it is damaged, or in use.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let failed = |action| file_error(action, path);
        let file = OpenOptions::new().read(true).append(true).open(path);
        let file = file.map_err(failed("opening"))?;
        lock(path, &file)?;
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let header = Header::read(&mut reader).map_err(failed("reading"))?;
        let header = header.ok_or_else(|| LogError::NotALog { path: path.to_owned() })?;
        let coverage = header.coverage();
        let mut blocks = vec![Expect::default(); coverage.block_count as usize];
        let mut last_generation = 0;
        let end = each_record(&mut reader, path, |at, record| {
            let range = coverage.indices(record.slba.get(), record.block_count.get());
            let range = range.ok_or_else(|| LogError::Damaged { path: path.to_owned(), at })?;
            let (generation, zeroes) = (record.generation.get(), record.zeroes != 0);
            last_generation = last_generation.max(generation);
            for block in &mut blocks[range] {
                match record.event {
                    SENT => block.note_sent(generation, zeroes),
                    _ => block.note_acked(generation, zeroes),
                }
            }
            Ok(())
        })?;
        file.set_len(end).map_err(failed("shortening"))?;
        let (file, path) = (Arc::new(file), path.to_owned());
        Ok(Self { seed: header.seed.get(), coverage, blocks, last_generation, file, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A writer for core `core`, which appends at most `records` at a time.
    pub fn writer(&self, core: usize, records: usize) -> LogWriter {
        LogWriter::new(Arc::clone(&self.file), self.path.clone(), core, records)
    }

    /// When each of `generations` was acknowledged, or else sent, in microseconds since 1970. Reads
    /// the log once more, which only a bad block is worth.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn times(path: &Path, generations: &[u64]) -> Result<Vec<Option<u64>>, LogError> {
        let failed = |action| file_error(action, path);
        let file = File::open(path).map_err(failed("opening"))?;
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        Header::read(&mut reader).map_err(failed("reading"))?;
        let mut times = vec![None; generations.len()];
        each_record(&mut reader, path, |_, record| {
            for (wanted, time) in generations.iter().zip(&mut times) {
                if record.generation.get() == *wanted {
                    *time = Some(record.time_us.get());
                }
            }
            Ok(())
        })?;
        Ok(times)
    }
}

impl Coverage {
    /// Places of blocks in a table of all that are covered.
    fn indices(&self, slba: u64, block_count: u32) -> Option<std::ops::Range<usize>> {
        let start = slba.checked_sub(self.first_block)?;
        let end = start.checked_add(u64::from(block_count))?;
        (end <= self.block_count).then_some(start as usize..end as usize)
    }
}

impl Header {
    fn new(coverage: Coverage, seed: u64) -> Self {
        let mut header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            block_bytes: coverage.block_bytes.into(),
            seed: seed.into(),
            first_block: coverage.first_block.into(),
            block_count: coverage.block_count.into(),
            created_us: now_us().into(),
            reserved: [0; 12],
            crc: U32::ZERO,
        };
        header.crc = checksum(header.as_bytes()).into();
        header
    }

    /// `None`: this is no header of ours.
    fn read(reader: &mut impl Read) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEADER_BYTES];
        match reader.read_exact(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let header = Header::read_from_bytes(&bytes).ok();
        let is_good = |header: &Header| {
            header.magic == MAGIC
                && header.version.get() == VERSION
                && header.crc.get() == checksum(&bytes)
                && matches!(header.block_bytes.get(), 512 | 4096)
                && (1..=MAX_VERIFIED_BLOCKS).contains(&header.block_count.get())
        };
        Ok(header.filter(is_good))
    }

    fn coverage(&self) -> Coverage {
        Coverage {
            block_bytes: self.block_bytes.get(),
            first_block: self.first_block.get(),
            block_count: self.block_count.get(),
        }
    }
}

/// Hands over each whole record with its place; returns where the last one ends.
fn each_record(
    reader: &mut impl Read,
    path: &Path,
    mut handle: impl FnMut(u64, &Record) -> Result<(), LogError>,
) -> Result<u64, LogError> {
    let mut at = HEADER_BYTES as u64;
    let mut bytes = [0; RECORD_BYTES];
    loop {
        match reader.read_exact(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(at),
            other => other.map_err(file_error("reading", path))?,
        }
        let record = Record::read_from_bytes(&bytes).ok();
        let is_good = |record: &Record| {
            record.crc.get() == checksum(&bytes) && matches!(record.event, SENT | ACKED)
        };
        let damaged = || LogError::Damaged { path: path.to_owned(), at };
        handle(at, &record.filter(is_good).ok_or_else(damaged)?)?;
        at += RECORD_BYTES as u64;
    }
}

fn lock(path: &Path, file: &File) -> Result<(), LogError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(LogError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(file_error("locking", path)(error)),
    }
}

fn file_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> LogError {
    move |source| LogError::File { action, path: path.to_owned(), source }
}

/// Of all but the last four bytes, where it stands.
fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::checksum(Crc32Iscsi, &bytes[..bytes.len() - 4]) as u32
}

/// Microseconds since 1970.
pub(crate) fn now_us() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |time| time.as_micros() as u64)
}

/// Appends the records of one core, those of a turn in one go.
#[derive(Debug)]
pub struct LogWriter {
    file: Arc<File>,
    path: PathBuf,
    buffer: Vec<u8>,
    core: usize,
}

/// A write, as a record has it.
#[derive(Clone, Copy, Debug)]
pub struct Logged {
    /// Its first block.
    pub slba: u64,
    /// How many.
    pub block_count: u32,
    /// Its number.
    pub generation: u64,
    /// What it does.
    pub kind: Kind,
}

impl LogWriter {
    pub(crate) fn new(file: Arc<File>, path: PathBuf, core: usize, records: usize) -> Self {
        Self { file, path, buffer: Vec::with_capacity(records * RECORD_BYTES), core }
    }

    /// A write will be sent, after the next [`LogWriter::flush`].
    #[inline]
    pub fn sent(&mut self, write: &Logged, time_us: u64) {
        self.push(SENT, write, time_us);
    }

    /// A write was acknowledged.
    #[inline]
    pub fn acked(&mut self, write: &Logged, time_us: u64) {
        self.push(ACKED, write, time_us);
    }

    fn push(&mut self, event: u8, write: &Logged, time_us: u64) {
        let mut record = Record {
            event,
            zeroes: u8::from(write.kind != Kind::Write),
            reserved: [0; 2],
            block_count: write.block_count.into(),
            slba: write.slba.into(),
            generation: write.generation.into(),
            time_us: time_us.into(),
            core: (self.core as u32).into(),
            crc: U32::ZERO,
        };
        record.crc = checksum(record.as_bytes()).into();
        self.buffer.extend_from_slice(record.as_bytes());
    }

    /// Writes what there is with one call: the kernel appends it in one piece, also where other
    /// cores append.
    ///
    /// # Errors
    /// The system took less. Nothing may be sent any more.
    #[inline]
    pub fn flush(&mut self) -> Result<(), LogError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = (&*self.file).write(&self.buffer);
        let all = self.buffer.len();
        self.buffer.clear();
        match written {
            Ok(count) if count == all => Ok(()),
            Ok(_) => Err(file_error("appending to", &self.path)(io::ErrorKind::StorageFull.into())),
            Err(error) => Err(file_error("appending to", &self.path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expect::Expected;

    const COVERAGE: Coverage = Coverage { block_bytes: 512, first_block: 100, block_count: 50 };

    fn write(slba: u64, block_count: u32, generation: u64) -> Logged {
        Logged { slba, block_count, generation, kind: Kind::Write }
    }

    fn log_with(records: impl FnOnce(&mut LogWriter)) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = AckLog::open_or_create(&path, COVERAGE, 77).unwrap();
        let mut writer = log.writer(3, 16);
        records(&mut writer);
        writer.flush().unwrap();
        (folder, path)
    }

    #[test]
    fn what_was_logged_is_known_again() {
        let (_folder, path) = log_with(|writer| {
            writer.sent(&write(100, 8, 1), 1000);
            writer.acked(&write(100, 8, 1), 1001);
            writer.sent(&write(104, 2, 2), 1002);
            writer.sent(&Logged { kind: Kind::WriteZeroes, ..write(149, 1, 3) }, 1003);
            writer.acked(&Logged { kind: Kind::WriteZeroes, ..write(149, 1, 3) }, 1004);
        });
        let log = AckLog::open_or_create(&path, COVERAGE, 5).unwrap();
        assert_eq!((log.seed, log.last_generation), (77, 3), "the seed is that of the first run");
        let expected = |lba: usize| log.blocks[lba - 100].expected();
        let acked = Expected { generation: 1, zeroes: false, or_until: None };
        assert_eq!(expected(100), acked);
        assert_eq!(expected(105), Expected { or_until: Some(2), ..acked });
        assert_eq!(expected(149), Expected { generation: 3, zeroes: true, or_until: None });
        assert!(!log.blocks[108 - 100].is_known());
        let times = AckLog::times(&path, &[1, 2, 9]).unwrap();
        assert_eq!(times, [Some(1001), Some(1002), None]);
    }

    #[test]
    fn a_record_that_was_cut_off_is_forgotten() {
        let (_folder, path) = log_with(|writer| {
            writer.sent(&write(100, 1, 1), 0);
            writer.sent(&write(101, 1, 2), 0);
        });
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len((HEADER_BYTES + RECORD_BYTES + 39) as u64).unwrap();
        let log = AckLog::open(&path).unwrap();
        assert_eq!(log.last_generation, 1);
        let mut writer = log.writer(0, 1);
        writer.sent(&write(102, 1, 5), 0);
        writer.flush().unwrap();
        drop((log, writer));
        assert_eq!(AckLog::open(&path).unwrap().last_generation, 5, "and what follows is whole");
    }

    #[test]
    fn damage_and_other_files_are_told_apart() {
        let (folder, path) = log_with(|writer| {
            writer.sent(&write(100, 1, 1), 0);
            writer.sent(&write(101, 1, 2), 0);
        });
        let good = std::fs::read(&path).unwrap();
        let with = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            AckLog::open(&path).unwrap_err()
        };
        for at in [0, 8, 20, 63] {
            assert!(matches!(with(at), LogError::NotALog { .. }), "{at}");
        }
        for at in HEADER_BYTES + RECORD_BYTES..good.len() {
            let error = with(at);
            assert!(matches!(error, LogError::Damaged { at: 104, .. }), "{at}: {error}");
        }
        let other = folder.path().join("other");
        std::fs::write(&other, b"my thesis").unwrap();
        let error = AckLog::open_or_create(&other, COVERAGE, 1).unwrap_err();
        assert!(matches!(error, LogError::NotALog { .. }));
        assert_eq!(std::fs::read(&other).unwrap(), b"my thesis", "it is left as it is");
    }

    #[test]
    fn a_log_is_of_its_blocks_and_of_one_process() {
        let (_folder, path) = log_with(|_| {});
        let wanted = Coverage { block_count: 51, ..COVERAGE };
        let error = AckLog::open_or_create(&path, wanted, 1).unwrap_err().to_string();
        assert!(error.contains("50 blocks") && error.contains("has 51"), "{error}");
        let _log = AckLog::open(&path).unwrap();
        assert!(matches!(AckLog::open(&path), Err(LogError::InUse { .. })));
        let block_count = MAX_VERIFIED_BLOCKS + 1;
        let wanted = Coverage { block_count, ..COVERAGE };
        let error = AckLog::open_or_create(Path::new("/nowhere/x"), wanted, 1).unwrap_err();
        assert!(matches!(error, LogError::TooLarge { .. }));
    }

    #[test]
    fn a_log_that_cannot_grow_says_so() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut writer = LogWriter::new(Arc::new(file), "/dev/full".into(), 0, 1);
        writer.sent(&write(100, 1, 1), 0);
        assert!(writer.flush().unwrap_err().to_string().contains("appending to"));
    }
}
