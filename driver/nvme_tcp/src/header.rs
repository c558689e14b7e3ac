//! What PDUs must look like, before anyone looks at what they ask for.

use std::mem::offset_of;

use nvme_spec::tcp::{
    CapsuleCmd, CapsuleResp, CommonHeader, DIGEST_BYTES, Data, FLAG_DDGST, FLAG_HDGST, IcReq,
    IcResp, R2t, TermReq, fes, pdu_type,
};

/// Why a connection ends: a fatal error (NVMe/TCP Transport 1.1, H2CTermReq and C2HTermReq).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Fatal error status.
    pub fes: u16,
    /// Fatal error information: an offset in the header, or a digest.
    pub fei: u32,
}

impl Fault {
    /// The header field at `offset` is wrong.
    pub const fn field(offset: usize) -> Self {
        Self { fes: fes::INVALID_HEADER_FIELD, fei: offset as u32 }
    }

    /// Nothing more is to be said about it than its status.
    pub const fn of(fes: u16) -> Self {
        Self { fes, fei: 0 }
    }
}

/// Digests in use on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Of headers.
    pub header: bool,
    /// Of data.
    pub data: bool,
}

/// Who sends a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The host, to the controller.
    Host,
    /// The controller, to the host.
    Controller,
}

/// How the bytes of one PDU lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// One of [`pdu_type`].
    pub pdu_type: u8,
    /// Header without its digest.
    pub hlen: usize,
    /// A digest follows the header.
    pub header_digest: bool,
    /// All bytes before the data: header, digest, padding.
    pub before_data: usize,
    /// Bytes of data.
    pub data: u32,
    /// A digest follows the data.
    pub data_digest: bool,
}

/// What is particular to a kind of PDU.
struct Kind {
    hlen: usize,
    digests: bool,
    data: bool,
}

/// `None`: `sender` sends no such PDU.
fn kind(pdu_type: u8, sender: Sender) -> Option<Kind> {
    let kind = |hlen, digests, data| Some(Kind { hlen, digests, data });
    match (sender, pdu_type) {
        (Sender::Host, pdu_type::IC_REQ) => kind(size_of::<IcReq>(), false, false),
        (Sender::Host, pdu_type::H2C_TERM_REQ) => kind(size_of::<TermReq>(), false, true),
        (Sender::Host, pdu_type::CAPSULE_CMD) => kind(size_of::<CapsuleCmd>(), true, true),
        (Sender::Host, pdu_type::H2C_DATA) => kind(size_of::<Data>(), true, true),
        (Sender::Controller, pdu_type::IC_RESP) => kind(size_of::<IcResp>(), false, false),
        (Sender::Controller, pdu_type::C2H_TERM_REQ) => kind(size_of::<TermReq>(), false, true),
        (Sender::Controller, pdu_type::CAPSULE_RESP) => kind(size_of::<CapsuleResp>(), true, false),
        (Sender::Controller, pdu_type::C2H_DATA) => kind(size_of::<Data>(), true, true),
        (Sender::Controller, pdu_type::R2T) => kind(size_of::<R2t>(), true, false),
        _ => None,
    }
}

/// Checks what every PDU begins with. Neither as a host nor as a controller do we ask for a larger
/// alignment than the smallest: data begins at a multiple of four.
///
/// # Errors
/// The field that is wrong.
pub fn layout(header: &CommonHeader, sender: Sender, digests: Digests) -> Result<Layout, Fault> {
    let kind =
        kind(header.pdu_type, sender).ok_or(Fault::field(offset_of!(CommonHeader, pdu_type)))?;
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
        pdu_type::H2C_TERM_REQ | pdu_type::C2H_TERM_REQ => kind.hlen,
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
        let bare =
            layout(&header(pdu_type::CAPSULE_CMD, 0, 72, 0, 72), Sender::Host, NONE).unwrap();
        assert_eq!((bare.before_data, bare.data, bare.data_digest), (72, 0, false));
        let data = header(pdu_type::CAPSULE_CMD, 0, 72, 72, 72 + 512);
        let data = layout(&data, Sender::Host, NONE).unwrap();
        assert_eq!((data.before_data, data.data), (72, 512));
        let flags = FLAG_HDGST | FLAG_DDGST;
        let padded = header(pdu_type::H2C_DATA, flags, 24, 128, 128 + 4096 + 4);
        let padded = layout(&padded, Sender::Host, BOTH).unwrap();
        assert_eq!((padded.before_data, padded.data, padded.data_digest), (128, 4096, true));
        // No data, no digest of it.
        let bare = header(pdu_type::CAPSULE_CMD, FLAG_HDGST, 72, 0, 76);
        let bare = layout(&bare, Sender::Host, BOTH).unwrap();
        assert_eq!((bare.before_data, bare.data, bare.data_digest), (76, 0, false));
    }

    #[test]
    fn each_wrong_field_is_named() {
        let capsule = pdu_type::CAPSULE_CMD;
        let wrong = [
            (header(0x0F, 0, 72, 0, 72), NONE, 0, "a type nobody knows"),
            (header(pdu_type::C2H_DATA, 0, 24, 24, 28), NONE, 0, "a type that controllers send"),
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
            assert_eq!(layout(&header, Sender::Host, digests), Err(Fault::field(offset)), "{what}");
        }
    }
    #[test]
    fn each_side_sends_its_own_kinds() {
        let sizes = [128, 128, 24, 24, 72, 24, 24, 24, 0, 24];
        for (pdu_type, &hlen) in (0..).zip(&sizes) {
            let pdo = if pdu_type == pdu_type::C2H_DATA { hlen } else { 0 };
            let header = header(pdu_type, 0, hlen, pdo, u32::from(hlen));
            let senders = [Sender::Host, Sender::Controller]
                .map(|sender| layout(&header, sender, NONE).is_ok());
            let wanted = match pdu_type {
                pdu_type::IC_REQ | pdu_type::H2C_TERM_REQ => [true, false],
                pdu_type::CAPSULE_CMD | pdu_type::H2C_DATA => [true, false],
                8 => [false, false],
                _ => [false, true],
            };
            assert_eq!(senders, wanted, "type {pdu_type:02X}h");
        }
        // A response has no data, and an R2T none either.
        for pdu_type in [pdu_type::CAPSULE_RESP, pdu_type::R2T] {
            let header = header(pdu_type, 0, 24, 24, 28);
            assert_eq!(layout(&header, Sender::Controller, NONE), Err(Fault::field(4)));
        }
    }
}
