//! Slots, passphrases, saved headers, providers, and header writes that are interrupted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::sync::Mutex;
use wacore::store::error::StoreError;
use wacore::store::traits::Backend;

use super::{Sqlite, encrypted, memory, options, passphrase, raw_key};
use crate::encrypt::format::envelope::Prefix;
use crate::encrypt::format::kind::Kind;
use crate::encrypt::vault::header::Header;
use crate::testing::canaries;
use crate::vault::OpenMode;
use crate::vault::{
    Argon2Cost, HeaderCopy, HeaderInfo, HeaderStore, KdfLimits, KeyProvider, Padding, ProviderError, Revocation,
    SlotKind,
};
use crate::{Error, Key, Layer, Passphrase, Record, RecoveryKey, Vault};

fn word(word: &str) -> Passphrase {
    Passphrase::new(word).unwrap()
}

async fn opens(store: &Arc<dyn Backend>, secret: impl Into<crate::Secret>) -> bool {
    match options().open(store.clone(), secret).await {
        Ok(_) => true,
        Err(Error::WrongSecret) => false,
        Err(error) => panic!("{error:?}"),
    }
}

/// Over a store that cannot list its records, old records stay under their key, and new ones are under the new key.
#[tokio::test]
async fn a_new_data_key_is_in_use_at_once_over_any_store() {
    let upstream = Sqlite::new().await;
    for inner in [memory(), upstream.store.clone()] {
        let (vault, backend) = encrypted(&inner).await;
        backend.put_session("old@s", b"old").await.unwrap();
        let second = options().open(inner.clone(), raw_key()).await.unwrap().layer().layer(inner.clone());
        vault.rotate_data_key().await.unwrap();
        assert_eq!(HeaderInfo::read(&*inner).await.unwrap().unwrap().epochs, [1, 2]);
        for (address, backend) in [("new@s", &backend), ("of a vault that was open already@s", &second)] {
            backend.put_session(address, b"new").await.unwrap();
            let token = vault.shared().state().cipher.ring.lookup.address(Record::Session, address).unwrap();
            let stored = inner.get_session(&token).await.unwrap().unwrap();
            assert_eq!(Prefix::read(Kind::Session, &stored).unwrap().epoch(), 2);
            assert_eq!(backend.get_session("old@s").await.unwrap().unwrap(), &b"old"[..]);
        }
        let revocation = Revocation::prepare(&vault, passphrase()).await.unwrap();
        vault.revoke(&revocation).await.unwrap();
        assert!(matches!(options().open(inner.clone(), raw_key()).await, Err(Error::WrongSecret)));
        let opened = options().open(inner.clone(), passphrase()).await.unwrap();
        for backend in [&backend, &second, &opened.layer().layer(inner.clone())] {
            assert_eq!(backend.get_session("old@s").await.unwrap().unwrap(), &b"old"[..]);
            backend.put_session("new@s", b"newer").await.unwrap();
        }
        // A key that the new vault key derives, before and after.
        assert_eq!(revocation.account_key("a").expose(), opened.account_key("a").expose());
        let other = memory();
        let other = options().create(other, raw_key()).await.unwrap();
        let refused = other.revoke(&revocation).await;
        assert!(matches!(refused, Err(Error::InvalidInput { what: "the revocation", .. })), "{refused:?}");
        assert!(!format!("{revocation:?}").contains("key"), "{revocation:?}");
    }
}

