//! The rules of `SignalStore`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::keyed::{self, keyed_rules};
use crate::method::Method;
use crate::testing::Subject;

pub(super) mod identity {
    use super::*;

    keyed_rules!(keyed::IDENTITY; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again, deleting_removes_one_and_no_other);
    keyed_rules!(keyed::IDENTITY, Method::PutIdentitiesBatch; a_batch_stores_every_row,
        of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing, a_batch_may_have_ten_thousand_rows);

    pub(crate) async fn is_kept_apart_from_the_session_of_the_same_address(store: &Subject) {
        let address = "15550001111:2@s.whatsapp.net";
        store.put_identity(address, [1; 32]).await.unwrap();
        assert_eq!(store.get_session(address).await.unwrap(), None, "only an identity was stored");
        assert!(!store.has_session(address).await.unwrap(), "only an identity was stored");
        store.put_session(address, &[2; 32]).await.unwrap();
        assert_eq!(store.load_identity(address).await.unwrap(), Some([1; 32]));
        store.delete_session(address).await.unwrap();
        assert_eq!(store.load_identity(address).await.unwrap(), Some([1; 32]), "only the session was deleted");
        store.put_session(address, &[3; 32]).await.unwrap();
        store.delete_identity(address).await.unwrap();
        assert_eq!(store.get_session(address).await.unwrap().as_deref(), Some(&[3; 32][..]));
    }
}

pub(super) mod session {
    use super::*;

    keyed_rules!(keyed::SESSION; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again, deleting_removes_one_and_no_other);
    keyed_rules!(keyed::SESSION, Method::PutSessionsBatch; a_batch_stores_every_row,
        of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing, a_batch_may_have_ten_thousand_rows,
        a_batch_is_seen_whole);

    pub(crate) async fn exists_exactly_if_it_can_be_read(store: &Subject) {
        for (address, record) in [("a@s", &b""[..]), ("b:1@s", b"record")] {
            assert!(!store.has_session(address).await.unwrap(), "nothing was stored");
            store.put_session(address, record).await.unwrap();
            assert!(store.has_session(address).await.unwrap(), "a session of {} bytes was stored", record.len());
            assert!(!store.has_session("a:1@s").await.unwrap(), "only others were stored");
            store.delete_session(address).await.unwrap();
            assert!(!store.has_session(address).await.unwrap(), "it was deleted");
        }
    }

