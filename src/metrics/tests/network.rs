//! Connections and HTTP: the counts are right, and everything passes unchanged.

use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_channel::{Receiver, Sender};
use async_trait::async_trait;
use bytes::Bytes;
use wacore::net::{
    DisconnectReason, HttpClient, HttpRequest, HttpResponse, StreamingHttpResponse, Transport, TransportEvent,
    TransportFactory, UploadBody,
};
use wacore::stats::{HttpResourceReport, TransportResourceReport};
use whatsapp_rust::TokioRuntime;

use crate::Metrics;
use crate::metrics::{LayerKind, OpSnapshot, Outcome};

const REPORT: TransportResourceReport =
    TransportResourceReport { read_buffer_bytes: Some(1), write_buffer_bytes: Some(2), tls_state_bytes: Some(3) };

/// Connections whose other end is the test.
#[derive(Clone, Default)]
struct Server {
    refuses: bool,
    sent: Arc<Mutex<Vec<Bytes>>>,
    disconnects: Arc<AtomicUsize>,
    events: Arc<Mutex<Option<Sender<TransportEvent>>>>,
    capacity: Option<usize>,
}

#[async_trait]
impl TransportFactory for Server {
    async fn create_transport(&self) -> anyhow::Result<(Arc<dyn Transport>, Receiver<TransportEvent>)> {
        anyhow::ensure!(!self.refuses, "connection refused by wss://secret.example");
        let (to_client, events) = self.capacity.map_or_else(async_channel::unbounded, async_channel::bounded);
        to_client.try_send(TransportEvent::Connected).unwrap();
        *self.events.lock().unwrap() = Some(to_client);
        Ok((Arc::new(self.clone()), events))
    }
}

#[async_trait]
impl Transport for Server {
    async fn send(&self, data: Bytes) -> anyhow::Result<()> {
        anyhow::ensure!(!data.is_empty(), "nothing to send");
        self.sent.lock().unwrap().push(data);
        Ok(())
    }

    async fn disconnect(&self) {
        self.disconnects.fetch_add(1, Ordering::Relaxed);
    }

    fn resource_report(&self) -> Option<TransportResourceReport> {
        Some(REPORT)
    }
}

impl Server {
    fn say(&self, event: TransportEvent) {
        self.events.lock().unwrap().as_ref().unwrap().try_send(event).unwrap();
    }

    fn hang_up(&self) {
        self.events.lock().unwrap().take();
    }
}

fn op(metrics: &Metrics, name: &str) -> OpSnapshot {
    metrics.snapshot().layer("net").unwrap().op(name).cloned().unwrap_or_else(|| OpSnapshot::new("none"))
}

