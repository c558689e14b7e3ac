//! What waits to be sent: headers, and the memory that follows them.

use std::collections::VecDeque;

use dma::DmaSpan;
use nvme_spec::tcp::{CommonHeader, DIGEST_BYTES, FLAG_DDGST, FLAG_HDGST};
use zerocopy::{FromBytes, IntoBytes};

use crate::digest::{Crc, digest_of};
use crate::header::Digests;
use crate::limits::MAX_SENT_HEADER_BYTES;

/// A run of bytes to send.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// The outbox's own: a header, a digest.
    Bytes(&'a [u8]),
    /// Memory that holds data.
    Span(DmaSpan),
}

impl Piece<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Span(span) => span.len() as usize,
        }
    }

    /// Never: a piece is sent because there is something in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One PDU.
#[derive(Debug)]
struct Pdu {
    header: [u8; MAX_SENT_HEADER_BYTES],
    header_bytes: usize,
    data: Option<DmaSpan>,
    tail: [u8; DIGEST_BYTES],
    tail_bytes: usize,
    /// What is reported when all of it has left.
    tag: Option<u16>,
}

impl Pdu {
    const EMPTY: Self = Self {
        header: [0; MAX_SENT_HEADER_BYTES],
        header_bytes: 0,
        data: None,
        tail: [0; DIGEST_BYTES],
        tail_bytes: 0,
        tag: None,
    };

    fn data_bytes(&self) -> usize {
        self.data.map_or(0, |data| data.len() as usize)
    }
}

/// PDUs in the order in which they are sent.
#[derive(Debug)]
pub struct Outbox {
    digests: Digests,
    /// Data that we send begins at a multiple of this.
    alignment: usize,
    pdus: VecDeque<Pdu>,
    /// Bytes of the first one that have left.
    sent: usize,
    /// Tags of what has left, not reported yet.
    left: VecDeque<u16>,
}

impl Default for Outbox {
    /// Nothing to send, no digests, and no alignment but the smallest.
    fn default() -> Self {
        Self {
            digests: Digests::default(),
            alignment: 4,
            pdus: VecDeque::new(),
            sent: 0,
            left: VecDeque::new(),
        }
    }
}

impl Outbox {
    /// Makes room for `slots` commands at a time: each has at most two PDUs in it; besides, there
    /// are a connection's first and last words. More make it grow.
    pub fn grow(&mut self, slots: usize) {
        self.pdus.reserve((2 * slots + 2).saturating_sub(self.pdus.len()));
        self.left.reserve(slots.saturating_sub(self.left.len()));
    }

    /// From now on PDUs have these digests, and data this alignment.
    pub fn negotiated(&mut self, digests: Digests, alignment: usize) {
        (self.digests, self.alignment) = (digests, alignment);
    }

    /// A PDU that never has a digest: ICReq, ICResp, or a termination request with `quoted`
    /// behind it.
    pub fn push_plain(&mut self, pdu: &impl PduHeader, quoted: &[u8]) {
        let mut header = [0; MAX_SENT_HEADER_BYTES];
        let bytes = pdu.as_bytes();
        let length = bytes.len() + quoted.len();
        header[..bytes.len()].copy_from_slice(bytes);
        header[bytes.len()..length].copy_from_slice(quoted);
        let hlen = bytes.len();
        self.finish(Pdu { header, header_bytes: length, ..Pdu::EMPTY }, hlen, Digests::default());
    }

    /// A PDU with the digests that were negotiated. PLEN, PDO, HLEN and the digest flags are filled
    /// in here. The tag is reported when all of it has left.
    pub fn push(&mut self, pdu: &impl PduHeader, data: Option<DmaSpan>, tag: Option<u16>) {
        let mut header = [0; MAX_SENT_HEADER_BYTES];
        let bytes = pdu.as_bytes();
        header[..bytes.len()].copy_from_slice(bytes);
        let digests = self.digests;
        let mut header_bytes = bytes.len() + if digests.header { DIGEST_BYTES } else { 0 };
        if data.is_some() {
            header_bytes = header_bytes.next_multiple_of(self.alignment);
        }
        self.finish(Pdu { header, header_bytes, data, tag, ..Pdu::EMPTY }, bytes.len(), digests);
    }