    /// A caller may drop a call at any point. Afterwards the store holds all of the batch or nothing.
    pub(crate) async fn a_batch_that_is_dropped_half_way_is_stored_whole_or_not_at_all(store: &Subject) {
        let address = |at: usize| format!("1555{at:04}@s.whatsapp.net");
        for attempt in 0..20u8 {
            let batch: Vec<_> = (0..300).map(|at| (address(at).into(), Bytes::from(vec![attempt; 300]))).collect();
            // From one poll of the call up to enough time for it to end.
            let time = Duration::from_micros(u64::from(attempt).pow(2) * 25);
            let _ = tokio::time::timeout(time, store.put_sessions_batch(&batch)).await;
            // The store may still carry out the call while the test reads.
            let mut before = None;
            loop {
                let mut found = BTreeMap::<Option<Bytes>, usize>::new();
                for at in 0..300 {
                    *found.entry(store.get_session(&address(at)).await.unwrap()).or_default() += 1;
                }
                if found.len() == 1 {
                    break;
                }
                assert_ne!(before.as_ref(), Some(&found), "rows of different batches remain");
                before = Some(found);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    pub(crate) async fn concurrent_writers_lose_nothing_and_mix_nothing(store: &Subject) {
        const WRITERS: u8 = 8;
        let write = |writer: u8| {
            let store = store.backend();
            async move {
                for at in 0..20u8 {
                    store.put_session(&format!("{writer}:{at}@s"), &[writer; 50]).await.unwrap();
                    store.put_session("shared@s", &[writer; 700]).await.unwrap();
                    let shared = store.get_session("shared@s").await.unwrap().unwrap();
                    let whole = shared.len() == 700 && shared.iter().all(|byte| *byte == shared[0]);
                    assert!(whole, "a mixture of two sessions");
                    let batch = [(format!("{writer}:{at}@t").into(), Bytes::from(vec![writer; 60]))];
                    store.put_sessions_batch(&batch).await.unwrap();
                }
            }
        };
        let writers: Vec<_> = (0..WRITERS).map(|writer| tokio::spawn(write(writer))).collect();
        for writer in writers {
            writer.await.unwrap();
        }
        for writer in 0..WRITERS {
            for at in 0..20 {
                let single = store.get_session(&format!("{writer}:{at}@s")).await.unwrap();
                assert_eq!(single.as_deref(), Some(&[writer; 50][..]));
                let batched = store.get_session(&format!("{writer}:{at}@t")).await.unwrap();
                assert_eq!(batched.as_deref(), Some(&[writer; 60][..]));
            }
        }
    }
}

pub(super) mod signal_state {
    use super::*;

    pub(crate) async fn of_a_user_is_found_by_a_session_or_an_identity(store: &Subject) {
        for user in ["1555", "1000", "2000", "3000"] {
            assert!(!store.has_signal_state_for_user(user).await.unwrap(), "nothing of {user} was stored");
        }
        store.put_session("1555@s.whatsapp.net", b"x").await.unwrap();
        store.put_session("1000:17@lid", b"x").await.unwrap();
        store.put_identity("2000@s.whatsapp.net", [1; 32]).await.unwrap();
        store.put_identity("3000:3@lid", [1; 32]).await.unwrap();
        for user in ["1555", "1000", "2000", "3000"] {
            assert!(store.has_signal_state_for_user(user).await.unwrap(), "of {user} something was stored");
        }
        store.put_sessions_batch(&[("4000@lid".into(), Bytes::from_static(b"x"))]).await.unwrap();
        store.put_identities_batch(&[("5000:1@lid".into(), [1; 32])]).await.unwrap();
        for user in ["4000", "5000"] {
            assert!(store.has_signal_state_for_user(user).await.unwrap(), "of {user} something was stored in a batch");
        }
    }

    pub(crate) async fn of_a_user_is_not_that_of_one_with_a_longer_or_shorter_number(store: &Subject) {
        store.put_session("15551@s.whatsapp.net", b"x").await.unwrap();
        store.put_identity("15552:1@s.whatsapp.net", [1; 32]).await.unwrap();
        for user in ["1555", "155", "155511", "155522", "5551", "15553", "s.whatsapp.net", ""] {
            assert!(!store.has_signal_state_for_user(user).await.unwrap(), "nothing of {user:?} was stored");
        }
    }

    pub(crate) async fn of_a_user_is_gone_with_the_last_session_and_identity(store: &Subject) {
        store.put_session("1555@s", b"x").await.unwrap();
        store.put_session("1555:1@s", b"x").await.unwrap();
        store.put_identity("1555@s", [1; 32]).await.unwrap();
        for delete in [Method::DeleteSession, Method::DeleteIdentity] {
            assert!(store.has_signal_state_for_user("1555").await.unwrap(), "something is left");
            match delete {
                Method::DeleteSession => store.delete_session("1555@s").await.unwrap(),
                _ => store.delete_identity("1555@s").await.unwrap(),
            }
        }
        assert!(store.has_signal_state_for_user("1555").await.unwrap(), "the second session is left");
        store.delete_session("1555:1@s").await.unwrap();
        assert!(!store.has_signal_state_for_user("1555").await.unwrap(), "all of it was deleted");
    }

    pub(crate) async fn does_not_come_from_an_address_without_a_server(store: &Subject) {
        store.put_session("1555", b"x").await.unwrap();
        store.put_identity("1666", [1; 32]).await.unwrap();
        store.put_sender_key("1777@g.us:1888", b"x").await.unwrap();
        for user in ["1555", "1666", "1777", "1888"] {
            assert!(!store.has_signal_state_for_user(user).await.unwrap(), "{user}");
        }
    }
}

pub(super) mod prekey {
    use super::*;

    keyed_rules!(keyed::PREKEY; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again, deleting_removes_one_and_no_other);
    keyed_rules!(keyed::PREKEY, Method::StorePrekeysBatch; a_batch_stores_every_row,
        of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing, a_batch_may_have_ten_thousand_rows);

    pub(crate) async fn several_are_loaded_at_once_and_missing_ones_left_out(store: &Subject) {
        for id in [3, 1, 7, 0] {
            store.store_prekey(id, &[id as u8; 9], id % 2 == 0).await.unwrap();
        }
        let found: BTreeMap<_, _> = store.load_prekeys_batch(&[7, 2, 1, 0, 8]).await.unwrap().into_iter().collect();
        assert_eq!(found, [0, 1, 7].map(|id| (id, Bytes::from(vec![id as u8; 9]))).into());
        assert!(store.load_prekeys_batch(&[]).await.unwrap().is_empty(), "none was asked for");
        assert!(store.load_prekeys_batch(&[2, 8]).await.unwrap().is_empty(), "none of them was stored");
        let many: Vec<u32> = (0..10_000).collect();
        assert_eq!(store.load_prekeys_batch(&many).await.unwrap().len(), 4, "4 of 10 000 requested prekeys exist");
    }

    pub(crate) async fn marking_as_uploaded_changes_no_key_and_brings_none_back(store: &Subject) {
        store
            .store_prekeys_batch(&[(1, Bytes::from_static(b"one")), (2, Bytes::from_static(b"two"))], false)
            .await
            .unwrap();
        store.remove_prekey(2).await.unwrap();
        store.mark_prekeys_uploaded(&[1, 2, 3]).await.unwrap();
        store.mark_prekeys_uploaded(&[]).await.unwrap();
        assert_eq!(store.load_prekey(1).await.unwrap().as_deref(), Some(&b"one"[..]));
        for id in [2, 3] {
            assert_eq!(store.load_prekey(id).await.unwrap(), None, "marking must not insert");
        }
        assert_eq!(store.load_prekeys_batch(&[1, 2, 3]).await.unwrap().len(), 1, "marking must not insert");
        assert_eq!(store.get_max_prekey_id().await.unwrap(), 1, "marking must not insert");
        let many: Vec<u32> = (0..10_000).collect();
        store.mark_prekeys_uploaded(&many).await.unwrap();
        assert_eq!(store.load_prekeys_batch(&many).await.unwrap().len(), 1, "marking must not insert");
    }

    /// The only race that upstream's documentation mentions.
    pub(crate) async fn marking_as_uploaded_brings_none_back_that_is_just_removed(store: &Subject) {
        const KEYS: u32 = 60;
        let keys: Vec<_> = (0..KEYS).map(|id| (id, Bytes::from(vec![id as u8; 9]))).collect();
        let ids: Vec<_> = (0..KEYS).collect();
        for _ in 0..30 {
            store.store_prekeys_batch(&keys, false).await.unwrap();
            let (marking, ids) = (store.backend(), ids.clone());
            let marking = tokio::spawn(async move { marking.mark_prekeys_uploaded(&ids).await.unwrap() });
            let removing = store.backend();
            let removing = tokio::spawn(async move {
                for id in 0..KEYS {
                    removing.remove_prekey(id).await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
            marking.await.unwrap();
            removing.await.unwrap();
            assert_eq!(store.get_max_prekey_id().await.unwrap(), 0, "a removed prekey is back");
        }
    }

    pub(crate) async fn the_highest_id_is_the_highest_of_those_stored(store: &Subject) {
        assert_eq!(store.get_max_prekey_id().await.unwrap(), 0, "there is none");
        for (id, highest) in [(5, 5), (3, 5), (16_777_215, 16_777_215)] {
            store.store_prekey(id, b"x", false).await.unwrap();
            assert_eq!(store.get_max_prekey_id().await.unwrap(), highest);
        }
        store.remove_prekey(16_777_215).await.unwrap();
        assert_eq!(store.get_max_prekey_id().await.unwrap(), 5, "the highest was removed");
        store.store_prekeys_batch(&[(9, Bytes::from_static(b"x")), (8, Bytes::from_static(b"x"))], true).await.unwrap();
        assert_eq!(store.get_max_prekey_id().await.unwrap(), 9, "a batch was stored");
        store.store_signed_prekey(99, b"x").await.unwrap();
        assert_eq!(store.get_max_prekey_id().await.unwrap(), 9, "signed prekeys do not count");
    }
}

pub(super) mod signed_prekey {
    use super::*;

    keyed_rules!(keyed::SIGNED_PREKEY; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again, deleting_removes_one_and_no_other);

    pub(crate) async fn all_are_listed(store: &Subject) {
        assert!(store.load_all_signed_prekeys().await.unwrap().is_empty(), "there is none");
        for id in [5, 1, 9] {
            store.store_signed_prekey(id, b"old").await.unwrap();
            store.store_signed_prekey(id, &[id as u8; 70]).await.unwrap();
        }
        store.remove_signed_prekey(1).await.unwrap();
        let mut all = store.load_all_signed_prekeys().await.unwrap();
        all.sort();
        assert_eq!(all, [(5, vec![5; 70]), (9, vec![9; 70])]);
    }

    pub(crate) async fn is_kept_apart_from_the_prekey_of_the_same_id(store: &Subject) {
        store.store_signed_prekey(1, b"signed").await.unwrap();
        assert_eq!(store.load_prekey(1).await.unwrap(), None, "only a signed prekey was stored");
        store.store_prekey(1, b"one-time", false).await.unwrap();
        assert_eq!(store.load_signed_prekey(1).await.unwrap().as_deref(), Some(&b"signed"[..]));
        store.remove_prekey(1).await.unwrap();
        assert_eq!(store.load_all_signed_prekeys().await.unwrap(), [(1, b"signed".to_vec())]);
    }
}

pub(super) mod sender_key {
    use super::*;

    keyed_rules!(keyed::SENDER_KEY; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again, deleting_removes_one_and_no_other);
    keyed_rules!(keyed::SENDER_KEY, Method::PutSenderKeysBatch; a_batch_stores_every_row,
        of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing, a_batch_may_have_ten_thousand_rows,
        a_batch_is_seen_whole);

    pub(crate) async fn is_kept_apart_from_the_session_of_the_same_address(store: &Subject) {
        store.put_sender_key("a@s", b"sender key").await.unwrap();
        assert_eq!(store.get_session("a@s").await.unwrap(), None, "only a sender key was stored");
        store.put_session("a@s", b"session").await.unwrap();
        store.delete_session("a@s").await.unwrap();
        assert_eq!(store.get_sender_key("a@s").await.unwrap().as_deref(), Some(&b"sender key"[..]));
    }
}
