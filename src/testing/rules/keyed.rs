//! The rules for every record that is stored and read by its key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wacore::appstate::hash::HashState;
use wacore::store::traits::Backend;

use crate::method::Method;
use crate::testing::Subject;
use crate::testing::arguments::{Arguments, Key, call};
use crate::testing::value::{ToValue, Value};

/// A kind of record: the methods for one row, and their answers.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    put: Method,
    get: Method,
    delete: Option<Method>,
    /// The answer of `get` after `put` with the same arguments.
    stored: fn(&Arguments) -> Value,
    /// The answer of `get` for a row that does not exist.
    absent: fn() -> Value,
}

const fn slot(put: Method, get: Method, stored: fn(&Arguments) -> Value) -> Slot {
    Slot { put, get, delete: None, stored, absent: || Value::Nothing }
}

pub(super) const IDENTITY: Slot =
    slot(Method::PutIdentity, Method::LoadIdentity, |row| row.identity_key.to_value()).deletes(Method::DeleteIdentity);
pub(super) const SESSION: Slot =
    slot(Method::PutSession, Method::GetSession, |row| row.session.to_value()).deletes(Method::DeleteSession);
pub(super) const PREKEY: Slot =
    slot(Method::StorePrekey, Method::LoadPrekey, |row| row.prekey.to_value()).deletes(Method::RemovePrekey);
pub(super) const SIGNED_PREKEY: Slot =
    slot(Method::StoreSignedPrekey, Method::LoadSignedPrekey, |row| row.signed_prekey.to_value())
        .deletes(Method::RemoveSignedPrekey);
pub(super) const SENDER_KEY: Slot =
    slot(Method::PutSenderKey, Method::GetSenderKey, |row| row.sender_key.to_value()).deletes(Method::DeleteSenderKey);
pub(super) const SYNC_KEY: Slot = slot(Method::SetSyncKey, Method::GetSyncKey, |row| row.sync_key.to_value());
pub(super) const COLLECTION_VERSION: Slot = slot(Method::SetVersion, Method::GetVersion, |row| row.version.to_value())
    .is_without(|| HashState::default().to_value());
pub(super) const MUTATION_MAC: Slot =
    slot(Method::PutMutationMacs, Method::GetMutationMac, |row| row.mac.value_mac.to_value())
        .deletes(Method::DeleteMutationMacs);
pub(super) const LID_MAPPING: Slot =
    slot(Method::PutLidMapping, Method::GetLidMapping, |row| row.lid_mapping.to_value());
pub(super) const BASE_KEY: Slot = slot(Method::SaveBaseKey, Method::HasSameBaseKey, |_| Value::Flag(true))
    .deletes(Method::DeleteBaseKey)
    .is_without(|| Value::Flag(false));
pub(super) const DEVICE_LIST: Slot =
    slot(Method::UpdateDeviceList, Method::GetDevices, |row| row.device_list.to_value()).deletes(Method::DeleteDevices);
pub(super) const GROUP_METADATA: Slot =
    slot(Method::PutGroupMetadata, Method::GetGroupMetadata, |row| row.group_metadata.to_value())
        .deletes(Method::DeleteGroupMetadata);
pub(super) const TC_TOKEN: Slot =
    slot(Method::PutTcToken, Method::GetTcToken, |row| row.tc_token.to_value()).deletes(Method::DeleteTcToken);
pub(super) const SENT_MESSAGE: Slot =
    slot(Method::StoreSentMessage, Method::TakeSentMessage, |row| row.sent_message.to_value());
pub(super) const PENDING_INBOUND: Slot =
    slot(Method::StorePendingInbound, Method::GetPendingInbound, |row| row.pending_message.to_value())
        .deletes(Method::DeletePendingInbound);
pub(super) const MESSAGE_SECRET: Slot =
    slot(Method::PutMsgSecret, Method::GetMsgSecret, |row| row.message_secret.to_value());

impl Slot {
    const fn deletes(self, delete: Method) -> Self {
        Self { delete: Some(delete), ..self }
    }

    const fn is_without(self, absent: fn() -> Value) -> Self {
        Self { absent, ..self }
    }

    async fn put(self, store: &dyn Backend, row: &Arguments) {
        self.write(store, self.put, row, std::slice::from_ref(row)).await;
    }

    async fn write(self, store: &dyn Backend, method: Method, first: &Arguments, batch: &[Arguments]) {
        if let Err(error) = call(store, method, first, batch).await {
            panic!("{} failed: {error:?}", method.name());
        }
    }

    async fn get(self, store: &dyn Backend, row: &Arguments) -> Value {
        match call(store, self.get, row, std::slice::from_ref(row)).await {
            Ok(value) => value,
            Err(error) => panic!("{} failed: {error:?}", self.get.name()),
        }
    }

