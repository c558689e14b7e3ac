//! PDUs of NVMe over TCP (NVMe over TCP Transport 1.1, section 3.6, PDU definitions).
//!
//! A PDU is a header of `hlen` bytes, its digest if that was negotiated, padding up to `pdo`, data,
//! and the digest of the data if that was negotiated; `plen` counts them all.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command::{Cqe, Sqe};
use crate::{U16, U32};

/// Port of I/O controllers, as with RDMA.
pub const PORT: u16 = 4420;
/// Port of the discovery controller.
pub const DISCOVERY_PORT: u16 = 8009;
/// Bytes of a header or data digest, a CRC-32C.
pub const DIGEST_BYTES: usize = 4;
/// PDU format version of this specification, in ICReq and ICResp.
pub const PFV_1_0: u16 = 0;
/// Smallest MAXH2CDATA that a controller may announce, bytes.
pub const MAXH2CDATA_MIN: u32 = 4096;
/// Largest PLEN of H2CTermReq and C2HTermReq: the header and 128 bytes of the PDU that was wrong.
pub const TERM_REQ_MAX_BYTES: u32 = 152;

/// PDU types.
pub mod pdu_type {
    /// ICReq: initialize connection request.
    pub const IC_REQ: u8 = 0x00;
    /// ICResp: initialize connection response.
    pub const IC_RESP: u8 = 0x01;
    /// H2CTermReq: the host ends the connection.
    pub const H2C_TERM_REQ: u8 = 0x02;
    /// C2HTermReq: the controller ends the connection.
    pub const C2H_TERM_REQ: u8 = 0x03;
    /// CapsuleCmd: command capsule.
    pub const CAPSULE_CMD: u8 = 0x04;
    /// CapsuleResp: response capsule.
    pub const CAPSULE_RESP: u8 = 0x05;
    /// H2CData: data from the host.
    pub const H2C_DATA: u8 = 0x06;
    /// C2HData: data from the controller.
    pub const C2H_DATA: u8 = 0x07;
    /// R2T: the controller is ready to take data.
    pub const R2T: u8 = 0x09;
}

/// Flag: a header digest follows the header.
pub const FLAG_HDGST: u8 = 1 << 0;
/// Flag: a data digest follows the data.
pub const FLAG_DDGST: u8 = 1 << 1;
/// Flag of H2CData and C2HData: the last one of its transfer.
pub const FLAG_LAST_PDU: u8 = 1 << 2;
/// Flag of C2HData: the command succeeded and no response capsule follows.
pub const FLAG_SUCCESS: u8 = 1 << 3;

/// DGST of ICReq and ICResp: header digests.
pub const DGST_HEADER: u8 = 1 << 0;
/// DGST of ICReq and ICResp: data digests.
pub const DGST_DATA: u8 = 1 << 1;

/// Fatal error status of H2CTermReq and C2HTermReq.
pub mod fes {
    /// Invalid PDU header field; FEI is its offset.
    pub const INVALID_HEADER_FIELD: u16 = 0x01;
    /// PDU sequence error.
    pub const SEQUENCE_ERROR: u16 = 0x02;
    /// Header digest error; FEI is the digest received.
    pub const HEADER_DIGEST_ERROR: u16 = 0x03;
    /// Data transfer out of range.
    pub const DATA_OUT_OF_RANGE: u16 = 0x04;
    /// Data transfer limit exceeded, or more R2Ts than allowed.
    pub const LIMIT_EXCEEDED: u16 = 0x05;
    /// Unsupported parameter; FEI is its offset.
    pub const UNSUPPORTED_PARAMETER: u16 = 0x06;
}

/// What every PDU begins with, 8 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CommonHeader {
    /// PDU type: one of [`pdu_type`].
    pub pdu_type: u8,
    /// Flags; which are allowed depends on the type.
    pub flags: u8,
    /// Bytes of the header without its digest; each type has one value.
    pub hlen: u8,
    /// PDU data offset: bytes from the start of the PDU to its data; 0: no data.
    pub pdo: u8,
    /// Bytes of the whole PDU with digests, padding and data.
    pub plen: U32,
}

/// Initialize connection request, 128 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcReq {
    /// Common header.
    pub header: CommonHeader,
    /// PDU format version: 0.
    pub pfv: U16,
    /// Host PDU data alignment in dwords, 0's based: [`alignment_bytes`].
    pub hpda_z: u8,
    /// Digests that the host asks for.
    pub dgst: u8,
    /// R2Ts outstanding for one command, 0's based: [`IcReq::max_r2t`].
    pub maxr2t_z: U32,
    #[doc(hidden)]
    pub reserved_16: [u8; 112],
}

impl IcReq {
    /// Number of R2Ts that may be outstanding for one command.
    pub fn max_r2t(&self) -> u64 {
        u64::from(self.maxr2t_z.get()) + 1
    }
}

