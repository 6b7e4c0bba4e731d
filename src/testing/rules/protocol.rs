//! The rules of `ProtocolStore`.

use std::collections::BTreeSet;

use wacore::store::traits::{LidPnMappingEntry, PendingInboundKey, PendingInboundRow, TcTokenEntry};

use super::keyed::{self, keyed_rules, unusual_keys};
use crate::method::Method;
use crate::testing::Subject;
use crate::testing::arguments::FAR_FUTURE;

pub(super) mod sender_key_device {
    use super::*;

    async fn devices(store: &Subject, group: &str) -> BTreeSet<(String, bool)> {
        let rows = store.get_sender_key_devices(group).await.unwrap();
        let set: BTreeSet<_> = rows.iter().cloned().collect();
        assert_eq!(set.len(), rows.len(), "a device is listed twice: {rows:?}");
        set
    }

    fn set<const N: usize>(rows: [(&str, bool); N]) -> BTreeSet<(String, bool)> {
        rows.map(|(device, has_key)| (device.to_owned(), has_key)).into()
    }

    pub(crate) async fn an_unknown_group_has_none(store: &Subject) {
        for group in unusual_keys() {
            assert_eq!(devices(store, &group).await, set([]), "{group:?}");
        }
    }

    pub(crate) async fn all_of_a_group_are_listed_with_their_flag(store: &Subject) {
        store.set_sender_key_status("1@g.us", &[("a:1@s", true), ("b@s", false)]).await.unwrap();
        store.set_sender_key_status("1@g.us", &[("c:9@lid", true)]).await.unwrap();
        assert_eq!(devices(store, "1@g.us").await, set([("a:1@s", true), ("b@s", false), ("c:9@lid", true)]));
        store.set_sender_key_status("1@g.us", &[("a:1@s", false), ("b@s", true)]).await.unwrap();
        assert_eq!(devices(store, "1@g.us").await, set([("a:1@s", false), ("b@s", true), ("c:9@lid", true)]));
    }

    pub(crate) async fn groups_and_devices_go_by_their_exact_names(store: &Subject) {
        let keys = unusual_keys();
        for (at, key) in keys.iter().enumerate() {
            let entries: Vec<_> = keys.iter().map(|device| (device.as_str(), device.len() % 2 == at % 2)).collect();
            store.set_sender_key_status(key, &entries).await.unwrap();
        }
        for (at, key) in keys.iter().enumerate() {
            let expected = keys.iter().map(|device| (device.clone(), device.len() % 2 == at % 2)).collect();
            assert_eq!(devices(store, key).await, expected, "{key:?}");
        }
    }

    pub(crate) async fn of_two_entries_of_a_batch_the_later_wins(store: &Subject) {
        store.set_sender_key_status("1@g.us", &[("a", true), ("b", true), ("a", false)]).await.unwrap();
        assert_eq!(devices(store, "1@g.us").await, set([("a", false), ("b", true)]));
    }

    pub(crate) async fn an_empty_batch_changes_nothing(store: &Subject) {
        store.set_sender_key_status("1@g.us", &[]).await.unwrap();
        assert_eq!(devices(store, "1@g.us").await, set([]));
        store.set_sender_key_status("1@g.us", &[("a", true)]).await.unwrap();
        store.set_sender_key_status("1@g.us", &[]).await.unwrap();
        store.delete_sender_key_device_rows(&[]).await.unwrap();
        assert_eq!(devices(store, "1@g.us").await, set([("a", true)]));
    }

    pub(crate) async fn a_batch_may_have_ten_thousand_rows(store: &Subject) {
        let names: Vec<String> = (0..10_000).map(|at| format!("1555{at:05}:1@s.whatsapp.net")).collect();
        let entries: Vec<_> = names.iter().map(|name| (name.as_str(), name.contains('7'))).collect();
        store.set_sender_key_status("1@g.us", &entries).await.unwrap();
        let expected = entries.iter().map(|(device, has_key)| ((*device).to_owned(), *has_key)).collect();
        assert_eq!(devices(store, "1@g.us").await, expected);
        let all: Vec<_> = names.iter().map(String::as_str).collect();
        store.delete_sender_key_device_rows(&all[1..]).await.unwrap();
        assert_eq!(devices(store, "1@g.us").await, set([(all[0], false)]));
    }

