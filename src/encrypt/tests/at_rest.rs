//! No canary of any kind of record is found in the files of an encrypted store, and each is found without encryption.

use std::path::Path;

use wacore::store::traits::Backend;

use super::{Sqlite, encrypted};
use crate::encrypt::format::kind::Kind;
use crate::method::Method;
use crate::testing::canaries;

/// A canary in all forms in which a store could write it down.
fn disguises(canary: &[u8]) -> Vec<Vec<u8>> {
    let json_numbers = canary.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
    vec![
        canary.to_vec(),
        data_encoding::HEXLOWER.encode(canary).into_bytes(),
        data_encoding::HEXUPPER.encode(canary).into_bytes(),
        data_encoding::BASE64_NOPAD.encode(canary).into_bytes(),
        data_encoding::BASE64URL_NOPAD.encode(canary).into_bytes(),
        json_numbers.into_bytes(),
    ]
}

/// Every file of the folder with its name, so that names are searched as well.
pub(super) fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        files.push((name, std::fs::read(path).unwrap()));
    }
    files
}

fn found(files: &[(String, Vec<u8>)], canaries: Vec<(String, Vec<u8>)>) -> Vec<String> {
    let mut found = Vec::new();
    for (canary, bytes) in canaries {
        let disguises = disguises(&bytes);
        for (name, content) in files {
            let haystack = [name.as_bytes(), content].concat();
            if disguises.iter().any(|disguise| memchr::memmem::find(&haystack, disguise).is_some()) {
                found.push(canary.clone());
                break;
            }
        }
    }
    found
}

/// The canaries that [`canaries::fill`] wrote, and the private keys of the device.
async fn canaries(backend: &dyn Backend) -> Vec<(String, Vec<u8>)> {
    let device = backend.load().await.unwrap().unwrap();
    let mut canaries = canaries::all();
    for (name, key) in
        [("noise key", &device.noise_key), ("identity key", &device.identity_key), ("prekey", &device.signed_pre_key)]
    {
        canaries.push((name.to_owned(), key.private_key.serialize().to_vec()));
    }
    canaries
}

#[tokio::test]
async fn no_canary_in_any_file() {
    let sqlite = Sqlite::new().await;
    let (vault, backend) = encrypted(&sqlite.store).await;
    vault.add_slot("people", super::passphrase()).await.unwrap();
    canaries::fill(&*backend).await;
    canaries::call(&*backend, Method::SnapshotDb).await.unwrap();
    let mut canaries = canaries(&*backend).await;
    let state = vault.shared().state();
    canaries.push(("raw key".into(), super::raw_key().expose().to_vec()));
    canaries.push(("passphrase".into(), super::passphrase().as_bytes().to_vec()));
    canaries.push(("vault key".into(), vault.shared().vault_keys().vault_key.0.expose().to_vec()));
    canaries.push(("listing key".into(), state.cipher.ring.lookup.siv.to_vec()));
    canaries.push(("record key".into(), state.cipher.ring.active().record(Kind::Session).to_vec()));

    let files = files(sqlite.folder.path());
    let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"wa.db") && names.contains(&"wa.db-wal") && names.contains(&"wa.db-shm"), "{names:?}");
    assert_eq!(names.iter().filter(|name| name.contains("snapshot")).count(), 2, "{names:?}");
    assert_eq!(found(&files, canaries), Vec::<String>::new());
}

#[tokio::test]
async fn every_canary_without_the_layer() {
    let sqlite = Sqlite::new().await;
    canaries::fill(&*sqlite.store).await;
    canaries::call(&*sqlite.store, Method::SnapshotDb).await.unwrap();
    let canaries = canaries(&*sqlite.store).await;
    let found = found(&files(sqlite.folder.path()), canaries.clone());
    let missing: Vec<_> = canaries.into_iter().map(|(canary, _)| canary).filter(|name| !found.contains(name)).collect();
    assert_eq!(missing, Vec::<String>::new(), "the search must be able to find what it looks for");
}