#[tokio::test]
async fn every_kind_of_secret_opens() {
    let store = memory();
    let vault = options().create(store.clone(), passphrase()).await.unwrap();
    let backend = vault.layer().layer(store.clone());
    canaries::fill(&*backend).await;
    vault.add_slot("machine", raw_key()).await.unwrap();
    let recovery = vault.add_recovery_key().await.unwrap();
    let keyring = Arc::new(Keyring::default());
    vault.add_slot("keyring", keyring.clone()).await.unwrap();

    let slots = vault.slots();
    let labels: Vec<_> = slots.iter().map(|slot| (slot.id, slot.label.as_str(), slot.kind.clone())).collect();
    assert_eq!(
        labels,
        [
            (0, "passphrase", SlotKind::Passphrase(Argon2Cost::MINIMUM)),
            (1, "machine", SlotKind::Key),
            (2, "recovery", SlotKind::Key),
            (3, "keyring", SlotKind::Provider),
        ]
    );
    let printed = recovery.expose();
    for vault in [
        options().open(store.clone(), passphrase()).await.unwrap(),
        options().open(store.clone(), raw_key()).await.unwrap(),
        options().open(store.clone(), RecoveryKey::parse(&printed).unwrap()).await.unwrap(),
        options().open(store.clone(), keyring.clone()).await.unwrap(),
    ] {
        let backend = vault.layer().layer(store.clone());
        assert_eq!(backend.get_session(canaries::SESSION_ADDRESS).await.unwrap().as_deref(), Some(canaries::SESSION));
    }
    assert!(!opens(&store, word("wrong")).await);
    assert!(!opens(&store, Key::generate().unwrap()).await);
    assert!(!opens(&store, RecoveryKey::generate().unwrap()).await);
    assert!(!opens(&store, Arc::new(Keyring { key: [9; 32], ..Keyring::default() })).await);
    let unreachable = Arc::new(Keyring { broken: true, ..Keyring::default() });
    assert!(matches!(options().open(store, unreachable).await, Err(Error::KeyProvider(_))));
}

#[tokio::test]
async fn created_with_every_kind_of_secret() {
    let keyring = Arc::new(Keyring::default());
    let store = memory();
    options().slot_label("kms").create(store.clone(), keyring.clone()).await.unwrap();
    assert!(opens(&store, keyring).await);

    let recovery = RecoveryKey::generate().unwrap();
    let printed = recovery.expose();
    let store = memory();
    options().create(store.clone(), recovery).await.unwrap();
    assert!(opens(&store, RecoveryKey::parse(&printed).unwrap()).await);

    let talkative = Arc::new(Keyring { hint_bytes: 257, ..Keyring::default() });
    assert!(matches!(options().create(memory(), talkative).await, Err(Error::InvalidInput { .. })));
}

#[tokio::test]
async fn a_provider_that_gives_no_key_back_gets_no_slot() {
    let lossy = [
        Keyring { broken: true, ..Keyring::default() },
        Keyring { foreign: true, ..Keyring::default() },
        // Its hints are lost, so it gives back another key.
        Keyring { hint_bytes: 0, ..Keyring::default() },
    ];
    for keyring in lossy.map(Arc::new) {
        let store = memory();
        let created = options().create(store.clone(), keyring.clone()).await;
        assert!(matches!(created, Err(Error::KeyProvider(_))), "{created:?}");
        assert!(matches!(options().open(store.clone(), passphrase()).await, Err(Error::NoVault)));

        let vault = options().create(store.clone(), passphrase()).await.unwrap();
        let added = vault.add_slot("keyring", keyring.clone()).await;
        assert!(matches!(added, Err(Error::KeyProvider(_))), "{added:?}");
        assert!(Revocation::prepare(&vault, keyring).await.is_err());
        assert_eq!(vault.slots().len(), 1);
        assert!(opens(&store, passphrase()).await);
    }
}

