//! See `fuzz_replay::tcp_host`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_replay::tcp_host(bytes));
