//! Header and data digests: CRC-32C (NVMe/TCP Transport 1.1, section 3.3.1).

use crc_fast::{CrcAlgorithm, Digest};
use dma::DmaSpan;
use nvme_spec::tcp::DIGEST_BYTES;

use crate::limits::DIGEST_CHUNK_BYTES;

/// A digest that grows with what is added.
pub struct Crc(Digest);

impl Crc {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Adds `bytes`.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds all of `span`, by way of the stack: shared memory is never lent.
    pub fn add_span(&mut self, span: DmaSpan) {
        let mut chunk = [0; DIGEST_CHUNK_BYTES];
        let mut at = 0;
        while at < span.len() {
            let take = (span.len() - at).min(DIGEST_CHUNK_BYTES as u32);
            let bytes = &mut chunk[..take as usize];
            span.read(at, bytes);
            self.add(bytes);
            at += take;
        }
    }

    /// As it stands in a PDU.
    pub fn to_bytes(&self) -> [u8; DIGEST_BYTES] {
        (self.0.clone().finalize() as u32).to_le_bytes()
    }
}

impl Default for Crc {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Crc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crc({:02x?})", self.to_bytes())
    }
}

/// The digest of `bytes`.
pub fn digest_of(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut crc = Crc::new();
    crc.add(bytes);
    crc.to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dma::Arena;

    #[test]
    fn the_vectors_of_iscsi() {
        // RFC 3720, appendix B.4: 32 bytes of zeroes, of ones, and ascending.
        assert_eq!(digest_of(&[0; 32]), [0xAA, 0x36, 0x91, 0x8A]);
        assert_eq!(digest_of(&[0xFF; 32]), [0x43, 0xAB, 0xA8, 0x62]);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(digest_of(&ascending), [0x4E, 0x79, 0xDD, 0x46]);
    }

    #[test]
    fn a_span_in_chunks_is_what_its_bytes_are() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let span = arena.carve(3 * DIGEST_CHUNK_BYTES, 4096).unwrap();
        let span = span.subspan(0, span.len() - 77);
        let bytes: Vec<u8> = (0..span.len()).map(|at| (at * 7 % 251) as u8).collect();
        span.write(0, &bytes);
        let mut crc = Crc::new();
        crc.add_span(span);
        assert_eq!(crc.to_bytes(), digest_of(&bytes));
    }
}