#[tokio::test]
async fn a_provider_is_asked_for_each_of_its_slots_until_it_fails() {
    let store = memory();
    // The keys of the first two slots are lost.
    let lost = || Arc::new(Keyring { key: [3; 32], ..Keyring::default() });
    let vault = options().create(store.clone(), lost()).await.unwrap();
    vault.add_slot("lost as well", lost()).await.unwrap();
    let keeps = |missing: &[u8]| Arc::new(Keyring { missing: missing.to_vec(), ..Keyring::default() });
    vault.add_slot("kept", keeps(&[])).await.unwrap();
    let asked = async |keyring: Arc<Keyring>| {
        let opened = options().open(store.clone(), keyring.clone()).await.map(|_| ());
        (opened, keyring.asked.load(Ordering::SeqCst))
    };

    let (opened, count) = asked(keeps(&[0, 1])).await;
    assert!(opened.is_ok() && count == 3, "{opened:?} {count}");
    // Without any of the keys, the provider has none.
    let (opened, count) = asked(keeps(&[0, 1, 2])).await;
    assert!(matches!(opened, Err(Error::KeyNotKept(_))) && count == 3, "{opened:?} {count}");
    let (opened, count) = asked(Arc::new(Keyring { key: [9; 32], ..Keyring::default() })).await;
    assert!(matches!(opened, Err(Error::WrongSecret)) && count == 3, "{opened:?} {count}");
    // Hints of other providers are no failure of this one.
    let (opened, _) = asked(Arc::new(Keyring { foreign: true, ..Keyring::default() })).await;
    assert!(matches!(opened, Err(Error::NoSlotOfProvider)), "{opened:?}");
    // A service that does not work is not asked again.
    let (opened, count) = asked(Arc::new(Keyring { broken: true, ..Keyring::default() })).await;
    assert!(matches!(opened, Err(Error::KeyProvider(_))) && count == 1, "{opened:?} {count}");
}

#[tokio::test]
async fn changing_the_passphrase() {
    let store = memory();
    let vault = options().slot_label("operator").create(store.clone(), word("first")).await.unwrap();
    let backend = vault.layer().layer(store.clone());
    canaries::fill(&*backend).await;
    vault.change_passphrase(word("second")).await.unwrap();
    assert!(!opens(&store, word("first")).await);
    assert!(opens(&store, word("second")).await);
    assert_eq!(vault.slots()[0].label, "operator");
    backend.get_session(canaries::SESSION_ADDRESS).await.unwrap();

    // With a second passphrase, the one that opened the vault is changed.
    vault.add_slot("backup", word("third")).await.unwrap();
    let vault = options().open(store.clone(), word("third")).await.unwrap();
    vault.change_passphrase(word("fourth")).await.unwrap();
    assert!(opens(&store, word("second")).await && opens(&store, word("fourth")).await);
    assert!(!opens(&store, word("third")).await);

    // If a key opened the vault, it is not clear which passphrase is meant.
    vault.add_slot("machine", raw_key()).await.unwrap();
    let vault = options().open(store.clone(), raw_key()).await.unwrap();
    assert!(matches!(vault.change_passphrase(word("x")).await, Err(Error::AmbiguousPassphrase(2))));
    vault.remove_slot(0).await.unwrap();
    vault.change_passphrase(word("fifth")).await.unwrap();
    assert!(opens(&store, word("fifth")).await && !opens(&store, word("second")).await);
}

#[tokio::test]
async fn slots_are_bounded_and_one_stays() {
    let store = memory();
    let vault = options().create(store.clone(), raw_key()).await.unwrap();
    assert!(matches!(vault.remove_slot(0).await, Err(Error::LastSlot)));
    assert!(matches!(vault.remove_slot(5).await, Err(Error::NoSuchSlot(5))));
    assert!(matches!(vault.change_passphrase(word("x")).await, Err(Error::AmbiguousPassphrase(0))));
    let key = |number: u8| Key::from_bytes(&mut [number; 32]);
    for number in 1..8 {
        assert_eq!(vault.add_slot("more", key(number)).await.unwrap(), number);
    }
    assert!(matches!(vault.add_slot("more", key(9)).await, Err(Error::SlotsFull)));
    vault.remove_slot(3).await.unwrap();
    assert!(!opens(&store, key(3)).await && opens(&store, key(4)).await);
    assert_eq!(vault.add_slot("again", key(9)).await.unwrap(), 3);
    let long = "l".repeat(33);
    vault.remove_slot(1).await.unwrap();
    assert!(matches!(vault.add_slot(&long, key(10)).await, Err(Error::InvalidInput { .. })));
    assert!(opens(&store, raw_key()).await);
}

