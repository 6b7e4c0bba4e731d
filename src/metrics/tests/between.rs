//! The cost of the layers between two metrics layers.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use wacore::store::InMemoryBackend;
use wacore::store::traits::TcTokenEntry;

use crate::metrics::{OpCost, OpSnapshot, Outcome};
use crate::testing::{Effect, Fault, When};
use crate::{CacheLayer, Key, Metrics, Stack, VaultOptions};

const ADDRESS: &str = "15550001111@s.whatsapp.net";

#[tokio::test]
async fn a_layer_that_takes_time_is_told_what_it_adds() {
    let metrics = Metrics::new();
    let slow = Fault::new();
    slow.inject(When::Always, Effect::Delay(Duration::from_millis(10)));
    let store = Stack::new(Arc::new(InMemoryBackend::new()))
        .layer(metrics.layer("below"))
        .layer(slow)
        .layer(metrics.layer("above"))
        .into_backend();
    for _ in 0..5 {
        store.get_session(ADDRESS).await.unwrap();
    }
    let cost = metrics.snapshot().between("above", "below").unwrap().with_label("slowness");
    let op = cost.op("get_session").unwrap();
    assert_eq!(op.answered_share(), Some(0.0));
    assert!((0.009..1.0).contains(&op.added_to_percentile(0.5)), "{op:?}");
    assert!(op.time_between() >= Duration::from_millis(50), "{op:?}");
    let text = cost.to_string();
    assert!(text.starts_with("slowness adds 1") && text.contains(" ms to get_session p50, "), "{text}");
    assert!(metrics.snapshot().between("above", "nowhere").is_none());
    assert!(metrics.snapshot().between("nowhere", "below").is_none());
}

#[tokio::test]
async fn a_cache_is_told_what_it_answers() {
    let metrics = Metrics::new();
    let cache = CacheLayer::new(1 << 20);
    metrics.track_cache("cache", &cache);
    let store = Stack::new(Arc::new(InMemoryBackend::new()))
        .layer(metrics.layer("database"))
        .layer(cache)
        .layer(metrics.layer("client"))
        .into_backend();
    let token = TcTokenEntry { token: vec![1], token_timestamp: 1, sender_timestamp: None };
    store.put_tc_token("a@lid", &token).await.unwrap();
    for _ in 0..20 {
        store.get_tc_token("a@lid").await.unwrap();
        store.get_msg_secret("a", "b", "c").await.unwrap();
        store.get_msg_secret_with_ts("a", "b", "c").await.unwrap();
    }
    let snapshot = metrics.snapshot();
    let cost = snapshot.between("client", "database").unwrap().with_label("cache");
    let answered = |op: &str| cost.op(op).unwrap().answered_share().unwrap();
    // A written value is in the cache at once.
    assert_eq!(answered("get_tc_token"), 1.0);
    assert_eq!(answered("put_tc_token"), 0.0);
    // The two methods are one below, and the cache has one answer for both.
    assert_eq!(answered("get_msg_secret"), 39.0 / 40.0);
    assert_eq!(cost.op("get_msg_secret_with_ts").unwrap().above().calls(), 40);
    let text = cost.to_string();
    assert!(text.contains("cache answers all calls of get_tc_token, in "), "{text}");
    assert!(text.contains("cache answers 98 % of get_msg_secret"), "{text}");
    let (name, stats) = snapshot.caches().next().unwrap();
    assert_eq!((name, stats.record(crate::Record::TcToken).unwrap().hits), ("cache", 20));
    assert!(snapshot.to_string().contains("\ncache cache\n"), "{snapshot}");

    let later = metrics.snapshot().since(&snapshot);
    let (_, stats) = later.caches().next().unwrap();
    assert_eq!(stats.record(crate::Record::TcToken).unwrap().hits, 0);
}

