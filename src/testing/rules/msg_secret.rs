//! The rules of `MsgSecretStore`.

use wacore::store::traits::MsgSecretEntry;

use super::keyed::{self, keyed_rules};
use crate::method::Method;
use crate::testing::Subject;
use crate::testing::arguments::FAR_FUTURE;

pub(super) mod message_secret {
    use super::*;

    keyed_rules!(keyed::MESSAGE_SECRET; is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
        is_replaced_when_stored_again);
    keyed_rules!(keyed::MESSAGE_SECRET, Method::PutMsgSecrets; a_batch_stores_every_row,
        of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing, a_batch_may_have_ten_thousand_rows);

    pub(in crate::testing::rules) fn entry(id: &str, secret: u8, expires_at: i64, message_ts: i64) -> MsgSecretEntry {
        MsgSecretEntry {
            chat: "120363@g.us".into(),
            sender: "1555@s.whatsapp.net".into(),
            msg_id: id.into(),
            secret: [secret; 32],
            expires_at,
            message_ts,
        }
    }

    async fn secret(store: &Subject, id: &str) -> Option<(u8, i64)> {
        let (chat, sender) = ("120363@g.us", "1555@s.whatsapp.net");
        let found = store.get_msg_secret_with_ts(chat, sender, id).await.unwrap();
        let alone = store.get_msg_secret(chat, sender, id).await.unwrap();
        assert_eq!(alone, found.clone().map(|(secret, _)| secret), "both methods return the same secret");
        found.map(|(secret, time)| {
            assert_eq!(secret, [secret[0]; 32]);
            (secret[0], time)
        })
    }

    /// The deadline of a secret, found by sweeping: `None` if it never expires.
    async fn deadline(store: &Subject, id: &str, candidates: &[i64]) -> Option<i64> {
        for cutoff in candidates {
            store.delete_expired_msg_secrets(*cutoff).await.unwrap();
            if secret(store, id).await.is_none() {
                return Some(*cutoff);
            }
        }
        None
    }

    pub(crate) async fn goes_by_chat_sender_and_id(store: &Subject) {
        for (at, (chat, sender, id)) in keyed::THREE_PARTS.into_iter().enumerate() {
            assert_eq!(store.get_msg_secret(chat, sender, id).await.unwrap(), None, "{chat:?} {sender:?} {id:?}");
            store.put_msg_secret(chat, sender, id, &[at as u8; 32]).await.unwrap();
        }
        for (at, (chat, sender, id)) in keyed::THREE_PARTS.into_iter().enumerate() {
            assert_eq!(store.get_msg_secret(chat, sender, id).await.unwrap(), Some(vec![at as u8; 32]));
        }
    }

    pub(crate) async fn is_counted(store: &Subject) {
        assert_eq!(store.put_msg_secrets(vec![]).await.unwrap(), 0);
        assert_eq!(store.put_msg_secrets(vec![entry("1", 1, 0, 0), entry("2", 2, 0, 0)]).await.unwrap(), 2);
        let again = vec![entry("1", 3, 0, 0), entry("3", 4, 0, 0)];
        assert_eq!(store.put_msg_secrets(again).await.unwrap(), 2, "replaced rows count as well");
    }

    pub(crate) async fn comes_with_the_time_of_its_message(store: &Subject) {
        store.put_msg_secrets(vec![entry("1", 1, 0, 1_700_000_000), entry("2", 2, 5, 0)]).await.unwrap();
        store.put_msg_secret("120363@g.us", "1555@s.whatsapp.net", "3", &[3; 32]).await.unwrap();
        assert_eq!(secret(store, "1").await, Some((1, 1_700_000_000)));
        assert_eq!(secret(store, "2").await, Some((2, 0)));
        assert_eq!(secret(store, "3").await, Some((3, 0)));
        assert_eq!(secret(store, "4").await, None);
    }

