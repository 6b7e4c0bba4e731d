//! Headers that are wrong, truncated, altered, hostile or from the future: a distinct error each, and nothing written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};
use wacore::store::traits::Backend;

use super::{Scratch, headers, memory, options, passphrase, put_headers, raw_key};
use crate::encrypt::HeaderCopy;
use crate::encrypt::vault::header::Header;
use crate::testing::canaries;
use crate::vault::KdfLimits;
use crate::vault::OpenMode;
use crate::{Error, Key, Layer, Passphrase, Secret, Vault};

const COPIES: [&str; 2] = [HeaderCopy::A.address(), HeaderCopy::B.address()];

async fn write(store: &Arc<dyn Backend>, bytes: &[u8]) {
    put_headers(store, &[Some(bytes.to_vec()), Some(bytes.to_vec())]).await;
}

/// Replaces the bytes of one copy.
async fn write_one(store: &Arc<dyn Backend>, copy: usize, bytes: &[u8]) {
    let mut headers = headers(store).await;
    headers[copy] = Some(bytes.to_vec());
    put_headers(store, &headers).await;
}

/// Makes the checksum fit again, as an attacker can.
pub(super) fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() - 48;
    let checksum = Sha256::digest(&bytes[..at]);
    bytes[at..at + 16].copy_from_slice(&checksum[..16]);
    bytes
}

/// A store of each kind with a vault that opens with this secret, and its header.
async fn victims(secret: impl Fn() -> Secret) -> Vec<(Scratch, Vec<u8>)> {
    let mut victims = vec![];
    for scratch in Scratch::all().await {
        options().create(scratch.store.clone(), secret()).await.unwrap();
        let header = headers(&scratch.store).await[0].clone().unwrap();
        victims.push((scratch, header));
    }
    victims
}

/// Opening fails, and the headers stay as they were.
async fn open_error(store: &Arc<dyn Backend>, passphrase: Passphrase) -> String {
    let before = headers(store).await;
    let error = options().open(store.clone(), passphrase).await.expect_err("opening should have failed");
    assert_eq!(headers(store).await, before, "{error:?}");
    for word in ["lock", "busy"] {
        assert!(!error.to_string().to_lowercase().contains(word), "{error}");
    }
    format!("{error:?}")
}

#[tokio::test]
async fn wrong_secrets() {
    for (scratch, _) in victims(|| passphrase().into()).await {
        let store = scratch.store.clone();
        for wrong in ["Correct horse battery staple", "correct horse battery staple ", "x", "\u{0}"] {
            assert_eq!(open_error(&store, Passphrase::new(wrong).unwrap()).await, "WrongSecret");
        }
        for number in 0..super::rounds(5, 100) {
            let guess = Passphrase::new(format!("guess {number}")).unwrap();
            assert_eq!(open_error(&store, guess).await, "WrongSecret");
        }
        // As long as possible, and not text.
        let long = Passphrase::new(vec![0xff; Passphrase::MAX_BYTES]).unwrap();
        assert_eq!(open_error(&store, long).await, "WrongSecret");
        // A vault without a slot of this kind of secret.
        assert!(matches!(options().open(store.clone(), raw_key()).await, Err(Error::WrongSecret)));
        assert!(matches!(options().open_or_create(store.clone(), raw_key()).await, Err(Error::WrongSecret)));
        assert!(options().open(store, passphrase()).await.is_ok());
    }
}

#[tokio::test]
async fn truncated_at_every_length() {
    for (scratch, intact) in victims(|| raw_key().into()).await {
        let store = scratch.store.clone();
        for length in 0..intact.len() {
            write(&store, &intact[..length]).await;
            let error = options().open(store.clone(), raw_key()).await.unwrap_err();
            assert!(matches!(error, Error::HeaderDamaged(_)), "{length}: {error:?}");
            assert!(matches!(options().open_or_create(store.clone(), raw_key()).await, Err(Error::HeaderDamaged(_))));
            assert_eq!(headers(&store).await[0].as_deref(), Some(&intact[..length]));
        }
    }
}

