//! Names, listed tokens and other tokens.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wastore::fuzz::names(data));
