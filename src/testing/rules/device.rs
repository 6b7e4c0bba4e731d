//! The rules of `DeviceStore`.

use wacore::store::traits::AppStateSyncKey;

use crate::method::Method;
use crate::testing::Subject;
use crate::testing::arguments::device as numbered;
use crate::testing::rules::contents;
use crate::testing::value::ToValue;

pub(super) mod own_device {
    use super::*;

    pub(crate) async fn is_absent_until_created(store: &Subject) {
        assert!(!store.exists().await.unwrap(), "nothing was created");
        assert!(store.load().await.unwrap().is_none(), "nothing was created");
        store.put_session("a@s", b"x").await.unwrap();
        let key = AppStateSyncKey { key_data: vec![1; 32], fingerprint: vec![], timestamp: 1 };
        store.set_sync_key(&[0, 1, 0, 0, 0, 1], key).await.unwrap();
        assert!(!store.exists().await.unwrap(), "nothing was created");
    }

    pub(crate) async fn is_there_and_unpaired_once_created(store: &Subject) {
        store.create().await.unwrap();
        assert!(store.exists().await.unwrap());
        let device = store.load().await.unwrap().expect("created, but there is none");
        assert!(device.pn.is_none() && device.lid.is_none() && device.account.is_none(), "a new device is not paired");
        assert_ne!(device.identity_key.private_key.serialize(), &[0; 32], "a new device has keys");
        let again = store.load().await.unwrap().expect("it was there");
        assert_eq!(again.to_value(), device.to_value(), "its keys stay the same");
    }

    pub(crate) async fn comes_back_as_it_was_saved(store: &Subject) {
        store.create().await.unwrap();
        for number in [1, 2, 0, 3] {
            let device = numbered(number);
            store.save(&device).await.unwrap();
            let loaded = store.load().await.unwrap().expect("it was saved");
            assert_eq!(loaded.to_value(), device.to_value());
            assert!(store.exists().await.unwrap());
        }
    }

    pub(crate) async fn may_be_saved_without_having_been_created(store: &Subject) {
        store.save(&numbered(1)).await.unwrap();
        assert!(store.exists().await.unwrap());
        assert_eq!(store.load().await.unwrap().expect("it was saved").to_value(), numbered(1).to_value());
    }

    pub(crate) async fn reports_and_snapshots_change_nothing(store: &Subject) {
        store.create().await.unwrap();
        let rows = contents::rows();
        contents::store(&**store, &rows).await;
        let before = contents::read(&**store, &rows).await;
        store.resource_report().await;
        // A store may refuse to make a snapshot, but it must not touch its records.
        let _ = store.snapshot_db("conformance", Some(b"extra")).await;
        let _ = store.snapshot_db("conformance", None).await;
        store.resource_report().await;
        let after = contents::read(&**store, &rows).await;
        contents::assert_same(&before, &after, &format!("after {}", Method::SnapshotDb.name()));
    }
}