    pub(crate) async fn deleting_devices_removes_them_from_every_group(store: &Subject) {
        for group in ["1@g.us", "2@g.us", "3@g.us"] {
            store.set_sender_key_status(group, &[("a:1@s", true), ("a:11@s", true), ("b@s", false)]).await.unwrap();
        }
        store.set_sender_key_status("4@g.us", &[("a:1@s", true)]).await.unwrap();
        store.delete_sender_key_device_rows(&["a:1@s", "absent@s"]).await.unwrap();
        for group in ["1@g.us", "2@g.us", "3@g.us"] {
            assert_eq!(devices(store, group).await, set([("a:11@s", true), ("b@s", false)]), "{group}");
        }
        assert_eq!(devices(store, "4@g.us").await, set([]));
    }

    pub(crate) async fn clearing_a_group_spares_the_others(store: &Subject) {
        store.clear_sender_key_devices("1@g.us").await.unwrap();
        for group in ["1@g.us", "2@g.us", "11@g.us"] {
            store.set_sender_key_status(group, &[("a@s", true), ("b@s", true)]).await.unwrap();
        }
        store.clear_sender_key_devices("1@g.us").await.unwrap();
        assert_eq!(devices(store, "1@g.us").await, set([]));
        for group in ["2@g.us", "11@g.us"] {
            assert_eq!(devices(store, group).await.len(), 2, "{group}");
        }
    }

    pub(crate) async fn concurrent_writers_lose_nothing(store: &Subject) {
        let write = |writer: u32| {
            let store = store.backend();
            async move {
                for at in 0..20 {
                    store.set_sender_key_status("1@g.us", &[(&format!("{writer}:{at}@s"), true)]).await.unwrap();
                    store.delete_sender_key_device_rows(&[&format!("{writer}:{}@s", at + 100)]).await.unwrap();
                }
            }
        };
        for writer in (0..8).map(|writer| tokio::spawn(write(writer))).collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        assert_eq!(devices(store, "1@g.us").await.len(), 160);
    }

    pub(crate) async fn clearing_all_leaves_no_group(store: &Subject) {
        store.clear_all_sender_key_devices().await.unwrap();
        for group in ["1@g.us", "2@g.us"] {
            store.set_sender_key_status(group, &[("a@s", true)]).await.unwrap();
        }
        store.put_sender_key("1@g.us:a", b"key").await.unwrap();
        store.clear_all_sender_key_devices().await.unwrap();
        for group in ["1@g.us", "2@g.us"] {
            assert_eq!(devices(store, group).await, set([]));
        }
        assert!(store.get_sender_key("1@g.us:a").await.unwrap().is_some(), "the sender keys themselves stay");
    }
}

pub(super) mod lid_mapping {
    use super::*;

    keyed_rules!(keyed::LID_MAPPING; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again);
    keyed_rules!(keyed::LID_MAPPING, Method::PutLidMappings; a_batch_stores_every_row,
        of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing, a_batch_may_have_ten_thousand_rows);

    pub(in crate::testing::rules) fn mapping(lid: &str, phone: &str, updated_at: i64) -> LidPnMappingEntry {
        LidPnMappingEntry {
            lid: lid.to_owned(),
            phone_number: phone.to_owned(),
            created_at: 1_600_000_000,
            updated_at,
            learning_source: "usync".to_owned(),
        }
    }

    pub(in crate::testing::rules) async fn lid_of(store: &Subject, phone: &str) -> Option<String> {
        let found = store.get_pn_mapping(phone).await.unwrap()?;
        assert_eq!(found.phone_number, phone);
        Some(found.lid)
    }

    pub(crate) async fn is_found_by_its_phone_number(store: &Subject) {
        let keys = unusual_keys();
        for (at, phone) in keys.iter().enumerate() {
            assert_eq!(lid_of(store, phone).await, None, "{phone:?} was not stored");
            store.put_lid_mapping(&mapping(&format!("10000{at}"), phone, 5)).await.unwrap();
        }
        for (at, phone) in keys.iter().enumerate() {
            assert_eq!(lid_of(store, phone).await, Some(format!("10000{at}")), "{phone:?}");
        }
        assert_eq!(lid_of(store, "100000").await, None, "a LID is not a phone number");
        assert!(store.get_lid_mapping("15550001111").await.unwrap().is_none(), "a phone number is not a LID");
    }

