//! The own device: sealed from the first moment, complete, and never replaced in silence.

use wacore::store::Device;

use super::{Scratch, encrypted, memory, options, own_error, raw_key};
use crate::encrypt::vault::header::{DEVICE_SEALED, Header};
use crate::testing::canaries;
use crate::{Error, Layer, Vault};

fn sealed_flag(vault: &Vault) -> bool {
    Header::parse(&vault.save_header()).unwrap().flags & DEVICE_SEALED != 0
}

#[tokio::test]
async fn survives_in_full() {
    for scratch in Scratch::all().await {
        let store = scratch.store.clone();
        let plain = memory();
        let (_, backend) = encrypted(&store).await;
        let mut device = canaries::device();
        device.nct_salt_sync_seen = true;
        device.client_profile = wacore::client_profile::ClientProfile::android("Pixel");
        backend.save(&device).await.unwrap();
        plain.save(&device).await.unwrap();
        let loaded = backend.load().await.unwrap().unwrap();
        assert_eq!(serde_json::to_value(&loaded).unwrap(), serde_json::to_value(&device).unwrap());
        // Fields that upstream does not serialize come back as the inner store gives them.
        let inner = store.load().await.unwrap().unwrap();
        assert_eq!(loaded.device_props, inner.device_props);
        assert_eq!(format!("{:?}", loaded.client_profile), format!("{:?}", inner.client_profile));
        assert_eq!(loaded.nct_salt_sync_seen, inner.nct_salt_sync_seen);
    }
}

/// A new field of upstream must be serialized, or restored here by name.
#[test]
fn every_field_is_serialized_or_restored() {
    let fields = serde_json::to_value(Device::new()).unwrap().as_object().unwrap().len();
    assert_eq!(fields, 26, "a field of `Device` is new: is it in the sealed JSON, or does `load` restore it?");
}

#[tokio::test]
async fn the_client_start_sequence() {
    for scratch in Scratch::all().await {
        let store = scratch.store.clone();
        let (vault, backend) = encrypted(&store).await;
        assert!(!backend.exists().await.unwrap());
        assert!(backend.load().await.unwrap().is_none());
        assert!(!sealed_flag(&vault));
        assert_eq!(backend.create().await.unwrap(), 1);
        assert!(sealed_flag(&vault));
        let created = backend.load().await.unwrap().unwrap();
        assert_eq!(backend.create().await.unwrap(), 1, "creating again keeps the device");
        let again = backend.load().await.unwrap().unwrap();
        assert_eq!(again.identity_key.private_key.serialize(), created.identity_key.private_key.serialize());
        let stored = store.load().await.unwrap().unwrap();
        assert_ne!(stored.identity_key.private_key.serialize(), created.identity_key.private_key.serialize());

        let vault = options().open(store.clone(), raw_key()).await.unwrap();
        let reopened = vault.layer().layer(store).load().await.unwrap().unwrap();
        assert_eq!(reopened.registration_id, created.registration_id);
    }
}

#[tokio::test]
async fn a_crash_between_creating_and_sealing() {
    for scratch in Scratch::all().await {
        let store = scratch.store.clone();
        let (_, backend) = encrypted(&store).await;
        store.create().await.unwrap();
        assert!(!backend.exists().await.unwrap(), "a fresh plaintext device is as good as none");
        assert!(backend.load().await.unwrap().is_none());
        assert_eq!(backend.create().await.unwrap(), 1);
        assert!(backend.load().await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_crash_between_sealing_and_noting_it() {
    let store = memory();
    let (vault, backend) = encrypted(&store).await;
    backend.create().await.unwrap();
    vault.shared().rewrite_header(|header| header.flags = 0).await.unwrap();
    assert!(!sealed_flag(&vault));
    let vault = options().open(store, raw_key()).await.unwrap();
    assert!(sealed_flag(&vault));
}

#[tokio::test]
async fn a_paired_plaintext_device_is_refused() {
    for scratch in Scratch::all().await {
        let store = scratch.store.clone();
        store.create().await.unwrap();
        store.save(&canaries::device()).await.unwrap();
        for result in [
            options().create(store.clone(), raw_key()).await,
            options().open(store.clone(), raw_key()).await,
            options().open_or_create(store.clone(), raw_key()).await,
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::PlaintextDevice), "{error:?}");
            assert!(error.to_string().contains("wastore import"), "{error}");
        }
        assert_eq!(store.get_sender_key(crate::vault::HeaderCopy::A.address()).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_plaintext_device_put_in_place_later() {
    for scratch in Scratch::all().await {
        let store = scratch.store.clone();
        let (_, backend) = encrypted(&store).await;
        // Before a device was sealed for the first time.
        store.create().await.unwrap();
        store.save(&canaries::device()).await.unwrap();
        assert_eq!(own_error(backend.load().await.map(drop)), "PlaintextDevice");
        assert_eq!(own_error(backend.exists().await), "PlaintextDevice");
        assert_eq!(own_error(backend.create().await), "PlaintextDevice");
        assert!(matches!(options().open(store.clone(), raw_key()).await, Err(Error::PlaintextDevice)));

        // And after it, also a device that is not paired.
        backend.save(&canaries::device()).await.unwrap();
        for planted in [canaries::device(), Device::new()] {
            store.save(&planted).await.unwrap();
            assert_eq!(own_error(backend.load().await.map(drop)), "PlaintextDevice");
        }
    }
}

#[tokio::test]
async fn what_is_planted_beside_the_envelope_is_ignored() {
    for scratch in Scratch::all().await {
        let store = scratch.store.clone();
        let (_, backend) = encrypted(&store).await;
        let mut sealed = canaries::device();
        sealed.pn = None;
        sealed.account = None;
        backend.save(&sealed).await.unwrap();
        let mut planted = canaries::device();
        planted.edge_routing_info = store.load().await.unwrap().unwrap().edge_routing_info;
        planted.adv_secret_key = [9; 32];
        store.save(&planted).await.unwrap();
        let loaded = backend.load().await.unwrap().unwrap();
        assert_eq!(serde_json::to_value(&loaded).unwrap(), serde_json::to_value(&sealed).unwrap());
    }
}

#[tokio::test]
async fn a_device_that_was_deleted_is_missed() {
    use crate::testing::{Effect, Fault, When};

    let store = memory();
    let (vault, backend) = encrypted(&store).await;
    backend.create().await.unwrap();
    // Another store with the same header and no device row.
    let emptied = memory();
    for copy in [crate::vault::HeaderCopy::A, crate::vault::HeaderCopy::B] {
        emptied.put_sender_key(copy.address(), &vault.save_header()).await.unwrap();
    }
    let vault = options().open(emptied.clone(), raw_key()).await.unwrap();
    let backend = vault.layer().layer(emptied);
    assert_eq!(own_error(backend.load().await.map(drop)), "DeviceMissing");
    assert_eq!(own_error(backend.exists().await), "DeviceMissing");
    assert_eq!(own_error(backend.create().await), "DeviceMissing");
    let fault = Fault::new();
    fault.inject(When::Always, Effect::Fail(Fault::error));
    let failing = vault.layer().layer(fault.layer(memory()));
    assert!(
        Error::downcast_ref(&failing.exists().await.unwrap_err()).is_none(),
        "an error of the store is not a missing device"
    );
}
