//! What a connection takes, and what bounds it.

use nvme_spec::tcp::MAXH2CDATA_MIN;

/// Most bytes of a PDU before its data: PDO is one byte.
pub const MAX_HEADER_BYTES: usize = 256;

/// HPDA above this (0's based, dwords) is refused (NVMe/TCP Transport 1.1, ICReq).
pub const MAX_HPDA_Z: u8 = 31;

/// Bytes of the longest header that is sent: ICResp, or a data header with a digest and padding to
/// the largest alignment, or a termination request with the whole header that was wrong.
pub const MAX_SENT_HEADER_BYTES: usize = 152;

/// Most bytes of a header that a termination request quotes (NVMe/TCP Transport 1.1, C2HTermReq).
pub const MAX_QUOTED_BYTES: usize = 128;

/// Most bytes of data that the host may put into one H2CData: a whole transfer.
pub const MAX_H2C_DATA_BYTES: u32 = 1 << 20;

/// Bytes that are read at a time from memory that devices share, to digest them.
pub const DIGEST_CHUNK_BYTES: usize = 4096;

const _: () = {
    assert!(MAX_SENT_HEADER_BYTES >= (MAX_HPDA_Z as usize + 1) * 4);
    assert!(MAX_SENT_HEADER_BYTES >= 24 + MAX_QUOTED_BYTES);
    assert!(MAX_H2C_DATA_BYTES >= MAXH2CDATA_MIN && MAX_H2C_DATA_BYTES.is_multiple_of(4));
};