#[tokio::test]
async fn one_damaged_copy_is_repaired() {
    for (scratch, _) in victims(|| raw_key().into()).await {
        let store = scratch.store.clone();
        for (copy, address) in COPIES.into_iter().enumerate() {
            let intact = headers(&store).await[copy].clone().unwrap();
            // Truncated to every length, and overwritten.
            let mut damaged: Vec<_> = (0..intact.len()).map(|length| intact[..length].to_vec()).collect();
            damaged.extend([vec![0; intact.len()], vec![0xa5; 700], vec![0xff; 20_000]]);
            for damage in damaged {
                write_one(&store, copy, &damage).await;
                // Opening read-only repairs nothing.
                options().mode(OpenMode::ReadOnly).open(store.clone(), raw_key()).await.unwrap();
                assert!(headers(&store).await[copy].as_ref() == Some(&damage));
                options().open(store.clone(), raw_key()).await.unwrap();
                let [a, b] = headers(&store).await;
                assert!(a == b && a.is_some());
            }
            store.delete_sender_key(address).await.unwrap();
            options().open(store.clone(), raw_key()).await.unwrap();
            assert!(headers(&store).await.iter().all(Option::is_some));
        }
    }
}

#[tokio::test]
async fn every_flipped_bit_without_fixing_the_checksum_is_damage() {
    for (scratch, intact) in victims(|| raw_key().into()).await {
        let store = scratch.store.clone();
        // Every bit in memory; over files, one bit of each byte.
        let step = if scratch.folder.is_some() { 7 } else { 1 };
        for bit in (0..intact.len() * 8).step_by(step) {
            let mut flipped = intact.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            write(&store, &flipped).await;
            let error = options().open(store.clone(), raw_key()).await.unwrap_err();
            // The checksum does not cover the MAC behind it.
            let expected = if bit / 8 >= intact.len() - 32 { "HeaderTampered" } else { "HeaderDamaged" };
            assert!(format!("{error:?}").starts_with(expected), "bit {bit}: {error:?}");
        }
    }
}

#[tokio::test]
async fn every_byte_altered_by_an_attacker_is_noticed() {
    for (scratch, intact) in victims(|| raw_key().into()).await {
        let store = scratch.store.clone();
        for at in 0..intact.len() - 48 {
            for change in [1, 0x80] {
                let mut altered = intact.clone();
                altered[at] ^= change;
                write(&store, &with_checksum(altered)).await;
                let error = options().open(store.clone(), raw_key()).await.unwrap_err();
                let expected = matches!(
                    error,
                    Error::HeaderDamaged(_)
                        | Error::HeaderTampered
                        | Error::WrongSecret
                        | Error::UnsupportedVersion { .. }
                );
                assert!(expected, "byte {at}: {error:?}");
            }
        }
        write(&store, &intact).await;
        options().open(store, raw_key()).await.unwrap();
    }
}

#[tokio::test]
async fn settings_altered_behind_an_intact_slot_are_tampering() {
    for (scratch, header) in victims(|| passphrase().into()).await {
        let store = scratch.store.clone();
        for at in [32, 40, 48, 49, 50, 51, 52, 56, 57] {
            let mut altered = header.clone();
            altered[at] ^= 1;
            write(&store, &with_checksum(altered)).await;
            assert_eq!(open_error(&store, passphrase()).await, "HeaderTampered", "byte {at}");
        }
    }
}

#[tokio::test]
async fn a_later_version_is_refused_and_kept() {
    for (scratch, header) in victims(|| passphrase().into()).await {
        let store = scratch.store.clone();
        for at in [8, 10] {
            let mut later = header.clone();
            later[at] = 2;
            let later = with_checksum(later);
            write(&store, &later).await;
            let error = open_error(&store, passphrase()).await;
            assert_eq!(error, "UnsupportedVersion { what: \"header format version\", found: 2, newest: 1 }");
            // The same beside an intact older copy: the copy of a later version may be the one that matters.
            write_one(&store, 1, &header).await;
            assert!(open_error(&store, passphrase()).await.starts_with("UnsupportedVersion"));
            let error = options().create(store.clone(), passphrase()).await.unwrap_err();
            assert!(matches!(error, Error::UnsupportedVersion { .. }));
        }
    }
}

