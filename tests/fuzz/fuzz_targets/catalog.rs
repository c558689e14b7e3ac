//! See `fuzz_replay::catalog`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_replay::catalog(bytes));
