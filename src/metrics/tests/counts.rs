//! Counts of calls, outcomes, rows and bytes are exact. A spy provides the expected numbers.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::executor::block_on;
use wacore::store::InMemoryBackend;
use wacore::store::error::StoreError;
use wacore::store::traits::Backend;

use crate::method::{Access, Method};
use crate::metrics::{Metrics, MetricsSnapshot, OpSnapshot, Outcome};
use crate::testing::{Effect, Fault, Operation, Spy, Value, When};
use crate::{Layer, Stack};

/// One error of each class.
const ERRORS: [(Outcome, fn() -> StoreError); 8] = [
    (Outcome::Busy, || StoreError::Database("SQLITE_BUSY: write contention".into())),
    (Outcome::Busy, || StoreError::RetriesExhausted { op: "put".to_owned() }),
    (Outcome::Connection, || StoreError::Connection("refused".into())),
    (Outcome::Validation, || StoreError::Validation("too short".to_owned())),
    (Outcome::Validation, || StoreError::InvalidConfig("pool".to_owned())),
    (Outcome::Serialization, || crate::Error::WrongSecret.into()),
    (Outcome::Other, || StoreError::Io(std::io::ErrorKind::NotFound.into())),
    (Outcome::Other, Fault::error),
];

struct Bench {
    metrics: Metrics,
    fault: Fault,
    spy: Spy,
    store: Arc<dyn Backend>,
}

/// A spy under the layer records the calls that arrive.
fn bench() -> Bench {
    let (metrics, fault, spy) = (Metrics::new(), Fault::new(), Spy::new());
    let stack = Stack::new(Arc::new(InMemoryBackend::new())).layer(fault.clone()).layer(spy.clone());
    let store = stack.layer(metrics.layer("store")).into_backend();
    Bench { metrics, fault, spy, store }
}

fn op(snapshot: &MetricsSnapshot, method: Method) -> OpSnapshot {
    snapshot.layer("store").unwrap().op(method.name()).cloned().unwrap_or_else(|| OpSnapshot::new(method.name()))
}

#[test]
fn every_way_to_end_is_counted_for_every_method() {
    let Bench { metrics, fault, store, .. } = bench();
    let mut expected: BTreeMap<(&str, Outcome), u64> = BTreeMap::new();
    for (number, method) in Method::ALL.iter().copied().enumerate() {
        let mut expect = |outcome: Outcome, count: u64| {
            *expected.entry((method.name(), outcome)).or_default() += count;
        };
        let run = || block_on(Operation::sample(method).run(&*store, 0));
        // A different number of calls for each method, so that a mix-up of two methods shows.
        for _ in 0..=number {
            run().unwrap();
        }
        expect(Outcome::Ok, number as u64 + 1);
        for (position, (outcome, error)) in ERRORS.into_iter().enumerate() {
            for effect in [Effect::Fail(error), Effect::FailAfter(error)].into_iter().cycle().take(position + 1) {
                fault.inject(When::Always, effect);
                // It cannot return an error.
                if method == Method::ResourceReport {
                    run().unwrap();
                    expect(Outcome::Ok, 1);
                } else {
                    run().unwrap_err();
                    expect(outcome, 1);
                }
                fault.clear();
            }
        }
        for polls in 0..3 {
            fault.inject(When::Always, Effect::Cancel { polls });
            let operation = Operation::sample(method);
            {
                let mut call = pin!(operation.run(&*store, 0));
                let mut context = Context::from_waker(Waker::noop());
                assert!(call.as_mut().poll(&mut context).is_pending());
                assert_eq!(op(&metrics.snapshot(), method).in_flight(), 1, "{}", method.name());
            }
            fault.clear();
            expect(Outcome::Cancelled, 1);
        }
    }
    let snapshot = metrics.snapshot();
    let mut counted = BTreeMap::new();
    for op in snapshot.layer("store").unwrap().ops() {
        assert_eq!(op.in_flight(), 0, "{}", op.name());
        assert_eq!(op.times().count(), op.calls(), "{}", op.name());
        counted.extend(op.outcomes().map(|(outcome, count)| ((op.name(), outcome), count)));
    }
    expected.retain(|_, count| *count > 0);
    assert_eq!(counted, expected);
    let total = snapshot.layer("store").unwrap().total();
    assert_eq!(total.calls(), expected.values().sum::<u64>());
    assert_eq!(total.errors(), 81 * (1..=ERRORS.len() as u64).sum::<u64>());
}

// `BTreeMap` needs an order.
impl PartialOrd for Outcome {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Outcome {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (*self as usize).cmp(&(*other as usize))
    }
}

/// The length in bytes of all texts and byte strings.
fn content(value: &Value) -> u64 {
    match value {
        Value::Text(text) => text.len() as u64,
        Value::Bytes(bytes) => bytes.len() as u64,
        Value::List(values) => values.iter().map(content).sum(),
        Value::Record(fields) => fields.iter().map(|(_, value)| content(value)).sum(),
        _ => 0,
    }
}