    async fn holds(self, store: &dyn Backend, row: &Arguments, why: &str) {
        assert_eq!(self.get(store, row).await, (self.stored)(row), "{}: {why}", self.get.name());
    }

    async fn lacks(self, store: &dyn Backend, row: &Arguments, why: &str) {
        assert_eq!(self.get(store, row).await, (self.absent)(), "{}: {why}", self.get.name());
    }
}

/// Keys of three parts. Some become equal if the parts are joined, or joined with a separator.
pub(super) const THREE_PARTS: [(&str, &str, &str); 7] = [
    ("a", "b", "c"),
    ("ab", "", "c"),
    ("a", "bc", ""),
    ("", "ab", "c"),
    ("c", "b", "a"),
    ("a:b", "c", "d"),
    ("a", "b:c", "d"),
];

/// Valid keys that stores get wrong: JIDs with and without a device, prefixes of each other, upper and lower case,
/// wildcards, quotes, separators, composed and decomposed characters, a long one.
pub(crate) fn unusual_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        // Stored before the keys that they would match.
        "a_c@lid",
        "a%@lid",
        "%",
        "*",
        "?",
        "15550001111@s.whatsapp.net",
        "15550001111:2@s.whatsapp.net",
        "15550001111:22@s.whatsapp.net",
        "15550001111@lid",
        "120363000000000001@g.us:15550001111.2",
        "1555000111",
        "15550001111",
        "0015550001111",
        "Abc@lid",
        "abc@lid",
        "é",
        "e\u{301}",
        "É",
        "☃🦀",
        "a b",
        "a'b\"c;--",
        "a\\b",
        "a-b|c/d",
        "@",
        ":",
        "null",
        "",
    ]
    .map(str::to_owned)
    .into();
    // A store that joins the parts of a key with a separator, or truncates long keys, confuses these.
    keys.push("k".repeat(1000));
    keys.push("k".repeat(1001));
    keys
}

fn rows(keys: &[String], number: impl Fn(usize) -> u8) -> Vec<Arguments> {
    let row = |(at, text): (usize, &String)| Arguments::numbered(Key { id: at as u32 + 1, text }, number(at));
    keys.iter().enumerate().map(row).collect()
}

fn row(number: u8) -> Arguments {
    Arguments::numbered(Key { id: 7, text: "15550001111:2@s.whatsapp.net" }, number)
}

pub(super) async fn is_absent_until_stored(subject: &Subject, slot: Slot) {
    for row in &rows(&unusual_keys(), |_| 4) {
        slot.lacks(&**subject, row, "nothing was stored").await;
    }
}

pub(super) async fn comes_back_as_it_was_stored(subject: &Subject, slot: Slot) {
    for (at, content) in ["nothing", "one byte", "every byte", "200 000 bytes", "40 bytes"].into_iter().enumerate() {
        let row = Arguments::numbered(Key { id: at as u32, text: &format!("1555000{at}@lid") }, at as u8);
        slot.put(&**subject, &row).await;
        slot.holds(&**subject, &row, content).await;
    }
}

pub(super) async fn goes_by_its_exact_key(subject: &Subject, slot: Slot) {
    let rows = rows(&unusual_keys(), |at| at as u8 + 4);
    let (stored, others): (Vec<_>, Vec<_>) = rows.iter().enumerate().partition(|(at, _)| at % 2 == 0);
    for (_, row) in &stored {
        slot.put(&**subject, row).await;
    }
    for (_, row) in &others {
        slot.lacks(&**subject, row, "only keys that resemble it were stored").await;
        slot.put(&**subject, row).await;
    }
    for row in &rows {
        slot.holds(&**subject, row, "keys that resemble it were stored too").await;
    }
}

pub(super) async fn is_replaced_when_stored_again(subject: &Subject, slot: Slot) {
    for number in [2, 1, 4, 3, 5, 0] {
        slot.put(&**subject, &row(number)).await;
    }
    slot.holds(&**subject, &row(0), "the last one counts").await;
}

pub(super) async fn deleting_removes_one_and_no_other(subject: &Subject, slot: Slot) {
    let method = slot.delete.unwrap_or_else(|| panic!("{} has no delete", slot.put.name()));
    let rows = rows(&unusual_keys(), |at| at as u8 + 4);
    for row in &rows {
        // Deletes a row that does not exist.
        slot.write(&**subject, method, row, std::slice::from_ref(row)).await;
        slot.put(&**subject, row).await;
    }
    for (at, row) in rows.iter().enumerate() {
        slot.holds(&**subject, row, "others were deleted").await;
        slot.write(&**subject, method, row, std::slice::from_ref(row)).await;
        slot.lacks(&**subject, row, "it was deleted").await;
        slot.put(&**subject, row).await;
        slot.holds(&**subject, row, "it was stored again").await;
        slot.write(&**subject, method, row, std::slice::from_ref(row)).await;
        if let Some(next) = rows.get(at + 1) {
            slot.holds(&**subject, next, "only the one before was deleted").await;
        }
    }
}

