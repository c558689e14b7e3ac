//! What bounds a PDU before its data.

/// Most bytes of a PDU before its data: PDO is one byte.
pub const MAX_HEADER_BYTES: usize = 256;

/// HPDA and CPDA (0's based, dwords) have at most this value (NVMe/TCP Transport 1.1, ICReq and
/// ICResp).
pub const MAX_PDA_Z: u8 = 31;

/// Bytes of the longest header that is sent: ICReq or ICResp, or a header with a digest and padding
/// to the largest alignment, or a termination request with the whole header that was wrong.
pub const MAX_SENT_HEADER_BYTES: usize = 152;

/// Most bytes of a header that a termination request quotes (NVMe/TCP Transport 1.1, H2CTermReq and
/// C2HTermReq).
pub const MAX_QUOTED_BYTES: usize = 128;

/// Bytes that are read at a time from memory that devices share, to digest them.
pub const DIGEST_CHUNK_BYTES: usize = 4096;

const _: () = {
    assert!(MAX_SENT_HEADER_BYTES >= (MAX_PDA_Z as usize + 1) * 4);
    assert!(MAX_SENT_HEADER_BYTES >= 24 + MAX_QUOTED_BYTES);
};
