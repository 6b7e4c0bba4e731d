//! Labels, spans, events, tables, charts, JSON and `Debug` name no account and no contact.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Once};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::executor::block_on;
use memchr::memmem;
use tracing_subscriber::fmt::format::FmtSpan;
use wacore::net::{HttpClient, HttpRequest, HttpResponse, Transport, TransportEvent, TransportFactory};
use wacore::store::InMemoryBackend;
use wacore::store::error::StoreError;

use crate::metrics::LayerKind;
use crate::testing::canaries;
use crate::testing::{Effect, Fault, When};
use crate::{CacheLayer, Key, Method, Metrics, Stack, VaultOptions};

/// The text of all spans and events of this thread while `run` runs, down to the most detailed level.
///
/// All tests share one subscriber: with one for each test, a span that is first used on a thread without a subscriber
/// might stay disabled.
pub(super) fn captured(run: impl FnOnce()) -> String {
    thread_local! {
        static SAID: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
    }

    struct Writer;

    impl io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            SAID.with_borrow_mut(|said| said.as_mut().map(|said| said.extend_from_slice(bytes)));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(|| Writer)
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        tracing::callsite::rebuild_interest_cache();
    });
    SAID.set(Some(vec![]));
    run();
    String::from_utf8(SAID.take().unwrap()).unwrap()
}

#[test]
fn no_one_is_named_anywhere() {
    let metrics = Metrics::new();
    for kind in LayerKind::ALL {
        metrics.log_slower_than(*kind, Some(Duration::ZERO));
    }
    let cache = CacheLayer::new(1 << 20);
    metrics.track_cache("cache", &cache);
    let fault = Fault::new();
    let memory = Arc::new(InMemoryBackend::new());
    let key = Key::from_bytes(&mut [0x5a; 32]);
    let vault = block_on(VaultOptions::new().create(memory.clone(), key)).unwrap();
    let stack = Stack::new(memory)
        .layer(fault.clone())
        .layer(metrics.layer("memory"))
        .layer(vault.layer())
        .layer(cache)
        .layer(metrics.layer("client"));
    let mut texts = vec![format!("{stack:?} {metrics:?}")];
    let store = stack.into_backend();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    #[cfg(feature = "metrics")]
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();

    let run = || {
        runtime.block_on(canaries::fill(&*store));
        for method in Method::ALL {
            runtime.block_on(canaries::call(&*store, *method)).unwrap();
            // Errors whose text has too much detail.
            fault.inject(When::Always, Effect::Fail(|| StoreError::Validation(format!("bad {}", canaries::PHONE))));
            let _ = runtime.block_on(canaries::call(&*store, *method));
            fault.clear();
        }
        runtime.block_on(network(&metrics));
    };
    #[cfg(feature = "metrics")]
    let spans = captured(|| ::metrics::with_local_recorder(&recorder, run));
    #[cfg(not(feature = "metrics"))]
    let spans = captured(run);

    let snapshot = metrics.snapshot();
    let cost = snapshot.between("client", "memory").unwrap();
    texts.extend([format!("{snapshot} {snapshot:?} {cost} {cost:?}"), snapshot.to_svg()]);
    texts.push(serde_json::to_string(&snapshot).unwrap());
    #[cfg(feature = "metrics")]
    texts.push(recorder.handle().render());
    assert_spans(&spans);
    texts.push(spans);

    let mut canaries = canaries::all();
    let more = [
        canaries::IDENTITY_ADDRESS,
        canaries::SECOND_MESSAGE_ID,
        canaries::SNAPSHOT_NAME,
        "secret.example",
        "Bearer canary",
        "canary close reason",
        "canary frame",
        "canary body",
    ];
    canaries.extend(more.map(|text| (text.to_owned(), text.as_bytes().to_vec())));
    canaries.retain(|(_, canary)| canary.len() > 3);
    assert!(canaries.len() > 40);
    for text in &texts {
        for (name, canary) in &canaries {
            let forms = [canary.clone(), hex::encode(canary).into_bytes(), format!("{canary:?}").into_bytes()];
            let found = forms.iter().any(|form| memmem::find(text.as_bytes(), form).is_some());
            assert!(!found, "{name} is named:\n{text}");
        }
    }
}