    pub(crate) async fn of_a_phone_number_is_the_newest(store: &Subject) {
        // Every later mapping is also the newest, so all stores agree.
        store.put_lid_mapping(&mapping("1", "555", 10)).await.unwrap();
        store.put_lid_mapping(&mapping("2", "555", 11)).await.unwrap();
        assert_eq!(lid_of(store, "555").await.as_deref(), Some("2"));
        store.put_lid_mapping(&mapping("1", "555", 12)).await.unwrap();
        assert_eq!(lid_of(store, "555").await.as_deref(), Some("1"));
        store.put_lid_mappings(&[mapping("3", "555", 13), mapping("4", "555", 14)]).await.unwrap();
        assert_eq!(lid_of(store, "555").await.as_deref(), Some("4"));
        assert_eq!(store.get_lid_mapping("2").await.unwrap().unwrap().phone_number, "555", "older ones stay");
    }

    pub(crate) async fn that_moved_to_another_number_leaves_the_old_one(store: &Subject) {
        store.put_lid_mapping(&mapping("1", "555", 10)).await.unwrap();
        store.put_lid_mapping(&mapping("1", "666", 11)).await.unwrap();
        assert_eq!(lid_of(store, "666").await.as_deref(), Some("1"));
        assert_eq!(lid_of(store, "555").await, None, "its only LID has another number now");
        assert_eq!(store.get_lid_mapping("1").await.unwrap().unwrap().phone_number, "666");
    }

    pub(crate) async fn all_are_listed(store: &Subject) {
        assert!(store.get_all_lid_mappings().await.unwrap().is_empty(), "there is none");
        for (lid, phone, updated_at) in [("1", "555", 10), ("2", "555", 11), ("3", "777", 12), ("1", "555", 13)] {
            store.put_lid_mapping(&mapping(lid, phone, updated_at)).await.unwrap();
        }
        let all = store.get_all_lid_mappings().await.unwrap();
        let mut all: Vec<_> = all.iter().map(|entry| (&*entry.lid, &*entry.phone_number, entry.updated_at)).collect();
        all.sort_unstable();
        assert_eq!(all, [("1", "555", 13), ("2", "555", 11), ("3", "777", 12)]);
    }
}

pub(super) mod base_key {
    use super::*;

    keyed_rules!(keyed::BASE_KEY; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again, deleting_removes_one_and_no_other);

    pub(crate) async fn is_the_same_only_byte_for_byte(store: &Subject) {
        store.save_base_key("a@s", "1", b"base key").await.unwrap();
        assert!(store.has_same_base_key("a@s", "1", b"base key").await.unwrap());
        for other in [&b"base keY"[..], b"base ke", b"base key\0", b""] {
            assert!(!store.has_same_base_key("a@s", "1", other).await.unwrap(), "{other:?}");
        }
        store.save_base_key("a@s", "1", b"another").await.unwrap();
        assert!(!store.has_same_base_key("a@s", "1", b"base key").await.unwrap(), "it was replaced");
        assert!(store.has_same_base_key("a@s", "1", b"another").await.unwrap());
        store.save_base_key("a@s", "2", b"").await.unwrap();
        assert!(store.has_same_base_key("a@s", "2", b"").await.unwrap(), "an empty base key is a base key too");
    }

    pub(crate) async fn goes_by_address_and_message(store: &Subject) {
        let keys = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("bc", "a"), ("a:b", "c"), ("a", "b:c")];
        for (at, (address, message)) in keys.into_iter().enumerate() {
            assert!(!store.has_same_base_key(address, message, &[at as u8]).await.unwrap());
            store.save_base_key(address, message, &[at as u8]).await.unwrap();
        }
        for (at, (address, message)) in keys.into_iter().enumerate() {
            assert!(store.has_same_base_key(address, message, &[at as u8]).await.unwrap(), "{address:?} {message:?}");
        }
        store.delete_base_key("a", "bc").await.unwrap();
        assert!(!store.has_same_base_key("a", "bc", &[0]).await.unwrap(), "it was deleted");
        assert!(store.has_same_base_key("ab", "c", &[1]).await.unwrap(), "only another base key was deleted");
    }
}