#[tokio::test]
async fn the_cost_of_a_guess_is_raised_on_opening() {
    let store = memory();
    options().create(store.clone(), passphrase()).await.unwrap();
    let higher = Argon2Cost::new(20 * 1024, 2, 1).unwrap();
    let vault = options().kdf_cost(higher).open(store.clone(), passphrase()).await.unwrap();
    assert_eq!(vault.slots()[0].kind, SlotKind::Passphrase(higher));
    // A lower cost does not lower it.
    let vault = options().open(store.clone(), passphrase()).await.unwrap();
    assert_eq!(vault.slots()[0].kind, SlotKind::Passphrase(higher));
    assert!(opens(&store, passphrase()).await);
    for (memory_kib, passes, lanes) in [(19 * 1024 - 1, 2, 1), (19 * 1024, 1, 1), (19 * 1024, 2, 0), (0, 0, 0)] {
        assert!(matches!(Argon2Cost::new(memory_kib, passes, lanes), Err(Error::InvalidInput { .. })));
    }
    Argon2Cost::new(46 * 1024, 1, 4).unwrap();
}

#[tokio::test]
async fn accounts_share_one_key_derivation() {
    let (first, second) = (memory(), memory());
    let vault = options().create(first.clone(), passphrase()).await.unwrap();
    options().create(second.clone(), vault.account_key("account 2")).await.unwrap();
    let vault = options().open(first, passphrase()).await.unwrap();
    assert!(opens(&second, vault.account_key("account 2")).await);
    assert!(!opens(&second, vault.account_key("account 3")).await);
}

#[tokio::test]
async fn saved_headers_can_be_restored() {
    let store = memory();
    let vault = options().create(store.clone(), word("old")).await.unwrap();
    let backend = vault.layer().layer(store.clone());
    canaries::fill(&*backend).await;
    let saved = vault.save_header();
    vault.change_passphrase(word("new")).await.unwrap();
    backend.put_session(canaries::SESSION_ADDRESS, b"newer").await.unwrap();
    let generation = Header::parse(&vault.save_header()).unwrap().generation;

    let error = options().restore_header(store.clone(), &saved, word("new")).await.unwrap_err();
    assert!(matches!(error, Error::WrongSecret), "a saved header opens with the secrets of its day");
    for copy in [HeaderCopy::A, HeaderCopy::B] {
        store.put_sender_key(copy.address(), b"damaged").await.unwrap();
    }
    let vault = options().restore_header(store.clone(), &saved, word("old")).await.unwrap();
    assert!(Header::parse(&vault.save_header()).unwrap().generation > generation);
    let backend = vault.layer().layer(store.clone());
    assert_eq!(backend.get_session(canaries::SESSION_ADDRESS).await.unwrap().as_deref(), Some(&b"newer"[..]));
    assert!(opens(&store, word("old")).await);

    let mut altered = saved.clone();
    altered[200] ^= 1;
    assert!(matches!(
        options().restore_header(store.clone(), &altered, word("old")).await,
        Err(Error::HeaderDamaged(_))
    ));
    let (other, _) = encrypted(&memory()).await;
    let foreign = options().restore_header(store, &other.save_header(), raw_key()).await;
    assert!(matches!(foreign, Err(Error::VaultExists)));
}

