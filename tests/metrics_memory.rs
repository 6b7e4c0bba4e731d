//! Counting allocates nothing but the future of each call, for stores and for the network.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure is a failed test")]

use std::alloc::System;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use async_trait::async_trait;
use futures::executor::block_on;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use wacore::net::{HttpClient, HttpRequest, HttpResponse};
use wacore::store::InMemoryBackend;
use wacore::store::traits::Backend;
use wastore::metrics::{LayerKind, Outcome};
use wastore::{Layer, Metrics};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: usize = 1_000_000;

/// Makes calls of each kind. Some fail, and some are dropped before they end.
fn calls(store: &Arc<dyn Backend>, client: &dyn HttpClient, number: usize) {
    for call in 0..number / 5 {
        block_on(store.get_session("15550001111@s.whatsapp.net")).unwrap();
        block_on(store.put_session("15550001111@s.whatsapp.net", b"record")).unwrap();
        block_on(store.has_session("15550002222@s.whatsapp.net")).unwrap();
        block_on(client.execute(HttpRequest::get(if call % 2 == 0 { "good" } else { "bad" }))).ok();
        let mut hangs = client.execute(HttpRequest::get("hangs"));
        assert!(hangs.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
}

#[test]
fn memory_stays_flat_over_a_million_calls() {
    let memory: Arc<dyn Backend> = Arc::new(InMemoryBackend::new());
    let metrics = Metrics::new();
    let store = metrics.layer("store").layer(memory.clone());
    let client = metrics.http_client("http", Arc::new(Web));
    // Every call is slow.
    for kind in LayerKind::ALL {
        metrics.log_slower_than(*kind, Some(Duration::ZERO));
    }
    // Allocates memory that is allocated only once.
    calls(&store, &client, 100);
    drop(metrics.snapshot());

    // The test harness may allocate something on its own thread meanwhile, but not twice.
    let kept = [0, 1].map(|_| {
        let region = Region::new(ALLOCATOR);
        calls(&store, &client, CALLS / 2);
        let change = region.change();
        change.bytes_allocated as i64 - change.bytes_deallocated as i64
    });
    assert!(kept.contains(&0), "{kept:?} bytes were kept after {CALLS} calls");

    let region = Region::new(ALLOCATOR);
    calls(&memory, &Web, CALLS / 100);
    let without = region.change().allocations;
    let region = Region::new(ALLOCATOR);
    calls(&store, &client, CALLS / 100);
    assert_eq!(region.change().allocations - without, CALLS / 100, "one future for each call, and nothing else");

    let region = Region::new(ALLOCATOR);
    for _ in 0..100 {
        drop(metrics.snapshot());
    }
    let change = region.change();
    assert_eq!(change.bytes_allocated, change.bytes_deallocated, "snapshots free their memory");

    let (snapshot, rounds) = (metrics.snapshot(), (100 + CALLS + CALLS / 100) as u64 / 5);
    let http = snapshot.layer("http").unwrap().op("execute").unwrap();
    let [ok, failed, cancelled] = [Outcome::Status2xx, Outcome::Error, Outcome::Cancelled].map(|o| http.count(o));
    assert_eq!((ok + failed, cancelled, http.in_flight(), http.slow()), (rounds, rounds, 0, 2 * rounds));
    assert_eq!(snapshot.layer("store").unwrap().op("get_session").unwrap().calls(), rounds);
}

/// Fails or hangs, depending on the URL.
struct Web;

#[async_trait]
impl HttpClient for Web {
    async fn execute(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
        #[derive(Debug, thiserror::Error)]
        #[error("no network")]
        struct NoNetwork;

        match request.url.as_str() {
            "hangs" => std::future::pending().await,
            "good" => Ok(HttpResponse { status_code: 200, body: vec![] }),
            _ => Err(NoNetwork.into()),
        }
    }
}
