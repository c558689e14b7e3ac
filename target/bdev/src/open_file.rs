//! Opening a file or a block device for nobody but us.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::{major, minor};
use uuid::Uuid;

use crate::BdevError;
use crate::file::direct_works;

/// An open file and what was found out about it.
#[derive(Debug)]
pub(crate) struct OpenFile {
    /// Goes through the page cache, and holds the lock.
    buffered: File,
    /// Goes past the page cache, where the file system allows it.
    direct: Option<File>,
    /// Alignment of memory that `direct` wants.
    pub(crate) memory_align: u64,
    pub(crate) bytes: u64,
    pub(crate) uuid: Uuid,
    pub(crate) punches_holes: bool,
}

/// Alignment of memory that direct I/O is used with, and tried with first.
const MEMORY_ALIGN: usize = 512;

/// Opens `path` for reading and writing and takes the lock on it.
pub(crate) fn open(name: &str, path: &str, block_bytes: u32) -> Result<OpenFile, BdevError> {
    let invalid = |reason: String| BdevError::Invalid { name: name.to_owned(), reason };
    let failed = |action, source| BdevError::Io { name: name.to_owned(), action, source };
    if !matches!(block_bytes, 512 | 4096) {
        return Err(invalid(format!("blocks of {block_bytes} bytes; 512 and 4096 are possible")));
    }
    // The path is looked at before it is opened: opening a pipe would wait, a tape would move.
    let metadata = std::fs::metadata(path).map_err(|error| failed("looking at the path", error))?;
    let is_block_device = metadata.file_type().is_block_device();
    if !is_block_device && !metadata.is_file() {
        return Err(invalid(format!("{path} is neither a file nor a block device")));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    // For a block device O_EXCL is the kernel's own claim: a mount, md or LVM has it, or we do.
    let exclusive = if is_block_device { libc::O_EXCL } else { 0 };
    let buffered =
        options.custom_flags(exclusive).open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => claimed(name, user_of_device(&metadata)),
            _ => failed("opening it", error),
        })?;
    match buffered.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(claimed(name, lock_holder(&metadata))),
        Err(TryLockError::Error(error)) => return Err(failed("locking it", error)),
    }
    let bytes = size(&buffered).map_err(|error| failed("asking for its size", error))?;
    if bytes == 0 || !bytes.is_multiple_of(u64::from(block_bytes)) {
        return Err(invalid(format!("{path} has {bytes} bytes: no multiple of {block_bytes}")));
    }
    // Without O_EXCL: the claim is on the first descriptor, and a second claim would be refused.
    let direct = options.custom_flags(libc::O_DIRECT).open(path).ok();
    let direct = direct.filter(|file| direct_works(file, block_bytes, MEMORY_ALIGN));
    let uuid = identity(path).map_err(|error| failed("resolving the path", error))?;
    let punches_holes = metadata.is_file() && punches_holes(&buffered, bytes);
    let memory_align = MEMORY_ALIGN as u64;
    Ok(OpenFile { buffered, direct, memory_align, bytes, uuid, punches_holes })
}

/// Compares the size of what is at `path` with the one that is wanted.
pub(crate) fn check_size(name: &str, path: &str, wanted: u64) -> Result<(), BdevError> {
    let failed = |action, source| BdevError::Io { name: name.to_owned(), action, source };
    let metadata = std::fs::metadata(path).map_err(|error| failed("looking at the path", error))?;
    // What is neither is refused when it is opened.
    let found = match metadata.file_type().is_block_device() {
        true => File::open(path).and_then(|file| size(&file)),
        false => Ok(metadata.len()),
    };
    let found = found.map_err(|error| failed("asking for its size", error))?;
    if found == wanted {
        return Ok(());
    }
    let name = name.to_owned();
    let reason = format!(
        "{path} exists and has {found} bytes, not {wanted}; leave the size out to take it as it is"
    );
    Err(BdevError::Invalid { name, reason })
}

impl OpenFile {
    /// The files for a ring: through the page cache, and past it where that works.
    pub(crate) fn duplicate(&self) -> io::Result<Vec<File>> {
        let files = std::iter::once(&self.buffered).chain(self.direct.as_ref());
        files.map(File::try_clone).collect()
    }
}

fn claimed(name: &str, holder: String) -> BdevError {
    BdevError::Claimed { name: name.to_owned(), holder }
}

fn size(file: &File) -> io::Result<u64> {
    use std::io::Seek;
    let mut file = file;
    file.seek(io::SeekFrom::End(0))
}

/// Tried beyond the end, where it changes nothing.
fn punches_holes(file: &File, bytes: u64) -> bool {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    i64::try_from(bytes).is_ok_and(|end| fallocate(file, flags, end, 4096).is_ok())
}

/// Made of the machine and the path: the same after a restart, another one for a copy, which has
/// another path or lies on another machine. An inode would change when a file is restored, and a
/// device number with the order in which disks are found.
fn identity(path: &str) -> io::Result<Uuid> {
    let path = Path::new(path).canonicalize()?;
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let name = format!("forebay file {} {}", machine.trim(), path.display());
    Ok(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
}

/// Who uses a block device, as far as the kernel tells.
fn user_of_device(metadata: &Metadata) -> String {
    let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if let Some(point) = mount_point(&mounts, &format!("{major}:{minor}")) {
        return format!("a file system mounted on {point}");
    }
    let holders = format!("/sys/dev/block/{major}:{minor}/holders");
    let holder = std::fs::read_dir(holders).ok().and_then(|mut list| list.next()?.ok());
    match holder {
        Some(holder) => format!("block device {}", holder.file_name().display()),
        None => lock_holder(metadata),
    }
}

fn mount_point<'a>(mounts: &'a str, device: &str) -> Option<&'a str> {
    let mut lines = mounts.lines().map(|line| line.split(' '));
    lines.find_map(|mut words| (words.nth(2) == Some(device)).then(|| words.nth(1)).flatten())
}

/// The process that holds the lock, from /proc/locks: number and command.
fn lock_holder(metadata: &Metadata) -> String {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let (major, minor) = (major(metadata.dev()), minor(metadata.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    match lock_pid(&locks, &wanted) {
        Some(pid) => {
            let command = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            format!("process {pid} ({})", command.as_deref().unwrap_or("gone").trim())
        }
        None => "another process".to_owned(),
    }
}

fn lock_pid<'a>(locks: &'a str, file: &str) -> Option<&'a str> {
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&file)).then(|| words[4])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_found_in_what_the_kernel_prints() {
        let locks = "1: POSIX  ADVISORY  WRITE 10 08:01:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 42 08:01:77 0 EOF\n";
        assert_eq!(lock_pid(locks, "08:01:77"), Some("42"));
        assert_eq!(lock_pid(locks, "08:01:78"), None);
        let mounts = "22 1 8:1 / /srv/data rw - ext4 /dev/sda1 rw\n";
        assert_eq!(mount_point(mounts, "8:1"), Some("/srv/data"));
        assert_eq!(mount_point(mounts, "8:2"), None);
    }
}