#[tokio::test]
async fn settings_of_a_later_version_are_refused() {
    type Change = fn(&mut Header);
    let changes: [(&str, Change); 6] = [
        ("record suite", |header| header.record_suite = 2),
        ("token suite", |header| header.token_suite = 2),
        ("block suite", |header| header.block_suite = 2),
        ("padding policy", |header| header.padding = 3),
        ("header flags", |header| header.flags = 1 << 7),
        ("header extension", |header| header.extensions = vec![1, 0x80, 1, 0, 9]),
    ];
    for (what, change) in changes {
        let store = memory();
        let vault = options().create(store.clone(), raw_key()).await.unwrap();
        vault.shared().rewrite_header(change).await.unwrap();
        let before = headers(&store).await;
        let error = options().open(store.clone(), raw_key()).await.unwrap_err();
        assert!(headers(&store).await == before, "{what}: something was written");
        assert!(matches!(error, Error::UnsupportedVersion { what: found, .. } if found == what), "{what}: {error:?}");
    }
    // An extension that is not critical is kept.
    let store = memory();
    let vault = options().create(store.clone(), raw_key()).await.unwrap();
    vault.shared().rewrite_header(|header| header.extensions = vec![3, 0, 1, 0, 9]).await.unwrap();
    let vault = options().open(store, raw_key()).await.unwrap();
    assert!(Header::parse(&vault.save_header()).unwrap().extensions.starts_with(&[3, 0, 1, 0, 9]));
}

#[tokio::test]
async fn an_unfinished_import_is_refused() {
    let store = memory();
    let vault = options().create(store.clone(), raw_key()).await.unwrap();
    vault.shared().rewrite_header(|header| header.flags |= crate::encrypt::vault::header::IMPORTING).await.unwrap();
    assert!(matches!(options().open(store, raw_key()).await, Err(Error::ImportIncomplete)));
}

#[tokio::test]
async fn absurd_key_derivation_is_refused_before_any_work() {
    for (scratch, header) in victims(|| passphrase().into()).await {
        let store = scratch.store.clone();
        // Slot 0 begins at 64 with id, type and label length; the label is `passphrase`.
        let cost = 64 + 3 + "passphrase".len();
        assert_eq!(header[cost..cost + 4], (19 * 1024u32).to_le_bytes());
        let absurd = [
            (cost, 4 << 20),
            (cost, u32::MAX),
            (cost, 0),
            (cost, 7),
            (cost + 4, u32::MAX),
            (cost + 4, 17),
            (cost + 4, 0),
            (cost + 8, 1 << 24),
            (cost + 8, 17),
            (cost + 8, 0),
        ];
        for (at, number) in absurd {
            let mut altered = header.clone();
            altered[at..at + 4].copy_from_slice(&number.to_le_bytes());
            write(&store, &with_checksum(altered)).await;
            let error = open_error(&store, passphrase()).await;
            assert!(error.starts_with("KdfOutOfBounds"), "{number} at {at}: {error}");
        }
        // Within each single bound, but too much together.
        let mut altered = header.clone();
        altered[cost..cost + 4].copy_from_slice(&(1u32 << 20).to_le_bytes());
        altered[cost + 4..cost + 8].copy_from_slice(&5u32.to_le_bytes());
        write(&store, &with_checksum(altered)).await;
        assert!(open_error(&store, passphrase()).await.starts_with("KdfOutOfBounds"));
    }
}

#[tokio::test]
async fn limits_hold_for_creating_too() {
    let limits = KdfLimits::default().memory_kib(1024);
    let error = options().kdf_limits(limits).create(memory(), passphrase()).await.unwrap_err();
    assert!(matches!(error, Error::KdfOutOfBounds { memory_kib: 19456, .. }));
}