/// An attacker who can write to the store plants headers; `restore_header` removes them.
#[tokio::test]
async fn planted_headers_are_cured_by_restoring() {
    use super::bad_header::with_checksum;

    let store = memory();
    let (vault, backend) = encrypted(&store).await;
    backend.create().await.unwrap();
    let saved = vault.save_header();
    let (foreign, _) = encrypted(&memory()).await;
    let mut later = saved.clone();
    later[8] = 2;
    for planted in [foreign.save_header(), with_checksum(later)] {
        for copies in [&[HeaderCopy::A][..], &[HeaderCopy::B], &[HeaderCopy::A, HeaderCopy::B]] {
            for copy in copies {
                store.put_sender_key(copy.address(), &planted).await.unwrap();
            }
            options().restore_header(store.clone(), &saved, raw_key()).await.unwrap();
            options().open(store.clone(), raw_key()).await.unwrap();
        }
    }
    // Without a device to prove whose store it is, a foreign header stays.
    let (store, other) = (memory(), memory());
    let (vault, _) = encrypted(&store).await;
    encrypted(&other).await;
    let refused = options().restore_header(other, &vault.save_header(), raw_key()).await;
    assert!(matches!(refused, Err(Error::VaultExists)));
}

#[tokio::test]
async fn restoring_an_early_header_keeps_the_device_missed() {
    let store = memory();
    let (vault, backend) = encrypted(&store).await;
    let before_the_device = vault.save_header();
    canaries::fill(&*backend).await;
    let emptied = memory();
    for copy in [HeaderCopy::A, HeaderCopy::B] {
        emptied.put_sender_key(copy.address(), b"damaged").await.unwrap();
    }
    // The remaining rows show that the vault was in use.
    emptied.store_signed_prekey(7, &store.load_signed_prekey(7).await.unwrap().unwrap()).await.unwrap();
    let vault = options().restore_header(emptied.clone(), &before_the_device, raw_key()).await.unwrap();
    let backend = vault.layer().layer(emptied);
    assert_eq!(super::own_error(backend.load().await.map(drop)), "DeviceMissing");

    let occupied = memory();
    occupied.create().await.unwrap();
    occupied.save(&canaries::device()).await.unwrap();
    let refused = options().restore_header(occupied, &before_the_device, raw_key()).await;
    assert!(matches!(refused, Err(Error::PlaintextDevice)));
}

/// A vault that was open before another process created the device does not create it again.
#[tokio::test]
async fn a_device_of_another_process() {
    let store = memory();
    let (_, early) = encrypted(&store).await;
    let later = options().open(store.clone(), raw_key()).await.unwrap();
    later.layer().layer(store.clone()).create().await.unwrap();
    let created = store.load().await.unwrap().unwrap();
    assert_eq!(early.create().await.unwrap(), 1);
    let kept = store.load().await.unwrap().unwrap();
    assert_eq!(kept.edge_routing_info, created.edge_routing_info);
}

#[tokio::test]
async fn plaintext_records_are_no_place_for_a_vault() {
    use crate::method::Method;

    for method in [Method::StoreSignedPrekey, Method::SetSyncKey, Method::PutLidMapping, Method::PutTcToken] {
        let store = memory();
        canaries::call(&*store, method).await.unwrap();
        for result in
            [options().create(store.clone(), raw_key()).await, options().open_or_create(store.clone(), raw_key()).await]
        {
            assert!(matches!(result, Err(Error::Plaintext { record }) if record == method.record()), "{result:?}");
        }
    }
}

#[tokio::test]
async fn slots_that_no_one_could_open_are_refused() {
    let limits = KdfLimits::default().work_kib(2 * 19 * 1024);
    let tight = options().kdf_limits(limits);
    let store = memory();
    let vault = tight.create(store.clone(), word("first")).await.unwrap();
    vault.add_slot("second", word("second")).await.unwrap();
    let refused = vault.add_slot("third", word("third")).await;
    assert!(matches!(refused, Err(Error::KdfOutOfBounds { .. })), "{refused:?}");
    tight.open(store.clone(), word("second")).await.unwrap();
    // Raising the cost must not make the vault impossible to open; the cost stays as it is.
    let higher = tight.clone().kdf_cost(Argon2Cost::new(21 * 1024, 2, 1).unwrap());
    let vault = higher.open(store.clone(), word("first")).await.unwrap();
    assert_eq!(vault.slots()[0].kind, SlotKind::Passphrase(Argon2Cost::MINIMUM));
    tight.open(store, word("second")).await.unwrap();
}