pub(super) async fn a_batch_stores_every_row(subject: &Subject, slot: Slot, batch: Method) {
    // A row that the batch replaces, and one that it leaves alone.
    let rows = rows(&unusual_keys(), |at| at as u8);
    let (beside, rows) = rows.split_last().unwrap();
    slot.put(&**subject, beside).await;
    slot.put(&**subject, &Arguments::numbered(Key { id: 1, text: &unusual_keys()[0] }, 9)).await;
    slot.write(&**subject, batch, &rows[0], rows).await;
    for row in rows {
        slot.holds(&**subject, row, "it was in the batch").await;
    }
    slot.holds(&**subject, beside, "it was not in the batch").await;
}

pub(super) async fn of_two_rows_of_a_batch_the_later_wins(subject: &Subject, slot: Slot, batch: Method) {
    let other = |number| Arguments::numbered(Key { id: 8, text: "other" }, number);
    let rows = [row(4), other(5), row(6), other(7), row(8)];
    slot.write(&**subject, batch, &rows[0], &rows).await;
    slot.holds(&**subject, &row(8), "it came last in the batch").await;
    slot.holds(&**subject, &other(7), "it came last in the batch").await;
}

pub(super) async fn an_empty_batch_changes_nothing(subject: &Subject, slot: Slot, batch: Method) {
    slot.write(&**subject, batch, &row(4), &[]).await;
    slot.lacks(&**subject, &row(4), "the batch was empty").await;
    slot.put(&**subject, &row(5)).await;
    slot.write(&**subject, batch, &row(4), &[]).await;
    slot.holds(&**subject, &row(5), "the batch was empty").await;
}

pub(super) async fn a_batch_may_have_ten_thousand_rows(subject: &Subject, slot: Slot, batch: Method) {
    let keys: Vec<String> = (0..10_000).map(|at| format!("1555{at:07}@s.whatsapp.net")).collect();
    let rows = rows(&keys, |at| 4 + (at % 200) as u8);
    slot.write(&**subject, batch, &rows[0], &rows).await;
    for at in (0..rows.len()).step_by(97).chain([rows.len() - 1]) {
        slot.holds(&**subject, &rows[at], "it was one of 10 000 rows").await;
    }
}

/// A reader of a newer row of a batch must not then find an older version of another row.
pub(super) async fn a_batch_is_seen_whole(subject: &Subject, slot: Slot, batch: Method) {
    const ROWS: usize = 400;
    const VERSIONS: u8 = 24;
    let keys: Vec<String> = (0..ROWS).map(|at| format!("1555{at:07}@s.whatsapp.net")).collect();
    let versions: Vec<Vec<Arguments>> = (4..4 + VERSIONS).map(|number| rows(&keys, |_| number)).collect();
    slot.write(&**subject, batch, &versions[0][0], &versions[0]).await;

    let written = Arc::new(AtomicBool::new(false));
    let (first, last): (Vec<_>, Vec<_>) = versions.iter().map(|rows| (rows[0].clone(), rows[ROWS - 1].clone())).unzip();
    let reader = tokio::spawn({
        let (store, written) = (subject.backend(), written.clone());
        async move {
            let version = |ends: &[Arguments], value: Value| ends.iter().position(|row| (slot.stored)(row) == value);
            while !written.load(Ordering::Acquire) {
                for (one, other) in [(&first, &last), (&last, &first)] {
                    let earlier = version(one, slot.get(&*store, &one[0]).await);
                    let later = version(other, slot.get(&*store, &other[0]).await);
                    assert!(earlier.is_some(), "{} returned a value that was never stored", slot.get.name());
                    assert!(
                        earlier <= later,
                        "{} was seen half done: a row of batch {earlier:?}, and after it one of batch {later:?}",
                        batch.name()
                    );
                }
                tokio::task::yield_now().await;
            }
        }
    });
    for rows in &versions[1..] {
        slot.write(&**subject, batch, &rows[0], rows).await;
        tokio::task::yield_now().await;
    }
    written.store(true, Ordering::Release);
    if let Err(error) = reader.await {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// The rules for one row, as functions of the module that calls this macro.
macro_rules! keyed_rules {
    ($slot:expr; $($rule:ident),+) => { $(
        pub(crate) async fn $rule(subject: &$crate::testing::Subject) {
            $crate::testing::rules::keyed::$rule(subject, $slot).await
        }
    )+ };
    ($slot:expr, $batch:expr; $($rule:ident),+) => { $(
        pub(crate) async fn $rule(subject: &$crate::testing::Subject) {
            $crate::testing::rules::keyed::$rule(subject, $slot, $batch).await
        }
    )+ };
}
pub(super) use keyed_rules;
