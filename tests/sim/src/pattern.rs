//! What writes write: bytes that say which write and which unit they are of, and of which pool.

use std::fmt;
use std::ops::Range;

use dma::DmaSpan;

use crate::history::Value;
use crate::random::mix;

/// Bytes that repeat through a unit: the value, the unit's number, and a check of both.
const STAMP_BYTES: usize = 16;

/// What a unit holds that it should not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Zeroes, or what a write of this pool wrote to this unit.
    Value(Value),
    /// What a write of this pool wrote elsewhere.
    Elsewhere(Value, u64),
    /// Parts of several values, or nothing that anybody wrote in this pool.
    Foreign,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Value(0) => f.write_str("zeroes"),
            Found::Value(value) => write!(f, "write {value}"),
            Found::Elsewhere(value, unit) => write!(f, "write {value} of unit {unit}"),
            Found::Foreign => f.write_str("bytes that no write of this pool wrote"),
        }
    }
}

fn stamp(salt: u64, value: Value, unit: u64) -> [u8; STAMP_BYTES] {
    let unit = unit as u32;
    let check = mix(salt ^ mix(value) ^ u64::from(unit)) as u32;
    let mut bytes = [0; STAMP_BYTES];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes[8..12].copy_from_slice(&unit.to_le_bytes());
    bytes[12..].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// Fills memory with a value for these units.
pub(crate) fn fill(span: DmaSpan, salt: u64, value: Value, units: &Range<u64>, unit_bytes: u32) {
    let mut bytes = vec![0; unit_bytes as usize];
    for (index, unit) in units.clone().enumerate() {
        let stamp = stamp(salt, value, unit);
        bytes.chunks_exact_mut(STAMP_BYTES).for_each(|chunk| chunk.copy_from_slice(&stamp));
        span.write(index as u32 * unit_bytes, &bytes);
    }
}

/// What a unit holds.
pub(crate) fn identify(salt: u64, bytes: &[u8], unit: u64) -> Found {
    let (first, _) = bytes.split_at(STAMP_BYTES);
    if bytes[STAMP_BYTES..] != bytes[..bytes.len() - STAMP_BYTES] {
        return Found::Foreign;
    }
    if first == [0; STAMP_BYTES] {
        return Found::Value(0);
    }
    let word = |range: Range<usize>| {
        first[range].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    };
    let (value, of) = (word(0..8), word(8..12));
    match first == stamp(salt, value, of) {
        true if of == unit => Found::Value(value),
        true => Found::Elsewhere(value, of),
        false => Found::Foreign,
    }
}
