//! The host: builds what a host sends, and takes apart what it gets.

use crc_fast::{CrcAlgorithm, checksum};
use dma::{Arena, DmaSpan};
use nvme_spec::command::Sqe;
use nvme_spec::opcode::nvm;
use nvme_spec::tcp::{
    CapsuleCmd, CommonHeader, DGST_DATA, DGST_HEADER, Data, FLAG_DDGST, FLAG_HDGST, FLAG_LAST_PDU,
    R2t, pdu_type,
};
use nvmf_tcp::{Connection, ConnectionConfig, ConnectionEvent, Fault, Piece};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

pub const NONE: u8 = 0;
pub const BOTH: u8 = DGST_HEADER | DGST_DATA;
/// Commands that a connection takes at a time.
pub const SLOTS: usize = 4;
/// What memory holds before anything is received.
pub const RECEIVED: u8 = 0xEE;

/// A connection, its memory, and what it reported.
pub struct World {
    pub connection: Connection,
    arena: &'static Arena,
    events: Vec<ConnectionEvent>,
}

impl World {
    /// A connection that was just accepted, and takes these digests.
    pub fn new(digests: u8) -> Self {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let pages: Vec<DmaSpan> = (0..SLOTS).map(|_| arena.carve(4096, 4096).unwrap()).collect();
        let config = ConnectionConfig {
            header_digest: digests & DGST_HEADER != 0,
            data_digest: digests & DGST_DATA != 0,
        };
        Self { connection: Connection::new(config, &pages), arena, events: Vec::new() }
    }

    /// A connection that is initialized, and its host.
    pub fn open(digests: u8, hpda_z: u8) -> (Self, Host) {
        let mut world = Self::new(digests);
        world.receive(&Host::ic_req(digests, hpda_z));
        assert_eq!(world.sent().len(), 128, "ICResp");
        (world, Host { digests })
    }

    pub fn buffer(&self, bytes: usize) -> DmaSpan {
        self.arena.carve(bytes, 4096).unwrap()
    }

    /// Hands bytes over; how many are not taken.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        loop {
            let taken = self.connection.handle_input(rest);
            rest = &rest[taken..];
            let before = self.events.len();
            self.collect();
            if taken == 0 && self.events.len() == before {
                return rest.len();
            }
        }
    }

    /// The same, but data is put where it belongs without passing through the connection.
    pub fn receive_directly(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((&first, later)) = rest.split_first() {
            match self.connection.payload() {
                Some(span) => {
                    let part = &rest[..rest.len().min(span.len() as usize).min(1500)];
                    span.write(0, part);
                    self.connection.handle_payload(part.len() as u32);
                    rest = &rest[part.len()..];
                }
                None => {
                    assert_eq!(self.connection.handle_input(&[first]), 1);
                    rest = later;
                }
            }
            self.collect();
        }
    }

    fn collect(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            self.events.push(event);
        }
    }

    pub fn take_events(&mut self) -> Vec<ConnectionEvent> {
        self.collect();
        std::mem::take(&mut self.events)
    }

    /// The slot of the one capsule that was reported.
    pub fn capsule_slot(&mut self) -> u16 {
        let events = self.take_events();
        let [ConnectionEvent::Capsule { slot, .. }] = events[..] else { panic!("{events:?}") };
        slot
    }

    pub fn broken(&mut self) -> Option<Fault> {
        self.take_events().iter().find_map(|event| match event {
            ConnectionEvent::Broken(fault) => Some(*fault),
            _ => None,
        })
    }

    /// Everything that waits to be sent, which has left when this returns.
    pub fn sent(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        for piece in self.connection.pieces() {
            match piece {
                Piece::Bytes(bytes) => sent.extend_from_slice(bytes),
                Piece::Span(span) => sent.extend(bytes_of(span)),
            }
        }
        self.connection.handle_sent(sent.len());
        sent
    }
}

/// The host's side of what was negotiated.
#[derive(Default)]
pub struct Host {
    digests: u8,
}

/// A PDU that the connection sent.
pub struct Sent<'a> {
    pub pdu_type: u8,
    pub flags: u8,
    pub pdo: u8,
    pub header: &'a [u8],
    pub data: Vec<u8>,
}