pub(super) mod device_list {
    use super::*;

    keyed_rules!(keyed::DEVICE_LIST; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again, deleting_removes_one_and_no_other);
    keyed_rules!(keyed::DEVICE_LIST, Method::UpdateDeviceLists; a_batch_stores_every_row,
        of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing, a_batch_may_have_ten_thousand_rows);
}

pub(super) mod group_metadata {
    use super::*;

    keyed_rules!(keyed::GROUP_METADATA; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again, deleting_removes_one_and_no_other);
}

pub(super) mod tc_token {
    use super::*;

    keyed_rules!(keyed::TC_TOKEN; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again, deleting_removes_one_and_no_other);

    const JID: &str = "100000000000001@lid";

    /// The token, its time, and the sender's time.
    async fn token(store: &Subject) -> Option<(Vec<u8>, i64, Option<i64>)> {
        let entry = store.get_tc_token(JID).await.unwrap()?;
        Some((entry.token, entry.token_timestamp, entry.sender_timestamp))
    }

    fn entry(token: &[u8], token_timestamp: i64, sender_timestamp: Option<i64>) -> TcTokenEntry {
        TcTokenEntry { token: token.to_vec(), token_timestamp, sender_timestamp }
    }

    pub(crate) async fn all_jids_are_listed(store: &Subject) {
        assert!(store.get_all_tc_token_jids().await.unwrap().is_empty(), "there is none");
        let keys = unusual_keys();
        for (at, jid) in keys.iter().enumerate() {
            match at % 3 {
                0 => store.put_tc_token(jid, &entry(b"t", 1, None)).await.unwrap(),
                1 => store.store_received_tc_token(jid, b"t", 1).await.unwrap(),
                _ => store.touch_tc_token_sender_timestamp(jid, 1).await.unwrap(),
            }
        }
        store.delete_tc_token(&keys[0]).await.unwrap();
        store.touch_tc_token_sender_timestamp(&keys[1], 2).await.unwrap();
        let mut listed = store.get_all_tc_token_jids().await.unwrap();
        listed.sort();
        let mut expected = keys[1..].to_vec();
        expected.sort();
        assert_eq!(listed, expected);
    }

    pub(crate) async fn touching_the_sender_time_makes_a_placeholder(store: &Subject) {
        store.touch_tc_token_sender_timestamp(JID, 100).await.unwrap();
        assert_eq!(token(store).await, Some((vec![], 100, Some(100))));
    }

    pub(crate) async fn touching_the_sender_time_keeps_the_token(store: &Subject) {
        store.put_tc_token(JID, &entry(b"token", 50, None)).await.unwrap();
        store.touch_tc_token_sender_timestamp(JID, 100).await.unwrap();
        assert_eq!(token(store).await, Some((b"token".to_vec(), 50, Some(100))));
    }

    pub(crate) async fn the_sender_time_never_goes_back(store: &Subject) {
        store.put_tc_token(JID, &entry(b"token", 50, Some(100))).await.unwrap();
        for (given, kept) in [(99, 100), (100, 100), (101, 101), (-5, 101)] {
            store.touch_tc_token_sender_timestamp(JID, given).await.unwrap();
            assert_eq!(token(store).await, Some((b"token".to_vec(), 50, Some(kept))));
        }
    }

    pub(crate) async fn a_received_one_replaces_one_that_is_not_newer(store: &Subject) {
        for (given, time, kept, kept_time) in [
            (b"1", 50, b"1", 50),
            (b"2", 49, b"1", 50),
            (b"3", 50, b"3", 50),
            (b"4", 51, b"4", 51),
            (b"5", -1, b"4", 51),
        ] {
            store.store_received_tc_token(JID, given, time).await.unwrap();
            assert_eq!(token(store).await, Some((kept.to_vec(), kept_time, None)));
        }
    }