#[test]
fn futures_of_the_vault_are_send() {
    fn send<F: Send>(_: F) {}
    let options = options();
    send(options.create(memory(), raw_key()));
    send(options.open(memory(), passphrase()));
    send(options.open_or_create(memory(), passphrase()));
    send(options.restore_header(memory(), &[], passphrase()));
}

/// The process dies after any number of header writes. Either the old or the new secret opens the vault. The removed
/// one does not open it after a new copy is complete.
#[tokio::test]
async fn interrupted_header_writes() {
    for writes in 0..=2 {
        for torn in [false, true] {
            let headers = Arc::new(Headers::default());
            let store = memory();
            let vault = options().header_store(headers.clone()).create(store.clone(), word("old")).await.unwrap();
            headers.allow(writes, torn);
            let changed = vault.change_passphrase(word("new")).await;
            assert_eq!(changed.is_ok(), writes == 2);
            headers.allow(usize::MAX, false);
            let open = async |secret| {
                let options = options().header_store(headers.clone());
                options.clone().mode(OpenMode::ReadOnly).open(store.clone(), word(secret)).await.is_ok()
            };
            let (old, new) = (open("old").await, open("new").await);
            assert_eq!((old, new), (writes == 0, writes > 0), "{writes} writes, torn: {torn}");
            // The vault whose change failed goes on, and the next change succeeds.
            vault.change_passphrase(word("third")).await.unwrap();
            assert!(open("third").await && !open("old").await && !open("new").await);
        }
    }
}

#[tokio::test]
async fn a_detached_header_leaves_nothing_in_the_store() {
    let (headers, store) = (Arc::new(Headers::default()), memory());
    let detached = options().header_store(headers.clone());
    let vault = detached.create(store.clone(), raw_key()).await.unwrap();
    let backend = vault.layer().layer(store.clone());
    backend.create().await.unwrap();
    for copy in [HeaderCopy::A, HeaderCopy::B] {
        assert_eq!(store.get_sender_key(copy.address()).await.unwrap(), None);
    }
    assert!(matches!(options().open(store.clone(), raw_key()).await, Err(Error::HeaderMissing)));
    detached.open(store, raw_key()).await.unwrap();
}

#[tokio::test]
async fn a_header_deleted_or_replaced_under_an_open_vault() {
    let store = memory();
    let (vault, _) = encrypted(&store).await;
    let old = vault.save_header();
    vault.add_slot("more", passphrase()).await.unwrap();
    for copy in [HeaderCopy::A, HeaderCopy::B] {
        store.put_sender_key(copy.address(), &old).await.unwrap();
    }
    assert!(matches!(vault.remove_slot(0).await, Err(Error::HeaderRolledBack)));
    for copy in [HeaderCopy::A, HeaderCopy::B] {
        store.delete_sender_key(copy.address()).await.unwrap();
    }
    assert!(matches!(vault.remove_slot(0).await, Err(Error::HeaderMissing)));
    let (other, _) = encrypted(&memory()).await;
    for copy in [HeaderCopy::A, HeaderCopy::B] {
        store.put_sender_key(copy.address(), &other.save_header()).await.unwrap();
    }
    assert!(matches!(vault.remove_slot(0).await, Err(Error::HeaderTampered)));
}

#[tokio::test]
async fn padding_is_kept_in_the_header() {
    let store = memory();
    options().padding(Padding::Multiple(256)).create(store.clone(), raw_key()).await.unwrap();
    let vault = options().padding(Padding::Padme).open(store, raw_key()).await.unwrap();
    assert_eq!(vault.padding(), Padding::Multiple(256));
    let error = options().padding(Padding::Multiple(7)).create(memory(), raw_key()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidInput { .. }));
}

