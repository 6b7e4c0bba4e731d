//! Rules on which upstream's own two stores disagree, and rules that need more than a store. There is one module per
//! feature.

use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::traits::{AppStateSyncKey, DeviceListRecord};

use super::contents;
use super::keyed;
use super::msg_secret::message_secret::entry as secret;
use super::protocol::lid_mapping::{lid_of, mapping};
use crate::method::Method;
use crate::testing::Subject;
use crate::testing::arguments::device;

pub(super) mod any_mac_length {
    use super::*;

    pub(crate) async fn a_mutation_mac_and_its_index_may_have_any_length(store: &Subject) {
        let macs = [(vec![1, 2, 3], vec![9; 7]), (vec![1, 2], vec![]), (vec![1, 2, 3, 0], vec![8; 500])]
            .map(|(index_mac, value_mac)| AppStateMutationMAC { index_mac, value_mac });
        store.put_mutation_macs("regular", 0, &macs).await.unwrap();
        for mac in &macs {
            let found = store.get_mutation_mac("regular", &mac.index_mac).await.unwrap();
            assert_eq!(found.as_ref(), Some(&mac.value_mac), "{:?}", mac.index_mac);
        }
    }
}

pub(super) mod any_sync_key_length {
    use super::*;

    pub(crate) async fn a_sync_key_may_have_any_length(store: &Subject) {
        for (id, length) in [(1, 0), (2, 16), (3, 60)] {
            let key = AppStateSyncKey { key_data: vec![id; length], fingerprint: vec![], timestamp: 1 };
            store.set_sync_key(&[id], key).await.unwrap();
            let found = store.get_sync_key(&[id]).await.unwrap().expect("it was stored");
            assert_eq!(found.key_data, vec![id; length]);
        }
    }
}

pub(super) mod atomic_batches {
    use super::*;

    macro_rules! seen_whole {
        ($($rule:ident: $slot:expr, $batch:expr;)+) => { $(
            pub(crate) async fn $rule(store: &Subject) {
                keyed::a_batch_is_seen_whole(store, $slot, $batch).await
            }
        )+ };
    }
    seen_whole! {
        a_batch_of_identities_is_seen_whole: keyed::IDENTITY, Method::PutIdentitiesBatch;
        a_batch_of_prekeys_is_seen_whole: keyed::PREKEY, Method::StorePrekeysBatch;
        a_batch_of_message_secrets_is_seen_whole: keyed::MESSAGE_SECRET, Method::PutMsgSecrets;
        a_batch_of_lid_mappings_is_seen_whole: keyed::LID_MAPPING, Method::PutLidMappings;
        a_batch_of_device_lists_is_seen_whole: keyed::DEVICE_LIST, Method::UpdateDeviceLists;
        a_batch_of_pending_messages_is_seen_whole: keyed::PENDING_INBOUND, Method::StorePendingInboundBatch;
    }