/// Initialize connection response, 128 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcResp {
    /// Common header.
    pub header: CommonHeader,
    /// PDU format version: 0.
    pub pfv: U16,
    /// Controller PDU data alignment in dwords, 0's based: [`alignment_bytes`].
    pub cpda_z: u8,
    /// Digests in use on the connection.
    pub dgst: u8,
    /// Most bytes of data in one H2CData PDU.
    pub maxh2cdata: U32,
    #[doc(hidden)]
    pub reserved_16: [u8; 112],
}

/// HPDA or CPDA in bytes: what PDO must be a multiple of.
pub const fn alignment_bytes(pda_z: u8) -> u32 {
    (pda_z as u32 + 1) * 4
}

/// H2CTermReq and C2HTermReq, 24 bytes; the PDU that was wrong follows as data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TermReq {
    /// Common header.
    pub header: CommonHeader,
    /// Fatal error status: one of [`fes`].
    pub fes: U16,
    /// Fatal error information, not aligned.
    pub fei: U32,
    #[doc(hidden)]
    pub reserved_14: [u8; 10],
}

/// CapsuleCmd, 72 bytes; in-capsule data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleCmd {
    /// Common header.
    pub header: CommonHeader,
    /// Command.
    pub sqe: Sqe,
}

/// CapsuleResp, 24 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleResp {
    /// Common header.
    pub header: CommonHeader,
    /// Completion.
    pub cqe: Cqe,
}

/// H2CData and C2HData, 24 bytes; data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Data {
    /// Common header.
    pub header: CommonHeader,
    /// Command capsule CID: the command that the data belongs to.
    pub cccid: U16,
    /// Transfer tag of the R2T that H2CData answers; reserved in C2HData.
    pub ttag: U16,
    /// Offset in the data of the command, bytes.
    pub datao: U32,
    /// Length of the data, bytes.
    pub datal: U32,
    #[doc(hidden)]
    pub reserved_20: [u8; 4],
}

/// R2T, 24 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct R2t {
    /// Common header.
    pub header: CommonHeader,
    /// Command capsule CID: the command whose data is wanted.
    pub cccid: U16,
    /// Transfer tag, the controller's own; H2CData returns it.
    pub ttag: U16,
    /// Offset in the data of the command, bytes.
    pub r2to: U32,
    /// Length wanted, bytes.
    pub r2tl: U32,
    #[doc(hidden)]
    pub reserved_20: [u8; 4],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<CommonHeader>() == 8);
    assert!(size_of::<IcReq>() == 128);
    assert!(offset_of!(IcReq, maxr2t_z) == 12);
    assert!(size_of::<IcResp>() == 128);
    assert!(offset_of!(IcResp, maxh2cdata) == 12);
    assert!(size_of::<TermReq>() == 24);
    assert!(offset_of!(TermReq, fei) == 10);
    assert!(size_of::<CapsuleCmd>() == 72);
    assert!(size_of::<CapsuleResp>() == 24);
    assert!(size_of::<Data>() == 24);
    assert!(offset_of!(Data, datao) == 12);
    assert!(size_of::<R2t>() == 24);
    assert!(offset_of!(R2t, r2tl) == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_request_of_a_host_with_both_digests() {
        let mut bytes = [0; 128];
        bytes[..16].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 31, 3, 15, 0, 0, 0]);
        let request = IcReq::read_from_bytes(&bytes).unwrap();
        assert_eq!((request.header.pdu_type, request.header.hlen), (pdu_type::IC_REQ, 128));
        assert_eq!(request.header.plen.get(), 128);
        assert_eq!((request.pfv.get(), request.dgst), (PFV_1_0, DGST_HEADER | DGST_DATA));
        assert_eq!((alignment_bytes(request.hpda_z), request.max_r2t()), (128, 16));
        bytes[12..16].fill(0xFF);
        assert_eq!(IcReq::read_from_bytes(&bytes).unwrap().max_r2t(), 1 << 32);
    }

    #[test]
    fn data_transfer_bytes() {
        let header = CommonHeader {
            pdu_type: pdu_type::C2H_DATA,
            flags: FLAG_LAST_PDU | FLAG_SUCCESS,
            hlen: 24,
            pdo: 24,
            plen: 4120.into(),
        };
        let data = Data {
            header,
            cccid: 0x1234.into(),
            ttag: U16::ZERO,
            datao: 0x2000.into(),
            datal: 4096.into(),
            reserved_20: [0; 4],
        };
        assert_eq!(
            data.as_bytes(),
            [
                7, 0x0C, 24, 24, 0x18, 0x10, 0, 0, 0x34, 0x12, 0, 0, 0, 0x20, 0, 0, 0, 0x10, 0, 0,
                0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn fatal_error_information_is_not_aligned() {
        let mut bytes = [0; 24];
        bytes[..14].copy_from_slice(&[2, 0, 24, 0, 24, 0, 0, 0, 3, 0, 0xEF, 0xBE, 0xAD, 0xDE]);
        let request = TermReq::read_from_bytes(&bytes).unwrap();
        assert_eq!(request.fes.get(), fes::HEADER_DIGEST_ERROR);
        assert_eq!(request.fei.get(), 0xDEAD_BEEF);
    }
}
