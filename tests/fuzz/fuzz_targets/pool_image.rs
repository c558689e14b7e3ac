//! See `fuzz_replay::pool_image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_replay::pool_image(bytes));
