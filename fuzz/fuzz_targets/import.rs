//! A file that `Import` reads as its source. It is imported completely or refused, and never changed.

#![no_main]

use futures::executor::block_on;
use wastore::Key;
use wastore::import::Import;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (source, target) = (folder.path().join("whatsapp.db"), folder.path().join("wa.db"));
    std::fs::write(&source, data).unwrap();
    let imported = block_on(Import::new().run(&source, &target, Key::from_bytes(&mut [4; 32])));
    assert_eq!(imported.is_ok(), target.exists());
    assert!(std::fs::read(&source).unwrap() == data);
});
