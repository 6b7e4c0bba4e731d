//! The time that a bot's store takes, and the reasons: metrics above and below encryption and a cache, as a table, as
//! a chart, and for Prometheus.
//!
//! ```sh
//! cargo run --release --example latency_metrics --features metrics
//! cargo run --release --example latency_metrics --features metrics -- --serve 127.0.0.1:9184
//! ```
//!
//! The first command prints all numbers once and writes `latency.svg`. The second runs until you stop it. Prometheus
//! can scrape it, and Grafana can show it with `examples/grafana-dashboard.json`.

#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use wacore::net::{HttpClient, HttpRequest};
use wacore::store::traits::{Backend, LidPnMappingEntry, MsgSecretEntry, TcTokenEntry};
use wastore::metrics::{DURATION_BUCKETS, LayerKind, MetricsHttpClient};
use wastore::{CacheLayer, Key, Metrics, SqliteStore, Stack, VaultOptions};
use whatsapp_rust::http::UreqHttpClient;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    let serve = match (std::env::args().nth(1).as_deref(), std::env::args().nth(2)) {
        (None, _) => None,
        (Some("--serve"), Some(address)) => Some(address.parse()?),
        _ => return Err("usage: latency_metrics [--serve ADDRESS:PORT]".into()),
    };
    let address = serve_prometheus(serve)?;
    println!("Prometheus endpoint: http://{address}/metrics\n");

    let folder = tempfile::tempdir()?;
    let (metrics, store) = stack(folder.path()).await?;
    if serve.is_some() {
        loop {
            work(&*store, 200).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    work(&*store, 500).await?;
    let warm = metrics.snapshot();
    work(&*store, 2000).await?;
    // Only the events after the first messages.
    let snapshot = metrics.snapshot().since(&warm);
    println!("{snapshot}");

    let above = ["client", "above encryption", "sqlite"];
    for (names, what) in above.windows(2).zip(["cache", "encrypt"]) {
        if let [above, below] = names
            && let Some(cost) = snapshot.between(above, below)
        {
            println!("{}", cost.with_label(what));
        }
    }

    std::fs::write("latency.svg", snapshot.to_svg())?;
    println!("The chart is in latency.svg\n");

    let client = metrics.http_client("scrape", Arc::new(UreqHttpClient::new()));
    let text = scrape(&client, address).await?;
    println!("The lines that Prometheus sees of one method, of {} lines in total:\n", text.lines().count());
    let method = |line: &&str| line.contains("op=\"get_tc_token\"") && !line.contains("_bucket");
    text.lines().filter(method).for_each(|line| println!("{line}"));
    Ok(())
}

/// The store, with metrics at each useful place.
async fn stack(folder: &Path) -> Result<(Metrics, Arc<dyn Backend>)> {
    let metrics = Metrics::new();
    // Logs a line for each slower call, without a name of an account or a contact.
    metrics.log_slower_than(LayerKind::Store, Some(Duration::from_millis(250)));
    let store = SqliteStore::open(folder.join("wa.db")).await?;
    let vault = VaultOptions::new().create(&store, Key::generate()?).await?;
    let cache = CacheLayer::new(16 << 20);
    metrics.track_cache("cache", &cache);
    let stack = Stack::new(store)
        .layer(metrics.layer("sqlite"))
        .layer(vault.layer())
        .layer(metrics.layer("above encryption"))
        .layer(cache)
        .layer(metrics.layer("client"));
    println!("{stack:?}\n");
    Ok((metrics, stack.into_backend()))
}

/// Serves the counts from now on in the text format of Prometheus, at this address or at a free port of this machine.
/// Also runs the recorder's upkeep.
fn serve_prometheus(address: Option<SocketAddr>) -> Result<SocketAddr> {
    // Another process may take a free port before this one does, so try several times.
    let mut tries = 0;
    let address = loop {
        let address = match address {
            Some(address) => address,
            None => std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?,
        };
        match PrometheusBuilder::new().with_http_listener(address).set_buckets(DURATION_BUCKETS)?.install() {
            Ok(()) => break address,
            Err(error) if tries == 5 => return Err(error.into()),
            Err(_) => tries += 1,
        }
    };
    wastore::metrics::describe();
    Ok(address)
}

/// Scrapes the endpoint, as Prometheus does every few seconds.
async fn scrape(client: &MetricsHttpClient, address: SocketAddr) -> Result<String> {
    let response = client.execute(HttpRequest::get(format!("http://{address}/metrics"))).await?;
    Ok(response.body_string()?)
}

/// The calls of a client to its store for this number of messages.
async fn work(store: &dyn Backend, messages: u64) -> Result<()> {
    const CONTACTS: u64 = 300;
    for message in 0..messages {
        // A few contacts receive most of the messages.
        let contact = (message * message * 7 + message) % CONTACTS * ((message % 5) / 2) % CONTACTS;
        let (lid, id) = (format!("{}@lid", 100_000_000_000_000 + contact), format!("3EB0{message:016X}"));
        let address = format!("{}.0", 15_550_000_000 + contact);
        if store.get_tc_token(&lid).await?.is_none() {
            let token = TcTokenEntry { token: vec![7; 40], token_timestamp: 1_700_000_000, sender_timestamp: None };
            store.put_tc_token(&lid, &token).await?;
            let phone_number = format!("1555{contact:07}");
            let mapping = LidPnMappingEntry {
                lid: lid.clone(),
                phone_number,
                created_at: 1_700_000_000,
                updated_at: 1_700_000_000,
                learning_source: "usync".to_owned(),
            };
            store.put_lid_mapping(&mapping).await?;
        }
        store.get_session(&address).await?;
        store.put_session(&address, &[1; 1500]).await?;
        store.store_sent_message(&lid, &id, &[1; 200]).await?;
        store.get_lid_mapping(&lid).await?;
        if message % 3 == 0 {
            let (chat, sender, msg_id) = (lid.as_str().into(), lid.as_str().into(), id.as_str().into());
            let secret = MsgSecretEntry { chat, sender, msg_id, secret: [3; 32], expires_at: 0, message_ts: 1 };
            store.put_msg_secrets(vec![secret]).await?;
            store.get_msg_secret_with_ts(&lid, &lid, &format!("3EB0{:016X}", message % 40 * 3)).await?;
        }
        if message % 2 == 0 {
            store.take_sent_message(&lid, &id).await?;
        }
    }
    store.delete_expired_sent_messages(1).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use prometheus_parse::{Scrape, Value};

    use super::*;

    /// Scrapes the endpoint as Prometheus does, and compares the numbers with those of the program itself.
    #[tokio::test]
    async fn the_endpoint_tells_what_was_counted() {
        let address = serve_prometheus(None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (metrics, store) = stack(folder.path()).await.unwrap();
        work(&*store, 100).await.unwrap();
        let snapshot = metrics.snapshot();

        let text = scrape(&metrics.http_client("scrape", Arc::new(UreqHttpClient::new())), address).await.unwrap();
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        let find = |name: &str, labels: &[(&str, &str)]| {
            let mut samples = scrape.samples.iter().filter(|sample| {
                sample.metric == name && labels.iter().all(|(label, value)| sample.labels.get(label) == Some(value))
            });
            let sample = samples.next().unwrap_or_else(|| panic!("no {name} {labels:?} in:\n{text}"));
            assert!(samples.next().is_none(), "more than one {name} {labels:?}");
            sample.value.clone()
        };
        let mut compared = 0;
        for layer in snapshot.layers().iter().filter(|layer| layer.name() != "scrape") {
            for op in layer.ops() {
                let of = [("layer", layer.name()), ("op", op.name())];
                let with = |name, value| [of[0], of[1], (name, value)];
                for (outcome, count) in op.outcomes() {
                    let exported = find("wa_store_op_total", &with("outcome", outcome.label()));
                    assert_eq!(exported, Value::Counter(count as f64), "{of:?} {outcome}");
                }
                let bytes = find("wa_store_bytes_total", &with("direction", "in"));
                assert_eq!(bytes, Value::Counter(op.bytes_in() as f64), "{of:?}");
                let Value::Histogram(buckets) = find("wa_store_op_duration_seconds", &of) else { panic!("{of:?}") };
                assert_eq!(buckets.last().unwrap().count, op.calls() as f64, "{of:?}");
                assert_eq!(find("wa_store_op_in_flight", &of), Value::Gauge(0.0));
                compared += 1;
            }
        }
        assert!(compared > 25, "only {compared} operations");
        let (_, cache) = snapshot.caches().next().unwrap();
        for stats in cache.records() {
            if stats.hits + stats.misses + stats.invalidations > 0 {
                let exported = find("wa_store_cache_hits_total", &[("record", stats.record.label())]);
                assert_eq!(exported, Value::Counter(stats.hits as f64), "{}", stats.record);
            }
        }
        // Metrics also count HTTP exchanges, after they ended.
        let exchange = metrics.snapshot();
        let exchange = exchange.layer("scrape").unwrap().op("execute").unwrap();
        assert_eq!((exchange.calls(), exchange.bytes_out()), (1, text.len() as u64));
    }
}
