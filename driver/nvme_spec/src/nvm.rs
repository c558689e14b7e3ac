//! Fields of NVM commands (NVM Command Set 1.1, section 3).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command::Sqe;
use crate::{U32, U64};

const FUA: u32 = 1 << 30;
const LIMITED_RETRY: u32 = 1 << 31;
const DEAC: u32 = 1 << 25;

/// CDW10 to CDW12 of Read, Write, Compare and Write Zeroes.
#[derive(Clone, Copy, Debug)]
pub struct ReadWrite {
    slba: u64,
    cdw12: u32,
}

impl ReadWrite {
    /// Reads the fields of a command.
    #[inline]
    pub fn of(sqe: &Sqe) -> Self {
        let slba = u64::from(sqe.cdw11.get()) << 32 | u64::from(sqe.cdw10.get());
        Self { slba, cdw12: sqe.cdw12.get() }
    }

    /// Fields for `block_count` (1 to 65,536) blocks from `slba`.
    #[inline]
    pub fn new(slba: u64, block_count: u32) -> Self {
        debug_assert!((1..=0x1_0000).contains(&block_count));
        Self { slba, cdw12: block_count.wrapping_sub(1) & 0xFFFF }
    }

    /// The same with Force Unit Access.
    #[inline]
    pub fn with_fua(self, fua: bool) -> Self {
        Self { cdw12: if fua { self.cdw12 | FUA } else { self.cdw12 }, ..self }
    }

    /// The same with Deallocate, of Write Zeroes.
    #[inline]
    pub fn with_deac(self, deac: bool) -> Self {
        Self { cdw12: if deac { self.cdw12 | DEAC } else { self.cdw12 }, ..self }
    }

    /// Writes the fields into a command.
    #[inline]
    pub fn set(self, sqe: &mut Sqe) {
        sqe.cdw10 = (self.slba as u32).into();
        sqe.cdw11 = ((self.slba >> 32) as u32).into();
        sqe.cdw12 = self.cdw12.into();
    }

    /// First logical block.
    #[inline]
    pub fn slba(self) -> u64 {
        self.slba
    }

    /// Number of logical blocks; on the wire NLB, 0's based.
    #[inline]
    pub fn block_count(self) -> u32 {
        (self.cdw12 & 0xFFFF) + 1
    }

    /// Force Unit Access.
    #[inline]
    pub fn fua(self) -> bool {
        self.cdw12 & FUA != 0
    }

    /// Limited Retry.
    #[inline]
    pub fn limited_retry(self) -> bool {
        self.cdw12 & LIMITED_RETRY != 0
    }

    /// Deallocate, of Write Zeroes.
    #[inline]
    pub fn deac(self) -> bool {
        self.cdw12 & DEAC != 0
    }
}

/// One range of Dataset Management, 16 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes: hints.
    pub attributes: U32,
    /// Length in logical blocks; not 0's based.
    pub block_count: U32,
    /// First logical block.
    pub slba: U64,
}

/// Bytes of a [`DsmRange`].
pub const DSM_RANGE_BYTES: u32 = 16;
const _: () = assert!(size_of::<DsmRange>() == DSM_RANGE_BYTES as usize);

/// Most ranges of one Dataset Management command.
pub const MAX_DSM_RANGES: u32 = 256;

/// CDW11 of Dataset Management: Attribute - Deallocate.
pub const DSM_DEALLOCATE: u32 = 1 << 2;

/// Makes a Dataset Management command deallocate this many ranges (1 to 256).
pub fn set_dsm_deallocate(sqe: &mut Sqe, range_count: u32) {
    debug_assert!((1..=MAX_DSM_RANGES).contains(&range_count));
    sqe.cdw10 = (range_count.wrapping_sub(1) & 0xFF).into();
    sqe.cdw11 = DSM_DEALLOCATE.into();
}

/// Number of ranges of a Dataset Management command; on the wire NR, 0's based.
#[inline]
pub fn dsm_range_count(sqe: &Sqe) -> u32 {
    (sqe.cdw10.get() & 0xFF) + 1
}

/// Whether a Dataset Management command deallocates.
#[inline]
pub fn dsm_deallocates(sqe: &Sqe) -> bool {
    sqe.cdw11.get() & DSM_DEALLOCATE != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_counts_are_zeroes_based_on_the_wire() {
        let mut sqe = Sqe::default();
        ReadWrite::new(0x1_0000_0002, 65_536).with_fua(true).set(&mut sqe);
        assert_eq!((sqe.cdw10.get(), sqe.cdw11.get()), (2, 1));
        assert_eq!(sqe.cdw12.get(), 0x4000_FFFF);
        let back = ReadWrite::of(&sqe);
        assert_eq!((back.slba(), back.block_count(), back.fua()), (0x1_0000_0002, 65_536, true));
        assert!(!back.deac() && !back.limited_retry());
        ReadWrite::new(7, 1).with_deac(true).set(&mut sqe);
        assert_eq!(sqe.cdw12.get(), 0x0200_0000);
        assert!(ReadWrite::of(&sqe).deac() && !ReadWrite::of(&sqe).fua());
    }

    #[test]
    fn deallocation_of_ranges() {
        let mut sqe = Sqe::default();
        set_dsm_deallocate(&mut sqe, 256);
        assert_eq!((sqe.cdw10.get(), sqe.cdw11.get()), (0xFF, 4));
        assert_eq!((dsm_range_count(&sqe), dsm_deallocates(&sqe)), (256, true));
        let range = DsmRange { attributes: U32::ZERO, block_count: 8.into(), slba: 0x100.into() };
        assert_eq!(range.as_bytes(), [0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    }
}
