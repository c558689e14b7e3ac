//! See `fuzz_replay::leaf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_replay::leaf(bytes));