    pub(crate) async fn a_received_one_replaces_any_placeholder(store: &Subject) {
        store.touch_tc_token_sender_timestamp(JID, 100).await.unwrap();
        store.store_received_tc_token(JID, b"older than the placeholder", 50).await.unwrap();
        assert_eq!(token(store).await, Some((b"older than the placeholder".to_vec(), 50, Some(100))));
    }

    pub(crate) async fn a_received_one_keeps_the_sender_time(store: &Subject) {
        store.put_tc_token(JID, &entry(b"token", 50, Some(70))).await.unwrap();
        store.store_received_tc_token(JID, b"newer", 60).await.unwrap();
        assert_eq!(token(store).await, Some((b"newer".to_vec(), 60, Some(70))));
        store.store_received_tc_token(JID, b"", 65).await.unwrap();
        assert_eq!(token(store).await, Some((vec![], 65, Some(70))), "an empty token is stored as well");
    }

    /// Tests every combination of ages, by the rule in upstream's documentation of `delete_expired_tc_tokens`.
    pub(crate) async fn expires_when_nothing_of_it_is_live(store: &Subject) {
        let mut kept = BTreeSet::new();
        let mut expired = 0;
        for (bytes, time) in [(&b""[..], 9), (b"", 10), (b"", 11), (b"t", 9), (b"t", 10), (b"t", 11)] {
            for sender in [None, Some(19), Some(20), Some(21)] {
                let jid = format!("{} {time} {sender:?}", bytes.len());
                store.put_tc_token(&jid, &entry(bytes, time, sender)).await.unwrap();
                if (!bytes.is_empty() && time >= 10) || sender.is_some_and(|sender| sender >= 20) {
                    kept.insert(jid);
                } else {
                    expired += 1;
                }
            }
        }
        assert_eq!(store.delete_expired_tc_tokens(10, 20).await.unwrap(), expired, "the number of deleted ones");
        assert_eq!(store.get_all_tc_token_jids().await.unwrap().into_iter().collect::<BTreeSet<_>>(), kept);
        assert_eq!(store.delete_expired_tc_tokens(10, 20).await.unwrap(), 0, "they are gone");
        assert_eq!(store.delete_expired_tc_tokens(FAR_FUTURE, FAR_FUTURE).await.unwrap(), kept.len() as u32);
        assert!(store.get_all_tc_token_jids().await.unwrap().is_empty());
    }

    pub(crate) async fn concurrent_writers_of_token_and_sender_time_lose_nothing(store: &Subject) {
        const WRITERS: i64 = 8;
        for round in 0..40 {
            store.delete_tc_token(JID).await.unwrap();
            let run = |writer: i64| {
                let store = store.backend();
                async move {
                    // A different order in every round.
                    let time = 1000 + (writer * 3 + round) % WRITERS;
                    if time % 2 == 0 {
                        store.touch_tc_token_sender_timestamp(JID, time).await.unwrap();
                    } else {
                        store.store_received_tc_token(JID, &time.to_be_bytes(), time).await.unwrap();
                    }
                }
            };
            let writers: Vec<_> = (0..WRITERS).map(|writer| tokio::spawn(run(writer))).collect();
            for writer in writers {
                writer.await.unwrap();
            }
            let (newest, sender) = (1000 + WRITERS - 1, 1000 + WRITERS - 2);
            assert_eq!(token(store).await, Some((newest.to_be_bytes().to_vec(), newest, Some(sender))));
        }
    }
}

pub(super) mod sent_message {
    use super::*;

    keyed_rules!(keyed::SENT_MESSAGE; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again);

