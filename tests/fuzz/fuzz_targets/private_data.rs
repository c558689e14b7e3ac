//! See `fuzz_replay::private_data`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_replay::private_data(bytes));
