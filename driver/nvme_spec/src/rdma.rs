//! Private data of the RDMA connection manager (NVMe over RDMA Transport 1.1, section 3.3).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::U16;

/// Port of NVMe/RDMA.
pub const PORT: u16 = 4420;

/// What a host sends with its connect request, 32 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RequestPrivateData {
    /// Record format: 0.
    pub recfmt: U16,
    /// Queue identifier.
    pub qid: U16,
    /// Entries of the host's receive queue; not 0's based.
    pub hrqsize: U16,
    /// Entries of the host's send queue, 0's based: the submission queue size.
    pub hsqsize_z: U16,
    /// Controller identifier, of I/O queues.
    pub cntlid: U16,
    #[doc(hidden)]
    pub reserved: [u8; 22],
}

const _: () = assert!(size_of::<RequestPrivateData>() == 32);

/// What a controller sends when it accepts, 32 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AcceptPrivateData {
    /// Record format: 0.
    pub recfmt: U16,
    /// Entries of the controller's receive queue.
    pub crqsize: U16,
    #[doc(hidden)]
    pub reserved: [u8; 28],
}

const _: () = assert!(size_of::<AcceptPrivateData>() == 32);

impl AcceptPrivateData {
    /// With this many receive queue entries.
    pub fn new(crqsize: u16) -> Self {
        Self { recfmt: U16::ZERO, crqsize: crqsize.into(), reserved: [0; 28] }
    }
}

/// What a controller sends when it rejects, 4 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RejectPrivateData {
    /// Record format: 0.
    pub recfmt: U16,
    /// Why: one of [`reject`].
    pub status: U16,
}

const _: () = assert!(size_of::<RejectPrivateData>() == 4);

impl RejectPrivateData {
    /// With this status.
    pub fn new(status: u16) -> Self {
        Self { recfmt: U16::ZERO, status: status.into() }
    }
}

/// Why a connection is rejected (figure "NVMe/RDMA Reject Status").
pub mod reject {
    /// Invalid private data length.
    pub const INVALID_LENGTH: u16 = 0x01;
    /// Invalid record format.
    pub const INVALID_RECFMT: u16 = 0x02;
    /// Invalid queue identifier.
    pub const INVALID_QID: u16 = 0x03;
    /// Invalid host send queue size.
    pub const INVALID_HSQSIZE: u16 = 0x04;
    /// Invalid host receive queue size.
    pub const INVALID_HRQSIZE: u16 = 0x05;
    /// No resources.
    pub const NO_RESOURCES: u16 = 0x06;
    /// Invalid initiator depth.
    pub const INVALID_IRD: u16 = 0x07;
    /// Invalid outstanding reads.
    pub const INVALID_ORD: u16 = 0x08;
    /// Invalid controller identifier.
    pub const INVALID_CNTLID: u16 = 0x09;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_of_an_io_queue() {
        let mut bytes = [0; 32];
        bytes[..10].copy_from_slice(&[0, 0, 3, 0, 128, 0, 127, 0, 7, 1]);
        let request = RequestPrivateData::read_from_bytes(&bytes).unwrap();
        assert_eq!((request.recfmt.get(), request.qid.get()), (0, 3));
        assert_eq!((request.hrqsize.get(), request.hsqsize_z.get()), (128, 127));
        assert_eq!(request.cntlid.get(), 0x0107);
        assert!(RequestPrivateData::read_from_bytes(&bytes[..31]).is_err());
    }

    #[test]
    fn answers() {
        let accept = AcceptPrivateData::new(0x0180);
        assert_eq!(&accept.as_bytes()[..4], &[0, 0, 0x80, 1]);
        assert!(accept.as_bytes()[4..].iter().all(|&byte| byte == 0));
        // The send queue comes first among the codes, although second among the request's fields.
        for (status, code) in [(reject::INVALID_HSQSIZE, 4), (reject::INVALID_HRQSIZE, 5)] {
            assert_eq!(RejectPrivateData::new(status).as_bytes(), &[0, 0, code, 0]);
        }
    }
}