    pub(crate) async fn is_taken_once(store: &Subject) {
        store.store_sent_message("c", "m", b"1").await.unwrap();
        store.store_sent_message("c", "n", b"2").await.unwrap();
        assert_eq!(store.take_sent_message("c", "m").await.unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(store.take_sent_message("c", "m").await.unwrap(), None, "it was taken");
        assert_eq!(
            store.take_sent_message("c", "n").await.unwrap().as_deref(),
            Some(&b"2"[..]),
            "only another was taken"
        );
        store.store_sent_message("c", "m", b"3").await.unwrap();
        assert_eq!(store.take_sent_message("c", "m").await.unwrap().as_deref(), Some(&b"3"[..]), "it was stored again");
    }

    pub(crate) async fn goes_by_chat_and_id(store: &Subject) {
        let keys = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("bc", "a"), ("a:b", "c"), ("a", "b:c")];
        for (at, (chat, id)) in keys.into_iter().enumerate() {
            store.store_sent_message(chat, id, &[at as u8]).await.unwrap();
        }
        for (at, (chat, id)) in keys.into_iter().enumerate() {
            assert_eq!(store.take_sent_message(chat, id).await.unwrap(), Some(vec![at as u8]), "{chat:?} {id:?}");
        }
    }

    pub(crate) async fn is_as_old_as_its_last_store(store: &Subject) {
        store.store_sent_message("c", "m", b"1").await.unwrap();
        let first = next_second().await;
        store.store_sent_message("c", "m", b"2").await.unwrap();
        let deleted = store.delete_expired_sent_messages(first).await.unwrap();
        assert_eq!(deleted, 0, "storing it again restarts its time");
        assert_eq!(store.take_sent_message("c", "m").await.unwrap().as_deref(), Some(&b"2"[..]));
    }

    pub(crate) async fn is_taken_by_exactly_one_of_many_at_once(store: &Subject) {
        const TAKERS: usize = 8;
        for round in 0..30 {
            let id = format!("message {round}");
            store.store_sent_message("c", &id, b"payload").await.unwrap();
            let start = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
            let take = || {
                let (store, id, start) = (store.backend(), id.clone(), start.clone());
                tokio::spawn(async move {
                    let _started = start.acquire().await;
                    store.take_sent_message("c", &id).await.unwrap()
                })
            };
            let takers: Vec<_> = (0..TAKERS).map(|_| take()).collect();
            tokio::task::yield_now().await;
            start.add_permits(TAKERS);
            let mut taken = vec![];
            for taker in takers {
                taken.extend(taker.await.unwrap());
            }
            assert_eq!(taken, [b"payload".to_vec()], "taken by {} of {TAKERS}", taken.len());
        }
    }

    pub(crate) async fn expires_when_it_is_older_than_the_cutoff(store: &Subject) {
        let before = wacore::time::now_secs();
        for id in ["1", "2", "3"] {
            store.store_sent_message("c", id, b"x").await.unwrap();
        }
        let now = wacore::time::now_secs();
        let deleted = store.delete_expired_sent_messages(before).await.unwrap();
        assert_eq!(deleted, 0, "they are as old as the cut-off, not older");
        assert_eq!(store.delete_expired_sent_messages(now - 1000).await.unwrap(), 0, "they are new");
        assert_eq!(store.delete_expired_sent_messages(0).await.unwrap(), 0, "they are new");
        assert_eq!(store.take_sent_message("c", "3").await.unwrap().as_deref(), Some(&b"x"[..]));
        assert_eq!(store.delete_expired_sent_messages(now + 1).await.unwrap(), 2, "they are older, and one was taken");
        assert_eq!(store.take_sent_message("c", "1").await.unwrap(), None, "it has expired");
    }
}