/// Every call of the outer layer has its span, with the names of layer, operation and outcome. The span of the inner
/// call is within it.
fn assert_spans(spans: &str) {
    for method in Method::ALL {
        let within = format!("wa.call{{layer=\"client\" op=\"{}\"", method.name());
        assert!(spans.contains(&within), "{} has no span:\n{spans}", method.name());
    }
    let nested = "wa.call{layer=\"client\" op=\"store_prekey\"}:wa.call{layer=\"memory\" op=\"store_prekey\"";
    assert!(spans.contains(nested), "the inner call is not within the outer one:\n{spans}");
    let closed = "wa.call{layer=\"client\" op=\"put_session\" outcome=\"ok\"}";
    assert!(spans.contains(closed), "no outcome:\n{spans}");
    assert!(spans.contains("slow call"), "no event:\n{spans}");
}

#[test]
fn spans_tell_of_cancelled_calls_and_contain_their_events() {
    let (metrics, fault) = (Metrics::new(), Fault::new());
    metrics.log_slower_than(LayerKind::Store, Some(Duration::ZERO));
    let store = Stack::new(Arc::new(InMemoryBackend::new())).layer(fault.clone()).layer(metrics.layer("store"));
    let store = store.into_backend();
    fault.inject(When::Always, Effect::Cancel { polls: 0 });
    let spans = captured(|| {
        let mut call = store.load();
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
    let span = "wa.call{layer=\"store\" op=\"load\" outcome=\"cancelled\"}";
    assert!(spans.contains(&format!("{span}: wastore::metrics: slow call")), "{spans}");
    assert!(spans.contains(&format!("{span}: wastore::metrics: close")), "{spans}");
}

/// Everything that a connection and HTTP could reveal.
async fn network(metrics: &Metrics) {
    struct Tells;

    #[async_trait::async_trait]
    impl HttpClient for Tells {
        async fn execute(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
            anyhow::ensure!(request.body.is_some(), "GET {} failed", request.url);
            Ok(HttpResponse { status_code: 403, body: b"canary body".to_vec() })
        }
    }

    #[async_trait::async_trait]
    impl TransportFactory for Tells {
        async fn create_transport(
            &self,
        ) -> anyhow::Result<(Arc<dyn Transport>, async_channel::Receiver<TransportEvent>)> {
            let (to_client, events) = async_channel::unbounded();
            let reason = "canary close reason".to_owned();
            let closed = wacore::net::DisconnectReason::ServerClose { code: Some(4000), reason };
            to_client.try_send(TransportEvent::DataReceived(Bytes::from_static(b"canary frame"))).unwrap();
            to_client.try_send(TransportEvent::Disconnected(closed)).unwrap();
            Ok((Arc::new(Tells), events))
        }
    }

    #[async_trait::async_trait]
    impl Transport for Tells {
        async fn send(&self, _: Bytes) -> anyhow::Result<()> {
            anyhow::bail!("wss://secret.example is gone")
        }

        async fn disconnect(&self) {}
    }

    let client = metrics.http_client("media", Arc::new(Tells));
    let request = HttpRequest::post("https://secret.example/15550109921").with_header("auth", "Bearer canary");
    client.execute(request.clone()).await.unwrap_err();
    client.execute(request.with_body(&b"canary body"[..])).await.unwrap();
    let factory = metrics.transport_factory("whatsapp", Arc::new(Tells), Arc::new(whatsapp_rust::TokioRuntime));
    let (transport, events) = factory.create_transport().await.unwrap();
    transport.send(Bytes::from_static(b"canary frame")).await.unwrap_err();
    while events.recv().await.is_ok() {}
    transport.disconnect().await;
}