fn length(value: &Value) -> u64 {
    match value {
        Value::List(rows) => rows.len() as u64,
        Value::Nothing | Value::Flag(false) => 0,
        _ => 1,
    }
}

#[test]
fn rows_and_bytes_are_those_that_pass() {
    let Bench { metrics, spy, store, .. } = bench();
    // A spy cannot see the size of a device in memory. The map of a collection's version has its contents in the
    // names of fields, and version 0 counts as absent.
    let inexact = [Method::Save, Method::Load, Method::GetVersion, Method::SetVersion];
    // The first time nothing exists, the second time most rows do.
    for method in Method::ALL.iter().chain(Method::ALL).copied() {
        let before = op(&metrics.snapshot(), method);
        spy.take();
        let answer = block_on(Operation::sample(method).run(&*store, 0)).unwrap();
        let counted = metrics.snapshot();
        let after = op(&counted, method);
        let arguments = spy.take().remove(0).arguments;
        let name = method.name();

        let batch = arguments.iter().find_map(|argument| match argument {
            Value::List(rows) => Some(rows.len() as u64),
            _ => None,
        });
        let names_a_row = arguments.iter().any(|argument| matches!(argument, Value::Text(_) | Value::Bytes(_)))
            || name.ends_with("prekey")
            || matches!(method, Method::Save | Method::PutLidMapping | Method::UpdateDeviceList);
        let names_a_row = names_a_row && method.access() != Access::Maintenance;
        let given = batch.unwrap_or(u64::from(names_a_row));
        assert_eq!(after.rows_in() - before.rows_in(), given, "{name}: rows in");
        let got = match (&answer, method) {
            (Value::Number(removed), method) if method.access() == Access::Delete => *removed as u64,
            (Value::Number(_), _) | (_, Method::ResourceReport) => 0,
            (Value::Record(_), Method::GetVersion) => u64::from(answer.field("version") != Some(&Value::Number(0))),
            // A secret and its time are one row.
            (Value::List(_), Method::GetMsgSecretWithTs) => 1,
            _ => length(&answer),
        };
        assert_eq!(after.rows_out() - before.rows_out(), got, "{name}: rows out");
        let (found, absent) = (after.found() - before.found(), after.absent() - before.absent());
        match method.access() {
            Access::Read | Access::Take => {
                let asked = given.max(1);
                assert_eq!((found, absent), (got.min(asked), asked - got.min(asked)), "{name}: lookups");
            }
            _ => assert_eq!((found, absent), (0, 0), "{name} looks nothing up"),
        }
        let (bytes_in, bytes_out) = (after.bytes_in() - before.bytes_in(), after.bytes_out() - before.bytes_out());
        let (sent, answered) = (arguments.iter().map(content).sum::<u64>(), content(&answer));
        if inexact.contains(&method) {
            assert!(bytes_in >= sent && bytes_in <= sent + 4096, "{name}: {bytes_in} bytes in, {sent} seen");
            assert!(bytes_out <= answered + 4096, "{name}: {bytes_out} bytes out");
        } else {
            assert_eq!(bytes_in, sent, "{name}: bytes in");
            assert_eq!(bytes_out, answered, "{name}: bytes out");
        }
    }
    let all = metrics.snapshot().layer("store").unwrap().total();
    assert!(all.found() > 20 && all.absent() > 10, "found and absent rows were counted: {all:?}");
}

#[test]
fn a_call_is_counted_from_its_first_poll() {
    let Bench { metrics, spy, store, .. } = bench();
    drop(store.get_session("a"));
    assert!(metrics.snapshot().layer("store").unwrap().ops().is_empty());
    assert!(spy.take().is_empty(), "the call is not made before");
}

/// A store that takes as long as the test tells it to.
#[test]
fn times_are_those_of_the_store() {
    let Bench { metrics, fault, store, .. } = bench();
    fault.inject(When::Method(Method::GetSession), Effect::Delay(Duration::from_millis(20)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        for _ in 0..3 {
            store.get_session("a").await.unwrap();
        }
        // A timeout counts with the time until it.
        fault.clear();
        fault.inject(When::Always, Effect::Cancel { polls: 0 });
        tokio::time::timeout(Duration::from_millis(500), store.put_session("a", b"b")).await.unwrap_err();
    });
    let snapshot = metrics.snapshot();
    let slow = op(&snapshot, Method::GetSession);
    assert!(slow.times().percentile(0.5) >= Duration::from_millis(20) * 7 / 8, "{slow:?}");
    assert!(slow.times().max() >= Duration::from_millis(20) && slow.times().sum() >= Duration::from_millis(60));
    let cancelled = op(&snapshot, Method::PutSession);
    assert!(cancelled.times().max() >= Duration::from_millis(500), "{cancelled:?}");
    let table = snapshot.to_string();
    assert!(table.find("put_session").unwrap() < table.find("get_session").unwrap(), "slowest first:\n{table}");
}