#[tokio::test]
async fn a_cheaper_or_exchanged_slot_does_not_open() {
    for (scratch, header) in victims(|| passphrase().into()).await {
        let store = scratch.store.clone();
        let cost = 64 + 3 + "passphrase".len();
        let mut cheaper = header.clone();
        cheaper[cost..cost + 4].copy_from_slice(&64u32.to_le_bytes());
        write(&store, &with_checksum(cheaper)).await;
        assert_eq!(open_error(&store, passphrase()).await, "WrongSecret");

        let mut relabelled = header.clone();
        relabelled[67] = b'P';
        write(&store, &with_checksum(relabelled)).await;
        assert_eq!(open_error(&store, passphrase()).await, "WrongSecret");

        // The slot of another vault with the same passphrase.
        let elsewhere = memory();
        options().create(elsewhere.clone(), passphrase()).await.unwrap();
        let foreign = headers(&elsewhere).await[0].clone().unwrap();
        let slot = 64..64 + 3 + "passphrase".len() + 12 + 32 + 32 + 24 + 48;
        let mut moved = header.clone();
        moved[slot.clone()].copy_from_slice(&foreign[slot]);
        write(&store, &with_checksum(moved)).await;
        assert_eq!(open_error(&store, passphrase()).await, "WrongSecret");

        // The salts of two slots of the same passphrase, exchanged.
        let second = options().open(store.clone(), passphrase()).await;
        assert!(second.is_err());
        write(&store, &header).await;
        let vault = options().open(store.clone(), passphrase()).await.unwrap();
        vault.add_slot("passphrase", passphrase()).await.unwrap();
        let two = vault.save_header();
        let salt = |slot: usize| {
            let from = slot * (3 + "passphrase".len() + 12 + 32 + 32 + 24 + 48) + cost + 12;
            from..from + 32
        };
        let mut exchanged = two.clone();
        exchanged[salt(0)].copy_from_slice(&two[salt(1)]);
        exchanged[salt(1)].copy_from_slice(&two[salt(0)]);
        assert_ne!(exchanged, two);
        write(&store, &with_checksum(exchanged)).await;
        assert_eq!(open_error(&store, passphrase()).await, "WrongSecret");

        // A slot whose commitment fits, but whose wrapped key was exchanged.
        let mut forged = header.clone();
        forged[cost + 12 + 32 + 32 + 24] ^= 1;
        write(&store, &with_checksum(forged)).await;
        assert_eq!(open_error(&store, passphrase()).await, "HeaderTampered");
    }
}

#[tokio::test]
async fn counts_and_lengths_that_lie() {
    for (scratch, header) in victims(|| passphrase().into()).await {
        let store = scratch.store.clone();
        for (at, value) in
            [(60, 0), (60, 9), (60, 255), (61, 0), (61, 17), (62, 0), (62, 2), (63, 1), (66, 33), (66, 255)]
        {
            let mut altered = header.clone();
            altered[at] = value;
            write(&store, &with_checksum(altered)).await;
            let error = open_error(&store, passphrase()).await;
            assert!(error.starts_with("HeaderDamaged"), "{value} at {at}: {error}");
        }
        for length in [0u32, 199, header.len() as u32 + 1, u32::MAX] {
            let mut altered = header.clone();
            altered[12..16].copy_from_slice(&length.to_le_bytes());
            write(&store, &with_checksum(altered)).await;
            assert!(open_error(&store, passphrase()).await.starts_with("HeaderDamaged"));
        }
        write(&store, &vec![0x89; 1 << 20]).await;
        assert!(open_error(&store, passphrase()).await.starts_with("HeaderDamaged"));
    }
}

