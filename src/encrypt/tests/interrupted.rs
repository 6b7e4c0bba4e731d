//! Futures are dropped at every point, and inner stores fail at every call. The store stays consistent, nothing is
//! plaintext, and the next try succeeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wacore::store::traits::Backend;

use super::{encrypted, memory, options, passphrase, raw_key};
use crate::encrypt::format::envelope::Prefix;
use crate::encrypt::format::kind::Kind;
use crate::testing::canaries::{self, SESSION, SESSION_ADDRESS};
use crate::testing::fault::polled;
use crate::testing::gate::Pauses;
use crate::testing::{Effect, Fault, When};
use crate::vault::Revocation;
use crate::{Error, Key, Layer};

/// A store whose calls fail after `calls` calls, until the fault is cleared.
fn failing_after(store: &Arc<dyn Backend>, calls: u64) -> (Arc<dyn Backend>, Fault) {
    let fault = Fault::new();
    fault.inject(When::From(calls + 1), Effect::Fail(Fault::error));
    (fault.layer(store.clone()), fault)
}

fn is_fault(error: &Error) -> bool {
    matches!(error, Error::Store(error) if Fault::is_injected(error))
}

/// The device in a store is a carrier, or a device that was never paired.
async fn assert_no_plaintext_device(store: &Arc<dyn Backend>) {
    if let Some(device) = store.load().await.unwrap() {
        assert!(device.pn.is_none() && device.account.is_none());
        if let Some(sealed) = device.edge_routing_info {
            Prefix::read(Kind::Device, &sealed).unwrap();
        }
    }
}

#[tokio::test]
async fn a_store_that_fails_at_any_call() {
    let mut finished = false;
    for calls in 0.. {
        let inner = memory();
        let (store, fault) = failing_after(&inner, calls);
        let whole = async {
            let vault = options().create(store.clone(), raw_key()).await?;
            let backend = vault.layer().layer(store.clone());
            backend.create().await?;
            backend.save(&canaries::device()).await?;
            backend.put_session(SESSION_ADDRESS, SESSION).await?;
            vault.add_slot("people", Key::from_bytes(&mut [7; 32])).await?;
            vault.remove_slot(0).await?;
            Ok::<(), Error>(())
        };
        let result = whole.await;
        fault.clear();
        assert_no_plaintext_device(&inner).await;
        match result {
            Ok(()) => {
                finished = true;
                assert!(calls > 30, "{calls}");
            }
            Err(error) => assert!(is_fault(&error), "{calls}: {error:?}"),
        }
        // Everything again, with the secret that opens the vault now.
        let vault = match options().open_or_create(inner.clone(), raw_key()).await {
            Ok(vault) => vault,
            Err(Error::WrongSecret) => options().open(inner.clone(), Key::from_bytes(&mut [7; 32])).await.unwrap(),
            Err(error) => panic!("{calls}: {error:?}"),
        };
        let backend = vault.layer().layer(inner.clone());
        if !backend.exists().await.unwrap() {
            backend.create().await.unwrap();
        }
        backend.save(&canaries::device()).await.unwrap();
        assert!(backend.load().await.unwrap().unwrap().is_registered());
        backend.put_session(SESSION_ADDRESS, SESSION).await.unwrap();
        assert_eq!(backend.get_session(SESSION_ADDRESS).await.unwrap().as_deref(), Some(SESSION));
        if finished {
            break;
        }
    }
}

#[tokio::test]
async fn dropped_at_any_point() {
    let new_key = || Key::from_bytes(&mut [7; 32]);
    let mut finished = false;
    for polls in 1.. {
        let inner = memory();
        let store: Arc<dyn Backend> = Pauses.layer(inner.clone());
        let done = polled(polls, async {
            let vault = options().create(store.clone(), raw_key()).await.unwrap();
            let backend = vault.layer().layer(store.clone());
            backend.create().await.unwrap();
            backend.save(&canaries::device()).await.unwrap();
            backend.put_session(SESSION_ADDRESS, SESSION).await.unwrap();
            vault.add_slot("people", new_key()).await.unwrap();
            vault.remove_slot(0).await.unwrap();
        });
        finished |= done.await.is_some();
        assert_no_plaintext_device(&inner).await;
        let old = options().open_or_create(inner.clone(), raw_key()).await;
        let new = options().open(inner.clone(), new_key()).await;
        let vault = match (old, new) {
            (Ok(_), Ok(vault)) | (Err(Error::WrongSecret), Ok(vault)) => vault,
            (Ok(vault), Err(Error::WrongSecret)) => vault,
            results => panic!("{polls}: {results:?}"),
        };
        let backend = vault.layer().layer(inner.clone());
        let exists = backend.exists().await.unwrap();
        if exists {
            backend.load().await.unwrap().unwrap();
        } else {
            backend.create().await.unwrap();
        }
        let session = backend.get_session(SESSION_ADDRESS).await.unwrap();
        assert!(session.is_none_or(|session| session == SESSION));
        if finished {
            assert!(polls > 60, "{polls}");
            break;
        }
    }
}

