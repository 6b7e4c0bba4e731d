//! Each of the 82 methods reaches its inner method exactly once, and errors of the inner store come back unchanged.

use std::sync::{Arc, Mutex};

use wacore::store::error::StoreError;
use wacore::store::traits::Backend;

use super::spy::{FAULT, Fault, Spy};
use super::{encrypted, memory, options, raw_key};
use crate::method::{Access, Method};
use crate::sample;
use crate::{Layer, Vault};

/// What a call becomes below the layer. Everything that is not listed becomes the method of the same name.
fn inner_calls(method: Method) -> Vec<Method> {
    vec![match method {
        // Identities live in the session table.
        Method::PutIdentity => Method::PutSession,
        Method::PutIdentitiesBatch => Method::PutSessionsBatch,
        Method::LoadIdentity => Method::GetSession,
        Method::DeleteIdentity => Method::DeleteSession,
        // The device is there already, so creating it is finding out that it is.
        Method::Create => Method::Exists,
        same => same,
    }]
}

async fn spied(store: Arc<dyn Backend>, vault: &Vault) -> (Arc<dyn Backend>, Arc<Mutex<Vec<Method>>>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    (vault.layer().layer(Arc::new(Spy { inner: store, calls: calls.clone() })), calls)
}

#[tokio::test]
async fn one_inner_call_per_call() {
    let store = memory();
    let (vault, backend) = encrypted(&store).await;
    backend.create().await.unwrap();
    let (backend, calls) = spied(store, &vault).await;
    for method in Method::ALL {
        sample::call(&*backend, *method).await.unwrap();
        assert_eq!(std::mem::take(&mut *calls.lock().unwrap()), inner_calls(*method), "{}", method.name());
    }
}

#[tokio::test]
async fn the_first_device_takes_more_calls() {
    let store = memory();
    let (vault, _) = encrypted(&store).await;
    let (backend, calls) = spied(store, &vault).await;
    assert!(!backend.exists().await.unwrap());
    assert_eq!(std::mem::take(&mut *calls.lock().unwrap()), [Method::Load]);
    backend.create().await.unwrap();
    assert_eq!(
        std::mem::take(&mut *calls.lock().unwrap()),
        [Method::Load, Method::Exists, Method::Create, Method::Save]
    );
    assert!(backend.exists().await.unwrap());
    assert_eq!(std::mem::take(&mut *calls.lock().unwrap()), [Method::Exists]);
}

#[tokio::test]
async fn errors_of_the_inner_store_pass_through() {
    let store = memory();
    let (vault, backend) = encrypted(&store).await;
    backend.create().await.unwrap();
    let failing = vault.layer().layer(Arc::new(Fault { inner: store }));
    for method in Method::ALL.iter().filter(|method| **method != Method::ResourceReport) {
        let result = sample::call(&*failing, *method).await;
        assert!(matches!(result, Err(StoreError::DeviceNotFound(FAULT))), "{}: {result:?}", method.name());
    }
}

#[tokio::test]
async fn read_only_vaults_refuse_every_change() {
    let store = memory();
    let (_, backend) = encrypted(&store).await;
    sample::fill(&*backend).await;
    let vault = options().open_read_only(store.clone(), raw_key()).await.unwrap();
    let (backend, calls) = spied(store, &vault).await;
    assert_eq!(format!("{:?}", vault.layer()), "encrypt(v1, read-only)");
    for method in Method::ALL {
        let result = sample::call(&*backend, *method).await;
        let refused = matches!(method.access(), Access::Write | Access::Delete | Access::Take);
        assert_eq!(result.is_err(), refused, "{}", method.name());
        if refused {
            assert_eq!(super::own_error(result), format!("ReadOnly {{ method: {:?} }}", method.name()));
            assert!(calls.lock().unwrap().is_empty(), "{}", method.name());
        }
        calls.lock().unwrap().clear();
    }
    assert!(vault.add_recovery_key().await.is_err());
    assert!(vault.remove_slot(0).await.is_err());
}
