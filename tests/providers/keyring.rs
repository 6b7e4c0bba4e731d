//! The keyring, in a session of its own. The library reads the address of the message bus from the environment, so the
//! tests run in processes of their own.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rustix::process::Signal;
use wacore::store::InMemoryBackend;
use wastore::vault::{KeyProvider, KeyringProblem, KeyringProvider, ProviderError, SlotKind};
use wastore::{Error, Key};

use crate::session::Session;
use crate::{options, problem};

/// Runs a test of this file in the session.
fn run(session: &Session, test: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([&format!("keyring::{test}"), "--exact", "--nocapture"]).env("WASTORE_SESSION", "1");
    let output = session.enter(&mut child).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{errors}");
}

fn is_in_a_session() -> bool {
    std::env::var_os("WASTORE_SESSION").is_some()
}

#[test]
fn with_an_unlocked_keyring() {
    let Some(session) = Session::start() else { return };
    run(&session, "vaults_open_by_their_own_entries");
}

#[test]
fn with_a_keyring_that_hangs() {
    let Some(session) = Session::start() else { return };
    session.signal_keyring(Signal::STOP);
    run(&session, "a_keyring_that_hangs_is_given_up");
    session.signal_keyring(Signal::CONT);
}

#[test]
fn without_a_keyring() {
    let Some(session) = Session::without_keyring() else { return };
    run(&session, "no_keyring_means_no_vault");
}

#[test]
fn vaults_open_by_their_own_entries() {
    if !is_in_a_session() {
        return;
    }
    block_on(async {
        let provider = Arc::new(KeyringProvider::new());
        let stores = [(); 2].map(|()| Arc::new(InMemoryBackend::new()));
        let mut vaults = vec![];
        for store in &stores {
            vaults.push(options().create(store.clone(), provider.clone()).await.unwrap());
            options().open(store.clone(), provider.clone()).await.unwrap();
        }
        let entries = vaults.iter().map(|vault| match &vault.slots()[0].kind {
            SlotKind::Keyring { entry } => entry.clone(),
            kind => panic!("{kind:?}"),
        });
        let entries: Vec<_> = entries.collect();
        assert!(entries.iter().zip(&vaults).all(|(entry, vault)| entry.starts_with(&hex::encode(vault.store_id()))));

        // The entry of one vault does not open another.
        let key = Key::generate().unwrap();
        let hint = provider.wrap(&[1; 16], &key).await.unwrap();
        assert_eq!(hint.len(), 40);
        assert_eq!(provider.unwrap(&[1; 16], &hint).await.unwrap().unwrap().expose(), key.expose());
        let refused = provider.unwrap(&[2; 16], &hint).await.unwrap_err();
        assert!(matches!(refused, ProviderError::NoKey(_)), "{refused:?}");
        assert_eq!(refused.into_inner().downcast_ref(), Some(&KeyringProblem::NoEntry));

        // Only hints of this form lead to the keyring.
        let name = "0123456789abcdef0123456789abcdef";
        for foreign in
            ["", "keyring:", "keyring:../../other", &format!("keyring:{name}0"), &format!("keyring:{}", &name[1..])]
        {
            assert!(provider.unwrap(&[1; 16], foreign.as_bytes()).await.unwrap().is_none(), "{foreign}");
        }
        for foreign in
            [&b"vault:v1:AAAA"[..], b"keyring:0123456789ABCDEF0123456789ABCDEF", b"keyring:\xff\xff", &[0; 256]]
        {
            assert!(provider.unwrap(&[1; 16], foreign).await.unwrap().is_none(), "{foreign:?}");
        }

        // Many at once.
        let many = (0..16).map(|_| provider.unwrap(&[1; 16], &hint));
        for kept in futures::future::join_all(many).await {
            assert_eq!(kept.unwrap().unwrap().expose(), key.expose());
        }
    });
}

#[test]
fn a_keyring_that_hangs_is_given_up() {
    if !is_in_a_session() {
        return;
    }
    let provider = KeyringProvider::new().timeout(Duration::from_millis(200));
    let (start, store) = (Instant::now(), Arc::new(InMemoryBackend::new()));
    let error = block_on(options().create(store.clone(), Arc::new(provider))).unwrap_err();
    assert_eq!(problem::<KeyringProblem>(&error), KeyringProblem::TooSlow);
    assert!(start.elapsed() < Duration::from_secs(10));
    let opened = block_on(options().open(store, Key::generate().unwrap()));
    assert!(matches!(opened, Err(Error::NoVault)), "{opened:?}");
}

#[test]
fn no_keyring_means_no_vault() {
    if !is_in_a_session() {
        return;
    }
    let store = Arc::new(InMemoryBackend::new());
    let error = block_on(options().create(store.clone(), Arc::new(KeyringProvider::new()))).unwrap_err();
    assert!(matches!(problem(&error), KeyringProblem::Unavailable { .. }), "{error:?}");
    let opened = block_on(options().open_or_create(store.clone(), Arc::new(KeyringProvider::new())));
    assert!(matches!(opened, Err(Error::KeyProvider(_))), "{opened:?}");
    let opened = block_on(options().open(store, Key::generate().unwrap()));
    assert!(matches!(opened, Err(Error::NoVault)), "{opened:?}");
}
