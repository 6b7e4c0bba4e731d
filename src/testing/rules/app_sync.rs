//! The rules of `AppSyncStore`.

use std::collections::HashMap;

use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::traits::AppStateSyncKey;

use super::keyed::{self, keyed_rules};
use crate::method::Method;
use crate::testing::Subject;

pub(super) mod sync_key {
    use super::*;

    keyed_rules!(keyed::SYNC_KEY; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again);

    pub(crate) async fn its_id_is_any_bytes(store: &Subject) {
        let ids: [&[u8]; 7] = [&[0], &[0, 0], &[0, 0, 0, 0, 0, 1], &[0xff; 6], &[0xfe; 6], &[0xc3, 0x28], b"\n"];
        let key = |at: usize| AppStateSyncKey { key_data: vec![at as u8; 32], fingerprint: vec![], timestamp: -1 };
        for (at, id) in ids.iter().enumerate() {
            assert!(store.get_sync_key(id).await.unwrap().is_none(), "{id:?} was not stored");
            store.set_sync_key(id, key(at)).await.unwrap();
        }
        for (at, id) in ids.iter().enumerate() {
            let found = store.get_sync_key(id).await.unwrap().unwrap();
            assert_eq!((found.key_data, found.timestamp), (vec![at as u8; 32], -1), "{id:?}");
        }
    }

    pub(crate) async fn the_latest_is_one_of_those_stored(store: &Subject) {
        let key = || AppStateSyncKey { key_data: vec![1; 32], fingerprint: vec![2], timestamp: 3 };
        assert_eq!(store.get_latest_sync_key_id().await.unwrap(), None, "no sync key was stored");
        // Every later id is also the highest, so all stores agree.
        for id in [[0, 1, 0, 0, 0, 2], [0, 1, 0, 0, 0, 9], [0, 1, 0, 0, 1, 0], [0, 2, 0, 0, 0, 0]] {
            store.set_sync_key(&id, key()).await.unwrap();
            assert_eq!(store.get_latest_sync_key_id().await.unwrap().as_deref(), Some(&id[..]));
        }
    }
}

pub(super) mod collection_version {
    use super::*;

    keyed_rules!(keyed::COLLECTION_VERSION; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again);

    pub(crate) async fn every_field_reaches_its_bounds(store: &Subject) {
        let index_value_map: HashMap<_, _> = [(String::new(), vec![]), ("☃".into(), vec![0xff; 300])].into();
        let mut hash = [0xff; 128];
        hash[127] = 0;
        let state = HashState { version: u64::MAX, hash, index_value_map, mac_mismatch_fatal: true };
        store.set_version("critical_block", state.clone()).await.unwrap();
        let found = store.get_version("critical_block").await.unwrap();
        assert_eq!((found.version, found.hash, found.mac_mismatch_fatal), (u64::MAX, hash, true));
        assert_eq!(found.index_value_map, state.index_value_map);
        store.set_version("critical_block", HashState::default()).await.unwrap();
        let reset = store.get_version("critical_block").await.unwrap();
        assert_eq!((reset.version, reset.hash, reset.mac_mismatch_fatal), (0, [0; 128], false), "it was reset");
        assert!(reset.index_value_map.is_empty(), "it was reset");
    }
}

pub(super) mod mutation_mac {
    use super::*;

    keyed_rules!(keyed::MUTATION_MAC; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again, deleting_removes_one_and_no_other);
    keyed_rules!(keyed::MUTATION_MAC, Method::PutMutationMacs; of_two_rows_of_a_batch_the_later_wins,
        an_empty_batch_changes_nothing);

    fn mac(number: u32) -> AppStateMutationMAC {
        AppStateMutationMAC { index_mac: index(number).to_vec(), value_mac: vec![number as u8; 32] }
    }

    fn index(number: u32) -> [u8; 32] {
        let mut index = [0xab; 32];
        index[28..].copy_from_slice(&number.to_be_bytes());
        index
    }

