//! I/O commands.

use nvme_spec::command::Sqe;
use nvme_spec::nvm::{MAX_DSM_RANGES, ReadWrite, set_dsm_deallocate};
use nvme_spec::opcode::nvm;
use nvme_spec::status::Status;

use crate::spans::Spans;

/// One I/O for an [`IoQueue`](crate::IoQueue).
#[derive(Clone, Copy, Debug)]
pub struct Io {
    /// Comes back in the completion; the caller's own.
    pub tag: u32,
    /// Namespace.
    pub nsid: u32,
    /// What to do.
    pub op: Op,
    /// First logical block; unused for flush and deallocate.
    pub slba: u64,
    /// Number of logical blocks, 1 to 65,536; unused for flush and deallocate.
    pub block_count: u32,
    /// Where data comes from or goes to: as many bytes as the blocks have, 16 for each range of a
    /// deallocate, [`Spans::NONE`] for flush and write zeroes; in no more runs than
    /// [`max_spans`](crate::ControllerInfo::max_spans). From `submit` to the completion it is the
    /// queue's.
    pub data: Spans,
}

/// What an [`Io`] does, in the words of the NVM command set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Blocks into memory.
    Read,
    /// Memory into blocks. With `fua` the blocks are on stable media when it completes.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Everything completed before is on stable media when it completes.
    Flush,
    /// Blocks equal the memory, or Compare Failure.
    Compare,
    /// Blocks read as zeroes afterwards; `deallocate` allows their space to be freed.
    WriteZeroes {
        /// DEAC.
        deallocate: bool,
        /// Force unit access.
        fua: bool,
    },
    /// Frees space. The data holds this many range definitions of 16 bytes (NVM Command Set,
    /// Dataset Management).
    Deallocate {
        /// Number of range definitions, 1 to 256.
        ranges: u16,
    },
}

/// The end of an [`Io`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The tag it was submitted with.
    pub tag: u32,
    /// The controller's status, or one of the host side's own: [`Status::HOST_PATHING_ERROR`] when
    /// the connection was lost and nobody knows whether the command was executed,
    /// [`Status::ABORTED_BY_HOST`] when it took too long, [`Status::TRANSIENT_TRANSPORT_ERROR`]
    /// when its data did not match its digest, [`Status::DATA_TRANSFER_ERROR`] when the controller
    /// reported success without having moved all data.
    pub status: Status,
}

impl Io {
    /// As a command, but for its identifier and its data pointer.
    pub(crate) fn to_sqe(self) -> Sqe {
        let opcode = match self.op {
            Op::Read => nvm::READ,
            Op::Write { .. } => nvm::WRITE,
            Op::Flush => nvm::FLUSH,
            Op::Compare => nvm::COMPARE,
            Op::WriteZeroes { .. } => nvm::WRITE_ZEROES,
            Op::Deallocate { .. } => nvm::DATASET_MANAGEMENT,
        };
        let mut sqe = Sqe::new(opcode, self.nsid);
        let blocks = || {
            assert!((1..=0x1_0000).contains(&self.block_count), "{} blocks", self.block_count);
            ReadWrite::new(self.slba, self.block_count)
        };
        match self.op {
            Op::Read | Op::Compare => blocks().set(&mut sqe),
            Op::Write { fua } => blocks().with_fua(fua).set(&mut sqe),
            Op::WriteZeroes { deallocate, fua } => {
                blocks().with_fua(fua).with_deac(deallocate).set(&mut sqe);
            }
            Op::Flush => {}
            Op::Deallocate { ranges } => {
                let ranges = u32::from(ranges);
                assert!((1..=MAX_DSM_RANGES).contains(&ranges), "{ranges} ranges");
                set_dsm_deallocate(&mut sqe, ranges);
            }
        }
        sqe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sqe(op: Op) -> Sqe {
        Io { tag: 0, nsid: 7, op, slba: 1 << 32 | 5, block_count: 8, data: Spans::NONE }.to_sqe()
    }

    #[test]
    fn each_op_is_its_command() {
        let read = sqe(Op::Read);
        assert_eq!((read.opcode(), read.nsid()), (nvm::READ, 7));
        let fields = ReadWrite::of(&read);
        assert_eq!((fields.slba(), fields.block_count(), fields.fua()), (1 << 32 | 5, 8, false));
        assert!(ReadWrite::of(&sqe(Op::Write { fua: true })).fua());
        let zeroes = sqe(Op::WriteZeroes { deallocate: true, fua: false });
        assert!(ReadWrite::of(&zeroes).deac() && !ReadWrite::of(&zeroes).fua());
        let flush = sqe(Op::Flush);
        assert_eq!((flush.opcode(), flush.cdw10.get(), flush.cdw12.get()), (nvm::FLUSH, 0, 0));
        let deallocate = sqe(Op::Deallocate { ranges: 256 });
        assert_eq!(nvme_spec::nvm::dsm_range_count(&deallocate), 256);
    }
}
