//! What an error of the operating system means to a host.

use nix::errno::Errno;
use nvme_spec::status::Status;

/// The status for an I/O that failed with `errno`. Do Not Retry only where the same command can
/// never succeed: space may be freed, and a path may come back.
pub(crate) fn status(errno: i32, is_write: bool) -> Status {
    match Errno::from_raw(errno) {
        Errno::EIO | Errno::EREMOTEIO | Errno::ENODATA | Errno::EILSEQ if is_write => {
            Status::WRITE_FAULT
        }
        Errno::EIO | Errno::EREMOTEIO | Errno::ENODATA | Errno::EILSEQ => {
            Status::UNRECOVERED_READ_ERROR
        }
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => Status::CAPACITY_EXCEEDED,
        Errno::EROFS | Errno::EPERM | Errno::EACCES => Status::NAMESPACE_WRITE_PROTECTED.with_dnr(),
        _ => Status::INTERNAL_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_may_come_back_and_write_protection_stays() {
        assert_eq!(status(Errno::ENOSPC as i32, true), Status::CAPACITY_EXCEEDED);
        assert!(status(Errno::EROFS as i32, true).dnr());
        assert_eq!(status(Errno::EIO as i32, false), Status::UNRECOVERED_READ_ERROR);
        assert_eq!(status(Errno::EIO as i32, true), Status::WRITE_FAULT);
        assert_eq!(status(9999, true), Status::INTERNAL_ERROR);
    }
}