#[tokio::test]
async fn an_invented_generation_does_not_replace_the_header() {
    for (scratch, header) in victims(|| passphrase().into()).await {
        let store = scratch.store.clone();
        let mut forged = header.clone();
        forged[32..40].copy_from_slice(&9999u64.to_le_bytes());
        write_one(&store, 1, &with_checksum(forged)).await;
        assert_eq!(open_error(&store, passphrase()).await, "HeaderTampered");
        // The same generation with other bytes.
        let mut forged = header.clone();
        forged[56] ^= 1;
        write_one(&store, 1, &with_checksum(forged)).await;
        assert_eq!(open_error(&store, passphrase()).await, "HeaderTampered");
    }
}

#[tokio::test]
async fn missing_headers_are_never_replaced() {
    for Scratch { store, folder: _folder } in Scratch::all().await {
        let vault = options().create(store.clone(), passphrase()).await.unwrap();
        let saved = vault.save_header();
        canaries::fill(&*vault.layer().layer(store.clone())).await;
        put_headers(&store, &[None, None]).await;
        assert_eq!(open_error(&store, passphrase()).await, "HeaderMissing");
        for result in [
            options().open_or_create(store.clone(), passphrase()).await,
            options().create(store.clone(), passphrase()).await,
            options().mode(OpenMode::ReadOnly).open(store.clone(), passphrase()).await,
        ] {
            assert!(matches!(result, Err(Error::HeaderMissing)), "{result:?}");
        }
        assert_eq!(headers(&store).await, [None, None]);
        let vault = options().restore_header(store.clone(), &saved, passphrase()).await.unwrap();
        // Every row is as it was.
        let backend = vault.layer().layer(store.clone());
        for method in crate::Method::ALL.iter().filter(|method| !method.access().changes_rows()) {
            canaries::call(&*backend, *method).await.unwrap();
        }
        options().open(store, passphrase()).await.unwrap();
    }
}

/// Without device and header, the other tables still show that there was a vault.
#[tokio::test]
async fn sealed_rows_without_header_and_device() {
    use crate::method::Method;

    let kinds = [
        (Method::StoreSignedPrekey, Method::LoadSignedPrekey),
        (Method::SetSyncKey, Method::GetSyncKey),
        (Method::PutLidMapping, Method::GetAllLidMappings),
        (Method::PutTcToken, Method::GetAllTcTokenJids),
    ];
    for (write, read) in kinds {
        for Scratch { store, folder: _folder } in Scratch::all().await {
            let (_vault, backend) = super::encrypted(&store).await;
            backend.create().await.unwrap();
            canaries::call(&*backend, write).await.unwrap();
            // Without a header, and with a device as in a store that was never used.
            put_headers(&store, &[None, None]).await;
            store.save(&wacore::store::Device::new()).await.unwrap();
            let opened = options().open_or_create(store.clone(), raw_key()).await;
            assert!(matches!(opened, Err(Error::HeaderMissing)), "{}: {opened:?}", write.name());
            // Only a call for a new vault by name creates one, and the old rows stay unreadable.
            let vault = options().create(store.clone(), raw_key()).await.unwrap();
            let backend = vault.layer().layer(store);
            let error = super::own_error(canaries::call(&*backend, read).await);
            assert!(error.starts_with("Tampered"), "{}: {error}", write.name());
        }
    }
}

#[tokio::test]
async fn commitments_are_checked_before_the_wrapped_key() {
    // The passphrase's key is right, but the commitment differs. If the AEAD were asked, the error would be
    // `HeaderTampered`.
    for (scratch, header) in victims(|| passphrase().into()).await {
        let store = scratch.store.clone();
        let commitment = 64 + 3 + "passphrase".len() + 12 + 32;
        let mut forged = header;
        forged[commitment] ^= 1;
        write(&store, &with_checksum(forged)).await;
        assert_eq!(open_error(&store, passphrase()).await, "WrongSecret");
    }
}

#[tokio::test]
async fn no_vault_and_vault_exists() {
    let store = memory();
    assert!(matches!(options().open(store.clone(), raw_key()).await, Err(Error::NoVault)));
    options().create(store.clone(), raw_key()).await.unwrap();
    assert!(matches!(options().create(store.clone(), raw_key()).await, Err(Error::VaultExists)));
    options().open_or_create(store, raw_key()).await.unwrap();
}

