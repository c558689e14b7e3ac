//! NVMe/TCP as the specification has it, written down a second time: the streams of both sides are
//! taken apart here without the code that is under test, but for CRC-32C.

use nvme_spec::tcp::{
    CommonHeader, DIGEST_BYTES, FLAG_DDGST, FLAG_HDGST, alignment_bytes, pdu_type,
};
use nvme_tcp::{Digests, Piece, Sender, digest_of};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How the bytes of a PDU lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) pdu_type: u8,
    pub(crate) flags: u8,
    pub(crate) hlen: usize,
    /// All bytes before the data.
    pub(crate) head: usize,
    /// Bytes of data.
    pub(crate) data: usize,
    /// Bytes of the whole PDU.
    pub(crate) plen: usize,
    data_digest: bool,
}

/// What the beginning of a stream is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen {
    /// Less than a common header.
    Short,
    /// No PDU that its sender may send, or a header that does not match its digest.
    Wrong,
    /// The common header of a PDU.
    Common(Frame),
    /// All that stands before the data of a PDU, and maybe more.
    Header(Frame),
}

/// Looks at the beginning of what `sender` sends.
pub(crate) fn frame(bytes: &[u8], sender: Sender, digests: Digests) -> Seen {
    let Ok((common, _)) = CommonHeader::ref_from_prefix(bytes) else { return Seen::Short };
    let Some(frame) = frame_of(common, sender, digests) else { return Seen::Wrong };
    if bytes.len() < frame.head {
        return Seen::Common(frame);
    }
    if frame.flags & FLAG_HDGST != 0 {
        let (header, rest) = bytes.split_at(frame.hlen);
        if rest[..DIGEST_BYTES] != digest_of(header) {
            return Seen::Wrong;
        }
    }
    Seen::Header(frame)
}

fn frame_of(common: &CommonHeader, sender: Sender, digests: Digests) -> Option<Frame> {
    use pdu_type::*;
    // Header bytes; whether there are digests; whether there may be data.
    let (hlen, digested, may_have_data) = match (sender, common.pdu_type) {
        (Sender::Host, IC_REQ) | (Sender::Controller, IC_RESP) => (128, false, false),
        (Sender::Host, H2C_TERM_REQ) | (Sender::Controller, C2H_TERM_REQ) => (24, false, true),
        (Sender::Host, CAPSULE_CMD) => (72, true, true),
        (Sender::Host, H2C_DATA) | (Sender::Controller, C2H_DATA) => (24, true, true),
        (Sender::Controller, CAPSULE_RESP | R2T) => (24, true, false),
        _ => return None,
    };
    let flag = |flag| common.flags & flag != 0;
    let plen = common.plen.get() as usize;
    let bare = hlen + if digested && digests.header { DIGEST_BYTES } else { 0 };
    let has_data = plen != bare;
    if usize::from(common.hlen) != hlen || flag(FLAG_HDGST) != (digested && digests.header) {
        return None;
    }
    let mut frame = Frame {
        pdu_type: common.pdu_type,
        flags: common.flags,
        hlen,
        head: bare,
        data: 0,
        plen,
        data_digest: has_data && digested && digests.data,
    };
    if has_data {
        // What a termination request quotes has no offset.
        frame.head = if digested { usize::from(common.pdo) } else { hlen };
        let tail = if frame.data_digest { DIGEST_BYTES } else { 0 };
        frame.data = plen.checked_sub(frame.head + tail)?;
        let placed = frame.head >= bare && frame.head.is_multiple_of(4) && frame.data > 0;
        if !may_have_data || !placed || flag(FLAG_DDGST) != frame.data_digest {
            return None;
        }
    }
    Some(frame)
}

impl Frame {
    /// The data of a whole PDU.
    pub(crate) fn data<'a>(&self, pdu: &'a [u8]) -> &'a [u8] {
        &pdu[self.head..self.head + self.data]
    }

    /// Whether the data of a whole PDU matches its digest.
    pub(crate) fn is_intact(&self, pdu: &[u8]) -> bool {
        let end = self.head + self.data;
        !self.data_digest || pdu[end..self.plen] == digest_of(self.data(pdu))
    }
}

