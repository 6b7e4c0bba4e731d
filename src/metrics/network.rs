//! The layers around the network side of the client: connections to the server, and HTTP.

use std::fmt;
use std::io::{self, Read};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use async_channel::{Receiver, Sender};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{Either, select};
use wacore::net::{
    DisconnectReason, HttpClient, HttpRequest, HttpResponse, StreamingHttpResponse, Transport, TransportEvent,
    TransportFactory, UploadBody,
};
use wacore::runtime::Runtime;
use wacore::stats::{HttpResourceReport, TransportResourceReport};

use super::call::{Call, observe, observe_blocking};
use super::operation::{End, LayerKind, Operation};
use super::outcome::Outcome;
use super::stats::LayerStats;
use super::volume::Volume;

/// Makes connections and counts what happens on them. Made by
/// [`Metrics::transport_factory`](super::Metrics::transport_factory); pass it to
/// `Bot::builder().with_transport_factory(..)`.
///
/// | operation | counts |
/// |--|--|
/// | `connect` | making a connection; the time it takes |
/// | `connection` | a connection from its beginning to its end; the outcome is the reason why it ended |
/// | `send` | sending a message; the time it takes; its bytes if it was sent |
/// | `receive` | a message; the time it waited for room in the client's channel, close to zero if the client keeps up |
/// | `disconnect` | closing a connection from this side; the time it takes; the client also closes connections that have already ended |
#[derive(Clone)]
pub struct MetricsTransportFactory {
    inner: Arc<dyn TransportFactory>,
    stats: Arc<LayerStats>,
    runtime: Arc<dyn Runtime>,
}

impl MetricsTransportFactory {
    pub(super) fn new(stats: Arc<LayerStats>, inner: Arc<dyn TransportFactory>, runtime: Arc<dyn Runtime>) -> Self {
        Self { inner, stats, runtime }
    }
}

/// For example `metrics(whatsapp)`.
impl fmt::Debug for MetricsTransportFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metrics({})", self.stats.name)
    }
}

type Connected = (Arc<dyn Transport>, Receiver<TransportEvent>);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl TransportFactory for MetricsTransportFactory {
    async fn create_transport(&self) -> Result<Connected, anyhow::Error> {
        let connect = || self.inner.create_transport();
        let (transport, events) =
            observe(&*self.stats, TransportOp::Connect, Volume::default(), connect, |connected| {
                ended(connected).into()
            })
            .await?;

        let connection = Call::start(self.stats.clone(), TransportOp::Connection, Volume::default());
        let closed = Arc::new(AtomicBool::new(false));
        // As deep as the transport's own channel, so that a slow client slows the transport down as it does without
        // the layer.
        let (to_client, client) = events.capacity().map_or_else(async_channel::unbounded, async_channel::bounded);
        let relay = Relay { stats: self.stats.clone(), connection, closed: closed.clone(), events, to_client };
        self.runtime.spawn_detached(Box::pin(relay.run()));
        Ok((Arc::new(MetricsTransport { inner: transport, stats: self.stats.clone(), closed }), client))
    }
}

/// A connection whose messages are counted.
struct MetricsTransport {
    inner: Arc<dyn Transport>,
    stats: Arc<LayerStats>,
    /// Whether this side has closed or dropped the connection.
    closed: Arc<AtomicBool>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Transport for MetricsTransport {
    async fn send(&self, data: Bytes) -> Result<(), anyhow::Error> {
        let message = message(&data);
        let send = || self.inner.send(data);
        observe(&*self.stats, TransportOp::Send, Volume::default(), send, |sent| End {
            outcome: ended(sent),
            given: sent.is_ok().then_some(message),
            got: Volume::default(),
        })
        .await
    }

    async fn disconnect(&self) {
        self.closed.store(true, Relaxed);
        let disconnect = || self.inner.disconnect();
        observe(&*self.stats, TransportOp::Disconnect, Volume::default(), disconnect, |()| Outcome::Ok.into()).await;
    }

    fn resource_report(&self) -> Option<TransportResourceReport> {
        self.inner.resource_report()
    }
}

/// Runs before the transport itself is dropped, which then reports that it does not know why it ended.
impl Drop for MetricsTransport {
    fn drop(&mut self) {
        self.closed.store(true, Relaxed);
    }
}

fn message(data: &Bytes) -> Volume {
    Volume { rows: 1, bytes: data.len() as u64 }
}

fn ended<T, E>(result: &Result<T, E>) -> Outcome {
    if result.is_ok() { Outcome::Ok } else { Outcome::Error }
}

/// Counts received messages and forwards them.
struct Relay {
    stats: Arc<LayerStats>,
    connection: Call<Arc<LayerStats>, TransportOp>,
    closed: Arc<AtomicBool>,
    events: Receiver<TransportEvent>,
    to_client: Sender<TransportEvent>,
}

impl Relay {
    async fn run(self) {
        let mut reason = None;
        let mut client_left = pin!(self.to_client.closed());
        // Runs until the transport stops or the client drops its receiver.
        while let Either::Left((Ok(event), _)) = select(pin!(self.events.recv()), client_left.as_mut()).await {
            match &event {
                TransportEvent::DataReceived(data) => {
                    let got = message(data);
                    let hand_over = || self.to_client.send(event);
                    let taken = observe(&*self.stats, TransportOp::Receive, Volume::default(), hand_over, |taken| {
                        if taken.is_ok() { End { got, ..Outcome::Ok.into() } } else { Outcome::Cancelled.into() }
                    });
                    if taken.await.is_err() {
                        break;
                    }
                }
                TransportEvent::Connected | TransportEvent::Disconnected(_) => {
                    if let TransportEvent::Disconnected(why) = &event {
                        reason = reason.or(Some(self.why(why)));
                    }
                    if self.to_client.send(event).await.is_err() {
                        break;
                    }
                }
            }
        }
        // The transport did not give a reason: either this side closed the connection, or the transport just stopped.
        let local = self.to_client.is_closed() || self.closed.load(Relaxed);
        let unsaid = if local { Outcome::LocalClose } else { Outcome::Unknown };
        self.connection.end(reason.unwrap_or(unsaid).into());
    }