#[test]
fn a_panic_below_counts_as_cancelled_and_goes_on() {
    let metrics = Metrics::new();
    let stats = metrics.stats::<crate::metrics::store::StoreOp>("store");
    let call = crate::metrics::call::observe(
        &*stats,
        crate::metrics::store::StoreOp(Method::Load),
        Default::default(),
        || std::future::poll_fn(|_| -> Poll<()> { panic!("below") }),
        |()| Outcome::Ok.into(),
    );
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| block_on(call)));
    assert!(panicked.is_err());
    let op = op(&metrics.snapshot(), Method::Load);
    assert_eq!((op.count(Outcome::Cancelled), op.calls(), op.in_flight()), (1, 1, 0));
}

#[test]
fn layers_of_the_same_name_count_together_and_others_do_not() {
    let metrics = Metrics::new();
    let memory = || -> Arc<dyn Backend> { Arc::new(InMemoryBackend::new()) };
    let accounts: Vec<_> = (0..500).map(|_| metrics.layer("accounts").layer(memory())).collect();
    let other = metrics.layer("other").layer(memory());
    for account in &accounts {
        block_on(account.has_session("a")).unwrap();
    }
    block_on(other.has_session("a")).unwrap();
    let snapshot = metrics.snapshot();
    assert_eq!(snapshot.layers().len(), 2, "all accounts share one layer");
    let calls = |layer: &str| snapshot.layer(layer).unwrap().op("has_session").unwrap().calls();
    assert_eq!((calls("accounts"), calls("other")), (500, 1));
    assert_eq!(format!("{metrics:?}"), r#"Metrics["accounts", "other"]"#);
}

#[test]
fn what_threads_count_adds_up() {
    let metrics = Metrics::new();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let store = metrics.layer("store").layer(Arc::new(InMemoryBackend::new()));
                for _ in 0..500 {
                    block_on(store.get_session("address")).unwrap();
                    // At most as many as there are threads.
                    let op = op(&metrics.snapshot(), Method::GetSession);
                    assert!(op.in_flight() <= 20, "{op:?}");
                }
            });
        }
    });
    let op = op(&metrics.snapshot(), Method::GetSession);
    assert_eq!((op.calls(), op.absent(), op.bytes_in(), op.in_flight()), (10_000, 10_000, 70_000, 0));
    assert_eq!(op.times().count(), 10_000);
}

#[test]
fn since_tells_what_happened_between() {
    let Bench { metrics, store, .. } = bench();
    block_on(store.put_session("a", b"12345")).unwrap();
    let before = metrics.snapshot();
    block_on(store.put_session("a", b"12345")).unwrap();
    block_on(store.get_session("a")).unwrap();
    let mut open = store.load();
    // `InMemoryBackend` answers at once, so the test makes a call in flight by hand.
    let mut stuck = pin!(async {
        let stats = metrics.stats::<crate::metrics::store::StoreOp>("store");
        let load = crate::metrics::store::StoreOp(Method::Load);
        let answer = |_: &()| Outcome::Ok.into();
        crate::metrics::call::observe(&*stats, load, Default::default(), pending::<()>, answer).await;
    });
    let mut context = Context::from_waker(Waker::noop());
    assert!(open.as_mut().poll(&mut context).is_ready());
    assert!(stuck.as_mut().poll(&mut context).is_pending());

    let since = metrics.snapshot().since(&before);
    assert!(since.elapsed() <= metrics.snapshot().elapsed());
    let put = op(&since, Method::PutSession);
    assert_eq!((put.calls(), put.bytes_in(), put.times().count()), (1, 6, 1));
    assert_eq!(op(&since, Method::GetSession).found(), 1);
    assert_eq!(op(&since, Method::Load).in_flight(), 1);
    assert_eq!(since.since(&since).layer("store").unwrap().total().calls(), 0);
}

#[test]
fn a_snapshot_is_json_for_programs() {
    let Bench { metrics, fault, store, .. } = bench();
    let cache = crate::CacheLayer::new(1 << 20);
    metrics.track_cache("memory", &cache);
    block_on(store.put_session("a", b"12345")).unwrap();
    fault.inject(When::Always, Effect::Fail(|| StoreError::Validation(String::new())));
    block_on(store.put_session("a", b"12345")).unwrap_err();
    let json = serde_json::to_value(metrics.snapshot()).unwrap();
    let layer = &json["layers"][0];
    assert_eq!((&layer["name"], &layer["kind"]), (&"store".into(), &"store".into()));
    let op = &layer["operations"][0];
    assert_eq!(op["op"], "put_session");
    assert_eq!(op["outcomes"], serde_json::json!({"ok": 1, "validation": 1}));
    assert_eq!((&op["calls"], &op["errors"], &op["bytes_in"]), (&2.into(), &1.into(), &12.into()));
    assert!(op["p99_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(op["buckets"].as_array().unwrap().iter().map(|b| b[1].as_u64().unwrap()).sum::<u64>(), 2);
    assert!(json["caches"].as_array().unwrap().iter().any(|cache| cache["record"] == "tc token"));
    assert!(json["seconds"].as_f64().unwrap() > 0.0);
}