#[tokio::test]
async fn debug_says_nothing_secret() {
    let store = memory();
    let vault = Vault::create(store.clone(), raw_key()).await.unwrap();
    assert_eq!(format!("{vault:?}"), "Vault { slots: 1, .. }");
    assert_eq!(format!("{:?}", vault.layer()), "encrypt(v1)");
    let stack = crate::Stack::new(store).named("memory").layer(vault.layer());
    assert_eq!(format!("{stack:?}"), "encrypt(v1) > memory");
}

#[tokio::test]
async fn error_texts_are_safe() {
    let record = crate::Record::Session;
    let errors = [
        Error::NoVault,
        Error::VaultExists,
        Error::HeaderMissing,
        Error::HeaderDamaged("its checksum does not fit"),
        Error::HeaderTampered,
        Error::HeaderRolledBack,
        Error::RollbackDetected,
        Error::ForkDetected,
        Error::AnchorMissing,
        Error::Anchor("database is locked, the device busy".into()),
        Error::UnsupportedVersion { what: "record suite", found: 2, newest: 1 },
        Error::KdfOutOfBounds { memory_kib: 1, passes: 2, lanes: 3 },
        Error::WrongSecret,
        Error::ImportIncomplete,
        Error::PlaintextDevice,
        Error::DeviceMissing,
        Error::HeaderConflict,
        Error::ReadOnly { method: "put_session" },
        Error::LastSlot,
        Error::NoSuchSlot(3),
        Error::SlotsFull,
        Error::AmbiguousPassphrase(2),
        Error::DataKeysFull,
        Error::DamagedRecords { count: 1 },
        #[cfg(feature = "sqlite")]
        Error::StoreInUse,
        Error::InvalidInput { what: "passphrase", problem: "must not be empty" },
        Error::KeyProvider("offline".into()),
        Error::KeyNotKept("no entry".into()),
        Error::Random,
        Error::KdfFailed { memory_kib: 1 },
        Error::File { what: "key", source: std::io::ErrorKind::NotFound.into() },
        Error::Tampered { record },
        Error::Plaintext { record },
        Error::UnknownEpoch { record },
        Error::InputTooLong { record, what: "key", limit: 9 },
        Error::Encode { record },
    ];
    for error in errors {
        let text = error.to_string().to_lowercase();
        assert!(!text.contains("lock") && !text.contains("busy"), "{text}");
        let error = StoreError::from(error);
        assert!(!error.is_database_busy_or_locked() && Error::downcast_ref(&error).is_some());
    }
    for record in crate::Record::ALL {
        assert!(!record.name().contains("lock") && !record.name().contains("busy"));
    }
    let passed = StoreError::from(Error::from(StoreError::DeviceNotFound(7)));
    assert!(matches!(passed, StoreError::DeviceNotFound(7)));
}

/// An operating system's keyring as a vault sees it.
struct Keyring {
    key: [u8; 32],
    hint_bytes: usize,
    broken: bool,
    /// Takes every hint for that of another provider.
    foreign: bool,
    /// The numbers of the calls for which there is no entry.
    missing: Vec<u8>,
    asked: AtomicUsize,
}

impl Default for Keyring {
    fn default() -> Self {
        Self {
            key: [0x77; 32],
            hint_bytes: 32,
            broken: false,
            foreign: false,
            missing: vec![],
            asked: AtomicUsize::new(0),
        }
    }
}

#[async_trait]
impl KeyProvider for Keyring {
    async fn wrap(&self, _: &[u8; 16], key: &Key) -> Result<Vec<u8>, ProviderError> {
        let mut hint: Vec<u8> = key.expose().iter().zip(self.key).map(|(a, b)| a ^ b).collect();
        hint.resize(self.hint_bytes, 0);
        Ok(hint)
    }