    /// Completes a PDU whose header proper has `hlen` bytes.
    fn finish(&mut self, mut pdu: Pdu, hlen: usize, digests: Digests) {
        let data_bytes = pdu.data_bytes();
        let Ok((common, _)) = CommonHeader::mut_from_prefix(&mut pdu.header) else { return };
        common.hlen = hlen as u8;
        if let Some(data) = pdu.data {
            common.pdo = pdu.header_bytes as u8;
            if digests.data {
                common.flags |= FLAG_DDGST;
                let mut crc = Crc::new();
                crc.add_span(data);
                (pdu.tail, pdu.tail_bytes) = (crc.to_bytes(), DIGEST_BYTES);
            }
        }
        let length = pdu.header_bytes + data_bytes + pdu.tail_bytes;
        common.plen = (length as u32).into();
        if digests.header {
            common.flags |= FLAG_HDGST;
            let digest = digest_of(&pdu.header[..hlen]);
            pdu.header[hlen..hlen + DIGEST_BYTES].copy_from_slice(&digest);
        }
        self.pdus.push_back(pdu);
    }

    /// What to send next, in order; at most three pieces for each PDU.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let all = self.pdus.iter().flat_map(|pdu| {
            let data = pdu.data.map(Piece::Span);
            let tail = Piece::Bytes(&pdu.tail[..pdu.tail_bytes]);
            [Some(Piece::Bytes(&pdu.header[..pdu.header_bytes])), data, Some(tail)]
        });
        // What has left is within the first PDU: its pieces lose their beginnings.
        let mut skip = self.sent;
        all.flatten().filter_map(move |piece| {
            let gone = skip.min(piece.len());
            skip -= gone;
            let rest = piece.len() - gone;
            (rest > 0).then(|| match piece {
                Piece::Bytes(bytes) => Piece::Bytes(&bytes[gone..]),
                Piece::Span(span) => Piece::Span(span.subspan(gone as u32, rest as u32)),
            })
        })
    }

    /// The next `bytes` have left.
    pub fn handle_sent(&mut self, bytes: usize) {
        self.sent += bytes;
        while let Some(pdu) = self.pdus.front() {
            let length = pdu.header_bytes + pdu.data_bytes() + pdu.tail_bytes;
            if self.sent < length {
                return;
            }
            self.sent -= length;
            self.left.extend(pdu.tag);
            self.pdus.pop_front();
        }
        debug_assert_eq!(self.sent, 0, "more has left than there was");
    }

    /// The tag of the next PDU that has left.
    pub fn pop_left(&mut self) -> Option<u16> {
        self.left.pop_front()
    }

    /// Whether a PDU with a tag has left that was not asked for yet.
    pub fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// Everything has left.
    pub fn is_empty(&self) -> bool {
        self.pdus.is_empty()
    }

    /// Forgets what has not begun to leave: what has must end, or the peer could not tell where the
    /// next PDU begins.
    pub fn truncate(&mut self) {
        self.pdus.truncate(usize::from(self.sent > 0));
    }
}

/// A structure that begins with a [`CommonHeader`].
pub trait PduHeader: IntoBytes + zerocopy::Immutable {}

impl PduHeader for nvme_spec::tcp::IcReq {}
impl PduHeader for nvme_spec::tcp::IcResp {}
impl PduHeader for nvme_spec::tcp::TermReq {}
impl PduHeader for nvme_spec::tcp::CapsuleCmd {}
impl PduHeader for nvme_spec::tcp::CapsuleResp {}
impl PduHeader for nvme_spec::tcp::Data {}
impl PduHeader for nvme_spec::tcp::R2t {}
