//! A sealed value, and values that are sealed and altered.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wastore::fuzz::envelope(data));