    /// A reader of all rows sees one call with many rows as one step.
    pub(crate) async fn a_batch_of_mutation_macs_is_seen_whole(store: &Subject) {
        let index = |at: u8| [at; 32];
        let macs = move |value: u8| -> Vec<_> {
            let mac = |at| AppStateMutationMAC { index_mac: index(at).to_vec(), value_mac: vec![value] };
            (0..=255).map(mac).collect()
        };
        store.put_mutation_macs("regular", 0, &macs(0)).await.unwrap();
        let writer = tokio::spawn({
            let store = store.backend();
            async move {
                for value in 1..60 {
                    store.put_mutation_macs("regular", 1, &macs(value)).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        let indexes: Vec<_> = (0..=255).map(index).collect();
        while !writer.is_finished() {
            let found = store.get_mutation_macs("regular", &indexes).await.unwrap();
            assert_eq!(found.len(), 256);
            let one = &found[&index(0)];
            assert!(found.values().all(|value| value == one), "the reader saw values of different batches");
            tokio::task::yield_now().await;
        }
        writer.await.unwrap();
    }

    pub(crate) async fn the_flags_of_a_group_are_seen_whole(store: &Subject) {
        let names: Vec<String> = (0..1000).map(|at| format!("{at}@s")).collect();
        let writer = tokio::spawn({
            let store = store.backend();
            async move {
                for round in 0..30 {
                    let entries: Vec<_> = names.iter().map(|name| (name.as_str(), round % 2 == 0)).collect();
                    store.set_sender_key_status("1@g.us", &entries).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        while !writer.is_finished() {
            let found = store.get_sender_key_devices("1@g.us").await.unwrap();
            assert!(found.is_empty() || found.len() == 1000, "{} of 1000 devices", found.len());
            assert!(found.iter().all(|(_, flag)| *flag == found[0].1), "the reader saw flags of different batches");
            tokio::task::yield_now().await;
        }
        writer.await.unwrap();
    }
}

pub(super) mod counts_repeated_secrets {
    use super::*;

    pub(crate) async fn a_message_secret_is_counted_as_often_as_it_was_given(store: &Subject) {
        let rows = vec![secret("1", 3, 0, 0), secret("3", 4, 0, 0), secret("3", 5, 0, 0)];
        assert_eq!(store.put_msg_secrets(rows).await.unwrap(), 3);
    }
}

pub(super) mod created_at_is_kept {
    use super::*;

    pub(crate) async fn a_lid_mapping_keeps_its_first_created_at(store: &Subject) {
        assert_eq!(created_at_after(store, 5, 99).await, 5);
    }
}

pub(super) mod created_at_is_replaced {
    use super::*;

    pub(crate) async fn a_lid_mapping_takes_the_last_created_at(store: &Subject) {
        assert_eq!(created_at_after(store, 5, 99).await, 99);
        assert_eq!(created_at_after(store, 99, 5).await, 5);
    }
}

async fn created_at_after(store: &Subject, first: i64, second: i64) -> i64 {
    for created_at in [first, second] {
        let entry = wacore::store::traits::LidPnMappingEntry { created_at, ..mapping(&format!("{first}"), "555", 1) };
        store.put_lid_mapping(&entry).await.unwrap();
    }
    store.get_lid_mapping(&format!("{first}")).await.unwrap().expect("it was stored").created_at
}

pub(super) mod durable {
    use super::*;

    pub(crate) async fn everything_is_there_after_reopening(store: &mut Subject) {
        let rows = contents::rows();
        store.create().await.unwrap();
        contents::store(&**store, &rows).await;
        let before = contents::read(&**store, &rows).await;
        store.restart().await;
        contents::assert_same(&before, &contents::read(&**store, &rows).await, "after reopening");
        let taken = store.take_sent_message(&rows[0].chat, &rows[0].message_id).await.unwrap();
        assert_eq!(taken.as_deref(), Some(&rows[0].sent_message[..]), "a sent message after reopening");
    }

    pub(crate) async fn nothing_deleted_comes_back_after_reopening(store: &mut Subject) {
        let rows = contents::rows();
        store.create().await.unwrap();
        contents::store(&**store, &rows).await;
        contents::delete(&**store, &rows).await;
        let before = contents::read(&**store, &rows).await;
        store.restart().await;
        contents::assert_same(&before, &contents::read(&**store, &rows).await, "after reopening");
        let taken = store.take_sent_message(&rows[0].chat, &rows[0].message_id).await.unwrap();
        assert_eq!(taken, None, "a message that was taken");
    }
}

pub(super) mod large_prekey_ids {
    use super::*;

    pub(crate) async fn a_prekey_may_have_any_id(store: &Subject) {
        for id in [1, 1 << 31, u32::MAX] {
            store.store_prekey(id, &id.to_be_bytes(), false).await.unwrap();
            assert_eq!(store.get_max_prekey_id().await.unwrap(), id);
            assert_eq!(store.load_prekey(id).await.unwrap().as_deref(), Some(&id.to_be_bytes()[..]));
        }
    }
}

pub(super) mod latest_sync_key_is_the_highest {
    use super::*;

    pub(crate) async fn the_latest_sync_key_has_the_highest_id(store: &Subject) {
        assert_eq!(latest_after(store, &[[9, 9], [2, 2], [9, 8]]).await, [9, 9]);
    }
}

pub(super) mod latest_sync_key_is_the_last_stored {
    use super::*;

    pub(crate) async fn the_latest_sync_key_is_the_one_stored_last(store: &Subject) {
        assert_eq!(latest_after(store, &[[9, 9], [2, 2], [9, 8]]).await, [9, 8]);
        assert_eq!(latest_after(store, &[[2, 2]]).await, [2, 2], "it was stored again");
    }
}

async fn latest_after(store: &Subject, ids: &[[u8; 2]]) -> Vec<u8> {
    for id in ids {
        let key = AppStateSyncKey { key_data: vec![1; 32], fingerprint: vec![], timestamp: 1 };
        store.set_sync_key(id, key).await.unwrap();
    }
    store.get_latest_sync_key_id().await.unwrap().expect("sync keys were stored")
}

pub(super) mod lid_mappings_without_device {
    use super::*;

    pub(crate) async fn a_lid_mapping_needs_no_device(store: &Subject) {
        store.put_lid_mapping(&mapping("1", "555", 1)).await.unwrap();
        store.put_lid_mappings(&[mapping("2", "666", 1)]).await.unwrap();
        assert_eq!(lid_of(store, "555").await.as_deref(), Some("1"));
        assert_eq!(lid_of(store, "666").await.as_deref(), Some("2"));
    }
}

pub(super) mod literal_users {
    use super::*;

    pub(crate) async fn signal_state_is_of_exactly_this_user(store: &Subject) {
        store.put_session("1234@s.whatsapp.net", b"x").await.unwrap();
        store.put_identity("aBc:1@lid", [1; 32]).await.unwrap();
        assert!(store.has_signal_state_for_user("aBc").await.unwrap());
        for user in ["12_4", "%", "123%", "_234", "abc", "ABC", "*", "1?34"] {
            assert!(!store.has_signal_state_for_user(user).await.unwrap(), "nothing of {user:?} was stored");
        }
    }
}

pub(super) mod moved_lid_falls_back {
    use super::*;

    pub(crate) async fn a_number_falls_back_to_its_next_newest_lid(store: &Subject) {
        store.put_lid_mapping(&mapping("1", "555", 10)).await.unwrap();
        store.put_lid_mapping(&mapping("2", "555", 11)).await.unwrap();
        store.put_lid_mapping(&mapping("2", "666", 12)).await.unwrap();
        assert_eq!(lid_of(store, "555").await.as_deref(), Some("1"), "the newer one moved away");
    }
}

pub(super) mod newest_lid_by_its_time {
    use super::*;

    pub(crate) async fn the_newest_lid_is_the_one_updated_last(store: &Subject) {
        store.put_lid_mapping(&mapping("1", "555", 20)).await.unwrap();
        store.put_lid_mapping(&mapping("2", "555", 10)).await.unwrap();
        assert_eq!(lid_of(store, "555").await.as_deref(), Some("1"));
    }
}

pub(super) mod newest_lid_is_the_last_stored {
    use super::*;

    pub(crate) async fn the_newest_lid_is_the_one_stored_last(store: &Subject) {
        store.put_lid_mapping(&mapping("1", "555", 20)).await.unwrap();
        store.put_lid_mapping(&mapping("2", "555", 10)).await.unwrap();
        assert_eq!(lid_of(store, "555").await.as_deref(), Some("2"));
    }
}

pub(super) mod prekeys_as_asked_for {
    use super::*;

    pub(crate) async fn several_prekeys_come_in_the_order_asked_for(store: &Subject) {
        for id in [1, 2, 3] {
            store.store_prekey(id, &[id as u8], false).await.unwrap();
        }
        let found = store.load_prekeys_batch(&[3, 9, 1, 2, 1]).await.unwrap();
        assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 1, 2, 1]);
    }
}

pub(super) mod repeatable_create {
    use super::*;

    pub(crate) async fn a_device_that_is_there_stays_when_created_again(store: &Subject) {
        store.create().await.unwrap();
        store.save(&device(4)).await.unwrap();
        store.create().await.unwrap();
        let loaded = store.load().await.unwrap().expect("it was saved");
        assert_eq!((&loaded.push_name, loaded.adv_secret_key), (&device(4).push_name, [4; 32]));
    }
}

pub(super) mod reports_resources {
    use super::*;

    pub(crate) async fn the_report_says_how_much_memory_is_used(store: &Subject) {
        assert!(store.resource_report().await.memory_bytes.is_some());
    }
}

pub(super) mod unbounded_sent_messages {
    use super::*;

    pub(crate) async fn no_sent_message_is_evicted(store: &Subject) {
        for at in 0..5000u32 {
            store.store_sent_message("c", &format!("m{at}"), &at.to_be_bytes()).await.unwrap();
        }
        for at in (0..5000u32).step_by(7) {
            let taken = store.take_sent_message("c", &format!("m{at}")).await.unwrap();
            assert_eq!(taken.as_deref(), Some(&at.to_be_bytes()[..]), "the {at}th of 5000");
        }
    }
}

pub(super) mod wide_numbers {
    use super::*;

    pub(crate) async fn a_device_list_holds_any_time_and_id(store: &Subject) {
        let list = DeviceListRecord {
            user: "1555".to_owned(),
            devices: vec![],
            timestamp: 5_000_000_000,
            phash: None,
            raw_id: Some(u32::MAX),
        };
        store.update_device_list(list.clone()).await.unwrap();
        store.update_device_lists(vec![DeviceListRecord { user: "1666".to_owned(), ..list }]).await.unwrap();
        for user in ["1555", "1666"] {
            let found = store.get_devices(user).await.unwrap().expect("it was stored");
            assert_eq!((found.timestamp, found.raw_id), (5_000_000_000, Some(u32::MAX)), "past the year 2038");
        }
    }
}