    fn why(&self, reason: &DisconnectReason) -> Outcome {
        match reason {
            DisconnectReason::ServerClose { .. } if reason.is_clean_shutdown() => Outcome::ServerClose,
            DisconnectReason::ServerClose { .. } => Outcome::ServerError,
            DisconnectReason::StreamEnded => Outcome::StreamEnded,
            DisconnectReason::ReadError(_) => Outcome::ReadError,
            // A transport reports `Unknown` if this side closed the connection.
            DisconnectReason::Unknown if self.closed.load(Relaxed) => Outcome::LocalClose,
            DisconnectReason::Unknown => Outcome::Unknown,
        }
    }
}

/// An operation of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum TransportOp {
    Connect,
    Connection,
    Send,
    Receive,
    Disconnect,
}

impl Operation for TransportOp {
    const KIND: LayerKind = LayerKind::Transport;
    const ALL: &'static [Self] = &[
        TransportOp::Connect,
        TransportOp::Connection,
        TransportOp::Send,
        TransportOp::Receive,
        TransportOp::Disconnect,
    ];

    fn name(self) -> &'static str {
        match self {
            TransportOp::Connect => "connect",
            TransportOp::Connection => "connection",
            TransportOp::Send => "send",
            TransportOp::Receive => "receive",
            TransportOp::Disconnect => "disconnect",
        }
    }

    fn index(self) -> usize {
        self as usize
    }

    fn is_lifetime(self) -> bool {
        matches!(self, TransportOp::Connection)
    }

    fn outcomes(self) -> &'static [Outcome] {
        match self {
            TransportOp::Connection => &[
                Outcome::ServerClose,
                Outcome::ServerError,
                Outcome::StreamEnded,
                Outcome::ReadError,
                Outcome::LocalClose,
                Outcome::Unknown,
                // The runtime shut down while the connection was open.
                Outcome::Cancelled,
            ],
            _ => &[Outcome::Ok, Outcome::Error, Outcome::Cancelled],
        }
    }
}

/// Makes HTTP exchanges and counts them. Made by [`Metrics::http_client`](super::Metrics::http_client); pass it to
/// `Bot::builder().with_http_client(..)`.
///
/// | operation | counts |
/// |--|--|
/// | `execute` | an exchange; the time it takes; the bytes of both bodies if there is an answer |
/// | `execute_streaming` | an exchange until its body can be read |
/// | `streamed_body` | the body of such an exchange: its bytes, and the time until the client read it to the end or gave up (as it does with the body of an error) |
/// | `execute_upload` | an exchange whose request body is streamed; the bytes of both bodies, including those read before a failure |
#[derive(Clone)]
pub struct MetricsHttpClient {
    inner: Arc<dyn HttpClient>,
    stats: Arc<LayerStats>,
}

impl MetricsHttpClient {
    pub(super) fn new(stats: Arc<LayerStats>, inner: Arc<dyn HttpClient>) -> Self {
        Self { inner, stats }
    }
}