    pub(crate) async fn a_batch_may_have_ten_thousand_rows(store: &Subject) {
        let macs: Vec<_> = (0..10_000).map(mac).collect();
        store.put_mutation_macs("regular", 1, &macs).await.unwrap();
        let wanted: Vec<_> = (0..20_000).map(index).collect();
        let found = store.get_mutation_macs("regular", &wanted).await.unwrap();
        assert_eq!(found.len(), 10_000);
        assert!(
            found.iter().all(|(index, value)| value[..] == [index[31]; 32]),
            "the store returned the value of another index"
        );
        let indexes: Vec<_> = (0..9_999).map(|number| index(number).to_vec()).collect();
        store.delete_mutation_macs("regular", &indexes).await.unwrap();
        let left = store.get_mutation_macs("regular", &wanted).await.unwrap();
        assert_eq!(left, [(index(9_999), vec![9_999u32 as u8; 32])].into());
    }

    pub(crate) async fn several_are_read_at_once_and_missing_ones_left_out(store: &Subject) {
        store.put_mutation_macs("regular", 1, &[mac(1), mac(2), mac(3)]).await.unwrap();
        let found = store.get_mutation_macs("regular", &[index(3), index(9), index(1), index(3)]).await.unwrap();
        assert_eq!(found, [(index(1), vec![1; 32]), (index(3), vec![3; 32])].into());
        assert!(store.get_mutation_macs("regular", &[]).await.unwrap().is_empty(), "no index was asked for");
        assert!(store.get_mutation_macs("other", &[index(1)]).await.unwrap().is_empty(), "another collection");
        for number in [1, 2, 9] {
            let single = store.get_mutation_mac("regular", &index(number)).await.unwrap();
            assert_eq!(single, (number < 9).then(|| vec![number as u8; 32]), "single reads return the same");
        }
    }

    pub(crate) async fn belongs_to_its_collection(store: &Subject) {
        for (collection, number) in [("regular", 1), ("regular_low", 2), ("critical_block", 3)] {
            let mac = AppStateMutationMAC { index_mac: index(0).to_vec(), value_mac: vec![number; 32] };
            store.put_mutation_macs(collection, u64::MAX, &[mac]).await.unwrap();
        }
        store.delete_mutation_macs("critical_block", &[index(0).to_vec(), index(1).to_vec()]).await.unwrap();
        assert_eq!(store.get_mutation_mac("critical_block", &index(0)).await.unwrap(), None, "it was deleted");
        store.delete_mutation_macs("regular", &[]).await.unwrap();
        assert_eq!(store.get_mutation_mac("regular", &index(0)).await.unwrap(), Some(vec![1; 32]));
        assert_eq!(store.get_mutation_mac("regular_low", &index(0)).await.unwrap(), Some(vec![2; 32]));
    }

    pub(crate) async fn clearing_a_collection_spares_the_others(store: &Subject) {
        store.clear_mutation_macs("regular").await.unwrap();
        for collection in ["regular", "regular_low", "regular_high"] {
            store.put_mutation_macs(collection, 1, &[mac(1), mac(2)]).await.unwrap();
        }
        store.set_version("regular", HashState { version: 5, ..HashState::default() }).await.unwrap();
        store.clear_mutation_macs("regular").await.unwrap();
        assert!(store.get_mutation_macs("regular", &[index(1), index(2)]).await.unwrap().is_empty());
        assert_eq!(store.get_version("regular").await.unwrap().version, 5, "the version is not a MAC and stays");
        for collection in ["regular_low", "regular_high"] {
            assert_eq!(store.get_mutation_macs(collection, &[index(1), index(2)]).await.unwrap().len(), 2);
        }
    }

    pub(crate) async fn stays_when_a_later_version_is_stored(store: &Subject) {
        store.put_mutation_macs("regular", 7, &[mac(1)]).await.unwrap();
        store.put_mutation_macs("regular", 8, &[mac(2)]).await.unwrap();
        store.put_mutation_macs("regular", 6, &[mac(3)]).await.unwrap();
        let found = store.get_mutation_macs("regular", &[index(1), index(2), index(3)]).await.unwrap();
        assert_eq!(found.len(), 3);
    }

    pub(crate) async fn concurrent_writers_lose_nothing(store: &Subject) {
        let write = |writer: u32| {
            let store = store.backend();
            async move {
                for at in 0..20 {
                    store.put_mutation_macs("regular", 1, &[mac(writer * 100 + at)]).await.unwrap();
                }
            }
        };
        for writer in (0..8).map(|writer| tokio::spawn(write(writer))).collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        let wanted: Vec<_> = (0..800).map(index).collect();
        assert_eq!(store.get_mutation_macs("regular", &wanted).await.unwrap().len(), 160);
    }
}
