//! A vault header: parsed, inspected without a key, and opened with a key that fits no slot.

#![no_main]

use std::sync::Arc;

use futures::executor::block_on;
use wacore::store::InMemoryBackend;
use wacore::store::traits::SignalStore;
use wastore::{Error, Key, Vault};
use wastore::vault::HeaderInfo;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    open(data);
    open(&wastore::fuzz::with_checksum(data));
});

fn open(data: &[u8]) {
    wastore::fuzz::header(data);
    let store = Arc::new(InMemoryBackend::new());
    block_on(store.put_sender_key("wastorevaultheaderv1a", data)).unwrap();
    let _ = block_on(HeaderInfo::read(&*store));
    let opened = block_on(Vault::open(store, Key::from_bytes(&mut [4; 32])));
    assert!(
        matches!(opened, Err(Error::HeaderDamaged(_) | Error::UnsupportedVersion { .. } | Error::WrongSecret)),
        "{opened:?}"
    );
}
