//! See `fuzz_replay::superblock`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_replay::superblock(bytes));