/// For example `metrics(media)`.
impl fmt::Debug for MetricsHttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metrics({})", self.stats.name)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl HttpClient for MetricsHttpClient {
    async fn execute(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
        let given = body_of(&request);
        let execute = || self.inner.execute(request);
        observe(&*self.stats, HttpOp::Execute, content(0), execute, |response| exchanged(response, given)).await
    }

    fn supports_streaming(&self) -> bool {
        self.inner.supports_streaming()
    }

    fn execute_streaming(&self, request: HttpRequest) -> anyhow::Result<StreamingHttpResponse> {
        let given = body_of(&request);
        let mut response = observe_blocking(
            &self.stats,
            HttpOp::ExecuteStreaming,
            || self.inner.execute_streaming(request),
            |response| match response {
                Ok(response) => End { given: Some(given), ..of_status(response.status_code).into() },
                Err(_) => Outcome::Error.into(),
            },
        )?;
        let call = Call::start(self.stats.clone(), HttpOp::StreamedBody, content(0));
        response.body = Box::new(StreamedBody { inner: response.body, read: 0, failed: false, call: Some(call) });
        Ok(response)
    }

    fn supports_upload_streaming(&self) -> bool {
        self.inner.supports_upload_streaming()
    }

    fn execute_upload(
        &self,
        request: HttpRequest,
        body: UploadBody,
        content_length: u64,
    ) -> anyhow::Result<HttpResponse> {
        let sent = Arc::new(AtomicU64::new(0));
        let body = Box::new(CountingReader { inner: body, read: sent.clone() });
        observe_blocking(
            &self.stats,
            HttpOp::ExecuteUpload,
            || self.inner.execute_upload(request, body, content_length),
            |response| End { given: Some(content(sent.load(Relaxed))), ..exchanged(response, content(0)) },
        )
    }

    fn resource_report(&self) -> Option<HttpResourceReport> {
        self.inner.resource_report()
    }
}

fn content(bytes: u64) -> Volume {
    Volume { rows: 0, bytes }
}

fn body_of(request: &HttpRequest) -> Volume {
    content(request.body.as_ref().map_or(0, Bytes::len) as u64)
}

fn exchanged(response: &anyhow::Result<HttpResponse>, given: Volume) -> End {
    match response {
        Ok(response) => {
            let (outcome, got) = (of_status(response.status_code), content(response.body.len() as u64));
            End { outcome, given: Some(given), got }
        }
        Err(_) => Outcome::Error.into(),
    }
}

fn of_status(status: u16) -> Outcome {
    match status {
        100..=199 => Outcome::Status1xx,
        200..=299 => Outcome::Status2xx,
        300..=399 => Outcome::Status3xx,
        400..=499 => Outcome::Status4xx,
        500..=599 => Outcome::Status5xx,
        _ => Outcome::Other,
    }
}

/// A body that is counted when the client reads its end, or else when it is dropped: as failed if the last read
/// failed, otherwise as cancelled.
struct StreamedBody {
    inner: Box<dyn Read + Send>,
    read: u64,
    failed: bool,
    call: Option<Call<Arc<LayerStats>, HttpOp>>,
}

impl StreamedBody {
    fn end(&mut self, outcome: Outcome) {
        if let Some(call) = self.call.take() {
            call.end(End { got: content(self.read), ..outcome.into() });
        }
    }
}

impl Read for StreamedBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buffer);
        match &result {
            Ok(0) if !buffer.is_empty() => self.end(Outcome::Ok),
            Ok(read) => self.read += *read as u64,
            Err(_) => {}
        }
        self.failed = result.is_err();
        result
    }
}

impl Drop for StreamedBody {
    fn drop(&mut self) {
        self.end(if self.failed { Outcome::Error } else { Outcome::Cancelled });
    }
}

/// Counts the bytes read.
struct CountingReader {
    inner: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for CountingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read.fetch_add(read as u64, Relaxed);
        Ok(read)
    }
}

/// An operation of the HTTP client.
#[derive(Debug, Clone, Copy)]
pub(super) enum HttpOp {
    Execute,
    ExecuteStreaming,
    StreamedBody,
    ExecuteUpload,
}

impl Operation for HttpOp {
    const KIND: LayerKind = LayerKind::Http;
    const ALL: &'static [Self] =
        &[HttpOp::Execute, HttpOp::ExecuteStreaming, HttpOp::StreamedBody, HttpOp::ExecuteUpload];

    fn name(self) -> &'static str {
        match self {
            HttpOp::Execute => "execute",
            HttpOp::ExecuteStreaming => "execute_streaming",
            HttpOp::StreamedBody => "streamed_body",
            HttpOp::ExecuteUpload => "execute_upload",
        }
    }

    fn index(self) -> usize {
        self as usize
    }

    fn is_lifetime(self) -> bool {
        matches!(self, HttpOp::StreamedBody)
    }

    fn outcomes(self) -> &'static [Outcome] {
        match self {
            HttpOp::StreamedBody => &[Outcome::Ok, Outcome::Error, Outcome::Cancelled],
            _ => &[
                Outcome::Status1xx,
                Outcome::Status2xx,
                Outcome::Status3xx,
                Outcome::Status4xx,
                Outcome::Status5xx,
                Outcome::Other,
                Outcome::Error,
                Outcome::Cancelled,
            ],
        }
    }
}
