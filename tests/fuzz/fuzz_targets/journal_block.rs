//! See `fuzz_replay::journal_block`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_replay::journal_block(bytes));
