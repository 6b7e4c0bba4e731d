//! A file that `wastore inspect` opens as a store.

#![no_main]

use futures::executor::block_on;
use wastore::SqliteStore;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = folder.path().join("wa.db");
    std::fs::write(&path, data).unwrap();
    let Ok(store) = block_on(SqliteStore::open(&path)) else { return };
    if let Ok(inspection) = block_on(wastore::maintenance::inspect(&store)) {
        let _ = inspection.to_string();
    }
});