/// Waits until the clock shows the next second, and returns it.
async fn next_second() -> i64 {
    let now = wacore::time::now_secs();
    while wacore::time::now_secs() == now {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    wacore::time::now_secs()
}

pub(super) mod pending_inbound {
    use super::*;

    keyed_rules!(keyed::PENDING_INBOUND; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again, deleting_removes_one_and_no_other);
    keyed_rules!(keyed::PENDING_INBOUND, Method::StorePendingInboundBatch; a_batch_stores_every_row,
        of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing, a_batch_may_have_ten_thousand_rows);

    pub(crate) async fn stays_after_it_was_read(store: &Subject) {
        store.store_pending_inbound("c", "s", "m", b"message").await.unwrap();
        for _ in 0..3 {
            let found = store.get_pending_inbound("c", "s", "m").await.unwrap();
            assert_eq!(found.as_deref(), Some(&b"message"[..]), "reading does not remove it");
        }
    }

    pub(crate) async fn goes_by_chat_sender_and_id(store: &Subject) {
        for (at, (chat, sender, id)) in keyed::THREE_PARTS.into_iter().enumerate() {
            assert_eq!(store.get_pending_inbound(chat, sender, id).await.unwrap(), None, "{chat:?} {sender:?} {id:?}");
            store.store_pending_inbound(chat, sender, id, &[at as u8]).await.unwrap();
        }
        for (at, (chat, sender, id)) in keyed::THREE_PARTS.into_iter().enumerate() {
            assert_eq!(store.get_pending_inbound(chat, sender, id).await.unwrap(), Some(vec![at as u8]));
        }
    }

    pub(crate) async fn is_as_old_as_its_last_store(store: &Subject) {
        store.store_pending_inbound("c", "s", "1", b"x").await.unwrap();
        store.store_pending_inbound("c", "s", "2", b"x").await.unwrap();
        let first = next_second().await;
        store.store_pending_inbound("c", "s", "1", b"x").await.unwrap();
        let row = PendingInboundRow { chat: "c", sender: "s", id: "2", message: b"x" };
        store.store_pending_inbound_batch(&[row]).await.unwrap();
        let deleted = store.delete_expired_pending_inbound(first).await.unwrap();
        assert_eq!(deleted, 0, "storing it again restarts its time");
        assert!(store.get_pending_inbound("c", "s", "1").await.unwrap().is_some());
    }

    pub(crate) async fn a_batch_of_keys_deletes_exactly_these(store: &Subject) {
        let rows = keyed::THREE_PARTS.map(|(chat, sender, id)| PendingInboundRow { chat, sender, id, message: b"x" });
        let keys = keyed::THREE_PARTS.map(|(chat, sender, id)| PendingInboundKey { chat, sender, id });
        let absent = PendingInboundKey { chat: "x", sender: "y", id: "z" };
        store.store_pending_inbound_batch(&rows).await.unwrap();
        store.delete_pending_inbound_batch(&[]).await.unwrap();
        store.delete_pending_inbound_batch(&[keys[1], absent, keys[4], keys[1]]).await.unwrap();
        for (at, (chat, sender, id)) in keyed::THREE_PARTS.into_iter().enumerate() {
            let found = store.get_pending_inbound(chat, sender, id).await.unwrap();
            assert_eq!(found.is_some(), at != 1 && at != 4, "{chat:?} {sender:?} {id:?}");
        }
        let ids: Vec<String> = (0..10_000).map(|at| format!("m{at}")).collect();
        let rows: Vec<_> =
            ids.iter().map(|id| PendingInboundRow { chat: "c", sender: "s", id, message: b"x" }).collect();
        let keys: Vec<_> = ids.iter().map(|id| PendingInboundKey { chat: "c", sender: "s", id }).collect();
        store.store_pending_inbound_batch(&rows).await.unwrap();
        store.delete_pending_inbound_batch(&keys[1..]).await.unwrap();
        for (at, id) in ids.iter().enumerate().step_by(499) {
            assert_eq!(store.get_pending_inbound("c", "s", id).await.unwrap().is_some(), at == 0, "of 10 000: {at}");
        }
    }

    pub(crate) async fn expires_when_it_is_older_than_the_cutoff(store: &Subject) {
        let row = |id| PendingInboundRow { chat: "c", sender: "s", id, message: b"x" };
        let before = wacore::time::now_secs();
        store.store_pending_inbound("c", "s", "1", b"x").await.unwrap();
        store.store_pending_inbound_batch(&[row("2"), row("3")]).await.unwrap();
        let now = wacore::time::now_secs();
        let deleted = store.delete_expired_pending_inbound(before).await.unwrap();
        assert_eq!(deleted, 0, "they are as old as the cut-off, not older");
        assert_eq!(store.delete_expired_pending_inbound(now - 1000).await.unwrap(), 0, "they are new");
        store.delete_pending_inbound("c", "s", "3").await.unwrap();
        assert_eq!(store.delete_expired_pending_inbound(now + 1).await.unwrap(), 2, "they are older, and one is gone");
        assert_eq!(store.get_pending_inbound("c", "s", "1").await.unwrap(), None, "it has expired");
    }
}
