//! After an account is deleted, or a store or vault is closed, no handle answers for it.

use wacore::store::traits::{Backend, DeviceStore, SignalStore};

use super::*;
use crate::maintenance::inspect;
use crate::method::{Access, Method};
use crate::testing::canaries;
use crate::{CacheLayer, Key, Record, Stack, Vault};

/// All methods that can fail.
fn answering() -> impl Iterator<Item = Method> {
    Method::ALL.iter().copied().filter(|method| *method != Method::ResourceReport)
}

/// The error of a method's call.
async fn failure(backend: &dyn Backend, method: Method) -> Error {
    let Err(error) = canaries::call(backend, method).await else { panic!("{} succeeded", method.name()) };
    Error::downcast_ref(&error).map(Error::duplicate).unwrap_or_else(|| panic!("{}: {error:?}", method.name()))
}

/// An encrypted account under a cache. The store and the cache hold a record of every kind.
async fn in_use(store: &SqliteStore) -> (Vault, Stack) {
    let vault = Vault::create(Arc::new(store.clone()), Key::generate().unwrap()).await.unwrap();
    let cache = CacheLayer::new(1 << 20).with(Record::Session).with(Record::Identity).with(Record::SenderKey);
    let stack = Stack::new(Arc::new(store.clone())).layer(vault.layer()).layer(cache);
    (vault, stack)
}

async fn fill(backend: &dyn Backend) {
    canaries::fill(backend).await;
    for method in Method::ALL.iter().filter(|method| method.access() == Access::Read) {
        canaries::call(backend, *method).await.unwrap();
    }
}

