//! Takes a stream of bytes apart into PDUs.
//!
//! ```text
//!  header ──(no data)──> header ...
//!    └──> await place ──place──> data ──> data digest ──> header ...
//!              ^───── (the place is full) ─┘
//! ```

use dma::DmaSpan;
use nvme_spec::tcp::{CommonHeader, DIGEST_BYTES, fes};
use zerocopy::FromBytes;

use crate::digest::{Crc, digest_of};
use crate::header::{Digests, Fault, Layout, Sender, layout};
use crate::limits::{MAX_HEADER_BYTES, MAX_QUOTED_BYTES};

/// What the bytes received so far have made complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// All bytes before the data, which match their digest. [`Receiver::header`] has the header. If
    /// there is data, it waits for a [`Receiver::place`].
    Header(Layout),
    /// The place is full and more data is due: it waits for the next [`Receiver::place`].
    Full,
    /// The data of a PDU, all of it.
    Data {
        /// It is what was sent, as far as a digest tells.
        intact: bool,
    },
}

/// The receiving half of a connection.
#[derive(Debug)]
pub struct Receiver {
    sender: Sender,
    digests: Digests,
    /// Bytes before the data of the PDU that is being received, or was last.
    header: [u8; MAX_HEADER_BYTES],
    /// Bytes of that header, without its digest, once all of it is there.
    hlen: usize,
    state: State,
}

/// Where the next bytes belong.
#[derive(Debug)]
enum State {
    /// Into the header: so many are there; the layout is known once the common header is.
    Header { have: usize, layout: Option<Layout> },
    /// Nowhere yet: so much data is still to come.
    AwaitPlace { left: u32, crc: Option<Crc> },
    /// To a place, from `at` on; `left` counts all data that is still to come.
    Data { to: DmaSpan, at: u32, left: u32, crc: Option<Crc> },
    /// The digest of the data.
    Digest { crc: Crc, got: [u8; DIGEST_BYTES], have: usize },
}

const NEXT_HEADER: State = State::Header { have: 0, layout: None };
const COMMON_BYTES: usize = size_of::<CommonHeader>();

impl Receiver {
    /// A connection on which `sender` is the peer, before digests are negotiated.
    pub fn new(sender: Sender) -> Self {
        let header = [0; MAX_HEADER_BYTES];
        Self { sender, digests: Digests::default(), header, hlen: 0, state: NEXT_HEADER }
    }