/// Two creators at once, in many interleavings: each gets a vault or a clear error. In every case the store opens
/// afterwards with the secret of one that got a vault.
#[tokio::test]
async fn two_creators() {
    let mut outcomes = std::collections::BTreeMap::<_, u32>::new();
    for seed in 0..super::rounds(1000, 20_000) {
        let store: Arc<dyn Backend> = Arc::new(Slow { inner: memory(), clock: AtomicU64::new(seed) });
        let key = |number: u8| Key::from_bytes(&mut [number; 32]);
        let create = async |number| options().create(store.clone(), key(number)).await;
        let results = tokio::join!(create(1), create(2));
        let mut opening = 0;
        for (number, result) in [(1, &results.0), (2, &results.1)] {
            assert!(matches!(result, Ok(_) | Err(Error::HeaderConflict | Error::VaultExists)), "{seed}: {result:?}");
            match options().open(store.clone(), key(number)).await {
                Ok(_) => {
                    assert!(result.is_ok(), "{seed}: the header of a creator that got an error is in place");
                    opening += 1;
                }
                Err(error) => assert!(matches!(error, Error::WrongSecret), "{seed}: {error:?}"),
            }
        }
        let winners = u32::from(results.0.is_ok()) + u32::from(results.1.is_ok());
        *outcomes.entry((winners, opening)).or_default() += 1;
    }
    // Two winners are the gap in the documentation of `Vault::create`.
    assert!(outcomes.keys().all(|&(winners, opening)| opening == u32::from(winners > 0)), "{outcomes:?}");
    assert!(outcomes.contains_key(&(1, 1)), "{outcomes:?}");
}

/// The same for two open vaults that change their slots at once.
#[tokio::test]
async fn two_changes_at_once() {
    let mut outcomes = std::collections::BTreeMap::<_, u32>::new();
    for seed in 0..super::rounds(1000, 20_000) {
        let store: Arc<dyn Backend> = Arc::new(Slow { inner: memory(), clock: AtomicU64::new(seed) });
        let first = options().create(store.clone(), raw_key()).await.unwrap();
        let second = options().open(store.clone(), raw_key()).await.unwrap();
        let key = |number: u8| Key::from_bytes(&mut [number; 32]);
        let results = tokio::join!(first.add_slot("first", key(1)), second.add_slot("second", key(2)));
        let mut opening = 0;
        for (number, result) in [(1, &results.0), (2, &results.1)] {
            assert!(matches!(result, Ok(_) | Err(Error::HeaderConflict)), "{seed}: {result:?}");
            let opened = options().open(store.clone(), key(number)).await;
            assert!(matches!(opened, Ok(_) | Err(Error::WrongSecret)), "{seed}: {opened:?}");
            opening += u32::from(opened.is_ok());
        }
        options().open(store.clone(), raw_key()).await.unwrap();
        let done = u32::from(results.0.is_ok()) + u32::from(results.1.is_ok());
        *outcomes.entry((done, opening)).or_default() += 1;
    }
    // Both calls succeeded and one change is gone: the gap that the README describes.
    let lost: u32 = outcomes.iter().filter(|((done, opening), _)| opening < done).map(|(_, count)| count).sum();
    let rounds: u32 = outcomes.values().sum();
    assert!(outcomes.keys().all(|&(done, opening)| done > 0 && opening > 0), "{outcomes:?}");
    assert!(lost * 5 < rounds, "{outcomes:?}");
}

/// Several processes that start at once all open.
#[tokio::test]
async fn many_openers() {
    for seed in 0..super::rounds(200, 5000) {
        let store: Arc<dyn Backend> = Arc::new(Slow { inner: memory(), clock: AtomicU64::new(seed) });
        options().create(store.clone(), raw_key()).await.unwrap();
        let open = async || options().open(store.clone(), raw_key()).await;
        let (a, b, c) = tokio::join!(open(), open(), open());
        for result in [a, b, c, open().await] {
            result.unwrap_or_else(|error| panic!("{seed}: {error:?}"));
        }
    }
}

