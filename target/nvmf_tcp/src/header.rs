//! What the host's PDUs must look like, before anyone looks at what they ask for.

use std::mem::offset_of;

use nvme_spec::tcp::{
    CapsuleCmd, CommonHeader, DIGEST_BYTES, Data, FLAG_DDGST, FLAG_HDGST, IcReq, TermReq, fes,
    pdu_type,
};

/// Why a connection ends: a fatal error (NVMe/TCP Transport 1.1, C2HTermReq).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Fatal error status.
    pub fes: u16,
    /// Fatal error information: an offset in the header, or a digest.
    pub fei: u32,
}

impl Fault {
    /// The header field at `offset` is wrong.
    pub(crate) const fn field(offset: usize) -> Self {
        Self { fes: fes::INVALID_HEADER_FIELD, fei: offset as u32 }
    }

    /// Nothing more is to be said about it than its status.
    pub(crate) const fn of(fes: u16) -> Self {
        Self { fes, fei: 0 }
    }
}

/// Digests in use on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) header: bool,
    pub(crate) data: bool,
}

/// How the bytes of one PDU lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) pdu_type: u8,
    /// Header without its digest.
    pub(crate) hlen: usize,
    /// A digest follows the header.
    pub(crate) header_digest: bool,
    /// All bytes before the data: header, digest, padding.
    pub(crate) before_data: usize,
    /// Bytes of data.
    pub(crate) data: u32,
    /// A digest follows the data.
    pub(crate) data_digest: bool,
}

/// What kind of PDU may come from a host, and what is particular to it.
struct Kind {
    hlen: usize,
    digests: bool,
    data: bool,
}

fn kind(pdu_type: u8) -> Option<Kind> {
    let kind = |hlen, digests, data| Some(Kind { hlen, digests, data });
    match pdu_type {
        pdu_type::IC_REQ => kind(size_of::<IcReq>(), false, false),
        pdu_type::H2C_TERM_REQ => kind(size_of::<TermReq>(), false, true),
        pdu_type::CAPSULE_CMD => kind(size_of::<CapsuleCmd>(), true, true),
        pdu_type::H2C_DATA => kind(size_of::<Data>(), true, true),
        _ => None,
    }
}

/// Checks what every PDU begins with. Our CPDA is 0: data begins at a multiple of four.
pub(crate) fn layout(header: &CommonHeader, digests: Digests) -> Result<Layout, Fault> {
    let kind = kind(header.pdu_type).ok_or(Fault::field(offset_of!(CommonHeader, pdu_type)))?;
    if usize::from(header.hlen) != kind.hlen {
        return Err(Fault::field(offset_of!(CommonHeader, hlen)));
    }
    let header_digest = kind.digests && digests.header;
    if (header.flags & FLAG_HDGST != 0) != header_digest {
        return Err(Fault::field(offset_of!(CommonHeader, flags)));
    }
    let bad_plen = Fault::field(offset_of!(CommonHeader, plen));
    let plen = header.plen.get();
    let head = kind.hlen + if header_digest { DIGEST_BYTES } else { 0 };
    let without_data = Layout {
        pdu_type: header.pdu_type,
        hlen: kind.hlen,
        header_digest,
        before_data: head,
        data: 0,
        data_digest: false,
    };
    if plen as usize == head {
        return Ok(without_data);
    }
    if !kind.data || (plen as usize) < head {
        return Err(bad_plen);
    }
    // A termination request quotes a header behind its own, and says nothing of where.
    let pdo = match header.pdu_type {
        pdu_type::H2C_TERM_REQ => kind.hlen,
        _ => usize::from(header.pdo),
    };
    if pdo < head || !pdo.is_multiple_of(4) {
        return Err(Fault::field(offset_of!(CommonHeader, pdo)));
    }
    let data_digest = kind.digests && digests.data;
    if (header.flags & FLAG_DDGST != 0) != data_digest {
        return Err(Fault::field(offset_of!(CommonHeader, flags)));
    }
    let around = pdo + if data_digest { DIGEST_BYTES } else { 0 };
    let data = (plen as usize).checked_sub(around).filter(|&data| data > 0).ok_or(bad_plen)?;
    Ok(Layout { before_data: pdo, data: data as u32, data_digest, ..without_data })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Digests = Digests { header: false, data: false };
    const BOTH: Digests = Digests { header: true, data: true };

    fn header(pdu_type: u8, flags: u8, hlen: u8, pdo: u8, plen: u32) -> CommonHeader {
        CommonHeader { pdu_type, flags, hlen, pdo, plen: plen.into() }
    }

    #[test]
    fn where_the_data_is() {
        let bare = layout(&header(pdu_type::CAPSULE_CMD, 0, 72, 0, 72), NONE).unwrap();
        assert_eq!((bare.before_data, bare.data, bare.data_digest), (72, 0, false));
        let data = layout(&header(pdu_type::CAPSULE_CMD, 0, 72, 72, 72 + 512), NONE).unwrap();
        assert_eq!((data.before_data, data.data), (72, 512));
        let flags = FLAG_HDGST | FLAG_DDGST;
        let padded = header(pdu_type::H2C_DATA, flags, 24, 128, 128 + 4096 + 4);
        let padded = layout(&padded, BOTH).unwrap();
        assert_eq!((padded.before_data, padded.data, padded.data_digest), (128, 4096, true));
        // No data, no digest of it.
        let bare = layout(&header(pdu_type::CAPSULE_CMD, FLAG_HDGST, 72, 0, 76), BOTH).unwrap();
        assert_eq!((bare.before_data, bare.data, bare.data_digest), (76, 0, false));
    }

    #[test]
    fn each_wrong_field_is_named() {
        let capsule = pdu_type::CAPSULE_CMD;
        let wrong = [
            (header(0x0F, 0, 72, 0, 72), NONE, 0, "a type nobody knows"),
            (header(pdu_type::C2H_DATA, 0, 24, 24, 28), NONE, 0, "a type that we send"),
            (header(capsule, FLAG_HDGST, 72, 0, 76), NONE, 1, "a digest not negotiated"),
            (header(capsule, 0, 72, 0, 72), BOTH, 1, "no header digest"),
            (header(capsule, FLAG_HDGST, 72, 76, 80 + 8), BOTH, 1, "no data digest"),
            (header(capsule, 0, 64, 0, 72), NONE, 2, "a header too short"),
            (header(capsule, 0, 72, 71, 512), NONE, 3, "data within the header"),
            (header(capsule, 0, 72, 74, 512), NONE, 3, "data not aligned"),
            (header(capsule, 0, 72, 0, 71), NONE, 4, "a PDU shorter than its header"),
            (header(capsule, 0, 72, 76, 74), NONE, 4, "data that begins beyond the end"),
            (header(pdu_type::IC_REQ, 0, 128, 0, 129), NONE, 4, "data where there is none"),
        ];
        for (header, digests, offset, what) in wrong {
            assert_eq!(layout(&header, digests), Err(Fault::field(offset)), "{what}");
        }
    }
}
