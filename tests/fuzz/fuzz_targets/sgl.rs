//! See `fuzz_replay::sgl`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_replay::sgl(bytes));
