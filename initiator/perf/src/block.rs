//! What a verifiable block looks like, and what a block is that does not look like it.
//!
//! | bytes | |
//! | --- | --- |
//! | 0..8 | `MAGIC` |
//! | 8..16 | seed of the log |
//! | 16..24 | the block's own number |
//! | 24..32 | generation: the number of the write |
//! | 32..n-16 | words that follow from seed, block and generation |
//! | n-16..n-8 | generation again |
//! | n-8..n-4 | zero |
//! | n-4..n | CRC-32C of all bytes before |
//!
//! Numbers are little-endian.

use std::fmt;

use crc_fast::CrcAlgorithm::Crc32Iscsi;

const MAGIC: u64 = u64::from_le_bytes(*b"FOREBAY\x01");
const TRAILER: usize = 16;

/// What is found in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole block of ours.
    Intact(Label),
    /// Nothing but zeroes.
    Zeroes,
    /// One block's beginning and another one's end.
    Torn {
        /// Where the one ends.
        at: usize,
        /// What is before.
        head: Part,
        /// What is from there on.
        tail: Part,
    },
    /// A block of ours in which bytes are wrong.
    Damaged {
        /// The block that it was.
        label: Label,
        /// The first byte that is wrong.
        at: usize,
    },
    /// Nothing that we have ever written.
    Foreign {
        /// How it begins.
        head: [u8; 16],
    },
}

/// Which write of which block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Seed of the log.
    pub seed: u64,
    /// The block.
    pub lba: u64,
    /// The write.
    pub generation: u64,
}

/// A part of a torn block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Of this write of the same block.
    Generation(u64),
    /// Nothing but zeroes.
    Zeroes,
    /// Something else.
    Foreign,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Generation(generation) => write!(f, "generation {generation}"),
            Part::Zeroes => f.write_str("zeroes"),
            Part::Foreign => f.write_str("something else"),
        }
    }
}

/// Writes a block: `bytes` is 512 or 4096 long.
pub fn encode(bytes: &mut [u8], label: Label) {
    let Label { seed, lba, generation } = label;
    let end = bytes.len() - TRAILER;
    for (word, value) in bytes.chunks_exact_mut(8).zip([MAGIC, seed, lba, generation]) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    let mut state = mix(seed ^ mix(lba ^ mix(generation)));
    for word in bytes[32..end].chunks_exact_mut(8) {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        word.copy_from_slice(&(state ^ state >> 32).to_le_bytes());
    }
    bytes[end..end + 8].copy_from_slice(&generation.to_le_bytes());
    bytes[end + 8..end + 12].fill(0);
    let crc = checksum(&bytes[..end + 12]);
    bytes[end + 12..].copy_from_slice(&crc.to_le_bytes());
}

/// The label of a block that is whole, whoever's it is.
#[inline]
pub fn decode(bytes: &[u8]) -> Option<Label> {
    let end = bytes.len() - 4;
    let whole = word(bytes, 0) == MAGIC && checksum(&bytes[..end]).to_le_bytes() == bytes[end..];
    whole.then(|| label(bytes))
}