impl Host {
    pub fn ic_req(digests: u8, hpda_z: u8) -> Vec<u8> {
        let mut request = vec![0; 128];
        (request[2], request[4]) = (128, 128);
        (request[10], request[11]) = (hpda_z, digests);
        request
    }

    pub fn capsule(&self, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
        let mut pdu = CapsuleCmd::new_zeroed();
        pdu.header.pdu_type = pdu_type::CAPSULE_CMD;
        pdu.sqe = *sqe;
        self.pdu(pdu.as_bytes(), data)
    }

    /// Data for an R2T.
    pub fn data(&self, r2t: &R2t, offset: u32, bytes: &[u8], last: bool) -> Vec<u8> {
        let mut pdu = Data::new_zeroed();
        pdu.header.pdu_type = pdu_type::H2C_DATA;
        pdu.header.flags = if last { FLAG_LAST_PDU } else { 0 };
        (pdu.cccid, pdu.ttag) = (r2t.cccid, r2t.ttag);
        pdu.datao = offset.into();
        pdu.datal = (bytes.len() as u32).into();
        self.pdu(pdu.as_bytes(), bytes)
    }

    fn pdu(&self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let mut pdu = header.to_vec();
        let with_header = self.digests & DGST_HEADER != 0;
        let with_data = self.digests & DGST_DATA != 0 && !data.is_empty();
        let pdo = header.len() + if with_header { 4 } else { 0 };
        let plen = pdo + data.len() + if with_data { 4 } else { 0 };
        pdu[1] |= if with_header { FLAG_HDGST } else { 0 } | if with_data { FLAG_DDGST } else { 0 };
        pdu[2] = header.len() as u8;
        pdu[3] = if data.is_empty() { 0 } else { pdo as u8 };
        pdu[4..8].copy_from_slice(&(plen as u32).to_le_bytes());
        if with_header {
            let digest = crc(&pdu);
            pdu.extend(digest);
        }
        pdu.extend_from_slice(data);
        if with_data {
            pdu.extend(crc(data));
        }
        pdu
    }

    /// The only PDU sent, an R2T.
    pub fn r2t(&self, sent: &[u8]) -> R2t {
        let (pdu, rest) = self.split(sent);
        assert_eq!((pdu.pdu_type, rest.len()), (pdu_type::R2T, 0));
        R2t::read_from_bytes(pdu.header).unwrap()
    }

    /// The first PDU sent, whose digests must match, and what follows it.
    pub fn split<'a>(&self, sent: &'a [u8]) -> (Sent<'a>, &'a [u8]) {
        let (common, _) = CommonHeader::ref_from_prefix(sent).unwrap();
        let (pdu, rest) = sent.split_at(common.plen.get() as usize);
        let header = &pdu[..usize::from(common.hlen)];
        if self.digests & DGST_HEADER != 0 {
            assert_ne!(common.flags & FLAG_HDGST, 0);
            assert_eq!(pdu[header.len()..header.len() + 4], crc(header), "header digest");
        }
        let mut data = Vec::new();
        if common.pdo != 0 {
            data = pdu[usize::from(common.pdo)..].to_vec();
            if self.digests & DGST_DATA != 0 {
                assert_ne!(common.flags & FLAG_DDGST, 0);
                let digest = data.split_off(data.len() - 4);
                assert_eq!(digest, crc(&data), "data digest");
            }
        }
        let CommonHeader { pdu_type, flags, pdo, .. } = *common;
        (Sent { pdu_type, flags, pdo, header, data }, rest)
    }

    /// Type of the last PDU sent, and its place.
    pub fn last(&self, sent: &[u8]) -> (u8, usize) {
        let mut at = 0;
        loop {
            let (pdu, rest) = self.split(&sent[at..]);
            if rest.is_empty() {
                return (pdu.pdu_type, at);
            }
            at = sent.len() - rest.len();
        }
    }
}

pub fn command(cid: u16) -> Sqe {
    let mut sqe = Sqe::new(nvm::READ, 1);
    sqe.cid = cid.into();
    sqe
}

pub fn bytes_of(span: DmaSpan) -> Vec<u8> {
    let mut bytes = vec![0; span.len() as usize];
    span.read(0, &mut bytes);
    bytes
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    (checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32).to_le_bytes()
}