#[tokio::test]
async fn a_late_write_after_the_deletion_of_an_account_is_an_error() {
    let scratch = Scratch::new().await;
    let other = scratch.store.account(2);
    let (vault, stack) = in_use(&scratch.store).await;
    let backend = stack.into_backend();
    fill(&*backend).await;
    canaries::fill(&other).await;

    scratch.store.clone().delete_account().await.unwrap();
    for method in answering() {
        let error = failure(&*backend, method).await;
        assert!(matches!(error, Error::AccountDeleted), "{}: {error:?}", method.name());
        let error = failure(&scratch.store, method).await;
        assert!(matches!(error, Error::AccountDeleted), "{}: {error:?}", method.name());
        canaries::call(&other, method).await.unwrap();
    }
    let error = vault.add_slot("late", Key::generate().unwrap()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Store(inner) if matches!(Error::downcast_ref(inner), Some(Error::AccountDeleted))),
        "{error:?}"
    );
    let error = scratch.store.delete_account().await.unwrap_err();
    assert!(matches!(error, Error::AccountDeleted), "{error:?}");

    // The account begins empty, and the old handles stay dead.
    let again = scratch.store.account(1);
    assert_eq!(again.accounts().await.unwrap(), [2]);
    let (_vault, stack) = in_use(&again).await;
    fill(&*stack.into_backend()).await;
    assert!(matches!(failure(&*backend, Method::GetSession).await, Error::AccountDeleted));
    assert!(matches!(failure(&scratch.store, Method::Save).await, Error::AccountDeleted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_left_of_an_account_whose_client_shuts_down_late() {
    let scratch = Scratch::new().await;
    for _ in 0..20 {
        let store = scratch.store.account(7);
        store.put_session("first", b"session").await.unwrap();
        let clients: Vec<_> = (0..8)
            .map(|number| {
                let store = store.clone();
                tokio::spawn(async move {
                    let address = format!("{number}@s.whatsapp.net");
                    while store.put_session(&address, &[7; 500]).await.is_ok() {}
                    assert!(store.get_session(&address).await.is_err());
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(5)).await;
        store.delete_account().await.unwrap();
        for client in clients {
            client.await.unwrap();
        }
        assert_eq!(scratch.store.accounts_in_use().await.unwrap(), [] as [i32; 0]);
    }
}

#[tokio::test]
async fn a_deletion_that_fails_ends_nothing() {
    let scratch = Scratch::new().await;
    canaries::fill(&scratch.store).await;
    let raw = rusqlite::Connection::open(&scratch.path).unwrap();
    raw.execute_batch("CREATE TRIGGER planted BEFORE DELETE ON devices BEGIN SELECT RAISE(ABORT, 'no'); END").unwrap();
    scratch.store.delete_account().await.unwrap_err();
    raw.execute_batch("DROP TRIGGER planted").unwrap();
    assert!(scratch.store.has_session(canaries::SESSION_ADDRESS).await.unwrap());
    scratch.store.put_session("a", b"b").await.unwrap();
    scratch.store.delete_account().await.unwrap();
}

#[tokio::test]
async fn a_closed_store_lets_go_of_its_file() {
    let scratch = Scratch::new().await;
    let (vault, stack) = in_use(&scratch.store).await;
    let backend = stack.into_backend();
    fill(&*backend).await;
    let second = scratch.store.account(2);
    canaries::fill(&second).await;

    scratch.store.close().await.unwrap();
    for method in answering() {
        for backend in [&*backend, &scratch.store, &second] {
            let error = failure(backend, method).await;
            assert!(matches!(error, Error::Closed { what: "store" }), "{}: {error:?}", method.name());
        }
    }
    assert!(matches!(inspect(&scratch.store).await, Err(Error::Store(_) | Error::Closed { .. })));
    assert!(matches!(scratch.store.backup(scratch.path.with_extension("copy")).await, Err(Error::Closed { .. })));
    assert!(vault.renew_anchor().await.is_err());
    second.close().await.unwrap();
    let beside: Vec<_> =
        std::fs::read_dir(scratch.path.parent().unwrap()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(beside, ["wa.db"], "no log, no copy");

    let moved = scratch.path.with_file_name("moved.db");
    std::fs::rename(&scratch.path, &moved).unwrap();
    let store = config().open(&moved).await.unwrap();
    assert!(store.account(2).has_session(canaries::SESSION_ADDRESS).await.unwrap());
    // The name is free for another store.
    config().open(&scratch.path).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn closing_waits_for_calls_and_loses_no_acknowledged_one() {
    for round in 0..if std::env::var_os("WASTORE_LONG").is_some() { 500 } else { 10 } {
        let scratch = Scratch::new().await;
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let store = scratch.store.clone();
                tokio::spawn(async move {
                    let mut stored = 0;
                    while store.put_session(&format!("{client}-{stored}@s"), &[7; 500]).await.is_ok() {
                        store.load_all_signed_prekeys_or_stop().await;
                        stored += 1;
                    }
                    (client, stored)
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(5 + round)).await;
        scratch.store.close().await.unwrap();
        assert!(!scratch.path.with_file_name("wa.db-wal").exists());
        let moved = scratch.path.with_file_name("moved.db");
        std::fs::rename(&scratch.path, &moved).unwrap();
        let store = config().open(&moved).await.unwrap();
        for client in clients {
            let (client, stored) = client.await.unwrap();
            for number in 0..stored {
                assert!(store.has_session(&format!("{client}-{number}@s")).await.unwrap());
            }
        }
    }
}

impl SqliteStore {
    /// Runs a query on another connection, and ignores the result.
    async fn load_all_signed_prekeys_or_stop(&self) {
        self.load_all_signed_prekeys().await.ok();
    }
}

#[tokio::test]
async fn a_stack_is_closed_whatever_it_was_given_to() {
    let scratch = Scratch::new().await;
    let store: Arc<dyn Backend> = Arc::new(scratch.store.clone());
    let vault = Vault::create(store.clone(), Key::generate().unwrap()).await.unwrap();
    let stack = Stack::new(store).layer(vault.layer()).layer(CacheLayer::new(1 << 20));
    let closer = stack.closer();
    let backend = stack.into_backend();
    fill(&*backend).await;
    closer.close().await.unwrap();
    for method in answering() {
        failure(&*backend, method).await;
    }
    assert!(!scratch.path.with_file_name("wa.db-wal").exists());
    closer.close().await.unwrap();
}

#[tokio::test]
async fn a_closed_vault_gives_nothing_out() {
    let scratch = Scratch::new().await;
    let (vault, stack) = in_use(&scratch.store).await;
    let backend = stack.into_backend();
    fill(&*backend).await;
    vault.close();
    for method in answering() {
        let error = failure(&*backend, method).await;
        assert!(matches!(error, Error::Closed { what: "vault" }), "{}: {error:?}", method.name());
    }
    let error = vault.add_slot("late", Key::generate().unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
    // The store has not changed.
    assert!(scratch.store.exists().await.unwrap());
}

/// A walk or another store keeps the file and its log open: moving the file alone would lose the
/// log's content.
#[tokio::test]
async fn a_store_that_others_have_open_is_not_to_be_moved() {
    let scratch = Scratch::new().await;
    scratch.store.put_session("before", b"before").await.unwrap();
    let walk = crate::sqlite::walk::Snapshot::open(&scratch.store).await.unwrap();
    scratch.store.put_session("after", b"after").await.unwrap();
    let error = scratch.store.close().await.unwrap_err();
    assert!(matches!(error, Error::StoreInUse), "{error:?}");
    assert!(matches!(failure(&scratch.store, Method::HasSession).await, Error::Closed { .. }));
    // Looking at the file does not release the walk's locks.
    assert!(matches!(SqliteStore::restore(&scratch.path, scratch.path.with_file_name("other.db")).await, Ok(None)));
    let copy = scratch.path.with_file_name("other.db");
    assert!(matches!(SqliteStore::restore(&copy, &scratch.path).await, Err(Error::StoreInUse)));
    drop(walk);
    let again = config().open(&scratch.path).await.unwrap();
    assert!(again.has_session("after").await.unwrap());
    again.close().await.unwrap();
    assert!(SqliteStore::restore(&copy, &scratch.path).await.unwrap().is_some());
}

/// Rows that are read while the store closes are not cached.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cache_gives_nothing_out_after_the_store_has_closed() {
    for _ in 0..50 {
        let scratch = Scratch::new().await;
        scratch.store.put_session("a", b"b").await.unwrap();
        let cache = CacheLayer::new(1 << 20).with(Record::Session);
        let backend = Stack::new(Arc::new(scratch.store.clone())).layer(cache).into_backend();
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let backend = backend.clone();
                tokio::spawn(async move { while backend.get_session("a").await.is_ok() {} })
            })
            .collect();
        tokio::task::yield_now().await;
        scratch.store.close().await.unwrap();
        for reader in readers {
            tokio::time::timeout(Duration::from_secs(20), reader).await.expect("it goes on reading").unwrap();
        }
    }
}