    /// From the next PDU on there are these digests.
    pub fn negotiated(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Takes the beginning of `input` to where it belongs: how much, and what is complete with it.
    /// Less than all of it, and nothing complete: data waits for its place.
    ///
    /// # Errors
    /// The peer has broken the rules of framing; nothing more makes sense.
    pub fn receive(&mut self, input: &[u8]) -> Result<(usize, Option<Received>), Fault> {
        match &mut self.state {
            State::Header { .. } => self.receive_header(input),
            State::AwaitPlace { .. } => Ok((0, None)),
            State::Data { to, at, crc, .. } => {
                let taken = input.len().min((to.len() - *at) as usize);
                let bytes = &input[..taken];
                to.write(*at, bytes);
                if let Some(crc) = crc {
                    crc.add(bytes);
                }
                Ok((taken, self.advance(taken as u32)))
            }
            State::Digest { crc, got, have } => {
                let taken = input.len().min(DIGEST_BYTES - *have);
                got[*have..*have + taken].copy_from_slice(&input[..taken]);
                *have += taken;
                if *have < DIGEST_BYTES {
                    return Ok((taken, None));
                }
                let intact = crc.to_bytes() == *got;
                self.state = NEXT_HEADER;
                Ok((taken, Some(Received::Data { intact })))
            }
        }
    }

    /// The header of the PDU that was received last, as a `T`.
    pub fn header<T: FromBytes>(&self) -> Option<T> {
        T::read_from_prefix(&self.header).ok().map(|(header, _)| header)
    }

    /// The data that is due goes to `to`, or its beginning does, if that is shorter; data beyond
    /// what is due is never put there.
    pub fn place(&mut self, to: DmaSpan) {
        let State::AwaitPlace { left, crc } = &mut self.state else { return };
        let to = to.subspan(0, to.len().min(*left));
        self.state = State::Data { to, at: 0, left: *left, crc: crc.take() };
    }

    /// Where the next received bytes belong, if they are data: they may be put there directly, and
    /// are reported by [`Receiver::handle_payload`] then.
    pub fn payload(&self) -> Option<DmaSpan> {
        match &self.state {
            State::Data { to, at, .. } => Some(to.subspan(*at, to.len() - at)),
            _ => None,
        }
    }

    /// The first `bytes` of [`Receiver::payload`] have been received.
    pub fn handle_payload(&mut self, bytes: u32) -> Option<Received> {
        let State::Data { to, at, crc, .. } = &mut self.state else { return None };
        let bytes = bytes.min(to.len() - *at);
        if let Some(crc) = crc {
            crc.add_span(to.subspan(*at, bytes));
        }
        self.advance(bytes)
    }

    /// What a termination request quotes of the PDU that was wrong: its header, as far as it is
    /// there.
    pub fn quoted(&self) -> &[u8] {
        let have = match &self.state {
            State::Header { have, .. } if *have > 0 => *have,
            _ => self.hlen,
        };
        &self.header[..have.min(MAX_QUOTED_BYTES)]
    }

    fn receive_header(&mut self, input: &[u8]) -> Result<(usize, Option<Received>), Fault> {
        let State::Header { have, layout: known } = &mut self.state else { return Ok((0, None)) };
        let need = known.map_or(COMMON_BYTES, |layout| layout.before_data);
        let taken = input.len().min(need - *have);
        self.header[*have..*have + taken].copy_from_slice(&input[..taken]);
        *have += taken;
        if *have < need {
            return Ok((taken, None));
        }
        let layout = match *known {
            Some(layout) => layout,
            None => self.layout()?,
        };
        if layout.before_data > need {
            self.state = State::Header { have: need, layout: Some(layout) };
            return Ok((taken, None));
        }
        self.check_digest(&layout)?;
        self.hlen = layout.hlen;
        self.state = match layout.data {
            0 => NEXT_HEADER,
            left => State::AwaitPlace { left, crc: layout.data_digest.then(Crc::new) },
        };
        Ok((taken, Some(Received::Header(layout))))
    }

    /// How the PDU lies whose common header is there.
    fn layout(&self) -> Result<Layout, Fault> {
        let common = self.header().ok_or(Fault::of(fes::INVALID_HEADER_FIELD))?;
        layout(&common, self.sender, self.digests)
    }

    fn check_digest(&self, layout: &Layout) -> Result<(), Fault> {
        if !layout.header_digest {
            return Ok(());
        }
        let (header, rest) = self.header.split_at(layout.hlen);
        let got = rest.first_chunk::<DIGEST_BYTES>().copied().unwrap_or_default();
        match digest_of(header) == got {
            true => Ok(()),
            false => Err(Fault { fes: fes::HEADER_DIGEST_ERROR, fei: u32::from_le_bytes(got) }),
        }
    }

    /// `bytes` more of the data are at their place.
    fn advance(&mut self, bytes: u32) -> Option<Received> {
        let State::Data { to, at, left, crc } = &mut self.state else { return None };
        *at += bytes;
        *left -= bytes;
        if *at < to.len() {
            return None;
        }
        let (left, crc) = (*left, crc.take());
        if left > 0 {
            self.state = State::AwaitPlace { left, crc };
            return Some(Received::Full);
        }
        match crc {
            Some(crc) => {
                self.state = State::Digest { crc, got: [0; DIGEST_BYTES], have: 0 };
                None
            }
            None => {
                self.state = NEXT_HEADER;
                Some(Received::Data { intact: true })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::send::{Outbox, Piece};
    use dma::Arena;
    use nvme_spec::tcp::{Data, pdu_type};
    use zerocopy::FromZeros;

    const BOTH: Digests = Digests { header: true, data: true };

    fn bytes_of(span: DmaSpan) -> Vec<u8> {
        let mut bytes = vec![0; span.len() as usize];
        span.read(0, &mut bytes);
        bytes
    }

    /// Two PDUs of data as they are sent.
    fn stream(digests: Digests, data: DmaSpan) -> Vec<u8> {
        let mut outbox = Outbox::default();
        outbox.negotiated(digests, 64);
        let mut pdu = Data::new_zeroed();
        pdu.header.pdu_type = pdu_type::C2H_DATA;
        pdu.datal = data.len().into();
        outbox.push(&pdu, Some(data), None);
        outbox.push(&pdu, Some(data), None);
        let mut stream = Vec::new();
        for piece in outbox.pieces() {
            match piece {
                Piece::Bytes(bytes) => stream.extend_from_slice(bytes),
                Piece::Span(span) => stream.extend(bytes_of(span)),
            }
        }
        stream
    }

    #[test]
    fn data_goes_to_its_places_however_the_stream_is_cut() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let from = arena.carve(5000, 4096).unwrap();
        from.write(0, &(0..5000u32).map(|at| (at % 251) as u8).collect::<Vec<_>>());
        let to = arena.carve(5000, 4096).unwrap();
        // Spans of any size: the data fills the first and goes on in the next.
        let places = [to.subspan(0, 1000), to.subspan(1000, 1), to.subspan(1001, 3999)];
        for digests in [Digests::default(), BOTH] {
            let stream = stream(digests, from);
            for size in [1, 3, 24, 1000, stream.len()] {
                to.fill(0);
                let mut receiver = Receiver::new(Sender::Controller);
                receiver.negotiated(digests);
                let (mut next, mut done) = (0, 0);
                for mut piece in stream.chunks(size) {
                    while !piece.is_empty() {
                        let (taken, received) = receiver.receive(piece).unwrap();
                        piece = &piece[taken..];
                        match received {
                            Some(Received::Header(layout)) => {
                                assert_eq!(layout.data, 5000);
                                next = 1;
                                receiver.place(places[0]);
                            }
                            Some(Received::Full) => {
                                receiver.place(places[next]);
                                next += 1;
                            }
                            Some(Received::Data { intact }) => {
                                assert!(intact);
                                done += 1;
                            }
                            None => {}
                        }
                    }
                }
                assert_eq!(done, 2);
                assert_eq!(bytes_of(to), bytes_of(from), "pieces of {size}, {digests:?}");
            }
        }
    }

    #[test]
    fn data_that_has_no_place_yet_is_not_taken() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let span = arena.carve(512, 512).unwrap();
        let stream = stream(Digests::default(), span);
        let mut receiver = Receiver::new(Sender::Controller);
        let (mut at, mut received) = (0, None);
        while received.is_none() {
            let (taken, what) = receiver.receive(&stream[at..]).unwrap();
            (at, received) = (at + taken, what);
        }
        assert_eq!(receiver.receive(&stream[at..]), Ok((0, None)));
        assert!(receiver.payload().is_none());
        // A place that is too long keeps what lies behind the data.
        let long = arena.carve(1024, 512).unwrap();
        long.fill(0xEE);
        receiver.place(long);
        assert_eq!(receiver.payload().map(|span| span.len()), Some(512));
        assert_eq!(receiver.handle_payload(512), Some(Received::Data { intact: true }));
        assert!(receiver.payload().is_none());
    }

    #[test]
    fn what_does_not_match_its_digest_is_told() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let span = arena.carve(512, 512).unwrap();
        let mut wrong = stream(BOTH, span);
        wrong[16] ^= 1;
        let mut receiver = Receiver::new(Sender::Controller);
        receiver.negotiated(BOTH);
        let first = receiver.receive(&wrong).unwrap();
        assert_eq!(first, (COMMON_BYTES, None));
        let fault = receiver.receive(&wrong[COMMON_BYTES..]).unwrap_err();
        assert_eq!(fault.fes, fes::HEADER_DIGEST_ERROR);
    }
}