/// A secret that is removed while another process derives its key does not come back with the header of that process.
#[tokio::test]
async fn removed_while_it_opens() {
    let mut losses = 0;
    let rounds = super::rounds(200, 5000);
    for seed in 0..rounds {
        let store: Arc<dyn Backend> = Arc::new(Slow { inner: memory(), clock: AtomicU64::new(seed) });
        let vault = options().create(store.clone(), raw_key()).await.unwrap();
        let key = |number: u8| Key::from_bytes(&mut [number; 32]);
        let id = vault.add_slot("leaked", key(1)).await.unwrap();
        let (removed, opened) =
            tokio::join!(vault.remove_slot(id), async { options().open(store.clone(), key(1)).await });
        assert!(matches!(opened, Ok(_) | Err(Error::WrongSecret | Error::HeaderConflict)), "{seed}: {opened:?}");
        match removed {
            Ok(()) => {
                let again = options().open(store.clone(), key(1)).await;
                let lost = opened.is_ok() && again.is_ok();
                assert!(lost || matches!(again, Err(Error::WrongSecret)), "{seed}: {again:?}");
                losses += u64::from(lost);
            }
            Err(error) => assert!(matches!(error, Error::HeaderConflict), "{seed}: {error:?}"),
        }
    }
    // The rest is the one call between looking and writing. A store without compare-and-swap cannot close that gap.
    assert!(losses * 10 < rounds, "{losses}");
}

/// Yields before and after every call, a number of times that depends on the seed, so that tasks interleave everywhere.
struct Slow {
    inner: Arc<dyn Backend>,
    clock: AtomicU64,
}

impl Slow {
    fn around<'a, A: Send + 'a, T: Send + 'a>(
        &'a self,
        _: crate::method::Method,
        arguments: A,
        call: impl FnOnce(A) -> crate::method::BoxFuture<'a, T> + Send + 'a,
    ) -> crate::method::BoxFuture<'a, T> {
        Box::pin(async move {
            // A step of Knuth's 64-bit linear congruential generator.
            let step = |state: u64| Some(state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407));
            let state = self.clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).unwrap_or_default();
            for _ in 0..(state >> 61) {
                tokio::task::yield_now().await;
            }
            let result = call(arguments).await;
            for _ in 0..(state >> 58) % 8 {
                tokio::task::yield_now().await;
            }
            result
        })
    }
}

crate::method::uniform_layer!(Slow);

#[tokio::test]
async fn a_plain_open_needs_no_options() {
    let store = memory();
    Vault::open_or_create(store.clone(), raw_key()).await.unwrap();
    Vault::open(store, raw_key()).await.unwrap();
}

#[tokio::test]
async fn labels_hold_no_control_characters() {
    let store = memory();
    for label in ["a\u{1b}[2Jb", "line\n", "\u{0}", "\u{7f}", "\u{9b}"] {
        let refused = options().slot_label(label).create(store.clone(), raw_key()).await;
        assert!(matches!(refused, Err(Error::InvalidInput { what: "slot label", .. })), "{label:?}: {refused:?}");
    }
    let vault = options().slot_label("Schlüssel").create(store.clone(), raw_key()).await.unwrap();
    let refused = vault.add_slot("\u{1b}c", Key::from_bytes(&mut [7; 32])).await;
    assert!(matches!(refused, Err(Error::InvalidInput { what: "slot label", .. })), "{refused:?}");
    drop(vault);

    let mut header = headers(&store).await.into_iter().flatten().next_back().unwrap();
    // The first character of the label of slot 0.
    header[67] = 0x1b;
    write(&store, &with_checksum(header)).await;
    let refused = options().open(store, raw_key()).await.unwrap_err();
    assert!(matches!(refused, Error::HeaderDamaged(_)), "{refused:?}");
}
