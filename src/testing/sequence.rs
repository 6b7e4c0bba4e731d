//! Random sequences of calls, compared with a reference store.

use std::fmt;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use wacore::store::InMemoryBackend;
use wacore::store::error::Result;
use wacore::store::traits::Backend;

use super::arguments::{Arguments, Key, LARGE, call, device};
use super::rule::{PATIENCE, runtime};
use super::spy::Spy;
use super::subject::Subject;
use super::value::Value;
use crate::layer::Layer;
use crate::method::{Access, BoxFuture, Method, Record};

/// One call. Its arguments come from a few small numbers, so that calls use the same rows and shrink well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    method: Method,
    first: Row,
    /// The rows of a batch.
    batch: Vec<Row>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    key: u8,
    value: u8,
    time: u8,
}

/// Sequences of up to `length` calls. They contain every method but `create`, which is called once before, and
/// `snapshot_db`.
pub fn operations(length: usize) -> impl Strategy<Value = Vec<Operation>> {
    let methods: Vec<_> =
        Method::ALL.iter().copied().filter(|m| !matches!(m, Method::Create | Method::SnapshotDb)).collect();
    let row = || (0..KEYS.len() as u8, 0..6u8, 0..8u8).prop_map(|(key, value, time)| Row { key, value, time });
    let operation = (prop::sample::select(methods), row(), prop::collection::vec(row(), 0..5))
        .prop_map(|(method, first, batch)| Operation { method, first, batch });
    prop::collection::vec(operation, 1..=length)
}

const KEYS: [&str; 6] = ["15550001111", "155500011112", "100000000000001", "a b", "É", ""];

impl Operation {
    /// A call of this method, for tests that need one of each. Batches have two rows. Calls of several methods use
    /// the same rows.
    pub fn sample(method: Method) -> Self {
        // No field has its default value.
        let row = |key| Row { key, value: 5, time: 3 };
        Self { method, first: row(0), batch: vec![row(0), row(1)] }
    }

    /// The method to call.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Makes the call. `position` is the position of the operation in its sequence; later positions store newer rows.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn run(&self, store: &dyn Backend, position: usize) -> Result<Value> {
        let position = position as i64 * 16;
        let rows = self.batch.iter().zip(1..);
        let batch: Vec<_> = rows.map(|(row, place)| row.arguments(position + place)).collect();
        call(store, self.method, &self.first.arguments(position), &batch).await
    }
}

impl Row {
    fn arguments(self, position: i64) -> Arguments {
        let Row { key, value, time } = self;
        let user = KEYS[usize::from(key) % KEYS.len()];
        let time = i64::from(time);
        let text = if value % 2 == 0 { format!("{user}@s.whatsapp.net") } else { format!("{user}:{value}@lid") };
        // Large values make no difference to the order of calls, and are slow to compare.
        let number = if value == LARGE { LARGE + 10 } else { value };
        let mut row = Arguments::numbered(Key { id: key.into(), text: &text }, number);
        row.user = user.to_owned();
        row.group = format!("{user}@g.us");
        row.collection = ["critical_unblock_low", "critical_block"][usize::from(key % 2)].to_owned();
        row.mac_collection = row.collection.clone();
        row.chat = row.group.clone();
        row.message_id = format!("message {}", value % 2);
        row.sync_key_id = vec![0, 1, 0, 0, 0, key];
        row.lid_mapping.lid = format!("{user}1");
        row.lid_mapping.phone_number = format!("1666000111{}", value % 3);
        row.lid_mapping.updated_at = position;
        row.tc_token.token.truncate(64);
        row.tc_token.token_timestamp = time;
        row.tc_token.sender_timestamp = (value % 2 == 0).then_some(time + 1);
        row.secret_times = (time - 1, i64::from(value));
        row.cutoffs = (time, time + 2);
        // The clocks of the two stores differ by seconds at most, if a second begins between two calls.
        let day = if value % 2 == 0 { -86_400 } else { 86_400 };
        row.clock_cutoff = wacore::time::now_secs() + day;
        row
    }
}

/// The length of a sequence, and the number of sequences.
fn extent() -> (usize, u32) {
    let long = std::env::var_os("WASTORE_LONG").is_some();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    (if long { 180 } else { 60 }, cases.unwrap_or(if long { 320 } else { 32 }))
}

