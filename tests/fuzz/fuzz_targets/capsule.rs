//! See `fuzz_replay::capsule`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_replay::capsule(bytes));