    async fn unwrap(&self, _: &[u8; 16], hint: &[u8]) -> Result<Option<Key>, ProviderError> {
        let call = self.asked.fetch_add(1, Ordering::SeqCst);
        if self.foreign {
            return Ok(None);
        }
        if self.missing.iter().any(|missing| usize::from(*missing) == call) {
            return Err(ProviderError::NoKey("there is no such entry".into()));
        }
        if self.broken {
            return Err("the keyring is not reachable".into());
        }
        let mut key: [u8; 32] = std::array::from_fn(|at| hint.get(at).copied().unwrap_or_default() ^ self.key[at]);
        Ok(Some(Key::from_bytes(&mut key)))
    }
}

/// Header copies in memory whose writes can be made to fail.
#[derive(Default)]
struct Headers {
    copies: Mutex<[Option<Vec<u8>>; 2]>,
    forbidden: AtomicUsize,
    torn: AtomicUsize,
}

impl Headers {
    /// Lets `writes` more writes through. If `torn`, the one after them writes half.
    fn allow(&self, writes: usize, torn: bool) {
        self.forbidden.store(usize::MAX - writes, Ordering::SeqCst);
        self.torn.store(usize::from(torn), Ordering::SeqCst);
    }
}

fn index(copy: HeaderCopy) -> usize {
    usize::from(copy == HeaderCopy::B)
}

#[async_trait]
impl HeaderStore for Headers {
    async fn read(&self, copy: HeaderCopy) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.copies.lock().await[index(copy)].clone())
    }

    async fn write(&self, copy: HeaderCopy, bytes: &[u8]) -> Result<(), StoreError> {
        let slot = &mut self.copies.lock().await[index(copy)];
        if self.forbidden.load(Ordering::SeqCst) == usize::MAX {
            if self.torn.load(Ordering::SeqCst) == 1 {
                *slot = Some(bytes[..bytes.len() / 2].to_vec());
            }
            return Err(StoreError::DeviceNotFound(0));
        }
        self.forbidden.fetch_add(usize::from(self.forbidden.load(Ordering::SeqCst) > 0), Ordering::SeqCst);
        *slot = Some(bytes.to_vec());
        Ok(())
    }
}

#[tokio::test]
async fn a_vault_that_was_created_by_older_rules_opens() {
    let wide: Vec<u8> = "\u{feff}wide secret\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
    // The bytes as they come in, and as an earlier build read them.
    let readings: [(&[u8], &[u8]); 8] = [
        (b"hunter2\n", b"hunter2\n"),
        (b"hunter2\n", b"hunter2"),
        (b"a\tb", b"ab"),
        ("\u{feff}marked\r\n".as_bytes(), "\u{feff}marked".as_bytes()),
        ("u\u{308}ber\n".as_bytes(), "u\u{308}ber".as_bytes()),
        ("u\u{308}ber".as_bytes(), "\u{fc}ber".as_bytes()),
        (&wide, &wide[..wide.len() - 1]),
        (&wide, b"wide secret"),
    ];
    for (given, read) in readings {
        let store = memory();
        options().create(store.clone(), Passphrase::as_read_earlier(read)).await.unwrap();
        assert!(opens(&store, Passphrase::new(given).unwrap()).await, "{given:?}");
        assert!(!opens(&store, Passphrase::new([given, b"x"].concat()).unwrap()).await, "{given:?}");
    }
    // Each reading costs as much as a slot, and the limits apply to their sum.
    let store = memory();
    options().create(store.clone(), Passphrase::as_read_earlier("\u{feff}a\tb\n".as_bytes())).await.unwrap();
    let work_kib = u64::from(Argon2Cost::MINIMUM.memory_kib()) * u64::from(Argon2Cost::MINIMUM.passes());
    for (work_kib, is_enough) in [(work_kib, false), (2 * work_kib, true)] {
        let options = options().kdf_limits(KdfLimits::default().work_kib(work_kib));
        let opened = options.open(store.clone(), word("\u{feff}a\tb\n")).await;
        assert_eq!(opened.is_ok(), is_enough, "{opened:?}");
    }
}