#[tokio::test]
async fn what_encryption_translates_is_compared_with_what_it_became() {
    let metrics = Metrics::new();
    let memory = Arc::new(InMemoryBackend::new());
    let vault = VaultOptions::new().create(memory.clone(), Key::from_bytes(&mut [7; 32])).await.unwrap();
    let store = Stack::new(memory)
        .layer(metrics.layer("memory"))
        .layer(vault.layer())
        .layer(metrics.layer("client"))
        .into_backend();
    for _ in 0..3 {
        store.put_session(ADDRESS, &[1; 100]).await.unwrap();
        store.put_identity(ADDRESS, [1; 32]).await.unwrap();
        store.put_identity(ADDRESS, [1; 32]).await.unwrap();
        store.load_identity(ADDRESS).await.unwrap();
    }
    let cost = metrics.snapshot().between("client", "memory").unwrap().with_label("encrypt");
    let puts = cost.op("put_identity").unwrap();
    assert_eq!((puts.above().calls(), puts.below().calls()), (9, 9));
    assert_eq!(cost.op("load_identity").unwrap().answered_share(), Some(0.0));
    assert_eq!(cost.ops().len(), 2, "{cost}");
    assert!(cost.to_string().contains("to put_identity + put_session p50"), "{cost}");
}

/// Calls end below before they end above, so the two numbers never agree while a bot works.
#[tokio::test]
async fn calls_under_way_make_no_difference() {
    let (metrics, hold) = (Metrics::new(), Fault::new());
    let store = Stack::new(Arc::new(InMemoryBackend::new()))
        .layer(metrics.layer("below"))
        .layer(hold.clone())
        .layer(metrics.layer("above"))
        .into_backend();
    for _ in 0..10 {
        store.exists().await.unwrap();
    }
    // The calls end below, and pause on their way up.
    let held: Vec<_> = (0..3).map(|_| store.exists()).collect();
    hold.inject(When::Always, Effect::Cancel { polls: 1 });
    let mut held: Vec<_> = held.into_iter().map(Box::pin).collect();
    let mut context = Context::from_waker(Waker::noop());
    assert!(held.iter_mut().all(|call| call.as_mut().poll(&mut context).is_pending()));
    hold.clear();

    let snapshot = metrics.snapshot();
    let answered = |snapshot: &crate::metrics::MetricsSnapshot| {
        let cost = snapshot.between("above", "below").unwrap();
        cost.op("exists").map(|op| (op.answered_share(), cost.to_string().contains(" adds ")))
    };
    let ended = |layer: &str| snapshot.layer(layer).unwrap().op("exists").unwrap().count(Outcome::Ok);
    assert_eq!((ended("below"), ended("above")), (13, 10));
    assert_eq!(answered(&snapshot), Some((Some(0.0), true)), "{}", snapshot.between("above", "below").unwrap());
}

/// A call that ended below before the period and ends above within it.
#[test]
fn calls_under_way_at_the_beginning_make_no_difference() {
    let cost = |in_flight_before| {
        let mut above = OpSnapshot::new("exists");
        above.outcomes[Outcome::Ok as usize] = 110;
        above.in_flight_before = in_flight_before;
        let mut below = OpSnapshot::new("exists");
        below.outcomes[Outcome::Ok as usize] = 100;
        OpCost::new(above, below).answered_share()
    };
    assert_eq!([cost(10), cost(9)], [Some(0.0), Some(10.0 / 110.0)]);
}

#[tokio::test]
async fn calls_that_fail_before_they_arrive_are_not_answered() {
    let (metrics, refuses) = (Metrics::new(), Fault::new());
    let store = Stack::new(Arc::new(InMemoryBackend::new()))
        .layer(metrics.layer("below"))
        .layer(refuses.clone())
        .layer(metrics.layer("above"))
        .into_backend();
    store.exists().await.unwrap();
    refuses.inject(When::Always, Effect::Fail(Fault::error));
    for _ in 0..10 {
        store.exists().await.unwrap_err();
    }
    assert_eq!(metrics.snapshot().between("above", "below").unwrap().op("exists").unwrap().answered_share(), Some(0.0));
}

#[tokio::test]
async fn calls_that_others_make_below_are_no_cost() {
    let metrics = Metrics::new();
    let below = Stack::new(Arc::new(InMemoryBackend::new())).layer(metrics.layer("below")).into_backend();
    let above = Stack::new(below.clone()).layer(metrics.layer("above")).into_backend();
    above.exists().await.unwrap();
    for _ in 0..4 {
        below.exists().await.unwrap();
    }
    let cost = metrics.snapshot().between("above", "below").unwrap();
    assert_eq!(cost.op("exists").unwrap().answered_share(), None);
    let expected = "between above and below passed on 1 calls of exists; other callers made 4 more\n";
    assert_eq!(cost.to_string(), expected);
}
