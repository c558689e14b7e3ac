//! See `fuzz_replay::admin`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_replay::admin(bytes));