    pub(crate) async fn keeps_the_later_time_of_its_message(store: &Subject) {
        for (secret_number, given, kept) in [(1, 50, 50), (2, 40, 50), (3, 0, 50), (4, 60, 60)] {
            store.put_msg_secrets(vec![entry("1", secret_number, 0, given)]).await.unwrap();
            assert_eq!(secret(store, "1").await, Some((secret_number, kept)), "the secret itself is replaced");
        }
        store.put_msg_secrets(vec![entry("2", 1, 0, 7), entry("2", 2, 0, 9), entry("2", 3, 0, 8)]).await.unwrap();
        assert_eq!(secret(store, "2").await, Some((3, 9)), "within one batch as well");
    }

    pub(crate) async fn keeps_the_later_deadline(store: &Subject) {
        store.put_msg_secrets(vec![entry("1", 1, 100, 0)]).await.unwrap();
        store.put_msg_secrets(vec![entry("1", 2, 90, 0)]).await.unwrap();
        assert_eq!(deadline(store, "1", &[90, 99, 100]).await, Some(100), "an earlier one does not shorten it");
        store.put_msg_secrets(vec![entry("1", 1, 100, 0)]).await.unwrap();
        store.put_msg_secrets(vec![entry("1", 2, 110, 0)]).await.unwrap();
        assert_eq!(deadline(store, "1", &[100, 109, 110]).await, Some(110), "a later one extends it");
        store.put_msg_secrets(vec![entry("2", 1, 110, 0), entry("2", 1, 120, 0), entry("2", 1, 115, 0)]).await.unwrap();
        assert_eq!(deadline(store, "2", &[115, 119, 120]).await, Some(120), "within one batch as well");
    }

    pub(crate) async fn a_deadline_of_zero_is_never_and_wins(store: &Subject) {
        store.put_msg_secrets(vec![entry("1", 1, 100, 0), entry("2", 1, 0, 0)]).await.unwrap();
        store.put_msg_secrets(vec![entry("1", 2, 0, 0), entry("2", 2, 100, 0)]).await.unwrap();
        store.put_msg_secret("120363@g.us", "1555@s.whatsapp.net", "3", &[3; 32]).await.unwrap();
        for id in ["1", "2", "3"] {
            assert_eq!(deadline(store, id, &[0, 100, FAR_FUTURE]).await, None, "{id} never expires");
        }
    }

    pub(crate) async fn expires_at_its_deadline_and_not_before(store: &Subject) {
        let rows =
            vec![entry("never", 1, 0, 0), entry("past", 1, -5, 0), entry("99", 1, 99, 0), entry("100", 1, 100, 9)];
        store.put_msg_secrets(rows).await.unwrap();
        assert_eq!(store.delete_expired_msg_secrets(-6).await.unwrap(), 0);
        assert_eq!(store.delete_expired_msg_secrets(98).await.unwrap(), 1, "negative deadlines expire too");
        assert_eq!(store.delete_expired_msg_secrets(99).await.unwrap(), 1);
        assert_eq!(secret(store, "100").await, Some((1, 9)), "its deadline is a second later");
        assert_eq!(store.delete_expired_msg_secrets(100).await.unwrap(), 1);
        assert_eq!(store.delete_expired_msg_secrets(FAR_FUTURE).await.unwrap(), 0);
        assert_eq!(secret(store, "never").await, Some((1, 0)));
        for id in ["past", "99", "100"] {
            assert_eq!(secret(store, id).await, None, "{id}");
        }
    }

    pub(crate) async fn concurrent_writers_keep_the_latest_times(store: &Subject) {
        const WRITERS: i64 = 8;
        for round in 0..40 {
            let id = format!("{round}");
            let write = |writer: i64| {
                let (store, id) = (store.backend(), id.clone());
                async move {
                    // A different order in every round.
                    let time = 1000 + (writer * 3 + round) % WRITERS;
                    store.put_msg_secrets(vec![entry(&id, 1, time, time)]).await.unwrap();
                }
            };
            let writers: Vec<_> = (0..WRITERS).map(|writer| tokio::spawn(write(writer))).collect();
            for writer in writers {
                writer.await.unwrap();
            }
            assert_eq!(secret(store, &id).await, Some((1, 1000 + WRITERS - 1)), "the latest of {WRITERS} times");
        }
        assert_eq!(deadline(store, "7", &[1000 + WRITERS - 2, 1000 + WRITERS - 1]).await, Some(1000 + WRITERS - 1));
    }
}
