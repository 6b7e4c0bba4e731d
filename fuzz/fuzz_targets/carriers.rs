//! Fields that carry envelopes, and records encoded in them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wastore::fuzz::carriers(data));
