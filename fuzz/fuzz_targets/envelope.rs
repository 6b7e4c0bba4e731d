//! A sealed value, and altered sealed values.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wastore::fuzz::envelope(data));
