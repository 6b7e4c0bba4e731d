//! The inner calls for a device that does not exist yet, and the calls that a read-only vault allows.
//! `tests/forwarding.rs` checks that every other call becomes one call.

use std::sync::Arc;

use wacore::store::traits::Backend;

use super::{encrypted, memory, options, raw_key};
use crate::method::{Access, Method};
use crate::testing::Spy;
use crate::testing::canaries;
use crate::vault::OpenMode;
use crate::{Layer, Vault};

fn spied(store: &Arc<dyn Backend>, vault: &Vault) -> (Arc<dyn Backend>, Spy) {
    let spy = Spy::new();
    (vault.layer().layer(spy.layer(store.clone())), spy)
}

#[tokio::test]
async fn the_first_device_takes_more_calls() {
    let store = memory();
    let (vault, _) = encrypted(&store).await;
    let (backend, spy) = spied(&store, &vault);
    assert!(!backend.exists().await.unwrap());
    assert_eq!(spy.take_methods(), [Method::Load]);
    backend.create().await.unwrap();
    assert_eq!(spy.take_methods(), [Method::Load, Method::Exists, Method::Create, Method::Save]);
    assert!(backend.exists().await.unwrap());
    assert_eq!(spy.take_methods(), [Method::Exists]);
}

#[tokio::test]
async fn read_only_vaults_refuse_every_change() {
    let store = memory();
    let (_, backend) = encrypted(&store).await;
    canaries::fill(&*backend).await;
    let vault = options().mode(OpenMode::ReadOnly).open(store.clone(), raw_key()).await.unwrap();
    let (backend, spy) = spied(&store, &vault);
    assert_eq!(format!("{:?}", vault.layer()), "encrypt(v1, read-only)");
    for method in Method::ALL {
        let result = canaries::call(&*backend, *method).await;
        let refused = matches!(method.access(), Access::Write | Access::Delete | Access::Take);
        assert_eq!(result.is_err(), refused, "{}", method.name());
        let calls = spy.take();
        if refused {
            assert_eq!(super::own_error(result), format!("ReadOnly {{ method: {:?} }}", method.name()));
            assert!(calls.is_empty(), "{}", method.name());
        }
    }
    assert!(vault.add_recovery_key().await.is_err());
    assert!(vault.remove_slot(0).await.is_err());
}
