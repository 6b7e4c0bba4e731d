//! The rules for two accounts in one place.

use super::contents;
use crate::method::Method;
use crate::testing::Subject;
use crate::testing::arguments::{Arguments, Key};

pub(super) mod account {
    use super::*;

    pub(crate) async fn sees_nothing_of_what_another_stores(one: &Subject, other: &Subject) {
        let rows = contents::rows();
        let untouched = contents::read(&**one, &rows).await;
        other.create().await.unwrap();
        contents::store(&**other, &rows).await;
        contents::assert_same(&untouched, &contents::read(&**one, &rows).await, "once another account stored it");
        let taken = one.take_sent_message(&rows[0].chat, &rows[0].message_id).await.unwrap();
        assert_eq!(taken, None, "take_sent_message takes what another account stored");
        assert!(!one.exists().await.unwrap(), "the device of another account");
    }

    pub(crate) async fn keeps_what_another_deletes(one: &Subject, other: &Subject) {
        let rows = contents::rows();
        for store in [one, other] {
            store.create().await.unwrap();
            contents::store(&**store, &rows).await;
        }
        let before = contents::read(&**one, &rows).await;
        contents::delete(&**other, &rows).await;
        contents::assert_same(&before, &contents::read(&**one, &rows).await, "once another account deleted its own");
        let taken = one.take_sent_message(&rows[0].chat, &rows[0].message_id).await.unwrap();
        assert!(taken.is_some(), "take_sent_message or a sweep of another account took it");
        let found = contents::read(&**other, &rows).await;
        let session = found.iter().find(|(method, _)| *method == Method::GetSession).unwrap();
        assert_eq!(session.1, crate::testing::Value::Nothing, "the other account deleted its own");
    }

    pub(crate) async fn keeps_its_own_value_under_a_shared_key(one: &Subject, other: &Subject) {
        let row = |number| [Arguments::numbered(Key { id: 4, text: "1555:4@s.whatsapp.net" }, number)];
        for store in [one, other] {
            store.create().await.unwrap();
        }
        contents::store(&**one, &row(4)).await;
        let before = contents::read(&**one, &row(4)).await;
        contents::store(&**other, &row(7)).await;
        contents::assert_same(&before, &contents::read(&**one, &row(4)).await, "once another account stored its own");
        let taken = one.take_sent_message(&row(4)[0].chat, &row(4)[0].message_id).await.unwrap();
        assert_eq!(taken.as_deref(), Some(&row(4)[0].sent_message[..]));
    }
}