/// Compares random sequences. The test that `backend_tests!` writes calls it.
pub fn check_random_sequences(constructor: fn() -> BoxFuture<'static, Subject>) {
    let (length, cases) = extent();
    let runtime = runtime();
    let config = Config { cases, failure_persistence: None, max_shrink_time: 60_000, ..Config::default() };
    let result = TestRunner::new(config).run(&operations(length), |operations| {
        runtime.block_on(async {
            let subject = constructor().await;
            match tokio::time::timeout(PATIENCE, disagreement(&*subject, &operations)).await {
                Ok(Some(disagreement)) => Err(TestCaseError::fail(disagreement.to_string())),
                Ok(None) => Ok(()),
                Err(_) => Err(TestCaseError::fail("the store did not answer within two minutes")),
            }
        })
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(script, _)) => panic!("{script}"),
        Err(TestError::Abort(reason)) => panic!("no sequences could be made: {reason}"),
    }
}

/// An answer that differs from that of the reference store, and all calls up to it.
struct Disagreement {
    script: Vec<String>,
    expected: String,
    found: String,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the store disagrees with the reference store after these calls:\n")?;
        for (number, call) in self.script.iter().enumerate() {
            writeln!(f, "{:4}. {call}", number + 1)?;
        }
        write!(f, "\nthe last one returned {}\ninstead of             {}", self.found, self.expected)
    }
}

/// Runs the operations on the store and on upstream's in-memory store, then reads everything from both.
async fn disagreement(store: &dyn Backend, operations: &[Operation]) -> Option<Disagreement> {
    let spy = Spy::new();
    let reference = spy.layer(std::sync::Arc::new(InMemoryBackend::new()));
    for backend in [&*reference, store] {
        // Each store makes its own keys, so both save the same device at once.
        backend.create().await.expect("create");
        backend.save(&device(1)).await.expect("save");
    }
    let reads = reads();
    for (position, operation) in operations.iter().chain(&reads).enumerate() {
        let expected = operation.run(&*reference, position).await.expect("the reference store does not fail");
        let found = operation.run(store, position).await;
        let agrees = found.as_ref().is_ok_and(|found| agree(operation.method, &expected, found));
        if !agrees {
            let calls = spy.take();
            let reading = |method: Method| matches!(method.access(), Access::Read | Access::Scan);
            // The reads at the end change nothing, so only the one that disagrees is shown.
            let shown = calls
                .iter()
                .enumerate()
                .filter(|(at, call)| *at < operations.len() + 2 || !reading(call.method) || at + 1 == calls.len());
            return Some(Disagreement {
                script: shown.map(|(_, call)| call.to_string()).collect(),
                expected: expected.to_string(),
                found: found.map_or_else(|error| format!("an error: {error:?}"), |found| found.to_string()),
            });
        }
    }
    None
}

/// Reads everything that operations can store.
fn reads() -> Vec<Operation> {
    let mut reads = vec![];
    for method in Method::ALL.iter().copied() {
        let batch = match method.access() {
            Access::Read | Access::Take => 0..KEYS.len() as u8,
            Access::Scan => 0..1,
            _ => continue,
        };
        let row = |key, value| Row { key, value, time: 0 };
        let batched: Vec<_> = batch.clone().map(|key| row(key, 0)).collect();
        // One of the even numbers, which share their keys, and every odd number.
        let values = if method.record() == Record::Device { &[0][..] } else { &[0, 1, 3, 5] };
        for key in if method.record() == Record::Device { 0..1 } else { batch } {
            let first = values.iter().map(|value| row(key, *value));
            reads.extend(first.map(|first| Operation { method, first, batch: batched.clone() }));
        }
    }
    reads
}

/// Returns whether two answers are the same as far as a client may rely on them. It must not rely on points in which
/// upstream's stores differ.
pub(crate) fn agree(method: Method, expected: &Value, found: &Value) -> bool {
    let same_set = || expected.clone().sorted() == found.clone().sorted();
    match method {
        Method::LoadAllSignedPrekeys
        | Method::GetSenderKeyDevices
        | Method::GetAllLidMappings
        | Method::GetAllTcTokenJids => same_set(),
        // With or without repetitions, in the requested order or another one.
        Method::LoadPrekeysBatch => {
            let set = |value: &Value| match value {
                Value::List(rows) => rows.iter().cloned().collect::<std::collections::BTreeSet<_>>(),
                _ => [].into(),
            };
            set(expected) == set(found)
        }
        // With or without repetitions.
        Method::PutMsgSecrets => true,
        // Either the highest id or the one stored last.
        Method::GetLatestSyncKeyId => (*expected == Value::Nothing) == (*found == Value::Nothing),
        // When the newest LID of a number moves away, either no LID or the next newest.
        Method::GetPnMapping if *expected == Value::Nothing => true,
        Method::ResourceReport => true,
        _ => expected == found,
    }
}
