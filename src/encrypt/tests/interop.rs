//! Another implementation of the format, in another language, opens the stores of this crate.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::{Sqlite, encrypted};
use crate::testing::canaries;
use crate::testing::canaries::*;

/// Original key and payload of each record, by kind.
type Records = BTreeMap<String, Vec<(Vec<Vec<u8>>, Vec<u8>)>>;

/// Runs `tests/interop/open_store.py` and returns the payloads by kind of record.
pub(super) fn open_store(database: &Path, arguments: &[&str]) -> Records {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/open_store.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(database)
        .args(arguments)
        .args(["--message", CHAT, SENDER, MESSAGE_ID])
        .args(["--base-key", SESSION_ADDRESS, MESSAGE_ID, &hex::encode(BASE_KEY)])
        .output()
        .expect("this test needs python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut records = Records::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let record: serde_json::Value = serde_json::from_slice(line).unwrap();
        let bytes = |value: &serde_json::Value| hex::decode(value.as_str().unwrap()).unwrap();
        let key = record["key"].as_array().unwrap().iter().map(bytes).collect();
        records.entry(record["kind"].as_str().unwrap().to_owned()).or_default().push((key, bytes(&record["payload"])));
    }
    records
}

/// Compares the records that the script found with those that [`canaries::fill`] wrote.
pub(super) fn assert_complete(mut records: Records) {
    let mut one = |kind: &str, key: &[&[u8]]| {
        let found = records.remove(kind).unwrap_or_else(|| panic!("no {kind} was found"));
        let (_, payload) =
            found.into_iter().find(|(found, _)| found == key).unwrap_or_else(|| panic!("{kind} {key:?}"));
        payload
    };
    assert_eq!(one("session", &[SESSION_ADDRESS.as_bytes()]), SESSION);
    assert_eq!(one("identity", &[IDENTITY_ADDRESS.as_bytes()]), IDENTITY_KEY);
    assert_eq!(one("prekey", &[b"6"]), PREKEY);
    assert_eq!(one("signed prekey", &[b"7"]), SIGNED_PREKEY);
    assert_eq!(one("sender key", &[SENDER_KEY_ADDRESS.as_bytes()]), SENDER_KEY);
    let json = |payload: &[u8]| serde_json::from_slice::<serde_json::Value>(payload).unwrap();
    let same = |payload: Vec<u8>, expected: serde_json::Value| assert_eq!(json(&payload), expected);
    same(one("sync key", &[&[0, 1, 0, 0, 0, 2]]), serde_json::to_value(sync_key()).unwrap());
    same(one("collection version", &[COLLECTION.as_bytes()]), serde_json::to_value(version()).unwrap());
    assert_eq!(one("mutation MAC", &[&INDEX_MAC]), VALUE_MAC);
    assert_eq!(one("sender key device", &[DEVICE_JID.as_bytes()]), b"");
    assert_eq!(one("LID mapping", &[LID.as_bytes(), PHONE.as_bytes()]), SOURCE.as_bytes());
    assert_eq!(one("base key", &[SESSION_ADDRESS.as_bytes(), MESSAGE_ID.as_bytes()]), BASE_KEY);
    same(one("device list", &[PHONE.as_bytes()]), serde_json::to_value(device_list()).unwrap());
    assert_eq!(one("group metadata", &[GROUP.as_bytes()]), GROUP_METADATA);
    assert_eq!(one("tc token", &[TC_JID.as_bytes()]), TC_TOKEN);
    assert_eq!(one("sent message", &[CHAT, MESSAGE_ID].map(str::as_bytes)), SENT_MESSAGE);
    assert_eq!(one("pending inbound", &[CHAT, SENDER, MESSAGE_ID].map(str::as_bytes)), PENDING_MESSAGE);
    assert_eq!(one("message secret", &[CHAT, SENDER, MESSAGE_ID].map(str::as_bytes)), MESSAGE_SECRET);
    assert_eq!(json(&one("device", &[]))["push_name"], PUSH_NAME);
    assert!(records.is_empty(), "{:?}", records.keys());
}

#[tokio::test]
async fn a_store_is_opened_by_another_implementation() {
    let sqlite = Sqlite::new().await;
    let (_vault, backend) = encrypted(&sqlite.store).await;
    canaries::fill(&*backend).await;
    let key = "5a".repeat(32);
    assert_complete(open_store(&sqlite.folder.path().join("wa.db"), &["--key", &key]));
}