/// A PDU with lengths and digests as they should be; `padding` bytes stand before its data.
pub(crate) fn pdu(
    header: &(impl IntoBytes + Immutable),
    (pdu_type, flags): (u8, u8),
    data: &[u8],
    padding: usize,
    digests: Digests,
) -> Vec<u8> {
    let mut bytes = header.as_bytes().to_vec();
    let hlen = bytes.len();
    let mut head = hlen + if digests.header { DIGEST_BYTES } else { 0 };
    let mut tail = 0;
    let mut flags = flags | if digests.header { FLAG_HDGST } else { 0 };
    if !data.is_empty() {
        head += padding;
        tail = if digests.data { DIGEST_BYTES } else { 0 };
        flags |= if digests.data { FLAG_DDGST } else { 0 };
    }
    let pdo = if data.is_empty() { 0 } else { head as u8 };
    bytes[..4].copy_from_slice(&[pdu_type, flags, hlen as u8, pdo]);
    bytes[4..8].copy_from_slice(&((head + data.len() + tail) as u32).to_le_bytes());
    if digests.header {
        bytes.extend(digest_of(&bytes));
    }
    bytes.resize(head, 0);
    bytes.extend_from_slice(data);
    if tail > 0 {
        bytes.extend(digest_of(data));
    }
    bytes
}

/// Bytes of data that differ from others'.
pub(crate) fn pattern(seed: u32, bytes: usize) -> Vec<u8> {
    let at = |at: usize| (seed.wrapping_mul(31) as usize + at + at / 251) as u8;
    (0..bytes).map(at).collect()
}

/// What one side has sent, taken apart.
pub(crate) struct Sent {
    sender: Sender,
    pub(crate) digests: Digests,
    /// What the offset of data is a multiple of.
    alignment: usize,
    /// From the PDU on that is not whole yet.
    bytes: Vec<u8>,
}

impl Sent {
    pub(crate) fn new(sender: Sender) -> Self {
        Self { sender, digests: Digests::default(), alignment: 4, bytes: Vec::new() }
    }

    /// From the next PDU on.
    pub(crate) fn negotiated(&mut self, digests: Digests, pda_z: u8) {
        (self.digests, self.alignment) = (digests, alignment_bytes(pda_z) as usize);
    }

    /// The first bytes of what waits leave, at most so many: how many do.
    pub(crate) fn take<'a>(
        &mut self,
        pieces: impl Iterator<Item = Piece<'a>>,
        most: usize,
    ) -> usize {
        let had = self.bytes.len();
        for piece in pieces {
            let (from, left) = (self.bytes.len(), had + most - self.bytes.len());
            let count = piece.len().min(left);
            match piece {
                Piece::Bytes(bytes) => self.bytes.extend_from_slice(&bytes[..count]),
                Piece::Span(span) => {
                    self.bytes.resize(from + count, 0);
                    span.read(0, &mut self.bytes[from..]);
                }
            }
            if count == left {
                break;
            }
        }
        self.bytes.len() - had
    }

    /// The next whole PDU, which is as it should be.
    pub(crate) fn next(&mut self) -> Option<(Frame, Vec<u8>)> {
        let frame = match frame(&self.bytes, self.sender, self.digests) {
            Seen::Short | Seen::Common(_) => return None,
            Seen::Wrong => panic!("sent no PDU: {:02x?}", &self.bytes[..8]),
            Seen::Header(frame) if self.bytes.len() < frame.plen => return None,
            Seen::Header(frame) => frame,
        };
        let rest = self.bytes.split_off(frame.plen);
        let pdu = std::mem::replace(&mut self.bytes, rest);
        assert!(frame.is_intact(&pdu), "a data digest that does not match");
        let digest = if frame.flags & FLAG_HDGST != 0 { DIGEST_BYTES } else { 0 };
        let padding = &pdu[frame.hlen + digest..frame.head];
        assert!(padding.iter().all(|&byte| byte == 0), "padding that tells something");
        if matches!(frame.pdu_type, pdu_type::H2C_TERM_REQ | pdu_type::C2H_TERM_REQ) {
            assert!(frame.plen <= 152, "a termination request of {} bytes", frame.plen);
        } else if frame.data > 0 {
            assert!(frame.head.is_multiple_of(self.alignment), "not aligned");
            assert!(padding.len() < self.alignment, "more padding than it needs");
        } else {
            assert_eq!(pdu[3], 0, "an offset of no data");
        }
        Some((frame, pdu))
    }

    /// A PDU has begun to leave and is not whole yet.
    pub(crate) fn has_begun(&self) -> bool {
        !self.bytes.is_empty()
    }
}
