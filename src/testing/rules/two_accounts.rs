//! The rules of two accounts in one place.

use super::everything;
use crate::method::Method;
use crate::testing::Subject;
use crate::testing::arguments::{Arguments, Key};

pub(super) mod account {
    use super::*;

    pub(crate) async fn sees_nothing_of_what_another_stores(one: &Subject, other: &Subject) {
        let rows = everything::rows();
        let untouched = everything::read(&**one, &rows).await;
        other.create().await.unwrap();
        everything::store(&**other, &rows).await;
        everything::assert_same(&untouched, &everything::read(&**one, &rows).await, "once another account stored it");
        let taken = one.take_sent_message(&rows[0].chat, &rows[0].message_id).await.unwrap();
        assert_eq!(taken, None, "take_sent_message takes what another account stored");
        assert!(!one.exists().await.unwrap(), "the device of another account");
    }

    pub(crate) async fn keeps_what_another_deletes(one: &Subject, other: &Subject) {
        let rows = everything::rows();
        for store in [one, other] {
            store.create().await.unwrap();
            everything::store(&**store, &rows).await;
        }
        let before = everything::read(&**one, &rows).await;
        everything::delete(&**other, &rows).await;
        everything::assert_same(
            &before,
            &everything::read(&**one, &rows).await,
            "once another account deleted its own",
        );
        let taken = one.take_sent_message(&rows[0].chat, &rows[0].message_id).await.unwrap();
        assert!(taken.is_some(), "take_sent_message or a sweep of another account took it");
        let found = everything::read(&**other, &rows).await;
        let session = found.iter().find(|(method, _)| *method == Method::GetSession).unwrap();
        assert_eq!(session.1, crate::testing::Value::Nothing, "the other account deleted its own");
    }

    pub(crate) async fn keeps_its_own_value_under_a_shared_key(one: &Subject, other: &Subject) {
        let row = |number| [Arguments::numbered(Key { id: 4, text: "1555:4@s.whatsapp.net" }, number)];
        for store in [one, other] {
            store.create().await.unwrap();
        }
        everything::store(&**one, &row(4)).await;
        let before = everything::read(&**one, &row(4)).await;
        everything::store(&**other, &row(7)).await;
        everything::assert_same(
            &before,
            &everything::read(&**one, &row(4)).await,
            "once another account stored its own",
        );
        let taken = one.take_sent_message(&row(4)[0].chat, &row(4)[0].message_id).await.unwrap();
        assert_eq!(taken.as_deref(), Some(&row(4)[0].sent_message[..]));
    }
}