/// What a block is that is read where `seed` and `lba` are expected.
pub fn inspect(bytes: &[u8], seed: u64, lba: u64) -> Found {
    if let Some(label) = decode(bytes) {
        return Found::Intact(label);
    }
    if bytes.iter().all(|&byte| byte == 0) {
        return Found::Zeroes;
    }
    let (head, tail) = (label(bytes), word(bytes, bytes.len() - TRAILER));
    let begins = word(bytes, 0) == MAGIC;
    let mut whole = vec![0; bytes.len()];
    if begins {
        encode(&mut whole, head);
        let at = bytes.iter().zip(&whole).position(|(a, b)| a != b).unwrap_or(bytes.len());
        let ours = (head.seed, head.lba) == (seed, lba);
        if !ours || tail == head.generation {
            return Found::Damaged { label: head, at };
        }
        let tail = part(bytes, &mut whole, Label { seed, lba, generation: tail }, at);
        return Found::Torn { at, head: Part::Generation(head.generation), tail };
    }
    // The end may be of ours all the same.
    encode(&mut whole, Label { seed, lba, generation: tail });
    let same = bytes.iter().rev().zip(whole.iter().rev()).take_while(|(a, b)| a == b).count();
    let at = bytes.len() - same;
    if same < TRAILER {
        return Found::Foreign { head: bytes[..16].try_into().unwrap_or_default() };
    }
    let zeroes = bytes[..at].iter().all(|&byte| byte == 0);
    let head = if zeroes { Part::Zeroes } else { Part::Foreign };
    Found::Torn { at, head, tail: Part::Generation(tail) }
}

/// What `bytes` are from `at` on: of the block of that label, if anything of ours.
fn part(bytes: &[u8], whole: &mut [u8], label: Label, at: usize) -> Part {
    if bytes[at..].iter().all(|&byte| byte == 0) {
        return Part::Zeroes;
    }
    encode(whole, label);
    if bytes[at..] == whole[at..] { Part::Generation(label.generation) } else { Part::Foreign }
}

fn label(bytes: &[u8]) -> Label {
    Label { seed: word(bytes, 8), lba: word(bytes, 16), generation: word(bytes, 24) }
}

#[inline]
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default()
}

#[inline]
fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::checksum(Crc32Iscsi, bytes) as u32
}

/// Spreads a number over all bits.
fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ number >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label { seed: 7, lba: 1000, generation: 42 };

    fn block(label: Label, block_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0xAA; block_bytes];
        encode(&mut bytes, label);
        bytes
    }

    #[test]
    fn a_block_says_what_it_is() {
        for block_bytes in [512, 4096] {
            assert_eq!(decode(&block(LABEL, block_bytes)), Some(LABEL));
        }
        let bytes = block(LABEL, 512);
        assert_eq!(inspect(&bytes, 8, 9), Found::Intact(LABEL), "whoever's it is");
        assert_eq!(inspect(&[0; 512], 7, 1000), Found::Zeroes);
    }

    /// The CRC-32C of RFC 3720, B.4.
    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(checksum(&[0; 32]), 0x8A91_36AA);
        assert_eq!(checksum(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn one_wrong_bit_anywhere_is_damage_and_its_place_is_named() {
        for at in [32, 33, 500, 4079, 4088, 4092, 4095] {
            let mut bytes = block(LABEL, 4096);
            bytes[at] ^= 4;
            assert_eq!(inspect(&bytes, 7, 1000), Found::Damaged { label: LABEL, at }, "{at}");
        }
    }

    #[test]
    fn a_torn_block_names_both_parts_and_where_they_meet() {
        let new = block(LABEL, 4096);
        let old = block(Label { generation: 41, ..LABEL }, 4096);
        for at in [512, 2048, 3584] {
            let torn = [&new[..at], &old[at..]].concat();
            let (head, tail) = (Part::Generation(42), Part::Generation(41));
            assert_eq!(inspect(&torn, 7, 1000), Found::Torn { at, head, tail });
            let torn = [&new[..at], &vec![0; 4096 - at]].concat();
            let (head, tail) = (Part::Generation(42), Part::Zeroes);
            assert_eq!(inspect(&torn, 7, 1000), Found::Torn { at, head, tail });
            let torn = [&vec![0; at], &new[at..]].concat();
            let (head, tail) = (Part::Zeroes, Part::Generation(42));
            assert_eq!(inspect(&torn, 7, 1000), Found::Torn { at, head, tail });
        }
    }

    #[test]
    fn what_is_not_ours_is_foreign() {
        let found = inspect(&[0x55; 512], 7, 1000);
        assert_eq!(found, Found::Foreign { head: [0x55; 16] });
    }
}
