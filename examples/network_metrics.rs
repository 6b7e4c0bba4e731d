//! Metrics of the network side of a bot: your own transport and HTTP client, with metrics, in the bot builder.
//!
//! ```sh
//! cargo run --example network_metrics
//! ```
//!
//! The transport speaks plain TCP to a relay, for a bot without direct access to the internet. The HTTP client asks a
//! mirror. Here both run on this machine and do not belong to WhatsApp. The relay hangs up after the client's first
//! message, so the bot keeps trying to connect; the table shows these attempts.

#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use wacore::store::InMemoryBackend;
use wastore::{Metrics, Stack};
use whatsapp_rust::anyhow::{Context, Result};
use whatsapp_rust::bot::Bot;
use whatsapp_rust::bytes::Bytes;
use whatsapp_rust::http::{HttpClient, HttpRequest, HttpResponse, UreqHttpClient};
use whatsapp_rust::transport::{DisconnectReason, Transport, TransportEvent, TransportFactory};
use whatsapp_rust::{TokioRuntime, async_channel, async_trait};

#[tokio::main]
async fn main() -> Result<()> {
    let (relay, mirror) = (relay().await?, mirror().await?);
    let metrics = Metrics::new();

    let bot = Bot::builder()
        .with_backend_arc(Stack::new(Arc::new(InMemoryBackend::new())).layer(metrics.layer("client")).into_backend())
        .with_transport_factory(metrics.transport_factory(
            "whatsapp",
            Arc::new(Relay { address: relay }),
            Arc::new(TokioRuntime),
        ))
        .with_http_client(
            metrics.http_client("media", Arc::new(Mirror { address: mirror, inner: UreqHttpClient::new() })),
        )
        .build()
        .await?;
    let client = bot.client();
    let running = tokio::spawn(bot.run());
    tokio::time::sleep(Duration::from_secs(5)).await;
    client.disconnect().await;
    running.abort();

    println!("{}", metrics.snapshot());
    Ok(())
}

/// Makes connections through a relay.
struct Relay {
    address: SocketAddr,
}

#[async_trait]
impl TransportFactory for Relay {
    async fn create_transport(&self) -> Result<(Arc<dyn Transport>, async_channel::Receiver<TransportEvent>)> {
        let stream = TcpStream::connect(self.address).await.context("the relay cannot be reached")?;
        let (mut reader, writer) = stream.into_split();
        let (to_client, events) = async_channel::bounded(64);
        to_client.send(TransportEvent::Connected).await?;
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 * 1024];
            let reason = loop {
                match reader.read(&mut buffer).await {
                    Ok(0) => break DisconnectReason::StreamEnded,
                    Ok(read) => {
                        let data = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
                        if to_client.send(TransportEvent::DataReceived(data)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => break DisconnectReason::ReadError(error.to_string()),
                }
            };
            // The client may have dropped its receiver already.
            to_client.send(TransportEvent::Disconnected(reason)).await.ok();
        });
        Ok((Arc::new(RelayConnection { writer: Mutex::new(writer) }), events))
    }
}

struct RelayConnection {
    writer: Mutex<OwnedWriteHalf>,
}

#[async_trait]
impl Transport for RelayConnection {
    async fn send(&self, data: Bytes) -> Result<()> {
        self.writer.lock().await.write_all(&data).await.context("the relay is gone")
    }

    async fn disconnect(&self) {
        self.writer.lock().await.shutdown().await.ok();
    }
}

/// Sends every request to a mirror instead of its real destination.
struct Mirror {
    address: SocketAddr,
    inner: UreqHttpClient,
}

#[async_trait]
impl HttpClient for Mirror {
    async fn execute(&self, mut request: HttpRequest) -> Result<HttpResponse> {
        let path = request.url.splitn(4, '/').nth(3).unwrap_or_default();
        request.url = format!("http://{}/{path}", self.address);
        self.inner.execute(request).await
    }
}

/// Starts a relay that takes a message and hangs up. Returns its address.
async fn relay() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            // Any part of the message will do.
            let _ = connection.read(&mut [0; 1024]).await;
        }
    });
    Ok(address)
}

/// Starts a mirror that fails at first, then returns the newest version of the client. Returns its address.
async fn mirror() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let page = r#"{"client_revision":1026131876}"#;
        let mut answers = ["HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_owned()].into_iter();
        while let Ok((mut connection, _)) = listener.accept().await {
            let found = || format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{page}", page.len());
            let _ = connection.read(&mut [0; 4096]).await;
            connection.write_all(answers.next().unwrap_or_else(found).as_bytes()).await.ok();
        }
    });
    Ok(address)
}
