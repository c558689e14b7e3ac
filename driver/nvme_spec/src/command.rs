//! Submission and completion queue entries (NVMe Base 2.1, sections 4.1 and 4.2).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::sgl::{PSDT_SGL, SglDescriptor};
use crate::status::Status;
use crate::{U16, U32, U64};

/// Submission queue entry, 64 bytes (figure "Common Command Format").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sqe {
    /// CDW0 bits 7:0.
    pub opcode: u8,
    /// CDW0 bits 15:8: FUSE in 1:0, PSDT in 7:6.
    pub flags: u8,
    /// CDW0 bits 31:16: command identifier.
    pub cid: U16,
    /// CDW1: namespace identifier.
    pub nsid: U32,
    /// CDW2.
    pub cdw2: U32,
    /// CDW3.
    pub cdw3: U32,
    /// CDW4 and CDW5: metadata pointer.
    pub mptr: U64,
    /// CDW6 to CDW9: two PRP entries or one SGL descriptor.
    pub dptr: [u8; 16],
    /// CDW10.
    pub cdw10: U32,
    /// CDW11.
    pub cdw11: U32,
    /// CDW12.
    pub cdw12: U32,
    /// CDW13.
    pub cdw13: U32,
    /// CDW14.
    pub cdw14: U32,
    /// CDW15.
    pub cdw15: U32,
}

const _: () = assert!(size_of::<Sqe>() == 64);
const _: () = assert!(std::mem::offset_of!(Sqe, dptr) == 24);
const _: () = assert!(std::mem::offset_of!(Sqe, cdw10) == 40);

impl Default for Sqe {
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

impl Sqe {
    /// A command with this opcode and namespace, all else zero.
    pub fn new(opcode: u8, nsid: u32) -> Self {
        Self { opcode, nsid: nsid.into(), ..Self::default() }
    }

    /// Opcode.
    #[inline]
    pub fn opcode(&self) -> u8 {
        self.opcode
    }

    /// Command identifier.
    #[inline]
    pub fn cid(&self) -> u16 {
        self.cid.get()
    }

    /// Namespace identifier.
    #[inline]
    pub fn nsid(&self) -> u32 {
        self.nsid.get()
    }

    /// FUSE: 0 for a normal command.
    #[inline]
    pub fn fuse(&self) -> u8 {
        self.flags & 3
    }

    /// PSDT: whether the data pointer holds PRPs (0) or an SGL.
    #[inline]
    pub fn psdt(&self) -> u8 {
        self.flags >> 6
    }

    /// The data pointer as an SGL descriptor.
    #[inline]
    pub fn sgl(&self) -> SglDescriptor {
        SglDescriptor(self.dptr)
    }

    /// Sets the data pointer to an SGL descriptor, and PSDT with it.
    pub fn set_sgl(&mut self, sgl: SglDescriptor) {
        self.flags = self.flags & 0x3F | PSDT_SGL << 6;
        self.dptr = sgl.0;
    }

    /// PRP entry 1.
    #[inline]
    pub fn prp1(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.dptr;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// PRP entry 2.
    #[inline]
    pub fn prp2(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.dptr;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Sets the data pointer to two PRP entries.
    #[inline]
    pub fn set_prps(&mut self, prp1: u64, prp2: u64) {
        self.flags &= 0x3F;
        self.dptr[..8].copy_from_slice(&prp1.to_le_bytes());
        self.dptr[8..].copy_from_slice(&prp2.to_le_bytes());
    }
}

/// Completion queue entry, 16 bytes (figure "Common Completion Queue Entry Layout").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Cqe {
    /// DW0: command specific.
    pub dw0: U32,
    /// DW1: command specific.
    pub dw1: U32,
    /// DW2 bits 15:0: how far the controller has consumed the submission queue.
    pub sqhd: U16,
    /// DW2 bits 31:16: submission queue identifier; reserved in fabrics.
    pub sqid: U16,
    /// DW3 bits 15:0: command identifier.
    pub cid: U16,
    /// DW3 bits 31:16: phase tag in bit 0, then the status.
    pub status_field: U16,
}

const _: () = assert!(size_of::<Cqe>() == 16);
const _: () = assert!(std::mem::offset_of!(Cqe, status_field) == 14);

impl Default for Cqe {
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

impl Cqe {
    /// A response capsule: `result` fills DW0 and DW1.
    #[inline]
    pub fn new(cid: u16, sqhd: u16, result: u64, status: Status) -> Self {
        Self {
            dw0: U32::new(result as u32),
            dw1: U32::new((result >> 32) as u32),
            sqhd: sqhd.into(),
            sqid: U16::ZERO,
            cid: cid.into(),
            status_field: status.to_field().into(),
        }
    }

    /// Command identifier.
    #[inline]
    pub fn cid(&self) -> u16 {
        self.cid.get()
    }

    /// DW0 and DW1 as one number.
    #[inline]
    pub fn result(&self) -> u64 {
        u64::from(self.dw1.get()) << 32 | u64::from(self.dw0.get())
    }

    /// Phase tag.
    #[inline]
    pub fn phase(&self) -> bool {
        self.status_field.get() & 1 != 0
    }

    /// The same with this phase tag, as in a completion queue in memory.
    #[inline]
    #[must_use]
    pub fn with_phase(self, phase: bool) -> Self {
        let field = self.status_field.get() & !1 | u16::from(phase);
        Self { status_field: field.into(), ..self }
    }

    /// Status.
    #[inline]
    pub fn status(&self) -> Status {
        Status::from_field(self.status_field.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_bytes() {
        let mut sqe = Sqe::new(0x02, 7);
        sqe.cid = 0x1234.into();
        sqe.set_prps(0x1000, 0x2000);
        let bytes = sqe.as_bytes();
        assert_eq!(&bytes[..8], &[2, 0, 0x34, 0x12, 7, 0, 0, 0]);
        assert_eq!((bytes[25], bytes[33]), (0x10, 0x20));
        assert_eq!((sqe.prp1(), sqe.prp2()), (0x1000, 0x2000));
        let cqe = Cqe::new(0x1234, 9, 1 << 32 | 2, Status::LBA_OUT_OF_RANGE.with_dnr());
        assert_eq!(cqe.as_bytes(), &[2, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0x34, 0x12, 0x00, 0x81]);
        assert_eq!(cqe.status(), Status::LBA_OUT_OF_RANGE.with_dnr());
        assert_eq!(cqe.result(), 1 << 32 | 2);
        let newer = cqe.with_phase(true);
        assert_eq!((newer.phase(), newer.status()), (true, cqe.status()));
        assert_eq!(newer.with_phase(false).as_bytes(), cqe.as_bytes());
    }

    #[test]
    fn the_data_pointer_and_psdt_go_together() {
        let mut sqe = Sqe { flags: 0x02, ..Sqe::new(0x01, 1) };
        sqe.set_sgl(SglDescriptor::transport(4096));
        assert_eq!((sqe.flags, sqe.fuse(), sqe.psdt()), (0x42, 2, PSDT_SGL));
        assert_eq!(sqe.sgl(), SglDescriptor::transport(4096));
        sqe.set_prps(1 << 12, 0);
        assert_eq!((sqe.flags, sqe.psdt()), (0x02, 0));
    }
}