/// Waits until a connection's relay has reacted.
async fn until(mut ready: impl FnMut() -> bool) {
    for _ in 0..500 {
        if ready() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("the condition does not become true");
}

#[tokio::test]
async fn messages_pass_in_order_and_are_counted() {
    let (metrics, server) = (Metrics::new(), Server::default());
    let factory = metrics.transport_factory("net", Arc::new(server.clone()), Arc::new(TokioRuntime));
    assert_eq!(format!("{factory:?}"), "metrics(net)");
    let (transport, events) = factory.create_transport().await.unwrap();
    assert_eq!(op(&metrics, "connection").in_flight(), 1);
    assert_eq!(transport.resource_report(), Some(REPORT));

    transport.send(Bytes::from_static(b"hello")).await.unwrap();
    transport.send(Bytes::from_static(b"!")).await.unwrap();
    let error = transport.send(Bytes::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "nothing to send");
    assert_eq!(*server.sent.lock().unwrap(), [&b"hello"[..], b"!"]);
    let send = op(&metrics, "send");
    assert_eq!((send.calls(), send.count(Outcome::Ok), send.count(Outcome::Error)), (3, 2, 1));
    assert_eq!((send.rows_in(), send.bytes_in()), (2, 6), "a message that failed is not counted as sent");

    for number in 0..100u8 {
        server.say(TransportEvent::DataReceived(vec![number; 10].into()));
    }
    assert!(matches!(events.recv().await.unwrap(), TransportEvent::Connected));
    for number in 0..100u8 {
        let TransportEvent::DataReceived(data) = events.recv().await.unwrap() else { panic!("another event") };
        assert_eq!(data, vec![number; 10]);
    }
    let received = op(&metrics, "receive");
    assert_eq!((received.rows_out(), received.bytes_out(), received.calls()), (100, 1000, 100));

    transport.disconnect().await;
    assert_eq!(server.disconnects.load(Ordering::Relaxed), 1);
    assert_eq!(op(&metrics, "disconnect").calls(), 1);
    // Upstream's transport reports this after its own side disconnected.
    server.say(TransportEvent::Disconnected(DisconnectReason::Unknown));
    server.hang_up();
    let last = events.recv().await.unwrap();
    assert!(matches!(last, TransportEvent::Disconnected(DisconnectReason::Unknown)));
    assert!(events.recv().await.is_err(), "closed because the transport closed its channel");
    let connection = op(&metrics, "connection");
    assert_eq!((connection.count(Outcome::LocalClose), connection.calls(), connection.in_flight()), (1, 1, 0));
}

#[tokio::test]
async fn why_connections_end_is_counted() {
    let server_close = |code| DisconnectReason::ServerClose { code, reason: "15550001111 was replaced".to_owned() };
    let reasons = [
        (server_close(Some(1000)), Outcome::ServerClose),
        (server_close(None), Outcome::ServerClose),
        (server_close(Some(1011)), Outcome::ServerError),
        (DisconnectReason::StreamEnded, Outcome::StreamEnded),
        (DisconnectReason::ReadError("reset".to_owned()), Outcome::ReadError),
        (DisconnectReason::Unknown, Outcome::Unknown),
    ];
    let (metrics, server) = (Metrics::new(), Server::default());
    let factory = metrics.transport_factory("net", Arc::new(server.clone()), Arc::new(TokioRuntime));
    for (position, (reason, outcome)) in reasons.into_iter().enumerate() {
        let (_transport, events) = factory.create_transport().await.unwrap();
        let before = op(&metrics, "connection").count(outcome);
        server.say(TransportEvent::Disconnected(reason));
        server.hang_up();
        while events.recv().await.is_ok() {}
        let connection = op(&metrics, "connection");
        assert_eq!(connection.count(outcome), before + 1, "{outcome}");
        assert_eq!(connection.calls(), position as u64 + 1);
    }
    // A transport that stops without giving a reason.
    let (_transport, events) = factory.create_transport().await.unwrap();
    server.hang_up();
    while events.recv().await.is_ok() {}
    assert_eq!(op(&metrics, "connection").count(Outcome::Unknown), 2);
    assert_eq!(op(&metrics, "connection").errors(), 2, "read error and close code 1011");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_connection() {
    let (metrics, server) = (Metrics::new(), Server::default());
    let factory = metrics.transport_factory("net", Arc::new(server.clone()), Arc::new(TokioRuntime));
    let (transport, events) = factory.create_transport().await.unwrap();
    drop((transport, events));
    // No message arrives any more, and the transport's channel is closed anyway.
    until(|| server.events.lock().unwrap().as_ref().unwrap().is_closed()).await;
    assert_eq!(op(&metrics, "connection").count(Outcome::LocalClose), 1);

    // Also while a message is being forwarded.
    let slow = Server { capacity: Some(1), ..Server::default() };
    let factory = metrics.transport_factory("net", Arc::new(slow.clone()), Arc::new(TokioRuntime));
    let (_transport, events) = factory.create_transport().await.unwrap();
    let sender = slow.events.lock().unwrap().clone().unwrap();
    for _ in 0..2 {
        sender.send(TransportEvent::DataReceived(Bytes::from_static(b"x"))).await.unwrap();
    }
    drop(events);
    until(|| sender.is_closed()).await;
    assert_eq!(op(&metrics, "connection").count(Outcome::LocalClose), 2);
}

#[tokio::test]
async fn a_slow_client_slows_the_transport_down() {
    let (metrics, server) = (Metrics::new(), Server { capacity: Some(4), ..Server::default() });
    let factory = metrics.transport_factory("net", Arc::new(server.clone()), Arc::new(TokioRuntime));
    let (_transport, events) = factory.create_transport().await.unwrap();
    let sender = server.events.lock().unwrap().clone().unwrap();
    let mut accepted = 0;
    let message = || TransportEvent::DataReceived(Bytes::from_static(b"x"));
    while tokio::time::timeout(Duration::from_millis(50), sender.send(message())).await.is_ok() {
        accepted += 1;
        assert!(accepted < 20, "the transport is never slowed down");
    }
    // Four in each channel and one in between. The first of these nine is the `Connected` event, which the test did
    // not send.
    assert_eq!(accepted, 8);
    assert_eq!(op(&metrics, "receive").in_flight(), 1);
    assert!(matches!(events.recv().await, Ok(TransportEvent::Connected)));
    for _ in 0..8 {
        assert!(matches!(events.recv().await, Ok(TransportEvent::DataReceived(_))));
    }
    assert!(op(&metrics, "receive").times().max() >= Duration::from_millis(40), "it waited for the client");
}

#[tokio::test]
async fn failed_and_abandoned_connects_are_counted() {
    let metrics = Metrics::new();
    let refusing = Server { refuses: true, ..Server::default() };
    let factory = metrics.transport_factory("net", Arc::new(refusing), Arc::new(TokioRuntime));
    let error = factory.create_transport().await.err().unwrap();
    assert_eq!(error.to_string(), "connection refused by wss://secret.example", "passes unchanged");

    struct Hangs;
    #[async_trait]
    impl TransportFactory for Hangs {
        async fn create_transport(&self) -> anyhow::Result<(Arc<dyn Transport>, Receiver<TransportEvent>)> {
            std::future::pending().await
        }
    }
    let factory = metrics.transport_factory("net", Arc::new(Hangs), Arc::new(TokioRuntime));
    tokio::time::timeout(Duration::from_millis(5), factory.create_transport()).await.err().unwrap();
    let connect = op(&metrics, "connect");
    assert_eq!((connect.count(Outcome::Error), connect.count(Outcome::Cancelled), connect.calls()), (1, 1, 2));
    assert_eq!(op(&metrics, "connection").calls() + op(&metrics, "connection").in_flight(), 0);
}

/// Answers with the status at the end of the URL, and with a body of ten bytes.
struct Web {
    streams: bool,
}

impl Web {
    fn status(request: &HttpRequest) -> anyhow::Result<u16> {
        request.url.rsplit('/').next().unwrap().parse().map_err(|_| anyhow::anyhow!("no route to {}", request.url))
    }
}

#[async_trait]
impl HttpClient for Web {
    async fn execute(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
        Ok(HttpResponse { status_code: Self::status(&request)?, body: vec![1; 10] })
    }

    fn supports_streaming(&self) -> bool {
        self.streams
    }

    fn execute_streaming(&self, request: HttpRequest) -> anyhow::Result<StreamingHttpResponse> {
        let status_code = Self::status(&request)?;
        let body: Box<dyn Read + Send> = match status_code {
            206 => Box::new(io::repeat(1).take(10).chain(Broken)),
            _ => Box::new(io::repeat(1).take(100_000)),
        };
        Ok(StreamingHttpResponse { status_code, body })
    }

    fn supports_upload_streaming(&self) -> bool {
        self.streams
    }

    fn execute_upload(
        &self,
        request: HttpRequest,
        mut body: UploadBody,
        content_length: u64,
    ) -> anyhow::Result<HttpResponse> {
        let sent = io::copy(&mut body, &mut io::sink())?;
        assert_eq!(sent, content_length);
        Ok(HttpResponse { status_code: Self::status(&request)?, body: vec![1; 10] })
    }

    fn resource_report(&self) -> Option<HttpResourceReport> {
        self.streams.then_some(HttpResourceReport { pool_connections: Some(7), ..HttpResourceReport::default() })
    }
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

#[tokio::test]
async fn exchanges_are_counted_by_class_of_status() {
    let metrics = Metrics::new();
    let client = metrics.http_client("net", Arc::new(Web { streams: false }));
    assert_eq!(format!("{client:?}"), "metrics(net)");
    for status in [101, 200, 204, 302, 401, 404, 503, 600] {
        let request = HttpRequest::post(format!("https://secret.example/{status}")).with_body(&b"12345"[..]);
        let response = client.execute(request).await.unwrap();
        assert_eq!((response.status_code, response.body.len()), (status, 10), "a status is not an error");
    }
    let error = client.execute(HttpRequest::get("https://secret.example/nowhere")).await.unwrap_err();
    assert_eq!(error.to_string(), "no route to https://secret.example/nowhere", "passes unchanged");
    let execute = op(&metrics, "execute");
    let counted: Vec<_> = execute.outcomes().map(|(outcome, count)| (outcome.label(), count)).collect();
    let expected = [("other", 1), ("error", 1), ("1xx", 1), ("2xx", 2), ("3xx", 1), ("4xx", 2), ("5xx", 1)];
    assert_eq!(counted, expected);
    assert_eq!((execute.bytes_in(), execute.bytes_out(), execute.errors()), (40, 80, 5));
}

#[test]
fn streamed_bodies_are_counted_to_their_end() {
    let metrics = Metrics::new();
    let client = metrics.http_client("net", Arc::new(Web { streams: true }));
    let get = |status: u16| client.execute_streaming(HttpRequest::get(format!("https://secret.example/{status}")));

    let mut response = get(200).unwrap();
    assert_eq!(op(&metrics, "streamed_body").in_flight(), 1);
    let mut body = vec![];
    response.body.read_to_end(&mut body).unwrap();
    assert_eq!(body.len(), 100_000);
    drop(response);

    let mut response = get(404).unwrap();
    response.body.read_exact(&mut [0; 50]).unwrap();
    drop(response);

    let broken = get(206).unwrap().body.read_to_end(&mut vec![]).unwrap_err();
    assert_eq!(broken.kind(), io::ErrorKind::ConnectionReset);
    assert!(client.execute_streaming(HttpRequest::get("x")).is_err());

    let exchange = op(&metrics, "execute_streaming");
    let [ok, missing, failed] = [Outcome::Status2xx, Outcome::Status4xx, Outcome::Error].map(|o| exchange.count(o));
    assert_eq!((ok, missing, failed, exchange.calls()), (2, 1, 1, 4));
    let body = op(&metrics, "streamed_body");
    let [ok, dropped, failed] = [Outcome::Ok, Outcome::Cancelled, Outcome::Error].map(|o| body.count(o));
    assert_eq!((ok, dropped, failed, body.calls(), body.in_flight()), (1, 1, 1, 3, 0));
    assert_eq!(body.bytes_out(), 100_000 + 50 + 10);
}

#[test]
fn streamed_uploads_are_counted_as_they_are_read() {
    let metrics = Metrics::new();
    let client = metrics.http_client("net", Arc::new(Web { streams: true }));
    let upload = |status: &str, length: u64| {
        let body = Box::new(io::repeat(1).take(length));
        client.execute_upload(HttpRequest::post(format!("https://secret.example/{status}")), body, length)
    };
    assert_eq!(upload("200", 70_000).unwrap().status_code, 200);
    upload("nowhere", 5).unwrap_err();
    let upload = op(&metrics, "execute_upload");
    assert_eq!((upload.count(Outcome::Status2xx), upload.count(Outcome::Error)), (1, 1));
    assert_eq!((upload.bytes_in(), upload.bytes_out()), (70_005, 10));
}

#[test]
fn what_a_client_can_do_is_said_as_it_is() {
    let metrics = Metrics::new();
    for streams in [true, false] {
        let client = metrics.http_client("net", Arc::new(Web { streams }));
        assert_eq!(client.supports_streaming(), streams);
        assert_eq!(client.supports_upload_streaming(), streams);
        assert_eq!(client.resource_report().is_some(), streams);
    }
}

#[tokio::test]
async fn bodies_and_messages_are_not_copied() {
    struct SameBody;

    #[async_trait]
    impl HttpClient for SameBody {
        async fn execute(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
            assert_eq!(request.body.unwrap().as_ptr(), BODY.as_ptr());
            Ok(HttpResponse { status_code: 200, body: vec![] })
        }
    }

    static BODY: [u8; 1 << 16] = [7; 1 << 16];
    let metrics = Metrics::new();
    let client = metrics.http_client("net", Arc::new(SameBody));
    client.execute(HttpRequest::post("anywhere").with_body(Bytes::from_static(&BODY))).await.unwrap();

    let server = Server::default();
    let factory = metrics.transport_factory("net", Arc::new(server.clone()), Arc::new(TokioRuntime));
    let (transport, events) = factory.create_transport().await.unwrap();
    transport.send(Bytes::from_static(&BODY)).await.unwrap();
    assert_eq!(server.sent.lock().unwrap()[0].as_ptr(), BODY.as_ptr());
    server.say(TransportEvent::DataReceived(Bytes::from_static(&BODY)));
    events.recv().await.unwrap();
    let TransportEvent::DataReceived(data) = events.recv().await.unwrap() else { panic!("another event") };
    assert_eq!(data.as_ptr(), BODY.as_ptr());
}

/// Counters have the same position as their operation.
#[test]
fn operations_are_listed_in_their_order() {
    use crate::metrics::network::{HttpOp, TransportOp};
    use crate::metrics::operation::Operation;
    use crate::metrics::store::StoreOp;

    fn positions<O: Operation>() -> Vec<usize> {
        O::ALL.iter().map(|operation| operation.index()).collect()
    }
    assert_eq!(positions::<TransportOp>(), (0..5).collect::<Vec<_>>());
    assert_eq!(positions::<HttpOp>(), (0..4).collect::<Vec<_>>());
    assert_eq!(positions::<StoreOp>(), (0..82).collect::<Vec<_>>());
}

/// Upstream's transport reports an unknown reason when it is dropped.
#[tokio::test]
async fn a_dropped_connection_is_closed_by_this_side_whatever_it_says() {
    struct SaysUnknown(Sender<TransportEvent>);

    #[async_trait]
    impl Transport for SaysUnknown {
        async fn send(&self, _: Bytes) -> anyhow::Result<()> {
            Ok(())
        }

        async fn disconnect(&self) {}
    }

    impl Drop for SaysUnknown {
        fn drop(&mut self) {
            self.0.try_send(TransportEvent::Disconnected(DisconnectReason::Unknown)).unwrap();
        }
    }

    struct Factory;

    #[async_trait]
    impl TransportFactory for Factory {
        async fn create_transport(&self) -> anyhow::Result<(Arc<dyn Transport>, Receiver<TransportEvent>)> {
            let (to_client, events) = async_channel::unbounded();
            Ok((Arc::new(SaysUnknown(to_client)), events))
        }
    }

    let metrics = Metrics::new();
    let factory = metrics.transport_factory("net", Arc::new(Factory), Arc::new(TokioRuntime));
    let (transport, events) = factory.create_transport().await.unwrap();
    drop(transport);
    while events.recv().await.is_ok() {}
    assert_eq!(op(&metrics, "connection").count(Outcome::LocalClose), 1);
}

/// The client decides how long a connection lasts, so its time is never slow.
#[tokio::test]
async fn connections_are_never_slow() {
    let (metrics, server) = (Metrics::new(), Server::default());
    metrics.log_slower_than(LayerKind::Transport, Some(Duration::ZERO));
    let factory = metrics.transport_factory("net", Arc::new(server.clone()), Arc::new(TokioRuntime));
    let (_transport, events) = factory.create_transport().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.hang_up();
    while events.recv().await.is_ok() {}
    assert_eq!((op(&metrics, "connect").slow(), op(&metrics, "connection").slow()), (1, 0));
    let snapshot = metrics.snapshot();
    let total = snapshot.layer_of(LayerKind::Transport, "net").unwrap().total();
    assert_eq!((total.calls(), total.times().count()), (2, 1));
    assert!(total.times().max() < Duration::from_millis(50));
    assert!(snapshot.to_svg().contains(">connect <") && !snapshot.to_svg().contains(">connection <"));
}

/// A store and a network layer of the same name stay apart.
#[tokio::test]
async fn layers_are_told_apart_by_what_they_are_around() {
    let metrics = Metrics::new();
    let client = metrics.http_client("net", Arc::new(Web { streams: false }));
    let factory = metrics.transport_factory("net", Arc::new(Server::default()), Arc::new(TokioRuntime));
    client.execute(HttpRequest::get("https://secret.example/200")).await.unwrap();
    let _connection = factory.create_transport().await.unwrap();
    let snapshot = metrics.snapshot();
    let names: Vec<_> = snapshot.layers().iter().map(|l| (l.name(), l.kind(), l.ops()[0].name())).collect();
    let expected = [("net", LayerKind::Http, "execute"), ("net", LayerKind::Transport, "connect")];
    assert_eq!(names, expected);
}