/// At every point one of the two secrets opens the vault and every record, and the next try succeeds.
#[tokio::test]
async fn a_revocation_that_is_dropped_or_fails_at_any_point() {
    let new_key = || Key::from_bytes(&mut [8; 32]);
    for fails in [false, true] {
        let mut finished = false;
        for point in 1.. {
            let inner = memory();
            let (_, backend) = encrypted(&inner).await;
            backend.put_session(SESSION_ADDRESS, SESSION).await.unwrap();
            let (store, fault): (Arc<dyn Backend>, _) = match fails {
                false => (Pauses.layer(inner.clone()), None),
                true => {
                    let fault = Fault::new();
                    (fault.layer(inner.clone()), Some(fault))
                }
            };
            let vault = options().open(store.clone(), raw_key()).await.unwrap();
            let revocation = Revocation::prepare(&vault, new_key()).await.unwrap();
            if let Some(fault) = &fault {
                fault.inject(When::From(point as u64), Effect::Fail(Fault::error));
            }
            let change = async {
                vault.rotate_data_key().await?;
                vault.layer().layer(store.clone()).put_session("second", SESSION).await?;
                vault.revoke(&revocation).await
            };
            match polled(if fails { usize::MAX } else { point }, change).await {
                Some(Ok(())) => finished = true,
                Some(Err(error)) => assert!(fails && is_fault(&error), "{error:?}"),
                None => assert!(!fails),
            }
            if let Some(fault) = &fault {
                fault.clear();
            }
            let old = options().open(inner.clone(), raw_key()).await;
            let new = options().open(inner.clone(), new_key()).await;
            let opened = match (old, new) {
                (Ok(vault), Err(Error::WrongSecret)) | (Err(Error::WrongSecret), Ok(vault)) => vault,
                results => panic!("{point}: {results:?}"),
            };
            // Through the vault that is still open, and through the one that was opened since.
            for (vault, store) in [(&opened, &inner), (&vault, &store)] {
                let backend = vault.layer().layer(store.clone());
                assert_eq!(backend.get_session(SESSION_ADDRESS).await.unwrap().as_deref(), Some(SESSION));
                let second = backend.get_session("second").await.unwrap();
                assert!(second.is_none_or(|session| session == SESSION));
            }
            drop(opened);
            vault.revoke(&revocation).await.unwrap();
            vault.layer().layer(store).put_session("third", SESSION).await.unwrap();
            let refused = options().open(inner.clone(), raw_key()).await;
            assert!(matches!(refused, Err(Error::WrongSecret)), "{point}: {refused:?}");
            let backend = options().open(inner.clone(), new_key()).await.unwrap().layer().layer(inner.clone());
            for address in [SESSION_ADDRESS, "third"] {
                assert_eq!(backend.get_session(address).await.unwrap().as_deref(), Some(SESSION), "{point}");
            }
            if finished {
                assert!(point > 15, "{point}");
                break;
            }
        }
    }
}

/// A vault whose change was dropped half-way goes on, and blocks nothing.
#[tokio::test]
async fn a_vault_survives_its_dropped_changes() {
    let store: Arc<dyn Backend> = Pauses.layer(memory());
    let vault = options().create(store.clone(), raw_key()).await.unwrap();
    for polls in 1..40 {
        let dropped = polled(polls, vault.add_slot("dropped", Key::generate().unwrap())).await;
        if let Some(id) = dropped {
            vault.remove_slot(id.unwrap()).await.unwrap();
        }
        for slot in vault.slots().into_iter().filter(|slot| slot.id != 0) {
            vault.remove_slot(slot.id).await.unwrap();
        }
        let id = vault.add_slot("kept", Key::generate().unwrap()).await.unwrap();
        vault.remove_slot(id).await.unwrap();
    }
    options().open(store, raw_key()).await.unwrap();
}

/// Deriving a key takes a while. Other tasks of the same thread run at the same time.
#[tokio::test(flavor = "current_thread")]
async fn other_tasks_go_on_while_a_key_is_derived() {
    let store = memory();
    let turns = AtomicUsize::new(0);
    let options = options();
    let created = tokio::select! {
        created = options.create(store.clone(), passphrase()) => created,
        () = async {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        } => unreachable!(),
    };
    created.unwrap();
    assert!(turns.load(Ordering::Relaxed) > 100, "{turns:?}");
}
