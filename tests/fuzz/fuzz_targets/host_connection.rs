//! See `fuzz_replay::host_connection`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_replay::host_connection(bytes));
